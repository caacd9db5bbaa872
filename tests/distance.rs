//! A TCP relay that puts distance between two programs on one machine, and counts what passes.
//!
//! Every octet takes `one_way` in either direction. A connection that is accepted here would take a round trip
//! elsewhere, so nothing arrives before one and a half have passed: as with a real handshake.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

/// The relay, for as long as the runtime lives.
pub struct Distance {
    pub address: SocketAddr,
    /// Round trips of each connection so far, in the order of their coming.
    round_trips: Arc<Mutex<Vec<Arc<Turns>>>>,
}

/// Whoever speaks first, and again after the other has spoken, begins a round trip.
#[derive(Default)]
struct Turns {
    count: AtomicUsize,
    up: AtomicBool,
}

impl Turns {
    fn spoke(&self, up: bool) {
        if self.up.swap(up, Ordering::Relaxed) != up && up {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Distance {
    pub async fn to(target: SocketAddr, one_way: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let round_trips: Arc<Mutex<Vec<Arc<Turns>>>> = Arc::default();
        let all = Arc::clone(&round_trips);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let turns = Arc::new(Turns::default());
                all.lock().unwrap().push(Arc::clone(&turns));
                tokio::spawn(carry(near, target, one_way, turns));
            }
        });
        Self { address, round_trips }
    }

    /// How often the near side began to speak, by connection.
    pub fn round_trips(&self) -> Vec<usize> {
        self.round_trips.lock().unwrap().iter().map(|turns| turns.count.load(Ordering::Relaxed)).collect()
    }
}

async fn carry(near: TcpStream, target: SocketAddr, one_way: Duration, turns: Arc<Turns>) {
    let arrives = Instant::now() + one_way * 3;
    let (near_in, near_out) = near.into_split();
    let (up, up_out) = mpsc::unbounded_channel();
    // reading goes on while the handshake is on its way
    let counted = Arc::clone(&turns);
    tokio::spawn(listen(near_in, up, one_way, move || counted.spoke(true)));
    sleep_until(arrives.into()).await;
    let Ok(far) = TcpStream::connect(target).await else { return };
    far.set_nodelay(true).unwrap();
    let (far_in, far_out) = far.into_split();
    let (down, down_out) = mpsc::unbounded_channel();
    tokio::spawn(listen(far_in, down, one_way, move || turns.spoke(false)));
    tokio::spawn(deliver(up_out, far_out));
    deliver(down_out, near_out).await;
}

type Parcel = (Instant, Vec<u8>);

async fn listen(
    mut from: impl AsyncRead + Unpin,
    to: mpsc::UnboundedSender<Parcel>,
    one_way: Duration,
    heard: impl Fn(),
) {
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut chunk).await.unwrap_or(0);
        if length > 0 {
            heard();
        }
        if to.send((Instant::now() + one_way, chunk[..length].to_vec())).is_err() || length == 0 {
            return;
        }
    }
}

/// An empty parcel is the end.
async fn deliver(mut parcels: mpsc::UnboundedReceiver<Parcel>, mut to: impl AsyncWrite + Unpin) {
    while let Some((due, bytes)) = parcels.recv().await {
        sleep_until(due.into()).await;
        if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    drop(to.shutdown().await);
}
