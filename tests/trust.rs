//! Whether what is said about security holds: each promise of docs/security.md has its tests, builds are locked, the
//! compiler is the one that is named, and the rules of the supply chain are there.

use std::path::Path;

use crate::traps::exists;

const SECURITY: &str = include_str!("../docs/security.md");
const CARGO: &str = include_str!("../Cargo.toml");

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What stands in backticks and names a test: `tests/safety.rs::some_name`, `tests/transcripts/….txt`.
fn proofs(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.contains(".rs::") || word.starts_with("tests/transcripts/")).collect()
}

/// The numbered paragraphs under `## Promises`.
fn promises() -> Vec<String> {
    let section = SECURITY.split("\n## Promises\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut promises: Vec<String> = Vec::new();
    for line in section.lines() {
        let number = line.split_once(". ").and_then(|(number, _)| number.parse::<usize>().ok());
        match (number, promises.last_mut()) {
            (Some(number), _) => {
                assert_eq!(number, promises.len() + 1, "{line}");
                promises.push(line.to_owned());
            }
            (None, Some(last)) => {
                last.push('\n');
                last.push_str(line);
            }
            (None, None) => {}
        }
    }
    promises
}

#[test]
fn each_promise_names_its_tests_and_they_are_there() {
    let promises = promises();
    assert!(promises.len() >= 20, "{} promises were found", promises.len());
    for promise in &promises {
        assert!(!proofs(promise).is_empty(), "no test shows this: {promise}");
    }
    let missing: Vec<String> = proofs(SECURITY).into_iter().filter_map(|proof| exists(proof).err()).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_readme_leads_to_the_promises_and_to_the_way_of_reporting() {
    let readme = read("README.md");
    for link in ["(docs/security.md)", "(SECURITY.md)"] {
        assert!(readme.contains(link), "{link}");
    }
    assert!(read("SECURITY.md").contains("(docs/security.md)"));
}

#[test]
fn the_oldest_compiler_is_the_one_that_is_said() {
    let oldest =
        CARGO.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(SECURITY.contains(&format!("`rust-version` in `Cargo.toml`: {oldest},")), "docs/security.md");
    assert!(read("README.md").contains(&format!("Rust {oldest}")), "README.md");
    assert!(read("Dockerfile").contains(&format!("rust:{oldest}-")), "Dockerfile");
    let told = std::process::Command::new("rustc").arg("--version").output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let number = |version: &str| -> Vec<u32> {
        version.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{version}"))).collect()
    };
    let used = number(told.split_whitespace().nth(1).unwrap());
    assert!(used >= number(oldest), "{told} is older than {oldest}");
}

#[test]
fn every_build_is_locked() {
    for name in
        ["tests/run", "tests/coverage", "tests/supply", "Dockerfile", "deploy/debian/build", "benches/run"]
    {
        let text = read(name);
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for line in lines {
            for verb in
                ["build", "run", "test", "clippy", "install", "llvm-cov", "auditable", "bench", "nextest"]
            {
                let calls = line.contains(&format!("cargo {verb} "))
                    && !line.contains("llvm-cov clean")
                    && !line.contains("llvm-cov report");
                assert!(!calls || line.contains("--locked"), "{name}: {line}");
            }
        }
    }
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock").is_file());
}

#[test]
fn the_supply_chain_is_held_to_its_rules() {
    let rules = read("deny.toml");
    for rule in [
        "multiple-versions = \"deny\"",
        "wildcards = \"deny\"",
        "unknown-registry = \"deny\"",
        "unknown-git = \"deny\"",
        "crate = \"ring\"",
        "crate = \"openssl-sys\"",
        "crate = \"rsa\"",
        "crate = \"serde_yml\"",
    ] {
        assert!(rules.contains(rule), "{rule}");
    }
    let lock = read("Cargo.lock");
    assert!(lock.lines().filter(|line| line.starts_with("source = ")).all(|line| line.contains("registry+")));
    for line in ["tests/supply", "cargo auditable"] {
        assert!(read("tests/run").contains(line), "tests/run does not run {line}");
    }
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let section = CARGO.split("[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let mut is_told = false;
    for line in section.lines().filter(|line| !line.trim().is_empty()) {
        if line.starts_with('#') {
            is_told = true;
        } else {
            assert!(is_told || line.contains("# "), "{line}");
        }
    }
    assert!(is_told);
}
