//! A company's network on one machine: mailkey as a process of its own, and real proxies in front of the simulator.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mailkey::simulator::{ALICE, PUBLIC_CLIENT_ID, Settings, Simulator};
use tempfile::TempDir;
use tokio::io::BufReader;
use tokio::net::TcpStream;

use crate::ports::free_port;
use crate::stage::{Told, Wire, run, write_private};

/// How long a program may take to come up.
const START: Duration = Duration::from_secs(30);

/// Real names, which nobody but the proxy can resolve to the simulator.
pub const LOGIN: &str = "login.microsoftonline.com";
pub const OUTLOOK: &str = "outlook.office365.com";
pub const SMTP: &str = "smtp.office365.com";

pub const GET_FOLDER: &str = r#"<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><GetFolder xmlns="http://schemas.microsoft.com/exchange/services/2006/messages" xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types"><FolderShape><t:BaseShape>Default</t:BaseShape></FolderShape><FolderIds><t:DistinguishedFolderId Id="inbox"/></FolderIds></GetFolder></s:Body></s:Envelope>"#;

const MESSAGE: &str = "From: alice@contoso.com\r\nTo: alice@contoso.com\r\nSubject: hello\r\n\r\nHello.\r\n";

/// Ends a process when it goes out of scope.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A folder that other users' processes (squid's) may use.
pub fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Starts a program; one that is not there is a failed test, never a skipped one.
pub fn spawn(command: &mut Command) -> Running {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).spawn();
    Running(child.unwrap_or_else(|error| panic!("`{name}` cannot be run ({error}): tests/run installs it")))
}

/// Runs a short command, which must succeed.
pub fn must(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("`{program}` cannot be run ({error}): tests/run installs it"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What a refusal's log line says of what happened.
pub fn what(refusal: &serde_json::Value) -> &str {
    refusal["what"].as_str().or(refusal["message"].as_str()).unwrap()
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + START;
    while !so() {
        assert!(Instant::now() < end, "it does not come to pass: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a port takes connections.
pub async fn listening(address: SocketAddr) {
    until(&format!("{address} listens"), || std::net::TcpStream::connect(address).is_ok()).await;
}

/// A running mailkey, all of whose log lines are kept.
pub struct Mailkey {
    process: Running,
    pub folder: TempDir,
    ports: HashMap<String, SocketAddr>,
}

/// What differs from the usual.
#[derive(Default)]
pub struct Plan {
    /// Top-level sections.
    pub sections: String,
    /// The host part of every upstream; by default the real names.
    pub host: Option<&'static str>,
    /// Files beside the configuration, by name.
    pub files: Vec<(&'static str, String)>,
    /// Trusted beside the simulator's root, PEM.
    pub root: String,
    /// Keys of `tls` beside `extra-roots-file`, in flow style, each with a comma before it.
    pub tls: String,
    /// What to run it with, e.g. in a network namespace.
    pub wrapper: Vec<String>,
    /// The address to listen on.
    pub listen: Option<&'static str>,
}

impl Mailkey {
    pub async fn start(office: &Simulator, plan: Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("office-ca.pem"), format!("{}{}", office.ca_pem(), plan.root))
            .unwrap();
        for (name, content) in &plan.files {
            std::fs::write(folder.path().join(name), content).unwrap();
            std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o600))
                .unwrap();
        }
        write_private(&folder.path().join("proxy.yaml"), &configuration(office, &plan));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut words = plan.wrapper.clone();
        words.push(env!("CARGO_BIN_EXE_mailkey").to_owned());
        let (program, arguments) = words.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).args(["run", "--config"]).arg(folder.path().join("proxy.yaml"));
        for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "RUST_LOG"] {
            command.env_remove(name);
        }
        let process = spawn(command.stdout(Stdio::null()).stderr(log));
        let mut mailkey = Self { process, folder, ports: HashMap::new() };
        until("mailkey listens", || {
            let ended = mailkey.process.0.try_wait().unwrap();
            assert!(ended.is_none(), "mailkey does not start: {}", mailkey.raw_log());
            let lines = mailkey.log();
            lines.iter().filter(|line| line["message"] == "listening").count() == 6
        })
        .await;
        for line in mailkey.log() {
            if line["message"] == "listening" {
                let address = line["address"].as_str().unwrap().parse().unwrap();
                mailkey.ports.insert(line["listener"].as_str().unwrap().to_owned(), address);
            }
        }
        mailkey
    }

    pub fn address(&self, listener: &str) -> SocketAddr {
        self.ports[listener]
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub fn raw_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Every line of the log so far.
    pub fn log(&self) -> Vec<serde_json::Value> {
        self.raw_log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The last line that tells of a refused login, or of a refused EWS request.
    pub async fn refusal(&self, listener: &str, nth: usize) -> serde_json::Value {
        let of = |line: &serde_json::Value| line["listener"] == listener && line["code"].is_string();
        let end = Instant::now() + START;
        while self.log().iter().filter(|line| of(line)).count() < nth {
            assert!(Instant::now() < end, "no refusal {nth} at {listener}: {}", self.raw_log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.log().into_iter().filter(of).nth(nth - 1).unwrap()
    }

    /// How often a listener has refused so far.
    pub fn refusals(&self, listener: &str) -> usize {
        self.log().iter().filter(|line| line["listener"] == listener && line["code"].is_string()).count()
    }

    /// Sends a signal, e.g. `-TERM`.
    pub fn signal(&self, signal: &str) {
        must("kill", &[signal, &self.pid().to_string()]);
    }

    /// Waits until the process has ended; its exit code, if it had the time to give one.
    pub async fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        until("mailkey ends", || {
            let status = self.process.0.try_wait().unwrap();
            code = status.and_then(|status| status.code());
            status.is_some()
        })
        .await;
        code
    }

    /// Open file descriptors, sockets and all.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub async fn wire(&self, listener: &str) -> Wire {
        Wire(BufReader::new(TcpStream::connect(self.address(listener)).await.unwrap()))
    }

    /// Signs in as Alice; the protocol's answer.
    pub async fn sign_in(&self, protocol: &str) -> String {
        self.sign_in_as(protocol, ALICE).await
    }

    /// Signs in; the protocol's answer.
    pub async fn sign_in_as(&self, protocol: &str, (user, password): (&str, &str)) -> String {
        let mut wire = match protocol {
            "ews" => return self.ask_ews(&format!("{user}:{password}")).await,
            other => self.wire(other).await,
        };
        match protocol.split('-').next().unwrap() {
            "imap" => {
                wire.until("* OK").await;
                wire.ask(&format!("a1 LOGIN {user} \"{password}\""), "a1 ").await
            }
            "pop3" => {
                wire.until("+OK").await;
                wire.ask(&format!("USER {user}"), "+OK").await;
                wire.say(format!("PASS {password}\r\n")).await;
                wire.line().await.unwrap()
            }
            _ => {
                wire.until("220").await;
                wire.ask("EHLO client.contoso.com", "250 ").await;
                let plain = openssl_base64(&format!("\0{user}\0{password}"));
                wire.say(format!("AUTH PLAIN {plain}\r\n")).await;
                wire.line().await.unwrap()
            }
        }
    }

    async fn ask_ews(&self, user: &str) -> String {
        let url = format!("http://{}/EWS/Exchange.asmx", self.address("ews"));
        let told = run(
            "curl",
            ["-sS", "-i", "-u", user, &url, "-H", "Content-Type: text/xml", "-d", GET_FOLDER],
            b"",
        )
        .await;
        told.text()
    }

    /// Sends by SMTP, reads by IMAP and POP3, asks EWS: with curl, as an application would.
    pub async fn serves_everything(&self, wrapper: &[String]) {
        let user = format!("{}:{}", ALICE.0, ALICE.1);
        let at =
            |scheme: &str, listener: &str, path: &str| format!("{scheme}://{}{path}", self.address(listener));
        let curl = async |arguments: &[&str], input: &str| -> Told {
            let mut words: Vec<&str> = wrapper.iter().map(String::as_str).collect();
            words.extend(["curl", "-sS", "--max-time", "30", "-u", user.as_str()]);
            words.extend(arguments);
            let told = run(words[0], &words[1..], input.as_bytes()).await;
            assert_eq!(told.code, Some(0), "{arguments:?}: {told:?}\n{}", self.raw_log());
            told
        };
        let smtp = at("smtp", "smtp", "/client.contoso.com");
        curl(&[&smtp, "--mail-from", ALICE.0, "--mail-rcpt", ALICE.0, "-T", "-"], MESSAGE).await;
        let told = curl(&[&at("imap", "imap", "/INBOX;MAILINDEX=1")], "").await;
        assert_eq!(told.text(), MESSAGE);
        curl(&[&at("imap", "imap-up-starttls", "/INBOX;MAILINDEX=1")], "").await;
        let told = curl(&[&at("pop3", "pop3", "/1")], "").await;
        assert_eq!(told.text(), MESSAGE);
        let ews = at("http", "ews", "/EWS/Exchange.asmx");
        let told = curl(&[&ews, "-H", "Content-Type: text/xml", "-d", GET_FOLDER], "").await;
        assert!(told.text().contains("NoError"), "{}", told.text());
    }
}

fn openssl_base64(text: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(text)
}

fn configuration(office: &Simulator, plan: &Plan) -> String {
    let host = |real: &'static str| plan.host.unwrap_or(real);
    let listen = plan.listen.unwrap_or("127.0.0.1");
    // clear text elsewhere has to be wanted
    let clear = if plan.listen.is_some() { ", allow-insecure: true" } else { "" };
    let (outlook, smtp) = (host(OUTLOOK), host(SMTP));
    let mut listeners = String::new();
    for (name, protocol, upstream, tls) in [
        ("imap", "imap", format!("{outlook}:{}", office.imap().port()), "implicit"),
        ("imap-up-starttls", "imap", format!("{outlook}:{}", office.imap_starttls().port()), "starttls"),
        ("pop3", "pop3", format!("{outlook}:{}", office.pop3().port()), "implicit"),
        ("smtp", "smtp", format!("{smtp}:{}", office.smtp().port()), "starttls"),
        ("smtp-implicit", "smtp", format!("{smtp}:{}", office.smtp_implicit().port()), "implicit"),
    ] {
        let line = format!(
            "  - {{name: {name}, protocol: {protocol}, listen: '{listen}:0'{clear}, upstream: '{upstream}', upstream-tls: {tls}}}\n"
        );
        listeners.push_str(&line);
    }
    let ews = office.ews().port();
    format!(
        "oauth: {{tenant-authority: 'https://{}:{}/', directory-id: organizations, client-id: {PUBLIC_CLIENT_ID}, \
         scope: 'https://outlook.office.com/.default'}}\n\
         listeners:\n{listeners}  - {{name: ews, protocol: ews, listen: '{listen}:0'{clear}, upstream: 'https://{outlook}:{ews}/'}}\n\
         tls: {{extra-roots-file: office-ca.pem{}}}\nadmin: off\nlog: {{format: json, level: debug}}\n{}",
        host(LOGIN),
        office.authority().port(),
        plan.tls,
        plan.sections
    )
}

/// The simulator, on loopback.
pub async fn office() -> Simulator {
    office_with(Settings::default()).await
}

/// The same, with other settings.
pub async fn office_with(settings: Settings) -> Simulator {
    office_at(Ipv4Addr::LOCALHOST, settings).await
}

/// The same, at another address of this machine.
pub async fn office_at(address: Ipv4Addr, settings: Settings) -> Simulator {
    // the second call finds the provider in place
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    Simulator::start(Settings { address: IpAddr::V4(address), ..settings }).await.unwrap()
}

/// Writes an `/etc/hosts` in which Microsoft's names lead to the simulator.
pub fn write_hosts(folder: &Path) -> PathBuf {
    let path = folder.join("hosts");
    std::fs::write(&path, format!("127.0.0.1 localhost {LOGIN} {OUTLOOK} {SMTP}\n")).unwrap();
    path
}

/// A running Squid.
pub struct Squid {
    process: Running,
    pub folder: TempDir,
    pub port: u16,
}

/// How Squid is set up.
pub struct SquidPlan {
    /// `auth_param` lines; `FOLDER` stands for its folder.
    pub auth: String,
    /// Ports that CONNECT may lead to; empty: all.
    pub ports: Vec<u16>,
    /// Run before it, in the same mount namespace, as a shell script in its folder.
    pub before: String,
    /// The address to listen on.
    pub address: &'static str,
}

impl Default for SquidPlan {
    fn default() -> Self {
        Self { auth: String::new(), ports: Vec::new(), before: String::new(), address: "127.0.0.1" }
    }
}

impl Squid {
    pub async fn start(plan: SquidPlan) -> Self {
        let folder = open_folder();
        write_hosts(folder.path());
        let port = free_port();
        let place = folder.path().display().to_string();
        let mut rules = String::new();
        if !plan.ports.is_empty() {
            let ports: Vec<String> = plan.ports.iter().map(ToString::to_string).collect();
            rules = format!("acl allowed port {}\nhttp_access deny CONNECT !allowed\n", ports.join(" "));
        }
        rules += if plan.auth.is_empty() {
            "http_access allow all\n"
        } else {
            "acl users proxy_auth REQUIRED\nhttp_access allow users\nhttp_access deny all\n"
        };
        let text = format!(
            "http_port {}:{port}\n{}\n{rules}hosts_file FOLDER/hosts\ncache deny all\npinger_enable off\n\
             access_log stdio:FOLDER/access.log\ncache_log FOLDER/cache.log\npid_filename FOLDER/squid.pid\n\
             coredump_dir FOLDER\nshutdown_lifetime 0 seconds\nconnect_timeout 5 seconds\nmax_filedescriptors 1024\n\
             netdb_filename none\nlogfile_rotate 0\nvisible_hostname squid.contoso.com\n",
            plan.address, plan.auth
        );
        std::fs::write(folder.path().join("squid.conf"), text.replace("FOLDER", &place)).unwrap();
        let script = format!("{}\nexec squid -N -f squid.conf", plan.before.replace("FOLDER", &place));
        std::fs::write(folder.path().join("start.sh"), script).unwrap();
        let output = std::fs::File::create(folder.path().join("output")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "bash", "-e", "start.sh"]).current_dir(folder.path());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let mut squid = Self { process: spawn(&mut command), folder, port };
        let address = SocketAddr::new(plan.address.parse().unwrap(), port);
        until("Squid listens", || {
            if squid.process.0.try_wait().unwrap().is_some() {
                let read = |name| std::fs::read_to_string(squid.folder.path().join(name)).unwrap_or_default();
                panic!("Squid ended: {}{}", read("output"), read("cache.log"));
            }
            std::net::TcpStream::connect(address).is_ok()
        })
        .await;
        squid
    }

    /// `CONNECT` requests: host and port, status, user.
    pub fn connects(&self) -> Vec<(String, String, String)> {
        let log = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        let lines = log.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines
            .filter(|words| words.get(5) == Some(&"CONNECT"))
            .map(|words| (words[6].to_owned(), words[3].to_owned(), words[7].to_owned()))
            .collect()
    }
}

/// A Squid with Basic: `svc-mail`, whose password is `open sesame: 1%`.
pub fn basic() -> SquidPlan {
    let hash = must("openssl", &["passwd", "-apr1", PROXY_PASSWORD]);
    SquidPlan {
        auth: "auth_param basic program /usr/lib/squid/basic_ncsa_auth FOLDER/passwd\nauth_param basic realm corporate"
            .to_owned(),
        before: format!("echo 'svc-mail:{}' > FOLDER/passwd", hash.trim()),
        ..SquidPlan::default()
    }
}

pub const PROXY_PASSWORD: &str = "open sesame: 1%";

/// The section `outbound-proxy` for everything, in flow style.
pub fn through(url: &str, more: &str) -> String {
    format!("outbound-proxy: {{url: '{url}', use-for: [identity, ews, mail]{more}}}\n")
}

/// User name and password, as they stand in [`through`].
pub fn signed_in(user: &str) -> String {
    format!(", username: '{user}', password: '{PROXY_PASSWORD}'")
}
