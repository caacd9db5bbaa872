//! As many sessions per mailbox and protocol as upstream takes; the next login waits its turn.
//!
//! First come, first served. Whoever is dropped while waiting has left the queue.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::model::{Limits, Protocol};

/// How many may wait for one mailbox, for each session that it may have.
const WAITING_PER_SESSION: usize = 8;

/// Counts sessions by protocol and mailbox. Clones share the count.
#[derive(Clone, Debug)]
pub struct Turnstile {
    gates: Arc<DashMap<Key, Gate>>,
    smtp: usize,
    imap: usize,
    pop3: usize,
}

type Key = (Protocol, String);

#[derive(Debug)]
struct Gate {
    sessions: Arc<Semaphore>,
    /// Those inside and those who wait.
    there: usize,
}

/// A session's right to be; the next one's turn when it is dropped.
#[derive(Debug)]
pub struct Pass {
    // given back first: the gate stands until then
    _session: OwnedSemaphorePermit,
    _presence: Presence,
}

/// Nobody went in, or too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowded {
    /// How many sessions there may be.
    pub most: usize,
    /// Whether the queue itself was full, so that there was no wait at all.
    pub queue_full: bool,
}

impl Turnstile {
    /// With the bounds of the configuration.
    pub fn new(limits: &Limits) -> Self {
        Self {
            gates: Arc::default(),
            smtp: limits.smtp_sessions_per_mailbox,
            imap: limits.imap_sessions_per_mailbox,
            pop3: limits.pop3_sessions_per_mailbox,
        }
    }

    /// Waits for a turn, no longer than `patience`.
    ///
    /// # Errors
    /// None came, or too many wait already.
    pub async fn pass(&self, protocol: Protocol, mailbox: &str, patience: Duration) -> Result<Pass, Crowded> {
        let most = match protocol {
            Protocol::Smtp => self.smtp,
            Protocol::Imap | Protocol::Ews | Protocol::ActiveSync => self.imap,
            Protocol::Pop3 => self.pop3,
        };
        let key = (protocol, mailbox.to_lowercase());
        let (presence, sessions) = {
            let mut gate = self
                .gates
                .entry(key.clone())
                .or_insert_with(|| Gate { sessions: Arc::new(Semaphore::new(most)), there: 0 });
            if gate.there >= most.saturating_mul(1 + WAITING_PER_SESSION) {
                return Err(Crowded { most, queue_full: true });
            }
            gate.there += 1;
            (Presence { gates: Arc::clone(&self.gates), key }, Arc::clone(&gate.sessions))
        };
        // Tokio's semaphore is fair: a permit that is given back goes to whoever has waited longest
        match timeout(patience, sessions.acquire_owned()).await {
            Ok(Ok(session)) => Ok(Pass { _session: session, _presence: presence }),
            Ok(Err(_)) | Err(_) => Err(Crowded { most, queue_full: false }),
        }
    }
}

/// One more at a gate; the last one to go takes the gate along.
#[derive(Debug)]
struct Presence {
    gates: Arc<DashMap<Key, Gate>>,
    key: Key,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.gates.remove_if_mut(&self.key, |_, gate| {
            gate.there = gate.there.saturating_sub(1);
            gate.there == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn turnstile(smtp: usize) -> Turnstile {
        Turnstile { gates: Arc::default(), smtp, imap: 1, pop3: 1 }
    }

    #[tokio::test(start_paused = true)]
    async fn one_too_many_waits_until_another_goes() {
        let turnstile = turnstile(1);
        let first = turnstile.pass(Protocol::Smtp, "a@x", SOON).await.unwrap();
        let waiting = tokio::spawn({
            let turnstile = turnstile.clone();
            async move { turnstile.pass(Protocol::Smtp, "A@x", SOON).await.is_ok() }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.unwrap());
        assert!(turnstile.gates.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn protocols_and_mailboxes_do_not_get_in_each_others_way() {
        let turnstile = turnstile(1);
        let _one = turnstile.pass(Protocol::Smtp, "a@x", SOON).await.unwrap();
        let _two = turnstile.pass(Protocol::Imap, "a@x", SOON).await.unwrap();
        let _three = turnstile.pass(Protocol::Smtp, "b@x", SOON).await.unwrap();
        let crowded = turnstile.pass(Protocol::Smtp, "a@x", SOON).await.unwrap_err();
        assert_eq!(crowded, Crowded { most: 1, queue_full: false });
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_taken_in_the_order_of_coming() {
        let turnstile = turnstile(1);
        let first = turnstile.pass(Protocol::Smtp, "a@x", SOON).await.unwrap();
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..5 {
            let (turnstile, told) = (turnstile.clone(), told.clone());
            tokio::spawn(async move {
                let pass = turnstile.pass(Protocol::Smtp, "a@x", SOON).await;
                told.send(number).unwrap();
                drop(pass);
            });
            tokio::task::yield_now().await;
        }
        drop(first);
        for number in 0..5 {
            assert_eq!(order.recv().await, Some(number));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_vanishes_leaves_the_queue() {
        let turnstile = turnstile(1);
        let first = turnstile.pass(Protocol::Smtp, "a@x", SOON).await.unwrap();
        let mut gone = Box::pin(turnstile.pass(Protocol::Smtp, "a@x", SOON));
        assert!(timeout(Duration::from_secs(1), &mut gone).await.is_err());
        drop(gone);
        drop(first);
        assert!(turnstile.gates.is_empty());
        turnstile.pass(Protocol::Smtp, "a@x", Duration::ZERO).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_has_a_bound() {
        let turnstile = turnstile(1);
        let _first = turnstile.pass(Protocol::Smtp, "a@x", SOON).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..WAITING_PER_SESSION {
            let mut one = Box::pin(turnstile.pass(Protocol::Smtp, "a@x", SOON));
            assert!(timeout(Duration::from_millis(1), &mut one).await.is_err());
            waiting.push(one);
        }
        let crowded = turnstile.pass(Protocol::Smtp, "a@x", SOON).await.unwrap_err();
        assert!(crowded.queue_full);
    }
}
