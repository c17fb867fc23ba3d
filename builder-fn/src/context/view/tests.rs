//! Tests of views: patterns select the same entries as with `docker build` and `buildctl`.

use super::*;
use crate::context::tree::ContextTree;
use crate::context::{Entry, ExtendedAttributes, Spool};

/// Builds a context of entries written as `file`, `folder/`, `link -> target`, `name = hard link's target`.
pub(super) fn context_with_entries(entries: &[&str]) -> SourceContext {
    let mut tree = ContextTree::default();
    for (at, entry) in entries.iter().enumerate() {
        if let Some((path, target)) = entry.split_once(" = ") {
            tree.insert_hard_link_or_copy_of_symlink(path, target).unwrap();
            continue;
        }
        let (path, kind) = match (entry.split_once(" -> "), entry.strip_suffix('/')) {
            (Some((path, target)), _) => (path, Kind::Symlink { target }),
            (_, Some(folder)) => (folder, Kind::Folder),
            _ => (
                *entry,
                Kind::File {
                    offset: at as u64,
                    size: 0,
                },
            ),
        };
        let entry = Entry {
            kind,
            mode: 0o755,
            mtime_ns: 0,
            xattrs: ExtendedAttributes::NONE,
        };
        tree.insert(path, &entry).unwrap();
    }
    SourceContext::new(tree.into_index(), Spool::in_memory(Vec::new()))
}

fn to_strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

/// Returns the paths in the view of a context; a hard link as `path = first path`.
fn selected_paths_with_hard_links(context: &SourceContext, filter: &ViewFilter) -> Vec<String> {
    let view = view(context, filter).unwrap_or_else(|error| panic!("{error}"));
    let path = |at: u32| context.index().path(at);
    let line = |seen: ViewEntry| match seen.link {
        Some(first) => format!("{} = {}", path(seen.entry), path(first)),
        None => path(seen.entry),
    };
    view.iter().map(line).collect()
}

fn paths_excluding(context: &SourceContext, patterns: &[&str]) -> Vec<String> {
    selected_paths_with_hard_links(
        context,
        &ViewFilter {
            exclude: to_strings(patterns),
            ..ViewFilter::default()
        },
    )
}

fn paths_including(context: &SourceContext, patterns: &[&str]) -> Vec<String> {
    selected_paths_with_hard_links(
        context,
        &ViewFilter {
            include: to_strings(patterns),
            ..ViewFilter::default()
        },
    )
}

fn paths_following(context: &SourceContext, paths: &[&str]) -> Vec<String> {
    selected_paths_with_hard_links(
        context,
        &ViewFilter {
            follow: to_strings(paths),
            ..ViewFilter::default()
        },
    )
}

/// Returns whether the exclude patterns `patterns` exclude `path` from a context that has nothing else.
fn is_excluded(path: &str, patterns: &[&str]) -> bool {
    !paths_excluding(&context_with_entries(&[path]), patterns)
        .iter()
        .any(|selected| selected == path)
}

#[test]
fn a_pattern_matches_the_paths_that_it_matches_in_go() {
    for (pattern, path, expected) in [
        // Without wildcards.
        ("file", "file", true),
        ("file", "files", false),
        ("file", "folder/file", false),
        ("folder", "folder/a/b", true),
        ("folder/", "folder/a", true),
        ("./folder//a", "folder/a", true),
        ("folder/../file", "file", true),
        ("  file\t", "file", true),
        ("/file", "file", false),
        ("a.b", "aXb", false),
        ("a+(b)|{c}$", "a+(b)|{c}$", true),
        // One component.
        ("*", "file", true),
        ("*", "folder/file", true),
        ("*.go", "a.go", true),
        ("*.go", ".go", true),
        ("*.go", "a/b.go", false),
        ("*/b.go", "a/b.go", true),
        ("*/b.go", "x/a/b.go", false),
        ("fil?", "file", true),
        ("fil?", "fil", false),
        ("fil?", "fil/", false),
        ("?", "é", true),
        ("a?b", "a/b", false),
        // Any number of components.
        ("**", "a/b/c", true),
        ("**/", "a", true),
        ("**/file", "file", true),
        ("**/file", "a/b/file", true),
        ("**/file", "a/xfile", false),
        ("**file", "a/xfile", true),
        ("**/a/b", "x/a/b", true),
        ("**/*.go", "a.go", true),
        ("**/*.go", "x/y/a.go", true),
        ("**/*.go", "x/y/a.gox", false),
        ("a/**", "a/b/c", true),
        ("a/**", "ab", false),
        ("a**", "abc/d", true),
        ("a/**/z", "a/z", true),
        ("a/**/z", "a/b/c/z", true),
        ("a/**/z", "a/bz", false),
        ("**/a/**", "x/a/y", true),
        ("**/a/**/*.txt", "x/a/y/z.txt", true),
        // Classes.
        ("[a-c]x", "bx", true),
        ("[a-c]x", "dx", false),
        ("[^a-c]x", "dx", true),
        ("[!a]x", "bx", false),
        ("[!a]x", "!x", true),
        ("[.]x", ".x", true),
        ("[.]x", "ax", false),
        ("[a&&b]", "&", true),
        ("[[x]", "[", true),
        ("[\\]]", "]", true),
        ("[\\-a]", "-", true),
        // Escapes, including those with a meaning in a regular expression.
        ("\\*", "*", true),
        ("\\*", "a", false),
        ("a\\ b", "a b", true),
        ("\\d", "7", true),
        ("\\d", "d", false),
        ("a\\b", "ab", false),
        ("^a", "^a", true),
        ("^a*", "^ab", false),
    ] {
        let path = path.trim_end_matches('/');
        assert_eq!(
            is_excluded(path, &[pattern]),
            expected,
            "{pattern:?} and {path:?}"
        );
    }
}

#[test]
fn the_last_pattern_that_matches_decides() {
    for (patterns, path, expected) in [
        (&["*.md", "!README.md"][..], "README.md", false),
        (&["*.md", "!README.md"], "OTHER.md", true),
        (
            &["*.md", "!README*.md", "README-secret.md"],
            "README-secret.md",
            true,
        ),
        (&["!README.md", "*.md"], "README.md", true),
        (&["folder", "!folder/a"], "folder/a", false),
        (&["folder", "!folder/a"], "folder/b", true),
        (&["folder", "!folder/a", "folder/a/b"], "folder/a/b", true),
        (&["folder", "!folder/a", "folder/a/b"], "folder/a/c", false),
        (&["**", "!**/*.go"], "x/y/a.go", false),
        (&["**", "!**/*.go"], "x/y/a.c", true),
        (&["*", "!src"], "src/deep/a", false),
        (&["*", "!src/**", "src/**/target"], "src/x/target/y", true),
        (&["*", "!*/a"], "x/a", false),
        (&["x", "!x"], "x/a", false),
        (&["", "   "], "a", false),
    ] {
        assert_eq!(is_excluded(path, patterns), expected, "{patterns:?} and {path:?}");
    }
}

#[test]
fn an_excluded_folder_with_an_exception_in_it_is_sent_without_its_other_entries() {
    let context = context_with_entries(&["a/b/keep", "a/b/other", "a/c", "z"]);
    assert_eq!(
        paths_excluding(&context, &["a", "!a/b/keep"]),
        ["a", "a/b", "a/b/keep", "z"]
    );
    assert_eq!(
        paths_excluding(&context, &["a", "!a/b/k*"]),
        ["a", "a/b", "a/b/keep", "z"]
    );
    assert_eq!(paths_excluding(&context, &["a", "!nothing"]), ["z"]);
    assert_eq!(paths_excluding(&context, &["*"]), [""; 0]);
}

#[test]
fn an_include_pattern_selects_the_match_everything_in_it_and_the_folders_above() {
    let context = context_with_entries(&["a/b/c", "a/b/d/e", "a/x", "ab/c", "z"]);
    assert_eq!(
        paths_including(&context, &["a/b"]),
        ["a", "a/b", "a/b/c", "a/b/d", "a/b/d/e"]
    );
    assert_eq!(
        paths_including(&context, &["a/b/d/**"]),
        ["a", "a/b", "a/b/d", "a/b/d/e"]
    );
    assert_eq!(paths_including(&context, &["*/c", "z"]), ["ab", "ab/c", "z"]);
    assert_eq!(
        paths_including(&context, &["**/c"]),
        ["a", "a/b", "a/b/c", "ab", "ab/c"]
    );
    assert_eq!(paths_including(&context, &["a", "!a/b"]), ["a", "a/x"]);
    assert_eq!(paths_including(&context, &["nothing"]), [""; 0]);
}

#[test]
fn exclude_patterns_override_include_patterns() {
    let context = context_with_entries(&["Dockerfile", "src/a.rs", "src/a.txt", "target/a.rs"]);
    let filter = ViewFilter {
        include: to_strings(&["src", "Dockerfile"]),
        exclude: to_strings(&["**/*.txt", "Dockerfile"]),
        follow: Vec::new(),
    };
    assert_eq!(
        selected_paths_with_hard_links(&context, &filter),
        ["src", "src/a.rs"]
    );
}

#[test]
fn the_first_request_of_a_build_selects_only_the_dockerfile_and_the_ignore_files() {
    let context = context_with_entries(&["Dockerfile", ".dockerignore", "src/main.rs", "dockerfile"]);
    let paths = [
        "Dockerfile",
        "Dockerfile.dockerignore",
        "dockerfile",
        ".dockerignore",
    ];
    assert_eq!(
        paths_following(&context, &paths),
        [".dockerignore", "Dockerfile", "dockerfile"]
    );
}

#[test]
fn symlinks_on_the_way_are_sent_with_their_targets() {
    let context = context_with_entries(&[
        "bin -> usr/bin",
        "usr/bin/tool -> ../lib/tool-1.0",
        "usr/lib/tool-1.0",
        "usr/lib/other",
        "absolute -> /usr/lib/other",
        "out -> ../../../z",
        "z",
    ]);
    let with_bin = [
        "bin",
        "usr",
        "usr/bin",
        "usr/bin/tool",
        "usr/lib",
        "usr/lib/tool-1.0",
    ];
    assert_eq!(paths_following(&context, &["bin/tool"]), with_bin);
    assert_eq!(
        paths_following(&context, &["absolute"]),
        ["absolute", "usr", "usr/lib", "usr/lib/other"]
    );
    assert_eq!(paths_following(&context, &["out"]), ["out", "z"]);
    assert_eq!(paths_following(&context, &["nothing/at/all"]), [""; 0]);
    assert_eq!(paths_following(&context, &["."]).len(), context.index().len());
}

#[test]
fn wildcards_are_followed_through_every_symlink_that_matches() {
    let context = context_with_entries(&[
        "a.conf -> real/a",
        "b.conf -> real/b",
        "c.txt -> real/c",
        "real/a",
        "real/b",
        "real/c",
    ]);
    assert_eq!(
        paths_following(&context, &["*.conf"]),
        ["a.conf", "b.conf", "real", "real/a", "real/b"]
    );
    assert_eq!(
        paths_following(&context, &["real/[ab]"]),
        ["real", "real/a", "real/b"]
    );
}

#[test]
fn circular_symlinks_end_and_very_long_chains_are_rejected() {
    let circle = context_with_entries(&["a -> b", "b -> a", "self -> self/self"]);
    assert_eq!(paths_following(&circle, &["a/x", "self"]), ["a", "b", "self"]);
    let chain = |length: usize| {
        let links: Vec<String> = (0..length).map(|at| format!("{at} -> {}", at + 1)).collect();
        context_with_entries(&links.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(paths_following(&chain(500), &["0"]).len(), 500);
    let filter = ViewFilter {
        follow: to_strings(&["0"]),
        ..ViewFilter::default()
    };
    assert!(view(&chain(50_000), &filter).is_err());
}

#[test]
fn hard_links_refer_to_the_first_name_that_is_sent() {
    let context = context_with_entries(&["m", "a = m", "z = m", "other"]);
    assert_eq!(paths_excluding(&context, &[]), ["a", "m = a", "other", "z = a"]);
    assert_eq!(paths_excluding(&context, &["a"]), ["m", "other", "z = m"]);
    assert_eq!(paths_including(&context, &["z"]), ["z"]);
}

#[test]
fn hard_links_of_different_files_are_kept_apart() {
    let context = context_with_entries(&[
        "a/1",
        "m",
        "b/1 = m",
        "b/2 = a/1",
        "a/2 = a/1",
        "a/x",
        "z = b/1",
        "m/",
        "m = a/2",
    ]);
    assert_eq!(
        paths_excluding(&context, &[]),
        [
            "a",
            "a/1",
            "a/2 = a/1",
            "a/x",
            "b",
            "b/1",
            "b/2 = a/1",
            "m = a/1",
            "z = b/1"
        ]
    );
    assert_eq!(
        paths_excluding(&context, &["a"]),
        ["b", "b/1", "b/2", "m = b/2", "z = b/1"]
    );
}

/// The outcomes were recorded with fsutil 6d9dc2ebad62 and patternmatcher 0.6.1 on Go 1.26: `Walk` of `NewFilterFS`
/// with these `ExcludePatterns` on a folder with these files; `None` where either fails.
#[test]
fn a_malformed_pattern_fails_only_where_it_fails_in_go() {
    let context = context_with_entries(&["a/b", "ab$", "b", "z"]);
    for (patterns, expected) in [
        (&["a*/b\\"][..], Some("a a/b ab$ b z")),
        (&["*b\\"][..], None),
        (&["a*b\\"][..], Some("a a/b b z")),
        (&["x/**\\"][..], Some("a a/b ab$ b z")),
        (&["a**\\"][..], Some("a a/b ab$ b z")),
        (&["b*c*\\"][..], Some("a a/b ab$ b z")),
        (&["a\\"][..], None),
        (&["*\\"][..], None),
        (&["**\\"][..], None),
        (&["\\"][..], None),
        (&["[z-a]"][..], None),
        (&["![z-a]"][..], Some("a a/b ab$ b z")),
        (&["a*["][..], None),
        (&["!a*["][..], Some("a a/b ab$ b z")),
        (&["a*/[z-a]"][..], None),
        (&["**/[z-a]"][..], None),
        (&["!a/["][..], None),
        (&["*/a["][..], None),
        (&["a["][..], None),
        (&["[]"][..], None),
        (&["["][..], None),
        (&["*["][..], None),
        (&["?["][..], None),
        (&["?*["][..], None),
        (&[".["][..], None),
        (&[".*["][..], None),
        (&["[.]*["][..], None),
        (&["a/**["][..], None),
        (&["!"][..], None),
        (&["]"][..], Some("a a/b ab$ b z")),
        (&["a]"][..], Some("a a/b ab$ b z")),
        (&["[a]]"][..], Some("a a/b ab$ b z")),
        (&["[^a"][..], None),
        (&["[^"][..], None),
        (&["[-a]"][..], None),
        (&["[a-]"][..], None),
        (&["[]a]"][..], None),
        (&["[a-b-c]"][..], None),
        (&["[\\]]"][..], Some("a a/b ab$ b z")),
        (&["[\\"][..], None),
        (&["[a\\"][..], None),
        (&["\\p"][..], None),
        (&["!\\p"][..], Some("a a/b ab$ b z")),
        (&["\\é"][..], None),
        (&["\\d"][..], Some("a a/b ab$ b z")),
        (&["é*["][..], None),
        (&["*.["][..], None),
        (&["*.*["][..], None),
        (&["[!-~]*["][..], None),
        (&["[a-z]*["][..], None),
        (&["z", "![z-a]"][..], None),
        (&["![z-a]", "z"][..], Some("a a/b ab$ b")),
        (&["**", "![z-a]"][..], None),
        (&["z", "a*["][..], None),
        (&["*", "a*["][..], Some("")),
        (&["nothing", "!a*["][..], Some("a a/b ab$ b z")),
        (&["b", "!a*/b\\"][..], Some("a a/b ab$ z")),
        (&["b", "["][..], None),
        (&["a", "!x*["][..], None),
    ] {
        let filter = ViewFilter {
            exclude: to_strings(patterns),
            ..ViewFilter::default()
        };
        let paths = |view: ContextView| {
            let paths: Vec<_> = view.iter().map(|seen| context.index().path(seen.entry)).collect();
            paths.join(" ")
        };
        let selected = view(&context, &filter).map(paths);
        assert_eq!(selected.as_deref().ok(), expected, "{patterns:?}: {selected:?}");
    }
}

#[test]
fn a_malformed_pattern_is_named_in_the_error() {
    let context = context_with_entries(&["b"]);
    for (pattern, reason) in [
        ("!", "'!'"),
        ("a[", "'['"),
        ("[]", "'['"),
        ("a\\", "'\\'"),
        ("[b-a]", "not a valid expression"),
    ] {
        for filter in [
            ViewFilter {
                exclude: to_strings(&["a", pattern]),
                ..ViewFilter::default()
            },
            ViewFilter {
                include: to_strings(&["a", pattern]),
                ..ViewFilter::default()
            },
        ] {
            let error = view(&context, &filter).unwrap_err();
            assert_eq!(error.pattern, pattern);
            assert!(error.reason.contains(reason), "{error}");
        }
    }
}

#[test]
fn patterns_that_exceed_the_effort_limit_are_an_error_that_names_one_of_them() {
    let folder = "folder/".repeat(20);
    let files: Vec<String> = (0..100).map(|at| format!("{folder}{at}")).collect();
    let context = context_with_entries(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let patterns: Vec<String> = (0..100).map(|at| format!("**/x*{at}/**/y?")).collect();
    let within = |effort: usize, exclude: Vec<String>| {
        let filter = ViewFilter {
            exclude,
            ..ViewFilter::default()
        };
        view_with_effort(effort, &|| true, &context, &filter).map(|view| view.len())
    };
    assert_eq!(within(4 << 20, patterns.clone()), Ok(120));
    let error = within(1 << 20, patterns.clone()).unwrap_err();
    assert!(
        patterns.contains(&error.pattern) && error.reason.contains("too many"),
        "{error}"
    );
    let plain = (0..100).map(|at| format!("x{at}")).collect();
    assert_eq!(
        within(1 << 20, plain),
        Ok(120),
        "patterns without wildcards cost little"
    );
}

#[test]
fn matching_stops_when_nobody_waits_for_it_any_more() {
    let files: Vec<String> = (0..100).map(|at| at.to_string()).collect();
    let folder = context_with_entries(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let links = context_with_entries(&["0 -> 1", "1 -> 2", "2 -> 3"]);
    let exclude = ViewFilter {
        exclude: to_strings(&["*x"]),
        ..ViewFilter::default()
    };
    let follow = ViewFilter {
        follow: to_strings(&["0"]),
        ..ViewFilter::default()
    };
    for (context, filter) in [(&folder, &exclude), (&links, &follow)] {
        let asked = std::cell::Cell::new(0);
        let is_wanted = || {
            asked.set(asked.get() + 1);
            asked.get() < 3
        };
        let error = view_while(&is_wanted, context, filter).unwrap_err();
        assert_eq!((error.reason, asked.get()), ("the request was cancelled", 3));
    }
}

#[test]
fn the_memory_of_patterns_is_limited() {
    let with = |exclude| {
        let filter = ViewFilter {
            exclude,
            ..ViewFilter::default()
        };
        view(&context_with_entries(&["a"]), &filter).map_err(|error| error.reason)
    };
    assert!(with(vec!["?".repeat(200_000)]).is_err());
    let many = |count: usize, form: &str| (0..count).map(|at| form.replace('N', &at.to_string())).collect();
    assert!(with(many(900, "*.extN")).is_ok());
    assert!(with(many(5000, "*.extN")).is_err_and(|reason| reason.contains("wildcards")));
    assert!(with(many(100, &"**/?*N".repeat(100))).is_err_and(|reason| reason.contains("wildcards")));
    // Patterns without other wildcards than a leading `**` take no more than their own text.
    assert!(with(many(9000, "some/folder/N/and/a/file")).is_ok());
    assert!(with(many(9000, "**/fileN")).is_ok());
}
