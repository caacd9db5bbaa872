//! Stops asking an identity provider that does not answer, and lets one request find out when it is back.
//!
//! ```text
//! Closed ──5 failures in a row──► Open ──time is up──► Half-open ──probe ok──► Closed
//!                                  ▲                       │
//!                                  └──── probe failed ─────┘   (twice as long, at most a minute)
//! ```

use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

/// Transient failures in a row before nothing is asked any more.
const FAILURES: u32 = 5;

/// How long it stays open at first.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// How long it stays open at most.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A probe that never reports back is forgotten after this long.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// One breaker per authority. Authorities come from the configuration, so their number is bounded by it.
#[derive(Debug, Default)]
pub struct Breakers {
    by_authority: DashMap<String, Breaker>,
}

#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    pause: Duration,
    open_until: Option<Instant>,
    probe_since: Option<Instant>,
}

impl Breakers {
    /// Starts anew: what was wrong may have been set right.
    pub fn forget(&self) {
        self.by_authority.clear();
    }

    /// Whether a request may be sent now; otherwise how long to wait.
    ///
    /// # Errors
    /// The breaker is open, or somebody else's probe is under way.
    pub fn admit(&self, authority: &str, now: Instant) -> Result<(), Duration> {
        let Some(mut breaker) = self.by_authority.get_mut(authority) else { return Ok(()) };
        let Some(open_until) = breaker.open_until else { return Ok(()) };
        if now < open_until {
            return Err(open_until - now);
        }
        if breaker.probe_since.is_some_and(|since| now < since + PROBE_LIMIT) {
            return Err(Duration::from_secs(1));
        }
        breaker.probe_since = Some(now);
        Ok(())
    }

    /// The provider answered, whatever it said.
    pub fn answered(&self, authority: &str) {
        // Nothing is kept of a provider that works.
        self.by_authority.remove(authority);
    }

    /// The provider did not answer, or not as one.
    pub fn failed(&self, authority: &str, now: Instant) {
        if !self.by_authority.contains_key(authority) {
            self.by_authority.insert(authority.to_owned(), Breaker::default());
        }
        let Some(mut breaker) = self.by_authority.get_mut(authority) else { return };
        breaker.failures = breaker.failures.saturating_add(1);
        let probed = breaker.probe_since.take().is_some();
        if probed || (breaker.failures >= FAILURES && breaker.open_until.is_none()) {
            breaker.pause = (breaker.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            breaker.open_until = Some(now + breaker.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "https://login.example/t";

    #[test]
    fn it_opens_after_five_failures_in_a_row_and_lets_one_probe_through() {
        let (breakers, now) = (Breakers::default(), crate::clock::now());
        for _ in 0..4 {
            breakers.failed(A, now);
        }
        assert_eq!(breakers.admit(A, now), Ok(()));
        breakers.failed(A, now);
        assert_eq!(breakers.admit(A, now), Err(FIRST_PAUSE));
        assert_eq!(breakers.admit("https://other.example", now), Ok(()));
        let later = now + FIRST_PAUSE;
        assert_eq!(breakers.admit(A, later), Ok(()));
        assert!(breakers.admit(A, later).is_err(), "one probe at a time");
        breakers.failed(A, later);
        assert_eq!(breakers.admit(A, later), Err(FIRST_PAUSE * 2));
        breakers.answered(A);
        assert_eq!(breakers.admit(A, later), Ok(()));
    }

    #[test]
    fn an_answer_in_between_starts_the_count_anew() {
        let (breakers, now) = (Breakers::default(), crate::clock::now());
        for _ in 0..20 {
            breakers.failed(A, now);
            breakers.failed(A, now);
            breakers.answered(A);
        }
        assert_eq!(breakers.admit(A, now), Ok(()));
    }

    #[test]
    fn a_probe_that_vanishes_does_not_keep_it_open_for_ever() {
        let (breakers, now) = (Breakers::default(), crate::clock::now());
        for _ in 0..5 {
            breakers.failed(A, now);
        }
        let later = now + FIRST_PAUSE;
        assert_eq!(breakers.admit(A, later), Ok(()));
        assert_eq!(breakers.admit(A, later + PROBE_LIMIT), Ok(()));
    }

    #[test]
    fn the_pause_grows_to_a_minute_and_no_further() {
        let (breakers, mut now) = (Breakers::default(), crate::clock::now());
        for _ in 0..40 {
            breakers.failed(A, now);
            if let Err(wait) = breakers.admit(A, now) {
                assert!(wait <= LONGEST_PAUSE);
                now += wait;
                assert_eq!(breakers.admit(A, now), Ok(()));
            }
        }
    }
}
