//! Where a request may lead: below `/EWS/` of the configured origin, and nowhere else.

use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version, header};

use super::desk::Origin;

/// The upstream URI for what the mail client asked for; `None`: there is no such thing here.
///
/// Only the path counts, whatever stood before it in the request line; the query is kept as it came. The path
/// is held to plain characters, so that no reading of `%2e`, `\` or `//` on the other side can leave `/EWS/`.
pub(super) fn upstream(uri: &Uri, method: &Method, origin: &Origin) -> Option<Uri> {
    if *method == Method::CONNECT || !is_ews(uri.path()) {
        return None;
    }
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
        upstream(&target.parse().ok()?, &Method::POST, &origin).map(|uri| uri.to_string())
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
        let origin = Origin { scheme: http::uri::Scheme::HTTPS, authority: "o.example".parse().unwrap() };
        assert_eq!(upstream(&"evil.example:443".parse().unwrap(), &Method::CONNECT, &origin), None);
    }
}
