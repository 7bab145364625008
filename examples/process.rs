//! The driver in a plain process: a zoned disk behind a vhost-user socket.
//!
//! ```text
//! vzbd serve ram --size 1G --zone-size 64M --socket disk.sock &
//! cargo run -p virtio-zbd-examples --bin process -- disk.sock
//! ```
#![allow(clippy::print_stdout, reason = "a program")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use virtio_zbd_driver::{Command, Done, Options, VirtioBlk, Waited};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ArenaHal, ConnectOptions, VhostUserTransport};

type Disk = VirtioBlk<ArenaHal, VhostUserTransport, ArenaBuffer>;

fn main() -> anyhow::Result<()> {
    let socket = std::env::args_os().nth(1).context("usage: process SOCKET")?;
    let transport = VhostUserTransport::connect(Path::new(&socket), &ConnectOptions::default())?;
    // The calls below sleep until the device has answered. A device that is silent for ten seconds is given up.
    let wait = |transport: &mut VhostUserTransport, queue, turn| match turn {
        10.. => Waited::GiveUp,
        _ => transport.wait_used(queue, Duration::from_secs(1)).map_or(Waited::Gone, |_| Waited::Again),
    };
    let mut disk = Disk::with(transport, Options::default(), wait, ArenaBuffer::zeroed)?;
    let Some(zoned) = disk.zoned().copied() else {
        bail!("{}: not a zoned disk", Path::new(&socket).display())
    };
    println!("{} zones of {} sectors", zoned.zones, zoned.zone_sectors);

    // The first zone that has a write pointer and nothing in it yet.
    let mut zones = disk.zones(0)?;
    let zone = loop {
        match zones.next().context("no zone is empty")?? {
            zone if zone.write_pointer_sector == Some(zone.start_sector) => break zone,
            zone => println!("zone at {}: {:?}, {:?}", zone.start_sector, zone.kind, zone.state),
        }
    };

    // Synchronous: the device says where the data landed.
    let sector = disk.append(zone.start_sector, &[b'a'; 4096])?;
    println!("appended at sector {sector}");

    // Asynchronous: four appends at once. Their buffers lie in memory that the device shares: nothing is copied.
    for letter in b'b'..=b'e' {
        let mut buffer = disk.buffer(4096)?;
        buffer.fill(letter);
        let append = Command::Append { zone_start_sector: zone.start_sector, buffer };
        disk.submit(0, append).map_err(|rejected| rejected.error)?;
    }
    disk.notify(0)?;
    while disk.in_flight(0) > 0 {
        disk.wait(0)?;
        while let Some(completion) = disk.complete(0)? {
            let letter = completion.buffer.map_or('?', |buffer| char::from(buffer[0]));
            let Done::Appended { sector } = completion.result? else { bail!("an append has a sector") };
            println!("{letter} is at sector {sector}");
        }
    }

    let mut data = [0; 4096];
    disk.read(sector, &mut data)?;
    println!("read back: {}", char::from(data[0]));
    println!("the write pointer is at sector {:?}", disk.zone(sector)?.write_pointer_sector);
    disk.reset_zone(zone.start_sector)?;
    disk.flush()?;
    Ok(())
}
