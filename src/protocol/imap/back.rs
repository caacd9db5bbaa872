//! The IMAP dialogue with Office 365, with us in the client's seat.
//!
//! ```text
//! implicit TLS  Locked ──proof──► Greeting ─┐
//!                                           ├─► SigningIn ──OK──► Over, the rest is the relay's
//! STARTTLS      ClearGreeting ─► ClearAnswer│
//!                 ─► Upgrading ──proof──────┼─► Learning ──OK──► Over
//!                                           └─► Waiting ──sign_in──► SigningIn
//! ```
//! The token goes out with the command (SASL-IR: one round trip), unless the greeting lists capabilities and
//! SASL-IR is not among them. Errors that come as a challenge (Gmail) are answered, so that the `NO` follows.
//!
//! Never: writes a token without the proof of TLS, reads on behind the tagged answer, waits, logs.
//!
//! Standards: RFC 3501 §6.2, RFC 4959 (SASL-IR), RFC 7628 §3.2.3 (error challenges), Microsoft's "Authenticate an
//! IMAP, POP or SMTP connection using OAuth".
//! Transcripts: `tests/transcripts/imap/back/`.

use std::collections::VecDeque;
use std::mem;

use super::grammar::{self, Response, Status};
use crate::explain::one_line;
use crate::protocol::line::{Inbox, MAX_REPLY_LINE, Taken};
use crate::protocol::machine::{Back, BackError, Errand, Offer, SignIn, Step, Welcome};
use crate::protocol::sasl;
use crate::secret::Encrypted;

/// Untagged lines that may come before the answer that we wait for.
pub const MAX_UNTAGGED: u8 = 100;

/// Challenges that may come before the answer: one asks for the token, one tells of an error.
const MAX_CHALLENGES: u8 = 3;

/// How much of a reply goes to the log, in characters.
const MAX_SHOWN: usize = 500;

/// What a waiting connection expects.
const UNASKED: &str = "nothing before the sign-in";

type Outcome = Result<Welcome, BackError>;

/// IMAP before the login, seen from the client's side. It holds a token on its way: there is no `Debug`.
pub struct ImapBack {
    errand: Errand,
    inbox: Inbox,
    /// What is to be carried out before anything more is read.
    steps: VecDeque<Step<Outcome>>,
    state: State,
    untagged: u8,
}

/// Where the dialogue stands. Only the states past the handshake hold the proof, and only with it is a token
/// turned into octets.
#[derive(Default)]
enum State {
    /// Implicit TLS, and it is not up yet: nothing is read.
    Locked,
    /// STARTTLS: the greeting, in clear.
    ClearGreeting,
    /// STARTTLS: its answer, in clear.
    ClearAnswer,
    /// The handshake is under way.
    Upgrading,
    /// The greeting, past TLS.
    Greeting(Encrypted),
    /// Greeted, with what the greeting listed; somebody will sign in, or nobody.
    Waiting(Encrypted, Option<Vec<String>>),
    /// AUTHENTICATE is sent.
    SigningIn(Exchange),
    /// CAPABILITY is sent.
    Learning(Option<Offer>),
    /// All is said.
    #[default]
    Over,
}

/// What is known while AUTHENTICATE is under way.
struct Exchange {
    proof: Encrypted,
    sign_in: SignIn,
    /// How the token stands with upstream.
    token: TokenIs,
    challenges: u8,
    /// The error challenge, decoded; it may be empty.
    error: Option<String>,
    offer: Option<Offer>,
}

#[derive(Clone, Copy)]
enum TokenIs {
    /// Sent when `+` asks for it.
    Held,
    /// Sent with the command. An empty `+` says that upstream has not looked at it there.
    SentAlong,
    /// Sent as an answer to `+`.
    SentOnDemand,
}

impl Back for ImapBack {
    fn feed(&mut self, bytes: &[u8]) {
        match self.state {
            // TLS has been asked for: whoever still speaks in clear is not upstream.
            State::Upgrading if !bytes.is_empty() => self.finish(Err(BackError::Injected)),
            State::Upgrading => {}
            State::Locked
            | State::ClearGreeting
            | State::ClearAnswer
            | State::Greeting(_)
            | State::Waiting(..)
            | State::SigningIn(_)
            | State::Learning(_)
            | State::Over => self.inbox.feed(bytes),
        }
    }

    fn secured(&mut self, proof: Encrypted) {
        match mem::take(&mut self.state) {
            State::Locked => {
                self.inbox.clear();
                self.state = State::Greeting(proof);
            }
            State::Upgrading => {
                self.inbox.clear();
                self.state = self.set_out(proof, None);
            }
            other @ (State::ClearGreeting
            | State::ClearAnswer
            | State::Greeting(_)
            | State::Waiting(..)
            | State::SigningIn(_)
            | State::Learning(_)
            | State::Over) => self.state = other,
        }
    }

    fn step(&mut self) -> Step<Outcome> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return step;
            }
            if matches!(self.state, State::Locked | State::Upgrading | State::Over) {
                return Step::Read;
            }
            match self.inbox.line(MAX_REPLY_LINE) {
                Taken::Line(line) => {
                    let state = mem::take(&mut self.state);
                    self.state = self.next(state, &line);
                }
                Taken::Incomplete => return Step::Read,
                Taken::TooLong => self.finish(Err(BackError::TooLong)),
            }
        }
    }

    fn waits(&self) -> bool {
        matches!(self.state, State::Waiting(..))
    }

    fn sign_in(&mut self, sign_in: SignIn) {
        self.errand = Errand::SignIn(sign_in);
        if !self.waits() {
            return;
        }
        let State::Waiting(proof, offered) = mem::take(&mut self.state) else { return };
        self.state = if self.inbox.is_empty() {
            self.set_out(proof, offered.as_deref())
        } else {
            self.unexpected(UNASKED, b"part of a line")
        };
    }

    fn dismiss(&mut self) {
        if self.waits() {
            self.write("A1 LOGOUT\r\n");
            self.state = State::Over;
        }
    }

    fn into_rest(self: Box<Self>) -> Vec<u8> {
        self.inbox.into_rest()
    }
}

impl ImapBack {
    /// For a port where TLS comes first (993): `secured` before anything else.
    pub fn new(errand: Errand) -> Self {
        Self::standing(errand, State::Locked)
    }

    /// For a port where TLS is asked for (143).
    pub fn with_starttls(errand: Errand) -> Self {
        Self::standing(errand, State::ClearGreeting)
    }

    fn standing(errand: Errand, state: State) -> Self {
        Self { errand, inbox: Inbox::default(), steps: VecDeque::new(), state, untagged: 0 }
    }

    fn next(&mut self, state: State, line: &[u8]) -> State {
        match state {
            State::ClearGreeting => match greeting(line) {
                Ok(_) => {
                    self.write("A0 STARTTLS\r\n");
                    State::ClearAnswer
                }
                Err(error) => self.end(Err(error)),
            },
            State::ClearAnswer => self.clear_answer(line),
            State::Greeting(proof) => match greeting(line) {
                Ok(offered) => self.set_out(proof, offered.as_deref()),
                Err(error) => self.end(Err(error)),
            },
            State::Waiting(..) => match grammar::response(line) {
                Ok((_, Response::Untagged(data))) if is_goodbye(data) => {
                    self.end(Err(BackError::TryLater { reply: shown(data) }))
                }
                _ => self.unexpected(UNASKED, line),
            },
            State::SigningIn(exchange) => self.signing_in(exchange, line),
            State::Learning(offer) => self.learning(offer, line),
            idle @ (State::Locked | State::Upgrading | State::Over) => idle,
        }
    }

    fn clear_answer(&mut self, line: &[u8]) -> State {
        match grammar::response(line) {
            Ok((_, Response::Tagged { tag: b"A0", status })) => match grammar::status(status) {
                Ok((_, (Status::Ok, _))) if self.inbox.is_empty() => {
                    self.steps.push_back(Step::StartTls);
                    State::Upgrading
                }
                Ok((_, (Status::Ok, _))) => self.end(Err(BackError::Injected)),
                Ok((_, (Status::No | Status::Bad, _))) => self.end(Err(BackError::NoStartTls)),
                _ => self.unexpected("an answer to STARTTLS", line),
            },
            Ok((_, Response::Untagged(data))) => match self.skip(data) {
                Ok(()) => State::ClearAnswer,
                Err(error) => self.end(Err(error)),
            },
            _ => self.unexpected("an answer to STARTTLS", line),
        }
    }

    /// TLS is up and upstream waits for us. `offered` is what its greeting listed, if it did.
    fn set_out(&mut self, proof: Encrypted, offered: Option<&[String]>) -> State {
        self.untagged = 0;
        let sign_in = match &self.errand {
            Errand::SignIn(sign_in) => sign_in.clone(),
            Errand::Learn { .. } => {
                self.write("A1 CAPABILITY\r\n");
                return State::Learning(None);
            }
            Errand::Wait { .. } => return State::Waiting(proof, offered.map(<[String]>::to_vec)),
        };
        let name = sasl::name(sign_in.mechanism);
        let lists = |capability: &str| {
            offered.is_none_or(|list| list.iter().any(|there| there.eq_ignore_ascii_case(capability)))
        };
        let mechanisms = listed_mechanisms(offered.unwrap_or_default());
        if !mechanisms.is_empty() && !lists(&format!("AUTH={name}")) {
            return self.end(Err(BackError::NoMechanism { offered: one_line(&mechanisms, MAX_SHOWN) }));
        }
        let token = if lists("SASL-IR") {
            let response = sasl::bearer(&sign_in, &proof);
            self.write(["A1 AUTHENTICATE ", name, " ", &response, "\r\n"].concat());
            TokenIs::SentAlong
        } else {
            self.write(format!("A1 AUTHENTICATE {name}\r\n"));
            TokenIs::Held
        };
        State::SigningIn(Exchange { proof, sign_in, token, challenges: 0, error: None, offer: None })
    }

    fn signing_in(&mut self, mut exchange: Exchange, line: &[u8]) -> State {
        match grammar::response(line) {
            Ok((_, Response::Continue(challenge))) => {
                exchange.challenges += 1;
                if exchange.challenges > MAX_CHALLENGES {
                    return self.unexpected("an answer to AUTHENTICATE", b"challenge after challenge");
                }
                self.answer_challenge(&mut exchange, challenge);
                State::SigningIn(exchange)
            }
            Ok((_, Response::Untagged(data))) => {
                if let Ok((_, list)) = grammar::capabilities(data) {
                    exchange.offer = Some(offer(list));
                }
                match self.skip(data) {
                    Ok(()) => State::SigningIn(exchange),
                    Err(error) => self.end(Err(error)),
                }
            }
            Ok((_, Response::Tagged { tag: b"A1", status })) => {
                let outcome = exchange.judge(status);
                self.end(outcome)
            }
            _ => self.unexpected("an answer to AUTHENTICATE", line),
        }
    }

    fn answer_challenge(&mut self, exchange: &mut Exchange, challenge: &[u8]) {
        let asks_for_token = match exchange.token {
            TokenIs::Held => true,
            // Yandex takes the command and lets the response behind it fall.
            TokenIs::SentAlong => challenge.iter().all(|&b| b == b' '),
            TokenIs::SentOnDemand => false,
        };
        if asks_for_token {
            exchange.token = TokenIs::SentOnDemand;
            let response = sasl::bearer(&exchange.sign_in, &exchange.proof);
            self.write([&**response, "\r\n"].concat());
            return;
        }
        // Whatever comes after an error is told is no second prompt for the token.
        exchange.token = TokenIs::SentOnDemand;
        exchange.error.get_or_insert_with(|| sasl::challenge(challenge));
        self.write(format!("{}\r\n", sasl::answer_to_challenge(exchange.sign_in.mechanism)));
    }

    fn learning(&mut self, learned: Option<Offer>, line: &[u8]) -> State {
        match grammar::response(line) {
            Ok((_, Response::Untagged(data))) => {
                let learned = grammar::capabilities(data).map(|(_, list)| offer(list)).ok().or(learned);
                match self.skip(data) {
                    Ok(()) => State::Learning(learned),
                    Err(error) => self.end(Err(error)),
                }
            }
            Ok((_, Response::Tagged { tag: b"A1", status })) => {
                let reply = shown(status);
                match grammar::status(status) {
                    Ok((_, (Status::Ok, _))) => {
                        self.write("A2 LOGOUT\r\n");
                        self.end(Ok(Welcome { offer: learned, reply }))
                    }
                    Ok((_, (_, code))) if asks_for_patience(code, status) => {
                        self.end(Err(BackError::TryLater { reply }))
                    }
                    _ => self.unexpected("an answer to CAPABILITY", line),
                }
            }
            _ => self.unexpected("an answer to CAPABILITY", line),
        }
    }

    /// Passes over untagged data, a bounded number of times and unless it is a goodbye.
    fn skip(&mut self, data: &[u8]) -> Result<(), BackError> {
        if is_goodbye(data) {
            return Err(BackError::TryLater { reply: shown(data) });
        }
        self.untagged += 1;
        if self.untagged <= MAX_UNTAGGED {
            return Ok(());
        }
        Err(BackError::Unexpected {
            expected: "a tagged answer",
            got: "untagged lines without end".to_owned(),
        })
    }

    fn unexpected(&mut self, expected: &'static str, line: &[u8]) -> State {
        // It may be our own command that comes back: no more of it than tells what speaks there.
        let got = one_line(&String::from_utf8_lossy(line), 40);
        self.end(Err(BackError::Unexpected { expected, got }))
    }

    fn finish(&mut self, outcome: Outcome) {
        self.state = self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) -> State {
        if outcome.is_err() {
            self.inbox.clear();
        }
        self.steps.push_back(Step::Done(sasl::without_token(outcome, &self.errand)));
        State::Over
    }

    fn write(&mut self, text: impl Into<Vec<u8>>) {
        self.steps.push_back(Step::Write(text.into()));
    }
}

impl Exchange {
    /// What the tagged answer means.
    fn judge(self, answer: &[u8]) -> Outcome {
        let reply = shown(answer);
        let was_told_of_an_error = self.error.is_some();
        let challenge = self.error.filter(|error| !error.is_empty());
        match grammar::status(answer) {
            // nobody has asked for the token: whoever is let in here, it is not for being who we said
            Ok((_, (Status::Ok, _))) if matches!(self.token, TokenIs::Held) => {
                Err(BackError::Unexpected { expected: "`+` or NO to AUTHENTICATE", got: reply })
            }
            Ok((_, (Status::Ok, code))) => {
                let offer = grammar::capabilities(code).map(|(_, list)| offer(list)).ok().or(self.offer);
                Ok(Welcome { offer, reply })
            }
            Ok((_, (Status::No | Status::Bad, code))) if asks_for_patience(code, answer) => {
                Err(BackError::TryLater { reply })
            }
            Ok((_, (Status::No, _))) => Err(BackError::Refused { reply, challenge }),
            // Some call the exchange cancelled, once their error challenge is answered.
            Ok((_, (Status::Bad, _))) if was_told_of_an_error => Err(BackError::Refused { reply, challenge }),
            _ => Err(BackError::Unexpected { expected: "OK or NO to AUTHENTICATE", got: reply }),
        }
    }
}

/// What the greeting lists, if it lists anything.
///
/// PREAUTH would have us skip the login, and with it everything that says who we are there.
fn greeting(line: &[u8]) -> Result<Option<Vec<String>>, BackError> {
    let status = match grammar::response(line) {
        Ok((_, Response::Untagged(data))) => grammar::status(data).ok().map(|(_, status)| (status, data)),
        _ => None,
    };
    match status {
        Some(((Status::Ok, code), _)) => Ok(grammar::capabilities(code).ok().map(|(_, list)| list)),
        Some(((Status::Bye, _), data)) => Err(BackError::TryLater { reply: shown(data) }),
        _ => Err(BackError::Unexpected { expected: "the greeting `* OK`", got: shown(line) }),
    }
}

fn is_goodbye(data: &[u8]) -> bool {
    matches!(grammar::status(data), Ok((_, (Status::Bye, _))))
}

/// The names behind `AUTH=`.
fn listed_mechanisms(capabilities: &[String]) -> String {
    let names: Vec<&str> = capabilities
        .iter()
        .filter_map(|capability| capability.split_once('='))
        .filter(|(word, _)| word.eq_ignore_ascii_case("AUTH"))
        .map(|(_, name)| name)
        .collect();
    names.join(" ")
}

fn offer(list: Vec<String>) -> Offer {
    Offer(list.into_iter().filter(|capability| !grammar::is_for_sign_in(capability)).collect())
}

/// RFC 5530 §3, and the words of Exchange Online's throttling, which come with `NO` and with `BAD`.
fn asks_for_patience(code: &[u8], answer: &[u8]) -> bool {
    let code = code.to_ascii_uppercase();
    let answer = answer.to_ascii_lowercase();
    [&b"UNAVAILABLE"[..], b"INUSE", b"LIMIT", b"SERVERBUG"].contains(&code.as_slice())
        || [&b"request is throttled"[..], b"suggested backoff time", b"server unavailable"]
            .iter()
            .any(|words| memchr::memmem::find(&answer, words).is_some())
}

fn shown(line: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(line), MAX_SHOWN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::machine::SaslMechanism;
    use crate::secret::AccessToken;

    const TOKEN: &str = "eyJ0eXAi.token.of-no-one";

    fn sign_in() -> Errand {
        Errand::SignIn(SignIn {
            mailbox: "alice@example.com".to_owned(),
            token: AccessToken::new(TOKEN),
            mechanism: SaslMechanism::Xoauth2,
            client_name: "client.example".to_owned(),
            host: "outlook.office365.com".to_owned(),
            port: 993,
        })
    }

    /// What upstream may say, in any order and with anything between.
    fn chatter() -> impl Strategy<Value = Vec<u8>> {
        let phrase = prop_oneof![
            Just(b"* OK ready\r\n".to_vec()),
            Just(b"* OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] ready\r\n".to_vec()),
            Just(b"* PREAUTH ready\r\n".to_vec()),
            Just(b"* BYE\r\n".to_vec()),
            Just(b"* CAPABILITY IMAP4rev1 IDLE\r\n".to_vec()),
            Just(b"+ \r\n".to_vec()),
            Just(b"+ e30=\r\n".to_vec()),
            Just(b"A0 OK begin\r\n".to_vec()),
            Just(b"A1 OK [CAPABILITY IDLE] done\r\n".to_vec()),
            Just(b"A1 NO [UNAVAILABLE] later\r\n".to_vec()),
            Just(b"A1 BAD\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        proptest::collection::vec(phrase, 0..8).prop_map(|phrases| phrases.concat())
    }

    /// All steps up to the next `Read`.
    fn drain(back: &mut ImapBack) -> Vec<Step<Outcome>> {
        std::iter::from_fn(|| Some(back.step()).filter(|step| *step != Step::Read)).collect()
    }

    fn holds_token(step: &Step<Outcome>) -> bool {
        let Step::Write(bytes) = step else { return false };
        let decoded: Vec<u8> = bytes
            .split(|b| b" \r\n".contains(b))
            .flat_map(|word| sasl::decode(word).map(|octets| octets.to_vec()).unwrap_or_default())
            .collect();
        [bytes.as_slice(), &decoded].iter().any(|text| memchr::memmem::find(text, TOKEN.as_bytes()).is_some())
    }

    #[test]
    fn the_token_is_found_where_it_is_written() {
        let mut back = ImapBack::new(sign_in());
        back.secured(Encrypted::pretend());
        back.feed(b"* OK ready\r\n");
        assert!(drain(&mut back).iter().any(holds_token));
    }

    proptest! {
        #[test]
        fn no_token_is_written_before_the_proof(heard in chatter(), starttls: bool, cut in 1_usize..40) {
            let mut back =
                if starttls { ImapBack::with_starttls(sign_in()) } else { ImapBack::new(sign_in()) };
            for piece in heard.chunks(cut) {
                back.feed(piece);
                prop_assert!(!drain(&mut back).iter().any(holds_token));
            }
        }

        #[test]
        fn every_slicing_gives_the_same_steps(heard in chatter(), cut in 1_usize..40) {
            let play = |cut: usize| {
                let mut back = Box::new(ImapBack::new(sign_in()));
                back.secured(Encrypted::pretend());
                let mut steps = Vec::new();
                for piece in heard.chunks(cut) {
                    back.feed(piece);
                    steps.extend(drain(&mut back));
                }
                let rest = if steps.iter().any(|step| matches!(step, Step::Done(Ok(_)))) {
                    back.into_rest()
                } else {
                    Vec::new()
                };
                (steps, rest)
            };
            prop_assert_eq!(play(cut), play(usize::MAX));
        }

        #[test]
        fn it_is_done_once(heard in chatter(), more in chatter()) {
            let mut back = ImapBack::new(sign_in());
            back.secured(Encrypted::pretend());
            back.feed(&heard);
            let mut steps = drain(&mut back);
            back.feed(&more);
            steps.extend(drain(&mut back));
            let done = steps.iter().position(|step| matches!(step, Step::Done(_)));
            prop_assert!(done.is_none_or(|position| position + 1 == steps.len()));
        }
    }
}
