//! Bodies on their way through: never collected, a bounded copy of the request kept for one replay.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body, Bytes, Frame, SizeHint};

use super::desk::{BoxBody, BoxError};
use super::record::Record;
use super::wire::Patience;
use crate::seats::Seat;
pub(super) use crate::upstream::https::text;

/// How much of a request is kept until upstream has taken the token: what is larger, the mail client sends again.
pub(super) const MAX_REPLAY: usize = 256 << 10;

/// How much of an unwanted request is read so that the connection can stay open, and for how long.
pub(super) const MAX_DRAIN: u64 = 1 << 20;
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(5);

/// No body.
pub(super) fn empty() -> BoxBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The mail client's request body. It can be lent upstream, and taken back when upstream wants a fresh token.
#[derive(Clone)]
pub(super) struct RequestBody(Arc<Mutex<Tapped>>);

struct Tapped {
    body: BoxBody,
    /// What came so far; `None` once it is more than [`MAX_REPLAY`] or no replay can come.
    copy: Option<Vec<u8>>,
    octets: u64,
    /// Upstream got some of it.
    went_out: bool,
    taken_back: bool,
    ended: bool,
}

impl RequestBody {
    pub(super) fn new(body: BoxBody) -> Self {
        let ended = body.is_end_stream();
        let fits = body.size_hint().lower() <= MAX_REPLAY as u64;
        Self(Arc::new(Mutex::new(Tapped {
            body,
            copy: fits.then(Vec::new),
            octets: 0,
            went_out: false,
            taken_back: false,
            ended,
        })))
    }

    /// To be sent upstream, once.
    pub(super) fn lend(&self) -> BoxBody {
        Lent(self.clone()).boxed_unsync()
    }

    /// To be sent upstream, once, behind these octets in place of those that were read already.
    pub(super) fn lend_behind(&self, head: impl Into<Bytes>) -> BoxBody {
        Prefixed { head: head.into(), rest: Lent(self.clone()) }.boxed_unsync()
    }

    /// The next piece, for us; `None`: there is no more.
    pub(super) async fn piece(&self) -> Option<Result<Bytes, BoxError>> {
        self.next().await
    }

    /// Whether upstream got any of it.
    pub(super) fn went_out(&self) -> bool {
        self.lock().went_out
    }

    /// Its length, where the mail client announced it.
    pub(super) fn announced(&self) -> Option<u64> {
        self.lock().body.size_hint().exact()
    }

    /// How much of it came.
    pub(super) fn octets(&self) -> u64 {
        self.lock().octets
    }

    /// Whether all of it came.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// There will be no replay: the copy goes, and none is made any more.
    pub(super) fn forget_copy(&self) {
        self.lock().copy = None;
    }

    /// Takes it back from upstream and gives all of it, reading what is still to come; `None` where it is
    /// too long to be kept, or does not come in time.
    pub(super) async fn whole(&self) -> Option<Bytes> {
        self.lock().taken_back = true;
        let read = async {
            while self.lock().copy.is_some() && !self.has_ended() {
                self.next().await?.ok()?;
            }
            self.lock().copy.take().map(Bytes::from)
        };
        tokio::time::timeout(DRAIN_TIME, read).await.ok().flatten()
    }

    /// Takes it back and throws the rest away, so that the next request can be read; `false` where there is
    /// too much of it, or it comes too slowly.
    pub(super) async fn drain(&self) -> bool {
        self.forget_copy();
        self.lock().taken_back = true;
        let bound = self.octets().saturating_add(MAX_DRAIN);
        let read = async {
            while !self.has_ended() && self.octets() <= bound {
                match self.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break,
                }
            }
        };
        tokio::time::timeout(DRAIN_TIME, read).await.is_ok() && self.has_ended()
    }

    async fn next(&self) -> Option<Result<Bytes, BoxError>> {
        poll_fn(|cx| self.lock().poll_next(cx)).await
    }

    fn lock(&self) -> MutexGuard<'_, Tapped> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tapped {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                self.ended = true;
                return Poll::Ready(None);
            };
            // Trailers end here: nothing in EWS reads them, and they are a way around the header rules.
            let Ok(data) = frame?.into_data() else { continue };
            self.ended = self.body.is_end_stream();
            self.octets += data.len() as u64;
            match &mut self.copy {
                Some(copy) if copy.len() + data.len() <= MAX_REPLAY => copy.extend_from_slice(&data),
                copy => *copy = None,
            }
            return Poll::Ready(Some(Ok(data)));
        }
    }
}

/// The mail client's body while upstream reads it.
struct Lent(RequestBody);

impl Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut tapped = self.0.lock();
        if tapped.taken_back {
            return Poll::Ready(Some(Err("the request was taken back".into())));
        }
        let polled = tapped.poll_next(cx);
        tapped.went_out |= matches!(polled, Poll::Ready(Some(Ok(_))));
        polled.map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        let tapped = self.0.lock();
        tapped.ended && !tapped.taken_back
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}

/// Something of ours, then the rest of the mail client's body.
struct Prefixed {
    head: Bytes,
    rest: Lent,
}

impl Body for Prefixed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let head = std::mem::take(&mut self.head);
        if head.is_empty() {
            return Pin::new(&mut self.rest).poll_frame(cx);
        }
        let mut tapped = self.rest.0.lock();
        if tapped.taken_back {
            return Poll::Ready(Some(Err("the request was taken back".into())));
        }
        tapped.went_out = true;
        Poll::Ready(Some(Ok(Frame::data(head))))
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint();
        let head = self.head.len() as u64;
        let mut whole = SizeHint::new();
        whole.set_lower(rest.lower().saturating_add(head));
        if let Some(upper) = rest.upper() {
            whole.set_upper(upper.saturating_add(head));
        }
        whole
    }
}

/// Upstream's body on its way to the mail client. Dropping it drops upstream's at once, frees the seat and
/// writes the request's line in the log.
pub(super) struct ResponseBody {
    pub(super) body: BoxBody,
    pub(super) record: Record,
    pub(super) _seat: Seat,
    /// Keeps a connection up over which nothing moves for longer than `idle-timeout`.
    pub(super) _patience: Option<Patience>,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match polled {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let ended = self.body.is_end_stream();
                    self.record.down(data.len() as u64);
                    if ended {
                        self.record.complete();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => {
                    self.record.broke_off(&*error);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.record.complete();
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_was_taken_back_gives_upstream_nothing_more() {
        let body = RequestBody::new(text("<send-mail/>"));
        let mut lent = body.lend();
        assert_eq!(body.whole().await.unwrap(), "<send-mail/>");
        assert!(lent.frame().await.unwrap().is_err());
        assert!(!lent.is_end_stream());
    }

    #[tokio::test]
    async fn a_body_is_whole_only_while_its_copy_is_kept() {
        let body = RequestBody::new(text("<x/>"));
        assert_eq!(body.lend().frame().await.unwrap().unwrap().into_data().unwrap(), "<x/>");
        assert!(body.has_ended());
        body.forget_copy();
        assert_eq!(body.whole().await, None);
        assert_eq!(body.octets(), 4);
    }
}
