//! Case by case what patterns show, as `docker build` and `buildctl` would.

use super::*;
use crate::context::tree::Tree;
use crate::context::{Attributes, Entry, Spool};

/// A context of entries written as `file`, `folder/`, `link -> target`, `name = hard link's target`.
pub(super) fn context(entries: &[&str]) -> SourceContext {
    let mut tree = Tree::default();
    for (at, entry) in entries.iter().enumerate() {
        if let Some((path, target)) = entry.split_once(" = ") {
            tree.link(path, target).unwrap();
            continue;
        }
        let (path, kind) = match (entry.split_once(" -> "), entry.strip_suffix('/')) {
            (Some((path, target)), _) => (path, Kind::Symlink { target }),
            (_, Some(folder)) => (folder, Kind::Directory),
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
            xattrs: Attributes::NONE,
            content: Default::default(),
        };
        tree.insert(path, &entry).unwrap();
    }
    SourceContext::new(tree.into_index(), Spool::in_memory(Vec::new()))
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

fn shown(context: &SourceContext, filter: &Filter) -> Vec<String> {
    let visible = view(context, filter).unwrap_or_else(|error| panic!("{error}"));
    let path = |at: u32| context.index().path(at);
    let line = |seen: Visible| match seen.link {
        Some(first) => format!("{} = {}", path(seen.entry), path(first)),
        None => path(seen.entry),
    };
    visible.iter().map(line).collect()
}

fn excluding(context: &SourceContext, patterns: &[&str]) -> Vec<String> {
    shown(
        context,
        &Filter {
            exclude: strings(patterns),
            ..Filter::default()
        },
    )
}

fn including(context: &SourceContext, patterns: &[&str]) -> Vec<String> {
    shown(
        context,
        &Filter {
            include: strings(patterns),
            ..Filter::default()
        },
    )
}

fn following(context: &SourceContext, paths: &[&str]) -> Vec<String> {
    shown(
        context,
        &Filter {
            follow: strings(paths),
            ..Filter::default()
        },
    )
}

/// Whether `patterns` leave `path` out of a context that has nothing else.
fn is_excluded(path: &str, patterns: &[&str]) -> bool {
    !excluding(&context(&[path]), patterns)
        .iter()
        .any(|shown| shown == path)
}

#[test]
fn one_pattern_against_one_path() {
    for (pattern, path, expected) in [
        // Nothing special.
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
        // Escapes, with those that mean something in a regular expression.
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
fn a_folder_with_an_exception_in_it_is_shown_and_its_rest_is_not() {
    let context = context(&["a/b/keep", "a/b/other", "a/c", "z"]);
    assert_eq!(
        excluding(&context, &["a", "!a/b/keep"]),
        ["a", "a/b", "a/b/keep", "z"]
    );
    assert_eq!(
        excluding(&context, &["a", "!a/b/k*"]),
        ["a", "a/b", "a/b/keep", "z"]
    );
    assert_eq!(excluding(&context, &["a", "!nothing"]), ["z"]);
    assert_eq!(excluding(&context, &["*"]), [""; 0]);
}

#[test]
fn included_are_what_matches_all_that_is_in_it_and_the_way_to_it() {
    let context = context(&["a/b/c", "a/b/d/e", "a/x", "ab/c", "z"]);
    assert_eq!(
        including(&context, &["a/b"]),
        ["a", "a/b", "a/b/c", "a/b/d", "a/b/d/e"]
    );
    assert_eq!(
        including(&context, &["a/b/d/**"]),
        ["a", "a/b", "a/b/d", "a/b/d/e"]
    );
    assert_eq!(including(&context, &["*/c", "z"]), ["ab", "ab/c", "z"]);
    assert_eq!(
        including(&context, &["**/c"]),
        ["a", "a/b", "a/b/c", "ab", "ab/c"]
    );
    assert_eq!(including(&context, &["a", "!a/b"]), ["a", "a/x"]);
    assert_eq!(including(&context, &["nothing"]), [""; 0]);
}

#[test]
fn what_is_included_can_still_be_excluded() {
    let context = context(&["Dockerfile", "src/a.rs", "src/a.txt", "target/a.rs"]);
    let filter = Filter {
        include: strings(&["src", "Dockerfile"]),
        exclude: strings(&["**/*.txt", "Dockerfile"]),
        follow: Vec::new(),
    };
    assert_eq!(shown(&context, &filter), ["src", "src/a.rs"]);
}

#[test]
fn the_dockerfile_alone_is_what_the_first_request_of_a_build_follows() {
    let context = context(&["Dockerfile", ".dockerignore", "src/main.rs", "dockerfile"]);
    let paths = [
        "Dockerfile",
        "Dockerfile.dockerignore",
        "dockerfile",
        ".dockerignore",
    ];
    assert_eq!(
        following(&context, &paths),
        [".dockerignore", "Dockerfile", "dockerfile"]
    );
}

#[test]
fn links_on_the_way_are_followed_and_sent_with_what_they_point_to() {
    let context = context(&[
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
    assert_eq!(following(&context, &["bin/tool"]), with_bin);
    assert_eq!(
        following(&context, &["absolute"]),
        ["absolute", "usr", "usr/lib", "usr/lib/other"]
    );
    assert_eq!(following(&context, &["out"]), ["out", "z"]);
    assert_eq!(following(&context, &["nothing/at/all"]), [""; 0]);
    assert_eq!(following(&context, &["."]).len(), context.index().len());
}

#[test]
fn wildcards_are_followed_to_whatever_they_match() {
    let context = context(&[
        "a.conf -> real/a",
        "b.conf -> real/b",
        "c.txt -> real/c",
        "real/a",
        "real/b",
        "real/c",
    ]);
    assert_eq!(
        following(&context, &["*.conf"]),
        ["a.conf", "b.conf", "real", "real/a", "real/b"]
    );
    assert_eq!(following(&context, &["real/[ab]"]), ["real", "real/a", "real/b"]);
}

#[test]
fn links_in_circles_and_in_long_rows_end() {
    let circle = context(&["a -> b", "b -> a", "self -> self/self"]);
    assert_eq!(following(&circle, &["a/x", "self"]), ["a", "b", "self"]);
    let row = |length: usize| {
        let links: Vec<String> = (0..length).map(|at| format!("{at} -> {}", at + 1)).collect();
        context(&links.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(following(&row(500), &["0"]).len(), 500);
    let filter = Filter {
        follow: strings(&["0"]),
        ..Filter::default()
    };
    assert!(view(&row(50_000), &filter).is_err());
}

#[test]
fn hard_links_point_to_the_first_name_that_is_sent() {
    let context = context(&["m", "a = m", "z = m", "other"]);
    assert_eq!(excluding(&context, &[]), ["a", "m = a", "other", "z = a"]);
    assert_eq!(excluding(&context, &["a"]), ["m", "other", "z = m"]);
    assert_eq!(including(&context, &["z"]), ["z"]);
}

#[test]
fn files_with_many_names_are_told_apart() {
    let context = context(&[
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
        excluding(&context, &[]),
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
        excluding(&context, &["a"]),
        ["b", "b/1", "b/2", "m = b/2", "z = b/1"]
    );
}

#[test]
fn malformed_patterns_are_named() {
    let context = context(&["a"]);
    for (pattern, reason) in [
        ("!", "'!'"),
        ("a[", "'['"),
        ("[]", "'['"),
        ("a\\", "'\\'"),
        ("[b-a]", "nothing"),
    ] {
        for filter in [
            Filter {
                exclude: strings(&["a", pattern]),
                ..Filter::default()
            },
            Filter {
                include: strings(&["a", pattern]),
                ..Filter::default()
            },
        ] {
            let error = view(&context, &filter).unwrap_err();
            assert_eq!(error.pattern, pattern);
            assert!(error.reason.contains(reason), "{error}");
        }
    }
}

#[test]
fn patterns_cannot_take_all_memory() {
    let with = |exclude| {
        let filter = Filter {
            exclude,
            ..Filter::default()
        };
        view(&context(&["a"]), &filter).map_err(|error| error.reason)
    };
    assert!(with(vec!["?".repeat(200_000)]).is_err());
    let many = |count: usize, form: &str| (0..count).map(|at| form.replace('N', &at.to_string())).collect();
    assert!(with(many(900, "*.extN")).is_ok());
    assert!(with(many(5000, "*.extN")).is_err_and(|reason| reason.contains("wildcards")));
    assert!(with(many(100, &"**/?*N".repeat(100))).is_err_and(|reason| reason.contains("wildcards")));
    // These are no more than their own text.
    assert!(with(many(9000, "some/folder/N/and/a/file")).is_ok());
    assert!(with(many(9000, "**/fileN")).is_ok());
}
