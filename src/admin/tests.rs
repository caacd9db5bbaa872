//! The admin pages over a real socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::status::{
    AccountStatus, FailureStatus, ListenerStatus, Readiness, ReloadStatus, Status, StatusSource, TokenStatus,
};
use super::{AdminDesk, serve};
use crate::telemetry::metrics::{ListenerLabel, Metrics};

/// A proxy in the middle of its life.
pub(super) fn status() -> Status {
    let time = |text: &str| text.parse().unwrap();
    Status {
        version: "0.1.0".to_owned(),
        now: time("2026-11-24T12:00:00Z"),
        started: time("2026-11-22T08:59:00Z"),
        listeners: vec![ListenerStatus {
            name: "imap".to_owned(),
            protocol: "imap".to_owned(),
            addresses: vec!["127.0.0.1:1143".to_owned()],
            upstream: "outlook.office365.com:993".to_owned(),
            note: None,
            sessions: 3,
            trouble: Some("Too many open files".to_owned()),
        }],
        accounts: vec![AccountStatus {
            user: "alice@contoso.com".to_owned(),
            application: "11111111-2222-3333-4444-555555555555".to_owned(),
            grant: "password".to_owned(),
            token: Some(TokenStatus {
                issued: time("2026-11-24T11:50:00Z"),
                expires: time("2026-11-24T12:50:00Z"),
            }),
            last_failure: Some(FailureStatus {
                code: "AADSTS50076".to_owned(),
                what: "the account needs multi-factor authentication".to_owned(),
                remedy: "exempt the account".to_owned(),
                when: time("2026-11-24T11:00:00Z"),
            }),
        }],
        warnings: vec!["the certificate `server.pem` ends in 9 days".to_owned()],
        history: (0..60).map(|minute| (minute % 5, u32::from(minute == 30))).collect(),
        last_reload: Some(ReloadStatus {
            when: time("2026-11-24T11:30:00Z"),
            is_taken: false,
            what: "proxy.yaml:3:1: unknown key `lisen`".to_owned(),
        }),
        recordings: 2,
        logins: 41,
        refusals: 7,
        outbound_proxy: Some("http://proxy.contoso.com:3128".to_owned()),
    }
}

#[derive(Default)]
struct Source {
    is_broken: AtomicBool,
}

impl StatusSource for Source {
    fn status(&self) -> Status {
        status()
    }

    fn recordings(&self) -> String {
        "# one\n".to_owned()
    }

    fn readiness(&self) -> Readiness {
        if self.is_broken.load(Ordering::Relaxed) {
            Readiness::NotReady("no way to a token works".to_owned())
        } else {
            Readiness::Ready
        }
    }
}

struct Rig {
    source: Arc<Source>,
    address: std::net::SocketAddr,
    cancel: CancellationToken,
    server: JoinHandle<()>,
}

impl Rig {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let source = Arc::new(Source::default());
        let metrics = Arc::new(Metrics::default());
        metrics.connections.get_or_create(&ListenerLabel { listener: "imap".to_owned() }).inc();
        let desk = AdminDesk {
            source: Arc::clone(&source) as Arc<dyn StatusSource>,
            metrics,
            listen: vec![address],
        };
        let cancel = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::new(desk), cancel.clone()));
        Self { source, address, cancel, server }
    }

    /// Sends raw bytes and reads until the connection is closed.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
    }
}

#[tokio::test]
async fn health_and_readiness_are_told_apart() {
    let rig = Rig::new().await;
    assert!(rig.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    assert!(rig.get("/readyz").await.starts_with("HTTP/1.1 200 "));
    rig.source.is_broken.store(true, Ordering::Relaxed);
    assert!(rig.get("/healthz").await.ends_with("\r\n\r\nalive\n"));
    let answer = rig.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("not ready: no way to a token works\n"));
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let answer = Rig::new().await.get("/metrics").await;
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"));
    assert!(answer.contains("mailkey_connections_total{listener=\"imap\"} 1\n"));
    assert!(answer.ends_with("# EOF\n"));
}

#[tokio::test]
async fn every_answer_carries_what_keeps_browsers_in_check() {
    let rig = Rig::new().await;
    for path in ["/", "/?still", "/style.css", "/status.json", "/healthz", "/readyz", "/metrics", "/nothing"]
    {
        let answer = rig.get(path).await.to_lowercase();
        for line in [
            "cache-control: no-store\r\n",
            "x-content-type-options: nosniff\r\n",
            "x-frame-options: deny\r\n",
            "content-security-policy: default-src 'none'; style-src 'self'; ",
            "referrer-policy: no-referrer\r\n",
        ] {
            assert!(answer.contains(line), "{line} is not in the answer for {path}: {answer}");
        }
        assert!(!answer.contains("access-control-"), "{path}");
    }
    assert!(rig.get("/nothing").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn pages_and_data_have_their_media_types() {
    let rig = Rig::new().await;
    for (path, media_type, part) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/style.css", "text/css; charset=utf-8", "prefers-color-scheme"),
        ("/status.json", "application/json", "\"version\":\"0.1.0\""),
    ] {
        let answer = rig.get(path).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}");
        assert!(answer.contains(&format!("content-type: {media_type}\r\n")), "{path}: {answer}");
        assert!(answer.contains(part), "{path}");
    }
}

#[tokio::test]
async fn strangers_are_refused_whatever_they_ask_for() {
    let rig = Rig::new().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n", 421),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n", 421),
        ("GET / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("GET /status.json HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n", 403),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n", 405),
        ("OPTIONS / HTTP/1.1\r\nHost: localhost\r\n", 405),
    ] {
        let answer = rig.raw(&format!("{request}Connection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(!answer.contains("alice") && !answer.contains("evil"), "{answer}");
        assert_eq!(answer.contains("allow: GET, HEAD\r\n"), status == 405);
    }
}

#[tokio::test]
async fn head_has_no_body() {
    let rig = Rig::new().await;
    let answer = rig.raw("HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_long_head_is_refused_and_others_go_on() {
    let rig = Rig::new().await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(17 << 10));
    stream.write_all(long.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 431");
    assert!(rig.get("/healthz").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_the_listener() {
    let rig = Rig::new().await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    let begun = crate::clock::now();
    rig.cancel.cancel();
    tokio::time::timeout(Duration::from_secs(5), rig.server).await.unwrap().unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(begun.elapsed() < super::FAREWELL_LIMIT, "{:?}", begun.elapsed());
    assert!(TcpStream::connect(rig.address).await.is_err());
}
