//! What can be read out of a message: headers, addresses, parts.

use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;

/// One MIME part, as ranges of the whole message.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) header: Range<usize>,
    pub(super) body: Range<usize>,
    pub(super) kind: String,
    pub(super) subkind: String,
    pub(super) parameters: Vec<(String, String)>,
    pub(super) children: Vec<Part>,
}

/// How deep parts may nest.
const DEPTH: usize = 20;

/// Length of the header with the empty line behind it.
pub(super) fn header_length(raw: &[u8]) -> usize {
    if raw.starts_with(b"\r\n") {
        return 2;
    }
    if raw.starts_with(b"\n") {
        return 1;
    }
    let crlf = memmem::find(raw, b"\r\n\r\n").map(|at| at + 4);
    let lf = memmem::find(raw, b"\n\n").map(|at| at + 2);
    match (crlf, lf) {
        (Some(crlf), Some(lf)) => crlf.min(lf),
        (Some(end), None) | (None, Some(end)) => end,
        (None, None) => raw.len(),
    }
}

/// Header fields in order: the name, and the raw lines with their ends.
pub(super) fn fields(header: &[u8]) -> Vec<(String, &[u8])> {
    let mut fields = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in header.split_inclusive(|&octet| octet == b'\n') {
        let folded = line.first().is_some_and(|octet| matches!(octet, b' ' | b'\t'));
        if !folded && at > start {
            push_field(&mut fields, header.get(start..at).unwrap_or_default());
            start = at;
        }
        at += line.len();
    }
    push_field(&mut fields, header.get(start..at).unwrap_or_default());
    fields
}

fn push_field<'a>(fields: &mut Vec<(String, &'a [u8])>, field: &'a [u8]) {
    if let Some(colon) = memchr::memchr(b':', field) {
        let name = String::from_utf8_lossy(field.get(..colon).unwrap_or_default()).trim().to_owned();
        fields.push((name, field));
    }
}

/// The unfolded value of the first field of that name.
pub(super) fn field(header: &[u8], name: &str) -> Option<String> {
    fields(header).into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, raw)| unfold(raw))
}

fn unfold(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let value = text.split_once(':').map_or("", |(_, value)| value);
    value.replace(['\r', '\n'], "").replace('\t', " ").trim().to_owned()
}

/// The addresses in a field of a message: `local@domain` each.
pub(super) fn addresses(raw: &[u8], name: &str) -> Vec<String> {
    let header = raw.get(..header_length(raw)).unwrap_or_default();
    let value = field(header, name).unwrap_or_default();
    mailboxes(&value).into_iter().map(|(_, address)| address).collect()
}

/// (display name, address) of each mailbox in an address list.
pub(super) fn mailboxes(value: &str) -> Vec<(Option<String>, String)> {
    split_list(value).iter().filter_map(|item| mailbox(item)).collect()
}

fn split_list(value: &str) -> Vec<String> {
    let (mut items, mut item, mut quoted, mut depth, mut escaped) =
        (Vec::new(), String::new(), false, 0_u32, false);
    for char in value.chars() {
        match char {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' | '<' if !quoted => depth += 1,
            ')' | '>' if !quoted => depth = depth.saturating_sub(1),
            ',' | ';' if !quoted && depth == 0 => {
                items.push(std::mem::take(&mut item));
                continue;
            }
            _ => {}
        }
        item.push(char);
    }
    items.push(item);
    items
}

fn mailbox(item: &str) -> Option<(Option<String>, String)> {
    let item = item.trim();
    if let Some((name, rest)) = item.rsplit_once('<') {
        let address = rest.split('>').next().unwrap_or_default().trim();
        let name = name.trim().trim_matches('"').replace("\\\"", "\"").replace("\\\\", "\\");
        return (!address.is_empty()).then(|| ((!name.is_empty()).then_some(name), address.to_owned()));
    }
    let address = item.split(['(', ' ']).next().unwrap_or_default();
    let comment = item.split_once('(').map(|(_, comment)| comment.trim_end_matches(')').to_owned());
    address.contains('@').then(|| (comment, address.to_owned()))
}

/// Takes a message apart.
pub(super) fn parse(raw: &Bytes) -> Part {
    parse_part(raw, 0..raw.len(), DEPTH)
}

fn parse_part(raw: &Bytes, whole: Range<usize>, depth: usize) -> Part {
    let octets = raw.get(whole.clone()).unwrap_or_default();
    let split = whole.start + header_length(octets);
    let (header, body) = (whole.start..split, split..whole.end);
    let header_octets = raw.get(header.clone()).unwrap_or_default();
    let content_type = field(header_octets, "Content-Type").unwrap_or_default();
    let (kind, subkind, parameters) = content_type_of(&content_type);
    let mut children = Vec::new();
    if depth > 0 && kind == "MULTIPART" {
        if let Some((_, boundary)) = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("boundary"))
        {
            for child in split_parts(raw, &body, boundary) {
                children.push(parse_part(raw, child, depth - 1));
            }
        }
    } else if depth > 0 && kind == "MESSAGE" && subkind == "RFC822" {
        children.push(parse_part(raw, body.clone(), depth - 1));
    }
    Part { header, body, kind, subkind, parameters, children }
}

fn content_type_of(value: &str) -> (String, String, Vec<(String, String)>) {
    let mut pieces = split_parameters(value).into_iter();
    let media = pieces.next().unwrap_or_default();
    let (kind, subkind) = media.split_once('/').unwrap_or(("TEXT", "PLAIN"));
    let parameters = pieces
        .filter_map(|piece| {
            let (name, value) = piece.split_once('=')?;
            Some((name.trim().to_owned(), value.trim().trim_matches('"').to_owned()))
        })
        .collect();
    (kind.trim().to_uppercase(), subkind.trim().to_uppercase(), parameters)
}

fn split_parameters(value: &str) -> Vec<String> {
    let (mut pieces, mut piece, mut quoted) = (Vec::new(), String::new(), false);
    for char in value.chars() {
        match char {
            '"' => quoted = !quoted,
            ';' if !quoted => {
                pieces.push(std::mem::take(&mut piece));
                continue;
            }
            _ => {}
        }
        piece.push(char);
    }
    pieces.push(piece);
    pieces
}

/// The parts between the boundaries, without the line end that belongs to the boundary.
fn split_parts(raw: &Bytes, body: &Range<usize>, boundary: &str) -> Vec<Range<usize>> {
    let delimiter = format!("--{boundary}");
    let (mut parts, mut start, mut at) = (Vec::new(), None, body.start);
    for line in raw.get(body.clone()).unwrap_or_default().split_inclusive(|&octet| octet == b'\n') {
        if let Some(rest) = line.strip_prefix(delimiter.as_bytes()) {
            let rest = rest.trim_ascii();
            if rest.is_empty() || rest == b"--" {
                if let Some(start) = start {
                    parts.push(start..before_line_end(raw, start, at));
                }
                start = (rest.is_empty()).then_some(at + line.len());
            }
        }
        at += line.len();
    }
    if let Some(start) = start {
        parts.push(start..body.end);
    }
    parts
}

fn before_line_end(raw: &Bytes, start: usize, end: usize) -> usize {
    let part = raw.get(start..end).unwrap_or_default();
    let part = part.strip_suffix(b"\n").unwrap_or(part);
    start + part.strip_suffix(b"\r").unwrap_or(part).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_all_their_forms() {
        let raw =
            b"Subject: x\r\nFrom: \"Liddell, Alice\" <alice@contoso.com>,\r\n bob@contoso.com (Bob)\r\n\r\n";
        assert_eq!(addresses(raw, "from"), ["alice@contoso.com", "bob@contoso.com"]);
        assert_eq!(addresses(raw, "To"), Vec::<String>::new());
    }

    #[test]
    fn a_multipart_message_is_taken_apart() {
        let raw = Bytes::from_static(
            b"Content-Type: multipart/mixed; boundary=\"x y\"\r\n\r\npre\r\n--x y\r\n\r\none\r\n--x y\r\nContent-Type: text/html\r\n\r\ntwo\r\n--x y--\r\npost",
        );
        let part = parse(&raw);
        let bodies: Vec<_> = part.children.iter().map(|child| raw.slice(child.body.clone())).collect();
        assert_eq!(bodies, [&b"one"[..], b"two"]);
        assert_eq!(part.children.last().map(|child| child.subkind.as_str()), Some("HTML"));
    }
}
