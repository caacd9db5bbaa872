//! How token requests leave: by the connector that mail and EWS use. The broker knows no connector, and the
//! connector knows no token; they meet here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio_util::sync::CancellationToken;

use crate::certificate::Kind;
use crate::config::model::Purpose;
use crate::explain::Explain as _;
use crate::token::endpoint::{Endpoint, EndpointError, Gateway, Trouble, Way, WireError};
use crate::upstream::connector::Connector;
use crate::upstream::error::{ProxyNo, UpstreamError};
use crate::upstream::gateway;
use crate::upstream::tls;

/// The identity provider: through a gateway on loopback where an outbound proxy serves for it, else straight;
/// names from the connector's memory either way.
///
/// # Errors
/// No port for the gateway, or TLS settings that cannot be used.
pub fn endpoint(
    outbound_tls: rustls::ClientConfig,
    connector: &Arc<Connector>,
    closing: &CancellationToken,
) -> Result<Endpoint, EndpointError> {
    let mut way = Way { names: Some(Arc::new(Names(Arc::clone(connector)))), gateway: None };
    if connector.has_proxy_for(Purpose::Identity) {
        let opened = gateway::Gateway::open(Arc::clone(connector), closing.clone());
        way.gateway = Some(entrance(&opened.map_err(|error| EndpointError::Gateway(error.to_string()))?)?);
    }
    Endpoint::new(tls::for_http(outbound_tls), way)
}

fn entrance(opened: &gateway::Gateway) -> Result<Gateway, EndpointError> {
    let url = format!("http://{}/", opened.address()).parse();
    let failures = opened.failures();
    Ok(Gateway {
        url: url.map_err(|error: url::ParseError| EndpointError::Gateway(error.to_string()))?,
        user: opened.user().to_owned(),
        password: opened.password().clone(),
        why: Arc::new(move |host, port| failures.last(host, port).as_ref().map(told)),
    })
}

/// A failure on the way, as the broker understands it.
fn told(error: &UpstreamError) -> WireError {
    let story = error.explain();
    let trouble = match error {
        UpstreamError::Resolve { .. } => Trouble::Dns,
        UpstreamError::Dial { .. } | UpstreamError::ProxyRefused { kind: ProxyNo::CannotReach, .. } => {
            Trouble::Connect
        }
        UpstreamError::TimedOut { .. } | UpstreamError::ProxySilent { .. } => Trouble::Timeout,
        UpstreamError::ProxyDown { .. } => Trouble::ProxyUnreachable,
        UpstreamError::ProxySignIn { .. } => Trouble::ProxyAuth,
        UpstreamError::ProxyRefused { .. } | UpstreamError::ProxyBroken { .. } => Trouble::ProxyRefused,
        UpstreamError::Certificate { flaw, .. } if flaw.kind() == Kind::Issuer => Trouble::UntrustedIssuer,
        UpstreamError::Certificate { .. } | UpstreamError::WantsCertificate { .. } => Trouble::Certificate,
        UpstreamError::NoTls { .. } | UpstreamError::Tls { .. } => Trouble::Tls,
        UpstreamError::Broken { .. } => Trouble::BrokenOff,
    };
    WireError { trouble, detail: story.what.clone(), story: Some(Box::new(story)) }
}

/// Names for requests that go straight: an old address is better than none.
struct Names(Arc<Connector>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let connector = Arc::clone(&self.0);
        Box::pin(async move {
            let found = connector.dialler().resolve(name.as_str()).await.map_err(io::Error::other)?;
            // the port is put in by whoever asks
            let addresses: Addrs = Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}
