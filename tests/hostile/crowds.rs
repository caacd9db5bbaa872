//! Too much of everything before a login: connections, literals, lines, time. Each has a bound, and those who are in
//! do not notice.

use std::sync::Arc;

use mailkey::simulator::ALICE;
use tokio::io::AsyncWriteExt as _;

use crate::proxies::corporate::{Mailkey, Plan, office, until};
use crate::stage::{Stage, Wire};

/// What a house that is full says, by listener.
const FULL: [(&str, &str); 4] =
    [("imap", "* BYE [LIMIT]"), ("pop3", "-ERR [IN-USE]"), ("smtp", "421 4.7.0"), ("ews", "HTTP/1.1 503")];

/// In KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_flood_of_connections_is_refused_in_plain_words_and_disturbs_nobody_who_is_in() {
    const PLACES: usize = 60;
    let office = office().await;
    let sections = format!("limits: {{sessions: {PLACES}, warm-connections: 0, login-timeout: 10m}}\n");
    let mailkey = Arc::new(
        Mailkey::start(&office, Plan { sections, host: Some("localhost"), ..Plan::default() }).await,
    );
    let mut alice = mailkey.wire("imap").await;
    alice.until("* OK").await;
    alice.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
    let (descriptors, memory) = (mailkey.descriptors(), resident(mailkey.pid()));
    let mut crowd: Vec<Wire> = Vec::new();
    let mut greeted = 1;
    for _ in 0..200 {
        for (listener, full) in FULL {
            let mut wire = mailkey.wire(listener).await;
            if listener == "ews" {
                wire.say("GET /EWS/Exchange.asmx HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            }
            let first = wire.line().await.unwrap_or_else(|| panic!("{listener} hangs up without a word"));
            if first.starts_with(full) {
                assert!(greeted >= PLACES, "{listener} is full with {greeted} of {PLACES}: {first}");
                wire.rest().await;
            } else {
                greeted += 1;
                assert!(greeted <= PLACES, "{listener} let number {greeted} in: {first}");
                crowd.push(wire);
            }
        }
        alice.ask("b NOOP", "b OK").await;
    }
    assert_eq!(greeted, PLACES);
    // 740 were turned away: what is still there is those who are in, at a few KiB each
    until("the rest has gone", || mailkey.descriptors() <= descriptors + PLACES).await;
    let grown = resident(mailkey.pid()).saturating_sub(memory);
    assert!(grown < 48 * 1024, "{grown} KiB for {PLACES} sessions");
    drop(crowd);
    until("the places are free again", || mailkey.descriptors() <= descriptors).await;
    for listener in ["imap", "pop3", "smtp", "ews"] {
        let told = mailkey.sign_in(listener).await;
        let is_in = ["a1 OK", "+OK", "235", "HTTP/1.1 200"].iter().any(|yes| told.starts_with(yes));
        assert!(is_in, "{listener}: {told}");
    }
    assert_eq!(office.token_requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_announcement_of_a_literal_costs_memory_or_runs_as_a_command() {
    let stage = Stage::usual().await;
    let many = |count: usize| format!("a LOGIN {}x\r\n", "{1+}\r\nx ".repeat(count));
    let cases: Vec<(String, String)> = vec![
        ("4 GiB".into(), "a LOGIN {4294967296}\r\n".into()),
        ("4 GiB at once".into(), "a LOGIN {4294967296+}\r\nz LOGOUT\r\nz NOOP\r\n".into()),
        ("more than a number holds".into(), "a LOGIN {99999999999999999999999999}\r\n".into()),
        (
            "more than a number holds, at once".into(),
            "a LOGIN {99999999999999999999999999+}\r\nz LOGOUT\r\n".into(),
        ),
        ("a sign".into(), "a LOGIN {+5}\r\n".into()),
        ("many small ones".into(), many(5_000)),
        (
            "a refused one with commands in it".into(),
            format!("a LOGIN {{70000+}}\r\n{}", "z LOGOUT\r\n".repeat(7_000)),
        ),
        ("one in a command that takes none".into(), "a NOOP {12+}\r\nz LOGOUT\r\n\r\n".into()),
        ("one in a command before the login".into(), "a SELECT {12+}\r\nz LOGOUT\r\n\r\n".into()),
        ("a list without end".into(), format!("a ID {}\r\n", "(".repeat(100_000))),
    ];
    for (name, said) in cases {
        let mut wire = stage.wire("imap").await;
        wire.until("* OK").await;
        // it may hang up while we are still talking
        drop(wire.0.write_all(said.as_bytes()).await);
        drop(wire.0.write_all(b"\r\nb LOGOUT\r\n").await);
        drop(wire.0.shutdown().await);
        let told = wire.rest().await;
        assert!(
            !told.iter().any(|line| line.starts_with("z ")),
            "{name}: the text of a literal was carried out: {told:?}"
        );
        assert!(told.len() < 10, "{name}: {told:?}");
    }
    assert_eq!(stage.office.token_requests(), 0);
    super::the_next_client_is_served(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_or_a_head_without_end_is_cut_off_in_every_state() {
    let stage = Stage::usual().await;
    for (listener, before) in [
        ("imap", "a AUTHENTICATE PLAIN\r\n"),
        ("imap", "a AUTHENTICATE LOGIN\r\nYWxpY2U=\r\n"),
        ("imap", "a LOGIN {5}\r\nalice "),
        ("imap", "a LOGIN \""),
        ("pop3", "AUTH PLAIN\r\n"),
        ("pop3", "USER alice\r\nPASS "),
        ("smtp", "EHLO x\r\nAUTH LOGIN\r\n"),
        ("smtp", "EHLO "),
        ("ews", "GET /EWS/Exchange.asmx HTTP/1.1\r\nX: "),
        ("ews", "GET /"),
    ] {
        let mut wire = stage.wire(listener).await;
        wire.say(before).await;
        let mut taken = 0_usize;
        // until it hangs up: 64 MiB is a thousand times more than anything may take
        while taken < 64 << 20 && wire.0.write_all(&[b'A'; 16 * 1024]).await.is_ok() {
            taken += 16 * 1024;
        }
        assert!(taken < 64 << 20, "{listener} after {before:?} never hangs up");
    }
    assert_eq!(stage.office.token_requests(), 0);
    super::the_next_client_is_served(&stage).await;
}
