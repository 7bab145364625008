//! A system call that is not allowed ends the process: this says which one it was.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::ptr;

/// Where the number of the refused call stands in a siginfo of SIGSYS: behind three ints, padded to a pointer's alignment,
/// and the address of the instruction (`_sigsys._syscall` of Linux).
const CALL_AT: usize = 16 + size_of::<usize>();

/// Installs the handler.
pub(crate) fn prepare() -> io::Result<()> {
    // SAFETY: all zeros is an empty mask, no flags and SIG_DFL.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is a whole sigaction with a handler of the three-argument form, as its flag says.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler: only async-signal-safe calls, all of them allowed.
extern "C" fn on_sigsys(signal: c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a siginfo of 128 bytes to a handler with SA_SIGINFO.
    let call = unsafe { info.cast::<u8>().add(CALL_AT) };
    // SAFETY: as above; for SIGSYS of a filter there is an int.
    let call = unsafe { call.cast::<c_int>().read_unaligned() };
    let mut line = Line::default();
    line.push(b"system call ");
    line.push_number(call.unsigned_abs());
    line.push(b" (");
    line.push(std::env::consts::ARCH.as_bytes());
    line.push(b") is not allowed in the sandbox: the process ends (`ausyscall NUMBER` has its name)\n");
    let text = line.text();
    // SAFETY: as many bytes as there are.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: SIG_DFL is a disposition for every signal.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // Delivered when this returns: the process ends as if nobody had said anything.
    // SAFETY: no memory is involved.
    unsafe { libc::raise(signal) };
}

/// Text without an allocator.
struct Line {
    bytes: [u8; 192],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 192], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *place = *byte;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + u8::try_from(number % 10).unwrap_or(0)]);
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
