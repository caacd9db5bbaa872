//! `mailkey run`: serves the listeners of the configuration file until told to stop.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::out::Out;
use super::pid_file::PidFile;
use super::privileges::{self, Identity, PrivilegeError};
use super::service;
use super::{FAILED, MISUSED};
use crate::app::{App, Bound, Inherited, StartError};
use crate::clock;
use crate::config;
use crate::config::Loaded;
use crate::config::model::{Config, LogFormat};
use crate::explain::{Explain as _, Explanation};
use crate::task;
use crate::telemetry::{log, traces};

/// How often files are looked at with `run.reload-on-change`. A change is taken once it has stood this long:
/// whoever writes two files gets one reload.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// As many open files as are ever asked for.
#[cfg(unix)]
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// See [`pulse`].
const PULSE: Duration = Duration::from_secs(1);

/// How often an address in use is tried again with `run.bind-retry`.
const BIND_AGAIN: Duration = Duration::from_millis(500);

/// Loads, starts, serves, stops.
pub fn run(path: &Path, out: &mut Out) -> ExitCode {
    let before = state(path);
    let loaded = match config::load(path, &environment) {
        Ok(loaded) => loaded,
        Err(problems) => {
            out.error(problems);
            return ExitCode::from(MISUSED);
        }
    };
    let config = &loaded.config;
    let json = config.log.format == LogFormat::Json;
    let started = match &config.log.otlp_endpoint {
        None => log::start(&config.log.level, json).map(|flush| (flush, None)),
        Some(collector) => {
            traces::start(&config.log.level, json, collector).map(|(flush, traces)| (flush, Some(traces)))
        }
    };
    let (_flush, traces) = match started {
        Ok(started) => started,
        Err(error) => {
            out.error(format_args!("logging cannot start: {error}"));
            return ExitCode::from(MISUSED);
        }
    };
    for remark in &loaded.remarks {
        tracing::warn!(line = remark.line, remedy = remark.remedy, "{}", remark.what);
    }
    let identity = match Identity::of(&config.run) {
        Ok(identity) => identity,
        Err(error) => return cannot_start(&error.explain()),
    };
    raise_descriptor_limit();
    forbid_core_dumps();
    forbid_new_privileges();
    let _pid_file = match config.run.pid_file.as_deref().map(PidFile::take).transpose() {
        Ok(pid_file) => pid_file,
        Err(error) => {
            out.error(error);
            return ExitCode::from(FAILED);
        }
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(threads(config.run.threads)).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error(format_args!("the runtime cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let looked = Looked::new(path, before, loaded.files.clone());
    let code = runtime.block_on(serve(loaded, identity, path, looked));
    drop(runtime);
    if let Some(traces) = traces {
        // waits for a collector, which is not for a runtime to do
        traces.end();
    }
    code
}

/// How many threads serve sessions. Theirs is little work in many small pieces, most of it the kernel's: threads that
/// are as many as processors spend it on waking each other (docs/performance.md). What takes long, the digest of a
/// password or a file, has threads of its own.
fn threads(told: Option<usize>) -> usize {
    told.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |there| there.get().div_ceil(2)))
}

/// The process's environment, for `${NAME}` in the configuration.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

async fn serve(loaded: Loaded, identity: Option<Identity>, path: &Path, mut looked: Looked) -> ExitCode {
    // from the first moment on, a signal ends or reloads the proxy in good order
    let mut orders = orders();
    let Loaded { config, files, .. } = loaded;
    let watches = config.run.reload_on_change;
    let bound = tokio::select! {
        bound = bind(config) => bound,
        () = stop_ordered(&mut orders) => return ExitCode::SUCCESS,
    };
    let bound = match bound {
        Ok(bound) => bound,
        Err(error) => return cannot_start(&error.explain()),
    };
    if let Err(error) = give_up_root(identity.as_ref(), path, &files) {
        return cannot_start(&error.explain());
    }
    let app = match bound.serve() {
        Ok(app) => app,
        Err(error) => return cannot_start(&error.explain()),
    };
    tell_addresses(&app);
    service::ready();
    let alive = task::start(service::watchdog());
    let pulse = task::start(pulse());
    loop {
        let order = tokio::select! {
            order = orders.recv() => order.unwrap_or(Order::Stop),
            () = looked.change(), if watches => Order::Reload,
        };
        if order == Order::Stop {
            break;
        }
        service::reloading();
        let before = state(path);
        let read = config::load(path, &environment);
        let files = read.as_ref().map(|loaded| loaded.files.clone()).ok();
        // a broken file is watched too, and whatever the one before it named
        looked.again(before, files);
        if app.reload(read) {
            tell_addresses(&app);
        }
        service::ready();
    }
    service::stopping();
    tracing::info!("stopping: no new sessions, those that are open come to their end");
    app.stop(stop_ordered(&mut orders)).await;
    alive.abort();
    pulse.abort();
    tracing::info!("stopped");
    ExitCode::SUCCESS
}

/// A timer that is always the next to fire. Each time limit that would be the next one has tokio wake the thread that
/// waits for sockets, only for it to wait a little less long; a login has several, and none is as short as this.
async fn pulse() {
    loop {
        sleep(PULSE).await;
    }
}

fn tell_addresses(app: &App) {
    for (listener, address) in app.addresses() {
        tracing::info!(listener, %address, "listening");
    }
    for address in app.admin_addresses() {
        tracing::info!("status page at http://{address}/");
    }
}

fn cannot_start(story: &Explanation) -> ExitCode {
    tracing::error!(code = %story.code, remedy = story.remedy, "cannot start: {}", story.what);
    ExitCode::from(FAILED)
}

/// From here on the process is `run.user`; without one, whoever started it.
fn give_up_root(identity: Option<&Identity>, path: &Path, files: &[PathBuf]) -> Result<(), PrivilegeError> {
    let Some(identity) = identity else {
        if privileges::is_root() {
            tracing::warn!(
                remedy =
                    "set `run: {user: mailkey}`, or have the service manager start it as a user of its own",
                "this runs as root, and stays root"
            );
        }
        return Ok(());
    };
    identity.assume()?;
    // another user is another process to the system: what was switched off is on again
    forbid_core_dumps();
    privileges::can_read(&identity.name, path, files)?;
    tracing::info!(user = identity.name, "root is given up, if this was root");
    Ok(())
}

/// Opens the sockets; an address that is in use is waited for as long as `run.bind-retry` says.
async fn bind(config: Config) -> Result<Bound, StartError> {
    let mut inherited = Inherited(service::sockets());
    let deadline = clock::now() + config.run.bind_retry;
    loop {
        match App::bind(config.clone(), &mut inherited) {
            Err(StartError::Bind { source, listener, address })
                if source.kind() == io::ErrorKind::AddrInUse && clock::now() + BIND_AGAIN < deadline =>
            {
                tracing::warn!(listener, %address, "in use; trying on for a while");
                sleep(BIND_AGAIN).await;
            }
            bound => {
                for (name, _) in &inherited.0 {
                    tracing::warn!(name, "a socket was passed in for which there is no listener");
                }
                return bound;
            }
        }
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Stop,
    Reload,
}

/// Signals, one after the other: none is lost while another is carried out.
fn orders() -> mpsc::Receiver<Order> {
    let (sender, orders) = mpsc::channel(8);
    let ctrl_c = sender.clone();
    task::start(async move {
        while tokio::signal::ctrl_c().await.is_ok() && ctrl_c.send(Order::Stop).await.is_ok() {}
    });
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        for (kind, order) in [(SignalKind::terminate(), Order::Stop), (SignalKind::hangup(), Order::Reload)] {
            let sender = sender.clone();
            match signal(kind) {
                Ok(mut signals) => {
                    task::start(async move {
                        while signals.recv().await.is_some() && sender.send(order).await.is_ok() {}
                    });
                }
                Err(error) => tracing::warn!(%error, "a signal cannot be waited for"),
            }
        }
    }
    orders
}

async fn stop_ordered(orders: &mut mpsc::Receiver<Order>) {
    while orders.recv().await.is_some_and(|order| order != Order::Stop) {}
}

/// Ctrl-C, or SIGTERM where there is such a thing.
pub async fn asked_to_stop() {
    stop_ordered(&mut orders()).await;
}

/// The files of the configuration, as they were when they were last read.
struct Looked {
    /// The configuration itself comes first.
    files: Vec<PathBuf>,
    state: Vec<Option<FileState>>,
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    modified: Option<std::time::SystemTime>,
    size: u64,
    #[cfg(unix)]
    inode: u64,
}

impl Looked {
    /// `before`: how the configuration was before it was read, so that no change gets lost.
    fn new(path: &Path, before: Option<FileState>, files: Vec<PathBuf>) -> Self {
        let mut looked = Self { files: vec![path.to_owned()], state: Vec::new() };
        looked.again(before, Some(files));
        looked
    }

    fn again(&mut self, before: Option<FileState>, files: Option<Vec<PathBuf>>) {
        if let Some(files) = files {
            self.files.truncate(1);
            self.files.extend(files);
        }
        self.state = states(&self.files);
        if let Some(first) = self.state.first_mut() {
            *first = before;
        }
    }

    /// Comes back when a file has changed and stood still for a moment.
    async fn change(&mut self) {
        let mut before = self.state.clone();
        loop {
            sleep(LOOK_EVERY).await;
            let now = states(&self.files);
            if now != self.state && now == before {
                return;
            }
            before = now;
        }
    }
}

fn states(files: &[PathBuf]) -> Vec<Option<FileState>> {
    files.iter().map(|file| state(file)).collect()
}

fn state(file: &Path) -> Option<FileState> {
    let facts = std::fs::metadata(file).ok()?;
    Some(FileState {
        modified: facts.modified().ok(),
        size: facts.len(),
        #[cfg(unix)]
        inode: std::os::unix::fs::MetadataExt::ino(&facts),
    })
}

/// A session takes two descriptors; the soft limit of many systems is 1,024.
fn raise_descriptor_limit() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
            setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(MOST_DESCRIPTORS)), hard)
        });
        if let Err(error) = raised {
            tracing::debug!(%error, "the limit on open files stays as it is");
        }
    }
}

/// Memory holds passwords for moments and tokens for an hour: neither belongs into a file of the system, nor
/// to a debugger of the same user.
fn forbid_core_dumps() {
    #[cfg(unix)]
    if let Err(error) = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "the process stays open to debuggers");
    }
}

/// Nothing that this process could be made to execute gets more rights than it has. To be called while there is
/// one thread: later ones inherit it.
fn forbid_new_privileges() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        tracing::debug!(%error, "programs that this one might execute keep their rights");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_two_processors_have_a_thread_unless_the_configuration_says_how_many() {
        let processors = std::thread::available_parallelism().unwrap().get();
        let threads_by_default = threads(None);
        assert!(threads_by_default >= 1 && (processors..processors + 2).contains(&(threads_by_default * 2)));
        let text = "oauth: {client-id: 11111111-2222-3333-4444-555555555555}\n\
                    listeners:\n  - {name: imap, protocol: imap, listen: '127.0.0.1:1143'}\nrun: {threads: 3}\n";
        let config = config::parse(text, "proxy.yaml", Path::new("."), &|_| None).unwrap().config;
        assert_eq!(threads(config.run.threads), 3);
    }
}
