//! Through real corporate proxies: Squid with Basic, NTLM (Samba checks the password) and Kerberos, and SOCKS5.

use std::process::Command;
use std::sync::Arc;

use mailkey::simulator::Simulator;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::corporate::{
    LOGIN, Mailkey, OUTLOOK, PROXY_PASSWORD, Plan, SMTP, Squid, SquidPlan, basic, listening, office,
    open_folder, signed_in, spawn, through, write_hosts,
};

use crate::ports::free_port;

pub mod corporate;
pub mod faults;
pub mod namespaces;

/// What a proxy must have been asked for when everything went through it.
fn all_targets(office: &Simulator) -> Vec<String> {
    vec![
        format!("{LOGIN}:{}", office.authority().port()),
        format!("{OUTLOOK}:{}", office.imap().port()),
        format!("{OUTLOOK}:{}", office.imap_starttls().port()),
        format!("{OUTLOOK}:{}", office.pop3().port()),
        format!("{OUTLOOK}:{}", office.ews().port()),
        format!("{SMTP}:{}", office.smtp().port()),
    ]
}

/// Squid writes its log when a tunnel ends; mailkey has ended by now.
async fn everything_went_through(squid: &Squid, office: &Simulator, user: &str) {
    for target in all_targets(office) {
        corporate::until(&format!("{target} through Squid by {user}"), || {
            squid.connects().iter().any(|(to, status, by)| {
                *to == target && status.ends_with("/200") && by.to_lowercase().ends_with(user)
            })
        })
        .await;
    }
}

async fn mailkey(office: &Simulator, sections: String) -> Mailkey {
    Mailkey::start(office, Plan { sections, ..Plan::default() }).await
}

#[tokio::test]
async fn tokens_ews_and_mail_go_through_squid_with_basic() {
    let office = office().await;
    let squid = Squid::start(basic()).await;
    let url = format!("http://127.0.0.1:{}", squid.port);
    let mailkey = mailkey(&office, through(&url, &signed_in("svc-mail"))).await;
    mailkey.serves_everything(&[]).await;
    drop(mailkey);
    everything_went_through(&squid, &office, "svc-mail").await;
}

#[tokio::test]
async fn a_wrong_proxy_password_is_named_and_not_shown_over_and_over() {
    let office = office().await;
    let squid = Squid::start(basic()).await;
    let url = format!("http://127.0.0.1:{}", squid.port);
    let sections = through(&url, ", username: svc-mail, password: wrong");
    let mailkey = mailkey(&office, sections).await;
    for _ in 0..3 {
        let answer = mailkey.sign_in("imap").await;
        assert!(answer.starts_with("a1 NO [UNAVAILABLE] "), "{answer}");
    }
    let refusal = mailkey.refusal("imap", 3).await;
    assert_eq!(refusal["code"], "PROXY-SIGN-IN", "{refusal}");
    let remedy = refusal["remedy"].as_str().unwrap();
    assert!(remedy.contains("`outbound-proxy.username` and `password-file`"), "{remedy}");
    assert!(!mailkey.raw_log().contains("wrong"), "the proxy's password is in the log");
    let shown = squid.connects().iter().filter(|(_, _, user)| user == "svc-mail").count();
    assert!(shown <= 1, "the wrong password was shown {shown} times: {:#?}", squid.connects());
}

#[tokio::test]
async fn a_proxy_that_wants_a_sign_in_says_which_one() {
    let office = office().await;
    let squid = Squid::start(basic()).await;
    let mailkey = mailkey(&office, through(&format!("http://127.0.0.1:{}", squid.port), "")).await;
    for listener in ["pop3", "ews"] {
        mailkey.sign_in(listener).await;
        let refusal = mailkey.refusal(listener, 1).await;
        assert_eq!(refusal["code"], "PROXY-SIGN-IN", "{refusal}");
        assert!(refusal["remedy"].as_str().unwrap().ends_with("(it offers Basic)"), "{refusal}");
    }
}

#[tokio::test]
async fn a_port_that_squid_does_not_allow_is_told_from_one_that_it_does() {
    let office = office().await;
    let ports = vec![office.authority().port(), office.ews().port(), office.smtp().port()];
    let squid = Squid::start(SquidPlan { ports, ..SquidPlan::default() }).await;
    let mailkey = mailkey(&office, through(&format!("http://127.0.0.1:{}", squid.port), "")).await;
    let answer = mailkey.sign_in("imap").await;
    assert!(answer.starts_with("a1 NO [UNAVAILABLE] "), "{answer}");
    let refusal = mailkey.refusal("imap", 1).await;
    assert_eq!(refusal["code"], "PROXY-FORBIDS", "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("403 Forbidden (ERR_ACCESS_DENIED)"), "{refusal}");
    assert!(refusal["remedy"].as_str().unwrap().contains("IMAP needs port 993"), "{refusal}");
    assert!(mailkey.sign_in("smtp").await.starts_with("235 "));
    assert!(mailkey.sign_in("ews").await.contains("200 OK"));
}

#[tokio::test]
async fn a_proxy_that_cannot_reach_the_target_itself_is_told_from_one_that_forbids() {
    let office = office().await;
    let squid = Squid::start(SquidPlan::default()).await;
    let mut plan =
        Plan { sections: through(&format!("http://127.0.0.1:{}", squid.port), ""), ..Plan::default() };
    plan.sections.push_str("limits: {login-timeout: 10s}\n");
    let mailkey = Mailkey::start(&office, plan).await;
    assert!(mailkey.sign_in("imap").await.starts_with("a1 OK"));
    office.mischief().mail(mailkey::simulator::Service::Imap, mailkey::simulator::MailFault::RefuseConnect);
    let answer = mailkey.sign_in("imap").await;
    assert!(answer.starts_with("a1 NO [UNAVAILABLE] "), "{answer}");
    let refusal = mailkey.refusal("imap", 1).await;
    assert_eq!(refusal["code"], "PROXY-CANNOT-REACH", "{refusal}");
}

/// Squid with NTLM, the password checked by Samba's `ntlm_auth` and `winbindd` on a user database of their own.
fn ntlm() -> SquidPlan {
    let before = format!(
        "mkdir -p samba/{{private,state,cache,lock,pid,ncalrpc}}; chmod -R 755 samba\n\
         cat > samba/smb.conf <<'END'\n[global]\nworkgroup = CONTOSO\nnetbios name = SQUID\nsecurity = user\n\
         passdb backend = tdbsam\nprivate dir = FOLDER/samba/private\nstate directory = FOLDER/samba/state\n\
         cache directory = FOLDER/samba/cache\nlock directory = FOLDER/samba/lock\npid directory = FOLDER/samba/pid\n\
         ncalrpc dir = FOLDER/samba/ncalrpc\nlog file = FOLDER/samba/log\ninterfaces = lo\nbind interfaces only = yes\n\
         disable netbios = yes\nntlm auth = ntlmv2-only\nEND\n\
         mkdir -p /run/samba; mount -t tmpfs none /run/samba\n\
         printf '%s\\n%s\\n' '{PROXY_PASSWORD}' '{PROXY_PASSWORD}' | smbpasswd -c FOLDER/samba/smb.conf -s -a nobody\n\
         winbindd -F -s FOLDER/samba/smb.conf --no-process-group > FOLDER/samba/winbindd.log 2>&1 &\n\
         winbindd=$!\n\
         for i in $(seq 200); do [ -S FOLDER/samba/state/winbindd_privileged/pipe ] && break; sleep 0.05; done\n\
         chgrp proxy FOLDER/samba/state/winbindd_privileged; chmod 755 FOLDER/samba/state\n\
         # winbindd goes when squid goes\n\
         (while kill -0 $$ 2> /dev/null; do sleep 0.2; done; kill $winbindd) > /dev/null 2>&1 &"
    );
    SquidPlan {
        auth: "auth_param ntlm program /usr/bin/ntlm_auth --configfile=FOLDER/samba/smb.conf --helper-protocol=squid-2.5-ntlmssp\n\
               auth_param ntlm children 2 startup=1 idle=1"
            .to_owned(),
        before,
        ..SquidPlan::default()
    }
}

#[tokio::test]
async fn tokens_ews_and_mail_go_through_squid_with_ntlm_checked_by_samba() {
    let office = office().await;
    let squid = Squid::start(ntlm()).await;
    let url = format!("http://127.0.0.1:{}", squid.port);
    for auth in ["", ", auth: ntlm"] {
        let mailkey = mailkey(&office, through(&url, &format!("{}{auth}", signed_in("SQUID\\nobody")))).await;
        mailkey.serves_everything(&[]).await;
    }
    everything_went_through(&squid, &office, "nobody").await;
}

#[tokio::test]
async fn samba_refuses_a_wrong_password_and_the_log_says_how_the_name_is_written() {
    let office = office().await;
    let squid = Squid::start(ntlm()).await;
    let sections =
        through(&format!("http://127.0.0.1:{}", squid.port), ", username: nobody, password: wrong");
    let mailkey = mailkey(&office, sections).await;
    let answer = mailkey.sign_in("smtp").await;
    assert!(answer.starts_with("454 4.7.0 "), "{answer}");
    let refusal = mailkey.refusal("smtp", 1).await;
    assert_eq!(refusal["code"], "PROXY-SIGN-IN", "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("is not taken (NTLM)"), "{refusal}");
    assert!(refusal["remedy"].as_str().unwrap().contains("CONTOSO\\svc-mail"), "{refusal}");
}

/// Squid with Kerberos, and a key distribution centre of its own beside it. `svc-mail` has the usual password.
#[cfg(feature = "negotiate")]
fn kerberos(kdc: u16) -> SquidPlan {
    let before = format!(
        "cat > FOLDER/krb5.conf <<'END'\n[libdefaults]\ndefault_realm = CONTOSO.TEST\ndns_lookup_kdc = false\n\
         dns_canonicalize_hostname = false\nrdns = false\n[realms]\nCONTOSO.TEST = {{\nkdc = 127.0.0.1:{kdc}\n}}\n\
         [domain_realm]\nlocalhost = CONTOSO.TEST\nEND\n\
         cat > FOLDER/kdc.conf <<'END'\n[realms]\nCONTOSO.TEST = {{\ndatabase_name = FOLDER/principal\n\
         key_stash_file = FOLDER/stash\nkdc_listen = 127.0.0.1:{kdc}\nkdc_tcp_listen = 127.0.0.1:{kdc}\n}}\n\
         [logging]\nkdc = FILE:FOLDER/kdc.log\nEND\n\
         export KRB5_CONFIG=FOLDER/krb5.conf KRB5_KDC_PROFILE=FOLDER/kdc.conf KRB5RCACHENAME=none:\n\
         kdb5_util create -s -r CONTOSO.TEST -P masterkey > /dev/null\n\
         kadmin.local -q 'addprinc -pw \"{PROXY_PASSWORD}\" svc-mail' > /dev/null\n\
         kadmin.local -q 'addprinc -randkey HTTP/localhost' > /dev/null\n\
         kadmin.local -q 'ktadd -k FOLDER/squid.keytab HTTP/localhost' > /dev/null\n\
         kadmin.local -q 'ktadd -norandkey -k FOLDER/svc-mail.keytab svc-mail' > /dev/null\n\
         chmod 644 FOLDER/squid.keytab\n\
         krb5kdc -n > FOLDER/kdc.out 2>&1 &\nkdc=$!\n\
         (while kill -0 $$ 2> /dev/null; do sleep 0.2; done; kill $kdc) > /dev/null 2>&1 &"
    );
    SquidPlan {
        auth: "auth_param negotiate program /usr/lib/squid/negotiate_kerberos_auth -k FOLDER/squid.keytab -s HTTP/localhost@CONTOSO.TEST -r\n\
               auth_param negotiate children 2 startup=1 idle=1\nauth_param negotiate keep_alive on"
            .to_owned(),
        before,
        ..SquidPlan::default()
    }
}

#[cfg(feature = "negotiate")]
#[tokio::test]
async fn tokens_ews_and_mail_go_through_squid_with_kerberos() {
    let office = office().await;
    let kdc = free_port();
    let squid = Squid::start(kerberos(kdc)).await;
    let place = squid.folder.path().display().to_string();
    let url = format!("http://localhost:{}", squid.port);
    let environment = |more: &str| {
        let words = format!("env KRB5_CONFIG={place}/krb5.conf KRB5CCNAME=MEMORY: {more}");
        words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    corporate::until("the key distribution centre", || {
        std::fs::read_to_string(format!("{place}/kdc.log"))
            .is_ok_and(|log| log.contains("commencing operation"))
    })
    .await;

    // by user name and password, and by the keytab of the account
    for (more, keytab) in [
        (signed_in("svc-mail@CONTOSO.TEST"), String::new()),
        (", auth: negotiate".to_owned(), format!("KRB5_CLIENT_KTNAME=FILE:{place}/svc-mail.keytab")),
    ] {
        let plan = Plan { sections: through(&url, &more), wrapper: environment(&keytab), ..Plan::default() };
        Mailkey::start(&office, plan).await.serves_everything(&[]).await;
    }
    everything_went_through(&squid, &office, "svc-mail").await;

    // and with none of these, or a wrong one
    let wrong = through(&url, ", username: svc-mail@CONTOSO.TEST, password: wrong");
    let plan = Plan { sections: wrong, wrapper: environment(""), ..Plan::default() };
    let mailkey = Mailkey::start(&office, plan).await;
    mailkey.sign_in("imap").await;
    let refusal = mailkey.refusal("imap", 1).await;
    assert!(corporate::what(&refusal).to_lowercase().contains("decrypt integrity check failed"), "{refusal}");
    let plan = Plan { sections: through(&url, ""), wrapper: environment(""), ..Plan::default() };
    let mailkey = Mailkey::start(&office, plan).await;
    mailkey.sign_in("imap").await;
    let refusal = mailkey.refusal("imap", 1).await;
    assert_eq!(refusal["code"], "PROXY-SIGN-IN", "{refusal}");
    assert!(refusal["remedy"].as_str().unwrap().contains("kinit"), "{refusal}");
}

/// A certificate authority of the company's, and what it issues: PEM of the root, certificate and key.
struct Issued {
    root: String,
    certificate: String,
    key: String,
}

fn issue(name: &str) -> Issued {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    Issued { root: root.pem(), certificate: leaf.pem(), key: key.serialize_pem() }
}

#[tokio::test]
async fn the_way_to_squid_itself_can_be_encrypted() {
    let office = office().await;
    let issued = issue("localhost");
    let port = free_port();
    let usual = basic();
    let plan = SquidPlan {
        auth: format!(
            "{}\nhttps_port 127.0.0.1:{port} tls-cert=FOLDER/server.pem tls-key=FOLDER/server.key",
            usual.auth
        ),
        before: format!(
            "{}\ncat > FOLDER/server.pem <<'END'\n{}END\ncat > FOLDER/server.key <<'END'\n{}END",
            usual.before, issued.certificate, issued.key
        ),
        ..usual
    };
    let squid = Squid::start(plan).await;
    listening(([127, 0, 0, 1], port).into()).await;
    let sections = through(&format!("https://localhost:{port}"), &signed_in("svc-mail"));
    let trusting = Plan { sections: sections.clone(), root: issued.root, ..Plan::default() };
    let mailkey = Mailkey::start(&office, trusting).await;
    mailkey.serves_everything(&[]).await;
    drop(mailkey);
    everything_went_through(&squid, &office, "svc-mail").await;

    let mailkey = self::mailkey(&office, sections).await;
    for listener in ["imap", "ews"] {
        mailkey.sign_in(listener).await;
        let refusal = mailkey.refusal(listener, 1).await;
        assert_eq!(refusal["code"], "TLS-UNKNOWN-ISSUER", "{refusal}");
        assert!(corporate::what(&refusal).contains(&format!("localhost:{port}")), "{refusal}");
    }
}

/// A proxy that lets nobody in without a certificate of its own authority, and speaks HTTP/1.1 by agreement only.
async fn strict_proxy(server: &Issued, client: &Issued) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client.root.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(server.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(server.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut io) = acceptor.accept(socket).await else { return };
                assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if io.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let request = String::from_utf8(request).unwrap();
                let target = request.split(' ').nth(1).unwrap().rsplit_once(':').unwrap().1;
                let mut far =
                    TcpStream::connect(("127.0.0.1", target.parse::<u16>().unwrap())).await.unwrap();
                io.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut io, &mut far).await);
            });
        }
    });
    port
}

#[tokio::test]
async fn a_proxy_that_wants_a_client_certificate_gets_one_or_is_named() {
    let office = office().await;
    let (server, client) = (issue("localhost"), issue("mailkey.contoso.com"));
    let port = strict_proxy(&server, &client).await;
    let sections = through(&format!("https://localhost:{port}"), "");
    let with = Plan {
        sections: sections.clone(),
        root: server.root.clone(),
        files: vec![("client.pem", client.certificate), ("client.key", client.key)],
        tls: ", client-certificate-file: client.pem, client-key-file: client.key".to_owned(),
        ..Plan::default()
    };
    Mailkey::start(&office, with).await.serves_everything(&[]).await;
    let without = Plan { sections, root: server.root, ..Plan::default() };
    let mailkey = Mailkey::start(&office, without).await;
    mailkey.sign_in("imap").await;
    let refusal = mailkey.refusal("imap", 1).await;
    assert_eq!(refusal["code"], "TLS-CLIENT-CERTIFICATE", "{refusal}");
}

/// A SOCKS5 server to which Microsoft's names lead to the simulator.
async fn socks(arguments: &[&str]) -> (corporate::Running, tempfile::TempDir, u16) {
    let folder = open_folder();
    let hosts = write_hosts(folder.path());
    let port = free_port();
    let script = format!("mount --bind {} /etc/hosts && exec microsocks \"$@\"", hosts.display());
    let number = port.to_string();
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "--propagation",
        "private",
        "bash",
        "-c",
        &script,
        "socks",
        "-i",
        "127.0.0.1",
        "-p",
        &number,
    ]);
    command.args(arguments).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let process = spawn(&mut command);
    listening(([127, 0, 0, 1], port).into()).await;
    (process, folder, port)
}

#[tokio::test]
async fn tokens_ews_and_mail_go_through_socks5_with_and_without_a_password() {
    let office = office().await;
    for (server, client) in
        [(vec![], String::new()), (vec!["-u", "svc-mail", "-P", PROXY_PASSWORD], signed_in("svc-mail"))]
    {
        let (_process, _folder, port) = socks(&server).await;
        let mailkey = mailkey(&office, through(&format!("socks5h://127.0.0.1:{port}"), &client)).await;
        mailkey.serves_everything(&[]).await;
    }
}

#[tokio::test]
async fn socks5_that_wants_another_password_or_none_of_ours_is_named() {
    let office = office().await;
    let (_process, _folder, port) = socks(&["-u", "svc-mail", "-P", PROXY_PASSWORD]).await;
    for (client, code) in
        [("", "no user name"), (", username: svc-mail, password: wrong", "is not taken (SOCKS5)")]
    {
        let mailkey = mailkey(&office, through(&format!("socks5h://127.0.0.1:{port}"), client)).await;
        mailkey.sign_in("imap").await;
        let refusal = mailkey.refusal("imap", 1).await;
        assert_eq!(refusal["code"], "PROXY-SIGN-IN", "{refusal}");
        assert!(refusal["message"].as_str().unwrap().contains(code), "{refusal}");
    }
}

#[tokio::test]
async fn each_host_goes_through_its_own_proxy_and_exceptions_go_straight() {
    let office = office().await;
    let squid = Squid::start(SquidPlan::default()).await;
    let (_process, _folder, socks) = socks(&[]).await;
    let sections = format!(
        "outbound-proxy:\n  - {{url: 'http://127.0.0.1:{}', use-for: [identity, ews, mail], for: [microsoftonline.com, {SMTP}]}}\n  \
         - {{url: 'socks5h://127.0.0.1:{socks}', use-for: [ews, mail]}}\n",
        squid.port
    );
    let mailkey = mailkey(&office, sections).await;
    mailkey.serves_everything(&[]).await;
    drop(mailkey);
    let expected = [
        format!("{LOGIN}:{}", office.authority().port()),
        format!("{SMTP}:{}", office.smtp().port()),
        format!("{SMTP}:{}", office.smtp_implicit().port()),
    ];
    corporate::until("Squid's log", || squid.connects().len() >= 3).await;
    for (target, ..) in squid.connects() {
        assert!(expected.contains(&target), "{target} went through Squid");
    }

    // by address and past the proxy, which is closed
    let sections = through(&format!("http://127.0.0.1:{}", free_port()), ", no-proxy: [127.0.0.0/8]");
    let plan = Plan { sections, host: Some("127.0.0.1"), ..Plan::default() };
    Mailkey::start(&office, plan).await.serves_everything(&[]).await;
}

#[test]
fn what_the_page_on_networks_shows_is_valid_and_its_codes_exist() {
    let page = include_str!("../docs/networks.md");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "secret\n").unwrap();
    let mode: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    let mut seen = 0;
    for block in page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        let lines = block.lines().map(|line| match line.split_once("-file:") {
            Some((key, _)) => format!("{key}-file: {}\n", file.display()),
            None => format!("{line}\n"),
        });
        let whole = format!(
            "oauth: {{client-id: 11111111-2222-3333-4444-555555555555}}\n\
             listeners: [{{name: imap, protocol: imap, listen: '127.0.0.1:1143'}}]\n{}",
            lines.collect::<String>()
        );
        mailkey::config::parse(&whole, "networks.md", folder.path(), &|_| None)
            .unwrap_or_else(|problems| panic!("{problems}\nin\n{whole}"));
        seen += 1;
    }
    assert_eq!(seen, 3);
    let sources: String = crate::house::sources().into_iter().map(|(_, text)| text).collect();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let codes = rows.iter().flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    let codes: Vec<&str> = codes.collect();
    assert!(codes.len() > 15, "{codes:?}");
    for code in codes {
        assert!(sources.contains(&format!("\"{code}\"")), "{code}");
    }
}
