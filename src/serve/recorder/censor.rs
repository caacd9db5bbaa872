//! Turns octets into lines of a transcript, and secrets into `[redacted]`, in such a way that the dialogue
//! takes the same course when the transcript is replayed.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use crate::config::model::Protocol;
use crate::secret::REDACTED;

/// Takes base64 with and without its padding, as our fronts do.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What is expected from a mail client next.
enum Expected {
    /// A command line.
    Command,
    /// A response to the challenge of this mechanism; how many came before it.
    Payload(String, u8),
    /// This many octets of a user name, then the rest of the line.
    UserLiteral(usize),
    /// The rest of a LOGIN line, from the blank before the password on.
    Password,
    /// This many octets of a password, then the end of the line.
    PasswordLiteral(usize),
    /// What stands behind a password that was a literal.
    LineEnd,
}

/// Goes through what a mail client and we said.
pub(super) struct FrontCensor {
    protocol: Protocol,
    expected: Expected,
    /// After AUTH: the mechanism, until we have answered.
    announced: Option<String>,
    /// An unfinished line.
    held: Zeroizing<Vec<u8>>,
    /// The tags that are shown. IMAP repeats as a tag whatever a line begins with, a password that strayed too.
    tags: Vec<Vec<u8>>,
}

impl FrontCensor {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            expected: Expected::Command,
            announced: None,
            held: Zeroizing::default(),
            tags: Vec::new(),
        }
    }

    /// Octets from the mail client.
    pub(super) fn heard(&mut self, text: &mut String, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        while self.next_piece(text) {}
    }

    /// Octets from us.
    pub(super) fn said(&mut self, text: &mut String, bytes: &[u8]) {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let challenges = match self.protocol {
                Protocol::Smtp => line.starts_with(b"334"),
                Protocol::Imap | Protocol::Pop3 | Protocol::Ews | Protocol::ActiveSync => {
                    line.starts_with(b"+") && !line.starts_with(b"+OK")
                }
            };
            match (&self.expected, challenges, self.announced.take()) {
                (Expected::Command, true, Some(mechanism)) => {
                    self.expected = Expected::Payload(mechanism, 0);
                }
                (Expected::Payload(..), false, _) => self.expected = Expected::Command,
                (_, _, announced) if challenges => self.announced = announced,
                _ => {}
            }
            let (tag, rest) = split(line);
            let is_shown =
                matches!(tag, b"*" | b"+" | b"+\r\n") || self.tags.iter().any(|shown| shown == tag);
            match (self.protocol, rest) {
                (Protocol::Imap, Some(rest)) if !is_shown => {
                    put(text, 'P', &[REDACTED.as_bytes(), b" ", rest].concat());
                }
                (_, _) => put(text, 'P', line),
            }
        }
    }

    /// An unfinished line is not held back any longer.
    pub(super) fn pause(&mut self, text: &mut String) {
        if !std::mem::take(&mut *self.held).is_empty() {
            put(text, 'C', REDACTED.as_bytes());
        }
    }

    /// Writes one line or literal; `false`: there is no whole one.
    fn next_piece(&mut self, text: &mut String) -> bool {
        let literal = match self.expected {
            Expected::UserLiteral(size) | Expected::PasswordLiteral(size) => Some(size),
            Expected::Command | Expected::Payload(..) | Expected::Password | Expected::LineEnd => None,
        };
        let end = match literal {
            Some(size) if self.held.len() >= size => size,
            Some(_) => return false,
            None => match self.held.iter().position(|b| *b == b'\n') {
                Some(end) => end + 1,
                None => return false,
            },
        };
        let rest = Zeroizing::new(self.held.split_off(end));
        let piece = std::mem::replace(&mut self.held, rest);
        let expected = std::mem::replace(&mut self.expected, Expected::Command);
        let shown = match expected {
            Expected::UserLiteral(_) => {
                self.expected = Expected::Password;
                piece.to_vec()
            }
            Expected::PasswordLiteral(_) => {
                self.expected = Expected::LineEnd;
                REDACTED.as_bytes().to_vec()
            }
            Expected::Password => self.password(&piece),
            Expected::LineEnd => {
                let (inside, end) = line_end(&piece);
                if inside.is_empty() { end.to_vec() } else { [b" ", REDACTED.as_bytes(), end].concat() }
            }
            Expected::Payload(mechanism, number) => {
                let (inside, end) = line_end(&piece);
                let shown = payload(&mechanism, number, inside);
                self.expected = Expected::Payload(mechanism, number.saturating_add(1));
                // placeholders are not octets to be escaped
                put_shown(text, 'C', &shown, end);
                return true;
            }
            Expected::Command => return self.command(text, &piece),
        };
        put(text, 'C', &shown);
        true
    }

    fn command(&mut self, text: &mut String, line: &[u8]) -> bool {
        let (inside, end) = line_end(line);
        let (tag, rest) = match self.protocol {
            Protocol::Imap | Protocol::Ews | Protocol::ActiveSync => match split(inside) {
                (tag, Some(rest)) => ([tag, b" "].concat(), rest),
                (_, None) => (Vec::new(), &b""[..]),
            },
            Protocol::Pop3 | Protocol::Smtp => (Vec::new(), inside),
        };
        let (word, arguments) = split(rest);
        let verb = word.to_ascii_uppercase();
        match (verb.as_slice(), arguments) {
            (b"LOGIN", Some(arguments)) if self.protocol == Protocol::Imap => {
                let shown = self.imap_login(arguments, end);
                put(text, 'C', &[&tag, word, b" ", &shown].concat());
            }
            (b"AUTHENTICATE" | b"AUTH", Some(arguments)) => {
                let (mechanism, response) = split(arguments);
                let name = String::from_utf8_lossy(mechanism).to_ascii_uppercase();
                let mut shown = String::new();
                escape(&mut shown, &[&tag, word, b" ", mechanism].concat());
                if let Some(response) = response {
                    shown.push(' ');
                    shown.push_str(&payload(&name, 0, response));
                }
                // the first response of LOGIN may have come with the command; its second is the password
                let asked = if response.is_some() && name == "LOGIN" { "LOGIN'S PASSWORD" } else { &name };
                self.announced = Some(asked.to_owned());
                put_shown(text, 'C', &shown, end);
            }
            (b"PASS", Some(_)) if tag.is_empty() => {
                put(text, 'C', &[b"PASS ", REDACTED.as_bytes(), end].concat());
            }
            (b"APOP", Some(arguments)) if tag.is_empty() => {
                let (user, _) = split(arguments);
                put(text, 'C', &[b"APOP ", user, b" ", REDACTED.as_bytes(), end].concat());
            }
            (b"ID", Some(_)) if self.protocol == Protocol::Imap => {
                put(text, 'C', &[&tag, &b"ID NIL"[..], end].concat());
            }
            (known, None) if KNOWN.contains(&known) => put(text, 'C', line),
            (b"USER" | b"EHLO" | b"HELO" | b"MAIL" | b"RCPT", Some(_)) if tag.is_empty() => {
                put(text, 'C', line);
            }
            (known, Some(_)) if KNOWN.contains(&known) => {
                put(text, 'C', &[&tag, word, b" ", REDACTED.as_bytes(), end].concat());
            }
            (_, _) => {
                stranger(text, inside, end);
                return true;
            }
        }
        self.tags.push(tag.trim_ascii_end().to_vec());
        true
    }

    /// `user password`, each an atom, a quoted string or a literal (RFC 9051 §6.2.3).
    fn imap_login(&mut self, arguments: &[u8], end: &[u8]) -> Vec<u8> {
        if let Some((size, _)) = literal(arguments) {
            self.expected = Expected::UserLiteral(size);
            return [arguments, end].concat();
        }
        let length = if arguments.starts_with(b"\"") {
            let mut is_escaped = false;
            let close = arguments.iter().skip(1).position(|b| {
                let closes = *b == b'"' && !is_escaped;
                is_escaped = *b == b'\\' && !is_escaped;
                closes
            });
            // a quotation without an end hides where the password begins
            let Some(close) = close else { return [REDACTED.as_bytes(), end].concat() };
            close + 2
        } else {
            arguments.iter().position(|b| *b == b' ').unwrap_or(arguments.len())
        };
        let (user, rest) = arguments.split_at(length.min(arguments.len()));
        let rest = Zeroizing::new([rest, end].concat());
        [user, &self.password(&rest)].concat()
    }

    /// The rest of a LOGIN line: the form stays, the content goes.
    fn password(&mut self, rest: &[u8]) -> Vec<u8> {
        let (inside, end) = line_end(rest);
        let blanks = inside.iter().take_while(|b| **b == b' ').count();
        let (blank, inside) = inside.split_at(blanks);
        if inside.is_empty() {
            return [blank, end].concat();
        }
        if let Some((size, plus)) = literal(inside) {
            self.expected = Expected::PasswordLiteral(size);
            let marker = format!("{{{}{plus}}}", REDACTED.len());
            return [blank, marker.as_bytes(), end].concat();
        }
        let quote: &[u8] = if inside.starts_with(b"\"") { b"\"" } else { b"" };
        [blank, quote, REDACTED.as_bytes(), quote, end].concat()
    }
}

/// A line that is no command of the protocol: it may be a password that strayed here.
fn stranger(text: &mut String, inside: &[u8], end: &[u8]) {
    let (_, rest) = split(inside);
    let shown: &[&[u8]] = match (inside.is_empty(), rest) {
        (true, _) => &[end],
        (false, None) => &[REDACTED.as_bytes(), end],
        (false, Some(_)) => &[REDACTED.as_bytes(), b" ", REDACTED.as_bytes(), end],
    };
    put(text, 'C', &shown.concat());
}

/// Commands that hold no secret where nothing stands behind them.
const KNOWN: [&[u8]; 25] = [
    b"CAPABILITY",
    b"NOOP",
    b"LOGOUT",
    b"STARTTLS",
    b"ID",
    b"SELECT",
    b"LIST",
    b"ENABLE",
    b"NAMESPACE",
    b"CAPA",
    b"QUIT",
    b"STLS",
    b"STAT",
    b"RSET",
    b"USER",
    b"PASS",
    b"AUTH",
    b"LOGIN",
    b"AUTHENTICATE",
    b"DATA",
    b"HELP",
    b"EHLO",
    b"HELO",
    b"MAIL",
    b"RCPT",
];

/// A SASL response: user names stay (RFC 4616, and LOGIN's first).
fn payload(mechanism: &str, number: u8, response: &[u8]) -> String {
    if matches!(response, b"" | b"=" | b"*") {
        return String::from_utf8_lossy(response).into_owned();
    }
    let Ok(decoded) = LENIENT.decode(response) else { return REDACTED.to_owned() };
    let decoded = Zeroizing::new(decoded);
    let mut inside = String::new();
    let mut parts = decoded.split(|b| *b == 0);
    match (mechanism, number, parts.next(), parts.next(), parts.next()) {
        ("PLAIN", 0, Some(authorization), Some(user), Some(_)) => {
            escape(&mut inside, authorization);
            inside.push_str("\\0");
            escape(&mut inside, user);
            inside.push_str("\\0");
            inside.push_str(REDACTED);
        }
        ("LOGIN", 0, ..) => escape(&mut inside, &decoded),
        _ => inside.push_str(REDACTED),
    }
    format!("<b64 {inside}>")
}

/// Goes through what upstream and we said.
#[derive(Default)]
pub(super) struct BackCensor {
    held: Vec<u8>,
    /// The token's length, where it had a line to itself: it may have been too long for the command's, and a
    /// shorter one would take another course.
    pub(super) alone: Option<usize>,
}

impl BackCensor {
    /// Octets from upstream; it is never told a password, but some repeat the token that they did not like.
    pub(super) fn heard(&mut self, text: &mut String, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        while let Some(end) = self.held.iter().position(|b| *b == b'\n') {
            let rest = self.held.split_off(end + 1);
            put_heard(text, &std::mem::replace(&mut self.held, rest));
        }
    }

    /// Octets from us: among their words, what holds a token.
    pub(super) fn said(&mut self, text: &mut String, bytes: &[u8]) {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let (inside, end) = line_end(line);
            let is_alone = !inside.contains(&b' ');
            let mut shown = |word| {
                let (shown, length) = without_token(word, is_alone);
                self.alone = self.alone.or(length.filter(|_| is_alone));
                shown
            };
            let words: Vec<String> = inside.split(|b| *b == b' ').map(&mut shown).collect();
            put_shown(text, 'P', &words.join(" "), end);
        }
    }

    /// An unfinished line is not held back any longer.
    pub(super) fn pause(&mut self, text: &mut String) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            put_heard(text, &held);
        }
    }
}

/// A line of upstream, without a token that stands in it in base64, wherever that begins.
fn put_heard(text: &mut String, line: &[u8]) {
    let (inside, end) = line_end(line);
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    let mut shown = String::new();
    for word in inside.chunk_by(|a, b| is_base64(a) == is_base64(b)) {
        let within =
            (1..4).any(|start| word.get(start..).is_some_and(|word| without_token(word, false).1.is_some()));
        match without_token(word, false) {
            (_, None) if within => shown.push_str(REDACTED),
            (word, _) => shown.push_str(&word),
        }
    }
    put_shown(text, 'S', &shown, end);
}

/// What stands for a token of this length, as long as it.
pub(super) fn stand_in(length: usize) -> String {
    format!("{REDACTED:.<length$}")
}

/// A word of ours; where it is a bearer token in base64 (RFC 7628 §3.1), without it. With the token's length.
fn without_token(word: &[u8], keeps_length: bool) -> (String, Option<usize>) {
    const MARK: &[u8] = b"auth=Bearer ";
    let mut shown = String::new();
    // cut short by a single character, it still is base64
    let whole = word.len() - usize::from(word.len() % 4 == 1);
    let decoded = LENIENT.decode(word.get(..whole).unwrap_or(word)).map(Zeroizing::new);
    let start = decoded.as_ref().ok().and_then(|decoded| memchr::memmem::find(decoded, MARK));
    let (Ok(decoded), Some(start)) = (&decoded, start) else {
        escape(&mut shown, word);
        return (shown, None);
    };
    let (before, token) = decoded.split_at(start + MARK.len());
    let length = token.iter().position(|b| *b == 1).unwrap_or(token.len());
    shown.push_str("<b64 ");
    escape(&mut shown, before);
    shown.push_str(&stand_in(if keeps_length { length } else { 0 }));
    escape(&mut shown, token.get(length..).unwrap_or_default());
    shown.push('>');
    (shown, Some(length))
}

/// `{5}` or `{5+}`: the size, and the plus if there is one.
fn literal(text: &[u8]) -> Option<(usize, &'static str)> {
    let inside = text.strip_prefix(b"{")?.strip_suffix(b"}")?;
    let (digits, plus) = match inside.strip_suffix(b"+") {
        Some(digits) => (digits, "+"),
        None => (inside, ""),
    };
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, plus))
}

/// The first word, and what stands behind the blank after it.
fn split(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|b| *b == b' ') {
        Some(blank) => (text.get(..blank).unwrap_or_default(), text.get(blank + 1..)),
        None => (text, None),
    }
}

/// A line, and its CRLF or LF if there is one.
fn line_end(line: &[u8]) -> (&[u8], &[u8]) {
    let end = if line.ends_with(b"\r\n") { 2 } else { usize::from(line.ends_with(b"\n")) };
    line.split_at(line.len() - end)
}

/// Writes a line, or a piece of one.
fn put(text: &mut String, mark: char, line: &[u8]) {
    let (inside, end) = line_end(line);
    let mut shown = String::new();
    escape(&mut shown, inside);
    put_shown(text, mark, &shown, end);
}

/// The same, where the inside is in the transcript's own writing already.
fn put_shown(text: &mut String, mark: char, inside: &str, end: &[u8]) {
    let (inside, blank) = match inside.strip_suffix(' ') {
        Some(before) => (before, "\\x20"),
        None => (inside, ""),
    };
    let end = match end {
        b"\r\n" => "",
        b"\n" => "\\n\\",
        _ => "\\",
    };
    // writing to a String cannot fail
    let _: std::fmt::Result = writeln!(text, "{mark}: {inside}{blank}{end}");
}

/// Octets as a transcript writes them.
pub(super) fn escape(text: &mut String, octets: &[u8]) {
    for chunk in octets.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\r' => text.push_str("\\r"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\0' => text.push_str("\\0"),
                '<' | '>' => hex(text, c as u8),
                c if c.is_control() => {
                    let mut octets = [0; 4];
                    for octet in c.encode_utf8(&mut octets).bytes() {
                        hex(text, octet);
                    }
                }
                c => text.push(c),
            }
        }
        for octet in chunk.invalid() {
            hex(text, *octet);
        }
    }
}

fn hex(text: &mut String, octet: u8) {
    // writing to a String cannot fail
    let _: std::fmt::Result = write!(text, "\\x{octet:02x}");
}
