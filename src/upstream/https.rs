//! HTTP/1.1 over TLS to EWS, through the same dialler as mail. The token is written here, past the proof.

use http::{Request, Response};
use hyper::body::{Body, Bytes, Incoming};

use super::error::UpstreamError;
use crate::secret::AccessToken;

/// A pool of TLS connections to HTTP origins. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpsClient;

impl HttpsClient {
    /// Sends a request whose URI is absolute (`https://…`); puts `Authorization: Bearer` and `Host` in itself.
    /// The body is streamed. A request is never sent twice.
    ///
    /// # Errors
    /// Upstream could not be reached, or broke off before its response head.
    pub async fn send<B>(
        &self,
        _request: Request<B>,
        _token: &AccessToken,
    ) -> Result<Response<Incoming>, UpstreamError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        std::future::ready(Err(UpstreamError::NotYet)).await
    }
}
