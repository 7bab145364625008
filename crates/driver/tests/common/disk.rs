//! An honest disk, zoned or regular, told as plainly as the rules tell it (V12 to V32).
//!
//! One request after the other, no resources saved: what is open or active is counted when it is asked for.

use virtio_zbd_spec::{
    BlkConfig, DiscardWriteZeroes, Features, ID_LEN_BYTES, Model, ReportHeader, RequestType, Status,
    ZoneDescriptor, ZoneState, ZoneType,
};
use zerocopy::{FromBytes, IntoBytes};

use super::SECTOR;

/// What a disk is like. The defaults are a small host-managed disk whose last zone is a runt.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The disk's size.
    pub capacity_sectors: u64,
    /// A zone's size; 0: a regular disk.
    pub zone_sectors: u32,
    /// A sequential zone's capacity; conventional ones and a runt that is shorter have all of their sectors.
    pub zone_capacity_sectors: u32,
    /// How many of the first zones are conventional.
    pub conventional: usize,
    /// 0: no limit.
    pub open_max: u32,
    /// 0: no limit.
    pub active_max: u32,
    /// 0: no append.
    pub append_sectors_max: u32,
    /// The unit of writes to sequential zones.
    pub granularity_bytes: u32,
    /// The logical block.
    pub block_bytes: u32,
    /// `None`: SIZE_MAX is not offered.
    pub size_max: Option<u32>,
    /// `None`: SEG_MAX is not offered.
    pub seg_max: Option<u32>,
    /// `None`: MQ is not offered.
    pub queues: Option<u16>,
    /// The size of each queue.
    pub queue_size: u16,
    /// Features that are offered besides those that the other fields ask for.
    pub more: Features,
    /// What DISCARD, WRITE_ZEROES and SECURE_ERASE are limited to, if offered: sectors of a range and ranges.
    pub ranges_max: (u32, u32),
    /// The disk's serial.
    pub serial: [u8; ID_LEN_BYTES],
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            capacity_sectors: 8 * 64 + 40,
            zone_sectors: 64,
            zone_capacity_sectors: 48,
            conventional: 2,
            open_max: 3,
            active_max: 4,
            append_sectors_max: 16,
            granularity_bytes: 4096,
            block_bytes: 512,
            size_max: None,
            seg_max: Some(16),
            queues: None,
            queue_size: 64,
            more: Features::FLUSH | Features::INDIRECT_DESC,
            ranges_max: (32, 4),
            serial: *b"fake disk 7\0\0\0\0\0\0\0\0\0",
        }
    }
}

impl Shape {
    /// A regular disk with everything that one can offer.
    pub fn regular() -> Self {
        Self {
            capacity_sectors: 1024,
            zone_sectors: 0,
            granularity_bytes: 0,
            more: Features::FLUSH
                | Features::INDIRECT_DESC
                | Features::DISCARD
                | Features::WRITE_ZEROES
                | Features::SECURE_ERASE,
            ..Self::default()
        }
    }

    /// Whether it has zones.
    pub fn is_zoned(&self) -> bool {
        self.zone_sectors != 0
    }

    /// The features that it offers.
    pub fn features(&self) -> Features {
        let mut features = self.more | Features::VERSION_1 | Features::BLK_SIZE;
        features.set(Features::SIZE_MAX, self.size_max.is_some());
        features.set(Features::SEG_MAX, self.seg_max.is_some());
        features.set(Features::MQ, self.queues.is_some());
        features.set(Features::ZONED, self.is_zoned());
        features
    }

    /// Its configuration space.
    pub fn config(&self) -> BlkConfig {
        let mut config = BlkConfig::default();
        config.capacity.set(self.capacity_sectors);
        config.size_max.set(self.size_max.unwrap_or(0));
        config.seg_max.set(self.seg_max.unwrap_or(0));
        config.blk_size.set(self.block_bytes);
        config.num_queues.set(self.queues.unwrap_or(0));
        let (sectors, ranges) = self.ranges_max;
        if self.more.contains(Features::DISCARD) {
            config.max_discard_sectors.set(sectors);
            config.max_discard_seg.set(ranges);
            config.discard_sector_alignment.set(1);
        }
        if self.more.contains(Features::WRITE_ZEROES) {
            config.max_write_zeroes_sectors.set(sectors);
            config.max_write_zeroes_seg.set(ranges);
            config.write_zeroes_may_unmap = 1;
        }
        if self.more.contains(Features::SECURE_ERASE) {
            let unit = self.zone_sectors.max(1);
            config.max_secure_erase_sectors.set(sectors.max(unit));
            config.max_secure_erase_seg.set(ranges);
            config.secure_erase_sector_alignment.set(unit);
        }
        if self.is_zoned() {
            let zoned = &mut config.zoned;
            zoned.zone_sectors.set(self.zone_sectors);
            zoned.max_open_zones.set(self.open_max);
            zoned.max_active_zones.set(self.active_max);
            zoned.max_append_sectors.set(self.append_sectors_max);
            zoned.write_granularity.set(self.granularity_bytes);
            zoned.model = Model::HostManaged.into();
        }
        config
    }
}

/// A zone. Positions are in sectors from the disk's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its first sector.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// How much of it can be written.
    pub capacity: u64,
    /// Conventional or sequential.
    pub kind: ZoneType,
    /// Its state.
    pub state: ZoneState,
    /// The sector of the next write; not looked at where the state has none.
    pub wp: u64,
}

/// The disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What it is like.
    pub shape: Shape,
    /// None on a regular disk.
    pub zones: Vec<Zone>,
    /// All of its bytes; what is unwritten is zero.
    pub bytes: Vec<u8>,
    /// Every change is answered with IOERR.
    pub read_only: bool,
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it went.
    pub status: Status,
    /// What is written where there is room for data.
    pub data: Vec<u8>,
    /// Where an append went.
    pub append_sector: u64,
}

impl Disk {
    /// A disk on which nothing is written.
    pub fn new(shape: Shape) -> Self {
        let zones = if shape.is_zoned() { zones(&shape, shape.capacity_sectors) } else { Vec::new() };
        let bytes = vec![0; usize::try_from(shape.capacity_sectors).expect("a small disk") * SECTOR];
        let read_only = shape.more.contains(Features::RO);
        Self { shape, zones, bytes, read_only }
    }

    /// Makes it larger or smaller: the last zone may become longer or shorter, and new ones are empty.
    pub fn resize(&mut self, capacity_sectors: u64) {
        self.shape.capacity_sectors = capacity_sectors;
        // Not `resize`, which takes a step for each byte.
        let mut bytes = vec![0; offset(capacity_sectors)];
        let kept = bytes.len().min(self.bytes.len());
        bytes[..kept].copy_from_slice(&self.bytes[..kept]);
        self.bytes = bytes;
        if self.shape.is_zoned() {
            let mut grown = zones(&self.shape, capacity_sectors);
            for (new, old) in grown.iter_mut().zip(&self.zones) {
                (new.state, new.wp) = (old.state, old.wp);
            }
            self.zones = grown;
        }
    }

    /// The zone that holds `sector`.
    pub fn zone_of(&self, sector: u64) -> Option<usize> {
        self.zones.iter().position(|zone| (zone.start..zone.start + zone.len).contains(&sector))
    }

    /// The bytes of `sectors` from `sector` on.
    pub fn bytes(&self, sector: u64, sectors: u64) -> &[u8] {
        &self.bytes[offset(sector)..offset(sector + sectors)]
    }

    /// How many zones are open, and how many are active.
    pub fn resources(&self) -> (u32, u32) {
        let count = |states: &[ZoneState]| {
            let zones = self.zones.iter().filter(|zone| states.contains(&zone.state));
            u32::try_from(zones.count()).expect("few zones")
        };
        let open = count(&[ZoneState::ImplicitOpen, ZoneState::ExplicitOpen]);
        (open, open + count(&[ZoneState::Closed]))
    }

    /// Does one request. `data` is what follows the header, `room` what can be written before the in-header. `zoned`: ZONED is
    /// negotiated.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: usize, zoned: bool) -> Answer {
        let mut answer = Answer { status: Status::Ok, data: Vec::new(), append_sector: 0 };
        let done = match RequestType::try_from(kind) {
            Ok(kind) => self.execute(kind, sector, data, room, zoned, &mut answer),
            Err(_) => Err(Status::Unsupp),
        };
        if let Err(status) = done {
            answer = Answer { status, data: Vec::new(), append_sector: 0 };
        }
        answer
    }

    fn execute(
        &mut self,
        kind: RequestType,
        sector: u64,
        data: &[u8],
        room: usize,
        zoned: bool,
        answer: &mut Answer,
    ) -> Result<(), Status> {
        if kind.is_zoned() && !(zoned && self.shape.is_zoned()) {
            return Err(Status::Unsupp); // V12
        }
        let changes = !matches!(
            kind,
            RequestType::In | RequestType::Flush | RequestType::GetId | RequestType::ZoneReport
        );
        if self.read_only && changes {
            return Err(Status::IoErr);
        }
        match kind {
            RequestType::In => answer.data = self.read(sector, room)?,
            RequestType::Out => self.write(sector, data)?,
            RequestType::Flush => {}
            RequestType::GetId => answer.data = self.shape.serial[..room.min(ID_LEN_BYTES)].to_vec(),
            RequestType::Discard => self.ranges(data, Features::DISCARD)?,
            RequestType::WriteZeroes => self.ranges(data, Features::WRITE_ZEROES)?,
            RequestType::SecureErase => self.ranges(data, Features::SECURE_ERASE)?,
            RequestType::GetLifetime => return Err(Status::Unsupp),
            RequestType::ZoneAppend => answer.append_sector = self.append(sector, data)?,
            RequestType::ZoneReport => answer.data = self.report(sector, room)?,
            RequestType::ZoneResetAll => self.reset_all(),
            RequestType::ZoneOpen => self.open(self.managed(sector)?)?,
            RequestType::ZoneClose => self.close(self.managed(sector)?)?,
            RequestType::ZoneFinish => self.finish(self.managed(sector)?)?,
            RequestType::ZoneReset => self.reset(self.managed(sector)?)?,
        }
        Ok(())
    }

    fn read(&self, sector: u64, room: usize) -> Result<Vec<u8>, Status> {
        let sectors = self.sectors(sector, room)?;
        for zone in self.touched(sector, sectors)? {
            if self.zones[zone].state == ZoneState::Offline {
                return Err(Status::ZoneInvalidCmd); // V29
            }
        }
        Ok(self.bytes(sector, sectors).to_vec())
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Status> {
        let sectors = self.sectors(sector, data.len())?;
        let touched = self.touched(sector, sectors)?;
        if let [zone] = touched[..]
            && self.zones[zone].kind != ZoneType::Conventional
        {
            return self.write_sequential(zone, sector, data);
        }
        self.bytes[offset(sector)..offset(sector + sectors)].copy_from_slice(data);
        Ok(())
    }

    fn write_sequential(&mut self, index: usize, sector: u64, data: &[u8]) -> Result<(), Status> {
        let sectors = (data.len() / SECTOR) as u64;
        let zone = &self.zones[index];
        match zone.state {
            ZoneState::ReadOnly | ZoneState::Offline | ZoneState::Full => return Err(Status::ZoneInvalidCmd), // V28, V29
            _ => {}
        }
        if sector != zone.wp || !data.len().is_multiple_of(self.shape.granularity_bytes as usize) {
            return Err(Status::ZoneUnalignedWp); // V26
        }
        if sector + sectors > zone.start + zone.capacity {
            return Err(Status::ZoneInvalidCmd); // V22
        }
        if matches!(zone.state, ZoneState::Empty | ZoneState::Closed) {
            self.take_resources(index)?; // V20
            self.zones[index].state = ZoneState::ImplicitOpen;
        }
        self.bytes[offset(sector)..offset(sector + sectors)].copy_from_slice(data);
        let zone = &mut self.zones[index];
        zone.wp += sectors;
        if zone.wp == zone.start + zone.capacity {
            zone.state = ZoneState::Full;
        }
        Ok(())
    }

    fn append(&mut self, sector: u64, data: &[u8]) -> Result<u64, Status> {
        let longest = self.shape.append_sectors_max as usize * SECTOR;
        if longest == 0 {
            return Err(Status::Unsupp); // V24
        }
        let index = self.zone_of(sector).ok_or(Status::ZoneInvalidCmd)?;
        let zone = &self.zones[index];
        if zone.kind != ZoneType::SequentialRequired || zone.start != sector || data.len() > longest {
            return Err(Status::ZoneInvalidCmd); // V14, V21, V24
        }
        let wp = zone.wp;
        self.write_sequential(index, wp, data)?;
        Ok(wp) // V23
    }

    fn report(&self, sector: u64, room: usize) -> Result<Vec<u8>, Status> {
        let first = self.zone_of(sector).ok_or(Status::ZoneInvalidCmd)?; // G4
        let Some(descriptors) = room.checked_sub(size_of::<ReportHeader>()) else {
            return Err(Status::ZoneInvalidCmd);
        };
        let zones = &self.zones[first..];
        let zones = &zones[..zones.len().min(descriptors / size_of::<ZoneDescriptor>())];
        let mut data = vec![0; room];
        data[..64].copy_from_slice(ReportHeader::new(zones.len() as u64).as_bytes());
        for (place, zone) in data[64..].chunks_exact_mut(64).zip(zones) {
            place.copy_from_slice(zone.descriptor().as_bytes());
        }
        Ok(data)
    }

    /// V13, R8: the sequential zone that begins here.
    fn managed(&self, sector: u64) -> Result<usize, Status> {
        let zone = self.zone_of(sector).ok_or(Status::ZoneInvalidCmd)?;
        let found = &self.zones[zone];
        let broken = matches!(found.state, ZoneState::ReadOnly | ZoneState::Offline);
        if found.start != sector || found.kind == ZoneType::Conventional || broken {
            return Err(Status::ZoneInvalidCmd);
        }
        Ok(zone)
    }

    fn open(&mut self, zone: usize) -> Result<(), Status> {
        match self.zones[zone].state {
            ZoneState::Empty | ZoneState::Closed => self.take_resources(zone)?,
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => {}
            _ => return Err(Status::ZoneInvalidCmd), // V15
        }
        self.zones[zone].state = ZoneState::ExplicitOpen;
        Ok(())
    }

    fn close(&mut self, zone: usize) -> Result<(), Status> {
        let zone = &mut self.zones[zone];
        zone.state = match zone.state {
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen if zone.wp == zone.start => ZoneState::Empty,
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen | ZoneState::Closed => ZoneState::Closed,
            _ => return Err(Status::ZoneInvalidCmd), // V16, G2
        };
        Ok(())
    }

    fn finish(&mut self, zone: usize) -> Result<(), Status> {
        if matches!(self.zones[zone].state, ZoneState::Empty | ZoneState::Closed) {
            self.take_resources(zone)?; // G1
        }
        self.zones[zone].state = ZoneState::Full;
        Ok(())
    }

    fn reset(&mut self, zone: usize) -> Result<(), Status> {
        let zone = &mut self.zones[zone];
        self.bytes[offset(zone.start)..offset(zone.start + zone.len)].fill(0);
        (zone.state, zone.wp) = (ZoneState::Empty, zone.start);
        Ok(())
    }

    fn reset_all(&mut self) {
        for zone in 0..self.zones.len() {
            use ZoneState::{Closed, ExplicitOpen, Full, ImplicitOpen};
            if matches!(self.zones[zone].state, ImplicitOpen | ExplicitOpen | Closed | Full) {
                self.reset(zone).expect("a reset of a good zone"); // V19
            }
        }
    }

    fn take_resources(&self, zone: usize) -> Result<(), Status> {
        let (open, active) = self.resources();
        let inactive = self.zones[zone].state == ZoneState::Empty;
        let Shape { open_max, active_max, .. } = self.shape;
        if inactive && active_max != 0 && active >= active_max {
            return Err(Status::ZoneActiveResource); // V15
        }
        if open_max != 0 && open >= open_max {
            return Err(Status::ZoneOpenResource);
        }
        Ok(())
    }

    fn ranges(&mut self, data: &[u8], feature: Features) -> Result<(), Status> {
        if !self.shape.more.contains(feature) {
            return Err(Status::Unsupp);
        }
        let ranges = <[DiscardWriteZeroes]>::ref_from_bytes(data).map_err(|_| Status::IoErr)?;
        let (sectors_max, ranges_max) = self.shape.ranges_max;
        if ranges.is_empty() || ranges.len() > ranges_max as usize {
            return Err(Status::IoErr);
        }
        for range in ranges {
            let (sector, sectors) = (range.sector.get(), range.num_sectors.get());
            let end = sector.checked_add(sectors.into()).ok_or(Status::IoErr)?;
            if end > self.shape.capacity_sectors || sectors > sectors_max.max(self.shape.zone_sectors) {
                return Err(Status::IoErr);
            }
            if self.shape.is_zoned() && feature == Features::SECURE_ERASE {
                let zone = self.managed(sector)?;
                if self.zones[zone].len != u64::from(sectors) {
                    return Err(Status::ZoneInvalidCmd); // V32
                }
                self.reset(zone)?;
            } else {
                self.bytes[offset(sector)..offset(end)].fill(0);
            }
        }
        Ok(())
    }

    fn sectors(&self, sector: u64, len: usize) -> Result<u64, Status> {
        let sectors = (len / SECTOR) as u64;
        let end = sector.checked_add(sectors).ok_or(Status::IoErr)?;
        let whole = len.is_multiple_of(SECTOR);
        if whole && end <= self.shape.capacity_sectors { Ok(sectors) } else { Err(Status::IoErr) }
    }

    /// The zones of a range. V25: one sequential zone, or any conventional ones.
    fn touched(&self, sector: u64, sectors: u64) -> Result<Vec<usize>, Status> {
        let meets = |zone: &Zone| zone.start < sector + sectors && sector < zone.start + zone.len;
        let touched: Vec<usize> = (0..self.zones.len()).filter(|zone| meets(&self.zones[*zone])).collect();
        let sequential = touched.iter().any(|zone| self.zones[*zone].kind != ZoneType::Conventional);
        if touched.len() > 1 && sequential { Err(Status::ZoneInvalidCmd) } else { Ok(touched) }
    }
}

impl Zone {
    /// The 64 bytes that describe it in a report.
    pub fn descriptor(&self) -> ZoneDescriptor {
        let wp = match self.state {
            ZoneState::NotWp | ZoneState::ReadOnly | ZoneState::Full | ZoneState::Offline => u64::MAX,
            _ => self.wp,
        };
        ZoneDescriptor::new(self.kind, self.state, self.start, self.capacity, wp)
    }
}

fn zones(shape: &Shape, capacity_sectors: u64) -> Vec<Zone> {
    let starts = (0..capacity_sectors).step_by(shape.zone_sectors as usize);
    let zone = |(index, start): (usize, u64)| {
        let len = u64::from(shape.zone_sectors).min(capacity_sectors - start);
        let (kind, state, capacity) = if index < shape.conventional {
            (ZoneType::Conventional, ZoneState::NotWp, len)
        } else {
            let capacity = len.min(shape.zone_capacity_sectors.into());
            (ZoneType::SequentialRequired, ZoneState::Empty, capacity)
        };
        Zone { start, len, capacity, kind, state, wp: start }
    };
    starts.enumerate().map(zone).collect()
}

fn offset(sector: u64) -> usize {
    usize::try_from(sector).expect("a small disk") * SECTOR
}
