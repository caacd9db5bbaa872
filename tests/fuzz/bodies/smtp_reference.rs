//! An SMTP session, followed by the book: slow, and read off the standards line by line.
//!
//! It keeps all that has not been understood and looks at it from the beginning each time. What the standards leave
//! to chance makes it give up, as the watcher of the relay is to give up: bare CR or LF in a command (RFC 5321
//! §2.3.8), replies that nobody asked for but 421 (§3.8), a BDAT that is none (RFC 3030 §2), what follows a STARTTLS.

/// What is known of the session.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Something came that can be read in two ways.
    pub confused: bool,
    /// No message is under way, no command waits, none is half sent.
    pub between: bool,
    /// Messages that were taken.
    pub messages: u64,
    /// Sender and recipients of the message that is under way.
    pub envelope: Option<(String, u32)>,
}

/// A session.
pub struct Reference {
    /// What the client sent and nobody has read yet.
    client: Vec<u8>,
    /// Half a reply line.
    server: Vec<u8>,
    /// The code of a reply whose last line is still to come.
    reply: Option<u16>,
    mode: Mode,
    /// What waits for a reply.
    waiting: Vec<Waits>,
    envelope: Option<(String, u32)>,
    messages: u64,
    confused: bool,
}

/// What the client's next octets are.
enum Mode {
    Command,
    /// That hangs on a reply.
    Open,
    /// A message. Its beginning counts as the beginning of a line.
    Message,
    Chunk(u64),
    /// An answer to a challenge.
    Response,
}

enum Waits {
    Mail(String),
    Rcpt,
    Data,
    EndOfData,
    Chunk,
    LastChunk,
    /// RSET, and what has its effect (RFC 5321 §4.1.4).
    Reset,
    Auth,
    StartTls,
    Other,
}

impl Default for Reference {
    fn default() -> Self {
        Self {
            client: Vec::new(),
            server: Vec::new(),
            reply: None,
            mode: Mode::Command,
            waiting: Vec::new(),
            envelope: None,
            messages: 0,
            confused: false,
        }
    }
}

impl Reference {
    /// The client sends this.
    pub fn client_sends(&mut self, octets: &[u8]) {
        self.client.extend_from_slice(octets);
        self.read_on();
    }

    /// The server sends this.
    pub fn server_sends(&mut self, octets: &[u8]) {
        for octet in octets {
            if *octet != b'\n' {
                self.server.push(*octet);
                continue;
            }
            let line = std::mem::take(&mut self.server);
            self.reply_line(&line);
            self.read_on();
        }
    }

    /// What is known now.
    pub fn known(&self) -> Known {
        let idle = matches!(self.mode, Mode::Command)
            && self.client.is_empty()
            && self.server.is_empty()
            && self.reply.is_none()
            && self.waiting.is_empty();
        Known {
            confused: self.confused,
            between: !self.confused && idle && self.envelope.is_none(),
            messages: self.messages,
            envelope: self.envelope.clone(),
        }
    }

    fn read_on(&mut self) {
        while !self.confused {
            let before = self.client.len();
            let end = match self.mode {
                Mode::Command | Mode::Response => self.line_end(),
                Mode::Open => {
                    self.confused = self.client.len() > 16 * 1024;
                    None
                }
                Mode::Message => {
                    let text = [b"\r\n", self.client.as_slice()].concat();
                    text.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 3)
                }
                Mode::Chunk(octets) => usize::try_from(octets).ok().filter(|octets| *octets <= before),
            };
            let Some(end) = end else { return };
            let taken: Vec<u8> = self.client.drain(..end).collect();
            match self.mode {
                Mode::Command => self.command(&taken[..end - 2]),
                Mode::Response => self.ask(Waits::Auth, Mode::Open),
                Mode::Message => self.ask(Waits::EndOfData, Mode::Command),
                Mode::Chunk(_) => self.mode = Mode::Command,
                Mode::Open => unreachable!(),
            }
        }
    }

    /// Behind the first CRLF, if no CR or LF stands alone before it.
    fn line_end(&mut self) -> Option<usize> {
        let at = self.client.iter().position(|octet| b"\r\n".contains(octet))?;
        match &self.client[at..] {
            [b'\r', b'\n', ..] => Some(at + 2),
            [b'\r'] => None,
            _ => {
                self.confused = true;
                None
            }
        }
    }

    fn command(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line).into_owned();
        let upper = line.to_ascii_uppercase();
        // what is no sign is a blank for somebody
        let is_blank = |c: char| !c.is_ascii_graphic();
        let said = upper.trim_start_matches(is_blank);
        let verb = said.split(|c: char| is_blank(c) || c == ':').next().unwrap_or_default();
        if said.starts_with("BDAT") {
            match chunk(&upper) {
                Some((octets, last)) => {
                    let mode = if octets == 0 { Mode::Command } else { Mode::Chunk(octets) };
                    self.ask(if last { Waits::LastChunk } else { Waits::Chunk }, mode);
                }
                None => self.confused = true,
            }
            return;
        }
        match verb {
            "MAIL" => self.ask(Waits::Mail(sender(&line)), Mode::Command),
            "RCPT" => self.ask(Waits::Rcpt, Mode::Command),
            "DATA" => self.ask(Waits::Data, Mode::Open),
            "AUTH" => self.ask(Waits::Auth, Mode::Open),
            "STARTTLS" => self.ask(Waits::StartTls, Mode::Open),
            "RSET" | "EHLO" | "HELO" | "LHLO" => self.ask(Waits::Reset, Mode::Command),
            _ => self.ask(Waits::Other, Mode::Command),
        }
    }

    fn ask(&mut self, waits: Waits, mode: Mode) {
        let senders = self.waiting.iter().filter(|one| matches!(one, Waits::Mail(_))).count();
        if self.waiting.len() >= 2048 || (matches!(waits, Waits::Mail(_)) && senders >= 8) {
            self.confused = true;
        }
        self.waiting.push(waits);
        self.mode = mode;
    }

    /// `Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF` (RFC 5321 §4.2)
    fn reply_line(&mut self, line: &[u8]) {
        if self.confused {
            return;
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let code = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
        let is_last = match line.get(3) {
            None | Some(b' ') => true,
            Some(b'-') => false,
            Some(_) => {
                self.confused = true;
                return;
            }
        };
        match code {
            Some(code) if (200..600).contains(&code) && self.reply.is_none_or(|before| before == code) => {
                self.reply = (!is_last).then_some(code);
                if is_last {
                    self.replied(code);
                }
            }
            _ => self.confused = true,
        }
    }

    fn replied(&mut self, code: u16) {
        if self.waiting.is_empty() {
            self.confused = code != 421;
            return;
        }
        let waited = self.waiting.remove(0);
        let (good, halfway) = (code / 100 == 2, code / 100 == 3);
        match waited {
            Waits::Data if code == 354 => self.mode = Mode::Message,
            Waits::Auth if code == 334 => self.mode = Mode::Response,
            _ if halfway => self.confused = true,
            Waits::StartTls if good => self.confused = true,
            Waits::Data | Waits::Auth | Waits::StartTls => self.mode = Mode::Command,
            Waits::Mail(sender) if good => self.envelope = Some((sender, 0)),
            Waits::Rcpt if good => {
                if let Some((_, recipients)) = &mut self.envelope {
                    *recipients += 1;
                }
            }
            Waits::EndOfData | Waits::LastChunk => {
                self.envelope = None;
                self.messages += u64::from(good);
            }
            // a chunk that was taken is part of some message; one that was not is the end of it
            Waits::Chunk if good => drop(self.envelope.get_or_insert_default()),
            Waits::Chunk => self.envelope = None,
            Waits::Reset if good => self.envelope = None,
            Waits::Mail(_) | Waits::Rcpt | Waits::Reset | Waits::Other => {}
        }
    }
}

/// `"BDAT" SP chunk-size [ SP "LAST" ]` (RFC 3030 §2); blanks at the end are let through.
fn chunk(upper: &str) -> Option<(u64, bool)> {
    let rest = upper.strip_prefix("BDAT ")?.trim_end_matches([' ', '\t']);
    let (size, last) = match rest.split_once(' ') {
        Some((size, "LAST")) => (size, true),
        Some(_) => return None,
        None => (rest, false),
    };
    let digits = !size.is_empty() && size.bytes().all(|octet| octet.is_ascii_digit());
    digits.then(|| size.parse().ok()).flatten().map(|octets| (octets, last))
}

/// What stands between `<` and `>` behind `MAIL FROM:`.
fn sender(line: &str) -> String {
    let behind = line.get(..10).filter(|verb| verb.eq_ignore_ascii_case("MAIL FROM:")).map(|_| &line[10..]);
    let path = behind.and_then(|rest| rest.trim_start_matches(' ').strip_prefix('<'));
    path.and_then(|path| path.split_once('>')).map_or_else(String::new, |(sender, _)| sender.to_owned())
}
