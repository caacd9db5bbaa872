//! An answer of the admin pages, with the header fields that every one of them carries.

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;

/// Nothing is loaded but our own style sheet, nothing runs, nothing is sent anywhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Status, media type and body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) media_type: &'static str,
    pub(super) body: String,
}

impl Reply {
    /// One line of plain text.
    pub(super) fn text(status: StatusCode, line: &str) -> Self {
        Self { status, media_type: "text/plain; charset=utf-8", body: format!("{line}\n") }
    }

    /// With what keeps browsers from keeping, framing, guessing or telling others about it.
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let fields: [(HeaderName, &'static str); 6] = [
            (CONTENT_TYPE, self.media_type),
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (CONTENT_SECURITY_POLICY, POLICY),
        ];
        let headers = response.headers_mut();
        headers.extend(fields.map(|(name, value)| (name, HeaderValue::from_static(value))));
        if self.status == StatusCode::BAD_REQUEST {
            // what follows cannot be trusted to be a request
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}
