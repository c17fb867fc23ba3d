#!/bin/sh
# Prepares the network of build steps and becomes buildkitd.
#
#   STEP_NETWORK   own: steps are behind a bridge and a firewall. none: steps have a loopback device.
#                  daemon: steps use the daemon's network
#   ALLOWED        networks that steps reach even if they are in BLOCKED
#   BLOCKED        networks that steps do not reach
#   NODE           the address of the node, which steps do not reach
#   MAX_PROCESSES  limit on the processes of a user, the daemon's included
set -eu

dir=$(dirname "${BUILDKIT_HOST#unix://}")
mkdir -p "$dir/cni"
for plugin in bridge host-local loopback; do
    ln -sf "$(command -v "buildkit-cni-$plugin")" "$dir/cni/$plugin"
done

case $STEP_NETWORK in
own)
    # Networks of overlays have smaller packets than the 1500 bytes of a bridge.
    mtu=$(cat /sys/class/net/eth0/mtu)
    cat >"$dir/steps.conflist" <<EOF
{
  "cniVersion": "1.0.0",
  "name": "steps",
  "plugins": [
    {
      "type": "bridge",
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
    # Nothing of this pod listens for steps. The rules are there before the bridge is.
    for iptables in iptables ip6tables; do
        "$iptables" -C INPUT -i steps -j DROP 2>/dev/null || "$iptables" -A INPUT -i steps -j DROP
        "$iptables" -N STEPS 2>/dev/null || "$iptables" -F STEPS
        "$iptables" -C FORWARD -i steps -j STEPS 2>/dev/null || "$iptables" -A FORWARD -i steps -j STEPS
    done
    rule() {
        case $1 in
        *:*) ip6tables -A STEPS -d "$@" ;;
        *) iptables -A STEPS -d "$@" ;;
        esac
    }
    for server in $(sed -n 's/^nameserver[[:space:]]*//p' /etc/resolv.conf); do
        rule "$server" -p udp --dport 53 -j ACCEPT
        rule "$server" -p tcp --dport 53 -j ACCEPT
    done
    for network in $ALLOWED; do rule "$network" -j ACCEPT; done
    for network in $NODE $BLOCKED; do rule "$network" -j REJECT; done
    # Answers go back to steps; nothing else reaches them, and steps do not reach each other.
    iptables -C FORWARD -o steps -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP 2>/dev/null ||
        iptables -A FORWARD -o steps -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP
    ;;
none)
    cat >"$dir/steps.conflist" <<EOF
{ "cniVersion": "1.0.0", "name": "steps", "plugins": [{ "type": "loopback" }] }
EOF
    ;;
daemon) ;;
esac

# shellcheck disable=SC3045 # busybox and bash have it
ulimit -u "$MAX_PROCESSES" 2>/dev/null || ulimit -p "$MAX_PROCESSES"

if [ "$(id -u)" = 0 ]; then
    exec buildkitd "$@"
fi
exec rootlesskit buildkitd "$@"
