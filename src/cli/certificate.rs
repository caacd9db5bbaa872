//! `mailkey certificate`: a certificate authority of one's own and a server certificate, for listeners with `tls`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::out::Out;
use super::{FAILED, MISUSED};
use crate::clock;

/// The names that every certificate holds besides the given ones.
const ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// How long the authority is good for, in days.
const AUTHORITY_DAYS: i64 = 3650;

/// Certificates are good from a day ago: clocks differ.
const EARLIER: SignedDuration = SignedDuration::from_hours(-24);

/// Options of `mailkey certificate`.
#[derive(Args, Debug)]
pub struct CertificateArguments {
    /// A name or address that mail clients connect to, besides localhost; may be given several times
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Where the files go; left out: `certs` beside the configuration file
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// How long the server certificate is good for, in days
    #[arg(long, default_value_t = 397, value_parser = clap::value_parser!(i64).range(1..=3650))]
    days: i64,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

/// The files, in the order in which they are written.
#[derive(Debug)]
pub struct Files {
    /// To be trusted by mail clients.
    pub authority: PathBuf,
    /// Signs certificates; to be kept away from everybody, or deleted.
    pub authority_key: PathBuf,
    /// `tls.certificate-file`.
    pub certificate: PathBuf,
    /// `tls.key-file`.
    pub key: PathBuf,
}

impl Files {
    /// In this directory.
    pub fn inside(directory: &Path) -> Self {
        Self {
            authority: directory.join("ca.pem"),
            authority_key: directory.join("ca.key"),
            certificate: directory.join("server.pem"),
            key: directory.join("server.key"),
        }
    }

    /// Those that are there.
    fn existing(&self) -> Vec<&Path> {
        [&self.authority, &self.authority_key, &self.certificate, &self.key]
            .into_iter()
            .map(PathBuf::as_path)
            .filter(|path| path.symlink_metadata().is_ok())
            .collect()
    }
}

/// Makes the files, and says what to do with them.
pub fn certificate(config: &Path, wishes: &CertificateArguments, out: &mut Out) -> ExitCode {
    let beside = config.parent().unwrap_or_else(|| Path::new("")).join("certs");
    let directory = wishes.directory.as_deref().unwrap_or(&beside);
    let files = Files::inside(directory);
    let existing = files.existing();
    if let (false, Some(first)) = (wishes.force, existing.first()) {
        out.error(format_args!("`{}` is there already; `--force` replaces it", first.display()));
        return ExitCode::from(MISUSED);
    }
    match make(directory, &wishes.names, wishes.days, wishes.force, clock::wall()) {
        Ok((files, names)) => {
            out.line(format_args!(
                "{} is good for {} for {} days\n\
                 {} is to be trusted by mail clients (their machine's or their Java's list of roots)\n\
                 {} can make certificates that they will trust: keep it away from this machine, or delete it\n\n\
                 in proxy.yaml:\n\n\
                 tls:\n  certificate-file: {}\n  key-file: {}\n",
                files.certificate.display(),
                names.join(", "),
                wishes.days,
                files.authority.display(),
                files.authority_key.display(),
                quoted(&files.certificate),
                quoted(&files.key),
            ));
            ExitCode::SUCCESS
        }
        Err(why) => {
            out.error(format_args!("no certificate was made: {why}"));
            ExitCode::from(FAILED)
        }
    }
}

/// A path for the file beside which it stands: absolute, so that it holds from everywhere.
fn quoted(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    format!("'{}'", path.display().to_string().replace('\'', "''"))
}

/// Makes both pairs. Keys are readable by their owner alone from their first byte on.
///
/// # Errors
/// In words: a name that is none, a directory or a file that cannot be written.
pub fn make(
    directory: &Path,
    names: &[String],
    days: i64,
    force: bool,
    now: Timestamp,
) -> Result<(Files, Vec<String>), String> {
    let mut all: Vec<String> = ALWAYS.map(str::to_owned).to_vec();
    for name in names {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:*".contains(&b);
        if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) {
            return Err(format!("`{name}` is no name or address that a certificate can hold"));
        }
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    let (authority, certificate, key) = issue(&all, days, now).map_err(|error| error.to_string())?;
    let files = Files::inside(directory);
    fs::create_dir_all(directory).map_err(|error| format!("`{}`: {error}", directory.display()))?;
    for (path, content, private) in [
        (&files.authority, authority.pem(), false),
        (&files.authority_key, authority.key().serialize_pem(), true),
        (&files.certificate, certificate, false),
        (&files.key, key.serialize_pem(), true),
    ] {
        write(path, &content, private, force).map_err(|error| format!("`{}`: {error}", path.display()))?;
    }
    Ok((files, all))
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// The authority, the chain that the server shows, and the server's key.
fn issue(names: &[String], days: i64, now: Timestamp) -> Result<(Issuer, String, KeyPair), rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    let made = now.strftime("%Y-%m-%d");
    params.distinguished_name.push(DnType::CommonName, format!("Mailkey local authority, {made}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit(&mut params, now, AUTHORITY_DAYS);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    let name = names.iter().find(|name| !ALWAYS.contains(&name.as_str())).map_or("localhost", String::as_str);
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    limit(&mut params, now, days);
    let certificate = params.signed_by(&key, &authority)?.pem();
    Ok((authority, certificate, key))
}

/// Year, month and day, as rcgen takes them.
fn date(now: Timestamp, later: SignedDuration) -> (i32, u8, u8) {
    let date = now.checked_add(later).unwrap_or(now).to_zoned(TimeZone::UTC).date();
    let part = |number: i8| u8::try_from(number).unwrap_or(1);
    (i32::from(date.year()), part(date.month()), part(date.day()))
}

/// From a day ago on.
fn limit(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let (year, month, day) = date(now, EARLIER);
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = date(now, SignedDuration::from_hours(days.saturating_mul(24)));
    params.not_after = date_time_ymd(year, month, day);
}

fn write(path: &Path, content: &str, private: bool, force: bool) -> io::Result<()> {
    if force {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(if private { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = private;
    options.open(path)?.write_all(content.as_bytes())
}
