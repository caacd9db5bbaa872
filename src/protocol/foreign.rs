//! Another protocol at the door: a browser, a TLS hello on a clear port, an SSH client.
//!
//! A page in a browser can post to a mail port of this machine; its body would then be read as commands
//! (the ALPACA shape). The first line of HTTP gives it away, so the session ends there and nothing of the
//! input is repeated.

use nom::branch::alt;
use nom::bytes::complete::{tag, tag_no_case};
use nom::sequence::terminated;
use nom::{IResult, Parser};

/// The content type of a TLS handshake record (RFC 8446 §5.1): how every TLS connection begins.
const TLS_HANDSHAKE: u8 = 0x16;

/// Whether what waits to be read begins like a TLS record. One octet decides, so slicing does not matter.
pub fn is_tls(waiting: &[u8]) -> bool {
    waiting.first() == Some(&TLS_HANDSHAKE)
}

/// Whether this line is an HTTP request line or an SSH banner.
///
/// None of these verbs is a command of IMAP, POP3 or SMTP.
pub fn is_line(line: &[u8]) -> bool {
    http(line).is_ok() || ssh(line).is_ok()
}

/// `request-line = method SP request-target SP HTTP-version` (RFC 9112 §3)
fn http(line: &[u8]) -> IResult<&[u8], &[u8]> {
    let method = alt((
        tag_no_case("GET"),
        tag_no_case("POST"),
        tag_no_case("HEAD"),
        tag_no_case("PUT"),
        tag_no_case("OPTIONS"),
        tag_no_case("CONNECT"),
        tag_no_case("DELETE"),
        tag_no_case("PATCH"),
        tag_no_case("TRACE"),
        tag("PRI"),
    ));
    terminated(method, tag(" ")).parse(line)
}

/// `SSH-protoversion-softwareversion` (RFC 4253 §4.2)
fn ssh(line: &[u8]) -> IResult<&[u8], &[u8]> {
    tag("SSH-").parse(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_known_by_their_first_line() {
        for line in [&b"GET / HTTP/1.1"[..], b"post /x HTTP/1.0", b"PRI * HTTP/2.0", b"SSH-2.0-OpenSSH_9.9"] {
            assert!(is_line(line), "{line:?}");
        }
        assert!(is_tls(b"\x16\x03\x01\x02\x00"));
    }

    #[test]
    fn mail_commands_are_no_strangers() {
        for line in [&b"DELE 1"[..], b"HELO a", b"HELP", b"GETMETADATA", b"DATA", b"a1 LOGIN b c", b""] {
            assert!(!is_line(line), "{line:?}");
        }
        assert!(!is_tls(b"EHLO"));
        assert!(!is_tls(b""));
    }
}
