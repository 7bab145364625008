//! `vzbd bench`: how fast a disk is, through our driver.

mod histogram;
mod load;
mod plan;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use virtio_zbd_driver::Options;

use crate::cli::{BenchArgs, BenchMode};
use crate::size::Size;
use crate::target::{Access, Target};
use crate::{say, wrong_call};

use load::{Load, Until};
use plan::Plan;

/// Descriptors of a queue where no more are needed.
const QUEUE_DEPTH: u16 = 128;

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let writes = matches!(args.mode, BenchMode::Write | BenchMode::Append);
    if writes && !args.destroy_data {
        return Err(wrong_call(
            "this resets every zone and overwrites what is on the disk; say --destroy-data if you mean it",
        ));
    }
    let access = if writes { Access::Write } else { Access::Read };
    let queue_depth = args.depth.next_power_of_two().max(QUEUE_DEPTH);
    let options = Options { queues: args.queues, queue_depth, ..Options::default() };
    let mut target = Target::with(&args.disk, access, options)?;
    if target.driver.queue_count() < args.queues {
        return Err(wrong_call(format!(
            "{}: --queues is {}, and the disk has {} (`vzbd serve --queues` gives it more)",
            target.name(),
            args.queues,
            target.driver.queue_count()
        )));
    }
    let plan = Plan::new(&mut target, args.mode, args.block_size)?;
    if let Some(note) = plan.note() {
        eprintln!("vzbd: {}: {note}", target.name());
    }
    let until = match args.count {
        Some(count) => Until::Count(count),
        None => Until::Over(args.seconds),
    };
    let result = Load::new(&mut target, plan, args.depth, until, &interrupted()?)?.run()?;
    let name = target.name().to_owned();
    let shown = Shown::new(args, &name, &result);
    target.close()?;
    if args.json {
        return say(&serde_json::to_string_pretty(&shown)?);
    }
    say(&shown.text())
}

/// Set by the first Ctrl-C, which ends the measurement and shows what there is; the second one ends the program.
fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .context("signals can't be handled")?;
    }
    Ok(flag)
}

/// What was measured; the names are the keys of `--json`.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    mode: &'static str,
    block_len_bytes: u64,
    queues: u16,
    /// How many requests were under way at most, on all queues together.
    in_flight_max: usize,
    seconds: f64,
    requests: u64,
    requests_per_second: f64,
    bytes_per_second: f64,
    latency_ns: Latency,
    /// Zones that were reset or finished on the way; the time for it is in `seconds`.
    zones_turned_over: u64,
}

#[derive(Serialize)]
struct Latency {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl<'a> Shown<'a> {
    #[allow(clippy::cast_precision_loss, reason = "rates are shown with a few digits")]
    fn new(args: &BenchArgs, name: &'a str, result: &load::Outcome) -> Self {
        let seconds = result.took.as_secs_f64();
        let requests = result.latency.count();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let quantile = |per_mille| result.latency.quantile_ns(per_mille);
        Self {
            name,
            mode: match args.mode {
                BenchMode::Read => "read",
                BenchMode::Randread => "randread",
                BenchMode::Write => "write",
                BenchMode::Append => "append",
            },
            block_len_bytes: args.block_size.bytes,
            queues: args.queues,
            in_flight_max: result.in_flight_max,
            seconds,
            requests,
            requests_per_second: rate(requests),
            bytes_per_second: rate(requests.saturating_mul(args.block_size.bytes)),
            latency_ns: Latency {
                p50: quantile(500),
                p90: quantile(900),
                p99: quantile(990),
                p999: quantile(999),
                max: result.latency.max_ns(),
            },
            zones_turned_over: result.zones_turned_over,
        }
    }

    fn text(&self) -> String {
        let time = |ns| format!("{:.1?}", Duration::from_nanos(ns));
        let Latency { p50, p90, p99, p999, max } = self.latency_ns;
        let zones = match self.zones_turned_over {
            0 => String::new(),
            zones => format!("\n  zones reset or finished on the way  {zones}"),
        };
        format!(
            "{}: {}, {} each, up to {} under way on {} queue{}, {:.2} s, {} requests\n  \
             requests/s   {:.0}\n  \
             MiB/s        {:.1}\n  \
             latency      p50 {}  p90 {}  p99 {}  p99.9 {}  max {}{zones}",
            self.name,
            self.mode,
            Size::from(self.block_len_bytes),
            self.in_flight_max,
            self.queues,
            if self.queues == 1 { "" } else { "s" },
            self.seconds,
            self.requests,
            self.requests_per_second,
            self.bytes_per_second / f64::from(1 << 20),
            time(p50),
            time(p90),
            time(p99),
            time(p999),
            time(max),
        )
    }
}
