//! Token requests through the outbound proxies: a door on loopback that speaks HTTP CONNECT, and behind it the
//! connector that mail and EWS use. It lends an HTTP client the ways to sign in that it does not have.
//!
//! Bound to 127.0.0.1 on a port of the system's choice, and good for nobody but this process: every request
//! needs a random credential that never leaves it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use dashmap::DashMap;
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::connector::Connector;
use super::error::UpstreamError;
use super::tunnel;
use crate::config::model::Purpose;
use crate::secret::Secret;
use crate::task;

/// The user name of the credential; the password is random.
const USER: &str = "mailkey";

/// Connections at once. The identity provider is asked by few.
const PLACES: usize = 64;

/// The longest request, in octets.
const MAX_REQUEST: usize = 4096;

/// How long a request may take to come: it comes from this very process.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// How many targets' last failures are kept.
const FAILURES: usize = 64;

/// No tunnel lives longer. The HTTP client closes one after a minute without use, and gives each request 15 s.
const TUNNEL_LIMIT: Duration = Duration::from_hours(24);

/// The open door. Closed when the token given to [`Gateway::open`] is cancelled.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    password: Secret,
    failures: Arc<DashMap<String, UpstreamError>>,
}

impl Gateway {
    /// Opens the door.
    ///
    /// # Errors
    /// No port, or no random numbers.
    pub fn open(connector: Arc<Connector>, closing: CancellationToken) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let mut random = Zeroizing::new([0_u8; 32]);
        rand::fill(&mut *random).map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let gateway = Self {
            address: listener.local_addr()?,
            password: Secret::new(BASE64_URL_SAFE_NO_PAD.encode(*random)),
            failures: Arc::default(),
        };
        let keeper = Arc::new(Keeper {
            connector,
            expected: gateway.expected(),
            failures: Arc::clone(&gateway.failures),
        });
        task::start(async move {
            tokio::select! {
                () = keeper.keep(listener) => {}
                () = closing.cancelled() => {}
            }
        });
        Ok(gateway)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The user name that it expects.
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The password that it expects.
    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// A look at why the last connection to a target did not come about.
    pub fn failures(&self) -> Failures {
        Failures(Arc::clone(&self.failures))
    }

    fn expected(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new(format!("{USER}:{}", self.password.expose()));
        Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())))
    }
}

/// Why connections did not come about. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Failures(Arc<DashMap<String, UpstreamError>>);

impl Failures {
    /// The last failure on the way to a target; `None` after a success.
    pub fn last(&self, host: &str, port: u16) -> Option<UpstreamError> {
        self.0.get(&tunnel::target(host, port)).map(|entry| entry.value().clone())
    }
}

/// Lets the right ones in.
struct Keeper {
    connector: Arc<Connector>,
    expected: Zeroizing<String>,
    failures: Arc<DashMap<String, UpstreamError>>,
}

impl Keeper {
    async fn keep(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(PLACES));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, _)) => {
                    let keeper = Arc::clone(&self);
                    task::start(async move {
                        keeper.serve(socket).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the gateway for token requests accepts nothing");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(&self, mut socket: TcpStream) {
        // an answer that finds nobody has nobody to miss it
        let Ok(Some(request)) = timeout(REQUEST_LIMIT, read(&mut socket)).await else { return };
        let (host, port) = match self.target(&request) {
            Ok(target) => target,
            Err(answer) => return drop(socket.write_all(answer).await),
        };
        let key = tunnel::target(&host, port);
        match self.connector.connect(&host, port, Purpose::Identity).await {
            Ok(mut io) => {
                self.failures.remove(&key);
                if socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_ok() {
                    drop(timeout(TUNNEL_LIMIT, copy_bidirectional(&mut socket, &mut io)).await);
                }
            }
            Err(error) => {
                if self.failures.len() >= FAILURES {
                    self.failures.clear();
                }
                self.failures.insert(key, error);
                drop(socket.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await);
            }
        }
    }

    /// Host and port that are asked for, or the refusal.
    fn target(&self, request: &str) -> Result<(String, u16), &'static [u8]> {
        let mut lines = request.lines();
        let given = lines.clone().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
            name.trim().eq_ignore_ascii_case("proxy-authorization").then(|| value.trim())
        });
        if !bool::from(given.unwrap_or_default().as_bytes().ct_eq(self.expected.as_bytes())) {
            return Err(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
        }
        let asked = lines.next().and_then(|line| line.strip_prefix("CONNECT "));
        let target = asked.and_then(|rest| rest.split(' ').next()).and_then(|target| target.rsplit_once(':'));
        match target.map(|(host, port)| (host.trim_matches(['[', ']']), port.parse())) {
            Some((host, Ok(port))) if !host.is_empty() => Ok((host.to_owned(), port)),
            _ => Err(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n"),
        }
    }
}

/// One request, up to its empty line. The client says nothing more before it is answered.
async fn read(socket: &mut TcpStream) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_REQUEST));
    while bytes.len() < MAX_REQUEST {
        if socket.read_buf(&mut *bytes).await.ok()? == 0 {
            return None;
        }
        if bytes.ends_with(b"\r\n\r\n") {
            return std::str::from_utf8(&bytes).ok().map(|text| Zeroizing::new(text.to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Tls;
    use crate::upstream::tls::outbound_config;

    fn gateway() -> (Gateway, CancellationToken) {
        let tls = outbound_config(&Tls::default()).unwrap();
        let connector = Arc::new(Connector::new(tls, Vec::new(), Duration::from_secs(5)));
        let closing = CancellationToken::new();
        (Gateway::open(connector, closing.clone()).unwrap(), closing)
    }

    async fn say(gateway: &Gateway, request: &str) -> String {
        let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 256];
        let n = socket.read(&mut answer).await.unwrap();
        String::from_utf8(answer[..n].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn nobody_without_the_credential_gets_through() {
        let (gateway, _closing) = gateway();
        assert!(gateway.address().ip().is_loopback());
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for authorization in ["", "Proxy-Authorization: Basic bWFpbGtleTo=\r\n", "Authorization: x\r\n"] {
            let answer = say(&gateway, &format!("CONNECT {target} HTTP/1.1\r\n{authorization}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 407 "), "{answer}");
        }
        assert!(gateway.failures().last("127.0.0.1", target.port()).is_none(), "nothing was dialled");
        let other = self::gateway().0;
        assert_ne!(other.password(), gateway.password());
    }

    #[tokio::test]
    async fn a_tunnel_carries_bytes_and_a_failure_is_kept_until_it_works_again() {
        let (gateway, closing) = gateway();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let ask = format!(
            "CONNECT 127.0.0.1:{port} HTTP/1.1\r\nproxy-authorization: {}\r\n\r\n",
            gateway.expected().as_str()
        );
        assert!(say(&gateway, &ask).await.starts_with("HTTP/1.1 502 "));
        let failure = gateway.failures().last("127.0.0.1", port).unwrap();
        assert!(matches!(failure, UpstreamError::Dial { .. }), "{failure}");

        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let mut near = TcpStream::connect(gateway.address()).await.unwrap();
        near.write_all(ask.as_bytes()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        far.write_all(b"hello").await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"hello") {
            assert_ne!(near.read_buf(&mut got).await.unwrap(), 0);
        }
        assert!(gateway.failures().last("127.0.0.1", port).is_none());

        closing.cancel();
        for _ in 0..100 {
            if TcpStream::connect(gateway.address()).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("the door stays open");
    }
}
