//! `granary man` and `granary completions`: what a package installs beside the binary, made from the flags themselves.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Failure, ProcessError, output};

/// The flags of `granary man`.
#[derive(Clone, Debug, Default, Args)]
pub struct ManArgs {
    /// Write the pages of all commands into this folder [default: print the first]
    #[arg(long, value_name = "PATH")]
    pub into: Option<PathBuf>,
}

/// The arguments of `granary completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that is to complete what is typed
    pub shell: Shell,
}

/// `granary man` or `granary completions` did not work.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// The folder of pages.
    #[error("the manual pages cannot be written into `{}`", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Prints the page of `granary` to `out`, or writes those of all commands into a folder, which is made where it is missing.
///
/// # Errors
/// [`ManualError`], or [`ProcessError`]. A reader that leaves early is no error.
pub fn man(args: ManArgs, out: &mut impl Write) -> Result<(), Failure> {
    // A page for `granary help models pull` would say nothing.
    let command = Cli::command().disable_help_subcommand(true);
    let Some(folder) = args.into else {
        let mut page = Vec::new();
        Man::new(command).render(&mut page).map_err(ProcessError::Print)?;
        return print(&page, out);
    };
    let written = fs_err::create_dir_all(&folder).and_then(|()| clap_mangen::generate_to(command, &folder));
    Ok(written.map_err(|source| ManualError::Write { folder, source })?)
}

/// Prints to `out` the script that makes a shell complete commands and flags.
///
/// # Errors
/// [`ProcessError`]. A reader that leaves early is no error.
pub fn completions(args: &CompletionsArgs, out: &mut impl Write) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "granary", &mut script);
    print(&script, out)
}

fn print(text: &[u8], out: &mut impl Write) -> Result<(), Failure> {
    Ok(output::print(&String::from_utf8_lossy(text), out)?)
}
