//! Lines and octets on one mail connection: bounded, and never waited for without end.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    journal::Service,
    mischief::{MailFault, Mischief, Step, hang},
};

/// How long one write may block.
const WRITE_LIMIT: Duration = Duration::from_mins(10);

/// A byte stream of any kind.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The other end of a connection.
pub(super) struct Peer {
    io: Box<dyn Duplex>,
    buffer: BytesMut,
    /// How long to wait for the next octets.
    pub(super) idle: Duration,
    /// Whether TLS is on.
    pub(super) tls: bool,
    trickle: bool,
}

impl Peer {
    pub(super) fn new(io: impl Duplex + 'static, tls: bool, idle: Duration) -> Self {
        Self { io: Box::new(io), buffer: BytesMut::new(), idle, tls, trickle: false }
    }

    /// Writes one octet at a time from now on.
    pub(super) fn trickle(&mut self) {
        self.trickle = true;
    }

    /// The next line without its CRLF or LF; `None` at the end of the stream.
    ///
    /// # Errors
    /// `InvalidData` for a line over `limit` octets, `TimedOut`, and those of the stream.
    pub(super) async fn line(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', self.buffer.get(searched..).unwrap_or_default()) {
                let mut line = self.buffer.split_to(searched + end + 1).to_vec();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            if searched > limit {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "line too long"));
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Exactly so many octets.
    ///
    /// # Errors
    /// `UnexpectedEof`, `TimedOut`, and those of the stream.
    pub(super) async fn exactly(&mut self, count: usize) -> io::Result<Bytes> {
        while self.buffer.len() < count {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.split_to(count).freeze())
    }

    /// Whatever is there; waits for at least one octet, `None` at the end.
    pub(super) async fn some(&mut self) -> io::Result<Option<BytesMut>> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Ok(None);
        }
        Ok(Some(self.buffer.split()))
    }

    /// Puts octets back in front, to be read next.
    pub(super) fn unread(&mut self, octets: &[u8]) {
        let rest = self.buffer.split();
        self.buffer.extend_from_slice(octets);
        self.buffer.extend_from_slice(&rest);
    }

    /// Reads more into the buffer; safe to cancel.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(16 * 1024);
        timeout(self.idle, self.io.read_buf(&mut self.buffer))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came")))
    }

    pub(super) async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        let Self { io, trickle, .. } = self;
        let writing = async {
            if *trickle {
                for octet in octets.chunks(1) {
                    io.write_all(octet).await?;
                    io.flush().await?;
                }
                return Ok(());
            }
            io.write_all(octets).await?;
            io.flush().await
        };
        timeout(WRITE_LIMIT, writing)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the other end does not read")))
    }

    /// Ends the stream in good order: what the other end still says is read, or it would be a reset that takes the
    /// last words away with it (RFC 1122 section 4.2.2.13).
    pub(super) async fn close(&mut self) -> io::Result<()> {
        let closing = async {
            self.io.shutdown().await?;
            while self.io.read_buf(&mut self.buffer).await? > 0 {
                self.buffer.clear();
            }
            Ok(())
        };
        timeout(Duration::from_secs(1), closing).await.unwrap_or(Ok(()))
    }

    /// Starts TLS; what was buffered is discarded.
    pub(super) async fn upgrade(self, acceptor: &TlsAcceptor) -> io::Result<Self> {
        let Self { io, idle, trickle, .. } = self;
        let io = timeout(Duration::from_mins(1), acceptor.accept(io))
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake")))?;
        Ok(Self { io: Box::new(io), buffer: BytesMut::new(), idle, tls: true, trickle })
    }

    /// Greets, or does not, as mischief will have it. `false`: the session is over.
    pub(super) async fn greet(
        &mut self,
        mischief: &Mischief,
        service: Service,
        greeting: &str,
        refusal: &str,
    ) -> io::Result<bool> {
        if mischief.mail_is(service, &MailFault::Trickle) {
            self.trickle();
        }
        mischief.at(service, Step::Greeting).await?;
        let fault = mischief.take_mail(service, |fault| {
            matches!(
                fault,
                MailFault::SlowGreeting(_)
                    | MailFault::HangGreeting
                    | MailFault::HalfGreeting
                    | MailFault::RefuseGreeting
            )
        });
        match fault {
            Some(MailFault::HangGreeting) => hang().await?,
            Some(MailFault::HalfGreeting) => {
                let half = greeting.as_bytes();
                self.write(half.get(..half.len() / 2).unwrap_or_default()).await?;
                hang().await?;
            }
            Some(MailFault::RefuseGreeting) => {
                self.write(refusal.as_bytes()).await?;
                self.close().await?;
                return Ok(false);
            }
            Some(MailFault::SlowGreeting(delay)) => tokio::time::sleep(delay).await,
            _ => {}
        }
        self.write(greeting.as_bytes()).await?;
        Ok(true)
    }
}
