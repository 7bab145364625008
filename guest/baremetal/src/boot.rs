//! The way in, and what the loader tells: the command line and where memory is.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char};
use core::ops::Range;

use crate::exit::{Outcome, exit};
use crate::machine::Machine;
use crate::{exceptions, heap, serial};

core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));

/// `struct hvm_start_info` (Xen's public headers, `arch-x86/hvm/start_info.h`), as far as it is used.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    acpi_root: u64,
    /// From version 1 on.
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
struct MemoryRange {
    start: u64,
    len_bytes: u64,
    kind: u32,
    reserved: u32,
}

const START_INFO_MAGIC: u32 = 0x336e_c578;
const KIND_RAM: u32 = 1;

/// Behind it are devices: see `boot.s`.
const RAM_END_MAX: u64 = 0xb000_0000;

unsafe extern "C" {
    static __kernel_end: u8;
}

unsafe extern "Rust" {
    /// The kernel's own: see `entry!`.
    fn baremetal_main(machine: &Machine) -> Outcome;
}

/// Where `boot.s` calls, on the kernel's stack, with the first 4 GiB mapped one to one.
#[unsafe(no_mangle)]
extern "C" fn kernel_start(start_info: &'static StartInfo) -> ! {
    serial::set_up();
    exceptions::set_up();
    assert!(start_info.magic == START_INFO_MAGIC, "no PVH start info: start this kernel with QEMU's -kernel");
    assert!(start_info.version >= 1, "the loader gives no memory map (start info of version 0)");

    // The address of a symbol of the linker's.
    let kernel_end = &raw const __kernel_end as u64;
    let heap = heap_range(memory_map(start_info), kernel_end);
    for address in [&raw const *start_info as u64, start_info.command_line, start_info.memory_map] {
        assert!(
            address < kernel_end,
            "the loader left its messages at {address:#x}, where the heap is to be"
        );
    }
    // SAFETY: the range is RAM by the memory map, behind the kernel's end and below the devices; nobody else knows of it.
    unsafe { heap::set_up(heap.clone()) };
    let machine = Machine::new(command_line(start_info), heap);
    // SAFETY: `entry!` makes this function; without it the kernel is not linked.
    exit(unsafe { baremetal_main(&machine) })
}

fn command_line(start_info: &StartInfo) -> &'static str {
    if start_info.command_line == 0 {
        return "";
    }
    // SAFETY: the loader put a string there that ends with a zero, in memory that we never write to (the heap is above).
    let line = unsafe { CStr::from_ptr(start_info.command_line as *const c_char) };
    line.to_str().expect("the kernel's command line is not UTF-8")
}

fn memory_map(start_info: &StartInfo) -> &'static [MemoryRange] {
    let count = start_info.memory_map_entries as usize;
    // SAFETY: from version 1 on, the loader put that many entries there, in memory that we never write to.
    unsafe { core::slice::from_raw_parts(start_info.memory_map as *const MemoryRange, count) }
}

/// All memory from the kernel's end to the end of the range that it lies in.
#[allow(
    clippy::cast_possible_truncation,
    reason = "an address has as many bits as usize: this kernel is for x86-64"
)]
fn heap_range(map: &[MemoryRange], kernel_end: u64) -> Range<usize> {
    let is_ours = |range: &&MemoryRange| {
        range.kind == KIND_RAM
            && (range.start..range.start.saturating_add(range.len_bytes)).contains(&kernel_end)
    };
    let range =
        map.iter().find(is_ours).expect("the kernel's end lies in no RAM: give the machine 64 MiB or more");
    let end = (range.start + range.len_bytes).min(RAM_END_MAX);
    kernel_end as usize..end as usize
}
