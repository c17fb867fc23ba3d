//! Environment variables in a stack file.
//!
//! faas-cli replaces them in the text, before it is YAML, with the Go module `drone/envsubst`. Of its forms, the ones
//! with and without a default value are supported here, and the others are errors.

/// A substitution that cannot be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SubstitutionProblem {
    /// The number of the line, from 1.
    pub(super) line: usize,
    /// The reason why the substitution cannot be done.
    pub(super) reason: String,
}

/// Replaces `${NAME}`, and with a default `${NAME:-default}`, `:=` or `=`, by the values of variables, and `$${` by
/// `${`. A variable that is not set or empty has the default, or without one no text. Comment lines stay as they are.
///
/// # Errors
/// Fails at the first form that is not supported or not closed.
pub(super) fn substitute(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<String, SubstitutionProblem> {
    let mut result = String::with_capacity(text.len());
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        match content.trim_start().starts_with('#') {
            true => result.push_str(content),
            false => {
                let replaced = substitute_in_text(content, environment);
                result.push_str(&replaced.map_err(|reason| SubstitutionProblem { line, reason })?);
            }
        }
    }
    Ok(result)
}

/// Replaces the variables in a text, whichever line it is in.
fn substitute_in_text(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, found) = rest.split_at(at);
        if let Some(kept) = before.strip_suffix('$') {
            result.push_str(kept);
            result.push_str("${");
            rest = &found[2..];
            continue;
        }
        result.push_str(before);
        let (expression, after) = split_at_closing_brace(&found[2..])
            .ok_or_else(|| format!("{:?} is not closed by a brace", found.trim_end()))?;
        result.push_str(&value_of_expression(expression, environment)?);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

/// Splits a text at the brace that closes an expression, whose default value may contain others.
fn split_at_closing_brace(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match character {
            '}' if depth == 0 => return Some((&text[..at], &text[at + 1..])),
            '}' => depth -= 1,
            '{' if text[..at].ends_with('$') => depth += 1,
            _ => {}
        }
    }
    None
}

/// Returns the value of the expression in a pair of braces.
fn value_of_expression(
    expression: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let is_in_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let end = expression
        .find(|character| !is_in_name(character))
        .unwrap_or(expression.len());
    let (name, operation) = expression.split_at(end);
    let default = match operation {
        "" => Some(""),
        _ => [":-", ":=", "="]
            .iter()
            .find_map(|form| operation.strip_prefix(form)),
    };
    let (false, Some(default)) = (name.is_empty(), default) else {
        return Err(format!("${{{expression}}} is not supported here"));
    };
    match environment(name).filter(|value| !value.is_empty()) {
        Some(value) => Ok(value),
        None => substitute_in_text(default, environment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn substitute_with_variable_a(text: &str) -> Result<String, SubstitutionProblem> {
        substitute(text, &|name| (name == "A").then(|| "value".to_owned()))
    }

    #[test]
    fn variables_are_replaced_by_their_values_or_defaults() {
        for (text, expected) in [
            ("x: ${A}", "x: value"),
            ("x: ${B}", "x: "),
            ("x: ${A:-d}${B:-d}", "x: valued"),
            ("x: ${B:-}", "x: "),
            ("x: ${B=d}${B:=e}", "x: de"),
            ("x: ${B:-${A}}y", "x: valuey"),
            ("x: ${B:-${C:-z}}", "x: z"),
            ("x: $${A} $A $", "x: ${A} $A $"),
            ("# ${A^^} ${\nx: ${A}\n", "# ${A^^} ${\nx: value\n"),
        ] {
            assert_eq!(
                substitute_with_variable_a(text).as_deref(),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn other_forms_are_errors_that_name_their_line() {
        for text in ["\nx: ${A^^}", "\nx: ${#A}", "\nx: ${A", "\nx: ${}"] {
            let problem = substitute_with_variable_a(text).expect_err(text);
            assert_eq!(problem.line, 2, "{text}: {problem:?}");
        }
    }
}
