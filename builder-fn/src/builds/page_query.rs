//! The query of the page of a build: the part of the log, and the form of the page.

use super::log_excerpt::LogPart;

/// The parts of the page of a build that an answer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BuildPageParts {
    /// Everything.
    #[default]
    Whole,
    /// Everything but the script, for a browser that runs none and loads a page again.
    WithoutScript,
    /// The steps and the log, for the script of a page that was sent before the log was read.
    StepsAndLog,
    /// Everything but the log, for the script of a page that follows a running build.
    AllButLog,
}

impl BuildPageParts {
    /// Returns the form's parameter in a query, without what separates it from others; empty for the whole page.
    pub(super) fn query_parameter_or_empty(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::WithoutScript => "form=plain",
            Self::StepsAndLog => "form=log",
            Self::AllButLog => "form=state",
        }
    }
}

/// The query of the page of a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PageQuery {
    /// The part of the log that the query names.
    pub(super) part: Option<LogPart>,
    /// The form of the page.
    pub(super) form: BuildPageParts,
}

impl PageQuery {
    /// Parses a query without a link: `from=N` or `from=end`, and `form=plain`, `form=log` or `form=state`. The last
    /// one of each counts.
    ///
    /// # Errors
    /// Fails with what would be right.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let pairs = query.unwrap_or_default().split('&');
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("from", part)) => {
                    let part = LogPart::parse_line_number_or_end(part);
                    parsed.part = Some(part.ok_or("from should be the number of a line, or end")?);
                }
                Some(("form", _)) => {
                    let mut forms = [
                        BuildPageParts::WithoutScript,
                        BuildPageParts::StepsAndLog,
                        BuildPageParts::AllButLog,
                    ]
                    .into_iter();
                    let form = forms.find(|form| form.query_parameter_or_empty() == pair);
                    parsed.form = form.ok_or("form should be plain, log or state")?;
                }
                _ => return Err("a page has the query from=N only, and the form of the page".to_owned()),
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_a_part_of_the_log_and_a_form_of_the_page() {
        let query = |part, form| Some(PageQuery { part, form });
        for (text, expected) in [
            (None, query(None, BuildPageParts::Whole)),
            (Some(""), query(None, BuildPageParts::Whole)),
            (
                Some("from=0"),
                query(Some(LogPart::From(1)), BuildPageParts::Whole),
            ),
            (
                Some("from=17&form=log"),
                query(Some(LogPart::From(17)), BuildPageParts::StepsAndLog),
            ),
            (
                Some("form=plain&from=end"),
                query(Some(LogPart::End), BuildPageParts::WithoutScript),
            ),
            (
                Some("form=plain&form=state"),
                query(None, BuildPageParts::AllButLog),
            ),
            (Some("form="), None),
            (Some("form=whole"), None),
            (Some("from=x"), None),
            (Some("from=9007199254740992"), None),
            (Some("to=1"), None),
        ] {
            assert_eq!(PageQuery::parse(text).ok(), expected, "{text:?}");
        }
    }
}
