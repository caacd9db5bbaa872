//! Asks a running proxy over its admin listener: `healthcheck`, `recordings`, `support-bundle`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::check::describe;
use super::out::Out;
use super::{FAILED, MISUSED, load};
use crate::clock;
use crate::config::model::Config;

/// For the connection, and for each read.
const LIMIT: Duration = Duration::from_secs(5);

/// Longest answer, in octets: 50 recordings of twice 8 KiB, escaped, fit.
const MAX_ANSWER: u64 = 16 << 20;

/// The admin listener of a running proxy.
pub(super) struct Admin(SocketAddr);

impl Admin {
    /// Where the configuration says that it is; `None`: it is off, or on a port that the system chose.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let address = config.admin.as_ref()?.listen.iter().find(|address| address.port() != 0)?;
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
        };
        Some(Self(SocketAddr::new(ip, address.port())))
    }

    /// Status and body of a page.
    ///
    /// # Errors
    /// One sentence: nobody answers there, or not in HTTP.
    pub(super) fn get(&self, path: &str) -> Result<(u16, String), String> {
        let Self(address) = self;
        let failed = |error: std::io::Error| {
            format!(
                "no proxy answers at http://{address}{path}: {error}; is it running, with this configuration?"
            )
        };
        let mut stream = TcpStream::connect_timeout(address, LIMIT).map_err(failed)?;
        stream.set_read_timeout(Some(LIMIT)).map_err(failed)?;
        stream.set_write_timeout(Some(LIMIT)).map_err(failed)?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).map_err(failed)?;
        let answer = String::from_utf8_lossy(&answer);
        let foreign = || format!("what answers at http://{address}{path} is no mailkey");
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(foreign)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(foreign)?;
        Ok((status, body.to_owned()))
    }

    /// What the proxy says of its last reload, where it answers.
    pub(super) fn last_reload(&self) -> Option<serde_json::Value> {
        let (_, body) = self.get("/status.json").ok()?;
        let mut status: serde_json::Value = serde_json::from_str(&body).ok()?;
        Some(status.get_mut("last-reload")?.take()).filter(|report| !report.is_null())
    }
}

/// Whether the proxy can serve mail clients, for probes of containers: exit code 0 or 1.
pub fn healthcheck(path: &Path, out: &mut Out) -> ExitCode {
    let admin = match admin(path, out) {
        Ok((_, admin)) => admin,
        Err(code) => return code,
    };
    match admin.get("/readyz") {
        Ok((200, body)) => {
            out.line(body.trim());
            ExitCode::SUCCESS
        }
        Ok((_, body)) => {
            out.error(body.trim());
            ExitCode::from(FAILED)
        }
        Err(error) => {
            out.error(error);
            ExitCode::from(FAILED)
        }
    }
}

/// Prints the dialogues of the last failed sessions.
pub fn recordings(path: &Path, out: &mut Out) -> ExitCode {
    let told = admin(path, out).and_then(|(_, admin)| match admin.get("/recordings") {
        Ok((200, body)) => Ok(body),
        Ok((status, body)) => {
            out.error(format_args!("the proxy answers {status}: {}", body.trim()));
            Err(ExitCode::from(FAILED))
        }
        Err(error) => {
            out.error(error);
            Err(ExitCode::from(FAILED))
        }
    });
    match told {
        Ok(body) => {
            out.line(body);
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// Options of `mailkey support-bundle`.
#[derive(Args, Debug)]
pub struct BundleArguments {
    /// The folder to make [default: mailkey-support-<date>]
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Collects what somebody who helps needs to see into a new folder. No secret stands in it.
pub fn support_bundle(wishes: BundleArguments, path: &Path, out: &mut Out) -> ExitCode {
    let loaded = crate::config::load(path, &super::run::environment);
    let folder = wishes.folder.unwrap_or_else(|| {
        PathBuf::from(format!("mailkey-support-{}", clock::wall().strftime("%Y%m%dT%H%M%SZ")))
    });
    let mut files = vec![(
        "version.txt",
        format!(
            "mailkey {} on {} {}\n",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH
        ),
    )];
    let config = match loaded {
        Ok(loaded) => {
            files.push(("check.txt", describe(&loaded.config)));
            Some(loaded.config)
        }
        Err(problems) => {
            files.push(("check.txt", problems.to_string()));
            None
        }
    };
    for (name, page) in [
        ("status.json", "/status.json"),
        ("metrics.txt", "/metrics"),
        ("ready.txt", "/readyz"),
        ("recordings.txt", "/recordings"),
    ] {
        let told = match config.as_ref().and_then(Admin::of) {
            Some(admin) => admin.get(page).map_or_else(|error| error, |(_, body)| body),
            None => "the configuration names no admin listener that could be asked".to_owned(),
        };
        files.push((name, told));
    }
    if let Err(error) = write_bundle(&folder, &files) {
        out.error(format_args!("`{}` cannot be written: {error}", folder.display()));
        return ExitCode::from(FAILED);
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    out.line(format_args!("{}: {}", folder.display(), names.join(", ")));
    out.line(
        "User names and addresses stand in it, passwords and tokens do not. Add the last lines of the log.",
    );
    ExitCode::SUCCESS
}

fn write_bundle(folder: &Path, files: &[(&str, String)]) -> std::io::Result<()> {
    // a folder that is there already is somebody else's
    fs::create_dir(folder)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    files.iter().try_for_each(|(name, content)| fs::write(folder.join(name), content))
}

fn admin(path: &Path, out: &mut Out) -> Result<(Config, Admin), ExitCode> {
    let config = load(path, out)?;
    let Some(admin) = Admin::of(&config) else {
        out.error("`admin` is off, or has no port of its own: set `admin.listen`");
        return Err(ExitCode::from(MISUSED));
    };
    Ok((config, admin))
}
