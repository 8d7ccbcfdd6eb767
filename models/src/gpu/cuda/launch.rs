//! From tensors to addresses, and from our kernels' names to launches.

use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, DevicePtr as _, DeviceRepr, LaunchConfig, PushKernelArg as _,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::cuda_backend::{WrapErr as _, kernels};
use candle_core::{DType, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

/// Our kernels' text.
const SOURCE: &str = include_str!("own.cu");

/// Shared memory that every GPU gives a block without being asked.
const SHARED_PLAIN: usize = 48 << 10;

/// Most blocks in a grid's second and third direction.
pub(super) const GRID_MAX: usize = 65_535;

/// An address on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address(pub u64);

impl Address {
    pub(super) const NULL: Self = Self(0);
}

/// Where a contiguous tensor's values begin.
///
/// # Errors
/// If it is strided, or elsewhere than on a CUDA device.
pub(super) fn address(t: &Tensor) -> Result<Address> {
    fn of<T: CudaDType + DeviceRepr>(storage: &CudaStorage, offset: usize) -> Result<Address> {
        let slice = storage.as_cuda_slice::<T>()?;
        let (first, _ordered) = slice.device_ptr(slice.stream());
        Ok(Address(first + (offset * size_of::<T>()) as u64))
    }
    let (storage, layout) = t.storage_and_layout();
    if !layout.is_contiguous() {
        bail!("a kernel was given a strided tensor, {layout:?}");
    }
    let Storage::Cuda(storage) = &*storage else { bail!("a kernel was given a tensor of the host") };
    let offset = layout.start_offset();
    match t.dtype() {
        DType::F32 => of::<f32>(storage, offset),
        DType::F16 => of::<f16>(storage, offset),
        DType::BF16 => of::<bf16>(storage, offset),
        DType::U32 => of::<u32>(storage, offset),
        DType::U8 => of::<u8>(storage, offset),
        DType::I64 => of::<i64>(storage, offset),
        other => bail!("a kernel was given {other:?}"),
    }
}

/// [`address`], or null.
pub(super) fn address_or_null(t: Option<&Tensor>) -> Result<Address> {
    t.map_or(Ok(Address::NULL), address)
}

/// A tensor whose values a kernel is about to write, all of them.
pub(super) fn unwritten<T: CudaDType + DeviceRepr>(
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Result<Tensor>
where
    CudaSlice<T>: Into<Slice>,
{
    let shape = shape.into();
    // SAFETY: every kernel that is given such a tensor writes all of it before anyone reads.
    #[expect(unsafe_code, reason = "memory that a kernel fills")]
    let slice = unsafe { device.alloc::<T>(shape.elem_count()) }?;
    Ok(Tensor::from((Storage::Cuda(slice.into().wrap(device)), shape)))
}

/// A device's memory of one of the types that our kernels write.
pub(super) enum Slice {
    F32(CudaSlice<f32>),
    F16(CudaSlice<f16>),
    U32(CudaSlice<u32>),
    U8(CudaSlice<u8>),
}

impl Slice {
    fn wrap(self, device: &CudaDevice) -> CudaStorage {
        match self {
            Self::F32(slice) => CudaStorage::wrap_cuda_slice(slice, device.clone()),
            Self::F16(slice) => CudaStorage::wrap_cuda_slice(slice, device.clone()),
            Self::U32(slice) => CudaStorage::wrap_cuda_slice(slice, device.clone()),
            Self::U8(slice) => CudaStorage::wrap_cuda_slice(slice, device.clone()),
        }
    }
}

impl From<CudaSlice<f32>> for Slice {
    fn from(slice: CudaSlice<f32>) -> Self {
        Self::F32(slice)
    }
}

impl From<CudaSlice<f16>> for Slice {
    fn from(slice: CudaSlice<f16>) -> Self {
        Self::F16(slice)
    }
}

impl From<CudaSlice<u32>> for Slice {
    fn from(slice: CudaSlice<u32>) -> Self {
        Self::U32(slice)
    }
}

impl From<CudaSlice<u8>> for Slice {
    fn from(slice: CudaSlice<u8>) -> Self {
        Self::U8(slice)
    }
}

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    At(Address),
    Int(i32),
    Long(i64),
    Float(f32),
}

/// Our kernels, compiled.
pub(super) struct Own {
    module: std::sync::Arc<CudaModule>,
    device: CudaDevice,
    /// By name, and whether it may have more shared memory than is plain.
    functions: std::cell::RefCell<std::collections::HashMap<&'static str, (CudaFunction, bool)>>,
    /// Most shared memory a block can have if it asks.
    shared_max: usize,
}

impl Own {
    pub(super) fn compile(device: &CudaDevice) -> Result<Self> {
        use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
        let context = device.cuda_stream().context().clone();
        let (major, minor) = context.compute_capability().w()?;
        // The library wants a name that lives as long as the process.
        let arch: &'static str = Box::leak(format!("compute_{major}{minor}").into_boxed_str());
        let options = CompileOptions { arch: Some(arch), ..CompileOptions::default() };
        let ptx = compile_ptx_with_opts(SOURCE, options).w()?;
        let module = context.load_module(ptx).w()?;
        let shared =
            context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN).w()?;
        Ok(Self {
            module,
            device: device.clone(),
            functions: std::cell::RefCell::default(),
            // Some of it is taken by kernels' fixed arrays.
            shared_max: usize::try_from(shared).unwrap_or(0).saturating_sub(1024).max(SHARED_PLAIN),
        })
    }

    /// One of candle's quantized products by its name there (`mul_mat...`), else one of ours.
    fn function(&self, name: &'static str, shared: usize) -> Result<CudaFunction> {
        if let Some((known, raised)) = self.functions.borrow().get(name)
            && (*raised || shared <= SHARED_PLAIN)
        {
            return Ok(known.clone());
        }
        let function = match name.starts_with("mul_mat") {
            false => self.module.load_function(name).w()?,
            true => self.device.get_or_load_func(name, &kernels::QUANTIZED)?.into_cuda_function(),
        };
        if shared > SHARED_PLAIN {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, self.shared_max as i32).w()?;
        }
        self.functions.borrow_mut().insert(name, (function.clone(), shared > SHARED_PLAIN));
        Ok(function)
    }

    /// Launches `name` with `shared` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// If the launch is not one that GPUs do: no blocks, or too many, or too much shared memory.
    pub(super) fn launch(
        &self,
        name: &'static str,
        grid: (usize, usize, usize),
        threads: (usize, usize),
        shared: usize,
        args: &[Arg],
    ) -> Result<()> {
        let whole = |n: usize, most: usize| n > 0 && n <= most;
        let blocks = whole(grid.0, i32::MAX as usize) && whole(grid.1, GRID_MAX) && whole(grid.2, GRID_MAX);
        if !(blocks && whole(threads.0 * threads.1, 1024) && shared <= self.shared_max) {
            bail!("{name}: a grid of {grid:?}, {threads:?} threads and {shared} bytes cannot be launched");
        }
        let function = self.function(name, shared)?;
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::At(address) => builder.arg(&address.0),
                Arg::Int(n) => builder.arg(n),
                Arg::Long(n) => builder.arg(n),
                Arg::Float(v) => builder.arg(v),
            };
        }
        let config = LaunchConfig {
            grid_dim: (grid.0 as u32, grid.1 as u32, grid.2 as u32),
            block_dim: (threads.0 as u32, threads.1 as u32, 1),
            shared_mem_bytes: shared as u32,
        };
        // SAFETY: callers give each kernel the arguments of its declaration in own.cu, addresses of tensors that are alive and as
        // large as the numbers beside them say; all work is in one stream, so nothing is freed before it is done.
        #[expect(unsafe_code, reason = "a kernel's launch")]
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    /// One thread per value.
    pub(super) fn launch_flat(&self, name: &'static str, values: usize, args: &[Arg]) -> Result<()> {
        self.launch(name, (values.div_ceil(256), 1, 1), (256, 1), 0, args)
    }
}
