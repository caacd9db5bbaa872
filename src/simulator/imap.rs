//! IMAP as outlook.office365.com does it: XOAUTH2 only, then a small IMAP4rev1 server.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::{
    admission::{self, Admitted, Attempt, Denied},
    fetch::{self, Item, Stretch},
    imap_syntax::{Arg, Piece, arguments, literal, set, string},
    journal::Service,
    mailbox::{Folder, Mailbox, Message},
    mischief::{MailFault, Step},
    office::{Office, Place},
    random, search,
    settings::Edition,
    time,
    wire::Peer,
};

const SERVICE: Service = Service::Imap;
const LINE_LIMIT: usize = 256 * 1024;
/// Literals before the login: user names and passwords.
const SMALL_LITERAL: usize = 64 * 1024;

/// The base64 of a host name in UTF-16LE, which Exchange puts into its greetings.
pub(super) fn host_token() -> String {
    let host = "AM0PR01CA0042.EURPRD01.PROD.EXCHANGELABS.COM";
    BASE64_STANDARD.encode(host.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
}

/// Serves one connection until it ends.
pub(super) async fn serve(office: Arc<Office>, mut peer: Peer) -> io::Result<()> {
    let greeting = match office.settings.edition {
        Edition::Classic => {
            format!("* OK The Microsoft Exchange IMAP4 service is ready. [{}]\r\n", host_token())
        }
        Edition::TcpProxy => format!(
            "* OK Microsoft Exchange IMAP4 service ready. {} (tcpproxy/15.21.0406.000 BACKENDAUTHENTICATE) [{}]\r\n",
            random::guid(),
            host_token()
        ),
    };
    if !peer.greet(&office.mischief, SERVICE, &greeting, "* BYE Connection is closed. 14\r\n").await? {
        return Ok(());
    }
    let mut session = Session { office, peer, user: None, errors: 0 };
    while let Some(next) = session.turn().await? {
        session = next;
    }
    Ok(())
}

struct Session {
    office: Arc<Office>,
    peer: Peer,
    user: Option<User>,
    errors: u32,
}

/// Who signed in.
struct User {
    mailbox: Option<Arc<Mailbox>>,
    news: Option<watch::Receiver<u64>>,
    selected: Option<Selected>,
    /// When the session ends because its token does.
    ends: Instant,
    #[expect(dead_code, reason = "held so that the session counts")]
    place: Option<Place>,
}

/// The open folder, as the other end knows it.
struct Selected {
    folder: u32,
    read_only: bool,
    view: Vec<Seen>,
}

struct Seen {
    uid: u32,
    flags: BTreeSet<String>,
}

/// The session, unless it has ended.
type Turn = Option<Session>;

struct Command {
    tag: String,
    name: String,
    args: Vec<Arg>,
    /// Octets of the command line without literals.
    length: usize,
}

/// What was read.
enum Read {
    Command(Command),
    Bad(String),
    Expired,
    End,
}

impl Session {
    async fn turn(mut self) -> io::Result<Turn> {
        let command = match self.read().await? {
            Read::Command(command) => command,
            Read::Bad(tag) => {
                self.say(&format!("{tag} BAD Command Argument Error. 11")).await?;
                return Ok(Some(self));
            }
            Read::Expired => return self.bye("Session invalidated - AccessTokenExpired").await,
            Read::End => return Ok(None),
        };
        let tag = command.tag.clone();
        match command.name.as_str() {
            "CAPABILITY" => self.capability(&tag).await?,
            "NOOP" | "CHECK" => {
                self.report(true).await?;
                self.ok(&tag, &command.name).await?;
            }
            "ID" => {
                self.say("* ID (\"name\" \"Microsoft.Exchange.Imap4.Imap4Server\" \"version\" \"15.20\")")
                    .await?;
                self.ok(&tag, "ID").await?;
            }
            "LOGOUT" => {
                self.say("* BYE Microsoft Exchange Server IMAP4 server signing off.").await?;
                self.ok(&tag, "LOGOUT").await?;
                self.peer.close().await?;
                return Ok(None);
            }
            "STARTTLS" => return self.start_tls(&tag).await,
            "LOGIN" | "AUTHENTICATE" if self.user.is_some() => {
                self.say(&format!("{tag} BAD Command received in Invalid state.")).await?;
            }
            "LOGIN" => {
                let user = command.args.first().and_then(Arg::text).unwrap_or_default();
                admission::refuse_basic(&self.office, SERVICE, "LOGIN", &user, self.peer.tls);
                self.say(&format!("{tag} NO LOGIN failed.")).await?;
            }
            "AUTHENTICATE" => self.authenticate(command).await?,
            _ if self.user.is_none() => {
                self.errors += 1;
                if self.errors > 10 {
                    return self.bye("Connection is closed. 14").await;
                }
                self.say(&format!("{tag} BAD Command received in Invalid state.")).await?;
            }
            _ if self.user.as_ref().is_some_and(|user| user.mailbox.is_none()) => {
                self.say(&format!("{tag} BAD User is authenticated but not connected.")).await?;
                return self.bye("Connection closed. 14").await;
            }
            "IDLE" => return self.idle(&tag).await,
            _ => self.command(command).await?,
        }
        Ok(Some(self))
    }

    async fn say(&mut self, line: &str) -> io::Result<()> {
        self.peer.write(format!("{line}\r\n").as_bytes()).await
    }

    async fn ok(&mut self, tag: &str, name: &str) -> io::Result<()> {
        self.say(&format!("{tag} OK {name} completed.")).await
    }

    async fn bye(mut self, why: &str) -> io::Result<Turn> {
        self.say(&format!("* BYE {why}")).await?;
        self.peer.close().await?;
        Ok(None)
    }

    /// The next line, unless the token ends first.
    async fn line(&mut self) -> io::Result<Option<Option<Vec<u8>>>> {
        let ends = self.user.as_ref().map(|user| user.ends);
        let Some(ends) = ends else {
            return self.peer.line(LINE_LIMIT).await.map(Some);
        };
        tokio::select! {
            biased;
            line = self.peer.line(LINE_LIMIT) => line.map(Some),
            () = tokio::time::sleep_until(ends) => Ok(None),
        }
    }

    /// A whole command with its literals.
    async fn read(&mut self) -> io::Result<Read> {
        let (mut pieces, mut length) = (Vec::new(), 0);
        loop {
            let line = match self.line().await {
                Ok(Some(Some(line))) => line,
                Ok(Some(None)) => return Ok(Read::End),
                Ok(None) => return Ok(Read::Expired),
                Err(error) => {
                    if error.kind() == io::ErrorKind::TimedOut {
                        self.say("* BYE Connection is closed. 13").await?;
                    }
                    return Err(error);
                }
            };
            length += line.len();
            let Some((size, waits, before)) = literal(&line) else {
                pieces.push(Piece::Line(line));
                break;
            };
            let limit = if self.user.is_some() { self.office.settings.message_limit } else { SMALL_LITERAL };
            if size > limit {
                let tag = String::from_utf8_lossy(before).split(' ').next().unwrap_or("*").to_owned();
                self.say(&format!("{tag} BAD Command Error. 12")).await?;
                return if waits { Ok(Read::Bad(tag)) } else { Err(io::ErrorKind::InvalidData.into()) };
            }
            pieces.push(Piece::Line(before.to_vec()));
            if waits {
                self.say("+ Ready for additional command text.").await?;
            }
            let octets = self.peer.exactly(size).await?;
            if size > SMALL_LITERAL {
                self.office.mischief.at(SERVICE, Step::Transfer).await?;
            }
            pieces.push(Piece::Literal(octets));
        }
        Ok(command(&pieces, length))
    }

    async fn capability(&mut self, tag: &str) -> io::Result<()> {
        self.office.mischief.at(SERVICE, Step::Capability).await?;
        let new = self.office.settings.edition == Edition::TcpProxy;
        let list = if !self.peer.tls {
            let no_tls = self.office.mischief.mail_is(SERVICE, &MailFault::NoStartTls);
            let starttls = if no_tls { "" } else { "STARTTLS " };
            format!(
                "IMAP4 IMAP4rev1 LOGINDISABLED {starttls}SASL-IR UIDPLUS ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+"
            )
        } else if self.user.is_some() {
            "IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS MOVE ID UNSELECT CLIENTACCESSRULES CLIENTNETWORKPRESENCELOCATION BACKENDAUTHENTICATE CHILDREN IDLE NAMESPACE LITERAL+".to_owned()
        } else if new {
            "IMAP4 IMAP4rev1 AUTH=XOAUTH2 LOGINDISABLED SASL-IR UIDPLUS MOVE ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+".to_owned()
        } else {
            "IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS ID UNSELECT CHILDREN IDLE NAMESPACE LITERAL+".to_owned()
        };
        self.say(&format!("* CAPABILITY {list}")).await?;
        self.ok(tag, "CAPABILITY").await
    }

    async fn start_tls(mut self, tag: &str) -> io::Result<Turn> {
        self.office.mischief.at(SERVICE, Step::StartTls).await?;
        if self.peer.tls {
            self.say(&format!("{tag} BAD Command received in Invalid state.")).await?;
            return Ok(Some(self));
        }
        let mut reply = format!("{tag} OK Begin TLS negotiation now.\r\n");
        if self.office.mischief.mail_is(SERVICE, &MailFault::InjectBeforeTls) {
            reply.push_str("* CAPABILITY IMAP4rev1 AUTH=INJECTED\r\n* PREAUTH injected\r\n");
        }
        self.peer.write(reply.as_bytes()).await?;
        let acceptor = self.office.certificates.acceptor(self.office.mischief.bad_certificate(SERVICE));
        self.peer = self.peer.upgrade(&acceptor).await?;
        Ok(Some(self))
    }

    async fn authenticate(&mut self, command: Command) -> io::Result<()> {
        let tag = command.tag;
        let mechanism = command.args.first().and_then(Arg::text).unwrap_or_default().to_ascii_uppercase();
        let initial = command.args.get(1).and_then(Arg::octets);
        if mechanism != "XOAUTH2" || !self.peer.tls {
            if mechanism == "PLAIN" && initial.is_none() {
                self.say("+ ").await?;
                self.peer.line(LINE_LIMIT).await?;
            }
            admission::refuse_basic(&self.office, SERVICE, &mechanism, "", self.peer.tls);
            return self.say(&format!("{tag} NO AUTHENTICATE failed.")).await;
        }
        self.office.mischief.at(SERVICE, Step::Login).await?;
        let initial_response = initial.is_some();
        let mut line_length = command.length;
        let mut response = initial.unwrap_or_default();
        if !initial_response || self.office.mischief.mail_is(SERVICE, &MailFault::EmptyChallenge) {
            self.say("+ ").await?;
            let line = self.peer.line(LINE_LIMIT).await?.unwrap_or_default();
            if line == b"*" {
                return self.say(&format!("{tag} BAD AUTHENTICATE cancelled.")).await;
            }
            if !initial_response {
                line_length = line.len();
                response = line.into();
            }
        }
        if self.office.mischief.mail_is(SERVICE, &MailFault::Throttle) {
            return self
                .say(&format!("{tag} NO Request is throttled. Suggested Backoff Time: 299910 milliseconds"))
                .await;
        }
        let attempt = Attempt {
            service: SERVICE,
            response: &response,
            initial_response,
            line_length,
            tls: self.peer.tls,
        };
        match admission::sign_in(&self.office, attempt) {
            Ok(admitted) => self.welcome(&tag, Some(admitted)).await,
            Err(Denied::NotConnected(_)) => self.welcome(&tag, None).await,
            Err(denied) => self.refuse(&tag, denied).await,
        }
    }

    async fn welcome(&mut self, tag: &str, admitted: Option<Admitted>) -> io::Result<()> {
        let mut place = None;
        if let Some(admitted) = &admitted {
            let limit = self
                .office
                .mischief
                .take_mail(SERVICE, |fault| matches!(fault, MailFault::ConcurrencyLimit(_)));
            if let Some(MailFault::ConcurrencyLimit(limit)) = limit {
                place = self.office.enter(SERVICE, &admitted.mailbox, limit);
                if place.is_none() {
                    return self
                        .say(&format!(
                            "{tag} NO Request is throttled. Suggested Backoff Time: 5000 milliseconds"
                        ))
                        .await;
                }
            }
        }
        let early = self
            .office
            .mischief
            .take_mail(SERVICE, |fault| matches!(fault, MailFault::ByeAccessTokenExpired(_)));
        let mut ends = admitted
            .as_ref()
            .map_or_else(|| time::now() + Duration::from_hours(24), |admitted| admitted.bearer.expires);
        if let Some(MailFault::ByeAccessTokenExpired(after)) = early {
            ends = ends.min(time::now() + after);
        }
        let mailbox = admitted.map(|admitted| self.office.post.open(&admitted.mailbox));
        self.user = Some(User {
            news: mailbox.as_ref().map(|mailbox| mailbox.watch()),
            mailbox,
            selected: None,
            ends,
            place,
        });
        let mut reply = format!("{tag} OK AUTHENTICATE completed.\r\n");
        if self.office.mischief.mail_is(SERVICE, &MailFault::EagerAfterLogin) {
            reply.push_str("* OK eager\r\n");
        }
        self.peer.write(reply.as_bytes()).await?;
        self.office.mischief.at(SERVICE, Step::AfterLogin).await
    }

    async fn refuse(&mut self, tag: &str, denied: Denied) -> io::Result<()> {
        if self.office.mischief.mail_is(SERVICE, &MailFault::ErrorChallenge) {
            let challenge = BASE64_STANDARD
                .encode(br#"{"status":"400","schemes":"Bearer","scope":"https://mail.example/"}"#);
            self.say(&format!("+ {challenge}")).await?;
            self.peer.line(LINE_LIMIT).await?;
        }
        let detail = if denied == Denied::NoAppPermission {
            " Error=\"AuthFailed:LogonDenied-None-OAuthLog:AuthExc_Auth Failed. [AM0PR01MB0042.eurprd01.prod.exchangelabs.com]\""
        } else {
            ""
        };
        self.say(&format!("{tag} NO AUTHENTICATE failed.{detail}")).await
    }

    /// Waits for news and for DONE.
    async fn idle(mut self, tag: &str) -> io::Result<Turn> {
        self.say("+ IDLE accepted, awaiting DONE command.").await?;
        loop {
            self.report(true).await?;
            let Some(user) = &mut self.user else {
                return Ok(None);
            };
            let Some(news) = &mut user.news else {
                return Ok(None);
            };
            let line = tokio::select! {
                biased;
                line = self.peer.line(LINE_LIMIT) => line?,
                changed = news.changed() => {
                    changed.map_err(io::Error::other)?;
                    continue;
                }
                () = tokio::time::sleep_until(user.ends) => {
                    return self.bye("Session invalidated - AccessTokenExpired").await;
                }
            };
            let Some(line) = line else {
                return Ok(None);
            };
            let reply = if line.eq_ignore_ascii_case(b"DONE") {
                "OK IDLE completed."
            } else {
                "BAD Command Error. 10"
            };
            self.say(&format!("{tag} {reply}")).await?;
            return Ok(Some(self));
        }
    }

    /// Everything that needs an open mailbox.
    async fn command(&mut self, command: Command) -> io::Result<()> {
        let Command { tag, name, args, .. } = command;
        let Some(mailbox) = self.user.as_ref().and_then(|user| user.mailbox.as_ref().map(Arc::clone)) else {
            return Ok(());
        };
        let text = |at: usize| args.get(at).and_then(Arg::text);
        let reply = match name.as_str() {
            "NAMESPACE" => {
                self.say("* NAMESPACE ((\"\" \"/\")) NIL NIL").await?;
                "OK NAMESPACE completed.".to_owned()
            }
            "ENABLE" => {
                self.say("* ENABLED").await?;
                "OK ENABLE completed.".to_owned()
            }
            "LIST" | "LSUB" => {
                let lines = list(&mailbox, &name, &text(0).unwrap_or_default(), &text(1).unwrap_or_default());
                self.peer.write(lines.as_bytes()).await?;
                format!("OK {name} completed.")
            }
            "SELECT" | "EXAMINE" => self.select(&mailbox, &name, &text(0).unwrap_or_default()).await?,
            "STATUS" => {
                let items = args.get(1).map(Arg::items).unwrap_or_default();
                self.status(&mailbox, &text(0).unwrap_or_default(), &items).await?
            }
            "APPEND" => append(&mailbox, &args),
            "CREATE" | "DELETE" | "SUBSCRIBE" | "UNSUBSCRIBE" | "RENAME" => {
                manage(&mailbox, &name, &text(0).unwrap_or_default(), &text(1).unwrap_or_default())
            }
            "UID" => {
                let sub = text(0).unwrap_or_default().to_ascii_uppercase();
                self.selected(&mailbox, &sub, args.get(1..).unwrap_or_default(), true).await?
            }
            _ => self.selected(&mailbox, &name, &args, false).await?,
        };
        let expunges = !matches!(name.as_str(), "FETCH" | "STORE" | "SEARCH");
        self.report(expunges).await?;
        self.say(&format!("{tag} {reply}")).await
    }

    async fn select(&mut self, mailbox: &Mailbox, name: &str, folder: &str) -> io::Result<String> {
        let read_only = name == "EXAMINE";
        let Some(user) = &mut self.user else {
            return Ok("BAD Command received in Invalid state.".to_owned());
        };
        user.selected = None;
        let Some(id) = mailbox.find(folder) else {
            return Ok(format!("NO {folder} doesn't exist."));
        };
        let Some((view, lines)) =
            mailbox.read(id, |folder| (view(folder), selected_lines(folder, read_only)))
        else {
            return Ok(format!("NO {folder} doesn't exist."));
        };
        user.selected = Some(Selected { folder: id, read_only, view });
        self.peer.write(lines.as_bytes()).await?;
        let mode = if read_only { "READ-ONLY" } else { "READ-WRITE" };
        Ok(format!("OK [{mode}] {name} completed."))
    }

    async fn status(&mut self, mailbox: &Mailbox, name: &str, items: &[Arg]) -> io::Result<String> {
        let Some(id) = mailbox.find(name) else {
            return Ok(format!("NO {name} doesn't exist."));
        };
        let values = mailbox.read(id, |folder| {
            let values = items.iter().filter_map(Arg::text).filter_map(|item| {
                let item = item.to_ascii_uppercase();
                let value = match item.as_str() {
                    "MESSAGES" => folder.messages.len().to_string(),
                    "RECENT" => "0".to_owned(),
                    "UIDNEXT" => folder.uid_next.to_string(),
                    "UIDVALIDITY" => folder.uid_validity.to_string(),
                    "UNSEEN" => folder.unseen().to_string(),
                    _ => return None,
                };
                Some(format!("{item} {value}"))
            });
            values.collect::<Vec<_>>().join(" ")
        });
        let name = String::from_utf8_lossy(&string(name.as_bytes())).into_owned();
        self.say(&format!("* STATUS {name} ({})", values.unwrap_or_default())).await?;
        Ok("OK STATUS completed.".to_owned())
    }

    /// Commands on the open folder.
    async fn selected(
        &mut self,
        mailbox: &Mailbox,
        name: &str,
        args: &[Arg],
        uid: bool,
    ) -> io::Result<String> {
        let Some(selected) = self.user.as_ref().and_then(|user| user.selected.as_ref()) else {
            return Ok("BAD Command received in Invalid state.".to_owned());
        };
        let (folder, read_only) = (selected.folder, selected.read_only);
        let done = if uid { format!("OK UID {name} completed.") } else { format!("OK {name} completed.") };
        let bad = || "BAD Command Argument Error. 11".to_owned();
        let numbers = || args.first().and_then(Arg::text).and_then(|text| selected.find(&text, uid));
        match name {
            "FETCH" => {
                let (Some(found), Some(items)) = (numbers(), args.get(1).and_then(fetch::items)) else {
                    return Ok(bad());
                };
                self.fetch(mailbox, folder, &found, items, uid, read_only).await?;
            }
            "STORE" => {
                let (Some(found), Some(change)) =
                    (numbers(), FlagChange::read(args.get(1..).unwrap_or_default()))
                else {
                    return Ok(bad());
                };
                if read_only {
                    return Ok("NO Folder is open read-only.".to_owned());
                }
                self.store(mailbox, folder, &found, &change, uid).await?;
            }
            "SEARCH" => return self.search(mailbox, folder, args, uid, &done).await,
            "COPY" | "MOVE" => {
                let (Some(found), Some(to)) = (numbers(), args.get(1).and_then(Arg::text)) else {
                    return Ok(bad());
                };
                let Some(to) = mailbox.find(&to) else {
                    return Ok(
                        "NO [TRYCREATE] The requested destination folder could not be found.".to_owned()
                    );
                };
                return self.copy(mailbox, folder, to, &found, name == "MOVE", &done).await;
            }
            "EXPUNGE" | "CLOSE" | "UNSELECT" => {
                if name != "UNSELECT" && !read_only {
                    let only = if uid {
                        numbers().map(|found| found.iter().map(|(_, uid)| *uid).collect::<Vec<_>>())
                    } else {
                        None
                    };
                    mailbox.change(folder, |folder| {
                        folder.messages.retain(|message| {
                            !message.flags.contains("\\Deleted")
                                || only.as_ref().is_some_and(|only| !only.contains(&message.uid))
                        });
                    });
                }
                if name != "EXPUNGE"
                    && let Some(user) = &mut self.user
                {
                    user.selected = None;
                }
            }
            _ => return Ok("BAD Command Error. 10".to_owned()),
        }
        Ok(done)
    }

    async fn fetch(
        &mut self,
        mailbox: &Mailbox,
        folder: u32,
        found: &[(usize, u32)],
        mut items: Vec<Item>,
        uid: bool,
        read_only: bool,
    ) -> io::Result<()> {
        if uid && !items.contains(&Item::Uid) {
            items.push(Item::Uid);
        }
        let estimated = self.office.settings.estimated_sizes;
        let marks_seen = fetch::marks_seen(&items) && !read_only;
        for (number, uid) in found {
            let Some(message) = mailbox.read(folder, |folder| folder.by_uid(*uid).cloned()).flatten() else {
                continue;
            };
            let mut message: Message = message;
            if marks_seen && message.flags.insert("\\Seen".to_owned()) {
                let flags = message.flags.clone();
                self.flagged(mailbox, folder, *uid, flags);
                if !items.contains(&Item::Flags) {
                    items.push(Item::Flags);
                }
            }
            for stretch in fetch::answer(*number, &message, &items, estimated) {
                match stretch {
                    Stretch::Text(text) => self.peer.write(&text).await?,
                    Stretch::Octets(octets) => self.large(&octets).await?,
                }
            }
        }
        Ok(())
    }

    async fn large(&mut self, octets: &Bytes) -> io::Result<()> {
        let (first, second) = octets.split_at(octets.len() / 2);
        self.peer.write(first).await?;
        self.office.mischief.at(SERVICE, Step::Transfer).await?;
        self.peer.write(second).await
    }

    /// Sets the flags of a message, here and in what the other end knows.
    fn flagged(&mut self, mailbox: &Mailbox, folder: u32, uid: u32, flags: BTreeSet<String>) {
        let selected = self.user.as_mut().and_then(|user| user.selected.as_mut());
        if let Some(seen) =
            selected.and_then(|selected| selected.view.iter_mut().find(|seen| seen.uid == uid))
        {
            seen.flags.clone_from(&flags);
        }
        mailbox.change(folder, |folder| {
            if let Some(message) = folder.by_uid_mut(uid) {
                message.flags = flags;
            }
        });
    }

    async fn store(
        &mut self,
        mailbox: &Mailbox,
        folder: u32,
        found: &[(usize, u32)],
        change: &FlagChange,
        uid: bool,
    ) -> io::Result<()> {
        let mut lines = String::new();
        for (number, id) in found {
            let Some(mut message) = mailbox.read(folder, |folder| folder.by_uid(*id).cloned()).flatten()
            else {
                continue;
            };
            change.apply(&mut message.flags);
            self.flagged(mailbox, folder, *id, message.flags.clone());
            if !change.silent {
                let uid = if uid { format!(" UID {id}") } else { String::new() };
                lines.push_str(&format!("* {number} FETCH (FLAGS {}{uid})\r\n", fetch::flags(&message)));
            }
        }
        self.peer.write(lines.as_bytes()).await
    }

    async fn search(
        &mut self,
        mailbox: &Mailbox,
        folder: u32,
        args: &[Arg],
        uid: bool,
        done: &str,
    ) -> io::Result<String> {
        let mut keys = args;
        if args.first().and_then(Arg::text).is_some_and(|word| word.eq_ignore_ascii_case("CHARSET")) {
            if !args
                .get(1)
                .and_then(Arg::text)
                .is_some_and(|charset| charset.eq_ignore_ascii_case("US-ASCII"))
            {
                return Ok("NO [BADCHARSET (US-ASCII)] The specified charset is not supported.".to_owned());
            }
            keys = args.get(2..).unwrap_or_default();
        }
        let Some(key) = search::keys(keys) else {
            return Ok("BAD Command Argument Error. 11".to_owned());
        };
        let Some(selected) = self.user.as_ref().and_then(|user| user.selected.as_ref()) else {
            return Ok(done.to_owned());
        };
        let uids: Vec<u32> = selected.view.iter().map(|seen| seen.uid).collect();
        let numbers: Vec<u32> = (1..).take(uids.len()).collect();
        let mut line = "* SEARCH".to_owned();
        for (number, id) in numbers.iter().zip(&uids) {
            let Some(message) = mailbox.read(folder, |folder| folder.by_uid(*id).cloned()).flatten() else {
                continue;
            };
            if key.matches(&message, search::Place { number: *number, numbers: &numbers, uids: &uids }) {
                line.push_str(&format!(" {}", if uid { id } else { number }));
            }
        }
        self.say(&line).await?;
        Ok(done.to_owned())
    }

    async fn copy(
        &mut self,
        mailbox: &Mailbox,
        from: u32,
        to: u32,
        found: &[(usize, u32)],
        moves: bool,
        done: &str,
    ) -> io::Result<String> {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (_, uid) in found {
            let Some(message) = mailbox.read(from, |folder| folder.by_uid(*uid).cloned()).flatten() else {
                continue;
            };
            let copied =
                mailbox.change(to, |folder| folder.append(message.raw, message.flags, message.received));
            if let Some((copy, _)) = copied {
                old.push(uid.to_string());
                new.push(copy.to_string());
            }
        }
        let validity = mailbox.read(to, |folder| folder.uid_validity).unwrap_or(1);
        let code = format!("[COPYUID {validity} {} {}]", old.join(","), new.join(","));
        if moves {
            self.say(&format!("* OK {code}")).await?;
            mailbox.change(from, |folder| {
                folder.messages.retain(|message| !found.iter().any(|(_, uid)| *uid == message.uid));
            });
            return Ok(done.to_owned());
        }
        Ok(if old.is_empty() { done.to_owned() } else { done.replacen("OK", &format!("OK {code}"), 1) })
    }

    /// Tells the other end what has changed in its folder.
    async fn report(&mut self, expunges: bool) -> io::Result<()> {
        let Some(user) = &mut self.user else {
            return Ok(());
        };
        if let Some(news) = &mut user.news {
            news.mark_unchanged();
        }
        let (Some(mailbox), Some(selected)) = (&user.mailbox, &mut user.selected) else {
            return Ok(());
        };
        let lines =
            mailbox.read(selected.folder, |folder| selected.catch_up(folder, expunges)).unwrap_or_default();
        if lines.is_empty() {
            return Ok(());
        }
        self.peer.write(lines.as_bytes()).await
    }
}

impl Selected {
    /// (sequence number, UID) of what a set names.
    fn find(&self, text: &str, uid: bool) -> Option<Vec<(usize, u32)>> {
        if uid {
            let uids: Vec<u32> = self.view.iter().map(|seen| seen.uid).collect();
            let found = set(text, &uids)?;
            let numbered = (1..).zip(uids).filter(|(_, uid)| found.binary_search(uid).is_ok());
            return Some(numbered.collect());
        }
        let numbers: Vec<u32> = (1..).take(self.view.len()).collect();
        let found = set(text, &numbers)?;
        let numbered = found.into_iter().filter_map(|number| {
            let at = usize::try_from(number).ok()?.checked_sub(1)?;
            self.view.get(at).map(|seen| (at + 1, seen.uid))
        });
        Some(numbered.collect())
    }

    /// Brings the view up to date; the lines that say so.
    fn catch_up(&mut self, folder: &Folder, expunges: bool) -> String {
        let mut lines = String::new();
        if expunges {
            let mut number = 1;
            self.view.retain(|seen| {
                let stays = folder.by_uid(seen.uid).is_some();
                if stays {
                    number += 1;
                } else {
                    lines.push_str(&format!("* {number} EXPUNGE\r\n"));
                }
                stays
            });
        }
        for (seen, number) in self.view.iter_mut().zip(1..) {
            if let Some(message) = folder.by_uid(seen.uid).filter(|message| message.flags != seen.flags) {
                seen.flags.clone_from(&message.flags);
                lines.push_str(&format!("* {number} FETCH (FLAGS {})\r\n", fetch::flags(message)));
            }
        }
        let last = self.view.last().map_or(0, |seen| seen.uid);
        let before = self.view.len();
        let new = folder.messages.iter().filter(|message| message.uid > last);
        self.view.extend(new.map(|message| Seen { uid: message.uid, flags: message.flags.clone() }));
        if self.view.len() > before {
            lines.push_str(&format!("* {} EXISTS\r\n", self.view.len()));
        }
        lines
    }
}

/// What STORE does.
struct FlagChange {
    sign: char,
    silent: bool,
    flags: Vec<String>,
}

impl FlagChange {
    fn read(args: &[Arg]) -> Option<Self> {
        let name = args.first()?.text()?.to_ascii_uppercase();
        let sign = name.chars().next().filter(|char| matches!(char, '+' | '-')).unwrap_or('=');
        let name = name.trim_start_matches(['+', '-']);
        let silent = name == "FLAGS.SILENT";
        if !silent && name != "FLAGS" {
            return None;
        }
        let flags =
            args.get(1..)?.iter().flat_map(Arg::items).filter_map(|flag| flag.text()).map(|flag| tidy(&flag));
        Some(Self { sign, silent, flags: flags.collect() })
    }

    fn apply(&self, flags: &mut BTreeSet<String>) {
        match self.sign {
            '+' => flags.extend(self.flags.iter().cloned()),
            '-' => flags.retain(|flag| !self.flags.contains(flag)),
            _ => *flags = self.flags.iter().cloned().collect(),
        }
    }
}

/// System flags in their usual spelling.
fn tidy(flag: &str) -> String {
    let known = ["\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft"];
    known
        .iter()
        .find(|known| known.eq_ignore_ascii_case(flag))
        .map_or_else(|| flag.to_owned(), |&known| known.to_owned())
}

fn command(pieces: &[Piece], length: usize) -> Read {
    let Some(Piece::Line(first)) = pieces.first() else {
        return Read::Bad("*".to_owned());
    };
    let text = String::from_utf8_lossy(first);
    let mut words = text.splitn(3, ' ');
    let (tag, name) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
    if tag.is_empty() || name.is_empty() || tag.contains(['(', ')', '{', '"', '%', '*', '+']) {
        return Read::Bad("*".to_owned());
    }
    let skip = first.len().min(tag.len() + 1 + name.len());
    let mut rest = vec![Piece::Line(first.get(skip..).unwrap_or_default().to_vec())];
    rest.extend(pieces.iter().skip(1).cloned());
    match arguments(&rest) {
        Some(args) => Read::Command(Command { tag, name: name.to_ascii_uppercase(), args, length }),
        None => Read::Bad(tag),
    }
}

fn view(folder: &Folder) -> Vec<Seen> {
    folder.messages.iter().map(|message| Seen { uid: message.uid, flags: message.flags.clone() }).collect()
}

fn selected_lines(folder: &Folder, read_only: bool) -> String {
    let flags = "\\Seen \\Answered \\Flagged \\Deleted \\Draft $MDNSent";
    let permanent = if read_only { "" } else { flags };
    let unseen = folder.messages.iter().position(|message| !message.flags.contains("\\Seen"));
    let unseen = unseen
        .map(|at| format!("* OK [UNSEEN {}] Is the first unseen message\r\n", at + 1))
        .unwrap_or_default();
    format!(
        "* {} EXISTS\r\n* 0 RECENT\r\n* FLAGS ({flags})\r\n* OK [PERMANENTFLAGS ({permanent})] Permanent flags\r\n{unseen}* OK [UIDVALIDITY {}] UIDVALIDITY value\r\n* OK [UIDNEXT {}] The next unique identifier value\r\n",
        folder.messages.len(),
        folder.uid_validity,
        folder.uid_next
    )
}

fn list(mailbox: &Mailbox, name: &str, reference: &str, pattern: &str) -> String {
    if pattern.is_empty() {
        return format!("* {name} (\\Noselect) \"/\" \"\"\r\n");
    }
    let pattern = format!("{reference}{pattern}");
    // Each wildcard may multiply the work.
    if pattern.matches(['*', '%']).count() > 8 {
        return String::new();
    }
    let folders = mailbox.folders();
    let mut lines = String::new();
    for folder in &folders {
        let matches = glob(pattern.as_bytes(), folder.name.as_bytes())
            || folder.id == 1 && pattern.eq_ignore_ascii_case("INBOX");
        if !matches || name == "LSUB" && !folder.subscribed {
            continue;
        }
        let below = format!("{}/", folder.name);
        let children = folders.iter().any(|other| other.name.starts_with(&below));
        let children = if children { "\\HasChildren" } else { "\\HasNoChildren" };
        let special = match folder.distinguished {
            Some("sentitems") => " \\Sent",
            Some("deleteditems") => " \\Trash",
            Some("drafts") => " \\Drafts",
            Some("junkemail") => " \\Junk",
            Some("archive") => " \\Archive",
            _ => "",
        };
        let quoted = if folder.name.contains(' ') {
            String::from_utf8_lossy(&string(folder.name.as_bytes())).into_owned()
        } else {
            folder.name.clone()
        };
        lines.push_str(&format!("* {name} ({children}{special}) \"/\" {quoted}\r\n"));
    }
    lines
}

/// `*` is anything, `%` anything without a slash.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|at| glob(rest, text.get(at..).unwrap_or_default())),
        Some((b'%', rest)) => {
            let end = memchr::memchr(b'/', text).unwrap_or(text.len());
            (0..=end).any(|at| glob(rest, text.get(at..).unwrap_or_default()))
        }
        Some((octet, rest)) => {
            text.split_first().is_some_and(|(first, behind)| first == octet && glob(rest, behind))
        }
    }
}

fn append(mailbox: &Mailbox, args: &[Arg]) -> String {
    let (Some(name), Some(octets)) = (args.first().and_then(Arg::text), args.last().and_then(Arg::octets))
    else {
        return "BAD Command Argument Error. 11".to_owned();
    };
    if args.len() < 2 {
        return "BAD Command Argument Error. 11".to_owned();
    }
    let Some(folder) = mailbox.find(&name) else {
        return "NO [TRYCREATE] The requested folder could not be found.".to_owned();
    };
    let middle = args.get(1..args.len() - 1).unwrap_or_default();
    let (mut flags, mut received) = (Vec::new(), time::wall());
    for arg in middle {
        match arg {
            Arg::List(items) => flags.extend(items.iter().filter_map(Arg::text).map(|flag| tidy(&flag))),
            Arg::Atom(text) => received = date(text).unwrap_or(received),
            Arg::Text(text) => received = date(&String::from_utf8_lossy(text)).unwrap_or(received),
        }
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let validity = mailbox.read(folder, |folder| folder.uid_validity).unwrap_or(1);
    match mailbox.append(folder, octets, &flags, received) {
        Some((uid, _)) => format!("OK [APPENDUID {validity} {uid}] APPEND completed."),
        None => "NO APPEND failed.".to_owned(),
    }
}

/// ` 3-Feb-2026 10:00:00 +0000`
fn date(text: &str) -> Option<Timestamp> {
    Timestamp::strptime("%d-%b-%Y %H:%M:%S %z", text.trim()).ok()
}

fn manage(mailbox: &Mailbox, name: &str, folder: &str, to: &str) -> String {
    let folder = folder.trim_end_matches('/');
    let worked = match name {
        "CREATE" => mailbox.create(folder).is_some(),
        "DELETE" => mailbox.remove(folder),
        "RENAME" => mailbox.rename(folder, to),
        _ => mailbox
            .find(folder)
            .and_then(|id| mailbox.change(id, |folder| folder.subscribed = name == "SUBSCRIBE"))
            .is_some(),
    };
    if worked { format!("OK {name} completed.") } else { format!("NO {name} failed.") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_patterns_know_both_wildcards() {
        assert!(glob(b"*", b"a/b"));
        assert!(glob(b"%", b"ab"));
        assert!(!glob(b"%", b"a/b"));
        assert!(glob(b"a/%", b"a/b"));
        assert!(glob(b"*b", b"a/b"));
        assert!(!glob(b"x*", b"a/b"));
    }

    #[test]
    fn the_greeting_hides_a_host_name() {
        let octets = BASE64_STANDARD.decode(host_token()).unwrap();
        assert_eq!(octets.get(..4), Some(&b"A\0M\0"[..]));
    }
}
