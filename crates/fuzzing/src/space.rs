//! The configuration space (virtio 1.3, 5.2.4), written down field by field.

use virtio_zbd_zones::GeometryConfig;

/// Where the writeback byte stands.
const WRITEBACK: usize = 32;

/// What a driver must read, and may write.
pub(crate) struct Space {
    pub(crate) shape: Option<GeometryConfig>,
    /// The model of a disk with zones: 1 host-managed, 2 host-aware; 0: the driver has said that it knows no zones.
    pub(crate) model: u32,
    pub(crate) sectors: u64,
    pub(crate) queues: u16,
    /// The cache mode.
    pub(crate) write_back: bool,
    /// CONFIG_WCE is negotiated.
    pub(crate) wce: bool,
}

impl Space {
    /// The bytes from `offset` on; zeros past the end.
    pub(crate) fn at(&self, offset: u32, len: usize) -> Vec<u8> {
        let mut space = [0; 96];
        let mut set = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &self.sectors.to_le_bytes());
        set(8, &(1u32 << 20).to_le_bytes());
        set(12, &126u32.to_le_bytes());
        set(20, &self.shape.map_or(512, |shape| shape.write_granularity_bytes).to_le_bytes());
        set(26, &[1, 0]);
        set(WRITEBACK, &[u8::from(self.write_back)]);
        set(34, &self.queues.to_le_bytes());
        match self.shape {
            Some(_) if self.model == 0 => {}
            Some(shape) => {
                let limits = [
                    shape.zone_sectors,
                    shape.max_open_zones,
                    shape.max_active_zones,
                    shape.max_append_sectors,
                    shape.write_granularity_bytes,
                    self.model,
                ];
                set(72, &limits.map(u32::to_le_bytes).concat());
            }
            None => set(36, &[1 << 22, 32, 1, 1 << 22, 32, 1].map(u32::to_le_bytes).concat()),
        }
        let byte = |i: usize| usize::try_from(offset).unwrap().checked_add(i).and_then(|at| space.get(at));
        (0..len).map(|i| byte(i).copied().unwrap_or(0)).collect()
    }

    /// Takes a write, or does not: only the writeback byte is the driver's. Bytes that are as they were don't count, but a single one
    /// does.
    pub(crate) fn write(&mut self, offset: u32, data: &[u8]) -> bool {
        let before = self.at(offset, data.len());
        let mut changed = (0..data.len()).filter(|&i| data[i] != before[i]);
        let written = match (data.len(), changed.next(), changed.next()) {
            (0, ..) | (_, Some(_), Some(_)) => return false,
            (1, ..) => 0,
            (_, None, _) => return true,
            (_, Some(only), None) => only,
        };
        let place = usize::try_from(offset).unwrap().checked_add(written);
        let good = self.wce && place == Some(WRITEBACK) && data[written] < 2;
        if good {
            self.write_back = data[written] == 1;
        }
        good
    }
}
