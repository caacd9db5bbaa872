//! HTTP/1.1 over TLS to EWS, through the same dialler as mail. The token is written here, with the connection's proof.
//!
//! ```text
//! send ──► idle connection, or a new one ──► exchange ──► response head
//!             ▲                                               │ body: whoever reads it drives the connection
//!             └──────────────── read to its end ◄─────────────┘
//! ```
//!
//! A connection has no task of its own while a request is on it: the task that waits for the answer does its work.
//! That saves each request several wake-ups. Only where an answer comes before all of the request has gone out
//! does the connection get one, so that neither waits for the other.

mod idle;
mod line;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{AUTHORIZATION, HOST};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use self::idle::Idle;
use self::line::{Line, Unanswered};
use super::connector::Connector;
use super::error::UpstreamError;
use crate::explain::innermost;
use crate::secret::AccessToken;
use crate::task;

/// Any error that a body can end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body whose kind no longer matters.
pub type BoxBody = UnsyncBoxBody<Bytes, BoxError>;

/// A body of a few words.
pub fn text(text: impl Into<Bytes>) -> BoxBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// TLS connections to HTTP origins, kept between requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpsClient {
    connector: Arc<Connector>,
    idle: Arc<Idle>,
}

impl HttpsClient {
    /// A client that dials by this connector, and has no connection yet.
    pub fn new(connector: Arc<Connector>) -> Self {
        Self { connector, idle: Arc::new(Idle::default()) }
    }

    /// Sends a request whose URI is absolute (`https://…`); puts `Authorization: Bearer` and `Host` in itself.
    /// Both bodies are streamed. A request is never sent twice: only one of which nothing went out, since the idle
    /// connection that it was for turned out to be closed, goes over another.
    ///
    /// # Errors
    /// Upstream could not be reached, or broke off before its response head.
    pub async fn send(
        &self,
        mut request: Request<BoxBody>,
        token: &AccessToken,
    ) -> Result<Response<Answer>, UpstreamError> {
        let uri = std::mem::take(request.uri_mut()).into_parts();
        let Some(origin) = uri.authority else { return Err(broken("", "no host to send it to")) };
        if uri.scheme != Some(http::uri::Scheme::HTTPS) {
            return Err(broken(origin.as_str(), "a token goes to https:// only"));
        }
        *request.uri_mut() = Uri::from(uri.path_and_query.unwrap_or(PathAndQuery::from_static("/")));
        loop {
            let (mut line, kept) = match self.idle.take(&origin) {
                Some(line) => (line, true),
                None => (Box::pin(self.dial(&origin)).await?, false),
            };
            let bearer = token
                .bearer(line.proof())
                .ok_or_else(|| broken(origin.as_str(), "the token makes no header"))?;
            request.headers_mut().insert(HOST, line.host().clone());
            request.headers_mut().insert(AUTHORIZATION, bearer);
            match line.exchange(request).await {
                Ok(response) => {
                    return Ok(response.map(|body| Answer::new(body, line, origin, Arc::clone(&self.idle))));
                }
                Err(Unanswered::NotSent(unsent)) if kept => request = *unsent,
                Err(Unanswered::NotSent(_)) => {
                    return Err(broken(origin.as_str(), "it was closed before a request could be sent"));
                }
                Err(Unanswered::Broken(why)) => return Err(broken(origin.as_str(), &why)),
            }
        }
    }

    /// Dials, tunnels and encrypts; there is no way to a connection without TLS.
    async fn dial(&self, origin: &Authority) -> Result<Line, UpstreamError> {
        let header = HeaderValue::from_str(origin.as_str())
            .map_err(|_| broken(origin.as_str(), "the host makes no header"))?;
        let host = origin.host().trim_matches(['[', ']']);
        let (io, proof) = self.connector.open_https(host, origin.port_u16().unwrap_or(443)).await?;
        Line::open(io, proof, header).await.map_err(|error| broken(origin.as_str(), &innermost(&error)))
    }
}

fn broken(origin: &str, why: &str) -> UpstreamError {
    UpstreamError::Broken { target: origin.to_owned(), why: why.to_owned() }
}

/// A response body, and the work of the connection that it comes over. Read to its end, it gives the connection
/// back for the next request; dropped before, it closes it.
pub struct Answer {
    body: Incoming,
    driven: Driven,
}

/// Who does the work of the connection.
enum Driven {
    /// Who reads the body.
    ByReader { line: Line, origin: Authority, idle: Arc<Idle> },
    /// A task, since the request was not out yet when the answer began. The connection is not used again.
    ByTask(AbortOnDropHandle<()>),
    /// Nobody: there is nothing left to do.
    Done,
}

impl Answer {
    fn new(body: Incoming, line: Line, origin: Authority, idle: Arc<Idle>) -> Self {
        let driven = if line.is_sending() {
            Driven::ByTask(AbortOnDropHandle::new(task::start(line.finish())))
        } else {
            Driven::ByReader { line, origin, idle }
        };
        let mut answer = Self { body, driven };
        if answer.body.is_end_stream() {
            answer.let_go();
        }
        answer
    }

    /// All of the body has come.
    fn let_go(&mut self) {
        match std::mem::replace(&mut self.driven, Driven::Done) {
            Driven::ByReader { line, origin, idle } => idle.keep(origin, line),
            // what is left of the request still goes out
            Driven::ByTask(task) => drop(task.detach()),
            Driven::Done => {}
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut polled = Pin::new(&mut this.body).poll_frame(cx);
        if polled.is_pending()
            && let Driven::ByReader { line, .. } = &mut this.driven
        {
            line.work(cx);
            polled = Pin::new(&mut this.body).poll_frame(cx);
        }
        match &polled {
            Poll::Ready(None) => this.let_go(),
            Poll::Ready(Some(Ok(_))) if this.body.is_end_stream() => this.let_go(),
            Poll::Ready(Some(Err(_))) => this.driven = Driven::Done,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
