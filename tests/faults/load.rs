//! Under load: every message that was taken is there once, byte for byte, whatever broke meanwhile; and everybody who
//! comes back at once after an outage is served at the cost of one token request an account.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, BOB, Event, MailFault, Service, Settings, Simulator, Step, User};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::proxies::corporate::{Mailkey, Plan, must, office_with, until};
use crate::stage::Wire;

const SMTP_WORKERS: usize = 8;
const IMAP_WORKERS: usize = 4;

/// What became of the messages, by their text.
#[derive(Default)]
struct Ledger {
    /// Answered with 250 or OK.
    taken: Mutex<Vec<String>>,
    /// Begun, and never answered.
    unanswered: Mutex<Vec<String>>,
    /// Messages answered so far.
    count: AtomicUsize,
    /// Where the proxy is now; none while there is none.
    addresses: Mutex<HashMap<&'static str, SocketAddr>>,
    is_over: AtomicBool,
}

impl Ledger {
    fn leads_to(&self, mailkey: &Mailkey) {
        let mut addresses = self.addresses.lock().unwrap();
        for listener in ["smtp", "imap"] {
            addresses.insert(listener, mailkey.address(listener));
        }
    }

    /// There is no proxy. Its ports may be anybody's from now on, and what those take is not ours to count.
    fn leads_nowhere(&self) {
        self.addresses.lock().unwrap().clear();
    }

    /// Waits until so many more were taken.
    async fn more(&self, count: usize, meanwhile: &str) {
        let goal = self.count.load(Ordering::SeqCst) + count;
        until(&format!("{count} more messages are taken while {meanwhile}"), || {
            self.count.load(Ordering::SeqCst) >= goal
        })
        .await;
    }

    fn write(&self, text: String, is_taken: bool) {
        if is_taken {
            self.taken.lock().unwrap().push(text);
            self.count.fetch_add(1, Ordering::SeqCst);
        } else {
            self.unanswered.lock().unwrap().push(text);
        }
    }
}

/// Text that is like no other, of a size between some octets and some records of TLS.
fn message(worker: usize, number: usize) -> String {
    let size = [10, 900, 20_000, 90_000][number % 4];
    let line = format!("..{worker}.{number} dots at the start, and text to the end of the line\r\n");
    format!(
        "From: alice@contoso.com\r\nSubject: {worker}.{number}\r\n\r\n{}",
        line.repeat(size / line.len() + 1)
    )
}

/// A connection; `None`: the proxy is away just now.
async fn dial(ledger: &Ledger, listener: &str) -> Option<Wire> {
    let address = ledger.addresses.lock().unwrap().get(listener).copied()?;
    let mut wire = Wire(BufReader::new(TcpStream::connect(address).await.ok()?));
    let greeting = wire.line().await?;
    (greeting.starts_with("220") || greeting.starts_with("* OK")).then_some(wire)
}

/// Says something that may find nobody there any more.
async fn said(wire: &mut Wire, bytes: impl AsRef<[u8]>) -> Option<()> {
    wire.0.write_all(bytes.as_ref()).await.ok()
}

/// The next line that begins with one of these; `None`: there is none.
async fn heard(wire: &mut Wire, starts: &[&str]) -> Option<String> {
    loop {
        let line = wire.line().await?;
        if starts.iter().any(|start| line.starts_with(start)) {
            return Some(line);
        }
    }
}

async fn smtp_login(ledger: &Ledger) -> Option<Wire> {
    let mut wire = dial(ledger, "smtp").await?;
    said(&mut wire, "EHLO load\r\n").await?;
    heard(&mut wire, &["250 "]).await?;
    let plain = BASE64_STANDARD.encode(format!("\0{}\0{}", ALICE.0, ALICE.1));
    said(&mut wire, format!("AUTH PLAIN {plain}\r\n")).await?;
    heard(&mut wire, &["2", "4", "5"]).await?.starts_with("235").then_some(wire)
}

/// One message: pipelined, by DATA or by chunks. Whether it was taken; `None`: the session is over without a word.
async fn smtp_send(wire: &mut Wire, text: &str, by_chunks: bool) -> Option<bool> {
    let envelope = "MAIL FROM:<alice@contoso.com>\r\nRCPT TO:<bob@contoso.com>\r\n";
    if by_chunks {
        let (first, second) = text.split_at(text.len() / 2);
        let chunks = format!("BDAT {}\r\n{first}BDAT {} LAST\r\n{second}", first.len(), second.len());
        said(wire, format!("{envelope}{chunks}")).await?;
        for _ in 0..3 {
            if !heard(wire, &["2", "4", "5"]).await?.starts_with("250") {
                return Some(false);
            }
        }
    } else {
        said(wire, format!("{envelope}DATA\r\n")).await?;
        for expected in ["250", "250", "354"] {
            if !heard(wire, &["2", "3", "4", "5"]).await?.starts_with(expected) {
                return Some(false);
            }
        }
        let stuffed = text.replace("\r\n.", "\r\n..");
        said(wire, format!("{stuffed}.\r\n")).await?;
    }
    Some(heard(wire, &["2", "4", "5"]).await?.starts_with("250"))
}

async fn imap_login(ledger: &Ledger) -> Option<Wire> {
    let mut wire = dial(ledger, "imap").await?;
    said(&mut wire, format!("a LOGIN {} \"{}\"\r\n", ALICE.0, ALICE.1)).await?;
    heard(&mut wire, &["a "]).await?.starts_with("a OK").then_some(wire)
}

async fn imap_append(wire: &mut Wire, text: &str, at_once: bool) -> Option<bool> {
    let plus = if at_once { "+" } else { "" };
    said(wire, format!("b APPEND Drafts {{{}{plus}}}\r\n", text.len())).await?;
    if !at_once && !heard(wire, &["+", "b "]).await?.starts_with('+') {
        return Some(false);
    }
    said(wire, format!("{text}\r\n")).await?;
    Some(heard(wire, &["b "]).await?.starts_with("b OK"))
}

/// Sends one message after the other, each once, until it is over; a session that ends is followed by another.
async fn work(ledger: Arc<Ledger>, worker: usize) {
    let by_smtp = worker < SMTP_WORKERS;
    let mut session: Option<Wire> = None;
    for number in 0.. {
        if ledger.is_over.load(Ordering::SeqCst) {
            return;
        }
        if session.is_none() {
            session = if by_smtp { smtp_login(&ledger).await } else { imap_login(&ledger).await };
        }
        let Some(mut wire) = session.take() else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let text = message(worker, number);
        let answer = if by_smtp {
            smtp_send(&mut wire, &text, number % 3 == 0).await
        } else {
            imap_append(&mut wire, &text, number % 2 == 0).await
        };
        ledger.write(text, answer == Some(true));
        // now and then a new session, too
        if answer == Some(true) && number % 7 != 6 {
            session = Some(wire);
        }
    }
}

async fn start(office: &Simulator) -> Mailkey {
    let sections =
        "limits: {smtp-sessions-per-mailbox: 50, imap-sessions-per-mailbox: 50, login-timeout: 2m, \
                    connect-timeout: 30s, drain-timeout: 2m}\n"
            .to_owned();
    Mailkey::start(office, Plan { sections, host: Some("localhost"), ..Plan::default() }).await
}

/// How often each text is in a folder.
fn counted(office: &Simulator, mailbox: &str, folder: &str) -> HashMap<Vec<u8>, usize> {
    let mut counts = HashMap::new();
    for message in office.messages(mailbox, folder) {
        *counts.entry(message.to_vec()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_that_was_taken_is_there_once_whatever_broke_meanwhile() {
    let office = office_with(Settings { smtp_sessions_per_mailbox: 200, ..Settings::default() }).await;
    let mut mailkey = start(&office).await;
    let ledger = Arc::new(Ledger::default());
    ledger.leads_to(&mailkey);
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..SMTP_WORKERS + IMAP_WORKERS {
        workers.spawn(work(Arc::clone(&ledger), worker));
    }
    ledger.more(60, "all is well").await;

    let mischief = office.mischief();
    for step in [Step::Received, Step::Transfer, Step::AfterLogin, Step::Login] {
        for fault in [MailFault::ResetAt as fn(Step) -> MailFault, MailFault::CloseAt] {
            mischief.mail_times(4, Service::Smtp, fault(step));
            mischief.mail_times(2, Service::Imap, fault(step));
        }
    }
    ledger.more(80, "upstream breaks off").await;
    mischief.calm();

    let path = mailkey.folder.path().join("proxy.yaml");
    let good = std::fs::read_to_string(&path).unwrap();
    let reloads = |taken: &str| mailkey.log().iter().filter(|line| line.to_string().contains(taken)).count();
    for round in 1..=3 {
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        mailkey.signal("-HUP");
        until("the broken file is not taken", || reloads("configuration not reloaded") >= round).await;
        std::fs::write(&path, &good).unwrap();
        mailkey.signal("-HUP");
        until("the good file is taken", || reloads("configuration reloaded") >= round).await;
        ledger.more(10, "the configuration is reloaded").await;
    }

    for _ in 0..2 {
        let next = start(&office).await;
        ledger.leads_to(&next);
        mailkey.signal("-TERM");
        assert_eq!(mailkey.ended().await, Some(0));
        let log = mailkey.raw_log();
        assert!(!log.contains("before they came to their end"), "a session was cut: {log}");
        mailkey = next;
        ledger.more(40, "the proxy is replaced").await;
    }

    for _ in 0..3 {
        ledger.leads_nowhere();
        mailkey.signal("-KILL");
        mailkey.ended().await;
        mailkey = start(&office).await;
        ledger.leads_to(&mailkey);
        ledger.more(40, "the proxy was killed").await;
    }
    ledger.is_over.store(true, Ordering::SeqCst);
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }

    let (inbox, drafts) = (counted(&office, BOB.0, "INBOX"), counted(&office, ALICE.0, "Drafts"));
    let (taken, unanswered) = (ledger.taken.lock().unwrap(), ledger.unanswered.lock().unwrap());
    let there = |text: &String| {
        let text = text.as_bytes();
        inbox.get(text).copied().unwrap_or(0) + drafts.get(text).copied().unwrap_or(0)
    };
    for text in taken.iter() {
        assert_eq!(there(text), 1, "taken, and not there once: {}", &text[..60]);
    }
    for text in unanswered.iter() {
        assert!(there(text) <= 1, "there twice: {}", &text[..60]);
    }
    let known: usize = taken.iter().chain(unanswered.iter()).map(there).sum();
    let all: usize = inbox.values().chain(drafts.values()).sum();
    assert_eq!(known, all, "something is there that nobody sent like that");
    assert!(
        taken.len() >= 350 && !unanswered.is_empty(),
        "{} taken, {} unanswered",
        taken.len(),
        unanswered.len()
    );
    assert!(!drafts.is_empty() && !inbox.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_clients_with_fifty_accounts_cost_fifty_token_requests_and_are_all_served() {
    const CLIENTS: usize = 2000;
    const ACCOUNTS: usize = 50;
    // clients and their Office 365 are in this process: the soft limit of many systems is 1,024
    let most = must("prlimit", &["--nofile", "--output", "HARD", "--noheadings"]);
    must("prlimit", &[&format!("--nofile={0}:{0}", most.trim()), "--pid", &std::process::id().to_string()]);
    let name = |account: usize| format!("user{account}@contoso.com");
    let users = (0..ACCOUNTS).map(|account| User::new(&name(account), "Sesame:1")).collect();
    let office = office_with(Settings { users, ..Settings::default() }).await;
    let sections = "limits: {imap-sessions-per-mailbox: 100, login-timeout: 20m, connect-timeout: 10m, \
                    wait-for-session: 20m}\n"
        .to_owned();
    let mailkey =
        Mailkey::start(&office, Plan { sections, host: Some("localhost"), ..Plan::default() }).await;
    let mut waiting = Vec::new();
    for _ in 0..CLIENTS {
        waiting.push(mailkey.wire("imap").await);
    }
    let mut clients = tokio::task::JoinSet::new();
    for (number, mut wire) in waiting.into_iter().enumerate() {
        let login = format!("a LOGIN {} Sesame:1\r\n", name(number % ACCOUNTS));
        clients.spawn(async move {
            wire.say(login).await;
            // with so many at once, silence says nothing
            loop {
                let mut line = String::new();
                assert!(wire.0.read_line(&mut line).await.unwrap() > 0, "hung up on client {number}");
                if line.starts_with("a ") {
                    assert!(line.starts_with("a OK"), "client {number}: {line}");
                    break;
                }
            }
            wire.say("b LOGOUT\r\n").await;
        });
    }
    let mut served = 0;
    while let Some(client) = clients.join_next().await {
        client.unwrap();
        served += 1;
    }
    assert_eq!(served, CLIENTS);
    let asked = office.journal().into_iter().filter(|event| matches!(event, Event::Token(_)));
    let mut asked: Vec<String> = asked.map(|event| format!("{event:?}")).collect();
    asked.sort();
    let log = mailkey.raw_log();
    let about_tokens: Vec<&str> =
        log.lines().filter(|line| line.contains("identity") || line.contains("WARN")).collect();
    assert_eq!(office.token_requests(), ACCOUNTS, "{asked:#?}\n{about_tokens:#?}");
    until("all sessions are over", || mailkey.descriptors() < 100).await;
}
