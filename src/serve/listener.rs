//! The door: binds, accepts, survives what accepting can throw at it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::proxied::{HeaderError, real_peer};
use crate::config::model::Listener;
use crate::telemetry::metrics::{ListenerLabel, Metrics};
use crate::upstream::dial;

/// Connections that may wait to be accepted: a reconnect storm after an outage is thousands at once.
const BACKLOG: i32 = 4096;

/// How long an accept that failed (no descriptors left) is followed by nothing.
const BACK_OFF: Duration = Duration::from_millis(200);

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

/// What a door needs to know.
#[derive(Clone, Debug)]
pub struct Door {
    /// Whose door.
    pub listener: Arc<Listener>,
    /// `limits.sessions`, over all listeners.
    pub places: Arc<Semaphore>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Knows every session, so that a stop can wait for them.
    pub tracker: TaskTracker,
    /// Ends accepting.
    pub closing: CancellationToken,
    /// For a load balancer's PROXY header.
    pub header_limit: Duration,
}

impl Door {
    /// Accepts until told to stop; each visit is served in a task of its own.
    pub async fn keep<F, S>(self, socket: TcpListener, serve: F)
    where
        F: Fn(Visit) -> S + Send + Sync + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let serve = Arc::new(serve);
        let label = ListenerLabel { listener: self.listener.name.clone() };
        let accepted = self.metrics.connections.get_or_create_owned(&label);
        let mut failing = false;
        loop {
            let next = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                next = socket.accept() => next,
            };
            match next {
                Ok((io, peer)) => {
                    failing = false;
                    accepted.inc();
                    if contains(&self.listener.proxy_protocol_from, peer) {
                        let (door, serve) = (self.clone(), Arc::clone(&serve));
                        self.tracker.spawn(async move {
                            if let Some(visit) = door.introduced(io, peer).await {
                                serve(visit).await;
                            }
                        });
                    } else if self.may_enter(peer) {
                        dial::prepare(&io);
                        let place = Arc::clone(&self.places).try_acquire_owned().ok();
                        self.tracker.spawn(serve(Visit { io, peer, place }));
                    }
                }
                Err(error) => {
                    // one line per outage, not one per attempt
                    if !failing {
                        tracing::error!(listener = self.listener.name, %error, "cannot accept; trying on");
                    }
                    failing = true;
                    sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// Who is behind a load balancer: its header comes before anything else, and `allow-from` is about him.
    async fn introduced(&self, mut io: TcpStream, balancer: SocketAddr) -> Option<Visit> {
        dial::prepare(&io);
        // held while the header is waited for: it is a connection like any other
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        let header = self.closing.run_until_cancelled(timeout(self.header_limit, real_peer(&mut io))).await?;
        let why = match header {
            Ok(Ok(peer)) => {
                let peer = peer.unwrap_or(balancer);
                return self.may_enter(peer).then_some(Visit { io, peer, place });
            }
            // a look whether somebody listens: no word about it, they come every few seconds
            Ok(Err(HeaderError::Broken(_))) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no PROXY header within `login-timeout`".to_owned(),
        };
        tracing::warn!(
            listener = self.listener.name,
            peer = %balancer,
            remedy = "switch the PROXY protocol on at the load balancer, or take it out of `proxy-protocol-from`",
            "turned away: {why}"
        );
        None
    }

    fn may_enter(&self, peer: SocketAddr) -> bool {
        let allowed = &self.listener.allow_from;
        let may = allowed.is_empty() || contains(allowed, peer);
        if !may {
            tracing::warn!(listener = self.listener.name, %peer, "turned away: not in `allow-from`");
        }
        may
    }
}

fn contains(nets: &[IpNet], peer: SocketAddr) -> bool {
    let address = peer.ip().to_canonical();
    nets.iter().any(|net| net.contains(&address))
}
