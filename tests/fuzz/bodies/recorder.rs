//! The recorder of failed sessions (`src/serve/recorder.rs`, `censor.rs`), beside dialogues that really take place:
//! whatever is said and however it comes in, no password and no token is in the recording, nor its base64.
//!
//! The password stands where passwords stand: an order puts in a whole command that holds it, on a line of its own.
//! Everything else is the fuzzer's.
//!
//! Orders towards a front: `1` … `9` a command with the password · `S` TLS is up · `r` `u` `t` `c` `l` a refusal ·
//! `h` `d` `f` hang up · towards a back as in [`backs`](super::backs).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mailkey::config::model::Protocol;
use mailkey::protocol::machine::{Back, SignIn, Step};
use mailkey::secret::Encrypted;
use mailkey::serve::recorder::{Heading, Recorder, Recordings, Tape, report};

use super::backs::{TOKEN, back};
use super::fronts::{front, hang_up, refusal};
use super::script::{PASSWORD, Piece, Script, USER, holds, slices, unbase64};

/// The body. The highest bit of the first octet says whether upstream is spoken to.
pub fn run(data: &[u8]) {
    let script: Script<4> = Script::read(data);
    // a secret that nobody has yet: put in by no order of this target's, nor made by how octets are written down
    let octets = script.octets();
    let escaped = escaped(&octets);
    if [PASSWORD, TOKEN].iter().any(|secret| is_said(&octets, secret) || is_said(&escaped, secret)) {
        return;
    }
    for slicing in [None, Some(script.settings[2])] {
        let text = if script.settings[0] & 128 == 0 {
            with_mail_client(&script, slicing)
        } else {
            with_upstream(&script, slicing)
        };
        for secret in [PASSWORD, TOKEN] {
            assert!(!is_said(text.as_bytes(), secret), "recorded: {text}");
        }
        let controls = text.chars().any(|c| c.is_control() && c != '\n');
        assert!(!controls && text.len() <= 96 * 1024, "{text:?}");
    }
}

/// Whether the text holds the secret, in base64 or not.
fn is_said(text: &[u8], secret: &str) -> bool {
    holds(text, secret)
        || text
            .split(|octet| !octet.is_ascii_alphanumeric() && !b"+/=".contains(octet))
            .filter(|word| word.len() >= secret.len())
            .filter_map(unbase64)
            .any(|decoded| holds(&decoded, secret))
}

/// Octets as a transcript has them: the last digit of `\xa1` reads on in what follows.
fn escaped(octets: &[u8]) -> Vec<u8> {
    let written = |octet: &u8| match octet {
        b' '..=b'~' => char::from(*octet).to_string(),
        _ => format!("\\x{octet:02x}"),
    };
    octets.iter().map(written).collect::<String>().into_bytes()
}

/// A command with the password, in all the forms that clients have for it.
fn command(order: u8, protocol: Protocol) -> Option<String> {
    let octets = PASSWORD.len();
    let plain = STANDARD.encode(format!("\0{USER}\0{PASSWORD}"));
    let (user64, password64) = (STANDARD.encode(USER), STANDARD.encode(PASSWORD));
    Some(match (protocol, order) {
        (Protocol::Imap, b'1') => format!("a LOGIN {USER} {PASSWORD}\r\n"),
        (Protocol::Imap, b'2') => format!("a login \"{USER}\" \"{PASSWORD}\"\r\n"),
        (Protocol::Imap, b'3') => format!("a LOGIN {USER} {{{octets}}}\r\n{PASSWORD}\r\n"),
        (Protocol::Imap, b'4') => {
            format!("a LOGIN {{{}+}}\r\n{USER} {{{octets}+}}\r\n{PASSWORD}\r\n", USER.len())
        }
        (Protocol::Imap, b'5') => format!("a AUTHENTICATE PLAIN\r\n{plain}\r\n"),
        (Protocol::Imap, b'6') => format!("a authenticate plain {plain}\r\n"),
        (Protocol::Imap, b'7') => format!("a AUTHENTICATE LOGIN\r\n{user64}\r\n{password64}\r\n"),
        (Protocol::Imap, b'8') => format!("a LOGIN {USER} \"{PASSWORD}\n"),
        (Protocol::Pop3, b'1') => format!("USER {USER}\r\nPASS {PASSWORD}\r\n"),
        (Protocol::Pop3, b'2') => format!("pass {PASSWORD} {PASSWORD}\n"),
        (Protocol::Pop3, b'3') => format!("APOP {USER} {PASSWORD}\r\n"),
        (_, b'5') => format!("AUTH PLAIN\r\n{plain}\r\n"),
        (_, b'6') => format!("auth plain {plain}\r\n"),
        (_, b'7') => format!("AUTH LOGIN\r\n{user64}\r\n{password64}\r\n"),
        (_, b'8') => format!("AUTH LOGIN {user64}\r\n{password64}\r\n"),
        (_, b'9') => format!("{PASSWORD}\r\n"),
        (_, b'4') => format!("AUTH XOAUTH2 {plain}\r\n"),
        _ => return None,
    })
}

fn heading() -> Heading {
    let peer = std::net::Ipv4Addr::LOCALHOST.into();
    Heading { listener: "a".to_owned(), peer, began: jiff::Timestamp::UNIX_EPOCH }
}

fn with_mail_client(script: &Script<4>, slicing: Option<u8>) -> String {
    let recordings = Arc::new(Recordings::default());
    let (mut machine, settings) = front(script.settings);
    let protocol =
        [Protocol::Imap, Protocol::Pop3, Protocol::Smtp, Protocol::Smtp][usize::from(script.settings[0] % 4)];
    let mut recorder = Recorder::new(Arc::clone(&recordings), 7, protocol, heading(), settings);
    let (mut asking, mut upgrading, mut ended) = (false, false, false);
    let mut begun = true;
    for piece in [Piece::Order(b' ')].iter().chain(&script.pieces) {
        let octets = match piece {
            // what a literal announces as a user name is shown, whatever it is
            Piece::Octets(octets) => {
                octets.iter().map(|octet| if *octet == b'{' { b'(' } else { *octet }).collect()
            }
            // on a line of its own
            Piece::Order(order) => command(*order, protocol)
                .map(|command| format!("{}{command}", if begun { "" } else { "\r\n" }).into_bytes())
                .unwrap_or_default(),
        };
        let order = match piece {
            Piece::Order(order) if octets.is_empty() => *order,
            Piece::Order(_) | Piece::Octets(_) => b' ',
        };
        if upgrading && order == b'S' {
            upgrading = false;
            machine.secured();
            recorder.front.note(">  secured");
        } else if let (true, Some(why)) = (asking, refusal(order)) {
            asking = false;
            recorder.refused(&why, "CODE");
            machine.refuse(&why);
        } else if let (false, Some(why)) = (ended, hang_up(order)) {
            recorder.hung_up(&why);
            machine.hang_up(why);
            asking = false;
        }
        begun = octets.is_empty() && begun || octets.ends_with(b"\n");
        let pieces = slicing.map_or_else(|| vec![&octets[..]], |pattern| slices(&octets, pattern));
        for piece in pieces.into_iter().chain([&b""[..]]) {
            if ended || upgrading {
                break;
            }
            if !piece.is_empty() {
                recorder.front.heard(piece);
                machine.feed(piece);
            }
            loop {
                match machine.step() {
                    Step::Read => break,
                    Step::Write(written) => recorder.front.said(&written),
                    Step::StartTls => {
                        recorder.front.note("=  starttls");
                        upgrading = true;
                    }
                    Step::Close(farewell) => {
                        recorder.failed(farewell.as_str());
                        ended = true;
                    }
                    Step::Done(login) => {
                        recorder.login(&login);
                        asking = true;
                    }
                }
            }
        }
    }
    finished(recorder, &recordings)
}

fn with_upstream(script: &Script<4>, slicing: Option<u8>) -> String {
    let recordings = Arc::new(Recordings::default());
    let [which, token, cut, _] = script.settings;
    let (mut machine, sign_in) = back([which, token, cut]);
    let protocol = [Protocol::Imap, Protocol::Pop3, Protocol::Smtp, Protocol::Smtp][usize::from(which % 4)];
    let (_, settings) = front([0; 4]);
    let mut recorder = Recorder::new(Arc::clone(&recordings), 7, protocol, heading(), settings);
    let starttls = which & 4 != 0;
    let tape = recorder.back(&sign_in, starttls, which >> 4 & 3 == 2);
    if !starttls {
        machine.secured(Encrypted::pretend());
        tape.note(">  secured");
    }
    let (mut upgrading, mut ended) = (false, false);
    let mut last_words = Vec::new();
    for piece in [Piece::Order(b' ')].iter().chain(&script.pieces) {
        let octets = match piece {
            Piece::Octets(octets) => octets.clone(),
            Piece::Order(b'e') => last_words.clone(),
            Piece::Order(b'E') => presented(&sign_in, &last_words),
            Piece::Order(order) => {
                if *order == b'S' && upgrading {
                    upgrading = false;
                    machine.secured(Encrypted::pretend());
                    tape.note(">  secured");
                } else if *order == b'i' && machine.waits() {
                    machine.sign_in(sign_in.clone());
                }
                Vec::new()
            }
        };
        let pieces = slicing.map_or_else(|| vec![&octets[..]], |pattern| slices(&octets, pattern));
        for piece in pieces.into_iter().chain([&b""[..]]) {
            if ended {
                break;
            }
            if !piece.is_empty() {
                tape.heard(piece);
                machine.feed(piece);
            }
            ended = carry_out(machine.as_mut(), tape, &mut upgrading, &mut last_words);
        }
    }
    finished(recorder, &recordings)
}

/// The token, where upstream has it.
fn presented(sign_in: &SignIn, last_words: &[u8]) -> Vec<u8> {
    if last_words.len() > sign_in.token.len() { sign_in.token.for_safekeeping().into() } else { Vec::new() }
}

/// All steps of a back; whether it came to its end.
fn carry_out(
    machine: &mut dyn Back,
    tape: &mut Tape,
    upgrading: &mut bool,
    last_words: &mut Vec<u8>,
) -> bool {
    loop {
        match machine.step() {
            Step::Read => return false,
            Step::Write(written) => {
                tape.said(&written);
                *last_words = written;
            }
            Step::StartTls => {
                tape.note("=  starttls");
                *upgrading = true;
            }
            Step::Close(_) => return true,
            Step::Done(outcome) => {
                if let Err(error) = outcome {
                    for line in report(&error) {
                        tape.note(&line);
                    }
                }
                return true;
            }
        }
    }
}

fn finished(mut recorder: Recorder, recordings: &Recordings) -> String {
    recorder.failed("the end");
    recorder.settle();
    recordings.all()[0].text.clone()
}
