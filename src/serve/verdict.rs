//! What upstream's answer to a sign-in means for the administrator.

use super::drive::BackFailure;
use crate::config::model::{MailServer, Protocol};
use crate::explain::{CauseKind, Explain as _, Explanation, Fault, Passes, Refusal, one_line};
use crate::protocol::machine::BackError;
use crate::token::catalogue::{self, Context};

/// The whole story of a sign-in that upstream did not take.
pub fn explain(
    failure: &BackFailure,
    protocol: Protocol,
    server: &MailServer,
    context: &Context<'_>,
) -> Explanation {
    let error = match failure {
        BackFailure::Broke(error) => return error.explain(),
        BackFailure::Said(error) => error,
    };
    let target = format!("{}:{}", server.host, server.port);
    let (code, fault, what, remedy, passes, refusal) = match error {
        BackError::Refused { reply, challenge } => {
            return catalogue::exchange(protocol, reply, challenge.as_deref(), context);
        }
        BackError::TryLater { reply } => {
            return catalogue::not_now(protocol, reply, context);
        }
        BackError::NoStartTls => (
            "UPSTREAM-NO-STARTTLS",
            Fault::Network,
            format!("`{target}` offers no STARTTLS, and no token goes over a socket without TLS"),
            "check `upstream` and `upstream-tls`; a firewall that inspects mail may strip STARTTLS: have it stop".to_owned(),
            Passes::Never,
            Refusal::Unavailable { retry_after: None },
        ),
        BackError::NoMechanism { offered } => (
            "UPSTREAM-NO-XOAUTH2",
            Fault::Configuration,
            format!("`{target}` takes no OAuth 2.0 sign-in; it offers `{offered}`"),
            "check that `upstream` is a host of Office 365, or set `sasl: oauthbearer` where it offers that".to_owned(),
            Passes::Never,
            Refusal::contact_admin(CauseKind::Application),
        ),
        BackError::Injected => (
            "UPSTREAM-INJECTED",
            Fault::Network,
            format!("clear text stood behind the answer of `{target}` to STARTTLS: somebody on the line tries to slip commands in"),
            "find out who stands between this machine and Office 365; no token was sent".to_owned(),
            Passes::Never,
            Refusal::Unavailable { retry_after: None },
        ),
        BackError::Unexpected { expected, got } => (
            "UPSTREAM-PROTOCOL",
            Fault::Network,
            format!("`{target}` does not speak {protocol}: expected {expected}, got `{got}`"),
            "check host, port and `upstream-tls` of this listener, and what stands between".to_owned(),
            Passes::ByItself(None),
            Refusal::Unavailable { retry_after: None },
        ),
        BackError::TooLong => (
            "UPSTREAM-PROTOCOL",
            Fault::Network,
            format!("`{target}` sent a line longer than any {protocol} server sends"),
            "check host, port and `upstream-tls` of this listener, and what stands between".to_owned(),
            Passes::ByItself(None),
            Refusal::Unavailable { retry_after: None },
        ),
    };
    Explanation { code: code.into(), fault, what: one_line(&what, 500), remedy, passes, refusal }
}
