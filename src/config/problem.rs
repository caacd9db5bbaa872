//! What is wrong with the configuration file: every mistake with its place, what was expected, and the line
//! it stands on with secrets masked.

use std::fmt;

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The program does not start with it.
    Problem,
    /// It starts, but the administrator should know.
    Remark,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; 0 where it is not about a place in the file.
    pub line: usize,
    /// Column in characters, from 1; 0 where it is not about a place in the file.
    pub column: usize,
    /// What is wrong: lower case, no full stop, values in backticks, never a secret.
    pub what: String,
    /// An imperative that the reader can carry out, or what was expected.
    pub remedy: String,
    /// How much it weighs.
    pub severity: Severity,
    /// The line of the file, masked.
    pub excerpt: Option<Excerpt>,
}

/// A line of the file, fit to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The line, with everything that may be secret masked.
    pub text: String,
    /// Where the marks stand under it, in characters from 0.
    pub indent: usize,
    /// How many marks; at least one.
    pub marks: usize,
}

/// Everything that is wrong with one file, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file's name, as it was given.
    pub file: String,
    /// At least one.
    pub list: Vec<Problem>,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            problem.show(&self.file, f)?;
            writeln!(f)?;
        }
        match self.list.len() {
            1 => write!(f, "1 problem in {}", self.file),
            many => write!(f, "{many} problems in {}", self.file),
        }
    }
}

impl Problem {
    /// The finding as `check` prints it, several lines long.
    pub fn in_file<'a>(&'a self, file: &'a str) -> impl fmt::Display + 'a {
        struct InFile<'a>(&'a Problem, &'a str);
        impl fmt::Display for InFile<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.show(self.1, f)
            }
        }
        InFile(self, file)
    }

    fn show(&self, file: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{file}: ")?,
            line => write!(f, "{file}:{line}:{}: ", self.column)?,
        }
        if self.severity == Severity::Remark {
            write!(f, "remark: ")?;
        }
        writeln!(f, "{}", self.what)?;
        if let Some(excerpt) = &self.excerpt {
            let number = self.line.to_string();
            let margin = " ".repeat(number.len() + 2);
            writeln!(f, "  {number} | {}", excerpt.text)?;
            writeln!(f, "{margin} | {}{}", " ".repeat(excerpt.indent), "^".repeat(excerpt.marks))?;
        }
        if !self.remedy.is_empty() {
            writeln!(f, "  = {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The known word that a mistyped one was probably meant to be.
///
/// ```
/// use mailkey::config::problem::nearest;
/// assert_eq!(nearest("lisen", ["listen", "name"]), Some("listen"));
/// assert_eq!(nearest("client_id", ["client-id", "client-secret"]), Some("client-id"));
/// assert_eq!(nearest("colour", ["listen", "name"]), None);
/// ```
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Nobody mistypes a word of more characters; the bound keeps the table small.
    const LONGEST: usize = 64;
    let word: Vec<char> = word.chars().take(LONGEST + 1).map(fold).collect();
    if word.len() > LONGEST {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.chars().map(fold).collect::<Vec<_>>()), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .map(|(_, candidate)| candidate)
}

/// `clientId`, `client_id` and `Client-ID` are all meant to be `client-id`.
fn fold(c: char) -> char {
    if c == '_' || c == ' ' { '-' } else { c.to_ascii_lowercase() }
}

/// Edit distance with neighbouring letters swapped counted as one (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, &to) in b.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&above, j) + usize::from(from != to)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(&to) && b.get(j - 1) == Some(&from);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_a_letter_or_two_away() {
        for (word, meant) in [
            ("listne", Some("listen")),
            ("listenn", Some("listen")),
            ("Listen", Some("listen")),
            ("upstream_tls", Some("upstream-tls")),
            ("upstram", Some("upstream")),
            ("xyzzy", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, ["listen", "upstream", "upstream-tls"]), meant, "{word}");
        }
    }

    #[test]
    fn an_endless_word_is_nobodys_typing_error() {
        assert_eq!(nearest(&"listen".repeat(100_000), ["listen"]), None);
    }
}
