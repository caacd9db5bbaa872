//! The simulator against small clients of its own: what it answers word for word, and every kind of mischief.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use url::form_urlencoded;

use super::{wire::Duplex, *};

const OUTLOOK: &str = "https://outlook.office.com/.default";
const PATIENCE: Duration = Duration::from_secs(10);

async fn start() -> Simulator {
    Simulator::start(Settings::default()).await.unwrap()
}

fn connector(simulator: &Simulator) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(simulator.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// One end of a dialogue by lines.
struct Talk {
    stream: BufReader<Box<dyn Duplex>>,
}

impl Talk {
    async fn plain(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        Self { stream: BufReader::new(Box::new(stream)) }
    }

    async fn tls(simulator: &Simulator, address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("outlook.office365.com").unwrap();
        let stream = connector(simulator).connect(name, stream).await?;
        Ok(Self { stream: BufReader::new(Box::new(stream)) })
    }

    async fn upgrade(self, simulator: &Simulator) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        let stream = connector(simulator).connect(name, self.stream.into_inner()).await.unwrap();
        Self { stream: BufReader::new(Box::new(stream)) }
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn line(&mut self) -> String {
        self.try_line().await.unwrap()
    }

    async fn try_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("an answer in time")?;
        Ok(line.trim_end().to_owned())
    }

    /// Sends a line and expects the next line to begin so.
    async fn ask(&mut self, line: &str, answer: &str) {
        self.send(&format!("{line}\r\n")).await;
        self.expect(answer).await;
    }

    async fn expect(&mut self, answer: &str) {
        let line = self.line().await;
        assert!(line.starts_with(answer), "{line:?} should begin with {answer:?}");
    }

    /// Reads lines until one begins so; all of them.
    async fn until(&mut self, begin: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            assert!(!line.is_empty() || !lines.is_empty(), "the stream ended before {begin:?}");
            let last = line.starts_with(begin);
            lines.push(line);
            if last {
                return lines;
            }
        }
    }

    async fn ended(&mut self) -> bool {
        self.try_line().await.is_ok_and(|line| line.is_empty())
    }
}

/// (status, header and body) of a POST; the connection is closed behind it.
async fn post(
    simulator: &Simulator,
    address: SocketAddr,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    try_post(simulator, address, path, headers, body).await.unwrap()
}

async fn try_post(
    simulator: &Simulator,
    address: SocketAddr,
    path: &str,
    headers: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let mut talk = Talk::tls(simulator, address).await?;
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    talk.send(&format!("{head}{body}")).await;
    let mut answer = String::new();
    timeout(PATIENCE, talk.stream.read_to_string(&mut answer)).await.expect("an answer in time")?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::UnexpectedEof)?, answer))
}

async fn form(simulator: &Simulator, path: &str, fields: &[(&str, &str)]) -> (u16, Value) {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let (status, answer) = post(simulator, simulator.authority(), path, "", &body).await;
    let json = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, serde_json::from_str(&json).unwrap_or(Value::Null))
}

async fn password(simulator: &Simulator, user: &str, password: &str, scope: &str) -> (u16, Value) {
    let fields = [
        ("grant_type", "password"),
        ("client_id", PUBLIC_CLIENT_ID),
        ("scope", scope),
        ("username", user),
        ("password", password),
    ];
    form(simulator, "/contoso.com/oauth2/v2.0/token", &fields).await
}

async fn token(simulator: &Simulator) -> String {
    let (_, answer) = password(simulator, ALICE.0, ALICE.1, OUTLOOK).await;
    answer["access_token"].as_str().unwrap().to_owned()
}

fn code(answer: &(u16, Value)) -> u64 {
    answer.1["error_codes"][0].as_u64().unwrap_or_else(|| panic!("{answer:?}"))
}

fn xoauth2(user: &str, token: &str) -> String {
    BASE64_STANDARD.encode(format!("user={user}\u{1}auth=Bearer {token}\u{1}\u{1}"))
}

async fn imap(simulator: &Simulator) -> Talk {
    let mut talk = Talk::tls(simulator, simulator.imap()).await.unwrap();
    talk.expect("* OK The Microsoft Exchange IMAP4 service is ready. [").await;
    talk
}

async fn imap_as(simulator: &Simulator, user: &str, token: &str) -> Talk {
    let mut talk = imap(simulator).await;
    talk.ask(&format!("a AUTHENTICATE XOAUTH2 {}", xoauth2(user, token)), "a OK AUTHENTICATE completed.")
        .await;
    talk
}

async fn smtp(simulator: &Simulator) -> Talk {
    let mut talk = Talk::tls(simulator, simulator.smtp_implicit()).await.unwrap();
    talk.expect("220 ").await;
    talk.send("EHLO test\r\n").await;
    talk.until("250 ").await;
    talk
}

#[tokio::test]
async fn imap_takes_a_token_in_one_step_and_in_two() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let mut talk = imap(&simulator).await;
    talk.ask("a AUTHENTICATE XOAUTH2", "+").await;
    talk.ask(&xoauth2(ALICE.0, &token), "a OK AUTHENTICATE completed.").await;
    talk.ask("b CAPABILITY", "* CAPABILITY IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS MOVE")
        .await;
    drop(imap_as(&simulator, ALICE.0, &token).await);
    let steps: Vec<bool> = simulator
        .journal()
        .into_iter()
        .filter_map(
            |event| if let Event::SignIn(sign_in) = event { Some(sign_in.initial_response) } else { None },
        )
        .collect();
    assert_eq!(steps, [false, true]);
}

#[tokio::test]
async fn imap_refuses_passwords_and_bad_tokens_in_exchanges_words() {
    let simulator = start().await;
    let mut talk = imap(&simulator).await;
    talk.ask("a LOGIN alice@contoso.com \"x\"", "a NO LOGIN failed.").await;
    talk.ask("b LOGIN {5}", "+ ").await;
    talk.send("alice {1+}\r\nx\r\n").await;
    talk.expect("b NO LOGIN failed.").await;
    talk.ask(&format!("c AUTHENTICATE XOAUTH2 {}", xoauth2(ALICE.0, "bad")), "c NO AUTHENTICATE failed.")
        .await;
    talk.ask("d SELECT INBOX", "d BAD Command received in Invalid state.").await;
    talk.ask("e LOGOUT", "* BYE Microsoft Exchange Server IMAP4 server signing off.").await;
}

#[tokio::test]
async fn imap_opens_a_shared_mailbox_for_its_delegate_only() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let mut talk = imap_as(&simulator, SUPPORT, &token).await;
    talk.ask("b NOOP", "b OK NOOP completed.").await;
    let mut talk = imap_as(&simulator, BOB.0, &token).await;
    talk.ask("b SELECT INBOX", "b BAD User is authenticated but not connected.").await;
    talk.expect("* BYE Connection closed. 14").await;
    assert!(talk.ended().await);
    simulator.tenant().set(ALICE.0, Condition::ImapDisabled, true);
    let mut talk = imap_as(&simulator, ALICE.0, &token).await;
    talk.ask("b SELECT INBOX", "b BAD User is authenticated but not connected.").await;
}

#[tokio::test]
async fn imap_idle_tells_of_new_mail() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let mut talk = imap_as(&simulator, ALICE.0, &token).await;
    talk.send("b SELECT INBOX\r\n").await;
    talk.until("b OK [READ-WRITE]").await;
    talk.ask("c IDLE", "+ IDLE accepted").await;
    simulator.deliver(ALICE.0, "Subject: new\r\n\r\n");
    talk.expect("* 1 EXISTS").await;
    talk.ask("DONE", "c OK IDLE completed.").await;
    talk.ask("d UID SEARCH UNSEEN", "* SEARCH 1").await;
}

#[tokio::test]
async fn an_imap_session_ends_with_its_token() {
    let settings = Settings { token_lifetime: Some(Duration::from_secs(1)), ..Settings::default() };
    let simulator = Simulator::start(settings).await.unwrap();
    let token = token(&simulator).await;
    let mut talk = imap_as(&simulator, ALICE.0, &token).await;
    talk.expect("* BYE Session invalidated - AccessTokenExpired").await;
    assert!(talk.ended().await);
    let mut talk = imap(&simulator).await;
    talk.ask(&format!("a AUTHENTICATE XOAUTH2 {}", xoauth2(ALICE.0, &token)), "a NO AUTHENTICATE failed.")
        .await;
}

#[tokio::test]
async fn starttls_discards_what_was_sent_too_early() {
    let simulator = start().await;
    let mut talk = Talk::plain(simulator.imap_starttls()).await;
    talk.expect("* OK").await;
    talk.ask("a CAPABILITY", "* CAPABILITY IMAP4 IMAP4rev1 LOGINDISABLED STARTTLS").await;
    talk.expect("a OK").await;
    talk.ask("b STARTTLS\r\nx NOOP", "b OK Begin TLS negotiation now.").await;
    let mut talk = talk.upgrade(&simulator).await;
    talk.ask("c NOOP", "c OK NOOP completed.").await;

    simulator.mischief().mail(Service::Smtp, MailFault::InjectBeforeTls);
    let mut talk = Talk::plain(simulator.smtp()).await;
    talk.expect("220 ").await;
    talk.send("EHLO test\r\n").await;
    assert!(talk.until("250 ").await.contains(&"250-STARTTLS".to_owned()));
    talk.ask("STARTTLS", "220 2.0.0 SMTP server ready").await;
    talk.expect("250-injected.example").await;
}

#[tokio::test]
async fn pop3_takes_a_token_in_two_lines_only() {
    let settings = Settings { pop3_token_limit: Some(4096), ..Settings::default() };
    let simulator = Simulator::start(settings).await.unwrap();
    simulator.deliver(ALICE.0, "Subject: a\r\n\r\n.dot\r\n");
    let token = token(&simulator).await;
    let mut talk = Talk::tls(&simulator, simulator.pop3()).await.unwrap();
    talk.expect("+OK The Microsoft Exchange POP3 service is ready. [").await;
    talk.ask("AUTH XOAUTH2", "+").await;
    talk.ask(&xoauth2(ALICE.0, &token), "+OK User successfully authenticated.").await;
    talk.ask("RETR 1", "+OK").await;
    talk.expect("Subject: a").await;
    assert_eq!((talk.line().await, talk.line().await), (String::new(), "..dot".to_owned()));
    talk.expect(".").await;
    talk.ask("DELE 1", "+OK").await;
    talk.ask("QUIT", "+OK").await;
    assert!(simulator.messages(ALICE.0, "INBOX").is_empty());

    let mut talk = Talk::tls(&simulator, simulator.pop3()).await.unwrap();
    talk.expect("+OK").await;
    talk.ask("USER alice", "+OK").await;
    talk.ask("PASS x", "-ERR Logon failure: unknown user name or bad password.").await;
    let one_line = format!("AUTH XOAUTH2 {}", xoauth2(ALICE.0, &token));
    talk.ask(&one_line, "-ERR Protocol error. Connection is closed. 10").await;
    assert!(talk.ended().await);

    simulator.mischief().identity(IdentityFault::TokenSize(4100));
    let (_, long) = password(&simulator, ALICE.0, ALICE.1, OUTLOOK).await;
    let mut talk = Talk::tls(&simulator, simulator.pop3()).await.unwrap();
    talk.expect("+OK").await;
    talk.ask("AUTH XOAUTH2", "+").await;
    let response = xoauth2(ALICE.0, long["access_token"].as_str().unwrap());
    talk.ask(&response, "-ERR Protocol error. Connection is closed. 10").await;
}

#[tokio::test]
async fn smtp_ends_a_message_at_crlf_dot_crlf_and_nowhere_else() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let mut talk = smtp(&simulator).await;
    talk.ask("MAIL FROM:<alice@contoso.com>", "530 5.7.57 Client not authenticated to send mail").await;
    talk.ask("AUTH XOAUTH2", "334").await;
    talk.ask(&xoauth2(ALICE.0, &token), "235 2.7.0 Authentication successful").await;
    talk.send("MAIL FROM:<alice@contoso.com>\r\nRCPT TO:<bob@contoso.com>\r\nDATA\r\n").await;
    for reply in ["250 2.1.0", "250 2.1.5", "354 "] {
        talk.expect(reply).await;
    }
    let body = "Subject: a\r\n\r\n\n.\n\r\n.\n\n.\r\n..\r\nend";
    talk.send(&format!("{body}\r\n.\r\nNOOP\r\n")).await;
    talk.expect("250 2.0.0 OK <").await;
    talk.expect("250 2.0.0 OK").await;
    let kept = simulator.messages(BOB.0, "INBOX");
    // The dot behind CRLF is stuffing, even before a bare LF.
    assert_eq!(kept, ["Subject: a\r\n\r\n\n.\n\r\n\n\n.\r\n.\r\nend\r\n".as_bytes()]);
    talk.send("MAIL FROM:<alice@contoso.com>\r\nRCPT TO:<bob@contoso.com>\r\nBDAT 4\r\nA: bBDAT 6 LAST\r\n\r\n\r\n.\n").await;
    for reply in ["250 2.1.0", "250 2.1.5", "250 2.0.0 4 octets", "250 2.0.0 OK"] {
        talk.expect(reply).await;
    }
    assert_eq!(simulator.messages(BOB.0, "INBOX").last().unwrap(), "A: b\r\n\r\n.\n");
}

#[tokio::test]
async fn a_message_that_breaks_off_is_not_sent() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let mut talk = smtp(&simulator).await;
    talk.ask(&format!("AUTH XOAUTH2 {}", xoauth2(ALICE.0, &token)), "235").await;
    talk.send("MAIL FROM:<alice@contoso.com>\r\nRCPT TO:<bob@contoso.com>\r\nDATA\r\nSubject: half\r\n.")
        .await;
    for reply in ["250", "250", "354"] {
        talk.expect(reply).await;
    }
    drop(talk);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(simulator.messages(BOB.0, "INBOX").is_empty());
    assert!(!simulator.journal().iter().any(|event| matches!(event, Event::Submitted(_))));
    timeout(PATIENCE, simulator.stop()).await.expect("no session is left");
}

#[tokio::test]
async fn smtp_refuses_in_exchanges_words() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let auth = |user: &str| format!("AUTH XOAUTH2 {}", xoauth2(user, &token));
    let mut talk = smtp(&simulator).await;
    talk.ask(&auth(SUPPORT), "535 5.7.3 Authentication unsuccessful [").await;
    talk.ask("AUTH XOAUTH2", "334").await;
    talk.ask("*", "535 5.7.3").await;
    simulator.tenant().set(ALICE.0, Condition::SmtpAuthDisabled, true);
    talk.ask(
        &auth(ALICE.0),
        "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.",
    )
    .await;
    simulator.tenant().set(ALICE.0, Condition::SmtpAuthDisabled, false);
    simulator.tenant().disable_smtp_auth(true);
    talk.ask(
        &auth(ALICE.0),
        "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.",
    )
    .await;
    simulator.tenant().disable_smtp_auth(false);
    talk.ask(&format!("AUTH XOAUTH2 {}", "A".repeat(12_300)), "500 5.5.2").await;
    talk.ask("AUTH LOGIN", "334 VXNlcm5hbWU6").await;
    talk.ask("YQ==", "334 UGFzc3dvcmQ6").await;
    talk.ask("YQ==", "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.").await;
    talk.ask(&auth(ALICE.0), "235 2.7.0").await;
    talk.ask(
        "MAIL FROM:<bob@contoso.com>",
        "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
    )
    .await;
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut other = smtp(&simulator).await;
        other.ask(&auth(ALICE.0), "235").await;
        others.push(other);
    }
    let mut fourth = smtp(&simulator).await;
    fourth.ask(&auth(ALICE.0), "432 4.3.2 Concurrent connections limit exceeded.").await;
}

#[tokio::test]
async fn smart_lock_out_counts_distinct_passwords_only() {
    let settings = Settings { lockout_threshold: 3, lockout: Duration::from_secs(1), ..Settings::default() };
    let simulator = Simulator::start(settings).await.unwrap();
    for _ in 0..5 {
        assert_eq!(code(&password(&simulator, ALICE.0, "same", OUTLOOK).await), 50126);
    }
    for other in ["b", "c"] {
        assert_eq!(code(&password(&simulator, ALICE.0, other, OUTLOOK).await), 50126);
    }
    assert_eq!(code(&password(&simulator, ALICE.0, ALICE.1, OUTLOOK).await), 50053);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(password(&simulator, ALICE.0, ALICE.1, OUTLOOK).await.0, 200);
    let matched: Vec<_> = simulator
        .journal()
        .into_iter()
        .filter_map(
            |event| if let Event::Token(request) = event { Some(request.password_matched) } else { None },
        )
        .collect();
    assert_eq!(matched.last_chunk::<3>(), Some(&[Some(false), None, Some(true)]));
}

#[tokio::test]
async fn every_condition_of_a_user_has_its_code() {
    let simulator = start().await;
    for (condition, expected) in [
        (Condition::MfaRequired, 50076),
        (Condition::MfaEnrolment, 50079),
        (Condition::Locked, 50053),
        (Condition::Disabled, 50057),
        (Condition::PasswordExpired, 50055),
        (Condition::BlockedByPolicy, 53003),
        (Condition::Federated, 50126),
    ] {
        let user = format!("{condition:?}@contoso.com");
        simulator.tenant().add_user(User::new(&user, "right").with(condition));
        assert_eq!(code(&password(&simulator, &user, "right", OUTLOOK).await), expected, "{condition:?}");
    }
    assert_eq!(code(&password(&simulator, "nobody@contoso.com", "x", OUTLOOK).await), 50034);
    assert_eq!(code(&password(&simulator, SUPPORT, "x", OUTLOOK).await), 50057);
}

#[tokio::test]
async fn every_mistake_of_an_application_has_its_code() {
    let simulator = start().await;
    let scope = "https://outlook.office365.com/.default";
    let secret = CONFIDENTIAL_CLIENT_SECRET;
    let ask = async |tenant: &str, client: &str, secret: Option<&str>, scope: &str| {
        let mut fields = vec![("grant_type", "client_credentials"), ("client_id", client), ("scope", scope)];
        fields.extend(secret.map(|secret| ("client_secret", secret)));
        form(&simulator, &format!("/{tenant}/oauth2/v2.0/token"), &fields).await
    };
    let wrong = ask(DIRECTORY_ID, CONFIDENTIAL_CLIENT_ID, Some("wrong"), scope).await;
    assert_eq!((wrong.0, code(&wrong)), (401, 7_000_215));
    assert_eq!(wrong.1["error"], "invalid_client");
    assert_eq!(code(&ask(DIRECTORY_ID, CONFIDENTIAL_CLIENT_ID, None, scope).await), 7_000_218);
    assert_eq!(code(&ask(DIRECTORY_ID, "nobody", Some(secret), scope).await), 700_016);
    assert_eq!(code(&ask(DIRECTORY_ID, PUBLIC_CLIENT_ID, Some(secret), scope).await), 700_025);
    assert_eq!(code(&ask("elsewhere", CONFIDENTIAL_CLIENT_ID, Some(secret), scope).await), 90002);
    let single = "https://outlook.office365.com/IMAP.AccessAsApp";
    assert_eq!(code(&ask(DIRECTORY_ID, CONFIDENTIAL_CLIENT_ID, Some(secret), single).await), 1_002_012);
    assert_eq!(ask(DIRECTORY_ID, CONFIDENTIAL_CLIENT_ID, Some(secret), scope).await.0, 200);
    simulator.tenant().change_application(PUBLIC_CLIENT_ID, |app| app.consented = false);
    assert_eq!(code(&password(&simulator, ALICE.0, ALICE.1, OUTLOOK).await), 65001);
}

#[tokio::test]
async fn a_client_that_loops_is_stopped() {
    let settings = Settings { loop_limit: 2, ..Settings::default() };
    let simulator = Simulator::start(settings).await.unwrap();
    for _ in 0..2 {
        assert_eq!(password(&simulator, ALICE.0, ALICE.1, OUTLOOK).await.0, 200);
    }
    assert_eq!(code(&password(&simulator, ALICE.0, ALICE.1, OUTLOOK).await), 50196);
    assert_eq!(password(&simulator, BOB.0, BOB.1, OUTLOOK).await.0, 200);
}

#[tokio::test]
async fn a_refresh_token_rotates_and_ends_with_the_password() {
    let simulator = start().await;
    let (_, first) = password(&simulator, ALICE.0, ALICE.1, &format!("{OUTLOOK} offline_access")).await;
    let refresh = async |token: &Value| {
        let fields = [
            ("grant_type", "refresh_token"),
            ("client_id", PUBLIC_CLIENT_ID),
            ("refresh_token", token.as_str().unwrap()),
        ];
        form(&simulator, "/common/oauth2/v2.0/token", &fields).await
    };
    let (status, second) = refresh(&first["refresh_token"]).await;
    assert_eq!(status, 200);
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    assert_eq!(refresh(&first["refresh_token"]).await.0, 200, "the old one is not revoked by its use");
    simulator.tenant().set_password(ALICE.0, "new");
    assert_eq!(code(&refresh(&second["refresh_token"]).await), 50173);
    let (_, without) = password(&simulator, ALICE.0, "new", OUTLOOK).await;
    assert!(without.get("refresh_token").is_none());
}

#[tokio::test]
async fn a_device_code_waits_for_its_human() {
    let simulator = start().await;
    let scope = format!("{OUTLOOK} offline_access");
    let path = "/organizations/oauth2/v2.0/devicecode";
    let (status, device) =
        form(&simulator, path, &[("client_id", PUBLIC_CLIENT_ID), ("scope", &scope)]).await;
    assert_eq!((status, device["interval"].as_u64()), (200, Some(5)));
    let poll = async || {
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("client_id", PUBLIC_CLIENT_ID),
            ("device_code", device["device_code"].as_str().unwrap()),
        ];
        form(&simulator, "/organizations/oauth2/v2.0/token", &fields).await
    };
    assert_eq!(poll().await.1["error"], "authorization_pending");
    assert_eq!(simulator.pending_device_codes(), [device["user_code"].as_str().unwrap()]);
    assert!(simulator.approve_device(device["user_code"].as_str().unwrap(), ALICE.0));
    let (status, answer) = poll().await;
    assert_eq!(status, 200);
    assert!(answer["refresh_token"].is_string());
    assert_eq!(poll().await.1["error"], "invalid_grant");
    assert!(!simulator.approve_device("unknown", ALICE.0));
}

#[tokio::test]
async fn an_authorization_code_needs_its_verifier_and_is_good_once() {
    let simulator = start().await;
    simulator.tenant().sign_in_browser(Some(ALICE.0));
    // RFC 7636 appendix B.
    let (verifier, challenge) =
        ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([
            ("client_id", PUBLIC_CLIENT_ID),
            ("response_type", "code"),
            ("redirect_uri", "http://localhost:5000/"),
            ("scope", OUTLOOK),
            ("state", "s"),
            ("code_challenge", challenge),
            ("code_challenge_method", "S256"),
        ])
        .finish();
    let mut talk = Talk::tls(&simulator, simulator.authority()).await.unwrap();
    talk.send(&format!(
        "GET /organizations/oauth2/v2.0/authorize?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ))
    .await;
    talk.expect("HTTP/1.1 302").await;
    let header = talk.until("location: ").await;
    let location = url::Url::parse(header.last().unwrap().trim_start_matches("location: ")).unwrap();
    let field =
        |wanted: &str| location.query_pairs().find(|(name, _)| name == wanted).unwrap().1.into_owned();
    assert_eq!((location.port(), field("state").as_str()), (Some(5000), "s"));
    let redeem = async |code: &str, verifier: &str| {
        let fields = [
            ("grant_type", "authorization_code"),
            ("client_id", PUBLIC_CLIENT_ID),
            ("code", code),
            ("redirect_uri", "http://localhost:5000/"),
            ("code_verifier", verifier),
            ("scope", OUTLOOK),
        ];
        form(&simulator, "/organizations/oauth2/v2.0/token", &fields).await
    };
    assert_eq!(redeem(&field("code"), verifier).await.0, 200);
    assert_eq!(code(&redeem(&field("code"), verifier).await), 54005);
    assert_eq!(code(&redeem("nonsense", verifier).await), 70000);
}

#[tokio::test]
async fn the_old_endpoint_speaks_in_strings() {
    let simulator = start().await;
    let fields = [
        ("grant_type", "password"),
        ("client_id", PUBLIC_CLIENT_ID),
        ("resource", "https://outlook.office365.com/"),
        ("username", ALICE.0),
        ("password", ALICE.1),
    ];
    let (status, answer) = form(&simulator, "/contoso.com/oauth2/token", &fields).await;
    assert_eq!(status, 200);
    assert!(answer["expires_in"].is_string() && answer["expires_on"].is_string());
    assert_eq!(code(&form(&simulator, "/contoso.com/oauth2/v2.0/token", &fields).await), 901_002);
}

#[tokio::test]
async fn the_identity_provider_misbehaves_as_told() {
    let simulator = start().await;
    let mischief = simulator.mischief();
    let ask = async || password(&simulator, ALICE.0, ALICE.1, OUTLOOK).await;
    for (fault, status) in [
        (IdentityFault::Throttled { retry_after: Some("7".to_owned()) }, 429),
        (IdentityFault::Status(503), 503),
        (IdentityFault::Html, 200),
        (IdentityFault::Malformed, 200),
        (IdentityFault::Empty, 200),
        (IdentityFault::WrongType, 200),
        (IdentityFault::Redirect("https://elsewhere.example/".to_owned()), 302),
        (IdentityFault::AadSts(90033), 503),
    ] {
        mischief.identity_times(1, fault.clone());
        let (found, answer) = ask().await;
        assert_eq!(found, status, "{fault:?}");
        assert!(answer["access_token"].as_str().is_none(), "{fault:?}: {answer}");
    }
    mischief.identity_times(1, IdentityFault::ExpiresIn(ExpiresIn::Text("5".to_owned())));
    assert_eq!(ask().await.1["expires_in"], "5");
    mischief.identity_times(1, IdentityFault::ExpiresIn(ExpiresIn::Missing));
    assert!(ask().await.1.get("expires_in").is_none());
    assert!(ask().await.1["expires_in"].is_number());
    mischief.identity_times(1, IdentityFault::TokenSize(9000));
    assert!(ask().await.1["access_token"].as_str().unwrap().len() >= 9000);

    mischief.identity(IdentityFault::Reset);
    let path = "/contoso.com/oauth2/v2.0/token";
    assert!(try_post(&simulator, simulator.authority(), path, "", "grant_type=password").await.is_err());
    mischief.calm();
    assert_eq!(ask().await.0, 200);
}

#[tokio::test]
async fn a_service_that_is_down_refuses_connections_until_it_is_up_again() {
    let simulator = start().await;
    simulator.mischief().mail(Service::Imap, MailFault::RefuseConnect);
    simulator.mischief().identity(IdentityFault::Down);
    for address in [simulator.imap(), simulator.authority()] {
        let mut refused = false;
        for _ in 0..100 {
            refused = matches!(TcpStream::connect(address).await, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused);
            if refused {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(refused);
    }
    assert!(TcpStream::connect(simulator.pop3()).await.is_ok());
    simulator.mischief().calm();
    for _ in 0..100 {
        if TcpStream::connect(simulator.imap()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(imap(&simulator).await);
}

#[tokio::test]
async fn mail_services_misbehave_as_told() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let mischief = simulator.mischief();
    let login = format!("a AUTHENTICATE XOAUTH2 {}", xoauth2(ALICE.0, &token));

    mischief.mail_times(1, Service::Imap, MailFault::RefuseGreeting);
    let mut talk = Talk::tls(&simulator, simulator.imap()).await.unwrap();
    talk.expect("* BYE").await;
    assert!(talk.ended().await);

    mischief.mail_times(1, Service::Imap, MailFault::Throttle);
    imap(&simulator).await.ask(&login, "a NO Request is throttled. Suggested Backoff Time: 299910").await;

    mischief.mail_times(1, Service::Imap, MailFault::RefuseToken);
    mischief.mail_times(1, Service::Imap, MailFault::ErrorChallenge);
    let mut talk = imap(&simulator).await;
    talk.ask(&login, "+ eyJ").await;
    talk.ask("", "a NO AUTHENTICATE failed.").await;

    mischief.mail_times(1, Service::Imap, MailFault::EmptyChallenge);
    let mut talk = imap(&simulator).await;
    talk.ask(&login, "+").await;
    talk.ask("", "a OK").await;

    mischief.mail_times(1, Service::Imap, MailFault::AuthenticatedButNotConnected);
    let mut talk = imap(&simulator).await;
    talk.ask(&login, "a OK").await;
    talk.ask("b NOOP", "b OK").await;
    talk.ask("c LIST \"\" *", "c BAD User is authenticated but not connected.").await;

    mischief.mail_times(1, Service::Imap, MailFault::ByeAccessTokenExpired(Duration::from_millis(50)));
    let mut talk = imap(&simulator).await;
    talk.ask(&login, "a OK").await;
    talk.expect("* BYE Session invalidated - AccessTokenExpired").await;

    mischief.mail(Service::Imap, MailFault::ConcurrencyLimit(1));
    let mut first = imap(&simulator).await;
    first.ask(&login, "a OK").await;
    imap(&simulator).await.ask(&login, "a NO Request is throttled.").await;
    mischief.calm();

    mischief.mail_times(1, Service::Imap, MailFault::CloseAt(Step::Login));
    let mut talk = imap(&simulator).await;
    talk.send(&format!("{login}\r\n")).await;
    assert!(talk.try_line().await.is_err(), "no close_notify");

    mischief.mail_times(1, Service::Smtp, MailFault::ResetAt(Step::Capability));
    let mut talk = Talk::plain(simulator.smtp()).await;
    talk.expect("220").await;
    talk.send("EHLO x\r\n").await;
    assert_eq!(talk.try_line().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    mischief.mail_times(1, Service::Pop3, MailFault::HalfGreeting);
    let mut talk = Talk::plain(simulator.pop3_starttls()).await;
    assert!(timeout(Duration::from_millis(200), talk.stream.read_line(&mut String::new())).await.is_err());
}

#[tokio::test]
async fn bad_certificates_are_shown_as_told() {
    let simulator = start().await;
    for (fault, says) in [
        (CertificateFault::WrongName, "not valid for name"),
        (CertificateFault::Expired, "expired"),
        (CertificateFault::UnknownIssuer, "UnknownIssuer"),
    ] {
        simulator.mischief().certificate(Service::Imap, fault);
        let error = Talk::tls(&simulator, simulator.imap()).await.err().unwrap().to_string();
        assert!(error.contains(says), "{fault:?}: {error}");
        simulator.mischief().calm();
    }
    assert!(Talk::tls(&simulator, simulator.imap()).await.is_ok());
}

#[tokio::test]
async fn ews_misbehaves_as_told() {
    let simulator = start().await;
    let token = token(&simulator).await;
    let mischief = simulator.mischief();
    let soap = r#"<s:Envelope xmlns:s="s" xmlns:m="m" xmlns:t="t"><s:Body><m:GetFolder><m:FolderIds><t:DistinguishedFolderId Id="inbox"/></m:FolderIds></m:GetFolder></s:Body></s:Envelope>"#;
    let headers = format!("Authorization: Bearer {token}\r\n");
    let ask = async || post(&simulator, simulator.ews(), "/ews/exchange.asmx", &headers, soap).await;
    for (fault, status, says) in [
        (EwsFault::Unauthorized, 401, "x-ms-diagnostics: 2000003;reason="),
        (EwsFault::Forbidden, 403, "restrict-access-confirm: 1"),
        (EwsFault::Throttled(9), 429, "retry-after: 9"),
        (EwsFault::Unavailable(9), 503, "retry-after: 9"),
        (EwsFault::Locked, 456, ""),
        (EwsFault::ServerBusy, 500, "BackOffMilliseconds"),
        (
            EwsFault::Redirect("https://elsewhere.example/".to_owned()),
            302,
            "location: https://elsewhere.example/",
        ),
        (EwsFault::SlowBody(Duration::from_millis(1)), 200, "transfer-encoding: chunked"),
    ] {
        mischief.ews_times(1, fault.clone());
        let (found, answer) = ask().await;
        assert_eq!(found, status, "{fault:?}");
        assert!(answer.contains(says), "{fault:?}: {answer}");
    }
    let (status, answer) = ask().await;
    assert_eq!(status, 200);
    assert!(answer.contains("<t:DisplayName>Inbox</t:DisplayName>"), "{answer}");
    assert!(answer.contains("set-cookie: exchangecookie="), "{answer}");
    mischief.ews_times(1, EwsFault::CloseMidBody);
    let whole = try_post(&simulator, simulator.ews(), "/ews/exchange.asmx", &headers, soap).await;
    assert!(
        whole.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof),
        "no close_notify in the middle"
    );

    simulator.tenant().change_application(PUBLIC_CLIENT_ID, |app| app.ews_allowed = false);
    assert_eq!(ask().await.0, 403);
    simulator.tenant().change_application(PUBLIC_CLIENT_ID, |app| app.ews_allowed = true);
    simulator.tenant().set(ALICE.0, Condition::EwsDisabled, true);
    assert_eq!(ask().await.0, 403);
    simulator.expire_tokens();
    assert_eq!(ask().await.0, 401);
}

#[tokio::test]
async fn dropping_the_simulator_ends_its_sessions() {
    let simulator = start().await;
    let mut talk = imap(&simulator).await;
    let address = simulator.imap();
    drop(simulator);
    assert!(talk.try_line().await.map_or(true, |line| line.is_empty()));
    for _ in 0..100 {
        if TcpStream::connect(address).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the listener is still open");
}
