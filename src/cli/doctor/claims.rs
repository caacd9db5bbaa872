//! What stands in an access token, where it is one that can be read. The token itself is never shown.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::Value;

use crate::config::model::Protocol;
use crate::explain::one_line;

/// Above this length, in octets, Exchange Online's POP3 has broken off sign-ins since July 2025.
pub const POP3_LIMIT: usize = 4096;

/// Exchange's own application ID, which may stand as the audience.
const EXCHANGE: &str = "00000002-0000-0ff1-ce00-000000000000";

/// The claims that decide about mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Which service it is for.
    pub audience: String,
    /// `scp` or `roles`.
    pub permissions: Vec<String>,
    /// `roles` and no user: the application's own token.
    pub application_only: bool,
    /// The user principal name.
    pub user: Option<String>,
    /// The directory that issued it.
    pub directory: Option<String>,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

/// Reads the claims of a JWT (RFC 7519 §3); its signature is upstream's to check. `None`: an opaque token.
pub fn read(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, claims) = (parts.next()?, parts.next()?);
    parts.next()?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).map(|text| one_line(text, 200));
    let list = |value: &Value| match value {
        Value::String(words) => words.split_whitespace().map(|word| one_line(word, 100)).collect(),
        Value::Array(items) => {
            items.iter().filter_map(Value::as_str).map(|word| one_line(word, 100)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    };
    let scopes: Vec<String> = claims.get("scp").map(list).unwrap_or_default();
    let roles: Vec<String> = claims.get("roles").map(list).unwrap_or_default();
    let user = text("upn").or_else(|| text("preferred_username")).or_else(|| text("unique_name"));
    Some(Claims {
        audience: claims.get("aud").map(list).unwrap_or_default().join(" "),
        application_only: scopes.is_empty() && user.is_none(),
        permissions: if scopes.is_empty() { roles } else { scopes },
        user,
        directory: text("tid"),
        expires: claims.get("exp").and_then(Value::as_i64).and_then(|end| Timestamp::from_second(end).ok()),
    })
}

impl Claims {
    /// Whether the audience is Exchange, in any of Microsoft's clouds.
    pub fn is_for_exchange(&self) -> bool {
        let host = self.audience.trim_start_matches("https://").trim_end_matches('/');
        host == EXCHANGE
            || [
                "outlook.office.com",
                "outlook.office365.com",
                "ps.outlook.com",
                "outlook.office365.us",
                "outlook-dod.office365.us",
                "partner.outlook.cn",
            ]
            .contains(&host)
    }

    /// The permission that this protocol needs and the token does not carry.
    pub fn lacks(&self, protocol: Protocol) -> Option<&'static str> {
        let needed = match (protocol, self.application_only) {
            (Protocol::Imap, false) => "IMAP.AccessAsUser.All",
            (Protocol::Pop3, false) => "POP.AccessAsUser.All",
            (Protocol::Smtp, false) => "SMTP.Send",
            (Protocol::Ews, false) => "EWS.AccessAsUser.All",
            (Protocol::ActiveSync, false) => "EAS.AccessAsUser.All",
            (Protocol::Imap, true) => "IMAP.AccessAsApp",
            (Protocol::Pop3, true) => "POP.AccessAsApp",
            // "RBAC for Applications" gives SMTP without a role in the token; ActiveSync has none to give
            (Protocol::Smtp | Protocol::ActiveSync, true) => return None,
            (Protocol::Ews, true) => "full_access_as_app",
        };
        (!self.permissions.iter().any(|has| has.eq_ignore_ascii_case(needed))).then_some(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_delegated_token_and_an_applications_own_are_told_apart() {
        let delegated = token(
            r#"{"aud":"https://outlook.office.com","scp":"IMAP.AccessAsUser.All","upn":"a@b.c","tid":"t","exp":1}"#,
        );
        let claims = read(&delegated).unwrap();
        assert!(!claims.application_only && claims.is_for_exchange());
        assert_eq!(claims.lacks(Protocol::Imap), None);
        assert_eq!(claims.lacks(Protocol::Pop3), Some("POP.AccessAsUser.All"));
        let own = token(r#"{"aud":"00000003-0000-0000-c000-000000000000","roles":["IMAP.AccessAsApp"]}"#);
        let claims = read(&own).unwrap();
        assert!(claims.application_only && !claims.is_for_exchange());
        assert_eq!(claims.lacks(Protocol::Ews), Some("full_access_as_app"));
    }

    #[test]
    fn what_is_no_jwt_is_opaque() {
        for text in ["", "EwBAAl3BAAUF", "a.b", "a.b.c", "a.!!.c", "e30.W10"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
