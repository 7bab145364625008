//! A request that the disk refused: which zone, what it is like now, and what to do.

use virtio_zbd_driver::{DeviceError, RequestType, Zone, ZoneState, ZoneType};

use crate::report;
use crate::target::Driver;

/// The whole message but the disk's name. Asks the disk for the zone's state.
pub(crate) fn text(driver: &mut Driver, request: RequestType, sector: u64, status: DeviceError) -> String {
    let zoned = driver.zoned().copied();
    let (Some(zoned), true) = (zoned, request != RequestType::ZoneReport) else {
        return format!("{} at sector {sector} failed: {status}{}", verb(request), plain_hint(status));
    };
    if matches!(request, RequestType::Flush | RequestType::GetId | RequestType::ZoneResetAll) {
        return format!("{} failed: {status}{}", verb(request), plain_hint(status));
    }
    let index = sector / u64::from(zoned.zone_sectors);
    let hint = match status {
        DeviceError::OpenResource => {
            format!("; {} zones may be open at once: close, finish or reset one that is open", zoned.open_max)
        }
        DeviceError::ActiveResource => format!(
            "; {} zones may be active (open or closed) at once: finish or reset one that is",
            zoned.active_max
        ),
        DeviceError::IoError | DeviceError::Unsupported => plain_hint(status).into(),
        DeviceError::InvalidCommand | DeviceError::UnalignedWritePointer => {
            driver.zone(sector).map_or_else(|_| String::new(), |zone| zone_hint(&zone, request, status))
        }
    };
    format!("{} zone {index} at sector {sector} failed: {status}{hint}", zone_verb(request))
}

/// What the zone is like, and what could be done.
fn zone_hint(zone: &Zone, request: RequestType, status: DeviceError) -> String {
    let state = report::state_name(zone.state);
    if zone.kind == ZoneType::Conventional {
        return "; the zone is conventional: it is written anywhere, and has no state to change".into();
    }
    let at = match (zone.state, zone.write_pointer_sector) {
        (ZoneState::Full, _) | (_, None) => String::new(),
        (_, Some(wp)) => format!(", its write pointer is at sector {wp}"),
    };
    let writes = matches!(request, RequestType::Out | RequestType::ZoneAppend);
    let todo = match zone.state {
        ZoneState::ReadOnly | ZoneState::Offline => ": the disk has given it up",
        ZoneState::Full if writes => ": reset it before it is written again",
        _ if status == DeviceError::UnalignedWritePointer => ": write there",
        _ if writes => {
            let end_sector = zone.start_sector + zone.capacity_sectors;
            return format!("; the zone is {state}{at}, and can be written up to sector {end_sector}");
        }
        _ => "",
    };
    format!("; the zone is {state}{at}{todo}")
}

fn plain_hint(status: DeviceError) -> &'static str {
    match status {
        DeviceError::IoError => "; the log of whoever serves the disk may say more",
        _ => "",
    }
}

fn verb(request: RequestType) -> &'static str {
    match request {
        RequestType::In => "reading",
        RequestType::Out => "writing",
        RequestType::Flush => "flushing",
        RequestType::GetId => "asking for the serial number",
        RequestType::ZoneReport => "reporting zones",
        RequestType::ZoneResetAll => "resetting all zones",
        _ => zone_verb(request),
    }
}

fn zone_verb(request: RequestType) -> &'static str {
    match request {
        RequestType::In => "reading from",
        RequestType::Out => "writing to",
        RequestType::ZoneAppend => "appending to",
        RequestType::ZoneOpen => "opening",
        RequestType::ZoneClose => "closing",
        RequestType::ZoneFinish => "finishing",
        RequestType::ZoneReset => "resetting",
        _ => "a request for",
    }
}
