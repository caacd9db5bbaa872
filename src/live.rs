//! What the admin pages show, gathered from the running proxy at the moment somebody looks.

pub mod expiry;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::expiry::Expiry;
use crate::admin::status::{
    AccountStatus, FailureStatus, ListenerStatus, Readiness, ReloadStatus, Status, StatusSource, TokenStatus,
    without_credentials,
};
use crate::clock;
use crate::config::model::{Config, Upstream};
use crate::explain::{CauseKind, Fault, Refusal};
use crate::serve::listener::{Room, Trouble};
use crate::serve::recorder::Recordings;
use crate::telemetry::metrics::{ListenerLabel, Metrics};
use crate::token::broker::{AccountSnapshot, Broker};

/// How long a failure of a login says something about the next one.
const FAILURE_HOLDS: SignedDuration = SignedDuration::from_secs(60);

/// How often stored sign-ins are looked at: their ends are days away.
const SIGN_INS_AGAIN: Duration = Duration::from_mins(15);

/// Handles into the running proxy.
pub struct Live {
    /// What it runs on since the start or the last reload.
    pub now: ArcSwap<Now>,
    /// Knows the accounts.
    pub broker: Arc<Broker>,
    /// Knows the counts.
    pub metrics: Arc<Metrics>,
    /// Knows the failed sessions.
    pub recordings: Arc<Recordings>,
    /// When it started.
    pub started: Timestamp,
    /// It is about to stop.
    pub draining: CancellationToken,
    /// The last reload.
    pub reload: ArcSwapOption<ReloadStatus>,
    /// The ends of stored sign-ins, as they were when they were last looked at.
    pub sign_ins: ArcSwap<Vec<Expiry>>,
}

/// What a reload replaces.
pub struct Now {
    /// The configuration.
    pub config: Arc<Config>,
    /// The listening sockets.
    pub doors: Vec<DoorView>,
    /// What ends, and when.
    pub expiries: Vec<Expiry>,
}

/// A listening socket.
pub struct DoorView {
    /// What it leads to.
    pub room: Arc<ArcSwap<Room>>,
    /// Where it listens.
    pub bound: SocketAddr,
    /// Why nobody gets in.
    pub trouble: Arc<ArcSwapOption<Trouble>>,
}

impl DoorView {
    /// The listener's name.
    pub fn name(&self) -> String {
        self.room.load().listener.name.clone()
    }
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
            warnings: [
                expiry::warnings(&self.now.load().expiries, now),
                expiry::warnings(&self.sign_ins.load(), now),
            ]
            .concat(),
            history: self.metrics.history(now),
            last_reload: self.reload.load().as_deref().cloned(),
            recordings: self.recordings.all().len(),
            outbound_proxy: self.outbound_proxies(),
        }
    }

    fn recordings(&self) -> String {
        let all = self.recordings.all();
        let mut text =
            format!("# The dialogues of the last {} failed sessions, the newest first.\n", all.len());
        for recording in all {
            text.push('\n');
            text.push_str(&recording.text);
        }
        text
    }

    fn readiness(&self) -> Readiness {
        if self.draining.is_cancelled() {
            return Readiness::NotReady("the proxy stops".to_owned());
        }
        token_paths(&self.broker.snapshot(), clock::wall())
    }
}

/// Whether at least one way to a token is not broken, as far as the logins of the last [`FAILURE_HOLDS`] tell.
///
/// What is wrong with one person (password, lock-out, policy) says that the way is good: the identity provider
/// answered. And whoever is not ready gets no logins that could find out that it works again, so a failure
/// holds for a while only.
fn token_paths(accounts: &[AccountSnapshot], now: Timestamp) -> Readiness {
    let failed = |account: &AccountSnapshot| {
        let (when, story) = account.last_failure.as_ref()?;
        let lacks_consent =
            matches!(story.refusal, Refusal::ContactAdmin(cause) if cause.kind == CauseKind::Consent);
        (now.duration_since(*when) < FAILURE_HOLDS).then_some(match story.fault {
            Fault::Tenant if lacks_consent => Way::Broken,
            Fault::MailClient | Fault::Account | Fault::Tenant => Way::Good,
            Fault::Configuration | Fault::Network | Fault::Provider | Fault::Mailkey => Way::Broken,
        })
    };
    let way = |account: &AccountSnapshot| match account.expires_in {
        Some(_) => Some(Way::Good),
        None => failed(account),
    };
    let ways: Vec<Way> = accounts.iter().filter_map(way).collect();
    if ways.contains(&Way::Broken) && !ways.contains(&Way::Good) {
        return Readiness::NotReady("no account gets a token; see the accounts' last failures".to_owned());
    }
    Readiness::Ready
}

/// How the way to a token is, as one account found it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Good,
    Broken,
}

impl Live {
    /// Looks at the stored sign-ins now and then, until `cancel`.
    pub async fn watch_sign_ins(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let ends = self.broker.sign_in_ends().await;
            self.sign_ins.store(Arc::new(ends.into_iter().map(expiry::sign_in).collect()));
            if cancel.run_until_cancelled(sleep(SIGN_INS_AGAIN)).await.is_none() {
                return;
            }
        }
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let state = self.now.load();
        let of = |listener: &Arc<crate::config::model::Listener>| {
            let doors = || state.doors.iter().filter(|door| door.name() == listener.name);
            let label = ListenerLabel { listener: listener.name.clone() };
            ListenerStatus {
                name: listener.name.clone(),
                protocol: listener.protocol.to_string(),
                addresses: doors().map(|door| door.bound.to_string()).collect(),
                trouble: doors().find_map(|door| Some(door.trouble.load().as_ref()?.what.clone())),
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
        state.config.listeners.iter().map(of).collect()
    }

    fn outbound_proxies(&self) -> Option<String> {
        let state = self.now.load();
        let proxies = &state.config.outbound_proxies;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Protocol;
    use crate::explain::{Explanation, Passes};

    fn account(has_token: bool, failed: Option<(i64, Fault)>) -> AccountSnapshot {
        AccountSnapshot {
            user: "alice@contoso.com".to_owned(),
            application: "app".to_owned(),
            protocol: Protocol::Imap,
            grant: None,
            token_age: None,
            expires_in: has_token.then_some(Duration::from_mins(50)),
            unused_for: Duration::ZERO,
            last_failure: failed.map(|(seconds_ago, fault)| {
                let story = Explanation {
                    code: "X".into(),
                    fault,
                    what: "x".to_owned(),
                    remedy: "y".to_owned(),
                    passes: Passes::Never,
                    refusal: Refusal::BadCredentials,
                };
                (now() - SignedDuration::from_secs(seconds_ago), story)
            }),
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn is_ready(accounts: &[AccountSnapshot]) -> bool {
        token_paths(accounts, now()) == Readiness::Ready
    }

    #[test]
    fn nobody_who_signed_in_yet_is_no_reason_against_it() {
        assert!(is_ready(&[]));
    }

    #[test]
    fn what_is_wrong_with_one_person_takes_no_replica_out() {
        for fault in [Fault::MailClient, Fault::Account, Fault::Tenant] {
            assert!(is_ready(&[account(false, Some((1, fault)))]), "{fault:?}");
            let outage = account(false, Some((1, Fault::Network)));
            assert!(is_ready(&[outage, account(false, Some((1, fault)))]), "{fault:?}");
        }
    }

    #[test]
    fn where_every_way_to_a_token_is_broken_it_is_not_ready() {
        for fault in [Fault::Configuration, Fault::Network, Fault::Provider, Fault::Mailkey] {
            let broken = account(false, Some((1, fault)));
            assert!(!is_ready(std::slice::from_ref(&broken)), "{fault:?}");
            assert!(!is_ready(&[broken.clone(), account(false, None)]), "{fault:?}");
            assert!(is_ready(&[broken, account(true, Some((1, fault)))]), "{fault:?}");
        }
        let mut no_consent = account(false, Some((1, Fault::Tenant)));
        no_consent.last_failure.as_mut().unwrap().1.refusal = Refusal::contact_admin(CauseKind::Consent);
        assert!(!is_ready(&[no_consent]));
    }

    #[test]
    fn a_failure_holds_for_a_minute_so_that_somebody_can_find_it_mended() {
        assert!(!is_ready(&[account(false, Some((59, Fault::Network)))]));
        assert!(is_ready(&[account(false, Some((60, Fault::Network)))]));
    }
}
