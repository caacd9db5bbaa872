//! The SMTP dialogue with upstream, with us in the client's seat.
//!
//! ```text
//! Greeting ──EHLO──► Introduced ──STARTTLS──► Encrypting ──► Upgrading ──secured, EHLO─┐
//!    └───────────────────────EHLO─────────────────────────────────────────────────┬───┘
//!                                                                    Hello ◄──────┘
//!               sign in: AUTH XOAUTH2 ◄────────────────────────────────┼──► learn: QUIT ──► Over
//!                              │     ▲                                  ▼
//!                              │     └──sign_in (another name: EHLO)── Waiting
//!                              │ (334, where the line would be too long)
//!                              ▼
//!                          Presented ──334 challenge──► Challenged ──535──► Over
//! ```
//! Where STARTTLS is wanted there is no way around it: nothing of the sign-in is said in clear, and what
//! was heard in clear is forgotten.
//!
//! Never: writes a token without the proof, waits, logs.
//!
//! Standards: RFC 5321 §4.1–4.2, RFC 3207 §4, RFC 4954 §4.
//! Transcripts: `tests/transcripts/smtp/back/`.

use std::collections::VecDeque;
use std::mem;

use super::grammar::{is_client_name, joined, mechanisms, offer, reply_line};
use crate::explain::one_line;
use crate::protocol::line::{Inbox, MAX_REPLY_LINE, Taken};
use crate::protocol::machine::{Back, BackError, Errand, Offer, SignIn, Step, Welcome};
use crate::protocol::sasl::{self, Message};
use crate::secret::Encrypted;

/// Lines in one reply.
pub const MAX_REPLY_LINES: usize = 100;

/// The longest AUTH command that carries the token, in octets with its CRLF: what every server takes as a command
/// (RFC 5321 §4.5.3.1.4). Real tokens are longer and go on a line of their own, which has other limits: Postfix
/// cuts commands at 2,048 octets (`line_length_limit`), and SASL responses at 12,288.
pub const MAX_AUTH_LINE: usize = 512;

/// The same at Microsoft, whose page shows the token on the command's line: RFC 4954 §4.5's limit. One round trip
/// is spared.
pub const MAX_AUTH_LINE_AT_MICROSOFT: usize = 12_288;

/// Where that holds: Microsoft's submission hosts in all clouds, as they are configured, or as they call themselves
/// where another name leads to them.
const MICROSOFT: [&str; 4] = [".office365.com", ".office365.us", ".outlook.com", ".partner.outlook.cn"];

/// What of a reply is kept for the log, in characters.
const MAX_REPLY_TEXT: usize = 500;

/// Our name where the client's cannot be repeated (RFC 5321 §4.1.3: an address literal is always proper).
const NAMELESS: &str = "[127.0.0.1]";

type Outcome = Result<Welcome, BackError>;

/// An SMTP login dialogue with upstream.
pub struct SmtpBack {
    errand: Errand,
    starttls: bool,
    state: State,
    inbox: Inbox,
    /// The lines of a reply that is still coming in.
    partial: Option<Reply>,
    steps: VecDeque<Step<Outcome>>,
    proof: Option<Encrypted>,
    /// The name in the last EHLO.
    introduced_as: String,
}

/// Where the dialogue stands. Each state owns what only it needs.
#[derive(Default)]
enum State {
    /// Upstream speaks first.
    Greeting,
    /// EHLO was said in clear.
    Introduced,
    /// STARTTLS was asked for.
    Encrypting,
    /// It was granted; the handshake is not for us.
    Upgrading,
    /// The EHLO that counts was said.
    Hello,
    /// It was answered; somebody will sign in, or nobody.
    Waiting(Reply),
    /// `AUTH XOAUTH2` was said, without the token.
    Announced { sign_in: SignIn, offer: Offer, message: Message },
    /// The token was sent.
    Presented {
        sign_in: SignIn,
        offer: Offer,
        /// On the line of the command: an empty 334 then asks for it again.
        inline: bool,
    },
    /// The error challenge was answered.
    Challenged { challenge: String },
    /// All is said.
    #[default]
    Over,
}

/// A whole reply.
#[derive(Clone)]
struct Reply {
    code: u16,
    lines: Vec<String>,
}

impl SmtpBack {
    /// A dialogue over implicit TLS: `secured` is to be called before the first step.
    pub fn new(errand: Errand) -> Self {
        Self {
            errand,
            starttls: false,
            state: State::Greeting,
            inbox: Inbox::default(),
            partial: None,
            steps: VecDeque::new(),
            proof: None,
            introduced_as: String::new(),
        }
    }

    /// A dialogue that begins in clear text and insists on STARTTLS.
    pub fn with_starttls(errand: Errand) -> Self {
        Self { starttls: true, ..Self::new(errand) }
    }
}

impl Back for SmtpBack {
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
        self.partial = None;
        self.proof = Some(proof);
        if matches!(self.state, State::Upgrading) {
            self.introduce();
            self.state = State::Hello;
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
                Taken::Line(line) => self.heard_line(&line),
                Taken::TooLong => self.state = self.fail(BackError::TooLong),
                Taken::Incomplete => return Step::Read,
            }
        }
    }

    fn waits(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    fn sign_in(&mut self, sign_in: SignIn) {
        self.errand = Errand::SignIn(sign_in);
        if !self.waits() {
            return;
        }
        let State::Waiting(reply) = mem::take(&mut self.state) else { return };
        self.state = if !self.inbox.is_empty() || self.partial.is_some() {
            self.unexpected("part of a reply".to_owned())
        } else if self.introduced_as == self.name() {
            self.proceed(&reply)
        } else {
            // the name stands in the messages' Received header: it is the mail client's
            self.introduce();
            State::Hello
        };
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

impl SmtpBack {
    /// Collects the lines of a reply.
    fn heard_line(&mut self, line: &[u8]) {
        let read = reply_line(line);
        let so_far = self.partial.take();
        let (Some(read), true) =
            (read, so_far.as_ref().is_none_or(|reply| read.is_some_and(|read| read.code == reply.code)))
        else {
            let got = one_line(&String::from_utf8_lossy(line), MAX_REPLY_TEXT);
            self.state = self.unexpected(got);
            return;
        };
        let mut reply = so_far.unwrap_or(Reply { code: read.code, lines: Vec::new() });
        if reply.lines.len() >= MAX_REPLY_LINES {
            self.state = self.fail(BackError::TooLong);
            return;
        }
        reply.lines.push(printable(read.text));
        if read.last {
            let state = mem::take(&mut self.state);
            self.state = self.heard(state, &reply);
        } else {
            self.partial = Some(reply);
        }
    }

    fn heard(&mut self, state: State, reply: &Reply) -> State {
        match (state, reply.code) {
            (_, 400..500) => self.fail(BackError::TryLater { reply: reply.joined() }),
            (State::Greeting, 220) => {
                self.introduce();
                if self.starttls { State::Introduced } else { State::Hello }
            }
            (State::Introduced, 250) => self.encrypt(reply),
            (State::Encrypting, 220) if !self.inbox.is_empty() => self.fail(BackError::Injected),
            (State::Encrypting, 220) => {
                self.steps.push_back(Step::StartTls);
                State::Upgrading
            }
            (State::Encrypting, 500..600) => self.fail(BackError::NoStartTls),
            (State::Hello, 250) => self.proceed(reply),

            (State::Announced { sign_in, offer, message }, 334) => self.present(sign_in, offer, &message),
            (State::Presented { sign_in, offer, inline: true }, 334) if reply.is_empty() => {
                let Some(proof) = &self.proof else { return self.not_encrypted() };
                let message = sasl::bearer(&sign_in, proof);
                self.present(sign_in, offer, &message)
            }
            (State::Presented { sign_in, .. }, 334) => {
                self.say(sasl::answer_to_challenge(sign_in.mechanism));
                let challenge = reply.lines.concat();
                State::Challenged { challenge: sasl::challenge(challenge.trim().as_bytes()) }
            }
            (State::Presented { offer, .. }, 235) => {
                self.end(Ok(Welcome { offer: Some(offer), reply: reply.joined() }))
            }
            // "504 Unrecognized authentication type" (RFC 4954 §4)
            (State::Announced { .. } | State::Presented { .. }, 502 | 504) => {
                self.fail(BackError::NoMechanism { offered: reply.joined() })
            }
            (State::Announced { .. } | State::Presented { .. }, 500..=501 | 505..600) => {
                self.fail(BackError::Refused { reply: reply.joined(), challenge: None })
            }
            (State::Challenged { challenge }, 500..600) => {
                self.fail(BackError::Refused { reply: reply.joined(), challenge: Some(challenge) })
            }
            (state, _) => {
                self.state = state;
                self.unexpected(reply.joined())
            }
        }
    }

    fn introduce(&mut self) {
        self.introduced_as = self.name().to_owned();
        let hello = format!("EHLO {}", self.introduced_as);
        self.say(&hello);
    }

    fn name(&self) -> &str {
        let (Errand::SignIn(SignIn { client_name, .. })
        | Errand::Learn { client_name }
        | Errand::Wait { client_name }) = &self.errand;
        if is_client_name(client_name) { client_name } else { NAMELESS }
    }

    fn encrypt(&mut self, reply: &Reply) -> State {
        if !reply.extensions().iter().any(|line| line.trim().eq_ignore_ascii_case("STARTTLS")) {
            return self.fail(BackError::NoStartTls);
        }
        self.say("STARTTLS");
        State::Encrypting
    }

    /// What we came for, once the connection is as it should be.
    fn proceed(&mut self, reply: &Reply) -> State {
        let offer = offer(reply.extensions());
        let sign_in = match self.errand.clone() {
            Errand::SignIn(sign_in) => sign_in,
            Errand::Learn { .. } => {
                self.say("QUIT");
                return self.end(Ok(Welcome { offer: Some(offer), reply: reply.joined() }));
            }
            Errand::Wait { .. } => return State::Waiting(reply.clone()),
        };
        let offered = mechanisms(reply.extensions());
        let mechanism = sasl::name(sign_in.mechanism);
        if !offered.iter().any(|offered| offered == mechanism) {
            let offered = one_line(&offered.join(" "), MAX_REPLY_TEXT);
            return self.fail(BackError::NoMechanism { offered });
        }
        let Some(proof) = &self.proof else { return self.not_encrypted() };
        let message = sasl::bearer(&sign_in, proof);
        let in_one_line = "AUTH ".len() + mechanism.len() + " ".len() + message.len() + "\r\n".len();
        let at_microsoft = is_microsofts(&sign_in.host) || is_microsofts(reply.domain());
        let limit = if at_microsoft { MAX_AUTH_LINE_AT_MICROSOFT } else { MAX_AUTH_LINE };
        if in_one_line > limit {
            self.say(&format!("AUTH {mechanism}"));
            return State::Announced { sign_in, offer, message };
        }
        let line = ["AUTH ", mechanism, " ", &message, "\r\n"].concat();
        self.steps.push_back(Step::Write(line.into_bytes()));
        State::Presented { sign_in, offer, inline: true }
    }

    /// The token, on a line of its own.
    fn present(&mut self, sign_in: SignIn, offer: Offer, message: &str) -> State {
        self.say(message);
        State::Presented { sign_in, offer, inline: false }
    }

    fn not_encrypted(&mut self) -> State {
        let got = "a plain one".to_owned();
        self.fail(BackError::Unexpected { expected: "an encrypted connection", got })
    }

    fn unexpected(&mut self, got: String) -> State {
        let expected = self.state.expects();
        self.fail(BackError::Unexpected { expected, got })
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
            Self::Greeting => "an SMTP greeting, `220`",
            Self::Introduced | Self::Hello => "`250` to EHLO",
            Self::Encrypting => "`220` to STARTTLS",
            Self::Waiting(_) => "nothing before the sign-in",
            Self::Announced { .. } => "`334` to AUTH",
            Self::Presented { .. } => "`235`, `535` or a challenge to the token",
            Self::Challenged { .. } => "`535` after the error challenge",
            Self::Upgrading | Self::Over => "nothing",
        }
    }
}

impl Reply {
    /// All in one printable line.
    fn joined(&self) -> String {
        joined(self.code, &self.lines, MAX_REPLY_TEXT)
    }

    /// Who answers EHLO, in its own words (`ehlo-ok-rsp`, RFC 5321 §4.1.1.1).
    fn domain(&self) -> &str {
        self.lines.first().and_then(|line| line.split(' ').next()).unwrap_or_default()
    }

    /// The lines of an EHLO answer behind its first, which only greets.
    fn extensions(&self) -> &[String] {
        self.lines.get(1..).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.trim().is_empty())
    }
}

fn is_microsofts(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    MICROSOFT.iter().any(|domain| host.ends_with(domain))
}

fn printable(text: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(text), MAX_REPLY_LINE)
}
