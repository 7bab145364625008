//! The list on disks that are wrong in one thing: the check that is there for it fails.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

#[path = "../../driver/tests/common/mod.rs"]
mod common;

use common::{FakeDevice, Identity, Reply, SECTOR, Shape};
use virtio_zbd_checks::{MakesRoom, Peer, Verdict};
use virtio_zbd_driver::{Options, RequestType, VirtioBlk, ZoneState};
use virtio_zbd_spec::{Features, Status};

const FAKE: Peer = Peer { makes_room: MakesRoom::Never, ..Peer::EXACT };

fn zoned() -> FakeDevice {
    FakeDevice::new(Shape {
        capacity_sectors: 20 * 256 + 40,
        zone_sectors: 256,
        zone_capacity_sectors: 200,
        append_sectors_max: 64,
        seg_max: Some(64),
        ..Shape::default()
    })
}

fn regular() -> FakeDevice {
    FakeDevice::new(Shape { queues: Some(2), ..Shape::regular() })
}

/// Runs the list; `check` must fail, and those in `beside` may. The lie begins when the disk is in use.
#[track_caller]
fn noticed(device: &FakeDevice, peer: &Peer, lie: impl FnOnce(&FakeDevice), check: &str) {
    let mut disk = VirtioBlk::<Identity, _>::with(
        device.transport(),
        Options { queues: 2, ..Options::default() },
        virtio_zbd_driver::Spin { turns_max: 50 },
        |len_bytes| Some(vec![0; len_bytes]),
    )
    .unwrap();
    lie(device);
    let mut failed = Vec::new();
    let summary = virtio_zbd_checks::run(&mut disk, peer, 7, &mut |line| {
        if let Verdict::Failed(text) = &line.verdict {
            println!("{}: {text}", line.check);
            failed.push(line.check);
        }
    });
    assert_eq!(usize::try_from(summary.failed).unwrap(), failed.len());
    assert!(failed.contains(&check), "{check} has noticed nothing: {failed:#?}");
}

#[track_caller]
fn on_zoned(lie: impl FnOnce(&FakeDevice), check: &str) {
    noticed(&zoned(), &FAKE, lie, check);
}

#[track_caller]
fn on_regular(lie: impl FnOnce(&FakeDevice), check: &str) {
    noticed(&regular(), &Peer::EXACT_PLAIN, lie, check);
}

/// From now on this kind of request is answered OK, whatever came of it.
fn says_ok(kind: RequestType) -> impl FnOnce(&FakeDevice) {
    move |device| device.lie_to(kind, |_, reply| reply.set_status(Status::Ok.into()))
}

/// From now on this kind of request is answered OK, and nothing is done: the disk is put back to what it was.
fn does_nothing(kind: RequestType) -> impl FnOnce(&FakeDevice) {
    move |device| {
        let mut before = device.disk(|disk| disk.clone());
        device.lie(move |request, _, face| {
            if request.is(kind) {
                face.disk = before.clone();
            }
            before = face.disk.clone();
        });
    }
}

#[test]
fn a_bit_of_a_read() {
    // In the last byte of long reads only.
    let lie = |_: &common::Request, reply: &mut Reply| {
        if reply.data.len() >= 64 * SECTOR {
            *reply.data.last_mut().unwrap() ^= 1;
        }
    };
    on_regular(|device| device.lie_to(RequestType::In, lie), "plain: reads and writes of all sizes");
    on_regular(|device| device.lie_to(RequestType::In, lie), "plain: long transfers");
}

#[test]
fn writes_beyond_their_end() {
    let lie = |device: &FakeDevice| {
        device.lie(|request, _, face| {
            let end = usize::try_from(request.sector).unwrap() * SECTOR + request.data.len();
            if request.is(RequestType::Out) && end < face.disk.bytes.len() {
                face.disk.bytes[end] ^= 1;
            }
        });
    };
    on_regular(lie, "plain: reads and writes of all sizes");
    on_regular(lie, "plain: reads and writes at random places");
}

#[test]
fn requests_that_do_nothing() {
    on_regular(does_nothing(RequestType::Out), "plain: reads and writes of all sizes");
    on_regular(does_nothing(RequestType::Out), "plain: many requests on all queues");
    on_regular(does_nothing(RequestType::Discard), "plain: discard");
    on_regular(does_nothing(RequestType::WriteZeroes), "plain: write zeroes");
    on_regular(does_nothing(RequestType::WriteZeroes), "plain: write zeroes and unmap");
    on_zoned(does_nothing(RequestType::ZoneOpen), "zoned: open in every state (V15)");
    on_zoned(does_nothing(RequestType::ZoneClose), "zoned: close in every state (V16, G2)");
    on_zoned(does_nothing(RequestType::ZoneFinish), "zoned: finish in every state (V17, G1)");
    on_zoned(does_nothing(RequestType::ZoneReset), "zoned: reset in every state (V18)");
    on_zoned(does_nothing(RequestType::ZoneResetAll), "zoned: reset all in every state (V19)");
    on_zoned(does_nothing(RequestType::ZoneAppend), "zoned: appends one by one (V23)");
    on_zoned(does_nothing(RequestType::ZoneAppend), "zoned: many appends in flight on all queues (V23)");
    on_zoned(does_nothing(RequestType::ZoneReset), "random: requests beside a model");
}

#[test]
fn refusals_that_are_not_given() {
    on_zoned(says_ok(RequestType::ZoneOpen), "zoned: open in every state (V15)");
    on_zoned(says_ok(RequestType::ZoneOpen), "zoned: the open limit, explicitly (V7, V15)");
    on_zoned(says_ok(RequestType::ZoneClose), "zoned: close in every state (V16, G2)");
    on_zoned(says_ok(RequestType::ZoneClose), "zoned: conventional zones are not managed (V13, V14)");
    on_zoned(says_ok(RequestType::Out), "zoned: a write in every state (V20)");
    on_zoned(says_ok(RequestType::Out), "zoned: writes beside the write pointer (V26)");
    on_zoned(says_ok(RequestType::Out), "zoned: writes of less than the granularity (V26)");
    on_zoned(says_ok(RequestType::Out), "zoned: a zone written full, and beyond its capacity (V22)");
    on_zoned(says_ok(RequestType::Out), "zoned: a write across two zones (V25)");
    on_zoned(says_ok(RequestType::Out), "zoned: the active limit (V8, V15)");
    on_zoned(says_ok(RequestType::Out), "random: requests beside a model");
    on_zoned(says_ok(RequestType::ZoneAppend), "zoned: an append to a finished zone");
    on_zoned(says_ok(RequestType::ZoneAppend), "zoned: an append beyond the capacity (V22)");
    on_zoned(says_ok(RequestType::ZoneFinish), "zoned: the active limit (V8, V15)");
}

#[test]
fn a_status_beside_the_right_one() {
    let other = |kind: RequestType, from: Status, to: Status| {
        move |device: &FakeDevice| {
            device.lie_to(kind, move |_, reply| {
                if reply.in_header.last() == Some(&from.into()) {
                    reply.set_status(to.into());
                }
            });
        }
    };
    let lie = other(RequestType::Out, Status::ZoneUnalignedWp, Status::ZoneInvalidCmd);
    on_zoned(lie, "zoned: writes beside the write pointer (V26)");
    on_zoned(lie, "random: requests beside a model");
    let lie = other(RequestType::Out, Status::ZoneInvalidCmd, Status::IoErr);
    on_zoned(lie, "zoned: a zone written full, and beyond its capacity (V22)");
    on_zoned(lie, "zoned: the last zone, a runt or not");
    let lie = other(RequestType::ZoneOpen, Status::ZoneActiveResource, Status::ZoneOpenResource);
    on_zoned(lie, "zoned: the active limit (V8, V15)");
    let lie = other(RequestType::In, Status::ZoneInvalidCmd, Status::IoErr);
    on_zoned(lie, "zoned: reads across two zones (V25)");
    on_zoned(lie, "zoned: from the last conventional zone into a sequential one (V25)");
}

/// The configuration names other limits than the device keeps.
#[test]
fn other_limits() {
    let open = |open_max| move |device: &FakeDevice| device.disk(|disk| disk.shape.open_max = open_max);
    on_zoned(open(4), "zoned: the open limit, explicitly (V7, V15)");
    on_zoned(open(4), "zoned: the open limit, implicitly (V27)");
    on_zoned(open(2), "zoned: the open limit, explicitly (V7, V15)");
    let active =
        |active_max| move |device: &FakeDevice| device.disk(|disk| disk.shape.active_max = active_max);
    on_zoned(active(5), "zoned: the active limit (V8, V15)");
    on_zoned(active(3), "zoned: the active limit (V8, V15)");
}

#[test]
fn data_that_comes_back_after_a_reset() {
    for kind in [RequestType::ZoneReset, RequestType::ZoneResetAll] {
        let lie = |device: &FakeDevice| {
            let mut before = device.disk(|disk| disk.bytes.clone());
            device.lie(move |request, _, face| {
                if request.is(kind) {
                    face.disk.bytes.clone_from(&before);
                }
                before.clone_from(&face.disk.bytes);
            });
        };
        on_zoned(lie, "zoned: a reset leaves zeros (V18, V19)");
    }
}

#[test]
fn data_that_a_finish_loses() {
    let lie = |device: &FakeDevice| {
        device.lie(|request, _, face| {
            if let (true, Some(zone)) =
                (request.is(RequestType::ZoneFinish), face.disk.zone_of(request.sector))
            {
                let start = usize::try_from(face.disk.zones[zone].start).unwrap() * SECTOR;
                face.disk.bytes[start..start + SECTOR].fill(0);
            }
        });
    };
    on_zoned(lie, "zoned: data stays through close, open and finish (V30)");
}

#[test]
fn states_of_another_name() {
    let report = |from: ZoneState, to: ZoneState| {
        move |device: &FakeDevice| {
            device.lie_to(RequestType::ZoneReport, move |_, reply| {
                for descriptor in reply.data.get_mut(64..).unwrap_or_default().chunks_exact_mut(64) {
                    if descriptor[25] == u8::from(from) {
                        descriptor[25] = to.into();
                    }
                }
            });
        }
    };
    let lie = report(ZoneState::ImplicitOpen, ZoneState::ExplicitOpen);
    on_zoned(lie, "zoned: a write in every state (V20)");
    on_zoned(lie, "random: requests beside a model");
    on_zoned(report(ZoneState::ExplicitOpen, ZoneState::ImplicitOpen), "zoned: open in every state (V15)");
    on_zoned(report(ZoneState::Full, ZoneState::ReadOnly), "zoned: finish in every state (V17, G1)");
}

#[test]
fn reports_that_begin_elsewhere() {
    // As if the sector named its own zone's successor: the driver sees that, and the list reports it.
    let lie = |device: &FakeDevice| {
        device.lie(|request, reply, face| {
            if request.is(RequestType::ZoneReport) && request.sector != 0 {
                let honest = face.disk.request(request.kind, 0, &[], request.room(), true);
                reply.data[..honest.data.len()].copy_from_slice(&honest.data);
            }
        });
    };
    on_zoned(lie, "zoned: reports from the middle, the last zone, beyond the disk");
}

#[test]
fn appends_that_land_elsewhere() {
    let lie = |device: &FakeDevice| {
        device.lie_to(RequestType::ZoneAppend, |request, reply| {
            // A block before the place where the data is, inside the zone.
            let mut sector = [0; 8];
            sector.copy_from_slice(&reply.in_header[..8]);
            let before = u64::from_le_bytes(sector).saturating_sub(8).max(request.sector);
            reply.in_header[..8].copy_from_slice(&before.to_le_bytes());
        });
    };
    on_zoned(lie, "zoned: an append in every state (V20)");
    on_zoned(lie, "zoned: many appends in flight on all queues (V23)");
    on_zoned(lie, "random: requests beside a model");
}

#[test]
fn an_id_that_changes() {
    let lie = |device: &FakeDevice| {
        let mut count = 0;
        device.lie_to(RequestType::GetId, move |_, reply| {
            count += 1;
            reply.data[0] = b'0' + count % 10;
        });
    };
    on_regular(lie, "plain: id");
}

#[test]
fn a_request_that_is_forgotten() {
    // The fiftieth read on queue 1 is never answered.
    let lie = |device: &FakeDevice| {
        let mut count = 0;
        device.lie(move |request, reply, _| {
            if request.queue == 1 && request.is(RequestType::In) {
                count += 1;
                if count == 50 {
                    reply.drop_it();
                }
            }
        });
    };
    on_regular(lie, "plain: queues filled to the brim");
}

#[test]
fn another_disk() {
    noticed(
        &zoned(),
        &Peer { expected: Peer::PLAIN.expected, ..FAKE },
        |_| {},
        "plain: the disk is what it should be",
    );
    noticed(&regular(), &FAKE, |_| {}, "plain: the disk is what it should be");
    // G3.
    let more = Shape::default().more | Features::WRITE_ZEROES;
    let device = FakeDevice::new(Shape { more, ..Shape::default() });
    noticed(&device, &FAKE, |_| {}, "plain: the disk is what it should be");
}
