//! Lines that must hold: each is printed with its figures, and a broken one decides the exit code.

use crate::support::Failure;

/// By how much memory may differ from what it was.
pub const DRIFT: f64 = 0.10;

/// The lines checked so far.
#[derive(Debug, Default)]
pub struct Checks {
    n_broken: usize,
}

impl Checks {
    /// Prints a line and whether it holds.
    pub fn line(&mut self, holds: bool, what: &str) {
        self.n_broken += usize::from(!holds);
        println!("  {}  {what}", if holds { "ok    " } else { "BROKEN" });
    }

    /// The line that memory is at most [`DRIFT`] above what it was. Less is as good.
    pub fn no_growth(&mut self, what: &str, before_bytes: u64, after_bytes: u64) {
        let ratio = after_bytes as f64 / before_bytes as f64;
        let holds = before_bytes > 0 && after_bytes > 0 && ratio <= 1.0 + DRIFT;
        let (before, after, percent) = (mib(before_bytes), mib(after_bytes), (ratio - 1.0) * 100.0);
        self.line(holds, &format!("{what}: {before:.0} MiB, then {after:.0} MiB ({percent:+.1} %, ≤ +10 % wanted)"));
    }

    /// Fails when one is broken.
    pub fn verdict(&self) -> Result<(), Failure> {
        match self.n_broken {
            0 => Ok(()),
            n => Err(format!("{n} of the lines are broken").into()),
        }
    }
}

/// Mebibytes, for people.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
