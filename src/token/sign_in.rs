//! Signing in ahead of the first login, for `mailkey login`: device code (RFC 8628) and authorization code with
//! PKCE (RFC 6749 §4.1, RFC 7636). What comes of it is a refresh token for the store.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, timeout_at};
use url::Url;

use super::answer::{self, AnswerError, TokenAnswer};
use super::endpoint::{Ask, Endpoint, Trouble, WireError};
use super::entropy;
use super::error::{TokenError, Who};
use super::grant::{Signature, client_auth, read_error, what_for};
use super::store::StoredSignIn;
use crate::clock;
use crate::config::model::{Application, Grant, Protocol};
use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal, one_line};
use crate::secret::{MAX_USER, Secret};

/// RFC 8628 §3.2: where the provider names none.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

/// RFC 8628 §3.5: what `slow_down` adds.
const SLOW_DOWN: Duration = Duration::from_secs(5);

/// A device code is not waited for any longer than this, whatever the provider says.
const LONGEST_WAIT: Duration = Duration::from_mins(30);

/// Time limit for one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// RFC 8628 §3.4.
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// What the person is shown, and what we poll with.
#[derive(Clone, Debug)]
pub struct DeviceCode {
    /// Where the person goes.
    pub verification_uri: String,
    /// The same with the code in it, where the provider has such an address: for a QR code (RFC 8628 §3.3.1).
    pub verification_uri_complete: Option<String>,
    /// What the person types there.
    pub user_code: String,
    /// Until when, on the monotonic clock.
    pub expires_at: Instant,
    /// The wait between polls.
    pub interval: Duration,
    polled_with: Secret,
}

/// What the browser is sent to, and what its answer is checked with.
#[derive(Clone, Debug)]
pub struct AuthorizeRequest {
    /// For the browser.
    pub url: Url,
    /// Must come back unchanged (RFC 6749 §10.12).
    pub state: Secret,
    /// Goes with the code (RFC 7636 §4.5).
    pub verifier: Secret,
}

/// What a sign-in gave.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// The tokens.
    pub token: TokenAnswer,
    /// Who signed in, where the tokens say so. For a warning only: nobody has checked their signature.
    pub name: Option<String>,
}

/// Why nobody was signed in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SignInError {
    /// The application has no such endpoint.
    #[error("the identity provider has no endpoint for the grant `{0}`")]
    NoEndpoint(&'static str),
    /// The person did not finish in time.
    #[error("the time was up before anybody had signed in")]
    Expired,
    /// The person said no.
    #[error("the sign-in was declined")]
    Declined,
    /// The browser came back with another `state` than it left with.
    #[error("the answer does not belong to this sign-in: its `state` differs")]
    State,
    /// The browser's answer has neither a code nor an error.
    #[error("the answer holds neither a code nor an error")]
    NoCode,
    /// Nothing can listen for the browser here.
    #[error("no port of this machine can be had for the browser's answer: {0}")]
    Loopback(String),
    /// Signed in, but without a refresh token.
    #[error("the identity provider gave no refresh token")]
    NoRefreshToken,
    /// Anything else.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl Explain for SignInError {
    fn explain(&self) -> Explanation {
        let story = |code: &'static str, fault, remedy: &str, passes| Explanation {
            code: code.into(),
            fault,
            what: self.to_string(),
            remedy: remedy.to_owned(),
            passes,
            refusal: Refusal::contact_admin(CauseKind::SignIn),
        };
        match self {
            Self::NoEndpoint(_) => story(
                "SIGN-IN-ENDPOINT",
                Fault::Configuration,
                "use another `grant`, or name the provider's endpoint in `oauth`",
                Passes::Never,
            ),
            Self::Expired => story(
                "SIGN-IN-EXPIRED",
                Fault::Account,
                "run `mailkey login` again and finish it",
                Passes::Never,
            ),
            Self::Declined => story(
                "SIGN-IN-DECLINED",
                Fault::Account,
                "run `mailkey login` again and accept",
                Passes::Never,
            ),
            Self::State => story(
                "SIGN-IN-STATE",
                Fault::Account,
                "run `mailkey login` again, and open no older link",
                Passes::Never,
            ),
            Self::NoCode => story(
                "SIGN-IN-NO-CODE",
                Fault::Account,
                "copy the whole address that the browser ends on, with everything behind its `?`",
                Passes::Never,
            ),
            Self::Loopback(_) => story(
                "SIGN-IN-LOOPBACK",
                Fault::Configuration,
                "run `mailkey login` with `--paste`, or with `--device`",
                Passes::Never,
            ),
            Self::NoRefreshToken => story(
                "SIGN-IN-NO-REFRESH",
                Fault::Configuration,
                "let `offline-access` be `true`, and the application have the permission `offline_access`",
                Passes::Never,
            ),
            Self::Token(error) => error.explain(),
        }
    }
}

/// Asks for a device code (RFC 8628 §3.1).
///
/// # Errors
/// The provider has no such endpoint, refuses, or cannot be reached.
pub async fn start_device_code(
    endpoint: &Endpoint,
    application: &Application,
    protocol: Protocol,
) -> Result<DeviceCode, SignInError> {
    let url = application.endpoints.device.as_ref().ok_or(SignInError::NoEndpoint("device-code"))?;
    let scope = application.scope_for(protocol, Grant::DeviceCode);
    let mut form = client_auth(application, Signature::Ps256).await?;
    form.push(what_for(application, &scope, true));
    let raw = exchange(endpoint, application, &Ask::post(url, form), clock::now() + REQUEST_LIMIT).await?;
    let fields = answer::object(&raw, clock::wall()).map_err(|e| refused(e, application, "device-code"))?;
    let missing =
        |why| refused(AnswerError::Malformed { status: raw.status, why }, application, "device-code");
    let device_code = answer::text(&fields, "device_code").ok_or_else(|| missing("no `device_code`"))?;
    let user_code = answer::text(&fields, "user_code").ok_or_else(|| missing("no `user_code`"))?;
    // Google says `verification_url`.
    let uri = answer::text(&fields, "verification_uri")
        .or_else(|| answer::text(&fields, "verification_url"))
        .ok_or_else(|| missing("no `verification_uri`"))?;
    let seconds = |name| {
        let value = answer::number(&fields, name).and_then(|n| u64::try_from(n).ok());
        value.filter(|n| *n > 0).map(Duration::from_secs)
    };
    Ok(DeviceCode {
        verification_uri: one_line(uri, 200),
        verification_uri_complete: answer::text(&fields, "verification_uri_complete")
            .map(|uri| one_line(uri, 300)),
        user_code: one_line(user_code, 40),
        expires_at: clock::now() + seconds("expires_in").unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT),
        interval: seconds("interval").unwrap_or(DEFAULT_INTERVAL).min(LONGEST_WAIT),
        polled_with: Secret::new(device_code),
    })
}

/// Waits until the person has signed in (RFC 8628 §3.4): polls at the interval, slower when told so.
///
/// # Errors
/// The code expired, the person declined, or the provider refuses. What passes by itself is waited out.
pub async fn poll_device_code(
    endpoint: &Endpoint,
    application: &Application,
    code: &DeviceCode,
) -> Result<SignedIn, SignInError> {
    let mut interval = code.interval;
    loop {
        if clock::now() + interval >= code.expires_at {
            return Err(SignInError::Expired);
        }
        sleep(interval).await;
        let mut form = client_auth(application, Signature::Ps256).await?;
        form.push(("grant_type", Secret::new(DEVICE_GRANT)));
        form.push(("device_code", code.polled_with.clone()));
        let ask = Ask::post(&application.endpoints.token, form);
        let deadline = code.expires_at.min(clock::now() + REQUEST_LIMIT);
        let raw = match exchange(endpoint, application, &ask, deadline).await {
            Ok(raw) => raw,
            // RFC 8628 §3.5: after a timeout, poll less often.
            Err(error) if error.worth_a_retry() => {
                interval = (interval * 2).min(Duration::from_mins(1));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let error = match answer::token(&raw, clock::wall()) {
            Ok(token) => return Ok(SignedIn { token, name: name(&raw) }),
            Err(error) => error,
        };
        match &error {
            AnswerError::Refused(refused) => match refused.error.as_deref() {
                Some("authorization_pending") => continue,
                Some("slow_down") => {
                    interval += SLOW_DOWN;
                    continue;
                }
                Some("authorization_declined" | "access_denied") => return Err(SignInError::Declined),
                Some("expired_token" | "code_expired" | "bad_verification_code") => {
                    return Err(SignInError::Expired);
                }
                _ => {}
            },
            AnswerError::Throttled { retry_after, .. } => {
                interval = interval.max(retry_after.unwrap_or(interval + SLOW_DOWN));
                continue;
            }
            AnswerError::Failing { .. } => {
                interval += SLOW_DOWN;
                continue;
            }
            AnswerError::Redirected { .. } | AnswerError::Malformed { .. } => {}
        }
        return Err(refused(error, application, "device-code").into());
    }
}

/// Where the browser is sent (RFC 6749 §4.1.1, RFC 7636 §4.3). `user` is offered to the person where it looks
/// like an address.
///
/// # Errors
/// The provider has no such endpoint.
pub fn authorize(
    application: &Application,
    protocol: Protocol,
    redirect_uri: &str,
    user: &str,
) -> Result<AuthorizeRequest, SignInError> {
    let mut url =
        application.endpoints.authorize.clone().ok_or(SignInError::NoEndpoint("authorization-code"))?;
    let (state, verifier) = (random_text(), random_text());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.expose().as_bytes());
    let (name, what) =
        what_for(application, &application.scope_for(protocol, Grant::AuthorizationCode), true);
    url.query_pairs_mut()
        .append_pair("client_id", &application.client_id)
        .append_pair("response_type", "code")
        .append_pair("response_mode", "query")
        .append_pair("redirect_uri", redirect_uri)
        .append_pair(name, what.expose())
        .append_pair("state", state.expose())
        .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(digest.as_ref()))
        .append_pair("code_challenge_method", "S256");
    if user.contains('@') {
        url.query_pairs_mut().append_pair("login_hint", user);
    }
    Ok(AuthorizeRequest { url, state, verifier })
}

impl AuthorizeRequest {
    /// Whether the browser's answer belongs to this request. In constant time.
    ///
    /// # Errors
    /// It does not: somebody else's answer, or an old link.
    pub fn check_state(&self, state: &str) -> Result<(), SignInError> {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.state.expose().as_bytes(), state.as_bytes())
            .map_err(|_| SignInError::State)
    }
}

/// Turns the browser's code into tokens (RFC 6749 §4.1.3).
///
/// # Errors
/// The provider refuses or cannot be reached. A code serves once: there is no retry.
pub async fn exchange_code(
    endpoint: &Endpoint,
    application: &Application,
    protocol: Protocol,
    code: &Secret,
    redirect_uri: &str,
    verifier: &Secret,
) -> Result<SignedIn, SignInError> {
    let scope = application.scope_for(protocol, Grant::AuthorizationCode);
    let mut form = client_auth(application, Signature::Ps256).await?;
    form.push(what_for(application, &scope, true));
    form.push(("grant_type", Secret::new("authorization_code")));
    form.push(("code", code.clone()));
    form.push(("redirect_uri", Secret::new(redirect_uri)));
    form.push(("code_verifier", verifier.clone()));
    let ask = Ask::post(&application.endpoints.token, form);
    let raw = exchange(endpoint, application, &ask, clock::now() + REQUEST_LIMIT).await?;
    match answer::token(&raw, clock::wall()) {
        Ok(token) => Ok(SignedIn { token, name: name(&raw) }),
        Err(error) => Err(refused(error, application, "authorization-code").into()),
    }
}

/// One scope for all that a sign-in is to serve: a person consents once, and one refresh token gets the tokens of
/// every protocol.
pub fn scope_of_all<'a>(uses: impl IntoIterator<Item = (&'a Application, Protocol)>, grant: Grant) -> String {
    let mut all: Vec<String> = Vec::new();
    for (application, protocol) in uses {
        for one in application.scope_for(protocol, grant).split_ascii_whitespace() {
            if !all.iter().any(|known| known == one) {
                all.push(one.to_owned());
            }
        }
    }
    // It stands for every permission of its resource, and for nothing beside it (AADSTS70011).
    match all.iter().find(|one| one.ends_with("/.default")) {
        Some(default) => default.clone(),
        None => all.join(" "),
    }
}

/// What belongs into the store after a sign-in.
///
/// # Errors
/// There is no refresh token: nothing would be left when the access token ends.
pub fn to_store(answer: &TokenAnswer, grant: Grant, now: Timestamp) -> Result<StoredSignIn, SignInError> {
    let refresh_token = answer.refresh_token.clone().ok_or(SignInError::NoRefreshToken)?;
    Ok(StoredSignIn { grant, refresh_token, signed_in_at: now, renewed_at: now })
}

/// Who signed in: as the ID token says, else the access token, which Microsoft's mail services get as a JWT.
fn name(raw: &answer::RawAnswer) -> Option<String> {
    let fields: Map<String, Value> = serde_json::from_slice(&raw.body.0).ok()?;
    ["id_token", "access_token"].iter().find_map(|token| {
        let claims = answer::text(&fields, token)?.split('.').nth(1)?;
        let claims = zeroize::Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
        let claims: Map<String, Value> = serde_json::from_slice(&claims).ok()?;
        ["preferred_username", "upn", "unique_name", "email"]
            .iter()
            .filter_map(|claim| answer::text(&claims, claim))
            .find(|name| name.contains('@') && name.len() <= MAX_USER && !name.chars().any(char::is_control))
            .map(str::to_owned)
    })
}

async fn exchange(
    endpoint: &Endpoint,
    application: &Application,
    ask: &Ask,
    deadline: Instant,
) -> Result<answer::RawAnswer, TokenError> {
    let error = match timeout_at(deadline, endpoint.send(ask)).await {
        Ok(Ok(raw)) => return Ok(raw),
        Ok(Err(error)) => error,
        Err(_) => WireError::new(Trouble::Timeout, "no answer in time"),
    };
    Err(TokenError::Unreachable { authority: application.endpoints.authority.clone(), error })
}

fn refused(error: AnswerError, application: &Application, grant: &'static str) -> TokenError {
    read_error(error, &application.endpoints.authority, || Who::new("", application, grant))
}

/// 256 random bits in 43 characters of the unreserved set (RFC 7636 §4.1).
fn random_text() -> Secret {
    let mut bytes = zeroize::Zeroizing::new([0_u8; 32]);
    entropy::fill(bytes.as_mut_slice());
    Secret::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::testing::{Provider, Reply, account};

    const SECOND: Duration = Duration::from_secs(1);

    fn start_reply(expires_in: u64) -> Reply {
        Reply::json(
            200,
            &format!(
                r#"{{"device_code":"d","user_code":"ABC","verification_uri":"https://v","expires_in":{expires_in},"interval":"5"}}"#
            ),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_code_is_polled_at_its_interval_and_slower_when_told() {
        let provider = Provider::new();
        let account = account(&[Grant::DeviceCode]);
        let application = &account.application;
        provider.next(start_reply(900));
        let code = start_device_code(&provider.endpoint(), application, Protocol::Imap).await.unwrap();
        assert_eq!((code.user_code.as_str(), code.interval), ("ABC", SECOND * 5));
        assert_eq!(
            provider.requests()[0].field("scope"),
            Some("https://mail.example/IMAP.AccessAsUser.All offline_access")
        );

        provider.next(Reply::error("authorization_pending", 70016));
        provider.next(Reply::error("slow_down", 0));
        provider.next(Reply::json(429, "not json"));
        provider.next(Reply::Broken(Trouble::BrokenOff));
        provider.next(Reply::token("t", 3600, Some("r")));
        let begun = clock::now();
        let token = poll_device_code(&provider.endpoint(), application, &code).await.unwrap();
        assert_eq!(token.token.refresh_token.unwrap().expose(), "r");
        assert_eq!(token.name, None, "an opaque token names nobody");
        // 5, 5, then 10 after slow_down, 15 after 429, and twice that after a broken connection.
        assert_eq!((clock::now() - begun).as_secs(), 5 + 5 + 10 + 15 + 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_code_ends_with_its_time_or_the_persons_no() {
        let provider = Provider::new();
        let account = account(&[Grant::DeviceCode]);
        provider.next(start_reply(12));
        let code =
            start_device_code(&provider.endpoint(), &account.application, Protocol::Imap).await.unwrap();
        provider.next(Reply::error("authorization_declined", 0));
        let declined = poll_device_code(&provider.endpoint(), &account.application, &code).await;
        assert!(matches!(declined, Err(SignInError::Declined)));
        for _ in 0..5 {
            provider.next(Reply::error("authorization_pending", 70016));
        }
        let expired = poll_device_code(&provider.endpoint(), &account.application, &code).await;
        assert!(matches!(expired, Err(SignInError::Expired)));
    }

    #[test]
    fn the_browser_gets_a_challenge_that_belongs_to_the_verifier() {
        let account = account(&[Grant::AuthorizationCode]);
        let made = authorize(&account.application, Protocol::Smtp, "http://localhost:1", "a@b").unwrap();
        let query: std::collections::HashMap<_, _> = made.url.query_pairs().into_owned().collect();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, made.verifier.expose().as_bytes());
        assert_eq!(query["code_challenge"], URL_SAFE_NO_PAD.encode(digest.as_ref()));
        assert_eq!(
            (query["code_challenge_method"].as_str(), query["response_type"].as_str()),
            ("S256", "code")
        );
        assert_eq!(made.verifier.expose().len(), 43);
        assert!(made.check_state(&query["state"]).is_ok());
        assert!(matches!(made.check_state("forged"), Err(SignInError::State)));
    }

    #[tokio::test]
    async fn a_code_goes_with_its_verifier_and_leaves_something_to_store() {
        let provider = Provider::new();
        let account = account(&[Grant::AuthorizationCode]);
        provider.next(Reply::token("t", 3600, Some("r")));
        let answer = exchange_code(
            &provider.endpoint(),
            &account.application,
            Protocol::Imap,
            &Secret::new("c"),
            "http://localhost:1",
            &Secret::new("v"),
        )
        .await
        .unwrap();
        let asked = &provider.requests()[0];
        assert_eq!((asked.field("code"), asked.field("code_verifier")), (Some("c"), Some("v")));
        let stored = to_store(&answer.token, Grant::AuthorizationCode, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(stored.refresh_token.expose(), "r");
    }

    #[test]
    fn the_tokens_tell_who_has_signed_in() {
        let jwt = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let told = |id_token: &str, access_token: &str| {
            let body = serde_json::json!({"id_token": id_token, "access_token": access_token}).to_string();
            let Reply::Http(raw) = Reply::json(200, &body) else { unreachable!() };
            name(&raw)
        };
        let alice = jwt(r#"{"upn":"alice@contoso.com","name":"A"}"#);
        let bob = jwt(r#"{"preferred_username":"bob@contoso.com"}"#);
        assert_eq!(told(&bob, &alice).as_deref(), Some("bob@contoso.com"));
        assert_eq!(told("e30.e30.x", &alice).as_deref(), Some("alice@contoso.com"));
        for nobody in ["opaque", "a.!.c", &jwt(r#"{"upn":"a@b\u001b[31m"}"#), &jwt(r#"{"upn":7}"#)] {
            assert_eq!(told("", nobody), None, "{nobody}");
        }
    }

    #[test]
    fn one_scope_serves_every_protocol_of_a_sign_in() {
        let account = account(&[Grant::DeviceCode]);
        let application = &account.application;
        let uses =
            [Protocol::Imap, Protocol::Smtp, Protocol::Imap].map(|protocol| (&**application, protocol));
        assert_eq!(
            scope_of_all(uses, Grant::DeviceCode),
            "https://mail.example/IMAP.AccessAsUser.All https://mail.example/SMTP.Send"
        );
        let whole = Application { scope: Some("https://x/.default".to_owned()), ..(**application).clone() };
        let uses = [(&**application, Protocol::Imap), (&whole, Protocol::Smtp)];
        assert_eq!(scope_of_all(uses, Grant::DeviceCode), "https://x/.default");
    }
}
