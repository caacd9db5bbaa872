//! Logins against the clock and against upstream's limits: warm connections, turns, holds.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, Event, MailFault, Service, Settings, Step};
use tokio::time::{sleep, timeout};

use crate::stage::{PATIENCE, Plan, Stage, Wire};

const PARKED: &str = "mailkey_warm_connections_parked{";

async fn with_limits(limits: &str) -> Stage {
    let sections = format!("limits: {{{limits}}}\n");
    Stage::planned(Plan { sections, ..Plan::default() }).await
}

/// Signs in; the connection, and how long it took from connecting to the tagged answer.
async fn imap(stage: &Stage) -> (Wire, Duration) {
    let start = Instant::now();
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
    (wire, start.elapsed())
}

/// As far as AUTH, whose answer is yet to come.
async fn smtp_asks(stage: &Stage, name: &str) -> Wire {
    let mut wire = stage.wire("smtp").await;
    wire.until("220 ").await;
    wire.ask(&format!("EHLO {name}"), "250 ").await;
    let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1));
    wire.say(format!("AUTH PLAIN {plain}\r\n")).await;
    wire
}

async fn smtp(stage: &Stage, name: &str) -> Wire {
    let mut wire = smtp_asks(stage, name).await;
    wire.until("235 ").await;
    wire
}

/// Two logins are a rate: from then on a connection is ready.
async fn warmed_up(stage: &Stage) {
    for _ in 0..2 {
        let (mut wire, _) = imap(stage).await;
        wire.ask("z LOGOUT", "z OK").await;
    }
    stage.until_metric(PARKED, 1).await;
}

fn connections(stage: &Stage, service: Service) -> usize {
    stage.office.journal().iter().filter(|event| **event == Event::Connected(service)).count()
}

/// Until the question at the start, what upstream offers, has been asked of all.
async fn settled(stage: &Stage) {
    let mut last = usize::MAX;
    loop {
        let now = stage.office.journal().len();
        if now == last {
            return;
        }
        last = now;
        sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imap_login_on_a_warm_connection_costs_one_round_trip() {
    let one_way = Duration::from_millis(100);
    let stage = Stage::planned(Plan { distance: Some(one_way), ..Plan::default() }).await;
    warmed_up(&stage).await;
    let before = stage.ways[0].round_trips();
    let (_wire, took) = imap(&stage).await;
    let after = stage.ways[0].round_trips();
    let spent: usize = after.iter().zip(&before).map(|(after, before)| after - before).sum();
    assert_eq!(spent, 1, "before {before:?}, after {after:?}");
    assert!(took >= one_way * 2 && took < one_way * 4, "{took:?}");
    assert!(stage.metric("mailkey_warm_connections_total{").await >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_port_scan_nor_a_wrong_password_opens_a_connection() {
    let stage = Stage::usual().await;
    settled(&stage).await;
    let before = connections(&stage, Service::Imap);
    for number in 0..6 {
        let mut wire = stage.wire("imap").await;
        wire.until("* OK").await;
        if number % 2 == 0 {
            wire.ask(&format!("a LOGIN {} wrong", ALICE.0), "a NO").await;
        }
    }
    settled(&stage).await;
    assert_eq!(connections(&stage, Service::Imap), before);
    let (_first, _) = imap(&stage).await;
    settled(&stage).await;
    assert_eq!(connections(&stage, Service::Imap), before + 1, "a single login is no rate");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_kept_where_none_is_wanted() {
    let stage = with_limits("warm-connections: 0").await;
    settled(&stage).await;
    let before = connections(&stage, Service::Imap);
    for _ in 0..4 {
        imap(&stage).await;
    }
    settled(&stage).await;
    assert_eq!(connections(&stage, Service::Imap), before + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_connection_that_dies_when_used_costs_nobody_a_login() {
    let stage = Stage::usual().await;
    warmed_up(&stage).await;
    stage.office.mischief().mail_times(1, Service::Imap, MailFault::CloseAt(Step::Login));
    imap(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_closed_is_given_to_nobody() {
    let settings = Settings { idle: Duration::from_millis(700), ..Settings::default() };
    let stage = Stage::planned(Plan { settings, ..Plan::default() }).await;
    for _ in 0..2 {
        imap(&stage).await;
    }
    let lost = |label: &str| {
        format!(
            "mailkey_warm_connections_total{{upstream=\"localhost:{}\",outcome=\"{label}\"}}",
            stage.office.imap().port()
        )
    };
    // whether another one stands ready by then is a matter of moments; that nobody is handed the dead one is not
    stage.until_metric(&lost("lost"), 1).await;
    imap(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_connections_are_replaced_and_said_goodbye_to() {
    let stage = with_limits("warm-connection-age: 200ms").await;
    warmed_up(&stage).await;
    let aged = format!(
        "mailkey_warm_connections_total{{upstream=\"localhost:{}\",outcome=\"aged\"}}",
        stage.office.imap().port()
    );
    stage.until_metric(&aged, 2).await;
    stage.until_metric(PARKED, 1).await;
    let (_wire, _) = imap(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_warm_connections() {
    let stage = Stage::usual().await;
    warmed_up(&stage).await;
    let start = Instant::now();
    stage.app.stop(std::future::pending()).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_is_warm_too_whatever_the_mail_client_is_called() {
    let stage = Stage::usual().await;
    for name in ["one.example", "one.example"] {
        smtp(&stage, name).await.ask("QUIT", "221 ").await;
    }
    stage.until_metric(PARKED, 1).await;
    smtp(&stage, "one.example").await.ask("QUIT", "221 ").await;
    stage.until_metric(PARKED, 1).await;
    smtp(&stage, "another.example").await.ask("QUIT", "221 ").await;
    let taken = format!(
        "mailkey_warm_connections_total{{upstream=\"localhost:{}\",outcome=\"taken\"}}",
        stage.office.smtp().port()
    );
    assert_eq!(stage.metric(&taken).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_smtp_session_waits_for_one_of_three_to_end() {
    let stage = Stage::usual().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(smtp(&stage, "a.example").await);
    }
    let mut fourth = smtp_asks(&stage, "a.example").await;
    stage.until_metric("mailkey_logins_waiting{", 1).await;
    assert!(timeout(Duration::from_millis(300), fourth.line()).await.is_err(), "answered too early");
    sessions.remove(0).ask("QUIT", "221 ").await;
    fourth.until("235 ").await;
    fourth.ask("NOOP", "250 ").await;
    assert_eq!(stage.metric("mailkey_logins_waiting{").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_whose_turn_does_not_come_is_told_so() {
    let stage = with_limits("smtp-sessions-per-mailbox: 1, wait-for-session: 300ms").await;
    let _first = smtp(&stage, "a.example").await;
    let mut second = smtp_asks(&stage, "a.example").await;
    let told = second.line().await.unwrap();
    assert!(told.starts_with('4') && told.contains("too many sessions"), "{told}");
    let refused = "mailkey_refusals_total{listener=\"smtp\",code=\"SESSIONS-PER-MAILBOX\"}";
    assert_eq!(stage.metric(refused).await, 1);
    // another mailbox, or protocol, is no concern of this one
    imap(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_client_that_leaves_while_it_waits_takes_no_turn() {
    let stage = with_limits("imap-sessions-per-mailbox: 1").await;
    let (mut first, _) = imap(&stage).await;
    let mut gone = stage.wire("imap").await;
    gone.until("* OK").await;
    gone.say(format!("a LOGIN {} \"{}\"\r\nb SELECT INBOX\r\n", ALICE.0, ALICE.1)).await;
    stage.until_metric("mailkey_logins_waiting{", 1).await;
    drop(gone);
    timeout(PATIENCE, async {
        while stage.metric("mailkey_logins_waiting{").await > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("still waiting");
    first.ask("z LOGOUT", "z OK").await;
    imap(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pipelined_behind_a_login_that_waits_is_not_lost() {
    let stage = with_limits("imap-sessions-per-mailbox: 1").await;
    let (mut first, _) = imap(&stage).await;
    let mut second = stage.wire("imap").await;
    second.until("* OK").await;
    second.say(format!("a LOGIN {} \"{}\"\r\n", ALICE.0, ALICE.1)).await;
    stage.until_metric("mailkey_logins_waiting{", 1).await;
    second.say("b SELECT INBOX\r\n").await;
    sleep(Duration::from_millis(100)).await;
    first.ask("z LOGOUT", "z OK").await;
    second.until("a OK").await;
    second.until("b OK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_upstream_throttles_is_held_back_here() {
    let stage = Stage::usual().await;
    settled(&stage).await;
    stage.office.mischief().mail_times(1, Service::Imap, MailFault::Throttle);
    let login = format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1);
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    wire.ask(&login, "a NO").await;
    let before = connections(&stage, Service::Imap);
    let told = wire.ask(&login, "a NO").await;
    assert!(told.contains("[UNAVAILABLE]") && told.contains("try again in"), "{told}");
    assert_eq!(connections(&stage, Service::Imap), before);
    let held = "mailkey_refusals_total{listener=\"imap\",code=\"MAILBOX-HELD\"}";
    assert_eq!(stage.metric(held).await, 1);
    smtp(&stage, "a.example").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_are_kept_as_come_at_once_up_to_the_bound() {
    let stage = with_limits("warm-connections: 3").await;
    let sessions = tokio::join!(imap(&stage), imap(&stage), imap(&stage), imap(&stage), imap(&stage));
    stage.until_metric(PARKED, 3).await;
    drop(sessions);
    settled(&stage).await;
    assert_eq!(stage.metric(PARKED).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_is_left_alone_until_the_next_login() {
    let stage = with_limits("warm-connection-age: 500ms").await;
    warmed_up(&stage).await;
    stage.office.mischief().mail(Service::Imap, MailFault::RefuseGreeting);
    let failed = format!(
        "mailkey_warm_connections_total{{upstream=\"localhost:{}\",outcome=\"failed\"}}",
        stage.office.imap().port()
    );
    stage.until_metric(&failed, 1).await;
    // another may have been on its way at that moment
    settled(&stage).await;
    let before = connections(&stage, Service::Imap);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(connections(&stage, Service::Imap), before);
    stage.office.mischief().calm();
    imap(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_432_is_waited_out_at_auth() {
    // somebody else, behind our back, has the other two sessions
    let settings = Settings { smtp_sessions_per_mailbox: 1, ..Settings::default() };
    let stage = Stage::planned(Plan { settings, ..Plan::default() }).await;
    let mut first = smtp(&stage, "a.example").await;
    let mut second = smtp_asks(&stage, "a.example").await;
    stage.until_metric("mailkey_logins_waiting{", 1).await;
    first.ask("QUIT", "221 ").await;
    second.until("235 ").await;
    assert_eq!(stage.metric("mailkey_logins_waiting{").await, 0);
}
