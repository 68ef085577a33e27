//! What this machine's cores reach in a matrix product, through the runtime that runs the models.

use std::process::{Command, Stdio};
use std::time::Instant;

use granary::domain::Provider;
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider};
use ort::session::Session;
use ort::value::TensorRef;

use crate::support::stats::median;
use crate::support::{Failure, data_folder};

/// Rows and columns of both matrices.
const N: usize = 1024;
const N_PRODUCTS: usize = 30;

/// As [`gflops`]: the runtime allows a process one environment, and here the engine has it.
pub fn gflops_in_its_own_process(provider: &str) -> Result<f64, Failure> {
    let program = std::env::current_exe()?;
    let output = Command::new(program).args(["--peak", "--provider", provider]).stderr(Stdio::inherit()).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse().map_err(|_| "the matrix peak could not be measured")?)
}

/// Billions of multiplications and additions a second, all cores together: the median of some products.
pub fn gflops(provider: Provider, bf16: bool) -> Result<f64, Failure> {
    let cores = std::thread::available_parallelism()?.get();
    let precision = if bf16 { "bf16" } else { "f32" };
    let providers = match provider {
        Provider::Cpu => vec![ep::CPU::default().build()],
        Provider::Cuda => vec![ep::CUDA::default().build().error_on_failure()],
        Provider::OpenVino => vec![
            ep::OpenVINO::default()
                .with_device_type("CPU")
                .with_num_threads(cores)
                .with_arbitrary_config(
                    "load_config",
                    format!(r#"{{"CPU":{{"INFERENCE_PRECISION_HINT":"{precision}","ENABLE_CPU_PINNING":"NO"}}}}"#),
                )
                .build()
                .error_on_failure(),
        ],
    };
    let environment = ort::init_from(data_folder().join("runtime/libonnxruntime.so").canonicalize()?)?.build()?;
    let mut session = Session::builder(&environment)?
        .with_intra_threads(cores)
        .map_err(|error| error.to_string())?
        .with_execution_providers(providers)
        .map_err(|error| error.to_string())?
        .commit_from_file(data_folder().join("bench/matmul.onnx"))
        .map_err(|error| error.to_string())?;
    let matrix = vec![0.5_f32; N * N];
    let mut speeds = Vec::new();
    for _ in 0..N_PRODUCTS {
        let input = TensorRef::from_array_view(([N, N], matrix.as_slice()))?;
        let started = Instant::now();
        session.run(ort::inputs!["x" => input])?;
        speeds.push(2.0 * (N * N * N) as f64 / started.elapsed().as_secs_f64() / 1e9);
    }
    Ok(median(speeds))
}
