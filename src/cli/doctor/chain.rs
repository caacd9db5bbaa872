//! Certificates in words: subject, issuer, end, fingerprint.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::explain::one_line;

/// A certificate that ends within this time is worth a warning.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// What is to be said of a chain, leaf first.
#[derive(Debug, Default)]
pub struct Chain {
    /// Whose certificate it is, by whom, and until when.
    pub summary: String,
    /// One line per certificate.
    pub lines: Vec<String>,
    /// It ends soon, or has ended.
    pub ending: Option<String>,
}

/// Reads a chain; certificates that cannot be read are said so.
pub fn describe(chain: &[CertificateDer<'_>], now: Timestamp) -> Chain {
    let mut told = Chain::default();
    for (at, der) in chain.iter().take(8).enumerate() {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            told.lines.push(format!("certificate {at}: it cannot be read"));
            continue;
        };
        let subject = name(&certificate.subject().to_string());
        let issuer = name(&certificate.issuer().to_string());
        let ends = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok();
        let until = ends.map_or_else(|| "?".to_owned(), |end| end.strftime("%Y-%m-%d").to_string());
        if at == 0 {
            told.summary = format!("`{subject}`, issued by `{issuer}`, good until {until}");
            if ends.is_some_and(|end| end < now + SOON) {
                told.ending = Some(format!("the certificate ends on {until}"));
            }
        }
        told.lines.push(format!(
            "certificate {at}: {subject}; issuer {issuer}; until {until}; SHA-256 {}",
            fingerprint(der)
        ));
    }
    told
}

fn name(text: &str) -> String {
    let text = if text.is_empty() { "(no name)" } else { text };
    one_line(text, 200).replace('`', "'")
}

/// As browsers show it.
pub fn fingerprint(der: &[u8]) -> String {
    let mut text = String::with_capacity(95);
    for (at, byte) in digest::digest(&digest::SHA256, der).as_ref().iter().enumerate() {
        let separator = if at == 0 { "" } else { ":" };
        // Writing to a string cannot fail.
        let _written = write!(text, "{separator}{byte:02X}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_certificate_tells_its_name_its_issuer_and_its_end() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Mail");
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let told = describe(&[made.der().clone()], clock::wall());
        assert!(told.summary.contains("CN=Mail") && told.summary.contains("2031-02-03"), "{told:?}");
        assert!(told.lines[0].contains("SHA-256 ") && told.ending.is_none(), "{told:?}");
        let later = "2031-02-01T00:00:00Z".parse().unwrap();
        assert!(describe(&[made.der().clone()], later).ending.unwrap().contains("2031-02-03"));
        let broken = describe(&[CertificateDer::from(vec![1, 2, 3])], later);
        assert!(broken.lines[0].contains("cannot be read"), "{broken:?}");
    }
}
