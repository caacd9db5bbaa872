//! The contract of a sans-I/O login dialogue: bytes in, steps out.
//!
//! A dialogue never performs I/O, reads no clock, logs nothing, and gives the same steps for every slicing
//! of its input. One driver (`serve/drive.rs`) carries out what it asks for.

use std::fmt;

use crate::explain::Refusal;
use crate::secret::{Credentials, Encrypted};

/// What a dialogue wants done next. It never does it itself.
#[must_use = "a step that is not carried out stalls both sides"]
#[derive(PartialEq, Eq)]
pub enum Step<Outcome> {
    /// Nothing without more input.
    Read,
    /// Send these bytes to the peer of this dialogue.
    Write(Vec<u8>),
    /// Start TLS on this socket now, then call `secured`. All `Write`s before it are to be flushed first.
    StartTls,
    /// The dialogue has come to its point.
    Done(Outcome),
    /// Hang up, after all `Write`s before it.
    Close(Farewell),
}

/// What is written may hold a token, and upstream's own words: only its length is shown.
impl<Outcome: fmt::Debug> fmt::Debug for Step<Outcome> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read => f.write_str("Read"),
            Self::Write(bytes) => write!(f, "Write({} octets)", bytes.len()),
            Self::StartTls => f.write_str("StartTls"),
            Self::Done(outcome) => f.debug_tuple("Done").field(outcome).finish(),
            Self::Close(farewell) => f.debug_tuple("Close").field(farewell).finish(),
        }
    }
}

/// Why a dialogue with the mail client ends without a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Farewell {
    /// The client said goodbye.
    Quit,
    /// Too many commands that make no sense.
    TooManyErrors,
    /// Too many logins that were refused.
    TooManyRefusals,
    /// A line or literal over the bound.
    TooLong,
    /// Another protocol knocks: HTTP, a TLS hello on a clear port.
    WrongProtocol,
    /// We end it: time limit, shutdown, limits.
    HungUp,
}

impl Farewell {
    /// For the session's log line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quit => "client quit before a login",
            Self::TooManyErrors => "too many bad commands",
            Self::TooManyRefusals => "too many refused logins",
            Self::TooLong => "line or literal too long",
            Self::WrongProtocol => "the client speaks another protocol",
            Self::HungUp => "hung up by the proxy",
        }
    }
}

/// Why we end a dialogue that would go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HangUp {
    /// The login took longer than `login-timeout`.
    TimedOut,
    /// The proxy stops.
    ShuttingDown,
    /// `limits.sessions` is reached, or this address may not connect.
    Refused(Refusal),
}

/// What a front knows about the place it stands in.
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// Whether STARTTLS/STLS may be asked for (a certificate is there and TLS is not yet on).
    pub starttls: bool,
    /// Whether a login is refused until TLS is on.
    pub require_tls: bool,
    /// What upstream offers beyond sign-in, in the protocol's own words, already stripped of what is ours.
    pub offer: std::sync::Arc<Offer>,
    /// The name in SMTP's greeting and EHLO answer.
    pub host_name: String,
    /// Logins that may be refused before the connection is closed.
    pub max_refusals: u8,
    /// SMTP: who a client is that sends without a login. It was let in by its address.
    pub without_login: Option<Credentials>,
}

/// What upstream offers: IMAP capability atoms, POP3 CAPA lines, SMTP EHLO lines. Order is upstream's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer(pub Vec<String>);

/// A login that the mail client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Who, and with which password.
    pub credentials: Credentials,
    /// `LOGIN`, `PLAIN`, `USER`: how it was asked for, for the log.
    pub mechanism: &'static str,
    /// The name that an SMTP client gave in EHLO or HELO, to be repeated upstream.
    pub client_name: Option<String>,
    /// The credentials are those of [`FrontSettings::without_login`]: the client has shown none.
    pub by_address: bool,
}

/// A login dialogue with us in the server's seat.
pub trait Front: Send {
    /// Bytes that came in, in any slicing.
    fn feed(&mut self, bytes: &[u8]);
    /// TLS is up: after [`Step::StartTls`], or before the first step where TLS is implicit. What was
    /// buffered before is discarded (RFC 9051 §6.2.1, RFC 3207 §4.2).
    fn secured(&mut self);
    /// What to do next; ask until it says [`Step::Read`].
    fn step(&mut self) -> Step<Login>;
    /// The upstream took the login: tell the client. `offer` is what upstream announced after it, if it did.
    fn grant(&mut self, offer: Option<&Offer>);
    /// It did not: tell the client, who may try again.
    fn refuse(&mut self, why: &Refusal);
    /// We have to end it: say goodbye in the protocol's words.
    fn hang_up(&mut self, why: HangUp);
    /// What the client pipelined behind its login, to be forwarded first.
    fn into_rest(self: Box<Self>) -> Vec<u8>;
}

/// How the token is presented upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SaslMechanism {
    /// `user=…^Aauth=Bearer …^A^A`: Microsoft and Google.
    #[default]
    Xoauth2,
    /// RFC 7628.
    OauthBearer,
}

/// What a back needs to sign in. The token is handed over with it, and written only past the proof.
#[derive(Clone, Debug)]
pub struct SignIn {
    /// The `user=` of XOAUTH2.
    pub mailbox: String,
    /// The access token.
    pub token: crate::secret::AccessToken,
    /// How it is presented.
    pub mechanism: SaslMechanism,
    /// SMTP's EHLO name; a name of ours where the client gave none.
    pub client_name: String,
    /// The upstream's host and port, as OAUTHBEARER wants them (RFC 7628 §3.1).
    pub host: String,
    /// See `host`.
    pub port: u16,
}

/// What a back is sent upstream for.
#[derive(Clone, Debug)]
pub enum Errand {
    /// Sign in and stay.
    SignIn(SignIn),
    /// Learn what is offered, say goodbye, leave. No secret is sent.
    Learn {
        /// SMTP's EHLO name.
        client_name: String,
    },
    /// Come as far as one gets without a secret, then wait for [`Back::sign_in`].
    Wait {
        /// SMTP's EHLO name; said again where the one who signs in has another.
        client_name: String,
    },
}

/// What a back brings home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What upstream offers, where it said so on the way; stripped of what is ours to say.
    pub offer: Option<Offer>,
    /// The text of its last answer, printable, for the log.
    pub reply: String,
}

/// Why upstream did not let us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackError {
    /// It answered the token with a definite no.
    Refused {
        /// Its answer in one printable line: `535 5.7.3 Authentication unsuccessful`.
        reply: String,
        /// The error challenge that came before it, base64 decoded, printable.
        challenge: Option<String>,
    },
    /// It asks for patience: `* BYE`, `421`, `4xx`, `-ERR [SYS/TEMP]`.
    TryLater {
        /// Its answer in one printable line.
        reply: String,
    },
    /// It offers no STARTTLS where the configuration wants it.
    NoStartTls,
    /// It does not offer the mechanism.
    NoMechanism {
        /// What it offers.
        offered: String,
    },
    /// Bytes stood behind its answer to STARTTLS, before TLS: somebody is on the line.
    Injected,
    /// It does not speak the protocol.
    Unexpected {
        /// What should have come.
        expected: &'static str,
        /// What came, in one printable line.
        got: String,
    },
    /// A line over the bound.
    TooLong,
}

/// A login dialogue with us in the client's seat.
pub trait Back: Send {
    /// Bytes that came in, in any slicing.
    fn feed(&mut self, bytes: &[u8]);
    /// TLS is up, and here is the proof. What was buffered before is discarded.
    fn secured(&mut self, proof: Encrypted);
    /// What to do next; ask until it says [`Step::Read`].
    fn step(&mut self) -> Step<Result<Welcome, BackError>>;
    /// Whether it has been greeted and waits for [`Back::sign_in`]: whatever upstream says now ends it.
    fn waits(&self) -> bool;
    /// Whom to sign in, after [`Errand::Wait`]. Before the greeting it holds for what follows.
    fn sign_in(&mut self, sign_in: SignIn);
    /// Nobody is going to sign in: say goodbye in the protocol's words, if it [waits](Back::waits).
    fn dismiss(&mut self);
    /// What upstream sent behind its answer to the login, to be forwarded first.
    fn into_rest(self: Box<Self>) -> Vec<u8>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_writes_is_never_shown() {
        let step: Step<Farewell> = Step::Write(b"AUTH XOAUTH2 hunter2".to_vec());
        assert_eq!(format!("{step:?}"), "Write(20 octets)");
        for (step, shown) in [
            (Step::Read, "Read"),
            (Step::StartTls, "StartTls"),
            (Step::Done(Farewell::Quit), "Done(Quit)"),
            (Step::Close(Farewell::TooLong), "Close(TooLong)"),
        ] {
            assert_eq!(format!("{step:?}"), shown);
        }
    }

    #[test]
    fn each_farewell_has_words_of_its_own() {
        let all = [
            Farewell::Quit,
            Farewell::TooManyErrors,
            Farewell::TooManyRefusals,
            Farewell::TooLong,
            Farewell::WrongProtocol,
            Farewell::HungUp,
        ];
        let words: std::collections::HashSet<&str> = all.into_iter().map(Farewell::as_str).collect();
        assert_eq!(words.len(), all.len(), "{words:?}");
    }
}
