//! One door to upstream: direct or through the outbound proxy, with TLS where it is implicit.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;

use super::dial::Dialler;
use super::error::UpstreamError;
use super::{tls, tunnel};
use crate::config::model::{BackTls, MailServer, OutboundProxy};
use crate::secret::Encrypted;
use crate::stream::BoxIo;

/// How long the proxy may take to open a tunnel: it dials itself.
const TUNNEL_LIMIT: Duration = Duration::from_secs(15);

/// How long a TLS handshake may take.
const TLS_LIMIT: Duration = Duration::from_secs(15);

/// Opens connections to upstream.
#[derive(Debug)]
pub struct Connector {
    dialler: Dialler,
    tls: Arc<ClientConfig>,
    proxy: Option<Arc<OutboundProxy>>,
}

/// What a connection is for; decides whether it goes through the outbound proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// IMAP, POP3, SMTP.
    Mail,
    /// EWS.
    Ews,
}

impl Connector {
    /// A connector with the shared TLS settings (see [`tls::outbound_config`]).
    pub fn new(tls: Arc<ClientConfig>, proxy: Option<Arc<OutboundProxy>>) -> Self {
        Self { dialler: Dialler::default(), tls, proxy }
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

    /// A plain stream to `host:port`, through the outbound proxy where the configuration says so.
    ///
    /// # Errors
    /// Name, socket or tunnel.
    pub async fn connect(&self, host: &str, port: u16, purpose: Purpose) -> Result<BoxIo, UpstreamError> {
        let proxy = self.proxy.as_deref().filter(|proxy| {
            let used = match purpose {
                Purpose::Mail => proxy.use_for.mail,
                Purpose::Ews => proxy.use_for.ews,
            };
            used && !proxy.bypasses(host)
        });
        match proxy {
            None => Ok(Box::new(self.dialler.dial(host, port).await?)),
            Some(proxy) => self.through(proxy, host, port).await,
        }
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
    ) -> Result<(BoxIo, Encrypted), UpstreamError> {
        timeout(TLS_LIMIT, tls::handshake(&self.tls, host, port, io)).await.unwrap_or_else(|_| {
            let target = format!("{host}:{port}");
            Err(UpstreamError::TimedOut { target, doing: "starting TLS", limit: TLS_LIMIT })
        })
    }

    async fn through(&self, proxy: &OutboundProxy, host: &str, port: u16) -> Result<BoxIo, UpstreamError> {
        let proxy_host = proxy.url.host_str().unwrap_or_default();
        let proxy_port = tunnel::proxy_port(proxy);
        let mut io: BoxIo = Box::new(self.dialler.dial(proxy_host, proxy_port).await?);
        if proxy.url.scheme() == "https" {
            (io, _) = self.encrypt(io, proxy_host, proxy_port).await?;
        }
        let asked = async {
            match proxy.url.scheme() {
                "socks5h" | "socks5" => tunnel::socks5(io, proxy, host, port).await,
                _ => tunnel::connect(io, proxy, host, port).await,
            }
        };
        timeout(TUNNEL_LIMIT, asked).await.unwrap_or_else(|_| {
            let target = tunnel::proxy_name(proxy);
            Err(UpstreamError::TimedOut { target, doing: "asking for a tunnel", limit: TUNNEL_LIMIT })
        })
    }
}
