//! Replays the transcripts under `tests/transcripts/`, each of which is input and expectation at once.
//!
//! The format is described in `tests/transcripts/README.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mailkey::explain::{Cause, CauseKind, Refusal};
use mailkey::protocol::imap::{ImapBack, ImapFront};
use mailkey::protocol::machine::{
    Back, BackError, Errand, Front, FrontSettings, HangUp, Offer, SaslMechanism, SignIn, Step,
};
use mailkey::protocol::pop3::{Pop3Back, Pop3Front};
use mailkey::protocol::smtp::{SmtpBack, SmtpFront};
use mailkey::secret::{AccessToken, Credentials, Encrypted};

/// Every directory of transcripts. One that is missing here, or empty, fails.
const DIRECTORIES: &[&str] =
    &["imap/back", "imap/front", "pop3/back", "pop3/front", "smtp/back", "smtp/front"];

/// The front that the transcripts of a protocol are replayed with.
fn front(protocol: &str, settings: FrontSettings) -> Box<dyn Front> {
    match protocol {
        "imap" => Box::new(ImapFront::new(settings)),
        "pop3" => Box::new(Pop3Front::new(settings)),
        "smtp" => Box::new(SmtpFront::new(settings)),
        other => panic!("no front for `{other}`"),
    }
}

/// The back that the transcripts of a protocol are replayed with.
fn back(protocol: &str, starttls: bool, errand: Errand) -> Box<dyn Back> {
    match (protocol, starttls) {
        ("imap", false) => Box::new(ImapBack::new(errand)),
        ("imap", true) => Box::new(ImapBack::with_starttls(errand)),
        ("pop3", false) => Box::new(Pop3Back::new(errand)),
        ("pop3", true) => Box::new(Pop3Back::with_starttls(errand)),
        ("smtp", false) => Box::new(SmtpBack::new(errand)),
        ("smtp", true) => Box::new(SmtpBack::with_starttls(errand)),
        (other, _) => panic!("no back for `{other}`"),
    }
}

#[test]
fn every_transcript_holds_in_every_slicing() {
    let mut broken = String::new();
    for directory in DIRECTORIES {
        for path in transcripts(directory) {
            let name = format!("{directory}/{}", path.file_name().unwrap().to_string_lossy());
            let script = Script::parse(&name, &fs::read_to_string(&path).unwrap());
            for slice in script.slices() {
                let heard = script.replay(directory, *slice);
                if heard != script.events {
                    writeln!(
                        broken,
                        "\n{name} in slices of {slice}\n--- expected\n{}--- heard\n{}",
                        shown(&script.events),
                        shown(&heard)
                    )
                    .unwrap();
                    break;
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken}");
}

#[test]
fn every_directory_of_transcripts_is_replayed() {
    let mut found = Vec::new();
    for protocol in fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()) {
        if protocol.is_dir() {
            found.extend(fs::read_dir(protocol).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let mut found: Vec<String> =
        found.iter().map(|path| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()).collect();
    found.sort();
    assert_eq!(found, DIRECTORIES);
}

/// The interop traps of logins, by number, each with the side that has to get it right. Trap 12, IDLE for half an
/// hour, begins where the dialogue ends; 27 is for the accounts.
#[test]
fn every_trap_has_its_transcript() {
    let traps: [(&str, &[u8]); 6] = [
        ("imap/front", &[1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15]),
        ("imap/back", &[8, 9, 10, 11, 14]),
        ("pop3/front", &[1, 6, 8, 14, 17, 18, 19, 20]),
        ("pop3/back", &[8, 9, 14, 16, 19]),
        ("smtp/front", &[1, 6, 8, 14, 21, 22, 23, 25, 28]),
        ("smtp/back", &[8, 9, 14, 21, 23, 24, 26]),
    ];
    for (directory, numbers) in traps {
        let names = transcripts(directory);
        for number in numbers {
            let start = format!("trap-{number:02}-");
            let has_it =
                names.iter().any(|path| path.file_name().unwrap().to_string_lossy().starts_with(&start));
            assert!(has_it, "no transcript `{start}…` in {directory}");
        }
    }
}

/// The runner itself: what it replays would not help if it could not fail.
#[test]
fn a_transcript_that_is_wrong_is_noticed() {
    let right = "P: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=LOGIN SASL-IR] Mailkey ready\n\
                 C: a LOGOUT\nP: * BYE Mailkey signing off\nP: a OK LOGOUT completed\n= close Quit\n";
    let holds = |text: &str| {
        let script = Script::parse("wrong", text);
        script.slices().iter().all(|slice| script.replay("imap/front", *slice) == script.events)
    };
    assert!(holds(right));
    for (from, to) in [
        ("SASL-IR] ", "SASL-IR]  "),
        ("a OK", "b OK"),
        ("= close Quit", "= close TooLong"),
        ("= close Quit\n", ""),
        ("P: * BYE Mailkey signing off\n", ""),
        ("C: a LOGOUT\n", "C: a NOOP\n"),
    ] {
        assert!(!holds(&right.replace(from, to)), "{from} -> {to}");
    }
}

/// Replays every transcript in the text of a recording; gives how many there were, and what differs.
pub fn replay_recording(recording: &str) -> (usize, String) {
    let (mut count, mut broken) = (0, String::new());
    for part in recording.split("# transcript: ").skip(1) {
        let (directory, text) = part.split_once('\n').unwrap();
        // the next recording's heading is a comment
        let script = Script::parse(directory, text);
        for slice in [usize::MAX, 1, 7] {
            let heard = script.replay(directory, slice);
            if heard != script.events {
                let (expected, heard) = (shown(&script.events), shown(&heard));
                writeln!(broken, "\n{directory} in {slice}\n--- recorded\n{expected}--- heard\n{heard}")
                    .unwrap();
                break;
            }
        }
        count += 1;
    }
    (count, broken)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

fn transcripts(directory: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(root().join(directory))
        .unwrap_or_else(|error| panic!("`{directory}`: {error}"))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    assert!(!paths.is_empty(), "`{directory}` holds no transcripts");
    paths.sort();
    paths
}

/// One line, or several of the same kind, of a transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    /// What the peer sends.
    In(Vec<u8>),
    /// What the dialogue writes.
    Out(Vec<u8>),
    /// What the dialogue reports.
    Report(String),
    /// What the dialogue is told.
    Told(String),
}

/// A transcript, taken apart.
struct Script {
    name: String,
    settings: Settings,
    events: Vec<Event>,
}

/// The lines with `!`.
#[expect(clippy::struct_excessive_bools, reason = "each is a line of its own")]
struct Settings {
    starttls: bool,
    require_tls: bool,
    one_segment: bool,
    learn: bool,
    wait: bool,
    max_refusals: u8,
    without_login: Option<String>,
    offer: Offer,
    host_name: String,
    sign_in: SignIn,
}

impl Script {
    fn parse(name: &str, text: &str) -> Self {
        let mut script = Self { name: name.to_owned(), settings: Settings::default(), events: Vec::new() };
        for line in text.lines() {
            let (mark, rest) = line.split_at(line.find([' ', ':']).unwrap_or(line.len()));
            let rest = rest.strip_prefix(':').unwrap_or(rest);
            let rest = rest.strip_prefix(' ').unwrap_or(rest);
            match mark {
                "" | "#" => {}
                "!" => script.settings.set(name, rest.trim()),
                "=" => script.add(Event::Report(escape(&unescape(rest.trim_start())))),
                ">" => script.add(Event::Told(rest.trim().to_owned())),
                // The peer is the mail client at a front, and upstream (the server) at a back.
                "C" | "S" => script.add(Event::In(octets(rest))),
                "P" => script.add(Event::Out(octets(rest))),
                _ => panic!("{name}: cannot read `{line}`"),
            }
        }
        script
    }

    /// Neighbours of the same kind are one: how input is cut is the runner's, how output is, nobody's.
    fn add(&mut self, event: Event) {
        merge(&mut self.events, event);
    }

    fn slices(&self) -> &'static [usize] {
        // Where the end of a segment is the point, there is only one way to cut.
        if self.settings.one_segment { &[usize::MAX] } else { &[usize::MAX, 1, 2, 7, 13] }
    }

    /// What the dialogue makes of the transcript's input, as a transcript.
    fn replay(&self, directory: &str, slice: usize) -> Vec<Event> {
        let (protocol, side) = directory.split_once('/').unwrap();
        let settings = &self.settings;
        let machine = match side {
            "front" => Machine::Front(front(protocol, settings.front())),
            "back" => Machine::Back(back(protocol, settings.starttls, settings.errand())),
            other => panic!("no side `{other}`"),
        };
        let sign_in = settings.sign_in.clone();
        let mut dialogue = Dialogue { machine, sign_in, through: false, waits: false };
        let mut heard = Vec::new();
        let mut ended = false;
        // A transcript that starts with input tells of a peer who speaks before we do.
        if matches!(self.events.first(), Some(Event::Out(_) | Event::Report(_))) {
            ended = dialogue.drain(&mut heard);
        }
        for event in &self.events {
            match event {
                Event::In(bytes) => {
                    assert!(!ended || dialogue.through, "{}: input after the end", self.name);
                    merge(&mut heard, event.clone());
                    for piece in bytes.chunks(slice.min(bytes.len()).max(1)) {
                        if ended && !dialogue.through {
                            break;
                        }
                        dialogue.feed(piece);
                        ended |= dialogue.drain(&mut heard);
                    }
                }
                Event::Told(what) => {
                    merge(&mut heard, event.clone());
                    dialogue.tell(what);
                    ended |= dialogue.drain(&mut heard);
                }
                Event::Out(_) | Event::Report(_) => {}
            }
        }
        dialogue.finish(&mut heard);
        self.without_unasked_details(heard)
    }

    /// `= by …`, `= from …` and `= expected …` are compared only where the transcript has such lines.
    fn without_unasked_details(&self, mut heard: Vec<Event>) -> Vec<Event> {
        for detail in ["by ", "from ", "expected "] {
            let is_detail =
                |event: &Event| matches!(event, Event::Report(report) if report.starts_with(detail));
            if !self.events.iter().any(is_detail) {
                heard.retain(|event| !is_detail(event));
            }
        }
        heard
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            starttls: false,
            require_tls: false,
            one_segment: false,
            learn: false,
            wait: false,
            max_refusals: 3,
            without_login: None,
            offer: Offer::default(),
            host_name: "mailkey.example".to_owned(),
            sign_in: SignIn {
                mailbox: "alice@example.com".to_owned(),
                token: AccessToken::new("eyJ0.token"),
                mechanism: SaslMechanism::Xoauth2,
                client_name: "client.example".to_owned(),
                host: "outlook.office365.com".to_owned(),
                port: 993,
            },
        }
    }
}

impl Settings {
    fn set(&mut self, name: &str, line: &str) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "starttls" => self.starttls = true,
            "require-tls" => self.require_tls = true,
            "one-segment" => self.one_segment = true,
            "learn" => self.learn = true,
            "without-login" => self.without_login = Some(value.to_owned()),
            "wait" => self.wait = true,
            "max-refusals" => self.max_refusals = value.parse().unwrap(),
            "offer" => self.offer = offer(value),
            "host-name" => value.clone_into(&mut self.host_name),
            "mailbox" => value.clone_into(&mut self.sign_in.mailbox),
            "token" => self.sign_in.token = AccessToken::new(String::from_utf8(unescape(value)).unwrap()),
            "client-name" => value.clone_into(&mut self.sign_in.client_name),
            "host" => value.clone_into(&mut self.sign_in.host),
            "port" => self.sign_in.port = value.parse().unwrap(),
            "mechanism" => {
                self.sign_in.mechanism = match value {
                    "XOAUTH2" => SaslMechanism::Xoauth2,
                    "OAUTHBEARER" => SaslMechanism::OauthBearer,
                    _ => panic!("{name}: no mechanism `{value}`"),
                }
            }
            _ => panic!("{name}: no setting `{key}`"),
        }
    }

    fn front(&self) -> FrontSettings {
        FrontSettings {
            starttls: self.starttls,
            require_tls: self.require_tls,
            offer: Arc::new(self.offer.clone()),
            host_name: self.host_name.clone(),
            max_refusals: self.max_refusals,
            without_login: self
                .without_login
                .as_ref()
                .map(|user| Credentials::decode(user.as_bytes(), b"-").unwrap()),
        }
    }

    fn errand(&self) -> Errand {
        if self.learn {
            Errand::Learn { client_name: self.sign_in.client_name.clone() }
        } else if self.wait {
            Errand::Wait { client_name: self.sign_in.client_name.clone() }
        } else {
            Errand::SignIn(self.sign_in.clone())
        }
    }
}

/// A dialogue of either side.
struct Dialogue {
    machine: Machine,
    /// For `> sign-in`.
    sign_in: SignIn,
    /// Whether `= waits` has been reported.
    waits: bool,
    /// Whether the login went through: all further input is the relay's.
    through: bool,
}

enum Machine {
    Front(Box<dyn Front>),
    Back(Box<dyn Back>),
}

impl Dialogue {
    fn feed(&mut self, bytes: &[u8]) {
        match &mut self.machine {
            Machine::Front(front) => front.feed(bytes),
            Machine::Back(back) => back.feed(bytes),
        }
    }

    /// Carries out all steps; says whether the dialogue came to its end.
    fn drain(&mut self, heard: &mut Vec<Event>) -> bool {
        match &mut self.machine {
            Machine::Front(front) => drain_front(front.as_mut(), heard),
            Machine::Back(back) => {
                let (ended, let_in) = drain_back(back.as_mut(), heard);
                self.through |= let_in;
                if back.waits() && !self.waits {
                    merge(heard, Event::Report("waits".to_owned()));
                }
                self.waits = back.waits();
                ended
            }
        }
    }

    fn tell(&mut self, what: &str) {
        let (verb, rest) = what.split_once(' ').unwrap_or((what, ""));
        match (&mut self.machine, verb) {
            (Machine::Front(front), "secured") => front.secured(),
            (Machine::Front(front), "grant") => {
                front.grant((!rest.is_empty()).then(|| offer(rest)).as_ref());
                self.through = true;
            }
            (Machine::Front(front), "refuse") => front.refuse(&refusal(rest)),
            (Machine::Front(front), "hang-up") => front.hang_up(match rest {
                "TimedOut" => HangUp::TimedOut,
                "ShuttingDown" => HangUp::ShuttingDown,
                _ => HangUp::Refused(refusal(rest)),
            }),
            (Machine::Back(back), "secured") => back.secured(Encrypted::pretend()),
            (Machine::Back(back), "sign-in") => {
                let mut sign_in = self.sign_in.clone();
                if !rest.is_empty() {
                    rest.clone_into(&mut sign_in.client_name);
                }
                back.sign_in(sign_in);
            }
            (Machine::Back(back), "dismiss") => back.dismiss(),
            _ => panic!("cannot tell this dialogue `{what}`"),
        }
    }

    /// What is left for the relay, once the login is through.
    fn finish(self, heard: &mut Vec<Event>) {
        let rest = match self.machine {
            Machine::Front(front) => front.into_rest(),
            Machine::Back(back) => back.into_rest(),
        };
        if self.through && !rest.is_empty() {
            merge(heard, Event::Report(format!("rest {}", escape(&rest))));
        }
    }
}

fn drain_front(front: &mut dyn Front, heard: &mut Vec<Event>) -> bool {
    loop {
        let mut report = |text: String| merge(heard, Event::Report(escape(text.as_bytes())));
        match front.step() {
            Step::Read => return false,
            Step::Write(bytes) => merge(heard, Event::Out(bytes)),
            Step::StartTls => report("starttls".to_owned()),
            Step::Done(login) => {
                let who = &login.credentials;
                report(format!("login {} / {}", who.user, who.password.expose()));
                report(format!("by {}", login.mechanism));
                if let Some(name) = login.client_name {
                    report(format!("from {name}"));
                }
            }
            Step::Close(farewell) => {
                report(format!("close {farewell:?}"));
                return true;
            }
        }
    }
}

/// Whether the dialogue has ended, and whether we are in.
fn drain_back(back: &mut dyn Back, heard: &mut Vec<Event>) -> (bool, bool) {
    loop {
        let mut report = |text: String| merge(heard, Event::Report(escape(text.as_bytes())));
        match back.step() {
            Step::Read => return (false, false),
            Step::Write(bytes) => merge(heard, Event::Out(bytes)),
            Step::StartTls => report("starttls".to_owned()),
            Step::Close(farewell) => panic!("a back does not say farewell: {farewell:?}"),
            Step::Done(Ok(welcome)) => {
                report(format!("welcome {}", welcome.reply));
                if let Some(Offer(list)) = welcome.offer {
                    let has_blanks = list.iter().any(|entry| entry.contains(' '));
                    report(format!("offer {}", list.join(if has_blanks { " | " } else { " " })));
                }
                return (true, true);
            }
            Step::Done(Err(error)) => {
                match error {
                    BackError::Refused { reply, challenge } => {
                        report(format!("refused {reply}"));
                        if let Some(challenge) = challenge {
                            report(format!("challenge {challenge}"));
                        }
                    }
                    BackError::TryLater { reply } => report(format!("try-later {reply}")),
                    BackError::NoStartTls => report("no-starttls".to_owned()),
                    BackError::NoMechanism { offered } => report(format!("no-mechanism {offered}")),
                    BackError::Injected => report("injected".to_owned()),
                    BackError::Unexpected { expected, got } => {
                        report(format!("unexpected {got}"));
                        report(format!("expected {expected}"));
                    }
                    BackError::TooLong => report("too-long".to_owned()),
                }
                return (true, false);
            }
        }
    }
}

fn merge(events: &mut Vec<Event>, event: Event) {
    match (events.last_mut(), event) {
        (Some(Event::In(there)), Event::In(more)) | (Some(Event::Out(there)), Event::Out(more)) => {
            there.extend(more);
        }
        (_, event) => events.push(event),
    }
}

/// Entries between `|` where there is one, else between blanks.
fn offer(text: &str) -> Offer {
    let entries: Vec<&str> =
        if text.contains('|') { text.split('|').collect() } else { text.split(' ').collect() };
    Offer(entries.iter().map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect())
}

fn refusal(text: &str) -> Refusal {
    let mut words = text.split(' ');
    let kind = words.next().unwrap();
    let mut seconds = || words.next().map(|word| Duration::from_secs(word.parse().unwrap()));
    match kind {
        "BadCredentials" => Refusal::BadCredentials,
        "PasswordExpired" => Refusal::PasswordExpired,
        "HeldBack" => Refusal::HeldBack { retry_after: seconds().expect("HeldBack wants seconds") },
        "Unavailable" => Refusal::Unavailable { retry_after: seconds() },
        "TooManySessions" => Refusal::TooManySessions,
        "ContactAdmin" => {
            let kind = match words.next().expect("ContactAdmin wants a kind") {
                "MultiFactor" => CauseKind::MultiFactor,
                "Consent" => CauseKind::Consent,
                "Policy" => CauseKind::Policy,
                "Application" => CauseKind::Application,
                "Account" => CauseKind::Account,
                "Mailbox" => CauseKind::Mailbox,
                "SignIn" => CauseKind::SignIn,
                "NotServed" => CauseKind::NotServed,
                other => panic!("no kind of cause `{other}`"),
            };
            Refusal::ContactAdmin(Cause { kind, aadsts: words.next().map(|code| code.parse().unwrap()) })
        }
        other => panic!("no refusal `{other}`"),
    }
}

/// The octets of a line: with CRLF, unless it ends in a backslash.
fn octets(text: &str) -> Vec<u8> {
    match text.strip_suffix('\\').filter(|open| !open.ends_with('\\')) {
        Some(open) => expand(open),
        None => [expand(text), b"\r\n".to_vec()].concat(),
    }
}

/// Puts in what stands for something longer: `<b64 …>` and `<repeat 12 …>`.
fn expand(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut left = text;
    while let Some((before, after)) = left.split_once('<') {
        octets.extend(unescape(before));
        let Some((inside, behind)) = after.split_once('>') else {
            panic!("`{text}`: no `>` behind `<`; write `\\x3c` for the sign itself")
        };
        match inside.split_once(' ') {
            Some(("b64", message)) => octets.extend(STANDARD.encode(unescape(message)).into_bytes()),
            Some(("repeat", what)) => {
                let (times, what) = what.split_once(' ').unwrap();
                octets.extend(unescape(what).repeat(times.parse().unwrap()));
            }
            _ => panic!("`{text}`: cannot expand `<{inside}>`"),
        }
        left = behind;
    }
    octets.extend(unescape(left));
    octets
}

/// `\r \n \t \0 \\ \xNN`; everything else stands for itself, in UTF-8.
fn unescape(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut left = text.chars();
    while let Some(c) = left.next() {
        if c != '\\' {
            octets.extend(c.to_string().into_bytes());
            continue;
        }
        octets.push(match left.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('\\') => b'\\',
            Some('x') => {
                let digits: String = left.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("`{text}`: bad `\\x{digits}`"))
            }
            other => panic!("`{text}`: no escape `\\{other:?}`"),
        });
    }
    octets
}

/// The other way round: what is no plain text is shown by its number.
fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\r' => text.push_str("\\r"),
                '\n' => text.push_str("\\n"),
                '\0' => text.push_str("\\0"),
                '\t' => text.push_str("\\t"),
                c if c.is_ascii_control() => write!(text, "\\x{:02x}", u32::from(c)).unwrap(),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").unwrap();
        }
    }
    text
}

/// Events as a transcript, for whoever has to find the difference.
fn shown(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        let (mark, bytes) = match event {
            Event::In(bytes) => ("<-", bytes),
            Event::Out(bytes) => ("P:", bytes),
            Event::Report(report) => {
                writeln!(text, "=  {report}").unwrap();
                continue;
            }
            Event::Told(what) => {
                writeln!(text, ">  {what}").unwrap();
                continue;
            }
        };
        for line in bytes.split_inclusive(|&b| b == b'\n') {
            let whole = line.strip_suffix(b"\r\n");
            let open = if whole.is_some() { "" } else { "\\" };
            writeln!(text, "{mark} {}{open}", escape(whole.unwrap_or(line))).unwrap();
        }
    }
    text
}
