//! The store of one proxy on one disk: an encrypted file that survives crashes. Commands such as `mailkey login`
//! use it beside the proxy that runs.
//!
//! ```text
//! mailkey-tokens 1 <sealed check>          the header: version, and whether the key is the right one
//! <name> <sealed record>                   one sign-in a line; a broken line loses that one alone
//! ```
//!
//! The name is a keyed digest, so that the file shows no user. Name and version are bound into the seal: a
//! record opens nowhere else. Beside `tokens` stand `tokens.lock` (held by the proxy against a second one),
//! `tokens.turn` (held by whoever reads, changes and writes, for that long), `tokens.new` (a write under way,
//! stale after a crash) and `tokens.broken` (lines that would not open).
//!
//! Who writes reads first what others wrote; who reads looks first whether the file is still the one it knows.
//!
//! Never: writes in place, follows a symbolic link, or takes a file that others can read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::future::ready;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::contract::{Digest, Lease, SharedToken, SignInKey, Store, StoreError, StoreFuture, StoredSignIn};
use super::key::{Sealer, StoreKey};
use super::memory::undisputed;
use super::record;
use crate::token::digest::hex;

/// First word of the header.
const MAGIC: &str = "mailkey-tokens";

/// Second word of the header, and part of every seal.
const VERSION: &str = "1";

/// What the header seals.
const CHECK: &[u8] = b"the key is right";

/// A larger file is none of ours: some ten thousand sign-ins.
const MAX_FILE: u64 = 64 << 20;

/// How often another process' turn is waited for, and how long each time: together less than a login waits for
/// the store.
const TURN_TRIES: u32 = 150;
const TURN_PAUSE: Duration = Duration::from_millis(10);

/// Keeps sign-ins in an encrypted file: of one proxy, and of the commands that are run beside it.
pub struct FileStore(Arc<Inner>);

struct Inner {
    path: PathBuf,
    sealer: Sealer,
    /// What the file held when it was last looked at; locked while it is written, so that writes come one after
    /// another.
    content: Mutex<Content>,
    /// Held open as long as the store lives; a visitor has none.
    _lock: Option<File>,
}

#[derive(Default)]
struct Content {
    sign_ins: BTreeMap<SignInKey, StoredSignIn>,
    /// Lines that would not open and could not be set aside yet.
    broken: Vec<Vec<u8>>,
    seen: Seen,
}

/// What becomes of one sign-in.
enum Change {
    Leave,
    Remove,
    Set(StoredSignIn),
}

impl FileStore {
    /// Opens the file for a proxy, or begins a new one with the first sign-in that is saved.
    ///
    /// Broken lines are moved to `<path>.broken` and reported; the others are served.
    ///
    /// # Errors
    /// A second proxy, a file that others can read or that is not ours, a key that does not open it, a
    /// directory that cannot be written.
    pub fn open(path: &Path, key: &StoreKey) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        Self::enter(path, key, Some(lock))
    }

    /// Opens the file for a command, whether a proxy has it open or not: each sees what the other writes.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for the second proxy.
    pub fn visit(path: &Path, key: &StoreKey) -> Result<Self, StoreError> {
        Self::enter(path, key, None)
    }

    fn enter(path: &Path, key: &StoreKey, lock: Option<File>) -> Result<Self, StoreError> {
        let sealer = Sealer::new(key)?;
        let turn = turn(path)?;
        match std::fs::remove_file(beside(path, "new")) {
            Ok(()) => {
                tracing::warn!(store = %path.display(), "removed what a crash left of an unfinished write");
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(away(path, &why)),
        }
        let content = load(path, &sealer)?;
        let inner = Inner { path: path.to_owned(), sealer, content: Mutex::new(content), _lock: lock };
        inner.set_broken_aside();
        drop(turn);
        Ok(Self(Arc::new(inner)))
    }

    /// Looks something up, in what the file holds now.
    fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&BTreeMap<SignInKey, StoredSignIn>) -> T + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.work(|inner| {
            let mut content = inner.content_now();
            if let Err(why) = inner.catch_up(&mut content) {
                // What was read before is as good as ever; only what others wrote since is not known.
                tracing::error!(store = %inner.path.display(), "the token store cannot be read anew: {why}");
            }
            Ok(look(&content.sign_ins))
        })
    }

    /// Changes one sign-in, durably, unless it is to be left as it is: whether it was changed.
    fn change(
        &self,
        key: &SignInKey,
        decide: impl FnOnce(Option<&StoredSignIn>) -> Change + Send + 'static,
    ) -> StoreFuture<'_, bool> {
        let key = key.clone();
        self.work(move |inner| {
            let mut content = inner.content_now();
            let _turn = turn(&inner.path)?;
            inner.read_anew(&mut content)?;
            let before = match decide(content.sign_ins.get(&key)) {
                Change::Leave => return Ok(false),
                Change::Remove => content.sign_ins.remove(&key),
                Change::Set(sign_in) => content.sign_ins.insert(key.clone(), sign_in),
            };
            inner.write(&mut content).map(|()| true).inspect_err(|_| {
                match before {
                    Some(before) => content.sign_ins.insert(key, before),
                    None => content.sign_ins.remove(&key),
                };
            })
        })
    }

    /// Runs on a thread that may block, and to its end even where the caller gives up: a rotated refresh token
    /// that is lost half-way would lock its user out.
    fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            tokio::task::spawn_blocking(move || work(&inner))
                .await
                .unwrap_or_else(|_| Err(StoreError::Away("the write was broken off".to_owned())))
        })
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Store for FileStore {
    fn digest(&self, parts: &[&[u8]]) -> Digest {
        self.0.sealer.digest(parts)
    }

    fn sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, Option<StoredSignIn>> {
        let key = key.clone();
        self.look(move |sign_ins| sign_ins.get(&key).cloned())
    }

    fn save_sign_in<'a>(&'a self, key: &'a SignInKey, sign_in: &'a StoredSignIn) -> StoreFuture<'a, ()> {
        let sign_in = sign_in.clone();
        let saved = self.change(key, move |_| Change::Set(sign_in));
        Box::pin(async move { saved.await.map(|_| ()) })
    }

    fn renew_sign_in<'a>(
        &'a self,
        key: &'a SignInKey,
        before: &'a StoredSignIn,
        renewed: &'a StoredSignIn,
    ) -> StoreFuture<'a, bool> {
        let (before, renewed) = (before.clone(), renewed.clone());
        self.change(key, move |stored| match stored {
            Some(stored) if stored.refresh_token == before.refresh_token => Change::Set(renewed),
            Some(_) | None => Change::Leave,
        })
    }

    fn remove_sign_in<'a>(&'a self, key: &'a SignInKey) -> StoreFuture<'a, bool> {
        self.change(key, |stored| if stored.is_some() { Change::Remove } else { Change::Leave })
    }

    fn sign_ins(&self) -> StoreFuture<'_, Vec<(SignInKey, StoredSignIn)>> {
        self.look(|sign_ins| sign_ins.iter().map(|(key, sign_in)| (key.clone(), sign_in.clone())).collect())
    }

    fn shared_token<'a>(&'a self, _key: &'a Digest) -> StoreFuture<'a, Option<SharedToken>> {
        Box::pin(ready(Ok(None)))
    }

    fn share_token<'a>(&'a self, _key: &'a Digest, _token: &'a SharedToken) -> StoreFuture<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn unshare_token<'a>(&'a self, _key: &'a Digest) -> StoreFuture<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn lease<'a>(&'a self, key: &'a Digest, _ttl: Duration) -> StoreFuture<'a, Option<Lease>> {
        Box::pin(ready(Ok(Some(undisputed(key)))))
    }

    fn give_back<'a>(&'a self, _lease: &'a Lease) -> StoreFuture<'a, ()> {
        Box::pin(ready(Ok(())))
    }

    fn count_wrong_password<'a>(
        &'a self,
        _user: &'a Digest,
        _password: &'a Digest,
        _window: Duration,
    ) -> StoreFuture<'a, Option<u32>> {
        Box::pin(ready(Ok(None)))
    }
}

impl Inner {
    fn content_now(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file again where another process has replaced it.
    fn catch_up(&self, content: &mut Content) -> Result<(), StoreError> {
        if content.seen.is_at(&self.path) {
            return Ok(());
        }
        let _turn = turn(&self.path)?;
        self.read_anew(content)
    }

    /// The same for somebody whose turn it is.
    fn read_anew(&self, content: &mut Content) -> Result<(), StoreError> {
        if !content.seen.is_at(&self.path) {
            *content = load(&self.path, &self.sealer)?;
        }
        Ok(())
    }

    /// Replaces the file: whoever reads it sees the old or the new one, whole.
    fn write(&self, content: &mut Content) -> Result<(), StoreError> {
        let mut text = header(&self.sealer)?.into_bytes();
        for (key, sign_in) in &content.sign_ins {
            let name = name(&self.sealer, key);
            let sealed = self.sealer.seal(&bound(&name), &record::sign_in(key, sign_in))?;
            text.extend_from_slice(format!("{name} {}\n", STANDARD.encode(sealed)).as_bytes());
        }
        for line in &content.broken {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        let written = replace(&self.path, &text).map_err(|why| away(&self.path, &why))?;
        content.seen = Seen::new(written);
        Ok(())
    }

    /// Moves broken lines out of the way, where somebody can look at them. Where that fails they stay in the
    /// file, and this is tried again at the next start.
    fn set_broken_aside(&self) {
        let mut content = self.content_now();
        if content.broken.is_empty() {
            return;
        }
        let (count, aside) = (content.broken.len(), beside(&self.path, "broken"));
        tracing::error!(
            store = %self.path.display(), lines = count, kept = %aside.display(),
            "records of the token store do not open; their users must sign in again"
        );
        let kept = append(&aside, &content.broken);
        if kept.is_ok() {
            let lines = std::mem::take(&mut content.broken);
            if self.write(&mut content).is_err() {
                content.broken = lines;
            }
        }
    }
}

/// Which file the content was read from or written to. It is held open: as long as it is, no other file has its
/// number.
#[derive(Default)]
struct Seen(Option<(File, Stamp)>);

#[derive(PartialEq)]
struct Stamp {
    number: (u64, u64),
    length: u64,
    modified: Option<SystemTime>,
}

impl Seen {
    fn new(file: File) -> Self {
        let stamp = file.metadata().map(|found| Stamp::of(&found));
        Self(stamp.ok().map(|stamp| (file, stamp)))
    }

    /// Whether this is still what stands at the path. Where files have no numbers, that is never certain.
    fn is_at(&self, path: &Path) -> bool {
        match (std::fs::symlink_metadata(path), &self.0) {
            (Ok(found), Some((_, stamp))) => cfg!(unix) && Stamp::of(&found) == *stamp,
            (Err(why), None) => why.kind() == io::ErrorKind::NotFound,
            (Ok(_), None) | (Err(_), Some(_)) => false,
        }
    }
}

impl Stamp {
    fn of(found: &std::fs::Metadata) -> Self {
        #[cfg(unix)]
        let number = {
            use std::os::unix::fs::MetadataExt as _;
            (found.dev(), found.ino())
        };
        #[cfg(not(unix))]
        let number = (0, 0);
        Self { number, length: found.len(), modified: found.modified().ok() }
    }
}

/// What the file holds; nothing where there is none yet.
fn load(path: &Path, sealer: &Sealer) -> Result<Content, StoreError> {
    let Some(file) = open_private(path)? else { return Ok(Content::default()) };
    let content = parse(path, sealer, &read(path, &file)?)?;
    Ok(Content { seen: Seen::new(file), ..content })
}

fn parse(path: &Path, sealer: &Sealer, text: &[u8]) -> Result<Content, StoreError> {
    let mut content = Content::default();
    if text.is_empty() {
        return Ok(content);
    }
    let mut lines = text.split(|&octet| octet == b'\n').filter(|line| !line.is_empty());
    let header = check_header(path, sealer, lines.next().unwrap_or_default());
    for line in lines {
        match parse_line(sealer, line) {
            Some((key, sign_in)) => {
                content.sign_ins.insert(key, sign_in);
            }
            None => content.broken.push(line.to_vec()),
        }
    }
    // A record that opens shows that the file is ours and only its header is broken.
    if content.sign_ins.is_empty() { header.map(|()| content) } else { Ok(content) }
}

fn check_header(path: &Path, sealer: &Sealer, line: &[u8]) -> Result<(), StoreError> {
    let foreign = |why: String| StoreError::Foreign { path: path.display().to_string(), why };
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(foreign(format!("expected `{MAGIC} {VERSION}` in its first line")));
    }
    let version = words.next().unwrap_or_default();
    if version != VERSION {
        let version = crate::explain::one_line(version, 20);
        return Err(foreign(format!("expected version {VERSION}, got `{version}`")));
    }
    match unseal(sealer, &bound("header"), words.next().unwrap_or_default()) {
        Some(check) if check.as_slice() == CHECK => Ok(()),
        _ => Err(StoreError::WrongKey(path.display().to_string())),
    }
}

fn parse_line(sealer: &Sealer, line: &[u8]) -> Option<(SignInKey, StoredSignIn)> {
    let (found, text) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let (key, sign_in) = record::read_sign_in(&unseal(sealer, &bound(found), text)?)?;
    (name(sealer, &key) == found).then_some((key, sign_in))
}

fn unseal(sealer: &Sealer, bound: &[u8], text: &str) -> Option<Zeroizing<Vec<u8>>> {
    sealer.open(bound, &STANDARD.decode(text).ok()?)
}

fn header(sealer: &Sealer) -> Result<String, StoreError> {
    let check = STANDARD.encode(sealer.seal(&bound("header"), CHECK)?);
    Ok(format!("{MAGIC} {VERSION} {check}\n"))
}

fn name(sealer: &Sealer, key: &SignInKey) -> String {
    let SignInKey { authority, client_id, user } = key;
    hex(&sealer.digest(&[b"sign-in", authority.as_bytes(), client_id.as_bytes(), user.as_bytes()]))
}

/// What a seal is bound to: its place in a file of this version.
fn bound(name: &str) -> Vec<u8> {
    format!("{MAGIC} {VERSION} {name}").into_bytes()
}

/// Temporary file, fsync, rename, fsync of the directory. Whatever fails, the old file stands. Gives the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<File> {
    let new = beside(path, "new");
    let written = write_new(&new, content).and_then(|file| std::fs::rename(&new, path).map(|()| file));
    let file = match written {
        Ok(file) => file,
        Err(why) => {
            // What is left of it would be removed at the next start anyway.
            drop(std::fs::remove_file(&new));
            return Err(why);
        }
    };
    // The new file stands. Some network file systems know no fsync of a directory.
    if let Err(why) = File::open(directory(path)).and_then(|directory| directory.sync_all()) {
        tracing::warn!(store = %path.display(), %why, "the token store's directory was not synced");
    }
    Ok(file)
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<File> {
    // It is our turn, so nobody else has one; a stale one would make `create_new` fail for ever.
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut file = private().create_new(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(file)
}

fn append(path: &Path, lines: &[Vec<u8>]) -> io::Result<()> {
    refuse_link(path)?;
    let mut file = private().create(true).append(true).open(path)?;
    for line in lines {
        file.write_all(line)?;
        file.write_all(b"\n")?;
    }
    file.sync_all()
}

/// For writing, and readable by nobody else where it is created.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Held by the proxy as long as it runs: two that renew the same sign-ins would not know of each other's turn.
fn lock(path: &Path) -> Result<File, StoreError> {
    let beside = beside(path, "lock");
    let file = lock_file(&beside)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.display().to_string())),
        Err(TryLockError::Error(why)) => Err(away(&beside, &why)),
    }
}

/// Held for one reading or writing. The system gives it back where its holder dies.
fn turn(path: &Path) -> Result<File, StoreError> {
    let beside = beside(path, "turn");
    let file = lock_file(&beside)?;
    for _ in 0..TURN_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(TURN_PAUSE),
            Err(TryLockError::Error(why)) => return Err(away(&beside, &why)),
        }
    }
    Err(StoreError::Away(format!("`{}`: another process does not end its turn", path.display())))
}

fn lock_file(path: &Path) -> Result<File, StoreError> {
    refuse_link(path)
        .and_then(|()| private().create(true).truncate(false).open(path))
        .map_err(|why| away(path, &why))
}

/// What stands beside the store is never followed elsewhere.
fn refuse_link(path: &Path) -> io::Result<()> {
    if path.is_symlink() {
        let why = format!("`{}` is a symbolic link", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(())
}

/// A regular file, ours, and nobody else's to read or write; `None` where there is none yet.
fn open_private(path: &Path) -> Result<Option<File>, StoreError> {
    let exposed = |why: String| StoreError::Exposed { path: path.display().to_string(), why };
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            probe(path)?;
            return Ok(None);
        }
        Err(why) => return Err(away(path, &why)),
    };
    if !found.is_file() {
        let kind = if found.is_symlink() { "a symbolic link" } else { "no regular file" };
        return Err(exposed(format!("it is {kind}")));
    }
    let file = File::open(path).map_err(|why| away(path, &why))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let opened = file.metadata().map_err(|why| away(path, &why))?;
        if (opened.dev(), opened.ino()) != (found.dev(), found.ino()) {
            return Err(exposed("it was replaced while it was opened".to_owned()));
        }
        if opened.mode() & 0o077 != 0 {
            return Err(exposed(format!("its mode is {:04o}, expected 0600", opened.mode() & 0o7777)));
        }
        let ours = probe(path)?.uid();
        if opened.uid() != ours {
            return Err(exposed(format!("it belongs to user {}, expected {ours}", opened.uid())));
        }
    }
    Ok(Some(file))
}

/// Makes a file beside the store and removes it: shows that the directory can be written now and not only when
/// a token is to be saved, and who we are, as a file that we make belongs to us.
fn probe(path: &Path) -> Result<std::fs::Metadata, StoreError> {
    let probe = beside(path, "new");
    write_new(&probe, b"")
        .and_then(|made| made.metadata())
        .and_then(|made| std::fs::remove_file(&probe).map(|()| made))
        .map_err(|why| away(path, &why))
}

fn read(path: &Path, file: &File) -> Result<Vec<u8>, StoreError> {
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|why| away(path, &why))?;
    if text.len() as u64 > MAX_FILE {
        let why = format!("it is larger than {} MiB", MAX_FILE >> 20);
        return Err(StoreError::Foreign { path: path.display().to_string(), why });
    }
    Ok(text)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn away(path: &Path, why: &io::Error) -> StoreError {
    StoreError::Away(format!("`{}`: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Grant;
    use crate::secret::Secret;
    use tempfile::TempDir;

    fn store_key() -> StoreKey {
        StoreKey::parse(&[7; 32]).unwrap()
    }

    fn place(dir: &TempDir) -> PathBuf {
        dir.path().join("tokens")
    }

    fn open(dir: &TempDir) -> Result<FileStore, StoreError> {
        FileStore::open(&place(dir), &store_key())
    }

    fn key(user: &str) -> SignInKey {
        SignInKey {
            authority: "https://login.microsoftonline.com/contoso.com".to_owned(),
            client_id: "app".to_owned(),
            user: user.to_owned(),
        }
    }

    fn stored(token: &str) -> StoredSignIn {
        StoredSignIn {
            grant: Grant::DeviceCode,
            refresh_token: Secret::new(token),
            signed_in_at: "2026-11-24T09:00:00Z".parse().unwrap(),
            renewed_at: "2026-11-24T10:00:00Z".parse().unwrap(),
        }
    }

    /// A store with the sign-ins of a, b and c, closed.
    async fn three() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).unwrap();
        for user in ["a", "b", "c"] {
            store.save_sign_in(&key(user), &stored(&format!("token of {user}"))).await.unwrap();
        }
        dir
    }

    async fn users(store: &FileStore) -> Vec<String> {
        store.sign_ins().await.unwrap().into_iter().map(|(key, _)| key.user).collect()
    }

    fn lines(dir: &TempDir) -> Vec<String> {
        std::fs::read_to_string(place(dir)).unwrap().lines().map(str::to_owned).collect()
    }

    fn overwrite(dir: &TempDir, content: impl AsRef<[u8]>) {
        std::fs::write(place(dir), content).unwrap();
    }

    #[tokio::test]
    async fn sign_ins_outlive_the_process() {
        let dir = three().await;
        let store = open(&dir).unwrap();
        assert_eq!(store.sign_in(&key("b")).await.unwrap(), Some(stored("token of b")));
        assert_eq!(store.sign_in(&key("d")).await.unwrap(), None);
        store.save_sign_in(&key("b"), &stored("rotated")).await.unwrap();
        assert!(store.remove_sign_in(&key("a")).await.unwrap());
        assert!(!store.remove_sign_in(&key("a")).await.unwrap());
        drop(store);
        let store = open(&dir).unwrap();
        assert_eq!(users(&store).await, ["b", "c"]);
        assert_eq!(store.sign_in(&key("b")).await.unwrap(), Some(stored("rotated")));
    }

    #[tokio::test]
    async fn the_file_shows_neither_users_nor_tokens() {
        let dir = three().await;
        let text = lines(&dir).join("\n");
        for clear in ["token of", "contoso", "login.microsoftonline.com", "device-code"] {
            assert!(!text.contains(clear), "{clear}");
        }
        assert!(text.starts_with("mailkey-tokens 1 "));
    }

    #[tokio::test]
    async fn a_broken_record_loses_itself_alone_and_is_kept_aside() {
        let dir = three().await;
        let mut all = lines(&dir);
        let victim = all[2].clone();
        let torn = victim.split_at(victim.len() - 9).0;
        all[2] = torn.to_owned();
        overwrite(&dir, all.join("\n") + "\n");
        let store = open(&dir).unwrap();
        assert_eq!(users(&store).await.len(), 2);
        let aside = std::fs::read_to_string(beside(&place(&dir), "broken")).unwrap();
        assert_eq!(aside.trim_end(), torn);
        drop(store);
        assert_eq!(lines(&dir).len(), 3, "the header and two records");
        drop(open(&dir).unwrap());
        assert_eq!(std::fs::read_to_string(beside(&place(&dir), "broken")).unwrap(), aside, "set aside once");
    }

    #[tokio::test]
    async fn octets_that_are_no_text_cost_their_line_only() {
        let dir = three().await;
        let mut octets = std::fs::read(place(&dir)).unwrap();
        let line_two = octets.iter().position(|&octet| octet == b'\n').unwrap() + 5;
        octets[line_two] = 0xff;
        overwrite(&dir, &octets);
        assert_eq!(users(&open(&dir).unwrap()).await.len(), 2);
        assert!(std::fs::read(beside(&place(&dir), "broken")).unwrap().contains(&0xff));
    }

    #[tokio::test]
    async fn a_broken_line_that_cannot_be_set_aside_stays_in_the_file() {
        let dir = three().await;
        overwrite(&dir, lines(&dir).join("\n") + "\njunk\n");
        std::fs::create_dir(beside(&place(&dir), "broken")).unwrap();
        let store = open(&dir).unwrap();
        store.save_sign_in(&key("d"), &stored("x")).await.unwrap();
        assert_eq!(lines(&dir).last().unwrap(), "junk");
        assert_eq!(users(&store).await, ["a", "b", "c", "d"]);
    }

    #[tokio::test]
    async fn a_record_does_not_open_under_anothers_name() {
        let dir = three().await;
        let mut all = lines(&dir);
        let (name, _) = all[1].split_once(' ').unwrap();
        let (_, sealed) = all[2].split_once(' ').unwrap();
        all[1] = format!("{name} {sealed}");
        overwrite(&dir, all.join("\n") + "\n");
        assert_eq!(users(&open(&dir).unwrap()).await.len(), 2);
    }

    #[tokio::test]
    async fn a_broken_header_does_not_cost_the_records() {
        let dir = three().await;
        let mut all = lines(&dir);
        all[0] = "mailkey-tok".to_owned();
        overwrite(&dir, all.join("\n") + "\n");
        assert_eq!(users(&open(&dir).unwrap()).await, ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn another_key_is_told_and_changes_nothing() {
        let dir = three().await;
        let before = std::fs::read(place(&dir)).unwrap();
        let other = StoreKey::parse(&[8; 32]).unwrap();
        assert!(matches!(FileStore::open(&place(&dir), &other), Err(StoreError::WrongKey(_))));
        assert_eq!(std::fs::read(place(&dir)).unwrap(), before);
        assert!(!beside(&place(&dir), "broken").exists());
        assert_eq!(users(&open(&dir).unwrap()).await, ["a", "b", "c"]);
    }

    #[tokio::test]
    async fn a_file_that_is_not_ours_is_left_alone() {
        let dir = three().await;
        for (content, expected) in [("root:x:0:0\n", "first line"), ("mailkey-tokens 2 x\n", "got `2`")] {
            overwrite(&dir, content);
            let Err(StoreError::Foreign { why, .. }) = open(&dir) else { panic!("{content}") };
            assert!(why.contains(expected), "{why}");
            assert_eq!(std::fs::read_to_string(place(&dir)).unwrap(), content);
        }
        overwrite(&dir, "");
        assert!(users(&open(&dir).unwrap()).await.is_empty());
    }

    #[tokio::test]
    async fn what_a_crash_left_is_removed_and_the_old_file_stands() {
        let dir = three().await;
        let whole = std::fs::read(place(&dir)).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len()] {
            std::fs::write(beside(&place(&dir), "new"), &whole[..length]).unwrap();
            let store = open(&dir).unwrap();
            assert_eq!(users(&store).await, ["a", "b", "c"]);
            assert!(!beside(&place(&dir), "new").exists());
        }
    }

    /// A file system that lost the end of the file: every length is survived, and only whole records are served.
    #[tokio::test]
    async fn a_file_cut_anywhere_never_gives_a_wrong_record() {
        let dir = three().await;
        let whole = std::fs::read(place(&dir)).unwrap();
        let ends: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] == b'\n').collect();
        for length in (0..whole.len()).step_by(13).chain(ends.iter().copied()) {
            overwrite(&dir, &whole[..length]);
            let records = ends.iter().skip(1).filter(|&&end| end <= length).count();
            match open(&dir) {
                Ok(store) => assert_eq!(users(&store).await.len(), records, "{length}"),
                Err(why) => {
                    assert!(matches!(why, StoreError::Foreign { .. } | StoreError::WrongKey(_)), "{why}");
                    assert!(length < ends[0], "cut at {length}: {why}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_second_proxy_is_kept_out() {
        let dir = three().await;
        let store = open(&dir).unwrap();
        assert!(matches!(open(&dir), Err(StoreError::Locked(_))));
        drop(store);
        assert!(open(&dir).is_ok());
    }

    #[tokio::test]
    async fn a_command_and_the_proxy_see_what_the_other_writes() {
        let dir = three().await;
        let proxy = open(&dir).unwrap();
        let command = FileStore::visit(&place(&dir), &store_key()).unwrap();
        command.save_sign_in(&key("d"), &stored("signed in")).await.unwrap();
        assert_eq!(proxy.sign_in(&key("d")).await.unwrap(), Some(stored("signed in")));
        assert!(proxy.renew_sign_in(&key("d"), &stored("signed in"), &stored("rotated")).await.unwrap());
        assert_eq!(command.sign_in(&key("d")).await.unwrap(), Some(stored("rotated")));
        assert!(command.remove_sign_in(&key("a")).await.unwrap());
        proxy.save_sign_in(&key("b"), &stored("new")).await.unwrap();
        assert_eq!(users(&proxy).await, ["b", "c", "d"], "the proxy's write brings nothing back");
        drop(proxy);
        assert_eq!(users(&open(&dir).unwrap()).await, ["b", "c", "d"]);
    }

    #[tokio::test]
    async fn a_renewal_does_not_undo_a_sign_out_or_a_new_sign_in() {
        let dir = three().await;
        let proxy = open(&dir).unwrap();
        let command = FileStore::visit(&place(&dir), &store_key()).unwrap();
        let before = proxy.sign_in(&key("a")).await.unwrap().unwrap();
        command.remove_sign_in(&key("a")).await.unwrap();
        assert!(!proxy.renew_sign_in(&key("a"), &before, &stored("rotated")).await.unwrap());
        assert_eq!(proxy.sign_in(&key("a")).await.unwrap(), None);
        let before = proxy.sign_in(&key("b")).await.unwrap().unwrap();
        command.save_sign_in(&key("b"), &stored("signed in anew")).await.unwrap();
        assert!(!proxy.renew_sign_in(&key("b"), &before, &stored("rotated")).await.unwrap());
        assert_eq!(proxy.sign_in(&key("b")).await.unwrap(), Some(stored("signed in anew")));
    }

    #[tokio::test]
    async fn a_file_that_was_removed_has_signed_everybody_out() {
        let dir = three().await;
        let store = open(&dir).unwrap();
        std::fs::remove_file(place(&dir)).unwrap();
        assert!(users(&store).await.is_empty());
        store.save_sign_in(&key("d"), &stored("x")).await.unwrap();
        assert_eq!(users(&store).await, ["d"]);
    }

    #[tokio::test]
    async fn a_file_that_was_replaced_by_junk_is_neither_served_nor_overwritten() {
        let dir = three().await;
        let store = open(&dir).unwrap();
        overwrite(&dir, "root:x:0:0\n");
        assert_eq!(users(&store).await, ["a", "b", "c"], "what was read before is as good as ever");
        assert!(matches!(store.save_sign_in(&key("d"), &stored("x")).await, Err(StoreError::Foreign { .. })));
        assert_eq!(std::fs::read_to_string(place(&dir)).unwrap(), "root:x:0:0\n");
    }

    #[tokio::test]
    async fn a_turn_that_does_not_end_is_not_waited_for_longer_than_a_login_waits() {
        let dir = three().await;
        let store = open(&dir).unwrap();
        let held = turn(&place(&dir)).unwrap();
        let (name, value) = (key("d"), stored("x"));
        let save = store.save_sign_in(&name, &value);
        let limit = crate::token::grant::STORE_LIMIT;
        let Ok(Err(StoreError::Away(why))) = tokio::time::timeout(limit, save).await else { panic!() };
        assert!(why.contains("turn"), "{why}");
        assert_eq!(users(&store).await, ["a", "b", "c"], "what has not changed is read without a turn");
        drop(held);
        store.save_sign_in(&key("d"), &stored("x")).await.unwrap();
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_file_that_others_could_read_is_refused() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
        let dir = three().await;
        assert_eq!(std::fs::metadata(place(&dir)).unwrap().mode() & 0o7777, 0o600);
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(place(&dir), std::fs::Permissions::from_mode(mode)).unwrap();
            let Err(StoreError::Exposed { why, .. }) = open(&dir) else { panic!("{mode:o}") };
            assert!(why.contains(&format!("{mode:04o}")), "{why}");
        }
        std::fs::set_permissions(place(&dir), std::fs::Permissions::from_mode(0o600)).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::rename(place(&dir), &elsewhere).unwrap();
        symlink(&elsewhere, place(&dir)).unwrap();
        let Err(StoreError::Exposed { why, .. }) = open(&dir) else { panic!("a link") };
        assert!(why.contains("symbolic link"), "{why}");
        std::fs::remove_file(place(&dir)).unwrap();
        std::fs::create_dir(place(&dir)).unwrap();
        assert!(matches!(open(&dir), Err(StoreError::Exposed { .. })));
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_is_told_at_the_start() {
        // Not even the superuser makes files there.
        for path in ["/proc/mailkey-tokens", "/nonexistent/tokens"] {
            assert!(
                matches!(FileStore::open(Path::new(path), &store_key()), Err(StoreError::Away(_))),
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_changes_neither_file_nor_memory() {
        let dir = three().await;
        let store = open(&dir).unwrap();
        let before = std::fs::read(place(&dir)).unwrap();
        // A directory in the way of the temporary file.
        std::fs::create_dir(beside(&place(&dir), "new")).unwrap();
        assert!(matches!(store.save_sign_in(&key("b"), &stored("x")).await, Err(StoreError::Away(_))));
        assert!(matches!(store.save_sign_in(&key("d"), &stored("x")).await, Err(StoreError::Away(_))));
        assert!(matches!(store.remove_sign_in(&key("a")).await, Err(StoreError::Away(_))));
        assert_eq!(users(&store).await, ["a", "b", "c"]);
        assert_eq!(store.sign_in(&key("b")).await.unwrap(), Some(stored("token of b")));
        assert_eq!(std::fs::read(place(&dir)).unwrap(), before);
        std::fs::remove_dir(beside(&place(&dir), "new")).unwrap();
        store.save_sign_in(&key("d"), &stored("x")).await.unwrap();
        assert_eq!(users(&store).await, ["a", "b", "c", "d"]);
    }

    #[tokio::test]
    async fn a_save_that_is_given_up_is_still_whole() {
        let dir = three().await;
        let store = open(&dir).unwrap();
        let (key, value) = (key("d"), stored("x"));
        for _ in 0..20 {
            let save = store.save_sign_in(&key, &value);
            drop(tokio::time::timeout(Duration::from_micros(50), save).await);
        }
        store.save_sign_in(&key, &value).await.unwrap();
        drop(store);
        // Writes that were given up may hold the lock for a moment longer.
        let reopened = loop {
            match open(&dir) {
                Err(StoreError::Locked(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                other => break other.unwrap(),
            }
        };
        assert_eq!(users(&reopened).await, ["a", "b", "c", "d"]);
    }
}
