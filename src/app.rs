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

use crate::config::model::{Config, FrontTls, Listener, Protocol};
use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};
use crate::serve::listener::{Door, Visit, bind};
use crate::serve::seats::Seats;
use crate::serve::session;
use crate::serve::station::Station;
use crate::serve::tls as front_tls;
use crate::telemetry::metrics::Metrics;
use crate::token::broker::Broker;
use crate::token::endpoint::Endpoint;
use crate::token::store::{self, StoreError};
use crate::upstream::connector::Connector;
use crate::upstream::https::HttpsClient;
use crate::upstream::tls::{self as back_tls, TlsSetupError};

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
}

impl Explain for StartError {
    fn explain(&self) -> Explanation {
        let (code, remedy) = match self {
            Self::Bind { source, address, .. } => (
                "START-LISTEN",
                match source.kind() {
                    io::ErrorKind::AddrInUse => format!(
                        "another program listens on port {} already: stop it, or change `listen`",
                        address.port()
                    ),
                    io::ErrorKind::PermissionDenied => {
                        "choose a port above 1023, or give the program CAP_NET_BIND_SERVICE".to_owned()
                    }
                    _ => "change `listen` to an address of this machine".to_owned(),
                },
            ),
            Self::Tls(_) => ("START-TLS", "correct the `tls` section".to_owned()),
            Self::Endpoint(_) => ("START-IDENTITY", "correct `outbound-proxy` and `tls`".to_owned()),
            Self::Store(_) => ("START-STORE", "correct the `tokens` section".to_owned()),
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
    /// Binds every listener, then serves. Either all of it runs, or none.
    ///
    /// # Errors
    /// An address, certificate or store that cannot be had.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::default());
        let outbound_tls = back_tls::outbound_config(&config.tls)?;
        let acceptor = front_tls::acceptor(&config.tls)?;
        let endpoint = Endpoint::new(outbound_tls.clone(), config.outbound_proxy.as_ref())
            .map_err(|error| StartError::Endpoint(error.to_string()))?;
        let kept = store::open(&config.tokens).await?;
        let broker = Broker::new(&config, endpoint, kept, Arc::clone(&metrics));
        let doors = bind_all(&config)?;
        let admin = bind_admin(&config)?;
        let mut app = Self {
            addresses: doors.iter().map(|(listener, socket)| address(&listener.name, socket)).collect(),
            admin: admin.iter().filter_map(|socket| socket.local_addr().ok()).collect(),
            config,
            broker,
            metrics,
            sessions: TaskTracker::new(),
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
        };
        app.open_doors(doors, &Arc::new(outbound_tls), acceptor.as_ref());
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
            drained = timeout(limit, self.sessions.wait()) => drained.is_ok(),
            () = hurry => false,
        };
        self.stopping.cancel();
        if !drained {
            let left = self.sessions.len();
            tracing::warn!(left, "sessions are ended before they came to their end");
            drop(timeout(HARD_STOP_LIMIT, self.sessions.wait()).await);
        }
    }

    fn open_doors(
        &mut self,
        doors: Vec<(Arc<Listener>, TcpListener)>,
        tls: &Arc<rustls::ClientConfig>,
        acceptor: Option<&TlsAcceptor>,
    ) {
        let proxy = self.config.outbound_proxy.clone().map(Arc::new);
        let connector = Arc::new(Connector::new(Arc::clone(tls), proxy));
        let https = HttpsClient::new(Arc::clone(&connector));
        let places = Arc::new(Semaphore::new(self.config.limits.sessions));
        let seats = Seats::new(self.config.limits.sessions_per_user);
        let mut stations: Vec<Arc<Station>> = Vec::new();
        for (listener, socket) in doors {
            let door = Door {
                listener: Arc::clone(&listener),
                places: Arc::clone(&places),
                metrics: Arc::clone(&self.metrics),
                tracker: self.sessions.clone(),
                closing: self.draining.clone(),
            };
            if listener.protocol == Protocol::Ews {
                let desk = self.ews_desk(&listener, &https, acceptor);
                tokio::spawn(door.keep(socket, move |visit| ews_visit(Arc::clone(&desk), visit)));
                continue;
            }
            let known = stations.iter().find(|station| Arc::ptr_eq(&station.listener, &listener));
            let station = known.cloned().unwrap_or_else(|| {
                let station = Arc::new(Station {
                    offer: Station::first_offer(listener.protocol),
                    tokens: self.broker.clone(),
                    connector: Arc::clone(&connector),
                    acceptor: acceptor.cloned(),
                    seats: seats.clone(),
                    limits: self.config.limits.clone(),
                    metrics: Arc::clone(&self.metrics),
                    host_name: host_name(),
                    draining: self.draining.clone(),
                    listener,
                });
                let learner = Arc::clone(&station);
                tokio::spawn(async move { learner.learn().await });
                stations.push(Arc::clone(&station));
                station
            });
            tokio::spawn(door.keep(socket, move |visit| session::serve(Arc::clone(&station), visit)));
        }
    }
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
