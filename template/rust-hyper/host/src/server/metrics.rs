//! of-watchdog's metrics, under its names and labels.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use http::Method;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use super::record::Ledger;

/// The methods that have time series of their own, in lower case as Go's `promhttp` has them. All others share the last.
const METHODS: [&str; 8] = [
    "get", "post", "put", "delete", "head", "patch", "options", "unknown",
];

pub(crate) struct Metrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    /// The time series of status 200 by method: what most requests end in is not looked up each time.
    ok: [OnceLock<Series>; METHODS.len()],
}

/// The time series of one status and method.
struct Series {
    requests: IntCounter,
    durations: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["code", "method"];
        let total = Opts::new("http_requests_total", "total HTTP requests processed");
        let seconds = HistogramOpts::new(
            "http_request_duration_seconds",
            "Seconds spent serving HTTP requests.",
        );
        let requests = IntCounterVec::new(total, &labels)?;
        let durations = HistogramVec::new(seconds, &labels)?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        Ok(Self {
            requests,
            durations,
            ok: Default::default(),
        })
    }

    pub(crate) fn observe(&self, status: u16, method: &Method, took: Duration) {
        let method = index(method);
        if status == 200 {
            self.ok[method]
                .get_or_init(|| self.series("200", METHODS[method]))
                .observe(took);
        } else {
            self.series(&status.to_string(), METHODS[method]).observe(took);
        }
    }

    fn series(&self, status: &str, method: &str) -> Series {
        Series {
            requests: self.requests.with_label_values(&[status, method]),
            durations: self.durations.with_label_values(&[status, method]),
        }
    }
}

impl Series {
    fn observe(&self, took: Duration) {
        self.requests.inc();
        self.durations.observe(took.as_secs_f64());
    }
}

/// Where a method's name is in [`METHODS`].
fn index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::POST => 1,
        Method::PUT => 2,
        Method::DELETE => 3,
        Method::HEAD => 4,
        Method::PATCH => 5,
        Method::OPTIONS => 6,
        _ => 7,
    }
}

/// Shows how many requests are being answered. The count is read when it is asked for, so that a request pays for it
/// once.
pub(crate) struct InFlightGauge {
    gauge: IntGauge,
    ledger: Weak<Ledger>,
}

impl InFlightGauge {
    pub(crate) fn new(ledger: &Arc<Ledger>) -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new("http_requests_in_flight", "total HTTP requests in-flight")?;
        Ok(Self {
            gauge,
            ledger: Arc::downgrade(ledger),
        })
    }
}

impl Collector for InFlightGauge {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let running = self
            .ledger
            .upgrade()
            .map_or(0, |ledger| ledger.inflight.running());
        self.gauge.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;
    use crate::server::inflight::InFlight;

    #[test]
    fn the_names_and_labels_are_those_of_of_watchdog() {
        let registry = Registry::new();
        let ledger = Arc::new(Ledger {
            inflight: InFlight::new(None),
            metrics: Metrics::new(&registry).unwrap(),
        });
        registry
            .register(Box::new(InFlightGauge::new(&ledger).unwrap()))
            .unwrap();
        ledger.inflight.enter().unwrap();
        ledger
            .metrics
            .observe(200, &Method::POST, Duration::from_millis(30));
        ledger
            .metrics
            .observe(200, &Method::POST, Duration::from_millis(30));
        ledger
            .metrics
            .observe(404, &Method::from_bytes(b"BREW").unwrap(), Duration::from_secs(1));

        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();

        for line in [
            "http_requests_total{code=\"200\",method=\"post\"} 2",
            "http_requests_total{code=\"404\",method=\"unknown\"} 1",
            "http_request_duration_seconds_bucket{code=\"200\",method=\"post\",le=\"0.05\"} 2",
            "http_request_duration_seconds_count{code=\"404\",method=\"unknown\"} 1",
            "http_requests_in_flight 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing from\n{text}"
            );
        }
    }

    #[test]
    fn methods_are_where_their_names_are() {
        for (at, name) in METHODS.iter().enumerate() {
            let method = Method::from_bytes(name.to_uppercase().as_bytes()).unwrap();
            assert_eq!(index(&method), at, "{name}");
        }
    }
}
