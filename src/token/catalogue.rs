//! PLACEHOLDER for the catalogue of AADSTS codes: enough for the broker's own tests. Replace the whole file.

use crate::explain::{Cause, CauseKind, Explanation, Fault, Passes, Refusal};

/// Whom and what an answer was about; any of it may be empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// User name.
    pub user: &'a str,
    /// Application (client) ID.
    pub application: &'a str,
    /// Directory (tenant).
    pub directory: &'a str,
    /// The grant.
    pub grant: &'a str,
}

/// What an answer of Entra means.
pub fn entra(error: Option<&str>, http_status: u16, codes: &[u32], context: &Context<'_>) -> Explanation {
    let code = codes.first().copied();
    let admin = |kind| (Refusal::ContactAdmin(Cause { kind, aadsts: code }), Passes::Never);
    let (refusal, passes) = match code {
        Some(50126 | 50064 | 50034) => (Refusal::BadCredentials, Passes::Never),
        Some(50053) => {
            let wait = std::time::Duration::from_mins(1);
            (Refusal::HeldBack { retry_after: wait }, Passes::ByItself(Some(wait)))
        }
        Some(50055) => (Refusal::PasswordExpired, Passes::Never),
        Some(50076 | 50079) => admin(CauseKind::MultiFactor),
        Some(65001) => admin(CauseKind::Consent),
        Some(700_082 | 50173 | 70000 | 70008) => admin(CauseKind::SignIn),
        Some(90033 | 50196) => (Refusal::Unavailable { retry_after: None }, Passes::ByItself(None)),
        _ if http_status >= 500 || matches!(error, Some("temporarily_unavailable" | "server_error")) => {
            (Refusal::Unavailable { retry_after: None }, Passes::ByItself(None))
        }
        _ => admin(CauseKind::Application),
    };
    Explanation {
        code: code.map_or("ENTRA".into(), |code| format!("AADSTS{code}").into()),
        fault: Fault::Tenant,
        what: format!("the identity provider refused `{}`", context.user),
        remedy: "look the code up".to_owned(),
        passes,
        refusal,
    }
}
