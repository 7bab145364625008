//! Reading a recording.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use virtio_zbd_zones::{Geometry, ZoneState};
use zerocopy::{FromBytes, IntoBytes};

use super::error::{Nonsense, RecordError};
use super::format::{HEAD_LEN, HEADER_LEN, Header, MAGIC, PAYLOAD_MAX_BYTES, RecordHead, VERSION, kind};
use super::model::Shape;
use super::replay::Replay;

/// A recording that was read and found good: everything that was done to a disk.
///
/// What was recorded is a row of events, numbered from 1 on. A *moment* is a number of events: so many have happened, and the
/// next one has not.
pub struct Recording {
    pub(super) name: String,
    pub(super) file: File,
    pub(super) shape: Shape,
    /// What was on the disk at the beginning.
    pub(super) base: Vec<Stretch>,
    pub(super) events: Vec<Event>,
    flushes: Vec<FlushMark>,
    torn_bytes: u64,
}

/// A part of the disk, and where its bytes are in the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u64,
    pub(super) at_bytes: u64,
}

/// Something that was done to the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    WriteBegin { change: u64, data: Stretch },
    ZeroBegin { change: u64, offset_bytes: u64, len_bytes: u64 },
    ChangeEnd { change: u64, ok: bool },
    Zone { zone: u32, state: ZoneState },
    CommitBegin { commit: u64, flush: bool, finished: Vec<u32>, reset: Vec<u32> },
    CommitEnd { commit: u64, ok: bool },
}

/// A flush that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark {
    /// The event of its beginning. What had ended before it is durable at its end.
    pub begin: u64,
    /// The event of its end.
    pub end: u64,
}

/// What happened in a part of a recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes and appends that began.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Zones that were finished.
    pub finishes: u64,
    /// Zones that were reset.
    pub resets: u64,
}

impl Recording {
    /// Reads all of a recording but the data, and checks it.
    ///
    /// A record that was torn at the very end, because the program was killed or the machine stopped while it was written, is
    /// left out: see [`torn_bytes`](Self::torn_bytes).
    ///
    /// # Errors
    /// It can't be read, is damaged, or is no recording.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(RecordError::io(&name, "opening it"))?;
        let reader = Reader::new(&name, &file)?;
        let found = reader.read()?;
        Ok(Self {
            name,
            file,
            shape: found.shape,
            base: found.base,
            events: found.events,
            flushes: found.flushes,
            torn_bytes: found.torn_bytes,
        })
    }

    /// Length of the disk.
    pub fn capacity_bytes(&self) -> u64 {
        self.shape.capacity_bytes
    }

    /// The disk's zones; `None`: it has none.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.shape.geometry.as_ref()
    }

    /// The last moment: how many events there are.
    pub fn end(&self) -> u64 {
        self.events.len() as u64
    }

    /// The flushes that were answered, in the order of their ends.
    pub fn flushes(&self) -> &[FlushMark] {
        &self.flushes
    }

    /// How many bytes were on the disk when the recording began.
    pub fn base_bytes(&self) -> u64 {
        self.base.iter().map(|stretch| stretch.len_bytes).sum()
    }

    /// How many bytes at the end of the file were left out.
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// What began from moment `from` to moment `to`.
    pub fn counts(&self, from: u64, to: u64) -> Counts {
        let index = |moment: u64| usize::try_from(moment).unwrap_or(usize::MAX).min(self.events.len());
        let mut counts = Counts::default();
        for event in self.events.get(index(from)..index(to)).unwrap_or_default() {
            match event {
                Event::WriteBegin { data, .. } => {
                    counts.writes += 1;
                    counts.written_bytes += data.len_bytes;
                }
                Event::CommitBegin { finished, reset, .. } => {
                    counts.finishes += finished.len() as u64;
                    counts.resets += reset.len() as u64;
                }
                _ => {}
            }
        }
        counts
    }

    /// The error for a moment that somebody has named and that there is not.
    pub fn no_such_moment(&self, wanted: String) -> RecordError {
        let (events, flushes) = (self.end(), self.flushes.len());
        RecordError::NoSuchMoment { name: self.name.clone(), events, flushes, wanted }
    }

    /// The disk at the beginning, to be taken to a moment.
    pub fn replay(&self) -> Replay<'_> {
        Replay::new(self)
    }
}

/// What a recording says.
struct Found {
    shape: Shape,
    base: Vec<Stretch>,
    events: Vec<Event>,
    flushes: Vec<FlushMark>,
    torn_bytes: u64,
}

struct Reader<'a> {
    name: &'a str,
    file: BufReader<&'a File>,
    file_len_bytes: u64,
    /// Where the next byte comes from.
    at_bytes: u64,
    record: u64,
    /// Changes and commits under way: a commit's beginning if it is a flush.
    changes: BTreeSet<u64>,
    commits: BTreeMap<u64, Option<u64>>,
}

/// A record's head and, where it is short, its payload.
struct Raw {
    kind: u32,
    payload_bytes: u32,
    /// Where the payload begins in the file.
    at_bytes: u64,
    /// The payload's beginning: all of it, but for data.
    payload: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(name: &'a str, file: &'a File) -> Result<Self, RecordError> {
        let metadata = file.metadata().map_err(RecordError::io(name, "finding its length"))?;
        Ok(Self {
            name,
            file: BufReader::with_capacity(1 << 20, file),
            file_len_bytes: metadata.len(),
            at_bytes: 0,
            record: 0,
            changes: BTreeSet::new(),
            commits: BTreeMap::new(),
        })
    }

    fn read(mut self) -> Result<Found, RecordError> {
        let mut shape = self.header()?;
        let (mut base, mut events, mut flushes) = (Vec::new(), Vec::new(), Vec::new());
        let mut started = false;
        let mut known_states = false;
        let torn_bytes = loop {
            let start_bytes = self.at_bytes;
            let Some(raw) = self.record()? else { break self.file_len_bytes - start_bytes };
            let understood = match raw.kind {
                kind::STATES if !known_states => {
                    known_states = true;
                    states(&shape, &raw).map(|states| shape.states = states)
                }
                kind::BASE if known_states && !started => stretch(&shape, &raw).map(|found| base.push(found)),
                kind::START if known_states && !started => {
                    started = true;
                    Ok(())
                }
                _ if started => {
                    self.event(&shape, &raw, events.len() as u64 + 1, &mut flushes).map(|event| {
                        events.push(event);
                    })
                }
                kind => Err(Nonsense::Kind { kind }),
            };
            understood.map_err(|what| RecordError::Impossible {
                name: self.name.to_owned(),
                record: self.record,
                at_bytes: start_bytes,
                what: what.to_string(),
            })?;
            self.record += 1;
        };
        if !started {
            return Err(RecordError::NoStart { name: self.name.to_owned() });
        }
        Ok(Found { shape, base, events, flushes, torn_bytes })
    }

    fn header(&mut self) -> Result<Shape, RecordError> {
        let name = self.name.to_owned();
        let mut bytes = Vec::new();
        let limit = HEADER_LEN as u64;
        (&mut self.file)
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(RecordError::io(&name, "reading its beginning"))?;
        if !bytes.starts_with(&MAGIC) {
            let shown: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            let found = if shown.is_empty() { "nothing, it is empty".to_owned() } else { shown.join(" ") };
            return Err(RecordError::NotARecording { name, found });
        }
        let Ok(header) = Header::read_from_bytes(&bytes) else {
            let what = format!("the file ends after {} bytes of it", bytes.len());
            return Err(RecordError::Header { name, what });
        };
        if header.version.get() != VERSION {
            return Err(RecordError::Version { name, found: header.version.get(), supported: VERSION });
        }
        if !header.is_whole() {
            return Err(RecordError::Header { name, what: "its checksum is wrong".into() });
        }
        self.at_bytes = limit;
        let capacity_bytes = header.capacity_bytes.get();
        if capacity_bytes == 0 || !capacity_bytes.is_multiple_of(512) {
            let what = format!("{capacity_bytes} bytes are no length of a disk");
            return Err(RecordError::Header { name, what });
        }
        let geometry = header.geometry_config().map(Geometry::new).transpose();
        let geometry = geometry.map_err(RecordError::header(self.name))?;
        Ok(Shape { capacity_bytes, geometry, states: Vec::new() })
    }

    /// The next record; `None`: there is none, or one that was torn.
    fn record(&mut self) -> Result<Option<Raw>, RecordError> {
        let start_bytes = self.at_bytes;
        let rest_bytes = self.file_len_bytes.saturating_sub(start_bytes);
        if rest_bytes < HEAD_LEN as u64 {
            return Ok(None);
        }
        let mut head = RecordHead::new(0, 0, 0, 0);
        self.fill(head.as_mut_bytes())?;
        let (name, record) = (self.name, self.record);
        let damaged = |what, after_bytes: u64| RecordError::Damaged {
            name: name.to_owned(),
            record,
            at_bytes: start_bytes,
            rest_bytes: rest_bytes - after_bytes,
            what,
        };
        if !head.is_whole() {
            // A machine that stops leaves zeros where data had not arrived.
            return match head.as_bytes().iter().all(|&byte| byte == 0) && self.rest_is_zero()? {
                true => Ok(None),
                false => Err(damaged("its head's checksum is wrong", HEAD_LEN as u64)),
            };
        }
        let payload_bytes = head.payload_bytes.get();
        let whole_bytes = HEAD_LEN as u64 + u64::from(payload_bytes);
        if payload_bytes > PAYLOAD_MAX_BYTES {
            return Err(damaged("it is too long", HEAD_LEN as u64));
        }
        if head.number.get() != self.record {
            return Err(damaged("its number is another", HEAD_LEN as u64));
        }
        if whole_bytes > rest_bytes {
            return Ok(None);
        }
        let at_bytes = self.at_bytes;
        let (payload, crc32c) = self.payload(head.kind.get(), payload_bytes)?;
        if crc32c != head.payload_crc32c.get() {
            return match whole_bytes == rest_bytes || self.rest_is_zero()? {
                true => Ok(None),
                false => Err(damaged("its payload's checksum is wrong", whole_bytes)),
            };
        }
        Ok(Some(Raw { kind: head.kind.get(), payload_bytes, at_bytes, payload }))
    }

    /// Reads a payload. Of data only the beginning is kept.
    fn payload(&mut self, kind: u32, payload_bytes: u32) -> Result<(Vec<u8>, u32), RecordError> {
        let kept_bytes = match kind {
            kind::WRITE_BEGIN | kind::BASE => payload_bytes.min(16),
            _ => payload_bytes,
        };
        let mut kept = vec![0; usize::try_from(kept_bytes).unwrap_or(usize::MAX)];
        self.fill(&mut kept)?;
        let mut crc32c = crc32c::crc32c(&kept);
        let mut rest = usize::try_from(payload_bytes - kept_bytes).unwrap_or(usize::MAX);
        let mut chunk = vec![0; rest.min(1 << 16)];
        while rest > 0 {
            let part = rest.min(chunk.len());
            self.fill(&mut chunk[..part])?;
            crc32c = crc32c::crc32c_append(crc32c, &chunk[..part]);
            rest -= part;
        }
        Ok((kept, crc32c))
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), RecordError> {
        self.file.read_exact(into).map_err(RecordError::io(self.name, "reading it"))?;
        self.at_bytes += into.len() as u64;
        Ok(())
    }

    fn rest_is_zero(&mut self) -> Result<bool, RecordError> {
        let mut chunk = [0; 4096];
        loop {
            match self.file.read(&mut chunk) {
                Ok(0) => return Ok(true),
                Ok(len) if chunk[..len].iter().all(|&byte| byte == 0) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(RecordError::io(self.name, "reading it")(error)),
            }
        }
    }

    fn event(
        &mut self,
        shape: &Shape,
        raw: &Raw,
        number: u64,
        flushes: &mut Vec<FlushMark>,
    ) -> Result<Event, Nonsense> {
        Ok(match raw.kind {
            kind::WRITE_BEGIN => {
                let [change, offset_bytes] = raw.words()?;
                let len_bytes = u64::from(raw.payload_bytes) - 16;
                check_range(shape, offset_bytes, len_bytes)?;
                self.change_begins(change)?;
                let data = Stretch { offset_bytes, len_bytes, at_bytes: raw.at_bytes + 16 };
                Event::WriteBegin { change, data }
            }
            kind::ZERO_BEGIN => {
                let [change, offset_bytes, len_bytes] = raw.only_words()?;
                check_range(shape, offset_bytes, len_bytes)?;
                self.change_begins(change)?;
                Event::ZeroBegin { change, offset_bytes, len_bytes }
            }
            kind::CHANGE_END => {
                let [change, ok] = raw.only_words()?;
                match self.changes.remove(&change) {
                    true => Event::ChangeEnd { change, ok: ok == 1 },
                    false => return Err(Nonsense::NotBegun { id: change }),
                }
            }
            kind::ZONE => {
                let [zone, word] = raw.only_words()?;
                let (zone, state) = state(shape, zone, word)?;
                Event::Zone { zone, state }
            }
            kind::COMMIT_BEGIN => {
                let (commit, flush, finished, reset) = commit(shape, raw)?;
                if self.commits.insert(commit, flush.then_some(number)).is_some() {
                    return Err(Nonsense::Twice { id: commit });
                }
                Event::CommitBegin { commit, flush, finished, reset }
            }
            kind::COMMIT_END => {
                let [commit, ok] = raw.only_words()?;
                let begin = self.commits.remove(&commit).ok_or(Nonsense::NotBegun { id: commit })?;
                if let (Some(begin), 1) = (begin, ok) {
                    flushes.push(FlushMark { begin, end: number });
                }
                Event::CommitEnd { commit, ok: ok == 1 }
            }
            kind => return Err(Nonsense::Kind { kind }),
        })
    }

    fn change_begins(&mut self, change: u64) -> Result<(), Nonsense> {
        // 0 is the name of what was there at the beginning.
        match change != 0 && self.changes.insert(change) {
            true => Ok(()),
            false => Err(Nonsense::Twice { id: change }),
        }
    }
}

impl Raw {
    /// The first numbers of the payload.
    fn words<const N: usize>(&self) -> Result<[u64; N], Nonsense> {
        let (words, _) = self.payload.as_chunks::<8>();
        let words = words.get(..N).ok_or(Nonsense::Length { found: self.payload_bytes })?;
        Ok(std::array::from_fn(|index| u64::from_le_bytes(words[index])))
    }

    /// A payload of these numbers and nothing else.
    fn only_words<const N: usize>(&self) -> Result<[u64; N], Nonsense> {
        match usize::try_from(self.payload_bytes) {
            Ok(len) if len == N * 8 => self.words(),
            _ => Err(Nonsense::Length { found: self.payload_bytes }),
        }
    }
}

fn states(shape: &Shape, raw: &Raw) -> Result<Vec<ZoneState>, Nonsense> {
    let (words, rest) = raw.payload.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Nonsense::Length { found: raw.payload_bytes });
    }
    let expected = shape.geometry.as_ref().map_or(0, Geometry::zone_count);
    if words.len() as u64 != u64::from(expected) {
        return Err(Nonsense::States { found: words.len() as u64, expected });
    }
    (0..).zip(words).map(|(zone, word)| Ok(state(shape, zone, u64::from_le_bytes(*word))?.1)).collect()
}

fn state(shape: &Shape, zone: u64, word: u64) -> Result<(u32, ZoneState), Nonsense> {
    let geometry = shape.geometry.as_ref().ok_or(Nonsense::Zone { zone })?;
    let index = u32::try_from(zone).ok().filter(|&zone| zone < geometry.zone_count());
    let index = index.ok_or(Nonsense::Zone { zone })?;
    let state = ZoneState::from_bits(word).ok_or(Nonsense::State { zone, word })?;
    state.check(geometry, index)?;
    Ok((index, state))
}

fn stretch(shape: &Shape, raw: &Raw) -> Result<Stretch, Nonsense> {
    let [offset_bytes] = raw.words()?;
    let len_bytes = u64::from(raw.payload_bytes) - 8;
    check_range(shape, offset_bytes, len_bytes)?;
    Ok(Stretch { offset_bytes, len_bytes, at_bytes: raw.at_bytes + 8 })
}

fn check_range(shape: &Shape, offset_bytes: u64, len_bytes: u64) -> Result<(), Nonsense> {
    match shape.place(offset_bytes, len_bytes) {
        Some(_) => Ok(()),
        None => Err(Nonsense::Range { offset_bytes, len_bytes }),
    }
}

/// A commit: its number, whether it is a flush, the zones finished and reset.
type CommitRecord = (u64, bool, Vec<u32>, Vec<u32>);

fn commit(shape: &Shape, raw: &Raw) -> Result<CommitRecord, Nonsense> {
    let length = || Nonsense::Length { found: raw.payload_bytes };
    let [id] = raw.words()?;
    let (numbers, rest) = raw.payload.get(8..).ok_or_else(length)?.as_chunks::<4>();
    let numbers: Vec<u32> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let [flush, finished, reset, _, zones @ ..] = &numbers[..] else { return Err(length()) };
    let counts = u64::from(*finished) + u64::from(*reset);
    if !rest.is_empty() || counts != zones.len() as u64 {
        return Err(length());
    }
    let zone_count = shape.geometry.as_ref().map_or(0, Geometry::zone_count);
    if let Some(&zone) = zones.iter().find(|&&zone| zone >= zone_count) {
        return Err(Nonsense::Zone { zone: zone.into() });
    }
    let (finished, reset) =
        zones.split_at(usize::try_from(*finished).unwrap_or(zones.len()).min(zones.len()));
    Ok((id, *flush == 1, finished.to_vec(), reset.to_vec()))
}
