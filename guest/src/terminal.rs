//! The user's terminal, lent to a guest and given back as it was.

use std::fs::File;
use std::io::IsTerminal;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::{Error, Result};

/// The terminal on standard input, opened a second time: the kernel makes its descriptor non-blocking and raw, and ours is
/// shared with the shell that started us.
#[derive(Debug)]
pub(crate) struct Terminal {
    file: File,
    before: Termios,
}

impl Terminal {
    pub(crate) fn open() -> Result<Terminal> {
        let path = "/proc/self/fd/0";
        if !std::io::stdin().is_terminal() {
            let value = "standard input".to_owned();
            return Err(Error::BadRequest {
                what: "an interactive guest on",
                value,
                problem: "it is no terminal",
            });
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("open the terminal", path))?;
        let before =
            tcgetattr(&file).map_err(|errno| Error::io("read the settings of", path)(errno.into()))?;
        Ok(Terminal { file, before })
    }

    /// A descriptor for the guest.
    pub(crate) fn lend(&self) -> Result<File> {
        self.file.try_clone().map_err(Error::io("duplicate", "the terminal"))
    }

    /// Rows and columns; 24 by 80 where the terminal does not know.
    pub(crate) fn size(&self) -> (u16, u16) {
        match tcgetwinsize(&self.file) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
            _ => (24, 80),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.file, OptionalActions::Drain, &self.before);
    }
}
