//! Disks without room, and processes without memory.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The words for a disk without room.
const FULL_DISK_WORDS: &[&str] = &[
    "No space left on device",
    "no space left on device",
    "ENOSPC",
    "Disk quota exceeded",
    "disk quota exceeded",
];

/// The words for a process without memory, or one that the kernel has killed.
const OUT_OF_MEMORY_OR_KILLED_WORDS: &[&str] = &[
    "JavaScript heap out of memory",
    "runtime: out of memory",
    "java.lang.OutOfMemoryError",
    "Cannot allocate memory",
    "cannot allocate memory",
    "virtual memory exhausted",
    "std::bad_alloc",
    "(signal: 9, SIGKILL: kill)",
    "signal: killed",
    "fatal error: Killed signal terminated program",
    "collect2: fatal error: ld terminated with signal 9",
    "MemoryError",
];

/// The exit code of a process that signal 9 ended.
const EXIT_CODE_KILLED: u32 = 137;

/// Explains a disk without room.
pub(super) fn explain_full_disk(evidence: &Evidence<'_>) -> Option<Hint> {
    // Linux has the same error for a process that watches too many files.
    let is_watcher = |line: &str| line.contains("watch");
    let is_full = |line: &str| !is_watcher(line) && FULL_DISK_WORDS.iter().any(|words| line.contains(words));
    if evidence.process_failure_reason().is_some() {
        let line = evidence.lines().rev().take(80).find(|line| is_full(line))?;
        return Some(Hint::new(
            HintKind::DiskFull,
            format!("the disk that the step writes to is full: {line}"),
            "let the step write less, and delete what it does not need any more; if it is BuildKit's disk, the operator can enlarge \
             it or prune the cache",
        ));
    }
    is_full(&evidence.error).then(|| {
        Hint::new(
            HintKind::DiskFull,
            format!("a disk of the builder or of BuildKit is full: {}", evidence.error),
            "build again later; if that fails too, the operator can enlarge the disk or prune BuildKit's cache",
        )
    })
}

/// Explains a process without memory, or one that was killed.
pub(super) fn explain_out_of_memory(evidence: &Evidence<'_>) -> Option<Hint> {
    let reason = evidence.process_failure_reason()?;
    let next = "let the step use less memory, such as fewer jobs at the same time; if it needs it, the operator can raise the \
                memory of build steps";
    let mut last = evidence.lines().rev().take(80);
    if let Some(line) = last.find(|line| {
        OUT_OF_MEMORY_OR_KILLED_WORDS
            .iter()
            .any(|words| line.contains(words))
    }) {
        let line = text::one_line_cut_with_ellipsis(line, super::MAX_NAME_OR_LINE_BYTES);
        return Some(Hint::new(
            HintKind::OutOfMemory,
            format!("a process of the step had no memory left or was killed: {line}"),
            next,
        ));
    }
    // BuildKit saw the kernel kill a process of the step: `executor/runcexecutor/executor_linux.go`.
    if reason.contains("cannot allocate memory") {
        let cause = "the kernel killed a process of the step, because the step's memory was used up";
        return Some(Hint::new(HintKind::OutOfMemory, cause, next));
    }
    (evidence.exit_code() == Some(EXIT_CODE_KILLED)).then(|| {
        Hint::new(
            HintKind::OutOfMemory,
            "a process of the step was killed by signal 9 (exit code 137), as the kernel does when the step's memory is used up",
            next,
        )
    })
}
