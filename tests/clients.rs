//! Real clients, as installed from packages, through the whole proxy: curl, JavaMail, Python's own libraries,
//! exchangelib.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use mailkey::simulator::{ALICE, BOB, Event, Settings, User};

use crate::stage::{Plan, Stage, Told, run};

const HELLO: &str =
    "From: alice@contoso.com\r\nTo: alice@contoso.com\r\nSubject: hello\r\n\r\n.dots\r\n..and lines\r\n";

fn user(who: (&str, &str)) -> String {
    format!("{}:{}", who.0, who.1)
}

/// Every sign-in upstream was by token and over TLS, and nobody ever showed a password there.
fn nothing_but_tokens_went_upstream(stage: &Stage) {
    let mut sign_ins = 0;
    for event in stage.office.journal() {
        match event {
            Event::SignIn(sign_in) => {
                assert!(sign_in.tls && sign_in.mechanism == "XOAUTH2", "{sign_in:?}");
                sign_ins += 1;
            }
            Event::Ews(request) => {
                assert!(!request.had_basic, "{request:?}");
                sign_ins += 1;
            }
            Event::Token(_) | Event::Submitted(_) | Event::Connected(_) => {}
        }
    }
    assert!(sign_ins > 0, "nobody signed in upstream");
}

async fn curl(arguments: &[&str], input: &[u8]) -> Told {
    let common = ["--silent", "--show-error", "--max-time", "50"];
    run("curl", common.iter().chain(arguments), input).await
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sends_by_smtp_and_reads_by_imap_pop3_and_ews() {
    let stage = Stage::usual().await;
    let alice = user(ALICE);
    for (listener, scheme) in [("smtp", "smtp"), ("smtp-starttls", "smtp"), ("smtp-tls", "smtps")] {
        let url = format!("{scheme}://localhost:{}", stage.port(listener));
        let mut arguments =
            vec!["-k", "-u", &alice, &url, "--mail-from", ALICE.0, "--mail-rcpt", ALICE.0, "-T", "-"];
        if listener == "smtp-starttls" {
            arguments.push("--ssl-reqd");
        }
        let told = curl(&arguments, HELLO.as_bytes()).await;
        assert_eq!(told.code, Some(0), "{listener}: {told:?}");
    }
    assert_eq!(stage.office.messages(ALICE.0, "INBOX").len(), 3);
    for (listener, scheme) in
        [("imap", "imap"), ("imap-starttls", "imap"), ("imap-tls", "imaps"), ("imap-up-starttls", "imap")]
    {
        let url = format!("{scheme}://localhost:{}/INBOX;MAILINDEX=3", stage.port(listener));
        let mut arguments = vec!["-k", "-u", &alice, &url];
        if listener == "imap-starttls" {
            arguments.push("--ssl-reqd");
        }
        let told = curl(&arguments, b"").await;
        assert_eq!(told.code, Some(0), "{listener}: {told:?}");
        assert_eq!(told.text(), HELLO, "{listener}");
    }
    for (listener, scheme) in
        [("pop3", "pop3"), ("pop3-starttls", "pop3"), ("pop3-tls", "pop3s"), ("pop3-up-starttls", "pop3")]
    {
        let url = format!("{scheme}://localhost:{}/1", stage.port(listener));
        let mut arguments = vec!["-k", "-u", &alice, &url];
        if listener == "pop3-starttls" {
            arguments.push("--ssl-reqd");
        }
        let told = curl(&arguments, b"").await;
        assert_eq!(told.code, Some(0), "{listener}: {told:?}");
        assert_eq!(told.text(), HELLO, "{listener}");
    }
    let get_folder = r#"<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><GetFolder
        xmlns="http://schemas.microsoft.com/exchange/services/2006/messages"
        xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types"><FolderShape><t:BaseShape>Default</t:BaseShape>
        </FolderShape><FolderIds><t:DistinguishedFolderId Id="inbox"/></FolderIds></GetFolder></s:Body></s:Envelope>"#;
    for (listener, scheme) in [("ews", "http"), ("ews-tls", "https")] {
        let url = format!("{scheme}://localhost:{}/EWS/Exchange.asmx", stage.port(listener));
        let told =
            curl(&["-k", "-u", &alice, &url, "-H", "Content-Type: text/xml", "-d", get_folder], b"").await;
        assert_eq!(told.code, Some(0), "{told:?}");
        assert!(told.text().contains("NoError"), "{}", told.text());
    }
    // one token for everything: the configured scope is the same for all protocols
    assert_eq!(stage.office.token_requests(), 1);
    nothing_but_tokens_went_upstream(&stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_told_of_a_wrong_password_in_each_protocol() {
    let stage = Stage::usual().await;
    let wrong = format!("{}:not it", ALICE.0);
    for (listener, scheme, expected) in [("imap", "imap", 67), ("pop3", "pop3", 67), ("smtp", "smtp", 67)] {
        let url = format!("{scheme}://localhost:{}/", stage.port(listener));
        let mut arguments = vec!["-u", &wrong, &url];
        if listener == "smtp" {
            arguments.extend(["--mail-from", ALICE.0, "--mail-rcpt", ALICE.0, "-T", "-"]);
        }
        let told = curl(&arguments, HELLO.as_bytes()).await;
        assert_eq!(told.code, Some(expected), "{listener}: {told:?}");
    }
    let url = format!("http://localhost:{}/EWS/Exchange.asmx", stage.port("ews"));
    let told = curl(&["-u", &wrong, "-d", "<x/>", "-o", "/dev/null", "-w", "%{http_code}", &url], b"").await;
    assert_eq!(told.text(), "401", "{told:?}");
    // the same wrong password costs Entra one question, not four
    assert_eq!(stage.office.token_requests(), 1);
}

/// Compiles the JavaMail client once for all tests.
fn java_classes() -> &'static PathBuf {
    static CLASSES: OnceLock<PathBuf> = OnceLock::new();
    CLASSES.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("javamail");
        std::fs::create_dir_all(&folder).unwrap();
        let compiled = std::process::Command::new("javac")
            .args(["-cp", JARS, "-d"])
            .arg(&folder)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/JavaMail.java"))
            .output()
            .expect("javac cannot be run: tests/run installs it");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        folder
    })
}

const JARS: &str = "/usr/share/java/javax.mail.jar:/usr/share/java/javax.activation.jar";

async fn java(protocol: &str, port: &str, who: (&str, &str), properties: &[&str]) -> Told {
    let classes = tokio::task::spawn_blocking(java_classes).await.unwrap();
    let class_path = format!("{JARS}:{}", classes.display());
    let mut arguments = vec!["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &class_path, "JavaMail"];
    arguments.extend([protocol, port, who.0, who.1]);
    arguments.extend(properties);
    run("java", arguments, b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn javamail_signs_in_in_all_its_ways() {
    let stage = Stage::usual().await;
    stage.office.deliver(ALICE.0, HELLO);
    let trust = "mail.imap.ssl.trust=*";
    for (listener, properties) in [
        // what JavaMail does when nothing is configured: AUTHENTICATE PLAIN without initial response
        ("imap", vec![]),
        ("imap", vec!["mail.imap.auth.plain.disable=true"]),
        // neither PLAIN nor LOGIN as mechanisms: the LOGIN command
        ("imap", vec!["mail.imap.auth.plain.disable=true", "mail.imap.auth.login.disable=true"]),
        ("imap-starttls", vec!["mail.imap.starttls.enable=true", "mail.imap.starttls.required=true", trust]),
        ("imap-tls", vec!["mail.imap.ssl.enable=true", trust]),
    ] {
        let told = java("imap", &stage.port(listener), ALICE, &properties).await;
        assert_eq!(
            told.text(),
            "ok 1 messages, last: hello, 20 characters\n",
            "{listener} {properties:?}: {told:?}"
        );
    }
    let trust = "mail.pop3.ssl.trust=*";
    for (listener, properties) in [
        ("pop3", vec![]),
        ("pop3", vec!["mail.pop3.disablecapa=true"]),
        ("pop3-starttls", vec!["mail.pop3.starttls.enable=true", "mail.pop3.starttls.required=true", trust]),
        ("pop3-tls", vec!["mail.pop3.ssl.enable=true", trust]),
    ] {
        let told = java("pop3", &stage.port(listener), ALICE, &properties).await;
        assert_eq!(
            told.text(),
            "ok 1 messages, last: hello, 20 characters\n",
            "{listener} {properties:?}: {told:?}"
        );
    }
    let trust = "mail.smtp.ssl.trust=*";
    for (listener, properties) in [
        ("smtp", vec!["mail.smtp.auth=true"]),
        ("smtp", vec!["mail.smtp.auth=true", "mail.smtp.auth.mechanisms=PLAIN"]),
        ("smtp-starttls", vec!["mail.smtp.auth=true", "mail.smtp.starttls.required=true", trust]),
        ("smtp-tls", vec!["mail.smtp.auth=true", "mail.smtp.ssl.enable=true", trust]),
    ] {
        let told = java("smtp", &stage.port(listener), ALICE, &properties).await;
        assert_eq!(told.text(), "ok sent\n", "{listener} {properties:?}: {told:?}");
    }
    assert_eq!(stage.office.token_requests(), 1);
    nothing_but_tokens_went_upstream(&stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn javamail_shows_its_administrator_our_one_line() {
    let mut settings = Settings::default();
    settings
        .users
        .push(User::new("mfa@contoso.com", "right").with(mailkey::simulator::Condition::MfaRequired));
    let stage = Stage::planned(Plan { settings, ..Plan::default() }).await;
    for (protocol, properties) in [("imap", vec![]), ("pop3", vec![]), ("smtp", vec!["mail.smtp.auth=true"])]
    {
        let told = java(protocol, &stage.port(protocol), ("mfa@contoso.com", "right"), &properties).await;
        assert_eq!(told.code, Some(3), "{told:?}");
        assert!(told.text().contains("multi-factor") && told.text().contains("AADSTS50076"), "{told:?}");
    }
}

async fn python(script: &str, arguments: &[&str]) -> Told {
    let python = std::env::var("MAILKEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR"));
    run(&python, std::iter::once(script.as_str()).chain(arguments.iter().copied()), b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_own_libraries_work() {
    let stage = Stage::usual().await;
    let ca = stage.file("server.pem");
    let ca = ca.to_str().unwrap();
    for (kind, listener, mode) in [
        ("smtp-login", "smtp", ""),
        ("smtp-plain", "smtp-starttls", "starttls"),
        ("smtp-plain", "smtp-tls", "tls"),
        ("imap-login", "imap", ""),
        ("imap-plain", "imap", ""),
        ("imap-login", "imap-starttls", "starttls"),
        ("imap-plain", "imap-tls", "tls"),
        ("pop3", "pop3", ""),
        ("pop3", "pop3-starttls", "starttls"),
        ("pop3", "pop3-tls", "tls"),
    ] {
        let told = python("stdlib_mail.py", &[kind, &stage.port(listener), BOB.0, BOB.1, mode, ca]).await;
        assert!(told.text().starts_with("ok"), "{kind} {listener}: {told:?}");
    }
    let told = python("stdlib_mail.py", &["imap-login", &stage.port("imap"), BOB.0, "wrong"]).await;
    assert_eq!(told.code, Some(3), "{told:?}");
    assert!(told.text().contains("AUTHENTICATIONFAILED"), "{told:?}");
    nothing_but_tokens_went_upstream(&stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn exchangelib_sends_and_reads_by_basic_authentication() {
    let stage = Stage::usual().await;
    let url = format!("https://localhost:{}/EWS/Exchange.asmx", stage.port("ews-tls"));
    let ca = stage.file("server.pem");
    let told = python("ews_exchangelib.py", &[&url, ALICE.0, ALICE.1, ca.to_str().unwrap()]).await;
    assert!(told.text().contains("exchangelib says hello"), "{told:?}");
    nothing_but_tokens_went_upstream(&stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_30_mb_goes_up_and_comes_down_octet_for_octet() {
    let stage = Stage::usual().await;
    let mut message = String::from("Subject: large\r\n\r\n");
    let mut number = 0_u64;
    while message.len() < 30_000_000 {
        // lines of many kinds, dots first in some
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        writeln!(message, "{}{number:x}\r", ".".repeat((number >> 60) as usize)).unwrap();
    }
    let file = stage.file("large.eml");
    std::fs::write(&file, &message).unwrap();
    let alice = user(ALICE);
    let url = format!("smtp://localhost:{}", stage.port("smtp"));
    let told = curl(
        &["-u", &alice, &url, "--mail-from", ALICE.0, "--mail-rcpt", ALICE.0, "-T", file.to_str().unwrap()],
        b"",
    )
    .await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let expected = digest(message.as_bytes());
    let submitted = stage.office.journal().into_iter().find_map(|event| match event {
        Event::Submitted(submission) => Some(submission.sha256),
        Event::Token(_) | Event::SignIn(_) | Event::Ews(_) | Event::Connected(_) => None,
    });
    assert_eq!(submitted.unwrap(), expected);
    for url in [
        format!("imap://localhost:{}/INBOX;MAILINDEX=1", stage.port("imap")),
        format!("pop3://localhost:{}/1", stage.port("pop3")),
    ] {
        let told = curl(&["-u", &alice, &url], b"").await;
        assert_eq!((told.code, digest(&told.out)), (Some(0), expected.clone()), "{url}: {}", told.err);
    }
}

fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_at_once_cost_one_token_request() {
    let stage = std::sync::Arc::new(Stage::usual().await);
    stage.office.deliver(ALICE.0, HELLO);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..50 {
        let stage = std::sync::Arc::clone(&stage);
        clients.spawn(async move {
            let mut wire = stage.wire("imap").await;
            wire.until("* OK").await;
            let login = format!("t{number} LOGIN {} \"{}\"", ALICE.0, ALICE.1);
            wire.ask(&login, &format!("t{number} OK")).await;
            let fetched = wire.ask("s SELECT INBOX", "s ").await;
            assert!(fetched.starts_with("s OK"), "{fetched}");
            wire.ask("x LOGOUT", "x OK").await;
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_eq!(stage.office.token_requests(), 1);
}
