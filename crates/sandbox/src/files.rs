//! Landlock: no files but those that are open.

use std::fs;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

/// What is asked for; an older kernel gives what it has. Whatever is newer than the first version of Landlock (truncation
/// by path, device ioctls, TCP, abstract sockets, signals) is closed by the filter of system calls as well.
const VERSION: ABI = ABI::V6;

/// Confines this thread and all that it will start. The error is for people.
pub(crate) fn confine(remove_in: &[PathBuf]) -> Result<(), String> {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if let Ok(threads @ 2..) = threads {
        return Err(format!("there are {threads} threads already, and it holds for one"));
    }
    let failed = |error: landlock::RulesetError| error.to_string();
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(VERSION)))
        .and_then(|rules| rules.scope(Scope::from_all(VERSION)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for directory in remove_in {
        let directory = PathFd::new(directory).map_err(|error| error.to_string())?;
        rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile)).map_err(failed)?;
    }
    match rules.restrict_self().map_err(failed)?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err("the kernel does not have it, or it is not switched on".into()),
    }
}
