//! Connections that wait for their next request, for a while.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::uri::Authority;
use tokio::time::{Instant, sleep_until};

use super::line::Line;
use crate::clock;
use crate::task;

/// How long a connection may wait: Exchange Online closes after two minutes.
const LIMIT: Duration = Duration::from_secs(90);

/// Most connections that wait, per origin.
const MOST: usize = 64;

/// The connections of one client that wait, those that waited longest first.
#[derive(Default)]
pub(super) struct Idle(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    lines: Vec<Kept>,
    /// A task closes those whose time is over.
    is_kept: bool,
}

struct Kept {
    origin: Authority,
    line: Line,
    until: Instant,
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idle").field("lines", &self.lock().lines.len()).finish()
    }
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to this origin that is open as far as is known: the one that was used last.
    pub(super) fn take(&self, origin: &Authority) -> Option<Line> {
        loop {
            let mut line = {
                let mut waiting = self.lock();
                let at = waiting.lines.iter().rposition(|kept| kept.origin == *origin)?;
                waiting.lines.remove(at).line
            };
            if line.is_ready() {
                return Some(line);
            }
        }
    }

    /// Keeps a connection whose last answer has come, if it can be used again.
    pub(super) fn keep(self: &Arc<Self>, origin: Authority, mut line: Line) {
        if !line.is_ready() {
            return;
        }
        let until = clock::now() + LIMIT;
        let (one_too_many, needs_keeper) = {
            let mut waiting = self.lock();
            let one_too_many = waiting.one_too_many(&origin);
            waiting.lines.push(Kept { origin, line, until });
            (one_too_many, !std::mem::replace(&mut waiting.is_kept, true))
        };
        if let Some(kept) = one_too_many {
            kept.line.close();
        }
        if needs_keeper {
            task::start(close_in_time(Arc::downgrade(self), until));
        }
    }

    /// Closes those whose time is over; when the next one's is.
    fn close_old(&self, now: Instant) -> Option<Instant> {
        let (old, next) = {
            let mut waiting = self.lock();
            let young = waiting.lines.iter().position(|kept| kept.until > now);
            let young = young.unwrap_or(waiting.lines.len());
            let old: Vec<_> = waiting.lines.drain(..young).collect();
            let next = waiting.lines.first().map(|kept| kept.until);
            waiting.is_kept = next.is_some();
            (old, next)
        };
        for kept in old {
            kept.line.close();
        }
        next
    }
}

impl Waiting {
    /// The connection that makes room for another to this origin, where there is none.
    fn one_too_many(&mut self, origin: &Authority) -> Option<Kept> {
        // hosts are compared letter by letter, and mostly there is room
        if self.lines.len() < MOST {
            return None;
        }
        let lines = self.lines.iter().enumerate();
        let mut same = lines.filter(|(_, kept)| kept.origin == *origin).map(|(at, _)| at);
        let first = same.next()?;
        (same.count() + 1 >= MOST).then(|| self.lines.remove(first))
    }
}

/// Ends when no connection waits, or with the client.
async fn close_in_time(idle: Weak<Idle>, first: Instant) {
    let mut next = Some(first);
    while let Some(until) = next {
        sleep_until(until).await;
        next = idle.upgrade().and_then(|idle| idle.close_old(clock::now()));
    }
}
