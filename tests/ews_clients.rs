//! EWS as its real clients use it, through the whole proxy: exchangelib, DavMail as the client of a client, curl.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use mailkey::secret::Secret;
use mailkey::simulator::{
    ALICE, BOB, CONFIDENTIAL_CLIENT_ID, CONFIDENTIAL_CLIENT_SECRET, DIRECTORY_ID, Event, EwsRequest,
    PUBLIC_CLIENT_ID, SUPPORT,
};
use mailkey::token::password;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::ports::free_port;
use crate::stage::{PATIENCE, Plan, Stage, Told, run};

/// The password that the mail client knows, where the identity provider does not see it.
const LOCAL: &str = "local: pass phrase";

const ENVELOPE: &str = "xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
    xmlns:m=\"http://schemas.microsoft.com/exchange/services/2006/messages\" \
    xmlns:t=\"http://schemas.microsoft.com/exchange/services/2006/types\"";

fn soap(body: &str) -> String {
    format!("<s:Envelope {ENVELOPE}><s:Body>{body}</s:Body></s:Envelope>")
}

const GET_INBOX: &str = "<m:GetFolder><m:FolderShape><t:BaseShape>Default</t:BaseShape></m:FolderShape>\
    <m:FolderIds><t:DistinguishedFolderId Id=\"inbox\"/></m:FolderIds></m:GetFolder>";

/// Two robots that sign in with a password of the proxy's own; the application has a token for the whole tenant.
fn robots() -> Plan {
    let hash = password::hash(&Secret::new(LOCAL)).unwrap();
    let robot = format!(
        "grant: client-credentials, directory-id: {DIRECTORY_ID}, client-id: {CONFIDENTIAL_CLIENT_ID}, client-secret: {CONFIDENTIAL_CLIENT_SECRET}, \
         password-hash: '{hash}'"
    );
    Plan {
        oauth: Some(format!("client-id: {PUBLIC_CLIENT_ID}")),
        sections: format!(
            "accounts:\n  - {{user: robot, mailbox: {SUPPORT}, ews-mailboxes: [{}], {robot}}}\n  - {{user: {}, {robot}}}\n",
            ALICE.0, BOB.0
        ),
        ..Plan::default()
    }
}

fn requests(stage: &Stage) -> Vec<EwsRequest> {
    let journal = stage.office.journal();
    let requests: Vec<EwsRequest> = journal
        .into_iter()
        .filter_map(|event| if let Event::Ews(it) = event { Some(it) } else { None })
        .collect();
    assert!(requests.iter().all(|request| !request.had_basic), "Basic went upstream");
    requests
}

async fn curl(arguments: &[&str], input: &[u8]) -> Told {
    let common = ["-k", "--silent", "--show-error", "--max-time", "50"];
    run("curl", common.iter().chain(arguments), input).await
}

async fn exchangelib(arguments: &[&str]) -> Told {
    let python = std::env::var("MAILKEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/ews_exchangelib.py");
    run(&python, std::iter::once(script).chain(arguments.iter().copied()), b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn exchangelib_users_at_once_read_back_their_own_large_attachments() {
    let stage = Stage::usual().await;
    let url = format!("https://localhost:{}/EWS/Exchange.asmx", stage.port("ews-tls"));
    let ca = stage.file("server.pem");
    let told = exchangelib(&[&url, "several", ca.to_str().unwrap(), ALICE.0, ALICE.1, BOB.0, BOB.1]).await;
    assert_eq!(told.text().trim(), format!("ok {} {}", ALICE.0, BOB.0), "{told:?}");
    assert!(!requests(&stage).is_empty());
    assert_eq!(stage.office.token_requests(), 2, "one token for each of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_in_exchangelib_costs_entra_one_question() {
    let stage = Stage::usual().await;
    let url = format!("https://localhost:{}/EWS/Exchange.asmx", stage.port("ews-tls"));
    let ca = stage.file("server.pem");
    for _ in 0..2 {
        let told = exchangelib(&[&url, ALICE.0, "not it", ca.to_str().unwrap()]).await;
        assert_eq!(told.code, Some(3), "{told:?}");
        assert!(told.text().starts_with("refused UnauthorizedError"), "{told:?}");
    }
    assert_eq!(stage.office.token_requests(), 1);
    assert!(requests(&stage).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn exchangelib_acts_on_the_allowed_mailboxes_with_the_applications_token_and_on_no_other() {
    let stage = Stage::planned(robots()).await;
    let url = format!("https://localhost:{}/EWS/Exchange.asmx", stage.port("ews-tls"));
    let ca = stage.file("server.pem");
    let ca = ca.to_str().unwrap();
    // it names no mailbox, and its own is put in
    let told = exchangelib(&[&url, BOB.0, LOCAL, ca]).await;
    assert!(told.text().starts_with("ok 1 messages"), "{told:?}");
    assert_eq!(stage.office.messages(BOB.0, "INBOX").len(), 1);
    // it names one that it may open
    for mailbox in [ALICE.0, SUPPORT] {
        let told = exchangelib(&[&url, "robot", LOCAL, ca, "impersonate", mailbox]).await;
        assert!(told.text().starts_with("ok 1 messages"), "{told:?}");
        assert_eq!(stage.office.messages(mailbox, "INBOX").len(), 1, "{mailbox}");
    }
    let before = requests(&stage);
    assert!(before.iter().all(|request| request.status == 200), "{before:?}");
    for wanted in [BOB.0, ALICE.0, SUPPORT] {
        assert!(before.iter().any(|request| request.anchor.as_deref() == Some(wanted)), "{wanted}");
    }
    // it names one that it may not
    for (user, mailbox) in [("robot", BOB.0), (BOB.0, ALICE.0)] {
        let told = exchangelib(&[&url, user, LOCAL, ca, "impersonate", mailbox]).await;
        assert_eq!(told.code, Some(3), "{told:?}");
        assert!(told.text().starts_with("refused ErrorImpersonateUserDenied"), "{told:?}");
    }
    assert_eq!(requests(&stage).len(), before.len(), "what is refused never goes upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_finds_its_way_with_anyauth_and_with_100_continue() {
    let stage = Stage::usual().await;
    let url = format!("http://localhost:{}/ews/exchange.asmx", stage.port("ews"));
    let user = format!("{}:{}", ALICE.0, ALICE.1);
    let small = soap(GET_INBOX);
    let mut large = small.clone();
    large.insert_str(large.find("<s:Body>").unwrap(), &format!("<!--{}-->", "x".repeat(3_000_000)));
    let code = ["-o", "/dev/null", "-w", "%{http_code} %{num_connects}"];
    for (auth, expect, body, connections) in [
        ("--basic", "Expect:", &small, "1"),
        ("--anyauth", "Expect:", &small, "1"),
        ("--basic", "Expect: 100-continue", &large, "1"),
        ("--anyauth", "Expect: 100-continue", &small, ""),
    ] {
        let arguments =
            [auth, "-u", &user, "-H", expect, "-H", "Content-Type: text/xml", "--data-binary", "@-"];
        let told = curl(&[&arguments[..], &code, &[&url]].concat(), body.as_bytes()).await;
        let wanted = format!("200 {connections}");
        assert!(told.text().starts_with(&wanted), "{auth} {expect}: {told:?}");
    }
    assert_eq!(requests(&stage).len(), 4, "what was only challenged never went upstream");
    let told = curl(&[&["--ntlm", "-u", &user, "-d", "<x/>"][..], &code, &[&url]].concat(), b"").await;
    assert!(told.text().starts_with("401"), "NTLM shows no password: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_notified_arrives_at_once_over_tls_on_both_sides() {
    let stage = Stage::usual().await;
    let url = format!("https://localhost:{}/EWS/Exchange.asmx", stage.port("ews-tls"));
    let user = format!("{}:{}", ALICE.0, ALICE.1);
    let subscribe = soap(
        "<m:Subscribe><m:StreamingSubscriptionRequest><t:FolderIds><t:DistinguishedFolderId Id=\"inbox\"/></t:FolderIds>\
         <t:EventTypes><t:EventType>NewMailEvent</t:EventType></t:EventTypes></m:StreamingSubscriptionRequest></m:Subscribe>",
    );
    let xml = ["-u", &user, "-H", "Content-Type: text/xml", "--data-binary", "@-"];
    let told = curl(&[&xml[..], &[&url]].concat(), subscribe.as_bytes()).await.text();
    let id =
        told.split("SubscriptionId>").nth(1).unwrap_or_else(|| panic!("{told}")).split('<').next().unwrap();
    let events = soap(&format!(
        "<m:GetStreamingEvents><m:SubscriptionIds><t:SubscriptionId>{id}</t:SubscriptionId></m:SubscriptionIds>\
         <m:ConnectionTimeout>30</m:ConnectionTimeout></m:GetStreamingEvents>"
    ));
    let deliver = async {
        sleep(Duration::from_secs(1)).await;
        stage.office.deliver(ALICE.0, "Subject: now\r\n\r\nnow\r\n");
    };
    let arguments = [&xml[..], &["--no-buffer", "--max-time", "4", &url]].concat();
    let (told, ()) = tokio::join!(curl(&arguments, events.as_bytes()), deliver);
    assert_eq!(told.code, Some(28), "the stream is open for 30 minutes; curl hangs up: {told:?}");
    assert!(told.text().contains("NewMailEvent"), "{told:?}");
    // it left; upstream's place is free at once, and the proxy has no request under way
    let sessions = format!("http://{}/metrics", stage.app.admin_addresses()[0]);
    let begun = Instant::now();
    loop {
        let metrics = curl(&[&sessions], b"").await.text();
        if metrics.lines().any(|line| line == "mailkey_sessions{listener=\"ews-tls\"} 0") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{metrics}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn activesync_has_its_own_token_and_autodiscover_and_the_wsdl_lead_back_here() {
    let plan = Plan { oauth: Some(format!("client-id: {PUBLIC_CLIENT_ID}")), ..Plan::default() };
    let stage = Stage::planned(plan).await;
    let base = format!("https://localhost:{}", stage.port("ews-tls"));
    let user = format!("{}:{}", ALICE.0, ALICE.1);
    let json = |protocol: &str| {
        format!("{base}/autodiscover/autodiscover.json?Email=x@contoso.com&Protocol={protocol}")
    };
    let told = curl(&[&json("ews")], b"").await.text();
    assert!(told.contains(&format!("\"Url\":\"{base}/EWS/Exchange.asmx\"")), "{told}");
    let told = curl(&[&json("ActiveSync")], b"").await.text();
    let eas = format!("{base}/Microsoft-Server-ActiveSync");
    assert!(told.contains(&eas), "{told}");
    assert_eq!(stage.office.token_requests(), 0);

    let question = format!(
        "<Autodiscover xmlns=\"http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006\"><Request>\
         <EMailAddress>{}</EMailAddress></Request></Autodiscover>",
        ALICE.0
    );
    let pox = format!("{base}/Autodiscover/Autodiscover.xml");
    let told = curl(&["-u", &user, "--data-binary", "@-", &pox], question.as_bytes()).await.text();
    assert!(told.contains(&format!("<EwsUrl>{base}/EWS/Exchange.asmx</EwsUrl>")), "{told}");
    let wsdl = format!("{base}/EWS/Services.wsdl");
    let told = curl(&["-u", &user, "--compressed", &wsdl], b"").await.text();
    assert!(told.contains(&format!("location=\"{base}/EWS/Exchange.asmx\"")), "{told}");
    assert_eq!(stage.office.token_requests(), 1);

    let told = curl(&["-i", "-u", &user, "-X", "OPTIONS", &eas], b"").await.text();
    assert!(told.to_lowercase().contains("ms-asprotocolversions: 14.1,16.0,16.1"), "{told}");
    let sync = format!("{eas}?Cmd=Sync&User=alice&DeviceId=1&DeviceType=SmartPhone");
    let wbxml = b"\x03\x01\x6a\x00\x45\x5c\x4f\x00\xff";
    let told = curl(&["-u", &user, "--data-binary", "@-", &sync], wbxml).await;
    assert_eq!(told.out, wbxml);
    let scopes: Vec<String> = stage
        .office
        .journal()
        .into_iter()
        .filter_map(|event| if let Event::Token(it) = event { Some(it.scope) } else { None })
        .collect();
    assert_eq!(scopes.len(), 2, "{scopes:?}");
    assert!(
        scopes[0].contains("/EWS.AccessAsUser.All") && scopes[1].contains("/EAS.AccessAsUser.All"),
        "{scopes:?}"
    );
}

/// DavMail, headless: a mail client of our EWS listener, and a mail server to curl.
struct DavMail {
    _process: Child,
    imap: SocketAddr,
    smtp: SocketAddr,
    log: std::path::PathBuf,
}

impl DavMail {
    async fn start(stage: &Stage) -> Self {
        let (imap, smtp) = (free(), free());
        let log = stage.file("davmail.log");
        let properties = format!(
            "davmail.server=true\ndavmail.mode=EWS\ndavmail.url=http://localhost:{}/EWS/Exchange.asmx\n\
             davmail.imapPort={}\ndavmail.smtpPort={}\ndavmail.popPort=\ndavmail.caldavPort=\ndavmail.ldapPort=\n\
             davmail.bindAddress=127.0.0.1\ndavmail.disableUpdateCheck=true\ndavmail.enableKerberos=false\n\
             davmail.logFilePath={}\nlog4j.rootLogger=WARN\nlog4j.logger.davmail=DEBUG\n",
            stage.port("ews"),
            imap.port(),
            smtp.port(),
            log.display()
        );
        let path = stage.file("davmail.properties");
        std::fs::write(&path, properties).unwrap();
        let process = Command::new("java")
            .args(["-Djava.awt.headless=true", "-jar", "/usr/share/davmail/davmail.jar", "-server"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("java cannot be run: tests/run installs it");
        let begun = Instant::now();
        while TcpStream::connect(imap).await.is_err() || TcpStream::connect(smtp).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "DavMail does not come up: tests/run installs it");
            sleep(Duration::from_millis(100)).await;
        }
        Self { _process: process, imap, smtp, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

#[tokio::test(flavor = "multi_thread")]
async fn davmail_reads_and_sends_as_an_ews_client() {
    let stage = Stage::usual().await;
    stage
        .office
        .deliver(ALICE.0, "From: bob@contoso.com\r\nTo: alice@contoso.com\r\nSubject: one\r\n\r\nfirst\r\n");
    let davmail = DavMail::start(&stage).await;
    let user = format!("{}:{}", ALICE.0, ALICE.1);
    let url = |index: u32| format!("imap://{}/INBOX;MAILINDEX={index}", davmail.imap);
    let told = curl(&["-u", &user, &url(1)], b"").await;
    assert!(told.text().contains("Subject: one"), "{told:?}\n{}", davmail.log());
    let smtp = format!("smtp://{}", davmail.smtp);
    let told = curl(
        &[
            "-u",
            &user,
            "--login-options",
            "AUTH=LOGIN",
            &smtp,
            "--mail-from",
            ALICE.0,
            "--mail-rcpt",
            ALICE.0,
            "-T",
            "-",
        ],
        b"From: alice@contoso.com\r\nTo: alice@contoso.com\r\nSubject: two\r\n\r\nsecond\r\n",
    )
    .await;
    assert_eq!(told.code, Some(0), "{told:?}\n{}", davmail.log());
    let told = curl(&["-u", &user, &url(2)], b"").await;
    assert!(told.text().contains("second"), "{told:?}\n{}", davmail.log());
    // DavMail asks for a challenge each time, and shows the password only to us
    assert!(requests(&stage).len() > 5);
    assert_eq!(stage.office.token_requests(), 1);
    let told = curl(&["-u", &format!("{}:not it", ALICE.0), &url(1)], b"").await;
    assert_eq!(told.code, Some(67), "{told:?}");
}

#[test]
fn every_example_of_the_page_is_a_configuration_that_passes() {
    let page = include_str!("../docs/ews.md");
    let blocks: Vec<&str> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 5, "{}", blocks.len());
    let folder = tempfile::tempdir().unwrap();
    let hash = password::hash(&Secret::new(LOCAL)).unwrap();
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, certificate.cert.pem()).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let oauth = format!("oauth: {{client-id: {PUBLIC_CLIENT_ID}}}\n");
    let listener = "listeners:\n  - name: ews\n    protocol: ews\n    listen: 127.0.0.1:1080\n";
    for block in blocks {
        let whole = match block.split_whitespace().next().unwrap() {
            "oauth:" => block.to_owned(),
            "listeners:" => format!("{oauth}{block}"),
            // accounts, or a key of the listener
            _ => format!("{oauth}{listener}{block}"),
        };
        let whole: String = whole
            .replace("$argon2id$…", &hash)
            .lines()
            .map(|line| match line.split_once("-file:") {
                Some((key, _)) => format!("{key}-file: {}\n", file.display()),
                None => format!("{line}\n"),
            })
            .collect();
        mailkey::config::parse(&whole, "ews.md", folder.path(), &|_| None)
            .unwrap_or_else(|problems| panic!("{problems}\nin\n{whole}"));
    }
}
