//! Notes which certificates the other side shows, also those that are then refused. It judges nothing itself: the
//! verdict is that of the verifier which every other connection has.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::tls::{self, TlsSetupError};
use crate::config::model::Tls;

/// The certificates that were shown last, leaf first.
#[derive(Clone, Default)]
pub struct Witness {
    seen: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

impl Witness {
    /// What was shown since this was last asked; empty where no handshake came that far.
    pub fn take(&self) -> Vec<CertificateDer<'static>> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) {
        let chain = std::iter::once(leaf).chain(others).map(|one| one.clone().into_owned()).collect();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = chain;
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness").finish_non_exhaustive()
    }
}

/// The settings of [`tls::outbound_config`] with a witness in front of the verifier. No session is resumed: a
/// resumed one shows no certificates.
///
/// # Errors
/// As there.
pub fn config(settings: &Tls, witness: &Witness) -> Result<ClientConfig, TlsSetupError> {
    let witness = witness.clone();
    let mut config = tls::outbound_config_with(settings, |judge| Arc::new(Watched { judge, witness }))?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[derive(Debug)]
struct Watched {
    judge: Arc<dyn ServerCertVerifier>,
    witness: Witness,
}

impl ServerCertVerifier for Watched {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.witness.note(end_entity, intermediates);
        self.judge.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}
