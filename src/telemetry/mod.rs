//! What the program tells about itself: log lines and metrics.

pub mod log;
pub mod metrics;
pub mod panics;
