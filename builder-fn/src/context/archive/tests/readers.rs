//! Tars with peculiar headers: the index has the files that GNU tar and Python's `tarfile` extract, or the tar is
//! rejected.

use std::path::Path;
use std::process::Command;

use super::corpus::{
    FoundEntry, clear_folder_modes_and_times, entries_in_index, extract_with_gnu_tar,
    list_folder_and_mark_hard_links_if_prefix_is_empty, run_installed_command_or_stderr,
};
use super::*;
use crate::context::SourceContext;

/// The expected result of reading a tar with a peculiar header.
enum ExpectedFilesOrRejection {
    /// The index has the files that GNU tar and Python extract.
    AsExtracted,
    /// The tar is rejected, because tar programs differ.
    Rejected(EntryProblem),
    /// The tar is rejected because of a malformed extended header.
    MalformedRecords,
}

use ExpectedFilesOrRejection::{AsExtracted, MalformedRecords, Rejected};

/// A folder path of 99 bytes, so that the name of a file in it needs a ustar prefix.
const LONG_FOLDER_PATH: &str =
    "context/ffffffffffffffffffffffffffffff/gggggggggggggggggggggggggggggg/hhhhhhhhhhhhhhhhhhhhhhhhhhhhh";

impl TarBuilder {
    /// Adds a file whose header has `magic` (with the version) and `prefix`.
    fn with_prefixed_file(self, magic: &[u8; 8], prefix: &[u8], name: &str, content: &[u8]) -> Self {
        self.with_entry(name, content, |header| {
            let bytes = header.as_mut_bytes();
            bytes[257..265].copy_from_slice(magic);
            bytes[345..345 + prefix.len()].copy_from_slice(prefix);
        })
    }

    /// Adds an entry whose header has a size, without the content.
    fn with_entry_claiming_4096_bytes(self, flag: u8, name: &str) -> Self {
        self.with_entry(name, b"", |header| {
            header.as_old_mut().linkflag = [flag];
            if matches!(flag, b'1' | b'2') {
                header.set_link_name_literal("context/Dockerfile").unwrap();
            }
            header.set_size(4096);
        })
    }

    /// Adds a file with 512 bytes of content, whose header has `field` as its size.
    fn with_512_byte_file_of_size_field(self, field: &[u8; 12]) -> Self {
        self.with_entry("context/sized", b"", |header| header.as_old_mut().size = *field)
            .with_bytes(&[b'y'; BLOCK_BYTES])
    }
}

/// Returns tars with peculiar headers, each with a name and the expected result of reading it.
fn peculiar_tars() -> Vec<(String, TarBuilder, ExpectedFilesOrRejection)> {
    let mut cases: Vec<(String, TarBuilder, ExpectedFilesOrRejection)> = Vec::new();
    let mut case = |name: &str, tar: TarBuilder, expected| cases.push((name.to_owned(), tar, expected));
    let folders = LONG_FOLDER_PATH.as_bytes();

    for version in [b"00", b"\0\0", b"  ", b" \0", b"0\0", b"xy"] {
        let magic = [b"ustar\0", &version[..]].concat();
        let magic = magic.first_chunk().unwrap();
        for name in ["file", "com.openfaas.docker.config", "com.openfaas.secrets"] {
            let tar = small_tar_without_end_marker().with_prefixed_file(magic, folders, name, b"content");
            case(
                &format!("{name} with a prefix, {}", magic.escape_ascii()),
                tar,
                AsExtracted,
            );
        }
        let whole = small_tar_without_end_marker().with_prefixed_file(magic, b"", "context/file", b"content");
        case(
            &format!("no prefix, {}", magic.escape_ascii()),
            whole,
            AsExtracted,
        );
        let longest = [&folders[..55], b"/", &[b'p'; 99]].concat();
        let longest =
            small_tar_without_end_marker().with_prefixed_file(magic, &longest, &"n".repeat(100), b"content");
        case(
            &format!("the longest prefix and name, {}", magic.escape_ascii()),
            longest,
            AsExtracted,
        );
    }
    for magic in [b"ustar  \0", b"ustar 00", b"ustar000", b"USTAR\x0000", &[0; 8]] {
        let whole = small_tar_without_end_marker().with_prefixed_file(magic, b"", "context/file", b"content");
        case(
            &format!("no prefix, {}", magic.escape_ascii()),
            whole,
            AsExtracted,
        );
        for name in ["file", "com.openfaas.docker.config"] {
            let tar = small_tar_without_end_marker().with_prefixed_file(magic, folders, name, b"content");
            case(
                &format!("{name} with a prefix, {}", magic.escape_ascii()),
                tar,
                Rejected(EntryProblem::StrayPrefix),
            );
        }
    }
    let star_times = [&[0; 1][..], b"14524770400 14524770400 ", &[0; 8], b"tar\0"].concat();
    let star = small_tar_without_end_marker().with_entry("file", b"content", |header| {
        header.as_mut_bytes()[345..345 + folders.len()].copy_from_slice(folders);
        header.as_mut_bytes()[475..512].copy_from_slice(&star_times);
    });
    case("star's header with times after the prefix", star, AsExtracted);

    for (flag, name) in [
        (b'5', "a folder"),
        (b'1', "a hard link"),
        (b'2', "a symbolic link"),
    ] {
        case(
            &format!("{name} with a size"),
            small_tar_without_end_marker()
                .with_entry_claiming_4096_bytes(flag, "context/sized")
                .with_file("context/z", b"z"),
            AsExtracted,
        );
        let pax = small_tar_without_end_marker()
            .with_pax_header(b'x', &[("size", b"4096")])
            .with_entry_claiming_4096_bytes(flag, "context/sized");
        case(
            &format!("{name} with a size in PAX"),
            pax.with_file("context/z", b"z"),
            AsExtracted,
        );
    }
    case(
        "a folder of an old tar with a size",
        small_tar_without_end_marker()
            .with_entry_claiming_4096_bytes(0, "context/sized/")
            .with_file("context/z", b"z"),
        AsExtracted,
    );
    for flag in [b'0', b'7'] {
        let tar =
            small_tar_without_end_marker().with_entry_of_type(flag, "context/sized/", &[b'y'; BLOCK_BYTES]);
        case(
            "a newer file that is named as a folder",
            tar,
            Rejected(EntryProblem::FolderOrFile),
        );
    }
    let long_name =
        small_tar_without_end_marker().with_entry_of_type(b'L', "././@LongLink", b"context/long/\0");
    case(
        "a long name with a slash for a name without",
        long_name.with_entry_of_type(0, "context/long", b""),
        Rejected(EntryProblem::FolderOrFile),
    );
    let pax = small_tar_without_end_marker().with_pax_header(b'x', &[("path", b"context/pax")]);
    case(
        "a path without a slash for a name with one",
        pax.with_entry_of_type(0, "context/pax/", b""),
        Rejected(EntryProblem::FolderOrFile),
    );
    let only_prefix = small_tar_without_end_marker().with_entry("", b"content", |header| {
        header.as_old_mut().linkflag = [0];
        header.as_mut_bytes()[345..345 + folders.len()].copy_from_slice(folders);
    });
    case(
        "a name that is only a prefix",
        only_prefix,
        Rejected(EntryProblem::FolderOrFile),
    );

    for (name, size) in [
        ("blanks before", b"        1000"),
        ("blanks around", b"       777 \0"),
        ("no end", b"000000001000"),
        ("base 256", b"\x80\0\0\0\0\0\0\0\0\0\x02\0"),
    ] {
        case(
            &format!("a size with {name}"),
            small_tar_without_end_marker().with_512_byte_file_of_size_field(size),
            AsExtracted,
        );
    }
    for (name, size) in [
        ("digits after NULs", b"\0\0\0\0\x000001000"),
        ("letters", b"00000000abc\0"),
    ] {
        case(
            &format!("a size with {name}"),
            small_tar_without_end_marker().with_512_byte_file_of_size_field(size),
            Rejected(EntryProblem::Number { field: "size" }),
        );
    }
    let no_size = |field: [u8; 12]| {
        let empty = small_tar_without_end_marker()
            .with_entry("context/sized", b"", |header| header.as_old_mut().size = field);
        empty.with_file("context/z", b"z")
    };
    case("no size", no_size([0; 12]), AsExtracted);

    let pax = |records: &[(&str, &[u8])]| small_tar_without_end_marker().with_pax_header(b'x', records);
    case(
        "two paths",
        pax(&[("path", b"context/1"), ("path", b"context/2")]).with_file("context/a", b"a"),
        AsExtracted,
    );
    case(
        "two sizes",
        pax(&[("size", b"900"), ("size", b"1")]).with_file("context/a", b"a"),
        AsExtracted,
    );
    case(
        "an empty path",
        pax(&[("path", b"")]).with_file("context/a", b"a"),
        MalformedRecords,
    );
    case(
        "an empty size after another",
        pax(&[("size", b"5"), ("size", b"")]).with_file("context/a", b"a"),
        MalformedRecords,
    );
    let path_and_global = pax(&[("path", b"context/1")]).with_pax_header(b'g', &[("comment", b"x")]);
    case(
        "a global header after a path",
        path_and_global.with_file("context/a", b"a"),
        Rejected(EntryProblem::MisplacedGlobal),
    );
    let long = |name: &[u8]| small_tar_without_end_marker().with_entry_of_type(b'L', "././@LongLink", name);
    for name in [&b"context/long"[..], b"context/long\0", b"context/long\0\0\0"] {
        case(
            "a long name, terminated or not",
            long(name).with_file("context/a", b"a"),
            AsExtracted,
        );
    }
    let both = |tar: TarBuilder| {
        tar.with_pax_header(b'x', &[("path", b"context/pax")])
            .with_file("context/a", b"a")
    };
    case(
        "a long name and a path",
        both(long(b"context/long\0")),
        Rejected(EntryProblem::DuplicateField { field: "its name" }),
    );
    let stray = long(b"context/long\0").with_prefixed_file(b"ustar  \0", b"unused", "context/a", b"a");
    case("a long name in place of a stray prefix", stray, AsExtracted);
    cases
}

#[test]
fn a_peculiar_tar_has_the_files_that_gnu_tar_and_python_extract_or_is_rejected() {
    for (name, tar, expected) in peculiar_tars() {
        let tar = tar.with_end_marker().0;
        let read = read_in_pieces(&tar, &[]);
        match (expected, read) {
            (AsExtracted, Ok(contents)) => {
                assert_eq!(contents.config.as_deref(), Some(&b"{}"[..]), "{name}");
                assert_eq!(
                    (contents.secrets, contents.warnings),
                    (None, Vec::new()),
                    "{name}"
                );
                let context = SourceContext::from_tar(&tar).unwrap();
                let indexed = with_cleared_folder_modes_and_times(entries_in_index(&context));
                for (program, extract) in [
                    ("GNU tar", extract_with_gnu_tar as fn(&Path, &Path) -> _),
                    ("Python", extract_with_python),
                ] {
                    assert_eq!(
                        indexed,
                        entries_extracted_with_cleared_folder_modes_and_times(&tar, extract),
                        "{name}, {program}"
                    );
                }
            }
            (Rejected(expected), Err(ArchiveError::Entry { problem, .. })) => {
                assert_eq!(problem, expected, "{name}")
            }
            (MalformedRecords, Err(ArchiveError::Entry { problem, .. })) => {
                assert!(
                    matches!(problem, EntryProblem::Extension { .. }),
                    "{name}: {problem}"
                );
            }
            (_, read) => panic!("{name}: {:?}", read.map(|contents| contents.entries)),
        }
    }
}

#[test]
fn a_volume_label_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("context")).unwrap();
    std::fs::write(folder.path().join("context/Dockerfile"), "FROM scratch\n").unwrap();
    std::fs::write(folder.path().join("com.openfaas.docker.config"), "{}").unwrap();
    for format in ["oldgnu", "gnu", "posix"] {
        for label in [
            "release 7",
            "../up",
            "/",
            "context/a",
            "com.openfaas.docker.config",
        ] {
            let archive = folder.path().join("archive.tar");
            let create = ["--create", "--format", format, "--label", label, "--file"];
            let arguments = ["com.openfaas.docker.config", "context"];
            let mut tar = Command::new("tar");
            tar.args(create)
                .arg(&archive)
                .arg("-C")
                .arg(folder.path())
                .args(arguments);
            run_installed_command_or_stderr(&mut tar).unwrap_or_else(|error| panic!("{format}: {error}"));
            let read = read_in_pieces(&std::fs::read(&archive).unwrap(), &[]);
            let contents = read.unwrap_or_else(|error| panic!("{format}, {label}: {error}"));
            assert_eq!(
                (paths_in_contents(&contents), contents.warnings),
                (vec!["Dockerfile".to_owned()], vec![])
            );
            assert_eq!(contents.config.as_deref(), Some(&b"{}"[..]));
        }
    }
}

/// Extracts a tar with `extract`, and returns the entries of the context.
fn entries_extracted_with_cleared_folder_modes_and_times(
    tar: &[u8],
    extract: fn(&Path, &Path) -> Result<(), String>,
) -> Vec<FoundEntry> {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive.tar");
    std::fs::write(&archive, tar).unwrap();
    extract(&archive, folder.path()).unwrap_or_else(|error| panic!("{error}"));
    let mut found = Vec::new();
    list_folder_and_mark_hard_links_if_prefix_is_empty(&folder.path().join("context"), "", &mut found);
    with_cleared_folder_modes_and_times(found)
}

/// Extracts a tar with Python's `tarfile`, without the filters that some versions apply by default.
fn extract_with_python(archive: &Path, to: &Path) -> Result<(), String> {
    const PYTHON_PROGRAM: &str = "import sys, tarfile
tarfile.TarFile.extraction_filter = staticmethod(lambda member, path: member)
with tarfile.open(sys.argv[1]) as archive:
    archive.extractall(sys.argv[2])";
    run_installed_command_or_stderr(
        Command::new("python3")
            .args(["-c", PYTHON_PROGRAM])
            .arg(archive)
            .arg(to),
    )
}

/// Returns the entries with cleared modes and times of folders, because Python extracts implied folders in another way.
fn with_cleared_folder_modes_and_times(mut found: Vec<FoundEntry>) -> Vec<FoundEntry> {
    clear_folder_modes_and_times(&mut found);
    found
}
