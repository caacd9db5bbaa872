//! `mailkey doctor` against the simulator: with every kind of mischief the right step fails, names its cure, and what
//! comes behind it is not reached.

use mailkey::simulator::{
    ALICE, BOB, CONFIDENTIAL_CLIENT_ID, CONFIDENTIAL_CLIENT_SECRET, CertificateFault, Condition, EwsFault,
    ExpiresIn, IdentityFault, MailFault, PUBLIC_CLIENT_ID, Service, Settings, Step, User,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::stage::{Plan, Stage, Told, run, write_private};

const MAILKEY: &str = env!("CARGO_BIN_EXE_mailkey");

/// A simulator with the doctor in front of it; no proxy runs.
struct Practice {
    stage: Stage,
    notes: TempDir,
}

/// What the doctor said, as JSON.
struct Diagnosis {
    code: Option<i32>,
    document: Value,
    all: String,
}

impl Practice {
    async fn usual() -> Self {
        Self::planned(Plan::default()).await
    }

    async fn planned(plan: Plan) -> Self {
        Self { stage: Stage::planned(plan).await, notes: tempfile::tempdir().unwrap() }
    }

    /// A listener for each protocol; what replaces keys of `oauth`, and whole sections.
    fn configure(&self, oauth: &str, sections: &str) -> String {
        let office = &self.stage.office;
        let listeners = [
            format!(
                "{{name: imap, protocol: imap, listen: '127.0.0.1:0', upstream: 'localhost:{}', upstream-tls: implicit}}",
                office.imap().port()
            ),
            format!(
                "{{name: pop3, protocol: pop3, listen: '127.0.0.1:0', upstream: 'localhost:{}', upstream-tls: implicit}}",
                office.pop3().port()
            ),
            format!(
                "{{name: smtp, protocol: smtp, listen: '127.0.0.1:0', upstream: 'localhost:{}', upstream-tls: starttls}}",
                office.smtp().port()
            ),
            format!(
                "{{name: ews, protocol: ews, listen: '127.0.0.1:0', upstream: 'https://localhost:{}/'}}",
                office.ews().port()
            ),
        ];
        let listeners = listeners.map(|line| format!("  - {line}\n")).concat();
        let roots = self.stage.file("office-ca.pem");
        let text = format!(
            "oauth: {{{oauth}}}\nlisteners:\n{listeners}tls: {{extra-roots-file: '{}'}}\noutbound-proxy: off\n{sections}",
            roots.display()
        );
        self.write("proxy.yaml", &text)
    }

    fn usual_oauth(&self) -> String {
        let authority = self.stage.office.authority_url();
        format!("tenant-authority: '{authority}', directory-id: contoso.com, client-id: {PUBLIC_CLIENT_ID}")
    }

    fn one_scope(&self) -> String {
        format!("{}, scope: 'https://outlook.office.com/.default'", self.usual_oauth())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.notes.path().join(name);
        write_private(&path, text);
        path.display().to_string()
    }

    async fn examine(&self, oauth: &str, arguments: &[&str], password: &str) -> Diagnosis {
        let path = self.configure(oauth, "");
        diagnose(&path, arguments, password).await
    }

    /// Alice, over everything, with one scope.
    async fn alice(&self) -> Diagnosis {
        self.examine(&self.one_scope(), &["--user", ALICE.0], ALICE.1).await
    }
}

async fn doctor(path: &str, arguments: &[&str], password: &str) -> Told {
    let mut all = vec!["doctor", "--config", path];
    all.extend(arguments);
    let told = run(MAILKEY, all, format!("{password}\n").as_bytes()).await;
    for secret in [ALICE.1, BOB.1, "eyJ", "Bearer ey"] {
        assert!(!told.text().contains(secret) && !told.err.contains(secret), "`{secret}` is shown: {told:?}");
    }
    told
}

async fn diagnose(path: &str, arguments: &[&str], password: &str) -> Diagnosis {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let told = doctor(path, &all, password).await;
    let document = serde_json::from_slice(&told.out).unwrap_or_else(|error| panic!("{error}: {told:?}"));
    Diagnosis { code: told.code, all: told.text(), document }
}

impl Diagnosis {
    /// The step of the first branch whose title begins so.
    fn step(&self, branch: &str, step: &str) -> &Value {
        let branches = self.document["branches"].as_array().unwrap();
        let found = branches.iter().find(|one| one["title"].as_str().unwrap().starts_with(branch));
        let found = found.unwrap_or_else(|| panic!("no branch `{branch}` in {}", self.all));
        let steps = found["steps"].as_array().unwrap();
        steps
            .iter()
            .find(|one| one["step"] == step)
            .unwrap_or_else(|| panic!("no step `{step}` in {found:#}"))
    }

    fn result(&self, branch: &str, step: &str) -> &str {
        self.step(branch, step)["result"].as_str().unwrap()
    }

    /// This step failed with this code, and its remedy speaks of `cure`; the steps behind it were not reached.
    fn fails(&self, branch: &str, step: &str, code: &str, cure: &str) {
        let found = self.step(branch, step);
        assert_eq!(found["result"], "failed", "{branch} {step}: {}", self.all);
        assert_eq!(found["code"], code, "{branch} {step}: {found:#}");
        assert!(found["remedy"].as_str().unwrap().contains(cure), "no `{cure}` in {found:#}");
        let branches = self.document["branches"].as_array().unwrap();
        let whole = branches.iter().find(|one| one["title"].as_str().unwrap().starts_with(branch)).unwrap();
        let behind = whole["steps"].as_array().unwrap().iter().skip_while(|one| one["step"] != step).skip(1);
        for later in behind {
            assert_eq!(later["result"], "not-reached", "behind {step}: {later:#}");
        }
        assert_eq!(self.code, Some(1), "{}", self.all);
        assert_eq!(self.document["well"], false);
    }

    fn is_well(&self) {
        assert_eq!(self.code, Some(0), "{}", self.all);
        assert_eq!(self.document["well"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_down_to_the_open_mailbox_with_one_token_request() {
    let practice = Practice::usual().await;
    practice.stage.office.deliver(ALICE.0, "Subject: one\r\n\r\n1\r\n");
    let told = practice.alice().await;
    told.is_well();
    for branch in ["imap", "pop3", "smtp", "ews"] {
        assert_eq!(told.result(branch, "sign-in"), "well", "{}", told.all);
        assert_eq!(told.result(branch, "mailbox"), "well", "{}", told.all);
        assert!(told.step(branch, "TLS")["details"][0].as_str().unwrap().contains("SHA-256"), "{}", told.all);
    }
    assert_eq!(told.step("imap", "mailbox")["what"], "it opens; 1 message");
    assert_eq!(told.step("pop3", "mailbox")["what"], "it opens; 1 message");
    let token = told.step("identity", "token").to_string();
    for claim in ["https://outlook.office.com", "IMAP.AccessAsUser.All", ALICE.0, "octets", "until"] {
        assert!(token.contains(claim), "{claim} is missing in {token}");
    }
    assert_eq!(practice.stage.office.token_requests(), 1, "one application, one scope, one request");
    // nothing was sent, nothing was taken
    assert_eq!(practice.stage.office.messages(ALICE.0, "INBOX").len(), 1);
    assert_eq!(practice.stage.office.messages(ALICE.0, "Sent Items").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_user_no_secret_is_needed_and_none_is_sent() {
    let practice = Practice::usual().await;
    let told = practice.examine(&practice.one_scope(), &[], "").await;
    told.is_well();
    assert_eq!(told.result("identity", "directory"), "well");
    assert_eq!(told.result("smtp", "service"), "well");
    assert!(told.document["notes"][0].as_str().unwrap().contains("--user"), "{}", told.all);
    assert_eq!(practice.stage.office.token_requests(), 0);
    let only = practice.examine(&practice.one_scope(), &["--listener", "pop3"], "").await;
    assert_eq!(only.document["branches"].as_array().unwrap().len(), 2, "{}", only.all);
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_marks_and_a_verdict_and_old_terminals_read_ascii() {
    let practice = Practice::usual().await;
    practice.stage.office.mischief().mail(Service::Pop3, MailFault::RefuseConnect);
    let path = practice.configure(&practice.one_scope(), "");
    for (locale, well, failed) in
        [("LC_ALL=C.UTF-8", "✓ name", "✗ connection"), ("LC_ALL=C", "ok   name", "FAIL connection")]
    {
        let told = run("env", [locale, MAILKEY, "doctor", "--config", &path], b"").await;
        let text = told.text();
        assert_eq!(told.code, Some(1), "{told:?}");
        assert!(text.contains(well) && text.contains(failed), "{text}");
        assert_eq!(text.is_ascii(), locale == "LC_ALL=C", "{text}");
        let last = text.trim_end().lines().last().unwrap();
        assert!(
            last.contains("steps failed")
                && last.contains("the network")
                && last.contains("UPSTREAM-UNREACHABLE"),
            "{last}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_command_or_the_file_is_exit_code_2() {
    let practice = Practice::usual().await;
    let broken = practice.write("broken.yaml", "oauth: {client-id: x}\n");
    assert_eq!(doctor(&broken, &[], "").await.code, Some(2));
    let path = practice.configure(&practice.one_scope(), "");
    let told = doctor(&path, &["--listener", "imapp"], "").await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.err.contains("imap, pop3, smtp, ews"), "{}", told.err);
    let told = doctor(&path, &["--user", ALICE.0], "").await;
    assert_eq!(told.code, Some(2), "an empty password is none: {told:?}");
    let told = doctor(&path, &["--user", ALICE.0, "--password", "x"], "").await;
    assert_eq!(told.code, Some(2), "a password is never an argument: {told:?}");
    let file = practice.write("password", &format!("{}\nsecond line\n", ALICE.1));
    let told = doctor(&path, &["--user", ALICE.0, "--password-file", &file, "--listener", "imap"], "").await;
    assert_eq!(told.code, Some(0), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_ends_its_own_way_only() {
    let practice = Practice::usual().await;
    let path = practice.configure(&practice.one_scope(), "");
    let text = std::fs::read_to_string(&path).unwrap();
    let port = practice.stage.office.imap().port();
    std::fs::write(&path, text.replace(&format!("localhost:{port}"), &format!("imap.invalid:{port}")))
        .unwrap();
    let told = diagnose(&path, &["--user", ALICE.0], ALICE.1).await;
    told.fails("imap", "name", "UPSTREAM-NAME", "DNS");
    for branch in ["pop3", "smtp", "ews"] {
        assert_eq!(told.result(branch, "mailbox"), "well", "{}", told.all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_ports_and_bad_certificates_are_told_apart() {
    let practice = Practice::usual().await;
    let mischief = practice.stage.office.mischief();
    mischief.mail(Service::Pop3, MailFault::RefuseConnect);
    mischief.certificate(Service::Imap, CertificateFault::UnknownIssuer);
    mischief.certificate(Service::Smtp, CertificateFault::Expired);
    mischief.certificate(Service::Ews, CertificateFault::WrongName);
    let told = practice.alice().await;
    told.fails("pop3", "connection", "UPSTREAM-UNREACHABLE", "firewall");
    told.fails("imap", "TLS", "TLS-UNKNOWN-ISSUER", "extra-roots-file");
    let chain = told.step("imap", "TLS")["details"].to_string();
    assert!(chain.contains("Nobody's root"), "whose root is to be added stands there: {chain}");
    told.fails("smtp", "TLS", "TLS-EXPIRED", "clock");
    assert!(told.step("smtp", "TLS")["details"].to_string().contains("2021-01-01"), "{}", told.all);
    told.fails("ews", "TLS", "TLS-WRONG-NAME", "name");
    assert_eq!(told.result("identity", "token"), "well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_speak_its_protocol_is_found_before_any_token_goes_there() {
    let practice = Practice::usual().await;
    let mischief = practice.stage.office.mischief();
    mischief.mail(Service::Smtp, MailFault::NoStartTls);
    mischief.mail(Service::Imap, MailFault::RefuseGreeting);
    let told = practice.alice().await;
    told.fails("smtp", "TLS", "UPSTREAM-NO-STARTTLS", "STARTTLS");
    assert_eq!(told.result("imap", "service"), "failed", "{}", told.all);
    assert_eq!(told.result("imap", "sign-in"), "not-reached", "{}", told.all);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_provider_in_trouble_leaves_the_upstreams_examined() {
    for (fault, step, code, cure) in [
        (IdentityFault::Down, "connection", "UPSTREAM-UNREACHABLE", "firewall"),
        (
            IdentityFault::Throttled { retry_after: Some("60".to_owned()) },
            "token",
            "IDENTITY-THROTTLED",
            "wait",
        ),
        (IdentityFault::Html, "token", "IDENTITY-ANSWER", "tenant-authority"),
        (IdentityFault::AadSts(700_016), "token", "AADSTS700016", "client-id"),
    ] {
        let practice = Practice::usual().await;
        practice.stage.office.mischief().identity(fault.clone());
        let told = practice.alice().await;
        told.fails("identity", step, code, cure);
        for branch in ["imap", "pop3", "smtp"] {
            assert_eq!(told.result(branch, "service"), "well", "{fault:?}: {}", told.all);
            assert_eq!(told.result(branch, "sign-in"), "not-reached", "{fault:?}: {}", told.all);
        }
    }
}

/// What goes wrong, at once and alone, everywhere.
#[derive(Clone, Debug)]
enum Wrong {
    Identity(IdentityFault),
    Mail(MailFault),
    Ews(EwsFault),
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "most of it is the list of what can go wrong")]
async fn with_every_other_kind_of_mischief_a_step_fails_with_a_code_and_a_cure() {
    let seconds = std::time::Duration::from_secs;
    let identity = [
        IdentityFault::Hang,
        IdentityFault::Reset,
        IdentityFault::Status(500),
        IdentityFault::Status(404),
        IdentityFault::Malformed,
        IdentityFault::Empty,
        IdentityFault::WrongType,
        IdentityFault::Redirect("https://login.example/".to_owned()),
        IdentityFault::BadToken,
    ];
    let mail = [
        MailFault::HangGreeting,
        MailFault::HalfGreeting,
        MailFault::CloseAt(Step::Greeting),
        MailFault::CloseAt(Step::Capability),
        MailFault::ResetAt(Step::Login),
        MailFault::HangAt(Step::Login),
        MailFault::CloseAt(Step::AfterLogin),
        MailFault::Throttle,
        MailFault::ConcurrencyLimit(0),
        MailFault::ErrorChallenge,
        MailFault::EmptyChallenge,
        MailFault::RefuseToken,
    ];
    let ews = [
        EwsFault::RefuseConnect,
        EwsFault::Unauthorized,
        EwsFault::Throttled(30),
        EwsFault::Unavailable(30),
        EwsFault::Locked,
        EwsFault::Redirect("https://elsewhere.example/".to_owned()),
        EwsFault::ServerBusy,
        EwsFault::Hang,
        EwsFault::CloseMidBody,
    ];
    let all = identity.into_iter().map(Wrong::Identity);
    let all = all.chain(mail.into_iter().map(Wrong::Mail)).chain(ews.into_iter().map(Wrong::Ews));
    let mut examined = tokio::task::JoinSet::new();
    // not all at once: a machine that is busy would look like a network that swallows packets
    let turns = std::sync::Arc::new(tokio::sync::Semaphore::new(6));
    for wrong in all {
        let turns = std::sync::Arc::clone(&turns);
        examined.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let practice = Practice::usual().await;
            let mischief = practice.stage.office.mischief();
            let branches = match &wrong {
                Wrong::Identity(fault) => {
                    mischief.identity(fault.clone());
                    vec!["identity", "imap", "pop3", "smtp", "ews"]
                }
                Wrong::Mail(fault) => {
                    for service in [Service::Imap, Service::Pop3, Service::Smtp] {
                        mischief.mail(service, fault.clone());
                        // how a refusal is worded
                        if matches!(fault, MailFault::ErrorChallenge | MailFault::EmptyChallenge) {
                            mischief.mail(service, MailFault::RefuseToken);
                        }
                    }
                    vec!["imap", "pop3", "smtp"]
                }
                Wrong::Ews(fault) => {
                    mischief.ews(fault.clone());
                    vec!["ews"]
                }
            };
            let path = practice
                .configure(&practice.one_scope(), "limits: {connect-timeout: 6s, login-timeout: 8s}\n");
            // what hangs is not waited for longer than the test needs
            let patience = if format!("{wrong:?}").contains("Hang") { "15" } else { "60" };
            let told = diagnose(&path, &["--timeout", patience, "--user", ALICE.0], ALICE.1).await;
            assert_eq!(told.code, Some(1), "{wrong:?}: {}", told.document["verdict"]);
            let mut failed = 0;
            for one in told.document["branches"].as_array().unwrap() {
                for step in one["steps"].as_array().unwrap().iter().filter(|step| step["result"] == "failed")
                {
                    let title = one["title"].as_str().unwrap();
                    assert!(branches.iter().any(|branch| title.starts_with(branch)), "{wrong:?}: {step:#}");
                    for field in ["code", "remedy", "what", "fault"] {
                        assert!(
                            step[field].as_str().is_some_and(|text| !text.is_empty()),
                            "{wrong:?}: {step:#}"
                        );
                    }
                    assert_ne!(step["fault"], "mailkey", "{wrong:?}: {step:#}");
                    failed += 1;
                }
            }
            assert!(failed > 0, "{wrong:?}: {}", told.document["verdict"]);
        });
    }
    assert_eq!(examined.join_all().await.len(), 30);
    for harmless in [
        Wrong::Identity(IdentityFault::Slow(seconds(1))),
        Wrong::Identity(IdentityFault::ExpiresIn(ExpiresIn::Text("3599".to_owned()))),
        Wrong::Mail(MailFault::SlowGreeting(seconds(1))),
        Wrong::Mail(MailFault::Trickle),
        Wrong::Ews(EwsFault::SlowBody(seconds(1))),
    ] {
        let practice = Practice::usual().await;
        let mischief = practice.stage.office.mischief();
        match &harmless {
            Wrong::Identity(fault) => mischief.identity(fault.clone()),
            Wrong::Mail(fault) => mischief.mail(Service::Imap, fault.clone()),
            Wrong::Ews(fault) => mischief.ews(fault.clone()),
        }
        practice.alice().await.is_well();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_directory_and_an_unknown_application_name_their_keys() {
    let practice = Practice::usual().await;
    let oauth = practice.one_scope();
    let told =
        practice.examine(&oauth.replace("contoso.com", "fabrikam.com"), &["--user", ALICE.0], ALICE.1).await;
    told.fails("identity", "directory", "AADSTS90002", "directory-id");
    let other = "99999999-2222-3333-4444-555555555555";
    let told = practice.examine(&oauth.replace(PUBLIC_CLIENT_ID, other), &["--user", ALICE.0], ALICE.1).await;
    told.fails("identity", "token", "AADSTS700016", "client-id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_sent_once_however_many_tokens_are_wanted() {
    let practice = Practice::usual().await;
    // without a configured scope, each of the four protocols wants a token of its own
    let told = practice.examine(&practice.usual_oauth(), &["--user", ALICE.0], "not it").await;
    told.fails("identity", "token imap", "AADSTS50126", "password");
    let left_out = told.step("identity", "token pop3");
    assert_eq!(left_out["result"], "not-reached");
    assert!(left_out["what"].as_str().unwrap().contains("lock"), "{left_out:#}");
    assert_eq!(practice.stage.office.token_requests(), 1);
    assert!(told.document["verdict"].as_str().unwrap().contains("user name or password"), "{}", told.all);
    let told = practice.examine(&practice.usual_oauth(), &["--user", ALICE.0], ALICE.1).await;
    told.is_well();
    assert_eq!(practice.stage.office.token_requests(), 1 + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_tenant_forbids_is_told_with_its_cure() {
    let settings = Settings {
        users: vec![
            User::new("mfa@contoso.com", ALICE.1).with(Condition::MfaRequired),
            User::new("policy@contoso.com", ALICE.1).with(Condition::BlockedByPolicy),
        ],
        ..Settings::default()
    };
    let practice = Practice::planned(Plan { settings, ..Plan::default() }).await;
    let oauth = practice.one_scope();
    let told = practice.examine(&oauth, &["--user", "mfa@contoso.com"], ALICE.1).await;
    told.fails("identity", "token", "AADSTS50076", "multi-factor");
    let told = practice.examine(&oauth, &["--user", "policy@contoso.com"], ALICE.1).await;
    told.fails("identity", "token", "AADSTS53003", "Conditional Access");
    practice.stage.office.mischief().identity(IdentityFault::AadSts(65_001));
    let told = practice.examine(&oauth, &["--user", "policy@contoso.com"], ALICE.1).await;
    told.fails("identity", "token", "AADSTS65001", "consent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_with_protocols_switched_off_names_the_switch() {
    let user = User::new(ALICE.0, ALICE.1)
        .with(Condition::SmtpAuthDisabled)
        .with(Condition::ImapDisabled)
        .with(Condition::PopDisabled);
    let settings = Settings { users: vec![user], ..Settings::default() };
    let practice = Practice::planned(Plan { settings, ..Plan::default() }).await;
    practice.stage.office.mischief().ews(EwsFault::Forbidden);
    let told = practice.alice().await;
    told.fails("smtp", "sign-in", "SMTP-535-5.7.139-MAILBOX", "Set-CASMailbox");
    told.fails("ews", "mailbox", "EWS-403", "EwsAllowedAppIDs");
    for branch in ["imap", "pop3"] {
        let failed = ["sign-in", "mailbox"].iter().any(|step| told.result(branch, step) == "failed");
        assert!(failed, "{}", told.all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_taken_for_a_mailbox_that_does_not_open_fails_at_the_mailbox() {
    let practice = Practice::usual().await;
    practice.stage.office.mischief().mail(Service::Imap, MailFault::AuthenticatedButNotConnected);
    let told = practice.alice().await;
    assert_eq!(told.result("imap", "sign-in"), "well", "{}", told.all);
    told.fails("imap", "mailbox", "IMAP-NOT-CONNECTED", "Add-MailboxPermission");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_too_large_for_pop3_is_warned_of_and_breaks_pop3_alone() {
    let settings = Settings { token_size: Some(5000), pop3_token_limit: Some(4096), ..Settings::default() };
    let practice = Practice::planned(Plan { settings, ..Plan::default() }).await;
    let told = practice.alice().await;
    let token = told.step("identity", "token");
    assert_eq!(token["result"], "warning", "{token:#}");
    assert!(token["warnings"].to_string().contains("4096"), "{token:#}");
    told.fails("pop3", "sign-in", "POP3-PROTOCOL-ERROR", "scope");
    assert_eq!(told.result("imap", "mailbox"), "well", "{}", told.all);
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_that_is_switched_off_for_the_whole_tenant_is_told_as_such() {
    let practice = Practice::usual().await;
    practice.stage.office.tenant().disable_smtp_auth(true);
    let told = practice.alice().await;
    told.fails("smtp", "sign-in", "SMTP-535-5.7.139-TENANT", "Set-TransportConfig");
}

/// An outbound proxy for one test: it tunnels where the sign-in is there, and asks for one where it is not.
async fn outbound_proxy() -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = door.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = door.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && io.read_buf(&mut head).await.unwrap_or(0) > 0 {}
                let head = String::from_utf8_lossy(&head).to_lowercase();
                if !head.contains("proxy-authorization: basic") {
                    let no = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                    return drop(io.write_all(no).await);
                }
                let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let Ok(mut back) = tokio::net::TcpStream::connect(target).await else { return };
                if io.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok() {
                    drop(tokio::io::copy_bidirectional(&mut io, &mut back).await);
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbound_proxy_is_a_step_of_its_own_on_every_way() {
    let practice = Practice::usual().await;
    let proxy = outbound_proxy().await;
    let path = practice.configure(&practice.one_scope(), "");
    let text = std::fs::read_to_string(&path).unwrap();
    let section = |sign_in: &str| {
        format!("outbound-proxy: {{url: 'http://{proxy}', use-for: [identity, ews, mail]{sign_in}}}")
    };
    std::fs::write(&path, text.replace("outbound-proxy: off", &section(""))).unwrap();
    let told = diagnose(&path, &["--user", ALICE.0], ALICE.1).await;
    for branch in ["identity", "imap", "pop3", "smtp", "ews"] {
        assert_eq!(told.result(branch, "connection"), "well", "{}", told.all);
        told.fails(branch, "proxy", "PROXY-SIGN-IN", "username");
    }
    let signed_in = section(", username: svc, password: open sesame");
    std::fs::write(&path, text.replace("outbound-proxy: off", &signed_in)).unwrap();
    let told = diagnose(&path, &["--user", ALICE.0], ALICE.1).await;
    told.is_well();
    assert_eq!(told.result("imap", "proxy"), "well", "{}", told.all);
    assert!(!told.all.contains("open sesame"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_own_token_opens_the_mailboxes_that_it_may_and_needs_no_password() {
    let practice = Practice::usual().await;
    let authority = practice.stage.office.authority_url();
    let secret = practice.write("secret", CONFIDENTIAL_CLIENT_SECRET);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let hash = run(MAILKEY, ["hash-password"], b"local\n").await.text();
    let oauth = format!(
        "tenant-authority: '{authority}', directory-id: contoso.com, client-id: {CONFIDENTIAL_CLIENT_ID}, \
         grant: client-credentials, client-secret-file: '{secret}'"
    );
    let accounts = format!(
        "accounts-only: true\naccounts:\n  - {{user: {}, password-hash: '{hash}'}}\n  - {{user: {}, password-hash: '{hash}'}}\n",
        ALICE.0,
        BOB.0,
        hash = hash.trim()
    );
    let path = practice.configure(&oauth, &accounts);
    let told = diagnose(&path, &["--user", ALICE.0], "local").await;
    told.is_well();
    assert!(told.step("identity", "token").to_string().contains("full_access_as_app"), "{}", told.all);
    assert_eq!(practice.stage.office.token_requests(), 1);
    let told = diagnose(&path, &["--user", ALICE.0], "not local").await;
    told.fails("identity", "token", "PASSWORD-WRONG", "password-hash");
    let told = diagnose(&path, &["--user", BOB.0], "local").await;
    assert_eq!(told.result("identity", "token"), "well", "{}", told.all);
    // sending and EWS are the whole tenant's with these permissions; IMAP and POP3 want a right to the mailbox
    for branch in ["imap", "pop3"] {
        let failed = ["sign-in", "mailbox"].iter().any(|step| told.result(branch, step) == "failed");
        assert!(failed, "{branch}: {}", told.all);
    }
    let told = diagnose(&path, &["--user", "nobody@contoso.com"], "").await;
    told.fails("imap", "sign-in", "USER-NOT-SERVED", "accounts");
}
