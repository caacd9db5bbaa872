//! How a record looks before it is sealed: JSON, so that a later version can add to it.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

#[cfg(feature = "redis")]
use super::contract::SharedToken;
use super::contract::{SignInKey, StoredSignIn};
use crate::config::model::Grant;
#[cfg(feature = "redis")]
use crate::secret::AccessToken;
use crate::secret::Secret;

#[derive(Serialize, Deserialize)]
struct SignInRecord<'a> {
    key: Cow<'a, SignInKey>,
    grant: Cow<'a, str>,
    refresh_token: Cow<'a, str>,
    signed_in_at: Timestamp,
    renewed_at: Timestamp,
}

#[cfg(feature = "redis")]
#[derive(Serialize, Deserialize)]
struct TokenRecord<'a> {
    token: Cow<'a, str>,
    expires_at: Timestamp,
}

/// Writes a sign-in.
pub(super) fn sign_in(key: &SignInKey, sign_in: &StoredSignIn) -> Zeroizing<Vec<u8>> {
    let token = sign_in.refresh_token.expose();
    write(
        token.len(),
        &SignInRecord {
            key: Cow::Borrowed(key),
            grant: sign_in.grant.as_str().into(),
            refresh_token: token.into(),
            signed_in_at: sign_in.signed_in_at,
            renewed_at: sign_in.renewed_at,
        },
    )
}

/// Reads a sign-in; `None` where it is none.
pub(super) fn read_sign_in(text: &[u8]) -> Option<(SignInKey, StoredSignIn)> {
    let record: SignInRecord<'_> = serde_json::from_slice(text).ok()?;
    let sign_in = StoredSignIn {
        grant: grant(&record.grant)?,
        refresh_token: Secret::new(record.refresh_token),
        signed_in_at: record.signed_in_at,
        renewed_at: record.renewed_at,
    };
    Some((record.key.into_owned(), sign_in))
}

/// Writes a token.
#[cfg(feature = "redis")]
pub(super) fn token(token: &SharedToken) -> Zeroizing<Vec<u8>> {
    let text = token.token.for_safekeeping();
    write(text.len(), &TokenRecord { token: text.into(), expires_at: token.expires_at })
}

/// Reads a token; `None` where it is none.
#[cfg(feature = "redis")]
pub(super) fn read_token(text: &[u8]) -> Option<SharedToken> {
    let record: TokenRecord<'_> = serde_json::from_slice(text).ok()?;
    Some(SharedToken { token: AccessToken::new(record.token), expires_at: record.expires_at })
}

/// Room for all of it from the start: a buffer that grows would leave copies behind.
fn write(secret: usize, record: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(secret * 2 + 2048));
    // Writing to memory cannot fail, and neither type has a map with keys that are no strings.
    drop(serde_json::to_writer(&mut *text, record));
    text
}

fn grant(name: &str) -> Option<Grant> {
    [
        Grant::Password,
        Grant::ClientCredentials,
        Grant::DeviceCode,
        Grant::AuthorizationCode,
        Grant::ManagedIdentity,
    ]
    .into_iter()
    .find(|grant| grant.as_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were() {
        let key = SignInKey {
            authority: "https://login.microsoftonline.com/contoso.com".to_owned(),
            client_id: "app".to_owned(),
            user: "jürgen@contoso.com".to_owned(),
        };
        for grant in [Grant::DeviceCode, Grant::AuthorizationCode, Grant::Password] {
            let stored = StoredSignIn {
                grant,
                refresh_token: Secret::new("0.A\"\\\n\u{1}x"),
                signed_in_at: "2026-11-24T09:00:00Z".parse().unwrap(),
                renewed_at: "2026-11-24T10:00:00.123456789Z".parse().unwrap(),
            };
            assert_eq!(read_sign_in(&sign_in(&key, &stored)), Some((key.clone(), stored)));
        }
        assert_eq!(read_sign_in(b"junk"), None);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn tokens_come_back_as_they_were() {
        let shared = SharedToken {
            token: AccessToken::new("eyJ0"),
            expires_at: "2026-11-24T10:00:00Z".parse().unwrap(),
        };
        assert_eq!(read_token(&token(&shared)), Some(shared));
        assert_eq!(read_token(b"{}"), None);
    }
}
