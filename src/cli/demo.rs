//! `mailkey demo`: a simulated Office 365 on loopback, the real proxy in front of it, and one message sent
//! and read back as a legacy client would. Needs no Microsoft account, no network and no files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::out::Out;
use super::{FAILED, run};
use crate::app::App;
use crate::config;
use crate::explain::Explain as _;
use crate::simulator::{ALICE, Event, PUBLIC_CLIENT_ID, Service, Settings, Simulator};
use crate::telemetry::log;

/// How long one step may take.
const STEP_LIMIT: Duration = Duration::from_secs(20);

/// The message that goes round.
const SUBJECT: &str = "Mailkey demo: plain password in, OAuth 2.0 out";

/// Options of `mailkey demo`.
#[derive(Args, Debug)]
pub struct DemoArguments {
    /// End after the round trip: exit code 0, or 1 and the step that failed
    #[arg(long)]
    once: bool,
    /// Write the proxy's log to standard error at this level (`info` shows a line per session)
    #[arg(long, default_value = "warn", value_name = "LEVEL")]
    log: String,
}

/// Runs the demo.
pub fn demo(wishes: &DemoArguments, out: &mut Out) -> ExitCode {
    let _flush = match log::start(&wishes.log, false) {
        Ok(flush) => flush,
        Err(error) => {
            out.error(format_args!("logging cannot start: {error}"));
            return ExitCode::from(super::MISUSED);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error(format_args!("the runtime cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(show(wishes, out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble { step, why }) => {
            out.error(format_args!("the demo failed at `{step}`: {why}"));
            ExitCode::from(FAILED)
        }
    }
}

/// The step that failed, and why.
struct Trouble {
    step: &'static str,
    why: String,
}

type Shown = Result<(), Trouble>;

fn at<E: ToString>(step: &'static str) -> impl FnOnce(E) -> Trouble {
    move |error| Trouble { step, why: error.to_string() }
}

async fn show(wishes: &DemoArguments, out: &mut Out) -> Shown {
    let stage = Stage::set(!wishes.once).await?;
    out.line(format!(
        "A simulated Office 365 runs on loopback, with real TLS: identity provider {}\n\
         IMAP {}, POP3 {}, SMTP {}, EWS {}. Mailkey stands in front of it:\n",
        stage.office.authority_url(),
        stage.office.imap(),
        stage.office.pop3(),
        stage.office.smtp(),
        stage.office.ews(),
    ));
    for (name, address) in stage.app.addresses() {
        out.line(format!("  {name:<5} {address}"));
    }
    out.line("");
    for step in [Round::Smtp, Round::Imap, Round::Pop3, Round::Ews] {
        stage.go(step, out).await?;
    }
    out.line("The message went in over SMTP and came back over IMAP, POP3 and EWS.");
    out.line("The mail client only ever knew a user name and a password.\n");
    if !wishes.once {
        stage.invite(out);
        run::asked_to_stop().await;
        out.line("\nstopping");
    }
    stage.clear().await;
    Ok(())
}

/// The simulator, the proxy, and where they put their files.
struct Stage {
    office: Simulator,
    app: App,
    folder: PathBuf,
}

/// One leg of the message's way.
#[derive(Clone, Copy)]
enum Round {
    Smtp,
    Imap,
    Pop3,
    Ews,
}

impl Stage {
    /// With the usual ports where they are free and wanted, else with any.
    async fn set(usual: bool) -> Result<Self, Trouble> {
        let office = Simulator::start(Settings::default()).await.map_err(at("start the simulator"))?;
        let folder = std::env::temp_dir().join(format!("mailkey-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(at("write the demo's files"))?;
        std::fs::write(folder.join("ca.pem"), office.ca_pem()).map_err(at("write the demo's files"))?;
        let ports: &[[u16; 5]] = if usual { &[[1143, 1110, 1587, 1080, 9143], [0; 5]] } else { &[[0; 5]] };
        let mut last = Trouble { step: "start the proxy", why: "no ports".to_owned() };
        for &ports in ports {
            let text = configuration(&office, ports);
            std::fs::write(folder.join("proxy.yaml"), &text).map_err(at("write the demo's files"))?;
            let loaded = config::load(&folder.join("proxy.yaml"), &|_| None);
            let config = loaded.map_err(at("read the demo's configuration"))?.config;
            match App::start(config) {
                Ok(app) => return Ok(Self { office, app, folder }),
                Err(error) => last.why = error.explain().to_string(),
            }
        }
        Err(last)
    }

    fn address(&self, name: &str) -> SocketAddr {
        let addresses = self.app.addresses();
        let found = addresses.iter().find(|(known, _)| known == name);
        found.map_or(SocketAddr::from(([127, 0, 0, 1], 0)), |(_, address)| *address)
    }

    /// Goes one leg, then tells what happened behind it.
    async fn go(&self, round: Round, out: &mut Out) -> Shown {
        let seen = self.office.journal().len();
        let (step, name) = match round {
            Round::Smtp => ("send a message over SMTP", "smtp"),
            Round::Imap => ("read it over IMAP", "imap"),
            Round::Pop3 => ("read it over POP3", "pop3"),
            Round::Ews => ("read it over EWS", "ews"),
        };
        let address = self.address(name);
        let leg = async {
            match round {
                Round::Smtp => smtp(address).await,
                Round::Imap => imap(address).await,
                Round::Pop3 => pop3(address).await,
                Round::Ews => ews(address).await,
            }
        };
        let limit = || Trouble { step, why: format!("no end within {STEP_LIMIT:?}") };
        timeout(STEP_LIMIT, leg).await.map_err(|_| limit())?.map_err(at(step))?;
        out.line(format!("✓ {step}: user name and password, as ever"));
        let mut asked = false;
        for event in self.office.journal().iter().skip(seen) {
            if let Event::Token(request) = event {
                asked = true;
                out.line(format!(
                    "    token asked of Entra ID: grant `{}`, scope `{}` → {}",
                    request.grant,
                    request.scope,
                    request.code.map_or("granted".to_owned(), |code| format!("AADSTS{code}"))
                ));
            }
        }
        if !asked {
            out.line("    token: cached, no request");
        }
        for event in self.office.journal().iter().skip(seen) {
            out.narrate(event);
        }
        out.line("");
        Ok(())
    }

    /// Lines to copy.
    fn invite(&self, out: &mut Out) {
        let (user, password) = ALICE;
        let [imap, pop3, smtp, ews] = ["imap", "pop3", "smtp", "ews"].map(|name| self.address(name));
        out.line("It stays up. Try it yourself:\n");
        out.line(format!("  curl -u '{user}:{password}' 'imap://{imap}/INBOX;MAILINDEX=1'"));
        out.line(format!("  curl -u '{user}:{password}' 'pop3://{pop3}/1'"));
        out.line(format!(
            "  printf 'Subject: hello\\r\\n\\r\\nfrom curl\\r\\n' | curl -u '{user}:{password}' 'smtp://{smtp}' \\\n    \
             --mail-from {user} --mail-rcpt {user} -T -"
        ));
        out.line(format!(
            "  curl -u '{user}:{password}' 'http://{ews}/EWS/Exchange.asmx' -H 'Content-Type: text/xml' -d '{}'",
            FIND.replace('\n', "")
        ));
        out.line(format!(
            "  curl -u '{user}:wrong' 'imap://{imap}/INBOX'          # and see who is told what\n"
        ));
        for address in self.app.admin_addresses() {
            out.line(format!("Status:        http://{address}/"));
        }
        out.line(format!("Configuration: {}", self.folder.join("proxy.yaml").display()));
        out.line("Ctrl-C ends it.");
    }

    async fn clear(self) {
        self.app.stop(run::asked_to_stop()).await;
        self.office.stop().await;
        // a folder in the temporary directory that stays behind harms nobody
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

impl Out {
    fn narrate(&mut self, event: &Event) {
        match event {
            Event::SignIn(sign_in) => self.line(format!(
                "    signed in upstream: {} {} user={}, over TLS: {}",
                spoken(sign_in.service),
                sign_in.mechanism,
                sign_in.user,
                if sign_in.tls { "yes" } else { "no" }
            )),
            Event::Submitted(message) => {
                self.line(format!(
                    "    Office 365 took {} octets for {}",
                    message.size,
                    message.to.join(", ")
                ));
            }
            Event::Ews(request) => self.line(format!(
                "    EWS upstream: {} {} with Authorization: Bearer, Basic passed on: {}",
                request.method,
                request.path,
                if request.had_basic { "yes" } else { "no" }
            )),
            Event::Token(_) | Event::Connected(_) => {}
        }
    }
}

fn spoken(service: Service) -> &'static str {
    match service {
        Service::Authority => "OAuth 2.0",
        Service::Imap => "IMAP",
        Service::Pop3 => "POP3",
        Service::Smtp => "SMTP",
        Service::Ews => "EWS",
    }
}

fn configuration(office: &Simulator, [imap, pop3, smtp, ews, admin]: [u16; 5]) -> String {
    format!(
        "\
# Written by `mailkey demo`: the real proxy in front of a simulated Office 365.
oauth:
  tenant-authority: {authority}
  directory-id: organizations
  client-id: {PUBLIC_CLIENT_ID}
  scope: https://outlook.office.com/.default
  grant: password
listeners:
  - {{name: imap, protocol: imap, listen: 127.0.0.1:{imap}, upstream: localhost:{imap_up}}}
  - {{name: pop3, protocol: pop3, listen: 127.0.0.1:{pop3}, upstream: localhost:{pop3_up}}}
  - {{name: smtp, protocol: smtp, listen: 127.0.0.1:{smtp}, upstream: localhost:{smtp_up}, upstream-tls: starttls}}
  - {{name: ews, protocol: ews, listen: 127.0.0.1:{ews}, upstream: https://localhost:{ews_up}/}}
tls: {{extra-roots-file: ca.pem}}
admin: {{listen: 127.0.0.1:{admin}}}
",
        authority = office.authority_url(),
        imap_up = office.imap().port(),
        pop3_up = office.pop3().port(),
        smtp_up = office.smtp().port(),
        ews_up = office.ews().port(),
    )
}

/// A legacy client: lines out, lines in, nothing clever.
struct Wire(BufReader<TcpStream>);

impl Wire {
    async fn dial(address: SocketAddr) -> Result<Self, String> {
        TcpStream::connect(address).await.map(|io| Self(BufReader::new(io))).map_err(|e| e.to_string())
    }

    async fn say(&mut self, text: &str) -> Result<(), String> {
        self.0.write_all(text.as_bytes()).await.map_err(|e| e.to_string())
    }

    /// Reads lines up to the first that `ends`; all of them, or an error where that one does not begin well.
    async fn hear(&mut self, ends: impl Fn(&str) -> bool, well: &str) -> Result<String, String> {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).await.map_err(|e| e.to_string())? == 0 {
                return Err(format!("hung up after `{}`", all.trim_end()));
            }
            let last = ends(&line);
            if last && !line.starts_with(well) {
                return Err(format!("answered `{}`", line.trim_end()));
            }
            all.push_str(&line);
            if last {
                return Ok(all);
            }
        }
    }
}

async fn smtp(address: SocketAddr) -> Result<(), String> {
    let (user, password) = ALICE;
    let mut wire = Wire::dial(address).await?;
    let last = |line: &str| line.get(3..4) == Some(" ");
    wire.hear(last, "220").await?;
    let plain = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
    let message = format!(
        "From: {user}\r\nTo: {user}\r\nSubject: {SUBJECT}\r\n\r\nHello from an application that knows only passwords.\r\n.\r\n"
    );
    for (said, well) in [
        ("EHLO legacy.example\r\n".to_owned(), "250"),
        (format!("AUTH PLAIN {plain}\r\n"), "235"),
        (format!("MAIL FROM:<{user}>\r\n"), "250"),
        (format!("RCPT TO:<{user}>\r\n"), "250"),
        ("DATA\r\n".to_owned(), "354"),
        (message, "250"),
        ("QUIT\r\n".to_owned(), "221"),
    ] {
        wire.say(&said).await?;
        wire.hear(last, well).await?;
    }
    Ok(())
}

async fn imap(address: SocketAddr) -> Result<(), String> {
    let (user, password) = ALICE;
    let mut wire = Wire::dial(address).await?;
    wire.hear(|_| true, "* OK").await?;
    let mut got = String::new();
    for said in [
        &format!("a1 LOGIN \"{user}\" \"{password}\"\r\n"),
        "a2 SELECT INBOX\r\n",
        "a3 FETCH * (BODY[HEADER.FIELDS (SUBJECT)])\r\n",
        "a4 LOGOUT\r\n",
    ] {
        let tag = said.get(..3).unwrap_or_default();
        wire.say(said).await?;
        got += &wire.hear(|line| line.starts_with(tag), &format!("{tag}OK")).await?;
    }
    found(&got)
}

async fn pop3(address: SocketAddr) -> Result<(), String> {
    let (user, password) = ALICE;
    let mut wire = Wire::dial(address).await?;
    wire.hear(|_| true, "+OK").await?;
    for said in [format!("USER {user}\r\n"), format!("PASS {password}\r\n"), "RETR 1\r\n".to_owned()] {
        wire.say(&said).await?;
        wire.hear(|_| true, "+OK").await?;
    }
    let got = wire.hear(|line| line == ".\r\n", ".").await?;
    wire.say("QUIT\r\n").await?;
    wire.hear(|_| true, "+OK").await?;
    found(&got)
}

/// EWS's way to list an Inbox.
const FIND: &str = r#"<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"
 xmlns:m="http://schemas.microsoft.com/exchange/services/2006/messages"
 xmlns:t="http://schemas.microsoft.com/exchange/services/2006/types"><s:Body><m:FindItem Traversal="Shallow">
<m:ItemShape><t:BaseShape>Default</t:BaseShape></m:ItemShape>
<m:ParentFolderIds><t:DistinguishedFolderId Id="inbox"/></m:ParentFolderIds></m:FindItem></s:Body></s:Envelope>"#;

async fn ews(address: SocketAddr) -> Result<(), String> {
    let (user, password) = ALICE;
    let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let mut wire = Wire::dial(address).await?;
    wire.say(&format!(
        "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {basic}\r\n\
         Content-Type: text/xml; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{FIND}",
        FIND.len()
    ))
    .await?;
    wire.hear(|_| true, "HTTP/1.1 200").await?;
    let mut got = String::new();
    wire.0.read_to_string(&mut got).await.map_err(|e| e.to_string())?;
    found(&got)
}

fn found(answer: &str) -> Result<(), String> {
    if answer.contains(SUBJECT) { Ok(()) } else { Err("the message that was sent is not there".to_owned()) }
}
