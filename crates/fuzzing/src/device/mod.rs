//! A hostile driver.
//!
//! Half of the inputs are one chain after the other, with everything foretold ([`exact`]); in the others the bytes are the
//! memory itself, rings, descriptors and all, and many heads are given at once ([`storm`]).

mod exact;
mod memory;
mod oracle;
mod storm;
mod walk;
mod world;

use world::World;
pub(crate) use world::{odd, shape};

use crate::input::Input;
use crate::watch::Watch;

/// A driver that says whatever the bytes say, on a disk with real zones.
///
/// # Panics
/// The device has done what it should not.
pub fn device(data: &[u8]) {
    let watch = Watch::begin();
    let mut input = Input::new(data);
    let storm = input.u8() % 4 == 3;
    let mut world = World::new(&mut input);
    if storm {
        storm::run(&mut world, &mut input);
    } else {
        exact::run(&mut world, &mut input);
    }
    drop(world);
    watch.end();
}
