//! Why upstream could not be reached: at which step, whose fault, what to do.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, Error as TlsError, InvalidMessage};

use crate::certificate::{Flaw, Kind};
use crate::explain::{Explain, Explanation, Fault, Passes, Refusal, one_line};

/// A step on the way to upstream failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The name has no address.
    #[error("no address for `{host}`: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's words.
        why: String,
    },
    /// No address took the connection.
    #[error("cannot connect to `{target}`: {why}")]
    Dial {
        /// Host and port.
        target: String,
        /// The system's words.
        why: String,
    },
    /// A step took too long.
    #[error("no answer from `{target}` within {limit:?} while {doing}")]
    TimedOut {
        /// Host and port.
        target: String,
        /// The step.
        doing: &'static str,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The outbound proxy itself cannot be reached.
    #[error("the outbound proxy `{proxy}` cannot be reached: {why}")]
    ProxyDown {
        /// The proxy's host and port.
        proxy: String,
        /// The words of the step that failed.
        why: String,
    },
    /// The outbound proxy took the request for a tunnel, and said nothing.
    #[error(
        "the outbound proxy `{proxy}` gave no answer within {limit:?} when asked for a tunnel to `{target}`"
    )]
    ProxySilent {
        /// The proxy's host and port.
        proxy: String,
        /// Host and port behind it.
        target: String,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The outbound proxy wants a sign-in, or another one.
    #[error("the outbound proxy `{proxy}` wants a sign-in ({}): {why}", offered(.offers))]
    ProxySignIn {
        /// The proxy's host and port.
        proxy: String,
        /// What was wrong about ours.
        why: SignInTrouble,
        /// The schemes that it offers, as it writes them.
        offers: Vec<String>,
    },
    /// The outbound proxy said no.
    #[error("the outbound proxy `{proxy}` refused `{target}`: {reply}")]
    ProxyRefused {
        /// The proxy's host and port.
        proxy: String,
        /// Host and port behind it.
        target: String,
        /// Which kind of no.
        kind: ProxyNo,
        /// What it said, in one printable line.
        reply: String,
    },
    /// The outbound proxy does not speak its protocol.
    #[error("the outbound proxy `{proxy}` answered `{got}`")]
    ProxyBroken {
        /// The proxy's host and port.
        proxy: String,
        /// What it said, in one printable line.
        got: String,
    },
    /// The certificate is not from a known issuer, for other names, or not valid now.
    #[error("the certificate of `{target}` is not accepted: {flaw}")]
    Certificate {
        /// Host and port.
        target: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// The other side wants to see a certificate of ours.
    #[error("`{target}` wants a client certificate")]
    WantsCertificate {
        /// Host and port.
        target: String,
    },
    /// What answers does not speak TLS.
    #[error("`{target}` does not speak TLS: it answers in clear text")]
    NoTls {
        /// Host and port.
        target: String,
    },
    /// The TLS handshake failed for another reason.
    #[error("TLS with `{target}` failed: {why}")]
    Tls {
        /// Host and port.
        target: String,
        /// rustls' or the system's words.
        why: String,
    },
    /// The connection broke, or HTTP on it did.
    #[error("the connection to `{target}` broke: {why}")]
    Broken {
        /// Host and port.
        target: String,
        /// The words of whoever noticed.
        why: String,
    },
}

/// What was wrong about our sign-in at the outbound proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignInTrouble {
    /// There is no user name, and it does not go without.
    #[error("no user name is configured")]
    NoCredentials,
    /// None of its schemes is one of ours.
    #[error("none of its ways is one that can be used here")]
    NoCommonScheme,
    /// User name and password are not taken.
    #[error("user name or password is not taken ({0})")]
    Refused(&'static str),
    /// There is no Kerberos ticket.
    #[error("no Kerberos ticket can be had: {0}")]
    NoTicket(String),
}

/// Why a proxy opens no tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyNo {
    /// Its rules forbid the host or the port: 403, 405, SOCKS 2.
    Forbidden,
    /// It cannot reach the target itself: 502, 503, 504, SOCKS 3, 4, 5, 6.
    CannotReach,
    /// It shows a page to be read by a person: a captive portal, or terms of use.
    Page,
    /// Anything else.
    Other,
}

impl UpstreamError {
    /// What a failed TLS handshake or a broken TLS session means.
    pub fn of_tls(target: String, error: &io::Error) -> Self {
        match tls_cause(error) {
            Some(TlsError::AlertReceived(AlertDescription::CertificateRequired)) => {
                Self::WantsCertificate { target }
            }
            Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => Self::NoTls { target },
            Some(cause) => match Flaw::of(cause) {
                Some(flaw) => Self::Certificate { target, flaw },
                None => Self::Tls { target, why: one_line(&cause.to_string(), 200) },
            },
            None => Self::Tls { target, why: one_line(&error.to_string(), 200) },
        }
    }

    /// The same failure on the way to the outbound proxy: there, other things are to be done.
    #[must_use]
    pub fn of_proxy(self, proxy: &str) -> Self {
        if matches!(self, Self::Resolve { .. } | Self::Dial { .. }) {
            return Self::ProxyDown { proxy: proxy.to_owned(), why: self.to_string() };
        }
        self
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each variant, side by side")]
    fn remedy(&self) -> (&'static str, Fault, String) {
        match self {
            Self::Resolve { host, .. } => (
                "UPSTREAM-NAME",
                Fault::Network,
                format!(
                    "check the spelling of `{host}` and this machine's DNS; where only the corporate proxy resolves names, set `outbound-proxy` with `use-for: [identity, ews, mail]`"
                ),
            ),
            Self::Dial { target, .. } => (
                "UPSTREAM-UNREACHABLE",
                Fault::Network,
                format!(
                    "let the firewall open {target} for this machine, or set `outbound-proxy` with `use-for: [identity, ews, mail]`"
                ),
            ),
            Self::TimedOut { target, doing, .. } => (
                "UPSTREAM-TIMEOUT",
                Fault::Network,
                format!(
                    "find out what swallows packets to {target} (a firewall that drops is the usual one; it happened while {doing})"
                ),
            ),
            Self::ProxyDown { proxy, .. } => (
                "PROXY-UNREACHABLE",
                Fault::Network,
                format!("check `outbound-proxy.url` and that this machine may connect to {proxy}"),
            ),
            Self::ProxySilent { proxy, target, .. } => (
                "PROXY-TIMEOUT",
                Fault::Network,
                format!(
                    "ask the administrators of {proxy} whether it may reach {target}: a firewall behind it that drops packets looks like this"
                ),
            ),
            Self::ProxySignIn { proxy, why, offers } => {
                ("PROXY-SIGN-IN", Fault::Configuration, sign_in_remedy(proxy, why, &offered(offers)))
            }
            Self::ProxyRefused { proxy, target, kind, .. } => {
                let (code, remedy) = refused_remedy(proxy, target, *kind);
                (code, Fault::Network, remedy)
            }
            Self::ProxyBroken { proxy, .. } => (
                "PROXY-BROKEN",
                Fault::Configuration,
                format!(
                    "check that {proxy} is the kind of proxy that `outbound-proxy.url` says: http://, https:// or socks5h://"
                ),
            ),
            Self::Certificate { target, flaw } => (
                match flaw.kind() {
                    Kind::Issuer => "TLS-UNKNOWN-ISSUER",
                    Kind::Expired => "TLS-EXPIRED",
                    Kind::NotYetValid => "TLS-NOT-YET-VALID",
                    Kind::Name => "TLS-WRONG-NAME",
                    Kind::Other => "TLS-CERTIFICATE",
                },
                Fault::Network,
                flaw.remedy(target),
            ),
            Self::WantsCertificate { target } => (
                "TLS-CLIENT-CERTIFICATE",
                Fault::Configuration,
                format!(
                    "have a client certificate issued for {target}, and name it in `tls.client-certificate-file` and `tls.client-key-file`"
                ),
            ),
            Self::NoTls { target } => (
                "TLS-NONE",
                Fault::Network,
                format!(
                    "check the port of {target} and `upstream-tls`; a firewall or a captive portal may answer in its place"
                ),
            ),
            Self::Tls { target, .. } => (
                "TLS-HANDSHAKE",
                Fault::Network,
                format!(
                    "check that {target} speaks TLS 1.2 or newer and that `upstream-tls` is right; some firewalls stumble over `tls.post-quantum: true`"
                ),
            ),
            Self::Broken { .. } => (
                "UPSTREAM-BROKEN",
                Fault::Provider,
                "try again; if it goes on, look at the firewall between and at Microsoft's service health"
                    .to_owned(),
            ),
        }
    }
}

impl Explain for UpstreamError {
    fn explain(&self) -> Explanation {
        let (code, fault, remedy) = self.remedy();
        Explanation {
            code: code.into(),
            fault,
            what: one_line(&self.to_string(), 500),
            remedy,
            passes: Passes::ByItself(None),
            refusal: Refusal::Unavailable { retry_after: None },
        }
    }
}

fn sign_in_remedy(proxy: &str, why: &SignInTrouble, offers: &str) -> String {
    match why {
        SignInTrouble::NoCredentials => {
            format!("set `outbound-proxy.username` and `password-file` for {proxy} ({offers})")
        }
        SignInTrouble::NoCommonScheme if cfg!(feature = "negotiate") => format!(
            "set `outbound-proxy.auth: auto`, or ask the administrators of {proxy} for NTLM or Basic ({offers})"
        ),
        SignInTrouble::NoCommonScheme => format!(
            "set `outbound-proxy.auth: auto`; for Negotiate build with `--features negotiate`; or ask the administrators of {proxy} for NTLM or Basic ({offers})"
        ),
        SignInTrouble::Refused(scheme) => format!(
            "correct `outbound-proxy.username` and `password-file` for {proxy}{}; to spare the account a lock-out it is asked again after a minute only",
            if *scheme == "NTLM" {
                ", and write the user name with its domain, like `CONTOSO\\svc-mail`"
            } else {
                ""
            }
        ),
        SignInTrouble::NoTicket(_) => format!(
            "get a ticket for the account that mailkey runs as (`kinit -k -t …`, KRB5CCNAME), or correct `outbound-proxy.username`, with its realm like `svc-mail@CONTOSO.COM`, and `password-file` for {proxy} ({offers})"
        ),
    }
}

fn refused_remedy(proxy: &str, target: &str, kind: ProxyNo) -> (&'static str, String) {
    let port = target.rsplit_once(':').map_or(target, |(_, port)| port);
    match kind {
        ProxyNo::Forbidden if port == "443" => (
            "PROXY-FORBIDS",
            format!("ask the administrators of {proxy} to allow CONNECT to {target} for this machine"),
        ),
        ProxyNo::Forbidden => (
            "PROXY-FORBIDS",
            format!(
                "ask the administrators of {proxy} to allow CONNECT to {target} (IMAP needs port 993, POP3 995, SMTP 587); many proxies allow port 443 only, where EWS still works"
            ),
        ),
        ProxyNo::CannotReach => (
            "PROXY-CANNOT-REACH",
            format!(
                "ask the administrators of {proxy} to open {target} behind it (IMAP needs port 993, POP3 995, SMTP 587), and check the name"
            ),
        ),
        ProxyNo::Page => (
            "PROXY-PAGE",
            format!(
                "ask the administrators of {proxy} to let this machine through without its sign-in page: no person is here to read it"
            ),
        ),
        ProxyNo::Other => {
            ("PROXY-REFUSED", format!("ask the administrators of {proxy} why it refuses {target}"))
        }
    }
}

fn offered(offers: &[String]) -> String {
    if offers.is_empty() {
        "it offers nothing".to_owned()
    } else {
        format!("it offers {}", offers.join(", "))
    }
}

/// An I/O error holds its cause where `source` does not show it; and they come nested.
fn tls_cause(error: &io::Error) -> Option<&TlsError> {
    let mut inner = error.get_ref()?;
    loop {
        if let Some(tls) = inner.downcast_ref::<TlsError>() {
            return Some(tls);
        }
        inner = inner.downcast_ref::<io::Error>()?.get_ref()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_names_the_port_that_is_to_be_opened() {
        let forbidden = |target: &str| {
            let error = UpstreamError::ProxyRefused {
                proxy: "proxy:3128".to_owned(),
                target: target.to_owned(),
                kind: ProxyNo::Forbidden,
                reply: "HTTP/1.1 403 Forbidden".to_owned(),
            };
            error.explain().remedy
        };
        assert!(forbidden("outlook.office365.com:993").contains("IMAP needs port 993"));
        assert!(!forbidden("outlook.office365.com:443").contains("IMAP"));
    }

    #[test]
    fn the_proxy_itself_is_told_from_what_is_behind_it() {
        let dial = UpstreamError::Dial { target: "proxy:3128".to_owned(), why: "refused".to_owned() };
        assert_eq!(dial.of_proxy("proxy:3128").explain().code, "PROXY-UNREACHABLE");
        let flaw = Flaw::Other("odd".to_owned());
        let tls = UpstreamError::Certificate { target: "proxy:3128".to_owned(), flaw };
        assert_eq!(tls.clone().of_proxy("proxy:3128"), tls);
    }
}
