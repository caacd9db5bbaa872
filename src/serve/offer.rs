//! What a mail client is promised beyond sign-in, until upstream itself has told.

use crate::config::model::Protocol;
use crate::protocol::machine::Offer;

/// What Exchange Online has offered for years; replaced by what upstream says as soon as it has been asked.
pub fn exchange_online(protocol: Protocol) -> Offer {
    let words: &[&str] = match protocol {
        Protocol::Imap => &[
            "IMAP4",
            "IMAP4rev1",
            "UIDPLUS",
            "MOVE",
            "ID",
            "UNSELECT",
            "CHILDREN",
            "IDLE",
            "NAMESPACE",
            "LITERAL+",
        ],
        Protocol::Pop3 => &["TOP", "UIDL"],
        Protocol::Smtp => &[
            "SIZE 157286400",
            "PIPELINING",
            "DSN",
            "ENHANCEDSTATUSCODES",
            "8BITMIME",
            "BINARYMIME",
            "CHUNKING",
            "SMTPUTF8",
        ],
        Protocol::Ews | Protocol::ActiveSync => &[],
    };
    Offer(words.iter().map(|&word| word.to_owned()).collect())
}
