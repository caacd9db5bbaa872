//! `mailkey check`: what would run with this configuration file, or everything that is wrong with it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::out::Out;
use super::privileges::Identity;
use crate::config::model::{
    Account, Admin, BackTls, ClientAuth, Config, EnvelopeSender, FrontTls, KeySource, Listener,
    OutboundProxy, Protocol, ProxyAuth, Sasl, TlsVersion, Upstream, UserPattern,
};
use crate::explain::Explain as _;

/// The exit code where the file has problems: nothing would start.
pub const EXIT_PROBLEMS: u8 = 2;

/// Prints what would run, with the remarks, or all problems. No network is touched.
pub fn check(path: &Path, out: &mut Out) -> ExitCode {
    check_with(path, &|name| std::env::var(name).ok(), out)
}

/// The same with an environment of one's own.
pub fn check_with(path: &Path, env: &dyn Fn(&str) -> Option<String>, out: &mut Out) -> ExitCode {
    match crate::config::load(path, env) {
        Ok(loaded) => {
            let name = path.display().to_string();
            out.line(describe(&loaded.config));
            for remark in &loaded.remarks {
                out.line(remark.in_file(&name));
            }
            if let Err(error) = Identity::of(&loaded.config.run) {
                let story = error.explain();
                out.error(format_args!("{name}: {}; {}", story.what, story.remedy));
                return ExitCode::from(EXIT_PROBLEMS);
            }
            out.line(format_args!("{name} is in order"));
            ExitCode::SUCCESS
        }
        Err(problems) => {
            out.error(problems);
            ExitCode::from(EXIT_PROBLEMS)
        }
    }
}

/// What would run, for an administrator to read. No secret stands in it.
pub fn describe(config: &Config) -> String {
    let mut text = String::from("listeners\n");
    for one in &config.listeners {
        listener(&mut text, one);
    }
    text.push('\n');
    for proxy in &config.outbound_proxies {
        outbound_proxy(&mut text, proxy);
    }
    if config.outbound_proxies.is_empty() {
        line(&mut text, "outbound proxy", "none");
    }
    settings(&mut text, config);
    text
}

fn listener(text: &mut String, listener: &Listener) {
    let listen = listener.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let front = match listener.tls {
        FrontTls::Off => "clear text",
        FrontTls::StartTls => "STARTTLS",
        FrontTls::Implicit => "TLS",
    };
    let upstream = match &listener.upstream {
        Upstream::Http(url) => url.to_string(),
        Upstream::Mail(server) => {
            let back = match server.tls {
                BackTls::Implicit => "TLS",
                BackTls::StartTls => "STARTTLS",
            };
            format!("{}:{} ({back})", server.host, server.port)
        }
    };
    let (name, protocol) = (&listener.name, listener.protocol);
    add(text, format_args!("  {name}: {protocol} on {listen} ({front}) -> {upstream}"));
    if !listener.allow_from.is_empty() {
        let from = listener.allow_from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        add(text, format_args!("    only from {from}"));
    }
    if !listener.proxy_protocol_from.is_empty() {
        let from =
            listener.proxy_protocol_from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        add(text, format_args!("    PROXY protocol, and nothing else, from {from}"));
    }
    if let Some(fixed) = &listener.fixed_account {
        let mailbox = fixed.account.mailbox_for(&fixed.user, listener.protocol);
        let sender = match fixed.envelope_sender {
            EnvelopeSender::Keep => "its own sender",
            EnvelopeSender::Mailbox => "that as its sender",
        };
        add(text, format_args!("    without a login: {} as {mailbox}, with {sender}", fixed.user));
    }
    if let Some(url) = &listener.ews.public_url {
        add(text, format_args!("    reached at {url}"));
    }
    if listener.ews.activesync {
        add(text, format_args!("    with ActiveSync"));
    }
    for one in &listener.accounts {
        account(text, listener, one);
    }
    if listener.accounts.is_empty() {
        add(text, format_args!("    no account: nobody gets in"));
    }
}

fn account(text: &mut String, listener: &Listener, account: &Account) {
    let application = &account.application;
    let grants = application.grants.iter().map(|grant| grant.as_str()).collect::<Vec<_>>().join(", then ");
    let proof = match &application.client_auth {
        ClientAuth::Public => "a public client",
        ClientAuth::Secret(_) => "with a client secret",
        ClientAuth::Certificate { .. } => "with a certificate",
        ClientAuth::FederatedTokenFile(_) => "with a federated token",
    };
    let sasl = match application.sasl {
        Sasl::Xoauth2 => "XOAUTH2",
        Sasl::OauthBearer => "OAUTHBEARER",
        Sasl::Auto => "XOAUTH2 or OAUTHBEARER, as upstream offers",
    };
    add(text, format_args!("    {}", account.user.as_str()));
    add(text, format_args!("      grant      {grants}, at {}", application.endpoints.authority));
    add(text, format_args!("      client     {} ({proof})", application.client_id));
    if let Some(resource) = &application.endpoints.v1_resource {
        add(text, format_args!("      resource   {resource}"));
    } else {
        for protocol in listener.uses() {
            let grants = application.grants.iter();
            let mut scopes: Vec<String> =
                grants.map(|grant| application.scope_for(protocol, *grant)).collect();
            scopes.dedup();
            let scopes = scopes.join(", then ");
            if protocol == listener.protocol {
                add(text, format_args!("      scope      {scopes}"));
            } else if application.scope.is_none() && application.has_users() {
                add(text, format_args!("                 {scopes} for ActiveSync"));
            }
        }
    }
    let same = "as the client signs in";
    if let Some(login) = &account.login {
        add(text, format_args!("      login      {login}"));
    }
    let mailbox =
        account.mailbox_template(listener.protocol).map_or_else(|| same.to_owned(), ToString::to_string);
    if listener.protocol == Protocol::Ews {
        add(text, format_args!("      mailbox    {mailbox}"));
        if application.is_app_only() {
            let also = account.ews_mailboxes.iter().map(UserPattern::as_str).collect::<Vec<_>>();
            let named = if also.is_empty() { "itself".to_owned() } else { also.join(", ") };
            add(text, format_args!("      impersonates {named}"));
        }
    } else {
        add(text, format_args!("      mailbox    {mailbox}, by {sasl}"));
    }
    let checks = match account.password_hashes.len() {
        0 if application.grants.iter().all(|grant| grant.checks_password()) => {
            "by the identity provider".to_owned()
        }
        0 => "never taken: there is no hash, and only listed addresses reach this account".to_owned(),
        1 => "here, against one hash".to_owned(),
        many => format!("here, against {many} hashes"),
    };
    add(text, format_args!("      password   checked {checks}"));
}

fn outbound_proxy(text: &mut String, proxy: &OutboundProxy) {
    let socks = proxy.url.scheme() == "socks5h";
    let auth = match proxy.auth {
        ProxyAuth::Auto if socks => "what it asks for: basic",
        ProxyAuth::Auto if cfg!(feature = "negotiate") => "what it asks for: negotiate, ntlm or basic",
        ProxyAuth::Auto => "what it asks for: ntlm or basic; this build has no negotiate",
        ProxyAuth::None => "none",
        ProxyAuth::Basic => "basic",
        ProxyAuth::Ntlm => "ntlm",
        ProxyAuth::Negotiate => "negotiate",
    };
    let named =
        [("identity", proxy.use_for.identity), ("ews", proxy.use_for.ews), ("mail", proxy.use_for.mail)];
    let named: Vec<&str> = named.iter().filter(|(_, used)| *used).map(|(name, _)| *name).collect();
    let who = proxy.username.as_deref().unwrap_or("nobody");
    let what = format!("{} for {}, as {who} (auth: {auth})", proxy.url, named.join(", "));
    line(text, "outbound proxy", &what);
    for (label, rules) in [("only to", &proxy.hosts), ("but not to", &proxy.no_proxy)] {
        if !rules.is_empty() {
            let rules = rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            line(text, "", &format!("{label} {rules}"));
        }
    }
}

fn settings(text: &mut String, config: &Config) {
    let version = match config.tls.minimum_version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    };
    let certificate = match &config.tls.certificate_file {
        Some(file) => format!("certificate {}", file.display()),
        None => "no certificate".to_owned(),
    };
    let roots = match &config.tls.extra_roots_file {
        Some(file) => format!(", extra roots {}", file.display()),
        None => String::new(),
    };
    let quantum = if config.tls.post_quantum { ", post-quantum key exchange" } else { "" };
    let client = match &config.tls.client_certificate_file {
        Some(file) => format!(", client certificate {}", file.display()),
        None => String::new(),
    };
    line(text, "tls", &format!("{version} or newer, {certificate}{roots}{quantum}{client}"));
    let key = match &config.tokens.key {
        Some(KeySource::File(file)) => format!(", key in {}", file.display()),
        Some(KeySource::Value(_)) => ", key given".to_owned(),
        None => String::new(),
    };
    let margin = spell(config.tokens.refresh_margin);
    line(text, "tokens", &format!("{}{key}, renewed {margin} ahead", config.tokens.store));
    let guard = &config.guard;
    line(
        text,
        "guard",
        &format!(
            "{} wrong passwords per user in {}, each held for {}, tarpit {}",
            guard.wrong_passwords_per_user,
            spell(guard.budget_window),
            spell(guard.wrong_password_hold),
            spell(guard.tarpit)
        ),
    );
    let limits = &config.limits;
    line(
        text,
        "limits",
        &format!(
            "{} sessions, {} per user, per mailbox {} SMTP, {} IMAP and {} POP3, waiting for one {}, login {}, connect {}, idle {}, drain {}, {} refusals",
            limits.sessions,
            limits.sessions_per_user,
            limits.smtp_sessions_per_mailbox,
            limits.imap_sessions_per_mailbox,
            limits.pop3_sessions_per_mailbox,
            spell(limits.wait_for_session),
            spell(limits.login_timeout),
            spell(limits.connect_timeout),
            spell(limits.idle_timeout),
            spell(limits.drain_timeout),
            limits.refusals_per_session
        ),
    );
    let warm = match limits.warm_connections {
        0 => "off".to_owned(),
        most => format!("{most} per upstream at most, each for {}", spell(limits.warm_connection_age)),
    };
    line(text, "warm", &warm);
    let admin = match &config.admin {
        Some(Admin { listen }) => listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        None => "off".to_owned(),
    };
    line(text, "admin", &admin);
    line(text, "log", &config.log.level);
    let run = &config.run;
    if let Some(user) = &run.user {
        let group = run.group.as_ref().map(|group| format!(", group {group}")).unwrap_or_default();
        line(text, "user", &format!("{user}{group}, once the ports are open"));
    }
    if let Some(file) = &run.pid_file {
        line(text, "pid file", &file.display().to_string());
    }
    if run.reload_on_change {
        line(text, "reload", "when a file has changed");
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    add(text, format_args!("{name:<15} {value}"));
}

fn add(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{what}");
}

/// `1h30m`, as it could stand in the file.
fn spell(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let mut spelled = String::new();
    let mut rest = milliseconds;
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= size {
            let _written = write!(spelled, "{}{unit}", rest / size);
            rest %= size;
        }
    }
    if spelled.is_empty() { "0s".to_owned() } else { spelled }
}
