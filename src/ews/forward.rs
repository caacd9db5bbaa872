//! One request from head to answer: who is it, give it a token, send it on, mind what comes back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, LOCATION};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::ext::ReasonPhrase;

use super::basic::{self, Presented};
use super::body::{self, RequestBody, ResponseBody};
use super::desk::{BoxBody, Desk};
use super::error::EwsError;
use super::headers::{self, Redirect};
use super::record::{Record, Totals};
use super::wire::WireState;
use super::{answer, target};
use crate::clock;
use crate::config::model::{Account, Grant, Protocol};
use crate::explain::{Explain as _, Explanation};
use crate::seats::Seat;
use crate::secret::Credentials;
use crate::token::request::{Granted, TokenRequest};

/// What the requests of one connection share.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) desk: Arc<Desk>,
    pub(super) peer: SocketAddr,
    pub(super) wire: Arc<WireState>,
    pub(super) totals: Arc<Totals>,
}

/// Somebody whose name and password could be read, and where they lead.
struct SignIn {
    credentials: Credentials,
    source: IpAddr,
    account: Arc<Account>,
    mailbox: String,
}

/// Why a request goes no further.
enum Stop {
    /// Nobody signed in; the reason is for a debug log.
    Unknown(&'static str),
    /// There is nothing to sign in to: status, sentence, and the reason for a debug log.
    TurnedAway(StatusCode, &'static str, &'static str),
    /// The request cannot be read, and nothing behind it on this connection can be trusted.
    HungUp(&'static str),
    /// A refusal.
    Refused(Box<Explanation>),
    /// It went upstream, and nothing came back that can be passed on: the sentence says in what way.
    BadGateway(Box<Explanation>, &'static str),
}

impl From<EwsError> for Stop {
    fn from(error: EwsError) -> Self {
        Self::Refused(Box::new(error.explain()))
    }
}

impl From<Explanation> for Stop {
    fn from(why: Explanation) -> Self {
        Self::Refused(Box::new(why))
    }
}

/// Answers one request. It never fails: every failure is an answer.
pub(super) async fn request(caller: Caller, request: Request<Incoming>) -> Response<BoxBody> {
    let (parts, incoming) = request.into_parts();
    let body = RequestBody::new(incoming.map_err(Into::into).boxed_unsync());
    let waits = parts.headers.contains_key(EXPECT);
    let request = Request::from_parts(parts, ());
    let mut record = Record::new(
        Arc::clone(&caller.desk),
        Arc::clone(&caller.totals),
        caller.peer,
        &request,
        body.clone(),
    );
    match serve(&caller, request, &body, &mut record).await {
        Ok((response, seat)) => {
            record.relaying(response.status());
            if response.body().is_end_stream() {
                record.complete();
            }
            response.map(|body| ResponseBody { body, record, _seat: seat }.boxed_unsync())
        }
        Err(stop) => {
            let (answer, keep) = stopped(stop, &mut record);
            // Who waits for `100 Continue` has not sent the body, and reading it would ask for it.
            let read = if waits { body.has_ended() } else { keep && body.drain().await };
            if keep && read { answer } else { answer::and_close(answer) }
        }
    }
}

/// The answer to a request that goes no further, and whether the connection may be used again.
fn stopped(stop: Stop, record: &mut Record) -> (Response<BoxBody>, bool) {
    match stop {
        Stop::Unknown(why) => {
            let answer = answer::challenge();
            record.turned_away(why, answer.status());
            (answer, true)
        }
        Stop::TurnedAway(status, sentence, why) => {
            record.turned_away(why, status);
            (answer::plain(status, sentence), true)
        }
        Stop::HungUp(why) => {
            record.turned_away(why, StatusCode::BAD_REQUEST);
            (answer::plain(StatusCode::BAD_REQUEST, "the request cannot be read in one way only"), false)
        }
        Stop::Refused(why) => {
            let answer = answer::refusal(&why.refusal);
            record.refused(*why, answer.status());
            (answer, true)
        }
        Stop::BadGateway(why, sentence) => {
            // Not a 503: that would ask the client to send again what may have been carried out.
            let answer = answer::plain(StatusCode::BAD_GATEWAY, sentence);
            record.refused(*why, answer.status());
            (answer, true)
        }
    }
}

async fn serve(
    caller: &Caller,
    request: Request<()>,
    body: &RequestBody,
    record: &mut Record,
) -> Result<(Response<BoxBody>, Seat), Stop> {
    let desk = &caller.desk;
    let uri = admit(caller, &request)?;
    let who = identify(desk, caller.peer.ip(), &request, record)?;
    let granted = token(desk, &who).await?;
    record.granted(granted.origin);
    let limit = desk.limits.sessions_per_user;
    let seat = desk.seats.take(&who.mailbox).ok_or(EwsError::TooMany { limit })?;

    let onward = Onward::new(request, uri, &who.mailbox, body);
    let mut response = send(desk, onward.build(body.lend()), &granted, body).await?;
    if response.status() == StatusCode::UNAUTHORIZED {
        let diagnostics = headers::diagnostics(response.headers());
        drop(response);
        record.token_refused(&diagnostics);
        desk.tokens.refused_upstream(&ask(desk, &who), &granted.token);
        response = once_more(desk, &who, &onward, body, record, diagnostics).await?;
    }
    body.forget_copy();
    Ok((for_mail_client(desk, response, record)?, seat))
}

/// Checks that need no user: framing, host, path.
fn admit(caller: &Caller, request: &Request<()>) -> Result<Uri, Stop> {
    if caller.wire.is_ambiguous() {
        return Err(Stop::HungUp("its length can be read in two ways"));
    }
    if !target::names_its_host(request) {
        return Err(Stop::HungUp("not exactly one host"));
    }
    target::upstream(request.uri(), request.method(), &caller.desk.origin).ok_or(Stop::TurnedAway(
        StatusCode::NOT_FOUND,
        "only /EWS/ is served here",
        "not below /EWS/",
    ))
}

/// Who sends this, and which account that is.
fn identify(desk: &Desk, source: IpAddr, request: &Request<()>, record: &mut Record) -> Result<SignIn, Stop> {
    let foreign =
        request.headers().get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    if foreign {
        return Err(EwsError::WebPage.into());
    }
    let credentials = match basic::presented(request.headers()) {
        Presented::Basic(credentials) => credentials,
        Presented::Nothing => return Err(Stop::Unknown("not signed in")),
        Presented::OtherScheme => return Err(Stop::Unknown("another scheme than Basic")),
        Presented::Unusable(why) => return Err(EwsError::BadAuthorization { why }.into()),
        Presented::Ambiguous => {
            let sentence = "more than one Authorization header";
            return Err(Stop::TurnedAway(StatusCode::BAD_REQUEST, sentence, "authorized twice"));
        }
    };
    record.user(&credentials.user, "");
    let account = Arc::clone(desk.listener.account(&credentials.user).ok_or(EwsError::NotServed)?);
    let mailbox = account.mailbox_for(&credentials.user, Protocol::Ews);
    record.user(&credentials.user, &mailbox);
    // Such a token opens whatever mailbox the SOAP header `ExchangeImpersonation` names.
    let app_only = |grant: &Grant| matches!(grant, Grant::ClientCredentials | Grant::ManagedIdentity);
    if account.application.grants.iter().any(app_only) {
        return Err(EwsError::AppOnly.into());
    }
    Ok(SignIn { credentials, source, account, mailbox })
}

async fn token(desk: &Desk, who: &SignIn) -> Result<Granted, Explanation> {
    let after = desk.limits.login_timeout;
    let asked = ask(desk, who);
    let deadline = asked.deadline;
    match tokio::time::timeout_at(deadline, desk.tokens.token(&asked)).await {
        Ok(granted) => granted,
        Err(_) => Err(EwsError::LoginTimedOut { after }.explain()),
    }
}

fn ask<'a>(desk: &Desk, who: &'a SignIn) -> TokenRequest<'a> {
    TokenRequest {
        account: &who.account,
        protocol: Protocol::Ews,
        credentials: &who.credentials,
        source: who.source,
        deadline: clock::now() + desk.limits.login_timeout,
    }
}

/// A request head that is ready to go upstream, as often as it has to.
struct Onward {
    head: http::request::Parts,
}

impl Onward {
    fn new(request: Request<()>, uri: Uri, mailbox: &str, body: &RequestBody) -> Self {
        let mut head = request.into_parts().0;
        let framed = head.headers.contains_key(CONTENT_LENGTH);
        head.uri = uri;
        head.version = http::Version::HTTP_11;
        head.extensions.clear();
        headers::for_upstream(&mut head.headers, mailbox);
        // A POST without a length is `411` to IIS, even where it is empty.
        let bodied = head.method != Method::GET && head.method != Method::HEAD;
        if let Some(length) = body.announced().filter(|length| *length > 0 || framed || bodied) {
            head.headers.insert(CONTENT_LENGTH, length.into());
        }
        Self { head }
    }

    fn build(&self, body: BoxBody) -> Request<BoxBody> {
        Request::from_parts(self.head.clone(), body)
    }

    fn rebuild(&self, body: Bytes) -> Request<BoxBody> {
        let mut request = self.build(body::empty());
        if !body.is_empty() {
            request.headers_mut().insert(CONTENT_LENGTH, (body.len() as u64).into());
            *request.body_mut() = body::text(body);
        }
        request
    }
}

/// Sends once. What broke after a part of the body had gone out may have been carried out.
async fn send(
    desk: &Desk,
    request: Request<BoxBody>,
    granted: &Granted,
    body: &RequestBody,
) -> Result<Response<BoxBody>, Stop> {
    desk.sender.send(request, granted.token.clone()).await.map_err(|why| {
        if body.octets() > 0 {
            Stop::BadGateway(Box::new(why), "the mail service broke off before it answered")
        } else {
            why.into()
        }
    })
}

/// Upstream refused the token: sends the same again with a fresh one, exactly once, if all of the body is
/// at hand.
async fn once_more(
    desk: &Desk,
    who: &SignIn,
    onward: &Onward,
    body: &RequestBody,
    record: &mut Record,
    diagnostics: String,
) -> Result<Response<BoxBody>, Stop> {
    let Some(whole) = body.whole().await else { return Err(EwsError::RefusedOnce { diagnostics }.into()) };
    let granted = token(desk, who).await?;
    record.granted(granted.origin);
    let response = send(desk, onward.rebuild(whole), &granted, body).await?;
    if response.status() == StatusCode::UNAUTHORIZED {
        let diagnostics = headers::diagnostics(response.headers());
        desk.tokens.refused_upstream(&ask(desk, who), &granted.token);
        return Err(EwsError::RefusedTwice { diagnostics }.into());
    }
    Ok(response)
}

fn unusable(error: &EwsError) -> Stop {
    Stop::BadGateway(Box::new(error.explain()), "the mail service gave an answer that cannot be passed on")
}

/// Makes upstream's answer fit for the mail client.
fn for_mail_client(
    desk: &Desk,
    response: Response<BoxBody>,
    record: &Record,
) -> Result<Response<BoxBody>, Stop> {
    let (mut head, body) = response.into_parts();
    if head.status.is_informational() {
        return Err(unusable(&EwsError::NoAnswer { status: head.status.as_u16() }));
    }
    match headers::redirect(&head.headers, &desk.origin) {
        Redirect::None => {}
        Redirect::Here(location) => {
            head.headers.insert(LOCATION, location);
        }
        Redirect::Elsewhere if head.status.is_redirection() => {
            return Err(unusable(&EwsError::Redirected));
        }
        Redirect::Elsewhere => {
            head.headers.remove(LOCATION);
        }
    }
    if head.status == StatusCode::FORBIDDEN {
        let wordless = body.is_end_stream() || head.headers.contains_key("restrict-access-confirm");
        record.warn(&if wordless { EwsError::Disabled } else { EwsError::Forbidden }.explain());
    }
    let reason = head.extensions.remove::<ReasonPhrase>();
    head.extensions.clear();
    if head.status == StatusCode::TOO_MANY_REQUESTS {
        // EWS clients know 503 and its Retry-After; hardly one knows 429.
        head.status = StatusCode::SERVICE_UNAVAILABLE;
    } else if let Some(reason) = reason {
        // Java and .NET read the unlock page of a locked account out of the reason of a 456.
        head.extensions.insert(reason);
    }
    headers::for_mail_client(&mut head.headers, desk.plain);
    head.version = http::Version::HTTP_11;
    Ok(Response::from_parts(head, body))
}
