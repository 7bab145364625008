//! Several threads at once, each on zones of its own and with a part of the limits for itself, so that each one's answers are
//! known whatever the others do.

use anyhow::{Context, Result};
use fastrand::Rng;

use super::Real;
use super::choose::{Chooser, Op};
use super::ioctl::Manage;
use super::linux::Linux;
use super::zones::{Condition, Disk};

const THREADS: usize = 3;

/// How many operations each of them does, more or less.
const OPERATIONS: usize = 120;

/// Lets the threads work; answers how many operations that was.
pub(crate) fn work(disk: &mut Real, linux: &mut Linux, random: &mut Rng) -> Result<usize> {
    let sequential: Vec<_> =
        (0..linux.disk.zones.len()).filter(|&at| !linux.disk.zones[at].is_conventional()).collect();
    let pools: Vec<Vec<usize>> =
        sequential.chunks(sequential.len() / THREADS).take(THREADS).map(<[usize]>::to_vec).collect();
    let (budget, mut done) = make_room(disk, linux, &pools)?;

    let mut outcomes = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for pool in &pools {
            let mut own = part(linux, pool, budget);
            let mut file = disk.another()?;
            let mut random = random.fork();
            threads.push(scope.spawn(move || -> Result<_> {
                let done = one(&mut file, &mut own, &mut random)?;
                Ok((own, done, file.seen))
            }));
        }
        for thread in threads {
            let outcome = thread.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
            outcomes.push(outcome.context("one of several threads")?);
        }
        Ok(())
    })?;
    for (pool, (own, count, seen)) in pools.iter().zip(outcomes) {
        for ((at, zone), plug) in pool.iter().zip(own.disk.zones).zip(own.plugs) {
            linux.disk.implicit.retain(|&start| start != zone.start);
            linux.disk.zones[*at] = zone;
            linux.plugs[*at] = plug;
        }
        for (what, seen) in seen {
            *disk.seen.entry(format!("{what}, among others")).or_default() += seen;
        }
        done += count;
    }
    Ok(done)
}

/// Resets zones until each thread can have at least one that is open. Answers how many each may have.
fn make_room(disk: &mut Real, linux: &mut Linux, pools: &[Vec<usize>]) -> Result<(usize, usize)> {
    let mut done = 0;
    for at in 0..linux.disk.zones.len() {
        let zone = &linux.disk.zones[at];
        let pooled = pools.iter().any(|pool| pool.contains(&at));
        if !zone.condition.is_active() || (!pooled && has_room_for(&linux.disk, pools.len())) {
            continue;
        }
        done +=
            disk.play(linux, &Op::Manage { what: Manage::Reset, sector: zone.start, sectors: zone.len })?;
    }
    let each = |max: usize, used: usize| if max == 0 { usize::MAX } else { (max - used) / pools.len() };
    let Disk { max_open, max_active, .. } = linux.disk;
    let open = each(max_open, linux.disk.open_count());
    Ok((open.min(each(max_active, linux.disk.active_count())), done))
}

fn has_room_for(disk: &Disk, threads: usize) -> bool {
    disk.has_room(threads, threads)
}

/// Some zones of the disk, as a disk with limits of its own.
fn part(linux: &Linux, pool: &[usize], budget: usize) -> Linux {
    let limit = if budget == usize::MAX { 0 } else { budget };
    let zones = pool.iter().map(|&at| linux.disk.zones[at].clone()).collect();
    let disk = Disk {
        zones,
        max_open: limit,
        max_active: limit,
        granularity: linux.disk.granularity,
        implicit: Vec::new(),
    };
    let plugs = pool.iter().map(|&at| linux.plugs[at]).collect();
    Linux { disk, plugs, ..*linux }
}

/// What one thread does. At the end nothing of it is open: in which order the threads have opened zones is not known.
fn one(disk: &mut Real, linux: &mut Linux, random: &mut Rng) -> Result<usize> {
    let mut chooser = Chooser::crowded(linux, random);
    let mut done = 0;
    while done < OPERATIONS {
        let op = chooser.next(random, linux);
        done += disk.play(linux, &op)?;
    }
    for at in 0..linux.disk.zones.len() {
        let zone = &linux.disk.zones[at];
        if matches!(zone.condition, Condition::ImplicitOpen | Condition::ExplicitOpen) {
            done +=
                disk.play(linux, &Op::Manage { what: Manage::Close, sector: zone.start, sectors: zone.len })?;
        }
    }
    Ok(done)
}
