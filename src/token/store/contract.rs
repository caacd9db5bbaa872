//! What a token store keeps, shares and promises.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use url::Url;

use crate::config::model::Grant;
use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};
use crate::secret::{AccessToken, Secret};

/// A future that a trait object can give.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Which sign-in: one refresh token serves every scope and protocol of its user and application.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct SignInKey {
    /// The authority with its directory: `https://login.microsoftonline.com/organizations`.
    pub authority: String,
    /// Application (client) ID.
    pub client_id: String,
    /// User name in lower case.
    pub user: String,
}

/// A sign-in that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSignIn {
    /// How it came to be.
    pub grant: Grant,
    /// RFC 6749 §1.5. Rotated: the new one is stored before it is used.
    pub refresh_token: Secret,
    /// When somebody signed in.
    pub signed_in_at: Timestamp,
    /// When the refresh token was last replaced.
    pub renewed_at: Timestamp,
}

/// Entra ends a refresh token that nobody has used for this long ("Refresh tokens in the Microsoft identity
/// platform"). Each use gives a new one.
const UNUSED_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);

impl StoredSignIn {
    /// When it ends unless it is used before; `None`: not known of this authority.
    pub fn runs_out(&self, authority: &str) -> Option<Timestamp> {
        // Entra's authorities end in a directory; those of other providers are an origin alone
        let is_entra = Url::parse(authority).is_ok_and(|url| url.path().len() > 1);
        is_entra.then(|| self.renewed_at.checked_add(UNUSED_LIFE).ok()).flatten()
    }
}

/// A token that replicas share; bound to user, application, scope and password by its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedToken {
    /// The token.
    pub token: AccessToken,
    /// By the wall clock, as two machines share it.
    pub expires_at: Timestamp,
}

/// A keyed digest (HMAC-SHA-256 under the store's key) of what it stands for; says nothing to a reader.
pub type Digest = [u8; 32];

/// Keeps sign-ins; shares tokens, budgets and single flight between replicas where it can.
pub trait Store: Send + Sync + fmt::Debug {
    /// A keyed digest of `parts`, the same on every replica that shares this store.
    fn digest(&self, parts: &[&[u8]]) -> Digest;
    /// The sign-in of this user, if one is stored.
    fn sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, Option<StoredSignIn>>;
    /// Stores a sign-in, durably, before it answers.
    fn save_sign_in<'a>(&'a self, key: &'a SignInKey, sign_in: &'a StoredSignIn) -> StoreFuture<'a, ()>;
    /// Puts `renewed` in place of the sign-in that holds `before`'s refresh token, durably. `false`: somebody has
    /// signed in anew or out meanwhile, and that stands.
    fn renew_sign_in<'a>(
        &'a self,
        key: &'a SignInKey,
        before: &'a StoredSignIn,
        renewed: &'a StoredSignIn,
    ) -> StoreFuture<'a, bool>;
    /// Removes a sign-in; whether there was one.
    fn remove_sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, bool>;
    /// All sign-ins, for `mailkey tokens`.
    fn sign_ins(&self) -> StoreFuture<'_, Vec<(SignInKey, StoredSignIn)>>;
    /// A token that another replica fetched. Stores of one process answer `None`.
    fn shared_token<'a>(&'a self, key: &'a Digest) -> StoreFuture<'a, Option<SharedToken>>;
    /// Shares a token; it vanishes by itself when it expires.
    fn share_token<'a>(&'a self, key: &'a Digest, token: &'a SharedToken) -> StoreFuture<'a, ()>;
    /// Drops a shared token that upstream refused.
    fn unshare_token<'a>(&'a self, key: &'a Digest) -> StoreFuture<'a, ()>;
    /// Tries to become the one replica that asks for this token. `Some` is the right to ask until the lease is
    /// given back or `ttl` has passed; `None`: another one is asking, look for its token.
    fn lease<'a>(&'a self, key: &'a Digest, ttl: Duration) -> StoreFuture<'a, Option<Lease>>;
    /// Gives a lease back.
    fn give_back<'a>(&'a self, lease: &'a Lease) -> StoreFuture<'a, ()>;
    /// Counts one more distinct wrong password (a digest) of a user (a digest) within `window`; how many there
    /// are now, over all replicas. Stores of one process answer `None`: the guard counts itself.
    fn count_wrong_password<'a>(
        &'a self,
        user: &'a Digest,
        password: &'a Digest,
        window: Duration,
    ) -> StoreFuture<'a, Option<u32>>;
}

/// The right to ask, and the fencing value that shows it is still ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it was taken for.
    pub key: Digest,
    /// Random; a lease that ran out and was taken by another is not given back by us.
    pub fence: [u8; 16],
}

/// Why a store did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or written now.
    #[error("the token store is away: {0}")]
    Away(String),
    /// Its key does not open it.
    #[error("the key does not open the token store `{0}`")]
    WrongKey(String),
    /// It is no store of ours, or of a newer version.
    #[error("`{path}` is no token store of this version: {why}")]
    Foreign {
        /// The file or server.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Another proxy has it.
    #[error("another proxy uses the token store `{0}`")]
    Locked(String),
    /// Others than us could read it.
    #[error("`{path}` can be read by others: {why}")]
    Exposed {
        /// The file.
        path: String,
        /// Whose, which mode.
        why: String,
    },
    /// There is no key, or it is none.
    #[error("the token store needs a key of 32 bytes: {0}")]
    Key(String),
}

impl Explain for StoreError {
    fn explain(&self) -> Explanation {
        let configuration = |code: &'static str, remedy: String| Explanation {
            code: code.into(),
            fault: Fault::Configuration,
            what: self.to_string(),
            remedy,
            passes: Passes::Never,
            refusal: Refusal::contact_admin(CauseKind::Application),
        };
        match self {
            Self::Away(_) => Explanation {
                passes: Passes::ByItself(None),
                refusal: Refusal::Unavailable { retry_after: None },
                ..configuration(
                    "STORE-AWAY",
                    "check that the store's directory can be written, or that the Redis server answers"
                        .to_owned(),
                )
            },
            Self::WrongKey(store) => configuration(
                "STORE-WRONG-KEY",
                format!(
                    "put the key back with which `{store}` was made, or move the store away and run `mailkey login` anew"
                ),
            ),
            Self::Foreign { path, .. } => configuration(
                "STORE-FOREIGN",
                format!(
                    "let `tokens.store` name another file than `{path}`, or start the Mailkey that wrote it"
                ),
            ),
            Self::Locked(path) => configuration(
                "STORE-LOCKED",
                format!("stop the other `mailkey run` that uses `{path}`, or give each a store of its own"),
            ),
            Self::Exposed { path, .. } => configuration(
                "STORE-EXPOSED",
                format!("let it belong to the user that Mailkey runs as, and run `chmod 600 {path}`"),
            ),
            Self::Key(_) => configuration(
                "STORE-KEY",
                "make one with `openssl rand -base64 32` and name its file in `tokens.key-file`".to_owned(),
            ),
        }
    }
}
