//! Tars written by GNU tar: the index is compared with the files that GNU tar extracts.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::context::SourceContext;

/// An entry that a test found in an index or in an extracted folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundEntry {
    path: String,
    content: FoundContent,
    mode: u32,
    mtime_ns: i64,
}

/// The kind and the content of a found entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FoundContent {
    Folder,
    File {
        bytes: Vec<u8>,
        /// The path of the first entry that is a hard link to the same file.
        same_as: String,
    },
    Symlink(String),
}

#[test]
fn the_index_has_the_files_that_gnu_tar_extracts_in_every_format() {
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let source = folder_with_every_allowed_kind_of_entry(format);
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
            // In ustar a link cannot have a long target, which files that are archived twice would need.
            if (format, how) != ("ustar", "twice") {
                // Folders that the tar does not have get the modes and times that the extracting program chooses.
                let compares_folder_modes_and_times = how != "no folders";
                assert_index_matches_extraction(
                    &source,
                    format,
                    how,
                    arguments,
                    compares_folder_modes_and_times,
                );
            }
        }
    }
}

#[test]
fn the_index_has_the_files_that_gnu_tar_extracts_of_large_and_of_many_files() {
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
    assert_index_matches_extraction(&source, "posix", "large", &["."], true);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_has_the_files_that_gnu_tar_extracts_of_conflicting_entries_that_both_accept(tar in properties::generate_tars(true)) {
        let tar = tar.with_end_marker().0;
        let context = SourceContext::from_tar(&tar);
        prop_assume!(context.is_ok());
        let context = context.unwrap();
        let extracted = TempDir::new().unwrap();
        let archive = extracted.path().join("archive.tar");
        fs::write(&archive, &tar).unwrap();
        // GNU tar cannot replace every entry that the index replaces.
        prop_assume!(extract_with_gnu_tar(&archive, extracted.path()).is_ok());
        let (mut indexed, mut expected) = (entries_in_index(&context), Vec::new());
        list_folder_and_mark_hard_links_if_prefix_is_empty(&extracted.path().join("context"), "", &mut expected);
        clear_folder_modes_and_times(&mut indexed);
        clear_folder_modes_and_times(&mut expected);
        prop_assert_eq!(indexed, expected);
    }
}

/// Creates a folder with every kind of entry that a context may have, except names that `format` cannot hold.
fn folder_with_every_allowed_kind_of_entry(format: &str) -> TempDir {
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
    // The old formats have 33 bits for seconds; GNU and PAX have more.
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

/// Archives `source` with GNU tar in `format`, and asserts that the tar's index has what GNU tar extracts from the tar.
/// `case_name` is for messages. The modes and times of folders count only if `compares_folder_modes_and_times`.
fn assert_index_matches_extraction(
    source: &TempDir,
    format: &str,
    case_name: &str,
    arguments: &[&str],
    compares_folder_modes_and_times: bool,
) {
    let case = format!("{format}, {case_name}");
    let archive = source.path().with_extension("tar");
    let created = run_installed_command_or_stderr(
        Command::new("tar")
            .args(["--create", "--format", format, "--file"])
            .arg(&archive)
            .arg("-C")
            .arg(source.path())
            .args(arguments),
    );
    created.unwrap_or_else(|error| panic!("{case}: {error}"));
    let extracted = TempDir::new().unwrap();
    extract_with_gnu_tar(&archive, extracted.path()).unwrap_or_else(|error| panic!("{case}: {error}"));

    let tar = fs::read(&archive).unwrap();
    fs::remove_file(&archive).unwrap();
    let context = SourceContext::from_tar(&tar).unwrap_or_else(|error| panic!("{case}: {error}"));
    let mut indexed = entries_in_index(&context);
    let mut expected = Vec::new();
    list_folder_and_mark_hard_links_if_prefix_is_empty(&extracted.path().join("context"), "", &mut expected);
    if !compares_folder_modes_and_times {
        clear_folder_modes_and_times(&mut indexed);
        clear_folder_modes_and_times(&mut expected);
    }
    for (indexed, expected) in indexed.iter().zip(&expected) {
        assert_eq!(indexed, expected, "{case}");
    }
    assert_eq!(indexed.len(), expected.len(), "{case}");
}

/// Extracts a tar with GNU tar; fails with the text on its standard error.
pub(super) fn extract_with_gnu_tar(archive: &Path, to: &Path) -> Result<(), String> {
    let how = ["--extract", "--preserve-permissions", "--no-same-owner", "--file"];
    run_installed_command_or_stderr(Command::new("tar").args(how).arg(archive).arg("-C").arg(to))
}

/// Runs a command to its end; fails with the text on its standard error.
pub(super) fn run_installed_command_or_stderr(command: &mut Command) -> Result<(), String> {
    let output = command
        .env("LC_ALL", "C")
        .output()
        .expect("the tests need GNU tar and Python");
    output
        .status
        .success()
        .then_some(())
        .ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Clears the modes and times of folders, because implied folders get theirs from the extracting program.
pub(super) fn clear_folder_modes_and_times(list: &mut [FoundEntry]) {
    for found in list
        .iter_mut()
        .filter(|found| found.content == FoundContent::Folder)
    {
        (found.mode, found.mtime_ns) = (0, 0);
    }
}

/// Lists the entries of a context, with the contents of files. The times of symbolic links are 0.
pub(super) fn entries_in_index(context: &SourceContext) -> Vec<FoundEntry> {
    let mut firsts: Vec<(u64, String)> = Vec::new();
    let found = |(path, entry): (String, Entry<'_>)| {
        let content = match entry.kind {
            Kind::Folder => FoundContent::Folder,
            Kind::Symlink { target } => FoundContent::Symlink(target.to_owned()),
            Kind::File { offset, size } => {
                let first = firsts
                    .iter()
                    .find(|(known, _)| *known == offset)
                    .map(|(_, path)| path.clone());
                let same_as = first.unwrap_or_else(|| {
                    firsts.push((offset, path.clone()));
                    path.clone()
                });
                let mut bytes = vec![0; usize::try_from(size).unwrap() + 10];
                let length = context.read_file(entry, 0, &mut bytes).unwrap();
                bytes.truncate(length);
                FoundContent::File { bytes, same_as }
            }
        };
        // The times of symbolic links are not compared.
        let mtime_ns = if matches!(content, FoundContent::Symlink(_)) {
            0
        } else {
            entry.mtime_ns
        };
        FoundEntry {
            path,
            content,
            mode: entry.mode,
            mtime_ns,
        }
    };
    paths_and_entries(context.index())
        .into_iter()
        .map(found)
        .collect()
}

/// Adds the entries below a folder to `found`, in the order of Go's `filepath.WalkDir`, which BuildKit's own client
/// uses. With an empty `prefix`, also marks the hard links among them.
pub(super) fn list_folder_and_mark_hard_links_if_prefix_is_empty(
    folder: &Path,
    prefix: &str,
    found: &mut Vec<FoundEntry>,
) {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    for name in names {
        let at = folder.join(&name);
        let path = format!("{prefix}{name}");
        let metadata = fs::symlink_metadata(&at).unwrap();
        let content = if metadata.is_symlink() {
            FoundContent::Symlink(
                fs::read_link(&at)
                    .unwrap()
                    .into_os_string()
                    .into_string()
                    .unwrap(),
            )
        } else if metadata.is_dir() {
            FoundContent::Folder
        } else {
            FoundContent::File {
                bytes: fs::read(&at).unwrap(),
                same_as: path.clone(),
            }
        };
        let mtime_ns = if metadata.is_symlink() {
            0
        } else {
            metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec()
        };
        found.push(FoundEntry {
            path: path.clone(),
            content,
            mode: metadata.mode() & 0o7777,
            mtime_ns,
        });
        if metadata.is_dir() {
            list_folder_and_mark_hard_links_if_prefix_is_empty(&at, &format!("{path}/"), found);
        }
    }
    if prefix.is_empty() {
        mark_hard_links(folder, found);
    }
}

/// Sets `same_as` in the entries that are hard links of an earlier entry.
fn mark_hard_links(root: &Path, found: &mut [FoundEntry]) {
    let mut firsts: Vec<(u64, String)> = Vec::new();
    for FoundEntry { path, content, .. } in found {
        if let FoundContent::File { same_as, .. } = content {
            let inode = fs::symlink_metadata(root.join(&*path)).unwrap().ino();
            match firsts.iter().find(|(known, _)| *known == inode) {
                Some((_, first)) => same_as.clone_from(first),
                None => firsts.push((inode, path.clone())),
            }
        }
    }
}
