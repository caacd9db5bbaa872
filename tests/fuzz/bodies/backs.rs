//! The dialogues with upstream (`src/protocol/*/back.rs`), against what must hold whatever it says.
//!
//! - Every slicing gives the same steps and the same rest, and the rest is the very end of what was sent.
//! - No token is in anything that is written before TLS is up, or when nobody was to be signed in.
//! - It lets us in only where upstream has taken the token; what it tells the log is one printable line, without
//!   the token even where upstream repeats it; what is offered can be said to a mail client.
//! - What is written is bounded, every feed comes to `Read`, nothing happens after the outcome.
//!
//! Orders: `S` TLS is up · `i` `I` sign in after a wait · `d` dismiss · `e` upstream repeats our last words ·
//! `E` upstream says the token · others end a segment.

use mailkey::protocol::imap::ImapBack;
use mailkey::protocol::machine::{Back, BackError, Errand, SaslMechanism, SignIn, Step, Welcome};
use mailkey::protocol::pop3::Pop3Back;
use mailkey::protocol::smtp::SmtpBack;
use mailkey::secret::{AccessToken, Encrypted};

use super::script::{Piece, Script, holds, is_one_line, slices, unbase64};

/// How every token here begins; not a word of it is said by accident.
pub const TOKEN: &str = "EwMarker0fAnAccessToken7731Qx";

/// The body.
pub fn run(data: &[u8]) {
    let script: Script<3> = Script::read(data);
    if holds_token(&script.octets()) {
        // nobody can say it before it was presented but the fuzzer; orders repeat it
        return;
    }
    let whole = Play::new(&script).run(&script, None);
    let cut = Play::new(&script).run(&script, Some(script.settings[2]));
    assert_eq!(whole, cut, "the slicing shows");
}

/// A back for the settings of a script, and whom it can sign in; the same for the recorder's target.
pub fn back(settings: [u8; 3]) -> (Box<dyn Back>, SignIn) {
    let [which, token, _] = settings;
    let longer = ["", "-a-bit-longer", "-long", "-very-long"][usize::from(token % 4)];
    let repeated = [0, 1, 400, 1_500][usize::from(token % 4)];
    let sign_in = SignIn {
        mailbox: "alice@contoso.com".to_owned(),
        token: AccessToken::new(format!("{TOKEN}{}", longer.repeat(repeated))),
        mechanism: if which & 8 == 0 { SaslMechanism::Xoauth2 } else { SaslMechanism::OauthBearer },
        client_name: "client.example".to_owned(),
        host: if token & 4 == 0 { "smtp.office365.com" } else { "mail.example" }.to_owned(),
        port: 993,
    };
    let client_name = sign_in.client_name.clone();
    let errand = match which >> 4 & 3 {
        0 | 1 => Errand::SignIn(sign_in.clone()),
        2 => Errand::Wait { client_name },
        _ => Errand::Learn { client_name },
    };
    let back: Box<dyn Back> = match (which % 4, which & 4 != 0) {
        (0, false) => Box::new(ImapBack::new(errand)),
        (0, true) => Box::new(ImapBack::with_starttls(errand)),
        (1, false) => Box::new(Pop3Back::new(errand)),
        (1, true) => Box::new(Pop3Back::with_starttls(errand)),
        (_, false) => Box::new(SmtpBack::new(errand)),
        (_, true) => Box::new(SmtpBack::with_starttls(errand)),
    };
    (back, sign_in)
}

/// What was seen of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    events: Vec<Event>,
    /// What is left for the relay, once we are in.
    rest: Option<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Written(Vec<u8>),
    StartTls,
    Waits,
    Done(Result<Welcome, BackError>),
}

/// One run of a script, and what is known of it without looking into the machine.
#[expect(clippy::struct_excessive_bools, reason = "the model knows facts, not the states of the machine")]
struct Play {
    back: Option<Box<dyn Back>>,
    sign_in: SignIn,
    seen: Seen,
    sent: Vec<u8>,
    last_words: Vec<u8>,
    /// Whether it is ours to sign in at all.
    may_sign_in: bool,
    waits_for_sign_in: bool,
    encrypted: bool,
    upgrading: bool,
    presented: bool,
    over: bool,
    orders: usize,
}

impl Play {
    fn new(script: &Script<3>) -> Self {
        let (mut back, sign_in) = back(script.settings);
        let [which, ..] = script.settings;
        // implicit TLS, or nobody who would start it
        let encrypted = which & 4 == 0 && which & 64 == 0;
        if encrypted {
            back.secured(Encrypted::pretend());
        }
        let errand = which >> 4 & 3;
        Self {
            back: Some(back),
            sign_in,
            seen: Seen::default(),
            sent: Vec::new(),
            last_words: Vec::new(),
            may_sign_in: errand < 2,
            waits_for_sign_in: errand == 2,
            encrypted,
            upgrading: false,
            presented: false,
            over: false,
            orders: 0,
        }
    }

    fn run(mut self, script: &Script<3>, slicing: Option<u8>) -> Seen {
        self.drain();
        for piece in &script.pieces {
            match piece {
                Piece::Octets(octets) => self.feed(octets, slicing),
                Piece::Order(b'e') => {
                    let echo = self.last_words.clone();
                    self.feed(&echo, slicing);
                }
                Piece::Order(b'E') => {
                    let token = self.sign_in.token.for_safekeeping().to_owned();
                    if self.presented {
                        self.feed(token.as_bytes(), slicing);
                    }
                }
                Piece::Order(order) => self.order(*order),
            }
            // where it waits within a segment, it does not wait for long
            let waits = self.back.as_ref().is_some_and(|back| back.waits());
            if waits && self.seen.events.last() != Some(&Event::Waits) {
                self.seen.events.push(Event::Waits);
            }
        }
        self.check_output();
        if let Some(back) = self.back.take() {
            assert!(back.into_rest().len() <= self.sent.len(), "more is kept than was sent");
        }
        // that somebody was on the line is seen at once, or after the handshake was asked for
        let injected = matches!(self.seen.events.last(), Some(Event::Done(Err(BackError::Injected))));
        if injected {
            self.seen.events.retain(|event| *event != Event::StartTls);
        }
        self.seen
    }

    fn feed(&mut self, octets: &[u8], slicing: Option<u8>) {
        let pieces = slicing.map_or_else(|| vec![octets], |pattern| slices(octets, pattern));
        for piece in pieces {
            self.sent.extend_from_slice(piece);
            match (&mut self.back, &mut self.seen.rest) {
                (Some(back), _) => {
                    back.feed(piece);
                    self.drain();
                }
                (None, Some(rest)) => rest.extend_from_slice(piece),
                (None, None) => {}
            }
        }
    }

    fn order(&mut self, order: u8) {
        self.orders += 1;
        let Some(back) = &mut self.back else { return };
        match order {
            b'S' if self.upgrading => {
                self.upgrading = false;
                self.encrypted = true;
                back.secured(Encrypted::pretend());
            }
            b'i' | b'I' if self.waits_for_sign_in && !self.over => {
                let mut sign_in = self.sign_in.clone();
                if order == b'I' {
                    "another.example".clone_into(&mut sign_in.client_name);
                }
                self.waits_for_sign_in = false;
                self.may_sign_in = true;
                back.sign_in(sign_in);
            }
            b'd' if back.waits() => {
                back.dismiss();
                self.drain();
                self.over = true;
            }
            _ => {}
        }
        self.drain();
    }

    fn drain(&mut self) {
        let mut steps = 0;
        while let Some(back) = &mut self.back {
            steps += 1;
            assert!(steps <= 8 * (self.sent.len() + self.orders + 2), "no end of steps");
            let step = back.step();
            assert!(matches!(step, Step::Read) || !self.over, "after the end: {step:?}");
            match step {
                Step::Read => break,
                Step::Write(written) => self.written(written),
                Step::StartTls => {
                    assert!(!self.encrypted && !self.upgrading, "TLS in TLS");
                    self.upgrading = true;
                    self.seen.events.push(Event::StartTls);
                }
                Step::Close(farewell) => panic!("a back that closes: {farewell:?}"),
                Step::Done(outcome) => self.done(outcome),
            }
        }
    }

    fn written(&mut self, written: Vec<u8>) {
        assert!(written.ends_with(b"\r\n"), "half a line is written");
        if holds_token(&written) {
            assert!(self.encrypted && !self.upgrading, "a token in clear");
            assert!(self.may_sign_in, "a token that nobody gave");
            self.presented = true;
        }
        self.last_words.clone_from(&written);
        match self.seen.events.last_mut() {
            Some(Event::Written(before)) => before.extend(written),
            _ => self.seen.events.push(Event::Written(written)),
        }
    }

    fn done(&mut self, outcome: Result<Welcome, BackError>) {
        self.over = true;
        let told: Vec<&str> = match &outcome {
            Ok(Welcome { reply, .. }) | Err(BackError::TryLater { reply }) => vec![reply],
            Err(BackError::Refused { reply, challenge }) => {
                reply.lines().chain(challenge.as_deref()).collect()
            }
            Err(BackError::NoMechanism { offered }) => vec![offered],
            Err(BackError::Unexpected { got, .. }) => vec![got],
            Err(BackError::NoStartTls | BackError::Injected | BackError::TooLong) => Vec::new(),
        };
        for text in told {
            assert!(is_one_line(text, 600), "this goes to the log: {text:?}");
            assert!(!holds_token(text.as_bytes()), "the token goes to the log: {text}");
        }
        if let Ok(welcome) = &outcome {
            let wanted = self.may_sign_in;
            assert!(!wanted || (self.presented && self.encrypted), "let in without a token");
            for entry in welcome.offer.iter().flat_map(|offer| &offer.0) {
                assert!(is_one_line(entry, 16_384), "this goes to mail clients: {entry:?}");
                assert!(!holds_token(entry.as_bytes()), "the token goes to mail clients");
            }
            if wanted && let Some(back) = self.back.take() {
                let rest = back.into_rest();
                assert!(self.sent.ends_with(&rest), "the rest is not what stood behind the answer");
                self.seen.rest = Some(rest);
            }
        }
        self.seen.events.push(Event::Done(outcome));
    }

    fn check_output(&self) {
        let written = |event: &Event| match event {
            Event::Written(written) => written.len(),
            Event::StartTls | Event::Waits | Event::Done(_) => 0,
        };
        let octets: usize = self.seen.events.iter().map(written).sum();
        // every command once before TLS and once behind it, the token twice at most
        let bound = 4 * (self.sign_in.token.len() * 4 / 3 + 400);
        assert!(octets <= bound, "{octets} octets are written");
    }
}

/// Whether this text holds the beginning of the token, in base64 or not.
fn holds_token(text: &[u8]) -> bool {
    let encoded = || {
        text.split(|octet| !octet.is_ascii_alphanumeric() && !b"+/=".contains(octet))
            .filter(|word| word.len() >= TOKEN.len())
            .filter_map(unbase64)
            .any(|decoded| holds(&decoded, TOKEN))
    };
    holds(text, TOKEN) || encoded()
}
