//! What machines ask: is it alive, can it serve, what does it count.

use http::StatusCode;

use super::reply::Reply;
use super::status::Readiness;
use crate::telemetry::metrics::Metrics;

/// The media type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The process runs and answers; nothing more is said.
pub(super) fn alive() -> Reply {
    Reply::text(StatusCode::OK, "alive")
}

/// Whether mail clients can be served.
pub(super) fn ready(readiness: &Readiness) -> Reply {
    match readiness {
        Readiness::Ready => Reply::text(StatusCode::OK, "ready"),
        Readiness::NotReady(why) => {
            Reply::text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {why}"))
        }
    }
}

/// All metrics.
pub(super) fn metrics(metrics: &Metrics) -> Reply {
    Reply { status: StatusCode::OK, media_type: OPENMETRICS, body: metrics.encode() }
}
