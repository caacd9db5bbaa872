//! HTTP/1.1 over TLS to EWS, through the same dialler as mail. The token is written here, past the proof.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::{Body, Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use super::connector::Connector;
use super::error::UpstreamError;
use crate::secret::{AccessToken, Encrypted};
use crate::stream::BoxIo;

/// How long an idle connection is kept: Exchange Online closes after two minutes.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// Idle connections kept per origin.
const IDLE_CONNECTIONS: usize = 64;

/// A pool of TLS connections to HTTP origins, for bodies of kind `B`. Cheap to clone.
#[derive(Debug)]
pub struct HttpsClient<B> {
    client: Client<TlsDialler, B>,
}

impl<B> Clone for HttpsClient<B> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone() }
    }
}

impl<B> HttpsClient<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// A pool that dials by this connector.
    pub fn new(connector: Arc<Connector>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            // only where hyper hands the request back unwritten: a POST sent twice is a mail sent twice
            .retry_canceled_requests(true)
            .set_host(false)
            .build(TlsDialler { connector });
        Self { client }
    }

    /// Sends a request whose URI is absolute (`https://…`); puts `Authorization: Bearer` and `Host` in itself.
    /// The body is streamed. A request is never sent twice.
    ///
    /// # Errors
    /// Upstream could not be reached, or broke off before its response head.
    pub async fn send(
        &self,
        mut request: Request<B>,
        token: &AccessToken,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let origin = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let broken = |why: &str| UpstreamError::Broken { target: origin.clone(), why: why.to_owned() };
        if request.uri().scheme_str() != Some("https") {
            return Err(broken("a token goes to https:// only"));
        }
        let host = HeaderValue::from_str(&origin).map_err(|_| broken("the host makes no header"))?;
        request.headers_mut().insert(HOST, host);
        request
            .headers_mut()
            .insert(AUTHORIZATION, bearer(token).ok_or_else(|| broken("the token makes no header"))?);
        self.client.request(request).await.map_err(|error| {
            let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            let mut words = error.to_string();
            while let Some(inner) = source {
                if let Some(own) = inner.downcast_ref::<UpstreamError>() {
                    return own.clone();
                }
                words = inner.to_string();
                source = inner.source();
            }
            broken(&words)
        })
    }
}

/// Every connection of this pool is made by [`TlsDialler`], which gives none without TLS.
fn bearer(token: &AccessToken) -> Option<HeaderValue> {
    let proof = Encrypted::by_https_pool();
    let text = ["Bearer ", token.for_wire(&proof)].concat();
    // taken over, not copied
    let mut value = HeaderValue::from_maybe_shared(Bytes::from(text)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Dials, tunnels and encrypts; there is no way through it without TLS.
#[derive(Clone, Debug)]
struct TlsDialler {
    connector: Arc<Connector>,
}

impl Service<Uri> for TlsDialler {
    type Response = TokioIo<Pooled>;
    type Error = UpstreamError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = Arc::clone(&self.connector);
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri.port_u16().unwrap_or(443);
            let (io, _proof) = connector.open_https(&host, port).await?;
            Ok(TokioIo::new(Pooled(io)))
        })
    }
}

/// A stream that hyper's pool takes.
struct Pooled(BoxIo);

impl Connection for Pooled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Pooled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pooled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
