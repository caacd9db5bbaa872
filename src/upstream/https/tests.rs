//! The client over streams in memory, with upstream played by the test.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::*;
use crate::secret::Encrypted;

const ORIGIN: Authority = Authority::from_static("outlook.office365.com");

fn post(body: BoxBody) -> Request<BoxBody> {
    Request::post("/EWS/Exchange.asmx").header(HOST, ORIGIN.as_str()).body(body).unwrap()
}

/// A body of unknown length, whose pieces come by and by.
struct Pieces(mpsc::Receiver<&'static str>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let piece = self.get_mut().0.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))))
    }
}

/// A connection, and its other end.
async fn line() -> (Line, DuplexStream) {
    let (near, far) = tokio::io::duplex(64 << 10);
    (
        Line::open(Box::new(near), Encrypted::pretend(), HeaderValue::from_static("localhost"))
            .await
            .unwrap(),
        far,
    )
}

/// Reads until this has come.
async fn hears(far: &mut DuplexStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        assert_ne!(far.read_buf(&mut all).await.unwrap(), 0, "closed behind {all:?}");
    }
    String::from_utf8(all).unwrap()
}

async fn ask(
    line: &mut Line,
    far: &mut DuplexStream,
    body: &'static str,
    answer: &str,
) -> Response<Incoming> {
    let upstream = async {
        hears(far, body).await;
        far.write_all(answer.as_bytes()).await.unwrap();
    };
    let (response, ()) = tokio::join!(line.exchange(post(text(body))), upstream);
    response.unwrap_or_else(|_| panic!("no answer"))
}

fn answer(response: Response<Incoming>, line: Line, idle: &Arc<Idle>) -> Answer {
    Answer::new(response.into_body(), line, ORIGIN, Arc::clone(idle))
}

#[tokio::test]
async fn a_connection_is_used_again_once_its_answer_was_read() {
    for reply in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<b/>",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n<b/>\r\n0\r\n\r\n",
    ] {
        let idle = Arc::new(Idle::default());
        let (mut line, mut far) = line().await;
        for _ in 0..3 {
            let response = ask(&mut line, &mut far, "<a/>", reply).await;
            let answer = answer(response, line, &idle);
            assert!(idle.take(&ORIGIN).is_none(), "lent out twice");
            assert_eq!(answer.collect().await.unwrap().to_bytes(), "<b/>");
            assert!(idle.take(&Authority::from_static("elsewhere.example")).is_none());
            line = idle.take(&ORIGIN).unwrap();
        }
    }
}

#[tokio::test]
async fn an_answer_without_a_body_gives_its_connection_back_at_once() {
    let idle = Arc::new(Idle::default());
    let (mut line, mut far) = line().await;
    let response = ask(&mut line, &mut far, "<a/>", "HTTP/1.1 204 No Content\r\n\r\n").await;
    let _answer = answer(response, line, &idle);
    assert!(idle.take(&ORIGIN).is_some());
}

#[tokio::test]
async fn what_upstream_has_closed_is_not_used_again() {
    let idle = Arc::new(Idle::default());
    let (mut line, mut far) = line().await;
    let response = ask(&mut line, &mut far, "<a/>", "HTTP/1.1 204 No Content\r\n\r\n").await;
    let _answer = answer(response, line, &idle);
    drop(far);
    assert!(idle.take(&ORIGIN).is_none());

    let (mut line, mut far) = self::line().await;
    let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n<b/>";
    let response = ask(&mut line, &mut far, "<a/>", last).await;
    assert_eq!(answer(response, line, &idle).collect().await.unwrap().to_bytes(), "<b/>");
    assert!(idle.take(&ORIGIN).is_none());
}

#[tokio::test]
async fn a_request_that_met_a_closed_connection_comes_back_unsent() {
    let (mut line, far) = line().await;
    drop(far);
    // as it is when upstream closes between the look and the request
    line.work(&mut Context::from_waker(std::task::Waker::noop()));
    let Err(Unanswered::NotSent(request)) = line.exchange(post(text("<a/>"))).await else {
        panic!("it went out, or was answered");
    };
    assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "<a/>");
}

#[tokio::test]
async fn what_breaks_behind_the_request_is_not_sent_again() {
    let (mut line, mut far) = line().await;
    let upstream = async move {
        hears(&mut far, "<a/>").await;
    };
    let (response, ()) = tokio::join!(line.exchange(post(text("<a/>"))), upstream);
    assert!(matches!(response, Err(Unanswered::Broken(_))));
}

#[tokio::test]
async fn an_answer_that_is_dropped_closes_its_connection() {
    let idle = Arc::new(Idle::default());
    let (mut line, mut far) = line().await;
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<b";
    let response = ask(&mut line, &mut far, "<a/>", begun).await;
    drop(answer(response, line, &idle));
    assert!(idle.take(&ORIGIN).is_none());
    assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
}

/// Upstream answers early, and neither side waits for the other: the answer is not read until the request is out.
#[tokio::test]
async fn the_rest_of_a_request_goes_out_though_nobody_reads_the_answer() {
    let idle = Arc::new(Idle::default());
    let (mut line, mut far) = line().await;
    let (pieces, rest) = mpsc::channel::<&'static str>(1);
    pieces.send("begun").await.unwrap();
    let upstream = async {
        hears(&mut far, "begun\r\n").await;
        far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<b/>").await.unwrap();
    };
    let (response, ()) = tokio::join!(line.exchange(post(Pieces(rest).boxed_unsync())), upstream);
    let answer = answer(response.unwrap_or_else(|_| panic!("no answer")), line, &idle);
    pieces.send("more").await.unwrap();
    hears(&mut far, "4\r\nmore\r\n").await;
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "<b/>");
    drop(pieces);
    hears(&mut far, "0\r\n\r\n").await;
    assert!(idle.take(&ORIGIN).is_none());
}

#[tokio::test(start_paused = true)]
async fn connections_that_wait_too_long_or_are_too_many_are_closed() {
    let idle = Arc::new(Idle::default());
    let mut ends = Vec::new();
    for _ in 0..=64 {
        let (line, far) = line().await;
        idle.keep(ORIGIN, line);
        ends.push(far);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut ends = ends.into_iter();
    let mut closed = |many: usize| ends.by_ref().take(many).collect::<Vec<_>>();
    for mut far in closed(1) {
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0, "one too many");
    }
    let second = closed(1);
    for mut far in second {
        let waited = tokio::time::timeout(Duration::from_secs(89), far.read(&mut [0; 8])).await;
        assert!(waited.is_err(), "closed ahead of its time");
        tokio::time::timeout(Duration::from_secs(1), far.read(&mut [0; 8])).await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(idle.take(&ORIGIN).is_none());
    for mut far in closed(63) {
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
