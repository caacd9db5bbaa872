//! The simulator's certificate authority, and the certificates that its services show.

use std::{io, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;

use super::mischief::CertificateFault;

/// The names that the certificates hold: this machine, and the real services, for those who resolve these to here.
const NAMES: [&str; 12] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "outlook.office365.com",
    "outlook.office.com",
    "smtp.office365.com",
    "smtp-mail.outlook.com",
    "outlook.office365.us",
    "autodiscover.contoso.com",
    "simulator.test",
];

/// One authority, and an acceptor for each kind of certificate.
pub(super) struct Certificates {
    ca_pem: String,
    good: TlsAcceptor,
    wrong_name: TlsAcceptor,
    expired: TlsAcceptor,
    unknown_issuer: TlsAcceptor,
}

impl Certificates {
    pub(super) fn issue() -> io::Result<Self> {
        let known = authority("Simulated root").map_err(io::Error::other)?;
        let unknown = authority("Nobody's root").map_err(io::Error::other)?;
        Ok(Self {
            good: leaf(&known, &NAMES, false)?,
            wrong_name: leaf(&known, &["wrong.example"], false)?,
            expired: leaf(&known, &NAMES, true)?,
            unknown_issuer: leaf(&unknown, &NAMES, false)?,
            ca_pem: known.pem(),
        })
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(super) fn acceptor(&self, fault: Option<CertificateFault>) -> TlsAcceptor {
        match fault {
            None => self.good.clone(),
            Some(CertificateFault::WrongName) => self.wrong_name.clone(),
            Some(CertificateFault::Expired) => self.expired.clone(),
            Some(CertificateFault::UnknownIssuer) => self.unknown_issuer.clone(),
        }
    }
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Result<Issuer, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn leaf(issuer: &Issuer, names: &[&str], expired: bool) -> io::Result<TlsAcceptor> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params.distinguished_name.push(DnType::CommonName, "Simulated service");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    if expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    }
    let certificate = params.signed_by(&key, issuer).map_err(io::Error::other)?;
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone(), issuer.der().clone()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        })
        .map(|config| TlsAcceptor::from(Arc::new(config)))
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_certificate_can_be_issued() {
        let certificates = Certificates::issue().unwrap();
        assert!(certificates.ca_pem().starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
