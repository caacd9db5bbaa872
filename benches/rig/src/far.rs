//! A TCP relay that puts distance between two programs on one machine: every octet takes `one_way`, either direction.
//!
//! A connection that is accepted here would take a round trip elsewhere, so nothing arrives before one and a half have
//! passed.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::wire;

/// Relays each port to the target of the same place, for ever.
pub async fn run(ports: &[u16], targets: &[u16], one_way: Duration) -> Result<()> {
    for (&port, &target) in ports.iter().zip(targets) {
        let listener = wire::listen(port)?;
        tokio::spawn(async move {
            loop {
                if let Ok((near, _)) = listener.accept().await {
                    tokio::spawn(carry(near, target, one_way));
                }
            }
        });
    }
    std::future::pending().await
}

async fn carry(near: TcpStream, target: u16, one_way: Duration) {
    let arrives = Instant::now() + one_way * 3;
    drop(near.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (up, up_out) = mpsc::unbounded_channel();
    // reading goes on while the handshake is on its way
    tokio::spawn(listen(near_in, up, one_way));
    sleep_until(arrives.into()).await;
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    drop(far.set_nodelay(true));
    let (far_in, far_out) = far.into_split();
    let (down, down_out) = mpsc::unbounded_channel();
    tokio::spawn(listen(far_in, down, one_way));
    tokio::spawn(deliver(up_out, far_out));
    deliver(down_out, near_out).await;
}

type Parcel = (Instant, Vec<u8>);

/// An empty parcel is the end.
async fn listen(mut from: impl AsyncRead + Unpin, to: mpsc::UnboundedSender<Parcel>, one_way: Duration) {
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut chunk).await.unwrap_or(0);
        if to.send((Instant::now() + one_way, chunk[..length].to_vec())).is_err() || length == 0 {
            return;
        }
    }
}

async fn deliver(mut parcels: mpsc::UnboundedReceiver<Parcel>, mut to: impl AsyncWrite + Unpin) {
    while let Some((due, bytes)) = parcels.recv().await {
        sleep_until(due.into()).await;
        if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    drop(to.shutdown().await);
}
