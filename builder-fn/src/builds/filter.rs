//! The query of `GET /builds`.

use percent_encoding::percent_decode_str;

use super::BuildRecord;

/// The largest number of builds in an answer to a query without `limit`.
const DEFAULT_LIMIT_OF_BUILDS: usize = 100;

/// The largest number of builds in any answer, and the largest `limit`.
const MAX_LIMIT_OF_BUILDS: usize = 1000;

/// The states of builds, in the words of the API.
pub(super) const BUILD_STATES: [&str; 7] = [
    "waiting",
    "running",
    "deploying",
    "success",
    "failed",
    "cancelled",
    "unknown",
];

/// A filter for the builds that a caller asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BuildFilter {
    image: Option<String>,
    function: Option<String>,
    state: Option<String>,
    limit: Option<usize>,
}

impl BuildFilter {
    /// Parses the query of a URL.
    ///
    /// # Errors
    /// Fails with all problems of the query.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut filter = Self::default();
        let mut problems = Vec::new();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                // A form sends the fields that nobody filled in.
                "image" | "function" | "state" if value.is_empty() => {}
                "image" => filter.image = Some(value),
                "function" => filter.function = Some(value),
                "state" if BUILD_STATES.contains(&value.as_str()) => filter.state = Some(value),
                "state" => problems.push(format!("state should be one of {}", BUILD_STATES.join(", "))),
                "limit" => match value.parse() {
                    Ok(limit @ 1..=MAX_LIMIT_OF_BUILDS) => filter.limit = Some(limit),
                    _ => problems.push(format!(
                        "limit should be a number from 1 to {MAX_LIMIT_OF_BUILDS}"
                    )),
                },
                other => problems.push(format!(
                    "{:?} is not one of image, function, state and limit",
                    other.escape_debug().to_string()
                )),
            }
        }
        match problems.is_empty() {
            true => Ok(filter),
            false => Err(problems.join("; ")),
        }
    }

    /// Creates the filter for builds of the same function, or of the same image if the build deploys none; `None` if it
    /// is not known which.
    pub(super) fn of_same_function_or_image(record: &BuildRecord, limit: usize) -> Option<Self> {
        let image = record.image.as_deref().map(|image| {
            let name = image.split('@').next().unwrap_or(image);
            match name.rsplit_once(':') {
                Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
                _ => name.to_owned(),
            }
        });
        if record.function.is_none() && image.is_none() {
            return None;
        }
        Some(Self {
            image: image.filter(|_| record.function.is_none()),
            function: record.function.clone(),
            state: None,
            limit: Some(limit),
        })
    }

    /// Returns the filter with this limit if it has none.
    pub(super) fn with_default_limit(self, limit: usize) -> Self {
        Self {
            limit: self.limit.or(Some(limit)),
            ..self
        }
    }

    /// Returns the state that the filter asks for, if it asks for one.
    pub(super) fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Returns the function that the filter asks for, if it asks for one.
    pub(super) fn function(&self) -> Option<&str> {
        self.function.as_deref()
    }

    /// Returns the image that the filter asks for, if it asks for one.
    pub(super) fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// Returns the builds that match, the newest submission first, up to the limit.
    pub(super) fn select(&self, mut builds: Vec<BuildRecord>) -> Vec<BuildRecord> {
        builds.retain(|build| self.matches(build));
        builds.sort_by(|one, other| (other.submitted_at, &other.id).cmp(&(one.submitted_at, &one.id)));
        builds.truncate(self.limit.unwrap_or(DEFAULT_LIMIT_OF_BUILDS));
        builds
    }

    /// Returns whether a build matches. An image without a tag matches all its tags, and a function without a namespace
    /// all namespaces.
    fn matches(&self, build: &BuildRecord) -> bool {
        let is_state = self
            .state
            .as_ref()
            .is_none_or(|state| build.phase.as_str() == state);
        let is_image = self.image.as_ref().is_none_or(|wanted| {
            build.image.as_ref().is_some_and(|image| {
                image == wanted
                    || image
                        .strip_prefix(wanted.as_str())
                        .is_some_and(|rest| rest.starts_with([':', '@']))
            })
        });
        let is_function = self.function.as_ref().is_none_or(|wanted| {
            build.function.as_ref().is_some_and(|function| {
                function == wanted
                    || function
                        .strip_prefix(wanted.as_str())
                        .is_some_and(|rest| rest.starts_with('.'))
            })
        });
        is_state && is_image && is_function
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::builds::BuildPhase;

    /// Returns a record of a build that was submitted this number of seconds after 1970.
    fn record(id: &str, seconds: u64, image: &str, function: Option<&str>, phase: BuildPhase) -> BuildRecord {
        BuildRecord {
            image: Some(image.into()),
            function: function.map(str::to_owned),
            phase,
            ..BuildRecord::accepted(id, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        }
    }

    #[test]
    fn builds_are_selected_by_image_function_and_state_newest_first() {
        let builds = vec![
            record("1", 1, "r/a:1", Some("a.openfaas-fn"), BuildPhase::Success),
            record("2", 2, "r/a:2", Some("a.other"), BuildPhase::Failed),
            record("3", 3, "r/ab:1", None, BuildPhase::Success),
        ];
        for (query, expected) in [
            ("", vec!["3", "2", "1"]),
            ("limit=1", vec!["3"]),
            ("image=r/a", vec!["2", "1"]),
            ("image=r%2Fa%3A1", vec!["1"]),
            ("function=a", vec!["2", "1"]),
            ("function=a.other", vec!["2"]),
            ("state=success", vec!["3", "1"]),
            ("state=success&image=r/a", vec!["1"]),
            ("state=&function=&image=", vec!["3", "2", "1"]),
        ] {
            let filter = BuildFilter::parse(Some(query)).expect("a filter");
            let ids: Vec<_> = filter
                .select(builds.clone())
                .into_iter()
                .map(|build| build.id)
                .collect();
            assert_eq!(ids, expected, "{query}");
        }
    }

    #[test]
    fn a_filter_of_same_function_or_image_has_the_function_or_else_the_image_without_its_tag() {
        for (image, function, expected) in [
            ("r:5000/a:1", Some("a.openfaas-fn"), (Some("a.openfaas-fn"), None)),
            ("r:5000/a:1", None, (None, Some("r:5000/a"))),
            ("r:5000/a@sha256:12", None, (None, Some("r:5000/a"))),
            ("r:5000/a", None, (None, Some("r:5000/a"))),
        ] {
            let build = record("1", 1, image, function, BuildPhase::Success);
            let filter = BuildFilter::of_same_function_or_image(&build, 3).expect("a filter");
            assert_eq!((filter.function(), filter.image()), expected, "{image}");
            assert_eq!(filter.select(vec![build]).len(), 1, "{image}");
        }
    }

    #[test]
    fn every_problem_of_a_query_is_reported_at_once() {
        let error = BuildFilter::parse(Some("state=done&limit=0&color=red")).expect_err("three problems");
        for part in [
            "state should be one of waiting",
            "limit should be a number",
            "\"color\"",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
