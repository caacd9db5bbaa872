//! What the status page shows, as plain data: whoever knows it fills it in, the page and the JSON only
//! print it.

use jiff::Timestamp;
use serde::Serialize;
use url::Url;

/// Knows how the proxy is. Called once per request; must not block.
pub trait StatusSource: Send + Sync {
    /// The whole picture.
    fn status(&self) -> Status;
    /// Whether mail clients can be served.
    fn readiness(&self) -> Readiness;
    /// The dialogues of the last failed sessions, as transcripts without secrets.
    fn recordings(&self) -> String;
}

/// Whether mail clients can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// All listeners are bound, and at least one way to a token is not broken.
    Ready,
    /// Not so; why, in lower case, without a full stop.
    NotReady(String),
}

/// The whole picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// By the wall clock; ages are counted from here.
    pub now: Timestamp,
    /// When the program started.
    pub started: Timestamp,
    /// In the configuration's order.
    pub listeners: Vec<ListenerStatus>,
    /// Those that signed in since the start, or that a sign-in is stored for.
    pub accounts: Vec<AccountStatus>,
    /// Logins that ended well, since the start.
    pub logins: u64,
    /// Logins that were refused, since the start.
    pub refusals: u64,
    /// What will end soon, or has ended: certificates, EWS.
    pub warnings: Vec<String>,
    /// Logins and refusals of the last hour by minute, the oldest first.
    pub history: Vec<(u32, u32)>,
    /// The last time that the configuration was read anew.
    pub last_reload: Option<ReloadStatus>,
    /// Failed sessions whose dialogue was kept: `/recordings`.
    pub recordings: usize,
    /// The corporate proxy as [`without_credentials`] shows it.
    pub outbound_proxy: Option<String>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ListenerStatus {
    /// From the configuration.
    pub name: String,
    /// `imap`, `pop3`, `smtp` or `ews`.
    pub protocol: String,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Where it leads.
    pub upstream: String,
    /// What the administrator should know about it.
    pub note: Option<String>,
    /// Sessions alive now.
    pub sessions: u64,
    /// Why nobody gets in just now.
    pub trouble: Option<String>,
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReloadStatus {
    /// When.
    pub when: Timestamp,
    /// Whether the configuration was taken; if not, the one before is in force.
    pub is_taken: bool,
    /// What changed, or everything that is wrong.
    pub what: String,
}

/// One account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AccountStatus {
    /// As the mail client signs in.
    pub user: String,
    /// Application (client) ID.
    pub application: String,
    /// How its token is asked for.
    pub grant: String,
    /// The token that is kept for it.
    pub token: Option<TokenStatus>,
    /// What went wrong last.
    pub last_failure: Option<FailureStatus>,
}

/// A token's life; never the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TokenStatus {
    /// When it was given.
    pub issued: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// A failure, as an administrator reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailureStatus {
    /// The explanation's code.
    pub code: String,
    /// What happened.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// When.
    pub when: Timestamp,
}

/// A proxy's URL reduced to scheme, host and port.
///
/// ```
/// let url = "http://user:password@proxy.contoso.com:3128/x?y".parse().unwrap();
/// assert_eq!(mailkey::admin::status::without_credentials(&url), "http://proxy.contoso.com:3128");
/// ```
pub fn without_credentials(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port_or_known_default() {
        Some(port) => format!("{}://{host}:{port}", url.scheme()),
        None => format!("{}://{host}", url.scheme()),
    }
}
