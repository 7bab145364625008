//! Bringing up `lo`, in the kernel's own words: no tool of the host is needed for it.

use anyhow::Result;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};

/// `RTM_NEWLINK`, rtnetlink(7).
const NEW_LINK: u16 = 16;
/// `NLM_F_REQUEST`, netlink(7).
const REQUEST: u16 = 1;
/// `IFF_UP`, netdevice(7).
const UP: u32 = 1;
/// The loopback device is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

pub(crate) fn raise_loopback() -> Result<()> {
    // NETLINK_ROUTE is protocol 0.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    // struct nlmsghdr: length, type, flags, sequence number, port.
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32_u32.to_ne_bytes());
    message.extend_from_slice(&NEW_LINK.to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    // struct ifinfomsg: family and device type (any), index, flags, which of the flags to change.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    message.extend_from_slice(&UP.to_ne_bytes());
    message.extend_from_slice(&UP.to_ne_bytes());
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    Ok(())
}
