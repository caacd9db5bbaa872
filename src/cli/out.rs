//! The one writer to standard output and standard error: the command line says everything through it.

use std::fmt::Display;
use std::io::{self, Write};

/// Standard output for results, standard error for complaints.
///
/// Control characters never get through: names out of a file cannot move the cursor. A reader that has gone
/// away (`mailkey check | head`) is no error.
pub struct Out {
    results: Box<dyn Write + Send>,
    complaints: Box<dyn Write + Send>,
}

impl Out {
    /// The process's own.
    pub fn standard() -> Self {
        Self::new(io::stdout(), io::stderr())
    }

    /// Any two writers, for tests.
    pub fn new(results: impl Write + Send + 'static, complaints: impl Write + Send + 'static) -> Self {
        Self { results: Box::new(results), complaints: Box::new(complaints) }
    }

    /// Both writers as they are, results first, for a command that lays out its own text.
    pub fn writers(&mut self) -> (&mut dyn Write, &mut dyn Write) {
        (&mut *self.results, &mut *self.complaints)
    }

    /// A line, or several, of the result.
    pub fn line(&mut self, text: impl Display) {
        write(&mut *self.results, &text.to_string());
    }

    /// A line, or several, about what went wrong.
    pub fn error(&mut self, text: impl Display) {
        write(&mut *self.complaints, &text.to_string());
    }
}

fn write(to: &mut dyn Write, text: &str) {
    let mut line: String = text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect();
    if !line.ends_with('\n') {
        line.push('\n');
    }
    // There is nobody left to tell.
    let _unheard = to.write_all(line.as_bytes()).and_then(|()| to.flush());
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let (results, complaints) = (Heard::default(), Heard::default());
        let mut out = Out::new(results.clone(), complaints.clone());
        out.line("a\u{1b}[31m\r\nb");
        out.error("c\n");
        assert_eq!(results.0.lock().unwrap().as_slice(), b"a?[31m?\nb\n");
        assert_eq!(complaints.0.lock().unwrap().as_slice(), b"c\n");
    }
}
