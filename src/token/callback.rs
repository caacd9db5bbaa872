//! What the browser comes back with: the query of the redirect (RFC 6749 §4.1.2), read and judged. Pure: whether
//! it came over the loopback listener or was pasted is all the same here.

use serde_json::{Map, Value};
use url::Url;
use url::form_urlencoded;

use super::answer;
use super::error::{TokenError, Who};
use super::sign_in::{AuthorizeRequest, SignInError};
use crate::config::model::Application;
use crate::secret::Secret;

/// AADSTS65004: the person declined to consent.
const CONSENT_DECLINED: u32 = 65_004;

/// The code of a redirect's query (what stands behind the `?`).
///
/// `state` is compared first, in constant time: nothing else of a foreign answer is looked at.
///
/// # Errors
/// [`SignInError::State`] where it does not belong to `request`; what the identity provider says went wrong; no
/// code at all.
pub fn code(
    request: &AuthorizeRequest,
    application: &Application,
    query: &str,
) -> Result<Secret, SignInError> {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        // RFC 6749 §3.1: a parameter stands there once; of several, the first one counts, for all of them.
        fields.entry(name.into_owned()).or_insert_with(|| Value::String(value.into_owned()));
    }
    request.check_state(answer::text(&fields, "state").unwrap_or_default())?;
    if fields.contains_key("error") {
        let refused = answer::refused_in_redirect(&fields);
        let declined = refused.error.as_deref() == Some("access_denied")
            && (refused.codes.is_empty() || refused.has(CONSENT_DECLINED));
        if declined {
            return Err(SignInError::Declined);
        }
        let who = Box::new(Who::new("", application, "authorization-code"));
        return Err(TokenError::Refused { refused: Box::new(refused), who }.into());
    }
    match answer::text(&fields, "code") {
        Some(code) if !code.is_empty() => Ok(Secret::new(code)),
        Some(_) | None => Err(SignInError::NoCode),
    }
}

/// The query of an address as a person copies it out of a browser: the whole URL, or what stands behind its `?`.
///
/// ```
/// use mailkey::token::callback::query_of;
/// assert_eq!(query_of(" http://localhost/?code=c&state=s# \n").as_deref(), Some("code=c&state=s"));
/// assert_eq!(query_of("code=c&state=s").as_deref(), Some("code=c&state=s"));
/// assert_eq!(query_of("http://localhost/"), None);
/// ```
pub fn query_of(pasted: &str) -> Option<String> {
    let pasted = pasted.trim().trim_matches(['"', '\'', '<', '>']);
    if let Ok(url) = Url::parse(pasted) {
        return url.query().filter(|query| !query.is_empty()).map(str::to_owned);
    }
    let query = pasted.trim_start_matches('?').split('#').next().unwrap_or_default();
    query.contains('=').then(|| query.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Grant, Protocol};
    use crate::explain::Explain as _;
    use crate::token::sign_in::authorize;
    use crate::token::testing::account;
    use proptest::prelude::*;

    fn asked() -> (AuthorizeRequest, Application) {
        let application = Application::clone(&account(&[Grant::AuthorizationCode]).application);
        (authorize(&application, Protocol::Imap, "http://localhost:1", "a@b").unwrap(), application)
    }

    #[test]
    fn a_code_is_taken_with_its_state_only() {
        let (request, application) = asked();
        let state = request.state.expose();
        let read = |query: &str| code(&request, &application, query);
        assert_eq!(read(&format!("code=a%2Bb&state={state}")).unwrap().expose(), "a+b");
        let forged = [
            "code=c".to_owned(),
            "code=c&state=".to_owned(),
            format!("code=c&state={state}x"),
            format!("code=c&state=x&state={state}"),
            format!("error=access_denied&state={}", state.to_lowercase()),
        ];
        for query in forged {
            assert!(matches!(read(&query), Err(SignInError::State)), "{query}");
        }
        for query in [format!("state={state}"), format!("code=&state={state}")] {
            assert!(matches!(read(&query), Err(SignInError::NoCode)), "{query}");
        }
    }

    #[test]
    fn what_the_provider_says_went_wrong_is_explained() {
        let (request, application) = asked();
        let state = request.state.expose();
        let told = |query: &str| {
            let error = code(&request, &application, &format!("{query}&state={state}")).unwrap_err();
            error.explain().code.into_owned()
        };
        assert_eq!(told("error=access_denied&error_subcode=cancel"), "SIGN-IN-DECLINED");
        assert_eq!(
            told("error=access_denied&error_description=AADSTS65004%3A+User+declined"),
            "SIGN-IN-DECLINED"
        );
        assert_eq!(
            told("error=consent_required&error_description=AADSTS65001%3A+not+consented"),
            "AADSTS65001"
        );
        assert_eq!(told("error=access_denied&error_description=AADSTS53003%3A+blocked"), "AADSTS53003");
        assert_eq!(told("error=temporarily_unavailable"), "ENTRA-UNAVAILABLE");
        assert_eq!(told("error=never_heard_of&code=c"), "ENTRA-UNKNOWN");
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic_or_passes_without_its_state(text in ".{0,300}") {
            let (request, application) = asked();
            prop_assert!(code(&request, &application, &text).is_err());
            let _query = query_of(&text);
        }
    }
}
