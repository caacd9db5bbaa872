//! Log output by `tracing`: text for people, JSON for machines, to standard error.
//!
//! ```text
//! sessions ──line──► one buffer (bounded) ──► a thread of its own ──► standard error
//!                       └ full: the line is lost, and counted
//! ```
//!
//! Never: waits, but for the moment that a line takes to be copied. Whoever reads standard error may be slow, stopped or
//! gone; no session notices.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing::Subscriber;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

/// Lines that may wait to be written, in octets: a few thousand of them.
const ROOM: usize = 1 << 20;

/// Lines that come within this time are written together: under load, waking the thread costs more than a line does.
const GATHERING: Duration = Duration::from_millis(20);

/// Room for lines that is kept, in octets: a burst gives back what it took.
const MOST_KEPT: usize = 64 * 1024;

/// How long the end of the process may wait for lines to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Lines that nobody will read: there was no room for them, or standard error did not take them.
pub(super) static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Starts logging for the whole process. `level` may go on as a filter (`debug,hyper=trace`); unless it names them,
/// our dependencies stay at `warn`. `RUST_LOG` counts for nothing. Dropping what it gives waits for what was logged so
/// far.
///
/// # Errors
/// A filter that does not parse; logging that is already on; no thread to be had.
pub fn start(level: &str, json: bool) -> Result<Flush, String> {
    start_beside(None, level, json)
}

/// A layer that gets what the log's filter keeps out of the log.
pub(super) type Beside = Box<dyn Layer<Registry> + Send + Sync>;

/// The same, with another layer beside the log.
pub(super) fn start_beside(beside: Option<Beside>, level: &str, json: bool) -> Result<Flush, String> {
    let filter = format!("warn,mailkey={level}").parse::<Targets>().map_err(|e| e.to_string())?;
    let gathering = Arc::new(Gathering::default());
    let queue = Queue(Arc::clone(&gathering));
    let registry = tracing_subscriber::registry();
    match beside {
        // one filter for everything costs less
        None => registry.with(filter).with(lines(queue, json)).try_init(),
        Some(beside) => registry.with(beside).with(lines(queue, json).with_filter(filter)).try_init(),
    }
    .map_err(|e| e.to_string())?;
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn({
            let gathering = Arc::clone(&gathering);
            move || Writer::default().write(&gathering, &mut io::stderr())
        })
        .map_err(|e| e.to_string())?;
    Ok(Flush(gathering))
}

/// Makes lines of events, for whatever stands below.
fn lines<S>(queue: Queue, json: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = fmt::layer().with_writer(queue).with_target(false);
    if json {
        layer.json().flatten_event(true).with_current_span(false).boxed()
    } else {
        layer.with_ansi(false).boxed()
    }
}

/// Waits, when dropped, until everything logged so far is written, but not for long.
#[must_use = "what was logged last is lost if nobody waits for it"]
#[derive(Debug)]
pub struct Flush(Arc<Gathering>);

impl Drop for Flush {
    fn drop(&mut self) {
        // an error means that the time is up, or that there is no thread any more
        let _told: Result<(), _> = self.0.written().recv_timeout(FLUSH_LIMIT);
    }
}

/// What waits to be written. Lines stand behind one another in one buffer: no allocation for each, and no thread to wake
/// but for the first.
#[derive(Debug, Default)]
struct Gathering {
    batch: Mutex<Batch>,
    /// The batch is no longer empty.
    begun: Condvar,
}

#[derive(Debug, Default)]
struct Batch {
    lines: Vec<u8>,
    /// Of lines.
    count: u64,
    /// Who waits until all of this is written.
    waiting: Vec<SyncSender<()>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.waiting.is_empty()
    }
}

impl Gathering {
    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the batch, and wakes the thread where that began it.
    fn change(&self, change: impl FnOnce(&mut Batch)) {
        let mut batch = self.lock();
        let was_empty = batch.is_empty();
        change(&mut batch);
        let begun = was_empty && !batch.is_empty();
        drop(batch);
        if begun {
            self.begun.notify_one();
        }
    }

    /// Takes one line, or loses it.
    fn add(&self, line: &[u8]) {
        self.change(|batch| {
            if batch.lines.len() + line.len() > ROOM {
                LOST.inc();
                return;
            }
            batch.lines.extend_from_slice(line);
            batch.count += 1;
        });
    }

    /// Hears when everything so far is written.
    fn written(&self) -> Receiver<()> {
        let (done, is_done) = sync_channel(1);
        self.change(|batch| batch.waiting.push(done));
        is_done
    }

    /// Waits for a batch and takes it, in place of an empty one.
    fn take(&self, empty: &mut Batch) {
        let begun = self.begun.wait_while(self.lock(), |batch| batch.is_empty());
        let mut batch = begun.unwrap_or_else(PoisonError::into_inner);
        if batch.waiting.is_empty() {
            drop(batch);
            std::thread::sleep(GATHERING);
            batch = self.lock();
        }
        std::mem::swap(&mut *batch, empty);
    }
}

/// Where events become lines.
#[derive(Clone, Debug)]
struct Queue(Arc<Gathering>);

impl MakeWriter<'_> for Queue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl io::Write for Queue {
    /// Takes one line, as `tracing` hands them over: whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread: writes what comes, and says how much was lost as soon as somebody reads again.
#[derive(Default)]
struct Writer {
    batch: Batch,
    /// How many lines are known to be lost, by the log itself.
    told: u64,
}

impl Writer {
    fn write(&mut self, gathering: &Gathering, out: &mut dyn io::Write) {
        loop {
            self.turn(gathering, out);
        }
    }

    /// One batch; how many waited for it.
    fn turn(&mut self, gathering: &Gathering, out: &mut dyn io::Write) -> usize {
        gathering.take(&mut self.batch);
        let Batch { lines, count, waiting } = &mut self.batch;
        let is_taken = out.write_all(lines).is_ok();
        if !is_taken {
            LOST.inc_by(*count);
        }
        let some = std::mem::take(count) > 0;
        lines.clear();
        lines.shrink_to(MOST_KEPT);
        let waited = waiting.len();
        for done in waiting.drain(..) {
            let _heard: Result<(), _> = done.try_send(());
        }
        let lost = LOST.get();
        if is_taken && some && lost > self.told {
            self.told = lost;
            tracing::warn!(
                lost,
                remedy = "have whatever reads standard error read faster, or set `log.level: warn`",
                "lines of the log were lost since the start: nobody read them in time"
            );
        }
        waited
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Takes nothing, as a pipe whose reader is gone.
    struct Gone;

    impl io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_loses_and_counts_and_never_waits() {
        let gathering = Arc::new(Gathering::default());
        let mut queue = Queue(Arc::clone(&gathering));
        let before = LOST.get();
        let half = vec![b'x'; ROOM / 2];
        for _ in 0..5 {
            queue.write_all(&half).unwrap();
        }
        queue.write_all(b"one that fits no more\n").unwrap();
        assert!(LOST.get() >= before + 4, "{}", LOST.get());
        let mut writer = Writer::default();
        let mut out = Vec::new();
        writer.turn(&gathering, &mut out);
        assert!(out.len() == ROOM && out.iter().all(|octet| *octet == b'x'), "{}", out.len());
        queue.write_all(b"there is room again\n").unwrap();
        writer.turn(&gathering, &mut out);
        assert!(out.ends_with(b"there is room again\n"));
        queue.write_all(b"unread\n").unwrap();
        let before = LOST.get();
        writer.turn(&gathering, &mut Gone);
        assert!(LOST.get() > before, "what standard error does not take is lost, too");
        assert!(writer.batch.lines.capacity() <= MOST_KEPT, "a burst gives its room back");
    }

    #[test]
    fn the_end_waits_for_what_was_logged_but_not_for_ever() {
        let gathering = Arc::new(Gathering::default());
        Queue(Arc::clone(&gathering)).write_all(b"last words\n").unwrap();
        let thread = std::thread::spawn({
            let gathering = Arc::clone(&gathering);
            move || {
                let (mut writer, mut out) = (Writer::default(), Vec::new());
                while writer.turn(&gathering, &mut out) == 0 {}
                out
            }
        });
        drop(Flush(gathering));
        assert_eq!(thread.join().unwrap(), b"last words\n");
        let stuck = Arc::new(Gathering::default());
        Queue(Arc::clone(&stuck)).write_all(b"nobody writes\n").unwrap();
        drop(Flush(stuck));
    }
}
