//! The servers that are compared: how each is started, spoken to, and ended.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Connection;
use super::corpus::Text;
use super::{Failure, data_folder};

const MODEL: &str = "all-MiniLM-L6-v2";
/// Importing torch takes a while.
const START_TIMEOUT: Duration = Duration::from_mins(3);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A server that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    /// Granary with `engine.provider = "auto"`
    Granary,
    /// Granary on ONNX Runtime's own kernels, fp32
    GranaryCpu,
    /// Granary on `OpenVINO`, whatever `auto` would take
    GranaryOpenvino,
    /// `FastAPI` over fastembed as it comes: the texts of a request are one batch
    Fastembed,
    /// The same with a batch size of 1: nothing is padded. Only for requests of several texts
    FastembedB1,
    /// infinity with its optimum engine, where `infinity_emb` is on PATH
    Infinity,
    /// Hugging Face's text-embeddings-inference with its ONNX Runtime backend, where `text-embeddings-router` is on PATH
    Tei,
}

impl Contender {
    /// The name in tables, options and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Granary => "granary",
            Self::GranaryCpu => "granary-cpu",
            Self::GranaryOpenvino => "granary-openvino",
            Self::Fastembed => "fastembed",
            Self::FastembedB1 => "fastembed-b1",
            Self::Infinity => "infinity",
            Self::Tei => "tei",
        }
    }

    /// Whether this machine has what it is started with.
    pub fn is_installed(self) -> bool {
        let on_path = |program: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        };
        match self {
            Self::Infinity => on_path("infinity_emb"),
            Self::Tei => on_path("text-embeddings-router"),
            _ => true,
        }
    }

    /// Whether requests of so many texts are worth its turn.
    pub fn differs_at(self, texts_per_request: usize) -> bool {
        self != Self::FastembedB1 || texts_per_request > 1
    }

    fn provider(self) -> Option<&'static str> {
        match self {
            Self::GranaryCpu => Some("cpu"),
            Self::GranaryOpenvino => Some("openvino"),
            _ => None,
        }
    }

    fn dialect(self) -> Dialect {
        if self == Self::Infinity { Dialect::OpenAi } else { Dialect::Tei }
    }

    /// The process, with an environment of its own: no thread count or library of the caller's shell bends the
    /// comparison. Only what is set for Granary on purpose is passed on to it.
    fn command(self, granary: &Granary, port: u16, folder: &Path) -> Command {
        let model = data_folder().join("bench/model");
        let port = port.to_string();
        let mut command = match self {
            Self::Granary | Self::GranaryCpu | Self::GranaryOpenvino => Command::new(&granary.binary),
            Self::Fastembed | Self::FastembedB1 => Command::new("python3"),
            Self::Infinity => Command::new("infinity_emb"),
            Self::Tei => Command::new("text-embeddings-router"),
        };
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", folder);
        match self {
            Self::Granary | Self::GranaryCpu | Self::GranaryOpenvino => {
                command.args(["serve", "--port", &port]);
                command.env("GRANARY_GRAINS__DATABASE_URL", format!("sqlite:{}", folder.join("granary.db").display()));
                command.envs(std::env::vars_os().filter(|(name, _)| is_for_granary(&name.to_string_lossy())));
                command.envs(self.provider().map(|provider| ("GRANARY_ENGINE__PROVIDER", provider)));
                command.envs(granary.settings.iter().map(|(name, value)| (name, value)));
            }
            Self::Fastembed | Self::FastembedB1 => {
                command.arg("benches/peers/fastembed_server.py").args(["--port", &port, "--model"]).arg(model);
                command.env("PYTHONPATH", data_folder().join("bench/python")).env("PYTHONNOUSERSITE", "1");
                command.args(if self == Self::FastembedB1 { ["--batch-size", "1"].as_slice() } else { &[] });
            }
            Self::Infinity => {
                command.args(["v2", "--engine", "optimum", "--device", "cpu", "--pooling-method", "mean"]);
                command.args(["--port", &port, "--host", "127.0.0.1", "--served-model-name", MODEL, "--model-id", "."]);
                command.current_dir(model); // it finds `model.onnx` in no other folder
                command.envs([("HF_HUB_OFFLINE", "1"), ("DO_NOT_TRACK", "1"), ("INFINITY_ANONYMOUS_USAGE_STATS", "0")]);
            }
            Self::Tei => {
                command.args(["--hostname", "127.0.0.1", "--port", &port, "--model-id"]).arg(model);
            }
        }
        command
    }
}

fn is_for_granary(variable: &str) -> bool {
    variable.starts_with("GRANARY_") || variable == "ORT_DYLIB_PATH"
}

/// The Granary that is measured.
#[derive(Clone, Debug)]
pub struct Granary {
    /// Its binary.
    pub binary: PathBuf,
    /// `GRANARY_` variables over those of the caller's environment.
    pub settings: Vec<(&'static str, String)>,
}

/// The shape of requests and answers.
#[derive(Clone, Copy, Debug)]
pub enum Dialect {
    /// `/embed`: `{"inputs": …}`, answered by `[[f32]]`.
    Tei,
    /// `/embeddings`: `{"model", "input": …}`, answered by an object.
    OpenAi,
}

impl Dialect {
    /// Where to post.
    pub fn path(self) -> &'static str {
        match self {
            Self::Tei => "/embed",
            Self::OpenAi => "/embeddings",
        }
    }

    /// What to post: one text as a string, several as a list.
    pub fn body(self, texts: &[Arc<Text>]) -> Bytes {
        let texts: Vec<&str> = texts.iter().map(|text| text.text.as_str()).collect();
        self.body_of(&texts)
    }

    fn body_of(self, texts: &[&str]) -> Bytes {
        let inputs = match texts {
            [text] => serde_json::to_string(text),
            texts => serde_json::to_string(texts),
        }
        .expect("strings are JSON");
        match self {
            Self::Tei => format!(r#"{{"inputs":{inputs}}}"#),
            Self::OpenAi => format!(r#"{{"model":"{MODEL}","input":{inputs}}}"#),
        }
        .into()
    }

    /// The vectors of an answer, in the order of their texts.
    pub fn vectors(self, answer: &[u8]) -> Result<Vec<Vec<f32>>, Failure> {
        match self {
            Self::Tei => Ok(serde_json::from_slice(answer)?),
            Self::OpenAi => {
                let answer: Value = serde_json::from_slice(answer)?;
                let data = answer["data"].as_array().ok_or("an answer without `data`")?;
                Ok(data.iter().map(|item| Vec::deserialize(&item["embedding"])).collect::<Result<_, _>>()?)
            }
        }
    }
}

/// A running server. It is ended when this is dropped, in order when [`Server::stop`] is called before.
pub struct Server {
    /// Which one.
    pub contender: Contender,
    /// Where it listens.
    pub address: SocketAddr,
    /// From the start of the process to its first vector, or to its first answer where no vector is waited for.
    pub started_in: Duration,
    child: Child,
    /// Holds its log, its database, and whatever it keeps in its home.
    folder: TempDir,
}

impl Server {
    /// Starts the server on a free port, waits for its first vector, and gives up after three minutes.
    pub async fn start(contender: Contender, granary: &Granary) -> Result<Self, Failure> {
        let started = Instant::now();
        let mut server = Self::spawn(contender, granary)?;
        while let Err(error) = server.embed(&["hello"]).await {
            server.wait_on(started, &error).await?;
        }
        server.started_in = started.elapsed();
        Ok(server)
    }

    /// Starts Granary and waits until it answers at all: it may have no model to embed with.
    pub async fn start_without_vector(granary: &Granary) -> Result<Self, Failure> {
        let started = Instant::now();
        let mut server = Self::spawn(Contender::Granary, granary)?;
        while let Err(error) = server.list_models().await {
            server.wait_on(started, &error).await?;
        }
        server.started_in = started.elapsed();
        Ok(server)
    }

    fn spawn(contender: Contender, granary: &Granary) -> Result<Self, Failure> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let folder = tempfile::tempdir()?;
        let log = fs_err::File::create(folder.path().join("log"))?.into_parts().0;
        let mut command = contender.command(granary, port, folder.path());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().map_err(|error| format!("{} cannot be started: {error}", contender.name()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { contender, address, started_in: Duration::ZERO, child, folder })
    }

    /// Waits a moment before the next try, unless the process has ended or has had its time.
    async fn wait_on(&mut self, started: Instant, error: &Failure) -> Result<(), Failure> {
        let ended = self.child.try_wait()?.is_some();
        if ended || started.elapsed() > START_TIMEOUT {
            return Err(format!("{} does not answer ({error}):\n{}", self.contender.name(), self.last_lines()).into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        Ok(())
    }

    /// Asks what loads nothing.
    async fn list_models(&self) -> Result<Value, Failure> {
        Connection::open(self.address).await?.get("/models").await
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it is spoken to.
    pub fn dialect(&self) -> Dialect {
        self.contender.dialect()
    }

    /// Vectors of these texts.
    pub async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure> {
        let dialect = self.dialect();
        let mut connection = Connection::open(self.address).await?;
        let (status, answer) = connection.post_and_keep(dialect.path(), dialect.body_of(texts)).await?;
        if status != StatusCode::OK {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&answer)).into());
        }
        dialect.vectors(&answer)
    }

    /// The versions of what answers, by name; of Granary its provider too.
    pub async fn versions(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut connection = Connection::open(self.address).await?;
        let found = match self.contender {
            Contender::Fastembed | Contender::FastembedB1 => connection.get("/").await?,
            Contender::Infinity => json!({"infinity_emb": connection.get("/openapi.json").await?["info"]["version"]}),
            Contender::Tei => json!({"text-embeddings-inference": connection.get("/info").await?["version"]}),
            _ => json!({
                "granary": connection.get("/info").await?["version"],
                "provider": connection.get(&format!("/models/{MODEL}")).await?["provider"]["name"],
                "runtime": runtime(),
            }),
        };
        let entries = found.as_object().into_iter().flatten();
        Ok(entries.map(|(name, value)| (name.clone(), value.as_str().unwrap_or("unknown").to_owned())).collect())
    }

    /// Asks the process to end, and waits. Granary must end well.
    pub async fn stop(mut self) -> Result<(), Failure> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                return Err(format!("{} did not end within {STOP_TIMEOUT:?}", self.contender.name()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        if self.contender == Contender::Granary && !status.success() {
            return Err(format!("{} ended with {status}:\n{}", self.contender.name(), self.last_lines()).into());
        }
        Ok(())
    }

    fn last_lines(&self) -> String {
        let log = fs_err::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of the runtime library says what it is and of which version.
fn runtime() -> Option<String> {
    let library: PathBuf = fs_err::read_link(data_folder().join("runtime/libonnxruntime.so")).ok()?;
    Some(library.parent()?.display().to_string())
}
