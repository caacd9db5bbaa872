//! The tokens at hand. A slot belongs to one user of one application; what is in it opens to one password only.
//!
//! Never: gives a token to another password than the one it was granted for, drops one because of a wrong
//! password, waits, or grows past its bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use dashmap::DashMap;
use jiff::Timestamp;
use tokio::time::Instant;

use super::entropy::{self, Digest, same};
use crate::config::model::{Account, Grant, Protocol};
use crate::explain::Explanation;
use crate::secret::{AccessToken, Secret};

/// Most slots.
pub const MAX_SLOTS: usize = 10_000;

/// A token is taken to live this long at least. With less, every login would ask anew, and Entra takes 15
/// identical requests in 5 minutes for a loop (AADSTS50196); if upstream refuses it, it is asked for again.
const SHORTEST_LIFE: Duration = Duration::from_secs(30);

/// A token is not renewed by logins before it is this old.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(20);

/// Slots by the digest of user and application.
#[derive(Debug)]
pub struct Cache {
    slots: DashMap<Digest, Arc<Slot>>,
    capacity: usize,
    born: Instant,
}

/// One user of one application.
#[derive(Debug)]
pub struct Slot {
    /// As the client signed in, in lower case.
    pub user: Box<str>,
    /// Which settings it was last used with.
    pub account: Arc<Account>,
    /// Which protocol it serves: decides the scope.
    pub protocol: Protocol,
    entry: ArcSwapOption<Entry>,
    used: AtomicU64,
    failure: Mutex<Option<(Timestamp, Explanation)>>,
    /// When a token was last dropped because upstream refused it.
    dropped_at: Mutex<Option<Instant>>,
}

/// What a password that was accepted opens.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The digest of that password.
    pub password: Digest,
    /// When the identity provider last saw it.
    pub proven_at: Instant,
    /// The grant that served.
    pub grant: Grant,
    /// Renews the token without the password. In memory only.
    pub refresh_token: Option<Secret>,
    /// The token; `None` once upstream refused it.
    pub live: Option<Live>,
}

/// A token with its times.
#[derive(Clone, Debug)]
pub struct Live {
    /// The token.
    pub token: AccessToken,
    /// When it was asked for.
    pub fetched_at: Instant,
    /// From here on, the background task may renew it: some time ahead of `renew_at`, different for each.
    pub ahead_at: Instant,
    /// From here on, a login renews it before it is handed out.
    pub renew_at: Instant,
    /// From here on, it is worth nothing.
    pub expires_at: Instant,
}

impl Live {
    /// A token asked for at `fetched_at` that lives for `lifetime`, to be renewed `margin` before its end, or at
    /// half its life where it is shorter than two margins.
    pub fn new(token: AccessToken, fetched_at: Instant, lifetime: Duration, margin: Duration) -> Self {
        let lifetime = lifetime.max(SHORTEST_LIFE);
        let margin = margin.min(lifetime / 2);
        let renew_after = lifetime.saturating_sub(margin).max(SHORTEST_INTERVAL);
        let ahead = margin / 2 + entropy::up_to(margin / 2);
        Self {
            token,
            fetched_at,
            ahead_at: fetched_at + renew_after.saturating_sub(ahead).max(SHORTEST_INTERVAL),
            renew_at: fetched_at + renew_after,
            expires_at: fetched_at + lifetime,
        }
    }
}

impl Slot {
    /// What this password opens; nothing for any other. Compared in constant time.
    pub fn open(&self, password: &Digest) -> Option<Arc<Entry>> {
        self.entry.load_full().filter(|entry| same(&entry.password, password))
    }

    /// The token of this password, if it is good at `now` for at least until it ought to be renewed.
    pub fn fresh(&self, password: &Digest, now: Instant) -> Option<(AccessToken, Instant)> {
        let entry = self.entry.load();
        let entry = entry.as_ref().filter(|entry| same(&entry.password, password))?;
        let live = entry.live.as_ref().filter(|live| now < live.renew_at)?;
        Some((live.token.clone(), live.expires_at))
    }

    /// Whatever is in it, for the background renewal and the status page.
    pub fn peek(&self) -> Option<Arc<Entry>> {
        self.entry.load_full()
    }

    /// Puts in what the identity provider granted just now. It replaces what another password opened: that one
    /// has been changed.
    pub fn put(&self, entry: Entry) {
        self.entry.store(Some(Arc::new(entry)));
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The identity provider itself said that this password is wrong now: what it opened is dropped. Another
    /// password changes nothing.
    pub fn disprove(&self, password: &Digest) {
        if let Some(entry) = self.open(password) {
            self.entry.compare_and_swap(&entry, None);
        }
    }

    /// The refresh token of this password was refused: what it opened stays until its own end.
    pub fn drop_refresh_token(&self, password: &Digest) {
        if let Some(entry) = self.open(password) {
            let without = Entry { refresh_token: None, ..Entry::clone(&entry) };
            self.entry.compare_and_swap(&entry, Some(Arc::new(without)));
        }
    }

    /// Drops exactly this token, unless another was dropped less than `pause` ago; the password stays proven.
    pub fn drop_token(&self, token: &AccessToken, pause: Duration, now: Instant) -> bool {
        let Some(entry) = self.entry.load_full() else { return false };
        if entry.live.as_ref().is_none_or(|live| live.token != *token) {
            return false;
        }
        let mut last = self.dropped_at.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last + pause > now) {
            return false;
        }
        *last = Some(now);
        let without = Entry { live: None, ..Entry::clone(&entry) };
        self.entry.compare_and_swap(&entry, Some(Arc::new(without)));
        true
    }

    /// Remembers the last failure, for the status page.
    pub fn failed(&self, at: Timestamp, story: Explanation) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, story));
    }

    /// The last failure, if no success came after it.
    pub fn failure(&self) -> Option<(Timestamp, Explanation)> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Worth less than others when room is needed: nothing in it that would save a request.
    fn is_spent(&self, now: Instant) -> bool {
        self.entry.load().as_ref().is_none_or(|entry| {
            entry.refresh_token.is_none() && entry.live.as_ref().is_none_or(|live| live.expires_at <= now)
        })
    }
}

impl Cache {
    /// An empty one with room for `capacity` slots.
    pub fn new(capacity: usize, now: Instant) -> Self {
        Self { slots: DashMap::new(), capacity, born: now }
    }

    /// The slot, if there is one. No guard of the map is left behind.
    pub fn find(&self, key: &Digest) -> Option<Arc<Slot>> {
        self.slots.get(key).map(|slot| Arc::clone(&slot))
    }

    /// Marks a slot as used by a client.
    pub fn touch(&self, slot: &Slot, now: Instant) {
        slot.used.store(self.tick(now), Ordering::Relaxed);
    }

    /// How long ago a client used it.
    pub fn unused_for(&self, slot: &Slot, now: Instant) -> Duration {
        Duration::from_millis(self.tick(now).saturating_sub(slot.used.load(Ordering::Relaxed)))
    }

    /// The slot, made where there is none; the least useful ones make room.
    pub fn slot(
        &self,
        key: Digest,
        user: &str,
        account: &Arc<Account>,
        protocol: Protocol,
        now: Instant,
    ) -> Arc<Slot> {
        if let Some(slot) = self.find(&key) {
            return slot;
        }
        if self.slots.len() >= self.capacity {
            self.make_room(now);
        }
        let slot = self.slots.entry(key).or_insert_with(|| {
            Arc::new(Slot {
                user: user.to_lowercase().into(),
                account: Arc::clone(account),
                protocol,
                entry: ArcSwapOption::empty(),
                used: AtomicU64::new(self.tick(now)),
                failure: Mutex::new(None),
                dropped_at: Mutex::new(None),
            })
        });
        Arc::clone(&slot)
    }

    /// Everything, by key.
    pub fn all(&self) -> Vec<(Digest, Arc<Slot>)> {
        self.slots.iter().map(|slot| (*slot.key(), Arc::clone(slot.value()))).collect()
    }

    /// Drops what no client has used for `idle`.
    pub fn sweep(&self, idle: Duration, now: Instant) {
        self.slots.retain(|_, slot| self.unused_for(slot, now) < idle);
    }

    /// A sixteenth goes: spent slots first, then those longest unused. So the cost is spread over many inserts.
    fn make_room(&self, now: Instant) {
        let ranked = self
            .slots
            .iter()
            .map(|slot| (!slot.is_spent(now), slot.used.load(Ordering::Relaxed), *slot.key()))
            .collect();
        for key in lowest(ranked, self.capacity / 16 + 1) {
            self.slots.remove(&key);
        }
    }

    fn tick(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The keys of so many that rank lowest: they have to make room.
pub(super) fn lowest(mut ranked: Vec<(bool, u64, Digest)>, count: usize) -> impl Iterator<Item = Digest> {
    ranked.sort_unstable();
    ranked.into_iter().take(count).map(|(_, _, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::testing::account;

    const MINUTE: Duration = Duration::from_mins(1);

    fn entry(password: Digest, now: Instant) -> Entry {
        Entry {
            password,
            proven_at: now,
            grant: Grant::Password,
            refresh_token: None,
            live: Some(Live::new(AccessToken::new("t"), now, MINUTE * 60, MINUTE * 10)),
        }
    }

    #[test]
    fn another_password_opens_nothing_and_changes_nothing() {
        let now = crate::clock::now();
        let cache = Cache::new(10, now);
        let slot = cache.slot([1; 32], "Alice", &account(&[Grant::Password]), Protocol::Imap, now);
        slot.put(entry([7; 32], now));
        assert!(slot.fresh(&[8; 32], now).is_none() && slot.open(&[8; 32]).is_none());
        slot.disprove(&[8; 32]);
        assert!(slot.fresh(&[7; 32], now).is_some());
        slot.disprove(&[7; 32]);
        assert!(slot.fresh(&[7; 32], now).is_none());
    }

    #[test]
    fn a_token_is_renewed_before_its_end_but_never_in_a_tight_loop() {
        let now = crate::clock::now();
        for (life, margin) in
            [(0, 600), (5, 600), (30, 600), (300, 600), (3600, 600), (3600, 0), (86_400, 7200)]
        {
            let lifetime = Duration::from_secs(life);
            let live = Live::new(AccessToken::new("t"), now, lifetime, Duration::from_secs(margin));
            assert!(now + SHORTEST_INTERVAL <= live.ahead_at, "{life}");
            assert!(live.ahead_at <= live.renew_at && live.renew_at <= live.expires_at, "{life}");
            assert!(
                lifetime <= live.expires_at - now && live.expires_at - now <= lifetime.max(SHORTEST_LIFE),
                "{life}"
            );
        }
    }

    #[test]
    fn a_flood_of_strangers_does_not_push_out_a_live_token() {
        let now = crate::clock::now();
        let cache = Cache::new(16, now);
        let account = account(&[Grant::Password]);
        cache.slot([255; 32], "alice", &account, Protocol::Imap, now).put(entry([7; 32], now));
        for n in 0..200 {
            cache.slot([n; 32], "stranger", &account, Protocol::Imap, now + MINUTE);
        }
        assert!(cache.slots.len() <= 16);
        assert!(cache.find(&[255; 32]).unwrap().fresh(&[7; 32], now).is_some());
    }

    #[test]
    fn among_live_tokens_the_longest_unused_goes_first() {
        let now = crate::clock::now();
        let cache = Cache::new(16, now);
        let account = account(&[Grant::Password]);
        for n in 0..17_u8 {
            let at = now + Duration::from_secs(u64::from(n));
            cache.slot([n; 32], "user", &account, Protocol::Imap, at).put(entry([7; 32], now));
        }
        assert!(cache.find(&[0; 32]).is_none() && cache.find(&[1; 32]).is_none());
        assert!(cache.find(&[2; 32]).is_some() && cache.find(&[16; 32]).is_some());
    }

    #[test]
    fn only_the_very_token_that_was_refused_is_dropped_and_no_second_one_soon() {
        let now = crate::clock::now();
        let cache = Cache::new(16, now);
        let slot = cache.slot([1; 32], "a", &account(&[Grant::Password]), Protocol::Imap, now);
        slot.put(entry([7; 32], now));
        assert!(!slot.drop_token(&AccessToken::new("other"), Duration::ZERO, now));
        assert!(slot.drop_token(&AccessToken::new("t"), MINUTE, now));
        assert!(slot.fresh(&[7; 32], now).is_none());
        slot.put(entry([7; 32], now));
        assert!(!slot.drop_token(&AccessToken::new("t"), MINUTE, now + MINUTE / 2));
        assert!(slot.drop_token(&AccessToken::new("t"), MINUTE, now + MINUTE));
        assert!(slot.open(&[7; 32]).is_some(), "the password stays proven");
    }
}
