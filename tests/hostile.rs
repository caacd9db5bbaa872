//! Bad input through the whole proxy: a proper protocol error or a close within the time limit, and the next
//! client is served.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::ALICE;

use crate::stage::{Plan, Stage};

const IMPATIENT: &str = "limits: {login-timeout: 2s}\n";

async fn impatient() -> Stage {
    Stage::planned(Plan { sections: IMPATIENT.to_owned(), ..Plan::default() }).await
}

/// Whatever happened before: a good client still gets in.
async fn the_next_client_is_served(stage: &Stage) {
    let mut imap = stage.wire("imap").await;
    imap.until("* OK").await;
    imap.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
    let mut pop3 = stage.wire("pop3").await;
    pop3.until("+OK").await;
    pop3.ask(&format!("USER {}", ALICE.0), "+OK").await;
    pop3.ask(&format!("PASS {}", ALICE.1), "+OK").await;
    let mut smtp = stage.wire("smtp").await;
    smtp.until("220 ").await;
    smtp.ask("EHLO x.example", "250 ").await;
    let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1));
    smtp.ask(&format!("AUTH PLAIN {plain}"), "235 ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_lines_and_huge_literals_are_cut_off() {
    let stage = Stage::usual().await;
    for listener in ["imap", "pop3", "smtp"] {
        let mut wire = stage.wire(listener).await;
        wire.line().await;
        // the proxy closes while we are still sending: that may fail, and is meant to
        let sent = async {
            for _ in 0..64 {
                use tokio::io::AsyncWriteExt as _;
                if wire.0.write_all(&[b'x'; 16 * 1024]).await.is_err() {
                    break;
                }
            }
        };
        sent.await;
        let told = wire.rest().await;
        assert!(told.len() <= 2, "{listener}: {told:?}");
    }
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    let told = wire.ask("a LOGIN {1073741824}", "a ").await;
    assert!(told.starts_with("a NO") || told.starts_with("a BAD"), "{told}");
    wire.say("b LOGIN {1073741824+}\r\n").await;
    assert!(wire.rest().await.iter().any(|line| line.starts_with("* BYE")));
    assert_eq!(stage.office.token_requests(), 0);
    the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_base64_and_control_bytes_never_reach_entra() {
    let stage = Stage::usual().await;
    let forged = BASE64_STANDARD.encode("\0alice@contoso.com\u{1}auth=Bearer x\0pw");
    let nul = BASE64_STANDARD.encode("\0alice@contoso.com\0pw\0junk");
    let foreign = BASE64_STANDARD.encode(format!("bob@contoso.com\0{}\0{}", ALICE.0, ALICE.1));
    for bad in ["!!!!", "AGEAYg==junk", &forged, &nul, &foreign] {
        let mut imap = stage.wire("imap").await;
        imap.until("* OK").await;
        let told = imap.ask(&format!("a AUTHENTICATE PLAIN {bad}"), "a ").await;
        assert!(told.starts_with("a NO") || told.starts_with("a BAD"), "{bad}: {told}");
        let mut pop3 = stage.wire("pop3").await;
        pop3.until("+OK").await;
        pop3.ask(&format!("AUTH PLAIN {bad}"), "-ERR").await;
        let mut smtp = stage.wire("smtp").await;
        smtp.until("220 ").await;
        smtp.ask("EHLO x", "250 ").await;
        smtp.ask(&format!("AUTH PLAIN {bad}"), "5").await;
    }
    let mut imap = stage.wire("imap").await;
    imap.until("* OK").await;
    imap.ask("a LOGIN {7}", "+").await;
    imap.say(b"a\r\nb\0cd pw\r\n").await;
    let told = imap.until("a ").await;
    assert!(told.starts_with("a NO") || told.starts_with("a BAD"), "{told}");
    assert_eq!(stage.office.token_requests(), 0);
    the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_protocols_are_shown_the_door() {
    let stage = Stage::usual().await;
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let http = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\r\nUSER a\r\nPASS b\r\n";
    for listener in ["imap", "pop3", "smtp"] {
        for knock in [&hello[..], &http[..], b"SSH-2.0-OpenSSH_9.2\r\n"] {
            let mut wire = stage.wire(listener).await;
            wire.line().await;
            wire.say(knock).await;
            let told = wire.rest().await;
            assert!(told.len() <= 1, "{listener}: {told:?}");
            assert!(!told.concat().contains("Host"), "nothing is reflected");
        }
    }
    assert_eq!(stage.office.token_requests(), 0);
    the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_half_a_command_end_with_the_login_timeout() {
    let stage = impatient().await;
    for (listener, half) in [
        ("imap", &b""[..]),
        ("imap", b"a LOGIN ali"),
        ("imap", b"a LOGIN {5}\r\n"),
        ("pop3", b"USER x\r\nPA"),
        ("smtp", b"EHLO x\r\nAUTH LOGIN\r\n"),
        ("imap-tls", b""),
        ("ews", b"POST /EWS/Exchange.asmx HT"),
    ] {
        let mut wire = stage.wire(listener).await;
        let begun = Instant::now();
        wire.say(half).await;
        wire.rest().await;
        let took = begun.elapsed();
        assert!(
            took >= Duration::from_secs(1) && took < Duration::from_secs(20),
            "{listener} {half:?}: {took:?}"
        );
    }
    // a byte now and then does not buy more time
    let mut wire = stage.wire("imap").await;
    let begun = Instant::now();
    for _ in 0..100 {
        use tokio::io::AsyncWriteExt as _;
        if wire.0.write_all(b"x").await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(stage.office.token_requests(), 0);
    the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_and_then_ended() {
    let stage = Stage::usual().await;
    for (listener, nonsense, answer) in
        [("imap", "a FROBNICATE", "a BAD"), ("pop3", "FROBNICATE", "-ERR"), ("smtp", "FROBNICATE", "5")]
    {
        let mut wire = stage.wire(listener).await;
        wire.line().await;
        assert!(wire.ask(nonsense, answer).await.starts_with(answer));
        for _ in 0..30 {
            use tokio::io::AsyncWriteExt as _;
            if wire.0.write_all(format!("{nonsense}\r\n").as_bytes()).await.is_err() {
                break;
            }
        }
        assert!(wire.rest().await.len() < 15, "{listener} listens to nonsense without end");
    }
    the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_vanish_at_any_step_leave_nothing_behind() {
    let stage = impatient().await;
    let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1));
    let steps: [(&str, Vec<String>); 3] = [
        (
            "imap",
            vec![
                format!("a AUTHENTICATE PLAIN {plain}\r\n"),
                "b SELECT INBOX\r\n".into(),
                "c APPEND INBOX {100}\r\nhalf".into(),
            ],
        ),
        ("pop3", vec![format!("USER {}\r\n", ALICE.0), format!("PASS {}\r\n", ALICE.1), "STAT\r\n".into()]),
        (
            "smtp",
            vec![
                "EHLO x\r\n".into(),
                format!("AUTH PLAIN {plain}\r\n"),
                format!("MAIL FROM:<{}>\r\n", ALICE.0),
                format!("RCPT TO:<{}>\r\n", ALICE.0),
                "DATA\r\n".into(),
                "Subject: half a message\r\n".into(),
            ],
        ),
    ];
    for (listener, said) in &steps {
        for reached in 0..=said.len() {
            let mut wire = stage.wire(listener).await;
            wire.line().await;
            for line in &said[..reached] {
                wire.say(line).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    }
    the_next_client_is_served(&stage).await;
    assert!(stage.office.messages(ALICE.0, "INBOX").is_empty(), "half a message was delivered");
}
