//! How the octets of a fuzzer become a conversation: settings, then what a peer sends, with orders in between.
//!
//! ```text
//! settings (a few octets) · octets · 0xFF order · octets · 0xFF order · …
//! ```
//! An order is one letter behind the octet 0xFF, which stands in no text; `0xFF 0xFF` is that octet itself. So a
//! transcript is nearly its own seed, and a fuzzer that flips an octet does not move the meaning of all others.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

/// A password that cannot be mistaken for anything else.
pub const PASSWORD: &str = "Marker-Of-A-Password-7731";

/// The user name of the credentials that orders put in.
pub const USER: &str = "alice@contoso.com";

/// Introduces an order.
const ORDER: u8 = 0xff;

/// Something that happens in a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The peer sends this.
    Octets(Vec<u8>),
    /// Something else happens; the letter says what.
    Order(u8),
}

/// A whole conversation.
#[derive(Clone, Debug)]
pub struct Script<const SETTINGS: usize> {
    /// The first octets; zero where there are none.
    pub settings: [u8; SETTINGS],
    /// What happens, in order.
    pub pieces: Vec<Piece>,
}

impl<const SETTINGS: usize> Script<SETTINGS> {
    /// Reads any octets; there are none that are no script. Orders that only stand for octets are carried out.
    pub fn read(data: &[u8]) -> Self {
        let mut settings = [0; SETTINGS];
        let count = data.len().min(SETTINGS);
        settings[..count].copy_from_slice(&data[..count]);
        let (mut pieces, mut octets) = (Vec::new(), Vec::new());
        let mut rest = data[count..].iter();
        while let Some(&octet) = rest.next() {
            if octet != ORDER {
                octets.push(octet);
                continue;
            }
            let Some(&order) = rest.next() else { break };
            if let Some(stands_for) = stands_for(order) {
                octets.extend(stands_for);
                continue;
            }
            if !octets.is_empty() {
                pieces.push(Piece::Octets(std::mem::take(&mut octets)));
            }
            pieces.push(Piece::Order(order));
        }
        if !octets.is_empty() {
            pieces.push(Piece::Octets(octets));
        }
        Self { settings, pieces }
    }
}

/// The octets of an order that is only short for them.
fn stands_for(order: u8) -> Option<Vec<u8>> {
    match order {
        ORDER => Some(vec![ORDER]),
        b'P' => Some(PASSWORD.as_bytes().to_vec()),
        b'M' => Some(STANDARD.encode(PASSWORD).into_bytes()),
        b'U' => Some(STANDARD.encode(USER).into_bytes()),
        b'B' => Some(STANDARD.encode(format!("\0{USER}\0{PASSWORD}")).into_bytes()),
        b'L' => Some(format!("{{{}}}", PASSWORD.len()).into_bytes()),
        b'K' => Some(format!("{{{}+}}", PASSWORD.len()).into_bytes()),
        b'N' => Some(b"\r\n".to_vec()),
        b'x' => Some(vec![b'x'; 250]),
        b'y' => Some(vec![b'y'; 1_100]),
        b'z' => Some(vec![b'z'; 12_300]),
        _ => None,
    }
}

/// The octets in slices; `pattern` says how long they are: one length for the odd ones, one for the even.
pub fn slices(octets: &[u8], pattern: u8) -> Vec<&[u8]> {
    cut(octets, &[usize::from(pattern % 16) + 1, usize::from(pattern / 16) + 1])
}

/// The octets in slices of these lengths, over and over; none is 0.
pub fn cut<'a>(octets: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let (mut left, mut slices) = (octets, Vec::new());
    for length in lengths.iter().cycle() {
        if left.is_empty() {
            break;
        }
        let (slice, rest) = left.split_at((*length).min(left.len()));
        slices.push(slice);
        left = rest;
    }
    slices
}

/// Decodes base64 as liberally as anybody would who looks for a secret in it.
pub fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(text).ok()
}

/// Whether the text holds the secret: as it is, or in base64 wherever it stands in what was encoded.
pub fn holds(text: &[u8], secret: &str) -> bool {
    let finds = |wanted: &[u8]| text.windows(wanted.len()).any(|window| window == wanted);
    let aligned = |before: usize| {
        let encoded = STANDARD.encode([vec![0; before], secret.as_bytes().to_vec()].concat());
        // the first and last characters hang on what stands beside the secret
        let from = (before * 4).div_ceil(3);
        let to = (before + secret.len()) * 4 / 3;
        encoded.as_bytes()[from..to].to_vec()
    };
    finds(secret.as_bytes()) || (0..3).any(|before| finds(&aligned(before)))
}

/// Whether the text may stand in one line of a log: printable ASCII, no longer than `max`.
pub fn is_one_line(text: &str, max: usize) -> bool {
    text.len() <= max && text.bytes().all(|octet| octet == b' ' || octet.is_ascii_graphic())
}

impl<const SETTINGS: usize> Script<SETTINGS> {
    /// The octets alone, where orders mean nothing.
    pub fn octets(&self) -> Vec<u8> {
        let octets = |piece: &Piece| match piece {
            Piece::Octets(octets) => octets.clone(),
            Piece::Order(_) => Vec::new(),
        };
        self.pieces.iter().flat_map(octets).collect()
    }
}
