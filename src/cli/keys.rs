//! `granary keys`: the file of API keys. It opens that file only; a running server takes a change over by itself.

use std::io::{self, BufRead, IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Failure, output};
use crate::auth::{KeyFile, KeyFileError, NewKey};
use crate::config::{Config, ConfigSources, Overrides};
use crate::domain::{ApiKey, KeyName, ModelName, Scope, Scopes};

/// The arguments of `granary keys`.
#[derive(Clone, Debug, Args)]
pub struct KeysArgs {
    /// Read this configuration file [default: granary.toml, if there is one]
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// The keys are in this directory (`models.data_dir`)
    #[arg(long, global = true, value_name = "PATH")]
    pub data_dir: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub verb: KeysVerb,
}

/// What `granary keys` does.
#[derive(Clone, Debug, Subcommand)]
pub enum KeysVerb {
    /// Make a key, keep its hash, and print the key: it is shown this once
    Add(AddArgs),
    /// List the keys, those of the configuration too
    List,
    /// Remove a key: it is not valid any more within seconds
    Remove {
        /// The key's name
        name: KeyName,
    },
    /// Read a key from standard input and print its hash, for `[[auth.keys]]` or `GRANARY_AUTH__KEYS`
    Hash,
}

/// The flags of `granary keys add`.
#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// What the log and `keys list` call it
    pub name: KeyName,
    /// What it allows, with commas between: embed, read, write, admin (which is all of them)
    #[arg(long = "scope", value_name = "SCOPES", required = true, value_delimiter = ',')]
    pub scopes: Vec<Scope>,
    /// The model of its requests that name none [default: the active one]
    #[arg(long, value_name = "NAME")]
    pub model: Option<ModelName>,
    /// Requests a minute [default: any number]
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub rate: Option<NonZeroU32>,
    /// Tokens a minute, of the texts that are embedded for it [default: any number]
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub tokens: Option<NonZeroU32>,
}

/// `granary keys` did not work.
#[derive(Debug, thiserror::Error)]
pub enum KeysCliError {
    /// The configuration has the last word on its keys.
    #[error("`{name}` is a key of the configuration ({origin}): change it there, or choose another name")]
    Configured {
        /// The name.
        name: KeyName,
        /// The file or variable that has it.
        origin: String,
    },
    /// The same of a key that the file has not.
    #[error("`{name}` is a key of the configuration ({origin}), and the file has none of this name: remove it there")]
    OnlyConfigured {
        /// The name.
        name: KeyName,
        /// The file or variable that has it.
        origin: String,
    },
    /// Standard input holds nothing to hash.
    #[error("no key can be read from standard input")]
    Read(#[source] io::Error),
    /// There is no use in a key that nobody knows.
    #[error("the key cannot be printed, so `{name}` is removed again")]
    Unseen {
        /// The key's name.
        name: KeyName,
        /// What the system said.
        source: io::Error,
    },
    /// The same, and it is still there.
    #[error("the key cannot be printed, and stays: `granary keys remove {name}` removes it")]
    UnseenStays {
        /// The key's name.
        name: KeyName,
        /// Why it was not removed.
        source: KeyFileError,
    },
}

/// Does what `args` say and prints to `out` what came of it.
///
/// # Errors
/// [`KeysCliError`], or what the configuration or the file of keys has against it.
pub fn run(args: KeysArgs, out: &mut impl Write) -> Result<(), Failure> {
    if matches!(args.verb, KeysVerb::Hash) {
        return Ok(output::print(&format!("{}\n", read_key()?.hash()), out)?);
    }
    let overrides = Overrides { data_dir: args.data_dir, ..Overrides::default() };
    let config = Config::load(&ConfigSources::from_process(args.config, overrides))?;
    let file = KeyFile::at(config.keys_path());
    match args.verb {
        KeysVerb::Add(args) => add(&config, &file, args, out),
        KeysVerb::List => Ok(output::print(&listed(&config.auth.keys, &file.read()?), out)?),
        KeysVerb::Remove { name } => remove(&config, &file, name, out),
        KeysVerb::Hash => Ok(()),
    }
}

fn add(config: &Config, file: &KeyFile, args: AddArgs, out: &mut impl Write) -> Result<(), Failure> {
    let AddArgs { name, scopes, model, rate, tokens } = args;
    if let Some(origin) = origin_of(&name, config) {
        return Err(KeysCliError::Configured { name, origin }.into());
    }
    let key = NewKey::random()?;
    file.add(ApiKey { name: name.clone(), hash: key.hash(), scopes: Scopes::of(scopes)?, model, rate, tokens })?;
    // Standard output holds the key alone, so that a script can take it from there.
    let place = file.path().display();
    let _ = writeln!(io::stderr(), "`{name}` is in `{place}`. This is the key, shown this once:");
    if config.auth.disabled {
        let _ = writeln!(io::stderr(), "`auth.disabled` is true: the server asks for no key.");
    }
    // Whoever leaves early has not seen it.
    let shown = writeln!(out, "{}", key.reveal()).and_then(|()| out.flush());
    Ok(shown.map_err(|source| match file.remove(&name) {
        Ok(()) => KeysCliError::Unseen { name, source },
        Err(source) => KeysCliError::UnseenStays { name, source },
    })?)
}

/// Removes a key from the file, where it may stand behind one of the configuration that has its name.
fn remove(config: &Config, file: &KeyFile, name: KeyName, out: &mut impl Write) -> Result<(), Failure> {
    let configured = origin_of(&name, config);
    if let Some(origin) = &configured
        && !file.read()?.iter().any(|key| key.name == name)
    {
        return Err(KeysCliError::OnlyConfigured { name, origin: origin.clone() }.into());
    }
    file.remove(&name)?;
    let stays = configured.map(|origin| format!("; that of the configuration ({origin}) stays")).unwrap_or_default();
    Ok(output::print(&format!("`{name}` is removed from `{}`{stays}\n", file.path().display()), out)?)
}

/// The file or variable by which a key of the configuration has this name, if one has.
fn origin_of(name: &KeyName, config: &Config) -> Option<String> {
    config.auth.keys.iter().any(|key| key.name == *name).then(|| config.origin("auth.keys"))
}

/// The first line of standard input.
fn read_key() -> Result<NewKey, Failure> {
    let mut input = io::stdin().lock();
    if input.is_terminal() {
        let _ = writeln!(io::stderr(), "The key, then Enter:");
    }
    let mut line = String::new();
    input.read_line(&mut line).map_err(KeysCliError::Read)?;
    Ok(NewKey::chosen(line.trim_end_matches(['\r', '\n']))?)
}

/// One line a key, under a line of titles.
fn listed(configured: &[ApiKey], kept: &[ApiKey]) -> String {
    let per_minute = |most: Option<NonZeroU32>| most.map_or_else(|| "-".to_owned(), |most| format!("{most}/min"));
    let row = |key: &ApiKey, place: &str| {
        [
            key.name.to_string(),
            key.scopes.to_string(),
            key.model.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            per_minute(key.rate),
            per_minute(key.tokens),
            place.to_owned(),
        ]
    };
    let configured = configured.iter().map(|key| row(key, "configuration"));
    let kept = kept.iter().map(|key| row(key, "file"));
    output::titled(["NAME", "SCOPES", "MODEL", "RATE", "TOKENS", "FROM"], configured.chain(kept))
}

fn parse_limit(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| format!("expected a whole number from 1 to {}", u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::KeyHash;

    #[test]
    fn limits_that_are_none_are_refused_with_what_is_expected() {
        assert_eq!(parse_limit("60").map(NonZeroU32::get), Ok(60));
        for text in ["0", "-1", "1.5", "", "4294967296"] {
            assert_eq!(parse_limit(text), Err("expected a whole number from 1 to 4294967295".to_owned()), "{text}");
        }
    }

    #[test]
    fn the_table_shows_what_each_key_allows_and_no_hash() {
        let key = |name: &str, scopes: &[Scope]| ApiKey {
            name: name.parse().expect("a name"),
            hash: KeyHash::of(name),
            scopes: Scopes::of(scopes.iter().copied()).expect("scopes"),
            model: None,
            rate: None,
            tokens: None,
        };
        let mut limited = key("search", &[Scope::Read, Scope::Embed]);
        limited.rate = NonZeroU32::new(60);
        limited.tokens = NonZeroU32::new(9000);
        limited.model = Some("tiny".parse().expect("a name"));
        assert_eq!(
            listed(&[key("ops", &[Scope::Admin])], &[limited]),
            "NAME    SCOPES      MODEL  RATE    TOKENS    FROM\n\
             ops     admin       -      -       -         configuration\n\
             search  embed,read  tiny   60/min  9000/min  file\n"
        );
    }
}
