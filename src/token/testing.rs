//! For the broker's own tests: an identity provider and a store that obey the test.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, Version};
use zeroize::Zeroizing;

use super::answer::{Body, RawAnswer};
use super::endpoint::{Ask, Endpoint, Trouble, Wire, WireError, WireFuture};
use super::store::{Digest, Lease, SharedToken, SignInKey, Store, StoreError, StoreFuture, StoredSignIn};
use crate::config::model::{Account, Application, ClientAuth, Endpoints, Grant, Sasl, UserPattern};

/// An account of everybody with these grants; local passwords `local` and `local2` where they are needed.
pub(crate) fn account(grants: &[Grant]) -> Arc<Account> {
    account_with(grants, |_| {})
}

/// The same, changed.
pub(crate) fn account_with(grants: &[Grant], change: impl FnOnce(&mut Application)) -> Arc<Account> {
    let mut application = Application {
        endpoints: Endpoints {
            token: "https://login.example/t1/token".parse().unwrap(),
            authorize: Some("https://login.example/t1/authorize".parse().unwrap()),
            device: Some("https://login.example/t1/devicecode".parse().unwrap()),
            authority: "https://login.example/t1".to_owned(),
            v1_resource: None,
        },
        client_id: "client-1".to_owned(),
        client_auth: ClientAuth::Public,
        secret_expires: None,
        scope: None,
        resource: "https://mail.example".to_owned(),
        grants: grants.to_vec(),
        offline_access: true,
        sasl: Sasl::Xoauth2,
    };
    change(&mut application);
    let checked_here = application.grants.iter().any(|grant| !grant.checks_password());
    Arc::new(Account {
        user: UserPattern::new("*"),
        login: None,
        mailbox: None,
        mailbox_smtp: None,
        password: None,
        vouched: false,
        ews_mailboxes: Vec::new(),
        application: Arc::new(application),
        password_hashes: if checked_here { vec![hash("local"), hash("local2")] } else { Vec::new() },
    })
}

/// An Argon2id hash that costs next to nothing.
fn hash(password: &str) -> String {
    let cheap = Params::new(8, 1, 1, None).unwrap();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, cheap)
        .hash_password(password.as_bytes())
        .unwrap()
        .to_string()
}

/// What the provider does next.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Answers.
    Http(RawAnswer),
    /// Does not.
    Broken(Trouble),
    /// Neither, ever.
    Silence,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        let body = Body(Zeroizing::new(body.as_bytes().to_vec()));
        Self::Http(RawAnswer { status, body, ..RawAnswer::default() })
    }

    pub(crate) fn token(token: &str, expires_in: u64, refresh_token: Option<&str>) -> Self {
        let body = serde_json::json!({
            "access_token": token, "expires_in": expires_in, "refresh_token": refresh_token,
        });
        Self::json(200, &body.to_string())
    }

    pub(crate) fn error(error: &str, code: u32) -> Self {
        let body = serde_json::json!({"error": error, "error_codes": [code]});
        Self::json(400, &body.to_string())
    }

    pub(crate) fn retry_after(self, value: &str) -> Self {
        match self {
            Self::Http(answer) => Self::Http(RawAnswer { retry_after: Some(value.to_owned()), ..answer }),
            Self::Broken(_) | Self::Silence => self,
        }
    }
}

/// An identity provider. What is not foretold by `next` follows its rule: `right` is the password.
#[derive(Clone, Debug)]
pub(crate) struct Provider(Arc<State>);

#[derive(Debug)]
struct State {
    next: Mutex<VecDeque<Reply>>,
    requests: Mutex<Vec<Ask>>,
    under_way: Mutex<HashSet<String>>,
    delay: Mutex<Duration>,
    right: Mutex<String>,
    lifetime: Mutex<u64>,
    refresh_tokens: AtomicBool,
    down: Mutex<Option<Reply>>,
    overlaps: AtomicUsize,
    given: AtomicUsize,
}

impl Provider {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            next: Mutex::default(),
            requests: Mutex::default(),
            under_way: Mutex::default(),
            delay: Mutex::new(Duration::from_millis(100)),
            right: Mutex::new("right".to_owned()),
            lifetime: Mutex::new(3600),
            refresh_tokens: AtomicBool::new(false),
            down: Mutex::default(),
            overlaps: AtomicUsize::new(0),
            given: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::over(Arc::new(self.clone()))
    }

    /// Foretells one more answer.
    pub(crate) fn next(&self, reply: Reply) {
        self.0.next.lock().unwrap().push_back(reply);
    }

    /// Answers everything like this until told otherwise.
    pub(crate) fn always(&self, reply: Option<Reply>) {
        *self.0.down.lock().unwrap() = reply;
    }

    pub(crate) fn right_password(&self, password: &str) {
        password.clone_into(&mut self.0.right.lock().unwrap());
    }

    pub(crate) fn lifetime(&self, seconds: u64) {
        *self.0.lifetime.lock().unwrap() = seconds;
    }

    pub(crate) fn gives_refresh_tokens(&self) {
        self.0.refresh_tokens.store(true, Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> Vec<Ask> {
        self.0.requests.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.requests.lock().unwrap().len()
    }

    /// How often the same question came while it was being answered.
    pub(crate) fn overlaps(&self) -> usize {
        self.0.overlaps.load(Ordering::SeqCst)
    }

    fn rule(&self, ask: &Ask) -> Reply {
        let right = self.0.right.lock().unwrap().clone();
        if ask.field("grant_type") == Some("password") && ask.field("password") != Some(right.as_str()) {
            return Reply::error("invalid_grant", 50126);
        }
        let n = self.0.given.fetch_add(1, Ordering::SeqCst) + 1;
        let refresh = self.0.refresh_tokens.load(Ordering::SeqCst).then(|| format!("r{n}"));
        Reply::token(&format!("t{n}"), *self.0.lifetime.lock().unwrap(), refresh.as_deref())
    }
}

impl Wire for Provider {
    fn send<'a>(&'a self, ask: &'a Ask) -> WireFuture<'a> {
        Box::pin(async move {
            let question = [ask.field("username"), ask.field("scope"), ask.field("password")]
                .map(Option::unwrap_or_default)
                .join("\0");
            self.0.requests.lock().unwrap().push(ask.clone());
            if !self.0.under_way.lock().unwrap().insert(question.clone()) {
                self.0.overlaps.fetch_add(1, Ordering::SeqCst);
            }
            let delay = *self.0.delay.lock().unwrap();
            tokio::time::sleep(delay).await;
            self.0.under_way.lock().unwrap().remove(&question);
            let foretold = self.0.next.lock().unwrap().pop_front();
            let always = self.0.down.lock().unwrap().clone();
            match foretold.or(always).unwrap_or_else(|| self.rule(ask)) {
                Reply::Http(answer) => Ok(answer),
                Reply::Broken(trouble) => Err(WireError::new(trouble, "as told")),
                Reply::Silence => std::future::pending().await,
            }
        })
    }
}

/// A store in memory that can be away, and that remembers in which order things happened.
#[derive(Debug, Default)]
pub(crate) struct TestStore {
    pub(crate) sign_ins: Mutex<BTreeMap<SignInKey, StoredSignIn>>,
    pub(crate) shared: Mutex<BTreeMap<Digest, SharedToken>>,
    pub(crate) away: AtomicBool,
    /// Whether it acts as one that replicas share.
    pub(crate) shares: AtomicBool,
    /// Whether another replica holds every lease.
    pub(crate) leased: AtomicBool,
    /// The next look for a shared token comes a moment before another replica shares it.
    pub(crate) early: AtomicBool,
    pub(crate) wrong: Mutex<HashSet<(Digest, Digest)>>,
    pub(crate) saved: AtomicUsize,
    /// How long storing a sign-in takes.
    pub(crate) save_takes: Mutex<Duration>,
}

impl TestStore {
    fn answer<'a, T: Send + 'a>(&'a self, work: impl FnOnce() -> T + Send + 'a) -> StoreFuture<'a, T> {
        Box::pin(async move {
            if self.away.load(Ordering::SeqCst) {
                return Err(StoreError::Away("as told".to_owned()));
            }
            Ok(work())
        })
    }

    fn sharing(&self) -> bool {
        self.shares.load(Ordering::SeqCst)
    }
}

impl Store for TestStore {
    fn digest(&self, parts: &[&[u8]]) -> Digest {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in parts {
            context.update(&part.len().to_le_bytes());
            context.update(part);
        }
        context.finish().as_ref().try_into().unwrap()
    }

    fn sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, Option<StoredSignIn>> {
        self.answer(|| self.sign_ins.lock().unwrap().get(key).cloned())
    }

    fn save_sign_in<'a>(&'a self, key: &'a SignInKey, sign_in: &'a StoredSignIn) -> StoreFuture<'a, ()> {
        let saved = self.answer(|| {
            self.saved.fetch_add(1, Ordering::SeqCst);
            self.sign_ins.lock().unwrap().insert(key.clone(), sign_in.clone());
        });
        let takes = *self.save_takes.lock().unwrap();
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            saved.await
        })
    }

    fn renew_sign_in<'a>(
        &'a self,
        key: &'a SignInKey,
        before: &'a StoredSignIn,
        renewed: &'a StoredSignIn,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let stored = self.sign_in(key).await?;
            if stored.is_none_or(|stored| stored.refresh_token != before.refresh_token) {
                return Ok(false);
            }
            self.save_sign_in(key, renewed).await.map(|()| true)
        })
    }

    fn remove_sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, bool> {
        self.answer(|| self.sign_ins.lock().unwrap().remove(key).is_some())
    }

    fn sign_ins(&self) -> StoreFuture<'_, Vec<(SignInKey, StoredSignIn)>> {
        self.answer(|| self.sign_ins.lock().unwrap().clone().into_iter().collect())
    }

    fn shared_token<'a>(&'a self, key: &'a Digest) -> StoreFuture<'a, Option<SharedToken>> {
        self.answer(|| {
            let early = self.early.swap(false, Ordering::SeqCst);
            self.shared.lock().unwrap().get(key).filter(|_| !early).cloned()
        })
    }

    fn share_token<'a>(&'a self, key: &'a Digest, token: &'a SharedToken) -> StoreFuture<'a, ()> {
        self.answer(|| {
            if self.sharing() {
                self.shared.lock().unwrap().insert(*key, token.clone());
            }
        })
    }

    fn unshare_token<'a>(&'a self, key: &'a Digest) -> StoreFuture<'a, ()> {
        self.answer(|| drop(self.shared.lock().unwrap().remove(key)))
    }

    fn lease<'a>(&'a self, key: &'a Digest, _ttl: Duration) -> StoreFuture<'a, Option<Lease>> {
        self.answer(|| {
            let free = !self.leased.load(Ordering::SeqCst);
            free.then_some(Lease { key: *key, fence: [0; 16] })
        })
    }

    fn give_back<'a>(&'a self, _lease: &'a Lease) -> StoreFuture<'a, ()> {
        self.answer(|| ())
    }

    fn count_wrong_password<'a>(
        &'a self,
        user: &'a Digest,
        password: &'a Digest,
        _window: Duration,
    ) -> StoreFuture<'a, Option<u32>> {
        self.answer(move || {
            let mut wrong = self.wrong.lock().unwrap();
            wrong.insert((*user, *password));
            self.sharing().then(|| u32::try_from(wrong.iter().filter(|(u, _)| u == user).count()).unwrap())
        })
    }
}

/// A file that holds a federated token.
pub(crate) fn write_token(directory: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = directory.path().join("token");
    std::fs::write(&path, text).unwrap();
    path
}
