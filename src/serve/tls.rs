//! TLS towards the mail client: our certificate, the versions we take.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::server::ServerSessionMemoryCache;
use rustls::{AlertDescription, PeerIncompatible, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::model::Tls;
use crate::upstream::tls::{TlsSetupError, certificates, private_key, provider, versions};

/// Sessions that may be resumed.
const RESUMED_SESSIONS: usize = 4096;

/// The acceptor for all listeners with TLS; `None` where no certificate is configured.
///
/// # Errors
/// Files that cannot be read, a key that does not belong to the certificate.
pub fn acceptor(tls: &Tls) -> Result<Option<TlsAcceptor>, TlsSetupError> {
    let (Some(certificate_file), Some(key_file)) = (&tls.certificate_file, &tls.key_file) else {
        return Ok(None);
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider(tls)))
        .with_protocol_versions(versions(tls.minimum_version))?
        .with_no_client_auth()
        .with_single_cert(certificates(certificate_file)?, private_key(key_file)?)?;
    config.session_storage = ServerSessionMemoryCache::new(RESUMED_SESSIONS);
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Says in the log what a mail client lacks, where a handshake failed for a reason that can be named.
pub fn report(error: &io::Error, listener: &str, peer: SocketAddr) {
    if let Some(Lack { code, what, remedy }) = lack(error) {
        tracing::warn!(listener, %peer, code, remedy, "{what}");
    }
}

/// What stands between a mail client and a TLS session with us.
struct Lack {
    code: &'static str,
    what: &'static str,
    remedy: &'static str,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what cannot be named is left to rustls' own words")]
fn lack(error: &io::Error) -> Option<Lack> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let (code, what, remedy) = match error {
        rustls::Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // the extension came with TLS 1.2: a hello without it is an older one, whatever else it says
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
        ) => (
            "CLIENT-TLS-TOO-OLD",
            "the mail client speaks no TLS version that is taken here (`tls.minimum-version`, 1.2 at the least): \
             TLS 1.0 and 1.1 are broken",
            "update the client, or Java, .NET or the device below it, or switch TLS 1.2 on there; for a device that \
             cannot, add a listener with `tls: off` and `allow-insecure: true`, and its address in `allow-from`",
        ),
        rustls::Error::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon
            | PeerIncompatible::NoEcPointFormatsInCommon
            | PeerIncompatible::UncompressedEcPointsRequired
            | PeerIncompatible::NamedGroupsExtensionRequired
            | PeerIncompatible::EcPointsExtensionRequired,
        ) => (
            "CLIENT-TLS-NO-CIPHER",
            "the mail client speaks TLS 1.2, and has none of its modern ciphers (ECDHE with AES-GCM or ChaCha20)",
            "switch them on in the client; check that the certificate's kind of key (RSA or ECDSA) is one it knows",
        ),
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired,
        ) => (
            "CLIENT-TLS-DISTRUST",
            "the mail client does not trust the certificate of this listener",
            "import its issuer into the client's trust store, and connect by a name that stands in it",
        ),
        rustls::Error::InvalidMessage(_) => (
            "CLIENT-TLS-CLEAR",
            "the mail client sent something else than TLS to a port that speaks TLS from the first octet",
            "set its encryption to SSL/TLS, or connect it to a listener with `tls: starttls`",
        ),
        _ => return None,
    };
    Some(Lack { code, what, remedy })
}
