//! `mailkey completions` and `mailkey man`: made from the command line's own definition.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};
use clap_complete::{Shell, generate};

use super::out::Out;
use super::{FAILED, MISUSED};

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ShellName {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
    /// PowerShell
    #[value(name = "powershell")]
    PowerShell,
}

/// Options of `mailkey man`.
#[derive(Args, Debug)]
pub struct ManArguments {
    /// The page of this command; left out: of `mailkey` itself
    #[arg(value_name = "COMMAND", conflicts_with = "directory")]
    command: Option<String>,
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

/// Prints the completion script of a shell.
pub fn completions(mut command: Command, shell: ShellName, out: &mut Out) -> ExitCode {
    let shell = match shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
        ShellName::PowerShell => Shell::PowerShell,
    };
    // clap_complete ends the process where its writer fails: the text is made here, and written by us
    let mut script = Vec::new();
    generate(shell, &mut command, "mailkey", &mut script);
    written(&out.writers().0.write_all(&script))
}

/// Prints a page, or writes all of them.
pub fn man(mut command: Command, wishes: &ManArguments, out: &mut Out) -> ExitCode {
    command.build();
    if let Some(directory) = &wishes.directory {
        return match write_all(&command, directory) {
            Ok(pages) => {
                out.line(format_args!("{pages} pages in {}", directory.display()));
                ExitCode::SUCCESS
            }
            Err(error) => {
                out.error(format_args!("no pages in `{}`: {error}", directory.display()));
                ExitCode::from(FAILED)
            }
        };
    }
    let chosen = match &wishes.command {
        None => command,
        Some(name) => {
            let Some(found) = command.find_subcommand(name) else {
                out.error(format_args!("there is no command `{name}`: see `mailkey --help`"));
                return ExitCode::from(MISUSED);
            };
            found.clone()
        }
    };
    written(&clap_mangen::Man::new(chosen).render(&mut out.writers().0))
}

fn write_all(command: &Command, directory: &Path) -> io::Result<usize> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command.clone(), directory)?;
    Ok(1 + command.get_subcommands().count())
}

/// A reader that has gone away is no error worth a word.
fn written(result: &io::Result<()>) -> ExitCode {
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
