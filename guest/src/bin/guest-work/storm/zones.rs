//! A naive zoned disk, written from the rules alone: each zone with all of its bytes, everything looked for from the start.

/// How a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// `INVALID_CMD` or `UNALIGNED_WP`: nobody above the driver can tell them apart (L10).
    Invalid,
    OpenResource,
    ActiveResource,
}

/// A zone's condition, by its number in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    NotWp = 0,
    Empty = 1,
    ImplicitOpen = 2,
    ExplicitOpen = 3,
    Closed = 4,
    Full = 14,
}

/// Lengths in sectors, data in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) capacity: u64,
    pub(crate) condition: Condition,
    /// From the zone's start. Not moved by a finish.
    pub(crate) wp: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The zones of a disk, or some in a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) zones: Vec<Zone>,
    /// 0: no limit.
    pub(crate) max_open: usize,
    pub(crate) max_active: usize,
    pub(crate) granularity: u64,
    /// Implicitly open zones by their start, the one that has been so for longest first.
    pub(crate) implicit: Vec<u64>,
}

impl Condition {
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Condition::ImplicitOpen | Condition::ExplicitOpen)
    }

    pub(crate) fn is_active(self) -> bool {
        self.is_open() || self == Condition::Closed
    }
}

impl Zone {
    pub(crate) fn is_conventional(&self) -> bool {
        self.condition == Condition::NotWp
    }

    /// Sectors of the disk, as a range of the zone's bytes.
    fn bytes_at(&mut self, sector: u64, len: usize) -> &mut [u8] {
        let at = usize::try_from((sector - self.start) * 512).unwrap_or(usize::MAX);
        &mut self.bytes[at..at + len]
    }
}

impl Disk {
    /// The zone that a sector is in.
    pub(crate) fn zone_of(&self, sector: u64) -> Option<usize> {
        self.zones.iter().position(|zone| (zone.start..zone.start + zone.len).contains(&sector))
    }

    pub(crate) fn open_count(&self) -> usize {
        self.zones.iter().filter(|zone| zone.condition.is_open()).count()
    }

    pub(crate) fn active_count(&self) -> usize {
        self.zones.iter().filter(|zone| zone.condition.is_active()).count()
    }

    /// Whether as many zones can be opened, `new` of them empty, without one being closed for them.
    pub(crate) fn has_room(&self, opened: usize, new: usize) -> bool {
        (self.max_open == 0 || opened == 0 || self.open_count() + opened <= self.max_open)
            && (self.max_active == 0 || new == 0 || self.active_count() + new <= self.max_active)
    }

    /// OUT within one zone (V20, V22, V26).
    pub(crate) fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), Failure> {
        let at = self.zone_of(sector).ok_or(Failure::Invalid)?;
        let sectors = bytes.len() as u64 / 512;
        let zone = &mut self.zones[at];
        if zone.is_conventional() {
            zone.bytes_at(sector, bytes.len()).copy_from_slice(bytes);
            return Ok(());
        }
        if zone.condition == Condition::Full
            || sector != zone.start + zone.wp
            || !(sector + sectors).is_multiple_of(self.granularity / 512)
            || zone.wp + sectors > zone.capacity
        {
            return Err(Failure::Invalid);
        }
        if !zone.condition.is_open() {
            self.make_room(at)?;
            self.set(at, Condition::ImplicitOpen);
        }
        let zone = &mut self.zones[at];
        zone.bytes_at(sector, bytes.len()).copy_from_slice(bytes);
        zone.wp += sectors;
        if zone.wp == zone.capacity {
            self.set(at, Condition::Full);
        }
        Ok(())
    }

    /// OPEN (V13, V15).
    pub(crate) fn open(&mut self, at: usize) -> Result<(), Failure> {
        match self.zones[at].condition {
            Condition::ExplicitOpen => Ok(()),
            Condition::Empty | Condition::ImplicitOpen | Condition::Closed => {
                self.make_room(at)?;
                self.set(at, Condition::ExplicitOpen);
                Ok(())
            }
            Condition::NotWp | Condition::Full => Err(Failure::Invalid),
        }
    }

    /// CLOSE (V13, V16, G2).
    pub(crate) fn close(&mut self, at: usize) -> Result<(), Failure> {
        match self.zones[at].condition {
            Condition::Closed => Ok(()),
            Condition::ImplicitOpen | Condition::ExplicitOpen => {
                let empty = self.zones[at].wp == 0;
                self.set(at, if empty { Condition::Empty } else { Condition::Closed });
                Ok(())
            }
            Condition::NotWp | Condition::Empty | Condition::Full => Err(Failure::Invalid),
        }
    }

    /// FINISH (V13, V17, G1).
    pub(crate) fn finish(&mut self, at: usize) -> Result<(), Failure> {
        match self.zones[at].condition {
            Condition::Full => Ok(()),
            Condition::NotWp => Err(Failure::Invalid),
            _ => {
                self.make_room(at)?;
                self.set(at, Condition::Full);
                Ok(())
            }
        }
    }

    /// RESET (V13, V18).
    pub(crate) fn reset(&mut self, at: usize) -> Result<(), Failure> {
        if self.zones[at].is_conventional() {
            return Err(Failure::Invalid);
        }
        self.set(at, Condition::Empty);
        self.zones[at].wp = 0;
        self.zones[at].bytes.fill(0);
        Ok(())
    }

    /// Sees to it that a zone may become open (V15, V20, V27).
    fn make_room(&mut self, at: usize) -> Result<(), Failure> {
        let from = self.zones[at].condition;
        if !from.is_active() && self.max_active != 0 && self.active_count() == self.max_active {
            return Err(Failure::ActiveResource);
        }
        if from.is_open() || self.max_open == 0 || self.open_count() < self.max_open {
            return Ok(());
        }
        let victim = *self.implicit.first().ok_or(Failure::OpenResource)?;
        let victim = self.zone_of(victim).ok_or(Failure::OpenResource)?;
        self.set(victim, Condition::Closed);
        Ok(())
    }

    fn set(&mut self, at: usize, to: Condition) {
        let start = self.zones[at].start;
        self.implicit.retain(|&other| other != start);
        if to == Condition::ImplicitOpen {
            self.implicit.push(start);
        }
        self.zones[at].condition = to;
    }
}
