//! Signs in at a mail server by the dialogues that sessions use, and sees whether the mailbox opens: for
//! `mailkey doctor`.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::dialogue::{back, mechanism};
use super::drive::{self, BackFailure};
use super::recorder::Tape;

use super::verdict;
use crate::config::model::{Account, MailServer, Protocol};
use crate::explain::{Explanation, one_line};
use crate::protocol::machine::{BackError, Errand, SignIn};
use crate::secret::{AccessToken, Encrypted};
use crate::stream::BoxIo;
use crate::token::catalogue::{self, Context};
use crate::upstream::connector::Connector;
use crate::upstream::error::UpstreamError;

/// How long a goodbye may take.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// How much of an answer is read, in octets.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The name that SMTP is greeted with.
const OUR_NAME: &str = "localhost";

/// One mail server, to be tried out.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The way there.
    pub connector: &'a Connector,
    /// Which one.
    pub server: &'a MailServer,
    /// What it should speak.
    pub protocol: Protocol,
}

/// A session that is signed in.
pub struct Opened<'a> {
    probe: Probe<'a>,
    io: BoxIo,
    /// Read already, behind the answer to the sign-in.
    rest: Vec<u8>,
    /// What upstream said to the sign-in.
    pub reply: String,
}

impl<'a> Probe<'a> {
    /// Asks what the server offers, over a connection that is open; no secret is sent. `proof` where TLS is on
    /// already; else STARTTLS comes first.
    ///
    /// # Errors
    /// It does not speak the protocol, or its TLS fails.
    pub async fn learn(&self, mut io: BoxIo, proof: Option<Encrypted>) -> Result<Vec<String>, Explanation> {
        let errand = Errand::Learn { client_name: OUR_NAME.to_owned() };
        let mut dialogue = back(self.protocol, self.server, errand);
        if let Some(proof) = proof {
            dialogue.secured(proof);
        }
        let learnt =
            drive::back(&mut *dialogue, &mut io, self.connector, self.server, &mut Tape::default()).await;
        match learnt {
            Ok(welcome) => Ok(welcome.offer.map(|offer| offer.0).unwrap_or_default()),
            Err(failure) => Err(verdict::explain(&failure, self.protocol, self.server, &Context::default())),
        }
    }

    /// Opens a connection of its own and signs in with this token.
    ///
    /// # Errors
    /// The way there, or a refusal.
    pub async fn sign_in(
        &self,
        account: &Account,
        mailbox: &str,
        token: &AccessToken,
        context: &Context<'_>,
    ) -> Result<Opened<'a>, Explanation> {
        let sign_in = SignIn {
            mailbox: mailbox.to_owned(),
            token: token.clone(),
            mechanism: mechanism(account.application.sasl, false),
            client_name: OUR_NAME.to_owned(),
            host: self.server.host.clone(),
            port: self.server.port,
        };
        let knock = async |sign_in: SignIn| {
            let (mut io, proof) = self.connector.open(self.server).await.map_err(BackFailure::Broke)?;
            let mut dialogue = back(self.protocol, self.server, Errand::SignIn(sign_in));
            if let Some(proof) = proof {
                dialogue.secured(proof);
            }
            let welcome =
                drive::back(&mut *dialogue, &mut io, self.connector, self.server, &mut Tape::default())
                    .await?;
            Ok(Opened { probe: *self, io, rest: dialogue.into_rest(), reply: welcome.reply })
        };
        let mut signed_in = knock(sign_in.clone()).await;
        if let Err(BackFailure::Said(BackError::NoMechanism { .. })) = signed_in {
            let other = mechanism(account.application.sasl, true);
            if other != sign_in.mechanism {
                signed_in = knock(SignIn { mechanism: other, ..sign_in }).await;
            }
        }
        signed_in.map_err(|failure| verdict::explain(&failure, self.protocol, self.server, context))
    }
}

impl Opened<'_> {
    /// Opens the mailbox: `SELECT INBOX`, `STAT`, or `MAIL FROM` and `RSET`; then says goodbye. Nothing is
    /// changed and nothing is sent. Gives what upstream said.
    ///
    /// # Errors
    /// It does not open.
    pub async fn open_mailbox(mut self, mailbox: &str, context: &Context<'_>) -> Result<String, Explanation> {
        let protocol = self.probe.protocol;
        let (command, goodbye): (String, &[u8]) = match protocol {
            Protocol::Imap | Protocol::Ews | Protocol::ActiveSync => {
                ("m1 SELECT INBOX\r\n".to_owned(), b"m2 LOGOUT\r\n")
            }
            Protocol::Pop3 => ("STAT\r\n".to_owned(), b"QUIT\r\n"),
            Protocol::Smtp => (format!("MAIL FROM:<{}>\r\n", sender(mailbox)), b"RSET\r\nQUIT\r\n"),
        };
        let answer = self.ask(&command).await.map_err(|why| {
            let target = format!("{}:{}", self.probe.server.host, self.probe.server.port);
            let broke = BackFailure::Broke(UpstreamError::Broken { target, why });
            verdict::explain(&broke, protocol, self.probe.server, context)
        });
        // the answer is in; a goodbye that fails changes nothing about it
        drop(timeout(GOODBYE_LIMIT, drive::pass_on(&mut self.io, goodbye)).await);
        let Answer { last, messages } = answer?;
        let taken = match protocol {
            Protocol::Imap | Protocol::Ews | Protocol::ActiveSync => {
                last.to_ascii_uppercase().starts_with("M1 OK")
            }
            Protocol::Pop3 => last.starts_with("+OK"),
            Protocol::Smtp => last.starts_with('2'),
        };
        if !taken {
            return Err(catalogue::exchange(protocol, &last, None, context));
        }
        Ok(match (protocol, messages) {
            (Protocol::Smtp, _) => format!("it may send as `{}`", one_line(mailbox, 255)),
            (_, Some(1)) => "it opens; 1 message".to_owned(),
            (_, Some(many)) => format!("it opens; {many} messages"),
            (_, None) => format!("it opens: `{last}`"),
        })
    }

    /// Reads up to the answer to our command.
    async fn ask(&mut self, command: &str) -> Result<Answer, String> {
        self.io.write_all(command.as_bytes()).await.map_err(|error| error.to_string())?;
        self.io.flush().await.map_err(|error| error.to_string())?;
        let mut answer = Answer { last: String::new(), messages: None };
        let mut read = self.rest.len();
        loop {
            while let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let line = one_line(String::from_utf8_lossy(&line).trim_end(), 400);
                if self.is_last(&line) {
                    answer.messages = answer.messages.or_else(|| count(self.probe.protocol, &line));
                    answer.last = line;
                    return Ok(answer);
                }
                answer.messages = answer.messages.or_else(|| count(self.probe.protocol, &line));
            }
            if read > LONGEST_ANSWER {
                return Err("its answer has no end".to_owned());
            }
            match self.io.read_buf(&mut self.rest).await {
                Ok(0) => return Err("it hung up when the mailbox was to be opened".to_owned()),
                Ok(more) => read += more,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn is_last(&self, line: &str) -> bool {
        match self.probe.protocol {
            Protocol::Imap | Protocol::Ews | Protocol::ActiveSync => {
                let upper = line.to_ascii_uppercase();
                // a `BAD` without our tag is how Exchange says that the user is not connected
                upper.starts_with("M1 ")
                    || upper.starts_with("* BYE")
                    || upper.starts_with("* BAD")
                    || upper.starts_with("BAD ")
            }
            Protocol::Pop3 => true,
            Protocol::Smtp => line.as_bytes().get(3) != Some(&b'-'),
        }
    }
}

struct Answer {
    last: String,
    messages: Option<u64>,
}

/// `* 12 EXISTS`, `+OK 12 3456`.
fn count(protocol: Protocol, line: &str) -> Option<u64> {
    let mut words = line.split(' ');
    match (protocol, words.next()?) {
        (Protocol::Imap, "*") => {
            let number = words.next()?.parse().ok()?;
            words.next()?.eq_ignore_ascii_case("EXISTS").then_some(number)
        }
        (Protocol::Pop3, "+OK") => words.next()?.parse().ok(),
        _ => None,
    }
}

/// The mailbox as a reverse-path; a name that is no address gives the empty one.
fn sender(mailbox: &str) -> &str {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'<' | b'>');
    if mailbox.contains('@') && mailbox.bytes().all(plain) { mailbox } else { "" }
}
