//! The transfer of contexts: builds never see each other's files, and the daemon receives only files that it lacks.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use slipway_e2e::{
    builder_process::BuilderProcess,
    context_tree::{self, ContextTree, TreeEntry},
    registry::RegistryClient,
    testbed::Testbed,
};

const COPY_DOCKERFILE: &str = "FROM scratch\nCOPY . /\n";

/// Starts a builder-fn with the stack's BuildKit.
async fn start_builder_with_stack_credentials(testbed: &Testbed) -> Result<BuilderProcess> {
    let registry = &testbed.stack.registry;
    let credentials = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
    BuilderProcess::start_with_docker_config(testbed, &credentials, &[]).await
}

/// Builds `tree`, and fails unless the image has its entries.
async fn build_and_fail_unless_image_has_entries_of_tree(
    testbed: &Testbed,
    builder: &BuilderProcess,
    repository: &str,
    tag: &str,
    tree: &ContextTree,
) -> Result<()> {
    let image = testbed.image_name(repository, tag);
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(tree.tar_with_config_last(&json!({ "image": image }))?)
        .await?;
    ensure!(reply.status == 200, "{}", reply.text);
    let files = context_tree::read_image_files_if_layers_only_add(&testbed.registry, repository, tag).await?;
    ensure!(
        files == tree.entries_in_image(),
        "the image {image} has {files:#?}, not the files of its context {tree:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn files_of_equal_size_and_time_are_never_mixed_up() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let (one, two) = tokio::try_join!(
        start_builder_with_stack_credentials(&testbed),
        start_builder_with_stack_credentials(&testbed)
    )?;
    let tree = |content: &str| {
        ContextTree::dockerfile(COPY_DOCKERFILE)
            .with_file("a/same", "1")
            .with_file("a/file", content)
            .with_file("z", content)
    };
    let (red, blue) = (tree("red!"), tree("blue"));
    // Sequential builds of the same image and of another one.
    for (tag, tree) in [("1", &red), ("2", &blue), ("3", &red), ("4", &blue), ("5", &blue)] {
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &one, "e2e/alike", tag, tree).await?;
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &one, "e2e/alike-too", tag, &red).await?;
    }
    // Concurrent builds by one builder and by two.
    tokio::try_join!(
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &one, "e2e/alike", "6", &red),
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &one, "e2e/alike", "7", &blue),
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &two, "e2e/alike", "8", &red),
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &two, "e2e/alike", "9", &blue),
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &two, "e2e/alike-too", "6", &blue),
    )?;
    for (builder, tree) in [(&one, &blue), (&two, &red), (&one, &red), (&two, &blue)] {
        build_and_fail_unless_image_has_entries_of_tree(&testbed, builder, "e2e/alike", "10", tree).await?;
    }
    Ok(())
}

#[tokio::test]
async fn only_changed_files_are_sent_again() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = start_builder_with_stack_credentials(&testbed).await?;
    let mut tree = ContextTree::dockerfile(COPY_DOCKERFILE);
    for number in 0..200 {
        tree = tree.with_file(&format!("folder/{number}"), vec![number; 5000]);
    }
    let sent = async |tree: &ContextTree| {
        let before = builder.metric_value("slipway_context_sent_bytes_total").await?;
        build_and_fail_unless_image_has_entries_of_tree(&testbed, &builder, "e2e/warm", "1", tree).await?;
        // The frontend reads the Dockerfile in every build.
        let dockerfile = COPY_DOCKERFILE.len() as f64;
        anyhow::Ok(builder.metric_value("slipway_context_sent_bytes_total").await? - before - dockerfile)
    };
    let all = 200.0 * 5000.0 + COPY_DOCKERFILE.len() as f64;
    assert_eq!(sent(&tree).await?, all, "cold");
    assert_eq!(sent(&tree).await?, 0.0, "no file has changed");
    tree = tree.with_file("folder/7", vec![0; 4999]);
    assert_eq!(sent(&tree).await?, 4999.0, "one file has changed");
    assert_eq!(sent(&tree).await?, 0.0, "no file has changed");
    tree = tree.with_file("folder/8", vec![1; 5000]);
    assert_eq!(
        sent(&tree).await?,
        5000.0,
        "one file has changed, with the same size and time"
    );
    tree = tree
        .with_entry("folder/7", TreeEntry::Link("8".into()))
        .with_file("folder/new", "new");
    assert!(
        sent(&tree).await? <= 5003.0,
        "a file that once had the size and time of another may be sent again"
    );
    Ok(())
}

#[tokio::test]
async fn an_aborted_transfer_does_not_affect_later_builds() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = start_builder_with_stack_credentials(&testbed).await?;
    let large = |seed: u8| -> Vec<u8> { (0..12u32 << 20).map(|at| (at >> 7) as u8 ^ seed).collect() };
    let tree = |seed| {
        ContextTree::dockerfile(COPY_DOCKERFILE)
            .with_file("small", [seed; 4])
            .with_file("large", large(seed))
    };
    build_and_fail_unless_image_has_entries_of_tree(&testbed, &builder, "e2e/broken", "1", &tree(1)).await?;

    let sent = builder.metric_value("slipway_context_sent_bytes_total").await?;
    let tar = tree(2).tar_with_config_last(&json!({ "image": testbed.image_name("e2e/broken", "2") }))?;
    let client = builder.build_client_with_own_key()?;
    let posting = tokio::spawn(async move { client.post_signed(tar).await });
    while builder.metric_value("slipway_context_sent_bytes_total").await? < sent + 1e5 {
        ensure!(
            !posting.is_finished(),
            "the build ended before it was aborted: {:?}",
            posting.await
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    posting.abort();
    let _ = posting.await;

    build_and_fail_unless_image_has_entries_of_tree(&testbed, &builder, "e2e/broken", "3", &tree(3)).await?;
    build_and_fail_unless_image_has_entries_of_tree(&testbed, &builder, "e2e/broken", "4", &tree(2)).await
}

/// Returns a random entry for one path of a tree, or `None`.
fn random_entry(random: &mut SeededRandom, path: &str) -> Option<TreeEntry> {
    let content =
        |random: &mut SeededRandom| vec![b'a' + random.random_below(2) as u8; 1 + random.random_below(2)];
    Some(match random.random_below(8) {
        0 => return None,
        1 => TreeEntry::Link(["x", "a", "../b"][random.random_below(3)].into()),
        2 => TreeEntry::Folder([0o755, 0o700][random.random_below(2)]),
        3 if path > "a" => TreeEntry::HardLink("a".into()),
        4 => TreeEntry::File(content(random), 0o755),
        _ => TreeEntry::File(content(random), 0o644),
    })
}

/// Returns a tree with a Dockerfile, up to five random entries at its root, and sometimes an ignore file.
fn random_tree(random: &mut SeededRandom) -> ContextTree {
    let mut tree = ContextTree::dockerfile(COPY_DOCKERFILE);
    tree.mtime = random.random_below(2) as u64;
    for path in ["a", "b", "c", "d", "e"] {
        let Some(node) = random_entry(random, path) else {
            continue;
        };
        let is_possible = match &node {
            TreeEntry::HardLink(target) => matches!(tree.entries.get(target), Some(TreeEntry::File(..))),
            _ => true,
        };
        if !is_possible {
            continue;
        }
        if matches!(node, TreeEntry::Folder(_)) {
            for name in ["a", "b"] {
                if let Some(TreeEntry::File(content, mode)) = random_entry(random, "") {
                    tree = tree.with_entry(&format!("{path}/{name}"), TreeEntry::File(content, mode));
                }
            }
        }
        tree = tree.with_entry(path, node);
    }
    if random.random_below(3) == 0 {
        let ignored = ["b\n", "c\n!c/a\n", "**/a\n"][random.random_below(3)];
        tree = tree.with_file(".dockerignore", ignored);
    }
    tree
}

/// Builds random trees one after the other. Ignored files are never in an image, whatever earlier builds had.
#[tokio::test]
async fn images_are_correct_after_any_sequence_of_builds() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = start_builder_with_stack_credentials(&testbed).await?;
    let seed = std::env::var("SLIPWAY_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let builds = std::env::var("SLIPWAY_BUILDS")
        .ok()
        .and_then(|builds| builds.parse().ok());
    let mut random = SeededRandom(seed);
    for turn in 0..builds.unwrap_or(16) {
        let tree = random_tree(&mut random);
        let tag = format!("t{}", turn % 4);
        let mut posted = tree.clone();
        let fails = random.random_below(5) == 0;
        if fails {
            posted = posted.with_file(
                "Dockerfile",
                "FROM scratch\nCOPY . /\nCOPY nothing-of-this-name /\n",
            );
        }
        let image = testbed.image_name("e2e/random", &tag);
        let reply = builder
            .build_client_with_own_key()?
            .post_signed(posted.tar_with_config_last(&json!({ "image": image }))?)
            .await?;
        ensure!(
            reply.status == if fails { 422 } else { 200 },
            "SLIPWAY_SEED={seed}, {turn}: {}",
            reply.text
        );
        if fails {
            continue;
        }
        let files =
            context_tree::read_image_files_if_layers_only_add(&testbed.registry, "e2e/random", &tag).await?;
        let expected = entries_without_ignored_of_random_tree(&tree);
        ensure!(
            files == expected,
            "SLIPWAY_SEED={seed}, {turn}: {files:#?}, made of {tree:#?}"
        );
    }
    Ok(())
}

/// Returns the entries of a random tree's image, without those that its ignore file excludes.
fn entries_without_ignored_of_random_tree(
    tree: &ContextTree,
) -> std::collections::BTreeMap<String, TreeEntry> {
    let mut seen = tree.entries_in_image();
    let rule = match tree.entries.get(".dockerignore") {
        Some(TreeEntry::File(rule, _)) => rule.first().copied(),
        _ => None,
    };
    let within = |path: &str, folder: &str| path.starts_with(&format!("{folder}/"));
    match rule {
        Some(b'b') => seen.retain(|path, _| path != "b" && !within(path, "b")),
        Some(b'c') => {
            let is_kept = seen.contains_key("c/a");
            seen.retain(|path, _| {
                path == "c/a" || (path == "c" && is_kept) || (path != "c" && !within(path, "c"))
            });
        }
        Some(_) => seen.retain(|path, _| path != "a" && !within(path, "a") && !path.ends_with("/a")),
        None => {}
    }
    seen
}

/// A generator of the same numbers for the same seed.
struct SeededRandom(u64);

impl SeededRandom {
    /// Returns the next number, from 0 to `limit` - 1.
    fn random_below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}
