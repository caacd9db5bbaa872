//! Whatever breaks, at whatever step: the mail client gets the right refusal in time, the log says what it was,
//! and no descriptor stays open.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mailkey::simulator::{
    ALICE, BOB, CertificateFault, EwsFault, IdentityFault, MailFault, Service, Simulator, Step,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::corporate::{Mailkey, Plan, office, until, what};
use crate::ports::free_port;

/// In every configuration here, so that silence does not take long.
const LIMITS: &str =
    "limits: {connect-timeout: 1s, login-timeout: 6s, wait-for-session: 1s, warm-connections: 0}\n";

/// No answer may take longer: twice the login's limit, and a busy machine.
const IN_TIME: Duration = Duration::from_secs(15);

const LISTENERS: [&str; 6] = ["imap", "imap-up-starttls", "pop3", "smtp", "smtp-implicit", "ews"];

/// What a fake proxy does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Resets it when the request has come.
    Reset,
    /// Closes it at once.
    Close,
    /// Reads, and says nothing.
    Silence,
    /// Half an answer, then nothing.
    HalfAnswer,
    /// Closes its own direction only, without an answer.
    HalfClose,
    /// Says this, and stays.
    Says(&'static str),
    /// A head without end.
    Endless,
    /// Opens the tunnel and says this in it.
    OpensAndSays(&'static str),
    /// Opens the tunnel and closes it.
    OpensAndCloses,
    /// Opens the tunnel and resets it.
    OpensAndResets,
    /// Opens the tunnel, and nothing comes out of it.
    OpensAndHangs,
}

struct FakeProxy {
    address: SocketAddr,
    act: Arc<Mutex<Act>>,
}

impl FakeProxy {
    async fn start(act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { address: listener.local_addr().unwrap(), act: Arc::new(Mutex::new(act)) };
        let act = Arc::clone(&fake.act);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let act = *act.lock().unwrap();
                tokio::spawn(play(socket, act));
            }
        });
        fake
    }
}

async fn play(mut socket: TcpStream, act: Act) {
    if act == Act::Close {
        return;
    }
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let opened = "HTTP/1.1 200 Connection established\r\n\r\n";
    let words = match act {
        Act::HalfAnswer => "HTTP/1.1 200 Connec",
        Act::Says(words) => words,
        Act::Endless => "HTTP/1.1 200 OK\r\n",
        Act::OpensAndSays(_) | Act::OpensAndCloses | Act::OpensAndResets | Act::OpensAndHangs => opened,
        Act::Reset | Act::Close | Act::Silence | Act::HalfClose => "",
    };
    drop(socket.write_all(words.as_bytes()).await);
    match act {
        Act::Reset | Act::OpensAndResets => drop(socket.set_zero_linger()),
        Act::OpensAndCloses | Act::Close => {}
        Act::Endless => while socket.write_all(b"X-Padding: yyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").await.is_ok() {},
        Act::HalfClose => {
            drop(socket.shutdown().await);
            drain(socket).await;
        }
        Act::OpensAndSays(words) => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(socket.write_all(words.as_bytes()).await);
            drain(socket).await;
        }
        Act::Silence | Act::HalfAnswer | Act::Says(_) | Act::OpensAndHangs => drain(socket).await,
    }
}

/// Reads until the other side closes.
async fn drain(mut socket: TcpStream) {
    let mut bytes = [0; 4096];
    while socket.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
}

/// Whether this answer says "not now" in the words of its protocol.
pub fn is_temporary(listener: &str, answer: &str) -> bool {
    match listener.split('-').next().unwrap() {
        "imap" => answer.starts_with("a1 NO [UNAVAILABLE] "),
        "pop3" => answer.starts_with("-ERR [SYS/TEMP] "),
        "smtp" => answer.starts_with("454 4.7.0 "),
        _ => answer.starts_with("HTTP/1.1 503 ") && answer.to_lowercase().contains("\r\nretry-after: "),
    }
}

/// Signs in at all of these listeners at once; each must be refused for now, in time, and with one of these
/// codes. Gives the log lines.
async fn all_refused(
    mailkey: &Arc<Mailkey>,
    listeners: &[&'static str],
    codes: &[&str],
    why: &str,
) -> Vec<serde_json::Value> {
    all_refused_to(ALICE, mailkey, listeners, codes, why).await
}

/// The same for somebody else.
pub async fn all_refused_to(
    who: (&'static str, &'static str),
    mailkey: &Arc<Mailkey>,
    listeners: &[&'static str],
    codes: &[&str],
    why: &str,
) -> Vec<serde_json::Value> {
    let mut logins = tokio::task::JoinSet::new();
    for &listener in listeners {
        let mailkey = Arc::clone(mailkey);
        logins.spawn(async move {
            let nth = mailkey.refusals(listener) + 1;
            let begun = Instant::now();
            let answer = mailkey.sign_in_as(listener, who).await;
            (listener, answer, begun.elapsed(), mailkey.refusal(listener, nth).await)
        });
    }
    let mut lines = Vec::new();
    while let Some(login) = logins.join_next().await {
        let (listener, answer, took, refusal) = login.unwrap();
        assert!(is_temporary(listener, &answer), "{why} at {listener}: {answer}");
        assert!(took < IN_TIME, "{why} at {listener}: {took:?}");
        let code = refusal["code"].as_str().unwrap();
        assert!(codes.contains(&code), "{why} at {listener}: expected {codes:?}: {refusal}");
        assert!(!refusal["remedy"].as_str().unwrap().is_empty(), "{refusal}");
        lines.push(refusal);
    }
    lines
}

pub async fn no_descriptor_stays(mailkey: &Mailkey, before: usize) {
    until(&format!("no more than {before} descriptors, as before"), || mailkey.descriptors() <= before).await;
}

/// `use-for` and the fake proxy's address; everybody is on loopback otherwise.
async fn with_proxy(office: &Simulator, fake: &FakeProxy, use_for: &str) -> Arc<Mailkey> {
    let sections =
        format!("outbound-proxy: {{url: 'http://{}', use-for: [{use_for}]}}\n{LIMITS}", fake.address);
    Arc::new(Mailkey::start(office, Plan { sections, host: Some("localhost"), ..Plan::default() }).await)
}

pub async fn direct(office: &Simulator) -> Arc<Mailkey> {
    let plan = Plan { sections: LIMITS.to_owned(), host: Some("localhost"), ..Plan::default() };
    Arc::new(Mailkey::start(office, plan).await)
}

/// Each act of the proxy, and the code for those with TLS from the start, and for those that begin in clear text.
const ACTS: [(Act, &str, &str); 16] = [
    (Act::Reset, "PROXY-BROKEN", "PROXY-BROKEN"),
    (Act::Close, "PROXY-BROKEN", "PROXY-BROKEN"),
    (Act::Silence, "PROXY-TIMEOUT", "PROXY-TIMEOUT"),
    (Act::HalfAnswer, "PROXY-TIMEOUT", "PROXY-TIMEOUT"),
    (Act::HalfClose, "PROXY-BROKEN", "PROXY-BROKEN"),
    (Act::Endless, "PROXY-BROKEN", "PROXY-BROKEN"),
    (Act::Says("220 mail.contoso.com ESMTP\r\n\r\n"), "PROXY-BROKEN", "PROXY-BROKEN"),
    (Act::Says("HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n"), "PROXY-PAGE", "PROXY-PAGE"),
    (Act::Says("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>"), "PROXY-PAGE", "PROXY-PAGE"),
    (
        Act::Says(
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        ),
        "PROXY-SIGN-IN",
        "PROXY-SIGN-IN",
    ),
    (Act::Says("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), "PROXY-FORBIDS", "PROXY-FORBIDS"),
    (
        Act::Says("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
        "PROXY-CANNOT-REACH",
        "PROXY-CANNOT-REACH",
    ),
    (Act::OpensAndSays("<html><title>Sign in</title>\r\n"), "TLS-NONE", "UPSTREAM-PROTOCOL"),
    (Act::OpensAndCloses, "TLS-HANDSHAKE", "UPSTREAM-BROKEN"),
    (Act::OpensAndResets, "TLS-HANDSHAKE", "UPSTREAM-BROKEN"),
    (Act::OpensAndHangs, "UPSTREAM-TIMEOUT", "UPSTREAM-TIMEOUT"),
];

#[tokio::test]
async fn whatever_a_proxy_does_to_mail_and_ews_is_refused_in_time_and_explained() {
    let office = office().await;
    let fake = FakeProxy::start(Act::Close).await;
    let mailkey = with_proxy(&office, &fake, "ews, mail").await;
    // the token is had once; from here on only the way to the mailbox is tried
    all_refused(&mailkey, &["imap"], &["PROXY-BROKEN"], "the first").await;
    let before = mailkey.descriptors();
    for (act, implicit, clear) in ACTS {
        *fake.act.lock().unwrap() = act;
        let (why, implicit, clear) = (format!("{act:?}"), [implicit], [clear]);
        tokio::join!(
            all_refused(&mailkey, &["imap", "pop3", "smtp-implicit", "ews"], &implicit, &why),
            all_refused(&mailkey, &["imap-up-starttls", "smtp"], &clear, &why),
        );
    }
    no_descriptor_stays(&mailkey, before).await;
}

#[tokio::test]
async fn whatever_a_proxy_does_to_token_requests_is_refused_in_time_and_explained() {
    let office = office().await;
    let mut tries = tokio::task::JoinSet::new();
    let office = Arc::new(office);
    for (act, code, _) in ACTS {
        let office = Arc::clone(&office);
        tries.spawn(async move {
            let fake = FakeProxy::start(act).await;
            let mailkey = with_proxy(&office, &fake, "identity").await;
            let before = mailkey.descriptors();
            // what happens behind an open tunnel is between us and the identity provider
            let codes: &[&str] = match code {
                "TLS-NONE" => &["IDENTITY-TLS"],
                "TLS-HANDSHAKE" => &["IDENTITY-BROKEN-OFF"],
                "UPSTREAM-TIMEOUT" => &["IDENTITY-TIMEOUT", "IDENTITY-SLOW"],
                code => &[code],
            };
            let refusals = all_refused(&mailkey, &["imap"], codes, &format!("{act:?}")).await;
            assert!(what(&refusals[0]).contains("https://localhost"), "{refusals:?}");
            no_descriptor_stays(&mailkey, before).await;
        });
    }
    while let Some(one) = tries.join_next().await {
        one.unwrap();
    }
}

#[tokio::test]
async fn a_proxy_that_is_away_is_named_for_tokens_mail_and_ews() {
    let office = office().await;
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let fake = FakeProxy { address: nobody, act: Arc::new(Mutex::new(Act::Close)) };
    for use_for in ["identity", "ews, mail"] {
        let mailkey = with_proxy(&office, &fake, use_for).await;
        all_refused(&mailkey, &["pop3", "ews"], &["PROXY-UNREACHABLE"], use_for).await;
        assert!(mailkey.raw_log().contains(&format!("may connect to {nobody}")));
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_apart_with_issuer_and_fingerprint() {
    let office = office().await;
    let mailkey = direct(&office).await;
    for (fault, code, word) in [
        (CertificateFault::WrongName, "TLS-WRONG-NAME", "`wrong.example`"),
        (CertificateFault::Expired, "TLS-EXPIRED", "2021-01-01"),
        (CertificateFault::UnknownIssuer, "TLS-UNKNOWN-ISSUER", "CN=Nobody's root"),
    ] {
        office.mischief().calm();
        for service in [Service::Imap, Service::Pop3, Service::Smtp, Service::Ews] {
            office.mischief().certificate(service, fault);
        }
        for refusal in all_refused(&mailkey, &LISTENERS, &[code], code).await {
            assert!(what(&refusal).contains(word), "{refusal}");
            if fault == CertificateFault::UnknownIssuer {
                let remedy = refusal["remedy"].as_str().unwrap();
                assert!(remedy.contains("`tls.extra-roots-file`"), "{remedy}");
                assert!(has_fingerprint(what(&refusal)) && has_fingerprint(remedy), "{refusal}");
            }
        }
    }

    // the identity provider, where no token is at hand yet
    for (fault, code) in [
        (CertificateFault::WrongName, "IDENTITY-TLS-WRONG-NAME"),
        (CertificateFault::Expired, "IDENTITY-TLS-EXPIRED"),
        (CertificateFault::UnknownIssuer, "IDENTITY-TLS-ISSUER"),
    ] {
        office.mischief().calm();
        office.mischief().certificate(Service::Authority, fault);
        let mailkey = direct(&office).await;
        all_refused(&mailkey, &["imap"], &[code], code).await;
    }
    assert_eq!(
        office.token_requests(),
        1,
        "a token was asked for over a connection that is not to be trusted"
    );
}

/// SHA-256, in pairs of hexadecimal digits.
fn has_fingerprint(text: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_hexdigit() || c == ':')).any(|word| word.trim_matches(':').len() == 95)
}

#[tokio::test]
async fn whatever_breaks_in_the_dialogue_with_upstream_is_refused_in_time_and_leaves_nothing_open() {
    let office = office().await;
    let mailkey = direct(&office).await;
    for listener in LISTENERS {
        let answer = mailkey.sign_in(listener).await;
        assert!(!is_temporary(listener, &answer), "{listener}: {answer}");
    }
    // Bob is in already, and stays
    let mut bob = mailkey.wire("imap").await;
    bob.until("* OK").await;
    bob.ask(&format!("b LOGIN {} \"{}\"", BOB.0, BOB.1), "b OK").await;
    let requests = office.token_requests();
    let before = mailkey.descriptors();
    let mail = ["imap", "imap-up-starttls", "pop3", "smtp", "smtp-implicit"];
    let go = async |fault: MailFault, listeners: &[&'static str], codes: &[&str]| {
        office.mischief().calm();
        for service in [Service::Imap, Service::Pop3, Service::Smtp] {
            office.mischief().mail(service, fault.clone());
        }
        all_refused(&mailkey, listeners, codes, &format!("{fault:?}")).await;
    };
    let starttls = ["imap-up-starttls", "smtp"];
    // a reset may come as early as the connection itself
    let broken = ["UPSTREAM-BROKEN", "TLS-HANDSHAKE", "UPSTREAM-UNREACHABLE"];
    let silent = ["UPSTREAM-TIMEOUT"];
    go(MailFault::RefuseConnect, &mail, &["UPSTREAM-UNREACHABLE"]).await;
    go(MailFault::HangGreeting, &mail, &silent).await;
    go(MailFault::HalfGreeting, &mail, &silent).await;
    go(MailFault::RefuseGreeting, &mail, &["IMAP-BYE", "POP3-NOT-NOW", "SMTP-421-4.3.2"]).await;
    bob.ask("b NOOP", "b OK").await;
    for (step, listeners) in [
        (Step::Greeting, &mail[..]),
        (Step::Capability, &["smtp", "smtp-implicit"]),
        (Step::StartTls, &starttls),
        (Step::Login, &mail),
    ] {
        go(MailFault::CloseAt(step), listeners, &broken).await;
        go(MailFault::ResetAt(step), listeners, &broken).await;
        go(MailFault::HangAt(step), listeners, &silent).await;
        bob.ask("b NOOP", "b OK").await;
    }
    office.mischief().calm();
    for service in [Service::Imap, Service::Pop3, Service::Smtp] {
        office.mischief().mail(service, MailFault::SlowGreeting(Duration::from_millis(300)));
        office.mischief().mail(service, MailFault::Trickle);
    }
    for listener in LISTENERS {
        let answer = mailkey.sign_in(listener).await;
        assert!(!is_temporary(listener, &answer), "afterwards at {listener}: {answer}");
    }
    bob.ask("b LOGOUT", "b OK").await;
    assert_eq!(office.token_requests(), requests, "what upstream does is no reason to ask for another token");
    no_descriptor_stays(&mailkey, before).await;
}

#[tokio::test]
async fn an_ews_or_an_identity_provider_that_is_away_or_breaks_off_is_told_in_time() {
    let office = office().await;
    let mailkey = direct(&office).await;
    office.mischief().ews(EwsFault::RefuseConnect);
    all_refused(&mailkey, &["ews"], &["UPSTREAM-UNREACHABLE"], "EWS is away").await;
    for (fault, codes) in
        [(IdentityFault::Down, ["IDENTITY-UNREACHABLE"]), (IdentityFault::Reset, ["IDENTITY-BROKEN-OFF"])]
    {
        let mailkey = direct(&office).await;
        let before = mailkey.descriptors();
        office.mischief().calm();
        office.mischief().identity(fault.clone());
        all_refused(&mailkey, &["smtp"], &codes, &format!("{fault:?}")).await;
        no_descriptor_stays(&mailkey, before).await;
    }
}
