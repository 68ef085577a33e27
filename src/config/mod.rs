//! The configuration: embedded default, then the standard variables of OpenTelemetry, then `granary.toml`, then `GRANARY_<SECTION>__<KEY>`, then flags.
//!
//! Owns every setting, its default (`default.toml`, embedded), its type and its limits. It refuses what it does not
//! understand, unknown keys included, and says in which file, variable or flag it stood and what was expected: past
//! [`Config::load`] nothing is validated twice. It reads no environment by itself except in
//! [`ConfigSources::from_process`]. Start at [`Config`], then the section you need.

mod ai;
mod auth;
mod base_path;
mod engine;
mod error;
mod grains;
mod layers;
mod models;
mod origin;
mod proxy;
mod server;
mod spelling;
mod telemetry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::Figment;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use ai::{AdditionalModel, AiConfig, ModelChoice};
pub use auth::{AuthConfig, OpenRoutes};
pub use base_path::{BasePath, BasePathError};
pub use engine::{EngineConfig, QueryLaneSetting};
pub use error::{ConfigError, Refusal};
pub use grains::{DatabaseUrl, DatabaseUrlError, GrainsConfig};
pub use models::{MemoryBudget, ModelsConfig};
pub use origin::{Origin, OriginError};
pub use proxy::{TrustedProxy, TrustedProxyError};
pub use server::{AllowedHost, BindHost, HostError, MOST_INPUTS, RouteTimeout, ServerConfig};
pub use telemetry::{CollectorUrl, CollectorUrlError, LogFilter, LogFilterError, LogFormat, Share, TelemetryConfig};

use crate::domain::ApiKey;
use layers::{KEYS, Layer, Layers, MODELS, add_by_name, repeated_name};
use spelling::Problem;

const SECTIONS: [&str; 7] = ["server", "ai", "models", "engine", "grains", "auth", "telemetry"];

/// Every setting, understood and within its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Where the server listens and what a request may cost.
    pub server: ServerConfig,
    /// Which models there are.
    pub ai: AiConfig,
    /// Where models live.
    pub models: ModelsConfig,
    /// What executes models.
    pub engine: EngineConfig,
    /// The database.
    pub grains: GrainsConfig,
    /// Who may use the server.
    pub auth: AuthConfig,
    /// What is logged, and where traces go.
    pub telemetry: TelemetryConfig,
    #[serde(skip)]
    origins: Origins,
    #[serde(skip)]
    file: Option<PathBuf>,
}

/// Where a configuration comes from. The default reads nothing but the embedded default.
#[derive(Clone, Debug, Default)]
pub struct ConfigSources {
    /// A file named by the operator: it must exist, and `granary.toml` is not looked for.
    pub file: Option<PathBuf>,
    /// Where `granary.toml` is looked for; it may be missing. The empty path is the working directory.
    pub directory: Option<PathBuf>,
    /// Environment variables, ours and others.
    pub env: Vec<(OsString, OsString)>,
    /// What the command line says.
    pub overrides: Overrides,
}

/// Settings of the command line, which win over everything. They are checked like any other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--host`, `server.host`.
    pub host: Option<String>,
    /// `--port`, `server.port`.
    pub port: Option<String>,
    /// `--model`, `ai.model_name`.
    pub model: Option<String>,
    /// `--data-dir`, `models.data_dir`.
    pub data_dir: Option<PathBuf>,
    /// `--log-format`, `telemetry.log_format`.
    pub log_format: Option<String>,
}

impl ConfigSources {
    /// The sources of this process: its environment, and `file` or the `granary.toml` of its working directory.
    #[must_use]
    pub fn from_process(file: Option<PathBuf>, overrides: Overrides) -> Self {
        Self { file, directory: Some(PathBuf::new()), env: std::env::vars_os().collect(), overrides }
    }
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML, or with every key that is not acceptable.
    ///
    /// # Panics
    /// Never: the embedded default is TOML, as a test holds.
    pub fn load(sources: &ConfigSources) -> Result<Self, ConfigError> {
        let Layers { mut merged, added, file, mut refusals } = layers::gather(sources)?;
        let mut origins = Origins::of(&merged);
        let mut reader = SectionReader { layers: &mut merged, origins: &origins, refusals: &mut refusals };

        let sections = (
            reader.read::<ServerConfig>("server"),
            reader.read_ai(added.get(MODELS)),
            reader.read::<ModelsConfig>("models"),
            reader.read::<EngineConfig>("engine"),
            reader.read::<GrainsConfig>("grains"),
            reader.read_auth(added.get(KEYS)),
            reader.read::<TelemetryConfig>("telemetry"),
        );
        for (setting, layer) in &added {
            origins.add(setting, &layer.origin);
        }
        let (Some(server), Some(ai), Some(models), Some(engine), Some(grains), Some(auth), Some(telemetry)) = sections
        else {
            return Err(ConfigError::Refused(refusals));
        };
        let config = Self { server, ai, models, engine, grains, auth, telemetry, origins, file };
        // It may be the default, in place of a refused setting, that another one does not fit.
        let is_of_refused =
            |problem: &Problem| refusals.iter().any(|it| problem.sentence.contains(&format!("`{}`", it.key)));
        let problems: Vec<Problem> = config.problems().into_iter().filter(|it| !is_of_refused(it)).collect();
        refusals.extend(problems.into_iter().map(|problem| Refusal {
            origin: config.origins.of_key(&problem.key),
            key: problem.key,
            sentence: problem.sentence,
        }));
        if refusals.is_empty() { Ok(config) } else { Err(ConfigError::Refused(refusals)) }
    }

    /// The commented default configuration.
    #[must_use]
    pub fn default_toml() -> &'static str {
        layers::DEFAULT_TOML
    }

    /// This configuration as TOML; loading it as the only file gives the same one again. Of keys it holds the hashes.
    ///
    /// # Panics
    /// Never: every setting came from TOML.
    #[must_use]
    pub fn effective_toml(&self) -> String {
        toml::to_string_pretty(self).expect("every setting came from TOML")
    }

    /// The file, variable or flag that set a key (`ai.embedding_dim`), for errors that only show later: a model whose
    /// files are missing, say.
    #[must_use]
    pub fn origin(&self, key: &str) -> String {
        self.origins.of_key(key)
    }

    /// Every `section.key` that something else than the built-in default has set, and that file, variable or flag.
    pub fn changed(&self) -> impl Iterator<Item = (&str, &str)> {
        let set = self.origins.0.iter().filter(|(_, origin)| *origin != layers::DEFAULT_ORIGIN);
        set.map(|(key, origin)| (key.as_str(), origin.as_str()))
    }

    /// The file that was read, if there was one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Our own variables that have set something, each of which wins over the file.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        let origins = self.changed().filter_map(|(_, origin)| origin.rsplit(" and ").next());
        let is_file = |origin: &str| self.file.as_deref().is_some_and(|file| file == Path::new(origin));
        origins.filter(move |origin| origin.starts_with(layers::ENV_PREFIX) && !is_file(origin))
    }

    /// The database file: `grains.database_url`, or `granary.db` in the data directory.
    #[must_use]
    pub fn database_path(&self) -> PathBuf {
        match &self.grains.database_url {
            Some(url) => url.path().to_owned(),
            None => self.models.data_dir.join("granary.db"),
        }
    }

    /// The file of API keys: `auth.keys_file`, or `keys.toml` in the data directory.
    #[must_use]
    pub fn keys_path(&self) -> PathBuf {
        self.auth.keys_file.clone().unwrap_or_else(|| self.models.data_dir.join("keys.toml"))
    }

    fn problems(&self) -> Vec<Problem> {
        [
            self.server.problems(),
            self.ai.problems(),
            self.models.problems(),
            self.engine.problems(),
            self.grains.problems(),
            self.auth.problems(),
            self.telemetry.problems(),
        ]
        .concat()
    }
}

impl Default for Config {
    /// The embedded default, without file, environment or flags.
    ///
    /// # Panics
    /// Never: a test loads it.
    fn default() -> Self {
        Self::load(&ConfigSources::default()).expect("a test loads the embedded default")
    }
}

/// Reads sections setting by setting, so that one start names every bad one, if of a list only its first, and not only the
/// first of all.
struct SectionReader<'a> {
    layers: &'a mut [Layer],
    origins: &'a Origins,
    refusals: &'a mut Vec<Refusal>,
}

impl SectionReader<'_> {
    /// A section, with the built-in default in place of each setting that is refused.
    fn read<T: DeserializeOwned>(&mut self, section: &str) -> Option<T> {
        loop {
            let figment = self.layers.iter().fold(Figment::new(), Figment::merge);
            match figment.focus(section).extract() {
                Ok(value) => return Some(value),
                Err(error) => {
                    self.refuse(section, &error);
                    let is_left_out = layers::leave_out(self.layers, section, error.path.first()?);
                    if !is_left_out {
                        return None;
                    }
                }
            }
        }
    }

    fn refuse(&mut self, section: &str, error: &figment::Error) {
        let origin = |key: &str| self.origins.of_key(key);
        self.refusals.push(Refusal::from_figment(section, error, origin));
    }

    fn read_ai(&mut self, added: Option<&Layer>) -> Option<AiConfig> {
        let configured: Option<AiConfig> = self.read("ai");
        let Some(layer) = added else { return configured };
        let Some(entries) = self.read_added::<AdditionalModel>(layer, "ai") else { return configured };
        let mut configured = configured?;
        // Adding by name would hide a name that the variable has twice; one that the file has twice stays visible.
        if let Some(name) = repeated_name(&entries, |entry| &entry.name) {
            let sentence = format!("found two entries named \"{name}\", expected one (case is ignored)");
            self.refusals.push(Refusal { origin: layer.origin.clone(), key: MODELS.to_owned(), sentence });
        }
        add_by_name(&mut configured.additional_models, entries, |entry| &entry.name);
        Some(configured)
    }

    fn read_auth(&mut self, added: Option<&Layer>) -> Option<AuthConfig> {
        let configured: Option<AuthConfig> = self.read("auth");
        let Some(layer) = added else { return configured };
        let Some(keys) = self.read_added::<ApiKey>(layer, "auth") else { return configured };
        let mut configured = configured?;
        if let Some(name) = repeated_name(&keys, |key| &key.name) {
            let sentence = format!("found two keys named \"{name}\", expected one");
            self.refusals.push(Refusal { origin: layer.origin.clone(), key: KEYS.to_owned(), sentence });
        }
        add_by_name(&mut configured.keys, keys, |key| &key.name);
        Some(configured)
    }

    /// The entries of a variable, which is all that its layer has.
    fn read_added<T: DeserializeOwned>(&mut self, layer: &Layer, section: &str) -> Option<Vec<T>> {
        let settings = Figment::from(layer).focus(section).extract::<BTreeMap<String, Vec<T>>>();
        let settings = settings.inspect_err(|error| self.refuse(section, error)).ok()?;
        Some(settings.into_values().flatten().collect())
    }
}

/// Which file, variable or flag set each `section.key`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Origins(BTreeMap<String, String>);

impl Origins {
    fn of(layers: &[Layer]) -> Self {
        let origin_of_keys = layers.iter().flat_map(|layer| layer.keys().map(|key| (key, layer.origin.clone())));
        Self(origin_of_keys.collect())
    }

    /// Names a second origin of a key whose values add up.
    fn add(&mut self, key: &str, origin: &str) {
        let also = |first: &String| format!("{first} and {origin}");
        let both = self.0.get(key).map_or_else(|| origin.to_owned(), also);
        self.0.insert(key.to_owned(), both);
    }

    /// The origin of a key or of what contains it: `ai.additional_models[0].path` has that of `ai.additional_models`.
    fn of_key(&self, key: &str) -> String {
        let contains =
            |known: &str| key.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        let known = self.0.iter().find(|(known, _)| contains(known));
        known.map_or_else(|| layers::DEFAULT_ORIGIN.to_owned(), |(_, origin)| origin.clone())
    }
}
