//! Exchange Web Services' HTTP face: Bearer only, impersonation, cookies, and bodies that are streamed.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    admission::{self, Denied},
    http::{self as web, Answer, Piped},
    item::Stretch,
    journal::{Event, EwsRequest, Service},
    listen::Job,
    mischief::{EwsFault, hang},
    office::Office,
    random, soap,
    streaming::Stream,
    tenant::Condition,
    tokens::Bearer,
    xml::Element,
};

const XML: &str = "text/xml; charset=utf-8";
/// Requests at once by one mailbox.
const CONCURRENCY: usize = 27;
/// Octets of a request that is refused: read and thrown away, so that the connection lives on.
const DRAIN: usize = 1024 * 1024;

/// Serves one connection until it ends.
pub(super) async fn serve(
    office: Arc<Office>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> io::Result<()> {
    web::serve(office, stream, |office, request| Box::pin(async move { handle(&office, request).await }))
        .await
}

async fn handle(office: &Arc<Office>, request: Request<Incoming>) -> io::Result<Answer> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let scheme = text("authorization").unwrap_or_default();
    let mut record = EwsRequest {
        method: request.method().to_string(),
        path: request.uri().to_string(),
        headers: headers.keys().map(|name| name.as_str().to_owned()).collect(),
        had_basic: scheme.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic")),
        anchor: text("x-anchormailbox"),
        user_agent: text("user-agent"),
        operation: None,
        status: 0,
    };
    let answer = respond(office, request, &mut record).await;
    record.status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
    office.journal.write(Event::Ews(record));
    answer.map(|mut answer| {
        web::set(&mut answer, "request-id", &random::guid());
        web::set(&mut answer, "X-CalculatedBETarget", "am0pr01mb0042.eurprd01.prod.exchangelabs.com");
        web::set(&mut answer, "X-FEServer", "AM0PR01CA0042");
        answer
    })
}

async fn respond(
    office: &Arc<Office>,
    request: Request<Incoming>,
    record: &mut EwsRequest,
) -> io::Result<Answer> {
    let path = request.uri().path().to_lowercase();
    let activesync = path == "/microsoft-server-activesync";
    if !activesync && !matches!(path.as_str(), "/ews/exchange.asmx" | "/ews/services.wsdl") {
        return Ok(web::answer(404, "text/html", "<html><body>Not found</body></html>"));
    }
    if let Some(answer) = misbehave(office).await? {
        web::collect(request.into_body(), DRAIN).await?;
        return Ok(answer);
    }
    let bearer = match sign_in(office, request.headers(), activesync) {
        Ok(bearer) => bearer,
        Err(diagnostics) => {
            web::collect(request.into_body(), DRAIN).await?;
            return Ok(unauthorized(diagnostics));
        }
    };
    if activesync {
        return echo(request).await;
    }
    if office.tenant.app(&bearer.client_id).is_none_or(|app| !app.ews_allowed) {
        web::collect(request.into_body(), DRAIN).await?;
        return Ok(forbidden());
    }
    if path == "/ews/services.wsdl" {
        return Ok(web::answer(200, "text/xml", WSDL));
    }
    if request.method() != Method::POST {
        let page = "<html><body><h1>Service</h1><p>You have created a service.</p></body></html>";
        return Ok(web::answer(200, "text/html", page));
    }
    let limit = office.settings.message_limit.saturating_mul(2);
    let Some(body) = web::collect(request.into_body(), limit).await? else {
        return Ok(web::empty(413));
    };
    let Some(soap) = std::str::from_utf8(&body).ok().and_then(Element::parse) else {
        return Ok(fault("ErrorSchemaValidation", "The request failed schema validation."));
    };
    drop(body);
    let Some(operation) = soap.child("Body").and_then(|body| body.children.first()) else {
        return Ok(fault("ErrorSchemaValidation", "The request failed schema validation."));
    };
    record.operation = Some(operation.name.clone());
    let mailbox = match mailbox_of(&bearer, &soap) {
        Ok(mailbox) => mailbox,
        Err(answer) => return Ok(*answer),
    };
    if !office.tenant.has_mailbox(&mailbox) {
        return Ok(fault("ErrorNonExistentMailbox", "The SMTP address has no mailbox associated with it."));
    }
    if office.tenant.has(&mailbox, Condition::EwsDisabled) {
        return Ok(forbidden());
    }
    let Some(place) = office.enter(Service::Ews, &mailbox, CONCURRENCY) else {
        return Ok(server_busy());
    };
    let answer = perform(office, &bearer, &mailbox, operation);
    drop(place);
    Ok(answer)
}

/// ActiveSync, as far as a proxy can tell it from the real one: it says its versions, and gives back what it got.
async fn echo(request: Request<Incoming>) -> io::Result<Answer> {
    let mut answer = if request.method() == Method::OPTIONS {
        web::empty(200)
    } else {
        let Some(body) = web::collect(request.into_body(), DRAIN).await? else {
            return Ok(web::empty(413));
        };
        web::answer(200, "application/vnd.ms-sync.wbxml", body)
    };
    web::set(&mut answer, "MS-ASProtocolVersions", "14.1,16.0,16.1");
    web::set(&mut answer, "MS-Server-ActiveSync", "15.20");
    Ok(answer)
}

const WSDL: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><wsdl:definitions xmlns:wsdl=\"http://schemas.xmlsoap.org/wsdl/\" xmlns:soap=\"http://schemas.xmlsoap.org/wsdl/soap/\" targetNamespace=\"http://schemas.microsoft.com/exchange/services/2006/messages\"><wsdl:service name=\"ExchangeServices\"><wsdl:port name=\"ExchangeServicePort\"><soap:address location=\"https://outlook.office365.com/EWS/Exchange.asmx\"/></wsdl:port></wsdl:service></wsdl:definitions>";

fn perform(office: &Arc<Office>, bearer: &Bearer, mailbox: &str, operation: &Element) -> Answer {
    if operation.name == "GetStreamingEvents" {
        let Some(stream) = Stream::read(&office.subscriptions, operation) else {
            return fault("ErrorSubscriptionNotFound", "The subscription was not found.");
        };
        let (sender, piped) = Piped::new();
        let end = office.end.clone();
        let job: Job = Box::pin(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = stream.run(sender) => {}
            }
        });
        tokio::spawn(job);
        return piped.answer(XML);
    }
    let call = soap::Call { office, mailbox: office.post.open(mailbox), user: bearer.user.clone() };
    match soap::perform(&call, operation) {
        Some(stretches) => {
            let mut answer = send(office, envelope(stretches));
            cookies(&mut answer);
            answer
        }
        None => fault("ErrorInvalidOperation", "This simulator does not know the operation."),
    }
}

/// The token of a request, or what to put into `x-ms-diagnostics`.
fn sign_in(office: &Office, headers: &HeaderMap, activesync: bool) -> Result<Arc<Bearer>, &'static str> {
    const NONE: &str = "";
    const UNKNOWN: &str =
        "2000001;reason=\"The token has expired or is otherwise invalid.\";error_category=\"invalid_token\"";
    const AUDIENCE: &str =
        "2000003;reason=\"The audience claim value is invalid 'aud'.\";error_category=\"invalid_resource\"";
    const SCOPE: &str = "2000010;reason=\"The token contains not enough scope to make this call.\";error_category=\"invalid_grant\"";
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((scheme, token)) = value.split_once(' ') else {
        return Err(NONE);
    };
    if !scheme.eq_ignore_ascii_case("Bearer") {
        return Err(NONE);
    }
    let bearer = admission::bearer(office, token.trim());
    let bearer = bearer.map_err(|denied| if denied == Denied::WrongAudience { AUDIENCE } else { UNKNOWN })?;
    let needed = if activesync {
        "EAS.AccessAsUser.All"
    } else {
        admission::needed(Service::Ews, bearer.user.is_none())
    };
    if bearer.permissions.iter().any(|permission| permission == needed) { Ok(bearer) } else { Err(SCOPE) }
}

/// Whose mailbox: an application must impersonate, a user must not.
fn mailbox_of(bearer: &Bearer, soap: &Element) -> Result<String, Box<Answer>> {
    let header = soap.child("Header").and_then(|header| header.child("ExchangeImpersonation"));
    match (&bearer.user, header) {
        (Some(user), None) => Ok(user.clone()),
        (Some(_), Some(_)) => Err(Box::new(fault(
            "ErrorInvalidExchangeImpersonationHeaderData",
            "ExchangeImpersonation SOAP header must not exist for this type of OAuth token.",
        ))),
        (None, None) => Err(Box::new(fault(
            "ErrorInvalidExchangeImpersonationHeaderData",
            "ExchangeImpersonation SOAP header must be present for this type of OAuth token.",
        ))),
        (None, Some(header)) => {
            let who = header.child("ConnectingSID").and_then(|sid| sid.children.first());
            match who.filter(|who| {
                matches!(who.name.as_str(), "PrimarySmtpAddress" | "SmtpAddress" | "PrincipalName")
            }) {
                Some(who) => Ok(who.text.trim().to_owned()),
                None => Err(Box::new(fault(
                    "ErrorImpersonateUserDenied",
                    "The account does not have permission to impersonate the requested user.",
                ))),
            }
        }
    }
}

async fn misbehave(office: &Office) -> io::Result<Option<Answer>> {
    let instead = |fault: &EwsFault| {
        !matches!(fault, EwsFault::RefuseConnect | EwsFault::SlowBody(_) | EwsFault::CloseMidBody)
    };
    let Some(found) = office.mischief.take_ews(instead) else {
        return Ok(None);
    };
    let later = |status: u16, seconds: u32| {
        let mut answer = web::empty(status);
        web::set(&mut answer, "Retry-After", &seconds.to_string());
        answer
    };
    Ok(Some(match found {
        EwsFault::Unauthorized => unauthorized(
            "2000003;reason=\"The audience claim value is invalid 'aud'.\";error_category=\"invalid_resource\"",
        ),
        EwsFault::Forbidden => forbidden(),
        EwsFault::Throttled(seconds) => later(429, seconds),
        EwsFault::Unavailable(seconds) => later(503, seconds),
        EwsFault::Locked => web::empty(456),
        EwsFault::Redirect(to) => {
            let mut answer = web::empty(302);
            web::set(&mut answer, "Location", &to);
            answer
        }
        EwsFault::ServerBusy => server_busy(),
        EwsFault::Hang => {
            hang().await?;
            web::empty(500)
        }
        EwsFault::RefuseConnect | EwsFault::SlowBody(_) | EwsFault::CloseMidBody => return Ok(None),
    }))
}

/// Sends what is there, encodes what is to be encoded on the way.
fn send(office: &Arc<Office>, stretches: Vec<Stretch>) -> Answer {
    let fault =
        office.mischief.take_ews(|fault| matches!(fault, EwsFault::SlowBody(_) | EwsFault::CloseMidBody));
    let large = stretches
        .iter()
        .any(|stretch| matches!(stretch, Stretch::Base64(octets) if octets.len() > 256 * 1024));
    if fault.is_none() && !large {
        let mut whole = String::new();
        for stretch in &stretches {
            match stretch {
                Stretch::Text(text) => whole.push_str(text),
                Stretch::Base64(octets) => BASE64_STANDARD.encode_string(octets, &mut whole),
            }
        }
        return web::answer(200, XML, whole);
    }
    let (sender, piped) = Piped::new();
    let job: Job = Box::pin(async move {
        let pieces = stretches.into_iter().flat_map(pieces);
        let total = pieces.size_hint().0;
        for (at, piece) in pieces.enumerate() {
            if let Some(EwsFault::SlowBody(delay)) = &fault {
                tokio::time::sleep(*delay).await;
            }
            if fault == Some(EwsFault::CloseMidBody) && at > total / 2 {
                // What was sent so far must have a chance to leave.
                tokio::time::sleep(Duration::from_millis(50)).await;
                sender.send(Err(io::ErrorKind::ConnectionAborted.into())).await.ok();
                return;
            }
            if sender.send(Ok(piece)).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(job);
    piped.answer(XML)
}

/// A stretch in pieces of at most 64 KiB of text.
fn pieces(stretch: Stretch) -> Box<dyn Iterator<Item = Bytes> + Send> {
    // A multiple of three octets, so that no piece but the last is padded.
    const OCTETS: usize = 48 * 1024;
    match stretch {
        Stretch::Text(text) => Box::new(std::iter::once(Bytes::from(text))),
        Stretch::Base64(octets) => {
            Box::new((0..octets.len()).step_by(OCTETS).map(move |at| {
                BASE64_STANDARD.encode(octets.slice(at..octets.len().min(at + OCTETS))).into()
            }))
        }
    }
}

/// A SOAP envelope around a body.
pub(super) fn envelope(body: Vec<Stretch>) -> Vec<Stretch> {
    let mut whole = vec![Stretch::Text(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:h=\"http://schemas.microsoft.com/exchange/services/2006/types\" xmlns:m=\"http://schemas.microsoft.com/exchange/services/2006/messages\" xmlns:t=\"http://schemas.microsoft.com/exchange/services/2006/types\"><s:Header><h:ServerVersionInfo MajorVersion=\"15\" MinorVersion=\"20\" MajorBuildNumber=\"9137\" MinorBuildNumber=\"5\" Version=\"V2018_01_08\"/></s:Header><s:Body>".to_owned(),
    )];
    whole.extend(body);
    whole.push(Stretch::Text("</s:Body></s:Envelope>".to_owned()));
    whole
}

fn unauthorized(diagnostics: &str) -> Answer {
    let mut answer = web::empty(401);
    web::set(
        &mut answer,
        "WWW-Authenticate",
        "Bearer client_id=\"00000002-0000-0ff1-ce00-000000000000\", trusted_issuers=\"00000001-0000-0000-c000-000000000000@*\", token_types=\"app_asserted_user_v1 service_asserted_app_v1\", authorization_uri=\"https://login.microsoftonline.com/common/oauth2/authorize\", error=\"invalid_token\"",
    );
    web::set(&mut answer, "WWW-Authenticate", "Basic Realm=\"\"");
    web::set(&mut answer, "MS-Diagnostics-Public", "Modern Auth is required");
    if !diagnostics.is_empty() {
        web::set(&mut answer, "x-ms-diagnostics", diagnostics);
    }
    answer
}

fn forbidden() -> Answer {
    let mut answer = web::empty(403);
    web::set(&mut answer, "Restrict-Access-Confirm", "1");
    answer
}

fn server_busy() -> Answer {
    soap_fault(
        "ErrorServerBusy",
        "The server cannot service this request right now. Try again later.",
        "<t:Value Name=\"BackOffMilliseconds\">1000</t:Value>",
    )
}

fn fault(code: &str, text: &str) -> Answer {
    soap_fault(code, text, "")
}

fn soap_fault(code: &str, text: &str, values: &str) -> Answer {
    web::answer(
        500,
        XML,
        format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><s:Fault><faultcode xmlns:a=\"http://schemas.microsoft.com/exchange/services/2006/types\">a:{code}</faultcode><faultstring xml:lang=\"en-US\">{text}</faultstring><detail><e:ResponseCode xmlns:e=\"http://schemas.microsoft.com/exchange/services/2006/errors\">{code}</e:ResponseCode><e:Message xmlns:e=\"http://schemas.microsoft.com/exchange/services/2006/errors\">{text}</e:Message><t:MessageXml xmlns:t=\"http://schemas.microsoft.com/exchange/services/2006/types\">{values}</t:MessageXml></detail></s:Fault></s:Body></s:Envelope>"
        ),
    )
}

fn cookies(answer: &mut Answer) {
    let id = random::hex(&random::octets::<16>());
    web::set(answer, "Set-Cookie", &format!("exchangecookie={id}; path=/; secure; HttpOnly"));
    web::set(
        answer,
        "Set-Cookie",
        "X-BackEndCookie=alice@contoso.com=u56Lnp2ejJqBy8/Kms2bnZrSzw==; expires=Fri, 31-Dec-2027 00:00:00 GMT; path=/EWS; secure; HttpOnly",
    );
}
