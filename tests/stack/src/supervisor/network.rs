//! The networks of a stack, created from inside its PID and mount namespaces: its own, and beside it BuildKit's.
//!
//! The namespaces and their pairs of interfaces disappear with the last process of the stack.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::Path,
    process::Command,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    address::{
        BRIDGE_ADDRESS, BRIDGE_HARDWARE_ADDRESS, BRIDGE_INTERFACE, BUILDKIT_ADDRESS,
        BUILDKITS_INTERFACE_TO_STACK, STACKS_ADDRESS_TOWARDS_BUILDKIT, STACKS_INTERFACE_TO_BUILDKIT,
        STACKS_INTERFACE_TO_MACHINE, STEPS_SUBNET, StackNumber,
    },
    command::run_program_blocking,
    egress::{BuildkitAndStepsEgressRules, parse_machine_networks},
    error::{IoResultExt as _, Result},
    plan::StackPlan,
    supervisor::firewall,
};

/// The file of the stack's network namespace; `/run` is the stack's own.
pub(crate) const STACK_NAMESPACE_FILE: &str = "/run/netns/stack";
/// The file of the machine's network namespace, for slirp4netns.
pub(crate) const MACHINE_NAMESPACE_FILE: &str = "/run/netns/machine";
/// The path at which BuildKit's network namespace is mounted, to be entered by it.
pub(crate) const BUILDKIT_NAMESPACE_FILE: &str = "/run/netns/buildkit";

/// Creates the stack's network namespaces with their interfaces and rules, and moves this thread into the stack's
/// own. Threads that start later inherit it, so this must run before any other thread starts.
pub(crate) fn create_and_enter_stack_networks(plan: &StackPlan) -> Result<()> {
    let number = plan.number;
    create_namespace_with_link_to_machine(number)?;
    run_ip("netns add buildkit")?;
    let machine = parse_machine_networks(&run_ip("-json -4 address show")?)?;
    let egress = BuildkitAndStepsEgressRules {
        public: plan.public,
        tenants: plan.tenants.clone(),
        ..BuildkitAndStepsEgressRules::new(plan.allowed.clone(), machine)?
    };

    enter_namespace_and_set_up_link_without_route(number)?;
    run_ip(&format!(
        "link add {BRIDGE_INTERFACE} address {BRIDGE_HARDWARE_ADDRESS} type bridge"
    ))?;
    run_ip(&format!("address add {BRIDGE_ADDRESS}/16 dev {BRIDGE_INTERFACE}"))?;
    run_ip(&format!("link set {BRIDGE_INTERFACE} up"))?;
    // Before there is a way into BuildKit's network or out of it.
    add_iptables_rules("stack", &firewall::stack_iptables_rules(number, &egress))?;
    set_sysctl_if_present("net/ipv4/ip_forward", "1")?;
    run_ip(&format!(
        "link add {STACKS_INTERFACE_TO_BUILDKIT} type veth peer name {BUILDKITS_INTERFACE_TO_STACK} netns buildkit"
    ))?;
    run_ip(&format!(
        "address add {STACKS_ADDRESS_TOWARDS_BUILDKIT}/30 dev {STACKS_INTERFACE_TO_BUILDKIT}"
    ))?;
    run_ip(&format!("link set {STACKS_INTERFACE_TO_BUILDKIT} up"))?;
    run_ip(&format!("route add {STEPS_SUBNET} via {BUILDKIT_ADDRESS}"))?;

    enter_network_namespace(BUILDKIT_NAMESPACE_FILE)?;
    set_up_buildkit_network_from_inside()?;
    enter_network_namespace(STACK_NAMESPACE_FILE)
}

/// Creates a network namespace for a stack or cluster, with a pair of interfaces that connects it to the machine.
pub(crate) fn create_namespace_with_link_to_machine(number: StackNumber) -> Result<()> {
    let (address, interface) = (number.machines_end_address(), number.machines_end_interface());
    run_ip("netns add stack")?;
    File::create(MACHINE_NAMESPACE_FILE).with_operation("create", MACHINE_NAMESPACE_FILE)?;
    rustix::mount::mount_bind("/proc/self/ns/net", MACHINE_NAMESPACE_FILE)
        .with_operation("mount", MACHINE_NAMESPACE_FILE)?;
    run_ip(&format!(
        "link add {interface} type veth peer name {STACKS_INTERFACE_TO_MACHINE} netns stack"
    ))?;
    run_ip(&format!("address add {address}/30 dev {interface}"))?;
    run_ip(&format!("link set {interface} up")).map(drop)
}

/// Moves this thread into the namespace that [`create_namespace_with_link_to_machine`] created, and sets up its end of
/// the link. Threads that start later inherit the namespace, so this must run before any other thread starts.
pub(crate) fn enter_namespace_and_set_up_link_without_route(number: StackNumber) -> Result<()> {
    enter_network_namespace(STACK_NAMESPACE_FILE)?;
    run_ip("link set lo up")?;
    run_ip(&format!(
        "address add {}/30 dev {STACKS_INTERFACE_TO_MACHINE}",
        number.stacks_end_address()
    ))?;
    run_ip(&format!("link set {STACKS_INTERFACE_TO_MACHINE} up")).map(drop)
}

/// Sets up BuildKit's network from inside: rules, kernel settings, addresses and the default route.
fn set_up_buildkit_network_from_inside() -> Result<()> {
    add_iptables_rules("buildkit", &firewall::buildkit_network_iptables_rules())?;
    for scope in ["all", "default"] {
        // The rules are for IPv4, and nothing in a stack needs IPv6.
        set_sysctl_if_present(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
        // A step cannot send with the address of another step.
        set_sysctl_if_present(&format!("net/ipv4/conf/{scope}/rp_filter"), "1")?;
    }
    set_sysctl_if_present("net/ipv4/ip_forward", "1")?;
    run_ip("link set lo up")?;
    run_ip(&format!(
        "address add {BUILDKIT_ADDRESS}/30 dev {BUILDKITS_INTERFACE_TO_STACK}"
    ))?;
    run_ip(&format!("link set {BUILDKITS_INTERFACE_TO_STACK} up"))?;
    run_ip(&format!(
        "route add default via {STACKS_ADDRESS_TOWARDS_BUILDKIT}"
    ))
    .map(drop)
}

/// Moves this thread into a network namespace.
fn enter_network_namespace(namespace_file: &str) -> Result<()> {
    let file = File::open(namespace_file).with_operation("open", namespace_file)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_operation("enter", namespace_file)
}

/// Writes a kernel setting of this thread's network namespace; does nothing if the kernel lacks it, as a machine
/// without IPv6 lacks the settings of IPv6.
pub(crate) fn set_sysctl_if_present(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    match path.exists() {
        true => fs::write(&path, value).with_operation("write", path),
        false => Ok(()),
    }
}

/// Adds rules to the firewall of this thread's network namespace.
pub(crate) fn add_iptables_rules(rules_file_stem: &str, rules: &str) -> Result<()> {
    let path = Path::new("/run/slipway").join(format!("{rules_file_stem}.rules"));
    fs::write(&path, rules).with_operation("write", &path)?;
    run_program_blocking(
        Command::new("iptables-restore")
            .args(["-w", "--noflush"])
            .arg(&path),
    )
    .map(drop)
}

/// Runs `ip` with arguments that single spaces separate, and returns its output.
fn run_ip(arguments: &str) -> Result<Vec<u8>> {
    run_program_blocking(Command::new("ip").args(arguments.split(' ')))
}
