//! Bad input through the whole proxy: a proper protocol error or a close within the time limit, and the next
//! client is served.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::ALICE;
use tokio::io::AsyncWriteExt as _;

use crate::stage::{Plan, Stage};
use crate::traps::exists;

mod crowds;
mod http;
mod names;
mod smuggling;
mod starttls;

const IMPATIENT: &str = "limits: {login-timeout: 2s}\n";

async fn impatient() -> Stage {
    Stage::planned(Plan { sections: IMPATIENT.to_owned(), ..Plan::default() }).await
}

/// What a stranger may try, and the tests that show that it comes to nothing.
const THREATS: &[(&str, &[&str])] = &[
    (
        "STARTTLS injection, the mail client's side",
        &[
            "tests/hostile/starttls.rs::what_comes_with_starttls_in_one_segment_is_neither_answered_nor_remembered",
            "tests/hostile/starttls.rs::starttls_is_offered_once_and_the_login_inside_it_works",
            "tests/transcripts/imap/front/trap-14-starttls-forgets-what-came-before.txt",
            "tests/transcripts/pop3/front/trap-14-stls-injection.txt",
            "tests/transcripts/smtp/front/trap-14-starttls-injection-half-a-line.txt",
        ],
    ),
    (
        "STARTTLS injection and stripping, upstream's side",
        &[
            "tests/hostile/starttls.rs::an_upstream_without_tls_gets_no_token_whatever_it_says",
            "tests/hostile/starttls.rs::answers_pushed_in_before_upstreams_handshake_are_forgotten",
            "tests/slicing.rs::no_token_is_written_before_the_connection_is_encrypted",
            "tests/transcripts/imap/back/preauth.txt",
            "tests/transcripts/imap/back/trap-14-bytes-behind-the-answer-to-starttls.txt",
            "tests/transcripts/pop3/back/trap-14-stls-injection.txt",
            "tests/transcripts/smtp/back/trap-14-starttls-injection-half-a-line.txt",
        ],
    ),
    (
        "SMTP smuggling",
        &[
            "tests/hostile/smuggling.rs::odd_ends_of_a_message_pass_unchanged_to_a_strict_server_and_are_read_as_text",
            "tests/hostile/smuggling.rs::a_lax_server_gets_the_same_bytes_and_its_answers_come_back_as_they_are",
            "src/serve/sender.rs::a_line_inside_a_message_is_left_alone_and_the_next_sender_is_not",
        ],
    ),
    (
        "other protocols on a mail port, mail on an HTTP port",
        &[
            "tests/hostile.rs::other_protocols_are_shown_the_door",
            "tests/hostile/http.rs::mail_and_other_tongues_on_the_http_listeners_are_shown_the_door",
            "tests/transcripts/imap/front/a-browser-knocks.txt",
        ],
    ),
    (
        "control bytes and markup in names and passwords",
        &[
            "tests/hostile/names.rs::control_bytes_in_a_name_go_nowhere_in_any_mechanism",
            "tests/hostile/names.rs::control_bytes_in_a_password_reach_nothing_but_the_form",
            "tests/hostile/names.rs::a_password_is_data_whatever_it_looks_like",
            "tests/hostile.rs::broken_base64_and_control_bytes_never_reach_entra",
        ],
    ),
    (
        "literal bombs",
        &[
            "tests/hostile/crowds.rs::no_announcement_of_a_literal_costs_memory_or_runs_as_a_command",
            "tests/hostile.rs::endless_lines_and_huge_literals_are_cut_off",
            "tests/transcripts/imap/front/a-literal-over-the-bound-that-does-not-wait.txt",
        ],
    ),
    (
        "endless lines",
        &[
            "tests/hostile/crowds.rs::a_line_or_a_head_without_end_is_cut_off_in_every_state",
            "src/ews/tests/wire.rs::a_head_is_bounded_in_size_and_in_time",
            "src/admin/tests.rs::a_long_head_is_refused_and_others_go_on",
        ],
    ),
    ("slow senders", &["tests/hostile.rs::silence_and_half_a_command_end_with_the_login_timeout"]),
    (
        "floods of connections",
        &[
            "tests/hostile/crowds.rs::a_flood_of_connections_is_refused_in_plain_words_and_disturbs_nobody_who_is_in",
        ],
    ),
    (
        "request smuggling on both HTTP listeners",
        &[
            "tests/hostile/http.rs::a_request_that_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read",
            "src/ews/tests/wire.rs::framing_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed",
            "src/ews/tests/wire.rs::exactly_one_host_is_named",
        ],
    ),
    (
        "path tricks",
        &[
            "src/ews/target.rs::nothing_else_leads_anywhere",
            "src/ews/tests/wire.rs::only_ews_is_there_and_nothing_in_a_request_chooses_the_target",
            "tests/hostile/http.rs::no_path_and_no_method_leads_astray",
        ],
    ),
    (
        "redirects that carry a password or a token away",
        &[
            "tests/hostile/http.rs::no_redirect_carries_a_password_or_a_token_away",
            "src/ews/tests/relay.rs::redirects_lead_to_our_host_or_nowhere",
            "src/ews/tests/discovery.rs::a_host_that_is_not_ours_is_never_repeated",
        ],
    ),
    (
        "DNS rebinding and other sites",
        &[
            "src/admin/gate.rs::only_loopback_and_the_configured_address_are_hosts_of_ours",
            "src/admin/gate.rs::other_sites_are_refused",
            "src/admin/tests.rs::strangers_are_refused_whatever_they_ask_for",
            "src/ews/tests/auth.rs::a_web_page_of_another_site_is_refused",
            "src/ews/headers.rs::challenges_and_cross_origin_grants_never_come_through",
        ],
    ),
];

#[test]
fn each_threat_has_its_tests() {
    let missing: Vec<String> = THREATS
        .iter()
        .flat_map(|(about, proofs)| {
            proofs.iter().filter_map(move |proof| Some(format!("{about}: {}", exists(proof).err()?)))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
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
    let verbs =
        ["GET / HTTP/1.1", "HEAD / HTTP/1.0", "PUT /x HTTP/1.1", "DELETE /x HTTP/1.1", "OPTIONS * HTTP/1.1"];
    let verbs = verbs.into_iter().chain([
        "CONNECT x:25 HTTP/1.1",
        "TRACE / HTTP/1.1",
        "PATCH / HTTP/1.1",
        "PRI * HTTP/2.0",
    ]);
    let verbs: Vec<Vec<u8>> =
        verbs.map(|verb| format!("{verb}\r\nHost: localhost\r\n\r\n").into_bytes()).collect();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let http = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\r\nUSER a\r\nPASS b\r\n";
    let knocks = || {
        [&hello[..], &http[..], b"SSH-2.0-OpenSSH_9.2\r\n"].into_iter().chain(verbs.iter().map(Vec::as_slice))
    };
    for listener in ["imap", "pop3", "smtp", "imap-starttls", "imap-tls", "pop3-tls", "smtp-tls", "ews-tls"] {
        // where TLS is spoken from the first byte on, its hello is no stranger
        let encrypts = listener.ends_with("-tls");
        for knock in knocks().filter(|knock| !encrypts || *knock != hello) {
            let mut wire = stage.wire(listener).await;
            if !encrypts {
                wire.line().await;
            }
            wire.say(knock).await;
            let told = wire.rest().await;
            assert!(told.len() <= 1, "{listener}: {told:?}");
            assert!(
                !told.concat().contains("Host") && !told.concat().contains("OpenSSH"),
                "nothing is reflected"
            );
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
    let mut trickles = tokio::task::JoinSet::new();
    for listener in ["imap", "pop3", "smtp", "imap-starttls", "imap-tls", "ews", "ews-tls"] {
        let mut wire = stage.wire(listener).await;
        trickles.spawn(async move {
            let byte: &[u8] = if listener.ends_with("-tls") { b"\x16" } else { b"x" };
            let mut given = 0;
            // for a hundred times the limit
            while given < 1000 && wire.0.write_all(byte).await.is_ok() {
                given += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            assert!(given < 1000, "{listener} takes bytes one by one for ever");
        });
    }
    while let Some(trickle) = trickles.join_next().await {
        trickle.unwrap();
    }
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
            if wire.0.write_all(format!("{nonsense}\r\n").as_bytes()).await.is_err() {
                break;
            }
        }
        assert!(wire.rest().await.len() < 15, "{listener} listens to nonsense without end");
    }
    the_next_client_is_served(&stage).await;
}
