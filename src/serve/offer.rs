//! What a mail client is promised beyond sign-in, before it has signed in.
//!
//! Two lists count: the one that upstream tells everybody, and the one that it tells somebody who has signed in
//! (IMAP alone). Shown is the first one, without what the second one lacked for anybody: a client that does not
//! ask again after its login must not have been promised what is not there. What upstream adds after a login
//! stays out: it may be there for one mailbox only, and the client reads it in the answer to its login, or asks.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::config::model::Protocol;
use crate::protocol::machine::Offer;

/// How long what upstream told everybody counts.
const GOOD_FOR: Duration = Duration::from_hours(1);

/// After an attempt to ask, the next one waits this long.
const RETRY: Duration = Duration::from_mins(1);

/// The list that is shown, and what it follows from.
#[derive(Debug)]
pub struct Shown {
    protocol: Protocol,
    offer: ArcSwap<Offer>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// What everybody is told.
    everybody: Offer,
    /// What was lacking after a login since then, in upper case.
    lacking: BTreeSet<String>,
    learned_at: Option<Instant>,
    asked_at: Option<Instant>,
    failing: bool,
}

impl Shown {
    /// What is promised before upstream has told.
    pub fn new(protocol: Protocol) -> Self {
        let everybody = exchange_online(protocol);
        Self {
            protocol,
            offer: ArcSwap::from_pointee(everybody.clone()),
            known: Mutex::new(Known {
                everybody,
                lacking: BTreeSet::new(),
                learned_at: None,
                asked_at: None,
                failing: false,
            }),
        }
    }

    /// The list as it is shown now.
    pub fn load(&self) -> Arc<Offer> {
        self.offer.load_full()
    }

    /// Whether upstream should be asked now. A yes is given once; the next one comes after a while.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = known.learned_at.is_none_or(|at| at + GOOD_FOR <= now);
        let due = stale && known.asked_at.is_none_or(|at| at + RETRY <= now);
        if due {
            known.asked_at = Some(now);
        }
        due
    }

    /// Upstream did not tell. `true`: for the first time since it did.
    pub fn is_news_that_it_fails(&self) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut known.failing, true)
    }

    /// What upstream tells everybody.
    pub fn learned(&self, offer: Offer, now: Instant) {
        self.change(|known| {
            known.everybody = offer;
            known.lacking.clear();
            known.learned_at = Some(now);
            known.failing = false;
            true
        });
    }

    /// What upstream told during a sign-in.
    pub fn signed_in(&self, offer: &Offer) {
        match self.protocol {
            // SMTP's list comes before AUTH: it is everybody's.
            Protocol::Smtp => self.change(|known| {
                let is_news = known.everybody != *offer;
                if is_news {
                    known.everybody = offer.clone();
                }
                is_news
            }),
            Protocol::Imap | Protocol::Pop3 | Protocol::Ews | Protocol::ActiveSync => self.change(|known| {
                let there = |word: &String| offer.0.iter().any(|there| there.eq_ignore_ascii_case(word));
                let lacking = known.everybody.0.iter().filter(|word| !there(word) && !is_the_protocol(word));
                let before = known.lacking.len();
                known.lacking.extend(lacking.map(|word| word.to_ascii_uppercase()));
                known.lacking.len() > before
            }),
        }
    }

    /// `change` says whether it changed anything: mostly it does not, and there is nothing to be done.
    fn change(&self, change: impl FnOnce(&mut Known) -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut known) {
            return;
        }
        let words =
            known.everybody.0.iter().filter(|word| !known.lacking.contains(&word.to_ascii_uppercase()));
        let offer = Offer(words.cloned().collect());
        if **self.offer.load() != offer {
            tracing::debug!(protocol = %self.protocol, ?offer, "what is offered before the login");
            self.offer.store(Arc::new(offer));
        }
    }
}

/// `IMAP4rev1` and its like are what is spoken, not an extra.
fn is_the_protocol(word: &str) -> bool {
    word.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("IMAP4"))
}

/// What Exchange Online has offered for years; replaced by what upstream says as soon as it has been asked.
fn exchange_online(protocol: Protocol) -> Offer {
    let words: &[&str] = match protocol {
        Protocol::Imap => &[
            "IMAP4",
            "IMAP4rev1",
            "UIDPLUS",
            "MOVE",
            "ID",
            "UNSELECT",
            "CHILDREN",
            "IDLE",
            "NAMESPACE",
            "LITERAL+",
        ],
        Protocol::Pop3 => &["TOP", "UIDL"],
        Protocol::Smtp => &[
            "SIZE 157286400",
            "PIPELINING",
            "DSN",
            "ENHANCEDSTATUSCODES",
            "8BITMIME",
            "BINARYMIME",
            "CHUNKING",
            "SMTPUTF8",
        ],
        Protocol::Ews | Protocol::ActiveSync => &[],
    };
    Offer(words.iter().map(|&word| word.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn offer(words: &str) -> Offer {
        Offer(words.split(' ').map(str::to_owned).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn upstream_is_asked_at_once_then_hourly_and_after_a_failure_each_minute() {
        let shown = Shown::new(Protocol::Imap);
        assert!(shown.is_due(clock::now()) && !shown.is_due(clock::now()));
        tokio::time::advance(RETRY).await;
        assert!(shown.is_due(clock::now()), "nothing has been learned yet");
        shown.learned(offer("IMAP4rev1 IDLE"), clock::now());
        tokio::time::advance(Duration::from_secs(3599)).await;
        assert!(!shown.is_due(clock::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(shown.is_due(clock::now()) && !shown.is_due(clock::now()));
        assert!(shown.is_news_that_it_fails() && !shown.is_news_that_it_fails());
        assert_eq!(*shown.load(), offer("IMAP4rev1 IDLE"));
    }

    #[test]
    fn trap_04_what_one_mailbox_lacks_is_promised_to_nobody_and_what_one_has_more_neither() {
        let (shown, now) = (Shown::new(Protocol::Imap), clock::now());
        shown.learned(offer("IMAP4 IMAP4rev1 IDLE MOVE"), now);
        shown.signed_in(&offer("IMAP4rev1 idle ENABLE NOTIFY"));
        assert_eq!(*shown.load(), offer("IMAP4 IMAP4rev1 IDLE"));
        shown.signed_in(&offer("IMAP4rev1 IDLE MOVE"));
        assert_eq!(*shown.load(), offer("IMAP4 IMAP4rev1 IDLE"), "it is still lacking for the first one");
        shown.learned(offer("IMAP4rev1 MOVE"), now);
        assert_eq!(*shown.load(), offer("IMAP4rev1 MOVE"), "a new list is a new start");
    }

    #[test]
    fn what_smtp_says_before_auth_is_everybodys() {
        let shown = Shown::new(Protocol::Smtp);
        shown.signed_in(&offer("8BITMIME DSN"));
        assert_eq!(*shown.load(), offer("8BITMIME DSN"));
    }
}
