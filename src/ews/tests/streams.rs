//! Long bodies, slow readers, streams that stay open, and mail clients that leave.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tracing_subscriber::fmt::MakeWriter;

use super::rig::{Made, PASSWORD, Rig, USER, basic, post, response};

const LONG: usize = 100 << 20;

/// What may be under way between a sender and a reader that does not read: our buffer, the pipe,
/// its reader's buffer, two frames.
const IN_FLIGHT: usize = 192 << 10;

#[tokio::test]
async fn a_hundred_mebibytes_come_down_without_piling_up() {
    let rig = Rig::new();
    let made = Arc::new(AtomicUsize::new(0));
    let making = Arc::clone(&made);
    rig.exchange.then_do(|_| async move {
        let body = Made(move |_: &mut std::task::Context<'_>| {
            if making.load(Ordering::Relaxed) >= LONG {
                return Poll::Ready(None);
            }
            making.fetch_add(16 << 10, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Bytes::from_static(&[b'd'; 16 << 10]))))
        });
        Ok(response(200, &[("content-length", &LONG.to_string())], "").map(|_| body.boxed_unsync()))
    });
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<x/>")).await;
    let head = client.head().await;
    assert_eq!(head.header("content-length"), Some("104857600"));
    let mut read = 0;
    let mut most = 0;
    let mut bytes = vec![0; 4 << 10];
    while let Ok(count @ 1..) = client.io.read(&mut bytes).await {
        read += count;
        most = most.max(made.load(Ordering::Relaxed).saturating_sub(read));
        tokio::task::yield_now().await;
        if read >= LONG - IN_FLIGHT {
            break;
        }
    }
    assert!(read >= LONG - IN_FLIGHT, "{read}");
    assert!(most <= IN_FLIGHT, "{most} octets were under way");
}

#[tokio::test]
async fn a_hundred_mebibytes_go_up_without_piling_up() {
    let rig = Rig::new();
    let written = Arc::new(AtomicUsize::new(0));
    let watching = Arc::clone(&written);
    let most = Arc::new(AtomicUsize::new(0));
    let noting = Arc::clone(&most);
    rig.exchange.then_do(|request| async move {
        let mut body = request.into_body();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().into_data().unwrap().len();
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            noting.fetch_max(watching.load(Ordering::Relaxed).saturating_sub(read), Ordering::Relaxed);
        }
        Ok(response(200, &[], &read.to_string()))
    });
    let mut client = rig.connect();
    let head = format!(
        "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: h\r\n{}Content-Length: {LONG}\r\n\r\n",
        basic(USER, PASSWORD)
    );
    client.write(head).await;
    let block = vec![b'u'; 16 << 10];
    for _ in 0..LONG / block.len() {
        client.io.write_all(&block).await.unwrap();
        written.fetch_add(block.len(), Ordering::Relaxed);
    }
    assert_eq!(client.answer().await.body, LONG.to_string());
    let most = most.load(Ordering::Relaxed);
    assert!(most <= IN_FLIGHT, "{most} octets were under way");
}

/// A body that a channel feeds, and that tells when it is dropped.
fn stream() -> (mpsc::Sender<&'static str>, Arc<AtomicBool>, crate::ews::desk::BoxBody) {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (feed, mut events) = mpsc::channel(8);
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = Flag(Arc::clone(&dropped));
    let body = Made(move |cx: &mut std::task::Context<'_>| {
        let _kept = &flag;
        events.poll_recv(cx).map(|event| event.map(|event: &str| Ok(Bytes::from_static(event.as_bytes()))))
    });
    (feed, dropped, body.boxed_unsync())
}

#[tokio::test(start_paused = true)]
async fn every_event_of_a_stream_reaches_the_mail_client_at_once() {
    let mut rig = Rig::new();
    rig.limits.idle_timeout = Duration::from_secs(50);
    let (feed, _, body) = stream();
    rig.exchange.then_do(|_| async { Ok(response(200, &[], "").map(|_| body)) });
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<GetStreamingEvents/>")).await;
    assert_eq!(client.head().await.status, 200);
    let begun = crate::clock::now();
    for event in ["<one/>", "<two/>", "<three/>"] {
        feed.send(event).await.unwrap();
        assert_eq!(client.chunk().await, event);
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // a heartbeat every 45 s keeps it open far beyond `idle-timeout` and every other limit
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(45)).await;
        feed.send("<beat/>").await.unwrap();
        assert_eq!(client.chunk().await, "<beat/>");
    }
    drop(feed);
    assert_eq!(client.chunk().await, "");
    assert_eq!(client.soap("<x/>").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_mail_client_that_leaves_takes_its_stream_with_it_at_once() {
    let rig = Rig::new();
    let (_feed, dropped, body) = stream();
    rig.exchange.then_do(|_| async { Ok(response(200, &[], "").map(|_| body)) });
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<GetStreamingEvents/>")).await;
    assert_eq!(client.head().await.status, 200);
    assert!(!dropped.load(Ordering::SeqCst));
    let begun = crate::clock::now();
    drop(client.io);
    client.session.await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(rig.seats.taken(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_mail_client_that_leaves_before_the_answer_ends_the_request_at_once() {
    let rig = Rig::new();
    let (feed, dropped, body) = stream();
    rig.exchange.then_do(|_| async move {
        let _held = (feed, body);
        std::future::pending().await
    });
    let mut client = rig.connect();
    client.write(post(USER, PASSWORD, "<x/>")).await;
    while rig.exchange.sent() < 1 {
        tokio::task::yield_now().await;
    }
    let begun = crate::clock::now();
    drop(client.io);
    client.session.await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_slow_upload_is_not_idle() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let auth = basic(USER, PASSWORD);
    client.write(format!("POST /EWS/x HTTP/1.1\r\nHost: h\r\n{auth}Content-Length: 6\r\n\r\n")).await;
    for _ in 0..6 {
        tokio::time::sleep(rig.limits.idle_timeout / 2).await;
        client.write("x").await;
    }
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.exchange.seen()[0].body, "xxxxxx");
}

/// Log lines, kept for the test.
#[derive(Clone, Debug, Default)]
pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// Keeps this thread's log lines until the guard goes.
    pub(super) fn start(&self) -> (tracing::Dispatch, tracing::subscriber::DefaultGuard) {
        let subscriber = || {
            tracing_subscriber::fmt()
                .with_writer(self.clone())
                .with_ansi(false)
                .with_max_level(tracing::Level::INFO)
                .finish()
        };
        // With one dispatcher only, tracing asks whichever thread meets a log line first whether anybody
        // listens, and tests on other threads would say no for all. The second one is there to be counted.
        let counted = tracing::Dispatch::new(subscriber());
        (counted, tracing::subscriber::set_default(subscriber()))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Captured {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
