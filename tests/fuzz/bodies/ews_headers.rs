//! What goes over between the mail client's HTTP and upstream's: header fields, targets, redirects, `Authorization`.
//!
//! - Nothing of the connection, of the sign-in or of a proxy's claims goes upstream; nothing else is lost or changed.
//! - A request leads to the configured origin below `/EWS/`, as the WHATWG's reader of URLs sees it, or nowhere.
//! - A redirect stays on our own host for the same reader.
//! - `Basic` gives the user name and password that a second decoder finds, and is never repeated.

use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Uri};
use mailkey::ews::basic::{Presented, presented};
use mailkey::ews::desk::Origin;
use mailkey::ews::headers::{Anchor, Redirect, diagnostics, for_mail_client, for_upstream, redirect};
use mailkey::ews::target::{Place, place, upstream};
use url::Url;

use super::script::{Script, is_one_line, unbase64};

/// The body. The first octet says which of them; the rest is header lines, or one value.
pub fn run(data: &[u8]) {
    let script: Script<1> = Script::read(data);
    let octets = script.octets();
    match script.settings[0] % 6 {
        0 | 1 => to_upstream(&octets, script.settings[0]),
        2 => to_mail_client(&octets),
        3 => led_away(&octets),
        4 => target(&octets),
        _ => basic(&octets),
    }
}

fn origin() -> Origin {
    Origin { scheme: http::uri::Scheme::HTTPS, authority: "outlook.office365.com".parse().unwrap() }
}

/// `name: value` a line; what is no header field for the `http` crate is none for hyper.
fn fields(octets: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in octets.split(|octet| *octet == b'\n').take(100) {
        let Some(colon) = line.iter().position(|octet| *octet == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// What `Connection` names (RFC 9110 §7.6.1).
fn named_by_connection(map: &HeaderMap) -> Vec<String> {
    let values = map.get_all("connection").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

fn to_upstream(octets: &[u8], which: u8) {
    const NEVER: [&str; 14] = [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "host",
        "authorization",
        "expect",
        "content-length",
        "forwarded",
        "x-real-ip",
        "x-original-url",
    ];
    let given = fields(octets);
    let mut sent = given.clone();
    let mailbox = "alice@contoso.com";
    let always = which & 64 != 0;
    for_upstream(&mut sent, if always { Anchor::Always(mailbox) } else { Anchor::Default(mailbox) });
    let named = named_by_connection(&given);
    let is_kept = |name: &str| {
        !NEVER.contains(&name)
            && !name.starts_with("proxy-")
            && !name.starts_with("x-forwarded-")
            && !named.iter().any(|other| other == name)
    };
    let anchors: Vec<_> = sent.get_all("x-anchormailbox").iter().collect();
    if always {
        assert_eq!(anchors, [mailbox], "routed by the mail client");
    } else {
        assert!(!anchors.is_empty(), "not routed");
    }
    compare(&given, &sent, |name| is_kept(name) && name != "x-anchormailbox", &["x-anchormailbox"]);
}

fn to_mail_client(octets: &[u8]) {
    const NEVER: [&str; 16] = [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "www-authenticate",
        "ms-diagnostics-public",
        "authentication-info",
        "x-ms-location",
        "alt-svc",
        "strict-transport-security",
        "report-to",
        "nel",
        "refresh",
    ];
    let given = fields(octets);
    let told = diagnostics(&given);
    assert!(is_one_line(&told, 600), "{told:?}");
    for plain in [true, false] {
        let mut sent = given.clone();
        for_mail_client(&mut sent, plain);
        let named = named_by_connection(&given);
        let is_kept = |name: &str| {
            !NEVER.contains(&name)
                && !name.starts_with("proxy-")
                && !name.starts_with("access-control-")
                && (!named.iter().any(|other| other == name) || name == "content-length")
        };
        compare(&given, &sent, |name| is_kept(name) && name != "set-cookie", &["set-cookie"]);
        for cookie in sent.get_all("set-cookie") {
            for attribute in cookie.as_bytes().split(|octet| *octet == b';').skip(1) {
                let name = attribute.split(|octet| *octet == b'=').next().unwrap_or_default().trim_ascii();
                assert!(!name.eq_ignore_ascii_case(b"domain"), "{cookie:?}");
                assert!(!plain || !name.eq_ignore_ascii_case(b"secure"), "{cookie:?}");
            }
        }
    }
}

/// What is to be kept is there as it was; nothing else is.
fn compare(given: &HeaderMap, sent: &HeaderMap, is_kept: impl Fn(&str) -> bool, others: &[&str]) {
    for name in given.keys() {
        let expected: Vec<_> =
            if is_kept(name.as_str()) { given.get_all(name).iter().collect() } else { Vec::new() };
        if !others.contains(&name.as_str()) {
            assert_eq!(sent.get_all(name).iter().collect::<Vec<_>>(), expected, "{name}");
        }
    }
    for name in sent.keys() {
        assert!(given.contains_key(name) || others.contains(&name.as_str()), "{name} is made up");
    }
}

fn led_away(octets: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(octets.trim_ascii()) else { return };
    let mut map = HeaderMap::new();
    map.insert("location", value);
    let Redirect::Here(location) = redirect(&map, &origin()) else { return };
    let Ok(location) = location.to_str() else { return };
    let here = Url::parse("http://127.0.0.1:1080/EWS/Exchange.asmx").unwrap();
    if let Ok(there) = here.join(location) {
        assert_eq!(there.origin(), here.origin(), "`{location}` leads away");
    }
}

fn target(octets: &[u8]) {
    let Ok(uri) = Uri::try_from(octets) else { return };
    for (method, activesync) in [(Method::POST, true), (Method::GET, false), (Method::CONNECT, true)] {
        let Some(found) = place(&uri, &method, activesync) else { continue };
        assert_ne!(method, Method::CONNECT, "CONNECT leads somewhere");
        if matches!(found, Place::Autodiscover(_)) {
            continue;
        }
        let sent = upstream(&uri, &origin()).expect("a place without a way").to_string();
        let seen = Url::parse(&sent).expect("no URL");
        assert_eq!(seen.origin(), Url::parse("https://outlook.office365.com/").unwrap().origin());
        assert!(seen.username().is_empty() && seen.password().is_none(), "{sent}");
        let path = seen.path().to_ascii_lowercase();
        let is_activesync = activesync && path == "/microsoft-server-activesync";
        assert!(is_activesync || (path.starts_with("/ews/") && path.len() > 5), "{sent} leaves /EWS/");
        assert_eq!(is_activesync, found == Place::ActiveSync);
    }
}

fn basic(octets: &[u8]) {
    let mut map = HeaderMap::new();
    for line in octets.split(|octet| *octet == b'\n').take(3) {
        if let Ok(value) = HeaderValue::from_bytes(line.trim_ascii()) {
            map.append(AUTHORIZATION, value);
        }
    }
    let values: Vec<_> = map.get_all(AUTHORIZATION).iter().collect();
    match presented(&map) {
        Presented::Nothing => assert!(values.is_empty()),
        Presented::Ambiguous => assert!(values.len() > 1),
        Presented::OtherScheme => {
            assert!(!values[0].as_bytes().to_ascii_lowercase().starts_with(b"basic "));
        }
        Presented::Unusable(why) => {
            assert!(REASONS.contains(&why.as_str()), "made of what was sent: {why:?}");
        }
        Presented::Basic(found) => {
            assert_eq!(values.len(), 1);
            let text = values[0].as_bytes();
            assert!(text.to_ascii_lowercase().starts_with(b"basic "), "another scheme");
            let pair = unbase64(text[6..].trim_ascii()).expect("no base64");
            let colon = pair.iter().position(|octet| *octet == b':').expect("no colon");
            assert_eq!(found.user, decoded(&pair[..colon]));
            assert_eq!(found.password.expose(), decoded(&pair[colon + 1..]));
            assert!(!found.user.chars().any(char::is_control), "{:?}", found.user);
        }
    }
}

/// All that is said of credentials that cannot be used: nothing of them can be in it.
const REASONS: [&str; 6] = [
    "the base64 of `Authorization: Basic` is broken",
    "no colon stands between user name and password",
    "the user name is empty",
    "the password is empty",
    "the user name or password holds a control character",
    "the user name or password is too long",
];

/// UTF-8, or Latin-1 where it is none.
fn decoded(octets: &[u8]) -> String {
    std::str::from_utf8(octets)
        .map_or_else(|_| octets.iter().map(|octet| char::from(*octet)).collect(), str::to_owned)
}
