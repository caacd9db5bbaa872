//! The house rules that no compiler checks, read off the source.

use std::fs;
use std::path::{Path, PathBuf};

/// Every source file but the tests, with its text.
pub fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    found.retain(|(path, _)| !is_test(path));
    assert!(found.len() > 30, "the sources are not where they are looked for");
    found
}

/// `src/serve/relay.rs` → `serve`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The code of a file without its tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

/// Files that are tests through and through.
fn is_test(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.contains("/tests/") || ["tests.rs", "testing.rs"].iter().any(|end| path.ends_with(end))
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//! "), "{}", path.display());
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row per module")]
fn modules_use_only_what_the_map_allows() {
    let allowed: &[(&str, &[&str])] = &[
        ("secret", &[]),
        ("explain", &[]),
        ("clock", &[]),
        ("certificate", &["explain"]),
        ("stream", &[]),
        ("task", &[]),
        ("seats", &[]),
        ("telemetry", &["clock"]),
        ("simulator", &[]),
        ("protocol", &["secret", "explain"]),
        ("config", &["secret", "explain"]),
        ("token", &["certificate", "config", "secret", "explain", "clock", "task", "telemetry"]),
        ("upstream", &["certificate", "config", "secret", "explain", "clock", "stream", "task", "telemetry"]),
        ("way", &["certificate", "token", "upstream", "config", "explain"]),
        (
            "serve",
            &[
                "protocol",
                "seats",
                "token",
                "upstream",
                "config",
                "secret",
                "explain",
                "clock",
                "stream",
                "task",
                "telemetry",
            ],
        ),
        (
            "ews",
            &["token", "seats", "upstream", "config", "secret", "explain", "clock", "stream", "telemetry"],
        ),
        ("admin", &["token", "config", "clock", "stream", "task", "telemetry"]),
        ("live", &["admin", "serve", "upstream", "config", "token", "explain", "telemetry", "clock"]),
        (
            "app",
            &[
                "live",
                "way",
                "serve",
                "seats",
                "ews",
                "admin",
                "token",
                "upstream",
                "config",
                "telemetry",
                "clock",
                "explain",
                "stream",
                "task",
            ],
        ),
        (
            "cli",
            // `serve` and `stream`: the doctor signs in by the very dialogues that sessions use (serve::probe)
            &[
                "app",
                "way",
                "simulator",
                "serve",
                "token",
                "upstream",
                "config",
                "explain",
                "secret",
                "stream",
                "task",
                "telemetry",
                "clock",
            ],
        ),
        ("lib", &[]),
        ("main", &[]),
    ];
    for (path, text) in sources() {
        let own = module(&path);
        let (_, may_use) = allowed
            .iter()
            .find(|(name, _)| *name == own)
            .unwrap_or_else(|| panic!("{}: no rule for this module", path.display()));
        for line in without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if used.is_empty() || used == own {
                    continue;
                }
                assert!(may_use.contains(&used.as_str()), "{}: {own} may not use {used}", path.display());
            }
        }
    }
}

#[test]
fn only_the_tls_file_proves_that_a_socket_is_encrypted() {
    for (path, text) in sources() {
        let minted = without_tests(&text)
            .lines()
            .any(|line| line.contains("after_handshake()") && !line.contains("fn "));
        assert!(!minted || path.ends_with("upstream/tls.rs"), "{}", path.display());
        assert!(!without_tests(&text).contains("Encrypted::pretend"), "{}", path.display());
    }
}

#[test]
fn dialogues_know_neither_sockets_nor_clocks_nor_logs() {
    for (path, text) in sources() {
        if matches!(module(&path).as_str(), "protocol" | "config" | "secret" | "explain") {
            for banned in ["tokio", "tracing", "Instant", "SystemTime", "std::net::Tcp"] {
                let found = without_tests(&text)
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .any(|line| line.contains(banned));
                assert!(!found, "{} uses {banned}", path.display());
            }
        }
    }
}

#[test]
fn no_type_is_called_client_or_server() {
    for (path, text) in sources() {
        if matches!(module(&path).as_str(), "protocol" | "serve") {
            for line in text.lines() {
                let declared = ["struct ", "enum ", "trait "].iter().find_map(|kind| line.split_once(kind));
                let Some((before, name)) = declared else { continue };
                if before.trim().is_empty() || before.trim() == "pub" {
                    assert!(
                        !name.starts_with("Client") && !name.starts_with("Server"),
                        "{}: {line}",
                        path.display()
                    );
                }
            }
        }
    }
}

#[test]
fn no_file_names_the_machine_it_was_written_on() {
    for (path, text) in sources() {
        for banned in ["/work/", "/root/", "/home/"] {
            assert!(!text.contains(banned), "{} names {banned}", path.display());
        }
    }
}

#[test]
fn no_code_of_ours_is_unsafe() {
    let lints = include_str!("../Cargo.toml");
    assert!(lints.contains("\nunsafe_code = \"forbid\"\n"), "the compiler is not told to forbid it");
    for (path, text) in sources() {
        for banned in ["allow(unsafe", "expect(unsafe", "unsafe {", "unsafe fn ", "unsafe impl ", "no_mangle"]
        {
            assert!(!text.contains(banned), "{} has `{banned}`", path.display());
        }
    }
}
