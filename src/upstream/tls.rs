//! TLS towards upstream: roots, versions, resumption, and the only place that mints the `Encrypted` proof.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore,
    SignatureScheme, SupportedProtocolVersion,
};

use super::error::UpstreamError;
use super::record::TlsStream;
use super::tickets::Tickets;
use crate::certificate::Stranger;
use crate::config::model::{Tls, TlsVersion};
use crate::secret::Encrypted;
use crate::stream::BoxIo;

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
/// An `extra-roots-file` that cannot be read or holds no certificate; a client certificate without its key.
pub fn outbound_config(tls: &Tls) -> Result<ClientConfig, TlsSetupError> {
    outbound_config_with(tls, |verifier| verifier)
}

/// The same, with something that looks on in front of the verifier.
pub(super) fn outbound_config_with(
    tls: &Tls,
    watched: impl FnOnce(Arc<dyn ServerCertVerifier>) -> Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, TlsSetupError> {
    let provider = Arc::new(provider(tls));
    let roots = Arc::new(roots(tls.extra_roots_file.as_deref())?);
    let usual = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| TlsSetupError::Rustls(Error::General(error.to_string())))?;
    // "dangerous" is what a verifier could do; this one passes on every verdict of the usual one
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(tls.minimum_version))?
        .dangerous()
        .with_custom_certificate_verifier(watched(Arc::new(Naming { usual })));
    let mut config = match (&tls.client_certificate_file, &tls.client_key_file) {
        (Some(certificate), Some(key)) => {
            config.with_client_auth_cert(certificates(certificate)?, private_key(key)?)?
        }
        _ => config.with_no_client_auth(),
    };
    config.resumption = Resumption::store(Arc::new(Tickets::default()));
    Ok(config)
}

/// The same, for servers of HTTP/1.1 (ALPN, RFC 7301).
pub fn for_http(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// The usual verifier, whose "unknown issuer" says which issuer.
#[derive(Debug)]
struct Naming {
    usual: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Naming {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.usual.verify_server_cert(leaf, others, name, ocsp, now).map_err(|error| {
            if error == Error::InvalidCertificate(CertificateError::UnknownIssuer) {
                return Stranger::of(leaf, others).into_rustls();
            }
            error
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
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
///
/// Of TLS 1.3's suites, AES-128-GCM with SHA-256 comes first, as in browsers: processors have instructions for
/// SHA-256, which the handshake's key schedule (RFC 8446 §7.1) mostly is, and hardly any for SHA-384.
pub fn provider(tls: &Tls) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    // all others keep rustls' order
    let (mut suites, others): (Vec<_>, Vec<_>) = (provider.cipher_suites.into_iter())
        .partition(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    suites.extend(others);
    provider.cipher_suites = suites;
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

/// Reads a private key from a PEM file.
///
/// # Errors
/// The file cannot be read, or holds no key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| TlsSetupError::File { path: path.to_owned(), why: error.to_string() })
}

/// The platform's roots and the extra ones; Mozilla's where the platform has none (a bare container image).
fn roots(extra: Option<&Path>) -> Result<RootCertStore, TlsSetupError> {
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
pub async fn handshake(
    config: &Arc<ClientConfig>,
    host: &str,
    port: u16,
    stream: BoxIo,
) -> Result<(BoxIo, Encrypted), UpstreamError> {
    let target = || format!("{host}:{port}");
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| UpstreamError::Tls { target: target(), why: error.to_string() })?;
    match TlsStream::connect(stream, config, name).await {
        Ok(stream) => Ok((Box::new(stream), Encrypted::after_handshake())),
        Err(error) => Err(UpstreamError::of_tls(target(), &error)),
    }
}

#[cfg(test)]
mod tests {
    use rustls::{HandshakeKind, ServerConfig};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinSet;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::certificate::{Flaw, Kind};

    /// A server's settings, and a file with the root to trust.
    fn server() -> (Arc<ServerConfig>, tempfile::TempDir) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("root.pem"), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        (Arc::new(config), folder)
    }

    fn trusting(folder: &tempfile::TempDir) -> Tls {
        Tls { extra_roots_file: Some(folder.path().join("root.pem")), ..Tls::default() }
    }

    /// So many handshakes at once; how many were resumed.
    async fn storm(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, size: usize) -> usize {
        let barrier = Arc::new(tokio::sync::Barrier::new(size));
        let mut handshakes = JoinSet::new();
        for _ in 0..size {
            let (client, server) = (Arc::clone(client), Arc::clone(server));
            let barrier = Arc::clone(&barrier);
            handshakes.spawn(async move {
                let (near, far) = tokio::io::duplex(64 * 1024);
                let answering = tokio::spawn(async move {
                    let mut io = TlsAcceptor::from(server).accept(far).await.unwrap();
                    io.write_all(b"x").await.unwrap();
                    io.flush().await.unwrap();
                    io
                });
                let name = ServerName::try_from("localhost").unwrap();
                let mut io = TlsConnector::from(client).connect(name, near).await.unwrap();
                // nobody gives a ticket back before all have begun
                barrier.wait().await;
                assert_eq!(io.read_u8().await.unwrap(), b'x');
                drop(answering.await.unwrap());
                io.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
            });
        }
        handshakes.join_all().await.into_iter().filter(|resumed| *resumed).count()
    }

    #[tokio::test]
    async fn a_storm_of_connections_resumes_as_one_connection_does() {
        let (server, folder) = server();
        let client = Arc::new(outbound_config(&trusting(&folder)).unwrap());
        assert_eq!(storm(&client, &server, 40).await, 0);
        assert_eq!(storm(&client, &server, 40).await, 40);
    }

    #[tokio::test]
    async fn an_issuer_nobody_knows_is_named_by_the_verifier() {
        let (server, folder) = server();
        let client = Arc::new(outbound_config(&Tls::default()).unwrap());
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move { drop(TlsAcceptor::from(server).accept(far).await) });
        let error = handshake(&client, "localhost", 993, Box::new(near)).await.map(drop).unwrap_err();
        let UpstreamError::Certificate { flaw, target } = error else { panic!("{error}") };
        assert_eq!((flaw.kind(), target.as_str()), (Kind::Issuer, "localhost:993"));
        let Flaw::UnknownIssuer(top) = flaw else { panic!() };
        let shown = certificates(&folder.path().join("root.pem")).unwrap();
        assert_eq!(top.fingerprint, crate::certificate::fingerprint(&shown[0]));
    }

    #[test]
    fn of_tls_1_3_the_suite_with_the_cheapest_handshake_is_offered_first_and_all_are_there() {
        let ours: Vec<_> =
            provider(&Tls::default()).cipher_suites.iter().map(rustls::SupportedCipherSuite::suite).collect();
        assert_eq!(ours[0], CipherSuite::TLS13_AES_128_GCM_SHA256);
        let usual = aws_lc_rs::default_provider().cipher_suites;
        assert!(usual.iter().all(|suite| ours.contains(&suite.suite())) && usual.len() == ours.len());
    }

    #[test]
    fn a_client_certificate_needs_a_key_that_fits() {
        let (_, folder) = server();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let one = rcgen::generate_simple_self_signed(vec!["one".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
        let mut tls = trusting(&folder);
        tls.client_certificate_file = write("one.pem", one.cert.pem());
        tls.client_key_file = write("one.key", one.signing_key.serialize_pem());
        assert!(outbound_config(&tls).unwrap().client_auth_cert_resolver.has_certs());
        tls.client_key_file = write("other.key", other.signing_key.serialize_pem());
        assert!(matches!(outbound_config(&tls), Err(TlsSetupError::Rustls(_))));
    }
}
