//! Everything that must not leak, in one file to audit: passwords, access tokens, and the proof that a
//! socket is encrypted.
//!
//! None of these types prints its content, in any build: `Debug` says `[redacted]`. Memory is wiped when
//! the last owner lets go.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderValue;
use zeroize::{Zeroize as _, Zeroizing};

/// What every secret prints as.
pub const REDACTED: &str = "[redacted]";

/// Longest user name that is taken, in octets (RFC 4616 §2 obliges us to take 255).
pub const MAX_USER: usize = 255;

/// Longest password that is taken, in octets. Entra's own limit is 256 characters (AADSTS50052).
pub const MAX_PASSWORD: usize = 1024;

/// How much of a token tells it from everything else, in octets.
const TELLTALE: usize = 24;

/// A text that is never shown: a password, a client secret, a refresh token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over; the caller keeps no copy.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself. Every call site is a place to audit.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// What the mail client sent: a user name and a password.
///
/// ```
/// let who = mailkey::secret::Credentials::decode(b"alice@example.com", b"caf\xe9").unwrap();
/// assert_eq!(who.user, "alice@example.com");
/// assert_eq!(who.password.expose(), "café"); // no UTF-8, so it was Latin-1
/// assert_eq!(format!("{who:?}"), r#"Credentials { user: "alice@example.com", password: [redacted] }"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user name as it was typed, without control characters, 1 to [`MAX_USER`] octets.
    pub user: String,
    /// The password, blanks and all.
    pub password: Secret,
}

/// Why a pair of byte strings is no usable user name and password. Nothing of them is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// No user name at all.
    #[error("the user name is empty")]
    EmptyUser,
    /// No password at all. Entra would only count it as a wrong one.
    #[error("the password is empty")]
    EmptyPassword,
    /// A control character: `^A` would forge a field of XOAUTH2, CR and LF a line of a log.
    #[error("the user name or password holds a control character")]
    ControlCharacter,
    /// Longer than [`MAX_USER`] or [`MAX_PASSWORD`].
    #[error("the user name or password is too long")]
    TooLong,
}

impl Credentials {
    /// Decodes what came over the wire: UTF-8, or Latin-1 where the bytes are no UTF-8.
    ///
    /// # Errors
    /// Empty parts, control characters (C0, DEL; a tab in a password is let through) and over-long parts.
    pub fn decode(user: &[u8], password: &[u8]) -> Result<Self, CredentialsError> {
        let user = text(user);
        let password = Secret(text(password));
        if user.is_empty() {
            return Err(CredentialsError::EmptyUser);
        }
        if password.expose().is_empty() {
            return Err(CredentialsError::EmptyPassword);
        }
        if user.len() > MAX_USER || password.expose().len() > MAX_PASSWORD {
            return Err(CredentialsError::TooLong);
        }
        if user.chars().any(char::is_control)
            || password.expose().chars().any(|c| c.is_ascii_control() && c != '\t')
        {
            return Err(CredentialsError::ControlCharacter);
        }
        Ok(Self { user: user.as_str().to_owned(), password })
    }
}

fn text(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(match std::str::from_utf8(bytes) {
        Ok(utf8) => utf8.to_owned(),
        Err(_) => bytes.iter().map(|&b| char::from(b)).collect(),
    })
}

/// Octets on their way, a password or token among them. Wiped in one go, where `Zeroizing` goes octet by octet.
#[derive(Default)]
pub struct Passing(pub Vec<u8>);

impl Passing {
    /// Overwrites what is there; it stays as long as it was.
    pub fn wipe(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl Deref for Passing {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Passing {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

/// An OAuth 2.0 access token. Cheap to clone; wiped when the last clone goes.
#[derive(Clone)]
pub struct AccessToken(Arc<Token>);

struct Token {
    text: Zeroizing<String>,
    /// What stands in `Authorization`, made when it is first wanted: a token serves many requests.
    bearer: OnceLock<Option<HeaderValue>>,
}

impl AccessToken {
    /// Takes the token as the identity provider gave it.
    pub fn new(token: impl Into<String>) -> Self {
        Self(Arc::new(Token { text: Zeroizing::new(token.into()), bearer: OnceLock::new() }))
    }

    /// The token, for a writer that can show that the socket is encrypted.
    pub fn for_wire(&self, _proof: &Encrypted) -> &str {
        &self.0.text
    }

    /// `Bearer` and the token (RFC 6750 §2.1), for a request over such a socket; `None` where it makes no header.
    pub fn bearer(&self, proof: &Encrypted) -> Option<HeaderValue> {
        let make = || {
            let text = ["Bearer ", self.for_wire(proof)].concat();
            // taken over, not copied: it is wiped when it is given back
            let mut value = HeaderValue::from_maybe_shared(Bytes::from(text)).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        self.0.bearer.get_or_init(make).clone()
    }

    /// The token, for the encrypted store and for reading its claims. Never for a socket.
    pub fn for_safekeeping(&self) -> &str {
        &self.0.text
    }

    /// Its beginning, by which it is known in a text that may be cut off behind it.
    pub fn telltale(&self) -> &str {
        self.0.text.get(..TELLTALE).unwrap_or(&self.0.text)
    }

    /// Its length in octets: Exchange Online's POP3 fails above 4,096.
    pub fn len(&self) -> usize {
        self.0.text.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.text.is_empty()
    }
}

impl PartialEq for AccessToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.text == other.0.text
    }
}

impl Eq for AccessToken {}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// Proof that a TLS handshake with a checked host name has been completed on the socket in question.
///
/// Only `upstream/tls.rs` makes one (the house test looks), so that a token cannot reach a plain socket.
#[derive(Debug)]
pub struct Encrypted(());

impl Encrypted {
    /// To be called right after the handshake, nowhere else.
    pub(crate) fn after_handshake() -> Self {
        Self(())
    }

    /// A proof for tests of the dialogues, which have no socket at all.
    #[doc(hidden)]
    pub fn pretend() -> Self {
        Self(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_never_get_past_decoding() {
        for user in ["a\u{1}auth=Bearer x", "a\rb", "a\nb", "a\0b", "a\u{7f}", "a\u{85}b"] {
            assert_eq!(
                Credentials::decode(user.as_bytes(), b"x"),
                Err(CredentialsError::ControlCharacter),
                "{user:?}"
            );
        }
        assert_eq!(Credentials::decode(b"a", b"x\0junk"), Err(CredentialsError::ControlCharacter));
    }

    #[test]
    fn blanks_are_part_of_a_password() {
        assert_eq!(Credentials::decode(b"a", b" b c ").unwrap().password.expose(), " b c ");
    }

    #[test]
    fn nothing_secret_is_printed() {
        let shown = format!("{:?} {:?}", Secret::new("hunter2"), AccessToken::new("eyJ0"));
        assert_eq!(shown, "[redacted] [redacted]");
    }
}
