//! What Entra says when it gives no token: code, `error`, HTTP status, text.

use serde_json::{Value, json};

use super::{random, time};

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u32,
    /// Put in place of `{}` in the text.
    pub(super) detail: String,
}

impl Failure {
    pub(super) fn new(code: u32) -> Self {
        Self { code, detail: String::new() }
    }

    pub(super) fn about(code: u32, detail: &str) -> Self {
        Self { code, detail: detail.to_owned() }
    }

    pub(super) fn status(&self) -> u16 {
        entry(self.code).1
    }

    /// The error document.
    pub(super) fn document(&self) -> Value {
        let (error, _, text, suberror) = entry(self.code);
        let (trace, correlation) = (random::guid(), random::guid());
        let timestamp = time::wall().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let text = text.replace("{}", &self.detail);
        let mut document = json!({
            "error": error,
            "error_description": format!(
                "AADSTS{}: {text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}",
                self.code
            ),
            "error_codes": [self.code],
            "timestamp": timestamp,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("https://login.microsoftonline.com/error?code={}", self.code),
        });
        if let (Some(document), false) = (document.as_object_mut(), suberror.is_empty()) {
            document.insert("suberror".to_owned(), suberror.into());
            if matches!(self.code, 50076 | 50079 | 53003) {
                let claims = r#"{"access_token":{"capolids":{"essential":true,"values":["7a1b9c62-3b1c-4d2e-9f00-1d5b8a6c7e01"]}}}"#;
                document.insert("claims".to_owned(), claims.into());
            }
        }
        document
    }
}

/// (`error`, HTTP status, text, `suberror`)
type Entry = (&'static str, u16, &'static str, &'static str);

const GRANT: &str = "invalid_grant";
const REQUEST: &str = "invalid_request";
const CLIENT: &str = "invalid_client";
const UNAUTHORIZED: &str = "unauthorized_client";
const SCOPE: &str = "invalid_scope";
const INTERACTION: &str = "interaction_required";

fn entry(code: u32) -> Entry {
    user_entry(code).or_else(|| client_entry(code)).unwrap_or_else(|| service_entry(code))
}

/// About the user.
#[expect(clippy::too_many_lines, reason = "a table")]
fn user_entry(code: u32) -> Option<Entry> {
    Some(match code {
        50126 => (GRANT, 400, "Error validating credentials due to invalid username or password.", ""),
        50034 => (
            GRANT,
            400,
            "The user account {} does not exist in the directory. To sign into this application, the account must be added to the directory.",
            "",
        ),
        50053 => (
            GRANT,
            400,
            "The account is locked, you've tried to sign in too many times with an incorrect user ID or password.",
            "",
        ),
        50055 => (GRANT, 400, "The password is expired.", "user_password_expired"),
        50056 => (
            GRANT,
            400,
            "Invalid or null password: password doesn't exist in the directory for this user.",
            "",
        ),
        50057 => (GRANT, 400, "The user account is disabled.", ""),
        50076 => (
            GRANT,
            400,
            "Due to a configuration change made by your administrator, or because you moved to a new location, you must use multi-factor authentication to access '00000002-0000-0ff1-ce00-000000000000'.",
            "basic_action",
        ),
        50079 => (
            GRANT,
            400,
            "Due to a configuration change made by your administrator, or because you moved to a new location, you must enroll in multi-factor authentication to access '00000002-0000-0ff1-ce00-000000000000'.",
            "basic_action",
        ),
        53003 => (
            GRANT,
            400,
            "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
            "message_only",
        ),
        50173 => (
            GRANT,
            400,
            "The provided grant has expired due to it being revoked, a fresh auth token is needed. The user might have changed or reset their password.",
            "bad_token",
        ),
        50196 => (
            GRANT,
            400,
            "The server terminated an operation because it encountered a client request loop. Please contact your app vendor.",
            "",
        ),
        50128 => (
            GRANT,
            400,
            "Invalid domain name - No tenant-identifying information found in either the request or implied by any provided credentials.",
            "",
        ),
        50105 => (
            GRANT,
            400,
            "Your administrator has configured the application to block users unless they are specifically granted access.",
            "",
        ),
        65001 => (
            GRANT,
            400,
            "The user or administrator has not consented to use the application with ID '{}' named 'Mail gateway'. Send an interactive authorization request for this user and resource.",
            "consent_required",
        ),
        70000 => (GRANT, 400, "Provided grant is invalid or malformed.", "bad_token"),
        70008 | 700_082 => (GRANT, 400, "The refresh token has expired due to inactivity.", "bad_token"),
        70043 => (
            GRANT,
            400,
            "The refresh token has expired or is invalid due to sign-in frequency checks by conditional access.",
            "token_expired",
        ),
        54005 => (
            GRANT,
            400,
            "OAuth2 Authorization code was already redeemed, please retry with a new valid code or use an existing refresh token.",
            "",
        ),
        501_481 => (
            GRANT,
            400,
            "The Code_Verifier does not match the code_challenge supplied in the authorization request.",
            "",
        ),
        50058 => ("login_required", 400, "Session information is not sufficient for single-sign-on.", ""),
        50074 | 50078 | 50158 => (INTERACTION, 400, "Strong Authentication is required.", "basic_action"),
        50097 | 53000 | 53001 | 53002 => {
            (INTERACTION, 400, "Device is required to be managed to access this resource.", "")
        }
        _ => return None,
    })
}

/// About the application and its request.
#[expect(clippy::too_many_lines, reason = "a table")]
fn client_entry(code: u32) -> Option<Entry> {
    Some(match code {
        700_016 => (
            UNAUTHORIZED,
            400,
            "Application with identifier '{}' was not found in the directory 'Contoso'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.",
            "",
        ),
        7_000_218 => (
            CLIENT,
            401,
            "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
            "",
        ),
        7_000_215 => (
            CLIENT,
            401,
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{}'.",
            "",
        ),
        7_000_222 => (
            CLIENT,
            401,
            "The provided client secret keys for app '{}' are expired. Visit the Azure portal to create new keys for your app: https://aka.ms/NewClientSecret.",
            "",
        ),
        700_025 => (
            CLIENT,
            401,
            "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.",
            "",
        ),
        700_027 => (
            CLIENT,
            401,
            "The certificate with identifier used to sign the client assertion is not registered on application. [Reason - The key was not found.]",
            "",
        ),
        700_024 => (CLIENT, 401, "Client assertion is not within its valid time range.", ""),
        700_030 => (CLIENT, 401, "Invalid certificate - subject name in certificate isn't authorized.", ""),
        50012 => {
            (CLIENT, 401, "Client assertion contains an invalid signature, audience, issuer or subject.", "")
        }
        50027 => (REQUEST, 400, "JWT token is invalid or malformed.", ""),
        70021 => {
            (UNAUTHORIZED, 401, "No matching federated identity record found for presented assertion. {}", "")
        }
        90002 => (
            REQUEST,
            400,
            "Tenant '{}' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.",
            "",
        ),
        9_001_023 => (
            REQUEST,
            400,
            "The grant type is not supported over the /common or /consumers endpoints. Please use the /organizations or tenant-specific endpoint.",
            "",
        ),
        50194 => (
            REQUEST,
            400,
            "Application '{}' is not configured as a multi-tenant application. Usage of the /common endpoint is not supported for such apps.",
            "",
        ),
        50059 => (
            REQUEST,
            400,
            "No tenant-identifying information found in either the request or implied by any provided credentials.",
            "",
        ),
        900_144 => (REQUEST, 400, "The request body must contain the following parameter: '{}'.", ""),
        90014 => (
            REQUEST,
            400,
            "The required field '{}' is missing from the credential. Ensure that you have all the necessary parameters for the login request.",
            "",
        ),
        901_002 => (REQUEST, 400, "The 'resource' request parameter is not supported.", ""),
        70003 => ("unsupported_grant_type", 400, "The app requested an unsupported grant type '{}'.", ""),
        70011 => (
            SCOPE,
            400,
            "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope {} is not valid.",
            "",
        ),
        28000 => (
            REQUEST,
            400,
            "Provided value for the input parameter scope is not valid because it contains more than one resource. Scope {} is not valid.",
            "",
        ),
        1_002_012 => (
            SCOPE,
            400,
            "The provided value for scope {} is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).",
            "",
        ),
        500_011 => (
            "invalid_resource",
            400,
            "The resource principal named {} was not found in the tenant named Contoso. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant.",
            "",
        ),
        50011 => (
            REQUEST,
            400,
            "The redirect URI '{}' specified in the request does not match the redirect URIs configured for the application.",
            "",
        ),
        70016 => (
            "authorization_pending",
            400,
            "OAuth 2.0 device flow error. Authorization is pending. Continue polling.",
            "",
        ),
        70018 => (
            "bad_verification_code",
            400,
            "Invalid verification code due to User typing in wrong user code for device code flow.",
            "",
        ),
        70019 | 70020 => ("expired_token", 400, "The verification code has expired.", ""),
        65004 => ("authorization_declined", 400, "The user declined to consent to access the app.", ""),
        _ => return None,
    })
}

/// About the service, and everything else.
fn service_entry(code: u32) -> Entry {
    match code {
        90033 | 90024 | 50033 => {
            ("temporarily_unavailable", 503, "A transient error has occurred. Please try again.", "")
        }
        90055 => (
            "temporarily_unavailable",
            429,
            "The tenant is throttled as it has exceeded the quota of requests.",
            "",
        ),
        90036 | 50000 => (
            "server_error",
            500,
            "An unexpected, non-retryable error stemming from the directory service has occurred.",
            "",
        ),
        _ => (GRANT, 400, "Something that this simulator has no words for.", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_document_has_microsofts_shape() {
        let document = Failure::new(50126).document();
        assert_eq!(document["error"], "invalid_grant");
        assert_eq!(document["error_codes"], json!([50126]));
        let text = document["error_description"].as_str().unwrap();
        assert!(text.starts_with(
            "AADSTS50126: Error validating credentials due to invalid username or password. Trace ID: "
        ));
        assert_eq!(document["error_uri"], "https://login.microsoftonline.com/error?code=50126");
        assert!(document.get("suberror").is_none());
    }

    #[test]
    fn a_wrong_secret_is_401_and_an_unknown_tenant_400() {
        assert_eq!(Failure::new(7_000_215).status(), 401);
        assert_eq!(Failure::new(90002).status(), 400);
    }
}
