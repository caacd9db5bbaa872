//! How many sessions (IMAP, POP3, SMTP) and requests (EWS) a user has under way: one more than allowed is
//! told so, and everybody else goes on.

use std::sync::Arc;

use dashmap::DashMap;

/// Counts sessions and requests by mailbox. Clones share the count.
#[derive(Clone, Debug)]
pub struct Seats {
    taken: Arc<DashMap<String, usize>>,
    most: usize,
}

impl Seats {
    /// At most this many for each mailbox.
    pub fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// The same count with another bound; who sits stays.
    #[must_use]
    pub fn allowing(&self, most: usize) -> Self {
        Self { taken: Arc::clone(&self.taken), most }
    }

    /// How many seats are taken, all mailboxes together.
    pub fn taken(&self) -> usize {
        self.taken.iter().map(|entry| *entry.value()).sum()
    }

    /// A seat for as long as it is held; `None`: all are taken.
    pub fn take(&self, mailbox: &str) -> Option<Seat> {
        let mailbox = mailbox.to_lowercase();
        let mut taken = self.taken.entry(mailbox.clone()).or_insert(0);
        if *taken >= self.most {
            return None;
        }
        *taken += 1;
        drop(taken);
        Some(Seat { seats: self.clone(), mailbox })
    }
}

/// One session's seat; free again when it is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    mailbox: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(mut taken) = self.seats.taken.get_mut(&self.mailbox) {
            *taken = taken.saturating_sub(1);
        }
        self.seats.taken.remove_if(&self.mailbox, |_, taken| *taken == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_free_again_once_it_is_left() {
        let seats = Seats::new(2);
        let (one, two) = (seats.take("a@x").unwrap(), seats.take("A@x").unwrap());
        assert!(seats.take("a@x").is_none());
        assert!(seats.take("b@x").is_some());
        drop(one);
        assert!(seats.take("a@x").is_some());
        drop(two);
        assert!(seats.taken.is_empty());
    }
}
