//! Why the broker has no token to give: one variant, one arm, every answer beside the others.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::answer::{AnswerError, Refused};
use super::catalogue::{self, Context};
use super::endpoint::{Trouble, WireError};
use crate::config::model::{Application, Grant};
use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};

/// Why the broker has no token to give. Cheap enough to hand to everybody who waits for the same answer.
#[derive(Clone, Debug)]
pub enum TokenError {
    /// The password matches none of the account's hashes.
    WrongPassword {
        /// Who.
        user: String,
    },
    /// The identity provider refused the very same password a moment ago.
    KnownWrong {
        /// Who.
        user: String,
    },
    /// Too many distinct wrong passwords: not asking before the real user is locked out.
    HeldBack {
        /// Who.
        user: String,
        /// How many in the window.
        wrong: u32,
        /// When one may be tried again.
        retry_after: Duration,
    },
    /// The identity provider said that the account is locked; not asking until it may be open again.
    Locked {
        /// Who.
        user: String,
        /// When one may be tried again.
        retry_after: Duration,
    },
    /// The identity provider said no.
    Refused {
        /// What it said.
        refused: Box<Refused>,
        /// Whom it was about.
        who: Box<Who>,
    },
    /// No answer came.
    Unreachable {
        /// The authority.
        authority: String,
        /// What went wrong.
        error: WireError,
    },
    /// An answer came that holds neither a token nor an OAuth error.
    Unusable {
        /// The authority.
        authority: String,
        /// What it was.
        error: AnswerError,
    },
    /// Asked too often: holding this application back.
    Throttled {
        /// The authority.
        authority: String,
        /// When one may be asked again.
        retry_after: Duration,
    },
    /// It did not answer several times in a row; not asking until the next probe.
    Down {
        /// The authority.
        authority: String,
        /// When the next probe is due.
        retry_after: Duration,
    },
    /// The mail client's patience ran out first.
    Deadline {
        /// The authority.
        authority: String,
    },
    /// Nobody signed in for this user.
    SignInMissing {
        /// Who.
        user: String,
        /// How one signs in.
        grant: Grant,
    },
    /// The store that keeps the sign-in is away.
    StoreAway {
        /// Who.
        user: String,
        /// What the store said.
        why: String,
    },
    /// Nobody would check the password: refused, whatever it is (invariant 8).
    Unverifiable {
        /// Who.
        user: String,
        /// The grant that checks no password.
        grant: Grant,
    },
    /// The account has no grant that can be used.
    NoGrant {
        /// Who.
        user: String,
    },
    /// The application's certificate or key cannot be used.
    Assertion {
        /// Why.
        why: String,
    },
    /// The federated token cannot be read.
    FederatedToken {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The platform gives this machine no identity.
    ManagedIdentity {
        /// Why.
        why: String,
    },
    /// Too many logins wait for their password to be checked here.
    Busy,
    /// A fault of ours.
    Crashed,
}

/// Whom a refusal was about.
#[derive(Clone, Debug, Default)]
pub struct Who {
    /// User name.
    pub user: String,
    /// Application (client) ID.
    pub application: String,
    /// Directory (tenant).
    pub directory: String,
    /// The grant.
    pub grant: &'static str,
}

impl Who {
    /// For a request of this application.
    pub fn new(user: &str, application: &Application, grant: &'static str) -> Self {
        let authority = application.endpoints.authority.trim_end_matches('/');
        Self {
            user: user.to_owned(),
            application: application.client_id.clone(),
            directory: authority.rsplit('/').next().unwrap_or_default().to_owned(),
            grant,
        }
    }
}

/// What follows from a failure, whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The password is wrong for certain.
    WrongPassword,
    /// The account takes no password for a while.
    Locked(Duration),
    /// Somebody must act; another grant may do.
    Denied,
    /// It passes by itself.
    Transient,
}

impl TokenError {
    /// What follows from it.
    pub fn verdict(&self) -> Verdict {
        match self.explain().refusal {
            Refusal::BadCredentials => Verdict::WrongPassword,
            Refusal::HeldBack { retry_after } => Verdict::Locked(retry_after),
            Refusal::PasswordExpired | Refusal::ContactAdmin(_) | Refusal::TooManySessions => Verdict::Denied,
            Refusal::Unavailable { .. } => Verdict::Transient,
        }
    }

    /// Whether asking once more, right now, makes sense.
    pub fn worth_a_retry(&self) -> bool {
        match self {
            Self::Unreachable { error, .. } => {
                matches!(
                    error.trouble,
                    Trouble::Dns | Trouble::Connect | Trouble::BrokenOff | Trouble::Timeout
                )
            }
            Self::Unusable { error, .. } => matches!(error, AnswerError::Failing { .. }),
            Self::Refused { refused, .. } => {
                !refused.has(LOOP_DETECTED)
                    && refused.retry_after.is_none()
                    && self.verdict() == Verdict::Transient
            }
            Self::WrongPassword { .. }
            | Self::KnownWrong { .. }
            | Self::HeldBack { .. }
            | Self::Locked { .. }
            | Self::Throttled { .. }
            | Self::Down { .. }
            | Self::Deadline { .. }
            | Self::SignInMissing { .. }
            | Self::StoreAway { .. }
            | Self::Unverifiable { .. }
            | Self::NoGrant { .. }
            | Self::Assertion { .. }
            | Self::FederatedToken { .. }
            | Self::ManagedIdentity { .. }
            | Self::Busy
            | Self::Crashed => false,
        }
    }
}

/// AADSTS50196: Entra takes us for a client in a loop.
pub const LOOP_DETECTED: u32 = 50_196;

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.explain().what)
    }
}

impl std::error::Error for TokenError {}

impl Explain for TokenError {
    #[expect(clippy::too_many_lines, reason = "one arm per variant: all answers stand side by side")]
    fn explain(&self) -> Explanation {
        match self {
            Self::WrongPassword { user } => Explanation {
                code: "PASSWORD-WRONG".into(),
                fault: Fault::MailClient,
                what: format!("the password of `{user}` matches no `password-hash` of its account"),
                remedy: "correct the password saved in the mail client, or set a new `password-hash`".into(),
                passes: Passes::Never,
                refusal: Refusal::BadCredentials,
            },
            Self::KnownWrong { user } => Explanation {
                code: "PASSWORD-KNOWN-WRONG".into(),
                fault: Fault::MailClient,
                what: format!(
                    "the identity provider refused this password of `{user}` a moment ago: not asked again"
                ),
                remedy: "correct the password saved in the mail client".into(),
                passes: Passes::Never,
                refusal: Refusal::BadCredentials,
            },
            Self::HeldBack { user, wrong, retry_after } => Explanation {
                code: "TOKEN-HELD-BACK".into(),
                fault: Fault::MailClient,
                what: format!(
                    "{wrong} distinct wrong passwords for `{user}`: not asking the identity provider, which \
                     would lock the account"
                ),
                remedy: "correct the password saved in the mail client; the hold lifts by itself".into(),
                passes: Passes::ByItself(Some(*retry_after)),
                refusal: Refusal::HeldBack { retry_after: *retry_after },
            },
            Self::Locked { user, retry_after } => Explanation {
                code: "ACCOUNT-LOCKED".into(),
                fault: Fault::Account,
                what: format!("the identity provider said that `{user}` is locked: not asked again for now"),
                remedy: "wait; then look for the device that still has an old password".into(),
                passes: Passes::ByItself(Some(*retry_after)),
                refusal: Refusal::HeldBack { retry_after: *retry_after },
            },
            Self::Refused { refused, who } => {
                let context = Context {
                    user: &who.user,
                    application: &who.application,
                    directory: &who.directory,
                    grant: who.grant,
                };
                catalogue::entra(refused.error.as_deref(), refused.status, &refused.codes, &context)
            }
            Self::Unreachable { authority, error } => unreachable(authority, error),
            Self::Unusable { authority, error } => unusable(authority, error),
            Self::Throttled { authority, retry_after } => Explanation {
                code: "IDENTITY-THROTTLED".into(),
                fault: Fault::Provider,
                what: format!("`{authority}` asked for patience: this application is held back"),
                remedy:
                    "wait; if it comes again, look in the log for a user whose token is asked for too often"
                        .into(),
                passes: Passes::ByItself(Some(*retry_after)),
                refusal: Refusal::Unavailable { retry_after: Some(*retry_after) },
            },
            Self::Down { authority, retry_after } => Explanation {
                code: "IDENTITY-DOWN".into(),
                fault: Fault::Network,
                what: format!(
                    "`{authority}` did not answer several times in a row: not asked until the next probe"
                ),
                remedy: "run `mailkey doctor`; the log tells why the last requests failed".into(),
                passes: Passes::ByItself(Some(*retry_after)),
                refusal: Refusal::Unavailable { retry_after: Some(*retry_after) },
            },
            Self::Deadline { authority } => Explanation {
                code: "IDENTITY-SLOW".into(),
                fault: Fault::Network,
                what: format!("`{authority}` did not answer before the login's time limit"),
                remedy: "run `mailkey doctor` to see which step is slow, or raise `limits.login-timeout`"
                    .into(),
                passes: Passes::ByItself(None),
                refusal: Refusal::Unavailable { retry_after: None },
            },
            Self::SignInMissing { user, grant } => Explanation {
                code: "SIGN-IN-MISSING".into(),
                fault: Fault::Configuration,
                what: format!("nobody has signed in for `{user}`, whose grant is `{}`", grant.as_str()),
                remedy: format!("run `mailkey login {user}`"),
                passes: Passes::Never,
                refusal: Refusal::contact_admin(CauseKind::SignIn),
            },
            Self::StoreAway { user, why } => Explanation {
                code: "STORE-AWAY".into(),
                fault: Fault::Mailkey,
                what: format!("the sign-in of `{user}` cannot be read: {why}"),
                remedy: "bring the token store of `tokens.store` back".into(),
                passes: Passes::ByItself(None),
                refusal: Refusal::Unavailable { retry_after: None },
            },
            Self::Unverifiable { user, grant } => Explanation {
                code: "PASSWORD-UNCHECKED".into(),
                fault: Fault::Configuration,
                what: format!(
                    "nothing would check the password of `{user}`: the grant `{}` does not, and the account \
                     has no `password-hash`",
                    grant.as_str()
                ),
                remedy: "run `mailkey hash-password` and give the account its `password-hash`".into(),
                passes: Passes::Never,
                refusal: Refusal::contact_admin(CauseKind::NotServed),
            },
            Self::NoGrant { user } => Explanation {
                code: "GRANT-MISSING".into(),
                fault: Fault::Configuration,
                what: format!("the account of `{user}` has no grant that can be used"),
                remedy: "set `grant` in `oauth` or in the account".into(),
                passes: Passes::Never,
                refusal: Refusal::contact_admin(CauseKind::NotServed),
            },
            Self::Assertion { why } => Explanation {
                code: "CLIENT-CERTIFICATE".into(),
                fault: Fault::Configuration,
                what: format!("the application's certificate cannot sign: {why}"),
                remedy: "check `client-certificate-file` and `client-key-file`".into(),
                passes: Passes::Never,
                refusal: Refusal::contact_admin(CauseKind::Application),
            },
            Self::FederatedToken { path, why } => Explanation {
                code: "FEDERATED-TOKEN".into(),
                fault: Fault::Configuration,
                what: format!("the federated token `{}` cannot be read: {why}", path.display()),
                remedy: "check `federated-token-file` and the projected volume it is in".into(),
                passes: Passes::Never,
                refusal: Refusal::contact_admin(CauseKind::Application),
            },
            Self::ManagedIdentity { why } => Explanation {
                code: "MANAGED-IDENTITY".into(),
                fault: Fault::Configuration,
                what: format!("the platform gave no managed identity: {why}"),
                remedy: "assign a managed identity to this machine, or use another `grant`".into(),
                passes: Passes::Never,
                refusal: Refusal::contact_admin(CauseKind::Application),
            },
            Self::Busy => Explanation {
                code: "PASSWORD-BUSY".into(),
                fault: Fault::Mailkey,
                what: "too many logins wait for their password to be checked against its hash".into(),
                remedy: "wait; if it lasts, look for clients that try wrong passwords in a loop".into(),
                passes: Passes::ByItself(Some(Duration::from_secs(5))),
                refusal: Refusal::Unavailable { retry_after: Some(Duration::from_secs(5)) },
            },
            Self::Crashed => Explanation {
                code: "TOKEN-CRASHED".into(),
                fault: Fault::Mailkey,
                what: "the token request came to no end because of a fault in mailkey".into(),
                remedy: "report it with the log lines around this one".into(),
                passes: Passes::ByItself(None),
                refusal: Refusal::Unavailable { retry_after: None },
            },
        }
    }
}

fn unreachable(authority: &str, error: &WireError) -> Explanation {
    if let Some(story) = &error.story {
        return Explanation { what: format!("`{authority}`: {}", story.what), ..(**story).clone() };
    }
    let (code, what, remedy) = match error.trouble {
        Trouble::Dns => (
            "IDENTITY-DNS",
            "its name cannot be resolved",
            "check the machine's DNS, or set `outbound-proxy` where only the proxy resolves names",
        ),
        Trouble::Connect => (
            "IDENTITY-UNREACHABLE",
            "no connection",
            "open port 443 to it in the firewall, or set `outbound-proxy`",
        ),
        Trouble::Timeout => (
            "IDENTITY-TIMEOUT",
            "no answer in time",
            "open port 443 to it in the firewall, or set `outbound-proxy`",
        ),
        Trouble::UntrustedIssuer => (
            "IDENTITY-TLS-ISSUER",
            "the issuer of its certificate is not trusted",
            "add the root of your TLS-inspecting proxy to `tls.extra-roots-file`",
        ),
        Trouble::Certificate => (
            "IDENTITY-TLS-CERTIFICATE",
            "its certificate is expired or for another name",
            "check this machine's clock and `tenant-authority`",
        ),
        Trouble::Tls => (
            "IDENTITY-TLS",
            "TLS failed",
            "check that nothing between us and it speaks plain text or an old TLS version",
        ),
        Trouble::ProxyUnreachable => {
            ("PROXY-UNREACHABLE", "the outbound proxy cannot be reached", "check `outbound-proxy.url`")
        }
        Trouble::ProxyAuth => (
            "PROXY-SIGN-IN",
            "the outbound proxy wants a sign-in, or another one",
            "check `outbound-proxy.username` and `password-file`",
        ),
        Trouble::ProxyRefused => (
            "PROXY-REFUSED",
            "the outbound proxy does not let us through",
            "allow CONNECT to it on port 443 in the outbound proxy",
        ),
        Trouble::BrokenOff => {
            ("IDENTITY-BROKEN-OFF", "the connection broke off", "look for a firewall that resets connections")
        }
        Trouble::TooLarge => (
            "IDENTITY-ANSWER",
            "its answer is too large",
            "check that `tenant-authority` is an OAuth 2.0 provider",
        ),
    };
    Explanation {
        code: code.into(),
        fault: Fault::Network,
        what: format!("`{authority}`: {what}: {}", error.detail),
        remedy: remedy.into(),
        passes: Passes::ByItself(None),
        refusal: Refusal::Unavailable { retry_after: None },
    }
}

fn unusable(authority: &str, error: &AnswerError) -> Explanation {
    let unavailable = |code: &'static str, fault, what: String, remedy: &str| Explanation {
        code: code.into(),
        fault,
        what,
        remedy: remedy.to_owned(),
        passes: Passes::ByItself(None),
        refusal: Refusal::Unavailable { retry_after: None },
    };
    match error {
        AnswerError::Failing { status } => unavailable(
            "IDENTITY-FAILING",
            Fault::Provider,
            format!("`{authority}` answered with status {status}"),
            "wait; see the health page of Microsoft 365 if it lasts",
        ),
        AnswerError::Redirected { to } => unavailable(
            "IDENTITY-INTERCEPTED",
            Fault::Network,
            format!("the request to `{authority}` was redirected to `{to}`: a captive portal or a filter"),
            "let requests to it pass unchanged, or set `outbound-proxy`",
        ),
        AnswerError::Malformed { status, why } => unavailable(
            "IDENTITY-ANSWER",
            Fault::Network,
            format!("`{authority}` answered with status {status} and no OAuth answer: {why}"),
            "check `tenant-authority`, and that no proxy puts its own pages in between",
        ),
        AnswerError::Throttled { status, .. } => unavailable(
            "IDENTITY-THROTTLED",
            Fault::Provider,
            format!("`{authority}` asked for patience with status {status}"),
            "wait",
        ),
        AnswerError::Refused(refused) => unavailable(
            "IDENTITY-ANSWER",
            Fault::Provider,
            format!("`{authority}` refused: {}", refused.description),
            "look the error up in the identity provider's documentation",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> String {
        "alice@example.com".to_owned()
    }

    #[test]
    fn every_network_trouble_has_its_own_code_or_remedy_and_is_temporary() {
        for trouble in [
            Trouble::Dns,
            Trouble::Connect,
            Trouble::Timeout,
            Trouble::UntrustedIssuer,
            Trouble::Certificate,
            Trouble::Tls,
            Trouble::ProxyUnreachable,
            Trouble::ProxyAuth,
            Trouble::ProxyRefused,
            Trouble::BrokenOff,
            Trouble::TooLarge,
        ] {
            let error = WireError::new(trouble, "x");
            let error = TokenError::Unreachable { authority: "https://a".to_owned(), error };
            assert_eq!(error.verdict(), Verdict::Transient, "{trouble:?}");
        }
    }

    #[test]
    fn a_tls_inspecting_proxy_is_answered_with_its_remedy() {
        let error = WireError::new(Trouble::UntrustedIssuer, String::new());
        let story = TokenError::Unreachable { authority: "https://a".to_owned(), error }.explain();
        assert!(story.remedy.contains("extra-roots-file"));
    }

    #[test]
    fn what_the_proxy_answers_itself_keeps_the_right_refusal() {
        assert_eq!(TokenError::KnownWrong { user: user() }.verdict(), Verdict::WrongPassword);
        let held = TokenError::HeldBack { user: user(), wrong: 5, retry_after: Duration::from_secs(9) };
        assert_eq!(held.verdict(), Verdict::Locked(Duration::from_secs(9)));
        let missing = TokenError::SignInMissing { user: user(), grant: Grant::DeviceCode };
        assert_eq!(missing.explain().remedy, "run `mailkey login alice@example.com`");
    }
}
