//! IMAP commands: from lines and literals to arguments, and from values to strings.

use bytes::Bytes;

/// What came: text of the command line, or a literal.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Line(Vec<u8>),
    Literal(Bytes),
}

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arg {
    /// As it stands, with anything in brackets.
    Atom(String),
    /// Quoted or literal.
    Text(Bytes),
    List(Vec<Arg>),
}

/// How deep lists may nest.
const DEPTH: usize = 30;

impl Arg {
    /// A string of any form.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Atom(atom) => Some(atom.clone()),
            Self::Text(octets) => Some(String::from_utf8_lossy(octets).into_owned()),
            Self::List(_) => None,
        }
    }

    /// Octets of any form.
    pub(super) fn octets(&self) -> Option<Bytes> {
        match self {
            Self::Atom(atom) => Some(Bytes::copy_from_slice(atom.as_bytes())),
            Self::Text(octets) => Some(octets.clone()),
            Self::List(_) => None,
        }
    }

    /// The items of a list; of a single argument, itself.
    pub(super) fn items(&self) -> Vec<Self> {
        match self {
            Self::List(items) => items.clone(),
            Self::Atom(_) | Self::Text(_) => vec![self.clone()],
        }
    }
}

/// The literal that a line announces at its end: octets, whether it is synchronising, and the line without it.
pub(super) fn literal(line: &[u8]) -> Option<(usize, bool, &[u8])> {
    let body = line.strip_suffix(b"}")?;
    let open = memchr::memrchr(b'{', body)?;
    let (before, digits) = (body.get(..open)?, body.get(open + 1..)?);
    let (digits, waits) = digits.strip_suffix(b"+").map_or((digits, true), |digits| (digits, false));
    let digits = std::str::from_utf8(digits).ok()?;
    Some((digits.parse().ok()?, waits, before))
}

/// All arguments; `None` where parentheses or quotes do not match.
pub(super) fn arguments(pieces: &[Piece]) -> Option<Vec<Arg>> {
    let mut stack: Vec<Vec<Arg>> = vec![Vec::new()];
    for piece in pieces {
        match piece {
            Piece::Literal(octets) => stack.last_mut()?.push(Arg::Text(octets.clone())),
            Piece::Line(line) => scan(line, &mut stack)?,
        }
    }
    (stack.len() == 1).then(|| stack.pop()).flatten()
}

fn scan(line: &[u8], stack: &mut Vec<Vec<Arg>>) -> Option<()> {
    let mut at = 0;
    while let Some(&octet) = line.get(at) {
        match octet {
            b' ' => at += 1,
            b'(' => {
                if stack.len() > DEPTH {
                    return None;
                }
                stack.push(Vec::new());
                at += 1;
            }
            b')' => {
                let list = stack.pop()?;
                stack.last_mut()?.push(Arg::List(list));
                at += 1;
            }
            b'"' => {
                let (text, end) = quoted(line, at + 1)?;
                stack.last_mut()?.push(Arg::Text(text.into()));
                at = end;
            }
            _ => {
                let end = atom_end(line, at)?;
                let atom = String::from_utf8_lossy(line.get(at..end)?).into_owned();
                stack.last_mut()?.push(Arg::Atom(atom));
                at = end;
            }
        }
    }
    Some(())
}

fn quoted(line: &[u8], start: usize) -> Option<(Vec<u8>, usize)> {
    let (mut text, mut at) = (Vec::new(), start);
    loop {
        match line.get(at)? {
            b'"' => return Some((text, at + 1)),
            b'\\' => {
                text.push(*line.get(at + 1)?);
                at += 2;
            }
            octet => {
                text.push(*octet);
                at += 1;
            }
        }
    }
}

/// Where an atom ends; what stands in brackets belongs to it.
fn atom_end(line: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut bracket) = (start, false);
    loop {
        match line.get(at) {
            None => return (!bracket).then_some(at),
            Some(b'[') => bracket = true,
            Some(b']') => bracket = false,
            Some(b' ' | b'(' | b')' | b'"') if !bracket => return Some(at),
            Some(_) => {}
        }
        at += 1;
    }
}

/// A quoted string, or a literal where quoting is not allowed.
pub(super) fn string(text: &[u8]) -> Vec<u8> {
    if text.iter().any(|&octet| !(0x20..0x80).contains(&octet)) {
        let mut out = format!("{{{}}}\r\n", text.len()).into_bytes();
        out.extend_from_slice(text);
        return out;
    }
    let mut out = vec![b'"'];
    for &octet in text {
        if matches!(octet, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(octet);
    }
    out.push(b'"');
    out
}

/// A string, or NIL.
pub(super) fn nstring(text: Option<&str>) -> Vec<u8> {
    text.map_or_else(|| b"NIL".to_vec(), |text| string(text.as_bytes()))
}

/// A set of numbers: `1:3,5,7:*`. Which of `numbers` (ascending) it names; `None` if it is no set.
pub(super) fn set(text: &str, numbers: &[u32]) -> Option<Vec<u32>> {
    let largest = numbers.last().copied().unwrap_or(0);
    let number = |text: &str| if text == "*" { Some(largest) } else { text.parse::<u32>().ok() };
    let mut ranges = Vec::new();
    for item in text.split(',') {
        let (first, last) = item.split_once(':').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        ranges.push(first.min(last)..=first.max(last));
    }
    Some(numbers.iter().copied().filter(|number| ranges.iter().any(|range| range.contains(number))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<Vec<Arg>> {
        arguments(&[Piece::Line(line.as_bytes().to_vec())])
    }

    #[test]
    fn arguments_of_every_form_are_read() {
        let atom = |text: &str| Arg::Atom(text.to_owned());
        let text = |text: &'static str| Arg::Text(Bytes::from_static(text.as_bytes()));
        assert_eq!(
            read(r#"1:* (FLAGS BODY.PEEK[HEADER.FIELDS (DATE FROM)]<0.10>) "a\"b" "" INBOX"#),
            Some(vec![
                atom("1:*"),
                Arg::List(vec![atom("FLAGS"), atom("BODY.PEEK[HEADER.FIELDS (DATE FROM)]<0.10>")]),
                text("a\"b"),
                text(""),
                atom("INBOX"),
            ])
        );
        assert_eq!(read("(a"), None);
        assert_eq!(read("a)"), None);
        assert_eq!(read("\"a"), None);
    }

    #[test]
    fn a_literal_is_announced_at_the_end_of_a_line_only() {
        assert_eq!(literal(b"a LOGIN {3}"), Some((3, true, &b"a LOGIN "[..])));
        assert_eq!(literal(b"{30+}"), Some((30, false, &b""[..])));
        assert_eq!(literal(b"a {x}"), None);
        assert_eq!(literal(b"a {3} "), None);
    }

    #[test]
    fn sets_are_read_with_their_star() {
        assert_eq!(set("2:3,*", &[1, 2, 3, 9]), Some(vec![2, 3, 9]));
        assert_eq!(set("*:4", &[1, 4, 9]), Some(vec![4, 9]));
        assert_eq!(set("x", &[1]), None);
    }
}
