//! Why the proxy cannot start, or not take a new configuration, and what to do about it.

use std::io;
use std::net::SocketAddr;

use crate::explain::{CauseKind, Explain, Explanation, Fault, Passes, Refusal};
use crate::token::store::StoreError;
use crate::upstream::tls::TlsSetupError;

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening address cannot be had.
    #[error("`{listener}` cannot listen on {address}: {source}")]
    Bind {
        /// The listener's name, or `admin`.
        listener: String,
        /// Where.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// Certificates or roots cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The client for token requests cannot be set up.
    #[error("token requests cannot be set up: {0}")]
    Endpoint(String),
    /// The token store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A reload would have to change what only a start can.
    #[error("`{0}` cannot change while the proxy runs")]
    NeedsRestart(&'static str),
    /// A reload would have to open a port that only root may.
    #[error("`{listener}` cannot listen on {address}: root has been given up to `{user}`")]
    RootGivenUp {
        /// The listener's name, or `admin`.
        listener: String,
        /// Where.
        address: SocketAddr,
        /// `run.user`.
        user: String,
    },
    /// An EWS listener's upstream is of no use.
    #[error("the EWS listener `{0}` cannot be served: {1}")]
    Ews(String, String),
}

impl StartError {
    /// Says why a port below 1024 is out of reach, where the process was root when it started.
    #[must_use]
    pub(super) fn after_root_was_given_up(self, user: Option<&str>) -> Self {
        match (self, user) {
            (Self::Bind { listener, address, source }, Some(user))
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Self::RootGivenUp { listener, address, user: user.to_owned() }
            }
            (other, _) => other,
        }
    }
}

impl Explain for StartError {
    fn explain(&self) -> Explanation {
        let (code, remedy) = match self {
            Self::Bind { source, address, .. } => (
                "START-LISTEN",
                if source.kind() == io::ErrorKind::AddrInUse {
                    let port = address.port();
                    format!("another program listens on port {port} already: stop it, or change `listen`")
                } else if source.kind() == io::ErrorKind::PermissionDenied {
                    "choose a port above 1023, or give the program CAP_NET_BIND_SERVICE, or start it as root \
                     with `run: {user: mailkey}`"
                        .to_owned()
                } else {
                    "change `listen` to an address of this machine".to_owned()
                },
            ),
            Self::Tls(_) => ("START-TLS", "correct the `tls` section".to_owned()),
            Self::Endpoint(_) => ("START-IDENTITY", "correct `outbound-proxy` and `tls`".to_owned()),
            Self::Store(_) => ("START-STORE", "correct the `tokens` section".to_owned()),
            Self::NeedsRestart(_) | Self::RootGivenUp { .. } => {
                ("RELOAD-RESTART", "restart the proxy to have it".to_owned())
            }
            Self::Ews(..) => {
                ("START-EWS", "set its `upstream` to `https://outlook.office365.com/`".to_owned())
            }
        };
        Explanation {
            code: code.into(),
            fault: Fault::Configuration,
            what: self.to_string(),
            remedy,
            passes: Passes::Never,
            refusal: Refusal::contact_admin(CauseKind::Application),
        }
    }
}
