//! What a connection needs from the rest of the program: where tokens come from, how requests go out, bounds.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use http::uri::{Authority, InvalidUri, Scheme};
use http::{Request, Response};
use http_body_util::BodyExt as _;

use crate::config::model::{Limits, Listener, Upstream};
use crate::explain::{Explain as _, Explanation};
use crate::seats::Seats;
use crate::secret::AccessToken;
use crate::telemetry::metrics::{Metrics, Relayed};
use crate::token::request::Tokens;
use crate::upstream::https::HttpsClient;
pub use crate::upstream::https::{BoxBody, BoxError};

/// A future whose kind no longer matters.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Sends requests upstream: the HTTPS client, or a fake in tests.
pub trait Sender: Send + Sync {
    /// Sends one request, once, its URI absolute; adds `Authorization: Bearer` and `Host`. Both bodies are
    /// streamed. Dropping the future or the response body ends the exchange at once.
    ///
    /// # Errors
    /// Upstream could not be reached, or broke off before its response head.
    fn send(
        &self,
        request: Request<BoxBody>,
        token: AccessToken,
    ) -> BoxFuture<'_, Result<Response<BoxBody>, Explanation>>;
}

impl Sender for HttpsClient {
    fn send(
        &self,
        request: Request<BoxBody>,
        token: AccessToken,
    ) -> BoxFuture<'_, Result<Response<BoxBody>, Explanation>> {
        Box::pin(async move {
            let response = self.send(request, &token).await.map_err(|error| error.explain())?;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        })
    }
}

/// All that the connections of one EWS listener share.
pub struct Desk {
    /// The listener's settings.
    pub listener: Arc<Listener>,
    /// Where tokens come from.
    pub tokens: Arc<dyn Tokens>,
    /// How requests go out.
    pub sender: Arc<dyn Sender>,
    /// Who has how many requests under way.
    pub seats: Seats,
    /// Bounds.
    pub limits: Limits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether mail clients speak plain HTTP here: a cookie marked `Secure` would never come back.
    pub plain: bool,
    /// The only origin that requests go to.
    pub(super) origin: Origin,
    /// Where it listens.
    pub(super) address: Option<SocketAddr>,
    /// Looked up among all counters once.
    relayed: OnceLock<Relayed>,
}

/// Why a listener cannot serve EWS.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// It leads to a mail server.
    #[error("an EWS listener needs an `upstream` like `https://outlook.office365.com/`")]
    NotHttp,
    /// Its upstream is no `https` URL.
    #[error("the `upstream` of an EWS listener starts with `https://`, not with `{0}://`")]
    NotHttps(String),
    /// Its host cannot stand in a request.
    #[error("the host of the EWS upstream cannot stand in a request: {0}")]
    Host(#[from] InvalidUri),
}

impl Desk {
    /// Sets a desk up for one listener; whether it is plain HTTP is read off the listener.
    ///
    /// # Errors
    /// The listener's upstream is no `https` origin.
    pub fn new(
        listener: Arc<Listener>,
        tokens: Arc<dyn Tokens>,
        sender: Arc<dyn Sender>,
        seats: Seats,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Result<Self, DeskError> {
        let Upstream::Http(url) = &listener.upstream else { return Err(DeskError::NotHttp) };
        if url.scheme() != "https" {
            return Err(DeskError::NotHttps(url.scheme().to_owned()));
        }
        let host = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let origin = Origin { scheme: Scheme::HTTPS, authority: authority.parse()? };
        let plain = listener.tls == crate::config::model::FrontTls::Off;
        let relayed = OnceLock::new();
        Ok(Self { listener, tokens, sender, seats, limits, metrics, plain, origin, address: None, relayed })
    }

    /// The listener's counters of what is relayed.
    pub(super) fn relayed(&self) -> &Relayed {
        self.relayed.get_or_init(|| self.metrics.relayed_by(&self.listener.name))
    }

    /// The same for one of the listener's sockets: mail clients may be told this address.
    #[must_use]
    pub fn listening_on(self, address: Option<SocketAddr>) -> Self {
        Self { address, ..self }
    }
}

/// Scheme, host and port of the upstream: the one place that a token is sent to.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `https`, but for tests.
    pub scheme: Scheme,
    /// Host, and port where it is not the scheme's.
    pub authority: Authority,
}
