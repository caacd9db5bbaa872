//! Exchange Web Services: HTTP with Basic in front, HTTP with Bearer at the back, SOAP unread in between.
//!
//! ```text
//! mail client ──► wire ──► hyper ──► forward ──► sender ──► Exchange
//!               framing,            │  target   only /EWS/ of the configured origin
//!               idle time           │  basic    user name and password → account → token
//!                                   │  headers  rebuilt; what is the connection's own never crosses
//!                                   └─ body     streamed; a bounded copy for one replay
//! ```
//!
//! Never: forwards a Basic credential or passes an upstream challenge on, buffers a body, follows a redirect,
//! sends a request again that may have been carried out.
//!
//! Standards: RFC 9110, RFC 9112, RFC 7617. Exchange Online ends EWS on 1 April 2027.

mod answer;
mod body;
mod description;
pub mod desk;
mod error;
mod forward;
mod record;
mod wire;

// what reads strangers' octets: open to the fuzz targets of tests/fuzz, and no part of the library
#[doc(hidden)]
pub mod autodiscover;
#[doc(hidden)]
pub mod basic;
#[doc(hidden)]
pub mod headers;
#[doc(hidden)]
pub mod impersonation;
#[doc(hidden)]
pub mod target;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::desk::Desk;
use self::forward::Caller;
use self::record::Totals;
use self::wire::Wire;
use crate::clock;
use crate::explain::Refusal;
use crate::stream::BoxIo;

/// Largest request head, in octets. Cookies of Exchange run to a few KiB. hyper takes 100 header fields in it unless it
/// is told a number, for which it then makes room at each request.
const MAX_HEAD: usize = 64 << 10;

/// Read and write buffer of a connection, in octets: what a body can have in flight here.
const MAX_BUFFER: usize = 64 << 10;

/// What is read of somebody who is turned away, in octets: a request of the usual size.
const MAX_UNREAD: u64 = 64 << 10;

/// How long somebody who is turned away may take to hear it.
const TURN_AWAY_LIMIT: Duration = Duration::from_secs(2);

/// What a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EwsSession {
    /// Requests that were read.
    pub requests: u64,
    /// Requests that were refused, challenges not counted.
    pub refused: u64,
    /// Octets of request bodies.
    pub up: u64,
    /// Octets of response bodies.
    pub down: u64,
    /// How it ended.
    pub ended: Ended,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Between two requests, or as the last one asked.
    Closed,
    /// Within a request: the mail client left, spoke no HTTP, was too slow, or upstream broke off.
    Broken,
    /// No byte either way for `idle-timeout`, or no request within `login-timeout`.
    Idle,
    /// The proxy stops, and the connection did not come to its end in time.
    Stopped,
}

impl Ended {
    /// For the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken => "broken off",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
        }
    }
}

/// Serves one connection until it ends; TLS, where there is any, is already up.
///
/// On `cancel` the request under way is finished, for at most `drain-timeout`, and no further one is read.
/// Dropping the future drops everything under way, upstream included.
pub async fn serve(io: BoxIo, peer: SocketAddr, desk: Arc<Desk>, cancel: CancellationToken) -> EwsSession {
    let (wire, state) = Wire::new(io);
    let totals = Arc::new(Totals::default());
    let limits = desk.limits.clone();
    let caller = Caller { desk, peer, wire: Arc::clone(&state), totals: Arc::clone(&totals) };
    let service = service_fn(move |request| {
        let caller = caller.clone();
        async move { Ok::<_, Infallible>(forward::request(caller, request).await) }
    });
    let connection = http1::Builder::new()
        .half_close(false)
        .keep_alive(true)
        .title_case_headers(true)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.login_timeout)
        .serve_connection(TokioIo::new(wire), service);
    let ended = {
        let mut connection = pin!(connection);
        let mut stop_by: Option<Instant> = None;
        loop {
            let idle_by = state.idle_at(limits.idle_timeout);
            let wake = stop_by.map_or(idle_by, |stop_by| stop_by.min(idle_by));
            tokio::select! {
                over = connection.as_mut() => break match over {
                    Ok(()) => Ended::Closed,
                    Err(error) if error.is_timeout() => Ended::Idle,
                    Err(_) => Ended::Broken,
                },
                () = cancel.cancelled(), if stop_by.is_none() => {
                    connection.as_mut().graceful_shutdown();
                    stop_by = Some(clock::now() + limits.drain_timeout);
                }
                () = sleep_until(wake) => {
                    let now = clock::now();
                    if stop_by.is_some_and(|stop_by| stop_by <= now) {
                        break Ended::Stopped;
                    }
                    if state.idle_at(limits.idle_timeout) <= now {
                        break Ended::Idle;
                    }
                }
            }
        }
    };
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    EwsSession {
        requests: count(&totals.requests),
        refused: count(&totals.refused),
        up: count(&totals.up),
        down: count(&totals.down),
        ended,
    }
}

/// Tells who comes when the house is full that it is, whatever they ask, and closes.
pub async fn turn_away(mut io: BoxIo) {
    let sentence = Refusal::TooManySessions.sentence();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{sentence}\n",
        sentence.len() + 1
    );
    let goodbye = async {
        io.write_all(answer.as_bytes()).await?;
        io.shutdown().await?;
        // bytes that nobody reads would reset the connection, and the answer with it
        tokio::io::copy(&mut io.take(MAX_UNREAD), &mut tokio::io::sink()).await
    };
    // whoever does not take it in time has had the chance
    let _told: Result<_, _> = timeout(TURN_AWAY_LIMIT, goodbye).await;
}

#[cfg(test)]
mod tests;
