//! The watcher of message boundaries (`src/protocol/smtp/boundary.rs`), against a session followed by the book
//! ([`smtp_reference`](super::smtp_reference)): whatever both sides say, in every slicing, both know the same.
//!
//! Orders: `c` what follows is from the client, which begins · `s` what follows is from upstream.

use mailkey::protocol::smtp::Boundary;

use super::script::{Piece, Script, slices};
use super::smtp_reference::{Known, Reference};

/// A command line that is longer is only kept in part.
const KEPT_LINE: usize = 512;

/// The body.
pub fn run(data: &[u8]) {
    let script: Script<1> = Script::read(data);
    let (mut whole, mut cut, mut stepwise) = (Boundary::new(), Boundary::new(), Boundary::new());
    let mut reference = Reference::default();
    let mut is_client = true;
    let mut sent = Vec::new();
    for piece in &script.pieces {
        let octets = match piece {
            Piece::Octets(octets) => octets,
            Piece::Order(order) => {
                is_client = *order != b's';
                continue;
            }
        };
        if is_client {
            sent.extend_from_slice(octets);
            whole.from_front(octets);
            for slice in slices(octets, script.settings[0]) {
                cut.from_front(slice);
            }
            one_kind_at_a_time(&mut stepwise, octets);
            reference.client_sends(octets);
        } else {
            whole.from_back(octets);
            for slice in slices(octets, script.settings[0]) {
                cut.from_back(slice);
            }
            stepwise.from_back(octets);
            reference.server_sends(octets);
        }
        let expected = reference.known();
        let long = sent.split(|octet| *octet == b'\n').any(|line| line.len() > KEPT_LINE);
        for boundary in [&whole, &cut, &stepwise] {
            compare(boundary, &expected, long);
        }
    }
}

/// As the station that changes senders goes through it.
fn one_kind_at_a_time(boundary: &mut Boundary, octets: &[u8]) {
    let mut left = octets;
    while !left.is_empty() && !boundary.lost_track() {
        let behind = boundary.take_from_front(left);
        assert!(behind < left.len() || boundary.lost_track(), "nothing was taken");
        left = &left[left.len() - behind.min(left.len())..];
    }
}

fn compare(boundary: &Boundary, expected: &Known, long: bool) {
    assert!(!boundary.lost_track() || !boundary.between_messages(), "lost, and yet between messages");
    // a BDAT or a sender that does not fit into what is kept
    if long && boundary.lost_track() != expected.confused {
        assert!(boundary.lost_track(), "sure where nobody can be");
        return;
    }
    assert_eq!(boundary.lost_track(), expected.confused, "{expected:?}");
    assert_eq!(boundary.messages(), expected.messages);
    if expected.confused {
        return;
    }
    assert_eq!(boundary.between_messages(), expected.between, "{expected:?}");
    let envelope = boundary.envelope().map(|known| (known.sender.clone(), known.recipients));
    if long {
        assert_eq!(envelope.is_some(), expected.envelope.is_some());
    } else {
        assert_eq!(envelope, expected.envelope);
    }
}
