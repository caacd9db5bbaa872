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

    /// Whether the next octets from the client are a command, or the rest of one.
    pub fn expects_command(&self) -> bool {
        !self.lost && matches!(self.front, Front::Command(_))
    }

    /// Whether upstream's answer decides what the next octets from the client are.
    pub fn waits_for_reply(&self) -> bool {
        !self.lost && matches!(self.front, Front::Waiting(_))
    }

    /// As [`from_front`](Self::from_front), up to where the kind of octets changes; says how many are left.
    pub fn take_from_front(&mut self, bytes: &[u8]) -> usize {
        if self.lost { 0 } else { self.front_bytes(bytes).len() }
    }

    /// Messages that upstream took.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The message that is under way, as far as upstream took its envelope.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.envelope.as_ref()
    }

    /// The message that is under way, also one whose envelope has not been answered yet.
    pub fn under_way(&self) -> Option<Envelope> {
        let asked = |envelope: Envelope| {
            let asked = self.unanswered.iter().filter(|one| matches!(one, Expected::Rcpt)).count();
            let asked = u32::try_from(asked).unwrap_or(u32::MAX);
            Envelope { recipients: envelope.recipients.saturating_add(asked), ..envelope }
        };
        let pipelined = || {
            self.unanswered.iter().find_map(|one| match one {
                Expected::Mail(sender) => Some(Envelope { sender: sender.to_string(), recipients: 0 }),
                Expected::Rcpt
                | Expected::Data
                | Expected::Message
                | Expected::Chunk { .. }
                | Expected::Reset
                | Expected::Auth
                | Expected::StartTls
                | Expected::Other => None,
            })
        };
        self.envelope.clone().or_else(pipelined).map(asked)
    }

    /// Whether a whole message is with upstream, and its answer is not here yet.
    pub fn awaits_verdict(&self) -> bool {
        self.unanswered.iter().any(|one| matches!(one, Expected::Message | Expected::Chunk { last: true }))
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

/// The verb of a command line. BDAT is known by its first letters alone, and whatever is no sign is a blank, as
/// for some a vertical tab is: a line that upstream may take for one must not pass as another.
fn verb(line: &[u8]) -> Verb {
    let start = line.iter().position(u8::is_ascii_graphic).unwrap_or(line.len());
    let line = line.get(start..).unwrap_or_default();
    if line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"BDAT")) {
        return Verb::Bdat;
    }
    let word = line.split(|octet| !octet.is_ascii_graphic() || *octet == b':').next().unwrap_or_default();
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

/// Reply lines that are coming in: the first octets of the line, which say all, and the code so far.
#[derive(Default)]
struct ReplyLines {
    /// Code, the sign behind it, and one more: a CR behind the code may be the line's end, or stand on its own.
    head: [u8; 5],
    /// Octets of the line so far, those of the head counted at most.
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
        let head = self.head.get(..self.seen).unwrap_or_default();
        let head = head.strip_suffix(b"\r\n").or(head.strip_suffix(b"\n")).unwrap_or(head);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Seen {
        Front,
        Back,
    }
    use Seen::{Back as S, Front as C};

    fn watched(talk: &[(Seen, &[u8])]) -> Boundary {
        let mut boundary = Boundary::new();
        for (from, bytes) in talk {
            show(&mut boundary, *from, bytes);
        }
        boundary
    }

    fn show(boundary: &mut Boundary, from: Seen, bytes: &[u8]) {
        match from {
            C => boundary.from_front(bytes),
            S => boundary.from_back(bytes),
        }
    }

    const OPEN: [(Seen, &[u8]); 4] = [
        (C, b"MAIL FROM:<a@b.example> SIZE=5\r\nRCPT TO:<c@d.example>\r\nRCPT TO:<e@f.example>\r\n"),
        (S, b"250 2.1.0 Sender OK\r\n250 2.1.5 OK\r\n550 5.1.1 no\r\n"),
        (C, b"DATA\r\n"),
        (S, b"354 Start mail input\r\n"),
    ];

    #[test]
    fn a_session_is_between_messages_until_mail_and_after_the_final_reply() {
        let mut boundary = Boundary::new();
        assert!(boundary.between_messages());
        boundary.from_front(b"MAIL FROM:<a@b.example>\r\n");
        assert!(!boundary.between_messages(), "MAIL waits for its reply");
        boundary.from_back(b"250 2.1.0 Sender OK\r\n");
        assert!(!boundary.between_messages(), "a message is under way");
        boundary.from_front(b"RCPT TO:<c@d.example>\r\n");
        boundary.from_back(b"250 2.1.5 Recipient OK\r\n");
        let envelope = Envelope { sender: "a@b.example".to_owned(), recipients: 1 };
        assert_eq!(boundary.envelope(), Some(&envelope));
        boundary.from_front(b"DATA\r\n");
        boundary.from_back(b"354 go\r\n");
        boundary.from_front(b"Subject: x\r\n\r\nMAIL FROM:<x>\r\n..\r\n.\r\n");
        assert!(!boundary.between_messages(), "the message waits for its reply");
        boundary.from_back(b"250-2.0.0\r\n");
        assert!(!boundary.between_messages(), "the reply is not whole");
        boundary.from_back(b"250 queued\r\n");
        assert!(boundary.between_messages());
        assert_eq!((boundary.messages(), boundary.envelope()), (1, None));
    }

    #[test]
    fn half_a_command_is_not_between_messages() {
        assert!(!watched(&[(C, b"NO")]).between_messages());
        assert!(!watched(&[(C, b"\r")]).between_messages());
        assert!(watched(&[(C, b"NOOP\r\n"), (S, b"250\r\n")]).between_messages());
        assert!(!watched(&[(C, b"NOOP\r\n"), (S, b"250 OK\r\n2")]).between_messages());
    }

    /// The variants of the SMTP smuggling research, and what servers have taken for an end of data.
    #[test]
    fn only_crlf_dot_crlf_ends_a_message() {
        for end in [
            &b"\n.\n"[..],
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r.\r",
            b"\r\n.\r",
            b"\n.\r",
            b"\r.\r\n",
            b"\r\n\0.\r\n",
            b"\r\n.\0\r\n",
            b"\r\n.\r\r\n",
            b"\r\r\n.\r\r\n",
        ] {
            let mut boundary = watched(&OPEN);
            boundary.from_front(b"text");
            boundary.from_front(end);
            boundary.from_front(b"RSET\r\n");
            assert!(!boundary.between_messages(), "{end:?}");
            assert!(boundary.unanswered.is_empty(), "{end:?} was taken for an end");
            boundary.from_front(b"\r\n.\r\n");
            boundary.from_back(b"250 queued\r\n");
            assert_eq!((boundary.messages(), boundary.between_messages()), (1, true), "{end:?}");
        }
    }

    #[test]
    fn a_message_may_be_empty() {
        let mut boundary = watched(&OPEN);
        boundary.from_front(b".\r\n");
        boundary.from_back(b"250 queued\r\n");
        assert_eq!((boundary.messages(), boundary.between_messages()), (1, true));
    }

    #[test]
    fn a_message_that_was_not_taken_is_over_and_not_counted() {
        let mut boundary = watched(&OPEN);
        boundary.from_front(b"x\r\n.\r\n");
        boundary.from_back(b"554 5.2.0 SendAsDenied\r\n");
        assert_eq!((boundary.messages(), boundary.between_messages()), (0, true));
    }

    #[test]
    fn data_that_is_refused_is_followed_by_commands() {
        let mut boundary = watched(&OPEN[..3]);
        boundary.from_back(b"554 5.5.1 no valid recipients\r\n");
        assert!(!boundary.between_messages(), "the transaction is still open");
        boundary.from_front(b"RSET\r\n");
        boundary.from_back(b"250 2.0.0\r\n");
        assert!(boundary.between_messages());
    }

    #[test]
    fn what_comes_before_the_354_is_read_in_its_light() {
        let early: &[u8] = b"NOOP\r\n.\r\nNOOP\r\n";
        let mut taken = watched(&OPEN[..3]);
        taken.from_front(early);
        taken.from_back(b"354 go\r\n250 queued\r\n250 OK\r\n");
        assert_eq!((taken.messages(), taken.between_messages()), (1, true));

        let mut refused = watched(&OPEN[..3]);
        refused.from_front(early);
        refused.from_back(b"554 no\r\n250 OK\r\n500 what?\r\n250 OK\r\n");
        assert_eq!((refused.messages(), refused.lost_track()), (0, false));
        assert!(refused.unanswered.is_empty());

        let mut too_much = watched(&OPEN[..3]);
        too_much.from_front(&vec![b'x'; MAX_HELD + 1]);
        assert!(too_much.lost_track());
    }

    #[test]
    fn chunks_are_counted_and_never_read() {
        let mut boundary = watched(&OPEN[..2]);
        boundary.from_front(b"BDAT 7\r\nRSET\r\n\r");
        boundary.from_front(b"BDAT 3 LAST\r\n\n.\n");
        assert!(!boundary.between_messages());
        boundary.from_back(b"250 7 octets\r\n250 queued\r\n");
        assert_eq!((boundary.messages(), boundary.between_messages()), (1, true));
    }

    #[test]
    fn a_chunk_that_fails_ends_the_message() {
        let mut boundary = watched(&OPEN[..2]);
        boundary.from_front(b"BDAT 1\r\nxBDAT 0 LAST\r\n");
        boundary.from_back(b"552 too big\r\n503 no\r\n");
        assert_eq!((boundary.messages(), boundary.between_messages()), (0, true));
    }

    #[test]
    fn a_second_login_takes_lines_that_are_no_commands() {
        let boundary = watched(&[
            (C, b"AUTH LOGIN\r\n"),
            (S, b"334 VXNlcm5hbWU6\r\n"),
            (C, b"REFUQQ==\r\n"),
            (S, b"334 UGFzc3dvcmQ6\r\n"),
            (C, b"DATA\r\n"),
            (S, b"503 5.5.1 already\r\n"),
            (C, b"NOOP\r\n"),
            (S, b"250 OK\r\n"),
        ]);
        assert!(boundary.between_messages());
    }

    #[test]
    fn a_421_out_of_the_blue_is_no_riddle() {
        assert!(!watched(&[(S, b"421 4.4.2 idle\r\n")]).lost_track());
    }

    #[test]
    fn what_can_be_read_in_two_ways_loses_track_for_good() {
        let riddles: [&[(Seen, &[u8])]; 13] = [
            &[(C, b"NOOP\nQUIT\r\n")],
            &[(C, b"NOOP\rQUIT\r\n")],
            &[(C, b"NOOP\r\r\n")],
            &[(C, b"BDAT x\r\n")],
            &[(C, b" BDAT 1\r\n")],
            &[(C, b"\x0bBDAT 1\r\n")],
            &[(C, b"BDAT\t1\r\n")],
            &[(S, b"250 nobody asked\r\n")],
            &[(C, b"NOOP\r\n"), (S, b"+OK\r\n")],
            &[(C, b"NOOP\r\n"), (S, b"354 go\r\n")],
            &[(C, b"NOOP\r\n"), (S, b"250\r554 no\r\n")],
            &[(C, b"EHLO a\r\n"), (S, b"250-a\r\n220 b\r\n")],
            &[(C, b"STARTTLS\r\n"), (S, b"220 go\r\n")],
        ];
        for talk in riddles {
            let mut boundary = watched(talk);
            assert!(boundary.lost_track(), "{talk:?}");
            boundary.from_front(b"RSET\r\n");
            boundary.from_back(b"250 OK\r\n");
            assert!(boundary.lost_track() && !boundary.between_messages(), "{talk:?}");
        }
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut long_line = Boundary::new();
        let mut many_commands = Boundary::new();
        let mut many_senders = Boundary::new();
        let mut long_reply = Boundary::new();
        for _ in 0..10_000 {
            long_line.from_front(&[b'x'; 100]);
            many_commands.from_front(b"NOOP\r\n");
            many_senders.from_front(b"MAIL FROM:<a@b.example>\r\n");
            long_reply.from_back(&[b'2'; 100]);
        }
        assert!(matches!(&long_line.front, Front::Command(line) if line.kept.len() == KEPT_LINE));
        assert!(many_commands.lost_track() && many_commands.unanswered.capacity() == 0);
        assert!(many_senders.lost_track());
        assert!(!long_reply.lost_track());
    }

    /// One exchange, and what is true once it is over.
    #[derive(Clone, Debug)]
    enum Exchange {
        Hello(bool),
        Reset(bool),
        Chat,
        Mail(bool),
        Rcpt(bool),
        Data { go: bool, text: Vec<u8>, taken: bool },
        Chunks(Vec<(Vec<u8>, bool)>),
    }

    /// What is known of the session without reading it.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Truth {
        recipients: Option<u32>,
        messages: u64,
    }

    type Turn = (Vec<u8>, Vec<u8>);

    impl Exchange {
        /// What both sides say, turn by turn: within a turn the client does not have to wait.
        fn turns(&self) -> Vec<Turn> {
            let plain = |command: &str, good: bool, yes: &str| {
                let reply = if good { yes } else { "550 5.0.0 no" };
                vec![(format!("{command}\r\n").into_bytes(), format!("{reply}\r\n").into_bytes())]
            };
            match self {
                Self::Hello(good) => plain("EHLO a.example", *good, "250-b\r\n250-SIZE 10\r\n250 PIPELINING"),
                Self::Reset(good) => plain("rset", *good, "250 2.0.0 OK"),
                Self::Chat => plain("VRFY DATA", true, "252 perhaps"),
                Self::Mail(good) => plain("mail FROM:<a@b.example>", *good, "250 2.1.0 OK"),
                Self::Rcpt(good) => plain("RCPT TO:<BDAT>", *good, "250 2.1.5 OK"),
                Self::Data { go, text, taken } => {
                    let mut turns = plain("DATA", *go, "354 go");
                    if *go {
                        turns.push((up_to_its_end(text), plain("", *taken, "250 queued").remove(0).1));
                    }
                    turns
                }
                Self::Chunks(chunks) => {
                    let chunk = |(number, (octets, good)): (usize, &(Vec<u8>, bool))| {
                        let last = if number + 1 == chunks.len() { " LAST" } else { "" };
                        let line = format!("BDAT {}{last}", octets.len());
                        let (line, reply) = plain(&line, *good, "250 got it").remove(0);
                        ([line, octets.clone()].concat(), reply)
                    };
                    chunks.iter().enumerate().map(chunk).collect()
                }
            }
        }

        fn happens(&self, truth: &mut Truth) {
            match self {
                Self::Hello(true) | Self::Reset(true) => truth.recipients = None,
                Self::Mail(true) => truth.recipients = Some(0),
                Self::Rcpt(true) => truth.recipients = truth.recipients.map(|before| before + 1),
                Self::Data { go: true, taken, .. } => {
                    truth.recipients = None;
                    truth.messages += u64::from(*taken);
                }
                Self::Chunks(chunks) => {
                    truth.recipients = None;
                    truth.messages += u64::from(chunks.last().is_some_and(|(_, taken)| *taken));
                }
                Self::Data { go: false, .. }
                | Self::Hello(false)
                | Self::Reset(false)
                | Self::Mail(false)
                | Self::Rcpt(false)
                | Self::Chat => {}
            }
        }
    }

    /// The text with `CRLF.CRLF` behind it, or up to the first one inside it: found the slow way.
    fn up_to_its_end(text: &[u8]) -> Vec<u8> {
        let whole = [b"\r\n", text, b"\r\n.\r\n"].concat();
        let end = whole.windows(5).position(|window| window == END_OF_DATA).unwrap();
        whole[2..end + 5].to_vec()
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let piece =
            select(vec![&b"\r"[..], b"\n", b".", b"\r\n", b"\r\n.", b"x", b"RSET\r\n", b"\r\n.\r\nQUIT\r\n"]);
        vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    fn exchange() -> impl Strategy<Value = Exchange> {
        prop_oneof![
            any::<bool>().prop_map(Exchange::Hello),
            any::<bool>().prop_map(Exchange::Reset),
            Just(Exchange::Chat),
            any::<bool>().prop_map(Exchange::Mail),
            any::<bool>().prop_map(Exchange::Rcpt),
            (any::<bool>(), text(), any::<bool>()).prop_map(|(go, text, taken)| Exchange::Data {
                go,
                text,
                taken
            }),
            vec((text(), any::<bool>()), 1..4).prop_map(Exchange::Chunks),
        ]
    }

    /// Shows the bytes in slices whose lengths come from a list, over and over.
    fn sliced(boundary: &mut Boundary, from: Seen, bytes: &[u8], lengths: &[usize]) {
        let mut left = bytes;
        for length in lengths.iter().cycle() {
            if left.is_empty() {
                break;
            }
            let (slice, rest) = left.split_at((*length).min(left.len()));
            show(boundary, from, slice);
            left = rest;
        }
    }

    proptest! {
        #[test]
        fn it_knows_what_is_true_of_a_polite_session(
            exchanges in vec(exchange(), 0..20),
            lengths in vec(1_usize..40, 1..10),
        ) {
            let mut boundary = Boundary::new();
            let mut truth = Truth::default();
            for exchange in &exchanges {
                for (command, reply) in exchange.turns() {
                    sliced(&mut boundary, C, &command, &lengths);
                    prop_assert!(!boundary.between_messages());
                    sliced(&mut boundary, S, &reply, &lengths);
                }
                exchange.happens(&mut truth);
                prop_assert!(!boundary.lost_track(), "{exchange:?}");
                prop_assert_eq!(boundary.between_messages(), truth.recipients.is_none(), "{:?}", exchange);
                prop_assert_eq!(boundary.envelope().map(|envelope| envelope.recipients), truth.recipients);
                prop_assert_eq!(boundary.messages(), truth.messages);
            }
        }

        /// All commands of a group first, then all replies (RFC 2920 §3.1): only DATA has to wait.
        #[test]
        fn it_knows_what_is_true_of_a_pipelined_session(
            exchanges in vec(exchange(), 0..20),
            lengths in vec(1_usize..40, 1..10),
        ) {
            let mut boundary = Boundary::new();
            let mut truth = Truth::default();
            let (mut commands, mut replies) = (Vec::new(), Vec::new());
            for exchange in &exchanges {
                for (command, reply) in exchange.turns() {
                    let waits = command == b"DATA\r\n";
                    commands.extend(command);
                    replies.extend(reply);
                    if waits {
                        sliced(&mut boundary, C, &std::mem::take(&mut commands), &lengths);
                        sliced(&mut boundary, S, &std::mem::take(&mut replies), &lengths);
                    }
                }
                exchange.happens(&mut truth);
            }
            sliced(&mut boundary, C, &commands, &lengths);
            prop_assert!(commands.is_empty() || !boundary.between_messages());
            sliced(&mut boundary, S, &replies, &lengths);
            if boundary.lost_track() {
                let mails = exchanges.iter().filter(|one| matches!(one, Exchange::Mail(_))).count();
                prop_assert!(mails > MAX_UNANSWERED_MAIL, "lost without a reason");
                return Ok(());
            }
            prop_assert_eq!(boundary.between_messages(), truth.recipients.is_none());
            prop_assert_eq!(boundary.messages(), truth.messages);
        }

        #[test]
        fn slicing_changes_nothing_whatever_comes(
            talk in vec((any::<bool>(), prop_oneof![text(), vec(any::<u8>(), 0..8), noise()]), 0..40),
            lengths in vec(1_usize..9, 1..10),
        ) {
            let (mut whole, mut cut) = (Boundary::new(), Boundary::new());
            for (from_front, bytes) in &talk {
                let from = if *from_front { C } else { S };
                show(&mut whole, from, bytes);
                sliced(&mut cut, from, bytes, &lengths);
                prop_assert_eq!(whole.between_messages(), cut.between_messages());
                prop_assert_eq!(whole.messages(), cut.messages());
                prop_assert_eq!(whole.envelope(), cut.envelope());
                prop_assert_eq!(whole.lost_track(), cut.lost_track());
            }
        }

        #[test]
        fn the_end_of_data_is_where_a_plain_search_finds_it(
            text in text(),
            lengths in vec(1_usize..9, 1..10),
        ) {
            let stream = [b"\r\n", text.as_slice()].concat();
            let plain = stream.windows(5).position(|window| window == END_OF_DATA).map(|at| stream.len() - at - 5);
            let finder = memmem::Finder::new(END_OF_DATA);
            let (mut matched, mut left, mut found) = (2, text.as_slice(), None);
            for length in lengths.iter().cycle() {
                if left.is_empty() || found.is_some() {
                    break;
                }
                let (slice, rest) = left.split_at((*length).min(left.len()));
                found = end_of_data(&finder, &mut matched, slice).map(|behind| behind.len() + rest.len());
                left = rest;
            }
            prop_assert_eq!(found, plain);
        }
    }

    /// What is nearly a session.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let piece = select(vec![
            &b"DATA\r\n"[..],
            b"354 go\r\n",
            b"250 OK\r\n",
            b"250-OK\r\n",
            b"550 no\r\n",
            b"334 \r\n",
            b"BDAT 5\r\n",
            b"BDAT 3 LAST\r\n",
            b"AUTH X\r\n",
            b"MAIL FROM:<a>\r\n",
            b"RSET\r\n",
        ]);
        vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn a_message_is_under_way_before_upstream_has_answered_its_envelope() {
        let mut boundary = Boundary::default();
        assert_eq!(boundary.under_way(), None);
        boundary.from_front(
            b"MAIL FROM:<a@contoso.com>\r\nRCPT TO:<b@contoso.com>\r\nRCPT TO:<c@contoso.com>\r\n",
        );
        assert_eq!(boundary.envelope(), None, "upstream has taken nothing yet");
        let asked = boundary.under_way().unwrap();
        assert!(asked.sender.contains("a@contoso.com"), "{asked:?}");
        assert_eq!(asked.recipients, 2);
        boundary.from_back(b"250 ok\r\n250 ok\r\n");
        assert_eq!(boundary.envelope().unwrap().recipients, 1);
        assert_eq!(boundary.under_way().unwrap().recipients, 2);
    }
}
