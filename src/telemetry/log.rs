//! Log output by `tracing`: text for people, JSON for machines, to standard error.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts logging for the whole process. `level` may go on as a filter (`debug,hyper=trace`); unless it names them,
/// our dependencies stay at `warn`. `RUST_LOG` counts for nothing.
///
/// # Errors
/// A filter that does not parse; logging that is already on.
pub fn start(level: &str, json: bool) -> Result<(), String> {
    let filter = format!("warn,mailkey={level}").parse::<Targets>().map_err(|e| e.to_string())?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    if json {
        registry.with(layer.json().flatten_event(true).with_current_span(false)).try_init()
    } else {
        registry.with(layer.with_ansi(false)).try_init()
    }
    .map_err(|e| e.to_string())
}
