//! What the demo looks like.

use std::io::{IsTerminal, Write, stdout};

use virtio_zbd_driver::{ZoneState, ZoneType};

use crate::report::{Zone, state_name};

const BOLD: &str = "1";
const DIM: &str = "2";
const CYAN: &str = "36";
const GREEN: &str = "32";

/// Lines for a person; colours only where it is a terminal that has them.
pub(super) struct Show {
    colours: bool,
}

impl Show {
    pub(super) fn new() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|term| term == "dumb");
        Self { colours: stdout().is_terminal() && !dumb && set("NO_COLOR").is_none() }
    }

    pub(super) fn title(&self, text: &str) {
        say(&format!("{}\n", self.painted(BOLD, text)));
    }

    pub(super) fn end(&self, text: &str) {
        say(&format!("\n{}", self.painted(GREEN, text)));
    }

    /// One thing that was done.
    pub(super) fn step(&self, verb: &str, text: &str) {
        say(&format!("  {} {text}", self.painted(CYAN, &format!("{verb:8}"))));
    }

    /// One thing that was done to a zone.
    pub(super) fn zone_step(&self, verb: &str, zone: u64, text: &str) {
        self.step(verb, &format!("{} {text}", self.painted(BOLD, &format!("zone {zone}:"))));
    }

    /// The zones as bars, a column for each `column_bytes`.
    pub(super) fn zones(&self, when: &str, zones: &[Zone], column_bytes: u64) {
        let columns = |sectors: u64| usize::try_from((sectors * 512).div_ceil(column_bytes)).unwrap_or(0);
        let width = zones.iter().map(|zone| columns(zone.len_sectors)).max().unwrap_or(0);
        let head = format!("  zone  type          state          {when:width$}  write pointer");
        say(&format!("\n{}", self.painted(DIM, &head)));
        for zone in zones {
            let conventional = zone.kind == ZoneType::Conventional;
            let used_sectors = match (zone.state, zone.wp_sector) {
                (ZoneState::Full, _) => zone.capacity_sectors,
                (_, wp) => wp.map_or(0, |wp| wp - zone.start_sector),
            };
            let (used, room) = (columns(used_sectors), columns(zone.capacity_sectors));
            let bar = format!(
                "{}{}{}",
                self.painted(colour(zone.state), &"█".repeat(used)),
                self.painted(DIM, &if conventional { "░" } else { "·" }.repeat(room.saturating_sub(used))),
                " ".repeat(width.saturating_sub(room))
            );
            say(&format!(
                "  {:4}  {:12}  {}  {bar}  {}",
                zone.index,
                if conventional { "conventional" } else { "sequential" },
                self.painted(colour(zone.state), &format!("{:13}", state_name(zone.state))),
                zone.wp_sector.map_or("-".into(), |wp| format!("sector {wp}"))
            ));
        }
        say("");
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        match self.colours && !text.is_empty() {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text.into(),
        }
    }
}

/// A line. Whether anybody reads it makes no difference to the disk.
fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}

fn colour(state: ZoneState) -> &'static str {
    match state {
        ZoneState::NotWp => "34",
        ZoneState::Empty => DIM,
        ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => GREEN,
        ZoneState::Closed => "33",
        ZoneState::Full => "35",
        ZoneState::ReadOnly | ZoneState::Offline => "31",
    }
}
