//! faas-cli's reaction to answers.

use serde_json::Value;

/// The length of the longest line, with its end, that the SDK reads. It stops at a longer one without an error.
const SDK_LINE_MAX_BYTES: usize = 64 << 10;

/// faas-cli's reaction to an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct FaasCliOutcome {
    /// The exit code of faas-cli. `up` deploys only if it is 0.
    pub exit: i32,
    /// The error message of faas-cli, unless Go's own libraries wrote it.
    pub message: Option<String>,
}

/// Returns faas-cli's reaction to a decompressed answer of `POST /build`.
pub fn faas_cli_outcome(function: &str, image: &str, status: u16, body: &str) -> FaasCliOutcome {
    let failed = |message: Option<String>| FaasCliOutcome { exit: 1, message };
    if !matches!(status, 200 | 202) {
        return failed(Some(format!(
            "failed to invoke builder: failed to build function, builder responded with status code {status}"
        )));
    }
    for line in body.split_inclusive('\n') {
        if line.len() > SDK_LINE_MAX_BYTES {
            break;
        }
        let line = line.trim_end_matches('\n').trim_end_matches('\r');
        let Ok(Value::Object(record)) = serde_json::from_str(line) else {
            return failed(None);
        };
        let is_text = |line: &Value| line.is_string();
        match record.get("log") {
            None | Some(Value::Null) => {}
            Some(Value::Array(lines)) if lines.iter().all(is_text) => {}
            Some(_) => return failed(None),
        }
        if record.get("status").is_some_and(|status| status == "failed") {
            let error = record.get("error").and_then(Value::as_str).unwrap_or_default();
            return failed(Some(format!(
                "failed to invoke builder: {function} failure while building or pushing image {image}: {error}"
            )));
        }
    }
    FaasCliOutcome {
        exit: 0,
        message: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::read_recorded_json;

    #[test]
    fn the_computed_cli_outcome_equals_the_recorded_one() {
        let (image, answers) = (
            "registry.example/demo/hello:1",
            read_recorded_json("answers.json").unwrap(),
        );
        let function = answers["function"].as_str().unwrap();
        let filled = |text: &str| {
            text.replace("{image}", image)
                .replace("{x70000}", &"x".repeat(70_000))
        };
        for case in answers["answers"].as_array().unwrap() {
            // faas-cli asks for a stream, and gets one if the builder streams this answer.
            let answer = case["answers"]
                .get("streamed")
                .unwrap_or(&case["answers"]["whole"]);
            let chunks = answer["chunks"].as_array().unwrap();
            let body: String = chunks
                .iter()
                .map(|chunk| filled(chunk.as_str().unwrap()))
                .collect();
            let status = u16::try_from(answer["status"].as_u64().unwrap()).unwrap();
            let expected = &case["observed"]["faas-cli"];

            let faas_cli_outcome = faas_cli_outcome(function, image, status, &body);

            assert_eq!(
                Some(i64::from(faas_cli_outcome.exit)),
                expected["exit"].as_i64(),
                "{case}"
            );
            if let Some(message) = faas_cli_outcome.message {
                assert_eq!(message, filled(expected["message"].as_str().unwrap()), "{case}");
            }
        }
    }
}
