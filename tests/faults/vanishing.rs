//! Mail clients that vanish: at every step of every protocol, in good order and by a reset. Nothing is submitted by
//! halves, upstream is let go, and every descriptor comes back.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, BOB, Event, Settings};

use crate::proxies::corporate::{Mailkey, Plan, office_with};
use crate::proxies::faults::no_descriptor_stays;

/// What is said, and how the answer that ends the step begins; "": none comes.
type Dialogue = Vec<(String, &'static str)>;

fn dialogues() -> Vec<(&'static str, Dialogue)> {
    let (user, password) = ALICE;
    let plain = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
    let envelope = |login: Dialogue, more: Dialogue| {
        let mail = vec![(format!("MAIL FROM:<{user}>\r\n"), "250"), (format!("RCPT TO:<{user}>\r\n"), "250")];
        login.into_iter().chain(mail).chain(more).collect::<Dialogue>()
    };
    let smtp = || vec![("EHLO x\r\n".to_owned(), "250 "), (format!("AUTH PLAIN {plain}\r\n"), "235")];
    vec![
        (
            "imap",
            vec![
                ("a AUTHENTICATE PLAIN\r\n".into(), "+"),
                (plain[..7].to_owned(), ""),
                (format!("{}\r\n", &plain[7..]), "a OK"),
                ("b SELECT INBOX\r\n".into(), "b OK"),
                ("c APPEND INBOX {100}\r\n".into(), "+"),
                ("Subject: half a message\r\n".into(), ""),
            ],
        ),
        (
            "imap",
            vec![
                (format!("a LOGIN {{{}}}\r\n", user.len()), "+"),
                (user[..4].to_owned(), ""),
                (format!("{} \"{password}\"\r\n", &user[4..]), "a OK"),
                ("b IDLE\r\n".into(), ""),
            ],
        ),
        (
            "pop3",
            vec![
                (format!("USER {user}\r\n"), "+OK"),
                (format!("PASS {}", &password[..3]), ""),
                (format!("{}\r\n", &password[3..]), "+OK"),
                ("STAT\r\n".into(), "+OK"),
                ("RE".into(), ""),
            ],
        ),
        (
            "smtp",
            envelope(
                smtp(),
                vec![
                    ("DATA\r\n".into(), "354"),
                    ("Subject: half a message\r\n\r\n".into(), ""),
                    ("and half a line\r\n.".into(), ""),
                ],
            ),
        ),
        (
            "smtp",
            envelope(
                smtp(),
                vec![("BDAT 100 LAST\r\n".into(), ""), ("Subject: half a chunk\r\n".into(), "")],
            ),
        ),
        (
            "smtp",
            envelope(smtp(), vec![("BDAT 14\r\nSubject: one\r\n".into(), "250"), ("BDAT 9".into(), "")]),
        ),
        (
            "ews",
            vec![
                ("POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: localhost\r\n".into(), ""),
                (
                    format!(
                        "Authorization: Basic {}\r\nContent-Type: text/xml\r\nContent-Length: 2000\r\n\r\n",
                        BASE64_STANDARD.encode(format!("{user}:{password}"))
                    ),
                    "",
                ),
                ("<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>".into(), ""),
            ],
        ),
    ]
}

/// Goes so far, and is gone.
async fn vanish(
    mailkey: Arc<Mailkey>,
    listener: &'static str,
    said: Vec<(String, &'static str)>,
    by_reset: bool,
) {
    let mut wire = mailkey.wire(listener).await;
    if listener != "ews" {
        wire.line().await;
    }
    for (line, answer) in &said {
        wire.say(line).await;
        if !answer.is_empty() {
            wire.until(answer).await;
        }
    }
    if by_reset {
        wire.0.get_ref().set_zero_linger().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_at_any_step_submits_nothing_and_leaves_nothing_open() {
    let office = office_with(Settings { smtp_sessions_per_mailbox: 50, ..Settings::default() }).await;
    let sections = "limits: {smtp-sessions-per-mailbox: 50, warm-connections: 0}\n".to_owned();
    let mailkey =
        Mailkey::start(&office, Plan { sections, host: Some("localhost"), ..Plan::default() }).await;
    let mailkey = Arc::new(mailkey);
    for listener in ["imap", "pop3", "smtp", "ews"] {
        mailkey.sign_in(listener).await;
    }
    let mut bob = mailkey.wire("imap").await;
    bob.until("* OK").await;
    bob.ask(&format!("a LOGIN {} \"{}\"", BOB.0, BOB.1), "a OK").await;
    let before = mailkey.descriptors();
    for (listener, dialogue) in dialogues() {
        for by_reset in [false, true] {
            let mut gone = tokio::task::JoinSet::new();
            for reached in 0..=dialogue.len() {
                let said = dialogue[..reached].to_vec();
                gone.spawn(vanish(Arc::clone(&mailkey), listener, said, by_reset));
            }
            while let Some(one) = gone.join_next().await {
                one.unwrap();
            }
            bob.ask("b NOOP", "b OK").await;
        }
        // far below the login timeout and every idle time there is
        no_descriptor_stays(&mailkey, before).await;
    }
    let submitted = office.journal().into_iter().filter(|event| matches!(event, Event::Submitted(_)));
    assert_eq!(submitted.count(), 0, "half a message was submitted");
    for folder in ["INBOX", "Sent Items", "Drafts"] {
        assert!(office.messages(ALICE.0, folder).is_empty(), "half a message is in {folder}");
    }
    assert_eq!(office.token_requests(), 2, "Alice's and Bob's");
}
