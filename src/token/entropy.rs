//! Random bytes, jitter, and the keyed digests that stand in for passwords.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use aws_lc_rs::{hmac, rand};

/// What a password, or a set of names, is compared by: HMAC-SHA-256 under a key of this process.
pub type Digest = [u8; 32];

/// Fills a buffer with random bytes of the operating system.
pub fn fill(bytes: &mut [u8]) {
    if rand::fill(bytes).is_err() {
        // aws-lc aborts rather than fail; std's own seeds come from the operating system too.
        for chunk in bytes.chunks_mut(8) {
            let word = RandomState::new().hash_one(0_u8).to_ne_bytes();
            for (byte, random) in chunk.iter_mut().zip(word) {
                *byte = random;
            }
        }
    }
}

/// A random part of `most`, evenly spread.
pub fn up_to(most: Duration) -> Duration {
    let mut bytes = [0_u8; 4];
    fill(&mut bytes);
    most.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

/// The key of this process: digests under it mean nothing to anybody else, nor after a restart.
pub struct ProcessKey(hmac::Key);

impl std::fmt::Debug for ProcessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProcessKey")
    }
}

impl Default for ProcessKey {
    fn default() -> Self {
        let mut seed = zeroize::Zeroizing::new([0_u8; 32]);
        fill(seed.as_mut_slice());
        Self(hmac::Key::new(hmac::HMAC_SHA256, seed.as_slice()))
    }
}

impl ProcessKey {
    /// A digest of parts; each is preceded by its length, so that no two lists of parts are the same bytes.
    pub fn digest(&self, parts: &[&[u8]]) -> Digest {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        digest
    }
}

/// Whether two digests are the same, in constant time.
pub fn same(a: &Digest, b: &Digest) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_parts_and_processes_apart() {
        let key = ProcessKey::default();
        assert!(same(&key.digest(&[b"ab", b"c"]), &key.digest(&[b"ab", b"c"])));
        assert!(!same(&key.digest(&[b"ab", b"c"]), &key.digest(&[b"a", b"bc"])));
        assert!(!same(&key.digest(&[b"ab"]), &ProcessKey::default().digest(&[b"ab"])));
    }

    #[test]
    fn jitter_stays_in_its_bounds() {
        let most = Duration::from_secs(10);
        let drawn: Vec<Duration> = (0..50).map(|_| up_to(most)).collect();
        assert!(drawn.iter().all(|jitter| *jitter <= most));
        assert!(drawn.iter().any(|jitter| *jitter != drawn[0]));
    }
}
