//! The store that replicas share: sign-ins, tokens, leases and the count of wrong passwords, in Redis.
//!
//! ```text
//! mailkey:1:sign-ins       hash: name → sealed sign-in
//! mailkey:1:token:NAME     sealed token, until it expires
//! mailkey:1:lease:NAME     fence of the replica that asks, until it gives up
//! mailkey:1:wrong:NAME     sorted set: digests of wrong passwords by time, until the window has passed
//! ```
//!
//! Redis sees keyed digests and sealed values, nothing else. A value is bound to its name; what does not open
//! counts as not there. It is dialled when it is first needed, and every command has a time limit: if it is
//! away, logins go on without it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, fs};

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Cmd, FromRedisValue, IntoConnectionInfo as _, TlsCertificates, cmd};
use aws_lc_rs::rand::fill;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use url::Url;

use super::contract::{Digest, Lease, SharedToken, SignInKey, Store, StoreError, StoreFuture, StoredSignIn};
use super::key::{Sealer, StoreKey};
use super::record;
use crate::clock;
use crate::token::digest::hex;

/// Longest wait for one answer, connecting included.
const COMMAND_TIME: Duration = Duration::from_secs(2);

/// Longest wait for a connection.
const CONNECT_TIME: Duration = Duration::from_millis(1500);

/// After no answer, Redis is left alone for this long: a login must not wait for each of its commands.
const REST: Duration = Duration::from_secs(2);

/// The hash of sign-ins.
const SIGN_INS: &str = "mailkey:1:sign-ins";

/// Replaces a value only if it is still the one that was read.
const EXCHANGE: &str = "if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end \
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) \
    return 1";

/// Gives a lease back only if it is still ours.
const GIVE_BACK: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Adds a digest under Redis' own clock, drops those older than the window, keeps the thousand newest, counts.
const COUNT: &str = "\
    local now = redis.call('TIME') \
    local at = now[1] * 1000 + math.floor(now[2] / 1000) \
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', at - ARGV[2]) \
    redis.call('ZADD', KEYS[1], at, ARGV[1]) \
    redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1001) \
    redis.call('PEXPIRE', KEYS[1], ARGV[2]) \
    return redis.call('ZCARD', KEYS[1])";

/// Shares sign-ins, tokens, leases and budgets between replicas.
pub struct RedisStore {
    client: Client,
    connection: OnceCell<ConnectionManager>,
    resting_until: Mutex<Option<Instant>>,
    sealer: Sealer,
    /// Host and port, for messages: the URL holds a password.
    server: String,
}

/// The platform's roots and those of a file, as PEM: what [`RedisStore::connect`] takes in their place.
///
/// # Errors
/// A file that cannot be read.
pub fn roots_with(extra: &Path) -> Result<Vec<u8>, StoreError> {
    let mut pem = fs::read(extra)
        .map_err(|error| StoreError::Foreign { path: extra.display().to_string(), why: error.to_string() })?;
    for root in rustls_native_certs::load_native_certs().certs {
        pem.extend_from_slice(b"\n-----BEGIN CERTIFICATE-----\n");
        // one long line: the readers of PEM that this goes to take any length
        pem.extend_from_slice(BASE64_STANDARD.encode(root).as_bytes());
        pem.extend_from_slice(b"\n-----END CERTIFICATE-----\n");
    }
    Ok(pem)
}

impl RedisStore {
    /// Prepares the store; Redis is dialled with the first command.
    ///
    /// `rediss://` is TLS with a checked certificate, by the platform's roots or, where given, by `roots` (PEM)
    /// alone. User (ACL) and password may stand in the URL.
    ///
    /// # Errors
    /// A URL that is none of Redis', or one that asks for TLS without checks.
    pub fn connect(url: &Url, key: &StoreKey, roots: Option<Vec<u8>>) -> Result<Self, StoreError> {
        let server = format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(6379));
        let foreign = |why: &str| StoreError::Foreign { path: server.clone(), why: why.to_owned() };
        if url.fragment().is_some() {
            return Err(foreign("its URL ends in `#…`: TLS without checks is not offered"));
        }
        // The driver takes the process's default; another one that stands already is as good.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let info = url.as_str().into_connection_info().map_err(|_| {
            foreign("expected `redis://[user:password@]host[:port][/database]` or `rediss://…`")
        })?;
        let client = if url.scheme() == "rediss" && roots.is_some() {
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: roots })
        } else {
            Client::open(info)
        }
        .map_err(|why| foreign(&why.to_string()))?;
        Ok(Self {
            client,
            connection: OnceCell::new(),
            resting_until: Mutex::default(),
            sealer: Sealer::new(key)?,
            server,
        })
    }

    /// One command, within [`COMMAND_TIME`].
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        if self.resting_until_now().is_some_and(|end| clock::now() < end) {
            return Err(self.away("it did not answer just now"));
        }
        let asked = timeout(COMMAND_TIME, async {
            let mut connection = self.connection().await?.clone();
            command.query_async(&mut connection).await
        });
        let (unreachable, why) = match asked.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(why)) => (why.is_io_error() || why.is_timeout(), why.to_string()),
            Err(_) => (true, "no answer within 2 seconds".to_owned()),
        };
        if unreachable {
            *self.resting_until_now() = Some(clock::now() + REST);
        }
        Err(self.away(&why))
    }

    fn resting_until_now(&self) -> MutexGuard<'_, Option<Instant>> {
        self.resting_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self) -> Result<&ConnectionManager, ::redis::RedisError> {
        self.connection
            .get_or_try_init(|| async {
                let config = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(CONNECT_TIME))
                    .set_response_timeout(Some(COMMAND_TIME))
                    .set_number_of_retries(1)
                    .set_max_delay(Duration::from_millis(200));
                ConnectionManager::new_lazy_with_config(self.client.clone(), config)
            })
            .await
    }

    fn away(&self, why: &str) -> StoreError {
        let why = crate::explain::one_line(why, 200);
        StoreError::Away(format!("Redis at `{}`: {why}", self.server))
    }

    fn field(&self, key: &SignInKey) -> String {
        let SignInKey { authority, client_id, user } = key;
        let parts = [&b"sign-in"[..], authority.as_bytes(), client_id.as_bytes(), user.as_bytes()];
        hex(&self.sealer.digest(&parts))
    }

    fn unseal_sign_in(&self, field: &str, sealed: &[u8]) -> Option<(SignInKey, StoredSignIn)> {
        let text = self.sealer.open(&bound(SIGN_INS, field), sealed)?;
        record::read_sign_in(&text).filter(|(key, _)| self.field(key) == field)
    }

    fn junk(&self, name: &str) {
        tracing::warn!(server = %self.server, name, "a value in Redis does not open with our key; it counts as not there");
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Store for RedisStore {
    fn digest(&self, parts: &[&[u8]]) -> Digest {
        self.sealer.digest(parts)
    }

    fn sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, Option<StoredSignIn>> {
        Box::pin(async move {
            let field = self.field(key);
            let sealed: Option<Vec<u8>> = self.ask(cmd("HGET").arg(SIGN_INS).arg(&field)).await?;
            let Some(sealed) = sealed else { return Ok(None) };
            let found = self.unseal_sign_in(&field, &sealed);
            if found.is_none() {
                self.junk(SIGN_INS);
            }
            Ok(found.map(|(_, sign_in)| sign_in))
        })
    }

    fn save_sign_in<'a>(&'a self, key: &'a SignInKey, sign_in: &'a StoredSignIn) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let field = self.field(key);
            let sealed = self.sealer.seal(&bound(SIGN_INS, &field), &record::sign_in(key, sign_in))?;
            self.ask(cmd("HSET").arg(SIGN_INS).arg(field).arg(sealed)).await
        })
    }

    fn renew_sign_in<'a>(
        &'a self,
        key: &'a SignInKey,
        before: &'a StoredSignIn,
        renewed: &'a StoredSignIn,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let field = self.field(key);
            let sealed: Option<Vec<u8>> = self.ask(cmd("HGET").arg(SIGN_INS).arg(&field)).await?;
            let Some(sealed) = sealed else { return Ok(false) };
            let stored = self.unseal_sign_in(&field, &sealed);
            if stored.is_none_or(|(_, stored)| stored.refresh_token != before.refresh_token) {
                return Ok(false);
            }
            let renewed = self.sealer.seal(&bound(SIGN_INS, &field), &record::sign_in(key, renewed))?;
            let mut command = cmd("EVAL");
            command.arg(EXCHANGE).arg(1).arg(SIGN_INS).arg(field).arg(sealed).arg(renewed);
            self.ask(&command).await
        })
    }

    fn remove_sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.ask(cmd("HDEL").arg(SIGN_INS).arg(self.field(key))).await })
    }

    fn sign_ins(&self) -> StoreFuture<'_, Vec<(SignInKey, StoredSignIn)>> {
        Box::pin(async move {
            let all: Vec<(String, Vec<u8>)> = self.ask(cmd("HGETALL").arg(SIGN_INS)).await?;
            let mut opened = BTreeMap::new();
            opened.extend(all.iter().filter_map(|(field, sealed)| self.unseal_sign_in(field, sealed)));
            if opened.is_empty() && !all.is_empty() {
                return Err(StoreError::WrongKey(self.server.clone()));
            }
            if opened.len() < all.len() {
                self.junk(SIGN_INS);
            }
            Ok(opened.into_iter().collect())
        })
    }

    fn shared_token<'a>(&'a self, key: &'a Digest) -> StoreFuture<'a, Option<SharedToken>> {
        Box::pin(async move {
            let name = name("token", key);
            let sealed: Option<Vec<u8>> = self.ask(cmd("GET").arg(&name)).await?;
            let Some(sealed) = sealed else { return Ok(None) };
            let Some(token) =
                self.sealer.open(&bound(&name, ""), &sealed).and_then(|text| record::read_token(&text))
            else {
                self.junk(&name);
                return Ok(None);
            };
            Ok((token.expires_at > clock::wall()).then_some(token))
        })
    }

    fn share_token<'a>(&'a self, key: &'a Digest, token: &'a SharedToken) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let Some(life) = life(token.expires_at, clock::wall()) else { return Ok(()) };
            let name = name("token", key);
            let sealed = self.sealer.seal(&bound(&name, ""), &record::token(token))?;
            self.ask(cmd("SET").arg(name).arg(sealed).arg("PX").arg(life)).await
        })
    }

    fn unshare_token<'a>(&'a self, key: &'a Digest) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.ask(cmd("DEL").arg(name("token", key))).await })
    }

    fn lease<'a>(&'a self, key: &'a Digest, ttl: Duration) -> StoreFuture<'a, Option<Lease>> {
        Box::pin(async move {
            let mut fence = [0; 16];
            fill(&mut fence).map_err(|_| self.away("no random numbers for a lease"))?;
            let mut command = cmd("SET");
            command.arg(name("lease", key)).arg(hex(&fence)).arg("NX").arg("PX").arg(milliseconds(ttl));
            let taken: Option<String> = self.ask(&command).await?;
            Ok(taken.map(|_| Lease { key: *key, fence }))
        })
    }

    fn give_back<'a>(&'a self, lease: &'a Lease) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let mut command = cmd("EVAL");
            command.arg(GIVE_BACK).arg(1).arg(name("lease", &lease.key)).arg(hex(&lease.fence));
            self.ask(&command).await
        })
    }

    fn count_wrong_password<'a>(
        &'a self,
        user: &'a Digest,
        password: &'a Digest,
        window: Duration,
    ) -> StoreFuture<'a, Option<u32>> {
        Box::pin(async move {
            let mut command = cmd("EVAL");
            command.arg(COUNT).arg(1).arg(name("wrong", user)).arg(hex(password)).arg(milliseconds(window));
            self.ask(&command).await.map(Some)
        })
    }
}

fn name(kind: &str, key: &Digest) -> String {
    format!("mailkey:1:{kind}:{}", hex(key))
}

/// What a seal is bound to: its place in Redis. A line end stands in neither part.
fn bound(name: &str, field: &str) -> Vec<u8> {
    format!("{name}\n{field}").into_bytes()
}

/// Redis takes no expiry of zero.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 16).max(1)
}

fn life(expires_at: Timestamp, now: Timestamp) -> Option<u64> {
    u64::try_from(expires_at.duration_since(now).as_millis()).ok().filter(|&life| life > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(url: &str) -> Result<RedisStore, StoreError> {
        RedisStore::connect(&url.parse().unwrap(), &StoreKey::parse(&[7; 32]).unwrap(), None)
    }

    #[test]
    fn the_password_of_the_url_is_never_shown() {
        let store = connect("redis://mailkey:hunter2@redis.example:6380/1").unwrap();
        let shown = format!("{store:?} {}", store.away("x"));
        assert!(shown.contains("redis.example:6380"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn tls_without_checks_is_refused() {
        assert!(matches!(connect("rediss://redis.example/#insecure"), Err(StoreError::Foreign { .. })));
        assert!(connect("rediss://redis.example/").is_ok());
        assert!(matches!(connect("https://redis.example/"), Err(StoreError::Foreign { .. })));
    }

    #[test]
    fn what_has_expired_has_no_life() {
        let now: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
        assert_eq!(life("2026-11-24T10:00:01.5Z".parse().unwrap(), now), Some(1500));
        assert_eq!(life(now, now), None);
        assert_eq!(life("2026-11-24T09:00:00Z".parse().unwrap(), now), None);
    }
}
