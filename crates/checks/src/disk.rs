//! The driver without its type parameters, so that checks are plain functions.

use alloc::vec::Vec;

use virtio_zbd_driver::{
    Buffer, Command, Completion, DeviceId, Error, Features, Hal, Limits, Model, Rejected, Token, Transport,
    VirtioBlk, Zone, Zoned,
};

/// A disk in use by the driver. Each method is the driver's of the same name; buffers are vectors here.
pub(crate) trait Disk {
    fn capacity_sectors(&self) -> u64;
    fn block_len_bytes(&self) -> u32;
    fn read_only(&self) -> bool;
    fn limits(&self) -> Limits;
    fn model(&self) -> Model;
    fn zoned(&self) -> Option<Zoned>;
    fn queue_count(&self) -> u16;
    fn queue_depth(&self) -> u16;
    fn features(&self) -> Features;
    fn write_back(&self) -> bool;
    fn set_write_back(&mut self, write_back: bool) -> Result<(), Error>;

    fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), Error>;
    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Error>;
    fn append(&mut self, zone_start_sector: u64, data: &[u8]) -> Result<u64, Error>;
    fn flush(&mut self) -> Result<(), Error>;
    fn id(&mut self) -> Result<DeviceId, Error>;
    fn discard(&mut self, sector: u64, sectors: u64) -> Result<(), Error>;
    fn write_zeroes(&mut self, sector: u64, sectors: u64, unmap: bool) -> Result<(), Error>;
    fn secure_erase(&mut self, sector: u64, sectors: u64) -> Result<(), Error>;
    fn open_zone(&mut self, start_sector: u64) -> Result<(), Error>;
    fn close_zone(&mut self, start_sector: u64) -> Result<(), Error>;
    fn finish_zone(&mut self, start_sector: u64) -> Result<(), Error>;
    fn reset_zone(&mut self, start_sector: u64) -> Result<(), Error>;
    fn reset_all_zones(&mut self) -> Result<(), Error>;
    fn zone(&mut self, sector: u64) -> Result<Zone, Error>;
    /// All zones from the one that holds `from_sector` on, or the first error.
    fn zones(&mut self, from_sector: u64) -> Result<Vec<Zone>, Error>;

    fn submit(&mut self, queue: u16, command: Command<Vec<u8>>) -> Result<Token, Rejected<Vec<u8>>>;
    fn notify(&mut self, queue: u16) -> Result<(), Error>;
    fn complete(&mut self, queue: u16) -> Result<Option<Completion<Vec<u8>>>, Error>;
    fn wait(&mut self, queue: u16) -> Result<(), Error>;
    fn in_flight(&self, queue: u16) -> usize;
}

/// The driver.
pub(crate) struct Real<'a, H: Hal, T: Transport, B: Buffer> {
    pub(crate) disk: &'a mut VirtioBlk<H, T, B>,
}

impl<H: Hal, T: Transport, B: Buffer> Real<'_, H, T, B> {
    fn buffer(&self, bytes: &[u8]) -> Result<B, Error> {
        let mut buffer = self.disk.buffer(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }

    /// The command with a buffer of the disk's own kind.
    fn translate(&self, command: &Command<Vec<u8>>) -> Result<Command<B>, Error> {
        Ok(match *command {
            Command::Read { sector, ref buffer } => Command::Read { sector, buffer: self.buffer(buffer)? },
            Command::Write { sector, ref buffer } => Command::Write { sector, buffer: self.buffer(buffer)? },
            Command::Append { zone_start_sector, ref buffer } => {
                Command::Append { zone_start_sector, buffer: self.buffer(buffer)? }
            }
            Command::Flush => Command::Flush,
            Command::Discard { sector, sectors } => Command::Discard { sector, sectors },
            Command::WriteZeroes { sector, sectors, unmap } => {
                Command::WriteZeroes { sector, sectors, unmap }
            }
            Command::SecureErase { sector, sectors } => Command::SecureErase { sector, sectors },
            Command::OpenZone { start_sector } => Command::OpenZone { start_sector },
            Command::CloseZone { start_sector } => Command::CloseZone { start_sector },
            Command::FinishZone { start_sector } => Command::FinishZone { start_sector },
            Command::ResetZone { start_sector } => Command::ResetZone { start_sector },
            Command::ResetAllZones => Command::ResetAllZones,
        })
    }
}

impl<H: Hal, T: Transport, B: Buffer> Disk for Real<'_, H, T, B> {
    fn capacity_sectors(&self) -> u64 {
        self.disk.capacity_sectors()
    }

    fn block_len_bytes(&self) -> u32 {
        self.disk.block_len_bytes()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn limits(&self) -> Limits {
        *self.disk.limits()
    }

    fn model(&self) -> Model {
        self.disk.model()
    }

    fn zoned(&self) -> Option<Zoned> {
        self.disk.zoned().copied()
    }

    fn queue_count(&self) -> u16 {
        self.disk.queue_count()
    }

    fn queue_depth(&self) -> u16 {
        self.disk.queue_depth()
    }

    fn features(&self) -> Features {
        self.disk.features()
    }

    fn write_back(&self) -> bool {
        self.disk.write_back()
    }

    fn set_write_back(&mut self, write_back: bool) -> Result<(), Error> {
        self.disk.set_write_back(write_back)
    }

    fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<(), Error> {
        self.disk.read(sector, data)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Error> {
        self.disk.write(sector, data)
    }

    fn append(&mut self, zone_start_sector: u64, data: &[u8]) -> Result<u64, Error> {
        self.disk.append(zone_start_sector, data)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.disk.flush()
    }

    fn id(&mut self) -> Result<DeviceId, Error> {
        self.disk.id()
    }

    fn discard(&mut self, sector: u64, sectors: u64) -> Result<(), Error> {
        self.disk.discard(sector, sectors)
    }

    fn write_zeroes(&mut self, sector: u64, sectors: u64, unmap: bool) -> Result<(), Error> {
        self.disk.write_zeroes(sector, sectors, unmap)
    }

    fn secure_erase(&mut self, sector: u64, sectors: u64) -> Result<(), Error> {
        self.disk.secure_erase(sector, sectors)
    }

    fn open_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.disk.open_zone(start_sector)
    }

    fn close_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.disk.close_zone(start_sector)
    }

    fn finish_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.disk.finish_zone(start_sector)
    }

    fn reset_zone(&mut self, start_sector: u64) -> Result<(), Error> {
        self.disk.reset_zone(start_sector)
    }

    fn reset_all_zones(&mut self) -> Result<(), Error> {
        self.disk.reset_all_zones()
    }

    fn zone(&mut self, sector: u64) -> Result<Zone, Error> {
        self.disk.zone(sector)
    }

    fn zones(&mut self, from_sector: u64) -> Result<Vec<Zone>, Error> {
        self.disk.zones(from_sector)?.collect()
    }

    fn submit(&mut self, queue: u16, command: Command<Vec<u8>>) -> Result<Token, Rejected<Vec<u8>>> {
        let submitted = match self.translate(&command) {
            Ok(command) => self.disk.submit(queue, command),
            Err(error) => Err(Rejected { error, buffer: None }),
        };
        submitted.map_err(|rejected| Rejected {
            error: rejected.error,
            buffer: rejected.buffer.map(|buffer| buffer.to_vec()),
        })
    }

    fn notify(&mut self, queue: u16) -> Result<(), Error> {
        self.disk.notify(queue)
    }

    fn complete(&mut self, queue: u16) -> Result<Option<Completion<Vec<u8>>>, Error> {
        let completion = self.disk.complete(queue)?;
        Ok(completion.map(|completion| Completion {
            token: completion.token,
            buffer: completion.buffer.map(|buffer| buffer.to_vec()),
            result: completion.result,
        }))
    }

    fn wait(&mut self, queue: u16) -> Result<(), Error> {
        self.disk.wait(queue)
    }

    fn in_flight(&self, queue: u16) -> usize {
        self.disk.in_flight(queue)
    }
}
