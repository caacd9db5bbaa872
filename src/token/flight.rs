//! Single flight: however many ask for the same thing at once, it is asked for once.
//!
//! The work runs in a task of its own, so that a caller who hangs up harms nobody; success and failure reach
//! everybody who waits. Never: holds a map guard across an await.

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::watch;

use crate::task;

/// Work under way, by key. Cheap to clone.
#[derive(Debug)]
pub struct Flights<K: Eq + Hash, T> {
    under_way: Arc<DashMap<K, watch::Receiver<Option<T>>>>,
}

/// A seat in a flight.
#[derive(Debug)]
pub struct Seat<T> {
    result: watch::Receiver<Option<T>>,
    /// Whether this caller started it.
    pub started: bool,
}

impl<K, T> Default for Flights<K, T>
where
    K: Eq + Hash,
{
    fn default() -> Self {
        Self { under_way: Arc::new(DashMap::new()) }
    }
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Takes a seat in the flight for `key`; starts it with `work` where there is none.
    pub fn board<F>(&self, key: K, work: impl FnOnce() -> F) -> Seat<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        match self.under_way.entry(key) {
            Entry::Occupied(flight) => Seat { result: flight.get().clone(), started: false },
            Entry::Vacant(place) => {
                let (sender, result) = watch::channel(None);
                let landing = Landing { key: place.key().clone(), under_way: Arc::clone(&self.under_way) };
                let work = work();
                place.insert(result.clone());
                task::start(async move {
                    let done = work.await;
                    // Off the list before the result is out: who comes later finds what it left behind.
                    drop(landing);
                    sender.send_replace(Some(done));
                });
                Seat { result, started: true }
            }
        }
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }
}

impl<T: Clone> Seat<T> {
    /// Waits for the result; `None`: the flight crashed.
    pub async fn wait(mut self) -> Option<T> {
        self.result.wait_for(Option::is_some).await.ok().and_then(|result| result.clone())
    }
}

/// Takes the flight off the list, also when its work panics.
struct Landing<K: Eq + Hash, T> {
    key: K,
    under_way: Arc<DashMap<K, watch::Receiver<Option<T>>>>,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.under_way.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hundred_callers_share_one_flight_even_if_the_first_hangs_up() {
        let flights: Flights<u8, usize> = Flights::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let board = || {
            let runs = Arc::clone(&runs);
            flights.board(1, move || async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            })
        };
        let first = board();
        assert!(first.started);
        drop(first);
        let seats: Vec<_> = (0..100).map(|_| board()).collect();
        for seat in seats {
            assert!(!seat.started);
            assert_eq!(seat.wait().await, Some(1));
        }
        assert!(flights.is_empty());
        assert_eq!(board().wait().await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_strands_nobody() {
        let flights: Flights<u8, usize> = Flights::default();
        let seat = flights.board(1, || async { panic!("as a test wants it") });
        assert_eq!(seat.wait().await, None);
        assert!(flights.is_empty());
    }
}
