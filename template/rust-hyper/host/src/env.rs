//! Settings from the environment: read through a trait, all parsed before the first complaint.
//!
//! A [`Parser`] hands out values and remembers what was wrong; [`Parser::finish`] then names everything at once, so
//! that a deployment is mended in one go. A variable set to nothing counts as not set, as in OpenFaaS's own programs.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::duration;

/// Where settings come from: the process, or a map in a test.
pub trait Environment: Send + Sync {
    /// The value of `name`, if it is set.
    fn get(&self, name: &str) -> Option<String>;
}

/// The environment of this process. A value that is not UTF-8 is passed on with replacement characters, and then
/// refused by whatever parses it.
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

/// Parses settings and collects what is wrong with them. Where a value is wrong the default is handed out, to be
/// used for nothing: [`Parser::finish`] is what allows to go on.
pub struct Parser<'a> {
    strings: &'a dyn Environment,
    problems: Vec<Problem>,
}

impl<'a> Parser<'a> {
    /// A parser of `strings`, without problems.
    pub fn new(strings: &'a dyn Environment) -> Self {
        Self {
            strings,
            problems: Vec::new(),
        }
    }

    /// A parser that begins with the problems others found.
    pub(crate) fn with_problems(strings: &'a dyn Environment, problems: Vec<Problem>) -> Self {
        Self { strings, problems }
    }

    /// The text of `name`, if it is set to something; white space around it is dropped.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let value = self.strings.get(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// The text of `name`, which has to be set.
    pub fn required(&mut self, name: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.problem(name, "is not set");
            String::new()
        })
    }

    /// `name` as `parse` reads it. The error's text follows the variable's name and its value in the complaint: a
    /// value that may be a secret is not to be read here.
    pub fn parse<T, E: fmt::Display>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        let Some(value) = self.text(name) else {
            return default;
        };
        parse(&value).unwrap_or_else(|error| {
            self.problem(name, format!("{error}, not {value:?}"));
            default
        })
    }

    /// `name` as a Go duration (`1h2m3.5s`) or as whole seconds.
    pub fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.parse(name, default, duration::parse)
    }

    /// `name` as a number.
    pub fn number<T: FromStr>(&mut self, name: &str, default: T) -> T {
        self.parse(name, default, |value| {
            value.parse().map_err(|_| "should be a number in range")
        })
    }

    /// `name` as a truth value, in the words Go's `strconv.ParseBool` takes.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        self.parse(name, default, |value| match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("should be true or false"),
        })
    }

    /// Remembers that `name` is wrong; `what` is read after the name (`is not set`).
    pub fn problem(&mut self, name: &str, what: impl Into<String>) {
        self.problems.push(Problem {
            name: name.to_owned(),
            what: what.into(),
        });
    }

    /// Everything that was wrong, if anything was.
    pub fn finish(self) -> Result<(), Problems> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(Problems(self.problems))
        }
    }

    /// The problems so far.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

/// One setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The environment variable.
    pub name: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.what)
    }
}

/// All settings that are wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
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

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_setting_is_named_at_once() {
        let strings = [("exec_timeout", "soon"), ("port", "70000"), ("insecure", "maybe")];
        let mut parser = Parser::new(&strings);
        parser.duration("exec_timeout", Duration::ZERO);
        parser.number::<u16>("port", 8080);
        parser.flag("insecure", false);
        parser.required("buildkit_url");

        let problems = parser.finish().unwrap_err();

        let names: Vec<_> = problems.0.iter().map(|problem| problem.name.as_str()).collect();
        assert_eq!(names, ["exec_timeout", "port", "insecure", "buildkit_url"]);
        let text = problems.to_string();
        assert!(
            text.contains("port should be a number in range, not \"70000\""),
            "{text}"
        );
    }

    #[test]
    fn a_variable_set_to_nothing_counts_as_not_set() {
        let strings = [("read_timeout", "  ")];
        let mut parser = Parser::new(&strings);
        assert_eq!(
            parser.duration("read_timeout", Duration::from_secs(10)),
            Duration::from_secs(10)
        );
        assert!(parser.finish().is_ok());
    }

    #[test]
    fn values_are_read_as_go_programs_read_them() {
        let strings = [("a", "True"), ("b", "0"), ("c", "1m30s"), ("d", "45")];
        let mut parser = Parser::new(&strings);
        assert!(parser.flag("a", false));
        assert!(!parser.flag("b", true));
        assert_eq!(parser.duration("c", Duration::ZERO), Duration::from_secs(90));
        assert_eq!(parser.duration("d", Duration::ZERO), Duration::from_secs(45));
        assert!(parser.finish().is_ok());
    }
}
