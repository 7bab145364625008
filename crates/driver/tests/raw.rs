//! The raw way to a device: what is sent arrives as it is, what comes back is the device's, and no device gets hold of more
//! than it was lent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::rig::TURNS_MAX;
use common::{FakeDevice, FakeTransport, SECTOR, Shape, Watch, memory, on_both_hals};
use virtio_drivers::transport::DeviceStatus;
use virtio_zbd_driver::raw::{CONFIG_LEN_BYTES, Chain, RawDevice, Started};
use virtio_zbd_driver::{Error, Hal, ProbeError, Spin, Waited, Wrong};
use virtio_zbd_spec::{Features, OutHeader, RequestType, Status};
use zerocopy::IntoBytes;

on_both_hals!(
    requests_in_all_framings,
    a_request_that_nobody_knows,
    v4_refused_and_started_again,
    features_that_are_not_offered,
    the_configuration_space,
    a_short_configuration_space,
    many_chains_answered_out_of_order,
    queues_without_mq,
    a_request_that_is_never_answered,
    #[cfg_attr(miri, ignore = "millions of looks at the status")]
    a_device_that_never_resets,
    a_device_that_asks_for_a_reset,
    wrong_words_in_the_used_ring,
    bytes_beside_what_is_writable,
    memory_that_is_not_there,
    chains_that_do_not_fit,
);

type Raw<H> = RawDevice<H, FakeTransport>;

fn raw<H: Hal>(device: &FakeDevice) -> Raw<H> {
    RawDevice::new(device.transport(), 16, Spin { turns_max: TURNS_MAX }).unwrap()
}

/// A device of this shape, running with all that it offers.
fn running<H: Hal>(shape: Shape) -> (FakeDevice, Raw<H>) {
    let device = FakeDevice::new(shape);
    let mut raw = raw::<H>(&device);
    let offered = raw.offered().unwrap();
    assert_eq!(raw.start(offered), Ok(Started::Accepted));
    assert!(raw.is_running());
    (device, raw)
}

fn header(kind: RequestType, sector: u64) -> Vec<u8> {
    let header =
        OutHeader { request_type: u32::from(kind).into(), reserved: 0.into(), sector: sector.into() };
    header.as_bytes().to_vec()
}

fn flush<H: Hal>(raw: &mut Raw<H>) -> Result<u8, Error> {
    let mut status = [0xff];
    raw.send(0, &[&header(RequestType::Flush, 0)], &mut [&mut status])?;
    Ok(status[0])
}

fn requests_in_all_framings<H: Hal>() {
    let _watch = Watch::begin();
    for indirect in [false, true] {
        let mut shape = Shape { seg_max: None, ..Shape::default() };
        shape.more.set(Features::INDIRECT_DESC, indirect);
        let (device, mut raw) = running::<H>(shape);
        let data: Vec<u8> = (0..4096_usize).map(|at| at.to_le_bytes()[0] ^ 0x3c).collect();
        let write = [header(RequestType::Out, 128), data.clone()].concat();
        // The header in three pieces, the last of them with some of the data.
        let pieces = [&write[..1], &write[1..7], &write[7..700], &write[700..]];
        let mut status = [0xff];
        raw.send(0, &pieces, &mut [&mut status]).unwrap();
        assert_eq!(status[0], u8::from(Status::Ok));
        assert_eq!(device.disk(|disk| disk.zones[2].wp), 128 + 8);
        let logged = device.take_log().pop().unwrap();
        assert_eq!((logged.readable, logged.writable), (vec![1, 6, 693, write.len() - 700], vec![1]));

        // Data and status share a piece; what was in it before is the device's to overwrite.
        let (mut first, mut last) = ([0xee; 5], vec![0xee; 4096 - 5 + 1]);
        let used =
            raw.send(0, &[&header(RequestType::In, 128)], &mut [&mut first, last.as_mut_slice()]).unwrap();
        assert_eq!(used, 4097);
        assert_eq!(last.pop(), Some(u8::from(Status::Ok)));
        assert_eq!([&first[..], &last].concat(), data);
        assert_eq!(device.take_log().pop().unwrap().writable, [5, 4092]);
    }
}

fn a_request_that_nobody_knows<H: Hal>() {
    let _watch = Watch::begin();
    let (_device, mut raw) = running::<H>(Shape::default());
    let mut unknown = header(RequestType::In, 0);
    unknown[0] = 99;
    let (mut data, mut status) = ([0xee; SECTOR], [0xff]);
    let used = raw.send(0, &[&unknown], &mut [&mut data, &mut status]).unwrap();
    // Nothing is written before the status, so none of it counts (2.7.8.2); what was there stays.
    assert_eq!((used, data, status[0]), (0, [0xee; SECTOR], u8::from(Status::Unsupp)));
}

fn v4_refused_and_started_again<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let mut raw = raw::<H>(&device);
    let offered = raw.offered().unwrap();
    assert_eq!(offered, Shape::default().features().bits());
    for _ in 0..2 {
        assert_eq!(raw.start(offered & !Features::ZONED.bits()), Ok(Started::Refused));
        assert_eq!(device.accepted(), Some(Shape::default().features() - Features::ZONED));
        assert!(device.statuses().last().unwrap().contains(DeviceStatus::FAILED), "R4");
        assert_eq!(flush(&mut raw), Err(Error::Broken));
        assert_eq!(raw.start(offered), Ok(Started::Accepted));
        assert_eq!(flush(&mut raw), Ok(0));
    }
    drop(raw);
    assert_eq!(device.statuses().last(), Some(&DeviceStatus::empty()));
    assert_eq!(device.ring_sizes(), [0_u16; 0]);
}

fn features_that_are_not_offered<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    device.face(|face| face.checks_features = false);
    let mut raw = raw::<H>(&device);
    let odd = raw.offered().unwrap() | 1 << 63 | 1 << 50 | Features::SECURE_ERASE.bits();
    assert_eq!(raw.start(odd), Ok(Started::Accepted));
    assert_eq!(device.accepted().map(|features| features.bits()), Some(odd));
    assert_eq!(flush(&mut raw), Ok(0));
}

fn the_configuration_space<H: Hal>() {
    let _watch = Watch::begin();
    let mut shape = Shape::default();
    shape.more |= Features::CONFIG_WCE;
    let device = FakeDevice::new(shape.clone());
    let mut raw = raw::<H>(&device);
    let expected: [u8; CONFIG_LEN_BYTES] = shape.config().as_bytes().try_into().unwrap();
    assert_eq!(raw.config(), Ok((expected, CONFIG_LEN_BYTES)));
    // Bytes that mean nothing are read, too.
    device.face(|face| face.config.as_mut().unwrap().copy_from_slice(&[7; CONFIG_LEN_BYTES]));
    assert_eq!(raw.config(), Ok(([7; CONFIG_LEN_BYTES], CONFIG_LEN_BYTES)));
    raw.write_config(32, 1).unwrap();
    assert_eq!(raw.config().unwrap().0[31..34], [7, 1, 7]);
    device.face(|face| face.generation = common::Generation::Restless(0));
    assert_eq!(raw.config(), Err(ProbeError::ConfigUnstable.into()));
}

fn a_short_configuration_space<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::regular());
    for (len, seen) in [(60, 60), (24, 24), (27, 26), (95, 95), (8, 8), (3, 0), (0, 0)] {
        device.face(|face| face.config = Some(vec![9; len]));
        let mut expected = [0; CONFIG_LEN_BYTES];
        expected[..seen].fill(9);
        assert_eq!(raw::<H>(&device).config(), Ok((expected, seen)));
    }
    device.face(|face| face.config = None);
    let mut raw = raw::<H>(&device);
    assert_eq!(raw.config(), Ok(([0; CONFIG_LEN_BYTES], 0)));
    assert_eq!(raw.write_config(32, 1), Err(Error::Transport(virtio_drivers::Error::ConfigSpaceMissing)));
}

fn many_chains_answered_out_of_order<H: Hal>() {
    let _watch = Watch::begin();
    for indirect in [false, true] {
        let mut shape = Shape { queues: Some(3), ..Shape::default() };
        shape.more.set(Features::INDIRECT_DESC, indirect);
        let device = FakeDevice::new(shape);
        device.face(|face| face.holds_answers = true);
        // Whoever waits has the last one of its queue come first.
        let wait = |transport: &mut FakeTransport, queue: u16, turn: u64| {
            let waiting = transport.device().waiting(queue);
            if waiting > 0 {
                transport.device().deliver(queue, waiting - 1);
            }
            if turn < TURNS_MAX { Waited::Again } else { Waited::GiveUp }
        };
        let mut raw = RawDevice::<H, _>::new(device.transport(), 16, wait).unwrap();
        let offered = raw.offered().unwrap();
        assert_eq!(raw.start(offered), Ok(Started::Accepted));
        assert_eq!((raw.queue_count(), raw.queue_depth(0), raw.queue_depth(3)), (3, 16, 0));
        for sector in 0..8_u64 {
            let byte = sector.to_le_bytes()[0];
            device.disk(|disk| disk.bytes[usize::from(byte) * SECTOR] = byte + 1);
        }
        for _ in 0..3 {
            let mut chains: Vec<Chain> = (0..8_u16)
                .map(|at| Chain {
                    queue: at % 3,
                    readable: vec![header(RequestType::In, at.into())],
                    writable: vec![vec![0; SECTOR], vec![0xff]],
                    used_len_bytes: None,
                })
                .collect();
            raw.send_all(&mut chains).unwrap();
            for (byte, chain) in (1_u8..).zip(&chains) {
                assert_eq!(chain.used_len_bytes, Some(513));
                assert_eq!((chain.writable[0][0], chain.writable[1][0]), (byte, 0));
            }
        }
        assert_eq!((0..3).map(|queue| raw.in_flight(queue)).sum::<usize>(), 0);
    }
}

fn queues_without_mq<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape { queues: Some(3), ..Shape::default() });
    let mut raw = raw::<H>(&device);
    let offered = raw.offered().unwrap();
    assert_eq!(raw.start(offered & !Features::MQ.bits()), Ok(Started::Accepted));
    assert_eq!(raw.queue_count(), 1);
    assert!(matches!(raw.push(1, &[b"x"], &[]), Err(Error::Invalid(_))));
    assert_eq!(raw.start(offered), Ok(Started::Accepted));
    assert_eq!(raw.queue_count(), 3);
    // One that says that it has more queues than there are.
    device.set_config(|config| config.num_queues.set(u16::MAX));
    assert_eq!(raw.start(offered), Ok(Started::Accepted));
    assert_eq!(raw.queue_count(), 3);
    device.face(|face| face.queue_sizes = vec![2]);
    assert_eq!(raw.start(offered), Err(ProbeError::QueueTooSmall { queue: 0, found: 2, expected: 4 }.into()));
    assert!(!raw.is_running() && !raw.is_lost());
}

fn a_request_that_is_never_answered<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut raw) = running::<H>(Shape::default());
    device.lie_to(RequestType::Flush, |_, reply| reply.drop_it());
    assert_eq!(flush(&mut raw), Err(Error::TimedOut));
    assert_eq!((device.held(), raw.in_flight(0)), (0, 0), "the device was reset");
    assert_eq!(flush(&mut raw), Err(Error::Broken));
    assert_eq!(raw.complete(0), Err(Error::Broken));
    device.be_honest();
    let offered = raw.offered().unwrap();
    assert_eq!(raw.start(offered), Ok(Started::Accepted));
    assert_eq!(flush(&mut raw), Ok(0));
}

fn a_device_that_never_resets<H: Hal>() {
    let watch = Watch::begin();
    let (device, mut raw) = running::<H>(Shape::default());
    device.lie_to(RequestType::Flush, |_, reply| reply.drop_it());
    device.face(|face| face.status_after_reset = DeviceStatus::DEVICE_NEEDS_RESET);
    assert_eq!(flush(&mut raw), Err(Error::TimedOut));
    assert!(raw.is_lost() && raw.transport().is_none());
    assert_eq!(raw.offered(), Err(Error::Broken));
    assert_eq!(raw.config(), Err(Error::Broken));
    assert_eq!(raw.start(0), Err(Error::Broken));
    assert_eq!(raw.stop(), Err(Error::Broken));
    // Another device in its place.
    let other = FakeDevice::new(Shape::default());
    raw.attach(other.transport()).unwrap();
    let offered = raw.offered().unwrap();
    assert_eq!(raw.start(offered), Ok(Started::Accepted));
    assert_eq!(flush(&mut raw), Ok(0));
    assert_eq!(raw.attach(device.transport()), Err(ProbeError::NoReset.into()));
    assert_eq!(other.ring_sizes(), [0_u16; 0], "the one that was left is reset");
    drop(raw);
    watch.allow_left();
}

fn a_device_that_asks_for_a_reset<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut raw) = running::<H>(Shape::default());
    device.lie(|_, reply, face| {
        reply.drop_it();
        face.status |= DeviceStatus::DEVICE_NEEDS_RESET;
    });
    assert_eq!(flush(&mut raw), Err(Error::NeedsReset));
    assert_eq!(flush(&mut raw), Err(Error::Broken));
}

fn wrong_words_in_the_used_ring<H: Hal>() {
    let _watch = Watch::begin();
    for indirect in [false, true] {
        let mut shape = Shape::default();
        shape.more.set(Features::INDIRECT_DESC, indirect);
        type Lie = fn(&mut common::Reply);
        type Expected = fn(Wrong) -> bool;
        let lies: [(Lie, Expected); 4] = [
            (|reply| reply.used[0].0 = 77, |wrong| wrong == Wrong::UsedId { queue: 0, id: 77 }),
            (|reply| reply.used[0].0 |= 1 << 16, |wrong| matches!(wrong, Wrong::UsedId { .. })),
            (
                |reply| reply.set_used_len(2),
                |wrong| wrong == Wrong::UsedLen { found_bytes: 2, room_bytes: 1 },
            ),
            (|reply| reply.idx_jump = 1, |wrong| wrong == Wrong::UsedIdx { queue: 0, done: 2, in_flight: 1 }),
        ];
        for (lie, expected) in lies {
            let (device, mut raw) = running::<H>(shape.clone());
            device.lie_to(RequestType::Flush, move |_, reply| lie(reply));
            let Err(Error::Wrong(wrong)) = flush(&mut raw) else { panic!("it went well") };
            assert!(expected(wrong), "{wrong:?}");
            assert_eq!(device.ring_sizes(), [0_u16; 0], "the device was reset");
            assert_eq!(flush(&mut raw), Err(Error::Broken));
        }
    }
}

fn bytes_beside_what_is_writable<H: Hal>() {
    let _watch = Watch::begin();
    // Before the piece, behind it, in the header, in the middle of the chain.
    for offset in [-1_i64, 1, 31, -33, -40] {
        let (device, mut raw) = running::<H>(Shape::default());
        device.lie(move |request, _, _| {
            let status = request.writable.last().unwrap();
            memory::write(status.addr.wrapping_add_signed(offset), &[1]);
        });
        assert_eq!(flush(&mut raw), Err(Error::Wrong(Wrong::WrittenBeside { queue: 0 })), "{offset}");
        assert_eq!(device.held(), 0, "the device was reset");
    }
}

fn memory_that_is_not_there<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape { queues: Some(2), ..Shape::default() });
    let mut raw = raw::<H>(&device);
    let offered = raw.offered().unwrap();
    for allocations in 0..4 {
        memory::set_dma_allocations_left(Some(allocations));
        assert_eq!(raw.start(offered), Err(Error::NoMemory), "{allocations}");
        assert_eq!(device.ring_sizes(), [0_u16; 0], "the device was reset");
    }
    memory::set_dma_allocations_left(Some(4));
    assert_eq!(raw.start(offered), Ok(Started::Accepted));
    assert_eq!(flush(&mut raw), Err(Error::NoMemory));
    memory::set_dma_allocations_left(None);
    assert_eq!(flush(&mut raw), Ok(0));
}

fn chains_that_do_not_fit<H: Hal>() {
    let _watch = Watch::begin();
    for indirect in [false, true] {
        let mut shape = Shape { seg_max: None, ..Shape::default() };
        shape.more.set(Features::INDIRECT_DESC, indirect);
        let (device, mut raw) = running::<H>(shape);
        let flush_header = header(RequestType::Flush, 0);
        let bytes: Vec<&[u8]> = flush_header.chunks(1).collect();
        // 16 descriptors are what the queue has: one for each byte of the header leaves none for the status.
        assert_eq!(raw.send(0, &bytes, &mut [&mut [0xff]]), Err(Error::QueueFull));
        assert_eq!(raw.send(0, &[], &mut []), Err(Error::QueueFull));
        let pieces = [&[&flush_header[..2]], &bytes[2..]].concat();
        assert_eq!(raw.send(0, &pieces, &mut [&mut [0xff]]), Ok(1));
        // Chains that fill it, and one more: those before it can't be taken out of the ring, so the device is reset.
        device.face(|face| face.holds_answers = true);
        let chain = Chain { readable: vec![flush_header], writable: vec![vec![0xff]], ..Chain::default() };
        let most = if indirect { 16 } else { 8 };
        assert_eq!(raw.send_all(&mut vec![chain.clone(); most + 1]), Err(Error::QueueFull));
        assert!(!raw.is_running());
        let offered = raw.offered().unwrap();
        assert_eq!(raw.start(offered), Ok(Started::Accepted));
        device.face(|face| face.holds_answers = false);
        assert_eq!(raw.send_all(&mut vec![chain; most]), Ok(()));
    }
}
