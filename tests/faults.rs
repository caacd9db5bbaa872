//! Faults: whatever breaks around the proxy, and whatever breaks it. What the mail client reads, what the log says,
//! that nobody else notices, that the identity provider is not stormed, and that nothing stays open or gets lost.

mod disturbances;
mod identity;
mod load;
mod upstream;
mod vanishing;

use crate::traps::exists;

/// The fault matrix: number, what breaks, and the tests that break it.
const FAULTS: &[(u8, &str, &[&str])] = &[
    (1, "the identity provider is down", &[MATRIX, CACHED]),
    (
        2,
        "the identity provider is slow or hangs",
        &[
            MATRIX,
            "src/token/broker_tests.rs::a_hanging_provider_costs_each_login_no_more_than_its_time_limit",
        ],
    ),
    (
        3,
        "the identity provider throttles",
        &[
            MATRIX,
            "src/token/broker_tests.rs::retry_after_holds_the_whole_application_and_no_request_comes_before",
        ],
    ),
    (
        4,
        "the identity provider answers 5xx",
        &[
            MATRIX,
            CACHED,
            "src/token/broker_tests.rs::what_passes_by_itself_is_tried_three_times_and_no_more",
        ],
    ),
    (5, "the identity provider answers rubbish", &[MATRIX]),
    (
        6,
        "tokens without life",
        &[
            "tests/faults/identity.rs::tokens_that_are_said_to_have_no_life_serve_and_make_no_storm",
            "src/token/broker_tests.rs::a_token_without_life_makes_no_tight_loop",
        ],
    ),
    (
        7,
        "wrong password, locked account, MFA, wrong client secret",
        &[
            "src/token/catalogue/entra.rs::refusals_are_those_of_the_design",
            "src/token/broker_tests.rs::a_locked_account_is_left_alone_and_a_valid_token_outlives_it",
            "src/ews/tests/auth.rs::refusals_have_their_status_and_tell_no_internals",
        ],
    ),
    (
        8,
        "TLS to the identity provider fails",
        &[
            MATRIX,
            "tests/proxies/faults.rs::what_is_wrong_with_a_certificate_is_told_apart_with_issuer_and_fingerprint",
        ],
    ),
    (
        9,
        "names do not resolve, or slowly",
        &[
            "tests/faults/disturbances.rs::a_name_server_that_says_nothing_is_waited_for_in_bounds_and_asked_again",
            "src/upstream/dial.rs::an_old_answer_is_kept_when_dns_fails_and_dns_is_left_alone_for_a_while",
        ],
    ),
    (
        10,
        "the corporate proxy refuses",
        &[PROXY_MAIL, PROXY_TOKENS, "src/upstream/proxy_tests.rs::refusals_are_told_apart"],
    ),
    (11, "the corporate proxy hangs or drops", &[PROXY_MAIL, PROXY_TOKENS]),
    (12, "upstream refuses", &[DIALOGUE]),
    (13, "upstream's greeting is late, half or missing", &[DIALOGUE]),
    (14, "upstream closes or resets during the login", &[DIALOGUE]),
    (
        15,
        "upstream refuses a cached token",
        &[
            "tests/faults/upstream.rs::a_cached_token_that_upstream_refuses_is_replaced_once_and_never_in_a_loop",
            "src/token/broker_tests.rs::a_token_that_upstream_refused_is_asked_for_once_more_and_not_again_at_once",
        ],
    ),
    (
        16,
        "upstream closes or resets during a transfer",
        &["tests/faults/upstream.rs::a_transfer_that_upstream_breaks_off_ends_without_a_made_up_answer"],
    ),
    (
        17,
        "no close_notify",
        &[
            "tests/faults/upstream.rs::a_body_of_no_stated_length_without_the_end_of_tls_is_not_made_to_look_whole",
        ],
    ),
    (
        18,
        "half-close",
        &[
            "tests/faults/upstream.rs::a_client_that_closes_its_direction_hears_every_answer",
            "tests/faults/upstream.rs::an_upstream_that_says_goodbye_is_heard_and_the_next_login_works",
        ],
    ),
    (
        19,
        "the token ends during a session",
        &[
            "tests/faults/upstream.rs::an_upstream_that_says_goodbye_is_heard_and_the_next_login_works",
            "tests/legacy.rs::trap_28_an_expiring_token_waits_for_the_message_and_then_ends_the_session",
        ],
    ),
    (
        20,
        "the clock jumps",
        &["tests/faults/disturbances.rs::a_clock_that_jumps_costs_no_session_and_no_token_request"],
    ),
    (
        21,
        "the mail client vanishes",
        &[
            "tests/faults/vanishing.rs::a_client_that_vanishes_at_any_step_submits_nothing_and_leaves_nothing_open",
        ],
    ),
    (
        22,
        "a crowd of connections",
        &[
            "tests/hostile/crowds.rs::a_flood_of_connections_is_refused_in_plain_words_and_disturbs_nobody_who_is_in",
        ],
    ),
    (23, "no descriptors left", &["tests/operating.rs::running_out_of_descriptors_is_survived_and_shown"]),
    (
        24,
        "little memory",
        &["tests/faults/disturbances.rs::slow_readers_of_large_messages_fit_into_little_memory"],
    ),
    (
        25,
        "SIGTERM under way",
        &[
            LOST,
            "tests/operating.rs::a_stop_says_goodbye_to_idle_imap_sessions_and_waits_for_what_is_under_way",
            "tests/operating.rs::a_second_signal_ends_at_once",
            "tests/legacy.rs::a_stop_waits_for_the_message_that_is_under_way",
        ],
    ),
    (
        26,
        "SIGKILL while the store is written",
        &["tests/store.rs::a_process_killed_a_thousand_times_while_it_writes_never_tears_or_loses_a_record"],
    ),
    (
        27,
        "a reload with a broken file",
        &[LOST, "tests/operating.rs::a_broken_file_changes_nothing_and_says_why"],
    ),
    (
        28,
        "certificates change",
        &[
            "tests/operating.rs::a_new_certificate_is_shown_after_a_reload_and_one_without_its_key_is_not_taken",
        ],
    ),
    (
        29,
        "Redis is away, slow or poisoned",
        &[
            "tests/faults/disturbances.rs::logins_go_on_while_redis_hangs_is_away_or_holds_rubbish",
            "tests/store.rs::a_server_that_hangs_costs_two_seconds_once",
            "tests/store.rs::junk_and_values_of_another_key_count_as_not_there",
        ],
    ),
    (
        30,
        "the disk is full or read-only",
        &[
            "tests/store.rs::a_full_disk_leaves_the_old_file",
            "tests/store.rs::a_disk_without_room_or_without_leave_to_write_keeps_what_it_has",
        ],
    ),
    (
        31,
        "nobody reads the log",
        &[
            "tests/faults/disturbances.rs::a_log_that_nobody_reads_or_that_is_closed_holds_nobody_up",
            "src/telemetry/log.rs::a_full_queue_loses_and_counts_and_never_waits",
        ],
    ),
    (
        32,
        "everybody comes back at once",
        &[
            "tests/faults/load.rs::two_thousand_clients_with_fifty_accounts_cost_fifty_token_requests_and_are_all_served",
            "src/token/broker_tests.rs::a_hundred_logins_at_once_are_one_request",
        ],
    ),
    (
        33,
        "a peer is gone without a word",
        &["tests/faults/disturbances.rs::both_ends_of_a_session_are_asked_whether_they_are_still_there"],
    ),
    (
        34,
        "a session panics",
        &["src/serve/listener.rs::a_visit_that_panics_gives_its_place_back_and_disturbs_nobody"],
    ),
];

const MATRIX: &str =
    "tests/faults/identity.rs::whatever_the_identity_provider_does_is_refused_for_now_and_never_stormed";
const CACHED: &str = "src/token/broker_tests.rs::a_valid_token_is_served_while_the_provider_is_down";
const PROXY_MAIL: &str =
    "tests/proxies/faults.rs::whatever_a_proxy_does_to_mail_and_ews_is_refused_in_time_and_explained";
const PROXY_TOKENS: &str =
    "tests/proxies/faults.rs::whatever_a_proxy_does_to_token_requests_is_refused_in_time_and_explained";
const DIALOGUE: &str = "tests/proxies/faults.rs::whatever_breaks_in_the_dialogue_with_upstream_is_refused_in_time_and_leaves_nothing_open";
const LOST: &str =
    "tests/faults/load.rs::every_message_that_was_taken_is_there_once_whatever_broke_meanwhile";

#[test]
fn each_of_the_34_faults_has_its_tests() {
    let numbers: Vec<u8> = FAULTS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=34).collect::<Vec<u8>>());
    let missing: Vec<String> = FAULTS
        .iter()
        .flat_map(|(number, about, proofs)| {
            assert!(!proofs.is_empty(), "{number}: {about}");
            proofs
                .iter()
                .filter_map(move |proof| Some(format!("{number}, {about}: {}", exists(proof).err()?)))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
