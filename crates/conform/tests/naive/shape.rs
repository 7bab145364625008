//! The disks that the naive device can be.

use virtio_zbd_spec::{Features, Model, ZoneState, ZoneType};

/// A disk's geometry and what it offers.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) model: Model,
    pub(crate) zone_sectors: u64,
    /// Type and capacity of each zone; the last may be shorter by `capacity_sectors`.
    pub(crate) zones: Vec<(ZoneType, u64)>,
    pub(crate) capacity_sectors: u64,
    pub(crate) max_open: u32,
    pub(crate) max_active: u32,
    pub(crate) max_append: u32,
    pub(crate) granularity: u32,
    pub(crate) features: Features,
    pub(crate) queues: u16,
    pub(crate) seg_max: u32,
    pub(crate) size_max: u32,
    /// The block in bytes, with BLK_SIZE.
    pub(crate) block: u32,
    /// Zones that are worn from the beginning.
    pub(crate) worn: Vec<(usize, ZoneState)>,
}

pub(crate) const CONV: ZoneType = ZoneType::Conventional;
pub(crate) const SWR: ZoneType = ZoneType::SequentialRequired;
pub(crate) const SWP: ZoneType = ZoneType::SequentialPreferred;

impl Shape {
    /// A host-managed disk of such zones.
    fn new(name: &'static str, zone_sectors: u64, granularity: u32, zones: Vec<(ZoneType, u64)>) -> Self {
        Self {
            name,
            model: Model::HostManaged,
            zone_sectors,
            capacity_sectors: zone_sectors * zones.len() as u64,
            zones,
            max_open: 0,
            max_active: 0,
            max_append: 16 * (granularity / 512),
            granularity,
            features: Features::VERSION_1
                | Features::SEG_MAX
                | Features::SIZE_MAX
                | Features::FLUSH
                | Features::CONFIG_WCE
                | Features::ZONED,
            queues: 1,
            seg_max: 126,
            size_max: 1 << 20,
            block: 512,
            worn: vec![],
        }
    }

    const fn limits(mut self, max_open: u32, max_active: u32) -> Self {
        self.max_open = max_open;
        self.max_active = max_active;
        self
    }

    const fn append(mut self, sectors: u32) -> Self {
        self.max_append = sectors;
        self
    }

    /// The last zone has so many sectors.
    fn runt(mut self, sectors: u64) -> Self {
        self.capacity_sectors -= self.zone_sectors - sectors;
        let last = self.zones.last_mut().unwrap();
        last.1 = last.1.min(sectors);
        self
    }

    fn with(mut self, features: Features) -> Self {
        self.features |= features;
        self
    }

    fn worn(mut self, zone: usize, state: ZoneState) -> Self {
        self.worn.push((zone, state));
        self
    }

    /// With a block size that is offered.
    fn block(mut self, len_bytes: u32) -> Self {
        self.block = len_bytes;
        self.with(Features::BLK_SIZE)
    }

    const fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }
}

fn zones(runs: &[(usize, ZoneType, u64)]) -> Vec<(ZoneType, u64)> {
    runs.iter().flat_map(|&(count, kind, capacity)| (0..count).map(move |_| (kind, capacity))).collect()
}

/// What most breaks are tried on: conventional zones first, capacity less than size, both limits, a worn zone of each kind.
pub(crate) fn usual() -> Shape {
    Shape::new("usual", 128, 1024, zones(&[(2, CONV, 128), (14, SWR, 96)]))
        .limits(3, 5)
        .worn(5, ZoneState::ReadOnly)
        .worn(7, ZoneState::Offline)
        .with(Features::MQ | Features::SECURE_ERASE | Features::LIFETIME)
        .queues(2)
}

pub(crate) fn adjoining() -> Shape {
    Shape::new(
        "a length that is no power of two, to the brim, a shorter last zone",
        104,
        2048,
        zones(&[(9, SWR, 104)]),
    )
    .runt(40)
    .limits(2, 2)
}

pub(crate) fn one_of_each() -> Shape {
    Shape::new("limits of 1", 64, 512, zones(&[(1, CONV, 64), (5, SWR, 64), (1, CONV, 64)])).limits(1, 1)
}

pub(crate) fn no_limits() -> Shape {
    Shape::new("no limits, no append", 128, 4096, zones(&[(10, SWR, 128)])).append(0)
}

pub(crate) fn odd_capacities() -> Shape {
    let zones = [
        (1, SWR, 96),
        (2, SWR, 64),
        (1, CONV, 96),
        (1, SWR, 40),
        (2, SWR, 88),
        (2, CONV, 96),
        (2, SWR, 72),
        (1, SWR, 96),
    ];
    Shape::new("each zone another capacity, conventional ones in between", 96, 4096, self::zones(&zones))
        .runt(56)
        .limits(2, 0)
        .block(4096)
}

pub(crate) fn conventional() -> Shape {
    Shape::new("all conventional", 64, 512, zones(&[(4, CONV, 64)])).limits(1, 1)
}

pub(crate) fn single() -> Shape {
    Shape::new("one zone", 256, 512, zones(&[(1, SWR, 200)])).limits(1, 1)
}

pub(crate) fn host_aware() -> Shape {
    Shape {
        model: Model::HostAware,
        ..Shape::new("host-aware", 64, 512, zones(&[(1, CONV, 64), (7, SWP, 64)]))
            .with(Features::DISCARD | Features::WRITE_ZEROES | Features::MQ)
            .queues(3)
    }
}

pub(crate) fn plain() -> Shape {
    let mut shape = Shape::new("plain", 0, 512, vec![]).with(Features::DISCARD | Features::WRITE_ZEROES);
    shape.features -= Features::ZONED;
    shape.model = Model::None;
    shape.capacity_sectors = 300;
    shape
}

pub(crate) fn coarse() -> Shape {
    Shape::new("granules of 64K, active limit only", 1024, 65536, zones(&[(8, SWR, 896)]))
        .limits(0, 3)
        .append(128)
}

pub(crate) fn read_only() -> Shape {
    Shape::new("read-only", 64, 512, zones(&[(1, CONV, 64), (3, SWR, 64)])).with(Features::RO)
}

pub(crate) fn one_open() -> Shape {
    Shape::new("one open zone of four active ones", 72, 512, zones(&[(7, SWR, 72), (1, CONV, 72)]))
        .limits(1, 4)
}

pub(crate) fn unreachable_limits() -> Shape {
    Shape::new("limits above the number of zones", 80, 8192, zones(&[(4, SWR, 80)])).limits(100, 200)
}

/// All disks on which a device without fault must pass.
pub(crate) fn all() -> Vec<Shape> {
    vec![
        usual(),
        adjoining(),
        one_of_each(),
        no_limits(),
        odd_capacities(),
        conventional(),
        single(),
        host_aware(),
        plain(),
        coarse(),
        read_only(),
        one_open(),
        unreachable_limits(),
    ]
}
