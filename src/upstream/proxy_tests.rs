//! Signing in at a proxy that answers from a script.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::config::model::{Tls, UseFor};
use crate::secret::Secret;
use crate::upstream::tls::outbound_config;

/// A CHALLENGE message of NTLM without target information.
const CHALLENGE: &str = "TlRMTVNTUAACAAAAAAAAADgAAAAFggiiASNFZ4mrze8AAAAAAAAAAAAAAAA4AAAA";

const OPENED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

/// What the proxy heard: which connection, and the sign-in.
type Heard = Arc<Mutex<Vec<(usize, String)>>>;

/// Answers request after request, whatever the connection, in this order; the last one for ever.
async fn scripted(answers: Vec<String>) -> (u16, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Heard::default();
    let (all, script) = (Arc::clone(&heard), Arc::new(answers));
    tokio::spawn(async move {
        let mut connection = 0;
        while let Ok((mut socket, _)) = listener.accept().await {
            let (heard, script, number) = (Arc::clone(&all), Arc::clone(&script), connection);
            connection += 1;
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while socket.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
                    if !bytes.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let request = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
                    let given = request.lines().find_map(|line| line.strip_prefix("Proxy-Authorization: "));
                    let answer = {
                        let mut heard = heard.lock().unwrap();
                        let answer = script.get(heard.len()).or(script.last()).unwrap().clone();
                        heard.push((number, given.unwrap_or("nothing").to_owned()));
                        answer
                    };
                    let Ok(()) = socket.write_all(answer.as_bytes()).await else { return };
                    if answer.contains("Connection: close") {
                        return;
                    }
                }
            });
        }
    });
    (port, heard)
}

fn wants(schemes: &[&str]) -> String {
    let fields: Vec<String> =
        schemes.iter().map(|scheme| format!("Proxy-Authenticate: {scheme}\r\n")).collect();
    let head = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n";
    format!("{head}{}\r\nno!", fields.concat())
}

fn proxy(port: u16, auth: ProxyAuth, user: Option<&str>) -> Proxy {
    Proxy::new(OutboundProxy {
        url: format!("http://127.0.0.1:{port}").parse().unwrap(),
        username: user.map(str::to_owned),
        password: user.map(|_| Secret::new("open sesame")),
        auth,
        use_for: UseFor { identity: true, ews: true, mail: true },
        hosts: Vec::new(),
        no_proxy: Vec::new(),
    })
}

fn ground() -> Ground {
    Ground::new(outbound_config(&Tls::default()).unwrap(), Duration::from_secs(5))
}

async fn open(proxy: &Proxy) -> Result<(), UpstreamError> {
    proxy.open(&ground(), "outlook.office365.com", 993).await.map(drop)
}

/// Scheme and connection of each request.
fn schemes(heard: &Heard) -> Vec<(usize, String)> {
    let heard = heard.lock().unwrap();
    heard.iter().map(|(at, given)| (*at, given.split(' ').next().unwrap().to_owned())).collect()
}

fn listed(pairs: &[(usize, &str)]) -> Vec<(usize, String)> {
    pairs.iter().map(|(at, scheme)| (*at, (*scheme).to_owned())).collect()
}

fn trouble(result: Result<(), UpstreamError>) -> SignInTrouble {
    match result {
        Err(UpstreamError::ProxySignIn { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_strongest_scheme_on_offer_is_taken_on_one_connection_and_kept() {
    let challenge = format!("NTLM {CHALLENGE}");
    let (port, heard) = scripted(vec![
        wants(&["Basic realm=\"x\"", "NTLM"]),
        wants(&[&challenge]),
        OPENED.to_owned(),
        wants(&[&challenge]),
        OPENED.to_owned(),
    ])
    .await;
    let proxy = proxy(port, ProxyAuth::Auto, Some("CONTOSO\\svc"));
    open(&proxy).await.unwrap();
    open(&proxy).await.unwrap();
    assert_eq!(
        schemes(&heard),
        listed(&[(0, "nothing"), (0, "NTLM"), (0, "NTLM"), (1, "NTLM"), (1, "NTLM")])
    );
    let heard = heard.lock().unwrap();
    assert_ne!(heard[2].1, heard[4].1, "no two sign-ins are alike");
}

#[tokio::test]
async fn basic_is_shown_only_to_a_proxy_that_offers_nothing_better() {
    let (port, heard) = scripted(vec![wants(&["Basic realm=\"x\""]), OPENED.to_owned()]).await;
    let proxy = proxy(port, ProxyAuth::Auto, Some("svc"));
    open(&proxy).await.unwrap();
    open(&proxy).await.unwrap();
    let basic = "Basic c3ZjOm9wZW4gc2VzYW1l".to_owned();
    assert_eq!(*heard.lock().unwrap(), [(0, "nothing".to_owned()), (0, basic.clone()), (1, basic)]);
}

#[tokio::test]
async fn a_proxy_that_closes_with_its_407_is_dialled_again() {
    let closing = wants(&["Basic"]).replace("Content-Length", "Connection: close\r\nContent-Length");
    let (port, heard) = scripted(vec![closing, OPENED.to_owned()]).await;
    open(&proxy(port, ProxyAuth::Auto, Some("svc"))).await.unwrap();
    assert_eq!(schemes(&heard), listed(&[(0, "nothing"), (1, "Basic")]));
}

#[tokio::test]
async fn a_refused_password_is_not_shown_again_and_never_in_a_weaker_way() {
    let (port, heard) = scripted(vec![wants(&[&format!("NTLM {CHALLENGE}"), "Basic"])]).await;
    let proxy = Arc::new(proxy(port, ProxyAuth::Auto, Some("svc")));
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let proxy = Arc::clone(&proxy);
            tokio::spawn(async move { trouble(open(&proxy).await) })
        })
        .collect();
    for one in waiting {
        assert_eq!(one.await.unwrap(), SignInTrouble::Refused("NTLM"));
    }
    let shown = schemes(&heard).into_iter().filter(|(_, scheme)| scheme != "nothing").count();
    assert_eq!(shown, 2, "one sign-in of two messages: {:?}", schemes(&heard));
}

#[tokio::test]
async fn a_target_that_is_refused_says_nothing_against_the_sign_in_and_holds_nobody_up() {
    let (port, heard) = scripted(vec![
        wants(&["Basic"]),
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned(),
        OPENED.to_owned(),
    ])
    .await;
    let proxy = proxy(port, ProxyAuth::Auto, Some("svc"));
    assert!(matches!(open(&proxy).await, Err(UpstreamError::ProxyRefused { kind: ProxyNo::Forbidden, .. })));
    let _first = proxy.first.lock().await;
    open(&proxy).await.unwrap();
    assert_eq!(schemes(&heard), listed(&[(0, "nothing"), (0, "Basic"), (1, "Basic")]));
}

#[tokio::test]
async fn what_is_missing_for_a_sign_in_is_said() {
    let cases = [
        (ProxyAuth::Auto, None, &["Basic", "NTLM"][..], SignInTrouble::NoCredentials),
        (ProxyAuth::None, None, &["NTLM"], SignInTrouble::NoCredentials),
        (ProxyAuth::Auto, Some("svc"), &["Bearer", "Digest"], SignInTrouble::NoCommonScheme),
        (ProxyAuth::None, Some("svc"), &["Basic"], SignInTrouble::NoCommonScheme),
        (ProxyAuth::Basic, Some("svc"), &["Basic"], SignInTrouble::Refused("Basic")),
        (ProxyAuth::Ntlm, Some("svc"), &["Negotiate"], SignInTrouble::NoCommonScheme),
    ];
    for (auth, user, offers, expected) in cases {
        let (port, _) = scripted(vec![wants(offers)]).await;
        let result = open(&proxy(port, auth, user)).await;
        let remedy = crate::explain::Explain::explain(result.as_ref().unwrap_err()).remedy;
        assert!(remedy.contains(&format!("127.0.0.1:{port}")), "{remedy}");
        assert_eq!(trouble(result), expected, "{auth:?} {offers:?}");
    }
}

#[tokio::test]
async fn ntlm_over_two_connections_is_no_ntlm() {
    let closing = wants(&[&format!("NTLM {CHALLENGE}")])
        .replace("Content-Length", "Connection: close\r\nContent-Length");
    let (port, heard) = scripted(vec![closing]).await;
    let error = open(&proxy(port, ProxyAuth::Ntlm, Some("svc"))).await.unwrap_err();
    assert!(matches!(error, UpstreamError::ProxyBroken { .. }), "{error}");
    assert_eq!(heard.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (answer, expected) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", ProxyNo::Forbidden),
        ("HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n", ProxyNo::Forbidden),
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", ProxyNo::CannotReach),
        ("HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n", ProxyNo::CannotReach),
        ("HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 0\r\n\r\n", ProxyNo::Page),
        ("HTTP/1.1 511 Network Authentication Required\r\nContent-Length: 0\r\n\r\n", ProxyNo::Page),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><title>Sign in", ProxyNo::Page),
        ("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", ProxyNo::Other),
    ] {
        let (port, _) = scripted(vec![answer.to_owned()]).await;
        let error = open(&proxy(port, ProxyAuth::Auto, Some("svc"))).await.unwrap_err();
        assert!(
            matches!(&error, UpstreamError::ProxyRefused { kind, .. } if *kind == expected),
            "{answer}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_proxy_that_is_away_is_not_taken_for_the_target() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = open(&proxy(closed, ProxyAuth::Auto, None)).await.unwrap_err();
    assert!(matches!(error, UpstreamError::ProxyDown { .. }), "{error}");
}
