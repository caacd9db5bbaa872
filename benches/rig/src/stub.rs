//! Upstream, as fast as it can be: IMAP, POP3, SMTP and EWS over TLS 1.3, and a token endpoint, in a process of its own.
//!
//! It takes any XOAUTH2 response that carries a token, and any plain login, for those under test that cannot swap one
//! for the other; it counts both, so that a run can say who did what. Messages are as many MiB as their number says.

mod http;
mod imap;
mod pop3;
mod smtp;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::wire::{self, Io};

/// Where the stub listens: TLS from the first octet, but for `submission`, which has STARTTLS.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct Ports {
    pub imap: u16,
    pub pop3: u16,
    pub smtp: u16,
    pub submission: u16,
    /// EWS and the token endpoint.
    pub https: u16,
}

/// What has come in so far.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default)]
pub struct Counts {
    pub xoauth2: u64,
    pub plain: u64,
    pub tokens: u64,
    pub full_handshakes: u64,
    pub resumed_handshakes: u64,
    pub ews: u64,
}

#[derive(Default)]
struct Counted {
    xoauth2: AtomicU64,
    plain: AtomicU64,
    tokens: AtomicU64,
    full: AtomicU64,
    resumed: AtomicU64,
    ews: AtomicU64,
}

/// What every connection shares.
struct House {
    counted: Counted,
    /// One MiB of lines.
    mebibyte: Bytes,
    acceptor: TlsAcceptor,
}

impl House {
    /// Checks an XOAUTH2 response and counts it.
    fn xoauth2(&self, response: &str) -> bool {
        let plain = STANDARD.decode(response.trim()).unwrap_or_default();
        let good = plain.starts_with(b"user=") && memchr::memmem::find(&plain, b"\x01auth=Bearer ").is_some();
        if good {
            self.counted.xoauth2.fetch_add(1, Ordering::Relaxed);
        }
        good
    }

    fn plain(&self) {
        self.counted.plain.fetch_add(1, Ordering::Relaxed);
    }

    async fn handshake(&self, tcp: impl Io + 'static) -> Result<Box<dyn Io>> {
        let stream = self.acceptor.accept(tcp).await?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let counter = if resumed { &self.counted.resumed } else { &self.counted.full };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(stream))
    }

    fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            xoauth2: of(&self.counted.xoauth2),
            plain: of(&self.counted.plain),
            tokens: of(&self.counted.tokens),
            full_handshakes: of(&self.counted.full),
            resumed_handshakes: of(&self.counted.resumed),
            ews: of(&self.counted.ews),
        }
    }
}

/// Base64-like lines of 78 octets, none of which begins with a dot; always the same.
pub fn mebibyte() -> Bytes {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut random = fastrand::Rng::with_seed(8);
    let mut text = Vec::with_capacity(1 << 20);
    while text.len() + 78 <= 1 << 20 {
        text.extend((0..76).map(|_| LETTERS[random.usize(..LETTERS.len())]));
        text.extend(b"\r\n");
    }
    text.resize((1 << 20) - 2, b'=');
    text.extend(b"\r\n");
    text.into()
}

/// A certificate authority and a certificate for `localhost` and 127.0.0.1, ECDSA P-256: `ca.pem`, `stub.pem`, `stub.key`.
pub fn write_certificates(folder: &Path) -> Result<()> {
    let named = |name: &str| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(params)
    };
    let mut authority = named("benchmark authority")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = named("localhost")?;
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &authority)?;
    std::fs::write(folder.join("ca.pem"), authority.pem())?;
    std::fs::write(folder.join("stub.pem"), leaf.pem())?;
    std::fs::write(folder.join("stub.key"), key.serialize_pem())?;
    Ok(())
}

fn acceptor(folder: &Path) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(folder.join("stub.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(folder.join("stub.key"))?;
    // the same key exchange for all, whatever they would offer
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    };
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until standard input ends; each line `counts` there is answered with them. Certificates are read from `folder`.
pub async fn run(folder: &Path) -> Result<()> {
    let house =
        Arc::new(House { counted: Counted::default(), mebibyte: mebibyte(), acceptor: acceptor(folder)? });
    let ports =
        Ports {
            imap: serve(&house, |house, tcp| async move {
                imap::serve(&house, house.handshake(tcp).await?).await
            })?,
            pop3: serve(&house, |house, tcp| async move {
                pop3::serve(&house, house.handshake(tcp).await?).await
            })?,
            smtp: serve(&house, |house, tcp| async move {
                smtp::serve(&house, house.handshake(tcp).await?, true).await
            })?,
            submission: serve(&house, |house, tcp| async move {
                smtp::serve(&house, Box::new(tcp), false).await
            })?,
            https: serve(&house, |house, tcp| async move {
                let stream = house.handshake(tcp).await?;
                http::serve(house, stream).await
            })?,
        };
    println!("{}", serde_json::to_string(&ports)?);
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        if order == "counts" {
            println!("{}", serde_json::to_string(&house.counts())?);
        }
    }
    Ok(())
}

/// Accepts for ever; the port.
fn serve<F>(house: &Arc<House>, each: impl Fn(Arc<House>, TcpStream) -> F + Send + 'static) -> Result<u16>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let listener: TcpListener = wire::listen(0)?;
    let port = listener.local_addr()?.port();
    let house = Arc::clone(house);
    tokio::spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { continue };
            drop(tcp.set_nodelay(true));
            // a client that leaves is no error
            tokio::spawn(each(Arc::clone(&house), tcp));
        }
    });
    Ok(port)
}
