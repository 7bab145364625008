//! What the front-end says, made of bytes.

use std::time::Duration;

use super::model::{
    CONFIG, F_PROTOCOL, Message, Model, Outcome, QUEUES, REPLY_ACK, STATUS, least_buffer, slot,
};
use super::peer::{Came, FDS_MAX, Peer};
use super::things::{MAIN_LEN, Thing, Things};
use crate::input::Input;

/// No input says more than this.
const STEPS: usize = 48;

/// Where the guest's memory usually is: guest and user address.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;

/// Where in the guest's memory nothing else is.
const SPARE: u64 = 0x1_0000 * QUEUES as u64;

/// Where in its slot a request has its header, and room for the answer.
const HEADER: u64 = 0x8000;
const ROOM: u64 = 0x9000;

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

pub(super) struct Script {
    model: Model,
    pub(super) peer: Peer,
    things: Things,
    /// What the disk offers.
    features: u64,
}

/// A message in the making.
#[derive(Clone, Debug)]
struct Draft {
    request: u32,
    flags: u32,
    payload: Vec<u8>,
    fds: Vec<Thing>,
}

impl Draft {
    fn new(request: u32, payload: Vec<u8>) -> Self {
        Self { request, flags: VERSION, payload, fds: Vec::new() }
    }

    fn with(mut self, fd: Thing) -> Self {
        self.fds.push(fd);
        self
    }
}

impl Script {
    pub(super) fn new(model: Model, peer: Peer, things: Things, features: u64) -> Self {
        Self { model, peer, things, features }
    }

    /// Talks until the bytes or the patience are over. False: the server has ended the connection, as it should.
    pub(super) fn run(&mut self, input: &mut Input<'_>) -> bool {
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            let step = input.u8();
            let alive = match step {
                0..16 => self.set_up(usize::from(step % 2), input),
                16..46 => {
                    self.request(usize::from(step % 2));
                    true
                }
                46..48 => self.take_memory_away(usize::from(step % 2)),
                48..50 => {
                    self.break_framing(input);
                    false
                }
                50..52 => {
                    self.scribble(input);
                    true
                }
                _ => {
                    let draft = self.draft(step, input);
                    self.say(&draft, input)
                }
            };
            if !alive {
                assert!(matches!(self.peer.recv(), Came::End), "the connection should have ended");
                return false;
            }
        }
        self.ask_for_everything()
    }

    /// What has been said leaves traces that nobody may have asked for yet. A reply that nobody wanted would come now, too.
    fn ask_for_everything(&mut self) -> bool {
        let mut script = vec![Draft::new(1, Vec::new()), Draft::new(15, Vec::new())];
        if self.model.has(STATUS) {
            script.push(Draft::new(40, Vec::new()));
        }
        if self.model.has(CONFIG) {
            script.push(Draft::new(24, words(&[0, 100, 0])));
        }
        for (index, size) in (0..).zip(self.model.rings.iter().map(|ring| ring.size)) {
            if self.model.has(REPLY_ACK) {
                // Refused while the queue runs.
                let size = size.map_or(1, u32::from);
                let mut draft = Draft::new(8, words(&[index, size]));
                draft.flags |= NEED_REPLY;
                script.push(draft);
            }
            script.push(Draft::new(11, words(&[index, 0])));
        }
        script.iter().all(|draft| self.say(draft, &mut Input::new(&[])))
    }

    /// The beginning of a message, and no more.
    pub(super) fn begin_message(&self, input: &mut Input<'_>) {
        let len = 1 + usize::from(input.u8() % 19);
        let message = [header(2, VERSION, 8), vec![0; 8]].concat();
        let fds = if input.one_in(2) { vec![self.things.fd(self.thing(input))] } else { Vec::new() };
        assert!(self.peer.send(&message[..len], &fds), "the server has gone");
    }

    /// Says it, in pieces, and compares the answer. False: the connection is over.
    fn say(&mut self, draft: &Draft, input: &mut Input<'_>) -> bool {
        let Draft { request, flags, payload, fds } = draft;
        let message = Message { request: *request, need_reply: flags & NEED_REPLY != 0, payload, fds };
        let framed = flags & 3 == VERSION && flags & REPLY == 0 && fds.len() <= 32;
        let outcome = if framed { self.model.take(&message) } else { Outcome::End };
        let len = u32::try_from(payload.len()).unwrap();
        let bytes = [header(*request, *flags, len), payload.clone()].concat();
        let cuts = input.u8();
        let mut at = vec![0, bytes.len()];
        at.extend((0..cuts & 3).map(|_| usize::from(input.u8()) % bytes.len()));
        at.sort_unstable();
        at.dedup();
        let with_fds = usize::from(cuts >> 2) % (at.len() - 1);
        for (i, pair) in at.windows(2).enumerate() {
            let borrowed: Vec<_> = fds.iter().map(|fd| self.things.fd(*fd)).collect();
            let fds = if i == with_fds { borrowed.as_slice() } else { &[] };
            let sent = self.peer.send(&bytes[pair[0]..pair[1]], fds);
            assert!(sent || outcome == Outcome::End, "the server has gone before the end of {draft:x?}");
        }
        let outcome = match outcome {
            Outcome::Nothing => return true,
            Outcome::End => return false,
            outcome => outcome,
        };
        let Came::Reply { request: answered, flags, payload, fds } = self.peer.recv() else {
            panic!("no answer to {draft:x?}");
        };
        assert_eq!((answered, flags), (*request, VERSION | REPLY), "the answer to {draft:x?}");
        assert_eq!(fds.len(), usize::from(matches!(outcome, Outcome::Buffer(_))), "descriptors");
        match outcome {
            Outcome::Reply(expected) => assert_eq!(payload, expected, "the answer to {draft:x?}"),
            Outcome::Buffer(described) => {
                let (len, rest) = payload.split_at(8);
                assert_eq!(rest, described, "the buffer's description");
                let len = u64::from_ne_bytes(len.try_into().unwrap());
                let short = |at: usize| u16::from_ne_bytes(rest[at..at + 2].try_into().unwrap());
                assert!(len >= least_buffer(short(8).into(), short(10)), "a buffer of {len} bytes");
                for fd in fds {
                    self.things.keep_buffer(fd, u32::try_from(len).unwrap());
                }
            }
            Outcome::BaseOf(index) => {
                let word = |n: usize| u32::from_ne_bytes(payload[4 * n..4 * n + 4].try_into().unwrap());
                assert_eq!((payload.len(), word(0)), (8, index));
                let ring = &mut self.model.rings[usize::try_from(index).unwrap()];
                ring.next_avail = Some(u16::try_from(word(1)).unwrap());
            }
            Outcome::Nothing | Outcome::End => unreachable!("looked at before"),
        }
        true
    }

    /// A queue set up as it should be, or nearly.
    fn set_up(&mut self, queue: usize, input: &mut Input<'_>) -> bool {
        let index = u32::try_from(queue).unwrap();
        let how = input.u8();
        let protocol = if how & 1 == 0 {
            self.model.protocol_offered
        } else {
            self.model.protocol_offered & u64::from(input.u32())
        };
        let features = if how & 2 == 0 { self.features | F_PROTOCOL } else { self.features & !(1 << 30) };
        let base = self.model.avail_idx[queue].unwrap_or(0);
        let size = 1u32 << (how >> 2 & 7);
        let [desc, avail, used] = slot(queue).map(|at| USER + at);
        let event = Thing::Event(u8::try_from(queue).unwrap());
        let call = Thing::Event(u8::try_from(queue).unwrap() + 2);
        let mut script = vec![
            Draft::new(16, protocol.to_ne_bytes().to_vec()),
            Draft::new(2, features.to_ne_bytes().to_vec()),
            Draft::new(11, words(&[index, 0])),
            Draft::new(5, [words(&[1, 0]), region(GUEST, MAIN_LEN, USER, 0)].concat()).with(Thing::Main),
            Draft::new(8, words(&[index, size])),
            Draft::new(10, words(&[index, base.into()])),
            Draft::new(9, [words(&[index, 0]), longs(&[desc, used, avail, 0])].concat()),
            Draft::new(13, longs(&[index.into()])).with(call),
            Draft::new(12, longs(&[index.into()])).with(event),
            Draft::new(18, words(&[index, 1])),
        ];
        if how & 0x80 != 0 {
            script.remove(usize::from(input.u8()) % script.len());
        }
        if how & 0x40 != 0 {
            script.iter_mut().for_each(|draft| draft.flags |= NEED_REPLY);
        }
        script.iter().all(|draft| self.say(draft, &mut Input::new(&[])))
    }

    /// Whether the model says that a queue runs, has nothing to do, and has room for a request at these places of its slot.
    fn is_idle(&self, queue: usize, places: [u64; 2]) -> Option<(u16, u16, [u64; 2])> {
        let ring = &self.model.rings[queue];
        let event = Thing::Event(u8::try_from(queue).unwrap());
        let alone = self.model.rings.iter().filter(|ring| ring.kick == Some(event)).count() == 1;
        let (next, size) = (ring.next_avail?, ring.size?);
        let in_place = self.model.areas(queue) == Some(slot(queue));
        let idle = ring.running && in_place && self.model.avail_idx[queue] == Some(next);
        if !idle || !alone || ring.kick != Some(event) || size < 2 {
            return None;
        }
        let whole = |at: u64| {
            let (first, last) = (self.model.guest_address(at)?, self.model.guest_address(at + 31)?);
            (last == first + 31).then_some(first)
        };
        let [header, room] = places.map(|at| whole(0x1_0000 * queue as u64 + at));
        Some((next, size, [header?, room?]))
    }

    /// The memory of a queue that runs is truncated, and the queue kicked: that costs the connection. False: it is over.
    fn take_memory_away(&mut self, queue: usize) -> bool {
        if self.is_idle(queue, [HEADER, ROOM]).is_none() {
            return true;
        }
        // What was said without asking for an answer has been done when this is answered.
        assert!(self.say(&Draft::new(1, Vec::new()), &mut Input::new(&[])));
        self.things.main.set_len(0).unwrap();
        let event = self.things.fd(Thing::Event(u8::try_from(queue).unwrap()));
        rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
        false
    }

    /// Where the model says that a queue runs and has nothing to do, it is given something.
    fn request(&mut self, queue: usize) {
        let base = 0x1_0000 * queue as u64;
        let event = Thing::Event(u8::try_from(queue).unwrap());
        let Some((next, size, [header, room])) = self.is_idle(queue, [HEADER, ROOM]) else { return };
        // What was said without asking for an answer has been done when this is answered.
        assert!(self.say(&Draft::new(1, Vec::new()), &mut Input::new(&[])));
        let [desc, avail, used] = slot(queue);
        // GET_ID, in two descriptors.
        self.things.write(base + HEADER, &[words(&[8, 0]), longs(&[0])].concat());
        self.things.write(base + ROOM, &[0xdb; 22]);
        let descriptor = |addr: u64, len: u32, flags: u32| [longs(&[addr]), words(&[len, flags])].concat();
        self.things.write(desc, &[descriptor(header, 16, 1 | 1 << 16), descriptor(room, 21, 2)].concat());
        let used_before = self.things.word(used + 2);
        self.things.write(avail + 4 + 2 * u64::from(next % size), &[0, 0]);
        let next = next.wrapping_add(1);
        self.things.write(avail, &[0, 0]);
        self.things.write(avail + 2, &next.to_le_bytes());
        rustix::io::write(self.things.fd(event), &1u64.to_ne_bytes()).unwrap();
        let done = (0..50_000).any(|turn| {
            if turn > 50 {
                std::thread::sleep(Duration::from_micros(100));
            }
            self.things.word(used + 2) != used_before
        });
        assert!(done, "queue {queue} runs and does not serve");
        let element = self.things.read(used + 4 + 8 * u64::from(used_before % size), 8);
        let answer = self.things.read(base + ROOM, 22);
        let (status, used_len) = if self.model.accepted().is_some() { (0, 21) } else { (1, 0) };
        assert_eq!((answer[20], answer[21]), (status, 0xdb));
        assert_eq!(element, words(&[0, used_len]));
        self.model.rings[queue].next_avail = Some(next);
        self.model.avail_idx[queue] = Some(next);
    }

    /// What no front-end says, and what ends each connection.
    fn break_framing(&self, input: &mut Input<'_>) {
        let request = u32::from(input.u8() % 48);
        let bytes = match input.u8() % 3 {
            0 => header(request, VERSION ^ (1 + u32::from(input.u8() % 3)), 0),
            1 => header(request, VERSION | REPLY | u32::from(input.u8()) << 3, 0),
            _ => header(request, VERSION, 4097 + input.u32() % (u32::MAX - 4097)),
        };
        let fds = if input.one_in(2) { vec![self.things.fd(self.thing(input))] } else { Vec::new() };
        assert!(self.peer.send(&bytes, &fds), "the server has gone");
    }
}

/// One message, likely or not.
impl Script {
    fn draft(&self, step: u8, input: &mut Input<'_>) -> Draft {
        let how = input.u8();
        let request = match step {
            250.. => input.u32(),
            _ => u32::from(step - 52) % 46,
        };
        let index = if how & 0x30 == 0x30 { u32::from(input.u8()) } else { u32::from(how >> 5 & 1) };
        let mut fds = Vec::new();
        let mut payload = match request {
            1 | 3 | 4 | 15 | 17 | 34 | 36 | 40 => Vec::new(),
            2 => longs(&[match input.u8() % 6 {
                0 => self.features | F_PROTOCOL,
                1 => self.features,
                2 => F_PROTOCOL,
                3 => self.features & !(1 << input.below(36)) | F_PROTOCOL,
                4 => 0,
                _ => input.u64(),
            }]),
            16 => longs(&[if input.one_in(8) {
                input.u64()
            } else {
                self.model.protocol_offered & !u64::from(input.u32())
            }]),
            39 => longs(&[if input.one_in(8) { input.u64() } else { input.u8().into() }]),
            5 => {
                let count = u32::from(input.u8() % 4);
                let named = if input.one_in(8) { input.u32() } else { count };
                let mut bytes = words(&[named, input.u8().into()]);
                for _ in 0..count {
                    bytes.extend(self.region(input));
                    fds.push(self.memory(input));
                }
                bytes
            }
            37 | 38 => {
                if request == 37 || input.u8() & 1 == 1 {
                    fds.push(self.memory(input));
                }
                [longs(&[0]), self.region(input)].concat()
            }
            8 => words(&[index, if input.one_in(8) { input.u32() } else { 1 << input.below(12) }]),
            10 => words(&[
                index,
                match input.u8() % 4 {
                    0 => 0,
                    1 => input.u8().into(),
                    2 => input.u16().into(),
                    _ => input.u32(),
                },
            ]),
            9 => {
                let flags = if input.one_in(16) { input.u32() } else { 0 };
                let slot = slot(usize::from(input.u8() % 2));
                let [desc, avail, used] = slot.map(|at| {
                    let moved = input.u8();
                    let by = if moved < 0xc0 { 0 } else { u64::from(moved & 0x3f) << input.below(14) };
                    if moved == 0xff { input.u64() } else { USER + at + by }
                });
                [words(&[index, flags]), longs(&[desc, used, avail, 0])].concat()
            }
            11 => words(&[index, input.u8().into()]),
            18 => words(&[index, if input.one_in(16) { input.u32() } else { u32::from(input.u8() & 1) }]),
            12..=14 => {
                let without = input.one_in(8);
                if !without {
                    fds.push(if input.one_in(3) {
                        self.thing(input)
                    } else {
                        Thing::Event(u8::try_from(index % 2).unwrap() + 2 * u8::from(request == 13))
                    });
                }
                let odd = if input.one_in(16) { input.u64() } else { 0 };
                longs(&[u64::from(index & 0xff) | u64::from(without) << 8 | odd])
            }
            21 => {
                fds.push(self.thing(input));
                Vec::new()
            }
            31 | 32 => {
                if request == 32 {
                    let buffer = self.things.buffer().map_or(Thing::Main, Thing::Buffer);
                    fds.push(if input.one_in(3) { self.thing(input) } else { buffer });
                }
                self.buffer(input)
            }
            24 | 25 => {
                let offset = if input.one_in(8) { input.u32() } else { u32::from(input.u8() % 100) };
                let len = if input.one_in(8) { input.u16().into() } else { u32::from(input.u8() % 4) + 1 };
                let flags = if input.one_in(8) { input.u32() } else { 0 };
                let data = match input.u8() % 4 {
                    0 => vec![0; usize::try_from(len.min(300)).unwrap()],
                    1 => vec![1; usize::try_from(len.min(300)).unwrap()],
                    _ => input.bytes(usize::try_from(len.min(300)).unwrap()).to_vec(),
                };
                [words(&[offset, len, flags]), data].concat()
            }
            _ => {
                let len = usize::from(input.u8() % 64);
                input.bytes(len).to_vec()
            }
        };
        match how & 0x0f {
            0xd => {
                payload.truncate(usize::from(input.u8()));
            }
            0xe => payload.resize(payload.len() + usize::from(input.u8()), 0x11),
            0xf => {
                let count = if input.one_in(8) { FDS_MAX } else { usize::from(input.u8() % 4) };
                fds = (0..count).map(|_| self.thing(input)).collect();
            }
            _ => {}
        }
        let flags = if how & 0x40 != 0 { NEED_REPLY } else { 0 };
        let odd = if how & 0x80 != 0 { u32::from(input.u8()) << 4 } else { 0 };
        Draft { request, flags: VERSION | flags | odd, payload, fds }
    }

    fn thing(&self, input: &mut Input<'_>) -> Thing {
        Thing::numbered(input.u8(), self.things.buffer())
    }

    fn memory(&self, input: &mut Input<'_>) -> Thing {
        if input.one_in(4) { self.thing(input) } else { Thing::Main }
    }

    /// Length, offset, queues and their size of a buffer for requests under way.
    fn buffer(&self, input: &mut Input<'_>) -> Vec<u8> {
        let (queues, size) = match input.u8() % 8 {
            0 => (input.u16(), input.u16()),
            how => (1 + u16::from(how & 1), 1 << (how >> 1)),
        };
        let least = least_buffer(queues.into(), size);
        let len = match input.u8() % 8 {
            0 => input.u64() >> (input.u8() & 63),
            1 => least.saturating_sub(1),
            2 => u64::from(self.things.buffer().unwrap_or(0)),
            _ => least,
        };
        let offset = match input.u8() % 8 {
            0 => input.u64() >> (input.u8() & 63),
            1 => u64::from(input.u8()),
            2 | 3 => 0,
            _ => SPARE,
        };
        let mut bytes = longs(&[len, offset]);
        bytes.extend([queues, size].map(u16::to_ne_bytes).concat());
        bytes.resize(20 + usize::from(input.u8() % 5), 0);
        bytes
    }

    /// Memory changes: behind the queues' slots, as a buffer for requests under way may have it, or anywhere.
    fn scribble(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16());
        let len = usize::from(input.u8() % 128);
        let bytes = input.bytes(len).to_vec();
        if input.one_in(4) {
            // Whoever serves a queue there may have read it before or behind this.
            self.model.forget_slots();
            self.things.write(at * 2, &bytes);
        } else {
            self.things.write(SPARE + at, &bytes);
        }
    }

    fn region(&self, input: &mut Input<'_>) -> Vec<u8> {
        let how = input.u8();
        let page = |input: &mut Input<'_>, shift: u8| u64::from(input.u8()) << shift;
        let guest = match how & 3 {
            0 | 1 => GUEST,
            2 => page(input, 12),
            _ => input.u64(),
        };
        let size = match how >> 2 & 3 {
            0 | 1 => MAIN_LEN,
            2 => page(input, 10),
            _ => input.u64() >> (input.u8() & 63),
        };
        let user = match how >> 4 & 3 {
            0 | 1 => USER,
            2 => page(input, 20),
            _ => input.u64(),
        };
        let offset = match how >> 6 {
            0 | 1 => 0,
            2 => page(input, 9),
            _ => input.u64() >> (input.u8() & 63),
        };
        region(guest, size, user, offset)
    }
}

fn region(guest: u64, size: u64, user: u64, offset: u64) -> Vec<u8> {
    longs(&[guest, size, user, offset])
}

/// A message's header: three numbers in the machine's order.
fn header(request: u32, flags: u32, len: u32) -> Vec<u8> {
    words(&[request, flags, len])
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}
