//! Every metric, named once. Labels are bounded: listener names, protocols, codes; never a user name.

use std::collections::HashSet;
use std::sync::atomic::AtomicI64;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::clock;

/// Handles to all metrics; cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Connections accepted, by listener.
    pub connections: Family<ListenerLabel, Counter>,
    /// Accepts that failed (no file descriptors left, mostly), by listener.
    pub accept_errors: Family<ListenerLabel, Counter>,
    /// Sessions alive now, by listener.
    pub sessions: Family<ListenerLabel, Gauge<i64, AtomicI64>>,
    /// Logins that ended well, by listener and where the token came from.
    pub logins: Family<LoginLabels, Counter>,
    /// Logins that were refused, by listener and explanation code.
    pub refusals: Family<RefusalLabels, Counter>,
    /// Bytes relayed, by listener and direction.
    pub relayed: Family<RelayLabels, Counter>,
    /// Requests to the identity provider, by grant and outcome (`ok` or an explanation code).
    pub token_requests: Family<TokenLabels, Counter>,
    /// Signed-in logins that wait for another session of their mailbox to end, by listener.
    pub waiting: Family<ListenerLabel, Gauge<i64, AtomicI64>>,
    /// Connections kept ready for a login, by upstream.
    pub warm_parked: Family<UpstreamLabel, Gauge<i64, AtomicI64>>,
    /// What became of them: `taken` by a login, `aged`, `lost` (upstream closed), `failed` (never greeted).
    pub warm_connections: Family<WarmLabels, Counter>,
    /// The sums of `logins` and `refusals`, as a family cannot be summed up.
    logins_ended: Counter,
    logins_refused: Counter,
    /// 1 where the last reload took the configuration, 0 where it did not.
    reload_successful: Gauge<i64, AtomicI64>,
    /// When a configuration was last taken, in seconds since 1970.
    reload_time: Gauge<i64, AtomicI64>,
    history: History,
    codes: Mutex<HashSet<String>>,
}

/// Sums over all labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Logins that ended well.
    pub logins: u64,
    /// Logins that were refused.
    pub refusals: u64,
}

/// See [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// The listener's name.
    pub listener: String,
}

/// See [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoginLabels {
    /// The listener's name.
    pub listener: String,
    /// `cached`, `fetched`, `shared` or `stale`.
    pub token: &'static str,
}

/// See [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    /// The listener's name.
    pub listener: String,
    /// The explanation's code.
    pub code: String,
}

/// Both counters of what a listener relays.
#[derive(Clone, Debug)]
pub struct Relayed {
    up: Counter,
    down: Counter,
}

impl Relayed {
    /// So many octets went towards Office 365, and so many came from there.
    pub fn count(&self, up: u64, down: u64) {
        self.up.inc_by(up);
        self.down.inc_by(down);
    }
}

/// See [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayLabels {
    /// The listener's name.
    pub listener: String,
    /// `up` (towards Office 365) or `down`.
    pub direction: &'static str,
}

/// See [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabel {
    /// Host and port, as configured.
    pub upstream: String,
}

/// See [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WarmLabels {
    /// Host and port, as configured.
    pub upstream: String,
    /// `taken`, `aged`, `lost` or `failed`.
    pub outcome: &'static str,
}

/// See [`Metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TokenLabels {
    /// The grant.
    pub grant: &'static str,
    /// `ok` or the explanation's code.
    pub outcome: String,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("mailkey"),
            connections: Family::default(),
            accept_errors: Family::default(),
            sessions: Family::default(),
            logins: Family::default(),
            refusals: Family::default(),
            relayed: Family::default(),
            token_requests: Family::default(),
            waiting: Family::default(),
            warm_parked: Family::default(),
            warm_connections: Family::default(),
            logins_ended: Counter::default(),
            logins_refused: Counter::default(),
            reload_successful: Gauge::default(),
            reload_time: Gauge::default(),
            history: History::default(),
            codes: Mutex::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("connections", "Connections accepted", metrics.connections.clone());
        registry.register("accept_errors", "Accepts that failed", metrics.accept_errors.clone());
        registry.register(
            "config_last_reload_successful",
            "Whether the last reload took the configuration",
            metrics.reload_successful.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When a configuration was last taken",
            metrics.reload_time.clone(),
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program", build);
        registry.register("sessions", "Sessions alive now", metrics.sessions.clone());
        registry.register("logins", "Logins that ended well", metrics.logins.clone());
        registry.register("refusals", "Logins that were refused", metrics.refusals.clone());
        registry.register("relayed_bytes", "Bytes relayed after the login", metrics.relayed.clone());
        registry.register(
            "token_requests",
            "Requests to the identity provider",
            metrics.token_requests.clone(),
        );
        registry.register(
            "logins_waiting",
            "Logins that wait for a session of their mailbox to end",
            metrics.waiting.clone(),
        );
        registry.register(
            "log_lines_lost",
            "Lines of the log that nobody will read",
            super::log::LOST.clone(),
        );
        registry.register(
            "warm_connections_parked",
            "Upstream connections ready for a login",
            metrics.warm_parked.clone(),
        );
        registry.register(
            "warm_connections",
            "What became of upstream connections opened ahead of a login",
            metrics.warm_connections.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// All logins and refusals since the start, for the status page.
    pub fn totals(&self) -> Totals {
        Totals { logins: self.logins_ended.get(), refusals: self.logins_refused.get() }
    }

    /// Logins and refusals of the last hour by minute, the oldest first.
    pub fn history(&self, now: Timestamp) -> Vec<(u32, u32)> {
        self.history.last_hour(minute(now))
    }

    /// A configuration was taken, or not.
    pub fn reloaded(&self, is_taken: bool, now: Timestamp) {
        self.reload_successful.set(i64::from(is_taken));
        if is_taken {
            self.reload_time.set(now.as_second());
        }
    }

    /// The counters of what this listener relays.
    pub fn relayed_by(&self, listener: &str) -> Relayed {
        let counter = |direction| {
            self.relayed.get_or_create_owned(&RelayLabels { listener: listener.to_owned(), direction })
        };
        Relayed { up: counter("up"), down: counter("down") }
    }

    /// A login ended well.
    pub fn logged_in(&self, listener: &str, token: &'static str) {
        self.logins.get_or_create(&LoginLabels { listener: listener.to_owned(), token }).inc();
        self.logins_ended.inc();
        self.history.count(minute(clock::wall()), (1, 0));
    }

    /// A login was refused.
    pub fn refused(&self, listener: &str, code: &str) {
        let labels = RefusalLabels { listener: listener.to_owned(), code: self.code_label(code).to_owned() };
        self.refusals.get_or_create(&labels).inc();
        self.logins_refused.inc();
        self.history.count(minute(clock::wall()), (0, 1));
    }

    /// The code itself, or `other` where there are very many: some are numbers that a provider has thought up.
    pub fn code_label<'a>(&self, code: &'a str) -> &'a str {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        if codes.contains(code) {
            return code;
        }
        if codes.len() >= MAX_CODES {
            return "other";
        }
        codes.insert(code.to_owned());
        code
    }

    /// All of it in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _: Result<(), std::fmt::Error> = text::encode(&mut out, &self.registry);
        out
    }
}

/// Most codes that refusals are counted by.
const MAX_CODES: usize = 100;

/// Minutes that the history goes back.
const HOUR: usize = 60;

/// Logins and refusals by minute: a ring, so that its size never changes.
#[derive(Debug, Default)]
struct History(Mutex<Vec<(i64, u32, u32)>>);

impl History {
    fn count(&self, minute: i64, (logins, refusals): (u32, u32)) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.resize(HOUR, (i64::MIN, 0, 0));
        let Some(slot) = usize::try_from(minute.rem_euclid(60)).ok().and_then(|at| ring.get_mut(at)) else {
            return;
        };
        if slot.0 != minute {
            *slot = (minute, 0, 0);
        }
        slot.1 = slot.1.saturating_add(logins);
        slot.2 = slot.2.saturating_add(refusals);
    }

    fn last_hour(&self, now: i64) -> Vec<(u32, u32)> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of =
            |minute: i64| ring.iter().find(|slot| slot.0 == minute).map_or((0, 0), |slot| (slot.1, slot.2));
        (now - 59..=now).map(of).collect()
    }
}

fn minute(time: Timestamp) -> i64 {
    time.as_second().div_euclid(60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_provider_makes_more_and_more_time_series() {
        let metrics = Metrics::default();
        for number in 0..1000 {
            metrics.refused("imap", &format!("AADSTS{number}"));
        }
        let text = metrics.encode();
        let series = || text.lines().filter(|line| line.starts_with("mailkey_refusals_total{"));
        assert_eq!(series().count(), MAX_CODES + 1);
        assert!(series().any(|line| line.contains("code=\"other\"") && line.ends_with(" 900")), "{text}");
    }

    #[test]
    fn the_history_forgets_after_an_hour() {
        let history = History::default();
        for (minute, what) in [(1000, (1, 0)), (1000, (1, 0)), (1059, (0, 1)), (1060, (1, 0))] {
            history.count(minute, what);
        }
        let hour = history.last_hour(1060);
        assert_eq!((hour.len(), hour[0], hour[58], hour[59]), (60, (0, 0), (0, 1), (1, 0)));
        assert_eq!(history.last_hour(1200), [(0, 0); 60]);
    }
}
