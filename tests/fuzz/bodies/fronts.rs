//! The dialogues with the mail client (`src/protocol/*/front.rs`), against what must hold whatever it says.
//!
//! - Every slicing gives the same steps and the same rest, and the rest is the very end of what was sent.
//! - No login is reported in clear where TLS is required, none while another is being decided, none after the end.
//! - What a login is made of was sent after the last handshake, and not before it.
//! - The password is in nothing that is written; what is written is bounded by what came; every feed comes to `Read`.
//!
//! Orders: `S` TLS is up · `g` `G` grant · `r` `u` `t` `c` `l` refuse · `h` `d` `f` hang up · others end a segment.

use std::sync::Arc;
use std::time::Duration;

use mailkey::explain::{CauseKind, Refusal};
use mailkey::protocol::imap::ImapFront;
use mailkey::protocol::machine::{Farewell, Front, FrontSettings, HangUp, Login, Offer, Step};
use mailkey::protocol::pop3::Pop3Front;
use mailkey::protocol::smtp::SmtpFront;
use mailkey::secret::Credentials;

use super::script::{PASSWORD, Piece, Script, holds, slices, unbase64};

/// The longest answer to one line: a list of capabilities with our offer in it.
const LONGEST_ANSWER: usize = 700;

/// The body.
pub fn run(data: &[u8]) {
    let script = Script::read(data);
    let whole = Play::new(&script).run(&script, None);
    let cut = Play::new(&script).run(&script, Some(script.settings[2]));
    assert_eq!(whole, cut, "the slicing shows");
}

/// A front for the settings of a script; the same for the recorder's target.
pub fn front(settings: [u8; 4]) -> (Box<dyn Front>, FrontSettings) {
    let [which, max_refusals, ..] = settings;
    let front = FrontSettings {
        starttls: which & 4 != 0,
        require_tls: which & 8 != 0,
        offer: Arc::new(Offer(if which & 32 == 0 {
            Vec::new()
        } else {
            vec!["IDLE".to_owned(), "SIZE 35882577".to_owned(), "AUTH PLAIN".to_owned()]
        })),
        host_name: "mailkey.example".to_owned(),
        max_refusals: max_refusals % 4,
        without_login: (which & 3 == 3).then(|| Credentials::decode(b"scanner", b"-").unwrap()),
    };
    let machine: Box<dyn Front> = match which & 3 {
        0 => Box::new(ImapFront::new(front.clone())),
        1 => Box::new(Pop3Front::new(front.clone())),
        _ => Box::new(SmtpFront::new(front.clone())),
    };
    (machine, front)
}

/// A refusal for an order.
pub fn refusal(order: u8) -> Option<Refusal> {
    match order {
        b'r' => Some(Refusal::BadCredentials),
        b'u' => Some(Refusal::Unavailable { retry_after: Some(Duration::from_secs(300)) }),
        b't' => Some(Refusal::TooManySessions),
        b'c' => Some(Refusal::contact_admin(CauseKind::MultiFactor)),
        b'l' => Some(Refusal::HeldBack { retry_after: Duration::from_secs(60) }),
        _ => None,
    }
}

/// A reason to hang up for an order.
pub fn hang_up(order: u8) -> Option<HangUp> {
    match order {
        b'h' => Some(HangUp::TimedOut),
        b'd' => Some(HangUp::ShuttingDown),
        b'f' => Some(HangUp::Refused(Refusal::TooManySessions)),
        _ => None,
    }
}

/// What was seen of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Writes that follow each other are one.
    events: Vec<Event>,
    /// What is left for the relay, once a login was granted.
    rest: Option<Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Written(Vec<u8>),
    StartTls,
    Login(Login),
    Close(Farewell),
}

/// `\\"` and `\\\\` without the backslash before them.
fn unquoted(octets: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(octets.len());
    let mut rest = octets;
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        match (first, behind.first()) {
            (b'\\', Some(&next @ (b'"' | b'\\'))) => {
                plain.push(next);
                rest = &behind[1..];
            }
            _ => plain.push(first),
        }
    }
    plain
}

/// One run of a script, and what is known of it without looking into the machine.
#[expect(clippy::struct_excessive_bools, reason = "the model knows facts, not the states of the machine")]
struct Play {
    front: Option<Box<dyn Front>>,
    settings: FrontSettings,
    is_imap: bool,
    /// Verdicts for logins that are decided at once, one bit each; `None`: orders decide.
    verdicts: Option<u8>,
    seen: Seen,
    /// All that was sent.
    sent: Vec<u8>,
    /// All of it since the last handshake.
    since_tls: Vec<u8>,
    encrypted: bool,
    upgrading: bool,
    asking: bool,
    over: bool,
    logins: usize,
    orders: usize,
}

impl Play {
    fn new(script: &Script<4>) -> Self {
        let (mut front, settings) = front(script.settings);
        let [which, .., verdicts] = script.settings;
        let encrypted = which & 16 != 0;
        if encrypted {
            front.secured();
        }
        Self {
            front: Some(front),
            settings,
            is_imap: which % 4 == 0,
            verdicts: (which & 64 == 0).then_some(verdicts),
            seen: Seen::default(),
            sent: Vec::new(),
            since_tls: Vec::new(),
            encrypted,
            upgrading: false,
            asking: false,
            over: false,
            logins: 0,
            orders: 0,
        }
    }

    fn run(mut self, script: &Script<4>, slicing: Option<u8>) -> Seen {
        self.drain();
        for piece in &script.pieces {
            match piece {
                Piece::Octets(octets) => {
                    let pieces = slicing.map_or_else(|| vec![&octets[..]], |pattern| slices(octets, pattern));
                    for piece in pieces {
                        self.feed(piece);
                    }
                }
                Piece::Order(order) => self.order(*order),
            }
        }
        self.check_output();
        if let Some(front) = self.front.take() {
            let rest = front.into_rest();
            assert!(!self.over || rest.is_empty(), "octets are kept after the end");
            assert!(rest.len() <= 2 * self.sent.len() + 16, "more is kept than was sent");
        }
        self.seen
    }

    fn feed(&mut self, octets: &[u8]) {
        self.sent.extend_from_slice(octets);
        match (&mut self.front, &mut self.seen.rest) {
            (Some(front), _) => {
                if !self.upgrading {
                    self.since_tls.extend_from_slice(octets);
                }
                front.feed(octets);
                self.drain();
            }
            // the relay's from here on
            (None, Some(rest)) => rest.extend_from_slice(octets),
            (None, None) => {}
        }
    }

    fn order(&mut self, order: u8) {
        self.orders += 1;
        let Some(front) = &mut self.front else { return };
        if order == b'S' && self.upgrading {
            self.upgrading = false;
            self.encrypted = true;
            self.since_tls.clear();
            front.secured();
        } else if let (Some(why), false) = (hang_up(order), self.over) {
            front.hang_up(why);
            self.asking = false;
            self.drain();
            assert!(self.over, "hung up, and not over");
            return;
        } else if self.asking {
            match (refusal(order), order) {
                (Some(why), _) => self.refuse(&why),
                (None, b'g') => self.grant(None),
                (None, b'G') => self.grant(Some(&Offer(vec!["MOVE".to_owned()]))),
                (None, _) => {}
            }
        }
        self.drain();
    }

    fn refuse(&mut self, why: &Refusal) {
        self.asking = false;
        if let Some(front) = &mut self.front {
            front.refuse(why);
        }
    }

    /// The login is granted: what is left belongs to the relay.
    fn grant(&mut self, offer: Option<&Offer>) {
        self.asking = false;
        let Some(mut front) = self.front.take() else { return };
        front.grant(offer);
        loop {
            match front.step() {
                Step::Read => break,
                Step::Write(written) => self.written(written),
                other @ (Step::StartTls | Step::Done(_) | Step::Close(_)) => {
                    panic!("after the grant: {other:?}")
                }
            }
        }
        let rest = front.into_rest();
        // a client without a login has its MAIL sent on before the rest, with a proper line end
        let mail = match &self.settings.without_login {
            Some(_) => rest.iter().position(|octet| *octet == b'\n').map_or(rest.len(), |end| end + 1),
            None => 0,
        };
        assert!(self.sent.ends_with(&rest[mail..]), "the rest is not what stood behind the login");
        self.seen.rest = Some(rest);
    }

    fn drain(&mut self) {
        let mut steps = 0;
        while let Some(front) = &mut self.front {
            steps += 1;
            // a line makes a few steps at most; nothing comes out of nothing
            assert!(steps <= 8 * (self.sent.len() + self.orders + 2), "no end of steps");
            let step = front.step();
            assert!(matches!(step, Step::Read) || !self.over, "after the end: {step:?}");
            match step {
                Step::Read => break,
                Step::Write(written) => {
                    assert!(!self.upgrading, "written into a handshake");
                    self.written(written);
                }
                Step::StartTls => {
                    assert!(self.settings.starttls && !self.encrypted, "TLS that is not there to be had");
                    self.upgrading = true;
                    self.seen.events.push(Event::StartTls);
                }
                Step::Close(farewell) => {
                    self.over = true;
                    self.asking = false;
                    self.seen.events.push(Event::Close(farewell));
                }
                Step::Done(login) => self.login(login),
            }
        }
    }

    fn login(&mut self, login: Login) {
        assert!(!self.asking, "a login while another is decided");
        assert!(!self.upgrading, "a login inside a handshake");
        assert!(self.encrypted || !self.settings.require_tls, "a login in clear");
        assert!(self.is_credible(&login), "a login that nobody sent: {login:?}");
        self.logins += 1;
        assert!(self.logins <= usize::from(self.settings.max_refusals).max(1) + 1, "logins without end");
        self.seen.events.push(Event::Login(login));
        self.asking = true;
        let Some(verdicts) = self.verdicts else { return };
        if verdicts >> (self.logins - 1).min(7) & 1 == 0 {
            self.refuse(&Refusal::BadCredentials);
        } else {
            self.grant(None);
        }
    }

    /// Whether this login can have been made of what came since the last handshake.
    fn is_credible(&self, login: &Login) -> bool {
        let Login { credentials, mechanism, client_name, by_address } = login;
        if let Some(known) = &self.settings.without_login {
            return *by_address && credentials == known;
        }
        let user = self.was_sent(&credentials.user);
        let password = self.was_sent(credentials.password.expose());
        let name = client_name.as_ref().is_none_or(|name| self.was_sent(name));
        let printable = credentials.user.chars().all(|c| !c.is_control()) && credentials.user.len() <= 255;
        !by_address && user && password && name && printable && ["LOGIN", "PLAIN", "USER"].contains(mechanism)
    }

    /// Whether this text is in what came: as it is, with IMAP's escapes, or in base64; in UTF-8 or in Latin-1.
    fn was_sent(&self, text: &str) -> bool {
        let finds =
            |place: &[u8], wanted: &[u8]| place.windows(wanted.len().max(1)).any(|window| window == wanted);
        let sent = |wanted: &[u8]| {
            let words = self.since_tls.split(u8::is_ascii_whitespace);
            finds(&self.since_tls, wanted)
                || (self.is_imap && finds(&unquoted(&self.since_tls), wanted))
                || words.filter_map(unbase64).any(|decoded| finds(&decoded, wanted))
        };
        let latin1: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        sent(text.as_bytes()) || latin1.is_some_and(|latin1| sent(&latin1))
    }

    fn written(&mut self, octets: Vec<u8>) {
        assert!(!octets.is_empty(), "nothing is written");
        match self.seen.events.last_mut() {
            Some(Event::Written(before)) => before.extend(octets),
            _ => self.seen.events.push(Event::Written(octets)),
        }
    }

    /// Nothing that is written holds the password, each line has its end, and all of it has a bound.
    fn check_output(&self) {
        let mut octets = 0;
        for event in &self.seen.events {
            let Event::Written(written) = event else { continue };
            octets += written.len();
            assert!(written.ends_with(b"\r\n"), "half a line is written");
            for line in written.split(|octet| *octet == b'\n') {
                // IMAP repeats the tag, whatever the client chose for it
                let said = match line.iter().position(|octet| *octet == b' ') {
                    Some(blank) if self.is_imap => &line[blank..],
                    _ => line,
                };
                assert!(!holds(said, PASSWORD), "the password is written");
                assert!(said.iter().all(|b| *b == b'\r' || *b == b' ' || b.is_ascii_graphic()), "{said:?}");
            }
        }
        let lines = self.sent.split(|octet| *octet == b'\n').count();
        let bound = (lines + self.orders + self.logins + 4) * LONGEST_ANSWER;
        assert!(octets <= bound, "{octets} octets for {lines} lines");
    }
}
