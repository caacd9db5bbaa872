//! The store that ends with the process. There are no replicas to share with, so it shares nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::fill;

use super::contract::{Digest, Lease, SharedToken, SignInKey, Store, StoreError, StoreFuture, StoredSignIn};
use crate::token::digest::keyed_digest;

/// Keeps sign-ins as long as the process lives.
pub struct MemoryStore {
    key: hmac::Key,
    sign_ins: Mutex<BTreeMap<SignInKey, StoredSignIn>>,
}

impl MemoryStore {
    /// Empty, with a key of its own.
    pub fn new() -> Self {
        let mut key = zeroize::Zeroizing::new([0; 32]);
        // Without random numbers TLS would not work either; the digests never leave this process.
        let _: Result<(), aws_lc_rs::error::Unspecified> = fill(&mut *key);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &*key), sign_ins: Mutex::default() }
    }

    fn sign_ins_now(&self) -> MutexGuard<'_, BTreeMap<SignInKey, StoredSignIn>> {
        self.sign_ins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn digest(&self, parts: &[&[u8]]) -> Digest {
        keyed_digest(&self.key, parts)
    }

    fn sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, Option<StoredSignIn>> {
        Box::pin(ready(Ok(self.sign_ins_now().get(key).cloned())))
    }

    fn save_sign_in<'a>(&'a self, key: &'a SignInKey, sign_in: &'a StoredSignIn) -> StoreFuture<'a, ()> {
        self.sign_ins_now().insert(key.clone(), sign_in.clone());
        Box::pin(ready(Ok(())))
    }

    fn renew_sign_in<'a>(
        &'a self,
        key: &'a SignInKey,
        before: &'a StoredSignIn,
        renewed: &'a StoredSignIn,
    ) -> StoreFuture<'a, bool> {
        let mut sign_ins = self.sign_ins_now();
        let stored = sign_ins.get_mut(key).filter(|stored| stored.refresh_token == before.refresh_token);
        Box::pin(ready(Ok(stored.map(|stored| *stored = renewed.clone()).is_some())))
    }

    fn remove_sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, bool> {
        Box::pin(ready(Ok(self.sign_ins_now().remove(key).is_some())))
    }

    fn sign_ins(&self) -> StoreFuture<'_, Vec<(SignInKey, StoredSignIn)>> {
        let all = self.sign_ins_now().iter().map(|(key, sign_in)| (key.clone(), sign_in.clone())).collect();
        Box::pin(ready(Ok(all)))
    }

    fn shared_token<'a>(&'a self, _key: &'a Digest) -> StoreFuture<'a, Option<SharedToken>> {
        Box::pin(ready(Ok(None)))
    }

    fn share_token<'a>(&'a self, _key: &'a Digest, _token: &'a SharedToken) -> StoreFuture<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn unshare_token<'a>(&'a self, _key: &'a Digest) -> StoreFuture<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn lease<'a>(&'a self, key: &'a Digest, _ttl: Duration) -> StoreFuture<'a, Option<Lease>> {
        Box::pin(ready(Ok(Some(undisputed(key)))))
    }

    fn give_back<'a>(&'a self, _lease: &'a Lease) -> StoreFuture<'a, ()> {
        Box::pin(ready(Ok::<(), StoreError>(())))
    }

    fn count_wrong_password<'a>(
        &'a self,
        _user: &'a Digest,
        _password: &'a Digest,
        _window: Duration,
    ) -> StoreFuture<'a, Option<u32>> {
        Box::pin(ready(Ok(None)))
    }
}

/// The lease of a store without replicas: nobody else asks.
pub(super) fn undisputed(key: &Digest) -> Lease {
    Lease { key: *key, fence: [0; 16] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Grant;
    use crate::secret::Secret;

    #[tokio::test]
    async fn sign_ins_are_kept_and_removed() {
        let store = MemoryStore::new();
        let key = |user: &str| SignInKey {
            authority: "https://idp.example".to_owned(),
            client_id: "app".to_owned(),
            user: user.to_owned(),
        };
        let stored = StoredSignIn {
            grant: Grant::DeviceCode,
            refresh_token: Secret::new("one"),
            signed_in_at: jiff::Timestamp::UNIX_EPOCH,
            renewed_at: jiff::Timestamp::UNIX_EPOCH,
        };
        store.save_sign_in(&key("b"), &stored).await.unwrap();
        store.save_sign_in(&key("a"), &stored).await.unwrap();
        assert_eq!(store.sign_in(&key("a")).await.unwrap(), Some(stored.clone()));
        assert_eq!(store.sign_in(&key("c")).await.unwrap(), None);
        let users: Vec<_> = store.sign_ins().await.unwrap().into_iter().map(|(key, _)| key.user).collect();
        assert_eq!(users, ["a", "b"]);
        let renewed = StoredSignIn { refresh_token: Secret::new("two"), ..stored.clone() };
        assert!(store.renew_sign_in(&key("a"), &stored, &renewed).await.unwrap());
        assert!(!store.renew_sign_in(&key("a"), &stored, &stored).await.unwrap(), "no longer the one it was");
        assert!(!store.renew_sign_in(&key("c"), &stored, &renewed).await.unwrap());
        assert_eq!(store.sign_in(&key("a")).await.unwrap(), Some(renewed));
        assert!(store.remove_sign_in(&key("a")).await.unwrap());
        assert!(!store.remove_sign_in(&key("a")).await.unwrap());
    }

    #[tokio::test]
    async fn there_is_nobody_to_share_with() {
        let (store, other) = (MemoryStore::new(), MemoryStore::new());
        let key = store.digest(&[b"token"]);
        assert_eq!(key, store.digest(&[b"token"]));
        assert_ne!(key, other.digest(&[b"token"]), "each process has its own key");
        assert_eq!(store.shared_token(&key).await.unwrap(), None);
        assert_eq!(store.count_wrong_password(&key, &key, Duration::from_secs(1)).await.unwrap(), None);
        assert!(store.lease(&key, Duration::from_secs(1)).await.unwrap().is_some());
    }
}
