//! Tests of what build steps and BuildKit reach, and of what a build can use of the machine.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use slipway_stack::{
    BuildkitAndStepsPublicAccess, LauncherError, ProgressSink, Stack, StackOptions, StepResourceLimits,
    stop_named_stack,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{STACK_START_LOCK, isolation::own_outside_address, remove_stack};

/// The resolver of the stack: the only private address that build steps reach unless the options allow others.
const STACK_RESOLVER_ADDRESS: &str = "10.0.2.3:53";

/// The output and outcome of a build.
struct FinishedBuild {
    succeeded: bool,
    output: String,
}

impl FinishedBuild {
    /// Returns the words that follow `marker` in the output of steps.
    fn texts_after_marker_in_output(&self, marker: &str) -> Vec<&str> {
        let lines = self.output.lines();
        let after = lines.filter_map(|line| line.split_once(marker).map(|(_, rest)| rest.trim()));
        // The text of the command, which BuildKit prints too, has a variable.
        after.filter(|word| !word.contains('$')).collect()
    }
}

/// Starts a new stack without base images and Slipway, with changed options; an earlier one is removed with its data.
async fn start_fresh_bare_stack_with_options(
    name: &str,
    change: impl FnOnce(&mut StackOptions),
) -> Result<Stack, LauncherError> {
    stop_named_stack(name, true, &ProgressSink::discarding()).await?;
    let _one = STACK_START_LOCK.lock().await;
    let mut options = StackOptions::with_stack_name(name);
    (options.images, options.deploy) = (false, false);
    change(&mut options);
    Stack::start_stack(&options, &ProgressSink::to_stderr()).await
}

/// Starts a build of these instructions on an image with busybox.
fn start_build_on_busybox(stack: &Stack, scratch_folder: &Path, added_instructions: &str) -> Child {
    start_tenant_build_on_busybox(stack, scratch_folder, added_instructions, "")
}

/// Starts a build as builder-fn starts those of a tenant; without a name, it is nobody's.
fn start_tenant_build_on_busybox(stack: &Stack, context: &Path, instructions: &str, tenant: &str) -> Child {
    fs::create_dir_all(context).unwrap();
    fs::copy("/bin/busybox", context.join("busybox")).unwrap();
    let dockerfile = format!(
        "FROM scratch\nADD busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n{instructions}\n"
    );
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let mut buildctl = Command::new(&stack.tools.buildctl);
    buildctl.args([
        "--addr",
        &stack.buildkit_host,
        "build",
        "--no-cache",
        "--progress=plain",
    ]);
    if !tenant.is_empty() {
        buildctl.args(["--opt", &format!("hostname={tenant}")]);
    }
    buildctl.args(["--frontend", "dockerfile.v0", "--local"]);
    buildctl
        .arg(format!("context={}", context.display()))
        .arg("--local");
    buildctl.arg(format!("dockerfile={}", context.display()));
    buildctl
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    buildctl.spawn().unwrap()
}

/// Builds these instructions on an image with busybox, for no tenant, and waits for the end of the build.
async fn build_on_busybox(stack: &Stack, instructions: &str) -> FinishedBuild {
    tenant_build_on_busybox(stack, instructions, "").await
}

/// Builds these instructions on an image with busybox, as builder-fn does for a tenant, and waits for the end.
async fn tenant_build_on_busybox(stack: &Stack, instructions: &str, tenant: &str) -> FinishedBuild {
    let context = tempfile::tempdir().unwrap();
    let done = start_tenant_build_on_busybox(stack, context.path(), instructions, tenant)
        .wait_with_output()
        .await
        .unwrap();
    FinishedBuild {
        succeeded: done.status.success(),
        output: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

/// Returns the instruction that connects to each address and prints `reached ADDRESS` unless the connection is refused:
/// a connection that times out counts as reached.
fn instruction_that_prints_reached_unless_refused(addresses: &[String]) -> String {
    format!(
        "RUN for at in {}; do timeout 2 nc ${{at%:*}} ${{at#*:}} </dev/null >/dev/null 2>&1; \
         [ $? = 1 ] || echo reached $at; done",
        addresses.join(" ")
    )
}

/// Serves HTTP for a test: `/file` has a content, and any other path redirects to `target`.
fn serve_file_and_redirect_other_paths(listener: TcpListener, target: String) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or_default();
            let is_file = String::from_utf8_lossy(&request[..read]).contains(" /file");
            let answer = match is_file {
                true => "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx".to_owned(),
                false => format!(
                    "HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                ),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

/// Returns the stack's own address, in the network that joins it to the machine.
fn stack_address(stack: &Stack) -> String {
    let url = stack.gateway.url.trim_start_matches("http://");
    url.split(':').next().unwrap().to_owned()
}

#[tokio::test]
async fn builds_reach_no_other_build_and_no_service_but_the_resolver_and_the_registry_that_requires_a_password()
-> Result<(), LauncherError> {
    let name = "test-builds";
    let stack = start_fresh_bare_stack_with_options(name, |_| ()).await?;
    let own = stack_address(&stack);
    let machine = own.replace(".2", ".1");
    let on_machine = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = on_machine.local_addr().unwrap().port();
    let outside = own_outside_address().unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let mut closed = vec![format!("{machine}:{port}"), format!("{outside}:{port}")];
    for (host, ports) in [
        ("127.0.0.1", [1234, 4222, 8222].as_slice()),
        ("10.62.0.1", &[5000, 8080, 8081, 8082]),
        (&own, &[5000, 8080, 8082, 8090]),
        ("10.64.0.1", &[5000, 8080]),
        ("10.64.0.2", &[1234]),
        ("10.65.0.1", &[1234]),
        ("169.254.169.254", &[80]),
        ("168.63.129.16", &[80]),
        ("100.100.100.200", &[80]),
    ] {
        closed.extend(ports.iter().map(|port| format!("{host}:{port}")));
    }
    let all = [closed.as_slice(), &[STACK_RESOLVER_ADDRESS.to_owned()]].concat();
    let built = build_on_busybox(&stack, &instruction_that_prints_reached_unless_refused(&all)).await;
    assert!(built.succeeded, "{}", built.output);
    assert_eq!(
        built.texts_after_marker_in_output("reached "),
        [STACK_RESOLVER_ADDRESS],
        "{}",
        built.output
    );

    // The daemon reaches the registry, which requires a password.
    for at in closed.iter().filter(|at| !at.ends_with(":5000")) {
        let built = build_on_busybox(&stack, &format!("ADD http://{at}/ /x")).await;
        assert!(
            !built.succeeded && built.output.contains("connection refused"),
            "{at}: {}",
            built.output
        );
    }
    let built = build_on_busybox(&stack, &format!("ADD http://{own}:5000/v2/ /x")).await;
    assert!(built.output.contains("status 401"), "{}", built.output);

    let context = tempfile::tempdir().unwrap();
    let mut listening = start_build_on_busybox(
        &stack,
        context.path(),
        "RUN nc -l -p 9999 & echo listens; sleep 600",
    );
    let mut lines = BufReader::new(listening.stderr.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.trim_end().ends_with(" listens") {
            break;
        }
    }
    let others = (1..64)
        .map(|host| format!("10.65.0.{host}:9999"))
        .collect::<Vec<_>>();
    let built = build_on_busybox(&stack, &instruction_that_prints_reached_unless_refused(&others)).await;
    assert!(built.succeeded, "{}", built.output);
    assert_eq!(
        built.texts_after_marker_in_output("reached "),
        Vec::<&str>::new(),
        "{}",
        built.output
    );
    drop(listening);

    let socket = "RUN for at in /dev/otel-grpc.sock /run/buildkit; do [ ! -e $at ] || exit 9; done; \
                  ! env | grep ^OTEL_";
    let built = build_on_busybox(&stack, socket).await;
    assert!(
        built.succeeded,
        "the daemon has no socket in a step: {}",
        built.output
    );
    assert_only_a_certificate_opens_daemons_port(&stack).await?;
    remove_stack(name).await
}

/// Asserts that the daemon's port accepts builder-fn's certificate, and nobody without one.
async fn assert_only_a_certificate_opens_daemons_port(stack: &Stack) -> Result<(), LauncherError> {
    let network = format!("--net=/proc/{}/ns/net", stack.supervisor_pid()?);
    let workers = async |certificates: &[&str]| {
        let mut buildctl = Command::new("nsenter");
        buildctl.arg(&network).arg(&stack.tools.buildctl);
        buildctl.args(["--addr", "tcp://10.64.0.2:1234", "--timeout", "3"]);
        for (option, file) in ["--tlscacert", "--tlscert", "--tlskey"].iter().zip(certificates) {
            buildctl
                .arg(option)
                .arg(stack.dir.root.join("secrets").join(file));
        }
        buildctl.args(["debug", "workers"]).output().await.unwrap()
    };
    let certificates = ["buildkit-ca", "buildkit-cert", "buildkit-key"];
    let with = workers(&certificates).await;
    assert!(with.status.success(), "{with:?}");
    for missing in [[].as_slice(), &certificates[..1]] {
        let without = workers(missing).await;
        assert!(!without.status.success(), "{without:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_opens_an_address_for_builds_and_its_redirects_open_nothing() -> Result<(), LauncherError>
{
    let Some(address) = own_outside_address() else {
        // Without a network there is no address of this machine that a stack could reach.
        return Ok(());
    };
    let name = "test-allowed";
    let stack =
        start_fresh_bare_stack_with_options(name, |options| options.allowed = vec![address.to_string()])
            .await?;
    let listener = TcpListener::bind(SocketAddr::from((address, 0))).unwrap();
    let server = listener.local_addr().unwrap();
    serve_file_and_redirect_other_paths(listener, format!("{}/healthz", stack.gateway.url));
    let built = build_on_busybox(
        &stack,
        &format!("ADD http://{server}/file /x\nRUN wget -O- http://{server}/file"),
    )
    .await;
    assert!(built.succeeded, "{}", built.output);
    let built = build_on_busybox(&stack, &format!("ADD http://{server}/redirect /x")).await;
    assert!(
        !built.succeeded && built.output.contains("connection refused"),
        "{}",
        built.output
    );
    let built = build_on_busybox(&stack, &format!("RUN wget -O- http://{server}/redirect")).await;
    assert!(
        !built.succeeded && built.output.contains("refused"),
        "{}",
        built.output
    );
    remove_stack(name).await
}

/// An address of this machine that a stack takes for a public one, because it is added after the stack's start.
struct AddedPublicAddress(&'static str);

impl AddedPublicAddress {
    /// Adds the address to the loopback interface of this machine, until the value is dropped.
    fn add(address: &'static str) -> Self {
        let added = std::process::Command::new("ip")
            .args(["address", "add", &format!("{address}/32"), "dev", "lo"])
            .status();
        assert!(added.unwrap().success(), "{address}");
        Self(address)
    }
}

impl Drop for AddedPublicAddress {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip")
            .args(["address", "delete", &format!("{}/32", self.0), "dev", "lo"])
            .status();
    }
}

#[tokio::test]
async fn where_public_addresses_are_closed_builds_reach_only_what_is_listed_for_all_or_for_their_tenant()
-> Result<(), LauncherError> {
    // Reserved for documentation (RFC 5737).
    const ADDRESS_FOR_ALL: &str = "198.51.100.81";
    const ADDRESS_FOR_ACME: &str = "198.51.100.82";
    const ADDRESS_FOR_NOBODY: &str = "198.51.100.83";
    let name = "test-closed";
    let stack = start_fresh_bare_stack_with_options(name, |options| {
        options.public = BuildkitAndStepsPublicAccess::None;
        options.allowed = vec![ADDRESS_FOR_ALL.to_owned()];
        options.tenant_networks = ["acme=198.51.100.82", "open=public", "closed="]
            .map(|rule| rule.parse().unwrap())
            .into();
    })
    .await?;
    let _addresses = [ADDRESS_FOR_ALL, ADDRESS_FOR_ACME, ADDRESS_FOR_NOBODY].map(AddedPublicAddress::add);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    serve_file_and_redirect_other_paths(listener, format!("http://{ADDRESS_FOR_ACME}:{port}/file"));
    let servers =
        [ADDRESS_FOR_ALL, ADDRESS_FOR_ACME, ADDRESS_FOR_NOBODY].map(|address| format!("{address}:{port}"));
    for (tenant, reached) in [
        ("", &servers[..1]),
        // A tenant's list replaces the list for all.
        ("acme", &servers[1..2]),
        ("open", &servers),
        ("closed", &[]),
        ("another", &servers[..1]),
    ] {
        let built = tenant_build_on_busybox(
            &stack,
            &instruction_that_prints_reached_unless_refused(&servers),
            tenant,
        )
        .await;
        assert!(built.succeeded, "{tenant}: {}", built.output);
        assert_eq!(
            built.texts_after_marker_in_output("reached "),
            reached,
            "{tenant}: {}",
            built.output
        );
    }
    // The daemon reads what is listed for all, and follows no redirect to anything else, whoever's build it is.
    for (path, is_open) in [
        (format!("{}/file", servers[0]), true),
        (format!("{}/redirect", servers[0]), false),
        (format!("{}/file", servers[1]), false),
        (format!("{}/file", servers[2]), false),
    ] {
        for tenant in ["acme", "open"] {
            let built = tenant_build_on_busybox(&stack, &format!("ADD http://{path} /x"), tenant).await;
            assert_eq!(built.succeeded, is_open, "{tenant} {path}: {}", built.output);
            assert!(
                is_open || built.output.contains("connection refused"),
                "{tenant} {path}: {}",
                built.output
            );
        }
    }
    remove_stack(name).await
}

#[tokio::test]
async fn a_build_that_uses_too_much_fails_and_another_build_goes_on() -> Result<(), LauncherError> {
    let name = "test-limits";
    let limits = StepResourceLimits {
        memory: 128 << 20,
        processes: 64,
        // An eighth of it is more than a step writes between two checks.
        disk: 4 << 30,
        ..StepResourceLimits::for_this_machine()?
    };
    let stack = start_fresh_bare_stack_with_options(name, |options| options.limits = Some(limits)).await?;
    let greedy = [
        "RUN n=0; while [ $n -lt 200 ]; do sleep 60 & n=$((n + 1)); done",
        "RUN head -c 400m /dev/zero | tail -c 399m > /dev/null",
        "RUN dd if=/dev/zero of=/large bs=1M count=8192",
        "RUN mkdir /many && cd /many && seq 1000000 | xargs touch",
    ];
    for instruction in greedy {
        let context = tempfile::tempdir().unwrap();
        let modest = start_build_on_busybox(
            &stack,
            context.path(),
            "RUN n=0; while [ $n -lt 30 ]; do dd if=/dev/urandom of=/$n bs=64k count=4 || exit 1; sleep 0.1; \
             n=$((n + 1)); done",
        );
        let built = build_on_busybox(&stack, instruction).await;
        assert!(!built.succeeded, "{instruction}: {}", built.output);
        let modest = modest.wait_with_output().await.unwrap();
        let output = String::from_utf8_lossy(&modest.stderr).into_owned();
        assert!(modest.status.success(), "beside {instruction}: {output}");
    }
    let log = fs::read_to_string(stack.dir.root.join("log/supervisor.log")).unwrap();
    // The step with many files may reach its limit on memory, which the kernel needs for files, before it is ended.
    assert!(
        log.contains("ending a build step that fills BuildKit's disk"),
        "{log}"
    );
    remove_stack(name).await
}
