//! What goes upstream, what comes back, and what a refused token does.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::ext::ReasonPhrase;

use super::rig::{Made, PASSWORD, Rig, USER, basic, post, post_with, response, story};
use crate::explain::Refusal;

#[tokio::test(start_paused = true)]
async fn a_request_is_rebuilt_with_nothing_of_the_password_in_it() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let lines = format!(
        "{}User-Agent: ExchangeServicesClient/15\r\nCookie: exchangecookie=1\r\nConnection: keep-alive, X-Mine\r\n\
         X-Mine: 1\r\nX-Forwarded-For: 1.2.3.4\r\nX-AnchorMailbox: shared@contoso.com\r\nSOAPAction: \"x\"\r\n",
        basic(USER, PASSWORD)
    );
    client.write(post_with(&lines, "<soap/>")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "<ok/>"));
    let seen = &rig.exchange.seen()[0];
    assert_eq!((seen.body.as_ref(), seen.token.as_str()), (&b"<soap/>"[..], "token-1"));
    assert_eq!(seen.method, http::Method::POST);
    let mut fields: Vec<_> =
        seen.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "content-length: 7",
            "content-type: text/xml",
            "cookie: exchangecookie=1",
            "soapaction: \"x\"",
            "user-agent: ExchangeServicesClient/15",
            "x-anchormailbox: shared@contoso.com",
        ]
    );
    let metrics = rig.metrics.encode();
    for line in [
        r#"mailkey_logins_total{listener="ews",token="fetched"} 1"#,
        r#"mailkey_relayed_bytes_total{listener="ews",direction="up"} 7"#,
        r#"mailkey_relayed_bytes_total{listener="ews",direction="down"} 5"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_dropped_and_the_request_sent_once_more_with_a_fresh_one() {
    let rig = Rig::new();
    let challenge =
        [("www-authenticate", "Bearer client_id=\"x\""), ("x-ms-diagnostics", "2000008;reason=\"y\"")];
    rig.exchange.then(response(401, &challenge, "go away"));
    let mut client = rig.connect();
    let answer = client.soap("<send-mail/>").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "<ok/>"));
    assert_eq!(answer.header("www-authenticate"), None);
    let seen = rig.exchange.seen();
    assert_eq!((seen.len(), seen[1].body.as_ref()), (2, &b"<send-mail/>"[..]));
    assert_eq!((seen[0].token.as_str(), seen[1].token.as_str()), ("token-1", "token-2"));
    assert_eq!(seen[1].headers, seen[0].headers);
    assert_eq!(rig.broker.dropped(), ["token-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_chunked_request_is_replayed_with_its_length() {
    let rig = Rig::new();
    rig.exchange.then(response(401, &[], ""));
    let mut client = rig.connect();
    client
        .write(format!(
            "POST /EWS/x HTTP/1.1\r\nHost: h\r\n{}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            basic(USER, PASSWORD)
        ))
        .await;
    assert_eq!(client.answer().await.status, 200);
    let seen = rig.exchange.seen();
    assert!(!seen[0].headers.contains_key("content-length"));
    assert_eq!(
        (seen[1].headers["content-length"].as_bytes(), seen[1].body.as_ref()),
        (&b"5"[..], &b"abcde"[..])
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_refused_before_the_body_was_read_is_replaced_all_the_same() {
    let rig = Rig::new();
    rig.exchange.then_do(|_| async { Ok(response(401, &[], "")) });
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<early/>")).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.exchange.seen()[1].body, "<early/>");
}

#[tokio::test(start_paused = true)]
async fn a_second_refusal_is_final_and_its_challenge_stays_here() {
    let rig = Rig::new();
    let why =
        [("www-authenticate", "Bearer"), ("x-ms-diagnostics", "2000003;error_category=\"invalid_resource\"")];
    rig.exchange.then(response(401, &why, "a"));
    rig.exchange.then(response(401, &why, "b"));
    let mut client = rig.connect();
    let answer = client.soap("<x/>").await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.body, "the application is not set up for this login; see the proxy's log\n");
    for name in ["www-authenticate", "x-ms-diagnostics", "ms-diagnostics-public"] {
        assert_eq!(answer.header(name), None);
    }
    assert_eq!(rig.exchange.sent(), 2);
    assert_eq!(rig.broker.dropped(), ["token-1", "token-2"]);
    assert_eq!(client.soap("<x/>").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_long_request_is_not_replayed_but_asked_for_again() {
    let rig = Rig::new();
    rig.exchange.then(response(401, &[], ""));
    let mut client = rig.connect();
    let answer = client.soap(&"x".repeat((256 << 10) + 1)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!((rig.exchange.sent(), rig.broker.dropped().len()), (1, 1));
    rig.exchange.then(response(401, &[], ""));
    assert_eq!(client.soap(&"x".repeat(256 << 10)).await.status, 200);
    assert_eq!(rig.exchange.sent(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_broke_after_the_body_went_out_is_never_sent_again() {
    let rig = Rig::new();
    rig.exchange.then_do(|request| async {
        request.into_body().collect().await.unwrap();
        Err(story(Refusal::Unavailable { retry_after: None }))
    });
    let mut client = rig.connect();
    let answer = client.soap("<send-mail/>").await;
    assert_eq!((answer.status, answer.header("retry-after")), (502, None));
    assert_eq!(rig.exchange.sent(), 1);
    rig.exchange.then_do(|_| async { Err(story(Refusal::Unavailable { retry_after: None })) });
    let answer = client.soap("<send-mail/>").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("30")));
    assert_eq!(rig.exchange.sent(), 2);
}

#[tokio::test(start_paused = true)]
async fn cookies_come_back_one_by_one_and_fit_for_the_listener() {
    let cookies = [
        ("set-cookie", "exchangecookie=1; path=/; Secure; HttpOnly"),
        ("set-cookie", "X-BackEndCookie=2; domain=outlook.office365.com; path=/EWS; secure"),
    ];
    let plain = Rig::new();
    plain.exchange.then(response(200, &cookies, "x"));
    let answer = plain.connect().soap("<x/>").await;
    assert_eq!(
        answer.all("set-cookie"),
        ["exchangecookie=1; path=/; HttpOnly", "X-BackEndCookie=2; path=/EWS",]
    );
    let encrypted = Rig::new().with_tls();
    encrypted.exchange.then(response(200, &cookies, "x"));
    let answer = encrypted.connect().soap("<x/>").await;
    assert_eq!(
        answer.all("set-cookie"),
        ["exchangecookie=1; path=/; Secure; HttpOnly", "X-BackEndCookie=2; path=/EWS; secure",]
    );
}

#[tokio::test(start_paused = true)]
async fn too_many_requests_becomes_what_ews_clients_know() {
    let rig = Rig::new();
    rig.exchange.then(response(429, &[("retry-after", "17")], "slow down"));
    let answer = rig.connect().soap("<x/>").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("17")));
    assert_eq!(answer.reason, "Service Unavailable");
}

#[tokio::test(start_paused = true)]
async fn a_reason_phrase_of_exchanges_own_is_kept() {
    let rig = Rig::new();
    let mut locked = response(456, &[], "x");
    locked.extensions_mut().insert(ReasonPhrase::from_static(b"Account locked; see https://unlock.example"));
    rig.exchange.then(locked);
    let answer = rig.connect().soap("<x/>").await;
    assert_eq!((answer.status, answer.reason.as_str()), (456, "Account locked; see https://unlock.example"));
}

#[tokio::test(start_paused = true)]
async fn redirects_lead_to_our_host_or_nowhere() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let error_page = "/ews/genericerrorpage.htm?aspxerrorpath=/ews/exchange.asmx";
    for (status, location, expected) in [
        (302, error_page, (302, Some(error_page))),
        (307, "https://outlook.office365.com/EWS/y", (307, Some("/EWS/y"))),
        (301, "https://evil.example/EWS/y", (502, None)),
        (308, "//evil.example/", (502, None)),
        (201, "https://evil.example/EWS/y", (201, None)),
    ] {
        rig.exchange.then(response(status, &[("location", location)], ""));
        let answer = client.soap("<x/>").await;
        assert_eq!((answer.status, answer.header("location")), expected, "{location}");
        assert!(!format!("{answer:?}").contains("evil"));
    }
    assert!(rig.metrics.encode().contains(r#"code="EWS-REDIRECT"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn a_wordless_403_is_passed_on_and_named_in_the_metrics() {
    let rig = Rig::new();
    rig.exchange.then(response(403, &[("restrict-access-confirm", "1")], ""));
    rig.exchange.then(response(403, &[], "because"));
    let mut client = rig.connect();
    let answer = client.soap("<x/>").await;
    assert_eq!((answer.status, answer.body.as_str()), (403, ""));
    assert_eq!(answer.header("restrict-access-confirm"), Some("1"));
    assert_eq!(client.soap("<x/>").await.body, "because");
    let metrics = rig.metrics.encode();
    assert!(metrics.contains(r#"code="EWS-403"} 1"#) && metrics.contains(r#"code="EWS-FORBIDDEN"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn faults_and_their_headers_pass_unchanged() {
    let rig = Rig::new();
    let headers = [
        ("x-caserrorcode", "E"),
        ("request-id", "r"),
        ("content-encoding", "gzip"),
        ("access-control-allow-origin", "*"),
    ];
    rig.exchange.then(response(500, &headers, "<fault/>"));
    let answer = rig.connect().soap("<x/>").await;
    assert_eq!((answer.status, answer.body.as_str()), (500, "<fault/>"));
    assert_eq!(answer.header("x-caserrorcode"), Some("E"));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_not_made_to_look_whole() {
    let rig = Rig::new();
    let (feed, mut events) = tokio::sync::mpsc::channel::<Result<&str, &str>>(1);
    rig.exchange.then_do(|_| async {
        let body = Made(move |cx: &mut std::task::Context<'_>| {
            events.poll_recv(cx).map(|part| part.map(|part| part.map(Bytes::from).map_err(Into::into)))
        });
        Ok(response(200, &[], "").map(|_| body.boxed_unsync()))
    });
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<x/>")).await;
    assert_eq!(client.head().await.status, 200);
    feed.send(Ok("half")).await.unwrap();
    assert_eq!(client.chunk().await, "half");
    feed.send(Err("gone")).await.unwrap();
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_finished_request_is_one_line_without_secrets() {
    let log = super::streams::Captured::default();
    let _listening = log.start();
    let rig = Rig::new();
    rig.exchange.then(response(401, &[("x-ms-diagnostics", "2000008;reason=\"expired\"")], ""));
    let mut client = rig.connect();
    assert_eq!(client.soap("<x/>").await.status, 200);
    client.write(post(USER, "wrong-secret", "<x/>")).await;
    assert_eq!(client.answer().await.status, 401);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let text = log.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("2000008"));
    let done = lines[1];
    for part in [
        "INFO",
        "peer=127.0.0.1:50000",
        "user=alice@contoso.com",
        "path=/EWS/Exchange.asmx",
        "status=200",
        "token=\"cached\"",
        "up=4",
        "down=5",
        "ended=\"done\"",
    ] {
        assert!(done.contains(part), "{part} is not in {done}");
    }
    for part in ["WARN", "code=TEST-CODE", "remedy=carry on", "status=401"] {
        assert!(lines[2].contains(part), "{part} is not in {}", lines[2]);
    }
    for secret in ["pa:ss", "wrong-secret", "token-1", "token-2", "Basic "] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}
