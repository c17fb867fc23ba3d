//! The processor time of the parts of a stack.

use std::{collections::BTreeMap, fmt, fs, time::Duration};

use anyhow::{Context as _, Result};

/// The unit of the processor times in `/proc/PID/stat` and `/proc/stat`, a hundredth of a second (proc_pid_stat(5),
/// `USER_HZ`).
const PROC_STAT_TICK: Duration = Duration::from_millis(10);

/// The index, from 0, of the user time among the fields after a process's name; the system time follows.
const USER_TIME_FIELD_INDEX: usize = 11;

/// A process whose processor time is measured, with the name of the part that it belongs to.
#[derive(Debug, Clone)]
pub(super) struct MeasuredProcess {
    part: &'static str,
    pid: u32,
}

/// The processor times of the parts, and of the whole machine.
#[derive(Debug, Default)]
pub(super) struct ProcessorTimesByPart {
    parts: BTreeMap<&'static str, Duration>,
    /// The time for which the machine's processors were not idle.
    machine: Duration,
    elapsed: Duration,
}

impl MeasuredProcess {
    pub(super) fn new(part: &'static str, pid: u32) -> Self {
        Self { part, pid }
    }
}

impl ProcessorTimesByPart {
    /// Reads the times of these processes so far. One that has ended counts as zero.
    pub(super) fn read_or_zero_if_ended(processes: &[MeasuredProcess]) -> Result<Self> {
        let mut parts = BTreeMap::new();
        for process in processes {
            let time = processor_time(process.pid).unwrap_or_default();
            *parts.entry(process.part).or_default() += time;
        }
        let stat = fs::read_to_string("/proc/stat")?;
        let fields = stat.lines().next().context("/proc/stat is empty")?;
        let fields: Vec<u32> = fields
            .split_whitespace()
            .skip(1)
            .map_while(|field| field.parse().ok())
            .collect();
        // User, nice, system; idle and I/O wait; interrupts and steal.
        let busy = fields
            .iter()
            .take(3)
            .chain(fields.iter().skip(5).take(3))
            .sum::<u32>();
        Ok(Self {
            parts,
            machine: PROC_STAT_TICK * busy,
            elapsed: Duration::ZERO,
        })
    }

    /// Returns the times since `before`, which was `elapsed` ago.
    pub(super) fn since(mut self, before: &Self, elapsed: Duration) -> Self {
        for (part, time) in &mut self.parts {
            let before = before.parts.get(part).copied().unwrap_or_default();
            *time = time.saturating_sub(before);
        }
        self.machine = self.machine.saturating_sub(before.machine);
        self.elapsed = elapsed;
        self
    }
}

impl fmt::Display for ProcessorTimesByPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |time: Duration| 100.0 * time.as_secs_f64() / self.elapsed.as_secs_f64();
        for (part, time) in &self.parts {
            write!(f, "{part} {:.0} %, ", share(*time))?;
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        write!(
            f,
            "whole machine {:.0} % of {} %",
            share(self.machine),
            100 * processors
        )
    }
}

/// Returns the ids of all processes that run this program.
pub(super) fn find_processes(program: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        // A process may exit while the list is read.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let path = line.split('\0').next().unwrap_or_default();
        if path.rsplit('/').next() == Some(program) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Returns the processor time that all threads of a process have used so far.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain blanks.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let times = fields.split_whitespace().skip(USER_TIME_FIELD_INDEX).take(2);
    let times = times
        .map(|field| Ok(field.parse::<u32>()?))
        .collect::<Result<Vec<_>>>()?;
    Ok(PROC_STAT_TICK * times.into_iter().sum::<u32>())
}
