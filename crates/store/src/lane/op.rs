//! One read, write or clearing, from its submission to its end.

use std::io;
use std::sync::Arc;

use super::Event;
use super::tap::{Change, Tap, Tapped};
use crate::buffer::{IoBuffer, Segments, Window};

/// What an operation does with its range of the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
    /// Make it read as zeros; its space may go.
    PunchHole,
    /// Make it read as zeros; its space stays.
    ZeroRange,
    /// As the two above, where the file system can do neither.
    WriteZeros,
}

/// An operation under way.
pub(super) struct Op {
    pub(super) token: u64,
    pub(super) action: Action,
    buffer: Option<IoBuffer>,
    /// From the disk's start.
    offset_bytes: u64,
    len_bytes: u64,
    done_bytes: u64,
    /// A fault on purpose: the next system call moves no more than this.
    cut: Option<Cut>,
    scratch: Segments,
    /// Who waits for its end besides the lane's owner.
    tapped: Option<Tapped>,
}

/// What a fault on purpose does to the next system call of an operation.
#[derive(Clone, Copy)]
struct Cut {
    len_bytes: u64,
    /// How the operation ends then; `None`: it goes on.
    errno: Option<i32>,
}

/// What follows when one system call of an operation has returned.
pub(super) enum Step {
    /// Some is left, or the call must be made again.
    More,
    Done(io::Result<()>),
}

impl Op {
    pub(super) fn transfer(
        token: u64,
        action: Action,
        buffer: IoBuffer,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Self {
        Self::new(token, action, Some(buffer), offset_bytes, len_bytes)
    }

    pub(super) fn zero(token: u64, action: Action, offset_bytes: u64, len_bytes: u64) -> Self {
        Self::new(token, action, None, offset_bytes, len_bytes)
    }

    fn new(token: u64, action: Action, buffer: Option<IoBuffer>, offset_bytes: u64, len_bytes: u64) -> Self {
        Self {
            token,
            action,
            buffer,
            offset_bytes,
            len_bytes,
            done_bytes: 0,
            cut: None,
            scratch: Segments::default(),
            tapped: None,
        }
    }

    /// Where the part that is not done begins, from the disk's start.
    pub(super) fn at_bytes(&self) -> u64 {
        self.offset_bytes + self.done_bytes
    }

    /// How much is not done.
    pub(super) fn rest_bytes(&self) -> u64 {
        self.len_bytes - self.done_bytes
    }

    /// How much the next system call is to move, and how much was moved before.
    pub(super) fn next_bytes(&self) -> (u64, u64) {
        let rest_bytes = self.rest_bytes();
        (self.cut.map_or(rest_bytes, |cut| cut.len_bytes.min(rest_bytes)), self.done_bytes)
    }

    /// The next system call moves half of the rest; then the operation ends with `errno`, or goes on.
    pub(super) fn cut_short(&mut self, errno: Option<i32>) {
        self.cut = Some(Cut { len_bytes: (self.rest_bytes() / 2).max(1), errno });
    }

    /// The operation's whole range, from the disk's start.
    pub(super) fn end_bytes(&self) -> Option<u64> {
        self.offset_bytes.checked_add(self.len_bytes)
    }

    pub(super) fn buffer(&self) -> Option<&IoBuffer> {
        self.buffer.as_ref()
    }

    pub(super) fn buffer_mut(&mut self) -> Option<&mut IoBuffer> {
        self.buffer.as_mut()
    }

    /// Its buffer, when nothing is under way.
    pub(super) fn into_buffer(self) -> Option<IoBuffer> {
        self.buffer
    }

    /// The same with another buffer of the same length, and the one that it had.
    pub(super) fn exchange_buffer(&mut self, buffer: IoBuffer) -> Option<IoBuffer> {
        self.buffer.replace(buffer)
    }

    /// What a fault on purpose leaves of the next system call becomes whole blocks, at least one.
    pub(super) fn cut_at_block(&mut self, block_bytes: u64) {
        let rest_bytes = self.rest_bytes();
        if let Some(cut) = &mut self.cut {
            cut.len_bytes = (cut.len_bytes / block_bytes * block_bytes).max(block_bytes).min(rest_bytes);
        }
    }

    /// Whether a fault on purpose lies on it.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// Tells `tap` that this change begins. Returns whether it may.
    pub(super) fn begin(&mut self, tap: &Arc<dyn Tap>) -> bool {
        let (offset_bytes, len_bytes) = (self.offset_bytes, self.len_bytes);
        let change = match (self.action, &self.buffer) {
            (Action::Read, _) => return true,
            (_, Some(buffer)) => Change::Write { offset_bytes, buffer },
            (_, None) => Change::Zero { offset_bytes, len_bytes },
        };
        let id = tap.begin(&change);
        self.tapped = id.map(|id| Tapped::new(Arc::clone(tap), id));
        id.is_some()
    }

    /// The operation has ended: what its lane's owner is told.
    pub(super) fn into_event(self, result: io::Result<()>) -> Event {
        if let Some(tapped) = self.tapped {
            tapped.end(result.is_ok());
        }
        Event::Done { token: self.token, buffer: self.buffer, result }
    }

    /// The memory for the next system call.
    pub(super) fn window(&mut self) -> Window<'_> {
        let (next_bytes, done_bytes) = self.next_bytes();
        match (&self.buffer, to_usize(done_bytes), to_usize(next_bytes)) {
            (Some(buffer), Some(done), Some(next)) => buffer.window(done, next, &mut self.scratch),
            _ => self.scratch.zeros(next_bytes),
        }
    }

    /// Takes in what one system call has returned: the bytes it moved (0 from a clearing that succeeded).
    pub(super) fn advance(&mut self, result: io::Result<u64>) -> Step {
        let moved = match result {
            Ok(moved) => moved,
            Err(error) => return self.failed(error),
        };
        match self.action {
            Action::PunchHole | Action::ZeroRange => return Step::Done(Ok(())),
            Action::Read if moved == 0 => {
                let at = self.at_bytes();
                let what = format!(
                    "the medium ends {} bytes too early, at byte {at} of the disk",
                    self.rest_bytes()
                );
                return Step::Done(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
            }
            Action::Write | Action::WriteZeros if moved == 0 => {
                return Step::Done(Err(io::ErrorKind::WriteZero.into()));
            }
            Action::Read | Action::Write | Action::WriteZeros => {}
        }
        self.done_bytes += moved.min(self.rest_bytes());
        if let Some(errno) = self.cut.take().and_then(|cut| cut.errno) {
            return Step::Done(Err(io::Error::from_raw_os_error(errno)));
        }
        if self.rest_bytes() == 0 { Step::Done(Ok(())) } else { Step::More }
    }

    fn failed(&mut self, error: io::Error) -> Step {
        match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => Step::More,
            // EINVAL is what a block device says to a range that is not a whole number of its blocks.
            // ENOSPC and EDQUOT, a full host that has no room to write a hole down.
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOSPC | libc::EDQUOT)
                if matches!(self.action, Action::PunchHole | Action::ZeroRange) =>
            {
                self.action = Action::WriteZeros;
                Step::More
            }
            _ => Step::Done(Err(error)),
        }
    }
}

fn to_usize(bytes: u64) -> Option<usize> {
    usize::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(action: Action, len: usize) -> Op {
        Op::transfer(1, action, IoBuffer::owned(vec![0; len]), 4096, len as u64)
    }

    fn window_len(op: &mut Op) -> usize {
        op.window().iovecs().iter().map(|v| v.iov_len).sum()
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        let mut op = op(Action::Read, 1000);
        for (moved, rest) in [(1, 999), (500, 499), (498, 1)] {
            assert!(matches!(op.advance(Ok(moved)), Step::More));
            assert_eq!((op.rest_bytes(), op.at_bytes()), (rest, 4096 + 1000 - rest));
            assert_eq!(window_len(&mut op) as u64, rest);
        }
        assert!(matches!(op.advance(Ok(1)), Step::Done(Ok(()))));
    }

    #[test]
    fn a_cut_is_one_short_call_or_the_end() {
        let mut short = op(Action::Write, 1000);
        short.cut_short(None);
        assert_eq!(window_len(&mut short), 500);
        assert!(matches!(short.advance(Ok(500)), Step::More));
        assert_eq!(window_len(&mut short), 500);
        assert!(matches!(short.advance(Ok(500)), Step::Done(Ok(()))));

        let mut torn = op(Action::Write, 1000);
        torn.cut_short(Some(libc::EIO));
        let Step::Done(Err(error)) = torn.advance(Ok(500)) else { panic!("a torn write fails") };
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn interruptions_are_no_end_and_nothing_moved_is() {
        let mut read = op(Action::Read, 10);
        for errno in [libc::EINTR, libc::EAGAIN] {
            assert!(matches!(read.advance(Err(io::Error::from_raw_os_error(errno))), Step::More));
        }
        let Step::Done(Err(end)) = read.advance(Ok(0)) else { panic!("a read of nothing is the end") };
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        let Step::Done(Err(error)) = read.advance(Err(io::Error::from_raw_os_error(libc::EIO))) else {
            panic!("EIO is the end")
        };
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let Step::Done(Err(error)) = op(Action::Write, 10).advance(Ok(0)) else { panic!() };
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn what_can_not_be_punched_is_written() {
        for errno in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSPC] {
            let mut op = Op::zero(1, Action::PunchHole, 0, 10 << 20);
            assert!(matches!(op.advance(Err(io::Error::from_raw_os_error(errno))), Step::More));
            assert_eq!(op.action, Action::WriteZeros);
            let first = window_len(&mut op) as u64;
            assert!((1..10 << 20).contains(&first));
            assert!(matches!(op.advance(Ok(first)), Step::More));
            assert!(matches!(op.advance(Ok(op.rest_bytes())), Step::Done(Ok(()))));
        }
    }
}
