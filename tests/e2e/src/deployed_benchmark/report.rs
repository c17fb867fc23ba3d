//! The measurements of a scenario, as rows of a table and as JSON.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::{Contender, Scenario};

/// The measurements of a scenario.
#[derive(Debug)]
pub struct ScenarioMeasurements {
    /// The scenario.
    pub scenario: Scenario,
    /// The seconds of each contender, one for each round.
    pub seconds: BTreeMap<Contender, Vec<f64>>,
    /// The largest resident memory of builder-fn's process meanwhile, in bytes.
    pub builder_peak_bytes: u64,
}

impl ScenarioMeasurements {
    /// Returns the median of the ratios to the reference of the same round; `None` without a reference.
    fn median_ratio_if_reference_measured(&self, contender: Contender) -> Option<f64> {
        let reference = self.seconds.get(&Contender::Reference)?;
        let ratios = self.seconds.get(&contender)?.iter().zip(reference);
        Some(quantile_or_nan(
            &ratios.map(|(own, other)| own / other).collect::<Vec<_>>(),
            0.5,
        ))
    }
}

/// Returns the smallest number that is not exceeded by this part of `numbers`; NaN if there are none.
fn quantile_or_nan(numbers: &[f64], part: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for ScenarioMeasurements {
    /// Writes a row of the table for each contender, without a final line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (contender, seconds)) in self.seconds.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            let ratio = match (contender, self.median_ratio_if_reference_measured(*contender)) {
                (Contender::Reference, _) | (_, None) => String::new(),
                (_, Some(ratio)) => format!("{ratio:.2}"),
            };
            write!(
                f,
                "{separator}| {} | {} | {:.3} | {:.3} | {ratio} |",
                self.scenario.title(),
                contender.title(),
                quantile_or_nan(seconds, 0.5),
                quantile_or_nan(seconds, 0.95),
            )?;
        }
        Ok(())
    }
}

/// Returns all measurements as JSON: by scenario, the seconds of each contender in the order of the rounds, and the
/// peak memory of builder-fn in bytes.
pub fn report_as_json(all: &[ScenarioMeasurements]) -> Value {
    let scenarios = all.iter().map(|measured| {
        let seconds = measured
            .seconds
            .iter()
            .map(|(contender, seconds)| (contender.name_part().to_owned(), json!(seconds)));
        let report = json!({
            "seconds": Value::Object(seconds.collect()),
            "builderPeakBytes": measured.builder_peak_bytes,
        });
        (measured.scenario.name_part().to_owned(), report)
    });
    Value::Object(scenarios.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_median_p95_and_the_median_of_the_ratios_within_a_round() {
        let measured = ScenarioMeasurements {
            scenario: Scenario::SmallPushed,
            seconds: BTreeMap::from([
                (Contender::BuilderUrl, vec![1.0, 10.0, 3.0]),
                (Contender::Reference, vec![1.0, 5.0, 1.0]),
            ]),
            builder_peak_bytes: 7,
        };
        let title = Scenario::SmallPushed.title();
        assert_eq!(
            measured.to_string(),
            format!(
                "| {title} | `BUILDER_URL` | 3.000 | 10.000 | 2.00 |\n| {title} | reference | 1.000 | 5.000 |  |"
            )
        );
        assert_eq!(
            report_as_json(&[measured])["small-pushed"]["seconds"]["url"],
            json!([1.0, 10.0, 3.0])
        );
    }

    #[test]
    fn quantiles_are_measured_numbers() {
        let numbers = (1..=20).map(f64::from).collect::<Vec<_>>();
        assert_eq!(
            (quantile_or_nan(&numbers, 0.5), quantile_or_nan(&numbers, 0.95)),
            (10.0, 19.0)
        );
        assert!(quantile_or_nan(&[], 0.5).is_nan());
    }
}
