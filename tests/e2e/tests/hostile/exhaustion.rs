//! Attacks by steps and builds that use up processes, memory, processors, disk, logs, time, and the functions' memory.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    crafted_layer::CraftedLayerBuilder,
    flood::tar_of_large_attributes_without_end,
    network_namespace::find_first_process,
    testbed::step_process_id,
};

use crate::{
    attack::{
        AttackDescription, HonestNeighbour, Outcome, Outcomes, describe_reply_status_and_error_or_text,
    },
    world::AttackWorld,
};

pub(crate) const ATTACKS: &[AttackDescription] = &[
    AttackDescription {
        name: "fork-bomb",
        attempts: "starts processes without a limit in a step",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "memory-hog",
        attempts: "reads the limit on the memory of a step, and exceeds it if it is at most 2 GiB",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "processor-hog",
        attempts: "reads the limit on the processors of a step, or its share of them",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "disk-filler",
        attempts: "finds the machine's file system under a step, which it could fill",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "log-flood",
        attempts: "prints 256 MiB in a step, to fill memory, disk and the answer",
        stopped_with: &[200],
    },
    AttackDescription {
        name: "endless-step",
        attempts: "outlives its time limit by a longer `timeout`, ignored signals, and a process in the background",
        stopped_with: &[422],
    },
    AttackDescription {
        name: "builder-memory",
        attempts: "has builder-fn killed for memory by signed tars: attributes, nested and huge configurations",
        stopped_with: &[200, 400, 429],
    },
];

/// The memory limit of builder-fn in stack.yml and the chart.
const BUILDER_MEMORY_LIMIT_BYTES: usize = 256 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn no_build_exhausts_the_machine_or_a_function() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "exhaustion").await?;
    let mut outcomes = Outcomes::default();
    check_and_exceed_limits_of_step(&world, &mut outcomes).await?;
    outcomes.add_outcome("log-flood", print_256_mib_and_measure_builder(&world).await?);
    outcomes.add_outcome("endless-step", run_endless_step().await?);
    outcomes.add_outcome("builder-memory", fill_builder_memory().await?);
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// The limits of a step, as the kernel enforces them; `None` means that there is none.
#[derive(Debug, Default)]
struct StackCgroupLimits {
    processes: Option<u64>,
    memory: Option<u64>,
    processor: Option<String>,
}

impl StackCgroupLimits {
    /// Reads the limits of a process from its control groups, up to those of the stack.
    fn of_process(pid: u32) -> Result<Self> {
        let machine = fs::read_to_string("/proc/meminfo")?;
        let machine: u64 = machine
            .split_whitespace()
            .nth(1)
            .context("/proc/meminfo")?
            .parse()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mut limits = Self::default();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let root = match controllers {
                "" => first_existing_path_or_cgroup_root(&["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]),
                named => first_existing_path_or_cgroup_root(&[&format!(
                    "/sys/fs/cgroup/{}",
                    named.trim_start_matches("name=")
                )]),
            };
            let mut group = Path::new(path);
            // Groups above the stack's belong to the machine.
            while group.to_string_lossy().contains("slipway") {
                limits.lower_to_group_limits(
                    &root.join(group.strip_prefix("/").unwrap_or(group)),
                    machine << 10,
                );
                group = group.parent().unwrap_or(Path::new("/"));
            }
        }
        Ok(limits)
    }

    /// Lowers the limits to those of a control group; a memory limit of the whole machine's size is none.
    fn lower_to_group_limits(&mut self, group: &Path, machine_memory_bytes: u64) {
        let number =
            |file: &str| -> Option<u64> { fs::read_to_string(group.join(file)).ok()?.trim().parse().ok() };
        let lower = |own: Option<u64>, other: Option<u64>| own.into_iter().chain(other).min();
        self.processes = lower(self.processes, number("pids.max"));
        for file in ["memory.limit_in_bytes", "memory.max"] {
            self.memory = lower(
                self.memory,
                number(file).filter(|limit| *limit < machine_memory_bytes),
            );
        }
        let quota = number("cpu.cfs_quota_us").map(|quota| format!("{quota} us"));
        let share = number("cpu.shares")
            .filter(|share| *share < 1024)
            .map(|share| format!("a share of {share}"));
        let weight = number("cpu.weight")
            .filter(|weight| *weight < 100)
            .map(|weight| format!("a weight of {weight}"));
        let maximum = fs::read_to_string(group.join("cpu.max"))
            .ok()
            .filter(|text| !text.starts_with("max"));
        let own = [quota, share, weight, maximum].into_iter().flatten().next();
        self.processor = self.processor.take().or(own);
    }
}

fn first_existing_path_or_cgroup_root(candidates: &[&str]) -> PathBuf {
    let exists = candidates.iter().find(|path| Path::new(path).exists());
    PathBuf::from(exists.unwrap_or(&"/sys/fs/cgroup"))
}

/// Reads the limits of a running step, and exceeds those on processes and memory if they exist and are small. Nothing
/// else is exceeded: the machine has other users.
async fn check_and_exceed_limits_of_step(world: &AttackWorld, outcomes: &mut Outcomes) -> Result<()> {
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let gate = "gate-of-the-limits";
    let source = BuildContext::dockerfile(format!("FROM {base}\nRUN {}\n", gated_command(gate)));
    let config = json!({ "image": world.mallory.image("limits", "1"), "skipPush": true });
    let (client, tar) = (
        world.mallory.client.clone(),
        source.tar_with_config_last(&config)?,
    );
    let running = tokio::spawn(async move { client.post_signed(tar).await });
    world.testbed.wait_for_step(gate, true).await?;
    let pid = step_process_id(gate)?.context("the step has ended")?;
    let limits = StackCgroupLimits::of_process(pid)?;
    let (step, machine) = (
        rustix::fs::statvfs(format!("/proc/{pid}/root"))?,
        rustix::fs::statvfs("/")?,
    );
    world.testbed.open_gate_of_step(gate)?;
    let read = running.await??;

    let step_of = async |script: String| {
        world
            .mallory
            .build_dockerfile_without_push_or_cache("limits", format!("FROM {base}\nRUN {script}\n"))
            .await
    };
    let outcome = match limits.processes {
        Some(most) if most <= 32_768 => {
            let count = most + 64;
            let bomb = |count: u64| {
                format!(
                    "i=0; while [ $i -lt {count} ]; do sleep 60 & i=$((i+1)); done; echo started $((i+0)) of all"
                )
            };
            let few = step_of(bomb(8)).await?;
            ensure!(
                few.text.contains("started 8 of all"),
                "eight processes: {}",
                few.text
            );
            let reply = step_of(bomb(count)).await?;
            let all = reply.text.contains(&format!("started {count} of all"));
            Outcome::of_reply(all, &reply).succeeded_too_if(false, format!("a limit of {most}"))
        }
        other => Outcome::success(format!("the limit is {other:?} processes")),
    };
    outcomes.add_outcome("fork-bomb", outcome);
    let outcome = match limits.memory {
        Some(most) if most <= 2 << 30 => {
            // dd fills a buffer of this size.
            let take = |bytes: u64| format!("dd if=/dev/zero of=/dev/null bs={bytes} count=1; echo code $?");
            let little = step_of(take(1 << 20)).await?;
            ensure!(little.text.contains("code 0"), "1 MiB of memory: {}", little.text);
            let reply = step_of(take(most + (64 << 20))).await?;
            Outcome::of_reply(reply.text.contains("code 0"), &reply)
                .succeeded_too_if(false, format!("a limit of {most} bytes"))
        }
        // This machine has other users, who need the memory.
        Some(most) => Outcome::of_status(false, read.status, format!("a limit of {most} bytes")),
        None => Outcome::success("no limit"),
    };
    outcomes.add_outcome("memory-hog", outcome);
    let evidence = format!("the limit is {:?}", limits.processor);
    outcomes.add_outcome(
        "processor-hog",
        Outcome::of_status(limits.processor.is_none(), read.status, evidence),
    );
    let is_machines = (step.f_blocks * step.f_frsize, step.f_fsid)
        == (machine.f_blocks * machine.f_frsize, machine.f_fsid)
        || step.f_blocks * step.f_frsize == machine.f_blocks * machine.f_frsize;
    let evidence = format!(
        "the step's file system has {} MiB",
        (step.f_blocks * step.f_frsize) >> 20
    );
    outcomes.add_outcome(
        "disk-filler",
        Outcome::of_status(is_machines, read.status, evidence),
    );
    Ok(())
}

/// The longest time to print 256 MiB in a step. With ten times as many runnable processes as processors, it took 45 s.
const MAX_LOG_FLOOD_TIME: Duration = Duration::from_secs(120);

/// Prints 256 MiB in a step. The attack succeeded if the answer, the builder's memory or the time is over its limit.
async fn print_256_mib_and_measure_builder(world: &AttackWorld) -> Result<Outcome> {
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let before = world.builder.peak_memory_bytes()?;
    let started = Instant::now();
    let script =
        "yes 'a line that is not short, and that says nothing at all, again and again' | head -c 268435456";
    let reply = world
        .mallory
        .build_dockerfile_without_push_or_cache("log", format!("FROM {base}\nRUN {script}\n"))
        .await?;
    let (took, more) = (
        started.elapsed(),
        world.builder.peak_memory_bytes()?.saturating_sub(before),
    );
    ensure!(
        reply.status == 200,
        "the step did not print all: {}",
        describe_reply_status_and_error_or_text(&reply)
    );
    let size = reply.text.len();
    let evidence = format!(
        "{} KiB in the answer, {} MiB more memory, {took:.1?}",
        size >> 10,
        more >> 20
    );
    let is_bounded = size < 8 << 20 && more < 48 << 20 && took < MAX_LOG_FLOOD_TIME;
    Ok(Outcome::of_status(!is_bounded, reply.status, evidence))
}

/// Runs a step that ignores signals. The attack succeeded if a process of it is left, or it ran for three times its
/// limit.
async fn run_endless_step() -> Result<Outcome> {
    const STEP_TIME_LIMIT: Duration = Duration::from_secs(6);
    let limit = format!("{}s", STEP_TIME_LIMIT.as_secs());
    let world = AttackWorld::start_with_settings(&[("exec_timeout", &limit)], &[]).await?;
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let marker = "98765";
    let source = BuildContext::dockerfile(format!(
        "FROM {base}\nRUN trap '' TERM INT HUP; setsid sleep {marker} & while true; do sleep {marker}; done\n"
    ));
    let config = json!({
        "image": world.mallory.image("endless", "1"), "skipPush": true, "noCache": true, "timeout": "100h",
    });
    let started = Instant::now();
    let reply = world.mallory.build(&source, &config).await?;
    let took = started.elapsed();
    ensure!(
        reply.text.contains("time limit"),
        "the step did not run until its limit: {}",
        reply.text
    );
    world.testbed.wait_for_step(marker, false).await?;
    // The kernel ends the processes of a container after its first one.
    let no_sleep_is_left = || Ok(find_first_process("sleep", marker).is_err());
    let ending = world
        .testbed
        .wait_until_condition("no process of the step is left", no_sleep_is_left);
    let ended = ending.await.is_ok();
    Ok(Outcome::of_reply(false, &reply).succeeded_too_if(
        !ended || took > 3 * STEP_TIME_LIMIT,
        format!("ended after {took:.1?}"),
    ))
}

/// Sends 48 signed tars at once whose parts the builder parses in memory. The attack succeeded if the builder no longer
/// answers, or its peak memory is over [`BUILDER_MEMORY_LIMIT_BYTES`].
async fn fill_builder_memory() -> Result<Outcome> {
    let world = AttackWorld::start().await?;
    let config = |more: &str| {
        format!(
            "{{\"image\": \"{}\", \"skipPush\": true{more}}}",
            world.mallory.image("memory", "1")
        )
    };
    let plain = |config: String| -> Result<Vec<u8>> {
        let layer =
            CraftedLayerBuilder::new().with_file("context/Dockerfile", 0o644, b"FROM scratch\nCOPY . /\n")?;
        Ok(layer
            .with_file("com.openfaas.docker.config", 0o644, config.as_bytes())?
            .finish()?
            .tar)
    };
    let nested = format!(", \"deploy\": {}1{}", "[".repeat(400_000), "]".repeat(400_000));
    let arguments: String = (0..40_000)
        .map(|number| format!("\"A{number}\": \"value\","))
        .collect();
    let arguments = format!(", \"buildArgs\": {{{}}}", arguments.trim_end_matches(','));
    let attributes = [tar_of_large_attributes_without_end()?, plain(config(""))?].concat();
    let tars = [plain(config(&nested))?, plain(config(&arguments))?, attributes];
    let mut sending = tokio::task::JoinSet::new();
    // Each of them many times at once.
    for tar in tars.iter().cycle().take(48) {
        let (client, tar) = (world.mallory.client.clone(), tar.clone());
        sending.spawn(async move { client.post_signed(tar).await });
    }
    let mut outcome = Outcome::before_first_attempt();
    let mut parsed_count = 0;
    for reply in sending.join_all().await {
        let reply = reply?;
        parsed_count += usize::from(reply.status != 429);
        outcome = outcome.and(Outcome::of_reply(false, &reply));
    }
    ensure!(parsed_count > 0, "every tar was rejected before it was parsed");
    let alive = world
        .builder
        .get("/healthz")
        .await
        .is_ok_and(|(status, _)| status == 200);
    let peak = world.builder.peak_memory_bytes().unwrap_or(usize::MAX);
    Ok(outcome.succeeded_too_if(
        !alive || peak > BUILDER_MEMORY_LIMIT_BYTES,
        format!("a peak of {} MiB", peak >> 20),
    ))
}
