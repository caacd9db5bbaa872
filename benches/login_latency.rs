//! How long an IMAP login takes, from connecting to the tagged OK, where upstream is 40 ms away and back.
//!
//! ```text
//! cargo bench --bench login_latency -- [--rounds 40] [--emailproxy <program>] [--dovecot <program>]
//! ```
//! Each round has one login by each of those under test, one after the other, so that whatever else the machine does
//! hits all of them alike. All have their token already; the identity provider is asked before the first round.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark that cannot go on ends, and its output is what it is for"
)]

#[path = "../tests/distance.rs"]
mod distance;
#[path = "../tests/stage.rs"]
mod stage;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use mailkey::simulator::{ALICE, PUBLIC_CLIENT_ID};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::stage::{Plan, Stage, Wire};

/// Half of the round trip.
const ONE_WAY: Duration = Duration::from_millis(20);

/// Between two logins at the same proxy at least: what it does after one must not weigh on the next.
const PAUSE: Duration = Duration::from_millis(400);

/// How long a proxy may take to come up.
const START_LIMIT: Duration = Duration::from_secs(30);

struct Wanted {
    rounds: usize,
    emailproxy: Option<String>,
    dovecot: Option<String>,
}

/// One of those under test.
struct Subject {
    name: &'static str,
    port: u16,
    took: Vec<Duration>,
}

fn main() {
    let wanted = Wanted::read(std::env::args().skip(1));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(measure(wanted));
}

impl Wanted {
    fn read(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut wanted = Self { rounds: 40, emailproxy: None, dovecot: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("`{argument}` wants a value"));
            match argument.as_str() {
                "--rounds" => wanted.rounds = value().parse().expect("`--rounds` wants a number"),
                "--emailproxy" => wanted.emailproxy = Some(value()),
                "--dovecot" => wanted.dovecot = Some(value()),
                // cargo's own
                "--bench" => {}
                other => panic!("no such argument: `{other}`"),
            }
        }
        assert!(wanted.rounds > 0, "`--rounds` wants at least 1");
        wanted
    }
}

async fn measure(wanted: Wanted) {
    let far = || Plan { distance: Some(ONE_WAY), ..Plan::default() };
    let warm = Stage::planned(far()).await;
    let cold = Stage::planned(Plan { sections: "limits: {warm-connections: 0}\n".to_owned(), ..far() }).await;
    let mut subjects = vec![
        Subject::new("Mailkey, warm", warm.address("imap").port()),
        Subject::new("Mailkey, cold", cold.address("imap").port()),
    ];
    let mut programs = Vec::new();
    let upstream = warm.ways[0].address.port();
    if let Some(program) = &wanted.emailproxy {
        let (port, child) = emailproxy(program, &warm, upstream).await;
        programs.push(child);
        subjects.push(Subject::new("email-oauth2-proxy", port));
    }
    if let Some(program) = &wanted.dovecot {
        let (port, child) = dovecot(program, &warm, upstream).await;
        programs.push(child);
        subjects.push(Subject::new("Dovecot", port));
    }
    for subject in &mut subjects {
        // the token, the proxy's own first time, and for warm connections a rate
        for _ in 0..3 {
            subject.log_in().await;
            sleep(PAUSE).await;
        }
        subject.took.clear();
    }
    for _ in 0..wanted.rounds {
        for subject in &mut subjects {
            subject.log_in().await;
            sleep(PAUSE).await;
        }
    }
    report(&mut subjects, wanted.rounds);
    assert!(subjects[0].median() * 2 < subjects[1].median(), "the warm connections are of no use");
    for mut program in programs {
        // dovecot takes its own processes along only when asked to end
        if let Some(id) = program.id() {
            drop(Command::new("kill").arg(id.to_string()).status().await);
        }
        drop(timeout(Duration::from_secs(5), program.wait()).await);
    }
}

impl Subject {
    fn new(name: &'static str, port: u16) -> Self {
        Self { name, port, took: Vec::new() }
    }

    /// Of sorted times.
    fn median(&self) -> Duration {
        self.took[(self.took.len() - 1) / 2]
    }

    async fn log_in(&mut self) {
        let start = Instant::now();
        let mut wire = connect(self.port).await.unwrap_or_else(|| panic!("{} is gone", self.name));
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a OK").await;
        self.took.push(start.elapsed());
        wire.ask("b LOGOUT", "b OK").await;
    }
}

async fn connect(port: u16) -> Option<Wire> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.set_nodelay(true).unwrap();
    Some(Wire(BufReader::new(stream)))
}

fn report(subjects: &mut [Subject], rounds: usize) {
    println!(
        "IMAP login, from connecting to the tagged OK; {} ms to upstream and back; {rounds} rounds",
        ONE_WAY.as_millis() * 2
    );
    println!("{:<20} {:>9} {:>9} {:>9} {:>9}", "", "median", "10 %", "90 %", "ratio");
    let mut first = None;
    for subject in subjects {
        subject.took.sort();
        let at = |percent: usize| {
            let place = (subject.took.len() - 1) * percent / 100;
            subject.took[place].as_secs_f64() * 1000.0
        };
        let (median, low, high) = (at(50), at(10), at(90));
        let first = *first.get_or_insert(median);
        println!(
            "{:<20} {median:>6.1} ms {low:>6.1} ms {high:>6.1} ms {:>8.2}x",
            subject.name,
            median / first
        );
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn until_up(port: u16, name: &str) {
    let up = async {
        while connect(port).await.is_none() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(START_LIMIT, up).await.unwrap_or_else(|_| panic!("{name} does not come up"));
}

/// email-oauth2-proxy with the password grant, as Mailkey has it.
async fn emailproxy(program: &str, stage: &Stage, upstream: u16) -> (u16, Child) {
    let port = free_port();
    let authority = stage.office.authority_url();
    let authority = authority.trim_end_matches('/');
    let text = format!(
        "[IMAP-{port}]\nlocal_address = 127.0.0.1\nserver_address = localhost\nserver_port = {upstream}\n\n\
         [{user}]\ntoken_url = {authority}/organizations/oauth2/v2.0/token\n\
         oauth2_scope = https://outlook.office.com/.default\noauth2_flow = password\n\
         client_id = {PUBLIC_CLIENT_ID}\nredirect_uri = http://localhost\n",
        user = ALICE.0
    );
    let config = stage.file("emailproxy.config");
    std::fs::write(&config, text).unwrap();
    let child = Command::new(program)
        .arg("--no-gui")
        .arg("--config-file")
        .arg(&config)
        .arg("--log-file")
        .arg(stage.file("emailproxy.log"))
        .env("SSL_CERT_FILE", stage.file("office-ca.pem"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}`: {error}"));
    until_up(port, "email-oauth2-proxy").await;
    (port, child)
}

/// Dovecot's login proxy with a token in its password database, in its fast mode: one process for many logins.
async fn dovecot(program: &str, stage: &Stage, upstream: u16) -> (u16, Child) {
    let port = free_port();
    let token = token(stage).await;
    let folder = stage.file("dovecot");
    std::fs::create_dir(&folder).unwrap();
    open_to_all(stage.folder.path());
    let config = stage.file("dovecot.conf");
    let folder = folder.display();
    let text = format!(
        "protocols = imap\nlisten = 127.0.0.1\nbase_dir = {folder}/run\nstate_dir = {folder}/state\n\
         log_path = {folder}/log\nssl = no\ndisable_plaintext_auth = no\n\
         ssl_client_ca_file = {ca}\n\
         service imap-login {{\n inet_listener imap {{\n port = {port}\n }}\n inet_listener imaps {{\n port = 0\n }}\n \
         service_count = 0\n process_min_avail = 1\n}}\n\
         passdb {{\n driver = static\n args = nopassword=y proxy=y host=127.0.0.1 port={upstream} ssl=any-cert \
         proxy_mech=XOAUTH2 pass={token}\n}}\n",
        ca = stage.file("office-ca.pem").display(),
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new(program)
        .arg("-F")
        .arg("-c")
        .arg(&config)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}`: {error}"));
    until_up(port, "Dovecot").await;
    (port, child)
}

/// Dovecot's processes are other users.
fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A token as the password grant gives it.
async fn token(stage: &Stage) -> String {
    let root = reqwest::Certificate::from_pem(stage.office.ca_pem().as_bytes()).unwrap();
    let asked = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    let authority = stage.office.authority_url();
    let answer = asked
        .post(format!("{}/organizations/oauth2/v2.0/token", authority.trim_end_matches('/')))
        .form(&[
            ("grant_type", "password"),
            ("client_id", PUBLIC_CLIENT_ID),
            ("scope", "https://outlook.office.com/.default"),
            ("username", ALICE.0),
            ("password", ALICE.1),
        ])
        .send()
        .await
        .unwrap();
    let answer: serde_json::Value = answer.json().await.unwrap();
    answer["access_token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
}
