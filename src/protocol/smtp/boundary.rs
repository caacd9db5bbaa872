//! Where one message ends and the next may begin: a watcher beside the SMTP relay.
//!
//! ```text
//! from the front:  Command ──DATA, AUTH, STARTTLS──► Waiting ──354──► Data ──CRLF.CRLF──► Command
//!                     │  ▲                              └──── any other reply ──────────────▲
//!                     └──BDAT n──► Chunk ──n octets──┘
//! from the back:   replies, matched in order with the commands that wait for one
//! ```
//! The relay shows it every octet of both directions and sends them on unchanged. It answers one question:
//! may this session be ended now without hurting a message? Where it cannot be sure it says no, for good:
//! only `CRLF.CRLF` ends a message and only `CRLF` ends a command, so that it cannot be talked into seeing
//! commands where upstream sees text (SMTP smuggling).
//!
//! Never: changes, holds back or delays an octet of the relay, keeps any text of a message, parses a header.
//!
//! Standards: RFC 5321 §4.1.1 and §4.3.2, RFC 2920 (PIPELINING), RFC 3030 (BDAT), RFC 4954 (AUTH).
//! Tests: below; they compare with a session whose truth is known, and try every slicing.

use std::collections::VecDeque;

use memchr::{memchr, memchr2, memmem};

use super::grammar::{bdat, reply_line, sender};

/// Commands that may wait for a reply at a time. Exchange Online takes 1,000 recipients per message.
pub const MAX_UNANSWERED: usize = 2048;

/// MAIL commands among them.
pub const MAX_UNANSWERED_MAIL: usize = 8;

/// What a client may send behind DATA before the 354, in octets. A polite one sends nothing.
pub const MAX_HELD: usize = 16 * 1024;

/// How much of a command line is kept, in octets; the rest is passed over.
const KEPT_LINE: usize = 512;

/// The only end of a message (RFC 5321 §4.1.1.4).
const END_OF_DATA: &[u8; 5] = b"\r\n.\r\n";

/// Follows a relayed SMTP session in both directions.
///
/// Bytes of upstream are to be shown before they are sent on: the client's answer cannot come first then.
pub struct Boundary {
    front: Front,
    reply: ReplyLines,
    /// The commands that wait for a reply, oldest first.
    unanswered: VecDeque<Expected>,
    envelope: Option<Envelope>,
    messages: u64,
    lost: bool,
    end_of_data: memmem::Finder<'static>,
}

/// The message that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The reverse path as the client wrote it; empty for a bounce. At most 512 octets, for the log.
    pub sender: String,
    /// Recipients that upstream took.
    pub recipients: u32,
}

/// What the octets from the client are.
enum Front {
    /// A command line, as far as it came in.
    Command(Line),
    /// Whether data or commands follow hangs on a reply; what came meanwhile.
    Waiting(Vec<u8>),
    /// A message; how much of its end has been seen.
    Data { matched: usize },
    /// Octets of a chunk still to come.
    Chunk { octets: u64 },
    /// An answer to a 334.
    SaslResponse(Line),
}

/// A command that waits for its reply.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// MAIL, and its reverse path.
    Mail(Box<str>),
    Rcpt,
    /// DATA itself: 354 or a refusal.
    Data,
    /// The message behind a 354.
    Message,
    Chunk {
        last: bool,
    },
    /// RSET, EHLO, HELO: a positive reply ends a message that was under way.
    Reset,
    Auth,
    StartTls,
    Other,
}

impl Default for Boundary {
    fn default() -> Self {
        Self::new()
    }
}

impl Boundary {
    /// Begins right after the login: no message is under way.
    pub fn new() -> Self {
        Self {
            front: Front::Command(Line::default()),
            reply: ReplyLines::default(),
            unanswered: VecDeque::new(),
            envelope: None,
            messages: 0,
            lost: false,
            end_of_data: memmem::Finder::new(END_OF_DATA),
        }
    }

    /// Bytes from the mail client, in any slicing.
    pub fn from_front(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() && !self.lost {
            bytes = self.front_bytes(bytes);
        }
    }

    /// Bytes from upstream, in any slicing.
    pub fn from_back(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() && !self.lost {
            match self.reply.take(&mut bytes) {
                ReplyTaken::Whole(code) => self.answered(code),
                ReplyTaken::Broken => self.lose_track(),
                ReplyTaken::Incomplete => {}
            }
        }
    }

    /// Whether no message is under way, every command was answered, and none is half sent.
    pub fn between_messages(&self) -> bool {
        !self.lost
            && self.envelope.is_none()
            && self.unanswered.is_empty()
            && self.reply.is_empty()
            && matches!(&self.front, Front::Command(line) if line.is_empty())
    }

    /// Messages that upstream took.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The message that is under way, as far as upstream took its envelope.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.envelope.as_ref()
    }

    /// Whether something came that can be read in two ways. It stays so, and
    /// [`between_messages`](Self::between_messages) with it.
    pub fn lost_track(&self) -> bool {
        self.lost
    }

    /// Takes some of the bytes; gives back the others.
    fn front_bytes<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match &mut self.front {
            Front::Command(line) => match line.take(bytes) {
                LineTaken::Whole(rest) => {
                    let line = std::mem::take(line);
                    self.commanded(&line);
                    rest
                }
                LineTaken::Incomplete => &[],
                LineTaken::Broken => {
                    self.lose_track();
                    &[]
                }
            },
            Front::SaslResponse(line) => match line.take(bytes) {
                LineTaken::Whole(rest) => {
                    self.front = Front::Waiting(Vec::new());
                    self.expect(Expected::Auth);
                    rest
                }
                LineTaken::Incomplete => &[],
                LineTaken::Broken => {
                    self.lose_track();
                    &[]
                }
            },
            Front::Waiting(held) => {
                if held.len() + bytes.len() > MAX_HELD {
                    self.lose_track();
                    return &[];
                }
                held.extend_from_slice(bytes);
                &[]
            }
            Front::Data { matched } => match end_of_data(&self.end_of_data, matched, bytes) {
                Some(rest) => {
                    self.front = Front::Command(Line::default());
                    self.expect(Expected::Message);
                    rest
                }
                None => &[],
            },
            Front::Chunk { octets } => {
                let here = usize::try_from(*octets).unwrap_or(usize::MAX).min(bytes.len());
                *octets = octets.saturating_sub(here as u64);
                if *octets == 0 {
                    self.front = Front::Command(Line::default());
                }
                bytes.get(here..).unwrap_or_default()
            }
        }
    }

    /// A whole command line came from the client.
    fn commanded(&mut self, line: &Line) {
        let kept = line.kept.as_slice();
        match verb(kept) {
            Verb::Mail => {
                let sender = String::from_utf8_lossy(sender(kept).unwrap_or_default()).into_owned();
                let waiting = self.unanswered.iter().filter(|one| matches!(one, Expected::Mail(_))).count();
                if waiting >= MAX_UNANSWERED_MAIL {
                    self.lose_track();
                    return;
                }
                self.expect(Expected::Mail(sender.into_boxed_str()));
            }
            Verb::Rcpt => self.expect(Expected::Rcpt),
            Verb::Data => self.wait_for(Expected::Data),
            Verb::Auth => self.wait_for(Expected::Auth),
            Verb::StartTls => self.wait_for(Expected::StartTls),
            Verb::Reset => self.expect(Expected::Reset),
            Verb::Bdat => match bdat(kept) {
                Ok((_, chunk)) if !line.cut => {
                    self.expect(Expected::Chunk { last: chunk.last });
                    if chunk.octets > 0 && !self.lost {
                        self.front = Front::Chunk { octets: chunk.octets };
                    }
                }
                // How many octets upstream passes over now is anybody's guess.
                _ => self.lose_track(),
            },
            Verb::Other => self.expect(Expected::Other),
        }
    }

    /// A whole reply came from upstream.
    fn answered(&mut self, code: u16) {
        let Some(expected) = self.unanswered.pop_front() else {
            // "421 Service not available" may come at any time (RFC 5321 §3.8); the end is near.
            if code != 421 {
                self.lose_track();
            }
            return;
        };
        let good = (200..300).contains(&code);
        if (300..400).contains(&code) && !matches!(expected, Expected::Data | Expected::Auth) {
            self.lose_track();
            return;
        }
        match expected {
            Expected::Mail(sender) if good => {
                self.envelope = Some(Envelope { sender: sender.into_string(), recipients: 0 });
            }
            Expected::Rcpt if good => {
                if let Some(envelope) = &mut self.envelope {
                    envelope.recipients = envelope.recipients.saturating_add(1);
                }
            }
            // The line end of DATA itself may begin the end of an empty message.
            Expected::Data if code == 354 => self.resume(Front::Data { matched: 2 }),
            Expected::Auth if code == 334 => self.resume(Front::SaslResponse(Line::default())),
            Expected::Data | Expected::Auth if (300..400).contains(&code) => self.lose_track(),
            // What follows is a handshake.
            Expected::StartTls if good => self.lose_track(),
            Expected::Data | Expected::Auth | Expected::StartTls => {
                self.resume(Front::Command(Line::default()));
            }
            // Taken or not, the message is over (RFC 5321 §4.1.1.4).
            Expected::Message | Expected::Chunk { last: true } => {
                self.envelope = None;
                self.messages = self.messages.saturating_add(u64::from(good));
            }
            // "The message should be considered failed" (RFC 3030 §2).
            Expected::Chunk { last: false } if !good => self.envelope = None,
            // A chunk that was taken belongs to a message, whether we saw its MAIL or not.
            Expected::Chunk { last: false } => {
                self.envelope.get_or_insert(Envelope { sender: String::new(), recipients: 0 });
            }
            Expected::Reset if good => self.envelope = None,
            Expected::Mail(_) | Expected::Rcpt | Expected::Reset | Expected::Other => {}
        }
    }

    fn expect(&mut self, expected: Expected) {
        if self.unanswered.len() >= MAX_UNANSWERED {
            self.lose_track();
            return;
        }
        self.unanswered.push_back(expected);
    }

    /// As [`expect`](Self::expect), where the reply decides what the next octets are.
    fn wait_for(&mut self, expected: Expected) {
        self.front = Front::Waiting(Vec::new());
        self.expect(expected);
    }

    /// The reply is here: reads on in its light.
    fn resume(&mut self, front: Front) {
        if let Front::Waiting(held) = std::mem::replace(&mut self.front, front) {
            self.from_front(&held);
        }
    }

    /// Gives up, and all memory with it.
    fn lose_track(&mut self) {
        self.lost = true;
        self.front = Front::Command(Line::default());
        self.reply = ReplyLines::default();
        self.unanswered = VecDeque::new();
    }
}

/// A command line that is coming in: its beginning, and where it stands.
#[derive(Default)]
struct Line {
    kept: Vec<u8>,
    /// Octets beyond those kept were passed over.
    cut: bool,
    /// The last octet was a CR.
    cr: bool,
}

enum LineTaken<'a> {
    /// The line has ended; what follows it.
    Whole(&'a [u8]),
    Incomplete,
    /// A CR or LF on its own: whether the line ends there depends on who reads it.
    Broken,
}

impl Line {
    fn take<'a>(&mut self, bytes: &'a [u8]) -> LineTaken<'a> {
        if self.cr {
            return match bytes.split_first() {
                Some((b'\n', rest)) => LineTaken::Whole(rest),
                Some(_) => LineTaken::Broken,
                None => LineTaken::Incomplete,
            };
        }
        let Some(end) = memchr2(b'\r', b'\n', bytes) else {
            self.keep(bytes);
            return LineTaken::Incomplete;
        };
        let (inner, end) = bytes.split_at(end);
        self.keep(inner);
        match end {
            [b'\r', b'\n', rest @ ..] => LineTaken::Whole(rest),
            [b'\r'] => {
                self.cr = true;
                LineTaken::Incomplete
            }
            _ => LineTaken::Broken,
        }
    }

    fn keep(&mut self, octets: &[u8]) {
        let room = KEPT_LINE.saturating_sub(self.kept.len());
        self.kept.extend(octets.iter().take(room));
        self.cut |= octets.len() > room;
    }

    fn is_empty(&self) -> bool {
        self.kept.is_empty() && !self.cr
    }
}

/// Looks for the end of a message; gives what follows it.
fn end_of_data<'a>(
    finder: &memmem::Finder<'static>,
    matched: &mut usize,
    bytes: &'a [u8],
) -> Option<&'a [u8]> {
    // An end that began in the slice before.
    let mut bytes = bytes;
    while *matched > 0 {
        let (&octet, rest) = bytes.split_first()?;
        *matched = advance(*matched, octet);
        bytes = rest;
        if *matched == END_OF_DATA.len() {
            return Some(bytes);
        }
    }
    if let Some(found) = finder.find(bytes) {
        return bytes.get(found + END_OF_DATA.len()..);
    }
    // An end that goes on in the slice after.
    let tail = bytes.get(bytes.len().saturating_sub(END_OF_DATA.len() - 1)..).unwrap_or_default();
    *matched = tail.iter().fold(0, |matched, &octet| advance(matched, octet));
    None
}

/// One octet further in `CRLF.CRLF`, of which `matched` octets stand before it.
fn advance(matched: usize, octet: u8) -> usize {
    match (END_OF_DATA.get(matched), octet) {
        (Some(&wanted), octet) if wanted == octet => matched + 1,
        (_, b'\r') => 1,
        _ => 0,
    }
}

enum Verb {
    Mail,
    Rcpt,
    Data,
    Bdat,
    Auth,
    StartTls,
    Reset,
    Other,
}

/// The verb of a command line. BDAT is known by its first letters alone: a line that upstream may take for
/// one must not pass as another.
fn verb(line: &[u8]) -> Verb {
    let line = line.trim_ascii_start();
    if line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"BDAT")) {
        return Verb::Bdat;
    }
    let word = line.split(|octet| octet.is_ascii_whitespace() || *octet == b':').next().unwrap_or_default();
    let known: [(&[u8], Verb); 9] = [
        (b"MAIL", Verb::Mail),
        (b"RCPT", Verb::Rcpt),
        (b"DATA", Verb::Data),
        (b"AUTH", Verb::Auth),
        (b"STARTTLS", Verb::StartTls),
        (b"RSET", Verb::Reset),
        (b"EHLO", Verb::Reset),
        (b"HELO", Verb::Reset),
        (b"LHLO", Verb::Reset),
    ];
    let found = known.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name));
    found.map_or(Verb::Other, |(_, verb)| verb)
}

/// Reply lines that are coming in: the first four octets of the line, which say all, and the code so far.
#[derive(Default)]
struct ReplyLines {
    head: [u8; 4],
    /// Octets of the line so far, the four counted at most.
    seen: usize,
    code: Option<u16>,
}

enum ReplyTaken {
    Whole(u16),
    Incomplete,
    /// No SMTP.
    Broken,
}

impl ReplyLines {
    /// Takes what belongs to one line off the front of `bytes`.
    fn take(&mut self, bytes: &mut &[u8]) -> ReplyTaken {
        let end = memchr(b'\n', bytes);
        let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        *bytes = rest;
        for (&octet, place) in line.iter().zip(self.head.iter_mut().skip(self.seen)) {
            *place = octet;
            self.seen += 1;
        }
        if end.is_none() {
            return ReplyTaken::Incomplete;
        }
        let head = self.head.get(..self.seen).unwrap_or_default().trim_ascii_end();
        let head =
            if self.head.get(3) == Some(&b' ') && self.seen == 4 { self.head.as_slice() } else { head };
        let Some(read) = reply_line(head).filter(|read| self.code.is_none_or(|code| code == read.code))
        else {
            return ReplyTaken::Broken;
        };
        self.seen = 0;
        self.code = if read.last { None } else { Some(read.code) };
        if read.last { ReplyTaken::Whole(read.code) } else { ReplyTaken::Incomplete }
    }

    fn is_empty(&self) -> bool {
        self.seen == 0 && self.code.is_none()
    }
}
