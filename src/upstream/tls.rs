//! TLS towards upstream: roots, versions, resumption, and the only place that mints the `Encrypted` proof.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, Error, NamedGroup, RootCertStore, SupportedProtocolVersion};
use tokio_rustls::TlsConnector;

use super::error::UpstreamError;
use crate::config::model::{Tls, TlsVersion};
use crate::secret::Encrypted;
use crate::stream::{BoxIo, Io};

/// How many server names sessions are remembered for.
const RESUMED_NAMES: usize = 256;

/// Why the TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// A PEM file cannot be read.
    #[error("cannot read `{path}`: {why}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's or the parser's words.
        why: String,
    },
    /// rustls does not take the settings.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] Error),
}

/// The settings that every TLS connection of ours towards the outside shares: upstream, identity provider,
/// `https://` proxies.
///
/// # Errors
/// An `extra-roots-file` that cannot be read or holds no certificate.
pub fn outbound_config(tls: &Tls) -> Result<ClientConfig, TlsSetupError> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider(tls)))
        .with_protocol_versions(versions(tls.minimum_version))?
        .with_root_certificates(roots(tls.extra_roots_file.as_deref())?)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(RESUMED_NAMES);
    Ok(config)
}

/// The protocol versions at and above a minimum.
pub fn versions(minimum: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    static NEWEST: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match minimum {
        TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &NEWEST,
    }
}

/// The one cryptography provider, with or without the post-quantum key exchange: its larger hello makes
/// some old middleboxes stumble.
pub fn provider(tls: &Tls) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if !tls.post_quantum {
        provider.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    }
    provider
}

/// Reads certificates, leaf first, from a PEM file.
///
/// # Errors
/// The file cannot be read, is no PEM, or holds no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let broken = |why: String| TlsSetupError::File { path: path.to_owned(), why };
    let pem = fs::read(path).map_err(|error| broken(error.to_string()))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| broken(error.to_string()))?;
    if found.is_empty() {
        return Err(broken("it holds no certificate in PEM form (`-----BEGIN CERTIFICATE-----`)".to_owned()));
    }
    Ok(found)
}

/// The platform's roots and the extra ones; Mozilla's where the platform has none (a bare container image).
pub(super) fn roots(extra: Option<&Path>) -> Result<RootCertStore, TlsSetupError> {
    let mut store = RootCertStore::empty();
    let platform = rustls_native_certs::load_native_certs();
    for error in &platform.errors {
        tracing::debug!(%error, "a certificate of the platform was passed over");
    }
    store.add_parsable_certificates(platform.certs);
    if store.is_empty() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = extra {
        for certificate in certificates(path)? {
            store
                .add(certificate)
                .map_err(|error| TlsSetupError::File { path: path.to_owned(), why: error.to_string() })?;
        }
    }
    Ok(store)
}

/// Puts TLS on a connected stream, checks the certificate for `host`, and proves it.
///
/// # Errors
/// The name is no DNS name or address; the handshake or the certificate fails.
pub async fn handshake<S: Io + 'static>(
    config: &Arc<ClientConfig>,
    host: &str,
    port: u16,
    stream: S,
) -> Result<(BoxIo, Encrypted), UpstreamError> {
    let target = || format!("{host}:{port}");
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| UpstreamError::Tls { target: target(), why: error.to_string() })?;
    let connector = TlsConnector::from(Arc::clone(config));
    match connector.connect(name, stream).await {
        Ok(stream) => Ok((Box::new(stream), Encrypted::after_handshake())),
        Err(error) => Err(told_apart(target(), &error)),
    }
}

/// What a failed handshake means.
fn told_apart(target: String, error: &io::Error) -> UpstreamError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            UpstreamError::UnknownIssuer { target }
        }
        Some(Error::InvalidCertificate(why)) => UpstreamError::Certificate { target, why: why.to_string() },
        _ => UpstreamError::Tls { target, why: error.to_string() },
    }
}
