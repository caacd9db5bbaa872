//! Typed readers over the tree: each gives a value or notes what was expected, and where. Reading goes on
//! after a mistake, so that an administrator sees all of them at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::problem::{Problem, Severity, nearest};
use super::raw::{Kind, Node, Place, is_word};
use crate::secret::Secret;

/// The longest file with a secret, in octets.
const MAX_SECRET_FILE: u64 = 64 * 1024;

/// How much of a value is repeated in a message, in characters.
const MAX_REPEATED: usize = 60;

/// As much is said about one problem, in characters.
const MAX_WORDS: usize = 1_000;

/// Where container platforms mount secrets for one container alone, with modes that nobody chooses.
const PLATFORM_SECRETS: [&str; 3] = ["/run/secrets", "/var/run/secrets", "/run/credentials"];

/// A value with the place it was read from.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: Place,
}

/// The environment of a reading, and what it found.
pub(super) struct Reader<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// Relative paths start here.
    pub(super) base: &'a Path,
    /// By place.
    findings: RefCell<Vec<(Place, Problem)>>,
    files: RefCell<Vec<PathBuf>>,
    /// What was put in from the environment.
    variables: RefCell<BTreeMap<String, Zeroizing<String>>>,
}

/// A map whose keys have been checked.
pub(super) struct Section<'n> {
    pub(super) at: Place,
    entries: Vec<(&'n str, Place, &'n Node)>,
}

impl<'n> Section<'n> {
    /// The value of a key, where the key is there.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(name, ..)| *name == key).map(|(.., node)| *node)
    }

    /// Where the key itself stands.
    pub(super) fn key_at(&self, key: &str) -> Option<Place> {
        self.entries.iter().find(|(name, ..)| *name == key).map(|(_, at, _)| *at)
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<String>, base: &'a Path) -> Self {
        Self {
            env,
            base,
            findings: RefCell::default(),
            files: RefCell::default(),
            variables: RefCell::default(),
        }
    }

    /// The files that the configuration has named so far.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.files.borrow().clone()
    }

    /// Everything that was found, in the file's order, nothing twice. A variable's value may be a secret that is in the
    /// wrong place: it is shown as it is written in the file.
    pub(super) fn into_findings(self) -> Vec<(Place, Problem)> {
        let mut findings = self.findings.into_inner();
        let variables = self.variables.into_inner();
        for words in findings.iter_mut().flat_map(|(_, problem)| [&mut problem.what, &mut problem.remedy]) {
            for (name, value) in &variables {
                *words = as_written(words, name, value);
            }
            *words = fit(words);
        }
        findings
    }

    /// Notes what keeps the program from starting.
    pub(super) fn problem(&self, at: Place, what: impl Into<String>, remedy: impl Into<String>) {
        self.note(Severity::Problem, at, what.into(), remedy.into());
    }

    /// Notes what the administrator should know.
    pub(super) fn remark(&self, at: Place, what: impl Into<String>, remedy: impl Into<String>) {
        self.note(Severity::Remark, at, what.into(), remedy.into());
    }

    /// The same application is resolved for several listeners: nothing is said twice.
    fn note(&self, severity: Severity, at: Place, what: String, remedy: String) {
        let problem = Problem { line: at.line, column: at.column, what, remedy, severity, excerpt: None };
        let mut findings = self.findings.borrow_mut();
        if !findings.iter().any(|(_, known)| *known == problem) {
            let before =
                findings.partition_point(|(place, _)| (place.line, place.column) <= (at.line, at.column));
            findings.insert(before, (at, problem));
        }
    }

    /// A map with known keys; without a name it is the whole file. An empty one may be left empty altogether.
    pub(super) fn section<'n>(
        &self,
        node: &'n Node,
        name: &str,
        known: &[&'static str],
    ) -> Option<Section<'n>> {
        let pairs = match &node.kind {
            Kind::Map(pairs) => pairs.as_slice(),
            Kind::Null => &[],
            Kind::Scalar(_) | Kind::List(_) => {
                let example = known.first().unwrap_or(&"key");
                self.problem(
                    node.at,
                    format!("{} is {}", called(name), kind(node)),
                    format!("write its keys below it, each on a line of its own: `{example}: …`"),
                );
                return None;
            }
        };
        let mut entries: Vec<(&str, Place, &Node)> = Vec::new();
        for (key, value) in pairs {
            let Some(word) = key.scalar() else {
                self.problem(
                    key.at,
                    format!("a key in {} is {}", called(name), kind(key)),
                    "write a word as the key",
                );
                continue;
            };
            if !known.contains(&word) {
                self.unknown_key(key.at, word, name, known);
            } else if let Some((_, first, _)) = entries.iter().find(|(earlier, ..)| *earlier == word) {
                let first = first.line;
                self.problem(
                    key.at,
                    format!("`{word}` stands twice in {}, first on line {first}", called(name)),
                    "remove one of the two",
                );
            } else {
                entries.push((word, key.at, value));
            }
        }
        Some(Section { at: node.at, entries })
    }

    fn unknown_key(&self, at: Place, word: &str, name: &str, known: &[&str]) {
        let remedy = match nearest(word, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", words(known)),
        };
        if is_word(word) {
            self.problem(at, format!("unknown key `{word}` in {}", called(name)), remedy);
        } else {
            let remedy = "write a word, a `:`, a blank and the value";
            self.problem(at, format!("something in {} that is no key", called(name)), remedy);
        }
    }

    /// A scalar as it counts: environment variables put in, not empty.
    pub(super) fn text(&self, node: &Node, expected: &str) -> Option<At<Zeroizing<String>>> {
        let Some(written) = node.scalar() else {
            self.problem(node.at, format!("expected {expected}, found {}", kind(node)), "");
            return None;
        };
        let value = self.interpolated(node.at, written)?;
        if value.is_empty() {
            self.problem(node.at, format!("expected {expected}, found an empty text"), "");
            return None;
        }
        Some(At { value, at: node.at })
    }

    /// `${NAME}` is replaced by the environment variable; any other `$` stands for itself.
    fn interpolated(&self, at: Place, written: &str) -> Option<Zeroizing<String>> {
        let mut value = Zeroizing::new(String::with_capacity(written.len()));
        let mut rest = written;
        let mut complete = true;
        while let Some((before, behind)) = rest.split_once("${") {
            value.push_str(before);
            let Some((name, after)) = behind.split_once('}').filter(|(name, _)| is_variable(name)) else {
                value.push_str("${");
                rest = behind;
                continue;
            };
            if let Some(text) = (self.env)(name).map(Zeroizing::new) {
                value.push_str(&text);
                self.variables.borrow_mut().insert(name.to_owned(), text);
            } else {
                let name = repeated(name);
                let what = format!("the environment variable `{name}` is not set");
                self.problem(at, what, format!("set `{name}`, or write the value"));
                complete = false;
            }
            rest = after;
        }
        value.push_str(rest);
        complete.then_some(value)
    }

    /// A value that `parse` understands. What it says of a value it does not understand becomes the remedy.
    pub(super) fn parse<T>(
        &self,
        node: &Node,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<At<T>> {
        let text = self.text(node, expected)?;
        match parse(&text.value) {
            Ok(value) => Some(At { value, at: text.at }),
            Err(remedy) => {
                self.problem(node.at, format!("expected {expected}, found {}", shown(node)), remedy);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, node: &Node, choices: &[(&'static str, T)]) -> Option<At<T>> {
        let known: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.parse(node, &format!("one of {}", words(&known)), |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                nearest(text, known.iter().copied())
                    .map(|near| format!("did you mean `{near}`?"))
                    .unwrap_or_default()
            })
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, node: &Node) -> Option<bool> {
        self.parse(node, "`true` or `false`", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(String::new()),
        })
        .map(|flag| flag.value)
    }

    /// A whole number between two bounds, both included.
    pub(super) fn count(&self, node: &Node, least: u64, most: u64) -> Option<u64> {
        self.parse(node, &format!("a whole number from {least} to {most}"), |text| {
            text.parse().ok().filter(|n| (least..=most).contains(n)).ok_or_else(String::new)
        })
        .map(|count| count.value)
    }

    /// A length of time with its unit, not zero.
    pub(super) fn duration(&self, node: &Node) -> Option<Duration> {
        self.parse(node, "a length of time", |text| {
            duration(text).ok_or_else(|| {
                if text.bytes().all(|b| b.is_ascii_digit()) {
                    "write a number with its unit: `ms`, `s`, `m`, `h` or `d`".to_owned()
                } else {
                    "write it like `5m`, `30s`, `1h30m` or `500ms`".to_owned()
                }
            })
        })
        .map(|duration| duration.value)
    }

    /// The entries of a list; a single value is a list of one.
    pub(super) fn list<'n>(&self, node: &'n Node, expected: &str) -> Vec<&'n Node> {
        match &node.kind {
            Kind::List(items) => items.iter().collect(),
            Kind::Scalar(_) => vec![node],
            Kind::Null => Vec::new(),
            Kind::Map(_) => {
                self.problem(node.at, format!("expected {expected}, found {}", kind(node)), "");
                Vec::new()
            }
        }
    }

    /// Addresses to listen on. `localhost` means the loopback of both IP versions.
    pub(super) fn addresses(&self, node: &Node) -> Vec<At<SocketAddr>> {
        let expected = "an address with a port, or a list of them";
        let mut found: Vec<At<SocketAddr>> = Vec::new();
        for item in self.list(node, expected) {
            let parsed = self.parse(item, "an address with a port, like `127.0.0.1:1143`", addresses);
            for value in parsed.iter().flat_map(|parsed| &parsed.value) {
                if found.iter().any(|earlier| earlier.value == *value && value.port() != 0) {
                    self.problem(
                        item.at,
                        format!("`{value}` stands twice in this list"),
                        "remove one of them",
                    );
                } else {
                    found.push(At { value: *value, at: item.at });
                }
            }
        }
        if matches!(&node.kind, Kind::List(items) if items.is_empty()) || matches!(node.kind, Kind::Null) {
            self.problem(node.at, format!("expected {expected}, found nothing"), "write `127.0.0.1:<port>`");
        }
        found
    }

    /// Networks, or single addresses.
    pub(super) fn networks(&self, node: &Node) -> Vec<IpNet> {
        self.list(node, "a list of addresses and networks")
            .into_iter()
            .filter_map(|item| {
                self.parse(item, "an address or a network, like `10.0.0.0/8` or `::1`", |text| {
                    network(text).ok_or_else(String::new)
                })
            })
            .map(|net| net.value)
            .collect()
    }

    /// A URL with one of these schemes, without a user name in it.
    pub(super) fn url(&self, node: &Node, schemes: &[&str]) -> Option<At<Url>> {
        let known: Vec<String> = schemes.iter().map(|scheme| format!("`{scheme}://`")).collect();
        let expected = format!("a URL that begins with {}", known.join(", "));
        let url = self.parse(node, &expected, |text| {
            let url = Url::parse(text).map_err(|error| {
                if error == url::ParseError::RelativeUrlWithoutBase {
                    format!("write {} in front", known.first().map_or("a scheme", String::as_str))
                } else {
                    error.to_string()
                }
            })?;
            if !schemes.contains(&url.scheme()) {
                return Err(other_scheme(url.scheme(), schemes));
            }
            if url.host_str().is_none_or(str::is_empty) {
                return Err("write the host behind `://`".to_owned());
            }
            Ok(url)
        })?;
        if !url.value.username().is_empty() || url.value.password().is_some() {
            self.problem(
                node.at,
                "a user name or password stands in this URL",
                "take it out of the URL; secrets have keys of their own",
            );
            return None;
        }
        Some(url)
    }

    /// The URL of an identity provider: `https`, or `http` on loopback.
    pub(super) fn identity_url(&self, node: &Node) -> Option<At<Url>> {
        let url = self.url(node, &["https", "http"])?;
        if url.value.scheme() == "http" && !is_loopback(&url.value) {
            self.problem(
                node.at,
                "passwords and tokens would cross the network in clear text",
                "write `https://` in place of `http://`",
            );
            return None;
        }
        Some(url)
    }

    /// A file that is there. Relative paths start at the configuration file.
    pub(super) fn file(&self, node: &Node) -> Option<At<PathBuf>> {
        let path = self.path(node)?;
        self.files.borrow_mut().push(path.value.clone());
        self.is_file(&path, node).then_some(path)
    }

    /// A path, whether there is anything or not.
    pub(super) fn path(&self, node: &Node) -> Option<At<PathBuf>> {
        let text = self.text(node, "the path of a file")?;
        Some(At { value: self.base.join(text.value.as_str()), at: text.at })
    }

    /// A file that is there and that nobody else may read.
    pub(super) fn private_file(&self, node: &Node) -> Option<At<PathBuf>> {
        let path = self.file(node)?;
        let everybodys = readable_by_others(&path.value);
        if let Some(mode) = everybodys {
            self.problem(
                node.at,
                format!("{} holds a secret, and others may read it (mode {mode:04o})", shown(node)),
                format!("take the right away: `chmod 600 {}`", path.value.display()),
            );
        }
        everybodys.is_none().then_some(path)
    }

    /// What a private file holds, without the last line end.
    pub(super) fn private_content(&self, node: &Node) -> Option<At<Secret>> {
        let path = self.private_file(node)?;
        let content = match read_bounded(&path.value) {
            Ok(content) => content,
            Err(error) => {
                self.problem(node.at, format!("cannot read {}: {error}", shown(node)), "check the file");
                return None;
            }
        };
        let text = content.strip_suffix('\n').unwrap_or(&content);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            self.problem(node.at, format!("the file {} is empty", shown(node)), "write the secret into it");
            return None;
        }
        Some(At { value: Secret::new(text), at: path.at })
    }

    /// A secret, in the file itself (`key`) or in one of its own (`key-file`).
    pub(super) fn secret(&self, section: &Section<'_>, key: &str) -> Option<At<Secret>> {
        let file_key = format!("{key}-file");
        let inline = section.get(key);
        let file = section.get(&file_key);
        if let (Some(_), Some(at)) = (inline, section.key_at(&file_key)) {
            self.both(at, key, &file_key);
        }
        match (inline, file) {
            (Some(node), _) => {
                let secret = self.text(node, "a secret")?;
                if is_placeholder(&secret.value) {
                    let what = format!("`{key}` still holds a placeholder");
                    self.problem(node.at, what, "put in the real value");
                    return None;
                }
                Some(At { value: Secret::new(secret.value.as_str()), at: secret.at })
            }
            (None, Some(node)) => self.private_content(node),
            (None, None) => None,
        }
    }

    /// Two keys that say the same.
    pub(super) fn both(&self, at: Place, one: &str, other: &str) {
        self.problem(at, format!("`{one}` and `{other}` stand together"), "keep one of the two");
    }

    fn is_file(&self, path: &At<PathBuf>, node: &Node) -> bool {
        let trouble = match std::fs::metadata(&path.value) {
            Ok(found) if found.is_dir() => "it is a directory".to_owned(),
            Ok(_) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            Err(error) => error.to_string(),
        };
        let looked = path.value.display();
        self.problem(
            node.at,
            format!("cannot read {}: {trouble}", shown(node)),
            format!("looked at `{looked}`"),
        );
        false
    }
}

/// Words with `${NAME}` in place of its value, also where that was cut short.
fn as_written(words: &str, name: &str, value: &str) -> String {
    /// Found by as many of its first characters; one with fewer than the second number is found everywhere.
    const TELLTALE: usize = 12;
    const SHORTEST: usize = 4;
    let start: Zeroizing<String> = Zeroizing::new(value.chars().take(TELLTALE).collect());
    if start.chars().count() < SHORTEST {
        return words.to_owned();
    }
    let (mut shown, mut rest) = (String::new(), words);
    while let Some((before, found)) = rest.find(start.as_str()).map(|at| rest.split_at(at)) {
        let same = found.chars().zip(value.chars()).take_while(|(one, other)| one == other);
        let length = same.map(|(one, _)| one.len_utf8()).sum();
        shown.push_str(before);
        shown.push_str("${");
        shown.push_str(name);
        shown.push('}');
        rest = found.get(length..).unwrap_or_default();
    }
    shown + rest
}

/// Words that may be shown, whatever was repeated in them.
fn fit(words: &str) -> String {
    words.chars().take(MAX_WORDS).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A value for a message: in backticks, no longer than it helps, and never with a secret in it.
pub(super) fn shown(node: &Node) -> String {
    match node.scalar() {
        Some(text) if is_harmless(text) => format!("`{}`", repeated(text)),
        Some(_) => "a text that may hold a password".to_owned(),
        None => kind(node).to_owned(),
    }
}

/// Whether a text holds no password, not even as a damaged URL: no `@`, and behind each `:` nothing but a
/// port or a path.
///
/// `http://svc:hunter2` is what is left of a URL whose host was cut off.
pub(super) fn is_harmless(text: &str) -> bool {
    let port_or_path = |part: &str| {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        rest.is_empty() || rest.starts_with('/')
    };
    let is_address = network(text).is_some() || text.parse::<SocketAddr>().is_ok();
    !text.contains('@') && (is_address || text.split(':').skip(1).all(port_or_path))
}

/// Text of the file for a message: one line, bounded, nothing that moves the cursor.
fn repeated(text: &str) -> String {
    let mut short: String =
        text.chars().take(MAX_REPEATED).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(MAX_REPEATED).is_some() {
        short.push('…');
    }
    short
}

/// `a`, `b`, `c`.
fn words(list: &[&str]) -> String {
    list.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn called(section: &str) -> String {
    if section.is_empty() { "the file".to_owned() } else { format!("`{section}`") }
}

fn kind(node: &Node) -> &'static str {
    match node.kind {
        Kind::Null => "nothing",
        Kind::Scalar(_) => "a single value",
        Kind::List(_) => "a list",
        Kind::Map(_) => "a section with keys",
    }
}

fn is_variable(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What guides and samples write where a value of one's own belongs.
pub(super) fn is_placeholder(text: &str) -> bool {
    let lower = text.to_lowercase();
    lower.bytes().all(|b| b == b'0' || b == b'-')
        || (lower.starts_with('<') && lower.ends_with('>'))
        || lower.contains('…')
        || lower == "..."
        || ["your-", "your_", "your ", "changeme", "change-me", "xxxx", "insert-", "replace-"]
            .iter()
            .any(|word| lower.starts_with(word))
}

/// Whether the host of a URL is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

fn other_scheme(scheme: &str, schemes: &[&str]) -> String {
    match scheme {
        "http" if schemes.contains(&"https") => "write `https://` in place of `http://`".to_owned(),
        "socks5" | "socks" if schemes.contains(&"socks5h") => {
            "write `socks5h://`: names are resolved by the proxy".to_owned()
        }
        _ => String::new(),
    }
}

/// `1h30m`, `500ms`: numbers with units, the larger first or not. Zero is no length of time.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, behind) = rest.split_at_checked(digits)?;
        let letters = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, after) = behind.split_at_checked(letters)?;
        let number: u64 = number.parse().ok()?;
        let part = match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" | "min" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "d" => Duration::from_secs(number.checked_mul(86_400)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = after;
    }
    // Ten years are no wait any more, and additions to a clock must not overflow.
    (total > Duration::ZERO && total < Duration::from_hours(10 * 365 * 24)).then_some(total)
}

/// `10.0.0.0/8`, `::1`.
pub(super) fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    Err(match text.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.parse::<u16>().is_err() => {
            "write a port from 0 to 65535 behind the last `:`".to_owned()
        }
        Some(("" | "*", port)) => format!("write `127.0.0.1:{port}`, or `0.0.0.0:{port}` for all interfaces"),
        Some(_) if text.matches(':').count() > 1 => "write IPv6 in brackets: `[::1]:1143`".to_owned(),
        None if text.parse::<u16>().is_ok() => format!("write `127.0.0.1:{text}`"),
        None => "write the port behind a `:`".to_owned(),
        Some(_) => "write an address of this machine, or `localhost`, not a name".to_owned(),
    })
}

/// The mode of a file that others may read; container platforms' own mounts excepted.
#[cfg(unix)]
pub(super) fn readable_by_others(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    let mode = found.mode() & 0o7777;
    let platform = PLATFORM_SECRETS.iter().any(|mount| path.starts_with(mount));
    (is_others(mode, found.uid()) && !platform).then_some(mode)
}

/// Whether more than the owner may do anything with a file. A file of root's may be read by its group: that is how
/// root lends a secret to a user that could not be given it (`chown root:mailkey`, `chmod 640`).
#[cfg(unix)]
fn is_others(mode: u32, owner: u32) -> bool {
    mode & if owner == 0 { 0o037 } else { 0o077 } != 0
}

/// Other systems have other rights; the installer's guide says how to set them.
#[cfg(not(unix))]
pub(super) fn readable_by_others(_path: &Path) -> Option<u32> {
    None
}

fn read_bounded(path: &Path) -> Result<Zeroizing<String>, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_SECRET_FILE + 1).read_to_end(&mut content).map_err(|e| e.to_string())?;
    if content.len() as u64 > MAX_SECRET_FILE {
        return Err("it is larger than 64 KiB".to_owned());
    }
    let text = std::str::from_utf8(&content).map_err(|_| "it holds no text (UTF-8)".to_owned())?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, milliseconds) in
            [("5m", 300_000), ("30s", 30_000), ("1h30m", 5_400_000), ("500ms", 500), ("1d", 86_400_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in
            ["", "5", "m", "5x", "5 m", "-5m", "0s", "99999999999999999999s", "1e3s", "5m3", "99999999d"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn localhost_is_the_loopback_of_both_ip_versions() {
        let both = addresses("localhost:1143").unwrap();
        assert_eq!(both, ["127.0.0.1:1143".parse().unwrap(), "[::1]:1143".parse().unwrap()]);
    }

    #[test]
    fn addresses_say_what_is_missing() {
        for (text, remedy) in [
            ("1143", "write `127.0.0.1:1143`"),
            (":1143", "write `127.0.0.1:1143`, or `0.0.0.0:1143` for all interfaces"),
            ("::1:1143", "write IPv6 in brackets: `[::1]:1143`"),
            ("127.0.0.1", "write the port behind a `:`"),
            ("127.0.0.1:99999", "write a port from 0 to 65535 behind the last `:`"),
            ("mail.example:1143", "write an address of this machine, or `localhost`, not a name"),
        ] {
            assert_eq!(addresses(text), Err(remedy.to_owned()), "{text}");
        }
    }

    #[test]
    fn only_a_named_variable_in_braces_is_special() {
        let env = |name: &str| (name == "NAME").then(|| "value".to_owned());
        let reader = Reader::new(&env, Path::new("."));
        for (written, counts) in [
            ("a${NAME}b${NAME}", "avalueb".to_owned() + "value"),
            (
                "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA",
                "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".to_owned(),
            ),
            ("$NAME ${} ${a-b} ${", "$NAME ${} ${a-b} ${".to_owned()),
        ] {
            let value = reader.interpolated(Place::default(), written);
            assert_eq!(value.as_deref().map(String::as_str), Some(counts.as_str()));
        }
        assert!(reader.interpolated(Place::default(), "${MISSING}").is_none());
        assert_eq!(reader.into_findings().len(), 1);
    }

    #[test]
    fn a_variable_in_the_wrong_place_is_shown_as_it_is_written() {
        let env = |name: &str| (name == "SECRET").then(|| "hunter2-and-much-more".to_owned());
        let reader = Reader::new(&env, Path::new("."));
        let value = reader.interpolated(Place::default(), "x${SECRET}y").unwrap();
        reader.problem(
            Place::default(),
            format!("`{}` is no directory", *value),
            format!("not `{}…`", value.get(..16).unwrap()),
        );
        let findings = reader.into_findings();
        assert_eq!(findings[0].1.what, "`x${SECRET}y` is no directory");
        assert_eq!(findings[0].1.remedy, "not `x${SECRET}…`");
        assert_eq!(as_written("port 993 of 993", "PORT", "993"), "port 993 of 993");
    }

    #[test]
    fn half_a_url_may_hold_a_password() {
        for text in [
            "http://svc:hunter2@proxy:3128",
            "http://svc:hunter2",
            "svc:hunter2@proxy",
            "redi/svc:7hunter",
            "hunter2@proxy",
            "client-secret:hunter2",
        ] {
            assert!(!is_harmless(text), "{text}");
        }
        for text in [
            "https://outlook.office365.com:444/EWS",
            "outlook.office365.com:993",
            "file:/var/lib/tokens",
            "https://a/.default https://b/.default",
            "2001:db8::/32",
            "[fe80::ab]:1143",
            "5m",
        ] {
            assert!(is_harmless(text), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn root_lends_a_secret_to_a_group_and_nobody_else_does() {
        for (mode, owner, refused) in [
            (0o600, 0, false),
            (0o600, 1000, false),
            (0o400, 1000, false),
            (0o640, 0, false),
            (0o440, 0, false),
            (0o640, 1000, true),
            (0o660, 0, true),
            (0o644, 0, true),
            (0o604, 1000, true),
            (0o601, 0, true),
        ] {
            assert_eq!(is_others(mode, owner), refused, "{mode:o} of {owner}");
        }
    }

    #[test]
    fn placeholders_are_told_from_values() {
        for text in
            ["00000000-0000-0000-0000-000000000000", "<client-id>", "your-client-id", "xxxxxxxx-xxxx", "…"]
        {
            assert!(is_placeholder(text), "{text}");
        }
        for text in ["11111111-2222-3333-4444-555555555555", "yourself", "a<b>"] {
            assert!(!is_placeholder(text), "{text}");
        }
    }
}
