//! The only file that reads the time. Everything else gets it as an argument, so that tests can pause it.

use jiff::Timestamp;
use tokio::time::Instant;

/// The monotonic clock: for lifetimes, time limits and back-off.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock: for log lines, stored records and certificates only.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall() -> Timestamp {
    Timestamp::now()
}
