//! The network of a stack, created from inside its PID and mount namespaces.
//!
//! The namespace and its pair of interfaces disappear with the last process of the stack.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    process::Command,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    address::{BRIDGE_ADDRESS, BRIDGE_INTERFACE, FUNCTIONS_SUBNET, INNER_INTERFACE, StackNumber},
    command::run_program_blocking,
    error::{IoResultExt as _, Result},
};

/// The file of the stack's network namespace; `/run` is the stack's own.
pub(crate) const STACK_NAMESPACE_FILE: &str = "/run/netns/stack";
/// The file of the machine's network namespace, for slirp4netns.
pub(crate) const MACHINE_NAMESPACE_FILE: &str = "/run/netns/machine";

/// Creates the stack's network namespace with its interfaces and rules, and moves this thread into it. Threads
/// that start later inherit it, so this must run before any other thread starts.
pub(crate) fn create_and_enter_stack_network(number: StackNumber) -> Result<()> {
    let (outer, inner) = (number.outer_address(), number.inner_address());
    let interface = number.outer_interface();
    run_ip("netns add stack")?;
    File::create(MACHINE_NAMESPACE_FILE).with_operation("create", MACHINE_NAMESPACE_FILE)?;
    rustix::mount::mount_bind("/proc/self/ns/net", MACHINE_NAMESPACE_FILE)
        .with_operation("mount", MACHINE_NAMESPACE_FILE)?;
    run_ip(&format!(
        "link add {interface} type veth peer name {INNER_INTERFACE} netns stack"
    ))?;
    run_ip(&format!("address add {outer}/30 dev {interface}"))?;
    run_ip(&format!("link set {interface} up"))?;

    let own = File::open(STACK_NAMESPACE_FILE).with_operation("open", STACK_NAMESPACE_FILE)?;
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))
        .with_operation("enter", STACK_NAMESPACE_FILE)?;
    run_ip("link set lo up")?;
    run_ip(&format!("address add {inner}/30 dev {INNER_INTERFACE}"))?;
    run_ip(&format!("link set {INNER_INTERFACE} up"))?;
    run_ip(&format!("link add {BRIDGE_INTERFACE} type bridge"))?;
    run_ip(&format!("address add {BRIDGE_ADDRESS}/16 dev {BRIDGE_INTERFACE}"))?;
    run_ip(&format!("link set {BRIDGE_INTERFACE} up"))?;
    // This setting is per network namespace.
    let forward = "/proc/sys/net/ipv4/ip_forward";
    fs::write(forward, "1").with_operation("write", forward)?;

    // The pair accepts connections from the machine itself only, and forwards none into the stack.
    run_iptables(&format!("-A INPUT -i {INNER_INTERFACE} ! -s {outer} -j DROP"))?;
    run_iptables(&format!(
        "-A FORWARD -i {INNER_INTERFACE} -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP"
    ))?;
    // Packets that leave the functions' network get the stack's address.
    run_iptables(&format!(
        "-t nat -A POSTROUTING -s {FUNCTIONS_SUBNET} ! -o {BRIDGE_INTERFACE} -j MASQUERADE"
    ))
}

fn run_ip(arguments: &str) -> Result<()> {
    run_program_blocking(Command::new("ip").args(arguments.split(' '))).map(drop)
}

fn run_iptables(arguments: &str) -> Result<()> {
    run_program_blocking(Command::new("iptables").arg("-w").args(arguments.split(' '))).map(drop)
}
