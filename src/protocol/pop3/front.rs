//! The POP3 dialogue before login, with us in the server's seat.
//!
//! ```text
//! Silent ──greeting──► Ready ──STLS──► Upgrading ──secured──► Ready
//!                        │ ▲
//!        USER, PASS/AUTH │ └────────── refuse, tries left ───────┐
//!                        ▼                                       │
//!                      Asking ──grant──► Granted                 │
//!                        └───────────────────────────────────────┴── refuse, none left ─► Over
//! ```
//! Understands CAPA, USER, PASS, AUTH PLAIN and LOGIN, STLS, NOOP, QUIT; all else gets `-ERR`.
//!
//! Never: parses after the grant, waits, logs, or sees a token. No input is repeated in a reply.
//!
//! Standards: RFC 1939 §4 and §7, RFC 2449, RFC 2595 §4, RFC 3206, RFC 5034.
//! Transcripts: `tests/transcripts/pop3/front/`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::mem;

use zeroize::Zeroizing;

use super::grammar::{Command, command, is_ours};
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

/// A POP3 login dialogue with a mail client.
pub struct Pop3Front {
    settings: FrontSettings,
    state: State,
    inbox: Inbox,
    steps: VecDeque<Step<Login>>,
    encrypted: bool,
    bad_commands: u8,
    refusals: u8,
}

/// Where the dialogue stands. Each state owns what only it needs.
#[derive(Default)]
enum State {
    /// The greeting is still to be said.
    Silent,
    /// Waiting for a command.
    Ready,
    /// Waiting for a command, PASS above all.
    Named(Vec<u8>),
    /// AUTH was answered with a challenge.
    Challenged(Exchange),
    /// STLS was granted; what comes now belongs to the handshake.
    Upgrading,
    /// A login was handed over; the verdict is awaited.
    Asking,
    /// The rest is not for us.
    Granted,
    /// We have hung up.
    #[default]
    Over,
}

impl Pop3Front {
    /// A dialogue that begins with our greeting.
    pub fn new(settings: FrontSettings) -> Self {
        Self {
            settings,
            state: State::Silent,
            inbox: Inbox::default(),
            steps: VecDeque::new(),
            encrypted: false,
            bad_commands: 0,
            refusals: 0,
        }
    }
}

impl Front for Pop3Front {
    fn feed(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Upgrading | State::Over) {
            self.inbox.feed(bytes);
        }
    }

    fn secured(&mut self) {
        self.inbox.clear();
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
                    // No `<…@…>` in it: some clients would choose APOP.
                    self.say("+OK Mailkey ready");
                    State::Ready
                }
                State::Asking if self.inbox.len() > MAX_PIPELINED => self.too_long(),
                waiting @ (State::Upgrading | State::Asking | State::Granted | State::Over) => {
                    self.state = waiting;
                    return Step::Read;
                }
                State::Ready | State::Named(_) if foreign::is_tls(self.inbox.peek()) => {
                    self.close(Farewell::WrongProtocol)
                }
                listening @ (State::Ready | State::Named(_) | State::Challenged(_)) => {
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
        self.say("+OK logged in");
        self.state = State::Granted;
    }

    fn refuse(&mut self, why: &Refusal) {
        self.state = self.refused(why);
    }

    fn hang_up(&mut self, why: HangUp) {
        // Inside a handshake there is nobody who could read a line.
        if matches!(self.state, State::Upgrading) {
            self.steps.clear();
        } else {
            match why {
                HangUp::TimedOut => self.say("-ERR [SYS/TEMP] the login took too long"),
                HangUp::ShuttingDown => self.say("-ERR [SYS/TEMP] shutting down; try again later"),
                HangUp::Refused(why) => self.say_refusal(&why),
            }
        }
        self.state = self.close(Farewell::HungUp);
    }

    fn into_rest(self: Box<Self>) -> Vec<u8> {
        self.inbox.into_rest()
    }
}

impl Pop3Front {
    fn heard(&mut self, state: State, line: &[u8]) -> State {
        match state {
            State::Ready => self.commanded(None, line),
            State::Named(user) => self.commanded(Some(user), line),
            State::Challenged(exchange) => self.turned(exchange.answer(line)),
            unmoved @ (State::Silent | State::Upgrading | State::Asking | State::Granted | State::Over) => {
                unmoved
            }
        }
    }

    fn commanded(&mut self, user: Option<Vec<u8>>, line: &[u8]) -> State {
        match command(line) {
            Command::Capa => {
                let capabilities = self.capabilities();
                self.say(&capabilities);
                back_to(user)
            }
            Command::Noop => {
                self.say("+OK");
                back_to(user)
            }
            Command::Quit => {
                self.say("+OK bye");
                self.close(Farewell::Quit)
            }
            Command::Stls => self.upgrade(user),
            Command::User(_) | Command::Pass(_) | Command::Auth { .. } if self.must_encrypt() => {
                self.bad("-ERR must issue a STLS command first", back_to(user))
            }
            Command::User(name) => {
                self.say("+OK");
                State::Named(name.to_vec())
            }
            Command::Pass(password) => match user {
                Some(user) => self.asks(Credentials::decode(&user, password).ok(), "USER"),
                None => self.bad("-ERR say USER first", State::Ready),
            },
            Command::AuthList => {
                self.say(if self.must_encrypt() { "+OK\r\n." } else { "+OK\r\nPLAIN\r\nLOGIN\r\n." });
                back_to(user)
            }
            Command::Auth { mechanism, initial } => self.turned(sasl::begin(mechanism, initial)),
            Command::Apop => self.bad("-ERR APOP cannot be used here; use USER and PASS", back_to(user)),
            Command::Later => self.bad("-ERR log in first", back_to(user)),
            Command::Foreign => self.close(Farewell::WrongProtocol),
            Command::Unknown => self.bad("-ERR unknown command", back_to(user)),
        }
    }

    fn upgrade(&mut self, user: Option<Vec<u8>>) -> State {
        if self.encrypted {
            return self.bad("-ERR TLS is already on", back_to(user));
        }
        if !self.settings.starttls {
            return self.bad("-ERR TLS is not offered here", back_to(user));
        }
        self.say("+OK begin TLS");
        self.steps.push_back(Step::StartTls);
        State::Upgrading
    }

    fn turned(&mut self, turn: Turn) -> State {
        match turn {
            Turn::Challenge(challenge, exchange) => {
                self.say(&format!("+ {challenge}"));
                State::Challenged(exchange)
            }
            Turn::Through(credentials, mechanism) => self.asks(credentials, mechanism),
            Turn::Cancelled => self.cancelled(),
            Turn::Broken => self.broken(),
            Turn::Unknown => self.bad("-ERR the mechanisms are PLAIN and LOGIN", State::Ready),
        }
    }

    /// Hands the login over. What can be no user name and password is refused like a wrong password, and
    /// goes no further.
    fn asks(&mut self, credentials: Option<Credentials>, mechanism: &'static str) -> State {
        let Some(credentials) = credentials else {
            return self.refused(&Refusal::BadCredentials);
        };
        self.steps.push_back(Step::Done(Login {
            credentials,
            mechanism,
            client_name: None,
            by_address: false,
        }));
        State::Asking
    }

    fn refused(&mut self, why: &Refusal) -> State {
        self.say_refusal(why);
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= self.settings.max_refusals {
            return self.close(Farewell::TooManyRefusals);
        }
        State::Ready
    }

    fn cancelled(&mut self) -> State {
        self.bad("-ERR cancelled", State::Ready)
    }

    fn broken(&mut self) -> State {
        self.bad("-ERR the response is no base64", State::Ready)
    }

    fn bad(&mut self, reply: &str, next: State) -> State {
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands >= MAX_BAD_COMMANDS {
            self.say("-ERR too many bad commands");
            return self.close(Farewell::TooManyErrors);
        }
        self.say(reply);
        next
    }

    fn too_long(&mut self) -> State {
        self.say("-ERR the line is too long");
        self.close(Farewell::TooLong)
    }

    fn close(&mut self, why: Farewell) -> State {
        self.steps.push_back(Step::Close(why));
        self.inbox.clear();
        State::Over
    }

    /// The CAPA answer (RFC 2449 §5): what upstream offers, then what is ours. PIPELINING is passed on and
    /// never added: we could, but it also holds after the login.
    fn capabilities(&self) -> String {
        let mut answer = "+OK\r\n".to_owned();
        for line in self.settings.offer.0.iter().filter(|line| !is_ours(line)) {
            let _ = write!(answer, "{line}\r\n");
        }
        if !self.must_encrypt() {
            answer.push_str("USER\r\nSASL PLAIN LOGIN\r\n");
        }
        if self.settings.starttls && !self.encrypted {
            answer.push_str("STLS\r\n");
        }
        answer.push_str("RESP-CODES\r\nAUTH-RESP-CODE\r\n.");
        answer
    }

    fn must_encrypt(&self) -> bool {
        self.settings.require_tls && !self.encrypted
    }

    /// RFC 3206 §4 and §5, RFC 2449 §8.1.2: clients decide by the code whether to ask for a new password.
    fn say_refusal(&mut self, why: &Refusal) {
        let code = match why {
            Refusal::BadCredentials | Refusal::PasswordExpired => "AUTH",
            Refusal::HeldBack { .. } | Refusal::Unavailable { .. } => "SYS/TEMP",
            Refusal::ContactAdmin(_) => "SYS/PERM",
            Refusal::TooManySessions => "IN-USE",
        };
        self.say(&format!("-ERR [{code}] {}", why.sentence()));
    }

    fn say(&mut self, reply: &str) {
        self.steps.push_back(Step::Write([reply, "\r\n"].concat().into_bytes()));
    }
}

/// A command that does not touch the login leaves the user name in place.
fn back_to(user: Option<Vec<u8>>) -> State {
    user.map_or(State::Ready, State::Named)
}
