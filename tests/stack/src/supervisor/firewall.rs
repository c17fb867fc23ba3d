//! The firewall of a stack, as input of `iptables-restore`: one table of rules for the stack's network, one for
//! BuildKit's.
//!
//! What BuildKit and build steps may reach is decided in the stack's network, where neither can change a rule.

use crate::{
    address::{
        BRIDGE_INTERFACE, BUILDKIT_ADDRESS, BUILDKIT_PORT, BUILDKIT_SUBNET, BUILDKITS_INTERFACE_TO_STACK,
        EGRESS_INTERFACE, EGRESS_RESOLVER_ADDRESS, FUNCTIONS_SUBNET, REGISTRY_PORT,
        STACKS_INTERFACE_TO_BUILDKIT, STACKS_INTERFACE_TO_MACHINE, STACKS_SUBNET, STEPS_SUBNET, StackNumber,
        tenant_steps_subnet,
    },
    egress::{BuildkitAndStepsEgressRules, BuildkitAndStepsPublicAccess},
};

/// The number of connections that a build step may have at a time.
const MAX_STEP_CONNECTIONS: u32 = 256;

/// The end of a rule that accepts packets of established connections and packets related to them.
const ACCEPT_ESTABLISHED_RULE_END: &str = "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";

/// Returns the firewall's rules of the stack's network, with those for what BuildKit and build steps reach.
pub(super) fn stack_iptables_rules(number: StackNumber, egress: &BuildkitAndStepsEgressRules) -> String {
    let (outer, inner) = (number.machines_end_address(), number.stacks_end_address());
    let mut rules = vec![
        "*filter".to_owned(),
        ":BUILDS - [0:0]".to_owned(),
        ":PUBLIC - [0:0]".to_owned(),
        // The pair accepts connections from the machine itself only, and forwards none into the stack.
        format!("-A INPUT -i {STACKS_INTERFACE_TO_MACHINE} ! -s {outer} -j DROP"),
        format!(
            "-A FORWARD -i {STACKS_INTERFACE_TO_MACHINE} -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP"
        ),
        // Of the stack itself, BuildKit reaches the registry, and build steps reach nothing.
        format!("-A INPUT -i {STACKS_INTERFACE_TO_BUILDKIT} {ACCEPT_ESTABLISHED_RULE_END}"),
        format!(
            "-A INPUT -i {STACKS_INTERFACE_TO_BUILDKIT} -s {BUILDKIT_ADDRESS} -d {inner} -p tcp --dport {REGISTRY_PORT} -j ACCEPT"
        ),
        format!("-A INPUT -i {STACKS_INTERFACE_TO_BUILDKIT} -j REJECT"),
        // Functions reach BuildKit's port, which requires a certificate, and no build step.
        format!("-A FORWARD -o {STACKS_INTERFACE_TO_BUILDKIT} {ACCEPT_ESTABLISHED_RULE_END}"),
        format!(
            "-A FORWARD -i {BRIDGE_INTERFACE} -o {STACKS_INTERFACE_TO_BUILDKIT} -d {BUILDKIT_ADDRESS} -p tcp --dport {BUILDKIT_PORT} \
             -j ACCEPT"
        ),
        format!("-A FORWARD -o {STACKS_INTERFACE_TO_BUILDKIT} -j REJECT"),
        format!("-A FORWARD -i {STACKS_INTERFACE_TO_BUILDKIT} -j BUILDS"),
        format!("-A BUILDS {ACCEPT_ESTABLISHED_RULE_END}"),
        // Functions' networks.
        format!("-A BUILDS ! -o {EGRESS_INTERFACE} -j REJECT"),
        format!("-A BUILDS -d {STACKS_SUBNET} -j REJECT"),
        format!("-A BUILDS -d {EGRESS_RESOLVER_ADDRESS} -p udp --dport 53 -j ACCEPT"),
        format!("-A BUILDS -d {EGRESS_RESOLVER_ADDRESS} -p tcp --dport 53 -j ACCEPT"),
    ];
    // The rules of a tenant's steps come first and leave nothing to the general ones.
    for (index, tenant) in egress.tenants.iter().enumerate() {
        let Some(subnet) = tenant_steps_subnet(index) else {
            continue;
        };
        let allowed = tenant.allowed.iter();
        rules.extend(allowed.map(|network| format!("-A BUILDS -s {subnet} -d {network} -j ACCEPT")));
        if tenant.is_public {
            rules.push(format!("-A BUILDS -s {subnet} -g PUBLIC"));
        }
        rules.push(format!("-A BUILDS -s {subnet} -j REJECT"));
    }
    let allowed = egress.allowed.iter();
    rules.extend(allowed.map(|network| format!("-A BUILDS -d {network} -j ACCEPT")));
    match egress.public {
        BuildkitAndStepsPublicAccess::All => rules.push("-A BUILDS -g PUBLIC".to_owned()),
        BuildkitAndStepsPublicAccess::Daemon => {
            rules.push(format!("-A BUILDS -s {BUILDKIT_ADDRESS} -g PUBLIC"))
        }
        BuildkitAndStepsPublicAccess::None => {}
    }
    rules.push("-A BUILDS -j REJECT".to_owned());
    let denied = egress.denied.iter();
    rules.extend(denied.map(|network| format!("-A PUBLIC -d {network} -j REJECT")));
    rules.extend([
        "-A PUBLIC -j ACCEPT".to_owned(),
        "COMMIT".to_owned(),
        // Packets that leave the functions' network and BuildKit's get the stack's address.
        "*nat".to_owned(),
        format!("-A POSTROUTING -s {FUNCTIONS_SUBNET} ! -o {BRIDGE_INTERFACE} -j MASQUERADE"),
        format!("-A POSTROUTING -s {BUILDKIT_SUBNET} -o {EGRESS_INTERFACE} -j MASQUERADE"),
        format!("-A POSTROUTING -s {STEPS_SUBNET} -o {EGRESS_INTERFACE} -j MASQUERADE"),
        "COMMIT".to_owned(),
    ]);
    rules_text_with_tcp_resets(&rules)
}

/// Returns the firewall's rules of BuildKit's network, which separate build steps from the daemon and from each other.
pub(super) fn buildkit_network_iptables_rules() -> String {
    let rules = [
        "*filter".to_owned(),
        "-A INPUT -i lo -j ACCEPT".to_owned(),
        format!("-A INPUT {ACCEPT_ESTABLISHED_RULE_END}"),
        format!(
            "-A INPUT -i {BUILDKITS_INTERFACE_TO_STACK} -d {BUILDKIT_ADDRESS} -p tcp --dport {BUILDKIT_PORT} -j ACCEPT"
        ),
        "-A INPUT -j REJECT".to_owned(),
        // The daemon connects to no step and not to itself, also not for an `ADD`.
        format!(
            "-A OUTPUT -d {BUILDKIT_ADDRESS} -p tcp --dport {BUILDKIT_PORT} -j REJECT --reject-with tcp-reset"
        ),
        "-A OUTPUT -o lo -j ACCEPT".to_owned(),
        format!("-A OUTPUT -o {BUILDKITS_INTERFACE_TO_STACK} -j ACCEPT"),
        format!("-A OUTPUT {ACCEPT_ESTABLISHED_RULE_END}"),
        "-A OUTPUT -j REJECT".to_owned(),
        format!("-A FORWARD -i {BUILDKITS_INTERFACE_TO_STACK} {ACCEPT_ESTABLISHED_RULE_END}"),
        format!("-A FORWARD -i {BUILDKITS_INTERFACE_TO_STACK} -j REJECT"),
        // A step that sends with another address, such as the daemon's.
        format!("-A FORWARD ! -s {STEPS_SUBNET} -j DROP"),
        // All steps and the stack itself share the tables of connections, here and in slirp4netns.
        format!(
            "-A FORWARD -o {BUILDKITS_INTERFACE_TO_STACK} -m conntrack --ctstate NEW -m connlimit \
             --connlimit-above {MAX_STEP_CONNECTIONS} --connlimit-mask 32 -j REJECT"
        ),
        format!("-A FORWARD -o {BUILDKITS_INTERFACE_TO_STACK} -j ACCEPT"),
        "-A FORWARD -j REJECT".to_owned(),
        "COMMIT".to_owned(),
    ];
    rules_text_with_tcp_resets(&rules)
}

/// Returns the rules as lines, each `REJECT` preceded by one that resets TCP connections. A rejected TCP connection
/// so fails at once: of the messages that reject other packets, the kernel sends one a second, and a client would wait
/// for it.
fn rules_text_with_tcp_resets(rules: &[String]) -> String {
    let mut text = String::new();
    for rule in rules {
        if let Some(matches) = rule.strip_suffix(" -j REJECT") {
            text.push_str(&format!("{matches} -p tcp -j REJECT --reject-with tcp-reset\n"));
        }
        text.push_str(rule);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::ResolvedTenantStepRule;

    #[test]
    fn rules_for_opened_networks_precede_those_for_closed_ones_and_stacks_stay_closed() {
        let egress =
            BuildkitAndStepsEgressRules::new(vec!["10.1.0.0/16".parse().unwrap()], Vec::new()).unwrap();
        let rules = stack_iptables_rules(StackNumber::FIRST_STACK_NUMBER, &egress);
        let at = |rule: &str| rules.find(rule).unwrap_or_else(|| panic!("no {rule} in {rules}"));
        let order = [
            "-A BUILDS ! -o tap0 -j REJECT",
            "-A BUILDS -d 10.63.0.0/16 -j REJECT",
            "-A BUILDS -d 10.1.0.0/16 -j ACCEPT",
            "-A BUILDS -g PUBLIC",
            "-A BUILDS -j REJECT",
            "-A PUBLIC -d 10.0.0.0/8 -j REJECT",
            "-A PUBLIC -d 169.254.0.0/16 -j REJECT",
            "-A PUBLIC -j ACCEPT",
        ];
        assert!(order.is_sorted_by_key(|rule| at(rule)), "{rules}");
        assert!(rules.contains("-A PUBLIC -d 10.0.0.0/8 -p tcp -j REJECT --reject-with tcp-reset\n"));
    }

    #[test]
    fn a_tenants_steps_have_its_rules_and_no_general_ones() {
        let tenant = |tenant: &str, is_public| ResolvedTenantStepRule {
            tenant: tenant.to_owned(),
            allowed: vec!["10.7.7.7".parse().unwrap()],
            is_public,
        };
        let egress = BuildkitAndStepsEgressRules {
            public: BuildkitAndStepsPublicAccess::Daemon,
            tenants: vec![tenant("listed", false), tenant("open", true)],
            ..BuildkitAndStepsEgressRules::new(vec!["10.1.0.0/16".parse().unwrap()], Vec::new()).unwrap()
        };
        let rules = stack_iptables_rules(StackNumber::FIRST_STACK_NUMBER, &egress);
        let lines = rules.lines().filter(|line| line.starts_with("-A BUILDS"));
        let lines = lines.filter(|line| !line.contains("-p tcp")).collect::<Vec<_>>();
        let expected = [
            "-A BUILDS -s 10.65.128.0/24 -d 10.7.7.7/32 -j ACCEPT",
            "-A BUILDS -s 10.65.128.0/24 -j REJECT",
            "-A BUILDS -s 10.65.129.0/24 -d 10.7.7.7/32 -j ACCEPT",
            "-A BUILDS -s 10.65.129.0/24 -g PUBLIC",
            "-A BUILDS -s 10.65.129.0/24 -j REJECT",
            "-A BUILDS -d 10.1.0.0/16 -j ACCEPT",
            "-A BUILDS -s 10.64.0.2 -g PUBLIC",
            "-A BUILDS -j REJECT",
        ];
        assert!(lines.ends_with(&expected), "{lines:#?}");
    }
}
