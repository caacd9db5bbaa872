//! The simulator, judged from outside: by curl, which knows XOAUTH2 and nothing of us.

use std::{path::PathBuf, process::Output};

use mailkey::simulator::{
    ALICE, BOB, CONFIDENTIAL_CLIENT_ID, CONFIDENTIAL_CLIENT_SECRET, DIRECTORY_ID, Event, PUBLIC_CLIENT_ID,
    SUPPORT, Service, Settings, Simulator,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

const MESSAGE: &str = "From: alice@contoso.com\r\nTo: bob@contoso.com\r\nSubject: Hello\r\n\r\n.\r\n.dots\r\nGr\u{fc}\u{df}e\r\n";

struct Bench {
    simulator: Simulator,
    directory: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let simulator = Simulator::start(Settings::default()).await.unwrap();
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("ca.pem"), simulator.ca_pem()).unwrap();
        Self { simulator, directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn curl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", "--cacert"]).arg(self.file("ca.pem"));
        command.args(arguments).kill_on_drop(true);
        command.output().await.expect("curl must be installed")
    }

    async fn ask(&self, tenant: &str, fields: &[(&str, &str)]) -> Value {
        let url = format!("{}{tenant}/oauth2/v2.0/token", self.simulator.authority_url());
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut arguments = vec![url.as_str()];
        for field in &fields {
            arguments.extend(["--data-urlencode", field]);
        }
        let output = self.curl(&arguments).await;
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    async fn token(&self, user: (&str, &str), scope: &str) -> String {
        let answer = self
            .ask(
                "organizations",
                &[
                    ("grant_type", "password"),
                    ("client_id", PUBLIC_CLIENT_ID),
                    ("scope", scope),
                    ("username", user.0),
                    ("password", user.1),
                ],
            )
            .await;
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    async fn default_token(&self, user: (&str, &str)) -> String {
        self.token(user, "https://outlook.office.com/.default").await
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn curl_sends_by_smtp_and_reads_by_imap_and_pop3_and_ews() {
    let bench = Bench::start().await;
    std::fs::write(bench.file("message"), MESSAGE).unwrap();
    let message = bench.file("message");
    let (alice, bob) = (bench.default_token(ALICE).await, bench.default_token(BOB).await);

    let smtp = format!("smtp://localhost:{}", bench.simulator.smtp().port());
    let sent = bench
        .curl(&[
            &smtp,
            "--ssl-reqd",
            "--user",
            ALICE.0,
            "--oauth2-bearer",
            &alice,
            "--mail-from",
            ALICE.0,
            "--mail-rcpt",
            BOB.0,
            "--upload-file",
            message.to_str().unwrap(),
        ])
        .await;
    assert!(sent.status.success(), "{sent:?}");

    let imaps = format!("imaps://localhost:{}/INBOX;MAILINDEX=1", bench.simulator.imap().port());
    let read = bench.curl(&[&imaps, "--user", BOB.0, "--oauth2-bearer", &bob]).await;
    assert_eq!(text(&read), MESSAGE, "{read:?}");

    let pop3s = format!("pop3s://localhost:{}/1", bench.simulator.pop3().port());
    let read = bench.curl(&[&pop3s, "--user", BOB.0, "--oauth2-bearer", &bob]).await;
    assert_eq!(text(&read), MESSAGE, "{read:?}");

    assert_eq!(bench.simulator.messages(ALICE.0, "Sent Items"), [MESSAGE.as_bytes()]);
    let submitted = bench.simulator.journal().into_iter().find_map(|event| match event {
        Event::Submitted(submission) => Some(submission),
        Event::Token(_) | Event::SignIn(_) | Event::Ews(_) | Event::Connected(_) => None,
    });
    let submitted = submitted.unwrap();
    assert_eq!((submitted.service, submitted.size), (Service::Smtp, MESSAGE.len()));
}

#[tokio::test]
async fn a_wrong_password_gets_microsofts_error() {
    let bench = Bench::start().await;
    let fields = |password| {
        [
            ("grant_type", "password"),
            ("client_id", PUBLIC_CLIENT_ID),
            ("scope", "https://outlook.office.com/.default"),
            ("username", ALICE.0),
            ("password", password),
        ]
    };
    let answer = bench.ask("organizations", &fields("wrong")).await;
    assert_eq!(answer["error"], "invalid_grant");
    assert_eq!(answer["error_codes"][0], 50126);
    let answer = bench.ask("common", &fields(ALICE.1)).await;
    assert_eq!(answer["error_codes"][0], 9_001_023);
    let answer = bench.ask("nowhere.example", &fields(ALICE.1)).await;
    assert_eq!(answer["error_codes"][0], 90002);
    assert_eq!(bench.simulator.token_requests(), 3);
}

#[tokio::test]
async fn an_application_opens_the_mailboxes_it_was_given() {
    let bench = Bench::start().await;
    bench.simulator.deliver(SUPPORT, MESSAGE);
    let answer = bench
        .ask(
            DIRECTORY_ID,
            &[
                ("grant_type", "client_credentials"),
                ("client_id", CONFIDENTIAL_CLIENT_ID),
                ("client_secret", CONFIDENTIAL_CLIENT_SECRET),
                ("scope", "https://outlook.office365.com/.default"),
            ],
        )
        .await;
    let token = answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert!(answer.get("refresh_token").is_none());
    let imaps = format!("imaps://localhost:{}/INBOX;MAILINDEX=1", bench.simulator.imap().port());
    let read = bench.curl(&[&imaps, "--user", SUPPORT, "--oauth2-bearer", token]).await;
    assert_eq!(text(&read), MESSAGE, "{read:?}");
    let read = bench.curl(&[&imaps, "--user", BOB.0, "--oauth2-bearer", token]).await;
    assert!(!read.status.success(), "{read:?}");
}

#[tokio::test]
async fn a_password_never_opens_a_mailbox() {
    let bench = Bench::start().await;
    let user = format!("{}:{}", ALICE.0, ALICE.1);
    for url in [
        format!("imaps://localhost:{}/INBOX", bench.simulator.imap().port()),
        format!("pop3s://localhost:{}/", bench.simulator.pop3().port()),
    ] {
        let refused = bench.curl(&[&url, "--user", &user]).await;
        assert_eq!(refused.status.code(), Some(67), "{refused:?}");
    }
}

#[tokio::test]
async fn a_token_for_graph_is_refused_by_mail() {
    let bench = Bench::start().await;
    let token = bench.token(ALICE, "IMAP.AccessAsUser.All offline_access").await;
    let imaps = format!("imaps://localhost:{}/INBOX", bench.simulator.imap().port());
    let refused = bench.curl(&[&imaps, "--user", ALICE.0, "--oauth2-bearer", &token]).await;
    assert_eq!(refused.status.code(), Some(67), "{refused:?}");
}

const SOAP: &str = r#"<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" xmlns:m="http://schemas.microsoft.com/exchange/services/2006/messages" xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types">HEADER<s:Body>BODY</s:Body></s:Envelope>"#;
const FIND: &str = r#"<m:FindItem Traversal="Shallow"><m:ItemShape><t:BaseShape>IdOnly</t:BaseShape></m:ItemShape><m:ParentFolderIds><t:DistinguishedFolderId Id="inbox"/></m:ParentFolderIds></m:FindItem>"#;

impl Bench {
    async fn ews(&self, token: &str, header: &str, body: &str) -> String {
        let (url, soap) = (self.simulator.ews_url(), SOAP.replace("HEADER", header).replace("BODY", body));
        std::fs::write(self.file("soap"), soap).unwrap();
        let data = format!("@{}", self.file("soap").display());
        let output = self
            .curl(&[
                &url,
                "--include",
                "--oauth2-bearer",
                token,
                "-H",
                "Content-Type: text/xml",
                "--data-binary",
                &data,
            ])
            .await;
        text(&output)
    }
}

#[tokio::test]
async fn a_large_message_comes_back_whole_over_ews() {
    let bench = Bench::start().await;
    let large = [MESSAGE.as_bytes(), &vec![b'x'; 3_000_001]].concat();
    bench.simulator.deliver(ALICE.0, large.clone());
    let token = bench.default_token(ALICE).await;
    let found = bench.ews(&token, "", FIND).await;
    assert!(found.starts_with("HTTP/1.1 200"), "{found}");
    assert!(found.contains("<t:Subject>Hello</t:Subject>"), "{found}");
    let id = found.split("<t:ItemId Id=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let get = format!(
        r#"<m:GetItem><m:ItemShape><t:BaseShape>IdOnly</t:BaseShape><t:IncludeMimeContent>true</t:IncludeMimeContent></m:ItemShape><m:ItemIds><t:ItemId Id="{id}"/></m:ItemIds></m:GetItem>"#
    );
    let got = bench.ews(&token, "", &get).await;
    let encoded =
        got.split("<t:MimeContent CharacterSet=\"UTF-8\">").nth(1).and_then(|rest| rest.split('<').next());
    let decoded = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded.unwrap()).unwrap();
    assert!(decoded == large, "{} octets", decoded.len());
}

#[tokio::test]
async fn ews_wants_impersonation_of_applications_and_of_them_only() {
    let bench = Bench::start().await;
    let answer = bench
        .ask(
            DIRECTORY_ID,
            &[
                ("grant_type", "client_credentials"),
                ("client_id", CONFIDENTIAL_CLIENT_ID),
                ("client_secret", CONFIDENTIAL_CLIENT_SECRET),
                ("scope", "https://outlook.office365.com/.default"),
            ],
        )
        .await;
    let app = answer["access_token"].as_str().unwrap();
    let header = format!(
        "<s:Header><t:ExchangeImpersonation><t:ConnectingSID><t:PrimarySmtpAddress>{}</t:PrimarySmtpAddress></t:ConnectingSID></t:ExchangeImpersonation></s:Header>",
        BOB.0
    );
    let refused = bench.ews(app, "", FIND).await;
    assert!(refused.starts_with("HTTP/1.1 500"), "{refused}");
    assert!(refused.contains("ErrorInvalidExchangeImpersonationHeaderData"), "{refused}");
    assert!(bench.ews(app, &header, FIND).await.starts_with("HTTP/1.1 200"));
    let user = bench.default_token(ALICE).await;
    assert!(bench.ews(&user, &header, FIND).await.starts_with("HTTP/1.1 500"));
}

#[tokio::test]
async fn ews_takes_no_password_and_says_so_in_the_journal() {
    let bench = Bench::start().await;
    let user = format!("{}:{}", ALICE.0, ALICE.1);
    let url = bench.simulator.ews_url();
    let refused = bench.curl(&[&url, "--include", "--user", &user, "--data", "x"]).await;
    let refused = text(&refused);
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    assert!(refused.to_lowercase().contains("www-authenticate: bearer"), "{refused}");
    let had_basic =
        bench.simulator.journal().iter().any(|event| matches!(event, Event::Ews(ews) if ews.had_basic));
    assert!(had_basic);
}
