//! What the README says, run.

use std::path::Path;

use mailkey::config;
use mailkey::token::catalogue;

use crate::stage::run;

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

/// The fenced blocks of one language.
fn blocks(language: &str) -> Vec<String> {
    let text = readme();
    let fence = format!("```{language}\n");
    let found: Vec<String> =
        text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect();
    assert!(!found.is_empty(), "no `{language}` block in the README");
    found
}

#[test]
fn every_yaml_block_is_a_configuration_that_passes() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let all = blocks("yaml");
    let smallest = all.iter().find(|block| block.starts_with("oauth:")).unwrap();
    for block in &all {
        // a block that shows one section stands in the smallest whole file
        let whole = if block.starts_with("oauth:") { block.clone() } else { format!("{smallest}{block}") };
        let whole: String = whole
            .lines()
            .map(|line| match line.split_once("-file:") {
                Some((key, _)) => format!("{key}-file: {}\n", secret.display()),
                None => format!("{line}\n"),
            })
            .collect();
        config::parse(&whole, "README.md", folder.path(), &|_| None)
            .unwrap_or_else(|problems| panic!("{problems}\nin\n{whole}"));
    }
}

#[tokio::test]
async fn every_explain_command_explains() {
    let mut seen = 0;
    for line in blocks("sh").concat().lines() {
        let Some(text) = line.strip_prefix("mailkey explain ") else { continue };
        let told = run(env!("CARGO_BIN_EXE_mailkey"), ["explain", text.trim_matches('\'')], b"").await;
        assert_eq!(told.code, Some(0), "{line}: {told:?}");
        seen += 1;
    }
    assert!(seen >= 2);
}

#[tokio::test]
async fn every_command_that_is_named_is_there() {
    let help = run(env!("CARGO_BIN_EXE_mailkey"), ["--help"], b"").await.text();
    for line in blocks("sh").concat().lines() {
        let Some(rest) = line.strip_prefix("mailkey ") else { continue };
        let command = rest.split_whitespace().next().unwrap();
        assert!(help.contains(&format!("  {command}")), "`{command}` is in the README and not in --help");
    }
}

#[test]
fn every_code_of_the_table_is_known() {
    let sources: String = crate::house::sources().into_iter().map(|(_, text)| text).collect();
    let mut seen = 0;
    for row in readme().lines().filter(|line| line.starts_with("| `")) {
        let codes = row.split('|').nth(1).unwrap();
        for code in codes.split('`').filter(|part| part.chars().any(|c| c.is_ascii_uppercase())) {
            if code.starts_with("AADSTS") {
                assert!(!catalogue::find(code).is_empty(), "{code}");
                seen += 1;
            } else if code.chars().all(|c| c.is_ascii_uppercase() || c == '-') {
                assert!(sources.contains(&format!("\"{code}\"")), "{code}");
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "the table of failures is not where it is looked for");
}

#[test]
fn every_file_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = readme();
    let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let map = text
        .lines()
        .filter(|line| line.starts_with("| "))
        .flat_map(|line| line.split('`'))
        .filter(|part| part.starts_with("src/") || part.starts_with("tests/"));
    for file in links.filter(|link| !link.starts_with("http")).chain(map) {
        assert!(root.join(file).exists(), "the README names `{file}`");
    }
    assert!(text.lines().count() <= 250, "the README is longer than one wants to read");
}
