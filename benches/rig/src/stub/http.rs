//! EWS and the token endpoint over HTTP/1.1. An EWS answer is as long as the number in `ItemId Id="…"` says.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::House;
use crate::wire::Io;

type Answer = Either<Full<Bytes>, Stream>;

/// A chunked answer: so many octets, 64 KiB at a time, of a text that exists once.
pub(super) struct Stream {
    text: Bytes,
    left: u64,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let next = usize::try_from(this.left.min(64 * 1024)).unwrap_or_default();
        this.left -= next as u64;
        Poll::Ready((next > 0).then(|| Ok(Frame::data(this.text.slice(..next)))))
    }
}

pub(super) async fn serve(house: Arc<House>, stream: Box<dyn Io>) -> Result<()> {
    let service = service_fn(move |request| {
        let house = Arc::clone(&house);
        async move { answer(&house, request).await }
    });
    Ok(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?)
}

async fn answer(house: &House, request: Request<Incoming>) -> Result<Response<Answer>> {
    let token = request.uri().path().ends_with("/token");
    let body = request.into_body().collect().await?.to_bytes();
    if token {
        let number = house.counted.tokens.fetch_add(1, Ordering::Relaxed);
        let text = format!(
            "{{\"token_type\":\"Bearer\",\"expires_in\":3599,\"access_token\":\"{number:04}{}\"}}",
            "t".repeat(1600)
        );
        return Ok(Response::builder()
            .header("Content-Type", "application/json")
            .body(Either::Left(Full::from(text)))?);
    }
    house.counted.ews.fetch_add(1, Ordering::Relaxed);
    let size: u64 = memchr::memmem::find(&body, b"ItemId Id=\"")
        .map(|at| &body[at + 11..])
        .and_then(|rest| std::str::from_utf8(&rest[..memchr::memchr(b'"', rest)?]).ok()?.parse().ok())
        .unwrap_or(2048);
    let answer = Response::builder().header("Content-Type", "text/xml; charset=utf-8");
    Ok(if size <= 64 * 1024 {
        answer.body(Either::Left(Full::from(house.mebibyte.slice(..usize::try_from(size)?))))?
    } else {
        answer.body(Either::Right(Stream { text: house.mebibyte.clone(), left: size }))?
    })
}
