//! Everything that the services share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    certificate::Certificates,
    grants::Loops,
    journal::{Event, Journal, Service, Submission},
    mailbox::Post,
    mischief::Mischief,
    random,
    settings::Settings,
    streaming::Subscriptions,
    tenant::Tenant,
    time,
    tokens::Tokens,
};

/// The one world behind all listeners.
pub(super) struct Office {
    pub(super) settings: Settings,
    pub(super) tenant: Tenant,
    pub(super) tokens: Tokens,
    pub(super) loops: Loops,
    pub(super) subscriptions: Subscriptions,
    pub(super) post: Post,
    pub(super) journal: Journal,
    pub(super) mischief: Arc<Mischief>,
    pub(super) certificates: Certificates,
    /// Ends everything.
    pub(super) end: CancellationToken,
    sessions: Mutex<HashMap<(Service, String), usize>>,
}

/// One of the sessions of a mailbox; gives its place back when dropped.
pub(super) struct Place {
    office: Arc<Office>,
    key: (Service, String),
}

impl Office {
    pub(super) fn new(settings: Settings, certificates: Certificates) -> Self {
        Self {
            tenant: Tenant::new(&settings),
            tokens: Tokens::default(),
            loops: Loops::default(),
            subscriptions: Subscriptions::default(),
            post: Post::default(),
            journal: Journal::new(settings.journal),
            mischief: Arc::new(Mischief::new()),
            certificates,
            end: CancellationToken::new(),
            sessions: Mutex::default(),
            settings,
        }
    }

    /// One more session of a mailbox, unless it has `limit` of them.
    pub(super) fn enter(self: &Arc<Self>, service: Service, mailbox: &str, limit: usize) -> Option<Place> {
        let key = (service, mailbox.to_lowercase());
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sessions.entry(key.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place { office: Arc::clone(self), key })
    }

    /// Takes a message: a copy for every recipient who lives here and one for the sender's Sent Items.
    pub(super) fn submit(
        &self,
        service: Service,
        mailbox: &str,
        from: &str,
        to: &[String],
        raw: &Bytes,
        keep: bool,
    ) {
        let sha256 = random::hex(digest::digest(&digest::SHA256, raw).as_ref());
        for recipient in to.iter().filter(|recipient| self.tenant.has_mailbox(recipient)) {
            self.post.open(recipient).deliver(raw.clone());
        }
        if keep {
            let sender = self.post.open(mailbox);
            if let Some(folder) = sender.distinguished("sentitems") {
                sender.append(folder, raw.clone(), &["\\Seen"], time::wall());
            }
        }
        self.journal.write(Event::Submitted(Submission {
            service,
            mailbox: mailbox.to_owned(),
            from: from.to_owned(),
            to: to.to_vec(),
            size: raw.len(),
            sha256,
        }));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = self.office.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sessions.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                sessions.remove(&self.key);
            }
        }
    }
}
