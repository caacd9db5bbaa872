//! What goes wrong on the EWS side of the house, each with its remedy.

use std::time::Duration;

use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};

/// Why a request was not served, or was served with a bad end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EwsError {
    /// `Authorization: Basic` that cannot be read.
    BadAuthorization {
        /// What is wrong with it; nothing of it is repeated.
        why: String,
    },
    /// No account matches the user name.
    NotServed,
    /// The account's token would open every mailbox of the tenant.
    AppOnly,
    /// `limits.sessions-per-user`.
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// No token within `login-timeout`.
    LoginTimedOut {
        /// The time limit.
        after: Duration,
    },
    /// Upstream refused the token, and the request cannot be sent again.
    RefusedOnce {
        /// What it said, in one printable line.
        diagnostics: String,
    },
    /// Upstream refused a fresh token too.
    RefusedTwice {
        /// What it said, in one printable line.
        diagnostics: String,
    },
    /// Upstream sends the mail client to another host.
    Redirected,
    /// Upstream answered with something that is no final response.
    NoAnswer {
        /// The status.
        status: u16,
    },
    /// 403 without a word, after a good token.
    Disabled,
    /// 403 with a reason in its body.
    Forbidden,
    /// A web page asks, not a mail client.
    WebPage,
}

impl Explain for EwsError {
    #[expect(clippy::too_many_lines, reason = "one arm per failure, all its answers side by side")]
    fn explain(&self) -> Explanation {
        let admin = |kind| (Passes::Never, Refusal::contact_admin(kind));
        let (code, fault, what, remedy, (passes, refusal)) = match self {
            Self::BadAuthorization { why } => (
                "EWS-BAD-AUTHORIZATION",
                Fault::MailClient,
                why.clone(),
                "enter user name and password in the mail client again",
                (Passes::Never, Refusal::BadCredentials),
            ),
            Self::NotServed => (
                "EWS-NOT-SERVED",
                Fault::Configuration,
                "no entry of `accounts` matches the user name".to_owned(),
                "add the user to `accounts` in proxy.yaml, or correct the name in the mail client",
                admin(CauseKind::NotServed),
            ),
            Self::AppOnly => (
                "EWS-APP-ONLY",
                Fault::Configuration,
                "the account's grant gives a token of the application itself, which opens every mailbox of the \
                 tenant over EWS"
                    .to_owned(),
                "set `grant: password` or `grant: device-code` in the `oauth` section of the EWS listener",
                admin(CauseKind::Application),
            ),
            Self::TooMany { limit } => (
                "EWS-TOO-MANY-REQUESTS",
                Fault::MailClient,
                format!("the user has {limit} requests under way"),
                "raise `limits.sessions-per-user`, or let the mail client send fewer requests at once",
                (Passes::ByItself(None), Refusal::TooManySessions),
            ),
            Self::LoginTimedOut { after } => (
                "EWS-LOGIN-TIMEOUT",
                Fault::Network,
                format!("no token came within {} s", after.as_secs()),
                "run `mailkey doctor` to see how the identity provider is reached",
                (Passes::ByItself(None), Refusal::Unavailable { retry_after: None }),
            ),
            Self::RefusedOnce { diagnostics } => (
                "EWS-TOKEN-DROPPED",
                Fault::Provider,
                format!("Exchange refused the token, and not all of the request is at hand to repeat it: {diagnostics}"),
                "let the mail client repeat the request; it is served with a fresh token",
                (
                    Passes::ByItself(Some(Duration::from_secs(1))),
                    Refusal::Unavailable { retry_after: Some(Duration::from_secs(1)) },
                ),
            ),
            Self::RefusedTwice { diagnostics } => {
                let (kind, remedy) = refused_because(diagnostics);
                (
                    "EWS-TOKEN-REFUSED",
                    Fault::Tenant,
                    format!("Exchange refuses a fresh token: {diagnostics}"),
                    remedy,
                    admin(kind),
                )
            }
            Self::Redirected => (
                "EWS-REDIRECT",
                Fault::Provider,
                "Exchange sends the mail client to another host, where it would show its password".to_owned(),
                "set `upstream` of the EWS listener to the host of this tenant",
                admin(CauseKind::Mailbox),
            ),
            Self::NoAnswer { status } => (
                "EWS-NO-ANSWER",
                Fault::Provider,
                format!("Exchange answered with status {status}, which ends no request"),
                "look for a proxy on the way that meddles with HTTP",
                (Passes::ByItself(None), Refusal::Unavailable { retry_after: None }),
            ),
            Self::Disabled => (
                "EWS-DISABLED",
                Fault::Tenant,
                "Exchange took the token and answers 403 without a word: EWS is off for this tenant, mailbox or \
                 application; Exchange Online ends EWS for good on 1 April 2027"
                    .to_owned(),
                "run `Set-OrganizationConfig -EwsEnabled $true`, add the application's id to \
                 `-EwsAllowedAppIDs`, check `Get-CASMailbox` for `EwsEnabled` and the mailbox's licence",
                admin(CauseKind::Mailbox),
            ),
            Self::Forbidden => (
                "EWS-FORBIDDEN",
                Fault::Tenant,
                "Exchange took the token and forbids the request".to_owned(),
                "read the answer in the mail client's log; check the mailbox's permissions and EWS access policy",
                admin(CauseKind::Mailbox),
            ),
            Self::WebPage => (
                "EWS-WEB-PAGE",
                Fault::MailClient,
                "a web page of another site sent the request".to_owned(),
                "close the page that a browser on this computer has open; mail clients are not concerned",
                admin(CauseKind::NotServed),
            ),
        };
        Explanation { code: code.into(), fault, what, remedy: remedy.to_owned(), passes, refusal }
    }
}

/// Reads upstream's diagnostics: `number;reason="…";error_category="…"`.
fn refused_because(diagnostics: &str) -> (CauseKind, &'static str) {
    let said = |word: &str| diagnostics.contains(word);
    if said("insufficient_claims") {
        (CauseKind::Policy, "exempt the account or this computer from the Conditional Access policy")
    } else if said("invalid_resource") || said("audience") {
        (CauseKind::Application, "remove `scope` from proxy.yaml, or set it to a scope of the EWS host")
    } else if said("invalid_tenant") {
        (CauseKind::Application, "set `directory-id` to the tenant that holds the mailbox")
    } else if said("invalid_user") {
        (CauseKind::Mailbox, "give the account a mailbox and a licence for Exchange Online")
    } else {
        (CauseKind::Application, "give the application the permission `EWS.AccessAsUser.All`, with consent")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_names_what_exchange_said() {
        let aud = r#"2000003;reason="The audience claim value is invalid 'aud'.";error_category="invalid_resource""#;
        let explained = EwsError::RefusedTwice { diagnostics: aud.to_owned() }.explain();
        assert!(explained.what.contains(aud));
        assert_eq!(explained.refusal, Refusal::contact_admin(CauseKind::Application));
        assert!(explained.remedy.contains("scope"));
        assert_eq!(refused_because(r#"Bearer error="insufficient_claims""#).0, CauseKind::Policy);
    }
}
