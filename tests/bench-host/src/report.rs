//! What is told of the runs. The only place that prints.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the output of a command-line program")]

/// What one run gave.
pub(crate) struct Run {
    pub(crate) per_second: f64,
    /// Processor time of the server for each request.
    pub(crate) microseconds_each: f64,
    pub(crate) peak_kib: u64,
}

/// Two runs, one right after the other.
pub(crate) struct Pair {
    pub(crate) plain: Run,
    pub(crate) host: Run,
}

pub(crate) fn pair(number: usize, pair: &Pair) {
    let Pair { plain, host } = pair;
    println!(
        "pair {number}: plain {:.0}/s {:.2} us {} KiB, host {:.0}/s {:.2} us {} KiB, ratio {:.3}",
        plain.per_second,
        plain.microseconds_each,
        plain.peak_kib,
        host.per_second,
        host.microseconds_each,
        host.peak_kib,
        host.per_second / plain.per_second,
    );
}

pub(crate) fn summary(pairs: &[Pair]) {
    let over = |value: fn(&Pair) -> f64| median(pairs.iter().map(value).collect());
    println!(
        "requests per second: plain {:.0}, host {:.0}, median ratio {:.3}",
        over(|pair| pair.plain.per_second),
        over(|pair| pair.host.per_second),
        over(|pair| pair.host.per_second / pair.plain.per_second),
    );
    println!(
        "processor time per request: plain {:.2} us, host {:.2} us, median ratio {:.3}",
        over(|pair| pair.plain.microseconds_each),
        over(|pair| pair.host.microseconds_each),
        over(|pair| pair.host.microseconds_each / pair.plain.microseconds_each),
    );
    println!(
        "peak memory: plain {:.0} KiB, host {:.0} KiB, median ratio {:.3}",
        over(|pair| pair.plain.peak_kib as f64),
        over(|pair| pair.host.peak_kib as f64),
        over(|pair| pair.host.peak_kib as f64 / pair.plain.peak_kib as f64),
    );
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
