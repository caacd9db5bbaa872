//! Microsoft Entra ID's HTTP face: token, device code, authorize, discovery and user realm endpoints.

use std::{collections::HashMap, io, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{Method, Request, header};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use url::form_urlencoded;

use super::{
    aadsts::Failure,
    grants::{self, Ask, Outcome},
    http::{self as web, Answer},
    journal::{Event, Service, TokenRequest},
    mischief::{ExpiresIn, IdentityFault, hang},
    office::Office,
    random,
    tenant::{App, Condition, PasswordVerdict},
    time,
    tokens::Code,
};

const JSON: &str = "application/json; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// Octets of a form.
const FORM_LIMIT: usize = 256 * 1024;

/// Serves one connection until it ends.
pub(super) async fn serve(
    office: Arc<Office>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> io::Result<()> {
    web::serve(office, stream, |office, request| Box::pin(async move { handle(&office, request).await }))
        .await
}

async fn handle(office: &Office, request: Request<Incoming>) -> io::Result<Answer> {
    let path = request.uri().path().to_owned();
    let query = form(request.uri().query().unwrap_or_default().as_bytes());
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let post = request.method() == Method::POST;
    match segments.as_slice() {
        [tenant, "oauth2", "v2.0", "token"] if post => token(office, tenant, false, request).await,
        [tenant, "oauth2", "token"] if post => token(office, tenant, true, request).await,
        [tenant, "oauth2", "v2.0", "devicecode"] if post => device_code(office, tenant, request).await,
        [tenant, "oauth2", "v2.0", "authorize"] => authorize(office, tenant, query, request).await,
        [tenant, "v2.0", ".well-known", "openid-configuration"] => Ok(discovery(office, tenant, &request)),
        ["common", "userrealm", upn] => Ok(user_realm(office, upn)),
        [_, "oauth2", "v2.0", "token" | "devicecode"] | [_, "oauth2", "token"] => Ok(web::empty(405)),
        _ => Ok(web::answer(404, HTML, "<html><body>Not found</body></html>")),
    }
}

async fn token(office: &Office, tenant: &str, v1: bool, request: Request<Incoming>) -> io::Result<Answer> {
    let basic = basic(&request);
    let Some(body) = web::collect(request.into_body(), FORM_LIMIT).await? else {
        return Ok(web::empty(413));
    };
    let mut ask = Ask { tenant: tenant.to_owned(), v1, form: form(&body) };
    if let Some((client_id, secret)) = basic {
        ask.form.entry("client_id".to_owned()).or_insert(client_id);
        ask.form.entry("client_secret".to_owned()).or_insert(secret);
    }
    let mischief = &office.mischief;
    if mischief.refuses(Service::Authority) || mischief.bad_certificate(Service::Authority).is_some() {
        // a connection of before: new ones do not come so far
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let mut record = TokenRequest::default();
    if let Some(answer) = misbehave(office, &ask, &mut record).await? {
        record.status = answer.status().as_u16();
        office.journal.write(Event::Token(record));
        return Ok(answer);
    }
    let answer = match grants::decide(office, &ask, &mut record) {
        Outcome::Granted(document) => json_answer(200, &lie_about_lifetime(office, document)),
        Outcome::Failed(failure) => {
            record.code = Some(failure.code);
            json_answer(failure.status(), &failure.document())
        }
        Outcome::Throttled => throttled(Some("60")),
    };
    record.status = answer.status().as_u16();
    office.journal.write(Event::Token(record));
    Ok(answer)
}

/// What goes wrong in place of an answer.
async fn misbehave(office: &Office, ask: &Ask, record: &mut TokenRequest) -> io::Result<Option<Answer>> {
    let instead = |fault: &IdentityFault| {
        !matches!(
            fault,
            IdentityFault::Down
                | IdentityFault::ExpiresIn(_)
                | IdentityFault::TokenSize(_)
                | IdentityFault::BadToken
        )
    };
    let Some(fault) = office.mischief.take_identity(instead) else {
        return Ok(None);
    };
    let field = |name: &str| ask.get(name).unwrap_or_default().to_owned();
    record.grant = field("grant_type");
    record.tenant.clone_from(&ask.tenant);
    record.client_id = field("client_id");
    record.scope = field("scope");
    record.user = ask.get("username").map(str::to_owned);
    Ok(Some(match fault {
        IdentityFault::Hang => {
            office.journal.write(Event::Token(record.clone()));
            hang().await?;
            web::empty(500)
        }
        IdentityFault::Reset => {
            office.journal.write(Event::Token(record.clone()));
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        IdentityFault::Throttled { retry_after } => throttled(retry_after.as_deref()),
        IdentityFault::Status(status) if status >= 500 => json_answer(
            status,
            &json!({"error": "server_error", "error_description": "AADSTS90036: unexpected."}),
        ),
        IdentityFault::Status(status) => web::answer(status, HTML, "<html><body>No.</body></html>"),
        IdentityFault::Html => {
            web::answer(200, HTML, "<!DOCTYPE html><html><body>Sign in to your account</body></html>")
        }
        IdentityFault::Malformed => web::answer(200, JSON, r#"{"token_type":"Bearer","access_token":"eyJ0"#),
        IdentityFault::Empty => web::answer(200, JSON, ""),
        IdentityFault::WrongType => json_answer(
            200,
            &json!({"token_type": 1, "expires_in": {}, "access_token": ["a"], "scope": null}),
        ),
        IdentityFault::Redirect(to) => {
            let mut answer = web::empty(302);
            web::set(&mut answer, "Location", &to);
            answer
        }
        IdentityFault::AadSts(code) => {
            record.code = Some(code);
            let failure = Failure::new(code);
            json_answer(failure.status(), &failure.document())
        }
        IdentityFault::Slow(delay) => {
            tokio::time::sleep(delay).await;
            return Ok(None);
        }
        IdentityFault::Down
        | IdentityFault::ExpiresIn(_)
        | IdentityFault::TokenSize(_)
        | IdentityFault::BadToken => {
            return Ok(None);
        }
    }))
}

fn lie_about_lifetime(office: &Office, mut document: Value) -> Value {
    let fault = office.mischief.take_identity(|fault| matches!(fault, IdentityFault::ExpiresIn(_)));
    if let (Some(IdentityFault::ExpiresIn(lie)), Some(fields)) = (fault, document.as_object_mut()) {
        match lie {
            ExpiresIn::Number(seconds) => drop(fields.insert("expires_in".to_owned(), seconds.into())),
            ExpiresIn::Text(text) => drop(fields.insert("expires_in".to_owned(), text.into())),
            ExpiresIn::Missing => drop(fields.remove("expires_in")),
        }
    }
    document
}

async fn device_code(office: &Office, tenant: &str, request: Request<Incoming>) -> io::Result<Answer> {
    let Some(body) = web::collect(request.into_body(), FORM_LIMIT).await? else {
        return Ok(web::empty(413));
    };
    let ask = Ask { tenant: tenant.to_owned(), v1: false, form: form(&body) };
    Ok(match grants::device(office, &ask) {
        Ok(document) => json_answer(200, &document),
        Err(failure) => json_answer(failure.status(), &failure.document()),
    })
}

/// The page that a human sees, and the redirect that follows.
async fn authorize(
    office: &Office,
    tenant: &str,
    query: HashMap<String, String>,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let posted = request.method() == Method::POST;
    let Some(body) = web::collect(request.into_body(), FORM_LIMIT).await? else {
        return Ok(web::empty(413));
    };
    let ask = Ask { tenant: tenant.to_owned(), v1: false, form: query };
    let app = match check_authorize(office, &ask) {
        Ok(app) => app,
        Err(failure) => {
            let text = failure
                .document()
                .get("error_description")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            return Ok(web::answer(
                400,
                HTML,
                format!("<html><body><h1>Sorry</h1><p>{text}</p></body></html>"),
            ));
        }
    };
    let redirect_uri = ask.get("redirect_uri").unwrap_or_default().to_owned();
    let mut user = office.tenant.browser();
    if posted {
        let typed = form(&body);
        let field = |name: &str| typed.get(name).map(String::as_str).unwrap_or_default();
        let right = office.tenant.user(field("login")).is_some()
            && office.tenant.check_password(field("login"), field("passwd")) == PasswordVerdict::Right;
        user = right.then(|| field("login").to_lowercase());
    }
    let Some(user) = user else {
        if ask.get("prompt") == Some("none") {
            return Ok(redirect(
                &redirect_uri,
                &ask,
                &[
                    ("error", "login_required"),
                    (
                        "error_description",
                        "AADSTS50058: Session information is not sufficient for single-sign-on.",
                    ),
                ],
            ));
        }
        return Ok(web::answer(200, HTML, LOGIN_PAGE));
    };
    if !app.consented {
        return Ok(redirect(
            &redirect_uri,
            &ask,
            &[
                ("error", "consent_required"),
                (
                    "error_description",
                    "AADSTS65001: The user or administrator has not consented to use the application.",
                ),
            ],
        ));
    }
    let code = office.tokens.issue_code(Code {
        user,
        client_id: app.client_id,
        redirect_uri: redirect_uri.clone(),
        challenge: ask.get("code_challenge").map(str::to_owned),
        expires: time::now() + std::time::Duration::from_mins(10),
        redeemed: false,
    });
    Ok(redirect(&redirect_uri, &ask, &[("code", &code)]))
}

fn check_authorize(office: &Office, ask: &Ask) -> Result<App, Failure> {
    let client_id = ask.get("client_id").ok_or_else(|| Failure::about(900_144, "client_id"))?;
    let known = matches!(ask.tenant.as_str(), "common" | "organizations" | "consumers");
    if !known && office.tenant.directory(&ask.tenant).is_none() {
        return Err(Failure::about(90002, &ask.tenant));
    }
    let app = office.tenant.app(client_id).ok_or_else(|| Failure::about(700_016, client_id))?;
    let redirect_uri = ask.get("redirect_uri").ok_or_else(|| Failure::about(900_144, "redirect_uri"))?;
    let allowed = app.redirect_uris.iter().any(|allowed| {
        let rest = redirect_uri.strip_prefix(allowed.as_str());
        // RFC 8252 section 7.3: any port of the loopback address.
        let loopback = matches!(allowed.as_str(), "http://localhost" | "http://127.0.0.1");
        rest.is_some_and(|rest| rest.is_empty() || loopback && rest.starts_with([':', '/']))
    });
    if !allowed {
        return Err(Failure::about(50011, redirect_uri));
    }
    if ask.get("response_type") != Some("code") {
        return Err(Failure::about(90014, "response_type"));
    }
    if ask.get("code_challenge").is_some() && ask.get("code_challenge_method") != Some("S256") {
        return Err(Failure::about(90014, "code_challenge_method"));
    }
    super::scope::delegated(ask.get("scope").unwrap_or_default(), &app)?;
    Ok(app)
}

fn redirect(to: &str, ask: &Ask, fields: &[(&str, &str)]) -> Answer {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields {
        query.append_pair(name, value);
    }
    if let Some(state) = ask.get("state") {
        query.append_pair("state", state);
    }
    let query = query.append_pair("session_state", &random::guid()).finish();
    let (sign, end) = if ask.get("response_mode") == Some("fragment") { ('#', "") } else { ('?', "#") };
    let mut answer = web::empty(302);
    web::set(&mut answer, "Location", &format!("{to}{sign}{query}{end}"));
    answer
}

const LOGIN_PAGE: &str = r#"<!DOCTYPE html><html><head><title>Sign in to your account</title></head><body>
<h1>Simulated Microsoft sign-in</h1><form method="post">
<label>User <input name="login" type="email"></label> <label>Password <input name="passwd" type="password"></label>
<button>Sign in</button></form></body></html>"#;

fn discovery(office: &Office, tenant: &str, request: &Request<Incoming>) -> Answer {
    let known = matches!(tenant, "common" | "organizations" | "consumers");
    let directory = office.tenant.directory(tenant);
    if !known && directory.is_none() {
        let failure = Failure::about(90002, tenant);
        return json_answer(failure.status(), &failure.document());
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let base = format!("https://{host}/{tenant}");
    let id = directory.map_or_else(|| "{tenantid}".to_owned(), |directory| directory.id);
    json_answer(
        200,
        &json!({
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "issuer": format!("https://login.microsoftonline.com/{id}/v2.0"),
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "device_authorization_endpoint": format!("{base}/oauth2/v2.0/devicecode"),
            "response_modes_supported": ["query", "fragment", "form_post"],
            "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "tenant_region_scope": "EU", "cloud_instance_name": "microsoftonline.com",
        }),
    )
}

fn user_realm(office: &Office, upn: &str) -> Answer {
    let upn =
        form_urlencoded::parse(upn.replace('+', "%2B").as_bytes()).next().map(|(name, _)| name.into_owned());
    let upn = upn.unwrap_or_default();
    let domain = upn.rsplit_once('@').map_or("", |(_, domain)| domain);
    let account_type = if office.tenant.has(&upn, Condition::Federated) {
        "Federated"
    } else if office.tenant.directory(domain).is_some() {
        "Managed"
    } else {
        "Unknown"
    };
    json_answer(
        200,
        &json!({"ver": "1.0", "account_type": account_type, "domain_name": domain, "cloud_instance_name": "microsoftonline.com", "cloud_audience_urn": "urn:federation:MicrosoftOnline"}),
    )
}

fn throttled(retry_after: Option<&str>) -> Answer {
    let mut answer = web::answer(429, "text/plain", "Too many requests");
    if let Some(value) = retry_after {
        web::set(&mut answer, "Retry-After", value);
    }
    answer
}

fn json_answer(status: u16, document: &Value) -> Answer {
    let mut answer = web::answer(status, JSON, document.to_string());
    web::set(&mut answer, "Cache-Control", "no-store, no-cache");
    web::set(&mut answer, "Pragma", "no-cache");
    web::set(&mut answer, "x-ms-request-id", &random::guid());
    web::set(&mut answer, "x-ms-ests-server", "2.1.19005.9 - NEULR1 ProdSlices");
    answer
}

fn form(octets: &[u8]) -> HashMap<String, String> {
    form_urlencoded::parse(octets).into_owned().collect()
}

/// Client id and secret in HTTP Basic, each percent-encoded (RFC 6749 section 2.3.1).
fn basic(request: &Request<Incoming>) -> Option<(String, String)> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let octets = BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(octets).ok()?;
    let (client_id, secret) = text.split_once(':')?;
    let decode =
        |text: &str| form_urlencoded::parse(text.as_bytes()).next().map(|(name, _)| name.into_owned());
    Some((decode(client_id)?, decode(secret)?))
}
