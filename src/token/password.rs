//! Passwords that we check ourselves, where the identity provider does not see them: Argon2id hashes (PHC
//! strings) of `proxy.yaml`.
//!
//! A login costs tens of milliseconds and 19 MiB the first time, on a thread that may block, and microseconds
//! afterwards: what was verified is remembered as a keyed digest, under a key that lives as long as the process.
//! The hash string is part of the digest, so that a hash that was changed or removed is never served from memory.
//!
//! Never: keeps a password, remembers a wrong one, or answers faster because a user does not exist.
//!
//! Sources: RFC 9106 (Argon2), the OWASP Password Storage Cheat Sheet (19 MiB, 2 passes).

use std::collections::HashMap;
use std::fmt;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, PasswordHasher, PasswordVerifier};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::digest::keyed_digest;
use crate::secret::Secret;

/// Checks passwords against hashes, and remembers what was right.
pub struct LocalPasswords {
    /// `None` where the system gave no random key: nothing is remembered then.
    key: Option<hmac::Key>,
    /// Which password last satisfied a user's hash: digest of user and hash → digest with the password.
    verified: Arc<Mutex<HashMap<Digest, Digest>>>,
    /// One per core: an Argon2 computation fills one.
    workers: Arc<Semaphore>,
    /// Places of those who wait for a worker.
    places: Semaphore,
}

type Digest = [u8; 32];

/// Verified passwords that are remembered at most.
const MAX_REMEMBERED: usize = 10_000;

/// Logins that wait for a worker at most.
const MAX_WAITING: usize = 256;

/// As expensive as a real hash, and opened by nothing: for users whom nobody knows.
const DECOY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bWFpbGtleS1kZWNveS0x$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Costs above these are refused: they would hold up every other login.
const MAX_MEMORY_KIB: u32 = 262_144;
const MAX_PASSES: u32 = 16;

/// So many passwords are being checked that this one is not looked at. Nothing is known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_WAITING} logins already wait for their password to be checked")]
pub struct Busy;

/// Why a text is no hash that we check passwords against.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashProblem {
    /// No PHC string.
    #[error("expected a PHC string as `mailkey hash-password` prints it: `$argon2id$v=19$…`")]
    NoPhcString,
    /// Another algorithm.
    #[error("expected an Argon2id hash, got `{0}`")]
    Algorithm(String),
    /// Parameters out of bounds.
    #[error("expected at most m={MAX_MEMORY_KIB} and t={MAX_PASSES}")]
    TooExpensive,
}

/// A hash could not be made: the password has a length that Argon2 does not take, or the system has no
/// random numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password cannot be hashed: {0}")]
pub struct HashError(String);

impl LocalPasswords {
    /// Nothing remembered yet, a fresh key.
    pub fn new() -> Self {
        let cores = available_parallelism().map_or(1, NonZero::get);
        Self {
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok(),
            verified: Arc::default(),
            workers: Arc::new(Semaphore::new(cores)),
            places: Semaphore::new(MAX_WAITING),
        }
    }

    /// Whether the password opens any one of the hashes. A user without hashes costs as much as one with.
    ///
    /// `false` also where too many logins wait already; [`check`](Self::check) tells the two apart.
    pub async fn verify(&self, hashes: &[String], user: &str, password: &Secret) -> bool {
        self.check(hashes, user, password).await.unwrap_or(false)
    }

    /// As [`verify`](Self::verify).
    ///
    /// # Errors
    /// [`Busy`] where nothing was checked, as too many logins wait for that already. A password that was
    /// right before is never told so.
    pub async fn check(&self, hashes: &[String], user: &str, password: &Secret) -> Result<bool, Busy> {
        if self.remembered(hashes, user, password) {
            return Ok(true);
        }
        let _place = self.places.try_acquire().map_err(|_| Busy)?;
        let Ok(worker) = Arc::clone(&self.workers).acquire_owned().await else { return Err(Busy) };
        // The same login may have been verified while this one waited.
        if self.remembered(hashes, user, password) {
            return Ok(true);
        }
        let (candidates, secret) = (hashes.to_vec(), password.clone());
        let opened = tokio::task::spawn_blocking(move || {
            // Held by the computation, not by the waiter: a login that is given up still fills a core.
            let _worker = worker;
            opened_by(&candidates, &secret)
        });
        let Ok(Some(hash)) = opened.await else { return Ok(false) };
        self.remember(&hash, user, password);
        Ok(true)
    }

    fn remembered(&self, hashes: &[String], user: &str, password: &Secret) -> bool {
        let Some(key) = &self.key else { return false };
        let mut right = false;
        for hash in hashes {
            let slot = keyed_digest(key, &[b"slot", user.as_bytes(), hash.as_bytes()]);
            let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).copied();
            if let Some(known) = known {
                let proof = proof(key, user, hash, password);
                right |= bool::from(known.ct_eq(&proof));
            }
        }
        right
    }

    fn remember(&self, hash: &str, user: &str, password: &Secret) {
        let Some(key) = &self.key else { return };
        let slot = keyed_digest(key, &[b"slot", user.as_bytes(), hash.as_bytes()]);
        let proof = proof(key, user, hash, password);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_REMEMBERED
            && !verified.contains_key(&slot)
            && let Some(any) = verified.keys().next().copied()
        {
            verified.remove(&any);
        }
        verified.insert(slot, proof);
    }
}

impl Default for LocalPasswords {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LocalPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalPasswords").finish_non_exhaustive()
    }
}

/// An Argon2id hash with a fresh salt, as a PHC string for `password-hash`.
///
/// # Errors
/// No random numbers for the salt.
///
/// ```
/// use mailkey::{secret::Secret, token::password};
/// let hash = password::hash(&Secret::new("correct horse")).unwrap();
/// assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
/// assert_eq!(password::check_hash(&hash), Ok(()));
/// ```
pub fn hash(password: &Secret) -> Result<String, HashError> {
    Argon2::default()
        .hash_password(password.expose().as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|why| HashError(why.to_string()))
}

/// Whether `password-hash` of a configuration can be checked against at all.
///
/// # Errors
/// No Argon2id PHC string, or costs out of bounds.
pub fn check_hash(hash: &str) -> Result<(), HashProblem> {
    let parsed = PasswordHash::new(hash).map_err(|_| HashProblem::NoPhcString)?;
    if Algorithm::try_from(parsed.algorithm.as_str()) != Ok(Algorithm::Argon2id) {
        return Err(HashProblem::Algorithm(parsed.algorithm.to_string()));
    }
    if parsed.hash.is_none() || parsed.salt.is_none() {
        return Err(HashProblem::NoPhcString);
    }
    let params = argon2::Params::try_from(&parsed).map_err(|_| HashProblem::NoPhcString)?;
    if params.m_cost() > MAX_MEMORY_KIB || params.t_cost() > MAX_PASSES {
        return Err(HashProblem::TooExpensive);
    }
    Ok(())
}

/// The hash that this password opens. All of them are tried, so that the time tells nothing about which.
fn opened_by(hashes: &[String], password: &Secret) -> Option<String> {
    let mut usable = hashes.iter().filter(|hash| check_hash(hash).is_ok()).peekable();
    if usable.peek().is_none() {
        opens(DECOY, password);
        return None;
    }
    let mut opened = None;
    for hash in usable {
        if opens(hash, password) {
            opened = Some(hash.clone());
        }
    }
    opened
}

fn opens(hash: &str, password: &Secret) -> bool {
    PasswordHash::new(hash)
        .is_ok_and(|parsed| Argon2::default().verify_password(password.expose().as_bytes(), &parsed).is_ok())
}

fn proof(key: &hmac::Key, user: &str, hash: &str, password: &Secret) -> Digest {
    keyed_digest(key, &[b"proof", user.as_bytes(), hash.as_bytes(), password.expose().as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Cheap: 8 KiB and one pass.
    fn cheap(password: &str) -> String {
        let params = argon2::Params::new(8, 1, 1, None).unwrap();
        Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password(password.as_bytes())
            .unwrap()
            .to_string()
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    #[tokio::test]
    async fn any_one_of_several_hashes_opens_and_nothing_else_does() {
        let local = LocalPasswords::new();
        let hashes = [cheap("one"), cheap("two")];
        for _ in 0..2 {
            assert!(local.verify(&hashes, "scanner", &secret("one")).await);
            assert!(local.verify(&hashes, "scanner", &secret("two")).await);
            for wrong in ["", "One", "one ", "three", "onetwo"] {
                assert!(!local.verify(&hashes, "scanner", &secret(wrong)).await, "{wrong:?}");
            }
        }
        assert!(!local.verify(&[], "scanner", &secret("one")).await);
    }

    #[tokio::test]
    async fn a_removed_hash_is_not_served_from_memory() {
        let local = LocalPasswords::new();
        let (old, new) = (cheap("right"), cheap("other"));
        assert!(local.verify(&[old.clone(), new.clone()], "a", &secret("right")).await);
        assert!(!local.verify(std::slice::from_ref(&new), "a", &secret("right")).await);
        assert!(!local.verify(&[cheap("else")], "a", &secret("right")).await);
        assert!(local.verify(&[old], "a", &secret("right")).await);
    }

    #[tokio::test]
    async fn what_one_user_proved_does_not_open_for_another() {
        let local = LocalPasswords::new();
        let hash = cheap("right");
        assert!(local.verify(std::slice::from_ref(&hash), "a", &secret("right")).await);
        assert!(!local.remembered(std::slice::from_ref(&hash), "b", &secret("right")));
        assert!(local.remembered(&[hash], "a", &secret("right")));
    }

    #[tokio::test]
    async fn a_wrong_password_is_never_remembered_and_evicts_nothing() {
        let local = LocalPasswords::new();
        let hash = [cheap("right")];
        assert!(local.verify(&hash, "a", &secret("right")).await);
        assert!(!local.verify(&hash, "a", &secret("wrong")).await);
        assert!(local.remembered(&hash, "a", &secret("right")));
        assert!(!local.remembered(&hash, "a", &secret("wrong")));
        assert_eq!(local.verified.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let local = LocalPasswords::new();
        for user in 0..MAX_REMEMBERED + 50 {
            local.remember("hash", &user.to_string(), &secret("x"));
        }
        assert_eq!(local.verified.lock().unwrap().len(), MAX_REMEMBERED);
        assert!(local.remembered(&["hash".to_owned()], &(MAX_REMEMBERED + 49).to_string(), &secret("x")));
    }

    #[tokio::test]
    async fn a_full_queue_is_told_apart_from_a_wrong_password() {
        let local = LocalPasswords::new();
        let hash = [cheap("right")];
        assert_eq!(local.check(&hash, "a", &secret("right")).await, Ok(true));
        let everything = local.places.acquire_many(256).await.unwrap();
        assert_eq!(local.check(&hash, "a", &secret("wrong")).await, Err(Busy));
        assert_eq!(local.check(&hash, "a", &secret("right")).await, Ok(true), "what is known needs no place");
        drop(everything);
        assert_eq!(local.check(&hash, "a", &secret("wrong")).await, Ok(false));
    }

    #[tokio::test]
    async fn computations_are_no_more_than_the_cores() {
        let local = LocalPasswords::new();
        let all = u32::try_from(available_parallelism().unwrap().get()).unwrap();
        let busy = local.workers.acquire_many(all).await.unwrap();
        let hash = [cheap("right")];
        let right = secret("right");
        let waiting = local.verify(&hash, "a", &right);
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
        drop(busy);
        assert!(local.verify(&hash, "a", &right).await);
    }

    #[test]
    fn a_hash_of_another_kind_is_refused_with_its_reason() {
        assert_eq!(check_hash("hunter2"), Err(HashProblem::NoPhcString));
        assert_eq!(check_hash("$argon2id$v=19$m=8,t=1,p=1"), Err(HashProblem::NoPhcString));
        let other = cheap("x").replace("$argon2id$", "$argon2i$");
        assert_eq!(check_hash(&other), Err(HashProblem::Algorithm("argon2i".to_owned())));
        let costly = cheap("x").replace("m=8,", "m=4000000,");
        assert_eq!(check_hash(&costly), Err(HashProblem::TooExpensive));
        assert_eq!(check_hash(DECOY), Ok(()));
    }

    #[tokio::test]
    async fn hashes_of_another_implementation_are_understood() {
        // From the tests of the reference implementation (P-H-C/phc-winner-argon2, src/test.c).
        let foreign =
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let local = LocalPasswords::new();
        assert!(local.verify(&[foreign.to_owned()], "a", &secret("password")).await);
        assert!(!local.verify(&[foreign.to_owned()], "a", &secret("Password")).await);
    }

    #[test]
    fn nobody_is_not_answered_faster_than_somebody() {
        // The same function with the same costs: the decoy has the parameters of `hash`.
        let made = hash(&secret("x")).unwrap();
        let costs = |phc: &str| phc.split('$').nth(3).map(str::to_owned);
        assert_eq!(costs(&made), costs(DECOY));
        assert!(PasswordHash::new(DECOY).is_ok_and(|decoy| {
            // A decoy that cannot be computed would fail early and so answer fast.
            matches!(
                Argon2::default().verify_password(b"x", &decoy),
                Err(argon2::password_hash::Error::PasswordInvalid)
            )
        }));
    }
}
