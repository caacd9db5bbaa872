//! `mailkey hash-password`: makes a `password-hash` for `proxy.yaml` out of a password.

use std::io::{self, BufRead, Read as _, Write};
use std::process::ExitCode;

use zeroize::Zeroizing;

use crate::secret::{Credentials, MAX_PASSWORD};
use crate::token::password;

/// Reads one line, the password, and writes its hash, so that `mailkey hash-password < file` serves too. A
/// password is never an argument: every user of the machine could read it there.
///
/// What the program has to say goes to `messages`; `out` gets the hash alone. Exit code 1 where the line is no
/// password that a mail client could send.
///
/// # Errors
/// Input that cannot be read, output that cannot be written.
pub fn run(input: &mut dyn BufRead, out: &mut dyn Write, messages: &mut dyn Write) -> io::Result<ExitCode> {
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST_LINE));
    input.take(LONGEST_LINE as u64).read_until(b'\n', &mut line)?;
    let typed = line.strip_suffix(b"\n").unwrap_or(&line);
    let typed = typed.strip_suffix(b"\r").unwrap_or(typed);
    // The same reading as at a login: the same bytes must lead to the same password.
    let password = match Credentials::decode(b"user", typed) {
        Ok(credentials) => credentials.password,
        Err(why) => {
            writeln!(messages, "no hash was made: {why}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    if password.expose().trim().len() != password.expose().len() {
        writeln!(messages, "note: blanks at the ends are part of the password")?;
    }
    match password::hash(&password) {
        Ok(hash) => {
            writeln!(out, "{hash}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => {
            writeln!(messages, "no hash was made: {why}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The longest password, its line end, and one octet that shows that it is longer.
const LONGEST_LINE: usize = MAX_PASSWORD + 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::token::password::LocalPasswords;

    fn hashed(input: &[u8]) -> (String, String, ExitCode) {
        let (mut out, mut messages) = (Vec::new(), Vec::new());
        let code = run(&mut &*input, &mut out, &mut messages).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(messages).unwrap(), code)
    }

    #[tokio::test]
    async fn the_hash_opens_with_the_password_that_was_typed() {
        for (input, password) in [
            (&b"correct horse\n"[..], "correct horse"),
            (b"windows\r\nsecond line\n", "windows"),
            (b"no line end", "no line end"),
            (b" two words \n", " two words "),
            (b"caf\xe9\n", "caf\u{e9}"),
        ] {
            let (out, messages, code) = hashed(input);
            assert_eq!(code, ExitCode::SUCCESS, "{messages}");
            assert!(!out.contains(password) && !messages.contains(password));
            let hash = out.strip_suffix('\n').unwrap().to_owned();
            let local = LocalPasswords::new();
            assert!(
                local.verify(std::slice::from_ref(&hash), "a", &Secret::new(password)).await,
                "{password}"
            );
            assert!(!local.verify(&[hash], "a", &Secret::new("other")).await);
        }
    }

    #[test]
    fn what_no_client_could_send_is_refused() {
        for input in [&b""[..], b"\n", b"with\0nul\n", &[b'x'; 5000]] {
            let (out, messages, code) = hashed(input);
            assert_eq!((out.as_str(), code), ("", ExitCode::FAILURE));
            assert!(messages.starts_with("no hash was made: "), "{messages}");
        }
        let (_, messages, code) = hashed(&[&[b'x'; MAX_PASSWORD][..], b"\r\n"].concat());
        assert_eq!(code, ExitCode::SUCCESS, "{messages}");
    }
}
