//! Settings from environment variables, all of which are parsed before the first problem is reported.
//!
//! A [`SettingsParser`] returns values and collects problems; [`SettingsParser::fail_if_problems`] reports all problems
//! at once, so that a deployment is corrected in one go. A variable with an empty value counts as not set, as in
//! OpenFaaS's own programs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::duration;

/// A source of environment variables: the process's environment, or a map in a test.
pub trait Environment: Send + Sync {
    /// Returns the value of the environment variable `name`, if it is set.
    fn get(&self, name: &str) -> Option<String>;
}

/// The environment of this process.
///
/// In a value that is not UTF-8, invalid bytes become replacement characters, which its parser then rejects.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}

impl Environment for HashMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        HashMap::get(self, name).cloned()
    }
}

impl Environment for HashMap<&str, &str> {
    fn get(&self, name: &str) -> Option<String> {
        HashMap::get(self, name).map(|value| (*value).to_owned())
    }
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).cloned()
    }
}

impl<const N: usize> Environment for [(&str, &str); N] {
    fn get(&self, name: &str) -> Option<String> {
        self.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    }
}

/// A parser of settings from environment variables, which collects their problems.
///
/// For a wrong value, the default is returned; nothing that was returned must be used before
/// [`SettingsParser::fail_if_problems`] has succeeded.
pub struct SettingsParser<'a> {
    environment: &'a dyn Environment,
    problems: Vec<SettingProblem>,
}

impl<'a> SettingsParser<'a> {
    /// Creates a parser of the settings in `environment`.
    pub fn new(environment: &'a dyn Environment) -> Self {
        Self {
            environment,
            problems: Vec::new(),
        }
    }

    /// Creates a parser of settings that already holds the problems of other settings.
    pub(crate) fn with_problems(environment: &'a dyn Environment, problems: Vec<SettingProblem>) -> Self {
        Self {
            environment,
            problems,
        }
    }

    /// Returns the value of the setting `name` without surrounding white space, if it is set and not empty.
    pub fn optional_text(&mut self, name: &str) -> Option<String> {
        let value = self.environment.get(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// Returns the value of the setting `name`; if it is not set, adds a problem and returns an empty text.
    pub fn required_text(&mut self, name: &str) -> String {
        self.optional_text(name).unwrap_or_else(|| {
            self.add_problem(name, "is not set");
            String::new()
        })
    }

    /// Returns the value of the setting `name` as parsed by `parse`, or `default` if it is not set or wrong. A wrong
    /// value is added to the problems.
    ///
    /// The problem reads `NAME ERROR, not "VALUE"`, so `parse` should fail with a text such as `should be true or
    /// false`. It contains the value: this must not be used for values that may be secret.
    pub fn parse_or_default<T, E: fmt::Display>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        let Some(value) = self.optional_text(name) else {
            return default;
        };
        parse(&value).unwrap_or_else(|error| {
            self.add_problem(name, format!("{error}, not {value:?}"));
            default
        })
    }

    /// Parses the setting `name` as a Go duration (`1h2m3.5s`) or whole seconds; returns `default` if it is not set or
    /// wrong. A wrong value is added to the problems.
    pub fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.parse_or_default(name, default, duration::parse_duration)
    }

    /// Parses the setting `name` as a number; returns `default` if it is not set or wrong. A wrong value is added to
    /// the problems.
    pub fn number<T: FromStr>(&mut self, name: &str, default: T) -> T {
        self.parse_or_default(name, default, |value| {
            value.parse().map_err(|_| "should be a number in range")
        })
    }

    /// Parses the setting `name` as a boolean, in the spellings that Go's `strconv.ParseBool` accepts; returns
    /// `default` if it is not set or wrong. A wrong value is added to the problems.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        self.parse_or_default(name, default, |value| match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("should be true or false"),
        })
    }

    /// Adds a problem of the setting `name`; `what` follows the name in the report (`is not set`).
    pub fn add_problem(&mut self, name: &str, what: impl Into<String>) {
        self.problems.push(SettingProblem {
            name: name.to_owned(),
            what: what.into(),
        });
    }

    /// Fails with all problems of the settings that were collected, if there are any.
    pub fn fail_if_problems(self) -> Result<(), SettingProblems> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(SettingProblems(self.problems))
        }
    }

    /// Returns the problems of the settings that were collected so far.
    pub(crate) fn into_problems(self) -> Vec<SettingProblem> {
        self.problems
    }
}

/// A problem of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblem {
    /// The name of the environment variable that has the problem.
    pub name: String,
    /// The fault in the variable's value, and the right format.
    pub what: String,
}

impl fmt::Display for SettingProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.what)
    }
}

/// The problems of all settings, separated by `; ` when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblems(pub Vec<SettingProblem>);

impl fmt::Display for SettingProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingProblems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_of_settings_are_reported_at_once() {
        let variables = [("exec_timeout", "soon"), ("port", "70000"), ("insecure", "maybe")];
        let mut parser = SettingsParser::new(&variables);
        parser.duration("exec_timeout", Duration::ZERO);
        parser.number::<u16>("port", 8080);
        parser.flag("insecure", false);
        parser.required_text("buildkit_url");

        let problems = parser.fail_if_problems().unwrap_err();

        let names: Vec<_> = problems.0.iter().map(|problem| problem.name.as_str()).collect();
        assert_eq!(names, ["exec_timeout", "port", "insecure", "buildkit_url"]);
        let text = problems.to_string();
        assert!(
            text.contains("port should be a number in range, not \"70000\""),
            "{text}"
        );
    }

    #[test]
    fn a_variable_with_only_white_space_counts_as_not_set() {
        let variables = [("read_timeout", "  ")];
        let mut parser = SettingsParser::new(&variables);
        assert_eq!(
            parser.duration("read_timeout", Duration::from_secs(10)),
            Duration::from_secs(10)
        );
        assert!(parser.fail_if_problems().is_ok());
    }

    #[test]
    fn booleans_are_parsed_as_in_go_and_durations_also_as_whole_seconds() {
        let variables = [("a", "True"), ("b", "0"), ("c", "1m30s"), ("d", "45")];
        let mut parser = SettingsParser::new(&variables);
        assert!(parser.flag("a", false));
        assert!(!parser.flag("b", true));
        assert_eq!(parser.duration("c", Duration::ZERO), Duration::from_secs(90));
        assert_eq!(parser.duration("d", Duration::ZERO), Duration::from_secs(45));
        assert!(parser.fail_if_problems().is_ok());
    }
}
