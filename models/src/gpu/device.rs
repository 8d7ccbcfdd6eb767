//! Which device there is, and its memory.

use candle_core::Device;

use super::error::GpuError;
use super::host::HostKernels;
use super::kernels::Kernels;
use super::plain::PlainKernels;

/// An open device with its kernels.
pub struct GpuDevice {
    device: Device,
    kernels: Box<dyn Kernels>,
    name: String,
}

/// A device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// All of it.
    pub(super) total: u64,
    /// What no one uses.
    pub(super) free: u64,
}

impl GpuDevice {
    /// candle's CPU device with the kernels' contracts in plain loops, for tests.
    pub fn host() -> Self {
        let (device, kernels) = (Device::Cpu, Box::new(HostKernels));
        Self { device, kernels, name: "candle's CPU device".to_owned() }
    }

    /// candle's CPU device with the kernels that run on Apple's GPUs, for tests.
    pub fn plain() -> Self {
        // So little room for scores that short prompts are cut too.
        let kernels = Box::new(PlainKernels { device: Device::Cpu, scores_max: 4096 });
        Self { device: Device::Cpu, kernels, name: "candle's CPU device, plain kernels".to_owned() }
    }

    /// Apple's GPU.
    ///
    /// # Errors
    /// If there is none, or Metal gives no queue on it.
    #[cfg(feature = "metal")]
    pub fn metal() -> Result<Self, GpuError> {
        let absent = |what: String| GpuError::Absent(format!("metal: {what}"));
        // candle takes the first device of a list without asking whether it has one.
        if Self::metal_count() == 0 {
            return Err(absent("this machine has no GPU that Metal knows".to_owned()));
        }
        let device = Device::new_metal(0).map_err(|error| absent(error.to_string()))?;
        let name = device.as_metal_device()?.metal_device().architecture_name();
        // 64 MiB.
        let kernels = Box::new(PlainKernels { device: device.clone(), scores_max: 16 << 20 });
        Ok(Self { device, kernels, name })
    }

    /// Apple's GPU: this build has no kernels for it.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "metal"))]
    pub fn metal() -> Result<Self, GpuError> {
        Err(GpuError::Absent(format!("metal: {}", crate::model_runner::NO_METAL)))
    }

    /// Apple's GPUs: one or none.
    #[cfg(feature = "metal")]
    pub fn metal_count() -> usize {
        candle_metal_kernels::metal::Device::all().len()
    }

    /// NVIDIA's GPU of this number.
    ///
    /// # Errors
    /// If there is none, or its driver or kernels do not load.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Self, GpuError> {
        if let Some(why) = Self::unfit(ordinal) {
            return Err(GpuError::Absent(format!("cuda:{ordinal}: {why}")));
        }
        let opened = super::cuda::open(ordinal);
        let opened = opened.map_err(|error| GpuError::Absent(format!("cuda:{ordinal}: {error}")))?;
        Ok(Self { device: opened.device, kernels: Box::new(opened.kernels), name: opened.name })
    }

    /// NVIDIA's GPU of this number: this build has no kernels for it.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(ordinal: usize) -> Result<Self, GpuError> {
        Err(GpuError::Absent(format!("cuda:{ordinal}: {}", crate::model_runner::NO_CUDA)))
    }

    /// NVIDIA's GPUs that the driver has for us.
    ///
    /// # Errors
    /// The driver's, in words.
    #[cfg(feature = "cuda")]
    pub fn count() -> Result<usize, String> {
        use candle_core::cuda_backend::cudarc::driver::CudaContext;
        CudaContext::device_count().map(|n| usize::try_from(n).unwrap_or(0)).map_err(|e| e.to_string())
    }

    /// Why the kernels do not run on NVIDIA's GPU of this number, if that is known.
    #[cfg(feature = "cuda")]
    pub fn unfit(ordinal: usize) -> Option<String> {
        use candle_core::cuda_backend::cudarc::driver::{result, result::device, sys::CUdevice_attribute};
        result::init().ok()?;
        let attribute = |which| {
            let gpu = device::get(i32::try_from(ordinal).ok()?).ok()?;
            // SAFETY: the device is the driver's, the attribute one of its own.
            #[expect(unsafe_code, reason = "a driver call")]
            unsafe { device::get_attribute(gpu, which) }.ok()
        };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let why = super::capability::unfit(10 * major + minor, option_env!("CUDA_COMPUTE_CAP"))?;
        Some(format!("the NVIDIA GPU has {why}"))
    }

    /// By which NVIDIA's GPU of this number is known to every tool; of a part of one (MIG), the part's.
    ///
    /// # Errors
    /// The driver's, in words.
    #[cfg(feature = "cuda")]
    pub fn uuid(ordinal: usize) -> Result<[u8; 16], String> {
        use candle_core::cuda_backend::cudarc::driver::result::{device, init};
        let ordinal = i32::try_from(ordinal).map_err(|e| e.to_string())?;
        let uuid = init().and_then(|()| device::get(ordinal)).and_then(device::get_uuid);
        uuid.map(|uuid| uuid.bytes.map(|byte| byte.to_ne_bytes()[0])).map_err(|e| e.to_string())
    }

    /// As its maker calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn into_parts(self) -> (Device, Box<dyn Kernels>) {
        (self.device, self.kernels)
    }
}
