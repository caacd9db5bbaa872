//! One request from head to answer: who is it, give it a token, send it on, mind what comes back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, HeaderName, LOCATION};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use tracing::Instrument as _;

use super::autodiscover::Answerer;
use super::basic::{self, Presented};
use super::body::{self, RequestBody, ResponseBody};
use super::desk::{BoxBody, Desk};
use super::error::{self, EwsError};
use super::headers::{self, Anchor, Redirect};
use super::impersonation::{Denied, Edit, May, Prologue};
use super::record::{Record, Totals};
use super::target::{Discovery, Place};
use super::wire::{Patience, WireState};
use super::{answer, autodiscover, description, impersonation, target};
use crate::clock;
use crate::config::model::{Account, Protocol};
use crate::explain::{Explain as _, Explanation};
use crate::seats::Seat;
use crate::secret::Credentials;
use crate::telemetry::traces::SPANS;
use crate::token::catalogue::Context;
use crate::token::request::{Granted, TokenRequest};

/// Whether a web page of ours sent it, another's, or no page at all: browsers say so (Fetch Metadata Request Headers).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

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
    /// What the token is for.
    protocol: Protocol,
}

impl SignIn {
    fn context(&self) -> Context<'_> {
        let application = &self.account.application;
        Context {
            user: &self.mailbox,
            application: &application.client_id,
            grant: application.grants.first().map_or("", |grant| grant.as_str()),
            ..Context::default()
        }
    }
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
    /// A refusal in an answer of its own.
    RefusedBy(Box<Explanation>, Box<Response<BoxBody>>),
    /// Nothing is wrong: the answer is ours.
    Answered(Box<Response<BoxBody>>),
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
    let activesync = caller.desk.listener.ews.activesync;
    let place = target::place(request.uri(), request.method(), activesync);
    let span = record.span();
    match serve(&caller, request, place, &body, &mut record).instrument(span).await {
        Ok((response, seat, patience)) => {
            record.relaying(response.status());
            if response.body().is_end_stream() {
                record.complete();
            }
            response
                .map(|body| ResponseBody { body, record, _seat: seat, _patience: patience }.boxed_unsync())
        }
        Err(stop) => {
            let (answer, keep) = stopped(stop, &mut record);
            let answer = match place {
                Some(Place::Autodiscover(_)) => autodiscover::mark(answer),
                _ => answer,
            };
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
        Stop::RefusedBy(why, answer) => {
            record.refused(*why, answer.status());
            (*answer, true)
        }
        Stop::Answered(answer) => {
            record.answered(answer.status());
            (*answer, true)
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
    place: Option<Place>,
    body: &RequestBody,
    record: &mut Record,
) -> Result<(Response<BoxBody>, Seat, Option<Patience>), Stop> {
    let desk = &caller.desk;
    let place = admit(caller, &request, place)?;
    if let Place::Autodiscover(language) = place {
        return Err(discover(caller, &request, language, body, record).await);
    }
    let who = identify(caller, &request, place.protocol(), record)?;
    let base = match place {
        Place::Description => Some(target::own_base(desk, request.headers()).ok_or(EwsError::UnknownHost)?),
        Place::Endpoint | Place::OtherEws | Place::ActiveSync | Place::Autodiscover(_) => None,
    };
    let app_only = judge(&who, &request, place, body)?;
    let granted = token(desk, &who).await?;
    record.granted(granted.origin);
    let limit = desk.limits.sessions_per_user;
    let seat = desk.seats.take(&who.mailbox).ok_or(EwsError::TooMany { limit })?;
    let patience = (place == Place::ActiveSync).then(|| caller.wire.be_patient());

    let uri = target::upstream(request.uri(), &desk.origin).ok_or(NOT_FOUND)?;
    let announced = body.announced();
    let acting = if app_only && *request.method() == Method::POST {
        Some(act_for(desk, &who, request.headers(), body).await?)
    } else {
        None
    };
    let (anchor, announced) = match &acting {
        Some(acting) => {
            (Anchor::Always(&acting.edit.mailbox), announced.map(|long| acting.edit.length(long)))
        }
        None if app_only => (Anchor::Always(&who.mailbox), announced),
        None => (Anchor::Default(&who.mailbox), announced),
    };
    let mut onward = Onward::new(request, uri, anchor, announced);
    if base.is_some() {
        description::ask_for_all_of_it(&mut onward.head.headers);
    }
    let lent = match &acting {
        Some(acting) => body.lend_behind(acting.edit.apply(&acting.read)),
        None => body.lend(),
    };
    let mut response = send(desk, onward.build(lent), &granted, body).await?;
    if response.status() == StatusCode::UNAUTHORIZED {
        let diagnostics = headers::diagnostics(response.headers());
        drop(response);
        record.token_refused(&diagnostics);
        desk.tokens.refused_upstream(&ask(desk, &who), &granted.token);
        let edit = acting.as_ref().map(|acting| &acting.edit);
        response = once_more(desk, &who, &onward, (body, edit), record, diagnostics).await?;
    }
    body.forget_copy();
    let response = for_mail_client(desk, &who, response, record)?;
    let response = match base {
        Some(base) if response.status() == StatusCode::OK => {
            let limit = desk.limits.login_timeout;
            let rewritten = tokio::time::timeout(limit, description::rewrite(response, &base)).await;
            rewritten.ok().flatten().ok_or_else(|| unusable(&EwsError::Description))?
        }
        _ => response,
    };
    Ok((response, seat, patience))
}

const NOT_FOUND: Stop =
    Stop::TurnedAway(StatusCode::NOT_FOUND, "only /EWS/ is served here", "nothing that is served here");

/// Checks that need no user: framing, host, path.
fn admit(caller: &Caller, request: &Request<()>, place: Option<Place>) -> Result<Place, Stop> {
    if caller.wire.is_ambiguous() {
        return Err(Stop::HungUp("its length can be read in two ways"));
    }
    if !target::names_its_host(request) {
        return Err(Stop::HungUp("not exactly one host"));
    }
    let site = request.headers().get(SEC_FETCH_SITE);
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(EwsError::WebPage.into());
    }
    place.ok_or(NOT_FOUND)
}

/// Who sends this, and which account that is.
fn identify(
    caller: &Caller,
    request: &Request<()>,
    protocol: Protocol,
    record: &mut Record,
) -> Result<SignIn, Stop> {
    let desk = &caller.desk;
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
    let mailbox = account.mailbox_for(&credentials.user, protocol);
    record.user(&credentials.user, &mailbox);
    Ok(SignIn { credentials, source: caller.peer.ip(), account, mailbox, protocol })
}

/// Whether the account's token is the application's own. Such a token opens every mailbox of the tenant, so it goes
/// only where the mailbox it acts on can be seen and set.
fn judge(who: &SignIn, request: &Request<()>, place: Place, body: &RequestBody) -> Result<bool, EwsError> {
    let application = &who.account.application;
    if !application.is_app_only() {
        let mixed = application.grants.iter().any(|grant| grant.is_app_only());
        return if mixed { Err(EwsError::MixedGrants) } else { Ok(false) };
    }
    if place == Place::ActiveSync {
        return Err(EwsError::AppOnlyActiveSync);
    }
    if !impersonation::is_address(&who.mailbox) {
        return Err(EwsError::NoAddress { mailbox: who.mailbox.clone() });
    }
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) && body.has_ended();
    match place {
        Place::Endpoint if reads || *request.method() == Method::POST => Ok(true),
        Place::Description if reads => Ok(true),
        Place::Endpoint
        | Place::Description
        | Place::OtherEws
        | Place::ActiveSync
        | Place::Autodiscover(_) => Err(EwsError::AppOnlyPath),
    }
}

/// A request whose prologue was read, and who it acts for.
struct Acting {
    edit: Edit,
    /// What was read of it.
    read: Vec<u8>,
}

/// Reads the prologue and decides for whom the application's token acts.
async fn act_for(
    desk: &Desk,
    who: &SignIn,
    headers: &http::HeaderMap,
    body: &RequestBody,
) -> Result<Acting, Stop> {
    impersonation::is_plain_soap(headers).map_err(denied)?;
    let may = May { own: &who.mailbox, others: &who.account.ews_mailboxes };
    let mut prologue = Prologue::default();
    let read = async {
        loop {
            let piece = match body.piece().await {
                Some(Ok(piece)) => piece,
                Some(Err(_)) => return Err(Stop::HungUp("it broke off")),
                None => Bytes::new(),
            };
            if let Some(edit) = prologue.feed(&piece, body.has_ended(), &may).map_err(denied)? {
                return Ok(edit);
            }
        }
    };
    let edit = tokio::time::timeout(desk.limits.login_timeout, read)
        .await
        .map_err(|_| Stop::HungUp("its SOAP header did not come in time"))??;
    Ok(Acting { edit, read: prologue.into_bytes() })
}

fn denied(why: Denied) -> Stop {
    let (story, answer) = match why {
        Denied::Unreadable(why) => {
            let sentence = "the SOAP request cannot be read";
            (EwsError::Soap { why }, answer::plain(StatusCode::BAD_REQUEST, sentence))
        }
        Denied::Encoding(why) => {
            let sentence = "send SOAP in UTF-8, not compressed";
            (EwsError::Soap { why }, answer::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence))
        }
        Denied::Forbidden { why, soap12 } => {
            let sentence = "The account does not have permission to impersonate the requested user.";
            let fault = answer::fault("ErrorImpersonateUserDenied", sentence, soap12);
            (EwsError::Impersonation { why }, fault)
        }
    };
    Stop::RefusedBy(Box::new(story.explain()), Box::new(answer))
}

/// Answers autodiscover, by what is known here.
async fn discover(
    caller: &Caller,
    request: &Request<()>,
    language: Discovery,
    body: &RequestBody,
    record: &mut Record,
) -> Stop {
    let desk = &caller.desk;
    let Some(base) = target::own_base(desk, request.headers()) else { return EwsError::UnknownHost.into() };
    let activesync = desk.listener.ews.activesync;
    if language == Discovery::Json {
        let answerer = Answerer { base: &base, mailbox: "", activesync };
        return Stop::Answered(Box::new(answerer.json(request.uri())));
    }
    let who = match identify(caller, request, Protocol::Ews, record) {
        Ok(who) => who,
        Err(stop) => return stop,
    };
    match token(desk, &who).await {
        Ok(granted) => record.granted(granted.origin),
        Err(why) => return why.into(),
    }
    let answerer = Answerer { base: &base, mailbox: &who.mailbox, activesync };
    let answer = answerer.xml(language, request.method(), body);
    match tokio::time::timeout(desk.limits.login_timeout, answer).await {
        Ok(Some(answer)) => Stop::Answered(Box::new(answer)),
        Ok(None) | Err(_) => Stop::TurnedAway(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the question is too long",
            "a question of autodiscover that is too long, or does not come",
        ),
    }
}

async fn token(desk: &Desk, who: &SignIn) -> Result<Granted, Explanation> {
    let after = desk.limits.login_timeout;
    let asked = ask(desk, who);
    let deadline = asked.deadline;
    let granting = desk.tokens.token(&asked).instrument(tracing::info_span!(target: SPANS, "token"));
    match tokio::time::timeout_at(deadline, granting).await {
        Ok(granted) => granted,
        Err(_) => Err(EwsError::LoginTimedOut { after }.explain()),
    }
}

fn ask<'a>(desk: &Desk, who: &'a SignIn) -> TokenRequest<'a> {
    TokenRequest {
        account: &who.account,
        protocol: who.protocol,
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
    fn new(request: Request<()>, uri: Uri, anchor: Anchor<'_>, announced: Option<u64>) -> Self {
        let mut head = request.into_parts().0;
        let framed = head.headers.contains_key(CONTENT_LENGTH);
        head.uri = uri;
        head.version = http::Version::HTTP_11;
        head.extensions.clear();
        headers::for_upstream(&mut head.headers, anchor);
        // A POST without a length is `411` to IIS, even where it is empty.
        let bodied = head.method != Method::GET && head.method != Method::HEAD;
        if let Some(length) = announced.filter(|length| *length > 0 || framed || bodied) {
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
    let sending = desk.sender.send(request, granted.token.clone());
    sending.instrument(tracing::info_span!(target: SPANS, "exchange")).await.map_err(|why| {
        if body.went_out() {
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
    (body, edit): (&RequestBody, Option<&Edit>),
    record: &mut Record,
    diagnostics: String,
) -> Result<Response<BoxBody>, Stop> {
    let Some(whole) = body.whole().await else { return Err(EwsError::RefusedOnce { diagnostics }.into()) };
    let granted = token(desk, who).await?;
    record.granted(granted.origin);
    let whole = edit.map_or(whole.clone(), |edit| edit.apply(&whole).into());
    let response = send(desk, onward.rebuild(whole), &granted, body).await?;
    if response.status() == StatusCode::UNAUTHORIZED {
        let diagnostics = headers::diagnostics(response.headers());
        desk.tokens.refused_upstream(&ask(desk, who), &granted.token);
        return Err(error::token_refused(&diagnostics, &who.context()).into());
    }
    Ok(response)
}

fn unusable(error: &EwsError) -> Stop {
    Stop::BadGateway(Box::new(error.explain()), "the mail service gave an answer that cannot be passed on")
}

/// Makes upstream's answer fit for the mail client.
fn for_mail_client(
    desk: &Desk,
    who: &SignIn,
    response: Response<BoxBody>,
    record: &Record,
) -> Result<Response<BoxBody>, Stop> {
    let (mut head, body) = response.into_parts();
    if head.status.is_informational() {
        return Err(unusable(&EwsError::NoAnswer { status: head.status.as_u16() }));
    }
    if head.status == StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS && head.headers.contains_key("x-ms-location")
    {
        // ActiveSync's way to say that the mailbox is elsewhere (MS-ASHTTP §2.2.2.1.1.6); only we could follow.
        return Err(unusable(&EwsError::Redirected));
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
        record.warn(&if wordless {
            error::switched_off(who.protocol, &who.context())
        } else {
            EwsError::Forbidden.explain()
        });
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
