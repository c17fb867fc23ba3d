//! Ignore patterns, well-formed and malformed: builder-fn ignores what `buildctl` ignores, and rejects what it rejects.

use anyhow::Result;
use slipway_e2e::{build_context::BuildContext, comparison::ClientComparison};

/// Patterns that moby's matcher takes apart in different ways. Some are malformed only where a path gets as far as the
/// malformed part; the context has such paths.
const TESTED_IGNORE_PATTERNS: [&str; 40] = [
    // A malformed part that no path reaches, or that every path does.
    "a*/b\\",
    "!a*/b\\",
    "a\\",
    "*/a[",
    "!a/[",
    "!*/a[",
    "[",
    "![",
    "a[",
    "a/[b",
    "**/[",
    "!**/x\\",
    "nothing/[",
    "!nothing/[",
    "zzz[",
    // Classes that are empty, reversed or open.
    "[]",
    "[^]",
    "[z-a]",
    "![z-a]",
    "[a-]",
    "[-a]",
    "[!a]",
    "[^a]",
    "[a-c]*",
    "*/[a-",
    // Stars and separators.
    "**",
    "***",
    "a**b",
    "**/b",
    "a/**",
    "*/*",
    "?",
    // Characters that mean something to a regular expression.
    "{a,b}",
    "a+b",
    "(a|b)",
    "a.b",
    "$",
    // Paths that are cleaned first.
    "/a/../b/",
    "./a//b",
    "..",
];

/// Returns a context with this `.dockerignore`, and with files that the tested patterns match in parts.
fn context_with_dockerignore(dockerignore_text: &str) -> BuildContext {
    [
        "a", "b", "aab", "a+b", "a.b", "axb", "{a,b}", "(a|b)", "$", "[", "a[", "x", "-", "!a",
    ]
    .iter()
    .fold(
        BuildContext::dockerfile("FROM scratch\nCOPY . /\n").with_file(".dockerignore", dockerignore_text),
        |context, name| {
            context
                .with_file(name, *name)
                .with_file(&format!("folder/{name}"), *name)
        },
    )
    .with_file("ab/b/c", "deep")
    .with_file("ab/a/b", "deep")
}

#[tokio::test]
async fn every_ignore_pattern_has_the_effect_that_it_has_for_buildctl() -> Result<()> {
    let comparison = ClientComparison::start("e2e/ignore-patterns").await?;
    let _parts = comparison.testbed.share_parts().await;
    let mut differences = Vec::new();
    // An exception is looked at only where an earlier pattern matches.
    let after_another = TESTED_IGNORE_PATTERNS
        .iter()
        .filter(|pattern| pattern.starts_with('!'));
    let after_another = after_another.map(|pattern| format!("folder\n{pattern}\n"));
    let files: Vec<String> = TESTED_IGNORE_PATTERNS
        .iter()
        .map(|pattern| format!("{pattern}\n"))
        .chain(after_another)
        .collect();
    for (number, ignore) in files.iter().enumerate() {
        let source = context_with_dockerignore(ignore);
        let folder = tempfile::tempdir()?;
        let theirs = comparison
            .build_with_buildctl(
                &source.write_to_folder(folder.path())?,
                &format!("buildctl-{number}"),
                &[],
            )
            .await?;
        let tag = number.to_string();
        let (reply, ours) = comparison
            .build_with_builder(
                source.tar_with_config_last(&comparison.config_without_cache(&tag))?,
                &tag,
            )
            .await?;
        let is_same = match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) => ours == theirs,
            (Err(_), Err(_)) => (400..500).contains(&reply.status),
            _ => false,
        };
        if !is_same {
            let short = |outcome: &slipway_e2e::comparison::ClientOutcome| match outcome {
                Ok(files) => format!("{:?}", files.keys().collect::<Vec<_>>()),
                Err(error) => error.clone(),
            };
            differences.push(format!(
                "{ignore:?}: {}\n    buildctl: {}",
                short(&ours),
                short(&theirs)
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// A malformed pattern that has no effect is likely a mistake, so the log names its line.
#[tokio::test]
async fn a_malformed_ignore_pattern_without_effect_is_a_warning_with_its_line() -> Result<()> {
    let comparison = ClientComparison::start("e2e/ignore-patterns").await?;
    let _parts = comparison.testbed.share_parts().await;
    for pattern in ["a*/b\\", "![z-a]"] {
        let source = context_with_dockerignore(&format!("{pattern}\n"));
        let (reply, _) = comparison
            .build_with_builder(
                source.tar_with_config_last(&comparison.config_without_cache("warned"))?,
                "warned",
            )
            .await?;
        assert_eq!(reply.status, 200, "{pattern}: {}", reply.text);
        let log = reply.json_or_error_text()["log"].to_string();
        assert!(log.contains("warning: context/.dockerignore, line 1: "), "{log}");
    }
    Ok(())
}
