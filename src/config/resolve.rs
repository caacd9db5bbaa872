//! From the tree to what the program runs on: every section, every default, and the rules between them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use ipnet::IpNet;
use url::Url;

use super::model::{
    Account, Admin, Application, BackTls, Config, EnvelopeSender, EwsSettings, FixedAccount, FrontTls, Grant,
    Guard, KeySource, Limits, Listener, Log, LogFormat, MailServer, Protocol, Run, Store, Template, Tls,
    TlsVersion, Tokens, Upstream, UserPattern,
};
use super::oauth::{self, Cloud, OAuth, Provider};
use super::problem::nearest;
use super::proxy;
use super::raw::{Kind, Node, Place};
use super::read::{At, Reader, Section, is_harmless, is_loopback, shown};
use crate::secret::{MAX_USER, Secret};

pub(super) const TOP_KEYS: [&str; 12] = [
    "oauth",
    "listeners",
    "accounts",
    "accounts-only",
    "outbound-proxy",
    "tls",
    "tokens",
    "guard",
    "limits",
    "admin",
    "log",
    "run",
];

pub(super) const LISTENER_KEYS: [&str; 15] = [
    "name",
    "protocol",
    "listen",
    "tls",
    "allow-insecure",
    "upstream",
    "upstream-tls",
    "token-expiry-margin-time",
    "allow-from",
    "proxy-protocol-from",
    "fixed-account",
    "envelope-sender",
    "public-url",
    "activesync",
    "oauth",
];

pub(super) const ACCOUNT_KEYS: [&str; 9] = [
    "user",
    "login",
    "mailbox",
    "mailbox-smtp",
    "ews-mailboxes",
    "password",
    "password-file",
    "password-hash",
    "password-hash-file",
];
pub(super) const TLS_KEYS: [&str; 7] = [
    "certificate-file",
    "key-file",
    "extra-roots-file",
    "minimum-version",
    "post-quantum",
    "client-certificate-file",
    "client-key-file",
];
pub(super) const TOKEN_KEYS: [&str; 6] =
    ["store", "store-password", "store-password-file", "key", "key-file", "refresh-margin"];
pub(super) const GUARD_KEYS: [&str; 4] =
    ["wrong-password-hold", "wrong-passwords-per-user", "budget-window", "tarpit"];
pub(super) const LIMIT_KEYS: [&str; 13] = [
    "sessions",
    "sessions-per-user",
    "smtp-sessions-per-mailbox",
    "imap-sessions-per-mailbox",
    "pop3-sessions-per-mailbox",
    "wait-for-session",
    "warm-connections",
    "warm-connection-age",
    "login-timeout",
    "connect-timeout",
    "idle-timeout",
    "drain-timeout",
    "refusals-per-session",
];

pub(super) const RUN_KEYS: [&str; 6] =
    ["user", "group", "pid-file", "reload-on-change", "bind-retry", "threads"];
pub(super) const ADMIN_KEYS: [&str; 1] = ["listen"];
pub(super) const LOG_KEYS: [&str; 3] = ["level", "format", "otlp-endpoint"];

/// How long Exchange waits for a login.
const EXCHANGE_PATIENCE: Duration = Duration::from_mins(1);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Whether a value of a key may be shown in a message: the key is known and holds no secret, and the value is
/// none in disguise. With an empty value: whether anything below the key may be shown.
pub(super) fn shows(key: &str, value: &str) -> bool {
    const SECRET: [&str; 5] = ["client-secret", "password", "password-hash", "key", "store-password"];
    const SECTIONS: [&str; 8] =
        ["oauth", "outbound-proxy", "tokens", "guard", "limits", "admin", "log", "run"];
    const ADDRESSES: [&str; 7] =
        ["user", "login", "mailbox", "mailbox-smtp", "ews-mailboxes", "fixed-account", "username"];
    let known: [&[&str]; 12] = [
        &TOP_KEYS,
        &LISTENER_KEYS,
        &ACCOUNT_KEYS,
        &TLS_KEYS,
        &TOKEN_KEYS,
        &GUARD_KEYS,
        &LIMIT_KEYS,
        &RUN_KEYS,
        &proxy::KEYS,
        &oauth::KEYS,
        &ADMIN_KEYS,
        &LOG_KEYS,
    ];
    let is_address = ADDRESSES.contains(&key) && !value.contains([':', '/']);
    // `client-secret:…` without the blank behind the `:` is the value of what stands above it.
    let disguised = SECTIONS.contains(&key) && !matches!(value, "" | "off" | "none")
        || !is_address && !is_harmless(value);
    !SECRET.contains(&key) && !disguised && known.iter().any(|keys| keys.contains(&key))
}

/// A listener as it was read, before accounts are dealt out.
struct Draft {
    name: At<String>,
    protocol: Protocol,
    listen: Vec<At<SocketAddr>>,
    tls: FrontTls,
    upstream: Upstream,
    allow_from: Vec<IpNet>,
    proxy_protocol_from: Vec<IpNet>,
    fixed_account: Option<At<String>>,
    envelope_sender: EnvelopeSender,
    token_expiry_margin: Duration,
    ews: EwsSettings,
    oauth: OAuth,
}

/// An account as it was read.
struct Entry {
    user: At<UserPattern>,
    login: Option<Template>,
    mailbox: Option<Template>,
    mailbox_smtp: Option<Template>,
    password: Option<At<Secret>>,
    ews_mailboxes: Vec<UserPattern>,
    password_hashes: Vec<String>,
    /// Hashes stand in the file, though perhaps none that could be read.
    guarded: bool,
    oauth: OAuth,
}

/// Resolves the whole file. `None` only where something was noted as a problem.
pub(super) fn resolve(reader: &Reader<'_>, root: &Node) -> Option<Config> {
    let top = reader.section(root, "", &TOP_KEYS)?;
    let oauth_section = top.get("oauth").and_then(|node| reader.section(node, "oauth", &oauth::KEYS));
    let oauth = oauth_section.as_ref().map(|section| OAuth::read(reader, section)).unwrap_or_default();
    let oauth_at = top.key_at("oauth").unwrap_or_default();

    let drafts = drafts(reader, &top, &oauth);
    let entries = entries(reader, &top);
    let only = top.get("accounts-only").and_then(|node| reader.flag(node)).unwrap_or(false);
    if let (true, true, Some(at)) = (only, entries.is_empty(), top.key_at("accounts-only")) {
        reader.problem(
            at,
            "`accounts-only` without `accounts` lets nobody in",
            "add `accounts`, or remove it",
        );
    }
    let admin = admin(reader, &top);
    check_ports(reader, &drafts, admin.as_ref());
    let tls = tls(reader, top.get("tls"));
    check_front_tls(reader, &top);

    let fixed = drafts.iter().filter(|draft| !draft.allow_from.is_empty());
    let fixed = fixed.filter_map(|draft| Some(draft.fixed_account.as_ref()?.value.to_lowercase())).collect();
    let dealt = Dealing { reader, top: &oauth, at: oauth_at, entries: &entries, only, fixed };
    let mut applications = Vec::new();
    let mut listeners = Vec::new();
    if drafts.is_empty() {
        dealt.examine();
    }
    dealt.remark_on_passwords(&drafts);
    for draft in drafts {
        let accounts = dealt.accounts(&draft, &mut applications);
        let fixed_account = dealt.fixed_account(&draft, &accounts);
        listeners.push(Arc::new(Listener {
            name: draft.name.value,
            protocol: draft.protocol,
            listen: draft.listen.into_iter().map(|address| address.value).collect(),
            tls: draft.tls,
            upstream: draft.upstream,
            allow_from: draft.allow_from,
            proxy_protocol_from: draft.proxy_protocol_from,
            fixed_account,
            token_expiry_margin: draft.token_expiry_margin,
            ews: draft.ews,
            accounts,
        }));
    }
    let mut tokens = tokens(reader, top.get("tokens"));
    tokens.extra_roots_file.clone_from(&tls.extra_roots_file);
    remark_on_sign_ins(reader, &top, &tokens, &applications);
    let early = [&oauth].into_iter().chain(entries.iter().map(|entry| &entry.oauth));
    let early = early.map(OAuth::cloud).any(Cloud::locks_out_early);
    Some(Config {
        listeners,
        outbound_proxies: proxy::outbound(reader, top.get("outbound-proxy")),
        tls,
        tokens,
        guard: guard(reader, top.get("guard"), early),
        limits: limits(reader, top.get("limits")),
        admin: admin
            .map(|listen| Admin { listen: listen.into_iter().map(|address| address.value).collect() }),
        log: log(reader, top.get("log")),
        run: run(reader, top.get("run")),
    })
}

/// A sign-in ahead has to be kept somewhere.
fn remark_on_sign_ins(
    reader: &Reader<'_>,
    top: &Section<'_>,
    tokens: &Tokens,
    applications: &[Arc<Application>],
) {
    let mut grants = applications.iter().flat_map(|application| &application.grants);
    let grant = grants.find(|grant| matches!(grant, Grant::DeviceCode | Grant::AuthorizationCode));
    if let (Store::Memory, Some(grant)) = (&tokens.store, grant) {
        let at = top.key_at("tokens").or(top.key_at("oauth")).unwrap_or_default();
        reader.remark(
            at,
            format!(
                "nothing would be kept of `mailkey login`, which `grant: {}` needs: `tokens.store` is `memory`",
                grant.as_str()
            ),
            "set `store: file:/var/lib/mailkey/tokens` and `key-file` under `tokens`",
        );
    }
}

fn drafts(reader: &Reader<'_>, top: &Section<'_>, oauth: &OAuth) -> Vec<Draft> {
    let nodes = match top.get("listeners").map(|node| (&node.kind, node)) {
        Some((Kind::List(items), _)) => items.as_slice(),
        Some((Kind::Null, _)) | None => &[],
        Some((Kind::Scalar(_) | Kind::Map(_), node)) => {
            let what = format!("expected a list of listeners, found {}", shown(node));
            reader.problem(node.at, what, "write `- name: …` for each of them");
            return Vec::new();
        }
    };
    if nodes.is_empty() {
        let at = top.key_at("listeners").unwrap_or_default();
        reader.problem(at, "there are no `listeners`", "add one: name, protocol, listen");
    }
    let mut names: Vec<At<String>> = Vec::new();
    let mut drafts = Vec::new();
    for node in nodes {
        let Some(draft) = draft(reader, node, oauth, &mut names) else { continue };
        drafts.push(draft);
    }
    drafts
}

/// What `- name: …` needs; all that is optional is read by [`draft`].
fn draft(reader: &Reader<'_>, node: &Node, top: &OAuth, names: &mut Vec<At<String>>) -> Option<Draft> {
    let section = reader.section(node, "listeners", &LISTENER_KEYS)?;
    let name = section.get("name").and_then(|node| {
        reader.parse(node, "a name of letters, digits, `-`, `_` and `.`", |text| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if text.bytes().all(plain) && text.len() <= 64 { Ok(text.to_owned()) } else { Err(String::new()) }
        })
    });
    if let Some(name) = &name {
        if let Some(first) = names.iter().find(|known| known.value == name.value) {
            let what =
                format!("the name `{}` is taken by the listener on line {}", name.value, first.at.line);
            reader.problem(name.at, what, "give each listener a name of its own");
        }
        names.push(name.clone());
    }
    let protocol = section.get("protocol").and_then(|node| {
        let choices =
            [Protocol::Imap, Protocol::Pop3, Protocol::Smtp, Protocol::Ews].map(|p| (p.as_str(), p));
        reader.one_of(node, &choices)
    });
    let listen = section.get("listen").map(|node| reader.addresses(node)).unwrap_or_default();
    for (key, example) in [("name", "imap"), ("protocol", "imap"), ("listen", "127.0.0.1:1143")] {
        if section.get(key).is_none() {
            let what = format!("`{key}` is missing in this listener");
            reader.problem(section.at, what, format!("add it, e.g. `{key}: {example}`"));
        }
    }
    let oauth = section
        .get("oauth")
        .and_then(|node| reader.section(node, "oauth", &oauth::KEYS))
        .map(|section| OAuth::read(reader, &section))
        .unwrap_or_default();
    let tls = front_tls(reader, &section, protocol.as_ref(), &listen);
    let allow_from = networks(reader, &section, "allow-from");
    let proxy_protocol_from = networks(reader, &section, "proxy-protocol-from");
    let fixed_account = fixed_account(reader, &section, protocol.as_ref());
    let envelope_sender = envelope_sender(reader, &section);
    let margin = section.get("token-expiry-margin-time");
    let token_expiry_margin = margin.and_then(|node| reader.duration(node)).unwrap_or(5 * MINUTE);
    let protocol = protocol?.value;
    if let (Some(at), false) = (section.key_at("token-expiry-margin-time"), protocol == Protocol::Smtp) {
        reader.remark(at, "`token-expiry-margin-time` has a meaning for `protocol: smtp` only", "remove it");
    }
    let ews = ews(reader, &section, protocol, tls);
    let upstream = upstream(reader, &section, protocol, &oauth.over(top))?;
    Some(Draft {
        name: name?,
        protocol,
        listen,
        tls,
        upstream,
        allow_from,
        proxy_protocol_from,
        fixed_account,
        envelope_sender,
        token_expiry_margin,
        ews,
        oauth,
    })
}

/// What only EWS listeners have.
fn ews(reader: &Reader<'_>, section: &Section<'_>, protocol: Protocol, tls: FrontTls) -> EwsSettings {
    for key in ["public-url", "activesync"] {
        if let (Some(at), false) = (section.key_at(key), protocol == Protocol::Ews) {
            reader.problem(at, format!("`{key}` has a meaning for `protocol: ews` only"), "remove it");
        }
    }
    let public_url = section.get("public-url").and_then(|node| {
        let url = reader.url(node, &["https", "http"])?;
        if url.value.path() != "/" || url.value.query().is_some() || url.value.fragment().is_some() {
            reader.problem(
                url.at,
                "`public-url` is scheme, host and port of this listener, and nothing behind them",
                "cut it off behind the host, like `https://mail.contoso.com`",
            );
            return None;
        }
        if url.value.scheme() == "http" && tls.is_implicit() {
            reader.problem(
                url.at,
                "this listener speaks TLS, and `public-url` names it without",
                "write `https://` in `public-url`",
            );
            return None;
        }
        Some(url.value)
    });
    let activesync = section.get("activesync").and_then(|node| reader.flag(node)).unwrap_or(false);
    EwsSettings { public_url, activesync }
}

fn front_tls(
    reader: &Reader<'_>,
    section: &Section<'_>,
    protocol: Option<&At<Protocol>>,
    listen: &[At<SocketAddr>],
) -> FrontTls {
    let choices =
        [("off", FrontTls::Off), ("starttls", FrontTls::StartTls), ("implicit", FrontTls::Implicit)];
    let written = section.get("tls").map(|node| reader.one_of(node, &choices));
    let allowed = section.get("allow-insecure").and_then(|node| reader.flag(node)).unwrap_or(false);
    let tls = match &written {
        Some(Some(tls)) => tls.value,
        Some(None) => return FrontTls::Implicit,
        None => FrontTls::Off,
    };
    if let (FrontTls::StartTls, Some(Protocol::Ews), Some(at)) =
        (tls, protocol.map(|protocol| protocol.value), section.key_at("tls"))
    {
        reader.problem(
            at,
            "`protocol: ews` has no STARTTLS",
            "write `tls: implicit`, or `tls: off` on loopback",
        );
    }
    let exposed = listen.iter().find(|address| !address.value.ip().is_loopback());
    if let (FrontTls::Off, false, Some(exposed)) = (tls, allowed, exposed) {
        reader.problem(
            exposed.at,
            format!(
                "passwords would cross the network in clear text: `{}` is no loopback address",
                exposed.value
            ),
            "write `tls: implicit` or `tls: starttls` in this listener, or listen on 127.0.0.1, or accept it \
             with `allow-insecure: true`",
        );
    }
    tls
}

/// A list of networks. Empty, as after everything in it was commented out, it would mean everybody.
fn networks(reader: &Reader<'_>, section: &Section<'_>, key: &'static str) -> Vec<IpNet> {
    let Some(node) = section.get(key) else { return Vec::new() };
    let names_nobody = match &node.kind {
        Kind::Null => true,
        Kind::List(items) => items.is_empty(),
        Kind::Scalar(_) | Kind::Map(_) => false,
    };
    if names_nobody {
        let what = format!("`{key}` names nobody");
        reader.problem(node.at, what, "name addresses and networks, or remove the key");
    }
    reader.networks(node)
}

fn fixed_account(
    reader: &Reader<'_>,
    section: &Section<'_>,
    protocol: Option<&At<Protocol>>,
) -> Option<At<String>> {
    let user = section.get("fixed-account").and_then(|node| {
        reader.parse(node, "a user name", |text| {
            if text.contains('*') || text.chars().any(char::is_control) || text.len() > MAX_USER {
                Err("write one user name, without `*`".to_owned())
            } else {
                Ok(text.to_owned())
            }
        })
    })?;
    if section.get("allow-from").is_none() {
        reader.problem(
            user.at,
            "`fixed-account` without `allow-from` lets everybody who reaches this port send as that account",
            "add `allow-from` with the addresses of the devices",
        );
    }
    if protocol.is_some_and(|protocol| protocol.value != Protocol::Smtp) {
        reader.problem(
            user.at,
            "`fixed-account` is for `protocol: smtp`: only there can a client go without a login",
            "remove it, and give the account a `password-hash`",
        );
    }
    Some(user)
}

fn envelope_sender(reader: &Reader<'_>, section: &Section<'_>) -> EnvelopeSender {
    let choices = [("keep", EnvelopeSender::Keep), ("mailbox", EnvelopeSender::Mailbox)];
    let Some(node) = section.get("envelope-sender") else { return EnvelopeSender::Keep };
    if section.get("fixed-account").is_none() {
        let at = section.key_at("envelope-sender").unwrap_or(node.at);
        reader.problem(
            at,
            "`envelope-sender` belongs to a listener with `fixed-account`",
            "remove it: who signs in names his own sender",
        );
    }
    reader.one_of(node, &choices).map_or(EnvelopeSender::Keep, |choice| choice.value)
}

fn upstream(
    reader: &Reader<'_>,
    section: &Section<'_>,
    protocol: Protocol,
    oauth: &OAuth,
) -> Option<Upstream> {
    let written = section.get("upstream");
    let default = default_upstream(oauth, protocol);
    if written.is_none() && default.is_none() {
        let what = format!("`upstream` is missing: this provider has no default for `{protocol}`");
        reader.problem(section.at, what, "write the mail server, like `upstream: imap.example.com:993`");
        return None;
    }
    if protocol == Protocol::Ews {
        if let Some(at) = section.key_at("upstream-tls") {
            reader.problem(
                at,
                "`upstream-tls` has no meaning for `protocol: ews`",
                "remove it: EWS is https",
            );
        }
        let mut url = match written {
            Some(node) => reader.url(node, &["https"])?.value,
            None => Url::parse(default?).ok()?,
        };
        url.set_path("/");
        url.set_query(None);
        url.set_fragment(None);
        return Some(Upstream::Http(url));
    }
    let (host, port) = match written {
        Some(node) => {
            let expected = "a mail server with its port, like `outlook.office365.com:993`";
            reader.parse(node, expected, host_and_port)?.value
        }
        None => host_and_port(default?).ok()?,
    };
    let choices = [("implicit", BackTls::Implicit), ("starttls", BackTls::StartTls)];
    let tls = match section.get("upstream-tls") {
        Some(node) => reader.one_of(node, &choices)?.value,
        None if matches!(port, 25 | 110 | 143 | 587) => BackTls::StartTls,
        None => BackTls::Implicit,
    };
    Some(Upstream::Mail(MailServer { host, port, tls }))
}

/// Where each cloud's mailboxes are ("Office 365 URLs and IP address ranges" of each).
fn default_upstream(oauth: &OAuth, protocol: Protocol) -> Option<&'static str> {
    let [imap, pop3, smtp, ews] = match (oauth.provider(), oauth.cloud()) {
        (Provider::Custom, _) => return None,
        (Provider::Google, _) => ["imap.gmail.com:993", "pop.gmail.com:995", "smtp.gmail.com:587", ""],
        (Provider::Office365, Cloud::Global) => [
            "outlook.office365.com:993",
            "outlook.office365.com:995",
            "smtp.office365.com:587",
            "https://outlook.office365.com/",
        ],
        (Provider::Office365, Cloud::UsGovGccHigh) => [
            "outlook.office365.us:993",
            "outlook.office365.us:995",
            "outlook.office365.us:587",
            "https://outlook.office365.us/",
        ],
        (Provider::Office365, Cloud::UsGovDod) => [
            "outlook-dod.office365.us:993",
            "outlook-dod.office365.us:995",
            "outlook-dod.office365.us:587",
            "https://outlook-dod.office365.us/",
        ],
        (Provider::Office365, Cloud::China) => [
            "partner.outlook.cn:993",
            "partner.outlook.cn:995",
            "smtp.partner.outlook.cn:587",
            "https://partner.outlook.cn/",
        ],
    };
    let host = match protocol {
        Protocol::Imap => imap,
        Protocol::Pop3 => pop3,
        Protocol::Smtp => smtp,
        Protocol::Ews | Protocol::ActiveSync => ews,
    };
    (!host.is_empty()).then_some(host)
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    if text.contains("://") {
        return Err("write host and port without a scheme".to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or("write the port behind a `:`")?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or("write a port from 1 to 65535 behind the last `:`")?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| "write an IPv6 address in the brackets")?
            .to_string(),
        None if host.contains(':') => return Err("write IPv6 in brackets: `[2001:db8::1]:993`".to_owned()),
        None => match url::Host::parse(host).map_err(|_| "write a DNS name or an address before the `:`")? {
            url::Host::Domain(name) => name,
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        },
    };
    Ok((host, port))
}

/// Two listeners, or a listener and the status page, that want the same port of the same address.
fn check_ports(reader: &Reader<'_>, drafts: &[Draft], admin: Option<&Vec<At<SocketAddr>>>) {
    let mut taken: Vec<(&At<SocketAddr>, &str)> = Vec::new();
    let listeners = drafts.iter().map(|draft| (draft.name.value.as_str(), &draft.listen));
    for (name, list) in listeners.chain(admin.map(|list| ("admin", list))) {
        let before = taken.len();
        for address in list {
            let clash = taken.iter().take(before).find(|(other, _)| overlap(other.value, address.value));
            match clash {
                // The status page has its place by default, so that the listener is what was written.
                Some((other, _)) if address.at.line == 0 => reader.problem(
                    other.at,
                    format!("`{}` is taken by the status page, on `{}`", other.value, address.value),
                    "take another port, or give the status page one with `admin: {listen: …}`",
                ),
                Some((other, owner)) => reader.problem(
                    address.at,
                    format!("`{}` is taken by `{owner}` on line {}", address.value, other.at.line),
                    "give each of them a port of its own",
                ),
                None => {}
            }
            taken.push((address, name));
        }
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let all_of = |any: IpAddr, other: IpAddr| any.is_unspecified() && any.is_ipv4() == other.is_ipv4();
    let dual = |any: IpAddr| any.is_unspecified() && any.is_ipv6();
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip()
            || all_of(a.ip(), b.ip())
            || all_of(b.ip(), a.ip())
            || dual(a.ip())
            || dual(b.ip()))
}

/// Listeners that speak TLS need a certificate.
fn check_front_tls(reader: &Reader<'_>, top: &Section<'_>) {
    let has_any = matches!(top.get("tls").map(|node| &node.kind), Some(Kind::Map(pairs))
        if pairs.iter().any(|(key, _)| matches!(key.scalar(), Some("certificate-file" | "key-file"))));
    if has_any {
        // One without the other is complained about in its own section.
        return;
    }
    let Some(Kind::List(listeners)) = top.get("listeners").map(|node| &node.kind) else { return };
    for listener in listeners {
        let Kind::Map(pairs) = &listener.kind else { continue };
        let Some((_, value)) = pairs.iter().find(|(key, _)| key.scalar() == Some("tls")) else { continue };
        if let Some(word @ ("starttls" | "implicit")) = value.scalar() {
            reader.problem(
                value.at,
                format!("`tls: {word}` needs a certificate, and there is none"),
                "add `certificate-file` and `key-file` to the section `tls` at the top level",
            );
        }
    }
}

fn tls(reader: &Reader<'_>, node: Option<&Node>) -> Tls {
    let Some(section) = node.and_then(|node| reader.section(node, "tls", &TLS_KEYS)) else {
        return Tls { post_quantum: true, ..Tls::default() };
    };
    let pair = |certificate_key: &str, key_key: &str| {
        let (certificate, key) = (section.get(certificate_key), section.get(key_key));
        if let (Some(node), None) = (certificate, key) {
            let what = format!("`{certificate_key}` needs its key");
            reader.problem(node.at, what, format!("add `{key_key}`"));
        }
        if let (None, Some(node)) = (certificate, key) {
            let what = format!("`{key_key}` needs its certificate");
            reader.problem(node.at, what, format!("add `{certificate_key}`"));
        }
        let certificate = certificate.and_then(|node| reader.file(node)).map(|file| file.value);
        (certificate, key.and_then(|node| reader.private_file(node)).map(|file| file.value))
    };
    let (certificate_file, key_file) = pair("certificate-file", "key-file");
    let (client_certificate_file, client_key_file) = pair("client-certificate-file", "client-key-file");
    let version = section
        .get("minimum-version")
        .and_then(|node| reader.one_of(node, &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)]));
    Tls {
        certificate_file,
        key_file,
        client_certificate_file,
        client_key_file,
        extra_roots_file: section
            .get("extra-roots-file")
            .and_then(|node| reader.file(node))
            .map(|file| file.value),
        minimum_version: version.map(|version| version.value).unwrap_or_default(),
        post_quantum: section.get("post-quantum").and_then(|node| reader.flag(node)).unwrap_or(true),
    }
}

fn entries(reader: &Reader<'_>, top: &Section<'_>) -> Vec<Entry> {
    let nodes = match top.get("accounts").map(|node| (&node.kind, node)) {
        Some((Kind::List(items), _)) => items.as_slice(),
        Some((Kind::Null, _)) | None => &[],
        Some((Kind::Scalar(_) | Kind::Map(_), node)) => {
            let what = format!("expected a list of accounts, found {}", shown(node));
            reader.problem(node.at, what, "write `- user: …` for each of them");
            &[]
        }
    };
    let mut entries: Vec<Entry> = Vec::new();
    for node in nodes {
        let Some(entry) = entry(reader, node) else { continue };
        let hidden = entries
            .iter()
            .find(|earlier| earlier.user.value == entry.user.value || earlier.user.value.as_str() == "*");
        if let Some(earlier) = hidden {
            let what = format!("this account is never reached: line {} matches first", earlier.user.at.line);
            reader.remark(entry.user.at, what, "move it up, or remove it");
        }
        entries.push(entry);
    }
    entries
}

fn entry(reader: &Reader<'_>, node: &Node) -> Option<Entry> {
    let known: Vec<&'static str> = ACCOUNT_KEYS.iter().chain(&oauth::KEYS).copied().collect();
    let section = reader.section(node, "accounts", &known)?;
    if section.get("user").is_none() {
        reader.problem(
            section.at,
            "`user` is missing in this account",
            "add it, e.g. `user: \"*@contoso.com\"`",
        );
    }
    let user = section.get("user").and_then(|node| reader.text(node, "a user name, `*` for any characters"));
    let user = user.map(|user| At { value: UserPattern::new(&user.value), at: user.at });
    let stars = user.as_ref().map_or(usize::MAX, |user| user.value.stars());
    let template = |key: &str| {
        reader
            .parse(section.get(key)?, "a user name, `*` for what `*` in `user` stands for", |text| {
                if text.chars().any(char::is_control) {
                    return Err("write it without control characters".to_owned());
                }
                Template::new(text, stars)
            })
            .map(|template| template.value)
    };
    let (login, mailbox, mailbox_smtp) = (template("login"), template("mailbox"), template("mailbox-smtp"));
    let password = reader.secret(&section, "password");
    let ews_mailboxes = section.get("ews-mailboxes").map(|node| mailboxes(reader, node)).unwrap_or_default();
    let password_hashes = password_hashes(reader, &section);
    let oauth = OAuth::read(reader, &section);
    Some(Entry {
        user: user?,
        login,
        mailbox,
        mailbox_smtp,
        password,
        ews_mailboxes,
        password_hashes,
        guarded: section.get("password-hash").is_some() || section.get("password-hash-file").is_some(),
        oauth,
    })
}

/// Addresses, with `*` for any characters.
fn mailboxes(reader: &Reader<'_>, node: &Node) -> Vec<UserPattern> {
    let expected = "the address of a mailbox, `*` for any characters, or a list of them";
    let items = reader.list(node, expected);
    if items.is_empty() && !matches!(node.kind, Kind::Map(_)) {
        reader.problem(node.at, "`ews-mailboxes` names nobody", "name mailboxes, or remove the key");
    }
    let mut patterns = Vec::new();
    for item in items {
        let pattern = reader.parse(item, "the address of a mailbox, `*` for any characters", |text| {
            let (local, domain) = text.rsplit_once('@').ok_or("write it with its domain: `*@contoso.com`")?;
            if !text.is_ascii() || local.is_empty() || domain.is_empty() || text.contains(char::is_whitespace)
            {
                return Err("write it like `support@contoso.com` or `*@contoso.com`".to_owned());
            }
            Ok(UserPattern::new(text))
        });
        patterns.extend(pattern.map(|pattern| pattern.value));
    }
    patterns
}

fn password_hashes(reader: &Reader<'_>, section: &Section<'_>) -> Vec<String> {
    let mut hashes = Vec::new();
    let mut take = |at: Place, text: &str| match PasswordHash::new(text) {
        Ok(hash) if hash.algorithm.as_str() == "argon2id" && hash.hash.is_some() && hash.salt.is_some() => {
            hashes.push(text.to_owned());
        }
        _ => reader.problem(
            at,
            "this password hash cannot be read",
            "make one with `mailkey hash-password`, and copy it whole, from `$argon2id$` to its end",
        ),
    };
    if let (Some(_), Some(at)) = (section.get("password-hash"), section.key_at("password-hash-file")) {
        reader.both(at, "password-hash", "password-hash-file");
    }
    if let Some(node) = section.get("password-hash") {
        let items = reader.list(node, "an Argon2id hash, or a list of them");
        if items.is_empty() && !matches!(node.kind, Kind::Map(_)) {
            reader.problem(
                node.at,
                "expected an Argon2id hash, found nothing",
                "put one in, or remove the key",
            );
        }
        for item in items {
            if let Some(text) = reader.text(item, "an Argon2id hash") {
                take(item.at, text.value.trim());
            }
        }
    } else if let Some(node) = section.get("password-hash-file")
        && let Some(content) = reader.private_content(node)
    {
        let lines = content.value.expose().lines().map(str::trim).filter(|line| !line.is_empty());
        lines.for_each(|line| take(node.at, line));
    }
    hashes
}

/// Deals the accounts out to the listeners.
struct Dealing<'a> {
    reader: &'a Reader<'a>,
    top: &'a OAuth,
    /// The section `oauth`.
    at: Place,
    entries: &'a [Entry],
    /// Nobody but `entries`.
    only: bool,
    /// Who comes without a password, from listed addresses.
    fixed: Vec<String>,
}

impl Dealing<'_> {
    /// The accounts as one listener sees them. Equal applications are one.
    fn accounts(&self, draft: &Draft, applications: &mut Vec<Arc<Application>>) -> Vec<Arc<Account>> {
        let reader = self.reader;
        let listeners = draft.oauth.over(self.top);
        let activesync = draft.ews.activesync.then_some(Protocol::ActiveSync);
        for (at, permission) in
            [draft.protocol].into_iter().chain(activesync).filter_map(|used| listeners.leaves_out(used))
        {
            reader.remark(
                at,
                format!("this scope leaves out `{permission}`, which listener `{}` needs", draft.name.value),
                "add it, or remove `scope`: each protocol then asks for its own",
            );
        }
        let mut accounts = Vec::new();
        let everybody = self.everybody();
        let last = self.has_everybody().then_some(&everybody);
        for entry in self.entries.iter().chain(last) {
            let oauth = entry.oauth.over(&listeners);
            let Some(application) = oauth.application(reader, self.at) else { continue };
            // Without a hash nobody signs in to an account of devices; that it is open to them is what was written.
            let is_fixed = self.fixed.iter().any(|user| user == entry.user.value.as_str());
            if !is_fixed && !entry.guarded {
                self.check_password(entry, &oauth, &application);
            }
            if draft.protocol == Protocol::Ews {
                self.remark_on_impersonation(entry, &application, &draft.name.value);
            }
            let known = applications.iter().find(|known| ***known == application).map(Arc::clone);
            let application = known.unwrap_or_else(|| {
                let new = Arc::new(application);
                applications.push(Arc::clone(&new));
                new
            });
            accounts.push(Arc::new(Account {
                user: entry.user.value.clone(),
                login: entry.login.clone(),
                mailbox: entry.mailbox.clone(),
                mailbox_smtp: entry.mailbox_smtp.clone(),
                ews_mailboxes: entry.ews_mailboxes.clone(),
                application,
                password_hashes: entry.password_hashes.clone(),
                password: entry.password.as_ref().map(|password| password.value.clone()),
                vouched: false,
            }));
        }
        accounts
    }

    /// Over EWS a token of the application is used in another way than a user's.
    fn remark_on_impersonation(&self, entry: &Entry, application: &Application, listener: &str) {
        if application.is_app_only() {
            return;
        }
        if application.grants.iter().any(|grant| grant.is_app_only()) {
            self.reader.remark(
                entry.user.at,
                format!("this account is not served by `{listener}`: its grants give now a user's token, now the application's own"),
                "set one `grant` for the account, or in the `oauth` section of the EWS listener",
            );
        } else if !entry.ews_mailboxes.is_empty() {
            self.reader.remark(
                entry.user.at,
                format!("`ews-mailboxes` has no meaning for this account at `{listener}`: its token is the user's, and Exchange decides"),
                "remove it, or set `grant: client-credentials`",
            );
        }
    }

    /// The account that the devices of a listener use: as for everybody, but nobody asks them for a password.
    fn fixed_account(&self, draft: &Draft, accounts: &[Arc<Account>]) -> Option<FixedAccount> {
        let user = draft.fixed_account.as_ref()?;
        let everybody = self.everybody();
        let last = self.has_everybody().then_some(&everybody);
        if !self.entries.iter().chain(last).any(|entry| entry.user.value.matches(&user.value)) {
            let what = format!("no account matches `fixed-account: {}`", user.value);
            self.reader.problem(user.at, what, "add it to `accounts`");
        }
        let account = accounts.iter().find(|account| account.user.matches(&user.value))?;
        if account.application.grants.contains(&Grant::Password) && account.password.is_none() {
            self.reader.problem(
                user.at,
                format!("the devices send no password, and `grant: password` of `{}` needs one", user.value),
                "add `password-file` to that account, or give it `grant: client-credentials`",
            );
        }
        let account = Arc::new(Account { vouched: true, ..Account::clone(account) });
        Some(FixedAccount { user: user.value.clone(), account, envelope_sender: draft.envelope_sender })
    }

    /// A password that nobody would use.
    fn remark_on_passwords(&self, drafts: &[Draft]) {
        for entry in self.entries {
            let Some(password) = &entry.password else { continue };
            let mut fixed = drafts.iter().filter_map(|draft| draft.fixed_account.as_ref());
            if !fixed.any(|user| entry.user.value.matches(&user.value)) {
                self.reader.remark(
                    password.at,
                    "this password is used by no listener: who signs in brings his own",
                    "remove it, or name the account in the `fixed-account` of a listener",
                );
            }
        }
    }

    /// What is wrong with `oauth` and the accounts, where no listener could be read.
    fn examine(&self) {
        let everybody = self.everybody();
        for entry in self.entries.iter().chain(self.has_everybody().then_some(&everybody)) {
            let oauth = entry.oauth.over(self.top);
            if let Some(application) = oauth.application(self.reader, self.at)
                && !entry.guarded
            {
                self.check_password(entry, &oauth, &application);
            }
        }
    }

    /// Whoever matches no account is treated as `oauth` says.
    fn everybody(&self) -> Entry {
        Entry {
            user: At { value: UserPattern::new("*"), at: self.at },
            login: None,
            mailbox: None,
            mailbox_smtp: None,
            password: None,
            ews_mailboxes: Vec::new(),
            password_hashes: Vec::new(),
            guarded: false,
            oauth: OAuth::default(),
        }
    }

    fn has_everybody(&self) -> bool {
        !self.only && !self.entries.iter().any(|entry| entry.user.value.as_str() == "*")
    }

    /// Where the identity provider does not see the password, somebody else has to check it.
    fn check_password(&self, entry: &Entry, oauth: &OAuth, application: &Application) {
        let Some(grant) = application.grants.iter().find(|grant| !grant.checks_password()) else { return };
        let pattern = entry.user.value.as_str();
        let whose = match (&entry.mailbox, pattern.contains('*')) {
            (Some(mailbox), false) => format!("the mailbox `{mailbox}`"),
            (None, false) => format!("the mailbox `{pattern}`"),
            (None, true) if pattern == "*" => "every mailbox that the application may open".to_owned(),
            (_, true) => format!("every mailbox of `{pattern}`"),
        };
        let at = if entry.user.at == self.at { oauth.grants_at().unwrap_or(self.at) } else { entry.user.at };
        self.reader.problem(
            at,
            format!(
                "{whose} would be open, with any password, to whoever reaches a listener: `grant: {}` does not \
                 check it",
                grant.as_str()
            ),
            if pattern == "*" && entry.user.at == self.at {
                "list users under `accounts`, each with a `password-hash`, and write `accounts-only: true`"
            } else {
                "add `password-hash`, made by `mailkey hash-password`"
            },
        );
    }
}

fn tokens(reader: &Reader<'_>, node: Option<&Node>) -> Tokens {
    let mut tokens =
        Tokens { store: Store::Memory, key: None, refresh_margin: 10 * MINUTE, extra_roots_file: None };
    let Some(section) = node.and_then(|node| reader.section(node, "tokens", &TOKEN_KEYS)) else {
        return tokens;
    };
    if let Some(margin) = section.get("refresh-margin").and_then(|node| reader.duration(node)) {
        tokens.refresh_margin = margin;
    }
    if let Some(store) = section.get("store").and_then(|node| store(reader, node)) {
        tokens.store = store;
    }
    if let Some(password) = reader.secret(&section, "store-password") {
        match &mut tokens.store {
            Store::Redis(url) if url.password().is_none() => {
                // Only a URL without a host refuses, and this one has one.
                let _refused = url.set_password(Some(password.value.expose()));
            }
            Store::Redis(_) => {
                reader.both(password.at, "store-password", "a password in the URL of the store");
            }
            Store::Memory | Store::File(_) => {
                reader.problem(password.at, "`store-password` belongs to a `redis://` store", "remove it");
            }
        }
    }
    if let (Some(_), Some(at)) = (section.get("key"), section.key_at("key-file")) {
        reader.both(at, "key", "key-file");
    }
    tokens.key = match (section.get("key"), section.get("key-file")) {
        (Some(node), _) => reader
            .text(node, "the store's key: 32 bytes as base64 or hex")
            .map(|key| KeySource::Value(Secret::new(key.value.as_str()))),
        (None, Some(node)) => reader.private_file(node).map(|file| KeySource::File(file.value)),
        (None, None) => None,
    };
    let keyless = section.get("key").is_none() && section.get("key-file").is_none();
    if let (false, true, Some(node)) = (tokens.store == Store::Memory, keyless, section.get("store")) {
        reader.problem(
            node.at,
            "a store that outlives the process is encrypted, and there is no key",
            "make one with `openssl rand -base64 32 > token-store-key`, and add `key-file: token-store-key`",
        );
    }
    tokens
}

fn store(reader: &Reader<'_>, node: &Node) -> Option<Store> {
    let expected = "`memory`, `file:` with a path, or a `redis://` URL";
    let store = reader.parse(node, expected, |text| match text.split_once(':') {
        None if text == "memory" => Ok(Store::Memory),
        Some(("file", path)) if !path.is_empty() => {
            let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
            Ok(Store::File(reader.base.join(path)))
        }
        Some(("redis" | "rediss", _)) => match Url::parse(text) {
            Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(Store::Redis(url)),
            Ok(_) | Err(_) => Err("write it like `rediss://redis.example.com:6379`".to_owned()),
        },
        _ => Err(nearest(text, ["memory"]).map(|near| format!("did you mean `{near}`?")).unwrap_or_default()),
    })?;
    if let Store::Redis(url) = &store.value {
        if !cfg!(feature = "redis") {
            reader.problem(
                node.at,
                "this build knows no `redis://`",
                "take the build with the feature `redis`",
            );
        } else if url.scheme() == "redis" && !is_loopback(url) {
            let what =
                "`redis://` is clear text: tokens are encrypted on the way, the password of the store is not";
            reader.remark(node.at, what, "write `rediss://` where the server speaks TLS");
        }
    }
    Some(store.value)
}

fn guard(reader: &Reader<'_>, node: Option<&Node>, locks_out_early: bool) -> Guard {
    let mut guard = Guard {
        wrong_password_hold: 10 * MINUTE,
        wrong_passwords_per_user: if locks_out_early { 2 } else { 5 },
        budget_window: 10 * MINUTE,
        tarpit: 5 * SECOND,
    };
    let Some(section) = node.and_then(|node| reader.section(node, "guard", &GUARD_KEYS)) else {
        return guard;
    };
    for (key, value) in [
        ("wrong-password-hold", &mut guard.wrong_password_hold),
        ("budget-window", &mut guard.budget_window),
        ("tarpit", &mut guard.tarpit),
    ] {
        if let Some(duration) = section.get(key).and_then(|node| reader.duration(node)) {
            *value = duration;
        }
    }
    let count = section.get("wrong-passwords-per-user").and_then(|node| reader.count(node, 1, 1000));
    if let Some(count) = count.and_then(|count| u32::try_from(count).ok()) {
        let most = if locks_out_early { 2 } else { 9 };
        if let (true, Some(at)) = (count > most, section.key_at("wrong-passwords-per-user")) {
            reader.remark(
                at,
                format!("Entra locks the account out after {} wrong passwords", most + 1),
                format!("write {most} or less, unless the tenant's own threshold is higher"),
            );
        }
        guard.wrong_passwords_per_user = count;
    }
    guard
}

fn limits(reader: &Reader<'_>, node: Option<&Node>) -> Limits {
    let mut limits = Limits {
        sessions: 10_000,
        sessions_per_user: 100,
        smtp_sessions_per_mailbox: 3,
        imap_sessions_per_mailbox: 20,
        pop3_sessions_per_mailbox: 16,
        wait_for_session: 20 * SECOND,
        warm_connections: 4,
        warm_connection_age: 45 * SECOND,
        login_timeout: 30 * SECOND,
        connect_timeout: 15 * SECOND,
        // An IMAP client that idles says something every 29 minutes (RFC 2177).
        idle_timeout: 35 * MINUTE,
        drain_timeout: 30 * SECOND,
        refusals_per_session: 3,
    };
    let Some(section) = node.and_then(|node| reader.section(node, "limits", &LIMIT_KEYS)) else {
        return limits;
    };
    for (key, value) in [
        ("login-timeout", &mut limits.login_timeout),
        ("connect-timeout", &mut limits.connect_timeout),
        ("idle-timeout", &mut limits.idle_timeout),
        ("drain-timeout", &mut limits.drain_timeout),
        ("wait-for-session", &mut limits.wait_for_session),
        ("warm-connection-age", &mut limits.warm_connection_age),
    ] {
        if let Some(duration) = section.get(key).and_then(|node| reader.duration(node)) {
            *value = duration;
        }
    }
    for (key, least, most, value) in [
        ("sessions", 1, 1_000_000, &mut limits.sessions),
        ("sessions-per-user", 1, 1_000_000, &mut limits.sessions_per_user),
        ("smtp-sessions-per-mailbox", 1, 10_000, &mut limits.smtp_sessions_per_mailbox),
        ("imap-sessions-per-mailbox", 1, 10_000, &mut limits.imap_sessions_per_mailbox),
        ("pop3-sessions-per-mailbox", 1, 10_000, &mut limits.pop3_sessions_per_mailbox),
        ("warm-connections", 0, 32, &mut limits.warm_connections),
    ] {
        let count = section.get(key).and_then(|node| reader.count(node, least, most));
        if let Some(count) = count.and_then(|count| usize::try_from(count).ok()) {
            *value = count;
        }
    }
    if let (true, Some(at)) =
        (limits.warm_connection_age >= EXCHANGE_PATIENCE, section.key_at("warm-connection-age"))
    {
        reader.remark(
            at,
            "Exchange closes a connection after 60 s without a login",
            "write 45s: time is needed for the login itself",
        );
    }
    let refusals = section.get("refusals-per-session").and_then(|node| reader.count(node, 1, 255));
    if let Some(refusals) = refusals.and_then(|refusals| u8::try_from(refusals).ok()) {
        limits.refusals_per_session = refusals;
    }
    limits
}

fn admin(reader: &Reader<'_>, top: &Section<'_>) -> Option<Vec<At<SocketAddr>>> {
    let default = vec![At { value: SocketAddr::from(([127, 0, 0, 1], 9143)), at: Place::default() }];
    let Some(node) = top.get("admin") else { return Some(default) };
    if node.scalar() == Some("off") {
        return None;
    }
    let Some(section) = reader.section(node, "admin", &ADMIN_KEYS) else { return Some(default) };
    let Some(node) = section.get("listen") else { return Some(default) };
    if node.scalar() == Some("off") {
        return None;
    }
    let listen = reader.addresses(node);
    if let Some(exposed) = listen.iter().find(|address| !address.value.ip().is_loopback()) {
        let what = format!("the status page is open to whoever reaches `{}`", exposed.value);
        reader.remark(
            exposed.at,
            what,
            "listen on 127.0.0.1 unless a probe or Prometheus has to come from outside",
        );
    }
    Some(listen)
}

fn log(reader: &Reader<'_>, node: Option<&Node>) -> Log {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let mut log = Log { level: "info".to_owned(), format: LogFormat::Text, otlp_endpoint: None };
    let Some(section) = node.and_then(|node| reader.section(node, "log", &LOG_KEYS)) else {
        return log;
    };
    if let Some(level) = section.get("level").and_then(|node| {
        reader.parse(node, "a level: `error`, `warn`, `info`, `debug` or `trace`", |text| {
            // `info,mailkey::token=debug`: a filter in tracing's syntax.
            let known = |part: &str| {
                part.rsplit('=')
                    .next()
                    .is_some_and(|level| LEVELS.contains(&level.trim().to_ascii_lowercase().as_str()))
            };
            if text.split(',').all(known) {
                return Ok(text.to_owned());
            }
            Err(nearest(text, LEVELS).map(|near| format!("did you mean `{near}`?")).unwrap_or_default())
        })
    }) {
        log.level = level.value;
    }
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    if let Some(format) = section.get("format").and_then(|node| reader.one_of(node, &formats)) {
        log.format = format.value;
    }
    log.otlp_endpoint = section.get("otlp-endpoint").and_then(|node| {
        let url = reader.parse(node, "the URL of an OpenTelemetry collector", |text| {
            // what may stand in front of a host is a secret
            let is_plain = |url: &Url| {
                matches!(url.scheme(), "http" | "https")
                    && url.username().is_empty()
                    && url.password().is_none()
            };
            let url = Url::parse(text).ok().filter(is_plain);
            url.ok_or_else(|| "write it as `http://127.0.0.1:4318`".to_owned())
        })?;
        if !cfg!(feature = "otlp") {
            let what = "this Mailkey was built without OpenTelemetry";
            reader.problem(url.at, what, "build it with `--features otlp`, or remove this line");
            return None;
        }
        Some(url.value)
    });
    log
}

fn run(reader: &Reader<'_>, node: Option<&Node>) -> Run {
    let Some(section) = node.and_then(|node| reader.section(node, "run", &RUN_KEYS)) else {
        return Run::default();
    };
    let name = |key: &str, expected| {
        let name = section.get(key).and_then(|node| reader.text(node, expected))?;
        Some(At { value: name.value.to_string(), at: name.at })
    };
    let user = name("user", "a user, by name or number");
    let group = name("group", "a group, by name or number");
    if let Some(user) = user.as_ref().filter(|user| matches!(user.value.as_str(), "root" | "0")) {
        reader.problem(
            user.at,
            "with `user: root` nothing is given up",
            "name a user of the proxy's own, such as `mailkey`, or remove the key",
        );
    }
    if let (None, Some(group)) = (&user, &group) {
        reader.problem(group.at, "`group` without `user` gives nothing up", "add `user`, or remove `group`");
    }
    Run {
        user: user.map(|user| user.value),
        group: group.map(|group| group.value),
        pid_file: section.get("pid-file").and_then(|node| reader.path(node)).map(|path| path.value),
        reload_on_change: section
            .get("reload-on-change")
            .and_then(|node| reader.flag(node))
            .unwrap_or_default(),
        bind_retry: section.get("bind-retry").and_then(|node| reader.duration(node)).unwrap_or_default(),
        threads: section
            .get("threads")
            .and_then(|node| reader.count(node, 1, 256))
            .and_then(|threads| usize::try_from(threads).ok()),
    }
}

/// Says of listeners towards Exchange Online when EWS ends there.
pub(super) fn remark_on_ews(reader: &Reader<'_>, root: &Node, config: &Config) {
    let mut client_ids: BTreeSet<&str> = BTreeSet::new();
    let mut name = None;
    for listener in &config.listeners {
        if listener.ends_in_2027() {
            name = name.or(Some(listener.name.as_str()));
            client_ids.extend(listener.accounts.iter().map(|a| a.application.client_id.as_str()));
        }
    }
    let Some(name) = name else { return };
    let ids =
        client_ids.into_iter().filter(|id| !id.is_empty()).map(|id| format!("`{id}`")).collect::<Vec<_>>();
    reader.remark(
        place_of_listener(root, name),
        "EWS ends in Exchange Online for good on 1 April 2027; until then it is off unless a tenant switches it on",
        format!(
            "run `Set-OrganizationConfig -EwsEnabled $true -EwsAllowedAppIDs …` with {} added to the IDs that are \
             in the list already",
            ids.join(", ")
        ),
    );
}

fn place_of_listener(root: &Node, name: &str) -> Place {
    let field = |node: &Node, key: &str| -> Option<Place> {
        let Kind::Map(pairs) = &node.kind else { return None };
        pairs.iter().find(|(k, v)| k.scalar() == Some(key) && v.scalar() == Some(name)).map(|(_, v)| v.at)
    };
    let Kind::Map(top) = &root.kind else { return Place::default() };
    let listeners =
        top.iter().find(|(key, _)| key.scalar() == Some("listeners")).map(|(_, value)| &value.kind);
    let Some(Kind::List(items)) = listeners else { return Place::default() };
    items.iter().find_map(|item| field(item, "name")).unwrap_or_default()
}
