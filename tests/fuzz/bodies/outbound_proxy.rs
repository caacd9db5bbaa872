//! What a corporate proxy says (`src/upstream/tunnel.rs`, `ntlm.rs`): CONNECT answers, SOCKS5, NTLM challenges.
//!
//! - Every slicing gives the same answer and the same tunnel, which is exactly what stood behind the head.
//! - What is told of it is one printable line without our credentials; what is read of it has a bound.
//! - An AUTHENTICATE message is whole, of a bounded length, and does not hold the password.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use mailkey::stream::BoxIo;
use mailkey::upstream::ntlm::{Fresh, Who, authenticate, negotiate};
use mailkey::upstream::tunnel::{Answer, Line, SocksSignIn, socks5};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::script::{PASSWORD, Script, holds, is_one_line, slices};

/// A head, a body, and what is read ahead.
const MOST_READ: usize = 32 * 1024 + 64 * 1024 + 64 * 1024;

/// The body. The first octet says which of them, the second how the rest is cut.
pub fn run(data: &[u8]) {
    let script: Script<2> = Script::read(data);
    let [which, slicing] = script.settings;
    let octets = script.octets();
    match which % 4 {
        0 | 1 => connect(&octets, slicing),
        2 => socks(&octets, which, slicing),
        _ => ntlm(&octets),
    }
}

/// A peer that has said everything already, and hears whatever it is told.
struct Peer {
    says: Vec<Vec<u8>>,
    said: usize,
}

impl Peer {
    fn io(octets: &[u8], slicing: Option<u8>) -> BoxIo {
        let pieces = slicing.map_or_else(|| vec![octets], |pattern| slices(octets, pattern));
        let says = pieces.into_iter().filter(|piece| !piece.is_empty()).map(<[u8]>::to_vec).collect();
        Box::new(Self { says, said: 0 })
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = self.said;
        if let Some(piece) = self.says.get_mut(said) {
            let count = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..count]);
            piece.drain(..count);
            self.said += usize::from(self.says[said].is_empty());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

fn connect(octets: &[u8], slicing: u8) {
    let ask = |slicing| {
        runtime().block_on(async move {
            let mut line = Line::new(Peer::io(octets, slicing));
            let answer = line.ask("smtp.office365.com:587", Some(&format!("Basic {PASSWORD}"))).await;
            let answer = answer.map_err(|error| error.to_string());
            let mut rest = Vec::new();
            line.into_tunnel().read_to_end(&mut rest).await.unwrap();
            (answer, rest)
        })
    };
    let (whole, rest) = ask(None);
    let (cut, same_rest) = ask(Some(slicing));
    let facts = |answer: &Result<Answer, String>| match answer {
        Ok(answer) => {
            let Answer { status, reply, challenges, reusable, page } = answer;
            Ok((*status, reply.clone(), format!("{challenges:?}"), *reusable, *page))
        }
        // how much of half an answer is shown hangs on how it came
        Err(_) => Err(()),
    };
    // a page's title is looked for in what is there by then
    let without_title = |facts: Result<(u16, String, String, bool, bool), ()>| {
        facts.map(|(status, reply, challenges, reusable, page)| {
            let reply = reply.split(", page `").next().unwrap_or_default().to_owned();
            (status, reply, challenges, reusable, page)
        })
    };
    assert_eq!(without_title(facts(&whole)), without_title(facts(&cut)), "the slicing shows");
    match whole {
        Ok(answer) => {
            assert!(is_one_line(&answer.reply, 300), "{:?}", answer.reply);
            assert!(answer.challenges.iter().all(|one| is_one_line(&one.scheme, 40)));
            if (200..300).contains(&answer.status) {
                let head = octets.windows(4).position(|four| four == b"\r\n\r\n").expect("no head");
                assert_eq!(rest, octets[head + 4..], "the tunnel has lost octets");
                assert_eq!(same_rest, rest, "the slicing shows in the tunnel");
            }
            let read = octets.len() - rest.len().min(octets.len());
            assert!(read <= MOST_READ, "{read} octets were read");
        }
        Err(told) => assert!(is_one_line(&told, 300), "{told:?}"),
    }
}

fn socks(octets: &[u8], which: u8, slicing: u8) {
    let sign_in = match which / 4 % 3 {
        0 => None,
        optional => Some(SocksSignIn { user: "svc", password: PASSWORD, optional: optional == 1 }),
    };
    let ask = |slicing| {
        runtime().block_on(async move {
            let mut io = Peer::io(octets, slicing);
            let answer = socks5(&mut io, sign_in, "smtp.office365.com", 587).await;
            let mut rest = Vec::new();
            io.read_to_end(&mut rest).await.unwrap();
            (answer.map_err(|error| error.to_string()), rest)
        })
    };
    let (answer, rest) = ask(None);
    let (cut, same_rest) = ask(Some(slicing));
    assert_eq!((&answer, &rest), (&cut, &same_rest), "the slicing shows");
    match answer {
        Ok(Ok(())) => {
            // version and method, perhaps a sign-in, version, reply, reserved, address, port
            let signed_in = octets[1] == 2;
            assert!(octets[0] == 5 && (octets[1] == 0 || (signed_in && sign_in.is_some() && octets[3] == 0)));
            let head = &octets[if signed_in { 4 } else { 2 }..];
            assert_eq!(head[1], 0, "connected in spite of an error");
            let address = match head[3] {
                1 => 4,
                4 => 16,
                _ => usize::from(head[4]) + 1,
            };
            assert_eq!(rest, head[4 + address + 2..], "the tunnel has lost octets");
        }
        Ok(Err(_)) => {}
        Err(told) => assert!(is_one_line(&told, 200) && !holds(told.as_bytes(), PASSWORD), "{told}"),
    }
}

fn ntlm(challenge: &[u8]) {
    let fresh = Fresh { client_challenge: [7; 8], now: jiff::Timestamp::from_second(1_790_000_000).unwrap() };
    let who = Who::parse("CONTOSO\\svc-mail");
    let spn = "HTTP/proxy.contoso.com";
    let Ok(message) = authenticate(&negotiate(), challenge, who, PASSWORD, spn, fresh) else { return };
    assert!(challenge.starts_with(b"NTLMSSP\0\x02\0\0\0"), "an answer to no challenge");
    assert!(message.starts_with(b"NTLMSSP\0\x03\0\0\0"));
    assert!(message.len() <= challenge.len() + 600, "{} octets", message.len());
    let utf16: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(!holds(&message, PASSWORD) && !message.windows(utf16.len()).any(|window| window == utf16));
    // each of the six fields lies within the message, behind its head
    for field in 0..6 {
        let place = &message[12 + field * 8..20 + field * 8];
        let length = usize::from(u16::from_le_bytes([place[0], place[1]]));
        let at = u32::from_le_bytes([place[4], place[5], place[6], place[7]]) as usize;
        assert!(at >= 64 && at + length <= message.len(), "field {field}");
    }
    let user: Vec<u8> = "svc-mail".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(message.windows(user.len()).any(|window| window == user), "nobody signs in");
}
