//! What any disk must do. On a zoned disk all this goes to conventional zones.

mod identity;
mod queues;
mod ranges;
mod refusals;
mod transfers;

use crate::rig::Check;

pub(crate) const CHECKS: &[Check] = &[
    Check { name: "plain: the disk is what it should be", run: identity::disk },
    Check { name: "plain: id", run: identity::id },
    Check { name: "plain: flush", run: identity::flush },
    Check { name: "plain: the cache's mode", run: identity::cache_mode },
    Check { name: "plain: a read-only disk", run: identity::read_only },
    Check { name: "plain: reads and writes of all sizes", run: transfers::sizes },
    Check { name: "plain: reads and writes at random places", run: transfers::places },
    Check { name: "plain: long transfers", run: transfers::long },
    Check { name: "plain: the disk's last block", run: transfers::last_block },
    Check { name: "plain: discard", run: ranges::discard },
    Check { name: "plain: write zeroes", run: ranges::write_zeroes },
    Check { name: "plain: write zeroes and unmap", run: ranges::write_zeroes_unmap },
    Check { name: "plain: secure erase", run: ranges::secure_erase },
    Check { name: "plain: ranges beyond the disk", run: refusals::out_of_range },
    Check { name: "plain: empty and misaligned transfers", run: refusals::misaligned },
    Check { name: "plain: requests that are too long", run: refusals::too_long },
    Check { name: "plain: requests that the disk does not offer", run: refusals::not_offered },
    Check { name: "plain: zone commands on a disk without zones", run: refusals::not_zoned },
    Check { name: "plain: a queue that is not there", run: refusals::no_such_queue },
    Check { name: "plain: many requests on all queues", run: queues::many },
    Check { name: "plain: queues filled to the brim", run: queues::brim },
    Check { name: "plain: calls between requests in flight", run: queues::calls_between },
];
