//! Limits on what build steps use of the machine.

use std::{fs, thread};

use serde::{Deserialize, Serialize};

use crate::error::{IoResultExt as _, LauncherError, Result};

const BYTES_PER_GIB: u64 = 1 << 30;

/// Limits on what one build step and all build steps together use of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepResourceLimits {
    /// The memory of one build step, in bytes.
    pub memory: u64,
    /// The memory of all build steps together, in bytes.
    pub total_memory: u64,
    /// The number of CPUs whose time one build step may use; concurrent steps share the machine's CPUs equally.
    pub cpus: f64,
    /// The processes and threads of one build step.
    pub processes: u64,
    /// The size of the file system with BuildKit's data, in bytes. Build steps, caches and images share it.
    pub disk: u64,
}

/// The limit on processes of all build steps together, as a multiple of the limit of one step.
const TOTAL_PROCESSES_FACTOR: u64 = 4;

impl StepResourceLimits {
    /// Returns the limits for this machine: half of its memory for one step, three quarters for all steps, all CPUs,
    /// 4096 processes, and 30 GiB of disk.
    pub fn for_this_machine() -> Result<Self> {
        let path = "/proc/meminfo";
        let meminfo = fs::read_to_string(path).with_operation("read", path)?;
        let memory = memory_bytes_in_meminfo(&meminfo)
            .ok_or_else(|| LauncherError::Environment(format!("{path} has no line MemTotal")))?;
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            memory: memory / 2,
            total_memory: memory / 4 * 3,
            cpus: u32::try_from(cpus).map_or(1.0, f64::from),
            processes: 4096,
            disk: 30 * BYTES_PER_GIB,
        })
    }

    /// Returns the limit on processes and threads of all build steps together.
    pub(crate) fn total_processes(&self) -> u64 {
        self.processes.saturating_mul(TOTAL_PROCESSES_FACTOR)
    }
}

/// Returns the machine's memory in bytes, from `/proc/meminfo`.
fn memory_bytes_in_meminfo(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Parses a size with an optional suffix K, M, G or T (powers of 1024) to a number of bytes; 0 is rejected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        Some('T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let size = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    size.filter(|size| *size > 0)
        .ok_or_else(|| "not a size in bytes, such as 512M or 30G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_whole_number_above_zero_with_or_without_a_suffix() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in ["0", "", "G", "-1", "1.5G", "5KK", "99999999999T"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_step_gets_less_memory_than_all_steps_and_all_less_than_the_machine() {
        let limits = StepResourceLimits::for_this_machine().unwrap();
        let machine = memory_bytes_in_meminfo(&fs::read_to_string("/proc/meminfo").unwrap()).unwrap();
        assert!(limits.memory < limits.total_memory && limits.total_memory < machine);
    }
}
