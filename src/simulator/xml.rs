//! A small tree of XML, enough for SOAP. No DTD, no external entities.

use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};

/// How deep elements may nest.
const DEPTH: usize = 100;

/// One element; names without their prefix.
#[derive(Clone, Debug, Default)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) attributes: Vec<(String, String)>,
    pub(super) children: Vec<Element>,
    pub(super) text: String,
}

impl Element {
    /// Reads a document; `None` if it is not well-formed or has a DTD.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader::from_str(text);
        let mut stack = vec![Self::default()];
        loop {
            match reader.read_event().ok()? {
                Event::Start(start) => {
                    if stack.len() > DEPTH {
                        return None;
                    }
                    stack.push(Self::open(&start)?);
                }
                Event::Empty(start) => stack.last_mut()?.children.push(Self::open(&start)?),
                Event::End(_) => {
                    let element = stack.pop()?;
                    stack.last_mut()?.children.push(element);
                }
                Event::Text(text) => stack.last_mut()?.text.push_str(&text),
                Event::CData(text) => stack.last_mut()?.text.push_str(&text),
                Event::GeneralRef(name) => {
                    let char = match name.resolve_char_ref().ok()? {
                        Some(char) => char,
                        None => match &*name {
                            "lt" => '<',
                            "gt" => '>',
                            "amp" => '&',
                            "quot" => '"',
                            "apos" => '\'',
                            _ => return None,
                        },
                    };
                    stack.last_mut()?.text.push(char);
                }
                Event::DocType(_) => return None,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        let root = stack.pop().filter(|_| stack.is_empty())?;
        root.children.into_iter().next()
    }

    fn open(start: &BytesStart<'_>) -> Option<Self> {
        let mut attributes = Vec::new();
        for attribute in start.attributes() {
            let attribute = attribute.ok()?;
            let name: &str = attribute.key.local_name().into_inner();
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?;
            attributes.push((name.to_owned(), value.into_owned()));
        }
        let name: &str = start.local_name().into_inner();
        Some(Self { name: name.to_owned(), attributes, ..Self::default() })
    }

    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The element at the end of a path of names.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// The first element of that name, at any depth.
    pub(super) fn find(&self, name: &str) -> Option<&Self> {
        self.children.iter().find_map(|child| if child.name == name { Some(child) } else { child.find(name) })
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The trimmed text at the end of a path.
    pub(super) fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path).map(|element| element.text.trim())
    }
}

/// Text as XML wants it; control characters that XML does not allow are left out.
pub(super) fn escape(text: &str) -> String {
    let allowed: String =
        text.chars().filter(|char| *char >= ' ' || matches!(char, '\t' | '\n' | '\r')).collect();
    quick_xml::escape::escape(allowed.as_str()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_becomes_a_tree() {
        let root =
            Element::parse("<a:x xmlns:a='u' k='1&amp;2'><y>a&lt;b&#x21;<![CDATA[<c>]]></y><z/></a:x>")
                .unwrap();
        assert_eq!((root.name.as_str(), root.attribute("k")), ("x", Some("1&2")));
        assert_eq!(root.text_at(&["y"]), Some("a<b!<c>"));
        assert!(root.find("z").is_some());
    }

    #[test]
    fn a_dtd_and_broken_documents_are_refused() {
        for text in ["<!DOCTYPE a><a/>", "<a>", "</a>", "<a>&unknown;</a>", "", "<a></b>"] {
            assert!(Element::parse(text).is_none(), "{text}");
        }
    }
}
