//! The layers of the configuration: the embedded default, the variables of a standard, the file, our own variables, the
//! flags.
//!
//! Each layer knows its origin, so that a refusal can name it: every variable and every flag is a layer of its own.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::hash::Hash;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use super::error::{LIST_OF_KEYS, unknown_key};
use super::{ConfigError, ConfigSources, Overrides, Refusal, SECTIONS};

/// The commented default configuration, which is the default.
pub(super) const DEFAULT_TOML: &str = include_str!("default.toml");
pub(super) const DEFAULT_ORIGIN: &str = "the built-in default";
const FILE_NAME: &str = "granary.toml";
pub(super) const ENV_PREFIX: &str = "GRANARY_";

/// Variables that every program with traces understands. The file and our own variables win over them.
const OF_OPENTELEMETRY: [(&str, &str); 2] =
    [("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"), ("OTEL_SERVICE_NAME", "service_name")];

/// Settings of many entries with names.
pub(super) const MODELS: &str = "ai.additional_models";
pub(super) const KEYS: &str = "auth.keys";
const ADDED_BY_NAME: [&str; 2] = [MODELS, KEYS];

/// Settings of one origin, by section.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) origin: String,
    pub(super) sections: BTreeMap<String, Dict>,
}

impl Layer {
    fn one(origin: impl Into<String>, section: &str, key: &str, value: Value) -> Self {
        let dict = Dict::from([(key.to_owned(), value)]);
        Self { origin: origin.into(), sections: BTreeMap::from([(section.to_owned(), dict)]) }
    }

    /// Every `section.key` this layer sets.
    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        self.sections.iter().flat_map(|(section, keys)| keys.keys().map(move |key| format!("{section}.{key}")))
    }
}

impl Provider for &Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let sections =
            self.sections.iter().map(|(section, keys)| (section.clone(), Value::from(keys.clone()))).collect::<Dict>();
        Ok(Profile::Default.collect(sections))
    }
}

/// All layers of a configuration, the weakest first.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) merged: Vec<Layer>,
    /// The variables whose entries are added to the file's by name, rather than put in their place, by their setting.
    pub(super) added: BTreeMap<&'static str, Layer>,
    /// The file among them, if there is one.
    pub(super) file: Option<PathBuf>,
    pub(super) refusals: Vec<Refusal>,
}

pub(super) fn gather(sources: &ConfigSources) -> Result<Layers, ConfigError> {
    let default: toml::Table = toml::from_str(DEFAULT_TOML).expect("a test reads the embedded default");
    let mut layers = Layers::default();
    layers.push_file(DEFAULT_ORIGIN, default.clone());
    for (name, value) in &sources.env {
        layers.push_standard_variable(name, value);
    }
    if let Some((path, table)) = read_file(sources)? {
        layers.push_file(&path.display().to_string(), table);
        layers.file = Some(path);
    }
    for (name, value) in &sources.env {
        layers.push_variable(name, value, &default);
    }
    layers.push_flags(&sources.overrides);
    Ok(layers)
}

/// The file that was named, which must be there, or the one in the working directory, which need not. A link of its name
/// that leads nowhere is refused: somebody has settings.
fn read_file(sources: &ConfigSources) -> Result<Option<(PathBuf, toml::Table)>, ConfigError> {
    let (path, is_named) = match (&sources.file, &sources.directory) {
        (Some(file), _) => (file.clone(), true),
        (None, Some(directory)) => (directory.join(FILE_NAME), false),
        (None, None) => return Ok(None),
    };
    let text = match fs_err::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named && !path.is_symlink() => {
            return Ok(None);
        }
        Err(source) => return Err(ConfigError::Unreadable { path, source }),
        Ok(text) => text,
    };
    match toml::from_str(&text) {
        Ok(table) => Ok(Some((path, table))),
        Err(error) => Err(ConfigError::syntax(path, &text, &error)),
    }
}

/// Adds `added` to `entries`; one of the same name takes the older one's place.
pub(super) fn add_by_name<T, N: PartialEq>(entries: &mut Vec<T>, added: Vec<T>, name: impl Fn(&T) -> &N) {
    for entry in added {
        match entries.iter_mut().find(|older| name(older) == name(&entry)) {
            Some(older) => *older = entry,
            None => entries.push(entry),
        }
    }
}

/// Leaves a setting to the built-in default. Returns whether another layer had it.
pub(super) fn leave_out(layers: &mut [Layer], section: &str, key: &str) -> bool {
    let others = layers.iter_mut().filter(|layer| layer.origin != DEFAULT_ORIGIN);
    others.filter_map(|layer| layer.sections.get_mut(section)?.remove(key)).count() > 0
}

/// The first name that two entries of one source share.
pub(super) fn repeated_name<T, N: Eq + Hash>(entries: &[T], name: impl Fn(&T) -> &N) -> Option<&N> {
    let mut seen = HashSet::new();
    entries.iter().map(name).find(|name| !seen.insert(*name))
}

impl Layers {
    fn refuse(&mut self, origin: &str, key: impl Into<String>, sentence: impl Into<String>) {
        self.refusals.push(Refusal { origin: origin.to_owned(), key: key.into(), sentence: sentence.into() });
    }

    fn push_file(&mut self, origin: &str, table: toml::Table) {
        let mut layer = Layer { origin: origin.to_owned(), ..Layer::default() };
        for (section, value) in table {
            match value {
                _ if !SECTIONS.contains(&section.as_str()) => {
                    let sentence = unknown_key(&section, "the file", &SECTIONS);
                    self.refuse(origin, section, sentence);
                }
                toml::Value::Table(keys) => {
                    let keys = keys.into_iter().map(|(key, value)| (key, to_figment(value))).collect();
                    layer.sections.insert(section, keys);
                }
                other => {
                    let sentence = format!("found {other}, expected a table: [{section}]");
                    self.refuse(origin, section, sentence);
                }
            }
        }
        self.merged.push(layer);
    }

    /// Takes a variable if its name is `GRANARY_<SECTION>__<KEY>` with one of our sections. Others are somebody else's:
    /// Kubernetes sets `GRANARY_PORT` for a service of that name.
    fn push_variable(&mut self, name: &OsString, value: &OsString, default: &toml::Table) {
        let Some((name, section, key)) = name.to_str().and_then(our_variable) else { return };
        if let Some(alias) = key.strip_prefix("aliases__").filter(|_| section == "ai") {
            let sentence = format!(
                "found a key below a table, expected the whole table: GRANARY_AI__ALIASES='{{ {alias:?} = \"MODEL\" }}'"
            );
            return self.refuse(name, format!("{section}.{key}"), sentence);
        }
        let default_value = default.get(&section).and_then(|keys| keys.get(&key));
        let parsed = match value.to_str() {
            None => Err("found bytes that are not UTF-8, expected text".to_owned()),
            Some(text) => parse_variable(text, default_value),
        };
        match parsed {
            // What was found may be a key.
            Err(_) if (section.as_str(), key.as_str()) == ("auth", "keys") => {
                let sentence = format!("found no TOML value, expected {LIST_OF_KEYS}");
                self.refuse(name, KEYS, sentence);
            }
            Err(sentence) => self.refuse(name, format!("{section}.{key}"), sentence),
            Ok(value) => {
                let layer = Layer::one(name, &section, &key, to_figment(value));
                let setting = format!("{section}.{key}");
                match ADDED_BY_NAME.into_iter().find(|added| *added == setting) {
                    Some(added) => drop(self.added.insert(added, layer)),
                    None => self.merged.push(layer),
                }
            }
        }
    }

    /// An empty one counts as not set, as the standard has it.
    fn push_standard_variable(&mut self, name: &OsString, value: &OsString) {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { return };
        let known = OF_OPENTELEMETRY.into_iter().find(|(standard, _)| *standard == name);
        if let (Some((_, key)), false) = (known, value.trim().is_empty()) {
            self.merged.push(Layer::one(name, "telemetry", key, Value::from(value.trim())));
        }
    }

    fn push_flags(&mut self, overrides: &Overrides) {
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let flags = [
            ("--host", "server", "host", text(&overrides.host)),
            ("--port", "server", "port", overrides.port.as_deref().map(number_or_text)),
            ("--model", "ai", "model_name", text(&overrides.model)),
            ("--log-format", "telemetry", "log_format", text(&overrides.log_format)),
            ("--data-dir", "models", "data_dir", overrides.data_dir.as_deref().and_then(Path::to_str).map(Value::from)),
        ];
        for (flag, section, key, value) in flags {
            self.merged.extend(value.map(|value| Layer::one(flag, section, key, value)));
        }
        if overrides.data_dir.as_deref().is_some_and(|path| path.to_str().is_none()) {
            self.refuse("--data-dir", "models.data_dir", "found bytes that are not UTF-8, expected a path in UTF-8");
        }
    }
}

/// What is no number is left to the setting to refuse, in the words of the file.
fn number_or_text(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from)
}

fn our_variable(name: &str) -> Option<(&str, String, String)> {
    let (section, key) = name.strip_prefix(ENV_PREFIX)?.split_once("__")?;
    let section = section.to_ascii_lowercase();
    SECTIONS.contains(&section.as_str()).then(|| (name, section, key.to_ascii_lowercase()))
}

/// Reads a variable's value as TOML, where a plain string needs no quotes. The default's type decides what is plain:
/// a model may be called `2024` and a file `true`.
fn parse_variable(text: &str, default: Option<&toml::Value>) -> Result<toml::Value, String> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err("found an empty value, expected one; unset the variable to get the default".to_owned());
    }
    let as_toml: Result<toml::Value, toml::de::Error> = trimmed.parse();
    let is_string_setting = matches!(default, Some(toml::Value::String(_)));
    match as_toml {
        Ok(toml::Value::String(unquoted)) => Ok(toml::Value::String(unquoted)),
        Ok(_) if is_string_setting => Ok(toml::Value::String(trimmed.to_owned())),
        Ok(value) => Ok(value),
        Err(error) if !is_string_setting && trimmed.starts_with(['[', '{']) => {
            Err(format!("found {trimmed:?}, expected a TOML value: {}", error.message()))
        }
        Err(_) => Ok(toml::Value::String(trimmed.to_owned())),
    }
}

fn to_figment(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(truth) => Value::from(truth),
        // No setting is a date: its text is judged like any other.
        toml::Value::Datetime(moment) => Value::from(moment.to_string()),
        toml::Value::Array(items) => Value::from(items.into_iter().map(to_figment).collect::<Vec<_>>()),
        toml::Value::Table(keys) => {
            Value::from(keys.into_iter().map(|(key, value)| (key, to_figment(value))).collect::<Dict>())
        }
    }
}
