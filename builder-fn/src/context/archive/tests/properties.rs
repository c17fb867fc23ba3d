//! Properties of the tar reader, for generated tars and for any other bytes.

use proptest::prelude::*;

use super::*;

/// Generates tars of a few entries that may conflict with each other, with or without extended headers.
pub(super) fn generate_tars(with_extended_headers: bool) -> impl Strategy<Value = TarBuilder> {
    let name = prop_oneof!["[ab]", "[ab]/[ab]", "[ab]/[ab]/c", "\\PC{1,20}"]
        .prop_map(|name| format!("context/{name}"));
    let kinds = if with_extended_headers { 6 } else { 5 };
    let entry = (
        0..kinds,
        name.clone(),
        name,
        prop::collection::vec(any::<u8>(), 0..1200),
    );
    prop::collection::vec(entry, 0..8).prop_map(|entries| {
        entries.into_iter().fold(
            small_tar_without_end_marker(),
            |tar, (what, name, other, content)| match what {
                0 | 1 => tar.with_file(&name, &content),
                2 => tar.with_folder(&name),
                3 => tar.with_symlink(&name, &other),
                4 => tar.with_hard_link(&name, &other),
                _ => tar
                    .with_pax_header(b'x', &[("path", name.as_bytes())])
                    .with_file(&other, &content),
            },
        )
    })
}

/// The comparable parts of a tar's content: index, configuration and warnings.
type IndexConfigAndWarnings = (Index, Option<Vec<u8>>, Vec<String>);

/// Reads a tar in pieces that end at the offsets `cuts`; fails with the text of the error.
fn read_index_config_and_warnings(tar: &[u8], cuts: &[usize]) -> Result<IndexConfigAndWarnings, String> {
    read_in_pieces(tar, cuts)
        .map(|contents| (contents.entries, contents.config, contents.warnings))
        .map_err(|error| error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_a_tar_gives_the_same_result_however_its_bytes_are_split(
        tar in generate_tars(true),
        cuts in prop::collection::vec(0usize..12_000, 0..60),
    ) {
        let bytes = tar.with_end_marker().0;
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        prop_assert_eq!(read_index_config_and_warnings(&bytes, &cuts), read_index_config_and_warnings(&bytes, &[]));
        let every: Vec<usize> = (1..bytes.len()).collect();
        prop_assert_eq!(read_index_config_and_warnings(&bytes, &every), read_index_config_and_warnings(&bytes, &[]));
    }

    #[test]
    fn a_valid_tars_index_is_sorted_and_has_the_folder_of_each_entry(tar in generate_tars(true)) {
        let contents = tar.read_with_end_marker();
        prop_assume!(contents.is_ok());
        let contents = contents.ok().unwrap();
        let entries = paths_and_entries(&contents.entries);
        prop_assert_eq!(entries.len(), contents.entries.len());
        for pair in entries.windows(2) {
            let (before, after) = (&pair[0].0, &pair[1].0);
            prop_assert!(before.split('/').lt(after.split('/')), "{} before {}", before, after);
        }
        for (path, _) in &entries {
            let Some((parent, _)) = path.rsplit_once('/') else { continue };
            let parent = entries.iter().find(|(other, _)| other == parent);
            prop_assert!(parent.is_some_and(|(_, entry)| entry.is_folder()), "{}", path);
        }
    }

    #[test]
    fn a_truncated_tar_is_rejected_or_has_a_warning(tar in generate_tars(true), cut in 0usize..12_000) {
        let bytes = tar.with_end_marker().0;
        let complete = bytes.len() - 2 * BLOCK_BYTES;
        let cut = cut % (complete + 1);
        if let Ok((_, _, warnings)) = read_index_config_and_warnings(&bytes[..cut], &[]) {
            prop_assert_eq!(warnings.len(), 1);
        }
    }

    #[test]
    fn a_flipped_bit_in_a_tar_never_changes_the_index_undetected(
        tar in generate_tars(false),
        at in 0usize..12_000,
        bit in 0u32..8,
    ) {
        let mut bytes = tar.with_end_marker().0;
        let before = read_index_config_and_warnings(&bytes, &[]);
        prop_assume!(before.is_ok());
        let before = before.unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(after) = read_index_config_and_warnings(&bytes, &[]) {
            prop_assert_eq!(before.0, after.0);
        }
    }

    #[test]
    fn reading_any_bytes_as_a_tar_causes_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read_index_config_and_warnings(&bytes, &[]);
        // Once more with a valid checksum, which lets the header be parsed.
        let mut block = [0u8; BLOCK_BYTES];
        for (to, from) in block.iter_mut().zip(&bytes) {
            *to = *from;
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        header.set_cksum();
        let _ = read_index_config_and_warnings(&small_tar_without_end_marker().with_bytes(header.as_bytes()).with_bytes(&bytes).0, &[]);
    }
}
