//! The SOAP prologue of a request whose token opens every mailbox of the tenant: read, held to rules, and given
//! the one mailbox that it may act on.
//!
//! ```text
//! <s:Envelope …>                                    as it came
//!   <s:Header>                                      as it came, or put in
//!     <x:ExchangeImpersonation …>                   ours, always; the mail client's own is taken out
//!     <t:RequestServerVersion …/>                   as it came, if it is on the list
//!   </s:Header>
//!   <s:Body …                                       from here on nothing is read
//! ```
//!
//! What cannot be read in one way only is refused: DTDs, processing instructions, CDATA, other encodings than
//! UTF-8, header blocks that are not known to be harmless. A mailbox that the account may not act on never goes
//! upstream.
//!
//! Source: Microsoft's pages "Impersonation and EWS in Exchange" and "Authenticate an EWS application by using
//! OAuth"; MS-OXWSCORE for the header's schema.

use std::ops::Range;

use quick_xml::NsReader;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, QName, ResolveResult};

use crate::config::model::UserPattern;

/// Longest prologue, in octets. Honest ones have less than 2 KiB.
pub const MAX_PROLOGUE: usize = 256 << 10;

/// How often a prologue is looked over: a stranger decides in how many pieces it comes.
const MAX_LOOKS: u32 = 64;

/// How deep header blocks may nest.
const MAX_DEPTH: usize = 16;

const SOAP11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
const SOAP12: &str = "http://www.w3.org/2003/05/soap-envelope";
const TYPES: &str = "http://schemas.microsoft.com/exchange/services/2006/types";

/// What must not stand anywhere but in the one element that is read.
const NAME: &str = "ExchangeImpersonation";

/// Header blocks that choose no mailbox and no rights: Exchange's own, and those of WS-Addressing.
const HARMLESS: [&str; 10] = [
    "RequestServerVersion",
    "ServerVersionInfo",
    "TimeZoneContext",
    "MailboxCulture",
    "DateTimePrecision",
    "Action",
    "MessageID",
    "To",
    "ReplyTo",
    "From",
];

/// Which mailboxes an account may act on.
#[derive(Clone, Copy, Debug)]
pub struct May<'a> {
    /// The account's own, and the one that is put in where the mail client names none.
    pub own: &'a str,
    /// `ews-mailboxes`.
    pub others: &'a [UserPattern],
}

impl May<'_> {
    fn act_on(&self, mailbox: &str) -> bool {
        is_address(mailbox)
            && (mailbox.eq_ignore_ascii_case(self.own)
                || self.others.iter().any(|pattern| pattern.matches(mailbox)))
    }
}

/// Why a request is not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is no SOAP request, or it can be read in more than one way.
    Unreadable(&'static str),
    /// Its encoding is not read here.
    Encoding(&'static str),
    /// It asks for what the account may not do; `soap12` is how the answer is to be written.
    Forbidden {
        /// In words of our own.
        why: String,
        /// Whether the request is SOAP 1.2.
        soap12: bool,
    },
}

/// What is changed in a prologue; everything else goes upstream as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Who is acted for.
    pub mailbox: String,
    /// Ranges of the original and what stands there instead: in order, apart from each other.
    splices: Vec<(Range<usize>, String)>,
}

impl Edit {
    /// The original, or as much of it as is at hand, as it is to be sent. `original` holds the whole prologue.
    pub fn apply(&self, original: &[u8]) -> Vec<u8> {
        let mut edited = Vec::with_capacity(original.len() + 512);
        let mut from = 0;
        for (range, text) in &self.splices {
            edited.extend_from_slice(original.get(from..range.start).unwrap_or_default());
            edited.extend_from_slice(text.as_bytes());
            from = range.end;
        }
        edited.extend_from_slice(original.get(from..).unwrap_or_default());
        edited
    }

    /// The request's length after the change.
    pub fn length(&self, original: u64) -> u64 {
        self.splices.iter().fold(original, |length, (range, text)| {
            (length + text.len() as u64).saturating_sub(range.len() as u64)
        })
    }
}

/// A prologue that arrives in pieces.
#[derive(Debug, Default)]
pub struct Prologue {
    bytes: Vec<u8>,
    /// `Body` was seen, wherever it stands: looking pays from here on.
    body_seen: bool,
    looks: u32,
}

impl Prologue {
    /// All that came.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Takes the next piece; `ended`: there is no more. `Ok(None)`: more is needed.
    ///
    /// # Errors
    /// The request is not to be sent.
    pub fn feed(&mut self, piece: &[u8], ended: bool, may: &May<'_>) -> Result<Option<Edit>, Denied> {
        let from = self.bytes.len().saturating_sub(b"Body".len());
        self.bytes.extend_from_slice(piece);
        let fresh = self.bytes.get(from..).unwrap_or_default();
        self.body_seen |= memchr::memmem::find(fresh, b"Body").is_some();
        let worth_it = ended
            || self.bytes.len() > MAX_PROLOGUE
            || (self.body_seen && memchr::memchr(b'>', piece).is_some());
        if !worth_it {
            return Ok(None);
        }
        self.looks += 1;
        let head = self.bytes.get(..MAX_PROLOGUE).unwrap_or(&self.bytes);
        if let Some(edit) = look(head, may)? {
            return Ok(Some(edit));
        }
        if ended {
            return Err(Denied::Unreadable("the request has no SOAP body"));
        }
        if self.bytes.len() > MAX_PROLOGUE || self.looks >= MAX_LOOKS {
            return Err(Denied::Unreadable("the SOAP header is too long"));
        }
        Ok(None)
    }
}

/// Whether `Content-Type` and `Content-Encoding` leave the prologue to be read as UTF-8 XML.
///
/// # Errors
/// They do not.
pub fn is_plain_soap(headers: &http::HeaderMap) -> Result<(), Denied> {
    use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
    let encoded = |value: &http::HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).iter().any(encoded) {
        return Err(Denied::Encoding("the request is compressed"));
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(one), None) = (types.next(), types.next()) else {
        return Err(Denied::Encoding("the request does not say once that it is XML"));
    };
    let text = one.to_str().unwrap_or_default().to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    if !matches!(parts.next(), Some("text/xml" | "application/soap+xml" | "application/xml")) {
        return Err(Denied::Encoding("the request is no XML"));
    }
    for parameter in parts {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        if name.trim() == "charset" && !is_utf8(value.trim().trim_matches(['"', '\''])) {
            return Err(Denied::Encoding("the request is in another encoding than UTF-8"));
        }
    }
    Ok(())
}

/// Whether this can be the address of one mailbox, and nothing else wherever it is written.
pub fn is_address(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let atext = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
    let host = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    !local.is_empty()
        && text.len() <= 320
        && local.bytes().all(atext)
        && domain.contains(|c: char| c.is_ascii_alphanumeric())
        && domain.bytes().all(host)
}

fn is_utf8(name: &str) -> bool {
    ["utf-8", "utf8", "us-ascii"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Looks over what came so far; `None`: its `Body` has not begun.
fn look(bytes: &[u8], may: &May<'_>) -> Result<Option<Edit>, Denied> {
    if [&b"\xfe\xff"[..], b"\xff\xfe", b"<\0", b"\0<", b"\0\0"].iter().any(|start| bytes.starts_with(start)) {
        return Err(Denied::Encoding("the request is in another encoding than UTF-8"));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // Cut within a character, or wrong behind the prologue: the part before counts.
        Err(error) => bytes
            .get(..error.valid_up_to())
            .and_then(|valid| std::str::from_utf8(valid).ok())
            .unwrap_or_default(),
    };
    let (start, text) = match text.strip_prefix('\u{feff}') {
        Some(rest) => ('\u{feff}'.len_utf8(), rest),
        None => (0, text),
    };
    if text.starts_with('\u{feff}') {
        return Err(Denied::Unreadable("two byte order marks"));
    }
    Scan::new(text, may).run().map(|edit| {
        edit.map(|mut edit| {
            for (range, _) in &mut edit.splices {
                *range = range.start + start..range.end + start;
            }
            edit
        })
    })
}

/// One pass over the text of a prologue.
struct Scan<'t> {
    reader: NsReader<&'t [u8]>,
    text: &'t str,
    may: &'t May<'t>,
    soap: Option<&'static str>,
    header: Header,
    /// The mail client's own: where it stands and whom it names.
    theirs: Option<(Range<usize>, Kind, String)>,
}

/// The `Header`, as far as it was read.
enum Header {
    None,
    /// Behind its start tag.
    Open(usize),
    /// `<s:Header/>`: where it ends, and its name.
    Empty(usize, String),
}

/// How the mail client names a mailbox. A user principal name need not be the address that it looks like, so it is
/// sent on as an address.
#[derive(Clone, Copy)]
enum Kind {
    Primary,
    Any,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Primary => "PrimarySmtpAddress",
            Self::Any => "SmtpAddress",
        }
    }
}

/// What stands next: an element with its local name, or what else counts.
enum Next {
    Open {
        local: String,
        space: Space,
        empty: bool,
        at: usize,
        name: String,
    },
    Close,
    Text(bool),
    /// The text is over, or broken here: more may mend it.
    Over,
}

/// The namespace of an element, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Soap11,
    Soap12,
    Types,
    Other,
}

impl<'t> Scan<'t> {
    fn new(text: &'t str, may: &'t May<'t>) -> Self {
        let mut reader = NsReader::from_str(text);
        reader.config_mut().check_comments = true;
        Self { reader, text, may, soap: None, header: Header::None, theirs: None }
    }

    fn run(mut self) -> Result<Option<Edit>, Denied> {
        loop {
            match self.next()? {
                Next::Over => return Ok(None),
                Next::Text(blank) if blank => {}
                Next::Open { local, space, empty: false, .. } if local == "Envelope" => {
                    self.soap = Some(match space {
                        Space::Soap11 => SOAP11,
                        Space::Soap12 => SOAP12,
                        Space::Types | Space::Other => return Err(unreadable()),
                    });
                    return self.envelope();
                }
                Next::Text(_) | Next::Open { .. } | Next::Close => return Err(unreadable()),
            }
        }
    }

    fn envelope(mut self) -> Result<Option<Edit>, Denied> {
        loop {
            match self.next()? {
                Next::Over => return Ok(None),
                Next::Text(true) => {}
                Next::Open { local, space, empty, at, name } if self.is_soap(space) => {
                    match (local.as_str(), &self.header) {
                        ("Body", _) => return self.edit(at).map(Some),
                        ("Header", Header::None) => {
                            let end = self.position();
                            if empty {
                                self.header = Header::Empty(end, name);
                            } else {
                                self.header = Header::Open(end);
                                if !self.blocks()? {
                                    return Ok(None);
                                }
                            }
                        }
                        _ => return Err(unreadable()),
                    }
                }
                Next::Text(false) | Next::Open { .. } | Next::Close => return Err(unreadable()),
            }
        }
    }

    /// The header blocks up to `</Header>`; `false`: more is needed.
    fn blocks(&mut self) -> Result<bool, Denied> {
        loop {
            match self.next()? {
                Next::Over => return Ok(false),
                Next::Text(true) => {}
                Next::Close => return Ok(true),
                Next::Text(false) => return Err(unreadable()),
                Next::Open { local, space, empty, at, .. } => {
                    if local == NAME && space == Space::Types && !empty && self.theirs.is_none() {
                        let Some((kind, mailbox)) = self.connecting_sid()? else { return Ok(false) };
                        self.theirs = Some((at..self.position(), kind, mailbox));
                    } else if HARMLESS.contains(&local.as_str()) {
                        if !empty && !self.skip()? {
                            return Ok(false);
                        }
                    } else {
                        return Err(self.forbidden(if local.eq_ignore_ascii_case(NAME) {
                            "the request names mailboxes in a way that nobody can judge".to_owned()
                        } else {
                            format!(
                                "the SOAP header `{}` is not passed on with a token of the application",
                                crate::explain::one_line(&local, 60)
                            )
                        }));
                    }
                }
            }
        }
    }

    /// What stands in `ExchangeImpersonation`: exactly one `ConnectingSID` with exactly one address.
    fn connecting_sid(&mut self) -> Result<Option<(Kind, String)>, Denied> {
        let Some(sid) = self.only_child()? else { return Ok(None) };
        if sid != "ConnectingSID" {
            return Err(self.ambiguous());
        }
        let Some(who) = self.only_child()? else { return Ok(None) };
        let kind = match who.as_str() {
            "PrimarySmtpAddress" => Kind::Primary,
            "SmtpAddress" | "PrincipalName" => Kind::Any,
            _ => return Err(self.ambiguous()),
        };
        let from = self.position();
        let mailbox = match self.next()? {
            Next::Over => return Ok(None),
            Next::Text(_) => {
                let to = self.position();
                self.text.get(from..to).unwrap_or_default().trim().to_owned()
            }
            Next::Open { .. } | Next::Close => return Err(self.ambiguous()),
        };
        // Three ends: the address', the SID's and the header's.
        for innermost in [true, false, false] {
            loop {
                match self.next()? {
                    Next::Over => return Ok(None),
                    Next::Close => break,
                    Next::Text(true) if !innermost => {}
                    Next::Text(_) | Next::Open { .. } => return Err(self.ambiguous()),
                }
            }
        }
        Ok(Some((kind, mailbox)))
    }

    fn only_child(&mut self) -> Result<Option<String>, Denied> {
        loop {
            match self.next()? {
                Next::Over => return Ok(None),
                Next::Text(true) => {}
                Next::Open { local, space: Space::Types, empty: false, .. } => return Ok(Some(local)),
                Next::Text(false) | Next::Open { .. } | Next::Close => return Err(self.ambiguous()),
            }
        }
    }

    /// Over the rest of a harmless block; `false`: more is needed.
    fn skip(&mut self) -> Result<bool, Denied> {
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Next::Over => return Ok(false),
                Next::Text(_) => {}
                Next::Close => depth -= 1,
                Next::Open { empty, .. } => {
                    depth += usize::from(!empty);
                    if depth > MAX_DEPTH {
                        return Err(unreadable());
                    }
                }
            }
        }
        Ok(true)
    }

    /// `Body` begins at `body`: what is to be changed before it.
    fn edit(self, body: usize) -> Result<Edit, Denied> {
        let prologue = self.text.get(..body).unwrap_or_default();
        let inside = self.theirs.as_ref().map(|(range, ..)| range.clone()).unwrap_or_default();
        let lower = prologue.to_ascii_lowercase();
        let name = NAME.to_ascii_lowercase();
        if lower.match_indices(name.as_str()).any(|(at, _)| !inside.contains(&at)) {
            return Err(self.ambiguous());
        }
        let (kind, mailbox) = match &self.theirs {
            None => (Kind::Primary, self.may.own.to_owned()),
            Some((_, kind, mailbox)) => (*kind, mailbox.clone()),
        };
        if !self.may.act_on(&mailbox) {
            return Err(self.forbidden(format!(
                "the account may not act on the mailbox `{}`",
                crate::explain::one_line(&mailbox, 100)
            )));
        }
        let soap = self.soap.unwrap_or(SOAP11);
        let ours = ours(kind, &mailbox);
        let mut splices = match &self.header {
            Header::None => {
                vec![(body..body, format!("<h:Header xmlns:h=\"{soap}\">{ours}</h:Header>"))]
            }
            Header::Open(at) => vec![(*at..*at, ours)],
            Header::Empty(end, name) => {
                let slash = end.saturating_sub(2);
                if self.text.get(slash..*end) != Some("/>") {
                    return Err(unreadable());
                }
                vec![(slash..*end, format!(">{ours}</{name}>"))]
            }
        };
        splices.extend(self.theirs.map(|(range, ..)| (range, String::new())));
        Ok(Edit { mailbox, splices })
    }

    fn next(&mut self) -> Result<Next, Denied> {
        loop {
            let at = self.position();
            let Ok(event) = self.reader.read_event() else { return Ok(Next::Over) };
            return Ok(match event {
                Event::Start(start) => self.opened(&start, false, at)?,
                Event::Empty(start) => self.opened(&start, true, at)?,
                Event::End(_) => Next::Close,
                Event::Text(text) => {
                    // The text may go on behind what came so far.
                    if self.position() >= self.text.len() {
                        return Ok(Next::Over);
                    }
                    Next::Text(text.trim_matches([' ', '\t', '\r', '\n']).is_empty())
                }
                Event::GeneralRef(_) => Next::Text(false),
                Event::Comment(_) => continue,
                Event::Decl(decl) => {
                    let version = decl.version().is_ok_and(|version| version == "1.0");
                    let encoding = decl.encoding().is_none_or(|name| name.is_ok_and(|name| is_utf8(&name)));
                    if !encoding {
                        return Err(Denied::Encoding("the request is in another encoding than UTF-8"));
                    }
                    if !version || at != 0 {
                        return Err(unreadable());
                    }
                    continue;
                }
                Event::CData(_) | Event::PI(_) => return Err(unreadable()),
                Event::DocType(_) => return Err(Denied::Unreadable("the request has a DTD")),
                Event::Eof => Next::Over,
            });
        }
    }

    fn opened(&self, start: &BytesStart<'_>, empty: bool, at: usize) -> Result<Next, Denied> {
        if start.attributes().any(|attribute| attribute.is_err()) {
            return Err(unreadable());
        }
        let name = start.name();
        let space = match self.reader.resolver().resolve_element(QName(name.as_ref())).0 {
            ResolveResult::Bound(Namespace(SOAP11)) => Space::Soap11,
            ResolveResult::Bound(Namespace(SOAP12)) => Space::Soap12,
            ResolveResult::Bound(Namespace(TYPES)) => Space::Types,
            ResolveResult::Bound(_) | ResolveResult::Unbound => Space::Other,
            ResolveResult::Unknown(_) => return Err(unreadable()),
        };
        let local = name.local_name().as_ref().to_owned();
        Ok(Next::Open { local, space, empty, at, name: name.as_ref().to_owned() })
    }

    fn position(&self) -> usize {
        usize::try_from(self.reader.buffer_position()).unwrap_or(usize::MAX)
    }

    fn is_soap(&self, space: Space) -> bool {
        match self.soap {
            Some(SOAP12) => space == Space::Soap12,
            Some(_) => space == Space::Soap11,
            None => false,
        }
    }

    fn forbidden(&self, why: String) -> Denied {
        Denied::Forbidden { why, soap12: self.soap == Some(SOAP12) }
    }

    fn ambiguous(&self) -> Denied {
        self.forbidden("the request names mailboxes in a way that nobody can judge".to_owned())
    }
}

fn unreadable() -> Denied {
    Denied::Unreadable("the request is no SOAP request that can be read in one way only")
}

/// The header block. Its prefix is its own, so it fits anywhere.
fn ours(kind: Kind, mailbox: &str) -> String {
    let name = kind.name();
    let mailbox = quick_xml::escape::escape(mailbox);
    format!(
        "<i:{NAME} xmlns:i=\"{TYPES}\"><i:ConnectingSID><i:{name}>{mailbox}</i:{name}></i:ConnectingSID></i:{NAME}>"
    )
}
