//! POP3 as outlook.office365.com does it.

use std::{collections::BTreeSet, io, sync::Arc};

use memchr::memmem;

use super::{
    admission::{self, Admitted, Attempt},
    imap,
    journal::Service,
    mailbox::Message,
    mischief::{MailFault, Step},
    office::{Office, Place},
    settings::Edition,
    wire::Peer,
};

const READ_LIMIT: usize = 256 * 1024;
/// Octets of a command line: why the one-line form of XOAUTH2 fails.
const COMMAND_LIMIT: usize = 512;
const SERVICE: Service = Service::Pop3;
const PROTOCOL_ERROR: &str = "-ERR Protocol error. Connection is closed. 10";

/// Serves one connection until it ends.
pub(super) async fn serve(office: Arc<Office>, mut peer: Peer) -> io::Result<()> {
    let greeting = match office.settings.edition {
        Edition::Classic => {
            format!("+OK The Microsoft Exchange POP3 service is ready. [{}]\r\n", imap::host_token())
        }
        Edition::TcpProxy => {
            format!(
                "+OK Microsoft Exchange POP3 server ready (tcpproxy/15.20.9137.005). [{}]\r\n",
                imap::host_token()
            )
        }
    };
    if !peer.greet(&office.mischief, SERVICE, &greeting, "-ERR Connection is closed. 14\r\n").await? {
        return Ok(());
    }
    let mut session = Session { office, peer, user: String::new(), open: None, errors: 0 };
    while let Some(next) = session.turn().await? {
        session = next;
    }
    Ok(())
}

struct Session {
    office: Arc<Office>,
    peer: Peer,
    user: String,
    open: Option<Open>,
    errors: u32,
}

/// The Inbox as it was at the login.
struct Open {
    mailbox: String,
    messages: Vec<Message>,
    deleted: BTreeSet<usize>,
    #[expect(dead_code, reason = "held so that the session counts")]
    place: Option<Place>,
}

/// The session, unless it has ended.
type Turn = Option<Session>;

impl Session {
    async fn turn(mut self) -> io::Result<Turn> {
        let Some(line) = self.peer.line(READ_LIMIT).await? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&line).into_owned();
        let (verb, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let verb = verb.to_ascii_uppercase();
        match verb.as_str() {
            "QUIT" => {
                self.quit().await?;
                return Ok(None);
            }
            "CAPA" => {
                self.capa().await?;
                return Ok(Some(self));
            }
            _ if line.len() > COMMAND_LIMIT => return self.protocol_error().await,
            _ => {}
        }
        if self.open.is_some() {
            self.transaction(&verb, rest).await?;
            return Ok(Some(self));
        }
        match verb.as_str() {
            "STLS" => return self.start_tls().await,
            "AUTH" => return self.auth(rest).await,
            "USER" => {
                rest.clone_into(&mut self.user);
                self.say("+OK").await?;
            }
            "PASS" => {
                admission::refuse_basic(&self.office, SERVICE, "USER", &self.user, self.peer.tls);
                self.say("-ERR Logon failure: unknown user name or bad password.").await?;
            }
            "NOOP" => self.say("+OK").await?,
            _ => {
                self.errors += 1;
                if self.errors > 10 {
                    return self.protocol_error().await;
                }
                self.say("-ERR Command is not valid in this state.").await?;
            }
        }
        Ok(Some(self))
    }

    async fn say(&mut self, reply: &str) -> io::Result<()> {
        self.peer.write(format!("{reply}\r\n").as_bytes()).await
    }

    async fn protocol_error(mut self) -> io::Result<Turn> {
        self.say(PROTOCOL_ERROR).await?;
        self.peer.close().await?;
        Ok(None)
    }

    async fn capa(&mut self) -> io::Result<()> {
        self.office.mischief.at(SERVICE, Step::Capability).await?;
        let mut reply = "+OK\r\nTOP\r\nUIDL\r\n".to_owned();
        if self.peer.tls {
            reply.push_str("SASL PLAIN XOAUTH2\r\nUSER\r\n");
        } else if !self.office.mischief.mail_is(SERVICE, &MailFault::NoStartTls) {
            reply.push_str("STLS\r\n");
        }
        reply.push('.');
        self.say(&reply).await
    }

    async fn start_tls(mut self) -> io::Result<Turn> {
        self.office.mischief.at(SERVICE, Step::StartTls).await?;
        if self.peer.tls {
            self.say("-ERR Command is not valid in this state.").await?;
            return Ok(Some(self));
        }
        let mut reply = "+OK Begin TLS negotiation.\r\n".to_owned();
        if self.office.mischief.mail_is(SERVICE, &MailFault::InjectBeforeTls) {
            reply.push_str("+OK injected\r\n+OK injected\r\n");
        }
        self.peer.write(reply.as_bytes()).await?;
        let acceptor = self.office.certificates.acceptor(self.office.mischief.bad_certificate(SERVICE));
        self.peer = self.peer.upgrade(&acceptor).await?;
        Ok(Some(self))
    }

    async fn auth(mut self, rest: &str) -> io::Result<Turn> {
        let (mechanism, response) = rest.split_once(' ').unwrap_or((rest, ""));
        match mechanism.to_ascii_uppercase().as_str() {
            "" => self.say("+OK\r\nPLAIN\r\nXOAUTH2\r\n.").await?,
            "XOAUTH2" if self.peer.tls => {
                // The one-line form is over the limit of a command with any real token; it fails with short ones too.
                if !response.is_empty() {
                    return self.protocol_error().await;
                }
                return self.xoauth2().await;
            }
            "PLAIN" if self.peer.tls => {
                if response.is_empty() {
                    self.say("+ ").await?;
                    self.peer.line(READ_LIMIT).await?;
                }
                admission::refuse_basic(&self.office, SERVICE, "PLAIN", "", self.peer.tls);
                self.say("-ERR Authentication failure: unknown user name or bad password.").await?;
            }
            other => {
                admission::refuse_basic(&self.office, SERVICE, other, "", self.peer.tls);
                self.say("-ERR Authentication type is not supported.").await?;
            }
        }
        Ok(Some(self))
    }

    async fn xoauth2(mut self) -> io::Result<Turn> {
        self.office.mischief.at(SERVICE, Step::Login).await?;
        self.say("+ ").await?;
        let response = self.peer.line(READ_LIMIT).await?.unwrap_or_default();
        if response == b"*" {
            self.say("-ERR Authentication failure: unknown user name or bad password.").await?;
            return Ok(Some(self));
        }
        let token = admission::Xoauth2::parse(&response).map_or(0, |read| read.token.len());
        if self.office.settings.pop3_token_limit.is_some_and(|limit| token > limit) {
            return self.protocol_error().await;
        }
        let line_length = response.len();
        let attempt = Attempt {
            service: SERVICE,
            response: &response,
            initial_response: false,
            line_length,
            tls: self.peer.tls,
        };
        let throttled = self.office.mischief.mail_is(SERVICE, &MailFault::Throttle);
        match admission::sign_in(&self.office, attempt) {
            Ok(admitted) if !throttled => self.welcome(admitted).await?,
            _ => {
                if self.office.mischief.mail_is(SERVICE, &MailFault::ErrorChallenge) {
                    self.say("+ eyJzdGF0dXMiOiI0MDAiLCJzY2hlbWVzIjoiQmVhcmVyIn0=").await?;
                    self.peer.line(READ_LIMIT).await?;
                }
                self.say("-ERR Authentication failure: unknown user name or bad password.").await?;
            }
        }
        Ok(Some(self))
    }

    async fn welcome(&mut self, admitted: Admitted) -> io::Result<()> {
        let limit =
            self.office.mischief.take_mail(SERVICE, |fault| matches!(fault, MailFault::ConcurrencyLimit(_)));
        let place = match limit {
            Some(MailFault::ConcurrencyLimit(limit)) => {
                let Some(place) = self.office.enter(SERVICE, &admitted.mailbox, limit) else {
                    return self.say("-ERR Authentication failure: unknown user name or bad password.").await;
                };
                Some(place)
            }
            _ => self.office.enter(SERVICE, &admitted.mailbox, usize::MAX),
        };
        let messages = self.office.post.open(&admitted.mailbox).read(1, |inbox| inbox.messages.clone());
        self.open = Some(Open {
            mailbox: admitted.mailbox,
            messages: messages.unwrap_or_default(),
            deleted: BTreeSet::new(),
            place,
        });
        self.say("+OK User successfully authenticated.").await?;
        self.office.mischief.at(SERVICE, Step::AfterLogin).await
    }

    async fn transaction(&mut self, verb: &str, rest: &str) -> io::Result<()> {
        let estimated = self.office.settings.estimated_sizes;
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let number = rest.split(' ').next().and_then(|number| number.parse::<usize>().ok());
        let reply = match verb {
            "NOOP" => "+OK".to_owned(),
            "RSET" => {
                open.deleted.clear();
                "+OK".to_owned()
            }
            "STAT" => {
                let octets: usize = open.live().map(|(_, message)| message.announced_size(estimated)).sum();
                format!("+OK {} {octets}", open.live().count())
            }
            "LIST" | "UIDL" => open.list(verb, rest, number, estimated),
            "DELE" => match number.filter(|number| open.get(*number).is_some()) {
                Some(number) => {
                    open.deleted.insert(number);
                    "+OK".to_owned()
                }
                None => no_such_message(),
            },
            "RETR" | "TOP" => {
                let lines =
                    (verb == "TOP").then(|| rest.split(' ').nth(1).and_then(|lines| lines.parse().ok()));
                let message = number.and_then(|number| open.get(number)).cloned();
                return match (message, lines) {
                    (Some(message), None) => self.send(&message, None).await,
                    (Some(message), Some(Some(lines))) => self.send(&message, Some(lines)).await,
                    _ => self.say(&no_such_message()).await,
                };
            }
            _ => "-ERR Protocol error. 14".to_owned(),
        };
        self.say(&reply).await
    }

    async fn send(&mut self, message: &Message, lines: Option<usize>) -> io::Result<()> {
        let raw = match lines {
            None => message.raw.clone(),
            Some(lines) => message.raw.slice(..top(&message.raw, lines)),
        };
        let stuffed = stuff(&raw);
        self.say("+OK").await?;
        let (first, second) = stuffed.split_at(stuffed.len() / 2);
        self.peer.write(first).await?;
        self.office.mischief.at(SERVICE, Step::Transfer).await?;
        self.peer.write(second).await?;
        self.peer.write(b".\r\n").await
    }

    async fn quit(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            let mailbox = self.office.post.open(&open.mailbox);
            for number in &open.deleted {
                if let Some(message) = open.messages.get(number - 1) {
                    mailbox.take(message.id);
                }
            }
        }
        self.say("+OK Microsoft Exchange Server POP3 server signing off.").await?;
        self.peer.close().await
    }
}

impl Open {
    fn live(&self) -> impl Iterator<Item = (usize, &Message)> {
        (1..).zip(&self.messages).filter(|(number, _)| !self.deleted.contains(number))
    }

    fn get(&self, number: usize) -> Option<&Message> {
        self.live().find(|(candidate, _)| *candidate == number).map(|(_, message)| message)
    }

    fn list(&self, verb: &str, rest: &str, number: Option<usize>, estimated: bool) -> String {
        let line = |number: usize, message: &Message| match verb {
            "LIST" => format!("{number} {}", message.announced_size(estimated)),
            _ => format!("{number} {}", message.uid),
        };
        if !rest.is_empty() {
            let found = number.and_then(|number| self.get(number).map(|message| line(number, message)));
            return found.map_or_else(no_such_message, |line| format!("+OK {line}"));
        }
        let mut reply = "+OK\r\n".to_owned();
        for (number, message) in self.live() {
            reply.push_str(&line(number, message));
            reply.push_str("\r\n");
        }
        reply.push('.');
        reply
    }
}

fn no_such_message() -> String {
    "-ERR The specified message does not exist.".to_owned()
}

/// Where the header, the empty line and so many lines of the body end.
fn top(raw: &[u8], lines: usize) -> usize {
    let body = memmem::find(raw, b"\r\n\r\n").map_or(raw.len(), |at| at + 4);
    let mut ends = memchr::memchr_iter(b'\n', raw.get(body..).unwrap_or_default());
    match lines.checked_sub(1) {
        None => body,
        Some(last) => ends.nth(last).map_or(raw.len(), |at| body + at + 1),
    }
}

/// Doubles the dots at line starts, and ends the last line.
fn stuff(raw: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(raw.len() + 64);
    for line in raw.split_inclusive(|&octet| octet == b'\n') {
        if line.first() == Some(&b'.') {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    if !raw.is_empty() && !stuffed.ends_with(b"\r\n") {
        stuffed.extend_from_slice(b"\r\n");
    }
    stuffed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_at_line_starts_are_doubled_and_the_last_line_is_ended() {
        assert_eq!(stuff(b".a\r\n.\r\nb."), b"..a\r\n..\r\nb.\r\n");
        assert_eq!(stuff(b""), b"");
    }

    #[test]
    fn top_gives_the_header_and_so_many_lines() {
        let raw = b"A: b\r\n\r\none\r\ntwo\r\n";
        assert_eq!(raw.get(..top(raw, 0)).unwrap(), b"A: b\r\n\r\n");
        assert_eq!(raw.get(..top(raw, 1)).unwrap(), b"A: b\r\n\r\none\r\n");
        assert_eq!(raw.get(..top(raw, 9)).unwrap(), raw);
    }
}
