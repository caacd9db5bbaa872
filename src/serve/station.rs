//! Where the sessions of one listener find everything they need.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::dialogue;
use super::drive::{self, BackFailure};
use super::hold::Holds;
use super::offer::Shown;
use super::quiet::{ImapQuiet, Pop3Quiet};
use super::recorder::{Recordings, Tape};
use super::relay::{Ending, Standing, Unfinished, Watch};
use super::turnstile::Turnstile;
use super::warm::WarmConnections;
use crate::clock;
use crate::config::model::{FrontTls, Limits, Listener, MailServer, Protocol, Upstream};
use crate::protocol::imap::front::ImapFront;
use crate::protocol::machine::{Errand, Front, FrontSettings, Welcome};
use crate::protocol::pop3::front::Pop3Front;
use crate::protocol::smtp::boundary::{Boundary, Envelope};
use crate::protocol::smtp::front::SmtpFront;
use crate::seats::Seats;
use crate::secret::{Credentials, Secret};
use crate::task;
use crate::telemetry::metrics::Metrics;
use crate::token::request::Tokens;
use crate::upstream::connector::Connector;

/// How long upstream may take to tell what it offers.
const LEARN_LIMIT: Duration = Duration::from_secs(30);

/// What all sessions of one mail listener share.
pub struct Station {
    /// The listener's settings.
    pub listener: Arc<Listener>,
    /// Gives tokens.
    pub tokens: Arc<dyn Tokens>,
    /// The way to upstream.
    pub connector: Arc<Connector>,
    /// TLS towards the mail client.
    pub acceptor: Option<TlsAcceptor>,
    /// Sessions per user, over all listeners.
    pub seats: Seats,
    /// Sessions per mailbox and protocol, over all listeners.
    pub turnstile: Turnstile,
    /// Mailboxes for which upstream asked for patience.
    pub holds: Arc<Holds>,
    /// Upstream connections that are ready for a login, where the configuration wants any.
    pub warm: Option<Arc<WarmConnections>>,
    /// Bounds.
    pub limits: Limits,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Where failed sessions are written down.
    pub recordings: Arc<Recordings>,
    /// How we call ourselves.
    pub host_name: String,
    /// The proxy wants to stop.
    pub draining: CancellationToken,
    /// Upstream did not take XOAUTH2 where `sasl: auto` began with it.
    pub wants_oauthbearer: AtomicBool,
    /// What is promised before a login.
    pub offer: Arc<Shown>,
}

impl Station {
    /// The mail server behind this listener. EWS has none; its listeners never get a station.
    pub fn server(&self) -> Option<&MailServer> {
        match &self.listener.upstream {
            Upstream::Mail(server) => Some(server),
            Upstream::Http(_) => None,
        }
    }

    /// A dialogue for a mail client that has just come in.
    pub fn front(&self, settings: FrontSettings) -> Box<dyn Front> {
        match self.listener.protocol {
            Protocol::Imap | Protocol::Ews | Protocol::ActiveSync => Box::new(ImapFront::new(settings)),
            Protocol::Pop3 => Box::new(Pop3Front::new(settings)),
            Protocol::Smtp => Box::new(SmtpFront::new(settings)),
        }
    }

    /// What such a dialogue is told about this place.
    pub fn front_settings(&self) -> FrontSettings {
        FrontSettings {
            starttls: self.listener.tls == FrontTls::StartTls && self.acceptor.is_some(),
            require_tls: self.listener.tls == FrontTls::StartTls && self.is_reachable_from_outside(),
            offer: self.offer.load(),
            host_name: self.host_name.clone(),
            max_refusals: self.limits.refusals_per_session,
            without_login: self.listener.fixed_account.as_ref().map(|fixed| Credentials {
                user: fixed.user.clone(),
                password: fixed.account.password.clone().unwrap_or_else(|| Secret::new("")),
            }),
        }
    }

    /// Who knows when a session of this protocol may be ended by us.
    pub fn watch(&self) -> Option<Box<dyn Watch>> {
        match self.listener.protocol {
            Protocol::Smtp => Some(Box::new(Boundary::default())),
            Protocol::Imap => Some(Box::new(ImapQuiet::default())),
            Protocol::Pop3 => Some(Box::new(Pop3Quiet::default())),
            Protocol::Ews | Protocol::ActiveSync => None,
        }
    }

    /// Sees to it that what is promised is no older than an hour: called at the start and at each visit, so that
    /// a listener that nobody uses asks nothing. Nobody waits for it.
    pub fn keep_up(self: &Arc<Self>) {
        if self.offer.is_due(clock::now()) {
            let station = Arc::clone(self);
            task::start(async move { station.learn().await });
        }
    }

    /// Asks upstream what it offers. Sends no secret; failing costs nothing but the answer.
    async fn learn(&self) {
        let Some(server) = self.server() else { return };
        let errand = Errand::Learn { client_name: self.host_name.clone() };
        let asked = async {
            let (mut io, proof) = self.connector.open(server).await.map_err(BackFailure::Broke)?;
            let mut dialogue = dialogue::back(self.listener.protocol, server, errand);
            if let Some(proof) = proof {
                dialogue.secured(proof);
            }
            drive::back(&mut *dialogue, &mut io, &self.connector, server, &mut Tape::default()).await
        };
        let why = match timeout(LEARN_LIMIT, asked).await {
            // a server from before such lists says nothing: what was known stays
            Ok(Ok(Welcome { offer: None, .. })) => "it has no such list".to_owned(),
            Ok(Ok(Welcome { offer: Some(offer), .. })) => return self.offer.learned(offer, clock::now()),
            Ok(Err(BackFailure::Broke(error))) => error.to_string(),
            Ok(Err(BackFailure::Said(error))) => format!("{error:?}"),
            Err(_) => "it does not answer".to_owned(),
        };
        if self.offer.is_news_that_it_fails() {
            let listener = &self.listener.name;
            tracing::warn!(
                listener,
                why,
                "upstream does not tell what it offers; what was known last is shown"
            );
        }
    }

    fn is_reachable_from_outside(&self) -> bool {
        self.listener.listen.iter().any(|address| !address.ip().is_loopback())
    }
}

impl Watch for Boundary {
    fn up(&mut self, bytes: &[u8]) {
        self.from_front(bytes);
    }

    fn down(&mut self, bytes: &[u8]) {
        self.from_back(bytes);
    }

    fn standing(&self) -> Standing {
        if self.between_messages() {
            Standing::Between
        } else if self.awaits_verdict() {
            Standing::Awaiting
        } else {
            Standing::Inside
        }
    }

    fn unfinished(&self) -> Option<Unfinished> {
        self.under_way().map(|Envelope { sender, recipients }| Unfinished { sender, recipients })
    }

    fn wants_quiet(&self) -> bool {
        false
    }

    fn farewell(&self, ending: Ending) -> &'static [u8] {
        match ending {
            Ending::TokenExpires => b"421 4.7.0 Mailkey closes: the access token expires; connect again\r\n",
            Ending::Draining => b"421 4.3.2 Mailkey stops; connect again\r\n",
        }
    }
}
