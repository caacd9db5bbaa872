//! What happened in the simulator, for tests and for the demo's narration. Never a password, never a token.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The identity provider was asked for a token.
    Token(TokenRequest),
    /// Somebody signed in to a mail protocol, or failed to.
    SignIn(SignIn),
    /// A message was submitted.
    Submitted(Submission),
    /// An HTTP request reached EWS.
    Ews(EwsRequest),
    /// A TCP connection was accepted.
    Connected(Service),
}

/// The five services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// The identity provider.
    Authority,
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
    /// SMTP submission.
    Smtp,
    /// Exchange Web Services.
    Ews,
}

/// One request to the token endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRequest {
    /// `grant_type` as sent.
    pub grant: String,
    /// The tenant in the path.
    pub tenant: String,
    /// `client_id` as sent.
    pub client_id: String,
    /// `scope` or `resource` as sent.
    pub scope: String,
    /// `username` as sent, or the user whom a code or refresh token belongs to.
    pub user: Option<String>,
    /// Whether the password was the right one; `None` if none was looked at.
    pub password_matched: Option<bool>,
    /// How the client proved itself: `none`, `secret`, `certificate` or `federated`.
    pub client_proof: &'static str,
    /// HTTP status of the answer.
    pub status: u16,
    /// The AADSTS code, if it failed.
    pub code: Option<u32>,
}

/// One attempt to sign in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignIn {
    /// Which protocol.
    pub service: Service,
    /// `XOAUTH2`, `LOGIN`, `PLAIN`, `USER`, …
    pub mechanism: String,
    /// `user=` of XOAUTH2.
    pub user: String,
    /// The user whom the token was given to; `None` for app-only tokens and bad ones.
    pub token_user: Option<String>,
    /// The application whom the token was given to.
    pub client_id: Option<String>,
    /// The response came on the command line.
    pub initial_response: bool,
    /// Octets of the line that held the response, without its end.
    pub line_length: usize,
    /// Whether the session was over TLS.
    pub tls: bool,
    /// Whether it worked.
    pub accepted: bool,
    /// Why not, in the simulator's words.
    pub reason: &'static str,
}

/// One message taken for delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Over which protocol.
    pub service: Service,
    /// The mailbox that signed in.
    pub mailbox: String,
    /// Envelope sender.
    pub from: String,
    /// Envelope recipients.
    pub to: Vec<String>,
    /// Octets, as received and with dot-stuffing removed.
    pub size: usize,
    /// SHA-256 of those octets, in hexadecimal.
    pub sha256: String,
}

/// One request to EWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EwsRequest {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names of the headers, in lower case, in order.
    pub headers: Vec<String>,
    /// A Basic credential came: must never happen.
    pub had_basic: bool,
    /// `X-AnchorMailbox`.
    pub anchor: Option<String>,
    /// `User-Agent`.
    pub user_agent: Option<String>,
    /// Name of the SOAP operation, if it came so far.
    pub operation: Option<String>,
    /// HTTP status of the answer.
    pub status: u16,
}

/// The record; bounded.
#[derive(Debug)]
pub(super) struct Journal {
    events: Mutex<VecDeque<Event>>,
    limit: usize,
    token_requests: AtomicUsize,
}

impl Journal {
    pub(super) fn new(limit: usize) -> Self {
        Self { events: Mutex::default(), limit, token_requests: AtomicUsize::new(0) }
    }

    pub(super) fn write(&self, event: Event) {
        if matches!(event, Event::Token(_)) {
            self.token_requests.fetch_add(1, Ordering::Relaxed);
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= self.limit {
            events.pop_front();
        }
        events.push_back(event);
    }

    pub(super) fn read(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn token_requests(&self) -> usize {
        self.token_requests.load(Ordering::Relaxed)
    }
}
