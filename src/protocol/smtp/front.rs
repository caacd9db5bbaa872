//! The SMTP dialogue before login, with us in the server's seat.
//!
//! ```text
//! Silent ──greeting──► Ready ──STARTTLS──► Upgrading ──secured──► Ready
//!                        │ ▲
//!                   AUTH │ └─────────── refuse, tries left ──────┐
//!                        ▼                                       │
//!                      Asking ──grant──► Granted                 │
//!                        └───────────────────────────────────────┴── refuse, none left ─► Over
//! ```
//! Understands EHLO, HELO, AUTH PLAIN and LOGIN, STARTTLS, NOOP, RSET, HELP, VRFY, QUIT; a message before
//! the login gets 530, all else 500 or 502. A login does not wait for an EHLO: some devices send none.
//! Where the place says who a client without a login is, MAIL is the login: nothing is offered or taken that
//! needs a password, and MAIL itself goes upstream once the login is granted.
//!
//! Never: parses after the grant, waits, logs, or sees a token. No input is repeated in a reply.
//!
//! Standards: RFC 5321 §3 and §4, RFC 3207, RFC 3463, RFC 4954.
//! Transcripts: `tests/transcripts/smtp/front/`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::mem;

use zeroize::Zeroizing;

use super::grammar::{Command, command, is_client_name, is_ours};
use crate::explain::Refusal;
use crate::protocol::foreign;
use crate::protocol::line::{Inbox, MAX_COMMAND_LINE, Taken};
use crate::protocol::machine::{Farewell, Front, FrontSettings, HangUp, Login, Offer, Step};
use crate::protocol::sasl::{self, Exchange, Turn};
use crate::secret::Credentials;

/// Commands that make no sense, until we hang up.
pub const MAX_BAD_COMMANDS: u8 = 10;

/// What a client may send behind a login before it is answered, in octets.
pub const MAX_PIPELINED: usize = 64 * 1024;

/// An SMTP login dialogue with a mail client.
pub struct SmtpFront {
    settings: FrontSettings,
    state: State,
    inbox: Inbox,
    steps: VecDeque<Step<Login>>,
    encrypted: bool,
    /// What the client calls itself, where that may be repeated.
    client_name: Option<String>,
    bad_commands: u8,
    refusals: u8,
    /// Goes upstream first.
    mail: Vec<u8>,
}

/// Where the dialogue stands. Each state owns what only it needs.
#[derive(Default)]
enum State {
    /// The greeting is still to be said.
    Silent,
    /// Waiting for a command.
    Ready,
    /// A refused chunk of a message goes by.
    Discarding { octets: u64 },
    /// AUTH was answered with a challenge.
    Challenged(Exchange),
    /// STARTTLS was granted; what comes now belongs to the handshake.
    Upgrading,
    /// A login was handed over; the verdict is awaited.
    Asking,
    /// The same for a client without one, whose MAIL waits.
    Sending { mail: Vec<u8> },
    /// The rest is not for us.
    Granted,
    /// We have hung up.
    #[default]
    Over,
}

impl SmtpFront {
    /// A dialogue that begins with our greeting.
    pub fn new(settings: FrontSettings) -> Self {
        Self {
            settings,
            state: State::Silent,
            inbox: Inbox::default(),
            steps: VecDeque::new(),
            encrypted: false,
            client_name: None,
            bad_commands: 0,
            refusals: 0,
            mail: Vec::new(),
        }
    }
}

impl Front for SmtpFront {
    fn feed(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Upgrading | State::Over) {
            self.inbox.feed(bytes);
        }
    }

    fn secured(&mut self) {
        // "The server MUST discard any knowledge obtained from the client" (RFC 3207 §4.2).
        self.inbox.clear();
        self.client_name = None;
        self.encrypted = true;
        if matches!(self.state, State::Upgrading) {
            self.state = State::Ready;
        }
    }

    fn step(&mut self) -> Step<Login> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            self.state = match mem::take(&mut self.state) {
                State::Silent => {
                    let greeting = format!("220 {} ESMTP Mailkey", self.settings.host_name);
                    self.say(&greeting);
                    State::Ready
                }
                State::Asking | State::Sending { .. } if self.inbox.len() > MAX_PIPELINED => self.too_long(),
                waiting @ (State::Upgrading
                | State::Asking
                | State::Sending { .. }
                | State::Granted
                | State::Over) => {
                    self.state = waiting;
                    return Step::Read;
                }
                State::Discarding { octets: 0 } => State::Ready,
                State::Discarding { octets } => {
                    if self.inbox.is_empty() {
                        self.state = State::Discarding { octets };
                        return Step::Read;
                    }
                    self.discard(octets)
                }
                State::Ready if foreign::is_tls(self.inbox.peek()) => self.close(Farewell::WrongProtocol),
                listening @ (State::Ready | State::Challenged(_)) => {
                    match self.inbox.line(MAX_COMMAND_LINE) {
                        Taken::Line(line) => self.heard(listening, &Zeroizing::new(line)),
                        Taken::TooLong => self.too_long(),
                        Taken::Incomplete => {
                            self.state = listening;
                            return Step::Read;
                        }
                    }
                }
            };
        }
    }

    fn grant(&mut self, _offer: Option<&Offer>) {
        if let State::Sending { mail } = mem::take(&mut self.state) {
            // what upstream says to MAIL is the answer
            self.mail = mail;
        } else {
            self.say("235 2.7.0 Authentication successful");
        }
        self.state = State::Granted;
    }

    fn refuse(&mut self, why: &Refusal) {
        self.state =
            if matches!(self.state, State::Sending { .. }) { self.not_sent(why) } else { self.refused(why) };
    }

    fn hang_up(&mut self, why: HangUp) {
        // Inside a handshake there is nobody who could read a line.
        if matches!(self.state, State::Upgrading) {
            self.steps.clear();
        } else {
            match why {
                HangUp::TimedOut => self.say("421 4.7.0 the login took too long"),
                HangUp::ShuttingDown => self.say("421 4.3.2 shutting down; try again later"),
                HangUp::Refused(why @ Refusal::Unavailable { .. }) => {
                    self.say(&format!("421 4.3.2 {}", why.sentence()));
                }
                HangUp::Refused(why) => self.say(&format!("421 4.7.0 {}", why.sentence())),
            }
        }
        self.state = self.close(Farewell::HungUp);
    }

    fn into_rest(mut self: Box<Self>) -> Vec<u8> {
        let mut rest = mem::take(&mut self.mail);
        rest.extend(self.inbox.into_rest());
        rest
    }
}

impl SmtpFront {
    fn heard(&mut self, state: State, line: &[u8]) -> State {
        match state {
            State::Ready => self.commanded(line),
            State::Challenged(exchange) => self.turned(exchange.answer(line)),
            unmoved @ (State::Silent
            | State::Discarding { .. }
            | State::Upgrading
            | State::Asking
            | State::Sending { .. }
            | State::Granted
            | State::Over) => unmoved,
        }
    }

    fn commanded(&mut self, line: &[u8]) -> State {
        match command(line) {
            Command::Ehlo(name) => {
                self.call(name);
                let answer = self.extensions();
                self.good(&answer)
            }
            Command::Helo(name) => {
                self.call(name);
                let answer = format!("250 {}", self.settings.host_name);
                self.good(&answer)
            }
            Command::StartTls => self.upgrade(),
            Command::Auth { .. } | Command::Mail if self.must_encrypt() => {
                self.bad("530 5.7.0 Must issue a STARTTLS command first")
            }
            Command::Auth { .. } if self.settings.without_login.is_some() => {
                self.bad("503 5.5.1 nobody signs in here; go on with MAIL")
            }
            Command::Auth { mechanism, initial } => self.turned(sasl::begin(mechanism, initial)),
            Command::Mail => self.send(line),
            Command::Bdat(chunk) => {
                let refused = self.bad("530 5.7.0 Authentication required");
                if matches!(refused, State::Over) {
                    refused
                } else {
                    State::Discarding { octets: chunk.octets }
                }
            }
            Command::Noop | Command::Rset => self.good("250 2.0.0 OK"),
            Command::Help => self.good("214 2.0.0 sign in with AUTH PLAIN or AUTH LOGIN"),
            Command::Vrfy => self.good("252 2.5.0 cannot verify; send a message and see"),
            Command::Quit => {
                self.say("221 2.0.0 bye");
                self.close(Farewell::Quit)
            }
            Command::NotHere => self.bad("502 5.5.1 this command is not served here"),
            Command::BadArguments => self.bad("501 5.5.4 the command needs other arguments"),
            Command::Foreign => self.close(Farewell::WrongProtocol),
            Command::Unknown => self.bad("500 5.5.1 unknown command"),
        }
    }

    /// Keeps the client's name, to be repeated upstream.
    fn call(&mut self, name: &[u8]) {
        let name = std::str::from_utf8(name).ok();
        self.client_name = name.filter(|name| is_client_name(name)).map(str::to_owned);
    }

    fn upgrade(&mut self) -> State {
        if self.encrypted {
            return self.bad("503 5.5.1 TLS is already on");
        }
        if !self.settings.starttls {
            return self.bad("502 5.5.1 TLS is not offered here");
        }
        self.say("220 2.0.0 Ready to start TLS");
        self.steps.push_back(Step::StartTls);
        State::Upgrading
    }

    fn turned(&mut self, turn: Turn) -> State {
        match turn {
            Turn::Challenge(challenge, exchange) => {
                self.say(&format!("334 {challenge}"));
                State::Challenged(exchange)
            }
            Turn::Through(credentials, mechanism) => self.asks(credentials, mechanism),
            Turn::Cancelled => self.cancelled(),
            Turn::Broken => self.broken(),
            Turn::Unknown => self.bad("504 5.5.4 the mechanisms are PLAIN and LOGIN"),
        }
    }

    /// Hands the login over. What can be no user name and password is refused like a wrong password, and
    /// goes no further.
    fn asks(&mut self, credentials: Option<Credentials>, mechanism: &'static str) -> State {
        let Some(credentials) = credentials else {
            return self.refused(&Refusal::BadCredentials);
        };
        let client_name = self.client_name.clone();
        self.steps.push_back(Step::Done(Login { credentials, mechanism, client_name, by_address: false }));
        State::Asking
    }

    /// A client that sends without a login has one where its address stands for it.
    fn send(&mut self, line: &[u8]) -> State {
        let Some(credentials) = self.settings.without_login.clone() else {
            return self.bad("530 5.7.0 Authentication required");
        };
        let (client_name, mechanism) = (self.client_name.clone(), "address");
        self.steps.push_back(Step::Done(Login { credentials, mechanism, client_name, by_address: true }));
        State::Sending { mail: [line, b"\r\n"].concat() }
    }

    /// What MAIL may be answered (RFC 5321 §4.3.2): 451 for patience, 550 for good.
    fn not_sent(&mut self, why: &Refusal) -> State {
        let sentence = why.sentence();
        match why {
            Refusal::BadCredentials | Refusal::PasswordExpired | Refusal::ContactAdmin(_) => {
                self.say(&format!("550 5.7.1 {sentence}"));
            }
            Refusal::HeldBack { .. } | Refusal::Unavailable { .. } => {
                self.say(&format!("451 4.7.1 {sentence}"));
            }
            Refusal::TooManySessions => {
                self.say(&format!("421 4.7.0 {sentence}"));
                return self.close(Farewell::HungUp);
            }
        }
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= self.settings.max_refusals {
            self.say("421 4.7.0 too many refused messages");
            return self.close(Farewell::TooManyRefusals);
        }
        State::Ready
    }

    /// RFC 4954 §6: 535 asks for another password, 454 for patience.
    fn refused(&mut self, why: &Refusal) -> State {
        let sentence = why.sentence();
        match why {
            Refusal::BadCredentials | Refusal::PasswordExpired | Refusal::ContactAdmin(_) => {
                self.say(&format!("535 5.7.8 {sentence}"));
            }
            Refusal::HeldBack { .. } | Refusal::Unavailable { .. } => {
                self.say(&format!("454 4.7.0 {sentence}"));
            }
            Refusal::TooManySessions => {
                self.say(&format!("421 4.7.0 {sentence}"));
                return self.close(Farewell::HungUp);
            }
        }
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= self.settings.max_refusals {
            self.say("421 4.7.0 too many refused logins");
            return self.close(Farewell::TooManyRefusals);
        }
        State::Ready
    }

    fn discard(&mut self, octets: u64) -> State {
        let here = self.inbox.len().min(usize::try_from(octets).unwrap_or(usize::MAX));
        drop(self.inbox.octets(here));
        State::Discarding { octets: octets.saturating_sub(here as u64) }
    }

    fn cancelled(&mut self) -> State {
        self.bad("501 5.7.0 Authentication cancelled")
    }

    fn broken(&mut self) -> State {
        self.bad("501 5.5.2 the response is no base64")
    }

    fn good(&mut self, reply: &str) -> State {
        self.say(reply);
        State::Ready
    }

    fn bad(&mut self, reply: &str) -> State {
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands >= MAX_BAD_COMMANDS {
            self.say("421 4.7.0 too many bad commands");
            return self.close(Farewell::TooManyErrors);
        }
        self.good(reply)
    }

    /// RFC 4954 §6 has 500 5.5.6 for a line that is too long.
    fn too_long(&mut self) -> State {
        self.say("500 5.5.6 the line is too long");
        self.close(Farewell::TooLong)
    }

    fn close(&mut self, why: Farewell) -> State {
        self.steps.push_back(Step::Close(why));
        self.inbox.clear();
        State::Over
    }

    /// The EHLO answer (RFC 5321 §4.1.1.1): what upstream offers, then what is ours. `AUTH=` is for clients
    /// that read the draft before RFC 2554.
    fn extensions(&self) -> String {
        let mut answer = format!("250-{}\r\n", self.settings.host_name);
        for line in self.settings.offer.0.iter().filter(|line| !is_ours(line)) {
            let _ = write!(answer, "250-{line}\r\n");
        }
        if self.settings.starttls && !self.encrypted {
            answer.push_str("250-STARTTLS\r\n");
        }
        if !self.must_encrypt() && self.settings.without_login.is_none() {
            answer.push_str("250-AUTH PLAIN LOGIN\r\n250-AUTH=PLAIN LOGIN\r\n");
        }
        answer.push_str("250 ENHANCEDSTATUSCODES");
        answer
    }

    fn must_encrypt(&self) -> bool {
        self.settings.require_tls && !self.encrypted
    }

    fn say(&mut self, reply: &str) {
        self.steps.push_back(Step::Write([reply, "\r\n"].concat().into_bytes()));
    }
}
