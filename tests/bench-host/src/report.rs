//! What is told of the runs. The only place that prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the output of a command-line program"
)]

use std::time::Duration;

use crate::load::Answered;

/// What one turn of a server gave.
pub(crate) struct Turn {
    pub(crate) answered: Answered,
    pub(crate) processor_time: Duration,
}

impl Turn {
    fn per_second(&self) -> f64 {
        self.answered.requests as f64 / self.answered.took.as_secs_f64()
    }
}

/// Two turns, one right after the other.
pub(crate) struct Pair {
    pub(crate) plain: Turn,
    pub(crate) host: Turn,
}

/// Prints what all turns gave, and the peak memory of both servers in KiB.
pub(crate) fn summary(pairs: &[Pair], plain_peak: u64, host_peak: u64) {
    let over = |value: fn(&Pair) -> f64| median(pairs.iter().map(value).collect());
    println!(
        "requests per second: plain {:.0}, host {:.0}, median ratio {:.3}",
        over(|pair| pair.plain.per_second()),
        over(|pair| pair.host.per_second()),
        over(|pair| pair.host.per_second() / pair.plain.per_second()),
    );
    // Of all turns together: a single one is too short for the kernel's clock.
    let (plain, host) = (
        each(pairs.iter().map(|pair| &pair.plain)),
        each(pairs.iter().map(|pair| &pair.host)),
    );
    println!(
        "processor time per request: plain {plain:.2} us, host {host:.2} us, ratio {:.3}",
        host / plain
    );
    let ratio = host_peak as f64 / plain_peak as f64;
    println!("peak memory: plain {plain_peak} KiB, host {host_peak} KiB, ratio {ratio:.3}");
}

/// Microseconds of processor time for each request.
fn each<'a>(turns: impl Iterator<Item = &'a Turn>) -> f64 {
    let (requests, time) = turns.fold((0, Duration::ZERO), |(requests, time), turn| {
        (requests + turn.answered.requests, time + turn.processor_time)
    });
    time.as_secs_f64() * 1e6 / requests as f64
}

pub(crate) fn complain(error: &anyhow::Error) {
    eprintln!("{error:#}");
}

fn median(mut values: Vec<f64>) -> f64 {
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
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
