//! Safe by default, tried with the program itself: what it refuses to start with, who it is when it runs, and what
//! it leaves of secrets in its log and its memory.
//!
//! Needs root, as other tests here do: to have ports below 1024, give files away, and read another process's memory.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mailkey::simulator::{ALICE, MailFault, Service, User};

use crate::operating::{MAILKEY, Process, dial};
use crate::stage::{Plan, Stage, Told, run, write_private};

const CLIENT_ID: &str = "11111111-2222-3333-4444-555555555555";
const TENANT: &str = "66666666-7777-8888-9999-000000000000";

/// `nobody` and `nogroup` of Debian.
const NOBODY: u32 = 65534;

/// A user whose password is found by searching, wherever it lies and however it is encoded.
const MARKED: (&str, &str) = ("marked@contoso.com", "Zq7Wx9Kp3Lm5Vn8Rt2Yb6Hd4Jf1Gs0Qc");

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// What `mailkey run` says of a configuration that it does not start with. Where it does start, that takes too long.
async fn refused(folder: &Path, text: &str) -> Told {
    let path = folder.join("refused.yaml");
    write_private(&path, text);
    run("timeout", ["20", MAILKEY, "run", "--config", path.to_str().unwrap()], b"").await
}

fn small(oauth: &str, listener: &str, sections: &str) -> String {
    format!(
        "oauth: {{client-id: {CLIENT_ID}{oauth}}}\n\
         listeners: [{{name: imap, protocol: imap, listen: '127.0.0.1:0'{listener}}}]\n\
         admin: off\n{sections}"
    )
}

#[tokio::test]
async fn what_is_shipped_and_what_init_writes_listens_on_loopback_only() {
    let folder = tempfile::tempdir().unwrap();
    let init = ["init", "--yes", "--client-id", CLIENT_ID, "--config"];
    let written = folder.path().join("written.yaml");
    let told = run(MAILKEY, init.into_iter().chain([written.to_str().unwrap()]), b"").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let shipped = folder.path().join("shipped.yaml");
    let sample = include_str!("../proxy.yaml");
    std::fs::write(&shipped, sample.replace("00000000-0000-0000-0000-000000000000", CLIENT_ID)).unwrap();
    for path in [written, shipped] {
        let told = run(MAILKEY, ["check", "--config", path.to_str().unwrap()], b"").await;
        assert_eq!(told.code, Some(0), "{told:?}");
        let text = told.text();
        let addresses: Vec<&str> = text
            .split_whitespace()
            .filter(|word| word.trim_end_matches(',').parse::<std::net::SocketAddr>().is_ok())
            .collect();
        assert!(addresses.len() >= 3, "{text}");
        assert!(
            addresses.iter().all(|word| word
                .trim_end_matches(',')
                .parse::<std::net::SocketAddr>()
                .unwrap()
                .ip()
                .is_loopback()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn clear_text_off_loopback_is_refused_until_somebody_says_that_it_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    for (listener, starts) in [("", true), (", allow-from: 127.0.0.1", true), (", tls: off", true)] {
        let path = folder.path().join("a.yaml");
        write_private(&path, &small("", listener, ""));
        let told = run(MAILKEY, ["check", "--config", path.to_str().unwrap()], b"").await;
        assert_eq!(told.code == Some(0), starts, "{listener}: {told:?}");
    }
    for outside in ["0.0.0.0:0", "[::]:0", "192.0.2.1:1143", "['127.0.0.1:0', '0.0.0.0:0']"] {
        let outside = if outside.starts_with('[') && !outside.contains("::") {
            outside.to_owned()
        } else {
            format!("'{outside}'")
        };
        let text = small("", "", "").replace("'127.0.0.1:0'", &outside);
        let told = refused(folder.path(), &text).await;
        assert_eq!(told.code, Some(2), "{outside}: {told:?}");
        assert!(told.err.contains("clear text") && told.err.contains("allow-insecure: true"), "{}", told.err);
        let path = folder.path().join("allowed.yaml");
        write_private(&path, &text.replace("protocol: imap", "protocol: imap, allow-insecure: true"));
        let told = run(MAILKEY, ["check", "--config", path.to_str().unwrap()], b"").await;
        assert_eq!(told.code, Some(0), "{outside}: {told:?}");
    }
}

#[tokio::test]
async fn mailboxes_that_no_identity_provider_guards_are_refused_without_a_password_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    write_private(&folder.path().join("secret"), "hunter2\n");
    for grant in [
        "client-credentials",
        "device-code",
        "authorization-code",
        "managed-identity",
        "[password, device-code]",
    ] {
        let secret = if grant == "client-credentials" { ", client-secret-file: secret" } else { "" };
        let oauth = format!(", directory-id: {TENANT}, grant: {grant}{secret}");
        let told = refused(folder.path(), &small(&oauth, "", "")).await;
        assert_eq!(told.code, Some(2), "{grant}: {told:?}");
        assert!(told.err.contains("password-hash"), "{grant}: {}", told.err);
    }
}

#[tokio::test]
async fn files_with_secrets_that_others_may_read_are_refused() {
    let stage = Stage::usual().await;
    let folder = stage.folder.path();
    write_private(&stage.file("secret"), &"ab".repeat(32));
    std::fs::copy(stage.file("server.key"), stage.file("open.key")).unwrap();
    std::fs::write(stage.file("open"), "ab".repeat(32)).unwrap();
    set_mode(&stage.file("open"), 0o644);
    set_mode(&stage.file("open.key"), 0o644);
    let confidential = format!(", directory-id: {TENANT}, grant: [password, client-credentials]");
    let hash = "accounts: [{user: '*', password-hash: $argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc}]\n";
    for (what, text) in [
        ("client secret", small(&format!("{confidential}, client-secret-file: open"), "", hash)),
        (
            "application's key",
            small(
                &format!("{confidential}, client-certificate-file: server.pem, client-key-file: open.key"),
                "",
                hash,
            ),
        ),
        ("federated token", small(&format!("{confidential}, federated-token-file: open"), "", hash)),
        ("hash", small("", "", "accounts: [{user: a, password-hash-file: open}]\n")),
        (
            "listener's key",
            small("", ", tls: implicit", "tls: {certificate-file: server.pem, key-file: open.key}\n"),
        ),
        (
            "client certificate's key",
            small("", "", "tls: {client-certificate-file: server.pem, client-key-file: open.key}\n"),
        ),
        ("store's key", small("", "", "tokens: {store: 'file:tokens', key-file: open}\n")),
        (
            "store's password",
            small(
                "",
                "",
                "tokens: {store: 'redis://localhost', store-password-file: open, key-file: secret}\n",
            ),
        ),
        (
            "proxy's password",
            small("", "", "outbound-proxy: {url: 'http://localhost:1', username: a, password-file: open}\n"),
        ),
    ] {
        let told = refused(folder, &text).await;
        assert_eq!(told.code, Some(2), "{what}: {told:?}");
        assert!(
            told.err.contains("others may read it") && told.err.contains("chmod 600"),
            "{what}: {}",
            told.err
        );
    }
    let inline = folder.join("inline.yaml");
    write_private(&inline, &small(", client-secret: hunter2", "", ""));
    set_mode(&inline, 0o644);
    let told = run("timeout", ["20", MAILKEY, "run", "--config", inline.to_str().unwrap()], b"").await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.err.contains("secrets stand in this file") && !told.err.contains("hunter2"), "{}", told.err);
}

#[tokio::test]
async fn a_token_store_that_is_not_ours_alone_is_refused() {
    let stage = Stage::usual().await;
    write_private(&stage.file("key"), &"ab".repeat(32));
    let text = small("", "", "tokens: {store: 'file:tokens', key-file: key}\n");
    let store = stage.file("tokens");
    write_private(&store, "");
    let cases: [(&str, &dyn Fn()); 3] = [
        ("mode", &|| set_mode(&store, 0o640)),
        ("belongs to user 65534", &|| {
            set_mode(&store, 0o600);
            chown(&store, Some(NOBODY), None).unwrap();
        }),
        ("symbolic link", &|| {
            std::fs::rename(&store, stage.file("elsewhere")).unwrap();
            symlink(stage.file("elsewhere"), &store).unwrap();
        }),
    ];
    for (what, make) in cases {
        make();
        let told = refused(stage.folder.path(), &text).await;
        assert_eq!(told.code, Some(1), "{what}: {told:?}");
        assert!(told.err.contains("START-STORE") && told.err.contains(what), "{what}: {}", told.err);
    }
}

/// What `/proc` tells of a process: name to values.
fn status(pid: u32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A port below 1024 that nobody has.
fn privileged_port() -> u16 {
    (600..1000).rev().find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Has files that the stage wrote lent to `nogroup` by root, and a directory of nobody's own for the store.
fn lend(stage: &Stage) {
    set_mode(stage.folder.path(), 0o755);
    for name in ["server.key", "own.yaml", "key"] {
        chown(stage.file(name), Some(0), Some(NOBODY)).unwrap();
        set_mode(&stage.file(name), 0o640);
    }
    std::fs::create_dir_all(stage.file("state")).unwrap();
    chown(stage.file("state"), Some(NOBODY), Some(NOBODY)).unwrap();
    set_mode(&stage.file("state"), 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn root_is_given_up_for_good_once_the_ports_are_open_and_everything_still_works() {
    let stage = Stage::usual().await;
    write_private(&stage.file("key"), &"ab".repeat(32));
    let (first, second) = (privileged_port(), privileged_port() - 1);
    let mut proxy = Process::start_after(
        &stage,
        |text| {
            text.replacen("127.0.0.1:0", &format!("127.0.0.1:{first}"), 1)
                + "tokens: {store: 'file:state/tokens', key-file: key}\nrun: {user: nobody, group: nogroup}\n"
        },
        || lend(&stage),
    );
    proxy.until("root is given up").await;
    let imap = proxy.address("imap").await;
    assert_eq!(imap.port(), first);
    let pid = proxy.child.id().unwrap();
    let four = format!("{NOBODY} {NOBODY} {NOBODY} {NOBODY}");
    assert_eq!(status(pid, "Uid"), four, "real, effective, saved and file system");
    assert_eq!(status(pid, "Gid"), four);
    assert_eq!(status(pid, "Groups"), NOBODY.to_string());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(pid, set), 16), Ok(0), "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let uid = text.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(!uid.split_whitespace().any(|id| id == "0"), "a thread is still root: {uid}");
    }
    // what belongs to root under /proc is a process that cannot be dumped or traced by its own user
    assert_eq!(std::fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
    assert_eq!(
        std::fs::metadata(stage.file("state/tokens.lock")).unwrap().uid(),
        NOBODY,
        "the store is its own"
    );

    let login = async || {
        let mut wire = dial(imap).await;
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
        wire
    };
    let mut session = login().await;
    proxy.signal("-HUP");
    proxy.until("configuration reloaded").await;
    let own = std::fs::read_to_string(stage.file("own.yaml")).unwrap();
    std::fs::write(stage.file("own.yaml"), own.replacen("127.0.0.1:0", &format!("127.0.0.1:{second}"), 1))
        .unwrap();
    proxy.signal("-HUP");
    let told = proxy.until("configuration not reloaded").await;
    assert!(told.contains("root has been given up to `nobody`") && told.contains("RELOAD-RESTART"), "{told}");
    session.ask("b NOOP", "b OK").await;
    login().await;
    // a file that root closed to it is a reload that is not taken, and says why
    std::fs::write(stage.file("own.yaml"), own).unwrap();
    chown(stage.file("server.key"), Some(0), Some(0)).unwrap();
    proxy.signal("-HUP");
    let told = proxy.until("configuration not reloaded").await;
    assert!(told.contains("server.key") && told.contains("ermission denied"), "{told}");
    login().await;
    // a command that root runs beside it writes nothing that the proxy could not read
    lend(&stage);
    let told = run(
        MAILKEY,
        ["logout", "nobody@contoso.com", "--config", stage.file("own.yaml").to_str().unwrap()],
        b"",
    )
    .await;
    assert_eq!(told.code, Some(1), "{told:?}");
    for name in ["tokens.lock", "tokens.turn"] {
        assert_eq!(std::fs::metadata(stage.file("state").join(name)).unwrap().uid(), NOBODY, "{name}");
    }
    proxy.signal("-TERM");
    let (code, log) = proxy.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("stays root"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_could_not_go_on_is_told_at_the_start() {
    let stage = Stage::usual().await;
    set_mode(stage.folder.path(), 0o755);
    let own = std::fs::read_to_string(stage.file("proxy.yaml")).unwrap();
    for (section, code, exit, part) in [
        ("run: {user: nobody}\n", "START-USER-FILE", 1, "server.key"),
        ("run: {user: no-such-user}\n", "START-USER", 1, "there is no such user"),
        ("run: {user: '00'}\n", "START-USER", 1, "root by another name"),
        ("run: {user: root}\n", "nothing is given up", 2, "user: root"),
        ("run: {group: nogroup}\n", "`group` without `user`", 2, "add `user`"),
    ] {
        write_private(&stage.file("own.yaml"), &format!("{own}{section}"));
        chown(stage.file("own.yaml"), Some(NOBODY), Some(NOBODY)).unwrap();
        let told =
            run("timeout", ["20", MAILKEY, "run", "--config", stage.file("own.yaml").to_str().unwrap()], b"")
                .await;
        assert_eq!(told.code, Some(exit), "{section}: {told:?}");
        assert!(told.err.contains(code) && told.err.contains(part), "{section}: {}", told.err);
    }
    // whoever is not root cannot become somebody else, and says so instead of going on as whoever it is
    let program = stage.file("mailkey");
    std::fs::copy(MAILKEY, &program).unwrap();
    write_private(&stage.file("own.yaml"), &format!("{own}run: {{user: daemon}}\n"));
    lend_to_group(&stage);
    let arguments =
        ["--reuid=65534", "--regid=65534", "--clear-groups", program.to_str().unwrap(), "run", "--config"];
    let told =
        run("setpriv", arguments.into_iter().chain([stage.file("own.yaml").to_str().unwrap()]), b"").await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.err.contains("cannot become it"), "{}", told.err);
}

fn lend_to_group(stage: &Stage) {
    for name in ["server.key", "own.yaml"] {
        chown(stage.file(name), Some(0), Some(NOBODY)).unwrap();
        set_mode(&stage.file(name), 0o640);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn staying_root_is_warned_of() {
    let stage = Stage::usual().await;
    let mut proxy = Process::start(&stage, str::to_owned);
    let told = proxy.until("stays root").await;
    assert!(told.contains("WARN") && told.contains("run: {user: mailkey}"), "{told}");
    proxy.signal("-TERM");
    assert_eq!(proxy.end().await.0, Some(0));
}

/// Ways in which a text may lie in memory or stand in a log: as it is, in UTF-16, and in base64 wherever it begins
/// in a group of three.
fn disguises(text: &str) -> Vec<Vec<u8>> {
    let mut all = vec![text.as_bytes().to_vec(), text.encode_utf16().flat_map(u16::to_le_bytes).collect()];
    for lead in 0..3 {
        let encoded = BASE64_STANDARD.encode([&b"\0\0\0"[..lead], text.as_bytes()].concat());
        // without the groups that the neighbours have a part in
        let (from, to) = (if lead == 0 { 0 } else { 4 }, encoded.len() - 4);
        all.push(encoded.as_bytes()[from..to].to_vec());
    }
    all
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    memchr::memmem::find_iter(haystack, needle).count()
}

/// Signs in by every protocol and in every way, with this password, and does a little.
async fn visit_everything(stage: &Stage, proxy: &Addresses, password: &str, right: bool) {
    let user = MARKED.0;
    let plain = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
    let (name, word) = (BASE64_STANDARD.encode(user), BASE64_STANDARD.encode(password));
    let ends: [(&str, &[String], &str); 8] = [
        ("imap", &[format!("a LOGIN {user} {password}")], "a "),
        ("imap", &[format!("a LOGIN {user} {{{}}}", password.len()), password.to_owned()], "a "),
        ("imap", &[format!("a AUTHENTICATE PLAIN {plain}")], "a "),
        ("pop3", &[format!("USER {user}"), format!("PASS {password}")], if right { "+OK" } else { "-ERR" }),
        ("pop3", &["AUTH PLAIN".to_owned(), plain.clone()], if right { "+OK" } else { "-ERR" }),
        ("smtp", &["EHLO x".to_owned(), format!("AUTH PLAIN {plain}")], if right { "235" } else { "5" }),
        (
            "smtp",
            &["EHLO x".to_owned(), "AUTH LOGIN".to_owned(), name, word],
            if right { "235" } else { "5" },
        ),
        ("imap", &["a AUTHENTICATE PLAIN".to_owned(), plain.clone()], "a "),
    ];
    for (listener, lines, verdict) in ends {
        let mut wire = dial(proxy.of(listener)).await;
        wire.line().await.unwrap();
        let (last, first) = lines.split_last().unwrap();
        for line in first {
            wire.say(format!("{line}\r\n")).await;
            let multi = line.starts_with("EHLO");
            while let Some(told) = wire.line().await {
                if !multi || told.starts_with("250 ") {
                    break;
                }
            }
        }
        wire.say(format!("{last}\r\n")).await;
        let told = wire.until(verdict).await;
        assert!(verdict != "a " || told.starts_with("a OK") == right, "{listener}: {told}");
    }
    let url = format!("http://{}/EWS/Exchange.asmx", proxy.of("ews"));
    let told = run(
        "curl",
        [
            "-s",
            "-o",
            "-",
            "-w",
            "%{http_code}",
            "-u",
            &format!("{user}:{password}"),
            &url,
            "-H",
            "Content-Type: text/xml",
            "-d",
            "<x/>",
        ],
        b"",
    )
    .await;
    assert_eq!(told.text().ends_with("401"), !right, "{told:?}");
    assert!(stage.office.token_requests() > 0);
}

struct Addresses(Vec<(String, std::net::SocketAddr)>);

impl Addresses {
    async fn read(proxy: &mut Process) -> Self {
        proxy.admin().await;
        let mut all = Vec::new();
        for line in proxy.seen.lines().filter(|line| line.contains("listening listener=")) {
            let name = line.split('"').nth(1).unwrap().to_owned();
            all.push((name, line.split("address=").nth(1).unwrap().trim().parse().unwrap()));
        }
        Self(all)
    }

    fn of(&self, listener: &str) -> std::net::SocketAddr {
        self.0.iter().find(|(name, _)| name == listener).unwrap().1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log_at_any_level_of_any_library_nor_in_the_arguments() {
    let stage = Stage::planned(Plan {
        sections: "log: {level: 'trace,hyper=trace,hyper_util=trace,reqwest=trace,rustls=trace,tokio=trace,\
                   tokio_util=trace,mio=trace,h2=trace,tower=trace,want=trace,log=trace'}\n"
            .to_owned(),
        ..Plan::default()
    })
    .await;
    stage.office.tenant().add_user(User::new(MARKED.0, MARKED.1));
    let mut proxy = Process::start(&stage, str::to_owned);
    let addresses = Addresses::read(&mut proxy).await;
    let wrong = MARKED.1.replace("Zq7", "Qz3");
    visit_everything(&stage, &addresses, MARKED.1, true).await;
    visit_everything(&stage, &addresses, &wrong, false).await;
    stage.office.mischief().mail(Service::Imap, MailFault::RefuseToken);
    let mut wire = dial(addresses.of("imap")).await;
    wire.until("* OK").await;
    wire.ask(&format!("a LOGIN {} {}", MARKED.0, MARKED.1), "a ").await;
    let arguments = std::fs::read(format!("/proc/{}/cmdline", proxy.child.id().unwrap())).unwrap();
    let bundle = stage.file("bundle");
    let own = stage.file("own.yaml");
    let told =
        run(MAILKEY, ["support-bundle", "--config", own.to_str().unwrap(), bundle.to_str().unwrap()], b"")
            .await;
    drop(told);
    proxy.signal("-TERM");
    let (code, log) = proxy.end().await;
    assert_eq!(code, Some(0));
    assert!(
        log.contains("TRACE") && log.contains("http1 handshake complete"),
        "the libraries were not listened to:\n{log}"
    );
    assert!(log.contains(MARKED.0), "user names are logged");
    let tokens = stage.office.issued_tokens();
    assert!(!tokens.is_empty());
    let secrets = [MARKED.1.to_owned(), wrong].into_iter().chain(tokens);
    for secret in secrets {
        for disguise in disguises(&secret) {
            for (place, text) in [("log", log.as_bytes()), ("arguments", &arguments)] {
                if count(text, &disguise) > 0 {
                    let around = log
                        .lines()
                        .find(|line| line.as_bytes().windows(disguise.len()).any(|part| part == disguise));
                    panic!("a secret stands in the {place}: {around:?}");
                }
            }
        }
    }
}

/// All of a process's memory that can be written: heap, stacks, data.
fn memory(pid: u32) -> Vec<u8> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut file = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut part = vec![0; usize::try_from(to - from).unwrap()];
        file.seek(SeekFrom::Start(from)).unwrap();
        if file.read_exact(&mut part).is_ok() {
            for page in part.chunks(4096).filter(|page| page.iter().any(|octet| *octet != 0)) {
                all.extend_from_slice(page);
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_left_in_memory_when_its_sessions_are_over() {
    let stage = Stage::usual().await;
    stage.office.tenant().add_user(User::new(MARKED.0, MARKED.1));
    let mut proxy = Process::start(&stage, str::to_owned);
    let addresses = Addresses::read(&mut proxy).await;
    let pid = proxy.child.id().unwrap();
    let wrong = MARKED.1.replace("Zq7", "Qz3");
    visit_everything(&stage, &addresses, MARKED.1, true).await;
    visit_everything(&stage, &addresses, &wrong, false).await;
    // the search itself is no good if it does not find what must be there
    assert!(count(&memory(pid), MARKED.0.as_bytes()) > 0, "not even the user name is found");
    let tokens = stage.office.issued_tokens();
    assert!(!tokens.is_empty());
    let left = async || {
        let image = memory(pid);
        let mut left = Vec::new();
        for (what, secret) in [("the right password", MARKED.1), ("a wrong password", wrong.as_str())] {
            let found = disguises(secret).iter().map(|disguise| count(&image, disguise)).collect::<Vec<_>>();
            if found.iter().any(|times| *times > 0) {
                left.push(format!("{what}: {found:?}"));
            }
        }
        for token in &tokens {
            let found = disguises(token).iter().map(|disguise| count(&image, disguise)).collect::<Vec<_>>();
            // the cache has it, and so has the connection to EWS that waits for the next request
            if found[0] > 2 || found[1..].iter().any(|times| *times > 0) {
                left.push(format!("a token: {found:?}"));
            }
        }
        left
    };
    // sessions end on their own time, and their memory with them; what a parser left on its thread's stack, the next
    // request on that thread writes over
    let ews = addresses.of("ews");
    let harmless = format!(
        "GET /EWS/Exchange.asmx HTTP/1.1\r\nHost: {ews}\r\nAuthorization: Basic {}\r\nUser-Agent: x\r\nConnection: close\r\n\r\n",
        "=".repeat(80)
    );
    let mut last = left().await;
    for _ in 0..20 {
        if last.is_empty() {
            break;
        }
        for _ in 0..4 {
            let mut crowd = Vec::new();
            for _ in 0..8 {
                let mut wire = dial(ews).await;
                wire.say(&harmless).await;
                crowd.push(wire);
            }
            for mut wire in crowd {
                assert!(wire.line().await.unwrap().contains(" 401 "));
            }
        }
        // reads the log up to here: a pipe that is full would hold the proxy up
        proxy.signal("-HUP");
        proxy.until("configuration reloaded").await;
        last = left().await;
    }
    assert!(last.is_empty(), "as it is, UTF-16, base64 in three ways: {last:#?}");
    proxy.signal("-TERM");
    assert_eq!(proxy.end().await.0, Some(0));
}
