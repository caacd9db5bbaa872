//! Where a request may lead: below `/EWS/` of the configured origin, and nowhere else.

use std::net::IpAddr;

use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Uri, Version, header};

use super::desk::{Desk, Origin};
use crate::config::model::Protocol;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The EWS endpoint, without a query: SOAP, or the page that says it is there.
    Endpoint,
    /// The WSDL or one of its schemas.
    Description,
    /// Anything else below `/EWS/`.
    OtherEws,
    /// `/Microsoft-Server-ActiveSync`.
    ActiveSync,
    /// Answered here.
    Autodiscover(Discovery),
}

impl Place {
    /// What the token is for.
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::ActiveSync => Protocol::ActiveSync,
            Self::Endpoint | Self::Description | Self::OtherEws | Self::Autodiscover(_) => Protocol::Ews,
        }
    }
}

/// The languages of autodiscover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// "Plain old XML": MS-OXDSCLI.
    Pox,
    /// MS-OXWSADISC.
    Soap,
    /// Version 2.
    Json,
}

/// What this is for; `None`: there is no such thing here. The case of a path does not matter.
pub fn place(uri: &Uri, method: &Method, activesync: bool) -> Option<Place> {
    if *method == Method::CONNECT {
        return None;
    }
    let path = uri.path().to_ascii_lowercase();
    match path.as_str() {
        "/ews/exchange.asmx" if uri.query().is_none_or(str::is_empty) => Some(Place::Endpoint),
        "/ews/services.wsdl" | "/ews/types.xsd" | "/ews/messages.xsd" => Some(Place::Description),
        "/ews/exchange.asmx" if uri.query().is_some_and(|query| query.eq_ignore_ascii_case("wsdl")) => {
            Some(Place::Description)
        }
        "/microsoft-server-activesync" if activesync => Some(Place::ActiveSync),
        "/autodiscover/autodiscover.xml" => Some(Place::Autodiscover(Discovery::Pox)),
        "/autodiscover/autodiscover.svc" => Some(Place::Autodiscover(Discovery::Soap)),
        "/autodiscover/autodiscover.json" => Some(Place::Autodiscover(Discovery::Json)),
        other
            if other
                .strip_prefix("/autodiscover/autodiscover.json/v1.0/")
                .is_some_and(|mailbox| !mailbox.contains('/')) =>
        {
            Some(Place::Autodiscover(Discovery::Json))
        }
        other => is_ews(other).then_some(Place::OtherEws),
    }
}

/// How mail clients reach this listener, without a `/` at the end: `public-url`, else what `Host` says if that is
/// an address that the listener has.
pub(super) fn own_base(desk: &Desk, headers: &http::HeaderMap) -> Option<String> {
    if let Some(url) = &desk.listener.ews.public_url {
        return Some(url.as_str().trim_end_matches('/').to_owned());
    }
    let scheme = if desk.plain { "http" } else { "https" };
    let host: Authority = headers.get(header::HOST)?.to_str().ok()?.parse().ok()?;
    let listening = desk.address?;
    let port = host.port_u16().unwrap_or(if desk.plain { 80 } else { 443 });
    let name = host.host().trim_matches(['[', ']']);
    let ours = match name.parse::<IpAddr>() {
        Ok(ip) => ip == listening.ip() || listening.ip().is_unspecified(),
        Err(_) => {
            name.eq_ignore_ascii_case("localhost")
                && (listening.ip().is_loopback() || listening.ip().is_unspecified())
        }
    };
    let named = host.as_str();
    (ours && port == listening.port() && !named.contains('@')).then(|| format!("{scheme}://{named}"))
}

/// The upstream URI for what the mail client asked for; `None`: there is no such thing here.
///
/// Only the path counts, whatever stood before it in the request line; the query is kept as it came. The path
/// is held to plain characters, so that no reading of `%2e`, `\` or `//` on the other side can leave `/EWS/`.
pub fn upstream(uri: &Uri, origin: &Origin) -> Option<Uri> {
    let target: PathAndQuery = uri.path_and_query()?.clone();
    Uri::builder()
        .scheme(origin.scheme.clone())
        .authority(origin.authority.clone())
        .path_and_query(target)
        .build()
        .ok()
}

fn is_ews(path: &str) -> bool {
    let mut segments = path.split('/');
    segments.next() == Some("")
        && segments.next().is_some_and(|first| first.eq_ignore_ascii_case("ews"))
        && segments.clone().next().is_some()
        && segments.all(is_plain)
}

fn is_plain(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'))
}

/// Whether the request names its host as RFC 9112 §3.2 wants it: HTTP/1.1 exactly once, HTTP/1.0 at most
/// once.
pub(super) fn names_its_host<B>(request: &Request<B>) -> bool {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() == Version::HTTP_10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream_of(target: &str) -> Option<String> {
        let origin =
            Origin { scheme: http::uri::Scheme::HTTPS, authority: "outlook.office365.com".parse().unwrap() };
        let uri = target.parse().ok()?;
        let found = place(&uri, &Method::POST, false)?;
        if matches!(found, Place::Autodiscover(_)) {
            return None;
        }
        upstream(&uri, &origin).map(|uri| uri.to_string())
    }

    #[test]
    fn paths_below_ews_lead_to_the_configured_origin_in_any_case() {
        for (asked, sent) in [
            ("/EWS/Exchange.asmx", "https://outlook.office365.com/EWS/Exchange.asmx"),
            ("/ews/exchange.asmx", "https://outlook.office365.com/ews/exchange.asmx"),
            ("/Ews/Services.wsdl", "https://outlook.office365.com/Ews/Services.wsdl"),
            (
                "/ews/exchange.asmx/s/GetUserPhoto?email=a@b.c&size=HR48x48",
                "https://outlook.office365.com/ews/exchange.asmx/s/GetUserPhoto?email=a@b.c&size=HR48x48",
            ),
            ("http://evil.example/EWS/Exchange.asmx", "https://outlook.office365.com/EWS/Exchange.asmx"),
        ] {
            assert_eq!(upstream_of(asked).as_deref(), Some(sent), "{asked}");
        }
    }

    #[test]
    fn nothing_else_leads_anywhere() {
        for asked in [
            "/",
            "/EWS",
            "/EWS/",
            "*",
            "/EWSX/Exchange.asmx",
            "/Microsoft-Server-ActiveSync",
            "/owa/",
            "/EWS/../owa/",
            "/EWS/%2e%2e/owa/",
            "/EWS/%2E%2E/owa",
            "/EWS/./x",
            "//EWS/Exchange.asmx",
            "//evil.example/EWS/x",
            "/EWS//Exchange.asmx",
            "/EWS/..\\owa",
            "/EWS\\Exchange.asmx",
            "/x/EWS/Exchange.asmx",
            "/EWS/a%2fb",
            "/EWS/a;b",
            "evil.example:443",
            "/%45WS/Exchange.asmx",
            "/autodiscover/autodiscover.xml",
            "/EWS/@evil.example/",
        ] {
            assert_eq!(upstream_of(asked), None, "{asked}");
        }
    }

    #[test]
    fn connect_leads_nowhere() {
        assert_eq!(place(&"evil.example:443".parse().unwrap(), &Method::CONNECT, true), None);
    }

    #[test]
    fn every_path_is_known_for_what_it_is() {
        use Place::{ActiveSync, Autodiscover, Description, Endpoint, OtherEws};
        for (asked, expected) in [
            ("/EWS/Exchange.asmx", Some(Endpoint)),
            ("/ews/exchange.ASMX", Some(Endpoint)),
            ("/ews/exchange.asmx?wsdl", Some(Description)),
            ("/ews/exchange.asmx?x", Some(OtherEws)),
            ("/EWS/exchange.asmx/s/GetUserPhoto?email=a@b.c", Some(OtherEws)),
            ("/ews/SERVICES.wsdl", Some(Description)),
            ("/EWS/types.xsd", Some(Description)),
            ("/Microsoft-Server-ActiveSync?Cmd=Ping", Some(ActiveSync)),
            ("/Microsoft-Server-ActiveSync/x", None),
            ("/AutoDiscover/AutoDiscover.XML", Some(Autodiscover(Discovery::Pox))),
            ("/autodiscover/autodiscover.svc", Some(Autodiscover(Discovery::Soap))),
            ("/autodiscover/autodiscover.svc/wssecurity", None),
            ("/autodiscover/autodiscover.json?Protocol=EWS", Some(Autodiscover(Discovery::Json))),
            ("/autodiscover/autodiscover.json/v1.0/a@b.c?Protocol=EWS", Some(Autodiscover(Discovery::Json))),
            ("/autodiscover/autodiscover.json/v1.0/a/b", None),
            ("/autodiscover/", None),
        ] {
            assert_eq!(place(&asked.parse().unwrap(), &Method::GET, true), expected, "{asked}");
        }
        assert_eq!(place(&"/Microsoft-Server-ActiveSync".parse().unwrap(), &Method::POST, false), None);
    }
}
