//! The story of one connection: greeting, credentials, token, upstream, relay, and one line about it all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::drive::{self, BackFailure, Heard};
use super::listener::Visit;
use super::recorder::Recorder;
use super::relay::{Ended, Rules, relay};
use super::station::Station;
use super::verdict;
use crate::clock;
use crate::config::model::{Account, BackTls, FrontTls, MailServer, Protocol, Sasl};
use crate::explain::{CauseKind, Explanation, Fault, Passes, Refusal};
use crate::protocol::machine::{
    BackError, Errand, Farewell, Front, FrontSettings, HangUp, Login, SaslMechanism, SignIn, Welcome,
};
use crate::seats::Seat;
use crate::stream::BoxIo;
use crate::telemetry::metrics::{ListenerLabel, RelayLabels};
use crate::token::catalogue::Context;
use crate::token::request::{Granted, Origin, TokenRequest};

/// How long a goodbye may take to be sent.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// Numbers sessions, so that their lines can be found together.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Serves one connection from its first byte to its last.
pub async fn serve(station: Arc<Station>, visit: Visit) {
    let label = ListenerLabel { listener: station.listener.name.clone() };
    let alive = station.metrics.sessions.get_or_create_owned(&label);
    alive.inc();
    let mut session = Session {
        id: SESSIONS.fetch_add(1, Ordering::Relaxed),
        peer: visit.peer,
        started: clock::now(),
        station,
    };
    let full = visit.place.is_none();
    // boxed, so that a session that has signed in does not carry its sign-in's state along
    match Box::pin(session.sign_in(Box::new(visit.io), full)).await {
        Outcome::SignedIn(signed_in) => session.relay(*signed_in).await,
        Outcome::Over(why) => session.over(&why),
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
    welcome: Welcome,
    _seat: Seat,
}

impl Session {
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
            match self.open(&login, &mut recorder).await {
                Ok((back, to_front, opened)) => {
                    front.grant(opened.welcome.offer.as_ref());
                    if let Err(error) = drive::say(&mut *front, &mut io, &mut recorder).await {
                        return Outcome::Over(format!("{error}, just as it was let in"));
                    }
                    return Outcome::SignedIn(Box::new(SignedIn {
                        front: io,
                        back,
                        to_back: front.into_rest(),
                        to_front,
                        user: login.credentials.user,
                        mechanism: login.mechanism,
                        opened,
                    }));
                }
                Err(story) => {
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
        let (station, peer) = (&self.station, self.peer.ip().to_canonical());
        let (listener, when) = (&station.listener, clock::wall());
        let heading = format!("session {} on listener `{}`, from {peer}, {when:.0}", self.id, listener.name);
        let recordings = Arc::clone(&station.recordings);
        Recorder::new(recordings, self.id, listener.protocol, heading, settings)
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
            Ok(Err(error)) => Err(format!("TLS with the mail client failed: {error}")),
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

    /// Token, connection, XOAUTH2: all of it within twice the login's time limit.
    async fn open(
        &self,
        login: &Login,
        recorder: &mut Recorder,
    ) -> Result<(BoxIo, Vec<u8>, Opened), Explanation> {
        let limit = self.station.limits.login_timeout * 2;
        let deadline = clock::now() + limit;
        timeout_at(deadline, self.open_by(login, deadline, recorder)).await.unwrap_or_else(|_| {
            Err(Explanation {
                code: "LOGIN-TIMEOUT".into(),
                fault: Fault::Network,
                what: format!("token and upstream sign-in took longer than {limit:?} together"),
                remedy: "see which of them is slow by the lines before this one; raise `limits.login-timeout` if it must be".to_owned(),
                passes: Passes::ByItself(None),
                refusal: Refusal::Unavailable { retry_after: None },
            })
        })
    }

    async fn open_by(
        &self,
        login: &Login,
        deadline: Instant,
        recorder: &mut Recorder,
    ) -> Result<(BoxIo, Vec<u8>, Opened), Explanation> {
        let (station, protocol) = (&self.station, self.station.listener.protocol);
        let user = login.credentials.user.as_str();
        let account = station.listener.account(user).ok_or_else(|| not_served(user))?;
        let server = station.server().ok_or_else(|| not_served(user))?;
        let mailbox = account.mailbox_for(user, protocol);
        let seat = station.seats.take(&mailbox).ok_or_else(|| too_many(&mailbox, station))?;
        let request = TokenRequest { account, protocol, credentials: &login.credentials, deadline };
        let mut again = true;
        loop {
            let granted = station.tokens.token(&request).await?;
            match self.knock(login, account, server, &mailbox, &granted, recorder).await {
                Ok((io, rest, welcome)) => {
                    station.remember(welcome.offer.clone());
                    let (origin, token_ends) = (granted.origin, granted.expires_at);
                    let opened = Opened { mailbox, origin, token_ends, welcome, _seat: seat };
                    return Ok((io, rest, opened));
                }
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
                }
                Err(failure) => {
                    let context = context(account, user);
                    return Err(verdict::explain(&failure, protocol, server, &context));
                }
            }
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
    ) -> Result<(BoxIo, Vec<u8>, Welcome), BackFailure> {
        let sign_in = SignIn {
            mailbox: mailbox.to_owned(),
            token: granted.token.clone(),
            mechanism: match account.application.sasl {
                Sasl::Xoauth2 => SaslMechanism::Xoauth2,
                Sasl::OauthBearer => SaslMechanism::OauthBearer,
            },
            client_name: login.client_name.clone().unwrap_or_else(|| self.station.host_name.clone()),
            host: server.host.clone(),
            port: server.port,
        };
        let connector = &self.station.connector;
        let (mut io, proof) = connector.open(server).await.map_err(BackFailure::Broke)?;
        let tape = recorder.back(&sign_in, server.tls == BackTls::StartTls);
        let mut dialogue = self.station.back(server, Errand::SignIn(sign_in));
        if let Some(proof) = proof {
            tape.note(">  secured");
            dialogue.secured(proof);
        }
        let welcome = drive::back(&mut *dialogue, &mut io, connector, server, tape).await?;
        Ok((io, dialogue.into_rest(), welcome))
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
        };
        let SignedIn { front, back, user, mechanism, opened, .. } = signed_in;
        let ended = relay(front, back, rules).await;
        self.ended(&user, mechanism, &opened, &ended, (extra_up, extra_down));
    }

    fn ended(&self, user: &str, mechanism: &str, opened: &Opened, ended: &Ended, extra: (u64, u64)) {
        let listener = &self.station.listener;
        let (up, down) = (ended.up + extra.0, ended.down + extra.1);
        for (direction, bytes) in [("up", up), ("down", down)] {
            let labels = RelayLabels { listener: listener.name.clone(), direction };
            self.station.metrics.relayed.get_or_create(&labels).inc_by(bytes);
        }
        tracing::info!(
            session = self.id,
            listener = listener.name,
            protocol = %listener.protocol,
            peer = %self.peer,
            user,
            mailbox = opened.mailbox,
            mechanism,
            token = opened.origin.as_str(),
            up,
            down,
            ms = self.lasted(),
            ended = ended.how.words(),
            "session ended"
        );
        if !ended.clean {
            tracing::warn!(
                session = self.id,
                user,
                "the session ended inside a message, or before its final answer: the mail client has to send it again"
            );
        }
    }

    /// How long it has lasted, in milliseconds.
    fn lasted(&self) -> u64 {
        u64::try_from((clock::now() - self.started).as_millis()).unwrap_or(u64::MAX)
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

fn context<'a>(account: &'a Account, user: &'a str) -> Context<'a> {
    let application = &account.application;
    Context {
        user,
        application: &application.client_id,
        directory: &application.endpoints.authority,
        grant: application.grants.first().map_or("", |grant| grant.as_str()),
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
