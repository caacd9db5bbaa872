//! The mark of what Rust can do: a bare tokio and rustls pipe that takes clear text, opens TLS and parses nothing.

use std::path::Path;

use anyhow::Result;
use tokio::io::copy_bidirectional;

use crate::wire;

/// Pipes every connection at `port` to the port of the same place in `upstream`, for ever.
pub async fn run(ports: &[u16], upstream: &[u16], authority: &Path) -> Result<()> {
    let tls = wire::tls_client(authority)?;
    for (&port, &upstream) in ports.iter().zip(upstream) {
        let listener = wire::listen(port)?;
        let tls = tls.clone();
        tokio::spawn(async move {
            loop {
                let Ok((mut near, _)) = listener.accept().await else { continue };
                let tls = tls.clone();
                tokio::spawn(async move {
                    drop(near.set_nodelay(true));
                    let Ok(mut far) = wire::connect(upstream, Some(&tls)).await else { return };
                    drop(copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
    }
    std::future::pending().await
}
