//! The measurements of one phase of a flood benchmark.

use std::{fmt, fs, time::Duration};

use anyhow::{Context as _, Result};

use super::{metrics::BodySamplesDisplacementsAndBuildTime, processors::ProcessorTimesByPart};

/// The measurements of one phase: with the flood, or without it.
#[derive(Debug, Default)]
pub struct FloodPhase {
    /// The durations of the builds that succeeded, sorted.
    pub durations: Vec<Duration>,
    /// The failures of the other builds.
    pub failures: Vec<String>,
    /// The peak memory of builder-fn, in bytes.
    pub builder: u64,
    /// The peak memory of deployer-fn, in bytes.
    pub deployer: u64,
    /// The processor time of each part.
    pub(super) processors: ProcessorTimesByPart,
    /// The use of builder-fn's budget for unverified bodies.
    pub(super) budget: BodySamplesDisplacementsAndBuildTime,
}

impl FloodPhase {
    /// Returns this quantile of the durations, or zero if no build succeeded.
    pub fn quantile_or_zero(&self, part: f64) -> Duration {
        let last = self.durations.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.durations.get(at).copied().unwrap_or_default()
    }
}

impl fmt::Display for FloodPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "  {} built, {} failed; p50 {:.3?}, p95 {:.3?}, longest {:.3?}",
            self.durations.len(),
            self.failures.len(),
            self.quantile_or_zero(0.5),
            self.quantile_or_zero(0.95),
            self.quantile_or_zero(1.0),
        )?;
        let (builder, deployer) = (mebibytes(self.builder), mebibytes(self.deployer));
        writeln!(
            f,
            "  peak memory: builder-fn {builder:.1} MiB, deployer-fn {deployer:.1} MiB"
        )?;
        writeln!(f, "  processor time: {}", self.processors)?;
        write!(f, "  {}", self.budget)
    }
}

/// Returns the peak of a process's resident memory since its last reset, in bytes.
pub fn peak_memory_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
