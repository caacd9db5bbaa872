//! Mailboxes for which upstream asked for patience: their next logins are held back here, not sent there.
//!
//! By protocol, as Exchange Online counts: three SMTP connections too many are no reason to stop reading mail.

use std::borrow::Cow;
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use crate::clock;
use crate::config::model::Protocol;
use crate::explain::{Explanation, Fault, Passes, Refusal};

/// The longest hold, whatever upstream suggests.
pub const LONGEST: Duration = Duration::from_mins(5);

/// The hold where upstream names no time.
const USUAL: Duration = Duration::from_secs(5);

/// How many mailboxes may be held at once.
const MAX_HELD: usize = 10_000;

/// The codes of answers that mean this mailbox, and this moment.
const THROTTLED: [&str; 5] =
    ["IMAP-THROTTLED", "POP3-THROTTLED", "POP3-LOGIN-DELAY", "SMTP-432-4.3.2", "SMTP-421-4.4.2-RATE"];

/// Mailboxes that are held back, each until its time.
#[derive(Debug, Default)]
pub struct Holds {
    held: DashMap<(Protocol, String), Held>,
}

/// One mailbox' hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    until: Instant,
    /// What upstream's answer was explained with.
    code: Cow<'static, str>,
}

impl Holds {
    /// Holds the mailbox back if this is what upstream's answer asks for; for how long.
    pub fn heed(&self, protocol: Protocol, mailbox: &str, story: &Explanation) -> Option<Duration> {
        if !THROTTLED.contains(&story.code.as_ref()) {
            return None;
        }
        let wait = match story.passes {
            Passes::ByItself(Some(wait)) if !wait.is_zero() => wait.min(LONGEST),
            Passes::ByItself(_) | Passes::Never => USUAL,
        };
        let now = clock::now();
        if self.held.len() >= MAX_HELD {
            self.held.retain(|_, held| held.until > now);
            if self.held.len() >= MAX_HELD {
                return None;
            }
        }
        let until = now + wait;
        let mut held = self
            .held
            .entry((protocol, mailbox.to_lowercase()))
            .or_insert_with(|| Held { until, code: story.code.clone() });
        if held.until < until {
            *held = Held { until, code: story.code.clone() };
        }
        Some(wait)
    }

    /// How the mailbox is held back now, if it is.
    pub fn on(&self, protocol: Protocol, mailbox: &str) -> Option<Held> {
        let key = (protocol, mailbox.to_lowercase());
        let held = self.held.get(&key).map(|held| held.clone())?;
        if held.until > clock::now() {
            return Some(held);
        }
        self.held.remove_if(&key, |_, held| held.until <= clock::now());
        None
    }
}

impl Held {
    /// How long it lasts yet.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(clock::now())
    }

    /// For a login that cannot wait for its end.
    pub fn explain(&self, mailbox: &str) -> Explanation {
        let left = self.left().max(Duration::from_secs(1));
        Explanation {
            code: "MAILBOX-HELD".into(),
            fault: Fault::MailClient,
            what: format!(
                "upstream asked for patience with `{mailbox}` ({}): its logins are held back for {} s more",
                self.code,
                left.as_secs()
            ),
            remedy: "wait; if it comes back, let the application open fewer sessions and ask less often"
                .to_owned(),
            passes: Passes::ByItself(Some(left)),
            refusal: Refusal::Unavailable { retry_after: Some(left) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(code: &'static str, passes: Passes) -> Explanation {
        Explanation {
            code: code.into(),
            fault: Fault::MailClient,
            what: String::new(),
            remedy: String::new(),
            passes,
            refusal: Refusal::TooManySessions,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_lasts_as_long_as_upstream_said() {
        let holds = Holds::default();
        let minute = Duration::from_mins(1);
        let told = story("IMAP-THROTTLED", Passes::ByItself(Some(minute)));
        assert_eq!(holds.heed(Protocol::Imap, "Alice@x", &told), Some(minute));
        assert_eq!(holds.on(Protocol::Imap, "alice@x").unwrap().left(), minute);
        assert_eq!(holds.on(Protocol::Smtp, "alice@x"), None);
        assert_eq!(holds.on(Protocol::Imap, "bob@x"), None);
        tokio::time::advance(minute).await;
        assert_eq!(holds.on(Protocol::Imap, "alice@x"), None);
        assert!(holds.held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_hold_is_longer_than_five_minutes_and_a_later_one_shortens_none() {
        let holds = Holds::default();
        let hour = story("IMAP-THROTTLED", Passes::ByItself(Some(Duration::from_hours(1))));
        assert_eq!(holds.heed(Protocol::Imap, "a@x", &hour), Some(LONGEST));
        let unnamed = story("IMAP-THROTTLED", Passes::ByItself(None));
        assert_eq!(holds.heed(Protocol::Imap, "a@x", &unnamed), Some(USUAL));
        assert_eq!(holds.on(Protocol::Imap, "a@x").unwrap().left(), LONGEST);
    }

    #[tokio::test]
    async fn what_is_no_matter_of_the_mailbox_holds_nobody() {
        let holds = Holds::default();
        let down = story("SMTP-421-4.3.2", Passes::ByItself(Some(Duration::from_mins(1))));
        assert_eq!(holds.heed(Protocol::Smtp, "a@x", &down), None);
        assert_eq!(holds.on(Protocol::Smtp, "a@x"), None);
    }
}
