//! The load generator, in a process of its own: takes one job, makes it ready, does it at each `go`, and says what came of it.

mod ews;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use crate::wire::{self, Wire};

/// What all users have for a password.
pub const PASSWORD: &str = "correct-horse-battery";

/// How long one login or one answer may take before it counts as an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// The user of that number.
pub fn user(number: u64) -> String {
    format!("user{number}@example.com")
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Imap,
    Pop3,
    /// Upstream, TLS comes first.
    Smtp,
    /// SMTP, too; upstream, TLS comes by STARTTLS.
    Submission,
    Ews,
}

/// Where the load goes.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Target {
    pub protocol: Protocol,
    pub port: u16,
    /// Speaks TLS itself and trusts this authority: upstream without anything between.
    pub authority: Option<PathBuf>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Down,
    Up,
}

/// What is to be done. Connections are new where a login is measured, and signed in before `go` elsewhere.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Job {
    /// Connect, sign in, sign out: `count` of them by so many workers, each login another user of `users`.
    Logins { workers: u64, count: u64, users: u64, pause: Option<Duration> },
    /// `repeat` messages of `mebibytes` on each connection.
    Bulk { direction: Direction, connections: u64, mebibytes: u64, repeat: u64 },
    /// NOOP on each session, `per_second` in all, for so long at each `go`.
    RoundTrips { sessions: u64, per_second: u64, time: Duration },
    /// Signs in until so many sessions wait in IDLE; the next number at each `go`.
    Idle { levels: Vec<u64>, users: u64 },
    /// All at once; whoever is not served within `limit` counts as an error.
    Storm { clients: u64, users: u64, limit: Duration },
    /// EWS requests with small answers.
    Requests { workers: u64, count: u64, keep_alive: bool },
    /// EWS answers of so many MiB, `repeat` on each connection.
    Stream { connections: u64, mebibytes: u64, repeat: u64 },
    /// Idle sessions beside active ones, for so long: logins, NOOPs and messages both ways.
    Soak { idle: u64, active: u64, users: u64, time: Duration },
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Order {
    pub target: Target,
    pub job: Job,
}

/// What came of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Outcome {
    pub done: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    /// Of payload.
    pub octets: u64,
    pub seconds: f64,
    /// Microseconds.
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// Counts while many tasks work.
#[derive(Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    errors: AtomicU64,
    octets: AtomicU64,
    first_error: std::sync::Mutex<Option<String>>,
    took: std::sync::Mutex<Vec<Duration>>,
}

impl Tally {
    fn count(&self, result: Result<u64>, took: Duration) {
        match result {
            Ok(octets) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                self.octets.fetch_add(octets, Ordering::Relaxed);
                self.took.lock().expect("no task panics with it").push(took);
            }
            Err(error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                self.first_error.lock().expect("no task panics with it").get_or_insert(format!("{error:#}"));
            }
        }
    }

    fn outcome(&self, seconds: f64) -> Outcome {
        let mut took = self.took.lock().expect("no task panics with it");
        took.sort_unstable();
        let at = |share: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
            let place = (took.len().saturating_sub(1) as f64 * share) as usize;
            took.get(place).map_or(0.0, |took| took.as_secs_f64() * 1e6)
        };
        Outcome {
            done: self.done.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            first_error: self.first_error.lock().expect("no task panics with it").clone(),
            octets: self.octets.load(Ordering::Relaxed),
            seconds,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// Where connections lead; shared by all tasks.
pub(crate) struct Way {
    protocol: Protocol,
    port: u16,
    tls: Option<TlsConnector>,
}

/// Reads the order from standard input, and does what it says.
pub async fn run() -> Result<()> {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let order: Order = serde_json::from_str(&orders.next_line().await?.context("no order")?)?;
    let Target { protocol, port, authority } = order.target;
    let tls = authority.as_deref().map(wire::tls_client).transpose()?;
    let way = Arc::new(Way { protocol, port, tls });
    match order.job {
        Job::Logins { workers, count, users, pause } => {
            ready(&mut orders).await?;
            tell(&logins(&way, workers, count, users, pause).await)?;
        }
        Job::Bulk { direction, connections, mebibytes, repeat } => {
            let wires = sign_in_all(&way, 0..connections, 1).await?;
            ready(&mut orders).await?;
            let each = move |wire| bulk(protocol, wire, direction, mebibytes, repeat);
            tell(&on_all(wires, each).await)?;
        }
        Job::RoundTrips { sessions, per_second, time } => {
            let wires = sign_in_all(&way, 0..sessions, 1).await?;
            let pause = Duration::from_secs_f64(sessions as f64 / per_second as f64);
            let mut wires = wires;
            // again and again, on the same sessions
            while ready(&mut orders).await.is_ok() {
                let outcome;
                (outcome, wires) = round_trips(&way, wires, pause, time).await;
                tell(&outcome)?;
            }
        }
        Job::Idle { levels, users } => idle(&way, &mut orders, levels, users).await?,
        Job::Storm { clients, users, limit } => {
            ready(&mut orders).await?;
            tell(&storm(&way, clients, users, limit).await)?;
        }
        Job::Requests { workers, count, keep_alive } => {
            ready(&mut orders).await?;
            tell(&ews::requests(&way, workers, count, keep_alive).await)?;
        }
        Job::Stream { connections, mebibytes, repeat } => {
            ready(&mut orders).await?;
            tell(&ews::stream(&way, connections, mebibytes, repeat).await)?;
        }
        Job::Soak { idle, active, users, time } => soak(&way, &mut orders, idle, active, users, time).await?,
    }
    // whoever ordered it may want to look while connections stand
    drop(orders.next_line().await);
    Ok(())
}

type Orders = Lines<BufReader<Stdin>>;

/// Says that all is ready, and waits for `go`.
async fn ready(orders: &mut Orders) -> Result<()> {
    println!("{{\"ready\":true}}");
    orders.next_line().await?.context("the order was withdrawn")?;
    Ok(())
}

fn tell(outcome: &Outcome) -> Result<()> {
    println!("{}", serde_json::to_string(outcome)?);
    Ok(())
}

/// A new connection, signed in.
pub(crate) async fn sign_in(way: &Way, user: &str) -> Result<Wire> {
    let mut wire = Wire::new(wire::connect(way.port, way.tls.as_ref()).await?);
    match way.protocol {
        Protocol::Imap => {
            wire.until("* OK").await?;
            wire.ask(&format!("a LOGIN {user} {PASSWORD}\r\n"), "a OK").await?;
        }
        Protocol::Pop3 => {
            wire.until("+OK").await?;
            wire.ask(&format!("USER {user}\r\n"), "+OK").await?;
            wire.ask(&format!("PASS {PASSWORD}\r\n"), "+OK").await?;
        }
        Protocol::Smtp | Protocol::Submission => {
            wire.until("220 ").await?;
            wire.ask("EHLO client.example.com\r\n", "250 ").await?;
            let response = STANDARD.encode(format!("\0{user}\0{PASSWORD}"));
            wire.ask(&format!("AUTH PLAIN {response}\r\n"), "235 ").await?;
        }
        Protocol::Ews => bail!("EWS has no sessions"),
    }
    Ok(wire)
}

async fn sign_out(protocol: Protocol, mut wire: Wire) -> Result<()> {
    match protocol {
        Protocol::Imap => wire.ask("z LOGOUT\r\n", "z OK").await,
        Protocol::Pop3 => wire.ask("QUIT\r\n", "+OK").await,
        Protocol::Smtp | Protocol::Submission => wire.ask("QUIT\r\n", "221 ").await,
        Protocol::Ews => bail!("EWS has no sessions"),
    }?;
    Ok(())
}

/// Within `PATIENCE`, or an error.
pub(crate) async fn patiently<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, what).await.context("not within its time")?
}

/// Sessions of the users of those numbers, some at a time.
async fn sign_in_all(way: &Arc<Way>, numbers: std::ops::Range<u64>, users: u64) -> Result<Vec<Wire>> {
    let next = Arc::new(Mutex::new(numbers));
    let mut workers = JoinSet::new();
    for _ in 0..32 {
        let (way, next) = (Arc::clone(way), Arc::clone(&next));
        workers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let Some(number) = next.lock().await.next() else { break Ok::<_, anyhow::Error>(mine) };
                mine.push(patiently(sign_in(&way, &user(number % users))).await?);
            }
        });
    }
    let mut all = Vec::new();
    while let Some(mine) = workers.join_next().await {
        all.extend(mine??);
    }
    Ok(all)
}

/// The same on all connections at once.
async fn on_all<F>(wires: Vec<Wire>, each: impl Fn(Wire) -> F) -> Outcome
where
    F: Future<Output = Result<(u64, Wire)>> + Send + 'static,
{
    let tally = Arc::new(Tally::default());
    let start = Instant::now();
    let mut all = JoinSet::new();
    for wire in wires {
        let (work, tally) = (each(wire), Arc::clone(&tally));
        all.spawn(async move {
            let start = Instant::now();
            let result = work.await;
            tally.count(
                result.as_ref().map(|(octets, _)| *octets).map_err(|error| anyhow::anyhow!("{error:#}")),
                start.elapsed(),
            );
            result.ok()
        });
    }
    let kept = all.join_all().await;
    let seconds = start.elapsed().as_secs_f64();
    drop(kept);
    tally.outcome(seconds)
}

async fn logins(way: &Arc<Way>, workers: u64, count: u64, users: u64, pause: Option<Duration>) -> Outcome {
    let tally = Arc::new(Tally::default());
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..workers {
        let (way, next, tally) = (Arc::clone(way), Arc::clone(&next), Arc::clone(&tally));
        all.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let begin = Instant::now();
                let result = patiently(sign_in(&way, &user(number % users))).await;
                let took = begin.elapsed();
                let result = match result {
                    Ok(wire) => patiently(sign_out(way.protocol, wire)).await,
                    Err(error) => Err(error),
                };
                tally.count(result.map(|()| 0), took);
                if let Some(pause) = pause {
                    sleep(pause).await;
                }
            }
        });
    }
    all.join_all().await;
    tally.outcome(start.elapsed().as_secs_f64())
}

async fn bulk(
    protocol: Protocol,
    mut wire: Wire,
    direction: Direction,
    mebibytes: u64,
    repeat: u64,
) -> Result<(u64, Wire)> {
    let mut octets = 0;
    let text = crate::stub::mebibyte();
    for _ in 0..repeat {
        octets += match direction {
            Direction::Down => download(protocol, &mut wire, mebibytes).await?,
            Direction::Up => upload(protocol, &mut wire, mebibytes, &text).await?,
        };
    }
    Ok((octets, wire))
}

async fn download(protocol: Protocol, wire: &mut Wire, mebibytes: u64) -> Result<u64> {
    match protocol {
        Protocol::Imap => {
            wire.say(format!("b FETCH {mebibytes} (BODY.PEEK[])\r\n").as_bytes()).await?;
            let head = wire.until("* ").await?;
            let size = head.rsplit('{').next().unwrap_or_default().trim_end_matches('}').parse()?;
            wire.swallow(size).await?;
            wire.until("b OK").await?;
            Ok(size)
        }
        Protocol::Pop3 => {
            wire.ask(&format!("RETR {mebibytes}\r\n"), "+OK").await?;
            wire.swallow_through(b"\r\n.\r\n").await
        }
        Protocol::Smtp | Protocol::Submission | Protocol::Ews => bail!("no download"),
    }
}

async fn upload(protocol: Protocol, wire: &mut Wire, mebibytes: u64, text: &Bytes) -> Result<u64> {
    match protocol {
        Protocol::Imap => {
            wire.ask(&format!("b APPEND drafts {{{}}}\r\n", mebibytes << 20), "+ ").await?;
        }
        Protocol::Smtp | Protocol::Submission => {
            wire.ask("MAIL FROM:<user0@example.com>\r\n", "250 ").await?;
            wire.ask("RCPT TO:<user1@example.com>\r\n", "250 ").await?;
            wire.ask("DATA\r\n", "354 ").await?;
        }
        Protocol::Pop3 | Protocol::Ews => bail!("no upload"),
    }
    for _ in 0..mebibytes {
        wire.say(text).await?;
    }
    match protocol {
        Protocol::Imap => wire.ask("\r\n", "b OK").await?,
        _ => wire.ask(".\r\n", "250 ").await?,
    };
    Ok(mebibytes << 20)
}

async fn noop(protocol: Protocol, wire: &mut Wire) -> Result<()> {
    let expected = match protocol {
        Protocol::Imap => return wire.ask("n NOOP\r\n", "n OK").await.map(drop),
        Protocol::Pop3 => "+OK",
        Protocol::Smtp | Protocol::Submission | Protocol::Ews => "250 ",
    };
    wire.ask("NOOP\r\n", expected).await.map(drop)
}

/// Each session asks at its own moment within `pause`, and then at that pause.
async fn round_trips(
    way: &Arc<Way>,
    wires: Vec<Wire>,
    pause: Duration,
    time: Duration,
) -> (Outcome, Vec<Wire>) {
    let tally = Arc::new(Tally::default());
    let start = Instant::now();
    let mut all = JoinSet::new();
    let count = wires.len();
    for (number, mut wire) in wires.into_iter().enumerate() {
        let (tally, protocol) = (Arc::clone(&tally), way.protocol);
        all.spawn(async move {
            let mut due = start + pause.mul_f64(number as f64 / count as f64);
            let end = start + time;
            while due < end {
                sleep_until(due.into()).await;
                let begin = Instant::now();
                let result = patiently(noop(protocol, &mut wire)).await;
                let failed = result.is_err();
                tally.count(result.map(|()| 0), begin.elapsed());
                if failed {
                    break;
                }
                due = (due + pause).max(Instant::now());
            }
            wire
        });
    }
    let kept = all.join_all().await;
    (tally.outcome(start.elapsed().as_secs_f64()), kept)
}

async fn into_idle(mut wire: Wire) -> Result<Wire> {
    patiently(wire.ask("i IDLE\r\n", "+ ")).await?;
    Ok(wire)
}

async fn idle(way: &Arc<Way>, orders: &mut Orders, levels: Vec<u64>, users: u64) -> Result<()> {
    let mut waiting = Vec::new();
    for level in levels {
        ready(orders).await?;
        let start = Instant::now();
        let mut outcome = Outcome::default();
        match sign_in_all(way, waiting.len() as u64..level, users).await {
            Ok(wires) => {
                for wire in wires {
                    waiting.push(into_idle(wire).await?);
                }
                outcome.done = waiting.len() as u64;
            }
            Err(error) => {
                outcome.errors = 1;
                outcome.first_error = Some(format!("{error:#}"));
            }
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        tell(&outcome)?;
    }
    // stand until told otherwise, then go, and say so
    drop(orders.next_line().await);
    drop(waiting);
    tell(&Outcome::default())
}

async fn storm(way: &Arc<Way>, clients: u64, users: u64, limit: Duration) -> Outcome {
    let tally = Arc::new(Tally::default());
    let start = Instant::now();
    let mut all = JoinSet::new();
    for number in 0..clients {
        let (way, tally) = (Arc::clone(way), Arc::clone(&tally));
        all.spawn(async move {
            let name = user(number % users);
            let result = timeout(limit, sign_in(&way, &name)).await;
            let took = start.elapsed();
            match result {
                Ok(Ok(wire)) => {
                    tally.count(Ok(0), took);
                    drop(patiently(sign_out(way.protocol, wire)).await);
                }
                Ok(Err(error)) => tally.count(Err(error), took),
                Err(_) => tally.count(Err(anyhow::anyhow!("not within its time")), took),
            }
        });
    }
    all.join_all().await;
    tally.outcome(start.elapsed().as_secs_f64())
}

/// Idle sessions that must stand to the end, and active ones, some of which sign in anew now and then.
async fn soak(
    way: &Arc<Way>,
    orders: &mut Orders,
    idle: u64,
    active: u64,
    users: u64,
    time: Duration,
) -> Result<()> {
    let mut waiting = Vec::new();
    for wire in sign_in_all(way, 0..idle, users).await? {
        waiting.push(into_idle(wire).await?);
    }
    let busy = sign_in_all(way, 0..active, users).await?;
    ready(orders).await?;
    let tally = Arc::new(Tally::default());
    let start = Instant::now();
    let mut all = JoinSet::new();
    for (number, mut wire) in busy.into_iter().enumerate() {
        let (way, tally) = (Arc::clone(way), Arc::clone(&tally));
        let text = crate::stub::mebibyte();
        all.spawn(async move {
            let mut random = fastrand::Rng::with_seed(number as u64);
            while start.elapsed() < time {
                sleep(Duration::from_millis(random.u64(500..3500))).await;
                let begin = Instant::now();
                let result = patiently(async {
                    Ok(match random.u32(..100) {
                        0 => download(way.protocol, &mut wire, 1).await?,
                        1 => upload(way.protocol, &mut wire, 1, &text).await?,
                        2..8 => {
                            let fresh = sign_in(&way, &user(number as u64 % users)).await?;
                            let old = std::mem::replace(&mut wire, fresh);
                            sign_out(way.protocol, old).await?;
                            0
                        }
                        _ => {
                            noop(way.protocol, &mut wire).await?;
                            0
                        }
                    })
                })
                .await;
                let failed = result.is_err();
                tally.count(result.context("an active session"), begin.elapsed());
                if failed {
                    return;
                }
            }
            let result = patiently(sign_out(way.protocol, wire)).await;
            tally.count(result.map(|()| 0).context("an active session, at its end"), Duration::ZERO);
        });
    }
    all.join_all().await;
    let seconds = start.elapsed().as_secs_f64();
    // each idle one is still there and answers; some at a time, their going is not what is measured
    let left = Arc::new(Mutex::new(waiting));
    let mut last = JoinSet::new();
    for _ in 0..32 {
        let (protocol, tally, left) = (way.protocol, Arc::clone(&tally), Arc::clone(&left));
        last.spawn(async move {
            loop {
                let Some(mut wire) = left.lock().await.pop() else { return };
                let result = patiently(async {
                    wire.ask("DONE\r\n", "i OK").await?;
                    sign_out(protocol, wire).await
                })
                .await;
                tally.count(result.map(|()| 0).context("an idle session, at its end"), Duration::ZERO);
            }
        });
    }
    last.join_all().await;
    tell(&tally.outcome(seconds))
}
