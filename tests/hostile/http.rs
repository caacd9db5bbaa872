//! The two HTTP listeners, EWS and the admin pages: requests that can be read in two ways, mail and worse on them, and
//! redirects that would carry a password or a token away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, EwsFault, IdentityFault};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::stage::{PATIENCE, Stage};

fn basic() -> String {
    BASE64_STANDARD.encode(format!("{}:{}", ALICE.0, ALICE.1))
}

/// Says this, and reads until the other side closes.
async fn exchange(address: std::net::SocketAddr, said: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(said).await.unwrap();
    let mut answer = Vec::new();
    // a reset is a close, too
    drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it neither answers nor closes"));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Whatever makes two readers disagree where a request ends or whom it is for (RFC 9112 §2.2, §3.2, §5, §6).
const TWO_READINGS: [&str; 21] = [
    "Host: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
    "Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4",
    "Host: localhost\r\nContent-Length: 4\r\nContent-Length: 5",
    "Host: localhost\r\nContent-Length: 4\r\nContent-Length: 4",
    "Host: localhost\r\nContent-Length: 4, 4",
    "Host: localhost\r\nContent-Length: +4",
    "Host: localhost\r\nContent-Length: 0x4",
    "Host: localhost\r\nContent-Length: -1",
    "Host: localhost\r\nContent-Length: 4 4",
    "Host: localhost\r\nContent-Length: 99999999999999999999999",
    "Host: localhost\r\nContent-Length : 4",
    "Host: localhost\r\nTransfer-Encoding: xchunked",
    "Host: localhost\r\nTransfer-Encoding: chunked, identity",
    "Host: localhost\r\nTransfer-Encoding: identity",
    "Host: localhost\r\nTransfer-Encoding : chunked",
    "Host: localhost\r\nX: a\0b",
    "Host: localhost\r\nX: a\rb",
    "Host: localhost\r\nX: a\r\n folded: b",
    "Host: localhost\r\nHost: localhost",
    "Host: localhost\r\nHost: evil.example",
    "X: no host at all",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read() {
    let stage = Stage::usual().await;
    let basic = basic();
    let (ews, admin) = (stage.address("ews"), stage.app.admin_addresses()[0]);
    for fields in TWO_READINGS {
        for (name, address, method, path, behind) in [
            ("EWS", ews, "POST", "/EWS/Exchange.asmx", "/EWS/Services.wsdl"),
            ("EWS", ews, "GET", "/EWS/Services.wsdl", "/EWS/Services.wsdl"),
            ("admin", admin, "GET", "/healthz", "/metrics"),
        ] {
            let said = format!(
                "{method} {path} HTTP/1.1\r\nAuthorization: Basic {basic}\r\n{fields}\r\n\r\n0\r\n\r\n\
                 GET {behind} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {basic}\r\n\r\n"
            );
            let told = exchange(address, said.as_bytes()).await;
            assert!(told.starts_with("HTTP/1.1 400 "), "{name} {method} with {fields:?}: {told}");
            assert_eq!(told.matches("HTTP/1.").count(), 1, "{name} with {fields:?} reads on: {told}");
        }
    }
    // HTTP/1.0 knows no chunks
    for (address, path) in [(ews, "/EWS/Exchange.asmx"), (admin, "/healthz")] {
        let said = format!(
            "GET {path} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET {path} HTTP/1.0\r\n\r\n"
        );
        let told = exchange(address, said.as_bytes()).await;
        assert!(told.contains(" 400 ") && told.matches("HTTP/1.").count() == 1, "{told}");
    }
    assert_eq!(stage.office.token_requests(), 0);
    super::the_next_client_is_served(&stage).await;
}

/// Whoever asks the admin page by a path or a method of no use to it gets nothing, and no other host is ever chosen.
#[tokio::test(flavor = "multi_thread")]
async fn no_path_and_no_method_leads_astray() {
    let stage = Stage::usual().await;
    let (ews, admin) = (stage.address("ews"), stage.app.admin_addresses()[0]);
    for (address, line, status) in [
        (admin, "GET /../../etc/passwd", "404"),
        (admin, "GET //evil.example/status.json", "404"),
        (admin, "GET /%2e%2e/status.json", "404"),
        (admin, "GET /STATUS.JSON", "404"),
        (admin, "GET /status.json/", "404"),
        (admin, "GET /@evil.example", "404"),
        (admin, "GET http://evil.example/status.json", "421"),
        (admin, "CONNECT localhost:443", "405"),
        (admin, "OPTIONS *", "405"),
        (admin, "OPTIONS /status.json", "405"),
        (admin, "TRACE /", "405"),
        (admin, "POST /status.json", "405"),
        (ews, "GET /status.json", "404"),
        (ews, "GET /metrics", "404"),
        (ews, "GET /ews/../status.json", "404"),
        (ews, "GET /EWS/%2e%2e/owa", "404"),
        (ews, "GET //evil.example/EWS/Exchange.asmx", "404"),
        (ews, "GET /EWS/@evil.example/x", "404"),
        (ews, "CONNECT evil.example:443", "404"),
        (ews, "TRACE /EWS/../x", "404"),
    ] {
        // whose name is in the request line must be in Host, too (RFC 9112 §3.2.2)
        let host = if line.contains("http://evil") { "evil.example" } else { "localhost" };
        let said = format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://localhost\r\nAuthorization: Basic {}\r\nConnection: close\r\n\r\n",
            basic()
        );
        let told = exchange(address, said.as_bytes()).await;
        let got = told.split(' ').nth(1).unwrap_or_default();
        // another port of this host is another site to the admin page, and says so before anything else
        let is_foreign = address == admin && got == "403";
        assert!(got == status || is_foreign, "{line}: {told}");
        assert!(!told.to_lowercase().contains("access-control-"), "{line}: {told}");
        assert!(!told.contains("evil") && !told.contains("root:"), "{line}: {told}");
    }
    assert_eq!(stage.office.token_requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_and_other_tongues_on_the_http_listeners_are_shown_the_door() {
    let stage = Stage::usual().await;
    for address in [stage.address("ews"), stage.app.admin_addresses()[0]] {
        for knock in [
            &b"EHLO shibboleth.example\r\nMAIL FROM:<a@b>\r\nQUIT\r\n"[..],
            b"a LOGIN shibboleth secret\r\n\r\n",
            b"USER shibboleth\r\nPASS secret\r\n\r\n",
            b"SSH-2.0-shibboleth\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03shibboleth\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\0\0\0\0shibboleth\r\n\r\n",
            b"GET /shibboleth HTTP/9.9\r\n\r\n",
        ] {
            let told = exchange(address, knock).await;
            assert!(
                told.is_empty() || told.starts_with("HTTP/1.1 4"),
                "{:?}: {told}",
                String::from_utf8_lossy(knock)
            );
            assert!(!told.contains("shibboleth") && !told.contains("secret"), "reflected: {told}");
        }
    }
    super::the_next_client_is_served(&stage).await;
}

/// Where nobody may ever come: counts who does.
async fn trap() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, visitors) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&visitors);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, visitors)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_redirect_carries_a_password_or_a_token_away() {
    let stage = Stage::usual().await;
    let (port, visitors) = trap().await;
    let elsewhere = [
        format!("http://127.0.0.1:{port}/EWS/Exchange.asmx"),
        format!("https://localhost:{port}/oauth2/v2.0/token"),
        format!("//127.0.0.1:{port}/x"),
        format!("https://localhost@127.0.0.1:{port}/"),
    ];
    let request = format!(
        "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {}\r\nContent-Length: 2\r\n\
         Connection: close\r\n\r\n<>",
        basic()
    );
    for to in &elsewhere {
        stage.office.mischief().calm();
        stage.office.mischief().identity(IdentityFault::Redirect(to.clone()));
        let mut wire = stage.wire("imap").await;
        wire.until("* OK").await;
        let told = wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a ").await;
        assert!(told.starts_with("a NO [UNAVAILABLE]") && !told.contains("127.0.0.1"), "{to}: {told}");
    }
    assert!(stage.office.token_requests() > 0);
    // by another account, for which nothing is held back
    let (stage, elsewhere) = (Stage::usual().await, elsewhere);
    for to in &elsewhere {
        stage.office.mischief().calm();
        stage.office.mischief().ews(EwsFault::Redirect(to.clone()));
        let told = exchange(stage.address("ews"), request.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 "), "{told}");
        assert!(!told.contains("eyJ") && !told.contains(&basic()), "{to}: {told}");
        assert!(
            !told.contains(&format!("127.0.0.1:{port}")),
            "the mail client is sent away with its password: {told}"
        );
    }
    // autodiscover is answered here, whatever anybody says elsewhere
    let ask = format!(
        "GET /autodiscover/autodiscover.json?Email={}&Protocol=EWS HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n",
        ALICE.0
    );
    let told = exchange(stage.address("ews"), ask.as_bytes()).await;
    assert!(!told.contains(&format!(":{port}")), "a host that is not ours is repeated: {told}");
    assert_eq!(visitors.load(Ordering::SeqCst), 0, "somebody followed a redirect");
}
