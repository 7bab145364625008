//! The guest's memory: regions that a front-end shares, checked and mapped.
//!
//! A table is never changed: a new one is made from it, so that a wrong message leaves everything as it was,
//! and so that a queue that runs keeps the memory that it was started with.
//!
//! A region must lie within its file when it is given. A front-end that shrinks the file afterwards loses its
//! memory, and we lose the front-end: the region is guarded, reads as zeros from then on, and an alarm ends
//! the connection.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, fstat, fstatfs};
use rustix::io::Errno;
use rustix::param::page_size;
use virtio_zbd_mapguard::Alarm;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};

use crate::guarded::Guarded;
use crate::message::{MEMORY_SLOTS_MAX, MemRegion};
use crate::notifier::type_name;

/// The file system type of hugetlbfs (`HUGETLBFS_MAGIC` of Linux).
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

/// The regions that are mapped now.
#[derive(Clone, Debug)]
pub(crate) struct MemoryTable {
    regions: Vec<Region>,
    guest: Arc<GuestMemoryMmap>,
}

#[derive(Clone, Debug)]
struct Region {
    named: MemRegion,
    mapping: Arc<Guarded<GuestRegionMmap>>,
}

/// Why a region cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("a memory region of no bytes")]
    Empty,
    #[error(
        "{what} {start:#x} and size {size_bytes:#x} of a memory region go past the end of the address space"
    )]
    Overflow { what: &'static str, start: u64, size_bytes: u64 },
    #[error(
        "memory regions overlap in {what} addresses: {first:#x} and {second:#x}, the first of {first_bytes:#x} bytes"
    )]
    Overlap { what: &'static str, first: u64, first_bytes: u64, second: u64 },
    #[error("memory comes in a {0}, a regular file (such as a memfd) is expected")]
    Kind(&'static str),
    #[error("a memory region ends at byte {end:#x} of its file, which has {file_bytes:#x} bytes")]
    PastFile { end: u64, file_bytes: u64 },
    #[error(
        "a memory region of huge pages of {page_bytes:#x} bytes has offset {offset_bytes:#x} and size {size_bytes:#x}, multiples of the page are expected"
    )]
    HugePage { page_bytes: u64, offset_bytes: u64, size_bytes: u64 },
    #[error(
        "a memory region starts {prefix_bytes:#x} bytes into a page of its file, but at guest address {guest_addr:#x}"
    )]
    Prefix { prefix_bytes: u64, guest_addr: u64 },
    #[error("more than {MEMORY_SLOTS_MAX} memory regions")]
    TooMany,
    #[error(
        "no memory region at guest address {guest_addr:#x}, user address {user_addr:#x} has {size_bytes:#x} bytes"
    )]
    Unknown { guest_addr: u64, user_addr: u64, size_bytes: u64 },
    #[error("the memory's file cannot be used: {0}")]
    Io(#[from] Errno),
    #[error("the memory cannot be mapped: {0}")]
    Map(#[from] MmapRegionError),
    #[error("the memory's mapping cannot be guarded: {0}")]
    Guard(#[source] io::Error),
    #[error("the memory regions do not fit together: {0}")]
    Collection(#[from] GuestRegionCollectionError),
}

impl MemoryTable {
    /// No memory at all, as at the start of a connection.
    pub(crate) fn empty() -> Self {
        Self { regions: Vec::new(), guest: Arc::new(GuestMemoryMmap::new()) }
    }

    /// A table of exactly these regions, each with its file. The alarm is raised when one of them is lost.
    pub(crate) fn of(regions: Vec<(MemRegion, OwnedFd)>, alarm: &Alarm) -> Result<Self, MemoryError> {
        let mut mapped: Vec<Region> = Vec::with_capacity(regions.len());
        for (named, fd) in regions {
            for other in &mapped {
                check_apart(&other.named, &named)?;
            }
            mapped.push(Region::map(named, fd, alarm)?);
        }
        Self::collect(mapped)
    }

    /// This table and one region more.
    pub(crate) fn with(&self, named: MemRegion, fd: OwnedFd, alarm: &Alarm) -> Result<Self, MemoryError> {
        if self.regions.len() >= MEMORY_SLOTS_MAX {
            return Err(MemoryError::TooMany);
        }
        for other in &self.regions {
            check_apart(&other.named, &named)?;
        }
        let mut regions = self.regions.clone();
        regions.push(Region::map(named, fd, alarm)?);
        Self::collect(regions)
    }

    /// This table without the region of these addresses and this size.
    pub(crate) fn without(&self, named: &MemRegion) -> Result<Self, MemoryError> {
        let MemRegion { guest_addr, size_bytes, user_addr, .. } = *named;
        let mut regions = self.regions.clone();
        regions.retain(|region| {
            let MemRegion { guest_addr: guest, size_bytes: size, user_addr: user, .. } = region.named;
            (guest, size, user) != (guest_addr, size_bytes, user_addr)
        });
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown { guest_addr, user_addr, size_bytes });
        }
        Self::collect(regions)
    }

    /// The memory as the device uses it: by guest addresses.
    pub(crate) fn guest(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&self.guest)
    }

    /// Where `size_bytes` bytes at a user address are in guest addresses, if they lie within one region.
    pub(crate) fn translate(&self, user_addr: u64, size_bytes: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|Region { named, .. }| {
            let offset = user_addr.checked_sub(named.user_addr)?;
            let end = offset.checked_add(size_bytes)?;
            (end <= named.size_bytes).then(|| GuestAddress(named.guest_addr + offset))
        })
    }

    fn collect(regions: Vec<Region>) -> Result<Self, MemoryError> {
        let mut sorted: Vec<_> = regions.iter().map(|region| Arc::clone(region.mapping.mapping())).collect();
        sorted.sort_by_key(|mapping| vm_memory::GuestMemoryRegion::start_addr(&**mapping));
        let guest = if sorted.is_empty() {
            GuestMemoryMmap::new()
        } else {
            GuestMemoryMmap::from_arc_regions(sorted)?
        };
        Ok(Self { regions, guest: Arc::new(guest) })
    }
}

impl Region {
    /// Checks a region against its file and maps it.
    ///
    /// A mapping begins at a page of its file. A region that does not is mapped from there on, and guest
    /// memory then begins less than a page before the region; nothing else may be in that place.
    fn map(named: MemRegion, fd: OwnedFd, alarm: &Alarm) -> Result<Self, MemoryError> {
        let MemRegion { guest_addr, size_bytes, user_addr, mmap_offset_bytes } = named;
        if size_bytes == 0 {
            return Err(MemoryError::Empty);
        }
        check_end("guest address", guest_addr, size_bytes)?;
        check_end("user address", user_addr, size_bytes)?;
        let end = check_end("file offset", mmap_offset_bytes, size_bytes)?;

        let stat = fstat(&fd)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type != FileType::RegularFile {
            return Err(MemoryError::Kind(type_name(file_type)));
        }
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if end > file_bytes {
            return Err(MemoryError::PastFile { end, file_bytes });
        }

        if let Some(page_bytes) = huge_page_bytes(&fd)?
            && (mmap_offset_bytes % page_bytes != 0 || size_bytes % page_bytes != 0)
        {
            let offset_bytes = mmap_offset_bytes;
            return Err(MemoryError::HugePage { page_bytes, offset_bytes, size_bytes });
        }
        let prefix_bytes = mmap_offset_bytes % u64::try_from(page_size()).unwrap_or(4096);
        let guest_start =
            guest_addr.checked_sub(prefix_bytes).ok_or(MemoryError::Prefix { prefix_bytes, guest_addr })?;

        let too_large = MemoryError::Overflow { what: "file offset", start: mmap_offset_bytes, size_bytes };
        let Ok(length) = usize::try_from(size_bytes + prefix_bytes) else {
            return Err(too_large);
        };
        let file = FileOffset::new(File::from(fd), mmap_offset_bytes - prefix_bytes);
        let mapping = MmapRegion::from_file(file, length)?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest_start)).ok_or(too_large)?;
        let mapping = Guarded::new(mapping, alarm).map_err(MemoryError::Guard)?;
        Ok(Self { named, mapping: Arc::new(mapping) })
    }
}

/// The end of a range, or an error if it has none.
fn check_end(what: &'static str, start: u64, size_bytes: u64) -> Result<u64, MemoryError> {
    start.checked_add(size_bytes).ok_or(MemoryError::Overflow { what, start, size_bytes })
}

/// Two regions share no address. The first is a good region; the second may be anything.
fn check_apart(first: &MemRegion, second: &MemRegion) -> Result<(), MemoryError> {
    for (what, a, b) in
        [("guest", first.guest_addr, second.guest_addr), ("user", first.user_addr, second.user_addr)]
    {
        let b_end = check_end("an address", b, second.size_bytes)?;
        if a < b_end && b < a + first.size_bytes {
            let first_bytes = first.size_bytes;
            return Err(MemoryError::Overlap { what, first: a, first_bytes, second: b });
        }
    }
    Ok(())
}

/// The size of the file's huge pages, if it has such.
fn huge_page_bytes(fd: &OwnedFd) -> Result<Option<u64>, Errno> {
    let stat = fstatfs(fd)?;
    let huge = stat.f_type == HUGETLBFS_MAGIC.into();
    Ok(huge.then(|| u64::try_from(stat.f_bsize).unwrap_or(0)).filter(|bytes| *bytes > 0))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::dup;
    use rustix::pipe::{PipeFlags, pipe_with};
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    fn memfd(size_bytes: u64) -> OwnedFd {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size_bytes).unwrap();
        fd
    }

    fn region(guest_addr: u64, size_bytes: u64, user_addr: u64, mmap_offset_bytes: u64) -> MemRegion {
        MemRegion { guest_addr, size_bytes, user_addr, mmap_offset_bytes }
    }

    fn alarm() -> Alarm {
        Alarm::new().unwrap()
    }

    fn table_of(regions: Vec<(MemRegion, OwnedFd)>) -> Result<MemoryTable, MemoryError> {
        MemoryTable::of(regions, &alarm())
    }

    fn refusal(named: MemRegion, file_bytes: u64) -> String {
        table_of(vec![(named, memfd(file_bytes))]).unwrap_err().to_string()
    }

    #[test]
    fn addresses_are_translated_within_one_region() {
        let fd = memfd(0x6000);
        let table = table_of(vec![
            (region(0x1_0000, 0x2000, 0x7000_0000, 0x4000), dup(&fd).unwrap()),
            (region(0x8_0000, 0x4000, 0x7000_2000, 0), fd),
        ])
        .unwrap();
        let cases = [
            (0x7000_0000, 1, Some(0x1_0000)),
            (0x7000_0000, 0x2000, Some(0x1_0000)),
            (0x7000_1fff, 1, Some(0x1_1fff)),
            (0x7000_2000, 0x4000, Some(0x8_0000)),
            (0x7000_5ff0, 0x10, Some(0x8_3ff0)),
            // Across two regions that are neighbours in user addresses only.
            (0x7000_1fff, 2, None),
            (0x7000_5ff0, 0x11, None),
            (0x6fff_ffff, 1, None),
            (0x1_0000, 1, None),
            (u64::MAX, 1, None),
            (0x7000_0000, u64::MAX, None),
        ];
        for (user, size, expected) in cases {
            assert_eq!(table.translate(user, size), expected.map(GuestAddress), "{user:#x}+{size:#x}");
        }
    }

    #[test]
    fn memory_is_the_file_at_its_offset() {
        let fd = memfd(0x4000);
        rustix::io::pwrite(&fd, b"here", 0x2010).unwrap();
        let table = table_of(vec![(region(0x1000, 0x1000, 0x5000, 0x2000), dup(&fd).unwrap())]).unwrap();
        let mut found = [0; 4];
        table.guest().read_slice(&mut found, GuestAddress(0x1010)).unwrap();
        assert_eq!(&found, b"here");
        table.guest().write_slice(b"back", GuestAddress(0x1020)).unwrap();
        rustix::io::pread(&fd, &mut found, 0x2020).unwrap();
        assert_eq!(&found, b"back");
    }

    #[test]
    fn a_region_may_begin_anywhere_in_a_page_of_its_file() {
        let fd = memfd(0x4000);
        rustix::io::pwrite(&fd, b"here", 0x1234).unwrap();
        let named = region(0x9_0234, 0x2000, 0x9_0234, 0x1234);
        let table = table_of(vec![(named, dup(&fd).unwrap())]).unwrap();
        let mut found = [0; 4];
        let address = table.translate(0x9_0234, 4).unwrap();
        table.guest().read_slice(&mut found, address).unwrap();
        assert_eq!(&found, b"here");
        assert_eq!(table.guest().find_region(GuestAddress(0x9_2234)).map(|_| ()), None);
        // Its page begins before guest address 0.
        let error = table_of(vec![(region(0x233, 0x100, 0, 0x1234), fd)]).unwrap_err();
        assert!(matches!(error, MemoryError::Prefix { prefix_bytes: 0x234, .. }), "{error}");
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        assert_eq!(refusal(region(0, 0, 0, 0), 0x1000), "a memory region of no bytes");
        for named in [
            region(u64::MAX, 0x1000, 0, 0),
            region(0, 0x1000, u64::MAX - 0xffe, 0),
            region(0, 0x1000, 0, u64::MAX - 0xffe),
        ] {
            let error = table_of(vec![(named, memfd(0x1000))]).unwrap_err();
            assert!(matches!(error, MemoryError::Overflow { .. }), "{error}");
        }
        for (named, end) in [
            (region(0, 0x1001, 0, 0), 0x1001),
            (region(0, 0x1000, 0, 0x1000), 0x2000),
            (region(0, 1 << 62, 0, 0), 1 << 62),
        ] {
            let error = table_of(vec![(named, memfd(0x1000))]).unwrap_err();
            let MemoryError::PastFile { end: found, file_bytes: 0x1000 } = error else {
                panic!("{error}");
            };
            assert_eq!(found, end);
        }
        // Larger than the address space of a process.
        let (named, file_bytes) = (region(0, 1 << 48, 0, 0), 1 << 48);
        let error = table_of(vec![(named, memfd(file_bytes))]).unwrap_err();
        assert!(matches!(error, MemoryError::Map(_)), "{error}");
        let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let error = table_of(vec![(region(0, 1, 0, 0), reader)]).unwrap_err();
        assert!(matches!(error, MemoryError::Kind("pipe")), "{error}");
        let read_only = tempfile::NamedTempFile::new().unwrap();
        read_only.as_file().set_len(0x1000).unwrap();
        let read_only = File::open(read_only.path()).unwrap();
        let error = table_of(vec![(region(0, 1, 0, 0), read_only.into())]).unwrap_err();
        assert!(matches!(error, MemoryError::Map(_)), "{error}");
    }

    #[test]
    fn regions_are_added_and_removed_and_do_not_overlap() {
        let fd = memfd(0x10_0000);
        let add = |table: &MemoryTable, named| table.with(named, dup(&fd).unwrap(), &alarm());
        let first = region(0x1_0000, 0x2000, 0x5_0000, 0);
        let one = add(&MemoryTable::empty(), first).unwrap();
        for named in [
            region(0x1_1fff, 1, 0, 0),
            region(0x1_0000, 0x2000, 0, 0),
            region(0, 0x1_0001, 0x8_0000, 0),
            region(0, 1, 0x5_1fff, 0),
            region(0, 0x10_0000, 0x10_0000, 0),
        ] {
            let error = add(&one, named).unwrap_err();
            assert!(matches!(error, MemoryError::Overlap { .. }), "{named:?}: {error}");
        }
        let before = region(0x0_f000, 0x1000, 0x5_2000, 0);
        let two = add(&one, before).unwrap();
        assert_eq!(two.guest().num_regions(), 2);

        // The offset does not count, the addresses and the size do.
        for named in [region(0x0_f000, 0x1000, 0x5_3000, 0), region(0x0_f000, 0x800, 0x5_2000, 0)] {
            let error = two.without(&named).unwrap_err();
            assert!(matches!(error, MemoryError::Unknown { .. }), "{error}");
        }
        let back = two.without(&region(0x1_0000, 0x2000, 0x5_0000, 0x7777)).unwrap();
        assert_eq!(back.guest().num_regions(), 1);
        assert_eq!(back.translate(0x5_0000, 1), None);
        assert_eq!(back.translate(0x5_2000, 1), Some(GuestAddress(0x0_f000)));
        assert_eq!(back.without(&before).unwrap().guest().num_regions(), 0);
    }

    #[test]
    fn there_is_an_end_of_slots() {
        let fd = memfd(0x1000);
        let (mut table, alarm) = (MemoryTable::empty(), alarm());
        let nth = |n: u64| region(n << 12, 0x1000, n << 12, 0);
        let slots = u64::try_from(MEMORY_SLOTS_MAX).unwrap();
        for n in 0..slots {
            table = match table.with(nth(n), dup(&fd).unwrap(), &alarm) {
                Ok(table) => table,
                Err(error) => panic!("slot {n}: {error}"),
            };
        }
        let error = table.with(nth(slots), fd, &alarm).unwrap_err();
        assert!(matches!(error, MemoryError::TooMany), "{error}");
    }

    #[test]
    fn huge_pages_are_mapped_whole() {
        const HUGE_BYTES: u64 = 2 << 20;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let Ok(fd) = memfd_create("huge", flags) else {
            eprintln!("no huge pages here: not tried");
            return;
        };
        ftruncate(&fd, 2 * HUGE_BYTES).unwrap();
        assert_eq!(huge_page_bytes(&fd), Ok(Some(HUGE_BYTES)));
        for named in
            [region(0, HUGE_BYTES, 0, 0x1000), region(0, 0x1000, 0, 0), region(0, HUGE_BYTES + 0x1000, 0, 0)]
        {
            let error = table_of(vec![(named, dup(&fd).unwrap())]).unwrap_err();
            assert!(matches!(error, MemoryError::HugePage { .. }), "{error}");
        }
        // Mapping needs no page yet; touching would, and this machine may have none.
        let whole = region(0, HUGE_BYTES, 0, HUGE_BYTES);
        assert!(table_of(vec![(whole, fd)]).is_ok());
        assert_eq!(huge_page_bytes(&memfd(0x1000)), Ok(None));
    }
}
