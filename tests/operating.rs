//! The proxy over its life: reload, drain, recordings, the commands that ask a running one.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::config;
use mailkey::simulator::{ALICE, IdentityFault, MailFault, Service};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::ports::free_port;
use crate::stage::{PATIENCE, Plan, Stage, Wire, run, write_private};
use crate::transcripts::replay_recording;

pub const MAILKEY: &str = env!("CARGO_BIN_EXE_mailkey");

/// A page of the admin listener.
async fn page(stage: &Stage, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(stage.app.admin_addresses()[0]).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Changes the stage's configuration file and has the proxy take it.
fn reload(stage: &Stage, change: impl Fn(&str) -> String) -> bool {
    let path = stage.file("proxy.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, change(&text)).unwrap();
    stage.app.reload(config::load(&path, &|_| None))
}

async fn signed_in(stage: &Stage, listener: &str) -> Wire {
    let mut wire = stage.wire(listener).await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_sessions_and_sockets_opens_new_ones_and_closes_the_rest() {
    let stage = Stage::usual().await;
    let mut old = signed_in(&stage, "imap").await;
    let (kept, closed) = (stage.address("imap"), stage.address("pop3"));
    let requests = stage.office.journal().len();
    let taken = reload(&stage, |text| {
        let pop3 = text.lines().find(|line| line.contains("{name: pop3,")).unwrap();
        let imap = text.lines().find(|line| line.contains("{name: imap,")).unwrap();
        let new = imap.replace("name: imap,", "name: second,");
        text.replace(pop3, &new)
    });
    assert!(taken, "{:?}", page(&stage, "/status.json").await);
    assert_eq!(stage.address("imap"), kept, "a listener that stays keeps its socket");
    old.ask("b NOOP", "b OK").await;
    let mut new = signed_in(&stage, "second").await;
    new.ask("b NOOP", "b OK").await;
    assert!(requests <= stage.office.journal().len());
    let refused = async {
        while TcpStream::connect(closed).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, refused).await.expect("a listener that is gone closes its socket");
    let (_, metrics) = page(&stage, "/metrics").await;
    assert!(metrics.contains("mailkey_config_last_reload_successful 1\n"), "{metrics}");
    assert!(
        metrics.contains("mailkey_token_requests_total{grant=\"password\",outcome=\"ok\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing_and_says_why() {
    let stage = Stage::usual().await;
    let mut session = signed_in(&stage, "imap").await;
    let addresses = stage.app.addresses();
    let path = stage.file("proxy.yaml");
    let good = std::fs::read_to_string(&path).unwrap();
    for (broken, why) in [
        (good.replace("protocol: imap,", "protocol: imapp,"), "imapp"),
        ("listeners: [".to_owned(), "indentation"),
        (good.replace("server.pem", "no-such.pem"), "no-such.pem"),
        (format!("{good}tokens: {{store: 'file:here', key: '{}'}}\n", "ab".repeat(32)), "tokens.store"),
        (
            good.replacen("127.0.0.1:0", "203.0.113.7:1143", 1).replacen(
                "tls: off",
                "tls: off, allow-insecure: true",
                1,
            ),
            "203.0.113.7",
        ),
    ] {
        assert!(!reload(&stage, |_| broken.clone()), "{why}");
        assert_eq!(stage.app.addresses(), addresses, "{why}");
        let (_, status) = page(&stage, "/status.json").await;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["last-reload"]["is-taken"], false);
        let told = status["last-reload"]["what"].as_str().unwrap();
        assert!(told.contains(why), "{why}: {told}");
        assert!(page(&stage, "/").await.1.contains("The configuration was not reloaded"));
        assert_eq!(page(&stage, "/readyz").await.0, 200, "{why}");
        assert!(page(&stage, "/metrics").await.1.contains("mailkey_config_last_reload_successful 0\n"));
    }
    session.ask("b NOOP", "b OK").await;
    signed_in(&stage, "imap").await;
    assert!(reload(&stage, |_| good.clone()));
}

/// The certificate that a listener shows.
async fn certificate(stage: &Stage, listener: &str) -> String {
    let told = run("openssl", ["s_client", "-connect", &stage.address(listener).to_string()], b"").await;
    let text = told.text();
    let start = text.find("-----BEGIN").unwrap_or_else(|| panic!("{told:?}"));
    let end = text.find("-----END").unwrap();
    text[start..end].split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_after_a_reload_and_one_without_its_key_is_not_taken() {
    let stage = Stage::usual().await;
    let first = certificate(&stage, "imap-tls").await;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(stage.file("server.pem"), made.cert.pem()).unwrap();
    assert!(!reload(&stage, str::to_owned), "certificate and key do not belong together");
    assert_eq!(certificate(&stage, "imap-tls").await, first);
    std::fs::write(stage.file("server.key"), made.signing_key.serialize_pem()).unwrap();
    assert!(reload(&stage, str::to_owned));
    let second = certificate(&stage, "imap-tls").await;
    assert_ne!(second, first);
    assert!(made.cert.pem().split_whitespace().collect::<String>().contains(&second));
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_sessions_are_allowed_after_a_reload() {
    let stage =
        Stage::planned(Plan { sections: "limits: {sessions: 3}\n".to_owned(), ..Plan::default() }).await;
    let (first, _second) = (signed_in(&stage, "imap").await, signed_in(&stage, "imap").await);
    assert!(reload(&stage, |text| text.replace("sessions: 3", "sessions: 1")));
    let mut third = stage.wire("imap").await;
    third.until("* BYE").await;
    drop(first);
    sleep(Duration::from_millis(300)).await;
    stage.wire("imap").await.until("* BYE").await;
    assert!(reload(&stage, |text| text.replace("sessions: 1", "sessions: 2")));
    let enters = async {
        while !stage.wire("imap").await.line().await.is_some_and(|line| line.starts_with("* OK")) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, enters).await.expect("there is room for one more");
}

/// Every form of a login, with this password.
fn login_forms(password: &str) -> Vec<(&'static str, Vec<String>)> {
    let user = ALICE.0;
    let encode = |text: String| BASE64_STANDARD.encode(text);
    let plain = encode(format!("\0{user}\0{password}"));
    let (user64, password64) = (encode(user.to_owned()), encode(password.to_owned()));
    let (u, p) = (user.len(), password.len());
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    vec![
        ("imap", lines(&[&format!("a LOGIN {user} \"{password}\"")])),
        ("imap", lines(&[&format!("a LOGIN \"{user}\" {{{p}}}"), password])),
        ("imap", lines(&[&format!("a LOGIN {{{u}}}"), &format!("{user} {{{p}}}"), password])),
        ("imap", lines(&[&format!("a LOGIN {{{u}+}}\r\n{user} {{{p}+}}\r\n{password}")])),
        ("imap", lines(&["a AUTHENTICATE PLAIN", &plain])),
        ("imap", lines(&[&format!("a AUTHENTICATE PLAIN {plain}")])),
        ("imap", lines(&["a AUTHENTICATE LOGIN", &user64, &password64])),
        ("imap", lines(&["a CAPABILITY", &format!("b LOGIN {user} \"{password}\"")])),
        ("pop3", lines(&[&format!("USER {user}"), &format!("PASS {password}")])),
        ("pop3", lines(&["AUTH PLAIN", &plain])),
        ("pop3", lines(&[&format!("AUTH PLAIN {plain}")])),
        ("pop3", lines(&["AUTH LOGIN", &user64, &password64])),
        ("smtp", lines(&["EHLO x", &format!("AUTH PLAIN {plain}")])),
        ("smtp", lines(&["EHLO x", "AUTH PLAIN", &plain])),
        ("smtp", lines(&["EHLO x", "AUTH LOGIN", &user64, &password64])),
        ("smtp", lines(&["EHLO x", &format!("AUTH LOGIN {user64}"), &password64])),
        ("imap", lines(&[&format!("{password} {password}"), &format!("a LOGIN {user} \"{password}\"")])),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_replays_and_holds_no_secret_of_any_login_form() {
    const PASSWORD: &str = "Gruenkohl-4711!";
    let stage = Stage::usual().await;
    for (protocol, lines) in login_forms(PASSWORD) {
        let mut wire = stage.wire(protocol).await;
        wire.line().await.expect("a greeting");
        for line in &lines {
            wire.say(format!("{line}\r\n")).await;
            loop {
                let answer = wire.line().await.unwrap_or_else(|| panic!("hung up at {line}"));
                // one of several lines goes on
                if !answer.starts_with("250-") && !answer.starts_with("* CAPABILITY") {
                    break;
                }
            }
        }
        drop(wire);
        let (status, text) = page(&stage, "/recordings").await;
        assert_eq!(status, 200);
        let newest = text.split("# session ").nth(1).unwrap();
        assert!(newest.contains(ALICE.0), "user names are kept: {lines:?}\n{newest}");
        let (count, broken) = replay_recording(newest);
        assert_eq!((count, broken.as_str()), (1, ""), "{lines:?}\n{newest}");
        assert!(newest.contains("failed: AADSTS50126") || newest.contains("failed: "), "{newest}");
        for secret in [
            PASSWORD.to_owned(),
            BASE64_STANDARD.encode(PASSWORD),
            BASE64_STANDARD.encode(format!("\0{}\0{PASSWORD}", ALICE.0)),
            "Gruenkohl".to_owned(),
        ] {
            assert!(!text.contains(&secret), "{lines:?} shows a secret:\n{newest}");
        }
    }
    let (_, status) = page(&stage, "/status.json").await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["recordings"], login_forms("x").len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_upstream_refuses_is_recorded_without_it() {
    for (protocol, service) in [("imap", Service::Imap), ("pop3", Service::Pop3), ("smtp", Service::Smtp)] {
        let stage = Stage::usual().await;
        stage.office.mischief().mail(service, MailFault::RefuseToken);
        let mut wire = stage.wire(protocol).await;
        wire.line().await.unwrap();
        let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1));
        let lines = match protocol {
            "imap" => vec![format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1)],
            "pop3" => vec![format!("USER {}", ALICE.0), format!("PASS {}", ALICE.1)],
            _ => vec![format!("HELO x"), format!("AUTH PLAIN {plain}")],
        };
        for line in lines {
            wire.say(format!("{line}\r\n")).await;
            wire.line().await.unwrap();
        }
        let (_, text) = page(&stage, "/recordings").await;
        let (count, broken) = replay_recording(&text);
        assert_eq!((count, broken.as_str()), (2, ""), "{text}");
        assert!(text.contains(&format!("# transcript: {protocol}/back")), "{text}");
        assert!(text.contains("auth=Bearer [redacted]"), "{text}");
        assert!(!text.contains("eyJ") && !text.contains(ALICE.1) && !text.contains("ZXlK"), "{text}");
    }
}

/// The proxy as a process of its own.
pub struct Process {
    pub child: Child,
    log: BufReader<tokio::process::ChildStderr>,
    pub seen: String,
}

impl Process {
    pub fn start(stage: &Stage, change: impl Fn(&str) -> String) -> Self {
        Self::start_after(stage, change, || ())
    }

    /// With something to be done once its configuration is written.
    pub fn start_after(stage: &Stage, change: impl Fn(&str) -> String, prepare: impl FnOnce()) -> Self {
        let text = std::fs::read_to_string(stage.file("proxy.yaml")).unwrap();
        write_private(&stage.file("own.yaml"), &change(&text));
        prepare();
        Self::spawn(Command::new(MAILKEY).args(["run", "--config", stage.file("own.yaml").to_str().unwrap()]))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, seen: String::new() }
    }

    pub async fn until(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.log.read_line(&mut line)).await;
            let read = read.unwrap_or_else(|_| panic!("no `{text}` in the log:\n{}", self.seen));
            assert!(read.unwrap() > 0, "the log ended before `{text}`:\n{}", self.seen);
            self.seen += &line;
            if line.contains(text) {
                return line;
            }
        }
    }

    pub async fn address(&mut self, listener: &str) -> std::net::SocketAddr {
        let line = self.until(&format!("listening listener=\"{listener}\"")).await;
        line.split("address=").nth(1).unwrap().trim().parse().unwrap()
    }

    pub async fn admin(&mut self) -> std::net::SocketAddr {
        let line = self.until("status page at http://").await;
        line.split("http://").nth(1).unwrap().trim().trim_end_matches('/').parse().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub async fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        drop(self.log.read_to_string(&mut rest).await);
        let status = timeout(PATIENCE, self.child.wait()).await.expect("the proxy does not end").unwrap();
        (status.code(), self.seen + &rest)
    }
}

pub async fn dial(address: std::net::SocketAddr) -> Wire {
    Wire(BufReader::new(TcpStream::connect(address).await.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn hangup_and_the_reload_command_take_a_new_file_and_the_other_commands_ask() {
    let stage = Stage::usual().await;
    let admin = free_port();
    let own = stage.file("own.yaml");
    let with_admin = |text: &str| {
        text.replace("admin: {listen: '127.0.0.1:0'}", &format!("admin: {{listen: '127.0.0.1:{admin}'}}"))
            + "run: {pid-file: mailkey.pid}\n"
    };
    let mut proxy = Process::start(&stage, with_admin);
    let imap = proxy.address("imap").await;
    proxy.admin().await;
    let own = own.to_str().unwrap();
    let ask = async |command: &str| run(MAILKEY, [command, "--config", own], b"").await;
    let told = ask("healthcheck").await;
    assert_eq!((told.code, told.text().as_str()), (Some(0), "ready\n"), "{told:?}");

    let mut wire = dial(imap).await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} \"not the password\"", ALICE.0), "a NO").await;
    let told = ask("recordings").await;
    assert!(told.code == Some(0) && told.text().contains("a LOGIN"), "{told:?}");
    assert!(!told.text().contains("not the password"), "{told:?}");
    let bundle = stage.file("bundle");
    let told = run(MAILKEY, ["support-bundle", "--config", own, bundle.to_str().unwrap()], b"").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    for (file, part) in [
        ("version.txt", "mailkey "),
        ("check.txt", "listeners"),
        ("status.json", "\"last-failure\""),
        ("metrics.txt", "# EOF"),
        ("recordings.txt", "AADSTS50126"),
    ] {
        let text = std::fs::read_to_string(bundle.join(file)).unwrap();
        assert!(text.contains(part) && !text.contains("not the password"), "{file}: {text}");
    }

    proxy.signal("-HUP");
    proxy.until("configuration reloaded").await;
    let told = ask("reload").await;
    assert!(told.code == Some(0) && told.text().contains("reloaded: "), "{told:?}");
    let good = std::fs::read_to_string(own).unwrap();
    std::fs::write(own, good.replace("protocol: imap,", "protocol: imapp,")).unwrap();
    let told = ask("reload").await;
    assert!(told.code == Some(2) && told.err.contains("nothing was reloaded"), "{told:?}");
    proxy.signal("-HUP");
    proxy.until("configuration not reloaded").await;
    assert!(dial(imap).await.line().await.unwrap().starts_with("* OK"));
    std::fs::write(own, good).unwrap();
    proxy.signal("-TERM");
    let (code, log) = proxy.end().await;
    assert_eq!(code, Some(0), "{log}");
    let told = ask("healthcheck").await;
    assert!(told.code == Some(1) && told.err.contains("no proxy answers"), "{told:?}");
    let told = ask("reload").await;
    assert!(told.code == Some(1) && told.err.contains("no proxy runs"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_taken_without_a_word_where_that_is_wished() {
    let stage = Stage::usual().await;
    let mut proxy = Process::start(&stage, |text| format!("{text}run: {{reload-on-change: true}}\n"));
    proxy.admin().await;
    let own = stage.file("own.yaml");
    let text = std::fs::read_to_string(&own).unwrap();
    std::fs::write(&own, text.replace("name: pop3,", "name: renamed,")).unwrap();
    proxy.until("configuration reloaded").await;
    proxy.until("listener=\"renamed\"").await;
    proxy.signal("-TERM");
    assert_eq!(proxy.end().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_says_goodbye_to_idle_imap_sessions_and_waits_for_what_is_under_way() {
    let stage = Stage::usual().await;
    let mut proxy = Process::start(&stage, str::to_owned);
    let imap = proxy.address("imap").await;
    let admin = proxy.admin().await;
    let login = async || {
        let mut wire = dial(imap).await;
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
        wire
    };
    let mut waiting = dial(imap).await;
    waiting.until("* OK").await;
    let (mut quiet, mut idling, mut appending) = (login().await, login().await, login().await);
    idling.ask("b SELECT INBOX", "b OK").await;
    idling.ask("c IDLE", "+").await;
    appending.ask("b APPEND INBOX {24}", "+").await;
    appending.say("Subject: hal").await;
    proxy.signal("-TERM");
    proxy.until("stopping").await;
    waiting.until("* BYE").await;
    quiet.until("* BYE").await;
    idling.until("* BYE").await;
    let mut probe = TcpStream::connect(admin).await.unwrap();
    probe.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
    assert!(TcpStream::connect(imap).await.is_err(), "nobody is let in any more");
    sleep(Duration::from_millis(600)).await;
    appending.say("f\r\n\r\nother\r\n\r\n").await;
    appending.until("b OK").await;
    appending.until("* BYE").await;
    let (code, log) = proxy.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("before they came to their end"), "{log}");
    assert_eq!(stage.office.messages(ALICE.0, "INBOX").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_leaves_the_proxy_ready_and_an_outage_of_the_identity_provider_does_not() {
    let stage = Stage::usual().await;
    let try_login = async |user: &str, password: &str, answer: &str| {
        let mut wire = stage.wire("imap").await;
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN {user} \"{password}\""), answer).await;
    };
    assert_eq!(page(&stage, "/readyz").await.0, 200);
    try_login(ALICE.0, "wrong", "a NO").await;
    assert_eq!(page(&stage, "/readyz").await.0, 200, "it is one person's affair");
    let other = Stage::usual().await;
    other.office.mischief().identity(IdentityFault::AadSts(700_016));
    let mut wire = other.wire("imap").await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a NO").await;
    let (status, why) = page(&other, "/readyz").await;
    assert!(status == 503 && why.contains("no account gets a token"), "{status} {why}");
    assert_eq!(page(&other, "/healthz").await.0, 200, "it is alive all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn warm_connections_are_no_sessions_that_a_stop_would_cut() {
    let stage = Stage::usual().await;
    let mut proxy = Process::start(&stage, str::to_owned);
    let imap = proxy.address("imap").await;
    let admin = proxy.admin().await;
    for _ in 0..3 {
        let mut wire = dial(imap).await;
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
        wire.ask("b LOGOUT", "b OK").await;
    }
    let parked = async {
        loop {
            let mut wire = dial(admin).await;
            wire.say("GET /metrics HTTP/1.0\r\n\r\n").await;
            let lines = wire.rest().await;
            let is =
                |line: &String| line.starts_with("mailkey_warm_connections_parked{") && !line.ends_with(" 0");
            if lines.iter().any(is)
                && lines.iter().any(|line| line == "mailkey_sessions{listener=\"imap\"} 0")
            {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, parked).await.expect("a connection is kept warm");
    proxy.signal("-TERM");
    proxy.signal("-TERM");
    let (code, log) = proxy.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("before they came to their end"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let stage = Stage::usual().await;
    let mut proxy = Process::start(&stage, str::to_owned);
    let imap = proxy.address("imap").await;
    let mut wire = dial(imap).await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
    wire.ask("b APPEND INBOX {24}", "+").await;
    proxy.signal("-TERM");
    proxy.until("stopping").await;
    sleep(Duration::from_millis(500)).await;
    let begun = std::time::Instant::now();
    proxy.signal("-TERM");
    let (code, log) = proxy.end().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("before they came to their end"), "{log}");
    assert!(stage.office.messages(ALICE.0, "INBOX").is_empty(), "half a message is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_waited_for_where_that_is_wished() {
    let stage = Stage::usual().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut proxy =
        Process::start(&stage, |text| text.replacen("127.0.0.1:0", &address, 1) + "run: {bind-retry: 30s}\n");
    proxy.until("in use; trying on").await;
    drop(taken);
    proxy.until("listening").await;
    proxy.signal("-TERM");
    assert_eq!(proxy.end().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_descriptors_is_survived_and_shown() {
    let stage = Stage::usual().await;
    let mut proxy = Process::start(&stage, str::to_owned);
    let imap = proxy.address("imap").await;
    let admin = proxy.admin().await;
    let id = proxy.child.id().unwrap().to_string();
    // a page that is asked for over a connection of before needs no descriptor
    let mut pages = Vec::new();
    for _ in 0..6 {
        pages.push(TcpStream::connect(admin).await.unwrap());
    }
    let limited = run("prlimit", ["--nofile=40:40", "--pid", &id], b"").await;
    assert_eq!(limited.code, Some(0), "{limited:?}");
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(TcpStream::connect(imap).await.unwrap());
    }
    proxy.until("cannot accept").await;
    // whenever anything else gives a descriptor back, one more of the crowd gets in and the trouble is over for a moment
    let mut status = String::new();
    for mut page in pages {
        page.write_all(b"GET /status.json HTTP/1.0\r\n\r\n").await.unwrap();
        status.clear();
        page.read_to_string(&mut status).await.unwrap();
        if status.contains("\"trouble\":\"Too many open files") {
            break;
        }
        sleep(Duration::from_millis(300)).await;
    }
    assert!(status.contains("\"trouble\":\"Too many open files"), "{status}");
    crowd.clear();
    proxy.until("accepting again").await;
    dial(imap).await.until("* OK").await;
    proxy.signal("-TERM");
    assert_eq!(proxy.end().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_gives_sockets_by_name_and_is_told_when_the_proxy_is_ready() {
    let stage = Stage::usual().await;
    let notify = tokio::net::UnixDatagram::bind(stage.file("notify")).unwrap();
    let text = std::fs::read_to_string(stage.file("proxy.yaml")).unwrap();
    write_private(&stage.file("own.yaml"), &text);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut proxy = Process::spawn(
        Command::new("systemd-socket-activate")
            .args(["--listen", &listen, "--fdname", "imap", "-E"])
            .arg(format!("NOTIFY_SOCKET={}", stage.file("notify").display()))
            .args(["-E", "WATCHDOG_USEC=400000", MAILKEY, "run", "--config"])
            .arg(stage.file("own.yaml")),
    );
    // systemd-socket-activate starts the program with the first connection, which is kept for it
    let ready = async {
        while TcpStream::connect(&listen).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, ready).await.unwrap();
    let line = proxy.until("listening listener=\"imap\"").await;
    assert!(line.contains(&listen), "{line}");
    let mut told = String::new();
    for part in ["READY=1", "WATCHDOG=1"] {
        while !told.contains(part) {
            let mut message = [0; 512];
            let size = timeout(PATIENCE, notify.recv(&mut message)).await.unwrap().unwrap();
            told += &String::from_utf8_lossy(&message[..size]);
        }
    }
    let mut wire = dial(listen.parse().unwrap()).await;
    wire.until("* OK").await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.child.id().unwrap())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    proxy.signal("-TERM");
    while !told.contains("STOPPING=1") {
        let mut message = [0; 512];
        let size = timeout(PATIENCE, notify.recv(&mut message)).await.unwrap().unwrap();
        told += &String::from_utf8_lossy(&message[..size]);
    }
    assert_eq!(proxy.end().await.0, Some(0));
}
