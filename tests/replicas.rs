//! More than one machine: two replicas behind HAProxy, sharing Redis, with 200 mail clients; one replica is killed
//! and one is drained under load, and everything is counted.
#![cfg(feature = "redis")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{PUBLIC_CLIENT_ID, Settings, Simulator, User};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::proxies::corporate::{Running, spawn};
use crate::stage::{PATIENCE, Wire};
use crate::store::redis::Server as Redis;

/// Whose mail it is; each has two SMTP clients (Exchange Online takes three at once) and three IMAP clients.
const ACCOUNTS: usize = 40;
const SMTP_CLIENTS: usize = 2 * ACCOUNTS;
const IMAP_CLIENTS: usize = 3 * ACCOUNTS;

/// Sends one message over a replica that is drained meanwhile.
const SLOW: &str = "slow@contoso.com";

/// Messages that are accepted before and after each blow.
const ENOUGH: usize = 150;

fn address(account: usize) -> String {
    format!("user{account}@contoso.com")
}

fn password(user: &str) -> String {
    format!("secret of {user}")
}

fn sasl_plain(user: &str) -> String {
    BASE64_STANDARD.encode(format!("\0{user}\0{}", password(user)))
}

/// What surrounds the replicas: the simulator, Redis, HAProxy by the configuration of `deploy/`, and a loopback
/// network of this test run's own for the ports that are written there.
struct Site {
    office: Simulator,
    redis: Redis,
    folder: TempDir,
    net: String,
}

impl Site {
    async fn found() -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let users = (0..ACCOUNTS).map(address).chain([SLOW.to_owned()]);
        let users = users.map(|user| User::new(&user, &password(&user))).collect();
        let office = Simulator::start(Settings { users, ..Settings::default() }).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("office-ca.pem"), office.ca_pem()).unwrap();
        let key = folder.path().join("store-key");
        std::fs::write(&key, [5; 32]).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let own = std::process::id();
        let net = format!("127.{}.{}", 64 + own / 256 % 64, own % 256);
        Self { office, redis: Redis::start(&[]).await, folder, net }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The shipped configuration at addresses of this machine: nothing else of it is changed.
    fn haproxy(&self) -> Running {
        let mut text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/haproxy.cfg")).unwrap();
        for (from, to) in [
            ("/run/haproxy/mailkey.sock", self.file("haproxy.sock").to_str().unwrap()),
            ("bind :993", &format!("bind {}.10:1993", self.net)),
            ("bind :465", &format!("bind {}.10:1465", self.net)),
            ("mailkey-1 192.0.2.11:", &format!("mailkey-1 {}.11:", self.net)),
            ("mailkey-2 192.0.2.12:", &format!("mailkey-2 {}.12:", self.net)),
        ] {
            assert!(text.contains(from), "deploy/haproxy.cfg has no `{from}`");
            text = text.replace(from, to);
        }
        let path = self.file("haproxy.cfg");
        std::fs::write(&path, text).unwrap();
        let log = std::fs::File::create(self.file("haproxy.log")).unwrap();
        spawn(Command::new("haproxy").arg("-db").arg("-f").arg(path).stdout(log).stderr(Stdio::inherit()))
    }

    /// What HAProxy takes for the state of a replica, over both of its services.
    async fn seen_by_haproxy(&self, number: usize) -> Vec<String> {
        let Ok(mut stats) = UnixStream::connect(self.file("haproxy.sock")).await else { return Vec::new() };
        stats.write_all(b"show stat\n").await.unwrap();
        let mut table = String::new();
        stats.read_to_string(&mut table).await.unwrap();
        let column = table.lines().next().unwrap().split(',').position(|name| name == "status").unwrap();
        let name = format!("mailkey-{number}");
        let rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let rows = rows.filter(|row| row.get(1) == Some(&name.as_str()));
        rows.map(|row| row[column].to_owned()).collect()
    }

    async fn until_haproxy_sees(&self, number: usize, state: &str) {
        eventually(&format!("HAProxy sees replica {number} {state}"), async || {
            let states = self.seen_by_haproxy(number).await;
            states.len() == 2 && states.iter().all(|seen| seen == state)
        })
        .await;
    }

    async fn replica(&self, number: usize) -> Replica {
        let host = format!("{}.1{number}", self.net);
        let [imap, smtp] = [self.office.imap().port(), self.office.smtp().port()];
        let text = format!(
            "oauth:\n  tenant-authority: '{authority}'\n  directory-id: organizations\n\
             \x20 client-id: {PUBLIC_CLIENT_ID}\n  scope: https://outlook.office.com/.default\n\
             listeners:\n\
             \x20 - {{name: imap, protocol: imap, listen: '{host}:1993', proxy-protocol-from: [127.0.0.0/8], \
             upstream: 'localhost:{imap}'}}\n\
             \x20 - {{name: smtp, protocol: smtp, listen: '{host}:1465', proxy-protocol-from: [127.0.0.0/8], \
             upstream: 'localhost:{smtp}', upstream-tls: starttls}}\n\
             tls: {{extra-roots-file: office-ca.pem}}\n\
             tokens: {{store: '{redis}', key-file: store-key}}\n\
             admin: {{listen: '{host}:9143'}}\n",
            authority = self.office.authority_url(),
            redis = self.redis.url(),
        );
        let configuration = self.file(&format!("replica-{number}.yaml"));
        std::fs::write(&configuration, text).unwrap();
        let log = self.file(&format!("replica-{number}.log"));
        // a second life gets a log of its own
        let process = spawn(
            Command::new(env!("CARGO_BIN_EXE_mailkey"))
                .args(["run", "--config"])
                .arg(configuration)
                .stderr(std::fs::File::create(&log).unwrap()),
        );
        let replica = Replica { process, host, log };
        eventually("the replica is ready", async || {
            replica.page("/readyz").await.starts_with("HTTP/1.0 200")
        })
        .await;
        replica
    }
}

/// One Mailkey, as a process.
struct Replica {
    process: Running,
    host: String,
    log: PathBuf,
}

impl Replica {
    /// A page of the admin listener, its head included; empty where nobody answers.
    async fn page(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect((self.host.as_str(), 9143)).await {
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
            drop(stream.read_to_string(&mut answer).await);
        }
        answer
    }

    async fn imap_sessions(&self) -> usize {
        let metrics = self.page("/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("mailkey_sessions{listener=\"imap\"} "));
        line.map_or(0, |count| count.parse().unwrap())
    }

    fn signal(&self, signal: &str) {
        let id = self.process.0.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// Every session that this log tells of came to its own end.
fn assert_untouched(log: &str) {
    let mut ended = 0;
    for line in log.lines().filter(|line| line.contains("session ended")) {
        // upstream closes after QUIT and LOGOUT
        let well = ["the mail client closed", "upstream closed"];
        assert!(well.iter().any(|how| line.contains(&format!("ended=\"{how}\""))), "{line}");
        ended += 1;
    }
    assert!(ended > 0, "no session in this log:\n{log}");
    for bad in ["was not sent", "answer to a message is lost", "login refused"] {
        assert!(!log.contains(bad), "{bad}:\n{log}");
    }
}

async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let comes = async {
        while !so().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, comes).await.unwrap_or_else(|_| panic!("it does not come to pass: {what}"));
}

/// What the mail clients count, together.
#[derive(Default)]
struct Tally {
    /// Messages with a 250 for an answer.
    accepted: AtomicUsize,
    /// Messages whose final answer never came.
    lost: AtomicUsize,
    /// IMAP sessions that are signed in.
    imap: AtomicUsize,
    /// IMAP sessions that broke without a word.
    broken: AtomicUsize,
    /// IMAP sessions that were told goodbye.
    byes: AtomicUsize,
    /// SMTP clients end after their message when this is set.
    over: AtomicBool,
    /// IMAP clients log out and come again when this grows; they end when `over` is set.
    round: AtomicU32,
    /// Every message, and how often its final answer was lost before it was accepted.
    messages: Mutex<HashMap<String, (Vec<u8>, u32)>>,
}

impl Tally {
    fn count(&self, of: impl Fn(&Self) -> &AtomicUsize) -> usize {
        of(self).load(Ordering::SeqCst)
    }

    /// So many more messages are accepted.
    async fn more_messages(&self) {
        let before = self.count(|tally| &tally.accepted);
        eventually("messages are accepted", async || self.count(|t| &t.accepted) >= before + ENOUGH).await;
    }

    async fn all_signed_in(&self) {
        eventually("all IMAP clients are in", async || self.count(|t| &t.imap) == IMAP_CLIENTS).await;
    }
}

/// An error of the connection, or an answer that says: not now.
struct Failed;

/// One line out, one answer back, of any number of lines: `Err` where the connection ends first.
async fn smtp(wire: &mut Wire, line: &str) -> Result<String, Failed> {
    wire.0.write_all(format!("{line}\r\n").as_bytes()).await.map_err(|_| Failed)?;
    smtp_answer(wire).await
}

async fn smtp_answer(wire: &mut Wire) -> Result<String, Failed> {
    loop {
        let line = wire.line().await.ok_or(Failed)?;
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(line);
        }
    }
}

async fn expect(answer: impl Future<Output = Result<String, Failed>>, code: &str) -> Result<(), Failed> {
    let answer = answer.await?;
    // whatever is permanent would be a mistake of this test, or a loss
    assert!(!answer.starts_with('5'), "{answer}");
    if answer.starts_with(code) { Ok(()) } else { Err(Failed) }
}

/// A mail client that sends for as long as the test lasts, and sends again what was not accepted.
async fn sender(number: usize, port: String, tally: Arc<Tally>) {
    let user = address(number % ACCOUNTS);
    let mut next = 0;
    let mut at_hand: Option<(String, Vec<u8>)> = None;
    while at_hand.is_some() || !tally.over.load(Ordering::SeqCst) {
        drop(send_some(&user, number, &port, &tally, &mut next, &mut at_hand).await);
        sleep(Duration::from_millis(50)).await;
    }
}

/// One session: up to three messages.
async fn send_some(
    user: &str,
    number: usize,
    port: &str,
    tally: &Tally,
    next: &mut u32,
    at_hand: &mut Option<(String, Vec<u8>)>,
) -> Result<(), Failed> {
    let mut wire = Wire(BufReader::new(TcpStream::connect(port).await.map_err(|_| Failed)?));
    expect(smtp_answer(&mut wire), "220").await?;
    expect(smtp(&mut wire, "EHLO client.example"), "250").await?;
    expect(smtp(&mut wire, &format!("AUTH PLAIN {}", sasl_plain(user))), "235").await?;
    for _ in 0..3 {
        let (name, message) = at_hand.get_or_insert_with(|| {
            *next += 1;
            let name = format!("{number}-{next}");
            let message = message(user, &name, *next);
            tally.messages.lock().unwrap().insert(name.clone(), (message.clone(), 0));
            (name, message)
        });
        expect(smtp(&mut wire, &format!("MAIL FROM:<{user}>")), "250").await?;
        expect(smtp(&mut wire, &format!("RCPT TO:<{user}>")), "250").await?;
        expect(smtp(&mut wire, "DATA"), "354").await?;
        // in pieces, so that a blow falls into the midst of some
        let stuffed = String::from_utf8(message.clone()).unwrap().replace("\r\n.", "\r\n..");
        for piece in stuffed.as_bytes().chunks(stuffed.len() / 3 + 1) {
            wire.0.write_all(piece).await.map_err(|_| Failed)?;
            sleep(Duration::from_millis(20)).await;
        }
        let Ok(answer) = smtp(&mut wire, ".").await else {
            tally.lost.fetch_add(1, Ordering::SeqCst);
            tally.messages.lock().unwrap().get_mut(name).unwrap().1 += 1;
            return Err(Failed);
        };
        assert!(answer.starts_with("250"), "{answer}");
        tally.accepted.fetch_add(1, Ordering::SeqCst);
        *at_hand = None;
        if tally.over.load(Ordering::SeqCst) {
            break;
        }
        sleep(Duration::from_millis(150)).await;
    }
    drop(smtp(&mut wire, "QUIT").await);
    Ok(())
}

/// A few kilobytes that are like no other, with lines that begin with a dot.
fn message(user: &str, name: &str, salt: u32) -> Vec<u8> {
    let mut text =
        format!("From: {user}\r\nTo: {user}\r\nMessage-ID: <{name}@client.example>\r\n\r\n").into_bytes();
    for line in 0..20 + salt % 40 {
        let dot = if line % 7 == 0 { "." } else { "" };
        write!(text, "{dot}{name} line {line} {}\r\n", "x".repeat((line * 13 % 60) as usize)).unwrap();
    }
    text
}

/// A mail client that stays signed in, and asks now and then.
async fn reader(number: usize, port: String, tally: Arc<Tally>) {
    let user = address(number % ACCOUNTS);
    // not all at once
    sleep(Duration::from_millis(10 * u64::try_from(number).unwrap())).await;
    while !tally.over.load(Ordering::SeqCst) {
        let Some(mut wire) = signed_in(&user, &port).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        tally.imap.fetch_add(1, Ordering::SeqCst);
        let round = tally.round.load(Ordering::SeqCst);
        let end = loop {
            sleep(Duration::from_millis(900)).await;
            let leaves = tally.over.load(Ordering::SeqCst) || tally.round.load(Ordering::SeqCst) != round;
            let ask = if leaves { "c LOGOUT\r\n" } else { "b NOOP\r\n" };
            // where it was told goodbye already, that is still there to be read
            drop(wire.0.write_all(ask.as_bytes()).await);
            match answer(&mut wire, if leaves { "c OK" } else { "b OK" }).await {
                Answer::Well if leaves => break None,
                Answer::Well => {}
                Answer::Bye => break Some(&tally.byes),
                Answer::Gone => break Some(&tally.broken),
            }
        };
        tally.imap.fetch_sub(1, Ordering::SeqCst);
        if let Some(count) = end {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

enum Answer {
    Well,
    Bye,
    Gone,
}

async fn answer(wire: &mut Wire, good: &str) -> Answer {
    let mut bye = false;
    while let Some(line) = wire.line().await {
        if line.starts_with(good) {
            return Answer::Well;
        }
        bye |= line.starts_with("* BYE") && good != "c OK";
    }
    if bye { Answer::Bye } else { Answer::Gone }
}

async fn signed_in(user: &str, port: &str) -> Option<Wire> {
    let mut wire = Wire(BufReader::new(TcpStream::connect(port).await.ok()?));
    wire.line().await.filter(|line| line.starts_with("* OK"))?;
    let login = format!("a LOGIN {user} \"{}\"\r\n", password(user));
    wire.0.write_all(login.as_bytes()).await.ok()?;
    matches!(answer(&mut wire, "a OK").await, Answer::Well).then_some(wire)
}

/// A message that waits for its last line at this replica; it is given in by hand what HAProxy would say.
async fn message_in_hand(replica: &Replica, site: &Site) -> Wire {
    let mut wire = Wire(BufReader::new(TcpStream::connect((replica.host.as_str(), 1465)).await.unwrap()));
    wire.say("PROXY UNKNOWN\r\n").await;
    wire.until("220").await;
    wire.ask("EHLO client.example", "250 ").await;
    wire.ask(&format!("AUTH PLAIN {}", sasl_plain(SLOW)), "235").await;
    wire.ask(&format!("MAIL FROM:<{SLOW}>"), "250").await;
    wire.ask(&format!("RCPT TO:<{SLOW}>"), "250").await;
    wire.ask("DATA", "354").await;
    wire.say("Subject: slow\r\n\r\n").await;
    assert!(site.office.messages(SLOW, "INBOX").is_empty());
    wire
}

/// Every message stands in its mailbox, byte for byte: once, and once more at most for every lost answer.
fn assert_delivered(office: &Simulator, tally: &Tally) {
    let mut found: HashMap<Vec<u8>, u32> = HashMap::new();
    for message in (0..ACCOUNTS).flat_map(|account| office.messages(&address(account), "INBOX")) {
        *found.entry(message.to_vec()).or_default() += 1;
    }
    let messages = tally.messages.lock().unwrap();
    assert_eq!(tally.count(|t| &t.accepted), messages.len(), "every message was accepted once");
    for (name, (message, lost)) in messages.iter() {
        let copies = found.remove(message).unwrap_or_default();
        assert!((1..=1 + lost).contains(&copies), "{name}: {copies} copies, {lost} lost answers");
    }
    assert!(found.is_empty(), "{} messages that nobody sent", found.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_is_killed_and_one_drained_under_load_and_nothing_is_lost() {
    let site = Site::found().await;
    let (mut one, two) = (site.replica(1).await, site.replica(2).await);
    let _haproxy = site.haproxy();
    site.until_haproxy_sees(1, "UP").await;
    site.until_haproxy_sees(2, "UP").await;

    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for number in 0..IMAP_CLIENTS {
        clients.spawn(reader(number, format!("{}.10:1993", site.net), Arc::clone(&tally)));
    }
    for number in 0..SMTP_CLIENTS {
        clients.spawn(sender(number, format!("{}.10:1465", site.net), Arc::clone(&tally)));
    }
    tally.all_signed_in().await;
    tally.more_messages().await;

    // the first one is killed
    let (at_one, at_two) = (one.imap_sessions().await, two.imap_sessions().await);
    assert_eq!(at_one + at_two, IMAP_CLIENTS);
    assert!(at_one > 0 && at_two > 0, "{at_one} and {at_two}");
    drop(one);
    site.until_haproxy_sees(1, "DOWN").await;
    eventually("its clients notice", async || tally.count(|t| &t.broken) == at_one).await;
    tally.all_signed_in().await;
    tally.more_messages().await;
    assert_eq!(tally.count(|t| &t.broken), at_one, "only its own sessions broke");
    assert_eq!(two.imap_sessions().await, IMAP_CLIENTS);
    assert_untouched(&two.log());

    // it comes back, and clients spread anew
    one = site.replica(1).await;
    site.until_haproxy_sees(1, "UP").await;
    tally.round.fetch_add(1, Ordering::SeqCst);
    eventually("clients spread", async || one.imap_sessions().await >= IMAP_CLIENTS / 4).await;
    tally.all_signed_in().await;
    tally.more_messages().await;

    // the second one is drained, with a message in hand
    let mut slow = message_in_hand(&two, &site).await;
    let lost = tally.count(|t| &t.lost);
    let (at_one, at_two) = (one.imap_sessions().await, two.imap_sessions().await);
    assert_eq!(at_one + at_two, IMAP_CLIENTS);
    assert!(at_one > 0 && at_two > 0, "{at_one} and {at_two}");
    assert_untouched(&two.log());
    two.signal("-TERM");
    eventually("it is not ready", async || two.page("/readyz").await.starts_with("HTTP/1.0 503")).await;
    site.until_haproxy_sees(2, "DOWN").await;
    eventually("its clients are told", async || tally.count(|t| &t.byes) == at_two).await;
    tally.all_signed_in().await;
    assert_eq!(one.imap_sessions().await, IMAP_CLIENTS);
    slow.say("Hello.\r\n.\r\n").await;
    slow.until("250").await;
    slow.until("421").await;
    let (mut process, log) = (two.process, two.log);
    let ended = timeout(PATIENCE, tokio::task::spawn_blocking(move || process.0.wait())).await.unwrap();
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains("before they came to their end"), "{log}");
    tally.more_messages().await;
    assert_eq!(tally.count(|t| &t.lost), lost, "a drain loses no answer");
    assert_eq!(tally.count(|t| &t.byes), at_two, "only its own sessions were told goodbye");
    assert_eq!(site.office.messages(SLOW, "INBOX").len(), 1);

    // all come to their end
    tally.over.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    assert_untouched(&one.log());
    assert_delivered(&site.office, &tally);
    assert_eq!(site.office.token_requests(), ACCOUNTS + 1, "one for each account, over three processes");
}

#[test]
fn haproxy_takes_the_shipped_configuration_as_it_stands() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy.cfg");
    let told = Command::new("haproxy").arg("-c").arg("-f").arg(path).output();
    let told = told.expect("haproxy is needed for this test (Debian package haproxy)");
    let text = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success() && !text.contains("WARNING"), "{text}");
}
