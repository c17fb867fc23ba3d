//! Tests of what no rule may do.

use super::*;

#[test]
fn an_exit_code_alone_is_no_hint() {
    let failure = Failure {
        error: "process \"/bin/sh -c make\" did not complete successfully: exit code: 2",
        step: Some(FailedStepOutput {
            name: "[2/2] RUN make",
            output: "make: *** [Makefile:3: all] Error 2\n",
        }),
        dockerfile_line: Some(2),
        dockerfile: "Dockerfile",
        files: &NoFiles,
        login: None,
        no_network: None,
    };
    assert_eq!(explain(&failure), None);
}

#[test]
fn the_words_of_kinds_are_lower_case_and_each_is_one_kinds() {
    let words: std::collections::BTreeSet<_> = HintKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(words.len(), HintKind::ALL.len());
    for kind in HintKind::ALL {
        assert_eq!(serde_json::json!(kind), kind.as_str());
        assert!(
            kind.as_str()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        );
    }
}
