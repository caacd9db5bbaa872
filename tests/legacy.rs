//! What legacy clients need beyond a login, through the whole proxy: names that are no addresses, shared
//! mailboxes, devices that cannot sign in, load balancers, old TLS, capabilities that are true, whole messages.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mailkey::simulator::{
    ALICE, BOB, CONFIDENTIAL_CLIENT_ID, CONFIDENTIAL_CLIENT_SECRET, DIRECTORY_ID, Edition, Event, MailFault,
    PUBLIC_CLIENT_ID, SUPPORT, Service, Settings, SignIn, Step, Submission,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing_subscriber::fmt::MakeWriter;

use crate::stage::{PATIENCE, Plan, Stage, Wire};

/// Log lines of everything that runs on this thread, which in a test without worker threads is all of it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> (Self, (tracing::Dispatch, tracing::subscriber::DefaultGuard)) {
        let log = Self::default();
        let subscriber = || {
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_ansi(false)
                .with_writer(log.clone())
                .finish()
        };
        // With one subscriber only, the thread that meets a log line first says for all whether anybody listens.
        let counted = tracing::Dispatch::new(subscriber());
        let guards = (counted, tracing::subscriber::set_default(subscriber()));
        (log, guards)
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.0.lock().unwrap()).lines().map(str::to_owned).collect()
    }

    /// The first line that holds all of these.
    async fn line(&self, words: &[&str]) -> String {
        let found = timeout(PATIENCE, async {
            loop {
                let lines = self.lines();
                if let Some(line) = lines.iter().find(|line| words.iter().all(|word| line.contains(word))) {
                    return line.clone();
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("no line with {words:?} in {:#?}", self.lines()))
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn sign_ins(stage: &Stage) -> Vec<SignIn> {
    let events = stage.office.journal().into_iter();
    events.filter_map(|event| if let Event::SignIn(one) = event { Some(one) } else { None }).collect()
}

fn submitted(stage: &Stage) -> Vec<Submission> {
    let events = stage.office.journal().into_iter();
    events.filter_map(|event| if let Event::Submitted(one) = event { Some(one) } else { None }).collect()
}

fn plain(user: &str, password: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(format!("\0{user}\0{password}"))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

async fn imap_login(stage: &Stage, user: &str, password: &str) -> String {
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} {}", quoted(user), quoted(password)), "a ").await
}

const MESSAGE: &str = "RCPT TO:<alice@contoso.com>\r\nDATA\r\n";

/// Sends one message with this sender on a session that has said hello; the last answer.
async fn send(wire: &mut Wire, sender: &str) -> String {
    let first = wire.ask(&format!("MAIL FROM:<{sender}>"), "").await;
    if !first.starts_with("250") {
        return first;
    }
    wire.say(MESSAGE).await;
    wire.until("250").await;
    wire.until("354").await;
    wire.ask("Subject: scan\r\n\r\nMAIL FROM:<text@in.it>\r\n.", "").await
}

const NAMES: &str = "accounts:
  - {user: 'CONTOSO\\*', login: '*@contoso.com'}
  - {user: '*@contoso.com/*@contoso.com', login: '{1}@contoso.com', mailbox: '{2}@contoso.com'}
  - {user: '*\\*', login: '{1}', mailbox: '{2}@contoso.com'}
  - {user: helpdesk, login: alice@contoso.com, mailbox: support@contoso.com}
  - {user: delegate, login: alice@contoso.com, mailbox: support@contoso.com, mailbox-smtp: alice@contoso.com}
";

#[tokio::test(flavor = "multi_thread")]
async fn trap_27_legacy_names_lead_to_the_right_person_and_mailbox_by_protocol() {
    let stage = Stage::planned(Plan { sections: NAMES.to_owned(), ..Plan::default() }).await;
    for (name, mailbox) in [
        ("contoso\\ALICE", ALICE.0),
        ("Alice@Contoso.COM/Support@contoso.com", SUPPORT),
        ("alice@contoso.com\\support", SUPPORT),
        ("HelpDesk", SUPPORT),
        ("delegate", SUPPORT),
    ] {
        let told = imap_login(&stage, name, ALICE.1).await;
        assert!(told.starts_with("a OK"), "{name}: {told}");
        let sign_in = sign_ins(&stage).pop().unwrap();
        assert_eq!((sign_in.user.to_lowercase().as_str(), sign_in.accepted), (mailbox, true), "{name}");
        assert_eq!(sign_in.token_user.as_deref(), Some(ALICE.0), "{name}");
        let mut smtp = stage.wire("smtp").await;
        smtp.until("220").await;
        smtp.ask("EHLO x", "250 ").await;
        smtp.ask(&format!("AUTH PLAIN {}", plain(name, ALICE.1)), "235").await;
        let told = send(&mut smtp, SUPPORT).await;
        assert!(told.starts_with("250"), "{name}: {told}");
        let sign_in = sign_ins(&stage).pop().unwrap();
        assert_eq!(sign_in.user.to_lowercase(), ALICE.0, "{name} sends as the delegate");
    }
    // all those names are one person: one token, one slot
    assert_eq!(stage.office.token_requests(), 1);
    let users = stage.office.journal().into_iter().filter_map(|event| match event {
        Event::Token(request) => request.user,
        Event::SignIn(_) | Event::Submitted(_) | Event::Ews(_) | Event::Connected(_) => None,
    });
    assert_eq!(users.collect::<Vec<_>>(), [ALICE.0]);
    // a mailbox that was not shared with the one who signs in stays shut
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} {}", quoted("alice@contoso.com\\bob"), quoted(ALICE.1)), "a ").await;
    let told = wire.ask("b SELECT INBOX", "b ").await;
    assert!(told.starts_with("b BAD"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_of_a_user_name_is_no_difference_to_the_cache() {
    let stage = Stage::usual().await;
    for name in ["alice@contoso.com", "ALICE@contoso.com", "Alice@CONTOSO.com"] {
        assert!(imap_login(&stage, name, ALICE.1).await.starts_with("a OK"), "{name}");
    }
    assert_eq!(stage.office.token_requests(), 1);
}

/// Two listeners for devices; the account's token is the application's own.
fn devices() -> Plan {
    let listener = "protocol: smtp, listen: '127.0.0.1:0', upstream: {smtp}, allow-from: [127.0.0.1]";
    Plan {
        listeners: format!(
            "  - {{name: scanners, {listener}, fixed-account: mfp, envelope-sender: mailbox}}\n\
             \x20 - {{name: strangers, protocol: smtp, listen: '127.0.0.1:0', upstream: {{smtp}}, \
             allow-from: [192.0.2.1], fixed-account: mfp}}\n\
             \x20 - {{name: by-password, {listener}, fixed-account: bob@contoso.com}}\n"
        ),
        sections: format!(
            "accounts:\n  - {{user: mfp, mailbox: alice@contoso.com, grant: client-credentials, directory-id: \
             {DIRECTORY_ID}, client-id: {CONFIDENTIAL_CLIENT_ID}, client-secret: '{CONFIDENTIAL_CLIENT_SECRET}', \
             scope: 'https://outlook.office365.com/.default'}}\n\
             \x20 - {{user: bob@contoso.com, password-file: bob}}\n"
        ),
        files: vec![("bob", BOB.1)],
        ..Plan::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_25_and_26_a_device_sends_as_its_listeners_account_and_upstream_judges_the_sender() {
    let stage = Stage::planned(devices()).await;
    let mut wire = stage.wire("scanners").await;
    wire.until("220").await;
    // port 25 as devices speak it: no TLS, no AUTH, all in one go
    let mut seen = Vec::new();
    wire.say("EHLO mfp\r\n").await;
    loop {
        let line = wire.line().await.unwrap();
        seen.push(line.clone());
        if line.starts_with("250 ") {
            break;
        }
    }
    assert!(!seen.iter().any(|line| line.contains("AUTH")), "{seen:?}");
    for sender in ["scan@local", "", "alice@contoso.com"] {
        let told = send(&mut wire, sender).await;
        assert!(told.starts_with("250"), "{sender}: {told}");
    }
    wire.ask("QUIT", "221").await;
    let senders: Vec<String> = submitted(&stage).into_iter().map(|one| one.from).collect();
    assert_eq!(senders, [ALICE.0, "", ALICE.0], "the sender is the mailbox; the empty one stays empty");
    let messages = stage.office.messages(ALICE.0, "INBOX");
    assert!(messages.iter().all(|one| one.ends_with(b"MAIL FROM:<text@in.it>\r\n")), "text is no command");

    let mut wire = stage.wire("by-password").await;
    wire.until("220").await;
    wire.ask("HELO mfp", "250").await;
    assert!(send(&mut wire, BOB.0).await.starts_with("250"));
    assert_eq!(sign_ins(&stage).pop().unwrap().token_user.as_deref(), Some(BOB.0));
    // `envelope-sender` is `keep` here, and upstream does not let him send as somebody else
    let mut wire = stage.wire("by-password").await;
    wire.until("220").await;
    wire.ask("HELO mfp", "250").await;
    let told = send(&mut wire, ALICE.0).await;
    assert!(told.starts_with('5'), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_sends_as_the_account_of_the_devices() {
    let stage = Stage::planned(devices()).await;
    // from another address: not a word
    let mut wire = stage.wire("strangers").await;
    assert_eq!(wire.line().await, None);
    // by a password, here or elsewhere, empty or not
    for (listener, expected) in [("scanners", "503"), ("smtp", "535")] {
        let mut wire = stage.wire(listener).await;
        wire.until("220").await;
        wire.ask("EHLO x", "250 ").await;
        wire.ask(&format!("AUTH PLAIN {}", plain("mfp", "guess")), expected).await;
    }
    let told = imap_login(&stage, "mfp", "guess").await;
    assert!(told.starts_with("a NO"), "{told}");
    // who does not sign in where nobody is fixed is told to
    let mut wire = stage.wire("smtp").await;
    wire.until("220").await;
    wire.ask("EHLO x", "250 ").await;
    wire.ask("MAIL FROM:<alice@contoso.com>", "530 ").await;
    assert_eq!((stage.office.token_requests(), sign_ins(&stage).len()), (0, 0));
}

#[tokio::test]
async fn a_load_balancer_says_who_is_there_and_nobody_else_may() {
    let (log, _guard) = Log::listen();
    let listener = "protocol: imap, listen: '127.0.0.1:0', upstream: {imap}";
    let stage = Stage::planned(Plan {
        listeners: format!(
            "  - {{name: balanced, {listener}, proxy-protocol-from: [127.0.0.1], allow-from: [192.0.2.0/24]}}\n\
             \x20 - {{name: direct, {listener}, proxy-protocol-from: [198.51.100.1]}}\n"
        ),
        sections: "limits: {login-timeout: 2s}\n".to_owned(),
        ..Plan::default()
    })
    .await;
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x22\x7f\x00\x00\x01\x9c\x40\x00\x8f";
    for (header, peer) in [
        (&b"PROXY TCP4 192.0.2.33 127.0.0.1 40001 143\r\n"[..], "192.0.2.33:40001"),
        (v2, "192.0.2.34:40000"),
    ] {
        let mut wire = stage.wire("balanced").await;
        // the client's own talk right behind the header, as a balancer would send it
        wire.say([header, format!("a LOGIN {} {}\r\n", ALICE.0, quoted(ALICE.1)).as_bytes()].concat()).await;
        wire.until("a OK").await;
        wire.ask("b LOGOUT", "b OK").await;
        drop(wire);
        log.line(&["session ended", peer, "mailbox"]).await;
    }
    // `allow-from` is about the client, not about the balancer
    for header in ["PROXY TCP4 203.0.113.9 127.0.0.1 40001 143\r\n", "PROXY UNKNOWN\r\n"] {
        let mut wire = stage.wire("balanced").await;
        wire.say(header).await;
        assert_eq!(wire.line().await, None, "{header}");
    }
    log.line(&["turned away: not in `allow-from`", "203.0.113.9"]).await;
    // no header, or none in time
    let mut wire = stage.wire("balanced").await;
    wire.say("a LOGIN alice@contoso.com secret\r\n").await;
    assert_eq!(wire.line().await, None);
    let mut wire = stage.wire("balanced").await;
    assert_eq!(wire.line().await, None);
    log.line(&["no PROXY header within `login-timeout`"]).await;
    // who is not on the list is not believed
    let mut wire = stage.wire("direct").await;
    wire.until("* OK").await;
    wire.say("PROXY TCP4 192.0.2.33 127.0.0.1 40001 143\r\n").await;
    let told = wire.line().await.unwrap();
    assert!(told.starts_with("PROXY BAD") || told.starts_with("* B"), "{told}");
    assert!(!log.lines().iter().any(|line| line.contains("direct") && line.contains("192.0.2.33")));
}

/// A TLS 1.0 ClientHello, as Java 6 and Windows Server 2008 send it.
fn old_hello() -> Vec<u8> {
    let mut body = vec![3, 1];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0]);
    let length = u8::try_from(body.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
}

#[tokio::test]
async fn a_client_with_old_tls_is_told_what_it_lacks_in_the_log() {
    let (log, _guard) = Log::listen();
    let stage = Stage::usual().await;
    for listener in ["imap-tls", "smtp-starttls", "ews-tls"] {
        let mut socket = TcpStream::connect(stage.address(listener)).await.unwrap();
        if listener == "smtp-starttls" {
            let mut wire = Wire(tokio::io::BufReader::new(socket));
            wire.until("220").await;
            wire.ask("EHLO x", "250 ").await;
            wire.ask("STARTTLS", "220").await;
            socket = wire.0.into_inner();
        }
        socket.write_all(&old_hello()).await.unwrap();
        let mut answer = Vec::new();
        // an alert, then the end; a reset would be no answer
        timeout(PATIENCE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer.first(), Some(&21), "{listener}: {answer:?}");
        log.line(&["CLIENT-TLS-TOO-OLD", listener, "remedy", "update the client"]).await;
    }
    let mut socket = TcpStream::connect(stage.address("imap-tls")).await.unwrap();
    socket.write_all(b"a CAPABILITY\r\n").await.unwrap();
    log.line(&["CLIENT-TLS-CLEAR", "imap-tls"]).await;
}

/// The words of the CAPABILITY answer before a login.
async fn capabilities(stage: &Stage) -> Vec<String> {
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    let line = wire.ask("a CAPABILITY", "* CAPABILITY").await;
    line.split(' ').skip(2).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_04_what_is_shown_before_the_login_is_there_after_it_in_every_edition() {
    for edition in [Edition::Classic, Edition::TcpProxy] {
        let stage =
            Stage::planned(Plan { settings: Settings { edition, ..Settings::default() }, ..Plan::default() })
                .await;
        let ours = ["AUTH=PLAIN", "AUTH=LOGIN", "SASL-IR"];
        for round in 0..2 {
            let before = capabilities(&stage).await;
            assert!(before.contains(&"AUTH=PLAIN".to_owned()), "{edition:?}: {before:?}");
            assert!(!before.iter().any(|word| word == "LOGINDISABLED" || word == "AUTH=XOAUTH2"));
            let mut wire = stage.wire("imap").await;
            wire.until("* OK").await;
            wire.ask(&format!("a LOGIN {} {}", ALICE.0, quoted(ALICE.1)), "a OK").await;
            let after = wire.ask("b CAPABILITY", "* CAPABILITY").await;
            let after: Vec<&str> = after.split(' ').collect();
            let broken: Vec<&String> = before
                .iter()
                .filter(|word| !ours.contains(&word.as_str()) && !after.contains(&word.as_str()))
                .collect();
            // the first login may teach us what the anonymous list did not
            assert!(
                round == 0 || broken.is_empty(),
                "{edition:?}: {broken:?} of {before:?}, not in {after:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_04_an_upstream_that_is_away_at_the_start_changes_nothing_for_clients() {
    let stage = Stage::usual().await;
    stage.office.mischief().mail(Service::Imap, MailFault::RefuseConnect);
    let before = capabilities(&stage).await;
    assert!(before.contains(&"IDLE".to_owned()), "{before:?}");
    stage.office.mischief().calm();
    assert!(imap_login(&stage, ALICE.0, ALICE.1).await.starts_with("a OK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_13_commands_that_change_the_session_reach_upstream_as_they_are() {
    let stage = Stage::usual().await;
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} {}", ALICE.0, quoted(ALICE.1)), "a OK").await;
    // upstream's own words come back, whichever they are; ours would be those of the login dialogue
    for (command, answer) in
        [("b ENABLE UTF8=ACCEPT", "b "), ("c COMPRESS DEFLATE", "c "), ("d NOTIFY NONE", "d ")]
    {
        let told = wire.ask(command, answer).await;
        assert!(!told.contains("Mailkey") && !told.contains("sign in"), "{told}");
    }
    wire.ask("e LOGOUT", "e OK").await;
}

async fn signed_in_smtp(stage: &Stage) -> Wire {
    let mut wire = stage.wire("smtp").await;
    wire.until("220").await;
    wire.ask("EHLO x", "250 ").await;
    wire.ask(&format!("AUTH PLAIN {}", plain(ALICE.0, ALICE.1)), "235").await;
    wire
}

#[tokio::test]
async fn a_message_that_is_lost_is_in_the_log_with_its_envelope() {
    let (log, _guard) = Log::listen();
    let stage = Stage::usual().await;
    // the client goes away in the middle
    let mut wire = signed_in_smtp(&stage).await;
    wire.ask("MAIL FROM:<alice@contoso.com>", "250").await;
    wire.ask("RCPT TO:<bob@contoso.com>", "250").await;
    wire.ask("RCPT TO:<support@contoso.com>", "250").await;
    wire.ask("DATA", "354").await;
    wire.say("Subject: half\r\n").await;
    drop(wire);
    let line = log.line(&["inside a message", "alice@contoso.com"]).await;
    assert!(line.contains("recipients=2"), "{line}");
    // upstream goes away instead of answering
    stage.office.mischief().mail(Service::Smtp, MailFault::CloseAt(Step::Received));
    let mut wire = signed_in_smtp(&stage).await;
    wire.ask("MAIL FROM:<alice@contoso.com>", "250").await;
    wire.ask("RCPT TO:<bob@contoso.com>", "250").await;
    wire.ask("DATA", "354").await;
    wire.say("Subject: whole\r\n\r\nx\r\n.\r\n").await;
    assert_eq!(wire.rest().await, Vec::<String>::new(), "no answer is made up");
    let line = log.line(&["final answer to a message is lost", "alice@contoso.com"]).await;
    assert!(line.contains("recipients=1"), "{line}");
    // who says goodbye has lost nothing
    stage.office.mischief().calm();
    let mut wire = signed_in_smtp(&stage).await;
    let told = send(&mut wire, ALICE.0).await;
    assert!(told.starts_with("250"), "{told}");
    let warned = log.lines().iter().filter(|line| line.contains("message")).count();
    wire.ask("QUIT", "221").await;
    drop(wire);
    log.line(&["session ended", "mailbox"]).await;
    assert_eq!(log.lines().iter().filter(|line| line.contains("message")).count(), warned);
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_28_an_expiring_token_waits_for_the_message_and_then_ends_the_session() {
    let settings = Settings { token_lifetime: Some(Duration::from_secs(4)), ..Settings::default() };
    let stage = Stage::planned(Plan {
        settings,
        listeners: "  - {name: marginal, protocol: smtp, listen: '127.0.0.1:0', upstream: {smtp}, \
                    token-expiry-margin-time: 2s}\n"
            .to_owned(),
        sections: "tokens: {refresh-margin: 1s}\n".to_owned(),
        ..Plan::default()
    })
    .await;
    let mut wire = stage.wire("marginal").await;
    wire.until("220").await;
    wire.ask("EHLO x", "250 ").await;
    wire.ask(&format!("AUTH PLAIN {}", plain(ALICE.0, ALICE.1)), "235").await;
    wire.ask("MAIL FROM:<alice@contoso.com>", "250").await;
    wire.ask("RCPT TO:<bob@contoso.com>", "250").await;
    wire.say("BDAT 5\r\nSubje").await;
    wire.until("250").await;
    // the margin begins inside the message
    sleep(Duration::from_secs(3)).await;
    wire.say("BDAT 9 LAST\r\nct: x\r\n\r\n").await;
    wire.until("250").await;
    wire.until("421 4.7.0").await;
    assert_eq!(wire.line().await, None);
    assert_eq!(stage.office.messages(BOB.0, "INBOX").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_message_that_is_under_way() {
    let stage = Stage::usual().await;
    let mut wire = signed_in_smtp(&stage).await;
    wire.ask("MAIL FROM:<alice@contoso.com>", "250").await;
    wire.ask("RCPT TO:<bob@contoso.com>", "250").await;
    wire.ask("DATA", "354").await;
    let Stage { office, app, folder, .. } = stage;
    let stopping = tokio::spawn(app.stop(std::future::pending()));
    sleep(Duration::from_millis(600)).await;
    assert!(!stopping.is_finished());
    wire.say("Subject: whole\r\n\r\nx\r\n.\r\n").await;
    wire.until("250").await;
    wire.until("421").await;
    timeout(PATIENCE, stopping).await.unwrap().unwrap();
    assert_eq!(office.messages(BOB.0, "INBOX").len(), 1);
    drop(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_configuration_serves_two_applications_as_genesys_wants_it() {
    // devices on a fixed port with an application of its own, everybody else by password with another
    let stage = Stage::planned(devices()).await;
    let mut wire = stage.wire("scanners").await;
    wire.until("220").await;
    wire.ask("EHLO x", "250 ").await;
    assert!(send(&mut wire, "a@b").await.starts_with("250"));
    assert!(imap_login(&stage, ALICE.0, ALICE.1).await.starts_with("a OK"));
    let clients: Vec<Option<String>> = sign_ins(&stage).into_iter().map(|one| one.client_id).collect();
    assert_eq!(clients, [Some(CONFIDENTIAL_CLIENT_ID.to_owned()), Some(PUBLIC_CLIENT_ID.to_owned())]);
}
