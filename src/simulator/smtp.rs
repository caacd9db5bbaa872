//! SMTP submission as smtp.office365.com does it.

use std::{io, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use memchr::memmem;

use super::{
    admission::{self, Admitted, Attempt, Denied},
    journal::Service,
    message,
    mischief::{MailFault, Step},
    office::{Office, Place},
    random, time,
    wire::Peer,
};

const HOST: &str = "AM0PR01CA0042.outlook.office365.com";
/// Octets of a command line with its CRLF, RFC 4954 section 4.
const LINE_LIMIT: usize = 12_288;
/// Octets of a line that is read at all.
const READ_LIMIT: usize = 256 * 1024;
const RECIPIENTS: usize = 1000;
const SERVICE: Service = Service::Smtp;

/// Serves one connection until it ends.
pub(super) async fn serve(office: Arc<Office>, mut peer: Peer) -> io::Result<()> {
    let date = time::wall().strftime("%a, %-d %b %Y %H:%M:%S +0000");
    let greeting = format!(
        "220 {HOST} Microsoft ESMTP MAIL Service ready at {date} [{}]\r\n",
        random::hex(&random::octets::<8>()).to_uppercase()
    );
    if !peer.greet(&office.mischief, SERVICE, &greeting, "421 4.3.2 Service not active\r\n").await? {
        return Ok(());
    }
    let mut session = Session {
        office,
        peer,
        hello: false,
        admitted: None,
        place: None,
        from: None,
        to: Vec::new(),
        chunks: BytesMut::new(),
        errors: 0,
    };
    while let Some(next) = session.turn().await? {
        session = next;
    }
    Ok(())
}

struct Session {
    office: Arc<Office>,
    peer: Peer,
    hello: bool,
    admitted: Option<Admitted>,
    place: Option<Place>,
    from: Option<String>,
    to: Vec<String>,
    chunks: BytesMut,
    errors: u32,
}

/// The session, unless it has ended.
type Turn = Option<Session>;

impl Session {
    /// One command.
    async fn turn(mut self) -> io::Result<Turn> {
        let Some(line) = self.peer.line(READ_LIMIT).await? else {
            return Ok(None);
        };
        if line.len() + 2 > LINE_LIMIT {
            self.say("500 5.5.2 Syntax error, command line too long").await?;
            return Ok(Some(self));
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let (verb, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => self.hello(rest).await?,
            "HELO" => {
                self.hello = true;
                self.say(&format!("250 {HOST} Hello [127.0.0.1]")).await?;
            }
            "STARTTLS" => return self.start_tls().await,
            "AUTH" => self.auth(rest, line.len()).await?,
            "MAIL" => self.mail(rest).await?,
            "RCPT" => self.rcpt(rest).await?,
            "DATA" => self.data().await?,
            "BDAT" => self.bdat(rest).await?,
            "RSET" => {
                self.reset();
                self.say("250 2.0.0 Resetting").await?;
            }
            "NOOP" => self.say("250 2.0.0 OK").await?,
            "HELP" => self.say("214-This server supports the following commands:\r\n214 HELO EHLO STARTTLS RCPT DATA RSET MAIL QUIT HELP AUTH BDAT").await?,
            "VRFY" => self.say("252 2.1.5 Cannot VRFY user").await?,
            "QUIT" => {
                self.say("221 2.0.0 Service closing transmission channel").await?;
                self.peer.close().await?;
                return Ok(None);
            }
            _ => {
                self.errors += 1;
                self.say("500 5.3.3 Unrecognized command").await?;
                if self.errors > 10 {
                    self.say("421 4.7.0 Too many errors on this connection, closing transmission channel").await?;
                    self.peer.close().await?;
                    return Ok(None);
                }
            }
        }
        Ok(Some(self))
    }

    async fn say(&mut self, reply: &str) -> io::Result<()> {
        self.peer.write(format!("{reply}\r\n").as_bytes()).await
    }

    fn reset(&mut self) {
        self.from = None;
        self.to.clear();
        self.chunks.clear();
    }

    async fn hello(&mut self, name: &str) -> io::Result<()> {
        self.office.mischief.at(SERVICE, Step::Capability).await?;
        if name.trim().is_empty() {
            return self.say("501 5.5.4 Invalid domain name").await;
        }
        self.hello = true;
        self.reset();
        let mut reply = format!(
            "250-{HOST} Hello [127.0.0.1]\r\n250-SIZE {}\r\n250-PIPELINING\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n",
            self.office.settings.message_limit
        );
        if self.peer.tls {
            reply.push_str("250-AUTH LOGIN XOAUTH2\r\n");
        } else if self.office.mischief.take_mail(SERVICE, |fault| *fault == MailFault::NoStartTls).is_none() {
            reply.push_str("250-STARTTLS\r\n");
        }
        reply.push_str("250-8BITMIME\r\n250-BINARYMIME\r\n250-CHUNKING\r\n250 SMTPUTF8");
        self.say(&reply).await
    }

    async fn start_tls(mut self) -> io::Result<Turn> {
        self.office.mischief.at(SERVICE, Step::StartTls).await?;
        if self.peer.tls {
            self.say("503 5.5.2 Only one STARTTLS command can be issued per session").await?;
            return Ok(Some(self));
        }
        if !self.hello {
            self.say("503 5.5.2 Send hello first").await?;
            return Ok(Some(self));
        }
        let mut reply = "220 2.0.0 SMTP server ready\r\n".to_owned();
        if self.office.mischief.mail_is(SERVICE, &MailFault::InjectBeforeTls) {
            reply.push_str("250-injected.example\r\n250 AUTH PLAIN\r\n235 2.7.0 injected\r\n");
        }
        self.peer.write(reply.as_bytes()).await?;
        let acceptor = self.office.certificates.acceptor(self.office.mischief.bad_certificate(SERVICE));
        self.peer = self.peer.upgrade(&acceptor).await?;
        self.hello = false;
        self.from = None;
        self.to.clear();
        Ok(Some(self))
    }

    async fn auth(&mut self, rest: &str, line_length: usize) -> io::Result<()> {
        if !self.hello {
            return self.say("503 5.5.2 Send hello first").await;
        }
        if self.admitted.is_some() {
            return self.say("503 5.5.2 Already authenticated").await;
        }
        let (mechanism, response) = rest.split_once(' ').unwrap_or((rest, ""));
        match mechanism.to_ascii_uppercase().as_str() {
            "XOAUTH2" if self.peer.tls => self.xoauth2(response.as_bytes(), line_length).await,
            "LOGIN" if self.peer.tls => self.basic(response).await,
            other => {
                admission::refuse_basic(&self.office, SERVICE, other, "", self.peer.tls);
                self.say("504 5.7.4 Unrecognized authentication type").await
            }
        }
    }

    async fn xoauth2(&mut self, inline: &[u8], line_length: usize) -> io::Result<()> {
        self.office.mischief.at(SERVICE, Step::Login).await?;
        let (mut response, mut line_length) = (inline.to_vec(), line_length);
        let initial_response = !inline.is_empty();
        if !initial_response || self.office.mischief.mail_is(SERVICE, &MailFault::EmptyChallenge) {
            self.say("334 ").await?;
            let line = self.peer.line(READ_LIMIT).await?.unwrap_or_default();
            if line == b"*" {
                return self.say(&format!("535 5.7.3 Authentication unsuccessful {}", trace())).await;
            }
            if !initial_response {
                line_length = line.len();
                response = line;
            }
        }
        if self.office.mischief.mail_is(SERVICE, &MailFault::Throttle) {
            return self.say("454 4.7.0 Temporary authentication failure").await;
        }
        let attempt = Attempt {
            service: SERVICE,
            response: &response,
            initial_response,
            line_length,
            tls: self.peer.tls,
        };
        match admission::sign_in(&self.office, attempt) {
            Ok(admitted) => self.welcome(admitted).await,
            Err(denied) => self.refuse(denied).await,
        }
    }

    async fn welcome(&mut self, admitted: Admitted) -> io::Result<()> {
        let limit =
            self.office.mischief.take_mail(SERVICE, |fault| matches!(fault, MailFault::ConcurrencyLimit(_)));
        let limit = match limit {
            Some(MailFault::ConcurrencyLimit(limit)) => limit,
            _ => self.office.settings.smtp_sessions_per_mailbox,
        };
        let Some(place) = self.office.enter(SERVICE, &admitted.mailbox, limit) else {
            return self.say(&format!(
                "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. {}",
                trace()
            )).await;
        };
        self.place = Some(place);
        self.admitted = Some(admitted);
        self.say("235 2.7.0 Authentication successful").await?;
        self.office.mischief.at(SERVICE, Step::AfterLogin).await
    }

    async fn refuse(&mut self, denied: Denied) -> io::Result<()> {
        if self.office.mischief.mail_is(SERVICE, &MailFault::ErrorChallenge) {
            let challenge = BASE64_STANDARD
                .encode(br#"{"status":"400","schemes":"Bearer","scope":"https://mail.example/"}"#);
            self.say(&format!("334 {challenge}")).await?;
            self.peer.line(READ_LIMIT).await?;
        }
        let disabled = |what: &str| {
            format!(
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the {what}. Visit https://aka.ms/smtp_auth_disabled for more information. {}",
                trace()
            )
        };
        let reply = match denied {
            Denied::SmtpDisabledForMailbox => disabled("Mailbox"),
            Denied::SmtpDisabledForTenant => disabled("Tenant"),
            Denied::BadResponse
            | Denied::BadToken
            | Denied::WrongAudience
            | Denied::NotConnected(_)
            | Denied::NoAppPermission
            | Denied::NotTheTokensUser => format!("535 5.7.3 Authentication unsuccessful {}", trace()),
        };
        self.say(&reply).await
    }

    /// AUTH LOGIN is still announced, and never works.
    async fn basic(&mut self, inline: &str) -> io::Result<()> {
        let mut user = inline.as_bytes().to_vec();
        if inline.is_empty() {
            self.say("334 VXNlcm5hbWU6").await?;
            user = self.peer.line(READ_LIMIT).await?.unwrap_or_default();
        }
        self.say("334 UGFzc3dvcmQ6").await?;
        self.peer.line(READ_LIMIT).await?;
        let user = BASE64_STANDARD.decode(user).unwrap_or_default();
        admission::refuse_basic(
            &self.office,
            SERVICE,
            "LOGIN",
            &String::from_utf8_lossy(&user),
            self.peer.tls,
        );
        self.say(&format!(
            "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. {}",
            trace()
        ))
        .await
    }

    async fn mail(&mut self, rest: &str) -> io::Result<()> {
        if !self.hello {
            return self.say("503 5.5.2 Send hello first").await;
        }
        let Some(admitted) = &self.admitted else {
            return self.say("530 5.7.57 Client not authenticated to send mail").await;
        };
        if self.from.is_some() {
            return self.say("503 5.5.2 Sender already specified").await;
        }
        let Some((from, parameters)) = path(rest, "FROM:") else {
            return self.say("501 5.5.4 Invalid arguments").await;
        };
        let size = parameters.split(' ').find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.eq_ignore_ascii_case("SIZE").then(|| value.parse::<usize>().ok())?
        });
        if size.is_some_and(|size| size > self.office.settings.message_limit) {
            return self.say("552 5.3.4 Message size exceeds fixed maximum message size").await;
        }
        if !from.is_empty() && !self.may_send_as(admitted, &from) {
            return self
                .say("550 5.7.60 SMTP; Client does not have permissions to send as this sender")
                .await;
        }
        self.from = Some(from);
        self.say("250 2.1.0 Sender OK").await
    }

    fn may_send_as(&self, admitted: &Admitted, sender: &str) -> bool {
        let tenant = &self.office.tenant;
        tenant.may_send_as(&admitted.mailbox, sender)
            || admitted.bearer.user.is_none() && tenant.may_send_as(&admitted.bearer.client_id, sender)
    }

    async fn rcpt(&mut self, rest: &str) -> io::Result<()> {
        if self.from.is_none() {
            return self.say("503 5.5.2 Need mail command").await;
        }
        match path(rest, "TO:") {
            Some((to, _)) if to.contains('@') => {
                if self.to.len() >= RECIPIENTS {
                    return self.say("452 4.5.3 Too many recipients").await;
                }
                self.to.push(to);
                self.say("250 2.1.5 Recipient OK").await
            }
            _ => self.say("501 5.1.3 Invalid address").await,
        }
    }

    async fn data(&mut self) -> io::Result<()> {
        if self.to.is_empty() || self.from.is_none() {
            return self.say("503 5.5.2 Need rcpt command").await;
        }
        self.say("354 Start mail input; end with <CRLF>.<CRLF>").await?;
        let Some(stuffed) = self.until_dot().await? else {
            self.reset();
            return self.say("552 5.3.4 Message size exceeds fixed maximum message size").await;
        };
        let message = unstuff(&stuffed);
        drop(stuffed);
        self.submit(message).await
    }

    /// The octets up to CRLF . CRLF and nothing else, with the CRLF that ends the last line; `None` if they are too many.
    async fn until_dot(&mut self) -> io::Result<Option<BytesMut>> {
        let mut data = BytesMut::from(&b"\r\n"[..]);
        let limit = self.office.settings.message_limit + 1024;
        let (mut searched, mut too_big, mut first) = (0, false, true);
        loop {
            if let Some(at) = memmem::find(data.get(searched..).unwrap_or_default(), b"\r\n.\r\n") {
                let rest = data.split_off(searched + at + 5);
                self.peer.unread(&rest);
                data.truncate(searched + at + 2);
                return Ok((!too_big).then(|| data.split_off(2)));
            }
            searched = data.len().saturating_sub(4);
            if data.len() > limit {
                too_big = true;
                data = data.split_off(searched);
                searched = 0;
            }
            let Some(more) = self.peer.some().await? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            data.extend_from_slice(&more);
            if first {
                first = false;
                self.office.mischief.at(SERVICE, Step::Transfer).await?;
            }
        }
    }

    async fn bdat(&mut self, rest: &str) -> io::Result<()> {
        let mut words = rest.split_ascii_whitespace();
        let Some(size) = words.next().and_then(|size| size.parse::<usize>().ok()) else {
            return self.say("501 5.5.4 Invalid arguments").await;
        };
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        if size > self.office.settings.message_limit + 1024 {
            self.say("552 5.3.4 Message size exceeds fixed maximum message size").await?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        let chunk = self.peer.exactly(size).await?;
        self.office.mischief.at(SERVICE, Step::Transfer).await?;
        if self.to.is_empty() || self.from.is_none() {
            return self.say("503 5.5.2 Need rcpt command").await;
        }
        if self.chunks.len() + size > self.office.settings.message_limit {
            self.reset();
            return self.say("552 5.3.4 Message size exceeds fixed maximum message size").await;
        }
        self.chunks.extend_from_slice(&chunk);
        if !last {
            return self.say(&format!("250 2.0.0 {size} octets received")).await;
        }
        let message = self.chunks.split().freeze();
        self.submit(message).await
    }

    async fn submit(&mut self, message: Bytes) -> io::Result<()> {
        self.office.mischief.at(SERVICE, Step::Received).await?;
        let (from, to) = (self.from.take().unwrap_or_default(), std::mem::take(&mut self.to));
        self.reset();
        let Some(admitted) = self.admitted.clone() else {
            return self.say("530 5.7.57 Client not authenticated to send mail").await;
        };
        if admitted.logon_fails {
            return self.say("430 4.2.0 STOREDRV; mailbox logon failure; STOREDRV.Submission.Exception:StoragePermanentException.MapiExceptionLogonFailed; Failed to process message due to a permanent exception").await;
        }
        let denied = message::addresses(&message, "From")
            .into_iter()
            .find(|sender| !self.may_send_as(&admitted, sender));
        if let Some(sender) = denied {
            return self.say(&format!(
                "554 5.2.252 SendAsDenied; {} not allowed to send as {sender}; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception with message Cannot submit message.",
                admitted.mailbox
            )).await;
        }
        self.office.submit(SERVICE, &admitted.mailbox, &from, &to, &message, true);
        let id = random::guid();
        self.say(&format!(
            "250 2.0.0 OK <{id}@{HOST}> [Hostname=AM0PR01MB0042.eurprd01.prod.exchangelabs.com]"
        ))
        .await
    }
}

/// What Exchange adds behind a refusal: host, date, id.
fn trace() -> String {
    let date = time::wall().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
    format!("[{HOST} {date} {}]", random::hex(&random::octets::<8>()).to_uppercase())
}

/// The address in `FROM:<a@b> PARAMETERS`.
fn path(rest: &str, keyword: &str) -> Option<(String, String)> {
    let rest = rest.trim_start();
    let (found, rest) = rest.split_at_checked(keyword.len())?;
    if !found.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let rest = rest.trim_start();
    let (address, parameters) = match rest.strip_prefix('<') {
        Some(rest) => rest.split_once('>')?,
        None => rest.split_once(' ').unwrap_or((rest, "")),
    };
    Some((address.to_owned(), parameters.trim().to_owned()))
}

/// Takes one dot from each line that begins with one. A line begins after CRLF, and only there.
fn unstuff(stuffed: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(stuffed.len());
    let mut rest = stuffed.strip_prefix(b".").unwrap_or(stuffed);
    while let Some(at) = memmem::find(rest, b"\r\n.") {
        let (line, behind) = rest.split_at(at + 2);
        message.extend_from_slice(line);
        rest = behind.get(1..).unwrap_or_default();
    }
    message.extend_from_slice(rest);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_taken_from_line_starts_only() {
        assert_eq!(unstuff(b"..a\r\n..\r\nb..\r\n\n..c\r\n"), &b".a\r\n.\r\nb..\r\n\n..c\r\n"[..]);
        assert_eq!(unstuff(b""), &b""[..]);
    }

    #[test]
    fn a_path_is_read_with_and_without_its_brackets() {
        assert_eq!(path("FROM:<a@b> SIZE=1", "FROM:"), Some(("a@b".to_owned(), "SIZE=1".to_owned())));
        assert_eq!(path("from: a@b", "FROM:"), Some(("a@b".to_owned(), String::new())));
        assert_eq!(path("FROM:<>", "FROM:"), Some((String::new(), String::new())));
        assert_eq!(path("TO:<a@b>", "FROM:"), None);
    }
}
