//! How an application with a certificate proves itself: a signed client assertion (`private_key_jwt`).
//!
//! PS256 with the certificate's SHA-256 thumbprint; RS256 with the SHA-1 thumbprint for the providers that know
//! nothing newer (AD FS). The files are read anew at each call, so that a renewed certificate needs no restart.
//!
//! Sources: RFC 7523 §2.2, RFC 7515 §4.1.8, RFC 7518 §3.3 and §3.5, Microsoft's "Application authentication
//! certificate credentials", RFC 5280 §4.1 for the certificate.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use aws_lc_rs::rand::{SystemRandom, fill};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};
use crate::secret::Secret;

/// How long an assertion is good for, in seconds, as in Microsoft's own libraries.
const LIFETIME: i64 = 600;

/// Files larger than this are no certificates or keys.
const MAX_FILE: u64 = 1 << 20;

/// Why there is no assertion.
#[derive(Debug, thiserror::Error)]
pub enum AssertionError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// There is no certificate in the certificate's file.
    #[error("expected `-----BEGIN CERTIFICATE-----` in `{}`", .0.display())]
    NoCertificate(PathBuf),
    /// There is no usable private key in the key's file.
    #[error("expected an unencrypted `-----BEGIN PRIVATE KEY-----` in `{}`", .0.display())]
    NoKey(PathBuf),
    /// A key of another kind.
    #[error("expected an RSA key of 2048 to 8192 bits in `{}`", .0.display())]
    NotRsa(PathBuf),
    /// Certificate and key are not a pair.
    #[error("the key in `{}` is not that of the certificate in `{}`", key.display(), certificate.display())]
    NoPair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate in `{}` expired on {since}", path.display())]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// Its last second.
        since: Timestamp,
    },
    /// The certificate's time has not come.
    #[error("the certificate in `{}` is valid from {from} on", path.display())]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// Its first second.
        from: Timestamp,
    },
    /// The library refused to sign or gave no random numbers.
    #[error("the assertion could not be signed")]
    Signing,
}

impl Explain for AssertionError {
    fn explain(&self) -> Explanation {
        let configuration = |code: &'static str, remedy: String| Explanation {
            code: code.into(),
            fault: Fault::Configuration,
            what: self.to_string(),
            remedy,
            passes: Passes::Never,
            refusal: Refusal::contact_admin(CauseKind::Application),
        };
        match self {
            Self::Unreadable { path, .. } => configuration(
                "ASSERTION-UNREADABLE",
                format!("make `{}` readable for the user that Mailkey runs as", path.display()),
            ),
            Self::NoCertificate(path) => configuration(
                "ASSERTION-NO-CERTIFICATE",
                format!("put the certificate in PEM into `{}`, the application's own first", path.display()),
            ),
            Self::NoKey(path) => configuration(
                "ASSERTION-NO-KEY",
                format!(
                    "write the key without a pass phrase: `openssl pkey -in {} -out app.key`",
                    path.display()
                ),
            ),
            Self::NotRsa(_) => configuration(
                "ASSERTION-NOT-RSA",
                "make an RSA key and certificate and upload the certificate: `openssl req -x509 -newkey rsa:3072 \
                 -nodes -keyout app.key -out app.pem -days 365 -subj /CN=mailkey`"
                    .to_owned(),
            ),
            Self::NoPair { .. } => configuration(
                "ASSERTION-NO-PAIR",
                "let `client-certificate-file` and `client-key-file` point at files that were made together"
                    .to_owned(),
            ),
            Self::Expired { .. } => configuration(
                "ASSERTION-EXPIRED",
                "make a new certificate, upload it under Entra admin center > App registrations > Certificates & \
                 secrets, and put it and its key in place of the old ones"
                    .to_owned(),
            ),
            Self::NotYetValid { .. } => configuration(
                "ASSERTION-NOT-YET-VALID",
                "set this machine's clock, or wait for the certificate's first day".to_owned(),
            ),
            Self::Signing => Explanation {
                fault: Fault::Mailkey,
                ..configuration("ASSERTION-SIGNING", "report the line of the log".to_owned())
            },
        }
    }
}

/// A client assertion for one request: PS256, `x5t#S256`.
///
/// `audience` is the token endpoint's URL, `now` the wall clock. Reads two files; signing takes about a
/// millisecond.
///
/// # Errors
/// Files that cannot be read, are no pair, hold no RSA key, or whose certificate is not valid now.
pub fn client_assertion(
    certificate_file: &Path,
    key_file: &Path,
    client_id: &str,
    audience: &str,
    now: Timestamp,
) -> Result<Secret, AssertionError> {
    let identity = Identity::read(certificate_file, key_file, now)?;
    let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA256, &identity.certificate));
    let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint});
    identity.sign(&header, &RSA_PSS_SHA256, client_id, audience, now)
}

/// The older form: RS256, `x5t` with the SHA-1 thumbprint.
///
/// # Errors
/// As [`client_assertion`].
pub fn client_assertion_rs256(
    certificate_file: &Path,
    key_file: &Path,
    client_id: &str,
    audience: &str,
    now: Timestamp,
) -> Result<Secret, AssertionError> {
    let identity = Identity::read(certificate_file, key_file, now)?;
    let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &identity.certificate));
    let header = json!({"alg": "RS256", "typ": "JWT", "x5t": thumbprint});
    identity.sign(&header, &RSA_PKCS1_SHA256, client_id, audience, now)
}

/// A certificate and its key, checked.
struct Identity {
    certificate: CertificateDer<'static>,
    key: RsaKeyPair,
}

impl Identity {
    fn read(certificate_file: &Path, key_file: &Path, now: Timestamp) -> Result<Self, AssertionError> {
        let certificate = CertificateDer::from_pem_slice(&read(certificate_file)?)
            .map_err(|_| AssertionError::NoCertificate(certificate_file.to_owned()))?;
        let parts = Parts::of(&certificate)
            .ok_or_else(|| AssertionError::NoCertificate(certificate_file.to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(&read(key_file)?)
            .map_err(|_| AssertionError::NoKey(key_file.to_owned()))?;
        let key = match &key {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Sec1(_) | _ => return Err(AssertionError::NotRsa(key_file.to_owned())),
        }
        .map_err(|_| AssertionError::NotRsa(key_file.to_owned()))?;
        // SubjectPublicKeyInfo ends with the RSAPublicKey (RFC 3279 §2.3.1).
        if !parts.public_key_info.ends_with(key.public_key().as_ref()) {
            return Err(AssertionError::NoPair {
                certificate: certificate_file.to_owned(),
                key: key_file.to_owned(),
            });
        }
        if now > parts.not_after {
            return Err(AssertionError::Expired {
                path: certificate_file.to_owned(),
                since: parts.not_after,
            });
        }
        if now < parts.not_before {
            return Err(AssertionError::NotYetValid {
                path: certificate_file.to_owned(),
                from: parts.not_before,
            });
        }
        Ok(Self { certificate, key })
    }

    fn sign(
        &self,
        header: &Value,
        padding: &'static dyn RsaEncoding,
        client_id: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<Secret, AssertionError> {
        let issued = now.as_second();
        let claims = json!({
            "aud": audience,
            "iss": client_id,
            "sub": client_id,
            "jti": guid()?,
            "nbf": issued,
            "iat": issued,
            "exp": issued.saturating_add(LIFETIME),
        });
        let mut token = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(padding, &SystemRandom::new(), token.as_bytes(), &mut signature)
            .map_err(|_| AssertionError::Signing)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&signature, &mut token);
        Ok(Secret::new(token))
    }
}

/// What of a certificate matters here.
struct Parts<'a> {
    not_before: Timestamp,
    not_after: Timestamp,
    /// DER of SubjectPublicKeyInfo.
    public_key_info: &'a [u8],
}

impl<'a> Parts<'a> {
    /// `TBSCertificate ::= SEQUENCE { [0] version, serialNumber, signature, issuer, validity, subject,
    /// subjectPublicKeyInfo, … }` (RFC 5280 §4.1). `None` where it is none.
    fn of(certificate: &'a [u8]) -> Option<Self> {
        const SEQUENCE: u8 = 0x30;
        let (certificate, _) = element(certificate, SEQUENCE)?;
        let (mut fields, _) = element(certificate, SEQUENCE)?;
        if fields.first() == Some(&0xa0) {
            (_, fields) = element(fields, 0xa0)?;
        }
        let (_serial, rest) = element(fields, 0x02)?;
        let (_algorithm, rest) = element(rest, SEQUENCE)?;
        let (_issuer, rest) = element(rest, SEQUENCE)?;
        let (validity, rest) = element(rest, SEQUENCE)?;
        let (_subject, rest) = element(rest, SEQUENCE)?;
        let (public_key_info, _) = element(rest, SEQUENCE)?;
        let (not_before, validity) = time(validity)?;
        let (not_after, _) = time(validity)?;
        Some(Self { not_before, not_after, public_key_info })
    }
}

/// One DER element with this tag: its content, and what stands behind it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long => {
            let (octets, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            // Four octets are more than a certificate has; none is BER's indefinite form.
            if octets.is_empty() || octets.len() > 4 {
                return None;
            }
            (octets.iter().fold(0, |length, &octet| length << 8 | usize::from(octet)), rest)
        }
    };
    (found == tag).then_some(())?;
    rest.split_at_checked(length)
}

/// `UTCTime` (`YYMMDDHHMMSSZ`, 1950 to 2049) or `GeneralizedTime` (`YYYYMMDDHHMMSSZ`), RFC 5280 §4.1.2.5.
fn time(der: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (digits, rest, century) = if der.first() == Some(&0x17) {
        let (text, rest) = element(der, 0x17)?;
        (text, rest, if text.first()? < &b'5' { "20" } else { "19" })
    } else {
        let (text, rest) = element(der, 0x18)?;
        (text, rest, "")
    };
    let digits = format!("{century}{}", std::str::from_utf8(digits).ok()?);
    let moment = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", digits).ok()?;
    Some((moment.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp(), rest))
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, AssertionError> {
    use std::io::Read as _;
    let unreadable = |why| AssertionError::Unreadable { path: path.to_owned(), why };
    let mut content = zeroize::Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE).read_to_end(&mut content).map_err(unreadable)?;
    Ok(content)
}

/// A random UUID, version 4 (RFC 9562 §5.4).
fn guid() -> Result<String, AssertionError> {
    let mut random = [0; 16];
    fill(&mut random).map_err(|_| AssertionError::Signing)?;
    let value = u128::from_be_bytes(random) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{value:032x}");
    let mut rest = hex.as_str();
    let mut groups = Vec::new();
    for length in [8, 4, 4, 4, 12] {
        let (group, behind) = rest.split_at_checked(length).unwrap_or((rest, ""));
        groups.push(group);
        rest = behind;
    }
    Ok(groups.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
    use std::process::Command;
    use tempfile::TempDir;

    const AUDIENCE: &str = "https://login.microsoftonline.com/contoso.com/oauth2/v2.0/token";

    fn openssl(dir: &TempDir, arguments: &str) -> Vec<u8> {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(dir.path())
            .output()
            .expect("openssl stands on this machine");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// `app.pem` and `app.key`, good for ten days from the machine's now on.
    fn identity() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        openssl(
            &dir,
            "req -x509 -newkey rsa:2048 -nodes -keyout app.key -out app.pem -days 10 -subj /CN=app",
        );
        dir
    }

    fn assertion(dir: &TempDir, now: Timestamp) -> Result<Secret, AssertionError> {
        client_assertion(&dir.path().join("app.pem"), &dir.path().join("app.key"), "app-1", AUDIENCE, now)
    }

    fn now() -> Timestamp {
        crate::clock::wall()
    }

    fn parts(token: &Secret) -> (Value, Value, String, Vec<u8>) {
        let (signed, signature) = token.expose().rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let json = |part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        (json(header), json(claims), signed.to_owned(), URL_SAFE_NO_PAD.decode(signature).unwrap())
    }

    #[test]
    fn the_assertion_is_what_microsofts_page_asks_for() {
        let (dir, now) = (identity(), now());
        let (header, claims, signed, signature) = parts(&assertion(&dir, now).unwrap());
        let fingerprint = openssl(&dir, "x509 -in app.pem -noout -fingerprint -sha256");
        let fingerprint = String::from_utf8(fingerprint).unwrap();
        let (_, hex) = fingerprint.trim().split_once('=').unwrap();
        let bytes: Vec<u8> = hex.split(':').map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
        assert_eq!(header, json!({"alg": "PS256", "typ": "JWT", "x5t#S256": URL_SAFE_NO_PAD.encode(bytes)}));
        let jti = claims["jti"].as_str().unwrap().to_owned();
        assert_eq!(
            claims,
            json!({"aud": AUDIENCE, "iss": "app-1", "sub": "app-1", "jti": jti, "nbf": now.as_second(),
                   "iat": now.as_second(), "exp": now.as_second() + 600})
        );
        assert_eq!(jti.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(jti.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&jti.as_bytes()[19]));

        let key = PrivateKeyDer::from_pem_file(dir.path().join("app.key")).unwrap();
        let key = RsaKeyPair::from_pkcs8(key.secret_der()).unwrap();
        let public = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.public_key().as_ref());
        public.verify(signed.as_bytes(), &signature).unwrap();
        assert!(public.verify(b"something else", &signature).is_err());
    }

    #[test]
    fn openssl_verifies_both_signatures() {
        let (dir, now) = (identity(), now());
        openssl(&dir, "x509 -in app.pem -pubkey -noout -out public.pem");
        let (cert, key) = (dir.path().join("app.pem"), dir.path().join("app.key"));
        for (token, options) in [
            (
                client_assertion(&cert, &key, "app-1", AUDIENCE, now).unwrap(),
                "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32",
            ),
            (client_assertion_rs256(&cert, &key, "app-1", AUDIENCE, now).unwrap(), ""),
        ] {
            let (_, _, signed, signature) = parts(&token);
            std::fs::write(dir.path().join("signed"), signed).unwrap();
            std::fs::write(dir.path().join("signature"), signature).unwrap();
            let verify = format!("dgst -sha256 {options} -verify public.pem -signature signature signed");
            assert_eq!(openssl(&dir, &verify), b"Verified OK\n");
        }
    }

    #[test]
    fn the_older_form_carries_the_older_thumbprint() {
        let (dir, now) = (identity(), now());
        let (cert, key) = (dir.path().join("app.pem"), dir.path().join("app.key"));
        let (header, _, signed, signature) =
            parts(&client_assertion_rs256(&cert, &key, "app-1", AUDIENCE, now).unwrap());
        let certificate = CertificateDer::from_pem_file(&cert).unwrap();
        let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &certificate));
        assert_eq!(header, json!({"alg": "RS256", "typ": "JWT", "x5t": thumbprint}));
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let key = RsaKeyPair::from_pkcs8(key.secret_der()).unwrap();
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .unwrap();
    }

    #[test]
    fn two_assertions_are_never_the_same() {
        let (dir, now) = (identity(), now());
        let jti = |token: Secret| parts(&token).1["jti"].clone();
        assert_ne!(jti(assertion(&dir, now).unwrap()), jti(assertion(&dir, now).unwrap()));
    }

    #[test]
    fn keys_in_the_older_pem_form_are_taken() {
        let dir = identity();
        openssl(&dir, "rsa -in app.key -traditional -out old.key");
        std::fs::rename(dir.path().join("old.key"), dir.path().join("app.key")).unwrap();
        let pem = std::fs::read_to_string(dir.path().join("app.key")).unwrap();
        assert!(pem.contains("BEGIN RSA PRIVATE KEY"));
        assertion(&dir, now()).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (dir, other, now) = (identity(), identity(), now());
        let code = |result: Result<Secret, AssertionError>| result.unwrap_err().explain().code;
        let days = |days: i64| now + jiff::SignedDuration::from_hours(24 * days);
        assert_eq!(code(assertion(&dir, days(11))), "ASSERTION-EXPIRED");
        assert_eq!(code(assertion(&dir, days(-1))), "ASSERTION-NOT-YET-VALID");
        let with_key =
            |key: &Path| client_assertion(&dir.path().join("app.pem"), key, "app-1", AUDIENCE, now);
        assert_eq!(code(with_key(&other.path().join("app.key"))), "ASSERTION-NO-PAIR");
        assert_eq!(code(with_key(&dir.path().join("none"))), "ASSERTION-UNREADABLE");
        assert_eq!(code(with_key(&dir.path().join("app.pem"))), "ASSERTION-NO-KEY");
        openssl(&dir, "pkey -in app.key -aes256 -passout pass:x -out locked.key");
        assert_eq!(code(with_key(&dir.path().join("locked.key"))), "ASSERTION-NO-KEY");
        openssl(&dir, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.key");
        assert_eq!(code(with_key(&dir.path().join("ec.key"))), "ASSERTION-NOT-RSA");
        std::fs::rename(dir.path().join("app.key"), dir.path().join("app.pem")).unwrap();
        assert_eq!(code(assertion(&dir, now)), "ASSERTION-NO-CERTIFICATE");
    }

    #[test]
    fn both_forms_of_time_are_read() {
        let utc = |text: &str| time(&[&[0x17, 13], text.as_bytes()].concat()).map(|(at, _)| at.to_string());
        assert_eq!(utc("491231235959Z").unwrap(), "2049-12-31T23:59:59Z");
        assert_eq!(utc("500101000000Z").unwrap(), "1950-01-01T00:00:00Z");
        let general = [&[0x18, 15], "20501231235959Z".as_bytes()].concat();
        assert_eq!(time(&general).unwrap().0.to_string(), "2050-12-31T23:59:59Z");
        assert!(utc("not a time!!!").is_none());
    }

    #[test]
    fn a_broken_certificate_is_no_reason_to_panic() {
        let dir = identity();
        let certificate = CertificateDer::from_pem_file(dir.path().join("app.pem")).unwrap();
        assert!(Parts::of(&certificate).is_some());
        // The tail behind the public key (extensions, signature) is none of ours; everything before it is.
        for length in 0..certificate.len() {
            assert!(Parts::of(&certificate[..length]).is_none(), "{length}");
        }
        assert!(Parts::of(&[0x30, 0x80]).is_none());
        assert!(Parts::of(&[0x30, 0x89, 1, 2, 3, 4, 5, 6, 7, 8, 9]).is_none());
    }
}
