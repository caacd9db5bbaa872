//! Through the corporate proxy: HTTP CONNECT (RFC 9110 §9.3.6) and SOCKS5 (RFC 1928, 1929).
//!
//! Names are resolved by the proxy. Bytes that stand behind the proxy's answer belong to the tunnel and are
//! kept: an SMTP greeting may come in the same segment.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use zeroize::Zeroizing;

use super::error::UpstreamError;
use crate::config::model::{OutboundProxy, ProxyAuth};
use crate::explain::one_line;
use crate::stream::BoxIo;

/// The longest head of an answer to CONNECT, in octets.
const MAX_HEAD: usize = 8192;

/// Asks an HTTP proxy for a tunnel to `host:port`.
///
/// # Errors
/// The proxy refuses, breaks off, or does not speak HTTP.
pub async fn connect(
    mut io: BoxIo,
    proxy: &OutboundProxy,
    host: &str,
    port: u16,
) -> Result<BoxIo, UpstreamError> {
    let name = proxy_name(proxy);
    let broken = |got: &str| UpstreamError::ProxyBroken { proxy: name.clone(), got: one_line(got, 200) };
    let target = target(host, port);
    let mut request =
        Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: Mailkey\r\n"));
    if let Some(basic) = basic(proxy) {
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(&basic);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    io.write_all(request.as_bytes()).await.map_err(|e| broken(&e.to_string()))?;
    io.flush().await.map_err(|e| broken(&e.to_string()))?;
    let (head, rest) = head(&mut io).await.map_err(|e| broken(&e.to_string()))?;
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let status_line = lines.next().unwrap_or_default();
    let status = status(status_line).ok_or_else(|| broken(status_line))?;
    if !(200..300).contains(&status) {
        let offers: Vec<&str> = lines
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case("proxy-authenticate"))
            .filter_map(|(_, value)| value.split_whitespace().next())
            .collect();
        return Err(UpstreamError::ProxyRefused {
            proxy: name,
            target,
            status,
            reply: one_line(status_line, 200),
            offers: if offers.is_empty() { "nothing".to_owned() } else { one_line(&offers.join(", "), 100) },
        });
    }
    Ok(if rest.is_empty() { io } else { Box::new(Rewound { first: rest, taken: 0, io }) })
}

/// Asks a SOCKS5 proxy for a connection to `host:port`; the name goes to the proxy as it is.
///
/// # Errors
/// The proxy refuses, breaks off, or does not speak SOCKS5.
pub async fn socks5(
    mut io: BoxIo,
    proxy: &OutboundProxy,
    host: &str,
    port: u16,
) -> Result<BoxIo, UpstreamError> {
    let name = proxy_name(proxy);
    let refused = |reply: &str| UpstreamError::ProxyRefused {
        proxy: name.clone(),
        target: target(host, port),
        status: 0,
        reply: one_line(reply, 200),
        offers: "nothing".to_owned(),
    };
    let broken = |error: io::Error| UpstreamError::ProxyBroken {
        proxy: name.clone(),
        got: one_line(&error.to_string(), 200),
    };
    let user = proxy.username.as_deref().filter(|_| proxy.auth != ProxyAuth::None);
    // RFC 1928 §3: version, one method; 0 is "no authentication", 2 is user name and password
    let method = if user.is_some() { 2 } else { 0 };
    io.write_all(&[5, 1, method]).await.map_err(broken)?;
    let [version, chosen] = exactly(&mut io).await.map_err(broken)?;
    if version != 5 {
        return Err(broken(io::Error::other("this is no SOCKS5")));
    }
    if chosen != method {
        return Err(refused("none of our ways to sign in is taken"));
    }
    if let Some(user) = user {
        let password = proxy.password.as_ref().map_or("", |secret| secret.expose());
        sign_in_socks(&mut io, user, password)
            .await
            .map_err(broken)?
            .ok_or_else(|| refused("the user name or password for the proxy is wrong"))?;
    }
    ask_socks(&mut io, host, port).await.map_err(broken)?.map_err(refused)?;
    Ok(io)
}

/// RFC 1929 §2. `None`: refused.
async fn sign_in_socks(io: &mut BoxIo, user: &str, password: &str) -> io::Result<Option<()>> {
    let mut message = Zeroizing::new(vec![1]);
    for part in [user, password] {
        let length =
            u8::try_from(part.len()).map_err(|_| io::Error::other("user name or password too long"))?;
        message.push(length);
        message.extend_from_slice(part.as_bytes());
    }
    io.write_all(&message).await?;
    let [_, status] = exactly(io).await?;
    Ok((status == 0).then_some(()))
}

/// RFC 1928 §4 to §6.
async fn ask_socks(io: &mut BoxIo, host: &str, port: u16) -> io::Result<Result<(), &'static str>> {
    let length = u8::try_from(host.len()).map_err(|_| io::Error::other("host name too long"))?;
    let mut message = vec![5, 1, 0, 3, length];
    message.extend_from_slice(host.as_bytes());
    message.extend_from_slice(&port.to_be_bytes());
    io.write_all(&message).await?;
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
    Ok(match reply {
        0 => Ok(()),
        1 => Err("general failure"),
        2 => Err("not allowed by its rules"),
        3 => Err("network unreachable"),
        4 => Err("host unreachable"),
        5 => Err("connection refused"),
        6 => Err("time to live expired"),
        _ => Err("not supported"),
    })
}

async fn exactly<const N: usize>(io: &mut BoxIo) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Reads up to and with the empty line; gives what stood behind it, too.
async fn head(io: &mut BoxIo) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(512);
    loop {
        if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((bytes, rest));
        }
        if bytes.len() > MAX_HEAD {
            return Err(io::Error::other("an answer without end"));
        }
        if io.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::other(if bytes.is_empty() {
                "nothing, and hung up".to_owned()
            } else {
                format!("half an answer: {}", String::from_utf8_lossy(&bytes))
            }));
        }
    }
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.parse().ok()
}

fn basic(proxy: &OutboundProxy) -> Option<Zeroizing<String>> {
    if !matches!(proxy.auth, ProxyAuth::Auto | ProxyAuth::Basic) {
        return None;
    }
    let user = proxy.username.as_deref()?;
    let password = proxy.password.as_ref().map_or("", |secret| secret.expose());
    let pair = Zeroizing::new(format!("{user}:{password}"));
    Some(Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes())))
}

/// Host and port as they stand in a CONNECT request.
fn target(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Host and port of the proxy, for messages.
pub fn proxy_name(proxy: &OutboundProxy) -> String {
    format!("{}:{}", proxy.url.host_str().unwrap_or("?"), proxy_port(proxy))
}

/// Where the proxy itself is dialled.
pub fn proxy_address(proxy: &OutboundProxy) -> (&str, u16) {
    (proxy.url.host_str().unwrap_or_default(), proxy_port(proxy))
}

/// The proxy's port; 1080 for SOCKS, else the scheme's.
pub fn proxy_port(proxy: &OutboundProxy) -> u16 {
    proxy.url.port_or_known_default().unwrap_or(1080)
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
    use crate::config::model::UseFor;
    use crate::secret::Secret;

    fn proxy(user: Option<&str>) -> OutboundProxy {
        OutboundProxy {
            url: "http://proxy.example:3128".parse().unwrap(),
            username: user.map(str::to_owned),
            password: user.map(|_| Secret::new("open sesame")),
            auth: ProxyAuth::Auto,
            use_for: UseFor { identity: true, ews: true, mail: true },
            no_proxy: Vec::new(),
        }
    }

    /// Plays the proxy: answers `answer` to one request; what it was asked.
    async fn ask(proxy: OutboundProxy, answer: &'static [u8]) -> (Result<BoxIo, UpstreamError>, String) {
        let (near, mut far) = tokio::io::duplex(4096);
        let other = tokio::spawn(async move {
            let mut asked = vec![0; 4096];
            let n = far.read(&mut asked).await.unwrap();
            asked.truncate(n);
            far.write_all(answer).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        let result = connect(Box::new(near), &proxy, "smtp.office365.com", 587).await;
        (result, other.await.unwrap())
    }

    #[tokio::test]
    async fn a_greeting_behind_the_answer_is_not_lost() {
        let (io, asked) = ask(proxy(None), b"HTTP/1.0 200 OK\r\nVia: x\r\n\r\n220 hello\r\n").await;
        let mut greeting = [0; 11];
        io.unwrap().read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 hello\r\n");
        assert!(
            asked.starts_with("CONNECT smtp.office365.com:587 HTTP/1.1\r\nHost: smtp.office365.com:587\r\n")
        );
        assert!(!asked.contains("Proxy-Authorization"));
    }

    #[tokio::test]
    async fn basic_is_sent_and_a_407_names_what_is_offered() {
        let (io, asked) = ask(
            proxy(Some("svc")),
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate: Negotiate\r\n\r\n",
        )
        .await;
        assert!(asked.contains("\r\nProxy-Authorization: Basic c3ZjOm9wZW4gc2VzYW1l\r\n"));
        let Err(UpstreamError::ProxyRefused { status: 407, offers, .. }) = io.map(drop) else { panic!() };
        assert_eq!(offers, "NTLM, Negotiate");
    }

    #[tokio::test]
    async fn an_endless_head_and_a_page_are_refused() {
        for answer in [&b"<html>please sign in</html>\r\n\r\n"[..], b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 20"] {
            let (io, _) = ask(proxy(None), answer).await;
            assert!(matches!(io.map(drop), Err(UpstreamError::ProxyBroken { .. })));
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
        let result = socks5(Box::new(near), &proxy(Some("svc")), "smtp.office365.com", 587).await.map(drop);
        other.await.unwrap();
        let Err(UpstreamError::ProxyRefused { reply, .. }) = result else { panic!() };
        assert_eq!(reply, "not allowed by its rules");
    }
}
