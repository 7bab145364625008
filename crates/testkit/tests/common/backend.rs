//! A backend on rust-vmm's protocol code around the mini device.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};
use virtio_zbd_spec::{BlkConfig, Features};
use virtio_zbd_testkit::{InProcess, PROTOCOL_FEATURES_BIT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use super::{DISK_LEN, MiniDevice, Running, ZONE_SECTORS};

/// What the backend was told.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) calls: Vec<String>,
    pub(crate) features: u64,
}

struct Backend {
    seen: Arc<Mutex<Seen>>,
    refuse_features: bool,
    /// (guest address, address in the frontend, length)
    regions: Vec<(u64, u64, u64)>,
    memory: Option<Arc<GuestMemoryMmap>>,
    rings: Vec<Ring>,
}

#[derive(Default)]
struct Ring {
    size: u16,
    base: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    kick: Option<File>,
    call: Option<File>,
    running: Option<Running>,
}

const QUEUES: usize = 2;

/// Serves one connection on a socket at `path`, in a thread that ends with the connection.
pub(crate) fn serve(path: &Path, refuse_features: bool) -> (Arc<Mutex<Seen>>, JoinHandle<()>) {
    let listener = UnixListener::bind(path).unwrap();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let backend = Backend {
        seen: Arc::clone(&seen),
        refuse_features,
        regions: Vec::new(),
        memory: None,
        rings: (0..QUEUES).map(|_| Ring::default()).collect(),
    };
    let thread = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let mut handler = BackendReqHandler::from_stream(socket, Arc::new(Mutex::new(backend)));
        // A refused message is an error, too, but not the end.
        while let Ok(()) | Err(Error::ReqHandlerError(_)) = handler.handle_request() {}
    });
    (seen, thread)
}

pub(crate) fn socket_path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("disk.sock")
}

pub(crate) fn config() -> BlkConfig {
    let mut config = BlkConfig {
        capacity: u64::try_from(DISK_LEN / 512).unwrap().into(),
        num_queues: 2.into(),
        ..BlkConfig::default()
    };
    config.zoned.zone_sectors = u32::try_from(ZONE_SECTORS).unwrap().into();
    config.zoned.model = 1;
    config
}

impl Backend {
    fn note(&self, call: impl Into<String>) {
        self.seen.lock().unwrap().calls.push(call.into());
    }

    fn guest_address(&self, frontend_address: u64) -> Result<GuestAddress> {
        self.regions
            .iter()
            .find(|&&(_, at, len)| (at..at + len).contains(&frontend_address))
            .map(|&(guest, at, _)| GuestAddress(frontend_address - at + guest))
            .ok_or(Error::InvalidParam)
    }
}

fn no<T>() -> Result<T> {
    Err(Error::InvalidOperation("not in here"))
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        self.note("set_owner");
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        let all = Features::ZONED
            | Features::FLUSH
            | Features::VERSION_1
            | Features::EVENT_IDX
            | Features::INDIRECT_DESC
            | Features::IN_ORDER
            | PROTOCOL_FEATURES_BIT;
        Ok(all.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if self.refuse_features {
            return Err(Error::ReqHandlerError(io::ErrorKind::Unsupported.into()));
        }
        self.seen.lock().unwrap().features = features;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::DEVICE_STATE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.note(format!("set_protocol_features {features:#x}"));
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::try_from(QUEUES).unwrap())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let (from, len) = (usize::try_from(offset).unwrap(), usize::try_from(size).unwrap());
        Ok(config().as_bytes().get(from..from + len).ok_or(Error::InvalidParam)?.to_vec())
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], flags: VhostUserConfigFlags) -> Result<()> {
        self.note(format!("set_config {offset} {buf:?} {}", flags.bits()));
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        ctx: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.note(format!("set_mem_table {}", ctx.len()));
        let ranges: Vec<_> = ctx
            .iter()
            .zip(files)
            .map(|(region, file)| {
                let len = usize::try_from(region.memory_size).unwrap();
                let at = FileOffset::new(file, region.mmap_offset);
                (GuestAddress(region.guest_phys_addr), len, Some(at))
            })
            .collect();
        self.memory = Some(Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()));
        self.regions = ctx.iter().map(|r| (r.guest_phys_addr, r.user_addr, r.memory_size)).collect();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.rings[usize::try_from(index).unwrap()].size = u16::try_from(num).unwrap();
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let ring = &mut self.rings[usize::try_from(index).unwrap()];
        (ring.desc_table, ring.used_ring, ring.avail_ring) = (descriptor, used, available);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.rings[usize::try_from(index).unwrap()].base = u16::try_from(base).unwrap();
        Ok(())
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.rings[usize::from(index)].kick = fd;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.rings[usize::from(index)].call = fd;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.note(format!("set_vring_enable {index} {enable}"));
        let event_idx = self.seen.lock().unwrap().features & Features::EVENT_IDX.bits() != 0;
        let ring = &self.rings[usize::try_from(index).unwrap()];
        let worker = InProcess {
            memory: Arc::clone(self.memory.as_ref().ok_or(Error::InvalidParam)?),
            size: ring.size,
            desc_table: self.guest_address(ring.desc_table)?,
            avail_ring: self.guest_address(ring.avail_ring)?,
            used_ring: self.guest_address(ring.used_ring)?,
            base: ring.base,
            event_idx,
            kick: ring.kick.as_ref().unwrap().try_clone().unwrap().into(),
            call: ring.call.as_ref().unwrap().try_clone().unwrap().into(),
        };
        let running = Running::start(MiniDevice::new(worker));
        self.rings[usize::try_from(index).unwrap()].running = Some(running);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let running = self.rings[usize::try_from(index).unwrap()].running.take();
        let served = running.map_or(0, |running| running.stop().served);
        let base = u32::from(self.rings[usize::try_from(index).unwrap()].base);
        Ok(VhostUserVringState::new(index, base + u32::try_from(served).unwrap()))
    }

    fn reset_owner(&mut self) -> Result<()> {
        no()
    }

    fn reset_device(&mut self) -> Result<()> {
        no()
    }

    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        no()
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        no()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        no()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        no()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        no()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        no()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        no()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        no()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        no()
    }

    fn check_device_state(&mut self) -> Result<()> {
        no()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        no()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        no()
    }
}
