//! The command line: one command, one file.
//!
//! Exit codes: 0 well, 1 it did not work, 2 the command line or the configuration is wrong.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::out::Out;
use crate::config::model::Config;
use crate::explain::Explain as _;

pub mod ask;
pub mod certificate;
pub mod check;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod hash_password;
pub mod init;
pub mod login;
mod loopback;
pub mod out;
pub mod pid_file;
mod privileges;
pub mod reference;
pub mod run;
pub mod schema;
mod service;
pub mod setup_script;
pub mod tokens;

/// It did not work.
pub const FAILED: u8 = 1;

/// The command line or the configuration is wrong.
pub const MISUSED: u8 = 2;

#[derive(Debug, Parser)]
#[command(name = "mailkey", version, about, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args, Debug)]
struct Place {
    /// The configuration file
    #[arg(
        long,
        short,
        global = true,
        env = "MAILKEY_CONFIG",
        default_value = "proxy.yaml",
        value_name = "FILE"
    )]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the listeners of the configuration file (this is the default)
    Run,
    /// Check the configuration file: every problem at once, or what would run
    Check,
    /// Find out at which step it fails, whose turn it is, and what to do
    Doctor(doctor::DoctorArguments),
    /// Show the whole thing on this machine alone: a simulated Office 365, the real proxy, a message there and back
    Demo(demo::DemoArguments),
    /// Sign in ahead of the first mail client, for the grants that need a person: device code or browser
    Login(login::LoginArguments),
    /// List the sign-ins that are kept: who, since when, until when. Never a token
    Tokens(tokens::TokensArguments),
    /// Remove the sign-ins of a user (exit code 1 if there was none)
    Logout {
        /// The user name, as the mail client signs in with it
        user: String,
    },
    /// Explain an error code or a pasted error text: whose fault, and what to do
    Explain {
        /// `AADSTS50126`, or any text that holds an error of Entra ID or Exchange Online
        #[arg(required_unless_present = "all")]
        text: Vec<String>,
        /// Print the page of all codes, as docs/errors.md has it
        #[arg(long, conflicts_with = "text")]
        all: bool,
    },
    /// Have the running proxy read its configuration, certificates and secrets anew (needs `run.pid-file`)
    Reload,
    /// Ask the running proxy whether it can serve mail clients: exit code 0 or 1, for container probes
    Healthcheck,
    /// Print the dialogues of the last failed sessions of the running proxy, without their secrets
    Recordings,
    /// Collect what somebody who helps needs to see into a folder: no password, no token
    SupportBundle(ask::BundleArguments),
    /// Write a configuration file: five questions, or flags
    Init(init::InitArguments),
    /// Print the PowerShell that prepares the tenant: application, permissions, consent, mailbox
    SetupScript(setup_script::ScriptArguments),
    /// Make a local certificate authority and a server certificate, for listeners with `tls`
    Certificate(certificate::CertificateArguments),
    /// Print the JSON schema of the configuration file, for editors
    Schema,
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: reference::ShellName,
    },
    /// Print the manual page
    Man(reference::ManArguments),
    /// Make a `password-hash` for `accounts` from a password on standard input
    HashPassword,
}

/// Runs the command that the arguments name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut out = Out::standard();
    crate::telemetry::panics::tell_the_place_only();
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(told) => {
            // help and version are no mistakes; clap knows which stream each belongs to
            drop(told.print());
            return ExitCode::from(if told.use_stderr() { MISUSED } else { 0 });
        }
    };
    install_crypto();
    let config = arguments.place.config;
    match arguments.command.unwrap_or(Command::Run) {
        Command::Run => run::run(&config, &mut out),
        Command::Check => check::check(&config, &mut out),
        Command::Doctor(wishes) => doctor::doctor(&config, &wishes, &mut out),
        Command::Demo(wishes) => demo::demo(&wishes, &mut out),
        Command::Login(wishes) => login::login(&wishes, &config, &mut out),
        Command::Tokens(wishes) => tokens::tokens(&wishes, &config, &mut out),
        Command::Logout { user } => tokens::logout(&user, &config, &mut out),
        Command::Explain { all: true, .. } => {
            ended(explain::page(out.writers().0).map(|()| ExitCode::SUCCESS))
        }
        Command::Explain { text, .. } => ended(explain::run(&text.join(" "), out.writers().0)),
        Command::Reload => pid_file::reload(&config, &mut out),
        Command::Healthcheck => ask::healthcheck(&config, &mut out),
        Command::Recordings => ask::recordings(&config, &mut out),
        Command::SupportBundle(wishes) => ask::support_bundle(wishes, &config, &mut out),
        Command::Init(wishes) => init::init(&config, &wishes, &mut std::io::stdin().lock(), &mut out),
        Command::SetupScript(wishes) => setup_script::setup_script(&config, &wishes, &mut out),
        Command::Certificate(wishes) => certificate::certificate(&config, &wishes, &mut out),
        Command::Schema => schema::schema(&mut out),
        Command::Completions { shell } => reference::completions(Arguments::command(), shell, &mut out),
        Command::Man(wishes) => reference::man(Arguments::command(), &wishes, &mut out),
        Command::HashPassword => {
            let (results, messages) = out.writers();
            ended(hash_password::run(&mut std::io::stdin().lock(), results, messages))
        }
    }
}

/// A reader that has gone away (`mailkey explain … | head`) is no error worth a word.
fn ended(written: std::io::Result<ExitCode>) -> ExitCode {
    written.unwrap_or(ExitCode::from(FAILED))
}

/// The configuration; what is wrong with it is said, and ends the command.
fn load(path: &Path, out: &mut Out) -> Result<Config, ExitCode> {
    let loaded = crate::config::load(path, &run::environment).map_err(|problems| {
        out.error(problems);
        ExitCode::from(MISUSED)
    })?;
    Ok(loaded.config)
}

/// The configuration, for a command that opens the token store: what it writes there belongs to `run.user`.
fn load_for_store(path: &Path, out: &mut Out) -> Result<Config, ExitCode> {
    let config = load(path, out)?;
    go_on_as(&config, out)?;
    Ok(config)
}

/// Root becomes `run.user`; whoever else runs a command stays who they are.
fn go_on_as(config: &Config, out: &mut Out) -> Result<(), ExitCode> {
    let assumed = privileges::Identity::of(&config.run).and_then(|identity| match identity {
        Some(identity) if privileges::is_root() => identity.assume(),
        Some(_) | None => Ok(()),
    });
    assumed.map_err(|error| {
        let story = error.explain();
        out.error(format_args!("{}; {}", story.what, story.remedy));
        ExitCode::from(FAILED)
    })
}

/// One TLS provider for everything, also for crates that ask for the process's default.
fn install_crypto() {
    // a second call finds the same provider in place
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arguments stand in the list of processes, for every user of the machine to read.
    #[test]
    fn no_argument_takes_a_secret() {
        fn look(command: &clap::Command, seen: &mut usize) {
            for argument in command.get_arguments().filter(|argument| argument.get_action().takes_values()) {
                *seen += 1;
                let name = argument.get_id().as_str();
                let secret = ["password", "secret", "token", "key"].iter().any(|word| name.contains(word));
                assert!(!secret || name.ends_with("_file"), "{}: {name}", command.get_name());
            }
            command.get_subcommands().for_each(|command| look(command, seen));
        }
        let mut seen = 0;
        look(&Arguments::command(), &mut seen);
        assert!(seen > 10, "{seen} arguments were looked at");
    }
}
