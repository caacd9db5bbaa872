//! The stores against the real thing: a Redis server that is killed and restarted, a process that is killed
//! while it writes, a disk that is full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail loudly")]
#![allow(clippy::print_stdout, reason = "a test's second process reports to the first")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use mailkey::config::model::Grant;
use mailkey::secret::Secret;
use mailkey::token::store::file::FileStore;
use mailkey::token::store::key::StoreKey;
use mailkey::token::store::{SignInKey, Store, StoreError, StoredSignIn};
use tempfile::TempDir;

fn store_key() -> StoreKey {
    StoreKey::parse(&[7; 32]).unwrap()
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
        signed_in_at: Timestamp::UNIX_EPOCH,
        renewed_at: Timestamp::UNIX_EPOCH,
    }
}

#[cfg(feature = "redis")]
pub mod redis {
    use super::*;
    use jiff::SignedDuration;
    use mailkey::clock;
    use mailkey::config::model::{KeySource, Tokens};
    use mailkey::secret::AccessToken;
    use mailkey::token::store::{SharedToken, open};
    use std::io::Write as _;
    use std::net::TcpStream;

    use crate::ports::free_port;

    fn shared(token: &str, life: Duration) -> SharedToken {
        let life = SignedDuration::try_from(life).unwrap();
        SharedToken { token: AccessToken::new(token), expires_at: clock::wall() + life }
    }

    /// Waits for something that another process does.
    async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        for _ in 0..200 {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what} within ten seconds");
    }

    /// A server without persistence, on a port that was free.
    pub struct Server {
        port: u16,
        child: Option<Child>,
        options: Vec<String>,
    }

    impl Server {
        pub async fn start(options: &[&str]) -> Self {
            let port = free_port();
            let options = options.iter().map(ToString::to_string).collect();
            let mut server = Self { port, child: None, options };
            server.begin().await;
            server
        }

        pub async fn begin(&mut self) {
            let child = Command::new("redis-server")
                .args([
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    &self.port.to_string(),
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .args(&self.options)
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is needed for this test (Debian package redis-server)");
            self.child = Some(child);
            let port = self.port;
            eventually("the server answers", async || TcpStream::connect(("127.0.0.1", port)).ok()).await;
        }

        pub fn kill(&mut self) {
            if let Some(mut child) = self.child.take() {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }

        pub fn signal(&self, signal: &str) {
            let id = self.child.as_ref().unwrap().id().to_string();
            assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        }

        pub fn url(&self) -> String {
            format!("redis://127.0.0.1:{}/", self.port)
        }

        fn store(&self) -> std::sync::Arc<dyn Store> {
            store_at(&self.url(), [7; 32])
        }

        /// One command by hand; the first line of the answer.
        pub fn raw(&self, command: &str) -> String {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            write!(stream, "{command}\r\n").unwrap();
            let mut lines = BufReader::new(stream).lines();
            let mut line = lines.next().unwrap().unwrap();
            if line.starts_with('$') && line != "$-1" {
                line = lines.next().unwrap().unwrap();
            }
            if let Some(count) = line.strip_prefix('*') {
                let count: usize = count.parse().unwrap();
                line = lines.take(2 * count).map(Result::unwrap).collect::<Vec<_>>().join(" ");
            }
            line
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.kill();
        }
    }

    fn store_at(url: &str, key: [u8; 32]) -> std::sync::Arc<dyn Store> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, key).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        open(&Tokens {
            store: mailkey::config::model::Store::Redis(url.parse().unwrap()),
            key: Some(KeySource::File(path)),
            refresh_margin: Duration::from_mins(10),
            extra_roots_file: None,
        })
        .unwrap()
    }

    #[tokio::test]
    async fn two_replicas_share_sign_ins() {
        let server = Server::start(&[]).await;
        let (one, two) = (server.store(), server.store());
        assert_eq!(one.sign_in(&key("a")).await.unwrap(), None);
        one.save_sign_in(&key("a"), &stored("first")).await.unwrap();
        one.save_sign_in(&key("a"), &stored("rotated")).await.unwrap();
        two.save_sign_in(&key("b"), &stored("b's")).await.unwrap();
        assert_eq!(two.sign_in(&key("a")).await.unwrap(), Some(stored("rotated")));
        let users: Vec<_> = one.sign_ins().await.unwrap().into_iter().map(|(key, _)| key.user).collect();
        assert_eq!(users, ["a", "b"]);
        assert!(two.remove_sign_in(&key("a")).await.unwrap());
        assert!(!one.remove_sign_in(&key("a")).await.unwrap());
        assert_eq!(one.sign_in(&key("a")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_shared_token_vanishes_when_it_expires_or_is_dropped() {
        let server = Server::start(&[]).await;
        let (one, two) = (server.store(), server.store());
        let name = one.digest(&[b"alice", b"scope"]);
        assert_eq!(name, two.digest(&[b"alice", b"scope"]));
        let token = shared("eyJ0", Duration::from_mins(1));
        one.share_token(&name, &token).await.unwrap();
        assert_eq!(two.shared_token(&name).await.unwrap(), Some(token));
        two.unshare_token(&name).await.unwrap();
        assert_eq!(one.shared_token(&name).await.unwrap(), None);
        one.share_token(&name, &shared("short", Duration::from_millis(300))).await.unwrap();
        assert!(two.shared_token(&name).await.unwrap().is_some());
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(server.raw("DBSIZE"), ":0", "Redis itself has let it go");
        let past =
            SharedToken { expires_at: clock::wall() - SignedDuration::from_secs(1), ..shared("x", REST) };
        one.share_token(&name, &past).await.unwrap();
        assert_eq!(server.raw("DBSIZE"), ":0", "what has expired is not shared");
    }

    #[tokio::test]
    async fn one_replica_holds_the_lease_until_it_gives_it_back_or_the_time_is_over() {
        let server = Server::start(&[]).await;
        let (one, two) = (server.store(), server.store());
        let name = one.digest(&[b"alice"]);
        let (long, short) = (Duration::from_secs(30), Duration::from_millis(200));
        let held = one.lease(&name, long).await.unwrap().unwrap();
        assert_eq!(two.lease(&name, long).await.unwrap(), None);
        assert!(two.lease(&two.digest(&[b"bob"]), long).await.unwrap().is_some());
        one.give_back(&held).await.unwrap();
        let expiring = two.lease(&name, short).await.unwrap().unwrap();
        assert_ne!(expiring.fence, held.fence);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let next = one.lease(&name, long).await.unwrap().unwrap();
        // The one whose time was over gives back nothing of the next one's.
        two.give_back(&expiring).await.unwrap();
        assert_eq!(two.lease(&name, long).await.unwrap(), None);
        one.give_back(&next).await.unwrap();
        assert!(two.lease(&name, long).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_renewal_does_not_undo_a_sign_out_or_a_new_sign_in() {
        let server = Server::start(&[]).await;
        let (one, two) = (server.store(), server.store());
        one.save_sign_in(&key("a"), &stored("old")).await.unwrap();
        assert!(one.renew_sign_in(&key("a"), &stored("old"), &stored("new")).await.unwrap());
        assert!(!two.renew_sign_in(&key("a"), &stored("old"), &stored("other")).await.unwrap());
        assert_eq!(two.sign_in(&key("a")).await.unwrap(), Some(stored("new")));
        two.remove_sign_in(&key("a")).await.unwrap();
        assert!(!one.renew_sign_in(&key("a"), &stored("new"), &stored("newer")).await.unwrap());
        assert_eq!(one.sign_in(&key("a")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn wrong_passwords_are_counted_over_all_replicas_within_the_window() {
        let server = Server::start(&[]).await;
        let (one, two) = (server.store(), server.store());
        let (user, bob) = (one.digest(&[b"alice"]), one.digest(&[b"bob"]));
        let window = Duration::from_millis(700);
        let password = |text: &str| one.digest(&[text.as_bytes()]);
        let count = async |store: &dyn Store, user, text: &str| {
            store.count_wrong_password(user, &password(text), window).await.unwrap()
        };
        assert_eq!(count(&*one, &user, "a").await, Some(1));
        assert_eq!(count(&*two, &user, "a").await, Some(1), "the same password again is no further one");
        assert_eq!(count(&*two, &user, "b").await, Some(2));
        assert_eq!(count(&*one, &bob, "a").await, Some(1));
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert_eq!(server.raw("DBSIZE"), ":0", "counts go with their window");
        assert_eq!(count(&*one, &user, "c").await, Some(1));
    }

    #[tokio::test]
    async fn logins_go_on_while_redis_is_away_and_it_is_found_again() {
        let mut server = Server::start(&[]).await;
        let store = server.store();
        store.save_sign_in(&key("a"), &stored("x")).await.unwrap();
        server.kill();
        let name = store.digest(&[b"alice"]);
        let began = clock::now();
        assert!(matches!(store.sign_in(&key("a")).await, Err(StoreError::Away(_))));
        assert!(matches!(store.lease(&name, REST).await, Err(StoreError::Away(_))));
        assert!(matches!(store.shared_token(&name).await, Err(StoreError::Away(_))));
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        server.begin().await;
        eventually("the store finds the server again", async || store.sign_in(&key("a")).await.ok()).await;
        store.save_sign_in(&key("a"), &stored("y")).await.unwrap();
        assert_eq!(store.sign_in(&key("a")).await.unwrap(), Some(stored("y")));
    }

    #[tokio::test]
    async fn a_server_that_hangs_costs_two_seconds_once() {
        let server = Server::start(&[]).await;
        let store = server.store();
        store.save_sign_in(&key("a"), &stored("x")).await.unwrap();
        server.signal("-STOP");
        let began = clock::now();
        assert!(matches!(store.sign_in(&key("a")).await, Err(StoreError::Away(_))));
        let first = began.elapsed();
        assert!(first < Duration::from_millis(2600), "{first:?}");
        let began = clock::now();
        for _ in 0..20 {
            assert!(matches!(store.sign_in(&key("a")).await, Err(StoreError::Away(_))));
        }
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        server.signal("-CONT");
        eventually("the store finds the server again", async || {
            store.sign_in(&key("a")).await.ok().flatten()
        })
        .await;
    }

    #[tokio::test]
    async fn the_start_needs_no_redis() {
        let port = free_port();
        let store = store_at(&format!("redis://127.0.0.1:{port}/"), [7; 32]);
        assert!(matches!(store.sign_ins().await, Err(StoreError::Away(_))));
        let mut server = Server { port, child: None, options: Vec::new() };
        server.begin().await;
        eventually("the store finds the server", async || store.sign_ins().await.ok()).await;
    }

    #[tokio::test]
    async fn junk_and_values_of_another_key_count_as_not_there() {
        let server = Server::start(&[]).await;
        let store = server.store();
        let name = store.digest(&[b"alice"]);
        store.save_sign_in(&key("a"), &stored("x")).await.unwrap();
        store.share_token(&name, &shared("eyJ0", Duration::from_mins(1))).await.unwrap();
        let hex: String = mailkey::token::digest::hex(&name);
        assert_eq!(server.raw(&format!("SET mailkey:1:token:{hex} junk")), "+OK");
        assert_eq!(store.shared_token(&name).await.unwrap(), None);
        let names = server.raw("HKEYS mailkey:1:sign-ins");
        let field = names.split(' ').next_back().unwrap().to_owned();
        server.raw("HSET mailkey:1:sign-ins other junk");
        assert_eq!(store.sign_ins().await.unwrap().len(), 1);
        server.raw(&format!("HSET mailkey:1:sign-ins {field} junk"));
        assert_eq!(store.sign_in(&key("a")).await.unwrap(), None);
        assert!(matches!(store.sign_ins().await, Err(StoreError::WrongKey(_))));
        // A value of the wrong kind is an error of that command alone.
        server.raw("SET mailkey:1:sign-ins text");
        assert!(matches!(store.sign_in(&key("a")).await, Err(StoreError::Away(_))));
        server.raw("DEL mailkey:1:sign-ins");
        assert_eq!(store.sign_in(&key("a")).await.unwrap(), None);
        store.save_sign_in(&key("a"), &stored("x")).await.unwrap();
        let other = store_at(&server.url(), [8; 32]);
        assert_eq!(other.sign_in(&key("a")).await.unwrap(), None);
        assert!(matches!(other.sign_ins().await, Err(StoreError::WrongKey(_))));
    }

    #[tokio::test]
    async fn redis_sees_neither_users_nor_tokens() {
        let server = Server::start(&["--rdbcompression", "no"]).await;
        let store = server.store();
        store.save_sign_in(&key("alice"), &stored("refresh-token")).await.unwrap();
        let name = store.digest(&[b"alice"]);
        store.share_token(&name, &shared("access-token", Duration::from_mins(1))).await.unwrap();
        store.count_wrong_password(&name, &store.digest(&[b"hunter2"]), REST).await.unwrap().unwrap();
        // Everything that is in there, as one text.
        let script = "local all = {} for _, k in ipairs(redis.call('KEYS','*')) do local d = redis.call('DUMP', k) \
                      all[#all+1] = k .. d end return #all .. table.concat(all):gsub('[^%w%p ]', '?')";
        let dump = server.raw(&format!("EVAL \"{script}\" 0"));
        assert!(dump.starts_with('3'), "{dump}");
        for clear in ["alice", "refresh-token", "access-token", "hunter2", "contoso"] {
            assert!(!dump.contains(clear), "{clear} in {dump}");
        }
    }

    #[tokio::test]
    async fn user_and_password_of_the_url_are_used() {
        let server = Server::start(&["--requirepass", "secret"]).await;
        let url = |auth: &str| format!("redis://{auth}127.0.0.1:{}/2", server.port);
        assert!(store_at(&url(""), [7; 32]).sign_ins().await.is_err());
        assert!(store_at(&url("default:wrong@"), [7; 32]).sign_ins().await.is_err());
        let store = store_at(&url("default:secret@"), [7; 32]);
        store.save_sign_in(&key("a"), &stored("x")).await.unwrap();
        assert_eq!(store.sign_in(&key("a")).await.unwrap(), Some(stored("x")));
    }

    #[tokio::test]
    async fn tls_is_checked_against_the_roots() {
        use mailkey::token::store::redis::RedisStore;
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("openssl")
            .args(
                "req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 2 -subj /CN=localhost"
                    .split(' '),
            )
            .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let plain = free_port();
        let server = Server::start(&[
            "--tls-port",
            &plain.to_string(),
            "--tls-cert-file",
            &file("cert"),
            "--tls-key-file",
            &file("key"),
            "--tls-auth-clients",
            "no",
        ])
        .await;
        let connect = |host: &str, roots: Option<Vec<u8>>| {
            let url = format!("rediss://{host}:{plain}/").parse().unwrap();
            RedisStore::connect(&url, &store_key(), roots).unwrap()
        };
        let roots = mailkey::token::store::redis::roots_with(Path::new(&file("cert"))).unwrap();
        let good = connect("localhost", Some(roots.clone()));
        good.save_sign_in(&key("a"), &stored("x")).await.unwrap();
        assert_eq!(good.sign_in(&key("a")).await.unwrap(), Some(stored("x")));
        assert!(connect("localhost", None).sign_ins().await.is_err(), "the platform does not know the root");
        assert!(connect("127.0.0.1", Some(roots)).sign_ins().await.is_err(), "the name is checked");
        drop(server);
    }

    const REST: Duration = Duration::from_mins(1);
}

mod file {
    use super::*;

    /// Set in the second process of a test: what that one does, and where.
    const ROLE: &str = "MAILKEY_TEST_STORE_ROLE";
    const PLACE: &str = "MAILKEY_TEST_STORE_PLACE";

    /// This test again in a process of its own, by way of `shell`, which ends in `"$@"`.
    fn another_process(test: &str, role: &str, place: &Path, shell: &str) -> Child {
        Command::new("sh")
            .args(["-c", shell, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, role)
            .env(PLACE, place)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn in_role(role: &str) -> Option<std::path::PathBuf> {
        (std::env::var(ROLE).ok()? == role).then(|| std::env::var_os(PLACE).unwrap().into())
    }

    /// Stores that one process writes at once: a kill of it is a kill inside a write of nearly each.
    const STORES: usize = 10;

    /// Users of a store, whose tokens are written in turn.
    const USERS: u64 = 5;

    fn numbered(place: &Path, number: usize) -> std::path::PathBuf {
        place.join(format!("tokens{number}"))
    }

    /// Writes as fast as it can, and says what is written; goes on where the process before was killed.
    async fn write_on(place: std::path::PathBuf, number: usize) {
        let store = FileStore::open(&numbered(&place, number), &store_key()).unwrap();
        let all = store.sign_ins().await.unwrap();
        let start = all.iter().map(|(_, it)| it.refresh_token.expose().parse::<u64>().unwrap() + 1).max();
        for round in start.unwrap_or_default().. {
            let user = key(&format!("user {}", round % USERS));
            store.save_sign_in(&user, &stored(&round.to_string())).await.unwrap();
            println!("\nwrote {number} {round}");
        }
    }

    /// What is in a store that a kill has left: of each user the last round that was his, and nothing else.
    async fn is_whole(path: &Path, told: u64) -> u64 {
        let store = FileStore::open(path, &store_key()).unwrap();
        let all = store.sign_ins().await.unwrap();
        let mut found: Vec<(String, u64)> = all
            .iter()
            .map(|(key, it)| (key.user.clone(), it.refresh_token.expose().parse().unwrap()))
            .collect();
        let newest = found.iter().map(|(_, round)| *round).max().unwrap();
        assert!(newest == told || newest == told + 1, "{told} was acknowledged, {newest} is there");
        let first = (newest + 1).saturating_sub(USERS);
        let mut expected: Vec<(String, u64)> =
            (first..=newest).map(|round| (format!("user {}", round % USERS), round)).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert!(!path.with_extension("broken").exists());
        newest
    }

    /// A hundred kills of ten stores each.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_killed_a_thousand_times_while_it_writes_never_tears_or_loses_a_record() {
        const NAME: &str =
            "store::file::a_process_killed_a_thousand_times_while_it_writes_never_tears_or_loses_a_record";
        if let Some(place) = in_role("writer") {
            let mut writers = tokio::task::JoinSet::new();
            for number in 0..STORES {
                writers.spawn(write_on(place.clone(), number));
            }
            while writers.join_next().await.is_some() {}
        }
        let dir = TempDir::new().unwrap();
        let mut last: Vec<Option<u64>> = vec![None; STORES];
        let mut kills = 0;
        for life in 0..100_u64 {
            let mut child = another_process(NAME, "writer", dir.path(), r#"exec "$@""#);
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut told: Vec<Option<u64>> = vec![None; STORES];
            let mut read = |line: String| {
                if let Some((number, round)) = line.strip_prefix("wrote ").and_then(|it| it.split_once(' ')) {
                    told[number.parse::<usize>().unwrap()] = Some(round.parse().unwrap());
                }
                told.iter().all(Option::is_some)
            };
            // every store has written in this life
            assert!(lines.by_ref().map_while(Result::ok).any(&mut read), "life {life}: the writer ended");
            std::thread::sleep(Duration::from_micros(life * 37 % 2000));
            child.kill().unwrap();
            child.wait().unwrap();
            lines.map_while(Result::ok).for_each(|line| {
                read(line);
            });
            for (number, (told, last)) in told.into_iter().zip(&mut last).enumerate() {
                assert!(told > *last, "life {life}, store {number}: {told:?} after {last:?}");
                *last = Some(is_whole(&numbered(dir.path(), number), told.unwrap()).await);
                kills += 1;
            }
        }
        assert_eq!(kills, 1000);
    }

    /// A file system of 64 KiB, which only the second process sees.
    #[tokio::test]
    async fn a_disk_without_room_or_without_leave_to_write_keeps_what_it_has() {
        if let Some(place) = in_role("tiny") {
            let folder = place.parent().unwrap();
            let store = FileStore::open(&place, &store_key()).unwrap();
            store.save_sign_in(&key("a"), &stored("old")).await.unwrap();
            let remount = |how: &str| {
                let options = format!("remount,{how},size=64k");
                assert!(Command::new("mount").args(["-o", &options]).arg(folder).status().unwrap().success());
            };
            let is_kept = async |when: &str| {
                assert!(store.save_sign_in(&key("a"), &stored("new")).await.is_err(), "{when}: it was taken");
                assert_eq!(store.sign_in(&key("a")).await.unwrap(), Some(stored("old")), "{when}");
                assert_eq!(store.sign_ins().await.unwrap().len(), 1, "{when}");
            };
            // the last octet is taken by somebody else
            let junk = folder.join("junk");
            assert!(std::fs::write(&junk, vec![b'x'; 128 << 10]).is_err(), "the disk is too large");
            is_kept("full").await;
            std::fs::remove_file(&junk).unwrap();
            store.save_sign_in(&key("b"), &stored("room again")).await.unwrap();
            store.remove_sign_in(&key("b")).await.unwrap();
            drop(store);
            remount("ro");
            assert!(FileStore::open(&place, &store_key()).is_err(), "what cannot be written is no store");
            remount("rw");
            let store = FileStore::open(&place, &store_key()).unwrap();
            assert_eq!(store.sign_in(&key("a")).await.unwrap(), Some(stored("old")));
            store.save_sign_in(&key("a"), &stored("new")).await.unwrap();
            println!("\nas it should be");
            return;
        }
        let dir = TempDir::new().unwrap();
        let name = "store::file::a_disk_without_room_or_without_leave_to_write_keeps_what_it_has";
        let inside = r#"mount -t tmpfs -o size=64k none "${MAILKEY_TEST_STORE_PLACE%/*}" && exec "$@""#;
        let shell = format!("exec unshare -m --propagation private sh -c '{inside}' sh \"$@\"");
        let child = another_process(name, "tiny", &dir.path().join("tokens"), &shell);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("as it should be"), "{text}");
    }

    /// A limit on the size of files stands for a full disk: the write fails in its middle.
    #[tokio::test]
    async fn a_full_disk_leaves_the_old_file() {
        if let Some(place) = in_role("full") {
            let store = FileStore::open(&place, &store_key()).unwrap();
            let (before, large) = (std::fs::read(&place).unwrap(), stored(&"x".repeat(100_000)));
            assert!(matches!(store.save_sign_in(&key("b"), &large).await, Err(StoreError::Away(_))));
            assert_eq!(std::fs::read(&place).unwrap(), before, "the old file stands");
            assert_eq!(store.sign_in(&key("b")).await.unwrap(), None);
            store.save_sign_in(&key("c"), &stored("small again")).await.unwrap();
            println!("\nas it should be");
            return;
        }
        let dir = TempDir::new().unwrap();
        let place = dir.path().join("tokens");
        let store = FileStore::open(&place, &store_key()).unwrap();
        store.save_sign_in(&key("a"), &stored("old")).await.unwrap();
        drop(store);
        let name = "store::file::a_full_disk_leaves_the_old_file";
        let child = another_process(name, "full", &place, r#"trap "" XFSZ; ulimit -f 40; exec "$@""#);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("as it should be"), "{text}");
        let store = FileStore::open(&place, &store_key()).unwrap();
        assert_eq!(store.sign_in(&key("a")).await.unwrap(), Some(stored("old")));
        assert_eq!(store.sign_in(&key("c")).await.unwrap(), Some(stored("small again")));
        assert_eq!(store.sign_ins().await.unwrap().len(), 2);
        assert!(!dir.path().join("tokens.new").exists());
    }

    /// Four processes, each of which reads, changes and writes the whole file again and again.
    #[tokio::test]
    async fn processes_that_write_at_once_lose_nothing_of_each_other() {
        if let Some(place) = in_role("guest") {
            let store = FileStore::visit(&place, &store_key()).unwrap();
            for round in 0..15 {
                let mine = key(&format!("{} {round}", std::process::id()));
                store.save_sign_in(&mine, &stored("x")).await.unwrap();
            }
            return;
        }
        let dir = TempDir::new().unwrap();
        let place = dir.path().join("tokens");
        let proxy = FileStore::open(&place, &store_key()).unwrap();
        let name = "store::file::processes_that_write_at_once_lose_nothing_of_each_other";
        let guests: Vec<Child> =
            (0..3).map(|_| another_process(name, "guest", &place, r#"exec "$@""#)).collect();
        for round in 0..15 {
            proxy.save_sign_in(&key(&format!("proxy {round}")), &stored("x")).await.unwrap();
        }
        for guest in guests {
            let output = guest.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        assert_eq!(proxy.sign_ins().await.unwrap().len(), 4 * 15);
        drop(proxy);
        let store = FileStore::open(&place, &store_key()).unwrap();
        assert_eq!(store.sign_ins().await.unwrap().len(), 4 * 15);
    }

    #[tokio::test]
    async fn a_second_process_is_told_that_the_store_is_in_use() {
        if let Some(place) = in_role("second") {
            assert!(matches!(FileStore::open(&place, &store_key()), Err(StoreError::Locked(_))));
            assert!(FileStore::visit(&place, &store_key()).is_ok());
            println!("\nlocked");
            return;
        }
        let dir = TempDir::new().unwrap();
        let place = dir.path().join("tokens");
        let store = FileStore::open(&place, &store_key()).unwrap();
        let name = "store::file::a_second_process_is_told_that_the_store_is_in_use";
        let output = another_process(name, "second", &place, r#"exec "$@""#).wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("locked"), "{text}");
        drop(store);
    }
}
