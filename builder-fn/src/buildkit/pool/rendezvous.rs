//! Rendezvous hashing with bounded load: which daemon a build goes to. Pure functions of names and numbers.
//!
//! Every image scores every daemon, and prefers the one with the highest score. A daemon that is added takes the images
//! that score it highest: one in N, from all others alike. One that is removed leaves its images to the others, and no
//! other image moves. Builders need not agree on anything but the names of the daemons.
//!
//! A daemon that builds more than its share is busy, and the build goes to the next one of the image's ranking.

use sha2::{Digest, Sha256};

/// The number of running builds below which a daemon is never busy: in an idle pool, where a share is smaller, a warm
/// cache is worth more than an idle processor.
const BUSY_FROM_MIN_BUILDS: usize = 4;

/// The number of builds that a daemon may run for each build of its share, as a fraction: half more. With less, a pool
/// that is busy everywhere loses many warm caches; the tests of `tests/pool-simulation` show how many.
const BUSY_LOAD_FACTOR: (usize, usize) = (3, 2);

/// The hash of a daemon's name, or of the image or the reference of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementHash(u64);

/// A daemon that a build may go to.
#[derive(Clone, Copy, Debug)]
pub struct DaemonHashAndBuildCount {
    /// The hash of the daemon's name.
    pub hash: PlacementHash,
    /// The number of builds that run on the daemon.
    pub running: usize,
}

/// The daemon that a build goes to, and the one that its image prefers, as numbers of the daemons that were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChosenAndPreferredDaemon {
    /// The number of the daemon that the build goes to.
    pub chosen: usize,
    /// The number of the daemon whose cache has the image's earlier builds.
    pub preferred: usize,
}

impl PlacementHash {
    /// Hashes a name that consists of `parts`.
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        Self(u64::from_be_bytes(first))
    }

    /// Returns the score of a daemon for an image; both are hashes of names. The scores of one daemon for different
    /// images have nothing in common.
    #[inline]
    pub fn score(self, image: Self) -> u64 {
        // The finalizer of SplitMix64: https://prng.di.unimi.it/splitmix64.c
        let mut mixed = self.0 ^ image.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Returns the number of running builds from which on a daemon is busy, if `running` builds run on `daemons` daemons:
/// half more than its share, with the build that is to be placed, and at least 4.
#[inline]
pub fn busy_threshold(running: usize, daemons: usize) -> usize {
    let (more, less) = BUSY_LOAD_FACTOR;
    let share = ((running + 1) * more).div_ceil(daemons.max(1) * less);
    share.max(BUSY_FROM_MIN_BUILDS)
}

/// Chooses the daemon with the highest score for `image` among those that run fewer than `busy_threshold` builds. If
/// all are busy, chooses the preferred one. Returns `None` if there are no daemons.
#[inline]
pub fn choose_daemon(
    daemons: &[DaemonHashAndBuildCount],
    image: PlacementHash,
    busy_threshold: usize,
) -> Option<ChosenAndPreferredDaemon> {
    let preferred = find_highest_scored(daemons, image, |_| true)?;
    let chosen = match daemons.get(preferred) {
        Some(daemon) if daemon.running >= busy_threshold => {
            find_highest_scored(daemons, image, |daemon| daemon.running < busy_threshold).unwrap_or(preferred)
        }
        _ => preferred,
    };
    Some(ChosenAndPreferredDaemon { chosen, preferred })
}

/// Returns the number of the daemon with the highest score for `image` among those that `counts` is true for.
#[inline]
fn find_highest_scored(
    daemons: &[DaemonHashAndBuildCount],
    image: PlacementHash,
    counts: impl Fn(&DaemonHashAndBuildCount) -> bool,
) -> Option<usize> {
    let mut best = None;
    for (number, daemon) in daemons.iter().enumerate() {
        let score = daemon.hash.score(image);
        if counts(daemon) && best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, number));
        }
    }
    best.map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idle_daemons(names: impl IntoIterator<Item = usize>) -> Vec<DaemonHashAndBuildCount> {
        names
            .into_iter()
            .map(|name| DaemonHashAndBuildCount {
                hash: PlacementHash::of(&[&format!("tcp://buildkit-{name}.buildkit:1234")]),
                running: 0,
            })
            .collect()
    }

    fn image(number: usize) -> PlacementHash {
        PlacementHash::of(&["acme", &format!("registry.example/acme/function-{number}")])
    }

    /// Returns the hash of the daemon that an image goes to.
    fn hash_of_chosen_daemon(daemons: &[DaemonHashAndBuildCount], image_number: usize) -> PlacementHash {
        let busy_threshold = busy_threshold(0, daemons.len());
        let placement = choose_daemon(daemons, image(image_number), busy_threshold).expect("a daemon");
        daemons[placement.chosen].hash
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn an_added_daemon_takes_at_most_about_one_in_n_images_and_moves_no_other(count in 1_usize..40) {
            const IMAGES: usize = 2000;
            let before = idle_daemons(0..count);
            let after = idle_daemons(0..=count);
            let moved: Vec<_> = (0..IMAGES)
                .filter(|number| hash_of_chosen_daemon(&before, *number) != hash_of_chosen_daemon(&after, *number))
                .collect();

            for number in &moved {
                prop_assert_eq!(hash_of_chosen_daemon(&after, *number), after[count].hash);
            }
            // One in N + 1, and five standard deviations of noise.
            let share = 1.0 / (count + 1) as f64;
            let limit = IMAGES as f64 * share + 5.0 * (IMAGES as f64 * share * (1.0 - share)).sqrt();
            prop_assert!((moved.len() as f64) < limit, "{} of {IMAGES} moved", moved.len());
        }

        #[test]
        fn a_removed_daemon_moves_its_own_images_only(count in 2_usize..40, removed in 0_usize..40) {
            let removed = removed % count;
            let before = idle_daemons(0..count);
            let after = idle_daemons((0..count).filter(|name| *name != removed));
            for number in 0..500 {
                let old = hash_of_chosen_daemon(&before, number);
                if old != before[removed].hash {
                    prop_assert_eq!(hash_of_chosen_daemon(&after, number), old);
                }
            }
        }

        #[test]
        fn the_order_of_daemons_does_not_change_where_a_build_goes(count in 1_usize..20, rotation in 0_usize..20) {
            let daemons = idle_daemons(0..count);
            let mut rotated = daemons.clone();
            rotated.rotate_left(rotation % count);
            for number in 0..100 {
                prop_assert_eq!(hash_of_chosen_daemon(&daemons, number), hash_of_chosen_daemon(&rotated, number));
            }
        }

        #[test]
        fn no_daemon_gets_more_builds_than_the_number_from_which_it_is_busy(
            builds in prop::collection::vec(0_usize..50, 1..200),
            count in 1_usize..12,
        ) {
            let mut daemons = idle_daemons(0..count);
            for (running, number) in builds.iter().enumerate() {
                let limit = busy_threshold(running, count);
                let chosen = choose_daemon(&daemons, image(*number), limit).expect("a daemon").chosen;
                daemons[chosen].running += 1;
                prop_assert!(daemons[chosen].running <= limit);
            }
        }
    }

    #[test]
    fn a_busy_daemon_overflows_to_the_next_of_the_ranking() {
        let mut daemons = idle_daemons(0..3);
        let mut by_score: Vec<_> = (0..3).collect();
        by_score.sort_by_key(|number| std::cmp::Reverse(daemons[*number].hash.score(image(1))));
        let choose = |daemons: &[DaemonHashAndBuildCount]| choose_daemon(daemons, image(1), 4);

        assert_eq!(
            choose(&daemons).map(|placement| placement.chosen),
            Some(by_score[0])
        );
        daemons[by_score[0]].running = 4;
        let overflowed = ChosenAndPreferredDaemon {
            chosen: by_score[1],
            preferred: by_score[0],
        };
        assert_eq!(choose(&daemons), Some(overflowed));
        daemons.iter_mut().for_each(|daemon| daemon.running = 9);
        assert_eq!(
            choose(&daemons).map(|placement| placement.chosen),
            Some(by_score[0]),
            "all are busy"
        );
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn a_daemon_is_busy_from_half_above_its_share_and_from_four_builds() {
        for (running, daemons, expected) in [
            (0, 3, 4),
            (7, 3, 4),
            (8, 3, 5),
            (29, 3, 15),
            (10, 0, 17),
            (1999, 1000, 4),
            (7999, 1000, 12),
        ] {
            assert_eq!(
                busy_threshold(running, daemons),
                expected,
                "{running} on {daemons}"
            );
        }
    }

    #[test]
    fn names_whose_joined_parts_are_alike_have_different_hashes() {
        assert_ne!(PlacementHash::of(&["ab", "c"]), PlacementHash::of(&["a", "bc"]));
        assert_ne!(PlacementHash::of(&["", "a"]), PlacementHash::of(&["a", ""]));
    }
}
