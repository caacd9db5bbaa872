//! Which dialogue is spoken with which upstream.

use crate::config::model::{BackTls, MailServer, Protocol};
use crate::protocol::imap::back::ImapBack;
use crate::protocol::machine::{Back, Errand};
use crate::protocol::pop3::back::Pop3Back;
use crate::protocol::smtp::back::SmtpBack;

/// A dialogue with this upstream.
pub fn back(protocol: Protocol, server: &MailServer, errand: Errand) -> Box<dyn Back> {
    match (protocol, server.tls) {
        (Protocol::Imap | Protocol::Ews | Protocol::ActiveSync, BackTls::Implicit) => {
            Box::new(ImapBack::new(errand))
        }
        (Protocol::Imap | Protocol::Ews | Protocol::ActiveSync, BackTls::StartTls) => {
            Box::new(ImapBack::with_starttls(errand))
        }
        (Protocol::Pop3, BackTls::Implicit) => Box::new(Pop3Back::new(errand)),
        (Protocol::Pop3, BackTls::StartTls) => Box::new(Pop3Back::with_starttls(errand)),
        (Protocol::Smtp, BackTls::Implicit) => Box::new(SmtpBack::new(errand)),
        (Protocol::Smtp, BackTls::StartTls) => Box::new(SmtpBack::with_starttls(errand)),
    }
}
