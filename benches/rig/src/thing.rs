//! The things under test: each a process of its own with a configuration of its own, on loopback.

mod config;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::load::{Job, Order, Outcome, Protocol, Target};
use crate::process;
use crate::stub::{Counts, Ports};

/// How long something may take to come up.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a process may take to end before it is ended by force.
const END_LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Thing {
    /// Nothing between: the client speaks TLS itself.
    Direct,
    /// The benchmark's own bare tokio and rustls pipe.
    Pipe,
    /// The benchmark's own bare gateway for EWS.
    Gateway,
    Mailkey,
    /// Mailkey with `warm-connections: 0`.
    MailkeyCold,
    /// Mailkey with `post-quantum: false`.
    MailkeyClassic,
    Emailproxy,
    Dovecot,
    Nginx,
    Haproxy,
    Stunnel,
}

impl Thing {
    pub const ALL: [Self; 9] = [
        Self::Mailkey,
        Self::Emailproxy,
        Self::Dovecot,
        Self::Nginx,
        Self::Haproxy,
        Self::Stunnel,
        Self::Gateway,
        Self::Pipe,
        Self::Direct,
    ];

    /// As it stands in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pipe => "pipe",
            Self::Gateway => "gateway",
            Self::Mailkey => "mailkey",
            Self::MailkeyCold => "mailkey-cold",
            Self::MailkeyClassic => "mailkey-classic",
            Self::Emailproxy => "emailproxy",
            Self::Dovecot => "dovecot",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Stunnel => "stunnel",
        }
    }

    /// Whether it swaps a plain login for XOAUTH2.
    pub fn swaps(self) -> bool {
        self.is_mailkey() || matches!(self, Self::Emailproxy | Self::Dovecot)
    }

    pub fn is_mailkey(self) -> bool {
        matches!(self, Self::Mailkey | Self::MailkeyCold | Self::MailkeyClassic)
    }

    pub fn speaks(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Imap | Protocol::Pop3 | Protocol::Smtp => self != Self::Gateway,
            // the others would have to speak SMTP for it
            Protocol::Submission => self.is_mailkey() || self == Self::Emailproxy,
            Protocol::Ews => {
                self.is_mailkey() || matches!(self, Self::Nginx | Self::Gateway | Self::Pipe | Self::Direct)
            }
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub mailkey: PathBuf,
    pub emailproxy: PathBuf,
}

/// A process that is ended when it goes out of scope: asked first, then by force.
struct Process(Child);

impl Process {
    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.0.id()) else { return };
        let everyone = process::tree(self.0.id());
        let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let end = Instant::now() + END_LIMIT;
        while Instant::now() < end && matches!(self.0.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(10));
        }
        if matches!(self.0.try_wait(), Ok(None)) {
            for pid in everyone {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            drop(self.0.wait());
        }
    }
}

/// One of our own processes: a line out for each line in.
pub struct Partner {
    /// Before the process: it ends when its input does.
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _process: Process,
}

impl Partner {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { input, output, _process: Process(child) })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}")?;
        Ok(self.input.flush()?)
    }

    fn hear<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "it ended");
        Ok(serde_json::from_str(&line)?)
    }
}

/// The load generator with its order.
pub struct Load(Partner);

impl Load {
    /// Returns when all is ready, e.g. when all are signed in.
    pub fn ready(target: Target, job: Job) -> Result<Self> {
        let mut load = Self(Partner::start(&["load"])?);
        load.0.say(&serde_json::to_string(&Order { target, job })?)?;
        load.until_ready().context("the load generator does not get ready")?;
        Ok(load)
    }

    pub fn until_ready(&mut self) -> Result<()> {
        let _: serde_json::Value = self.0.hear()?;
        Ok(())
    }

    pub fn go(&mut self) -> Result<Outcome> {
        self.0.say("go")?;
        self.0.hear().context("the load generator does not get through")
    }
}

/// What all measurements stand on: a folder, certificates, the upstream stub.
pub struct Ground {
    pub folder: TempDir,
    pub programs: Programs,
    pub ports: Ports,
    stub: Partner,
}

impl Ground {
    pub fn lay(programs: Programs) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        open_to_all(folder.path())?;
        crate::stub::write_certificates(folder.path())?;
        let mut stub = Partner::start(&["stub", &folder.path().to_string_lossy()])?;
        let ports = stub.hear().context("the stub does not come up")?;
        Ok(Self { folder, programs, ports, stub })
    }

    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What has come in upstream so far.
    pub fn counts(&mut self) -> Result<Counts> {
        self.stub.say("counts")?;
        self.stub.hear()
    }

    /// A relay that puts so much distance, one way, before the stub's mail ports; for as long as it is held.
    pub fn far(&self, one_way: Duration) -> Result<(Partner, Ports)> {
        let near = self.ports;
        let targets = [near.imap, near.pop3, near.smtp, near.submission].map(|port| port.to_string());
        let milliseconds = one_way.as_millis().to_string();
        let mut arguments = vec!["far", milliseconds.as_str()];
        arguments.extend(targets.iter().map(String::as_str));
        let mut far = Partner::start(&arguments)?;
        let [imap, pop3, smtp, submission] = far.hear()?;
        Ok((far, Ports { imap, pop3, smtp, submission, https: near.https }))
    }

    /// Starts it in front of the stub; returns when all its ports take connections.
    pub fn start(&self, thing: Thing) -> Result<Running> {
        self.start_as(thing, self.ports, 0)
    }

    /// The same with an entry for each of the first so many users, where it has such entries.
    pub fn start_with_accounts(&self, thing: Thing, accounts: u64) -> Result<Running> {
        self.start_as(thing, self.ports, accounts)
    }

    /// The same in front of other ports, that lead to the stub.
    pub fn start_before(&self, thing: Thing, upstream: Ports) -> Result<Running> {
        self.start_as(thing, upstream, 0)
    }

    fn start_as(&self, thing: Thing, upstream: Ports, accounts: u64) -> Result<Running> {
        let authority = self.authority();
        if thing == Thing::Direct {
            return Ok(Running {
                thing,
                process: None,
                ports: upstream,
                authority: Some(authority),
                listening: Duration::ZERO,
                folder: None,
            });
        }
        let folder = tempfile::Builder::new().prefix(thing.name()).tempdir_in(self.folder.path())?;
        open_to_all(folder.path())?;
        let ports = free_ports()?;
        let setting =
            config::Setting { folder: folder.path(), authority: &authority, ports, upstream, accounts };
        let mut command = setting.command(thing, &self.programs)?;
        let log = File::create(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let start = Instant::now();
        let child = command.spawn().with_context(|| format!("{}: {command:?}", thing.name()))?;
        let mut running = Running {
            thing,
            process: Some(Process(child)),
            ports,
            authority: None,
            listening: Duration::ZERO,
            folder: Some(folder),
        };
        let protocols = [Protocol::Imap, Protocol::Pop3, Protocol::Smtp, Protocol::Submission, Protocol::Ews];
        for protocol in protocols.into_iter().filter(|protocol| thing.speaks(*protocol)) {
            running.until_up(running.port(protocol), start)?;
        }
        running.listening = start.elapsed();
        Ok(running)
    }
}

/// One of those under test, up.
pub struct Running {
    pub thing: Thing,
    process: Option<Process>,
    ports: Ports,
    authority: Option<PathBuf>,
    /// From its start until all its ports took connections.
    pub listening: Duration,
    folder: Option<TempDir>,
}

impl Running {
    pub fn target(&self, protocol: Protocol) -> Target {
        Target { protocol, port: self.port(protocol), authority: self.authority.clone() }
    }

    fn port(&self, protocol: Protocol) -> u16 {
        match protocol {
            Protocol::Imap => self.ports.imap,
            Protocol::Pop3 => self.ports.pop3,
            Protocol::Smtp => self.ports.smtp,
            Protocol::Submission => self.ports.submission,
            Protocol::Ews => self.ports.https,
        }
    }

    fn until_up(&mut self, port: u16, start: Instant) -> Result<()> {
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(Process(child)) = &mut self.process
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended with {status}:\n{}", self.thing.name(), self.log());
            }
            ensure!(start.elapsed() < START_LIMIT, "{} does not come up:\n{}", self.thing.name(), self.log());
            sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// The last it wrote.
    pub fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// All that it wrote.
    pub fn whole_log(&self) -> String {
        let Some(folder) = &self.folder else { return String::new() };
        let text = fs::read(folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Seconds of processor time so far; none where there is nothing between.
    pub fn cpu(&self) -> Result<f64> {
        self.process.as_ref().map_or(Ok(0.0), |process| process::cpu(process.id()))
    }

    /// KiB.
    pub fn pss(&self) -> f64 {
        self.process.as_ref().map_or(0.0, |process| process::pss(process.id()) as f64)
    }

    pub fn descriptors(&self) -> usize {
        self.process.as_ref().map_or(0, |process| process::descriptors(process.id()))
    }

    /// A whole job, from its order to its outcome; processor seconds from `go` on, and what came of it.
    pub fn bear(&self, protocol: Protocol, job: Job) -> Result<(f64, Outcome)> {
        let mut load = Load::ready(self.target(protocol), job)
            .with_context(|| format!("{}, {protocol:?}\n{}", self.thing.name(), self.log()))?;
        let before = self.cpu()?;
        let outcome = load.go()?;
        Ok((self.cpu()? - before, outcome))
    }

    /// The same where an error makes the figure worthless.
    pub fn bear_well(&self, protocol: Protocol, job: Job) -> Result<(f64, Outcome)> {
        let (cpu, outcome) = self.bear(protocol, job)?;
        ensure!(
            outcome.errors == 0,
            "{}, {protocol:?}: {} errors, the first: {}\n{}",
            self.thing.name(),
            outcome.errors,
            outcome.first_error.unwrap_or_default(),
            self.log()
        );
        Ok((cpu, outcome))
    }
}

/// Five of them, still free.
fn free_ports() -> Result<Ports> {
    let held = (0..5).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let ports = held.iter().map(|held| Ok(held.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    Ok(Ports { imap: ports[0], pop3: ports[1], smtp: ports[2], submission: ports[3], https: ports[4] })
}

/// Dovecot's processes are other users.
fn open_to_all(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?)
}
