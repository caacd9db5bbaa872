//! The way to a host, step by step: name, outbound proxy, socket, TLS.

use super::chain::{self, Chain};
use super::report::{Branch, Said};
use crate::clock;
use crate::config::model::{Config, Purpose};
use crate::explain::{Explain as _, Explanation};
use crate::secret::Encrypted;
use crate::stream::BoxIo;
use crate::upstream::connector::Connector;
use crate::upstream::error::UpstreamError;
use crate::upstream::proxy::Proxy;
use crate::upstream::tls::TlsSetupError;
use crate::upstream::witness::{self, Witness};

/// The steps of the way.
pub const STEPS: [&str; 2] = ["name", "connection"];

/// The step in between, where the way leads through the outbound proxy.
pub const PROXY_STEP: &str = "proxy";

/// The step at its end.
pub const TLS_STEP: &str = "TLS";

/// Dials one host, and sees its certificates.
#[derive(Debug)]
pub struct Route {
    /// The proxy's own connector, with a witness.
    pub connector: Connector,
    witness: Witness,
    host: String,
    port: u16,
    purpose: Purpose,
}

impl Route {
    /// The way to `host:port`.
    ///
    /// # Errors
    /// TLS settings that cannot be used.
    pub fn new(config: &Config, (host, port): (&str, u16), purpose: Purpose) -> Result<Self, TlsSetupError> {
        let witness = Witness::default();
        let settings = witness::config(&config.tls, &witness)?;
        let limit = config.limits.connect_timeout;
        let connector = Connector::new(settings, config.outbound_proxies.clone(), limit);
        Ok(Self { connector, witness, host: host.to_owned(), port, purpose })
    }

    /// The steps that [`Self::walk`] takes.
    pub fn plan(&self, branch: &mut Branch) {
        let [name, connection] = STEPS;
        branch.plan(name);
        branch.plan(connection);
        if self.proxy().is_some() {
            branch.plan(PROXY_STEP);
        }
    }

    /// From the name to a stream that reaches the host.
    pub async fn walk(&self, branch: &mut Branch) -> Option<BoxIo> {
        let [name, connection] = STEPS;
        let proxy = self.proxy();
        let (first, first_port) = proxy.map_or((self.host.as_str(), self.port), Proxy::address);
        let dialler = self.connector.dialler();
        branch
            .step(name, async {
                let addresses = dialler.resolve(first).await.map_err(|error| story(&error))?;
                let shown: Vec<String> = addresses.iter().take(4).map(ToString::to_string).collect();
                let more = if addresses.len() > shown.len() { " …" } else { "" };
                Ok(((), Said::new(format!("{first} is {}{more}", shown.join(", ")))))
            })
            .await?;
        let stream = branch
            .step(connection, async {
                let stream = dialler.dial(first, first_port).await.map_err(|error| story(&error))?;
                let peer = stream.peer_addr().map_or_else(|_| String::new(), |peer| peer.to_string());
                let whose = if proxy.is_some() { " (the outbound proxy)" } else { "" };
                Ok((stream, Said::new(format!("to {peer}{whose}"))))
            })
            .await?;
        let Some(proxy) = proxy else { return Some(Box::new(stream)) };
        // the sign-in may take several connections, each with a socket of its own: this one has shown enough
        drop(stream);
        branch
            .step(PROXY_STEP, async {
                let through = self.connector.connect(&self.host, self.port, self.purpose).await;
                // what the proxy itself showed is not what the host shows
                drop(self.witness.take());
                let (host, port) = (&self.host, self.port);
                let said = format!("{} opens the way to {host}:{port}", proxy.name());
                Ok((through.map_err(|error| story(&error))?, Said::new(said)))
            })
            .await
    }

    /// TLS at the end of the way, with the chain that is shown there.
    pub async fn encrypt(&self, branch: &mut Branch, io: BoxIo) -> Option<(BoxIo, Encrypted)> {
        let encrypted = branch
            .step(TLS_STEP, async {
                let encrypted =
                    self.connector.encrypt(io, &self.host, self.port).await.map_err(|error| story(&error))?;
                Ok((encrypted, self.seen()))
            })
            .await;
        if encrypted.is_none() {
            branch.add_details(self.shown().lines);
        }
        encrypted
    }

    /// What the host has shown, for a handshake that succeeded.
    pub fn seen(&self) -> Said {
        let Chain { summary, lines, ending } = self.shown();
        let remedy = "have it renewed by whoever runs that host (or the TLS-inspecting proxy before it)";
        let warnings = ending.map(|what| (what, remedy.to_owned())).into_iter().collect();
        Said { text: summary, details: lines, warnings }
    }

    /// What the host has shown since this was last asked.
    pub fn shown(&self) -> Chain {
        chain::describe(&self.witness.take(), clock::wall())
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.connector.proxy_for(&self.host, self.purpose)
    }
}

fn story(error: &UpstreamError) -> Explanation {
    error.explain()
}
