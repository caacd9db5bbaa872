//! Traces, as a collector gets them.
#![cfg(feature = "otlp")]

use mailkey::simulator::ALICE;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::command_line::{Running, dial};
use crate::stage::{PATIENCE, Stage, run};

/// The spans of a session and of a request.
const NAMES: [&str; 7] = ["session", "token", "connect", "sign-in", "relay", "request", "exchange"];

/// Takes one request after the other, and gives their paths and bodies.
async fn collector() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<(String, Vec<u8>)>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut first = String::new();
                while stream.read_line(&mut first).await.unwrap() > 0 {
                    let mut size = 0;
                    loop {
                        let mut line = String::new();
                        stream.read_line(&mut line).await.unwrap();
                        if line.trim().is_empty() {
                            break;
                        }
                        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                            size = length.trim().parse().unwrap();
                        }
                    }
                    let mut body = vec![0; size];
                    stream.read_exact(&mut body).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                    drop(sender.send((std::mem::take(&mut first), body)));
                }
            });
        }
    });
    (address, receiver)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_a_span_for_each_step_of_a_session_and_no_name_and_no_secret() {
    let stage = Stage::usual().await;
    let (address, mut requests) = collector().await;
    let mut proxy = Running::start(&stage, &format!("log: {{otlp-endpoint: 'http://{address}'}}\n"));
    let imap = proxy.address("imap").await;
    let ews = proxy.address("ews").await;
    let mut wire = dial(imap).await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} \"not it\"", ALICE.0), "a NO").await;
    wire.ask(&format!("b LOGIN {} \"{}\"", ALICE.0, ALICE.1), "b OK").await;
    wire.ask("c LOGOUT", "c OK").await;
    proxy.until("session ended").await;
    let (user, url) = (format!("{}:{}", ALICE.0, ALICE.1), format!("http://{ews}/EWS/Exchange.asmx"));
    let told = run("curl", ["-sS", "-o", "-", "-u", &user, &url], b"").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    proxy.until(" request ").await;
    proxy.signal("-TERM");
    let (code, log) = proxy.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("session{"), "spans do not show in the log: {log}");

    let mut all = String::new();
    while let Ok(Some((first, body))) = timeout(PATIENCE, requests.recv()).await {
        assert!(first.starts_with("POST /v1/traces "), "{first}");
        // protobuf: strings stand in it as they are
        all += &String::from_utf8_lossy(&body);
        if NAMES.iter().all(|name| all.contains(name)) {
            break;
        }
    }
    for part in NAMES.iter().chain(&["mailkey", "signed in", "AADSTS50126", "imap", "ews", "done"]) {
        assert!(all.contains(part), "no `{part}` in {all:?}");
    }
    for secret in [ALICE.0, ALICE.1, "not it", "contoso", "eyJ"] {
        assert!(!all.contains(secret), "`{secret}` in {all:?}");
    }
}

#[test]
fn an_endpoint_with_a_password_is_refused_and_not_repeated() {
    let text = "oauth: {client-id: 11111111-2222-3333-4444-555555555555}\n\
                listeners:\n  - {name: imap, protocol: imap, listen: '127.0.0.1:1143'}\n\
                log: {otlp-endpoint: 'http://collector:hunter2@127.0.0.1:4318'}\n";
    let problems = mailkey::config::parse(text, "proxy.yaml", std::path::Path::new("."), &|_| None)
        .unwrap_err()
        .to_string();
    assert!(problems.contains("4:22") && problems.contains("4318"), "{problems}");
    assert!(!problems.contains("hunter2"), "{problems}");
}
