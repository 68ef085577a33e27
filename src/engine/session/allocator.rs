//! What the runtime takes the memory of its own provider from.

use std::ffi::c_void;
use std::{mem, ptr};

use ort::AsPointer;
use ort::environment::Environment;

use crate::engine::run_memory;

/// Has the runtime take the memory of its own provider from [`run_memory`].
#[allow(unsafe_code, reason = "the C API is the only way to bring an allocator")]
pub(super) fn register(environment: &Environment) -> Result<(), ort::Error> {
    /// The runtime knows an allocator by where it lies, for as long as the environment lives.
    #[repr(C)]
    struct Allocator {
        calls: ort::sys::OrtAllocator,
        about: *const ort::sys::OrtMemoryInfo,
        plain: *mut ort::sys::OrtAllocator,
    }

    type Throwing = unsafe extern "system-unwind" fn(*mut ort::sys::OrtAllocator, usize) -> *mut c_void;
    type Called = unsafe extern "system" fn(*mut ort::sys::OrtAllocator, usize) -> *mut c_void;

    /// Where no memory is left, asks the runtime's plain allocator for more than there can be, which throws: the runtime
    /// makes an error of that, and would not see that it was given nothing.
    unsafe extern "system-unwind" fn allocate(this: *mut ort::sys::OrtAllocator, n_bytes: usize) -> *mut c_void {
        let block = run_memory::allocate(n_bytes);
        if block.is_null() && n_bytes > 0 {
            // SAFETY: as in `about`; the plain allocator is the runtime's own and lives as long as its library. What it
            // throws passes this frame, in which nothing is to be dropped, for the runtime, which made the call.
            unsafe {
                let plain = (*this.cast::<Allocator>()).plain;
                if let Some(allocate) = (*plain).Alloc {
                    mem::transmute::<Called, Throwing>(allocate)(plain, usize::MAX / 2);
                }
            }
            std::process::abort(); // it found more than there are addresses
        }
        block.cast()
    }

    unsafe extern "system" fn free(_: *mut ort::sys::OrtAllocator, block: *mut c_void) {
        // SAFETY: the runtime gives back what it took, once.
        unsafe { run_memory::free(block.cast()) }
    }

    unsafe extern "system" fn about(this: *const ort::sys::OrtAllocator) -> *const ort::sys::OrtMemoryInfo {
        // SAFETY: the runtime passes on the pointer that it was given, and `calls` is the first field of what lies there.
        unsafe { (*this.cast::<Allocator>()).about }
    }

    let (mut memory_info, mut plain) = (ptr::null_mut(), ptr::null_mut());
    let (kind, place) = (ort::sys::OrtAllocatorType::OrtDeviceAllocator, ort::sys::OrtMemType::OrtMemTypeDefault);
    // SAFETY: on success the call fills `memory_info`, which is never released.
    unsafe { ort::Error::result_from_status((ort::api().CreateCpuMemoryInfo)(kind, place, &raw mut memory_info)) }?;
    // SAFETY: on success the call fills `plain`, which is the runtime's.
    unsafe { ort::Error::result_from_status((ort::api().GetAllocatorWithDefaultOptions)(&raw mut plain)) }?;
    // SAFETY: the two differ in what may pass them, and nobody but the runtime calls it.
    let allocate = unsafe { mem::transmute::<Throwing, Called>(allocate) };
    // SAFETY: it is a table of optional functions and a version.
    let nothing = unsafe { ort::sys::OrtAllocator::default() };
    let calls = ort::sys::OrtAllocator { Alloc: Some(allocate), Free: Some(free), Info: Some(about), ..nothing };
    let allocator = Box::leak(Box::new(Allocator { calls, about: memory_info, plain }));
    // SAFETY: the environment is open, and the allocator is never freed.
    let status = unsafe { (ort::api().RegisterAllocator)(environment.ptr().cast_mut(), (&raw mut *allocator).cast()) };
    // SAFETY: the status comes from the call above and is given to nobody else.
    unsafe { ort::Error::result_from_status(status) }
}
