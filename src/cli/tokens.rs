//! `mailkey tokens` and `mailkey logout`: which sign-ins are kept, and their removal. Never shows a token.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::time::timeout;

use super::login::MEMORY;
use super::out::Out;
use super::{FAILED, MISUSED, load_for_store};
use crate::clock;
use crate::config::model::{Account, Config, Store as Place};
use crate::explain::Explain as _;
use crate::telemetry::log;
use crate::token::grant::sign_in_key;
use crate::token::store::{self, SignInKey, Store, StoreError, StoredSignIn};

/// For the token store.
const STORE_LIMIT: Duration = Duration::from_secs(10);

/// Options of `mailkey tokens`.
#[derive(Args, Debug)]
pub struct TokensArguments {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Lists the sign-ins that are kept.
pub fn tokens(wishes: &TokensArguments, path: &Path, out: &mut Out) -> ExitCode {
    at_the_store(path, out, async |config, store, out| {
        let mut lines = Vec::new();
        for (key, sign_in) in limited(store.sign_ins()).await? {
            lines.push(Line::new(config, key, &sign_in));
        }
        if wishes.json {
            let list: Vec<_> = lines.iter().map(Line::json).collect();
            out.line(format_args!("{:#}", serde_json::Value::from(list)));
            return Ok(ExitCode::SUCCESS);
        }
        if lines.is_empty() {
            out.line(format_args!("nobody has signed in: {} is empty", config.tokens.store));
        }
        let now = clock::wall();
        for line in &lines {
            out.line(line.text(now));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Removes every sign-in of a user. Exit code 1 where there was none.
pub fn logout(user: &str, path: &Path, out: &mut Out) -> ExitCode {
    at_the_store(path, out, async |config, store, out| {
        let user = user.to_lowercase();
        let mut removed = 0;
        for (key, _) in limited(store.sign_ins()).await? {
            if key.user == user && limited(store.remove_sign_in(&key)).await? {
                out.line(format_args!("{user} is signed out of {} at {}", key.client_id, key.authority));
                removed += 1;
            }
        }
        if removed == 0 {
            out.error(format_args!(
                "nobody has signed in as `{user}`: nothing was removed from {}",
                config.tokens.store
            ));
            return Ok(ExitCode::from(FAILED));
        }
        out.line(
            "A proxy that runs asks for no more tokens with it; the one that it has lives for an hour or so.\n\
             What Microsoft gave stays valid there: revoke it with `Revoke-MgUserSignInSession`.",
        );
        Ok(ExitCode::SUCCESS)
    })
}

/// Loads the configuration, opens its store beside whoever uses it, and says what goes wrong.
fn at_the_store(
    path: &Path,
    out: &mut Out,
    work: impl AsyncFnOnce(&Config, &Arc<dyn Store>, &mut Out) -> Result<ExitCode, StoreError>,
) -> ExitCode {
    let config = match load_for_store(path, out) {
        Ok(config) => config,
        Err(code) => return code,
    };
    // A log that is on already is as good.
    let _flush = log::start("warn", false);
    if config.tokens.store == Place::Memory {
        out.error(format_args!("no sign-in is kept: {MEMORY}"));
        return ExitCode::from(MISUSED);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            out.error(format_args!("the runtime cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let done = runtime.block_on(async {
        let store = store::visit(&config.tokens)?;
        work(&config, &store, out).await
    });
    done.unwrap_or_else(|why| {
        out.error(why.explain());
        ExitCode::from(FAILED)
    })
}

/// The store's answer, if it comes in time.
pub(super) async fn limited<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = || StoreError::Away(format!("no answer within {} s", STORE_LIMIT.as_secs()));
    timeout(STORE_LIMIT, work).await.map_err(|_| late())?
}

/// One sign-in, as it is shown.
struct Line {
    key: SignInKey,
    grant: &'static str,
    signed_in: Timestamp,
    renewed: Timestamp,
    /// `None`: not known for this provider.
    runs_out: Option<Timestamp>,
    /// Names of listeners.
    used_by: Vec<String>,
}

impl Line {
    fn new(config: &Config, key: SignInKey, sign_in: &StoredSignIn) -> Self {
        let uses = config.listeners.iter().filter(|listener| {
            let serves = |account: &Arc<Account>, user: &str| {
                super::login::interactive(&account.application).is_some()
                    && sign_in_key(&account.application, user) == key
            };
            listener.account(&key.user).is_some_and(|account| serves(account, &key.user))
                || listener.accounts.iter().any(|account| {
                    account.login.is_some() && serves(account, &account.login_for(account.user.as_str()))
                })
        });
        Self {
            grant: sign_in.grant.as_str(),
            signed_in: sign_in.signed_in_at,
            renewed: sign_in.renewed_at,
            runs_out: sign_in.runs_out(&key.authority),
            used_by: uses.map(|listener| listener.name.clone()).collect(),
            key,
        }
    }

    fn text(&self, now: Timestamp) -> String {
        let runs_out = match self.runs_out {
            Some(at) if at > now => {
                format!("{}, in {}, unless it is used before", day(at), spell(at.duration_since(now)))
            }
            Some(at) => format!("{}: most likely it has", day(at)),
            None => "as this provider has it".to_owned(),
        };
        let used_by = if self.used_by.is_empty() {
            "no account of this configuration".to_owned()
        } else {
            self.used_by.join(", ")
        };
        let ago = |at: Timestamp| format!("{}, {} ago", day(at), spell(now.duration_since(at)));
        format!(
            "{}\n  grant      {}\n  authority  {}\n  client     {}\n  signed in  {}\n  renewed    {}\n  runs out   {runs_out}\n  \
             used by    {used_by}",
            self.key.user,
            self.grant,
            self.key.authority,
            self.key.client_id,
            ago(self.signed_in),
            ago(self.renewed),
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "user": self.key.user,
            "grant": self.grant,
            "authority": self.key.authority,
            "client_id": self.key.client_id,
            "signed_in_at": self.signed_in.to_string(),
            "renewed_at": self.renewed.to_string(),
            "runs_out_at": self.runs_out.map(|at| at.to_string()),
            "used_by": self.used_by,
        })
    }
}

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// To one unit: this is for people.
fn spell(length: SignedDuration) -> String {
    let seconds = length.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Grant;
    use crate::secret::Secret;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn line(authority: &str) -> Line {
        let text = "
oauth: {client-id: 11111111-2222-3333-4444-555555555555, directory-id: contoso.com}
accounts: [{user: alice@contoso.com, grant: device-code, password-hash: 'HASH'}]
listeners: [{name: imap, protocol: imap, listen: '127.0.0.1:1143'}]
";
        let hash = crate::token::password::hash(&Secret::new("x")).unwrap();
        let text = &text.replace("HASH", &hash);
        let config = crate::config::parse(text, "x", Path::new(""), &|_| None).unwrap().config;
        let key = SignInKey {
            authority: authority.to_owned(),
            client_id: "11111111-2222-3333-4444-555555555555".to_owned(),
            user: "alice@contoso.com".to_owned(),
        };
        let sign_in = StoredSignIn {
            grant: Grant::DeviceCode,
            refresh_token: Secret::new("the token"),
            signed_in_at: at("2026-11-01T09:00:00Z"),
            renewed_at: at("2026-11-24T09:00:00Z"),
        };
        Line::new(&config, key, &sign_in)
    }

    #[test]
    fn a_sign_in_is_shown_with_its_age_and_its_end_and_without_its_token() {
        let line = line("https://login.microsoftonline.com/contoso.com");
        let text = line.text(at("2026-11-24T12:00:00Z"));
        for part in [
            "alice@contoso.com\n",
            "signed in  2026-11-01 09:00 UTC, 23 days ago",
            "renewed    2026-11-24 09:00 UTC, 3 hours ago",
            "runs out   2027-02-22 09:00 UTC, in 89 days, unless it is used before",
            "used by    imap",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(line.text(at("2027-03-01T12:00:00Z")).contains("most likely it has"));
        let json = line.json();
        assert_eq!(json["runs_out_at"], "2027-02-22T09:00:00Z");
        assert!(!text.contains("the token") && !json.to_string().contains("the token"));
    }

    #[test]
    fn nothing_is_said_about_the_end_of_what_is_not_entras() {
        let other = line("https://accounts.google.com");
        assert_eq!((other.runs_out, other.used_by.len()), (None, 0));
        assert!(other.text(at("2026-11-24T12:00:00Z")).contains("no account of this configuration"));
    }
}
