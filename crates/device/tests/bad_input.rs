//! Chains that no honest driver makes: each is answered with IOERR where a status byte can be found and returned empty where not,
//! the next good request works, and neither the disk nor any other byte of guest memory has changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::{Backing, How, Outcome, Rig, SHAPE, attack, blocks, on_every_store, sectors, start_of};
use virtio_zbd_spec::{Descriptor, DescriptorFlags, Features, OutHeader, RequestType, Status};
use virtio_zbd_testkit::{QueueOptions, Request};
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

on_every_store!(
    truncated_chains,
    circles,
    names_of_no_descriptor,
    places_outside_guest_memory,
    places_across_a_hole_in_guest_memory,
    readable_behind_writable,
    bad_indirect_tables,
    indirect_tables_that_were_not_negotiated,
    more_than_four_gigabytes,
    chains_that_are_too_long,
    descriptors_without_bytes_are_no_harm,
    the_write_flag_of_an_indirect_descriptor_means_nothing,
    buffers_may_cross_from_one_region_into_the_next,
    a_head_that_is_given_twice_is_served_twice,
);

const NEXT: DescriptorFlags = DescriptorFlags::NEXT;
const WRITE: DescriptorFlags = DescriptorFlags::WRITE;
const INDIRECT: DescriptorFlags = DescriptorFlags::INDIRECT;
const NONE: DescriptorFlags = DescriptorFlags::empty();

/// A block, in bytes.
const BLOCK_LEN: u32 = 4096;

/// A guest with a good request in pieces: a write of one block at the write pointer of zone 2. Any chain that is carried out by
/// mistake is seen on the disk.
struct Guest {
    rig: Rig,
    header: GuestAddress,
    data: GuestAddress,
    status: GuestAddress,
    /// Room for an indirect table.
    table: GuestAddress,
    /// The first address behind guest memory.
    end: u64,
}

/// A descriptor as the driver writes it.
#[derive(Clone, Copy)]
struct Desc(u64, u32, DescriptorFlags, u16);

impl Guest {
    fn new(on: Backing) -> Self {
        Self::with(on, How::default())
    }

    fn with(on: Backing, how: How) -> Self {
        let mut rig = Rig::zoned_with(on, SHAPE, how);
        rig.accept(Request::write(0, &sectors(1, 256)));
        rig.accept(Request::write(start_of(2), &blocks(2, 3)));
        let header = rig.ram.alloc(16, 16);
        let data = rig.ram.alloc(4096, 4096);
        let status = rig.ram.alloc(16, 16);
        let table = rig.ram.alloc(1030 * 16, 16);
        rig.ram.fill(status, 16, 0xee);
        rig.ram.write(data, &blocks(99, 1));
        let end = rig.ram.end().0;
        let guest = Self { rig, header, data, status, table, end };
        guest.ask(RequestType::Out, start_of(2) + 24);
        guest
    }

    /// Writes the header.
    fn ask(&self, kind: RequestType, sector: u64) {
        let header =
            OutHeader { request_type: u32::from(kind).into(), reserved: 0.into(), sector: sector.into() };
        self.rig.ram.write(self.header, header.as_bytes());
    }

    fn h(&self) -> Desc {
        Desc(self.header.0, 16, NONE, 0)
    }

    fn d(&self) -> Desc {
        Desc(self.data.0, BLOCK_LEN, NONE, 0)
    }

    fn s(&self) -> Desc {
        Desc(self.status.0, 1, WRITE, 0)
    }

    fn io_err(&self) -> Outcome {
        // Behind data that was not looked at nothing counts as written.
        Outcome::IoErr(self.status, 0)
    }

    #[track_caller]
    fn attack(&mut self, head: u16, outcome: Outcome) {
        self.rig.ram.fill(self.status, 16, 0xee);
        attack(&mut self.rig, head, outcome);
    }

    /// Puts a chain into the queue's table, descriptor after descriptor, and gives it to the device.
    #[track_caller]
    fn chain(&mut self, descs: &[Desc], outcome: Outcome) {
        let ring = &mut self.rig.queue().ring;
        let places = ring.take_descs(descs.len());
        for (i, &Desc(addr, len, flags, _)) in descs.iter().enumerate() {
            match places.get(i + 1) {
                Some(&next) => ring.set_desc(places[i], addr, len, flags | NEXT, next),
                None => ring.set_desc(places[i], addr, len, flags, 0),
            }
        }
        self.attack(places[0], outcome);
        self.rig.queue().ring.give_descs(&places);
    }

    /// As [`Self::chain`], but `next` of each descriptor is an index into `descs`, and nothing else is added.
    #[track_caller]
    fn raw(&mut self, descs: &[Desc], outcome: Outcome) {
        let ring = &mut self.rig.queue().ring;
        let places = ring.take_descs(descs.len());
        for (&place, &Desc(addr, len, flags, next)) in places.iter().zip(descs) {
            let next = places.get(usize::from(next)).copied().unwrap_or(next);
            ring.set_desc(place, addr, len, flags, next);
        }
        self.attack(places[0], outcome);
        self.rig.queue().ring.give_descs(&places);
    }

    /// Writes an indirect table at `at`, whose descriptors are chained up where they do not say otherwise.
    fn write_table(&self, at: GuestAddress, descs: &[Desc]) {
        for (i, &Desc(addr, len, flags, next)) in descs.iter().enumerate() {
            let place = GuestAddress(at.0 + 16 * i as u64);
            let descriptor = Descriptor {
                addr: addr.into(),
                len: len.into(),
                flags: flags.bits().into(),
                next: next.into(),
            };
            self.rig.ram.write_obj(place, &descriptor);
        }
    }

    /// `descs`, each with the next one behind it.
    fn chained(descs: &[Desc]) -> Vec<Desc> {
        let last = descs.len() - 1;
        let link = |(i, &Desc(addr, len, flags, _)): (usize, &Desc)| match i == last {
            true => Desc(addr, len, flags, 0),
            false => Desc(addr, len, flags | NEXT, u16::try_from(i + 1).unwrap()),
        };
        descs.iter().enumerate().map(link).collect()
    }

    /// The pieces in good order, with nothing wrong: what must work after all.
    #[track_caller]
    fn good(&mut self, descs: &[Desc]) {
        let ring = &mut self.rig.queue().ring;
        let places = ring.take_descs(descs.len());
        for (&place, &Desc(addr, len, flags, next)) in places.iter().zip(descs) {
            let next = places.get(usize::from(next)).copied().unwrap_or(next);
            ring.set_desc(place, addr, len, flags, next);
        }
        self.rig.ram.fill(self.status, 16, 0xee);
        self.rig.queue().ring.push_avail(places[0]);
        self.rig.queue().publish().unwrap();
        let used = self.rig.queue().complete_by_hand().unwrap();
        assert_eq!((used.id, used.len), (places[0].into(), 1));
        assert_eq!(self.rig.ram.read(self.status, 2), [Status::Ok as u8, 0xee]);
        assert_eq!(self.rig.read(start_of(2) + 24, 8), blocks(99, 1));
        self.rig.queue().ring.give_descs(&places);
    }
}

fn truncated_chains(on: Backing) {
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    // Nobody can be told.
    guest.chain(&[h, d], Outcome::Dropped);
    guest.chain(&[h], Outcome::Dropped);
    guest.chain(&[d], Outcome::Dropped);
    guest.chain(&[Desc(h.0, 15, NONE, 0)], Outcome::Dropped);
    guest.chain(&[h, d, Desc(s.0, 0, WRITE, 0)], Outcome::Dropped);
    guest.chain(&[Desc(h.0, 0, NONE, 0)], Outcome::Dropped);
    guest.chain(&[Desc(s.0, 0, WRITE, 0)], Outcome::Dropped);
    guest.chain(&[Desc(h.0, 0, NONE, 0), Desc(s.0, 0, WRITE, 0)], Outcome::Dropped);
    // No header, or not all of it. The status is all that the device may write, so it counts.
    let told = Outcome::IoErr(guest.status, 1);
    guest.chain(&[s], told);
    for len in [1, 8, 15] {
        guest.chain(&[Desc(h.0, len, NONE, 0), s], told);
        guest.chain(&[Desc(h.0, len - 1, NONE, 0), Desc(h.0, 1, NONE, 0), s], told);
    }
    // The status is the last byte of what is writable, however much that is.
    let last = Outcome::IoErr(GuestAddress(guest.status.0 + 9), 0);
    guest.chain(&[Desc(h.0, 15, NONE, 0), Desc(s.0, 10, WRITE, 0)], last);
    guest.chain(&[Desc(s.0, 10, WRITE, 0)], last);
    guest.good(&Guest::chained(&[h, d, s]));
}

fn circles(on: Backing) {
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    let to = |Desc(addr, len, flags, _): Desc, next| Desc(addr, len, flags | NEXT, next);
    guest.raw(&[to(h, 0)], Outcome::Dropped);
    guest.raw(&[to(s, 0)], Outcome::Dropped);
    guest.raw(&[to(h, 1), to(d, 0)], Outcome::Dropped);
    guest.raw(&[to(h, 1), to(d, 2), to(s, 0)], Outcome::Dropped);
    guest.raw(&[to(h, 1), to(d, 2), to(s, 2)], Outcome::Dropped);
    guest.raw(&[to(h, 1), to(d, 2), to(s, 1)], Outcome::Dropped);
    guest.raw(&[to(Desc(h.0, 0, NONE, 0), 0)], Outcome::Dropped);
    let table = guest.table;
    let indirect = |len: u32| Desc(table.0, 16 * len, INDIRECT, 0);
    guest.write_table(table, &[to(h, 0)]);
    guest.chain(&[indirect(1)], Outcome::Dropped);
    guest.write_table(table, &[to(h, 1), to(d, 2), to(s, 0)]);
    guest.chain(&[indirect(3)], Outcome::Dropped);
    guest.chain(&[h, indirect(3)], Outcome::Dropped);
    guest.write_table(table, &[to(h, 1), to(d, 2), to(s, 2)]);
    guest.chain(&[indirect(3)], Outcome::Dropped);
    guest.good(&Guest::chained(&[h, d, s]));
}

fn names_of_no_descriptor(on: Backing) {
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    for head in [128, 129, 1000, 32_768, 65_535] {
        guest.attack(head, Outcome::Dropped);
    }
    for next in [128, 129, 65_535] {
        guest.raw(&[Desc(h.0, 16, NEXT, next)], Outcome::Dropped);
        guest.raw(
            &[Desc(h.0, 16, NEXT, 1), Desc(d.0, BLOCK_LEN, NEXT, 2), Desc(s.0, 1, WRITE | NEXT, next)],
            Outcome::Dropped,
        );
    }
    // In an indirect table its own length counts, not the queue's.
    for next in [3, 127, 65_535] {
        let descs = [Desc(h.0, 16, NEXT, 1), Desc(d.0, BLOCK_LEN, NEXT, next), s];
        guest.write_table(guest.table, &descs);
        guest.chain(&[Desc(guest.table.0, 48, INDIRECT, 0)], Outcome::Dropped);
    }
    guest.good(&Guest::chained(&[h, d, s]));
}

fn places_outside_guest_memory(on: Backing) {
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    let (end, base) = (guest.end, virtio_zbd_testkit::GUEST_BASE.0);
    let io_err = guest.io_err();
    for (addr, len) in [
        (0, 1),
        (base - 1, 2),
        (end, 1),
        (end - 1, 2),
        (end - 8, 16),
        (end, 0x1000),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 4095, BLOCK_LEN),
        (u64::MAX - 15, 16),
        (1 << 63, 16),
        (base, u32::MAX),
        (base + 16, u32::MAX - 15),
    ] {
        let bad = Desc(addr, len, NONE, 0);
        let bad_room = Desc(addr, len, WRITE, 0);
        guest.chain(&[bad, d, s], io_err);
        guest.chain(&[h, bad, s], io_err);
        guest.chain(&[h, d, bad, s], io_err);
        guest.chain(&[h, d, bad_room, s], io_err);
        guest.chain(&[bad, s], io_err);
        // The status itself is outside: nobody can be told.
        guest.chain(&[h, d, bad_room], Outcome::Dropped);
        guest.chain(&[h, d, s, bad_room], Outcome::Dropped);
        guest.chain(&[bad], Outcome::Dropped);
        guest.chain(&[bad_room], Outcome::Dropped);
        // In an indirect table, and the table itself.
        guest.write_table(guest.table, &Guest::chained(&[h, bad, s]));
        guest.chain(&[Desc(guest.table.0, 48, INDIRECT, 0)], io_err);
        let table_len = (len / 16).clamp(1, 1024) * 16;
        if !(base..end).contains(&addr) || addr + u64::from(table_len) > end {
            guest.chain(&[Desc(addr, table_len, INDIRECT, 0)], Outcome::Dropped);
        }
    }
    // The status is the last byte of the last descriptor.
    let long = Desc(s.0, 10, WRITE, 0);
    let last = Outcome::IoErr(GuestAddress(s.0 + 9), 0);
    guest.chain(&[h, Desc(end, 1, NONE, 0), d, long], last);
    guest.chain(&[h, Desc(end, 1, WRITE, 0), s, Desc(s.0 + 1, 9, WRITE, 0)], last);
    // A read must not leave anything in the part of its room that is there.
    guest.ask(RequestType::In, start_of(2));
    guest.chain(&[h, Desc(d.0, BLOCK_LEN, WRITE, 0), Desc(end, BLOCK_LEN, WRITE, 0), s], io_err);
    guest.ask(RequestType::ZoneReport, 0);
    guest.chain(&[h, Desc(d.0, BLOCK_LEN, WRITE, 0), Desc(end - 1, 2, WRITE, 0), s], io_err);
    // Requests that need no data are not carried out either.
    guest.ask(RequestType::ZoneReset, start_of(2));
    guest.chain(&[h, Desc(end, 1, NONE, 0), s], io_err);
    guest.ask(RequestType::ZoneResetAll, 0);
    guest.chain(&[h, Desc(end, 1, WRITE, 0), s], io_err);
    // The end of a table's descriptors lies behind the end of memory.
    guest.ask(RequestType::Out, start_of(2) + 24);
    let split = GuestAddress(end - 32);
    let kept = guest.rig.ram.read(split, 32);
    guest.write_table(split, &Guest::chained(&[h, d, s])[..2]);
    guest.chain(&[Desc(split.0, 48, INDIRECT, 0)], Outcome::Dropped);
    guest.rig.ram.write(split, &kept);
    guest.good(&Guest::chained(&[h, d, s]));
}

fn places_across_a_hole_in_guest_memory(on: Backing) {
    let mut guest = Guest::with(on, How { ram_len: 2 << 20, ram_hole: Some(0x1000), ..Default::default() });
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    let hole = virtio_zbd_testkit::GUEST_BASE.0 + (2 << 20);
    let io_err = guest.io_err();
    for (addr, len) in [(hole - 1, 2), (hole, 1), (hole + 0xfff, 2), (hole - 1, 0x1002), (hole - 512, 0x1400)]
    {
        guest.chain(&[h, Desc(addr, len, NONE, 0), s], io_err);
        guest.chain(&[h, d, Desc(addr, len, WRITE, 0), s], io_err);
        guest.chain(&[h, d, Desc(addr, len, WRITE, 0)], Outcome::Dropped);
    }
    guest.good(&Guest::chained(&[h, d, s]));
}

fn readable_behind_writable(on: Backing) {
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    let io_err = guest.io_err();
    let room = Desc(guest.status.0 + 8, 4, WRITE, 0);
    guest.chain(&[s, h], Outcome::Dropped);
    guest.chain(&[h, s, d], Outcome::Dropped);
    guest.chain(&[s, h, d], Outcome::Dropped);
    guest.chain(&[room, h, d, s], io_err);
    guest.chain(&[h, room, d, s], io_err);
    guest.chain(&[h, d, room, Desc(d.0, 1, NONE, 0), s], io_err);
    guest.write_table(guest.table, &Guest::chained(&[h, room, d, s]));
    guest.chain(&[Desc(guest.table.0, 64, INDIRECT, 0)], io_err);
    // Half in the queue's table.
    guest.write_table(guest.table, &Guest::chained(&[d, s]));
    guest.chain(&[h, room, Desc(guest.table.0, 32, INDIRECT, 0)], io_err);
    guest.good(&Guest::chained(&[h, d, s]));
}

fn bad_indirect_tables(on: Backing) {
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    let table = guest.table;
    guest.write_table(table, &Guest::chained(&[h, d, s]));
    // No whole number of descriptors, none at all, too many.
    for len in [0, 1, 15, 17, 47, 49, 16 * 1024 + 1, 16 * 1025, 16 * 65_535, 1 << 20, u32::MAX - 15, u32::MAX]
    {
        guest.chain(&[Desc(table.0, len, INDIRECT, 0)], Outcome::Dropped);
        guest.chain(&[h, Desc(table.0, len, INDIRECT, 0)], Outcome::Dropped);
    }
    // The table ends before the chain does.
    guest.chain(&[Desc(table.0, 16, INDIRECT, 0)], Outcome::Dropped);
    guest.chain(&[Desc(table.0, 32, INDIRECT, 0)], Outcome::Dropped);
    // A table and a next descriptor.
    guest.chain(&[Desc(table.0, 48, INDIRECT, 0), s], Outcome::Dropped);
    guest.raw(&[Desc(table.0, 48, INDIRECT | NEXT, 0)], Outcome::Dropped);
    // A table in a table, good or itself.
    let inner = GuestAddress(table.0 + 1024);
    guest.write_table(inner, &Guest::chained(&[h, d, s]));
    guest.write_table(table, &[Desc(inner.0, 48, INDIRECT, 0)]);
    guest.chain(&[Desc(table.0, 16, INDIRECT, 0)], Outcome::Dropped);
    guest.write_table(table, &[Desc(table.0, 16, INDIRECT, 0)]);
    guest.chain(&[Desc(table.0, 16, INDIRECT, 0)], Outcome::Dropped);
    guest.write_table(table, &[Desc(h.0, 16, NEXT, 1), Desc(inner.0, 48, INDIRECT, 0)]);
    guest.chain(&[Desc(table.0, 32, INDIRECT, 0)], Outcome::Dropped);
    guest.good(&Guest::chained(&[h, d, s]));
}

fn indirect_tables_that_were_not_negotiated(on: Backing) {
    let mut guest = Guest::with(on, How { without: Features::INDIRECT_DESC, ..Default::default() });
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    guest.write_table(guest.table, &Guest::chained(&[h, d, s]));
    guest.chain(&[Desc(guest.table.0, 48, INDIRECT, 0)], Outcome::Dropped);
    guest.write_table(guest.table, &Guest::chained(&[d, s]));
    guest.chain(&[h, Desc(guest.table.0, 32, INDIRECT, 0)], Outcome::Dropped);
    guest.good(&Guest::chained(&[h, d, s]));
}

fn more_than_four_gigabytes(on: Backing) {
    // The same 8 MiB again and again, 512 times.
    let mut guest = Guest::with(on, How { ram_len: 8 << 20, ..Default::default() });
    let (h, s) = (guest.h(), guest.s());
    let base = virtio_zbd_testkit::GUEST_BASE.0;
    let len = u32::try_from(guest.end - base).unwrap();
    assert_eq!(len, 8 << 20);
    for (kind, flags, beside) in
        [(RequestType::Out, NONE, 16), (RequestType::ZoneAppend, NONE, 16), (RequestType::In, WRITE, 1)]
    {
        guest.ask(kind, start_of(3));
        // One byte less than 4 GiB is a length, if too much for this disk; with one byte more there is no telling how long it is.
        let longest = len - beside - 1;
        for (last, told) in [(longest - 1, true), (longest, true), (longest + 1, false), (len, false)] {
            let mut descs = vec![h];
            descs.extend([Desc(base, len, flags, 0); 511]);
            descs.extend([Desc(base, last, flags, 0), s]);
            guest.write_table(guest.table, &Guest::chained(&descs));
            let outcome = Outcome::IoErr(guest.status, u32::from(told && flags == NONE));
            guest.chain(&[Desc(guest.table.0, 16 * 514, INDIRECT, 0)], outcome);
        }
    }
}

fn chains_that_are_too_long(on: Backing) {
    let options = QueueOptions { size: 4096, ..Default::default() };
    let mut guest = Guest::with(on, How { options, ..Default::default() });
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    let long = |len: usize| {
        let mut descs = vec![h];
        descs.extend((0..4).map(|i| Desc(d.0 + i * 1024, 1024, NONE, 0)));
        descs.resize(len - 1, Desc(d.0, 0, NONE, 0));
        descs.push(s);
        descs
    };
    for len in [1025, 1026, 2048] {
        guest.chain(&long(len), Outcome::Dropped);
    }
    // The table's own descriptor counts, too.
    guest.write_table(guest.table, &Guest::chained(&long(1024)));
    guest.chain(&[Desc(guest.table.0, 16 * 1024, INDIRECT, 0)], Outcome::Dropped);
    guest.good(&Guest::chained(&long(1024)));
}

fn descriptors_without_bytes_are_no_harm(on: Backing) {
    for nowhere in [0, u64::MAX, 1 << 63] {
        let mut guest = Guest::new(on);
        let (h, s, data) = (guest.h(), guest.s(), guest.data.0);
        let (empty, empty_room) = (Desc(nowhere, 0, NONE, 0), Desc(nowhere, 0, WRITE, 0));
        let halves = [Desc(data, 100, NONE, 0), Desc(data + 100, BLOCK_LEN - 100, NONE, 0)];
        let descs = [empty, h, empty_room, halves[0], empty, halves[1], empty_room, s, empty_room];
        guest.good(&Guest::chained(&descs));
    }
}

fn the_write_flag_of_an_indirect_descriptor_means_nothing(on: Backing) {
    // 2.7.5.3.2: the device must ignore it.
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    guest.write_table(guest.table, &Guest::chained(&[h, d, s]));
    guest.good(&[Desc(guest.table.0, 48, INDIRECT | WRITE, 0)]);
    let mut guest = Guest::new(on);
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    guest.write_table(guest.table, &Guest::chained(&[d, s]));
    guest.good(&[Desc(h.0, 16, NEXT, 1), Desc(guest.table.0, 32, INDIRECT | WRITE, 0)]);
}

fn buffers_may_cross_from_one_region_into_the_next(on: Backing) {
    let mut guest = Guest::with(on, How { ram_len: 2 << 20, ram_hole: Some(0), ..Default::default() });
    let seam = virtio_zbd_testkit::GUEST_BASE.0 + (2 << 20);
    let bytes = |guest: &Guest, addr: GuestAddress, len| guest.rig.ram.read(addr, len);
    // Header, data and table in turn lie across the seam, which nobody else uses.
    for before in [1, 8, 15] {
        let mut guest = Guest::with(on, How { ram_len: 2 << 20, ram_hole: Some(0), ..Default::default() });
        let at = GuestAddress(seam - before);
        guest.rig.ram.write(at, &bytes(&guest, guest.header, 16));
        let (h, d, s) = (Desc(at.0, 16, NONE, 0), guest.d(), guest.s());
        guest.good(&Guest::chained(&[h, d, s]));
    }
    for before in [1, 512, 4095] {
        let mut guest = Guest::with(on, How { ram_len: 2 << 20, ram_hole: Some(0), ..Default::default() });
        let at = GuestAddress(seam - before);
        guest.rig.ram.write(at, &blocks(99, 1));
        let (h, d, s) = (guest.h(), Desc(at.0, BLOCK_LEN, NONE, 0), guest.s());
        guest.good(&Guest::chained(&[h, d, s]));
    }
    let (h, d, s) = (guest.h(), guest.d(), guest.s());
    let at = GuestAddress(seam - 24);
    guest.write_table(at, &Guest::chained(&[h, d, s]));
    guest.good(&[Desc(at.0, 48, INDIRECT, 0)]);
}

fn a_head_that_is_given_twice_is_served_twice(on: Backing) {
    let mut guest = Guest::new(on);
    // A write to a conventional zone, which may be done twice.
    guest.ask(RequestType::Out, 5);
    let descs = Guest::chained(&[guest.h(), guest.d(), guest.s()]);
    let ring = &mut guest.rig.queue().ring;
    let places = ring.take_descs(3);
    for (&place, &Desc(addr, len, flags, next)) in places.iter().zip(&descs) {
        ring.set_desc(place, addr, len, flags, places[usize::from(next)]);
    }
    for times in [2, 3, 128] {
        for _ in 0..times {
            guest.rig.queue().ring.push_avail(places[0]);
        }
        guest.rig.queue().publish().unwrap();
        for _ in 0..times {
            let used = guest.rig.queue().complete_by_hand().unwrap();
            assert_eq!((used.id, used.len), (places[0].into(), 1));
        }
        assert_eq!(guest.rig.queue().take_by_hand().unwrap(), []);
        assert_eq!(guest.rig.ram.read(guest.status, 2), [Status::Ok as u8, 0xee]);
        assert_eq!(guest.rig.read(5, 8), blocks(99, 1));
    }
}
