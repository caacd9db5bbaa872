//! Traces: a span for each session with one for each of its steps, sent to an OpenTelemetry collector (OTLP over HTTP).
//!
//! ```text
//! session ─┬─ token                                  request (EWS) ─┬─ token
//!          ├─ connect   unless one was ready                        └─ exchange   to the head of the answer
//!          ├─ sign-in
//!          └─ relay
//! ```
//! Built in by the feature `otlp`, switched on by `log.otlp-endpoint`. A collector that is away costs spans, never a
//! session: they wait in a bounded queue, and a thread of its own sends them.
//!
//! Never: a user name, a mailbox, a password or a token in a span.

/// The target of all spans: the log's filter knows only `mailkey`, so that spans do not show in log lines.
pub const SPANS: &str = "session_spans";

/// Sends spans until its [end](Self::end).
#[must_use = "the last spans are sent by `end`"]
#[derive(Debug)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    provider: opentelemetry_sdk::trace::SdkTracerProvider,
}

#[cfg(feature = "otlp")]
mod sending {
    use std::time::Duration;

    use opentelemetry::KeyValue;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::Layer as _;
    use tracing_subscriber::filter::filter_fn;
    use url::Url;

    use super::super::log::{self, Flush};
    use super::{SPANS, Traces};

    /// How long a collector may take, and the last spans at the end of the program.
    const SEND_LIMIT: Duration = Duration::from_secs(5);

    /// Starts logging, and sends spans to this collector. To be called outside a runtime; the log is to be dropped last.
    ///
    /// # Errors
    /// As [`log::start`], and an exporter that cannot be built.
    pub fn start(level: &str, json: bool, endpoint: &Url) -> Result<(Flush, Traces), String> {
        let client = reqwest::blocking::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(SEND_LIMIT)
            .build()
            .map_err(|error| error.to_string())?;
        let path = format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(path)
            .with_timeout(SEND_LIMIT)
            .build()
            .map_err(|error| error.to_string())?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("mailkey").with_attribute(version).build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let spans = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("mailkey"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(filter_fn(|about| about.target() == SPANS));
        let flush = log::start_beside(Some(Box::new(spans)), level, json)?;
        Ok((flush, Traces { provider }))
    }

    impl Traces {
        /// Sends what waits yet. To be called outside a runtime.
        pub fn end(self) {
            if let Err(error) = self.provider.shutdown_with_timeout(SEND_LIMIT) {
                tracing::warn!(%error, "the last traces did not reach the collector");
            }
        }
    }
}

#[cfg(feature = "otlp")]
pub use sending::start;

#[cfg(not(feature = "otlp"))]
impl Traces {
    /// Nothing waits.
    pub fn end(self) {}
}

/// Fails: this program was built without traces.
///
/// # Errors
/// Always.
#[cfg(not(feature = "otlp"))]
pub fn start(_level: &str, _json: bool, _endpoint: &url::Url) -> Result<(super::log::Flush, Traces), String> {
    Err("built without the feature `otlp`".to_owned())
}
