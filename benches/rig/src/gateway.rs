//! The mark of what hyper can do: a bare gateway for small EWS requests that reads each, opens TLS once and passes it on.
//!
//! It judges no password, writes no log and counts nothing: what is left is hyper twice, rustls and tokio.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper::header::CONNECTION;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

use crate::wire::{self, Io};

/// A connection upstream. Who waits for its answer drives it, so that it needs no task of its own.
type Upstream = (SendRequest<Full<Bytes>>, Connection<TokioIo<Box<dyn Io>>, Full<Bytes>>);

struct Gateway {
    upstream: u16,
    tls: TlsConnector,
    /// Never more than there are clients at once.
    idle: Mutex<Vec<Upstream>>,
}

/// Passes requests at `port` on to `upstream`, for ever.
pub async fn run(port: u16, upstream: u16, authority: &Path) -> Result<()> {
    let gateway =
        Arc::new(Gateway { upstream, tls: wire::tls_client(authority)?, idle: Mutex::new(Vec::new()) });
    let listener = wire::listen(port)?;
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        drop(near.set_nodelay(true));
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let service = service_fn(|request| gateway.answer(request));
            drop(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(near), service)
                    .await,
            );
        });
    }
}

impl Gateway {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let (mut head, body) = request.into_parts();
        head.headers.remove(CONNECTION);
        let request = Request::from_parts(head, Full::new(body.collect().await?.to_bytes()));
        let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut sender, mut connection) = match waiting {
            Some(waiting) => waiting,
            None => {
                let stream = wire::connect(self.upstream, Some(&self.tls)).await?;
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?
            }
        };
        let exchange = async {
            sender.ready().await?;
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok::<_, hyper::Error>(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
        };
        let answer = tokio::select! {
            biased;
            answer = exchange => answer?,
            ended = &mut connection => bail!("upstream closed: {ended:?}"),
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((sender, connection));
        Ok(answer)
    }
}
