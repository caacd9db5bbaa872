//! The stations of the pipe between a mail client and upstream.
//!
//! `listener` accepts, `session` tells the story of one connection, `drive` carries out what a dialogue
//! asks for, `relay` moves bytes once both dialogues are through. `turnstile` and `hold` have logins wait
//! where upstream would refuse them; `warm` has connections ready for those that come next.
//! `probe` signs in by the same dialogues, for `mailkey doctor`.

pub mod dialogue;
pub mod drive;
pub mod hold;
pub mod listener;
pub mod offer;
pub mod probe;
pub mod proxied;
pub mod quiet;
pub mod recorder;
pub mod relay;
pub mod sender;
pub mod session;
pub mod station;
pub mod tls;
pub mod turnstile;
pub mod verdict;
pub mod warm;
