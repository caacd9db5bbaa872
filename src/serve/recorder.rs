//! What was said before a login that failed, as a transcript that the tests can replay, without its secrets.
//!
//! A session writes along into a small buffer, which goes away with the login. Only where the login fails is
//! it read again, line by line: what is known to be harmless is kept, everything else becomes `[redacted]`.
//! User names are kept.
//!
//! Never: keeps octets of a session that goes on, tells a password or token apart by guessing.

mod censor;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use self::censor::{BackCensor, FrontCensor};
use crate::config::model::Protocol;
use crate::explain::Refusal;
use crate::protocol::machine::{BackError, FrontSettings, HangUp, Login, SaslMechanism, SignIn};
use crate::secret::{AccessToken, Passing, REDACTED, Secret};

/// Failed sessions that are kept.
const MAX_RECORDINGS: usize = 50;

/// Octets of one dialogue that are written along; what comes after is not.
const MAX_TAPE: usize = 8 << 10;

/// Octets for which there is always room: a few lines.
const TAPE_ROOM: usize = 512;

/// Secrets shorter than this are not searched for in the finished text: they would be found everywhere.
const SHORTEST_SECRET: usize = 4;

/// The recordings of the last failed sessions.
#[derive(Debug, Default)]
pub struct Recordings(Mutex<VecDeque<Arc<Recording>>>);

/// One failed session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The session's number in the log.
    pub session: u64,
    /// The transcripts: a heading, the dialogue with the mail client, that with upstream if there was one.
    pub text: String,
}

impl Recordings {
    /// Keeps this one; in place of the session's earlier one, if there is one.
    pub fn keep(&self, recording: Recording) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.session != recording.session);
        if all.len() >= MAX_RECORDINGS {
            all.pop_front();
        }
        all.push_back(Arc::new(recording));
    }

    /// All of them, the newest first.
    pub fn all(&self) -> Vec<Arc<Recording>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().rev().cloned().collect()
    }
}

/// One thing that happened in a dialogue.
#[derive(Clone, Copy)]
enum Event {
    /// The peer sent this.
    In,
    /// We wrote this.
    Out,
    /// A whole line of the transcript.
    Line,
}

/// A dialogue as it is written along.
#[derive(Default)]
pub struct Tape {
    /// What happened, and where its octets end.
    events: Vec<(Event, usize)>,
    octets: Passing,
    is_cut: bool,
}

impl Tape {
    /// The peer sent this.
    pub fn heard(&mut self, bytes: &[u8]) {
        self.put(Event::In, bytes);
    }

    /// We wrote this.
    pub fn said(&mut self, bytes: &[u8]) {
        self.put(Event::Out, bytes);
    }

    /// The dialogue reported (`= starttls`) or was told (`> secured`) something without a secret.
    pub fn note(&mut self, line: &str) {
        self.put(Event::Line, line.as_bytes());
    }

    fn put(&mut self, event: Event, octets: &[u8]) {
        // an event costs more than its octets
        let size = self.octets.len() + octets.len() + (self.events.len() + 1) * size_of::<(Event, usize)>();
        self.is_cut |= size > MAX_TAPE;
        if !self.is_cut {
            if self.octets.capacity() - self.octets.len() < octets.len() {
                // not doubled: a token is most of it, and what is outgrown has to be wiped
                self.octets.reserve_exact(octets.len() + TAPE_ROOM);
            }
            self.octets.extend_from_slice(octets);
            self.events.push((event, self.octets.len()));
        }
    }

    fn write(&self, text: &mut String, mut heard: impl FnMut(&mut String, Direction<'_>)) {
        let mut start = 0;
        for &(event, end) in &self.events {
            let octets = self.octets.get(start..end).unwrap_or_default();
            start = end;
            match event {
                Event::In => heard(text, Direction::In(octets)),
                Event::Out => heard(text, Direction::Out(octets)),
                Event::Line => {
                    heard(text, Direction::Pause);
                    text.push_str(&String::from_utf8_lossy(octets));
                    text.push('\n');
                }
            }
        }
        heard(text, Direction::Pause);
        if self.is_cut {
            text.push_str("# cut: the dialogue went on for more than 8 KiB\n");
        }
    }
}

/// A piece of a dialogue on its way through a censor.
#[derive(Clone, Copy)]
enum Direction<'a> {
    In(&'a [u8]),
    Out(&'a [u8]),
    /// Nothing of a line may be held back any longer.
    Pause,
}

/// Which session a recording is of.
#[derive(Clone, Debug)]
pub struct Heading {
    /// The name of the listener that it came to.
    pub listener: String,
    /// Who came.
    pub peer: IpAddr,
    /// When.
    pub began: jiff::Timestamp,
}

impl Heading {
    /// One line, nothing secret.
    fn of(&self, session: u64) -> String {
        let Self { listener, peer, began } = self;
        format!("session {session} on listener `{listener}`, from {}, {began:.0}", peer.to_canonical())
    }
}

/// Writes one session along.
pub struct Recorder {
    recordings: Arc<Recordings>,
    session: u64,
    protocol: Protocol,
    heading: Heading,
    settings: FrontSettings,
    /// The dialogue with the mail client.
    pub front: Tape,
    /// The last dialogue with upstream, and how it was sent.
    back: Option<(SignIn, bool, Tape)>,
    /// For a last look through the finished text.
    passwords: Vec<Secret>,
    tokens: Vec<AccessToken>,
    failures: Vec<String>,
    is_new: bool,
}

impl Recorder {
    /// For a session that has just begun.
    pub fn new(
        recordings: Arc<Recordings>,
        session: u64,
        protocol: Protocol,
        heading: Heading,
        settings: FrontSettings,
    ) -> Self {
        Self {
            recordings,
            session,
            protocol,
            heading,
            settings,
            front: Tape::default(),
            back: None,
            passwords: Vec::new(),
            tokens: Vec::new(),
            failures: Vec::new(),
            is_new: false,
        }
    }

    /// The mail client wants in.
    pub fn login(&mut self, login: &Login) {
        self.passwords.push(login.credentials.password.clone());
        let mut line = "=  login ".to_owned();
        censor::escape(&mut line, login.credentials.user.as_bytes());
        line.push_str(" / ");
        line.push_str(REDACTED);
        self.front.note(&line);
    }

    /// A sign-in upstream begins: what it writes along.
    pub fn back(&mut self, sign_in: &SignIn, starttls: bool, warm: bool) -> &mut Tape {
        self.tokens.push(sign_in.token.clone());
        let tape = &mut self.back.insert((sign_in.clone(), starttls, Tape::default())).2;
        if warm {
            // its greeting is of another time: the transcript would not begin at the beginning
            tape.note("# this connection was ready before the login; it does not replay");
        }
        tape
    }

    /// The login was refused: the answer that the mail client gets, and the story's code.
    pub fn refused(&mut self, refusal: &Refusal, code: &str) {
        self.front.note(&format!(">  refuse {}", order(refusal)));
        self.failed(code);
    }

    /// The session fails otherwise; why, in a few words.
    pub fn failed(&mut self, why: &str) {
        if self.failures.len() < 8 {
            self.failures.push(why.chars().filter(|c| !c.is_control()).take(200).collect());
        }
        self.is_new = true;
    }

    /// We end the dialogue.
    pub fn hung_up(&mut self, why: &HangUp) {
        let why = match why {
            HangUp::TimedOut => "TimedOut".to_owned(),
            HangUp::ShuttingDown => "ShuttingDown".to_owned(),
            HangUp::Refused(refusal) => order(refusal),
        };
        self.front.note(&format!(">  hang-up {why}"));
    }

    /// Nothing happens for now: what has failed so far is kept.
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.is_new) {
            self.recordings.keep(Recording { session: self.session, text: self.text() });
        }
    }

    fn text(&self) -> String {
        let protocol = self.protocol.as_str();
        let heading = self.heading.of(self.session);
        let mut text = format!("# {heading}\n# failed: {}\n", self.failures.join(", then "));
        // writing to a String cannot fail
        let _: std::fmt::Result = self.front_text(&mut text, protocol);
        if let Some((sign_in, starttls, tape)) = &self.back {
            let _: std::fmt::Result = back_text(&mut text, protocol, self.protocol, sign_in, *starttls, tape);
        }
        for password in &self.passwords {
            let (plain, encoded) = (password.expose(), Zeroizing::new(STANDARD.encode(password.expose())));
            remove(&mut text, plain, plain);
            remove(&mut text, &encoded, &encoded);
        }
        for token in &self.tokens {
            remove(&mut text, token.telltale(), token.for_safekeeping());
        }
        text
    }

    fn front_text(&self, text: &mut String, protocol: &str) -> std::fmt::Result {
        writeln!(text, "\n# transcript: {protocol}/front")?;
        let settings = &self.settings;
        if settings.starttls {
            text.push_str("! starttls\n");
        }
        if settings.require_tls {
            text.push_str("! require-tls\n");
        }
        writeln!(text, "! host-name {}", settings.host_name)?;
        writeln!(text, "! max-refusals {}", settings.max_refusals)?;
        if !settings.offer.0.is_empty() {
            writeln!(text, "! offer {} |", settings.offer.0.join(" | "))?;
        }
        let mut censor = FrontCensor::new(self.protocol);
        self.front.write(text, |text, piece| match piece {
            Direction::In(bytes) => censor.heard(text, bytes),
            Direction::Out(bytes) => censor.said(text, bytes),
            Direction::Pause => censor.pause(text),
        });
        Ok(())
    }
}

/// Takes a secret out wherever it begins so, as much as there is of it: the end of the tape may have cut it short.
fn remove(text: &mut String, start: &str, secret: &str) {
    if start.len() < SHORTEST_SECRET || !text.contains(start) {
        return;
    }
    let mut shown = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(start) {
        let (before, found) = rest.split_at(at);
        let there = found.bytes().zip(secret.bytes()).take_while(|(found, wanted)| found == wanted).count();
        shown.push_str(before);
        shown.push_str(REDACTED);
        rest = found.get(there..).unwrap_or_default();
    }
    shown.push_str(rest);
    *text = shown;
}

fn back_text(
    text: &mut String,
    name: &str,
    protocol: Protocol,
    sign_in: &SignIn,
    starttls: bool,
    tape: &Tape,
) -> std::fmt::Result {
    writeln!(text, "\n# transcript: {name}/back")?;
    if starttls {
        text.push_str("! starttls\n");
    }
    let mut mailbox = String::new();
    censor::escape(&mut mailbox, sign_in.mailbox.as_bytes());
    let mechanism = match sign_in.mechanism {
        SaslMechanism::Xoauth2 => "XOAUTH2",
        SaslMechanism::OauthBearer => "OAUTHBEARER",
    };
    writeln!(text, "! mailbox {mailbox}\n! mechanism {mechanism}")?;
    writeln!(text, "! host {}\n! port {}", sign_in.host, sign_in.port)?;
    if protocol == Protocol::Smtp {
        writeln!(text, "! client-name {}", sign_in.client_name)?;
    }
    let mut censor = BackCensor::default();
    let mut body = String::new();
    tape.write(&mut body, |text, piece| match piece {
        Direction::In(bytes) => censor.heard(text, bytes),
        Direction::Out(bytes) => censor.said(text, bytes),
        Direction::Pause => censor.pause(text),
    });
    writeln!(text, "! token {}", censor::stand_in(censor.alone.unwrap_or(0)))?;
    text.push_str(&body);
    Ok(())
}

/// The lines in which a transcript reports how upstream refused.
pub fn report(error: &BackError) -> Vec<String> {
    let line = |words: &str, detail: &str| {
        let mut text = format!("=  {words}");
        if !detail.is_empty() {
            text.push(' ');
            censor::escape(&mut text, detail.as_bytes());
        }
        text
    };
    match error {
        BackError::Refused { reply, challenge } => {
            let mut lines = vec![line("refused", reply)];
            lines.extend(challenge.iter().map(|challenge| line("challenge", challenge)));
            lines
        }
        BackError::TryLater { reply } => vec![line("try-later", reply)],
        BackError::NoStartTls => vec![line("no-starttls", "")],
        BackError::NoMechanism { offered } => vec![line("no-mechanism", offered)],
        BackError::Injected => vec![line("injected", "")],
        BackError::TooLong => vec![line("too-long", "")],
        BackError::Unexpected { got, .. } => vec![line("unexpected", got)],
    }
}

/// A refusal, as transcripts write it.
fn order(refusal: &Refusal) -> String {
    match refusal {
        Refusal::BadCredentials => "BadCredentials".to_owned(),
        Refusal::PasswordExpired => "PasswordExpired".to_owned(),
        Refusal::HeldBack { retry_after } => format!("HeldBack {}", retry_after.as_secs()),
        Refusal::ContactAdmin(cause) => match cause.aadsts {
            Some(code) => format!("ContactAdmin {:?} {code}", cause.kind),
            None => format!("ContactAdmin {:?}", cause.kind),
        },
        Refusal::Unavailable { retry_after: Some(after) } => format!("Unavailable {}", after.as_secs()),
        Refusal::Unavailable { retry_after: None } => "Unavailable".to_owned(),
        Refusal::TooManySessions => "TooManySessions".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The token is longer than what is left of the tape: its line is cut within it.
    #[test]
    fn a_token_that_the_end_of_the_tape_cuts_short_is_not_shown() {
        let token = format!("EwBYA8l6BAAUO9chh8cJscQLmU{}", "x0Yq".repeat(900));
        let sign_in = SignIn {
            mailbox: "alice@contoso.com".to_owned(),
            token: AccessToken::new(token.clone()),
            mechanism: SaslMechanism::Xoauth2,
            client_name: "client.example".to_owned(),
            host: "outlook.office365.com".to_owned(),
            port: 993,
        };
        let encoded = STANDARD.encode(format!("user=alice@contoso.com\u{1}auth=Bearer {token}\u{1}\u{1}"));
        let in_base64 = STANDARD.encode(&token.as_bytes()[..21]);
        for (said, cut) in
            [(&token, 3000), (&encoded, 3000), (&encoded, 3001), (&encoded, 3002), (&encoded, 3003)]
        {
            let recordings = Arc::new(Recordings::default());
            let peer = std::net::Ipv4Addr::LOCALHOST.into();
            let heading = Heading { listener: "imap".to_owned(), peer, began: jiff::Timestamp::UNIX_EPOCH };
            let settings = FrontSettings {
                starttls: false,
                require_tls: false,
                offer: Arc::default(),
                host_name: "mailkey.example".to_owned(),
                max_refusals: 3,
                without_login: None,
            };
            let mut recorder = Recorder::new(Arc::clone(&recordings), 1, Protocol::Imap, heading, settings);
            let tape = recorder.back(&sign_in, false, false);
            tape.heard(b"* NO ");
            tape.heard(&said.as_bytes()[..cut]);
            tape.heard(&[b'x'; MAX_TAPE]);
            recorder.failed("UPSTREAM-REFUSED");
            recorder.settle();
            let text = &recordings.all()[0].text;
            assert!(text.contains("S: * NO ") && text.contains("# cut"), "{text}");
            assert!(text.contains(REDACTED) && !text.contains(sign_in.token.telltale()), "{text}");
            assert!(!text.contains(&in_base64) && !text.contains(encoded.get(40..80).unwrap()), "{text}");
        }
    }
}
