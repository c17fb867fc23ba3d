#!/bin/sh
# Prepares the networks of build steps and becomes buildkitd.
#
#   STEP_NETWORK   own: steps are behind bridges and a firewall. none: steps have a loopback device.
#                  daemon: steps use the daemon's network
#   INTERNET       what of the networks that are not in BLOCKED and ALLOWED is reached. all: by steps and the daemon.
#                  daemon: by the daemon. none: by neither
#   ALLOWED        networks that steps reach even if they are in BLOCKED
#   BLOCKED        networks that steps do not reach
#   TENANTS        tenants whose steps have other rules, one a line: NAME INTERNET ALLOWED…
#   NODE           the address of the node, which steps do not reach
#   MAX_PROCESSES  limit on the processes of a user, the daemon's included
#   STATE          the folder of the daemon's state. If it is set, guard.sh ends steps that use too much
set -eu

dir=$(dirname "${BUILDKIT_HOST#unix://}")
mkdir -p "$dir/cni"
for plugin in bridge host-local loopback; do
    ln -sf "$(command -v "buildkit-cni-$plugin")" "$dir/cni/$plugin"
done
for plugin in step-bridge step-loopback; do
    cp "${0%/*}/step-network.sh" "$dir/cni/$plugin"
    chmod 755 "$dir/cni/$plugin"
done
: >"$dir/tenants"
traces=$dir/traces.sock

case $STEP_NETWORK in
own)
    # Networks of overlays have smaller packets than the 1500 bytes of a bridge.
    mtu=$(cat /sys/class/net/eth0/mtu 2>/dev/null || echo 1500)
    cat >"$dir/steps.conflist" <<EOF
{
  "cniVersion": "1.0.0",
  "name": "steps",
  "plugins": [
    {
      "type": "step-bridge",
      "bridge": "steps",
      "isDefaultGateway": true,
      "ipMasq": true,
      "portIsolation": true,
      "mtu": $mtu,
      "ipam": { "type": "host-local", "dataDir": "$dir/addresses", "ranges": [[{ "subnet": "198.18.0.0/16" }]] }
    }
  ]
}
EOF
    rm -rf "$dir/addresses"
    # chain NAME: makes an empty chain
    chain() {
        for iptables in iptables ip6tables; do "$iptables" -N "$1" 2>/dev/null || "$iptables" -F "$1"; done
    }
    # jump CHAIN RULE…: adds the rule to the chain, unless it is there since an earlier start
    jump() {
        for iptables in iptables ip6tables; do "$iptables" -C "$@" 2>/dev/null || "$iptables" -A "$@"; done
    }
    # rule CHAIN NETWORK RULE…: adds a rule for a network
    rule() {
        to=$1 network=$2
        shift 2
        case $network in
        *:*) ip6tables -A "$to" -d "$network" "$@" ;;
        *) iptables -A "$to" -d "$network" "$@" ;;
        esac
    }
    # resolvers CHAIN TARGET: adds the rules for DNS
    resolvers() {
        for server in $(sed -n 's/^nameserver[[:space:]]*//p' /etc/resolv.conf); do
            rule "$1" "$server" -p udp --dport 53 -j "$2"
            rule "$1" "$server" -p tcp --dport 53 -j "$2"
        done
    }
    # steps BRIDGE CHAIN INTERNET NETWORK…: says what the steps on a bridge reach
    steps() {
        bridge=$1 chain=$2 internet=$3
        shift 3
        chain "$chain"
        resolvers "$chain" ACCEPT
        for network in "$@"; do rule "$chain" "$network" -j ACCEPT; done
        for network in $NODE $BLOCKED; do rule "$chain" "$network" -j REJECT; done
        if [ "$internet" != true ]; then
            for iptables in iptables ip6tables; do "$iptables" -A "$chain" -j REJECT; done
        fi
        jump FORWARD -i "$bridge" -j "$chain"
    }
    # Nothing of this pod listens for steps. The rules are there before the bridges are. The rules of a bridge hold for all
    # packets that come from it, whatever their addresses say.
    jump INPUT -i steps+ -j DROP
    # Answers go back to steps; nothing else reaches them, and steps do not reach each other, whatever is allowed.
    jump FORWARD -o steps+ -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP
    # shellcheck disable=SC2086 # words
    steps steps STEPS "$([ "$INTERNET" != all ] || echo true)" $ALLOWED
    # What only the steps of a tenant reach, the daemon does not reach, neither for an ADD nor by a redirect.
    chain CLOSED
    for network in $BLOCKED; do rule CLOSED "$network" -j REJECT; done
    if [ "$INTERNET" = none ]; then
        for iptables in iptables ip6tables; do "$iptables" -A CLOSED -j REJECT; done
    fi
    chain DAEMON
    for iptables in iptables ip6tables; do
        "$iptables" -A DAEMON -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
    done
    resolvers DAEMON RETURN
    for network in $ALLOWED; do rule DAEMON "$network" -j RETURN; done
    number=0
    while read -r name internet networks; do
        [ -n "$name" ] || continue
        number=$((number + 1))
        echo "$name" >>"$dir/tenants"
        # shellcheck disable=SC2086 # words
        steps "steps$number" "STEPS$number" "$internet" $networks
        for network in $networks; do rule DAEMON "$network" -j CLOSED; done
    done <<EOF
$TENANTS
EOF
    jump OUTPUT -j DAEMON
    ;;
none)
    cat >"$dir/steps.conflist" <<EOF
{ "cniVersion": "1.0.0", "name": "steps", "plugins": [{ "type": "step-loopback" }] }
EOF
    ;;
daemon)
    # Steps have no network that step-network.sh would prepare, so this removes the socket for traces.
    rm -f "$traces"
    (until [ -S "$traces" ]; do sleep 0.01; done && rm -f "$traces") &
    ;;
esac

# Without the limit on processes, so that it can act when steps have all of them.
if [ -n "${STATE-}" ]; then
    (while :; do
        sh "${0%/*}/guard.sh" || :
        sleep 1
    done) &
fi
# shellcheck disable=SC3045 # busybox and bash have it
ulimit -u "$MAX_PROCESSES" 2>/dev/null || ulimit -p "$MAX_PROCESSES"

set -- "--otel-socket-path=$traces" "$@"
if [ "$(id -u)" = 0 ]; then
    exec buildkitd "$@"
fi
exec rootlesskit buildkitd "$@"
