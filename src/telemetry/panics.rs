//! What is said of a panic: where it happened, and never what the value was that it happened over.

use std::io::Write as _;
use std::panic::PanicHookInfo;

/// From now on, a panic is one line with its place: in the log where there is one, else on standard error. The
/// message is left out: it may quote what passed through.
pub fn tell_the_place_only() {
    std::panic::set_hook(Box::new(|panic| {
        let place = place(panic);
        if tracing::dispatcher::has_been_set() {
            tracing::error!(
                place,
                "a panic: a defect of this program; the session that met it is lost, others go on"
            );
        } else {
            // there is nobody left to tell
            drop(writeln!(std::io::stderr(), "a panic at {place}: a defect of this program"));
        }
    }));
}

/// `src/serve/session.rs:12:5`.
fn place(panic: &PanicHookInfo<'_>) -> String {
    panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_tells_its_place_and_nothing_of_its_message() {
        let heard = Heard::default();
        let writer = heard.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let before = std::panic::take_hook();
        tell_the_place_only();
        let met = tracing::subscriber::with_default(log, || {
            std::panic::catch_unwind(|| panic!("the password is hunter2"))
        });
        std::panic::set_hook(before);
        assert!(met.is_err());
        let told = String::from_utf8(heard.0.lock().unwrap().clone()).unwrap();
        assert!(told.contains("panics.rs:") && told.contains("ERROR"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}
