//! What is measured, and how: rounds in which each thing under test has its turn, so that whatever else the machine
//! does hits all of them alike.

mod memory;
mod speed;
mod wait;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::load::{Job, Protocol};
use crate::store::{Machine, Results, Sample};
use crate::thing::{Ground, Programs, Running, Thing};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// Processor time per login: IMAP, POP3, SMTP.
    Logins,
    /// Processor time per GB, each direction.
    Bulk,
    /// Memory per idle session.
    Idle,
    /// What a command waits on an open session.
    Latency,
    /// From connecting to the answer to the login, 40 ms from upstream.
    Distance,
    /// 2,000 clients at once.
    Storm,
    /// From start to listening; memory at rest; size of the program.
    Start,
    /// EWS requests and answers of many MB.
    Ews,
    /// How the cost grows with logins in flight, idle sessions, accounts.
    Growth,
}

impl Measure {
    pub const ALL: [Self; 9] = [
        Self::Start,
        Self::Logins,
        Self::Bulk,
        Self::Idle,
        Self::Latency,
        Self::Distance,
        Self::Storm,
        Self::Ews,
        Self::Growth,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Logins => "logins",
            Self::Bulk => "bulk",
            Self::Idle => "idle",
            Self::Latency => "latency",
            Self::Distance => "distance",
            Self::Storm => "storm",
            Self::Start => "start",
            Self::Ews => "ews",
            Self::Growth => "growth",
        }
    }

    /// Usual number of rounds.
    fn rounds(self) -> u32 {
        match self {
            Self::Logins | Self::Bulk | Self::Ews => 7,
            Self::Idle => 2,
            Self::Latency => 12,
            Self::Distance => 20,
            Self::Storm | Self::Growth => 3,
            Self::Start => 15,
        }
    }

    /// Those that it makes sense for.
    fn things(self) -> &'static [Thing] {
        use Thing::{
            Direct, Dovecot, Emailproxy, Gateway, Haproxy, Mailkey, MailkeyCold, Nginx, Pipe, Stunnel,
        };
        match self {
            Self::Logins | Self::Idle | Self::Storm | Self::Bulk => {
                &[Mailkey, Emailproxy, Dovecot, Nginx, Haproxy, Stunnel, Pipe]
            }
            Self::Latency => &[Mailkey, Emailproxy, Dovecot, Nginx, Haproxy, Stunnel, Pipe, Direct],
            Self::Distance => &[Mailkey, MailkeyCold, Emailproxy, Dovecot, Haproxy, Pipe],
            Self::Start => &[Mailkey, Emailproxy, Dovecot, Nginx, Haproxy, Stunnel, Pipe],
            Self::Ews => &[Mailkey, Nginx, Gateway, Pipe],
            Self::Growth => &[Mailkey, Dovecot, Nginx, Haproxy, Pipe],
        }
    }
}

pub struct Settings {
    pub only: Vec<Thing>,
    pub rounds: Option<u32>,
    pub smoke: bool,
    pub programs: Programs,
    pub results: PathBuf,
}

/// One measure under way.
struct Run<'a> {
    settings: &'a Settings,
    measure: Measure,
    ground: Ground,
    samples: Vec<Sample>,
    remarks: Vec<String>,
    round: u32,
}

/// Measures, prints each table as it comes, keeps the figures.
pub fn all(measures: &[Measure], settings: &Settings) -> Result<()> {
    let measures = if measures.is_empty() { &Measure::ALL[..] } else { measures };
    let mut failed = Vec::new();
    for &measure in measures {
        eprintln!("== {}", measure.name());
        let mut run = Run {
            settings,
            measure,
            ground: Ground::lay(settings.programs.clone())?,
            samples: Vec::new(),
            remarks: Vec::new(),
            round: 0,
        };
        let ended = run.measure();
        if let Err(error) = &ended {
            eprintln!("{}: {error:#}", measure.name());
            failed.push(measure.name());
        }
        let results = Results {
            measure: measure.name().to_owned(),
            date: jiff::Zoned::now().strftime("%Y-%m-%d").to_string(),
            machine: machine(&run.things())?,
            samples: run.samples,
            remarks: run.remarks,
        };
        // figures of a smoke run, of a broken one, or of some alone are not what the document is about
        if ended.is_ok() && !settings.smoke && settings.only.is_empty() {
            results.save(&settings.results)?;
        }
        println!("{}", crate::table::of(&results));
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

impl Run<'_> {
    fn measure(&mut self) -> Result<()> {
        match self.measure {
            Measure::Logins => speed::logins(self),
            Measure::Bulk => speed::bulk(self),
            Measure::Ews => speed::ews(self),
            Measure::Growth => speed::growth(self).and_then(|()| memory::growth(self)),
            Measure::Idle => memory::idle(self),
            Measure::Start => memory::start(self),
            Measure::Latency => wait::latency(self),
            Measure::Distance => wait::distance(self),
            Measure::Storm => wait::storm(self),
        }
    }

    fn rounds(&self) -> u32 {
        self.settings.rounds.unwrap_or(if self.settings.smoke { 1 } else { self.measure.rounds() })
    }

    /// Those that are measured: they speak the protocol that it is about.
    fn things(&self) -> Vec<Thing> {
        let only = &self.settings.only;
        let usual = self.measure.things().iter().copied();
        if only.is_empty() {
            return usual.collect();
        }
        let protocol = if self.measure == Measure::Ews { Protocol::Ews } else { Protocol::Imap };
        only.iter().copied().filter(|thing| thing.speaks(protocol)).collect()
    }

    /// So many, or a hundredth of it in a smoke run.
    fn amount(&self, usual: u64) -> u64 {
        if self.settings.smoke { (usual / 100).max(4) } else { usual }
    }

    fn note(&mut self, thing: Thing, metric: &str, value: f64) {
        eprintln!("   round {} {:<16} {metric:<24} {value:.3}", self.round, thing.name());
        self.samples.push(Sample {
            thing: thing.name().to_owned(),
            metric: metric.to_owned(),
            round: self.round,
            value,
        });
    }

    fn remark(&mut self, remark: String) {
        eprintln!("   {remark}");
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// A peer that cannot keep up is remarked upon, by the first line; what is our own has to.
    fn forgive(&mut self, thing: Thing, error: &str) -> Result<()> {
        ensure!(!thing.is_mailkey() && !matches!(thing, Thing::Pipe | Thing::Gateway), "{error}");
        self.remark(error.lines().next().unwrap_or_default().to_owned());
        Ok(())
    }

    /// All of them, up.
    fn start_all(&self) -> Result<Vec<Running>> {
        self.things().into_iter().map(|thing| self.ground.start(thing)).collect()
    }

    /// Every round, each of them; who comes first changes by round. Where one does not get through, that is a remark,
    /// unless it is ours.
    fn interleave(
        &mut self,
        subjects: &mut [Running],
        mut turn: impl FnMut(&mut Self, &Running) -> Result<()>,
    ) -> Result<()> {
        for round in 0..self.rounds() {
            self.round = round;
            if !subjects.is_empty() {
                subjects.rotate_left(1);
            }
            for subject in subjects.iter() {
                if let Err(error) = turn(self, subject) {
                    self.forgive(subject.thing, &format!("{error:#}"))?;
                }
            }
        }
        Ok(())
    }

    /// The first logins: the token, the proxy's own first time, TLS tickets.
    fn warm_up(&mut self, subject: &Running, protocol: Protocol) -> Result<()> {
        let count = if subject.thing == Thing::Emailproxy { 2 } else { self.amount(100) };
        let job = Job::Logins { workers: 4, count, users: 1, pause: None };
        let before = self.ground.counts()?;
        subject.bear_well(protocol, job)?;
        let after = self.ground.counts()?;
        let swapped = after.xoauth2 - before.xoauth2;
        let wanted = if subject.thing.swaps() { count } else { 0 };
        ensure!(
            swapped >= wanted && (swapped == 0 || wanted > 0),
            "{} signed in by XOAUTH2 {swapped} times, not {wanted}",
            subject.thing.name()
        );
        Ok(())
    }
}

fn machine(things: &[Thing]) -> Result<Machine> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let processors = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find(|line| line.starts_with("model name"));
    Ok(Machine {
        kernel: kernel.trim().split('-').next().unwrap_or_default().to_owned(),
        processor: model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned(),
        cores: std::thread::available_parallelism()?.get(),
        versions: things.iter().filter_map(|thing| version(*thing)).collect(),
    })
}

/// As the program itself, or its package, says.
fn version(thing: Thing) -> Option<String> {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    };
    let package = |name: &str| said("dpkg-query", &["-W", "-f", "${Version}", name]);
    Some(match thing {
        Thing::Direct | Thing::Pipe | Thing::Gateway | Thing::MailkeyCold | Thing::MailkeyClassic => {
            return None;
        }
        Thing::Mailkey => format!("Mailkey {}", said("git", &["describe", "--always", "--dirty"])?),
        Thing::Emailproxy => "email-oauth2-proxy 2026.7.3".to_owned(),
        Thing::Dovecot => format!("Dovecot {}", package("dovecot-core")?),
        Thing::Nginx => format!("nginx {}", package("nginx")?),
        Thing::Haproxy => format!("HAProxy {}", package("haproxy")?),
        Thing::Stunnel => format!("stunnel {}", package("stunnel4")?),
    })
}
