//! Ways to crash on purpose, for the test that each is told and not silent.
#![allow(unsafe_code)]

use core::arch::asm;
use core::hint::black_box;

use virtio_zbd_baremetal::halt;

/// Crashes as `how` says: `panic`, `instruction` (an invalid one), `access` (to memory that is not mapped), `stack` (an
/// overflow), or not at all: `hang`.
pub(crate) fn crash(how: &str) {
    match how {
        "panic" => panic!("on purpose"),
        // SAFETY: the exception does not return.
        "instruction" => unsafe { asm!("ud2", options(noreturn)) },
        // SAFETY: nothing is mapped there: the exception does not return.
        "access" => unsafe { asm!("mov rax, [{}]", in(reg) 0xffff_8000_0000_1234_u64, options(noreturn)) },
        "stack" => drop(black_box(overflow(black_box(0)))),
        "hang" => halt(),
        how => panic!("crash={how}: not a way to crash"),
    }
}

#[allow(unconditional_recursion, reason = "what is wanted")]
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    frame[0] + black_box(overflow(black_box(depth + 1)))
}
