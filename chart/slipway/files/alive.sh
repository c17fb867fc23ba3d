#!/bin/sh
# The liveness probe: succeeds while the daemon answers and has nothing to restart for.
#
# buildkitd loads its certificate once, at start. When the certificate was renewed, this fails as soon as no build runs, or
# after a day; the kubelet then ends the daemon, which accepts no more builds but finishes those that run, and starts it again.
set -eu
buildctl debug workers >/dev/null
certificate=${CERTIFICATE:-/etc/buildkit-tls/tls.crt}
[ "$certificate" -nt "${BUILDKIT_HOST#unix://}" ] || exit 0
if [ -z "$(find -L "$certificate" -mmin +1440)" ]; then
    builds=$(buildctl debug histories --format '{{.Type}}')
    case $builds in *STARTED*) exit 0 ;; esac
fi
echo "restarting, to load the renewed certificate" >&2
exit 1
