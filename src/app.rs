//! Configuration in, running proxy out. Owns start, reload, stop and the way sessions come to an end.

mod doors;
mod error;
mod rooms;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::doors::Inherited;
use self::doors::{Open, Wanted, counted, wanted};
pub use self::error::StartError;
use self::rooms::{House, Leftovers, Prepared, Rooms};
use crate::admin::status::ReloadStatus;
use crate::admin::{self, AdminDesk};
use crate::clock;
use crate::config::Loaded;
use crate::config::model::Config;
use crate::config::problem::Problems;
use crate::explain::Explain as _;
use crate::live::{DoorView, Live, Now, expiry};
use crate::seats::Seats;
use crate::serve::listener::Door;
use crate::serve::recorder::Recordings;
use crate::serve::station::Station;
use crate::task;
use crate::telemetry::metrics::Metrics;
use crate::token::broker::{Broker, BrokerSettings};
use crate::token::managed::ManagedIdentity;
use crate::token::store;

/// How long sessions get to notice a hard stop.
const HARD_STOP_LIMIT: Duration = Duration::from_secs(1);

/// A running proxy.
pub struct App {
    house: House,
    live: Arc<Live>,
    /// Taken by a reload, so that there is one at a time.
    state: Mutex<State>,
    places: Arc<Semaphore>,
    /// Ends everything that draining does not.
    stopping: CancellationToken,
}

/// Sockets that are open and not answered yet: the last moment at which the process may need root.
pub struct Bound {
    prepared: Prepared,
    sockets: Vec<(Wanted, TcpListener)>,
    /// Names with sockets that were passed in.
    counts: Vec<(String, usize)>,
    draining: CancellationToken,
    stopping: CancellationToken,
}

/// What a reload changes.
struct State {
    config: Arc<Config>,
    open: Vec<Open>,
    stations: Vec<Arc<Station>>,
    seats: Seats,
    /// Names with sockets that were passed in.
    inherited: Vec<(String, usize)>,
    leftovers: Leftovers,
}

impl App {
    /// Binds every listener, then serves. Either all of it runs, or none. To be called inside a runtime.
    ///
    /// # Errors
    /// An address, certificate or store that cannot be had.
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::bind(config, &mut Inherited::default())?.serve()
    }

    /// Opens every socket. Those that were opened for us stand each in for the `listen` of the listener of their
    /// name; what is left in `inherited` has no listener.
    ///
    /// # Errors
    /// An address or a certificate that cannot be had.
    pub fn bind(config: Config, inherited: &mut Inherited) -> Result<Bound, StartError> {
        let (draining, stopping) = (CancellationToken::new(), CancellationToken::new());
        let prepared = Prepared::new(config, &draining, &stopping)?;
        let counts = counted(inherited);
        let sockets = open_all(wanted(&prepared.config, &counts), inherited)?;
        Ok(Bound { prepared, sockets, counts, draining, stopping })
    }

    fn on(bound: Bound) -> Result<Self, StartError> {
        let Bound { prepared, sockets, counts, draining, stopping } = bound;
        let config = Arc::clone(&prepared.config);
        let metrics = Arc::new(Metrics::default());
        let store = store::open(&config.tokens)?;
        let broker =
            Broker::new(broker_settings(&config), prepared.endpoint.clone(), store, Arc::clone(&metrics));
        let house = House {
            broker,
            metrics,
            recordings: Arc::new(Recordings::default()),
            sessions: TaskTracker::new(),
            warm: TaskTracker::new(),
            draining,
        };
        let seats = Seats::new(config.limits.sessions_per_user);
        let rooms = Rooms::new(&prepared, &house, &seats, &[], &|number| first_of(&sockets, number))?;
        let live = Arc::new(Live {
            now: ArcSwap::from_pointee(Now {
                config: Arc::clone(&config),
                doors: Vec::new(),
                expiries: Vec::new(),
            }),
            broker: Arc::clone(&house.broker),
            metrics: Arc::clone(&house.metrics),
            recordings: Arc::clone(&house.recordings),
            started: clock::wall(),
            draining: house.draining.clone(),
            reload: ArcSwapOption::empty(),
            sign_ins: ArcSwap::from_pointee(Vec::new()),
        });
        let app = Self {
            places: Arc::new(Semaphore::new(config.limits.sessions)),
            house,
            live,
            stopping,
            state: Mutex::new(State {
                config: Arc::clone(&config),
                open: Vec::new(),
                stations: rooms.stations.clone(),
                seats,
                inherited: counts,
                leftovers: prepared.leftovers(),
            }),
        };
        {
            let mut state = app.state.lock().unwrap_or_else(PoisonError::into_inner);
            for (wish, socket) in sockets {
                app.open(&mut state, &wish, socket, &rooms);
            }
            app.publish(&state);
        }
        rooms.learn();
        app.house.metrics.reloaded(true, clock::wall());
        task::start(Arc::clone(&app.house.broker).renew_forever(app.stopping.clone()));
        task::start(Arc::clone(&app.live).watch_sign_ins(app.stopping.clone()));
        Ok(app)
    }

    /// Listener names and the addresses they are bound to.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.live.now.load().doors.iter().map(|door| (door.name(), door.bound)).collect()
    }

    /// Where the status page is.
    pub fn admin_addresses(&self) -> Vec<SocketAddr> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.open.iter().filter(|open| open.room.is_none()).map(|open| open.bound).collect()
    }

    /// Takes a configuration that was read anew: all of it, or, where anything is wrong with it, nothing. New
    /// connections find it; sessions keep what they have. The log and the status page tell.
    pub fn reload(&self, read: Result<Loaded, Problems>) -> bool {
        let outcome = match read {
            Err(problems) => Err(problems.to_string()),
            Ok(loaded) => {
                for remark in &loaded.remarks {
                    tracing::warn!(line = remark.line, remedy = remark.remedy, "{}", remark.what);
                }
                self.take(loaded.config).map_err(|error| {
                    let story = error.explain();
                    format!("{} ({}): {}", story.what, story.code, story.remedy)
                })
            }
        };
        let now = clock::wall();
        self.house.metrics.reloaded(outcome.is_ok(), now);
        let status = match outcome {
            Ok(what) => {
                tracing::info!("configuration reloaded: {what}");
                ReloadStatus { when: now, is_taken: true, what }
            }
            Err(what) => {
                for line in what.lines().filter(|line| !line.trim().is_empty()) {
                    tracing::error!("configuration not reloaded: {line}");
                }
                ReloadStatus { when: now, is_taken: false, what }
            }
        };
        let is_taken = status.is_taken;
        self.live.reload.store(Some(Arc::new(status)));
        is_taken
    }

    /// Stops accepting, lets sessions come to an end within `limits.drain-timeout`, then ends the rest.
    /// `hurry` ends the wait at once.
    pub async fn stop(self, hurry: impl Future<Output = ()>) {
        self.house.draining.cancel();
        self.house.sessions.close();
        self.house.warm.close();
        let limit = self.live.now.load().config.limits.drain_timeout;
        let drained = tokio::select! {
            biased;
            drained = timeout(limit, self.house.sessions.wait()) => drained.is_ok(),
            () = hurry => false,
        };
        self.stopping.cancel();
        if !drained {
            let left = self.house.sessions.len();
            tracing::warn!(left, "sessions are ended before they came to their end");
            drop(timeout(HARD_STOP_LIMIT, self.house.sessions.wait()).await);
        }
        drop(timeout(HARD_STOP_LIMIT, self.house.warm.wait()).await);
    }

    /// Everything that can fail comes first; nothing is changed before it is through.
    fn take(&self, config: Config) -> Result<String, StartError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.config.tokens.store != config.tokens.store {
            return Err(StartError::NeedsRestart("tokens.store"));
        }
        let prepared = Prepared::new(config, &self.house.draining, &self.stopping)?;
        let config = Arc::clone(&prepared.config);
        let seats = state.seats.allowing(config.limits.sessions_per_user);
        let wishes = wanted(&config, &state.inherited);
        let is_open = |wish: &Wanted| state.open.iter().any(|open| is_same(open, wish));
        let (kept, new): (Vec<Wanted>, Vec<Wanted>) = wishes.into_iter().partition(is_open);
        let sockets = open_all(new, &mut Inherited::default())
            .map_err(|error| error.after_root_was_given_up(state.config.run.user.as_deref()))?;
        let bound = |number| {
            let of =
                |open: &&Open| kept.iter().any(|wish| wish.listener == Some(number) && is_same(open, wish));
            first_of(&sockets, number).or_else(|| state.open.iter().find(of).map(|open| open.bound))
        };
        let rooms = Rooms::new(&prepared, &self.house, &seats, &state.stations, &bound)?;

        // from here on nothing fails
        self.house.broker.reconfigure(broker_settings(&config), prepared.endpoint.clone());
        self.resize(state.config.limits.sessions, config.limits.sessions);
        let before = state.open.len();
        let (stay, go): (Vec<Open>, Vec<Open>) = std::mem::take(&mut state.open)
            .into_iter()
            .partition(|open| kept.iter().any(|wish| is_same(open, wish)));
        for open in &go {
            open.closing.cancel();
        }
        for open in &stay {
            let listener = kept.iter().find(|wish| is_same(open, wish)).and_then(|wish| wish.listener);
            if let (Some(behind), Some(room)) =
                (&open.room, listener.and_then(|number| rooms.all.get(number)))
            {
                behind.store(Arc::clone(room));
            }
        }
        let told =
            format!("{} sockets kept of {before}, {} opened, {} closed", stay.len(), sockets.len(), go.len());
        state.open = stay;
        for (wish, socket) in sockets {
            self.open(&mut state, &wish, socket, &rooms);
        }
        state.config = config;
        state.stations.clone_from(&rooms.stations);
        state.seats = seats;
        std::mem::replace(&mut state.leftovers, prepared.leftovers()).clear();
        self.publish(&state);
        drop(state);
        rooms.learn();
        Ok(told)
    }

    /// Puts a door in front of a socket, and starts to answer it.
    fn open(&self, state: &mut State, wish: &Wanted, socket: TcpListener, rooms: &Rooms) {
        let bound = socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let room = wish.listener.and_then(|number| rooms.all.get(number));
        let room = room.map(|room| Arc::new(ArcSwap::new(Arc::clone(room))));
        let trouble = Arc::default();
        let closing = if let Some(room) = &room {
            let door = Door {
                room: Arc::clone(room),
                places: Arc::clone(&self.places),
                metrics: Arc::clone(&self.house.metrics),
                tracker: self.house.sessions.clone(),
                closing: self.house.draining.child_token(),
                trouble: Arc::clone(&trouble),
            };
            let closing = door.closing.clone();
            task::start(door.keep(socket));
            closing
        } else {
            let closing = self.stopping.child_token();
            let desk = AdminDesk {
                source: Arc::clone(&self.live) as Arc<dyn admin::status::StatusSource>,
                metrics: Arc::clone(&self.house.metrics),
                listen: vec![bound],
            };
            task::start(admin::serve(socket, Arc::new(desk), closing.clone()));
            closing
        };
        state.open.push(Open { key: wish.key.clone(), bound, room, closing, trouble });
    }

    /// What the status page shows from now on.
    fn publish(&self, state: &State) {
        let doors = state.open.iter().filter_map(|open| {
            let room = Arc::clone(open.room.as_ref()?);
            Some(DoorView { room, bound: open.bound, trouble: Arc::clone(&open.trouble) })
        });
        let (config, expiries) = (Arc::clone(&state.config), expiry::of(&state.config));
        self.live.now.store(Arc::new(Now { config, doors: doors.collect(), expiries }));
    }

    /// `limits.sessions` has changed: where more are in than are allowed now, nobody comes in until they are
    /// fewer.
    fn resize(&self, from: usize, to: usize) {
        self.places.add_permits(to.saturating_sub(from));
        let fewer = from.saturating_sub(to);
        let missing = fewer - self.places.forget_permits(fewer);
        if let Ok(missing @ 1..) = u32::try_from(missing) {
            let places = Arc::clone(&self.places);
            task::start(async move {
                if let Ok(given_back) = places.acquire_many_owned(missing).await {
                    given_back.forget();
                }
            });
        }
    }
}

impl Bound {
    /// Opens the token store and answers.
    ///
    /// # Errors
    /// A store that cannot be had.
    pub fn serve(self) -> Result<App, StartError> {
        App::on(self)
    }
}

fn broker_settings(config: &Config) -> BrokerSettings {
    BrokerSettings {
        tokens: config.tokens.clone(),
        guard: config.guard.clone(),
        managed_identity: ManagedIdentity::from_environment(),
    }
}

/// The same socket, leading to the same kind of place.
fn is_same(open: &Open, wish: &Wanted) -> bool {
    open.key == wish.key && open.room.is_some() == wish.listener.is_some()
}

/// Where the first of a listener's new sockets is.
fn first_of(sockets: &[(Wanted, TcpListener)], number: usize) -> Option<SocketAddr> {
    let (_, socket) = sockets.iter().find(|(wish, _)| wish.listener == Some(number))?;
    socket.local_addr().ok()
}

fn open_all(
    wishes: Vec<Wanted>,
    inherited: &mut Inherited,
) -> Result<Vec<(Wanted, TcpListener)>, StartError> {
    wishes
        .into_iter()
        .map(|wish| {
            let socket = wish.open(inherited)?;
            Ok((wish, socket))
        })
        .collect()
}
