//! Lines, counted octets and patterns off a byte stream: what the stub and the load generator both read with.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use memchr::{memchr, memmem};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Io for S {}

/// The longest line that is taken.
const LONGEST_LINE: usize = 64 * 1024;

/// Octets read at once.
const CHUNK: usize = 64 * 1024;

/// A byte stream with what was read of it and not yet used.
pub struct Wire {
    stream: Box<dyn Io>,
    unread: Vec<u8>,
    start: usize,
}

impl Wire {
    pub fn new(stream: Box<dyn Io>) -> Self {
        Self { stream, unread: Vec::new(), start: 0 }
    }

    /// The bare stream; what was read ahead is dropped.
    pub fn into_stream(self) -> Box<dyn Io> {
        self.stream
    }

    fn rest(&self) -> &[u8] {
        &self.unread[self.start..]
    }

    /// Reads more; 0 at the end of the stream.
    async fn more(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.unread.drain(..self.start);
            self.start = 0;
        }
        // big reads only where much is coming, so that an idle session holds little
        let room = if self.unread.capacity() >= CHUNK { CHUNK } else { 2048 };
        self.unread.reserve(room);
        self.stream.read_buf(&mut self.unread).await
    }

    /// The next line without its end; `None` where the other side has closed.
    pub async fn line(&mut self) -> Result<Option<String>> {
        let mut searched = 0;
        loop {
            if let Some(at) = memchr(b'\n', &self.rest()[searched..]) {
                let end = searched + at;
                let line = String::from_utf8_lossy(&self.rest()[..end]).trim_end_matches('\r').to_owned();
                self.start += end + 1;
                return Ok(Some(line));
            }
            searched = self.rest().len();
            ensure!(searched < LONGEST_LINE, "a line without an end");
            if self.more().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Lines up to one that begins so; that line.
    pub async fn until(&mut self, start: &str) -> Result<String> {
        let mut last = String::new();
        while let Some(line) = self.line().await? {
            if line.starts_with(start) {
                return Ok(line);
            }
            last = line;
        }
        bail!("closed before `{start}`; the last line was `{last}`")
    }

    /// Says something and gives the first line after it that begins so; an IMAP or POP3 refusal is an error.
    pub async fn ask(&mut self, said: &str, start: &str) -> Result<String> {
        self.say(said.as_bytes()).await?;
        let tag = start.split(' ').next().unwrap_or_default();
        while let Some(line) = self.line().await? {
            if line.starts_with(start) {
                return Ok(line);
            }
            let refused = [" NO ", " BAD "].iter().any(|no| line.starts_with(&format!("{tag}{no}")))
                || line.starts_with("-ERR")
                || (start.as_bytes()[0].is_ascii_digit() && line.starts_with(['4', '5']));
            ensure!(!refused, "`{line}` in place of `{start}`");
        }
        bail!("closed in place of `{start}`")
    }

    pub async fn say(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Reads so many octets and forgets them.
    pub async fn swallow(&mut self, octets: u64) -> Result<()> {
        self.unread.reserve(CHUNK);
        let mut missing = octets;
        loop {
            let here = missing.min(self.rest().len() as u64);
            self.start += usize::try_from(here)?;
            missing -= here;
            if missing == 0 {
                return Ok(());
            }
            ensure!(self.more().await? > 0, "closed with {missing} octets missing");
        }
    }

    /// Reads up to the pattern and through it, and forgets all; how many octets that were.
    pub async fn swallow_through(&mut self, pattern: &[u8]) -> Result<u64> {
        self.unread.reserve(CHUNK);
        let finder = memmem::Finder::new(pattern);
        let mut octets = 0;
        loop {
            if let Some(at) = finder.find(self.rest()) {
                self.start += at + pattern.len();
                return Ok(octets + (at + pattern.len()) as u64);
            }
            // the pattern may have begun
            let gone = self.rest().len().saturating_sub(pattern.len() - 1);
            self.start += gone;
            octets += gone as u64;
            ensure!(self.more().await? > 0, "closed in the midst of it");
        }
    }

    pub async fn close(mut self) {
        drop(self.stream.shutdown().await);
    }
}

/// A TLS client that trusts one certificate authority and keeps tickets.
pub fn tls_client(authority: &Path) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    for found in CertificateDer::pem_file_iter(authority)? {
        roots.add(found?)?;
    }
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.resumption = rustls::client::Resumption::in_memory_sessions(256);
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A connection to a port of this machine, with TLS where a client for it is given.
pub async fn connect(port: u16, tls: Option<&TlsConnector>) -> Result<Box<dyn Io>> {
    let tcp =
        TcpStream::connect(("127.0.0.1", port)).await.with_context(|| format!("connecting to {port}"))?;
    tcp.set_nodelay(true)?;
    Ok(match tls {
        None => Box::new(tcp),
        Some(tls) => Box::new(tls.connect(ServerName::try_from("localhost")?, tcp).await?),
    })
}

/// Listens on loopback with a deep backlog; port 0 takes a free one.
pub fn listen(port: u16) -> Result<tokio::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(socket.into())?)
}
