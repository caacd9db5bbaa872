//! What the program tells about itself: log lines, metrics and traces.

pub mod log;
pub mod metrics;
pub mod panics;
pub mod traces;
