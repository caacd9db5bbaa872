//! Keeps wrong passwords away from the identity provider, before its smart lock-out hits the real user.
//!
//! Remembers definitely wrong passwords (as digests) and answers them here; lets no more than a few distinct
//! ones per user through; obeys a lock-out, a policy's no and a request for patience. A password that is proven
//! (it opened what is in the cache) is never held back by the budget: nobody locks a user out by guessing.
//!
//! Never: sees a password, asks anybody, waits, or grows past its bounds.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::time::Instant;

use super::cache::lowest;
use super::entropy::{Digest, same};
use super::error::TokenError;
use crate::config::model;

/// How long a no that only an administrator can change is answered here (MSAL does the same, as long).
const DENIAL_HOLD: Duration = Duration::from_mins(2);

/// The least patience with an application that is asked to slow down without being told for how long.
const THROTTLE_HOLD: Duration = Duration::from_mins(1);

/// The least patience after AADSTS50196: Entra counts identical requests over 5 minutes.
pub const LOOP_HOLD: Duration = Duration::from_mins(5);

/// Most wrong passwords remembered per user.
const MAX_WRONG: usize = 16;

/// Most users, and most denials, remembered.
const MAX_KNOWN: usize = 20_000;

/// See the head of this file.
#[derive(Debug)]
pub struct Guard {
    settings: ArcSwap<model::Guard>,
    people: Arc<DashMap<Digest, Person>>,
    denials: DashMap<(Digest, Digest), (Instant, TokenError)>,
    applications: DashMap<String, Instant>,
    sources: DashMap<IpAddr, Source>,
}

/// What is known of an address (of IPv6, of its /64).
#[derive(Clone, Copy, Debug)]
struct Source {
    /// Refused logins in a row without a pause of `budget-window`.
    wrong: u32,
    last: Instant,
}

/// What is known of a user, whatever the application: Entra locks people, not applications.
#[derive(Debug, Default)]
struct Person {
    wrong: Vec<Wrong>,
    /// Unproven passwords that are being asked about now: they may all turn out wrong.
    pending: u32,
    locked_until: Option<Instant>,
    /// Other replicas used up the budget.
    spent_until: Option<Instant>,
}

#[derive(Debug)]
struct Wrong {
    password: Digest,
    at: Instant,
}

/// Who asks, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// For the error.
    pub user: &'a str,
    /// Digest of the user and the authority.
    pub person: Digest,
    /// Digest of user and application: the cache's key.
    pub slot: Digest,
    /// Digest of the password.
    pub password: Digest,
    /// Whether this password is known to be right.
    pub proven: bool,
}

/// The right to ask; while it lasts, an unproven password counts against the budget.
#[derive(Debug)]
pub struct Permit {
    person: Option<(Digest, Arc<DashMap<Digest, Person>>)>,
}

impl Guard {
    /// With these settings.
    pub fn new(settings: model::Guard) -> Self {
        Self {
            settings: ArcSwap::from_pointee(settings),
            people: Arc::new(DashMap::new()),
            denials: DashMap::new(),
            applications: DashMap::new(),
            sources: DashMap::new(),
        }
    }

    /// Takes other settings. What only an administrator could change may have been changed: those denials are
    /// forgotten. Wrong passwords are not.
    pub fn reconfigure(&self, settings: model::Guard) {
        self.settings.store(Arc::new(settings));
        self.denials.clear();
    }

    /// How long distinct wrong passwords are counted.
    pub fn window(&self) -> Duration {
        self.settings.load().budget_window
    }

    /// Whether the identity provider may be asked.
    ///
    /// # Errors
    /// It may not; the answer is this.
    pub fn admit(&self, asking: &Asking<'_>, now: Instant) -> Result<Permit, TokenError> {
        let user = || asking.user.to_owned();
        if let Some(denial) = self.denials.get(&(asking.slot, asking.password))
            && now < denial.0
        {
            return Err(denial.1.clone());
        }
        if self.people.len() >= MAX_KNOWN && !self.people.contains_key(&asking.person) {
            self.forget(now);
        }
        let mut person = self.people.entry(asking.person).or_default();
        let hold = self.settings.load().wrong_password_hold;
        if person.wrong.iter().any(|wrong| same(&wrong.password, &asking.password) && now < wrong.at + hold) {
            return Err(TokenError::KnownWrong { user: user() });
        }
        if let Some(until) = person.locked_until.filter(|until| now < *until) {
            return Err(TokenError::Locked { user: user(), retry_after: until - now });
        }
        if asking.proven {
            return Ok(Permit { person: None });
        }
        let budget = self.settings.load().wrong_passwords_per_user;
        if let Some(until) = person.spent_until.filter(|until| now < *until) {
            return Err(TokenError::HeldBack { user: user(), wrong: budget, retry_after: until - now });
        }
        let window = self.settings.load().budget_window;
        let others = || {
            person
                .wrong
                .iter()
                .filter(|wrong| now < wrong.at + window && !same(&wrong.password, &asking.password))
        };
        let wrong = u32::try_from(others().count()).unwrap_or(u32::MAX);
        if wrong.saturating_add(person.pending) >= budget {
            let oldest = others().map(|wrong| wrong.at + window).min();
            let retry_after = match oldest {
                Some(free) if wrong >= budget => free - now,
                // Only questions under way fill it: they are answered in a moment.
                Some(_) | None => Duration::from_secs(5),
            };
            return Err(TokenError::HeldBack { user: user(), wrong, retry_after });
        }
        person.pending += 1;
        drop(person);
        Ok(Permit { person: Some((asking.person, Arc::clone(&self.people))) })
    }

    /// The password is wrong for certain. Gives the number of distinct wrong ones in the window.
    pub fn wrong(&self, person: Digest, password: Digest, now: Instant) -> u32 {
        let window = self.settings.load().budget_window;
        let keep = window.max(self.settings.load().wrong_password_hold);
        let mut person = self.people.entry(person).or_default();
        person.wrong.retain(|wrong| now < wrong.at + keep && !same(&wrong.password, &password));
        if person.wrong.len() >= MAX_WRONG {
            person.wrong.remove(0);
        }
        person.wrong.push(Wrong { password, at: now });
        let counted = person.wrong.iter().filter(|wrong| now < wrong.at + window).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    /// All replicas together have seen this many distinct wrong passwords.
    pub fn counted_elsewhere(&self, person: Digest, wrong: u32, now: Instant) {
        if wrong >= self.settings.load().wrong_passwords_per_user {
            self.people.entry(person).or_default().spent_until =
                Some(now + self.settings.load().budget_window);
        }
    }

    /// The password is right: it is no longer remembered as wrong.
    pub fn right(&self, person: Digest, password: Digest) {
        if let Some(mut person) = self.people.get_mut(&person) {
            person.wrong.retain(|wrong| !same(&wrong.password, &password));
            person.locked_until = None;
        }
    }

    /// The identity provider says that the account is locked.
    pub fn locked(&self, person: Digest, hold: Duration, now: Instant) {
        self.people.entry(person).or_default().locked_until = Some(now + hold);
    }

    /// Only an administrator can change this no: it is repeated for a while without asking.
    pub fn denied(&self, slot: Digest, password: Digest, error: TokenError, now: Instant) {
        if self.denials.len() >= MAX_KNOWN {
            self.denials.retain(|_, (until, _)| now < *until);
        }
        if self.denials.len() < MAX_KNOWN {
            self.denials.insert((slot, password), (now + DENIAL_HOLD, error));
        }
    }

    /// Asks for patience with a whole application. Gives how long.
    pub fn throttle(&self, application: &str, told: Option<Duration>, now: Instant) -> Duration {
        let hold = told.unwrap_or(THROTTLE_HOLD);
        let mut until = self.applications.entry(application.to_owned()).or_insert(now + hold);
        *until = (*until).max(now + hold);
        hold
    }

    /// How much patience this application must have yet.
    pub fn throttled(&self, application: &str, now: Instant) -> Option<Duration> {
        let until = *self.applications.get(application)?;
        if now < until {
            return Some(until - now);
        }
        self.applications.remove_if(application, |_, until| *until <= now);
        None
    }

    /// How long a refusal is delayed after this many wrong passwords: doubling from an eighth of `tarpit`.
    pub fn tarpit(&self, wrong: u32) -> Duration {
        let eighth = self.settings.load().tarpit / 8;
        eighth.saturating_mul(1 << wrong.saturating_sub(1).min(3)).min(self.settings.load().tarpit)
    }

    /// One more refused login from this address: how many there were lately. Loopback is no address in this
    /// sense: every client on this machine has it.
    pub fn wrong_from(&self, source: IpAddr, now: Instant) -> u32 {
        if source.to_canonical().is_loopback() {
            return 0;
        }
        if self.sources.len() >= MAX_KNOWN {
            let window = self.settings.load().budget_window;
            self.sources.retain(|_, source| now < source.last + window);
        }
        let fresh = Source { wrong: 0, last: now };
        let mut known = self.sources.entry(neighbourhood(source)).or_insert(fresh);
        if known.last + self.settings.load().budget_window <= now {
            *known = fresh;
        }
        known.wrong = known.wrong.saturating_add(1);
        known.last = now;
        known.wrong
    }

    /// How many distinct wrong passwords of this user are remembered.
    pub fn wrong_count(&self, person: &Digest) -> u32 {
        self.people.get(person).map_or(0, |p| u32::try_from(p.wrong.len()).unwrap_or(u32::MAX))
    }

    /// Drops what has run out; the background task calls it.
    pub fn sweep(&self, now: Instant) {
        let keep = self.settings.load().budget_window.max(self.settings.load().wrong_password_hold);
        self.people.retain(|_, person| {
            person.wrong.retain(|wrong| now < wrong.at + keep);
            let open = |until: Option<Instant>| until.is_some_and(|until| now < until);
            person.pending > 0
                || !person.wrong.is_empty()
                || open(person.locked_until)
                || open(person.spent_until)
        });
        self.denials.retain(|_, (until, _)| now < *until);
        self.sources.retain(|_, source| now < source.last + self.settings.load().budget_window);
    }

    /// Room for new users: first what has run out, then those who are not held back, then those with the fewest wrong
    /// passwords.
    fn forget(&self, now: Instant) {
        self.sweep(now);
        if self.people.len() < MAX_KNOWN {
            return;
        }
        let held = |person: &Person| person.locked_until.is_some() || person.spent_until.is_some();
        let ranked = self
            .people
            .iter()
            .filter(|person| person.pending == 0)
            .map(|person| (held(&person), person.wrong.len() as u64, *person.key()))
            .collect();
        for key in lowest(ranked, MAX_KNOWN / 16) {
            self.people.remove(&key);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((person, people)) = &self.person
            && let Some(mut person) = people.get_mut(person)
        {
            person.pending = person.pending.saturating_sub(1);
        }
    }
}

/// One host has a whole /64 of IPv6 addresses.
fn neighbourhood(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        four @ IpAddr::V4(_) => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn guard() -> Guard {
        Guard::new(model::Guard {
            wrong_password_hold: SECOND * 60,
            wrong_passwords_per_user: 3,
            budget_window: SECOND * 600,
            tarpit: SECOND * 4,
        })
    }

    fn asking(password: u8, proven: bool) -> Asking<'static> {
        Asking { user: "a", person: [1; 32], slot: [2; 32], password: [password; 32], proven }
    }

    #[test]
    fn a_wrong_password_is_known_for_a_while_and_then_asked_about_once() {
        let (guard, now) = (guard(), crate::clock::now());
        drop(guard.admit(&asking(1, false), now).unwrap());
        guard.wrong([1; 32], [1; 32], now);
        let again = guard.admit(&asking(1, false), now + SECOND * 59);
        assert!(matches!(again, Err(TokenError::KnownWrong { .. })));
        assert!(guard.admit(&asking(1, false), now + SECOND * 60).is_ok());
    }

    #[test]
    fn the_budget_counts_distinct_passwords_and_spares_the_right_one() {
        let (guard, now) = (guard(), crate::clock::now());
        for password in [1, 2, 3, 3, 3] {
            guard.wrong([1; 32], [password; 32], now);
        }
        let held = guard.admit(&asking(9, false), now + SECOND).unwrap_err();
        assert!(
            matches!(held, TokenError::HeldBack { wrong: 3, retry_after, .. } if retry_after == SECOND * 599)
        );
        assert!(guard.admit(&asking(9, true), now + SECOND).is_ok());
        assert!(guard.admit(&asking(9, false), now + SECOND * 600).is_ok());
    }

    #[test]
    fn questions_under_way_count_too() {
        let (guard, now) = (guard(), crate::clock::now());
        let permits: Vec<_> = (1..=3).map(|n| guard.admit(&asking(n, false), now).unwrap()).collect();
        assert!(matches!(guard.admit(&asking(4, false), now), Err(TokenError::HeldBack { .. })));
        drop(permits);
        assert!(guard.admit(&asking(4, false), now).is_ok());
    }

    #[test]
    fn a_lock_out_holds_every_password_of_that_user_only() {
        let (guard, now) = (guard(), crate::clock::now());
        guard.locked([1; 32], SECOND * 60, now);
        assert!(matches!(guard.admit(&asking(1, true), now), Err(TokenError::Locked { .. })));
        assert!(guard.admit(&Asking { person: [5; 32], ..asking(1, false) }, now).is_ok());
        assert!(guard.admit(&asking(1, false), now + SECOND * 60).is_ok());
    }

    #[test]
    fn other_replicas_wrong_passwords_use_the_budget_up() {
        let (guard, now) = (guard(), crate::clock::now());
        guard.counted_elsewhere([1; 32], 2, now);
        assert!(guard.admit(&asking(1, false), now).is_ok());
        guard.counted_elsewhere([1; 32], 3, now);
        assert!(matches!(guard.admit(&asking(1, false), now), Err(TokenError::HeldBack { .. })));
    }

    #[test]
    fn the_tarpit_grows_and_ends() {
        let guard = guard();
        let waits: Vec<_> = (1..7).map(|n| guard.tarpit(n)).collect();
        assert_eq!(waits, [SECOND / 2, SECOND, SECOND * 2, SECOND * 4, SECOND * 4, SECOND * 4]);
    }

    #[test]
    fn an_address_that_guesses_is_remembered_and_loopback_is_none() {
        let (guard, now) = (guard(), crate::clock::now());
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let two: IpAddr = "2001:db8::2".parse().unwrap();
        assert_eq!((guard.wrong_from(one, now), guard.wrong_from(two, now)), (1, 2));
        assert_eq!(guard.wrong_from("192.0.2.1".parse().unwrap(), now), 1);
        assert_eq!(guard.wrong_from("127.0.0.1".parse().unwrap(), now), 0);
        assert_eq!(guard.wrong_from("::ffff:127.0.0.1".parse().unwrap(), now), 0);
        assert_eq!(guard.wrong_from(one, now + SECOND * 600), 1, "after a pause it counts anew");
        guard.sweep(now + SECOND * 1200);
        assert!(guard.sources.is_empty());
    }

    #[test]
    fn a_shorter_request_for_patience_does_not_shorten_a_longer_one() {
        let (guard, now) = (guard(), crate::clock::now());
        guard.throttle("app", Some(SECOND * 100), now);
        guard.throttle("app", Some(SECOND), now);
        assert_eq!(guard.throttled("app", now), Some(SECOND * 100));
        assert_eq!(guard.throttled("app", now + SECOND * 100), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (guard, now) = (guard(), crate::clock::now());
        for password in 0..100 {
            guard.wrong([1; 32], [password; 32], now);
        }
        assert_eq!(guard.wrong_count(&[1; 32]) as usize, MAX_WRONG);
        guard.sweep(now + SECOND * 601);
        assert!(guard.people.is_empty());
    }

    fn numbered(number: usize) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    #[test]
    fn room_for_a_new_user_is_taken_from_whom_least_is_held_against() {
        let (guard, now) = (guard(), crate::clock::now());
        let (locked, notorious, asked) =
            (numbered(MAX_KNOWN), numbered(MAX_KNOWN + 1), numbered(MAX_KNOWN + 2));
        guard.locked(locked, SECOND * 60, now);
        for password in [1, 2, 3] {
            guard.wrong(notorious, [password; 32], now);
        }
        let permit = guard.admit(&Asking { person: asked, ..asking(1, false) }, now).unwrap();
        for number in 3..MAX_KNOWN {
            guard.wrong(numbered(number), [9; 32], now);
        }
        assert_eq!(guard.people.len(), MAX_KNOWN);
        assert!(guard.admit(&asking(1, false), now).is_ok(), "there is room for one more");
        assert_eq!(guard.people.len(), MAX_KNOWN - MAX_KNOWN / 16 + 1);
        for (person, why) in [(locked, "locked"), (notorious, "out of budget"), (asked, "being asked about")]
        {
            assert!(guard.people.contains_key(&person), "{why}");
        }
        drop(permit);
        // once everything has run out, no one is forgotten who need not be
        let later = now + SECOND * 600;
        assert!(guard.admit(&Asking { person: [7; 32], ..asking(1, false) }, later).is_ok());
    }

    #[test]
    fn denials_and_addresses_are_bounded_and_make_room_as_they_run_out() {
        let (guard, now) = (guard(), crate::clock::now());
        let no = || TokenError::KnownWrong { user: "a".to_owned() };
        for number in 0..=MAX_KNOWN {
            guard.denied(numbered(number), [1; 32], no(), now);
        }
        assert_eq!(guard.denials.len(), MAX_KNOWN);
        guard.denied(numbered(1), [2; 32], no(), now + DENIAL_HOLD);
        assert_eq!(guard.denials.len(), 1);

        for number in 0..u32::try_from(MAX_KNOWN).unwrap() {
            guard.wrong_from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into(), now);
        }
        guard.wrong_from("192.0.2.1".parse().unwrap(), now + SECOND * 600);
        assert_eq!(guard.sources.len(), 1);
    }

    #[test]
    fn other_settings_count_at_once_and_forget_what_an_administrator_may_have_mended() {
        let (guard, now) = (guard(), crate::clock::now());
        guard.denied([2; 32], [1; 32], TokenError::Busy, now);
        guard.wrong([1; 32], [3; 32], now);
        assert!(matches!(guard.admit(&asking(1, false), now), Err(TokenError::Busy)));
        let settings =
            model::Guard { budget_window: SECOND * 30, ..model::Guard::clone(&guard.settings.load()) };
        guard.reconfigure(settings);
        assert_eq!(guard.window(), SECOND * 30);
        assert!(guard.admit(&asking(1, false), now).is_ok());
        assert!(matches!(guard.admit(&asking(3, false), now), Err(TokenError::KnownWrong { .. })));
    }
}
