//! TCP connections: names resolved and remembered, addresses raced (happy eyeballs, RFC 8305), the one that answered
//! first tried first the next time, sockets set up for long quiet sessions.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::error::UpstreamError;
use crate::clock;

/// How long one address may take at most (RFC 8305 leaves it to us).
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// How long a resolver may take.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take where an old answer is at hand ("client response timer", RFC 8767 §5).
const STALE_LIMIT: Duration = Duration::from_millis(1800);

/// "Connection Attempt Delay" (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The system's resolver tells no lifetime; Microsoft's own records live 10 to 300 s.
const NAME_LIFE: Duration = Duration::from_mins(1);

/// An old answer is used this long before DNS, which failed, is asked again (RFC 8767 §5 says 30 s).
const STALE_LIFE: Duration = Duration::from_secs(30);

/// How many names are remembered.
const NAMES: usize = 256;

/// How many addresses of a name are tried.
const ADDRESSES: usize = 16;

/// How many failed addresses an error names.
const FAILURES_SHOWN: usize = 4;

/// Quiet connections are probed after this long: NAT tables forget after 4 to 15 minutes.
const KEEPALIVE: Duration = Duration::from_mins(2);

/// How soon a probe that was not answered is sent again.
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(30);

/// How long nothing may be heard of a peer that owes an answer. It ends the probes, too, however many are left: six of
/// them have to be lost, since the kernel sends those of thousands of sockets at once, and queues overflow.
#[cfg(target_os = "linux")]
const UNHEARD_LIMIT: Duration = Duration::from_mins(5);

/// Opens TCP connections.
#[derive(Debug)]
pub struct Dialler {
    names: DashMap<String, Arc<Name>>,
    attempt_limit: Duration,
}

/// What is known about a name.
#[derive(Debug, Default)]
struct Name {
    known: Mutex<Option<Known>>,
    /// Held by whoever asks DNS: a storm of logins asks once.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Vec<IpAddr>,
    fresh_until: Instant,
}

impl Default for Dialler {
    fn default() -> Self {
        Self::new(ATTEMPT_LIMIT)
    }
}

impl Dialler {
    /// Gives up on an address after this long, and after [`ATTEMPT_LIMIT`] at the latest.
    pub fn new(attempt_limit: Duration) -> Self {
        Self { names: DashMap::new(), attempt_limit: attempt_limit.min(ATTEMPT_LIMIT) }
    }

    /// Connects to the first address of `host` that answers.
    ///
    /// # Errors
    /// The name does not resolve and never did; no address takes the connection.
    pub async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, UpstreamError> {
        let addresses = self.resolve(host).await?;
        let first = addresses.first().copied();
        let queue = addresses.into_iter().take(ADDRESSES).map(|ip| SocketAddr::new(ip, port)).collect();
        let (address, stream) = race(queue, self.attempt_limit)
            .await
            .map_err(|why| UpstreamError::Dial { target: format!("{host}:{port}"), why })?;
        prepare(&stream, address);
        if first != Some(address.ip()) {
            self.name(host).answered(address.ip());
        }
        Ok(stream)
    }

    /// The addresses of a name: the one that answered last, then families interleaved, IPv6 first unless it was IPv4
    /// that answered (RFC 8305 §4). An old answer is kept when DNS fails, or is slow (RFC 8767).
    ///
    /// # Errors
    /// The name does not resolve and never did.
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, UpstreamError> {
        if let Ok(literal) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![literal]);
        }
        let name = self.name(host);
        let known = name.lock().clone();
        if let Some(known) = known.as_ref().filter(|known| known.fresh_until > clock::now()) {
            return Ok(known.addresses.clone());
        }
        let Some(old) = known else {
            let _turn = name.asking.lock().await;
            // whoever was before us may have found it
            if let Some(known) = name.lock().as_ref() {
                return Ok(known.addresses.clone());
            }
            let found = ask(host, RESOLVE_LIMIT).await;
            return found
                .map(|addresses| name.remember(addresses, NAME_LIFE))
                .map_err(|why| UpstreamError::Resolve { host: host.to_owned(), why });
        };
        let Ok(_turn) = name.asking.try_lock() else { return Ok(old.addresses) };
        match ask(host, STALE_LIMIT).await {
            Ok(addresses) => Ok(name.remember(addresses, NAME_LIFE)),
            Err(why) => {
                tracing::warn!(host, why, "DNS fails; going on with the addresses known before");
                Ok(name.remember(old.addresses, STALE_LIFE))
            }
        }
    }

    fn name(&self, host: &str) -> Arc<Name> {
        if let Some(known) = self.names.get(host) {
            return Arc::clone(known.value());
        }
        if self.names.len() >= NAMES {
            let now = clock::now();
            let fresh = |name: &Name| name.lock().as_ref().is_some_and(|known| known.fresh_until > now);
            self.names.retain(|_, name| fresh(name));
        }
        Arc::clone(self.names.entry(host.to_owned()).or_default().value())
    }
}

impl Name {
    fn remember(&self, found: Vec<IpAddr>, life: Duration) -> Vec<IpAddr> {
        let mut known = self.lock();
        let before = known.as_ref().map_or(&[][..], |known| &known.addresses);
        // a network whose IPv6 leads nowhere costs one login a moment, not one login a minute
        let four_first = before.first().is_some_and(IpAddr::is_ipv4) && before.iter().any(IpAddr::is_ipv6);
        let addresses = interleave(found, four_first);
        *known = Some(Known { addresses: addresses.clone(), fresh_until: clock::now() + life });
        addresses
    }

    /// This address took a connection before those in front of it did: it is tried first from now on.
    fn answered(&self, address: IpAddr) {
        if let Some(known) = self.lock().as_mut()
            && let Some(place) = known.addresses.iter().position(|&one| one == address)
            && let Some(front) = known.addresses.get_mut(..=place)
        {
            front.rotate_right(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a socket to `peer` fit for sessions that say nothing for half an hour.
pub fn prepare(stream: &TcpStream, peer: SocketAddr) {
    set_up(&SockRef::from(stream), Some(peer));
}

/// Has every socket that this one accepts be fit for them. `false`: the system does not hand the options down, so
/// that each has to be [prepared](prepare).
pub fn prepare_all(listener: &TcpListener) -> bool {
    if cfg!(target_os = "linux") {
        set_up(&SockRef::from(listener), listener.local_addr().ok());
    }
    cfg!(target_os = "linux")
}

/// `address`: one of the two ends. Where that is this machine, so is the other, and its kernel tells of every end.
fn set_up(socket: &SockRef<'_>, address: Option<SocketAddr>) {
    let is_probed = !address.is_some_and(|address| address.ip().to_canonical().is_loopback());
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_AGAIN);
    let set = [
        Some(socket.set_tcp_nodelay(true)),
        is_probed.then(|| socket.set_tcp_keepalive(&keepalive)),
        #[cfg(target_os = "linux")]
        is_probed.then(|| socket.set_tcp_user_timeout(Some(UNHEARD_LIMIT))),
    ];
    // Each of these makes a session better; none of them is worth losing it.
    if let Some(error) = set.into_iter().flatten().find_map(Result::err) {
        tracing::debug!(%error, "a socket option was not taken");
    }
}

/// Asks the system's resolver, which runs on a thread of its own.
async fn ask(host: &str, limit: Duration) -> Result<Vec<IpAddr>, String> {
    match timeout(limit, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => {
            let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            if addresses.is_empty() { Err("the answer is empty".to_owned()) } else { Ok(addresses) }
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

fn interleave(addresses: Vec<IpAddr>, four_first: bool) -> Vec<IpAddr> {
    let (mut first, mut second): (VecDeque<IpAddr>, VecDeque<IpAddr>) = (VecDeque::new(), VecDeque::new());
    for address in addresses {
        let family = if address.is_ipv4() == four_first { &mut first } else { &mut second };
        if !family.contains(&address) {
            family.push_back(address);
        }
    }
    let mut mixed = Vec::with_capacity(first.len() + second.len());
    while !(first.is_empty() && second.is_empty()) {
        mixed.extend(first.pop_front());
        mixed.extend(second.pop_front());
    }
    mixed
}

/// Starts an attempt at each address in turn, the next one when the last fails or is slow; the first to
/// connect wins, the others are dropped. The error says what became of each.
async fn race(mut queue: VecDeque<SocketAddr>, limit: Duration) -> Result<(SocketAddr, TcpStream), String> {
    // nothing to race: no task of its own, and no timer for the next one
    if let (1, Some(&only)) = (queue.len(), queue.front()) {
        let stream = attempt(only, limit).await.map_err(|error| format!("{only}: {error}"))?;
        return Ok((only, stream));
    }
    let mut attempts = JoinSet::new();
    let mut failures: Vec<String> = Vec::new();
    loop {
        if let Some(address) = queue.pop_front() {
            attempts.spawn(async move { (address, attempt(address, limit).await) });
        }
        let more = !queue.is_empty();
        tokio::select! {
            ended = attempts.join_next() => match ended {
                None => break,
                Some(Ok((address, Ok(stream)))) => return Ok((address, stream)),
                Some(Ok((address, Err(error)))) => failures.push(format!("{address}: {error}")),
                Some(Err(error)) => failures.push(error.to_string()),
            },
            () = sleep(ATTEMPT_DELAY), if more => {}
        }
    }
    let more = failures.len().saturating_sub(FAILURES_SHOWN);
    failures.truncate(FAILURES_SHOWN);
    if more > 0 {
        failures.push(format!("and {more} more"));
    }
    Err(failures.join("; "))
}

async fn attempt(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    timeout(limit, TcpStream::connect(address)).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_nothing_stands_twice() {
        let given = addresses(["10.0.0.1", "10.0.0.2", "::1", "10.0.0.1", "::2", "::3"]);
        let six_first = addresses(["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]);
        assert_eq!(interleave(given.clone(), false), six_first);
        let four_first = addresses(["10.0.0.1", "::1", "10.0.0.2", "::2", "::3"]);
        assert_eq!(interleave(given, true), four_first);
    }

    fn addresses<const N: usize>(written: [&str; N]) -> Vec<IpAddr> {
        written.map(|address| address.parse().unwrap()).to_vec()
    }

    #[tokio::test]
    async fn the_address_that_answered_is_tried_first_the_next_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialler = Dialler::default();
        let name = dialler.name("half-dead.example");
        // nobody listens at the first two
        name.remember(addresses(["127.0.0.2", "::1", "127.0.0.1"]), NAME_LIFE);
        assert_eq!(
            dialler.resolve("half-dead.example").await.unwrap(),
            addresses(["::1", "127.0.0.2", "127.0.0.1"])
        );
        let stream = dialler.dial("half-dead.example", port).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().ip(), addresses(["127.0.0.1"])[0]);
        let learnt = addresses(["127.0.0.1", "::1", "127.0.0.2"]);
        assert_eq!(dialler.resolve("half-dead.example").await.unwrap(), learnt);
        // the next answer of DNS has others, and IPv6 still leads nowhere
        let next = name.remember(addresses(["::2", "127.0.0.3"]), NAME_LIFE);
        assert_eq!(next, addresses(["127.0.0.3", "::2"]));
    }

    #[test]
    fn a_name_that_had_one_family_only_gets_ipv6_first_once_it_has_both() {
        let name = Name::default();
        name.remember(addresses(["127.0.0.1"]), NAME_LIFE);
        let both = name.remember(addresses(["127.0.0.1", "::1"]), NAME_LIFE);
        assert_eq!(both, addresses(["::1", "127.0.0.1"]));
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hold_up_a_live_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = listener.local_addr().unwrap();
        let dead = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        let (address, stream) = race(VecDeque::from([dead, live]), ATTEMPT_LIMIT).await.unwrap();
        assert_eq!((address, stream.peer_addr().unwrap()), (live, live));
    }

    #[tokio::test]
    async fn every_address_that_failed_is_named() {
        let dead = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        let why = race(VecDeque::from([dead; 6]), ATTEMPT_LIMIT).await.unwrap_err();
        assert!(why.starts_with(&format!("{dead}: ")) && why.ends_with("; and 2 more"), "{why}");
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_told_as_such() {
        let error = Dialler::default().dial("no-such-host.invalid", 993).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Resolve { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_old_answer_is_kept_when_dns_fails_and_dns_is_left_alone_for_a_while() {
        let dialler = Dialler::default();
        let old = vec!["192.0.2.7".parse::<IpAddr>().unwrap()];
        let name = dialler.name("no-such-host.invalid");
        name.remember(old.clone(), Duration::ZERO);
        assert_eq!(dialler.resolve("no-such-host.invalid").await.unwrap(), old);
        assert!(name.lock().as_ref().unwrap().fresh_until > clock::now() + STALE_LIFE / 2);
    }

    #[tokio::test]
    async fn who_comes_while_dns_is_asked_gets_the_old_answer_at_once() {
        let dialler = Dialler::default();
        let old = vec!["192.0.2.7".parse::<IpAddr>().unwrap()];
        let name = dialler.name("no-such-host.invalid");
        name.remember(old.clone(), Duration::ZERO);
        let _asked = name.asking.lock().await;
        assert_eq!(dialler.resolve("no-such-host.invalid").await.unwrap(), old);
    }

    #[tokio::test]
    async fn accepted_sockets_are_fit_for_long_silence_like_dialled_ones() {
        let far_away = Some(SocketAddr::from(([192, 0, 2, 1], 993)));
        for (address, is_probed) in
            [(far_away, true), (None, true), ("[::ffff:127.0.0.1]:1".parse().ok(), false)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // as `prepare_all` and `prepare` do it
            set_up(&SockRef::from(&listener), address);
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            if cfg!(not(target_os = "linux")) {
                set_up(&SockRef::from(&far), address);
            }
            set_up(&SockRef::from(&near), address);
            for stream in [&near, &far] {
                let socket = SockRef::from(stream);
                assert!(socket.tcp_nodelay().unwrap());
                assert_eq!(socket.keepalive().unwrap(), is_probed, "{address:?}");
                #[cfg(target_os = "linux")]
                if is_probed {
                    assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
                    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNHEARD_LIMIT));
                }
            }
        }
    }

    #[tokio::test]
    async fn nobody_on_this_machine_is_probed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hands_down = prepare_all(&listener);
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        if !hands_down {
            prepare(&far, far.peer_addr().unwrap());
        }
        prepare(&near, near.peer_addr().unwrap());
        for stream in [&near, &far] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap() && !socket.keepalive().unwrap());
        }
    }

    #[test]
    fn names_are_bounded() {
        let dialler = Dialler::default();
        for i in 0..NAMES + 5 {
            dialler.name(&format!("host{i}.example"));
        }
        assert!(dialler.names.len() <= NAMES);
    }
}
