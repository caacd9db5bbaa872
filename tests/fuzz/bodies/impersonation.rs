//! The SOAP prologue (`src/ews/impersonation.rs`), against another XML parser.
//!
//! - Whatever goes upstream, a strict parser that shares no code with ours finds exactly one mailbox in its header:
//!   the one that was judged, and one that the account may act on.
//! - Every slicing gives the same request, or the one refusal that is about its pieces.
//! - The announced length is the length; a refusal's words are one printable line.

use mailkey::config::model::UserPattern;
use mailkey::ews::impersonation::{Denied, Edit, May, Prologue};
use roxmltree::{Document, Node};

use super::script::{Script, is_one_line, slices};

const SOAP: [&str; 2] =
    ["http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope"];
const TYPES: &str = "http://schemas.microsoft.com/exchange/services/2006/types";

/// The account's mailbox.
const OWN: &str = "alice@contoso.com";

/// Header blocks that choose rights or mailboxes, and are never passed on.
const POWERFUL: [&str; 4] =
    ["SerializedSecurityContext", "ManagementRole", "OpenAsAdminOrSystemService", "TokenSerialization"];

/// The body.
pub fn run(data: &[u8]) {
    let script: Script<1> = Script::read(data);
    let request = script.octets();
    let others = [UserPattern::new("bob@contoso.com"), UserPattern::new("*@shared.contoso.com")];
    let may = May { own: OWN, others: &others };
    let whole = through(&[&request], &may);
    let cut = through(&slices(&request, script.settings[0] | 0x33), &may);
    match (&whole, &cut) {
        (Ok((edit, sent)), Ok((again, sent_again))) => {
            assert_eq!((&edit.mailbox, sent), (&again.mailbox, sent_again), "the slicing shows");
        }
        (Err(why), Err(again)) if why == again => {}
        // only so many pieces are looked at; and pieces may show what is wrong before the end does not come
        (_, Err(Denied::Unreadable("the SOAP header is too long")))
        | (Err(Denied::Unreadable("the request has no SOAP body")), Err(_)) => {}
        (whole, cut) => panic!("the slicing shows: {whole:?} {cut:?}"),
    }
    match whole {
        Ok((edit, sent)) => {
            assert_eq!(edit.length(request.len() as u64), sent.len() as u64, "another length than announced");
            check(&edit.mailbox, &sent);
        }
        Err(Denied::Forbidden { why, .. }) => assert!(is_one_line(&why, 300), "{why:?}"),
        Err(Denied::Unreadable(_) | Denied::Encoding(_)) => {}
    }
}

/// What becomes of a request that comes in these pieces.
fn through(pieces: &[&[u8]], may: &May<'_>) -> Result<(Edit, Vec<u8>), Denied> {
    let mut prologue = Prologue::default();
    for (number, piece) in pieces.iter().enumerate() {
        if let Some(edit) = prologue.feed(piece, number + 1 == pieces.len(), may)? {
            let mut sent = edit.apply(&prologue.into_bytes());
            sent.extend(pieces[number + 1..].concat());
            return Ok((edit, sent));
        }
    }
    Err(Denied::Unreadable("the request has no SOAP body"))
}

/// What a strict reader makes of the request that is sent. Panics where it is not what was judged.
pub fn check(judged: &str, sent: &[u8]) {
    assert!(is_ours(judged), "judged to be allowed: {judged}");
    let Ok(text) = std::str::from_utf8(sent) else { return };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // the request as a whole, and what was read of it, ended where its body begins
    for readable in std::iter::once(text.to_owned()).chain(prologues(text)) {
        let Ok(document) = Document::parse(&readable) else { continue };
        let envelope = document.root_element();
        let is_soap = |node: &Node<'_, '_>, name: &str| {
            let tag = node.tag_name();
            tag.name() == name && tag.namespace().is_some_and(|space| SOAP.contains(&space))
        };
        assert!(is_soap(&envelope, "Envelope"), "no envelope");
        let parts: Vec<Node<'_, '_>> = envelope.children().filter(Node::is_element).collect();
        let before_body: Vec<_> = parts.iter().take_while(|part| !is_soap(part, "Body")).collect();
        assert_eq!(before_body.len(), 1, "not exactly one header before the body");
        let header = before_body[0];
        assert!(is_soap(header, "Header"), "no header");
        let named: Vec<Node<'_, '_>> = header
            .descendants()
            .filter(|node| node.tag_name().name().eq_ignore_ascii_case("ExchangeImpersonation"))
            .collect();
        assert_eq!(named.len(), 1, "not exactly one impersonation");
        assert_eq!(named[0].parent(), Some(*header));
        assert_eq!(named[0].tag_name().namespace(), Some(TYPES));
        let mailboxes: Vec<&str> = named[0]
            .descendants()
            .filter(|node| node.is_element() && !node.children().any(|child| child.is_element()))
            .map(|node| node.text().unwrap_or_default().trim())
            .collect();
        assert_eq!(mailboxes, [judged], "another mailbox than judged");
        for block in header.descendants().filter(Node::is_element) {
            assert!(!POWERFUL.contains(&block.tag_name().name()), "{block:?} is passed on");
        }
    }
}

/// The beginnings of this text that end where a `Body` might begin, with the envelope closed behind them.
fn prologues(text: &str) -> Vec<String> {
    let Some(envelope) = text.find(":Envelope").map(|at| (text[..at].rfind('<').unwrap_or(0) + 1, at)) else {
        return Vec::new();
    };
    let prefix = &text[envelope.0..envelope.1];
    let starts = text.match_indices("Body").filter_map(|(at, _)| text[..at].rfind('<'));
    starts.take(8).map(|start| format!("{}<{prefix}:Body/></{prefix}:Envelope>", &text[..start])).collect()
}

/// Whether the account may act on this mailbox, put down once more.
fn is_ours(mailbox: &str) -> bool {
    let mailbox = mailbox.to_ascii_lowercase();
    let shared = mailbox.strip_suffix("@shared.contoso.com").is_some_and(|local| !local.contains('@'));
    [OWN, "bob@contoso.com"].contains(&mailbox.as_str()) || shared
}
