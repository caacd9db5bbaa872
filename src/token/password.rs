//! PLACEHOLDER for the verification of local passwords: no hashing at all, the broker's tests only. Replace the
//! whole file.

use crate::secret::Secret;

/// Checks passwords against Argon2id hashes.
#[derive(Debug, Default)]
pub struct LocalPasswords(());

impl LocalPasswords {
    /// An empty one.
    pub fn new() -> Self {
        Self(())
    }

    /// In tests a hash is `plain:` and the password; outside of them nothing matches.
    pub async fn verify(&self, hashes: &[String], _user: &str, password: &Secret) -> bool {
        std::future::ready(()).await;
        cfg!(test) && hashes.iter().any(|hash| hash.strip_prefix("plain:") == Some(password.expose()))
    }
}
