//! SEARCH: keys and whether a message matches them.

use jiff::{civil::Date, tz::TimeZone};

use super::{
    imap_syntax::{Arg, set},
    mailbox::Message,
    message,
};

/// How deep keys may nest.
const DEPTH: usize = 20;

/// One key.
#[derive(Debug)]
pub(super) enum Key {
    All,
    Never,
    Flag(String, bool),
    Numbers(String),
    Uids(String),
    Header(String, String),
    Body(String),
    Text(String),
    Received(DateTest, Date),
    Sent(DateTest, Date),
    Larger(usize),
    Smaller(usize),
    Not(Box<Key>),
    Or(Box<Key>, Box<Key>),
    And(Vec<Key>),
}

/// How a date compares.
#[derive(Clone, Copy, Debug)]
pub(super) enum DateTest {
    Before,
    On,
    Since,
}

/// What a message is in its folder.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) number: u32,
    pub(super) numbers: &'a [u32],
    pub(super) uids: &'a [u32],
}

/// Reads all keys; `None` for anything unknown.
pub(super) fn keys(args: &[Arg]) -> Option<Key> {
    let mut rest = args.iter();
    let mut keys = Vec::new();
    while let Some(arg) = rest.next() {
        keys.push(key(arg, &mut rest, DEPTH)?);
    }
    (!keys.is_empty()).then_some(Key::And(keys))
}

fn key<'a>(arg: &'a Arg, rest: &mut impl Iterator<Item = &'a Arg>, depth: usize) -> Option<Key> {
    let depth = depth.checked_sub(1)?;
    let name = match arg {
        Arg::List(items) => return keys(items),
        Arg::Atom(name) => name.to_ascii_uppercase(),
        Arg::Text(_) => return None,
    };
    let flag = |flag: &str, on| Some(Key::Flag(format!("\\{flag}"), on));
    match name.as_str() {
        "ALL" | "OLD" => Some(Key::All),
        "NEW" | "RECENT" => Some(Key::Never),
        "SEEN" => flag("Seen", true),
        "UNSEEN" => flag("Seen", false),
        "ANSWERED" => flag("Answered", true),
        "UNANSWERED" => flag("Answered", false),
        "FLAGGED" => flag("Flagged", true),
        "UNFLAGGED" => flag("Flagged", false),
        "DELETED" => flag("Deleted", true),
        "UNDELETED" => flag("Deleted", false),
        "DRAFT" => flag("Draft", true),
        "UNDRAFT" => flag("Draft", false),
        "KEYWORD" => Some(Key::Flag(rest.next()?.text()?, true)),
        "UNKEYWORD" => Some(Key::Flag(rest.next()?.text()?, false)),
        "FROM" | "TO" | "CC" | "BCC" | "SUBJECT" => Some(Key::Header(name, lower(rest.next()?)?)),
        "HEADER" => Some(Key::Header(rest.next()?.text()?, lower(rest.next()?)?)),
        "BODY" => Some(Key::Body(lower(rest.next()?)?)),
        "TEXT" => Some(Key::Text(lower(rest.next()?)?)),
        "BEFORE" => Some(Key::Received(DateTest::Before, date(rest.next()?)?)),
        "ON" => Some(Key::Received(DateTest::On, date(rest.next()?)?)),
        "SINCE" => Some(Key::Received(DateTest::Since, date(rest.next()?)?)),
        "SENTBEFORE" => Some(Key::Sent(DateTest::Before, date(rest.next()?)?)),
        "SENTON" => Some(Key::Sent(DateTest::On, date(rest.next()?)?)),
        "SENTSINCE" => Some(Key::Sent(DateTest::Since, date(rest.next()?)?)),
        "LARGER" => Some(Key::Larger(rest.next()?.text()?.parse().ok()?)),
        "SMALLER" => Some(Key::Smaller(rest.next()?.text()?.parse().ok()?)),
        "UID" => Some(Key::Uids(rest.next()?.text()?)),
        "NOT" => Some(Key::Not(Box::new(key(rest.next()?, rest, depth)?))),
        "OR" => {
            let first = key(rest.next()?, rest, depth)?;
            Some(Key::Or(Box::new(first), Box::new(key(rest.next()?, rest, depth)?)))
        }
        _ => set(&name, &[]).map(|_| Key::Numbers(name)),
    }
}

fn lower(arg: &Arg) -> Option<String> {
    arg.text().map(|text| text.to_lowercase())
}

/// `1-Feb-2026`
fn date(arg: &Arg) -> Option<Date> {
    Date::strptime("%d-%b-%Y", arg.text()?.trim_matches('"')).ok()
}

impl Key {
    /// Whether a message matches.
    pub(super) fn matches(&self, message: &Message, place: Place<'_>) -> bool {
        let header = || message.raw.get(..message::header_length(&message.raw)).unwrap_or_default();
        match self {
            Self::All => true,
            Self::Never => false,
            Self::Flag(flag, on) => message.flags.iter().any(|found| found.eq_ignore_ascii_case(flag)) == *on,
            Self::Numbers(text) => {
                set(text, place.numbers).is_some_and(|numbers| numbers.binary_search(&place.number).is_ok())
            }
            Self::Uids(text) => {
                set(text, place.uids).is_some_and(|uids| uids.binary_search(&message.uid).is_ok())
            }
            Self::Header(name, wanted) => {
                message::field(header(), name).is_some_and(|value| value.to_lowercase().contains(wanted))
            }
            Self::Body(wanted) => {
                let body = message.raw.get(message::header_length(&message.raw)..).unwrap_or_default();
                String::from_utf8_lossy(body).to_lowercase().contains(wanted)
            }
            Self::Text(wanted) => String::from_utf8_lossy(&message.raw).to_lowercase().contains(wanted),
            Self::Received(test, date) => test.holds(message.received.to_zoned(TimeZone::UTC).date(), *date),
            Self::Sent(test, date) => message::field(header(), "Date")
                .and_then(|sent| jiff::fmt::rfc2822::parse(&sent).ok())
                .is_some_and(|sent| test.holds(sent.date(), *date)),
            Self::Larger(size) => message.raw.len() > *size,
            Self::Smaller(size) => message.raw.len() < *size,
            Self::Not(key) => !key.matches(message, place),
            Self::Or(first, second) => first.matches(message, place) || second.matches(message, place),
            Self::And(keys) => keys.iter().all(|key| key.matches(message, place)),
        }
    }
}

impl DateTest {
    fn holds(self, found: Date, wanted: Date) -> bool {
        match self {
            Self::Before => found < wanted,
            Self::On => found == wanted,
            Self::Since => found >= wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use super::{
        super::imap_syntax::{Piece, arguments},
        *,
    };

    fn found(search: &str) -> bool {
        let message = Message {
            id: 1,
            uid: 9,
            flags: BTreeSet::from(["\\Seen".to_owned()]),
            received: "2026-02-03T10:00:00Z".parse().unwrap(),
            raw: Bytes::from_static(
                b"Subject: Hello World\r\nDate: Mon, 2 Feb 2026 10:00:00 +0000\r\n\r\nbody\r\n",
            ),
        };
        let args = arguments(&[Piece::Line(search.as_bytes().to_vec())]).unwrap();
        keys(&args).unwrap().matches(&message, Place { number: 2, numbers: &[1, 2], uids: &[4, 9] })
    }

    #[test]
    fn keys_match_what_they_say() {
        for search in [
            "ALL",
            "SEEN",
            "NOT UNSEEN",
            "2",
            "1:*",
            "UID 9",
            "UID 5:*",
            "SUBJECT \"hello\"",
            "OR UNSEEN TEXT body",
            "SINCE 3-Feb-2026",
            "SENTON 2-Feb-2026",
            "(SEEN LARGER 5) UNDELETED",
        ] {
            assert!(found(search), "{search}");
        }
        for search in ["UNSEEN", "1", "UID 4", "BEFORE 3-Feb-2026", "NOT ALL", "SMALLER 5", "HEADER X y"] {
            assert!(!found(search), "{search}");
        }
    }
}
