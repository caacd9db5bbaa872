//! What the program runs on: the configuration after every default, rule and reference is resolved.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::secret::Secret;

/// The whole of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// In the file's order, names unique.
    pub listeners: Vec<Arc<Listener>>,
    /// The corporate proxy, where there is one.
    pub outbound_proxies: Vec<OutboundProxy>,
    /// Certificates and roots.
    pub tls: Tls,
    /// Where tokens are kept.
    pub tokens: Tokens,
    /// Keeps wrong passwords away from the identity provider.
    pub guard: Guard,
    /// Bounds.
    pub limits: Limits,
    /// Status page, health and metrics.
    pub admin: Option<Admin>,
    /// Log output.
    pub log: Log,
    /// The process itself.
    pub run: Run,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 3501, 9051.
    Imap,
    /// RFC 1939.
    Pop3,
    /// RFC 5321, 6409.
    Smtp,
    /// Exchange Web Services: SOAP over HTTP.
    Ews,
    /// Exchange ActiveSync, on an EWS listener with `activesync: true`: no listener's own protocol.
    ActiveSync,
}

impl Protocol {
    /// As in `proxy.yaml`, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Smtp => "smtp",
            Self::Ews => "ews",
            Self::ActiveSync => "activesync",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One entry of `listeners`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Shown in logs, metrics and on the status page.
    pub name: String,
    /// What is spoken.
    pub protocol: Protocol,
    /// Where it listens; at least one.
    pub listen: Vec<SocketAddr>,
    /// What the legacy client speaks.
    pub tls: FrontTls,
    /// Where it leads.
    pub upstream: Upstream,
    /// Who may connect; empty: everybody who can reach the address.
    pub allow_from: Vec<IpNet>,
    /// Load balancers: whoever connects from there begins with a PROXY header, and nobody else may.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Clients that cannot sign in at all send as this account; never together with an empty `allow_from`.
    pub fixed_account: Option<FixedAccount>,
    /// SMTP only: the session is closed, between messages, this long before its token expires.
    pub token_expiry_margin: Duration,
    /// EWS only: what goes beyond it.
    pub ews: EwsSettings,
    /// The accounts as this listener sees them (its own `oauth` merged in), first match wins; the last is
    /// the `oauth` section itself and matches everybody, unless `accounts` are exclusive.
    pub accounts: Vec<Arc<Account>>,
}

/// The account of devices that cannot sign in: who may use it is decided by the address they come from.
#[derive(Clone, Debug)]
pub struct FixedAccount {
    /// In place of the name that a client would sign in with.
    pub user: String,
    /// Its settings. [`vouched`](Account::vouched), unlike the same account for those who sign in.
    pub account: Arc<Account>,
    /// What becomes of the sender that the device names in MAIL FROM.
    pub envelope_sender: EnvelopeSender,
}

/// What becomes of the sender of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeSender {
    /// It goes upstream as it is.
    Keep,
    /// Every sender but the empty one becomes the mailbox that we are upstream.
    Mailbox,
}

impl Listener {
    /// The account that a user name leads to: the first match.
    pub fn account(&self, user: &str) -> Option<&Arc<Account>> {
        let user = user.to_lowercase();
        self.accounts.iter().find(|account| account.user.takes(&user))
    }
}

impl Listener {
    /// Whether it leads to EWS of Exchange Online, which ends for good on 1 April 2027. Exchange on premises goes on.
    pub fn ends_in_2027(&self) -> bool {
        let Upstream::Http(url) = &self.upstream else { return false };
        url.host_str().is_some_and(|host| {
            [".office365.com", ".office.com", ".office365.us", ".outlook.cn"]
                .iter()
                .any(|end| host.ends_with(end))
        })
    }

    /// What it asks tokens for.
    pub fn uses(&self) -> impl Iterator<Item = Protocol> {
        let activesync = self.ews.activesync.then_some(Protocol::ActiveSync);
        [self.protocol].into_iter().chain(activesync)
    }
}

/// What an EWS listener has besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EwsSettings {
    /// How mail clients reach the listener, without a path: what autodiscover and the WSDL name. `None`: as the
    /// request does, if that is an address of the listener.
    pub public_url: Option<Url>,
    /// Whether `/Microsoft-Server-ActiveSync` is served.
    pub activesync: bool,
}

/// TLS towards the mail client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontTls {
    /// Clear text. Off loopback only with `allow-insecure`.
    Off,
    /// Clear text, upgraded by STARTTLS or STLS; a login before it is refused off loopback.
    StartTls,
    /// TLS from the first byte.
    Implicit,
}

impl FrontTls {
    /// TLS from the first byte?
    pub fn is_implicit(self) -> bool {
        self == Self::Implicit
    }
}

/// Where a listener leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// IMAP, POP3, SMTP.
    Mail(MailServer),
    /// EWS: scheme and authority; the client's path is kept.
    Http(Url),
}

/// A mail server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MailServer {
    /// DNS name or address: dialled, and checked in the certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How TLS starts there.
    pub tls: BackTls,
}

/// TLS towards upstream: always on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackTls {
    /// TLS from the first byte.
    Implicit,
    /// STARTTLS or STLS first; never a token without it.
    StartTls,
}

/// The settings that a user name leads to.
#[derive(Clone, Debug)]
pub struct Account {
    /// Which user names lead here.
    pub user: UserPattern,
    /// Who signs in at the identity provider; `None`: whom the client names.
    pub login: Option<Template>,
    /// Who it is upstream; `None`: as `login`.
    pub mailbox: Option<Template>,
    /// The same for SMTP, where a shared mailbox sends as its delegate; `None`: as `login` where there is
    /// one, else as `mailbox`.
    pub mailbox_smtp: Option<Template>,
    /// Mailboxes, besides its own, that an EWS client may name in `ExchangeImpersonation` where the token is the
    /// application's own.
    pub ews_mailboxes: Vec<UserPattern>,
    /// How its token is asked for.
    pub application: Arc<Application>,
    /// Argon2id hashes (PHC strings) of passwords that we check ourselves; any one opens the mailbox.
    /// Empty: the identity provider checks.
    pub password_hashes: Vec<String>,
    /// The account's own password: for devices that send none, where the identity provider wants one.
    pub password: Option<Secret>,
    /// Whoever asks was let in by address: no password is asked for here.
    pub vouched: bool,
}

impl Account {
    /// Who signs in at the identity provider when the client names this user.
    pub fn login_for(&self, user: &str) -> String {
        self.fill(self.login.as_ref(), user).unwrap_or_else(|| user.to_owned())
    }

    /// The `user=` of XOAUTH2 for this user and protocol. Exchange Online opens a shared mailbox by its own
    /// name over IMAP and POP3, but over SMTP takes none but the one who signed in.
    pub fn mailbox_for(&self, user: &str, protocol: Protocol) -> String {
        self.fill(self.mailbox_template(protocol), user).unwrap_or_else(|| user.to_owned())
    }

    /// What [`mailbox_for`](Self::mailbox_for) fills in.
    pub fn mailbox_template(&self, protocol: Protocol) -> Option<&Template> {
        let (login, mailbox) = (self.login.as_ref(), self.mailbox.as_ref());
        match protocol {
            Protocol::Smtp => self.mailbox_smtp.as_ref().or(login).or(mailbox),
            Protocol::Imap | Protocol::Pop3 | Protocol::Ews | Protocol::ActiveSync => mailbox.or(login),
        }
    }

    fn fill(&self, template: Option<&Template>, user: &str) -> Option<String> {
        let template = template?;
        // `user@domain/` leaves the second name empty: that is nobody's.
        self.user.captures(user).map(|captures| template.fill(&captures)).filter(|name| !name.is_empty())
    }
}

/// A glob over user names: `*` stands for any run of characters. Letters of either case are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPattern {
    /// In lower case.
    text: String,
    /// Whether there is no `*` in it: an equal name is looked for among many, and often.
    is_exact: bool,
}

impl UserPattern {
    /// Takes the pattern as it stands in `proxy.yaml`.
    pub fn new(pattern: &str) -> Self {
        let text = pattern.to_lowercase();
        Self { is_exact: !text.contains('*'), text }
    }

    /// The pattern in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this user name leads here.
    ///
    /// ```
    /// use mailkey::config::model::UserPattern;
    /// assert!(UserPattern::new("*@contoso.com").matches("Alice@Contoso.COM"));
    /// assert!(!UserPattern::new("*@contoso.com").matches("alice@contoso.com.evil.example"));
    /// ```
    pub fn matches(&self, user: &str) -> bool {
        self.takes(&user.to_lowercase())
    }

    /// The same for a name in lower case.
    fn takes(&self, user: &str) -> bool {
        if self.is_exact { self.text == user } else { self.parts(user).is_some() }
    }

    /// How many `*` there are.
    pub fn stars(&self) -> usize {
        self.text.matches('*').count()
    }

    /// What each `*` stands for in this user name, in lower case, the shortest first; `None`: no match.
    ///
    /// ```
    /// use mailkey::config::model::UserPattern;
    /// let captures = UserPattern::new(r"*\*").captures(r"Alice@contoso.com\support");
    /// assert_eq!(captures.unwrap(), ["alice@contoso.com", "support"]);
    /// ```
    pub fn captures(&self, user: &str) -> Option<Vec<String>> {
        let user = user.to_lowercase();
        Some(self.parts(&user)?.into_iter().map(str::to_owned).collect())
    }

    /// What each `*` stands for in a name in lower case.
    fn parts<'u>(&self, user: &'u str) -> Option<Vec<&'u str>> {
        let mut parts = self.text.split('*');
        let mut rest = user.strip_prefix(parts.next()?)?;
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty().then(Vec::new) };
        let mut captures = Vec::with_capacity(parts.len() + 1);
        for part in parts {
            let (before, behind) = rest.split_once(part)?;
            captures.push(before);
            rest = behind;
        }
        captures.push(rest.strip_suffix(last)?);
        Some(captures)
    }
}

/// A name built from what the `*` of a [`UserPattern`] stand for: `*@contoso.com`, `{2}@contoso.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// What this `*` of the pattern stands for, counted from 0.
    Capture(usize),
}

impl Template {
    /// Takes the template as it stands in `proxy.yaml`: `*` is what the next `*` of the pattern stands for,
    /// `{n}` what the nth does.
    ///
    /// # Errors
    /// More is used than the pattern gives, or a brace is no `{n}`; the text says which.
    pub fn new(text: &str, stars: usize) -> Result<Self, String> {
        let (mut pieces, mut plain, mut next) = (Vec::new(), String::new(), 0);
        let mut rest = text;
        while let Some(at) = rest.find(['*', '{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            let (capture, behind) = if let Some(behind) = from.strip_prefix('*') {
                next += 1;
                (Some(next), behind)
            } else {
                let inside = from.strip_prefix('{').and_then(|from| from.split_once('}'));
                (inside.and_then(|(n, _)| n.parse().ok()), inside.map_or("", |(_, behind)| behind))
            };
            let capture = capture.ok_or("write `{1}` for what the first `*` of `user` stands for")?;
            if capture == 0 || capture > stars {
                return Err(format!("`user` has {stars} `*`, and this takes number {capture}"));
            }
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Capture(capture - 1));
            rest = behind;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The name itself, where it takes nothing from the pattern.
    pub fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The name, with the captures put in.
    pub fn fill(&self, captures: &[String]) -> String {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Capture(number) => captures.get(*number).map_or("", String::as_str),
        });
        pieces.collect()
    }
}

/// As in `proxy.yaml`, every capture by its number.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Capture(number) => write!(f, "{{{}}}", number + 1),
        })
    }
}

/// The Entra application (or that of another provider) and how tokens are asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Where to ask.
    pub endpoints: Endpoints,
    /// Application (client) ID.
    pub client_id: String,
    /// How the application proves itself; `None` is a public client.
    pub client_auth: ClientAuth,
    /// The last day of its client secret, as Entra's portal tells it; nobody else knows.
    pub secret_expires: Option<jiff::civil::Date>,
    /// As configured; `None`: the smallest one per protocol is asked for.
    pub scope: Option<String>,
    /// Which resource host default scopes are built on: `https://outlook.office.com` in the global cloud.
    pub resource: String,
    /// In this order; the next is tried where one cannot be used.
    pub grants: Vec<Grant>,
    /// Whether `offline_access` is added where a refresh token serves.
    pub offline_access: bool,
    /// XOAUTH2, OAUTHBEARER, or what upstream offers.
    pub sasl: Sasl,
}

impl Application {
    /// Whether its tokens are its own, whoever signs in: over EWS they open every mailbox of the tenant.
    pub fn is_app_only(&self) -> bool {
        self.grants.iter().all(|grant| grant.is_app_only())
    }

    /// Whether a grant gives tokens that are a user's.
    pub fn has_users(&self) -> bool {
        self.grants.iter().any(|grant| !grant.is_app_only())
    }

    /// The scope to ask for: as configured, else the smallest one for the protocol (Microsoft's page
    /// "Authenticate an IMAP, POP or SMTP connection using OAuth").
    pub fn scope_for(&self, protocol: Protocol, grant: Grant) -> String {
        if let Some(scope) = &self.scope {
            return scope.clone();
        }
        if matches!(grant, Grant::ClientCredentials | Grant::ManagedIdentity) {
            // Microsoft's page names this host for application permissions, and that one for delegated ones.
            let resource = match self.resource.as_str() {
                "https://outlook.office.com" => "https://outlook.office365.com",
                other => other,
            };
            return format!("{resource}/.default");
        }
        let permission = match protocol {
            Protocol::Imap => "IMAP.AccessAsUser.All",
            Protocol::Pop3 => "POP.AccessAsUser.All",
            Protocol::Smtp => "SMTP.Send",
            Protocol::Ews => "EWS.AccessAsUser.All",
            Protocol::ActiveSync => "EAS.AccessAsUser.All",
        };
        format!("{}/{permission}", self.resource)
    }
}

/// The URLs of an identity provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// RFC 6749 §3.2.
    pub token: Url,
    /// RFC 6749 §3.1; `None` where the provider has no such grant configured.
    pub authorize: Option<Url>,
    /// RFC 8628 §3.1.
    pub device: Option<Url>,
    /// The authority and directory, for messages: `https://login.microsoftonline.com/organizations`.
    pub authority: String,
    /// A v1 endpoint (21Vianet): `resource=` is sent in place of `scope=`.
    pub v1_resource: Option<String>,
}

/// How the application proves itself (RFC 6749 §2.3, RFC 7523).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A public client: it does not.
    Public,
    /// `client_secret` in the body.
    Secret(Secret),
    /// `private_key_jwt`: certificate and key, both PEM.
    Certificate {
        /// The certificate that stands in the application's registration.
        certificate_file: PathBuf,
        /// Its key.
        key_file: PathBuf,
    },
    /// A token of another identity provider, read anew at each request (workload identity).
    FederatedTokenFile(PathBuf),
}

/// How a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grant {
    /// Resource Owner Password Credentials (RFC 6749 §4.3).
    Password,
    /// RFC 6749 §4.4.
    ClientCredentials,
    /// RFC 8628; signed in ahead by `mailkey login`.
    DeviceCode,
    /// RFC 6749 §4.1 with PKCE; signed in ahead by `mailkey login`.
    AuthorizationCode,
    /// The platform's own endpoint (Azure).
    ManagedIdentity,
}

impl Grant {
    /// As in `proxy.yaml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::ClientCredentials => "client-credentials",
            Self::DeviceCode => "device-code",
            Self::AuthorizationCode => "authorization-code",
            Self::ManagedIdentity => "managed-identity",
        }
    }

    /// Whether the token is the application's own, and no user's.
    pub fn is_app_only(self) -> bool {
        matches!(self, Self::ClientCredentials | Self::ManagedIdentity)
    }

    /// Whether the identity provider sees, and so checks, the client's password.
    pub fn checks_password(self) -> bool {
        matches!(self, Self::Password)
    }
}

/// How the token is presented upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sasl {
    /// Microsoft and Google.
    Xoauth2,
    /// RFC 7628.
    OauthBearer,
    /// XOAUTH2, or OAUTHBEARER where upstream offers that alone.
    Auto,
}

/// The corporate proxy.
#[derive(Clone, Debug)]
pub struct OutboundProxy {
    /// `http://`, `https://` or `socks5h://`, host and port; no user name in it.
    pub url: Url,
    /// For its own sign-in.
    pub username: Option<String>,
    /// For its own sign-in.
    pub password: Option<Secret>,
    /// Which of its schemes is used.
    pub auth: ProxyAuth,
    /// What goes through it.
    pub use_for: UseFor,
    /// Which hosts go through it; empty: all.
    pub hosts: Vec<HostRule>,
    /// Which do not.
    pub no_proxy: Vec<HostRule>,
}

impl OutboundProxy {
    /// Whether it serves a connection for this purpose to this host.
    pub fn serves(&self, purpose: Purpose, host: &str) -> bool {
        let named = |rules: &[HostRule]| rules.iter().any(|rule| rule.matches(host));
        self.use_for.includes(purpose)
            && (self.hosts.is_empty() || named(&self.hosts))
            && !named(&self.no_proxy)
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Token requests.
    Identity,
    /// EWS.
    Ews,
    /// IMAP, POP3, SMTP.
    Mail,
}

/// How we sign in at the outbound proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyAuth {
    /// What it asks for, the strongest first.
    Auto,
    /// Not at all.
    None,
    /// RFC 7617.
    Basic,
    /// NTLMv2.
    Ntlm,
    /// RFC 4559.
    Negotiate,
}

/// What goes through the outbound proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UseFor {
    /// Token requests.
    pub identity: bool,
    /// EWS.
    pub ews: bool,
    /// IMAP, POP3 and SMTP, by CONNECT or SOCKS.
    pub mail: bool,
}

impl UseFor {
    /// Whether a purpose is among them.
    pub fn includes(self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Identity => self.identity,
            Purpose::Ews => self.ews,
            Purpose::Mail => self.mail,
        }
    }
}

/// One entry of `no-proxy` or `for`: some hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRule {
    /// Everything.
    All,
    /// This name and every name below it; kept in lower case without a leading dot.
    Suffix(String),
    /// Addresses.
    Net(IpNet),
}

impl HostRule {
    /// Whether the host (a DNS name or a literal address) falls under this rule.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Suffix(suffix) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Net(net) => host
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|address: std::net::IpAddr| net.contains(&address)),
        }
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Suffix(suffix) => f.write_str(suffix),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Net(net) => write!(f, "{net}"),
        }
    }
}

/// Certificates and roots.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Shown to clients, PEM, leaf first.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// Added to the platform's roots.
    pub extra_roots_file: Option<PathBuf>,
    /// Shown to an outbound proxy or an upstream that asks for one; PEM, leaf first.
    pub client_certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub client_key_file: Option<PathBuf>,
    /// The lowest version, both ways.
    pub minimum_version: TlsVersion,
    /// Whether the hybrid X25519MLKEM768 is offered first upstream.
    pub post_quantum: bool,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// Where tokens are kept.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The store.
    pub store: Store,
    /// The key under which the store is encrypted: 32 bytes, as base64, hex or raw.
    pub key: Option<KeySource>,
    /// A token with less life than this is renewed before it is handed out.
    pub refresh_margin: Duration,
    /// Trusted besides the platform's roots, for `rediss://`: the same as [`Tls::extra_roots_file`].
    pub extra_roots_file: Option<PathBuf>,
}

/// A token store.
#[derive(Clone, PartialEq, Eq)]
pub enum Store {
    /// In this process only.
    Memory,
    /// An encrypted file.
    File(PathBuf),
    /// Shared by replicas: `redis://` or `rediss://`. The only URL that may hold a password.
    Redis(Url),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As in `proxy.yaml`, without user name and password.
impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Redis(url) => {
                write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
                url.port().map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

/// Where the store's key comes from.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// A file of its own, readable by nobody else.
    File(PathBuf),
    /// The value itself (from an environment variable).
    Value(Secret),
}

/// Keeps wrong passwords away from the identity provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// How long a definitely wrong password is remembered and answered here.
    pub wrong_password_hold: Duration,
    /// Distinct wrong passwords per user within `budget_window` before nothing is asked any more: below
    /// Entra's smart lock-out (10; 3 in US Government).
    pub wrong_passwords_per_user: u32,
    /// See above.
    pub budget_window: Duration,
    /// Extra wait after a wrong password, growing per source address up to this.
    pub tarpit: Duration,
}

/// Bounds on what strangers can make us do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once, all listeners.
    pub sessions: usize,
    /// Signed-in sessions at once per user.
    pub sessions_per_user: usize,
    /// SMTP sessions at once per mailbox: Exchange Online takes 3, and says 432 to a fourth.
    pub smtp_sessions_per_mailbox: usize,
    /// IMAP sessions at once per mailbox.
    pub imap_sessions_per_mailbox: usize,
    /// POP3 sessions at once per mailbox.
    pub pop3_sessions_per_mailbox: usize,
    /// How long a login waits for one of them to end.
    pub wait_for_session: Duration,
    /// Connections kept ready for the next logins, at most, for each upstream; 0: none.
    pub warm_connections: usize,
    /// How old one may become: Exchange closes after 60 s without a login.
    pub warm_connection_age: Duration,
    /// From accept to the answer to the login.
    pub login_timeout: Duration,
    /// One step on the way to upstream: a name, a connection, the outbound proxy's tunnel, TLS.
    pub connect_timeout: Duration,
    /// No byte either way for this long ends a session.
    pub idle_timeout: Duration,
    /// How long a stop waits for sessions to come to an end.
    pub drain_timeout: Duration,
    /// Logins that may be refused before the connection is closed.
    pub refusals_per_session: u8,
}

/// Status page, health and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Loopback unless told otherwise.
    pub listen: Vec<SocketAddr>,
}

/// Log output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or a filter in tracing's syntax.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
    /// The OpenTelemetry collector that gets a trace of each session; its path without `/v1/traces`.
    pub otlp_endpoint: Option<Url>,
}

/// The process itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Who the process becomes once its sockets are open, where root starts it: a name or a number.
    pub user: Option<String>,
    /// Its group; `None`: the one that the user has.
    pub group: Option<String>,
    /// Where the process writes its number, for `mailkey reload`. Locked while it lives.
    pub pid_file: Option<PathBuf>,
    /// Whether a changed file is taken without being told.
    pub reload_on_change: bool,
    /// How long a start waits for an address that is in use.
    pub bind_retry: Duration,
    /// How many threads serve sessions; `None`: one for every two processors.
    pub threads: Option<usize>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, user, matches) in [
            ("*", "anyone", true),
            ("scanner", "Scanner", true),
            ("scanner", "scanner2", false),
            ("*@a.com", "x@a.com", true),
            ("*@a.com", "x@b.a.com", false),
            ("x*y*z", "x1y2z", true),
            ("x*y*z", "xz", false),
            ("a*a", "a", false),
            ("*a*", "bab", true),
        ] {
            assert_eq!(UserPattern::new(pattern).matches(user), matches, "{pattern} ~ {user}");
        }
    }

    #[test]
    fn no_proxy_takes_suffixes_and_networks() {
        let suffix = HostRule::Suffix("contoso.com".to_owned());
        assert!(suffix.matches("Contoso.com") && suffix.matches("a.contoso.com."));
        assert!(!suffix.matches("notcontoso.com"));
        let net = HostRule::Net("10.0.0.0/8".parse().unwrap());
        assert!(net.matches("10.1.2.3") && !net.matches("11.1.2.3") && !net.matches("ten.example"));
    }
}
