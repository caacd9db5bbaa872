//! The grammar of IMAP before a login: whole lines in, commands and responses out.
//!
//! As RFC 3501 has it, but for a bound on tags, and more lenient where real clients are: several blanks
//! between arguments, lower case, blanks in an unquoted password, backslashes that were not escaped.

use nom::branch::alt;
use nom::bytes::complete::{tag as text, take_till1, take_while, take_while1};
use nom::character::complete::{char as one, digit1};
use nom::combinator::{eof, map, opt, rest, value, verify};
use nom::error::{Error, ErrorKind};
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser as _};
use zeroize::Zeroizing;

/// The longest tag that is taken, in octets. Clients use two to ten.
pub const MAX_TAG: usize = 126;

/// What a mail client may ask for before a login.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))] // it may hold a password
pub enum Command {
    /// `CAPABILITY`
    Capability,
    /// `NOOP`
    Noop,
    /// `LOGOUT`
    Logout,
    /// `STARTTLS`
    StartTls,
    /// `ID` with anything behind it
    Id,
    /// `LOGIN` as far as its first line goes
    Login(LoginLine),
    /// `AUTHENTICATE`
    Authenticate {
        /// The mechanism's name in capitals.
        mechanism: String,
        /// The initial response, still in base64; `=` stands for an empty one.
        initial: Option<Zeroizing<Vec<u8>>>,
    },
    /// A word that means nothing before a login.
    Other,
}

/// The first line of `LOGIN`: it ends at the first literal.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))] // it may hold a password
pub enum LoginLine {
    /// Both arguments stand in it.
    Whole {
        /// The user name.
        user: Zeroizing<Vec<u8>>,
        /// The password.
        password: Zeroizing<Vec<u8>>,
    },
    /// The user name follows as a literal.
    UserFollows(Literal),
    /// The password follows as a literal.
    PasswordFollows {
        /// The user name.
        user: Zeroizing<Vec<u8>>,
        /// How the password is announced.
        literal: Literal,
    },
}

/// What stands behind a user name that came as a literal.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))] // it may hold a password
pub enum PasswordArgument {
    /// The password itself.
    Given(Zeroizing<Vec<u8>>),
    /// It follows as a literal.
    Follows(Literal),
}

/// The announcement of a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Literal {
    /// How many octets follow the line; `u32::MAX` for everything above it.
    pub octets: u32,
    /// Whether the sender waits for `+` first (RFC 7888 §4).
    pub synchronising: bool,
}

/// `tag = 1*<any ASTRING-CHAR except "+">` (RFC 3501 §9).
pub fn tag(line: &[u8]) -> IResult<&[u8], &[u8]> {
    verify(take_while1(|b| is_astring_char(b) && b != b'+'), |tag: &[u8]| tag.len() <= MAX_TAG).parse(line)
}

/// `command = tag SP (command-any / command-auth / command-nonauth) CRLF` (RFC 3501 §9), the tag and the
/// CRLF already cut off.
pub fn command(after_tag: &[u8]) -> IResult<&[u8], Command> {
    let (arguments, name) = preceded(blanks, take_till1(|b| b == b' ')).parse(after_tag)?;
    match name.to_ascii_uppercase().as_slice() {
        b"CAPABILITY" => value(Command::Capability, end).parse(arguments),
        b"NOOP" => value(Command::Noop, end).parse(arguments),
        b"LOGOUT" => value(Command::Logout, end).parse(arguments),
        b"STARTTLS" => value(Command::StartTls, end).parse(arguments),
        b"ID" => value(Command::Id, (blanks, rest)).parse(arguments),
        b"LOGIN" => map(login, Command::Login).parse(arguments),
        b"AUTHENTICATE" => authenticate(arguments),
        _ => Ok((b"", Command::Other)),
    }
}

/// `login = "LOGIN" SP userid SP password` with `userid = astring`, `password = astring` (RFC 3501 §9).
fn login(arguments: &[u8]) -> IResult<&[u8], LoginLine> {
    let (after_blanks, ()) = blanks(arguments)?;
    if let Ok((nothing, literal)) = announcement(after_blanks) {
        return Ok((nothing, LoginLine::UserFollows(literal)));
    }
    let (after_user, user) = alt((quoted, unquoted_user)).parse(after_blanks)?;
    let (nothing, password) = password(after_user)?;
    let line = match password {
        PasswordArgument::Given(password) => LoginLine::Whole { user, password },
        PasswordArgument::Follows(literal) => LoginLine::PasswordFollows { user, literal },
    };
    Ok((nothing, line))
}

/// `SP password` (RFC 3501 §9), up to the end of the line.
///
/// A password without quotes is taken as it stands, blanks and all, up to the end of the line.
pub fn password(after_user: &[u8]) -> IResult<&[u8], PasswordArgument> {
    preceded(
        blanks,
        alt((
            map(announcement, PasswordArgument::Follows),
            map(terminated(quoted, end), PasswordArgument::Given),
            map(unquoted_password, PasswordArgument::Given),
        )),
    )
    .parse(after_user)
}

/// `literal = "{" number ["+"] "}" CRLF *CHAR8` (RFC 3501 §9, RFC 7888 §4), without the CRLF and what is
/// behind it. `number` has at least one digit, so `{}` is none.
pub fn announcement(input: &[u8]) -> IResult<&[u8], Literal> {
    let (nothing, (digits, plus, _)) =
        (preceded(one('{'), digit1), opt(one('+')), (one('}'), eof)).parse(input)?;
    let octets = digits
        .iter()
        .fold(0_u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    Ok((nothing, Literal { octets, synchronising: plus.is_none() }))
}

/// The literal that a line ends with, whatever stands before it: what follows is data, not a command.
pub fn announced_at_end(line: &[u8]) -> Option<Literal> {
    let start = line.iter().rposition(|&b| b == b'{')?;
    announcement(line.get(start..)?).ok().map(|(_, literal)| literal)
}

/// `quoted = DQUOTE *QUOTED-CHAR DQUOTE` (RFC 3501 §9).
///
/// Only `\"` and `\\` are escapes there. Before any other octet the backslash stands for itself: clients
/// that do not escape mean `DOMAIN\user` by `"DOMAIN\user"`.
fn quoted(input: &[u8]) -> IResult<&[u8], Zeroizing<Vec<u8>>> {
    let (mut left, _) = one('"')(input)?;
    let mut content = Zeroizing::new(Vec::with_capacity(input.len()));
    loop {
        left = match left {
            [b'"', after @ ..] => return Ok((after, content)),
            [b'\\', escaped @ (b'"' | b'\\'), after @ ..] => {
                content.push(*escaped);
                after
            }
            [octet, after @ ..] => {
                content.push(*octet);
                after
            }
            [] => return Err(nom::Err::Error(Error::new(input, ErrorKind::Char))),
        };
    }
}

/// `astring = 1*ASTRING-CHAR / string` (RFC 3501 §9), its first form; any octet but a blank is let through,
/// so that `DOMAIN\user` and Latin-1 names arrive.
fn unquoted_user(input: &[u8]) -> IResult<&[u8], Zeroizing<Vec<u8>>> {
    map(verify(take_till1(|b| b == b' '), starts_no_string), own).parse(input)
}

fn unquoted_password(input: &[u8]) -> IResult<&[u8], Zeroizing<Vec<u8>>> {
    map(
        verify(rest, |password: &[u8]| {
            // What ends in ` {5+}` announces five octets that must not be run as a command.
            !password.is_empty() && starts_no_string(password) && !announces_more(password)
        }),
        own,
    )
    .parse(input)
}

fn starts_no_string(word: &[u8]) -> bool {
    !matches!(word.first(), Some(b'"' | b'{'))
}

fn announces_more(password: &[u8]) -> bool {
    let after_blank = password.iter().rposition(|&b| b == b' ').and_then(|blank| password.get(blank + 1..));
    after_blank.and_then(|word| announcement(word).ok()).is_some_and(|(_, literal)| !literal.synchronising)
}

/// `"AUTHENTICATE" SP auth-type [SP (base64 / "=")]` (RFC 4959 §7).
fn authenticate(arguments: &[u8]) -> IResult<&[u8], Command> {
    map(
        (
            preceded(blanks, take_while1(is_astring_char)),
            opt(preceded(blanks, take_till1(|b| b == b' '))),
            end,
        ),
        |(mechanism, initial, ())| Command::Authenticate {
            mechanism: String::from_utf8_lossy(mechanism).to_ascii_uppercase(),
            initial: initial.map(own),
        },
    )
    .parse(arguments)
}

/// One line from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// `+ …`
    Continue(&'a [u8]),
    /// `* …`
    Untagged(&'a [u8]),
    /// `A1 …`
    Tagged {
        /// The tag of the command that it answers.
        tag: &'a [u8],
        /// What is behind it.
        status: &'a [u8],
    },
}

/// `response = continue-req / response-data / response-done` (RFC 3501 §9). Yandex leaves out the blank
/// behind `+`.
pub fn response(line: &[u8]) -> IResult<&[u8], Response<'_>> {
    alt((
        map(preceded((one('+'), opt(one(' '))), rest), Response::Continue),
        map(preceded(text("* "), rest), Response::Untagged),
        map((tag, preceded(one(' '), rest)), |(tag, status)| Response::Tagged { tag, status }),
    ))
    .parse(line)
}

/// The word that opens a status response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `OK`
    Ok,
    /// `NO`
    No,
    /// `BAD`
    Bad,
    /// `PREAUTH`
    PreAuth,
    /// `BYE`
    Bye,
}

/// `resp-cond-… = ("OK" / "NO" / "BAD" / "PREAUTH" / "BYE") SP resp-text` with
/// `resp-text = ["[" resp-text-code "]" SP] text` (RFC 3501 §9): the word and the code without its brackets.
pub fn status(input: &[u8]) -> IResult<&[u8], (Status, &[u8])> {
    let (after, word) = take_while1(|b: u8| b.is_ascii_alphabetic()).parse(input)?;
    let status = match word.to_ascii_uppercase().as_slice() {
        b"OK" => Status::Ok,
        b"NO" => Status::No,
        b"BAD" => Status::Bad,
        b"PREAUTH" => Status::PreAuth,
        b"BYE" => Status::Bye,
        _ => return Err(nom::Err::Error(Error::new(input, ErrorKind::Tag))),
    };
    let (nothing, (code, _)) = alt((
        (value(&b""[..], eof), eof),
        (preceded(one(' '), map(opt(code), Option::unwrap_or_default)), rest),
    ))
    .parse(after)?;
    Ok((nothing, (status, code)))
}

fn code(input: &[u8]) -> IResult<&[u8], &[u8]> {
    delimited(one('['), take_while(|b| b != b']'), one(']')).parse(input)
}

/// `capability-data = "CAPABILITY" *(SP capability)` (RFC 3501 §9). What is no atom is left out.
pub fn capabilities(data: &[u8]) -> IResult<&[u8], Vec<String>> {
    map(preceded(nom::bytes::complete::tag_no_case("CAPABILITY "), rest), |words: &[u8]| {
        words
            .split(|&b| b == b' ')
            .filter(|word| !word.is_empty() && word.iter().copied().all(is_astring_char))
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    })
    .parse(data)
}

/// Whether a capability is about how one signs in, which is ours to say on either side, or about Exchange's
/// own proxies, which no mail client needs.
pub fn is_for_sign_in(capability: &str) -> bool {
    let starts =
        |start: &&str| capability.get(..start.len()).is_some_and(|it| it.eq_ignore_ascii_case(start));
    ["AUTH=", "BACKENDAUTHENTICATE"].iter().any(starts)
        || ["STARTTLS", "LOGINDISABLED", "SASL-IR", "CLIENTACCESSRULES", "CLIENTNETWORKPRESENCELOCATION"]
            .iter()
            .any(|whole| capability.eq_ignore_ascii_case(whole))
}

fn blanks(input: &[u8]) -> IResult<&[u8], ()> {
    value((), take_while1(|b| b == b' ')).parse(input)
}

fn end(input: &[u8]) -> IResult<&[u8], ()> {
    value((), (take_while(|b| b == b' '), eof)).parse(input)
}

/// `ASTRING-CHAR = ATOM-CHAR / resp-specials` (RFC 3501 §9).
fn is_astring_char(b: u8) -> bool {
    b.is_ascii_graphic() && !b"(){%*\"\\".contains(&b)
}

fn own(octets: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(octets.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "what `parse` gives")]
    fn whole(user: &str, password: &str) -> Option<Command> {
        Some(Command::Login(LoginLine::Whole {
            user: own(user.as_bytes()),
            password: own(password.as_bytes()),
        }))
    }

    fn parse(line: &str) -> Option<Command> {
        let (after, _) = tag(line.as_bytes()).ok()?;
        command(after).ok().map(|(rest, command)| {
            assert_eq!(rest, b"", "{line}");
            command
        })
    }

    #[test]
    fn a_tag_is_what_the_rfc_says() {
        for good in ["a1", "A.1", "#7]", "1=x", "}", &"x".repeat(MAX_TAG)] {
            assert_eq!(tag(good.as_bytes()), Ok((&b""[..], good.as_bytes())), "{good}");
        }
        for bad in ["", "+", " a", "(", "*", "%", "\"a", "\\", "{", "\u{e9}", &"x".repeat(MAX_TAG + 1)] {
            assert!(tag(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn login_takes_atoms_and_quoted_strings() {
        assert_eq!(parse("a LOGIN alice secret"), whole("alice", "secret"));
        assert_eq!(parse("a login \"alice\" \"a \\\"b\\\" \\\\c\""), whole("alice", "a \"b\" \\c"));
        assert_eq!(parse("a LOGIN DOM\\alice \"x{1}\""), whole("DOM\\alice", "x{1}"));
        assert_eq!(parse("a LOGIN \"\" \"\""), whole("", ""));
    }

    #[test]
    fn login_bears_with_clients_that_do_not_quote() {
        assert_eq!(parse("a  LOGIN  alice correct horse "), whole("alice", "correct horse "));
        assert_eq!(parse("a LOGIN \"DOM\\alice\" x"), whole("DOM\\alice", "x"));
        assert_eq!(parse("a LOGIN alice pass{1}"), whole("alice", "pass{1}"));
    }

    #[test]
    fn a_broken_login_is_none() {
        for line in [
            "a LOGIN",
            "a LOGIN alice",
            "a LOGIN alice ",
            "a LOGIN \"alice x",
            "a LOGIN alice \"x",
            "a LOGIN alice \"x\"y",
            "a LOGIN alice {}",
            "a LOGIN alice {+}",
            "a LOGIN alice {5-}",
            "a LOGIN alice {5} ",
            "a LOGIN alice my {5+}",
            "a LOGIN {} x",
            "a LOGIN {x y",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn literals_are_announced_at_the_end_of_a_line_only() {
        let literal = |octets, synchronising| Literal { octets, synchronising };
        assert_eq!(parse("a LOGIN {5}"), Some(Command::Login(LoginLine::UserFollows(literal(5, true)))));
        assert_eq!(
            parse("a LOGIN \"alice\" {0+}"),
            Some(Command::Login(LoginLine::PasswordFollows {
                user: own(b"alice"),
                literal: literal(0, false)
            }))
        );
        assert_eq!(announcement(b"{99999999999999999999}").unwrap().1.octets, u32::MAX);
        assert_eq!(announced_at_end(b"a APPEND x (\\Seen) {12+}"), Some(literal(12, false)));
        assert_eq!(announced_at_end(b"a APPEND x ~{12}"), Some(literal(12, true)));
        assert_eq!(announced_at_end(b"a X {12} "), None);
        assert_eq!(announced_at_end(b"a X {}"), None);
    }

    #[test]
    fn authenticate_comes_with_and_without_an_initial_response() {
        let made = |mechanism: &str, initial: Option<&[u8]>| {
            Some(Command::Authenticate { mechanism: mechanism.to_owned(), initial: initial.map(own) })
        };
        assert_eq!(parse("a AUTHENTICATE plain"), made("PLAIN", None));
        assert_eq!(parse("a AUTHENTICATE PLAIN "), made("PLAIN", None));
        assert_eq!(parse("a authenticate PLAIN ="), made("PLAIN", Some(b"=")));
        assert_eq!(parse("a AUTHENTICATE LOGIN YQ=="), made("LOGIN", Some(b"YQ==")));
        assert_eq!(parse("a AUTHENTICATE PLAIN YQ== YQ=="), None);
        assert_eq!(parse("a AUTHENTICATE"), None);
    }

    #[test]
    fn commands_without_arguments_take_none() {
        assert_eq!(parse("a noop "), Some(Command::Noop));
        assert_eq!(parse("a NOOP ((((("), None);
        assert_eq!(parse("a ID NIL"), Some(Command::Id));
        assert_eq!(parse("a ID"), None);
        assert_eq!(parse("a LOGINX b c"), Some(Command::Other));
        assert_eq!(parse("a"), None);
    }

    #[test]
    fn responses_come_apart() {
        assert_eq!(response(b"+"), Ok((&b""[..], Response::Continue(b""))));
        assert_eq!(response(b"+ eyJ9"), Ok((&b""[..], Response::Continue(b"eyJ9"))));
        assert_eq!(
            response(b"A1 NO [UNAVAILABLE] x"),
            Ok((&b""[..], Response::Tagged { tag: b"A1", status: b"NO [UNAVAILABLE] x" }))
        );
        assert_eq!(status(b"NO [UNAVAILABLE] x").unwrap().1, (Status::No, &b"UNAVAILABLE"[..]));
        assert_eq!(status(b"ok").unwrap().1, (Status::Ok, &b""[..]));
        assert_eq!(status(b"BYE [no end").unwrap().1, (Status::Bye, &b""[..]));
        assert!(status(b"OKAY x").is_err());
        assert!(status(b"CAPABILITY x").is_err());
    }

    #[test]
    fn capabilities_that_are_no_atoms_are_left_out() {
        assert_eq!(
            capabilities(b"capability IMAP4rev1  X\x07 (a) IDLE").unwrap().1,
            ["IMAP4rev1".to_owned(), "IDLE".to_owned()]
        );
    }
}
