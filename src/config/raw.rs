//! What the file says: a tree of scalars, lists and maps in which every key and value knows its place, and
//! the lines of the file with secrets masked.
//!
//! The YAML library stops at the first mistake and prints neighbouring lines. So it is asked for the shape
//! only; all else is judged on this tree, and lines are shown by [`Source::excerpt`] alone.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_yaml::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_yaml::{Location, Spanned};
use zeroize::Zeroizing;

use super::problem::Excerpt;
use crate::secret::REDACTED;

/// The longest file that is read, in octets.
pub(super) const MAX_FILE: usize = 1024 * 1024;

/// How deep lists and maps may stand in each other. The deepest that means anything is 5.
const MAX_DEPTH: usize = 32;

/// How many scalars, lists and maps a file may hold, aliases written out.
const MAX_NODES: usize = 100_000;

/// A line is shown up to this many characters.
const MAX_SHOWN: usize = 160;

/// Whether a value of a key may be shown; with an empty value: whether anything below the key may be.
pub(super) type Shows = fn(key: &str, value: &str) -> bool;

/// A place in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// From 1; 0: not in the file.
    pub(super) line: usize,
    /// In characters, from 1.
    pub(super) column: usize,
    /// In characters, at least 1.
    pub(super) length: usize,
}

/// A key or value with its place.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) kind: Kind,
    /// Where its text stands in the file, in octets.
    range: Range<usize>,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Nothing, or `~`.
    Null,
    /// A text, number or truth value, as it was written; quotes and escapes resolved.
    Scalar(Zeroizing<String>),
    /// A list.
    List(Vec<Node>),
    /// A map, in the file's order, duplicates included.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The text of a scalar.
    pub(super) fn scalar(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(text) => Some(text),
            Kind::Null | Kind::List(_) | Kind::Map(_) => None,
        }
    }
}

/// The file's text, and which parts of it may be shown.
pub(super) struct Source<'a> {
    text: &'a str,
    /// What may be shown of each scalar, by its range; `None` where the file is no YAML.
    scalars: Option<Vec<(Range<usize>, bool)>>,
}

/// The text is no YAML.
pub(super) struct NotYaml {
    pub(super) at: Place,
    pub(super) what: String,
}

impl<'a> Source<'a> {
    /// Reads the text.
    pub(super) fn read(text: &'a str, shows: Shows) -> (Self, Result<Node, NotYaml>) {
        match tree(text) {
            Ok(root) => {
                let mut scalars = Vec::new();
                collect(&root, Below::Top, shows, &mut scalars);
                scalars.sort_by_key(|(range, shown)| (range.start, *shown));
                (Self { text, scalars: Some(scalars) }, Ok(root))
            }
            Err(error) => (Self { text, scalars: None }, Err(error)),
        }
    }

    /// The line of a place, masked: of values, only those that are known to be harmless; no comments.
    pub(super) fn excerpt(&self, at: Place, shows: Shows) -> Option<Excerpt> {
        let line = self.text.split('\n').nth(at.line.checked_sub(1)?)?;
        let start = line.as_ptr() as usize - self.text.as_ptr() as usize;
        let masked = match &self.scalars {
            Some(scalars) => mask(line, start, scalars),
            None => mask_blindly(line, shows),
        };
        // Masking moves what stands behind it, so the mark is looked up by the column it came from.
        let column = at.column.saturating_sub(1);
        let indent = masked.iter().position(|(_, from)| *from >= column).unwrap_or(masked.len());
        let end = column + at.length.max(1);
        let marks = masked.iter().filter(|(_, from)| (column..end).contains(from)).count().max(1);
        let mut text: String = masked.iter().map(|(c, _)| *c).take(MAX_SHOWN).collect();
        if masked.len() > MAX_SHOWN {
            text.push('…');
        }
        if text.trim().is_empty() || indent >= MAX_SHOWN {
            return None;
        }
        let text = text.trim_end().to_owned();
        let marks = marks.min(text.chars().count().saturating_sub(indent)).max(1);
        Some(Excerpt { text, indent, marks })
    }
}

/// Characters of a line with the column each came from; what may be secret is replaced.
fn mask(line: &str, start: usize, scalars: &[(Range<usize>, bool)]) -> Vec<(char, usize)> {
    let mut shown = Vec::new();
    let mut masked: Option<Range<usize>> = None;
    let mut previous = ' ';
    for (column, (offset, c)) in line.char_indices().enumerate() {
        let position = start + offset;
        match scalars.iter().rev().find(|(range, _)| range.contains(&position)) {
            Some((_, true)) => shown.push((plain(c), column)),
            Some((range, false)) => {
                if masked.as_ref() == Some(range) {
                } else if c.is_whitespace() {
                    shown.push((plain(c), column));
                } else {
                    masked = Some(range.clone());
                    shown.extend(REDACTED.chars().map(|c| (c, column)));
                }
            }
            None if c == '#' && previous.is_whitespace() => break,
            None if c.is_whitespace() || "-:?,[]{}|>+'\"".contains(c) => shown.push((plain(c), column)),
            None => {}
        }
        previous = c;
    }
    shown
}

/// The same for a file that could not be read: no more than a key, and a value that is known to be harmless.
fn mask_blindly(line: &str, shows: Shows) -> Vec<(char, usize)> {
    let with_columns = |text: &str| text.chars().map(plain).enumerate().map(|(i, c)| (c, i)).collect();
    let Some((key, value)) = line.split_once(':') else {
        let indent = line.chars().take_while(|c| c.is_whitespace() || *c == '-').collect::<String>();
        return if indent.len() == line.len() {
            with_columns(line)
        } else {
            with_columns(&format!("{indent}{REDACTED}"))
        };
    };
    let name = key.trim_matches([' ', '\t', '-', '"', '\'']);
    let harmless = !value.contains([':', '{', '&', '*', '@', '#', '$']);
    if harmless && shows(name, value.trim()) {
        return with_columns(line);
    }
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
        return with_columns(&format!("{key}: {REDACTED}"));
    }
    with_columns(REDACTED)
}

/// Nothing in a terminal or a log may be moved by what stands in a file.
fn plain(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '?',
        c => c,
    }
}

/// What a node stands below.
#[derive(Clone, Copy)]
enum Below<'n> {
    /// Nothing.
    Top,
    /// This key, and only keys that may be shown above it.
    Key(&'n str),
    /// A key whose values are hidden, or may be.
    Hidden,
}

fn collect<'n>(node: &'n Node, below: Below<'n>, shows: Shows, into: &mut Vec<(Range<usize>, bool)>) {
    match &node.kind {
        Kind::Null => {}
        Kind::Scalar(text) => {
            let open = matches!(below, Below::Key(key) if shows(key, text));
            into.push((node.range.clone(), open));
        }
        Kind::List(items) => items.iter().for_each(|item| collect(item, below, shows, into)),
        Kind::Map(entries) => {
            let open = !matches!(below, Below::Hidden);
            for (key, value) in entries {
                let name = key.scalar().filter(|_| open);
                into.push((key.range.clone(), name.is_some_and(is_word)));
                let below = match name {
                    Some(name) if shows(name, "") => Below::Key(name),
                    Some(_) | None => Below::Hidden,
                };
                collect(value, below, shows, into);
            }
        }
    }
}

/// Whether a text can be a key, mistyped or not. `client-secret:hunter2`, without the blank, is none.
pub(super) fn is_word(text: &str) -> bool {
    text.len() <= 40 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn tree(text: &str) -> Result<Node, NotYaml> {
    // A message of the library may quote the file; only its place is used.
    let shape: Spanned<Shape> = serde_yaml::from_str_with_options(text, options()).map_err(|error| {
        let error = error.without_snippet();
        let at = error.location().map(|location| place(&location)).unwrap_or_default();
        NotYaml { at: Place { length: 1, ..at }, what: wording(error).to_owned() }
    })?;
    Ok(node(text, shape))
}

fn options() -> serde_yaml::Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_aliases: 100,
            max_anchors: 100,
            max_documents: 1,
            max_total_scalar_bytes: MAX_FILE,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: 8,
        },
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
    }
}

/// Our own words for what the library found, so that nothing of the file can stand in them.
fn wording(error: &serde_yaml::Error) -> &'static str {
    use serde_yaml::Error;
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list is long and grows; all others read alike")]
    match error {
        Error::Eof { .. } => "the file is empty",
        Error::MultipleDocuments { .. } => "the file holds more than one YAML document (`---`)",
        Error::UnknownAnchor { .. } => "`*` starts a reference to an anchor, and there is no such anchor",
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::Budget { .. } => {
            "the file is nested too deeply, or too large with its references written out"
        }
        Error::UnsupportedTag { .. } => "`!` starts a YAML tag, and no tag is known here",
        _ => "this is not valid YAML",
    }
}

fn place(location: &Location) -> Place {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    Place {
        line: number(location.line()),
        column: number(location.column()),
        length: number(location.span().len()).max(1),
    }
}

fn range(text: &str, location: &Location) -> Range<usize> {
    let span = location.span();
    let (Some(start), Some(length)) = (span.byte_offset(), span.byte_len()) else { return 0..0 };
    let start = usize::try_from(start).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(text.len());
    start..end
}

fn node(text: &str, shape: Spanned<Shape>) -> Node {
    let defined = range(text, &shape.defined);
    let kind = match shape.value {
        Shape::Null => Kind::Null,
        Shape::Text(text) => Kind::Scalar(text),
        // `1.20` must not turn into `1.2`: what was written counts.
        Shape::Plain(value) => Kind::Scalar(
            text.get(defined.clone())
                .map(str::trim)
                .filter(|written| !written.is_empty())
                .map_or(value, |written| Zeroizing::new(written.to_owned())),
        ),
        Shape::List(items) => Kind::List(items.into_iter().map(|item| node(text, item)).collect()),
        Shape::Map(entries) => {
            Kind::Map(entries.into_iter().map(|(key, value)| (node(text, key), node(text, value))).collect())
        }
    };
    Node { at: place(&shape.referenced), kind, range: defined }
}

/// As the YAML library hands it over.
enum Shape {
    Null,
    Text(Zeroizing<String>),
    Plain(Zeroizing<String>),
    List(Vec<Spanned<Shape>>),
    Map(Vec<(Spanned<Shape>, Spanned<Shape>)>),
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl ShapeVisitor {
    fn plain(value: impl fmt::Display) -> Shape {
        Shape::Plain(Zeroizing::new(value.to_string()))
    }
}

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Shape, E> {
        Ok(Self::plain(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Shape, E> {
        Ok(Self::plain(value))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Shape, E> {
        Ok(Self::plain(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Shape, E> {
        Ok(Self::plain(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Shape, E> {
        Ok(Self::plain(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Shape, E> {
        Ok(Self::plain(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Shape, E> {
        Ok(Shape::Text(Zeroizing::new(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Shape, E> {
        Ok(Shape::Text(Zeroizing::new(text)))
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Shape::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Shape, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Shape::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harmless(key: &str, value: &str) -> bool {
        matches!(key, "open" | "list") && !value.contains('@') || key == "section" && value.is_empty()
    }

    fn shown(text: &str, line: usize, column: usize) -> String {
        let (source, _) = Source::read(text, harmless);
        let at = Place { line, column, length: 1 };
        source.excerpt(at, harmless).map(|excerpt| excerpt.text).unwrap_or_default()
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let (_, root) = Source::read("section:\n  open: 1.20\n  list: [a, 'b']\n", harmless);
        let Ok(Node { kind: Kind::Map(root), .. }) = root else { panic!("not a map") };
        let (key, value) = &root[0];
        assert_eq!((key.at.line, key.at.column, key.at.length, key.scalar()), (1, 1, 7, Some("section")));
        let Kind::Map(section) = &value.kind else { panic!("not a map") };
        assert_eq!((section[0].1.at.line, section[0].1.at.column), (2, 9));
        assert_eq!(section[0].1.scalar(), Some("1.20"), "as written, not as a number");
        let Kind::List(list) = &section[1].1.kind else { panic!("not a list") };
        assert_eq!((list[1].at.line, list[1].at.column, list[1].scalar()), (3, 13, Some("b")));
    }

    #[test]
    fn only_values_of_harmless_keys_are_shown() {
        for (text, line, masked) in [
            ("open: a # hunter2", 1, "open: a"),
            ("secret: hunter2", 1, "secret: [redacted]"),
            ("secret: |\n  hunter2\n  hunter3\nopen: a", 3, "  [redacted]"),
            ("section: {secret: 'hunter2', open: b}", 1, "section: {secret: [redacted], open: b}"),
            ("secret: {open: hunter2}", 1, "secret: {[redacted]: [redacted]}"),
            ("secret: [hunter2, open]", 1, "secret: [[redacted], [redacted]]"),
            ("open: https://alice:hunter2@example.com/", 1, "open: [redacted]"),
            ("open: &a x\nsecret: *a", 2, "secret: "),
            ("section: secret:hunter2", 1, "section: [redacted]"),
            ("{secret:hunter2, open: a}", 1, "{[redacted], open: a}"),
            ("hunter2", 1, "[redacted]"),
            ("- hunter2", 1, "- [redacted]"),
        ] {
            assert_eq!(shown(text, line, 1), masked.trim_end(), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_no_yaml_shows_even_less() {
        for (text, masked) in [
            ("secret: 'hunter2", "secret: [redacted]"),
            ("secret: [hunter2", "secret: [redacted]"),
            ("[hunter2", "[redacted]"),
            ("  - [hunter2", "  - [redacted]"),
            ("open: [a", "open: [a"),
            ("open: {secret: hunter2", "open: [redacted]"),
            ("HUNTER2: [", "[redacted]"),
        ] {
            assert!(Source::read(text, harmless).1.is_err(), "{text}");
            assert_eq!(shown(text, 1, 1), masked, "{text}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let levels = (1..10).map(|level| {
            let before = format!("*a{}, ", level - 1).repeat(10);
            format!("a{level}: &a{level} [{before}]\n")
        });
        let first = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        let bomb = std::iter::once(first).chain(levels).collect::<Vec<_>>().concat();
        for text in [bomb, "[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
            assert!(Source::read(&text, harmless).1.is_err());
        }
    }
}
