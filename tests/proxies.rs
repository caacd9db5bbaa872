//! Through real corporate proxies: Squid with Basic, NTLM (Samba checks the password) and Kerberos, and SOCKS5.

use std::process::Command;

use mailkey::simulator::Simulator;

use self::corporate::{
    LOGIN, Mailkey, OUTLOOK, PROXY_PASSWORD, Plan, SMTP, Squid, SquidPlan, basic, free_port, listening,
    office, open_folder, signed_in, spawn, through, write_hosts,
};

pub mod corporate;
mod faults;
mod namespaces;

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
         mount -t tmpfs none /run/samba\n\
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
