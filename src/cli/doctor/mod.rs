//! `granary doctor`: would serving work on this machine, and if not, what to do; and what a bug report needs.
//!
//! Opens files, and for a moment the port, on which it does not listen, and loads the models that a start loads, unless a
//! server seems to run, which has them in memory. It uses no network but to resolve `server.host`, changes nothing, and
//! leaves nothing behind.

mod checks;
mod facts;
mod trial;

use std::io::Write;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use self::checks::{Active, Check, Verdict};
use self::facts::Facts;
use super::output::{self, ProcessError};
use crate::app::{self, AppError};
use crate::config::{Config, ConfigError, ConfigSources, Overrides};
use crate::domain::{ModelInfo, ModelName, ModelSource};
use crate::engine::CpuFeature;
use crate::grains::store::{FileState, StoreError};
use crate::models::hardware::{self, Machine, Ranked};
use crate::models::hub::Hub;
use crate::models::{Catalog, Selector};

/// The flags of `granary doctor`.
#[derive(Clone, Debug, Default, Args)]
pub struct DoctorArgs {
    /// Read this configuration file [default: granary.toml, if there is one]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Look whether the server can listen on this address or host name (`server.host`)
    #[arg(long)]
    pub host: Option<String>,
    /// Look whether it can listen on this port (`server.port`)
    #[arg(long, allow_negative_numbers = true)]
    pub port: Option<String>,
    /// Look for models and the database in this directory (`models.data_dir`)
    #[arg(long, value_name = "PATH")]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Serving would not work, or nobody can be told.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// The server would not start with this configuration.
    #[error(transparent)]
    Refused(#[from] ConfigError),
    /// Nor with these models.
    #[error(transparent)]
    Catalog(#[from] AppError),
    /// What was printed says more.
    #[error("serving would not work: {0} to solve")]
    Problems(String),
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether serving would work.
    works: bool,
    #[serde(flatten)]
    facts: Facts,
    machine: Machine,
    checks: Vec<Check>,
    /// The model that `auto` would take.
    auto: Option<ModelName>,
    /// Every model, the one that suits the machine best first.
    models: Vec<Ranked>,
}

/// Prints to `out` what was found, from this process's environment and working directory.
///
/// # Errors
/// [`DoctorError::Problems`] when serving would not work. A reader that leaves early is no error.
pub fn run(args: DoctorArgs, out: &mut impl Write) -> Result<(), DoctorError> {
    let overrides = Overrides { host: args.host, port: args.port, data_dir: args.data_dir, ..Overrides::default() };
    let config = Config::load(&ConfigSources::from_process(args.config, overrides))?;
    let report = examine(&config)?;
    let text = if args.json {
        serde_json::to_string_pretty(&report)
            .map(|json| json + "\n")
            .map_err(|error| ProcessError::Print(error.into()))?
    } else {
        report.in_words()
    };
    output::print(&text, out)?;
    match report.n_problems() {
        0 => Ok(()),
        1 => Err(DoctorError::Problems("1 problem".to_owned())),
        n => Err(DoctorError::Problems(format!("{n} problems"))),
    }
}

fn examine(config: &Config) -> Result<Report, DoctorError> {
    let catalog = app::catalog(config)?;
    let hub = app::hub(config)?;
    let facts = Facts::of(config, hub.settings());
    let selector = Selector {
        runtime_library: app::runtime_library(config),
        engine: config.engine.clone(),
        cores: hardware::cores(config.engine.cores),
        dimensions: catalog.expected_dimensions(),
        hub,
        memory_budget: app::memory_budget(config),
    };
    let mut selection = selector.survey(catalog.iter(), &[]);
    let database = if config.grains.enabled {
        Some(output::runtime()?.block_on(FileState::of(&config.database_path())))
    } else {
        None
    };
    let mut checks = vec![checks::runtime(&selection.runtime), checks::data_dir(config)];
    checks.push(checks::keys(config));
    checks.extend(checks::models_of_keys(config, &catalog));
    checks.extend(checks::certificate(config));
    checks.extend(checks::route_times(config));
    checks.extend(checks::port(config, database.as_ref()));
    checks.push(checks::database(config, database.as_ref()));
    if let Some(Ok(FileState::Known { contents: Some(contents), .. })) = &database {
        checks.push(checks::grains(contents));
        checks.extend(checks::indexes(&app::index_folder(&config.database_path()), contents));
    }
    let (remembered, disabled): (Option<&str>, &[String]) = match &database {
        Some(Ok(FileState::Known { active_model, disabled_models, .. })) => (active_model.as_deref(), disabled_models),
        _ => (None, &[]),
    };
    // It is only said: the order and the checks are those of all models.
    for model in &mut selection.ranked {
        model.disabled = disabled.iter().any(|name| model.model.as_str().eq_ignore_ascii_case(name));
        model.available &= !model.disabled;
    }
    let active = Active::of(config, remembered, &selection);
    checks.push(checks::active_model(config, active, &selection.machine));
    checks.extend(checks::loaded_at_start(config, &selection.ranked));
    if selection.runtime.is_ok() && !seems_to_run(config, database.as_ref()) {
        let names = names_to_load(config, active, &selection.ranked);
        let names: Vec<ModelName> = names.filter(|name| is_here(name, &catalog, &selector.hub)).cloned().collect();
        let active = active.map(|active| &active.model.model);
        checks.extend(output::runtime()?.block_on(trial::load(config, active, &names))?);
    }
    Ok(Report {
        works: checks.iter().all(|check| check.verdict != Verdict::Problem),
        facts,
        auto: selection.best().map(|best| best.model.clone()),
        machine: selection.machine,
        checks,
        models: selection.ranked,
    })
}

/// Whether a server has these models in memory already, and a second copy of them might be more than there is room for.
fn seems_to_run(config: &Config, database: Option<&Result<FileState, StoreError>>) -> bool {
    match database {
        Some(Ok(state)) => matches!(state, FileState::InUse { .. }),
        // Nothing else tells.
        Some(Err(_)) | None => checks::port_is_taken(config),
    }
}

/// The models that a start loads, the active one first, as far as nothing is known to stand in the way of that.
fn names_to_load<'a>(
    config: &Config,
    active: Option<Active<'a>>,
    ranked: &'a [Ranked],
) -> impl Iterator<Item = &'a ModelName> {
    let with_auto_load = config.ai.additional_models.iter().filter(|entry| entry.auto_load);
    let with_auto_load: Vec<&Ranked> =
        with_auto_load.filter_map(|entry| ranked.iter().find(|model| model.model == entry.name)).collect();
    let active = active.map(|active| active.model);
    let others =
        with_auto_load.into_iter().filter(move |model| active.is_none_or(|active| active.model != model.model));
    active.into_iter().chain(others).filter(|model| model.available && model.fits).map(|model| &model.model)
}

/// Whether a model can be loaded without a download.
fn is_here(name: &ModelName, catalog: &Catalog, hub: &Hub) -> bool {
    let is_local = |info: &ModelInfo| match &info.source {
        ModelSource::Hub(source) => matches!(hub.local(source), Ok(Some(_))),
        _ => true,
    };
    catalog.iter().find(|info| info.name == *name).is_some_and(is_local)
}

impl Report {
    fn n_problems(&self) -> usize {
        self.checks.iter().filter(|check| check.verdict == Verdict::Problem).count()
    }

    fn in_words(&self) -> String {
        let mut lines = self.facts.head_in_words();
        lines.push(machine_in_words(&self.machine));
        for Check { subject, verdict, finding, way_out } in &self.checks {
            lines.push(format!("{:8} {subject}: {finding}", verdict.as_str()));
            lines.extend(way_out.iter().map(|way_out| format!("         way out: {way_out}")));
        }
        lines.push("models   the best for this machine first:".to_owned());
        for (place, model) in self.models.iter().enumerate() {
            let disabled = if model.disabled { ", disabled until it is loaded by hand" } else { "" };
            lines.push(format!("      {}. {}{disabled}", place + 1, model.model));
            lines.extend(model.reasons.iter().map(|reason| format!("         {reason}")));
        }
        lines.extend(self.facts.details_in_words());
        lines.extend(self.auto.iter().map(|auto| format!("`auto` would take `{auto}`.")));
        lines.extend(self.works.then(|| "Serving would work.".to_owned()));
        lines.join("\n") + "\n"
    }
}

fn machine_in_words(machine: &Machine) -> String {
    let in_words = |bytes| ByteSize(bytes).display().iec().to_string();
    let quota = machine.cpu_quota.map_or_else(String::new, |quota| format!(" (a quota of {quota:.1})"));
    let memory = machine.memory.map_or_else(
        || "an unknown amount of memory".to_owned(),
        |memory| format!("{} of memory, {} for models", in_words(memory.limit_bytes), in_words(memory.for_models())),
    );
    let gpus = machine.gpus.iter().map(|gpu| format!("{} with {}", gpu.name, in_words(gpu.memory_bytes)));
    let gpus = gpus.reduce(|all, one| format!("{all}, {one}")).unwrap_or_else(|| "no GPU".to_owned());
    let features = machine.features.iter().map(CpuFeature::as_str).collect::<Vec<_>>().join(", ");
    let cpu = machine.cpu.as_deref().unwrap_or(&machine.architecture);
    let unit = if machine.cores == 1 { "core" } else { "cores" };
    format!("machine  {cpu} ({features}), {} {unit}{quota}; {memory}; {gpus}", machine.cores)
}
