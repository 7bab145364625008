//! One socket that is connected already, without a listener.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use virtio_zbd_vhost_user::{ConnectionEnd, serve_connection};

use self::common::PATIENCE;
use self::common::peer::*;
use self::common::toy::{Event, Toy};

/// What `talk` leads to, and what the device has seen of it.
fn serve(talk: impl FnOnce(Peer, &OwnedFd)) -> (ConnectionEnd, Vec<Event>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let twin = stop.try_clone().unwrap();
    let (sender, done) = channel();
    thread::spawn(move || {
        let toy = Toy::new();
        let end = serve_connection(&toy, theirs, twin.as_fd());
        sender.send((end, toy.take_events())).unwrap();
    });
    talk(Peer::over(ours), &stop);
    done.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn a_connection_ends_as_one_of_the_sides_wants() {
    let (end, events) = serve(|peer, _| assert_eq!(peer.get(GET_QUEUE_NUM), 4));
    assert_eq!(end, ConnectionEnd::Closed);
    assert_eq!(events, [Event::Connect, Event::Disconnect]);

    let mut kept = None;
    let (end, _) = serve(|peer, stop| {
        peer.get(GET_FEATURES);
        rustix::io::write(stop, &1_u64.to_ne_bytes()).unwrap();
        kept = Some(peer);
    });
    assert_eq!(end, ConnectionEnd::Stopped);

    let (end, _) = serve(|peer, _| peer.send(SET_STATUS, 0, &[1], &[]));
    let ConnectionEnd::Broken(why) = end else { panic!("{end:?}") };
    assert_eq!(why, "SET_STATUS: the payload has 1 bytes, 8 are expected");
}
