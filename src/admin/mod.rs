//! The admin pages: health, metrics and status, read-only, on an address of their own.
//!
//! `/healthz` is the process alive · `/readyz` can mail clients be served · `/metrics` OpenMetrics ·
//! `/recordings` the dialogues of failed sessions · `/` the status page · `/status.json` the same for machines.
//!
//! Never: changes anything, shows a token or a password, answers to a host name that is not ours, lets
//! another site read along, runs a script.

mod gate;
mod health;
mod page;
mod reply;
pub mod status;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::reply::Reply;
use self::status::StatusSource;
use crate::task;
use crate::telemetry::metrics::Metrics;

/// Connections at once; the next one waits.
const MAX_CONNECTIONS: usize = 64;

/// For a request head, from the first byte to the last, and between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// For a connection, all its requests together: who scrapes on comes again.
const CONNECTION_LIMIT: Duration = Duration::from_mins(2);

/// For answers under way when the proxy stops.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// After a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Largest request head, in octets.
const MAX_HEAD: usize = 16 << 10;

/// What the pages are made from.
pub struct AdminDesk {
    /// Knows how the proxy is.
    pub source: Arc<dyn StatusSource>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// The configured addresses: besides loopback, the only hosts that are answered to.
    pub listen: Vec<SocketAddr>,
}

/// Serves the admin pages until `cancel`; one bad connection disturbs no other.
pub async fn serve(listener: TcpListener, desk: Arc<AdminDesk>, cancel: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let accepting = async {
        while let Ok(seat) = Arc::clone(&room).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (desk, cancel) = (Arc::clone(&desk), cancel.clone());
                    connections.spawn(task::boxed(async move {
                        connection(stream, desk, cancel).await;
                        drop(seat);
                    }));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin listener cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = cancel.cancelled() => {}
    }
    connections.close();
    let _late: Result<(), _> = timeout(FAREWELL_LIMIT, connections.wait()).await;
}

async fn connection(stream: TcpStream, desk: Arc<AdminDesk>, cancel: CancellationToken) {
    let service = service_fn(move |request| {
        let response = respond(&desk, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .half_close(false)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let until_stop = async {
        tokio::select! {
            _ended = serving.as_mut() => return,
            () = cancel.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        let _ended: Result<Result<(), _>, _> = timeout(FAREWELL_LIMIT, serving.as_mut()).await;
    };
    let _cut: Result<(), _> = timeout(CONNECTION_LIMIT, until_stop).await;
}

fn respond<B>(desk: &AdminDesk, request: &Request<B>) -> Response<Full<Bytes>> {
    if let Err((status, sentence)) = gate::admit(request, &desk.listen) {
        return Reply::text(status, sentence).into_response();
    }
    let reply = match request.uri().path() {
        "/" => page::html(&desk.source.status(), request.uri().query() == Some("still")),
        "/style.css" => page::style(),
        "/status.json" => page::json(&desk.source.status()),
        "/recordings" => Reply::text(StatusCode::OK, desk.source.recordings().trim_end()),
        "/healthz" => health::alive(),
        "/readyz" => health::ready(&desk.source.readiness()),
        "/metrics" => health::metrics(&desk.metrics),
        _ => Reply::text(StatusCode::NOT_FOUND, "nothing here"),
    };
    reply.into_response()
}

#[cfg(test)]
mod tests;
