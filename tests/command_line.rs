//! The binary as an administrator meets it: exit codes, signals, what is printed and what never is.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use mailkey::simulator::ALICE;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::stage::{PATIENCE, Stage, Told, Wire, run};

pub const MAILKEY: &str = env!("CARGO_BIN_EXE_mailkey");

async fn mailkey(arguments: &[&str]) -> Told {
    run(MAILKEY, arguments, b"").await
}

#[tokio::test]
async fn the_demo_goes_round_once_and_ends_well() {
    let told = mailkey(&["demo", "--once"]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let text = told.text();
    for step in
        ["send a message over SMTP", "over IMAP", "over POP3", "over EWS", "grant `password`", "XOAUTH2"]
    {
        assert!(text.contains(step), "{step} is missing in\n{text}");
    }
    assert!(!text.contains(ALICE.1), "the demo's round trip prints the password");
}

#[tokio::test]
async fn a_broken_configuration_ends_with_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.yaml");
    std::fs::write(&path, "oauth: {client-secret: hunter2, clientid: x}\nlisteners: [{protocol: imapp}]\n")
        .unwrap();
    for command in ["check", "run"] {
        let told = mailkey(&[command, "--config", path.to_str().unwrap()]).await;
        assert_eq!(told.code, Some(2), "{told:?}");
        assert!(told.err.contains("client-id") && told.err.contains("imapp"), "{}", told.err);
        assert!(!told.err.contains("hunter2"), "{}", told.err);
    }
    let told = mailkey(&["check", "--config", "no-such-file.yaml"]).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert_eq!(mailkey(&["chekc"]).await.code, Some(2));
    assert_eq!(mailkey(&["--version"]).await.code, Some(0));
}

#[tokio::test]
async fn the_shipped_configuration_lacks_nothing_but_the_client_id() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.yaml");
    let told = mailkey(&["run", "--config", shipped]).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.err.contains("1 problem"), "{}", told.err);
    assert!(told.err.contains("client-id") && told.err.contains("App registrations"), "{}", told.err);
}

/// The proxy as a process of its own, in front of a simulator.
pub struct Running {
    child: Child,
    log: BufReader<tokio::process::ChildStderr>,
    seen: String,
}

impl Running {
    /// In front of this stage's simulator, with whole sections appended to its configuration.
    pub fn start(stage: &Stage, sections: &str) -> Self {
        let path = stage.file("own.yaml");
        let usual = std::fs::read_to_string(stage.file("proxy.yaml")).unwrap();
        std::fs::write(&path, format!("{usual}{sections}")).unwrap();
        Self::with(&path, &[])
    }

    /// With this configuration and these variables in its environment.
    pub fn with(path: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(MAILKEY)
            .args(["run", "--config", path.to_str().unwrap()])
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, seen: String::new() }
    }

    /// Reads the log up to a line with this in it.
    pub async fn until(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let read =
                timeout(PATIENCE, self.log.read_line(&mut line)).await.expect("no such line in the log");
            assert!(read.unwrap() > 0, "the log ended before `{text}`:\n{}", self.seen);
            self.seen += &line;
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The address of a listener, as the log gives it.
    pub async fn address(&mut self, listener: &str) -> std::net::SocketAddr {
        let line = self.until(&format!("listener=\"{listener}\"")).await;
        line.split("address=").nth(1).unwrap().trim().parse().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        let killed = std::process::Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(killed.success());
    }

    pub async fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        drop(tokio::io::AsyncReadExt::read_to_string(&mut self.log, &mut rest).await);
        let status = timeout(PATIENCE, self.child.wait()).await.expect("the proxy does not end").unwrap();
        (status.code(), self.seen + &rest)
    }
}

pub async fn dial(address: std::net::SocketAddr) -> Wire {
    Wire(BufReader::new(tokio::net::TcpStream::connect(address).await.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_tells_of_a_finished_session_and_no_log_level_shows_a_secret() {
    let stage = Stage::usual().await;
    for format in ["text", "json"] {
        let log = format!("log: {{level: trace, format: {format}}}\n");
        let mut proxy = Running::start(&stage, &log);
        let line = proxy.until("127.0.0.1:").await;
        let start = line.find("127.0.0.1:").unwrap();
        let address: String =
            line[start..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
        let mut wire = dial(address.parse().unwrap()).await;
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN {} \"not the password\"", ALICE.0), "a NO").await;
        wire.ask(&format!("b LOGIN {} \"{}\"", ALICE.0, ALICE.1), "b OK").await;
        wire.ask("c LOGOUT", "c OK").await;
        let finished = proxy.until("session ended").await;
        for part in ["imap", ALICE.0, "fetched", "LOGIN", "closed"] {
            assert!(finished.contains(part), "{part} is missing in {finished}");
        }
        proxy.signal("-TERM");
        let (code, log) = proxy.end().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("AADSTS50126"), "{log}");
        for secret in [ALICE.1, "not the password", "eyJ", "Bearer ", "dXNlcj"] {
            assert!(!log.contains(secret), "`{secret}` stands in the log:\n{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_message_under_way() {
    let stage = Stage::usual().await;
    let mut proxy = Running::start(&stage, "");
    let address = proxy.address("smtp").await;
    let mut wire = dial(address).await;
    wire.until("220 ").await;
    wire.ask("EHLO x", "250 ").await;
    let plain =
        base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("\0{}\0{}", ALICE.0, ALICE.1));
    wire.ask(&format!("AUTH PLAIN {plain}"), "235 ").await;
    wire.ask(&format!("MAIL FROM:<{}>", ALICE.0), "250 ").await;
    wire.ask(&format!("RCPT TO:<{}>", ALICE.0), "250 ").await;
    wire.ask("DATA", "354 ").await;
    wire.say("Subject: half\r\n\r\n").await;
    proxy.signal("-TERM");
    proxy.until("stopping").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    wire.say("the other half\r\n").await;
    wire.ask(".", "250 ").await;
    wire.until("421 ").await;
    let (code, log) = proxy.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(stage.office.messages(ALICE.0, "INBOX").len(), 1);
}

/// Peak memory of the proxy since `forget_peak`, in KiB (Linux).
#[cfg(target_os = "linux")]
fn peak(proxy: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.child.id().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
fn forget_peak(proxy: &Running) {
    std::fs::write(format!("/proc/{}/clear_refs", proxy.child.id().unwrap()), "5").unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_over_ews_do_not_raise_memory() {
    let stage = Stage::usual().await;
    let mut proxy = Running::start(&stage, "");
    let address = proxy.address("ews").await;
    let url = format!("http://{address}/EWS/Exchange.asmx");
    let user = format!("{}:{}", ALICE.0, ALICE.1);
    let body = stage.file("body.xml");
    let post = async |size: usize| {
        std::fs::write(&body, format!("<!--{}-->", "x".repeat(size))).unwrap();
        let data = format!("@{}", body.display());
        let told = run(
            "curl",
            [
                "-sS",
                "-u",
                &user,
                "-H",
                "Content-Type: text/xml",
                "-H",
                "Expect:",
                "--data-binary",
                &data,
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{size_upload}",
                &url,
            ],
            b"",
        )
        .await;
        // no SOAP, so Exchange says no; but it has read all of it
        assert!(
            told.text().ends_with(&format!(" {}", size + 7)) && !told.text().starts_with("000"),
            "{told:?}"
        );
    };
    post(100_000).await;
    forget_peak(&proxy);
    let before = peak(&proxy);
    post(100_000_000).await;
    // the kernel counts pages by processor: of nothing that grew, the second figure may be a page below the first
    let grown = peak(&proxy).saturating_sub(before);
    assert!(grown <= 1024, "memory grew by {grown} KiB");
    proxy.signal("-TERM");
    assert_eq!(proxy.end().await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_said_so() {
    let stage = Stage::usual().await;
    let taken = stage.address("imap").to_string();
    let text = std::fs::read_to_string(stage.file("proxy.yaml")).unwrap().replacen("127.0.0.1:0", &taken, 1);
    std::fs::write(stage.file("taken.yaml"), text).unwrap();
    let told = mailkey(&["run", "--config", stage.file("taken.yaml").to_str().unwrap()]).await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.err.contains("START-LISTEN") && told.err.contains("another program"), "{}", told.err);
}
