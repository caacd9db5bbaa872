//! What arrives as bytes: framing, hosts, paths, `Expect`, slow and long bodies, the end of a connection.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{PASSWORD, Rig, USER, basic, post, post_with};
use crate::ews::Ended;

#[tokio::test(start_paused = true)]
async fn framing_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed() {
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: +3",
        "Content-Length: 0x3",
        "Content-Length: 3, 3",
        "Content-Length : 3",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length: 3\r\nX-Bare: a\rb",
        "Content-Length: 3\r\nX-Nul: a\0b",
        "Content-Length: 3\r\n folded: x",
    ] {
        let rig = Rig::new();
        let mut client = rig.connect();
        let auth = basic(USER, PASSWORD);
        let smuggled = post(USER, PASSWORD, "");
        client
            .write(format!(
                "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\n{auth}{fields}\r\n\r\n0\r\n\r\n{smuggled}"
            ))
            .await;
        assert_eq!(client.answer().await.status, 400, "{fields:?}");
        assert!(client.is_closed().await, "{fields:?}");
        assert_eq!(rig.exchange.sent(), 0, "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn http_1_0_with_a_transfer_encoding_is_refused() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.write("POST /EWS/x HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    let mut all = String::new();
    client.io.read_to_string(&mut all).await.unwrap();
    assert!(all.contains(" 400 "), "{all}");
    assert_eq!(rig.exchange.sent(), 0);
}

#[tokio::test(start_paused = true)]
async fn exactly_one_host_is_named() {
    let auth = basic(USER, PASSWORD);
    for hosts in ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nHost: b\r\n"] {
        let rig = Rig::new();
        let mut client = rig.connect();
        client.write(format!("GET /EWS/Services.wsdl HTTP/1.1\r\n{hosts}{auth}\r\n")).await;
        assert_eq!(client.answer().await.status, 400, "{hosts:?}");
        assert!(client.is_closed().await);
        assert_eq!(rig.exchange.sent(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn only_ews_is_there_and_nothing_in_a_request_chooses_the_target() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic(USER, PASSWORD);
    for target in [
        "/",
        "/owa/",
        "/EWS",
        "/autodiscover/autodiscover.xmlx",
        "/Microsoft-Server-ActiveSync",
        "/EWS/../owa/",
        "/EWS/%2e%2e/owa/",
        "//evil.example/EWS/x",
        "/EWS//x",
        "/EWS/..\\owa",
        "*",
    ] {
        client.write(format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n{auth}\r\n")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (404, None), "{target}");
        assert!(!answer.body.contains("evil"));
    }
    assert_eq!(rig.exchange.sent(), 0);
    client
        .write(format!("GET http://evil.example/EWS/x?q=1 HTTP/1.1\r\nHost: evil.example\r\n{auth}\r\n"))
        .await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.exchange.seen()[0].uri, "https://outlook.office365.com/EWS/x?q=1");
    client.write(format!("CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n{auth}\r\n")).await;
    assert_eq!(client.answer().await.status, 404);
    assert_eq!(rig.exchange.sent(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_100_continue_is_challenged_without_it() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client
        .write("POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_100_continue_gets_it_once_there_is_a_token() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client
        .write(format!(
            "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\n{}Expect: 100-Continue\r\nContent-Length: 9\r\n\r\n",
            basic(USER, PASSWORD)
        ))
        .await;
    assert_eq!(client.head().await.status, 100);
    client.write("<nine-oct").await;
    assert_eq!(client.answer().await.status, 200);
    let seen = &rig.exchange.seen()[0];
    assert_eq!(seen.body, "<nine-oct");
    assert!(!seen.headers.contains_key("expect"));
}

#[tokio::test(start_paused = true)]
async fn an_unwanted_body_is_read_to_its_end_only_within_bounds() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.write("POST /EWS/x HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nslow").await;
    let begun = crate::clock::now();
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert!(client.is_closed().await);

    let MailClientHalves { mut reader, writer } = halves(rig.connect());
    let writing = tokio::spawn(endless_upload(writer));
    let mut first = [0; 12];
    reader.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 401");
    let sent = writing.await.unwrap();
    assert!((1 << 20..3 << 20).contains(&sent), "{sent}");
}

struct MailClientHalves {
    reader: tokio::io::ReadHalf<tokio::io::DuplexStream>,
    writer: tokio::io::WriteHalf<tokio::io::DuplexStream>,
}

fn halves(client: super::rig::MailClient) -> MailClientHalves {
    let (reader, writer) = tokio::io::split(client.io);
    MailClientHalves { reader, writer }
}

/// Writes until nobody takes it any more; gives the octets that were taken.
async fn endless_upload(mut writer: tokio::io::WriteHalf<tokio::io::DuplexStream>) -> usize {
    writer.write_all(b"POST /EWS/x HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999\r\n\r\n").await.unwrap();
    let block = vec![b'x'; 16 << 10];
    let mut sent = 0;
    while writer.write_all(&block).await.is_ok() {
        sent += block.len();
    }
    sent
}

#[tokio::test(start_paused = true)]
async fn a_head_is_bounded_in_size_and_in_time() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let long = format!("GET /EWS/x HTTP/1.1\r\nHost: h\r\nCookie: {}", "x".repeat(80 << 10));
    // it may hang up before it has taken all of it
    let _refused = client.io.write_all(long.as_bytes()).await;
    assert_eq!(client.answer().await.status, 431);

    // hyper's own bound is ours: 100 fields, `Host` among them
    for (fields, status) in [(99, 401), (100, 431)] {
        let mut client = rig.connect();
        let fields = "X-Field: x\r\n".repeat(fields);
        client.write(&format!("GET /EWS/x HTTP/1.1\r\nHost: h\r\n{fields}\r\n")).await;
        assert_eq!(client.answer().await.status, status);
    }

    let mut client = rig.connect();
    client.write("GET /EWS/x HTTP/1.1\r\nHost: ").await;
    let begun = crate::clock::now();
    assert!(client.is_closed().await);
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert_eq!(client.session.await.unwrap().ended, Ended::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_the_request_under_way_finish_and_reads_no_other() {
    let rig = Rig::new();
    let (answer, told) = tokio::sync::oneshot::channel();
    rig.exchange.then_do(|request| async move {
        request.into_body().collect().await.unwrap();
        Ok(told.await.unwrap())
    });
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<x/>")).await;
    while rig.exchange.sent() < 1 {
        tokio::task::yield_now().await;
    }
    rig.cancel.cancel();
    tokio::time::sleep(Duration::from_secs(10)).await;
    answer.send(super::rig::response(200, &[], "late")).unwrap();
    let last = client.answer().await;
    assert_eq!((last.status, last.body.as_str()), (200, "late"));
    assert!(client.is_closed().await);
    let session = client.session.await.unwrap();
    assert_eq!((session.ended, session.requests, session.up, session.down), (Ended::Closed, 1, 4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_no_longer_than_it_may() {
    let rig = Rig::new();
    rig.exchange.then_do(|_| std::future::pending());
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<x/>")).await;
    while rig.exchange.sent() < 1 {
        tokio::task::yield_now().await;
    }
    let begun = crate::clock::now();
    rig.cancel.cancel();
    assert!(client.is_closed().await);
    assert_eq!(begun.elapsed().as_secs(), 20);
    assert_eq!(client.session.await.unwrap().ended, Ended::Stopped);
    let idle = rig.connect();
    assert_eq!(idle.session.await.unwrap().ended, Ended::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_request_on_which_nothing_moves_ends_at_the_idle_limit() {
    let rig = Rig::new();
    rig.exchange.then_do(|_| std::future::pending());
    let mut client = rig.connect();
    client.write(post_with(&basic(USER, PASSWORD), "<x/>")).await;
    let begun = crate::clock::now();
    let session = (&mut client.session).await.unwrap();
    assert_eq!(session.ended, Ended::Idle);
    assert_eq!(begun.elapsed().as_secs(), 1800);
}
