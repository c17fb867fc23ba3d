//! Tars as GNU tar writes them, compared with what it extracts from them.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::context::SourceContext;

/// What is at a path, from the index or from a folder.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    path: String,
    what: What,
    mode: u32,
    mtime_ns: i64,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Folder,
    /// With the path of the first that is the same file.
    File {
        content: Vec<u8>,
        same_as: String,
    },
    Symlink(String),
}

#[test]
fn every_format_is_read_as_tar_extracts_it() {
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let source = source(format);
        for (how, arguments) in [
            ("named", &["com.openfaas.docker.config", "context"][..]),
            ("config last", &["context", "com.openfaas.docker.config"]),
            ("dot", &["."]),
            ("by inode", &["--sort=inode", "."]),
            (
                "twice",
                &["context", "com.openfaas.docker.config", "context", "context/a"],
            ),
            (
                "no folders",
                &[
                    "--no-recursion",
                    "com.openfaas.docker.config",
                    "context/deep/er/file",
                    "context/a",
                ],
            ),
        ] {
            // Ustar cannot hold links to long names, which the second time would be.
            if (format, how) != ("ustar", "twice") {
                compare(&source, format, how, arguments);
            }
        }
    }
}

#[test]
fn large_files_and_many_small_ones_are_read_as_tar_extracts_them() {
    let source = TempDir::new().unwrap();
    let context = source.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(source.path().join("com.openfaas.docker.config"), "{}").unwrap();
    let large: Vec<u8> = (0..5_000_011u32)
        .map(|at| at.to_le_bytes()[at as usize % 3])
        .collect();
    fs::write(context.join("large"), large).unwrap();
    for folder in 0..20 {
        let folder = context.join(format!("folder-{folder}"));
        fs::create_dir(&folder).unwrap();
        for file in 0..100 {
            fs::write(
                folder.join(format!("file{file}.rs")),
                format!("{file}").repeat(file),
            )
            .unwrap();
        }
    }
    compare(&source, "posix", "large", &["."]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_of_entries_that_contradict_each_other_is_what_tar_makes_of_them(tar in properties::tars(true)) {
        let tar = tar.end().0;
        let Ok(context) = SourceContext::from_tar(&tar) else { return Ok(()) };
        let extracted = TempDir::new().unwrap();
        let archive = extracted.path().join("archive.tar");
        fs::write(&archive, &tar).unwrap();
        if extract(&archive, extracted.path()).is_err() {
            // It could not replace something that can be replaced here.
            return Ok(());
        }
        let (mut indexed, mut expected) = (from_index(&context), Vec::new());
        walk(&extracted.path().join("context"), "", &mut expected);
        ignore_folders(&mut indexed);
        ignore_folders(&mut expected);
        prop_assert_eq!(indexed, expected);
    }
}

/// A folder with whatever a context may have; names that the old formats cannot hold only for the others.
fn source(format: &str) -> TempDir {
    let source = TempDir::new().unwrap();
    let context = source.path().join("context");
    fs::write(source.path().join("com.openfaas.docker.config"), "{}").unwrap();
    fs::create_dir_all(context.join("deep/er")).unwrap();
    fs::create_dir_all(context.join("empty")).unwrap();
    for (name, content) in [
        ("Dockerfile", "FROM scratch\n"),
        ("a", "a"),
        ("a.txt", "between a and a/b?"),
        ("a-b", ""),
        ("deep/er/file", "512 or so? "),
        ("deep.er", &"x".repeat(512)),
        ("with space and ünïcödé", &"y".repeat(513)),
        ("back\\slash", "z"),
        ("new\nline", "z"),
        ("-dash", "z"),
    ] {
        fs::write(context.join(name), content).unwrap();
    }
    fs::hard_link(context.join("a"), context.join("deep/same-as-a")).unwrap();
    fs::hard_link(context.join("a"), context.join("0-same-as-a")).unwrap();
    symlink("Dockerfile", context.join("link")).unwrap();
    symlink("../../../etc/passwd", context.join("deep/out")).unwrap();
    symlink("/nowhere", context.join("dangling")).unwrap();
    if !matches!(format, "v7" | "ustar") {
        let long = "l".repeat(180);
        fs::create_dir_all(context.join(&long).join(&long)).unwrap();
        let file = context.join(&long).join(&long).join(&long);
        fs::write(&file, "long").unwrap();
        symlink(format!("{long}/{long}/{long}"), context.join("long-link")).unwrap();
        fs::hard_link(&file, context.join("zz-same-as-long")).unwrap();
    } else if format == "ustar" {
        let folder = context.join("p".repeat(90));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("n".repeat(90)), "prefix").unwrap();
    }
    for (name, mode) in [
        ("Dockerfile", 0o600),
        ("a.txt", 0o4755),
        ("deep.er", 0o444),
        ("empty", 0o1777),
    ] {
        fs::set_permissions(context.join(name), Permissions::from_mode(mode)).unwrap();
    }
    // The old formats have 33 bits for seconds; GNU's and PAX have more.
    let late = if matches!(format, "v7" | "ustar") {
        4_000_000_000
    } else {
        9_000_000_000
    };
    for (name, seconds, nanoseconds) in [
        ("Dockerfile", 1_234_567_890, 123_456_789),
        ("a-b", 0, 0),
        ("deep.er", late, 0),
        ("deep/er", 1_000_000_000, 0),
    ] {
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let file = fs::File::open(context.join(name)).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
    source
}

fn compare(source: &TempDir, format: &str, how: &str, arguments: &[&str]) {
    let what = format!("{format}, {how}");
    let archive = source.path().with_extension("tar");
    let created = run(Command::new("tar")
        .args(["--create", "--format", format, "--file"])
        .arg(&archive)
        .arg("-C")
        .arg(source.path())
        .args(arguments));
    created.unwrap_or_else(|error| panic!("{what}: {error}"));
    let extracted = TempDir::new().unwrap();
    extract(&archive, extracted.path()).unwrap_or_else(|error| panic!("{what}: {error}"));

    let tar = fs::read(&archive).unwrap();
    fs::remove_file(&archive).unwrap();
    let context = SourceContext::from_tar(&tar).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut indexed = from_index(&context);
    let mut expected = Vec::new();
    walk(&extracted.path().join("context"), "", &mut expected);
    if how == "no folders" {
        ignore_folders(&mut indexed);
        ignore_folders(&mut expected);
    }
    for (indexed, expected) in indexed.iter().zip(&expected) {
        assert_eq!(indexed, expected, "{what}");
    }
    assert_eq!(indexed.len(), expected.len(), "{what}");
}

fn extract(archive: &Path, to: &Path) -> Result<(), String> {
    let how = ["--extract", "--preserve-permissions", "--no-same-owner", "--file"];
    run(Command::new("tar").args(how).arg(archive).arg("-C").arg(to))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .env("LC_ALL", "C")
        .output()
        .expect("GNU tar is part of every Debian");
    output
        .status
        .success()
        .then_some(())
        .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Folders that a tar leaves out get their mode and time from whoever extracts it.
fn ignore_folders(list: &mut [Seen]) {
    for seen in list.iter_mut().filter(|seen| seen.what == What::Folder) {
        (seen.mode, seen.mtime_ns) = (0, 0);
    }
}

fn from_index(context: &SourceContext) -> Vec<Seen> {
    let mut firsts: Vec<(u64, String)> = Vec::new();
    let seen = |(path, entry): (String, Entry<'_>)| {
        let what = match entry.kind {
            Kind::Directory => What::Folder,
            Kind::Symlink { target } => What::Symlink(target.to_owned()),
            Kind::File { offset, size } => {
                let first = firsts
                    .iter()
                    .find(|(known, _)| *known == offset)
                    .map(|(_, path)| path.clone());
                let same_as = first.unwrap_or_else(|| {
                    firsts.push((offset, path.clone()));
                    path.clone()
                });
                let mut content = vec![0; usize::try_from(size).unwrap() + 10];
                let length = context.read(entry, 0, &mut content).unwrap();
                content.truncate(length);
                What::File { content, same_as }
            }
        };
        // The times of symbolic links are not read back below.
        let mtime_ns = if matches!(what, What::Symlink(_)) {
            0
        } else {
            entry.mtime_ns
        };
        Seen {
            path,
            what,
            mode: entry.mode,
            mtime_ns,
        }
    };
    listed(context.index()).into_iter().map(seen).collect()
}

/// As Go's `filepath.WalkDir` does it, which is what BuildKit's own client uses.
fn walk(folder: &Path, prefix: &str, seen: &mut Vec<Seen>) {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    for name in names {
        let at = folder.join(&name);
        let path = format!("{prefix}{name}");
        let metadata = fs::symlink_metadata(&at).unwrap();
        let what = if metadata.is_symlink() {
            What::Symlink(
                fs::read_link(&at)
                    .unwrap()
                    .into_os_string()
                    .into_string()
                    .unwrap(),
            )
        } else if metadata.is_dir() {
            What::Folder
        } else {
            What::File {
                content: fs::read(&at).unwrap(),
                same_as: path.clone(),
            }
        };
        let mtime_ns = if metadata.is_symlink() {
            0
        } else {
            metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()
        };
        seen.push(Seen {
            path: path.clone(),
            what,
            mode: metadata.mode() & 0o7777,
            mtime_ns,
        });
        if metadata.is_dir() {
            walk(&at, &format!("{path}/"), seen);
        }
    }
    if prefix.is_empty() {
        mark_hard_links(folder, seen);
    }
}

fn mark_hard_links(root: &Path, seen: &mut [Seen]) {
    let mut firsts: Vec<(u64, String)> = Vec::new();
    for Seen { path, what, .. } in seen {
        if let What::File { same_as, .. } = what {
            let inode = fs::symlink_metadata(root.join(&*path)).unwrap().ino();
            match firsts.iter().find(|(known, _)| *known == inode) {
                Some((_, first)) => same_as.clone_from(first),
                None => firsts.push((inode, path.clone())),
            }
        }
    }
}
