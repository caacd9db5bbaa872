//! What goes wrong, switched at run time.
//!
//! A fault stays armed until [`Mischief::calm`] clears it, unless it was armed for a number of times.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::journal::Service;

/// What the identity provider does instead of answering a token request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityFault {
    /// Refuses connections.
    Down,
    /// Reads the request and never answers.
    Hang,
    /// Answers well, but late.
    Slow(Duration),
    /// Breaks the connection after the request.
    Reset,
    /// Answers 429 with `Retry-After` (seconds or an HTTP date) and a body that is no JSON.
    Throttled {
        /// The header's value, if any.
        retry_after: Option<String>,
    },
    /// Answers this status with a JSON `server_error` (or no JSON below 500).
    Status(u16),
    /// Answers 200 with an HTML page.
    Html,
    /// Answers 200 with half a JSON document.
    Malformed,
    /// Answers 200 with nothing.
    Empty,
    /// Answers 200 with JSON of wrong types.
    WrongType,
    /// Answers well, with this `expires_in` (the token itself lives as usual).
    ExpiresIn(ExpiresIn),
    /// Answers 302 to somewhere else.
    Redirect(String),
    /// Gives tokens of at least this many octets.
    TokenSize(usize),
    /// Gives a token that the mail services refuse.
    BadToken,
    /// Fails with this AADSTS code.
    AadSts(u32),
}

/// Ways to say `expires_in`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpiresIn {
    /// A number.
    Number(i64),
    /// A string.
    Text(String),
    /// Not at all.
    Missing,
}

/// Where in a mail session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Instead of the greeting.
    Greeting,
    /// Instead of answering CAPABILITY, CAPA or EHLO.
    Capability,
    /// Instead of answering STARTTLS or STLS.
    StartTls,
    /// After the AUTH command, before its continuation or answer.
    Login,
    /// Right after the login's positive answer.
    AfterLogin,
    /// In the middle of a message, either way.
    Transfer,
    /// Instead of the answer to a message that was received whole.
    Received,
}

/// What a mail service does wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailFault {
    /// Refuses connections.
    RefuseConnect,
    /// Greets late.
    SlowGreeting(Duration),
    /// Never greets.
    HangGreeting,
    /// Sends half a greeting, then nothing.
    HalfGreeting,
    /// Greets with `* BYE`, `-ERR` or `421` and closes.
    RefuseGreeting,
    /// Closes at a step, without close_notify.
    CloseAt(Step),
    /// Breaks the connection (RST) at a step.
    ResetAt(Step),
    /// Says nothing more from a step on.
    HangAt(Step),
    /// Refuses logins as throttled.
    Throttle,
    /// Refuses more than this many sessions per mailbox.
    ConcurrencyLimit(usize),
    /// Sends a JSON challenge when a token is refused, and waits for the empty line, as Gmail does.
    ErrorChallenge,
    /// Sends an empty challenge even when an initial response came, as Yandex does.
    EmptyChallenge,
    /// Accepts the token, then says that the user is not connected.
    AuthenticatedButNotConnected,
    /// Refuses every token.
    RefuseToken,
    /// Sends plain text behind its answer to STARTTLS: it must be discarded.
    InjectBeforeTls,
    /// Does not offer STARTTLS.
    NoStartTls,
    /// Says that the token has expired and closes, this long after the login.
    ByeAccessTokenExpired(Duration),
    /// Sends the positive answer to a login and more in one segment.
    EagerAfterLogin,
    /// Answers each octet in a segment of its own.
    Trickle,
}

/// What EWS does instead of answering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EwsFault {
    /// Refuses connections.
    RefuseConnect,
    /// 401 with `x-ms-diagnostics`, as for a token of a wrong audience.
    Unauthorized,
    /// 403 with an empty body, as for an application that is not on the allow list.
    Forbidden,
    /// 429 with `Retry-After` in seconds.
    Throttled(u32),
    /// 503 with `Retry-After` in seconds.
    Unavailable(u32),
    /// 456.
    Locked,
    /// 302 to somewhere.
    Redirect(String),
    /// 500 with a SOAP fault ErrorServerBusy.
    ServerBusy,
    /// Never answers.
    Hang,
    /// A body that comes slowly: this long between two pieces.
    SlowBody(Duration),
    /// Closes in the middle of the body.
    CloseMidBody,
}

/// What is wrong with the certificates that new connections see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// Issued for another name.
    WrongName,
    /// Ended yesterday.
    Expired,
    /// By an issuer that nobody trusts.
    UnknownIssuer,
}

/// The switchboard. Tests hold it by [`super::Simulator::mischief`].
#[derive(Debug)]
pub struct Mischief {
    faults: Mutex<Faults>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Faults {
    identity: Vec<Armed<IdentityFault>>,
    mail: Vec<(Service, Armed<MailFault>)>,
    ews: Vec<Armed<EwsFault>>,
    certificate: Vec<(Service, CertificateFault)>,
}

#[derive(Debug)]
struct Armed<F> {
    fault: F,
    left: Option<usize>,
}

impl Mischief {
    pub(super) fn new() -> Self {
        Self { faults: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// The identity provider misbehaves from now on.
    pub fn identity(&self, fault: IdentityFault) {
        self.change(|faults| faults.identity.push(Armed { fault, left: None }));
    }

    /// The identity provider misbehaves for the next `times` token requests.
    pub fn identity_times(&self, times: usize, fault: IdentityFault) {
        self.change(|faults| faults.identity.push(Armed { fault, left: Some(times) }));
    }

    /// A mail service misbehaves from now on.
    pub fn mail(&self, service: Service, fault: MailFault) {
        self.change(|faults| faults.mail.push((service, Armed { fault, left: None })));
    }

    /// A mail service misbehaves the next `times` times that the fault applies.
    pub fn mail_times(&self, times: usize, service: Service, fault: MailFault) {
        self.change(|faults| faults.mail.push((service, Armed { fault, left: Some(times) })));
    }

    /// EWS misbehaves from now on.
    pub fn ews(&self, fault: EwsFault) {
        self.change(|faults| faults.ews.push(Armed { fault, left: None }));
    }

    /// EWS misbehaves for the next `times` requests.
    pub fn ews_times(&self, times: usize, fault: EwsFault) {
        self.change(|faults| faults.ews.push(Armed { fault, left: Some(times) }));
    }

    /// New connections to a service see a bad certificate.
    pub fn certificate(&self, service: Service, fault: CertificateFault) {
        self.change(|faults| faults.certificate.push((service, fault)));
    }

    /// All is well again.
    pub fn calm(&self) {
        self.change(|faults| *faults = Faults::default());
    }

    /// The next fault of the identity provider that `applies`, used up once.
    pub(super) fn take_identity(&self, applies: impl Fn(&IdentityFault) -> bool) -> Option<IdentityFault> {
        let mut faults = self.lock();
        let fault = faults.identity.iter_mut().find(|armed| armed.ready() && applies(&armed.fault))?;
        Some(fault.take())
    }

    /// The next fault of EWS that `applies`, used up once.
    pub(super) fn take_ews(&self, applies: impl Fn(&EwsFault) -> bool) -> Option<EwsFault> {
        let mut faults = self.lock();
        let fault = faults.ews.iter_mut().find(|armed| armed.ready() && applies(&armed.fault))?;
        Some(fault.take())
    }

    /// The next fault of a mail service that `applies`, used up once.
    pub(super) fn take_mail(
        &self,
        service: Service,
        applies: impl Fn(&MailFault) -> bool,
    ) -> Option<MailFault> {
        let mut faults = self.lock();
        let (_, fault) = faults
            .mail
            .iter_mut()
            .find(|(at, armed)| *at == service && armed.ready() && applies(&armed.fault))?;
        Some(fault.take())
    }

    /// Whether this very fault is armed; uses it up once.
    pub(super) fn mail_is(&self, service: Service, wanted: &MailFault) -> bool {
        self.take_mail(service, |fault| fault == wanted).is_some()
    }

    /// Breaks, hangs or goes on at a step.
    pub(super) async fn at(&self, service: Service, step: Step) -> io::Result<()> {
        let here = |fault: &MailFault| matches!(fault, MailFault::CloseAt(at) | MailFault::ResetAt(at) | MailFault::HangAt(at) if *at == step);
        match self.take_mail(service, here) {
            Some(MailFault::HangAt(_)) => hang().await,
            Some(_) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed by mischief")),
            None => Ok(()),
        }
    }

    /// Whether new connections of the service must be able to end in RST.
    pub(super) fn resets(&self, service: Service) -> bool {
        let faults = self.lock();
        match service {
            Service::Authority => faults.identity.iter().any(|armed| armed.fault == IdentityFault::Reset),
            Service::Ews => false,
            Service::Imap | Service::Pop3 | Service::Smtp => faults.mail.iter().any(|(at, armed)| {
                *at == service && armed.ready() && matches!(armed.fault, MailFault::ResetAt(_))
            }),
        }
    }

    /// Whether the service refuses connections now.
    pub(super) fn refuses(&self, service: Service) -> bool {
        let faults = self.lock();
        match service {
            Service::Authority => faults.identity.iter().any(|armed| armed.fault == IdentityFault::Down),
            Service::Ews => faults.ews.iter().any(|armed| armed.fault == EwsFault::RefuseConnect),
            Service::Imap | Service::Pop3 | Service::Smtp => faults
                .mail
                .iter()
                .any(|(at, armed)| *at == service && armed.fault == MailFault::RefuseConnect),
        }
    }

    /// What is wrong with the service's certificate now.
    pub(super) fn bad_certificate(&self, service: Service) -> Option<CertificateFault> {
        self.lock().certificate.iter().find(|(at, _)| *at == service).map(|(_, fault)| *fault)
    }

    /// Tells when a switch was thrown.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Clone> Armed<F> {
    fn ready(&self) -> bool {
        self.left != Some(0)
    }

    fn take(&mut self) -> F {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        self.fault.clone()
    }
}

/// Says nothing, for longer than anybody waits; ends when the simulator does, or after an hour.
pub(super) async fn hang() -> io::Result<()> {
    tokio::time::sleep(Duration::from_hours(1)).await;
    Err(io::Error::new(io::ErrorKind::TimedOut, "hung by mischief"))
}
