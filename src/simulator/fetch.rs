//! FETCH: the attributes of one message, as IMAP writes them.

use bytes::Bytes;

use super::{
    imap_syntax::{Arg, nstring, string},
    mailbox::Message,
    message::{self, Part},
};

/// A stretch of an answer: text, or octets of a message that are not copied.
pub(super) enum Stretch {
    Text(Vec<u8>),
    Octets(Bytes),
}

/// One thing that is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Flags,
    Uid,
    Size,
    InternalDate,
    Envelope,
    /// BODY without a section (`false`), or BODYSTRUCTURE.
    Structure(bool),
    /// A section: the name to answer with, the section itself, the partial range, and whether it leaves `\Seen` alone.
    Section {
        name: String,
        section: String,
        partial: Option<(usize, usize)>,
        peek: bool,
    },
}

/// Reads the items of a FETCH; `None` for anything unknown.
pub(super) fn items(arg: &Arg) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    for arg in arg.items() {
        let name = arg.text()?;
        match name.to_ascii_uppercase().as_str() {
            "ALL" => items.extend([Item::Flags, Item::InternalDate, Item::Size, Item::Envelope]),
            "FAST" => items.extend([Item::Flags, Item::InternalDate, Item::Size]),
            "FULL" => {
                items.extend([
                    Item::Flags,
                    Item::InternalDate,
                    Item::Size,
                    Item::Envelope,
                    Item::Structure(false),
                ]);
            }
            "FLAGS" => items.push(Item::Flags),
            "UID" => items.push(Item::Uid),
            "RFC822.SIZE" => items.push(Item::Size),
            "INTERNALDATE" => items.push(Item::InternalDate),
            "ENVELOPE" => items.push(Item::Envelope),
            "BODY" => items.push(Item::Structure(false)),
            "BODYSTRUCTURE" => items.push(Item::Structure(true)),
            "RFC822" => items.push(whole("RFC822", "", false)),
            "RFC822.HEADER" => items.push(whole("RFC822.HEADER", "HEADER", true)),
            "RFC822.TEXT" => items.push(whole("RFC822.TEXT", "TEXT", false)),
            _ => items.push(section(&name)?),
        }
    }
    Some(items)
}

fn whole(name: &str, section: &str, peek: bool) -> Item {
    Item::Section { name: name.to_owned(), section: section.to_owned(), partial: None, peek }
}

/// `BODY[section]<offset.count>` and `BODY.PEEK[section]`.
fn section(text: &str) -> Option<Item> {
    let (verb, rest) = text.split_once('[')?;
    let (section, rest) = rest.rsplit_once(']')?;
    let peek = match verb.to_ascii_uppercase().as_str() {
        "BODY" => false,
        "BODY.PEEK" => true,
        _ => return None,
    };
    let mut name = format!("BODY[{section}]");
    let mut partial = None;
    if !rest.is_empty() {
        let (offset, count) = rest.strip_prefix('<')?.strip_suffix('>')?.split_once('.')?;
        let (offset, count) = (offset.parse().ok()?, count.parse().ok()?);
        partial = Some((offset, count));
        name = format!("{name}<{offset}>");
    }
    Some(Item::Section { name, section: section.to_owned(), partial, peek })
}

/// Whether any item marks the message as seen.
pub(super) fn marks_seen(items: &[Item]) -> bool {
    items.iter().any(|item| matches!(item, Item::Section { peek: false, .. }))
}

/// `* n FETCH (…)`.
pub(super) fn answer(number: usize, message: &Message, items: &[Item], estimated: bool) -> Vec<Stretch> {
    let mut out = Writer { stretches: Vec::new(), text: format!("* {number} FETCH (").into_bytes() };
    let parsed = std::cell::OnceCell::new();
    let parts = || parsed.get_or_init(|| message::parse(&message.raw));
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.text.push(b' ');
        }
        match item {
            Item::Flags => out.text.extend(format!("FLAGS {}", flags(message)).bytes()),
            Item::Uid => out.text.extend(format!("UID {}", message.uid).bytes()),
            Item::Size => {
                out.text.extend(format!("RFC822.SIZE {}", message.announced_size(estimated)).bytes());
            }
            Item::InternalDate => {
                let date = message.received.strftime("%d-%b-%Y %H:%M:%S +0000");
                out.text.extend(format!("INTERNALDATE \"{date}\"").bytes());
            }
            Item::Envelope => {
                out.text.extend_from_slice(b"ENVELOPE ");
                let header = message.raw.get(..message::header_length(&message.raw)).unwrap_or_default();
                out.text.extend(envelope(header));
            }
            Item::Structure(extended) => {
                out.text.extend_from_slice(if *extended { b"BODYSTRUCTURE " } else { b"BODY " });
                structure(&message.raw, parts(), &mut out.text);
            }
            Item::Section { name, section, partial, .. } => {
                out.text.extend(format!("{name} ").bytes());
                let octets = section_octets(&message.raw, section, parts);
                out.literal(octets.map(|octets| cut(&octets, *partial)));
            }
        }
    }
    out.text.extend_from_slice(b")\r\n");
    out.finish()
}

/// `(\Seen \Flagged)`
pub(super) fn flags(message: &Message) -> String {
    let flags: Vec<&str> = message.flags.iter().map(String::as_str).collect();
    format!("({})", flags.join(" "))
}

struct Writer {
    stretches: Vec<Stretch>,
    text: Vec<u8>,
}

impl Writer {
    fn literal(&mut self, octets: Option<Bytes>) {
        let Some(octets) = octets else {
            self.text.extend_from_slice(b"NIL");
            return;
        };
        self.text.extend(format!("{{{}}}\r\n", octets.len()).bytes());
        if octets.len() < 16 * 1024 {
            self.text.extend_from_slice(&octets);
        } else {
            self.stretches.push(Stretch::Text(std::mem::take(&mut self.text)));
            self.stretches.push(Stretch::Octets(octets));
        }
    }

    fn finish(mut self) -> Vec<Stretch> {
        self.stretches.push(Stretch::Text(self.text));
        self.stretches
    }
}

fn cut(octets: &Bytes, partial: Option<(usize, usize)>) -> Bytes {
    match partial {
        None => octets.clone(),
        Some((offset, count)) => {
            let start = offset.min(octets.len());
            octets.slice(start..start.saturating_add(count).min(octets.len()))
        }
    }
}

/// The octets of a section; `None` if there is no such part.
fn section_octets<'a>(raw: &Bytes, section: &str, parts: impl Fn() -> &'a Part) -> Option<Bytes> {
    let upper = section.to_ascii_uppercase();
    if upper.is_empty() {
        return Some(raw.clone());
    }
    let header = message::header_length(raw);
    match upper.as_str() {
        "HEADER" => return Some(raw.slice(..header)),
        "TEXT" => return Some(raw.slice(header..)),
        _ if upper.starts_with("HEADER.FIELDS") => return Some(header_fields(raw.get(..header)?, section)),
        _ => {}
    }
    let digits_end =
        section.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(section.len());
    let (path, rest) = section.split_at_checked(digits_end)?;
    let mut part = parts();
    for number in path.trim_end_matches('.').split('.') {
        let number: usize = number.parse().ok()?;
        let inner = match part.children.as_slice() {
            [only] if part.kind == "MESSAGE" => only,
            _ => part,
        };
        part = if inner.children.is_empty() && number == 1 {
            inner
        } else {
            inner.children.get(number.checked_sub(1)?)?
        };
    }
    let embedded = if part.kind == "MESSAGE" { part.children.first() } else { None };
    match rest.to_ascii_uppercase().as_str() {
        "" => Some(raw.slice(part.body.clone())),
        "MIME" => Some(raw.slice(part.header.clone())),
        "HEADER" => Some(raw.slice(embedded?.header.clone())),
        "TEXT" => Some(raw.slice(embedded?.body.clone())),
        upper if upper.starts_with("HEADER.FIELDS") => {
            Some(header_fields(raw.get(embedded?.header.clone())?, rest))
        }
        _ => None,
    }
}

/// `HEADER.FIELDS (A B)` and `HEADER.FIELDS.NOT (A B)`, with the empty line.
fn header_fields(header: &[u8], section: &str) -> Bytes {
    let not = section.to_ascii_uppercase().starts_with("HEADER.FIELDS.NOT");
    let names = section.split_once('(').map_or("", |(_, names)| names.trim_end_matches(')'));
    let wanted: Vec<&str> = names.split_ascii_whitespace().map(|name| name.trim_matches('"')).collect();
    let mut out = Vec::new();
    for (name, raw) in message::fields(header) {
        if wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(&name)) != not {
            out.extend_from_slice(raw);
        }
    }
    out.extend_from_slice(b"\r\n");
    out.into()
}

fn envelope(header: &[u8]) -> Vec<u8> {
    let field = |name: &str| message::field(header, name);
    let from = field("From");
    let list = |value: Option<String>| {
        let mailboxes = value.as_deref().map(message::mailboxes).unwrap_or_default();
        if mailboxes.is_empty() {
            return b"NIL".to_vec();
        }
        let mut out = vec![b'('];
        for (name, address) in mailboxes {
            let (local, domain) = address.rsplit_once('@').unwrap_or((&address, ""));
            out.push(b'(');
            out.extend(nstring(name.as_deref()));
            out.extend_from_slice(b" NIL ");
            out.extend(string(local.as_bytes()));
            out.push(b' ');
            out.extend(string(domain.as_bytes()));
            out.push(b')');
        }
        out.push(b')');
        out
    };
    let or_from = |name: &str| list(field(name).or_else(|| from.clone()));
    let pieces = [
        nstring(field("Date").as_deref()),
        nstring(field("Subject").as_deref()),
        list(from.clone()),
        or_from("Sender"),
        or_from("Reply-To"),
        list(field("To")),
        list(field("Cc")),
        list(field("Bcc")),
        nstring(field("In-Reply-To").as_deref()),
        nstring(field("Message-ID").as_deref()),
    ];
    [b"(".to_vec(), pieces.join(&b' '), b")".to_vec()].concat()
}

/// BODYSTRUCTURE without extension data, which is optional.
fn structure(raw: &Bytes, part: &Part, out: &mut Vec<u8>) {
    out.push(b'(');
    if part.kind == "MULTIPART" && !part.children.is_empty() {
        for child in &part.children {
            structure(raw, child, out);
        }
        out.push(b' ');
        out.extend(string(part.subkind.as_bytes()));
        out.push(b')');
        return;
    }
    let header = raw.get(part.header.clone()).unwrap_or_default();
    let body = raw.get(part.body.clone()).unwrap_or_default();
    // A multipart without parts is of no use to anybody: show it as text.
    let text = part.kind == "TEXT" || part.kind == "MULTIPART";
    let (kind, subkind) =
        if part.kind == "MULTIPART" { ("TEXT", "PLAIN") } else { (&*part.kind, &*part.subkind) };
    let lines = body.split(|&octet| octet == b'\n').count().saturating_sub(1);
    let encoding = message::field(header, "Content-Transfer-Encoding").unwrap_or_else(|| "7BIT".to_owned());
    let parameters = match part.parameters.as_slice() {
        [] if text => b"(\"CHARSET\" \"US-ASCII\")".to_vec(),
        [] => b"NIL".to_vec(),
        parameters => {
            let words: Vec<Vec<u8>> = parameters
                .iter()
                .flat_map(|(name, value)| [string(name.to_uppercase().as_bytes()), string(value.as_bytes())])
                .collect();
            [b"(".to_vec(), words.join(&b' '), b")".to_vec()].concat()
        }
    };
    let mut words = vec![
        string(kind.as_bytes()),
        string(subkind.as_bytes()),
        parameters,
        nstring(message::field(header, "Content-ID").as_deref()),
        nstring(message::field(header, "Content-Description").as_deref()),
        string(encoding.to_uppercase().as_bytes()),
        body.len().to_string().into_bytes(),
    ];
    if let Some(child) = part.children.first() {
        words.push(envelope(raw.get(child.header.clone()).unwrap_or_default()));
        let mut inner = Vec::new();
        structure(raw, child, &mut inner);
        words.push(inner);
        words.push(lines.to_string().into_bytes());
    } else if text {
        words.push(lines.to_string().into_bytes());
    }
    out.extend(words.join(&b' '));
    out.push(b')');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const RAW: &[u8] = b"From: Alice <alice@contoso.com>\r\nTo: bob@contoso.com\r\nSubject: \"hi\"\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ndeep\r\n--b--\r\n";

    fn fetch(what: &str) -> String {
        let message = Message {
            id: 1,
            uid: 7,
            flags: BTreeSet::from(["\\Seen".to_owned()]),
            received: jiff::Timestamp::UNIX_EPOCH,
            raw: Bytes::from_static(RAW),
        };
        let items = items(&Arg::List(vec![Arg::Atom(what.to_owned())])).unwrap();
        let mut out = Vec::new();
        for stretch in answer(1, &message, &items, false) {
            match stretch {
                Stretch::Text(text) => out.extend(text),
                Stretch::Octets(octets) => out.extend(octets),
            }
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sections_are_cut_out_of_a_message() {
        assert_eq!(fetch("BODY[1]"), "* 1 FETCH (BODY[1] {3}\r\none)\r\n");
        assert_eq!(
            fetch("BODY.PEEK[2.HEADER]"),
            "* 1 FETCH (BODY[2.HEADER] {18}\r\nSubject: inner\r\n\r\n)\r\n"
        );
        assert_eq!(fetch("BODY[2.1]"), "* 1 FETCH (BODY[2.1] {4}\r\ndeep)\r\n");
        assert_eq!(fetch("BODY[3]"), "* 1 FETCH (BODY[3] NIL)\r\n");
        assert_eq!(fetch("BODY[]<5.7>"), "* 1 FETCH (BODY[]<5> {7}\r\n Alice )\r\n");
        assert_eq!(
            fetch("BODY[HEADER.FIELDS (SUBJECT X)]"),
            "* 1 FETCH (BODY[HEADER.FIELDS (SUBJECT X)] {17}\r\nSubject: \"hi\"\r\n\r\n)\r\n"
        );
    }

    #[test]
    fn the_envelope_names_sender_and_recipient() {
        assert_eq!(
            fetch("ENVELOPE"),
            "* 1 FETCH (ENVELOPE (NIL \"\\\"hi\\\"\" ((\"Alice\" NIL \"alice\" \"contoso.com\")) ((\"Alice\" NIL \"alice\" \"contoso.com\")) ((\"Alice\" NIL \"alice\" \"contoso.com\")) ((NIL NIL \"bob\" \"contoso.com\")) NIL NIL NIL NIL))\r\n"
        );
    }

    #[test]
    fn the_structure_shows_every_part() {
        let structure = fetch("BODYSTRUCTURE");
        assert!(
            structure.contains("(\"TEXT\" \"PLAIN\" (\"CHARSET\" \"US-ASCII\") NIL NIL \"7BIT\" 3 0)"),
            "{structure}"
        );
        assert!(structure.contains("\"MESSAGE\" \"RFC822\""), "{structure}");
        assert!(structure.ends_with("\"MIXED\"))\r\n"), "{structure}");
    }

    #[test]
    fn unknown_items_are_refused() {
        assert_eq!(items(&Arg::Atom("X".to_owned())), None);
        assert_eq!(items(&Arg::Atom("BODY[]<1>".to_owned())), None);
    }
}
