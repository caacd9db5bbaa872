//! The benchmark rig: everything `benches/run` and `benches/soak` measure with.
//!
//! ```text
//!  load ──clear text──► mailkey, dovecot, nginx, pipe, … ──TLS──► stub       each a process of its own
//!    ▲                          ▲                                 ▲
//!    └── orders ── compare ─────┴─ /proc: CPU, PSS, descriptors ──┘
//! ```
//! `measure` says what is measured and how; `table` what comes of it: medians, spread, ratios within a round, goals.

#[allow(dead_code, reason = "the tests count round trips with it")]
#[path = "../../../tests/distance.rs"]
mod distance;
mod gateway;
mod load;
mod measure;
mod pipe;
mod plot;
mod process;
mod soak;
mod store;
mod stub;
mod table;
mod thing;
mod wire;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::measure::{Measure, Settings};
use crate::thing::{Programs, Thing};

#[derive(Parser)]
#[command(about = "Measures Mailkey beside its peers, on loopback", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure; without a name everything. What was measured is kept for `report`.
    Compare {
        /// What to measure.
        #[arg(value_enum)]
        measures: Vec<Measure>,
        /// Only these things under test.
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<Thing>,
        /// How many rounds; each measure has its own usual number.
        #[arg(long)]
        rounds: Option<u32>,
        /// A hundredth of the work: to see whether it runs, not for figures.
        #[arg(long)]
        smoke: bool,
        #[command(flatten)]
        places: Places,
    },
    /// Write tables, goals and plots of what was measured into the document, between its markers.
    Report {
        /// The document; without it, to standard output.
        document: Option<PathBuf>,
        #[command(flatten)]
        places: Places,
    },
    /// Idle and active sessions through Mailkey for a while: ends non-zero where memory grows, descriptors leak or an error shows.
    Soak {
        #[arg(long, default_value_t = 9400)]
        idle: u64,
        #[arg(long, default_value_t = 500)]
        active: u64,
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        #[command(flatten)]
        places: Places,
    },
    /// The upstream stub; its certificates are in the folder.
    #[command(hide = true)]
    Stub { folder: PathBuf },
    /// The bare pipe: `port:upstream` for each door.
    #[command(hide = true)]
    Pipe { authority: PathBuf, doors: Vec<String> },
    /// The bare gateway for EWS: one thread, as Mailkey has on two processors.
    #[command(hide = true)]
    Gateway { authority: PathBuf, door: String },
    /// The load generator.
    #[command(hide = true)]
    Load,
    /// Relays that put distance between two programs, one for each target; says their ports.
    #[command(hide = true)]
    Far { milliseconds: u64, targets: Vec<u16> },
}

/// Where programs and results are.
#[derive(clap::Args, Clone)]
struct Places {
    #[arg(long, default_value = "target/release/mailkey")]
    mailkey: PathBuf,
    #[arg(long, default_value = "target/bench-python/bin/emailproxy")]
    emailproxy: PathBuf,
    /// Where results are kept.
    #[arg(long, default_value = "target/bench")]
    results: PathBuf,
}

impl Places {
    fn programs(&self) -> Result<Programs> {
        let mailkey = std::path::absolute(&self.mailkey)?;
        anyhow::ensure!(mailkey.exists(), "`{}` is not there: cargo build --release", mailkey.display());
        Ok(Programs { mailkey, emailproxy: std::path::absolute(&self.emailproxy)? })
    }
}

fn main() -> Result<()> {
    let (_, hard) = rlimit::Resource::NOFILE.get()?;
    rlimit::Resource::NOFILE.set(hard, hard)?;
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match Arguments::parse().command {
        Command::Compare { measures, only, rounds, smoke, places } => {
            let settings =
                Settings { only, rounds, smoke, programs: places.programs()?, results: places.results };
            measure::all(&measures, &settings)
        }
        Command::Report { document, places } => table::report(&places.results, document.as_deref()),
        Command::Soak { idle, active, seconds, places } => soak::run(
            places.programs()?,
            idle,
            active,
            std::time::Duration::from_secs(seconds),
            &places.results,
        ),
        Command::Stub { folder } => block_on(stub::run(&folder)),
        Command::Pipe { authority, doors } => {
            let (ports, upstream) = pairs(&doors)?;
            block_on(pipe::run(&ports, &upstream, &authority))
        }
        Command::Gateway { authority, door } => {
            let (port, upstream) = pair(&door)?;
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(
                async { tokio::spawn(async move { gateway::run(port, upstream, &authority).await }).await? },
            )
        }
        Command::Load => block_on(load::run()),
        Command::Far { milliseconds, targets } => {
            block_on(far(targets, std::time::Duration::from_millis(milliseconds)))
        }
    }
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

async fn far(targets: Vec<u16>, one_way: std::time::Duration) -> Result<()> {
    let mut ports = Vec::new();
    for target in targets {
        let target = std::net::SocketAddr::from(([127, 0, 0, 1], target));
        ports.push(distance::Distance::to(target, one_way).await.address.port());
    }
    println!("{}", serde_json::to_string(&ports)?);
    std::future::pending().await
}

/// `1143:9993` and so on.
fn pairs(doors: &[String]) -> Result<(Vec<u16>, Vec<u16>)> {
    doors.iter().map(|door| pair(door)).collect()
}

fn pair(door: &str) -> Result<(u16, u16)> {
    let (near, far) = door.split_once(':').with_context(|| format!("`{door}` is no `port:port`"))?;
    Ok((near.parse()?, far.parse()?))
}
