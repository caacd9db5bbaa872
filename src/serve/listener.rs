//! The door: binds, accepts, survives what accepting can throw at it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::proxied::{HeaderError, real_peer};
use crate::config::model::Listener;
use crate::task::{self, Work};
use crate::telemetry::metrics::{ListenerLabel, Metrics};
use crate::upstream::dial;

/// Connections that may wait to be accepted: a reconnect storm after an outage is thousands at once.
const BACKLOG: i32 = 4096;

/// How long an accept that failed (no descriptors left) is followed by nothing; it doubles up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Binds a listening socket.
///
/// # Errors
/// The address is taken, not ours, or needs a privilege.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// One connection that came in.
#[derive(Debug)]
pub struct Visit {
    /// The socket, set up.
    pub io: TcpStream,
    /// Who.
    pub peer: SocketAddr,
    /// Its place among `limits.sessions`; `None`: the house is full, say so and go.
    pub place: Option<OwnedSemaphorePermit>,
}

/// What a visitor finds behind the door. A reload puts another room there; who is in stays where he is.
pub struct Room {
    /// Whose door.
    pub listener: Arc<Listener>,
    /// For a load balancer's PROXY header.
    pub header_limit: Duration,
    /// Serves a visit.
    pub serve: Box<dyn Fn(Visit) -> Work + Send + Sync>,
}

/// Why nobody gets in just now; cleared by the next one who does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: jiff::Timestamp,
    /// The system's words.
    pub what: String,
}

/// A listening socket and what it leads to.
#[derive(Clone)]
pub struct Door {
    /// Behind it.
    pub room: Arc<ArcSwap<Room>>,
    /// `limits.sessions`, over all listeners.
    pub places: Arc<Semaphore>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Knows every session, so that a stop can wait for them.
    pub tracker: TaskTracker,
    /// Ends accepting.
    pub closing: CancellationToken,
    /// For the status page.
    pub trouble: Arc<ArcSwapOption<Trouble>>,
}

impl Door {
    /// Accepts until told to stop; each visit is served in a task of its own.
    pub async fn keep(self, socket: TcpListener) {
        let mut pause = FIRST_PAUSE;
        let prepared = dial::prepare_all(&socket);
        loop {
            let next = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                next = socket.accept() => next,
            };
            let room = self.room.load_full();
            let label = ListenerLabel { listener: room.listener.name.clone() };
            match next {
                Ok((io, peer)) => {
                    if self.trouble.swap(None).is_some() {
                        tracing::info!(listener = label.listener, "accepting again");
                        pause = FIRST_PAUSE;
                    }
                    self.metrics.connections.get_or_create(&label).inc();
                    if !prepared {
                        dial::prepare(&io, peer);
                    }
                    if contains(&room.listener.proxy_protocol_from, peer) {
                        let door = self.clone();
                        self.tracker.spawn(task::boxed(async move {
                            if let Some(visit) = door.introduced(&room, io, peer).await {
                                (room.serve)(visit).await;
                            }
                        }));
                    } else if may_enter(&room.listener, peer) {
                        let place = Arc::clone(&self.places).try_acquire_owned().ok();
                        self.tracker.spawn((room.serve)(Visit { io, peer, place }));
                    }
                }
                Err(error) => {
                    self.metrics.accept_errors.get_or_create(&label).inc();
                    // one line per outage, not one per attempt
                    if self.trouble.load().is_none() {
                        tracing::error!(listener = label.listener, %error, "cannot accept; trying on");
                        let trouble = Trouble { since: crate::clock::wall(), what: error.to_string() };
                        self.trouble.store(Some(Arc::new(trouble)));
                    }
                    let _is_over: Option<()> = self.closing.run_until_cancelled(sleep(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Who is behind a load balancer: its header comes before anything else, and `allow-from` is about him.
    async fn introduced(&self, room: &Room, mut io: TcpStream, balancer: SocketAddr) -> Option<Visit> {
        // held while the header is waited for: it is a connection like any other
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        let header = self.closing.run_until_cancelled(timeout(room.header_limit, real_peer(&mut io))).await?;
        let why = match header {
            Ok(Ok(peer)) => {
                let peer = peer.unwrap_or(balancer);
                return may_enter(&room.listener, peer).then_some(Visit { io, peer, place });
            }
            // a look whether somebody listens: no word about it, they come every few seconds
            Ok(Err(HeaderError::Broken(_))) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no PROXY header within `login-timeout`".to_owned(),
        };
        tracing::warn!(
            listener = room.listener.name,
            peer = %balancer,
            remedy = "switch the PROXY protocol on at the load balancer, or take it out of `proxy-protocol-from`",
            "turned away: {why}"
        );
        None
    }
}

fn may_enter(listener: &Listener, peer: SocketAddr) -> bool {
    let allowed = &listener.allow_from;
    let may = allowed.is_empty() || contains(allowed, peer);
    if !may {
        tracing::warn!(listener = listener.name, %peer, "turned away: not in `allow-from`");
    }
    may
}

fn contains(nets: &[IpNet], peer: SocketAddr) -> bool {
    let address = peer.ip().to_canonical();
    nets.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::config::model::Protocol as Spoken;
    use crate::config::model::{EwsSettings, FrontTls, Upstream};

    fn listener() -> Listener {
        Listener {
            name: "imap".to_owned(),
            protocol: Spoken::Imap,
            listen: Vec::new(),
            tls: FrontTls::Off,
            upstream: Upstream::Http("https://outlook.office365.com/".parse().unwrap()),
            allow_from: Vec::new(),
            proxy_protocol_from: Vec::new(),
            fixed_account: None,
            token_expiry_margin: Duration::ZERO,
            ews: EwsSettings::default(),
            accounts: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_visit_that_panics_gives_its_place_back_and_disturbs_nobody() {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let room = Room {
            listener: Arc::new(listener()),
            header_limit: Duration::from_secs(1),
            serve: Box::new(|mut visit| {
                Box::pin(async move {
                    assert!(visit.place.is_some(), "the house is full");
                    assert_ne!(visit.io.read_u8().await.unwrap(), b'!', "a mistake of ours");
                    visit.io.write_all(b"served").await.unwrap();
                })
            }),
        };
        let (tracker, closing) = (TaskTracker::new(), CancellationToken::new());
        let door = Door {
            room: Arc::new(ArcSwap::from_pointee(room)),
            // the one who stays, and one more
            places: Arc::new(Semaphore::new(2)),
            metrics: Arc::default(),
            tracker: tracker.clone(),
            closing: closing.clone(),
            trouble: Arc::default(),
        };
        let keeping = tokio::spawn(door.keep(socket));
        let mut stays = TcpStream::connect(address).await.unwrap();
        for _ in 0..5 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"!").await.unwrap();
            assert_eq!(client.read(&mut [0; 16]).await.unwrap_or(0), 0, "closed without a word");
        }
        stays.write_all(b"?").await.unwrap();
        let mut told = String::new();
        stays.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "served");
        closing.cancel();
        keeping.await.unwrap();
        tracker.close();
        tracker.wait().await;
    }
}
