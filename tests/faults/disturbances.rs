//! What the machine does to the proxy: nobody reads the log, memory is short, the clock jumps, names do not resolve,
//! the store is away, peers are gone without a word.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mailkey::simulator::{ALICE, BOB, Settings};
use tokio::io::AsyncBufReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::proxies::corporate::{LOGIN, Mailkey, OUTLOOK, Plan, SMTP, must, office, office_at, spawn, until};
use crate::proxies::faults::{direct, is_temporary, no_descriptor_stays};
use crate::proxies::namespaces::{Answer, name_server};
use crate::stage::{PATIENCE, Stage, Wire};

/// Signs Alice in by IMAP, and stays.
async fn alice(mut wire: Wire) -> Wire {
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
    wire
}

async fn dial(address: SocketAddr) -> Wire {
    Wire(tokio::io::BufReader::new(TcpStream::connect(address).await.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_or_that_is_closed_holds_nobody_up() {
    let stage = Stage::usual().await;
    let own = stage.file("own.yaml");
    let text = std::fs::read_to_string(stage.file("proxy.yaml")).unwrap();
    std::fs::write(&own, format!("{text}log: {{level: trace}}\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailkey"));
    command.args(["run", "--config"]).arg(&own).stderr(Stdio::piped());
    let mut proxy = spawn(&mut command);
    let mut log = BufReader::new(proxy.0.stderr.take().unwrap());
    let mut until_log = |part: &str| loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the log ended before `{part}`");
        if line.contains(part) {
            return line;
        }
    };
    let line = until_log("listening listener=\"imap\"");
    let address: SocketAddr = line.split("address=").nth(1).unwrap().trim().parse().unwrap();
    until_log("status page at");

    // a pipe holds 64 KiB, which is some hundred sessions
    let mut first = alice(dial(address).await).await;
    for _ in 0..1500 {
        let mut wire = dial(address).await;
        wire.until("* OK").await;
        wire.ask("a LOGOUT", "a OK").await;
    }
    first.ask("b NOOP", "b OK").await;
    alice(dial(address).await).await.ask("b LOGOUT", "b OK").await;
    // whoever reads again reads on where he stopped, up to the end
    until_log("mailbox=");

    drop(log);
    for _ in 0..50 {
        alice(dial(address).await).await.ask("b LOGOUT", "b OK").await;
    }
    first.ask("c NOOP", "c OK").await;
    drop(first);
    must("kill", &["-TERM", &proxy.0.id().to_string()]);
    let mut code = None;
    until("the proxy ends", || {
        code = proxy.0.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    })
    .await;
    assert_eq!(code, Some(Some(0)));
    assert_eq!(stage.office.token_requests(), 1);
}

/// Of `/proc/<pid>/status`, in KiB.
fn status_of(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_of_large_messages_fit_into_little_memory() {
    const READERS: usize = 16;
    const MESSAGE: usize = 12 << 20;
    /// More than the proxy has at the start: a quarter of what it would need if it read ahead.
    const ROOM: u64 = (READERS * MESSAGE / 4) as u64;
    let office = office().await;
    let text = format!("Subject: large\r\n\r\n{}", "0123456789abcdef0123456789abcd\r\n".repeat(MESSAGE / 32));
    office.deliver(ALICE.0, text.clone().into_bytes());
    let mailkey = direct(&office).await;
    alice(mailkey.wire("imap").await).await.ask("b LOGOUT", "b OK").await;
    let before = mailkey.descriptors();
    let limit = status_of(mailkey.pid(), "VmSize:") * 1024 + ROOM;
    must("prlimit", &[&format!("--as={limit}:{limit}"), "--pid", &mailkey.pid().to_string()]);
    let mut readers = Vec::new();
    for _ in 0..READERS {
        // what the system holds for them is not the proxy's
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let stream = socket.connect(mailkey.address("imap")).await.unwrap();
        let mut wire = alice(Wire(tokio::io::BufReader::new(stream))).await;
        wire.ask("b SELECT INBOX", "b OK").await;
        wire.say("c FETCH 1 BODY[]\r\n").await;
        wire.until("* 1 FETCH").await;
        readers.push(wire);
    }
    let told = mailkey.sign_in_as("pop3", BOB).await;
    assert!(told.starts_with("+OK"), "{told}");
    // all of it is still there, for whoever reads on
    let mut last = readers.pop().unwrap();
    let mut octets = 0;
    loop {
        let mut line = Vec::new();
        timeout(PATIENCE, last.0.read_until(b'\n', &mut line)).await.expect("it stops").unwrap();
        if line.starts_with(b"c OK") {
            break;
        }
        octets += line.len();
    }
    assert!((text.len()..text.len() + 100).contains(&octets), "{octets} of {}", text.len());
    let highest = status_of(mailkey.pid(), "VmHWM:");
    assert!(highest * 1024 < ROOM + (128 << 20), "{highest} KiB");
    drop((readers, last));
    no_descriptor_stays(&mailkey, before).await;
    assert_eq!(office.token_requests(), 2);
}

/// Where Debian puts it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_costs_no_session_and_no_token_request() {
    assert!(Path::new(FAKETIME).exists(), "no {FAKETIME}: tests/run installs the package `faketime`");
    let office = office().await;
    let folder = tempfile::tempdir().unwrap();
    let offset = folder.path().join("offset");
    std::fs::write(&offset, "+0\n").unwrap();
    let wrapper = [
        "env".to_owned(),
        format!("LD_PRELOAD={FAKETIME}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        // a clock that is set moves the wall clock, never the monotonic one
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    let sections = "limits: {warm-connections: 0}\n".to_owned();
    let plan = Plan { sections, host: Some("localhost"), wrapper: wrapper.to_vec(), ..Plan::default() };
    let mailkey = Mailkey::start(&office, plan).await;
    let mut session = alice(mailkey.wire("imap").await).await;
    let now = jiff::Timestamp::now();
    for (jump, seconds) in
        [("+3600", 3600), ("-3600", -3600), ("+86400", 86_400), ("-86400", -86_400), ("+0", 0)]
    {
        std::fs::write(&offset, format!("{jump}\n")).unwrap();
        session.ask("b NOOP", "b OK").await;
        for listener in ["imap", "pop3", "smtp", "ews"] {
            let told = mailkey.sign_in(listener).await;
            assert!(!is_temporary(listener, &told), "{jump}: {listener}: {told}");
        }
        // proof that the proxy's clock has jumped
        until("a line of the log at the new time", || {
            let line = mailkey.log().pop().unwrap();
            let at: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
            (at.as_second() - now.as_second() - seconds).abs() < 1800
        })
        .await;
        assert_eq!(office.token_requests(), 1, "{jump}: a token that is good was asked for again");
    }
    session.ask("c LOGOUT", "c OK").await;
}

/// What runs a program in a mount namespace of its own, once this script has mounted there.
fn with_mounts(script: &str) -> Vec<String> {
    let script = format!("{script}; exec \"$@\"");
    ["unshare", "-m", "--propagation", "private", "sh", "-ec", &script, "sh"].map(str::to_owned).to_vec()
}

/// A loopback address at which nobody else serves names: of this process alone.
fn names() -> String {
    let id = std::process::id();
    format!("127.53.{}.{}", id / 250 % 250 + 1, id % 250 + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_server_that_says_nothing_is_waited_for_in_bounds_and_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).display().to_string()
    };
    let resolv = file("resolv.conf", &format!("nameserver {}\noptions timeout:1 attempts:1\n", names()));
    let hosts = file("hosts", "127.0.0.1 localhost\n");
    let switch = file("nsswitch.conf", "hosts: files dns\n");
    let script = format!(
        "mount --bind {resolv} /etc/resolv.conf; mount --bind {hosts} /etc/hosts; \
         if [ -e /etc/nsswitch.conf ]; then mount --bind {switch} /etc/nsswitch.conf; fi"
    );
    let wrapper = with_mounts(&script);
    let answers = Arc::new(AtomicBool::new(false));
    let does = Arc::clone(&answers);
    let asked = name_server(&names(), move |name| match name {
        _ if !does.load(Ordering::SeqCst) => Answer::Silence,
        LOGIN | OUTLOOK | SMTP => Answer::Address(Ipv4Addr::LOCALHOST),
        _ => Answer::NoSuchName,
    });
    let office = office().await;
    let sections = "limits: {connect-timeout: 1s, login-timeout: 20s, warm-connections: 0}\n".to_owned();
    let mailkey = Mailkey::start(&office, Plan { sections, wrapper, ..Plan::default() }).await;
    let before = mailkey.descriptors();
    for listener in ["imap", "pop3", "smtp", "ews"] {
        let told = mailkey.sign_in(listener).await;
        assert!(is_temporary(listener, &told), "{listener}: {told}");
    }
    let refusal = mailkey.refusal("imap", 1).await;
    let code = refusal["code"].as_str().unwrap();
    assert!(["IDENTITY-DNS", "IDENTITY-TIMEOUT", "IDENTITY-SLOW"].contains(&code), "{refusal}");
    assert!(asked.lock().unwrap().iter().any(|name| name == LOGIN), "the name server was never asked");
    assert_eq!(office.token_requests(), 0);
    answers.store(true, Ordering::SeqCst);
    let mut session = None;
    for _ in 0..120 {
        if mailkey.sign_in("imap").await.starts_with("a1 OK") {
            session = Some(alice(mailkey.wire("imap").await).await);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    let mut session = session.expect("names resolve again, and nobody notices");
    // gone once more: who is known is still found
    answers.store(false, Ordering::SeqCst);
    session.ask("b NOOP", "b OK").await;
    let told = mailkey.sign_in("imap").await;
    assert!(told.starts_with("a1 OK"), "an address that was known is forgotten: {told}");
    session.ask("c LOGOUT", "c OK").await;
    no_descriptor_stays(&mailkey, before + 4).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn logins_go_on_while_redis_hangs_is_away_or_holds_rubbish() {
    use crate::store::redis::Server;
    let mut redis = Server::start(&[]).await;
    let office = office().await;
    let sections = format!(
        "tokens: {{store: '{}', key: '{}'}}\nlimits: {{warm-connections: 0}}\n",
        redis.url(),
        "ab".repeat(32)
    );
    let mailkey =
        Mailkey::start(&office, Plan { sections, host: Some("localhost"), ..Plan::default() }).await;
    let mut session = alice(mailkey.wire("imap").await).await;
    assert_eq!(office.token_requests(), 1);
    let serves = async |who: (&str, &str), when: &str| {
        for listener in ["imap", "pop3", "smtp", "ews"] {
            let told = mailkey.sign_in_as(listener, who).await;
            assert!(!is_temporary(listener, &told), "{when}: {} at {listener}: {told}", who.0);
        }
    };
    redis.signal("-STOP");
    serves(ALICE, "Redis hangs").await;
    serves(BOB, "Redis hangs").await;
    redis.signal("-CONT");
    redis.kill();
    serves(ALICE, "Redis is away").await;
    serves(BOB, "Redis is away").await;
    redis.begin().await;
    for kind in ["token", "lease", "wrong-passwords"] {
        redis.raw(&format!("SET mailkey:1:{kind} rubbish"));
    }
    redis.raw("SET mailkey:1:sign-ins rubbish");
    serves(ALICE, "Redis holds rubbish").await;
    serves(BOB, "Redis holds rubbish").await;
    session.ask("b NOOP", "b OK").await;
    assert_eq!(office.token_requests(), 2, "Alice's and Bob's");
}

/// An address of this machine that looks like another's (RFC 5737): who is on loopback is asked nothing.
struct Alias(&'static str);

impl Alias {
    fn new(address: &'static str) -> Self {
        must("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        Self(address)
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["addr", "del", &format!("{}/32", self.0), "dev", "lo"]).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_a_session_are_asked_whether_they_are_still_there() {
    let alias = Alias::new("203.0.113.77");
    let office = office_at(alias.0.parse().unwrap(), Settings::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, format!("{} {LOGIN} {OUTLOOK} {SMTP}\n", alias.0)).unwrap();
    let script = format!("mount --bind {} /etc/hosts", hosts.display());
    let plan = Plan { wrapper: with_mounts(&script), listen: Some(alias.0), ..Plan::default() };
    let mailkey = Mailkey::start(&office, plan).await;
    let mut session = alice(mailkey.wire("imap").await).await;
    let of = format!("pid={},", mailkey.pid());
    for port in [mailkey.address("imap").port(), office.imap().port()] {
        let end = format!(":{port} ");
        // as long as something is on its way, another timer runs
        until(&format!("a keepalive timer runs at {port}"), || {
            let sockets = must("ss", &["-tnopH"]);
            let mut ours = sockets.lines().filter(|line| line.contains(&of) && line.contains(&end));
            ours.any(|line| line.contains("timer:(keepalive,"))
        })
        .await;
    }
    session.ask("b LOGOUT", "b OK").await;
}
