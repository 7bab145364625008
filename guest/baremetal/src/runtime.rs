//! The few functions that compiled code expects to find, and that the host target takes from its C library and its unwinder.
#![allow(unsafe_code)]

use core::arch::asm;

/// memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // By words: an emulated processor takes as long for a byte.
    // SAFETY: both are valid for `len` bytes by the function's contract; the direction flag is clear, as the ABI has it.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) len % 8,
            inout("rcx") len / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: the destination does not begin inside the source, so a copy from the start reads each byte before it writes it.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: as in `memcpy`, from the last byte down; the direction flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
            options(nostack));
    }
    to
}

/// memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    let byte = byte.to_le_bytes()[0];
    // SAFETY: as in `memcpy`.
    unsafe {
        asm!("rep stosq", "mov rcx, {rest}", "rep stosb", rest = in(reg) len % 8,
            inout("rcx") len / 8 => _, inout("rdi") to => _, in("rax") u64::from_le_bytes([byte; 8]),
            options(nostack, preserves_flags));
    }
    to
}

/// memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    let mut equal = 0;
    while equal + 8 <= len {
        // SAFETY: it is valid for `len` bytes by the function's contract.
        let left = unsafe { left.wrapping_add(equal).cast::<u64>().read_unaligned() };
        // SAFETY: as above.
        let right = unsafe { right.wrapping_add(equal).cast::<u64>().read_unaligned() };
        if left != right {
            break;
        }
        equal += 8;
    }
    for at in equal..len {
        // SAFETY: it is valid for `len` bytes by the function's contract.
        let left = unsafe { left.wrapping_add(at).read() };
        // SAFETY: as above.
        let right = unsafe { right.wrapping_add(at).read() };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// As memcmp(3); only whether the result is zero counts.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, len) }
}

/// strlen(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: valid up to the zero at its end by the function's contract.
    while unsafe { text.wrapping_add(len).read() } != 0 {
        len += 1;
    }
    len
}

/// The standard library's crates are compiled to unwind. This kernel does not: a panic ends it before anybody comes here.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::exit::exit(crate::exit::Outcome::Crashed)
}

/// Named by the same crates' tables, which nobody reads.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
