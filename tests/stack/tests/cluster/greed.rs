//! Build steps that take all memory, all processes or all disk space of the chart's daemon, beside a neighbour's build.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{
    certificates::restarts_of_daemon,
    chart,
    gateway::GatewayClient,
    hostile::{Tenants, merge},
    kubectl_output,
    step::log_of,
};

/// The duration of the neighbour's build beside each attack, which is long enough that the attack happens in it.
const NEIGHBOUR: &str = "RUN n=0; while [ $n -lt 60 ]; do dd if=/dev/urandom of=/$n bs=64k count=4 2>/dev/null || exit 1; \
                         sleep 0.1; n=$((n + 1)); done; [ $(ls /59 | wc -l) = 1 ] && echo right";

/// The longest time for a greedy build, which is to fail and not to hang.
const GREEDY_TIMEOUT: Duration = Duration::from_secs(180);

/// A greedy step, and the line of the guard that ends it; `None` if the kernel may be faster.
struct Greed {
    step: &'static str,
    line_of_guard: Option<&'static str>,
}

/// The limit on a step is 256 MiB, that of the pod 1 GiB. The steps wait, so that the guard sees them on a busy machine.
const GREED: [Greed; 4] = [
    Greed {
        step: "RUN head -c 400m /dev/zero | tail -c 399m | (sleep 100; cat >/dev/null)",
        line_of_guard: Some("uses more memory"),
    },
    Greed {
        step: "RUN --mount=type=tmpfs,target=/in-memory dd if=/dev/zero of=/in-memory/file bs=1M count=400 && sleep 100",
        line_of_guard: Some("uses more memory"),
    },
    // More than the pod has, as fast as possible, in processes of which none is large.
    Greed {
        step: "RUN for n in 1 2 3 4 5 6 7 8 9 10; do (head -c 220m /dev/zero | tail -c 219m | (sleep 100; cat >/dev/null)) & done; wait",
        line_of_guard: None,
    },
    // Fewer than the limit on all processes, at which those of the neighbour would fail too.
    Greed {
        step: "RUN n=0; while [ $n -lt 420 ]; do sleep 100 & n=$((n + 1)); done; wait",
        line_of_guard: Some("has most of 512 processes"),
    },
];

fn values() -> Value {
    json!({
        "builder": { "steps": { "memory": "256Mi" } },
        "buildkit": {
            "maxProcesses": 512,
            "resources": { "limits": { "memory": "1Gi" } },
        },
    })
}

pub(crate) async fn a_greedy_step_ends_and_neither_the_daemon_nor_a_neighbours_build_does(
    cluster: &Cluster,
    gateway: &Arc<GatewayClient>,
    tenants: &Tenants,
) {
    let mut all = tenants.values(cluster);
    merge(&mut all, values());
    chart::upgrade_with(cluster, &all);
    let before = restarts_of_daemon(cluster);
    for (number, greed) in GREED.iter().enumerate() {
        let Tenants { victim, mallory } = tenants;
        let neighbour = {
            let (victim, gateway) = (victim.clone(), Arc::clone(gateway));
            tokio::spawn(async move {
                let dockerfile = victim.dockerfile(NEIGHBOUR);
                victim
                    .build(&gateway, &format!("neighbour-{number}"), &dockerfile)
                    .await
            })
        };
        let dockerfile = mallory.dockerfile(greed.step);
        let seen = guard_lines(cluster).len();
        let greedy = mallory.build(gateway, "greedy", &dockerfile);
        let greedy = tokio::time::timeout(GREEDY_TIMEOUT, greedy).await;
        let greedy = greedy.unwrap_or_else(|_| panic!("{} goes on", greed.step));
        assert_ne!(greedy.status, 200, "{}: {greedy:?}", greed.step);
        let lines = guard_lines(cluster).split_off(seen);
        println!("{}: {} {lines:?}", greed.step, greedy.status);
        if let Some(line) = greed.line_of_guard {
            assert!(
                lines.iter().any(|found| found.contains(line)),
                "{}: {lines:?}",
                greed.step
            );
        }
        let neighbour = neighbour.await.unwrap();
        assert_eq!(neighbour.status, 200, "beside {}: {neighbour:?}", greed.step);
        assert!(log_of(&neighbour).contains("right"), "{neighbour:?}");
        assert_eq!(restarts_of_daemon(cluster), before, "{}", greed.step);
    }
}

/// Returns what the guard in the daemon's pod has logged.
fn guard_lines(cluster: &Cluster) -> Vec<String> {
    let log = kubectl_output(
        cluster,
        &["--namespace", "openfaas", "logs", "slipway-buildkit-0"],
        "",
    );
    let lines = log.lines().filter(|line| line.starts_with("guard: "));
    lines.map(str::to_owned).collect()
}
