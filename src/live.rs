//! What the admin pages show, gathered from the running proxy at the moment somebody looks.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::admin::status::{
    AccountStatus, FailureStatus, ListenerStatus, Readiness, Status, StatusSource, TokenStatus,
    without_credentials,
};
use crate::clock;
use crate::config::model::{Config, Upstream};
use crate::telemetry::metrics::{ListenerLabel, Metrics};
use crate::token::broker::{AccountSnapshot, Broker};

/// Handles into the running proxy.
#[derive(Debug)]
pub struct Live {
    /// What it runs on.
    pub config: Arc<Config>,
    /// Knows the accounts.
    pub broker: Arc<Broker>,
    /// Knows the counts.
    pub metrics: Arc<Metrics>,
    /// Listener names and bound addresses.
    pub addresses: Vec<(String, SocketAddr)>,
    /// When it started.
    pub started: Timestamp,
    /// It is about to stop.
    pub draining: CancellationToken,
}

impl StatusSource for Live {
    fn status(&self) -> Status {
        let now = clock::wall();
        let totals = self.metrics.totals();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now,
            started: self.started,
            listeners: self.listeners(),
            accounts: self.broker.snapshot().into_iter().map(|account| shown(account, now)).collect(),
            logins: totals.logins,
            refusals: totals.refusals,
            outbound_proxy: self.outbound_proxies(),
        }
    }

    fn readiness(&self) -> Readiness {
        if self.draining.is_cancelled() {
            return Readiness::NotReady("the proxy stops".to_owned());
        }
        let accounts = self.broker.snapshot();
        let broken =
            |account: &AccountSnapshot| account.last_failure.is_some() && account.expires_in.is_none();
        if !accounts.is_empty() && accounts.iter().all(broken) {
            return Readiness::NotReady(
                "no account gets a token; see the accounts' last failures".to_owned(),
            );
        }
        Readiness::Ready
    }
}

impl Live {
    fn listeners(&self) -> Vec<ListenerStatus> {
        let of = |listener: &Arc<crate::config::model::Listener>| {
            let label = ListenerLabel { listener: listener.name.clone() };
            ListenerStatus {
                name: listener.name.clone(),
                protocol: listener.protocol.to_string(),
                addresses: self
                    .addresses
                    .iter()
                    .filter(|(name, _)| *name == listener.name)
                    .map(|(_, address)| address.to_string())
                    .collect(),
                upstream: match &listener.upstream {
                    Upstream::Mail(server) => format!("{}:{}", server.host, server.port),
                    Upstream::Http(url) => without_credentials(url),
                },
                note: listener
                    .ends_in_2027()
                    .then(|| "Exchange Online ends EWS for good on 1 April 2027".to_owned()),
                sessions: self
                    .metrics
                    .sessions
                    .get(&label)
                    .map_or(0, |alive| u64::try_from(alive.get()).unwrap_or(0)),
            }
        };
        self.config.listeners.iter().map(of).collect()
    }

    fn outbound_proxies(&self) -> Option<String> {
        let proxies = &self.config.outbound_proxies;
        let shown =
            proxies.iter().map(|proxy| without_credentials(&proxy.url)).collect::<Vec<_>>().join(", ");
        (!proxies.is_empty()).then_some(shown)
    }
}

fn shown(account: AccountSnapshot, now: Timestamp) -> AccountStatus {
    let ago = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::ZERO);
    let token = account.token_age.zip(account.expires_in).map(|(age, left)| TokenStatus {
        issued: now.saturating_sub(ago(age)).unwrap_or(now),
        expires: now.saturating_add(ago(left)).unwrap_or(now),
    });
    AccountStatus {
        user: account.user,
        application: account.application,
        grant: account.grant.map_or_else(|| "none yet".to_owned(), |grant| grant.as_str().to_owned()),
        token,
        last_failure: account.last_failure.map(|(when, story)| FailureStatus {
            code: story.code.into_owned(),
            what: story.what,
            remedy: story.remedy,
            when,
        }),
    }
}
