//! Where the password for `--user` comes from: a file, the terminal without an echo, or standard input. Never the
//! command line, where every user of the machine could read it.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::secret::{Credentials, MAX_PASSWORD};

/// Reads it, and checks that a mail client could send such a one. Nothing of it is repeated in an error.
///
/// # Errors
/// In words.
pub fn read(user: &str, file: Option<&Path>) -> Result<Credentials, String> {
    let line = match file {
        Some(path) => from_file(path)?,
        None if io::stdin().is_terminal() => {
            let typed = rpassword::prompt_password(format!("password of {user}: "));
            let typed = Zeroizing::new(typed.map_err(|error| format!("the terminal gave none: {error}"))?);
            Zeroizing::new(typed.as_bytes().to_vec())
        }
        None => first_line(&mut io::stdin().lock())?,
    };
    Credentials::decode(user.as_bytes(), &line).map_err(|error| error.to_string())
}

fn from_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let broken = |error: io::Error| format!("`{}` cannot be read: {error}", path.display());
    first_line(&mut io::BufReader::new(std::fs::File::open(path).map_err(broken)?))
}

/// The first line without its end; longer ones are refused by whoever decodes them.
fn first_line(input: &mut dyn io::BufRead) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD + 3));
    io::BufReader::new(input.take(MAX_PASSWORD as u64 + 3))
        .read_until(b'\n', &mut line)
        .map_err(|error| format!("it cannot be read: {error}"))?;
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password_blanks_and_all() {
        for (input, line) in
            [(&b" two words \r\nsecond"[..], &b" two words "[..]), (b"one", b"one"), (b"", b""), (b"\n", b"")]
        {
            assert_eq!(first_line(&mut &input[..]).unwrap().as_slice(), line);
        }
    }
}
