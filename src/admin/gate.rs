//! Who may read the admin pages: nobody whom a foreign web page sends, by rebound DNS or across sites.

use std::net::{IpAddr, SocketAddr};

use http::header::{CONTENT_LENGTH, HOST, ORIGIN, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{Method, Request, StatusCode, Version};

/// Judges a request head.
///
/// # Errors
/// Status and sentence to refuse it with.
pub(super) fn admit<B>(
    request: &Request<B>,
    listen: &[SocketAddr],
) -> Result<(), (StatusCode, &'static str)> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served here"));
    }
    let headers = request.headers();
    // nothing here needs a body; where none is, nobody can disagree about its length (RFC 9112 §6.3)
    if headers.contains_key(TRANSFER_ENCODING)
        || headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0")
    {
        return Err((StatusCode::BAD_REQUEST, "a request has no body here"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        // A health check that speaks HTTP/1.0; no browser does.
        (None, None) if request.version() == Version::HTTP_10 => return Ok(()),
        (None | Some(_), _) => return Err((StatusCode::BAD_REQUEST, "exactly one Host is needed")),
    };
    let host = host.filter(|host| is_ours(host.host(), listen)).ok_or((
        StatusCode::MISDIRECTED_REQUEST,
        "this is not the host's name; use localhost or the address",
    ))?;
    let foreign = (StatusCode::FORBIDDEN, "another site may not read this");
    if headers.get_all("sec-fetch-site").iter().any(|site| site != "same-origin" && site != "none") {
        return Err(foreign);
    }
    let same_origin = |origin: &[u8]| {
        let bare = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        bare.is_some_and(|bare| bare.eq_ignore_ascii_case(host.as_str().as_bytes()))
    };
    if headers.get_all(ORIGIN).iter().all(|origin| same_origin(origin.as_bytes())) {
        Ok(())
    } else {
        Err(foreign)
    }
}

/// Loopback by name or address, or the address that is listened on. Where that is every address of the
/// machine, any literal address will do: DNS rebinding needs a name.
fn is_ours(host: &str, listen: &[SocketAddr]) -> bool {
    if host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
        return true;
    }
    let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() else { return false };
    address.is_loopback() || listen.iter().any(|own| own.ip() == address || own.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(listen: &str, lines: &[(&'static str, &str)]) -> u16 {
        let mut request = Request::builder().uri("/");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let listen: SocketAddr = listen.parse().unwrap();
        admit(&request.body(()).unwrap(), &[listen]).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn only_loopback_and_the_configured_address_are_hosts_of_ours() {
        for (listen, host, expected) in [
            ("127.0.0.1:9143", "127.0.0.1:9143", 200),
            ("127.0.0.1:9143", "localhost:9143", 200),
            ("127.0.0.1:9143", "LOCALHOST.", 200),
            ("127.0.0.1:9143", "[::1]:9143", 200),
            ("127.0.0.1:9143", "evil.example:9143", 421),
            ("127.0.0.1:9143", "localhost.evil.example", 421),
            ("127.0.0.1:9143", "127.0.0.1.evil.example", 421),
            ("127.0.0.1:9143", "10.0.0.5:9143", 421),
            ("127.0.0.1:9143", "", 421),
            ("10.0.0.5:9143", "10.0.0.5:9143", 200),
            ("10.0.0.5:9143", "10.0.0.6:9143", 421),
            ("0.0.0.0:9143", "10.0.0.6:9143", 200),
            ("0.0.0.0:9143", "evil.example", 421),
        ] {
            assert_eq!(status(listen, &[("host", host)]), expected, "{host} on {listen}");
        }
        assert_eq!(status("127.0.0.1:1", &[]), 400);
        assert_eq!(status("127.0.0.1:1", &[("host", "localhost"), ("host", "localhost")]), 400);
    }

    #[test]
    fn other_sites_are_refused() {
        let host = ("host", "localhost:9143");
        for (line, expected) in [
            (("sec-fetch-site", "same-origin"), 200),
            (("sec-fetch-site", "none"), 200),
            (("sec-fetch-site", "cross-site"), 403),
            (("sec-fetch-site", "same-site"), 403),
            (("origin", "http://localhost:9143"), 200),
            (("origin", "http://localhost:8080"), 403),
            (("origin", "https://evil.example"), 403),
            (("origin", "null"), 403),
        ] {
            assert_eq!(status("127.0.0.1:9143", &[host, line]), expected, "{line:?}");
        }
    }

    #[test]
    fn only_reading_is_possible() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            let request = Request::builder().method(method).header("host", "localhost").body(()).unwrap();
            assert_eq!(admit(&request, &[]).unwrap_err().0, 405, "{method}");
        }
        let head = Request::builder().method("HEAD").header("host", "localhost").body(()).unwrap();
        assert_eq!(admit(&head, &[]), Ok(()));
    }

    #[test]
    fn a_request_with_a_body_is_refused() {
        let host = ("host", "localhost");
        for (line, expected) in [
            (("content-length", "0"), 200),
            (("content-length", "4"), 400),
            (("content-length", "0, 0"), 400),
            (("transfer-encoding", "chunked"), 400),
            (("transfer-encoding", "xchunked"), 400),
        ] {
            assert_eq!(status("127.0.0.1:9143", &[host, line]), expected, "{line:?}");
        }
    }

    #[test]
    fn a_health_check_in_http_1_0_needs_no_host() {
        let request = Request::builder().version(Version::HTTP_10).body(()).unwrap();
        assert_eq!(admit(&request, &[]), Ok(()));
    }
}
