//! What is checked: each function looks at one thing, and says what it found and the way out.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use bytesize::ByteSize;
use rustix::fs::{Access, access};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::net::TcpSocket;

use crate::app::{self, AppError};
use crate::config::{Config, MemoryBudget};
use crate::domain::{ModelName, SpaceId};
use crate::files::beside;
use crate::grains::check_saved;
use crate::grains::store::{Contents, FileState, StoreError, real_path};
use crate::models::Catalog;
use crate::models::hardware::{Machine, Ranked, RuntimeFacts, Selection, libraries_bytes};
use crate::models::hub::free_bytes;
use crate::telemetry::with_causes;

/// Free space below which the next model or the next copy of the database may not find room.
const LITTLE_SPACE: u64 = 1 << 30;

/// What a start takes of the disk beside a database that it need not make or upgrade: the memory that connections of SQLite
/// share, in a file of 32 KiB, and the lock.
const SPACE_TO_OPEN: u64 = 128 << 10;

/// Of so many bytes of the log that memory has one.
const LOG_BYTES_OF_ONE_SHARED: u64 = 512;

/// What it takes at least where it makes the tables: they are in the log and in the file for a moment.
const SPACE_TO_MAKE: u64 = 1 << 20;

/// The schema version of files that version 0.3 wrote.
const SCHEMA_OF_0_3: i64 = 1;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    /// Worth knowing; serving works.
    Note,
    /// Serving does not work.
    Problem,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) subject: &'static str,
    pub(super) verdict: Verdict,
    pub(super) finding: String,
    /// What to do, where the finding does not say it already.
    pub(super) way_out: Option<String>,
}

impl Check {
    pub(super) fn new(subject: &'static str, verdict: Verdict, finding: impl Into<String>) -> Self {
        Self { subject, verdict, finding: finding.into(), way_out: None }
    }

    fn with_way_out(self, way_out: impl Into<String>) -> Self {
        Self { way_out: Some(way_out.into()), ..self }
    }
}

/// Whether the ONNX Runtime library can be loaded.
pub(super) fn runtime(runtime: &Result<RuntimeFacts, String>) -> Check {
    const SUBJECT: &str = "runtime library";
    match runtime {
        Ok(facts) => {
            let version = facts.version.as_deref().unwrap_or("of unknown version");
            let providers = facts.providers.iter().map(|provider| format!("`{provider}`")).collect::<Vec<_>>();
            let finding = format!(
                "ONNX Runtime {version} with the providers {}, in `{}`",
                providers.join(", "),
                facts.library.display()
            );
            Check::new(SUBJECT, Verdict::Ok, finding)
        }
        // Says itself what to do.
        Err(failure) => Check::new(SUBJECT, Verdict::Problem, failure.clone()),
    }
}

/// Whether the data directory is there or can be made, and has room.
pub(super) fn data_dir(config: &Config) -> Check {
    const SUBJECT: &str = "data directory";
    let wanted = &config.models.data_dir;
    let name = wanted.display();
    let Some(found) = nearest(wanted) else {
        return Check::new(SUBJECT, Verdict::Problem, format!("no folder above `{name}` exists"));
    };
    if !found.is_dir() {
        let finding = format!("`{}` is not a folder", found.display());
        return Check::new(SUBJECT, Verdict::Problem, finding).with_way_out("set another `models.data_dir`");
    }
    // What must be written for serving is the database, which has a check of its own.
    if let Some(finding) = closed_folder(found) {
        return Check::new(SUBJECT, Verdict::Note, finding)
            .with_way_out("give it to the user that runs the server, or set another `models.data_dir`");
    }
    let free = free_bytes(found).unwrap_or_default();
    let state = if found == wanted { "can be written" } else { "will be made" };
    let finding = format!("`{name}` {state}, {} free", ByteSize(free).display().iec());
    if free < LITTLE_SPACE {
        return Check::new(SUBJECT, Verdict::Note, finding).with_way_out("make room for models and the database");
    }
    Check::new(SUBJECT, Verdict::Ok, finding)
}

/// What exists of a path: it, or the nearest folder above it, in which what is missing is made. Above a relative path
/// stands the working directory. Nothing is made where a link leads nowhere.
fn nearest(path: &Path) -> Option<&Path> {
    let mut above = path.ancestors().map(|path| if path == Path::new("") { Path::new(".") } else { path });
    above.find(|path| path.exists() || path.is_symlink())
}

/// That this user may not make files in a folder.
fn closed_folder(folder: &Path) -> Option<String> {
    let error = access(folder, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some(format!("this user may not write in `{}`: {error}", folder.display()))
}

/// That this user may not write a database, or in its folder, where the log and the lock are.
fn closed_database(path: &Path) -> Option<String> {
    let file = real_path(path).unwrap_or_else(|_| path.to_owned());
    let closed = access(&file, Access::READ_OK | Access::WRITE_OK).err().filter(|_| file.exists());
    closed
        .map(|error| format!("this user may not read and write `{}`: {error}", file.display()))
        .or_else(|| nearest(file.parent()?).and_then(closed_folder))
}

/// Of what is behind links; 0 where there is none.
fn size_of_file(path: &Path) -> u64 {
    fs_err::metadata(path).map_or(0, |file| file.len())
}

fn size_of_log(database: &Path) -> u64 {
    size_of_file(&beside(&real_path(database).unwrap_or_else(|_| database.to_owned()), "-wal"))
}

/// What is free on the disk of a database; `None` where that is not known.
fn free_for_database(path: &Path) -> Option<u64> {
    let file = real_path(path).unwrap_or_else(|_| path.to_owned());
    free_bytes(nearest(file.parent()?)?).ok()
}

/// A database that can be opened: whether its disk has the room that a start takes of it, and some more.
fn with_room(path: &Path, finding: String, needed_bytes: u64) -> Check {
    const SUBJECT: &str = "database";
    let free = free_for_database(path).unwrap_or(u64::MAX);
    let [shown, needed] = [free, needed_bytes].map(|bytes| ByteSize(bytes).display().iec());
    if free < needed_bytes {
        let finding = format!("the disk of `{}` has {shown} free, and a start takes {needed}", path.display());
        return Check::new(SUBJECT, Verdict::Problem, finding)
            .with_way_out("make room, or set another `grains.database_url`");
    }
    if free < LITTLE_SPACE {
        return Check::new(SUBJECT, Verdict::Note, format!("{finding}, and its disk has {shown} free"))
            .with_way_out("make room: on a full disk nothing is written");
    }
    Check::new(SUBJECT, Verdict::Ok, finding)
}

/// Whether strangers are kept out.
pub(super) fn keys(config: &Config) -> Check {
    const SUBJECT: &str = "API keys";
    match app::keys(config) {
        Err(AppError::OpenPort { host, .. }) => {
            let finding = format!("none, and other machines can reach `server.host`, {host:?}");
            Check::new(SUBJECT, Verdict::Problem, finding).with_way_out(
                "make one with `granary keys add`, listen on \"127.0.0.1\", or set `auth.disabled = true` where a proxy or \
                 a private network keeps strangers out",
            )
        }
        Err(error) => Check::new(SUBJECT, Verdict::Problem, with_causes(&error)),
        Ok(_) if config.auth.disabled => {
            Check::new(SUBJECT, Verdict::Note, "not asked for, because `auth.disabled` is true")
        }
        Ok(keys) if keys.are_needed() && keys.count() == 0 => {
            let finding = format!("needed, because `{}` is there, and there is none", config.keys_path().display());
            Check::new(SUBJECT, Verdict::Problem, finding)
                .with_way_out("make one with `granary keys add`, or delete the file to serve this machine without")
        }
        Ok(keys) if keys.are_needed() => Check::new(SUBJECT, Verdict::Ok, format!("needed; {} known", keys.count())),
        Ok(_) => Check::new(SUBJECT, Verdict::Ok, "none, so the server answers to this machine's own names only"),
    }
}

/// Keys whose model the configuration does not know; `None` where there are none, or no keys can be had.
pub(super) fn models_of_keys(config: &Config, catalog: &Catalog) -> Option<Check> {
    let mut unknown = app::keys(config).ok()?.models();
    unknown.retain(|(_, model)| !catalog.iter().any(|known| known.answers_to(model.as_str())));
    let unknown: Vec<String> = unknown.iter().map(|(key, model)| format!("`{key}` has `{model}`")).collect();
    let finding = format!("models that the configuration does not know: {}", unknown.join(", "));
    let check = Check::new("models of keys", Verdict::Note, finding).with_way_out(
        "correct it, unless it is registered with `POST /models`, or will be: till then, requests that name none are refused",
    );
    (!unknown.is_empty()).then_some(check)
}

/// Whether the certificate can be shown; `None` when the configuration names none.
pub(super) fn certificate(config: &Config) -> Option<Check> {
    const SUBJECT: &str = "certificate";
    match app::tls(config) {
        Ok(served) => served.map(|served| match served.ending(OffsetDateTime::now_utc()) {
            None => Check::new(SUBJECT, Verdict::Ok, "it and its key can be used"),
            Some(ending) => Check::new(SUBJECT, Verdict::Note, ending.to_string())
                .with_way_out("renew it; a running server takes the new one within seconds"),
        }),
        Err(error) => Some(Check::new(SUBJECT, Verdict::Problem, with_causes(&error))),
    }
}

/// A time for a route that there is not.
pub(super) fn route_times(config: &Config) -> Option<Check> {
    let error = app::timeouts(config).err()?;
    let finding = match &error {
        AppError::Route { origin, source } => format!("{origin}: {source}"),
        other => with_causes(other),
    };
    Some(Check::new("server.route_timeouts", Verdict::Problem, finding))
}

/// Whether the port can be had; `None` where a running Granary works with the database, and so has it.
pub(super) fn port(config: &Config, state: Option<&Result<FileState, StoreError>>) -> Option<Check> {
    const SUBJECT: &str = "port";
    if matches!(state, Some(Ok(FileState::InUse { .. }))) {
        return None;
    }
    let (host, port) = (config.server.host.as_str(), config.server.port);
    let source = match (host, port).to_socket_addrs().and_then(bind_one_of) {
        Ok(address) => return Some(Check::new(SUBJECT, Verdict::Ok, format!("the server can listen on {address}"))),
        Err(source) => source,
    };
    let (verdict, way_out) = match (source.kind(), state) {
        (io::ErrorKind::AddrInUse, None) => {
            (Verdict::Note, "nothing, where that is a running Granary: without a database nothing tells")
        }
        (io::ErrorKind::AddrInUse, Some(_)) => {
            (Verdict::Problem, "stop the program that has the port, or set another `server.port`")
        }
        _ => (
            Verdict::Problem,
            "set `server.host` to an address of this machine, and `server.port` to one that this user may have",
        ),
    };
    let finding = with_causes(&AppError::Bind { host: host.to_owned(), port, source });
    Some(Check::new(SUBJECT, verdict, finding).with_way_out(way_out))
}

/// Whether somebody listens on the port.
pub(super) fn port_is_taken(config: &Config) -> bool {
    let bound = (config.server.host.as_str(), config.server.port).to_socket_addrs().and_then(bind_one_of);
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Binds to the first of these that can be had, as a start does. It does not listen: nobody is to find a server there.
fn bind_one_of(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<SocketAddr> {
    let mut refused = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let bound = socket.and_then(|socket| socket.set_reuseaddr(true).and_then(|()| socket.bind(address)));
        match bound {
            Ok(()) => return Ok(address),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Whether the database can be opened; without a state when the configuration wants none.
pub(super) fn database(config: &Config, state: Option<&Result<FileState, StoreError>>) -> Check {
    const SUBJECT: &str = "database";
    let path = config.database_path();
    let name = path.display();
    let fine = |finding: String, needed_bytes: u64| match closed_database(&path) {
        None => with_room(&path, finding, needed_bytes),
        Some(closed) => Check::new(SUBJECT, Verdict::Problem, closed)
            .with_way_out("give it to the user that runs the server, or set another `grains.database_url`"),
    };
    match state {
        None => Check::new(
            SUBJECT,
            Verdict::Note,
            "none, because `grains.enabled` is false: the active model is forgotten at exit",
        ),
        Some(Ok(FileState::Absent)) => fine(format!("`{name}` will be made"), SPACE_TO_MAKE),
        Some(Ok(FileState::Blank)) => fine(format!("`{name}` is empty and will be filled"), SPACE_TO_MAKE),
        Some(Ok(FileState::Known { version, latest, .. })) if version == latest => {
            let shared = size_of_log(&path) / LOG_BYTES_OF_ONE_SHARED;
            fine(format!("`{name}` has schema version {version}"), SPACE_TO_OPEN + shared)
        }
        Some(Ok(FileState::Known { version, latest, .. })) => {
            let upgraded = format!("a copy is kept and it is upgraded to {latest} at the next start");
            // The copy that is kept, and as much for the index of words, in the file and in its log. The tables of version
            // 0.3 are written anew, too; a file without vectors whose texts put no spaces between words may take more.
            let times = if *version == SCHEMA_OF_0_3 { 4 } else { 2 };
            let needed = SPACE_TO_MAKE + times * (size_of_file(&path) + size_of_log(&path));
            fine(format!("`{name}` has schema version {version}; {upgraded}"), needed)
        }
        Some(Ok(FileState::InUse { holder })) => {
            let finding = format!("`{name}` is in use by {holder}, so Granary is running already");
            Check::new(SUBJECT, Verdict::Note, finding)
                .with_way_out("a second server needs another `grains.database_url`")
        }
        // Says itself what to do.
        Some(Err(error)) => Check::new(SUBJECT, Verdict::Problem, with_causes(error)),
    }
}

/// Whether what is in the database agrees with itself.
pub(super) fn grains(contents: &Contents) -> Check {
    const SUBJECT: &str = "grains";
    let Contents { n_grains, spaces, faults, .. } = contents;
    if !faults.is_empty() {
        return Check::new(SUBJECT, Verdict::Problem, faults.join("; "))
            .with_way_out("restore a snapshot, or the copy made before the last upgrade");
    }
    let held = spaces.iter().map(|(space, dimensions, n)| format!("{n} vectors of {dimensions} dimensions in {space}"));
    let held = held.reduce(|all, one| format!("{all}, {one}")).unwrap_or_else(|| "no vectors".to_owned());
    Check::new(SUBJECT, Verdict::Ok, format!("{n_grains} grains, {held}; nothing contradicts itself"))
}

/// Whether the saved indexes are those of the database.
pub(super) fn indexes(folder: &Path, contents: &Contents) -> Vec<Check> {
    const SUBJECT: &str = "index";
    let check = |(space, dimensions, n): &(SpaceId, u32, u64)| match check_saved(
        folder.to_owned(),
        &contents.identity,
        space,
        *dimensions as usize,
    ) {
        Ok(n_saved) if n_saved as u64 == *n => Check::new(SUBJECT, Verdict::Ok, format!("that of {space} is fresh")),
        Ok(n_saved) => {
            let finding = format!("that of {space} has {n_saved} vectors, and the database {n}");
            Check::new(SUBJECT, Verdict::Problem, finding)
                .with_way_out(format!("delete the folder `{}`: the next start makes it again", folder.display()))
        }
        Err(reason) => {
            let finding = format!("that of {space} is made again at the next start: {}", with_causes(&reason));
            Check::new(SUBJECT, Verdict::Note, finding)
        }
    };
    contents.spaces.iter().map(check).collect()
}

/// The model that would be active, and by what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Active<'a> {
    pub(super) model: &'a Ranked,
    origin: &'static str,
}

impl<'a> Active<'a> {
    /// Of the catalog's models; `None` when there are none.
    pub(super) fn of(config: &Config, remembered: Option<&str>, selection: &'a Selection) -> Option<Self> {
        let ranked = &selection.ranked;
        let called = |name: &str| ranked.iter().find(|model| model.model.as_str().eq_ignore_ascii_case(name));
        let configured = config.ai.model_name.named().map(ModelName::as_str);
        let (model, origin) = match (remembered.and_then(called), configured) {
            (Some(model), _) => (Some(model), "which the database remembers"),
            (None, Some(name)) => (called(name), "by `ai.model_name`"),
            // Where all are disabled, one of them is active.
            (None, None) => (selection.best().or(ranked.first()), "which `ai.model_name = \"auto\"` would choose"),
        };
        model.map(|model| Self { model, origin })
    }
}

/// Whether the model that would be active has its files, and fits.
pub(super) fn active_model(config: &Config, active: Option<Active<'_>>, machine: &Machine) -> Check {
    const SUBJECT: &str = "active model";
    let Some(Active { model, origin }) = active else {
        return Check::new(SUBJECT, Verdict::Problem, "there are no models");
    };
    let name = &model.model;
    let reason = |place: usize| model.reasons.get(place).map_or("", String::as_str);
    if let Some(obstacle) = &model.obstacle {
        // Its files are there, and what is expected of them is not so.
        let way_out = if is_of_length(obstacle) {
            "correct or delete that setting, or name another model in `ai.model_name`"
        } else {
            "`make setup` installs `all-MiniLM-L6-v2`; for another, put its files in place or name it in `ai.model_name`"
        };
        let finding = format!("`{name}`, {origin}: {obstacle}");
        return Check::new(SUBJECT, Verdict::Problem, finding).with_way_out(way_out);
    }
    if !model.fits {
        let finding = format!("`{name}`, {origin}: {}", reason(1));
        if let Some(budget) = budget_in_the_way(config, model, machine) {
            let way_out =
                format!("raise `models.memory_budget`, which is {}, or take a smaller model", budget.display().iec());
            return Check::new(SUBJECT, Verdict::Problem, finding).with_way_out(way_out);
        }
        let never_fits = is_too_large_for(machine, config, model);
        return Check::new(SUBJECT, if never_fits { Verdict::Problem } else { Verdict::Note }, finding)
            .with_way_out("give the process more memory, or take a smaller model");
    }
    Check::new(SUBJECT, Verdict::Ok, format!("`{name}`, {origin}: {}", reason(0)))
}

/// The budget that somebody has set, where it is what a model does not fit into: a server refuses to load that, however
/// much memory there is.
fn budget_in_the_way(config: &Config, model: &Ranked, machine: &Machine) -> Option<ByteSize> {
    let MemoryBudget::Bytes(budget) = config.models.memory_budget else { return None };
    let bytes = budget.as_u64();
    let is_narrower = machine.memory.is_none_or(|memory| bytes <= memory.for_models());
    let is_exceeded = model.expected_memory_bytes.is_some_and(|needed| is_narrower || needed > bytes);
    (is_exceeded && !model.provider.is_gpu()).then_some(budget)
}

/// Whether a model does not fit into the share of the machine, or of the container, that models may have where nobody
/// has set a budget, not even if nothing else took any of it.
fn is_too_large_for(machine: &Machine, config: &Config, model: &Ranked) -> bool {
    let most = machine.memory.filter(|_| config.models.memory_budget == MemoryBudget::Auto);
    let most = most.map(|memory| memory.most_for_models().saturating_sub(libraries_bytes(model.provider)));
    !model.provider.is_gpu() && model.expected_memory_bytes.zip(most).is_some_and(|(needed, most)| needed > most)
}

/// Whether it is no file that stands in the way, but how long its vectors are said to be.
fn is_of_length(obstacle: &str) -> bool {
    obstacle.contains("`ai.embedding_dim`")
}

/// Models that must load, or the start fails.
pub(super) fn loaded_at_start(config: &Config, ranked: &[Ranked]) -> Vec<Check> {
    let must_load = config.ai.additional_models.iter().filter(|entry| entry.auto_load);
    let known = must_load.filter_map(|entry| ranked.iter().find(|model| model.model == entry.name));
    let with_obstacle = known.filter_map(|model| Some((&model.model, model.obstacle.as_ref()?)));
    with_obstacle
        .map(|(name, obstacle)| {
            let way_out =
                if is_of_length(obstacle) { "correct or delete that setting" } else { "put its files in place" };
            Check::new("auto_load", Verdict::Problem, format!("`{name}`: {obstacle}"))
                .with_way_out(format!("{way_out}, or set its `auto_load` to false"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Provider;
    use crate::models::hardware::Memory;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_model_that_a_container_never_has_room_for_is_a_problem_and_one_that_has_none_now_is_a_note() {
        let config = Config::default();
        for (limit_mib, available_mib, verdict) in [(380, 380, Verdict::Problem), (1_000, 200, Verdict::Note)] {
            let memory = Memory { limit_bytes: limit_mib * MIB, available_bytes: available_mib * MIB };
            let ranked = Ranked {
                model: "all-MiniLM-L6-v2".parse().expect("a name"),
                available: true,
                obstacle: None,
                disabled: false,
                fits: false,
                expected_memory_bytes: Some(255 * MIB),
                provider: Provider::OpenVino,
                tokens_per_second: None,
                score: 0,
                reasons: Vec::new(),
            };
            let machine = Machine { memory: Some(memory), ..Machine::probe() };
            let selection = Selection { machine, runtime: Err(String::new()), ranked: vec![ranked] };
            let active = Active::of(&config, None, &selection);
            assert_eq!(active_model(&config, active, &selection.machine).verdict, verdict, "{memory:?}");
        }
    }
}
