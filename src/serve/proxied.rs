//! The PROXY protocol: behind a load balancer, the first bytes of a connection say who is really there.
//!
//! Only addresses of `proxy-protocol-from` are asked for it, and they have to send it: whoever else begins so is
//! taken at his word by nobody. Not an octet behind the header is read. Checksums and other extensions (TLV) of
//! version 2 are passed over.
//!
//! Source: "The PROXY protocol, versions 1 & 2" (HAProxy, doc/proxy-protocol.txt).

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest header of version 1, its CRLF included (§2.1).
const MAX_TEXT: usize = 107;

/// The longest header of version 2 that is read, without its first 16 octets: addresses and extensions.
const MAX_BINARY: usize = 2048;

/// How version 2 begins (§2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It hung up, or broke: load balancers do so to see whether somebody listens.
    #[error("no PROXY header came: {0}")]
    Broken(#[from] io::Error),
    /// No header.
    #[error("expected a PROXY header, got something else")]
    Missing,
    /// Half a header, or one that contradicts itself.
    #[error("the PROXY header cannot be read: {0}")]
    Malformed(&'static str),
}

/// Reads the header. `None`: the load balancer speaks for itself (a health check), or does not know who is there.
///
/// # Errors
/// There is none, or none that could be read.
pub async fn real_peer<R: AsyncRead + Unpin>(io: &mut R) -> Result<Option<SocketAddr>, HeaderError> {
    let mut head = [0; 12];
    // Both versions are longer than this, whatever they hold.
    io.read_exact(&mut head).await?;
    if head == *SIGNATURE {
        binary(io).await
    } else if head.starts_with(b"PROXY ") {
        text(io, &head).await
    } else {
        Err(HeaderError::Missing)
    }
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 143`.
async fn text<R: AsyncRead + Unpin>(io: &mut R, head: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let mut line = head.to_vec();
    // One octet at a time: what follows belongs to the client's own talk, perhaps to TLS.
    while !line.ends_with(b"\r\n") {
        if line.len() >= MAX_TEXT {
            return Err(HeaderError::Malformed("the line does not end"));
        }
        line.push(io.read_u8().await?);
    }
    let line = std::str::from_utf8(&line).map_err(|_| HeaderError::Malformed("the line is no text"))?;
    let fields: Vec<&str> = line.trim_end_matches("\r\n").split(' ').collect();
    let (family, source, port) = match fields.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", family, source, _to, port, _to_port] => (*family, *source, *port),
        _ => return Err(HeaderError::Malformed("expected four addresses and ports")),
    };
    let address: IpAddr = source.parse().map_err(|_| HeaderError::Malformed("expected an address"))?;
    let port: u16 = port.parse().map_err(|_| HeaderError::Malformed("expected a port"))?;
    match (family, address) {
        ("TCP4", IpAddr::V4(_)) | ("TCP6", IpAddr::V6(_)) => Ok(Some(SocketAddr::new(address, port))),
        _ => Err(HeaderError::Malformed("expected TCP4 or TCP6 and an address of that kind")),
    }
}

/// Version 2, behind its signature.
async fn binary<R: AsyncRead + Unpin>(io: &mut R) -> Result<Option<SocketAddr>, HeaderError> {
    let (command, family) = (io.read_u8().await?, io.read_u8().await?);
    let length = usize::from(io.read_u16().await?);
    if length > MAX_BINARY {
        return Err(HeaderError::Malformed("it is too long"));
    }
    let mut rest = vec![0; length];
    io.read_exact(&mut rest).await?;
    match command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(HeaderError::Malformed("expected version 2, and LOCAL or PROXY")),
    }
    let mut rest = rest.as_slice();
    match family {
        0x11 => {
            let (source, _to, port) = (rest.read_u32().await, rest.read_u32().await, rest.read_u16().await);
            address(source.map(|bits| IpAddr::V4(bits.into())), port)
        }
        0x21 => {
            let (source, _to, port) = (rest.read_u128().await, rest.read_u128().await, rest.read_u16().await);
            address(source.map(|bits| IpAddr::V6(bits.into())), port)
        }
        // Unspecified, or a Unix socket: nobody that we could name.
        0x00 | 0x31 => Ok(None),
        _ => Err(HeaderError::Malformed("expected TCP")),
    }
}

fn address(ip: io::Result<IpAddr>, port: io::Result<u16>) -> Result<Option<SocketAddr>, HeaderError> {
    match (ip, port) {
        (Ok(ip), Ok(port)) => Ok(Some(SocketAddr::new(ip, port))),
        _ => Err(HeaderError::Malformed("the addresses are cut off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> (Result<Option<SocketAddr>, HeaderError>, Vec<u8>) {
        let mut rest = bytes;
        let peer = real_peer(&mut rest).await;
        (peer, rest.to_vec())
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE.as_slice(), &[command, family], &length, body].concat()
    }

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_the_rest() {
        let mut v4 = vec![192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 0, 143];
        v4.extend([0x03, 0, 4, 1, 2, 3, 4]); // a checksum, passed over
        let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 16], &[0, 80, 0, 143]]
            .concat();
        for (header, peer) in [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 143\r\n".to_vec(), Some("192.0.2.1:56324")),
            (b"PROXY TCP6 2001:db8::1 ::1 80 143\r\n".to_vec(), Some("[2001:db8::1]:80")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("192.0.2.1:56324")),
            (v2(0x21, 0x21, &v6), Some("[2001:db8::1]:80")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x21, 0x31, &[0; 216]), None),
        ] {
            let (got, rest) = read(&[header.as_slice(), b"a NOOP\r\n"].concat()).await;
            assert_eq!(got.unwrap(), peer.map(|peer| peer.parse().unwrap()), "{header:?}");
            assert_eq!(rest, b"a NOOP\r\n", "{header:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_no_client() {
        let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let mut long = v2(0x21, 0x11, &[]);
        long.splice(14.., [0xff, 0xff]);
        for bad in [
            b"a LOGIN alice secret\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 99999 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
            endless,
            v2(0x11, 0x11, &[0; 12]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x11, &[0; 7]),
            long,
            b"PROXY".to_vec(),
        ] {
            assert!(read(&bad).await.0.is_err(), "{bad:?}");
        }
    }
}
