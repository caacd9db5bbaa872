//! The story of one connection: greeting, credentials, token, upstream, relay, and one line about it all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{Instrument as _, Span, field};

use super::dialogue;
use super::drive::{self, BackFailure, Heard};
use super::listener::Visit;
use super::recorder::{Heading, Recorder};
use super::relay::{Ended, Rules, Standing, relay};
use super::sender::FixedSender;
use super::station::Station;
use super::tls;
use super::turnstile::{Crowded, Pass};
use super::verdict;
use super::warm::Ready;
use crate::clock;
use crate::config::model::{Account, BackTls, EnvelopeSender, FrontTls, MailServer, Protocol, Sasl};
use crate::explain::{CauseKind, Explanation, Fault, Passes, Refusal, one_line};
use crate::protocol::machine::{
    BackError, Errand, Farewell, Front, FrontSettings, HangUp, Login, SignIn, Welcome,
};
use crate::seats::Seat;
use crate::stream::BoxIo;
use crate::telemetry::metrics::ListenerLabel;
use crate::telemetry::traces::SPANS;
use crate::token::catalogue::Context;
use crate::token::request::{Granted, Origin, TokenRequest};

/// How long a goodbye may take to be sent.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// How much of a sender is logged, in characters.
const MAX_SHOWN: usize = 320;

/// Numbers sessions, so that their lines can be found together.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Serves one connection from its first byte to its last.
pub async fn serve(station: Arc<Station>, visit: Visit) {
    let label = ListenerLabel { listener: station.listener.name.clone() };
    let alive = station.metrics.sessions.get_or_create_owned(&label);
    alive.inc();
    station.keep_up();
    let mut session = Session {
        id: SESSIONS.fetch_add(1, Ordering::Relaxed),
        peer: visit.peer,
        started: clock::now(),
        station,
    };
    let full = visit.place.is_none();
    let listener = &session.station.listener;
    let span = tracing::info_span!(
        target: SPANS,
        "session",
        session = session.id,
        listener = listener.name,
        protocol = %listener.protocol,
        outcome = field::Empty,
        code = field::Empty,
    );
    // boxed, so that a session that has signed in does not carry its sign-in's state along
    match Box::pin(session.sign_in(Box::new(visit.io), full)).instrument(span.clone()).await {
        Outcome::SignedIn(signed_in) => {
            span.record("outcome", "signed in");
            session.relay(*signed_in).instrument(span).await;
        }
        Outcome::Over(why) => {
            span.record("outcome", "no login");
            session.over(&why);
        }
    }
    alive.dec();
}

struct Session {
    id: u64,
    peer: SocketAddr,
    started: Instant,
    station: Arc<Station>,
}

enum Outcome {
    SignedIn(Box<SignedIn>),
    Over(String),
}

/// Both dialogues are through.
struct SignedIn {
    front: BoxIo,
    back: BoxIo,
    /// What the mail client pipelined behind its login.
    to_back: Vec<u8>,
    /// What upstream sent behind its answer.
    to_front: Vec<u8>,
    user: String,
    mechanism: &'static str,
    opened: Opened,
}

/// An upstream connection that is signed in.
struct Opened {
    mailbox: String,
    origin: Origin,
    token_ends: Instant,
    /// Over a connection that was ready, or a new one.
    connection: &'static str,
    _seat: Seat,
    /// The relay's, once it begins.
    pass: Option<Pass>,
}

/// An upstream connection on which the login went through.
struct Admitted {
    io: BoxIo,
    /// What upstream sent behind its answer.
    rest: Vec<u8>,
    welcome: Welcome,
    connection: &'static str,
}

/// Why a login came to nothing.
enum Setback {
    Refused(Box<Explanation>),
    /// The mail client hung up while it waited its turn.
    Left,
    /// The proxy stops.
    Stopping,
}

impl From<Explanation> for Setback {
    fn from(story: Explanation) -> Self {
        Self::Refused(Box::new(story))
    }
}

/// The mail client's side, while its login is decided.
struct Counterpart<'a> {
    dialogue: &'a mut dyn Front,
    io: &'a mut BoxIo,
}

impl Session {
    #[expect(clippy::too_many_lines, reason = "the story of a sign-in reads best in one piece")]
    async fn sign_in(&mut self, io: BoxIo, full: bool) -> Outcome {
        let station = Arc::clone(&self.station);
        let mut deadline = self.started + station.limits.login_timeout;
        let settings = station.front_settings();
        let mut recorder = self.recorder(settings.clone());
        let mut front = station.front(settings);
        let mut io = match self.start_tls(io, deadline).await {
            Ok(io) => io,
            Err(why) => return Outcome::Over(why),
        };
        if station.listener.tls == FrontTls::Implicit {
            recorder.front.note(">  secured");
            front.secured();
        }
        if full {
            self.goodbye(front, io, HangUp::Refused(Refusal::TooManySessions), &mut recorder).await;
            return Outcome::Over("turned away: `limits.sessions` is reached".to_owned());
        }
        loop {
            let heard = tokio::select! {
                heard = timeout_at(deadline, drive::front(&mut *front, &mut io, station.acceptor.as_ref(), &mut recorder)) => heard,
                () = station.draining.cancelled() => {
                    self.goodbye(front, io, HangUp::ShuttingDown, &mut recorder).await;
                    return Outcome::Over("the proxy stops".to_owned());
                }
            };
            let login = match heard {
                Ok(Ok(Heard::Login(login))) => login,
                Ok(Ok(Heard::Closed(farewell))) => {
                    if farewell != Farewell::Quit {
                        recorder.failed(farewell.as_str());
                    }
                    recorder.settle();
                    return Outcome::Over(farewell.as_str().to_owned());
                }
                Ok(Ok(Heard::Left)) => {
                    return Outcome::Over("the mail client left before a login".to_owned());
                }
                Ok(Err(error)) => {
                    tls::report(&error.source, &station.listener.name, self.peer);
                    recorder.failed(&error.to_string());
                    recorder.settle();
                    return Outcome::Over(error.to_string());
                }
                Err(_) => {
                    recorder.failed("no login within `login-timeout`");
                    self.goodbye(front, io, HangUp::TimedOut, &mut recorder).await;
                    return Outcome::Over("no login within `login-timeout`".to_owned());
                }
            };
            let client = Counterpart { dialogue: &mut *front, io: &mut io };
            match self.open(&login, client, &mut recorder).await {
                Ok((back, to_front, welcome, opened)) => {
                    front.grant(welcome.offer.as_ref());
                    if let Err(error) = drive::say(&mut *front, &mut io, &mut recorder).await {
                        return Outcome::Over(format!("{error}, just as it was let in"));
                    }
                    let (io, to_back) = self.fix_sender(io, front.into_rest(), &login, &opened.mailbox);
                    return Outcome::SignedIn(Box::new(SignedIn {
                        front: io,
                        back,
                        to_back,
                        to_front,
                        user: login.credentials.user,
                        mechanism: login.mechanism,
                        opened,
                    }));
                }
                Err(Setback::Left) => {
                    return Outcome::Over("the mail client left while it waited for a session".to_owned());
                }
                Err(Setback::Stopping) => {
                    self.goodbye(front, io, HangUp::ShuttingDown, &mut recorder).await;
                    return Outcome::Over("the proxy stops".to_owned());
                }
                Err(Setback::Refused(story)) => {
                    self.report(&login, &story);
                    recorder.refused(&story.refusal, &story.code);
                    front.refuse(&story.refusal);
                    // the client has been kept waiting by us; it gets the whole time for another try
                    deadline = clock::now() + station.limits.login_timeout;
                }
            }
        }
    }

    fn recorder(&self, settings: FrontSettings) -> Recorder {
        let listener = &self.station.listener;
        let heading = Heading { listener: listener.name.clone(), peer: self.peer.ip(), began: clock::wall() };
        let recordings = Arc::clone(&self.station.recordings);
        Recorder::new(recordings, self.id, listener.protocol, heading, settings)
    }

    /// Where a device's sender is not its own to choose, its socket goes through [`FixedSender`].
    fn fix_sender(&self, io: BoxIo, rest: Vec<u8>, login: &Login, mailbox: &str) -> (BoxIo, Vec<u8>) {
        match &self.station.listener.fixed_account {
            Some(fixed) if login.by_address && fixed.envelope_sender == EnvelopeSender::Mailbox => {
                (Box::new(FixedSender::new(io, mailbox.to_owned(), rest)), Vec::new())
            }
            _ => (io, rest),
        }
    }

    async fn start_tls(&self, io: BoxIo, deadline: Instant) -> Result<BoxIo, String> {
        if self.station.listener.tls != FrontTls::Implicit {
            return Ok(io);
        }
        let Some(acceptor) = &self.station.acceptor else {
            return Err("no certificate is configured".to_owned());
        };
        match timeout_at(deadline, acceptor.accept(io)).await {
            Ok(Ok(io)) => Ok(Box::new(io)),
            Ok(Err(error)) => {
                tls::report(&error, &self.station.listener.name, self.peer);
                Err(format!("TLS with the mail client failed: {error}"))
            }
            Err(_) => Err("no TLS handshake within `login-timeout`".to_owned()),
        }
    }

    async fn goodbye(&self, mut front: Box<dyn Front>, mut io: BoxIo, why: HangUp, recorder: &mut Recorder) {
        recorder.hung_up(&why);
        front.hang_up(why);
        // a client that takes no goodbye within its limit goes without
        drop(timeout(GOODBYE_LIMIT, drive::say(&mut *front, &mut io, recorder)).await);
        recorder.settle();
    }

    /// Token, turn, connection, XOAUTH2: all of it within twice the login's time limit, the turn apart.
    async fn open(
        &self,
        login: &Login,
        mut client: Counterpart<'_>,
        recorder: &mut Recorder,
    ) -> Result<(BoxIo, Vec<u8>, Welcome, Opened), Setback> {
        let limit = self.station.limits.login_timeout * 2;
        let deadline = clock::now() + limit;
        let (station, protocol) = (&self.station, self.station.listener.protocol);
        let user = login.credentials.user.as_str();
        let fixed = station.listener.fixed_account.as_ref().filter(|_| login.by_address);
        let account = fixed.map(|fixed| &fixed.account).or_else(|| station.listener.account(user));
        let account = account.ok_or_else(|| not_served(user))?;
        let server = station.server().ok_or_else(|| not_served(user))?;
        let mailbox = account.mailbox_for(user, protocol);
        let credentials = &login.credentials;
        let request = TokenRequest { account, protocol, credentials, source: self.peer.ip(), deadline };
        // the password is proven first: a stranger takes nobody's place
        let mut granted = self.token(&request).await?;
        let asked_for_turn = clock::now();
        let until = asked_for_turn + station.limits.wait_for_session;
        let pass = self.turn(&mailbox, until, &mut client).await?;
        // a turn that was waited for takes nothing from what follows
        let mut deadline = deadline + (clock::now() - asked_for_turn);
        let seat = station.seats.take(&mailbox).ok_or_else(|| too_many(&mailbox, station))?;
        let (mut again, mut patient) = (true, true);
        loop {
            let knock = self.knock(login, account, server, &mailbox, &granted, recorder);
            match timeout_at(deadline, knock).await.map_err(|_| slow(limit))? {
                Ok(Admitted { io, rest, welcome, connection }) => {
                    if let Some(offer) = &welcome.offer {
                        station.offer.signed_in(offer);
                    }
                    if let Some(warm) = &station.warm {
                        warm.logged_in(login.client_name.as_deref());
                    }
                    let (origin, token_ends) = (granted.origin, granted.expires_at);
                    let opened =
                        Opened { mailbox, origin, token_ends, connection, _seat: seat, pass: Some(pass) };
                    return Ok((io, rest, welcome, opened));
                }
                Err(BackFailure::Said(BackError::NoMechanism { .. }))
                    if account.application.sasl == Sasl::Auto
                        && !station.wants_oauthbearer.swap(true, Ordering::Relaxed) => {}
                Err(BackFailure::Said(BackError::Refused { reply, .. }))
                    if again && station.tokens.refused_upstream(&request, &granted.token) =>
                {
                    tracing::info!(
                        session = self.id,
                        user,
                        reply,
                        "upstream refused an old token; asking for a fresh one"
                    );
                    again = false;
                    granted = self.token(&request).await?;
                }
                Err(failure) => {
                    let story = verdict::explain(&failure, protocol, server, &context(account, user));
                    // this login is one of them, once: somebody else may have had the mailbox' sessions
                    if self.heed(&mailbox, &story) && patient {
                        patient = false;
                        let sat_down = clock::now();
                        let wait = self.sit_out(&mailbox, until);
                        match self.attended(&mailbox, &mut client, wait).await {
                            Ok(()) => {
                                deadline += clock::now() - sat_down;
                                continue;
                            }
                            Err(Setback::Refused(_)) => {}
                            Err(gone) => return Err(gone),
                        }
                    }
                    return Err(story.into());
                }
            }
        }
    }

    async fn token(&self, request: &TokenRequest<'_>) -> Result<Granted, Explanation> {
        self.station.tokens.token(request).instrument(tracing::info_span!(target: SPANS, "token")).await
    }

    /// Waits until upstream would take one more session of this mailbox.
    async fn turn(
        &self,
        mailbox: &str,
        until: Instant,
        client: &mut Counterpart<'_>,
    ) -> Result<Pass, Setback> {
        let (holds, turnstile) = (&self.station.holds, &self.station.turnstile);
        let protocol = self.station.listener.protocol;
        let turn = async {
            if let Some(held) = holds.on(protocol, mailbox).filter(|held| clock::now() + held.left() > until)
            {
                return Err(held.explain(mailbox).into());
            }
            let left = until.saturating_duration_since(clock::now());
            let pass = turnstile.pass(protocol, mailbox, left).await;
            let pass = pass.map_err(|crowded| self.crowded(mailbox, crowded))?;
            self.sit_out(mailbox, until).await?;
            Ok(pass)
        };
        self.attended(mailbox, client, turn).await
    }

    /// Waits for the end of the hold on this mailbox, if there is one.
    async fn sit_out(&self, mailbox: &str, until: Instant) -> Result<(), Setback> {
        while let Some(held) = self.station.holds.on(self.station.listener.protocol, mailbox) {
            if clock::now() + held.left() > until {
                return Err(held.explain(mailbox).into());
            }
            sleep(held.left()).await;
        }
        Ok(())
    }

    /// Waits for as long as there is somebody to wait for.
    async fn attended<T>(
        &self,
        mailbox: &str,
        client: &mut Counterpart<'_>,
        wait: impl Future<Output = Result<T, Setback>>,
    ) -> Result<T, Setback> {
        let (station, since) = (&self.station, clock::now());
        let mut wait = std::pin::pin!(wait);
        // mostly there is nothing to wait for, and nobody to listen to
        let at_once = std::future::poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx))).await;
        if let Poll::Ready(done) = at_once {
            return done;
        }
        let label = ListenerLabel { listener: station.listener.name.clone() };
        let waiting = Waiting::new(station.metrics.waiting.get_or_create_owned(&label));
        let done = tokio::select! {
            done = wait => done,
            () = drive::until_gone(client.dialogue, client.io) => Err(Setback::Left),
            () = station.draining.cancelled() => Err(Setback::Stopping),
        };
        drop(waiting);
        tracing::info!(
            session = self.id,
            mailbox,
            ms = milliseconds(clock::now() - since),
            let_in = done.is_ok(),
            "the login waited until upstream takes another session of this mailbox"
        );
        done
    }

    /// Takes note of an answer that asks for patience with this mailbox; whether there is any.
    fn heed(&self, mailbox: &str, story: &Explanation) -> bool {
        let held = self.station.holds.heed(self.station.listener.protocol, mailbox, story);
        if let Some(wait) = held {
            tracing::warn!(
                session = self.id,
                mailbox,
                code = %story.code,
                ms = milliseconds(wait),
                "upstream asks for patience with this mailbox: its next logins are held back"
            );
        }
        held.is_some()
    }

    fn crowded(&self, mailbox: &str, crowded: Crowded) -> Explanation {
        let Crowded { most, queue_full } = crowded;
        let protocol = self.station.listener.protocol;
        let why = if queue_full {
            "and as many logins wait as may".to_owned()
        } else {
            format!("and none ended within {:?}", self.station.limits.wait_for_session)
        };
        Explanation {
            code: "SESSIONS-PER-MAILBOX".into(),
            fault: Fault::MailClient,
            what: format!(
                "`{mailbox}` has {most} sessions open over {protocol}, as many as Exchange Online takes, {why}"
            ),
            remedy: format!(
                "let the application use fewer connections for this mailbox; where upstream takes more, raise \
                 `limits.{}-sessions-per-mailbox`",
                protocol.to_string().to_lowercase()
            ),
            passes: Passes::ByItself(None),
            refusal: Refusal::TooManySessions,
        }
    }

    async fn knock(
        &self,
        login: &Login,
        account: &Account,
        server: &MailServer,
        mailbox: &str,
        granted: &Granted,
        recorder: &mut Recorder,
    ) -> Result<Admitted, BackFailure> {
        let sign_in = SignIn {
            mailbox: mailbox.to_owned(),
            token: granted.token.clone(),
            mechanism: dialogue::mechanism(
                account.application.sasl,
                self.station.wants_oauthbearer.load(Ordering::Relaxed),
            ),
            client_name: login.client_name.clone().unwrap_or_else(|| self.station.host_name.clone()),
            host: server.host.clone(),
            port: server.port,
        };
        let ready = match &self.station.warm {
            Some(warm) => warm.take().await,
            None => None,
        };
        if let Some(ready) = ready
            && let Some(done) = self.knock_warm(ready, sign_in.clone(), server, recorder).await
        {
            return done;
        }
        let connector = &self.station.connector;
        let opening = connector.open(server).instrument(tracing::info_span!(target: SPANS, "connect"));
        let (mut io, proof) = opening.await.map_err(BackFailure::Broke)?;
        let tape = recorder.back(&sign_in, server.tls == BackTls::StartTls, false);
        let mut dialogue = dialogue::back(self.station.listener.protocol, server, Errand::SignIn(sign_in));
        if let Some(proof) = proof {
            tape.note(">  secured");
            dialogue.secured(proof);
        }
        let signing_in = drive::back(&mut *dialogue, &mut io, connector, server, tape);
        let welcome = signing_in.instrument(tracing::info_span!(target: SPANS, "sign-in")).await?;
        Ok(Admitted { io, rest: dialogue.into_rest(), welcome, connection: "new" })
    }

    /// Signs in over a connection that was ready; `None`: it was dead, and the token was not looked at.
    async fn knock_warm(
        &self,
        ready: Ready,
        sign_in: SignIn,
        server: &MailServer,
        recorder: &mut Recorder,
    ) -> Option<Result<Admitted, BackFailure>> {
        let Ready { mut io, mut dialogue } = ready;
        let tape = recorder.back(&sign_in, server.tls == BackTls::StartTls, true);
        dialogue.sign_in(sign_in);
        let mut heard = false;
        let connector = &self.station.connector;
        let signing_in = drive::signed_in(&mut *dialogue, &mut io, connector, server, &mut heard, tape);
        match signing_in.instrument(tracing::info_span!(target: SPANS, "sign-in")).await {
            Ok(welcome) => Some(Ok(Admitted { io, rest: dialogue.into_rest(), welcome, connection: "warm" })),
            Err(failure) if !heard || is_goodbye(&failure) => {
                tracing::debug!(session = self.id, ?failure, "a warm connection was dead; dialling");
                None
            }
            Err(failure) => Some(Err(failure)),
        }
    }

    async fn relay(&self, mut signed_in: SignedIn) {
        let station = &self.station;
        let token = signed_in.opened.origin.as_str();
        station.metrics.logged_in(&station.listener.name, token);
        let mut watch = station.watch();
        let (extra_up, extra_down) = (signed_in.to_back.len() as u64, signed_in.to_front.len() as u64);
        if let Some(watch) = &mut watch {
            watch.up(&signed_in.to_back);
            watch.down(&signed_in.to_front);
        }
        let handed_over = async {
            drive::pass_on(&mut signed_in.back, &signed_in.to_back).await?;
            drive::pass_on(&mut signed_in.front, &signed_in.to_front).await
        };
        if let Err(error) = handed_over.await {
            return self.over(&format!("broken off right after the login: {error}"));
        }
        let margin = station.listener.token_expiry_margin;
        let rules = Rules {
            idle: station.limits.idle_timeout,
            end_at: (station.listener.protocol == Protocol::Smtp)
                .then(|| signed_in.opened.token_ends.checked_sub(margin))
                .flatten(),
            draining: station.draining.clone(),
            watch,
            pass: signed_in.opened.pass.take(),
        };
        let SignedIn { front, back, user, mechanism, opened, .. } = signed_in;
        let ended = relay(front, back, rules).instrument(tracing::info_span!(target: SPANS, "relay")).await;
        self.ended(&user, mechanism, &opened, &ended, (extra_up, extra_down));
    }

    fn ended(&self, user: &str, mechanism: &str, opened: &Opened, ended: &Ended, extra: (u64, u64)) {
        let listener = &self.station.listener;
        let (up, down) = (ended.up + extra.0, ended.down + extra.1);
        self.station.metrics.relayed_by(&listener.name).count(up, down);
        tracing::info!(
            session = self.id,
            listener = listener.name,
            protocol = %listener.protocol,
            peer = %self.peer,
            user,
            mailbox = opened.mailbox,
            mechanism,
            token = opened.origin.as_str(),
            connection = opened.connection,
            up,
            down,
            ms = self.lasted(),
            ended = ended.how.words(),
            "session ended"
        );
        self.unfinished(user, ended);
    }

    /// A message that was under way: whoever looks for it finds its envelope.
    fn unfinished(&self, user: &str, ended: &Ended) {
        let (Some(standing), Some(message)) = (ended.standing, &ended.unfinished) else { return };
        let words = match standing {
            Standing::Between => return,
            Standing::Inside => "the session ended inside a message: it was not sent",
            Standing::Awaiting => {
                "the final answer to a message is lost: it may have been sent, and the mail client may send it again"
            }
        };
        tracing::warn!(
            session = self.id,
            user,
            sender = one_line(&message.sender, MAX_SHOWN),
            recipients = message.recipients,
            "{words}"
        );
    }

    /// How long it has lasted, in milliseconds.
    fn lasted(&self) -> u64 {
        milliseconds(clock::now() - self.started)
    }

    /// A session without a login.
    fn over(&self, why: &str) {
        let listener = &self.station.listener;
        tracing::info!(
            session = self.id,
            listener = listener.name,
            protocol = %listener.protocol,
            peer = %self.peer,
            ms = self.lasted(),
            ended = why,
            "session ended without a login"
        );
    }

    /// A login that was refused: the whole story for the administrator.
    fn report(&self, login: &Login, story: &Explanation) {
        self.station.metrics.refused(&self.station.listener.name, &story.code);
        Span::current().record("code", &*story.code);
        tracing::warn!(
            session = self.id,
            listener = self.station.listener.name,
            peer = %self.peer,
            user = login.credentials.user,
            mechanism = login.mechanism,
            code = %story.code,
            fault = story.fault.as_str(),
            told = story.refusal.as_str(),
            remedy = story.remedy,
            "login refused: {}",
            story.what
        );
    }
}

/// Whether upstream closed the connection rather than answer: its time limit and our login may cross.
fn is_goodbye(failure: &BackFailure) -> bool {
    matches!(failure, BackFailure::Said(BackError::TryLater { reply }) if reply.starts_with("BYE") || reply.starts_with("421"))
}

/// Counted as long as it waits, however it ends.
struct Waiting(Gauge<i64, AtomicI64>);

impl Waiting {
    fn new(gauge: Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn context<'a>(account: &'a Account, user: &'a str) -> Context<'a> {
    let application = &account.application;
    Context {
        user,
        application: &application.client_id,
        directory: &application.endpoints.authority,
        grant: application.grants.first().map_or("", |grant| grant.as_str()),
    }
}

fn slow(limit: Duration) -> Explanation {
    Explanation {
        code: "LOGIN-TIMEOUT".into(),
        fault: Fault::Network,
        what: format!("token and upstream sign-in took longer than {limit:?} together"),
        remedy: "see which of them is slow by the lines before this one; raise `limits.login-timeout` if it must be"
            .to_owned(),
        passes: Passes::ByItself(None),
        refusal: Refusal::Unavailable { retry_after: None },
    }
}

fn not_served(user: &str) -> Explanation {
    Explanation {
        code: "USER-NOT-SERVED".into(),
        fault: Fault::Configuration,
        what: format!("no entry of `accounts` matches `{user}`"),
        remedy: "correct the user name in the mail client, or add an entry to `accounts`".to_owned(),
        passes: Passes::Never,
        refusal: Refusal::contact_admin(CauseKind::NotServed),
    }
}

fn too_many(mailbox: &str, station: &Station) -> Explanation {
    Explanation {
        code: "SESSIONS-PER-USER".into(),
        fault: Fault::MailClient,
        what: format!("`{mailbox}` has {} sessions open", station.limits.sessions_per_user),
        remedy: "close sessions in the mail client, or raise `limits.sessions-per-user`".to_owned(),
        passes: Passes::ByItself(None),
        refusal: Refusal::TooManySessions,
    }
}
