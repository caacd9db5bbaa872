//! The identity provider fails, in every way it can: new logins are refused for now, those whose token is at hand do
//! not notice, and it is never asked more than a few times.

use std::sync::Arc;

use mailkey::simulator::{ALICE, BOB, CertificateFault, ExpiresIn, IdentityFault, Mischief, Service};

use crate::proxies::corporate::{Mailkey, office, until};
use crate::proxies::faults::{all_refused_to, direct, is_temporary, no_descriptor_stays};

const LISTENERS: [&str; 4] = ["imap", "pop3", "smtp", "ews"];

/// Tries of all logins: the first, and two more for what passes by itself. Fewer, where they come at the same moment
/// and share one.
const TRIES: usize = 3 * LISTENERS.len();

struct Row {
    name: &'static str,
    arm: fn(&Mischief),
    /// What the log may call it. Logins at the same moment share one failure; later ones may be held back for it.
    codes: &'static [&'static str],
    /// The least and the most requests that four logins of one user at once may cost.
    requests: (usize, usize),
    /// Whether the provider asked to be left alone for longer than the test waits.
    is_told_to_wait: bool,
}

const fn row(
    name: &'static str,
    arm: fn(&Mischief),
    codes: &'static [&'static str],
    requests: (usize, usize),
) -> Row {
    Row { name, arm, codes, requests, is_told_to_wait: false }
}

#[expect(clippy::too_many_lines, reason = "one row for each fault")]
fn rows() -> Vec<Row> {
    let throttled =
        |name, arm| Row { is_told_to_wait: true, ..row(name, arm, &["IDENTITY-THROTTLED"], (1, 1)) };
    vec![
        row(
            "down",
            |it| it.identity(IdentityFault::Down),
            &["IDENTITY-UNREACHABLE", "IDENTITY-BROKEN-OFF", "IDENTITY-DOWN"],
            (0, 0),
        ),
        row(
            "hangs",
            |it| it.identity(IdentityFault::Hang),
            &["IDENTITY-TIMEOUT", "IDENTITY-SLOW", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "reset",
            |it| it.identity(IdentityFault::Reset),
            &["IDENTITY-BROKEN-OFF", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        throttled("429 with seconds", |it| {
            it.identity(IdentityFault::Throttled { retry_after: Some("70".into()) });
        }),
        throttled("429 with a date", |it| {
            let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
            let date = later.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            it.identity(IdentityFault::Throttled { retry_after: Some(date) });
        }),
        row(
            "429 without a word",
            |it| it.identity(IdentityFault::Throttled { retry_after: None }),
            &["IDENTITY-THROTTLED"],
            (1, TRIES),
        ),
        row(
            "500",
            |it| it.identity(IdentityFault::Status(500)),
            &["AADSTS90036", "IDENTITY-FAILING", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "503",
            |it| it.identity(IdentityFault::Status(503)),
            &["AADSTS90036", "IDENTITY-FAILING", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "HTML",
            |it| it.identity(IdentityFault::Html),
            &["IDENTITY-INTERCEPTED", "IDENTITY-ANSWER", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "half a document",
            |it| it.identity(IdentityFault::Malformed),
            &["IDENTITY-ANSWER", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "nothing at all",
            |it| it.identity(IdentityFault::Empty),
            &["IDENTITY-ANSWER", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "wrong types",
            |it| it.identity(IdentityFault::WrongType),
            &["IDENTITY-ANSWER", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "a redirect",
            |it| it.identity(IdentityFault::Redirect("https://localhost:9/".into())),
            &["IDENTITY-INTERCEPTED", "IDENTITY-ANSWER", "IDENTITY-DOWN"],
            (1, TRIES),
        ),
        row(
            "another CA's certificate",
            |it| it.certificate(Service::Authority, CertificateFault::UnknownIssuer),
            &["IDENTITY-TLS-ISSUER", "IDENTITY-BROKEN-OFF", "IDENTITY-DOWN"],
            (0, 0),
        ),
        row(
            "an expired certificate",
            |it| it.certificate(Service::Authority, CertificateFault::Expired),
            &["IDENTITY-TLS-EXPIRED", "IDENTITY-BROKEN-OFF", "IDENTITY-DOWN"],
            (0, 0),
        ),
        row(
            "another name's certificate",
            |it| it.certificate(Service::Authority, CertificateFault::WrongName),
            &["IDENTITY-TLS-WRONG-NAME", "IDENTITY-BROKEN-OFF", "IDENTITY-DOWN"],
            (0, 0),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_identity_provider_does_is_refused_for_now_and_never_stormed() {
    let mut rows = rows().into_iter();
    let mut running = tokio::task::JoinSet::new();
    // a few at a time: each has a proxy and an Office 365 of its own
    for row in rows.by_ref().take(4) {
        running.spawn(goes_well(row));
    }
    while let Some(one) = running.join_next().await {
        one.unwrap();
        if let Some(row) = rows.next() {
            running.spawn(goes_well(row));
        }
    }
}

async fn goes_well(row: Row) {
    let why = row.name;
    let office = office().await;
    let mailkey = direct(&office).await;
    // Alice's token is at hand, and she is in; a connection to the identity provider that is kept open is used up
    for listener in LISTENERS {
        let told = mailkey.sign_in(listener).await;
        assert!(!is_temporary(listener, &told), "{why}, before: {listener}: {told}");
    }
    let mut alice = mailkey.wire("imap").await;
    alice.until("* OK").await;
    alice.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
    let before = mailkey.descriptors();
    assert_eq!(office.token_requests(), 1);
    (row.arm)(office.mischief());

    let refusals = all_refused_to(BOB, &mailkey, &LISTENERS, row.codes, why).await;
    for refusal in &refusals {
        let text = refusal.to_string();
        assert!(!text.contains("eyJ0") && !text.contains("<html") && !text.contains(BOB.1), "{why}: {text}");
    }
    let asked = office.token_requests() - 1;
    let (least, most) = row.requests;
    assert!(asked >= least && asked <= most, "{why}: {asked} requests for four logins of one user");

    // whoever has a token does not notice
    alice.ask("b NOOP", "b OK").await;
    for listener in LISTENERS {
        let told = mailkey.sign_in(listener).await;
        assert!(!is_temporary(listener, &told), "{why}: Alice at {listener}: {told}");
    }
    assert_eq!(office.token_requests() - 1, asked, "{why}: a token that was at hand was asked for");

    office.mischief().calm();
    if row.is_told_to_wait {
        for _ in 0..3 {
            let told = mailkey.sign_in_as("imap", BOB).await;
            assert!(is_temporary("imap", &told), "{why}: {told}");
        }
        assert_eq!(office.token_requests() - 1, asked, "{why}: it asked to be left alone");
    } else if why != "429 without a word" {
        served_again(&mailkey, why).await;
    }
    alice.ask("c LOGOUT", "c OK").await;
    no_descriptor_stays(&mailkey, before).await;
}

/// As soon as the provider is well, so is Bob.
async fn served_again(mailkey: &Arc<Mailkey>, why: &str) {
    for _ in 0..120 {
        let told = mailkey.sign_in_as("imap", BOB).await;
        if told.starts_with("a1 OK") {
            return;
        }
        assert!(is_temporary("imap", &told), "{why}, afterwards: {told}");
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    panic!("{why}: Bob is never served again");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_said_to_have_no_life_serve_and_make_no_storm() {
    for lie in
        [ExpiresIn::Number(0), ExpiresIn::Number(5), ExpiresIn::Number(-1), ExpiresIn::Text("1".into())]
    {
        let office = office().await;
        office.mischief().identity(IdentityFault::ExpiresIn(lie.clone()));
        let mailkey = direct(&office).await;
        for login in 1..=6 {
            for listener in LISTENERS {
                let told = mailkey.sign_in(listener).await;
                assert!(!is_temporary(listener, &told), "{lie:?}: {told}");
            }
            assert!(office.token_requests() <= 4 * login, "{lie:?}: {} requests", office.token_requests());
        }
        // nobody signs in: nobody asks
        let asked = office.token_requests();
        until("a moment passes", {
            let mut looks = 0;
            move || {
                looks += 1;
                looks > 50
            }
        })
        .await;
        assert_eq!(office.token_requests(), asked, "{lie:?}: asked although nobody signs in");
    }
}
