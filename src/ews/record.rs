//! One log line per request, written when it is over, whichever way that came about.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use tokio::time::Instant;
use tracing::{Span, debug, field, info, warn};

use super::body::RequestBody;
use super::desk::Desk;
use crate::clock;
use crate::explain::{Explanation, one_line};
use crate::telemetry::traces::SPANS;
use crate::token::request::Origin;

/// What one connection carried, all its requests together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) requests: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
}

/// How a request ended.
#[derive(Debug)]
enum Ended {
    /// It did not: the mail client left.
    Left,
    /// Upstream answered, and all of the answer went to the mail client.
    Relayed,
    /// Upstream's answer is under way.
    Relaying,
    /// Upstream broke off within its answer.
    BrokeOff(String),
    /// The answer is our own.
    Answered,
    /// We refused it.
    Refused(Box<Explanation>),
    /// We turned it away before anybody signed in.
    TurnedAway(&'static str),
}

/// One request. Dropping it writes its line and counts its octets.
pub(super) struct Record {
    desk: Arc<Desk>,
    totals: Arc<Totals>,
    peer: SocketAddr,
    method: String,
    path: String,
    body: RequestBody,
    user: String,
    mailbox: String,
    token: Option<Origin>,
    status: u16,
    down: u64,
    started: Instant,
    ended: Ended,
    span: Span,
}

impl Record {
    pub(super) fn new<B>(
        desk: Arc<Desk>,
        totals: Arc<Totals>,
        peer: SocketAddr,
        request: &http::Request<B>,
        body: RequestBody,
    ) -> Self {
        totals.requests.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!(
            target: SPANS,
            "request",
            listener = desk.listener.name,
            protocol = %desk.listener.protocol,
            status = field::Empty,
            outcome = field::Empty,
            code = field::Empty,
        );
        Self {
            desk,
            totals,
            peer,
            method: one_line(request.method().as_str(), 16),
            path: one_line(request.uri().path(), 120),
            body,
            user: String::new(),
            mailbox: String::new(),
            token: None,
            status: 0,
            down: 0,
            started: clock::now(),
            ended: Ended::Left,
            span,
        }
    }

    /// What the steps of this request belong to.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Who signs in.
    pub(super) fn user(&mut self, user: &str, mailbox: &str) {
        user.clone_into(&mut self.user);
        mailbox.clone_into(&mut self.mailbox);
    }

    /// A token was granted.
    pub(super) fn granted(&mut self, origin: Origin) {
        self.token = Some(origin);
    }

    /// Upstream took the token; its answer goes to the mail client.
    pub(super) fn relaying(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.ended = Ended::Relaying;
        if let Some(origin) = self.token {
            self.desk.metrics.logged_in(&self.desk.listener.name, origin.as_str());
        }
    }

    /// Octets went to the mail client.
    pub(super) fn down(&mut self, octets: u64) {
        self.down += octets;
    }

    /// All of the answer went to the mail client.
    pub(super) fn complete(&mut self) {
        if matches!(self.ended, Ended::Relaying) {
            self.ended = Ended::Relayed;
        }
    }

    /// Upstream broke off within its answer.
    pub(super) fn broke_off(&mut self, error: &dyn std::error::Error) {
        self.ended = Ended::BrokeOff(one_line(&error.to_string(), 200));
    }

    /// We refused it.
    pub(super) fn refused(&mut self, why: Explanation, status: StatusCode) {
        self.status = status.as_u16();
        self.count_refusal(&why);
        self.ended = Ended::Refused(Box::new(why));
    }

    /// We answered it ourselves.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.ended = Ended::Answered;
    }

    /// We turned it away before anybody signed in: worth a line only to who debugs.
    pub(super) fn turned_away(&mut self, why: &'static str, status: StatusCode) {
        self.status = status.as_u16();
        self.ended = Ended::TurnedAway(why);
    }

    /// Something about the answer that an administrator must see, though the answer is passed on.
    pub(super) fn warn(&self, why: &Explanation) {
        self.count_refusal(why);
        warn!(
            listener = %self.desk.listener.name, peer = %self.peer, user = %self.user, mailbox = %self.mailbox,
            path = %self.path, code = %why.code, fault = why.fault.as_str(), what = %why.what,
            remedy = %why.remedy, "refused by Exchange"
        );
    }

    /// Exchange did not take the token: what it said goes here and nowhere else.
    pub(super) fn token_refused(&self, diagnostics: &str) {
        info!(
            listener = %self.desk.listener.name, user = %self.user, mailbox = %self.mailbox, diagnostics,
            "token refused by Exchange, asking for a fresh one"
        );
    }

    fn count_refusal(&self, why: &Explanation) {
        self.desk.metrics.refused(&self.desk.listener.name, &why.code);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (up, down) = (self.body.octets(), self.down);
        let listener = &self.desk.listener.name;
        if self.token.is_some() && up + down > 0 {
            self.desk.relayed().count(up, down);
        }
        self.totals.up.fetch_add(up, Ordering::Relaxed);
        self.totals.down.fetch_add(down, Ordering::Relaxed);
        let ms = u64::try_from(clock::now().duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.span.record("status", self.status);
        let ended = match &self.ended {
            Ended::TurnedAway(why) => {
                self.span.record("outcome", "turned away");
                debug!(
                    %listener, peer = %self.peer, method = %self.method, path = %self.path,
                    status = self.status, why, "turned away"
                );
                return;
            }
            Ended::Refused(why) => {
                self.totals.refused.fetch_add(1, Ordering::Relaxed);
                self.span.record("outcome", "refused").record("code", &*why.code);
                warn!(
                    %listener, peer = %self.peer, user = %self.user, mailbox = %self.mailbox,
                    path = %self.path, status = self.status, ms, code = %why.code,
                    fault = why.fault.as_str(), what = %why.what, remedy = %why.remedy, "refused"
                );
                return;
            }
            Ended::Relayed => "done",
            Ended::Answered => "answered here",
            Ended::Left | Ended::Relaying => "the mail client left",
            Ended::BrokeOff(why) => why.as_str(),
        };
        self.span.record("outcome", ended);
        info!(
            %listener, peer = %self.peer, user = %self.user, mailbox = %self.mailbox, method = %self.method,
            path = %self.path, status = self.status, token = self.token.map_or("none", Origin::as_str),
            up, down, ms, ended, "request"
        );
    }
}
