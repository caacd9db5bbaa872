//! Who gets in and who does not, through the whole proxy.

use mailkey::simulator::{ALICE, BOB, Condition, Event, Settings, User};

use crate::stage::{Plan, Stage};

async fn imap_login(stage: &Stage, user: &str, password: &str) -> String {
    let mut wire = stage.wire("imap").await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN \"{user}\" \"{password}\""), "a ").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_after_a_right_one_is_refused_and_the_right_one_still_works() {
    let stage = Stage::usual().await;
    assert!(imap_login(&stage, ALICE.0, ALICE.1).await.starts_with("a OK"));
    for wrong in ["wrong", "Wonder land:2", "wonder land:1", " Wonder land:1"] {
        let told = imap_login(&stage, ALICE.0, wrong).await;
        assert!(told.starts_with("a NO [AUTHENTICATIONFAILED]"), "{wrong}: {told}");
    }
    let asked = stage.office.token_requests();
    assert!(imap_login(&stage, ALICE.0, ALICE.1).await.starts_with("a OK"));
    assert_eq!(stage.office.token_requests(), asked, "the right password's token was evicted by a wrong one");
    // somebody else's right password opens nothing
    assert!(imap_login(&stage, ALICE.0, BOB.1).await.starts_with("a NO [AUTHENTICATIONFAILED]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_gets_its_own_answer_in_each_protocol() {
    let mut settings = Settings::default();
    for (name, condition) in [
        ("expired", Condition::PasswordExpired),
        ("locked", Condition::Locked),
        ("mfa", Condition::MfaRequired),
        ("policy", Condition::BlockedByPolicy),
        ("disabled", Condition::Disabled),
    ] {
        settings.users.push(User::new(&format!("{name}@contoso.com"), "pw").with(condition));
    }
    let stage = Stage::planned(Plan { settings, ..Plan::default() }).await;
    for (name, imap, pop3, smtp) in [
        ("nobody", "a NO [AUTHENTICATIONFAILED]", "-ERR [AUTH]", "535 5.7.8"),
        ("expired", "a NO [EXPIRED]", "-ERR [AUTH]", "535 5.7.8"),
        ("locked", "a NO [UNAVAILABLE]", "-ERR [SYS/TEMP]", "454 4.7.0"),
        ("mfa", "a NO [CONTACTADMIN]", "-ERR [SYS/PERM]", "535 5.7.8"),
        ("policy", "a NO [CONTACTADMIN]", "-ERR [SYS/PERM]", "535 5.7.8"),
        ("disabled", "a NO [CONTACTADMIN]", "-ERR [SYS/PERM]", "535 5.7.8"),
    ] {
        let user = format!("{name}@contoso.com");
        let told = imap_login(&stage, &user, "pw").await;
        assert!(told.starts_with(imap), "{name}: {told}");
        let mut wire = stage.wire("pop3").await;
        wire.until("+OK").await;
        wire.ask(&format!("USER {user}"), "+OK").await;
        let told = wire.ask("PASS pw", "-").await;
        assert!(told.starts_with(pop3), "{name}: {told}");
        let mut wire = stage.wire("smtp").await;
        wire.until("220 ").await;
        wire.ask("EHLO x", "250 ").await;
        let plain = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("\0{user}\0pw"));
        let told = wire.ask(&format!("AUTH PLAIN {plain}"), "").await;
        assert!(told.starts_with(smtp), "{name}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_upstream_refuses_is_fetched_anew_once() {
    let stage = Stage::usual().await;
    assert!(imap_login(&stage, ALICE.0, ALICE.1).await.starts_with("a OK"));
    stage.office.expire_tokens();
    assert!(imap_login(&stage, ALICE.0, ALICE.1).await.starts_with("a OK"));
    assert_eq!(stage.office.token_requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pipelined_behind_the_login_is_kept_and_answered() {
    let stage = Stage::usual().await;
    stage.office.deliver(ALICE.0, "Subject: one\r\n\r\nbody\r\n");
    let mut wire = stage.wire("imap").await;
    wire.say(format!("a LOGIN {} \"{}\"\r\nb SELECT INBOX\r\nc FETCH 1 (BODY[TEXT])\r\n", ALICE.0, ALICE.1))
        .await;
    wire.until("a OK").await;
    wire.until("b OK").await;
    wire.until("c OK").await;
    let mut wire = stage.wire("pop3").await;
    wire.say(format!("USER {}\r\nPASS {}\r\nSTAT\r\nQUIT\r\n", ALICE.0, ALICE.1)).await;
    wire.until("+OK 1 ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_scan_costs_office_365_nothing() {
    let stage = Stage::usual().await;
    // what upstream offers is learned at the start; let that be over
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let before = stage.office.journal().iter().filter(|event| matches!(event, Event::Connected(_))).count();
    for listener in ["imap", "pop3", "smtp", "imap-tls", "ews"] {
        drop(stage.wire(listener).await);
    }
    let mut wire = stage.wire("imap").await;
    wire.ask("a CAPABILITY", "a OK").await;
    wire.ask("b LOGOUT", "b OK").await;
    let after = stage.office.journal().iter().filter(|event| matches!(event, Event::Connected(_))).count();
    assert_eq!(before, after);
}
