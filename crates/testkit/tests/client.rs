//! The vhost-user client against a backend on rust-vmm's protocol code, and against scripted peers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests, too")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::backend::{config, serve, socket_path};
use virtio_zbd_spec::{DeviceStatus, Features, Status};
use virtio_zbd_testkit::{
    Client, ClientOptions, Error, Framing, GuestRam, Handshake, Notify, PROTOCOL_FEATURES_BIT,
    ProtocolFeatures, QueueOptions, Request,
};

const SHORT: Duration = Duration::from_millis(200);

#[test]
fn a_whole_session_over_two_queues() {
    for notify in [Notify::Eventfd, Notify::CallPipe] {
        let dir = tempfile::tempdir().unwrap();
        let (seen, backend) = serve(&socket_path(&dir), false);
        let queue = QueueOptions { size: 64, base: 65_500, notify, ..QueueOptions::default() };
        let ram = Some(GuestRam::with_hole(1 << 20, 1 << 20));
        let options = ClientOptions { queues: 2, queue, ram, ..ClientOptions::default() };
        let mut client = Client::connect(socket_path(&dir), options).unwrap();

        assert_eq!(client.config(), &config());
        let accepted = Features::ZONED
            | Features::FLUSH
            | Features::VERSION_1
            | Features::EVENT_IDX
            | Features::INDIRECT_DESC;
        assert_eq!(client.features(), accepted);
        assert_eq!(
            client.protocol_features(),
            ProtocolFeatures::MQ | ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIG
        );

        client.queue(1).framing = Framing::Random(3);
        for queue in [0, 1] {
            let data = [u8::try_from(queue).unwrap() + 1; 4096];
            client.call(queue, Request::write(8, &data)).unwrap().expect(Status::Ok);
            let read = client.call(queue, Request::read(8, 4096)).unwrap().expect(Status::Ok);
            assert_eq!(read.data, data);
        }
        let batch: Vec<_> = (0..20).map(|_| Request::zone_append(256, &[5; 512])).collect();
        let tokens = client.submit_batch(0, batch).unwrap();
        let done = client.complete_all(0).unwrap();
        for (i, (token, completion)) in done.into_iter().enumerate() {
            assert_eq!(token, tokens[i]);
            let sector = 256 + u64::try_from(i).unwrap();
            assert_eq!(completion.expect(Status::Ok).append_sector, Some(sector));
        }
        let token = client.submit(1, Request::get_id()).unwrap();
        let (completed, id) = client.complete(1, SHORT).unwrap();
        assert_eq!((completed, &id.data[..5]), (token, b"mini\0".as_slice()));

        let zones = client.zone_report_all().unwrap();
        assert_eq!(zones.len(), 8);
        assert_eq!(zones[1].z_wp, 276);
        let config_bytes = client.handshake().config_bytes(72, 4).unwrap();
        assert_eq!(config_bytes, 256_u32.to_le_bytes());
        client.handshake().set_config(32, &[1]).unwrap();
        assert_eq!(client.refresh_config().unwrap(), &config());

        // 2 calls, 20 appends, 3 reports on queue 0; 2 calls, the ID on queue 1. The base is 16 bits wide, the mini
        // backend adds up without wrapping.
        assert_eq!(client.stop().unwrap(), [65_500 + 25, 65_500 + 3]);
        client.disconnect();
        backend.join().unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.features, (accepted | PROTOCOL_FEATURES_BIT).bits());
        assert_eq!(
            seen.calls,
            [
                "set_owner",
                "set_protocol_features 0x209",
                "set_mem_table 2",
                "set_vring_enable 0 true",
                "set_vring_enable 1 true",
                "set_config 32 [1] 1"
            ]
        );
    }
}

#[test]
fn what_is_not_wanted_is_not_negotiated() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, backend) = serve(&socket_path(&dir), false);
    let options = ClientOptions {
        features: Features::VERSION_1,
        protocol_features: ProtocolFeatures::CONFIG,
        queue: QueueOptions { event_idx: false, ..QueueOptions::default() },
        ..ClientOptions::default()
    };
    let mut client = Client::connect(socket_path(&dir), options).unwrap();
    assert_eq!(client.features(), Features::VERSION_1);
    assert_eq!(client.protocol_features(), ProtocolFeatures::CONFIG);
    assert!(!client.queue(0).ring.event_idx());
    client.call(0, Request::flush()).unwrap().expect(Status::Ok);
    // The queue runs on in another thread.
    let mut queue = client.take_queues().remove(0);
    thread::spawn(move || queue.call(Request::flush()).unwrap().expect(Status::Ok)).join().unwrap();
    drop(client);
    backend.join().unwrap();
    let features = (Features::VERSION_1 | PROTOCOL_FEATURES_BIT).bits();
    assert_eq!(seen.lock().unwrap().features, features);
}

#[test]
fn a_refusal_of_the_features_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (_, backend) = serve(&socket_path(&dir), true);
    let Err(error) = Client::connect(socket_path(&dir), ClientOptions::default()) else {
        panic!("the features were accepted");
    };
    assert!(matches!(error, Error::Refused { message: "SET_FEATURES" }), "{error}");
    backend.join().unwrap();
}

/// Step by step, and on after a refusal: the connection is still there.
#[test]
fn steps_can_be_taken_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, backend) = serve(&socket_path(&dir), true);
    let mut handshake = Handshake::connect(socket_path(&dir), SHORT).unwrap();
    let offered = handshake.features().unwrap();
    assert!(offered.contains(PROTOCOL_FEATURES_BIT | Features::ZONED));
    handshake.negotiate_protocol(ProtocolFeatures::all()).unwrap();
    for _ in 0..2 {
        let error = handshake.set_features(offered - Features::ZONED).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }
    assert_eq!(handshake.queue_num().unwrap(), 2);
    handshake.set_owner().unwrap();
    handshake.set_mem_table(&GuestRam::new(1 << 20)).unwrap();

    // GET_QUEUE_NUM once more, by hand.
    handshake.send_raw(17, 1, &[], &[]).unwrap();
    let reply = handshake.recv_raw().unwrap();
    assert_eq!((reply.code, reply.flags, reply.value()), (17, 5, Some(2)));
    drop(handshake);
    backend.join().unwrap();
    assert_eq!(seen.lock().unwrap().calls, ["set_protocol_features 0x80209", "set_owner", "set_mem_table 1"]);
}

/// A peer that reads messages and answers with what `answer` gives for their number, payload and count.
fn scripted(
    mut peer: UnixStream,
    mut answer: impl FnMut(u32, &[u8], usize) -> Option<u64> + Send + 'static,
) -> JoinHandle<Vec<u32>> {
    thread::spawn(move || {
        let mut codes = Vec::new();
        let mut header = [0; 12];
        while peer.read_exact(&mut header).is_ok() {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            let mut payload = vec![0; usize::try_from(word(8)).unwrap()];
            peer.read_exact(&mut payload).unwrap();
            codes.push(word(0));
            if let Some(value) = answer(word(0), &payload, codes.len()) {
                let reply = [word(0), 5, 8].map(u32::to_ne_bytes).concat();
                peer.write_all(&[reply, value.to_ne_bytes().to_vec()].concat()).unwrap();
            }
        }
        codes
    })
}

#[test]
fn the_status_is_read_back() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut status = 0;
    // FEATURES_OK is never taken.
    let peer = scripted(theirs, move |code, payload, _| match code {
        1 => Some((Features::VERSION_1 | PROTOCOL_FEATURES_BIT).bits()),
        15 => Some(ProtocolFeatures::STATUS.bits()),
        39 => {
            status = u64::from_ne_bytes(payload.try_into().unwrap()) & !8;
            None
        }
        40 => Some(status),
        _ => None,
    });
    let handshake = Handshake::from_stream(ours, SHORT).unwrap();
    let Err(error) = Client::start(handshake, ClientOptions::default()) else {
        panic!("FEATURES_OK was not taken");
    };
    assert!(matches!(error, Error::FeaturesNotOk { status: 3 }), "{error}");
    assert_eq!(peer.join().unwrap(), [3, 1, 15, 16, 39, 40, 2, 39, 40]);
}

#[test]
fn status_messages_are_exchanged_by_hand() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let peer = scripted(theirs, |code, _, _| Some(if code == 39 { 0 } else { 0x4b }));
    let mut handshake = Handshake::from_stream(ours, SHORT).unwrap();
    assert_eq!(handshake.set_status(DeviceStatus::DRIVER_OK, true).unwrap(), 0);
    let expected = DeviceStatus::ACKNOWLEDGE
        | DeviceStatus::DRIVER
        | DeviceStatus::FEATURES_OK
        | DeviceStatus::NEEDS_RESET;
    assert_eq!(handshake.status().unwrap(), expected);
    drop(handshake);
    assert_eq!(peer.join().unwrap(), [39, 40]);
}

#[test]
fn a_silent_backend_costs_the_timeout_only() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(socket_path(&dir)).unwrap();
    let options = || ClientOptions { timeout: SHORT, ..ClientOptions::default() };
    let Err(error) = Client::connect(socket_path(&dir), options()) else {
        panic!("nobody accepted");
    };
    assert!(matches!(error, Error::NoAnswer { message: "GET_FEATURES", .. }), "{error}");

    // By hand, the same: and a hang-up is not the same as silence.
    let handshake = Handshake::connect(socket_path(&dir), SHORT).unwrap();
    handshake.send_bytes(b"not a message", &[]).unwrap();
    let Err(Error::Raw { source, .. }) = handshake.recv_raw() else { panic!("an answer") };
    assert!(matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{source}");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handshake = Handshake::from_stream(ours, SHORT).unwrap();
    drop(theirs);
    let Err(Error::Raw { source, .. }) = handshake.recv_raw() else { panic!("an answer") };
    assert_eq!(source.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn connecting_waits_for_the_socket_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let Err(error) = Handshake::connect(socket_path(&dir), Duration::from_millis(50)) else {
        panic!("there is no socket");
    };
    assert!(matches!(error, Error::Connect { timeout_ms: 50, .. }), "{error}");

    let path = socket_path(&dir);
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        serve(&path, false)
    });
    let mut handshake = Handshake::connect(socket_path(&dir), Duration::from_secs(10)).unwrap();
    assert!(handshake.features().unwrap().contains(Features::ZONED));
    drop(handshake);
    late.join().unwrap().1.join().unwrap();
}

#[test]
fn file_descriptors_go_with_raw_messages() {
    use std::os::fd::AsFd;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handshake = Handshake::from_stream(ours, SHORT).unwrap();
    let (mut end, sent) = UnixStream::pair().unwrap();
    let fds = [sent.as_fd(), sent.as_fd()];
    handshake.send_raw(99, 1, &[1, 2, 3], &fds).unwrap();
    drop(sent);

    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let received = rustix::net::recvmsg(
        &theirs,
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        rustix::net::RecvFlags::empty(),
    )
    .unwrap();
    assert_eq!(bytes[..received.bytes], [99, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3]);
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(fds) = message {
            files.extend(fds.map(std::fs::File::from));
        }
    }
    assert_eq!(files.len(), 2);
    files[1].write_all(b"!").unwrap();
    drop(files);
    let mut found = Vec::new();
    end.read_to_end(&mut found).unwrap();
    assert_eq!(found, b"!");
}
