//! The network of a stack, made from inside its PID and mount namespaces.
//!
//! Everything here vanishes with the last process of the stack: the namespace, and with it the pair of interfaces.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    process::Command,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    address::{BRIDGE, BRIDGE_INTERFACE, FUNCTIONS, INNER_INTERFACE, Number},
    command::run_blocking,
    error::{At as _, Result},
};

/// The stack's network namespace; `/run` is the stack's own.
pub(crate) const OWN: &str = "/run/netns/stack";
/// The machine's network namespace, for slirp4netns.
pub(crate) const MACHINE: &str = "/run/netns/machine";

/// Makes the namespace with its interfaces and rules, and moves this thread into it. Threads started later follow, so
/// this comes before there are any.
pub(crate) fn enter(number: Number) -> Result<()> {
    let (outer, inner) = (number.outer(), number.inner());
    let interface = number.interface();
    ip("netns add stack")?;
    File::create(MACHINE).at("create", MACHINE)?;
    rustix::mount::mount_bind("/proc/self/ns/net", MACHINE).at("mount", MACHINE)?;
    ip(&format!(
        "link add {interface} type veth peer name {INNER_INTERFACE} netns stack"
    ))?;
    ip(&format!("address add {outer}/30 dev {interface}"))?;
    ip(&format!("link set {interface} up"))?;

    let own = File::open(OWN).at("open", OWN)?;
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network)).at("enter", OWN)?;
    ip("link set lo up")?;
    ip(&format!("address add {inner}/30 dev {INNER_INTERFACE}"))?;
    ip(&format!("link set {INNER_INTERFACE} up"))?;
    ip(&format!("link add {BRIDGE_INTERFACE} type bridge"))?;
    ip(&format!("address add {BRIDGE}/16 dev {BRIDGE_INTERFACE}"))?;
    ip(&format!("link set {BRIDGE_INTERFACE} up"))?;
    // Of this namespace only: every network namespace has its own.
    let forward = "/proc/sys/net/ipv4/ip_forward";
    fs::write(forward, "1").at("write", forward)?;

    // The machine itself may come in by the pair, and nobody through it.
    iptables(&format!("-A INPUT -i {INNER_INTERFACE} ! -s {outer} -j DROP"))?;
    iptables(&format!(
        "-A FORWARD -i {INNER_INTERFACE} -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP"
    ))?;
    // What functions send out comes from the stack.
    iptables(&format!(
        "-t nat -A POSTROUTING -s {FUNCTIONS} ! -o {BRIDGE_INTERFACE} -j MASQUERADE"
    ))
}

fn ip(arguments: &str) -> Result<()> {
    run_blocking(Command::new("ip").args(arguments.split(' '))).map(drop)
}

fn iptables(arguments: &str) -> Result<()> {
    run_blocking(Command::new("iptables").arg("-w").args(arguments.split(' '))).map(drop)
}
