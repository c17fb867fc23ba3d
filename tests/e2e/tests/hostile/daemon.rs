//! Attacks by a build step on what it may reach: the daemon, the stack's other parts, other processes and the kernel.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_e2e::{
    bait_server::BaitServer,
    build_context::{BuildContext, gated_command},
    certificates::CertificateAuthority,
    network_namespace::{NetworkNamespace, find_first_process},
    testbed::step_process_id,
};

use crate::{
    attack::{AttackDescription, HonestNeighbour, Outcome, Outcomes, concat_attacks},
    probe::{self, ScriptAttack},
    world::AttackWorld,
};

/// The build argument of the victim's running build. The probes look for this text; it is in none of their variables.
const VICTIM_BUILD_ARGUMENT_VALUE: &str = "an-argument-of-the-victim";

/// The attacks by scripts in a build step. Their variables have IP addresses: `$ADDRESSES` of the stack and the daemon,
/// `$STEP` of the victim's step, `$NEIGHBOURS` of the stack's functions, `$MACHINE` of a server on this machine, with
/// its port. `$DISK` has the numbers of the device with the machine's root.
const PROBES: [ScriptAttack; 23] = [
    ScriptAttack::with_script(
        "daemon-by-address",
        "lists the daemon's workers with buildctl, at every address of the stack",
        "for at in $ADDRESSES; do timeout 3 buildctl --timeout 2 --addr tcp://$at:1234 debug workers && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "daemon-by-default-route",
        "lists the daemon's workers with buildctl, at the step's default route",
        "at=$(ip route | awk '/^default/ { print $3; exit }'); [ \"$at\" ] || exit 1\n\
         timeout 3 buildctl --timeout 2 --addr tcp://$at:1234 debug workers",
    ),
    ScriptAttack::with_script(
        "other-builds-arguments",
        "reads the arguments of a neighbour's running build from the daemon's history",
        "for at in $ADDRESSES $(ip route | awk '/^default/ { print $3; exit }'); do\n\
         timeout 3 buildctl --timeout 2 --addr tcp://$at:1234 debug histories --format '{{json .}}' | grep -o an-argument-of-the-victim | head -n 1 | grep . && exit 0\n\
         done; exit 1",
    ),
    ScriptAttack::with_script(
        "daemon-by-socket-names",
        "finds the daemon's sockets in the step's network namespace",
        "grep -E 'buildkit|containerd' /proc/net/unix",
    ),
    ScriptAttack::with_script(
        "daemon-by-socket-files",
        "finds a socket of the daemon or of containerd among the step's files",
        "for at in /run/buildkit/buildkitd.sock /run/containerd/containerd.sock /var/run/docker.sock /dev/*.sock; do\n\
         [ -S $at ] && echo $at && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "nats-by-loopback",
        "greets the queue's NATS server",
        "for at in $ADDRESSES; do printf 'CONNECT {\"verbose\":true}\\r\\nPING\\r\\n' | nc -w 2 $at 4222 | grep PONG && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "nats-forged-by-a-step",
        "publishes a message of its own in NATS",
        "for at in $ADDRESSES; do\n\
         printf 'CONNECT {\"verbose\":true}\\r\\nPUB hostile.forged 6\\r\\nforged\\r\\nPING\\r\\n' | nc -w 2 $at 4222 | grep -c '+OK' | grep 2 && exit 0\n\
         done; exit 1",
    ),
    ScriptAttack::with_script(
        "nats-monitor",
        "reads the monitoring page of NATS",
        "for at in $ADDRESSES; do http $at 8222 /varz | grep server_id && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "provider-from-a-step",
        "reads the provider's health",
        "for at in $ADDRESSES; do http $at 8081 /healthz | grep HTTP/ && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "gateway-from-a-step",
        "calls the gateway",
        "for at in $ADDRESSES; do http $at 8080 /healthz | grep HTTP/ && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "gateway-metrics-from-a-step",
        "reads the gateway's metrics, which name all functions",
        "for at in $ADDRESSES; do http $at 8082 /metrics | grep -m 1 gateway && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "registry-from-a-step",
        "sends the registry requests of its own",
        "for at in $ADDRESSES; do http $at 5000 /v2/ | grep HTTP/ && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "functions-from-a-step",
        "calls functions without the gateway",
        "for at in $NEIGHBOURS; do WAIT=1 http $at 8080 /_/health | grep HTTP/ && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "function-metrics-from-a-step",
        "reads the metrics of builder-fn and deployer-fn",
        "for at in $NEIGHBOURS; do WAIT=1 http $at 8081 /metrics | grep -m 1 slipway && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "machine-from-a-step",
        "reaches a service of the machine that runs the daemon",
        "http ${MACHINE%:*} ${MACHINE#*:} / | grep bait",
    ),
    ScriptAttack::with_script(
        "network-of-others",
        "connects to a service within a neighbour's running step",
        "for at in $STEP $ADDRESSES; do timeout 3 nc -w 2 $at 4999 < /dev/null | grep step-of-the-victim && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "processes-of-others",
        "finds the daemon or a neighbour's step in /proc",
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -oE 'buildkit[d]|gate-of-the-[v]ictim' | head -n 1 | grep .",
    ),
    ScriptAttack::with_script(
        "environment-of-others",
        "reads a neighbour's build argument from the environment of its step",
        "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep '[a]n-argument-of-the-victim'",
    ),
    ScriptAttack::with_script(
        "files-of-the-daemon-by-proc",
        "reads the daemon's files through /proc/PID/root",
        "for at in /proc/[0-9]*/root; do ls $at/root/.local $at/root/.cache && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "kernel-settings",
        "writes to /proc/sys and /sys, through which a program runs on the machine",
        "for at in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /sys/kernel/uevent_helper; do\n\
         [ -e $at ] && cat $at > /tmp/value && cat /tmp/value > $at && echo $at && exit 0; done; exit 1",
    ),
    ScriptAttack::with_script(
        "kernel-memory",
        "reads the machine's memory and kernel log",
        "head -c 1 /proc/kcore > /tmp/kcore && [ -s /tmp/kcore ] && exit 0; dmesg | grep -m 1 . && exit 0; ls /dev/mem /dev/kmsg",
    ),
    ScriptAttack::with_script(
        "mount",
        "mounts a file system",
        "mkdir -p /tmp/mount; mount -t tmpfs none /tmp/mount && exit 0; mount -o bind / /tmp/mount",
    ),
    ScriptAttack::with_script(
        "device-of-the-disk",
        "makes a device of the machine's disk and reads it",
        "mknod /tmp/disk b $DISK && dd if=/tmp/disk bs=512 count=1 | wc -c | grep 512",
    ),
];

const PROBE_ATTACKS: [AttackDescription; 23] = probe::attacks_of_probes(&PROBES);

const DAEMON_ATTACK_WITHOUT_VALID_CERTIFICATE: AttackDescription = AttackDescription {
    name: "daemon-without-a-certificate",
    attempts: "lists the daemon's workers from the functions' network, without a certificate and with a forged one",
    stopped_with: &[],
};

const ALL_ATTACKS: [AttackDescription; 24] =
    concat_attacks(&PROBE_ATTACKS, &[DAEMON_ATTACK_WITHOUT_VALID_CERTIFICATE]);

pub(crate) const ATTACKS: &[AttackDescription] = &ALL_ATTACKS;

#[tokio::test(flavor = "multi_thread")]
async fn a_build_step_reaches_neither_the_daemon_nor_the_stack_nor_other_processes() -> Result<()> {
    let world = AttackWorld::start().await?;
    let _parts = world.testbed.share_parts().await;
    let neighbour = HonestNeighbour::start_building_repeatedly(&world, "daemon").await?;

    // A build of the victim runs all the while, with a service in its step.
    let gate = "gate-of-the-victim";
    let base = world.testbed.build_busybox_once_and_get_name().await?;
    let serving = "(while true; do echo step-of-the-victim | nc -l -p 4999; done) & ";
    let gated = BuildContext::dockerfile(format!(
        "FROM {base}\nARG TOKEN\nRUN {serving}{}\n",
        gated_command(gate)
    ));
    let config = json!({
        "image": world.victim.image("gated", "1"), "skipPush": true, "buildArgs": { "TOKEN": VICTIM_BUILD_ARGUMENT_VALUE },
    });
    let (client, tar) = (world.victim.client.clone(), gated.tar_with_config_last(&config)?);
    let running = tokio::spawn(async move { client.post_signed(tar).await });
    world.testbed.wait_for_step(gate, true).await?;

    let stack = &world.testbed.stack;
    let own = NetworkNamespace::of_process(stack.supervisor_pid()?)?;
    let daemon = NetworkNamespace::of_process(find_first_process(
        "buildkitd",
        &stack.dir.root.to_string_lossy(),
    )?)?;
    let step = NetworkNamespace::of_process(step_process_id(gate)?.context("the step has ended")?)?;
    let machine = BaitServer::start((machine_address_on_stack_network(&own)?, 0))?;
    // What the probes look for is there: each would be found from where it may be reached.
    require_greeting_of_victims_step(&step)?;
    let machines_port = machine.address().port();
    require_listener_on_any_address(&own, &[machine.address().ip().to_string()], machines_port)?;
    let mut addresses = [
        daemon.ipv4_addresses_with_loopback_last()?,
        own.ipv4_addresses_with_loopback_last()?,
    ]
    .concat();
    addresses.dedup();
    let neighbours = own.program_output(
        "ip",
        &[
            "neigh",
            "show",
            "dev",
            "openfaas0",
            "nud",
            "reachable",
            "nud",
            "stale",
            "nud",
            "delay",
        ],
    )?;
    let neighbours: Vec<_> = neighbours
        .split_whitespace()
        .filter(|word| word.starts_with("10.62."))
        .collect();
    let variables = BTreeMap::from([
        ("ADDRESSES", addresses.join(" ")),
        ("NEIGHBOURS", neighbours.join(" ")),
        ("STEP", step.ipv4_addresses_with_loopback_last()?.join(" ")),
        ("MACHINE", machine.address().to_string()),
        ("DISK", root_or_first_disk_numbers_for_mknod()?),
    ]);
    require_listener_on_any_address(&own, &daemon.ipv4_addresses_with_loopback_last()?, 1234)?;
    for port in [4222, 5000, 8080, 8081, 8082, 8222] {
        require_listener_on_any_address(&own, &addresses, port)?;
    }
    let neighbours: Vec<_> = neighbours.iter().map(|address| (*address).to_owned()).collect();
    for port in [8080, 8081] {
        require_listener_on_any_address(&own, &neighbours, port)?;
    }
    let buildctl = fs::read(&stack.tools.buildctl).context("buildctl")?;
    let source = BuildContext::new().with_file_of_mode("tools/buildctl", buildctl, 0o755);
    let mut outcomes = Outcomes::default();
    let controls = [("control-of-buildctl", "buildctl --version | grep buildkit")];
    outcomes.extend(
        probe::run_probes_and_controls(&world, "probes", source, &variables, &controls, &PROBES).await?,
    );

    outcomes.add_outcome(
        "daemon-without-a-certificate",
        list_workers_without_own_certificate(&world, &own, &daemon)?,
    );

    world.testbed.open_gate_of_step(gate)?;
    let reply = running.await??;
    assert_eq!(reply.status, 200, "{}", reply.text);
    neighbour.stop_and_assert_builds_correct_and_on_time().await?;
    outcomes.append_to_report_file_and_assert_all_stopped(ATTACKS)
}

/// Tries to list the daemon's workers from the stack's network, without a certificate and with one of another
/// authority. Fails if they cannot be listed with the builder's certificate either.
fn list_workers_without_own_certificate(
    world: &AttackWorld,
    stack_network: &NetworkNamespace,
    daemon_network: &NetworkNamespace,
) -> Result<Outcome> {
    let stack = &world.testbed.stack;
    let forged = CertificateAuthority::new("forged")?.issue_certificate("builder-fn")?;
    let authority = stack.payload_secret.with_file_name("buildkit-ca");
    let file = |name: &str, text: &str| -> Result<String> {
        let path = world.folder().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (certificate, key) = (
        file("forged.pem", &forged.certificate)?,
        file("forged.key", &forged.key)?,
    );
    let authority = authority.display().to_string();
    let with_forged = [
        "--tlscacert",
        &authority,
        "--tlscert",
        &certificate,
        "--tlskey",
        &key,
    ];
    let genuine_file = |name: &str| stack.payload_secret.with_file_name(name).display().to_string();
    let (certificate, key) = (genuine_file("buildkit-cert"), genuine_file("buildkit-key"));
    let with_genuine = [
        "--tlscacert",
        &authority,
        "--tlscert",
        &certificate,
        "--tlskey",
        &key,
    ];
    let buildctl = stack.tools.buildctl.to_str().context("the path is not UTF-8")?;
    let list_workers = |address: &str, options: &[&str]| {
        let address = format!("tcp://{address}:1234");
        let command = ["--timeout", "5", "--addr", &address, "debug", "workers"];
        stack_network.program_output(buildctl, &[options, &command].concat())
    };
    let addresses = daemon_network.ipv4_addresses_with_loopback_last()?;
    // With the builder's own certificate, the same command lists them.
    let genuine: Vec<_> = addresses
        .iter()
        .map(|address| list_workers(address, &with_genuine))
        .collect();
    ensure!(
        genuine.iter().any(Result::is_ok),
        "buildctl lists no workers with the builder's certificate either: {genuine:#?}"
    );
    let mut outcome = Outcome::before_first_attempt();
    for address in &addresses {
        for options in [&[][..], &with_forged] {
            match list_workers(address, options) {
                Ok(workers) => return Ok(Outcome::success(workers)),
                Err(error) => outcome = outcome.and(Outcome::without_answer(false, format!("{error:#}"))),
            }
        }
    }
    Ok(outcome)
}

/// Returns the address of this machine on the network that it shares with the stack.
pub(crate) fn machine_address_on_stack_network(namespace: &NetworkNamespace) -> Result<IpAddr> {
    let addresses = namespace.program_output("ip", &["-4", "-o", "address", "show", "dev", "host0"])?;
    let own = addresses
        .split_whitespace()
        .find(|word| word.contains('/'))
        .context("no address")?;
    let own = own.split('/').next().unwrap_or_default();
    // The network has two addresses: the first is the machine's, the second the stack's.
    let outer = own
        .strip_suffix(".2")
        .with_context(|| format!("not the stack's address: {own}"))?;
    Ok(format!("{outer}.1").parse()?)
}

/// Returns the numbers of a device with a disk of this machine, such as `254 0`: the root's, or the first that the
/// kernel lists if the root is on none.
fn root_or_first_disk_numbers_for_mknod() -> Result<String> {
    let (major, minor) = root_or_first_disk_major_and_minor()?;
    Ok(format!("{major} {minor}"))
}

/// Returns the major and minor number of a device with a disk of this machine: the root's, or the first that the kernel
/// lists if the root is on none. A number without a device would prove nothing: nobody can read it.
pub(crate) fn root_or_first_disk_major_and_minor() -> Result<(u32, u32)> {
    let root = rustix::fs::stat("/")?.st_dev;
    let (major, minor) = (rustix::fs::major(root), rustix::fs::minor(root));
    if fs::exists(format!("/sys/dev/block/{major}:{minor}"))? {
        return Ok((major, minor));
    }
    let listed = fs::read_to_string("/proc/partitions")?;
    let mut numbers = listed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    });
    numbers.next().context("this machine has no disk")
}

/// Fails unless a service listens at this port of one of the addresses, for a client in the namespace.
fn require_listener_on_any_address(
    namespace: &NetworkNamespace,
    addresses: &[String],
    port: u16,
) -> Result<()> {
    let listens = namespace.run_inside(|| {
        Ok(addresses
            .iter()
            .filter_map(|address| address.parse::<IpAddr>().ok())
            .any(|address| connect_and_shut_down_writing(SocketAddr::new(address, port)).is_ok()))
    })?;
    ensure!(
        listens,
        "nothing listens at port {port} of {addresses:?}, so no probe could reach it"
    );
    Ok(())
}

/// Fails unless the service in the victim's step greets a client in the step.
fn require_greeting_of_victims_step(step: &NetworkNamespace) -> Result<()> {
    let addresses = step.ipv4_addresses_with_loopback_last()?;
    step.run_inside(|| {
        // The service is started anew after each connection.
        for _ in 0..100 {
            for address in &addresses {
                let mut text = String::new();
                if let Ok(mut stream) = connect_and_shut_down_writing(SocketAddr::new(address.parse()?, 4999))
                    && stream.read_to_string(&mut text).is_ok()
                    && text.contains("step-of-the-victim")
                {
                    return Ok(());
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        anyhow::bail!("the service in the victim's step does not greet at {addresses:?}")
    })
}

fn connect_and_shut_down_writing(address: SocketAddr) -> std::io::Result<TcpStream> {
    const CONNECT_AND_READ_TIMEOUT: Duration = Duration::from_secs(5);
    let stream = TcpStream::connect_timeout(&address, CONNECT_AND_READ_TIMEOUT)?;
    stream.set_read_timeout(Some(CONNECT_AND_READ_TIMEOUT))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(stream)
}
