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
use crate::config::model::{OutboundProxy, ProxyAuth};
use crate::explain::one_line;
use crate::secret::Secret;

/// Time limit for DNS, TCP, the proxy's CONNECT and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for a whole request.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Unused connections to the identity provider are closed after this long.
const POOL_IDLE: Duration = Duration::from_mins(1);

/// Longest text about a transport failure that is kept, in characters.
const MAX_DETAIL: usize = 160;

/// The way to the identity provider. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    wire: Arc<dyn Wire>,
}

/// Why no way to the identity provider could be set up.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Token requests sign in at the outbound proxy with Basic only.
    #[error(
        "token requests cannot use `auth: {0}` at the outbound proxy; expected `auto`, `basic` or `none`"
    )]
    ProxyAuth(&'static str),
    /// The proxy's URL is of no use here.
    #[error("the outbound proxy's URL is of no use: {0}")]
    Proxy(String),
    /// TLS or the resolver could not be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Setup(String),
}

impl Endpoint {
    /// Uses these roots and TLS versions, and this proxy where it serves for `identity`.
    ///
    /// # Errors
    /// A proxy or a TLS configuration that cannot be used.
    pub fn new(tls: rustls::ClientConfig, proxy: Option<&OutboundProxy>) -> Result<Self, EndpointError> {
        let proxy = proxy.filter(|proxy| proxy.use_for.identity);
        let through_proxy = match proxy {
            Some(proxy) => Some((client(tls.clone(), Some(reqwest_proxy(proxy)?))?, proxy.clone())),
            None => None,
        };
        Ok(Self { wire: Arc::new(Http { direct: client(tls, None)?, through_proxy }) })
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
#[derive(Debug)]
struct Http {
    direct: reqwest::Client,
    through_proxy: Option<(reqwest::Client, OutboundProxy)>,
}

impl Http {
    fn route(&self, ask: &Ask) -> (&reqwest::Client, bool) {
        match &self.through_proxy {
            Some((client, proxy))
                if !ask.local && !proxy.bypasses(ask.url.host_str().unwrap_or_default()) =>
            {
                (client, true)
            }
            _ => (&self.direct, false),
        }
    }

    async fn exchange(&self, ask: &Ask) -> Result<RawAnswer, WireError> {
        let (client, proxied) = self.route(ask);
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
        let response = request.send().await.map_err(|error| wire_error(&error, proxied))?;
        let status = response.status().as_u16();
        if status == 407 {
            return Err(WireError { trouble: Trouble::ProxyAuth, detail: "status 407".to_owned() });
        }
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
        answer.body = read_body(response, proxied).await?;
        Ok(answer)
    }
}

impl Wire for Http {
    fn send<'a>(&'a self, ask: &'a Ask) -> WireFuture<'a> {
        Box::pin(self.exchange(ask))
    }
}

async fn read_body(mut response: reqwest::Response, proxied: bool) -> Result<Body, WireError> {
    let mut body = Zeroizing::new(Vec::with_capacity(8 * 1024));
    while let Some(chunk) = response.chunk().await.map_err(|error| wire_error(&error, proxied))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            let detail = format!("more than {MAX_ANSWER} octets");
            return Err(WireError { trouble: Trouble::TooLarge, detail });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Body(body))
}

fn client(
    tls: rustls::ClientConfig,
    proxy: Option<reqwest::Proxy>,
) -> Result<reqwest::Client, EndpointError> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TOTAL_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(4)
        .user_agent(concat!("mailkey/", env!("CARGO_PKG_VERSION")));
    // Without `no_proxy` the environment's HTTPS_PROXY would decide.
    let builder = match proxy {
        Some(proxy) => builder.no_proxy().proxy(proxy),
        None => builder.no_proxy(),
    };
    builder.build().map_err(|error| EndpointError::Setup(innermost(&error)))
}

fn reqwest_proxy(proxy: &OutboundProxy) -> Result<reqwest::Proxy, EndpointError> {
    let made = reqwest::Proxy::all(proxy.url.as_str()).map_err(|e| EndpointError::Proxy(innermost(&e)))?;
    let signs_in = match proxy.auth {
        ProxyAuth::None => false,
        ProxyAuth::Auto | ProxyAuth::Basic => true,
        ProxyAuth::Ntlm => return Err(EndpointError::ProxyAuth("ntlm")),
        ProxyAuth::Negotiate => return Err(EndpointError::ProxyAuth("negotiate")),
    };
    Ok(match (&proxy.username, &proxy.password) {
        (Some(user), password) if signs_in => {
            made.basic_auth(user, password.as_ref().map_or("", Secret::expose))
        }
        _ => made,
    })
}

fn wire_error(error: &reqwest::Error, proxied: bool) -> WireError {
    let causes: Vec<&(dyn StdError + 'static)> = chain(error).collect();
    let trouble = causes.iter().find_map(|cause| tls_trouble(*cause)).unwrap_or_else(|| {
        let says = |text: &str| causes.iter().any(|cause| cause.to_string().contains(text));
        if says("proxy authorization required") || says("credentials not accepted") {
            Trouble::ProxyAuth
        } else if says("tunnel error: unsuccessful") {
            Trouble::ProxyRefused
        } else if error.is_timeout() {
            Trouble::Timeout
        } else if proxied && error.is_connect() {
            Trouble::ProxyUnreachable
        } else if says("dns error") {
            Trouble::Dns
        } else if error.is_connect() {
            Trouble::Connect
        } else {
            Trouble::BrokenOff
        }
    });
    WireError { trouble, detail: innermost(error) }
}

fn tls_trouble(cause: &(dyn StdError + 'static)) -> Option<Trouble> {
    use rustls::CertificateError as Bad;
    // An I/O error holds its cause where `source` does not show it; and they come nested.
    let mut cause = cause;
    while let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        cause = inner;
    }
    let error = cause.downcast_ref::<rustls::Error>()?;
    #[expect(clippy::wildcard_enum_match_arm, reason = "rustls adds variants; all others are TLS failures")]
    Some(match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => Trouble::UntrustedIssuer,
        rustls::Error::InvalidCertificate(_) => Trouble::Certificate,
        _ => Trouble::Tls,
    })
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source()).take(12)
}

/// The last cause of the chain: the outer ones repeat the URL.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map_or_else(String::new, |cause| one_line(&cause.to_string(), MAX_DETAIL))
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
    use crate::config::model::{NoProxy, UseFor};

    fn tls() -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()
    }

    fn proxy(url: &str) -> OutboundProxy {
        OutboundProxy {
            url: url.parse().unwrap(),
            username: Some("svc".to_owned()),
            password: Some(Secret::new("p:w")),
            auth: ProxyAuth::Auto,
            use_for: UseFor { identity: true, ews: false, mail: false },
            no_proxy: Vec::new(),
        }
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
        let endpoint = Endpoint::new(tls(), None).unwrap();
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
        let endpoint = Endpoint::new(tls(), None).unwrap();
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
        let endpoint = Endpoint::new(tls(), None).unwrap();
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
        let endpoint = Endpoint::new(tls(), None).unwrap();
        let error = endpoint.send(&ask(&format!("https://localhost:{port}/token"))).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::UntrustedIssuer, "{error:?}");
    }

    #[tokio::test]
    async fn the_proxy_is_used_signed_in_at_and_bypassed_by_rule() {
        let (address, mut seen) = serve(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_vec()).await;
        let mut settings = proxy(&format!("http://{address}"));
        let endpoint = Endpoint::new(tls(), Some(&settings)).unwrap();
        let error = endpoint.send(&ask("https://login.example/token")).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::ProxyAuth, "{error:?}");
        let request = seen.recv().await.unwrap();
        assert!(request.starts_with("CONNECT login.example:443 "), "{request}");
        assert!(request.to_lowercase().contains("proxy-authorization: basic "), "{request}");

        let (direct, mut reached) =
            serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".to_vec()).await;
        settings.no_proxy = vec![NoProxy::Net("127.0.0.0/8".parse().unwrap())];
        let endpoint = Endpoint::new(tls(), Some(&settings)).unwrap();
        endpoint.send(&ask(&format!("http://{direct}/token"))).await.unwrap();
        assert!(reached.recv().await.unwrap().starts_with("POST /token "));

        settings.no_proxy.clear();
        let endpoint = Endpoint::new(tls(), Some(&settings)).unwrap();
        let local = Ask::get_local(format!("http://{direct}/metadata").parse().unwrap(), Vec::new());
        endpoint.send(&local).await.unwrap();
        assert!(reached.recv().await.unwrap().starts_with("GET /metadata "));
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_or_is_away_is_named() {
        let (address, _seen) = serve(b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec()).await;
        let endpoint = Endpoint::new(tls(), Some(&proxy(&format!("http://{address}")))).unwrap();
        let error = endpoint.send(&ask("https://login.example/token")).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::ProxyRefused, "{error:?}");

        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let endpoint = Endpoint::new(tls(), Some(&proxy(&format!("http://{closed}")))).unwrap();
        let error = endpoint.send(&ask("https://login.example/token")).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::ProxyUnreachable, "{error:?}");
    }

    #[test]
    fn a_sign_in_that_reqwest_cannot_do_is_refused_at_start() {
        let mut settings = proxy("http://proxy.example:3128");
        settings.auth = ProxyAuth::Ntlm;
        assert!(matches!(Endpoint::new(tls(), Some(&settings)), Err(EndpointError::ProxyAuth("ntlm"))));
        settings.use_for.identity = false;
        assert!(Endpoint::new(tls(), Some(&settings)).is_ok());
    }
}
