//! Configuration in, running proxy out. Owns start, stop and the way sessions come to an end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, AdminDesk};
use crate::clock;
use crate::config::model::{Config, Listener, Protocol, Upstream};
use crate::ews::{self, desk::Desk};
use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};
use crate::live::Live;
use crate::seats::Seats;
use crate::serve::hold::Holds;
use crate::serve::listener::{Door, Visit, bind};
use crate::serve::offer::Shown;
use crate::serve::session;
use crate::serve::station::Station;
use crate::serve::tls as front_tls;
use crate::serve::turnstile::Turnstile;
use crate::serve::warm::{WarmConnections, WarmSettings};
use crate::stream::BoxIo;
use crate::telemetry::metrics::{ListenerLabel, Metrics};
use crate::token::broker::{Broker, BrokerSettings};
use crate::token::managed::ManagedIdentity;
use crate::token::request::Tokens;
use crate::token::store::{self, StoreError};
use crate::upstream::connector::Connector;
use crate::upstream::https::HttpsClient;
use crate::upstream::tls::{self as back_tls, TlsSetupError};
use crate::way;

/// How long sessions get to notice a hard stop.
const HARD_STOP_LIMIT: Duration = Duration::from_secs(1);

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening address cannot be had.
    #[error("`{listener}` cannot listen on {address}: {source}")]
    Bind {
        /// The listener's name, or `admin`.
        listener: String,
        /// Where.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// Certificates or roots cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The client for token requests cannot be set up.
    #[error("token requests cannot be set up: {0}")]
    Endpoint(String),
    /// The token store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An EWS listener's upstream is of no use.
    #[error("the EWS listener `{0}` cannot be served: {1}")]
    Ews(String, String),
}

impl Explain for StartError {
    fn explain(&self) -> Explanation {
        let (code, remedy) = match self {
            Self::Bind { source, address, .. } => (
                "START-LISTEN",
                if source.kind() == io::ErrorKind::AddrInUse {
                    let port = address.port();
                    format!("another program listens on port {port} already: stop it, or change `listen`")
                } else if source.kind() == io::ErrorKind::PermissionDenied {
                    "choose a port above 1023, or give the program CAP_NET_BIND_SERVICE".to_owned()
                } else {
                    "change `listen` to an address of this machine".to_owned()
                },
            ),
            Self::Tls(_) => ("START-TLS", "correct the `tls` section".to_owned()),
            Self::Endpoint(_) => ("START-IDENTITY", "correct `outbound-proxy` and `tls`".to_owned()),
            Self::Store(_) => ("START-STORE", "correct the `tokens` section".to_owned()),
            Self::Ews(..) => {
                ("START-EWS", "set its `upstream` to `https://outlook.office365.com/`".to_owned())
            }
        };
        Explanation {
            code: code.into(),
            fault: Fault::Configuration,
            what: self.to_string(),
            remedy,
            passes: Passes::Never,
            refusal: Refusal::contact_admin(CauseKind::Application),
        }
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct App {
    config: Arc<Config>,
    broker: Arc<Broker>,
    metrics: Arc<Metrics>,
    /// Listener name and address, as bound.
    addresses: Vec<(String, SocketAddr)>,
    admin: Vec<SocketAddr>,
    sessions: TaskTracker,
    /// Ends accepting; sessions end as soon as they lose nothing by it.
    draining: CancellationToken,
    /// Ends everything else.
    stopping: CancellationToken,
}

impl App {
    /// Binds every listener, then serves. Either all of it runs, or none. To be called inside a runtime.
    ///
    /// # Errors
    /// An address, certificate or store that cannot be had.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::default());
        let outbound_tls = back_tls::outbound_config(&config.tls)?;
        let acceptor = front_tls::acceptor(&config.tls)?;
        let stopping = CancellationToken::new();
        let connector = Arc::new(Connector::new(
            outbound_tls.clone(),
            config.outbound_proxies.clone(),
            config.limits.connect_timeout,
        ));
        let endpoint = way::endpoint(outbound_tls, &connector, &stopping)
            .map_err(|error| StartError::Endpoint(error.to_string()))?;
        let settings = BrokerSettings {
            tokens: config.tokens.clone(),
            guard: config.guard.clone(),
            managed_identity: ManagedIdentity::from_environment(),
        };
        let broker = Broker::new(settings, endpoint, store::open(&config.tokens)?, Arc::clone(&metrics));
        let doors = bind_all(&config)?;
        let admin = bind_admin(&config)?;
        let app = Self {
            addresses: doors.iter().map(|(listener, socket)| address(&listener.name, socket)).collect(),
            admin: admin.iter().filter_map(|socket| socket.local_addr().ok()).collect(),
            config,
            broker,
            metrics,
            sessions: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping,
        };
        app.open_doors(doors, &connector, acceptor.as_ref())?;
        app.open_admin(admin);
        tokio::spawn(Arc::clone(&app.broker).renew_forever(app.stopping.clone()));
        Ok(app)
    }

    /// Listener names and the addresses they are bound to.
    pub fn addresses(&self) -> &[(String, SocketAddr)] {
        &self.addresses
    }

    /// Where the status page is.
    pub fn admin_addresses(&self) -> &[SocketAddr] {
        &self.admin
    }

    /// Stops accepting, lets sessions come to an end within `limits.drain-timeout`, then ends the rest.
    /// A second call of `hurry` ends the wait at once.
    pub async fn stop(self, hurry: impl Future<Output = ()>) {
        self.draining.cancel();
        self.sessions.close();
        let limit = self.config.limits.drain_timeout;
        let drained = tokio::select! {
            biased;
            drained = timeout(limit, self.sessions.wait()) => drained.is_ok(),
            () = hurry => false,
        };
        self.stopping.cancel();
        let left = self.sessions.len();
        if !drained && left > 0 {
            tracing::warn!(left, "sessions are ended before they came to their end");
            drop(timeout(HARD_STOP_LIMIT, self.sessions.wait()).await);
        }
    }

    fn open_doors(
        &self,
        doors: Vec<(Arc<Listener>, TcpListener)>,
        connector: &Arc<Connector>,
        acceptor: Option<&TlsAcceptor>,
    ) -> Result<(), StartError> {
        let https = HttpsClient::new(Arc::clone(connector));
        let places = Arc::new(Semaphore::new(self.config.limits.sessions));
        let seats = Seats::new(self.config.limits.sessions_per_user);
        let turnstile = Turnstile::new(&self.config.limits);
        let holds: Arc<Holds> = Arc::default();
        let mut warm: Vec<Arc<WarmConnections>> = Vec::new();
        let mut stations: Vec<Arc<Station>> = Vec::new();
        for (listener, socket) in doors {
            let door = Door {
                listener: Arc::clone(&listener),
                places: Arc::clone(&places),
                metrics: Arc::clone(&self.metrics),
                tracker: self.sessions.clone(),
                closing: self.draining.clone(),
                header_limit: self.config.limits.login_timeout,
            };
            if listener.protocol == Protocol::Ews {
                let visitors = Arc::new(EwsVisitors {
                    desk: Arc::new(
                        self.ews_desk(&listener, &https, &seats)?.listening_on(socket.local_addr().ok()),
                    ),
                    acceptor: listener.tls.is_implicit().then(|| acceptor.cloned()).flatten(),
                    limit: self.config.limits.login_timeout,
                    draining: self.draining.clone(),
                });
                tokio::spawn(door.keep(socket, move |visit| Arc::clone(&visitors).serve(visit)));
                continue;
            }
            let known = stations.iter().find(|station| Arc::ptr_eq(&station.listener, &listener));
            let station = known.cloned().unwrap_or_else(|| {
                let station = Arc::new(Station {
                    offer: Shown::new(listener.protocol),
                    tokens: Arc::clone(&self.broker) as Arc<dyn Tokens>,
                    connector: Arc::clone(connector),
                    acceptor: acceptor.cloned(),
                    seats: seats.clone(),
                    turnstile: turnstile.clone(),
                    holds: Arc::clone(&holds),
                    warm: self.warm(&listener, connector, &mut warm),
                    limits: self.config.limits.clone(),
                    metrics: Arc::clone(&self.metrics),
                    host_name: host_name(),
                    draining: self.draining.clone(),
                    listener,
                });
                station.keep_up();
                stations.push(Arc::clone(&station));
                station
            });
            tokio::spawn(door.keep(socket, move |visit| session::serve(Arc::clone(&station), visit)));
        }
        Ok(())
    }

    /// The warm connections to a listener's upstream; listeners with the same upstream share them.
    fn warm(
        &self,
        listener: &Listener,
        connector: &Arc<Connector>,
        known: &mut Vec<Arc<WarmConnections>>,
    ) -> Option<Arc<WarmConnections>> {
        let Upstream::Mail(server) = &listener.upstream else { return None };
        let limits = &self.config.limits;
        if limits.warm_connections == 0 {
            return None;
        }
        if let Some(same) = known.iter().find(|warm| warm.leads_to(listener.protocol, server)) {
            return Some(Arc::clone(same));
        }
        let new = WarmConnections::new(WarmSettings {
            protocol: listener.protocol,
            server: server.clone(),
            connector: Arc::clone(connector),
            most: limits.warm_connections,
            max_age: limits.warm_connection_age,
            host_name: host_name(),
            metrics: Arc::clone(&self.metrics),
            tracker: self.sessions.clone(),
            draining: self.draining.clone(),
        });
        known.push(Arc::clone(&new));
        Some(new)
    }

    fn ews_desk(
        &self,
        listener: &Arc<Listener>,
        https: &HttpsClient<ews::desk::BoxBody>,
        seats: &Seats,
    ) -> Result<Desk, StartError> {
        Desk::new(
            Arc::clone(listener),
            Arc::clone(&self.broker) as Arc<dyn Tokens>,
            Arc::new(https.clone()) as Arc<dyn ews::desk::Sender>,
            seats.clone(),
            self.config.limits.clone(),
            Arc::clone(&self.metrics),
        )
        .map_err(|error| StartError::Ews(listener.name.clone(), error.to_string()))
    }

    fn open_admin(&self, sockets: Vec<TcpListener>) {
        let desk = Arc::new(AdminDesk {
            source: Arc::new(Live {
                config: Arc::clone(&self.config),
                broker: Arc::clone(&self.broker),
                metrics: Arc::clone(&self.metrics),
                addresses: self.addresses.clone(),
                started: clock::wall(),
                draining: self.draining.clone(),
            }),
            metrics: Arc::clone(&self.metrics),
            listen: self.admin.clone(),
        });
        for socket in sockets {
            tokio::spawn(admin::serve(socket, Arc::clone(&desk), self.stopping.clone()));
        }
    }
}

/// What an EWS listener does with those who come.
struct EwsVisitors {
    desk: Arc<Desk>,
    acceptor: Option<TlsAcceptor>,
    /// For the TLS handshake.
    limit: Duration,
    draining: CancellationToken,
}

impl EwsVisitors {
    async fn serve(self: Arc<Self>, visit: Visit) {
        let Visit { io, peer, place } = visit;
        let name = &self.desk.listener.name;
        if place.is_none() {
            // HTTP has no word to say before it is asked
            tracing::warn!(listener = name, %peer, "turned away: `limits.sessions` is reached");
            return;
        }
        let alive = self.desk.metrics.sessions.get_or_create_owned(&ListenerLabel { listener: name.clone() });
        alive.inc();
        let io: Result<BoxIo, String> = match &self.acceptor {
            None => Ok(Box::new(io)),
            Some(acceptor) => match timeout(self.limit, acceptor.accept(io)).await {
                Ok(Ok(io)) => Ok(Box::new(io)),
                Ok(Err(error)) => {
                    front_tls::report(&error, name, peer);
                    Err(error.to_string())
                }
                Err(_) => Err("no TLS handshake within `login-timeout`".to_owned()),
            },
        };
        match io {
            Ok(io) => drop(ews::serve(io, peer, Arc::clone(&self.desk), self.draining.clone()).await),
            Err(why) => tracing::info!(listener = name, %peer, why, "TLS with the mail client failed"),
        }
        alive.dec();
    }
}

/// How this machine calls itself, in SMTP's greeting.
fn host_name() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let told = told.trim();
    let fits = !told.is_empty() && told.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    if fits { told.to_owned() } else { "localhost".to_owned() }
}

fn bind_all(config: &Config) -> Result<Vec<(Arc<Listener>, TcpListener)>, StartError> {
    let mut doors = Vec::new();
    for listener in &config.listeners {
        for &address in &listener.listen {
            let socket = bind(address).map_err(|source| StartError::Bind {
                listener: listener.name.clone(),
                address,
                source,
            })?;
            doors.push((Arc::clone(listener), socket));
        }
    }
    Ok(doors)
}

fn bind_admin(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    let addresses = config.admin.iter().flat_map(|admin| &admin.listen);
    addresses
        .map(|&address| {
            bind(address).map_err(|source| StartError::Bind { listener: "admin".to_owned(), address, source })
        })
        .collect()
}

fn address(name: &str, socket: &TcpListener) -> (String, SocketAddr) {
    (name.to_owned(), socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0))))
}
