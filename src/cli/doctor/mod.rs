//! `mailkey doctor`: walks every way that the proxy would go, step by step, and tells at which step it ends, whose
//! turn it is, and what to do.
//!
//! ```text
//! plan ──► route (name, proxy, connection, TLS) ──► identity (directory, token) ──► mailbox (sign-in, it opens)
//!                         └──────────────── report ◄──────────┴──────────────────────────┘
//! ```
//!
//! Never: prints a secret, changes anything in a mailbox, asks more than once per application and scope for a
//! token, or gives up one way because another is closed.

pub mod chain;
pub mod claims;
pub mod identity;
pub mod mailbox;
pub mod password;
pub mod plan;
pub mod report;
pub mod route;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::identity::{Clerk, Got};
use self::plan::{Patient, Plan};
use self::report::{Branch, Report};
use self::route::{Route, TLS_STEP};
use super::out::Out;
use super::run::environment;
use super::{FAILED, MISUSED, go_on_as};
use crate::clock;
use crate::config::model::{Config, Purpose, Upstream};
use crate::serve::probe::Probe;
use crate::task;
use crate::token::endpoint::Endpoint;
use crate::upstream::connector::Connector;
use crate::upstream::tls;
use crate::way;

/// EWS ends in Exchange Online on this day (Microsoft's announcement of February 2026).
const END_OF_EWS: &str = "2027-04-01T00:00:00Z";

/// Options of `mailkey doctor`.
#[derive(Args, Debug)]
pub struct DoctorArguments {
    /// Go all the way as this user: token, sign-in, mailbox. The password is asked for, or read from standard
    /// input; it is never an argument
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Read the password from the first line of this file
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// Only this listener
    #[arg(long, short, value_name = "NAME")]
    pub listener: Option<String>,
    /// One JSON document in place of text
    #[arg(long)]
    pub json: bool,
    /// How long all of it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// Examines everything. Exit code 0: all is well; 1: something failed; 2: the configuration or the command line is
/// wrong.
pub fn doctor(path: &Path, wishes: &DoctorArguments, out: &mut Out) -> ExitCode {
    let loaded = match crate::config::load(path, &environment) {
        Ok(loaded) => loaded,
        Err(problems) => {
            out.error(problems);
            return ExitCode::from(MISUSED);
        }
    };
    let config = Arc::new(loaded.config);
    if let Some(name) = &wishes.listener
        && !config.listeners.iter().any(|listener| listener.name == *name)
    {
        let known: Vec<&str> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
        out.error(format_args!("there is no listener `{name}`; there are: {}", known.join(", ")));
        return ExitCode::from(MISUSED);
    }
    let plan = Plan::new(&config, wishes.listener.as_deref(), wishes.user.as_deref());
    let patient = match patient(wishes, &plan) {
        Ok(patient) => patient,
        Err(why) => {
            out.error(format_args!("no usable password: {why}"));
            return ExitCode::from(MISUSED);
        }
    };
    if let Err(code) = go_on_as(&config, out) {
        return code;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error(format_args!("the runtime cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let limit = Duration::from_secs(wishes.timeout);
    let examined =
        runtime.block_on(async { Surgery::new(config, clock::now() + limit)?.examine(plan, patient).await });
    let (branches, mut notes) = match examined {
        Ok(found) => found,
        Err(why) => {
            out.error(why);
            return ExitCode::from(MISUSED);
        }
    };
    match loaded.remarks.len() {
        0 => {}
        1 => notes.push("1 remark on the configuration: see `mailkey check`".to_owned()),
        many => notes.push(format!("{many} remarks on the configuration: see `mailkey check`")),
    }
    let report = Report { file: path.display().to_string(), user: wishes.user.clone(), branches, notes };
    if wishes.json {
        out.line(format_args!("{:#}", report.json()));
    } else {
        out.line(report.text(!speaks_utf8()));
    }
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn patient(wishes: &DoctorArguments, plan: &Plan) -> Result<Option<Patient>, String> {
    let Some(user) = &wishes.user else { return Ok(None) };
    let credentials = if plan.wants_password() {
        Some(password::read(user, wishes.password_file.as_deref())?)
    } else {
        None
    };
    Ok(Some(Patient { user: user.clone(), credentials }))
}

/// Whether the terminal shows what lies beyond ASCII: the first of these variables that is set decides.
fn speaks_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| environment(name).filter(|value| !value.is_empty()));
    set.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// What every way shares.
struct Surgery {
    config: Arc<Config>,
    endpoint: Endpoint,
    deadline: Instant,
}

impl Surgery {
    fn new(config: Arc<Config>, deadline: Instant) -> Result<Self, String> {
        let settings = tls::outbound_config(&config.tls).map_err(|error| error.to_string())?;
        let limit = config.limits.connect_timeout;
        let proxies = config.outbound_proxies.clone();
        let connector = Arc::new(Connector::new(settings.clone(), proxies, limit));
        // the way ends with the program
        let endpoint = way::endpoint(settings, &connector, &CancellationToken::new())
            .map_err(|error| error.to_string())?;
        Ok(Self { config, endpoint, deadline })
    }

    /// All ways at once as far as they go without a token, then the tokens one after the other, then all sign-ins
    /// at once.
    async fn examine(
        self,
        plan: Plan,
        patient: Option<Patient>,
    ) -> Result<(Vec<Branch>, Vec<String>), String> {
        let shared = Arc::new(self);
        let mut identities = shared.walk_identities(&plan).await?;
        let ways = shared.walk_ways(&plan).await?;
        let Some(patient) = patient else {
            let note = "with `--user` the walk goes on: token, sign-in, and whether the mailbox opens";
            return Ok((finished(identities, ways.into_iter().map(|way| way.branch)), vec![note.to_owned()]));
        };
        let clerk = Clerk::new(&shared.config, shared.endpoint.clone(), &plan.identities);
        let mut tokens: Vec<Vec<Got>> = Vec::new();
        for (branch, identity) in identities.iter_mut().zip(&plan.identities) {
            for ask in &identity.asks {
                branch.plan(&ask.step(identity.asks.len() == 1));
            }
            tokens.push(Box::pin(clerk.ask_all(branch, identity, &patient, shared.deadline)).await);
        }
        let opened = shared.open_all(&plan, ways, &tokens, &patient).await?;
        Ok((finished(identities, opened), Vec::new()))
    }

    async fn walk_identities(self: &Arc<Self>, plan: &Plan) -> Result<Vec<Branch>, String> {
        let mut walks = Vec::new();
        for identity in &plan.identities {
            let endpoints = identity.account.application.endpoints.clone();
            let host = endpoints.token.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = endpoints.token.port_or_known_default().unwrap_or(443);
            let route = self.route(&host, port, Purpose::Identity)?;
            let title = format!("identity provider: {}", endpoints.authority);
            let mut branch = Branch::new(title, &[], self.deadline);
            branch.listeners.clone_from(&identity.listeners);
            identity::plan(&mut branch, &route);
            let shared = Arc::clone(self);
            walks.push(apart(async move {
                identity::walk(&mut branch, &route, &shared.endpoint, &endpoints).await;
                branch
            }));
        }
        in_order(walks).await
    }

    async fn walk_ways(self: &Arc<Self>, plan: &Plan) -> Result<Vec<Walked>, String> {
        let mut walks = Vec::new();
        for way in &plan.ways {
            let (host, port, purpose) = match &way.upstream {
                Upstream::Mail(server) => (server.host.clone(), server.port, Purpose::Mail),
                Upstream::Http(url) => {
                    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                    (host, url.port_or_known_default().unwrap_or(443), Purpose::Ews)
                }
            };
            let route = self.route(&host, port, purpose)?;
            let mut branch = Branch::new(format!("{}: {host}:{port}", way.protocol), &[], self.deadline);
            branch.listeners.clone_from(&way.listeners);
            route.plan(&mut branch);
            branch.plan(TLS_STEP);
            if matches!(way.upstream, Upstream::Mail(_)) {
                branch.plan(mailbox::SERVICE_STEP);
            }
            if way.sign_in.is_some() {
                branch.plan(mailbox::SIGN_IN_STEP);
                branch.plan(mailbox::MAILBOX_STEP);
            }
            let (upstream, protocol) = (way.upstream.clone(), way.protocol);
            walks.push(apart(async move {
                match &upstream {
                    Upstream::Mail(server) => {
                        mailbox::walk_mail(&mut branch, &route, server, protocol).await;
                    }
                    Upstream::Http(url) => {
                        mailbox::walk_ews(&mut branch, &route).await;
                        warn_of_the_end(&mut branch, url.host_str().unwrap_or_default());
                    }
                }
                Walked { branch, connector: route.connector }
            }));
        }
        in_order(walks).await
    }

    async fn open_all(
        self: &Arc<Self>,
        plan: &Plan,
        ways: Vec<Walked>,
        tokens: &[Vec<Got>],
        patient: &Patient,
    ) -> Result<Vec<Branch>, String> {
        let mut sign_ins = Vec::new();
        for (walked, way) in ways.into_iter().zip(&plan.ways) {
            let sign_in = way.sign_in.clone();
            let token = sign_in.as_ref().and_then(|sign_in| {
                let (identity, ask) = sign_in.token;
                tokens.get(identity)?.get(ask)?.clone()
            });
            let (upstream, protocol, user) = (way.upstream.clone(), way.protocol, patient.user.clone());
            sign_ins.push(apart(async move {
                let Walked { mut branch, connector } = walked;
                let Some(sign_in) = sign_in else { return branch };
                let Some(account) = sign_in.account.clone() else {
                    branch.fail(mailbox::SIGN_IN_STEP, mailbox::not_served(&user), Vec::new(), None);
                    return branch;
                };
                let Some(token) = token else {
                    branch.leave_out(mailbox::SIGN_IN_STEP, "not reached: there is no token");
                    branch.leave_out(mailbox::MAILBOX_STEP, "not reached: there is no token");
                    return branch;
                };
                if branch.is_broken() {
                    return branch;
                }
                match &upstream {
                    Upstream::Mail(server) => {
                        let probe = Probe { connector: &connector, server, protocol };
                        mailbox::open_mail(&mut branch, probe, &user, &sign_in, &account, &token).await;
                    }
                    Upstream::Http(url) => {
                        let connector = Arc::new(connector);
                        mailbox::open_ews(&mut branch, connector, url, &user, &sign_in, &account, &token)
                            .await;
                    }
                }
                branch
            }));
        }
        in_order(sign_ins).await
    }

    fn route(&self, host: &str, port: u16, purpose: Purpose) -> Result<Route, String> {
        Route::new(&self.config, (host, port), purpose).map_err(|error| error.to_string())
    }
}

/// A way that was walked as far as it goes without a token.
struct Walked {
    branch: Branch,
    connector: Connector,
}

fn warn_of_the_end(branch: &mut Branch, host: &str) {
    let online = [".office365.com", ".office.com", ".office365.us", ".outlook.cn"]
        .iter()
        .any(|end| host.ends_with(end));
    let Ok(end) = END_OF_EWS.parse::<jiff::Timestamp>() else { return };
    if online {
        let days = end.duration_since(clock::wall()).as_hours() / 24;
        let when = if days > 0 { format!("in {days} days") } else { "and it is over".to_owned() };
        branch.add_details(vec![format!("EWS ends in Exchange Online for good on 1 April 2027, {when}")]);
    }
}

fn finished(first: Vec<Branch>, then: impl IntoIterator<Item = Branch>) -> Vec<Branch> {
    let mut all: Vec<Branch> = first.into_iter().chain(then).collect();
    all.iter_mut().for_each(Branch::finish);
    all
}

/// A task that ends with its handle.
fn apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(task::start(work))
}

/// What the tasks bring home, in the order in which they were sent out.
async fn in_order<T>(tasks: Vec<AbortOnDropHandle<T>>) -> Result<Vec<T>, String> {
    let mut all = Vec::with_capacity(tasks.len());
    for task in tasks {
        all.push(
            task.await
                .map_err(|error| format!("a step came to no end because of a fault in mailkey: {error}"))?,
        );
    }
    Ok(all)
}
