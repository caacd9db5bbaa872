//! Messages as EWS shows them and as EWS makes them.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;

use super::{
    mailbox::Message,
    message::{self, Part},
    random, time,
    xml::{Element, escape},
};

/// A stretch of an answer: text, or octets that are encoded in base64 while they are sent.
#[derive(Debug)]
pub(super) enum Stretch {
    Text(String),
    Base64(Bytes),
}

/// How much of an item is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) mime: bool,
    pub(super) body: bool,
    /// MAPI's article number and size, which gateways to IMAP ask for.
    pub(super) number: bool,
}

impl Shape {
    /// `ItemShape` of a request. A search shows no bodies.
    pub(super) fn read(request: &Element, search: bool) -> Self {
        let shape = request.child("ItemShape");
        let asked = |uri: &str| {
            let fields = shape.and_then(|shape| shape.child("AdditionalProperties"));
            fields.is_some_and(|fields| {
                fields.children.iter().any(|field| field.attribute("FieldURI") == Some(uri))
            })
        };
        let included = shape.and_then(|shape| shape.text_at(&["IncludeMimeContent"])) == Some("true");
        let id_only = shape.and_then(|shape| shape.text_at(&["BaseShape"])) == Some("IdOnly");
        let attachments = asked("item:Attachments") || asked("item:Body") || asked("item:TextBody");
        Self {
            mime: !search && (included || asked("item:MimeContent")),
            body: !search && (!id_only || attachments),
            number: shape.is_some_and(|shape| {
                shape.child("AdditionalProperties").is_some_and(|fields| {
                    fields.children.iter().any(|field| field.attribute("PropertyTag") == Some("0xe23"))
                })
            }),
        }
    }
}

/// The id of an item, a folder or an attachment: opaque to everybody else.
pub(super) fn encode_id(kind: char, mailbox: &str, parts: &[u64]) -> String {
    let parts: Vec<String> = parts.iter().map(u64::to_string).collect();
    BASE64_STANDARD.encode(format!("AAMk|{kind}|{mailbox}|{}", parts.join("|")))
}

/// What an id names: mailbox and numbers.
pub(super) fn decode_id(kind: char, id: &str) -> Option<(String, Vec<u64>)> {
    let text = String::from_utf8(BASE64_STANDARD.decode(id).ok()?).ok()?;
    let mut words = text.split('|');
    if words.next()? != "AAMk" || words.next()? != kind.to_string() {
        return None;
    }
    let mailbox = words.next()?.to_owned();
    Some((mailbox, words.map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>()?))
}

/// `<t:ItemId …/>`
pub(super) fn item_id(mailbox: &str, message: &Message) -> String {
    let key = u64::from(message.flags.contains("\\Seen"));
    format!(
        "<t:ItemId Id=\"{}\" ChangeKey=\"{}\"/>",
        encode_id('I', mailbox, &[message.id]),
        BASE64_STANDARD.encode(format!("CQAAABYAAA{}{key}", message.id))
    )
}

/// A whole `<t:Message>`.
pub(super) fn show(mailbox: &str, folder: u32, message: &Message, shape: Shape) -> Vec<Stretch> {
    let header = message.raw.get(..message::header_length(&message.raw)).unwrap_or_default();
    let field = |name: &str| message::field(header, name).unwrap_or_default();
    let mut out = vec![Stretch::Text("<t:Message>".to_owned())];
    if shape.mime {
        out.push(Stretch::Text("<t:MimeContent CharacterSet=\"UTF-8\">".to_owned()));
        out.push(Stretch::Base64(message.raw.clone()));
        out.push(Stretch::Text("</t:MimeContent>".to_owned()));
    }
    let received = message.received.strftime("%Y-%m-%dT%H:%M:%SZ");
    let parts = shape.body.then(|| message::parse(&message.raw));
    let attachments = parts.as_ref().map(attachments).unwrap_or_default();
    let mut text = item_id(mailbox, message);
    text.push_str(&format!(
        "<t:ParentFolderId Id=\"{}\" ChangeKey=\"AQAAAA==\"/><t:ItemClass>IPM.Note</t:ItemClass><t:Subject>{}</t:Subject><t:Sensitivity>Normal</t:Sensitivity>",
        encode_id('F', mailbox, &[u64::from(folder)]),
        escape(&field("Subject"))
    ));
    if let Some(parts) = &parts {
        text.push_str(&body(&message.raw, parts));
        text.push_str(&list_attachments(mailbox, message, &attachments));
    }
    text.push_str(&format!(
        "<t:DateTimeReceived>{received}</t:DateTimeReceived><t:Size>{}</t:Size><t:Importance>Normal</t:Importance><t:IsSubmitted>false</t:IsSubmitted><t:IsDraft>{}</t:IsDraft><t:DateTimeSent>{received}</t:DateTimeSent><t:DateTimeCreated>{received}</t:DateTimeCreated><t:HasAttachments>{}</t:HasAttachments>",
        message.raw.len(),
        message.flags.contains("\\Draft"),
        !attachments.is_empty()
    ));
    if shape.number {
        for (tag, value) in [("0xe23", u64::from(message.uid)), ("0xe08", message.raw.len() as u64)] {
            text.push_str(&format!(
                "<t:ExtendedProperty><t:ExtendedFieldURI PropertyTag=\"{tag}\" PropertyType=\"Integer\"/><t:Value>{value}</t:Value></t:ExtendedProperty>"
            ));
        }
    }
    let people = |tag: &str, name: &str, many: bool| {
        let people = message::mailboxes(&message::field(header, name).unwrap_or_default());
        if people.is_empty() {
            return String::new();
        }
        let people: Vec<String> = people.iter().take(if many { 1000 } else { 1 }).map(person).collect();
        format!("<t:{tag}>{}</t:{tag}>", people.concat())
    };
    text.push_str(&people("Sender", "From", false));
    text.push_str(&people("ToRecipients", "To", true));
    text.push_str(&people("CcRecipients", "Cc", true));
    text.push_str(&people("From", "From", false));
    text.push_str(&format!(
        "<t:InternetMessageId>{}</t:InternetMessageId><t:IsRead>{}</t:IsRead></t:Message>",
        escape(&field("Message-ID")),
        message.flags.contains("\\Seen")
    ));
    out.push(Stretch::Text(text));
    out
}

fn person((name, address): &(Option<String>, String)) -> String {
    let name = name.as_deref().unwrap_or(address);
    format!(
        "<t:Mailbox><t:Name>{}</t:Name><t:EmailAddress>{}</t:EmailAddress><t:RoutingType>SMTP</t:RoutingType></t:Mailbox>",
        escape(name),
        escape(address)
    )
}

fn body(raw: &Bytes, part: &Part) -> String {
    fn find<'a>(part: &'a Part, subkind: &str) -> Option<&'a Part> {
        if part.kind == "TEXT" && part.subkind == subkind {
            return Some(part);
        }
        part.children.iter().filter(|_| part.kind == "MULTIPART").find_map(|child| find(child, subkind))
    }
    let (kind, found) = match find(part, "HTML") {
        Some(found) => ("HTML", Some(found)),
        None => ("Text", find(part, "PLAIN")),
    };
    let text = found.map(|found| content(raw, found)).unwrap_or_default();
    format!("<t:Body BodyType=\"{kind}\">{}</t:Body>", escape(&String::from_utf8_lossy(&text)))
}

/// The leaves of a message that are no text of its own.
pub(super) fn attachments(part: &Part) -> Vec<Part> {
    if part.kind == "MULTIPART" {
        return part.children.iter().flat_map(attachments).collect();
    }
    let named = part.parameters.iter().any(|(name, _)| name.eq_ignore_ascii_case("name"));
    if part.kind != "TEXT" || named { vec![part.clone()] } else { Vec::new() }
}

fn list_attachments(mailbox: &str, message: &Message, attachments: &[Part]) -> String {
    if attachments.is_empty() {
        return String::new();
    }
    let list: Vec<String> = (0..)
        .zip(attachments)
        .map(|(at, part)| {
            format!(
                "<t:FileAttachment>{}</t:FileAttachment>",
                describe_attachment(mailbox, message, at, part)
            )
        })
        .collect();
    format!("<t:Attachments>{}</t:Attachments>", list.concat())
}

/// Everything about an attachment but its content.
pub(super) fn describe_attachment(mailbox: &str, message: &Message, at: u64, part: &Part) -> String {
    let name = part.parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("name"));
    format!(
        "<t:AttachmentId Id=\"{}\"/><t:Name>{}</t:Name><t:ContentType>{}/{}</t:ContentType><t:Size>{}</t:Size><t:IsInline>false</t:IsInline>",
        encode_id('A', mailbox, &[message.id, at]),
        escape(name.map_or("attachment", |(_, value)| value)),
        part.kind.to_lowercase(),
        part.subkind.to_lowercase(),
        part.body.len()
    )
}

/// The decoded content of a part.
pub(super) fn content(raw: &Bytes, part: &Part) -> Bytes {
    let header = raw.get(part.header.clone()).unwrap_or_default();
    let encoding = message::field(header, "Content-Transfer-Encoding").unwrap_or_default().to_lowercase();
    let octets = raw.slice(part.body.clone());
    match encoding.as_str() {
        "base64" => {
            let packed: Vec<u8> =
                octets.iter().copied().filter(|octet| !octet.is_ascii_whitespace()).collect();
            BASE64_STANDARD.decode(packed).map_or(octets, Bytes::from)
        }
        "quoted-printable" => quoted_printable(&octets).into(),
        _ => octets,
    }
}

fn quoted_printable(octets: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(octets.len()), 0);
    while let Some(&octet) = octets.get(at) {
        let behind = octets.get(at + 1..at + 3).unwrap_or_default();
        if octet == b'=' {
            if behind == b"\r\n" {
                at += 3;
                continue;
            }
            let hex = std::str::from_utf8(behind).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
            if let Some(value) = hex {
                out.push(value);
                at += 3;
                continue;
            }
        }
        out.push(octet);
        at += 1;
    }
    out
}

/// Makes a message of the properties of a `<t:Message>`: from `MimeContent`, or from its fields.
pub(super) fn make(item: &Element, sender: &str) -> Option<Bytes> {
    if let Some(mime) = item.child("MimeContent") {
        let packed: Vec<u8> = mime.text.bytes().filter(|octet| !octet.is_ascii_whitespace()).collect();
        return BASE64_STANDARD.decode(packed).ok().map(Bytes::from);
    }
    let mut header = String::new();
    let mut add = |name: &str, value: &str| {
        let value = value.replace(['\r', '\n'], " ");
        if !value.is_empty() {
            header.push_str(&format!("{name}: {value}\r\n"));
        }
    };
    let date = time::wall().strftime("%a, %d %b %Y %H:%M:%S +0000").to_string();
    add("Date", &date);
    let from = people(item.child("From"));
    add("From", if from.is_empty() { sender } else { &from });
    add("To", &people(item.child("ToRecipients")));
    add("Cc", &people(item.child("CcRecipients")));
    add("Bcc", &people(item.child("BccRecipients")));
    add("Subject", item.text_at(&["Subject"]).unwrap_or_default());
    let id = item
        .text_at(&["InternetMessageId"])
        .map_or_else(|| format!("<{}@contoso.com>", random::guid()), str::to_owned);
    add("Message-ID", &id);
    add("MIME-Version", "1.0");
    let body = item.child("Body");
    let kind = body.and_then(|body| body.attribute("BodyType")).unwrap_or("Text");
    let kind = if kind.eq_ignore_ascii_case("HTML") { "html" } else { "plain" };
    let encoded = wrap(body.map(|body| body.text.as_bytes()).unwrap_or_default());
    let text = format!(
        "Content-Type: text/{kind}; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n{encoded}"
    );
    let files: Vec<&Element> = item
        .child("Attachments")
        .map(|list| list.children.iter().filter(|file| file.name == "FileAttachment").collect())
        .unwrap_or_default();
    if files.is_empty() {
        return Some(format!("{header}{text}").into());
    }
    let boundary = random::guid();
    let mut out = format!(
        "{header}Content-Type: multipart/mixed; boundary=\"{boundary}\"\r\n\r\n--{boundary}\r\n{text}"
    );
    for file in files {
        let content = file.text_at(&["Content"]).unwrap_or_default();
        let octets = BASE64_STANDARD.decode(content.split_ascii_whitespace().collect::<String>()).ok()?;
        let name = file.text_at(&["Name"]).unwrap_or("attachment").replace(['"', '\r', '\n'], "_");
        let kind = file.text_at(&["ContentType"]).unwrap_or("application/octet-stream");
        out.push_str(&format!(
            "--{boundary}\r\nContent-Type: {kind}; name=\"{name}\"\r\nContent-Disposition: attachment; filename=\"{name}\"\r\nContent-Transfer-Encoding: base64\r\n\r\n{}",
            wrap(&octets)
        ));
    }
    out.push_str(&format!("--{boundary}--\r\n"));
    Some(out.into())
}

/// base64 in lines of 76.
fn wrap(octets: &[u8]) -> String {
    octets.chunks(57).fold(String::new(), |mut out, line| {
        out.push_str(&BASE64_STANDARD.encode(line));
        out.push_str("\r\n");
        out
    })
}

fn people(list: Option<&Element>) -> String {
    let people: Vec<String> = list
        .map(|list| list.children.as_slice())
        .unwrap_or_default()
        .iter()
        .filter_map(|mailbox| {
            let address = mailbox.text_at(&["EmailAddress"])?;
            Some(match mailbox.text_at(&["Name"]) {
                Some(name) if !name.is_empty() => {
                    format!("\"{}\" <{address}>", name.replace(['"', '\\'], ""))
                }
                _ => address.to_owned(),
            })
        })
        .collect();
    people.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_went() {
        let id = encode_id('I', "a@b", &[7, 9]);
        assert_eq!(decode_id('I', &id), Some(("a@b".to_owned(), vec![7, 9])));
        assert_eq!(decode_id('F', &id), None);
        assert_eq!(decode_id('I', "DUMMY"), None);
    }

    #[test]
    fn a_message_is_made_of_its_fields() {
        let item = Element::parse(
            "<Message><Subject>Hi</Subject><Body BodyType='Text'>text</Body><ToRecipients><Mailbox><EmailAddress>b@c</EmailAddress></Mailbox></ToRecipients><Attachments><FileAttachment><Name>f</Name><Content>AAEC</Content></FileAttachment></Attachments></Message>",
        )
        .unwrap();
        let raw = make(&item, "a@b").unwrap();
        assert_eq!(message::addresses(&raw, "To"), ["b@c"]);
        let files = attachments(&message::parse(&raw));
        assert_eq!(files.iter().map(|file| content(&raw, file)).collect::<Vec<_>>(), [&[0, 1, 2][..]]);
    }

    #[test]
    fn quoted_printable_is_undone() {
        assert_eq!(quoted_printable(b"a=3Db=\r\nc=ZZ"), b"a=bc=ZZ");
    }
}
