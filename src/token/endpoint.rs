//! HTTP to the identity provider: the only file of the broker that knows reqwest.
//!
//! Redirections are not followed, environment variables do not choose a proxy, bodies are bounded and never
//! logged, and every request has a time limit. What comes back is plain data for `answer.rs`.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use url::Url;
use zeroize::Zeroizing;

use super::answer::{Body, MAX_ANSWER, RawAnswer};
use crate::certificate::{Flaw, Kind};
use crate::explain::{Explanation, Fault, Passes, Refusal, causes, innermost};
use crate::secret::Secret;

/// Time limit for DNS, TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same through the gateway, which has limits of its own and says more about them.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(14);

/// Time limit for a whole request.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Unused connections to the identity provider are closed after this long.
const POOL_IDLE: Duration = Duration::from_mins(1);

/// The way to the identity provider. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    wire: Arc<dyn Wire>,
}

/// Why no way to the identity provider could be set up.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The gateway's address is of no use.
    #[error("the gateway to the outbound proxy is of no use: {0}")]
    Gateway(String),
    /// TLS or the resolver could not be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(String),
}

/// How requests leave this machine. By default: straight, names by the system's resolver.
#[derive(Clone, Default)]
pub struct Way {
    /// Resolves names for requests that go straight.
    pub names: Option<Arc<dyn reqwest::dns::Resolve>>,
    /// Takes requests over `https://`, wherever they go.
    pub gateway: Option<Gateway>,
}

/// An HTTP proxy of the program's own, which knows the outbound proxies and their sign-ins.
#[derive(Clone)]
pub struct Gateway {
    /// Its `http://` address.
    pub url: Url,
    /// For its sign-in.
    pub user: String,
    /// For its sign-in.
    pub password: Secret,
    /// Why the last tunnel to a host and port did not come about.
    pub why: Arc<Why>,
}

/// Gives the reason for a tunnel that did not come about.
pub type Why = dyn Fn(&str, u16) -> Option<WireError> + Send + Sync;

impl Endpoint {
    /// Uses these roots and TLS versions, and this way.
    ///
    /// # Errors
    /// A gateway or a TLS configuration that cannot be used.
    pub fn new(tls: rustls::ClientConfig, way: Way) -> Result<Self, EndpointError> {
        let through = match &way.gateway {
            Some(gateway) => {
                let proxy = reqwest::Proxy::all(gateway.url.as_str())
                    .map_err(|error| EndpointError::Gateway(innermost(&error)))?
                    .basic_auth(&gateway.user, gateway.password.expose());
                let builder = builder(tls.clone()).proxy(proxy).connect_timeout(GATEWAY_TIMEOUT);
                Some((build(builder)?, Arc::clone(&gateway.why)))
            }
            None => None,
        };
        let mut direct = builder(tls).connect_timeout(CONNECT_TIMEOUT);
        if let Some(names) = way.names {
            direct = direct.dns_resolver(names);
        }
        Ok(Self { wire: Arc::new(Http { direct: build(direct)?, through }) })
    }

    /// A way over something else than HTTP: for tests.
    pub fn over(wire: Arc<dyn Wire>) -> Self {
        Self { wire }
    }

    /// Sends one request. Waits no longer than 15 seconds; the caller may have less patience.
    ///
    /// # Errors
    /// No answer came. An answer that is an error is no error here.
    pub async fn send(&self, ask: &Ask) -> Result<RawAnswer, WireError> {
        self.wire.send(ask).await
    }
}

/// One request, as plain data.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where to.
    pub url: Url,
    /// `POST` with this form; `None` is a `GET`.
    pub form: Option<Vec<(&'static str, Secret)>>,
    /// Beside the usual ones.
    pub headers: Vec<(&'static str, Secret)>,
    /// The platform's own endpoint: never through a proxy.
    pub local: bool,
    /// `client-request-id`, a UUID: Microsoft's support finds the request by it.
    pub correlation: String,
}

impl Ask {
    /// A form for a token endpoint.
    pub fn post(url: &Url, form: Vec<(&'static str, Secret)>) -> Self {
        Self { url: url.clone(), form: Some(form), headers: Vec::new(), local: false, correlation: uuid() }
    }

    /// A question to the platform's own endpoint.
    pub fn get_local(url: Url, headers: Vec<(&'static str, Secret)>) -> Self {
        Self { url, form: None, headers, local: true, correlation: uuid() }
    }

    /// A value of the form: for tests and simulators.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.form.as_ref()?.iter().find(|(key, _)| *key == name).map(|(_, value)| value.expose())
    }
}

/// A future that a trait object can give.
pub type WireFuture<'a> = Pin<Box<dyn Future<Output = Result<RawAnswer, WireError>> + Send + 'a>>;

/// Carries requests to an identity provider.
pub trait Wire: Send + Sync + fmt::Debug {
    /// Sends the request and waits for the answer.
    fn send<'a>(&'a self, ask: &'a Ask) -> WireFuture<'a>;
}

/// No answer came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// What kind of thing went wrong.
    pub trouble: Trouble,
    /// The innermost cause, printable, without secrets and URLs.
    pub detail: String,
    /// Where more is known than the kind tells: the whole story, which begins behind the authority's name.
    pub story: Option<Box<Explanation>>,
}

impl WireError {
    /// No more is known than this.
    pub fn new(trouble: Trouble, detail: impl Into<String>) -> Self {
        Self { trouble, detail: detail.into(), story: None }
    }
}

/// What kept an answer from coming. Each has its own remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The name cannot be resolved.
    Dns,
    /// No TCP connection.
    Connect,
    /// Too slow.
    Timeout,
    /// The certificate's issuer is not trusted: TLS inspection, mostly.
    UntrustedIssuer,
    /// The certificate is expired, not valid yet, or for another name.
    Certificate,
    /// Any other failure of TLS.
    Tls,
    /// The outbound proxy cannot be reached.
    ProxyUnreachable,
    /// The outbound proxy wants a sign-in, or another one.
    ProxyAuth,
    /// The outbound proxy does not let us through.
    ProxyRefused,
    /// The connection broke off.
    BrokenOff,
    /// More than [`MAX_ANSWER`].
    TooLarge,
}

/// Over reqwest.
struct Http {
    direct: reqwest::Client,
    through: Option<(reqwest::Client, Arc<Why>)>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("through", &self.through.is_some()).finish_non_exhaustive()
    }
}

impl Http {
    /// The client for a request, and where to ask why it failed. Clear text goes to loopback only (the
    /// configuration sees to that), and never through a proxy.
    fn route(&self, ask: &Ask) -> (&reqwest::Client, Option<&Why>) {
        match &self.through {
            Some((client, why)) if !ask.local && ask.url.scheme() == "https" => (client, Some(&**why)),
            _ => (&self.direct, None),
        }
    }

    async fn exchange(&self, ask: &Ask) -> Result<RawAnswer, WireError> {
        let (client, why) = self.route(ask);
        let mut request = match &ask.form {
            Some(form) => {
                let pairs: Vec<(&str, &str)> = form.iter().map(|(k, v)| (*k, v.expose())).collect();
                client.post(ask.url.clone()).form(&pairs)
            }
            None => client.get(ask.url.clone()),
        };
        request = request.header("accept", "application/json").header("client-request-id", &ask.correlation);
        for (name, value) in &ask.headers {
            request = request.header(*name, value.expose());
        }
        let response = request.send().await.map_err(|error| wire_error(&error, &ask.url, why))?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let mut answer = RawAnswer {
            status,
            retry_after: header("retry-after"),
            location: header("location"),
            challenge: header("www-authenticate"),
            body: Body::default(),
        };
        answer.body = read_body(response, &ask.url).await?;
        Ok(answer)
    }
}

impl Wire for Http {
    fn send<'a>(&'a self, ask: &'a Ask) -> WireFuture<'a> {
        Box::pin(self.exchange(ask))
    }
}

async fn read_body(mut response: reqwest::Response, url: &Url) -> Result<Body, WireError> {
    let mut body = Zeroizing::new(Vec::with_capacity(8 * 1024));
    while let Some(chunk) = response.chunk().await.map_err(|error| wire_error(&error, url, None))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(WireError::new(Trouble::TooLarge, format!("more than {MAX_ANSWER} octets")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Body(body))
}

fn builder(tls: rustls::ClientConfig) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(Policy::none())
        .timeout(TOTAL_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(4)
        .user_agent(concat!("mailkey/", env!("CARGO_PKG_VERSION")))
        // without it, the environment's HTTPS_PROXY would decide
        .no_proxy()
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, EndpointError> {
    builder.build().map_err(|error| EndpointError::Setup(innermost(&error)))
}

fn wire_error(error: &reqwest::Error, url: &Url, why: Option<&Why>) -> WireError {
    let causes: Vec<&(dyn StdError + 'static)> = causes(error).collect();
    let says = |text: &str| causes.iter().any(|cause| cause.to_string().contains(text));
    let host = url.host_str().unwrap_or_default();
    if let Some(why) = why.filter(|_| says("tunnel error")) {
        let told = why(host.trim_matches(['[', ']']), url.port_or_known_default().unwrap_or(443));
        return told.unwrap_or_else(|| WireError::new(Trouble::ProxyUnreachable, innermost(error)));
    }
    if let Some(tls) = causes.iter().find_map(|cause| tls_cause(*cause)) {
        return tls_trouble(tls, host, innermost(error));
    }
    let trouble = if error.is_timeout() {
        Trouble::Timeout
    } else if says("dns error") {
        Trouble::Dns
    } else if error.is_connect() && !says("handshake eof") && !says("reset by peer") {
        Trouble::Connect
    } else {
        Trouble::BrokenOff
    };
    WireError::new(trouble, innermost(error))
}

fn tls_cause<'e>(cause: &'e (dyn StdError + 'static)) -> Option<&'e rustls::Error> {
    // An I/O error holds its cause where `source` does not show it; and they come nested.
    let mut cause = cause;
    while let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        cause = inner;
    }
    cause.downcast_ref()
}

fn tls_trouble(error: &rustls::Error, host: &str, detail: String) -> WireError {
    let Some(flaw) = Flaw::of(error) else { return WireError::new(Trouble::Tls, detail) };
    let (trouble, code) = match flaw.kind() {
        Kind::Issuer => (Trouble::UntrustedIssuer, "IDENTITY-TLS-ISSUER"),
        Kind::Expired => (Trouble::Certificate, "IDENTITY-TLS-EXPIRED"),
        Kind::NotYetValid => (Trouble::Certificate, "IDENTITY-TLS-NOT-YET-VALID"),
        Kind::Name => (Trouble::Certificate, "IDENTITY-TLS-WRONG-NAME"),
        Kind::Other => (Trouble::Certificate, "IDENTITY-TLS-CERTIFICATE"),
    };
    let story = Explanation {
        code: code.into(),
        fault: Fault::Network,
        what: format!("its certificate is not accepted: {flaw}"),
        remedy: flaw.remedy(host),
        passes: Passes::ByItself(None),
        refusal: Refusal::Unavailable { retry_after: None },
    };
    WireError { trouble, detail, story: Some(Box::new(story)) }
}

/// A random UUID (RFC 9562 §5.4).
pub fn uuid() -> String {
    let mut bytes = [0_u8; 16];
    super::entropy::fill(&mut bytes);
    let value = (u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{value:032x}");
    let mut parts = Vec::with_capacity(5);
    let mut rest = hex.as_str();
    for width in [8, 4, 4, 4] {
        let Some((part, behind)) = rest.split_at_checked(width) else { break };
        parts.push(part);
        rest = behind;
    }
    parts.push(rest);
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn tls() -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    }

    /// A way through a proxy at this address, whose failures are these.
    fn gateway(address: &str, why: Option<WireError>) -> Way {
        let gateway = Gateway {
            url: format!("http://{address}").parse().unwrap(),
            user: "svc".to_owned(),
            password: Secret::new("p:w"),
            why: Arc::new(move |host, port| {
                assert_eq!((host, port), ("login.example", 443));
                why.clone()
            }),
        };
        Way { names: None, gateway: Some(gateway) }
    }

    /// Answers every connection with these bytes; gives the address and the requests seen.
    async fn serve(answer: Vec<u8>) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = vec![0; 16 * 1024];
                let mut length = 0;
                loop {
                    let n = socket.read(&mut request[length..]).await.unwrap_or(0);
                    length += n;
                    if request.first() == Some(&22) {
                        break; // a TLS handshake: it gets plain text
                    }
                    let text = String::from_utf8_lossy(&request[..length]).to_lowercase();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        if n == 0 {
                            break;
                        }
                        continue;
                    };
                    let expected = head
                        .split_once("content-length: ")
                        .and_then(|(_, rest)| rest.split("\r\n").next()?.parse().ok())
                        .unwrap_or(0);
                    if body.len() >= expected || n == 0 {
                        break;
                    }
                }
                drop(seen.send(String::from_utf8_lossy(&request[..length]).into_owned()));
                drop(socket.write_all(&answer).await);
            }
        });
        (address.to_string(), requests)
    }

    fn ask(url: &str) -> Ask {
        Ask::post(&url.parse().unwrap(), vec![("password", Secret::new("a&b=c é"))])
    }

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let id = uuid();
        let bytes = id.as_bytes();
        assert_eq!(
            (id.len(), bytes[8], bytes[13], bytes[14], bytes[18], bytes[23]),
            (36, b'-', b'-', b'4', b'-', b'-')
        );
        assert!(b"89ab".contains(&bytes[19]), "{id}");
        assert_ne!(id, uuid());
    }

    #[tokio::test]
    async fn a_password_stays_one_field_of_the_form() {
        let (address, mut seen) =
            serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".to_vec()).await;
        let endpoint = Endpoint::new(tls(), Way::default()).unwrap();
        let ask = ask(&format!("http://{address}/token"));
        let answer = endpoint.send(&ask).await.unwrap();
        assert_eq!((answer.status, answer.body.0.as_slice()), (200, &b"{}"[..]));
        let request = seen.recv().await.unwrap();
        assert!(request.ends_with("\r\n\r\npassword=a%26b%3Dc+%C3%A9"), "{request}");
        assert!(request.contains(&ask.correlation), "{request}");
    }

    #[tokio::test]
    async fn a_redirection_is_not_followed_and_a_flood_is_cut_off() {
        let head = b"HTTP/1.1 302 Found\r\nlocation: http://portal.example/\r\ncontent-length: 0\r\n\r\n";
        let (address, _seen) = serve(head.to_vec()).await;
        let endpoint = Endpoint::new(tls(), Way::default()).unwrap();
        let answer = endpoint.send(&ask(&format!("http://{address}/token"))).await.unwrap();
        assert_eq!((answer.status, answer.location.as_deref()), (302, Some("http://portal.example/")));

        let mut flood = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
        flood.resize(flood.len() + MAX_ANSWER + 1, b'x');
        let (address, _seen) = serve(flood).await;
        let error = endpoint.send(&ask(&format!("http://{address}/token"))).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::TooLarge);
    }

    #[tokio::test]
    async fn troubles_are_told_apart_and_name_no_url() {
        let endpoint = Endpoint::new(tls(), Way::default()).unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let refused = endpoint.send(&ask(&format!("http://{closed}/secret-path"))).await.unwrap_err();
        assert_eq!(refused.trouble, Trouble::Connect);
        assert!(!refused.detail.contains("secret-path"), "{refused:?}");

        let (plain, _seen) = serve(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await;
        let tls_error = endpoint.send(&ask(&format!("https://{plain}/token"))).await.unwrap_err();
        assert_eq!(tls_error.trouble, Trouble::Tls);

        let (silent, _seen) = serve(Vec::new()).await;
        let broken = endpoint.send(&ask(&format!("http://{silent}/token"))).await.unwrap_err();
        assert_eq!(broken.trouble, Trouble::BrokenOff);
    }

    #[tokio::test]
    async fn an_issuer_nobody_knows_is_told_apart_from_other_tls_failures() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Ok((socket, _)) = listener.accept().await {
                drop(acceptor.accept(socket).await);
            }
        });
        let endpoint = Endpoint::new(tls(), Way::default()).unwrap();
        let error = endpoint.send(&ask(&format!("https://localhost:{port}/token"))).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::UntrustedIssuer, "{error:?}");
    }

    #[tokio::test]
    async fn the_gateway_is_used_signed_in_at_and_asked_why() {
        let (address, mut seen) = serve(b"HTTP/1.1 502 Bad Gateway\r\n\r\n".to_vec()).await;
        let told = WireError::new(Trouble::ProxyAuth, "it wants NTLM");
        let endpoint = Endpoint::new(tls(), gateway(&address, Some(told.clone()))).unwrap();
        let error = endpoint.send(&ask("https://login.example/token")).await.unwrap_err();
        assert_eq!(error, told);
        let request = seen.recv().await.unwrap();
        assert!(request.starts_with("CONNECT login.example:443 "), "{request}");
        assert!(
            request.contains("roxy-authorization: Basic c3ZjOnA6dw==\r\n")
                || request.contains("roxy-Authorization: Basic c3ZjOnA6dw==\r\n"),
            "{request}"
        );

        let endpoint = Endpoint::new(tls(), gateway(&address, None)).unwrap();
        let error = endpoint.send(&ask("https://login.example/token")).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::ProxyUnreachable, "{error:?}");
    }

    #[tokio::test]
    async fn loopback_and_the_platforms_own_endpoint_are_reached_straight() {
        let (nobody, _) = serve(Vec::new()).await;
        let (direct, mut reached) =
            serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".to_vec()).await;
        let endpoint = Endpoint::new(tls(), gateway(&nobody, None)).unwrap();
        endpoint.send(&ask(&format!("http://{direct}/token"))).await.unwrap();
        assert!(reached.recv().await.unwrap().starts_with("POST /token "));
        let local = Ask::get_local(format!("http://{direct}/metadata").parse().unwrap(), Vec::new());
        endpoint.send(&local).await.unwrap();
        assert!(reached.recv().await.unwrap().starts_with("GET /metadata "));
    }
}
