//! What the next request is.

use virtio_zbd_driver::{Command, Error, ZoneState, ZoneType};
use virtio_zbd_vhost_user::client::ArenaBuffer;

use crate::cli::BenchMode;
use crate::size::Size;
use crate::target::{Driver, Target};
use crate::wrong_call;

const SECTOR_LEN_BYTES: u64 = 512;

/// The requests of a measurement, one after another, as many as are asked for.
pub(crate) struct Plan {
    kind: Kind,
    block_sectors: u64,
    block_len_bytes: usize,
    note: Option<&'static str>,
    zones_turned_over: u64,
}

enum Kind {
    /// Blocks of extents, in order or not.
    Read { extents: Extents, random: Option<fastrand::Rng>, next: u64 },
    /// Blocks of a disk without zones, or of its conventional zones, in order.
    Overwrite { extents: Extents, next: u64 },
    /// Sequential zones, each written by one request at a time.
    Write { zones: SequentialZones, lanes: Vec<Lane> },
    /// Sequential zones, one after another.
    Append(Appends),
}

/// Which of a plan's zones a request belongs to; to be given back when it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneId(usize);

/// Appends go to one zone. While the last ones of the zone before it are under way there are two, and never more: a disk
/// may not have more active zones.
struct Appends {
    zones: SequentialZones,
    lane: Option<Lane>,
    /// How many are under way in zones of even and of odd turn.
    under_way: [usize; 2],
    turn: usize,
    /// Two zones may be active at a time.
    may_overlap: bool,
}

/// A zone in use, and how much of it is spoken for.
#[derive(Clone, Copy)]
struct Lane {
    start_sector: u64,
    capacity_sectors: u64,
    used_sectors: u64,
    /// A write is under way: the next one waits for it.
    busy: bool,
}

impl Plan {
    /// Looks at the disk, and for `write` and `append` makes all of its zones empty.
    ///
    /// # Errors
    /// The disk can't be measured like this.
    pub(crate) fn new(target: &mut Target, mode: BenchMode, block: Size) -> anyhow::Result<Self> {
        let driver = &target.driver;
        let zoned = driver.zoned().copied();
        let writes = matches!(mode, BenchMode::Write | BenchMode::Append);
        let unit_bytes = if writes { driver.physical_block_len_bytes() } else { driver.block_len_bytes() };
        let mut max_bytes = driver.limits().transfer_len_bytes_max as u64;
        if mode == BenchMode::Append {
            let append_sectors_max = match zoned {
                Some(zoned) if zoned.append_sectors_max > 0 => zoned.append_sectors_max,
                _ => return Err(wrong_call(format!("{}: the disk has no append", target.name()))),
            };
            max_bytes = max_bytes.min(u64::from(append_sectors_max) * SECTOR_LEN_BYTES);
        }
        if block.bytes == 0 || block.bytes > max_bytes || !block.bytes.is_multiple_of(unit_bytes.into()) {
            return Err(wrong_call(format!(
                "--block-size is {block}; on this disk it is a multiple of {unit_bytes} bytes, at most {}",
                Size::from(max_bytes)
            )));
        }
        let mut plan = Self {
            kind: Kind::Overwrite { extents: Extents::default(), next: 0 },
            block_sectors: block.bytes / SECTOR_LEN_BYTES,
            block_len_bytes: usize::try_from(block.bytes)?,
            note: None,
            zones_turned_over: 0,
        };
        if writes && zoned.is_some() {
            target.call(Driver::reset_all_zones)?;
        }
        let (written, whole, sequential) = plan.look(target)?;
        plan.kind = match mode {
            BenchMode::Write if sequential.zones.is_empty() => Kind::Overwrite { extents: whole, next: 0 },
            BenchMode::Write => Kind::Write { zones: sequential, lanes: Vec::new() },
            BenchMode::Append => Kind::Append(Appends {
                zones: sequential,
                lane: None,
                under_way: [0; 2],
                turn: 0,
                may_overlap: zones_at_once(&target.driver) > 1,
            }),
            BenchMode::Read | BenchMode::Randread => {
                let extents = if written.blocks > 0 {
                    written
                } else {
                    plan.note = Some(
                        "nothing is written yet: what is read are zeros, perhaps without a look at the medium",
                    );
                    whole
                };
                let random = (mode == BenchMode::Randread).then(fastrand::Rng::new);
                Kind::Read { extents, random, next: 0 }
            }
        };
        if plan.is_empty() {
            return Err(wrong_call(format!("{}: there is no room for one block of {block}", target.name())));
        }
        Ok(plan)
    }

    /// What a reader of the figures should know.
    pub(crate) fn note(&self) -> Option<&'static str> {
        self.note
    }

    /// Length of each buffer.
    pub(crate) fn block_len_bytes(&self) -> usize {
        self.block_len_bytes
    }

    /// How many zones were reset or finished so far.
    pub(crate) fn zones_turned_over(&self) -> u64 {
        self.zones_turned_over
    }

    /// Begins, with at most `in_flight_max` requests at a time. Returns how many there can be.
    pub(crate) fn begin(&mut self, driver: &Driver, in_flight_max: usize) -> usize {
        let Kind::Write { zones, lanes } = &mut self.kind else { return in_flight_max };
        let limit = zones_at_once(driver);
        let count = in_flight_max.min(limit).min(zones.zones.len());
        lanes.extend((0..count).filter_map(|_| zones.next().map(|(lane, _)| lane)));
        count
    }

    /// The next request with this buffer, or the buffer back where there is none before another one is done.
    ///
    /// # Errors
    /// A zone on the way can't be reset or finished.
    pub(crate) fn next(
        &mut self,
        driver: &mut Driver,
        buffer: ArenaBuffer,
    ) -> Result<Result<(Command<ArenaBuffer>, LaneId), ArenaBuffer>, Error> {
        let block_sectors = self.block_sectors;
        Ok(match &mut self.kind {
            Kind::Read { extents, random, next } => {
                let block = match random {
                    Some(random) => random.u64(0..extents.blocks),
                    None => in_turn(next, extents.blocks),
                };
                Ok((
                    Command::Read { sector: extents.sector(block, block_sectors), buffer },
                    LaneId::default(),
                ))
            }
            Kind::Overwrite { extents, next } => {
                let block = in_turn(next, extents.blocks);
                Ok((
                    Command::Write { sector: extents.sector(block, block_sectors), buffer },
                    LaneId::default(),
                ))
            }
            Kind::Write { zones, lanes } => {
                let Some((index, lane)) = lanes.iter_mut().enumerate().find(|(_, lane)| !lane.busy) else {
                    return Ok(Err(buffer));
                };
                if lane.is_used_up(block_sectors) {
                    *lane = turn_over(driver, zones, Some(*lane), &mut self.zones_turned_over)?;
                }
                let sector = lane.start_sector + lane.used_sectors;
                lane.used_sectors += block_sectors;
                lane.busy = true;
                Ok((Command::Write { sector, buffer }, LaneId(index)))
            }
            Kind::Append(appends) => {
                if appends.lane.is_none_or(|lane| lane.is_used_up(block_sectors)) {
                    if !appends.may_turn_over() {
                        return Ok(Err(buffer));
                    }
                    let left = appends.lane;
                    appends.lane =
                        Some(turn_over(driver, &mut appends.zones, left, &mut self.zones_turned_over)?);
                    appends.turn = 1 - appends.turn;
                }
                appends.under_way[appends.turn] += 1;
                let zone_start_sector = appends.lane.as_mut().map_or(0, |lane| {
                    lane.used_sectors += block_sectors;
                    lane.start_sector
                });
                Ok((Command::Append { zone_start_sector, buffer }, LaneId(appends.turn)))
            }
        })
    }

    /// A request of this lane is done.
    pub(crate) fn done(&mut self, lane: LaneId) {
        match &mut self.kind {
            Kind::Write { lanes, .. } => {
                if let Some(lane) = lanes.get_mut(lane.0) {
                    lane.busy = false;
                }
            }
            Kind::Append(appends) => {
                if let Some(under_way) = appends.under_way.get_mut(lane.0) {
                    *under_way -= 1;
                }
            }
            Kind::Read { .. } | Kind::Overwrite { .. } => {}
        }
    }

    /// What is written, what could be, and the sequential zones.
    fn look(&self, target: &mut Target) -> anyhow::Result<(Extents, Extents, SequentialZones)> {
        let block_sectors = self.block_sectors;
        let (mut written, mut whole) = (Extents::default(), Extents::default());
        let mut sequential = SequentialZones::default();
        if target.driver.zoned().is_none() {
            written.add(0, target.driver.capacity_sectors(), block_sectors);
            whole.add(0, target.driver.capacity_sectors(), block_sectors);
            return Ok((written, whole, sequential));
        }
        target.call(|driver| {
            for zone in driver.zones(0)? {
                let zone = zone?;
                if matches!(zone.state, ZoneState::Offline) {
                    continue;
                }
                let end_sector = zone.start_sector + zone.capacity_sectors;
                let data_end_sector = zone.write_pointer_sector.map_or(end_sector, |wp| wp.min(end_sector));
                written.add(zone.start_sector, data_end_sector - zone.start_sector, block_sectors);
                whole.add(zone.start_sector, zone.capacity_sectors, block_sectors);
                let can_be_written = zone.kind == ZoneType::SequentialRequired
                    && zone.state != ZoneState::ReadOnly
                    && zone.capacity_sectors >= block_sectors;
                if can_be_written {
                    sequential.zones.push((zone.start_sector, zone.capacity_sectors));
                }
            }
            Ok(())
        })?;
        Ok((written, whole, sequential))
    }

    fn is_empty(&self) -> bool {
        match &self.kind {
            Kind::Read { extents, .. } | Kind::Overwrite { extents, .. } => extents.blocks == 0,
            Kind::Write { zones, .. } | Kind::Append(Appends { zones, .. }) => zones.zones.is_empty(),
        }
    }
}

/// How many zones may be written to at a time.
fn zones_at_once(driver: &Driver) -> usize {
    let limits = driver.zoned().map_or([0; 2], |zoned| [zoned.open_max, zoned.active_max]);
    let limit = limits.into_iter().filter(|limit| *limit > 0).min();
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Counts from 0 to `blocks`, over and over.
fn in_turn(next: &mut u64, blocks: u64) -> u64 {
    let block = *next;
    *next = (block + 1) % blocks;
    block
}

/// Leaves a zone in which no block has room, and takes the next one.
fn turn_over(
    driver: &mut Driver,
    zones: &mut SequentialZones,
    left: Option<Lane>,
    turned_over: &mut u64,
) -> Result<Lane, Error> {
    if let Some(left) = left.filter(|lane| lane.used_sectors < lane.capacity_sectors) {
        // Left as it is, it would stay active, and one day there would be too many.
        driver.finish_zone(left.start_sector)?;
        *turned_over += 1;
    }
    // There is one: an empty plan was refused.
    let (lane, again) = zones.next().ok_or(Error::NoMemory)?;
    if again {
        driver.reset_zone(lane.start_sector)?;
        *turned_over += 1;
    }
    Ok(lane)
}

impl Appends {
    /// Whether the current zone can be left now.
    fn may_turn_over(&self) -> bool {
        let Some(lane) = self.lane else { return true };
        // What is under way in a zone must land before the zone is finished.
        let must_be_finished = lane.used_sectors < lane.capacity_sectors;
        let waits_for_all = must_be_finished || !self.may_overlap;
        self.under_way[1 - self.turn] == 0 && (!waits_for_all || self.under_way[self.turn] == 0)
    }
}

impl Lane {
    fn is_used_up(&self, block_sectors: u64) -> bool {
        self.used_sectors + block_sectors > self.capacity_sectors
    }
}

/// Start and capacity of zones, taken in turn.
#[derive(Default)]
struct SequentialZones {
    zones: Vec<(u64, u64)>,
    next: usize,
    /// All of them were taken once: the next one is not empty.
    again: bool,
}

impl SequentialZones {
    /// The next zone, and whether it must be reset first.
    fn next(&mut self) -> Option<(Lane, bool)> {
        let (start_sector, capacity_sectors) = *self.zones.get(self.next)?;
        let again = self.again;
        self.next += 1;
        if self.next == self.zones.len() {
            (self.next, self.again) = (0, true);
        }
        Some((Lane { start_sector, capacity_sectors, used_sectors: 0, busy: false }, again))
    }
}

/// Parts of the disk, counted in whole blocks.
#[derive(Default)]
struct Extents {
    /// Number of the first block, and its sector.
    parts: Vec<(u64, u64)>,
    blocks: u64,
}

impl Extents {
    fn add(&mut self, start_sector: u64, sectors: u64, block_sectors: u64) {
        let blocks = sectors / block_sectors;
        if blocks > 0 {
            self.parts.push((self.blocks, start_sector));
            self.blocks += blocks;
        }
    }

    /// Where a block begins.
    fn sector(&self, block: u64, block_sectors: u64) -> u64 {
        let after = self.parts.partition_point(|(first, _)| *first <= block);
        let (first, start_sector) = self.parts.get(after.saturating_sub(1)).copied().unwrap_or_default();
        start_sector + (block - first) * block_sectors
    }
}
