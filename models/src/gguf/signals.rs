//! Signals that files raise become a line with an exit code, or an error, instead of a silent end.
#![expect(unsafe_code, reason = "handling SIGBUS, which reading a mapped file may raise, and SIGXFSZ")]

use std::mem::MaybeUninit;

/// The exit code of a process that lost bytes of a mapped file, nearly always its model's.
pub const EXIT_MODEL_LOST: u8 = 4;

const LINE: &[u8] =
    b"frugal: a model file was cut short or cannot be read any more (SIGBUS), or the program's own file; \
    replace either by renaming a new file over it, never by writing into it\n";

/// From now on, reading mapped bytes that the file no longer has ends the process with [`EXIT_MODEL_LOST`] and a line
/// on standard error, and writing past the limit of a file's size is an error of the write.
///
/// Besides model files the program itself and its libraries are mapped: the line names both, for the signal does not tell which it was.
/// Broken memory keeps its own signal.
pub fn answer_file_signals() {
    // SAFETY: an all-zero `sigaction` is a valid value of this C struct, whose fields are integers, a mask and an
    // optional function.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised, outlives the calls, and names a handler of the form that SA_SIGINFO asks for, which
    // does only what is allowed in one. Ignoring a signal runs no code.
    let refused = unsafe {
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0
            || libc::signal(libc::SIGXFSZ, libc::SIG_IGN) == libc::SIG_ERR
    };
    assert!(!refused, "these signals can be handled: {}", std::io::Error::last_os_error());
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the system calls handlers of this form with a valid `info`. `write`, `_exit` and `signal` may be called in a
    // handler; no memory is allocated and no lock taken.
    unsafe {
        if (*info).si_code == libc::BUS_ADRERR {
            libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len());
            libc::_exit(EXIT_MODEL_LOST.into());
        }
        // Not ours: the same instruction runs again and meets the default.
        libc::signal(signal, libc::SIG_DFL);
    }
}
