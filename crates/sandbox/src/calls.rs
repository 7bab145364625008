//! seccomp: the system calls that a server makes, and no others.
//!
//! Four small filters, of which the kernel takes the strictest answer: one says what is allowed, the others which of that
//! is answered with an error instead. The lists are for x86_64 and aarch64, and for what glibc calls.

use std::collections::BTreeMap;

use libc::{CLONE_THREAD, PR_SET_NAME, PROT_EXEC};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use crate::last_words;

/// Allowed whatever their arguments.
const ALLOWED: &[i64] = &[
    // What is open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_sync_file_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_close,
    libc::SYS_io_uring_enter,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Connections that come in, and what comes over them.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    // New ones that lead nowhere else.
    libc::SYS_eventfd2,
    libc::SYS_memfd_create,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to ourselves: a front-end's memory that is gone, SIGTERM, the last words.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// Ways to a file by its name. The C library tries some of them in passing (how many processors, which time zone) and
/// copes; so does a panic that looks for its symbols.
const LOOKING_FOR_FILES: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
];

/// Removing files by their names: Landlock says where, or it is refused like the others.
const REMOVING_FILES: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// More io_urings, whose operations nothing would restrict; device controls; limits. Who asks for them goes on without.
const NOT_FOR_US: &[i64] =
    &[libc::SYS_io_uring_setup, libc::SYS_io_uring_register, libc::SYS_ioctl, libc::SYS_prlimit64];

/// Names of anonymous memory, for those who look at /proc; newer C libraries give them.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// A process's own auxiliary vector: how rustix finds the page size.
const PR_GET_AUXV: u64 = 0x4155_5856;

/// Confines all threads of this process. The error is for people.
pub(crate) fn confine(removes: bool, also: &[i64], controls: &[u32]) -> Result<(), String> {
    let mut allowed = some_arguments_only()?;
    let refused: Vec<i64> = LOOKING_FOR_FILES
        .iter()
        .chain(REMOVING_FILES.iter().filter(|_| !removes))
        .copied()
        .filter(|call| !also.contains(call))
        .collect();
    let not_for_us: Vec<i64> = NOT_FOR_US.iter().copied().filter(|call| !also.contains(call)).collect();
    for call in [ALLOWED, LOOKING_FOR_FILES, REMOVING_FILES, NOT_FOR_US, &[libc::SYS_clone3], also].concat() {
        // No conditions: as it is.
        allowed.insert(call, Vec::new());
    }
    // Its flags are out of a filter's reach. Without it the C library takes clone.
    let clone3 = if also.contains(&libc::SYS_clone3) { vec![] } else { vec![libc::SYS_clone3] };
    let refusing = [(refused, libc::EACCES), (not_for_us, libc::EPERM), (clone3, libc::ENOSYS)];

    let mut programs = Vec::new();
    for (calls, errno) in refusing {
        if !calls.is_empty() {
            let errno = SeccompAction::Errno(errno.unsigned_abs());
            let rules = calls.into_iter().map(|call| match call {
                libc::SYS_ioctl => Ok((call, none_of(controls)?)),
                call => Ok((call, Vec::new())),
            });
            let rules = rules.collect::<Result<_, seccompiler::BackendError>>();
            let rules = rules.map_err(|error| format!("no filter: {error}"))?;
            programs.push(program(rules, SeccompAction::Allow, errno)?);
        }
    }
    // Last: it allows no more filters.
    programs.push(program(allowed, SeccompAction::Trap, SeccompAction::Allow)?);

    // Looked for now: an older kernel has it in a file only.
    let _ = rustix::param::page_size();
    last_words::prepare().map_err(|error| format!("no handler for SIGSYS: {error}"))?;
    programs.iter().try_for_each(|program| {
        apply_filter_all_threads(program)
            .map_err(|error| format!("the kernel does not take the filter: {error}"))
    })
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| format!("there is no filter for {}", std::env::consts::ARCH))?;
    SeccompFilter::new(rules, otherwise, action, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| format!("no filter: {error}"))
}

/// What is allowed with some arguments only.
fn some_arguments_only() -> Result<BTreeMap<i64, Vec<SeccompRule>>, String> {
    let bits = |argument, mask: i32, value| {
        let mask = u64::from(mask.unsigned_abs());
        condition(argument, SeccompCmpOp::MaskedEq(mask), value)
    };
    let is = |argument, value| condition(argument, SeccompCmpOp::Eq, value);
    let thread = u64::from(CLONE_THREAD.unsigned_abs());
    let ourselves = u64::from(std::process::id());
    let rules = [
        // No code but what is there.
        (libc::SYS_mmap, vec![bits(2, PROT_EXEC, 0)]),
        (libc::SYS_mprotect, vec![bits(2, PROT_EXEC, 0)]),
        // Threads, no processes.
        (libc::SYS_clone, vec![bits(0, CLONE_THREAD, thread)]),
        (libc::SYS_tgkill, vec![is(0, ourselves)]),
        (
            libc::SYS_prctl,
            vec![is(0, u64::from(PR_SET_NAME.unsigned_abs())), is(0, PR_SET_VMA), is(0, PR_GET_AUXV)],
        ),
    ];
    let mut map = BTreeMap::new();
    for (call, conditions) in rules {
        // One of them is enough.
        let alternatives = conditions
            .into_iter()
            .map(|condition| SeccompRule::new(vec![condition?]))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("no filter: {error}"))?;
        map.insert(call, alternatives);
    }
    Ok(map)
}

/// That a device control is none of these; of no numbers, any.
fn none_of(controls: &[u32]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    if controls.is_empty() {
        return Ok(Vec::new());
    }
    let is_not = |number: &u32| condition(1, SeccompCmpOp::Ne, (*number).into());
    Ok(vec![SeccompRule::new(controls.iter().map(is_not).collect::<Result<_, _>>()?)?])
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}
