//! What stands in clear text beside STARTTLS never counts: neither what a mail client's side pushes in (commands,
//! half of one, a login) nor what upstream's side does (answers, capabilities, a session that is open already).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, MailFault, Service};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::stage::{Plan, Stage};

fn plain() -> String {
    BASE64_STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1))
}

/// Up to STARTTLS, what goes with it in one segment, what follows inside TLS, and what that must be answered with.
struct Injection {
    listener: &'static str,
    before: &'static [&'static str],
    starttls: &'static str,
    go: &'static str,
    injected: Vec<u8>,
    inside: &'static str,
    answer: &'static str,
}

fn injections() -> Vec<Injection> {
    let (user, password) = ALICE;
    let of = |listener, before, starttls, go, probe: (&'static str, &'static str)| {
        move |injected: String, inside: Option<&'static str>| Injection {
            listener,
            before,
            starttls,
            go,
            injected: injected.into_bytes(),
            inside: inside.unwrap_or(probe.0),
            answer: probe.1,
        }
    };
    let imap = of("imap-starttls", &[], "s STARTTLS\r\n", "s OK", ("probe XYZZY\r\n", "probe BAD"));
    let pop3 = of("pop3-starttls", &[], "STLS\r\n", "+OK", ("XYZZY\r\n", "-ERR"));
    let smtp = of("smtp-starttls", &["EHLO x"], "STARTTLS\r\n", "220", ("XYZZY\r\n", "500"));
    vec![
        imap("i CAPABILITY\r\n".into(), None),
        imap(format!("i LOGIN {user} \"{password}\"\r\n"), None),
        imap(format!("i AUTHENTICATE PLAIN {}\r\n", plain()), None),
        imap(format!("i LOGIN {user} {{{}+}}\r\n", password.len()), Some("probe XYZZY\r\n")),
        imap("i LOGOUT\r\n".into(), None),
        imap("probe CAPA".into(), Some("BILITY\r\nprobe XYZZY\r\n")),
        pop3("CAPA\r\n".into(), None),
        pop3(format!("USER {user}\r\nPASS {password}\r\n"), None),
        pop3(format!("AUTH PLAIN {}\r\n", plain()), None),
        // the name was said in clear text: it is forgotten
        pop3(format!("USER {user}\r\n"), Some("PASS Wonder land:1\r\n")),
        pop3("CAP".into(), Some("A\r\n")),
        pop3("QUIT\r\n".into(), None),
        smtp("EHLO injected\r\n".into(), None),
        smtp(format!("AUTH PLAIN {}\r\n", plain()), None),
        smtp("AUTH PLAIN\r\n".into(), None),
        smtp("EHLO half-".into(), Some("evil\r\n")),
        smtp("MAIL FROM:<evil@example.com>\r\nRCPT TO:<alice@contoso.com>\r\nDATA\r\n".into(), None),
        smtp("NOOP\r\nNOOP\r\nQUIT\r\n".into(), None),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_with_starttls_in_one_segment_is_neither_answered_nor_remembered() {
    let stage = Stage::usual().await;
    for injection in injections() {
        let case = format!("{}: {:?}", injection.listener, String::from_utf8_lossy(&injection.injected));
        let mut wire = stage.wire(injection.listener).await;
        wire.line().await.unwrap();
        for line in injection.before {
            wire.ask(line, "250 ").await;
        }
        wire.say([injection.starttls.as_bytes(), &injection.injected].concat()).await;
        let go = wire.line().await.unwrap();
        assert!(go.starts_with(injection.go), "{case}: {go}");
        // an answer that leaks before the handshake is no TLS record, and would break it
        let mut wire =
            wire.encrypt(stage.folder.path()).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        wire.say(injection.inside).await;
        let told = wire.line().await.unwrap_or_else(|| panic!("{case}: closed"));
        // IMAP: what is left of half a command has a tag of its own, and no command
        let told = if told.starts_with("BILITY BAD") { wire.line().await.unwrap() } else { told };
        assert!(told.starts_with(injection.answer), "{case}: the first answer inside TLS is {told}");
    }
    assert_eq!(stage.office.token_requests(), 0, "an injected login was carried out");
    super::the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starttls_is_offered_once_and_the_login_inside_it_works() {
    let stage = Stage::usual().await;
    for (listener, before, starttls, list, end, again, refused) in [
        ("imap-starttls", None, "s STARTTLS", "c CAPABILITY", "c OK", "t STARTTLS", "t BAD"),
        ("pop3-starttls", None, "STLS", "CAPA", ".", "STLS", "-ERR"),
        ("smtp-starttls", Some("EHLO x"), "STARTTLS", "EHLO y", "250 ", "STARTTLS", "503"),
    ] {
        let mut wire = stage.wire(listener).await;
        wire.line().await.unwrap();
        if let Some(line) = before {
            wire.ask(line, "250 ").await;
        }
        wire.say(format!("{starttls}\r\n")).await;
        wire.line().await.unwrap();
        let mut wire = wire.encrypt(stage.folder.path()).await.unwrap();
        wire.say(format!("{list}\r\n")).await;
        let mut offers = Vec::new();
        loop {
            let line = wire.line().await.unwrap();
            let is_last = line.starts_with(end);
            offers.push(line);
            if is_last {
                break;
            }
        }
        let offers = offers.concat();
        assert!(!offers.contains("STARTTLS") && !offers.contains("STLS"), "{listener}: {offers}");
        wire.say(format!("{again}\r\n")).await;
        let told = wire.line().await.unwrap();
        assert!(told.starts_with(refused), "{listener}: {told}");
        let (login, ok) = match listener {
            "imap-starttls" => (format!("l AUTHENTICATE PLAIN {}", plain()), "l OK"),
            "pop3-starttls" => (format!("AUTH PLAIN {}", plain()), "+OK"),
            _ => (format!("AUTH PLAIN {}", plain()), "235"),
        };
        wire.ask(&login, ok).await;
    }
}

/// A server in clear text that answers by a table, and keeps what it was told.
struct Impostor {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Impostor {
    /// Says `greeting`, then for each line the first answer whose key is in it; `{tag}` is the line's first word.
    async fn start(greeting: &'static str, answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let impostor = Self { address: listener.local_addr().unwrap(), heard: Arc::default() };
        let heard = Arc::clone(&impostor.heard);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let heard = Arc::clone(&heard);
                tokio::spawn(async move {
                    let mut socket = BufReader::new(socket);
                    drop(socket.write_all(greeting.as_bytes()).await);
                    let mut line = Vec::new();
                    while socket.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                        let text = String::from_utf8_lossy(&line).into_owned();
                        line.clear();
                        let tag = text.split_whitespace().next().unwrap_or_default();
                        let answer = answers.iter().find(|(key, _)| text.contains(key));
                        let answer = answer.map_or(String::new(), |(_, answer)| answer.replace("{tag}", tag));
                        heard.lock().unwrap().push(text);
                        drop(socket.write_all(answer.as_bytes()).await);
                    }
                });
            }
        });
        impostor
    }
}

/// What a line holds, and its answer.
type Answers = &'static [(&'static str, &'static str)];

const IMAP_LIST: (&str, &str) =
    ("CAPABILITY", "* CAPABILITY IMAP4rev1 STARTTLS SASL-IR AUTH=XOAUTH2\r\n{tag} OK done\r\n");
const IMAP_NO_TLS: (&str, &str) =
    ("CAPABILITY", "* CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2 AUTH=PLAIN\r\n{tag} OK done\r\n");
const IMAP_YES: (&str, &str) = ("AUTHENTICATE", "{tag} OK welcome\r\n");
const POP3_LIST: (&str, &str) = ("CAPA", "+OK\r\nSTLS\r\nSASL XOAUTH2\r\n.\r\n");
const POP3_YES: (&str, &str) = ("AUTH", "+OK\r\n");
const SMTP_LIST: (&str, &str) = ("EHLO", "250-evil.example\r\n250-STARTTLS\r\n250 AUTH XOAUTH2\r\n");
const SMTP_NO_TLS: (&str, &str) = ("EHLO", "250-evil.example\r\n250 AUTH XOAUTH2 PLAIN\r\n");
const SMTP_YES: (&str, &str) = ("AUTH", "235 2.7.0 welcome\r\n");

/// Name, greeting, answers: each would have the token in clear text, or have us believe what stood there.
const IMPOSTORS: &[(&str, &str, Answers)] = &[
    ("imap-preauth", "* PREAUTH welcome\r\n", &[("STARTTLS", "{tag} OK\r\n"), IMAP_NO_TLS, IMAP_YES]),
    ("imap-stripped", "* OK hi\r\n", &[("STARTTLS", "{tag} BAD what?\r\n"), IMAP_NO_TLS, IMAP_YES]),
    ("imap-refused", "* OK hi\r\n", &[("STARTTLS", "{tag} NO not today\r\n"), IMAP_LIST, IMAP_YES]),
    (
        "imap-plain-text-instead-of-tls",
        "* OK hi\r\n",
        &[
            ("STARTTLS", "{tag} OK go\r\n* OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] hi again\r\n"),
            IMAP_LIST,
            IMAP_YES,
        ],
    ),
    (
        "imap-greeting-with-more",
        "* OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2 SASL-IR] hi\r\n* PREAUTH come in\r\n",
        &[("STARTTLS", "{tag} NO no\r\n"), IMAP_YES],
    ),
    (
        "pop3-stripped",
        "+OK hi\r\n",
        &[("STLS", "-ERR what?\r\n"), ("CAPA", "+OK\r\nSASL XOAUTH2 PLAIN\r\n.\r\n"), POP3_YES],
    ),
    ("pop3-refused", "+OK hi\r\n", &[("STLS", "-ERR [SYS/TEMP] no\r\n"), POP3_LIST, POP3_YES]),
    (
        "pop3-plain-text-instead-of-tls",
        "+OK hi\r\n",
        &[("STLS", "+OK go\r\n+OK welcome\r\n+OK\r\n"), POP3_LIST, POP3_YES],
    ),
    ("smtp-stripped", "220 hi ESMTP\r\n", &[("STARTTLS", "502 what?\r\n"), SMTP_NO_TLS, SMTP_YES]),
    ("smtp-refused", "220 hi ESMTP\r\n", &[("STARTTLS", "454 4.7.0 no TLS now\r\n"), SMTP_LIST, SMTP_YES]),
    (
        "smtp-plain-text-instead-of-tls",
        "220 hi ESMTP\r\n",
        &[
            ("STARTTLS", "220 go\r\n250-evil.example\r\n250 AUTH XOAUTH2\r\n334 \r\n235 ok\r\n"),
            SMTP_LIST,
            SMTP_YES,
        ],
    ),
    (
        "smtp-greeting-with-more",
        "220 hi\r\n250-evil\r\n250 AUTH XOAUTH2\r\n235 in\r\n",
        &[("STARTTLS", "502 no\r\n"), SMTP_NO_TLS, SMTP_YES],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_tls_gets_no_token_whatever_it_says() {
    let mut impostors = Vec::new();
    let mut listeners = String::new();
    for &(name, greeting, answers) in IMPOSTORS {
        let impostor = Impostor::start(greeting, answers).await;
        let protocol = name.split('-').next().unwrap();
        for tls in ["starttls", "implicit"] {
            let line = format!(
                "  - {{name: {name}-{tls}, protocol: {protocol}, listen: '127.0.0.1:0', \
                 upstream: 'localhost:{}', upstream-tls: {tls}}}\n",
                impostor.address.port()
            );
            listeners.push_str(&line);
        }
        impostors.push((name, impostor));
    }
    let sections = "limits: {connect-timeout: 2s}\n".to_owned();
    let stage = Stage::planned(Plan { listeners, sections, ..Plan::default() }).await;
    for (name, impostor) in &impostors {
        for tls in ["starttls", "implicit"] {
            let mut wire = stage.wire(&format!("{name}-{tls}")).await;
            wire.line().await.unwrap();
            let told = match name.split('-').next().unwrap() {
                "imap" => wire.ask(&format!("a AUTHENTICATE PLAIN {}", plain()), "a ").await,
                "pop3" => wire.ask(&format!("AUTH PLAIN {}", plain()), "").await,
                _ => {
                    wire.ask("EHLO x", "250 ").await;
                    wire.ask(&format!("AUTH PLAIN {}", plain()), "").await
                }
            };
            let is_for_now = ["a NO [UNAVAILABLE]", "-ERR [SYS/TEMP]", "454 4.7.0"];
            let is_for_good = ["a NO [CONTACTADMIN]", "-ERR [SYS/PERM]", "535 5.7.8"];
            let typed = is_for_now.iter().chain(&is_for_good).any(|start| told.starts_with(start));
            assert!(typed, "{name}-{tls}: {told}");
            assert!(!told.contains("welcome") && !told.contains("evil"), "{name}-{tls}: {told}");
        }
        let heard = impostor.heard.lock().unwrap().concat();
        assert!(
            !heard.contains("AUTH") && !heard.contains("eyJ") && !heard.contains(&ALICE.1[..6]),
            "{name}: {heard}"
        );
        assert!(!heard.is_empty(), "{name} was never talked to");
    }
    let metrics = stage.page("/metrics").await;
    for (name, _) in &impostors {
        let of =
            |line: &&str| line.starts_with("mailkey_refusals_total") && line.contains(&format!("\"{name}-"));
        let codes: Vec<&str> = metrics.lines().filter(of).collect();
        assert_eq!(codes.len(), 2, "{name}: one refusal for each way: {codes:?}");
    }
    assert_eq!(stage.office.token_requests(), 1, "the token was had once, and shown to nobody");
    super::the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_pushed_in_before_upstreams_handshake_are_forgotten() {
    let stage = Stage::usual().await;
    stage.office.mischief().mail(Service::Imap, MailFault::InjectBeforeTls);
    stage.office.mischief().mail(Service::Pop3, MailFault::InjectBeforeTls);
    stage.office.mischief().mail(Service::Smtp, MailFault::InjectBeforeTls);
    for (listener, login, ok, probe, answer) in [
        ("imap-up-starttls", format!("a AUTHENTICATE PLAIN {}", plain()), "a ", "b NOOP", "b OK"),
        ("pop3-up-starttls", format!("AUTH PLAIN {}", plain()), "", "STAT", "+OK 0"),
        ("smtp", format!("AUTH PLAIN {}", plain()), "", "NOOP", "250 2.0.0 OK"),
    ] {
        let mut wire = stage.wire(listener).await;
        wire.line().await.unwrap();
        if listener == "smtp" {
            let mut hello = vec![wire.ask("EHLO x", "250").await];
            while !hello.last().unwrap().starts_with("250 ") {
                hello.push(wire.line().await.unwrap());
            }
            assert!(!hello.concat().contains("injected"), "{hello:?}");
        }
        let told = wire.ask(&login, ok).await;
        assert!(!told.contains("injected") && !told.contains("INJECTED"), "{listener}: {told}");
        let is_refused =
            ["a NO [UNAVAILABLE]", "-ERR [SYS/TEMP]", "454 4.7.0"].iter().any(|no| told.starts_with(no));
        if !is_refused {
            let told = wire.ask(probe, "").await;
            assert!(
                told.starts_with(answer),
                "{listener}: an answer of before the handshake is left over: {told}"
            );
        }
    }
    let basic = stage.office.journal().into_iter().filter(|event| {
        matches!(event, mailkey::simulator::Event::SignIn(one) if one.mechanism != "XOAUTH2" || !one.tls)
    });
    assert_eq!(basic.count(), 0, "somebody signed in in clear text, or by password");
}
