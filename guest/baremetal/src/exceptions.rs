//! The processor's exceptions: each is said, with where it was, and ends the machine. None of them is survived.
#![allow(unsafe_code)]

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::exit::{Outcome, exit};
use crate::say;

const NAMES: [&str; 32] = [
    "divide error",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "no device",
    "double fault",
    "coprocessor overrun",
    "invalid task state",
    "segment not present",
    "stack segment",
    "general protection",
    "page fault",
    "reserved",
    "x87 floating point",
    "alignment check",
    "machine check",
    "SIMD floating point",
    "virtualization",
    "control protection",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "hypervisor injection",
    "VMM communication",
    "security",
    "reserved",
];

const CODE_SELECTOR: u64 = 8;
const TASK_SELECTOR: u16 = 24;

/// A stack of their own: the fault may be that there is no more stack.
const STACK_LEN_BYTES: usize = 16 * 1024;

/// What only the set-up below writes, once, before anything else runs; from then on the processor alone reads it.
#[repr(transparent)]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: there is one processor, and interrupts are off.
unsafe impl<T> Sync for Shared<T> {}

static STACK: Shared<[u8; STACK_LEN_BYTES]> = Shared(UnsafeCell::new([0; STACK_LEN_BYTES]));
static GATES: Shared<[[u64; 2]; 32]> = Shared(UnsafeCell::new([[0; 2]; 32]));
static TASK: Shared<TaskState> = Shared(UnsafeCell::new(TaskState([0; 26])));

/// The 64-bit task state segment in 32-bit words, for its fields are not aligned.
#[repr(C)]
struct TaskState([u32; 26]);

/// The first interrupt stack's place in it.
const TASK_STACK_WORD: usize = 9;

/// The operand of LIDT.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// What `boot.s` and the processor leave on the stack.
#[repr(C)]
struct Frame {
    vector: u64,
    error_code: u64,
    instruction: u64,
    code_selector: u64,
    flags: u64,
    stack: u64,
    stack_selector: u64,
}

unsafe extern "C" {
    static exception_entries: [[u8; 16]; 32];
    static boot_gdt: Shared<[u64; 5]>;
}

/// Names all exceptions' places to the processor.
pub(crate) fn set_up() {
    // SAFETY: nothing else has a reference to the task state: this runs once, before anything else.
    let task = unsafe { &mut *TASK.0.get() };
    let stack_end = STACK.0.get() as u64 + STACK_LEN_BYTES as u64;
    task.0[TASK_STACK_WORD] = low_half(stack_end);
    task.0[TASK_STACK_WORD + 1] = low_half(stack_end >> 32);
    // SAFETY: the symbol is that of `boot.s`.
    let descriptors = unsafe { &boot_gdt };
    // SAFETY: as for the task state; the processor looks at the task's descriptor below and not before.
    let descriptors = unsafe { &mut *descriptors.0.get() };
    [descriptors[3], descriptors[4]] = task_descriptor(&raw const *task as u64);

    // SAFETY: as for the task state.
    let gates = unsafe { &mut *GATES.0.get() };
    // SAFETY: the symbol is that of `boot.s`, which nobody writes to.
    let entries = unsafe { &exception_entries };
    for (gate, entry) in gates.iter_mut().zip(entries) {
        *gate = exception_gate(entry.as_ptr() as u64);
    }
    let pointer = TablePointer { limit: 32 * 16 - 1, base: gates.as_ptr() as u64 };
    // SAFETY: each of the table's gates leads to an entry of `boot.s`, on a stack of its own.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) };
    // SAFETY: the selector is that of the descriptor above.
    unsafe { asm!("ltr {:x}", in(reg) TASK_SELECTOR, options(nostack, preserves_flags)) };
}

/// An interrupt gate on the first interrupt stack.
fn exception_gate(address: u64) -> [u64; 2] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
    const FIRST_STACK: u64 = 1 << 32;
    let low = (address & 0xffff)
        | CODE_SELECTOR << 16
        | FIRST_STACK
        | PRESENT_INTERRUPT_GATE
        | (address & 0xffff_0000) << 32;
    [low, address >> 32]
}

fn task_descriptor(address: u64) -> [u64; 2] {
    const PRESENT_TASK: u64 = 0x89 << 40;
    const LIMIT: u64 = size_of::<TaskState>() as u64 - 1;
    let low = LIMIT | (address & 0x00ff_ffff) << 16 | PRESENT_TASK | (address & 0xff00_0000) << 32;
    [low, address >> 32]
}

#[allow(clippy::cast_possible_truncation, reason = "the half that is meant")]
fn low_half(value: u64) -> u32 {
    value as u32
}

#[unsafe(no_mangle)]
extern "C" fn exception(frame: &Frame) -> ! {
    let address: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    let name = usize::try_from(frame.vector).ok().and_then(|vector| NAMES.get(vector)).unwrap_or(&"unknown");
    say!(
        "exception {} ({name}), error code {:#x}, at instruction {:#x}, stack {:#x}, address {address:#x}",
        frame.vector,
        frame.error_code,
        frame.instruction,
        frame.stack
    );
    exit(Outcome::Crashed)
}
