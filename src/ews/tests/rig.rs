//! A mail client that writes raw bytes, and fakes for all that stands behind the desk.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::model::{
    Account, Application, ClientAuth, Endpoints, EwsSettings, FrontTls, Grant, Limits, Listener, Protocol,
    Sasl, Template, Upstream, UserPattern,
};
use crate::ews::desk::{BoxBody, BoxError, BoxFuture, Desk, Sender};
use crate::ews::{EwsSession, body, serve};
use crate::explain::{Explanation, Fault, Passes, Refusal};
use crate::seats::Seats;
use crate::secret::AccessToken;
use crate::telemetry::metrics::Metrics;
use crate::token::request::{Granted, Origin, TokenFuture, TokenRequest, Tokens};

pub(super) const USER: &str = "alice@contoso.com";
pub(super) const PASSWORD: &str = "pa:ss wörd";

/// What Exchange got to see.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) token: String,
}

type Reply =
    Box<dyn FnOnce(Request<BoxBody>) -> BoxFuture<'static, Result<Response<BoxBody>, Explanation>> + Send>;

/// Exchange, as scripted: each request takes the next reply; without one it reads the body and says 200.
#[derive(Default)]
pub(super) struct Exchange {
    script: Mutex<VecDeque<Reply>>,
    seen: Mutex<Vec<Seen>>,
    sent: Mutex<usize>,
}

impl Exchange {
    /// Reads the whole request, then answers with this.
    pub(super) fn then(&self, response: Response<BoxBody>) {
        self.script.lock().unwrap().push_back(Box::new(|request| {
            Box::pin(async move {
                request.into_body().collect().await.expect("the request body");
                Ok(response)
            })
        }));
    }

    /// Does what the closure says.
    pub(super) fn then_do<F>(&self, reply: impl FnOnce(Request<BoxBody>) -> F + Send + 'static)
    where
        F: Future<Output = Result<Response<BoxBody>, Explanation>> + Send + 'static,
    {
        self.script.lock().unwrap().push_back(Box::new(|request| Box::pin(reply(request))));
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests came, read or not.
    pub(super) fn sent(&self) -> usize {
        *self.sent.lock().unwrap()
    }
}

struct ExchangeHandle(Arc<Exchange>);

impl Sender for ExchangeHandle {
    fn send(
        &self,
        request: Request<BoxBody>,
        token: AccessToken,
    ) -> BoxFuture<'_, Result<Response<BoxBody>, Explanation>> {
        Box::pin(async move {
            *self.0.sent.lock().unwrap() += 1;
            let reply = self.0.script.lock().unwrap().pop_front();
            let (parts, body) = request.into_parts();
            let index = {
                let mut seen = self.0.seen.lock().unwrap();
                seen.push(Seen {
                    method: parts.method.clone(),
                    uri: parts.uri.clone(),
                    headers: parts.headers.clone(),
                    body: Bytes::new(),
                    token: token.for_safekeeping().to_owned(),
                });
                seen.len() - 1
            };
            if let Some(reply) = reply {
                return reply(Request::from_parts(parts, body)).await;
            }
            let body = body.collect().await.expect("the request body").to_bytes();
            self.0.seen.lock().unwrap()[index].body = body;
            Ok(response(200, &[("content-type", "text/xml")], "<ok/>"))
        })
    }
}

/// The broker, as scripted; without a script it gives `token-1`, `token-2`, … for the right password.
#[derive(Debug, Default)]
pub(super) struct Broker {
    script: Mutex<VecDeque<Option<Explanation>>>,
    asked: Mutex<Vec<String>>,
    dropped: Mutex<Vec<String>>,
    purposes: Mutex<Vec<Protocol>>,
}

impl Broker {
    /// The next question is answered with this refusal.
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.script.lock().unwrap().push_back(Some(story(refusal)));
    }

    /// The next question is never answered.
    pub(super) fn hang(&self) {
        self.script.lock().unwrap().push_back(None);
    }

    /// What each token was asked for.
    pub(super) fn purposes(&self) -> Vec<Protocol> {
        self.purposes.lock().unwrap().clone()
    }

    /// Who asked for a token.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// The tokens that upstream refused.
    pub(super) fn dropped(&self) -> Vec<String> {
        self.dropped.lock().unwrap().clone()
    }
}

impl Tokens for Broker {
    fn token<'a>(&'a self, request: &'a TokenRequest<'a>) -> TokenFuture<'a> {
        Box::pin(async move {
            self.purposes.lock().unwrap().push(request.protocol);
            let number = {
                let mut asked = self.asked.lock().unwrap();
                asked.push(request.credentials.user.clone());
                asked.len()
            };
            let scripted = self.script.lock().unwrap().pop_front();
            match scripted {
                Some(Some(refusal)) => return Err(refusal),
                Some(None) => std::future::pending().await,
                None => {}
            }
            if request.credentials.password.expose() != PASSWORD {
                return Err(story(Refusal::BadCredentials));
            }
            Ok(Granted {
                token: AccessToken::new(format!("token-{number}")),
                expires_at: clock::now() + Duration::from_hours(1),
                origin: if number == 1 { Origin::Fetched } else { Origin::Cached },
            })
        })
    }

    fn refused_upstream(&self, _request: &TokenRequest<'_>, token: &AccessToken) -> bool {
        self.dropped.lock().unwrap().push(token.for_safekeeping().to_owned());
        true
    }
}

/// An explanation of the test's own.
pub(super) fn story(refusal: Refusal) -> Explanation {
    Explanation {
        code: "TEST-CODE".into(),
        fault: Fault::Provider,
        what: "internal-detail".to_owned(),
        remedy: "carry on".to_owned(),
        passes: Passes::Never,
        refusal,
    }
}

/// A response of Exchange.
pub(super) fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Response<BoxBody> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let body = if body.is_empty() { body::empty() } else { body::text(body.to_owned()) };
    builder.body(body).unwrap()
}

/// The whole arrangement.
pub(super) struct Rig {
    pub(super) exchange: Arc<Exchange>,
    pub(super) broker: Arc<Broker>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) seats: Seats,
    pub(super) cancel: CancellationToken,
    pub(super) limits: Limits,
    /// In place of `exchange`.
    pub(super) sender: Option<Arc<dyn Sender>>,
    listener: Listener,
}

impl Rig {
    pub(super) fn new() -> Self {
        let limits = Limits {
            sessions: 100,
            sessions_per_user: 2,
            smtp_sessions_per_mailbox: 3,
            imap_sessions_per_mailbox: 20,
            pop3_sessions_per_mailbox: 16,
            wait_for_session: Duration::from_secs(20),
            warm_connections: 0,
            warm_connection_age: Duration::from_secs(45),
            login_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_mins(30),
            drain_timeout: Duration::from_secs(20),
            refusals_per_session: 3,
        };
        Self {
            exchange: Arc::default(),
            broker: Arc::default(),
            metrics: Arc::default(),
            seats: Seats::new(limits.sessions_per_user),
            cancel: CancellationToken::new(),
            limits,
            sender: None,
            listener: listener(vec![
                account("*@contoso.com", None, &[Grant::Password]),
                account("scanner", Some("scans@contoso.com"), &[Grant::Password]),
                account("robot", Some("robot@contoso.com"), &[Grant::ClientCredentials]),
                account("mixed", Some("mixed@contoso.com"), &[Grant::Password, Grant::ClientCredentials]),
            ]),
        }
    }

    pub(super) fn with_tls(mut self) -> Self {
        self.listener.tls = FrontTls::Implicit;
        self
    }

    pub(super) fn with(mut self, ews: EwsSettings) -> Self {
        self.listener.ews = ews;
        self
    }

    pub(super) fn desk(&self) -> Arc<Desk> {
        let desk = Desk::new(
            Arc::new(self.listener.clone()),
            Arc::clone(&self.broker) as Arc<dyn Tokens>,
            self.sender.clone().unwrap_or_else(|| Arc::new(ExchangeHandle(Arc::clone(&self.exchange)))),
            self.seats.clone(),
            self.limits.clone(),
            Arc::clone(&self.metrics),
        );
        Arc::new(desk.unwrap().listening_on(Some("127.0.0.1:1080".parse().unwrap())))
    }

    pub(super) fn connect(&self) -> MailClient {
        let (front, ours) = tokio::io::duplex(64 << 10);
        let peer: SocketAddr = "127.0.0.1:50000".parse().unwrap();
        let session = tokio::spawn(serve(Box::new(ours), peer, self.desk(), self.cancel.clone()));
        MailClient { io: front, buffer: Vec::new(), session }
    }
}

fn listener(accounts: Vec<Account>) -> Listener {
    Listener {
        name: "ews".to_owned(),
        protocol: Protocol::Ews,
        listen: vec!["127.0.0.1:1080".parse().unwrap()],
        tls: FrontTls::Off,
        upstream: Upstream::Http("https://outlook.office365.com/".parse().unwrap()),
        allow_from: Vec::new(),
        proxy_protocol_from: Vec::new(),
        fixed_account: None,
        token_expiry_margin: Duration::from_mins(5),
        ews: EwsSettings::default(),
        accounts: accounts.into_iter().map(Arc::new).collect(),
    }
}

fn account(user: &str, mailbox: Option<&str>, grants: &[Grant]) -> Account {
    let application = Application {
        endpoints: Endpoints {
            token: "https://login.example/token".parse().unwrap(),
            authorize: None,
            device: None,
            authority: "https://login.example/organizations".to_owned(),
            v1_resource: None,
        },
        client_id: "client".to_owned(),
        client_auth: ClientAuth::Public,
        secret_expires: None,
        scope: None,
        resource: "https://outlook.office.com".to_owned(),
        grants: grants.to_vec(),
        offline_access: false,
        sasl: Sasl::Xoauth2,
    };
    Account {
        user: UserPattern::new(user),
        login: None,
        mailbox: mailbox.map(|mailbox| Template::new(mailbox, 0).unwrap()),
        mailbox_smtp: None,
        password: None,
        vouched: false,
        ews_mailboxes: Vec::new(),
        application: Arc::new(application),
        password_hashes: Vec::new(),
    }
}

/// What the mail client read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) reason: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Answer {
    /// All values of a header field.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let same = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} came twice");
        all.first().copied()
    }
}

/// A mail client that knows no more HTTP than it has to.
pub(super) struct MailClient {
    pub(super) io: DuplexStream,
    buffer: Vec<u8>,
    pub(super) session: JoinHandle<EwsSession>,
}

impl MailClient {
    pub(super) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.expect("the connection takes bytes");
    }

    /// Sends a SOAP request with Basic and reads the answer.
    pub(super) async fn soap(&mut self, body: &str) -> Answer {
        self.write(post(USER, PASSWORD, body)).await;
        self.answer().await
    }

    /// Reads one response; a HEAD's has no body.
    pub(super) async fn answer_to(&mut self, method: &str) -> Answer {
        let mut answer = self.head().await;
        if method == "HEAD" || matches!(answer.status, 204 | 304) {
            return answer;
        }
        answer.body = if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            self.fill(length).await;
            String::from_utf8(self.buffer.drain(..length).collect()).unwrap()
        } else if answer.header("transfer-encoding").is_some() {
            let mut whole = String::new();
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break whole;
                }
                whole.push_str(&chunk);
            }
        } else {
            panic!("no framing in {answer:?}");
        };
        answer
    }

    pub(super) async fn answer(&mut self) -> Answer {
        self.answer_to("POST").await
    }

    /// Reads a response's head.
    pub(super) async fn head(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            self.more().await;
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next().unwrap().splitn(3, ' ');
        assert_eq!(first.next(), Some("HTTP/1.1"));
        let status = first.next().unwrap().parse().unwrap();
        let reason = first.next().unwrap_or_default().to_owned();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no header: {line}")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Answer { status, reason, headers, body: String::new() }
    }

    /// Reads one chunk of a chunked body; the last is empty.
    pub(super) async fn chunk(&mut self) -> String {
        let size = loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                break usize::from_str_radix(String::from_utf8(line).unwrap().trim_end(), 16).unwrap();
            }
            self.more().await;
        };
        self.fill(size + 2).await;
        let chunk = self.buffer.drain(..size).collect();
        self.buffer.drain(..2);
        String::from_utf8(chunk).unwrap()
    }

    /// Whether the proxy has closed, with nothing left to read.
    pub(super) async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty()
            && matches!(
                tokio::time::timeout(Duration::from_mins(1), self.io.read(&mut [0; 64])).await,
                Ok(Ok(0) | Err(_))
            )
    }

    async fn fill(&mut self, length: usize) {
        while self.buffer.len() < length {
            self.more().await;
        }
    }

    async fn more(&mut self) {
        let mut bytes = vec![0; 16 << 10];
        let read = tokio::time::timeout(Duration::from_mins(1), self.io.read(&mut bytes))
            .await
            .unwrap_or_else(|_| panic!("nothing came after {:?}", String::from_utf8_lossy(&self.buffer)))
            .unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&self.buffer));
        self.buffer.extend_from_slice(&bytes[..read]);
    }
}

/// `Authorization: Basic …`
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

/// A POST to the EWS endpoint.
pub(super) fn post(user: &str, password: &str, body: &str) -> String {
    post_with(&basic(user, password), body)
}

/// A POST with header lines of the test's own.
pub(super) fn post_with(lines: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /EWS/Exchange.asmx HTTP/1.1\r\nHost: localhost:1080\r\nContent-Type: text/xml\r\n{lines}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// A body that a closure makes, frame by frame.
pub(super) struct Made<F>(pub(super) F);

impl<F> Body for Made<F>
where
    F: FnMut(&mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        (self.0)(cx).map_ok(Frame::data)
    }
}
