//! The configuration: what the file says (`raw`, `read`), what is wrong with it (`problem`), how references and
//! defaults are resolved (`resolve`, `oauth`, `proxy`), what the program runs on (`model`), and what editors should know
//! (`schema`).
//!
//! ```text
//! proxy.yaml ──raw──► tree with places ──read, oauth, proxy, resolve──► model::Config + remarks
//!                                         └────────────────────────────► Problems, all at once
//! ```
//!
//! Never: a value of the file in a message that could be a secret, a mistake without its place, a mistake
//! that hides another.

pub mod model;
mod oauth;
pub mod problem;
mod proxy;
mod raw;
mod read;
mod resolve;
mod schema;

pub use schema::schema;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use model::Config;
use problem::{Problem, Problems, Severity};
use raw::{Kind, Source};
use read::Reader;
use zeroize::Zeroizing;

/// A configuration that the program can run on.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to run on.
    pub config: Config,
    /// What the administrator should know all the same; print with [`Problem::in_file`].
    pub remarks: Vec<Problem>,
    /// Every file that it names: certificates, keys, secrets.
    pub files: Vec<PathBuf>,
}

/// Reads a configuration file, of at most 1 MiB. Relative paths in it start at its directory; `env` gives the
/// values of environment variables.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    let name = path.display().to_string();
    let text = read_file(path).map_err(|(what, remedy)| Problems {
        file: name.clone(),
        list: vec![Problem {
            line: 0,
            column: 0,
            what,
            remedy: remedy.to_owned(),
            severity: Severity::Problem,
            excerpt: None,
        }],
    })?;
    let base = path.parent().unwrap_or_else(|| Path::new(""));
    let parsed = parse(&text, &name, base, env);
    let (Some(mode), true) = (read::readable_by_others(path), holds_a_secret(&text)) else { return parsed };
    let exposed = Problem {
        line: 0,
        column: 0,
        what: format!("secrets stand in this file, and others may read it (mode {mode:04o})"),
        remedy: "`chmod 600` it, or move them to files of their own (`…-file`)".to_owned(),
        severity: Severity::Problem,
        excerpt: None,
    };
    let others = parsed.err().map(|problems| problems.list).unwrap_or_default();
    Err(Problems { file: name, list: std::iter::once(exposed).chain(others).collect() })
}

/// Reads a configuration from text. `name` stands for the file in messages; relative paths start at
/// `base_dir`.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn parse(
    text: &str,
    name: &str,
    base_dir: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let reader = Reader::new(env, base_dir);
    let (source, tree) = Source::read(text, resolve::shows);
    let config = match tree {
        Err(error) => {
            reader.problem(
                error.at,
                error.what,
                "check indentation, quotes and brackets from this line upwards",
            );
            None
        }
        Ok(root) => {
            let config = resolve::resolve(&reader, &root);
            if let Some(config) = &config {
                resolve::remark_on_ews(&reader, &root, config);
            }
            config
        }
    };
    let files = reader.files();
    let findings = reader.into_findings().into_iter().map(|(place, problem)| {
        let excerpt = source.excerpt(place, resolve::shows);
        Problem { excerpt, ..problem }
    });
    let (list, remarks): (Vec<_>, Vec<_>) = findings.partition(|found| found.severity == Severity::Problem);
    match config {
        Some(config) if list.is_empty() => Ok(Loaded { config, remarks, files }),
        Some(_) | None => Err(Problems { file: name.to_owned(), list }),
    }
}

/// The keys whose values are secrets, written into the file itself.
fn holds_a_secret(text: &str) -> bool {
    fn search(node: &raw::Node) -> bool {
        match &node.kind {
            Kind::Null | Kind::Scalar(_) => false,
            Kind::List(items) => items.iter().any(search),
            Kind::Map(pairs) => pairs.iter().any(|(key, value)| {
                let is_written = value.scalar().is_some_and(|text| match key.scalar() {
                    Some("client-secret" | "password" | "key" | "store-password") => !text.starts_with("${"),
                    // `redis://:password@host`
                    Some("store") => text.contains('@') && !text.contains("${"),
                    Some(_) | None => false,
                });
                is_written || search(value)
            }),
        }
    }
    Source::read(text, resolve::shows).1.is_ok_and(|root| search(&root))
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, (String, &'static str)> {
    let file = std::fs::File::open(path)
        .map_err(|e| (format!("cannot be opened: {e}"), "name the file with `--config`"))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(raw::MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| (format!("cannot be read: {e}"), "check that it is a file and that you may read it"))?;
    if bytes.len() > raw::MAX_FILE {
        return Err(("is larger than 1 MiB".to_owned(), "check that it is the right file"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes.iter().take(e.valid_up_to()).filter(|b| **b == b'\n').count() + 1;
        (format!("is no UTF-8 text, from line {line} on"), "save it as UTF-8")
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}
