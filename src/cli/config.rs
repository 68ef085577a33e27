//! `granary config`: print the configuration the server would start with, or the commented default.

use std::io::Write;

use super::{ConfigArgs, Failure, output};
use crate::app;
use crate::config::{Config, ConfigSources, Overrides};

/// Prints to `out` what `args` ask for, from this process's environment and working directory.
///
/// # Errors
/// When the configuration is refused, or `out` fails. A reader that leaves early (`granary config | head`) is no error.
pub fn run(args: ConfigArgs, out: &mut impl Write) -> Result<(), Failure> {
    if args.default {
        return Ok(output::print(Config::default_toml(), out)?);
    }
    let config = Config::load(&ConfigSources::from_process(args.config, Overrides::default()))?;
    app::catalog(&config)?;
    app::timeouts(&config)?;
    Ok(output::print(&config.effective_toml(), out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_printed_with_its_comments() {
        let mut out = Vec::new();
        run(ConfigArgs { default: true, config: None }, &mut out).expect("printed");
        assert_eq!(out, Config::default_toml().as_bytes());
    }

    #[test]
    fn a_missing_file_is_refused() {
        let args = ConfigArgs { default: false, config: Some("no/such/file.toml".into()) };
        let error = run(args, &mut Vec::new()).expect_err("no such file");
        assert!(error.to_string().contains("no/such/file.toml"), "{error}");
    }
}
