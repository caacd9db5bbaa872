//! What a failure means: whose it is, what to do, whether it passes, and what the mail client is told.
//!
//! Two audiences, two texts. The administrator reads an [`Explanation`]; the mail client gets a [`Refusal`],
//! a typed value that each protocol words once. An error type implements [`Explain`] with one arm per
//! variant, so that all its answers stand side by side.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// Gives the whole story of a failure.
pub trait Explain {
    /// Code, what happened, what to do, whether it passes by itself, what the mail client hears.
    fn explain(&self) -> Explanation;
}

/// The whole story of a failure, for the administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Stable: the README's table, the metric label and the log field carry it. `AADSTS50126`,
    /// `UPSTREAM-UNREACHABLE`.
    pub code: Cow<'static, str>,
    /// Who has to move.
    pub fault: Fault,
    /// What happened: lower case, no full stop, values in backticks, no secrets.
    pub what: String,
    /// An imperative that the reader can carry out.
    pub remedy: String,
    /// Whether waiting helps.
    pub passes: Passes,
    /// All that the mail client is told.
    pub refusal: Refusal,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.code, self.what, self.remedy)
    }
}

/// Who has to move for a failure to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The mail client, or the user name and password saved in it.
    MailClient,
    /// The person's account: locked, disabled, password expired.
    Account,
    /// The tenant's administrator: policy, consent, licences, mailbox switches.
    Tenant,
    /// Whoever wrote `proxy.yaml` or registered the application.
    Configuration,
    /// The network between us and Microsoft: DNS, firewall, corporate proxy, TLS interception.
    Network,
    /// Microsoft's service.
    Provider,
    /// Us.
    Mailkey,
}

impl Fault {
    /// As it stands in logs, metrics and on the status page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MailClient => "mail client",
            Self::Account => "account",
            Self::Tenant => "tenant",
            Self::Configuration => "configuration",
            Self::Network => "network",
            Self::Provider => "provider",
            Self::Mailkey => "mailkey",
        }
    }
}

/// Whether waiting helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Somebody must act.
    Never,
    /// It goes away without anybody's doing; after this long, where that is known.
    ByItself(Option<Duration>),
}

/// The only thing that crosses to the mail client when a login fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Wrong user name or password, as far as the client may know.
    BadCredentials,
    /// The password was right once and has run out.
    PasswordExpired,
    /// Not asked: the account is locked, or the guard holds it back.
    HeldBack {
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// Only an administrator can mend it.
    ContactAdmin(Cause),
    /// Entra, the outbound proxy or the upstream cannot be reached, or asks for patience.
    Unavailable {
        /// When asking again makes sense, where that is known.
        retry_after: Option<Duration>,
    },
    /// A limit on sessions.
    TooManySessions,
}

/// What kind of thing an administrator has to mend: a permanent cause names itself to the mail client,
/// because a legacy application shows this one line in its log, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    /// The kind.
    pub kind: CauseKind,
    /// The number of the AADSTS code, where the identity provider gave one.
    pub aadsts: Option<u32>,
}

/// The kinds of [`Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CauseKind {
    /// Multi-factor authentication, or any other step that needs a person.
    MultiFactor,
    /// The application has no consent in this tenant.
    Consent,
    /// Conditional Access, security defaults, risk.
    Policy,
    /// The application's registration or our `oauth` settings.
    Application,
    /// The account is disabled, a guest, has no password, or must change it.
    Account,
    /// The mailbox: no licence, no permission, protocol switched off.
    Mailbox,
    /// The sign-in that was stored has run out: somebody must run `mailkey login`.
    SignIn,
    /// Mailkey's own configuration does not serve this user.
    NotServed,
}

impl CauseKind {
    /// One clause, for a mail client's log.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MultiFactor => "this account needs multi-factor authentication",
            Self::Consent => "the application has no consent in this tenant",
            Self::Policy => "a sign-in policy of the tenant forbids this login",
            Self::Application => "the application is not set up for this login",
            Self::Account => "this account cannot sign in",
            Self::Mailbox => "this mailbox cannot be opened with this protocol",
            Self::SignIn => "the stored sign-in of this account has run out",
            Self::NotServed => "this user is not served here",
        }
    }
}

impl Refusal {
    /// A refusal for an administrator, without a code of the identity provider.
    pub fn contact_admin(kind: CauseKind) -> Self {
        Self::ContactAdmin(Cause { kind, aadsts: None })
    }

    /// One line of printable ASCII without internals: what a legacy application writes to its log.
    ///
    /// ```
    /// use mailkey::explain::{Cause, CauseKind, Refusal};
    /// let mfa = Refusal::ContactAdmin(Cause { kind: CauseKind::MultiFactor, aadsts: Some(50076) });
    /// assert_eq!(
    ///     mfa.sentence(),
    ///     "this account needs multi-factor authentication; see AADSTS50076 in the proxy's log"
    /// );
    /// ```
    pub fn sentence(&self) -> String {
        match self {
            Self::BadCredentials => "user name or password is wrong".to_owned(),
            Self::PasswordExpired => "the password has expired: set a new one, then save it here".to_owned(),
            Self::HeldBack { retry_after } => {
                format!("held back after failed sign-ins; try again in {}", seconds(*retry_after))
            }
            Self::ContactAdmin(Cause { kind, aadsts: Some(code) }) => {
                format!("{}; see AADSTS{code} in the proxy's log", kind.sentence())
            }
            Self::ContactAdmin(Cause { kind, aadsts: None }) => {
                format!("{}; see the proxy's log", kind.sentence())
            }
            Self::Unavailable { retry_after: Some(after) } => {
                format!("the mail service cannot be reached now; try again in {}", seconds(*after))
            }
            Self::Unavailable { retry_after: None } => {
                "the mail service cannot be reached now; try again later".to_owned()
            }
            Self::TooManySessions => "too many sessions; close one, then try again".to_owned(),
        }
    }

    /// A word for metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::BadCredentials => "bad-credentials",
            Self::PasswordExpired => "password-expired",
            Self::HeldBack { .. } => "held-back",
            Self::ContactAdmin(_) => "contact-admin",
            Self::Unavailable { .. } => "unavailable",
            Self::TooManySessions => "too-many-sessions",
        }
    }
}

fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    if whole >= 120 { format!("{} minutes", whole.div_ceil(60)) } else { format!("{whole} seconds") }
}

/// Longest text of a cause, in characters.
const MAX_CAUSE: usize = 160;

/// An error and what caused it, the outermost first, a dozen at most.
pub fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source()).take(12)
}

/// The last cause, in one line: those above it repeat a URL, or only say that there is one.
pub fn innermost(error: &(dyn StdError + 'static)) -> String {
    causes(error).last().map_or_else(String::new, |cause| one_line(&cause.to_string(), MAX_CAUSE))
}

/// Makes a stranger's text fit to stand in one line of a log or a reply: printable ASCII and no more than
/// `max` characters. Control characters become `?`, other scripts are kept out of protocol lines.
///
/// ```
/// assert_eq!(mailkey::explain::one_line("no\r\nway \u{1b}[31m", 80), "no??way ?[31m");
/// ```
pub fn one_line(text: &str, max: usize) -> String {
    // mostly there is nothing to do, and octets are quicker to look through than characters
    if text.len() <= max && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return text.to_owned();
    }
    let mut line = String::with_capacity(text.len().min(max));
    line.extend(text.chars().take(max).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }));
    line
}
