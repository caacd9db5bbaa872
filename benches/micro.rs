//! Small pieces by themselves: parsers, fronts, a hit in the broker's cache, the watcher of message ends, the relay. Time
//! and allocations of each.
//!
//! ```text
//! cargo bench --bench micro                 all
//! cargo bench --bench micro -- broker       those with this in their name
//! ```
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark that cannot go on ends"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher, black_box};
use mailkey::config;
use mailkey::config::model::{Account, Config, Protocol};
use mailkey::protocol::imap::front::ImapFront;
use mailkey::protocol::imap::grammar as imap;
use mailkey::protocol::machine::{Front, FrontSettings, Login, Offer, Step};
use mailkey::protocol::pop3::front::Pop3Front;
use mailkey::protocol::pop3::grammar as pop3;
use mailkey::protocol::smtp::boundary::Boundary;
use mailkey::protocol::smtp::front::SmtpFront;
use mailkey::protocol::smtp::grammar as smtp;
use mailkey::secret::{Credentials, Secret};
use mailkey::serve::relay::{self, Rules};
use mailkey::token::answer::{Body, RawAnswer};
use mailkey::token::broker::{Broker, BrokerSettings};
use mailkey::token::endpoint::{Ask, Endpoint, Wire, WireFuture};
use mailkey::token::managed::ManagedIdentity;
use mailkey::token::request::{Origin, TokenRequest};
use mailkey::token::store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const USER: &str = "alice@contoso.com";
const PASSWORD: &str = "correct-horse-battery";

mod parsers {
    use super::{Bencher, black_box, imap, pop3, smtp};

    #[divan::bench]
    fn imap_login_line(bencher: Bencher<'_, '_>) {
        bencher.bench(|| imap::command(black_box(b"LOGIN alice@contoso.com correct-horse-battery")).is_ok());
    }

    #[divan::bench]
    fn imap_capability_line(bencher: Bencher<'_, '_>) {
        let line =
            b"* CAPABILITY IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS ID UNSELECT CHILDREN IDLE";
        bencher.bench(|| imap::response(black_box(line)).is_ok());
    }

    #[divan::bench]
    fn pop3_command(bencher: Bencher<'_, '_>) {
        bencher.bench(|| black_box(pop3::command(black_box(b"PASS correct-horse-battery"))));
    }

    #[divan::bench]
    fn smtp_command(bencher: Bencher<'_, '_>) {
        bencher.bench(|| black_box(smtp::command(black_box(b"MAIL FROM:<alice@contoso.com> SIZE=1024"))));
    }

    #[divan::bench]
    fn smtp_reply_line(bencher: Bencher<'_, '_>) {
        bencher.bench(|| smtp::reply_line(black_box(b"250-ENHANCEDSTATUSCODES")).is_some());
    }
}

fn front_settings() -> FrontSettings {
    FrontSettings {
        starttls: false,
        require_tls: false,
        offer: Arc::new(Offer(vec!["IDLE".to_owned(), "UIDPLUS".to_owned(), "LITERAL+".to_owned()])),
        host_name: "mail.contoso.com".to_owned(),
        max_refusals: 3,
        without_login: None,
    }
}

/// A whole dialogue from the greeting to the granted login; the octets that were written.
fn talk(mut front: impl Front, lines: &[&[u8]]) -> usize {
    let mut written = 0;
    let mut lines = lines.iter();
    loop {
        match front.step() {
            Step::Write(bytes) => written += bytes.len(),
            Step::Read => match lines.next() {
                Some(line) => front.feed(line),
                None => return written,
            },
            Step::Done(Login { credentials, .. }) => {
                assert_eq!(credentials.user, USER);
                front.grant(None);
            }
            Step::StartTls | Step::Close(_) => panic!("the dialogue took another turn"),
        }
        if written > 0 && lines.len() == 0 {
            // the answer to the login has been asked for by `grant`
            while let Step::Write(bytes) = front.step() {
                written += bytes.len();
            }
        }
    }
}

mod fronts {
    use super::{Bencher, ImapFront, Pop3Front, SmtpFront, front_settings, talk};

    #[divan::bench]
    fn imap_login(bencher: Bencher<'_, '_>) {
        let settings = front_settings();
        let lines: [&[u8]; 1] = [b"a LOGIN alice@contoso.com correct-horse-battery\r\n"];
        bencher.bench(|| talk(ImapFront::new(settings.clone()), &lines));
    }

    #[divan::bench]
    fn pop3_login(bencher: Bencher<'_, '_>) {
        let settings = front_settings();
        let lines: [&[u8]; 2] = [b"USER alice@contoso.com\r\n", b"PASS correct-horse-battery\r\n"];
        bencher.bench(|| talk(Pop3Front::new(settings.clone()), &lines));
    }

    #[divan::bench]
    fn smtp_login(bencher: Bencher<'_, '_>) {
        let settings = front_settings();
        let lines: [&[u8]; 2] = [
            b"EHLO client.contoso.com\r\n",
            b"AUTH PLAIN AGFsaWNlQGNvbnRvc28uY29tAGNvcnJlY3QtaG9yc2UtYmF0dGVyeQ==\r\n",
        ];
        bencher.bench(|| talk(SmtpFront::new(settings.clone()), &lines));
    }
}

/// An identity provider that always gives the same token.
#[derive(Debug)]
struct Generous;

impl Wire for Generous {
    fn send<'a>(&'a self, _: &'a Ask) -> WireFuture<'a> {
        let body = format!("{{\"access_token\":\"{}\",\"expires_in\":3599}}", "t".repeat(1600));
        let body = Body(Zeroizing::new(body.into_bytes()));
        Box::pin(async { Ok(RawAnswer { status: 200, body, ..RawAnswer::default() }) })
    }
}

fn configuration(accounts: &str) -> Config {
    let text = format!(
        "oauth: {{client-id: 11111111-2222-3333-4444-555555555555}}\n\
         listeners:\n  - {{name: imap, protocol: imap, listen: '127.0.0.1:1143'}}\n{accounts}"
    );
    config::parse(&text, "proxy.yaml", Path::new("."), &|_| None).unwrap().config
}

/// A broker that has the user's token.
fn broker(
    runtime: &Runtime,
    config: &Config,
    account: &Arc<Account>,
    credentials: &Credentials,
) -> Arc<Broker> {
    let settings = BrokerSettings {
        tokens: config.tokens.clone(),
        guard: config.guard.clone(),
        managed_identity: ManagedIdentity::default(),
    };
    runtime.block_on(async {
        let store = store::open(&config.tokens).unwrap();
        let broker = Broker::new(settings, Endpoint::over(Arc::new(Generous)), store, Arc::default());
        broker.token(&request(account, credentials)).await.unwrap();
        broker
    })
}

fn request<'a>(account: &'a Arc<Account>, credentials: &'a Credentials) -> TokenRequest<'a> {
    TokenRequest {
        account,
        protocol: Protocol::Imap,
        credentials,
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        deadline: tokio::time::Instant::now() + Duration::from_secs(30),
    }
}

mod token {
    use super::{
        Bencher, Context, Credentials, Origin, PASSWORD, Poll, Runtime, Secret, USER, Waker, black_box,
        broker, configuration, pin, request,
    };

    /// The token is there and the password is the one that it was given for.
    #[divan::bench]
    fn broker_hit(bencher: Bencher<'_, '_>) {
        let runtime = Runtime::new().unwrap();
        let config = configuration("");
        let account = config.listeners[0].account(USER).unwrap();
        let credentials = Credentials { user: USER.to_owned(), password: Secret::new(PASSWORD) };
        let broker = broker(&runtime, &config, account, &credentials);
        let request = request(account, &credentials);
        bencher.bench(|| {
            let asked = pin!(broker.token(&request));
            // a hit waits for nothing
            let Poll::Ready(granted) = asked.poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("a hit that waits")
            };
            assert_eq!(granted.as_ref().unwrap().origin, Origin::Cached);
            granted
        });
    }

    /// The last of so many entries of `accounts`.
    #[divan::bench(args = [1, 100, 1000])]
    fn account_of_a_user(bencher: Bencher<'_, '_>, count: usize) {
        let accounts = (1..=count).fold("accounts:\n".to_owned(), |text, number| {
            format!("{text}  - {{user: 'user{number}@contoso.com'}}\n")
        });
        let config = configuration(&accounts);
        let last = format!("user{count}@contoso.com");
        bencher.bench(|| config.listeners[0].account(black_box(&last)).is_some());
    }
}

/// A message of one MiB by SMTP, with its envelope, as the watcher sees it.
#[divan::bench(args = [1500, 16 * 1024, 64 * 1024])]
fn boundary(bencher: Bencher<'_, '_>, slice: usize) {
    let line = [&[b'x'; 76][..], b"\r\n"].concat();
    let message = line.repeat((1 << 20) / line.len());
    bencher.counter(BytesCount::new(message.len())).bench(|| {
        let mut boundary = Boundary::new();
        for (said, reply) in [
            (&b"MAIL FROM:<alice@contoso.com>\r\n"[..], &b"250 2.1.0 OK\r\n"[..]),
            (b"RCPT TO:<bob@contoso.com>\r\n", b"250 2.1.5 OK\r\n"),
            (b"DATA\r\n", b"354 go on\r\n"),
        ] {
            boundary.from_front(said);
            boundary.from_back(reply);
        }
        for part in message.chunks(slice) {
            boundary.from_front(part);
        }
        boundary.from_front(b".\r\n");
        boundary.from_back(b"250 2.0.0 OK\r\n");
        assert!(boundary.between_messages() && boundary.messages() == 1);
    });
}

/// So many octets from upstream to the mail client, over pipes in memory.
#[divan::bench(args = [1 << 10, 1 << 20, 8 << 20])]
fn relay_down(bencher: Bencher<'_, '_>, octets: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let payload = vec![b'x'; octets];
    bencher.counter(BytesCount::new(octets)).bench(|| {
        runtime.block_on(async {
            let (client, front) = duplex(64 * 1024);
            let (back, server) = duplex(64 * 1024);
            let rules = Rules {
                idle: Duration::from_secs(60),
                end_at: None,
                draining: CancellationToken::new(),
                watch: None,
                pass: None,
            };
            let relay = relay::relay(Box::new(front), Box::new(back), rules);
            let (mut client, mut server) = (client, server);
            let serve = async {
                server.write_all(&payload).await.unwrap();
                drop(server);
            };
            let take = async {
                let mut chunk = vec![0; 64 * 1024];
                let mut taken = 0;
                loop {
                    match client.read(&mut chunk).await.unwrap() {
                        0 => break taken,
                        length => taken += length,
                    }
                }
            };
            let (ended, (), taken) = tokio::join!(relay, serve, take);
            assert_eq!((taken, ended.down), (octets, octets as u64));
        });
    });
}
