//! The mail client's byte stream, watched: when it last moved, and whether its framing can be read two ways.
//!
//! hyper reads `Content-Length` beside `Transfer-Encoding` its own way and hides the evidence. We refuse it
//! (RFC 9112 §6.1 allows that), so the request heads are looked over here before hyper gets them.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::clock;
use crate::stream::BoxIo;

/// Longest `HeartbeatInterval` of ActiveSync's `Ping` (MS-ASCMD 2.2.3.79.1: 3540 s), and a bit for the answer's way.
const LONGEST_PING: Duration = Duration::from_secs(3540 + 120);

/// What is known about a connection while it is open.
#[derive(Debug)]
pub(super) struct WireState {
    moved: Mutex<Instant>,
    ambiguous: AtomicBool,
    patient: AtomicUsize,
}

/// While it lives, silence is what both sides agreed on.
#[derive(Debug)]
pub(super) struct Patience(Arc<WireState>);

impl Drop for Patience {
    fn drop(&mut self) {
        self.0.patient.fetch_sub(1, Ordering::Relaxed);
        // What was silence so far was no idleness.
        self.0.touch();
    }
}

impl WireState {
    /// When the last byte went either way.
    pub(super) fn moved(&self) -> Instant {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Silence is agreed on, up to the limit of ActiveSync's `Ping`, for as long as the guard lives.
    pub(super) fn be_patient(self: &Arc<Self>) -> Patience {
        self.patient.fetch_add(1, Ordering::Relaxed);
        Patience(Arc::clone(self))
    }

    /// When the connection is idle, if nothing moves until then.
    pub(super) fn idle_at(&self, idle_timeout: Duration) -> Instant {
        let patient = self.patient.load(Ordering::Relaxed) > 0;
        self.moved() + if patient { idle_timeout.max(LONGEST_PING) } else { idle_timeout }
    }

    /// Whether a request's length could be read in two ways. It stays so: nothing behind it can be trusted.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.ambiguous.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = clock::now();
    }
}

/// A stream that notes what passes.
pub(super) struct Wire {
    io: BoxIo,
    framing: Framing,
    state: Arc<WireState>,
}

impl Wire {
    /// Starts watching at the first byte of a connection.
    pub(super) fn new(io: BoxIo) -> (Self, Arc<WireState>) {
        let state = Arc::new(WireState {
            moved: Mutex::new(clock::now()),
            ambiguous: AtomicBool::new(false),
            patient: AtomicUsize::new(0),
        });
        (Self { io, framing: Framing::default(), state: Arc::clone(&state) }, state)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if !fresh.is_empty() {
            this.state.touch();
            this.framing.feed(fresh);
            if this.framing.is_ambiguous() {
                this.state.ambiguous.store(true, Ordering::Relaxed);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.state.touch();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, slices))?;
        this.state.touch();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// As much of a line as is looked at: enough for every `Content-Length` and `Transfer-Encoding` in honest
/// use.
const MAX_LOOK: usize = 256;

/// Follows requests through a stream, as far as is needed to tell heads from bodies.
#[derive(Debug, Default)]
struct Framing {
    at: At,
    line: Vec<u8>,
    lengths: usize,
    length: u64,
    encodings: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before or in the request line.
    #[default]
    Start,
    /// In the header section.
    Head,
    /// In a body, or in the data of a chunk: this many octets are left.
    Body(u64),
    Chunk(u64),
    /// On the line that gives a chunk's size.
    ChunkSize,
    /// On the line end behind a chunk's data.
    ChunkEnd,
    /// Behind the last chunk.
    Trailer,
    /// Two readings are possible, or none.
    Ambiguous,
}

impl Framing {
    fn is_ambiguous(&self) -> bool {
        self.at == At::Ambiguous
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = match self.at {
                At::Ambiguous => return,
                At::Body(left) => self.skip(bytes, left, At::Body, At::Start),
                At::Chunk(left) => self.skip(bytes, left, At::Chunk, At::ChunkEnd),
                At::Start | At::Head | At::ChunkSize | At::ChunkEnd | At::Trailer => self.read(bytes),
            };
        }
    }

    fn skip<'b>(&mut self, bytes: &'b [u8], left: u64, more: fn(u64) -> At, then: At) -> &'b [u8] {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - here as u64;
        self.at = if left == 0 { then } else { more(left) };
        bytes.get(here..).unwrap_or_default()
    }

    fn read<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = memchr::memchr(b'\n', bytes);
        let (head, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        let room = MAX_LOOK.saturating_sub(self.line.len());
        self.line.extend_from_slice(head.get(..room).unwrap_or(head));
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            self.at = self.after(line.trim_ascii_end(), line.len() >= MAX_LOOK);
            self.line = line;
            self.line.clear();
        }
        rest
    }

    /// Where the stream stands after this line. `cut`: there was more of it.
    fn after(&mut self, line: &[u8], cut: bool) -> At {
        match self.at {
            At::Start | At::Trailer if line.is_empty() => At::Start,
            At::Start => At::Head,
            At::Head if line.is_empty() => {
                let (lengths, encodings) = (self.lengths, self.encodings);
                (self.lengths, self.encodings) = (0, 0);
                match (lengths, encodings) {
                    (0, 0) => At::Start,
                    (1, 0) if self.length == 0 => At::Start,
                    (1, 0) => At::Body(self.length),
                    (0, 1) => At::ChunkSize,
                    _ => At::Ambiguous,
                }
            }
            At::Head => self.field(line, cut),
            At::ChunkSize => {
                let digits = line.split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
                match std::str::from_utf8(digits).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
                    _ if digits.starts_with(b"+") => At::Ambiguous,
                    Some(0) => At::Trailer,
                    Some(size) => At::Chunk(size),
                    None => At::Ambiguous,
                }
            }
            At::ChunkEnd if line.is_empty() => At::ChunkSize,
            At::Trailer => At::Trailer,
            At::ChunkEnd | At::Body(_) | At::Chunk(_) | At::Ambiguous => At::Ambiguous,
        }
    }

    fn field(&mut self, line: &[u8], cut: bool) -> At {
        let Some(colon) = memchr::memchr(b':', line) else { return At::Head };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let name = name.trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            match std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
                Some(length) if digits && !cut => self.length = length,
                Some(_) | None => return At::Ambiguous,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encodings += 1;
            // Any other coding would have to be undone before the body is framed anew.
            if cut || !value.eq_ignore_ascii_case(b"chunked") {
                return At::Ambiguous;
            }
        }
        At::Head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed whole and byte by byte, which must come to the same.
    fn ends_at(stream: &str) -> At {
        let mut whole = Framing::default();
        whole.feed(stream.as_bytes());
        let mut sliced = Framing::default();
        for byte in stream.as_bytes() {
            sliced.feed(std::slice::from_ref(byte));
        }
        assert_eq!(whole.at, sliced.at, "{stream:?}");
        whole.at
    }

    #[test]
    fn honest_requests_in_a_row_are_followed_to_their_ends() {
        let long = "x".repeat(5000);
        let stream = format!(
            "POST /EWS/a HTTP/1.1\r\nHost: h\r\nCookie: {long}\r\nContent-Length: 5\r\n\r\nTE\n\r\n\
             GET /EWS/b HTTP/1.1\r\nHost: h\r\n\r\n\
             \r\nPOST /EWS/c HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n\
             A;x=y\r\n0123456789\r\n1\r\n\n\r\n0\r\nX-T: 1\r\n\r\n\
             POST /EWS/d HTTP/1.1\nContent-Length: 0\n\n"
        );
        assert_eq!(ends_at(&stream), At::Start);
        assert_eq!(ends_at("POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc"), At::Body(6));
        assert_eq!(ends_at("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), At::Chunk(3));
    }

    #[test]
    fn a_body_that_looks_like_a_head_is_a_body() {
        let inner = "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let stream = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{inner}", inner.len());
        assert_eq!(ends_at(&stream), At::Start);
    }

    #[test]
    fn two_readings_are_seen() {
        for fields in [
            "Content-Length: 4\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 4",
            "Content-Length: 4\r\nContent-Length: 5",
            "Content-Length: 4\r\nContent-Length: 4",
            "Content-Length: 4, 4",
            "Content-Length: +4",
            "Content-Length: 0x4",
            "Content-Length: -1",
            "Content-Length:",
            "Content-Length: 99999999999999999999999",
            "Content-Length : 4\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: identity\r\nContent-Length: 4",
        ] {
            assert_eq!(ends_at(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n")), At::Ambiguous, "{fields}");
        }
        let padded = format!("POST / HTTP/1.1\r\nContent-Length: {}4\r\n\r\n", "0".repeat(400));
        assert_eq!(ends_at(&padded), At::Ambiguous);
    }
}
