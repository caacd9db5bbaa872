//! POP3's commands and replies, as far as a login needs them. The CRLF of each line is already cut off.
//!
//! Standards: RFC 1939, RFC 2449 (CAPA), RFC 2595 (STLS), RFC 3206 (response codes), RFC 5034 (AUTH).

use nom::branch::alt;
use nom::bytes::complete::{tag, tag_no_case, take_till1};
use nom::combinator::{all_consuming, eof, map, opt, rest, value};
use nom::sequence::{preceded, terminated};
use nom::{IResult, Parser};

use crate::explain::one_line;
use crate::protocol::foreign;
use crate::protocol::machine::Offer;

/// What a mail client may say before its login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// What do you offer?
    Capa,
    /// A user name.
    User(&'a [u8]),
    /// A password, blanks and all.
    Pass(&'a [u8]),
    /// Which SASL mechanisms do you offer?
    AuthList,
    /// A SASL exchange.
    Auth {
        /// The mechanism, as it was written.
        mechanism: &'a [u8],
        /// The initial response: base64, or `=` for an empty one.
        initial: Option<&'a [u8]>,
    },
    /// A login by a digest of the password: of no use to us.
    Apop,
    /// Begin TLS.
    Stls,
    /// Are you there?
    Noop,
    /// Goodbye.
    Quit,
    /// A command for after the login.
    Later,
    /// Another protocol.
    Foreign,
    /// None of these.
    Unknown,
}

/// Reads one line from a mail client.
pub fn command(line: &[u8]) -> Command<'_> {
    if foreign::is_line(line) {
        return Command::Foreign;
    }
    let known = alt((pass, user, auth, bare, apop, later));
    all_consuming(known).parse(line).map_or(Command::Unknown, |(_, command)| command)
}

/// `CAPA CRLF` (RFC 2449 §5), `STLS CRLF` (RFC 2595 §4), `NOOP CRLF`, `QUIT CRLF` (RFC 1939 §5)
///
/// Blanks at the end are let through.
fn bare(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let word = alt((
        value(Command::Capa, tag_no_case("CAPA")),
        value(Command::Stls, tag_no_case("STLS")),
        value(Command::Noop, tag_no_case("NOOP")),
        value(Command::Quit, tag_no_case("QUIT")),
    ));
    terminated(word, end).parse(line)
}

/// `USER SP name CRLF` (RFC 1939 §7)
fn user(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    map(preceded(tag_no_case("USER "), rest), Command::User).parse(line)
}

/// `PASS SP string CRLF` (RFC 1939 §7)
///
/// "Since the PASS command has exactly one argument, a POP3 server may treat spaces in the argument as
/// part of the password": all behind the first blank is, at both ends too. Without that blank it is empty.
fn pass(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let password = alt((preceded(tag(" "), rest), eof));
    map(preceded(tag_no_case("PASS"), password), Command::Pass).parse(line)
}

/// `AUTH [SP mechanism [SP initial-response]] CRLF` (RFC 5034 §4; bare, it is the older RFC 1734's habit)
fn auth(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let word = || take_till1(|octet| octet == b' ');
    let exchange = (preceded(tag(" "), word()), opt(preceded(tag(" "), word())), end);
    let exchange = map(exchange, |(mechanism, initial, ())| Command::Auth { mechanism, initial });
    preceded(tag_no_case("AUTH"), alt((exchange, value(Command::AuthList, end)))).parse(line)
}

/// `APOP SP name SP digest CRLF` (RFC 1939 §7)
fn apop(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    value(Command::Apop, (tag_no_case("APOP"), alt((tag(" "), eof)), rest)).parse(line)
}

/// The commands of the TRANSACTION state (RFC 1939 §5, §7)
fn later(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let verb = alt((
        tag_no_case("STAT"),
        tag_no_case("LIST"),
        tag_no_case("RETR"),
        tag_no_case("DELE"),
        tag_no_case("RSET"),
        tag_no_case("TOP"),
        tag_no_case("UIDL"),
    ));
    value(Command::Later, (verb, alt((tag(" "), eof)), rest)).parse(line)
}

/// The end of a line, blanks before it included.
fn end(line: &[u8]) -> IResult<&[u8], ()> {
    let blanks = nom::bytes::complete::take_while(|octet| octet == b' ' || octet == b'\t');
    value((), (blanks, eof)).parse(line)
}

/// One line from upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK`, and what follows.
    Ok(&'a [u8]),
    /// `-ERR`, and what follows.
    Err(&'a [u8]),
    /// `+`, and the challenge in base64.
    Continue(&'a [u8]),
    /// None of these.
    Unknown,
}

/// Reads one line from upstream, where it is not inside a list.
pub fn reply(line: &[u8]) -> Reply<'_> {
    alt((ok, err, continuation)).parse(line).map_or(Reply::Unknown, |(_, reply)| reply)
}

/// `"+OK" [SP text] CRLF` (RFC 1939 §3)
fn ok(line: &[u8]) -> IResult<&[u8], Reply<'_>> {
    map(preceded(tag_no_case("+OK"), text), Reply::Ok).parse(line)
}

/// `"-ERR" [SP text] CRLF` (RFC 1939 §3)
fn err(line: &[u8]) -> IResult<&[u8], Reply<'_>> {
    map(preceded(tag_no_case("-ERR"), text), Reply::Err).parse(line)
}

/// `"+" SP [base64] CRLF` (RFC 5034 §4). Some servers leave the blank out.
fn continuation(line: &[u8]) -> IResult<&[u8], Reply<'_>> {
    map(preceded(tag("+"), text), Reply::Continue).parse(line)
}

fn text(line: &[u8]) -> IResult<&[u8], &[u8]> {
    alt((preceded(tag(" "), rest), eof)).parse(line)
}

/// Whether the text of an `-ERR` asks for patience.
///
/// `"[" resp-level *("/" resp-level) "]"` (RFC 2449 §8): `SYS/TEMP` (RFC 3206 §4), `LOGIN-DELAY` and
/// `IN-USE` (RFC 2449 §8.1).
pub fn asks_for_patience(text: &[u8]) -> bool {
    let code: IResult<&[u8], &[u8]> =
        alt((tag_no_case("[SYS/TEMP"), tag_no_case("[LOGIN-DELAY"), tag_no_case("[IN-USE"))).parse(text);
    code.is_ok_and(|(behind, _)| matches!(behind.first(), Some(b']' | b'/' | b' ')))
}

/// Whether a CAPA line is ours to say, or about what happens before the login.
///
/// `UTF8` and `LANG` (RFC 6856) are commands that a client would send to us and mean for upstream.
pub fn is_ours(capability: &str) -> bool {
    let name = capability.split(' ').next().unwrap_or_default();
    ["SASL", "USER", "STLS", "APOP", "UTF8", "LANG", "RESP-CODES", "AUTH-RESP-CODE", "X-LOGIN", "XOAUTH2"]
        .iter()
        .any(|ours| ours.eq_ignore_ascii_case(name))
}

/// The offer behind upstream's CAPA lines, without what [`is_ours`].
pub fn offer(lines: &[String]) -> Offer {
    let lines = lines.iter().map(|line| one_line(line.trim(), 500));
    Offer(lines.filter(|line| !line.is_empty() && !is_ours(line)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_hold_blanks_at_both_ends() {
        assert_eq!(command(b"pass  correct horse "), Command::Pass(b" correct horse "));
        assert_eq!(command(b"PASS "), Command::Pass(b""));
        assert_eq!(command(b"PASS"), Command::Pass(b""));
        assert_eq!(command(b"PASSWORD x"), Command::Unknown);
    }

    #[test]
    fn auth_comes_bare_with_and_without_an_initial_response() {
        let auth = |mechanism, initial| Command::Auth { mechanism, initial };
        assert_eq!(command(b"AUTH"), Command::AuthList);
        assert_eq!(command(b"auth "), Command::AuthList);
        assert_eq!(command(b"AUTH PLAIN"), auth(b"PLAIN", None));
        assert_eq!(command(b"AUTH plain ="), auth(b"plain", Some(b"=")));
        assert_eq!(command(b"AUTH PLAIN AGEAYg== "), auth(b"PLAIN", Some(b"AGEAYg==")));
        assert_eq!(command(b"AUTH PLAIN a b"), Command::Unknown);
        assert_eq!(command(b"AUTHOR"), Command::Unknown);
    }

    #[test]
    fn verbs_are_read_whole_and_in_any_case() {
        assert_eq!(command(b"cApA"), Command::Capa);
        assert_eq!(command(b"QUIT  "), Command::Quit);
        assert_eq!(command(b"QUITE"), Command::Unknown);
        assert_eq!(command(b"TOP 1 0"), Command::Later);
        assert_eq!(command(b"TOPS"), Command::Unknown);
        assert_eq!(command(b"USER"), Command::Unknown);
        assert_eq!(command(b"GET / HTTP/1.1"), Command::Foreign);
        assert_eq!(command(b""), Command::Unknown);
    }

    #[test]
    fn a_continuation_is_told_from_an_ok() {
        assert_eq!(reply(b"+OK"), Reply::Ok(b""));
        assert_eq!(reply(b"+ok done"), Reply::Ok(b"done"));
        assert_eq!(reply(b"+ "), Reply::Continue(b""));
        assert_eq!(reply(b"+"), Reply::Continue(b""));
        assert_eq!(reply(b"+ eyJ9"), Reply::Continue(b"eyJ9"));
        assert_eq!(reply(b"-ERR [AUTH] no"), Reply::Err(b"[AUTH] no"));
        assert_eq!(reply(b"+OKAY"), Reply::Unknown);
        assert_eq!(reply(b"* OK IMAP4"), Reply::Unknown);
    }

    #[test]
    fn codes_that_ask_for_patience_are_known() {
        for text in [&b"[SYS/TEMP] x"[..], b"[in-use]", b"[LOGIN-DELAY] wait"] {
            assert!(asks_for_patience(text), "{text:?}");
        }
        for text in [&b"[AUTH] x"[..], b"[SYS/PERM] x", b"[IN-USED]", b"x [IN-USE]", b""] {
            assert!(!asks_for_patience(text), "{text:?}");
        }
    }
}
