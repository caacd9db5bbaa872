//! The fuzz targets' bodies, run on what was kept for them: with every `cargo test`, without a fuzzer.
//!
//! `tests/fuzz/corpus/<target>` is a small corpus that covers what the fuzzer found, `tests/fuzz/regressions/<target>`
//! holds inputs that once broke something. See `docs/fuzzing.md`.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

#[path = "fuzz/bodies/mod.rs"]
pub mod bodies;

use bodies::TARGETS;

/// No corpus grows beyond this, in octets: all of them are read in every test run.
const LARGEST_CORPUS: u64 = 100 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// The files of a directory, in order; none where there is no such directory.
fn inputs(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_input_that_was_kept_for_a_fuzz_target_still_holds() {
    let mut broken = Vec::new();
    for (name, body) in TARGETS {
        for kind in ["corpus", "regressions"] {
            for path in inputs(&root().join(kind).join(name)) {
                let input = fs::read(&path).unwrap();
                if catch_unwind(|| body(&input)).is_err() {
                    broken.push(path);
                }
            }
        }
    }
    assert!(broken.is_empty(), "these inputs break their targets: {broken:#?}");
}

#[test]
fn every_fuzz_target_has_a_corpus_of_a_bounded_size() {
    for (name, _) in TARGETS {
        let corpus = inputs(&root().join("corpus").join(name));
        let size: u64 = corpus.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(corpus.len() >= 10, "{name} has {} inputs", corpus.len());
        assert!(size <= LARGEST_CORPUS, "{name} has {size} octets");
    }
}

#[test]
fn every_fuzz_target_is_built_and_listed() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let listed: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let built: BTreeSet<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"targets/")?.strip_suffix(".rs\""))
        .collect();
    assert_eq!(listed, built);
    for (name, _) in TARGETS {
        let source = fs::read_to_string(root().join(format!("targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("bodies::{name}::run(data)")), "{name} runs something else");
    }
    for kind in ["corpus", "regressions"] {
        for path in inputs(&root().join(kind)) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(listed.contains(name.as_str()), "{} is nobody's", path.display());
        }
    }
}

/// A judge that takes everything would never be missed.
#[test]
fn the_judge_of_impersonation_sees_what_would_be_wrong() {
    let acting_as = |mailbox: &str, space: &str| {
        format!(
            "<i:ExchangeImpersonation xmlns:i='{space}'><i:ConnectingSID><i:SmtpAddress>{mailbox}</i:SmtpAddress>\
             </i:ConnectingSID></i:ExchangeImpersonation>"
        )
    };
    let is_taken = |header: &str| {
        let sent = format!(
            "<s:Envelope xmlns:s='http://schemas.xmlsoap.org/soap/envelope/'><s:Header>{header}</s:Header>\
             <s:Body><x/></s:Body></s:Envelope>"
        );
        catch_unwind(|| bodies::impersonation::check("bob@contoso.com", sent.as_bytes())).is_ok()
    };
    let types = "http://schemas.microsoft.com/exchange/services/2006/types";
    let right = acting_as("bob@contoso.com", types);
    assert!(is_taken(&right));
    assert!(!is_taken(""), "none");
    assert!(!is_taken(&right.repeat(2)), "two");
    assert!(!is_taken(&acting_as("alice@contoso.com", types)), "another mailbox than judged");
    assert!(!is_taken(&acting_as("bob@contoso.com", "urn:x")), "another namespace");
    assert!(!is_taken(&format!("{right}<ManagementRole/>")), "rights");
}
