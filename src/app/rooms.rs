//! What one configuration puts behind its listeners: stations for mail, desks for EWS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::StartError;
use crate::config::model::{Config, Listener, Upstream};
use crate::ews::{self, desk::Desk};
use crate::seats::Seats;
use crate::serve::listener::{Room, Visit};
use crate::serve::offer::Shown;
use crate::serve::recorder::Recordings;
use crate::serve::session;
use crate::serve::station::Station;
use crate::serve::tls as front_tls;
use crate::serve::turnstile::Turnstile;
use crate::serve::warm::{WarmConnections, WarmSettings};
use crate::stream::BoxIo;
use crate::task;
use crate::telemetry::metrics::{ListenerLabel, Metrics};
use crate::token::broker::Broker;
use crate::token::endpoint::Endpoint;
use crate::token::request::Tokens;
use crate::upstream::connector::Connector;
use crate::upstream::https::HttpsClient;
use crate::upstream::tls as back_tls;
use crate::way;

/// No token request takes longer.
const LONGEST_REQUEST: Duration = Duration::from_secs(90);

/// What outlives every configuration.
#[derive(Debug)]
pub(super) struct House {
    pub(super) broker: Arc<Broker>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) recordings: Arc<Recordings>,
    /// Knows every session, so that a stop can wait for them.
    pub(super) sessions: TaskTracker,
    /// Knows every warm connection, so that a stop can wait for their goodbyes.
    pub(super) warm: TaskTracker,
    /// Ends accepting; sessions end as soon as they lose nothing by it.
    pub(super) draining: CancellationToken,
}

/// A configuration whose certificates, roots and proxy have been read: the part that can fail.
pub(super) struct Prepared {
    pub(super) config: Arc<Config>,
    pub(super) endpoint: Endpoint,
    /// Ends what serves this configuration alone: warm connections, and later the way to the identity provider.
    pub(super) closing: CancellationToken,
    connector: Arc<Connector>,
    acceptor: Option<TlsAcceptor>,
    gateway: CancellationToken,
}

impl Prepared {
    /// Reads all files that the configuration names.
    pub(super) fn new(
        config: Config,
        draining: &CancellationToken,
        stopping: &CancellationToken,
    ) -> Result<Self, StartError> {
        let outbound_tls = back_tls::outbound_config(&config.tls)?;
        let acceptor = front_tls::acceptor(&config.tls)?;
        let connector = Arc::new(Connector::new(
            outbound_tls.clone(),
            config.outbound_proxies.clone(),
            config.limits.connect_timeout,
        ));
        let gateway = stopping.child_token();
        let endpoint = way::endpoint(outbound_tls, &connector, &gateway)
            .map_err(|error| StartError::Endpoint(error.to_string()))?;
        let closing = draining.child_token();
        Ok(Self { config: Arc::new(config), endpoint, closing, connector, acceptor, gateway })
    }

    /// What this configuration alone has open, to be closed after it.
    pub(super) fn leftovers(&self) -> Leftovers {
        Leftovers { closing: self.closing.clone(), gateway: self.gateway.clone() }
    }
}

/// What a configuration that is no longer in force leaves open.
pub(super) struct Leftovers {
    closing: CancellationToken,
    gateway: CancellationToken,
}

impl Leftovers {
    /// Warm connections go at once; the way to the identity provider when the last request over it must have
    /// been answered.
    pub(super) fn clear(self) {
        self.closing.cancel();
        task::start(async move {
            sleep(LONGEST_REQUEST).await;
            self.gateway.cancel();
        });
    }
}

/// The rooms of one configuration.
pub(super) struct Rooms {
    /// In the order of its listeners.
    pub(super) all: Vec<Arc<Room>>,
    /// Those of them that serve mail.
    pub(super) stations: Vec<Arc<Station>>,
}

impl Rooms {
    /// Furnishes them. What upstream offered an equal listener `before` is known already.
    pub(super) fn new(
        prepared: &Prepared,
        house: &House,
        seats: &Seats,
        before: &[Arc<Station>],
        bound: &dyn Fn(usize) -> Option<SocketAddr>,
    ) -> Result<Self, StartError> {
        let config = &prepared.config;
        let connector = &prepared.connector;
        let https = HttpsClient::new(Arc::clone(connector));
        let kept = before.first().filter(|old| old.limits == config.limits);
        let turnstile = kept.map_or_else(|| Turnstile::new(&config.limits), |old| old.turnstile.clone());
        let holds = before.first().map(|old| Arc::clone(&old.holds)).unwrap_or_default();
        let mut warm: Vec<Arc<WarmConnections>> = Vec::new();
        let mut rooms = Self { all: Vec::new(), stations: Vec::new() };
        for (number, listener) in config.listeners.iter().enumerate() {
            if matches!(listener.upstream, Upstream::Http(_)) {
                let room = ews_room(prepared, house, seats, listener, &https, bound(number))?;
                rooms.all.push(room);
                continue;
            }
            let same = |old: &&Arc<Station>| {
                old.listener.protocol == listener.protocol && old.listener.upstream == listener.upstream
            };
            let offer = match before.iter().find(same) {
                Some(old) => Arc::clone(&old.offer),
                None => Arc::new(Shown::new(listener.protocol)),
            };
            let station = Arc::new(Station {
                offer,
                tokens: Arc::clone(&house.broker) as Arc<dyn Tokens>,
                connector: Arc::clone(connector),
                acceptor: prepared.acceptor.clone(),
                seats: seats.clone(),
                turnstile: turnstile.clone(),
                holds: Arc::clone(&holds),
                warm: warm_connections(prepared, house, listener, &mut warm),
                limits: config.limits.clone(),
                metrics: Arc::clone(&house.metrics),
                recordings: Arc::clone(&house.recordings),
                host_name: host_name(),
                draining: house.draining.clone(),
                wants_oauthbearer: AtomicBool::new(false),
                listener: Arc::clone(listener),
            });
            rooms.stations.push(Arc::clone(&station));
            rooms.all.push(Arc::new(Room {
                listener: Arc::clone(listener),
                header_limit: config.limits.login_timeout,
                serve: Box::new(move |visit| Box::pin(session::serve(Arc::clone(&station), visit))),
            }));
        }
        Ok(rooms)
    }

    /// Has every station ask its upstream what it offers.
    pub(super) fn learn(&self) {
        for station in &self.stations {
            station.keep_up();
        }
    }
}

/// The warm connections to a listener's upstream; listeners with the same upstream share them.
fn warm_connections(
    prepared: &Prepared,
    house: &House,
    listener: &Listener,
    known: &mut Vec<Arc<WarmConnections>>,
) -> Option<Arc<WarmConnections>> {
    let Upstream::Mail(server) = &listener.upstream else { return None };
    let limits = &prepared.config.limits;
    if limits.warm_connections == 0 {
        return None;
    }
    if let Some(same) = known.iter().find(|warm| warm.leads_to(listener.protocol, server)) {
        return Some(Arc::clone(same));
    }
    let new = WarmConnections::new(WarmSettings {
        protocol: listener.protocol,
        server: server.clone(),
        connector: Arc::clone(&prepared.connector),
        most: limits.warm_connections,
        max_age: limits.warm_connection_age,
        host_name: host_name(),
        metrics: Arc::clone(&house.metrics),
        tracker: house.warm.clone(),
        draining: prepared.closing.clone(),
    });
    known.push(Arc::clone(&new));
    Some(new)
}

fn ews_room(
    prepared: &Prepared,
    house: &House,
    seats: &Seats,
    listener: &Arc<Listener>,
    https: &HttpsClient,
    bound: Option<SocketAddr>,
) -> Result<Arc<Room>, StartError> {
    let limits = &prepared.config.limits;
    let desk = Desk::new(
        Arc::clone(listener),
        Arc::clone(&house.broker) as Arc<dyn Tokens>,
        Arc::new(https.clone()) as Arc<dyn ews::desk::Sender>,
        seats.clone(),
        limits.clone(),
        Arc::clone(&house.metrics),
    )
    .map_err(|error| StartError::Ews(listener.name.clone(), error.to_string()))?;
    let visitors = Arc::new(EwsVisitors {
        desk: Arc::new(desk.listening_on(bound)),
        acceptor: listener.tls.is_implicit().then(|| prepared.acceptor.clone()).flatten(),
        limit: limits.login_timeout,
        draining: house.draining.clone(),
    });
    Ok(Arc::new(Room {
        listener: Arc::clone(listener),
        header_limit: limits.login_timeout,
        serve: Box::new(move |visit| Box::pin(Arc::clone(&visitors).serve(visit))),
    }))
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
        let io = match io {
            Ok(io) => io,
            Err(why) => {
                tracing::info!(listener = name, %peer, why, "TLS with the mail client failed");
                return;
            }
        };
        if place.is_none() {
            tracing::warn!(listener = name, %peer, "turned away: `limits.sessions` is reached");
            ews::turn_away(io).await;
            return;
        }
        let alive = self.desk.metrics.sessions.get_or_create_owned(&ListenerLabel { listener: name.clone() });
        alive.inc();
        let _ended = ews::serve(io, peer, Arc::clone(&self.desk), self.draining.clone()).await;
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
