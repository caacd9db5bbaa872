//! `mailkey run`: serves the listeners of the configuration file until told to stop.

use std::path::Path;
use std::process::ExitCode;

use super::out::Out;
use super::{FAILED, MISUSED};
use crate::app::App;
use crate::config;
use crate::config::model::{Config, LogFormat};
use crate::explain::Explain as _;
use crate::telemetry::log;

/// Loads, starts, serves, stops.
pub fn run(path: &Path, out: &mut Out) -> ExitCode {
    let loaded = match config::load(path, &environment) {
        Ok(loaded) => loaded,
        Err(problems) => {
            out.error(problems);
            return ExitCode::from(MISUSED);
        }
    };
    let config = loaded.config;
    if let Err(error) = log::start(&config.log.level, config.log.format == LogFormat::Json) {
        out.error(format_args!("logging cannot start: {error}"));
        return ExitCode::from(MISUSED);
    }
    for remark in &loaded.remarks {
        tracing::warn!(line = remark.line, remedy = remark.remedy, "{}", remark.what);
    }
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error(format_args!("the runtime cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    runtime.block_on(serve(config))
}

/// The process's environment, for `${NAME}` in the configuration.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

async fn serve(config: Config) -> ExitCode {
    let app = match App::start(config) {
        Ok(app) => app,
        Err(error) => {
            let story = error.explain();
            tracing::error!(code = %story.code, remedy = story.remedy, "cannot start: {}", story.what);
            return ExitCode::from(FAILED);
        }
    };
    for (listener, address) in app.addresses() {
        tracing::info!(listener, %address, "listening");
    }
    for address in app.admin_addresses() {
        tracing::info!("status page at http://{address}/");
    }
    asked_to_stop().await;
    tracing::info!("stopping: no new sessions, those that are open come to their end");
    app.stop(asked_to_stop()).await;
    tracing::info!("stopped");
    ExitCode::SUCCESS
}

/// Ctrl-C, or SIGTERM where there is such a thing.
pub async fn asked_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    drop(tokio::signal::ctrl_c().await);
}

/// A session takes two descriptors; the soft limit of many systems is 1,024.
fn raise_descriptor_limit() {
    #[cfg(unix)]
    if let Err(error) = rlimit::increase_nofile_limit(1 << 20) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}
