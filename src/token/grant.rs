//! How a token is asked for: what each grant sends, in which order grants are tried, and what is retried.
//!
//! Never: caches a token, or decides who may ask.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::{DashMap, DashSet};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::answer::{self, AnswerError, TokenAnswer};
use super::assertion;
use super::breaker::Breakers;
use super::endpoint::{Ask, Endpoint, Trouble, WireError};
use super::entropy;
use super::error::{LOOP_DETECTED, TokenError, Verdict, Who};
use super::guard::{Guard, LOOP_HOLD};
use super::managed::ManagedIdentity;
use super::store::{SignInKey, Store, StoreError, StoredSignIn};
use crate::clock;
use crate::config::model::{Account, Application, ClientAuth, Grant, Protocol};
use crate::explain::Explain as _;
use crate::secret::Secret;
use crate::telemetry::metrics::{Metrics, TokenLabels};

/// Requests to identity providers at once.
const MAX_REQUESTS: usize = 256;

/// Tries of one request.
const MAX_TRIES: u32 = 3;

/// The wait before the first retry; it doubles, and is jittered.
const BACK_OFF: Duration = Duration::from_millis(250);

/// Time limit for one operation of the store.
pub const STORE_LIMIT: Duration = Duration::from_secs(2);

/// Longest federated token that is read, in octets.
const MAX_FEDERATED: usize = 64 * 1024;

/// RFC 7523 §2.2.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Everything that asking takes.
#[derive(Debug)]
pub struct Asker {
    /// The way out.
    pub endpoint: ArcSwap<Endpoint>,
    /// Sign-ins.
    pub store: Arc<dyn Store>,
    /// Patience with applications.
    pub guard: Arc<Guard>,
    /// Counts requests.
    pub metrics: Arc<Metrics>,
    /// The platform's own endpoint.
    pub managed: ManagedIdentity,
    breakers: Breakers,
    requests: Semaphore,
    /// Refresh tokens that the store did not take: the newest one must not be lost.
    unsaved: DashMap<SignInKey, StoredSignIn>,
    signing_in: DashMap<SignInKey, Arc<Mutex<()>>>,
    /// Applications whose assertions are signed in the older form. As many as the configuration has.
    old_signatures: DashSet<String>,
    warned_at: AtomicU64,
    born: Instant,
}

/// What is to be asked, owned, for a task of its own.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whose settings.
    pub account: Arc<Account>,
    /// Decides the scope.
    pub protocol: Protocol,
    /// As the client signed in.
    pub user: String,
    /// `None`: renewal in the background.
    pub password: Option<Secret>,
    /// Whether the password was checked here against the account's hashes.
    pub checked_here: bool,
    /// A refresh token of an earlier password grant of this very password.
    pub refresh_token: Option<Secret>,
    /// Nobody waits any longer than this.
    pub deadline: Instant,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The answer.
    pub answer: TokenAnswer,
    /// The grant that served.
    pub grant: Grant,
    /// Whether the identity provider saw the password just now.
    pub proven: bool,
    /// When it was asked.
    pub asked_at: Instant,
}

/// One kind of request.
#[derive(Clone, Copy, Debug)]
enum How<'a> {
    Password(&'a Secret),
    Refresh(&'a Secret),
    ClientCredentials,
    Managed,
}

impl How<'_> {
    fn as_str(self) -> &'static str {
        match self {
            Self::Password(_) => "password",
            Self::Refresh(_) => "refresh-token",
            Self::ClientCredentials => "client-credentials",
            Self::Managed => "managed-identity",
        }
    }
}

impl Asker {
    /// Takes another way out; providers that were given up for a while are tried at once.
    pub fn reconfigure(&self, endpoint: Endpoint) {
        self.endpoint.store(Arc::new(endpoint));
        self.breakers.forget();
    }

    /// With nothing under way.
    pub fn new(
        endpoint: Endpoint,
        store: Arc<dyn Store>,
        guard: Arc<Guard>,
        metrics: Arc<Metrics>,
        managed: ManagedIdentity,
    ) -> Self {
        Self {
            endpoint: ArcSwap::from_pointee(endpoint),
            store,
            guard,
            metrics,
            managed,
            breakers: Breakers::default(),
            requests: Semaphore::new(MAX_REQUESTS),
            unsaved: DashMap::new(),
            signing_in: DashMap::new(),
            old_signatures: DashSet::new(),
            warned_at: AtomicU64::new(0),
            born: clock::now(),
        }
    }

    /// Tries the application's grants in their order; the next one where one cannot be used for good.
    ///
    /// # Errors
    /// That of the last grant tried. A wrong password, a lock-out and whatever passes by itself end the chain.
    pub async fn fetch(&self, question: &Question) -> Result<Fetched, TokenError> {
        let mut last = TokenError::NoGrant { user: question.user.clone() };
        for &grant in &question.account.application.grants {
            let error = match self.by_grant(question, grant).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            if error.verdict() != Verdict::Denied {
                return Err(error);
            }
            if question.account.application.grants.len() > 1 {
                let story = error.explain();
                tracing::warn!(user = %question.user, grant = grant.as_str(), outcome = %story.code, "grant cannot be used: {story}");
            }
            last = error;
        }
        Err(last)
    }

    /// Runs an operation of the store; a store that is slow or away is as if it were not there, said once a
    /// minute.
    pub async fn stored<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, String> {
        let error = match timeout(STORE_LIMIT, work).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", STORE_LIMIT.as_secs()),
        };
        let now = clock::now().saturating_duration_since(self.born).as_secs() + 60;
        let before = self.warned_at.load(Ordering::Relaxed);
        if before + 60 <= now
            && self.warned_at.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::warn!("logins go on without the token store: {error}");
        }
        Err(error)
    }

    async fn by_grant(&self, question: &Question, grant: Grant) -> Result<Fetched, TokenError> {
        if !grant.checks_password() && !question.checked_here {
            return Err(TokenError::Unverifiable { user: question.user.clone(), grant });
        }
        let asked_at = clock::now();
        let (answer, proven) = match grant {
            Grant::Password => self.by_password(question).await?,
            Grant::ClientCredentials => (self.request(question, How::ClientCredentials, grant).await?, false),
            Grant::ManagedIdentity => (self.request(question, How::Managed, grant).await?, false),
            Grant::DeviceCode | Grant::AuthorizationCode => (self.by_sign_in(question, grant).await?, false),
        };
        Ok(Fetched { answer, grant, proven, asked_at })
    }

    /// A refresh token of the same password first; if it is refused, once more with the password itself.
    async fn by_password(&self, question: &Question) -> Result<(TokenAnswer, bool), TokenError> {
        if let Some(refresh_token) = &question.refresh_token {
            match self.request(question, How::Refresh(refresh_token), Grant::Password).await {
                Ok(mut answer) => {
                    // RFC 6749 §6: without a new one, the old one stays good.
                    answer.refresh_token.get_or_insert_with(|| refresh_token.clone());
                    return Ok((answer, false));
                }
                Err(error) if error.verdict() == Verdict::Transient => return Err(error),
                Err(error) if question.password.is_none() => return Err(error),
                Err(_) => {}
            }
        }
        match &question.password {
            Some(password) => {
                Ok((self.request(question, How::Password(password), Grant::Password).await?, true))
            }
            None => Err(TokenError::SignInMissing { user: question.user.clone(), grant: Grant::Password }),
        }
    }

    /// With the refresh token that `mailkey login` stored. A new one is stored, durably, before it is used.
    async fn by_sign_in(&self, question: &Question, grant: Grant) -> Result<TokenAnswer, TokenError> {
        let key = sign_in_key(&question.account.application, &question.user);
        let lock = Arc::clone(&self.signing_in.entry(key.clone()).or_default());
        let result = match timeout_at(question.deadline, lock.lock()).await {
            Ok(_turn) => self.redeem(question, grant, &key).await,
            Err(_) => Err(TokenError::Deadline { authority: key.authority.clone() }),
        };
        drop(lock);
        self.signing_in.remove_if(&key, |_, lock| Arc::strong_count(lock) == 1);
        result
    }

    async fn redeem(
        &self,
        question: &Question,
        grant: Grant,
        key: &SignInKey,
    ) -> Result<TokenAnswer, TokenError> {
        let user = || question.user.clone();
        let unsaved = self.unsaved.get(key).map(|sign_in| sign_in.clone());
        let (sign_in, stored) = match (self.stored(self.store.sign_in(key)).await, unsaved) {
            (Ok(Some(stored)), Some(unsaved)) if unsaved.renewed_at >= stored.renewed_at => {
                (unsaved, Some(stored))
            }
            (Ok(Some(stored)), _) => (stored.clone(), Some(stored)),
            (Ok(None), _) => {
                // Signed out, if there ever was a sign-in: what we could not save goes as well.
                self.unsaved.remove(key);
                return Err(TokenError::SignInMissing { user: user(), grant });
            }
            (Err(_), Some(unsaved)) => (unsaved, None),
            (Err(why), None) => return Err(TokenError::StoreAway { user: user(), why }),
        };
        let answer = self.request(question, How::Refresh(&sign_in.refresh_token), grant).await?;
        if let Some(rotated) = answer.refresh_token.as_ref().filter(|new| **new != sign_in.refresh_token) {
            let renewed =
                StoredSignIn { refresh_token: rotated.clone(), renewed_at: clock::wall(), ..sign_in };
            let saved = match &stored {
                Some(stored) => self.stored(self.store.renew_sign_in(key, stored, &renewed)).await,
                None => Err("it could not be read either".to_owned()),
            };
            match saved {
                // Where it was not taken, somebody signed in anew or out meanwhile, and that stands.
                Ok(_) => drop(self.unsaved.remove(key)),
                Err(why) => {
                    tracing::error!(user = %question.user, "the renewed sign-in is in memory only until the store takes it: {why}");
                    self.unsaved.insert(key.clone(), renewed);
                }
            }
        }
        Ok(answer)
    }

    /// One request, with its retries.
    async fn request(
        &self,
        question: &Question,
        how: How<'_>,
        grant: Grant,
    ) -> Result<TokenAnswer, TokenError> {
        let application = &question.account.application;
        let authority = &application.endpoints.authority;
        let held_as = format!("{} {authority}", application.client_id);
        let mut back_off = BACK_OFF;
        let mut tries = 1;
        loop {
            if let Some(retry_after) = self.guard.throttled(&held_as, clock::now()) {
                return Err(TokenError::Throttled { authority: authority.clone(), retry_after });
            }
            if let Err(retry_after) = self.breakers.admit(authority, clock::now()) {
                return Err(TokenError::Down { authority: authority.clone(), retry_after });
            }
            let error = match self.once(question, how, grant, &held_as).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if knows_old_signatures_only(application, &error) && self.old_signatures.insert(held_as.clone()) {
                tracing::warn!(authority, "a PS256 assertion was refused: signing by RS256 from now on");
                continue;
            }
            let wait = back_off + entropy::up_to(back_off);
            if tries >= MAX_TRIES || !error.worth_a_retry() || clock::now() + wait >= question.deadline {
                return Err(error);
            }
            sleep(wait).await;
            back_off *= 2;
            tries += 1;
        }
    }

    async fn once(
        &self,
        question: &Question,
        how: How<'_>,
        grant: Grant,
        held_as: &str,
    ) -> Result<TokenAnswer, TokenError> {
        let application = &question.account.application;
        let authority = &application.endpoints.authority;
        let late = || TokenError::Deadline { authority: authority.clone() };
        let started = clock::now();
        let Ok(Ok(_room)) = timeout_at(question.deadline, self.requests.acquire()).await else {
            return Err(late());
        };
        let signature =
            if self.old_signatures.contains(held_as) { Signature::Rs256 } else { Signature::Ps256 };
        let ask = self.ask(question, how, grant, signature).await?;
        let result = match timeout_at(question.deadline, self.send(&ask, how)).await {
            Ok(Ok(raw)) => answer::token(&raw, clock::wall()).map_err(|error| {
                read_error(error, authority, || Who::new(&question.user, application, how.as_str()))
            }),
            Ok(Err(error)) => Err(TokenError::Unreachable { authority: authority.clone(), error }),
            Err(_) => {
                let detail = "the login's time limit passed".to_owned();
                let error = WireError::new(Trouble::Timeout, detail);
                Err(TokenError::Unreachable { authority: authority.clone(), error })
            }
        };
        let result = result.map_err(|error| self.hold_back(error, held_as));
        self.judge(authority, &result);
        self.report(question, how, &ask, started, &result);
        result
    }

    async fn send(&self, ask: &Ask, how: How<'_>) -> Result<answer::RawAnswer, WireError> {
        match how {
            How::Managed => self.managed.send(&self.endpoint.load_full(), ask).await,
            How::Password(_) | How::Refresh(_) | How::ClientCredentials => {
                self.endpoint.load_full().send(ask).await
            }
        }
    }

    /// 429 and AADSTS50196 are obeyed for the whole application.
    fn hold_back(&self, error: TokenError, held_as: &str) -> TokenError {
        if let TokenError::Unusable { authority, error: AnswerError::Throttled { retry_after, .. } } = error {
            let retry_after = self.guard.throttle(held_as, retry_after, clock::now());
            return TokenError::Throttled { authority, retry_after };
        }
        if let TokenError::Refused { refused, .. } = &error {
            let told = if refused.has(LOOP_DETECTED) {
                Some(refused.retry_after.map_or(LOOP_HOLD, |told| told.max(LOOP_HOLD)))
            } else {
                refused.retry_after
            };
            if told.is_some() {
                self.guard.throttle(held_as, told, clock::now());
            }
        }
        error
    }

    /// An answer, even a no, shows that the provider is there.
    fn judge(&self, authority: &str, result: &Result<TokenAnswer, TokenError>) {
        match result {
            Err(TokenError::Unreachable { .. } | TokenError::Unusable { .. }) => {
                self.breakers.failed(authority, clock::now());
            }
            Err(error @ TokenError::Refused { .. }) if error.worth_a_retry() => {
                self.breakers.failed(authority, clock::now());
            }
            Ok(_) | Err(_) => self.breakers.answered(authority),
        }
    }

    /// One line and one count per request.
    fn report(
        &self,
        question: &Question,
        how: How<'_>,
        ask: &Ask,
        started: Instant,
        result: &Result<TokenAnswer, TokenError>,
    ) {
        let ms =
            u64::try_from(clock::now().saturating_duration_since(started).as_millis()).unwrap_or(u64::MAX);
        let (grant, user) = (how.as_str(), question.user.as_str());
        let application = question.account.application.client_id.as_str();
        let correlation = ask.correlation.as_str();
        let outcome = match result {
            Ok(answer) => {
                let seconds = answer.lifetime.as_secs();
                tracing::info!(
                    grant,
                    user,
                    application,
                    outcome = "ok",
                    correlation,
                    ms,
                    seconds,
                    "token request"
                );
                "ok".to_owned()
            }
            Err(error) => {
                let story = error.explain();
                let (said, trace) = if let TokenError::Refused { refused, .. } = error {
                    (refused.description.as_str(), refused.trace_id.as_deref().unwrap_or_default())
                } else {
                    ("", "")
                };
                let outcome = story.code.as_ref();
                tracing::warn!(
                    grant,
                    user,
                    application,
                    outcome,
                    correlation,
                    trace,
                    ms,
                    said,
                    "token request: {story}"
                );
                story.code.into_owned()
            }
        };
        let outcome = self.metrics.code_label(&outcome).to_owned();
        self.metrics.token_requests.get_or_create(&TokenLabels { grant, outcome }).inc();
    }

    async fn ask(
        &self,
        question: &Question,
        how: How<'_>,
        grant: Grant,
        signature: Signature,
    ) -> Result<Ask, TokenError> {
        let application = &question.account.application;
        let scope = application.scope_for(question.protocol, grant);
        let mut form = match how {
            How::Managed => {
                return self.managed.ask(&scope, &application.client_id);
            }
            How::Password(password) => vec![
                ("grant_type", Secret::new("password")),
                ("username", Secret::new(question.user.as_str())),
                ("password", password.clone()),
            ],
            How::Refresh(refresh_token) => {
                vec![("grant_type", Secret::new("refresh_token")), ("refresh_token", refresh_token.clone())]
            }
            How::ClientCredentials => vec![("grant_type", Secret::new("client_credentials"))],
        };
        let delegated = !matches!(how, How::ClientCredentials);
        form.push(what_for(application, &scope, delegated));
        form.extend(client_auth(application, signature).await?);
        Ok(Ask::post(&application.endpoints.token, form))
    }
}

/// How a client assertion is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// RSA-PSS with `x5t#S256`: what Microsoft's page on certificate credentials asks for.
    Ps256,
    /// PKCS #1 v1.5 with `x5t`: the older form, for identity providers that know no other (AD FS).
    Rs256,
}

/// Whether this refusal may be about the form of the signature: AADSTS700027, or an `invalid_client` without any
/// code of Entra's.
fn knows_old_signatures_only(application: &Application, error: &TokenError) -> bool {
    let TokenError::Refused { refused, .. } = error else { return false };
    let codeless = refused.codes.is_empty() && refused.error.as_deref() == Some("invalid_client");
    matches!(application.client_auth, ClientAuth::Certificate { .. }) && (refused.has(700_027) || codeless)
}

/// Which stored sign-in serves this user of this application.
pub fn sign_in_key(application: &Application, user: &str) -> SignInKey {
    SignInKey {
        authority: application.endpoints.authority.clone(),
        client_id: application.client_id.clone(),
        user: user.to_lowercase(),
    }
}

/// `scope`, with `offline_access` where a refresh token serves; `resource` for a v1 endpoint.
pub fn what_for(application: &Application, scope: &str, delegated: bool) -> (&'static str, Secret) {
    if let Some(resource) = &application.endpoints.v1_resource {
        return ("resource", Secret::new(resource.as_str()));
    }
    let asks_already = scope.split(' ').any(|one| one == "offline_access");
    // Behind the mail scope: the first scope that names a resource decides for whom the token is.
    if delegated && application.offline_access && !asks_already {
        return ("scope", Secret::new(format!("{scope} offline_access")));
    }
    ("scope", Secret::new(scope))
}

/// `client_id` and how the application proves itself (RFC 6749 §2.3.1, RFC 7523 §2.2).
///
/// # Errors
/// The certificate, its key or the federated token cannot be read.
pub async fn client_auth(
    application: &Application,
    signature: Signature,
) -> Result<Vec<(&'static str, Secret)>, TokenError> {
    let mut fields = vec![("client_id", Secret::new(application.client_id.as_str()))];
    let assertion = match &application.client_auth {
        ClientAuth::Public => return Ok(fields),
        ClientAuth::Secret(secret) => {
            fields.push(("client_secret", secret.clone()));
            return Ok(fields);
        }
        ClientAuth::Certificate { certificate_file, key_file } => {
            let (certificate, key) = (certificate_file.clone(), key_file.clone());
            let client_id = application.client_id.clone();
            let audience = application.endpoints.token.to_string();
            // Reads files and signs: about a millisecond that other sessions should not wait for.
            let sign = match signature {
                Signature::Ps256 => assertion::client_assertion,
                Signature::Rs256 => assertion::client_assertion_rs256,
            };
            let signed = tokio::task::spawn_blocking(move || {
                sign(&certificate, &key, &client_id, &audience, clock::wall())
            });
            match signed.await {
                Ok(Ok(signed)) => signed,
                Ok(Err(error)) => return Err(TokenError::Assertion { why: error.to_string() }),
                Err(_) => return Err(TokenError::Crashed),
            }
        }
        ClientAuth::FederatedTokenFile(path) => federated_token(path).await?,
    };
    fields.push(("client_assertion_type", Secret::new(JWT_BEARER)));
    fields.push(("client_assertion", assertion));
    Ok(fields)
}

/// Read anew at each request: the platform rotates it.
async fn federated_token(path: &Path) -> Result<Secret, TokenError> {
    let error = |why: String| TokenError::FederatedToken { path: path.to_owned(), why };
    let text = tokio::fs::read_to_string(path).await.map_err(|e| error(e.to_string()))?;
    let text = zeroize::Zeroizing::new(text);
    match text.trim() {
        "" => Err(error("it is empty".to_owned())),
        long if long.len() > MAX_FEDERATED => Err(error(format!("it is longer than {MAX_FEDERATED} octets"))),
        token => Ok(Secret::new(token)),
    }
}

/// Puts an answer without a token into the broker's words.
pub fn read_error(error: AnswerError, authority: &str, who: impl FnOnce() -> Who) -> TokenError {
    if let AnswerError::Refused(refused) = error {
        return TokenError::Refused { refused, who: Box::new(who()) };
    }
    TokenError::Unusable { authority: authority.to_owned(), error }
}
