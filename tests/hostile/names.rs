//! Control bytes and markup in user names and passwords, in every mechanism: never into the XOAUTH2 string, a form, a
//! log line or an answer.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, DIRECTORY_ID, Event, Settings, User};

use tokio::io::BufReader;
use tokio::net::TcpStream;

use crate::proxies::corporate::{Running, spawn, until};
use crate::stage::{Plan, Stage, Wire};

fn base64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// Every mechanism: its listener, the dialogue (a line that ends in `…` waits for no answer), and whether it can carry
/// this at all.
fn mechanisms(user: &str, password: &str) -> Vec<(&'static str, &'static str, Vec<String>)> {
    let plain = base64(&format!("\0{user}\0{password}"));
    let (user64, password64) = (base64(user), base64(password));
    let fits_a_line = |text: &str| !text.contains(['\r', '\n', '\0']);
    let (u, p) = (user.len(), password.len());
    let mut all = vec![
        (
            "imap",
            "literals",
            vec![format!("a LOGIN {{{u}}}"), format!("{user} {{{p}}}"), password.to_owned()],
        ),
        (
            "imap",
            "non-synchronizing literals",
            vec![format!("a LOGIN {{{u}+}}\r\n{user} {{{p}+}}\r\n{password}")],
        ),
        ("imap", "PLAIN", vec![format!("a AUTHENTICATE PLAIN {plain}")]),
        ("imap", "PLAIN in two lines", vec!["a AUTHENTICATE PLAIN".to_owned(), plain.clone()]),
        ("imap", "LOGIN", vec!["a AUTHENTICATE LOGIN".to_owned(), user64.clone(), password64.clone()]),
        ("pop3", "PLAIN", vec![format!("AUTH PLAIN {plain}")]),
        ("pop3", "LOGIN", vec!["AUTH LOGIN".to_owned(), user64.clone(), password64.clone()]),
        ("smtp", "PLAIN", vec!["EHLO x".to_owned(), format!("AUTH PLAIN {plain}")]),
        ("smtp", "LOGIN", vec!["EHLO x".to_owned(), "AUTH LOGIN".to_owned(), user64.clone(), password64]),
        ("smtp", "LOGIN inline", vec!["EHLO x".to_owned(), format!("AUTH LOGIN {user64}"), base64(password)]),
        (
            "ews",
            "Basic",
            vec![format!(
                "GET /EWS/Exchange.asmx HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {}\r\nConnection: close\r\n",
                base64(&format!("{user}:{password}"))
            )],
        ),
    ];
    if fits_a_line(user) && fits_a_line(password) {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        all.push(("imap", "quoted", vec![format!("a LOGIN \"{}\" \"{}\"", quoted(user), quoted(password))]));
        all.push(("pop3", "USER and PASS", vec![format!("USER {user}"), format!("PASS {password}")]));
    }
    all
}

/// Goes through a dialogue; the answer to its last line, or to the one that ended it.
async fn go(mut wire: Wire, listener: &str, lines: &[String]) -> String {
    if listener != "ews" {
        wire.line().await.expect("a greeting");
    }
    let mut answer = String::new();
    for line in lines {
        wire.say(format!("{line}\r\n")).await;
        answer = wire.line().await.unwrap_or_default();
        while answer.starts_with("250-") {
            answer = wire.line().await.unwrap_or_default();
        }
        let goes_on = ["+", "334", "250"].iter().any(|start| answer.starts_with(start));
        if !goes_on || answer.starts_with("+OK logged") {
            break;
        }
    }
    answer
}

fn is_refused(listener: &str, answer: &str) -> bool {
    match listener {
        "imap" => answer.starts_with("a NO") || answer.starts_with("a BAD") || answer.starts_with("* BYE"),
        "pop3" => answer.starts_with("-ERR"),
        "smtp" => answer.starts_with('5'),
        _ => answer.starts_with("HTTP/1.1 401") || answer.starts_with("HTTP/1.1 400"),
    }
}

/// In the name they would end the XOAUTH2 field, the C string, the line, or speak to the terminal.
const IN_NAMES: [&str; 8] = [
    "alice@contoso.com\u{1}auth=Bearer x\u{1}\u{1}",
    "alice@contoso.com\u{1}",
    "\u{1}user=bob@contoso.com\u{1}",
    "alice@contoso.com\0",
    "alice\r\nb LOGOUT\r\n@contoso.com",
    "alice\n2026-01-01T00:00:00Z INFO forged: line@contoso.com",
    "\u{1b}[2J\u{1b}]0;owned\u{7}alice@contoso.com",
    "alice\u{7f}@contoso.com",
];

/// The proxy as a process of its own that logs all there is in this format; the ports of its listeners.
async fn proxy(stage: &Stage, format: &str, log: &Path) -> (Running, HashMap<String, u16>) {
    let text = std::fs::read_to_string(stage.file("proxy.yaml")).unwrap();
    std::fs::write(stage.file("own.yaml"), format!("{text}log: {{format: {format}, level: trace}}\n"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailkey"));
    command.args(["run", "--config"]).arg(stage.file("own.yaml"));
    let proxy = spawn(command.stderr(std::fs::File::create(log).unwrap()));
    let read = || std::fs::read_to_string(log).unwrap();
    until("the proxy listens", || read().contains("status page at")).await;
    let mut ports = HashMap::new();
    for line in read().lines().filter(|line| line.contains("listening")) {
        let (_, name) = line.split_once("listener").unwrap();
        let name = name.trim_start_matches(['"', ':', '=']).split('"').next().unwrap();
        let (_, port) = line.split_once("127.0.0.1:").unwrap();
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        ports.insert(name.to_owned(), port.parse().unwrap());
    }
    (proxy, ports)
}

#[tokio::test(flavor = "multi_thread")]
async fn control_bytes_in_a_name_go_nowhere_in_any_mechanism() {
    for format in ["text", "json"] {
        let stage = Stage::usual().await;
        let log = stage.file("log");
        let (proxy, ports) = proxy(&stage, format, &log).await;
        for name in IN_NAMES {
            for (listener, mechanism, lines) in mechanisms(name, "Sesame-4711") {
                let stream = TcpStream::connect(("127.0.0.1", ports[listener])).await.unwrap();
                let answer = go(Wire(BufReader::new(stream)), listener, &lines).await;
                let case = format!("{listener}, {mechanism}, {name:?}: {answer:?}");
                assert!(is_refused(listener, &answer), "{case}");
                let reflected = ["forged", "owned", "Bearer", "LOGOUT", "Sesame"]
                    .iter()
                    .any(|part| answer.contains(part));
                assert!(!reflected && !answer.contains(char::is_control), "{case}");
            }
        }
        drop(proxy);
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.contains("session"), "nothing was logged: {log}");
        assert!(
            !log.contains(|c: char| c.is_control() && c != '\n'),
            "a control byte is in the {format} log: {log:?}"
        );
        assert!(
            !log.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z")),
            "a name forged a line: {log}"
        );
        for secret in ["Sesame", &base64("Sesame-4711"), &base64("\0alice@contoso.com\u{1}\0Sesame-4711")] {
            assert!(!log.contains(secret), "the {format} log holds `{secret}`: {log}");
        }
        assert_eq!(stage.office.token_requests(), 0, "such a name was asked about");
    }
}

/// What would be markup in a form, a header, a quoted string or an XOAUTH2 response is a password like any other.
const PASSWORDS: [&str; 7] = [
    "pw&grant_type=client_credentials&client_id=evil",
    "a=b&username=bob@contoso.com",
    "%26scope%3Devil+100%",
    "quote\" back\\slash {5}",
    "  blanks at the ends  ",
    "semi;colon:and:more",
    "ünïcödé ☃",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_data_whatever_it_looks_like() {
    for password in PASSWORDS {
        let users = vec![User::new(ALICE.0, password), User::new("bob@contoso.com", "other")];
        let stage =
            Stage::planned(Plan { settings: Settings { users, ..Settings::default() }, ..Plan::default() })
                .await;
        for (listener, mechanism, lines) in mechanisms(ALICE.0, password) {
            let answer = go(stage.wire(listener).await, listener, &lines).await;
            let is_in = ["a OK", "+OK", "235", "HTTP/1.1 200"].iter().any(|yes| answer.starts_with(yes));
            assert!(is_in, "{listener}, {mechanism}, {password:?}: {answer}");
        }
        asked_as_it_should_be(&stage, password);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn control_bytes_in_a_password_reach_nothing_but_the_form() {
    let stage = Stage::usual().await;
    for (number, evil) in
        ["\u{1}auth=Bearer x\u{1}\u{1}", "\r\nb LOGOUT\r\n", "\0junk", "\u{1b}[2J"].into_iter().enumerate()
    {
        // the right password, and something behind it
        let password = format!("{}{evil}{number}", ALICE.1);
        for (listener, mechanism, lines) in mechanisms(ALICE.0, &password) {
            let answer = go(stage.wire(listener).await, listener, &lines).await;
            let case = format!("{listener}, {mechanism}, {password:?}: {answer:?}");
            let held_back = ["a NO [UNAVAILABLE]", "-ERR [SYS/TEMP]", "454", "HTTP/1.1 503"];
            let is_out =
                is_refused(listener, &answer) || held_back.iter().any(|start| answer.starts_with(start));
            assert!(is_out, "{case}");
            assert!(!answer.contains(char::is_control) && !answer.contains("Bearer x"), "{case}");
        }
        asked_as_it_should_be(&stage, &password);
    }
    let opened = stage.office.journal().into_iter().filter(|event| matches!(event, Event::SignIn(_)));
    assert_eq!(opened.count(), 0);
    let recordings = stage.page("/recordings").await;
    assert!(!recordings.contains("Wonder land"), "{recordings}");
}

/// Whoever was asked, was asked by the password grant, for Alice, with our client.
fn asked_as_it_should_be(stage: &Stage, password: &str) {
    for event in stage.office.journal() {
        if let Event::Token(request) = event {
            assert_eq!(
                (request.grant.as_str(), request.user.as_deref(), request.client_id.as_str()),
                ("password", Some(ALICE.0), mailkey::simulator::PUBLIC_CLIENT_ID),
                "{password:?}"
            );
            assert!(["organizations", DIRECTORY_ID].contains(&request.tenant.as_str()), "{request:?}");
        }
    }
}
