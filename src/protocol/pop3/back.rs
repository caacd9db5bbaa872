//! The POP3 dialogue with upstream, with us in the client's seat.
//!
//! ```text
//! Greeting ──(STLS)──► Encrypting ──► Upgrading ──secured─┐
//!    └──────────────────────────────────────────────────┬─┘
//!                    sign in: AUTH XOAUTH2 ◄────────────┼──► learn: CAPA ──► Listing ──QUIT──► Over
//!                              │ +   ▲                   ▼
//!                              ▼     └──sign_in────── Waiting
//!                          Presented ──+ challenge──► Challenged ──-ERR──► Over
//! ```
//! The token goes on a line of its own, always: Exchange Online closes the connection on the one-line form.
//!
//! Never: writes a token without the proof, waits, logs.
//!
//! Standards: RFC 1939, RFC 2449 §5, RFC 2595 §4, RFC 5034 §4.
//! Transcripts: `tests/transcripts/pop3/back/`.

use std::collections::VecDeque;
use std::mem;

use super::grammar::{Reply, asks_for_patience, offer, reply};
use crate::explain::one_line;
use crate::protocol::line::{Inbox, MAX_REPLY_LINE, Taken};
use crate::protocol::machine::{Back, BackError, Errand, Offer, SignIn, Step, Welcome};
use crate::protocol::sasl;
use crate::secret::Encrypted;

/// Lines in one answer to CAPA.
pub const MAX_CAPA_LINES: usize = 100;

/// What of an answer is kept for the log, in characters.
const MAX_REPLY_TEXT: usize = 500;

type Outcome = Result<Welcome, BackError>;

/// A POP3 login dialogue with upstream.
pub struct Pop3Back {
    errand: Errand,
    starttls: bool,
    state: State,
    inbox: Inbox,
    steps: VecDeque<Step<Outcome>>,
    proof: Option<Encrypted>,
}

/// Where the dialogue stands. Each state owns what only it needs.
#[derive(Default)]
enum State {
    /// Upstream speaks first.
    Greeting,
    /// STLS was asked for.
    Encrypting,
    /// STLS was granted; the handshake is not for us.
    Upgrading,
    /// Greeted; somebody will sign in, or nobody.
    Waiting,
    /// `AUTH XOAUTH2` was said.
    Announced(SignIn),
    /// The token was sent.
    Presented(SignIn),
    /// Its error challenge was answered.
    Challenged { challenge: String },
    /// CAPA was asked for.
    Asked,
    /// Its answer is coming in.
    Listing(Vec<String>),
    /// All is said.
    #[default]
    Over,
}

impl Pop3Back {
    /// A dialogue over implicit TLS: `secured` is to be called before the first step.
    pub fn new(errand: Errand) -> Self {
        Self {
            errand,
            starttls: false,
            state: State::Greeting,
            inbox: Inbox::default(),
            steps: VecDeque::new(),
            proof: None,
        }
    }

    /// A dialogue that begins in clear text and insists on STLS.
    pub fn with_starttls(errand: Errand) -> Self {
        Self { starttls: true, ..Self::new(errand) }
    }
}

impl Back for Pop3Back {
    fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Upgrading) {
            if !bytes.is_empty() {
                self.steps.clear();
                self.state = self.fail(BackError::Injected);
            }
            return;
        }
        self.inbox.feed(bytes);
    }

    fn secured(&mut self, proof: Encrypted) {
        self.inbox.clear();
        self.proof = Some(proof);
        if matches!(self.state, State::Upgrading) {
            self.state = self.proceed();
        }
    }

    fn step(&mut self) -> Step<Outcome> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            if matches!(self.state, State::Upgrading | State::Over) {
                return Step::Read;
            }
            match self.inbox.line(MAX_REPLY_LINE) {
                Taken::Line(line) => {
                    let state = mem::take(&mut self.state);
                    self.state = self.heard(state, &line);
                }
                Taken::TooLong => self.state = self.fail(BackError::TooLong),
                Taken::Incomplete => return Step::Read,
            }
        }
    }

    fn waits(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    fn sign_in(&mut self, sign_in: SignIn) {
        self.errand = Errand::SignIn(sign_in);
        if self.waits() {
            self.state = if self.inbox.is_empty() {
                self.proceed()
            } else {
                let expected = State::Waiting.expects();
                self.fail(BackError::Unexpected { expected, got: "part of a line".to_owned() })
            };
        }
    }

    fn dismiss(&mut self) {
        if self.waits() {
            self.say("QUIT");
            self.state = State::Over;
        }
    }

    fn into_rest(self: Box<Self>) -> Vec<u8> {
        self.inbox.into_rest()
    }
}

impl Pop3Back {
    fn heard(&mut self, state: State, line: &[u8]) -> State {
        match (state, reply(line)) {
            (State::Greeting, Reply::Ok(_)) if self.starttls => {
                self.say("STLS");
                State::Encrypting
            }
            (State::Greeting, Reply::Ok(_)) => self.proceed(),
            (State::Greeting | State::Waiting, Reply::Err(text)) if !is_permanent(text) => {
                self.try_later(line)
            }
            (State::Encrypting, Reply::Ok(_)) if !self.inbox.is_empty() => self.fail(BackError::Injected),
            (State::Encrypting, Reply::Ok(_)) => {
                self.steps.push_back(Step::StartTls);
                State::Upgrading
            }
            (State::Encrypting, Reply::Err(text)) if asks_for_patience(text) => self.try_later(line),
            (State::Encrypting, Reply::Err(_)) => self.fail(BackError::NoStartTls),

            (State::Announced(sign_in), Reply::Continue(_)) => self.present(sign_in),
            (State::Announced(_), Reply::Err(text)) if asks_for_patience(text) => self.try_later(line),
            (State::Announced(_), Reply::Err(_)) => {
                self.fail(BackError::NoMechanism { offered: printable(line) })
            }
            (State::Presented(sign_in), Reply::Continue(challenge)) => {
                self.say(sasl::answer_to_challenge(sign_in.mechanism));
                State::Challenged { challenge: sasl::challenge(challenge) }
            }
            (State::Presented(_), Reply::Ok(_)) => {
                self.end(Ok(Welcome { offer: None, reply: printable(line) }))
            }
            (State::Presented(_) | State::Challenged { .. }, Reply::Err(text)) if asks_for_patience(text) => {
                self.try_later(line)
            }
            (State::Presented(_), Reply::Err(_)) => {
                self.fail(BackError::Refused { reply: printable(line), challenge: None })
            }
            (State::Challenged { challenge }, Reply::Err(_)) => {
                self.fail(BackError::Refused { reply: printable(line), challenge: Some(challenge) })
            }

            (State::Asked, Reply::Ok(_)) => State::Listing(Vec::new()),
            // A server from before RFC 2449: it says nothing, which is not the same as offering nothing.
            (State::Asked, Reply::Err(_)) => self.learned(None, line),
            (State::Listing(lines), _) if line == b"." => self.learned(Some(offer(&lines)), b"+OK"),
            (State::Listing(lines), _) if lines.len() >= MAX_CAPA_LINES => self.fail(BackError::TooLong),
            (State::Listing(mut lines), _) => {
                lines.push(printable(line));
                State::Listing(lines)
            }
            (state, _) => {
                self.fail(BackError::Unexpected { expected: state.expects(), got: printable(line) })
            }
        }
    }

    /// What we came for, once the connection is as it should be.
    fn proceed(&mut self) -> State {
        match self.errand.clone() {
            Errand::SignIn(sign_in) => {
                self.say(&format!("AUTH {}", sasl::name(sign_in.mechanism)));
                State::Announced(sign_in)
            }
            Errand::Learn { .. } => {
                self.say("CAPA");
                State::Asked
            }
            Errand::Wait { .. } => State::Waiting,
        }
    }

    fn present(&mut self, sign_in: SignIn) -> State {
        let Some(proof) = &self.proof else {
            return self.fail(BackError::Unexpected {
                expected: "an encrypted connection",
                got: "a plain one".to_owned(),
            });
        };
        let message = sasl::bearer(&sign_in, proof);
        self.say(&message);
        State::Presented(sign_in)
    }

    fn learned(&mut self, offer: Option<Offer>, reply: &[u8]) -> State {
        self.say("QUIT");
        self.end(Ok(Welcome { offer, reply: printable(reply) }))
    }

    fn try_later(&mut self, line: &[u8]) -> State {
        self.fail(BackError::TryLater { reply: printable(line) })
    }

    fn fail(&mut self, error: BackError) -> State {
        self.end(Err(error))
    }

    fn end(&mut self, outcome: Outcome) -> State {
        self.steps.push_back(Step::Done(sasl::without_token(outcome, &self.errand)));
        State::Over
    }

    fn say(&mut self, command: &str) {
        self.steps.push_back(Step::Write([command, "\r\n"].concat().into_bytes()));
    }
}

impl State {
    fn expects(&self) -> &'static str {
        match self {
            Self::Greeting => "a POP3 greeting, `+OK`",
            Self::Encrypting => "`+OK` to STLS",
            Self::Waiting => "nothing before the sign-in",
            Self::Announced(_) => "`+` to AUTH",
            Self::Presented(_) => "`+OK`, `-ERR` or a challenge to the token",
            Self::Challenged { .. } => "`-ERR` after the error challenge",
            Self::Asked | Self::Listing(_) => "`+OK` and a list to CAPA",
            Self::Upgrading | Self::Over => "nothing",
        }
    }
}

/// A greeting of `-ERR` mostly means a full or ailing server; `[SYS/PERM]` says otherwise (RFC 3206 §4).
fn is_permanent(text: &[u8]) -> bool {
    text.get(..10).is_some_and(|code| code.eq_ignore_ascii_case(b"[SYS/PERM]"))
}

fn printable(line: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(line), MAX_REPLY_TEXT)
}
