//! What the broker is asked, and what it answers.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::config::model::{Account, Protocol};
use crate::secret::{AccessToken, Credentials};

/// One question to the broker.
#[derive(Clone, Debug)]
pub struct TokenRequest<'a> {
    /// The settings that the user name leads to.
    pub account: &'a Arc<Account>,
    /// Which protocol wants the token: decides the scope where none is configured.
    pub protocol: Protocol,
    /// What the mail client sent.
    pub credentials: &'a Credentials,
    /// Where it sits.
    pub source: IpAddr,
    /// The answer is worth nothing after this.
    pub deadline: Instant,
}

impl<'a> TokenRequest<'a> {
    #[must_use]
    /// The same question with other credentials, where there are some.
    pub fn with(&self, credentials: Option<&'a Credentials>) -> Self {
        Self { credentials: credentials.unwrap_or(self.credentials), ..self.clone() }
    }
}

/// A token, and where it came from.
#[derive(Clone, Debug)]
pub struct Granted {
    /// For upstream.
    pub token: AccessToken,
    /// On the monotonic clock.
    pub expires_at: Instant,
    /// For the log line and the metrics.
    pub origin: Origin,
}

/// Where a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// It was there.
    Cached,
    /// It was asked for now.
    Fetched,
    /// Somebody else's request for the same was under way.
    Shared,
    /// It was there, ought to be renewed, and the identity provider does not answer.
    Stale,
}

impl Origin {
    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Fetched => "fetched",
            Self::Shared => "shared",
            Self::Stale => "stale",
        }
    }
}

/// A future that a trait object can give.
pub type TokenFuture<'a> =
    std::pin::Pin<Box<dyn Future<Output = Result<Granted, crate::explain::Explanation>> + Send + 'a>>;

/// Whoever gives tokens: the broker, or a stand-in in a test.
pub trait Tokens: Send + Sync + std::fmt::Debug {
    /// A token for these credentials, or the story of why there is none.
    fn token<'a>(&'a self, request: &'a TokenRequest<'a>) -> TokenFuture<'a>;
    /// Upstream refused this token: it is dropped, so that the next question fetches a new one. `false` where
    /// that would not help: another was dropped just before, so it is not the token's age that upstream dislikes.
    fn refused_upstream(&self, request: &TokenRequest<'_>, token: &AccessToken) -> bool;
}
