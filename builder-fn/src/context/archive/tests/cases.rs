//! Tests of tars that each have one peculiarity.

use tar::EntryType;

use super::*;

#[test]
fn a_tar_is_read_with_its_entries_in_any_order_and_with_or_without_a_leading_dot() {
    for prefix in ["", "./"] {
        let config = format!("{prefix}com.openfaas.docker.config");
        let dockerfile = format!("{prefix}context/Dockerfile");
        let first = TarBuilder::default()
            .with_file(&config, b"{1}")
            .with_file(&dockerfile, b"FROM scratch\n");
        let last = TarBuilder::default()
            .with_folder("./")
            .with_file(&dockerfile, b"FROM scratch\n")
            .with_file(&config, b"{1}");
        for tar in [first, last] {
            let bytes = tar.0.clone();
            let contents = tar
                .read_with_end_marker()
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(contents.config.as_deref(), Some(&b"{1}"[..]));
            assert_eq!(contents.secrets, None);
            assert!(contents.warnings.is_empty());
            assert_eq!(paths_in_contents(&contents), ["Dockerfile"]);
            let entry = entry_at_path(&contents, "Dockerfile");
            assert_eq!(entry.mode, 0o644);
            assert_eq!(entry.mtime_ns, 1_700_000_000_000_000_000);
            let Kind::File { offset, size } = entry.kind else {
                panic!("{:?}", entry.kind)
            };
            let start = usize::try_from(offset).unwrap();
            assert_eq!(
                &bytes[start..start + usize::try_from(size).unwrap()],
                b"FROM scratch\n"
            );
        }
    }
}

#[test]
fn sealed_secrets_are_kept_unchanged() {
    let contents = small_tar_without_end_marker()
        .with_file("com.openfaas.secrets", b"version: v1\n")
        .read_with_end_marker()
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(contents.secrets.as_deref(), Some(&b"version: v1\n"[..]));
}

#[test]
fn two_configurations_or_envelopes_are_rejected_unless_they_are_equal() {
    let config = "com.openfaas.docker.config";
    let secrets = "com.openfaas.secrets";
    for (name, first) in [(config, &b"{}"[..]), (secrets, b"version: v1\n")] {
        for spelling in [name.to_owned(), format!("./{name}")] {
            let twice = small_tar_without_end_marker()
                .with_file(name, first)
                .with_file(&spelling, first);
            let contents = twice
                .clone()
                .read_with_end_marker()
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(contents.config.as_deref(), Some(&b"{}"[..]));
            for second in [&b""[..], b"{ }"] {
                let problem = twice
                    .clone()
                    .with_file(&spelling, second)
                    .problem_of_read_with_end_marker();
                assert_eq!(problem, EntryProblem::Contradictory, "{spelling}");
            }
        }
    }
}

#[test]
fn entries_outside_of_the_context_are_ignored_with_a_warning() {
    let contents = small_tar_without_end_marker()
        .with_file("._context", b"mac")
        .with_symlink("x/y", "z")
        .read_with_end_marker()
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(paths_in_contents(&contents), ["Dockerfile"]);
    assert_eq!(
        contents.warnings,
        ["2 entries outside of context/ are ignored, such as ._context, x/y"]
    );
}

#[test]
fn names_targets_and_times_in_extended_headers_override_those_in_the_header() {
    let long = format!("context/{}/{}", "d".repeat(200), "f".repeat(200));
    let contents = TarBuilder::default()
        .with_entry_of_type(b'L', "././@LongLink", format!("{long}\0").as_bytes())
        .with_file("context/short", b"1")
        .with_pax_header(
            b'x',
            &[
                ("path", b"context/pax"),
                ("mtime", b"1.5"),
                ("SCHILY.xattr.user.a", b"v"),
            ],
        )
        .with_file("context/short", b"2")
        .with_entry_of_type(b'K', "././@LongLink", format!("{}\0", "t".repeat(300)).as_bytes())
        .with_symlink("context/link", "short")
        .with_pax_header(b'x', &[("linkpath", b"elsewhere")])
        .with_symlink("context/other", "short")
        .read_with_end_marker()
        .unwrap_or_else(|error| panic!("{error}"));
    let folder = "d".repeat(200);
    let file = format!("{folder}/{}", "f".repeat(200));
    assert_eq!(
        paths_in_contents(&contents),
        [folder.as_str(), file.as_str(), "link", "other", "pax"]
    );
    assert_eq!(
        entry_at_path(&contents, "link").kind,
        Kind::Symlink {
            target: &"t".repeat(300)
        }
    );
    assert_eq!(
        entry_at_path(&contents, "other").kind,
        Kind::Symlink { target: "elsewhere" }
    );
    let pax = entry_at_path(&contents, "pax");
    assert_eq!(pax.mtime_ns, 1_500_000_000);
    assert!(pax.xattrs.iter().eq([("user.a", &b"v"[..])]));
}

/// Adds a GNU header with a long name (flag `L`) or a long target (flag `K`) for the next entry.
fn with_gnu_header(tar: TarBuilder, flag: u8) -> TarBuilder {
    tar.with_entry_of_type(flag, "././@LongLink", b"context/long\0")
}

/// Adds a PAX header with the record `key`, `12`, for the next entry.
fn with_pax_record(tar: TarBuilder, key: &str) -> TarBuilder {
    tar.with_pax_header(b'x', &[(key, b"12")])
}

/// Adds a file to `tar`, and asserts that it is rejected because its headers have `field` twice.
fn assert_field_is_duplicate(tar: TarBuilder, field: &'static str) {
    let problem = tar
        .with_file("context/short", b"123456789abc")
        .problem_of_read_with_end_marker();
    assert_eq!(problem, EntryProblem::DuplicateField { field });
}

#[test]
fn two_gnu_headers_of_the_same_kind_for_an_entry_are_rejected() {
    for (flag, field) in [(b'L', "its name"), (b'K', "its target")] {
        assert_field_is_duplicate(
            with_gnu_header(with_gnu_header(small_tar_without_end_marker(), flag), flag),
            field,
        );
    }
}

#[test]
fn a_gnu_header_and_a_pax_record_for_the_same_field_of_an_entry_are_rejected() {
    for (flag, key, field) in [(b'L', "path", "its name"), (b'K', "linkpath", "its target")] {
        assert_field_is_duplicate(
            with_pax_record(with_gnu_header(small_tar_without_end_marker(), flag), key),
            field,
        );
        assert_field_is_duplicate(
            with_gnu_header(with_pax_record(small_tar_without_end_marker(), key), flag),
            field,
        );
    }
}

#[test]
fn two_pax_headers_for_an_entry_are_rejected_although_their_fields_differ() {
    assert_field_is_duplicate(
        with_pax_record(with_pax_record(small_tar_without_end_marker(), "size"), "mtime"),
        "records",
    );
}

#[test]
fn a_long_name_a_long_target_and_a_pax_header_with_other_fields_are_combined() {
    let tar = with_gnu_header(with_gnu_header(small_tar_without_end_marker(), b'L'), b'K');
    let tar = with_pax_record(tar, "mtime").with_file("context/short", b"");
    let contents = tar
        .read_with_end_marker()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(paths_in_contents(&contents), ["Dockerfile", "long"]);
    assert_eq!(entry_at_path(&contents, "long").mtime_ns, 12_000_000_000);
}

#[test]
fn a_size_in_an_extended_header_is_the_length_of_the_content() {
    let tar = TarBuilder::default()
        .with_pax_header(b'x', &[("size", b"3")])
        .with_entry("context/a", b"", |_| ())
        .with_padded_bytes(b"abc")
        .with_file("context/b", b"");
    let contents = tar
        .read_with_end_marker()
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(entry_at_path(&contents, "a").size(), 3);
    assert_eq!(paths_in_contents(&contents), ["a", "b"]);
}

#[test]
fn a_global_header_may_set_the_time_and_unknown_fields_only() {
    let contents = TarBuilder::default()
        .with_pax_header(b'g', &[("comment", b"0123456789abcdef"), ("mtime", b"7")])
        .with_file("context/a", b"")
        .with_pax_header(b'x', &[("mtime", b"8")])
        .with_file("context/b", b"")
        .read_with_end_marker()
        .unwrap_or_else(|error| panic!("{error}"));
    let times = ["a", "b"].map(|path| entry_at_path(&contents, path).mtime_ns);
    assert_eq!(times, [7_000_000_000, 8_000_000_000]);
    for field in ["path", "linkpath", "size", "SCHILY.xattr.user.a"] {
        let problem = TarBuilder::default()
            .with_pax_header(b'g', &[(field, b"1")])
            .with_file("context/a", b"")
            .problem_of_read_with_end_marker();
        assert!(matches!(problem, EntryProblem::GlobalField { .. }), "{problem}");
    }
}

#[test]
fn a_trailing_slash_makes_a_folder_in_old_tars() {
    let contents = TarBuilder::default()
        .with_entry_of_type(0, "context/old/", b"")
        .read_with_end_marker()
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(entry_at_path(&contents, "old").is_folder());
}

#[test]
fn entries_that_lead_out_of_the_context_or_conflict_with_one_before_are_rejected() {
    for name in ["/context/a", "context/../../a", "../a", "context/.."] {
        let problem = TarBuilder::default()
            .with_file(name, b"")
            .problem_of_read_with_end_marker();
        assert!(
            matches!(problem, EntryProblem::Absolute | EntryProblem::ParentComponent),
            "{name}: {problem}"
        );
    }
    let problem = TarBuilder::default()
        .with_pax_header(b'x', &[("path", b"context/a\0b")])
        .with_file("context/a", b"")
        .problem_of_read_with_end_marker();
    assert_eq!(problem, EntryProblem::Nul);
    let problem = TarBuilder::default()
        .with_symlink("context/a", "/etc")
        .with_file("context/a/passwd", b"")
        .problem_of_read_with_end_marker();
    assert_eq!(
        problem.to_string(),
        "is below context/a, which is a symbolic link, not a folder"
    );
    let problem = TarBuilder::default()
        .with_file("context/a", b"")
        .with_file("context/a/b", b"")
        .problem_of_read_with_end_marker();
    assert_eq!(
        problem.to_string(),
        "is in context/a, which is a file, not a folder"
    );
    let problem = TarBuilder::default()
        .with_file("context/a/b", b"")
        .with_symlink("context/a", "/etc")
        .problem_of_read_with_end_marker();
    assert_eq!(problem, EntryProblem::ReplacesFolder);
}

#[test]
fn a_hard_link_needs_a_target_in_the_context_before_it() {
    let problem = |target: &str| {
        TarBuilder::default()
            .with_folder("context/d")
            .with_hard_link("context/a", target)
            .problem_of_read_with_end_marker()
    };
    assert!(matches!(
        problem("context/b"),
        EntryProblem::HardLinkToNothing { .. }
    ));
    assert!(matches!(
        problem("context/d"),
        EntryProblem::HardLinkToFolder { .. }
    ));
    assert!(matches!(
        problem("context"),
        EntryProblem::HardLinkToFolder { .. }
    ));
    assert!(matches!(
        problem("com.openfaas.docker.config"),
        EntryProblem::HardLinkOutside { .. }
    ));
    assert!(matches!(problem("/etc/passwd"), EntryProblem::Absolute));
    assert!(matches!(problem("context/../x"), EntryProblem::ParentComponent));
    assert!(matches!(problem(""), EntryProblem::NoName));
}

#[test]
fn entry_types_other_than_files_folders_and_links_are_rejected() {
    for (flag, expected) in [
        (b'3', EntryProblem::Special { kind: "device" }),
        (b'4', EntryProblem::Special { kind: "device" }),
        (b'6', EntryProblem::Special { kind: "fifo" }),
        (b'S', EntryProblem::Sparse),
        (b'M', EntryProblem::UnknownType { flag: 'M' }),
        (b'\n', EntryProblem::UnknownType { flag: '\n' }),
    ] {
        assert_eq!(
            TarBuilder::default()
                .with_entry_of_type(flag, "context/a", b"")
                .problem_of_read_with_end_marker(),
            expected
        );
        // Outside of the context too: tar programs could read what follows differently.
        assert_eq!(
            TarBuilder::default()
                .with_entry_of_type(flag, "a", b"")
                .problem_of_read_with_end_marker(),
            expected
        );
    }
    let sparse = TarBuilder::default()
        .with_pax_header(b'x', &[("GNU.sparse.major", b"1")])
        .with_file("context/a", b"");
    assert_eq!(sparse.problem_of_read_with_end_marker(), EntryProblem::Sparse);
}

#[test]
fn the_configuration_and_secrets_have_to_be_small_files_and_the_context_a_folder() {
    assert_eq!(
        TarBuilder::default()
            .with_symlink("com.openfaas.docker.config", "x")
            .problem_of_read_with_end_marker(),
        EntryProblem::NotAFile
    );
    assert_eq!(
        TarBuilder::default()
            .with_folder("com.openfaas.secrets")
            .problem_of_read_with_end_marker(),
        EntryProblem::NotAFile
    );
    assert_eq!(
        TarBuilder::default()
            .with_file("context", b"")
            .problem_of_read_with_end_marker(),
        EntryProblem::NotAFolder
    );
    assert_eq!(
        TarBuilder::default()
            .with_symlink("context", "/etc")
            .problem_of_read_with_end_marker(),
        EntryProblem::NotAFolder
    );
    let large = TarBuilder::default().with_file("com.openfaas.docker.config", &vec![b' '; (1 << 20) + 1]);
    assert_eq!(
        large.problem_of_read_with_end_marker(),
        EntryProblem::FileTooLarge { limit: 1 << 20 }
    );
}

#[test]
fn entries_and_extended_headers_with_impossible_sizes_are_rejected() {
    let sized = |field: [u8; 12]| {
        TarBuilder::default().with_entry("context/a", b"", |header| header.as_old_mut().size = field)
    };
    assert!(matches!(
        sized([0xff; 12]).problem_of_read_with_end_marker(),
        EntryProblem::Size { size: -1, .. }
    ));
    assert!(matches!(
        sized(*b"777777777777").problem_of_read_with_end_marker(),
        EntryProblem::Size { .. }
    ));
    let huge = [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(
        sized(huge).problem_of_read_with_end_marker(),
        EntryProblem::Number { field: "size" }
    );
    assert_eq!(
        sized(*b"12345abcdef\0").problem_of_read_with_end_marker(),
        EntryProblem::Number { field: "size" }
    );
    let bomb = TarBuilder::default().with_entry("x", b"", |header| {
        header.set_entry_type(EntryType::XHeader);
        header.set_size(1 << 30);
    });
    assert!(matches!(
        bomb.problem_of_read_with_end_marker(),
        EntryProblem::ExtensionTooLarge { .. }
    ));
    let negative = TarBuilder::default()
        .with_pax_header(b'x', &[("size", b"-1")])
        .with_file("context/a", b"");
    assert!(matches!(
        negative.problem_of_read_with_end_marker(),
        EntryProblem::Size { size: -1, .. }
    ));
}

#[test]
fn a_tar_with_too_many_entries_or_too_large_an_index_is_rejected() {
    let read = |limits: ArchiveLimits, tar: TarBuilder| {
        let mut reader = ArchiveReader::new(limits);
        reader
            .parse_piece(&tar.with_end_marker().0)
            .and_then(|()| reader.finish())
            .map(|contents| contents.entries.len())
    };
    let limits = ArchiveLimits {
        entries: 3,
        ..ArchiveLimits::default()
    };
    assert!(matches!(
        read(
            limits.clone(),
            TarBuilder::default().with_file("context/a/b/c", b"")
        ),
        Ok(3)
    ));
    let deep = TarBuilder::default().with_file("context/a/b/c/d", b"");
    assert!(matches!(
        read(limits.clone(), deep),
        Err(ArchiveError::TooManyEntries { limit: 3 })
    ));
    let outside = TarBuilder::default()
        .with_file("a", b"")
        .with_file("a", b"")
        .with_file("a", b"")
        .with_file("a", b"");
    assert!(matches!(
        read(limits, outside),
        Err(ArchiveError::TooManyEntries { limit: 3 })
    ));
    let limits = ArchiveLimits {
        index: 1000,
        ..ArchiveLimits::default()
    };
    let big = TarBuilder::default()
        .with_pax_header(b'x', &[("SCHILY.xattr.user.a", &[0; 1000])])
        .with_file("context/a", b"");
    assert!(matches!(
        read(limits, big),
        Err(ArchiveError::IndexTooLarge { limit: 1000 })
    ));
}

#[test]
fn the_error_for_a_body_that_is_no_tar_with_a_context_names_what_is_wrong() {
    let error = |bytes: &[u8]| {
        read_in_pieces(bytes, &[])
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(error(b"").contains("empty"));
    assert!(error(b"\x1f\x8b\x08\x00tiny").contains("gzip"));
    assert!(error(&[b"\x28\xb5\x2f\xfd".as_slice(), &[1; 600]].concat()).contains("zstd"));
    assert!(error(b"{\"image\":\"x\"}").contains("not a tar"));
    assert!(error(&[b'x'; 2000]).contains("not a tar"));
    assert!(error(&[0; 1024]).contains("context/"));
    assert!(
        error(
            &TarBuilder::default()
                .with_file("com.openfaas.docker.config", b"{}")
                .with_end_marker()
                .0
        )
        .contains("context/")
    );
}

#[test]
fn a_damaged_header_is_reported_with_its_offset() {
    let mut bytes = small_tar_without_end_marker().with_end_marker().0;
    bytes[2 * BLOCK_BYTES] ^= 1;
    let error = read_in_pieces(&bytes, &[]).err().map(|error| error.to_string());
    let expected =
        "the tar is damaged: the header at byte 1024, after com.openfaas.docker.config, has a wrong checksum";
    assert_eq!(error.as_deref(), Some(expected));
}

#[test]
fn a_tar_may_lack_only_its_end_of_archive_blocks() {
    let whole = small_tar_without_end_marker()
        .with_pax_header(b'x', &[("mtime", b"1")])
        .with_file("context/z", b"abc");
    let boundaries = [2 * BLOCK_BYTES, 4 * BLOCK_BYTES, whole.0.len()];
    for cut in 0..whole.0.len() {
        let result = read_in_pieces(&whole.0[..cut], &[]);
        match result {
            Ok(contents) => {
                assert!(boundaries.contains(&cut), "{cut}");
                assert_eq!(contents.warnings.len(), 1);
            }
            Err(ArchiveError::Truncated { offset, .. }) => assert_eq!(offset, cut as u64),
            Err(ArchiveError::Empty) => assert_eq!(cut, 0),
            Err(ArchiveError::NotTar) => assert!(cut < BLOCK_BYTES),
            Err(ArchiveError::NoContext) => assert_eq!(cut, 2 * BLOCK_BYTES),
            Err(error) => panic!("{cut}: {error}"),
        }
    }
    // One block of zeros instead of two, and more than two.
    assert!(read_in_pieces(&whole.clone().with_bytes(&[0; BLOCK_BYTES]).0, &[]).is_ok());
    assert!(read_in_pieces(&whole.clone().with_bytes(&[0; 20 * BLOCK_BYTES]).0, &[]).is_ok());
    // An extended header without an entry after it.
    let dangling = whole.with_pax_header(b'x', &[("path", b"context/y")]);
    assert!(matches!(
        dangling.clone().read_with_end_marker(),
        Err(ArchiveError::Truncated { .. })
    ));
    assert!(matches!(
        read_in_pieces(&dangling.0, &[]),
        Err(ArchiveError::Truncated { .. })
    ));
}

#[test]
fn data_after_the_end_of_a_tar_is_rejected() {
    for zeros in [BLOCK_BYTES, 2 * BLOCK_BYTES] {
        let two = small_tar_without_end_marker()
            .with_bytes(&vec![0; zeros])
            .with_file("context/b", b"");
        let expected = (4 * BLOCK_BYTES + zeros) as u64;
        assert!(
            matches!(two.read_with_end_marker(), Err(ArchiveError::AfterEnd { offset }) if offset == expected)
        );
    }
}
