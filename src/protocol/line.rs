//! A bounded inbox: bytes of any slicing in, whole lines and counted octets out.
//!
//! Lines end with LF, with or without a CR before it: what comes before a login is ours alone, so being
//! liberal here opens nothing. The bound is in the reader, not in each state of each dialogue.

use std::fmt;

use zeroize::Zeroize as _;

use crate::secret::Passing;

/// The longest command line from a mail client, in octets: a SASL response at RFC 4954's limit.
pub const MAX_COMMAND_LINE: usize = 12_288;

/// The longest answer line from upstream, in octets.
pub const MAX_REPLY_LINE: usize = 16_384;

/// What the inbox has for a taker.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// A line, without its end.
    Line(Vec<u8>),
    /// More input is needed.
    Incomplete,
    /// No line end within the bound. The inbox stays in this state.
    TooLong,
}

/// Bytes that came in and are not yet understood. They may hold a password: wiped on drop.
#[derive(Default)]
pub struct Inbox {
    bytes: Passing,
    /// Everything before this is taken.
    start: usize,
    /// Everything before this is known to hold no LF.
    searched: usize,
}

impl Inbox {
    /// Adds what came in.
    ///
    /// What has been taken makes room first, and no copy is left behind where more room is needed.
    pub fn feed(&mut self, bytes: &[u8]) {
        let kept = self.len();
        if kept + bytes.len() > self.bytes.capacity() {
            let mut roomier = Passing(Vec::with_capacity((kept + bytes.len()).next_power_of_two()));
            roomier.extend_from_slice(self.peek());
            self.bytes = roomier;
        } else if self.start > 0 {
            self.bytes.copy_within(self.start.., 0);
            self.bytes.get_mut(kept..).unwrap_or_default().zeroize();
            self.bytes.truncate(kept);
        }
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next line, if it is whole and no longer than `max` octets without its end.
    pub fn line(&mut self, max: usize) -> Taken {
        let unsearched = self.bytes.get(self.searched..).unwrap_or_default();
        let Some(found) = memchr::memchr(b'\n', unsearched) else {
            self.searched = self.bytes.len();
            return if self.len() > max + 1 { Taken::TooLong } else { Taken::Incomplete };
        };
        let end = self.searched + found;
        let line = self.bytes.get(self.start..end).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > max {
            return Taken::TooLong;
        }
        let line = line.to_vec();
        self.take_to(end + 1);
        Taken::Line(line)
    }

    /// The next `count` octets, if they are all there.
    pub fn octets(&mut self, count: usize) -> Option<Vec<u8>> {
        let octets = self.bytes.get(self.start..self.start.checked_add(count)?)?.to_vec();
        self.take_to(self.start + count);
        Some(octets)
    }

    /// What has not been taken yet, without taking it.
    pub fn peek(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// How much has not been taken yet, in octets.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether all has been taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything: what stood before a TLS handshake is never parsed after it.
    pub fn clear(&mut self) {
        self.bytes.wipe();
        self.bytes.clear();
        self.start = 0;
        self.searched = 0;
    }

    /// Gives up what has not been taken yet.
    pub fn into_rest(mut self) -> Vec<u8> {
        let rest = self.peek().to_vec();
        self.clear();
        rest
    }

    fn take_to(&mut self, position: usize) {
        self.start = position;
        self.searched = position;
        if self.start == self.bytes.len() {
            self.clear();
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} octets)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_came_in() {
        let mut inbox = Inbox::default();
        for byte in b"a b\r\n\nc\n" {
            inbox.feed(&[*byte]);
        }
        assert_eq!(inbox.line(10), Taken::Line(b"a b".to_vec()));
        assert_eq!(inbox.line(10), Taken::Line(b"".to_vec()));
        assert_eq!(inbox.line(10), Taken::Line(b"c".to_vec()));
        assert_eq!(inbox.line(10), Taken::Incomplete);
    }

    #[test]
    fn the_bound_holds_with_and_without_a_line_end() {
        let mut inbox = Inbox::default();
        inbox.feed(b"1234\r");
        assert_eq!(inbox.line(4), Taken::Incomplete);
        inbox.feed(b"\n");
        assert_eq!(inbox.line(4), Taken::Line(b"1234".to_vec()));
        inbox.feed(b"123456");
        assert_eq!(inbox.line(4), Taken::TooLong);
        inbox.feed(b"\n");
        assert_eq!(inbox.line(4), Taken::TooLong);
    }

    #[test]
    fn what_was_taken_makes_room() {
        let mut inbox = Inbox::default();
        inbox.feed(b"ha");
        for _ in 0..1000 {
            inbox.feed(b"lf\nha");
            assert_eq!(inbox.line(10), Taken::Line(b"half".to_vec()));
            assert_eq!(inbox.line(10), Taken::Incomplete);
        }
        assert!(inbox.bytes.capacity() < 64, "{} octets for two", inbox.bytes.capacity());
        assert_eq!(inbox.into_rest(), b"ha");
    }

    #[test]
    fn octets_are_counted_and_the_rest_is_kept() {
        let mut inbox = Inbox::default();
        inbox.feed(b"ab\r\ncd rest");
        assert_eq!(inbox.octets(6), Some(b"ab\r\ncd".to_vec()));
        assert_eq!(inbox.octets(6), None);
        assert_eq!(inbox.into_rest(), b" rest");
    }
}
