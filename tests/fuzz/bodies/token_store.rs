//! The token store's file (`src/token/store/file.rs`): whatever stands in it is refused, or served as far as it is
//! ours. Nothing is made up, a sound record is not lost for a broken one, and opening it twice says the same.
//!
//! Orders: `H` a sound header · `1` `2` `3` a sound record · `F` the header of another key · `R` a record of another
//! key · octets stand for themselves, so that what is sound can be cut, joined and preceded by anything.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::OnceLock;

use mailkey::config::model::Grant;
use mailkey::secret::Secret;
use mailkey::token::store::file::FileStore;
use mailkey::token::store::key::StoreKey;
use mailkey::token::store::{SignInKey, Store as _, StoreError, StoredSignIn};
use tokio::runtime::Runtime;

use super::script::{Piece, Script};

/// What sound files of three sign-ins and another key's file are made of.
struct Sound {
    lines: Vec<Vec<u8>>,
    foreign: Vec<Vec<u8>>,
}

/// The body.
pub fn run(data: &[u8]) {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    let runtime = runtime();
    let sound = SOUND.get_or_init(|| Sound {
        lines: written(&runtime, &key(7), &[1, 2, 3]),
        foreign: written(&runtime, &key(8), &[1]),
    });
    let script: Script<0> = Script::read(data);
    let mut text = Vec::new();
    for piece in &script.pieces {
        match piece {
            Piece::Octets(octets) => text.extend_from_slice(octets),
            Piece::Order(b'H') => text.extend_from_slice(&sound.lines[0]),
            Piece::Order(order @ b'1'..=b'3') => {
                text.extend_from_slice(&sound.lines[usize::from(order - b'0')]);
            }
            Piece::Order(b'F') => text.extend_from_slice(&sound.foreign[0]),
            Piece::Order(b'R') => text.extend_from_slice(&sound.foreign[1]),
            Piece::Order(_) => {}
        }
    }
    let lines: Vec<&[u8]> = text.split(|octet| *octet == b'\n').filter(|line| !line.is_empty()).collect();
    // the header is the first line, and no record
    let records = lines.get(1..).unwrap_or_default();
    let expected: Vec<u8> = (1..=3)
        .filter(|number| records.contains(&sound.lines[usize::from(*number)].trim_ascii_end()))
        .collect();
    let has_header = lines.first().is_some_and(|line| *line == sound.lines[0].trim_ascii_end());

    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let path = directory.path().join("tokens");
    fs::write(&path, &text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    match FileStore::visit(&path, &key(7)) {
        Ok(store) => {
            assert!(
                has_header || text.is_empty() || lines.is_empty() || !expected.is_empty(),
                "a foreign file is taken"
            );
            assert_eq!(held(&runtime, &store), expected, "not what stands in it");
            drop(store);
            let again = FileStore::visit(&path, &key(7)).expect("taken once only");
            assert_eq!(held(&runtime, &again), expected, "something was lost");
            let broken = fs::read(directory.path().join("tokens.broken")).unwrap_or_default();
            let kept = |line: &&[u8]| {
                broken.split(|octet| *octet == b'\n').any(|other| other == *line)
                    || sound.lines.iter().any(|sound| sound.trim_ascii_end() == *line)
            };
            assert!(records.iter().all(kept), "a broken line is gone");
        }
        Err(why) => {
            assert!(expected.is_empty(), "sound records are refused: {why}");
            assert!(!has_header, "a sound file is refused: {why}");
            assert!(matches!(why, StoreError::Foreign { .. } | StoreError::WrongKey(_)), "{why:?}");
            let told = why.to_string();
            assert!(!told.chars().any(char::is_control) && told.len() < 400, "{told:?}");
            assert_eq!(fs::read(&path).unwrap(), text, "a refused file was changed");
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// In memory, where there is such a place: every run writes and syncs a few files.
fn scratch() -> std::path::PathBuf {
    let shared = std::path::Path::new("/dev/shm");
    if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() }
}

fn key(octet: u8) -> StoreKey {
    StoreKey::parse(&[octet; 32]).unwrap()
}

fn sign_in(number: u8) -> (SignInKey, StoredSignIn) {
    let key = SignInKey {
        authority: "https://login.microsoftonline.com/contoso.com".to_owned(),
        client_id: "app".to_owned(),
        user: format!("user{number}@contoso.com"),
    };
    let at = jiff::Timestamp::from_second(1_790_000_000).unwrap();
    let stored = StoredSignIn {
        grant: Grant::DeviceCode,
        refresh_token: Secret::new(format!("refresh-{number}")),
        signed_in_at: at,
        renewed_at: at,
    };
    (key, stored)
}

/// A file with these sign-ins: its header, and the line of each, with their ends.
fn written(runtime: &Runtime, key: &StoreKey, numbers: &[u8]) -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let path = directory.path().join("tokens");
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for number in numbers {
        let store = FileStore::visit(&path, key).unwrap();
        let (key, stored) = sign_in(*number);
        runtime.block_on(store.save_sign_in(&key, &stored)).unwrap();
        let text = fs::read(&path).unwrap();
        let name = |line: &[u8]| line.split(|octet| *octet == b' ').next().unwrap_or_default().to_vec();
        let known: Vec<Vec<u8>> = lines.iter().map(|line| name(line)).collect();
        let fresh = text.split_inclusive(|octet| *octet == b'\n').filter(|line| !known.contains(&name(line)));
        lines.extend(fresh.map(<[u8]>::to_vec));
    }
    lines
}

/// The numbers of the sign-ins that a store holds, in order; all of them are what was saved.
fn held(runtime: &Runtime, store: &FileStore) -> Vec<u8> {
    let all = runtime.block_on(store.sign_ins()).unwrap();
    let mut numbers: Vec<u8> = all
        .iter()
        .map(|found| (1..=3).find(|number| *found == sign_in(*number)).expect("a sign-in that nobody saved"))
        .collect();
    numbers.sort_unstable();
    numbers
}
