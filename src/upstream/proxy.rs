//! One corporate proxy: how we sign in there, which of its schemes has worked, and when it is left alone.
//!
//! ```text
//! CONNECT ──► 200                                             no sign-in, or one by our address
//!    └─────► 407 ──► the strongest scheme that it offers and we have: Negotiate, NTLM, Basic
//!                       NTLM: CONNECT + 1 ──► 407 + 2 ──► CONNECT + 3 ──► 200, all on one connection
//! ```
//!
//! What has worked is where the next connection begins. A user name and password that were refused are not
//! shown again for a minute: each try counts towards the lock-out of that account.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::error::{ProxyNo, SignInTrouble, UpstreamError};
use super::ground::Ground;
#[cfg(feature = "negotiate")]
use super::negotiate::Kerberos;
use super::ntlm;
use super::tunnel::{self, Answer, Line, SocksNo, SocksSignIn};
use crate::clock;
use crate::config::model::{OutboundProxy, ProxyAuth, Purpose};
use crate::explain::one_line;
use crate::stream::BoxIo;

/// How long a user name and password that were refused are not shown again.
const HOLD: Duration = Duration::from_mins(1);

/// The same, for those that were taken before.
const SHORT_HOLD: Duration = Duration::from_secs(5);

/// Requests in one sign-in, at most: anonymous, Negotiate's legs, NTLM's, Basic.
const LEGS: usize = 8;

/// One entry of `outbound-proxy`.
pub struct Proxy {
    settings: OutboundProxy,
    /// Host and port, for messages.
    name: String,
    memory: Mutex<Memory>,
    /// Held by a sign-in that has not worked before: there is no second at the same time.
    first: tokio::sync::Mutex<()>,
    #[cfg(feature = "negotiate")]
    kerberos: Kerberos,
}

/// The right to show a password that has not been taken yet.
type Turn<'p> = Option<tokio::sync::MutexGuard<'p, ()>>;

/// What was learnt about the proxy.
#[derive(Default)]
struct Memory {
    works: Option<Scheme>,
    held: Option<(Instant, UpstreamError)>,
}

/// A way to sign in; the stronger, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scheme {
    Anonymous,
    Basic,
    Ntlm,
    Negotiate,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "none",
            Self::Basic => "Basic",
            Self::Ntlm => "NTLM",
            Self::Negotiate => "Negotiate",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Basic, Self::Ntlm, Self::Negotiate].into_iter().find(|s| s.name().eq_ignore_ascii_case(name))
    }
}

/// How a sign-in by one scheme came out.
enum Outcome {
    /// The proxy's last answer; whether it had seen user name and password, or a ticket, before.
    Answered { answer: Answer, judged: bool },
    /// We have nothing to show.
    NoTicket(String),
}

impl Proxy {
    /// Knows nothing about it yet.
    pub fn new(settings: OutboundProxy) -> Self {
        let host = settings.url.host_str().unwrap_or("?");
        let name = format!("{host}:{}", settings.url.port_or_known_default().unwrap_or(1080));
        #[cfg(feature = "negotiate")]
        let kerberos = Kerberos::new(settings.username.clone().zip(settings.password.clone()));
        Self {
            name,
            memory: Mutex::default(),
            first: tokio::sync::Mutex::default(),
            #[cfg(feature = "negotiate")]
            kerberos,
            settings,
        }
    }

    /// Whether it serves a connection for this purpose to this host.
    pub fn serves(&self, purpose: Purpose, host: &str) -> bool {
        self.settings.serves(purpose, host)
    }

    /// Whether it serves a purpose for any host at all.
    pub fn serves_any(&self, purpose: Purpose) -> bool {
        self.settings.use_for.includes(purpose)
    }

    /// Where it is dialled.
    pub fn address(&self) -> (&str, u16) {
        let url = &self.settings.url;
        (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(1080))
    }

    /// Host and port, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A tunnel to `host:port`. Has no time limit of its own.
    ///
    /// # Errors
    /// The proxy cannot be reached, wants another sign-in, refuses, breaks off.
    pub async fn open(&self, ground: &Ground, host: &str, port: u16) -> Result<BoxIo, UpstreamError> {
        if let Some(error) = self.held_back() {
            return Err(error);
        }
        let mut turn = None;
        let opened = if matches!(self.settings.url.scheme(), "socks5h" | "socks5") {
            self.socks(ground, host, port, &mut turn).await
        } else {
            self.connect(ground, host, port, &mut turn).await
        };
        if let Err(error @ UpstreamError::ProxySignIn { why, .. }) = &opened
            && self.has_shown_a_password(why)
        {
            let mut memory = self.memory();
            // what worked until now may work again soon: a proxy that cannot ask its directory says 407, too
            let hold = if memory.works.take().is_some() { SHORT_HOLD } else { HOLD };
            memory.held = Some((clock::now() + hold, error.clone()));
        }
        // only now: whoever waited for it sees that the password is held back
        drop(turn);
        opened
    }

    /// Waits until a password may be shown that has not yet been taken in this way: one at a time, so that a
    /// wrong one is counted once, however many connections wait.
    async fn wait_for_turn<'p>(&'p self, scheme: Scheme, turn: &mut Turn<'p>) -> Result<(), UpstreamError> {
        if scheme == Scheme::Anonymous || turn.is_some() || self.memory().works == Some(scheme) {
            return Ok(());
        }
        *turn = Some(self.first.lock().await);
        self.held_back().map_or(Ok(()), Err)
    }

    /// To the proxy, or to a Kerberos key distribution centre.
    fn has_shown_a_password(&self, why: &SignInTrouble) -> bool {
        match why {
            SignInTrouble::Refused(_) => true,
            SignInTrouble::NoTicket(_) => self.settings.username.is_some(),
            SignInTrouble::NoCredentials | SignInTrouble::NoCommonScheme => false,
        }
    }

    fn held_back(&self) -> Option<UpstreamError> {
        let memory = self.memory();
        memory.held.as_ref().filter(|(until, _)| *until > clock::now()).map(|(_, error)| error.clone())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect<'p>(
        &'p self,
        ground: &Ground,
        host: &str,
        port: u16,
        turn: &mut Turn<'p>,
    ) -> Result<BoxIo, UpstreamError> {
        let target = tunnel::target(host, port);
        let mut tried: Vec<Scheme> = Vec::new();
        let mut scheme = self.memory().works.unwrap_or_else(|| self.opening());
        let mut line = self.line(ground).await?;
        let mut no_ticket = None;
        loop {
            self.wait_for_turn(scheme, turn).await?;
            tried.push(scheme);
            let (answer, judged) = match self.ask_by(scheme, &mut line, &target).await? {
                Outcome::Answered { answer, judged } => (answer, judged),
                Outcome::NoTicket(why) => {
                    no_ticket = Some(why);
                    (self.ask(&mut line, &target, None).await?, false)
                }
            };
            if answer.status != 407 {
                // also where the target is refused: the sign-in was not
                self.memory().works = Some(scheme);
                return match answer.status {
                    200..300 if line.begins_with_a_page() => {
                        Err(self.refused(&target, ProxyNo::Page, "a page in place of the tunnel"))
                    }
                    200..300 => Ok(line.into_tunnel()),
                    _ => Err(self.refused(&target, no_of(&answer), &answer.reply)),
                };
            }
            scheme = self.next(scheme, judged, &tried, &answer).map_err(|why| {
                self.sign_in_failed(
                    match (why, no_ticket.take()) {
                        (SignInTrouble::NoCommonScheme | SignInTrouble::NoCredentials, Some(reason)) => {
                            SignInTrouble::NoTicket(reason)
                        }
                        (why, _) => why,
                    },
                    &answer,
                )
            })?;
            if !answer.reusable {
                line = self.line(ground).await?;
            }
        }
    }

    /// Where a sign-in begins as long as nothing is known.
    fn opening(&self) -> Scheme {
        match self.settings.auth {
            ProxyAuth::Auto | ProxyAuth::None => Scheme::Anonymous,
            ProxyAuth::Basic => Scheme::Basic,
            ProxyAuth::Ntlm => Scheme::Ntlm,
            ProxyAuth::Negotiate => Scheme::Negotiate,
        }
    }

    /// What to try after a 407. Never a weaker scheme once user name and password have been refused: that
    /// would show them again, and in clear text.
    fn next(
        &self,
        last: Scheme,
        judged: bool,
        tried: &[Scheme],
        answer: &Answer,
    ) -> Result<Scheme, SignInTrouble> {
        let has_login = self.settings.username.is_some();
        let wanted = |own| matches!(self.settings.auth, ProxyAuth::Auto) || self.settings.auth == own;
        let usable = |scheme: Scheme| match scheme {
            Scheme::Anonymous => false,
            Scheme::Basic => has_login && wanted(ProxyAuth::Basic),
            Scheme::Ntlm => has_login && wanted(ProxyAuth::Ntlm),
            Scheme::Negotiate => cfg!(feature = "negotiate") && wanted(ProxyAuth::Negotiate),
        };
        let offered = || answer.challenges.iter().filter_map(|challenge| Scheme::of(&challenge.scheme));
        let next = offered().filter(|scheme| usable(*scheme) && !tried.contains(scheme)).max();
        match next {
            Some(next) if !judged && tried.len() < LEGS => Ok(next),
            _ if judged => Err(SignInTrouble::Refused(last.name())),
            _ if !has_login && offered().any(|s| matches!(s, Scheme::Basic | Scheme::Ntlm)) => {
                Err(SignInTrouble::NoCredentials)
            }
            _ => Err(SignInTrouble::NoCommonScheme),
        }
    }

    fn sign_in_failed(&self, why: SignInTrouble, answer: &Answer) -> UpstreamError {
        let offers = answer.challenges.iter().map(|challenge| challenge.scheme.clone()).take(8).collect();
        UpstreamError::ProxySignIn { proxy: self.name.clone(), why, offers }
    }

    async fn ask_by(&self, scheme: Scheme, line: &mut Line, target: &str) -> Result<Outcome, UpstreamError> {
        let user = self.settings.username.as_deref().unwrap_or_default();
        let password = self.settings.password.as_ref().map_or("", |secret| secret.expose());
        match scheme {
            Scheme::Anonymous => {
                let answer = self.ask(line, target, None).await?;
                Ok(Outcome::Answered { answer, judged: false })
            }
            Scheme::Basic => {
                let pair = Zeroizing::new(format!("{user}:{password}"));
                let token = Zeroizing::new(pair.as_bytes().to_vec());
                let answer = self.ask(line, target, Some((scheme, &token))).await?;
                let judged = !user.is_empty();
                Ok(Outcome::Answered { answer, judged })
            }
            Scheme::Ntlm => self.ntlm(line, target, user, password).await,
            Scheme::Negotiate => self.negotiate(line, target).await,
        }
    }

    /// Three messages on one connection ([MS-NLMP], and RFC 4559 §6 for its likes in HTTP).
    async fn ntlm(
        &self,
        line: &mut Line,
        target: &str,
        user: &str,
        password: &str,
    ) -> Result<Outcome, UpstreamError> {
        let first = ntlm::negotiate();
        let answer = self.ask(line, target, Some((Scheme::Ntlm, &first))).await?;
        let challenge = match token(&answer, Scheme::Ntlm) {
            Some(challenge) if answer.status == 407 => challenge,
            _ => return Ok(Outcome::Answered { answer, judged: false }),
        };
        if !answer.reusable {
            return Err(self.broken("its challenge for NTLM, and closes: NTLM needs one connection"));
        }
        let mut fresh = ntlm::Fresh { client_challenge: [0; 8], now: clock::wall() };
        aws_lc_rs::rand::fill(&mut fresh.client_challenge)
            .map_err(|_| self.broken("a challenge, and the system gives no random numbers"))?;
        let spn = format!("HTTP/{}", self.settings.url.host_str().unwrap_or_default());
        let third = ntlm::authenticate(&first, challenge, ntlm::Who::parse(user), password, &spn, fresh)
            .map_err(|error| self.broken(&format!("a challenge for NTLM of no use: {error}")))?;
        let answer = self.ask(line, target, Some((Scheme::Ntlm, &third))).await?;
        Ok(Outcome::Answered { answer, judged: true })
    }

    #[cfg(feature = "negotiate")]
    async fn negotiate(&self, line: &mut Line, target: &str) -> Result<Outcome, UpstreamError> {
        let host = self.settings.url.host_str().unwrap_or_default();
        let (mut sign_in, mut said) = match self.kerberos.begin(host).await {
            Ok(begun) => begun,
            Err(why) => return Ok(Outcome::NoTicket(why)),
        };
        for _ in 0..LEGS {
            let answer = self.ask(line, target, Some((Scheme::Negotiate, &said))).await?;
            let heard = token(&answer, Scheme::Negotiate).map(<[u8]>::to_vec);
            match heard {
                Some(heard) if answer.status == 407 && answer.reusable => {
                    let next = sign_in.go_on(heard).await;
                    let next = next.map_err(|why| self.broken(&format!("a token for Negotiate: {why}")))?;
                    let (again, Some(token)) = next else {
                        return Ok(Outcome::Answered { answer, judged: true });
                    };
                    (sign_in, said) = (again, token);
                }
                _ => return Ok(Outcome::Answered { answer, judged: true }),
            }
        }
        Err(self.broken("one token for Negotiate after the other"))
    }

    #[cfg(not(feature = "negotiate"))]
    #[expect(clippy::unused_async, reason = "with the feature it waits")]
    async fn negotiate(&self, _line: &mut Line, _target: &str) -> Result<Outcome, UpstreamError> {
        Ok(Outcome::NoTicket("this build has no Negotiate".to_owned()))
    }

    async fn ask(
        &self,
        line: &mut Line,
        target: &str,
        token: Option<(Scheme, &[u8])>,
    ) -> Result<Answer, UpstreamError> {
        let authorization = token.map(|(scheme, token)| {
            let encoded = Zeroizing::new(BASE64_STANDARD.encode(token));
            Zeroizing::new(format!("{} {}", scheme.name(), encoded.as_str()))
        });
        let authorization = authorization.as_ref().map(|text| text.as_str());
        line.ask(target, authorization).await.map_err(|error| self.interrupted(&error))
    }

    async fn socks<'p>(
        &'p self,
        ground: &Ground,
        host: &str,
        port: u16,
        turn: &mut Turn<'p>,
    ) -> Result<BoxIo, UpstreamError> {
        let sign_in = self.settings.username.as_deref().filter(|_| self.settings.auth != ProxyAuth::None);
        let sign_in = sign_in.map(|user| SocksSignIn {
            user,
            password: self.settings.password.as_ref().map_or("", |secret| secret.expose()),
            optional: self.settings.auth == ProxyAuth::Auto,
        });
        if sign_in.is_some() {
            self.wait_for_turn(Scheme::Basic, turn).await?;
        }
        let mut io = ground.to_proxy(&self.settings, &self.name).await?;
        let answer = tunnel::socks5(&mut io, sign_in, host, port).await;
        let offers = Vec::new();
        let sign_in_failed = |why| UpstreamError::ProxySignIn { proxy: self.name.clone(), why, offers };
        match answer.map_err(|error| self.interrupted(&error))? {
            Ok(()) => {
                self.memory().works = Some(Scheme::Basic);
                Ok(io)
            }
            Err(SocksNo::SignIn) => Err(sign_in_failed(SignInTrouble::Refused("SOCKS5"))),
            Err(SocksNo::Method) if sign_in.is_none() => Err(sign_in_failed(SignInTrouble::NoCredentials)),
            Err(SocksNo::Method) => Err(sign_in_failed(SignInTrouble::NoCommonScheme)),
            Err(SocksNo::Target(kind, words)) => {
                self.memory().works = Some(Scheme::Basic);
                Err(self.refused(&tunnel::target(host, port), kind, words))
            }
        }
    }

    async fn line(&self, ground: &Ground) -> Result<Line, UpstreamError> {
        Ok(Line::new(ground.to_proxy(&self.settings, &self.name).await?))
    }

    /// The connection to the proxy broke; over TLS, the alert that came says why.
    fn interrupted(&self, error: &std::io::Error) -> UpstreamError {
        if self.settings.url.scheme() == "https"
            && let told @ UpstreamError::WantsCertificate { .. } =
                UpstreamError::of_tls(self.name.clone(), error)
        {
            return told;
        }
        self.broken(&error.to_string())
    }

    fn broken(&self, got: &str) -> UpstreamError {
        UpstreamError::ProxyBroken { proxy: self.name.clone(), got: one_line(got, 200) }
    }

    fn refused(&self, target: &str, kind: ProxyNo, reply: &str) -> UpstreamError {
        UpstreamError::ProxyRefused {
            proxy: self.name.clone(),
            target: target.to_owned(),
            kind,
            reply: one_line(reply, 300),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("name", &self.name).finish_non_exhaustive()
    }
}

fn no_of(answer: &Answer) -> ProxyNo {
    match answer.status {
        403 | 405 => ProxyNo::Forbidden,
        502..=504 => ProxyNo::CannotReach,
        // 511: RFC 6585 §6, made for captive portals
        300..=399 | 511 => ProxyNo::Page,
        _ => ProxyNo::Other,
    }
}

/// The token that the proxy sent for a scheme.
fn token(answer: &Answer, scheme: Scheme) -> Option<&[u8]> {
    let mut ours = answer.challenges.iter().filter(|challenge| Scheme::of(&challenge.scheme) == Some(scheme));
    ours.find_map(|challenge| challenge.token.as_deref())
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
