//! What a simulator is started with.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::tenant::{App, Directory, Grantable, User};

/// The password user of [`Settings::default`].
pub const ALICE: (&str, &str) = ("alice@contoso.com", "Wonder land:1");
/// A second one.
pub const BOB: (&str, &str) = ("bob@contoso.com", "Builder+2%");
/// A shared mailbox: nobody signs in as it; Alice has Full Access and may send as it.
pub const SUPPORT: &str = "support@contoso.com";
/// The directory (tenant) id of contoso.com.
pub const DIRECTORY_ID: &str = "66666666-7777-8888-9999-000000000000";
/// A public client with all delegated mail permissions, consented.
pub const PUBLIC_CLIENT_ID: &str = "11111111-2222-3333-4444-555555555555";
/// A confidential client with all application mail permissions, consented, with Full Access to Alice's mailbox and to [`SUPPORT`].
pub const CONFIDENTIAL_CLIENT_ID: &str = "22222222-3333-4444-5555-666666666666";
/// Its secret: with characters that a form must percent-encode.
pub const CONFIDENTIAL_CLIENT_SECRET: &str = "Xy8Q~a+b/c=d%e";

/// Everything that is fixed when the simulator starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address that every service listens on.
    pub address: IpAddr,
    /// Ports; 0 lets the system choose.
    pub ports: Ports,
    /// Directories (tenants) at the start.
    pub directories: Vec<Directory>,
    /// Users and shared mailboxes at the start.
    pub users: Vec<User>,
    /// Applications at the start.
    pub apps: Vec<App>,
    /// (delegate, mailbox): the delegate is a user name or an application's client id.
    pub full_access: Vec<(String, String)>,
    /// (delegate, mailbox) that the delegate may send as.
    pub send_as: Vec<(String, String)>,
    /// Lifetime of access tokens; `None`: random, 60 to 90 minutes, as Entra's.
    pub token_lifetime: Option<Duration>,
    /// Least length of an access token in octets; `None`: 1.5 to 2.5 KB at random.
    pub token_size: Option<usize>,
    /// Greeting and capabilities of IMAP and POP3.
    pub edition: Edition,
    /// IMAP and POP3 announce estimated sizes, as Exchange Online does unless told otherwise.
    pub estimated_sizes: bool,
    /// Tokens over this many octets break POP3, as they do since July 2025.
    pub pop3_token_limit: Option<usize>,
    /// SMTP sessions per mailbox at once.
    pub smtp_sessions_per_mailbox: usize,
    /// Identical token requests within five minutes until AADSTS50196, and HTTP 429 for client credentials.
    pub loop_limit: usize,
    /// Distinct wrong passwords until smart lock-out.
    pub lockout_threshold: u32,
    /// The first lock-out; each further one is twice as long.
    pub lockout: Duration,
    /// Seconds between two polls of the device code flow.
    pub device_interval: u32,
    /// How long a mail session may idle, before and after its login.
    pub idle: Duration,
    /// The largest message.
    pub message_limit: usize,
    /// Sessions at once, over all services.
    pub sessions: usize,
    /// Events that the journal keeps; older ones go first.
    pub journal: usize,
}

/// A port for each service; 0 lets the system choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// HTTPS identity provider.
    pub authority: u16,
    /// IMAP over TLS.
    pub imap: u16,
    /// IMAP with STARTTLS.
    pub imap_starttls: u16,
    /// POP3 over TLS.
    pub pop3: u16,
    /// POP3 with STLS.
    pub pop3_starttls: u16,
    /// SMTP submission with STARTTLS.
    pub smtp: u16,
    /// SMTP submission over TLS (Office 365 has none; tests want one).
    pub smtp_implicit: u16,
    /// HTTPS for EWS.
    pub ews: u16,
}

/// Which year's Exchange Online greets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    /// AUTH=PLAIN still listed, greeting with a base64 host name.
    Classic,
    /// The tcpproxy front end of 2026: LOGINDISABLED, no AUTH=PLAIN.
    TcpProxy,
}

impl Default for Settings {
    fn default() -> Self {
        let alice = || ALICE.0.to_owned();
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ports: Ports::default(),
            directories: vec![Directory::new(DIRECTORY_ID, &["contoso.com", "contoso.onmicrosoft.com"])],
            users: vec![User::new(ALICE.0, ALICE.1), User::new(BOB.0, BOB.1), User::shared(SUPPORT)],
            apps: vec![
                App::public(PUBLIC_CLIENT_ID).delegated(Grantable::ALL_DELEGATED),
                App::confidential(CONFIDENTIAL_CLIENT_ID, CONFIDENTIAL_CLIENT_SECRET)
                    .delegated(Grantable::ALL_DELEGATED)
                    .application(Grantable::ALL_APPLICATION),
            ],
            full_access: vec![
                (alice(), SUPPORT.to_owned()),
                (CONFIDENTIAL_CLIENT_ID.to_owned(), alice()),
                (CONFIDENTIAL_CLIENT_ID.to_owned(), SUPPORT.to_owned()),
            ],
            send_as: vec![(alice(), SUPPORT.to_owned())],
            token_lifetime: None,
            token_size: None,
            edition: Edition::Classic,
            estimated_sizes: true,
            pop3_token_limit: None,
            smtp_sessions_per_mailbox: 3,
            loop_limit: 15,
            lockout_threshold: 10,
            lockout: Duration::from_mins(1),
            device_interval: 5,
            idle: Duration::from_mins(30),
            message_limit: 150 * 1024 * 1024,
            sessions: 20_000,
            journal: 100_000,
        }
    }
}
