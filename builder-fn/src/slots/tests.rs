//! Tests of build slots: who gets one, who waits and who is rejected.

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

const MAX_WAIT: Duration = Duration::from_secs(60);

fn slot_owner_of_tenant(name: &str) -> SlotOwner {
    SlotOwner {
        name: Some(name.into()),
        max_builds: None,
    }
}

fn owner_without_policy() -> SlotOwner {
    SlotOwner::default()
}

/// A build that has a slot, and its admission.
type RunningBuild = (BuildSlot, QueueAdmission);

/// Admits a request of `owner` and waits for its slot in a task.
async fn spawn_waiting_build(
    slots: &BuildSlots,
    owner: SlotOwner,
) -> JoinHandle<Result<RunningBuild, SlotRefused>> {
    let admission = slots.admit(owner).expect("a place");
    let waiting = tokio::spawn(async move { Ok((admission.wait_for_slot().await?, admission)) });
    tokio::task::yield_now().await;
    waiting
}

async fn assert_already_running_and_return(
    waiting: JoinHandle<Result<RunningBuild, SlotRefused>>,
) -> RunningBuild {
    assert!(waiting.is_finished(), "the build still waits");
    waiting.await.expect("no panic").expect("a slot")
}

#[tokio::test(start_paused = true)]
async fn slots_go_to_the_first_that_waits_and_the_others_fail_after_the_longest_wait() {
    let slots = BuildSlots::new(1, MAX_WAIT, 2);
    let first =
        assert_already_running_and_return(spawn_waiting_build(&slots, owner_without_policy()).await).await;
    let (second, third) = (
        spawn_waiting_build(&slots, owner_without_policy()).await,
        spawn_waiting_build(&slots, owner_without_policy()).await,
    );
    let begun = Instant::now();

    tokio::time::advance(MAX_WAIT / 2).await;
    drop(first);
    tokio::task::yield_now().await;

    let _second = assert_already_running_and_return(second).await;
    let error = third.await.expect("no panic").expect_err("no slot is free");
    assert_eq!(error, SlotRefused { limit: 1 });
    assert_eq!(begun.elapsed(), MAX_WAIT);
}

#[tokio::test(start_paused = true)]
async fn only_as_many_requests_are_admitted_as_may_build_or_wait() {
    let slots = BuildSlots::new(1, MAX_WAIT, 1);
    let first = slots.admit(owner_without_policy()).expect("admitted");
    assert!(!slots.is_full_for_every_tenant());
    let _second = slots.admit(owner_without_policy()).expect("admitted");
    assert!(slots.is_full_for_every_tenant());
    assert_eq!(
        slots.fail_if_full_for_every_tenant(),
        Err(SlotRefused { limit: 1 })
    );
    assert_eq!(
        slots.admit(owner_without_policy()).expect_err("rejected"),
        SlotRefused { limit: 1 }
    );
    drop(first);
    assert_eq!(slots.fail_if_full_for_every_tenant(), Ok(()));
    slots.admit(owner_without_policy()).expect("admitted again");
}

#[tokio::test]
async fn without_a_wait_a_request_is_rejected_while_all_slots_are_taken() {
    let slots = BuildSlots::new(2, Duration::ZERO, 16);
    let first =
        assert_already_running_and_return(spawn_waiting_build(&slots, slot_owner_of_tenant("one")).await)
            .await;
    let _second =
        assert_already_running_and_return(spawn_waiting_build(&slots, slot_owner_of_tenant("two")).await)
            .await;
    assert!(slots.is_full_for_every_tenant());
    for owner in [slot_owner_of_tenant("three"), owner_without_policy()] {
        assert_eq!(
            slots.admit(owner).expect_err("rejected"),
            SlotRefused { limit: 2 }
        );
    }
    drop(first);
    let _third =
        assert_already_running_and_return(spawn_waiting_build(&slots, slot_owner_of_tenant("three")).await)
            .await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_tenant_delays_another_by_at_most_one_build() {
    for limit in [1, 3] {
        let slots = BuildSlots::new(limit, MAX_WAIT, 100);
        let mut flood = Vec::new();
        for _ in 0..limit {
            flood.push(
                assert_already_running_and_return(
                    spawn_waiting_build(&slots, slot_owner_of_tenant("flood")).await,
                )
                .await,
            );
        }
        let mut waiting = Vec::new();
        for _ in 0..50 {
            waiting.push(spawn_waiting_build(&slots, slot_owner_of_tenant("flood")).await);
        }
        for round in 0..5 {
            let other = spawn_waiting_build(&slots, slot_owner_of_tenant("other")).await;
            assert!(!other.is_finished());
            drop(flood.remove(0));
            tokio::task::yield_now().await;
            let other = assert_already_running_and_return(other).await;
            // The other tenant's slot goes back to the one that waits.
            drop(other);
            tokio::task::yield_now().await;
            flood.push(assert_already_running_and_return(waiting.remove(0)).await);
            assert_eq!(flood.len(), limit, "{round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tenants_that_wait_are_served_in_turn() {
    let slots = BuildSlots::new(1, MAX_WAIT, 100);
    let mut current =
        assert_already_running_and_return(spawn_waiting_build(&slots, slot_owner_of_tenant("a")).await).await;
    let mut waiting = Vec::new();
    for name in ["a", "a", "a", "b", "b", "c"] {
        waiting.push((
            name,
            spawn_waiting_build(&slots, slot_owner_of_tenant(name)).await,
        ));
    }
    let mut served = String::new();
    while !waiting.is_empty() {
        drop(current);
        tokio::task::yield_now().await;
        let next = waiting.iter().position(|(_, waiting)| waiting.is_finished());
        let (name, build) = waiting.remove(next.expect("a slot is free"));
        current = assert_already_running_and_return(build).await;
        served.push_str(name);
    }
    assert_eq!(served, "bcabaa");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_builds_no_more_at_a_time_than_its_limit_and_others_take_the_rest() {
    let slots = BuildSlots::new(3, MAX_WAIT, 1);
    let limited = || SlotOwner {
        max_builds: Some(1),
        ..slot_owner_of_tenant("limited")
    };
    let first = assert_already_running_and_return(spawn_waiting_build(&slots, limited()).await).await;
    let second = spawn_waiting_build(&slots, limited()).await;
    assert!(
        !second.is_finished(),
        "two slots are free, and none for this tenant"
    );
    assert_eq!(
        slots.admit(limited()).expect_err("rejected"),
        SlotRefused { limit: 1 }
    );
    let _others = [
        assert_already_running_and_return(spawn_waiting_build(&slots, slot_owner_of_tenant("other")).await)
            .await,
        assert_already_running_and_return(spawn_waiting_build(&slots, slot_owner_of_tenant("other")).await)
            .await,
    ];
    drop(first);
    tokio::task::yield_now().await;
    let _second = assert_already_running_and_return(second).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_of_one_tenant_is_not_full_for_another() {
    let slots = BuildSlots::new(1, MAX_WAIT, 1);
    let _flood = (
        spawn_waiting_build(&slots, slot_owner_of_tenant("flood")).await,
        spawn_waiting_build(&slots, slot_owner_of_tenant("flood")).await,
    );
    assert!(slots.admit(slot_owner_of_tenant("flood")).is_err());
    assert!(
        !slots.is_full_for_every_tenant(),
        "the builder stays ready for others"
    );
    assert_eq!(slots.fail_if_full_for_every_tenant(), Ok(()));
    slots.admit(slot_owner_of_tenant("other")).expect("a place");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_stops_waiting_takes_no_slot() {
    let slots = BuildSlots::new(1, MAX_WAIT, 3);
    let first =
        assert_already_running_and_return(spawn_waiting_build(&slots, owner_without_policy()).await).await;
    let (gone, next) = (
        spawn_waiting_build(&slots, owner_without_policy()).await,
        spawn_waiting_build(&slots, owner_without_policy()).await,
    );
    gone.abort();
    tokio::task::yield_now().await;
    drop(first);
    tokio::task::yield_now().await;
    let next = assert_already_running_and_return(next).await;
    // One that stops just as it gets the slot.
    let gone = spawn_waiting_build(&slots, owner_without_policy()).await;
    drop(next);
    gone.abort();
    tokio::task::yield_now().await;
    let _last =
        assert_already_running_and_return(spawn_waiting_build(&slots, owner_without_policy()).await).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_remembered_of_a_tenant_without_requests() {
    let slots = BuildSlots::new(1, MAX_WAIT, 1);
    for number in 0..100 {
        drop(
            assert_already_running_and_return(
                spawn_waiting_build(&slots, slot_owner_of_tenant(&number.to_string())).await,
            )
            .await,
        );
    }
    assert_eq!(slots.0.lock().total_admitted(), 0);
    assert!(format!("{slots:?}").len() < 500, "{slots:?}");
}

#[tokio::test]
async fn a_tenants_limit_applies_without_a_limit_for_all_builds() {
    let slots = BuildSlots::unlimited_except_for_tenants();
    let limited = || SlotOwner {
        max_builds: Some(1),
        ..slot_owner_of_tenant("limited")
    };
    let first = assert_already_running_and_return(spawn_waiting_build(&slots, limited()).await).await;
    assert_eq!(
        slots.admit(limited()).expect_err("rejected"),
        SlotRefused { limit: 1 }
    );
    let _other =
        assert_already_running_and_return(spawn_waiting_build(&slots, slot_owner_of_tenant("other")).await)
            .await;
    assert!(!slots.is_full_for_every_tenant(), "other tenants have places");
    drop(first);
    let _next = assert_already_running_and_return(spawn_waiting_build(&slots, limited()).await).await;
}

#[tokio::test]
async fn unlimited_slots_are_never_full() {
    let slots = BuildSlots::unlimited_except_for_tenants();
    let mut taken = Vec::new();
    for _ in 0..100 {
        taken.push(
            assert_already_running_and_return(spawn_waiting_build(&slots, owner_without_policy()).await)
                .await,
        );
    }
    assert!(!slots.is_full_for_every_tenant());
}
