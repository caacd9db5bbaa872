//! The broker against an identity provider that obeys the test, under paused time.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::config::model::{Application, ClientAuth};
use crate::secret::{Credentials, Encrypted};
use crate::token::endpoint::Trouble;
use crate::token::grant::sign_in_key;
use crate::token::store::StoredSignIn;
use crate::token::testing::{Provider, Reply, TestStore, account, account_with, write_token};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

fn settings() -> BrokerSettings {
    BrokerSettings {
        tokens: model::Tokens {
            store: model::Store::Memory,
            key: None,
            refresh_margin: MINUTE * 10,
            extra_roots_file: None,
        },
        guard: model::Guard {
            wrong_password_hold: MINUTE,
            wrong_passwords_per_user: 5,
            budget_window: MINUTE * 10,
            tarpit: SECOND * 2,
        },
        managed_identity: ManagedIdentity::default(),
    }
}

/// A broker, its provider, its store and one account.
struct Scene {
    broker: Arc<Broker>,
    provider: Provider,
    store: Arc<TestStore>,
    account: Arc<Account>,
    metrics: Arc<Metrics>,
}

impl Scene {
    fn new(grants: &[Grant]) -> Self {
        Self::with(account(grants))
    }

    fn with(account: Arc<Account>) -> Self {
        Self::beside(account, Arc::new(TestStore::default()), Provider::new())
    }

    fn beside(account: Arc<Account>, store: Arc<TestStore>, provider: Provider) -> Self {
        let metrics = Arc::new(Metrics::default());
        let shared: Arc<dyn Store> = Arc::<TestStore>::clone(&store);
        let broker = Broker::new(settings(), provider.endpoint(), shared, Arc::clone(&metrics));
        Self { broker, provider, store, account, metrics }
    }

    async fn login_as(&self, user: &str, password: &str) -> Result<(String, Origin), TokenError> {
        let credentials = Credentials { user: user.to_owned(), password: Secret::new(password) };
        let granted = self.broker.token(&request(&self.account, &credentials)).await?;
        assert!(clock::now() < granted.expires_at, "an expired token was handed out");
        Ok((granted.token.for_wire(&Encrypted::pretend()).to_owned(), granted.origin))
    }

    async fn login(&self, password: &str) -> Result<(String, Origin), TokenError> {
        self.login_as("alice@example.com", password).await
    }

    /// The token's text or the explanation's code.
    async fn told(&self, password: &str) -> String {
        match self.login(password).await {
            Ok((token, _)) => token,
            Err(error) => error.explain().code.into_owned(),
        }
    }

    fn refused_upstream(&self, password: &str, token: &str) -> bool {
        let credentials =
            Credentials { user: "alice@example.com".to_owned(), password: Secret::new(password) };
        self.broker.refused_upstream(&request(&self.account, &credentials), &AccessToken::new(token))
    }

    fn signed_in(&self, refresh_token: &str) {
        self.signed_in_as("Alice@example.com", refresh_token);
    }

    fn signed_in_as(&self, user: &str, refresh_token: &str) {
        let now = clock::wall();
        let sign_in = StoredSignIn {
            grant: Grant::DeviceCode,
            refresh_token: Secret::new(refresh_token),
            signed_in_at: now,
            renewed_at: now,
        };
        let key = sign_in_key(&self.account.application, user);
        self.store.sign_ins.lock().unwrap().insert(key, sign_in);
    }

    fn stored_refresh_token(&self) -> String {
        let stored = self.store.sign_ins.lock().unwrap();
        stored.values().next().unwrap().refresh_token.expose().to_owned()
    }
}

fn request<'a>(account: &'a Arc<Account>, credentials: &'a Credentials) -> TokenRequest<'a> {
    let deadline = clock::now() + SECOND * 30;
    let source = Ipv4Addr::LOCALHOST.into();
    TokenRequest { account, protocol: Protocol::Imap, credentials, source, deadline }
}

fn changed(grants: &[Grant], change: impl FnOnce(&mut Application)) -> Scene {
    Scene::with(account_with(grants, change))
}

// ── whose password it is ───────────────────────────────────────────────────────────────────────────────

#[tokio::test(start_paused = true)]
async fn a_right_password_is_asked_about_once_and_then_served_from_memory() {
    let scene = Scene::new(&[Grant::Password]);
    assert_eq!(scene.login("right").await.unwrap(), ("t1".to_owned(), Origin::Fetched));
    assert_eq!(
        scene.login_as("ALICE@Example.com", "right").await.unwrap(),
        ("t1".to_owned(), Origin::Cached)
    );
    assert_eq!(scene.provider.count(), 1);
    let asked = &scene.provider.requests()[0];
    assert_eq!(asked.field("username"), Some("alice@example.com"));
    assert_eq!(asked.field("scope"), Some("https://mail.example/IMAP.AccessAsUser.All offline_access"));
    assert!(asked.field("client_secret").is_none());
    assert!(
        scene.metrics.encode().contains(r#"grant="password",outcome="ok""#),
        "{}",
        scene.metrics.encode()
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_after_the_right_one_is_refused_and_evicts_nothing() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    assert_eq!(scene.told("wrong").await, "AADSTS50126");
    assert_eq!(scene.login("right").await.unwrap().1, Origin::Cached);
    assert_eq!(scene.provider.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_the_token_has_run_out_a_wrong_password_is_still_refused() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.gives_refresh_tokens();
    scene.login("right").await.unwrap();
    tokio::time::advance(MINUTE * 90).await;
    assert_eq!(scene.told("wrong").await, "AADSTS50126");
    assert_eq!(scene.provider.requests()[1].field("grant_type"), Some("password"));
    assert_eq!(scene.login("right").await.unwrap().1, Origin::Fetched);
    assert_eq!(scene.provider.requests()[2].field("refresh_token"), Some("r1"));
}

#[tokio::test(start_paused = true)]
async fn a_changed_password_replaces_the_old_one_only_when_the_provider_takes_it() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    scene.provider.right_password("new");
    assert_eq!(scene.told("right").await, "t1", "still good until somebody shows the new one");
    assert_eq!(scene.told("new").await, "t2");
    assert_eq!(scene.told("right").await, "AADSTS50126");
    assert_eq!(scene.told("new").await, "t2");
}

#[tokio::test(start_paused = true)]
async fn a_password_that_turned_wrong_loses_its_token_at_the_renewal() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    scene.provider.right_password("new");
    tokio::time::advance(MINUTE * 55).await;
    assert_eq!(scene.told("right").await, "AADSTS50126");
    assert_eq!(scene.told("right").await, "PASSWORD-KNOWN-WRONG");
}

#[tokio::test(start_paused = true)]
async fn where_the_provider_checks_no_password_we_do() {
    let scene = Scene::new(&[Grant::ClientCredentials]);
    assert_eq!(scene.told("anything").await, "PASSWORD-WRONG");
    assert_eq!(scene.provider.count(), 0, "nothing is asked for a wrong password");
    assert_eq!(scene.told("local").await, "t1");
    assert_eq!(scene.told("local2").await, "t1", "any of the account's passwords opens it");
    assert_eq!(scene.told("anything").await, "PASSWORD-WRONG");
    let asked = &scene.provider.requests()[0];
    assert_eq!(asked.field("grant_type"), Some("client_credentials"));
    assert_eq!(asked.field("scope"), Some("https://mail.example/.default"));
}

#[tokio::test(start_paused = true)]
async fn an_applications_own_token_serves_every_user_and_each_shows_a_password() {
    let scene = Scene::new(&[Grant::ClientCredentials]);
    for n in 0..20 {
        scene.login_as(&format!("user{n}"), "local").await.unwrap();
        scene.login_as(&format!("user{n}"), "wrong").await.unwrap_err();
    }
    assert_eq!(scene.provider.count(), 1);
    assert_eq!(scene.broker.snapshot().iter().map(|line| line.user.as_str()).collect::<Vec<_>>(), ["*"]);
}

#[tokio::test(start_paused = true)]
async fn without_a_hash_nobody_gets_in_where_nobody_checks() {
    let mut account = Account::clone(&account(&[Grant::ClientCredentials]));
    account.password_hashes.clear();
    let scene = Scene::with(Arc::new(account));
    assert_eq!(scene.told("anything").await, "PASSWORD-UNCHECKED");
    assert_eq!(scene.provider.count(), 0);
}

// ── single flight ──────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(start_paused = true)]
async fn a_hundred_logins_at_once_are_one_request() {
    let scene = Arc::new(Scene::new(&[Grant::Password]));
    let logins: Vec<_> = (0..100)
        .map(|_| {
            let scene = Arc::clone(&scene);
            tokio::spawn(async move { scene.login("right").await.unwrap() })
        })
        .collect();
    let mut origins = Vec::new();
    for login in logins {
        let (token, origin) = login.await.unwrap();
        assert_eq!(token, "t1");
        origins.push(origin);
    }
    assert_eq!(scene.provider.count(), 1);
    assert_eq!(origins.iter().filter(|origin| **origin == Origin::Fetched).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn failure_is_shared_too_and_another_password_flies_apart() {
    let scene = Arc::new(Scene::new(&[Grant::Password]));
    let mut logins = Vec::new();
    for n in 0..50 {
        let scene = Arc::clone(&scene);
        logins
            .push(tokio::spawn(async move { scene.told(if n % 2 == 0 { "wrong" } else { "right" }).await }));
    }
    for (n, login) in logins.into_iter().enumerate() {
        assert_eq!(login.await.unwrap(), if n % 2 == 0 { "AADSTS50126" } else { "t1" });
    }
    assert_eq!(scene.provider.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_hangs_up_harms_nobody() {
    let scene = Arc::new(Scene::new(&[Grant::Password]));
    let first = tokio::spawn({
        let scene = Arc::clone(&scene);
        async move { scene.login("right").await }
    });
    sleep(Duration::from_millis(10)).await;
    first.abort();
    assert_eq!(scene.told("right").await, "t1");
    assert_eq!(scene.provider.count(), 1);
}

// ── the guard ──────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(start_paused = true)]
async fn a_stale_poller_costs_one_request_per_hold_time() {
    let scene = Scene::new(&[Grant::Password]);
    let begun = clock::now();
    while clock::now() < begun + MINUTE * 10 {
        assert!(
            matches!(scene.login("stale").await, Err(error) if error.verdict() == Verdict::WrongPassword)
        );
        sleep(SECOND * 5).await;
    }
    assert!((9..=11).contains(&scene.provider.count()), "{} requests", scene.provider.count());
}

#[tokio::test(start_paused = true)]
async fn guessing_is_held_back_before_the_provider_locks_and_the_real_user_goes_on() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    let mut codes = Vec::new();
    for n in 0..20 {
        codes.push(scene.told(&format!("guess {n}")).await);
    }
    assert_eq!(codes.iter().filter(|code| *code == "AADSTS50126").count(), 5);
    assert_eq!(codes.iter().filter(|code| *code == "TOKEN-HELD-BACK").count(), 15);
    assert_eq!(scene.provider.count(), 6);
    assert_eq!(scene.told("right").await, "t1");
    // The right password is proven: it is renewed in spite of the hold.
    tokio::time::advance(MINUTE * 55).await;
    for n in 0..20 {
        scene.told(&format!("later guess {n}")).await;
    }
    assert_eq!(scene.told("right").await, "t2");
}

#[tokio::test(start_paused = true)]
async fn guesses_at_the_same_moment_do_not_slip_through_together() {
    let scene = Arc::new(Scene::new(&[Grant::Password]));
    let guesses: Vec<_> = (0..100)
        .map(|n| {
            let scene = Arc::clone(&scene);
            tokio::spawn(async move { scene.told(&format!("guess {n}")).await })
        })
        .collect();
    for guess in guesses {
        guess.await.unwrap();
    }
    assert_eq!(scene.provider.count(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_locked_account_is_left_alone_and_a_valid_token_outlives_it() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    tokio::time::advance(MINUTE * 52).await;
    scene.provider.next(Reply::error("invalid_grant", 50053));
    assert_eq!(scene.login("right").await.unwrap(), ("t1".to_owned(), Origin::Stale));
    let Err(TokenError::Locked { retry_after, .. }) = scene.login("other").await else {
        panic!("not locked")
    };
    assert_eq!(scene.provider.count(), 2);
    tokio::time::advance(retry_after).await;
    assert_eq!(scene.told("right").await, "t2");
}

#[tokio::test(start_paused = true)]
async fn a_policys_no_is_repeated_here_for_two_minutes() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.next(Reply::error("invalid_grant", 50076));
    for _ in 0..5 {
        assert_eq!(scene.told("right").await, "AADSTS50076");
    }
    assert_eq!(scene.provider.count(), 1);
    tokio::time::advance(SECOND * 121).await;
    assert_eq!(scene.told("right").await, "t1");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_is_answered_late_but_within_the_time_limit() {
    let scene = Scene::new(&[Grant::Password]);
    let begun = clock::now();
    scene.told("wrong").await;
    let waited = clock::now() - begun;
    assert!(waited >= SECOND / 4 && waited < SECOND * 3, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn replicas_share_the_budget_and_the_tokens() {
    let (store, provider) = (Arc::new(TestStore::default()), Provider::new());
    store.shares.store(true, Ordering::SeqCst);
    let account = account(&[Grant::Password]);
    let one = Scene::beside(Arc::clone(&account), Arc::clone(&store), provider.clone());
    let two = Scene::beside(account, store, provider);
    assert_eq!(one.login("right").await.unwrap().1, Origin::Fetched);
    assert_eq!(two.login("right").await.unwrap(), ("t1".to_owned(), Origin::Shared));
    assert_eq!(two.provider.count(), 1);
    assert_eq!(two.told("wrong").await, "AADSTS50126", "a shared token opens to its password only");
    for n in 0..4 {
        one.told(&format!("guess {n}")).await;
    }
    assert_eq!(one.told("guess 9").await, "TOKEN-HELD-BACK");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_shared_between_the_look_for_it_and_the_lease_is_not_asked_for_again() {
    let (store, provider) = (Arc::new(TestStore::default()), Provider::new());
    store.shares.store(true, Ordering::SeqCst);
    let account = account(&[Grant::Password]);
    let one = Scene::beside(Arc::clone(&account), Arc::clone(&store), provider.clone());
    let two = Scene::beside(account, Arc::clone(&store), provider);
    one.told("right").await;
    store.early.store(true, Ordering::SeqCst);
    assert_eq!(two.login("right").await.unwrap(), ("t1".to_owned(), Origin::Shared));
    assert_eq!(two.provider.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_another_replica_is_waited_for_and_then_overridden() {
    let scene = Scene::new(&[Grant::Password]);
    scene.store.leased.store(true, Ordering::SeqCst);
    let begun = clock::now();
    assert_eq!(scene.told("right").await, "t1");
    assert!(clock::now() - begun >= LEASE_WAIT);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_does_not_keep_anybody_out() {
    let scene = Scene::new(&[Grant::Password]);
    scene.store.away.store(true, Ordering::SeqCst);
    assert_eq!(scene.told("right").await, "t1");
    assert_eq!(scene.told("wrong").await, "AADSTS50126");
}

// ── throttling, outages, retries ───────────────────────────────────────────────────────────────────────

#[tokio::test(start_paused = true)]
async fn retry_after_holds_the_whole_application_and_no_request_comes_before() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.next(Reply::json(429, "slow down").retry_after("7"));
    assert_eq!(scene.told("right").await, "IDENTITY-THROTTLED");
    for user in ["alice@example.com", "bob@example.com"] {
        assert!(matches!(scene.login_as(user, "right").await, Err(TokenError::Throttled { .. })));
    }
    assert_eq!(scene.provider.count(), 1);
    tokio::time::advance(SECOND * 7).await;
    assert_eq!(scene.told("right").await, "t1");
}

#[tokio::test(start_paused = true)]
async fn a_detected_loop_is_given_five_minutes_of_rest() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.next(Reply::error("invalid_grant", 50196));
    scene.told("right").await;
    tokio::time::advance(SECOND * 298).await;
    assert_eq!(scene.told("right").await, "IDENTITY-THROTTLED");
    assert_eq!(scene.provider.count(), 1);
    tokio::time::advance(SECOND * 3).await;
    assert_eq!(scene.told("right").await, "t1");
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_itself_is_tried_three_times_and_no_more() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.next(Reply::json(503, "<html>"));
    scene.provider.next(Reply::Broken(Trouble::BrokenOff));
    assert_eq!(scene.told("right").await, "t1");
    assert_eq!(scene.provider.count(), 3);

    let scene = Scene::new(&[Grant::Password]);
    scene.provider.always(Some(Reply::json(500, "")));
    assert_eq!(scene.told("right").await, "IDENTITY-FAILING");
    assert_eq!(scene.provider.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_asking_again_cannot_mend_is_not_tried_again() {
    for (reply, code) in [
        (Reply::json(200, "<html>"), "IDENTITY-ANSWER"),
        (Reply::json(200, r#"{"access_token":""}"#), "IDENTITY-ANSWER"),
        (Reply::json(302, ""), "IDENTITY-INTERCEPTED"),
        (Reply::Broken(Trouble::UntrustedIssuer), "IDENTITY-TLS-ISSUER"),
        (Reply::Broken(Trouble::ProxyAuth), "PROXY-SIGN-IN"),
        (Reply::error("invalid_client", 7_000_218), "AADSTS7000218"),
    ] {
        let scene = Scene::new(&[Grant::Password]);
        scene.provider.next(reply);
        assert_eq!(scene.told("right").await, code);
        assert_eq!(scene.provider.count(), 1, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_is_served_while_the_provider_is_down() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    tokio::time::advance(MINUTE * 52).await;
    for trouble in [Reply::Broken(Trouble::Connect), Reply::Silence, Reply::json(429, "")] {
        scene.provider.always(Some(trouble));
        assert_eq!(scene.login("right").await.unwrap(), ("t1".to_owned(), Origin::Stale));
    }
    tokio::time::advance(MINUTE * 8).await;
    assert!(scene.login("right").await.is_err(), "an expired token is never served");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_provider_costs_each_login_no_more_than_its_time_limit() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.always(Some(Reply::Silence));
    let credentials = Credentials { user: "a".to_owned(), password: Secret::new("right") };
    let deadline = clock::now() + SECOND * 2;
    let request = TokenRequest { deadline, ..request(&scene.account, &credentials) };
    assert!(matches!(scene.broker.token(&request).await, Err(TokenError::Deadline { .. })));
    assert!(clock::now() <= deadline + Duration::from_millis(5));
    assert_eq!(scene.provider.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_several_failures_only_probes_are_sent_and_a_good_one_opens_the_way() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.always(Some(Reply::Broken(Trouble::Connect)));
    for n in 0..20 {
        assert!(scene.login_as(&format!("user{n}"), "right").await.is_err());
    }
    let during = scene.provider.count();
    assert!(during <= 8, "{during} requests");
    assert_eq!(scene.told("right").await, "IDENTITY-DOWN");
    scene.provider.always(None);
    tokio::time::advance(MINUTE).await;
    assert_eq!(scene.told("right").await, "t1");
}

#[tokio::test(start_paused = true)]
async fn a_token_without_life_makes_no_tight_loop() {
    for lifetime in [0, 5] {
        let scene = Scene::new(&[Grant::Password]);
        scene.provider.lifetime(lifetime);
        let begun = clock::now();
        while clock::now() < begun + MINUTE * 5 {
            scene.login("right").await.unwrap();
            sleep(SECOND).await;
        }
        assert!(scene.provider.count() <= 15, "{} requests", scene.provider.count());
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_upstream_refused_is_asked_for_once_more_and_not_again_at_once() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    tokio::time::advance(MINUTE * 5).await;
    assert!(!scene.refused_upstream("right", "another token"));
    assert!(scene.refused_upstream("right", "t1"));
    assert_eq!(scene.login("right").await.unwrap(), ("t2".to_owned(), Origin::Fetched));
    assert!(!scene.refused_upstream("right", "t2"), "a new one would be refused as well");
    assert_eq!(scene.told("right").await, "t2");
}

#[tokio::test(start_paused = true)]
async fn after_a_reload_tokens_stay_and_questions_go_the_new_way() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login("right").await.unwrap();
    let elsewhere = Provider::new();
    elsewhere.next(Reply::token("new", 3600, None));
    let Scene { broker, account, .. } = &scene;
    broker.reconfigure(settings(), elsewhere.endpoint());
    let credentials = Credentials { user: "alice@example.com".to_owned(), password: Secret::new("right") };
    let tokens: &dyn Tokens = &**broker;
    let granted = tokens.token(&request(account, &credentials)).await.unwrap();
    assert_eq!((granted.token.for_safekeeping(), granted.origin), ("t1", Origin::Cached));
    assert!(tokens.refused_upstream(&request(account, &credentials), &granted.token));
    let granted = tokens.token(&request(account, &credentials)).await.unwrap();
    assert_eq!((granted.token.for_safekeeping(), granted.origin), ("new", Origin::Fetched));
    elsewhere.next(Reply::error("invalid_grant", 50126));
    let wrong = Credentials { password: Secret::new("wrong"), ..credentials };
    let refusal = tokens.token(&request(account, &wrong)).await.unwrap_err();
    assert_eq!(refusal.code, "AADSTS50126");
    assert_eq!((scene.provider.count(), elsewhere.count()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_sign_in_that_nobody_uses_is_known() {
    let scene = Scene::new(&[Grant::DeviceCode]);
    assert_eq!(scene.broker.sign_in_ends().await, []);
    let before = clock::wall();
    scene.signed_in("r0");
    let [(user, end)] = scene.broker.sign_in_ends().await.try_into().unwrap();
    assert_eq!(user, "alice@example.com");
    let days = (end - before).total(jiff::Unit::Hour).unwrap() / 24.0;
    assert!((90.0..90.1).contains(&days), "{days}");
    scene.store.away.store(true, Ordering::SeqCst);
    assert_eq!(scene.broker.sign_in_ends().await, [], "a store that is away says nothing");
}

// ── grants ─────────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test(start_paused = true)]
async fn a_rotated_refresh_token_is_stored_before_its_token_is_used() {
    let scene = Scene::new(&[Grant::DeviceCode]);
    scene.signed_in("r-old");
    scene.provider.gives_refresh_tokens();
    *scene.store.save_takes.lock().unwrap() = SECOND;
    let begun = clock::now();
    assert_eq!(scene.told("local").await, "t1");
    assert!(clock::now() - begun >= SECOND, "the token was out before the store had answered");
    assert_eq!(scene.provider.requests()[0].field("refresh_token"), Some("r-old"));
    assert_eq!(scene.stored_refresh_token(), "r1");
    tokio::time::advance(MINUTE * 90).await;
    assert_eq!(scene.told("local").await, "t2");
    assert_eq!(scene.provider.requests()[1].field("refresh_token"), Some("r1"));
    assert_eq!(scene.stored_refresh_token(), "r2");
}

#[tokio::test(start_paused = true)]
async fn a_rotated_refresh_token_is_not_lost_when_the_store_does_not_take_it() {
    let scene = Scene::new(&[Grant::DeviceCode]);
    scene.signed_in("r-old");
    scene.provider.gives_refresh_tokens();
    let login = scene.login("local");
    let away = async {
        sleep(Duration::from_millis(50)).await;
        scene.store.away.store(true, Ordering::SeqCst);
    };
    let (login, ()) = tokio::join!(login, away);
    assert_eq!(login.unwrap().0, "t1");
    assert_eq!(scene.store.saved.load(Ordering::SeqCst), 0);
    tokio::time::advance(MINUTE * 90).await;
    scene.store.away.store(false, Ordering::SeqCst);
    assert_eq!(scene.told("local").await, "t2");
    assert_eq!(scene.provider.requests()[1].field("refresh_token"), Some("r1"));
    assert_eq!(scene.stored_refresh_token(), "r2");
}

#[tokio::test(start_paused = true)]
async fn nobody_signed_in_leads_to_mailkey_login_and_a_store_away_does_not() {
    let scene = Scene::new(&[Grant::DeviceCode]);
    let error = scene.login("local").await.unwrap_err();
    assert_eq!(error.explain().remedy, "run `mailkey login alice@example.com`");
    scene.store.away.store(true, Ordering::SeqCst);
    assert_eq!(scene.told("local").await, "STORE-AWAY");
    assert_eq!(scene.provider.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_for_now_keeps_the_sign_in() {
    let scene = Scene::new(&[Grant::DeviceCode]);
    scene.signed_in("r-old");
    scene.provider.always(Some(Reply::json(503, "")));
    assert_eq!(scene.told("local").await, "IDENTITY-FAILING");
    assert_eq!(scene.stored_refresh_token(), "r-old");
    scene.provider.always(None);
    assert_eq!(scene.told("local").await, "t1");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_that_is_revoked_falls_back_to_the_password_once() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.gives_refresh_tokens();
    scene.login("right").await.unwrap();
    tokio::time::advance(MINUTE * 55).await;
    scene.provider.next(Reply::error("invalid_grant", 50173));
    assert_eq!(scene.told("right").await, "t2");
    let kinds: Vec<_> =
        scene.provider.requests().iter().map(|ask| ask.field("grant_type").unwrap().to_owned()).collect();
    assert_eq!(kinds, ["password", "refresh_token", "password"]);
}

#[tokio::test(start_paused = true)]
async fn a_proof_does_not_live_on_by_refresh_tokens_for_ever() {
    let scene = Scene::new(&[Grant::Password]);
    scene.provider.gives_refresh_tokens();
    let begun = clock::now();
    let mut last_proof = begun;
    let mut asked = 0;
    while clock::now() < begun + MINUTE * 60 * 30 {
        scene.login("right").await.unwrap();
        let requests = scene.provider.requests();
        for ask in &requests[asked..] {
            if ask.field("grant_type") == Some("password") {
                last_proof = clock::now();
            }
        }
        asked = requests.len();
        assert!(
            clock::now() - last_proof < PROOF_LIFE + MINUTE * 61,
            "the password was not shown for too long"
        );
        sleep(MINUTE * 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_grant_serves_where_the_first_cannot_be_used() {
    let scene = Scene::new(&[Grant::DeviceCode, Grant::ClientCredentials]);
    assert_eq!(scene.told("local").await, "t1", "nobody has signed in, so the application does");
    assert_eq!(scene.broker.snapshot()[0].grant, Some(Grant::ClientCredentials));

    let scene = Scene::new(&[Grant::ClientCredentials, Grant::DeviceCode]);
    scene.signed_in("r");
    scene.provider.next(Reply::error("unauthorized_client", 700_016));
    assert_eq!(scene.told("local").await, "t1");
    assert_eq!(scene.provider.requests()[1].field("grant_type"), Some("refresh_token"));
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_switch_grants() {
    let scene = Scene::new(&[Grant::ClientCredentials, Grant::DeviceCode]);
    scene.signed_in("r");
    scene.provider.always(Some(Reply::Broken(Trouble::Dns)));
    assert_eq!(scene.told("local").await, "IDENTITY-DNS");
    assert!(scene.provider.requests().iter().all(|ask| ask.field("refresh_token").is_none()));
}

#[tokio::test(start_paused = true)]
async fn an_application_proves_itself_as_it_is_configured() {
    let secret =
        changed(&[Grant::ClientCredentials], |a| a.client_auth = ClientAuth::Secret(Secret::new("s")));
    secret.login("local").await.unwrap();
    assert_eq!(secret.provider.requests()[0].field("client_secret"), Some("s"));

    let v1 = changed(&[Grant::Password], |a| a.endpoints.v1_resource = Some("https://partner".to_owned()));
    v1.login("right").await.unwrap();
    let asked = &v1.provider.requests()[0];
    assert_eq!((asked.field("resource"), asked.field("scope")), (Some("https://partner"), None));

    let plain = changed(&[Grant::Password], |a| {
        a.offline_access = false;
        a.scope = Some("https://x/.default".to_owned());
    });
    plain.login("right").await.unwrap();
    assert_eq!(plain.provider.requests()[0].field("scope"), Some("https://x/.default"));
}

#[tokio::test(start_paused = true)]
async fn a_federated_token_is_read_anew_at_each_request() {
    let directory = tempfile::tempdir().unwrap();
    let path = write_token(&directory, "one\n");
    let scene =
        changed(&[Grant::ClientCredentials], |a| a.client_auth = ClientAuth::FederatedTokenFile(path));
    scene.login("local").await.unwrap();
    write_token(&directory, "two");
    tokio::time::advance(MINUTE * 90).await;
    scene.login("local").await.unwrap();
    let seen: Vec<_> = scene.provider.requests();
    assert_eq!(
        (seen[0].field("client_assertion"), seen[1].field("client_assertion")),
        (Some("one"), Some("two"))
    );
    write_token(&directory, " \n");
    tokio::time::advance(MINUTE * 90).await;
    assert_eq!(scene.told("local").await, "FEDERATED-TOKEN");
}

#[tokio::test(start_paused = true)]
async fn a_managed_identity_is_asked_locally_and_again_while_it_starts() {
    let scene = Scene::new(&[Grant::ManagedIdentity]);
    scene.provider.next(Reply::json(404, ""));
    scene.provider.next(Reply::json(200, r#"{"access_token":"t","expires_in":"3599","expires_on":"9"}"#));
    assert_eq!(scene.told("local").await, "t");
    assert!(scene.provider.requests().iter().all(|ask| ask.local && ask.form.is_none()));
}

// ── in the background ──────────────────────────────────────────────────────────────────────────────────

#[tokio::test(start_paused = true)]
async fn tokens_in_use_are_renewed_ahead_with_jitter_and_idle_ones_are_not() {
    let scene = Scene::new(&[Grant::DeviceCode]);
    for n in 0..20 {
        scene.signed_in_as(&format!("user{n}"), "r");
        scene.login_as(&format!("user{n}"), "local").await.unwrap();
    }
    let cancel = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&scene.broker).renew_forever(cancel.clone()));
    let mut counts = Vec::new();
    for _ in 0..50 {
        sleep(MINUTE).await;
        counts.push(scene.provider.count());
    }
    assert_eq!(scene.provider.count(), 40, "each renewed once before a login has to wait");
    let steps = counts.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(steps >= 3, "all at once: {counts:?}");
    assert_eq!(scene.login_as("user3", "local").await.unwrap().1, Origin::Cached);
    sleep(MINUTE * 180).await;
    let idle = scene.provider.count();
    sleep(MINUTE * 180).await;
    assert_eq!(scene.provider.count(), idle, "nobody uses them any more");
    cancel.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_password_grant_is_renewed_in_the_background_only_by_refresh_token() {
    for (refreshes, expected) in [(false, 1), (true, 2)] {
        let scene = Scene::new(&[Grant::Password]);
        if refreshes {
            scene.provider.gives_refresh_tokens();
        }
        scene.login("right").await.unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&scene.broker).renew_forever(cancel.clone()));
        sleep(MINUTE * 51).await;
        assert_eq!(scene.provider.count(), expected);
        assert_eq!(scene.told("wrong").await, "AADSTS50126", "a renewal opens nothing to others");
        cancel.cancel();
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_refused_says_nothing_against_the_password() {
    let scene = Arc::new(Scene::new(&[Grant::Password]));
    scene.provider.gives_refresh_tokens();
    scene.login("right").await.unwrap();
    scene.provider.next(Reply::error("invalid_grant", 50173));
    let cancel = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&scene.broker).renew_forever(cancel.clone()));
    sleep(MINUTE * 49).await;
    assert_eq!(scene.provider.count(), 2, "a refused refresh token is not tried again");
    assert_eq!(scene.login("right").await.unwrap(), ("t1".to_owned(), Origin::Cached));
    sleep(MINUTE * 2).await;
    assert_eq!(scene.told("right").await, "t2");
    assert_eq!(scene.provider.requests()[2].field("grant_type"), Some("password"));
    cancel.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_login_that_boards_a_refused_renewal_still_gets_its_own_chance() {
    let scene = Arc::new(Scene::new(&[Grant::Password]));
    scene.provider.gives_refresh_tokens();
    scene.login("right").await.unwrap();
    tokio::time::advance(MINUTE * 51).await;
    scene.provider.next(Reply::error("invalid_grant", 50173));
    let (key, slot) = scene.broker.inner.cache.all().remove(0);
    let question = renewal(&slot, clock::now()).unwrap();
    let inner = Arc::clone(&scene.broker.inner);
    let renewing = tokio::spawn(async move { inner.renew(key, &slot, question).await });
    sleep(Duration::from_millis(10)).await;
    assert_eq!(scene.told("right").await, "t2");
    assert_eq!(scene.provider.count(), 3);
    renewing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_status_page_shows_ages_and_the_last_failure() {
    let scene = Scene::new(&[Grant::Password]);
    scene.login_as("Bob@example.com", "right").await.unwrap();
    scene.told("wrong").await;
    tokio::time::advance(MINUTE).await;
    let lines = scene.broker.snapshot();
    assert_eq!(
        lines.iter().map(|line| line.user.as_str()).collect::<Vec<_>>(),
        ["alice@example.com", "bob@example.com"]
    );
    assert_eq!(lines[0].last_failure.as_ref().unwrap().1.code, "AADSTS50126");
    assert!(lines[0].expires_in.is_none() && lines[1].last_failure.is_none());
    assert!(lines[1].token_age.unwrap() >= MINUTE && lines[1].expires_in.unwrap() <= MINUTE * 59);
}

// ── whatever happens ───────────────────────────────────────────────────────────────────────────────────

#[derive(Clone, Debug)]
enum Move {
    Login(usize, usize),
    Wait(u64),
    Change,
    Outage(bool),
    Refuse(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0..2_usize, 0..3_usize).prop_map(|(user, password)| Move::Login(user, password)),
        3 => (1..4000_u64).prop_map(Move::Wait),
        1 => Just(Move::Change),
        1 => any::<bool>().prop_map(Move::Outage),
        1 => (0..2_usize).prop_map(Move::Refuse),
    ];
    proptest::collection::vec(one, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// A password that was never right gets no token, whatever happened before; and nothing is asked twice at
    /// once.
    #[test]
    fn no_history_gives_a_token_to_a_password_that_was_never_right(moves in moves(), refreshes in any::<bool>()) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let scene = Arc::new(Scene::new(&[Grant::Password]));
            if refreshes {
                scene.provider.gives_refresh_tokens();
            }
            let users = ["alice@example.com", "bob@example.com"];
            let passwords = ["right", "new", "never"];
            let mut was_right = vec!["right"];
            for step in moves {
                match step {
                    Move::Login(user, password) => {
                        let logins: Vec<_> = (0..3)
                            .map(|_| {
                                let scene = Arc::clone(&scene);
                                tokio::spawn(async move { scene.login_as(users[user], passwords[password]).await })
                            })
                            .collect();
                        for login in logins {
                            if login.await.unwrap().is_ok() {
                                assert!(was_right.contains(&passwords[password]), "{} got in", passwords[password]);
                            }
                        }
                    }
                    Move::Wait(seconds) => tokio::time::advance(SECOND * u32::try_from(seconds).unwrap()).await,
                    Move::Change => {
                        scene.provider.right_password("new");
                        was_right.push("new");
                    }
                    Move::Outage(on) => scene.provider.always(on.then(|| Reply::json(500, ""))),
                    Move::Refuse(n) => drop(scene.refused_upstream(passwords[n], &format!("t{n}"))),
                }
            }
            assert_eq!(scene.provider.overlaps(), 0, "the same was asked twice at once");
        });
    }
}
