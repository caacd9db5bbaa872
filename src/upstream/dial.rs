//! TCP connections: names resolved and remembered, addresses raced (happy eyeballs, RFC 8305), sockets set
//! up for long quiet sessions.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dashmap::DashMap;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::error::UpstreamError;
use crate::clock;

/// How long one address may take (RFC 8305 leaves it to us).
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// How long a resolver may take.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// "Connection Attempt Delay" (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The system's resolver tells no lifetime; Microsoft's own records live 10 to 300 s.
const NAME_LIFE: Duration = Duration::from_mins(1);

/// How many names are remembered.
const NAMES: usize = 256;

/// Quiet connections are probed after this long: NAT tables forget after 4 to 15 minutes.
const KEEPALIVE: Duration = Duration::from_mins(2);

/// Opens TCP connections.
#[derive(Debug, Default)]
pub struct Dialler {
    names: DashMap<String, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Vec<IpAddr>,
    fresh_until: Instant,
}

impl Dialler {
    /// Connects to the first address of `host` that answers.
    ///
    /// # Errors
    /// The name does not resolve and never did; no address takes the connection.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, UpstreamError> {
        let addresses = self.resolve(host).await?;
        let queue = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        let stream = race(queue).await.map_err(|error| UpstreamError::Dial {
            target: format!("{host}:{port}"),
            why: error.to_string(),
        })?;
        prepare(&stream);
        Ok(stream)
    }

    /// The addresses of a name, families interleaved, IPv6 first (RFC 8305 §4). An old answer is kept when
    /// DNS fails.
    ///
    /// # Errors
    /// The name does not resolve and never did.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, UpstreamError> {
        if let Ok(literal) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![literal]);
        }
        let now = clock::now();
        let known = self.names.get(host).map(|entry| entry.value().clone());
        if let Some(known) = known.as_ref().filter(|known| known.fresh_until > now) {
            return Ok(known.addresses.clone());
        }
        let why = match timeout(RESOLVE_LIMIT, tokio::net::lookup_host((host, 0))).await {
            Ok(Ok(found)) => {
                let addresses = interleave(found.map(|address| address.ip()));
                if !addresses.is_empty() {
                    self.remember(host, &addresses, now);
                    return Ok(addresses);
                }
                "the answer is empty".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {RESOLVE_LIMIT:?}"),
        };
        match known {
            Some(old) => {
                tracing::warn!(host, why, "DNS fails; going on with the addresses known before");
                Ok(old.addresses)
            }
            None => Err(UpstreamError::Resolve { host: host.to_owned(), why }),
        }
    }

    fn remember(&self, host: &str, addresses: &[IpAddr], now: Instant) {
        if self.names.len() >= NAMES {
            self.names.retain(|_, known| known.fresh_until > now);
        }
        let known = Known { addresses: addresses.to_vec(), fresh_until: now + NAME_LIFE };
        self.names.insert(host.to_owned(), known);
    }
}

/// Makes a socket fit for sessions that say nothing for half an hour.
pub fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(30));
    // Each of these makes a session better; none of them is worth losing it.
    let set = [
        stream.set_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(Duration::from_mins(3))),
    ];
    if let Some(error) = set.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "a socket option was not taken");
    }
}

fn interleave(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (mut six, mut four): (VecDeque<IpAddr>, VecDeque<IpAddr>) = (VecDeque::new(), VecDeque::new());
    for address in addresses {
        let family = if address.is_ipv6() { &mut six } else { &mut four };
        if !family.contains(&address) {
            family.push_back(address);
        }
    }
    let mut mixed = Vec::with_capacity(six.len() + four.len());
    while !(six.is_empty() && four.is_empty()) {
        mixed.extend(six.pop_front());
        mixed.extend(four.pop_front());
    }
    mixed
}

/// Starts an attempt at each address in turn, the next one when the last fails or is slow; the first to
/// connect wins, the others are dropped.
async fn race(mut queue: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = queue.pop_front() {
            attempts.spawn(attempt(address));
        }
        let more = !queue.is_empty();
        tokio::select! {
            ended = attempts.join_next() => match ended {
                None => return Err(last),
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = error,
                Some(Err(error)) => last = io::Error::other(error),
            },
            () = sleep(ATTEMPT_DELAY), if more => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    timeout(ATTEMPT_LIMIT, TcpStream::connect(address)).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ATTEMPT_LIMIT:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_nothing_stands_twice() {
        let given = ["10.0.0.1", "10.0.0.2", "::1", "10.0.0.1", "::2", "::3"].map(|a| a.parse().unwrap());
        let wanted: Vec<IpAddr> =
            ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"].map(|a| a.parse().unwrap()).to_vec();
        assert_eq!(interleave(given.into_iter()), wanted);
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hold_up_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let dead = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        let stream = race(VecDeque::from([dead, live])).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_told_as_such() {
        let error = Dialler::default().dial("no-such-host.invalid", 993).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Resolve { .. }), "{error}");
    }
}
