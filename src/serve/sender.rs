//! Makes the senders of a device's messages the mailbox that it sends as: `envelope-sender: mailbox`.
//!
//! Stands between the device's socket and the relay. It changes one thing: the address in MAIL FROM, between
//! messages. The empty sender stays empty (a bounce must not become a letter, RFC 5321 §4.5.5), parameters stay,
//! every other octet passes as it came. Where it is not sure what a line is, nothing is changed: the worst that
//! follows is that upstream refuses the sender.
//!
//! Never: looks into a message, and so at its `From:`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::protocol::line::MAX_COMMAND_LINE;
use crate::protocol::smtp::boundary::Boundary;
use crate::protocol::smtp::grammar::sender;
use crate::stream::BoxIo;

/// What is read from the device at once, in octets.
const CHUNK: usize = 16 * 1024;

/// The device's socket, with its senders replaced.
pub struct FixedSender {
    io: BoxIo,
    mailbox: String,
    boundary: Boundary,
    /// Read, and not yet looked at.
    raw: Vec<u8>,
    /// Looked at, and not yet taken by the relay.
    ready: Vec<u8>,
    /// Waits for upstream's answer to DATA, which says what the next octets are.
    waiting: Option<Waker>,
    eof: bool,
}

impl FixedSender {
    /// `first` came before the relay began.
    pub fn new(io: BoxIo, mailbox: String, first: Vec<u8>) -> Self {
        let (boundary, ready) = (Boundary::new(), Vec::new());
        Self { io, mailbox, boundary, raw: first, ready, waiting: None, eof: false }
    }

    /// Moves what is clear from `raw` to `ready`.
    fn look(&mut self) {
        let raw = std::mem::take(&mut self.raw);
        let mut rest = raw.as_slice();
        while !rest.is_empty() && !self.boundary.waits_for_reply() {
            if !self.boundary.expects_command() {
                let behind = self.boundary.take_from_front(rest);
                let (taken, left) = rest.split_at(rest.len() - behind);
                self.ready.extend_from_slice(taken);
                rest = left;
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', rest) else {
                if rest.len() > MAX_COMMAND_LINE || self.eof {
                    self.pass(rest);
                    rest = &[];
                }
                break;
            };
            let (line, left) = rest.split_at(end + 1);
            match replaced(line, &self.mailbox) {
                Some(line) => self.pass(&line),
                None => self.pass(line),
            }
            rest = left;
        }
        self.raw = rest.to_vec();
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.boundary.from_front(bytes);
        self.ready.extend_from_slice(bytes);
    }
}

/// The MAIL command with another sender; `None`: it is none, or the sender is empty.
fn replaced(line: &[u8], mailbox: &str) -> Option<Vec<u8>> {
    let old = sender(line).filter(|old| !old.is_empty())?;
    let open = memchr::memchr(b'<', line)?;
    let behind = line.get(open + 1..)?.strip_prefix(old)?;
    let before = line.get(..=open)?;
    behind.starts_with(b">").then(|| [before, mailbox.as_bytes(), behind].concat())
}

impl AsyncRead for FixedSender {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            this.look();
            if !this.ready.is_empty() {
                let count = this.ready.len().min(out.remaining());
                let rest = this.ready.split_off(count);
                out.put_slice(&this.ready);
                this.ready = rest;
                return Poll::Ready(Ok(()));
            }
            if this.boundary.waits_for_reply() && !this.eof && !this.raw.is_empty() {
                this.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if this.eof {
                // what upstream never answered is nobody's any more
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [0; CHUNK];
            let mut buffer = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut buffer))?;
            this.eof = buffer.filled().is_empty();
            this.raw.extend_from_slice(buffer.filled());
        }
    }
}

impl AsyncWrite for FixedSender {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.boundary.from_back(bytes.get(..count).unwrap_or_default());
        if !this.boundary.waits_for_reply()
            && let Some(waiting) = this.waiting.take()
        {
            waiting.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[test]
    fn only_the_address_of_mail_is_replaced() {
        for (line, becomes) in [
            ("MAIL FROM:<scan@local>\r\n", Some("MAIL FROM:<mfp@contoso.com>\r\n")),
            (
                "mail from: <a@b> SIZE=10 BODY=8BITMIME\r\n",
                Some("mail from: <mfp@contoso.com> SIZE=10 BODY=8BITMIME\r\n"),
            ),
            ("MAIL FROM:<>\r\n", None),
            ("RCPT TO:<a@b>\r\n", None),
            ("NOOP MAIL FROM:<a@b>\r\n", None),
        ] {
            let new = replaced(line.as_bytes(), "mfp@contoso.com");
            assert_eq!(new.as_deref(), becomes.map(str::as_bytes), "{line}");
        }
    }

    #[tokio::test]
    async fn a_line_inside_a_message_is_left_alone_and_the_next_sender_is_not() {
        let (mut device, near) = duplex(10_000);
        let first = b"MAIL FROM:<scan@local>\r\n".to_vec();
        let mut ours = FixedSender::new(Box::new(near), "mfp@contoso.com".to_owned(), first);
        let say =
            "RCPT TO:<a@b>\r\nDATA\r\nMAIL FROM:<text@in.it>\r\n.\r\nMAIL FROM:<scan@local>\r\nQUIT\r\n";
        device.write_all(say.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"DATA\r\n") {
            ours.read_buf(&mut got).await.unwrap();
        }
        // what DATA leads to is not known yet: nothing behind it is passed on
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), ours.read_buf(&mut got)).await;
        assert!(early.is_err());
        ours.write_all(b"250 ok\r\n250 ok\r\n354 go\r\n").await.unwrap();
        while !got.ends_with(b"QUIT\r\n") {
            ours.read_buf(&mut got).await.unwrap();
        }
        let expected = "MAIL FROM:<mfp@contoso.com>\r\nRCPT TO:<a@b>\r\nDATA\r\nMAIL FROM:<text@in.it>\r\n.\r\n\
                        MAIL FROM:<mfp@contoso.com>\r\nQUIT\r\n";
        assert_eq!(String::from_utf8(got).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_refused_data_command_is_followed_by_commands() {
        let (mut device, near) = duplex(10_000);
        let mut ours = FixedSender::new(Box::new(near), "mfp@contoso.com".to_owned(), Vec::new());
        device.write_all(b"DATA\r\nMAIL FROM:<scan@local>\r\n").await.unwrap();
        let mut got = Vec::new();
        ours.read_buf(&mut got).await.unwrap();
        ours.write_all(b"503 no\r\n").await.unwrap();
        ours.read_buf(&mut got).await.unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), "DATA\r\nMAIL FROM:<mfp@contoso.com>\r\n");
    }
}
