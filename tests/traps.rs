//! The interop traps that mail proxies meet, by number, and what shows that this one does not fall into them.
//!
//! The list is the project's own: 1 to 15 are IMAP, 16 to 20 POP3, 21 to 28 SMTP, 29 to 34 EWS, 35 to 41 OAuth and
//! the way to it.

use std::path::Path;

/// Number, what it is about, and its tests: a transcript (`….txt`), or a file and a function in it.
const TRAPS: &[(u8, &str, &[&str])] = &[
    (
        1,
        "the client talks before the greeting",
        &[
            "tests/transcripts/imap/front/trap-01-the-client-speaks-first.txt",
            "tests/transcripts/pop3/front/trap-01-the-client-speaks-first.txt",
            "tests/transcripts/smtp/front/trap-01-the-client-speaks-first.txt",
        ],
    ),
    (
        2,
        "mechanisms are read off the greeting only",
        &["tests/transcripts/imap/front/trap-02-the-greeting-lists-capabilities.txt"],
    ),
    (
        3,
        "the order of CAPABILITY, and nothing twice",
        &["tests/transcripts/imap/front/trap-03-imap4rev1-first-and-nothing-twice.txt"],
    ),
    (
        4,
        "capabilities change with the login",
        &[
            "tests/transcripts/imap/front/trap-04-capabilities-in-the-ok-are-upstreams.txt",
            "src/serve/offer.rs::trap_04_what_one_mailbox_lacks_is_promised_to_nobody_and_what_one_has_more_neither",
            "tests/legacy.rs::trap_04_what_is_shown_before_the_login_is_there_after_it_in_every_edition",
            "tests/legacy.rs::trap_04_an_upstream_that_is_away_at_the_start_changes_nothing_for_clients",
        ],
    ),
    (
        5,
        "all forms of LOGIN",
        &[
            "tests/transcripts/imap/front/trap-05-a-literal-is-counted-in-octets.txt",
            "tests/transcripts/imap/front/trap-05-login-with-a-quoted-user-and-a-literal-password.txt",
            "tests/transcripts/imap/front/trap-05-blanks-where-none-belong.txt",
        ],
    ),
    (
        6,
        "all forms of AUTHENTICATE PLAIN",
        &[
            "tests/transcripts/imap/front/trap-06-cancelled-with-an-asterisk.txt",
            "tests/transcripts/imap/front/trap-06-latin-1-passwords.txt",
            "tests/transcripts/imap/front/trap-06-plain-with-an-empty-initial-response.txt",
        ],
    ),
    (
        7,
        "JavaMail's way of signing in",
        &[
            "tests/transcripts/imap/front/trap-07-javamail-waits-for-the-plus.txt",
            "tests/clients.rs::javamail_signs_in_in_all_its_ways",
        ],
    ),
    (
        8,
        "bytes behind the login, on both sides",
        &[
            "tests/transcripts/imap/front/trap-08-pipelined-behind-a-login.txt",
            "tests/transcripts/imap/back/trap-08-sent-behind-the-tagged-ok.txt",
            "tests/passwords.rs::what_is_pipelined_behind_the_login_is_kept_and_answered",
        ],
    ),
    (
        9,
        "upstream's error challenges",
        &[
            "tests/transcripts/imap/back/trap-09-gmails-error-challenge.txt",
            "tests/transcripts/imap/back/trap-09-yandex-asks-although-it-has-the-token.txt",
        ],
    ),
    (
        10,
        "untagged lines before the tagged answer",
        &[
            "tests/transcripts/imap/back/trap-10-untagged-lines-before-the-answer.txt",
            "tests/transcripts/imap/back/trap-10-another-tag.txt",
        ],
    ),
    (
        11,
        "authenticated, but not connected",
        &["tests/transcripts/imap/back/trap-11-authenticated-but-not-connected.txt"],
    ),
    (
        12,
        "IDLE: nothing flows for half an hour",
        &[
            "src/serve/relay.rs::trap_12_a_session_may_say_nothing_for_31_minutes_and_is_ended_after_its_limit",
        ],
    ),
    (
        13,
        "COMPRESS, ENABLE and NOTIFY are the relay's: it reads nothing",
        &[
            "tests/transcripts/imap/front/trap-13-nothing-is-parsed-after-the-grant.txt",
            "src/serve/relay.rs::every_byte_arrives_in_order_through_narrow_pipes",
            "tests/legacy.rs::trap_13_commands_that_change_the_session_reach_upstream_as_they_are",
        ],
    ),
    (
        14,
        "what was in clear before STARTTLS is forgotten; lines are bounded",
        &[
            "tests/transcripts/imap/front/trap-14-starttls-forgets-what-came-before.txt",
            "tests/transcripts/imap/back/trap-14-bytes-behind-the-answer-to-starttls.txt",
            "tests/hostile.rs::endless_lines_and_huge_literals_are_cut_off",
        ],
    ),
    (15, "odd tags", &["tests/transcripts/imap/front/trap-15-odd-tags.txt"]),
    (16, "POP3 takes XOAUTH2 in two lines only", &["tests/transcripts/pop3/back/trap-16-two-lines.txt"]),
    (
        17,
        "CAPA and bare AUTH, also between USER and PASS",
        &[
            "tests/transcripts/pop3/front/trap-17-capa-between-user-and-pass.txt",
            "tests/transcripts/pop3/front/trap-17-bare-auth-lists-mechanisms.txt",
        ],
    ),
    (
        18,
        "USER and PASS in one go, blanks in a password",
        &[
            "tests/transcripts/pop3/front/trap-18-javamail-user-and-pass-in-one-segment.txt",
            "tests/transcripts/pop3/front/trap-18-blanks-in-a-password.txt",
        ],
    ),
    (
        19,
        "clients decide by the response code",
        &[
            "tests/transcripts/pop3/front/trap-19-refused-unavailable.txt",
            "src/token/catalogue/mod.rs::what_passes_by_itself_is_never_told_as_a_wrong_password",
        ],
    ),
    (20, "no APOP timestamp", &["tests/transcripts/pop3/front/trap-20-apop-is-not-served.txt"]),
    (
        21,
        "EHLO, STARTTLS, EHLO; HELO only; no hello at all",
        &[
            "tests/transcripts/smtp/back/trap-21-office-365.txt",
            "tests/transcripts/smtp/front/trap-21-helo-only.txt",
        ],
    ),
    (22, "the answer to EHLO", &["tests/transcripts/smtp/front/trap-22-the-answer-to-ehlo.txt"]),
    (
        23,
        "AUTH LOGIN with the user inline, cancel, replies of many lines",
        &[
            "tests/transcripts/smtp/front/trap-23-login-with-the-user-inline.txt",
            "tests/transcripts/smtp/back/trap-23-refused-in-many-lines.txt",
        ],
    ),
    (
        24,
        "a token is longer than a command may be",
        &[
            "tests/transcripts/smtp/back/trap-24-two-steps.txt",
            "tests/peers.rs::dovecot_and_postfix_take_our_sign_in_and_real_clients_take_ours",
        ],
    ),
    (
        25,
        "a client that never signs in",
        &[
            "tests/transcripts/smtp/front/trap-25-mail-without-a-login.txt",
            "tests/transcripts/smtp/front/trap-25-a-device-sends-without-a-login.txt",
            "tests/legacy.rs::nobody_else_sends_as_the_account_of_the_devices",
        ],
    ),
    (
        26,
        "SendAsDenied comes after the login, and goes to the client",
        &[
            "tests/transcripts/smtp/back/trap-26-432-too-many-connections.txt",
            "tests/legacy.rs::trap_25_and_26_a_device_sends_as_its_listeners_account_and_upstream_judges_the_sender",
        ],
    ),
    (
        27,
        "a shared mailbox reads as itself and sends as its delegate",
        &["tests/legacy.rs::trap_27_legacy_names_lead_to_the_right_person_and_mailbox_by_protocol"],
    ),
    (
        28,
        "BDAT, 8BITMIME and PIPELINING",
        &[
            "tests/transcripts/smtp/front/trap-28-a-chunk-without-a-login.txt",
            "src/protocol/smtp/boundary.rs::chunks_are_counted_and_never_read",
            "tests/legacy.rs::trap_28_an_expiring_token_waits_for_the_message_and_then_ends_the_session",
        ],
    ),
    (
        29,
        "HTTP clients want to be asked for Basic, once",
        &["src/ews/tests/auth.rs::every_kind_of_request_is_challenged_once_and_the_connection_stays_open"],
    ),
    (
        30,
        "Basic as it is written in the wild",
        &[
            "src/ews/basic.rs::the_first_colon_splits_and_the_password_keeps_the_rest",
            "src/ews/basic.rs::passwords_come_in_utf8_and_in_latin1",
            "src/ews/basic.rs::the_scheme_is_read_in_any_case",
            "src/ews/tests/relay.rs::a_second_refusal_is_final_and_its_challenge_stays_here",
        ],
    ),
    (
        31,
        "application tokens, anchors, diagnostics",
        &["src/token/catalogue/exchange.rs::a_diagnostics_header_tells_more_than_the_status"],
    ),
    (
        32,
        "long polls, chunks, cookies, several users on one connection",
        &[
            "src/ews/tests/streams.rs::every_event_of_a_stream_reaches_the_mail_client_at_once",
            "src/ews/tests/auth.rs::each_request_on_a_connection_is_judged_by_its_own_user",
            "src/ews/tests/wire.rs::who_waits_for_100_continue_is_challenged_without_it",
            "src/ews/tests/relay.rs::cookies_come_back_one_by_one_and_fit_for_the_listener",
            "src/ews/tests/relay.rs::redirects_lead_to_our_host_or_nowhere",
        ],
    ),
    (
        33,
        "a password never goes upstream",
        &["src/ews/tests/relay.rs::a_request_is_rebuilt_with_nothing_of_the_password_in_it"],
    ),
    (
        34,
        "EWS switched off is no bad token",
        &["src/token/catalogue/exchange.rs::the_ews_entry_names_the_switches_and_the_end"],
    ),
    (
        35,
        "lifetimes as text or missing; rotated refresh tokens are saved first",
        &[
            "src/token/answer.rs::the_lifetime_may_be_a_number_a_text_or_missing",
            "src/token/broker_tests.rs::a_rotated_refresh_token_is_stored_before_its_token_is_used",
        ],
    ),
    (
        36,
        "renewal by lifetime, not by the wall clock",
        &["src/token/cache.rs::a_token_is_renewed_before_its_end_but_never_in_a_tight_loop"],
    ),
    (
        37,
        "one request in flight",
        &[
            "src/token/broker_tests.rs::a_hundred_logins_at_once_are_one_request",
            "tests/clients.rs::fifty_clients_at_once_cost_one_token_request",
        ],
    ),
    (
        38,
        "what each AADSTS code means",
        &[
            "src/token/catalogue/entra.rs::refusals_are_those_of_the_design",
            "src/token/broker_tests.rs::a_refresh_that_fails_for_now_keeps_the_sign_in",
        ],
    ),
    (
        39,
        "a changed password must not live on",
        &[
            "src/token/broker_tests.rs::a_changed_password_replaces_the_old_one_only_when_the_provider_takes_it",
            "src/token/broker_tests.rs::a_proof_does_not_live_on_by_refresh_tokens_for_ever",
        ],
    ),
    (
        40,
        "scopes: by protocol, or one for all",
        &[
            "src/token/sign_in.rs::one_scope_serves_every_protocol_of_a_sign_in",
            "tests/clients.rs::curl_sends_by_smtp_and_reads_by_imap_pop3_and_ews",
        ],
    ),
    (
        41,
        "TLS that is inspected, CONNECT that is refused",
        &[
            "src/token/error.rs::a_tls_inspecting_proxy_is_answered_with_its_remedy",
            "tests/proxies/faults.rs::whatever_a_proxy_does_to_token_requests_is_refused_in_time_and_explained",
        ],
    ),
];

/// Whether a proof is there: a transcript, or a test by file and function.
///
/// # Errors
/// What is not there.
pub fn exists(proof: &str) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some((file, function)) = proof.split_once("::") else {
        return if root.join(proof).is_file() { Ok(()) } else { Err(format!("no transcript `{proof}`")) };
    };
    let text = std::fs::read_to_string(root.join(file)).map_err(|error| format!("`{file}`: {error}"))?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let names = |line: &str| line.contains(&format!("fn {function}("));
    let at = lines.iter().position(|line| names(line)).ok_or(format!("no `{function}` in `{file}`"))?;
    // attributes and comments may stand between
    let is_test =
        lines[..at].iter().rev().take(4).any(|line| line.starts_with("#[") && line.contains("test"));
    if is_test { Ok(()) } else { Err(format!("`{function}` in `{file}` is no test")) }
}

#[test]
fn each_of_the_41_traps_has_its_tests() {
    let numbers: Vec<u8> = TRAPS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=41).collect::<Vec<u8>>());
    let mut missing = Vec::new();
    for (number, about, proofs) in TRAPS {
        assert!(!proofs.is_empty(), "{number}: {about}");
        missing.extend(
            proofs.iter().filter_map(|proof| exists(proof).err()).map(|why| format!("{number}: {why}")),
        );
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    assert!(exists("tests/transcripts/imap/front/no-such-thing.txt").is_err());
    assert!(exists("tests/traps.rs::no_such_function").is_err());
    assert!(exists("tests/no-such-file.rs::exists").is_err());
    assert!(exists("tests/traps.rs::exists").is_err(), "a function that is no test");
}
