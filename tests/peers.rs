//! Real servers behind the proxy, real clients before it: Dovecot and Postfix as upstream, fetchmail, isync and
//! msmtp as clients. Nobody here wrote their side of the dialogues.

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mailkey::simulator::{ALICE, Event, Simulator};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::ports::free_port;
use crate::stage::{PATIENCE, Plan, Stage, Told, run};

const MESSAGE: &str =
    "From: alice@contoso.com\r\nTo: alice@contoso.com\r\nSubject: over real servers\r\n\r\n.dots\r\nend\r\n";

/// The users that Debian's packages bring along; the mailboxes belong to `mail`.
const MAIL: u32 = 8;

/// Ports of the servers, free when they were looked for.
#[derive(Clone, Copy)]
struct Ports {
    imap: u16,
    imaps: u16,
    pop3: u16,
    pop3s: u16,
    sasl: u16,
    submission: u16,
    introspection: u16,
}

impl Ports {
    fn free() -> Self {
        Self {
            imap: free_port(),
            imaps: free_port(),
            pop3: free_port(),
            pop3s: free_port(),
            sasl: free_port(),
            submission: free_port(),
            introspection: free_port(),
        }
    }
}

/// The proxy before Dovecot and Postfix, which believe the simulator's identity provider.
struct RealOffice {
    /// Stopped first: their folder goes after them.
    _servers: Vec<Server>,
    stage: Arc<Stage>,
    folder: tempfile::TempDir,
    introspection: JoinHandle<()>,
}

impl Drop for RealOffice {
    fn drop(&mut self) {
        self.introspection.abort();
    }
}

/// A server, and the command that ends it with all of its processes.
struct Server {
    _child: Child,
    stop: [String; 4],
}

impl Drop for Server {
    fn drop(&mut self) {
        let [program, arguments @ ..] = &self.stop;
        let stopped = std::process::Command::new(program).args(arguments).output();
        // a server that never came up has nothing to stop; the test has said so already
        drop(stopped);
    }
}

impl RealOffice {
    async fn open() -> Self {
        let ports = Ports::free();
        let mut listeners = String::new();
        for (name, protocol, port, tls, sasl) in [
            ("d-imap", "imap", ports.imaps, "implicit", "xoauth2"),
            ("d-imap-starttls", "imap", ports.imap, "starttls", "xoauth2"),
            ("d-imap-oauthbearer", "imap", ports.imaps, "implicit", "oauthbearer"),
            ("d-pop3", "pop3", ports.pop3s, "implicit", "xoauth2"),
            ("d-pop3-starttls", "pop3", ports.pop3, "starttls", "xoauth2"),
            ("d-pop3-oauthbearer", "pop3", ports.pop3s, "implicit", "oauthbearer"),
            ("p-smtp", "smtp", ports.submission, "starttls", "xoauth2"),
            ("p-smtp-oauthbearer", "smtp", ports.submission, "starttls", "oauthbearer"),
        ] {
            writeln!(
                listeners,
                "  - {{name: {name}, protocol: {protocol}, listen: '127.0.0.1:0', upstream: 'localhost:{port}', \
                 upstream-tls: {tls}, oauth: {{sasl: {sasl}}}}}"
            )
            .unwrap();
        }
        let stage = Arc::new(Stage::planned(Plan { listeners, ..Plan::default() }).await);
        let introspection = tokio::spawn(answer_introspection(ports.introspection, Arc::clone(&stage)));
        let folder = tempfile::tempdir().unwrap();
        open_to_all(folder.path());
        for name in ["server.pem", "server.key"] {
            std::fs::copy(stage.file(name), folder.path().join(name)).unwrap();
        }
        let servers = vec![start_dovecot(folder.path(), ports), start_postfix(folder.path(), ports).await];
        let office = Self { stage, folder, _servers: servers, introspection };
        for port in [ports.imaps, ports.pop3s, ports.submission] {
            office.wait_for(port).await;
        }
        office
    }

    async fn wait_for(&self, port: u16) {
        let up = timeout(PATIENCE, async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(up.await.is_ok(), "port {port} stays closed:\n{}", self.logs());
    }

    fn logs(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!("{}\n{}\n{}", read("dovecot.log"), read("postfix.log"), read("postfix.out"))
    }
}

/// RFC 7662, as far as Dovecot asks: `token=…` in the body, whose it is in the answer.
async fn answer_introspection(port: u16, stage: Arc<Stage>) {
    let socket = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    loop {
        let (io, _) = socket.accept().await.unwrap();
        // a connection that Dovecot gives up is its own affair
        drop(introspect(io, &stage.office).await);
    }
}

async fn introspect(io: TcpStream, office: &Simulator) -> std::io::Result<()> {
    let mut io = BufReader::new(io);
    let mut length = 0;
    loop {
        let mut line = String::new();
        io.read_line(&mut line).await?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    let body = String::from_utf8(body).unwrap();
    let token = url::form_urlencoded::parse(body.as_bytes()).find(|(key, _)| key == "token").unwrap().1;
    let said = match office.whose(&token) {
        Some(user) => format!(r#"{{"active":true,"username":"{user}"}}"#),
        None => r#"{"active":false}"#.to_owned(),
    };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{said}",
        said.len()
    );
    io.write_all(answer.as_bytes()).await
}

fn open_to_all(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder that belongs to this user.
fn folder_of(user: u32, folder: &Path, name: &str) -> PathBuf {
    let made = folder.join(name);
    std::fs::create_dir_all(&made).unwrap();
    open_to_all(&made);
    chown(&made, Some(user), Some(user)).unwrap();
    made
}

fn start(program: &str, arguments: &[&str], folder: &Path, stop: [&str; 4]) -> Server {
    let out = std::fs::File::create(folder.join(format!("{program}.out"))).unwrap();
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}` cannot be run ({error}): tests/run installs it"));
    Server { _child: child, stop: stop.map(str::to_owned) }
}

fn start_dovecot(folder: &Path, ports: Ports) -> Server {
    folder_of(MAIL, folder, "mail");
    let here = folder.display();
    let Ports { imap, imaps, pop3, pop3s, sasl, introspection, .. } = ports;
    std::fs::write(
        folder.join("oauth2.conf"),
        format!(
            "introspection_mode = post\nintrospection_url = http://127.0.0.1:{introspection}/\n\
             active_attribute = active\nactive_value = true\nusername_attribute = username\n"
        ),
    )
    .unwrap();
    let settings = format!(
        "base_dir = {here}/run\nstate_dir = {here}/state\nlog_path = {here}/dovecot.log\nprotocols = imap pop3\n\
         listen = 127.0.0.1\nssl = required\nssl_cert = <{here}/server.pem\nssl_key = <{here}/server.key\n\
         auth_mechanisms = xoauth2 oauthbearer\nfirst_valid_uid = 1\nfirst_valid_gid = 1\n\
         mail_location = maildir:~/Maildir\n\
         passdb {{\n  driver = oauth2\n  mechanisms = xoauth2 oauthbearer\n  args = {here}/oauth2.conf\n}}\n\
         userdb {{\n  driver = static\n  args = uid={MAIL} gid={MAIL} home={here}/mail/%u\n}}\n\
         service imap-login {{\n  chroot =\n  inet_listener imap {{\n    port = {imap}\n  }}\n  \
         inet_listener imaps {{\n    port = {imaps}\n    ssl = yes\n  }}\n}}\n\
         service pop3-login {{\n  chroot =\n  inet_listener pop3 {{\n    port = {pop3}\n  }}\n  \
         inet_listener pop3s {{\n    port = {pop3s}\n    ssl = yes\n  }}\n}}\n\
         service auth {{\n  inet_listener sasl {{\n    port = {sasl}\n  }}\n}}\n"
    );
    let file = folder.join("dovecot.conf");
    std::fs::write(&file, settings).unwrap();
    let file = file.to_str().unwrap();
    start("dovecot", &["-F", "-c", file], folder, ["doveadm", "-c", file, "stop"])
}

async fn start_postfix(folder: &Path, ports: Ports) -> Server {
    let id = run("id", ["-u", "postfix"], b"").await.text();
    let postfix: u32 = id.trim().parse().expect("Debian's package makes the user");
    folder_of(postfix, folder, "postfix-data");
    std::fs::create_dir_all(folder.join("queue")).unwrap();
    open_to_all(&folder.join("queue"));
    let conf = folder_of(0, folder, "postfix");
    let here = folder.display();
    let Ports { sasl, submission, .. } = ports;
    std::fs::write(
        conf.join("main.cf"),
        format!(
            "compatibility_level = 3.6\nqueue_directory = {here}/queue\ndata_directory = {here}/postfix-data\n\
             command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n\
             setgid_group = postdrop\nmyhostname = mx.contoso.com\nmydestination =\ninet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\nmaillog_file = {here}/postfix.log\nmaillog_file_prefixes = {here}\n\
             virtual_mailbox_domains = contoso.com\nvirtual_mailbox_base = {here}/mail\n\
             virtual_mailbox_maps = static:alice@contoso.com/Maildir/\nvirtual_minimum_uid = 1\n\
             virtual_uid_maps = static:{MAIL}\nvirtual_gid_maps = static:{MAIL}\n\
             smtpd_tls_cert_file = {here}/server.pem\nsmtpd_tls_key_file = {here}/server.key\n\
             smtpd_tls_security_level = encrypt\nsmtpd_tls_auth_only = yes\nsmtpd_sasl_auth_enable = yes\n\
             smtpd_sasl_type = dovecot\nsmtpd_sasl_path = inet:127.0.0.1:{sasl}\n\
             smtpd_sasl_security_options = noanonymous\n\
             smtpd_relay_restrictions = permit_sasl_authenticated, reject\n\
             smtpd_recipient_restrictions = permit_sasl_authenticated, reject\n"
        ),
    )
    .unwrap();
    let mut services = format!("127.0.0.1:{submission} inet n - n - - smtpd\n");
    for (name, kind, program) in [
        ("cleanup", "unix n - n - 0", "cleanup"),
        ("qmgr", "unix n - n 300 1", "qmgr"),
        ("tlsmgr", "unix - - n 1000? 1", "tlsmgr"),
        ("rewrite", "unix - - n - -", "trivial-rewrite"),
        ("bounce", "unix - - n - 0", "bounce"),
        ("defer", "unix - - n - 0", "bounce"),
        ("trace", "unix - - n - 0", "bounce"),
        ("verify", "unix - - n - 1", "verify"),
        ("flush", "unix n - n 1000? 0", "flush"),
        ("proxymap", "unix - - n - -", "proxymap"),
        ("error", "unix - - n - -", "error"),
        ("retry", "unix - - n - -", "error"),
        ("virtual", "unix - n n - -", "virtual"),
        ("anvil", "unix - - n - 1", "anvil"),
        ("postlog", "unix-dgram n - n - 1", "postlogd"),
    ] {
        writeln!(services, "{name} {kind} {program}").unwrap();
    }
    std::fs::write(conf.join("master.cf"), services).unwrap();
    let conf = conf.to_str().unwrap();
    let checked = run("postfix", ["-c", conf, "check"], b"").await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    start("postfix", &["-c", conf, "start-fg"], folder, ["postfix", "-c", conf, "stop"])
}

/// Every token came from the identity provider, and no password went anywhere else.
fn one_token_served_all(stage: &Stage) {
    let tokens = stage.office.journal().into_iter().filter(|event| matches!(event, Event::Token(_))).count();
    // the simulator's own mail services were asked for nothing but what they offer
    assert!(!stage.office.journal().iter().any(|event| matches!(event, Event::SignIn(_))));
    assert_eq!(tokens, 1);
}

async fn curl(arguments: &[&str], input: &[u8]) -> Told {
    let common = ["--silent", "--show-error", "--max-time", "50"];
    run("curl", common.iter().chain(arguments), input).await
}

#[tokio::test(flavor = "multi_thread")]
async fn dovecot_and_postfix_take_our_sign_in_and_real_clients_take_ours() {
    let office = RealOffice::open().await;
    let (stage, folder) = (&office.stage, office.folder.path());
    let user = format!("{}:{}", ALICE.0, ALICE.1);

    for listener in ["p-smtp", "p-smtp-oauthbearer"] {
        let url = format!("smtp://localhost:{}", stage.port(listener));
        let arguments = ["-u", &user, &url, "--mail-from", ALICE.0, "--mail-rcpt", ALICE.0, "-T", "-"];
        let told = curl(&arguments, MESSAGE.as_bytes()).await;
        assert_eq!(told.code, Some(0), "{listener}: {told:?}\n{}", office.logs());
    }
    let password = format!("--passwordeval=echo '{}'", ALICE.1);
    let told = run(
        "msmtp",
        [
            "--host=127.0.0.1",
            &format!("--port={}", stage.port("p-smtp")),
            "--auth=plain",
            "--tls=off",
            &format!("--user={}", ALICE.0),
            &password,
            &format!("--from={}", ALICE.0),
            ALICE.0,
        ],
        MESSAGE.replace("\r\n", "\n").as_bytes(),
    )
    .await;
    assert_eq!(told.code, Some(0), "{told:?}\n{}", office.logs());

    let inbox = folder.join("mail/alice@contoso.com/Maildir/new");
    let delivered = timeout(PATIENCE, async {
        while std::fs::read_dir(&inbox).map_or(0, Iterator::count) < 3 {
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(delivered.await.is_ok(), "Postfix delivers nothing:\n{}", office.logs());

    for (listener, url) in [
        ("d-imap", "imap://localhost:PORT/INBOX;MAILINDEX=3"),
        ("d-imap-starttls", "imap://localhost:PORT/INBOX;MAILINDEX=3"),
        ("d-imap-oauthbearer", "imap://localhost:PORT/INBOX;MAILINDEX=3"),
        ("d-pop3", "pop3://localhost:PORT/3"),
        ("d-pop3-starttls", "pop3://localhost:PORT/3"),
        ("d-pop3-oauthbearer", "pop3://localhost:PORT/3"),
    ] {
        let url = url.replace("PORT", &stage.port(listener));
        let told = curl(&["-u", &user, &url], b"").await;
        assert_eq!(told.code, Some(0), "{listener}: {told:?}\n{}", office.logs());
        assert!(told.text().contains(".dots\r\nend\r\n"), "{listener}: {}", told.text());
    }

    for (protocol, listener) in [("imap", "d-imap"), ("pop3", "d-pop3")] {
        let out = folder.join(format!("fetched-{protocol}"));
        let told = fetchmail(folder, protocol, &stage.port(listener), ALICE.1, &out).await;
        assert_eq!(told.code, Some(0), "{protocol}: {told:?}\n{}", office.logs());
        let fetched = std::fs::read_to_string(&out).unwrap();
        assert_eq!(fetched.matches("Subject: over real servers").count(), 3, "{fetched}");
    }
    let told = mbsync(folder, &stage.port("d-imap"), ALICE.1).await;
    assert_eq!(told.code, Some(0), "{told:?}\n{}", office.logs());
    let synced = std::fs::read_dir(folder.join("synced/INBOX/cur")).unwrap().count()
        + std::fs::read_dir(folder.join("synced/INBOX/new")).unwrap().count();
    assert_eq!(synced, 3);
    one_token_served_all(stage);

    // a wrong password reaches neither server
    let told = fetchmail(folder, "imap", &stage.port("d-imap"), "wrong", &folder.join("none")).await;
    assert_eq!(told.code, Some(3), "fetchmail's code for a refused login: {told:?}");
    let told = mbsync(folder, &stage.port("d-imap"), "wrong").await;
    assert_ne!(told.code, Some(0), "{told:?}");

    // and a token that the identity provider has withdrawn is replaced by a fresh one, once
    stage.office.expire_tokens();
    let url = format!("imap://localhost:{}/INBOX;MAILINDEX=1", stage.port("d-imap"));
    let told = curl(&["-u", &user, &url], b"").await;
    assert_eq!(told.code, Some(0), "{told:?}\n{}", office.logs());
}

async fn fetchmail(folder: &Path, protocol: &str, port: &str, password: &str, out: &Path) -> Told {
    let file = folder.join(format!("fetchmailrc-{protocol}"));
    let settings = format!(
        "set idfile '{here}/ids-{protocol}'\npoll 127.0.0.1 service {port} proto {protocol} auth password \
         user '{}' password '{password}' sslproto '' bsmtp '{}' keep fetchall\n",
        ALICE.0,
        out.display(),
        here = folder.display(),
    );
    std::fs::write(&file, settings).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let pid = format!("{}/fetchmail-{protocol}.pid", folder.display());
    run("fetchmail", ["--nodetach", "--nosyslog", "--pidfile", &pid, "-f", file.to_str().unwrap()], b"").await
}

async fn mbsync(folder: &Path, port: &str, password: &str) -> Told {
    std::fs::create_dir_all(folder.join("synced")).unwrap();
    let file = folder.join("mbsyncrc");
    let here = folder.display();
    let settings = format!(
        "IMAPAccount us\nHost 127.0.0.1\nPort {port}\nUser {}\nPass \"{password}\"\nSSLType None\nAuthMechs LOGIN\n\n\
         IMAPStore far\nAccount us\n\nMaildirStore near\nPath {here}/synced/\nInbox {here}/synced/INBOX\n\
         SubFolders Verbatim\n\nChannel all\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSyncState *\n",
        ALICE.0
    );
    std::fs::write(&file, settings).unwrap();
    run("mbsync", ["-c", file.to_str().unwrap(), "-a"], b"").await
}
