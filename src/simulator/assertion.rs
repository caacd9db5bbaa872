//! Client assertions: signed by a registered certificate, or issued by a federated identity provider.

use aws_lc_rs::{digest, signature};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

use super::{aadsts::Failure, tenant::App, time};

/// The audience of federated assertions.
const EXCHANGE: &str = "api://AzureADTokenExchange";

/// Checks an assertion for an application at a tenant; how the client proved itself.
pub(super) fn check(app: &App, tenant: &str, assertion: &str) -> Result<&'static str, Failure> {
    let malformed = || Failure::new(50027);
    let mut parts = assertion.split('.');
    let (Some(header), Some(claims), Some(sealed), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed());
    };
    let signed = assertion.get(..header.len() + 1 + claims.len()).ok_or_else(malformed)?;
    let header = json(header).ok_or_else(malformed)?;
    let claims = json(claims).ok_or_else(malformed)?;
    let sealed = BASE64_URL_SAFE_NO_PAD.decode(sealed).map_err(|_| malformed())?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
    let now = time::wall().as_second();
    let number = |name: &str| claims.get(name).and_then(Value::as_i64);
    // Five minutes for clocks that differ, and no assertion for longer than a day.
    let in_time = number("exp").is_some_and(|exp| exp > now - 300 && exp < now + 86_400)
        && number("nbf").is_none_or(|nbf| nbf <= now + 300);
    if text("iss") != app.client_id {
        let known =
            app.federated.iter().any(|(issuer, subject)| issuer == text("iss") && subject == text("sub"));
        if !known || text("aud") != EXCHANGE {
            let detail =
                format!("Assertion Issuer: '{}'. Assertion Subject: '{}'.", text("iss"), text("sub"));
            return Err(Failure::about(70021, &detail));
        }
        return if in_time { Ok("federated") } else { Err(Failure::new(700_024)) };
    }
    let certificate = app
        .certificates
        .iter()
        .filter_map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok())
        .find(|certificate| names(&header, certificate))
        .ok_or_else(|| Failure::new(700_027))?;
    let key = public_key(&certificate).ok_or_else(|| Failure::new(700_027))?;
    let algorithm: &dyn signature::VerificationAlgorithm = match header.get("alg").and_then(Value::as_str) {
        Some("PS256") => &signature::RSA_PSS_2048_8192_SHA256,
        Some("RS256") => &signature::RSA_PKCS1_2048_8192_SHA256,
        _ => return Err(Failure::new(700_027)),
    };
    let verified = signature::UnparsedPublicKey::new(algorithm, key).verify(signed.as_bytes(), &sealed);
    verified.map_err(|_| Failure::new(700_027))?;
    if !in_time {
        return Err(Failure::new(700_024));
    }
    let audience = text("aud");
    let for_us =
        audience.starts_with("https://") && audience.ends_with(&format!("/{tenant}/oauth2/v2.0/token"));
    if !for_us || text("sub") != app.client_id || text("jti").is_empty() {
        return Err(Failure::new(50012));
    }
    Ok("certificate")
}

fn json(part: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Whether the header names this certificate, by either thumbprint.
fn names(header: &Value, certificate: &CertificateDer<'_>) -> bool {
    let is = |name: &str, algorithm: &'static digest::Algorithm| {
        let print = BASE64_URL_SAFE_NO_PAD.encode(digest::digest(algorithm, certificate));
        header.get(name).and_then(Value::as_str) == Some(&print)
    };
    is("x5t#S256", &digest::SHA256) || is("x5t", &digest::SHA1_FOR_LEGACY_USE_ONLY)
}

/// The SubjectPublicKeyInfo of a certificate: the seventh field of what is signed, the version counted (RFC 5280 section 4.1).
fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let (_, outer, _) = element(certificate)?;
    let (_, mut fields, _) = element(outer)?;
    let mut left = 6;
    if fields.first() != Some(&0xA0) {
        left = 5;
    }
    for _ in 0..left {
        fields = element(fields)?.2;
    }
    let (whole, _, _) = element(fields)?;
    Some(whole)
}

/// One DER element: all of it, its content, and what follows.
fn element(der: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let short = usize::from(*der.get(1)?);
    let (start, length) = if short < 0x80 {
        (2, short)
    } else {
        let octets = der.get(2..2 + (short & 0x7F).min(4))?;
        (2 + octets.len(), octets.iter().fold(0_usize, |length, octet| length << 8 | usize::from(*octet)))
    };
    let end = start.checked_add(length)?;
    Some((der.get(..end)?, der.get(start..end)?, der.get(end..)?))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer as _,
        rand::SystemRandom,
        rsa::{KeyPair, KeySize},
    };
    use serde_json::json;

    use super::*;

    const TENANT: &str = "contoso.com";

    fn certificate() -> (KeyPair, String, Vec<u8>) {
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().unwrap();
        let pair = rcgen::KeyPair::try_from(der.as_ref()).unwrap();
        let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&pair).unwrap();
        (key, certificate.pem(), certificate.der().to_vec())
    }

    fn sign(key: &KeyPair, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let mut sealed = vec![0; key.public_modulus_len()];
        key.sign(&signature::RSA_PSS_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut sealed).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    fn claims() -> Value {
        let now = time::wall().as_second();
        json!({"aud": format!("https://localhost:1/{TENANT}/oauth2/v2.0/token"), "iss": "app", "sub": "app", "jti": "1", "nbf": now, "exp": now + 600})
    }

    #[test]
    fn a_registered_certificate_proves_the_client() {
        let (key, pem, der) = certificate();
        let mut app = App::confidential("app", "");
        app.certificates.push(pem);
        let print = BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &der));
        let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": print});
        assert_eq!(check(&app, TENANT, &sign(&key, &header, &claims())), Ok("certificate"));

        let (other, _, _) = certificate();
        assert_eq!(check(&app, TENANT, &sign(&other, &header, &claims())), Err(Failure::new(700_027)));
        let mut late = claims();
        late["exp"] = 1000.into();
        assert_eq!(check(&app, TENANT, &sign(&key, &header, &late)), Err(Failure::new(700_024)));
        let mut elsewhere = claims();
        elsewhere["aud"] = "https://localhost/other/oauth2/v2.0/token".into();
        assert_eq!(check(&app, TENANT, &sign(&key, &header, &elsewhere)), Err(Failure::new(50012)));
        let unknown = json!({"alg": "PS256", "x5t#S256": "x"});
        assert_eq!(check(&app, TENANT, &sign(&key, &unknown, &claims())), Err(Failure::new(700_027)));
    }

    #[test]
    fn a_federated_assertion_needs_a_matching_record() {
        let (key, _, _) = certificate();
        let now = time::wall().as_second();
        let token = json!({"aud": EXCHANGE, "iss": "https://cluster", "sub": "system:mail", "exp": now + 60});
        let assertion = sign(&key, &json!({"alg": "PS256"}), &token);
        let mut app = App::confidential("app", "");
        assert_eq!(check(&app, TENANT, &assertion).unwrap_err().code, 70021);
        app.federated.push(("https://cluster".to_owned(), "system:mail".to_owned()));
        assert_eq!(check(&app, TENANT, &assertion), Ok("federated"));
    }

    #[test]
    fn nonsense_is_malformed() {
        let app = App::confidential("app", "");
        for assertion in ["", "a.b", "a.b.c", "e30.e30.!"] {
            assert_eq!(check(&app, TENANT, assertion).unwrap_err().code, 50027, "{assertion}");
        }
    }
}
