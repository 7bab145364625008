//! Devices that break the ring's rules: the request's bytes are fine, what the used ring says of them is not.
//!
//! What can be believed no more ends with a reset; then every call is `Broken`, and every buffer comes back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::rig::{Blk, QUEUE_DEPTH, assert_broken, assert_usable, attach_with, cases, rig, zones};
use common::{FakeDevice, Shape, Watch, memory, on_both_hals};
use virtio_zbd_driver::{Command, Error, Hal, Options, Token, Wrong};
use virtio_zbd_spec::{Features, RequestType};

on_both_hals!(
    ids_that_were_never_given_out,
    the_same_id_twice,
    the_id_of_another_request,
    the_used_index_ahead,
    the_used_index_ahead_of_its_elements,
    the_used_index_far_ahead,
    the_used_index_backwards,
    more_bytes_used_than_there_is_room,
    fewer_bytes_used_than_an_answer_has,
    a_flood_of_used_elements_when_idle,
    buffers_come_back_when_the_ring_breaks,
    a_broken_ring_breaks_the_disk_on_all_queues,
    rings_without_indirect_descriptors,
    wrap_around,
);

/// Rings with indirect tables and without. Miri sees the former in all other tests.
fn shapes() -> impl Iterator<Item = Shape> {
    let mut direct = Shape { seg_max: Some(3), ..Shape::default() };
    direct.more -= Features::INDIRECT_DESC;
    [direct, Shape::default()].into_iter().take(if cfg!(miri) { 1 } else { 2 })
}

/// A flush whose used element says something else, on a disk that worked before. Gives the error.
fn flush_with<H: Hal>(shape: Shape, id: impl Fn(u32) -> u32 + Send + 'static) -> (FakeDevice, Blk<H>, Error) {
    let (device, mut disk) = rig::<H>(shape);
    assert_usable(&device, &mut disk);
    device.lie_to(RequestType::Flush, move |_, reply| reply.used[0].0 = id(reply.used[0].0));
    let error = disk.flush().unwrap_err();
    (device, disk, error)
}

fn ids_that_were_never_given_out<H: Hal>() {
    let _watch = Watch::begin();
    for shape in shapes() {
        let size = u32::from(QUEUE_DEPTH);
        for wrong in cases([size, 0x1_0000, u32::MAX, size + 1, 100, 0x7fff, 0xffff, 0x8000_0000]) {
            let (device, mut disk, error) = flush_with::<H>(shape.clone(), move |_| wrong);
            assert_eq!(error, Error::Wrong(Wrong::UsedId { queue: 0, id: wrong }));
            assert_broken(&device, &mut disk);
        }
        // The right one, with more bits.
        for more in [1 << 16, 1 << 31, 0xffff_0000] {
            let (device, mut disk, error) = flush_with::<H>(shape.clone(), move |id| id | more);
            assert!(matches!(error, Error::Wrong(Wrong::UsedId { queue: 0, id }) if id >= more), "{error:?}");
            assert_broken(&device, &mut disk);
        }
        // Ids of the queue that are free now, in a chain's middle too.
        for by in cases(1..size) {
            let (device, mut disk, error) = flush_with::<H>(shape.clone(), move |id| (id + by) % size);
            assert!(matches!(error, Error::Wrong(Wrong::UsedId { queue: 0, .. })), "{error:?}");
            assert_broken(&device, &mut disk);
        }
    }
}

fn the_same_id_twice<H: Hal>() {
    let _watch = Watch::begin();
    for shape in shapes() {
        let (device, mut disk) = rig::<H>(shape);
        // Another one is in flight, so that the count is not what gives it away.
        device.lie_to(RequestType::In, |_, reply| reply.drop_it());
        let read = disk.submit(0, Command::Read { sector: 0, buffer: vec![7; 512] }).unwrap();
        disk.notify(0).unwrap();
        device.lie_to(RequestType::Flush, |_, reply| reply.used.push(reply.used[0]));
        // The first one is right.
        disk.flush().unwrap();
        let error = disk.complete(0).unwrap_err();
        assert!(matches!(error, Error::Wrong(Wrong::UsedId { queue: 0, .. })), "{error:?}");
        let done = disk.complete(0).unwrap().unwrap();
        assert_eq!((done.token, done.result), (read, Err(Error::Broken)));
        assert_broken(&device, &mut disk);
    }
}

fn the_id_of_another_request<H: Hal>() {
    let _watch = Watch::begin();
    for shape in shapes() {
        let (device, mut disk) = rig::<H>(shape);
        // A read that the device keeps, and a write of which it says that it is the read.
        device.lie_to(RequestType::In, |_, reply| reply.drop_it());
        let read = disk.submit(0, Command::Read { sector: 0, buffer: vec![7; 512] }).unwrap();
        disk.notify(0).unwrap();
        device.lie_to(RequestType::Out, |request, reply| {
            assert_ne!(request.head, 0, "the read has the first descriptor");
            reply.used[0].0 = 0;
        });
        let write = disk.submit(0, Command::Write { sector: 8, buffer: vec![8; 512] }).unwrap();
        disk.notify(0).unwrap();
        // The read is over, as far as one can tell. It has not been written: no status, no data.
        let done = disk.complete(0).unwrap().unwrap();
        assert_eq!(done.token, read);
        assert!(matches!(done.result, Err(Error::Wrong(_))), "{:?}", done.result);
        assert_eq!(done.buffer.unwrap().len(), 512);
        // The write is still in flight, and stays so.
        assert_eq!(disk.complete(0), Ok(None));
        assert_eq!(disk.in_flight(0), 1);
        device.be_honest();
        assert_eq!(disk.flush(), Ok(()));
        assert_eq!(disk.in_flight(0), 1);
        let _ = write;
    }
}

fn the_used_index_ahead<H: Hal>() {
    let _watch = Watch::begin();
    for shape in shapes() {
        for jump in cases([1, 31, 0xfffe, 2, 5, 0x7fff]) {
            let (device, mut disk) = rig::<H>(shape.clone());
            device.lie_to(RequestType::Flush, move |_, reply| reply.idx_jump = jump);
            let expected = Wrong::UsedIdx { queue: 0, done: 1 + jump, in_flight: 1 };
            assert_eq!(disk.flush(), Err(Error::Wrong(expected)));
            assert_broken(&device, &mut disk);
        }
    }
}

fn the_used_index_ahead_of_its_elements<H: Hal>() {
    let _watch = Watch::begin();
    // Not more than are in flight, but what stands there was not written.
    let (device, mut disk) = rig::<H>(Shape::default());
    assert_usable(&device, &mut disk);
    device.face(|face| face.holds_answers = true);
    let tokens: Vec<Token> = (0..4).map(|_| disk.submit(0, Command::Flush).unwrap()).collect();
    disk.notify(0).unwrap();
    device.deliver(0, 0);
    device.jump(0, 3);
    let mut back = Vec::new();
    let mut error = None;
    for _ in 0..10 {
        match disk.complete(0) {
            Ok(Some(done)) => {
                if error.is_some() {
                    assert_eq!(done.result, Err(Error::Broken));
                } else if !back.is_empty() {
                    // An element of before names one that is in flight: it was not written, its status shows it.
                    assert!(matches!(done.result, Err(Error::Wrong(_))), "{:?}", done.result);
                }
                back.push(done.token);
            }
            Ok(None) => break,
            Err(Error::Broken) => break,
            Err(first) => error = Some(first),
        }
    }
    assert!(matches!(error, Some(Error::Wrong(_))), "{error:?}");
    back.sort();
    assert_eq!(back, tokens);
    assert_broken(&device, &mut disk);
}

fn the_used_index_far_ahead<H: Hal>() {
    let _watch = Watch::begin();
    for jump in cases([4, 32, 0xfff0, 31, 33, 0x7fff]) {
        let (device, mut disk) = rig::<H>(Shape::default());
        // More elements than are in flight, the first one good.
        device.face(|face| face.holds_answers = true);
        let tokens: Vec<Token> = (0..4).map(|_| disk.submit(0, Command::Flush).unwrap()).collect();
        disk.notify(0).unwrap();
        device.deliver(0, 0);
        device.jump(0, jump);
        let expected = Wrong::UsedIdx { queue: 0, done: 1 + jump, in_flight: 4 };
        assert_eq!(disk.complete(0), Err(Error::Wrong(expected)));
        for token in tokens {
            let done = disk.complete(0).unwrap().unwrap();
            assert_eq!((done.token, done.result), (token, Err(Error::Broken)));
        }
        assert_broken(&device, &mut disk);
    }
}

fn the_used_index_backwards<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    assert_usable(&device, &mut disk);
    // As if 65,535 more were used.
    device.jump(0, 0_u16.wrapping_sub(1));
    let expected = Wrong::UsedIdx { queue: 0, done: 0xffff, in_flight: 0 };
    assert_eq!(disk.complete(0), Err(Error::Wrong(expected)));
    assert_broken(&device, &mut disk);
}

fn more_bytes_used_than_there_is_room<H: Hal>() {
    let _watch = Watch::begin();
    for shape in shapes() {
        for (kind, room_bytes, called) in [
            (RequestType::Flush, 1, (|disk| disk.flush()) as fn(&mut Blk<H>) -> Result<(), Error>),
            (RequestType::In, 513, |disk| disk.read(0, &mut [0; 512])),
            (RequestType::Out, 1, |disk| disk.write(0, &[0; 512])),
            (RequestType::GetId, 21, |disk| disk.id().map(drop)),
            (RequestType::ZoneAppend, 9, |disk| disk.append(128, &[0; 4096]).map(drop)),
            (RequestType::ZoneReport, 64 + 64 + 1, |disk| disk.zone(0).map(drop)),
        ] {
            for more in cases([1, u32::MAX - 4096, 1000, 1 << 31]).take(if cfg!(miri) { 1 } else { 4 }) {
                let (device, mut disk) = rig::<H>(shape.clone());
                let found_bytes = u32::try_from(room_bytes).unwrap() + more;
                device.lie_to(kind, move |_, reply| reply.set_used_len(found_bytes));
                let expected = Wrong::UsedLen { found_bytes, room_bytes };
                assert_eq!(called(&mut disk), Err(Error::Wrong(expected)));
                // A device that writes out of bounds is not let on.
                assert_broken(&device, &mut disk);
            }
        }
    }
}

fn fewer_bytes_used_than_an_answer_has<H: Hal>() {
    let _watch = Watch::begin();
    for shape in shapes() {
        let (device, mut disk) = rig::<H>(shape);
        disk.write(0, &[9; 1024]).unwrap();
        // Data that is not all there is no data.
        for found_bytes in cases([0, 1, 1024, 512, 1023]) {
            device.lie_to(RequestType::In, move |_, reply| reply.set_used_len(found_bytes));
            let expected = Wrong::UsedShort { found_bytes, expected_bytes: 1025 };
            assert_eq!(disk.read(0, &mut [0; 1024]), Err(Error::Wrong(expected)));
            device.be_honest();
            assert_usable(&device, &mut disk);
        }
        // A serial may be shorter: what was not written is not shown.
        for (found_bytes, shown) in [(0, ""), (4, "fake"), (20, "fake disk 7")] {
            device.lie_to(RequestType::GetId, move |_, reply| reply.set_used_len(found_bytes));
            assert_eq!(disk.id().unwrap().as_bytes(), shown.as_bytes());
            device.be_honest();
        }
        // Where there is nothing but the status it is there or it is not: the length says nothing that is needed.
        device.lie(|_, reply, _| reply.set_used_len(0));
        disk.flush().unwrap();
        disk.write(0, &[1; 512]).unwrap();
        disk.open_zone(192).unwrap();
        device.be_honest();
        assert_usable(&device, &mut disk);
    }
}

fn a_flood_of_used_elements_when_idle<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    assert_usable(&device, &mut disk);
    device.ring(0, |ring| {
        for id in 0..64 {
            ring.push(id % 32, 1);
        }
    });
    let expected = Wrong::UsedIdx { queue: 0, done: 64, in_flight: 0 };
    assert_eq!(disk.complete(0), Err(Error::Wrong(expected)));
    assert_broken(&device, &mut disk);
}

fn buffers_come_back_when_the_ring_breaks<H: Hal>() {
    let _watch = Watch::begin();
    for shape in shapes() {
        let (device, mut disk) = rig::<H>(shape);
        device.face(|face| face.holds_answers = true);
        let mut expected = Vec::new();
        for n in 0..4_u8 {
            let buffer = vec![n; 512 * (usize::from(n) + 1)];
            let place = buffer.as_ptr().addr();
            let token = disk.submit(0, Command::Read { sector: n.into(), buffer }).unwrap();
            expected.push((token, place, 512 * (usize::from(n) + 1)));
        }
        disk.notify(0).unwrap();
        assert_eq!(disk.in_flight(0), 4);
        device.used(0, 31, 1);
        let error = disk.complete(0).unwrap_err();
        assert_eq!(error, Error::Wrong(Wrong::UsedId { queue: 0, id: 31 }));
        let mut back = Vec::new();
        while let Ok(Some(done)) = disk.complete(0) {
            assert_eq!(done.result, Err(Error::Broken));
            let buffer = done.buffer.unwrap();
            back.push((done.token, buffer.as_ptr().addr(), buffer.len()));
        }
        back.sort();
        assert_eq!(back, expected);
        assert_eq!(disk.in_flight(0), 0);
        assert_eq!(memory::shared(), (0, 0));
        assert_broken(&device, &mut disk);
    }
}

fn a_broken_ring_breaks_the_disk_on_all_queues<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape { queues: Some(2), ..Shape::default() });
    let mut disk =
        attach_with::<H>(&device, Options { queues: 2, queue_depth: 8, ..Options::default() }).unwrap();
    device.face(|face| face.holds_answers = true);
    let first = disk.submit(0, Command::Read { sector: 0, buffer: vec![0; 512] }).unwrap();
    let second = disk.submit(1, Command::Write { sector: 0, buffer: vec![0; 512] }).unwrap();
    disk.notify(0).unwrap();
    disk.notify(1).unwrap();
    device.used(1, 5, 1);
    assert_eq!(disk.complete(1).unwrap_err(), Error::Wrong(Wrong::UsedId { queue: 1, id: 5 }));
    for (queue, token) in [(0, first), (1, second)] {
        let done = disk.complete(queue).unwrap().unwrap();
        assert_eq!((done.token, done.result), (token, Err(Error::Broken)));
        assert_eq!(done.buffer.unwrap().len(), 512);
        assert_eq!(disk.complete(queue), Err(Error::Broken));
    }
    assert_broken(&device, &mut disk);
}

fn rings_without_indirect_descriptors<H: Hal>() {
    let _watch = Watch::begin();
    // Filled to the last descriptor, over and over, given back in another order than taken.
    let mut shape = Shape { seg_max: Some(2), size_max: Some(1024), ..Shape::regular() };
    shape.more -= Features::INDIRECT_DESC;
    let device = FakeDevice::new(shape);
    let mut disk = attach_with::<H>(&device, Options { queue_depth: 16, ..Options::default() }).unwrap();
    device.face(|face| face.holds_answers = true);
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..if cfg!(miri) { 10 } else { 200 } {
        let mut tokens = Vec::new();
        let mut free = 16;
        loop {
            // 3 descriptors, or 4.
            let len = if rng.bool() { 1024 } else { 1536 };
            let needed = 2 + usize::div_ceil(len, 1024);
            match disk.submit(0, Command::Write { sector: 3, buffer: vec![1; len] }) {
                Ok(token) => {
                    assert!(needed <= free, "{needed} of {free}");
                    free -= needed;
                    tokens.push(token);
                }
                Err(rejected) => {
                    assert_eq!(rejected.error, Error::QueueFull);
                    assert!(needed > free, "{needed} of {free}");
                    break;
                }
            }
        }
        disk.notify(0).unwrap();
        for left in (1..=tokens.len()).rev() {
            device.deliver(0, rng.usize(..left));
        }
        let mut back: Vec<Token> = (0..tokens.len())
            .map(|_| {
                let done = disk.complete(0).unwrap().unwrap();
                done.result.unwrap();
                done.token
            })
            .collect();
        back.sort();
        assert_eq!(back, tokens);
        assert_eq!(disk.complete(0), Ok(None));
    }
}

#[allow(clippy::extra_unused_type_parameters, reason = "on_both_hals")]
fn wrap_around<H: Hal>() {
    let _watch = Watch::begin();
    // The rings' indices are 16 bits long.
    let (device, mut disk) = rig::<H>(Shape::default());
    for _ in 0..if cfg!(miri) { 40 } else { 66_000 } {
        disk.flush().unwrap();
    }
    assert_usable(&device, &mut disk);
    assert_eq!(zones(&mut disk).len(), 9);
}
