//! Log output by `tracing`: text for people, JSON for machines, to standard error.
//!
//! ```text
//! sessions ──line──► queue (bounded) ──► a thread of its own ──► standard error
//!                       └ full: the line is lost, and counted
//! ```
//!
//! Never: waits. Whoever reads standard error may be slow, stopped or gone; no session notices.

use std::io;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing::Subscriber;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

/// Lines that may wait to be written; a few hundred octets each.
const QUEUE: usize = 4096;

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
    let (sender, receiver) = sync_channel(QUEUE);
    let queue = Queue(sender.clone());
    let registry = tracing_subscriber::registry();
    match beside {
        // one filter for everything costs less
        None => registry.with(filter).with(lines(queue, json)).try_init(),
        Some(beside) => registry.with(beside).with(lines(queue, json).with_filter(filter)).try_init(),
    }
    .map_err(|e| e.to_string())?;
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write(&receiver, &mut io::stderr()))
        .map_err(|e| e.to_string())?;
    Ok(Flush(sender))
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
pub struct Flush(SyncSender<Entry>);

impl Drop for Flush {
    fn drop(&mut self) {
        const STEP: Duration = Duration::from_millis(20);
        let (done, is_done) = sync_channel(1);
        let mut entry = Entry::Flush(done);
        let mut left = FLUSH_LIMIT;
        while let Err(TrySendError::Full(back)) = self.0.try_send(entry) {
            if left.is_zero() {
                return;
            }
            std::thread::sleep(STEP);
            left = left.saturating_sub(STEP);
            entry = back;
        }
        // an error means that the time is up, or that there is no thread any more
        let _told: Result<(), _> = is_done.recv_timeout(left);
    }
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Everything before this is written: say so.
    Flush(SyncSender<()>),
}

/// Where events become lines.
#[derive(Clone, Debug)]
struct Queue(SyncSender<Entry>);

impl MakeWriter<'_> for Queue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl io::Write for Queue {
    /// Takes one line, as `tracing` hands them over: whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Entry::Line(line.to_vec())).is_err() {
            LOST.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread: writes what comes, and says how much was lost as soon as somebody reads again.
fn write(entries: &Receiver<Entry>, out: &mut dyn io::Write) {
    let mut told = 0;
    let mut lines = Vec::new();
    while let Ok(first) = entries.recv() {
        if matches!(first, Entry::Line(_)) {
            // a thread that sleeps need not be woken for each line
            std::thread::sleep(GATHERING);
        }
        let mut count = 0;
        for entry in std::iter::once(first).chain(entries.try_iter().take(QUEUE)) {
            match entry {
                Entry::Line(line) => {
                    lines.extend_from_slice(&line);
                    count += 1;
                }
                Entry::Flush(done) => {
                    put(out, &mut lines, std::mem::take(&mut count));
                    let _heard: Result<(), _> = done.try_send(());
                }
            }
        }
        if !put(out, &mut lines, count) {
            continue;
        }
        let lost = LOST.get();
        if lost > told {
            told = lost;
            tracing::warn!(
                lost,
                remedy = "have whatever reads standard error read faster, or set `log.level: warn`",
                "lines of the log were lost since the start: nobody read them in time"
            );
        }
    }
}

/// Writes so many lines at once; whether there were any and somebody took them.
fn put(out: &mut dyn io::Write, lines: &mut Vec<u8>, count: u64) -> bool {
    let is_taken = out.write_all(lines).is_ok();
    if !is_taken {
        LOST.inc_by(count);
    }
    lines.clear();
    lines.shrink_to(MOST_KEPT);
    is_taken && count > 0
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
        let (sender, receiver) = sync_channel(2);
        let mut queue = Queue(sender);
        let before = LOST.get();
        for number in 0..5 {
            queue.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        assert!(LOST.get() >= before + 3, "{}", LOST.get());
        drop(queue);
        let mut out = Vec::new();
        write(&receiver, &mut out);
        assert_eq!(out, b"0\n1\n");
        let (sender, receiver) = sync_channel(2);
        Queue(sender).write_all(b"unread\n").unwrap();
        let before = LOST.get();
        write(&receiver, &mut Gone);
        assert!(LOST.get() > before, "what standard error does not take is lost, too");
    }

    #[test]
    fn the_end_waits_for_what_was_logged_but_not_for_ever() {
        let (sender, receiver) = sync_channel(8);
        Queue(sender.clone()).write_all(b"last words\n").unwrap();
        let thread = std::thread::spawn(move || {
            let mut out = Vec::new();
            write(&receiver, &mut out);
            out
        });
        drop(Flush(sender));
        assert_eq!(thread.join().unwrap(), b"last words\n");
        let (stuck, _receiver) = sync_channel(1);
        Queue(stuck.clone()).write_all(b"nobody reads\n").unwrap();
        drop(Flush(stuck));
    }
}
