//! The stage for whole-proxy tests: the simulator, the real proxy in front of it, and real clients as processes.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use mailkey::app::App;
use mailkey::config;
use mailkey::simulator::{PUBLIC_CLIENT_ID, Settings, Simulator};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::distance::Distance;

/// How long a client process or an answer may take: generous, two cores are shared by all tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What differs from the usual configuration.
#[derive(Default)]
pub struct Plan {
    /// Of the simulator.
    pub settings: Settings,
    /// Replaces the usual keys of the `oauth` section, in flow style, without `tenant-authority`.
    pub oauth: Option<String>,
    /// More listeners, one a line; `{imap}`, `{pop3}`, `{smtp}` are where the simulator is.
    pub listeners: String,
    /// Whole top-level sections, appended.
    pub sections: String,
    /// Files that nobody else may read: name and content.
    pub files: Vec<(&'static str, &'static str)>,
    /// How far away IMAP, POP3 and SMTP are, one way.
    pub distance: Option<Duration>,
}

/// A running simulator and a running proxy.
pub struct Stage {
    pub office: Simulator,
    pub app: App,
    pub folder: TempDir,
    /// The way to IMAP, POP3 and SMTP, where the plan has a distance.
    pub ways: Vec<Distance>,
}

impl Stage {
    pub async fn usual() -> Self {
        Self::planned(Plan::default()).await
    }

    pub async fn planned(plan: Plan) -> Self {
        // the second call finds the provider in place
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let office = Simulator::start(plan.settings).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_certificate(folder.path());
        // real servers that a test starts beside the simulator show the proxy's own certificate
        let beside = std::fs::read_to_string(folder.path().join("server.pem")).unwrap();
        std::fs::write(folder.path().join("office-ca.pem"), format!("{}{beside}", office.ca_pem())).unwrap();
        let oauth = plan.oauth.unwrap_or_else(|| {
            format!("client-id: {PUBLIC_CLIENT_ID}, scope: 'https://outlook.office.com/.default'")
        });
        for (name, content) in plan.files {
            write_private(&folder.path().join(name), content);
        }
        let mut ports = [office.imap().port(), office.pop3().port(), office.smtp().port()];
        let mut ways = Vec::new();
        if let Some(one_way) = plan.distance {
            for (port, service) in ports.iter_mut().zip([office.imap(), office.pop3(), office.smtp()]) {
                let way = Distance::to(service, one_way).await;
                *port = way.address.port();
                ways.push(way);
            }
        }
        let text = configuration(&office, ports, &oauth, &plan.listeners, &plan.sections);
        let path = folder.path().join("proxy.yaml");
        write_private(&path, &text);
        let loaded = config::load(&path, &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
        let app = App::start(loaded.config).unwrap();
        Self { office, app, folder, ways }
    }

    pub fn address(&self, listener: &str) -> SocketAddr {
        self.app.addresses().iter().find(|(name, _)| name == listener).unwrap().1
    }

    pub fn port(&self, listener: &str) -> String {
        self.address(listener).port().to_string()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The value of a metric's line that begins so; 0 where there is none.
    pub async fn metric(&self, start: &str) -> u64 {
        let text = self.page("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(start));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a metric is at least that.
    pub async fn until_metric(&self, start: &str, least: u64) {
        let reached = async {
            while self.metric(start).await < least {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("`{start}` never reached {least}"));
    }

    /// For a server that a test puts in the simulator's place: it shows a certificate that the proxy trusts.
    pub fn acceptor(&self) -> TlsAcceptor {
        let certificate = CertificateDer::from_pem_file(self.file("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()))
    }

    /// A page of the admin listener, head and all.
    pub async fn page(&self, path: &str) -> String {
        let mut page = TcpStream::connect(self.app.admin_addresses()[0]).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        page.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        page.read_to_string(&mut text).await.unwrap();
        text
    }

    /// A raw connection to a listener.
    pub async fn wire(&self, listener: &str) -> Wire {
        Wire(BufReader::new(TcpStream::connect(self.address(listener)).await.unwrap()))
    }
}

fn configuration(office: &Simulator, ports: [u16; 3], oauth: &str, more: &str, sections: &str) -> String {
    let [imap, pop3, smtp] = ports;
    let authority = office.authority_url();
    let mut listeners = Vec::new();
    for (protocol, upstream, upstream_tls) in
        [("imap", imap, "implicit"), ("pop3", pop3, "implicit"), ("smtp", smtp, "starttls")]
    {
        for (suffix, tls) in [("", "off"), ("-starttls", "starttls"), ("-tls", "implicit")] {
            listeners.push(format!(
                "  - {{name: {protocol}{suffix}, protocol: {protocol}, listen: '127.0.0.1:0', tls: {tls}, \
                 upstream: 'localhost:{upstream}', upstream-tls: {upstream_tls}}}\n"
            ));
        }
    }
    for (name, protocol, upstream) in [
        ("imap-up-starttls", "imap", office.imap_starttls()),
        ("pop3-up-starttls", "pop3", office.pop3_starttls()),
    ] {
        listeners.push(format!(
            "  - {{name: {name}, protocol: {protocol}, listen: '127.0.0.1:0', \
             upstream: 'localhost:{}', upstream-tls: starttls}}\n",
            upstream.port()
        ));
    }
    let more = more
        .replace("{imap}", &format!("'localhost:{}'", office.imap().port()))
        .replace("{pop3}", &format!("'localhost:{}'", office.pop3().port()))
        .replace("{smtp}", &format!("'localhost:{}', upstream-tls: starttls", office.smtp().port()));
    listeners.push(more);
    let ews = office.ews().port();
    for (name, tls, activesync) in [("ews", "off", "false"), ("ews-tls", "implicit", "true")] {
        listeners.push(format!(
            "  - {{name: {name}, protocol: ews, listen: '127.0.0.1:0', tls: {tls}, activesync: {activesync}, \
             upstream: 'https://localhost:{ews}/'}}\n"
        ));
    }
    let listeners = listeners.concat();
    format!(
        "oauth: {{tenant-authority: '{authority}', directory-id: organizations, {oauth}}}\n\
         listeners:\n{listeners}\
         tls: {{certificate-file: server.pem, key-file: server.key, extra-roots-file: office-ca.pem}}\n\
         admin: {{listen: '127.0.0.1:0'}}\n{sections}"
    )
}

/// A self-signed certificate for the proxy's own listeners.
fn write_certificate(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    std::fs::write(folder.join("server.pem"), made.cert.pem()).unwrap();
    write_private(&folder.join("server.key"), &made.signing_key.serialize_pem());
}

pub fn write_private(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// What a client process said, and how it ended.
#[derive(Debug)]
pub struct Told {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Told {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// Runs a program to its end; a program that is not there is a failed test, never a skipped one.
pub async fn run<I: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = I>,
    input: &[u8],
) -> Told {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}` cannot be run ({error}): tests/run installs it"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let fed = tokio::spawn(async move {
        // a client that does not read all of it says so by its exit code
        drop(stdin.write_all(&input).await);
    });
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the client hangs").unwrap();
    fed.await.unwrap();
    Told {
        code: output.status.code(),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A raw connection, in clear or encrypted: lines out, lines in.
pub struct Wire<S = TcpStream>(pub BufReader<S>);

impl Wire {
    /// Does the TLS handshake on a connection that has been in clear so far. What came before is gone.
    ///
    /// # Errors
    /// The other side sends something else.
    pub async fn encrypt(self, folder: &Path) -> std::io::Result<Wire<TlsStream<TcpStream>>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("server.pem")).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, self.0.into_inner());
        let tls = timeout(PATIENCE, connecting).await.expect("the handshake hangs")?;
        Ok(Wire(BufReader::new(tls)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next line without its end; `None`: the proxy closed.
    pub async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match timeout(PATIENCE, self.0.read_until(b'\n', &mut line)).await.expect("the proxy is silent") {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    }

    /// Reads lines up to one that begins so; that line. Panics where the proxy closes before it.
    pub async fn until(&mut self, start: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.line().await {
                Some(line) if line.starts_with(start) => return line,
                Some(line) => seen.push(line),
                None => panic!("closed before `{start}`, after {seen:#?}"),
            }
        }
    }

    /// Says a line, and gives the first answer that begins so.
    pub async fn ask(&mut self, line: &str, start: &str) -> String {
        self.say(format!("{line}\r\n")).await;
        self.until(start).await
    }

    /// Reads to the end of the connection.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        lines
    }
}
