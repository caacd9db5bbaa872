//! The IMAP dialogue before a login, with us in the server's seat.
//!
//! ```text
//! Greeting ─► Command ──STARTTLS──► Upgrading ─► Command       (what was buffered is forgotten)
//!                │ LOGIN / AUTHENTICATE, its literals and responses
//!                ▼
//!             Asking ──grant──► Over, the rest is the relay's
//!                │
//!                └──refuse──► Command, or Over when no try is left
//! ```
//! Understands CAPABILITY, NOOP, ID, STARTTLS, LOGIN, AUTHENTICATE PLAIN and LOGIN, LOGOUT; all else gets `BAD`.
//! Nothing that the client sent is repeated to it but its tag.
//!
//! Never: parses after the grant, waits, logs, or sees a token.
//!
//! Standards: RFC 3501 §6.1–6.2, RFC 4959 (SASL-IR), RFC 7888 (LITERAL+), RFC 5530 (response codes), RFC 2971 (ID).
//! Transcripts: `tests/transcripts/imap/front/`.

use std::collections::VecDeque;
use std::mem;

use zeroize::Zeroizing;

use super::grammar::{self, Command, Literal, LoginLine, PasswordArgument};
use crate::explain::Refusal;
use crate::protocol::line::{Inbox, MAX_COMMAND_LINE, Taken};
use crate::protocol::machine::{Farewell, Front, FrontSettings, HangUp, Login, Offer, Step};
use crate::protocol::sasl::{self, Exchange, Turn};
use crate::secret::{Credentials, MAX_PASSWORD, MAX_USER};

/// Commands that make no sense before the connection is closed. A browser's six header lines come as many.
pub const MAX_BAD_COMMANDS: u8 = 10;

/// What a client may pipeline behind a login that is still being decided, in octets.
pub const MAX_PIPELINED: usize = 64 * 1024;

/// IMAP before the login, seen from the server's side. It holds passwords: there is no `Debug`.
pub struct ImapFront {
    settings: FrontSettings,
    secured: bool,
    inbox: Inbox,
    /// What is to be carried out before anything more is read.
    steps: VecDeque<Step<Login>>,
    state: State,
    bad_commands: u8,
    refusals: u8,
}

/// Where the dialogue stands. Taken out for each move, so that no state is left half changed.
#[derive(Default)]
enum State {
    /// Nothing was said yet: we speak first, whatever the client has sent meanwhile.
    Greeting,
    /// Between two commands.
    Command,
    /// STARTTLS was granted; what comes now belongs to the TLS handshake.
    Upgrading,
    /// `LOGIN {n}`: the user name.
    UserLiteral { tag: String, octets: usize },
    /// The line behind that literal: the password, or its announcement.
    LoginRest { tag: String, user: Zeroizing<Vec<u8>> },
    /// The password as a literal.
    PasswordLiteral { tag: String, user: Zeroizing<Vec<u8>>, octets: usize },
    /// The line behind that literal, which is to be empty.
    LoginEnd { tag: String, user: Zeroizing<Vec<u8>>, password: Zeroizing<Vec<u8>> },
    /// Literals of a command that is already turned down. They are data, never commands (RFC 7888 §4).
    Skipping { octets: usize, skipped: usize, answer: String },
    /// The line behind such a literal.
    Skipped { skipped: usize, answer: String },
    /// `AUTHENTICATE` was answered with a challenge.
    Challenged { tag: String, exchange: Exchange },
    /// Somebody decides about the login.
    Asking { tag: String, command: &'static str },
    /// The upstream took the login: what comes now is the relay's.
    Granted,
    /// The connection is as good as closed.
    #[default]
    Over,
}

/// What a state needs before it can move.
enum Need {
    Nothing,
    Line,
    Octets(usize),
    /// Not ours to go on.
    Patience,
}

impl State {
    fn need(&self) -> Need {
        match self {
            Self::Greeting => Need::Nothing,
            Self::UserLiteral { octets, .. }
            | Self::PasswordLiteral { octets, .. }
            | Self::Skipping { octets, .. } => Need::Octets(*octets),
            Self::Command
            | Self::LoginRest { .. }
            | Self::LoginEnd { .. }
            | Self::Skipped { .. }
            | Self::Challenged { .. } => Need::Line,
            Self::Upgrading | Self::Asking { .. } | Self::Granted | Self::Over => Need::Patience,
        }
    }
}

impl Front for ImapFront {
    fn feed(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Upgrading | State::Over) {
            self.inbox.feed(bytes);
        }
    }

    fn secured(&mut self) {
        self.secured = true;
        self.inbox.clear();
        if !matches!(self.state, State::Greeting | State::Granted | State::Over) {
            self.state = State::Command;
        }
    }

    fn step(&mut self) -> Step<Login> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            if !self.advance() {
                return Step::Read;
            }
        }
    }

    fn grant(&mut self, offer: Option<&Offer>) {
        let state = mem::take(&mut self.state);
        let State::Asking { tag, command } = state else {
            self.state = state;
            return;
        };
        let code =
            offer.map_or_else(String::new, |offer| format!("[CAPABILITY {}] ", capability_list(&[], offer)));
        self.write(format!("{tag} OK {code}{command} completed\r\n"));
        self.state = State::Granted;
    }

    fn refuse(&mut self, why: &Refusal) {
        let state = mem::take(&mut self.state);
        let State::Asking { tag, .. } = state else {
            self.state = state;
            return;
        };
        self.state = self.turn_away(&tag, why);
    }

    fn hang_up(&mut self, why: HangUp) {
        self.steps.retain(|step| matches!(step, Step::Write(_)));
        // Inside a handshake there is nobody who could read a line.
        if !matches!(self.state, State::Upgrading | State::Granted | State::Over) {
            self.write(match why {
                HangUp::TimedOut => "* BYE autologout: no login in time\r\n".to_owned(),
                HangUp::ShuttingDown => "* BYE [UNAVAILABLE] the proxy stops; connect again\r\n".to_owned(),
                HangUp::Refused(refusal) => {
                    format!("* BYE [{}] {}\r\n", response_code(&refusal), refusal.sentence())
                }
            });
        }
        self.state = self.close(Farewell::HungUp);
    }

    fn into_rest(self: Box<Self>) -> Vec<u8> {
        self.inbox.into_rest()
    }
}

impl ImapFront {
    /// A dialogue that is about to greet.
    pub fn new(settings: FrontSettings) -> Self {
        Self {
            settings,
            secured: false,
            inbox: Inbox::default(),
            steps: VecDeque::new(),
            state: State::Greeting,
            bad_commands: 0,
            refusals: 0,
        }
    }

    /// Moves on by one line, one literal, or nothing; says whether it did.
    fn advance(&mut self) -> bool {
        let taken = match self.state.need() {
            Need::Nothing => Zeroizing::default(),
            Need::Patience => return self.check_patience(),
            Need::Octets(octets) => match self.inbox.octets(octets) {
                Some(octets) => Zeroizing::new(octets),
                None => return false,
            },
            Need::Line => {
                if matches!(self.state, State::Command) && self.inbox.peek().starts_with(TLS_HANDSHAKE) {
                    self.state = self.close(Farewell::WrongProtocol);
                    return true;
                }
                match self.inbox.line(MAX_COMMAND_LINE) {
                    Taken::Line(line) => Zeroizing::new(line),
                    Taken::Incomplete => return false,
                    Taken::TooLong => {
                        self.state = self.too_long();
                        return true;
                    }
                }
            }
        };
        let state = mem::take(&mut self.state);
        self.state = self.next(state, taken);
        true
    }

    fn next(&mut self, state: State, taken: Zeroizing<Vec<u8>>) -> State {
        match state {
            State::Greeting => {
                self.write(format!("* OK [CAPABILITY {}] Mailkey ready\r\n", self.capabilities()));
                State::Command
            }
            State::Command => self.command(&taken),
            State::UserLiteral { tag, .. } => State::LoginRest { tag, user: taken },
            State::LoginRest { tag, user } => self.login_rest(tag, user, &taken),
            State::PasswordLiteral { tag, user, .. } => State::LoginEnd { tag, user, password: taken },
            State::LoginEnd { tag, user, password } => {
                if taken.iter().all(|&b| b == b' ') {
                    self.ask(tag, "LOGIN", Credentials::decode(&user, &password).ok(), "LOGIN")
                } else {
                    self.turn_down(&taken, format!("{tag} BAD nothing may follow the password\r\n"), 0)
                }
            }
            State::Skipping { octets, skipped, answer } => {
                State::Skipped { skipped: skipped + octets, answer }
            }
            State::Skipped { skipped, answer } => self.turn_down(&taken, answer, skipped),
            State::Challenged { tag, exchange } => self.turned(tag, exchange.answer(&taken)),
            idle @ (State::Upgrading | State::Asking { .. } | State::Granted | State::Over) => idle,
        }
    }

    fn check_patience(&mut self) -> bool {
        let flooded = matches!(self.state, State::Asking { .. }) && self.inbox.len() > MAX_PIPELINED;
        if flooded {
            self.state = self.too_long();
        }
        flooded
    }

    fn command(&mut self, line: &[u8]) -> State {
        if is_another_protocol(line) {
            return self.close(Farewell::WrongProtocol);
        }
        let Ok((after_tag, tag)) = grammar::tag(line) else {
            return self.turn_down(line, "* BAD a command starts with a tag\r\n".to_owned(), 0);
        };
        let tag = String::from_utf8_lossy(tag).into_owned();
        match grammar::command(after_tag) {
            Err(_) => self.turn_down(line, format!("{tag} BAD cannot make sense of the arguments\r\n"), 0),
            Ok((_, Command::Login(_))) if self.is_too_open() => self.privacy_required(line, &tag),
            Ok((_, Command::Login(login))) => self.login(tag, login),
            Ok((_, command)) if announces_data(line) => {
                // None of the others takes a literal here, but its octets come all the same.
                drop(command);
                self.turn_down(line, format!("{tag} BAD no literal is taken here\r\n"), 0)
            }
            Ok((_, Command::Authenticate { .. })) if self.is_too_open() => self.privacy_required(line, &tag),
            Ok((_, Command::Authenticate { mechanism, initial })) => {
                let initial = initial.as_ref().map(|octets| octets.as_slice());
                self.turned(tag, sasl::begin(mechanism.as_bytes(), initial))
            }
            Ok((_, Command::Capability)) => {
                let capabilities = self.capabilities();
                self.answer(format!("* CAPABILITY {capabilities}\r\n{tag} OK CAPABILITY completed\r\n"))
            }
            Ok((_, Command::Noop)) => self.answer(format!("{tag} OK NOOP completed\r\n")),
            Ok((_, Command::Id)) => {
                self.answer(format!("* ID (\"name\" \"Mailkey\")\r\n{tag} OK ID completed\r\n"))
            }
            Ok((_, Command::StartTls)) => self.start_tls(&tag),
            Ok((_, Command::Logout)) => {
                self.write(format!("* BYE Mailkey signing off\r\n{tag} OK LOGOUT completed\r\n"));
                self.close(Farewell::Quit)
            }
            Ok((_, Command::Other)) => self.bad(format!("{tag} BAD unknown command, or log in first\r\n")),
        }
    }

    fn start_tls(&mut self, tag: &str) -> State {
        if !self.offers_starttls() {
            return self.bad(format!("{tag} BAD STARTTLS is not offered here\r\n"));
        }
        self.write(format!("{tag} OK begin TLS negotiation now\r\n"));
        self.steps.push_back(Step::StartTls);
        self.inbox.clear();
        State::Upgrading
    }

    fn login(&mut self, tag: String, line: LoginLine) -> State {
        match line {
            LoginLine::Whole { user, password } => {
                self.ask(tag, "LOGIN", Credentials::decode(&user, &password).ok(), "LOGIN")
            }
            LoginLine::UserFollows(literal) => match self.expect_literal(&tag, literal, MAX_USER) {
                Ok(octets) => State::UserLiteral { tag, octets },
                Err(state) => state,
            },
            LoginLine::PasswordFollows { user, literal } => self.expect_password(tag, user, literal),
        }
    }

    fn login_rest(&mut self, tag: String, user: Zeroizing<Vec<u8>>, line: &[u8]) -> State {
        match grammar::password(line) {
            Ok((_, PasswordArgument::Given(password))) => {
                self.ask(tag, "LOGIN", Credentials::decode(&user, &password).ok(), "LOGIN")
            }
            Ok((_, PasswordArgument::Follows(literal))) => self.expect_password(tag, user, literal),
            Err(_) => self.turn_down(line, format!("{tag} BAD expected a password\r\n"), 0),
        }
    }

    fn expect_password(&mut self, tag: String, user: Zeroizing<Vec<u8>>, literal: Literal) -> State {
        match self.expect_literal(&tag, literal, MAX_PASSWORD) {
            Ok(octets) => State::PasswordLiteral { tag, user, octets },
            Err(state) => state,
        }
    }

    /// Asks for a literal that is no longer than `max` octets, or says where the dialogue goes without it.
    fn expect_literal(&mut self, tag: &str, literal: Literal, max: usize) -> Result<usize, State> {
        match usize::try_from(literal.octets) {
            Ok(octets) if octets <= max => {
                if literal.synchronising {
                    self.write("+ ready for the literal\r\n".to_owned());
                }
                Ok(octets)
            }
            _ if literal.synchronising => Err(self.bad(format!("{tag} NO [TOOBIG] literal is too long\r\n"))),
            _ => Err(self.too_long()),
        }
    }

    fn turned(&mut self, tag: String, turn: Turn) -> State {
        match turn {
            Turn::Challenge(challenge, exchange) => {
                self.write(format!("+ {challenge}\r\n"));
                State::Challenged { tag, exchange }
            }
            Turn::Through(credentials, mechanism) => self.ask(tag, "AUTHENTICATE", credentials, mechanism),
            Turn::Cancelled => self.bad(format!("{tag} BAD AUTHENTICATE cancelled\r\n")),
            Turn::Broken => self.bad(format!("{tag} BAD expected base64\r\n")),
            Turn::Unknown => self.bad(format!("{tag} NO this mechanism is not offered\r\n")),
        }
    }

    /// Reports a login; one that cannot be right is refused on the spot.
    fn ask(
        &mut self,
        tag: String,
        command: &'static str,
        credentials: Option<Credentials>,
        mechanism: &'static str,
    ) -> State {
        let Some(credentials) = credentials else {
            return self.turn_away(&tag, &Refusal::BadCredentials);
        };
        self.steps.push_back(Step::Done(Login {
            credentials,
            mechanism,
            client_name: None,
            by_address: false,
        }));
        State::Asking { tag, command }
    }

    /// Tells the client about a refused login, and lets it try again while tries are left.
    fn turn_away(&mut self, tag: &str, why: &Refusal) -> State {
        self.refusals = self.refusals.saturating_add(1);
        self.write(format!("{tag} NO [{}] {}\r\n", response_code(why), why.sentence()));
        if self.refusals < self.settings.max_refusals {
            return State::Command;
        }
        self.write("* BYE too many refused logins\r\n".to_owned());
        self.close(Farewell::TooManyRefusals)
    }

    fn privacy_required(&mut self, line: &[u8], tag: &str) -> State {
        self.turn_down(line, format!("{tag} NO [PRIVACYREQUIRED] switch on TLS before you log in\r\n"), 0)
    }

    /// Answers a command that is not carried out, once all the data that it announced has been thrown away.
    fn turn_down(&mut self, line: &[u8], answer: String, skipped: usize) -> State {
        let Some(literal) = grammar::announced_at_end(line).filter(|literal| !literal.synchronising) else {
            return self.bad(answer);
        };
        match usize::try_from(literal.octets) {
            Ok(octets) if octets <= MAX_COMMAND_LINE - skipped => State::Skipping { octets, skipped, answer },
            _ => self.too_long(),
        }
    }

    fn bad(&mut self, answer: String) -> State {
        self.write(answer);
        self.bad_commands += 1;
        if self.bad_commands < MAX_BAD_COMMANDS {
            return State::Command;
        }
        self.write("* BYE too many bad commands\r\n".to_owned());
        self.close(Farewell::TooManyErrors)
    }

    fn too_long(&mut self) -> State {
        self.write("* BYE line or literal too long\r\n".to_owned());
        self.close(Farewell::TooLong)
    }

    fn close(&mut self, farewell: Farewell) -> State {
        self.inbox.clear();
        self.steps.push_back(Step::Close(farewell));
        State::Over
    }

    fn answer(&mut self, text: String) -> State {
        self.write(text);
        State::Command
    }

    fn write(&mut self, text: String) {
        self.steps.push_back(Step::Write(text.into_bytes()));
    }

    fn is_too_open(&self) -> bool {
        self.settings.require_tls && !self.secured
    }

    fn offers_starttls(&self) -> bool {
        self.settings.starttls && !self.secured
    }

    fn capabilities(&self) -> String {
        let mut ours = Vec::new();
        if self.offers_starttls() {
            ours.push("STARTTLS");
        }
        if self.is_too_open() {
            ours.push("LOGINDISABLED");
        } else {
            ours.extend(["AUTH=PLAIN", "AUTH=LOGIN", "SASL-IR"]);
        }
        capability_list(&ours, &self.settings.offer)
    }
}

/// How a TLS record of a handshake starts: content type 22, major version 3 (RFC 8446 §5.1).
const TLS_HANDSHAKE: &[u8] = &[0x16, 0x03];

/// A browser that was sent here by a page (ALPACA), or an SSH client on the wrong port.
fn is_another_protocol(line: &[u8]) -> bool {
    let verb = line.split(|&b| b == b' ').next().unwrap_or_default();
    let is_http = [
        &b"GET"[..],
        b"HEAD",
        b"POST",
        b"PUT",
        b"DELETE",
        b"CONNECT",
        b"OPTIONS",
        b"TRACE",
        b"PATCH",
        b"PRI",
    ]
    .contains(&verb)
        && memchr::memmem::find(line, b" HTTP/").is_some();
    is_http || line.starts_with(b"SSH-2.0-") || line.starts_with(b"SSH-1.")
}

fn announces_data(line: &[u8]) -> bool {
    grammar::announced_at_end(line).is_some_and(|literal| !literal.synchronising)
}

/// `IMAP4rev1` first, as RFC 3501 §7.2.1 and old clients want it; then what we say of ourselves; then what
/// upstream offers, in its own order; nothing twice.
fn capability_list(ours: &[&'static str], offer: &Offer) -> String {
    let is = |capability: &str, name: &str| capability.eq_ignore_ascii_case(name);
    let mut list = vec!["IMAP4rev1"];
    if offer.0.iter().any(|capability| is(capability, "IMAP4")) {
        list.push("IMAP4");
    }
    list.extend(ours);
    for capability in &offer.0 {
        if !grammar::is_for_sign_in(capability) && !list.iter().any(|there| is(there, capability)) {
            list.push(capability);
        }
    }
    list.join(" ")
}

/// RFC 5530 §3.
fn response_code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::BadCredentials => "AUTHENTICATIONFAILED",
        Refusal::PasswordExpired => "EXPIRED",
        Refusal::HeldBack { .. } | Refusal::Unavailable { .. } => "UNAVAILABLE",
        Refusal::ContactAdmin(_) => "CONTACTADMIN",
        Refusal::TooManySessions => "LIMIT",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const MAX_REFUSALS: u8 = 3;

    fn settings() -> FrontSettings {
        FrontSettings {
            starttls: false,
            require_tls: false,
            offer: Arc::new(Offer(vec!["IDLE".to_owned()])),
            host_name: "mailkey.example".to_owned(),
            max_refusals: MAX_REFUSALS,
            without_login: None,
        }
    }

    /// What a mail client may send, in any order and with anything between.
    fn chatter() -> impl Strategy<Value = Vec<u8>> {
        let phrase = prop_oneof![
            Just(b"a LOGIN alice right\r\n".to_vec()),
            Just(b"a LOGIN alice wrong\r\n".to_vec()),
            Just(b"a LOGIN {5}\r\nalice {5+}\r\nwrong\r\n".to_vec()),
            Just(b"a LOGIN \"alice\" {0}\r\n\r\n".to_vec()),
            Just(b"a AUTHENTICATE PLAIN\r\n".to_vec()),
            Just(b"a AUTHENTICATE LOGIN\r\n".to_vec()),
            Just(b"AGEAYg==\r\n".to_vec()),
            Just(b"*\r\n".to_vec()),
            Just(b"a FOO {7+}\r\n".to_vec()),
            Just(b"a STARTTLS\r\n".to_vec()),
            Just(b"a CAPABILITY\n".to_vec()),
            Just(b"a LOGOUT\r\n".to_vec()),
            Just(b"\x16".to_vec()),
            Just(b"GET / HTTP/1.1\r\n".to_vec()),
            Just(vec![b'x'; MAX_COMMAND_LINE]),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(phrase, 0..12).prop_map(|phrases| phrases.concat())
    }

    /// Carries out all steps; `right` is granted, everything else refused.
    fn drain(front: &mut ImapFront, steps: &mut Vec<Step<Login>>) {
        loop {
            let step = front.step();
            match &step {
                Step::Read => return,
                Step::Done(login) if login.credentials.password.expose() == "right" => front.grant(None),
                Step::Done(_) => front.refuse(&Refusal::BadCredentials),
                Step::StartTls => front.secured(),
                Step::Write(_) | Step::Close(_) => {}
            }
            steps.push(step);
        }
    }

    fn play(settings: FrontSettings, input: &[u8], cut: usize) -> (Vec<Step<Login>>, Vec<u8>) {
        let mut front = Box::new(ImapFront::new(settings));
        let mut steps = Vec::new();
        drain(&mut front, &mut steps);
        for piece in input.chunks(cut) {
            front.feed(piece);
            drain(&mut front, &mut steps);
        }
        let granted = matches!(front.state, State::Granted);
        let rest = front.into_rest();
        (steps, if granted { rest } else { Vec::new() })
    }

    proptest! {
        #[test]
        fn every_slicing_gives_the_same_steps(input in chatter(), cut in 1_usize..60) {
            prop_assert_eq!(play(settings(), &input, cut), play(settings(), &input, usize::MAX));
        }

        #[test]
        fn logins_are_bounded_and_nothing_follows_the_end(
            input in chatter(), cut in 1_usize..60, starttls: bool, require_tls: bool,
        ) {
            let (steps, _) = play(FrontSettings { starttls, require_tls, ..settings() }, &input, cut);
            let logins = steps.iter().filter(|step| matches!(step, Step::Done(_))).count();
            prop_assert!(logins <= usize::from(MAX_REFUSALS));
            let end = steps.iter().position(|step| matches!(step, Step::Close(_)));
            prop_assert!(end.is_none_or(|position| position + 1 == steps.len()));
        }

        #[test]
        fn no_login_in_clear_where_tls_is_required(input in chatter(), cut in 1_usize..60) {
            let (steps, _) = play(FrontSettings { require_tls: true, ..settings() }, &input, cut);
            prop_assert!(!steps.iter().any(|step| matches!(step, Step::Done(_))));
        }

        #[test]
        fn what_was_sent_in_clear_is_not_answered_past_tls(behind in chatter(), cut in 1_usize..60) {
            let mut front = ImapFront::new(FrontSettings { starttls: true, ..settings() });
            let mut steps = Vec::new();
            front.feed(&[b"a STARTTLS\r\n", behind.as_slice()].concat());
            while !matches!(steps.last(), Some(Step::StartTls)) {
                steps.push(front.step());
            }
            for piece in behind.chunks(cut) {
                front.feed(piece);
                prop_assert_eq!(front.step(), Step::Read);
            }
            front.secured();
            prop_assert_eq!(front.step(), Step::Read);
            front.feed(b"b NOOP\r\n");
            prop_assert_eq!(front.step(), Step::Write(b"b OK NOOP completed\r\n".to_vec()));
        }
    }

    #[test]
    fn what_came_before_implicit_tls_is_forgotten() {
        let mut front = ImapFront::new(settings());
        front.feed(b"a LOGIN mallory right\r\n");
        front.secured();
        assert!(matches!(front.step(), Step::Write(_)));
        assert_eq!(front.step(), Step::Read);
    }

    #[test]
    fn pipelining_behind_a_login_is_bounded() {
        let mut front = ImapFront::new(settings());
        front.feed(b"a LOGIN alice right\r\n");
        while !matches!(front.step(), Step::Done(_)) {}
        front.feed(&vec![b'x'; MAX_PIPELINED]);
        assert_eq!(front.step(), Step::Read);
        front.feed(b"x");
        assert!(matches!(front.step(), Step::Write(_)));
        assert_eq!(front.step(), Step::Close(Farewell::TooLong));
    }

    #[test]
    fn grant_and_refuse_out_of_turn_change_nothing() {
        let mut front = ImapFront::new(settings());
        front.grant(None);
        front.refuse(&Refusal::BadCredentials);
        assert!(matches!(front.step(), Step::Write(_)));
        front.grant(None);
        assert_eq!(front.step(), Step::Read);
        front.feed(b"a NOOP\r\n");
        assert_eq!(front.step(), Step::Write(b"a OK NOOP completed\r\n".to_vec()));
    }

    #[test]
    fn a_login_that_nobody_took_yet_is_dropped_when_we_hang_up() {
        let mut front = ImapFront::new(settings());
        front.feed(b"a LOGIN alice right\r\n");
        assert!(matches!(front.step(), Step::Write(_)));
        assert!(front.advance());
        front.hang_up(HangUp::TimedOut);
        assert!(matches!(front.step(), Step::Write(_)));
        assert_eq!(front.step(), Step::Close(Farewell::HungUp));
        assert_eq!(front.step(), Step::Read);
    }
}
