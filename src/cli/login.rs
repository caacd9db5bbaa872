//! `mailkey login`: somebody signs in ahead of the first mail client, for the grants that need a person. What is
//! kept of it is a refresh token, in the token store; a proxy that runs finds it there at the next login.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::loopback::{Loopback, PATIENCE};
use super::out::Out;
use super::tokens::limited;
use super::{FAILED, MISUSED, load_for_store};
use crate::clock;
use crate::config::model::{Account, Application, Config, Grant, Listener, Protocol, Store as Place};
use crate::explain::{Explain, Explanation};
use crate::secret::{MAX_USER, Secret};
use crate::telemetry::log;
use crate::token::callback;
use crate::token::endpoint::Endpoint;
use crate::token::error::TokenError;
use crate::token::grant::sign_in_key;
use crate::token::sign_in::{self, AuthorizeRequest, SignInError, SignedIn};
use crate::token::store::{self, SignInKey, Store};
use crate::upstream::connector::Connector;
use crate::upstream::tls as back_tls;
use crate::way;

/// Where the browser is sent in paste mode: nothing listens there, the address alone counts.
const NOBODY_LISTENS: &str = "http://localhost";

/// Longest address that is taken from standard input, in octets.
const LONGEST_PASTE: u64 = 32 * 1024;

/// How often somebody may paste something that is no such address.
const PASTE_TRIES: u32 = 3;

/// Options of `mailkey login`.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[derive(Args, Debug)]
pub struct LoginArguments {
    /// The user name, as the mail client signs in with it
    #[arg(required_unless_present = "all", value_name = "USER")]
    user: Option<String>,
    /// Every account of the configuration whose grant needs a person, one after the other
    #[arg(long, conflicts_with = "user")]
    all: bool,
    /// Only for this listener; without it, for every application that the listeners lead this user to
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// With a code that is typed at another device, whatever the account's grant
    #[arg(long, group = "flow")]
    device: bool,
    /// With a browser on this machine, whatever the account's grant
    #[arg(long, group = "flow")]
    browser: bool,
    /// With a browser elsewhere: its last address is pasted here
    #[arg(long, group = "flow")]
    paste: bool,
    /// Draw the address as a QR code, also where the output is no terminal
    #[arg(long)]
    qr: bool,
}

/// One sign-in: a person, an application, and the listeners that are served by it.
struct Errand {
    user: String,
    key: SignInKey,
    /// As the first of the listeners has it.
    account: Arc<Account>,
    grant: Grant,
    listeners: Vec<Arc<Listener>>,
    /// The first listener's application, with the scope of all.
    application: Application,
}

impl Errand {
    /// The scope of all listeners that it serves.
    fn widen(&mut self) {
        let accounts = self.listeners.iter().flat_map(|listener| {
            let account = listener.account(&self.user);
            let of = |protocol| Some((&*account?.application, protocol));
            listener.uses().filter_map(of).collect::<Vec<_>>()
        });
        self.application.scope = Some(sign_in::scope_of_all(accounts, self.grant));
    }
}

/// How the person and the identity provider come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Device,
    Browser,
    Paste,
}

/// Everything that an errand takes.
struct Desk<'a> {
    endpoint: Endpoint,
    store: Arc<dyn Store>,
    wishes: &'a LoginArguments,
    kept_in: String,
}

/// Signs in whom the arguments name. Exit code 0 where all of them are signed in.
pub fn login(wishes: &LoginArguments, path: &Path, out: &mut Out) -> ExitCode {
    let config = match load_for_store(path, out) {
        Ok(config) => config,
        Err(code) => return code,
    };
    // A log that is on already is as good.
    let _flush = log::start("warn", false);
    let errands = match errands(&config, wishes) {
        Ok(errands) => errands,
        Err(why) => {
            out.error(why);
            return ExitCode::from(MISUSED);
        }
    };
    if config.tokens.store == Place::Memory {
        out.error(format_args!("nothing would be kept of this sign-in: {MEMORY}"));
        return ExitCode::from(MISUSED);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error(format_args!("the runtime cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(run_all(&config, wishes, &errands, out));
    // A thread that still reads standard input is not waited for.
    runtime.shutdown_background();
    code
}

/// Said wherever sign-ins are asked for and `tokens.store` is `memory`.
pub(super) const MEMORY: &str = "`tokens.store` is `memory`, which ends with each process\n  \
    = set both keys under `tokens`: `store: file:/var/lib/mailkey/tokens` and `key-file: …`\n  \
    = make the key with `openssl rand -base64 32`";

async fn run_all(config: &Config, wishes: &LoginArguments, errands: &[Errand], out: &mut Out) -> ExitCode {
    let desk = match desk(config, wishes) {
        Ok(desk) => desk,
        Err(why) => {
            out.error(why);
            return ExitCode::from(FAILED);
        }
    };
    let mut missed = 0;
    for errand in errands {
        if let Err(why) = desk.run(errand, out).await {
            out.error(format_args!("`{}` is not signed in\n  {why}", errand.user));
            missed += 1;
        }
    }
    if errands.len() > 1 {
        out.line(format_args!("{} of {} sign-ins done", errands.len() - missed, errands.len()));
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn desk<'a>(config: &Config, wishes: &'a LoginArguments) -> Result<Desk<'a>, String> {
    let tls = back_tls::outbound_config(&config.tls).map_err(|why| why.to_string())?;
    let (proxies, limit) = (config.outbound_proxies.clone(), config.limits.connect_timeout);
    let connector = Arc::new(Connector::new(tls.clone(), proxies, limit));
    // the way ends with the program
    let endpoint =
        way::endpoint(tls, &connector, &CancellationToken::new()).map_err(|why| why.to_string())?;
    let store = store::visit(&config.tokens).map_err(|why| why.explain().to_string())?;
    Ok(Desk { endpoint, store, wishes, kept_in: config.tokens.store.to_string() })
}

/// What is to be done, or why nothing can be.
fn errands(config: &Config, wishes: &LoginArguments) -> Result<Vec<Errand>, String> {
    let listeners: Vec<&Arc<Listener>> = config
        .listeners
        .iter()
        .filter(|listener| wishes.listener.as_ref().is_none_or(|name| listener.name == *name))
        .collect();
    if let (Some(name), []) = (&wishes.listener, listeners.as_slice()) {
        let known: Vec<&str> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
        return Err(format!("there is no listener `{name}`, expected one of `{}`", known.join("`, `")));
    }
    let users = match &wishes.user {
        Some(user) => {
            if user.is_empty()
                || user.len() > MAX_USER
                || user.contains('*')
                || user.contains(char::is_control)
            {
                return Err(
                    "expected one user name, as the mail client signs in with it, without `*`".to_owned()
                );
            }
            vec![user.clone()]
        }
        None => literal_users(&listeners),
    };
    let mut errands: Vec<Errand> = Vec::new();
    for user in &users {
        for &listener in &listeners {
            let Some(account) = listener.account(user) else { continue };
            let Some(grant) = interactive(&account.application) else { continue };
            let key = sign_in_key(&account.application, &account.login_for(user));
            match errands.iter_mut().find(|errand| errand.key == key) {
                Some(errand) => errand.listeners.push(Arc::clone(listener)),
                None => errands.push(Errand {
                    user: user.clone(),
                    key,
                    account: Arc::clone(account),
                    grant,
                    listeners: vec![Arc::clone(listener)],
                    application: Application::clone(&account.application),
                }),
            }
        }
    }
    errands.iter_mut().for_each(Errand::widen);
    if errands.is_empty() {
        return Err(match &wishes.user {
            Some(user) => nobody_signs_in(user, &listeners),
            None => "no account of the configuration has a user name without `*` and a grant that needs a person\n  \
                     = give it `grant: device-code` or `grant: authorization-code`"
                .to_owned(),
        });
    }
    Ok(errands)
}

fn literal_users(listeners: &[&Arc<Listener>]) -> Vec<String> {
    let mut users: Vec<String> = Vec::new();
    for account in listeners.iter().flat_map(|listener| &listener.accounts) {
        let user = account.user.as_str();
        if !user.contains('*') && !users.iter().any(|known| known == user) {
            users.push(user.to_owned());
        }
    }
    users
}

/// The grant of this application that needs a person, if there is one.
pub(super) fn interactive(application: &Application) -> Option<Grant> {
    let needs_a_person = |grant: &&Grant| matches!(grant, Grant::DeviceCode | Grant::AuthorizationCode);
    application.grants.iter().find(needs_a_person).copied()
}

fn nobody_signs_in(user: &str, listeners: &[&Arc<Listener>]) -> String {
    match listeners.iter().find_map(|listener| listener.account(user)) {
        Some(account) => {
            let grants: Vec<&str> = account.application.grants.iter().map(|grant| grant.as_str()).collect();
            format!(
                "nobody signs in ahead for `{user}`: its grant is `{}`\n  \
                 = give its account `grant: device-code` or `grant: authorization-code`",
                grants.join("`, then `")
            )
        }
        None => format!("no account of the configuration serves `{user}`\n  = add it to `accounts`"),
    }
}

impl Desk<'_> {
    /// Signs one person in, and keeps what comes of it.
    async fn run(&self, errand: &Errand, out: &mut Out) -> Result<(), Explanation> {
        let names: Vec<&str> = errand.listeners.iter().map(|listener| listener.name.as_str()).collect();
        out.line(format_args!(
            "{}: signing in at {} (application {}, listeners {})\n",
            errand.user,
            errand.key.authority,
            errand.key.client_id,
            names.join(", ")
        ));
        let flow = flow(self.wishes, errand.grant);
        let (grant, signed_in) = match flow {
            Flow::Device => (Grant::DeviceCode, self.by_device(errand, out).await),
            Flow::Browser => (Grant::AuthorizationCode, self.by_browser(errand, out).await),
            Flow::Paste => (Grant::AuthorizationCode, self.by_paste(errand, out).await),
        };
        let signed_in = signed_in.map_err(|why| explain(&why, &errand.user))?;
        let stored = sign_in::to_store(&signed_in.token, grant, clock::wall())
            .map_err(|why| explain(&why, &errand.user))?;
        let saved = limited(self.store.save_sign_in(&errand.key, &stored)).await;
        saved.map_err(|why| why.explain())?;
        out.line(format_args!("{} is signed in; the sign-in is kept in {}", errand.user, self.kept_in));
        if let Some(warning) = another_person(&errand.account, &errand.user, signed_in.name.as_deref()) {
            out.error(warning);
        }
        Ok(())
    }

    async fn by_device(&self, errand: &Errand, out: &mut Out) -> Result<SignedIn, SignInError> {
        let application = &errand.application;
        // The scope is that of all listeners already.
        let code = sign_in::start_device_code(&self.endpoint, application, Protocol::Imap).await?;
        out.line(format_args!("  open    {}\n  enter   {}\n", code.verification_uri, code.user_code));
        self.draw(code.verification_uri_complete.as_ref().unwrap_or(&code.verification_uri), out);
        let minutes = code.expires_at.saturating_duration_since(clock::now()).as_secs().div_ceil(60);
        out.line(format_args!("waiting for at most {minutes} minutes; Ctrl-C gives up"));
        sign_in::poll_device_code(&self.endpoint, application, &code).await
    }

    async fn by_browser(&self, errand: &Errand, out: &mut Out) -> Result<SignedIn, SignInError> {
        let application = &errand.application;
        let loopback = Loopback::bind().await.map_err(|why| SignInError::Loopback(why.to_string()))?;
        let redirect_uri = loopback.redirect_uri();
        let request = authorize(errand, &redirect_uri)?;
        out.line(format_args!(
            "  open, in a browser on this machine (elsewhere: `--paste`):\n\n{}\n\n\
             waiting for at most {} minutes; Ctrl-C gives up",
            request.url,
            PATIENCE.as_secs() / 60
        ));
        let code = loopback.code(&request, application).await?;
        self.exchange(application, &code, &redirect_uri, &request).await
    }

    async fn by_paste(&self, errand: &Errand, out: &mut Out) -> Result<SignedIn, SignInError> {
        let request = authorize(errand, NOBODY_LISTENS)?;
        out.line(format_args!("  open, in any browser:\n\n{}\n", request.url));
        self.draw(request.url.as_str(), out);
        out.line(
            "The browser ends on a page that cannot be shown: that is as it should be. Copy the address of that page\n\
             (it begins with http://localhost/?code=), paste it here and press Enter:",
        );
        let mut tries = 0;
        let code = loop {
            let pasted = timeout(PATIENCE, read_line()).await.map_err(|_| SignInError::Expired)?;
            let Some(pasted) = pasted else { return Err(SignInError::NoCode) };
            tries += 1;
            let read = match callback::query_of(pasted.expose()) {
                Some(query) => callback::code(&request, &errand.application, &query),
                None => Err(SignInError::NoCode),
            };
            match read {
                Err(SignInError::NoCode) if tries < PASTE_TRIES => {
                    out.line("that is no such address; paste all of it, with everything behind its `?`:");
                }
                read => break read?,
            }
        };
        self.exchange(&errand.application, &code, NOBODY_LISTENS, &request).await
    }

    async fn exchange(
        &self,
        application: &Application,
        code: &Secret,
        redirect_uri: &str,
        request: &AuthorizeRequest,
    ) -> Result<SignedIn, SignInError> {
        let (endpoint, protocol) = (&self.endpoint, Protocol::Imap);
        sign_in::exchange_code(endpoint, application, protocol, code, redirect_uri, &request.verifier).await
    }

    /// The address as a QR code: the phone that has the second factor reads it off the screen.
    fn draw(&self, address: &str, out: &mut Out) {
        if self.wishes.qr || std::io::stdout().is_terminal() {
            // An address that is too long for one stands there as text anyway.
            if let Some(drawn) = qr(address) {
                out.line(drawn);
            }
        }
    }
}

/// The catalogue's words, about this person, and the provider's own.
fn explain(why: &SignInError, user: &str) -> Explanation {
    let SignInError::Token(TokenError::Refused { refused, who }) = why else { return why.explain() };
    let mut who = who.clone();
    user.clone_into(&mut who.user);
    let story = TokenError::Refused { refused: refused.clone(), who }.explain();
    if refused.description.is_empty() {
        return story;
    }
    Explanation { what: format!("{} (`{}`)", story.what, refused.description), ..story }
}

fn authorize(errand: &Errand, redirect_uri: &str) -> Result<AuthorizeRequest, SignInError> {
    let hint = expected_person(&errand.account, &errand.user).unwrap_or_default();
    sign_in::authorize(&errand.application, Protocol::Imap, redirect_uri, &hint)
}

/// What the arguments ask for, else what the account's grant is; with a browser elsewhere where this machine has
/// none.
fn flow(wishes: &LoginArguments, grant: Grant) -> Flow {
    match (wishes.device, wishes.browser, wishes.paste) {
        (true, _, _) => Flow::Device,
        (_, true, _) => Flow::Browser,
        (_, _, true) => Flow::Paste,
        _ if grant == Grant::DeviceCode => Flow::Device,
        _ if is_headless(&|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) => {
            Flow::Paste
        }
        _ => Flow::Browser,
    }
}

fn is_headless(is_set: &dyn Fn(&str) -> bool) -> bool {
    let no_display =
        cfg!(all(unix, not(target_os = "macos"))) && !is_set("DISPLAY") && !is_set("WAYLAND_DISPLAY");
    no_display || is_set("SSH_CONNECTION") || is_set("SSH_TTY")
}

/// Who has to sign in: for a shared mailbox its delegate, whom SMTP names.
fn expected_person(account: &Account, user: &str) -> Option<String> {
    Some(account.mailbox_for(user, Protocol::Smtp)).filter(|name| name.contains('@'))
}

fn another_person(account: &Account, user: &str, name: Option<&str>) -> Option<String> {
    let (expected, name) = (expected_person(account, user)?, name?);
    (!expected.eq_ignore_ascii_case(name) && expected.to_lowercase() != name.to_lowercase()).then(|| {
        format!(
            "warning: `{name}` has signed in, and the account says `{expected}`: IMAP, POP3 and EWS work where `{name}` \
             has Full Access to that mailbox, SMTP only with `mailbox-smtp: {name}`"
        )
    })
}

/// A line of standard input; `None` at its end.
async fn read_line() -> Option<Secret> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        let read = std::io::stdin().lock().take(LONGEST_PASTE).read_line(&mut line);
        read.ok().filter(|length| *length > 0).map(|_| Secret::new(line))
    });
    read.await.ok().flatten()
}

/// In half blocks, light on dark as terminals mostly are; with the quiet zone that readers want around it.
fn qr(address: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(address, EcLevel::L).ok()?;
    Some(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
oauth: {client-id: 11111111-2222-3333-4444-555555555555, directory-id: contoso.com}
accounts:
  - {user: Alice@contoso.com, grant: [password, device-code], password-hash: 'HASH'}
  - {user: desk, mailbox: desk@contoso.com, mailbox-smtp: bob@contoso.com, grant: authorization-code, password-hash: 'HASH'}
  - {user: '*@fabrikam.com', grant: device-code, password-hash: 'HASH'}
  - {user: carol@contoso.com}
accounts-only: true
listeners:
  - {name: imap, protocol: imap, listen: '127.0.0.1:1143'}
  - {name: smtp, protocol: smtp, listen: '127.0.0.1:1587'}
  - {name: other, protocol: smtp, listen: '127.0.0.1:1588', oauth: {client-id: 22222222-3333-4444-5555-666666666666}}
";
    const HASH: &str =
        "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

    fn config() -> Config {
        let text = TEXT.replace("HASH", HASH);
        let loaded = crate::config::parse(&text, "x", Path::new(""), &|_| None);
        loaded.unwrap_or_else(|problems| panic!("{problems}")).config
    }

    fn wishes(user: &str, listener: Option<&str>) -> LoginArguments {
        LoginArguments {
            user: Some(user.to_owned()).filter(|user| !user.is_empty()),
            all: user.is_empty(),
            listener: listener.map(str::to_owned),
            device: false,
            browser: false,
            paste: false,
            qr: false,
        }
    }

    #[test]
    fn one_sign_in_serves_all_listeners_of_an_application() {
        let found = errands(&config(), &wishes("alice@CONTOSO.com", None)).unwrap_or_default();
        let told: Vec<_> =
            found.iter().map(|one| (one.listeners.len(), one.application.scope.clone().unwrap())).collect();
        let (imap, smtp) =
            ("https://outlook.office.com/IMAP.AccessAsUser.All", "https://outlook.office.com/SMTP.Send");
        assert_eq!(told, [(2, format!("{imap} {smtp}")), (1, smtp.to_owned())]);
        assert!(found.iter().all(|one| one.grant == Grant::DeviceCode));
        let only = errands(&config(), &wishes("alice@contoso.com", Some("other"))).unwrap_or_default();
        assert_eq!(only.len(), 1);
        assert_eq!(only[0].key.client_id, "22222222-3333-4444-5555-666666666666");
    }

    #[test]
    fn the_key_is_the_one_that_the_broker_looks_up() {
        let config = config();
        for found in errands(&config, &wishes("ALICE@contoso.com", None)).unwrap_or_default() {
            for listener in &found.listeners {
                let account = listener.account("alice@contoso.com").unwrap();
                assert_eq!(found.key, sign_in_key(&account.application, "Alice@Contoso.com"));
            }
        }
    }

    #[test]
    fn all_means_those_with_a_name_and_a_grant_that_needs_a_person() {
        let found = errands(&config(), &wishes("", Some("imap"))).unwrap_or_default();
        let users: Vec<&str> = found.iter().map(|one| one.user.as_str()).collect();
        assert_eq!(users, ["alice@contoso.com", "desk"]);
    }

    #[test]
    fn what_cannot_be_done_is_said_with_a_remedy() {
        let told =
            |user: &str, listener| errands(&config(), &wishes(user, listener)).err().unwrap_or_default();
        assert!(told("carol@contoso.com", None).contains("its grant is `password`"));
        assert!(told("dave@contoso.com", None).contains("add it to `accounts`"));
        assert!(told("alice@contoso.com", Some("imaps")).contains("expected one of `imap`, `smtp`, `other`"));
        assert!(told("*@fabrikam.com", None).contains("without `*`"));
        assert!(errands(&config(), &wishes("anybody@fabrikam.com", None)).is_ok());
    }

    #[test]
    fn the_delegate_of_a_shared_mailbox_is_the_one_to_sign_in() {
        let config = config();
        let account = config.listeners[0].account("desk").unwrap();
        assert_eq!(expected_person(account, "desk").as_deref(), Some("bob@contoso.com"));
        assert_eq!(another_person(account, "desk", Some("Bob@Contoso.com")), None);
        assert_eq!(another_person(account, "desk", None), None);
        let warning = another_person(account, "desk", Some("carol@contoso.com")).unwrap();
        assert!(warning.contains("`mailbox-smtp: carol@contoso.com`"), "{warning}");
    }

    #[test]
    fn the_flow_follows_the_grant_unless_told_otherwise() {
        assert_eq!(flow(&wishes("a", None), Grant::DeviceCode), Flow::Device);
        let told = LoginArguments { browser: true, ..wishes("a", None) };
        assert_eq!(flow(&told, Grant::DeviceCode), Flow::Browser);
        let told = LoginArguments { paste: true, ..wishes("a", None) };
        assert_eq!(flow(&told, Grant::DeviceCode), Flow::Paste);
        assert!(is_headless(&|name| name == "SSH_CONNECTION" || name == "DISPLAY"));
        assert!(!is_headless(&|name| name == "DISPLAY"));
    }

    #[test]
    fn a_qr_code_is_drawn_in_half_blocks() {
        let drawn = qr("https://microsoft.com/devicelogin").unwrap();
        assert!(drawn.lines().count() > 12, "{drawn}");
        assert!(drawn.chars().all(|c| "█▀▄ \n".contains(c)), "{drawn}");
        assert!(drawn.starts_with("██"), "the quiet zone is light");
        assert_eq!(qr(&"x".repeat(5000)), None);
    }
}
