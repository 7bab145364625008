//! A disk, and the driver's test list on it.

use alloc::string::ToString;
use alloc::vec::Vec;

use virtio_drivers::transport::SomeTransport;
use virtio_zbd_baremetal::{Found, Identity, Machine, say};
use virtio_zbd_checks::Peer;
use virtio_zbd_driver::{Options, VirtioBlk, ZoneSupport, Zoned};

use crate::wait::Patience;

type Disk = VirtioBlk<Identity, SomeTransport<'static>>;

/// What the command line asks for.
pub(crate) struct Wishes {
    /// What the disk must do; without, it is only introduced.
    peer: Option<Peer>,
    /// For the list's random parts.
    seed: u64,
    /// This many random requests instead of the list.
    random_steps: Option<u32>,
    options: Options,
}

impl Wishes {
    /// # Panics
    /// A word's value is none.
    pub(crate) fn of(machine: &Machine) -> Wishes {
        let number = |name| {
            machine.word(name).map(|value| match value.parse() {
                Ok(number) => number,
                Err(error) => panic!("{name}={value}: {error}"),
            })
        };
        let peer = machine.word("peer").map(|name| match Peer::from_name(name) {
            Some(peer) => peer,
            None => panic!("peer={name}: no such peer"),
        });
        let small = |name, default| {
            number(name).map_or(default, |value: u64| u16::try_from(value).unwrap_or(u16::MAX))
        };
        Wishes {
            peer,
            seed: number("seed").unwrap_or(0),
            random_steps: number("random").map(|steps| u32::try_from(steps).unwrap_or(u32::MAX)),
            options: Options {
                queues: small("queues", u16::MAX),
                queue_depth: small("depth", Options::default().queue_depth),
                zones: if machine.word("zones") == Some("no") { ZoneSupport::No } else { ZoneSupport::Yes },
            },
        }
    }
}

/// Runs the list; whether the disk passed.
pub(crate) fn run(found: Found, wishes: &Wishes) -> bool {
    let Found { place, transport } = found;
    let probed = transport.and_then(|transport| {
        Disk::with(transport, wishes.options, Patience::new(), zeroed).map_err(|error| error.to_string())
    });
    let mut disk = match probed {
        Ok(disk) => disk,
        Err(error) => {
            say!("{place}: {error}");
            return false;
        }
    };
    introduce(&place, &disk);
    let Some(peer) = &wishes.peer else { return true };
    let seed = wishes.seed;
    let mut report = |line: &virtio_zbd_checks::Line| say!("{line}");
    let summary = match wishes.random_steps {
        Some(steps) => virtio_zbd_checks::run_random(&mut disk, peer, seed, steps, &mut report),
        None => virtio_zbd_checks::run(&mut disk, peer, seed, &mut report),
    };
    say!("{place}: as {} with seed {seed}: {summary}", peer.name);
    if let Err(error) = disk.release() {
        say!("{place}: can't be given back: {error}");
        return false;
    }
    summary.failed == 0
}

fn zeroed(len_bytes: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len_bytes).ok()?;
    bytes.resize(len_bytes, 0);
    Some(bytes)
}

/// Says what the driver found.
fn introduce(place: &str, disk: &Disk) {
    let kind = match (disk.zoned(), disk.read_only()) {
        (Some(_), _) => "zoned",
        (None, true) => "read-only",
        (None, false) => "regular",
    };
    say!(
        "{place}: {kind}, {} sectors in blocks of {} bytes, {} queues of {}",
        disk.capacity_sectors(),
        disk.block_len_bytes(),
        disk.queue_count(),
        disk.queue_depth()
    );
    if let Some(zoned) = disk.zoned() {
        let Zoned { zones, zone_sectors, open_max, active_max, append_sectors_max, write_granularity_bytes } =
            zoned;
        say!(
            "{place}: {zones} zones of {zone_sectors} sectors, at most {open_max} open, {active_max} active, append at most \
             {append_sectors_max} sectors, write in units of {write_granularity_bytes} bytes"
        );
    }
    say!("{place}: features {:?}", disk.features());
}
