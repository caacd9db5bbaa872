//! The grammars, SASL and the PROXY header: what they read is part of what stood there, what is strict is strict, and
//! what is written can be read back by somebody else.

use mailkey::protocol::imap::grammar as imap;
use mailkey::protocol::machine::{SaslMechanism, SignIn};
use mailkey::protocol::pop3::grammar as pop3;
use mailkey::protocol::smtp::grammar as smtp;
use mailkey::protocol::{foreign, sasl};
use mailkey::secret::{AccessToken, Encrypted};
use mailkey::serve::proxied;

use super::script::{Script, is_one_line, unbase64};

/// The body. The first octet says which of them; the rest is one line, or what a connection begins with.
pub fn run(data: &[u8]) {
    let script: Script<1> = Script::read(data);
    let octets = script.octets();
    match script.settings[0] % 6 {
        0 => imap(&octets),
        1 => pop3(&octets),
        2 => smtp(&octets),
        3 => sasl(&octets),
        4 => bearer(&octets, script.settings[0] & 64 != 0),
        _ => proxy_header(&octets),
    }
}

fn is_part(of: &[u8], part: &[u8]) -> bool {
    part.is_empty() || of.windows(part.len()).any(|window| window == part)
}

fn imap(line: &[u8]) {
    if let Ok((rest, tag)) = imap::tag(line) {
        assert_eq!([tag, rest].concat(), line);
        assert!(!tag.is_empty() && tag.len() <= imap::MAX_TAG && !tag.contains(&b'+'));
        assert!(tag.iter().all(u8::is_ascii_graphic), "{tag:?} is repeated");
    }
    if let Ok((rest, imap::Command::Authenticate { mechanism, initial })) = imap::command(line) {
        assert!(rest.is_empty());
        assert!(is_one_line(&mechanism, line.len()));
        assert!(initial.is_none_or(|initial| is_part(line, &initial) && !initial.contains(&b' ')));
    }
    if let Some(literal) = imap::announced_at_end(line) {
        let text = String::from_utf8_lossy(line).into_owned();
        let inside = text.rsplit_once('{').expect("no brace").1.strip_suffix('}').expect("no end");
        let digits = inside.strip_suffix('+').unwrap_or(inside);
        assert_eq!(literal.synchronising, digits.len() == inside.len());
        let octets = digits.parse::<u128>().map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
        assert_eq!(literal.octets, octets, "{inside}");
    }
    let said = match imap::response(line) {
        Ok((_, imap::Response::Tagged { tag, status })) => Some((tag, status)),
        Ok((_, imap::Response::Untagged(status))) => Some((&b""[..], status)),
        _ => None,
    };
    if let Some((tag, status)) = said {
        assert!(is_part(line, tag) && is_part(line, status));
        if let Ok((_, (_, code))) = imap::status(status) {
            assert!(is_part(status, code));
            if let Ok((_, list)) = imap::capabilities(code) {
                assert!(list.iter().all(|entry| is_one_line(entry, line.len()) && !entry.contains(' ')));
            }
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others carry nothing of the line")]
fn pop3(line: &[u8]) {
    match pop3::command(line) {
        pop3::Command::User(name) => assert!(is_part(line, name)),
        pop3::Command::Pass(password) => {
            assert!(line[..4].eq_ignore_ascii_case(b"PASS"));
            // without its blank it is empty
            assert_eq!(
                [&b" "[..], password].concat(),
                [&line[4..], if line.len() == 4 { b" " } else { b"" }].concat()
            );
        }
        pop3::Command::Auth { mechanism, initial } => {
            assert!(is_part(line, mechanism) && initial.is_none_or(|initial| is_part(line, initial)));
        }
        _ => {}
    }
    let begins = |with: &[u8]| line.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    match pop3::reply(line) {
        pop3::Reply::Ok(text) => assert!(begins(b"+OK") && line.ends_with(text)),
        pop3::Reply::Err(text) => assert!(begins(b"-ERR") && line.ends_with(text)),
        pop3::Reply::Continue(text) => assert!(begins(b"+") && !begins(b"+OK") && line.ends_with(text)),
        pop3::Reply::Unknown => {}
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others carry nothing of the line")]
fn smtp(line: &[u8]) {
    match smtp::command(line) {
        smtp::Command::Ehlo(name) | smtp::Command::Helo(name) => {
            assert!(is_part(line, name) && !name.is_empty());
        }
        smtp::Command::Auth { mechanism, initial } => {
            assert!(is_part(line, mechanism) && initial.is_none_or(|initial| is_part(line, initial)));
        }
        smtp::Command::Bdat(chunk) => {
            let text = String::from_utf8_lossy(line).to_ascii_uppercase();
            let words: Vec<&str> = text.split_ascii_whitespace().collect();
            assert_eq!(words[0], "BDAT");
            assert_eq!(words[1].parse(), Ok(chunk.octets));
            assert_eq!(words.get(2).copied(), chunk.last.then_some("LAST"));
        }
        _ => {}
    }
    if let Some(reply) = smtp::reply_line(line) {
        assert_eq!(String::from_utf8_lossy(&line[..3]), reply.code.to_string());
        assert!((200..600).contains(&reply.code) && line.ends_with(reply.text));
        assert_eq!(reply.last, line.get(3) != Some(&b'-'));
    }
    if let Some(sender) = smtp::sender(line) {
        assert!(is_part(line, sender) && !sender.contains(&b'>'));
    }
    if let Ok(name) = std::str::from_utf8(line)
        && smtp::is_client_name(name)
    {
        assert!(is_one_line(name, 255) && !name.is_empty(), "{name:?} is repeated upstream");
        assert!(!name.contains([' ', '<', '>', '"', '@']), "{name:?} is repeated upstream");
    }
    if foreign::is_line(line) {
        let word = line.split(|octet| *octet == b' ' || *octet == b'-').next().unwrap_or_default();
        assert!(![&b"EHLO"[..], b"HELO", b"AUTH", b"MAIL", b"USER", b"PASS", b"DATA"].contains(&word));
    }
}

fn sasl(response: &[u8]) {
    if let Some(decoded) = sasl::decode(response) {
        let text = std::str::from_utf8(response).expect("base64 is ASCII");
        let bare = text.trim_end_matches('=');
        assert!(text.len() - bare.len() <= 2, "padding without end");
        // canonical: there is one way to write these octets, with its padding or without
        assert_eq!(sasl::encode(&decoded).trim_end_matches('='), bare);
    }
    if let Some(credentials) = sasl::plain(response) {
        let message = unbase64(response).expect("no base64");
        let parts: Vec<&[u8]> = message.split(|octet| *octet == 0).collect();
        assert_eq!(parts.len(), 3);
        assert!(parts[0].is_empty() || parts[0] == parts[1], "somebody else is acted for");
        assert!(!credentials.user.is_empty() && !credentials.user.chars().any(char::is_control));
        assert!(!credentials.password.expose().is_empty());
    }
    let told = sasl::challenge(response);
    assert!(is_one_line(&told, 500), "{told:?}");
}

/// What goes upstream has exactly the fields that it is made of.
fn bearer(mailbox: &[u8], oauthbearer: bool) {
    let Ok(mailbox) = std::str::from_utf8(mailbox) else { return };
    // what Credentials and the configuration let through
    if mailbox.chars().any(char::is_control) || mailbox.is_empty() {
        return;
    }
    let sign_in = SignIn {
        mailbox: mailbox.to_owned(),
        token: AccessToken::new("EwToken"),
        mechanism: if oauthbearer { SaslMechanism::OauthBearer } else { SaslMechanism::Xoauth2 },
        client_name: "client.example".to_owned(),
        host: "outlook.office365.com".to_owned(),
        port: 993,
    };
    let message = sasl::bearer(&sign_in, &Encrypted::pretend());
    assert!(!message.contains(['\r', '\n']), "a line that is folded");
    let message = String::from_utf8(unbase64(message.as_bytes()).expect("no base64")).unwrap();
    let fields: Vec<&str> = message.split('\u{1}').collect();
    if oauthbearer {
        let identity = fields[0].strip_prefix("n,a=").and_then(|rest| rest.strip_suffix(',')).unwrap();
        assert!(!identity.contains(','), "an identity that ends early");
        assert_eq!(identity.replace("=2C", ",").replace("=3D", "="), mailbox);
        let rest = ["host=outlook.office365.com", "port=993", "auth=Bearer EwToken", "", ""];
        assert_eq!(fields[1..], rest);
    } else {
        assert_eq!(fields, [format!("user={mailbox}").as_str(), "auth=Bearer EwToken", "", ""]);
    }
}

/// Not an octet behind the header is read, and who is named stands in it.
fn proxy_header(octets: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut left = octets;
    let Ok(peer) = runtime.block_on(proxied::real_peer(&mut left)) else { return };
    let header = &octets[..octets.len() - left.len()];
    if header.starts_with(b"PROXY ") {
        assert!(header.ends_with(b"\r\n") && header.len() <= 107, "{header:?}");
        let text = std::str::from_utf8(header).expect("no text").trim_end();
        let words: Vec<&str> = text.split(' ').collect();
        if let Some(peer) = peer {
            assert_eq!(words[2].parse(), Ok(peer.ip()));
            assert_eq!(words[4].parse(), Ok(peer.port()));
            assert_eq!(words[1] == "TCP4", peer.is_ipv4());
        } else {
            assert_eq!(words[1], "UNKNOWN");
        }
    } else {
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        assert_eq!(header.len(), 16 + length);
        match peer {
            Some(std::net::SocketAddr::V4(peer)) => {
                assert_eq!((header[12], header[13]), (0x21, 0x11));
                assert_eq!(peer.ip().octets(), header[16..20]);
                assert_eq!(peer.port().to_be_bytes(), header[24..26]);
            }
            Some(std::net::SocketAddr::V6(peer)) => {
                assert_eq!((header[12], header[13]), (0x21, 0x21));
                assert_eq!(peer.ip().octets(), header[16..32]);
                assert_eq!(peer.port().to_be_bytes(), header[48..50]);
            }
            None => assert!(header[12] == 0x20 || [0x00, 0x31].contains(&header[13])),
        }
    }
}
