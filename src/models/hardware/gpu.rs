//! The GPUs, as NVIDIA's management library tells of them. A machine without that library has none.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::engine::Gpu;

/// The names of the library: without a development package only the second one is there.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so", "libnvidia-ml.so.1"];

/// Every GPU the driver shows to this process, in the order of their bus addresses (CUDA's own where all are alike);
/// none without a driver. Blocks.
#[must_use]
pub fn gpus() -> Vec<Gpu> {
    let library = LIBRARIES.into_iter().find_map(|name| Nvml::builder().lib_path(name.as_ref()).init().ok());
    let Some(library) = library else { return Vec::new() };
    let driver = library.sys_driver_version().ok();
    let n_devices = library.device_count().unwrap_or(0);
    let device = |index| library.device_by_index(index).and_then(|device| describe(&device, driver.as_deref()));
    (0..n_devices)
        .filter_map(|index| {
            device(index).inspect_err(|error| tracing::debug!(index, %error, "a GPU cannot be looked at")).ok()
        })
        .collect()
}

fn describe(device: &Device<'_>, driver: Option<&str>) -> Result<Gpu, NvmlError> {
    let memory = device.memory_info()?;
    let capability = device.cuda_compute_capability().ok();
    Ok(Gpu {
        name: device.name()?,
        memory_bytes: memory.total,
        free_bytes: memory.free,
        driver: driver.map(str::to_owned),
        compute_capability: capability.map(|capability| format!("{}.{}", capability.major, capability.minor)),
    })
}
