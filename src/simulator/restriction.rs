//! The conditions of FindItem, over the properties that a mail client searches by.

use super::{mailbox::Message, message, xml::Element};

/// Whether a condition holds for a message; unknown properties never do.
pub(super) fn holds(condition: &Element, message: &Message) -> bool {
    let mut parts = condition.children.iter();
    match condition.name.as_str() {
        "And" => parts.all(|part| holds(part, message)),
        "Or" => parts.any(|part| holds(part, message)),
        "Not" => !parts.any(|part| holds(part, message)),
        "Exists" => property(condition, message).is_some(),
        "Contains" => {
            let wanted = condition.child("Constant").and_then(|constant| constant.attribute("Value"));
            let wanted = wanted.unwrap_or_default().to_lowercase();
            let found = property(condition, message).unwrap_or_default().to_lowercase();
            match condition.attribute("ContainmentMode") {
                Some("FullString") => found == wanted,
                Some("Prefixed") => found.starts_with(&wanted),
                _ => found.contains(&wanted),
            }
        }
        name => {
            let wanted = condition.find("Constant").and_then(|constant| constant.attribute("Value"));
            let (Some(found), Some(wanted)) = (property(condition, message), wanted) else {
                return false;
            };
            // xs:boolean has two spellings.
            let wanted = match (found.as_str(), wanted) {
                ("true" | "false", "1") => "true",
                ("true" | "false", "0") => "false",
                (_, wanted) => wanted,
            };
            let order = found.as_str().cmp(wanted);
            match name {
                "IsEqualTo" => order.is_eq() || found.eq_ignore_ascii_case(wanted),
                "IsNotEqualTo" => order.is_ne(),
                "IsGreaterThan" => order.is_gt(),
                "IsGreaterThanOrEqualTo" => order.is_ge(),
                "IsLessThan" => order.is_lt(),
                "IsLessThanOrEqualTo" => order.is_le(),
                _ => false,
            }
        }
    }
}

fn property(condition: &Element, message: &Message) -> Option<String> {
    let header = message.raw.get(..message::header_length(&message.raw))?;
    match condition.child("FieldURI")?.attribute("FieldURI")? {
        "item:Subject" => Some(message::field(header, "Subject").unwrap_or_default()),
        "message:From" | "message:Sender" => message::field(header, "From"),
        "message:InternetMessageId" => message::field(header, "Message-ID"),
        "message:IsRead" => Some(message.flags.contains("\\Seen").to_string()),
        "item:ItemClass" => Some("IPM.Note".to_owned()),
        "item:DateTimeReceived" | "item:DateTimeCreated" | "item:DateTimeSent" => {
            Some(message.received.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        }
        _ => None,
    }
}
