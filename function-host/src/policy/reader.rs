//! A reader of the members of an object in a policy's JSON, which collects every problem with the path of its member.

use super::json::JsonWithUniqueMembers;
use super::quantity::Quantity;

/// A reader of the members of one JSON object of a policy. Members that were not read are unknown ones.
pub(super) struct ObjectReader<'p> {
    path: String,
    members: Vec<(String, JsonWithUniqueMembers)>,
    problems: &'p mut Vec<String>,
}

impl<'p> ObjectReader<'p> {
    /// Creates a reader of the policy's outermost object.
    pub(super) fn new(json: JsonWithUniqueMembers, problems: &'p mut Vec<String>) -> Self {
        Self::at_path(String::new(), json, problems)
    }

    /// Creates a reader of the object at `path`; reports a value that is not an object.
    fn at_path(path: String, json: JsonWithUniqueMembers, problems: &'p mut Vec<String>) -> Self {
        let mut reader = Self {
            path,
            members: Vec::new(),
            problems,
        };
        match json {
            JsonWithUniqueMembers::Object(members) => reader.members = members,
            _ => reader.report_problem("", "should be an object"),
        }
        reader
    }

    /// Creates a reader of an object inside this one, at the relative path `name`.
    pub(super) fn nested_reader(&mut self, name: &str, json: JsonWithUniqueMembers) -> ObjectReader<'_> {
        ObjectReader::at_path(self.path_of(name), json, self.problems)
    }

    /// Returns the path of the member `name` in the policy, or of the object itself if `name` is empty.
    fn path_of(&self, name: &str) -> String {
        match (self.path.as_str(), name) {
            ("", name) => name.to_owned(),
            (path, "") => path.to_owned(),
            (path, name) => format!("{path}.{name}"),
        }
    }

    /// Records a problem of the member `name`, or of the object itself if `name` is empty.
    pub(super) fn report_problem(&mut self, name: &str, problem: impl std::fmt::Display) {
        let path = match self.path_of(name) {
            path if path.is_empty() => "the policy".to_owned(),
            path => path,
        };
        self.problems.push(format!("{path} {problem}"));
    }

    /// Removes the member `name` and returns its value.
    pub(super) fn take_member(&mut self, name: &str) -> Option<JsonWithUniqueMembers> {
        let at = self.members.iter().position(|(known, _)| known == name)?;
        Some(self.members.remove(at).1)
    }

    /// Reads a list of texts, each parsed by `parse`; `None` if the member is absent. A wrong item is reported and left
    /// out.
    ///
    /// `null` is not absent: a rule that seems to be there must not allow everything.
    pub(super) fn read_list_empty_if_wrong<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let JsonWithUniqueMembers::List(items) = self.take_member(name)? else {
            self.report_problem(name, "should be a list of texts");
            return Some(Vec::new());
        };
        let mut list = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            let parsed = match item {
                JsonWithUniqueMembers::Text(text) => {
                    parse(&text).map_err(|problem| format!("{problem}, not {text:?}"))
                }
                _ => Err("should be text".to_owned()),
            };
            match parsed {
                Ok(item) => list.push(item),
                Err(problem) => self.report_problem(&format!("{name}[{at}]"), problem),
            }
        }
        Some(list)
    }

    /// Reads the member `name`, a text that is parsed by `parse`; `None` if it is absent, or wrong, which is reported.
    pub(super) fn read_text<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parsed = match self.take_member(name)? {
            JsonWithUniqueMembers::Text(text) => {
                parse(&text).map_err(|problem| format!("{problem}, not {text:?}"))
            }
            _ => Err("should be text".to_owned()),
        };
        parsed.map_err(|problem| self.report_problem(name, problem)).ok()
    }

    /// Reads the member `name`, which is `true` or `false`; `false` if it is absent, or wrong, which is reported.
    pub(super) fn read_flag(&mut self, name: &str) -> bool {
        match self.take_member(name) {
            None => false,
            Some(JsonWithUniqueMembers::Flag(flag)) => flag,
            Some(_) => {
                self.report_problem(name, "should be true or false");
                false
            }
        }
    }

    /// Reads the member `name`, a whole number above zero; `None` if it is absent, or wrong, which is reported.
    pub(super) fn read_positive_number(&mut self, name: &str) -> Option<u32> {
        let number = match self.take_member(name)? {
            JsonWithUniqueMembers::Number(number) => u32::try_from(number).ok().filter(|number| *number > 0),
            _ => None,
        };
        if number.is_none() {
            self.report_problem(
                name,
                "should be a whole number above 0; without it, there is no limit",
            );
        }
        number
    }

    /// Reads the member `name`, an amount of memory or CPU above zero; `None` if it is absent, or wrong, which is
    /// reported.
    pub(super) fn read_positive_quantity(&mut self, name: &str) -> Option<Quantity> {
        self.read_text(name, |text| match Quantity::parse(text) {
            Some(quantity) if quantity.is_zero() => {
                Err("should be more than 0; without it, there is no limit".to_owned())
            }
            Some(quantity) => Ok(quantity),
            None => Err("should be an amount such as \"128Mi\" or \"500m\"".to_owned()),
        })
    }

    /// Reports each member that was not read as unknown.
    pub(super) fn report_unknown_members(mut self) {
        for (name, _) in std::mem::take(&mut self.members) {
            self.report_problem(&name, "is not a member that a policy has");
        }
    }
}
