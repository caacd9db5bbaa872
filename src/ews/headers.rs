//! Header fields, rebuilt for the other side: what is the connection's own never crosses, the rest does.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Uri};

use super::desk::Origin;

/// Routes a request to the right back end of Exchange Online.
const ANCHOR: HeaderName = HeaderName::from_static("x-anchormailbox");

/// Whom `X-AnchorMailbox` names.
#[derive(Clone, Copy, Debug)]
pub enum Anchor<'a> {
    /// The mail client's own, else this mailbox.
    Default(&'a str),
    /// This mailbox, whatever the mail client says: the application's token acts on it.
    Always(&'a str),
}

/// Makes a mail client's header fields fit to go upstream.
///
/// Gone are: what belongs to the connection (RFC 9110 §7.6.1) and what `Connection` names, `Host`,
/// `Authorization` of every scheme, framing, `Expect`, and all that claims to come from a proxy. Everything
/// else stays, `User-Agent` and cookies above all: Exchange's access policies and affinity hang on them.
pub fn for_upstream(headers: &mut HeaderMap, anchor: Anchor<'_>) {
    drop_unfit(headers, |name| {
        matches!(
            name,
            "host"
                | "authorization"
                | "expect"
                | "content-length"
                | "forwarded"
                | "x-real-ip"
                | "x-original-url"
        ) || name.starts_with("x-forwarded-")
    });
    let mailbox = match anchor {
        Anchor::Default(mailbox) => mailbox,
        Anchor::Always(mailbox) => {
            headers.remove(&ANCHOR);
            mailbox
        }
    };
    let routable = mailbox.contains('@') && mailbox.bytes().all(|b| b.is_ascii_graphic());
    if !headers.contains_key(&ANCHOR)
        && routable
        && let Ok(mailbox) = HeaderValue::from_str(mailbox)
    {
        headers.insert(ANCHOR, mailbox);
    }
}

/// Makes upstream's header fields fit for the mail client.
///
/// Challenges are ours to make; `MS-Diagnostics-Public` turns clients to OAuth; CORS would open the
/// listener to web pages; `Alt-Svc` and `Strict-Transport-Security` speak of an origin that is not ours.
/// `Location` has been dealt with before, by [`redirect`].
pub fn for_mail_client(headers: &mut HeaderMap, plain: bool) {
    drop_unfit(headers, |name| {
        matches!(
            name,
            "www-authenticate"
                | "ms-diagnostics-public"
                | "authentication-info"
                | "x-ms-location"
                | "alt-svc"
                | "strict-transport-security"
                | "report-to"
                | "nel"
                | "refresh"
        ) || name.starts_with("access-control-")
    });
    if headers.contains_key(SET_COOKIE) {
        let cookies: Vec<HeaderValue> =
            headers.get_all(SET_COOKIE).iter().filter_map(|cookie| for_our_host(cookie, plain)).collect();
        headers.remove(SET_COOKIE);
        for cookie in cookies {
            headers.append(SET_COOKIE, cookie);
        }
    }
}

/// Where upstream wants the mail client to go.
#[derive(Debug, PartialEq, Eq)]
pub enum Redirect {
    /// Nowhere.
    None,
    /// Somewhere on our own host; what is to stand in `Location`.
    Here(HeaderValue),
    /// To another host: the mail client would send its password there.
    Elsewhere,
}

/// Judges `Location`: a relative one stays as it is, upstream's own origin is cut off, all else leads
/// elsewhere.
pub fn redirect(headers: &HeaderMap, origin: &Origin) -> Redirect {
    let mut locations = headers.get_all(LOCATION).iter();
    let Some(location) = locations.next() else { return Redirect::None };
    if locations.next().is_some() {
        return Redirect::Elsewhere;
    }
    let bytes = location.as_bytes();
    // readers of URLs pass over tabs, and what stands between two `/` then is no path
    if bytes.iter().any(u8::is_ascii_control) {
        return Redirect::Elsewhere;
    }
    // and take `/\` for `//`, behind which a host stands
    let is_path = |text: &[u8]| text.starts_with(b"/") && !matches!(text.get(1), Some(b'/' | b'\\'));
    if is_path(bytes) {
        return Redirect::Here(location.clone());
    }
    let Ok(target) = Uri::try_from(bytes) else { return Redirect::Elsewhere };
    let ours = target.scheme() == Some(&origin.scheme)
        && target.host().is_some_and(|host| host.eq_ignore_ascii_case(origin.authority.host()))
        && target.port_u16().unwrap_or(443) == origin.authority.port_u16().unwrap_or(443)
        && target.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    match HeaderValue::from_str(path) {
        Ok(path) if ours && is_path(path.as_bytes()) => Redirect::Here(path),
        Ok(_) | Err(_) => Redirect::Elsewhere,
    }
}

/// `number;reason="…";error_category="…"`, with upstream's challenge behind it: why a token was not taken.
pub fn diagnostics(headers: &HeaderMap) -> String {
    let shown: Vec<_> = [HeaderName::from_static("x-ms-diagnostics"), WWW_AUTHENTICATE]
        .iter()
        .flat_map(|name| headers.get_all(name))
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect();
    crate::explain::one_line(&shown.join(" | "), 600)
}

/// Drops what belongs to the connection (RFC 9110 §7.6.1), what `Connection` names, and what is not wanted besides.
/// One pass: whatever is looked up by name is hashed for it, whether it is there or not.
fn drop_unfit(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name: &HeaderName| *name != CONTENT_LENGTH)
        .collect();
    let of_the_connection = |name: &str| {
        matches!(
            name,
            "connection"
                | "keep-alive"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "http2-settings"
        ) || name.starts_with("proxy-")
    };
    let unfit = |name: &HeaderName| {
        of_the_connection(name.as_str()) || unwanted(name.as_str()) || named.contains(name)
    };
    let found: Vec<HeaderName> = headers.keys().filter(|name| unfit(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// One `Set-Cookie` without `Domain` (it names upstream's), and without `Secure` where we speak plain HTTP.
fn for_our_host(cookie: &HeaderValue, plain: bool) -> Option<HeaderValue> {
    let kept: Vec<&[u8]> = cookie
        .as_bytes()
        .split(|&b| b == b';')
        .enumerate()
        .filter(|(index, attribute)| {
            let name = attribute.split(|&b| b == b'=').next().unwrap_or_default().trim_ascii();
            let unwanted =
                name.eq_ignore_ascii_case(b"domain") || (plain && name.eq_ignore_ascii_case(b"secure"));
            *index == 0 || !unwanted
        })
        .map(|(_, attribute)| attribute)
        .collect();
    HeaderValue::from_bytes(&kept.join(&b';')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn origin() -> Origin {
        Origin { scheme: http::uri::Scheme::HTTPS, authority: "outlook.office365.com".parse().unwrap() }
    }

    #[test]
    fn only_what_is_end_to_end_goes_upstream() {
        let mut headers = map(&[
            ("host", "127.0.0.1:1080"),
            ("authorization", "Basic dTpw"),
            ("connection", "keep-alive, X-Odd"),
            ("connection", "x-odder"),
            ("keep-alive", "300"),
            ("x-odd", "1"),
            ("x-odder", "1"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("expect", "100-continue"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "keep-alive"),
        ]);
        for_upstream(&mut headers, Anchor::Default("a@contoso.com"));
        assert_eq!(headers, map(&[("x-anchormailbox", "a@contoso.com")]));
    }

    #[test]
    fn what_exchange_needs_survives() {
        let kept = map(&[
            ("user-agent", "ExchangeServicesClient/15.00"),
            ("cookie", "exchangecookie=1; X-BackEndOverrideCookie=2"),
            ("x-backendoverridecookie", "3"),
            ("x-preferserveraffinity", "true"),
            ("x-anchormailbox", "shared@contoso.com"),
            ("client-request-id", "4"),
            ("return-client-request-id", "true"),
            ("soapaction", "\"x\""),
            ("accept-encoding", "gzip, deflate"),
            ("prefer", "exchange.behavior=\"x\""),
            ("content-type", "text/xml; charset=utf-8"),
            ("method", "POST"),
        ]);
        let mut headers = kept.clone();
        for_upstream(&mut headers, Anchor::Default("a@contoso.com"));
        assert_eq!(headers, kept);
    }

    #[test]
    fn a_name_that_is_no_address_is_not_made_a_header() {
        for odd in ["scanner", "a b@c", "ä@contoso.com"] {
            let mut headers = HeaderMap::new();
            for_upstream(&mut headers, Anchor::Default(odd));
            assert!(headers.is_empty(), "{odd}");
        }
    }

    #[test]
    fn challenges_and_cross_origin_grants_never_come_through() {
        let mut headers = map(&[
            ("www-authenticate", "Bearer"),
            ("www-authenticate", "Basic Realm=\"\""),
            ("ms-diagnostics-public", "Modern Auth"),
            ("access-control-allow-origin", "*"),
            ("strict-transport-security", "max-age=31536000"),
            ("alt-svc", "h3=\":443\""),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("x-caserrorcode", "E"),
            ("retry-after", "7"),
            ("request-id", "r"),
            ("x-ms-diagnostics", "d"),
            ("content-length", "3"),
        ]);
        for_mail_client(&mut headers, true);
        let kept = map(&[
            ("x-caserrorcode", "E"),
            ("retry-after", "7"),
            ("request-id", "r"),
            ("x-ms-diagnostics", "d"),
            ("content-length", "3"),
        ]);
        assert_eq!(headers, kept);
    }

    #[test]
    fn cookies_stay_one_header_each_and_lose_only_what_would_keep_them_from_coming_back() {
        let given = [
            (
                "set-cookie",
                "exchangecookie=abc; expires=Tue, 23-Nov-2027 10:00:00 GMT; path=/; secure; HttpOnly",
            ),
            ("set-cookie", "X-BackEndCookie=a=b; Domain=outlook.office365.com; path=/EWS; Secure"),
            ("set-cookie", "secure=1"),
        ];
        let cookies = |plain| {
            let mut headers = map(&given);
            for_mail_client(&mut headers, plain);
            let all: Vec<_> =
                headers.get_all(SET_COOKIE).iter().map(|v| v.to_str().unwrap().to_owned()).collect();
            all
        };
        assert_eq!(
            cookies(true),
            [
                "exchangecookie=abc; expires=Tue, 23-Nov-2027 10:00:00 GMT; path=/; HttpOnly",
                "X-BackEndCookie=a=b; path=/EWS",
                "secure=1",
            ]
        );
        assert_eq!(cookies(false), [given[0].1, "X-BackEndCookie=a=b; path=/EWS; Secure", "secure=1"]);
    }

    #[test]
    fn a_redirect_never_names_another_host() {
        let judged = |location: &'static str| redirect(&map(&[("location", location)]), &origin());
        let here = |path| Redirect::Here(HeaderValue::from_static(path));
        let error_page = "/ews/genericerrorpage.htm?aspxerrorpath=/ews/exchange.asmx";
        assert_eq!(judged(error_page), here(error_page));
        assert_eq!(judged("https://Outlook.Office365.com/EWS/x?y"), here("/EWS/x?y"));
        assert_eq!(judged("https://outlook.office365.com:443/EWS/x"), here("/EWS/x"));
        assert_eq!(redirect(&HeaderMap::new(), &origin()), Redirect::None);
        for elsewhere in [
            "https://evil.example/EWS/x",
            "http://outlook.office365.com/EWS/x",
            "https://outlook.office365.com:8443/EWS/x",
            "https://user@outlook.office365.com/EWS/x",
            "https://outlook.office365.com//evil.example/",
            "https://outlook.office365.com/\\evil.example/",
            "//evil.example/EWS/x",
            "/\\evil.example/",
            "/\t/evil.example/",
            "evil.example",
            "",
        ] {
            assert_eq!(judged(elsewhere), Redirect::Elsewhere, "{elsewhere}");
        }
        let twice = map(&[("location", "/a"), ("location", "https://evil.example/")]);
        assert_eq!(redirect(&twice, &origin()), Redirect::Elsewhere);
    }
}
