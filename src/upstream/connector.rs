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
    /// Token requests; they dial by themselves, so this serves for looking at their way.
    Identity,
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
        match self.proxy_for(host, purpose) {
            None => Ok(Box::new(self.dialler.dial(host, port).await?)),
            Some(proxy) => {
                let (host_of_proxy, port_of_proxy) = tunnel::proxy_address(proxy);
                let io = Box::new(self.dialler.dial(host_of_proxy, port_of_proxy).await?);
                self.tunnel(io, proxy, host, port).await
            }
        }
    }

    /// The outbound proxy, where the way to `host` leads through it.
    pub fn proxy_for(&self, host: &str, purpose: Purpose) -> Option<&OutboundProxy> {
        self.proxy.as_deref().filter(|proxy| {
            let used = match purpose {
                Purpose::Mail => proxy.use_for.mail,
                Purpose::Ews => proxy.use_for.ews,
                Purpose::Identity => proxy.use_for.identity,
            };
            used && !proxy.bypasses(host)
        })
    }

    /// Opens sockets; for whoever takes the way step by step.
    pub fn dialler(&self) -> &Dialler {
        &self.dialler
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

    /// Asks the outbound proxy at the other end of `io` for a tunnel to `host:port`.
    ///
    /// # Errors
    /// TLS with the proxy, its refusal, time limit.
    pub async fn tunnel(
        &self,
        mut io: BoxIo,
        proxy: &OutboundProxy,
        host: &str,
        port: u16,
    ) -> Result<BoxIo, UpstreamError> {
        if proxy.url.scheme() == "https" {
            let (host_of_proxy, port_of_proxy) = tunnel::proxy_address(proxy);
            (io, _) = self.encrypt(io, host_of_proxy, port_of_proxy).await?;
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
