//! The ground that every connection stands on: sockets and TLS, without any proxy's tunnel.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;

use super::dial::Dialler;
use super::error::UpstreamError;
use super::tls;
use crate::config::model::OutboundProxy;
use crate::secret::Encrypted;
use crate::stream::BoxIo;

/// Sockets and TLS.
#[derive(Debug)]
pub struct Ground {
    dialler: Dialler,
    /// For mail.
    plain: Arc<ClientConfig>,
    /// For HTTP.
    http: Arc<ClientConfig>,
    /// For one step.
    limit: Duration,
}

/// What is spoken inside TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// A mail protocol: no ALPN, which their servers do not know.
    Mail,
    /// HTTP/1.1, and nothing newer (RFC 7301).
    Http,
}

impl Ground {
    /// With the shared TLS settings (see [`tls::outbound_config`]) and a limit for each step.
    pub fn new(tls: ClientConfig, limit: Duration) -> Self {
        let http = tls::for_http(tls.clone());
        Self { dialler: Dialler::new(limit), plain: Arc::new(tls), http: Arc::new(http), limit }
    }

    /// For one step.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Names and sockets.
    pub fn dialler(&self) -> &Dialler {
        &self.dialler
    }

    /// A socket to `host:port`.
    ///
    /// # Errors
    /// Name or socket.
    pub async fn dial(&self, host: &str, port: u16) -> Result<BoxIo, UpstreamError> {
        Ok(Box::new(self.dialler.dial(host, port).await?))
    }

    /// A connection to an outbound proxy; encrypted where its URL says so.
    ///
    /// # Errors
    /// Name, socket or TLS.
    pub async fn to_proxy(&self, proxy: &OutboundProxy, name: &str) -> Result<BoxIo, UpstreamError> {
        let host = proxy.url.host_str().unwrap_or_default();
        let port = proxy.url.port_or_known_default().unwrap_or(1080);
        let io = self.dial(host, port).await.map_err(|error| error.of_proxy(name))?;
        if proxy.url.scheme() != "https" {
            return Ok(io);
        }
        let (io, _) = self.encrypt(io, host, port, Inside::Http).await?;
        Ok(io)
    }

    /// Puts TLS on a stream to `host:port`.
    ///
    /// # Errors
    /// Handshake, certificate, time limit.
    pub async fn encrypt(
        &self,
        io: BoxIo,
        host: &str,
        port: u16,
        inside: Inside,
    ) -> Result<(BoxIo, Encrypted), UpstreamError> {
        let config = match inside {
            Inside::Mail => &self.plain,
            Inside::Http => &self.http,
        };
        timeout(self.limit, tls::handshake(config, host, port, io)).await.unwrap_or_else(|_| {
            let target = format!("{host}:{port}");
            Err(UpstreamError::TimedOut { target, doing: "starting TLS", limit: self.limit })
        })
    }
}
