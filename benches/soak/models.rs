//! A client of the routes for models, and the settings that make the server know the tests' models.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::support::client::Connection;
use crate::support::server::Dialect;
use crate::support::{Failure, data_folder};

/// The default model: 90 MB.
pub const MINILM: &str = "all-MiniLM-L6-v2";
/// 440 MB, with random weights.
pub const BERT: &str = "bert-base-uncased";
/// 32 dimensions, with random weights: loads in no time.
pub const TINY: &str = "tiny";

/// A model's folder among those of the tests, absolute.
pub fn folder(name: &str) -> Result<PathBuf, Failure> {
    let folder = data_folder().join("test/models").join(name);
    fs_err::canonicalize(&folder).map_err(|error| format!("{error}; `make setup-test` makes it").into())
}

/// The setting with which the server knows these models of the tests, `(name, folder, pooling)`; without a pooling it is
/// what the folder says.
pub fn known(models: &[(&str, &str, Option<&str>)]) -> Result<(&'static str, String), Failure> {
    let mut entries = Vec::new();
    for (name, of, pooling) in models {
        let pooling = pooling.map(|pooling| format!(", pooling = {pooling:?}")).unwrap_or_default();
        entries.push(format!("{{ name = {name:?}, path = \"{}\"{pooling} }}", folder(of)?.display()));
    }
    Ok(("GRANARY_AI__ADDITIONAL_MODELS", format!("[{}]", entries.join(", "))))
}

/// One connection to a server, opened anew when it has broken.
pub struct Client {
    address: SocketAddr,
    connection: Option<Connection>,
}

/// Vectors and who made them.
#[derive(Debug)]
pub struct Embedded {
    /// The model's name.
    pub model: String,
    /// One for each text.
    pub vectors: Vec<Vec<f32>>,
}

impl Client {
    /// Connects with the first request.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Embeds texts with a model, or with the active one.
    pub async fn embed(&mut self, model: Option<&str>, texts: &[&str]) -> Result<Embedded, Failure> {
        let body = match model {
            Some(model) => json!({"model": model, "input": texts}),
            None => json!({"input": texts}),
        };
        let answer = self.ask(Method::POST, "/v1/embeddings", Some(body)).await?;
        let vectors = Dialect::OpenAi.vectors(&answer)?;
        if vectors.len() != texts.len() {
            return Err(format!("{} texts were answered by {} vectors", texts.len(), vectors.len()).into());
        }
        let model = serde_json::from_slice::<Value>(&answer)?["model"].as_str().unwrap_or_default().to_owned();
        Ok(Embedded { model, vectors })
    }

    /// Writes a grain, or writes it anew.
    pub async fn write(&mut self, id: &str, text: &str) -> Result<(), Failure> {
        self.ask(Method::PUT, &format!("/grains/{id}"), Some(json!({"text": text}))).await.map(drop)
    }

    /// How many grains a search finds.
    pub async fn search(&mut self, query: &str) -> Result<usize, Failure> {
        let answer = self.ask(Method::POST, "/grains/search", Some(json!({"query": query}))).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer["hits"].as_array().ok_or("an answer without `hits`")?.len())
    }

    /// Loads a model; returns what the server says of it.
    pub async fn load(&mut self, model: &str) -> Result<Value, Failure> {
        let answer = self.ask(Method::POST, &format!("/models/{model}/load"), None).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Unloads a model, for the next request to load it again.
    pub async fn unload(&mut self, model: &str) -> Result<(), Failure> {
        self.ask(Method::POST, &format!("/models/{model}/unload"), None).await.map(drop)
    }

    /// Unloads a model and keeps requests and later runs from loading it.
    pub async fn disable(&mut self, model: &str) -> Result<(), Failure> {
        self.ask(Method::POST, &format!("/models/{model}/unload"), Some(json!({"disable": true}))).await.map(drop)
    }

    /// Makes a model the active one.
    pub async fn activate(&mut self, model: &str) -> Result<(), Failure> {
        self.ask(Method::PUT, "/models/active", Some(json!({"name": model}))).await.map(drop)
    }

    /// The value of every series of a metric, by its labels as they are written.
    pub async fn metric(&mut self, name: &str) -> Result<Vec<(String, f64)>, Failure> {
        let answer = self.ask(Method::GET, "/metrics", None).await?;
        let text = String::from_utf8(answer)?;
        let series = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            Some((labels.to_owned(), value.parse().ok()?))
        });
        Ok(series.collect())
    }

    async fn ask(&mut self, method: Method, path: &str, body: Option<Value>) -> Result<Vec<u8>, Failure> {
        // Taken, and put back when the answer is whole: a broken connection is not used again.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.address).await?,
        };
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let what = format!("{method} {path}");
        let (status, answer) =
            connection.send_and_keep(method, path, body).await.map_err(|error| format!("{what}: {error}"))?;
        self.connection = Some(connection);
        if !status.is_success() {
            return Err(format!("{what} was answered {status}: {}", String::from_utf8_lossy(&answer)).into());
        }
        Ok(answer)
    }
}
