//! The token endpoint's decisions: who gets which token.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    aadsts::Failure,
    assertion,
    journal::TokenRequest,
    mischief::IdentityFault,
    office::Office,
    random,
    scope::{self, Decided},
    tenant::{App, Condition, Directory, PasswordVerdict},
    time,
    tokens::{Bearer, Code, Device, DeviceAnswer, Refresh},
};

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Identical requests are counted over this time.
const LOOP_WINDOW: Duration = Duration::from_mins(5);

/// A form, and where it was sent.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) tenant: String,
    /// The old endpoint: `resource`, and numbers as strings.
    pub(super) v1: bool,
    pub(super) form: HashMap<String, String>,
}

/// Identical requests of late.
#[derive(Debug, Default)]
pub(super) struct Loops {
    seen: Mutex<HashMap<Vec<u8>, VecDeque<Instant>>>,
}

/// What was decided.
pub(super) enum Outcome {
    Granted(Value),
    Failed(Failure),
    /// HTTP 429 with `Retry-After: 60`.
    Throttled,
}

/// A token that will be given.
struct Grant {
    user: Option<String>,
    directory: Directory,
    decided: Decided,
    refresh: bool,
}

impl Ask {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.form.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn need(&self, name: &str) -> Result<&str, Failure> {
        self.get(name).ok_or_else(|| Failure::about(900_144, name))
    }

    /// The scope; the old endpoint's `resource` stands for all of it.
    fn scope(&self) -> Result<String, Failure> {
        if self.v1 {
            let resource = self.need("resource")?;
            return Ok(format!("{}/.default offline_access", resource.trim_end_matches('/')));
        }
        if self.get("resource").is_some() {
            return Err(Failure::new(901_002));
        }
        self.need("scope").map(str::to_owned)
    }
}

impl Loops {
    /// Counts a request; how often the same one came within the window.
    fn count(&self, ask: &Ask) -> usize {
        let mut fields: Vec<_> = ask.form.iter().filter(|(name, _)| *name != "client_assertion").collect();
        fields.sort();
        let print =
            digest::digest(&digest::SHA256, format!("{}{fields:?}", ask.tenant).as_bytes()).as_ref().to_vec();
        let now = time::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() > 10_000 {
            seen.retain(|_, times| times.back().is_some_and(|last| now - *last < LOOP_WINDOW));
        }
        let times = seen.entry(print).or_default();
        times.push_back(now);
        while times.front().is_some_and(|first| now - *first >= LOOP_WINDOW) || times.len() > 1000 {
            times.pop_front();
        }
        times.len()
    }
}

/// Decides a token request, and fills in its record.
pub(super) fn decide(office: &Office, ask: &Ask, record: &mut TokenRequest) -> Outcome {
    ask.get("grant_type").unwrap_or_default().clone_into(&mut record.grant);
    record.tenant.clone_from(&ask.tenant);
    ask.get("client_id").unwrap_or_default().clone_into(&mut record.client_id);
    ask.get("scope").or_else(|| ask.get("resource")).unwrap_or_default().clone_into(&mut record.scope);
    record.user = ask.get("username").map(str::to_owned);
    record.client_proof = "none";
    let loops = if record.grant == DEVICE_CODE { 0 } else { office.loops.count(ask) };
    if loops > office.settings.loop_limit {
        if record.grant == "client_credentials" {
            return Outcome::Throttled;
        }
        return Outcome::Failed(Failure::new(50196));
    }
    match grant(office, ask, record) {
        Ok((app, grant)) => Outcome::Granted(document(office, ask, &app, grant)),
        Err(failure) => Outcome::Failed(failure),
    }
}

fn grant(office: &Office, ask: &Ask, record: &mut TokenRequest) -> Result<(App, Grant), Failure> {
    let kind = ask.need("grant_type")?;
    let client_id = ask.need("client_id")?;
    let everybody = matches!(ask.tenant.to_lowercase().as_str(), "common" | "consumers");
    let anybody = everybody || ask.tenant.eq_ignore_ascii_case("organizations");
    if everybody && kind == "password" {
        return Err(Failure::new(9_001_023));
    }
    if anybody && kind == "client_credentials" {
        return Err(Failure::new(50059));
    }
    let named = if anybody {
        None
    } else {
        Some(office.tenant.directory(&ask.tenant).ok_or_else(|| Failure::about(90002, &ask.tenant))?)
    };
    let app = office.tenant.app(client_id).ok_or_else(|| Failure::about(700_016, client_id))?;
    let installed = |directory: &Directory| {
        app.directories.is_empty() || app.directories.iter().any(|id| id.eq_ignore_ascii_case(&directory.id))
    };
    if named.as_ref().is_some_and(|directory| !installed(directory)) {
        return Err(Failure::about(700_016, client_id));
    }
    if named.is_none() && !app.directories.is_empty() {
        return Err(Failure::about(50194, client_id));
    }
    record.client_proof = prove(&app, ask, kind)?;
    let home = |user: &str| {
        let domain = user.rsplit_once('@').map_or("", |(_, domain)| domain);
        match &named {
            Some(directory) => Ok(directory.clone()),
            None => office.tenant.directory(domain).ok_or_else(|| Failure::new(50128)),
        }
    };
    let grant = match kind {
        "password" => {
            let user = ask.need("username")?;
            let directory = home(user)?;
            let decided = scope::delegated(&ask.scope()?, &app)?;
            sign_in(office, user, ask.need("password")?, &directory, record)?;
            Grant { user: Some(user.to_owned()), directory, refresh: decided.offline, decided }
        }
        "client_credentials" => {
            let scope = if ask.v1 {
                format!("{}/.default", ask.need("resource")?.trim_end_matches('/'))
            } else {
                ask.scope()?
            };
            let directory = named.ok_or_else(|| Failure::new(50059))?;
            Grant { user: None, directory, decided: scope::application(&scope, &app)?, refresh: false }
        }
        "refresh_token" => {
            let (user, scope) = refreshed(office, ask, &app)?;
            record.user = Some(user.clone());
            let decided = scope::delegated(&scope, &app)?;
            Grant { directory: home(&user)?, user: Some(user), decided, refresh: true }
        }
        "authorization_code" => {
            let user = redeemed(office, ask, &app)?;
            record.user = Some(user.clone());
            let decided = scope::delegated(&ask.scope()?, &app)?;
            Grant { directory: home(&user)?, user: Some(user), refresh: decided.offline, decided }
        }
        DEVICE_CODE => {
            let (user, scope) = polled(office, ask, &app)?;
            record.user = Some(user.clone());
            let decided = scope::delegated(&scope, &app)?;
            Grant { directory: home(&user)?, user: Some(user), refresh: decided.offline, decided }
        }
        other => return Err(Failure::about(70003, other)),
    };
    Ok((app, grant))
}

/// How the client proves who it is.
fn prove(app: &App, ask: &Ask, kind: &str) -> Result<&'static str, Failure> {
    if let Some(assertion) = ask.get("client_assertion") {
        if app.public && app.certificates.is_empty() && app.federated.is_empty() {
            return Err(Failure::new(700_025));
        }
        if ask.get("client_assertion_type") != Some(JWT_BEARER) {
            return Err(Failure::about(900_144, "client_assertion_type"));
        }
        return assertion::check(app, &ask.tenant, assertion);
    }
    if let Some(secret) = ask.get("client_secret") {
        if app.public && app.secrets.is_empty() {
            return Err(Failure::new(700_025));
        }
        if app.expired_secrets.iter().any(|expired| expired == secret) {
            return Err(Failure::about(7_000_222, &app.client_id));
        }
        if app.secrets.iter().any(|right| right == secret) {
            return Ok("secret");
        }
        return Err(Failure::about(7_000_215, &app.client_id));
    }
    if app.public && kind != "client_credentials" { Ok("none") } else { Err(Failure::new(7_000_218)) }
}

/// A user's password, then everything that may be the matter with the user.
fn sign_in(
    office: &Office,
    upn: &str,
    password: &str,
    directory: &Directory,
    record: &mut TokenRequest,
) -> Result<(), Failure> {
    let domain = upn.rsplit_once('@').map_or("", |(_, domain)| domain).to_lowercase();
    let user = office.tenant.user(upn).filter(|_| directory.domains.contains(&domain));
    let user = user.ok_or_else(|| Failure::about(50034, upn))?;
    let has = |condition| user.conditions.contains(&condition);
    if has(Condition::Locked) {
        return Err(Failure::new(50053));
    }
    if user.password.is_none() {
        return Err(Failure::new(if has(Condition::Disabled) { 50057 } else { 50056 }));
    }
    let verdict = office.tenant.check_password(upn, password);
    if verdict != PasswordVerdict::Locked {
        record.password_matched = Some(verdict == PasswordVerdict::Right);
    }
    match verdict {
        PasswordVerdict::Locked => return Err(Failure::new(50053)),
        PasswordVerdict::Wrong => return Err(Failure::new(50126)),
        PasswordVerdict::Right => {}
    }
    check_conditions(office, upn, true)
}

/// What keeps a user out although the password is right. A human at a browser can do the second factor.
fn check_conditions(office: &Office, upn: &str, alone: bool) -> Result<(), Failure> {
    let checks = [
        (Condition::Disabled, 50057, true),
        (Condition::PasswordExpired, 50055, alone),
        (Condition::MfaRequired, 50076, alone),
        (Condition::MfaEnrolment, 50079, alone),
        (Condition::BlockedByPolicy, 53003, true),
    ];
    match checks.iter().find(|(condition, _, counts)| *counts && office.tenant.has(upn, *condition)) {
        Some((_, code, _)) => Err(Failure::new(*code)),
        None => Ok(()),
    }
}

fn refreshed(office: &Office, ask: &Ask, app: &App) -> Result<(String, String), Failure> {
    let refresh = office.tokens.refresh(ask.need("refresh_token")?).ok_or_else(|| Failure::new(70000))?;
    if !refresh.client_id.eq_ignore_ascii_case(&app.client_id) {
        return Err(Failure::new(70000));
    }
    if office.tenant.object_id(&refresh.user).map(|(_, epoch)| epoch) != Some(refresh.epoch) {
        return Err(Failure::new(50173));
    }
    check_conditions(office, &refresh.user, false)?;
    let scope = if ask.v1 || ask.get("scope").is_some() { ask.scope()? } else { refresh.scope };
    Ok((refresh.user, scope))
}

fn redeemed(office: &Office, ask: &Ask, app: &App) -> Result<String, Failure> {
    let code: Code = office.tokens.redeem_code(ask.need("code")?).ok_or_else(|| Failure::new(70000))?;
    if code.redeemed {
        return Err(Failure::new(54005));
    }
    if code.expires <= time::now() {
        return Err(Failure::new(70008));
    }
    if !code.client_id.eq_ignore_ascii_case(&app.client_id) {
        return Err(Failure::new(70000));
    }
    if code.redirect_uri != ask.need("redirect_uri")? {
        return Err(Failure::about(50011, ask.need("redirect_uri")?));
    }
    if let Some(challenge) = code.challenge {
        let verifier = ask.get("code_verifier").unwrap_or_default();
        let print = BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()));
        if print != challenge || !(43..=128).contains(&verifier.len()) {
            return Err(Failure::new(501_481));
        }
    }
    check_conditions(office, &code.user, false)?;
    Ok(code.user)
}

fn polled(office: &Office, ask: &Ask, app: &App) -> Result<(String, String), Failure> {
    let text = ask
        .get("device_code")
        .or_else(|| ask.get("code"))
        .ok_or_else(|| Failure::about(900_144, "device_code"))?;
    let device = office.tokens.device(text).ok_or_else(|| Failure::new(70018))?;
    if !device.client_id.eq_ignore_ascii_case(&app.client_id) {
        return Err(Failure::new(70018));
    }
    if device.expires <= time::now() {
        return Err(Failure::new(70019));
    }
    match device.answer {
        DeviceAnswer::Pending => Err(Failure::new(70016)),
        DeviceAnswer::Declined => Err(Failure::new(65004)),
        DeviceAnswer::Redeemed => Err(Failure::new(54005)),
        DeviceAnswer::Approved(user) => {
            check_conditions(office, &user, false)?;
            office.tokens.redeem_device(text);
            Ok((user, device.scope))
        }
    }
}

/// Starts a device code flow.
pub(super) fn device(office: &Office, ask: &Ask) -> Result<Value, Failure> {
    let client_id = ask.need("client_id")?;
    let app = office.tenant.app(client_id).ok_or_else(|| Failure::about(700_016, client_id))?;
    let known = matches!(ask.tenant.as_str(), "common" | "organizations" | "consumers");
    if !known && office.tenant.directory(&ask.tenant).is_none() {
        return Err(Failure::about(90002, &ask.tenant));
    }
    if !app.public {
        return Err(Failure::new(7_000_218));
    }
    let scope = ask.scope()?;
    scope::delegated(&scope, &app)?;
    let letters = random::hex(&random::octets::<5>()).to_uppercase();
    let user_code = letters.get(..9).unwrap_or("ABCDEFGHJ").to_owned();
    let lifetime = Duration::from_mins(15);
    let code = office.tokens.issue_device(Device {
        user_code: user_code.clone(),
        client_id: app.client_id,
        scope,
        expires: time::now() + lifetime,
        answer: DeviceAnswer::Pending,
    });
    Ok(json!({
        "user_code": user_code,
        "device_code": code,
        "verification_uri": "https://microsoft.com/devicelogin",
        "expires_in": lifetime.as_secs(),
        "interval": office.settings.device_interval,
        "message": format!("To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code {user_code} to authenticate."),
    }))
}

/// Makes the tokens and the answer that carries them.
fn document(office: &Office, ask: &Ask, app: &App, grant: Grant) -> Value {
    let lifetime =
        office.settings.token_lifetime.unwrap_or_else(|| Duration::from_secs(3600 + random::number() % 1800));
    let identity = grant.user.as_ref().and_then(|user| office.tenant.object_id(user));
    let (oid, epoch) = identity.unwrap_or_else(|| (random::guid(), 0));
    let size = office.mischief.take_identity(|fault| matches!(fault, IdentityFault::TokenSize(_)));
    let size = match size {
        Some(IdentityFault::TokenSize(size)) => Some(size),
        _ => office.settings.token_size,
    };
    let bearer = Bearer {
        user: grant.user.clone(),
        oid,
        client_id: app.client_id.clone(),
        directory: grant.directory.id.clone(),
        audience: grant.decided.audience.clone(),
        permissions: grant.decided.permissions.clone(),
        expires: time::now() + lifetime,
    };
    let mut access = office.tokens.issue(bearer, lifetime, size);
    if office.mischief.take_identity(|fault| *fault == IdentityFault::BadToken).is_some() {
        access.push_str("AAAA");
    }
    let seconds = lifetime.as_secs();
    let mut document = if ask.v1 {
        let now = time::wall().as_second();
        let until = now.saturating_add_unsigned(seconds);
        json!({
            "token_type": "Bearer", "scope": grant.decided.permissions.join(" "),
            "expires_in": seconds.to_string(), "ext_expires_in": seconds.to_string(),
            "expires_on": until.to_string(), "not_before": now.to_string(),
            "resource": ask.get("resource").unwrap_or_default(), "access_token": access,
        })
    } else {
        json!({"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": access})
    };
    let Some(fields) = document.as_object_mut() else {
        return document;
    };
    if let Some(user) = grant.user {
        if !ask.v1 {
            fields.insert("scope".to_owned(), grant.decided.granted().into());
        }
        if grant.refresh {
            let scope = ask.scope().unwrap_or_else(|_| format!("{} offline_access", grant.decided.granted()));
            let client_id = app.client_id.clone();
            let refresh = office.tokens.issue_refresh(Refresh { user, epoch, client_id, scope });
            fields.insert("refresh_token".to_owned(), refresh.into());
        }
        if grant.decided.openid {
            fields.insert("id_token".to_owned(), format!("e30.e30.{}", random::text(256)).into());
        }
    }
    document
}
