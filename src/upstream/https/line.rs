//! One HTTP/1.1 connection, worked by whoever waits for it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use http::{HeaderValue, Request, Response};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;

use super::{BoxBody, BoxError};
use crate::explain::innermost;
use crate::secret::Encrypted;
use crate::stream::BoxIo;

/// Why there is no response head.
pub(super) enum Unanswered {
    /// Nothing of the request went out; here it is.
    NotSent(Box<Request<BoxBody>>),
    /// The connection broke, in these words, and upstream may have seen the request.
    Broken(String),
}

/// A connection to upstream.
pub(super) struct Line {
    sender: SendRequest<Outgoing>,
    /// `None` once it has ended.
    connection: Option<Box<Connection<TokioIo<BoxIo>, Outgoing>>>,
    proof: Encrypted,
    host: HeaderValue,
    /// The request's body has gone out, or will not any more.
    sent: Arc<AtomicBool>,
}

impl Line {
    pub(super) async fn open(io: BoxIo, proof: Encrypted, host: HeaderValue) -> Result<Self, hyper::Error> {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        let sent = Arc::new(AtomicBool::new(true));
        Ok(Self { sender, connection: Some(Box::new(connection)), proof, host, sent })
    }

    /// That there is TLS on it.
    pub(super) fn proof(&self) -> &Encrypted {
        &self.proof
    }

    /// Where it leads, for the `Host` of its requests.
    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Whether a part of the request's body is still to come.
    pub(super) fn is_sending(&self) -> bool {
        !self.sent.load(Ordering::Acquire)
    }

    /// Does what can be done now: reads, writes, notices the end.
    pub(super) fn work(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(&mut **connection).poll(cx).is_ready()
        {
            // how it ended, hyper tells whoever waits for the response or reads its body
            self.connection = None;
        }
    }

    /// Whether the next request can be sent: no rest of the last one, and upstream has not closed, as far as is known.
    pub(super) fn is_ready(&mut self) -> bool {
        // nobody is to be woken by a connection that waits for its next request
        self.work(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the response head.
    pub(super) async fn exchange(
        &mut self,
        request: Request<BoxBody>,
    ) -> Result<Response<Incoming>, Unanswered> {
        self.sent.store(false, Ordering::Release);
        let request = request.map(|body| Outgoing { body, _gone: Gone(Arc::clone(&self.sent)) });
        let mut answer = pin!(self.sender.try_send_request(request));
        let answered = poll_fn(|cx| {
            self.work(cx);
            answer.as_mut().poll(cx)
        });
        answered.await.map_err(|mut error| match error.take_message() {
            Some(unsent) => Unanswered::NotSent(Box::new(unsent.map(|outgoing| outgoing.body))),
            None => Unanswered::Broken(innermost(&error.into_error())),
        })
    }

    /// Brings what is under way to its end, and closes.
    pub(super) async fn finish(self) {
        let Self { sender, connection, .. } = self;
        drop(sender);
        if let Some(connection) = connection {
            // its end is told to whoever reads the body
            let _ended: Result<(), hyper::Error> = connection.await;
        }
    }

    /// Says goodbye, if that can be done without waiting.
    pub(super) fn close(self) {
        let mut goodbye = pin!(self.finish());
        let _said: Poll<()> = goodbye.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// A request body that says when hyper is through with it.
struct Outgoing {
    body: BoxBody,
    _gone: Gone,
}

/// Sets its flag when it is dropped.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
