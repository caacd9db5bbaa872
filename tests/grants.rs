//! Every way to a token, through the whole proxy: the program itself, run as an administrator runs it, in front
//! of the simulator. `docs/grants.md` has the same ways as examples.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use mailkey::config::model::{ClientAuth, Upstream};
use mailkey::secret::Secret;
use mailkey::simulator::{
    ALICE, BOB, CONFIDENTIAL_CLIENT_ID, CONFIDENTIAL_CLIENT_SECRET, DIRECTORY_ID, Event, IdentityFault,
    PUBLIC_CLIENT_ID, SUPPORT, Settings, SignIn, Simulator, TokenRequest,
};
use mailkey::token::password;
use mailkey::token::store::file::FileStore;
use mailkey::token::store::key::StoreKey;
use mailkey::token::store::{Store as _, StoredSignIn};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::command_line::{MAILKEY, Running, dial};
use crate::stage::{PATIENCE, Told, run};

/// The password that the mail client knows, where the identity provider does not see it.
const LOCAL: &str = "local: pass phrase";

const APPLICATION_SCOPE: &str = "https://outlook.office365.com/.default";

/// A simulator, and a folder for the configurations of the program in front of it.
struct Scene {
    office: Simulator,
    folder: TempDir,
    hash: String,
}

/// A proxy that runs.
struct Proxy {
    running: Running,
    imap: SocketAddr,
    pop3: SocketAddr,
    smtp: SocketAddr,
}

impl Scene {
    async fn new() -> Self {
        Self::with(Settings { device_interval: 1, ..Settings::default() }).await
    }

    async fn with(settings: Settings) -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let office = Simulator::start(settings).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let scene = Self { office, folder, hash: password::hash(&Secret::new(LOCAL)).unwrap() };
        scene.file("office-ca.pem", scene.office.ca_pem());
        scene.file("client-secret", CONFIDENTIAL_CLIENT_SECRET);
        scene.file("token-key", &BASE64_STANDARD.encode([7; 32]));
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that nobody else may read.
    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        path
    }

    /// A configuration with these accounts (flow style, `HASH` stands for the hash of [`LOCAL`]) and sections.
    fn configuration(&self, name: &str, accounts: &[&str], sections: &str) -> PathBuf {
        let Self { office, hash, .. } = self;
        let accounts: Vec<String> = accounts
            .iter()
            .map(|account| format!("  - {{{}}}\n", account.replace("HASH", &format!("'{hash}'"))))
            .collect();
        let text = format!(
            "oauth: {{tenant-authority: '{}', directory-id: {DIRECTORY_ID}, client-id: {PUBLIC_CLIENT_ID}}}\n\
             accounts:\n{}accounts-only: true\n\
             listeners:\n  \
             - {{name: imap, protocol: imap, listen: '127.0.0.1:0', upstream: 'localhost:{}'}}\n  \
             - {{name: pop3, protocol: pop3, listen: '127.0.0.1:0', upstream: 'localhost:{}'}}\n  \
             - {{name: smtp, protocol: smtp, listen: '127.0.0.1:0', upstream: 'localhost:{}', upstream-tls: starttls}}\n\
             tls: {{extra-roots-file: office-ca.pem}}\nadmin: off\n{sections}",
            office.authority_url(),
            accounts.concat(),
            office.imap().port(),
            office.pop3().port(),
            office.smtp().port(),
        );
        self.file(name, &text)
    }

    /// The same with a store that outlives the process.
    fn with_store(&self, accounts: &[&str]) -> PathBuf {
        self.configuration("proxy.yaml", accounts, "tokens: {store: 'file:tokens', key-file: token-key}\n")
    }

    /// What the store holds of a user, read beside whoever uses it.
    async fn stored(&self, user: &str) -> Option<StoredSignIn> {
        let store = FileStore::visit(&self.path("tokens"), &StoreKey::parse(&[7; 32]).unwrap()).unwrap();
        let all = store.sign_ins().await.unwrap();
        all.into_iter().find(|(key, _)| key.user == user).map(|(_, sign_in)| sign_in)
    }

    fn token_requests(&self) -> Vec<TokenRequest> {
        let journal = self.office.journal();
        journal.into_iter().filter_map(|e| if let Event::Token(it) = e { Some(it) } else { None }).collect()
    }

    fn last_sign_in(&self) -> SignIn {
        let journal = self.office.journal();
        let mut all =
            journal.into_iter().filter_map(|e| if let Event::SignIn(it) = e { Some(it) } else { None });
        all.next_back().expect("nobody signed in upstream")
    }

    /// A human at another device approves the next code for somebody.
    async fn approve_next_code(&self, upn: &str) {
        let code = eventually("a device code waits", || self.office.pending_device_codes().pop()).await;
        assert!(self.office.approve_device(&code, upn));
    }
}

impl Proxy {
    async fn start(path: &Path) -> Self {
        Self::start_with(path, &[]).await
    }

    async fn start_with(path: &Path, environment: &[(&str, &str)]) -> Self {
        let mut running = Running::with(path, environment);
        let imap = running.address("imap").await;
        let pop3 = running.address("pop3").await;
        let smtp = running.address("smtp").await;
        Self { running, imap, pop3, smtp }
    }

    /// The answer to an IMAP login.
    async fn imap(&self, user: &str, password: &str) -> String {
        let mut wire = dial(self.imap).await;
        wire.until("* OK").await;
        wire.ask(&format!("a LOGIN \"{user}\" \"{password}\""), "a ").await
    }

    async fn pop3(&self, user: &str, password: &str) -> String {
        let mut wire = dial(self.pop3).await;
        wire.until("+OK").await;
        wire.ask(&format!("USER {user}"), "+OK").await;
        wire.ask(&format!("PASS {password}"), "").await
    }

    async fn smtp(&self, user: &str, password: &str) -> String {
        let mut wire = dial(self.smtp).await;
        wire.until("220 ").await;
        wire.ask("EHLO x", "250 ").await;
        let plain = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
        wire.ask(&format!("AUTH PLAIN {plain}"), "").await
    }

    /// The local password opens IMAP, POP3 and SMTP, and no other does.
    async fn serves(&self, user: &str) {
        assert!(self.imap(user, "not it").await.starts_with("a NO [AUTHENTICATIONFAILED]"));
        let told = self.imap(user, LOCAL).await;
        assert!(told.starts_with("a OK"), "{told}");
        let told = self.pop3(user, LOCAL).await;
        assert!(told.starts_with("+OK"), "{told}");
        let told = self.smtp(user, LOCAL).await;
        assert!(told.starts_with("235 "), "{told}");
        assert!(self.smtp(user, "not it").await.starts_with("535 5.7.8"));
    }

    /// Stops it; its log.
    async fn stop(self) -> String {
        self.running.signal("-TERM");
        let (code, log) = self.running.end().await;
        assert_eq!(code, Some(0), "{log}");
        log
    }

    /// Kills it, as a power cut would.
    async fn kill(self) {
        self.running.signal("-KILL");
        self.running.end().await;
    }
}

async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = look() {
            return found;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}

async fn mailkey(path: &Path, arguments: &[&str]) -> Told {
    let mut all = vec!["--config", path.to_str().unwrap()];
    all.extend(arguments);
    run(MAILKEY, all, b"").await
}

/// `mailkey login` under way: it waits for a person.
struct Login {
    child: Child,
    out: BufReader<tokio::process::ChildStdout>,
    said: String,
}

impl Login {
    fn start(path: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(MAILKEY)
            .args(["--config", path.to_str().unwrap(), "login"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out, said: String::new() }
    }

    /// The address that the person opens.
    async fn address(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.out.read_line(&mut line)).await.expect("no address is printed");
            assert!(read.unwrap() > 0, "it ended without an address:\n{}", self.said);
            self.said += &line;
            if line.starts_with("https://") {
                return line.trim_end().to_owned();
            }
        }
    }

    async fn paste(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn end(mut self) -> Told {
        let mut out = self.said.into_bytes();
        let rest = async {
            self.out.read_to_end(&mut out).await.unwrap();
            self.child.wait_with_output().await.unwrap()
        };
        let ended = timeout(PATIENCE, rest).await.expect("`mailkey login` does not end");
        Told { code: ended.status.code(), out, err: String::from_utf8_lossy(&ended.stderr).into_owned() }
    }
}

/// Opens an address as a browser would; what `-w` asks for.
async fn curl(scene: &Scene, arguments: &[&str]) -> String {
    let root = scene.path("office-ca.pem");
    let mut all = vec!["-sS", "--noproxy", "*", "--max-time", "30", "--cacert", root.to_str().unwrap()];
    all.extend(arguments);
    let told = run("curl", all, b"").await;
    assert_eq!(told.code, Some(0), "{arguments:?}: {told:?}");
    told.text()
}

/// The value of a query parameter.
fn parameter(address: &str, name: &str) -> String {
    let url: url::Url = address.parse().unwrap();
    let found = url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    found.unwrap_or_else(|| panic!("no `{name}` in {address}"))
}

// ── the application on its own ─────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread")]
async fn an_application_with_a_secret_opens_the_mailbox_for_each_local_password() {
    let scene = Scene::new().await;
    let second = password::hash(&Secret::new("the second")).unwrap();
    let account = |hashes: &str| {
        format!(
            "user: scanner, mailbox: {SUPPORT}, mailbox-smtp: {}, grant: client-credentials, \
             client-id: {CONFIDENTIAL_CLIENT_ID}, client-secret-file: client-secret, password-hash: {hashes}",
            ALICE.0
        )
    };
    let path = scene.configuration("proxy.yaml", &[&account(&format!("[HASH, '{second}']"))], "");
    let proxy = Proxy::start(&path).await;
    proxy.serves("scanner").await;
    assert!(proxy.imap("scanner", "the second").await.starts_with("a OK"));
    assert_eq!((scene.last_sign_in().user.as_str(), scene.last_sign_in().token_user), (SUPPORT, None));
    let asked = scene.token_requests();
    assert_eq!(asked.len(), 1, "one token serves all protocols and passwords");
    assert_eq!((asked[0].grant.as_str(), asked[0].client_proof), ("client_credentials", "secret"));
    assert_eq!(asked[0].scope, APPLICATION_SCOPE);
    assert!(proxy.imap(ALICE.0, LOCAL).await.starts_with("a NO"), "only accounts are served");
    let log = proxy.stop().await;
    for secret in [LOCAL, "the second", CONFIDENTIAL_CLIENT_SECRET] {
        assert!(!log.contains(secret), "{log}");
    }

    // each password goes on its own
    let path = scene.configuration("proxy.yaml", &[&account(&format!("'{second}'"))], "");
    let proxy = Proxy::start(&path).await;
    assert!(proxy.imap("scanner", LOCAL).await.starts_with("a NO [AUTHENTICATIONFAILED]"));
    assert!(proxy.imap("scanner", "the second").await.starts_with("a OK"));
    proxy.stop().await;

    // with none left, nothing starts
    let open = account("x").replace(", password-hash: x", "");
    let path = scene.configuration("proxy.yaml", &[&open], "");
    let told = mailkey(&path, &["run"]).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    let what =
        format!("the mailbox `{SUPPORT}` would be open, with any password, to whoever reaches a listener");
    assert!(told.err.contains(&what), "{}", told.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_with_a_certificate_signs_for_itself() {
    let scene = Scene::new().await;
    let made = std::process::Command::new("openssl")
        .args(
            "req -x509 -newkey rsa:2048 -nodes -keyout app.key -out app.pem -days 2 -subj /CN=mailkey"
                .split(' '),
        )
        .current_dir(scene.folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let certificate = std::fs::read_to_string(scene.path("app.pem")).unwrap();
    scene
        .office
        .tenant()
        .change_application(CONFIDENTIAL_CLIENT_ID, |app| app.certificates.push(certificate));
    let account = format!(
        "user: {}, grant: client-credentials, client-id: {CONFIDENTIAL_CLIENT_ID}, \
         client-certificate-file: app.pem, client-key-file: app.key, password-hash: HASH",
        ALICE.0
    );
    let file = scene.configuration("proxy.yaml", &[&account], "");
    let proxy = Proxy::start(&file).await;
    proxy.serves(ALICE.0).await;
    assert_eq!(scene.token_requests()[0].client_proof, "certificate");
    proxy.stop().await;

    // a provider that does not know the newer form of signatures is served by the older one
    scene.office.mischief().identity_times(1, IdentityFault::AadSts(700_027));
    let proxy = Proxy::start(&file).await;
    proxy.serves(ALICE.0).await;
    let codes: Vec<_> = scene.token_requests().iter().map(|request| request.code).collect();
    assert_eq!(codes, [None, Some(700_027), None]);
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federated_token_is_read_anew_for_each_request() {
    let scene = Scene::new().await;
    let assertion = |subject: &str| {
        let expires = jiff::Timestamp::now().as_second() + 600;
        let claims = format!(
            r#"{{"iss":"https://cluster","sub":"{subject}","aud":"api://AzureADTokenExchange","exp":{expires}}}"#
        );
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}\n", part(r#"{"alg":"RS256"}"#), part(&claims), part("signature"))
    };
    scene.office.tenant().change_application(CONFIDENTIAL_CLIENT_ID, |app| {
        app.federated.push(("https://cluster".to_owned(), "system:mail".to_owned()));
    });
    let account = |user: &str| {
        format!(
            "user: {user}, mailbox: {SUPPORT}, grant: client-credentials, client-id: {CONFIDENTIAL_CLIENT_ID}, \
             federated-token-file: federated, password-hash: HASH"
        )
    };
    scene.file("federated", &assertion("system:stranger"));
    // with a scope of its own, the second does not share the first one's token or refusal
    let two = account("two") + ", scope: 'https://outlook.office.com/.default'";
    let path = scene.configuration("proxy.yaml", &[&account("one"), &two], "");
    let mut proxy = Proxy::start(&path).await;
    let told = proxy.imap("one", LOCAL).await;
    assert!(told.starts_with("a NO [CONTACTADMIN]"), "{told}");
    proxy.running.until("AADSTS70021").await;
    scene.file("federated", &assertion("system:mail"));
    let told = proxy.imap("two", LOCAL).await;
    assert!(told.starts_with("a OK"), "{told}");
    assert_eq!(scene.token_requests().last().unwrap().client_proof, "federated");
    std::fs::remove_file(scene.path("federated")).unwrap();
    assert!(proxy.imap("two", LOCAL).await.starts_with("a OK"), "a token that is there needs no file");
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_gives_a_managed_identity() {
    let scene = Scene::new().await;
    // what the platform would get from Entra for its machine
    let url = format!("{}{DIRECTORY_ID}/oauth2/v2.0/token", scene.office.authority_url());
    let form = [
        "grant_type=client_credentials".to_owned(),
        format!("client_id={CONFIDENTIAL_CLIENT_ID}"),
        format!("client_secret={CONFIDENTIAL_CLIENT_SECRET}"),
        format!("scope={APPLICATION_SCOPE}"),
    ];
    let mut arguments: Vec<&str> = form.iter().flat_map(|field| ["--data-urlencode", field]).collect();
    arguments.push(&url);
    let answer: serde_json::Value = serde_json::from_str(&curl(&scene, &arguments).await).unwrap();
    let token = answer["access_token"].as_str().unwrap().to_owned();

    let platform = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/msi/token", platform.local_addr().unwrap());
    let (tell, mut asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = platform.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.unwrap());
            }
            tell.send(String::from_utf8(head).unwrap()).unwrap();
            let body = format!(
                r#"{{"access_token":"{token}","expires_on":"4102444800","resource":"x","token_type":"Bearer"}}"#
            );
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            io.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let account = format!(
        "user: {}, grant: managed-identity, client-id: 33333333-4444-5555-6666-777777777777, password-hash: HASH",
        ALICE.0
    );
    let path = scene.configuration("proxy.yaml", &[&account], "");
    let environment = [("IDENTITY_ENDPOINT", endpoint.as_str()), ("IDENTITY_HEADER", "s3cret header")];
    let proxy = Proxy::start_with(&path, &environment).await;
    proxy.serves(ALICE.0).await;
    let head = asked.recv().await.unwrap();
    for part in [
        "GET /msi/token?api-version=2019-08-01&resource=https%3A%2F%2Foutlook.office365.com%2F&client_id=33333333-",
        "x-identity-header: s3cret header\r\n",
    ] {
        assert!(head.contains(part), "{part} is not in {head}");
    }
    assert!(asked.try_recv().is_err(), "one token serves all protocols");
    let log = proxy.stop().await;
    assert!(!log.contains("s3cret") && !log.contains("eyJ"), "{log}");
}

// ── a person signs in ahead ────────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread")]
async fn a_device_code_sign_in_beside_the_running_proxy_serves_at_once_and_outlives_it() {
    let scene = Scene::new().await;
    let account = format!("user: {}, grant: device-code, password-hash: HASH", ALICE.0);
    let path = scene.with_store(&[&account]);
    let mut proxy = Proxy::start(&path).await;
    let told = proxy.imap(ALICE.0, LOCAL).await;
    assert!(told.starts_with("a NO [CONTACTADMIN]"), "{told}");
    proxy.running.until(&format!("mailkey login {}", ALICE.0)).await;

    // the name in another case is the same person
    let login = Login::start(&path, &["Alice@Contoso.com", "--qr"]);
    scene.approve_next_code(ALICE.0).await;
    let told = login.end().await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let text = told.text();
    for part in [
        "https://microsoft.com/devicelogin",
        "listeners imap, pop3, smtp",
        "█",
        "is signed in; the sign-in is kept in file:",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(told.err.is_empty(), "{}", told.err);
    let signed_in = scene.stored(ALICE.0).await.unwrap();
    assert!(!text.contains(signed_in.refresh_token.expose()));

    let told = proxy.imap(ALICE.0, LOCAL).await;
    assert!(told.starts_with("a OK"), "the proxy that runs does not see the sign-in: {told}");
    let rotated = scene.stored(ALICE.0).await.unwrap();
    assert_ne!(rotated.refresh_token, signed_in.refresh_token, "the new refresh token is stored");
    assert_eq!(rotated.signed_in_at, signed_in.signed_in_at);
    proxy.serves(ALICE.0).await;
    let asked = scene.token_requests();
    let scopes: Vec<&str> =
        asked.iter().filter(|it| it.grant == "refresh_token").map(|it| it.scope.as_str()).collect();
    assert_eq!(scopes.len(), 3, "one access token for each protocol: {scopes:?}");

    let listed = mailkey(&path, &["tokens"]).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    for part in [ALICE.0, "device-code", PUBLIC_CLIENT_ID, "in 89 days", "used by    imap, pop3, smtp"] {
        assert!(listed.text().contains(part), "{part} is not in\n{}", listed.text());
    }
    let json = mailkey(&path, &["tokens", "--json"]).await.text();
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((parsed[0]["user"].as_str(), parsed.as_array().unwrap().len()), (Some(ALICE.0), 1));
    let newest = scene.stored(ALICE.0).await.unwrap();
    for token in [&signed_in, &rotated, &newest] {
        let token = token.refresh_token.expose();
        assert!(!listed.text().contains(token) && !json.contains(token));
    }

    proxy.kill().await;
    let proxy = Proxy::start(&path).await;
    assert!(proxy.imap(ALICE.0, LOCAL).await.starts_with("a OK"), "the sign-in does not outlive the proxy");

    let out = mailkey(&path, &["logout", ALICE.0]).await;
    assert_eq!(out.code, Some(0), "{out:?}");
    assert_eq!(scene.stored(ALICE.0).await, None);
    let told = proxy.pop3(ALICE.0, LOCAL).await;
    assert!(told.starts_with("-ERR [SYS/PERM]"), "the proxy that runs still uses the sign-in: {told}");
    let again = mailkey(&path, &["logout", ALICE.0]).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(mailkey(&path, &["tokens"]).await.text().contains("nobody has signed in"));
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_signs_in_over_the_loopback_redirect() {
    let scene = Scene::new().await;
    let account = format!("user: {}, grant: authorization-code, password-hash: HASH", ALICE.0);
    let path = scene.with_store(&[&account]);
    scene.office.tenant().sign_in_browser(Some(ALICE.0));
    let mut login = Login::start(&path, &[ALICE.0, "--browser"]);
    let address = login.address().await;
    assert_eq!(parameter(&address, "login_hint"), ALICE.0);
    assert_eq!(parameter(&address, "code_challenge_method"), "S256");
    let back = parameter(&address, "redirect_uri");
    // somebody else on this machine
    let status =
        curl(&scene, &["-o", "/dev/null", "-w", "%{http_code}", &format!("{back}/?code=x&state=forged")])
            .await;
    assert_eq!(status, "400");
    let page = curl(&scene, &["-L", "-w", "\n%{http_code} %{num_redirects}", &address]).await;
    assert!(page.contains("Thank you") && page.ends_with("200 1"), "{page}");
    let told = login.end().await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let proxy = Proxy::start(&path).await;
    proxy.serves(ALICE.0).await;
    proxy.stop().await;
    let first = &scene.token_requests()[0];
    assert_eq!((first.grant.as_str(), first.user.as_deref()), ("authorization_code", Some(ALICE.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_elsewhere_signs_in_by_a_pasted_address() {
    let scene = Scene::new().await;
    let account = format!("user: {}, grant: authorization-code, password-hash: HASH", ALICE.0);
    let path = scene.with_store(&[&account]);
    scene.office.tenant().sign_in_browser(Some(ALICE.0));
    // without a display and a browser of its own, it is the default
    let mut login = Login::start(&path, &[ALICE.0, "--paste"]);
    let address = login.address().await;
    assert_eq!(parameter(&address, "redirect_uri"), "http://localhost");
    let ended_on = curl(&scene, &["-o", "/dev/null", "-w", "%{redirect_url}", &address]).await;
    assert!(ended_on.starts_with("http://localhost/?code="), "{ended_on}");
    login.paste("http://localhost/").await;
    login.paste(&ended_on).await;
    let told = login.end().await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.text().contains("that is no such address"), "{}", told.text());
    let proxy = Proxy::start(&path).await;
    assert!(proxy.imap(ALICE.0, LOCAL).await.starts_with("a OK"));
    proxy.stop().await;

    // the address of an earlier sign-in belongs to that one alone
    let mut login = Login::start(&path, &[ALICE.0, "--paste"]);
    login.address().await;
    login.paste(&ended_on).await;
    let told = login.end().await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.err.contains("SIGN-IN-STATE"), "{}", told.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_fails_says_why_and_keeps_nothing() {
    let scene = Scene::new().await;
    let account = format!("user: {}, grant: device-code, password-hash: HASH", ALICE.0);
    let path = scene.with_store(&[&account]);

    let login = Login::start(&path, &[ALICE.0]);
    let code = eventually("a device code waits", || scene.office.pending_device_codes().pop()).await;
    assert!(scene.office.decline_device(&code));
    let told = login.end().await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.err.contains("SIGN-IN-DECLINED"), "{}", told.err);

    // what the browser brings back
    let mut login = Login::start(&path, &[ALICE.0, "--browser"]);
    let address = login.address().await;
    let (back, state) = (parameter(&address, "redirect_uri"), parameter(&address, "state"));
    let no = format!(
        "{back}/?error=consent_required&error_description=AADSTS65001%3A%20No%20consent.&state={state}"
    );
    assert!(curl(&scene, &[&no]).await.contains("Not signed in"));
    let told = login.end().await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.err.contains("AADSTS65001") && told.err.contains("consent"), "{}", told.err);

    // what the token endpoint says
    scene.office.tenant().sign_in_browser(Some(ALICE.0));
    let mut login = Login::start(&path, &[ALICE.0, "--browser"]);
    let address = login.address().await;
    scene.office.mischief().identity_times(1, IdentityFault::AadSts(53003));
    curl(&scene, &["-L", &address]).await;
    let told = login.end().await;
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.err.contains("AADSTS53003") && told.err.contains("Conditional Access"), "{}", told.err);
    assert_eq!(scene.stored(ALICE.0).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_accounts_sign_in_one_after_the_other_and_another_person_is_warned_about() {
    let scene = Scene::new().await;
    let path = scene.with_store(&[
        &format!("user: {}, grant: device-code, password-hash: HASH", ALICE.0),
        &format!(
            "user: desk, mailbox: {SUPPORT}, mailbox-smtp: {}, grant: [device-code], password-hash: HASH",
            ALICE.0
        ),
        &format!("user: {}", BOB.0),
        "user: '*@contoso.com', grant: device-code, password-hash: HASH",
    ]);
    let login = Login::start(&path, &["--all"]);
    scene.approve_next_code(ALICE.0).await;
    eventually("the first sign-in is done", || scene.office.pending_device_codes().is_empty().then_some(()))
        .await;
    scene.approve_next_code(BOB.0).await;
    let told = login.end().await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.text().contains("2 of 2 sign-ins done"), "{}", told.text());
    let warning = format!("`{}` has signed in, and the account says `{}`", BOB.0, ALICE.0);
    assert!(told.err.contains(&warning), "{}", told.err);
    assert!(scene.stored(ALICE.0).await.is_some() && scene.stored("desk").await.is_some());
}

#[tokio::test]
async fn without_a_store_that_keeps_it_nobody_signs_in() {
    let scene = Scene::new().await;
    let account = format!("user: {}, grant: device-code, password-hash: HASH", ALICE.0);
    let path = scene.configuration("proxy.yaml", &[&account, &format!("user: {}", BOB.0)], "");
    for command in [&["login", ALICE.0][..], &["tokens"], &["logout", ALICE.0]] {
        let told = mailkey(&path, command).await;
        assert_eq!(told.code, Some(2), "{told:?}");
        for part in ["`tokens.store` is `memory`", "store: file:", "key-file", "openssl rand"] {
            assert!(told.err.contains(part), "{command:?}: {}", told.err);
        }
    }
    let told = mailkey(&path, &["login", BOB.0]).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.err.contains("its grant is `password`"), "{}", told.err);
    assert_eq!(mailkey(&path, &["login"]).await.code, Some(2));
    assert_eq!(mailkey(&path, &["login", ALICE.0, "--device", "--paste"]).await.code, Some(2));
    let checked = mailkey(&path, &["check"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.text().contains("nothing would be kept of `mailkey login`"), "{}", checked.text());
}

// ── passwords that the identity provider sees ──────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_cannot_be_used_gives_way_to_the_next_and_is_logged() {
    let scene = Scene::new().await;
    let hash = password::hash(&Secret::new(ALICE.1)).unwrap();
    let account = format!(
        "user: {}, grant: [client-credentials, password], client-id: {CONFIDENTIAL_CLIENT_ID}, \
         client-secret-file: client-secret, password-hash: '{hash}'",
        ALICE.0
    );
    let proxy = Proxy::start(&scene.configuration("proxy.yaml", &[&account], "")).await;
    scene.office.mischief().identity_times(1, IdentityFault::AadSts(7_000_215));
    let told = proxy.imap(ALICE.0, ALICE.1).await;
    assert!(told.starts_with("a OK"), "{told}");
    let grants: Vec<String> = scene.token_requests().into_iter().map(|asked| asked.grant).collect();
    assert_eq!(grants, ["client_credentials", "password"]);
    let log = proxy.stop().await;
    let line = log.lines().find(|line| line.contains("grant cannot be used")).expect("nothing is logged");
    assert!(line.contains("client-credentials") && line.contains("AADSTS7000215"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_endpoint_is_asked_for_a_resource() {
    let scene = Scene::new().await;
    let account = format!("user: {}, resource: 'https://outlook.office365.com'", ALICE.0);
    let proxy = Proxy::start(&scene.configuration("proxy.yaml", &[&account], "")).await;
    let told = proxy.imap(ALICE.0, ALICE.1).await;
    assert!(told.starts_with("a OK"), "{told}");
    assert_eq!(scene.token_requests()[0].scope, "https://outlook.office365.com");
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_provider_gets_its_own_urls_and_oauthbearer() {
    let scene = Scene::new().await;
    let (upstream, root, mut heard) = oauthbearer_upstream().await;
    let roots = format!("{}{root}", scene.office.ca_pem());
    scene.file("roots.pem", &roots);
    let text = format!(
        "oauth:\n  provider: custom\n  token-url: {}contoso.com/oauth2/v2.0/token\n  client-id: {PUBLIC_CLIENT_ID}\n  \
         scope: https://outlook.office.com/.default\n  grant: password\n  sasl: oauthbearer\n\
         listeners: [{{name: imap, protocol: imap, listen: '127.0.0.1:0', upstream: 'localhost:{}'}}]\n\
         tls: {{extra-roots-file: roots.pem}}\nadmin: off\n",
        scene.office.authority_url(),
        upstream.port()
    );
    let mut running = Running::with(&scene.file("custom.yaml", &text), &[]);
    let imap = running.address("imap").await;
    let mut wire = dial(imap).await;
    wire.until("* OK").await;
    let told = wire.ask(&format!("a LOGIN {} \"{}\"", ALICE.0, ALICE.1), "a ").await;
    assert!(told.starts_with("a OK"), "{told}");
    let response = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
    let start =
        format!("n,a={},\u{1}host=localhost\u{1}port={}\u{1}auth=Bearer eyJ", ALICE.0, upstream.port());
    assert!(response.starts_with(&start) && response.ends_with("\u{1}\u{1}"), "{response}");
    running.signal("-TERM");
    running.end().await;
}

/// An IMAP server of somebody else, that knows OAUTHBEARER alone: its address, its root, and the responses.
async fn oauthbearer_upstream() -> (SocketAddr, String, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                let Ok(io) = acceptor.accept(io).await else { return };
                let mut io = BufReader::new(io);
                io.write_all(b"* OK ready\r\n").await.unwrap();
                let mut line = String::new();
                while io.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                    let said = std::mem::take(&mut line);
                    let mut words = said.trim_end().splitn(3, ' ');
                    let (tag, command) = (words.next().unwrap(), words.next().unwrap_or_default());
                    let rest = words.next().unwrap_or_default();
                    let answer = match (command, rest.strip_prefix("OAUTHBEARER ")) {
                        ("AUTHENTICATE", Some(response)) => {
                            let response = BASE64_STANDARD.decode(response).unwrap();
                            tell.send(String::from_utf8(response).unwrap()).unwrap();
                            format!("{tag} OK\r\n")
                        }
                        ("CAPABILITY", _) => {
                            format!("* CAPABILITY IMAP4rev1 SASL-IR AUTH=OAUTHBEARER\r\n{tag} OK\r\n")
                        }
                        ("LOGOUT", _) => format!("* BYE\r\n{tag} OK\r\n"),
                        _ => format!("{tag} BAD\r\n"),
                    };
                    io.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (address, made.cert.pem(), heard)
}

// ── what is written about it ───────────────────────────────────────────────────────────────────────────

#[test]
fn every_example_of_the_page_is_a_whole_configuration_and_no_grant_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let page = include_str!("../docs/grants.md");
    let mut grants = std::collections::BTreeSet::new();
    for block in page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        let text: String = block
            .lines()
            .map(|line| match line.split_once("-file:") {
                Some((key, _)) => format!("{key}-file: {}\n", secret.display()),
                None => format!("{line}\n"),
            })
            .collect();
        let loaded = mailkey::config::parse(&text, "docs/grants.md", folder.path(), &|_| None)
            .unwrap_or_else(|problems| panic!("{problems}\nin\n{text}"));
        assert!(loaded.remarks.is_empty(), "{:?} in\n{text}", loaded.remarks);
        for account in loaded.config.listeners.iter().flat_map(|listener| &listener.accounts) {
            grants.extend(account.application.grants.iter().map(|grant| grant.as_str()));
            grants.insert(match account.application.client_auth {
                ClientAuth::Secret(_) => "a secret",
                ClientAuth::Certificate { .. } => "a certificate",
                ClientAuth::FederatedTokenFile(_) => "a federated token",
                ClientAuth::Public => "no proof",
            });
        }
    }
    let all = [
        "a certificate",
        "a federated token",
        "a secret",
        "authorization-code",
        "client-credentials",
        "device-code",
        "managed-identity",
        "no proof",
        "password",
    ];
    assert_eq!(grants.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn each_cloud_leads_every_protocol_to_its_own_hosts() {
    for (cloud, login, hosts) in [
        (
            "us-gov-gcc-high",
            "https://login.microsoftonline.us/contoso.com",
            [
                "outlook.office365.us:993",
                "outlook.office365.us:995",
                "outlook.office365.us:587",
                "outlook.office365.us",
            ],
        ),
        (
            "us-gov-dod",
            "https://login.microsoftonline.us/contoso.com",
            [
                "outlook-dod.office365.us:993",
                "outlook-dod.office365.us:995",
                "outlook-dod.office365.us:587",
                "outlook-dod.office365.us",
            ],
        ),
        (
            "china",
            "https://login.partner.microsoftonline.cn/contoso.com",
            [
                "partner.outlook.cn:993",
                "partner.outlook.cn:995",
                "smtp.partner.outlook.cn:587",
                "partner.outlook.cn",
            ],
        ),
    ] {
        let text = format!(
            "oauth: {{cloud: {cloud}, client-id: {PUBLIC_CLIENT_ID}, directory-id: contoso.com}}\n\
             listeners:\n\
             - {{name: a, protocol: imap, listen: '127.0.0.1:1143'}}\n\
             - {{name: b, protocol: pop3, listen: '127.0.0.1:1110'}}\n\
             - {{name: c, protocol: smtp, listen: '127.0.0.1:1587'}}\n\
             - {{name: d, protocol: ews, listen: '127.0.0.1:1080'}}\n"
        );
        let config = mailkey::config::parse(&text, "x", Path::new(""), &|_| None).unwrap().config;
        for (listener, host) in config.listeners.iter().zip(hosts) {
            let upstream = match &listener.upstream {
                Upstream::Mail(server) => format!("{}:{}", server.host, server.port),
                Upstream::Http(url) => url.host_str().unwrap().to_owned(),
            };
            assert_eq!(upstream, host, "{cloud}");
            assert_eq!(listener.accounts[0].application.endpoints.authority, login, "{cloud}");
        }
    }
}
