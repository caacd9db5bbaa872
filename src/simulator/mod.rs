//! Office 365 in a box on loopback: identity provider, IMAP, POP3, SMTP submission and EWS, for `demo` and the tests.
//!
//! ```text
//!             ┌─ authority ─ grants ─ assertion          tenant   who exists and may what
//! listen ─────┼─ imap ─ imap_syntax, fetch, search       tokens   what was given out
//! (one door   ├─ pop3                                    mailbox  what lies in whose folders
//!  a service) ├─ smtp          admission: may this       journal  what happened
//!             └─ ews ─ soap    token open that mailbox?  mischief what is to go wrong
//! ```
//!
//! It behaves as Microsoft Entra ID and Exchange Online do, their oddities included, as far as a mail proxy can tell.
//!
//! Never: uses anything else of this crate. It is the oracle, and an oracle that shares code with what it judges
//! repeats its mistakes.

#![expect(clippy::format_push_string, reason = "an oracle is to be read; it need not be fast")]

mod aadsts;
mod admission;
mod assertion;
mod authority;
mod certificate;
mod ews;
mod fetch;
mod grants;
mod http;
mod imap;
mod imap_syntax;
mod item;
mod journal;
mod listen;
mod mailbox;
mod message;
mod mischief;
mod office;
mod pop3;
mod random;
mod restriction;
mod scope;
mod search;
mod settings;
mod smtp;
mod soap;
mod streaming;
mod tenant;
#[cfg(test)]
mod tests;
mod time;
mod tokens;
mod wire;
mod xml;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::{certificate::Certificates, listen::Door, office::Office, tokens::DeviceAnswer};
pub use self::{
    journal::{Event, EwsRequest, Service, SignIn, Submission, TokenRequest},
    mischief::{CertificateFault, EwsFault, ExpiresIn, IdentityFault, MailFault, Mischief, Step},
    settings::{
        ALICE, BOB, CONFIDENTIAL_CLIENT_ID, CONFIDENTIAL_CLIENT_SECRET, DIRECTORY_ID, Edition,
        PUBLIC_CLIENT_ID, Ports, SUPPORT, Settings,
    },
    tenant::{App, Condition, Directory, Grantable, Tenant, User},
};

/// A running Office 365. Dropping it stops it.
pub struct Simulator {
    office: Arc<Office>,
    tasks: TaskTracker,
    authority: SocketAddr,
    imap: SocketAddr,
    imap_starttls: SocketAddr,
    pop3: SocketAddr,
    pop3_starttls: SocketAddr,
    smtp: SocketAddr,
    smtp_implicit: SocketAddr,
    ews: SocketAddr,
}

impl Simulator {
    /// Issues certificates, binds every service and begins to serve.
    ///
    /// # Errors
    /// A port that is taken, or no certificate to be had.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        let ports = settings.ports;
        let places = Arc::new(Semaphore::new(settings.sessions));
        let office = Arc::new(Office::new(settings, Certificates::issue()?));
        let tasks = TaskTracker::new();
        let door = |service, port, implicit| {
            let (office, tasks, places) = (Arc::clone(&office), tasks.clone(), Arc::clone(&places));
            async move { listen::open(&office, &tasks, &places, Door { service, port, implicit }).await }
        };
        let simulator = Self {
            authority: door(Service::Authority, ports.authority, true).await?,
            imap: door(Service::Imap, ports.imap, true).await?,
            imap_starttls: door(Service::Imap, ports.imap_starttls, false).await?,
            pop3: door(Service::Pop3, ports.pop3, true).await?,
            pop3_starttls: door(Service::Pop3, ports.pop3_starttls, false).await?,
            smtp: door(Service::Smtp, ports.smtp, false).await?,
            smtp_implicit: door(Service::Smtp, ports.smtp_implicit, true).await?,
            ews: door(Service::Ews, ports.ews, true).await?,
            office,
            tasks,
        };
        Ok(simulator)
    }

    /// The identity provider: what `tenant-authority` is set to. It ends in a slash.
    pub fn authority_url(&self) -> String {
        format!("https://localhost:{}/", self.authority.port())
    }

    /// The EWS endpoint.
    pub fn ews_url(&self) -> String {
        format!("https://localhost:{}/EWS/Exchange.asmx", self.ews.port())
    }

    /// Where the identity provider listens.
    pub fn authority(&self) -> SocketAddr {
        self.authority
    }

    /// IMAP over TLS.
    pub fn imap(&self) -> SocketAddr {
        self.imap
    }

    /// IMAP with STARTTLS.
    pub fn imap_starttls(&self) -> SocketAddr {
        self.imap_starttls
    }

    /// POP3 over TLS.
    pub fn pop3(&self) -> SocketAddr {
        self.pop3
    }

    /// POP3 with STLS.
    pub fn pop3_starttls(&self) -> SocketAddr {
        self.pop3_starttls
    }

    /// SMTP submission with STARTTLS.
    pub fn smtp(&self) -> SocketAddr {
        self.smtp
    }

    /// SMTP submission over TLS.
    pub fn smtp_implicit(&self) -> SocketAddr {
        self.smtp_implicit
    }

    /// EWS over HTTPS.
    pub fn ews(&self) -> SocketAddr {
        self.ews
    }

    /// The root that issued all certificates, PEM.
    pub fn ca_pem(&self) -> &str {
        self.office.certificates.ca_pem()
    }

    /// The directory, to be changed at run time.
    pub fn tenant(&self) -> &Tenant {
        &self.office.tenant
    }

    /// What goes wrong, to be switched at run time.
    pub fn mischief(&self) -> &Mischief {
        &self.office.mischief
    }

    /// What happened so far, oldest first.
    pub fn journal(&self) -> Vec<Event> {
        self.office.journal.read()
    }

    /// How many token requests came.
    pub fn token_requests(&self) -> usize {
        self.office.journal.token_requests()
    }

    /// Whose token this is, while it is good: for a real mail server that asks (RFC 7662).
    pub fn whose(&self, access_token: &str) -> Option<String> {
        self.office.tokens.bearer(access_token)?.user.clone()
    }

    /// The access tokens that were given out, for tests that look for them where they must not be.
    pub fn issued_tokens(&self) -> Vec<String> {
        self.office.tokens.issued()
    }

    /// Ends every access token now, as a revocation would.
    pub fn expire_tokens(&self) {
        self.office.tokens.expire_all();
    }

    /// Puts a message into an Inbox.
    pub fn deliver(&self, mailbox: &str, message: impl Into<Bytes>) {
        self.office.post.open(mailbox).deliver(message.into());
    }

    /// The messages of a folder, oldest first; none if there is no such folder.
    pub fn messages(&self, mailbox: &str, folder: &str) -> Vec<Bytes> {
        let mailbox = self.office.post.open(mailbox);
        let id = mailbox.find(folder);
        id.and_then(|id| {
            mailbox.read(id, |folder| folder.messages.iter().map(|message| message.raw.clone()).collect())
        })
        .unwrap_or_default()
    }

    /// Codes of device code flows that wait for a human.
    pub fn pending_device_codes(&self) -> Vec<String> {
        self.office.tokens.pending_devices()
    }

    /// The human types the code and signs in. `false`: no such code.
    pub fn approve_device(&self, user_code: &str, upn: &str) -> bool {
        self.office.tokens.answer_device(user_code, &DeviceAnswer::Approved(upn.to_owned()))
    }

    /// The human declines. `false`: no such code.
    pub fn decline_device(&self, user_code: &str) -> bool {
        self.office.tokens.answer_device(user_code, &DeviceAnswer::Declined)
    }

    /// Stops, and waits until every session has ended.
    pub async fn stop(self) {
        self.office.end.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(10), self.tasks.wait()).await.ok();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.office.end.cancel();
    }
}
