//! NVIDIA's management library, which comes with the driver and is loaded at run time.
//!
//! CUDA and NVML count GPUs differently, and `CUDA_VISIBLE_DEVICES` renumbers CUDA's: the UUID is what both agree on.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use super::{Device, Meter, Sample};

/// The name without a number is only there where programs are compiled.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// A meter of the GPU with this UUID, as CUDA gives it. One line in the log says what is measured, or why nothing is: without the
/// library, for part of a GPU (MIG), or where the driver does not tell.
pub fn of_nvidia(uuid: [u8; 16]) -> Option<Meter> {
    opened(LIBRARY.as_ref(), uuid)
}

fn opened(library: &OsStr, uuid: [u8; 16]) -> Option<Meter> {
    let uuid = spelled(uuid);
    match open(library, &uuid) {
        Ok(meter) => {
            let energy = meter.energy_seen().is_some();
            tracing::info!(gpu = meter.device().name, uuid, energy, "the GPU is asked what it uses");
            Some(meter)
        }
        Err(why) => {
            tracing::info!(uuid, why, "the GPU's energy and load are not measured");
            None
        }
    }
}

fn open(library: &OsStr, uuid: &str) -> Result<Meter, String> {
    let nvml = Nvml::builder().lib_path(library).init();
    let nvml = nvml.map_err(|error| format!("NVML: {error}"))?;
    let name = nvml.device_by_uuid(uuid).and_then(|gpu| gpu.name());
    let name = name.map_err(|error| format!("NVML has no such GPU: {error}"))?;
    let device = Device { name, uuid: uuid.to_owned() };
    let uuid = uuid.to_owned();
    Meter::start(device, Box::new(move || sample(&nvml, &uuid).map_err(|error| format!("NVML: {error}"))))
}

fn sample(nvml: &Nvml, uuid: &str) -> Result<Sample, NvmlError> {
    let gpu = nvml.device_by_uuid(uuid)?;
    let memory = said(gpu.memory_info())?;
    Ok(Sample {
        energy_millijoules: said(gpu.total_energy_consumption())?,
        power_milliwatts: said(gpu.power_usage())?.map(u64::from),
        busy_percent: said(gpu.utilization_rates())?.map(|rates| rates.gpu),
        memory_used: memory.as_ref().map(|memory| memory.used),
        memory: memory.map(|memory| memory.total),
        celsius: said(gpu.temperature(TemperatureSensor::Gpu))?,
    })
}

/// None for what this GPU or this driver never says, or not to us: older ones lack the counter of energy, some cards a sensor, and
/// containers a permission.
fn said<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(
            NvmlError::NotSupported
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::NoPermission,
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// As NVML and every tool over it spell it.
fn spelled(uuid: [u8; 16]) -> String {
    let hex: Vec<String> = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex[from..to].concat();
    format!("GPU-{}-{}-{}-{}-{}", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16))
}

#[cfg(test)]
mod tests;
