//! PLACEHOLDER for the verification of local passwords: right, but without its cache, its queue and its decoy.
//! Replace the whole file.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier as _};

use crate::secret::Secret;

/// Checks passwords against Argon2id hashes.
#[derive(Debug, Default)]
pub struct LocalPasswords(());

/// Too many logins wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many logins wait for their password to be checked")]
pub struct Busy;

impl LocalPasswords {
    /// An empty one.
    pub fn new() -> Self {
        Self(())
    }

    /// Whether the password opens any one of the hashes.
    ///
    /// # Errors
    /// Never, here.
    pub async fn check(&self, hashes: &[String], _user: &str, password: &Secret) -> Result<bool, Busy> {
        std::future::ready(()).await;
        let password = password.expose().as_bytes();
        Ok(hashes.iter().any(|hash| {
            PasswordHash::new(hash)
                .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
        }))
    }
}
