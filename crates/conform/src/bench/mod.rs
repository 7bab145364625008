//! What the cases are written in: a disk on the bench, and the words to ask it things and to judge what it says.

mod disk;
mod random;
mod request;
mod send;
mod survey;
mod zones;

use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use virtio_zbd_spec::Features;

pub(crate) use self::disk::{Disk, Zoned, feature_names};
pub(crate) use self::random::Random;
pub(crate) use self::request::{Reply, Request, status_name};
pub(crate) use self::survey::{Fault, Survey};
pub(crate) use self::zones::{Seen, Zone};
use crate::case::{Case, Exchange, Finding, Outcome};
use crate::link::{Link, LinkError, Started};
use crate::run::RunOptions;

/// How a case ends.
pub(crate) type Verdict = Result<(), Stop>;

/// Why a case ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// This disk can't show it.
    Skip(String),
    /// What the case needs before it can begin did not come to be. Another case says what is wrong.
    Unready(String),
    /// The device does not do what is asked.
    Fail(Finding),
    /// The link has nothing to hand on.
    Link(LinkError),
}

impl From<LinkError> for Stop {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

/// Ends a case: this disk can't show it.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(reason.into()))
}

/// What is accepted of what a device offers, if a case does not want something else: whatever changes nothing in how
/// requests are answered. DISCARD is not for host-managed disks; ring features are the link's.
const USUAL: Features = Features::VERSION_1
    .union(Features::ACCESS_PLATFORM)
    .union(Features::SIZE_MAX)
    .union(Features::SEG_MAX)
    .union(Features::RO)
    .union(Features::BLK_SIZE)
    .union(Features::TOPOLOGY)
    .union(Features::FLUSH)
    .union(Features::MQ)
    .union(Features::WRITE_ZEROES)
    .union(Features::LIFETIME)
    .union(Features::SECURE_ERASE)
    .union(Features::ZONED);

/// A disk, and a case's notes on it.
pub(crate) struct Bench<'a> {
    link: &'a mut dyn Link,
    options: &'a RunOptions,
    pub(crate) random: Random,
    /// What was accepted in the running session; `None` when the device has to be started.
    session: Option<Features>,
    /// The disk as the usual session shows it.
    disk: Option<Disk>,
    survey: Option<Survey>,
    /// Whether all zones are known to be as after a reset.
    wiped: bool,
    /// The starts of zones that may not be as after a reset.
    touched: BTreeSet<u64>,
    exchanges: VecDeque<Exchange>,
    exchanges_left_out: usize,
    /// What was sent last, reports of the bench's own left out.
    last_sent: String,
    /// Cases in a row that have lost the device.
    losses: u32,
}

/// After so many cases that end with a dead device no more are tried.
const LOSSES_MAX: u32 = 5;

impl<'a> Bench<'a> {
    pub(crate) fn new(link: &'a mut dyn Link, options: &'a RunOptions) -> Self {
        Self {
            link,
            options,
            random: Random::new(options.seed),
            session: None,
            disk: None,
            survey: None,
            wiped: false,
            touched: BTreeSet::new(),
            exchanges: VecDeque::new(),
            exchanges_left_out: 0,
            last_sent: String::new(),
            losses: 0,
        }
    }

    /// Runs one case and tidies up behind it.
    pub(crate) fn judge(&mut self, case: &Case) -> Outcome {
        if self.losses >= LOSSES_MAX {
            return Outcome::Skipped("the device was lost too often".into());
        }
        self.random = Random::new(self.options.seed).fork(case.id);
        self.last_sent = "nothing".into();
        let verdict = (case.run)(self);
        let dead = matches!(verdict, Err(Stop::Link(LinkError::TimedOut | LinkError::Lost(_))));
        self.losses = if dead { self.losses + 1 } else { 0 };
        if dead {
            self.session = None;
        }
        if !matches!(verdict, Ok(()) | Err(Stop::Skip(_))) {
            self.wiped = false;
        }
        let outcome = match verdict {
            Ok(()) => Outcome::Passed,
            Err(Stop::Fail(finding)) => Outcome::Failed(finding),
            Err(Stop::Skip(reason)) => Outcome::Skipped(reason),
            Err(Stop::Unready(reason)) => Outcome::Skipped(format!("could not be prepared: {reason}")),
            Err(Stop::Link(LinkError::Unsupported(reason))) => Outcome::Skipped(reason.into()),
            Err(Stop::Link(error)) => Outcome::Failed(self.finding("an answer", error.to_string())),
        };
        self.keep_quiet(Self::tidy);
        outcome
    }

    /// The steps since the last call, and how many were left out before them.
    pub(crate) fn take_exchanges(&mut self) -> (Vec<Exchange>, usize) {
        let left_out = core::mem::take(&mut self.exchanges_left_out);
        (core::mem::take(&mut self.exchanges).into(), left_out)
    }

    /// What the device offers.
    pub(crate) fn offered(&mut self) -> Result<Features, Stop> {
        Ok(Features::from_bits_retain(self.link.offered()?))
    }

    /// Whether FEATURES_OK is the device's own word.
    pub(crate) fn shows_features_ok(&self) -> bool {
        self.link.shows_features_ok()
    }

    /// Starts the device with `features`.
    pub(crate) fn start(&mut self, features: Features) -> Result<Started, Stop> {
        self.session = None;
        self.last_sent = format!("the features {}", feature_names(features));
        let started = self.link.start(features.bits());
        let came = match &started {
            Ok(Started::Accepted) => "FEATURES_OK stays set".to_string(),
            Ok(Started::Refused) => "FEATURES_OK is refused".to_string(),
            Err(error) => error.to_string(),
        };
        self.note(self.last_sent.clone(), came);
        let started = started?;
        if started == Started::Accepted {
            self.session = Some(features);
        }
        Ok(started)
    }

    /// The disk, in a session with the usual features.
    pub(crate) fn disk(&mut self) -> Result<Disk, Stop> {
        let offered = self.offered()?;
        let usual = offered & USUAL;
        if self.session != Some(usual) {
            if self.start(usual)? == Started::Refused {
                return Err(Stop::Unready(format!("the device refuses {}", feature_names(usual))));
            }
            self.disk = None;
        }
        match self.disk {
            Some(disk) => Ok(disk),
            None => {
                let disk = Disk::new(offered, usual, &self.link.config()?);
                self.disk = Some(disk);
                Ok(disk)
            }
        }
    }

    /// The disk, which shows zones, whatever its numbers are like.
    pub(crate) fn zoned(&mut self) -> Result<(Disk, Zoned), Stop> {
        let disk = self.disk()?;
        match disk.zoned {
            Some(zoned) if zoned.has_zones() => Ok((disk, zoned)),
            Some(_) => skip(format!("the zoned model is {}: no zones to be seen", disk.model_name())),
            None => skip("the disk does not offer ZONED"),
        }
    }

    /// The same with numbers that one can work with; all zones of a disk that can be written are empty the first time.
    pub(crate) fn zones(&mut self) -> Result<(Disk, Zoned), Stop> {
        let (disk, zoned) = self.zoned()?;
        if let Some(what) = zoned.unusable(&disk, self.options.request_max_bytes as u64) {
            return skip(format!("nothing can be done with the configuration: {what}"));
        }
        if self.survey.is_none() {
            let left_out = self.exchanges_left_out;
            let exchanges = core::mem::take(&mut self.exchanges);
            let survey = self.take_survey(&disk, &zoned);
            self.exchanges = exchanges;
            self.exchanges_left_out = left_out;
            self.survey = Some(survey?);
        }
        if !self.wiped && !disk.read_only {
            self.keep_quiet(Self::wipe);
        }
        Ok((disk, zoned))
    }

    /// The same, and the disk can be written.
    pub(crate) fn writable(&mut self) -> Result<(Disk, Zoned), Stop> {
        let (disk, zoned) = self.zones()?;
        if disk.read_only {
            return skip("the disk is read-only");
        }
        Ok((disk, zoned))
    }

    /// The configuration space as it is now.
    pub(crate) fn config(&mut self) -> Result<[u8; crate::CONFIG_LEN_BYTES], Stop> {
        let config = self.link.config()?;
        self.last_sent = "a read of the configuration".into();
        Ok(config)
    }

    /// The same, in the course of something else.
    pub(crate) fn link_config(&mut self) -> Result<[u8; crate::CONFIG_LEN_BYTES], Stop> {
        Ok(self.link.config()?)
    }

    pub(crate) fn config_len_bytes(&mut self) -> usize {
        self.link.config_len_bytes()
    }

    pub(crate) fn write_config(&mut self, offset: usize, byte: u8) -> Verdict {
        self.last_sent = format!("a write of {byte} to byte {offset} of the configuration");
        self.link.write_config(offset, byte)?;
        self.note(self.last_sent.clone(), "done".into());
        Ok(())
    }

    /// The device is in no state to go on with: it is started again before anything else is sent.
    pub(crate) fn forget_session(&mut self) {
        self.session = None;
    }

    pub(crate) fn queue_size(&self) -> u16 {
        self.link.queue_size()
    }

    pub(crate) fn queue_count(&self) -> u16 {
        self.link.queue_count().max(1)
    }

    pub(crate) const fn options(&self) -> &RunOptions {
        self.options
    }

    /// Ends a case: the device does not do what is asked.
    pub(crate) fn fail<T>(&self, expected: impl Into<String>, found: impl Into<String>) -> Result<T, Stop> {
        Err(Stop::Fail(self.finding(expected, found)))
    }

    /// Fails unless `holds`.
    pub(crate) fn check(
        &self,
        holds: bool,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Verdict {
        if holds { Ok(()) } else { self.fail(expected, found) }
    }

    fn finding(&self, expected: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { sent: self.last_sent.clone(), expected: expected.into(), found: found.into() }
    }

    fn note(&mut self, sent: String, came: String) {
        if self.exchanges.len() >= self.options.exchanges_max.max(1) {
            self.exchanges.pop_front();
            self.exchanges_left_out += 1;
        }
        self.exchanges.push_back(Exchange { sent, came });
    }

    /// Does something that is not the case's: it leaves no notes, and where it fails a case will say so.
    fn keep_quiet(&mut self, work: fn(&mut Self) -> Verdict) {
        let exchanges = core::mem::take(&mut self.exchanges);
        let left_out = self.exchanges_left_out;
        let last_sent = core::mem::take(&mut self.last_sent);
        if matches!(work(self), Err(Stop::Link(LinkError::TimedOut | LinkError::Lost(_)))) {
            self.session = None;
        }
        self.exchanges = exchanges;
        self.exchanges_left_out = left_out;
        self.last_sent = last_sent;
    }
}
