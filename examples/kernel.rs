//! The driver in a kernel: a zoned disk on the PCI bus. `cargo xtask baremetal --example` runs it in QEMU.
#![no_std]
#![no_main]

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::Command;
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_zbd_baremetal::{Identity, Machine, Outcome, entry, pci_root, say};
use virtio_zbd_driver::{Error, Options, Transport, VirtioBlk, Zone};

/// What the kernel is to bring: memory as devices see it. Here each address is the same for all (`guest/baremetal/src/heap.rs`);
/// with an IOMMU or an address space of the kernel's own, this is where addresses are translated.
type Memory = Identity;

entry!(main);

fn main(_: &Machine) -> Outcome {
    // On a machine without PCI this is `MmioTransport::new`; nothing else changes.
    let mut root = pci_root();
    let mut functions = root.enumerate_bus(0);
    let disk = functions.find(|(_, info)| virtio_device_type(info) == Some(DeviceType::Block));
    let (function, _) = disk.expect("no virtio disk on the first PCI bus");
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    let transport = PciTransport::new::<Memory, _>(&mut root, function).expect("not a virtio 1.0 device");
    match work(transport) {
        Ok(()) => Outcome::Passed,
        Err(error) => {
            say!("{function}: {error}");
            Outcome::Failed
        }
    }
}

fn work<T: Transport>(transport: T) -> Result<(), Error> {
    // This one polls. `VirtioBlk::with` takes a `Wait` that sleeps until the interrupt.
    let mut disk = VirtioBlk::<Memory, T>::new(transport, Options::default())?;
    let Some(zoned) = disk.zoned().copied() else {
        say!("the disk has no zones: it has {} sectors", disk.capacity_sectors());
        return Ok(());
    };
    say!("{} zones of {} sectors", zoned.zones, zoned.zone_sectors);

    // The first zone that has a write pointer and nothing in it yet. Each zone that comes was checked; the error may be ours.
    let is_empty = |zone: &Zone| zone.write_pointer_sector == Some(zone.start_sector);
    let zone = disk.zones(0)?.find(|zone| zone.as_ref().map_or(true, is_empty));
    let zone = zone.transpose()?.expect("no zone is empty");
    say!("zone at {}: {:?}, {:?}", zone.start_sector, zone.kind, zone.state);

    // The device says where the data landed.
    let sector = disk.append(zone.start_sector, &[b'a'; 4096])?;
    let mut data = [0; 4096];
    disk.read(sector, &mut data)?;
    say!("appended at sector {sector}, read back: {}", char::from(data[0]));

    // A write that is not at the write pointer. The device's answer comes as it is; the zone stays as it was.
    match disk.write(zone.start_sector, &data) {
        Err(Error::Device { status, .. }) => say!("written again: {status}"),
        other => return other,
    }
    let zone = disk.zone(sector)?;
    say!("zone at {}: {:?}, write pointer {:?}", zone.start_sector, zone.state, zone.write_pointer_sector);
    disk.reset_zone(zone.start_sector)?;
    say!("reset: {:?}", disk.zone(sector)?.state);
    disk.flush()
}
