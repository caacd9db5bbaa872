//! When an IMAP or POP3 session may be ended by us: a stop must cut no command that is under way.
//!
//! Only the ends of what was said last are kept. Where that leaves a doubt, the session is not quiet: it then
//! ends by itself, or with the grace time.

use super::relay::{Ending, Standing, Unfinished, Watch};

/// The start of a line that is kept, in octets: a tag and a verb fit.
const MAX_LINE: usize = 96;

/// The last whole line of a stream, by its start, and the one that has only begun.
#[derive(Default)]
struct LastLine {
    whole: Vec<u8>,
    begun: Vec<u8>,
    /// Nothing has come behind the last line end.
    at_end: bool,
}

impl LastLine {
    fn take(&mut self, bytes: &[u8]) {
        let Some(end) = memchr::memrchr(b'\n', bytes) else {
            self.extend(bytes);
            self.at_end = self.at_end && bytes.is_empty();
            return;
        };
        let (lines, rest) = bytes.split_at(end);
        match memchr::memrchr(b'\n', lines) {
            // the last whole line lies in these bytes
            Some(before) => {
                self.begun.clear();
                self.extend(lines.get(before + 1..).unwrap_or_default());
            }
            None => self.extend(lines),
        }
        self.whole = std::mem::take(&mut self.begun);
        if self.whole.last() == Some(&b'\r') {
            self.whole.pop();
        }
        let rest = rest.get(1..).unwrap_or_default();
        self.extend(rest);
        self.at_end = rest.is_empty();
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.begun.len());
        self.begun.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }
}

/// IMAP: the last command has had its tagged answer, or it is IDLE (RFC 2177) and waits.
#[derive(Default)]
pub struct ImapQuiet {
    front: LastLine,
    back: LastLine,
    has_begun: bool,
    /// The tag of the last command that waited for leave to send a literal.
    literal: Vec<u8>,
}

impl ImapQuiet {
    fn is_between(&self) -> bool {
        if !self.has_begun {
            return self.back.begun.is_empty();
        }
        let mut words = self.front.whole.split(|b| *b == b' ');
        let (tag, verb) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut said = self.back.whole.split(|b| *b == b' ');
        let (first, second) = (said.next().unwrap_or_default(), said.next().unwrap_or_default());
        let is_status = [&b"OK"[..], b"NO", b"BAD"].iter().any(|word| second.eq_ignore_ascii_case(word));
        // behind a literal, the command ends with an empty line
        let tag = if self.front.whole.is_empty() { self.literal.as_slice() } else { tag };
        let is_answered = first == tag && is_status && !tag.is_empty();
        let is_idling = verb.eq_ignore_ascii_case(b"IDLE") && (first == b"+" || first == b"*");
        // behind DONE, the answer bears the tag of an IDLE that is no longer remembered: that one waits
        self.front.at_end && self.back.at_end && (is_answered || is_idling)
    }
}

impl Watch for ImapQuiet {
    fn up(&mut self, bytes: &[u8]) {
        self.has_begun |= !bytes.is_empty();
        self.front.take(bytes);
        if self.front.at_end && self.front.whole.ends_with(b"}") {
            self.literal = self.front.whole.split(|b| *b == b' ').next().unwrap_or_default().to_vec();
        }
    }

    fn down(&mut self, bytes: &[u8]) {
        self.back.take(bytes);
    }

    fn standing(&self) -> Standing {
        if self.is_between() { Standing::Between } else { Standing::Inside }
    }

    fn unfinished(&self) -> Option<Unfinished> {
        None
    }

    fn wants_quiet(&self) -> bool {
        true
    }

    fn farewell(&self, _ending: Ending) -> &'static [u8] {
        if self.is_between() { b"* BYE Mailkey stops; connect again\r\n" } else { b"" }
    }
}

/// POP3 knows no word for it: the session ends at a line end, unless messages were marked as deleted. They
/// would come back, so that one waits for its QUIT.
#[derive(Default)]
pub struct Pop3Quiet {
    front: LastLine,
    back: LastLine,
    has_deleted: bool,
}

impl Pop3Quiet {
    fn is_between(&self) -> bool {
        let said_nothing = self.front.whole.is_empty() && self.front.begun.is_empty();
        let is_answered = self.back.at_end && {
            let line = self.back.whole.as_slice();
            line == b"." || line.starts_with(b"-ERR") || (line.starts_with(b"+OK") && !self.awaits_lines())
        };
        !self.has_deleted && (said_nothing || (self.front.at_end && is_answered))
    }
}

impl Watch for Pop3Quiet {
    fn up(&mut self, bytes: &[u8]) {
        self.front.take(bytes);
        // a client that pipelines says DELE in the midst of others
        self.has_deleted |= memchr::memmem::find(&bytes.to_ascii_uppercase(), b"DELE ").is_some()
            || self.front.whole.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"DELE "));
    }

    fn down(&mut self, bytes: &[u8]) {
        self.back.take(bytes);
    }

    fn standing(&self) -> Standing {
        if self.is_between() { Standing::Between } else { Standing::Inside }
    }

    fn unfinished(&self) -> Option<Unfinished> {
        None
    }

    fn wants_quiet(&self) -> bool {
        true
    }

    fn farewell(&self, _ending: Ending) -> &'static [u8] {
        b""
    }
}

impl Pop3Quiet {
    /// The last command is answered by more lines than one.
    fn awaits_lines(&self) -> bool {
        let line = self.front.whole.to_ascii_uppercase();
        line.starts_with(b"RETR")
            || line.starts_with(b"TOP")
            || line == b"LIST"
            || line == b"UIDL"
            || line == b"CAPA"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `C` lines go up, `S` lines come down; in slices of every size.
    fn quiet(watch: impl Fn() -> Box<dyn Watch>, talk: &[(char, &str)]) -> bool {
        let mut results = [1, 3, 1000].map(|slice| {
            let mut watch = watch();
            for (who, text) in talk {
                for piece in text.as_bytes().chunks(slice) {
                    if *who == 'C' { watch.up(piece) } else { watch.down(piece) }
                }
            }
            watch.standing() == Standing::Between
        });
        results.sort_unstable();
        assert_eq!(results[0], results[2], "slicing matters in {talk:?}");
        results[0]
    }

    #[test]
    fn imap_is_quiet_between_commands_and_in_idle() {
        let imap = |talk: &[(char, &str)]| quiet(|| Box::new(ImapQuiet::default()), talk);
        assert!(imap(&[]));
        assert!(imap(&[('C', "a NOOP\r\n"), ('S', "a OK done\r\n")]));
        assert!(imap(&[('C', "a IDLE\r\n"), ('S', "+ idling\r\n")]));
        assert!(imap(&[('C', "a IDLE\r\n"), ('S', "+ idling\r\n* 4 EXISTS\r\n")]));
        assert!(!imap(&[('C', "a IDLE\r\n")]));
        assert!(!imap(&[('C', "a FETCH 1 BODY[]\r\n"), ('S', "* 1 FETCH (BODY[] {9000}\r\nhello\r\n")]));
        assert!(!imap(&[('C', "a APPEND INBOX {100}\r\n"), ('S', "+ go\r\n"), ('C', "Subject: x\r\n")]));
        let append = [('C', "a APPEND INBOX {9}\r\n"), ('S', "+ go\r\n"), ('C', "Hello\r\n\r\n\r\n")];
        assert!(!imap(&append));
        assert!(imap(&[&append[..], &[('S', "a OK\r\n")]].concat()));
        assert!(!imap(&[('C', "a NOOP\r\nb NOOP\r\n"), ('S', "a OK\r\n")]));
        assert!(!imap(&[('C', "a NOOP\r\nb NO"), ('S', "a OK\r\n")]));
    }

    #[test]
    fn pop3_is_quiet_between_commands_unless_something_is_to_be_deleted() {
        let pop3 = |talk: &[(char, &str)]| quiet(|| Box::new(Pop3Quiet::default()), talk);
        assert!(pop3(&[]));
        assert!(pop3(&[('C', "STAT\r\n"), ('S', "+OK 1 2\r\n")]));
        assert!(pop3(&[('C', "RETR 1\r\n"), ('S', "+OK\r\nhello\r\n.\r\n")]));
        assert!(!pop3(&[('C', "RETR 1\r\n"), ('S', "+OK\r\nhello\r\n")]));
        assert!(!pop3(&[('C', "RETR 1\r\n"), ('S', "+OK\r\n")]));
        assert!(!pop3(&[('C', "DELE 1\r\n"), ('S', "+OK\r\n")]));
        assert!(!pop3(&[('C', "STAT\r\n")]));
    }
}
