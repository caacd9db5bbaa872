//! SMTP smuggling: what one server takes for the end of a message and another does not passes unchanged, and is
//! read as text here, whatever upstream makes of it.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::ALICE;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::stage::{Plan, Stage};

/// What is taken for the end of a message somewhere, and what is not an end anywhere else.
const ENDS: [&str; 10] = [
    "\n.\n",
    "\n.\r\n",
    "\r\n.\n",
    "\r.\r",
    "\r.\r\n",
    "\r\n.\r",
    "\n.\r",
    "\r.\n",
    "\r\r\n.\r\r\n",
    "\r\n\0.\r\n",
];

/// A message with a second one in it, for whoever takes `end` for the end.
fn message(end: &str) -> String {
    format!(
        "Subject: one\r\n\r\nbefore{end}MAIL FROM:<evil@example.com>\r\nRCPT TO:<alice@contoso.com>\r\nDATA\r\n\
         Subject: two\r\n\r\nsmuggled\r\n.\r\n"
    )
}

/// An SMTP server that ends messages as it was told to, and keeps every byte that came after the login.
async fn serve(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    ends: Vec<&'static str>,
    heard: Arc<Mutex<Vec<u8>>>,
) -> Option<()> {
    let mut io = BufReader::new(acceptor.accept(socket).await.ok()?);
    io.write_all(b"220 fake ESMTP\r\n").await.ok()?;
    let mut line = Vec::new();
    let mut is_in = false;
    loop {
        line.clear();
        if io.read_until(b'\n', &mut line).await.ok()? == 0 {
            return None;
        }
        if is_in {
            // what such a server leaves of CRLF behind a message
            let is_left_over = line == b"\n";
            heard.lock().unwrap().extend_from_slice(&line);
            if is_left_over {
                continue;
            }
        }
        let text = String::from_utf8_lossy(&line).to_uppercase();
        let answer: &[u8] = match text.split_whitespace().next().unwrap_or_default() {
            "EHLO" => b"250-fake\r\n250-PIPELINING\r\n250 AUTH XOAUTH2\r\n",
            "AUTH" if text.trim_end().ends_with("XOAUTH2") => b"334 \r\n",
            "MAIL" | "RCPT" | "NOOP" | "RSET" => b"250 2.0.0 OK\r\n",
            "QUIT" => b"221 2.0.0 bye\r\n",
            "DATA" => b"354 go\r\n",
            // the token, or a command that nobody knows
            _ if !is_in => {
                is_in = true;
                b"235 2.7.0 in\r\n"
            }
            _ => b"500 5.5.2 what?\r\n",
        };
        io.write_all(answer).await.ok()?;
        if answer.starts_with(b"221") {
            return io.shutdown().await.ok();
        }
        if answer.starts_with(b"354") {
            let mut data = Vec::from(&b"\r\n"[..]);
            while !ends.iter().any(|end| data.ends_with(end.as_bytes())) {
                let byte = io.read_u8().await.ok()?;
                data.push(byte);
                heard.lock().unwrap().push(byte);
            }
            io.write_all(b"250 2.0.0 taken\r\n").await.ok()?;
        }
    }
}

/// The stage with an SMTP upstream of its own: what that one heard since the login.
async fn stage_with(ends: Vec<&'static str>) -> (Stage, Arc<Mutex<Vec<u8>>>) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!(
        "listen: '127.0.0.1:0', upstream: 'localhost:{}', upstream-tls: implicit",
        server.local_addr().unwrap().port()
    );
    let stage = Stage::planned(Plan {
        listeners: format!(
            "  - {{name: straight, protocol: smtp, {upstream}}}\n\
             \x20 - {{name: sender, protocol: smtp, {upstream}, allow-from: ['127.0.0.1'], \
             fixed-account: alice@contoso.com, envelope-sender: mailbox}}\n"
        ),
        sections: "accounts:\n  - {user: alice@contoso.com, password-file: alice}\nlimits: {warm-connections: 0, smtp-sessions-per-mailbox: 50}\n"
            .to_owned(),
        files: vec![("alice", ALICE.1)],
        ..Plan::default()
    })
    .await;
    let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (acceptor, all) = (stage.acceptor(), Arc::clone(&heard));
    tokio::spawn(async move {
        while let Ok((socket, _)) = server.accept().await {
            tokio::spawn(serve(socket, acceptor.clone(), ends.clone(), Arc::clone(&all)));
        }
    });
    (stage, heard)
}

/// Sends [`message`] and says goodbye; all answers after the one to DATA.
async fn send(stage: &Stage, listener: &str, text: &str) -> Vec<String> {
    let mut wire = stage.wire(listener).await;
    wire.until("220").await;
    wire.ask("EHLO x", "250 ").await;
    if listener == "straight" {
        let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1));
        wire.ask(&format!("AUTH PLAIN {plain}"), "235").await;
    }
    wire.ask("MAIL FROM:<first@example.com>", "250").await;
    wire.ask("RCPT TO:<bob@contoso.com>", "250").await;
    wire.ask("DATA", "354").await;
    wire.say(text).await;
    wire.until("250 2.0.0 taken").await;
    wire.say("NOOP\r\nQUIT\r\n").await;
    wire.rest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_ends_of_a_message_pass_unchanged_to_a_strict_server_and_are_read_as_text() {
    let (stage, heard) = stage_with(vec!["\r\n.\r\n"]).await;
    for (listener, sender) in [("straight", "first@example.com"), ("sender", ALICE.0)] {
        for end in ENDS {
            heard.lock().unwrap().clear();
            let text = message(end);
            let told = send(&stage, listener, &text).await;
            assert_eq!(
                told,
                ["250 2.0.0 OK", "221 2.0.0 bye"],
                "{listener} {end:?}: one message, one answer"
            );
            let heard = heard.lock().unwrap();
            let expected = format!(
                "MAIL FROM:<{sender}>\r\nRCPT TO:<bob@contoso.com>\r\nDATA\r\n{text}NOOP\r\nQUIT\r\n"
            );
            assert_eq!(String::from_utf8_lossy(&heard), expected, "{listener} {end:?}");
        }
    }
}

/// Upstream takes `end` for the end and the rest for commands: that is its fault, and none of it is ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_lax_server_gets_the_same_bytes_and_its_answers_come_back_as_they_are() {
    for end in ENDS {
        let (stage, heard) = stage_with(vec!["\r\n.\r\n", end]).await;
        for (listener, sender) in [("straight", "first@example.com"), ("sender", ALICE.0)] {
            heard.lock().unwrap().clear();
            let text = message(end);
            let told = send(&stage, listener, &text).await;
            // the answers to the smuggled MAIL and RCPT and DATA, and to the end of the smuggled message
            let expected = [
                "250 2.0.0 OK",
                "250 2.0.0 OK",
                "354 go",
                "250 2.0.0 taken",
                "250 2.0.0 OK",
                "221 2.0.0 bye",
            ];
            assert_eq!(told, expected, "{listener} {end:?}");
            let heard = heard.lock().unwrap();
            let expected = format!(
                "MAIL FROM:<{sender}>\r\nRCPT TO:<bob@contoso.com>\r\nDATA\r\n{text}NOOP\r\nQUIT\r\n"
            );
            assert_eq!(String::from_utf8_lossy(&heard), expected, "{listener} {end:?}");
        }
    }
}
