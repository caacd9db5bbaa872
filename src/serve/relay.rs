//! Bytes both ways after the login, unparsed, with back-pressure.
//!
//! A session that waits holds no buffer: bytes are read into one scratch buffer per thread and written on at
//! once; only what the other side does not take yet is kept, and nothing more is read until it has. Both
//! halves always have a read pending, so that rustls gives its own buffers back.
//!
//! Never: looks for meaning in the bytes. A [`Watch`] may look on (SMTP's message boundaries), it cannot
//! change them.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::turnstile::Pass;
use crate::clock;
use crate::stream::{BoxIo, Side};

/// The most that is read at once, in octets: four TLS records.
const SCRATCH: usize = 64 * 1024;

/// Reads in one go before the others get their turn.
const TURNS: usize = 16;

/// How long one direction may go on after the other was closed.
const LINGER: Duration = Duration::from_secs(30);

/// A message is not cut where a session would be: whoever stalls inside one has this many times the limit.
pub const STALLED: u32 = 3;

/// How long upstream may think about a message whose sender has gone (RFC 5321 §4.5.3.2.6).
const VERDICT_LIMIT: Duration = Duration::from_mins(10);

/// How long the end of a session may take to be sent.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// A session that is to end, and may end at any quiet moment, counts as quiet after this.
const QUIET: Duration = Duration::from_millis(250);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// Looks on, without touching a byte.
pub trait Watch: Send + Sync {
    /// Bytes from the mail client.
    fn up(&mut self, bytes: &[u8]);
    /// Bytes from upstream.
    fn down(&mut self, bytes: &[u8]);
    /// Whether ending the session now would lose something.
    fn standing(&self) -> Standing;
    /// The message that would be lost.
    fn unfinished(&self) -> Option<Unfinished>;
    /// Whether a moment without a byte has to pass before we end the session: of commands, nothing more than that
    /// is known.
    fn wants_quiet(&self) -> bool;
    /// What is said to the mail client when we end the session.
    fn farewell(&self, ending: Ending) -> &'static [u8];
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is under way.
    Between,
    /// A message, or a command, is under way.
    Inside,
    /// A whole message is with upstream; what becomes of it is not known yet.
    Awaiting,
}

/// A message that was under way when its session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The sender of its envelope, as the mail client wrote it.
    pub sender: String,
    /// How many recipients it had.
    pub recipients: u32,
}

/// Why we end a session that would go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its token runs out soon.
    TokenExpires,
    /// The proxy stops.
    Draining,
}

/// When a relay ends other than by its sides.
pub struct Rules {
    /// No byte either way for this long; inside a message [`STALLED`] times as long.
    pub idle: Duration,
    /// From then on the session ends at the next moment at which nothing is lost.
    pub end_at: Option<Instant>,
    /// The proxy wants to stop: likewise.
    pub draining: CancellationToken,
    /// Knows those moments; without it a quiet moment is one.
    pub watch: Option<Box<dyn Watch>>,
    /// The session's place upstream: free as soon as upstream has closed, however long the mail client lingers.
    pub pass: Option<Pass>,
}

/// How a relay went.
#[derive(Debug)]
pub struct Ended {
    /// Bytes from the mail client to upstream.
    pub up: u64,
    /// Bytes from upstream to the mail client.
    pub down: u64,
    /// Who ended it.
    pub how: How,
    /// Where the session stood; `None`: there is no such thing as a message in it.
    pub standing: Option<Standing>,
    /// The message that was under way.
    pub unfinished: Option<Unfinished>,
}

/// Who ended a relay.
#[derive(Debug)]
pub enum How {
    /// This side closed in good order.
    Closed(Side),
    /// This side broke.
    Broke(Side, io::Error),
    /// Nobody said anything for too long.
    Idle,
    /// We did.
    Ours(Ending),
}

impl How {
    /// For the session's log line.
    pub fn words(&self) -> String {
        match self {
            Self::Closed(Side::Front) => "the mail client closed".to_owned(),
            Self::Closed(Side::Back) => "upstream closed".to_owned(),
            Self::Broke(Side::Front, error) => format!("the mail client's connection broke: {error}"),
            Self::Broke(Side::Back, error) => format!("upstream's connection broke: {error}"),
            Self::Idle => "idle too long".to_owned(),
            Self::Ours(Ending::TokenExpires) => "closed between messages before the token expires".to_owned(),
            Self::Ours(Ending::Draining) => "closed because the proxy stops".to_owned(),
        }
    }
}

/// Moves bytes between the mail client and upstream until one of them, or a rule, ends it.
pub async fn relay(front: BoxIo, back: BoxIo, rules: Rules) -> Ended {
    let mut pipe = Pipe {
        front,
        back,
        up: Half::new(Side::Front),
        down: Half::new(Side::Back),
        watch: rules.watch,
        pass: rules.pass,
        last: clock::now(),
        first_closed: None,
        deaf: None,
    };
    let mut ending: Option<Ending> = None;
    let drained = rules.draining.cancelled_owned();
    let mut drained = std::pin::pin!(drained);
    // a deadline that has come already would wake the thread that waits for sockets
    let mut timer = std::pin::pin!(sleep_until(pipe.last + rules.idle));
    let how = std::future::poll_fn(|cx| {
        loop {
            if ending.is_none() && drained.as_mut().poll(cx).is_ready() {
                ending = Some(Ending::Draining);
            }
            if let Poll::Ready(how) = pipe.poll(cx) {
                return Poll::Ready(how);
            }
            let now = clock::now();
            if ending.is_none() && rules.end_at.is_some_and(|at| at <= now) {
                ending = Some(Ending::TokenExpires);
            }
            if let Some(ending) = ending.filter(|_| pipe.may_end(now)) {
                return Poll::Ready(How::Ours(ending));
            }
            if pipe.last + pipe.patience(rules.idle) <= now {
                return Poll::Ready(pipe.first_closed.map_or(How::Idle, How::Closed));
            }
            // woken by bytes, by the drain, or at the next moment at which a rule may apply
            let mut wake = pipe.last + pipe.patience(rules.idle);
            if ending.is_some() {
                wake = wake.min(now + QUIET);
            } else if let Some(at) = rules.end_at {
                wake = wake.min(at);
            }
            // a later wake-up can wait until the timer fires: bytes must not cost a timer each
            if timer.is_elapsed() || timer.deadline() > wake {
                timer.as_mut().reset(wake);
            }
            ready!(timer.as_mut().poll(cx));
        }
    })
    .await;
    pipe.finish(how).await
}

struct Pipe {
    front: BoxIo,
    back: BoxIo,
    /// From the front to the back.
    up: Half,
    /// From the back to the front.
    down: Half,
    watch: Option<Box<dyn Watch>>,
    pass: Option<Pass>,
    /// When a byte was last seen.
    last: Instant,
    first_closed: Option<Side>,
    /// Upstream takes nothing more, and why.
    deaf: Option<io::Error>,
}

impl Pipe {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<How> {
        let before = (self.up.count, self.down.count);
        let mut up = self.up.poll(cx, &mut self.front, &mut self.back, &mut self.watch);
        if let Poll::Ready(Err((Side::Back, error))) = up {
            // upstream has stopped listening; what it said before, its last answers, is still passed on
            self.up.abandon();
            self.deaf = Some(error);
            self.first_closed.get_or_insert(Side::Back);
            up = Poll::Ready(Ok(()));
        }
        let down = self.down.poll(cx, &mut self.back, &mut self.front, &mut self.watch);
        if before != (self.up.count, self.down.count) {
            self.last = clock::now();
        }
        if self.down.eof {
            self.pass = None;
        }
        for half in [up, down] {
            if let Poll::Ready(Err((side, error))) = half {
                return Poll::Ready(How::Broke(side, error));
            }
        }
        if self.first_closed.is_none() {
            self.first_closed =
                [&self.up, &self.down].into_iter().find(|half| half.eof).map(|half| half.from);
        }
        if self.down.done
            && let Some(error) = self.deaf.take()
        {
            return Poll::Ready(How::Broke(Side::Back, error));
        }
        // once upstream has closed and all of it is passed on, nothing that the client still says has an addressee
        match self.first_closed {
            Some(Side::Back) if self.down.done => Poll::Ready(How::Closed(Side::Back)),
            Some(side) if self.up.done && self.down.done => Poll::Ready(How::Closed(side)),
            _ => Poll::Pending,
        }
    }

    fn may_end(&self, now: Instant) -> bool {
        let nothing_held = self.up.held.is_empty() && self.down.held.is_empty();
        let is_quiet = self.last + QUIET <= now;
        let wants_quiet = self.watch.as_ref().is_none_or(|watch| watch.wants_quiet());
        let is_between = self.standing().is_none_or(|stands| stands == Standing::Between);
        nothing_held && is_between && (is_quiet || !wants_quiet)
    }

    fn standing(&self) -> Option<Standing> {
        self.watch.as_ref().map(|watch| watch.standing())
    }

    fn patience(&self, idle: Duration) -> Duration {
        match (self.first_closed, self.standing()) {
            (Some(Side::Front), Some(Standing::Awaiting)) => VERDICT_LIMIT,
            (Some(_), _) => idle.min(LINGER),
            (None, Some(Standing::Inside | Standing::Awaiting)) => idle.saturating_mul(STALLED),
            (None, Some(Standing::Between) | None) => idle,
        }
    }

    async fn finish(mut self, how: How) -> Ended {
        let has_messages = self.watch.as_ref().is_some_and(|watch| !watch.wants_quiet());
        let standing = self.standing().filter(|_| has_messages);
        let unfinished = self.watch.as_ref().and_then(|watch| watch.unfinished());
        let goodbye = async {
            if let How::Ours(ending) = &how {
                let words = self.watch.as_ref().map_or(&b""[..], |watch| watch.farewell(*ending));
                self.front.write_all(words).await?;
            }
            if !self.up.done {
                self.back.shutdown().await?;
            }
            // where upstream has closed, the mail client has been told already
            if self.down.done { Ok(()) } else { self.front.shutdown().await }
        };
        // whoever is still there gets a proper end of TLS; whoever is not costs a moment at most
        drop(tokio::time::timeout(GOODBYE_LIMIT, goodbye).await);
        Ended { up: self.up.count, down: self.down.count, how, standing, unfinished }
    }
}

/// One direction.
struct Half {
    from: Side,
    /// What the other side has not taken yet.
    held: Vec<u8>,
    sent: usize,
    count: u64,
    unflushed: bool,
    eof: bool,
    done: bool,
}

impl Half {
    fn new(from: Side) -> Self {
        Self { from, held: Vec::new(), sent: 0, count: 0, unflushed: false, eof: false, done: false }
    }

    /// Nothing more goes this way.
    fn abandon(&mut self) {
        (self.held, self.sent) = (Vec::new(), 0);
        self.done = true;
    }

    fn to(&self) -> Side {
        match self.from {
            Side::Front => Side::Back,
            Side::Back => Side::Front,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut BoxIo,
        writer: &mut BoxIo,
        watch: &mut Option<Box<dyn Watch>>,
    ) -> Poll<Result<(), (Side, io::Error)>> {
        let to = self.to();
        for _ in 0..TURNS {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            while let Some(waiting) = self.held.get(self.sent..).filter(|waiting| !waiting.is_empty()) {
                self.sent +=
                    ready!(written(Pin::new(&mut *writer).poll_write(cx, waiting))).map_err(|e| (to, e))?;
            }
            if !self.held.is_empty() {
                (self.held, self.sent) = (Vec::new(), 0);
            }
            if self.eof {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(|e| (to, e))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            match BUFFER.with_borrow_mut(|scratch| self.pass(cx, reader, writer, watch, scratch)) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(|e| (to, e))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and passes on what the other side takes at once; the rest is held.
    fn pass(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut BoxIo,
        writer: &mut BoxIo,
        watch: &mut Option<Box<dyn Watch>>,
        scratch: &mut [u8],
    ) -> Poll<Result<(), (Side, io::Error)>> {
        let (from, to) = (self.from, self.to());
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(&mut *reader).poll_read(cx, &mut buffer)).map_err(|e| (from, e))?;
        let bytes = buffer.filled();
        if bytes.is_empty() {
            self.eof = true;
            return Poll::Ready(Ok(()));
        }
        self.count += bytes.len() as u64;
        if let Some(watch) = watch {
            match from {
                Side::Front => watch.up(bytes),
                Side::Back => watch.down(bytes),
            }
        }
        self.unflushed = true;
        let mut rest = bytes;
        while !rest.is_empty() {
            match written(Pin::new(&mut *writer).poll_write(cx, rest)) {
                Poll::Ready(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err((to, error))),
                Poll::Pending => {
                    self.held = rest.to_vec();
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A writer that takes nothing is a writer that is gone.
fn written(result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    if matches!(result, Poll::Ready(Ok(0))) {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, duplex};

    fn rules() -> Rules {
        Rules {
            idle: Duration::from_secs(60),
            end_at: None,
            draining: CancellationToken::new(),
            watch: None,
            pass: None,
        }
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_through_narrow_pipes() {
        let (mut front, near) = duplex(1000);
        let (far, mut back) = duplex(777);
        let relayed = tokio::spawn(relay(Box::new(near), Box::new(far), rules()));
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let upload = tokio::spawn(async move {
            front.write_all(&sent).await.unwrap();
            front.shutdown().await.unwrap();
            let mut answer = Vec::new();
            front.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut got = Vec::new();
        back.read_to_end(&mut got).await.unwrap();
        assert!(got == expected);
        // the front has closed its half; the answer still comes through
        back.write_all(b"250 ok\r\n").await.unwrap();
        drop(back);
        assert_eq!(upload.await.unwrap(), b"250 ok\r\n");
        let ended = relayed.await.unwrap();
        assert!(matches!(ended.how, How::Closed(Side::Front)), "{ended:?}");
        assert_eq!((ended.up, ended.down), (3_000_000, 8));
    }

    #[tokio::test(start_paused = true)]
    async fn trap_12_a_session_may_say_nothing_for_31_minutes_and_is_ended_after_its_limit() {
        let (mut front, near) = duplex(100);
        let (far, mut back) = duplex(100);
        let limit = Duration::from_secs(35 * 60);
        let relayed = tokio::spawn(relay(Box::new(near), Box::new(far), Rules { idle: limit, ..rules() }));
        tokio::time::sleep(Duration::from_secs(31 * 60)).await;
        back.write_all(b"* 1 EXISTS\r\n").await.unwrap();
        let mut line = [0; 12];
        front.read_exact(&mut line).await.unwrap();
        let quiet_since = clock::now();
        let ended = relayed.await.unwrap();
        assert!(matches!(ended.how, How::Idle));
        assert_eq!(clock::now() - quiet_since, limit);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_while_the_other_side_takes_nothing() {
        let (mut front, near) = duplex(64);
        let (far, _back) = duplex(64);
        let _relayed = tokio::spawn(relay(Box::new(near), Box::new(far), rules()));
        // what the two pipes and the one held piece can take, and not a byte more
        let taken = tokio::time::timeout(Duration::from_secs(1), async {
            let mut taken = 0;
            while front.write_all(&[0; 64]).await.is_ok() {
                taken += 64;
            }
            taken
        });
        assert!(taken.await.is_err(), "an unread back must hold up the front");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_upstream_closed_waits_for_nobody() {
        let (mut front, near) = duplex(100);
        let (far, mut back) = duplex(100);
        let relayed = tokio::spawn(relay(Box::new(near), Box::new(far), rules()));
        back.write_all(b"* BYE\r\n").await.unwrap();
        drop(back);
        let mut told = String::new();
        front.read_to_string(&mut told).await.unwrap();
        let before = clock::now();
        let ended = relayed.await.unwrap();
        assert!(matches!(ended.how, How::Closed(Side::Back)) && told == "* BYE\r\n");
        assert_eq!(clock::now(), before);
    }

    /// Takes nothing more, and has this many answers left to give.
    struct Deaf(usize);

    impl tokio::io::AsyncRead for Deaf {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0 > 0 {
                self.0 -= 1;
                buf.put_slice(b"+OK\r\n");
            }
            Poll::Ready(Ok(()))
        }
    }

    impl tokio::io::AsyncWrite for Deaf {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answers_of_an_upstream_that_takes_nothing_more_are_passed_on() {
        for says_something in [true, false] {
            let (mut front, near) = duplex(10_000);
            if says_something {
                front.write_all(b"QUIT\r\n").await.unwrap();
            }
            front.shutdown().await.unwrap();
            // more than is read in one go
            let relayed = tokio::spawn(relay(Box::new(near), Box::new(Deaf(4 * TURNS)), rules()));
            let mut told = String::new();
            front.read_to_string(&mut told).await.unwrap();
            assert_eq!(told.matches("+OK").count(), 4 * TURNS);
            let ended = relayed.await.unwrap();
            assert!(matches!(ended.how, How::Broke(Side::Back, _)), "{:?}", ended.how);
        }
    }

    struct Gate(bool);
    impl Watch for Gate {
        fn up(&mut self, bytes: &[u8]) {
            self.0 = bytes.ends_with(b".");
        }
        fn down(&mut self, _bytes: &[u8]) {}
        fn standing(&self) -> Standing {
            if self.0 { Standing::Between } else { Standing::Inside }
        }
        fn unfinished(&self) -> Option<Unfinished> {
            None
        }
        fn wants_quiet(&self) -> bool {
            false
        }
        fn farewell(&self, _ending: Ending) -> &'static [u8] {
            b"421 bye\r\n"
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_expiring_token_waits_for_the_end_of_the_message() {
        let (mut front, near) = duplex(100);
        let (far, mut back) = duplex(100);
        let end_at = Some(clock::now() + Duration::from_secs(10));
        let watch: Option<Box<dyn Watch>> = Some(Box::new(Gate(false)));
        let relayed = tokio::spawn(relay(Box::new(near), Box::new(far), Rules { end_at, watch, ..rules() }));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!relayed.is_finished());
        front.write_all(b"the end.").await.unwrap();
        let ended = relayed.await.unwrap();
        assert!(matches!(ended.how, How::Ours(Ending::TokenExpires)));
        let (mut told, mut arrived) = (String::new(), String::new());
        front.read_to_string(&mut told).await.unwrap();
        back.read_to_string(&mut arrived).await.unwrap();
        assert_eq!((told.as_str(), arrived.as_str()), ("421 bye\r\n", "the end."));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_stalls_inside_a_message_has_three_times_the_limit_and_no_more() {
        let (_front, near) = duplex(100);
        let (far, _back) = duplex(100);
        let (limit, since) = (Duration::from_secs(60), clock::now());
        let watch: Option<Box<dyn Watch>> = Some(Box::new(Gate(false)));
        let ended = relay(Box::new(near), Box::new(far), Rules { idle: limit, watch, ..rules() }).await;
        assert!(matches!(ended.how, How::Idle));
        assert_eq!(clock::now() - since, limit * STALLED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_a_quiet_session_soon() {
        let (_front, near) = duplex(100);
        let (far, _back) = duplex(100);
        let draining = CancellationToken::new();
        let rules = Rules { draining: draining.clone(), ..rules() };
        let relayed = tokio::spawn(relay(Box::new(near), Box::new(far), rules));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!relayed.is_finished());
        draining.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(1), relayed).await.unwrap().unwrap();
        assert!(matches!(ended.how, How::Ours(Ending::Draining)));
    }
}
