//! Log output by `tracing`: text for people, JSON for machines, to standard error.

use std::io::Stderr;

use tracing::Subscriber;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Starts logging for the whole process. `RUST_LOG` wins over `level`. Our dependencies stay at `warn`, so
/// that no library's trace shows what passes through it.
///
/// # Errors
/// A filter that does not parse; logging that is already on.
pub fn start(level: &str, json: bool) -> Result<(), String> {
    start_beside(None, level, json)
}

/// A layer that gets what the log's filter keeps out of the log.
pub(super) type Beside = Box<dyn Layer<Registry> + Send + Sync>;

/// The same, with another layer beside the log.
pub(super) fn start_beside(beside: Option<Beside>, level: &str, json: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("warn,mailkey={level}")).map_err(|e| e.to_string())?;
    let registry = tracing_subscriber::registry();
    // one filter for everything costs less where nothing stands beside the log
    match (beside, json) {
        (None, true) => {
            registry.with(filter).with(lines().json().flatten_event(true).with_current_span(false)).try_init()
        }
        (None, false) => registry.with(filter).with(lines().with_ansi(false)).try_init(),
        (Some(beside), true) => registry
            .with(beside)
            .with(lines().json().flatten_event(true).with_current_span(false).with_filter(filter))
            .try_init(),
        (Some(beside), false) => {
            registry.with(beside).with(lines().with_ansi(false).with_filter(filter)).try_init()
        }
    }
    .map_err(|e| e.to_string())
}

/// Lines on standard error, for whatever stands below them.
fn lines<S>() -> fmt::Layer<S, DefaultFields, Format, fn() -> Stderr>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fmt::layer().with_writer(std::io::stderr as fn() -> Stderr).with_target(false)
}
