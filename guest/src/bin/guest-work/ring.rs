//! io_uring for reads, writes and syncs whose buffers are borrowed for as long as the kernel has them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};

/// The deepest queue that is asked for.
pub(crate) const DEPTH_MAX: u32 = 64;

/// One operation.
#[derive(Debug)]
pub(crate) enum Work<'a> {
    Write { file: BorrowedFd<'a>, offset: u64, bytes: &'a [u8] },
    Read { file: BorrowedFd<'a>, offset: u64, bytes: &'a mut [u8] },
}

/// A ring.
pub(crate) struct Ring {
    ring: IoUring,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Ring> {
        Ok(Ring { ring: IoUring::new(DEPTH_MAX)? })
    }

    /// Does all of `works`, given to the kernel in their order and at most `depth` of them under way. Answers each one's result:
    /// what was transferred, or the error's number below 0.
    pub(crate) fn run(&mut self, works: &mut [Work<'_>], depth: u32) -> io::Result<Vec<i32>> {
        let depth = depth.clamp(1, DEPTH_MAX) as usize;
        let mut results = vec![0; works.len()];
        let (mut given, mut done) = (0, 0);
        while done < works.len() {
            while given < works.len() && given - done < depth {
                let entry = works[given].entry().user_data(given as u64);
                // SAFETY: the file and the buffer are borrowed by `works`, which outlives this call; it ends when all are done,
                // or with the process (below). A buffer that is written to is borrowed by its work alone.
                let pushed = unsafe { self.ring.submission().push(&entry) };
                if pushed.is_err() {
                    break;
                }
                given += 1;
            }
            if let Err(error) = self.ring.submit_and_wait(1) {
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                // The kernel may still have buffers of the caller's: nobody may use them again.
                std::process::abort();
            }
            for completion in self.ring.completion() {
                if let Some(result) =
                    usize::try_from(completion.user_data()).ok().and_then(|at| results.get_mut(at))
                {
                    *result = completion.result();
                    done += 1;
                }
            }
        }
        Ok(results)
    }
}

impl Work<'_> {
    fn entry(&mut self) -> squeue::Entry {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match self {
            Work::Write { file, offset, bytes } => {
                opcode::Write::new(types::Fd(file.as_raw_fd()), bytes.as_ptr(), len(bytes))
                    .offset(*offset)
                    .build()
            }
            Work::Read { file, offset, bytes } => {
                opcode::Read::new(types::Fd(file.as_raw_fd()), bytes.as_mut_ptr(), len(bytes))
                    .offset(*offset)
                    .build()
            }
        }
    }
}
