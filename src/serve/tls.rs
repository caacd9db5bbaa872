//! TLS towards the mail client: our certificate, the versions we take.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::ServerSessionMemoryCache;
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
