//! The identity provider's answers: the class by `error` and HTTP status, then the AADSTS code.

use std::borrow::Cow;

use super::codes::{
    CODES, CONDITIONAL_ACCESS, CONSENT, DEVICE_LOGIN, MFA, REFUSED_PASSWORD, SERVICE, SETTINGS,
    SIGN_IN_AGAIN, THROTTLED, UNFAMILIAR, UNFAMILIAR_GRANT, name, row,
};
use super::entry::{Context, Verdict};
use crate::explain::Explanation;

/// Explains an answer of the token endpoint.
///
/// `error` and `http_status` give the class; the first of `codes` that is known refines it. An answer that
/// is temporary by its class (429, 5xx, `temporarily_unavailable`) stays so whatever the code says: a service
/// in trouble has judged nobody. A code that is not known is shown, and explained by its class.
pub fn entra(error: Option<&str>, http_status: u16, codes: &[u32], context: &Context<'_>) -> Explanation {
    let class = class_of(error, http_status);
    let known = codes.iter().find_map(|&code| row(code));
    match known {
        Some(row) if class.passes() && !row.passes() => {
            let class = class.row();
            let what = format!("{}, and says AADSTS{}: {}", class.what, row.code, row.what);
            class.verdict(context).explain(row.name(), what, Some(row.code), context)
        }
        Some(row) => row.explain(context),
        None => {
            let class = class.row();
            match codes.first() {
                Some(&code) => class.verdict(context).explain(
                    name(code),
                    format!("{}, with the unfamiliar code `AADSTS{code}`", class.what),
                    Some(code),
                    context,
                ),
                None => class.explain(context),
            }
        }
    }
}

/// What kind of answer it is, by what Microsoft promises: `error` (RFC 6749 §5.2) and the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 429.
    Throttled,
    /// 5xx, 408, `temporarily_unavailable`, `server_error`.
    Temporary,
    /// The request or the registration: `invalid_client`, `unauthorized_client`, `invalid_scope`, ….
    Configuration,
    /// `invalid_grant`: the password, the refresh token, or a policy.
    Grant,
    /// A person is needed: `interaction_required`, `login_required`.
    Interaction,
    /// `consent_required`.
    Consent,
    /// A policy: `access_denied`.
    Denied,
    /// The device login is under way or over: `authorization_pending`, `expired_token`, ….
    Device,
    /// Nothing of these.
    Unknown,
}

impl Class {
    /// Whether asking later helps.
    pub fn passes(self) -> bool {
        matches!(self, Self::Throttled | Self::Temporary)
    }

    fn row(self) -> &'static ClassRow {
        // Every class stands in the table (a test looks); the last row is for the unknown.
        CLASSES.iter().find(|row| row.class == self).unwrap_or(&UNKNOWN)
    }
}

/// The class of an answer.
///
/// ```
/// use mailkey::token::catalogue::{Class, class_of};
/// assert_eq!(class_of(Some("invalid_grant"), 400), Class::Grant);
/// assert_eq!(class_of(Some("invalid_grant"), 503), Class::Temporary);
/// ```
pub fn class_of(error: Option<&str>, http_status: u16) -> Class {
    match http_status {
        429 => Class::Throttled,
        408 | 500..=599 => Class::Temporary,
        _ => error.and_then(class_named).unwrap_or(Class::Unknown),
    }
}

/// All classes, for the catalogue's page.
pub(super) fn classes() -> Vec<Explanation> {
    CLASSES.iter().map(|row| row.explain(&Context::default())).collect()
}

/// All codes, for the catalogue's page.
pub(super) fn codes() -> Vec<Explanation> {
    CODES.iter().map(|row| row.explain(&Context::default())).collect()
}

/// `AADSTSnnnnn` anywhere; a bare number where it is all there is; else `error` names and class codes.
pub(super) fn find(text: &str) -> Vec<Explanation> {
    let numbers = numbers(text);
    if !numbers.is_empty() {
        let error = words(text).find(|word| class_named(word).is_some());
        return numbers.into_iter().map(|code| entra(error, 400, &[code], &Context::default())).collect();
    }
    if let Some(row) = text.trim().parse().ok().and_then(row) {
        return vec![row.explain(&Context::default())];
    }
    CLASSES
        .iter()
        .filter(|class| {
            words(text).any(|word| class.errors.contains(&word) || word.eq_ignore_ascii_case(class.code))
        })
        .map(|class| class.explain(&Context::default()))
        .collect()
}

fn class_named(error: &str) -> Option<Class> {
    CLASSES.iter().find(|row| row.errors.contains(&error)).map(|row| row.class)
}

/// Every number behind `AADSTS`, each once, in order.
fn numbers(text: &str) -> Vec<u32> {
    let upper = text.to_ascii_uppercase();
    let mut found = Vec::new();
    for behind in upper.split("AADSTS").skip(1) {
        let end = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        if let Some(number) = behind.get(..end).and_then(|digits| digits.parse().ok())
            && !found.contains(&number)
            && found.len() < MAX_FOUND
        {
            found.push(number);
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).filter(|word| !word.is_empty())
}

/// More codes than this in one text are not explained.
const MAX_FOUND: usize = 20;

/// A class, with what is said where no known code refines it.
struct ClassRow {
    class: Class,
    code: &'static str,
    errors: &'static [&'static str],
    what: &'static str,
    verdict: &'static Verdict,
}

impl ClassRow {
    /// `invalid_grant` says one thing of a password and another of a refresh token.
    fn verdict(&self, context: &Context<'_>) -> &'static Verdict {
        match (self.class, context.grant) {
            (Class::Grant, "password") => &REFUSED_PASSWORD,
            (Class::Grant, "device-code" | "authorization-code" | "refresh-token") => &SIGN_IN_AGAIN,
            _ => self.verdict,
        }
    }

    fn explain(&self, context: &Context<'_>) -> Explanation {
        self.verdict(context).explain(Cow::Borrowed(self.code), self.what.to_owned(), None, context)
    }
}

const UNKNOWN: ClassRow = ClassRow {
    class: Class::Unknown,
    code: "ENTRA-UNKNOWN",
    errors: &[],
    what: "the identity provider refused without an `error` that is known here",
    verdict: &UNFAMILIAR,
};

static CLASSES: [ClassRow; 9] = [
    ClassRow {
        class: Class::Throttled,
        code: "ENTRA-THROTTLED",
        errors: &["too_many_requests"],
        what: "the identity provider limits the rate of our requests",
        verdict: &THROTTLED,
    },
    ClassRow {
        class: Class::Temporary,
        code: "ENTRA-UNAVAILABLE",
        errors: &["temporarily_unavailable", "server_error"],
        what: "the identity provider is in trouble and judged nothing",
        verdict: &SERVICE,
    },
    ClassRow {
        class: Class::Configuration,
        code: "ENTRA-CONFIGURATION",
        errors: &[
            "invalid_client",
            "unauthorized_client",
            "invalid_scope",
            "invalid_resource",
            "invalid_request",
            "unsupported_grant_type",
            "unsupported_response_type",
        ],
        what: "the identity provider does not accept the application or the request",
        verdict: &SETTINGS,
    },
    ClassRow {
        class: Class::Grant,
        code: "ENTRA-INVALID-GRANT",
        errors: &["invalid_grant"],
        what: "the identity provider refused the sign-in",
        verdict: &UNFAMILIAR_GRANT,
    },
    ClassRow {
        class: Class::Interaction,
        code: "ENTRA-INTERACTION",
        errors: &["interaction_required", "login_required", "account_selection_required"],
        what: "the identity provider wants a person at a browser for this sign-in",
        verdict: &MFA,
    },
    ClassRow {
        class: Class::Consent,
        code: "ENTRA-CONSENT",
        errors: &["consent_required"],
        what: "nobody has consented to the application's permissions",
        verdict: &CONSENT,
    },
    ClassRow {
        class: Class::Denied,
        code: "ENTRA-DENIED",
        errors: &["access_denied"],
        what: "the identity provider denies the access",
        verdict: &CONDITIONAL_ACCESS,
    },
    ClassRow {
        class: Class::Device,
        code: "ENTRA-DEVICE-LOGIN",
        errors: &[
            "authorization_pending",
            "authorization_declined",
            "slow_down",
            "expired_token",
            "code_expired",
            "bad_verification_code",
        ],
        what: "the device login is not finished, was declined, or took too long",
        verdict: &DEVICE_LOGIN,
    },
    UNKNOWN,
];

#[cfg(test)]
mod tests {
    use super::super::codes::LOCKED_FOR;
    use super::*;
    use crate::explain::{Cause, CauseKind, Passes, Refusal};

    fn told(code: u32) -> Refusal {
        entra(Some("invalid_grant"), 400, &[code], &Context::default()).refusal
    }

    fn kind(code: u32) -> CauseKind {
        let Refusal::ContactAdmin(Cause { kind, aadsts }) = told(code) else { panic!("AADSTS{code}") };
        assert_eq!(aadsts, Some(code));
        kind
    }

    #[test]
    fn the_table_is_sorted_and_no_code_stands_twice() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(CODES.len() >= 160);
    }

    #[test]
    fn refusals_are_those_of_the_design() {
        for code in [50126, 50034, 50064, 50056, 50052] {
            assert_eq!(told(code), Refusal::BadCredentials, "{code}");
        }
        for code in [50055, 50144, 50125, 50135, 50142] {
            assert_eq!(told(code), Refusal::PasswordExpired, "{code}");
        }
        assert_eq!(told(50053), Refusal::HeldBack { retry_after: LOCKED_FOR });
        for code in [50072, 50074, 50076, 50078, 50079, 50158, 700_020] {
            assert_eq!(kind(code), CauseKind::MultiFactor, "{code}");
        }
        for code in [53000, 53001, 53002, 53003, 530_032, 530_034, 530_035, 50131, 50105, 80012, 500_213] {
            assert_eq!(kind(code), CauseKind::Policy, "{code}");
        }
        for code in [65001, 65004, 90008, 90093, 90094, 90095, 90099] {
            assert_eq!(kind(code), CauseKind::Consent, "{code}");
        }
        for code in [700_016, 7_000_218, 7_000_215, 7_000_222, 700_025, 90002, 9_001_023, 1_002_012, 70011] {
            assert_eq!(kind(code), CauseKind::Application, "{code}");
        }
        for code in [50057, 50020, 51004, 90072] {
            assert_eq!(kind(code), CauseKind::Account, "{code}");
        }
        for code in [70000, 70008, 700_082, 70043, 50173, 54005] {
            assert_eq!(kind(code), CauseKind::SignIn, "{code}");
        }
        for code in [90033, 90024, 90006, 50033, 90012, 90055, 80002, 50196] {
            assert!(matches!(told(code), Refusal::Unavailable { .. }), "{code}");
        }
    }

    #[test]
    fn a_service_in_trouble_has_judged_nobody() {
        for (error, status) in [
            (Some("invalid_grant"), 503),
            (Some("invalid_grant"), 429),
            (Some("server_error"), 400),
            (Some("temporarily_unavailable"), 400),
            (None, 500),
            (None, 408),
        ] {
            let story = entra(error, status, &[50126], &Context::default());
            assert_eq!(story.code, "AADSTS50126");
            assert!(matches!(story.refusal, Refusal::Unavailable { .. }), "{error:?} {status}: {story:?}");
            assert!(matches!(story.passes, Passes::ByItself(_)));
        }
    }

    #[test]
    fn what_is_not_known_falls_back_to_its_class() {
        let none = Context::default();
        let password = Context { grant: "password", ..none };
        let stored = Context { grant: "device-code", ..none };
        let ask = |error, status, context| entra(error, status, &[1_001_010], context).refusal;
        let admin = |kind| Refusal::ContactAdmin(Cause { kind, aadsts: Some(1_001_010) });
        assert_eq!(ask(Some("invalid_client"), 401, &none), admin(CauseKind::Application));
        assert_eq!(ask(Some("invalid_scope"), 400, &none), admin(CauseKind::Application));
        assert_eq!(ask(Some("interaction_required"), 400, &none), admin(CauseKind::MultiFactor));
        assert_eq!(ask(Some("consent_required"), 400, &none), admin(CauseKind::Consent));
        assert_eq!(ask(Some("invalid_grant"), 400, &password), Refusal::BadCredentials);
        assert_eq!(ask(Some("invalid_grant"), 400, &stored), admin(CauseKind::SignIn));
        assert_eq!(ask(None, 400, &none), admin(CauseKind::Application));
        assert!(matches!(ask(Some("server_error"), 400, &none), Refusal::Unavailable { .. }));
        let story = entra(Some("invalid_client"), 401, &[1_001_010], &none);
        assert_eq!(story.code, "AADSTS1001010");
        assert!(story.what.contains("`AADSTS1001010`"), "{}", story.what);
        assert_eq!(entra(Some("invalid_client"), 401, &[], &none).code, "ENTRA-CONFIGURATION");
        assert_eq!(entra(Some("invalid_grant"), 400, &[1_001_010, 50126], &none).code, "AADSTS50126");
    }

    #[test]
    fn every_class_has_its_row_and_no_error_name_stands_twice() {
        use Class::{
            Configuration, Consent, Denied, Device, Grant, Interaction, Temporary, Throttled, Unknown,
        };
        for class in
            [Throttled, Temporary, Configuration, Grant, Interaction, Consent, Denied, Device, Unknown]
        {
            assert_eq!(class.row().class, class);
            assert_eq!(class.passes(), matches!(class.row().verdict.passes, Passes::ByItself(_)));
        }
        let mut errors: Vec<_> = CLASSES.iter().flat_map(|row| row.errors).collect();
        let all = errors.len();
        errors.sort_unstable();
        errors.dedup();
        assert_eq!(errors.len(), all);
    }

    #[test]
    fn codes_are_found_in_a_pasted_reply() {
        let reply = r#"{"error":"invalid_grant","error_description":"AADSTS50076: Due to a configuration change …\r\n
            Trace ID: 1","error_codes":[50076],"error_uri":"https://login.microsoftonline.com/error?code=50076"}"#;
        let found = find(reply);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].code, "AADSTS50076");
        assert_eq!(find("aadsts7000215, then AADSTS50126 and AADSTS50126").len(), 2);
        assert_eq!(find(" 50126 ")[0].code, "AADSTS50126");
        assert_eq!(find("AADSTS99999999999999999999"), []);
        assert_eq!(find("error=invalid_grant")[0].code, "ENTRA-INVALID-GRANT");
        assert_eq!(find("AADSTS1001010 invalid_client")[0].refusal.as_str(), "contact-admin");
    }

    #[test]
    fn remedies_carry_the_values() {
        let context = Context {
            user: "alice@contoso.com",
            application: "11111111-2222-3333-4444-555555555555",
            directory: "contoso.com",
            grant: "password",
        };
        assert!(entra(None, 400, &[50034], &context).remedy.contains("`alice@contoso.com`"));
        assert!(
            entra(None, 400, &[700_016], &context).remedy.contains("11111111-2222-3333-4444-555555555555")
        );
        assert!(
            entra(None, 400, &[65001], &context)
                .remedy
                .contains("/contoso.com/adminconsent?client_id=11111111")
        );
    }
}
