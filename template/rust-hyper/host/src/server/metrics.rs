//! of-watchdog's metrics, under its names.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

use super::inflight::InFlight;

pub(crate) struct Metrics {
    requests: IntCounterVec,
    durations: HistogramVec,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, inflight: &Arc<InFlight>) -> Result<Self, prometheus::Error> {
        let labels = ["code", "method"];
        let requests = IntCounterVec::new(
            Opts::new("http_requests_total", "total HTTP requests processed"),
            &labels,
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "http_request_duration_seconds",
                "Seconds spent serving HTTP requests.",
            ),
            &labels,
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(InFlightGauge::new(inflight.clone())?))?;
        Ok(Self { requests, durations })
    }

    pub(crate) fn observe(&self, status: StatusCode, method: &Method, took: Duration) {
        let labels = [status.as_str(), known(method)];
        self.requests.with_label_values(&labels).inc();
        self.durations
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
    }
}

/// A method's name, where the name is bounded: each makes a time series.
fn known(method: &Method) -> &str {
    match method.as_str() {
        name @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => name,
        _ => "other",
    }
}

/// Reads the count when it is asked for, so that a request pays for it once.
struct InFlightGauge {
    gauge: IntGauge,
    inflight: Arc<InFlight>,
}

impl InFlightGauge {
    fn new(inflight: Arc<InFlight>) -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new("http_requests_in_flight", "total HTTP requests in-flight")?;
        Ok(Self { gauge, inflight })
    }
}

impl Collector for InFlightGauge {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge
            .set(i64::try_from(self.inflight.running()).unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}
