//! What a daemon has after any history is what it was last sent.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::context::{Attributes, ContentHash, Entry, Filter, Index, Kind, Spool, view};

fn keys() -> SharedKeys {
    SharedKeys::counting(IntCounter::new("sent", "sent").expect("counter"))
}

fn keys_with_limit(limit: usize) -> SharedKeys {
    SharedKeys { limit, ..keys() }
}

fn remembered(keys: &SharedKeys) -> usize {
    keys.lock().idle.iter().map(|slot| slot.memory.bytes()).sum()
}

const SCOPE: &str = "registry/image";

/// What the daemon's file system shows of an entry, and what is in it.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    kind: &'static str,
    size: u64,
    seconds: i64,
    mode: u32,
    link: String,
    content: ContentHash,
    attributes: Vec<(String, Vec<u8>)>,
    /// What the daemon believes that it is: BuildKit's checksum, from which it tells whether to run a step again.
    checksum: (ContentHash, u32, Vec<(String, Vec<u8>)>),
}

type Folder = BTreeMap<String, Kept>;

/// Folders by shared key, several where one was in use.
#[derive(Debug, Default)]
struct Daemon {
    folders: Vec<(String, Folder)>,
}

/// How a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Complete,
    /// Broken off after so many entries.
    BrokenOff(usize),
    /// Complete, and then the daemon is lost.
    Lost,
}

impl Daemon {
    /// As fsutil's receiver does it. A folder that is in use is not taken, but a new one made.
    fn receive(
        &mut self,
        context: &SourceContext,
        lease: &Arc<Lease>,
        filter: &Filter,
        take: usize,
        ending: Ending,
    ) -> Folder {
        let shown = view(context, filter).expect("patterns");
        let mut transfer = lease.begin(context, &shown);
        let key = lease.key.clone();
        let mut with_key: Vec<_> = self.folders.iter_mut().filter(|(name, _)| *name == key).collect();
        let at = take % (with_key.len() + 1);
        let kept = match with_key.get_mut(at) {
            Some((_, folder)) => folder,
            None => {
                self.folders.push((key, Folder::new()));
                &mut self.folders.last_mut().expect("it was just made").1
            }
        };
        let path = |at: u32| context.index().path(at);
        let announced: Vec<String> = shown.iter().map(|visible| path(visible.entry)).collect();
        kept.retain(|path, _| announced.contains(path));
        for (count, visible) in shown.iter().enumerate() {
            if ending == Ending::BrokenOff(count) {
                return Folder::new();
            }
            let at = path(visible.entry);
            let link = visible.link.map(path).unwrap_or_default();
            let sent = Kept::of(&context.entry(visible.entry), link);
            let same = kept.get(&at).is_some_and(|have| {
                let marked = lease.is_marked(visible.entry);
                !marked && have.looks_like(&sent)
            });
            if same {
                continue;
            }
            let checksum = match (kept.get(&at), sent.kind) {
                // BuildKit renews the checksum of everything but a folder that was a folder before.
                (Some(have), "folder") if have.kind == "folder" => have.checksum.clone(),
                _ => sent.checksum.clone(),
            };
            kept.insert(at, Kept { checksum, ..sent });
        }
        let result = kept.clone();
        transfer.complete();
        result
    }
}

impl Kept {
    fn of(entry: &Entry<'_>, link: String) -> Self {
        let attributes: Vec<_> = entry
            .xattrs
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_vec()))
            .collect();
        let kind = match entry.kind {
            Kind::Directory => "folder",
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
            // This file system keeps whole seconds, and none before 1970.
            seconds: entry.mtime_ns.div_euclid(1_000_000_000).max(0),
            mode: entry.mode,
            link,
            content: entry.content,
            attributes: attributes.clone(),
            checksum: (entry.content, entry.mode, attributes),
        }
    }

    fn looks_like(&self, other: &Self) -> bool {
        let of_file = self.kind == "folder" || (self.size, self.seconds) == (other.size, other.seconds);
        of_file && (self.kind, self.mode, &self.link) == (other.kind, other.mode, &other.link)
    }

    /// What a step sees. Times of folders are not promised.
    fn seen(&self) -> String {
        let seconds = if self.kind == "folder" { 0 } else { self.seconds };
        format!(
            "{:?}",
            (self.kind, seconds, self.mode, self.content, &self.checksum)
        )
    }
}

/// What an entry of a test is like.
#[derive(Clone, Debug)]
struct Given {
    path: String,
    what: u8,
    content: u8,
    time: u8,
    mode: u8,
}

fn entry(path: &str, what: u8, content: u8, time: u8, mode: u8) -> Given {
    Given {
        path: path.to_owned(),
        what,
        content,
        time,
        mode,
    }
}

fn context(mut given: Vec<Given>) -> SourceContext {
    given.sort_by(|left, right| left.path.cmp(&right.path));
    given.dedup_by(|left, right| left.path == right.path);
    let targets: Vec<String> = (0..=u8::MAX).map(|content| format!("t{content}")).collect();
    let attributes: Vec<Vec<u8>> = (0..=u8::MAX)
        .map(|content| Attributes::pack([("user.x", &[content][..])]))
        .collect();
    let entries = given.iter().map(|given| {
        let Given {
            path,
            what,
            content,
            time,
            mode,
        } = given;
        let kind = match what {
            0 => Kind::Directory,
            1 => Kind::Symlink {
                target: &targets[usize::from(*content)],
            },
            // Hard links of each other, when they have the same content.
            2 => Kind::File {
                offset: u64::from(*content),
                size: 1,
            },
            _ => Kind::File {
                offset: path.bytes().map(u64::from).sum::<u64>() << 8 | u64::from(*content),
                size: 1,
            },
        };
        let is_file = matches!(kind, Kind::File { .. });
        let shared = *what == 2;
        let entry = Entry {
            kind,
            mode: if *mode == 0 || shared { 0o644 } else { 0o755 },
            mtime_ns: if shared {
                0
            } else {
                i64::from(*time) * 400_000_000 - 400_000_000
            },
            xattrs: match (is_file && !shared, mode) {
                (true, 2) => Attributes::packed(&attributes[usize::from(*content)]),
                _ => Attributes::NONE,
            },
            content: if is_file {
                ContentHash([*content; 12])
            } else {
                ContentHash::default()
            },
        };
        (path, entry)
    });
    SourceContext::new(Index::of(entries), Spool::in_memory(Vec::new()))
}

fn contexts() -> impl Strategy<Value = SourceContext> {
    let one = (
        prop::sample::select(vec!["a", "b", "c", "d"]),
        0u8..5,
        0u8..2,
        0u8..6,
        0u8..3,
    );
    let one = one.prop_map(|(path, what, content, time, mode)| entry(path, what, content, time, mode));
    prop::collection::vec(one, 0..5).prop_map(context)
}

fn endings() -> impl Strategy<Value = Ending> {
    prop_oneof![
        6 => Just(Ending::Complete),
        1 => (0usize..4).prop_map(Ending::BrokenOff),
        1 => Just(Ending::Lost),
    ]
}

/// One build: what of the context is transferred, which of the daemon's folders is free, how it ends, for which image.
type Build = (SourceContext, bool, usize, Ending, bool);

fn builds() -> impl Strategy<Value = Vec<Build>> {
    let build = (contexts(), any::<bool>(), 0usize..3, endings(), any::<bool>());
    prop::collection::vec(build, 1..12)
}

fn filter(excluding: bool) -> Filter {
    Filter {
        exclude: if excluding {
            vec!["b".to_owned()]
        } else {
            Vec::new()
        },
        ..Filter::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_build_sees_what_it_sent_after_any_history(builds in builds()) {
        let keys = keys();
        let mut daemon = Daemon::default();
        for (context, excluding, take, ending, other) in &builds {
            let lease = Arc::new(keys.lease(if *other { "other" } else { SCOPE }, context));
            let filter = filter(*excluding);
            let received = daemon.receive(context, &lease, &filter, *take, *ending);
            if *ending == Ending::Complete {
                let expected: Vec<_> = view(context, &filter).expect("patterns").iter().map(|visible| {
                    let entry = context.entry(visible.entry);
                    (context.index().path(visible.entry), Kept::of(&entry, String::new()).seen())
                }).collect();
                let received: Vec<_> = received.iter().map(|(path, kept)| (path.clone(), kept.seen())).collect();
                prop_assert_eq!(received, expected);
            }
            if *ending != Ending::Lost {
                lease.release();
            }
        }
    }
}

fn build(keys: &SharedKeys, scope: &str, context: &SourceContext) -> String {
    let lease = Arc::new(keys.lease(scope, context));
    lease
        .begin(context, &view(context, &Filter::default()).expect("patterns"))
        .complete();
    lease.release();
    lease.key.clone()
}

fn plain(content: u8) -> SourceContext {
    context(vec![entry("a", 3, content, 1, 0), entry("b", 3, 7, 1, 0)])
}

#[test]
fn one_image_has_one_key_and_two_have_two() {
    let keys = keys();
    let first = build(&keys, "a", &plain(1));
    assert_eq!(build(&keys, "a", &plain(1)), first);
    assert_ne!(build(&keys, "b", &plain(1)), first);
}

#[test]
fn two_builds_at_once_have_two_keys_which_both_serve_again() {
    let keys = keys();
    let (first, second) = (keys.lease("a", &plain(1)), keys.lease("a", &plain(1)));
    assert_ne!(first.key, second.key);
    first.release();
    second.release();
    let again = [keys.lease("a", &plain(1)), keys.lease("a", &plain(1))];
    assert!(
        again
            .iter()
            .all(|lease| [&first.key, &second.key].contains(&&lease.key))
    );
}

#[test]
fn a_file_that_looks_the_same_and_is_not_is_marked_and_no_other() {
    let keys = keys();
    let first = build(&keys, "a", &plain(1));
    let lease = keys.lease("a", &plain(2));
    assert_eq!(lease.key, first);
    let context = plain(2);
    let is_marked = |path| lease.is_marked(context.index().find(path).expect("it is there"));
    assert_eq!((is_marked("a"), is_marked("b")), (true, false));
}

#[test]
fn a_key_on_which_half_of_a_context_is_repeated_is_given_up() {
    let keys = keys();
    let first = build(&keys, "a", &plain(1));
    // One of two files a turn.
    let used: Vec<_> = (0..4).map(|turn| build(&keys, "a", &plain(turn % 2))).collect();
    assert_eq!(used[0], first);
    assert!(used[1..].iter().all(|key| *key != first));
}

#[test]
fn a_context_that_is_another_one_altogether_and_looks_the_same_has_a_new_key_at_once() {
    let keys = keys();
    let other = |content| context(vec![entry("a", 3, content, 1, 0), entry("b", 3, content, 1, 0)]);
    let first = build(&keys, "a", &other(1));
    let second = build(&keys, "a", &other(2));
    assert_ne!(second, first);
    assert_eq!(build(&keys, "a", &other(2)), second, "and is warm from then on");
}

#[test]
fn a_key_goes_with_a_transfer_that_was_broken_off_and_with_a_build_that_was() {
    let keys = keys();
    let context = plain(1);
    let first = build(&keys, "a", &context);

    let lease = Arc::new(keys.lease("a", &context));
    drop(lease.begin(&context, &View::default()));
    assert_ne!(
        lease.key(),
        first,
        "nor is it used for a second session of the same build"
    );
    lease.release();
    let second = build(&keys, "a", &context);
    assert_ne!(second, first);

    let lease = Arc::new(keys.lease("a", &context));
    let _under_way = lease.begin(&context, &View::default());
    lease.release();
    let third = build(&keys, "a", &context);
    assert_ne!(third, second);

    drop(keys.lease("a", &context));
    assert_ne!(build(&keys, "a", &context), third);
}

#[test]
fn a_folder_with_another_mode_needs_a_new_key() {
    let keys = keys();
    let folder = |mode| context(vec![entry("a", 0, 0, 0, mode)]);
    let first = build(&keys, "a", &folder(0));
    assert_eq!(build(&keys, "a", &folder(0)), first);
    assert_ne!(build(&keys, "a", &folder(1)), first);
}

fn many(name: &str, count: usize) -> SourceContext {
    let entries = (0..count)
        .map(|number| entry(&format!("{name}{number}"), 3, 1, 1, 0))
        .collect();
    context(entries)
}

#[test]
fn memory_is_bounded_and_what_was_used_last_stays() {
    let keys = keys_with_limit(100_000);
    let used: Vec<_> = (0..10)
        .map(|at| build(&keys, &format!("image{at}"), &many("f", 1000)))
        .collect();

    assert!(
        (20_000..=100_000).contains(&remembered(&keys)),
        "{}",
        remembered(&keys)
    );
    assert_eq!(build(&keys, "image9", &many("f", 1000)), used[9]);
    assert_ne!(build(&keys, "image0", &many("f", 1000)), used[0]);

    let keys = keys_with_limit(1000);
    assert_ne!(
        build(&keys, "a", &many("f", 1000)),
        build(&keys, "a", &many("f", 1000)),
        "no room for even one"
    );
    assert_eq!(remembered(&keys), 0);
}

#[test]
fn what_is_remembered_in_builds_under_way_is_bounded_too() {
    let keys = keys_with_limit(50_000);
    let context = many("f", 1000);
    let idle = build(&keys, "idle", &context);
    let begin = |scope: &str| {
        let lease = Arc::new(keys.lease(scope, &context));
        let shown = view(&context, &Filter::default()).expect("patterns");
        lease.begin(&context, &shown).complete();
        lease
    };

    // There is room for two, and the one that nobody uses makes way.
    let under_way = ["a", "b", "c"].map(begin);
    assert_eq!(remembered(&keys), 0);
    assert!((40_000..=50_000).contains(&keys.lock().in_use));
    let [a, b, c] = &under_way;
    assert_eq!((a.key(), b.key()), (a.key(), b.key()));
    assert_ne!(c.key(), c.key(), "it is cold");
    under_way.iter().for_each(|lease| lease.release());

    assert_eq!(keys.lock().in_use, 0);
    assert_eq!(build(&keys, "a", &context), a.key);
    assert_eq!(build(&keys, "b", &context), b.key);
    assert_ne!(build(&keys, "c", &context), c.key);
    assert_ne!(build(&keys, "idle", &context), idle);
}

#[test]
fn a_key_that_cannot_remember_more_makes_way_for_one_that_can() {
    let keys = keys_with_limit(50_000);
    let first = build(&keys, "a", &many("f", 1000));
    assert_eq!(build(&keys, "a", &many("g", 1000)), first);
    // A third thousand would be too much.
    let second = build(&keys, "a", &many("h", 1000));
    assert_ne!(second, first);
    assert_eq!(build(&keys, "a", &many("h", 1000)), second);
    assert!((20_000..30_000).contains(&remembered(&keys)));
}

#[test]
fn a_build_that_goes_away_gives_back_its_room() {
    let keys = keys_with_limit(30_000);
    for _ in 0..3 {
        let lease = keys.lease("a", &many("f", 1000));
        assert_eq!(lease.key(), lease.key(), "it is not cold");
        assert!(keys.lock().in_use >= 20_000);
    }
    assert_eq!(keys.lock().in_use, 0);
}

#[test]
fn two_hundred_thousand_files_can_be_remembered() {
    assert!(Memory::bytes_of(200_000) + 10_000 < LIMIT);
}

#[test]
fn a_cold_key_is_never_used_twice() {
    let keys = keys();
    let lease = keys.cold();
    assert_ne!(lease.key(), lease.key());
    lease.release();
    assert_eq!(keys.lock().idle.len(), 0);
}
