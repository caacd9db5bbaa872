//! The identity provider: is it there, does it know the directory, does it give a token, and what stands in it.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::claims::{self, Claims};
use super::plan::{Ask, Identity, Patient};
use super::report::{Branch, Said};
use super::route::{Route, TLS_STEP};
use crate::clock;
use crate::config::model::{Application, Config, Endpoints, Grant, Protocol};
use crate::explain::{CauseKind, Explain as _, Explanation, Fault, Passes, Refusal, one_line};
use crate::secret::AccessToken;
use crate::telemetry::metrics::Metrics;
use crate::token::answer::{self, AnswerError};
use crate::token::endpoint::{Ask as Request, Endpoint, uuid};
use crate::token::error::{TokenError, Who};
use crate::token::grant::{Asker, Fetched, Question, read_error};
use crate::token::guard::Guard;
use crate::token::managed::ManagedIdentity;
use crate::token::password::LocalPasswords;
use crate::token::store::{self, Store, memory::MemoryStore};

/// The step that needs no credentials.
const DIRECTORY_STEP: &str = "directory";

/// What comes of an ask: the token and the grant that served.
pub type Got = Option<(AccessToken, Grant)>;

/// The way to the identity provider, up to what it says of the directory. Nothing secret is sent.
pub async fn walk(branch: &mut Branch, route: &Route, endpoint: &Endpoint, endpoints: &Endpoints) {
    let Some(io) = route.walk(branch).await else { return };
    if route.encrypt(branch, io).await.is_none() {
        return;
    }
    branch.step(DIRECTORY_STEP, discover(endpoint, endpoints)).await;
}

/// The steps of [`walk`].
pub fn plan(branch: &mut Branch, route: &Route) {
    route.plan(branch);
    branch.plan(TLS_STEP);
    branch.plan(DIRECTORY_STEP);
}

/// Reads the discovery document (OpenID Connect Discovery 1.0 §4), where there is one to be expected.
async fn discover(endpoint: &Endpoint, endpoints: &Endpoints) -> Result<((), Said), Explanation> {
    let authority = &endpoints.authority;
    let token_path = endpoints.token.path();
    let document = if token_path.ends_with("/oauth2/v2.0/token") {
        Some(format!("{authority}/v2.0/.well-known/openid-configuration"))
    } else if token_path.ends_with("/oauth2/token") && endpoints.v1_resource.is_some() {
        Some(format!("{authority}/.well-known/openid-configuration"))
    } else {
        None
    };
    let url = document.as_deref().map_or_else(|| Ok(endpoints.token.clone()), str::parse).map_err(|_| {
        let why = "the address of its discovery document is no URL";
        TokenError::Unusable {
            authority: authority.clone(),
            error: AnswerError::Malformed { status: 0, why },
        }
        .explain()
    })?;
    let request = Request { url, form: None, headers: Vec::new(), local: false, correlation: uuid() };
    let raw = endpoint
        .send(&request)
        .await
        .map_err(|error| TokenError::Unreachable { authority: authority.clone(), error }.explain())?;
    if document.is_none() {
        // no such document is promised here: that something speaks HTTP is all that can be asked for
        return Ok(((), Said::new(format!("answers, with status {}", raw.status))));
    }
    let fields = answer::object(&raw, clock::wall()).map_err(|error| {
        let who = || Who { directory: directory(authority).to_owned(), ..Who::default() };
        read_error(error, authority, who).explain()
    })?;
    let issuer = fields.get("issuer").and_then(Value::as_str);
    let Some(issuer) = issuer.map(|issuer| one_line(issuer, 200)) else {
        let why = "its discovery document names no issuer";
        let error = AnswerError::Malformed { status: raw.status, why };
        return Err(TokenError::Unusable { authority: authority.clone(), error }.explain());
    };
    Ok(((), Said::new(format!("`{}` is known there; issuer {issuer}", directory(authority)))))
}

fn directory(authority: &str) -> &str {
    authority.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Asks for tokens: once per application and scope.
#[derive(Debug)]
pub struct Clerk {
    asker: Asker,
    passwords: LocalPasswords,
    /// Why the token store cannot be opened.
    store_away: Option<String>,
}

impl Clerk {
    /// With the configured store where sign-ins are kept in it, else with none.
    pub fn new(config: &Config, endpoint: Endpoint, identities: &[Identity]) -> Self {
        let needs_store = identities.iter().flat_map(|identity| &identity.asks).any(|ask| {
            ask.account
                .application
                .grants
                .iter()
                .any(|grant| matches!(grant, Grant::DeviceCode | Grant::AuthorizationCode))
        });
        let memory = || Arc::new(MemoryStore::new()) as Arc<dyn Store>;
        let (store, store_away) = if needs_store {
            match store::visit(&config.tokens) {
                Ok(store) => (store, None),
                Err(error) => (memory(), Some(error.to_string())),
            }
        } else {
            (memory(), None)
        };
        let guard = Arc::new(Guard::new(config.guard.clone()));
        let metrics = Arc::new(Metrics::default());
        let managed = ManagedIdentity::from_environment();
        let asker = Asker::new(endpoint, store, guard, metrics, managed);
        Self { asker, passwords: LocalPasswords::new(), store_away }
    }

    /// All tokens that are wanted of one provider, one after the other. A password that is refused once is not
    /// sent again: each time may count towards a lock-out.
    pub async fn ask_all(
        &self,
        branch: &mut Branch,
        identity: &Identity,
        patient: &Patient,
        deadline: Instant,
    ) -> Vec<Got> {
        let mut refused: Option<String> = None;
        let mut all = Vec::new();
        for ask in &identity.asks {
            let step = ask.step(identity.asks.len() == 1);
            let mut got = None;
            if let Some(step_before) = &refused {
                let why = format!(
                    "not asked: the step `{step_before}` has the answer, and asking again may lock the account"
                );
                branch.leave_out(&step, &why);
            } else if !branch.is_broken() {
                let mut about_the_user = false;
                got = branch
                    .side_step(&step, async {
                        self.ask(ask, patient, deadline).await.inspect_err(|story| {
                            about_the_user = matches!(
                                story.refusal,
                                Refusal::BadCredentials | Refusal::PasswordExpired | Refusal::HeldBack { .. }
                            );
                        })
                    })
                    .await;
                if about_the_user {
                    refused = Some(step);
                }
            }
            all.push(got);
        }
        all
    }

    async fn ask(
        &self,
        ask: &Ask,
        patient: &Patient,
        deadline: Instant,
    ) -> Result<((AccessToken, Grant), Said), Explanation> {
        let account = &ask.account;
        let user = &patient.user;
        let password = patient.credentials.as_ref().map(|credentials| credentials.password.clone());
        if let (false, Some(password)) = (account.password_hashes.is_empty(), &password)
            && !self.passwords.verify(&account.password_hashes, user, password).await
        {
            return Err(TokenError::WrongPassword { user: user.clone() }.explain());
        }
        let protocol = ask.protocols.first().copied().unwrap_or(Protocol::Imap);
        let question = Question {
            account: Arc::clone(account),
            protocol,
            user: user.clone(),
            password,
            // whoever can read the configuration can read every mailbox that it opens
            checked_here: true,
            refresh_token: None,
            deadline,
        };
        let fetched = self.asker.fetch(&question).await.map_err(|error| match (&self.store_away, error) {
            (Some(why), TokenError::SignInMissing { .. }) => store_is_away(user, why),
            (_, error) => error.explain(),
        })?;
        let said = describe(&fetched, ask, clock::wall());
        Ok(((fetched.answer.access_token, fetched.grant), said))
    }
}

fn store_is_away(user: &str, why: &str) -> Explanation {
    Explanation {
        code: "DOCTOR-STORE".into(),
        fault: Fault::Configuration,
        what: format!("the sign-in of `{user}` cannot be read from the token store: {}", one_line(why, 300)),
        remedy: "bring the store of `tokens.store` back, or run the doctor as a user who may read it"
            .to_owned(),
        passes: Passes::Never,
        refusal: Refusal::contact_admin(CauseKind::SignIn),
    }
}

/// What the token says, and what is not well about it.
fn describe(fetched: &Fetched, ask: &Ask, now: Timestamp) -> Said {
    let token = &fetched.answer.access_token;
    let application = &ask.account.application;
    let minutes = fetched.answer.lifetime.as_secs() / 60;
    let mut said = Said::new(format!(
        "given by the grant `{}` for {minutes} minutes, {} octets",
        fetched.grant.as_str(),
        token.len()
    ));
    said.details.push(format!("asked for  {}", one_line(ask.scope(), 300)));
    match claims::read(token.for_safekeeping()) {
        None => said.details.push("it is opaque: only upstream can read what stands in it".to_owned()),
        Some(claims) => {
            tell(&claims, &mut said.details, now);
            warn(&claims, ask, application, &mut said.warnings);
        }
    }
    if token.len() > claims::POP3_LIMIT && ask.protocols.contains(&Protocol::Pop3) {
        said.warnings.push((
            format!("Exchange Online's POP3 may break off at tokens above {} octets", claims::POP3_LIMIT),
            "leave `scope` out for this listener, so that POP3 asks for its own permission only; have group \
             claims taken out of the application's token configuration; or use IMAP"
                .to_owned(),
        ));
    }
    said
}

fn tell(claims: &Claims, details: &mut Vec<String>, now: Timestamp) {
    let kind = if claims.application_only { "roles" } else { "scp" };
    let permissions =
        if claims.permissions.is_empty() { "none".to_owned() } else { claims.permissions.join(" ") };
    details.push(format!("audience   {}", claims.audience));
    details.push(format!("{kind:<10} {permissions}"));
    match &claims.user {
        Some(user) => details.push(format!("user       {user}")),
        None => details.push("user       none: the application's own token".to_owned()),
    }
    if let Some(directory) = &claims.directory {
        details.push(format!("directory  {directory}"));
    }
    if let Some(end) = claims.expires {
        let skew = if end <= now { " (over already: check this machine's clock)" } else { "" };
        details.push(format!("until      {}{skew}", end.strftime("%Y-%m-%dT%H:%M:%SZ")));
    }
}

fn warn(claims: &Claims, ask: &Ask, application: &Application, warnings: &mut Vec<(String, String)>) {
    let is_microsoft = application.endpoints.token.path().contains("/oauth2/");
    if !is_microsoft {
        return;
    }
    if !claims.is_for_exchange() {
        warnings.push((
            format!("the audience `{}` is not Exchange Online: it will refuse this token", claims.audience),
            "correct `scope`, or leave it out".to_owned(),
        ));
    }
    for lacking in ask.protocols.iter().filter_map(|&protocol| claims.lacks(protocol)) {
        let kind = if claims.application_only { "Application" } else { "Delegated" };
        warnings.push((
            format!("the token lacks `{lacking}`"),
            format!(
                "add it to the application `{}` (API permissions > Office 365 Exchange Online > {kind}), then \
                 grant admin consent; and see that `scope` asks for it",
                application.client_id
            ),
        ));
    }
}
