//! The simulator's own clock: it shares none with what it judges.

use jiff::Timestamp;
use tokio::time::Instant;

/// The monotonic clock: token lifetimes, lock-outs, limits.
#[expect(clippy::disallowed_methods, reason = "the simulator uses nothing of this crate, not even its clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// The wall clock: claims, mail dates, certificates.
#[expect(clippy::disallowed_methods, reason = "the simulator uses nothing of this crate, not even its clock")]
pub(super) fn wall() -> Timestamp {
    Timestamp::now()
}
