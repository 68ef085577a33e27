//! What a bug report needs beside the checks: which build, on what system, with which settings, and how much is kept.
//!
//! It is meant to be pasted where others read it, so no key, no hash of a key, no token and no password is in it.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use rustix::process::{Resource, getrlimit, getuid};
use serde::Serialize;

use crate::app;
use crate::config::Config;
use crate::files::{beside, folder_of};
use crate::grains::store::real_path;
use crate::models::hub::HubSettings;

/// What a bug report needs.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    granary: Build,
    system: System,
    hub: HubFacts,
    /// What something else than the built-in default has set.
    settings: Vec<Setting>,
    /// What is on disk.
    kept: Vec<Kept>,
}

/// This binary.
#[derive(Debug, Serialize)]
struct Build {
    version: &'static str,
    /// Who builds it may say so: `GRANARY_COMMIT=… cargo build`.
    commit: Option<&'static str>,
    profile: &'static str,
}

/// The operating system, and what it lets this process have.
#[derive(Debug, Serialize)]
struct System {
    name: Option<String>,
    kernel: Option<String>,
    user_id: u32,
    /// Files and connections at once; `None`: any number.
    max_open_files: Option<u64>,
    /// To how many that may be raised without more rights.
    max_open_files_hard: Option<u64>,
}

/// Where models come from, without the token.
#[derive(Debug, Serialize)]
struct HubFacts {
    endpoint: String,
    cache_dir: PathBuf,
    is_offline: bool,
    has_token: bool,
    /// The schemes of addresses that are reached through a proxy.
    through_proxy: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Setting {
    key: String,
    /// As TOML, secrets taken out.
    value: String,
    /// The file, variable or flag.
    origin: String,
}

/// A file, or all files of a folder.
#[derive(Debug, Serialize)]
struct Kept {
    what: &'static str,
    path: PathBuf,
    size_bytes: u64,
}

impl Facts {
    /// Gathers them. Changes nothing.
    pub(super) fn of(config: &Config, hub: &HubSettings) -> Self {
        let build = Build {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("GRANARY_COMMIT").filter(|commit| !commit.is_empty()),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        };
        Self {
            granary: build,
            system: System::probe(),
            hub: HubFacts::of(hub),
            settings: settings(config),
            kept: kept(config),
        }
    }

    /// What stands before the checks.
    pub(super) fn head_in_words(&self) -> Vec<String> {
        let Build { version, commit, profile } = &self.granary;
        let commit = commit.map_or_else(|| "of an unnamed commit".to_owned(), |commit| format!("of commit {commit}"));
        let System { name, kernel, user_id, max_open_files, max_open_files_hard } = &self.system;
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
        let number = |n: &Option<u64>| n.map_or_else(|| "any number".to_owned(), |n| n.to_string());
        vec![
            format!("granary  {version} {commit}, {profile} build"),
            format!(
                "system   {}, Linux {}, as user {user_id}; {} of open files, {} when raised",
                or_unknown(name),
                or_unknown(kernel),
                number(max_open_files),
                number(max_open_files_hard),
            ),
        ]
    }

    /// What stands behind them.
    pub(super) fn details_in_words(&self) -> Vec<String> {
        let HubFacts { endpoint, cache_dir, is_offline, has_token, through_proxy } = &self.hub;
        let mut hub = format!("hub      {endpoint}, {} a token", if *has_token { "with" } else { "without" });
        if !through_proxy.is_empty() {
            let _ = write!(hub, ", through a proxy for {}", through_proxy.join(" and "));
        }
        let _ = write!(hub, "; files are kept in `{}`", cache_dir.display());
        if *is_offline {
            hub.push_str("; nothing is downloaded");
        }
        let kept = self.kept.iter().map(|Kept { what, path, size_bytes }| {
            format!("kept     {what}: {} in `{}`", ByteSize(*size_bytes).display().iec(), path.display())
        });
        let settings = self.settings.iter().map(|Setting { key, value, origin }| {
            let value = value.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            format!("setting  {key} = {value}, by {origin}")
        });
        std::iter::once(hub).chain(kept).chain(settings).collect()
    }
}

impl System {
    fn probe() -> Self {
        let read = |path: &str| fs_err::read_to_string(path).ok();
        let limit = getrlimit(Resource::Nofile);
        Self {
            name: read("/etc/os-release").as_deref().and_then(pretty_name),
            kernel: read("/proc/sys/kernel/osrelease").map(|release| release.trim().to_owned()),
            user_id: getuid().as_raw(),
            max_open_files: limit.current,
            max_open_files_hard: limit.maximum,
        }
    }
}

/// The name that `/etc/os-release` gives a system for people.
fn pretty_name(os_release: &str) -> Option<String> {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches(['"', '\'']).to_owned())
}

impl HubFacts {
    fn of(hub: &HubSettings) -> Self {
        let proxies = [("https", &hub.proxies.https), ("http", &hub.proxies.http)];
        Self {
            endpoint: hub.endpoint.to_string(),
            cache_dir: hub.cache_dir.clone(),
            is_offline: hub.offline,
            has_token: hub.token.is_some(),
            through_proxy: proxies.into_iter().filter(|(_, proxy)| proxy.is_some()).map(|(scheme, _)| scheme).collect(),
        }
    }
}

fn settings(config: &Config) -> Vec<Setting> {
    let values = toml::Table::try_from(config).unwrap_or_default();
    let value_of = |key: &str| {
        let (section, name) = key.split_once('.')?;
        values.get(section)?.get(name)
    };
    let setting = |(key, origin): (&str, &str)| Setting {
        key: key.to_owned(),
        value: match key {
            "auth.keys" => key_names(config),
            _ => value_of(key).map_or_else(|| "not set".to_owned(), |value| without_passwords(&value.to_string())),
        },
        origin: origin.to_owned(),
    };
    config.changed().map(setting).collect()
}

/// Of keys their names only: a key that somebody thought of can be guessed from its hash.
fn key_names(config: &Config) -> String {
    let names: Vec<&str> = config.auth.keys.iter().map(|key| key.name.as_str()).collect();
    format!("{names:?}")
}

/// Takes user names and passwords out of the addresses in a text.
fn without_passwords(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, address) = rest.split_at(start + "://".len());
        kept.push_str(before);
        let end = address.find(|c: char| c.is_whitespace() || "/?#\"'`,".contains(c)).unwrap_or(address.len());
        let (authority, after) = address.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                kept.push_str("(hidden)@");
                kept.push_str(host);
            }
            None => kept.push_str(authority),
        }
        rest = after;
    }
    kept + rest
}

fn kept(config: &Config) -> Vec<Kept> {
    let database = config.database_path();
    let of_database = [
        ("database", database.clone()),
        ("its log", beside(&database, "-wal")),
        ("indexes", app::index_folder(&database)),
        ("snapshots", app::snapshots_folder(&database)),
    ];
    let of_database = of_database.into_iter().chain(left_beside(&database)).filter(|_| config.grains.enabled);
    of_database
        .chain([("models", config.models.models_dir())])
        .filter(|(_, path)| path.exists())
        .map(|(what, path)| Kept { what, size_bytes: size_of(&path), path })
        .collect()
}

/// What upgrades and restores have left beside a database: it stays until somebody deletes it, or the next restore does.
fn left_beside(database: &Path) -> Vec<(&'static str, PathBuf)> {
    const LEFT: [(&str, &str); 4] = [
        (".before-v", "copy before an upgrade"),
        (".replaced.", "database before a restore"),
        ("-wal.of-another.", "log of a database that was replaced"),
        (".restoring", "copy of a restore that was cut off or goes on"),
    ];
    let database = real_path(database).unwrap_or_else(|_| database.to_owned());
    let Some(stem) = database.file_name().and_then(OsStr::to_str) else { return Vec::new() };
    let entries = fs_err::read_dir(folder_of(&database)).into_iter().flatten().flatten();
    let mut left: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let suffix = name.to_str()?.strip_prefix(stem)?;
            let (_, what) = LEFT.into_iter().find(|(start, _)| suffix.starts_with(start))?;
            Some((what, entry.path()))
        })
        .collect();
    left.sort();
    left
}

/// Bytes of a file, or of all files of a folder. Links count nothing, and neither does what cannot be read.
fn size_of(path: &Path) -> u64 {
    let Ok(found) = fs_err::symlink_metadata(path) else { return 0 };
    if found.is_file() {
        return found.len();
    }
    let entries = found.is_dir().then(|| fs_err::read_dir(path).ok()).flatten();
    entries.into_iter().flatten().flatten().map(|entry| size_of(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_who_asks_and_keep_the_rest() {
        for (text, expected) in [
            ("\"http://user:pa@ss@proxy:80/a\"", "\"http://(hidden)@proxy:80/a\""),
            (
                "[\"https://t@a.example\", \"https://b.example\"]",
                "[\"https://(hidden)@a.example\", \"https://b.example\"]",
            ),
            ("\"sqlite:///var/a@b.db\"", "\"sqlite:///var/a@b.db\""),
            ("8080", "8080"),
            ("a://b", "a://b"),
        ] {
            assert_eq!(without_passwords(text), expected);
        }
    }

    #[test]
    fn a_system_is_named_as_people_name_it() {
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), Some("Debian GNU/Linux 12".into()));
        assert_eq!(pretty_name("ID=x\n"), None);
    }

    #[test]
    fn a_folder_weighs_what_its_files_do() {
        let folder = tempfile::tempdir().expect("a folder");
        fs_err::create_dir(folder.path().join("below")).expect("made");
        fs_err::write(folder.path().join("a"), [0; 10]).expect("written");
        fs_err::write(folder.path().join("below/b"), [0; 5]).expect("written");
        std::os::unix::fs::symlink(folder.path(), folder.path().join("below/loop")).expect("linked");
        assert_eq!((size_of(folder.path()), size_of(Path::new("/no/such"))), (15, 0));
    }
}
