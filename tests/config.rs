//! Configuration files: what each mistake reads like, what the shipped sample holds, and what becomes of it.
//!
//! `tests/config/<name>.yaml` is read, and `<name>.problems` is what is said about it, to the letter. After a
//! change of wording, `MAILKEY_BLESS=1` writes the answers anew; read the difference before you keep it.

use std::path::{Path, PathBuf};

use mailkey::config::model::{Config, FrontTls, Grant, HostRule, Protocol, Purpose, Store, Upstream};
use mailkey::config::problem::Problems;
use mailkey::config::{self, Loaded};
use proptest::prelude::*;

const CLIENT_ID: &str = "11111111-2222-3333-4444-555555555555";
const TENANT: &str = "66666666-7777-8888-9999-000000000000";
const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
const SAMPLE: &str = include_str!("../proxy.yaml");
const EXAMPLE: &str = include_str!("config/example.yaml");

/// Every secret in the golden files is one of these, and none of them may ever be printed.
const SECRETS: [&str; 3] = ["hunter2", "correct horse", "battery"];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

/// A directory with the files that configurations name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("certs")).unwrap();
    std::fs::create_dir_all(folder.path().join("secrets")).unwrap();
    for name in [
        "certs/app.pem",
        "certs/app.key",
        "certs/server.pem",
        "certs/server.key",
        "certs/client.pem",
        "certs/client.key",
        "certs/corporate-ca.pem",
        "secrets/client-secret",
        "secrets/outbound-proxy",
        "secrets/azure-identity-token",
        "secrets/token-store-key",
        "secrets/redis",
        "secrets/open-to-all",
        "secrets/empty",
    ] {
        let content = if name.ends_with("empty") { "\n" } else { "hunter2\n" };
        std::fs::write(folder.path().join(name), content).unwrap();
        set_mode(&folder.path().join(name), if name.ends_with("open-to-all") { 0o644 } else { 0o600 });
    }
    folder
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(not(unix))]
fn set_mode(_path: &Path, _mode: u32) {}

fn no_env(_: &str) -> Option<String> {
    None
}

fn read_in(folder: &Path, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    config::parse(text, "proxy.yaml", folder, env)
}

fn read(text: &str) -> Result<Loaded, Problems> {
    read_in(folder().path(), text, &no_env)
}

fn must(text: &str) -> Config {
    read(text).unwrap_or_else(|problems| panic!("{problems}")).config
}

fn whats(problems: &Problems) -> Vec<&str> {
    problems.list.iter().map(|problem| problem.what.as_str()).collect()
}

/// The smallest file, with more of `oauth` and more at the top.
fn small(oauth: &str, top: &str) -> String {
    format!(
        "oauth: {{client-id: {CLIENT_ID}{oauth}}}\nlisteners:\n  - {{name: imap, protocol: imap, listen: \
         '127.0.0.1:1143'}}\n{top}"
    )
}

#[cfg(unix)]
#[test]
fn every_mistake_reads_as_written_down() {
    let folder = folder();
    let bless = std::env::var_os("MAILKEY_BLESS").is_some();
    let mut seen = 0;
    for entry in std::fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        let answers = path.with_extension("problems");
        if path.extension().is_none_or(|end| end != "yaml") || path.ends_with("example.yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let said = match config::parse(&text, name, folder.path(), &no_env) {
            Err(problems) => format!("{problems}\n"),
            Ok(loaded) => {
                let mut said = String::new();
                for remark in &loaded.remarks {
                    said += &remark.in_file(name).to_string();
                    said.push('\n');
                }
                said + "no problem\n"
            }
        };
        let said = said.replace(folder.path().to_str().unwrap(), "<folder>");
        for secret in SECRETS {
            assert!(!said.contains(secret), "{name} shows a secret:\n{said}");
        }
        if bless {
            std::fs::write(&answers, &said).unwrap();
        }
        let expected = std::fs::read_to_string(&answers).unwrap_or_default();
        assert_eq!(said, expected, "{name}");
        seen += 1;
    }
    assert!(seen >= 10, "the golden files are not where they are looked for");
}

/// The sample with the client ID put in, and files where it looks for them.
fn sample(folder: &Path) -> String {
    SAMPLE
        .replace("client-id: 00000000-0000-0000-0000-000000000000", &format!("client-id: {CLIENT_ID}"))
        .replace("/run/secrets/", &format!("{}/secrets/", folder.display()))
}

#[test]
fn the_shipped_sample_lacks_the_client_id_alone() {
    let problems = read(SAMPLE).unwrap_err();
    assert_eq!(whats(&problems), ["`client-id` is not set yet"]);
    assert!(problems.list[0].remedy.contains("App registrations > your application > Overview"));
}

#[test]
fn the_shipped_sample_says_what_counts_without_it() {
    let folder = folder();
    let said = read_in(folder.path(), &sample(folder.path()), &no_env).unwrap().config;
    let plain = must(&format!(
        "oauth: {{client-id: {CLIENT_ID}, scope: 'https://outlook.office.com/.default'}}\nlisteners:\n\
         - {{name: imap, protocol: imap, listen: '127.0.0.1:1143'}}\n\
         - {{name: pop3, protocol: pop3, listen: '127.0.0.1:1110'}}\n\
         - {{name: smtp, protocol: smtp, listen: '127.0.0.1:1587'}}\n\
         - {{name: ews, protocol: ews, listen: '127.0.0.1:1080'}}\n"
    ));
    assert_eq!(format!("{said:#?}"), format!("{plain:#?}"), "the sample's values are the defaults");
}

/// The blocks of `#:` lines, each as the range of its lines.
fn commented_blocks(text: &str) -> Vec<std::ops::Range<usize>> {
    let marked: Vec<bool> = text.lines().map(|line| line.trim_start().starts_with("#:")).collect();
    let mut blocks: Vec<std::ops::Range<usize>> = Vec::new();
    for (number, _) in marked.iter().enumerate().filter(|(_, marked)| **marked) {
        match blocks.last_mut() {
            Some(block) if block.end == number => block.end += 1,
            _ => blocks.push(number..number + 1),
        }
    }
    blocks
}

fn uncommented(text: &str, blocks: &[std::ops::Range<usize>]) -> String {
    text.lines()
        .enumerate()
        .map(|(number, line)| {
            let chosen = blocks.iter().any(|block| block.contains(&number));
            if chosen { line.replacen("#: ", "", 1) + "\n" } else { format!("{line}\n") }
        })
        .collect()
}

#[test]
fn every_commented_example_of_the_sample_holds() {
    let folder = folder();
    let text = sample(folder.path());
    let blocks = commented_blocks(&text);
    assert!(blocks.len() >= 11, "{blocks:?}");
    // A listener with TLS needs the certificate, which is an example itself.
    let certificate =
        blocks.iter().find(|block| text.lines().nth(block.start).unwrap().contains("certs/server"));
    let accounts = blocks.iter().find(|block| text.lines().nth(block.start).unwrap().contains("#: accounts"));
    for block in &blocks {
        let mut chosen = vec![block.clone()];
        let lines: Vec<&str> = text.lines().skip(block.start).take(block.len()).collect();
        if lines.iter().any(|line| line.contains("tls: implicit")) {
            chosen.push(certificate.unwrap().clone());
        }
        if lines.iter().any(|line| line.contains("fixed-account")) {
            chosen.push(accounts.unwrap().clone());
        }
        let before = uncommented(&text, &[]);
        let after = uncommented(&text, &chosen);
        assert_ne!(before, after);
        let loaded = read_in(folder.path(), &after, &no_env);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{}\n{problems}", lines.join("\n")));
        let plain = read_in(folder.path(), &before, &no_env).unwrap();
        assert_ne!(
            format!("{:?}", loaded.config),
            format!("{:?}", plain.config),
            "it has an effect: {}",
            lines.join("\n")
        );
    }
}

#[test]
fn every_key_that_is_known_stands_in_the_sample() {
    let told = |section: &str| {
        let text = small("", &format!("{section}: {{no-such-key-anywhere: 1}}\n"));
        let problems = read(&text).unwrap_err().list;
        problems.into_iter().find(|problem| problem.what.starts_with("unknown key")).unwrap().remedy
    };
    for section in ["outbound-proxy", "tls", "tokens", "guard", "limits", "admin", "log"] {
        let remedy = told(section);
        let known = remedy.strip_prefix("known here: ").unwrap_or_else(|| panic!("{section}: {remedy}"));
        for key in known.split(", ").map(|key| key.trim_matches('`')) {
            let base = key.trim_end_matches("-file");
            assert!(
                SAMPLE.contains(&format!("{base}:")) || SAMPLE.contains(&format!("{base}-file:")),
                "{key}"
            );
        }
    }
}

#[test]
fn the_contract_of_the_file_parses() {
    let folder = folder();
    let text = EXAMPLE
        .replace("$argon2id$v=19$…", HASH)
        .replace("directory-id: organizations", &format!("directory-id: {TENANT}"))
        .replace("# client-secret-file:", "client-secret-file:")
        .replace("/run/secrets/", &format!("{}/secrets/", folder.path().display()));
    let loaded = read_in(folder.path(), &text, &no_env).unwrap_or_else(|problems| panic!("{problems}"));
    let config = loaded.config;
    assert_eq!(config.listeners.len(), 4);
    assert_eq!(config.limits.idle_timeout.as_secs(), 1800);
    let imap = &config.listeners[0];
    assert_eq!(
        imap.account("SCANNER").unwrap().mailbox_for("scanner", Protocol::Imap),
        "scanner@contoso.com"
    );
    assert_eq!(imap.account("scanner").unwrap().application.grants, [Grant::ClientCredentials]);
    assert_eq!(imap.account("scanner").unwrap().password_hashes, [HASH]);
    assert_eq!(imap.account("bob@fabrikam.com").unwrap().application.grants, [Grant::Password]);
    let [proxy] = <[_; 1]>::try_from(config.outbound_proxies).unwrap();
    assert_eq!(proxy.url.as_str(), "http://proxy.contoso.com:3128/");
    assert_eq!(proxy.password.unwrap().expose(), "hunter2");
    assert!(proxy.use_for.identity && proxy.use_for.ews && !proxy.use_for.mail);
    assert_eq!(proxy.no_proxy[0], HostRule::Suffix("contoso.com".to_owned()));
}

#[test]
fn endpoints_are_joined_without_doubling_the_slash() {
    for authority in ["https://login.microsoftonline.com", "https://login.microsoftonline.com/"] {
        let config =
            must(&small(&format!(", tenant-authority: '{authority}', directory-id: contoso.com"), ""));
        let endpoints = &config.listeners[0].accounts[0].application.endpoints;
        assert_eq!(
            endpoints.token.as_str(),
            "https://login.microsoftonline.com/contoso.com/oauth2/v2.0/token"
        );
        assert_eq!(endpoints.authority, "https://login.microsoftonline.com/contoso.com");
    }
}

#[test]
fn a_resource_means_the_v1_endpoint() {
    let config = must(&small(", cloud: china, resource: 'https://partner.outlook.cn'", ""));
    let endpoints = &config.listeners[0].accounts[0].application.endpoints;
    assert_eq!(
        endpoints.token.as_str(),
        "https://login.partner.microsoftonline.cn/organizations/oauth2/token"
    );
    assert_eq!(endpoints.v1_resource.as_deref(), Some("https://partner.outlook.cn"));
}

#[test]
fn each_cloud_has_its_own_hosts() {
    for (cloud, login, imap, scope, wrong_passwords) in [
        ("global", "login.microsoftonline.com", "outlook.office365.com", "https://outlook.office.com", 5),
        (
            "us-gov-gcc-high",
            "login.microsoftonline.us",
            "outlook.office365.us",
            "https://outlook.office365.us",
            2,
        ),
        (
            "us-gov-dod",
            "login.microsoftonline.us",
            "outlook-dod.office365.us",
            "https://outlook.office365.us",
            2,
        ),
        ("china", "login.partner.microsoftonline.cn", "partner.outlook.cn", "https://partner.outlook.cn", 5),
    ] {
        let config = must(&small(&format!(", cloud: {cloud}"), ""));
        let listener = &config.listeners[0];
        let application = &listener.accounts[0].application;
        assert_eq!(application.endpoints.token.host_str(), Some(login), "{cloud}");
        let Upstream::Mail(server) = &listener.upstream else { panic!("{cloud}: no mail server") };
        assert_eq!((server.host.as_str(), server.port), (imap, 993), "{cloud}");
        let permission = format!("{scope}/IMAP.AccessAsUser.All");
        assert_eq!(application.scope_for(Protocol::Imap, Grant::Password), permission, "{cloud}");
        assert_eq!(config.guard.wrong_passwords_per_user, wrong_passwords, "{cloud}");
    }
}

#[test]
fn an_account_lies_over_the_listener_and_the_listener_over_the_top() {
    let config = must(
        "oauth: {client-id: 11111111-1111-1111-1111-111111111111, directory-id: top.example, sasl: oauthbearer}\n\
         listeners:\n\
         - {name: a, protocol: imap, listen: '127.0.0.1:1'}\n\
         - {name: b, protocol: pop3, listen: '127.0.0.1:2', oauth: {client-id: 22222222-2222-2222-2222-222222222222, directory-id: listener.example}}\n\
         accounts:\n\
         - {user: x, directory-id: account.example}\n",
    );
    let seen = |listener: usize, user: &str| {
        let application = &config.listeners[listener].account(user).unwrap().application;
        (
            application.client_id[..1].to_owned(),
            application.endpoints.authority.rsplit('/').next().unwrap().to_owned(),
        )
    };
    assert_eq!(seen(0, "x"), ("1".to_owned(), "account.example".to_owned()));
    assert_eq!(seen(1, "x"), ("2".to_owned(), "account.example".to_owned()));
    assert_eq!(seen(0, "y"), ("1".to_owned(), "top.example".to_owned()));
    assert_eq!(seen(1, "y"), ("2".to_owned(), "listener.example".to_owned()));
}

#[test]
fn a_nearer_proof_of_the_application_replaces_a_farther_one() {
    use mailkey::config::model::ClientAuth;
    let text = small(
        &format!(", directory-id: {TENANT}, client-secret: correct horse"),
        "accounts:\n- {user: x, client-certificate-file: certs/app.pem, client-key-file: certs/app.key}\n",
    );
    let config = must(&text);
    let auth = |user: &str| config.listeners[0].account(user).unwrap().application.client_auth.clone();
    assert!(matches!(auth("x"), ClientAuth::Certificate { .. }));
    assert!(matches!(auth("y"), ClientAuth::Secret(secret) if secret.expose() == "correct horse"));
}

#[test]
fn an_account_in_another_cloud_takes_no_url_of_the_first() {
    let config = must(&small(
        ", tenant-authority: 'https://login.microsoftonline.com/', scope: 'https://outlook.office.com/.default'",
        "accounts:\n- {user: '*.us', cloud: us-gov-gcc-high}\n",
    ));
    let application = &config.listeners[0].account("bob@x.us").unwrap().application;
    assert_eq!(application.endpoints.token.host_str(), Some("login.microsoftonline.us"));
    assert_eq!(application.scope, None);
    assert_eq!(config.guard.wrong_passwords_per_user, 2, "the stricter cloud decides");
}

#[test]
fn equal_applications_are_one() {
    let config = must(&small("", "accounts: [{user: a, mailbox: b@c.d}]\n"));
    let accounts = &config.listeners[0].accounts;
    assert_eq!(accounts.len(), 2);
    assert!(std::sync::Arc::ptr_eq(&accounts[0].application, &accounts[1].application));
}

#[test]
fn accounts_may_be_everybody_there_is() {
    let config = must(&small("", "accounts-only: true\naccounts: [{user: '*@a.b'}]\n"));
    assert!(config.listeners[0].account("x@a.b").is_some());
    assert!(config.listeners[0].account("x@other").is_none());
}

#[test]
fn a_fixed_account_needs_no_hash_and_nobody_else_is_let_in() {
    let listener = "listeners:\n- {name: scan, protocol: smtp, listen: '127.0.0.1:25', allow-from: [10.0.0.7], \
                    fixed-account: Scanner@contoso.com}\n";
    let oauth = format!(
        "oauth: {{client-id: {CLIENT_ID}, directory-id: {TENANT}, grant: client-credentials, client-secret: battery}}\n"
    );
    let alone = format!("{oauth}{listener}accounts-only: true\naccounts: [{{user: scanner@contoso.com}}]\n");
    let config = must(&alone);
    assert_eq!(config.listeners[0].accounts.len(), 1);
    let problems = read(&format!("{oauth}{listener}")).unwrap_err();
    assert!(whats(&problems)[0].starts_with("every mailbox that the application may open would be open"));
    let other = format!(
        "{oauth}{listener}accounts-only: true\naccounts: [{{user: scanner@contoso.com}}, {{user: b@c}}]\n"
    );
    let problems = read(&other).unwrap_err();
    assert!(whats(&problems)[0].starts_with("the mailbox `b@c` would be open"), "{problems}");
}

#[test]
fn variables_of_the_environment_stand_in_values() {
    let env = |name: &str| match name {
        "ID" => Some(CLIENT_ID.to_owned()),
        "HOST" => Some("imap.example.com".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        _ => None,
    };
    let text = "oauth: {client-id: '${ID}', client-secret: '${SECRET}'}\nlisteners:\n- {name: a, protocol: imap, \
                listen: '127.0.0.1:1', upstream: '${HOST}:993'}\n";
    let loaded = read_in(Path::new("."), text, &env).unwrap();
    let Upstream::Mail(server) = &loaded.config.listeners[0].upstream else { panic!("no mail server") };
    assert_eq!(server.host, "imap.example.com");
    assert_eq!(loaded.config.listeners[0].accounts[0].application.client_id, CLIENT_ID);
    assert!(!format!("{:?}", loaded.config).contains("hunter2"));
    let problems = read(text).unwrap_err();
    assert_eq!(
        problems.list.iter().filter(|p| p.what.contains("environment variable")).count(),
        3,
        "{problems}"
    );
}

#[test]
fn workload_identity_is_taken_from_the_environment() {
    let folder = folder();
    let token = folder.path().join("secrets/azure-identity-token");
    let env = |name: &str| match name {
        "AZURE_TENANT_ID" => Some(TENANT.to_owned()),
        "AZURE_CLIENT_ID" => Some(CLIENT_ID.to_owned()),
        "AZURE_FEDERATED_TOKEN_FILE" => Some(token.display().to_string()),
        "AZURE_AUTHORITY_HOST" => Some("https://login.microsoftonline.us/".to_owned()),
        _ => None,
    };
    let rest = format!(
        "listeners: [{{name: a, protocol: imap, listen: '127.0.0.1:1'}}]\naccounts: [{{user: '*', password-hash: '{HASH}'}}]\n"
    );
    for oauth in ["grant: client-credentials", "grant: client-credentials, federated-token-file: azure"] {
        let loaded = read_in(folder.path(), &format!("oauth: {{{oauth}}}\n{rest}"), &env);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
        let application = &loaded.config.listeners[0].accounts[0].application;
        assert_eq!(application.client_id, CLIENT_ID);
        assert_eq!(application.endpoints.authority, format!("https://login.microsoftonline.us/{TENANT}"));
    }
}

#[test]
fn the_environments_proxy_counts_where_the_file_names_none() {
    let env = |name: &str| match name {
        "HTTPS_PROXY" => Some("http://bob:hunter2@proxy.example:3128".to_owned()),
        "NO_PROXY" => Some("localhost,.example.org:8080,10.0.0.0/8".to_owned()),
        _ => None,
    };
    let loaded = read_in(Path::new("."), &small("", ""), &env).unwrap();
    let [proxy] = <[_; 1]>::try_from(loaded.config.outbound_proxies).unwrap();
    assert_eq!(proxy.url.as_str(), "http://proxy.example:3128/");
    assert_eq!((proxy.username.as_deref(), proxy.password.unwrap().expose()), (Some("bob"), "hunter2"));
    assert_eq!(proxy.no_proxy.len(), 3);
    assert_eq!(loaded.remarks.len(), 1);
    let off = read_in(Path::new("."), &small("", "outbound-proxy: off\n"), &env).unwrap();
    assert!(off.config.outbound_proxies.is_empty() && off.remarks.is_empty());
}

#[test]
fn each_host_has_its_proxy_and_the_first_that_fits_is_taken() {
    let config = must(&small(
        "",
        "outbound-proxy:\n  - {url: 'http://a.example:1', for: [microsoftonline.com, 192.0.2.0/24]}\n  \
         - {url: 'socks5h://b.example:2', use-for: mail, no-proxy: [.contoso.com]}\n  \
         - {url: 'https://c.example', use-for: [identity, mail]}\n",
    ));
    let chosen = |purpose, host| {
        let proxy = config.outbound_proxies.iter().find(|proxy| proxy.serves(purpose, host));
        proxy.and_then(|proxy| proxy.url.host_str()).unwrap_or("none")
    };
    assert_eq!(chosen(Purpose::Identity, "login.microsoftonline.com"), "a.example");
    assert_eq!(chosen(Purpose::Ews, "192.0.2.9"), "a.example");
    assert_eq!(chosen(Purpose::Ews, "outlook.office365.com"), "none");
    assert_eq!(chosen(Purpose::Mail, "outlook.office365.com"), "b.example");
    assert_eq!(chosen(Purpose::Mail, "mail.contoso.com"), "c.example");
    assert_eq!(chosen(Purpose::Identity, "sts.contoso.com"), "c.example");
}

#[test]
fn negotiate_is_taken_by_a_build_that_has_it() {
    let read = read(&small("", "outbound-proxy: {url: 'http://proxy.example:3128', auth: negotiate}\n"));
    assert_eq!(read.is_ok(), cfg!(feature = "negotiate"));
    if let Err(problems) = read {
        assert_eq!(whats(&problems), ["this build has no Negotiate (Kerberos)"]);
    }
}

#[test]
fn a_store_that_outlives_the_process_has_a_key() {
    let config = must(&small("", "tokens: {store: 'file:tokens.db', key-file: secrets/token-store-key}\n"));
    let Store::File(path) = &config.tokens.store else { panic!("no file") };
    assert!(path.is_absolute() && path.ends_with("tokens.db"));
    let config = must(&small(
        "",
        "tokens: {store: 'rediss://redis.example', store-password-file: secrets/redis, key: hunter2}\n",
    ));
    let Store::Redis(url) = &config.tokens.store else { panic!("no redis") };
    assert_eq!(url.password(), Some("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn several_listeners_may_take_any_free_port_towards_this_machine() {
    let config = must(
        "oauth: {tenant-authority: 'https://localhost:4443', directory-id: organizations, client-id: any-name}\n\
         listeners:\n\
         \x20 - {name: a, protocol: imap, listen: 127.0.0.1:0, tls: off, upstream: localhost:1993}\n\
         \x20 - {name: b, protocol: smtp, listen: '127.0.0.1:0', upstream: 'localhost:1587', upstream-tls: starttls}\n\
         \x20 - {name: c, protocol: ews, listen: 127.0.0.1:0, upstream: https://localhost:1443/}\n\
         admin: {listen: 127.0.0.1:0}\n",
    );
    assert_eq!(config.listeners.len(), 3);
    assert_eq!(
        config.listeners[0].accounts[0].application.endpoints.token.as_str(),
        "https://localhost:4443/organizations/oauth2/v2.0/token"
    );
}

#[test]
fn admin_may_be_off() {
    for off in ["admin: off\n", "admin: {listen: off}\n"] {
        assert_eq!(must(&small("", off)).admin, None, "{off}");
    }
    assert_eq!(must(&small("", "")).admin.unwrap().listen, ["127.0.0.1:9143".parse().unwrap()]);
}

#[test]
fn tls_off_is_a_word_and_no_truth_value() {
    let text = small("", "").replace("protocol: imap,", "protocol: imap, tls: off,");
    assert_eq!(must(&text).listeners[0].tls, FrontTls::Off);
}

#[test]
fn ews_keeps_the_origin_of_its_upstream() {
    let text = small("", "")
        .replace("protocol: imap", "protocol: ews, upstream: 'https://mail.example:444/EWS/x?y#z'");
    let Upstream::Http(url) = &must(&text).listeners[0].upstream else { panic!("no URL") };
    assert_eq!(url.as_str(), "https://mail.example:444/");
}

#[test]
fn a_file_that_is_not_there_or_too_large_or_no_text_is_a_problem() {
    let folder = folder();
    let path = folder.path().join("proxy.yaml");
    let what = |path: &Path| config::load(path, &no_env).unwrap_err().list[0].what.clone();
    assert!(what(&path).starts_with("cannot be opened: "));
    std::fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
    assert_eq!(what(&path), "is larger than 1 MiB");
    std::fs::write(&path, b"a: b\nc: \xff\n").unwrap();
    assert_eq!(what(&path), "is no UTF-8 text, from line 2 on");
}

#[cfg(unix)]
#[test]
fn a_secret_in_a_file_that_others_may_read_is_refused() {
    let folder = folder();
    let path = folder.path().join("proxy.yaml");
    let key = "ab".repeat(32);
    let store = format!(
        "tokens: {{store: 'redis://svc:hunter2@localhost', key-file: {}}}\n",
        "secrets/token-store-key"
    );
    let keyed = format!("tokens: {{store: 'file:tokens', key: '{key}'}}\n");
    for (oauth, sections, mode, refused) in [
        (", client-secret: battery", "", 0o644, true),
        (", client-secret: battery", "", 0o604, true),
        (", client-secret: battery", "", 0o600, false),
        (", client-secret: '${SECRET}'", "", 0o644, false),
        ("", store.as_str(), 0o644, true),
        ("", store.as_str(), 0o600, false),
        ("", keyed.as_str(), 0o644, true),
        ("", "", 0o644, false),
    ] {
        std::fs::write(&path, small(oauth, sections)).unwrap();
        set_mode(&path, mode);
        let read = config::load(&path, &|name| (name == "SECRET").then(|| "battery".to_owned()));
        match read {
            Ok(_) => assert!(!refused, "{oauth} {sections} {mode:o}"),
            Err(problems) => {
                let told = problems.to_string();
                assert!(
                    refused && told.contains("others may read it"),
                    "{oauth} {sections} {mode:o}: {told}"
                );
                assert!(
                    !told.contains("battery") && !told.contains("hunter2") && !told.contains(&key),
                    "{told}"
                );
            }
        }
    }
}

#[test]
fn check_says_what_would_run_and_no_secret() {
    let text = small(
        &format!(
            ", directory-id: {TENANT}, grant: [password, client-credentials], client-secret: hunter2, scope: 'https://outlook.office.com/.default'"
        ),
        &format!(
            "accounts: [{{user: '*', password-hash: '{HASH}'}}]\ntokens: {{store: 'rediss://u:hunter2@redis.example', key: battery}}\n"
        ),
    );
    let said = mailkey::cli::check::describe(&must(&text));
    for part in [
        "imap: imap on 127.0.0.1:1143 (clear text) -> outlook.office365.com:993 (TLS)",
        &format!("password, then client-credentials, at https://login.microsoftonline.com/{TENANT}"),
        &format!("{CLIENT_ID} (with a client secret)"),
        "checked here, against one hash",
        "rediss://redis.example, key given",
        "127.0.0.1:9143",
        "idle 35m",
        "per mailbox 3 SMTP, 20 IMAP and 16 POP3, waiting for one 20s",
        "4 per upstream at most, each for 45s",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    for secret in ["hunter2", "battery", "argon2id"] {
        assert!(!said.contains(secret), "{said}");
    }
}

proptest! {
    // A case that damages the secret itself says nothing and is drawn again.
    #![proptest_config(ProptestConfig { max_global_rejects: 1_000_000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,400}") {
        let _read = read_in(Path::new("."), &text, &no_env).map_err(|problems| problems.to_string());
    }

    #[test]
    fn yaml_of_any_shape_is_read_or_complained_about(text in "([a-c{}\\[\\]:,&*!|>'\"#\n -]|oauth|listeners|name){0,80}") {
        if let Err(problems) = read_in(Path::new("."), &text, &no_env) {
            prop_assert!(!problems.list.is_empty(), "refused without a reason");
        }
    }

    #[test]
    fn a_damaged_sample_is_read_or_complained_about(
        at in 0..SAMPLE.len(),
        length in 0..40_usize,
        put in "(?s).{0,12}|hunter2|: |\n  - |[{]|\"|\\$[{]X[}]|0|-1",
    ) {
        let start = SAMPLE.floor_char_boundary(at);
        let end = SAMPLE.floor_char_boundary((start + length).min(SAMPLE.len())).max(start);
        let text = format!("{}{put}{}", &SAMPLE[..start], &SAMPLE[end..]);
        if let Err(problems) = read_in(Path::new("."), &text, &no_env) {
            prop_assert!(!problems.list.is_empty(), "refused without a reason");
            let lines = text.lines().count() + 1;
            prop_assert!(problems.list.iter().all(|problem| problem.line <= lines));
        }
    }

    #[test]
    fn a_secret_is_never_shown_whatever_else_is_wrong(
        at in 0..400_usize,
        length in 0..20_usize,
        put in "[a-z:{}\\[\\]'\"#&*!|\n -]{0,6}",
    ) {
        let file = format!(
            "oauth:\n  client-secret: zq7Secret\n  client-id: {CLIENT_ID}\n  lisen: x\ntokens:\n  key: zq7Secret\n  \
             store: redis://a:zq7Secret@h\noutbound-proxy:\n  url: http://a:zq7Secret@h:1\n  password: zq7Secret\n"
        );
        let start = at.min(file.len());
        let end = (start + length).min(file.len());
        // Damage inside the secret or to its key's name can only make another text of it.
        let cut = &file[start..end];
        prop_assume!(!cut.contains("Secret") && !cut.contains("zq7"));
        let text = format!("{}{put}{}", &file[..start], &file[end..]);
        prop_assume!(text.matches("zq7Secret").count() == 5);
        if let Err(problems) = read_in(Path::new("."), &text, &no_env) {
            let said = problems.to_string();
            prop_assert!(!said.contains("zq7Secret"), "{}\n---\n{}", text, said);
        }
    }
}
