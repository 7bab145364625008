//! Each rule that the zone model owns, by its number: what the device must do (V), what we decided where the specification is silent
//! (G), and what the specification says of zones in passing. `docs/zones.md` lists them all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod disk;
mod management;
mod media;
mod preferred;
mod shape;
mod under_way;
mod unwritten;
mod writes;
