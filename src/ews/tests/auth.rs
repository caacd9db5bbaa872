//! Who gets in, and what everybody else is told.

use std::time::Duration;

use super::rig::{PASSWORD, Rig, USER, basic, post, post_with};
use crate::explain::{Cause, CauseKind, Refusal};

const CHALLENGE: &str = r#"Basic realm="Mailkey", charset="UTF-8""#;

#[tokio::test(start_paused = true)]
async fn every_kind_of_request_is_challenged_once_and_the_connection_stays_open() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let long = "x".repeat(300_000);
    for (method, framing) in [
        ("POST", format!("Content-Length: 300000\r\n\r\n{long}")),
        ("POST", "Content-Length: 0\r\n\r\n".to_owned()),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned()),
        ("GET", "\r\n".to_owned()),
        ("HEAD", "\r\n".to_owned()),
        ("OPTIONS", "\r\n".to_owned()),
    ] {
        client.write(format!("{method} /ews/exchange.asmx HTTP/1.1\r\nHost: h\r\n{framing}")).await;
        let answer = client.answer_to(method).await;
        assert_eq!((answer.status, answer.all("www-authenticate")), (401, vec![CHALLENGE]), "{method}");
        assert_eq!(answer.header("connection"), None, "{method}");
        assert_eq!(answer.headers.iter().filter(|(n, _)| n.to_lowercase().starts_with("access-")).count(), 0);
    }
    assert_eq!(client.soap("<x/>").await.status, 200);
    assert_eq!(rig.broker.asked(), [USER]);
}

#[tokio::test(start_paused = true)]
async fn other_schemes_are_asked_for_basic_and_cost_no_token_request() {
    let rig = Rig::new();
    let mut client = rig.connect();
    for scheme in ["NTLM TlRMTVNTUAABAAAA", "Negotiate YII=", "Bearer eyJ0", "Digest x=1"] {
        client.write(post_with(&format!("Authorization: {scheme}\r\n"), "")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.all("www-authenticate")), (401, vec![CHALLENGE]), "{scheme}");
    }
    for broken in ["Basic ????", "Basic dTpw\u{20}junk", "Basic bm9jb2xvbg==", "Basic dQA6cA=="] {
        client.write(post_with(&format!("Authorization: {broken}\r\n"), "")).await;
        assert_eq!(client.answer().await.status, 401, "{broken}");
    }
    client.write(post_with(&format!("{0}{0}", basic(USER, PASSWORD)), "")).await;
    assert_eq!(client.answer().await.status, 400);
    assert!(rig.broker.asked().is_empty());
    assert_eq!(rig.exchange.sent(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_request_on_a_connection_is_judged_by_its_own_user() {
    let rig = Rig::new();
    let mut client = rig.connect();
    for (user, password, status) in [
        (USER, PASSWORD, 200),
        ("bob@contoso.com", PASSWORD, 200),
        (USER, "wrong", 401),
        ("scanner", PASSWORD, 200),
        ("stranger@elsewhere.example", PASSWORD, 403),
    ] {
        client.write(post(user, password, "<x/>")).await;
        assert_eq!(client.answer().await.status, status, "{user}");
    }
    client.write(post_with("", "<x/>")).await;
    assert_eq!(client.answer().await.status, 401);
    let seen = rig.exchange.seen();
    let anchors: Vec<_> = seen.iter().map(|seen| seen.headers["x-anchormailbox"].to_str().unwrap()).collect();
    assert_eq!(anchors, [USER, "bob@contoso.com", "scans@contoso.com"]);
    assert_eq!(
        seen.iter().map(|seen| seen.token.as_str()).collect::<Vec<_>>(),
        ["token-1", "token-2", "token-4"]
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_have_their_status_and_tell_no_internals() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let mfa = Refusal::ContactAdmin(Cause { kind: CauseKind::MultiFactor, aadsts: Some(50076) });
    for (refusal, status, retry_after) in [
        (Refusal::BadCredentials, 401, None),
        (Refusal::PasswordExpired, 401, None),
        (Refusal::HeldBack { retry_after: Duration::from_secs(90) }, 503, Some("90")),
        (mfa, 403, None),
        (Refusal::Unavailable { retry_after: None }, 503, Some("30")),
    ] {
        rig.broker.refuse(refusal);
        let answer = client.soap("<x/>").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.body, format!("{}\n", refusal.sentence()));
        assert_eq!(answer.header("retry-after"), retry_after);
        assert_eq!(answer.header("www-authenticate"), (status == 401).then_some(CHALLENGE));
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        assert!(!answer.body.contains("internal-detail"));
    }
    assert_eq!(rig.exchange.sent(), 0);
    let metrics = rig.metrics.encode();
    assert!(metrics.contains(r#"mailkey_refusals_total{listener="ews",code="TEST-CODE"} 5"#), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_does_not_answer_is_an_outage_and_no_wrong_password() {
    let rig = Rig::new();
    rig.broker.hang();
    let mut client = rig.connect();
    let answer = client.soap("<x/>").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("30")));
}

#[tokio::test(start_paused = true)]
async fn grants_that_give_now_this_token_now_that_are_not_served() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.write(post("mixed", PASSWORD, "<x/>")).await;
    assert_eq!(client.answer().await.status, 403);
    assert!(rig.broker.asked().is_empty());
    assert!(rig.metrics.encode().contains(r#"code="EWS-MIXED-GRANTS""#));
}

#[tokio::test(start_paused = true)]
async fn a_web_page_of_another_site_is_refused() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.write(post_with(&format!("Sec-Fetch-Site: cross-site\r\n{}", basic(USER, PASSWORD)), "")).await;
    assert_eq!(client.answer().await.status, 403);
    assert_eq!(rig.exchange.sent(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_request_too_many_of_one_user_waits_for_nobody_else() {
    let rig = Rig::new();
    let mut held = Vec::new();
    for _ in 0..2 {
        rig.exchange.then_do(|_| std::future::pending());
        let mut client = rig.connect();
        client.write(post(USER, PASSWORD, "<x/>")).await;
        held.push(client);
    }
    while rig.exchange.sent() < 2 {
        tokio::task::yield_now().await;
    }
    let mut client = rig.connect();
    let answer = client.soap("<x/>").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    client.write(post("bob@contoso.com", PASSWORD, "<x/>")).await;
    assert_eq!(client.answer().await.status, 200);
    drop(held.pop().unwrap().io);
    while rig.seats.taken() > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.soap("<x/>").await.status, 200);
}
