//! Keyed digests: how passwords, users and record names are compared and stored without being readable.

use aws_lc_rs::hmac;

/// HMAC-SHA-256 over the parts, each with its length in front, so that no two lists look alike.
pub fn keyed_digest(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    for (to, from) in digest.iter_mut().zip(context.sign().as_ref()) {
        *to = *from;
    }
    digest
}

/// Lower-case hexadecimal, for names of records.
///
/// ```
/// assert_eq!(mailkey::token::digest::hex(&[0x0f, 0xa0]), "0fa0");
/// ```
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|n| char::from_digit(n.into(), 16))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_shifted_into_one_another() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        let digest = |parts: &[&[u8]]| keyed_digest(&key, parts);
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_ne!(digest(&[b"abc"]), digest(&[b"abc", b""]));
        assert_eq!(digest(&[b"a", b"b"]), digest(&[b"a", b"b"]));
    }

    /// RFC 4231, test case 2, with the length that stands in front.
    #[test]
    fn it_is_hmac_sha_256() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        let text = b"what do ya want for nothing?";
        let whole = [&(text.len() as u64).to_be_bytes()[..], text].concat();
        assert_eq!(keyed_digest(&key, &[text])[..], *hmac::sign(&key, &whole).as_ref());
        assert_eq!(
            hex(hmac::sign(&key, text).as_ref()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
