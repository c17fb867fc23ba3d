//! The metrics of requests, with the names and labels of of-watchdog, and the counter of displaced connections.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Method;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use crate::inflight::InFlightLimiter;

/// The HTTP methods with time series of their own, in lower case as in Go's `promhttp`. Others count as
/// `unknown`.
const METHOD_LABELS: [&str; 8] = [
    "get", "post", "put", "delete", "head", "patch", "options", "unknown",
];

/// The counters and histograms of requests, by status and method.
pub(crate) struct RequestMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    /// The time series of requests with status 200 by method, cached because most requests end with it.
    ok: [OnceLock<RequestSeries>; METHOD_LABELS.len()],
}

/// The counter and histogram of the requests with one status and method.
struct RequestSeries {
    requests: IntCounter,
    durations: Histogram,
}

impl RequestMetrics {
    /// Creates the metrics of requests and registers them.
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

    /// Counts a request that ended, and records its duration.
    pub(crate) fn record_request(&self, status: u16, method: &Method, duration: Duration) {
        let method = method_label_index(method);
        if status == 200 {
            self.ok[method]
                .get_or_init(|| self.series_with_labels("200", METHOD_LABELS[method]))
                .count_and_record_duration(duration);
        } else {
            self.series_with_labels(&status.to_string(), METHOD_LABELS[method])
                .count_and_record_duration(duration);
        }
    }

    /// Returns the counter and histogram of the requests with this status and method.
    fn series_with_labels(&self, status: &str, method: &str) -> RequestSeries {
        RequestSeries {
            requests: self.requests.with_label_values(&[status, method]),
            durations: self.durations.with_label_values(&[status, method]),
        }
    }
}

impl RequestSeries {
    /// Counts a request, and records its duration.
    fn count_and_record_duration(&self, duration: Duration) {
        self.requests.inc();
        self.durations.observe(duration.as_secs_f64());
    }
}

/// Returns the index of an HTTP method in [`METHOD_LABELS`], or of `unknown`.
fn method_label_index(method: &Method) -> usize {
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

/// Creates the counter of displaced connections, and registers it.
pub(crate) fn register_displaced_connection_counter(
    registry: &Registry,
) -> Result<IntCounter, prometheus::Error> {
    let displaced = IntCounter::new(
        "http_connections_displaced_total",
        "Connections that were closed for others while they waited for a request",
    )?;
    registry.register(Box::new(displaced.clone()))?;
    Ok(displaced)
}

/// A collector of the gauge of requests in flight, which it sets to the limiter's count whenever metrics are collected.
/// Requests do not update the gauge.
pub(crate) struct InFlightCollector {
    gauge: IntGauge,
    inflight: Arc<InFlightLimiter>,
}

impl InFlightCollector {
    /// Creates the collector of the gauge `http_requests_in_flight`, which shows the count of `inflight`.
    pub(crate) fn new(inflight: Arc<InFlightLimiter>) -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new("http_requests_in_flight", "total HTTP requests in-flight")?;
        Ok(Self { gauge, inflight })
    }
}

impl Collector for InFlightCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let running = i64::try_from(self.inflight.in_flight_count()).unwrap_or(i64::MAX);
        self.gauge.set(running);
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn metrics_have_the_names_and_labels_of_of_watchdog() {
        let registry = Registry::new();
        let metrics = RequestMetrics::new(&registry).unwrap();
        let inflight = Arc::new(InFlightLimiter::new(None));
        registry
            .register(Box::new(InFlightCollector::new(inflight.clone()).unwrap()))
            .unwrap();
        inflight.count_request_in().unwrap();
        metrics.record_request(200, &Method::POST, Duration::from_millis(30));
        metrics.record_request(200, &Method::POST, Duration::from_millis(30));
        metrics.record_request(404, &Method::from_bytes(b"BREW").unwrap(), Duration::from_secs(1));

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
    fn each_http_method_is_counted_under_its_own_label() {
        for (at, name) in METHOD_LABELS.iter().enumerate() {
            let method = Method::from_bytes(name.to_uppercase().as_bytes()).unwrap();
            assert_eq!(method_label_index(&method), at, "{name}");
        }
    }
}
