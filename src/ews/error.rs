//! What goes wrong on the EWS side of the house, each with its remedy.

use std::time::Duration;

use crate::config::model::Protocol;
use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};
use crate::token::catalogue::{Context, exchange};

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
    /// The grants give now a user's token, now the application's own, and nobody can tell which it is.
    MixedGrants,
    /// ActiveSync takes no token of an application.
    AppOnlyActiveSync,
    /// The account's mailbox cannot be impersonated: it is no address.
    NoAddress {
        /// The mailbox.
        mailbox: String,
    },
    /// The token is the application's own, and this can be used with a user's only.
    AppOnlyPath,
    /// The request names a mailbox, or asks for rights, that the account has not.
    Impersonation {
        /// What exactly.
        why: String,
    },
    /// The mailbox cannot be put into the request.
    Soap {
        /// Why.
        why: &'static str,
    },
    /// `Host` is no address of the listener, and there is no `public-url`.
    UnknownHost,
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
    /// Upstream sends the mail client to another host.
    Redirected,
    /// The WSDL or a schema came in a way that cannot be rewritten.
    Description,
    /// Upstream answered with something that is no final response.
    NoAnswer {
        /// The status.
        status: u16,
    },
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
            Self::MixedGrants => (
                "EWS-MIXED-GRANTS",
                Fault::Configuration,
                "the account's grants give now a user's token, now the application's own; over EWS the two are used \
                 differently"
                    .to_owned(),
                "set one `grant` in the `oauth` section of the EWS listener, or of the account",
                admin(CauseKind::Application),
            ),
            Self::AppOnlyActiveSync => (
                "EAS-APP-ONLY",
                Fault::Configuration,
                "ActiveSync takes no token of an application, and the account's grant gives nothing else".to_owned(),
                "set `grant: password` or `grant: device-code` for accounts that use ActiveSync",
                admin(CauseKind::Application),
            ),
            Self::NoAddress { mailbox } => (
                "EWS-NO-ADDRESS",
                Fault::Configuration,
                format!(
                    "`{}` is no address of a mailbox, and with the application's token one has to be named",
                    crate::explain::one_line(mailbox, 100)
                ),
                "set `mailbox` in the account, or enter the whole address as the user name in the mail client",
                admin(CauseKind::NotServed),
            ),
            Self::AppOnlyPath => (
                "EWS-APP-ONLY-PATH",
                Fault::MailClient,
                "with the application's token only SOAP requests to /EWS/Exchange.asmx are passed on: no other \
                 names the mailbox it acts on"
                    .to_owned(),
                "set `grant: password` or `grant: device-code` for the account, if the mail client needs it",
                admin(CauseKind::Application),
            ),
            Self::Impersonation { why } => (
                "EWS-IMPERSONATION",
                Fault::MailClient,
                why.clone(),
                "have the mail client name no mailbox, or one of its account; add the mailbox to `ews-mailboxes` of \
                 the account, if the account may open it",
                admin(CauseKind::Mailbox),
            ),
            Self::Soap { why } => (
                "EWS-SOAP",
                Fault::MailClient,
                format!("the mailbox cannot be put into the request: {why}"),
                "have the mail client send plain SOAP in UTF-8 without a DTD",
                admin(CauseKind::Application),
            ),
            Self::UnknownHost => (
                "EWS-PUBLIC-URL",
                Fault::Configuration,
                "the request names a host that is no address of the listener, so nobody knows what to tell the mail \
                 client to connect to"
                    .to_owned(),
                "set `public-url` of the EWS listener to the address that mail clients use",
                admin(CauseKind::NotServed),
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
            Self::Redirected => (
                "EWS-REDIRECT",
                Fault::Provider,
                "Exchange sends the mail client to another host, where it would show its password".to_owned(),
                "set `upstream` of the EWS listener to the host of this tenant",
                admin(CauseKind::Mailbox),
            ),
            Self::Description => (
                "EWS-DESCRIPTION",
                Fault::Provider,
                "the WSDL came compressed, broken off or too long, and its address could not be rewritten".to_owned(),
                "let the mail client read the WSDL from a file, or ask again",
                (Passes::ByItself(None), Refusal::Unavailable { retry_after: None }),
            ),
            Self::NoAnswer { status } => (
                "EWS-NO-ANSWER",
                Fault::Provider,
                format!("Exchange answered with status {status}, which ends no request"),
                "look for a proxy on the way that meddles with HTTP",
                (Passes::ByItself(None), Refusal::Unavailable { retry_after: None }),
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

/// What Exchange's refusal of a fresh token means, with its own words behind it.
pub(super) fn token_refused(diagnostics: &str, context: &Context<'_>) -> Explanation {
    let mut story = exchange(Protocol::Ews, "401", Some(diagnostics), context);
    if !diagnostics.is_empty() {
        story.what = format!("{}: {diagnostics}", story.what);
    }
    story
}

/// 403 without a word, after a good token: EWS is switched off, or the mailbox has no ActiveSync.
pub(super) fn switched_off(protocol: Protocol, context: &Context<'_>) -> Explanation {
    let mut story = exchange(Protocol::Ews, "403", None, context);
    if protocol == Protocol::ActiveSync {
        story.code = "EAS-403".into();
        "ActiveSync is blocked for this application, device or mailbox; the token itself is good"
            .clone_into(&mut story.what);
        "check `Get-CASMailbox` for `ActiveSyncEnabled`, the device access rules, and that the device speaks \
         ActiveSync 16.1"
            .clone_into(&mut story.remedy);
    }
    story
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_token_names_what_exchange_said() {
        let aud = r#"2000003;reason="The audience claim value is invalid 'aud'.";error_category="invalid_resource""#;
        let story = token_refused(aud, &Context::default());
        assert!(story.what.contains(aud), "{story}");
        assert_eq!((story.code.as_ref(), story.refusal), ("EWS-401-2000003", admin(CauseKind::Application)));
        assert!(story.remedy.contains("scope"));
    }

    #[test]
    fn a_wordless_403_names_the_switch_and_the_day_when_it_no_longer_helps() {
        let context = Context { application: "11111111-2222", ..Context::default() };
        let story = switched_off(Protocol::Ews, &context);
        for needle in ["EwsAllowedAppIDs", "11111111-2222", "1 April 2027"] {
            assert!(story.remedy.contains(needle), "{story}");
        }
        assert!(!switched_off(Protocol::ActiveSync, &context).remedy.contains("Ews"));
    }

    fn admin(kind: CauseKind) -> Refusal {
        Refusal::contact_admin(kind)
    }
}
