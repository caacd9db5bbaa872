//! Why upstream could not be reached: at which step, whose fault, what to do.

use std::time::Duration;

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
    /// The outbound proxy said no.
    #[error("the outbound proxy `{proxy}` refused `{target}`: {reply}")]
    ProxyRefused {
        /// The proxy's host and port.
        proxy: String,
        /// Host and port behind it.
        target: String,
        /// The HTTP status, or 0 for SOCKS.
        status: u16,
        /// What it said, in one printable line.
        reply: String,
        /// The schemes that it offers with a 407.
        offers: String,
    },
    /// The outbound proxy does not speak its protocol.
    #[error("the outbound proxy `{proxy}` answered `{got}`")]
    ProxyBroken {
        /// The proxy's host and port.
        proxy: String,
        /// What it said, in one printable line.
        got: String,
    },
    /// The certificate is not from an issuer that is trusted here.
    #[error("the certificate of `{target}` comes from an issuer that is not trusted here")]
    UnknownIssuer {
        /// Host and port.
        target: String,
    },
    /// The certificate is for other names, or not valid now.
    #[error("the certificate of `{target}` is refused: {why}")]
    Certificate {
        /// Host and port.
        target: String,
        /// rustls' words.
        why: String,
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

impl Explain for UpstreamError {
    fn explain(&self) -> Explanation {
        let (code, fault, remedy) = match self {
            Self::Resolve { host, .. } => (
                "UPSTREAM-NAME",
                Fault::Network,
                format!("check the spelling of `{host}` and this machine's DNS; where only the corporate proxy resolves names, set `outbound-proxy` with `use-for: [identity, ews, mail]`"),
            ),
            Self::Dial { target, .. } => (
                "UPSTREAM-UNREACHABLE",
                Fault::Network,
                format!("let the firewall open {target} for this machine, or set `outbound-proxy` with `use-for: [identity, ews, mail]`"),
            ),
            Self::TimedOut { target, doing, .. } => (
                "UPSTREAM-TIMEOUT",
                Fault::Network,
                format!("find out what swallows packets to {target} (a firewall that drops is the usual one; it happened while {doing})"),
            ),
            Self::ProxyRefused { status, proxy, target, offers, .. } => {
                return proxy_refused(self, *status, proxy, target, offers);
            }
            Self::ProxyBroken { proxy, .. } => (
                "PROXY-BROKEN",
                Fault::Configuration,
                format!("check that {proxy} is an HTTP or SOCKS5 proxy, as `outbound-proxy.url` says"),
            ),
            Self::UnknownIssuer { .. } => (
                "TLS-UNKNOWN-ISSUER",
                Fault::Network,
                "if a TLS-inspecting proxy stands between, put its root certificate into `tls.extra-roots-file`; otherwise somebody listens in".to_owned(),
            ),
            Self::Certificate { target, .. } => (
                "TLS-CERTIFICATE",
                Fault::Network,
                format!("check the name in `upstream`, this machine's clock, and who answers at {target}"),
            ),
            Self::Tls { target, .. } => (
                "TLS-HANDSHAKE",
                Fault::Network,
                format!("check that {target} speaks TLS 1.2 or newer and that `upstream-tls` is right; some firewalls stumble over `tls.post-quantum: true`"),
            ),
            Self::Broken { .. } => (
                "UPSTREAM-BROKEN",
                Fault::Provider,
                "try again; if it goes on, look at the firewall between and at Microsoft's service health".to_owned(),
            ),
        };
        self.story(code, fault, remedy)
    }
}

impl UpstreamError {
    fn story(&self, code: &'static str, fault: Fault, remedy: String) -> Explanation {
        Explanation {
            code: code.into(),
            fault,
            what: one_line(&self.to_string(), 400),
            remedy,
            passes: Passes::ByItself(None),
            refusal: Refusal::Unavailable { retry_after: None },
        }
    }
}

fn proxy_refused(error: &UpstreamError, status: u16, proxy: &str, target: &str, offers: &str) -> Explanation {
    let (code, remedy) = match status {
        407 => (
            "PROXY-SIGN-IN",
            format!("set `outbound-proxy.username` and `password-file` for {proxy} (it offers: {offers})"),
        ),
        403 | 405 => (
            "PROXY-FORBIDS",
            format!(
                "ask the administrators of {proxy} to allow CONNECT to {target}; many allow port 443 only, where EWS still works"
            ),
        ),
        502..=504 => (
            "PROXY-UNREACHABLE",
            format!("{proxy} cannot reach {target} itself: ask its administrators, and check the name"),
        ),
        _ => ("PROXY-REFUSED", format!("ask the administrators of {proxy} why it refuses {target}")),
    };
    error.story(code, Fault::Network, remedy)
}
