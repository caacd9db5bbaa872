//! TLS on a stream of ours, with no buffer of its own while nothing moves (record layer: RFC 8446 §5).
//!
//! rustls' usual connection keeps 4 KiB for the next read of every idle session and asks the socket for 4 KiB at a
//! time. This one drives rustls' unbuffered connection: records are read into one scratch buffer per thread, 64 KB
//! at once, and opened there; only a record that is not whole yet, text that the reader has no room for, and records
//! that the socket does not take at once are kept.
//!
//! Never: looks at certificates (rustls does, by the verifier in its settings), or takes the end of the socket for
//! the end of the text (`close_notify`, RFC 8446 §6.1).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroizing;

use crate::stream::BoxIo;

/// What is read at once, in octets: four records of TLS 1.3 at their largest (RFC 8446 §5.2), so that a long download
/// leaves none in pieces. No handshake message may be longer.
const READ: usize = 4 * (5 + 16 * 1024 + 1 + 16);

/// What is sealed at once, in octets of text.
const SEAL: usize = 64 * 1024;

/// Room for heads, tags and nonces of the records of [`SEAL`] octets, and for an alert or a key update before them.
const OVERHEAD: usize = 1024;

/// Room for either.
const ROOM: usize = if READ > SEAL + OVERHEAD { READ } else { SEAL + OVERHEAD };

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends the thread's [`ROOM`]. Taken out, not borrowed: the stream below may be one that wants it, too (an
/// `https://` proxy), and gets one of its own.
fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    scratch.resize(ROOM, 0);
    let done = work(&mut scratch);
    SCRATCH.set(scratch);
    done
}

/// A stream in TLS. Dropped without a shutdown, it sends no `close_notify`.
pub struct TlsStream {
    io: BoxIo,
    /// Gone once it has failed: rustls is not asked again after an error.
    records: Option<Box<Records>>,
    /// What came and was not whole yet.
    incoming: Vec<u8>,
    /// Text that the reader had no room for, and how much of it the reader has by now.
    text: Zeroizing<Vec<u8>>,
    read: usize,
    /// Records that the socket has not taken yet, and how much of them it has by now.
    outgoing: Vec<u8>,
    written: usize,
    said_goodbye: bool,
}

/// rustls' side of it: octets in, octets out, no socket.
struct Records {
    tls: UnbufferedClientConnection,
    /// Upstream has said that it will say no more.
    is_over: bool,
}

/// What one look at the records came to.
#[derive(Clone, Copy, Debug)]
struct Looked {
    /// Octets that are done with.
    used: usize,
    /// Octets that were sealed into the room for them.
    sealed: usize,
    stage: Stage,
}

/// How far a connection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The handshake waits for the other side.
    Handshaking,
    /// Text may be sent.
    Open,
    /// Both sides have said that they will say no more.
    Closed,
}

impl TlsStream {
    /// Shakes hands with `name`.
    ///
    /// # Errors
    /// The socket's own; a handshake that fails, as an [`rustls::Error`] inside.
    pub async fn connect(
        io: BoxIo,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let tls = UnbufferedClientConnection::new(Arc::clone(config), name).map_err(invalid)?;
        let mut stream = Self {
            io,
            records: Some(Box::new(Records { tls, is_over: false })),
            incoming: Vec::new(),
            text: Zeroizing::default(),
            read: 0,
            outgoing: Vec::new(),
            written: 0,
            said_goodbye: false,
        };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let looked = self.look(Wish::Open);
            // an alert may have to go out before the error is told
            ready!(self.poll_drain(cx))?;
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            if looked?.stage == Stage::Open {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_fill(cx, &mut ReadBuf::new(&mut [])))? == 0 {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")));
            }
        }
    }

    /// Looks at what has come and was not whole.
    fn look(&mut self, wish: Wish<'_>) -> io::Result<Looked> {
        let mut incoming = std::mem::take(&mut self.incoming);
        let looked = self.look_at(&mut incoming, &mut ReadBuf::new(&mut []), wish)?;
        incoming.drain(..looked.used);
        self.incoming = incoming;
        Ok(looked)
    }

    /// Looks at `incoming`; its text goes to `buf` as far as there is room, the rest is kept.
    fn look_at(&mut self, incoming: &mut [u8], buf: &mut ReadBuf<'_>, wish: Wish<'_>) -> io::Result<Looked> {
        let mut records = self.records.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let kept = &mut self.text;
        let deliver = |text: &[u8]| {
            let (fits, rest) = text.split_at(text.len().min(buf.remaining()));
            buf.put_slice(fits);
            kept.extend_from_slice(rest);
        };
        let looked = records.look(incoming, deliver, &mut self.outgoing, wish).map_err(invalid)?;
        self.records = Some(records);
        Ok(looked)
    }

    /// Whether upstream has said that it will say no more.
    fn is_over(&self) -> bool {
        self.records.as_ref().is_some_and(|records| records.is_over)
    }

    /// Reads once from the socket and opens what has come whole: into `buf`, what does not fit into `self.text`.
    /// Says how much came.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        with_scratch(|scratch| self.poll_fill_by(cx, buf, scratch.get_mut(..READ).unwrap_or_default()))
    }

    fn poll_fill_by(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let before = self.incoming.len();
        let Some((old, room)) = scratch.split_at_mut_checked(before).filter(|(_, room)| !room.is_empty())
        else {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS message has no end")));
        };
        let mut fresh = ReadBuf::new(room);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut fresh))?;
        let came = fresh.filled().len();
        if came == 0 {
            return Poll::Ready(Ok(0));
        }
        old.copy_from_slice(&self.incoming);
        let received = scratch.get_mut(..before + came).unwrap_or_default();
        let looked = match self.look_at(received, buf, Wish::Open) {
            Ok(looked) => looked,
            Err(error) => {
                self.incoming = Vec::new();
                // the alert is sent if the socket takes it now; the error is told either way
                let _is_told: Poll<io::Result<()>> = self.poll_drain(cx);
                return Poll::Ready(Err(error));
            }
        };
        let rest = received.get(looked.used..).unwrap_or_default();
        if rest.is_empty() {
            self.incoming = Vec::new();
        } else {
            self.incoming.clear();
            self.incoming.extend_from_slice(rest);
        }
        Poll::Ready(Ok(came))
    }

    /// Gives the socket what it has not taken yet.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.outgoing.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        if self.written > 0 {
            (self.outgoing, self.written) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_by(
        &mut self,
        cx: &mut Context<'_>,
        text: &[u8],
        scratch: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let text = text.get(..SEAL).unwrap_or(text);
        let looked = self.look(Wish::Seal(text, scratch))?;
        if looked.sealed == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut rest = scratch.get(..looked.sealed).unwrap_or_default();
        // what rustls had to say itself comes first
        let mut goes = self.poll_drain(cx)?.is_ready();
        while goes && !rest.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => rest = rest.get(count..).unwrap_or_default(),
                Poll::Pending => goes = false,
            }
        }
        self.outgoing.extend_from_slice(rest);
        Poll::Ready(Ok(text.len()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        loop {
            if let Some(kept) = this.text.get(this.read..).filter(|kept| !kept.is_empty()) {
                let fits = kept.get(..buf.remaining()).unwrap_or(kept);
                buf.put_slice(fits);
                this.read += fits.len();
                if this.read >= this.text.len() {
                    (this.text, this.read) = (Zeroizing::default(), 0);
                }
            }
            if buf.filled().len() > before || this.is_over() {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.poll_fill(cx, buf))? == 0 && !this.is_over() {
                let words = "the connection was cut: it ended without TLS `close_notify`";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, words)));
            }
            if !this.outgoing.is_empty() {
                // the answer to a key update: best sent now, at the next write at the latest; that a socket takes
                // nothing more is told there, and does not lose what has just been read
                let _is_sent: Poll<io::Result<()>> = this.poll_drain(cx);
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, text: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if text.is_empty() {
            return Poll::Ready(Ok(0));
        }
        with_scratch(|scratch| this.poll_write_by(cx, text, scratch))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.said_goodbye && this.records.is_some() {
            this.said_goodbye = true;
            this.look(Wish::Close)?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// What is wanted of a connection, once it is open.
enum Wish<'a> {
    /// To hear what has come.
    Open,
    /// To say this, sealed into the room behind it.
    Seal(&'a [u8], &'a mut [u8]),
    /// To say that nothing more will be said.
    Close,
}

impl Records {
    /// Opens the records in `incoming`, hands their text out, appends to `out` what rustls wants said, and
    /// fulfils the wish. What of `incoming` is done with has to be taken off its front before the next call.
    ///
    /// # Errors
    /// The other side breaks the rules, or our keys have served for all that they may. The alert stands in `out`.
    fn look(
        &mut self,
        incoming: &mut [u8],
        mut deliver: impl FnMut(&[u8]),
        out: &mut Vec<u8>,
        wish: Wish<'_>,
    ) -> Result<Looked, rustls::Error> {
        let (mut used, mut sealed) = (0, 0);
        loop {
            let left = incoming.get_mut(used..).unwrap_or_default();
            let status = self.tls.process_tls_records(left);
            let mut discard = status.discard;
            let connection = match status.state {
                Ok(connection) => connection,
                Err(error) => {
                    self.last_words(incoming.get_mut(used..).unwrap_or_default(), out)?;
                    return Err(error);
                }
            };
            let stage = match connection {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        deliver(record.payload);
                        discard += record.discard;
                    }
                    None
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(|room| data.encode(room), out)?;
                    None
                }
                ConnectionState::TransmitTlsData(data) => {
                    // it stands in `out`, which goes before anything else
                    data.done();
                    None
                }
                ConnectionState::PeerClosed => {
                    self.is_over = true;
                    None
                }
                ConnectionState::WriteTraffic(mut traffic) => {
                    match wish {
                        Wish::Open => {}
                        Wish::Seal(text, room) => {
                            sealed = traffic.encrypt(text, room).map_err(|error| not_sealed(&error))?;
                        }
                        Wish::Close => {
                            let mut room = [0; OVERHEAD];
                            let length =
                                traffic.queue_close_notify(&mut room).map_err(|error| not_sealed(&error))?;
                            out.extend_from_slice(room.get(..length).unwrap_or_default());
                        }
                    }
                    used += discard;
                    return Ok(Looked { used, sealed, stage: Stage::Open });
                }
                ConnectionState::Closed => Some(Stage::Closed),
                ConnectionState::BlockedHandshake => Some(Stage::Handshaking),
                ConnectionState::ReadEarlyData(_) | _ => {
                    return Err(rustls::Error::General("early data where none was asked for".to_owned()));
                }
            };
            used += discard;
            if let Some(stage) = stage {
                return Ok(Looked { used, sealed, stage });
            }
        }
    }

    /// The alert that goes with an error, if there is one. Asked for once: another look would be at broken records.
    fn last_words(&mut self, incoming: &mut [u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        match self.tls.process_tls_records(incoming).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(|room| data.encode(room), out),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Appends a record that rustls wants said.
fn encode(
    mut into: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let before = out.len();
    let needed = match into(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Ok(_) | Err(EncodeError::AlreadyEncoded) => 0,
    };
    out.resize(before + needed, 0);
    into(out.get_mut(before..).unwrap_or_default())
        .map(drop)
        .map_err(|error| rustls::Error::General(error.to_string()))
}

fn not_sealed(error: &EncryptError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_rustls::{TlsAcceptor, server};

    use super::*;

    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

    /// Settings of a server and of somebody who trusts it.
    fn pair(versions: &[&'static SupportedProtocolVersion]) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = || Arc::new(aws_lc_rs::default_provider());
        let server =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap();
        let server =
            server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&BOTH).unwrap();
        (Arc::new(server), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
    }

    /// Both ends, connected over a pipe that holds `width` octets.
    async fn connected(
        versions: &[&'static SupportedProtocolVersion],
        width: usize,
    ) -> (TlsStream, server::TlsStream<DuplexStream>) {
        let (server, client) = pair(versions);
        let (near, far) = duplex(width);
        let accepted = tokio::spawn(TlsAcceptor::from(server).accept(far));
        let name = ServerName::try_from("localhost").unwrap();
        let ours = TlsStream::connect(Box::new(near), &client, name).await.unwrap();
        (ours, accepted.await.unwrap().unwrap())
    }

    fn noise(length: usize) -> Vec<u8> {
        (0..=250).cycle().step_by(31).take(length).collect()
    }

    #[tokio::test]
    async fn every_octet_arrives_in_order_both_ways_at_once_over_any_width_and_version() {
        for versions in [&BOTH[..1], &BOTH[1..]] {
            for width in [1_000, 16_406, 200_000] {
                let (mut ours, mut theirs) = connected(versions, width).await;
                let sent = noise(700_000);
                let echoing = tokio::spawn(async move {
                    let mut buffer = vec![0; 9_999];
                    loop {
                        let count = theirs.read(&mut buffer).await.unwrap();
                        if count == 0 {
                            theirs.shutdown().await.unwrap();
                            return;
                        }
                        theirs.write_all(&buffer[..count]).await.unwrap();
                    }
                });
                let (mut reading, mut writing) = tokio::io::split(&mut ours);
                let mut got = Vec::new();
                let written = async {
                    writing.write_all(&sent).await.unwrap();
                    writing.shutdown().await.unwrap();
                };
                let ((), read) = tokio::join!(written, reading.read_to_end(&mut got));
                read.unwrap();
                assert!(got == sent, "{width}");
                echoing.await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_reader_with_little_room_gets_all_of_it_and_an_idle_stream_keeps_nothing() {
        let (mut ours, mut theirs) = connected(&BOTH, 1 << 20).await;
        let sent = noise(100_000);
        theirs.write_all(&sent).await.unwrap();
        theirs.flush().await.unwrap();
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let mut piece = [0; 7];
            let count = ours.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..count]);
        }
        assert!(got == sent);
        let kept = (ours.incoming.capacity(), ours.text.capacity(), ours.outgoing.capacity());
        assert_eq!(kept, (0, 0, 0));
    }

    #[tokio::test]
    async fn new_keys_are_taken_and_answered() {
        let (mut ours, mut theirs) = connected(&BOTH, 1 << 16).await;
        for round in 0..5_u8 {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.write_all(&[round]).await.unwrap();
            theirs.flush().await.unwrap();
            assert_eq!(ours.read_u8().await.unwrap(), round);
            ours.write_all(&[round, round]).await.unwrap();
            assert_eq!(theirs.read_u16().await.unwrap(), u16::from(round) * 257);
        }
    }

    #[tokio::test]
    async fn an_end_without_close_notify_is_an_error_and_with_it_is_none() {
        let (mut ours, mut theirs) = connected(&BOTH, 1 << 16).await;
        theirs.write_all(b"half of i").await.unwrap();
        theirs.flush().await.unwrap();
        drop(theirs);
        let mut got = Vec::new();
        let error = ours.read_to_end(&mut got).await.unwrap_err();
        assert_eq!((error.kind(), &got[..]), (io::ErrorKind::UnexpectedEof, &b"half of i"[..]));

        let (mut ours, mut theirs) = connected(&BOTH, 1 << 16).await;
        theirs.write_all(b"all of it").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"all of it");
        // we may still speak, and end in good order
        ours.write_all(b"bye").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_trusted_ends_the_handshake_and_the_server_is_told_why() {
        let ((server, _), (_, client)) = (pair(&BOTH), pair(&BOTH));
        let (near, far) = duplex(1 << 16);
        let accepted = tokio::spawn(TlsAcceptor::from(server).accept(far));
        let name = ServerName::try_from("localhost").unwrap();
        let ours = TlsStream::connect(Box::new(near), &client, name).await.map(drop).unwrap_err();
        let cause = ours.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        assert!(matches!(cause, Some(rustls::Error::InvalidCertificate(_))), "{ours:?}");
        let theirs = accepted.await.unwrap().map(drop).unwrap_err();
        assert!(theirs.to_string().contains("alert"), "{theirs}");
    }

    #[tokio::test]
    async fn what_is_no_tls_is_told_as_such_and_an_endless_message_is_not_read_to_its_end() {
        let (_, client) = pair(&BOTH);
        let name = || ServerName::try_from("localhost").unwrap();
        let (near, mut far) = duplex(1 << 16);
        far.write_all(b"* OK Dovecot ready.\r\n").await.unwrap();
        let error = TlsStream::connect(Box::new(near), &client, name()).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);

        let (near, mut far) = duplex(1 << 16);
        let connecting =
            tokio::spawn(async move { TlsStream::connect(Box::new(near), &client, name()).await.map(drop) });
        // one handshake message of 16 MB, a record of it after the other
        let mut message = vec![2, 0xff, 0xff, 0xff];
        message.resize(16_000, 0);
        loop {
            let head = [22, 3, 3, 0x3e, 0x80];
            if far.write_all(&[&head, &message[..]].concat()).await.is_err() {
                break;
            }
            message.fill(0);
        }
        let error = connecting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_stream_inside_another_one_works() {
        let (outer, mut relay) = connected(&BOTH, 1 << 16).await;
        let (server, client) = pair(&BOTH);
        let (mut inner_near, inner_far) = duplex(1 << 16);
        let accepted = tokio::spawn(TlsAcceptor::from(server).accept(inner_far));
        let relaying =
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut relay, &mut inner_near).await });
        let name = ServerName::try_from("localhost").unwrap();
        let mut ours = TlsStream::connect(Box::new(outer), &client, name).await.unwrap();
        let mut theirs = accepted.await.unwrap().unwrap();
        let sent = noise(300_000);
        let (to_send, mut got) = (sent.clone(), vec![0; sent.len()]);
        let sending = tokio::spawn(async move {
            theirs.write_all(&to_send).await.unwrap();
            theirs.shutdown().await.unwrap();
        });
        ours.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        sending.await.unwrap();
        drop(ours);
        drop(relaying.await.unwrap());
    }
}
