//! TLS sessions to be resumed. rustls keeps eight tickets per name; a storm of logins needs more.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Names that are remembered.
const NAMES: usize = 64;

/// Tickets per name. Each resumes one session (RFC 8446 §C.4), so that this is the size of the storm that
/// resumes. One takes 2 to 6 KB.
const TICKETS: usize = 256;

/// Remembers sessions in memory: [`NAMES`] names, [`TICKETS`] tickets each, the oldest going first.
#[derive(Default)]
pub struct Tickets {
    names: Mutex<HashMap<ServerName<'static>, Held>>,
}

#[derive(Default)]
struct Held {
    /// Which name was used last; counts up.
    used: u64,
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    /// The oldest first.
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl Tickets {
    /// How many TLS 1.3 tickets of a name wait to be used.
    pub fn waiting(&self, name: &ServerName<'_>) -> usize {
        self.lock().get(&name.to_owned()).map_or(0, |held| held.tls13.len())
    }

    fn with(&self, name: ServerName<'static>, change: impl FnOnce(&mut Held)) {
        let mut names = self.lock();
        if names.len() >= NAMES && !names.contains_key(&name) {
            let oldest = names.iter().min_by_key(|(_, held)| held.used).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                names.remove(&oldest);
            }
        }
        let newest = names.values().map(|held| held.used).max().unwrap_or_default();
        let held = names.entry(name).or_default();
        held.used = newest + 1;
        change(held);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, Held>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.with(name, |held| held.group = Some(group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.lock().get(&name.to_owned()).and_then(|held| held.group)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.with(name, |held| held.tls12 = Some(value));
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.lock().get(&name.to_owned()).and_then(|held| held.tls12.clone())
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        if let Some(held) = self.lock().get_mut(name) {
            held.tls12 = None;
        }
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.with(name, |held| {
            if held.tls13.len() >= TICKETS {
                held.tls13.pop_front();
            }
            held.tls13.push_back(value);
        });
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.lock().get_mut(name).and_then(|held| held.tls13.pop_back())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("names", &self.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_the_one_not_used_for_longest_goes_first() {
        let tickets = Tickets::default();
        let name = |i: usize| ServerName::try_from(format!("host{i}.example")).unwrap();
        for i in 0..NAMES {
            tickets.set_kx_hint(name(i), NamedGroup::X25519);
        }
        tickets.set_kx_hint(name(0), NamedGroup::secp256r1);
        tickets.set_kx_hint(name(NAMES), NamedGroup::X25519);
        assert_eq!(tickets.lock().len(), NAMES);
        assert_eq!(tickets.kx_hint(&name(0)), Some(NamedGroup::secp256r1));
        assert_eq!(tickets.kx_hint(&name(1)), None);
    }
}
