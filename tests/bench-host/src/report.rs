//! The printed report of the benchmark. Only this module prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the output of a command-line program"
)]

use std::time::Duration;

use crate::load::LoadResult;

/// The figures of one round of load on a server.
pub(crate) struct LoadRound {
    pub(crate) load: LoadResult,
    pub(crate) processor_time: Duration,
}

impl LoadRound {
    fn requests_per_second(&self) -> f64 {
        self.load.requests as f64 / self.load.duration.as_secs_f64()
    }
}

/// Two rounds of load on the two servers, one right after the other.
pub(crate) struct RoundPair {
    pub(crate) plain: LoadRound,
    pub(crate) host: LoadRound,
}

/// Prints the figures of all rounds. The peaks of memory are in KiB.
pub(crate) fn print_summary(pairs: &[RoundPair], plain_peak_kib: u64, host_peak_kib: u64) {
    let median_of = |value: fn(&RoundPair) -> f64| median_or_zero(pairs.iter().map(value).collect());
    println!(
        "requests per second: plain {:.0}, host {:.0}, median ratio {:.3}",
        median_of(|pair| pair.plain.requests_per_second()),
        median_of(|pair| pair.host.requests_per_second()),
        median_of(|pair| pair.host.requests_per_second() / pair.plain.requests_per_second()),
    );
    // Over all rounds together, because a single one is too short for the resolution of the kernel's clock.
    let (plain, host) = (
        mean_processor_microseconds_per_request(pairs.iter().map(|pair| &pair.plain)),
        mean_processor_microseconds_per_request(pairs.iter().map(|pair| &pair.host)),
    );
    println!(
        "processor time per request: plain {plain:.2} us, host {host:.2} us, ratio {:.3}",
        host / plain
    );
    let ratio = host_peak_kib as f64 / plain_peak_kib as f64;
    println!("peak memory: plain {plain_peak_kib} KiB, host {host_peak_kib} KiB, ratio {ratio:.3}");
}

/// Returns the mean processor time per request in several rounds, in microseconds.
fn mean_processor_microseconds_per_request<'a>(rounds: impl Iterator<Item = &'a LoadRound>) -> f64 {
    let (requests, time) = rounds.fold((0, Duration::ZERO), |(requests, time), round| {
        (requests + round.load.requests, time + round.processor_time)
    });
    time.as_secs_f64() * 1e6 / requests as f64
}

/// Prints an error and its sources.
pub(crate) fn print_error(error: &anyhow::Error) {
    eprintln!("{error:#}");
}

/// Returns the median; 0 without values.
fn median_or_zero(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.is_empty() {
        0.0
    } else if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_the_two_middle_ones() {
        assert_eq!(median_or_zero(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median_or_zero(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median_or_zero(Vec::new()), 0.0);
    }
}
