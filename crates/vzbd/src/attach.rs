//! How to attach a socket: lines ready to paste.

use std::path::Path;

/// The lines for a zoned disk with `queues` queues, or for a regular one.
pub(crate) fn lines(socket: &Path, queues: u16, zoned: bool) -> String {
    let socket = quoted(socket);
    let memory = "-object memory-backend-memfd,id=mem,size=1G,share=on -m 1G -machine q35,memory-backend=mem";
    let (needs, device) = match zoned {
        true => (
            "QEMU 10.2 or newer",
            format!(
                "-device vhost-user-test-device-pci,chardev=zbd,virtio-id=2,num_vqs={queues},vq_size=128,config_size=96"
            ),
        ),
        false => ("QEMU", format!("-device vhost-user-blk-pci,chardev=zbd,num-queues={queues}")),
    };
    format!(
        "attach it with one of\n  \
         User-mode Linux:     linux mem=1G virtio_uml.device={socket}:2 ...\n  \
         {needs}:{pad}qemu-system-x86_64 {memory} -chardev socket,id=zbd,path={socket} {device} ...\n\
         SIGTERM or Ctrl-C ends it cleanly.",
        pad = " ".repeat(20 - needs.len()),
    )
}

/// The path as a shell takes it in one piece.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_blanks_stays_in_one_piece() {
        assert_eq!(quoted(Path::new("/tmp/a.sock")), "/tmp/a.sock");
        assert_eq!(quoted(Path::new("/tmp/my disk's")), "'/tmp/my disk'\\''s'");
    }

    #[test]
    fn each_kind_of_disk_has_its_device() {
        let zoned = lines(Path::new("/tmp/a"), 2, true);
        assert!(zoned.contains("virtio_uml.device=/tmp/a:2") && zoned.contains("num_vqs=2"));
        assert!(lines(Path::new("/tmp/a"), 1, false).contains("vhost-user-blk-pci,chardev=zbd,num-queues=1"));
    }
}
