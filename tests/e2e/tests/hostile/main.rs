//! Hostile builds and senders against the real stack. Each attack has a name, what it attempts, and a check that
//! recognises its success; none may succeed, and the builds of a neighbour beside it stay correct and on time.
//!
//! docs/hostile.md lists all attacks with their outcome before and after the tenants were separated.
//! `SLIPWAY_HOSTILE_REPORT` names a file that gets the outcomes of a run.

mod administrator;
mod attack;
mod base_images;
mod contexts;
mod daemon;
mod exhaustion;
mod fetched_sources;
mod forged;
mod frontends;
mod leaks;
mod metadata;
mod probe;
mod queue_messages;
mod registry_accounts;
mod secrets;
mod tenants;
mod unsigned;
mod world;

use attack::AttackDescription;

/// Returns all attacks of the suite.
fn all_attacks() -> Vec<AttackDescription> {
    [
        administrator::ATTACKS,
        daemon::ATTACKS,
        metadata::ATTACKS,
        tenants::ATTACKS,
        registry_accounts::ATTACKS,
        fetched_sources::ATTACKS,
        frontends::ATTACKS,
        contexts::ATTACKS,
        base_images::ATTACKS,
        exhaustion::ATTACKS,
        secrets::ATTACKS,
        forged::ATTACKS,
        queue_messages::ATTACKS,
        unsigned::ATTACKS,
    ]
    .concat()
}

/// The attacks that an answer with 429 or 5xx may stop, with the status. The tests check the reason otherwise.
const STOPPED_BY_LIMIT_OR_PLATFORM: [(&str, u16); 4] = [
    // The registry has to have refused each attempt.
    ("account-overwrites-an-image", 502),
    ("account-overwrites-by-cache", 502),
    // More builds at once than a tenant may have; some have to be parsed.
    ("builder-memory", 429),
    // The attacker's own registry answers 401 to the daemon, which has no credentials for it; it has to have been asked.
    ("registry-login-for-another-registry", 502),
];

#[test]
fn no_attack_counts_as_stopped_by_an_answer_of_a_busy_or_failing_platform_unless_it_is_named() {
    for attack in all_attacks() {
        for status in attack.stopped_with {
            let is_named = STOPPED_BY_LIMIT_OR_PLATFORM.contains(&(attack.name, *status));
            assert!(
                (200..500).contains(status) && *status != 429 || is_named,
                "{}: {status}",
                attack.name
            );
        }
    }
}

#[test]
fn attacks_have_distinct_names_and_are_exactly_the_rows_of_docs_hostile() {
    let document = include_str!("../../../../docs/hostile.md");
    let mut names: Vec<_> = all_attacks().iter().map(|attack| attack.name).collect();
    let missing: Vec<_> = all_attacks()
        .iter()
        .map(|attack| format!("| {} | {} |", attack.name, attack.attempts))
        .filter(|row| !document.contains(row))
        .collect();
    assert!(
        missing.is_empty(),
        "not in docs/hostile.md:\n{}",
        missing.join("\n")
    );
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "two attacks have one name");
    let rows = document.lines().filter(|line| {
        line.starts_with("| ") && !line.starts_with("| attack") && !line.starts_with("| --- ")
    });
    let unknown: Vec<_> = rows
        .filter_map(|row| row.trim_matches(['|', ' ']).split(" | ").next())
        .filter(|name| !names.contains(name))
        .collect();
    assert!(
        unknown.is_empty(),
        "in docs/hostile.md, but no attack: {unknown:?}"
    );
    assert!(count >= 40, "{count} attacks");
}
