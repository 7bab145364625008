//! The data to write, in whole blocks.

use std::fs::File;
use std::io::{self, Read};

use crate::cli::InputArgs;
use crate::wrong_call;

/// A file or standard input.
pub(super) struct Input {
    from: Box<dyn Read>,
    name: String,
    /// What is handed on is a multiple of this.
    unit_bytes: u64,
    pad: bool,
    /// How much there is, where that is known.
    len_bytes: Option<u64>,
    buffer: Vec<u8>,
}

impl Input {
    /// Opens what the call names. Data comes in multiples of `unit_bytes`.
    ///
    /// # Errors
    /// There is no such file, or it is known already that its length can't be written.
    pub(super) fn open(args: &InputArgs, unit_bytes: u64) -> anyhow::Result<Self> {
        let mut len_bytes = None;
        let (from, name): (Box<dyn Read>, _) = match &args.input {
            Some(path) => {
                let name = path.display().to_string();
                let file = File::open(path).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => wrong_call(format!("{name}: {error}")),
                    _ => anyhow::anyhow!("{name}: {error}"),
                })?;
                let metadata = file.metadata()?;
                len_bytes = metadata.is_file().then_some(metadata.len());
                (Box::new(file), name)
            }
            None => (Box::new(io::stdin()), "standard input".to_owned()),
        };
        let mut input = Self { from, name, unit_bytes, pad: args.pad, len_bytes, buffer: Vec::new() };
        if let Some(len_bytes) = len_bytes {
            input.check_whole(len_bytes)?;
            input.len_bytes = Some(len_bytes.next_multiple_of(unit_bytes));
        }
        Ok(input)
    }

    /// How much will be handed on, where that is known.
    pub(super) fn len_bytes(&self) -> Option<u64> {
        self.len_bytes
    }

    /// The next bytes: at most `max_bytes` rounded down to whole units. Empty at the end, and where there is no room.
    ///
    /// # Errors
    /// It can't be read, or it ends inside a unit and is not to be padded.
    pub(super) fn next(&mut self, max_bytes: u64) -> anyhow::Result<&[u8]> {
        let max_bytes = usize::try_from(max_bytes - max_bytes % self.unit_bytes)?;
        self.buffer.resize(max_bytes, 0);
        let mut filled = 0;
        while let Some(rest) = self.buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(anyhow::anyhow!("{}: {error}", self.name)),
            }
        }
        self.check_whole(filled as u64)?;
        let padded = filled.next_multiple_of(usize::try_from(self.unit_bytes)?).min(max_bytes);
        self.buffer.truncate(padded);
        if let Some(padding) = self.buffer.get_mut(filled..) {
            padding.fill(0);
        }
        Ok(&self.buffer)
    }

    /// Whether there is more; what is found by this is not handed on.
    ///
    /// # Errors
    /// It can't be read.
    pub(super) fn has_more(&mut self) -> anyhow::Result<bool> {
        let mut byte = [0];
        loop {
            match self.from.read(&mut byte) {
                Ok(found) => return Ok(found > 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(anyhow::anyhow!("{}: {error}", self.name)),
            }
        }
    }

    fn check_whole(&self, len_bytes: u64) -> anyhow::Result<()> {
        let unit_bytes = self.unit_bytes;
        if self.pad || len_bytes.is_multiple_of(unit_bytes) {
            return Ok(());
        }
        Err(wrong_call(format!(
            "{} ends {} bytes into a block of {unit_bytes}; --pad fills the rest with zeros",
            self.name,
            len_bytes % unit_bytes
        )))
    }
}
