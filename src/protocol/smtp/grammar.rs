//! SMTP's commands and replies, as far as a login needs them. The CRLF of each line is already cut off.
//!
//! Standards: RFC 5321, RFC 3030 (BDAT), RFC 3207 (STARTTLS), RFC 4954 (AUTH).

use std::net::{Ipv4Addr, Ipv6Addr};

use nom::branch::alt;
use nom::bytes::complete::{tag_no_case, take_till1, take_while, take_while1};
use nom::character::complete::{char, digit1, u64};
use nom::combinator::{all_consuming, eof, map, map_opt, opt, peek, recognize, rest, value, verify};
use nom::sequence::{preceded, terminated};
use nom::{IResult, Parser};

use crate::explain::one_line;
use crate::protocol::foreign;
use crate::protocol::machine::Offer;

/// What a mail client may say before its login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Its name; it wants to know what is offered.
    Ehlo(&'a [u8]),
    /// Its name, in the old way.
    Helo(&'a [u8]),
    /// A SASL exchange.
    Auth {
        /// The mechanism, as it was written.
        mechanism: &'a [u8],
        /// The initial response: base64, or `=` for an empty one.
        initial: Option<&'a [u8]>,
    },
    /// Begin TLS.
    StartTls,
    /// MAIL, RCPT or DATA: to be refused until the login.
    Mail,
    /// A chunk of a message, to be refused; its octets come behind the line whatever we answer.
    Bdat(Chunk),
    /// Are you there?
    Noop,
    /// Forget the message.
    Rset,
    /// What do you understand?
    Help,
    /// Does this mailbox exist?
    Vrfy,
    /// Goodbye.
    Quit,
    /// A command that is known, and not served here.
    NotHere,
    /// A known command with arguments that make no sense.
    BadArguments,
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
    let known = alt((hello, auth, bare, noop, mail, bdat_command, vrfy, not_here));
    let command = all_consuming(known).parse(line).map(|(_, command)| command);
    command.unwrap_or_else(
        |_| {
            if bad_arguments(line).is_ok() { Command::BadArguments } else { Command::Unknown }
        },
    )
}

/// `"EHLO" SP ( Domain / address-literal ) CRLF`, `"HELO" SP Domain CRLF` (RFC 5321 §4.1.1.1)
///
/// Clients call themselves all kinds of things; whether it may be repeated is for [`is_client_name`].
fn hello(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let name = || verify(map(preceded(char(' '), rest), <[u8]>::trim_ascii), |name: &[u8]| !name.is_empty());
    alt((
        map(preceded(tag_no_case("EHLO"), name()), Command::Ehlo),
        map(preceded(tag_no_case("HELO"), name()), Command::Helo),
    ))
    .parse(line)
}

/// `"AUTH" SP sasl-mech [SP initial-response] *(CRLF [base64]) CRLF` (RFC 4954 §8)
fn auth(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let word = || take_till1(|octet| octet == b' ');
    let exchange = (preceded(char(' '), word()), opt(preceded(char(' '), word())), end);
    let exchange = map(exchange, |(mechanism, initial, ())| Command::Auth { mechanism, initial });
    preceded(tag_no_case("AUTH"), exchange).parse(line)
}

/// `"STARTTLS" CRLF` (RFC 3207 §4), `"RSET" CRLF`, `"QUIT" CRLF` (RFC 5321 §4.1.1.5, §4.1.1.10)
fn bare(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let word = alt((
        value(Command::StartTls, tag_no_case("STARTTLS")),
        value(Command::Rset, tag_no_case("RSET")),
        value(Command::Quit, tag_no_case("QUIT")),
        value(Command::Mail, tag_no_case("DATA")),
    ));
    terminated(word, end).parse(line)
}

/// `"NOOP" [ SP String ] CRLF`, `"HELP" [ SP String ] CRLF` (RFC 5321 §4.1.1.8, §4.1.1.9)
fn noop(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let word = alt((value(Command::Noop, tag_no_case("NOOP")), value(Command::Help, tag_no_case("HELP"))));
    terminated(word, arguments).parse(line)
}

/// `"MAIL FROM:" Reverse-path [SP Mail-parameters] CRLF`,
/// `"RCPT TO:" Forward-path [SP Rcpt-parameters] CRLF` (RFC 5321 §4.1.1.2, §4.1.1.3)
fn mail(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let verb = alt((tag_no_case("MAIL"), tag_no_case("RCPT")));
    value(Command::Mail, (verb, arguments)).parse(line)
}

fn bdat_command(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    map(bdat, Command::Bdat).parse(line)
}

/// `"VRFY" SP String CRLF` (RFC 5321 §4.1.1.6)
fn vrfy(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    value(Command::Vrfy, (tag_no_case("VRFY "), rest)).parse(line)
}

/// `"EXPN" SP String CRLF` (RFC 5321 §4.1.1.7), `ETRN` (RFC 1985), `BURL` (RFC 4468), `TURN` (RFC 821)
fn not_here(line: &[u8]) -> IResult<&[u8], Command<'_>> {
    let verb = alt((tag_no_case("EXPN"), tag_no_case("ETRN"), tag_no_case("BURL"), tag_no_case("TURN")));
    value(Command::NotHere, (verb, arguments)).parse(line)
}

/// A verb of ours whose own parser did not take the line.
fn bad_arguments(line: &[u8]) -> IResult<&[u8], ()> {
    let verb = alt((
        tag_no_case("EHLO"),
        tag_no_case("HELO"),
        tag_no_case("AUTH"),
        tag_no_case("STARTTLS"),
        tag_no_case("RSET"),
        tag_no_case("QUIT"),
        tag_no_case("DATA"),
        tag_no_case("BDAT"),
        tag_no_case("VRFY"),
    ));
    value((), (verb, arguments)).parse(line)
}

fn arguments(line: &[u8]) -> IResult<&[u8], ()> {
    value((), (alt((value((), char(' ')), value((), eof))), rest)).parse(line)
}

/// The end of a line, blanks before it included.
fn end(line: &[u8]) -> IResult<&[u8], ()> {
    value((), (take_while(|octet| octet == b' ' || octet == b'\t'), eof)).parse(line)
}

/// What a BDAT line announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// How many octets follow the line.
    pub octets: u64,
    /// Whether the message ends with them.
    pub last: bool,
}

/// `bdat-cmd = "BDAT" SP chunk-size [ SP end-marker ] CR LF`, `chunk-size = 1*DIGIT`,
/// `end-marker = "LAST"` (RFC 3030 §2)
pub fn bdat(line: &[u8]) -> IResult<&[u8], Chunk> {
    let last = map(opt(preceded(char(' '), tag_no_case("LAST"))), |last| last.is_some());
    map((preceded(tag_no_case("BDAT "), u64), last, end), |(octets, last, ())| Chunk { octets, last })
        .parse(line)
}

/// `Reverse-path = Path / "<>"`, `Path = "<" [ A-d-l ":" ] Mailbox ">"` (RFC 5321 §4.1.2), behind
/// `MAIL FROM:`. For the log only, so it is not checked; blanks before the path are let through.
pub fn sender(line: &[u8]) -> Option<&[u8]> {
    let path = preceded(char('<'), terminated(take_while(|octet| octet != b'>'), char('>')));
    let found: IResult<&[u8], &[u8]> =
        preceded((tag_no_case("MAIL FROM:"), take_while(|octet| octet == b' ')), path).parse(line);
    found.ok().map(|(_, sender)| sender)
}

/// One line of a reply from upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyLine<'a> {
    /// The three digits.
    pub code: u16,
    /// Whether the reply ends with this line.
    pub last: bool,
    /// What follows.
    pub text: &'a [u8],
}

/// `Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF`,
/// `Reply-code = %x32-35 %x30-35 %x30-39` (RFC 5321 §4.2)
pub fn reply_line(line: &[u8]) -> Option<ReplyLine<'_>> {
    let code = map_opt(verify(digit1, |digits: &[u8]| digits.len() == 3), |digits: &[u8]| {
        let code = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (200..600).contains(&code).then_some(code)
    });
    let last = alt((value(false, char('-')), value(true, char(' ')), value(true, peek(eof))));
    let found: IResult<&[u8], _> = (code, last, rest).parse(line);
    found.ok().map(|(_, (code, last, text))| ReplyLine { code, last, text })
}

/// Joins the lines of a reply to one, printable: an enhanced code (RFC 2034 §4) that each line repeats is
/// said once.
pub fn joined(code: u16, lines: &[String], max: usize) -> String {
    let mut whole = code.to_string();
    let repeated = lines.first().map_or("", |first| enhanced_code(first));
    for (number, line) in lines.iter().enumerate() {
        let line = if number > 0 { line.strip_prefix(repeated).unwrap_or(line) } else { line };
        if !line.trim().is_empty() {
            whole.push(' ');
            whole.push_str(line.trim());
        }
    }
    one_line(&whole, max)
}

/// `status-code ::= class "." subject "." detail` (RFC 2034 §4); empty where there is none.
fn enhanced_code(text: &str) -> &str {
    let number = || take_while1(|c: char| c.is_ascii_digit());
    let found: IResult<&str, &str> =
        recognize((number(), char('.'), number(), char('.'), number())).parse(text);
    found.map_or("", |(_, code)| code)
}

/// Whether this may be said upstream as our client's name: RFC 5321's `Domain` or an address literal.
///
/// ```text
/// Domain          = sub-domain *("." sub-domain)
/// sub-domain      = Let-dig [Ldh-str]
/// address-literal = "[" ( IPv4-address-literal / IPv6-address-literal ) "]"
/// ```
/// (RFC 5321 §4.1.2, §4.1.3.) Everything else could carry a second command, or annoy upstream.
pub fn is_client_name(name: &str) -> bool {
    if name.len() > 255 {
        return false;
    }
    if let Some(literal) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return match literal.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:")) {
            Some(_) => literal.get(5..).is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
            None => literal.parse::<Ipv4Addr>().is_ok(),
        };
    }
    name.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Whether an EHLO line is ours to say: what is about signing in and encryption.
///
/// `X-EXPS` and `X-ANONYMOUSTLS` are Exchange's own.
pub fn is_ours(line: &str) -> bool {
    let (keyword, _) = ehlo_keyword(line);
    ["AUTH", "STARTTLS", "ENHANCEDSTATUSCODES", "X-EXPS", "X-ANONYMOUSTLS", "XCLIENT", "XFORWARD"]
        .iter()
        .any(|ours| ours.eq_ignore_ascii_case(keyword))
}

/// An EHLO line's keyword, and its parameters (RFC 5321 §4.1.1.1; `AUTH=` is an old form of `AUTH`).
fn ehlo_keyword(line: &str) -> (&str, &str) {
    let end = line.bytes().position(|b| matches!(b, b' ' | b'=')).unwrap_or(line.len());
    (line.get(..end).unwrap_or_default(), line.get(end + 1..).unwrap_or_default())
}

/// The offer behind upstream's EHLO lines (its greeting line left out), without what [`is_ours`].
pub fn offer(lines: &[String]) -> Offer {
    let lines = lines.iter().map(|line| one_line(line.trim(), 500));
    Offer(lines.filter(|line| !line.is_empty() && !is_ours(line)).collect())
}

/// The mechanisms among upstream's EHLO lines (RFC 4954 §3), in upper case.
pub fn mechanisms(lines: &[String]) -> Vec<String> {
    let behind = |line: &String| {
        let (keyword, mechanisms) = ehlo_keyword(line.trim());
        keyword.eq_ignore_ascii_case("AUTH").then(|| mechanisms.to_ascii_uppercase())
    };
    let mut found = Vec::new();
    for mechanism in lines
        .iter()
        .filter_map(behind)
        .flat_map(|all| all.split_ascii_whitespace().map(|one| one_line(one, 100)).collect::<Vec<_>>())
    {
        if !found.contains(&mechanism) {
            found.push(mechanism);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case_and_whole() {
        assert_eq!(command(b"ehlo  client.example "), Command::Ehlo(b"client.example"));
        assert_eq!(command(b"HELO MY_PC"), Command::Helo(b"MY_PC"));
        assert_eq!(command(b"EHLO"), Command::BadArguments);
        assert_eq!(command(b"EHLO "), Command::BadArguments);
        assert_eq!(command(b"EHLOX a"), Command::Unknown);
        assert_eq!(command(b"quit "), Command::Quit);
        assert_eq!(command(b"QUIT now"), Command::BadArguments);
        assert_eq!(command(b"NOOP a b"), Command::Noop);
        assert_eq!(command(b"mail from:<>"), Command::Mail);
        assert_eq!(command(b"DATA"), Command::Mail);
        assert_eq!(command(b"STARTTLS x"), Command::BadArguments);
        assert_eq!(command(b"EXPN list"), Command::NotHere);
        assert_eq!(command(b"POST / HTTP/1.1"), Command::Foreign);
        assert_eq!(command(b"\xff\xfe"), Command::Unknown);
    }

    #[test]
    fn auth_comes_with_and_without_an_initial_response() {
        let auth = |mechanism, initial| Command::Auth { mechanism, initial };
        assert_eq!(command(b"AUTH"), Command::BadArguments);
        assert_eq!(command(b"AUTH LOGIN"), auth(b"LOGIN", None));
        assert_eq!(command(b"auth plain ="), auth(b"plain", Some(b"=")));
        assert_eq!(command(b"AUTH PLAIN AGEAYg=="), auth(b"PLAIN", Some(b"AGEAYg==")));
        assert_eq!(command(b"AUTH PLAIN a b"), Command::BadArguments);
    }

    #[test]
    fn a_chunk_says_its_size_and_whether_it_is_the_last() {
        let chunk = |line| bdat(line).ok().map(|(_, chunk)| (chunk.octets, chunk.last));
        assert_eq!(chunk(b"BDAT 1000"), Some((1000, false)));
        assert_eq!(chunk(b"bdat 0 last"), Some((0, true)));
        assert_eq!(chunk(b"BDAT 18446744073709551615 LAST "), Some((u64::MAX, true)));
        for broken in
            [&b"BDAT"[..], b"BDAT ", b"BDAT -1", b"BDAT 1 LASTS", b"BDAT 18446744073709551616", b"BDAT +5"]
        {
            assert_eq!(chunk(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_reply_line_has_three_digits_and_a_sign() {
        let read = |line| reply_line(line).map(|reply| (reply.code, reply.last, reply.text));
        assert_eq!(read(b"250-SIZE 1"), Some((250, false, &b"SIZE 1"[..])));
        assert_eq!(read(b"250 "), Some((250, true, &b""[..])));
        assert_eq!(read(b"250"), Some((250, true, &b""[..])));
        for broken in [&b"25 x"[..], b"2500 x", b"250x", b"199 x", b"600 x", b"+OK", b""] {
            assert_eq!(read(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_reply_of_many_lines_becomes_one() {
        let lines = ["5.7.139 Authentication unsuccessful,", "5.7.139 see the guide", ""].map(str::to_owned);
        assert_eq!(joined(535, &lines, 500), "535 5.7.139 Authentication unsuccessful, see the guide");
        assert_eq!(joined(421, &[], 500), "421");
        assert_eq!(joined(550, &["a\u{1b}".to_owned(), "b".to_owned()], 500), "550 a? b");
    }

    #[test]
    fn only_domains_and_address_literals_are_repeated() {
        for name in ["client.example", "PC-7", "[127.0.0.1]", "[IPv6:::1]", "[ipv6:fe80::1]", "a", "1.2.3.4"]
        {
            assert!(is_client_name(name), "{name}");
        }
        let long = format!("{}.example", "a".repeat(250));
        for name in
            ["", "MY_PC", "a b", "a\r\nMAIL", "-a", "a-", "a..b", "a.", "[1.2.3]", "[::1]", "[", "é", &long]
        {
            assert!(!is_client_name(name), "{name}");
        }
    }

    #[test]
    fn signing_in_is_ours_to_offer() {
        let lines =
            ["SIZE 157286400", "AUTH LOGIN XOAUTH2", "auth=login", "starttls", "8BITMIME", "X-EXPS GSSAPI"];
        let lines = lines.map(str::to_owned);
        assert_eq!(offer(&lines).0, ["SIZE 157286400", "8BITMIME"]);
        assert_eq!(mechanisms(&lines), ["LOGIN", "XOAUTH2"]);
    }

    #[test]
    fn the_sender_stands_between_angle_brackets() {
        assert_eq!(sender(b"MAIL FROM:<a@b.example> SIZE=10"), Some(&b"a@b.example"[..]));
        assert_eq!(sender(b"mail from: <>"), Some(&b""[..]));
        assert_eq!(sender(b"MAIL FROM:a@b.example"), None);
    }
}
