//! Random octets and identifiers.

use aws_lc_rs::rand;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

/// Random octets; zeros where the system has none to give, which harms nobody in a simulator.
pub(super) fn octets<const N: usize>() -> [u8; N] {
    let mut octets = [0; N];
    rand::fill(&mut octets).ok();
    octets
}

/// A random number.
pub(super) fn number() -> u64 {
    u64::from_be_bytes(octets())
}

/// A random GUID, as Microsoft prints it.
pub(super) fn guid() -> String {
    let hex = hex(&octets::<16>());
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-4{}-a{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// Random text of URL-safe characters, about `octets` * 4 / 3 of them.
pub(super) fn text(octets: usize) -> String {
    let mut random = vec![0; octets];
    rand::fill(&mut random).ok();
    BASE64_URL_SAFE_NO_PAD.encode(random)
}

/// Lower-case hexadecimal.
pub(super) fn hex(octets: &[u8]) -> String {
    use std::fmt::Write as _;
    octets.iter().fold(String::with_capacity(octets.len() * 2), |mut hex, octet| {
        write!(hex, "{octet:02x}").ok();
        hex
    })
}
