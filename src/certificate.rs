//! What is wrong with a certificate, told so that a person can act on it: who issued it, until when, for whom.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, OtherError};

use crate::explain::one_line;

/// How many names of a certificate are repeated.
const NAMES_SHOWN: usize = 5;

/// How many certificates of a chain are followed.
const CHAIN: usize = 10;

/// Why a certificate is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The chain ends at an issuer that is not among the trusted roots.
    #[error("it is issued by `{}`, which is not trusted here (topmost certificate presented: `{}`, SHA-256 {})", .0.issuer, .0.subject, .0.fingerprint)]
    UnknownIssuer(Stranger),
    /// It was good once.
    #[error("it ended at {ended}, and this machine's clock says {now}")]
    Expired {
        /// Not after.
        ended: Timestamp,
        /// This machine's time.
        now: Timestamp,
    },
    /// It will be good.
    #[error("it begins at {begins} only, and this machine's clock says {now}")]
    NotYetValid {
        /// Not before.
        begins: Timestamp,
        /// This machine's time.
        now: Timestamp,
    },
    /// It is somebody else's.
    #[error("it is not for `{wanted}` but for {names}")]
    WrongName {
        /// The name that was asked for.
        wanted: String,
        /// The names in it, for people.
        names: String,
    },
    /// Something rarer, in rustls' words.
    #[error("{0}")]
    Other(String),
}

/// The top of a chain that leads to no trusted root. Travels inside rustls' own error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("issued by `{issuer}`, which is not trusted here")]
pub struct Stranger {
    /// The topmost certificate's subject.
    pub subject: String,
    /// Its issuer: the same where it is a root.
    pub issuer: String,
    /// Its SHA-256 fingerprint, in the usual pairs of hexadecimal digits.
    pub fingerprint: String,
}

impl Flaw {
    /// What rustls' error says about a certificate; `None`: it is about something else.
    pub fn of(error: &Error) -> Option<Self> {
        let Error::InvalidCertificate(error) = error else { return None };
        #[expect(clippy::wildcard_enum_match_arm, reason = "rustls adds variants; their words do")]
        Some(match error {
            CertificateError::Other(OtherError(inner)) if inner.is::<Stranger>() => inner
                .downcast_ref()
                .cloned()
                .map_or_else(|| Self::Other(error.to_string()), Self::UnknownIssuer),
            CertificateError::UnknownIssuer => Self::UnknownIssuer(Stranger {
                subject: "not recorded".to_owned(),
                issuer: "an unnamed issuer".to_owned(),
                fingerprint: "not recorded".to_owned(),
            }),
            CertificateError::ExpiredContext { time, not_after } => {
                Self::Expired { ended: timestamp(*not_after), now: timestamp(*time) }
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Self::NotYetValid { begins: timestamp(*not_before), now: timestamp(*time) }
            }
            CertificateError::NotValidForNameContext { expected, presented } => {
                Self::WrongName { wanted: expected.to_str().into_owned(), names: shown(presented) }
            }
            other => Self::Other(one_line(&other.to_string(), 200)),
        })
    }

    /// The last word of its code: `TLS-…`, `IDENTITY-TLS-…`.
    pub fn kind(&self) -> Kind {
        match self {
            Self::UnknownIssuer(_) => Kind::Issuer,
            Self::Expired { .. } => Kind::Expired,
            Self::NotYetValid { .. } => Kind::NotYetValid,
            Self::WrongName { .. } => Kind::Name,
            Self::Other(_) => Kind::Other,
        }
    }

    /// What to do, when `target` (host and port) shows such a certificate.
    pub fn remedy(&self, target: &str) -> String {
        match self {
            Self::UnknownIssuer(top) if top.subject == top.issuer => format!(
                "if your company inspects TLS, ask its network administrators for the root `{}` as a PEM file, compare its SHA-256 fingerprint with {}, and name the file in `tls.extra-roots-file`; otherwise somebody listens in",
                top.issuer, top.fingerprint
            ),
            Self::UnknownIssuer(top) => format!(
                "if your company inspects TLS, ask its network administrators for the root certificate above `{}` (`{}`) as a PEM file, and name the file in `tls.extra-roots-file`; otherwise somebody listens in",
                top.subject, top.issuer
            ),
            Self::Expired { .. } | Self::NotYetValid { .. } => {
                format!(
                    "compare this machine's clock with the true time; if it is right, {target} needs a new certificate"
                )
            }
            Self::WrongName { wanted, .. } => format!(
                "check the name `{wanted}` in the configuration, and what DNS or a firewall puts in the place of {target}"
            ),
            Self::Other(_) => format!("find out who answers at {target}, and have its certificate renewed"),
        }
    }
}

/// Kinds of [`Flaw`], for codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unknown issuer.
    Issuer,
    /// Ended.
    Expired,
    /// Not begun.
    NotYetValid,
    /// Another's.
    Name,
    /// The rest.
    Other,
}

impl Stranger {
    /// Follows the chain from the certificate of the service upwards, as far as it was presented.
    pub fn of(leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Self {
        let mut top = leaf;
        for _ in 0..CHAIN {
            let Some((subject, issuer)) = names(top) else { break };
            let above = others.iter().find(|other| {
                other.as_ref() != top.as_ref() && names(other).is_some_and(|(name, _)| name == issuer)
            });
            match above {
                Some(above) if subject != issuer => top = above,
                _ => break,
            }
        }
        let (subject, issuer) = names(top).unwrap_or_default();
        Self { subject: name(subject), issuer: name(issuer), fingerprint: fingerprint(top) }
    }

    /// As rustls carries it.
    pub fn into_rustls(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

/// `3F:A1:…`, the SHA-256 of the whole certificate, as browsers and `openssl x509 -fingerprint` show it.
pub fn fingerprint(certificate: &[u8]) -> String {
    let pairs: Vec<String> =
        digest(&SHA256, certificate).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

fn timestamp(time: UnixTime) -> Timestamp {
    i64::try_from(time.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_default()
}

/// rustls gives names as `DnsName("a.example")`.
fn shown(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name at all".to_owned();
    }
    let plain = |name: &String| {
        let inner = name.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
        format!("`{}`", one_line(inner.map_or(name.as_str(), |(inner, _)| inner), 80))
    };
    let text = presented.iter().take(NAMES_SHOWN).map(plain).collect::<Vec<_>>().join(", ");
    match presented.len().saturating_sub(NAMES_SHOWN) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

// ── Enough of DER (X.690) to read two names out of a certificate (RFC 5280 §4.1) ──

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const BMP_STRING: u8 = 0x1e;

/// Subject and issuer of a certificate, still encoded.
fn names(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let (certificate, _) = take(certificate, SEQUENCE)?;
    let (mut rest, _) = take(certificate, SEQUENCE)?;
    if let Some((_, behind)) = take(rest, VERSION) {
        rest = behind;
    }
    let (_, rest) = take(rest, INTEGER)?;
    let (_, rest) = take(rest, SEQUENCE)?;
    let (issuer, rest) = take(rest, SEQUENCE)?;
    let (_, rest) = take(rest, SEQUENCE)?;
    let (subject, _) = take(rest, SEQUENCE)?;
    Some((subject, issuer))
}

/// The content of the first value, if it is of this kind, and what stands behind it.
fn take(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = value(bytes)?;
    (found == kind).then_some((content, rest))
}

fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&kind, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let count = usize::from(first & 0x7f);
        let digits = rest.get(..count).filter(|digits| !digits.is_empty() && digits.len() <= 3)?;
        length = digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit));
        rest = rest.get(count..)?;
    }
    Some((kind, rest.get(..length)?, rest.get(length..)?))
}

/// A name as people write it: `CN=Contoso Root, O=Contoso`.
fn name(mut encoded: &[u8]) -> String {
    let mut parts = Vec::new();
    while let Some((set, rest)) = take(encoded, SET) {
        encoded = rest;
        if let Some((pair, _)) = take(set, SEQUENCE)
            && let Some((kind, rest)) = take(pair, OBJECT_IDENTIFIER)
            && let Some((encoding, text, _)) = value(rest)
        {
            let label = match kind {
                // 2.5.4.x
                [0x55, 4, 3] => "CN",
                [0x55, 4, 6] => "C",
                [0x55, 4, 7] => "L",
                [0x55, 4, 8] => "ST",
                [0x55, 4, 10] => "O",
                [0x55, 4, 11] => "OU",
                // 0.9.2342.19200300.100.1.25
                [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
                _ => continue,
            };
            let text = if encoding == BMP_STRING {
                char::decode_utf16(text.chunks_exact(2).map(|pair| match pair {
                    [high, low] => u16::from_be_bytes([*high, *low]),
                    _ => 0,
                }))
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect()
            } else {
                String::from_utf8_lossy(text).into_owned()
            };
            parts.push(format!("{label}={}", printable(&text)));
        }
    }
    parts.reverse();
    if parts.is_empty() { "a certificate without a name".to_owned() } else { parts.join(", ") }
}

/// Names are strangers' text: one line, no control characters, but any script.
fn printable(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    fn params(common: &str) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Contosö\n");
        params.distinguished_name.push(DnType::CommonName, common);
        params
    }

    fn chain() -> (CertificateDer<'static>, CertificateDer<'static>, CertificateDer<'static>) {
        let ca = |common: &str| {
            let mut params = params(common);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let root = CertifiedIssuer::self_signed(ca("Root"), KeyPair::generate().unwrap()).unwrap();
        let middle = CertifiedIssuer::signed_by(ca("Middle"), KeyPair::generate().unwrap(), &root).unwrap();
        let leaf = params("Leaf").signed_by(&KeyPair::generate().unwrap(), &middle).unwrap();
        (leaf.der().clone(), middle.der().clone(), root.der().clone())
    }

    #[test]
    fn the_topmost_certificate_that_was_presented_is_named() {
        let (leaf, middle, root) = chain();
        // whatever the order
        let top = Stranger::of(&leaf, &[root.clone(), middle.clone()]);
        assert_eq!(
            (top.subject.as_str(), top.issuer.as_str()),
            ("CN=Root, O=Contosö?", "CN=Root, O=Contosö?")
        );
        assert_eq!(top.fingerprint, fingerprint(&root));
        let top = Stranger::of(&leaf, &[middle]);
        assert_eq!(
            (top.subject.as_str(), top.issuer.as_str()),
            ("CN=Middle, O=Contosö?", "CN=Root, O=Contosö?")
        );
        let top = Stranger::of(&leaf, &[]);
        assert_eq!(
            (top.subject.as_str(), top.issuer.as_str()),
            ("CN=Leaf, O=Contosö?", "CN=Middle, O=Contosö?")
        );
    }

    #[test]
    fn a_fingerprint_reads_as_elsewhere() {
        assert_eq!(
            fingerprint(b"abc"),
            "BA:78:16:BF:8F:01:CF:EA:41:41:40:DE:5D:AE:22:23:B0:03:61:A3:96:17:7A:9C:B4:10:FF:61:F2:00:15:AD"
        );
    }

    #[test]
    fn broken_certificates_have_no_names_and_none_panics() {
        let (leaf, _, _) = chain();
        for end in 0..leaf.len() {
            let cut = CertificateDer::from(leaf[..end].to_vec());
            drop(Stranger::of(&cut, &[]));
        }
        for at in 0..leaf.len() {
            for byte in [0, 0x80, 0x84, 0xff] {
                let mut bad = leaf.to_vec();
                bad[at] = byte;
                drop(Stranger::of(&CertificateDer::from(bad), &[]));
            }
        }
        assert_eq!(Stranger::of(&CertificateDer::from(vec![]), &[]).issuer, "a certificate without a name");
    }

    #[test]
    fn names_are_read_out_of_rustls_words() {
        let names = vec!["DnsName(\"a.example\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()];
        assert_eq!(shown(&names), "`a.example`, `IpAddress(127.0.0.1)`");
        assert_eq!(shown(&vec!["x".to_owned(); 7]), "`x`, `x`, `x`, `x`, `x` and 2 more");
    }
}
