//! Managed identities: the platform's own endpoint gives the token (Azure VM, App Service, Arc).
//!
//! It is asked directly, never through a proxy. Which one it is stands in the environment, as in Microsoft's
//! own libraries.

use std::path::{Path, PathBuf};

use url::Url;

use super::answer::RawAnswer;
use super::endpoint::{Ask, Endpoint, WireError};
use super::error::TokenError;
use crate::secret::Secret;

/// The address of the Instance Metadata Service.
const IMDS: &str = "http://169.254.169.254/metadata/identity/oauth2/token";

/// Where the Arc agent puts its challenges on Linux; a path elsewhere is not read.
const ARC_TOKENS: &str = "/var/opt/azcmagent/tokens";

/// Longest challenge of the Arc agent, in octets.
const MAX_CHALLENGE: u64 = 4096;

/// Which platform, and where it is asked.
#[derive(Clone, Debug)]
pub enum ManagedIdentity {
    /// Azure virtual machines and scale sets.
    Imds {
        /// Scheme, authority and path.
        url: String,
    },
    /// App Service, Functions, Container Apps.
    AppService {
        /// `IDENTITY_ENDPOINT`.
        url: String,
        /// `IDENTITY_HEADER`.
        header: Secret,
    },
    /// A machine of one's own that runs the Azure Arc agent.
    Arc {
        /// `IDENTITY_ENDPOINT`.
        url: String,
        /// Where challenges are read from.
        challenges: PathBuf,
    },
}

impl Default for ManagedIdentity {
    fn default() -> Self {
        Self::Imds { url: IMDS.to_owned() }
    }
}

impl ManagedIdentity {
    /// What `IDENTITY_ENDPOINT`, `IDENTITY_HEADER` and `IMDS_ENDPOINT` say.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (variable("IDENTITY_ENDPOINT"), variable("IDENTITY_HEADER"), variable("IMDS_ENDPOINT")) {
            (Some(url), Some(header), _) => Self::AppService { url, header: Secret::new(header) },
            (Some(url), None, Some(_)) => Self::Arc { url, challenges: ARC_TOKENS.into() },
            _ => Self::default(),
        }
    }

    /// The question for a token. `client_id` selects a user-assigned identity; empty or `system` is the
    /// machine's own.
    ///
    /// # Errors
    /// The platform's address is no URL.
    pub fn ask(&self, scope: &str, client_id: &str) -> Result<Ask, TokenError> {
        let (base, version, header) = match self {
            Self::Imds { url } => (url, "2018-02-01", ("metadata", Secret::new("true"))),
            Self::AppService { url, header } => (url, "2019-08-01", ("x-identity-header", header.clone())),
            Self::Arc { url, .. } => (url, "2020-06-01", ("metadata", Secret::new("true"))),
        };
        let mut url: Url = base
            .parse()
            .map_err(|_| TokenError::ManagedIdentity { why: "`IDENTITY_ENDPOINT` is no URL".to_owned() })?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("api-version", version);
            query.append_pair("resource", scope.strip_suffix(".default").unwrap_or(scope));
            if !matches!(client_id, "" | "system") && !matches!(self, Self::Arc { .. }) {
                query.append_pair("client_id", client_id);
            }
        }
        Ok(Ask::get_local(url, vec![header]))
    }

    /// Sends it; for Arc, answers the challenge that shows that we may read the agent's files.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send(&self, endpoint: &Endpoint, ask: &Ask) -> Result<RawAnswer, WireError> {
        let mut answer = endpoint.send(ask).await?;
        if let Self::Arc { challenges, .. } = self
            && answer.status == 401
            && let Some(key) = read_challenge(answer.challenge.as_deref(), challenges).await
        {
            let mut again = ask.clone();
            again.headers.push(("authorization", Secret::new(format!("Basic {}", key.expose()))));
            answer = endpoint.send(&again).await?;
        }
        // While it starts or is updated it answers 404 or 410; it wants to be asked again.
        if matches!(answer.status, 404 | 410) {
            answer.status = 503;
        }
        Ok(answer)
    }
}

/// `Basic realm=<path>`: only a `.key` file right in the agent's own directory is read, and it must be short.
async fn read_challenge(header: Option<&str>, directory: &Path) -> Option<Secret> {
    let path = Path::new(header?.split_once("realm=")?.1.trim().trim_matches('"'));
    let is_theirs = path.parent() == Some(directory) && path.extension().is_some_and(|e| e == "key");
    if !is_theirs || tokio::fs::symlink_metadata(path).await.ok()?.len() > MAX_CHALLENGE {
        return None;
    }
    let key = zeroize::Zeroizing::new(tokio::fs::read_to_string(path).await.ok()?);
    Some(Secret::new(key.trim())).filter(|key| key.expose().bytes().all(|b| b.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_carries_the_resource_and_the_identity() {
        let imds = ManagedIdentity::default();
        let ask = imds.ask("https://outlook.office365.com/.default", "c-1").unwrap();
        assert_eq!(
            ask.url.as_str(),
            "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01\
             &resource=https%3A%2F%2Foutlook.office365.com%2F&client_id=c-1"
        );
        assert!(ask.local && ask.form.is_none());
        let own = imds.ask("https://outlook.office365.com/.default", "system").unwrap();
        assert!(!own.url.as_str().contains("client_id"));
    }

    #[tokio::test]
    async fn a_challenge_outside_of_the_agents_directory_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("a.key");
        std::fs::write(&inside, "s3cret\n").unwrap();
        std::fs::write(directory.path().join("a.txt"), "no").unwrap();
        let read = |path: String| {
            let directory = directory.path().to_owned();
            async move { read_challenge(Some(&format!("Basic realm={path}")), &directory).await }
        };
        assert_eq!(read(inside.display().to_string()).await.unwrap().expose(), "s3cret");
        assert!(read("/etc/passwd".to_owned()).await.is_none());
        assert!(read(directory.path().join("a.txt").display().to_string()).await.is_none());
        assert!(read(format!("{}/../a.key", directory.path().display())).await.is_none());
        assert!(read_challenge(None, directory.path()).await.is_none());
    }
}
