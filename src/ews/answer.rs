//! Answers of our own: one line of plain text, the refusal's sentence, with the status that EWS clients act
//! on.

use std::time::Duration;

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};

use super::body;
use super::desk::BoxBody;
use crate::explain::Refusal;

/// The only challenge that is ever made (RFC 7617 §2.1). NTLM or Negotiate would be preferred, and fail.
const CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Basic realm="Mailkey", charset="UTF-8""#);

/// When to ask again where nobody knows, in seconds.
const SOON: u64 = 30;

/// What a refusal looks like in HTTP. Clients retry a 503 and prompt at a 401, so an outage is never a 401.
pub(super) fn refusal(why: &Refusal) -> Response<BoxBody> {
    let (status, retry_after) = match why {
        Refusal::BadCredentials | Refusal::PasswordExpired => (StatusCode::UNAUTHORIZED, None),
        Refusal::ContactAdmin(_) => (StatusCode::FORBIDDEN, None),
        Refusal::HeldBack { retry_after } => (StatusCode::SERVICE_UNAVAILABLE, Some(seconds(*retry_after))),
        Refusal::Unavailable { retry_after } => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(retry_after.map_or(SOON, seconds)))
        }
        Refusal::TooManySessions => (StatusCode::SERVICE_UNAVAILABLE, Some(1)),
    };
    let mut answer = plain(status, &why.sentence());
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
    }
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}

/// Asks for user name and password.
pub(super) fn challenge() -> Response<BoxBody> {
    let mut answer = plain(StatusCode::UNAUTHORIZED, "sign in with user name and password");
    answer.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
    answer
}

/// One line of plain text. Nothing that the mail client sent is ever repeated in it.
pub(super) fn plain(status: StatusCode, sentence: &str) -> Response<BoxBody> {
    let mut answer = Response::new(body::text(format!("{sentence}\n")));
    *answer.status_mut() = status;
    let fields: [(HeaderName, HeaderValue); 3] = [
        (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    answer.headers_mut().extend(fields);
    answer
}

/// A SOAP fault as Exchange words it, for what mail clients read the code of.
pub(super) fn fault(code: &'static str, sentence: &'static str, soap12: bool) -> Response<BoxBody> {
    const ERRORS: &str = "http://schemas.microsoft.com/exchange/services/2006/errors";
    const TYPES: &str = "http://schemas.microsoft.com/exchange/services/2006/types";
    let detail = format!(
        "<e:ResponseCode xmlns:e=\"{ERRORS}\">{code}</e:ResponseCode><e:Message xmlns:e=\"{ERRORS}\">{sentence}</e:Message>"
    );
    let (namespace, fault, media) = if soap12 {
        let fault = format!(
            "<s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value xmlns:a=\"{TYPES}\">a:{code}</s:Value></s:Subcode></s:Code>\
             <s:Reason><s:Text xml:lang=\"en-US\">{sentence}</s:Text></s:Reason><s:Detail>{detail}</s:Detail>"
        );
        ("http://www.w3.org/2003/05/soap-envelope", fault, "application/soap+xml; charset=utf-8")
    } else {
        let fault = format!(
            "<faultcode xmlns:a=\"{TYPES}\">a:{code}</faultcode><faultstring xml:lang=\"en-US\">{sentence}</faultstring>\
             <detail>{detail}</detail>"
        );
        ("http://schemas.xmlsoap.org/soap/envelope/", fault, "text/xml; charset=utf-8")
    };
    let envelope = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><s:Envelope xmlns:s=\"{namespace}\"><s:Body><s:Fault>{fault}</s:Fault></s:Body></s:Envelope>"
    );
    document(StatusCode::INTERNAL_SERVER_ERROR, media, envelope)
}

/// A document of our own making.
pub(super) fn document(status: StatusCode, media: &'static str, text: String) -> Response<BoxBody> {
    let mut answer = plain(status, "");
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    *answer.body_mut() = body::text(text);
    answer
}

/// The connection cannot be used for another request.
pub(super) fn and_close(mut answer: Response<BoxBody>) -> Response<BoxBody> {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::CauseKind;

    #[test]
    fn every_refusal_has_the_status_that_clients_act_on() {
        let minute = Duration::from_mins(1);
        for (why, status, retry_after) in [
            (Refusal::BadCredentials, 401, None),
            (Refusal::PasswordExpired, 401, None),
            (Refusal::HeldBack { retry_after: minute }, 503, Some("60")),
            (Refusal::contact_admin(CauseKind::MultiFactor), 403, None),
            (Refusal::Unavailable { retry_after: Some(Duration::from_millis(1500)) }, 503, Some("2")),
            (Refusal::Unavailable { retry_after: Some(Duration::ZERO) }, 503, Some("1")),
            (Refusal::Unavailable { retry_after: None }, 503, Some("30")),
            (Refusal::TooManySessions, 503, Some("1")),
        ] {
            let answer = refusal(&why);
            let header = |name| answer.headers().get(name).map(|v| v.to_str().unwrap());
            assert_eq!(answer.status().as_u16(), status, "{why:?}");
            assert_eq!(header(RETRY_AFTER), retry_after, "{why:?}");
            let challenge = (status == 401).then_some(r#"Basic realm="Mailkey", charset="UTF-8""#);
            assert_eq!(header(WWW_AUTHENTICATE), challenge, "{why:?}");
        }
    }
}
