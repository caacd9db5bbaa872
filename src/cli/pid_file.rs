//! The process's number in a file, and `mailkey reload`, which reads it. The file is locked while its process
//! lives: a number that was left behind is told from one that counts.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::ask::Admin;
use super::out::Out;
use super::{FAILED, MISUSED, load};

/// How long `mailkey reload` waits for the proxy to say how it went.
const REPORT_LIMIT: Duration = Duration::from_secs(15);

/// Longest content of a file that is taken for a number.
const MAX_DIGITS: u64 = 16;

/// Ours, for as long as the process lives.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// Writes our number.
    ///
    /// # Errors
    /// One sentence: another process holds it, or it cannot be written.
    pub(super) fn take(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!("the pid file `{}` cannot be written: {error}; correct `run.pid-file`", path.display())
        };
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "another mailkey runs already: it holds `{}`; stop it, or give this one a `run.pid-file` of its own",
                    path.display()
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _locked: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // what is left behind is not locked, and so counts for nothing
        drop(std::fs::remove_file(&self.path));
    }
}

/// Checks the configuration, has the running proxy take it, and says how that went.
pub fn reload(path: &Path, out: &mut Out) -> ExitCode {
    let config = match load(path, out) {
        Ok(config) => config,
        Err(code) => {
            out.error("nothing was reloaded: the proxy runs on with what it has");
            return code;
        }
    };
    let Some(pid_file) = &config.run.pid_file else {
        out.error(
            "set `run.pid-file` and restart the proxy once, or send it SIGHUP (`systemctl reload mailkey`)",
        );
        return ExitCode::from(MISUSED);
    };
    let admin = Admin::of(&config);
    let before = admin.as_ref().and_then(Admin::last_reload);
    if let Err(error) = running(pid_file).and_then(hang_up) {
        out.error(error);
        return ExitCode::from(FAILED);
    }
    let Some(admin) = admin else {
        out.line("the proxy was told; its log says how it went (`admin` is off)");
        return ExitCode::SUCCESS;
    };
    let mut waited = Duration::ZERO;
    while waited < REPORT_LIMIT {
        let pause = Duration::from_millis(100);
        std::thread::sleep(pause);
        waited += pause;
        let now = admin.last_reload();
        if let Some(report) = now.filter(|now| before.as_ref() != Some(now)) {
            let what = report.get("what").and_then(|what| what.as_str()).unwrap_or_default();
            if report.get("is-taken").and_then(serde_json::Value::as_bool) == Some(true) {
                out.line(format_args!("reloaded: {what}"));
                return ExitCode::SUCCESS;
            }
            out.error(format_args!("not reloaded, the proxy runs on with what it has:\n{what}"));
            return ExitCode::from(FAILED);
        }
    }
    out.error("the proxy was told, but does not say how it went; see its log");
    ExitCode::from(FAILED)
}

/// The number of the process that holds the file.
fn running(path: &Path) -> Result<i32, String> {
    let nobody =
        || format!("no proxy runs with the pid file `{}`; start it with `mailkey run`", path.display());
    let file = File::open(path).map_err(|_| nobody())?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        Ok(()) | Err(TryLockError::Error(_)) => return Err(nobody()),
    }
    let mut text = String::new();
    file.take(MAX_DIGITS).read_to_string(&mut text).map_err(|_| nobody())?;
    text.trim().parse().ok().filter(|pid| *pid > 0).ok_or_else(nobody)
}

#[cfg(unix)]
fn hang_up(pid: i32) -> Result<(), String> {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP)
        .map_err(|error| format!("the proxy (process {pid}) cannot be told: {error}; run this as its user"))
}

#[cfg(not(unix))]
fn hang_up(_pid: i32) -> Result<(), String> {
    Err("this system has no SIGHUP: restart the proxy, or set `run.reload-on-change: true`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_left_behind_is_told_from_one_that_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailkey.pid");
        std::fs::write(&path, "1\n").unwrap();
        assert!(running(&path).unwrap_err().contains("no proxy runs"));
        let held = PidFile::take(&path).unwrap();
        assert_eq!(running(&path), Ok(i32::try_from(std::process::id()).unwrap()));
        assert!(PidFile::take(&path).unwrap_err().contains("another mailkey"));
        drop(held);
        assert!(!path.exists());
    }
}
