//! Finding the machine's virtio disks: on PCI, and by the words that a machine without PCI puts on the command line.
#![allow(unsafe_code)]

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioError, MmioTransport, VirtIOHeader};
use virtio_drivers::transport::pci::bus::{
    Command, ConfigurationAccess, DeviceFunction, HeaderType, PciRoot,
};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

use crate::heap::Identity;
use crate::{port, say};

/// A disk and where it was found, in words.
pub struct Found {
    /// `pci 00:01.0 (1af4:1042)`, `mmio 0xfeb00e00`.
    pub place: String,
    /// The way to the device; or why there is none, as with a device of before virtio 1.0.
    pub transport: Result<SomeTransport<'static>, String>,
}

/// See [`Machine::disks`](crate::Machine::disks).
pub(crate) fn find(command_line: &str) -> Vec<Found> {
    let mut found = Vec::new();
    find_on_pci(&mut pci_root(), 0, &mut found);
    for word in command_line.split_ascii_whitespace() {
        if let Some(description) = word.strip_prefix("virtio_mmio.device=") {
            let place = parse_mmio(description);
            let (address, len_bytes) = place.unwrap_or_else(|| panic!("{word}: not SIZE@ADDRESS:INTERRUPT"));
            found.extend(mmio_disk(address, len_bytes));
        }
    }
    found
}

fn find_on_pci(root: &mut PciRoot<ConfigurationPorts>, bus: u8, found: &mut Vec<Found>) {
    let functions: Vec<_> = root.enumerate_bus(bus).collect();
    for (function, info) in functions {
        if info.header_type == HeaderType::PciPciBridge {
            let [_, below, ..] = ConfigurationPorts.read_word(function, 0x18).to_le_bytes();
            // A bridge that leads down; firmware that found nothing behind it leaves 0.
            if below > bus {
                find_on_pci(root, below, found);
            }
        }
        if virtio_device_type(&info) != Some(DeviceType::Block) {
            continue;
        }
        let (_, command) = root.get_status_command(function);
        root.set_command(function, command | Command::MEMORY_SPACE | Command::BUS_MASTER);
        let place = format!("pci {function} ({:04x}:{:04x})", info.vendor_id, info.device_id);
        let transport = PciTransport::new::<Identity, _>(root, function);
        let transport = transport.map(SomeTransport::Pci).map_err(|error| error.to_string());
        found.push(Found { place, transport });
    }
}

/// The machine's PCI buses, which firmware has set up; empty on a machine without.
#[must_use]
pub fn pci_root() -> PciRoot<ConfigurationPorts> {
    PciRoot::new(ConfigurationPorts)
}

/// PCI's configuration mechanism by ports, which every PC has; without a PCI bus it reads as ones.
#[derive(Debug)]
pub struct ConfigurationPorts;

impl ConfigurationPorts {
    const ADDRESS: u16 = 0xcf8;
    const DATA: u16 = 0xcfc;

    fn select(function: DeviceFunction, register_offset: u8) {
        const ENABLE: u32 = 1 << 31;
        let DeviceFunction { bus, device, function } = function;
        let place = u32::from(bus) << 16 | u32::from(device) << 11 | u32::from(function) << 8;
        port::write_u32(Self::ADDRESS, ENABLE | place | u32::from(register_offset & !3));
    }
}

impl ConfigurationAccess for ConfigurationPorts {
    fn read_word(&self, function: DeviceFunction, register_offset: u8) -> u32 {
        Self::select(function, register_offset);
        port::read_u32(Self::DATA)
    }

    fn write_word(&mut self, function: DeviceFunction, register_offset: u8, data: u32) {
        Self::select(function, register_offset);
        port::write_u32(Self::DATA, data);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        ConfigurationPorts
    }
}

/// `512@0xfeb00e00:12`, as in Linux' kernel parameter: size, address, interrupt. An optional fourth part is an identifier.
fn parse_mmio(description: &str) -> Option<(usize, usize)> {
    let (size, rest) = description.split_once('@')?;
    let (address, _interrupt) = rest.split_once(':')?;
    let (digits, unit) = match size.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1024),
        None => (size, 1),
    };
    let len_bytes = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    let address = usize::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
    Some((address, len_bytes))
}

/// `None` for a slot without a device, or with one of another kind.
fn mmio_disk(address: usize, len_bytes: usize) -> Option<Found> {
    let place = format!("mmio {address:#x}");
    let header = NonNull::new(address as *mut VirtIOHeader).expect("a virtio-mmio device at address 0");
    // SAFETY: the machine says that the registers of a virtio device are there; they are mapped, and nobody else uses them.
    let transport = match unsafe { MmioTransport::new(header, len_bytes) } {
        Ok(transport) => transport,
        Err(MmioError::InvalidDeviceID(_)) => return None,
        Err(error) => return Some(Found { place, transport: Err(error.to_string()) }),
    };
    if transport.device_type() != DeviceType::Block {
        say!("{place}: a device of type {:?}, passed over", transport.device_type());
        return None;
    }
    Some(Found { place, transport: Ok(SomeTransport::Mmio(transport)) })
}
