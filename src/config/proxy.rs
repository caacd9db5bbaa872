//! The section `outbound-proxy`, or in its place the variables that other programs go by.

use url::Url;

use super::model::{HostRule, OutboundProxy, ProxyAuth, UseFor};
use super::raw::{Kind, Node, Place};
use super::read::{At, Reader, Section, network};
use crate::secret::Secret;

pub(super) const KEYS: [&str; 8] =
    ["url", "username", "password", "password-file", "auth", "use-for", "for", "no-proxy"];

const SCHEMES: [&str; 3] = ["http", "https", "socks5h"];

const DEFAULT_USE: UseFor = UseFor { identity: true, ews: true, mail: false };

/// The corporate proxies: as the file says, else as the environment says. `outbound-proxy: off` means none.
pub(super) fn outbound(reader: &Reader<'_>, node: Option<&Node>) -> Vec<OutboundProxy> {
    match node {
        None => from_environment(reader).into_iter().collect(),
        Some(node) if matches!(node.scalar(), Some("off" | "none")) => Vec::new(),
        Some(Node { kind: Kind::List(nodes), .. }) => several(reader, nodes),
        Some(node) => from_file(reader, node).into_iter().collect(),
    }
}

/// A list: for every connection the first entry that serves it.
fn several(reader: &Reader<'_>, nodes: &[Node]) -> Vec<OutboundProxy> {
    let mut proxies: Vec<OutboundProxy> = Vec::new();
    for node in nodes {
        let Some(proxy) = from_file(reader, node) else { continue };
        let all = |earlier: &OutboundProxy| earlier.hosts.is_empty() && earlier.no_proxy.is_empty();
        let covered = |used: bool, by: fn(UseFor) -> bool| {
            !used || proxies.iter().any(|earlier| all(earlier) && by(earlier.use_for))
        };
        if covered(proxy.use_for.identity, |uses| uses.identity)
            && covered(proxy.use_for.ews, |uses| uses.ews)
            && covered(proxy.use_for.mail, |uses| uses.mail)
        {
            reader.remark(
                node.at,
                "this proxy is never used: an entry above it takes everything",
                "give the entry above a `for`, or move this one up",
            );
        }
        proxies.push(proxy);
    }
    proxies
}

fn from_file(reader: &Reader<'_>, node: &Node) -> Option<OutboundProxy> {
    let section = reader.section(node, "outbound-proxy", &KEYS)?;
    let url = section.get("url").and_then(|node| reader.url(node, &SCHEMES));
    if section.get("url").is_none() {
        reader.problem(
            section.at,
            "`url` is missing in `outbound-proxy`",
            "add it, or write `outbound-proxy: off`",
        );
    }
    if let Some(url) = &url
        && url.value.port_or_known_default().is_none()
    {
        reader.problem(url.at, "this URL has no port", "write the port behind the host, like `:1080`");
    }
    let username = section.get("username").and_then(|node| reader.text(node, "a user name"));
    let password = reader.secret(&section, "password");
    let auth = sign_in(reader, &section);
    let socks = url.as_ref().is_some_and(|url| url.value.scheme() == "socks5h");
    if let Some(At { value: ProxyAuth::Ntlm | ProxyAuth::Negotiate, at }) = auth
        && socks
    {
        reader.problem(at, "SOCKS knows user name and password only", "write `auth: basic`, or remove it");
    }
    // Everything is read before a bad URL ends it.
    let use_for = section.get("use-for").map_or(DEFAULT_USE, |node| use_for(reader, node));
    let hosts = section.get("for").map(|node| rules(reader, node)).unwrap_or_default();
    let no_proxy = section.get("no-proxy").map(|node| rules(reader, node)).unwrap_or_default();
    Some(OutboundProxy {
        url: url?.value,
        username: username.map(|name| name.value.as_str().to_owned()),
        password: password.map(|password| password.value),
        auth: auth.map_or(ProxyAuth::Auto, |auth| auth.value),
        use_for,
        hosts,
        no_proxy,
    })
}

/// `auth`, and whether it goes with the user name and password.
fn sign_in(reader: &Reader<'_>, section: &Section<'_>) -> Option<At<ProxyAuth>> {
    let auth = section.get("auth").and_then(|node| {
        let choices = [
            ("auto", ProxyAuth::Auto),
            ("none", ProxyAuth::None),
            ("basic", ProxyAuth::Basic),
            ("ntlm", ProxyAuth::Ntlm),
            ("negotiate", ProxyAuth::Negotiate),
        ];
        reader.one_of(node, &choices)
    });
    let has_password = section.get("password").is_some() || section.get("password-file").is_some();
    match (section.get("username"), has_password) {
        (Some(node), false) => reader.problem(node.at, "`username` needs a password", "add `password-file`"),
        (None, true) => {
            let at = section.key_at("password").or(section.key_at("password-file")).unwrap_or(section.at);
            reader.problem(at, "a password needs its `username`", "add `username`");
        }
        (None, false) | (Some(_), true) => {}
    }
    match auth {
        Some(At { value: ProxyAuth::Basic | ProxyAuth::Ntlm, at }) if section.get("username").is_none() => {
            reader.problem(at, "this `auth` needs a user name", "add `username` and `password-file`");
        }
        Some(At { value: ProxyAuth::Negotiate, at }) if !cfg!(feature = "negotiate") => {
            reader.problem(
                at,
                "this build has no Negotiate (Kerberos)",
                "build it with `--features negotiate`, or write `auth: ntlm` or `auth: basic`",
            );
        }
        _ => {}
    }
    auth
}

fn use_for(reader: &Reader<'_>, node: &Node) -> UseFor {
    let mut uses = UseFor { identity: false, ews: false, mail: false };
    let items = reader.list(node, "a list of `identity`, `ews`, `mail`");
    if items.is_empty() && !matches!(node.kind, Kind::Map(_)) {
        reader.problem(
            node.at,
            "`use-for` names nothing",
            "name `identity`, `ews` or `mail`, or remove the section",
        );
    }
    for item in items {
        match reader.one_of(item, &[("identity", 0), ("ews", 1), ("mail", 2)]).map(|word| word.value) {
            Some(0) => uses.identity = true,
            Some(1) => uses.ews = true,
            Some(_) => uses.mail = true,
            None => {}
        }
    }
    uses
}

fn rules(reader: &Reader<'_>, node: &Node) -> Vec<HostRule> {
    let mut rules = Vec::new();
    for item in reader.list(node, "a list of domains, addresses and networks") {
        let rule = reader.parse(item, "a domain, an address, a network or `*`", |text| {
            text.split(',')
                .map(str::trim)
                .filter(|entry| !entry.is_empty())
                .map(|entry| {
                    rule(entry).ok_or_else(|| "write it like `.contoso.com` or `10.0.0.0/8`".to_owned())
                })
                .collect::<Result<Vec<_>, _>>()
        });
        rules.extend(rule.into_iter().flat_map(|rule| rule.value));
    }
    rules
}

/// One entry: `*`, `.contoso.com`, `*.contoso.com`, `contoso.com`, `10.1.2.3`, `10.0.0.0/8`.
fn rule(text: &str) -> Option<HostRule> {
    if text == "*" {
        return Some(HostRule::All);
    }
    if let Some(net) = network(text.trim_matches(['[', ']'])) {
        return Some(HostRule::Net(net));
    }
    let suffix =
        text.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (!suffix.is_empty() && suffix.bytes().all(plain)).then_some(HostRule::Suffix(suffix))
}

/// HTTPS_PROXY, https_proxy, ALL_PROXY and NO_PROXY as curl reads them.
fn from_environment(reader: &Reader<'_>) -> Option<OutboundProxy> {
    let first = |names: &[&'static str]| {
        names.iter().find_map(|&name| Some((name, (reader.env)(name).filter(|value| !value.is_empty())?)))
    };
    let (name, value) = first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])?;
    let Some((url, username, password)) = split(&value) else {
        let what = format!("the environment variable `{name}` holds no URL of a proxy");
        reader.problem(Place::default(), what, "correct it, or write `outbound-proxy: off`");
        return None;
    };
    let no_proxy = first(&["NO_PROXY", "no_proxy"]).map(|(_, list)| list).unwrap_or_default();
    let rules = no_proxy.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
    // Some programs write a port behind; which port is asked for makes no difference here.
    let without_port = |entry: &str| match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') && port.parse::<u16>().is_ok() => host.to_owned(),
        _ => entry.to_owned(),
    };
    reader.remark(
        Place::default(),
        format!("tokens and EWS go through the proxy of the environment variable `{name}`"),
        "write the section `outbound-proxy` to say so in the file, or `outbound-proxy: off`",
    );
    Some(OutboundProxy {
        url,
        username,
        password,
        auth: ProxyAuth::Auto,
        use_for: DEFAULT_USE,
        hosts: Vec::new(),
        no_proxy: rules.filter_map(|entry| rule(&without_port(entry))).collect(),
    })
}

/// The URL without user name and password, and these two.
fn split(value: &str) -> Option<(Url, Option<String>, Option<Secret>)> {
    let value = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let value = match value.split_once("://")? {
        ("socks5" | "socks", rest) => format!("socks5h://{rest}"),
        _ => value,
    };
    let mut url = Url::parse(&value).ok()?;
    if !SCHEMES.contains(&url.scheme()) || url.port_or_known_default().is_none() || url.host_str()?.is_empty()
    {
        return None;
    }
    let username = (!url.username().is_empty()).then(|| percent_decoded(url.username()));
    let password = url.password().map(|password| Secret::new(percent_decoded(password)));
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some((url, username, password))
}

fn percent_decoded(text: &str) -> String {
    // A form's `+` is a blank; a URL's is not.
    let query = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(query.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_written_in_many_ways() {
        for (text, host) in [
            (".contoso.com", "a.contoso.com"),
            ("*.contoso.com", "a.contoso.com"),
            ("Contoso.com", "contoso.com"),
            ("10.0.0.0/8", "10.1.2.3"),
            ("10.1.2.3", "10.1.2.3"),
            ("[::1]", "::1"),
            ("*", "anything"),
            ("localhost", "localhost"),
        ] {
            assert!(rule(text).is_some_and(|rule| rule.matches(host)), "{text}");
        }
        for text in ["", ".", "a b", "http://x"] {
            assert_eq!(rule(text), None, "{text}");
        }
    }

    #[test]
    fn the_environments_proxy_keeps_its_password_out_of_the_url() {
        let (url, username, password) = split("http://al%40ice:p%2Bw+d&x@proxy.contoso.com:3128").unwrap();
        assert_eq!(url.as_str(), "http://proxy.contoso.com:3128/");
        assert_eq!(username.as_deref(), Some("al@ice"));
        assert_eq!(password.map(|password| password.expose().to_owned()).as_deref(), Some("p+w+d&x"));
        assert_eq!(split("proxy:8080").unwrap().0.as_str(), "http://proxy:8080/");
        assert_eq!(split("socks5://proxy:1080").unwrap().0.scheme(), "socks5h");
        assert!(split("ftp://proxy").is_none() && split("socks5://proxy").is_none());
    }
}
