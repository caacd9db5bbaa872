//! One door to upstream: direct or through an outbound proxy, with TLS where it is implicit.

use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;

use super::dial::Dialler;
use super::error::UpstreamError;
use super::ground::{Ground, Inside};
use super::proxy::Proxy;
use super::tunnel;
use crate::config::model::{BackTls, MailServer, OutboundProxy, Purpose};
use crate::secret::Encrypted;
use crate::stream::BoxIo;

/// A token request has less patience than a mail session: [`Purpose::Identity`] gets no more than this.
const IDENTITY_LIMIT: Duration = Duration::from_secs(10);

/// Opens connections to upstream.
#[derive(Debug)]
pub struct Connector {
    ground: Ground,
    proxies: Vec<Proxy>,
}

impl Connector {
    /// A connector with the shared TLS settings (see [`outbound_config`](super::tls::outbound_config)), the
    /// outbound proxies, and a limit for each step on the way.
    pub fn new(tls: ClientConfig, proxies: Vec<OutboundProxy>, limit: Duration) -> Self {
        Self { ground: Ground::new(tls, limit), proxies: proxies.into_iter().map(Proxy::new).collect() }
    }

    /// Whether any outbound proxy serves a purpose.
    pub fn has_proxy_for(&self, purpose: Purpose) -> bool {
        self.proxies.iter().any(|proxy| proxy.serves_any(purpose))
    }

    /// The first outbound proxy that serves the way to `host`.
    pub fn proxy_for(&self, host: &str, purpose: Purpose) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| proxy.serves(purpose, host))
    }

    /// Resolves names, and remembers them.
    pub fn dialler(&self) -> &Dialler {
        self.ground.dialler()
    }

    /// How long upstream may take to answer a line of the sign-in. It holds wrong tokens back for seconds.
    pub fn answer_limit(&self) -> Duration {
        self.ground.limit() * 2
    }

    /// Opens a connection to a mail server; with the proof where TLS is implicit.
    ///
    /// # Errors
    /// Any step of the way, each with its own limit.
    pub async fn open(&self, server: &MailServer) -> Result<(BoxIo, Option<Encrypted>), UpstreamError> {
        let io = self.connect(&server.host, server.port, Purpose::Mail).await?;
        match server.tls {
            BackTls::Implicit => {
                let (io, proof) = self.encrypt(io, &server.host, server.port).await?;
                Ok((io, Some(proof)))
            }
            BackTls::StartTls => Ok((io, None)),
        }
    }

    /// A plain stream to `host:port`, through the first outbound proxy that serves it, else direct.
    ///
    /// # Errors
    /// Name, socket or tunnel.
    pub async fn connect(&self, host: &str, port: u16, purpose: Purpose) -> Result<BoxIo, UpstreamError> {
        let Some(proxy) = self.proxy_for(host, purpose) else {
            return self.ground.dial(host, port).await;
        };
        let limit = match purpose {
            Purpose::Identity => self.ground.limit().min(IDENTITY_LIMIT),
            Purpose::Ews | Purpose::Mail => self.ground.limit(),
        };
        timeout(limit, proxy.open(&self.ground, host, port)).await.unwrap_or_else(|_| {
            let (proxy, target) = (proxy.name().to_owned(), tunnel::target(host, port));
            Err(UpstreamError::ProxySilent { proxy, target, limit })
        })
    }

    /// Puts TLS on a stream to a mail server.
    ///
    /// # Errors
    /// Handshake, certificate, time limit.
    pub async fn encrypt(
        &self,
        io: BoxIo,
        host: &str,
        port: u16,
    ) -> Result<(BoxIo, Encrypted), UpstreamError> {
        self.ground.encrypt(io, host, port, Inside::Mail).await
    }

    /// The whole way to an HTTPS server.
    ///
    /// # Errors
    /// Any step of the way.
    pub async fn open_https(&self, host: &str, port: u16) -> Result<(BoxIo, Encrypted), UpstreamError> {
        let io = self.connect(host, port, Purpose::Ews).await?;
        self.ground.encrypt(io, host, port, Inside::Http).await
    }
}
