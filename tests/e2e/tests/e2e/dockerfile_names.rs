//! Tests that builder-fn builds the same file of a context as `buildctl` when both are given the same Dockerfile name.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, comparison::ClientComparison};

/// The Dockerfiles of the contexts; each image says in `/which` which one was read.
const DOCKERFILES_OF_CONTEXTS: [&[&str]; 6] = [
    &["Dockerfile"],
    &["dockerfile"],
    &["build/dockerfile"],
    &["build/Dockerfile"],
    &["Dockerfile", "build/dockerfile"],
    &["dockerfile", "build/Dockerfile", "Other"],
];

/// The Dockerfile names that the configs of the first test give; `None` for a config without one.
const CONFIGURED_DOCKERFILE_NAMES: [Option<&str>; 9] = [
    None,
    Some("Dockerfile"),
    Some("./Dockerfile"),
    Some("dockerfile"),
    Some("build/Dockerfile"),
    Some("./build/Dockerfile"),
    Some("build//Dockerfile"),
    Some("build/dockerfile"),
    Some("Other"),
];

/// Returns a context with Dockerfiles at these paths, each of which begins with `first_line`.
fn context_with_dockerfiles(dockerfile_paths: &[&str], first_line: &str) -> BuildContext {
    dockerfile_paths
        .iter()
        .fold(BuildContext::new().with_file("a", "a"), |context, path| {
            let text = format!("{first_line}FROM scratch\nCOPY a /which/{path}\n");
            context.with_file(path, text)
        })
}

#[tokio::test]
async fn every_dockerfile_name_builds_the_same_image_or_fails_as_with_buildctl() -> Result<()> {
    let comparison = ClientComparison::start("e2e/dockerfile-names").await?;
    let _parts = comparison.testbed.share_parts().await;
    let mut found = 0;
    for (number, dockerfiles) in DOCKERFILES_OF_CONTEXTS.iter().enumerate() {
        let source = context_with_dockerfiles(dockerfiles, "");
        let folder = tempfile::tempdir()?;
        let folder = source.write_to_folder(folder.path())?;
        for (name_number, name) in CONFIGURED_DOCKERFILE_NAMES.iter().enumerate() {
            let what = format!("{name:?} in {dockerfiles:?}");
            let tag = format!("{number}-{name_number}");
            let option = name.map(|name| format!("filename={name}"));
            let options: Vec<&str> = option.iter().map(String::as_str).collect();
            let theirs = comparison
                .build_with_buildctl(&folder, &format!("{tag}-buildctl"), &options)
                .await?;
            let mut config = comparison.config_without_cache(&tag);
            if let Some(name) = name {
                config["dockerfile"] = json!(name);
            }
            let (reply, ours) = comparison
                .build_with_builder(source.tar_with_config_last(&config)?, &tag)
                .await?;
            match theirs {
                Ok(theirs) => {
                    assert_eq!(ours, Ok(theirs), "{what}: {}", reply.text);
                    found += 1;
                }
                Err(theirs) => assert!(
                    (400..500).contains(&reply.status),
                    "{what}: {} {}, buildctl: {theirs}",
                    reply.status,
                    reply.text
                ),
            }
        }
    }
    assert!(
        found > CONFIGURED_DOCKERFILE_NAMES.len(),
        "only {found} of the combinations build"
    );
    Ok(())
}

/// The file that is built decides which frontend would read it.
#[tokio::test]
async fn a_foreign_syntax_line_is_rejected_also_in_a_lower_case_dockerfile() -> Result<()> {
    let comparison = ClientComparison::start("e2e/dockerfile-names").await?;
    let _parts = comparison.testbed.share_parts().await;
    for (path, name) in [
        ("dockerfile", "Dockerfile"),
        ("dockerfile", "./Dockerfile"),
        ("build/dockerfile", "build/Dockerfile"),
    ] {
        let mut config = comparison.config_without_cache("syntax");
        config["dockerfile"] = json!(name);
        let source = context_with_dockerfiles(&[path], "# syntax=registry.invalid/frontend:1\n");
        let (reply, _) = comparison
            .build_with_builder(source.tar_with_config_last(&config)?, "syntax")
            .await?;
        assert_eq!(reply.status, 400, "{name}: {}", reply.text);
        assert!(
            reply.text_field("error").contains("registry.invalid/frontend:1"),
            "{name}: {}",
            reply.text
        );
    }
    Ok(())
}
