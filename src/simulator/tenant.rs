//! The directory: tenants, users, applications, and who may open and send as which mailbox.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;
use tokio::time::Instant;

use super::{random, settings::Settings, time};

/// One Entra directory (tenant).
#[derive(Clone, Debug)]
pub struct Directory {
    /// Directory (tenant) id.
    pub id: String,
    /// Its verified domains.
    pub domains: Vec<String>,
}

impl Directory {
    /// A directory with these domains.
    pub fn new(id: &str, domains: &[&str]) -> Self {
        Self { id: id.to_owned(), domains: domains.iter().map(|domain| domain.to_lowercase()).collect() }
    }
}

/// A user, or a shared mailbox.
#[derive(Clone)]
pub struct User {
    /// User principal name, also the primary mail address.
    pub upn: String,
    /// The password; `None` for a shared mailbox.
    pub password: Option<String>,
    /// Shown in tokens and in EWS.
    pub display_name: String,
    /// What is wrong with the user.
    pub conditions: BTreeSet<Condition>,
}

impl User {
    /// A user with a mailbox and a password.
    pub fn new(upn: &str, password: &str) -> Self {
        let name = upn.split('@').next().unwrap_or(upn);
        Self {
            upn: upn.to_owned(),
            password: Some(password.to_owned()),
            display_name: name.to_owned(),
            conditions: BTreeSet::new(),
        }
    }

    /// A shared mailbox: its sign-in is disabled, as it is by default.
    pub fn shared(upn: &str) -> Self {
        let mut user = Self::new(upn, "");
        user.password = None;
        user.conditions.insert(Condition::Disabled);
        user
    }

    /// The same user, with a condition.
    #[must_use]
    pub fn with(mut self, condition: Condition) -> Self {
        self.conditions.insert(condition);
        self
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("upn", &self.upn)
            .field("conditions", &self.conditions)
            .finish_non_exhaustive()
    }
}

/// What may be the matter with a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// AADSTS50076.
    MfaRequired,
    /// AADSTS50079.
    MfaEnrolment,
    /// AADSTS50053, until cleared.
    Locked,
    /// AADSTS50057.
    Disabled,
    /// AADSTS50055.
    PasswordExpired,
    /// AADSTS53003.
    BlockedByPolicy,
    /// Signs in elsewhere (AD FS): AADSTS50126 for a password grant.
    Federated,
    /// Has no Exchange licence.
    NoMailbox,
    /// `Set-CASMailbox -SmtpClientAuthenticationDisabled $true`.
    SmtpAuthDisabled,
    /// `Set-CASMailbox -ImapEnabled $false`.
    ImapDisabled,
    /// `Set-CASMailbox -PopEnabled $false`.
    PopDisabled,
    /// `Set-CASMailbox -EwsEnabled $false`.
    EwsDisabled,
}

/// Permission names of Office 365 Exchange Online.
#[derive(Clone, Copy, Debug)]
pub struct Grantable;

impl Grantable {
    /// All delegated mail permissions.
    pub const ALL_DELEGATED: &[&str] = &[
        "IMAP.AccessAsUser.All",
        "POP.AccessAsUser.All",
        "SMTP.Send",
        "EWS.AccessAsUser.All",
        "EAS.AccessAsUser.All",
        "User.Read",
        "Mail.Read",
    ];
    /// All application mail permissions.
    pub const ALL_APPLICATION: &[&str] =
        &["IMAP.AccessAsApp", "POP.AccessAsApp", "SMTP.SendAsApp", "full_access_as_app"];
}

/// An application registration with its service principal.
#[derive(Clone)]
pub struct App {
    /// Application (client) id.
    pub client_id: String,
    /// "Allow public client flows".
    pub public: bool,
    /// Client secrets; an empty list and no certificate makes sense for public clients only.
    pub secrets: Vec<String>,
    /// A secret that has expired (AADSTS7000222).
    pub expired_secrets: Vec<String>,
    /// Certificates, PEM.
    pub certificates: Vec<String>,
    /// Federated identity credentials: (issuer, subject).
    pub federated: Vec<(String, String)>,
    /// Delegated permissions.
    pub delegated: Vec<String>,
    /// Application permissions.
    pub application: Vec<String>,
    /// Whether an administrator has consented.
    pub consented: bool,
    /// Directory ids that know the application; empty: all (multi-tenant).
    pub directories: Vec<String>,
    /// On the tenant's EWS allow list.
    pub ews_allowed: bool,
    /// Redirect URIs; `http://localhost` matches any port and path.
    pub redirect_uris: Vec<String>,
}

impl App {
    /// A public client.
    pub fn public(client_id: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            public: true,
            secrets: Vec::new(),
            expired_secrets: Vec::new(),
            certificates: Vec::new(),
            federated: Vec::new(),
            delegated: Vec::new(),
            application: Vec::new(),
            consented: true,
            directories: Vec::new(),
            ews_allowed: true,
            redirect_uris: vec!["http://localhost".to_owned(), "http://127.0.0.1".to_owned()],
        }
    }

    /// A confidential client with a secret.
    pub fn confidential(client_id: &str, secret: &str) -> Self {
        Self { public: false, secrets: vec![secret.to_owned()], ..Self::public(client_id) }
    }

    /// With these delegated permissions.
    #[must_use]
    pub fn delegated(mut self, permissions: &[&str]) -> Self {
        self.delegated = permissions.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// With these application permissions.
    #[must_use]
    pub fn application(mut self, permissions: &[&str]) -> Self {
        self.application = permissions.iter().map(|&name| name.to_owned()).collect();
        self
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("client_id", &self.client_id)
            .field("public", &self.public)
            .field("consented", &self.consented)
            .finish_non_exhaustive()
    }
}

/// The handle by which tests change the directory at run time. Clones share it.
#[derive(Clone, Debug)]
pub struct Tenant {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    directories: Vec<Directory>,
    users: HashMap<String, Account>,
    apps: HashMap<String, App>,
    full_access: BTreeSet<(String, String)>,
    send_as: BTreeSet<(String, String)>,
    browser: Option<String>,
    smtp_disabled: bool,
    lockout_threshold: u32,
    lockout: Duration,
}

#[derive(Clone, Debug)]
struct Account {
    user: User,
    oid: String,
    /// Grows when the password changes: older refresh tokens are revoked.
    epoch: u32,
    bad: u32,
    recent_bad: VecDeque<Vec<u8>>,
    locked_until: Option<Instant>,
    locks: u32,
}

/// How a password fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PasswordVerdict {
    Right,
    Wrong,
    Locked,
}

impl Tenant {
    pub(super) fn new(settings: &Settings) -> Self {
        let tenant = Self {
            inner: Arc::new(Mutex::new(Inner {
                directories: settings.directories.clone(),
                lockout_threshold: settings.lockout_threshold,
                lockout: settings.lockout,
                ..Inner::default()
            })),
        };
        settings.users.iter().for_each(|user| tenant.add_user(user.clone()));
        settings.apps.iter().for_each(|app| tenant.add_application(app.clone()));
        settings.full_access.iter().for_each(|(delegate, mailbox)| tenant.full_access(delegate, mailbox));
        settings.send_as.iter().for_each(|(delegate, mailbox)| tenant.send_as(delegate, mailbox));
        tenant
    }

    /// Adds a directory.
    pub fn add_directory(&self, directory: Directory) {
        self.lock().directories.push(directory);
    }

    /// Adds a user, or puts another in its place.
    pub fn add_user(&self, user: User) {
        let account = Account {
            oid: random::guid(),
            epoch: 0,
            bad: 0,
            recent_bad: VecDeque::new(),
            locked_until: None,
            locks: 0,
            user,
        };
        self.lock().users.insert(account.user.upn.to_lowercase(), account);
    }

    /// Takes a user away.
    pub fn remove_user(&self, upn: &str) {
        self.lock().users.remove(&upn.to_lowercase());
    }

    /// Sets or clears a condition of a user.
    pub fn set(&self, upn: &str, condition: Condition, on: bool) {
        if let Some(account) = self.lock().users.get_mut(&upn.to_lowercase()) {
            if on {
                account.user.conditions.insert(condition);
            } else {
                account.user.conditions.remove(&condition);
            }
        }
    }

    /// Changes a password; refresh tokens of the user end (AADSTS50173).
    pub fn set_password(&self, upn: &str, password: &str) {
        if let Some(account) = self.lock().users.get_mut(&upn.to_lowercase()) {
            account.user.password = Some(password.to_owned());
            account.epoch += 1;
        }
    }

    /// Revokes a user's refresh tokens.
    pub fn revoke_sessions(&self, upn: &str) {
        if let Some(account) = self.lock().users.get_mut(&upn.to_lowercase()) {
            account.epoch += 1;
        }
    }

    /// Ends a smart lock-out.
    pub fn unlock(&self, upn: &str) {
        if let Some(account) = self.lock().users.get_mut(&upn.to_lowercase()) {
            account.locked_until = None;
            account.bad = 0;
            account.locks = 0;
            account.recent_bad.clear();
        }
    }

    /// Lets a delegate (user name or client id) open a mailbox.
    pub fn full_access(&self, delegate: &str, mailbox: &str) {
        self.lock().full_access.insert((delegate.to_lowercase(), mailbox.to_lowercase()));
    }

    /// Takes that right back.
    pub fn no_access(&self, delegate: &str, mailbox: &str) {
        self.lock().full_access.remove(&(delegate.to_lowercase(), mailbox.to_lowercase()));
    }

    /// Lets a delegate (user name or client id) send as a mailbox.
    pub fn send_as(&self, delegate: &str, mailbox: &str) {
        self.lock().send_as.insert((delegate.to_lowercase(), mailbox.to_lowercase()));
    }

    /// Adds an application, or puts another in its place.
    pub fn add_application(&self, app: App) {
        self.lock().apps.insert(app.client_id.to_lowercase(), app);
    }

    /// Changes an application.
    pub fn change_application(&self, client_id: &str, change: impl FnOnce(&mut App)) {
        if let Some(app) = self.lock().apps.get_mut(&client_id.to_lowercase()) {
            change(app);
        }
    }

    /// Who is signed in to the browser: `/authorize` approves at once for them.
    pub fn sign_in_browser(&self, upn: Option<&str>) {
        self.lock().browser = upn.map(str::to_lowercase);
    }

    /// `Set-TransportConfig -SmtpClientAuthenticationDisabled` for the whole tenant.
    pub fn disable_smtp_auth(&self, disabled: bool) {
        self.lock().smtp_disabled = disabled;
    }

    pub(super) fn browser(&self) -> Option<String> {
        self.lock().browser.clone()
    }

    pub(super) fn smtp_disabled(&self) -> bool {
        self.lock().smtp_disabled
    }

    pub(super) fn user(&self, upn: &str) -> Option<User> {
        self.lock().users.get(&upn.to_lowercase()).map(|account| account.user.clone())
    }

    pub(super) fn has(&self, upn: &str, condition: Condition) -> bool {
        self.lock()
            .users
            .get(&upn.to_lowercase())
            .is_some_and(|account| account.user.conditions.contains(&condition))
    }

    /// Whether mail for the address has a mailbox to go to.
    pub(super) fn has_mailbox(&self, address: &str) -> bool {
        self.user(address).is_some_and(|user| !user.conditions.contains(&Condition::NoMailbox))
    }

    pub(super) fn object_id(&self, upn: &str) -> Option<(String, u32)> {
        self.lock().users.get(&upn.to_lowercase()).map(|account| (account.oid.clone(), account.epoch))
    }

    pub(super) fn app(&self, client_id: &str) -> Option<App> {
        self.lock().apps.get(&client_id.to_lowercase()).cloned()
    }

    pub(super) fn directory(&self, id_or_domain: &str) -> Option<Directory> {
        let wanted = id_or_domain.to_lowercase();
        self.lock()
            .directories
            .iter()
            .find(|directory| {
                directory.id.eq_ignore_ascii_case(&wanted) || directory.domains.contains(&wanted)
            })
            .cloned()
    }

    pub(super) fn may_open(&self, delegate: &str, mailbox: &str) -> bool {
        delegate.eq_ignore_ascii_case(mailbox)
            || self.lock().full_access.contains(&(delegate.to_lowercase(), mailbox.to_lowercase()))
    }

    pub(super) fn may_send_as(&self, delegate: &str, sender: &str) -> bool {
        delegate.eq_ignore_ascii_case(sender)
            || self.lock().send_as.contains(&(delegate.to_lowercase(), sender.to_lowercase()))
    }

    /// Smart lock-out: the last three wrong passwords may be repeated without counting; a locked account's password
    /// is not evaluated; each failure after a lock locks again, for longer.
    pub(super) fn check_password(&self, upn: &str, password: &str) -> PasswordVerdict {
        let mut inner = self.lock();
        let (threshold, first) = (inner.lockout_threshold, inner.lockout);
        let Some(account) = inner.users.get_mut(&upn.to_lowercase()) else {
            return PasswordVerdict::Wrong;
        };
        if account.locked_until.is_some_and(|until| time::now() < until) {
            return PasswordVerdict::Locked;
        }
        let federated = account.user.conditions.contains(&Condition::Federated);
        if !federated && account.user.password.as_deref() == Some(password) {
            account.bad = 0;
            account.locks = 0;
            account.recent_bad.clear();
            return PasswordVerdict::Right;
        }
        let print = digest::digest(&digest::SHA256, password.as_bytes()).as_ref().to_vec();
        if account.recent_bad.contains(&print) {
            return PasswordVerdict::Wrong;
        }
        account.recent_bad.push_back(print);
        if account.recent_bad.len() > 3 {
            account.recent_bad.pop_front();
        }
        account.bad += 1;
        if account.bad >= threshold {
            account.locked_until = Some(time::now() + first * 2_u32.pow(account.locks.min(10)));
            account.locks += 1;
        }
        PasswordVerdict::Wrong
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
