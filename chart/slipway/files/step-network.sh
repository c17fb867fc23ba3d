#!/bin/sh
# The CNI plugin that gives a build step its network: step-bridge and step-loopback call BuildKit's plugin of that name.
#
# The steps of a tenant with rules of its own get its bridge. BuildKit passes on the name of the tenant, which builder-fn sets
# as the host name of steps: a Dockerfile cannot change it.
set -eu
dir=${0%/cni/*}
plugin=buildkit-cni-${0##*/step-}

# buildkitd serves a socket for traces and mounts it into each step, if it is there. It makes the socket before it prepares the
# first network, which it does before it accepts builds.
[ ! -e "$dir/traces.sock" ] || rm -f "$dir/traces.sock"

# Each program that a plugin starts delays the step, so the arguments are parsed without one.
tenant=''
arguments=${CNI_ARGS-}
while [ -n "$arguments" ]; do
    argument=${arguments%%;*}
    case $argument in K8S_POD_NAME=*) tenant=${argument#*=} ;; esac
    case $arguments in *';'*) arguments=${arguments#*;} ;; *) arguments='' ;; esac
done
number=0
while read -r name <&3; do
    number=$((number + 1))
    if [ "$name" = "$tenant" ]; then
        sed -e "s/\"bridge\": *\"steps\"/\"bridge\":\"steps$number\"/" -e "s|198\\.18\\.0\\.0/16|198.19.$number.0/24|" |
            "$plugin" 3<&-
        exit
    fi
done 3<"$dir/tenants"
exec "$plugin"
