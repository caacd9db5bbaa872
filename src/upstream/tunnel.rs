//! What is said to a corporate proxy for a tunnel: HTTP CONNECT (RFC 9110 §9.3.6) and SOCKS5 (RFC 1928, 1929).
//!
//! Names are resolved by the proxy. Bytes that stand behind the proxy's answer belong to the tunnel and are
//! kept: an SMTP greeting may come in the same segment.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::error::ProxyNo;
use crate::explain::one_line;
use crate::stream::BoxIo;

/// The longest head of an answer to CONNECT, in octets. A Kerberos ticket makes the longest.
const MAX_HEAD: usize = 32 * 1024;

/// The longest body of a refusal that is read over, in octets; behind a longer one the connection is of no use.
const MAX_BODY: usize = 64 * 1024;

/// The longest line in front of a chunk, in octets.
const MAX_CHUNK_LINE: usize = 1024;

/// How long a refusal's body may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(2);

/// As much of a refusal's body is looked at for its title, in octets.
const MAX_SEEN: usize = 4096;

/// A connection to an HTTP proxy, on which tunnels are asked for until one is given.
pub struct Line {
    io: BoxIo,
    /// Read, and not yet looked at.
    ahead: Vec<u8>,
}

/// What the proxy said to a CONNECT.
#[derive(Debug)]
pub struct Answer {
    /// Of the status line.
    pub status: u16,
    /// The status line, and what else tells why, in one printable line.
    pub reply: String,
    /// `Proxy-Authenticate`, in the proxy's order.
    pub challenges: Vec<Challenge>,
    /// Whether another CONNECT may follow on this connection.
    pub reusable: bool,
    /// Whether it came with a page for people.
    pub page: bool,
}

/// One `Proxy-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    /// `Basic`, `NTLM`, `Negotiate`, …, as it is written.
    pub scheme: String,
    /// The token behind it, where there is one.
    pub token: Option<Vec<u8>>,
}

impl Line {
    /// A fresh connection.
    pub fn new(io: BoxIo) -> Self {
        Self { io, ahead: Vec::new() }
    }

    /// Asks for a tunnel to `target` (host and port). A refusal's body has been read over when this returns.
    ///
    /// # Errors
    /// The proxy breaks off, or does not speak HTTP; the text says what came.
    pub async fn ask(&mut self, target: &str, authorization: Option<&str>) -> Result<Answer, io::Error> {
        let mut request = Zeroizing::new(String::with_capacity(512));
        for part in ["CONNECT ", target, " HTTP/1.1\r\nHost: ", target, "\r\n"] {
            request.push_str(part);
        }
        request.push_str(concat!("User-Agent: Mailkey/", env!("CARGO_PKG_VERSION"), "\r\n"));
        request.push_str("Proxy-Connection: Keep-Alive\r\n");
        if let Some(authorization) = authorization {
            for part in ["Proxy-Authorization: ", authorization, "\r\n"] {
                request.push_str(part);
            }
        }
        request.push_str("\r\n");
        self.io.write_all(request.as_bytes()).await?;
        self.io.flush().await?;
        let head = self.head().await?;
        let head = Head::read(&head)?;
        let mut answer = Answer {
            status: head.status,
            reply: head.reply(),
            challenges: head.challenges(),
            reusable: head.keeps_open(),
            page: head.has("content-type", "text/html"),
        };
        if !(200..300).contains(&answer.status) {
            let mut seen = Vec::new();
            let whole = timeout(BODY_LIMIT, self.skip_body(&head, &mut seen)).await;
            // a body that does not come takes nothing from what the head has said
            answer.reusable &= matches!(whole, Ok(Ok(true)));
            if let Some(title) = title(&seen) {
                answer.reply = one_line(&format!("{}, page `{title}`", answer.reply), 300);
            }
        }
        Ok(answer)
    }

    /// The tunnel, once one was given.
    pub fn into_tunnel(self) -> BoxIo {
        if self.ahead.is_empty() {
            self.io
        } else {
            Box::new(Rewound { first: self.ahead, taken: 0, io: self.io })
        }
    }

    /// Whether a page for people stands where the tunnel ought to begin.
    pub fn begins_with_a_page(&self) -> bool {
        self.ahead.trim_ascii_start().starts_with(b"<")
    }

    /// Reads up to and with the empty line.
    async fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut looked_at = 0_usize;
        loop {
            let from = looked_at.saturating_sub(3);
            let end = memchr::memmem::find(self.ahead.get(from..).unwrap_or_default(), b"\r\n\r\n")
                .map(|end| from + end + 4);
            looked_at = self.ahead.len();
            // by its length, and not by how it happens to come in
            if end.unwrap_or(looked_at) > MAX_HEAD {
                return Err(io::Error::other("an answer without end"));
            }
            if let Some(end) = end {
                let rest = self.ahead.split_off(end);
                return Ok(std::mem::replace(&mut self.ahead, rest));
            }
            if self.more().await? == 0 {
                return Err(io::Error::other(if self.ahead.is_empty() {
                    "nothing, and hung up".to_owned()
                } else {
                    format!("half an answer: {}", one_line(&String::from_utf8_lossy(&self.ahead), 200))
                }));
            }
        }
    }

    /// Reads over a refusal's body. `false`: it has no end but that of the connection.
    async fn skip_body(&mut self, head: &Head, seen: &mut Vec<u8>) -> io::Result<bool> {
        if head.has("transfer-encoding", "chunked") {
            return self.skip_chunks(seen).await;
        }
        match head.value("content-length").map(str::parse::<usize>) {
            Some(Ok(length)) if length <= MAX_BODY => self.skip(length, seen).await,
            Some(_) => Ok(false),
            None => {
                // its end is the connection's, which may be long in coming; a page's title comes soon
                if head.has("content-type", "text/html") && self.ahead.is_empty() {
                    self.more().await?;
                }
                seen.extend_from_slice(self.ahead.get(..MAX_SEEN).unwrap_or(&self.ahead));
                Ok(false)
            }
        }
    }

    /// RFC 9112 §7.1, without trailers.
    async fn skip_chunks(&mut self, seen: &mut Vec<u8>) -> io::Result<bool> {
        let mut left = MAX_BODY;
        loop {
            let line = loop {
                let end = memchr::memchr(b'\n', &self.ahead);
                if end.unwrap_or(self.ahead.len()) > MAX_CHUNK_LINE {
                    return Ok(false);
                }
                if let Some(end) = end {
                    break self.ahead.drain(..=end).collect::<Vec<u8>>();
                }
                if self.more().await? == 0 {
                    return Ok(false);
                }
            };
            let digits = line.split(|b| !b.is_ascii_hexdigit()).next().unwrap_or_default();
            let size = std::str::from_utf8(digits).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
            let Some(size) = size.filter(|size| *size <= left) else { return Ok(false) };
            left -= size;
            if !self.skip(size + 2, seen).await? {
                return Ok(false);
            }
            if size == 0 {
                return Ok(true);
            }
        }
    }

    async fn skip(&mut self, length: usize, seen: &mut Vec<u8>) -> io::Result<bool> {
        let mut left = length;
        loop {
            let now = left.min(self.ahead.len());
            let room = MAX_SEEN.saturating_sub(seen.len()).min(now);
            seen.extend_from_slice(self.ahead.get(..room).unwrap_or_default());
            self.ahead.drain(..now);
            left -= now;
            if left == 0 {
                return Ok(true);
            }
            if self.more().await? == 0 {
                return Ok(false);
            }
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.ahead.reserve(1024);
        self.io.read_buf(&mut self.ahead).await
    }
}

/// The head of an answer.
struct Head {
    status: u16,
    minor: u8,
    status_line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn read(bytes: &[u8]) -> io::Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        let status_line = lines.next().unwrap_or_default();
        let no_http = || io::Error::other(one_line(status_line, 200));
        let rest = status_line.strip_prefix("HTTP/1.").ok_or_else(no_http)?;
        let (minor, rest) = rest.split_once(' ').ok_or_else(no_http)?;
        let status = rest.split(' ').next().and_then(|code| code.parse().ok()).ok_or_else(no_http)?;
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Self { status, minor: minor.parse().unwrap_or(0), status_line: status_line.to_owned(), fields })
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// Whether a field mentions a word, in whatever case.
    fn has(&self, name: &str, word: &str) -> bool {
        self.values(name).any(|value| value.to_ascii_lowercase().contains(word))
    }

    fn says(&self, word: &str) -> bool {
        self.has("connection", word) || self.has("proxy-connection", word)
    }

    fn keeps_open(&self) -> bool {
        !self.says("close") && (self.minor >= 1 || self.says("keep-alive"))
    }

    /// The status line, and Squid's own word for the cause.
    fn reply(&self) -> String {
        let line = one_line(&self.status_line, 200);
        match self.value("x-squid-error").and_then(|value| value.split(' ').next()) {
            Some(cause) => format!("{line} ({})", one_line(cause, 60)),
            None => line,
        }
    }

    /// One scheme a field, as every proxy sends them; parameters of a second one in the same field are passed over.
    fn challenges(&self) -> Vec<Challenge> {
        self.values("proxy-authenticate")
            .map(|value| {
                let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
                let token = BASE64_STANDARD.decode(rest.trim()).ok().filter(|token| !token.is_empty());
                Challenge { scheme: one_line(scheme.trim_end_matches(','), 40), token }
            })
            .collect()
    }
}

/// What a page calls itself.
fn title(page: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(page);
    let lower = text.to_ascii_lowercase();
    let start = lower.find("<title")?;
    let start = start + lower.get(start..)?.find('>')? + 1;
    let end = start + lower.get(start..)?.find('<')?;
    let words = text.get(start..end)?.split_whitespace().collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then(|| one_line(&words, 80))
}

/// Why SOCKS gives no connection.
#[derive(Debug, PartialEq, Eq)]
pub enum SocksNo {
    /// It takes none of our ways to sign in.
    Method,
    /// User name or password is wrong.
    SignIn,
    /// The target: what kind of no, and its words.
    Target(ProxyNo, &'static str),
}

/// User name and password for SOCKS.
#[derive(Clone, Copy)]
pub struct SocksSignIn<'a> {
    /// At most 255 octets.
    pub user: &'a str,
    /// At most 255 octets.
    pub password: &'a str,
    /// Whether going without would do, too.
    pub optional: bool,
}

/// Asks a SOCKS5 proxy for a connection to `host:port`; a name goes to the proxy as it is.
///
/// # Errors
/// The proxy breaks off, or does not speak SOCKS5.
pub async fn socks5(
    io: &mut BoxIo,
    sign_in: Option<SocksSignIn<'_>>,
    host: &str,
    port: u16,
) -> io::Result<Result<(), SocksNo>> {
    // RFC 1928 §3: version, methods; 0 is "no authentication", 2 is user name and password
    let methods: &[u8] = match sign_in {
        None => &[5, 1, 0],
        Some(SocksSignIn { optional: true, .. }) => &[5, 2, 0, 2],
        Some(_) => &[5, 1, 2],
    };
    io.write_all(methods).await?;
    io.flush().await?;
    let [version, chosen] = exactly(io).await?;
    if version != 5 {
        return Err(io::Error::other("this is no SOCKS5"));
    }
    match (chosen, sign_in) {
        (0, _) if methods.get(2..).unwrap_or_default().contains(&0) => {}
        (2, Some(sign_in)) => {
            if !sign_in_socks(io, sign_in).await? {
                return Ok(Err(SocksNo::SignIn));
            }
        }
        _ => return Ok(Err(SocksNo::Method)),
    }
    ask_socks(io, host, port).await
}

/// RFC 1929 §2.
async fn sign_in_socks(io: &mut BoxIo, sign_in: SocksSignIn<'_>) -> io::Result<bool> {
    let mut message = Zeroizing::new(Vec::with_capacity(3 + 2 * 255));
    message.push(1);
    for part in [sign_in.user, sign_in.password] {
        let length =
            u8::try_from(part.len()).map_err(|_| io::Error::other("user name or password too long"))?;
        message.push(length);
        message.extend_from_slice(part.as_bytes());
    }
    io.write_all(&message).await?;
    io.flush().await?;
    let [_, status] = exactly(io).await?;
    Ok(status == 0)
}

/// RFC 1928 §4 to §6.
async fn ask_socks(io: &mut BoxIo, host: &str, port: u16) -> io::Result<Result<(), SocksNo>> {
    let mut message = vec![5, 1, 0];
    match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(address)) => {
            message.push(1);
            message.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            message.push(4);
            message.extend_from_slice(&address.octets());
        }
        Err(_) => {
            let length = u8::try_from(host.len()).map_err(|_| io::Error::other("host name too long"))?;
            message.extend_from_slice(&[3, length]);
            message.extend_from_slice(host.as_bytes());
        }
    }
    message.extend_from_slice(&port.to_be_bytes());
    io.write_all(&message).await?;
    io.flush().await?;
    let [_, reply, _, kind] = exactly(io).await?;
    match kind {
        1 => drop(exactly::<6>(io).await?),
        4 => drop(exactly::<18>(io).await?),
        3 => {
            let [length] = exactly(io).await?;
            let mut bound = vec![0; usize::from(length) + 2];
            io.read_exact(&mut bound).await?;
        }
        _ => return Err(io::Error::other("an address of unknown kind")),
    }
    let (kind, words) = match reply {
        0 => return Ok(Ok(())),
        1 => (ProxyNo::Other, "general failure"),
        2 => (ProxyNo::Forbidden, "not allowed by its rules"),
        3 => (ProxyNo::CannotReach, "network unreachable"),
        4 => (ProxyNo::CannotReach, "host unreachable"),
        5 => (ProxyNo::CannotReach, "connection refused"),
        6 => (ProxyNo::CannotReach, "time to live expired"),
        _ => (ProxyNo::Other, "not supported"),
    };
    Ok(Err(SocksNo::Target(kind, words)))
}

async fn exactly<const N: usize>(io: &mut BoxIo) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Host and port as they stand in a CONNECT request.
pub fn target(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A stream some of whose bytes were read too early: they come first.
struct Rewound {
    first: Vec<u8>,
    taken: usize,
    io: BoxIo,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let waiting = self.first.get(self.taken..).unwrap_or_default();
        if waiting.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let count = waiting.len().min(buf.remaining());
        buf.put_slice(waiting.get(..count).unwrap_or_default());
        self.taken += count;
        if self.taken == self.first.len() {
            self.first = Vec::new();
            self.taken = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays the proxy: answers the first request with these pieces; what it was asked, and how it went.
    async fn ask(pieces: &'static [&'static [u8]]) -> (io::Result<Answer>, Line, String) {
        let (near, mut far) = tokio::io::duplex(4096);
        let other = tokio::spawn(async move {
            let mut asked = vec![0; 4096];
            let n = far.read(&mut asked).await.unwrap();
            asked.truncate(n);
            for piece in pieces {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            String::from_utf8(asked).unwrap()
        });
        let mut line = Line::new(Box::new(near));
        let answer = line.ask("smtp.office365.com:587", None).await;
        (answer, line, other.await.unwrap())
    }

    #[tokio::test]
    async fn a_greeting_behind_the_answer_is_not_lost() {
        let (answer, line, asked) = ask(&[b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n220 hello\r\n"]).await;
        assert_eq!(answer.unwrap().status, 200);
        assert!(!line.begins_with_a_page());
        let mut greeting = [0; 11];
        line.into_tunnel().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 hello\r\n");
        assert!(
            asked.starts_with("CONNECT smtp.office365.com:587 HTTP/1.1\r\nHost: smtp.office365.com:587\r\n")
        );
        assert!(!asked.contains("Proxy-Authorization"));
    }

    #[tokio::test]
    async fn a_refusals_body_is_read_over_so_that_the_next_answer_is_found() {
        let refusals: [&'static [&'static [u8]]; 3] = [
            &[b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM TlRMTQ==\r\nContent-Length: 5\r\n\r\nab", b"cde!"],
            &[
                b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM TlRMTQ==\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                b"2;x=y\r\nde\r\n0\r\n\r\n!",
            ],
            &[b"HTTP/1.0 407 No\r\nProxy-Connection: keep-alive\r\nproxy-authenticate: NTLM TlRMTQ==\r\ncontent-length: 0\r\n\r\n!"],
        ];
        for refusal in refusals {
            let (answer, line, _) = ask(refusal).await;
            let answer = answer.unwrap();
            assert!(answer.reusable, "{answer:?}");
            assert_eq!(
                answer.challenges,
                [Challenge { scheme: "NTLM".to_owned(), token: Some(b"NTLM".to_vec()) }]
            );
            let mut rest = [0; 1];
            line.into_tunnel().read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"!");
        }
    }

    #[tokio::test]
    async fn a_body_without_end_makes_the_connection_useless() {
        let endless: [&'static [&'static [u8]]; 5] = [
            &[b"HTTP/1.1 407 No\r\nContent-Length: 99999999\r\n\r\n"],
            &[b"HTTP/1.1 407 No\r\nContent-Length: minus one\r\n\r\n"],
            &[b"HTTP/1.1 407 No\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n"],
            &[b"HTTP/1.1 407 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"],
            &[b"HTTP/1.1 407 No\r\n\r\n"],
        ];
        for answer in endless {
            let (got, _, _) = ask(answer).await;
            assert!(!got.unwrap().reusable);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_cause_and_the_title_of_its_page() {
        let (answer, _, _) = ask(&[
            b"HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\nContent-Type: text/html\r\nContent-Length: 49\r\n\r\n",
            b"<html><head><TITLE lang=en>\nAcceptable\tUse</title>",
        ])
        .await;
        let answer = answer.unwrap();
        assert_eq!(answer.reply, "HTTP/1.1 403 Forbidden (ERR_ACCESS_DENIED), page `Acceptable Use`");
        assert!(answer.page);
    }

    #[tokio::test]
    async fn an_endless_head_and_a_page_are_refused() {
        let strange: [&'static [&'static [u8]]; 3] =
            [&[b"<html>please sign in</html>\r\n\r\n"], &[b"SSH-2.0-x\r\n\r\n"], &[b"HTTP/1.1 20"]];
        for answer in strange {
            assert!(ask(answer).await.0.is_err());
        }
        let (mut near, far) = tokio::io::duplex(64);
        let flood = tokio::spawn(async move {
            while near.write_all(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").await.is_ok() {}
        });
        let error =
            Line { io: Box::new(far), ahead: b"HTTP/1.1 200 OK\r\n".to_vec() }.head().await.unwrap_err();
        assert_eq!(error.to_string(), "an answer without end");
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn a_head_is_too_long_however_it_comes_in() {
        let padding = "x".repeat(MAX_HEAD - "HTTP/1.1 200 OK\r\nX: \r\n\r\n".len());
        for (more, is_taken) in [("", true), ("x", false)] {
            for buffer in [1, 1000, 100_000] {
                let (mut near, far) = tokio::io::duplex(buffer);
                let head = format!("HTTP/1.1 200 OK\r\nX: {padding}{more}\r\n\r\n");
                let other = tokio::spawn(async move { near.write_all(head.as_bytes()).await });
                let got = Line::new(Box::new(far)).head().await;
                assert_eq!(got.is_ok(), is_taken, "{more:?} by {buffer}");
                drop(other.await);
            }
        }
    }

    #[tokio::test]
    async fn socks_sends_the_name_and_signs_in() {
        let (near, mut far) = tokio::io::duplex(4096);
        let other = tokio::spawn(async move {
            assert_eq!(far.read_u8().await.unwrap(), 5);
            let mut methods = [0; 2];
            far.read_exact(&mut methods).await.unwrap();
            assert_eq!(methods, [1, 2]);
            far.write_all(&[5, 2]).await.unwrap();
            let mut sign_in = [0; 17];
            far.read_exact(&mut sign_in).await.unwrap();
            assert_eq!(&sign_in, b"\x01\x03svc\x0bopen sesame");
            far.write_all(&[1, 0]).await.unwrap();
            let mut ask = [0; 5 + 18 + 2];
            far.read_exact(&mut ask).await.unwrap();
            assert_eq!(&ask[..5], &[5, 1, 0, 3, 18]);
            assert_eq!(&ask[5..23], b"smtp.office365.com");
            assert_eq!(&ask[23..], &587_u16.to_be_bytes());
            far.write_all(&[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
        });
        let sign_in = SocksSignIn { user: "svc", password: "open sesame", optional: false };
        let mut io: BoxIo = Box::new(near);
        let result = socks5(&mut io, Some(sign_in), "smtp.office365.com", 587).await.unwrap();
        other.await.unwrap();
        assert_eq!(result, Err(SocksNo::Target(ProxyNo::Forbidden, "not allowed by its rules")));
    }

    #[tokio::test]
    async fn socks_goes_without_a_sign_in_where_that_does_and_sends_addresses_as_such() {
        let (near, mut far) = tokio::io::duplex(4096);
        let other = tokio::spawn(async move {
            let mut methods = [0; 4];
            far.read_exact(&mut methods).await.unwrap();
            assert_eq!(methods, [5, 2, 0, 2]);
            far.write_all(&[5, 0]).await.unwrap();
            let mut ask = [0; 10];
            far.read_exact(&mut ask).await.unwrap();
            assert_eq!(ask, [5, 1, 0, 1, 192, 0, 2, 1, 0, 25]);
            far.write_all(&[5, 0, 0, 3, 1, b'x', 0, 0]).await.unwrap();
        });
        let sign_in = SocksSignIn { user: "svc", password: "", optional: true };
        let mut io: BoxIo = Box::new(near);
        assert_eq!(socks5(&mut io, Some(sign_in), "192.0.2.1", 25).await.unwrap(), Ok(()));
        other.await.unwrap();
    }
}
