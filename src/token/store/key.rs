//! The key of a store, and what is sealed under it: AES-256-GCM-SIV, so that a repeated nonce is no disaster.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::contract::{Digest, StoreError};
use crate::config::model::KeySource;
use crate::token::digest::keyed_digest;

/// 32 secret bytes, made by `openssl rand -base64 32`. Wiped when dropped.
pub struct StoreKey(Zeroizing<[u8; 32]>);

impl StoreKey {
    /// Reads it from where the configuration says.
    ///
    /// # Errors
    /// No source, a file that cannot be read or that others may write, or no 32 bytes.
    pub fn from_source(source: Option<&KeySource>) -> Result<Self, StoreError> {
        match source {
            None => Err(StoreError::Key("neither `key-file` nor `key` is set under `tokens`".to_owned())),
            Some(KeySource::Value(value)) => Self::parse(value.expose().as_bytes()),
            Some(KeySource::File(path)) => Self::parse(&read(path)?),
        }
    }

    /// Takes 32 raw bytes, 64 hexadecimal digits, or base64 of 32 bytes; white space around text is ignored.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(key: &[u8]) -> Result<Self, StoreError> {
        if let Ok(raw) = <[u8; 32]>::try_from(key) {
            return Ok(Self(Zeroizing::new(raw)));
        }
        let text = key.trim_ascii();
        let decoded = Zeroizing::new(
            unhex(text)
                .or_else(|| STANDARD.decode(text).ok())
                .or_else(|| URL_SAFE_NO_PAD.decode(text.strip_suffix(b"=").unwrap_or(text)).ok())
                .unwrap_or_default(),
        );
        <[u8; 32]>::try_from(decoded.as_slice()).map(|key| Self(Zeroizing::new(key))).map_err(|_| {
            StoreError::Key(
                "expected 32 raw bytes, 64 hexadecimal digits, or 44 characters of base64".to_owned(),
            )
        })
    }

    /// A key for one purpose, so that no key serves two algorithms.
    fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.0);
        Zeroizing::new(keyed_digest(&key, &[b"mailkey token store 1", purpose.as_bytes()]))
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(crate::secret::REDACTED)
    }
}

/// Seals, opens and names records.
pub(super) struct Sealer {
    cipher: RandomizedNonceKey,
    names: hmac::Key,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(crate::secret::REDACTED)
    }
}

impl Sealer {
    pub(super) fn new(key: &StoreKey) -> Result<Self, StoreError> {
        Ok(Self {
            cipher: RandomizedNonceKey::new(&AES_256_GCM_SIV, &*key.derive("seal"))
                .map_err(|_| StoreError::Key("the cipher does not take it".to_owned()))?,
            names: hmac::Key::new(hmac::HMAC_SHA256, &*key.derive("names")),
        })
    }

    /// A name that says nothing to a reader.
    pub(super) fn digest(&self, parts: &[&[u8]]) -> Digest {
        keyed_digest(&self.names, parts)
    }

    /// `nonce ciphertext tag`. `bound` is what the text belongs to: it opens nowhere else.
    pub(super) fn seal(&self, bound: &[u8], text: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut sealed = text.to_vec();
        let nonce = self
            .cipher
            .seal_in_place_append_tag(Aad::from(bound), &mut sealed)
            .map_err(|_| StoreError::Away("the record could not be encrypted".to_owned()))?;
        sealed.splice(0..0, nonce.as_ref().iter().copied());
        Ok(sealed)
    }

    /// What was sealed; `None` where it was changed, belongs elsewhere, or to another key.
    pub(super) fn open(&self, bound: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let length = self.cipher.open_in_place(nonce, Aad::from(bound), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

/// Whoever may write the file could swap the key. Who may read it is left to the platform: mounted secrets
/// come with modes of their own.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let unreadable =
        |why: std::io::Error| StoreError::Key(format!("cannot read `{}`: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let mode = file.metadata().map_err(unreadable)?.mode();
        if mode & 0o022 != 0 {
            let why = format!("mode {:04o} lets others write it", mode & 0o7777);
            return Err(StoreError::Exposed { path: path.display().to_string(), why });
        }
    }
    let mut key = Zeroizing::new(Vec::with_capacity(256));
    file.take(256).read_to_end(&mut key).map_err(unreadable)?;
    Ok(key)
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_key_comes_raw_in_hex_or_in_base64() {
        let raw: Vec<u8> = (0..32).map(|n| n * 8 + 7).collect();
        let texts = [
            raw.clone(),
            crate::token::digest::hex(&raw).into_bytes(),
            crate::token::digest::hex(&raw).to_uppercase().into_bytes(),
            format!("{}\n", STANDARD.encode(&raw)).into_bytes(),
            format!(" {}", URL_SAFE_NO_PAD.encode(&raw)).into_bytes(),
        ];
        for text in texts {
            assert_eq!(StoreKey::parse(&text).unwrap().0.as_slice(), raw, "{text:?}");
        }
        for text in ["", "short", &"x".repeat(64), &STANDARD.encode([1; 31]), &STANDARD.encode([1; 33])] {
            assert!(matches!(StoreKey::parse(text.as_bytes()), Err(StoreError::Key(_))), "{text}");
        }
        assert!(matches!(StoreKey::from_source(None), Err(StoreError::Key(_))));
        let value = KeySource::Value(Secret::new(STANDARD.encode(&raw)));
        assert_eq!(StoreKey::from_source(Some(&value)).unwrap().0.as_slice(), raw);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, [7; 32]).unwrap();
        let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o444);
        assert!(StoreKey::from_source(Some(&KeySource::File(path.clone()))).is_ok());
        set(0o620);
        assert!(matches!(
            StoreKey::from_source(Some(&KeySource::File(path.clone()))),
            Err(StoreError::Exposed { .. })
        ));
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_at_its_place_only() {
        let ours = Sealer::new(&StoreKey::parse(&[7; 32]).unwrap()).unwrap();
        let other = Sealer::new(&StoreKey::parse(&[8; 32]).unwrap()).unwrap();
        let sealed = ours.seal(b"place", b"text").unwrap();
        assert_eq!(ours.open(b"place", &sealed).unwrap().as_slice(), b"text");
        assert!(ours.open(b"elsewhere", &sealed).is_none());
        assert!(other.open(b"place", &sealed).is_none());
        assert_ne!(ours.digest(&[b"a"]), other.digest(&[b"a"]));
        assert_ne!(sealed, ours.seal(b"place", b"text").unwrap(), "the nonce is fresh");
        for at in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[at] ^= 1;
            assert!(ours.open(b"place", &broken).is_none(), "octet {at}");
            assert!(ours.open(b"place", &sealed[..at]).is_none(), "length {at}");
        }
    }
}
