//! The broker's story: whose password it is, what is at hand, who is asking already, and what follows from an
//! answer.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Entry, Live, MAX_SLOTS, Slot};
use super::endpoint::Endpoint;
use super::entropy::{self, Digest, ProcessKey};
use super::error::{TokenError, Verdict};
use super::flight::Flights;
use super::grant::{Asker, Fetched, Question};
use super::guard::{Asking, Guard};
use super::managed::ManagedIdentity;
use super::password::LocalPasswords;
use super::request::{Granted, Origin, TokenFuture, TokenRequest, Tokens};
use super::store::{Lease, SharedToken, SignInKey, Store, StoredSignIn};
use crate::clock;
use crate::config::model::{self, Account, Application, Grant, Protocol};
use crate::explain::{Explain as _, Explanation};
use crate::secret::{AccessToken, Credentials, Secret};
use crate::task;
use crate::telemetry::metrics::Metrics;

/// A request goes on this long at least, even if the caller has less patience: others may want its result.
const SHORTEST_FLIGHT: Duration = Duration::from_secs(5);

/// A request goes on this long at most.
const LONGEST_FLIGHT: Duration = Duration::from_mins(1);

/// A login that has a valid token in reserve waits no longer than this for a newer one.
const STALE_PATIENCE: Duration = Duration::from_secs(3);

/// Where the password grant renews by refresh token, the identity provider sees the password this often at
/// least: a changed password must not live on.
const PROOF_LIFE: Duration = Duration::from_hours(8);

/// A token that upstream refused is dropped, but no second one within this time: it is not the token's age that
/// upstream dislikes then, and Entra takes many identical requests for a loop (AADSTS50196).
const DROP_PAUSE: Duration = Duration::from_mins(1);

/// What no client has used for this long is not renewed any more.
const RECENT_USE: Duration = Duration::from_hours(1);

/// What no client has used for this long is dropped.
const LONGEST_IDLE: Duration = Duration::from_hours(24);

/// How often the background task looks.
const TICK: Duration = Duration::from_secs(15);

/// Renewals in the background at once.
const MAX_RENEWALS: usize = 8;

/// How long another replica's request is waited for before asking too.
const LEASE_WAIT: Duration = Duration::from_secs(5);

/// How often another replica's result is looked for.
const LEASE_POLL: Duration = Duration::from_millis(150);

/// What the broker needs to know.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Refresh margin; the store itself is given apart.
    pub tokens: model::Tokens,
    /// Budgets and holds.
    pub guard: model::Guard,
    /// Where managed identities come from.
    pub managed_identity: ManagedIdentity,
}

/// Gives a token for credentials.
#[derive(Debug)]
pub struct Broker {
    inner: Arc<Inner>,
}

/// One line of the status page.
#[derive(Clone, Debug)]
pub struct AccountSnapshot {
    /// User name in lower case.
    pub user: String,
    /// Application (client) ID.
    pub application: String,
    /// Decides the scope.
    pub protocol: Protocol,
    /// The grant that served last.
    pub grant: Option<Grant>,
    /// How old its token is.
    pub token_age: Option<Duration>,
    /// How long its token lives yet; `None`: there is no valid one.
    pub expires_in: Option<Duration>,
    /// When a client last asked.
    pub unused_for: Duration,
    /// What went wrong last and when, if nothing went right after it.
    pub last_failure: Option<(jiff::Timestamp, Explanation)>,
}

impl Tokens for Broker {
    fn token<'a>(&'a self, request: &'a TokenRequest<'a>) -> TokenFuture<'a> {
        Box::pin(async move { self.token(request).await.map_err(|error| error.explain()) })
    }

    fn refused_upstream(&self, request: &TokenRequest<'_>, token: &AccessToken) -> bool {
        self.refused_upstream(request, token)
    }
}

#[derive(Debug)]
struct Inner {
    key: ProcessKey,
    margin: ArcSwap<Duration>,
    cache: Cache,
    guard: Arc<Guard>,
    asker: Asker,
    passwords: LocalPasswords,
    flights: Flights<(Digest, Digest), Result<Granted, TokenError>>,
    renewals: Semaphore,
}

/// Who asks, as digests.
#[derive(Clone, Copy, Debug)]
struct Names {
    slot: Digest,
    password: Digest,
    /// Whether the password is checked here, against the account's hashes.
    local: bool,
}

impl Broker {
    /// With an empty cache. Nothing is asked yet.
    pub fn new(
        settings: BrokerSettings,
        endpoint: Endpoint,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let guard = Arc::new(Guard::new(settings.guard));
        let asker = Asker::new(endpoint, store, Arc::clone(&guard), metrics, settings.managed_identity);
        Arc::new(Self {
            inner: Arc::new(Inner {
                key: ProcessKey::default(),
                margin: ArcSwap::from_pointee(settings.tokens.refresh_margin),
                cache: Cache::new(MAX_SLOTS, clock::now()),
                guard,
                asker,
                passwords: LocalPasswords::new(),
                flights: Flights::default(),
                renewals: Semaphore::new(MAX_RENEWALS),
            }),
        })
    }

    /// Goes on with other settings and another way out. Tokens, sign-ins and the store stay as they are.
    pub fn reconfigure(&self, settings: BrokerSettings, endpoint: Endpoint) {
        self.inner.margin.store(Arc::new(settings.tokens.refresh_margin));
        self.inner.guard.reconfigure(settings.guard);
        self.inner.asker.reconfigure(endpoint);
    }

    /// A token for these credentials. Cancelling it harms nobody: the request under way goes on.
    ///
    /// # Errors
    /// There is none; the explanation says whose fault it is and what to do.
    pub async fn token(&self, request: &TokenRequest<'_>) -> Result<Granted, TokenError> {
        let inner = &self.inner;
        let as_login = as_login(request);
        let request = &request.with(as_login.as_ref());
        let names = inner.names(request);
        if names.local && !request.account.vouched {
            inner.check_here(request, &names).await?;
        }
        let now = clock::now();
        let slot = inner.cache.find(&names.slot);
        if let Some(slot) = &slot {
            inner.cache.touch(slot, now);
            if let Some((token, expires_at)) = slot.fresh(&names.password, now) {
                return Ok(Granted { token, expires_at, origin: Origin::Cached });
            }
        }
        let reserve = slot.and_then(|slot| slot.open(&names.password)).and_then(|entry| reserve(&entry, now));
        let question = Question {
            account: Arc::clone(request.account),
            protocol: request.protocol,
            user: request.credentials.user.clone(),
            password: Some(request.credentials.password.clone()),
            checked_here: names.local,
            refresh_token: None,
            deadline: request.deadline.clamp(now + SHORTEST_FLIGHT, now + LONGEST_FLIGHT),
        };
        inner.await_flight(question, names, request, reserve, now).await
    }

    /// Upstream refused this token. It is dropped, so that asking once more gives another one; `false` if that
    /// would not help: another was dropped just before, or it is no longer there.
    pub fn refused_upstream(&self, request: &TokenRequest<'_>, token: &AccessToken) -> bool {
        let as_login = as_login(request);
        let request = &request.with(as_login.as_ref());
        let names = self.inner.names(request);
        let Some(slot) = self.inner.cache.find(&names.slot) else { return false };
        let dropped = slot.drop_token(token, DROP_PAUSE, clock::now());
        if dropped {
            let inner = Arc::clone(&self.inner);
            let shared = inner.shared_key(&names, request.account, request.protocol, request.credentials);
            task::start(async move {
                drop(inner.asker.stored(inner.asker.store.unshare_token(&shared)).await);
            });
        }
        dropped
    }

    /// What the status page shows: at most [`MAX_SLOTS`] lines, by user.
    pub fn snapshot(&self) -> Vec<AccountSnapshot> {
        let now = clock::now();
        let mut lines: Vec<AccountSnapshot> =
            self.inner.cache.all().iter().map(|(_, slot)| self.inner.line(slot, now)).collect();
        lines.sort_by(|a, b| a.user.cmp(&b.user).then(a.protocol.cmp(&b.protocol)));
        lines.truncate(MAX_SLOTS);
        lines
    }

    /// Who has signed in ahead, and when that ends unless it is used before.
    pub async fn sign_in_ends(&self) -> Vec<(String, jiff::Timestamp)> {
        let asker = &self.inner.asker;
        let all = asker.stored(asker.store.sign_ins()).await.unwrap_or_default();
        let end =
            |(key, sign_in): (SignInKey, StoredSignIn)| Some((key.user, sign_in.runs_out(&key.authority)?));
        all.into_iter().filter_map(end).collect()
    }

    /// Renews tokens in recent use ahead of their end, where that takes no password. Ends with `cancel`.
    pub async fn renew_forever(self: Arc<Self>, cancel: CancellationToken) {
        while cancel.run_until_cancelled(sleep(TICK)).await.is_some() {
            let now = clock::now();
            self.inner.cache.sweep(LONGEST_IDLE, now);
            self.inner.guard.sweep(now);
            for (key, slot) in self.inner.cache.all() {
                if self.inner.cache.unused_for(&slot, now) < RECENT_USE
                    && let Some(question) = renewal(&slot, now)
                {
                    let inner = Arc::clone(&self.inner);
                    task::start(async move { inner.renew(key, &slot, question).await });
                }
            }
        }
    }
}

impl Inner {
    /// Digests of everything that tells one token from another. No allocation for user names in ASCII.
    fn names(&self, request: &TokenRequest<'_>) -> Names {
        let application = &request.account.application;
        let local = !application.grants.iter().all(|grant| grant.checks_password());
        let delegated = application
            .grants
            .iter()
            .any(|g| !matches!(g, Grant::ClientCredentials | Grant::ManagedIdentity));
        // Where no scope is configured, it follows from the protocol for delegated grants.
        let scope = match &application.scope {
            Some(scope) => scope.as_str(),
            None if delegated => request.protocol.as_str(),
            None => "",
        };
        let mut grants = [0_u8; 8];
        for (place, grant) in grants.iter_mut().zip(&application.grants) {
            *place = 1 + *grant as u8;
        }
        let endpoint = application.endpoints.token.as_str().as_bytes();
        in_lower_case(&request.credentials.user, |user| Names {
            slot: self.key.digest(&[
                b"slot",
                if is_for_everybody(application) { b"" } else { user },
                endpoint,
                application.client_id.as_bytes(),
                &grants,
                scope.as_bytes(),
                application.resource.as_bytes(),
            ]),
            // Whoever passes the check here may use the token, whichever of the account's passwords it was.
            password: if local {
                [0; 32]
            } else {
                self.key.digest(&[b"password", user, request.credentials.password.expose().as_bytes()])
            },
            local,
        })
    }

    /// The user as the guard knows him: whatever the application, as Entra locks people. Not needed for a hit.
    fn person(&self, user: &str, account: &Account, local: bool) -> Digest {
        let authority = account.application.endpoints.authority.as_bytes();
        in_lower_case(user, |user| {
            if local {
                self.key.digest(&[b"local", user])
            } else {
                self.key.digest(&[b"person", user, authority])
            }
        })
    }

    /// Where the identity provider does not check the password, we do, before anything else.
    async fn check_here(&self, request: &TokenRequest<'_>, names: &Names) -> Result<(), TokenError> {
        let (account, who) = (request.account, request.credentials);
        // The work is done even where there are no hashes, so that time tells nothing.
        let checked = self.passwords.check(&account.password_hashes, &who.user, &who.password).await;
        if account.password_hashes.is_empty()
            && let Some(&grant) = account.application.grants.iter().find(|grant| !grant.checks_password())
        {
            return Err(TokenError::Unverifiable { user: who.user.clone(), grant });
        }
        match checked {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // Nothing is known about this password: no word about it, and it counts against nobody.
            Err(_) => return Err(TokenError::Busy),
        }
        let digest = in_lower_case(&who.user, |user| {
            self.key.digest(&[b"password", user, who.password.expose().as_bytes()])
        });
        let now = clock::now();
        let wrong = self.guard.wrong(self.person(&who.user, account, true), digest, now);
        let error = TokenError::WrongPassword { user: who.user.clone() };
        self.note_failure(&names.slot, &who.user, account, request.protocol, &error);
        self.delay(wrong, request).await;
        Err(error)
    }

    async fn await_flight(
        self: &Arc<Self>,
        question: Question,
        names: Names,
        request: &TokenRequest<'_>,
        reserve: Option<Granted>,
        now: Instant,
    ) -> Result<Granted, TokenError> {
        let deadline = request.deadline;
        let authority = question.account.application.endpoints.authority.clone();
        let patience = if reserve.is_some() { deadline.min(now + STALE_PATIENCE) } else { deadline };
        let mut boarded_again = false;
        let error = loop {
            let (inner, asked) = (Arc::clone(self), question.clone());
            let seat = self.flights.board((names.slot, names.password), move || inner.fly(asked, names));
            let started = seat.started;
            match timeout_at(patience, seat.wait()).await {
                Ok(Some(Ok(granted))) if started || granted.origin != Origin::Fetched => return Ok(granted),
                Ok(Some(Ok(granted))) => return Ok(Granted { origin: Origin::Shared, ..granted }),
                // It may have been a renewal in the background, which had no password to fall back to. If it
                // was not, the guard repeats the answer.
                Ok(Some(Err(error))) if !started && !boarded_again && error.verdict() == Verdict::Denied => {
                    boarded_again = true;
                }
                Ok(Some(Err(error))) => break error,
                Ok(None) => break TokenError::Crashed,
                Err(_) => break TokenError::Deadline { authority },
            }
        };
        match error.verdict() {
            // A valid token outlives an outage, and a lock-out that somebody else's guesses caused.
            Verdict::Transient | Verdict::Locked(_) => {
                reserve.filter(|granted| clock::now() < granted.expires_at).ok_or(error)
            }
            Verdict::WrongPassword => {
                let person = self.person(&question.user, &question.account, names.local);
                self.delay(self.guard.wrong_count(&person), request).await;
                Err(error)
            }
            Verdict::Denied => Err(error),
        }
    }

    /// The request itself, in a task of its own.
    async fn fly(self: Arc<Self>, mut question: Question, names: Names) -> Result<Granted, TokenError> {
        let now = clock::now();
        let slot = self.cache.find(&names.slot);
        let entry = slot.as_ref().and_then(|slot| slot.open(&names.password));
        // Somebody may have been faster between this caller's look and its boarding.
        if let Some((token, expires_at)) = slot.as_ref().and_then(|slot| slot.fresh(&names.password, now))
            && question.password.is_some()
        {
            return Ok(Granted { token, expires_at, origin: Origin::Shared });
        }
        let asking = Asking {
            user: &question.user,
            person: self.person(&question.user, &question.account, names.local),
            slot: names.slot,
            password: names.password,
            proven: names.local || entry.is_some(),
        };
        let result = match self.guard.admit(&asking, now) {
            Ok(_permit) => {
                question.refresh_token =
                    entry.and_then(|entry| entry.refresh_token.clone().filter(|_| proof_holds(&entry, now)));
                let result = self.ask_or_share(&question, &names).await;
                if let Err(error) = &result {
                    self.draw_conclusions(error, &question, &names).await;
                }
                result
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            self.note_failure(&names.slot, &question.user, &question.account, question.protocol, error);
        }
        result
    }

    /// Another replica's token, or one of our own that we share.
    async fn ask_or_share(&self, question: &Question, names: &Names) -> Result<Granted, TokenError> {
        let store = &self.asker.store;
        let shared_key = match &question.password {
            Some(password) => {
                self.shared_digest(names, &question.account, question.protocol, &question.user, password)
            }
            // A renewal without the password cannot name the token for others; it is ours alone.
            None if !names.local => return self.ask(question, names, None).await,
            None => self.shared_digest(
                names,
                &question.account,
                question.protocol,
                &question.user,
                &Secret::new(""),
            ),
        };
        if question.password.is_some()
            && let Some(granted) = self.take_shared(&shared_key, question, names).await
        {
            return Ok(granted);
        }
        let ttl = question.deadline.saturating_duration_since(clock::now()) + Duration::from_secs(1);
        let lease = match self.asker.stored(store.lease(&shared_key, ttl)).await {
            Ok(Some(lease)) => {
                // The one who held it before may have shared its token since we looked.
                if question.password.is_some()
                    && let Some(granted) = self.take_shared(&shared_key, question, names).await
                {
                    self.give_back(Some(lease)).await;
                    return Ok(granted);
                }
                Some(lease)
            }
            Ok(None) => match self.wait_for_other(&shared_key, question, names).await {
                Some(granted) => return Ok(granted),
                None => None,
            },
            Err(_) => None,
        };
        let result = self.ask(question, names, Some(&shared_key)).await;
        self.give_back(lease).await;
        result
    }

    async fn ask(
        &self,
        question: &Question,
        names: &Names,
        share_as: Option<&super::store::Digest>,
    ) -> Result<Granted, TokenError> {
        let fetched = self.asker.fetch(question).await?;
        let granted = self.keep(question, names, &fetched);
        if let Some(key) = share_as {
            let lifetime = granted.expires_at.saturating_duration_since(clock::now());
            if let Ok(lifetime) = jiff::SignedDuration::try_from(lifetime)
                && let Ok(expires_at) = clock::wall().checked_add(lifetime)
            {
                let token = SharedToken { token: granted.token.clone(), expires_at };
                drop(self.asker.stored(self.asker.store.share_token(key, &token)).await);
            }
        }
        Ok(granted)
    }

    /// Into the cache with what was granted.
    fn keep(&self, question: &Question, names: &Names, fetched: &Fetched) -> Granted {
        let now = clock::now();
        let answer = &fetched.answer;
        let live =
            Live::new(answer.access_token.clone(), fetched.asked_at, answer.lifetime, **self.margin.load());
        let granted =
            Granted { token: live.token.clone(), expires_at: live.expires_at, origin: Origin::Fetched };
        let user = shown(&question.user, &question.account);
        let slot = self.cache.slot(names.slot, user, &question.account, question.protocol, now);
        let proven_before = slot.open(&names.password).map(|entry| entry.proven_at);
        // A sign-in's refresh token belongs into the store, not here.
        let refresh_token = match fetched.grant {
            Grant::Password => answer.refresh_token.clone(),
            Grant::ClientCredentials
            | Grant::DeviceCode
            | Grant::AuthorizationCode
            | Grant::ManagedIdentity => None,
        };
        slot.put(Entry {
            password: names.password,
            proven_at: if fetched.proven {
                fetched.asked_at
            } else {
                proven_before.unwrap_or(fetched.asked_at)
            },
            grant: fetched.grant,
            refresh_token,
            live: Some(live),
        });
        if fetched.proven {
            let person = self.person(&question.user, &question.account, names.local);
            self.guard.right(person, names.password);
        }
        granted
    }

    async fn take_shared(
        &self,
        key: &super::store::Digest,
        question: &Question,
        names: &Names,
    ) -> Option<Granted> {
        let shared = self.asker.stored(self.asker.store.shared_token(key)).await.ok()??;
        let lifetime = clock::wall().duration_until(shared.expires_at);
        let lifetime = Duration::try_from(lifetime).ok().filter(|left| *left > **self.margin.load())?;
        let now = clock::now();
        let live = Live::new(shared.token, now, lifetime, **self.margin.load());
        let granted =
            Granted { token: live.token.clone(), expires_at: live.expires_at, origin: Origin::Shared };
        let user = shown(&question.user, &question.account);
        let slot = self.cache.slot(names.slot, user, &question.account, question.protocol, now);
        let grant = question.account.application.grants.first().copied().unwrap_or(Grant::Password);
        slot.put(Entry {
            password: names.password,
            proven_at: now,
            grant,
            refresh_token: None,
            live: Some(live),
        });
        Some(granted)
    }

    /// Another replica asks already: its token is waited for, a little.
    async fn wait_for_other(
        &self,
        key: &super::store::Digest,
        question: &Question,
        names: &Names,
    ) -> Option<Granted> {
        let until = question.deadline.min(clock::now() + LEASE_WAIT);
        while clock::now() < until {
            sleep(LEASE_POLL + entropy::up_to(LEASE_POLL)).await;
            if let Some(granted) = self.take_shared(key, question, names).await {
                return Some(granted);
            }
        }
        None
    }

    async fn give_back(&self, lease: Option<Lease>) {
        if let Some(lease) = lease {
            drop(self.asker.stored(self.asker.store.give_back(&lease)).await);
        }
    }

    /// What a failure teaches about this password, this user and this application.
    async fn draw_conclusions(&self, error: &TokenError, question: &Question, names: &Names) {
        let TokenError::Refused { .. } = error else { return };
        if question.password.is_none() && !names.local {
            // A refresh token was refused, nothing was learnt about the password.
            if error.verdict() != Verdict::Transient
                && let Some(slot) = self.cache.find(&names.slot)
            {
                slot.drop_refresh_token(&names.password);
            }
            return;
        }
        let now = clock::now();
        let person = self.person(&question.user, &question.account, names.local);
        match error.verdict() {
            Verdict::WrongPassword if names.local => {
                self.guard.denied(names.slot, names.password, error.clone(), now);
            }
            Verdict::WrongPassword => {
                self.guard.wrong(person, names.password, now);
                if let Some(slot) = self.cache.find(&names.slot) {
                    slot.disprove(&names.password);
                }
                let store = &self.asker.store;
                let authority = question.account.application.endpoints.authority.as_bytes();
                let user = question.user.to_lowercase();
                let password = question.password.as_ref().map_or("", Secret::expose);
                let everywhere = store.digest(&[b"person", user.as_bytes(), authority]);
                let digest = store.digest(&[b"password", user.as_bytes(), password.as_bytes()]);
                let window = self.guard.window();
                let counted =
                    self.asker.stored(store.count_wrong_password(&everywhere, &digest, window)).await;
                if let Ok(Some(wrong)) = counted {
                    self.guard.counted_elsewhere(person, wrong, now);
                }
            }
            Verdict::Locked(hold) => self.guard.locked(person, hold, now),
            Verdict::Denied => self.guard.denied(names.slot, names.password, error.clone(), now),
            Verdict::Transient => {}
        }
    }

    /// A renewal in the background, in the same flight that a login would board.
    async fn renew(self: Arc<Self>, key: Digest, slot: &Slot, question: Question) {
        let Ok(_room) = self.renewals.acquire().await else { return };
        let Some(entry) = slot.peek() else { return };
        let local = question.checked_here;
        let names = Names { slot: key, password: entry.password, local };
        let deadline = clock::now() + LONGEST_FLIGHT / 2;
        let inner = Arc::clone(&self);
        let question = Question { deadline, ..question };
        let seat = self.flights.board((key, entry.password), move || inner.fly(question, names));
        // The flight ends by its own deadline; success and failure are in the log and the slot already.
        drop(timeout_at(deadline + SHORTEST_FLIGHT, seat.wait()).await);
    }

    fn note_failure(
        &self,
        key: &Digest,
        user: &str,
        account: &Arc<Account>,
        protocol: Protocol,
        error: &TokenError,
    ) {
        let slot = self.cache.slot(*key, shown(user, account), account, protocol, clock::now());
        slot.failed(clock::wall(), error.explain());
    }

    /// A wrong password is answered late, and later each time, by user and by source address; never later than
    /// the caller waits.
    async fn delay(&self, wrong: u32, request: &TokenRequest<'_>) {
        let now = clock::now();
        let wrong = wrong.max(self.guard.wrong_from(request.source, now)).max(1);
        sleep_until((now + self.guard.tarpit(wrong)).min(request.deadline)).await;
    }

    fn shared_key(
        &self,
        names: &Names,
        account: &Account,
        protocol: Protocol,
        who: &Credentials,
    ) -> super::store::Digest {
        self.shared_digest(names, account, protocol, &who.user, &who.password)
    }

    /// The same on every replica: user, application, scope and password.
    fn shared_digest(
        &self,
        names: &Names,
        account: &Account,
        protocol: Protocol,
        user: &str,
        password: &Secret,
    ) -> super::store::Digest {
        let (application, user) = (&account.application, user.to_lowercase());
        let grant = application.grants.first().copied().unwrap_or(Grant::Password);
        let grants: Vec<u8> = application.grants.iter().map(|grant| *grant as u8).collect();
        self.asker.store.digest(&[
            b"token",
            if is_for_everybody(application) { b"" } else { user.as_bytes() },
            application.endpoints.token.as_str().as_bytes(),
            application.client_id.as_bytes(),
            &grants,
            application.scope_for(protocol, grant).as_bytes(),
            if names.local { b"" } else { password.expose().as_bytes() },
        ])
    }

    fn line(&self, slot: &Slot, now: Instant) -> AccountSnapshot {
        let entry = slot.peek();
        let live = entry.as_ref().and_then(|entry| entry.live.as_ref());
        AccountSnapshot {
            user: slot.user.to_string(),
            application: slot.account.application.client_id.clone(),
            protocol: slot.protocol,
            grant: entry.as_ref().map(|entry| entry.grant),
            token_age: live.map(|live| now.saturating_duration_since(live.fetched_at)),
            expires_in: live.filter(|live| now < live.expires_at).map(|live| live.expires_at - now),
            unused_for: self.cache.unused_for(slot, now),
            last_failure: slot.failure(),
        }
    }
}

/// Who signs in at the identity provider, where that is not the name that the client uses. All that follows
/// (cache, guard, stored sign-ins) goes by this name, so that all names of one user share one token.
fn as_login(request: &TokenRequest<'_>) -> Option<Credentials> {
    request.account.login.as_ref()?;
    let user = request.account.login_for(&request.credentials.user);
    Some(Credentials { user, password: request.credentials.password.clone() })
}

/// Whether the token is the application's own: one serves every user, and Entra answers a question for each of
/// them with HTTP 429 (the token endpoint's throttling of identical requests).
fn is_for_everybody(application: &Application) -> bool {
    application.grants.iter().all(|grant| matches!(grant, Grant::ClientCredentials | Grant::ManagedIdentity))
}

/// Whose token it is, for the status page.
fn shown<'a>(user: &'a str, account: &Account) -> &'a str {
    if is_for_everybody(&account.application) { "*" } else { user }
}

/// The question that renews a slot without its password, if it is time and that can be done.
fn renewal(slot: &Slot, now: Instant) -> Option<Question> {
    let entry = slot.peek()?;
    let live = entry.live.as_ref()?;
    let by_refresh = entry.refresh_token.is_some() && proof_holds(&entry, now);
    let due = live.ahead_at <= now && now < live.expires_at;
    if !due || (entry.grant.checks_password() && !by_refresh) {
        return None;
    }
    Some(Question {
        account: Arc::clone(&slot.account),
        protocol: slot.protocol,
        user: slot.user.to_string(),
        password: None,
        checked_here: !entry.grant.checks_password(),
        refresh_token: None,
        deadline: now,
    })
}

fn proof_holds(entry: &Entry, now: Instant) -> bool {
    now < entry.proven_at + PROOF_LIFE
}

fn reserve(entry: &Entry, now: Instant) -> Option<Granted> {
    let live = entry.live.as_ref().filter(|live| now < live.expires_at)?;
    Some(Granted { token: live.token.clone(), expires_at: live.expires_at, origin: Origin::Stale })
}

/// Lends the user name in lower case; user names in ASCII cost no allocation.
fn in_lower_case<T>(user: &str, work: impl FnOnce(&[u8]) -> T) -> T {
    let mut room = [0_u8; crate::secret::MAX_USER];
    match room.get_mut(..user.len()) {
        Some(lower) if user.is_ascii() => {
            lower.copy_from_slice(user.as_bytes());
            lower.make_ascii_lowercase();
            work(lower)
        }
        _ => work(user.to_lowercase().as_bytes()),
    }
}

#[cfg(test)]
#[path = "broker_tests.rs"]
mod tests;
