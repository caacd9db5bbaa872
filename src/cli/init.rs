//! `mailkey init`: five questions, or flags, and out comes a `proxy.yaml` that passes `check`.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, BufRead, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::certificate;
use super::out::Out;
use super::run::environment;
use super::{FAILED, MISUSED};
use crate::clock;
use crate::config;
use crate::config::model::Protocol;

/// The longest answer that is read, in octets.
const LONGEST_ANSWER: u64 = 1024;

/// How often a question is asked.
const TRIES: usize = 3;

/// How long a certificate made here is good for, in days.
const CERTIFICATE_DAYS: i64 = 397;

/// Options of `mailkey init`. What is not given is asked for.
#[derive(Args, Debug, Default)]
pub struct InitArguments {
    /// Directory (tenant) ID, a verified domain, or `organizations`
    #[arg(long, value_name = "ID")]
    pub directory_id: Option<String>,
    /// Application (client) ID
    #[arg(long, value_name = "ID")]
    pub client_id: Option<String>,
    /// What mail clients speak: imap, pop3, smtp, ews
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub protocols: Option<Vec<String>>,
    /// Where mail clients are: `local` (this machine: clear text on loopback) or `network` (TLS on all interfaces)
    #[arg(long, value_name = "WHERE")]
    pub listen: Option<String>,
    /// The corporate proxy, like `http://proxy.contoso.com:3128`, or `none`
    #[arg(long, value_name = "URL")]
    pub outbound_proxy: Option<String>,
    /// Ask nothing: what is not given has its default
    #[arg(long, short)]
    pub yes: bool,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Directory.
    pub directory_id: String,
    /// Application.
    pub client_id: String,
    /// In the file's order, none twice.
    pub protocols: Vec<Protocol>,
    /// Mail clients come over the network.
    pub network: bool,
    /// The corporate proxy.
    pub outbound_proxy: Option<String>,
}

/// Asks, writes, checks.
pub fn init(path: &Path, wishes: &InitArguments, input: &mut dyn BufRead, out: &mut Out) -> ExitCode {
    if path.symlink_metadata().is_ok() && !wishes.force {
        out.error(format_args!(
            "`{}` is there already; `--force` replaces it, `--config` names another",
            path.display()
        ));
        return ExitCode::from(MISUSED);
    }
    let answers = match ask_all(wishes, input, out) {
        Ok(answers) => answers,
        Err(why) => {
            out.error(why);
            return ExitCode::from(MISUSED);
        }
    };
    let base = path.parent().unwrap_or_else(|| Path::new(""));
    if answers.network
        && let Err(why) = provide_certificate(base, out)
    {
        out.error(why);
        return ExitCode::from(FAILED);
    }
    let text = file(&answers);
    // what was given by a flag is checked by the same rules as a file that somebody wrote
    if let Err(problems) = config::parse(&text, &path.display().to_string(), base, &environment) {
        out.error(format_args!(
            "`{}` was not written: these settings would not work\n{problems}",
            path.display()
        ));
        return ExitCode::from(MISUSED);
    }
    if let Err(error) = write(path, &text, wishes.force) {
        out.error(format_args!("`{}` cannot be written: {error}", path.display()));
        return ExitCode::from(FAILED);
    }
    let file = path.display();
    out.line(format_args!(
        "{file} is written. Next:\n  \
         mailkey --config {file} setup-script     the PowerShell for the tenant's administrators\n  \
         mailkey --config {file} doctor           whether everything can be reached\n  \
         mailkey --config {file} doctor --user U  whether U's mailbox opens\n  \
         mailkey --config {file} run"
    ));
    ExitCode::SUCCESS
}

fn ask_all(wishes: &InitArguments, input: &mut dyn BufRead, out: &mut Out) -> Result<Answers, String> {
    let mut asker = Asker { input, out, silent: wishes.yes };
    let directory_id = asker.ask(
        "--directory-id",
        wishes.directory_id.as_deref(),
        "Directory (tenant) ID, or a domain of yours",
        Some("organizations"),
        |text| fits("directory-id", text),
    )?;
    let client_id =
        asker.ask("--client-id", wishes.client_id.as_deref(), "Application (client) ID", None, |text| {
            fits("client-id", text)
        })?;
    let protocols = asker.ask(
        "--protocols",
        wishes.protocols.as_ref().map(|list| list.join(",")).as_deref(),
        "What do mail clients speak (imap, pop3, smtp, ews)",
        Some("imap,pop3,smtp"),
        protocols,
    )?;
    let network = asker.ask(
        "--listen",
        wishes.listen.as_deref(),
        "Where are the mail clients, local (on this machine) or network",
        Some("local"),
        |text| match text {
            "local" => Ok(false),
            "network" => Ok(true),
            _ => Err("write `local` or `network`".to_owned()),
        },
    )?;
    let outbound_proxy = asker.ask(
        "--outbound-proxy",
        wishes.outbound_proxy.as_deref(),
        "Corporate proxy, like http://proxy.contoso.com:3128",
        Some("none"),
        |text| if text == "none" { Ok(None) } else { fits("url", text).map(Some) },
    )?;
    Ok(Answers { directory_id, client_id, protocols, network, outbound_proxy })
}

struct Asker<'a> {
    input: &'a mut dyn BufRead,
    out: &'a mut Out,
    silent: bool,
}

impl Asker<'_> {
    fn ask<T>(
        &mut self,
        flag: &str,
        given: Option<&str>,
        question: &str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        if let Some(given) = given {
            return parse(given.trim()).map_err(|why| format!("`{flag}`: {why}"));
        }
        if self.silent {
            let default = default.ok_or_else(|| format!("`{flag}` has no default: give it"))?;
            return parse(default).map_err(|why| format!("`{flag}`: {why}"));
        }
        for _ in 0..TRIES {
            let shown = default.map(|default| format!(" [{default}]")).unwrap_or_default();
            self.prompt(&format!("{question}{shown}: "));
            let line = self.line().map_err(|error| format!("the answer cannot be read: {error}"))?;
            let Some(line) = line else { return Err(format!("no answer; give `{flag}`")) };
            let answer = if line.is_empty() { default.unwrap_or_default() } else { &line };
            match parse(answer) {
                Ok(value) => return Ok(value),
                Err(why) => self.out.error(format_args!("  {why}")),
            }
        }
        Err(format!("no usable answer; give `{flag}`"))
    }

    fn prompt(&mut self, text: &str) {
        let (results, _) = self.out.writers();
        // There is nobody left to ask.
        let _unheard = results.write_all(text.as_bytes()).and_then(|()| results.flush());
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let read = (&mut self.input).take(LONGEST_ANSWER).read_line(&mut line)?;
        Ok((read > 0).then(|| line.trim().to_owned()))
    }
}

/// Whether a value can stand in the file at all; whether it makes sense is judged when the file is whole.
fn fits(what: &str, text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(format!("`{what}` is empty"));
    }
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\'' | '"' | '`' | '{' | '}' | '$');
    if text.len() > 253 || !text.chars().all(plain) {
        return Err(format!("no `{what}` looks like this"));
    }
    let is_guid = || {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        lengths == [8, 4, 4, 4, 12] && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
    };
    match what {
        "client-id" if !is_guid() => {
            Err("an application ID looks like 11111111-2222-3333-4444-555555555555".to_owned())
        }
        "directory-id" if !is_guid() && !text.contains('.') && text != "organizations" => {
            Err("write the Directory (tenant) ID, a verified domain, or `organizations`".to_owned())
        }
        "url" if !["http://", "https://", "socks5h://"].iter().any(|scheme| text.starts_with(scheme)) => {
            Err("write http://, https:// or socks5h://, host and port".to_owned())
        }
        _ => Ok(text.to_owned()),
    }
}

fn protocols(text: &str) -> Result<Vec<Protocol>, String> {
    let all = [Protocol::Imap, Protocol::Pop3, Protocol::Smtp, Protocol::Ews];
    let mut found = Vec::new();
    for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
        let one = all.into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(word));
        let one = one.ok_or_else(|| format!("`{word}` is none of imap, pop3, smtp, ews"))?;
        if !found.contains(&one) {
            found.push(one);
        }
    }
    if found.is_empty() { Err("name imap, pop3, smtp or ews".to_owned()) } else { Ok(found) }
}

/// Listeners on the network speak TLS; without a certificate nothing would start.
fn provide_certificate(base: &Path, out: &mut Out) -> Result<(), String> {
    let directory = base.join("certs");
    let files = certificate::Files::inside(&directory);
    if files.certificate.exists() && files.key.exists() {
        return Ok(());
    }
    let (files, names) = certificate::make(&directory, &[], CERTIFICATE_DAYS, false, clock::wall())
        .map_err(|why| format!("no certificate was made: {why}"))?;
    out.line(format_args!(
        "{} is made, for {} alone: `mailkey certificate --force --name <name of this machine>` makes another",
        files.certificate.display(),
        names.join(", ")
    ));
    Ok(())
}

/// The file.
pub fn file(answers: &Answers) -> String {
    let mut text = String::from(
        "# The configuration of Mailkey, as `mailkey init` wrote it. Check it with `mailkey check`.\n\
         # All keys with their meanings: the proxy.yaml that is shipped with Mailkey; for editors: `mailkey schema`.\n\n\
         # The Entra application. Every key of it may also stand in a listener's `oauth` or in an account.\n",
    );
    put(&mut text, "oauth:");
    put(&mut text, &format!("  directory-id: '{}'", answers.directory_id));
    put(&mut text, &format!("  client-id: '{}'", answers.client_id));
    text.push_str(
        "  # How a token is asked for. `password` is the password that the mail client sends.\n  grant: password\n\n\
         # Where mail clients connect; they sign in with the mailbox' address and its password.\nlisteners:\n",
    );
    for &protocol in &answers.protocols {
        listener(&mut text, protocol, answers.network);
    }
    if answers.network {
        text.push_str(
            "\n# Shown to mail clients, which have to trust certs/ca.pem.\ntls:\n  \
             certificate-file: certs/server.pem\n  key-file: certs/server.key\n",
        );
    }
    text.push_str(match answers.outbound_proxy {
        Some(_) => "\n# The corporate proxy. `mail` is IMAP, POP3 and SMTP, by CONNECT.\noutbound-proxy:\n",
        None => "\n# No corporate proxy, whatever HTTPS_PROXY says.\noutbound-proxy: off\n",
    });
    if let Some(url) = &answers.outbound_proxy {
        put(&mut text, &format!("  url: '{url}'"));
        text.push_str(
            "  use-for: [identity, ews, mail]\n  # username: svc-mail\n  # password-file: /run/secrets/outbound-proxy\n",
        );
    }
    text.push_str(
        "\n# Status page, /healthz, /readyz and /metrics.\nadmin:\n  listen: 127.0.0.1:9143\n\n\
         log:\n  level: info\n",
    );
    text
}

fn listener(text: &mut String, protocol: Protocol, network: bool) {
    let (local, tls_port, tls) = match protocol {
        Protocol::Imap => (1143, 1993, "implicit"),
        Protocol::Pop3 => (1110, 1995, "implicit"),
        Protocol::Smtp => (1587, 1587, "starttls"),
        Protocol::Ews | Protocol::ActiveSync => (1080, 1443, "implicit"),
    };
    put(text, &format!("  - name: {protocol}"));
    put(text, &format!("    protocol: {protocol}"));
    if network {
        put(text, &format!("    listen: 0.0.0.0:{tls_port}"));
        put(text, &format!("    tls: {tls}"));
        put(text, "    # allow-from: [192.0.2.0/24]");
    } else {
        put(text, &format!("    listen: 127.0.0.1:{local}"));
    }
    if protocol == Protocol::Ews {
        put(text, "    # EWS ends in Exchange Online for good on 1 April 2027.");
    }
}

fn put(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{line}");
}

fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    options.open(path)?.write_all(text.as_bytes())
}
