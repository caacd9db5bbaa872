//! Mailkey: a local authenticating mail proxy. This file is the map; it defines nothing.
//!
//! ```text
//!  mail client                                                                    Office 365
//!  (IMAP · POP3 · SMTP · EWS, plain password)                     (XOAUTH2 / Authorization: Bearer)
//!      │   serve::listener    accept, limits, TLS / STARTTLS                          ▲
//!      ▼                                                                              │
//!  protocol::*::front ──Credentials──► token ──AccessToken──► upstream ──► protocol::*::back
//!      ▲  (ews: HTTP Basic in)        (broker)               (dial, CONNECT, TLS)     │
//!      │                                  │ asks, through the outbound proxy          │
//!      │                                  ▼                                           │
//!      │                  login.microsoftonline.com (Microsoft Entra ID)              │
//!      └───────────────────────────── serve::relay ◄──────────────────────────────────┘
//! ```
//!
//! # Invariants
//!
//! 1. `protocol` performs no I/O, reads no clock, logs nothing, and gives the same steps for every slicing of
//!    its input.
//! 2. A mail client never reads an administrator's text: one typed refusal, worded once per protocol.
//! 3. A token is written only past an [`Encrypted`](secret::Encrypted) proof: it cannot reach a plain socket.
//! 4. What was buffered when STARTTLS was asked for is discarded, on both sides; it is never parsed later.
//! 5. Every buffer has a bound, every wait has a time limit.
//! 6. Logins alone have upstream dialled: for a session once credentials are known and a token is in hand, ahead
//!    of the next one only at the rate of logins that upstream took. Whoever merely connects costs it nothing.
//! 7. A wrong password never reaches a cached token, and never evicts one.
//! 8. Where the identity provider does not check the client's password, the proxy checks one of its own, or
//!    refuses to start.
//! 9. After the login the relay is byte-exact, left-over input of both dialogues first.
//! 10. The password is never stored, never logged, never sent anywhere but to the identity provider.
//! 11. A session never ends inside a message because of us: not by token expiry, not by a stop within its grace.
//! 12. One failing session, listener, account or upstream takes nothing else down.
//!
//! `tests/house.rs` checks which module may use which.

// in the order of the flow
pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod ews;
pub mod live;
pub mod protocol;
pub mod serve;
pub mod token;
pub mod upstream;
pub mod way;
// leaves
pub mod certificate;
pub mod clock;
pub mod explain;
pub mod seats;
pub mod secret;
pub mod stream;
pub mod task;
pub mod telemetry;
// Office 365 in a box, for the demo and the tests
pub mod simulator;
