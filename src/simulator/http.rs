//! What the two HTTP services share: bodies, limits, connections.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};

use super::office::Office;

/// Any answer's body.
pub(super) type Answer = Response<BoxBody<Bytes, io::Error>>;

/// How long a request's body may take.
const BODY_TIME: Duration = Duration::from_mins(10);

/// An answer that is being made. Boxed, as both services are one to hyper then, whose code is in the program once.
pub(super) type Answering = Pin<Box<dyn Future<Output = io::Result<Answer>> + Send>>;

/// Serves requests of one connection, one after the other.
pub(super) async fn serve(
    office: Arc<Office>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    handle: fn(Arc<Office>, Request<Incoming>) -> Answering,
) -> io::Result<()> {
    let handle = service_fn(move |request| handle(Arc::clone(&office), request));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_mins(2))
        .max_buf_size(256 * 1024)
        .serve_connection(TokioIo::new(stream), handle)
        .await
        .map_err(io::Error::other)
}

/// The whole body of a request; `None` over the limit.
pub(super) async fn collect(mut body: Incoming, limit: usize) -> io::Result<Option<Bytes>> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX).min(limit);
    let mut whole = Vec::with_capacity(expected);
    let reading = async {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                if whole.len() + data.len() > limit {
                    return Ok::<_, io::Error>(None);
                }
                whole.extend_from_slice(&data);
            }
        }
        Ok(Some(()))
    };
    let read = timeout(BODY_TIME, reading).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(read.map(|()| whole.into()))
}

/// An answer with a body that is there.
pub(super) fn answer(status: u16, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set(&mut answer, header::CONTENT_TYPE.as_str(), content_type);
    answer
}

/// An answer without a body.
pub(super) fn empty(status: u16) -> Answer {
    let mut answer = answer(status, "", Bytes::new());
    answer.headers_mut().remove(header::CONTENT_TYPE);
    answer
}

/// Adds a header.
pub(super) fn set(answer: &mut Answer, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(name), http::HeaderValue::try_from(value)) {
        answer.headers_mut().append(name, value);
    }
}

/// A body that is written while it is read: at most a few pieces wait.
pub(super) struct Piped {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

impl Piped {
    /// The body, and where to put its pieces. When the body is dropped, sending fails.
    pub(super) fn new() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, pieces) = mpsc::channel(4);
        (sender, Self { pieces })
    }

    /// As an answer.
    pub(super) fn answer(self, content_type: &str) -> Answer {
        let mut answer = Response::new(self.boxed());
        set(&mut answer, header::CONTENT_TYPE.as_str(), content_type);
        answer
    }
}

impl Body for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.pieces.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
