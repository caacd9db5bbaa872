//! What an administrator runs before the proxy: init, setup-script, certificate, schema, completions, man.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mailkey::config;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::stage::{Told, run};

const MAILKEY: &str = env!("CARGO_BIN_EXE_mailkey");
const TENANT: &str = "66666666-7777-8888-9999-000000000000";
const CLIENT: &str = "11111111-2222-3333-4444-555555555555";

async fn mailkey(path: &Path, arguments: &[&str], input: &str) -> Told {
    let mut all = vec!["--config", path.to_str().unwrap()];
    all.extend(arguments);
    run(MAILKEY, all, input.as_bytes()).await
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.yaml");
    (folder, path)
}

fn loaded(path: &Path) -> config::model::Config {
    config::load(path, &|_| None).unwrap_or_else(|problems| panic!("{problems}")).config
}

#[tokio::test]
async fn init_by_flags_writes_a_file_that_passes_check_and_never_overwrites_one() {
    let (_folder, path) = place();
    let flags = [
        "init",
        "--yes",
        "--directory-id",
        TENANT,
        "--client-id",
        CLIENT,
        "--protocols",
        "imap,ews",
        "--outbound-proxy",
        "http://proxy.contoso.com:3128",
    ];
    let told = mailkey(&path, &flags, "").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.text().contains("doctor"), "{told:?}");
    let config = loaded(&path);
    let names: Vec<&str> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
    assert_eq!(names, ["imap", "ews"]);
    assert!(config.listeners.iter().all(|one| one.listen.iter().all(|address| address.ip().is_loopback())));
    assert!(config.outbound_proxies[0].use_for.mail);
    assert_eq!(mailkey(&path, &["check"], "").await.code, Some(0));

    let before = std::fs::read_to_string(&path).unwrap();
    let told = mailkey(&path, &flags, "").await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.err.contains("--force"), "{told:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    let told = mailkey(&path, &["init", "--yes", "--client-id", CLIENT, "--force"], "").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    let config = loaded(&path);
    assert_eq!(config.listeners.len(), 3);
    assert!(config.outbound_proxies.is_empty());
}

#[tokio::test]
async fn init_asks_five_questions_and_asks_again_where_an_answer_makes_no_sense() {
    let (_folder, path) = place();
    let answers = format!("contoso.com\nnot-an-id\n{CLIENT}\nimap smtp\nlocal\n\n");
    let told = mailkey(&path, &["init"], &answers).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_eq!(told.text().matches(": ").count(), 6, "five questions, one of them twice: {told:?}");
    assert!(told.err.contains("11111111-2222"), "{told:?}");
    let config = loaded(&path);
    assert_eq!(config.listeners.len(), 2);
    let application = &config.listeners[0].accounts[0].application;
    assert!(application.endpoints.authority.ends_with("/contoso.com"), "{application:?}");
}

#[tokio::test]
async fn init_for_the_network_brings_its_certificate_along() {
    let (folder, path) = place();
    let flags =
        ["init", "--yes", "--client-id", CLIENT, "--listen", "network", "--protocols", "imap,pop3,smtp,ews"];
    let told = mailkey(&path, &flags, "").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(folder.path().join("certs/ca.pem").exists());
    let config = loaded(&path);
    assert!(config.listeners.iter().all(|one| one.tls != config::model::FrontTls::Off));
    assert_eq!(mailkey(&path, &["check"], "").await.code, Some(0));
}

#[tokio::test]
async fn init_writes_nothing_where_an_answer_is_missing_or_hostile() {
    let (_folder, path) = place();
    for (arguments, input) in [
        (vec!["init", "--yes"], ""),
        (vec!["init"], "contoso.com\n"),
        (vec!["init", "--yes", "--client-id", "x"], ""),
        (vec!["init", "--yes", "--client-id", CLIENT, "--directory-id", "a.b', x: 'y"], ""),
        (vec!["init", "--yes", "--client-id", CLIENT, "--directory-id", "${HOME}.com"], ""),
        (vec!["init", "--yes", "--client-id", CLIENT, "--protocols", "imap,gopher"], ""),
        (vec!["init", "--yes", "--client-id", CLIENT, "--outbound-proxy", "socks5h://proxy"], ""),
        (vec!["init", "--yes", "--client-id", CLIENT, "--listen", "moon"], ""),
    ] {
        let told = mailkey(&path, &arguments, input).await;
        assert_eq!(told.code, Some(2), "{arguments:?}: {told:?}");
        assert!(!told.err.is_empty() && !path.exists(), "{arguments:?}: {told:?}");
    }
}

#[tokio::test]
async fn the_setup_script_holds_the_values_of_the_configuration() {
    let (_folder, path) = place();
    let told = mailkey(&path, &["setup-script"], "").await;
    assert_eq!(told.code, Some(0), "without a file, a new application: {told:?}");
    assert!(told.text().contains("$ClientId = ''") && told.text().contains("New-MgApplication"), "{told:?}");

    let flags =
        ["init", "--yes", "--client-id", CLIENT, "--directory-id", TENANT, "--protocols", "imap,smtp"];
    assert_eq!(mailkey(&path, &flags, "").await.code, Some(0));
    let told = mailkey(&path, &["setup-script", "--user", "o'brien@contoso.com"], "").await;
    let text = told.text();
    for part in [
        "$Mailboxes = @('o''brien@contoso.com')".to_owned(),
        format!("$TenantId = '{TENANT}'"),
        format!("$ClientId = '{CLIENT}'"),
        "@('IMAP.AccessAsUser.All', 'SMTP.Send')".to_owned(),
        "-ImapEnabled $true -SmtpClientAuthenticationDisabled $false".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} is missing in\n{text}");
    }
    let told = mailkey(&path, &["setup-script", "--grant", "client-credentials"], "").await;
    let text = told.text();
    for part in [
        "New-ServicePrincipal -AppId $ClientId -ObjectId $principal.Id",
        "'IMAP.AccessAsApp', 'SMTP.SendAsApp'",
        "Add-RecipientPermission",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    std::fs::write(&path, "listeners: 1\n").unwrap();
    assert_eq!(mailkey(&path, &["setup-script"], "").await.code, Some(2));
}

#[tokio::test]
async fn a_certificate_made_here_is_trusted_by_whoever_trusts_its_authority() {
    let (folder, path) = place();
    let made = ["certificate", "--name", "mail.contoso.com", "--name", "192.0.2.7"];
    let told = mailkey(&path, &made, "").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(
        told.text().contains("certificate-file: '") && told.text().contains("mail.contoso.com"),
        "{told:?}"
    );
    let file = |name: &str| folder.path().join("certs").join(name);
    #[cfg(unix)]
    for key in ["ca.key", "server.key"] {
        use std::os::unix::fs::PermissionsExt as _;
        let rights = std::fs::metadata(file(key)).unwrap().permissions().mode();
        assert_eq!(rights & 0o777, 0o600, "{key}");
    }
    for name in ["mail.contoso.com", "localhost", "192.0.2.7", "::1"] {
        assert_eq!(greeting(&file("ca.pem"), &file("server.pem"), &file("server.key"), name).await, Ok(()));
    }
    assert!(
        greeting(&file("ca.pem"), &file("server.pem"), &file("server.key"), "evil.example").await.is_err()
    );

    let before = std::fs::read(file("server.pem")).unwrap();
    let told = mailkey(&path, &made, "").await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert_eq!(std::fs::read(file("server.pem")).unwrap(), before);
    let told = mailkey(&path, &["certificate", "--force"], "").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert_ne!(std::fs::read(file("server.pem")).unwrap(), before);
    let told = mailkey(&path, &["certificate", "--force", "--name", "a b"], "").await;
    assert_eq!(told.code, Some(1), "{told:?}");
}

/// A TLS handshake over a pipe.
async fn greeting(authority: &Path, certificate: &Path, key: &Path, name: &str) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let trusting = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let serving = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let served = tokio::spawn(async move {
        let mut io = TlsAcceptor::from(Arc::new(serving)).accept(far).await?;
        io.write_all(b"hello").await?;
        io.shutdown().await
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut io = TlsConnector::from(Arc::new(trusting))
        .connect(name, near)
        .await
        .map_err(|error| error.to_string())?;
    let mut heard = String::new();
    io.read_to_string(&mut heard).await.map_err(|error| error.to_string())?;
    drop(served.await.unwrap());
    if heard == "hello" { Ok(()) } else { Err(heard) }
}

#[tokio::test]
async fn the_schema_knows_every_key_of_the_shipped_file() {
    let told = run(MAILKEY, ["schema"], b"").await;
    let schema: serde_json::Value = serde_json::from_slice(&told.out).unwrap();
    let listener = &schema["properties"]["listeners"]["items"];
    assert_eq!(listener["additionalProperties"], false);
    assert!(listener["properties"]["protocol"].to_string().contains("pop3"));
    let text = told.text();
    let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/proxy.yaml")).unwrap();
    let mut seen = 0;
    for line in shipped.lines() {
        let line =
            line.trim_start().trim_start_matches("#:").trim_start().trim_start_matches("- ").trim_start();
        let Some((key, _)) = line.split_once(':') else { continue };
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
            continue;
        }
        assert!(text.contains(&format!("\"{key}\": {{")), "`{key}` is missing in the schema");
        seen += 1;
    }
    assert!(seen > 60, "{seen}");
}

#[tokio::test]
async fn completions_and_manual_pages_name_every_command() {
    let (folder, _) = place();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let told = run(MAILKEY, ["completions", shell], b"").await;
        assert_eq!(told.code, Some(0), "{told:?}");
        for command in ["doctor", "setup-script", "certificate"] {
            assert!(told.text().contains(command), "{shell}: {command}");
        }
    }
    let script = run(MAILKEY, ["completions", "bash"], b"").await;
    let read = run("bash", ["-n", "/dev/stdin"], &script.out).await;
    assert_eq!(read.code, Some(0), "{read:?}");
    assert_eq!(run(MAILKEY, ["completions", "tcsh"], b"").await.code, Some(2));

    let told = run(MAILKEY, ["man"], b"").await;
    assert!(told.text().contains(".TH mailkey 1") && told.text().contains("doctor"), "{told:?}");
    let told = run(MAILKEY, ["man", "doctor"], b"").await;
    assert!(told.text().contains("password\\-file"), "{told:?}");
    assert_eq!(run(MAILKEY, ["man", "dcotor"], b"").await.code, Some(2));
    let pages = folder.path().join("man");
    let told = run(MAILKEY, ["man", "--directory", pages.to_str().unwrap()], b"").await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(pages.join("mailkey.1").exists() && pages.join("mailkey-doctor.1").exists());
}
