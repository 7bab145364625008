//! A stock kernel's modules, a directory of them: files `NAME.ko`, and [`INDEX`] with what each needs and answers to, which a
//! distribution's installation would find out and ours does without.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One line a module: its name, the modules that it needs, and its other names; each divided by a tab, the names by blanks.
pub const INDEX: &str = "index";

/// What there is of modules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    by_name: BTreeMap<String, Module>,
}

/// What a module says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// The modules that have to be there before it.
    pub depends: Vec<String>,
    /// What the kernel asks for when it wants it: `fs-btrfs`.
    pub aliases: Vec<String>,
}

impl Module {
    /// From the module's file: its texts `depends=…` and `alias=…`.
    #[must_use]
    pub fn parse(file: &[u8]) -> Module {
        let mut module = Module::default();
        for text in file.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok()) {
            if let Some(names) = text.strip_prefix("depends=") {
                module.depends = names.split(',').filter(|name| !name.is_empty()).map(canonical).collect();
            } else if let Some(name) = text.strip_prefix("alias=") {
                module.aliases.push(canonical(name));
            }
        }
        module
    }
}

impl Modules {
    /// Adds one.
    pub fn insert(&mut self, name: &str, module: Module) {
        self.by_name.insert(canonical(name), module);
    }

    /// Whether it is there under this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(&canonical(name))
    }

    /// The modules to be loaded for `name` (or for an alias), itself last; none if there is none of that name.
    #[must_use]
    pub fn order(&self, name: &str) -> Vec<String> {
        let name = canonical(name);
        let found = self
            .by_name
            .get_key_value(&name)
            .or_else(|| self.by_name.iter().find(|(_, module)| module.aliases.contains(&name)));
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        if let Some((name, _)) = found {
            self.add(name, &mut seen, &mut order);
        }
        order
    }

    /// Each module once: a kernel's modules need each other in no circle, and a file that says so ends here, too.
    fn add<'a>(&'a self, name: &'a str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<String>) {
        // What is not among them is built into the kernel.
        let Some(module) = self.by_name.get(name).filter(|_| seen.insert(name)) else { return };
        for other in &module.depends {
            self.add(other, seen, order);
        }
        order.push(name.to_owned());
    }

    /// Reads the directory's index.
    ///
    /// # Errors
    /// It can't be read, or a line is none.
    pub fn read(dir: &Path) -> io::Result<Modules> {
        let text = fs::read_to_string(dir.join(INDEX))?;
        let mut modules = Modules::default();
        for line in text.lines() {
            let mut parts = line.split('\t');
            let (Some(name), Some(depends), Some(aliases)) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("no line of an index: {line}"),
                ));
            };
            let names = |text: &str| text.split(' ').filter(|name| !name.is_empty()).map(canonical).collect();
            modules.insert(name, Module { depends: names(depends), aliases: names(aliases) });
        }
        Ok(modules)
    }

    /// Writes the directory's index.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let lines = self.by_name.iter().map(|(name, module)| {
            format!("{name}\t{}\t{}\n", module.depends.join(" "), module.aliases.join(" "))
        });
        fs::write(dir.join(INDEX), lines.collect::<String>())
    }
}

/// The file of a module of this name.
#[must_use]
pub fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{}.ko", canonical(name)))
}

/// The kernel makes no difference between `-` and `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_says_is_found() {
        let file = b"\x7fELF..\0license=GPL\0depends=xor,raid6-pq\0alias=fs-btrfs\0alias=devname:btrfs-control\0\xff";
        let module = Module::parse(file);
        assert_eq!(module.depends, ["xor", "raid6_pq"]);
        assert_eq!(module.aliases, ["fs_btrfs", "devname:btrfs_control"]);
        assert_eq!(Module::parse(b"depends=\0"), Module::default());
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let mut modules = Modules::default();
        let needs = |names: &[&str]| Module {
            depends: names.iter().map(|name| canonical(name)).collect(),
            aliases: Vec::new(),
        };
        modules.insert("dm-zoned", needs(&["dm-mod", "crc", "built-in"]));
        modules.insert("dm-mod", needs(&["crc"]));
        modules.insert("crc", Module { aliases: vec!["fs_crc".to_owned()], ..Module::default() });
        modules.insert("a", needs(&["b"]));
        modules.insert("b", needs(&["a"]));
        assert_eq!(modules.order("dm-zoned"), ["crc", "dm_mod", "dm_zoned"]);
        assert_eq!(modules.order("fs-crc"), ["crc"]);
        assert_eq!(modules.order("no-such"), [""; 0]);
        assert_eq!(modules.order("a"), ["b", "a"]);
        let dir = tempfile::tempdir().unwrap();
        modules.write(dir.path()).unwrap();
        assert_eq!(Modules::read(dir.path()).unwrap(), modules);
    }
}
