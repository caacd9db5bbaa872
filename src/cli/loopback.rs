//! The other end of the browser's way: a listener on both loopback addresses that takes one redirect
//! (RFC 8252 §7.3), shows a page and is gone.
//!
//! Whatever else asks on this machine gets a page that says no, and ends nothing: not a foreign `state`, not
//! another path, not a request that does not end.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::config::model::Application;
use crate::secret::Secret;
use crate::token::callback;
use crate::token::sign_in::{AuthorizeRequest, SignInError};

/// How long a person may take at the browser: an authorization code lives no longer either.
pub(super) const PATIENCE: Duration = Duration::from_mins(10);

/// For one request: browsers open connections that they never use.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Longest request head, in octets. Entra's codes have some 1,500.
const LONGEST_HEAD: usize = 32 * 1024;

/// Connections at once.
const MAX_CONNECTIONS: usize = 16;

/// Ports that are tried until both addresses have the same one.
const PORT_TRIES: u32 = 8;

/// Waits for the browser.
#[derive(Debug)]
pub(super) struct Loopback {
    v4: TcpListener,
    /// Machines without IPv6 have none.
    v6: Option<TcpListener>,
    port: u16,
}

/// What a request comes to.
enum Asked {
    /// The browser, with an answer to our question.
    Answered(Result<Secret, SignInError>),
    /// Anything else: what it is told.
    Other(Page),
}

/// One of the pages.
struct Page {
    status: &'static str,
    title: &'static str,
    text: &'static str,
}

impl Loopback {
    /// Takes a free port on 127.0.0.1 and, where there is IPv6, the same on ::1: browsers try either for
    /// `localhost`, and neither must belong to somebody else.
    pub(super) async fn bind() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..PORT_TRIES {
            let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let port = v4.local_addr()?.port();
            match TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
                Ok(v6) => return Ok(Self { v4, v6: Some(v6), port }),
                Err(why) if why.kind() == io::ErrorKind::AddrInUse => last = why,
                Err(_) => return Ok(Self { v4, v6: None, port }),
            }
        }
        Err(last)
    }

    /// What the application has registered as `http://localhost`, with our port.
    pub(super) fn redirect_uri(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// The code that the browser brings.
    ///
    /// # Errors
    /// The identity provider's no, or nobody in [`PATIENCE`].
    pub(super) async fn code(
        self,
        request: &AuthorizeRequest,
        application: &Application,
    ) -> Result<Secret, SignInError> {
        timeout(PATIENCE, self.serve(request, application)).await.unwrap_or(Err(SignInError::Expired))
    }

    async fn serve(
        self,
        request: &AuthorizeRequest,
        application: &Application,
    ) -> Result<Secret, SignInError> {
        let what = Arc::new((request.clone(), application.clone(), self.port));
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut visits: JoinSet<Option<Result<Secret, SignInError>>> = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                Some(ended) = visits.join_next() => match ended {
                    Ok(Some(answered)) => return answered,
                    Ok(None) | Err(_) => continue,
                },
                accepted = self.accept() => accepted,
            };
            match (accepted, Arc::clone(&places).try_acquire_owned()) {
                (Ok(visitor), Ok(place)) => {
                    let what = Arc::clone(&what);
                    visits.spawn(async move {
                        let _place = place;
                        visit(visitor, &what.0, &what.1, what.2).await
                    });
                }
                (Ok(_), Err(_)) => {}
                // Out of descriptors: passes.
                (Err(_), _) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn accept(&self) -> io::Result<TcpStream> {
        let accepted: (TcpStream, SocketAddr) = match &self.v6 {
            Some(v6) => tokio::select! { one = self.v4.accept() => one, other = v6.accept() => other }?,
            None => self.v4.accept().await?,
        };
        Ok(accepted.0)
    }
}

/// One connection, one request, one page.
async fn visit(
    mut visitor: TcpStream,
    request: &AuthorizeRequest,
    application: &Application,
    port: u16,
) -> Option<Result<Secret, SignInError>> {
    let head = timeout(REQUEST_LIMIT, read_head(&mut visitor)).await.ok()?.ok()?;
    let asked = match head {
        Some(head) => judge(&head, request, application, port),
        None => Asked::Other(TOO_LONG),
    };
    let (page, answered) = match asked {
        Asked::Answered(Ok(code)) => (ARRIVED, Some(Ok(code))),
        Asked::Answered(Err(why)) => (REFUSED, Some(Err(why))),
        Asked::Other(page) => (page, None),
    };
    // A browser that has gone away does not take the answer back.
    drop(timeout(REQUEST_LIMIT, show(&mut visitor, &page)).await);
    answered
}

/// Up to the empty line; `None`: it is too long.
async fn read_head(visitor: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut part = [0; 2048];
    loop {
        let read = visitor.read(&mut part).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(part.get(..read).unwrap_or_default());
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() > LONGEST_HEAD {
            return Ok(None);
        }
    }
}

fn judge(head: &[u8], request: &AuthorizeRequest, application: &Application, port: u16) -> Asked {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // A page elsewhere whose name was made to lead to this machine asks for its own name.
    let named = ["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}"));
    let for_us = lines.any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("host") && named.iter().any(|host| value.trim() == host)
        })
    });
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !for_us || path != "/" {
        return Asked::Other(NOT_FOUND);
    }
    if method != "GET" {
        return Asked::Other(WRONG_METHOD);
    }
    match callback::code(request, application, query) {
        Err(SignInError::State) => Asked::Other(FOREIGN),
        answered => Asked::Answered(answered),
    }
}

/// Nothing of the request stands in it, and nothing in it is loaded from anywhere.
async fn show(visitor: &mut TcpStream, page: &Page) -> io::Result<()> {
    let Page { status, title, text } = page;
    let body = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Mailkey: {title}</title>\n\
         <style>body{{font:1.1em/1.5 sans-serif;max-width:36em;margin:4em auto;padding:0 1em}}</style></head>\n\
         <body><h1>{title}</h1><p>{text}</p></body></html>\n"
    );
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    visitor.write_all(answer.as_bytes()).await?;
    visitor.shutdown().await
}

const ARRIVED: Page = Page {
    status: "200 OK",
    title: "Thank you",
    text: "Mailkey has got the answer and finishes the sign-in in its terminal. This window can be closed.",
};

const REFUSED: Page = Page {
    status: "200 OK",
    title: "Not signed in",
    text: "The identity provider said no. Mailkey's terminal tells why, and what to do. This window can be closed.",
};

const FOREIGN: Page = Page {
    status: "400 Bad Request",
    title: "Not this sign-in",
    text: "This answer does not belong to the sign-in that Mailkey waits for. Open the address that stands in its \
           terminal.",
};

const NOT_FOUND: Page = Page {
    status: "404 Not Found",
    title: "Nothing here",
    text: "Mailkey waits for a sign-in, at another address.",
};

const WRONG_METHOD: Page =
    Page { status: "405 Method Not Allowed", title: "Nothing here", text: "Mailkey waits for a GET." };

const TOO_LONG: Page = Page {
    status: "431 Request Header Fields Too Large",
    title: "Too long",
    text: "No answer to a sign-in is that long.",
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{ClientAuth, Endpoints, Grant, Protocol, Sasl};
    use crate::token::sign_in::authorize;

    fn application() -> Application {
        Application {
            endpoints: Endpoints {
                token: "https://idp.example/token".parse().unwrap(),
                authorize: "https://idp.example/authorize".parse().ok(),
                device: None,
                authority: "https://idp.example/contoso.com".to_owned(),
                v1_resource: None,
            },
            client_id: "app".to_owned(),
            client_auth: ClientAuth::Public,
            secret_expires: None,
            scope: None,
            resource: "https://mail.example".to_owned(),
            grants: vec![Grant::AuthorizationCode],
            offline_access: true,
            sasl: Sasl::Xoauth2,
        }
    }

    /// Sends this to the port, and gives the whole answer.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut io = TcpStream::connect(address).await.unwrap();
        io.write_all(request.as_bytes()).await.unwrap();
        let mut told = Vec::new();
        // what was not read of an over-long request resets the connection behind the answer
        drop(io.read_to_end(&mut told).await);
        String::from_utf8(told).unwrap()
    }

    #[tokio::test]
    async fn only_the_right_answer_at_the_right_path_ends_the_wait() {
        let loopback = Loopback::bind().await.unwrap();
        let port = loopback.port;
        let application = application();
        let request = authorize(&application, Protocol::Imap, &loopback.redirect_uri(), "a@b").unwrap();
        let state = request.state.expose().to_owned();
        let waiting = tokio::spawn(async move { loopback.code(&request, &application).await });
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let host = format!("Host: localhost:{port}\r\n\r\n");
        // opened and never used, as browsers do
        let _idle = TcpStream::connect(v4).await.unwrap();
        for (said, status) in [
            (format!("GET /favicon.ico HTTP/1.1\r\n{host}"), "404"),
            (format!("GET //?code=c&state={state} HTTP/1.1\r\n{host}"), "404"),
            (format!("GET /?code=c&state={state} HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n"), "404"),
            (format!("POST /?code=c&state={state} HTTP/1.1\r\n{host}"), "405"),
            (format!("GET /?code=c&state={state}x HTTP/1.1\r\n{host}"), "400"),
            (format!("GET /?code=c HTTP/1.1\r\n{host}"), "400"),
            (format!("GET /?error=access_denied HTTP/1.1\r\n{host}"), "400"),
            (format!("GET /{} HTTP/1.1\r\n", "x".repeat(LONGEST_HEAD)), "431"),
            ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "404"),
        ] {
            let told = ask(v4, &said).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {told}");
            assert!(!waiting.is_finished(), "{said}");
        }
        let told =
            ask(v4, &format!("GET /?code=the%2Bcode&state={state}&session_state=1 HTTP/1.1\r\n{host}")).await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.contains("can be closed"), "{told}");
        for kept in ["Cache-Control: no-store", "Referrer-Policy: no-referrer", "default-src 'none'"] {
            assert!(told.contains(kept), "{kept}");
        }
        assert!(!told.contains("the+code") && !told.contains(&state), "nothing of the request comes back");
        assert_eq!(waiting.await.unwrap().unwrap().expose(), "the+code");
        assert!(TcpStream::connect(v4).await.is_err(), "the listener is gone");
    }

    #[tokio::test]
    async fn the_providers_no_ends_the_wait_on_either_address() {
        let loopback = Loopback::bind().await.unwrap();
        let port = loopback.port;
        let application = application();
        let request = authorize(&application, Protocol::Imap, &loopback.redirect_uri(), "a@b").unwrap();
        let state = request.state.expose().to_owned();
        let address = match &loopback.v6 {
            Some(v6) => v6.local_addr().unwrap(),
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        };
        let waiting = tokio::spawn(async move { loopback.code(&request, &application).await });
        let said = format!("GET /?error=access_denied&state={state} HTTP/1.1\r\nhost: [::1]:{port}\r\n\r\n");
        let told = ask(address, &said).await;
        assert!(told.contains("Not signed in"), "{told}");
        assert!(matches!(waiting.await.unwrap(), Err(SignInError::Declined)));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_longer_than_ten_minutes() {
        let loopback = Loopback::bind().await.unwrap();
        let application = application();
        let request = authorize(&application, Protocol::Imap, &loopback.redirect_uri(), "a@b").unwrap();
        assert!(matches!(loopback.code(&request, &application).await, Err(SignInError::Expired)));
    }
}
