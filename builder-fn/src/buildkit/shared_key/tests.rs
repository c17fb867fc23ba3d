//! Tests of shared keys: a build sees its own files whatever builds came before, when a key is given up, and memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use function_host::prometheus::IntCounter;
use proptest::prelude::*;

use super::announcements::{AnnouncedEntries, DIFFERENT_CONTENTS_MARK, hash_unnoticed_parts};
use super::pool::ANNOUNCEMENT_MEMORY_MAX_BYTES;
use super::*;
use crate::context::{
    ContentHash, Entry, ExtendedAttributes, Index, Kind, SourceContext, Spool, ViewEntry, ViewFilter, view,
};

fn empty_key_pool() -> SharedKeyPool {
    SharedKeyPool::new(IntCounter::new("sent", "sent").expect("counter"))
}

fn key_pool_with_memory_limit(memory_max: usize) -> SharedKeyPool {
    let mut keys = empty_key_pool();
    keys.memory_max = memory_max;
    keys
}

/// Returns the memory of a pool's idle keys, in bytes.
fn memory_of_idle_keys(keys: &SharedKeyPool) -> usize {
    let pool = keys.lock_pool();
    pool.idle
        .iter()
        .map(|record| record.announcements.memory_bytes())
        .sum()
}

const IMAGE: &str = "registry/image";

/// Extended attributes by name.
type AttributeValues = Vec<(String, Vec<u8>)>;

/// An entry in a folder of the daemon model.
#[derive(Clone, Debug, PartialEq)]
struct StoredEntry {
    kind: &'static str,
    size: u64,
    seconds: i64,
    mode: u32,
    link: String,
    content: Vec<u8>,
    attributes: AttributeValues,
    /// BuildKit's checksum of the entry, which decides whether a step runs again.
    checksum: (Vec<u8>, u32, AttributeValues),
}

/// A folder of the daemon model: its entries by path.
type DaemonFolder = BTreeMap<String, StoredEntry>;

/// A model of the daemon: its folders by shared key, several for a key that two builds used at the same time.
#[derive(Debug, Default)]
struct DaemonModel {
    folders: Vec<(String, DaemonFolder)>,
}

/// The way in which a transfer ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum TransferEnd {
    Complete,
    /// The transfer is broken off after this number of entries.
    BrokenOff(usize),
    /// The transfer is complete, and then the daemon is lost.
    DaemonLost,
}

impl DaemonModel {
    /// Receives a transfer as fsutil's receiver does, into the folder of the key that `folder_choice` chooses, or into
    /// a new one. Returns the folder that the build sees; an empty one if the transfer is broken off.
    fn receive_transfer_or_empty_if_broken_off(
        &mut self,
        context: &SourceContext,
        lease: &Arc<KeyLease>,
        filter: &ViewFilter,
        folder_choice: usize,
        end: TransferEnd,
    ) -> DaemonFolder {
        let announced_view = view(context, filter).expect("patterns");
        let mut transfer = lease.begin_transfer();
        let key = lease.key.clone();
        let mut with_key: Vec<_> = self.folders.iter_mut().filter(|(name, _)| *name == key).collect();
        let at = folder_choice % (with_key.len() + 1);
        let kept = match with_key.get_mut(at) {
            Some((_, folder)) => folder,
            None => {
                self.folders.push((key, DaemonFolder::new()));
                &mut self.folders.last_mut().expect("it was just made").1
            }
        };
        let path = |at: u32| context.index().path(at);
        let announced: Vec<String> = announced_view.iter().map(|visible| path(visible.entry)).collect();
        kept.retain(|path, _| announced.contains(path));
        for (count, visible) in announced_view.iter().enumerate() {
            if end == TransferEnd::BrokenOff(count) {
                return DaemonFolder::new();
            }
            let at = path(visible.entry);
            let link = visible.link.map(path).unwrap_or_default();
            let sent = StoredEntry::from_entry(context, visible.entry, link);
            let same = kept.get(&at).is_some_and(|have| {
                !lease.is_forced(visible.entry) && have.looks_the_same_to_buildkit(&sent)
            });
            if same {
                continue;
            }
            hash_whole_content_as_sent_unless_link(&mut transfer, context, visible);
            let checksum = match (kept.get(&at), sent.kind) {
                // BuildKit renews every checksum but that of a folder that was a folder before.
                (Some(have), "folder") if have.kind == "folder" => have.checksum.clone(),
                _ => sent.checksum.clone(),
            };
            kept.insert(at, StoredEntry { checksum, ..sent });
        }
        let result = kept.clone();
        let contents = transfer.complete_transfer(context, &announced_view);
        for (hash, visible) in contents.into_iter().flatten().zip(announced_view.iter()) {
            assert_known_hash_is_that_of_content(context, visible, hash);
        }
        result
    }
}

impl StoredEntry {
    /// Returns the entry with the number `entry_number` as the daemon stores it; `link` is the path of the file that it
    /// is a hard link of, or empty.
    fn from_entry(context: &SourceContext, entry_number: u32, link: String) -> Self {
        let entry = context.entry_by_number(entry_number);
        let attributes: Vec<_> = entry
            .xattrs
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_vec()))
            .collect();
        let kind = match entry.kind {
            Kind::Folder => "folder",
            Kind::File { .. } => "file",
            Kind::Symlink { .. } => "link",
        };
        let link = match entry.kind {
            Kind::Symlink { target } => target.to_owned(),
            _ => link,
        };
        Self {
            kind,
            size: entry.size(),
            // The file system of the model stores whole seconds, none before 1970.
            seconds: entry.mtime_ns.div_euclid(1_000_000_000).max(0),
            mode: entry.mode,
            link,
            content: read_content(context, entry),
            attributes: attributes.clone(),
            checksum: (read_content(context, entry), entry.mode, attributes),
        }
    }

    /// Returns whether BuildKit takes one entry for the other. It compares no contents, and no times of folders.
    fn looks_the_same_to_buildkit(&self, other: &Self) -> bool {
        let of_file = self.kind == "folder" || (self.size, self.seconds) == (other.size, other.seconds);
        of_file && (self.kind, self.mode, &self.link) == (other.kind, other.mode, &other.link)
    }

    /// Returns the properties of the entry that a build step can see, without the times of folders, which are not
    /// guaranteed.
    fn visible_state(&self) -> String {
        let seconds = if self.kind == "folder" { 0 } else { self.seconds };
        format!(
            "{:?}",
            (self.kind, seconds, self.mode, &self.content, &self.checksum)
        )
    }
}

/// The kind of entry that a [`ContextEntrySpec`] describes.
#[derive(Clone, Copy, Debug)]
enum SpecKind {
    Folder,
    Symlink,
    /// A file that is a hard link of all such files with the same content.
    LinkedFile,
    File,
}

/// A description of a context's entry, from which a test builds a context.
#[derive(Clone, Debug)]
struct ContextEntrySpec {
    path: String,
    kind: SpecKind,
    content: u8,
    /// The modification time, in steps of 400 ms from 400 ms before 1970; ignored for a linked file.
    time: u8,
    /// 0 for the mode `0o644`, 1 for `0o755`, and 2 for `0o755` with an extended attribute; ignored for a linked file.
    mode: u8,
}

fn entry_spec(path: &str, kind: SpecKind, content: u8, time: u8, mode: u8) -> ContextEntrySpec {
    ContextEntrySpec {
        path: path.to_owned(),
        kind,
        content,
        time,
        mode,
    }
}

/// Builds a context of the entries that `specs` describe; of several with one path, the first counts.
fn context_of_specs(specs: Vec<ContextEntrySpec>) -> SourceContext {
    let (index, bytes) = index_and_bytes_of_specs(specs);
    SourceContext::new(index, Spool::in_memory(bytes))
}

/// Builds a context as [`context_of_specs`] does, whose files count as large: each is compared by its blocks.
fn context_of_large_files(specs: Vec<ContextEntrySpec>) -> SourceContext {
    let (index, bytes) = index_and_bytes_of_specs(specs);
    SourceContext::new(index, Spool::in_memory_with_blocks_of(1, bytes))
}

fn index_and_bytes_of_specs(mut specs: Vec<ContextEntrySpec>) -> (Index, Vec<u8>) {
    specs.sort_by(|left, right| left.path.cmp(&right.path));
    specs.dedup_by(|left, right| left.path == right.path);
    let targets: Vec<String> = (0..=u8::MAX).map(|content| format!("t{content}")).collect();
    let attributes: Vec<Vec<u8>> = (0..=u8::MAX)
        .map(|content| ExtendedAttributes::pack([("user.x", &[content][..])]))
        .collect();
    let entries = specs.iter().map(|spec| {
        let ContextEntrySpec {
            path,
            kind,
            content,
            time,
            mode,
        } = spec;
        let entry_kind = match kind {
            SpecKind::Folder => Kind::Folder,
            SpecKind::Symlink => Kind::Symlink {
                target: &targets[usize::from(*content)],
            },
            // Files with the same content are hard links of each other.
            SpecKind::LinkedFile => Kind::File {
                offset: u64::from(*content),
                size: 1,
            },
            SpecKind::File => Kind::File {
                offset: path.bytes().map(u64::from).sum::<u64>() << 8 | u64::from(*content),
                size: 1,
            },
        };
        let is_file = matches!(entry_kind, Kind::File { .. });
        let shared = matches!(kind, SpecKind::LinkedFile);
        let entry = Entry {
            kind: entry_kind,
            mode: if *mode == 0 || shared { 0o644 } else { 0o755 },
            mtime_ns: if shared {
                0
            } else {
                i64::from(*time) * 400_000_000 - 400_000_000
            },
            xattrs: match (is_file && !shared, mode) {
                (true, 2) => ExtendedAttributes::from_packed(&attributes[usize::from(*content)]),
                _ => ExtendedAttributes::NONE,
            },
        };
        (path, entry)
    });
    // The content of a file is the lowest byte of its offset.
    let index = Index::of_entries_linking_same_offset(entries);
    let offsets =
        (0..u32::try_from(index.len()).expect("few")).map(|at| match index.entry_by_number(at).kind {
            Kind::File { offset, .. } => usize::try_from(offset).expect("small"),
            Kind::Folder | Kind::Symlink { .. } => 0,
        });
    let end = offsets.max().unwrap_or_default() + 1;
    let bytes = (0..=u8::MAX).cycle().take(end).collect();
    (index, bytes)
}

fn read_content(context: &SourceContext, entry: Entry<'_>) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(entry.size()).expect("small")];
    match entry.kind {
        Kind::File { .. } => context
            .read_file_exact(entry, 0, &mut content)
            .expect("the content"),
        Kind::Folder | Kind::Symlink { .. } => content.clear(),
    }
    content
}

/// Asserts that the hash of an entry after its transfer is that of its content, unless it is not known.
fn assert_known_hash_is_that_of_content(context: &SourceContext, visible: ViewEntry, hash: ContentHash) {
    let entry = context.entry_by_number(visible.entry);
    if matches!(entry.kind, Kind::File { .. }) && hash != DIFFERENT_CONTENTS_MARK {
        let content = ContentHash::of(&read_content(context, entry));
        assert_eq!(hash, hash_unnoticed_parts(content, &entry));
    }
}

/// Hashes the content of an entry as one sent piece, unless it is a link, which the daemon makes itself.
fn hash_whole_content_as_sent_unless_link(
    transfer: &mut TransferGuard,
    context: &SourceContext,
    visible: ViewEntry,
) {
    let entry = context.entry_by_number(visible.entry);
    if matches!(entry.kind, Kind::File { .. }) && visible.link.is_none() {
        let piece = SentPiece {
            offset: 0,
            data: &read_content(context, entry),
            is_last: true,
        };
        transfer.hash_sent_piece(visible.entry, context.index().len(), piece);
    }
}

/// Runs a transfer in which the daemon requests every file of `context`.
fn transfer_all(lease: &Arc<KeyLease>, context: &SourceContext) {
    let everything = view(context, &ViewFilter::default()).expect("patterns");
    let mut transfer = lease.begin_transfer();
    everything
        .iter()
        .for_each(|visible| hash_whole_content_as_sent_unless_link(&mut transfer, context, visible));
    transfer.complete_transfer(context, &everything);
}

fn generate_contexts() -> impl Strategy<Value = SourceContext> {
    let one = (
        prop::sample::select(vec!["a", "b", "c", "d"]),
        prop::sample::select(vec![
            SpecKind::Folder,
            SpecKind::Symlink,
            SpecKind::LinkedFile,
            SpecKind::File,
            SpecKind::File,
        ]),
        0u8..2,
        0u8..6,
        0u8..3,
    );
    let one = one.prop_map(|(path, kind, content, time, mode)| entry_spec(path, kind, content, time, mode));
    let specs = prop::collection::vec(one, 0..5);
    (specs, any::<bool>()).prop_map(|(specs, has_large_files)| match has_large_files {
        true => context_of_large_files(specs),
        false => context_of_specs(specs),
    })
}

fn generate_transfer_ends() -> impl Strategy<Value = TransferEnd> {
    prop_oneof![
        6 => Just(TransferEnd::Complete),
        1 => (0usize..4).prop_map(TransferEnd::BrokenOff),
        1 => Just(TransferEnd::DaemonLost),
    ]
}

/// One generated build: its context, whether a part of it is excluded, the number of the daemon's folder that is free,
/// the end of its transfer, and whether the build is of another image.
type ContextExcludesBFolderChoiceEndIsOtherImage = (SourceContext, bool, usize, TransferEnd, bool);

fn generate_builds() -> impl Strategy<Value = Vec<ContextExcludesBFolderChoiceEndIsOtherImage>> {
    let build = (
        generate_contexts(),
        any::<bool>(),
        0usize..3,
        generate_transfer_ends(),
        any::<bool>(),
    );
    prop::collection::vec(build, 1..12)
}

/// Returns the filter that selects everything, or everything but `b`.
fn filter_excluding_b_if(excluding: bool) -> ViewFilter {
    ViewFilter {
        exclude: if excluding {
            vec!["b".to_owned()]
        } else {
            Vec::new()
        },
        ..ViewFilter::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_build_sees_exactly_its_own_files_whatever_builds_used_the_shared_key_before(builds in generate_builds()) {
        let keys = empty_key_pool();
        let mut daemon = DaemonModel::default();
        for (context, excluding, take, end, other) in &builds {
            let lease = Arc::new(keys.lease_for_image_blocking(if *other { "other" } else { IMAGE }, context));
            let filter = filter_excluding_b_if(*excluding);
            let received = daemon.receive_transfer_or_empty_if_broken_off(context, &lease, &filter, *take, *end);
            if *end == TransferEnd::Complete {
                let expected: Vec<_> = view(context, &filter).expect("patterns").iter().map(|visible| {
                    (context.index().path(visible.entry), StoredEntry::from_entry(context, visible.entry, String::new()).visible_state())
                }).collect();
                let received: Vec<_> = received.iter().map(|(path, stored)| (path.clone(), stored.visible_state())).collect();
                prop_assert_eq!(received, expected);
            }
            if *end != TransferEnd::DaemonLost {
                lease.return_to_pool_if_all_transfers_completed();
            }
        }
    }
}

/// Runs a successful build of `context`, and returns its shared key.
fn build_and_return_key(keys: &SharedKeyPool, image: &str, context: &SourceContext) -> String {
    let lease = Arc::new(keys.lease_for_image_blocking(image, context));
    transfer_all(&lease, context);
    lease.return_to_pool_if_all_transfers_completed();
    lease.key.clone()
}

/// Builds a context of two files of one byte, of which `a` has this content and `b` always the same.
fn context_of_a_with_content_and_fixed_b(content: u8) -> SourceContext {
    context_of_specs(vec![
        entry_spec("a", SpecKind::File, content, 1, 0),
        entry_spec("b", SpecKind::File, 7, 1, 0),
    ])
}

#[tokio::test]
async fn the_files_of_a_build_are_listed_whether_they_were_sent_again_or_not() {
    let keys = empty_key_pool();
    let list = async |context: SourceContext, sends_all: bool| {
        let lease = Arc::new(keys.lease_for_image_blocking(IMAGE, &context));
        lease.request_listing_of_later_transfers();
        let everything = view(&context, &ViewFilter::default()).expect("patterns");
        let mut transfer = lease.begin_transfer();
        for visible in everything
            .iter()
            .filter(|visible| sends_all || lease.is_forced(visible.entry))
        {
            hash_whole_content_as_sent_unless_link(&mut transfer, &context, visible);
        }
        let contents = transfer
            .complete_transfer(&context, &everything)
            .expect("they are remembered");
        lease.start_listing_if_requested(Arc::new(context), Arc::new(everything), contents);
        lease.return_to_pool_if_all_transfers_completed();
        lease.take_listed_files().await.expect("a listing")
    };
    let first = list(context_of_a_with_content_and_fixed_b(1), true).await;
    assert_eq!(list(context_of_a_with_content_and_fixed_b(1), false).await, first);
    let changed = list(context_of_a_with_content_and_fixed_b(2), false).await;
    let difference = first.compare_with(&changed, 10);
    assert_eq!(
        (difference.changed, difference.unknown),
        (vec!["a".to_owned()], 0)
    );
}

#[test]
fn builds_of_one_image_share_a_key_and_builds_of_different_images_do_not() {
    let keys = empty_key_pool();
    let first = build_and_return_key(&keys, "a", &context_of_a_with_content_and_fixed_b(1));
    assert_eq!(
        build_and_return_key(&keys, "a", &context_of_a_with_content_and_fixed_b(1)),
        first
    );
    assert_ne!(
        build_and_return_key(&keys, "b", &context_of_a_with_content_and_fixed_b(1)),
        first
    );
}

#[test]
fn two_simultaneous_builds_of_an_image_have_two_shared_keys_and_both_are_reused() {
    let keys = empty_key_pool();
    let (first, second) = (
        keys.lease_for_image_blocking("a", &context_of_a_with_content_and_fixed_b(1)),
        keys.lease_for_image_blocking("a", &context_of_a_with_content_and_fixed_b(1)),
    );
    assert_ne!(first.key, second.key);
    first.return_to_pool_if_all_transfers_completed();
    second.return_to_pool_if_all_transfers_completed();
    let again = [
        keys.lease_for_image_blocking("a", &context_of_a_with_content_and_fixed_b(1)),
        keys.lease_for_image_blocking("a", &context_of_a_with_content_and_fixed_b(1)),
    ];
    assert!(
        again
            .iter()
            .all(|lease| [&first.key, &second.key].contains(&&lease.key))
    );
}

#[test]
fn only_a_file_that_looks_unchanged_to_buildkit_and_has_other_content_is_forced() {
    let keys = empty_key_pool();
    let first = build_and_return_key(&keys, "a", &context_of_a_with_content_and_fixed_b(1));
    let lease = keys.lease_for_image_blocking("a", &context_of_a_with_content_and_fixed_b(2));
    assert_eq!(lease.key, first);
    let context = context_of_a_with_content_and_fixed_b(2);
    let is_forced = |path| lease.is_forced(context.index().find(path).expect("it is in the context"));
    assert_eq!((is_forced("a"), is_forced("b")), (true, false));
}

#[test]
fn a_file_that_was_announced_and_not_sent_is_forced_next_time() {
    let keys = empty_key_pool();
    let context = context_of_a_with_content_and_fixed_b(1);
    let lease = Arc::new(keys.lease_for_image_blocking("a", &context));
    let everything = view(&context, &ViewFilter::default()).expect("patterns");
    let mut transfer = lease.begin_transfer();
    // The second entry is not sent.
    hash_whole_content_as_sent_unless_link(&mut transfer, &context, everything.get(0).expect("an entry"));
    transfer.complete_transfer(&context, &everything);
    lease.return_to_pool_if_all_transfers_completed();
    let again = keys.lease_for_image_blocking("a", &context);
    assert_eq!(again.key, lease.key);
    let is_forced = |path| again.is_forced(context.index().find(path).expect("it is in the context"));
    assert_eq!((is_forced("a"), is_forced("b")), (false, true));
}

#[test]
fn a_hard_link_counts_as_having_the_content_of_the_file_that_was_sent() {
    let keys = empty_key_pool();
    let linked = context_of_specs(vec![
        entry_spec("a", SpecKind::LinkedFile, 1, 0, 0),
        entry_spec("b", SpecKind::LinkedFile, 1, 0, 0),
        entry_spec("c", SpecKind::File, 2, 1, 0),
    ]);
    let first = build_and_return_key(&keys, "a", &linked);
    let again = keys.lease_for_image_blocking("a", &linked);
    assert_eq!(again.key, first);
    assert!((0..3).all(|at| !again.is_forced(at)));
}

#[test]
fn a_shared_key_is_discarded_once_more_than_half_of_the_context_was_forced() {
    let keys = empty_key_pool();
    let first = build_and_return_key(&keys, "a", &context_of_a_with_content_and_fixed_b(1));
    // One of the two files differs each time.
    let used: Vec<_> = (0..4)
        .map(|turn| build_and_return_key(&keys, "a", &context_of_a_with_content_and_fixed_b(turn % 2)))
        .collect();
    assert_eq!(used[0], first);
    assert!(used[1..].iter().all(|key| *key != first));
}

#[test]
fn a_context_whose_files_all_look_unchanged_and_differ_gets_a_new_shared_key_at_once() {
    let keys = empty_key_pool();
    let other = |content| {
        context_of_specs(vec![
            entry_spec("a", SpecKind::File, content, 1, 0),
            entry_spec("b", SpecKind::File, content, 1, 0),
        ])
    };
    let first = build_and_return_key(&keys, "a", &other(1));
    let second = build_and_return_key(&keys, "a", &other(2));
    assert_ne!(second, first);
    assert_eq!(
        build_and_return_key(&keys, "a", &other(2)),
        second,
        "it is warm from then on"
    );
}

#[test]
fn a_shared_key_is_discarded_if_its_transfer_or_its_build_was_broken_off() {
    let keys = empty_key_pool();
    let context = context_of_a_with_content_and_fixed_b(1);
    let first = build_and_return_key(&keys, "a", &context);

    let lease = Arc::new(keys.lease_for_image_blocking("a", &context));
    drop(lease.begin_transfer());
    assert_ne!(
        lease.leased_or_new_key_for_session(),
        first,
        "a second session of the same build does not use it"
    );
    lease.return_to_pool_if_all_transfers_completed();
    let second = build_and_return_key(&keys, "a", &context);
    assert_ne!(second, first);

    let lease = Arc::new(keys.lease_for_image_blocking("a", &context));
    let _running = lease.begin_transfer();
    lease.return_to_pool_if_all_transfers_completed();
    let third = build_and_return_key(&keys, "a", &context);
    assert_ne!(third, second);

    drop(keys.lease_for_image_blocking("a", &context));
    assert_ne!(build_and_return_key(&keys, "a", &context), third);
}

#[test]
fn a_context_with_a_folder_of_another_mode_gets_a_new_shared_key() {
    let keys = empty_key_pool();
    let folder = |mode| context_of_specs(vec![entry_spec("a", SpecKind::Folder, 0, 0, mode)]);
    let first = build_and_return_key(&keys, "a", &folder(0));
    assert_eq!(build_and_return_key(&keys, "a", &folder(0)), first);
    assert_ne!(build_and_return_key(&keys, "a", &folder(1)), first);
}

/// Builds a context of `count` files of one byte, whose names begin with `name_prefix`.
fn context_with_files(name_prefix: &str, count: usize) -> SourceContext {
    let entries = (0..count)
        .map(|number| entry_spec(&format!("{name_prefix}{number}"), SpecKind::File, 1, 1, 0))
        .collect();
    context_of_specs(entries)
}

#[test]
fn the_memory_of_idle_shared_keys_is_bounded_and_the_most_recently_used_ones_stay() {
    let keys = key_pool_with_memory_limit(100_000);
    let used: Vec<_> = (0..10)
        .map(|at| build_and_return_key(&keys, &format!("image{at}"), &context_with_files("f", 1000)))
        .collect();

    assert!(
        (20_000..=100_000).contains(&memory_of_idle_keys(&keys)),
        "{}",
        memory_of_idle_keys(&keys)
    );
    assert_eq!(
        build_and_return_key(&keys, "image9", &context_with_files("f", 1000)),
        used[9]
    );
    assert_ne!(
        build_and_return_key(&keys, "image0", &context_with_files("f", 1000)),
        used[0]
    );

    let keys = key_pool_with_memory_limit(1000);
    assert_ne!(
        build_and_return_key(&keys, "a", &context_with_files("f", 1000)),
        build_and_return_key(&keys, "a", &context_with_files("f", 1000)),
        "there is no memory for even one key"
    );
    assert_eq!(memory_of_idle_keys(&keys), 0);
}

#[test]
fn the_memory_of_shared_keys_in_use_is_bounded() {
    let keys = key_pool_with_memory_limit(50_000);
    let context = context_with_files("f", 1000);
    let idle = build_and_return_key(&keys, "idle", &context);
    let begin = |image: &str| {
        let lease = Arc::new(keys.lease_for_image_blocking(image, &context));
        transfer_all(&lease, &context);
        lease
    };

    // There is memory for two keys, and the idle one is evicted for them.
    let running = ["a", "b", "c"].map(begin);
    assert_eq!(memory_of_idle_keys(&keys), 0);
    assert!((40_000..=50_000).contains(&keys.lock_pool().reserved));
    let [a, b, c] = &running;
    assert_eq!(
        (
            a.leased_or_new_key_for_session(),
            b.leased_or_new_key_for_session()
        ),
        (
            a.leased_or_new_key_for_session(),
            b.leased_or_new_key_for_session()
        )
    );
    assert_ne!(
        c.leased_or_new_key_for_session(),
        c.leased_or_new_key_for_session(),
        "it is for single use"
    );
    running
        .iter()
        .for_each(|lease| lease.return_to_pool_if_all_transfers_completed());

    assert_eq!(keys.lock_pool().reserved, 0);
    assert_eq!(build_and_return_key(&keys, "a", &context), a.key);
    assert_eq!(build_and_return_key(&keys, "b", &context), b.key);
    assert_ne!(build_and_return_key(&keys, "c", &context), c.key);
    assert_ne!(build_and_return_key(&keys, "idle", &context), idle);
}

#[test]
fn a_shared_key_without_memory_for_more_entries_is_replaced_by_a_new_one() {
    let keys = key_pool_with_memory_limit(50_000);
    let first = build_and_return_key(&keys, "a", &context_with_files("f", 1000));
    assert_eq!(
        build_and_return_key(&keys, "a", &context_with_files("g", 1000)),
        first
    );
    // There is no memory for a third thousand.
    let second = build_and_return_key(&keys, "a", &context_with_files("h", 1000));
    assert_ne!(second, first);
    assert_eq!(
        build_and_return_key(&keys, "a", &context_with_files("h", 1000)),
        second
    );
    assert!((20_000..30_000).contains(&memory_of_idle_keys(&keys)));
}

#[test]
fn a_dropped_key_lease_releases_its_memory() {
    let keys = key_pool_with_memory_limit(30_000);
    for _ in 0..3 {
        let lease = keys.lease_for_image_blocking("a", &context_with_files("f", 1000));
        assert_eq!(
            lease.leased_or_new_key_for_session(),
            lease.leased_or_new_key_for_session(),
            "it is not for single use"
        );
        assert!(keys.lock_pool().reserved >= 20_000);
    }
    assert_eq!(keys.lock_pool().reserved, 0);
}

#[test]
fn the_announcement_memory_has_room_for_a_context_of_200_000_files() {
    assert!(AnnouncedEntries::bytes_for_entries(200_000) + 10_000 < ANNOUNCEMENT_MEMORY_MAX_BYTES);
}

#[test]
fn a_single_use_shared_key_is_never_used_twice() {
    let keys = empty_key_pool();
    let lease = keys.lease_single_use();
    assert_ne!(
        lease.leased_or_new_key_for_session(),
        lease.leased_or_new_key_for_session()
    );
    lease.return_to_pool_if_all_transfers_completed();
    assert_eq!(keys.lock_pool().idle.len(), 0);
}
