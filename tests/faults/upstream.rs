//! Upstream fails once a login is through, or fails the login for its token: what is under way ends without an answer
//! that nobody gave, and the next login works.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, BOB, MailFault, Service, Settings, Step};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::stage::{PATIENCE, Plan, Stage, Wire};

fn plain((user, password): (&str, &str)) -> String {
    BASE64_STANDARD.encode(format!("\0{user}\0{password}"))
}

/// Signs in; the session, and the answer.
async fn signed_in(stage: &Stage, listener: &str, who: (&str, &str)) -> (Wire, String) {
    let mut wire = stage.wire(listener).await;
    wire.line().await.unwrap();
    let told = match listener {
        "imap" => wire.ask(&format!("a AUTHENTICATE PLAIN {}", plain(who)), "a ").await,
        "pop3" => wire.ask(&format!("AUTH PLAIN {}", plain(who)), "").await,
        _ => {
            wire.ask("EHLO x", "250 ").await;
            wire.ask(&format!("AUTH PLAIN {}", plain(who)), "").await
        }
    };
    (wire, told)
}

fn is_in(told: &str) -> bool {
    ["a OK", "+OK", "235"].iter().any(|yes| told.starts_with(yes))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_token_that_upstream_refuses_is_replaced_once_and_never_in_a_loop() {
    for (listener, service) in [("imap", Service::Imap), ("pop3", Service::Pop3), ("smtp", Service::Smtp)] {
        let sections = "limits: {warm-connections: 0}\n".to_owned();
        let stage = Stage::planned(Plan { sections, ..Plan::default() }).await;
        // revoked: one request more, and the mail client does not notice
        for requests in 1..=2 {
            let (_, told) = signed_in(&stage, listener, ALICE).await;
            assert!(is_in(&told), "{listener}: {told}");
            assert_eq!(stage.office.token_requests(), requests, "{listener}");
            stage.office.expire_tokens();
        }
        // refused whatever it is: a word for the mail client each time, and no storm
        stage.office.mischief().mail(service, MailFault::RefuseToken);
        for _ in 0..5 {
            let (_, told) = signed_in(&stage, listener, ALICE).await;
            let is_typed = ["a NO [", "-ERR [", "535 ", "454 "].iter().any(|no| told.starts_with(no));
            assert!(is_typed, "{listener}: {told}");
        }
        let asked = stage.office.token_requests() - 2;
        assert!(asked <= 1, "{listener}: {asked} requests for five logins that upstream refuses");
        let other = if listener == "imap" { "pop3" } else { "imap" };
        let (_, told) = signed_in(&stage, other, BOB).await;
        assert!(is_in(&told), "Bob at {other}: {told}");
    }
}

/// Octets of a message that is a transfer worth breaking.
const LARGE: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_upstream_breaks_off_ends_without_a_made_up_answer() {
    let stage = Stage::usual().await;
    let text = format!("Subject: large\r\n\r\n{}\r\n", "x".repeat(LARGE));
    let (mut bob, told) = signed_in(&stage, "imap", BOB).await;
    assert!(is_in(&told), "{told}");
    for fault in [MailFault::CloseAt as fn(Step) -> MailFault, MailFault::ResetAt] {
        for (listener, service, step, open, go, body) in [
            ("smtp", Service::Smtp, Step::Transfer, ENVELOPE, "DATA\r\n", format!("{text}.\r\n")),
            ("smtp", Service::Smtp, Step::Received, ENVELOPE, "DATA\r\n", format!("{text}.\r\n")),
            (
                "smtp",
                Service::Smtp,
                Step::Transfer,
                ENVELOPE,
                "",
                format!("BDAT {} LAST\r\n{text}", text.len()),
            ),
            (
                "imap",
                Service::Imap,
                Step::Transfer,
                &[],
                "b APPEND INBOX {200022}\r\n",
                format!("{text}\r\n"),
            ),
        ] {
            stage.office.mischief().calm();
            // armed before the connection is made: a reset needs a socket that can
            stage.office.mischief().mail(service, fault(step));
            let case = format!("{listener} {:?} {go:?}", fault(step));
            let (mut wire, told) = signed_in(&stage, listener, ALICE).await;
            assert!(is_in(&told), "{case}: {told}");
            for line in open {
                wire.ask(line, "250").await;
            }
            if !go.is_empty() {
                wire.say(go).await;
                let told = wire.line().await.unwrap();
                assert!(told.starts_with("354") || told.starts_with('+'), "{case}: {told}");
            }
            // it may be gone before all of it is said
            drop(wire.0.write_all(body.as_bytes()).await);
            let told = wire.rest().await;
            assert!(
                !told.iter().any(|line| line.starts_with("250") || line.contains(" OK")),
                "{case}: {told:?}"
            );
            bob.ask("b NOOP", "b OK").await;
        }
    }
    stage.office.mischief().calm();
    assert!(stage.office.messages(ALICE.0, "INBOX").is_empty());
    let (mut wire, told) = signed_in(&stage, "smtp", ALICE).await;
    assert!(is_in(&told), "afterwards: {told}");
    wire.ask("NOOP", "250").await;
    assert_eq!(stage.office.token_requests(), 2);
}

const ENVELOPE: &[&str] = &["MAIL FROM:<alice@contoso.com>", "RCPT TO:<alice@contoso.com>"];

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_direction_hears_every_answer() {
    let stage = Stage::usual().await;
    let many = |line: &str| line.repeat(50);
    let message =
        "MAIL FROM:<alice@contoso.com>\r\nRCPT TO:<bob@contoso.com>\r\nBDAT 16 LAST\r\nSubject: whole\r\n";
    for (listener, said, answer, count) in [
        ("imap", format!("{}z LOGOUT\r\n", many("n NOOP\r\n")), "n OK", 50),
        ("imap", many("n NOOP\r\n"), "n OK", 50),
        ("pop3", format!("{}QUIT\r\n", many("STAT\r\n")), "+OK", 51),
        ("smtp", format!("{}{message}QUIT\r\n", many("NOOP\r\n")), "250", 53),
        ("smtp", format!("{}{message}", many("NOOP\r\n")), "250", 53),
    ] {
        let (mut wire, told) = signed_in(&stage, listener, ALICE).await;
        assert!(is_in(&told), "{listener}: {told}");
        wire.say(&said).await;
        wire.0.shutdown().await.unwrap();
        let told = wire.rest().await;
        assert_eq!(
            told.iter().filter(|line| line.starts_with(answer)).count(),
            count,
            "{listener}: {told:?}"
        );
    }
    assert_eq!(stage.office.messages(BOB.0, "INBOX").len(), 2, "each message once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_says_goodbye_is_heard_and_the_next_login_works() {
    let stage = Stage::planned(Plan { settings: Settings::default(), ..Plan::default() }).await;
    let (mut bob, told) = signed_in(&stage, "imap", BOB).await;
    assert!(is_in(&told), "{told}");
    stage.office.mischief().mail_times(1, Service::Imap, MailFault::ByeAccessTokenExpired(Duration::ZERO));
    let (mut wire, told) = signed_in(&stage, "imap", ALICE).await;
    assert!(is_in(&told), "{told}");
    // it has not closed its own direction, and never will
    let told = wire.rest().await;
    assert!(
        told.iter().any(|line| line.starts_with("* BYE") && line.contains("AccessTokenExpired")),
        "{told:?}"
    );
    stage.office.expire_tokens();
    let (mut wire, told) = signed_in(&stage, "imap", ALICE).await;
    assert!(is_in(&told), "{told}");
    wire.ask("b NOOP", "b OK").await;
    bob.ask("b NOOP", "b OK").await;
    assert_eq!(stage.office.token_requests(), 3, "Alice's two and Bob's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_no_stated_length_without_the_end_of_tls_is_not_made_to_look_whole() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stage = Stage::planned(Plan {
        listeners: format!(
            "  - {{name: cut, protocol: ews, listen: '127.0.0.1:0', upstream: 'https://localhost:{}/'}}\n",
            server.local_addr().unwrap().port()
        ),
        ..Plan::default()
    })
    .await;
    let acceptor = stage.acceptor();
    tokio::spawn(async move {
        for says_goodbye in [true, false] {
            let (socket, _) = server.accept().await.unwrap();
            let mut tls = acceptor.accept(socket).await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"<>") {
                tls.read_buf(&mut request).await.unwrap();
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n\r\n<whole/>";
            tls.write_all(answer).await.unwrap();
            tls.flush().await.unwrap();
            if says_goodbye {
                tls.shutdown().await.unwrap();
            }
        }
    });
    for is_whole in [true, false] {
        let mut wire = stage.wire("cut").await;
        wire.say(format!(
            "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {}\r\nContent-Length: 2\r\n\r\n<>",
            BASE64_STANDARD.encode(format!("{}:{}", ALICE.0, ALICE.1))
        ))
        .await;
        let mut answer = Vec::new();
        // a reset is as good an end as any, for what is not whole
        let mut chunk = [0; 4096];
        while !answer.ends_with(b"0\r\n\r\n") {
            let read = tokio::time::timeout(PATIENCE, wire.0.read(&mut chunk)).await.expect("no end of it");
            match read {
                Ok(0) | Err(_) => break,
                Ok(count) => answer.extend_from_slice(&chunk[..count]),
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(answer.ends_with("0\r\n\r\n"), is_whole, "{answer}");
        assert!(answer.contains("<whole/>") || !is_whole, "{answer}");
    }
}
