//! Where sign-ins outlive a process, and what replicas share.
//!
//! ```text
//! contract   what every store promises           key      the key, and what is sealed under it
//! memory     this process only                   record   how a record looks before it is sealed
//! file       one proxy and the commands beside it, encrypted, durable
//! redis      replicas, encrypted
//! ```
//!
//! If a store is away, logins go on without it: every caller treats an error here as "not known" and says so
//! once in the log.

use std::path::Path;
use std::sync::Arc;

use crate::config::model::{self, Tokens};

mod contract;
pub mod file;
pub mod key;
pub mod memory;
mod record;
#[cfg(feature = "redis")]
pub mod redis;

pub use contract::{Digest, Lease, SharedToken, SignInKey, Store, StoreError, StoreFuture, StoredSignIn};

/// Opens the store that the configuration names, for a proxy. Reads files; Redis is only dialled when it is
/// needed.
///
/// # Errors
/// No key, a key that does not open the file, a file that is locked, exposed or not ours.
pub fn open(tokens: &Tokens) -> Result<Arc<dyn Store>, StoreError> {
    open_as(tokens, file::FileStore::open)
}

/// The same for a command that is run beside a proxy, or without one: a file is not claimed.
///
/// # Errors
/// No key, a key that does not open the file, a file that is exposed or not ours.
pub fn visit(tokens: &Tokens) -> Result<Arc<dyn Store>, StoreError> {
    open_as(tokens, file::FileStore::visit)
}

fn open_as(
    tokens: &Tokens,
    open_file: fn(&Path, &key::StoreKey) -> Result<file::FileStore, StoreError>,
) -> Result<Arc<dyn Store>, StoreError> {
    let key = || key::StoreKey::from_source(tokens.key.as_ref());
    match &tokens.store {
        model::Store::Memory => Ok(Arc::new(memory::MemoryStore::new())),
        model::Store::File(path) => Ok(Arc::new(open_file(path, &key()?)?)),
        #[cfg(feature = "redis")]
        model::Store::Redis(url) => Ok(Arc::new(redis::RedisStore::connect(
            url,
            &key()?,
            tokens.extra_roots_file.as_deref().map(redis::roots_with).transpose()?,
        )?)),
        #[cfg(not(feature = "redis"))]
        model::Store::Redis(url) => Err(StoreError::Foreign {
            path: url.host_str().unwrap_or_default().to_owned(),
            why: "this build has no Redis".to_owned(),
        }),
    }
}
