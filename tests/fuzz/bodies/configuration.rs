//! The configuration (`src/config/`): any text is read to the end, as a model or as problems, each at a place that
//! exists, and no secret is in what is said about it.
//!
//! Orders: `P` a secret, to be put behind keys that hold one.

use std::path::Path;

use mailkey::config::problem::Problem;

use super::script::{PASSWORD, Script};

/// Keys whose values are never shown.
const SECRET: [&str; 5] = ["client-secret:", "password:", "key:", "store-password:", "password-hash:"];

/// The body.
pub fn run(data: &[u8]) {
    let script: Script<0> = Script::read(data);
    let octets = script.octets();
    let text = String::from_utf8_lossy(&octets);
    let env = |name: &str| (name == "SECRET").then(|| PASSWORD.to_owned());
    let found = mailkey::config::parse(&text, "proxy.yaml", Path::new("/nonexistent"), &env);
    let (said, list): (String, Vec<Problem>) = match found {
        Ok(loaded) => {
            let debug = format!("{:?}", loaded.config);
            assert!(!is_kept_secret(&text) || !debug.contains(PASSWORD), "a secret prints");
            let said: String =
                loaded.remarks.iter().map(|one| one.in_file("proxy.yaml").to_string()).collect();
            (said, loaded.remarks)
        }
        Err(problems) => {
            assert!(!problems.list.is_empty(), "refused without a reason");
            (problems.to_string(), problems.list)
        }
    };
    assert!(!is_kept_secret(&text) || !said.contains(PASSWORD), "a secret is told: {said}");
    // a CR on its own ends a line of YAML, too
    let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count();
    for problem in &list {
        assert!(problem.line <= lines, "line {} of {lines}", problem.line);
        assert!(!problem.what.is_empty(), "a problem without words");
        for words in [&problem.what, &problem.remedy] {
            assert!(!words.chars().any(char::is_control), "{words:?}");
            assert!(words.chars().count() <= 1_000, "{} octets about one problem", words.len());
        }
        if let Some(excerpt) = &problem.excerpt {
            assert!(!excerpt.text.chars().any(char::is_control), "{:?}", excerpt.text);
        }
    }
}

/// Whether the secret stands where secrets stand, and nowhere else.
fn is_kept_secret(text: &str) -> bool {
    let stands = |at: usize| {
        let line = &text[text[..at].rfind('\n').map_or(0, |end| end + 1)..at];
        let words = line.trim_start_matches([' ', '-', '{']);
        SECRET.iter().any(|key| {
            words.strip_prefix(key).is_some_and(|rest| {
                rest.starts_with(' ') && matches!(rest.trim_start_matches(' '), "" | "\"" | "'")
            })
        })
    };
    // a text over many lines holds what looks like keys and is none
    !text.contains(['|', '>', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
        && text.match_indices(PASSWORD).all(|(at, _)| stands(at))
}
