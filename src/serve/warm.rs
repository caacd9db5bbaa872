//! Connections to one upstream that are dialled, encrypted and greeted ahead of the next login.
//!
//! ```text
//! a login that upstream took ──► refill ──► dial, TLS, greeting ──► parked ──take──► a session
//!                                  ▲                                  │
//!                                  └──── too old, closed, spoken to ◄─┘
//! ```
//! Logins alone drive it: whoever only connects, or does not get in, causes no connection. There is no
//! timer of its own: a listener without logins for [`WINDOW`] has none parked, and costs nothing.
//!
//! Each parked connection is a task with a read pending, so that one which upstream closes, or on which it
//! says anything, is gone before anybody gets it. None is used twice, none is sent a secret before a login.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dialogue;
use super::drive::{self, BackFailure};
use crate::clock;
use crate::config::model::{MailServer, Protocol};
use crate::protocol::machine::{Back, Errand};
use crate::stream::BoxIo;
use crate::task;
use crate::telemetry::metrics::{Metrics, UpstreamLabel, WarmLabels};
use crate::upstream::connector::Connector;

/// Logins older than this say nothing about the next one.
pub const WINDOW: Duration = Duration::from_mins(3);

/// Logins within the window below which none is kept: one login is no rate.
const ENOUGH: usize = 2;

/// About as long as a connection takes to be replaced: logins within this time find the store empty.
const BURST: Duration = Duration::from_secs(1);

/// Logins that are remembered; more than any bound on parked connections.
const REMEMBERED: usize = 64;

/// How long dialling, TLS and greeting may take together.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// How long a goodbye may take to be sent.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);

/// The wait after a failure: one second, doubled each time, this often at most (64 s).
const MAX_DOUBLINGS: u32 = 6;

/// What the connections to one upstream need.
pub struct WarmSettings {
    /// What is spoken.
    pub protocol: Protocol,
    /// With whom.
    pub server: MailServer,
    /// The way there.
    pub connector: Arc<Connector>,
    /// `limits.warm-connections`.
    pub most: usize,
    /// `limits.warm-connection-age`: upstream itself closes after a minute without a login.
    pub max_age: Duration,
    /// SMTP's EHLO name until a mail client has given one.
    pub host_name: String,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Knows the tasks, so that a stop can wait for their goodbyes.
    pub tracker: TaskTracker,
    /// The proxy wants to stop.
    pub draining: CancellationToken,
}

/// The connections to one upstream that wait for a login.
pub struct WarmConnections {
    settings: WarmSettings,
    upstream: String,
    state: Mutex<State>,
}

/// A connection that waits, handed over: greeted, and nothing said since.
pub struct Ready {
    /// Encrypted.
    pub io: BoxIo,
    /// [Waits](Back::waits).
    pub dialogue: Box<dyn Back>,
}

#[derive(Default)]
struct State {
    /// Each asks the task that holds the connection; oldest first.
    parked: VecDeque<oneshot::Sender<oneshot::Sender<Ready>>>,
    dialling: usize,
    logins: VecDeque<Instant>,
    /// The EHLO name of the last mail client: mostly that of the next one.
    client_name: Option<String>,
    failures: u32,
    quiet_until: Option<Instant>,
}

/// How a parked connection ended.
enum End {
    Taken(oneshot::Sender<Ready>),
    /// By upstream.
    Lost(String),
    Aged,
    Unwanted,
}

impl WarmConnections {
    /// Parks nothing until logins ask for it.
    pub fn new(settings: WarmSettings) -> Arc<Self> {
        let upstream = format!("{}:{}", settings.server.host, settings.server.port);
        Arc::new(Self { settings, upstream, state: Mutex::default() })
    }

    /// Whether these go where a listener wants to go.
    pub fn leads_to(&self, protocol: Protocol, server: &MailServer) -> bool {
        self.settings.protocol == protocol && self.settings.server == *server
    }

    /// How many are parked now.
    pub fn parked(&self) -> usize {
        let mut state = self.state();
        state.forget_ended();
        state.parked.len()
    }

    /// A connection that waits, if there is one. To be called with a token in hand.
    pub async fn take(&self) -> Option<Ready> {
        loop {
            let ask = self.state().parked.pop_front()?;
            let (give, given) = oneshot::channel();
            // a task that has just ended takes no question, or leaves it unanswered
            if ask.send(give).is_ok()
                && let Ok(ready) = given.await
            {
                return Some(ready);
            }
        }
    }

    /// A login that upstream took: what is parked is brought to what the rate of logins asks for.
    pub fn logged_in(self: &Arc<Self>, client_name: Option<&str>) {
        let now = clock::now();
        {
            let mut state = self.state();
            if state.logins.len() >= REMEMBERED {
                state.logins.pop_front();
            }
            state.logins.push_back(now);
            if let Some(name) = client_name {
                state.client_name = Some(name.to_owned());
            }
        }
        self.refill(now);
    }

    fn refill(self: &Arc<Self>, now: Instant) {
        if self.settings.draining.is_cancelled() {
            return;
        }
        let missing = {
            let mut state = self.state();
            state.forget_ended();
            if state.quiet_until.is_some_and(|until| until > now) {
                return;
            }
            let wanted = state.wanted(now).min(self.settings.most);
            let missing = wanted.saturating_sub(state.parked.len() + state.dialling);
            state.dialling += missing;
            missing
        };
        for _ in 0..missing {
            self.settings.tracker.spawn(task::boxed(Arc::clone(self).keep()));
        }
    }

    /// The life of one connection.
    async fn keep(self: Arc<Self>) {
        let born = clock::now();
        let opened = tokio::select! {
            opened = timeout(OPEN_LIMIT, self.open()) => Some(opened),
            () = self.settings.draining.cancelled() => None,
        };
        let (ask, asked) = oneshot::channel();
        let ready = {
            let mut state = self.state();
            state.dialling = state.dialling.saturating_sub(1);
            match opened {
                None => return,
                Some(Ok(Ok(ready))) => {
                    state.parked.push_back(ask);
                    Ok(ready)
                }
                Some(Ok(Err(failure))) => Err(format!("{failure:?}")),
                Some(Err(_)) => Err(format!("not greeted within {OPEN_LIMIT:?}")),
            }
        };
        match ready {
            Ok(ready) => self.park(ready, asked, born).await,
            Err(why) => self.failed("failed", &why),
        }
    }

    async fn open(&self) -> Result<Ready, BackFailure> {
        let WarmSettings { protocol, server, connector, host_name, .. } = &self.settings;
        let client_name = self.state().client_name.clone().unwrap_or_else(|| host_name.clone());
        let (mut io, proof) = connector.open(server).await.map_err(BackFailure::Broke)?;
        let mut dialogue = dialogue::back(*protocol, server, Errand::Wait { client_name });
        if let Some(proof) = proof {
            dialogue.secured(proof);
        }
        drive::until_it_waits(&mut *dialogue, &mut io, connector, server).await?;
        Ok(Ready { io, dialogue })
    }

    async fn park(
        self: &Arc<Self>,
        mut ready: Ready,
        asked: oneshot::Receiver<oneshot::Sender<Ready>>,
        born: Instant,
    ) {
        let labels = UpstreamLabel { upstream: self.upstream.clone() };
        let parked = self.settings.metrics.warm_parked.get_or_create_owned(&labels);
        parked.inc();
        let end = self.wait(&mut ready, asked, born).await;
        parked.dec();
        match end {
            End::Taken(give) => {
                self.count("taken");
                {
                    let mut state = self.state();
                    state.failures = 0;
                    state.quiet_until = None;
                }
                if let Err(ready) = give.send(ready) {
                    // the session that asked is gone
                    dismiss(ready).await;
                }
            }
            End::Lost(why) => self.failed("lost", &why),
            End::Aged => {
                self.count("aged");
                self.refill(clock::now());
                dismiss(ready).await;
            }
            End::Unwanted => dismiss(ready).await,
        }
    }

    async fn wait(
        &self,
        ready: &mut Ready,
        asked: oneshot::Receiver<oneshot::Sender<Ready>>,
        born: Instant,
    ) -> End {
        let mut said = [0; 256];
        tokio::select! {
            // what upstream has done comes first: nobody gets a connection that is dead already
            biased;
            read = ready.io.read(&mut said) => End::Lost(match read {
                Ok(0) => "upstream closed it".to_owned(),
                Ok(length) => {
                    ready.dialogue.feed(said.get(..length).unwrap_or_default());
                    format!("upstream spoke: {:?}", ready.dialogue.step())
                }
                Err(error) => error.to_string(),
            }),
            wish = asked => wish.map_or(End::Unwanted, End::Taken),
            () = self.settings.draining.cancelled() => End::Unwanted,
            () = sleep_until(born + self.settings.max_age) => End::Aged,
        }
    }

    /// Upstream does not want it: no more for a while, however many logins there are.
    fn failed(&self, outcome: &'static str, why: &str) {
        self.count(outcome);
        tracing::debug!(upstream = self.upstream, outcome, why, "a warm connection is gone");
        let mut state = self.state();
        let wait = Duration::from_secs(1 << state.failures.min(MAX_DOUBLINGS));
        state.failures = state.failures.saturating_add(1);
        state.quiet_until = Some(clock::now() + wait);
    }

    fn count(&self, outcome: &'static str) {
        let labels = WarmLabels { upstream: self.upstream.clone(), outcome };
        self.settings.metrics.warm_connections.get_or_create(&labels).inc();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_ended(&mut self) {
        self.parked.retain(|ask| !ask.is_closed());
    }

    /// As many as came at once lately.
    fn wanted(&mut self, now: Instant) -> usize {
        while self.logins.front().is_some_and(|&login| login + WINDOW <= now) {
            self.logins.pop_front();
        }
        if self.logins.len() < ENOUGH {
            return 0;
        }
        // the logins are in order: the first one that is still within reach of `login` only ever moves on
        let mut reach = self.logins.iter().enumerate().peekable();
        let within = |(at, login): (usize, &Instant)| {
            while reach.next_if(|(_, first)| **first + BURST <= *login).is_some() {}
            1 + at - reach.peek().map_or(at, |(first, _)| *first)
        };
        self.logins.iter().enumerate().map(within).max().unwrap_or(0)
    }
}

/// Says goodbye; an upstream that takes none within its limit goes without.
async fn dismiss(mut ready: Ready) {
    let goodbye = async {
        drive::dismiss(&mut *ready.dialogue, &mut ready.io).await?;
        ready.io.shutdown().await
    };
    drop(timeout(GOODBYE_LIMIT, goodbye).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::BackTls;

    fn wanted(seconds_ago: &[u64]) -> usize {
        let now = clock::now() + Duration::from_hours(1);
        let mut state = State {
            logins: seconds_ago.iter().map(|&ago| now - Duration::from_secs(ago)).collect(),
            ..State::default()
        };
        state.wanted(now)
    }

    #[test]
    fn a_listener_that_sleeps_wants_none() {
        assert_eq!(wanted(&[]), 0);
        assert_eq!(wanted(&[600, 400, 181]), 0);
    }

    #[test]
    fn a_single_login_is_no_rate() {
        assert_eq!(wanted(&[1]), 0);
        assert_eq!(wanted(&[300, 0]), 0);
    }

    #[test]
    fn one_that_is_polled_wants_one() {
        assert_eq!(wanted(&[120, 60, 0]), 1);
    }

    #[test]
    fn as_many_as_came_at_once() {
        assert_eq!(wanted(&[100, 60, 60, 60, 30, 30, 0]), 3);
    }

    /// A store with one connection parked, and upstream's end of that connection.
    async fn one_parked() -> (Arc<WarmConnections>, tokio::io::DuplexStream) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let server = MailServer { host: "localhost".to_owned(), port: 995, tls: BackTls::Implicit };
        let warm = WarmConnections::new(WarmSettings {
            protocol: Protocol::Pop3,
            server: server.clone(),
            connector: Arc::new(Connector::new(tls, Vec::new(), Duration::from_secs(30))),
            most: 1,
            max_age: Duration::from_secs(45),
            host_name: "mailkey.example".to_owned(),
            metrics: Arc::default(),
            tracker: TaskTracker::new(),
            draining: CancellationToken::new(),
        });
        let (near, far) = tokio::io::duplex(1000);
        let errand = Errand::Wait { client_name: "mailkey.example".to_owned() };
        let mut dialogue = dialogue::back(Protocol::Pop3, &server, errand);
        dialogue.secured(crate::secret::Encrypted::pretend());
        dialogue.feed(b"+OK ready\r\n");
        drop(dialogue.step());
        assert!(dialogue.waits());
        let (ask, asked) = oneshot::channel();
        warm.state().parked.push_back(ask);
        let store = Arc::clone(&warm);
        tokio::spawn(
            async move { store.park(Ready { io: Box::new(near), dialogue }, asked, clock::now()).await },
        );
        tokio::task::yield_now().await;
        (warm, far)
    }

    #[tokio::test]
    async fn a_parked_connection_is_given_once() {
        let (warm, _far) = one_parked().await;
        assert!(warm.take().await.is_some());
        assert!(warm.take().await.is_none());
    }

    #[tokio::test]
    async fn what_upstream_closed_is_given_to_nobody() {
        let (warm, far) = one_parked().await;
        drop(far);
        assert!(warm.take().await.is_none());
    }

    #[tokio::test]
    async fn what_upstream_spoke_on_is_given_to_nobody() {
        let (warm, mut far) = one_parked().await;
        far.write_all(b"+OK\r\n").await.unwrap();
        assert!(warm.take().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_in_time_is_said_goodbye_to() {
        let (warm, mut far) = one_parked().await;
        let mut said = String::new();
        far.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "QUIT\r\n");
        assert_eq!(warm.parked(), 0);
    }
}
