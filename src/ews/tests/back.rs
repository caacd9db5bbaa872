//! The same with hyper's own client at the back: what Exchange reads off the wire, octet by octet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::rig::{PASSWORD, Rig, USER, basic, post};
use crate::ews::desk::{BoxBody, BoxFuture, Sender};
use crate::explain::Explanation;
use crate::secret::AccessToken;

/// Gives every request a connection of its own.
#[derive(Default)]
struct Lines(Mutex<VecDeque<DuplexStream>>);

impl Sender for Lines {
    fn send(
        &self,
        request: Request<BoxBody>,
        _token: AccessToken,
    ) -> BoxFuture<'_, Result<Response<BoxBody>, Explanation>> {
        Box::pin(async move {
            let line = self.0.lock().unwrap().pop_front().expect("one more connection");
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake::<_, BoxBody>(TokioIo::new(line)).await.unwrap();
            tokio::spawn(connection);
            let response = sender.send_request(request).await.unwrap();
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        })
    }
}

fn rig(connections: usize) -> (Rig, Vec<DuplexStream>) {
    let mut rig = Rig::new();
    let lines = Lines::default();
    let mut ends = Vec::new();
    for _ in 0..connections {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        lines.0.lock().unwrap().push_back(ours);
        ends.push(theirs);
    }
    rig.sender = Some(Arc::new(lines));
    (rig, ends)
}

/// Reads until the text is there.
async fn read_until(end: &mut DuplexStream, text: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let mut bytes = [0; 4096];
        let count = end.read(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "closed after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&bytes[..count]);
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_known_length_goes_up_as_a_length_and_a_chunked_body_as_chunks() {
    let (rig, mut ends) = rig(3);
    let mut client = rig.connect();
    for (framing, expected, last) in [
        ("Content-Length: 4\r\n\r\n<x/>", "content-length: 4\r\n", "<x/>"),
        ("Content-Length: 0\r\n\r\n", "content-length: 0\r\n", "\r\n\r\n"),
        (
            "Transfer-Encoding: chunked\r\n\r\n4\r\n<x/>\r\n0\r\nX-T: 1\r\n\r\n",
            "transfer-encoding: chunked\r\n",
            "0\r\n\r\n",
        ),
    ] {
        let auth = basic(USER, PASSWORD);
        client.write(format!("POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\n{auth}{framing}")).await;
        let mut end = ends.remove(0);
        let request = read_until(&mut end, last).await;
        assert_eq!(request.to_lowercase().matches(expected).count(), 1, "{request}");
        assert_eq!(request.contains("content-length"), !expected.starts_with("transfer"), "{request}");
        assert!(!request.to_lowercase().contains("basic") && !request.contains("X-T"), "{request}");
        end.write_all(b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            .await
            .unwrap();
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.reason.as_str(), answer.body.as_str()), (200, "Fine", "ok"));
        assert_eq!(answer.header("connection"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_refused_while_the_body_is_still_coming_is_replaced_and_the_whole_body_sent() {
    let (rig, mut ends) = rig(2);
    let (mut first, mut second) = (ends.remove(0), ends.remove(0));
    let mut client = rig.connect();
    let auth = basic(USER, PASSWORD);
    client.write(format!("POST /EWS/x HTTP/1.1\r\nHost: h\r\n{auth}Content-Length: 8\r\n\r\nhalf")).await;
    read_until(&mut first, "half").await;
    first
        .write_all(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: Bearer\r\n\r\n")
        .await
        .unwrap();
    tokio::task::yield_now().await;
    client.write("rest").await;
    let request = read_until(&mut second, "halfrest").await;
    assert!(request.contains("content-length: 8\r\n"));
    second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_mail_client_that_leaves_closes_the_connection_to_exchange_at_once() {
    let (rig, mut ends) = rig(1);
    let mut end = ends.remove(0);
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<x/>")).await;
    read_until(&mut end, "<x/>").await;
    end.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbeat\r\n").await.unwrap();
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.chunk().await, "beat");
    let begun = crate::clock::now();
    drop(client.io);
    assert_eq!(end.read(&mut [0; 16]).await.unwrap(), 0);
    assert_eq!(begun.elapsed().as_secs(), 0);
}
