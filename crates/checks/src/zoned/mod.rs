//! What a host-managed disk must do.

mod appends;
mod contents;
mod crossing;
mod limits;
mod report;
mod states;
mod storm;
mod writes;

use virtio_zbd_driver::{Zone, ZoneState};

use crate::rig::Check;

pub(crate) const CHECKS: &[Check] = &[
    Check { name: "zoned: limits that fit together", run: report::limits },
    Check { name: "zoned: a report of all zones", run: report::all },
    Check { name: "zoned: reports from the middle, the last zone, beyond the disk", run: report::parts },
    Check { name: "zoned: open in every state (V15)", run: states::open },
    Check { name: "zoned: close in every state (V16, G2)", run: states::close },
    Check { name: "zoned: finish in every state (V17, G1)", run: states::finish },
    Check { name: "zoned: reset in every state (V18)", run: states::reset },
    Check { name: "zoned: reset all in every state (V19)", run: states::reset_all },
    Check { name: "zoned: a write in every state (V20)", run: states::write },
    Check { name: "zoned: an append in every state (V20)", run: states::append },
    Check { name: "zoned: an append to a finished zone", run: states::append_to_finished },
    Check { name: "zoned: conventional zones are not managed (V13, V14)", run: states::conventional },
    Check { name: "zoned: commands beside a zone's start (R8, R10)", run: states::beside_start },
    Check { name: "zoned: writes beside the write pointer (V26)", run: writes::beside },
    Check { name: "zoned: writes of less than the granularity (V26)", run: writes::granularity },
    Check { name: "zoned: a zone written full, and beyond its capacity (V22)", run: writes::full },
    Check { name: "zoned: the last zone, a runt or not", run: writes::last_zone },
    Check { name: "zoned: a write across two zones (V25)", run: crossing::write },
    Check { name: "zoned: reads across two zones (V25)", run: crossing::read },
    Check {
        name: "zoned: from the last conventional zone into a sequential one (V25)",
        run: crossing::mixed,
    },
    Check { name: "zoned: unwritten sectors are zeros (V31)", run: contents::unwritten },
    Check { name: "zoned: data stays through close, open and finish (V30)", run: contents::kept },
    Check { name: "zoned: a reset leaves zeros (V18, V19)", run: contents::reset },
    Check { name: "zoned: appends one by one (V23)", run: appends::single },
    Check { name: "zoned: many appends in flight on all queues (V23)", run: storm::one_zone },
    Check { name: "zoned: appends to several zones at a time", run: storm::several_zones },
    Check { name: "zoned: appends in flight among reads and flushes", run: storm::among_others },
    Check { name: "zoned: appends that the driver refuses (R10, B5)", run: appends::refused_by_driver },
    Check { name: "zoned: an append beyond the capacity (V22)", run: appends::beyond_capacity },
    Check { name: "zoned: the open limit, explicitly (V7, V15)", run: limits::open_explicitly },
    Check { name: "zoned: the open limit, implicitly (V27)", run: limits::open_implicitly },
    Check { name: "zoned: the active limit (V8, V15)", run: limits::active },
    Check { name: "zoned: secure erase resets whole zones (V32)", run: contents::secure_erase },
];

/// The zone as it is in another state, with the write pointer `written_sectors` behind its start.
pub(crate) fn in_state(zone: &Zone, state: ZoneState, written_sectors: u64) -> Zone {
    let write_pointer_sector = match state {
        ZoneState::NotWp | ZoneState::ReadOnly | ZoneState::Offline => None,
        ZoneState::Full => Some(zone.end_sector()),
        _ => Some(zone.start_sector + written_sectors),
    };
    Zone { state, write_pointer_sector, ..*zone }
}
