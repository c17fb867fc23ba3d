//! The use of builder-fn's budget for unverified bodies, from its metrics.

use std::{fmt, time::Duration};

use anyhow::Result;

/// The use of the budget during a phase: unverified bodies, what was displaced, and the time of verified builds.
#[derive(Debug, Default)]
pub(super) struct BodySamplesDisplacementsAndBuildTime {
    /// The number of unverified bodies in each sample, sorted.
    senders: Vec<f64>,
    displaced: f64,
    displaced_connections: f64,
    /// The mean time from the verified request to the end of a build.
    build: Duration,
}

/// Samples of a function's metrics, from the beginning of a phase.
pub(super) struct BudgetSamples {
    url: String,
    http: reqwest::Client,
    first: MetricsPageText,
    senders: Vec<f64>,
}

/// The values of a function's metrics, as its page of metrics shows them.
struct MetricsPageText(String);

impl BudgetSamples {
    /// Takes the first sample.
    pub(super) async fn begin(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let first = MetricsPageText::read(&http, url).await?;
        Ok(Self {
            url: url.to_owned(),
            http,
            first,
            senders: Vec::new(),
        })
    }

    /// Takes another sample.
    pub(super) async fn add_body_count_sample(&mut self) -> Result<()> {
        let values = MetricsPageText::read(&self.http, &self.url).await?;
        self.senders.push(values.sum_of("slipway_unverified_bodies"));
        Ok(())
    }

    /// Takes the last sample, and returns the use of the budget since the first one.
    pub(super) async fn end(mut self) -> Result<BodySamplesDisplacementsAndBuildTime> {
        let last = MetricsPageText::read(&self.http, &self.url).await?;
        let since = |name: &str| last.sum_of(name) - self.first.sum_of(name);
        self.senders.sort_unstable_by(f64::total_cmp);
        let builds = since("slipway_build_duration_seconds_count{outcome=\"success\"}");
        let seconds = since("slipway_build_duration_seconds_sum{outcome=\"success\"}");
        Ok(BodySamplesDisplacementsAndBuildTime {
            displaced: since("slipway_unverified_displaced_total"),
            displaced_connections: since("http_connections_displaced_total"),
            build: Duration::try_from_secs_f64(seconds / builds).unwrap_or_default(),
            senders: self.senders,
        })
    }
}

impl MetricsPageText {
    async fn read(http: &reqwest::Client, url: &str) -> Result<Self> {
        Ok(Self(http.get(url).send().await?.text().await?))
    }

    /// Returns the sum of a metric's values over all labels that `name` does not include.
    fn sum_of(&self, name: &str) -> f64 {
        let lines = self.0.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    }
}

impl fmt::Display for BodySamplesDisplacementsAndBuildTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |part: usize| {
            let last = self.senders.len().saturating_sub(1);
            self.senders.get(last * part / 2).copied().unwrap_or_default()
        };
        write!(
            f,
            "unverified bodies at a time: {} to {}, half of the time at least {}; displaced: {} bodies, {} connections; \
             mean time of builds after verification {:.3?}",
            at(0),
            at(2),
            at(1),
            self.displaced,
            self.displaced_connections,
            self.build,
        )
    }
}
