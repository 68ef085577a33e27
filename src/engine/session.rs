//! ONNX Runtime: with what lies below it, the only file that names `ort`.
//!
//! Owns the process's one runtime library, the options of each provider, and what a graph takes and gives. Everything
//! it returns is in this crate's own words.

mod allocator;
mod inputs;
mod outputs;

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Once, OnceLock};

use ort::AsPointer;
use ort::environment::Environment;
use ort::ep::{
    self, ArbitrarilyConfigurableExecutionProvider, ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch,
};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::DynValue;
use parking_lot::Mutex;

use self::inputs::GraphInputs;
pub use self::outputs::{GraphOutput, OutputKind, WantedOutput};
use self::outputs::{choose_output, numbers_of};
use super::error::{Cause, EngineError};
use super::graph::{GraphApart, GraphFiles, fit_for_bf16};
use super::mapped;
use super::padded::PaddedBatch;
use crate::domain::Provider;

/// `y = x + x` for one number, as an ONNX file: the least that a provider takes over.
const LEAST_GRAPH: &[u8] = b"\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y\"\x03Add\x12\x01g\
    Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x0e";

/// A loaded ONNX Runtime library. The process has one: a second library beside it is refused.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    openvino_was_brought_in: Arc<OnceLock<()>>,
}

impl Runtime {
    /// Loads the library at `path`, once in the process: later calls for the same file or path share it. Where a link
    /// leads to another file by then, as after an update, that is for the next process.
    ///
    /// # Errors
    /// [`EngineError::RuntimeMissing`] or [`EngineError::LoadRuntime`]; [`EngineError::AnotherRuntime`] when one of another
    /// path is loaded already.
    pub fn load(path: &Path) -> Result<Self, EngineError> {
        static LOADED: Mutex<Option<(PathBuf, Runtime)>> = Mutex::new(None);
        static TOLD: Once = Once::new();
        let library = Self::locate(path)?;
        let refused = |source: Cause| EngineError::LoadRuntime { path: library.clone(), source };
        let mut loaded = LOADED.lock();
        if let Some((asked, runtime)) = &*loaded {
            if runtime.library != library {
                let in_use = runtime.library.clone();
                if asked != path {
                    return Err(EngineError::AnotherRuntime { path: library, in_use });
                }
                TOLD.call_once(|| {
                    let (in_use, found) = (in_use.display(), library.display());
                    tracing::warn!(%in_use, %found, "there is another ONNX Runtime library now: a restart takes it");
                });
            }
            return Ok(runtime.clone());
        }
        let environment = ort::init_from(&library)
            .map_err(|error| refused(cause_of_load(error)))?
            .with_name("granary")
            .with_telemetry(false)
            .build()
            .map_err(|error| refused(cause(error)))?;
        // Below warnings it tells of every graph rewrite of every session.
        environment.set_log_level(LogLevel::Warning);
        allocator::register(&environment).map_err(|error| refused(cause(error)))?;
        let runtime = Self { environment, library, openvino_was_brought_in: Arc::default() };
        Ok(loaded.insert((path.to_owned(), runtime)).1.clone())
    }

    /// The real path of the library at `path`, without loading it.
    ///
    /// # Errors
    /// [`EngineError::RuntimeMissing`].
    pub fn locate(path: &Path) -> Result<PathBuf, EngineError> {
        // The library's own dependencies lie beside the real file, found through its $ORIGIN: a link must be followed.
        fs_err::canonicalize(path).map_err(|_| EngineError::RuntimeMissing { path: path.to_owned() })
    }

    /// The library's real path.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Whether the library was built with the provider.
    #[must_use]
    pub fn has(&self, provider: Provider) -> bool {
        match provider {
            Provider::Cpu => true,
            Provider::OpenVino => ep::OpenVINO::is_available().unwrap_or(false),
            Provider::Cuda => ep::CUDA::is_available().unwrap_or(false),
        }
    }

    /// Brings OpenVINO's own libraries into memory, where they stay: what they take is no model's. Says whether they came
    /// by this. It is tried once.
    #[must_use]
    pub fn bring_in_openvino(&self) -> bool {
        if self.openvino_was_brought_in.set(()).is_err() {
            return false;
        }
        let provider = Provider::OpenVino;
        let options =
            SessionOptions { provider, threads: 1, streams: 1, stays_awake: false, bf16: false, is_tried_once: false };
        let opened =
            session_builder(self, options).and_then(|mut it| it.commit_from_memory(LEAST_GRAPH).map_err(cause));
        // The load that follows fails in the same way.
        opened.inspect_err(|error| tracing::debug!("OpenVINO was not brought in: {error}")).is_ok()
    }

    /// The library's version, as it says itself.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        version_of(&self.library)
    }

    /// The providers that the library was built with, the plain one first.
    #[must_use]
    pub fn providers(&self) -> Vec<Provider> {
        let known = [Provider::Cpu, Provider::OpenVino, Provider::Cuda];
        known.into_iter().filter(|provider| self.has(*provider)).collect()
    }
}

/// Asks a library that is loaded already; `ort` keeps the answer to itself.
#[allow(unsafe_code, reason = "the C API is the only way to learn it")]
fn version_of(library: &Path) -> Option<String> {
    // SAFETY: the library is loaded already, so opening it again runs none of its code.
    let library = unsafe { libloading::Library::new(library) }.ok()?;
    // SAFETY: `OrtGetApiBase` has this type in every version of the C API.
    let base =
        unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }.ok()?;
    // SAFETY: the function takes nothing and returns null or a table that lives as long as the library.
    let base = unsafe { base().as_ref() }?;
    // SAFETY: it returns a static string, which is copied while the library is open.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    version.to_str().ok().map(str::to_owned)
}

/// How a session is to run.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// What executes it.
    pub provider: Provider,
    /// Threads that the session's runs share.
    pub threads: usize,
    /// Runs that may go on at once without waiting for each other.
    pub streams: usize,
    /// Whether its threads wait awake for each other's part of a product. To be woken takes a fifth of a lone text's time;
    /// but a thread that waits awake takes a core from whatever else runs.
    pub stays_awake: bool,
    /// Whether products may be rounded to bf16 (OpenVINO on a CPU with instructions for it).
    pub bf16: bool,
    /// Whether it runs so seldom that weights need not be laid out for products, which takes a copy of them.
    pub is_tried_once: bool,
}

/// What a run gave, borrowed from the runtime.
pub struct RunOutput<'a> {
    /// `[n_texts][width][dimensions]` or `[n_texts][dimensions]`, as the session's [`OutputKind`] says.
    pub values: &'a [f32],
    /// The length of one vector.
    pub dimensions: usize,
}

/// An open model file on one provider. Several threads may run it at once, on one copy of the weights.
pub struct EncoderSession {
    session: Session,
    inputs: GraphInputs,
    output: GraphOutput,
    output_name: CString,
}

impl EncoderSession {
    /// Opens a graph.
    ///
    /// # Errors
    /// [`EngineError::ProviderMissing`], [`EngineError::OpenSession`], [`EngineError::NoMemoryToOpen`] or
    /// [`EngineError::UnsupportedGraph`].
    pub fn open(
        runtime: &Runtime,
        files: &GraphFiles,
        options: SessionOptions,
        wanted: WantedOutput,
    ) -> Result<Self, EngineError> {
        if !runtime.has(options.provider) {
            return Err(EngineError::ProviderMissing {
                provider: options.provider.as_str(),
                library: runtime.library.clone(),
            });
        }
        let path = &files.onnx;
        let not_onnx = |source| EngineError::OpenSession { path: path.clone(), source };
        let refused = |source| EngineError::of_open(path, source, not_onnx);
        // A GPU has its own copy of them.
        let apart = files.apart.as_ref().filter(|_| !options.provider.is_gpu());
        let weights = apart.map_or(files.external_data.as_slice(), |apart| std::slice::from_ref(&apart.weights));
        let mapped = (options.provider == Provider::OpenVino).then(|| mapped::Watch::begin(weights));
        let opened = match apart {
            Some(apart) => Some(open_apart(runtime, options, apart)),
            None if options.bf16 && !files.unfit_for_bf16.is_empty() => Some(open_fit(runtime, options, files)),
            None => None,
        };
        let session = match opened {
            Some(Ok(session)) => session,
            // As it is in its file, it would make other vectors.
            Some(Err(error)) if options.bf16 && !files.unfit_for_bf16.is_empty() => return Err(refused(error)),
            Some(Err(error)) => {
                let session = open_file(runtime, options, path).map_err(refused)?;
                tracing::warn!(path = %path.display(), %error, "the graph does not open from memory: it is opened as it is in its file");
                session
            }
            None => open_file(runtime, options, path).map_err(refused)?,
        };
        if let Some(mapped) = mapped {
            mapped.let_go();
        }
        let unsupported = |reason| EngineError::UnsupportedGraph { path: path.clone(), reason };
        let listed = session.inputs().iter().map(|input| (input.name(), input.dtype()));
        let inputs = GraphInputs::of(listed).map_err(unsupported)?;
        let outputs: Vec<_> = session.outputs().iter().map(|output| (output.name(), output.dtype())).collect();
        let output = choose_output(&outputs, wanted).map_err(unsupported)?;
        let output_name = CString::new(output.name.as_str()).map_err(|error| refused(error.into()))?;
        Ok(Self { session, inputs, output, output_name })
    }

    /// The output that is read.
    #[must_use]
    pub fn output(&self) -> &GraphOutput {
        &self.output
    }

    /// Whether the graph is told where in its text each token stands.
    #[must_use]
    pub fn takes_positions(&self) -> bool {
        self.inputs.take_positions()
    }

    /// Runs a batch and hands its output to `read`, without a copy unless it is of half precision.
    ///
    /// # Errors
    /// What the runtime said, or how the output's shape differs from what was announced.
    pub fn run<T>(&self, batch: &PaddedBatch, read: impl FnOnce(RunOutput<'_>) -> T) -> Result<T, Cause> {
        let allocator = self.session.allocator();
        let output = self.inputs.feed(batch, allocator, |names, values| self.run_shared(names, values))?;
        let (shape, values) = numbers_of(&output)?;
        let sizes: Vec<usize> = shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        let dimensions = match (self.output.kind, sizes.as_slice()) {
            (OutputKind::Tokens, &[texts, width, dimensions])
                if texts == batch.n_texts && width == batch.width && dimensions > 0 =>
            {
                dimensions
            }
            (OutputKind::Texts, &[texts, dimensions]) if texts == batch.n_texts && dimensions > 0 => dimensions,
            _ => {
                return Err(format!(
                    "`{}` has shape {sizes:?} for {} texts of {} tokens",
                    self.output.name, batch.n_texts, batch.width
                )
                .into());
            }
        };
        Ok(read(RunOutput { values: &values, dimensions }))
    }

    /// Runs the session without the exclusive borrow that `ort` asks for.
    ///
    /// `ort` takes `&mut self` because it does not trust every provider's `Run` from several threads. The contract of
    /// ONNX Runtime's C API is that `Run` may be called so, and the providers here keep to it: MLAS holds no state
    /// between calls, the OpenVINO provider takes an idle inference request for each call, and the CUDA provider keeps
    /// a context per thread (without CUDA graphs, which would share one). What it saves is one copy of the weights per
    /// worker.
    #[allow(unsafe_code, reason = "the C API is the only way to run one session from several threads")]
    fn run_shared(&self, names: &[*const c_char], values: &[*const ort::sys::OrtValue]) -> Result<DynValue, Cause> {
        let output_names = [self.output_name.as_ptr()];
        let mut outputs = [ptr::null_mut()];
        let session = self.session.inner();
        // SAFETY: the session is open as long as `session` lives; names and values come in pairs, are alive until the
        // call returns and are only read; one output name goes with one null pointer, which the call fills on success.
        let status = unsafe {
            (ort::api().Run)(
                session.ptr().cast_mut(),
                ptr::null(),
                names.as_ptr(),
                values.as_ptr(),
                names.len(),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            )
        };
        // SAFETY: the status comes from the call above and is given to nobody else.
        unsafe { ort::Error::result_from_status(status) }.map_err(cause)?;
        let output = NonNull::new(outputs[0]).ok_or("the runtime gave no output")?;
        // SAFETY: the call succeeded, so this is an OrtValue made with the session's allocator, and it is ours to free.
        Ok(unsafe { DynValue::from_ptr(output, Some(self.session.allocator())) })
    }
}

/// Opens a graph whose weights stay in their file. Some file systems do not let files be mapped.
fn open_apart(runtime: &Runtime, options: SessionOptions, apart: &GraphApart) -> Result<Session, Cause> {
    if !options.bf16 || apart.unfit_for_bf16.is_empty() {
        return open_beside(runtime, options, &apart.graph, &apart.weights);
    }
    let mut graph = apart.graph.clone();
    fit_for_bf16(&mut graph, &apart.unfit_for_bf16);
    open_beside(runtime, options, &graph, &apart.weights)
}

/// Opens a graph with numbers that are fit for bf16.
fn open_fit(runtime: &Runtime, options: SessionOptions, files: &GraphFiles) -> Result<Session, Cause> {
    let mut graph = fs_err::read(&files.onnx)?;
    fit_for_bf16(&mut graph, &files.unfit_for_bf16);
    open_beside(runtime, options, &graph, &files.onnx)
}

/// Opens a graph from memory; weights that it names are in the folder of this file.
fn open_beside(runtime: &Runtime, options: SessionOptions, graph: &[u8], file: &Path) -> Result<Session, Cause> {
    let folder = file.parent().and_then(Path::to_str).ok_or("the folder of its weights has no name in UTF-8")?;
    let builder = session_builder(runtime, options)?;
    let mut builder =
        builder.with_config_entry("session.model_external_initializers_file_folder_path", folder).map_err(cause)?;
    builder.commit_from_memory(graph).map_err(cause)
}

fn open_file(runtime: &Runtime, options: SessionOptions, path: &Path) -> Result<Session, Cause> {
    session_builder(runtime, options).and_then(|mut builder| builder.commit_from_file(path).map_err(cause))
}

fn session_builder(runtime: &Runtime, options: SessionOptions) -> Result<SessionBuilder, Cause> {
    Session::builder(&runtime.environment)
        .map_err(cause)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(cause)?
        .with_intra_threads(own_threads(options))
        .map_err(cause)?
        .with_intra_op_spinning(options.stays_awake)
        .map_err(cause)?
        .with_config_entry("session.force_spinning_stop", "1")
        .map_err(cause)?
        // It keeps a plan for each shape seen, of some 70 KB for a model like BERT-base, and shapes change with every batch.
        .with_memory_pattern(false)
        .map_err(cause)?
        .with_config_entry("session.disable_prepacking", if options.is_tried_once { "1" } else { "0" })
        .map_err(cause)?
        .with_config_entry("session.use_env_allocators", if options.provider == Provider::Cpu { "1" } else { "0" })
        .map_err(cause)?
        .with_execution_providers(providers(options))
        .map_err(cause)
}

/// Threads of the runtime's own pool, the caller's included. Other providers than its own have theirs: it would have nothing
/// to do but what they leave of a graph.
fn own_threads(options: SessionOptions) -> usize {
    if options.provider == Provider::Cpu { options.threads } else { 1 }
}

fn providers(options: SessionOptions) -> Vec<ExecutionProviderDispatch> {
    match options.provider {
        Provider::Cpu => vec![ep::CPU::default().build()],
        Provider::OpenVino => {
            let precision = if options.bf16 { "bf16" } else { "f32" };
            // Pinning puts the one thread of every session on the same core, and halves the speed of two.
            let config = format!(r#"{{"CPU":{{"INFERENCE_PRECISION_HINT":"{precision}","ENABLE_CPU_PINNING":"NO"}}}}"#);
            vec![
                ep::OpenVINO::default()
                    .with_device_type("CPU")
                    .with_num_threads(options.threads)
                    .with_num_streams(u8::try_from(options.streams).unwrap_or(u8::MAX))
                    .with_arbitrary_config("load_config", config)
                    .build()
                    .error_on_failure(),
            ]
        }
        Provider::Cuda => vec![
            ep::CUDA::default()
                .with_device_id(0)
                // Doubling would take up to twice what the model needs from whoever shares the GPU.
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                // Ten bits of mantissa where bf16 has seven. It changes rounding, so it is not part of a space.
                .with_tf32(true)
                .build()
                .error_on_failure(),
        ],
    }
}

/// Why the library was not loaded, in the words of the system's loader: `ort` does not name it as its source.
fn cause_of_load(error: ort::LoadDynamicError) -> Cause {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => error.into(),
        other => other.to_string().into(),
    }
}

/// The error of `ort` without what it carries for recovery.
#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
fn cause<R>(error: ort::Error<R>) -> Cause {
    error.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_own_pool_has_threads_only_where_it_computes() {
        for (provider, expected) in [(Provider::Cpu, 8), (Provider::OpenVino, 1), (Provider::Cuda, 1)] {
            let options = SessionOptions {
                provider,
                threads: 8,
                streams: 1,
                stays_awake: true,
                bf16: false,
                is_tried_once: false,
            };
            assert_eq!(own_threads(options), expected, "{provider}");
        }
    }
}
