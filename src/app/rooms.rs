//! What one configuration puts behind its listeners: stations for mail, desks for EWS.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::error::StartError;
use crate::config::model::{Config, Listener, Protocol};
use crate::ews::{self, desk::Desk};
use crate::seats::Seats;
use crate::serve::listener::{Room, Visit};
use crate::serve::recorder::Recordings;
use crate::serve::session;
use crate::serve::station::Station;
use crate::serve::tls as front_tls;
use crate::stream::BoxIo;
use crate::telemetry::metrics::{ListenerLabel, Metrics};
use crate::token::broker::Broker;
use crate::token::endpoint::Endpoint;
use crate::token::request::Tokens;
use crate::upstream::connector::Connector;
use crate::upstream::https::HttpsClient;
use crate::upstream::tls as back_tls;

/// What outlives every configuration.
#[derive(Debug)]
pub(super) struct House {
    pub(super) broker: Arc<Broker>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) recordings: Arc<Recordings>,
    /// Ends accepting; sessions end as soon as they lose nothing by it.
    pub(super) draining: CancellationToken,
}

/// A configuration whose certificates, roots and proxy have been read: the part that can fail.
pub(super) struct Prepared {
    pub(super) config: Arc<Config>,
    pub(super) endpoint: Endpoint,
    outbound_tls: Arc<rustls::ClientConfig>,
    acceptor: Option<TlsAcceptor>,
}

impl Prepared {
    /// Reads all files that the configuration names.
    pub(super) fn new(config: Config) -> Result<Self, StartError> {
        let outbound_tls = back_tls::outbound_config(&config.tls)?;
        let acceptor = front_tls::acceptor(&config.tls)?;
        let endpoint = Endpoint::new(outbound_tls.clone(), config.outbound_proxy.as_ref())
            .map_err(|error| StartError::Endpoint(error.to_string()))?;
        Ok(Self { config: Arc::new(config), endpoint, outbound_tls: Arc::new(outbound_tls), acceptor })
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
    ) -> Result<Self, StartError> {
        let config = &prepared.config;
        let proxy = config.outbound_proxy.clone().map(Arc::new);
        let connector = Arc::new(Connector::new(Arc::clone(&prepared.outbound_tls), proxy));
        let https = HttpsClient::new(Arc::clone(&connector));
        let mut rooms = Self { all: Vec::new(), stations: Vec::new() };
        for listener in &config.listeners {
            if listener.protocol == Protocol::Ews {
                rooms.all.push(ews_room(prepared, house, seats, listener, &https)?);
                continue;
            }
            let same = |old: &&Arc<Station>| {
                old.listener.protocol == listener.protocol && old.listener.upstream == listener.upstream
            };
            let offer = Station::first_offer(listener.protocol);
            if let Some(old) = before.iter().find(same) {
                offer.store(old.offer.load_full());
            }
            let station = Arc::new(Station {
                offer,
                tokens: Arc::clone(&house.broker) as Arc<dyn Tokens>,
                connector: Arc::clone(&connector),
                acceptor: prepared.acceptor.clone(),
                seats: seats.clone(),
                limits: config.limits.clone(),
                metrics: Arc::clone(&house.metrics),
                recordings: Arc::clone(&house.recordings),
                host_name: host_name(),
                draining: house.draining.clone(),
                listener: Arc::clone(listener),
            });
            rooms.stations.push(Arc::clone(&station));
            rooms.all.push(Arc::new(Room {
                listener: Arc::clone(listener),
                serve: Box::new(move |visit| Box::pin(session::serve(Arc::clone(&station), visit))),
            }));
        }
        Ok(rooms)
    }

    /// Has every station ask its upstream what it offers.
    pub(super) fn learn(&self) {
        for station in &self.stations {
            let learner = Arc::clone(station);
            tokio::spawn(async move { learner.learn().await });
        }
    }
}

fn ews_room(
    prepared: &Prepared,
    house: &House,
    seats: &Seats,
    listener: &Arc<Listener>,
    https: &HttpsClient<ews::desk::BoxBody>,
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
        desk: Arc::new(desk),
        acceptor: listener.tls.is_implicit().then(|| prepared.acceptor.clone()).flatten(),
        limit: limits.login_timeout,
        draining: house.draining.clone(),
    });
    Ok(Arc::new(Room {
        listener: Arc::clone(listener),
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
                Ok(Err(error)) => Err(error.to_string()),
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
