//! A zoned disk in memory, written from the rules alone: naive, exact, and wrong on demand.

#![allow(dead_code, reason = "each test file uses a part of it")]

mod breaks;
mod serve;
pub(crate) mod shape;
mod zones;

pub(crate) use breaks::Break;
pub(crate) use shape::Shape;
use virtio_zbd_conform::{CONFIG_LEN_BYTES, Chain, Link, LinkError, Started};
use virtio_zbd_spec::{BlkConfig, Features, ZoneState, ZoneType};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) struct Naive {
    shape: Shape,
    broken: Option<Break>,
    accepted: Features,
    zones: Vec<Zone>,
    data: Vec<u8>,
    /// What was written to the configuration where that is possible.
    scribble: Option<[u8; CONFIG_LEN_BYTES]>,
    write_back: bool,
    refused_before: bool,
    hangs: bool,
    /// Implicitly open zones, the oldest first.
    implicit: Vec<usize>,
    /// What is counted and should not be, open and active.
    leaked: (i64, i64),
    reads: u8,
}

#[derive(Clone, Debug)]
struct Zone {
    start: u64,
    len: u64,
    capacity: u64,
    kind: ZoneType,
    state: ZoneState,
    wp: u64,
    /// Where what is written ends; the write pointer until the zone is finished.
    data_end: u64,
}

impl Naive {
    pub(crate) fn new(shape: Shape, broken: Option<Break>) -> Self {
        let mut zones = Vec::new();
        for (index, &(kind, capacity)) in (0_u64..).zip(&shape.zones) {
            let start = index * shape.zone_sectors;
            let len = shape.zone_sectors.min(shape.capacity_sectors - start);
            let state = if kind == ZoneType::Conventional { ZoneState::NotWp } else { ZoneState::Empty };
            zones.push(Zone { start, len, capacity, kind, state, wp: start, data_end: start });
        }
        for &(zone, state) in &shape.worn {
            zones[zone].state = state;
        }
        let data = vec![0; usize::try_from(shape.capacity_sectors * 512).unwrap()];
        Self {
            shape,
            broken,
            accepted: Features::empty(),
            zones,
            data,
            scribble: None,
            write_back: false,
            refused_before: false,
            hangs: false,
            implicit: vec![],
            leaked: (0, 0),
            reads: 0,
        }
    }

    fn is(&self, broken: Break) -> bool {
        self.broken == Some(broken)
    }

    /// Whether zones can be used: ZONED accepted, and there are some.
    fn zoned(&self) -> bool {
        self.accepted.contains(Features::ZONED) && !self.zones.is_empty()
    }

    fn offered_features(&self) -> Features {
        let mut features = self.shape.features;
        match self.broken {
            Some(Break::PlainOffersZoned) => features |= Features::ZONED,
            Some(Break::ZonedWithoutVersion1) => features -= Features::VERSION_1,
            Some(Break::NoFlush) => features -= Features::FLUSH | Features::CONFIG_WCE,
            Some(Break::CacheModeWithoutFlush) => features -= Features::FLUSH,
            Some(Break::OffersWriteZeroes) => features |= Features::WRITE_ZEROES,
            Some(Break::OffersDiscard) => features |= Features::DISCARD,
            _ => {}
        }
        features
    }

    fn takes(&mut self, features: Features) -> bool {
        let offered = self.offered_features();
        let host_managed = u8::from(self.shape.model) == 1;
        if self.refused_before && self.is(Break::RefusalSticks) {
            self.refused_before = false;
            return false;
        }
        let fits = (offered.contains(features) || self.is(Break::AcceptsWhatIsNotOffered))
            && (features.contains(Features::VERSION_1)
                || self.is(Break::LegacyDriversGetZones)
                || self.is(Break::ZonedWithoutVersion1))
            && (features.contains(Features::ZONED)
                || !host_managed
                || self.is(Break::HostManagedGoesOnWithoutZoned))
            && (features.contains(Features::ZONED) || !self.is(Break::HostAwareInsistsOnZoned))
            && (features.contains(Features::FLUSH) || !self.is(Break::WantsEverything));
        self.refused_before = !fits;
        fits
    }

    fn configuration(&self) -> BlkConfig {
        let shape = &self.shape;
        let mut config = BlkConfig {
            capacity: shape.capacity_sectors.into(),
            seg_max: shape.seg_max.into(),
            size_max: shape.size_max.into(),
            blk_size: shape.block.into(),
            num_queues: if self.is(Break::NoQueues) { 0 } else { shape.queues }.into(),
            ..BlkConfig::default()
        };
        config.writeback = u8::from(self.write_back);
        config.max_secure_erase_sectors = u32::MAX.into();
        let alignment = if self.is(Break::EraseAlignmentOfOne) { 1 } else { shape.zone_sectors };
        config.secure_erase_sector_alignment = u32::try_from(alignment).unwrap().into();
        if self.is(Break::PaddingInside) {
            config.unused1[1] = 9;
        }
        if !self.accepted.contains(Features::ZONED) && !self.is(Break::FieldsStayWithoutZoned) {
            return config;
        }
        let zoned = &mut config.zoned;
        zoned.zone_sectors = u32::try_from(shape.zone_sectors).unwrap().into();
        zoned.max_open_zones = shape.max_open.into();
        zoned.max_active_zones = shape.max_active.into();
        zoned.max_append_sectors = shape.max_append.into();
        zoned.write_granularity = shape.granularity.into();
        zoned.model = shape.model.into();
        match self.broken {
            Some(Break::UnknownModel) => zoned.model = 7,
            Some(Break::ZoneSectorsZero) => zoned.zone_sectors = 0.into(),
            Some(Break::MaxOpenAboveMaxActive) => zoned.max_open_zones = (shape.max_active + 1).into(),
            Some(Break::AppendLimitBeyondRequests) => zoned.max_append_sectors = u32::MAX.into(),
            Some(Break::GranularityZero) => zoned.write_granularity = 0.into(),
            Some(Break::GranularityOfThreeSectors) => zoned.write_granularity = 1536.into(),
            Some(Break::PaddingBehindModel) => zoned.unused2[2] = 1,
            _ => {}
        }
        config
    }
}

impl Link for Naive {
    fn offered(&mut self) -> Result<u64, LinkError> {
        Ok(self.offered_features().bits())
    }

    fn start(&mut self, features: u64) -> Result<Started, LinkError> {
        let features = Features::from_bits_retain(features);
        self.hangs = false;
        self.accepted = Features::empty();
        if self.is(Break::DeviceResetWipes) {
            for zone in &mut self.zones {
                if zone.kind != ZoneType::Conventional {
                    (zone.state, zone.wp, zone.data_end) = (ZoneState::Empty, zone.start, zone.start);
                }
            }
            self.implicit.clear();
        }
        if !self.takes(features) {
            return Ok(Started::Refused);
        }
        self.accepted = features;
        self.write_back = features.contains(Features::FLUSH) || self.is(Break::WriteBackWithoutFlush);
        Ok(Started::Accepted)
    }

    fn config(&mut self) -> Result<[u8; CONFIG_LEN_BYTES], LinkError> {
        let mut config = self.scribble.unwrap_or_else(|| {
            <[u8; CONFIG_LEN_BYTES]>::read_from_bytes(self.configuration().as_bytes()).unwrap()
        });
        if self.is(Break::ShortConfiguration) {
            config[80..].fill(0);
        }
        Ok(config)
    }

    fn config_len_bytes(&mut self) -> usize {
        if self.is(Break::ShortConfiguration) { 80 } else { CONFIG_LEN_BYTES }
    }

    fn write_config(&mut self, offset: usize, byte: u8) -> Result<(), LinkError> {
        let can_be_set = self.accepted.contains(Features::CONFIG_WCE) && !self.is(Break::WriteBackStuck);
        if offset == 32 && can_be_set {
            self.write_back = byte != 0;
        }
        if self.is(Break::WritableConfiguration) {
            let mut config = self.config()?;
            config[offset] = byte;
            self.scribble = Some(config);
        }
        Ok(())
    }

    fn queue_size(&self) -> u16 {
        64
    }

    fn queue_count(&self) -> u16 {
        if self.accepted.contains(Features::MQ) { self.shape.queues } else { 1 }
    }

    fn send(&mut self, readable: &[&[u8]], writable: &mut [&mut [u8]]) -> Result<u32, LinkError> {
        let lens: Vec<usize> = writable.iter().map(|piece| piece.len()).collect();
        let mut room: Vec<u8> = writable.iter().flat_map(|piece| piece.iter().copied()).collect();
        let Some(used) = self.answer(readable, &lens, &mut room) else { return Err(LinkError::TimedOut) };
        let mut rest = &room[..];
        for piece in writable {
            let (bytes, behind) = rest.split_at(piece.len());
            piece.copy_from_slice(bytes);
            rest = behind;
        }
        Ok(used)
    }

    fn send_all(&mut self, chains: &mut [Chain]) -> Result<(), LinkError> {
        assert!(chains.len() <= usize::from(self.queue_size() / 4));
        let saved = self.zones.clone();
        let mut order: Vec<usize> = (0..chains.len()).collect();
        if self.is(Break::NoOrder) {
            order.reverse();
        }
        for (turn, index) in order.into_iter().enumerate() {
            let chain = &mut chains[index];
            assert!(chain.queue < self.queue_count() && chain.readable.len() + chain.writable.len() <= 4);
            if turn == 1 && self.is(Break::AppendsRace) {
                // The second one of a batch sees the zones as the first one did.
                self.zones.clone_from(&saved);
            }
            let readable: Vec<&[u8]> = chain.readable.iter().map(|piece| &piece[..]).collect();
            let lens: Vec<usize> = chain.writable.iter().map(Vec::len).collect();
            let mut room = chain.writable.concat();
            chain.used_len = self.answer(&readable, &lens, &mut room);
            let mut rest = &room[..];
            for piece in &mut chain.writable {
                let (bytes, behind) = rest.split_at(piece.len());
                piece.copy_from_slice(bytes);
                rest = behind;
            }
            if chain.used_len.is_none() {
                return Err(LinkError::TimedOut);
            }
        }
        Ok(())
    }
}
