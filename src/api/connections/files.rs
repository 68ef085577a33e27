//! How many files the process may open: each connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit that the process was started with, which is often 1024, to the most that the system lets it have. Says
/// where that is less than the connections there may be.
pub fn raise_limit(max_connections: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return tell(current, max_connections);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tell(maximum, max_connections),
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays as it is");
            tell(current, max_connections);
        }
    }
}

fn tell(n_files: Option<u64>, max_connections: usize) {
    if let Some(n_files) = n_files.filter(|&n_files| n_files <= max_connections as u64) {
        tracing::info!(
            "the process may open {n_files} files, fewer than the {max_connections} connections of \
             `server.max_connections`: beyond that new ones wait. Raise the limit (`ulimit -Hn`, `LimitNOFILE=`)"
        );
    }
}
