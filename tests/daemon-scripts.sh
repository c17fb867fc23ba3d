#!/bin/sh
# Tests the scripts of the chart that watch the daemon, alive.sh and guard.sh, with programs and a /proc that are files.
# tests/chart.sh runs it.
set -eu

cd "$(dirname "$0")/.."
files=chart/slipway/files
dir=$(mktemp -d)
mkdir "$dir/bin" "$dir/own"
trap 'end_all; rm -rf "$dir"' EXIT
failed=0
case=

fail() {
    echo "FAILED: $case: $*" >&2
    failed=1
}

# The liveness probe. buildctl answers with $dir/builds, or not at all without it.
cat >"$dir/bin/buildctl" <<END
#!/bin/sh
echo "\$*" >>"$dir/calls"
[ "\$2" != histories ] || cat "$dir/builds"
[ -e "$dir/builds" ]
END
chmod +x "$dir/bin/buildctl"
# alive CODE SOCKET CERTIFICATE BUILDS: runs the probe with a socket and a certificate of these times, and checks its exit code
alive() {
    touch -d "$2" "$dir/socket"
    touch -d "$3" "$dir/certificate"
    rm -f "$dir/builds"
    [ -z "$4" ] || echo "$4" >"$dir/builds"
    code=0
    env PATH="$dir/bin:$PATH" BUILDKIT_HOST="unix://$dir/socket" CERTIFICATE="$dir/certificate" \
        sh "$files/alive.sh" 2>"$dir/err" || code=$?
    [ "$code" = "$1" ] || fail "exit code $code, and $1 is right: $(cat "$dir/err")"
}
case="a daemon with the certificate that it has loaded is alive"
alive 0 '1 hour ago' '2 hours ago' COMPLETE
case="a daemon is alive while a build runs, though its certificate was renewed"
alive 0 '1 hour ago' now 'COMPLETE
STARTED'
case="a daemon ends once no build runs, to load its renewed certificate"
alive 1 '1 hour ago' now COMPLETE
grep -q 'to load the renewed certificate' "$dir/err" || fail "$(cat "$dir/err")"
case="a daemon that always builds ends a day after its certificate was renewed"
alive 0 '3 days ago' '23 hours ago' STARTED
alive 1 '3 days ago' '25 hours ago' STARTED
case="a daemon that does not answer is not alive"
alive 1 '1 hour ago' '2 hours ago' ''
case="a daemon without a certificate is alive"
echo COMPLETE >"$dir/builds"
env PATH="$dir/bin:$PATH" BUILDKIT_HOST="unix://$dir/socket" CERTIFICATE="$dir/none" sh "$files/alive.sh" || fail "it is not"

# The guard. $dir/proc has processes with the ids of real ones, which it may end.
cat >"$dir/bin/stat" <<END
#!/bin/sh
echo "\$*" >>"$dir/stats"
case \$* in
*/root/in*) cat "$dir/in-memory" ;;
*) cat "$dir/disk" ;;
esac
END
chmod +x "$dir/bin/stat"
# end_all: ends the processes that this script has started
end_all() {
    for file in "$dir/own/"*; do
        [ ! -e "$file" ] || kill "${file##*/}" 2>/dev/null || :
    done
    rm -f "$dir/own/"*
}
# process NAMESPACE RSS-KIB WRITTEN-BYTES PSS-KIB [THREADS]: starts a process, and leaves its id in $pid
process() {
    sleep 1000 &
    pid=$!
    : >"$dir/own/$pid"
    at=$dir/proc/$pid
    mkdir -p "$at/ns"
    ln -s "pid:[$1]" "$at/ns/pid"
    printf 'Name:\tstep\nVmRSS:\t1 kB\nRssAnon:\t%s kB\nRssFile:\t9999999 kB\nRssShmem:\t0 kB\nThreads:\t%s\n' "$2" "${5-1}" >"$at/status"
    printf 'rchar: 9\nwrite_bytes: %s\ncancelled_write_bytes: 0\n' "$3" >"$at/io"
    printf 'Rss: 9999999 kB\nPss_Anon: %s kB\nPss_Shmem: 0 kB\n' "$4" >"$at/smaps_rollup"
    printf '%s\n' '1 2 0:1 / /in\040memory rw - tmpfs tmpfs rw' >"$at/mountinfo"
    : >"$at/oom_score_adj"
}
# scene: a /proc with the daemon, and disks that are half empty
scene() {
    end_all
    rm -rf "$dir/proc"
    mkdir -p "$dir/proc/self/ns"
    ln -s 'pid:[1]' "$dir/proc/self/ns/pid"
    echo '0 65536 65536' >"$dir/proc/self/uid_map"
    echo '0 0 4096' >"$dir/in-memory"
    echo '1000000 500000 4096' >"$dir/disk"
    process 1 9999999 9999999999999 9999999
    daemon=$pid
}
# guard [LIMIT]: looks once, with a limit of 100 MiB on the memory of a step, and of 64 processes
guard() {
    env PATH="$dir/bin:$PATH" PROC="$dir/proc" ONCE=1 STATE=/ STEP_MEMORY="${1-104857600}" MAX_PROCESSES=64 \
        sh "$files/guard.sh" 2>"$dir/err"
}
# is_running PID
is_running() { [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1 | grep -v Z)" != "" ]; }
# ended REASON PID…: these processes have ended, and the guard has said why
ended() {
    grep -q "^guard: ending a build step that $1" "$dir/err" || fail "no line: $(cat "$dir/err")"
    shift
    for process in "$@"; do
        tries=0
        while is_running "$process" && [ "$tries" -lt 20 ]; do
            tries=$((tries + 1))
            sleep 0.1
        done
        ! is_running "$process" || fail "a process goes on"
    done
}
# goes_on [all] PID…: these processes go on. all: nothing was ended, not even a process that has not noticed it yet
goes_on() {
    if [ $# -gt 1 ] && [ "$1" = all ]; then
        shift
        [ ! -s "$dir/err" ] || fail "the guard ended something: $(cat "$dir/err")"
    fi
    for process in "$@"; do is_running "$process" || fail "a process has ended: $(cat "$dir/err")"; done
}
case="a step with more memory than its limit ends with all its processes, and others go on"
scene
process 2 90000 0 90000
first=$pid
process 2 20000 0 20000
second=$pid
process 3 90000 0 90000
other=$pid
guard
ended "uses more memory than 104857600 bytes: step=pid:\[2\]" "$first" "$second"
goes_on "$daemon" "$other"
case="the kernel prefers steps to the daemon"
[ "$(cat "$dir/proc/$other/oom_score_adj")" = 1000 ] || fail "$(cat "$dir/proc/$other/oom_score_adj")"
[ ! -s "$dir/proc/$daemon/oom_score_adj" ] || fail "it does not"
case="memory that the processes of a step share counts once"
scene
process 2 90000 0 45000
first=$pid
process 2 90000 0 45000
guard
goes_on all "$first" "$pid"
case="files in memory count"
scene
process 2 100 0 100
echo '50000 10000 4096' >"$dir/in-memory"
guard
ended "uses more memory" "$pid"
case="without a limit, a step may use any memory"
scene
process 2 9000000 0 9000000
guard ''
goes_on all "$pid"
case="the step that has written most ends when the disk is nearly full"
scene
process 3 1 800000000 1
small=$pid
process 2 1 900000000 1
echo '1000000 120000 4096' >"$dir/disk"
rm -f "$dir/calls"
guard
ended "has written most to a disk that is nearly full: step=pid:\[2\]" "$pid"
goes_on "$small" "$daemon"
grep -q '^prune --filter mutable,type==regular$' "$dir/calls" || fail "BuildKit keeps what it wrote"
case="a step that has written little goes on, whatever else fills the disk"
scene
process 2 1 60000000 1
echo '1000000 120000 4096' >"$dir/disk"
guard
goes_on all "$pid"
case="the step with most processes ends when steps have three quarters of all"
scene
many=
for _ in $(seq 45); do
    process 2 1 1 1
    many="$many $pid"
done
few=
for _ in 1 2 3 4; do
    process 3 1 1 1
    few="$few $pid"
done
guard
# shellcheck disable=SC2086 # words
ended "has most of 64 processes and threads: step=pid:\[2\]" $many
# shellcheck disable=SC2086 # words
goes_on $few "$daemon"
case="a process with many threads counts as that many"
scene
process 2 1 1 1 49
guard
ended "has most of 64 processes and threads: step=pid:\[2\]" "$pid"
case="files in memory count whatever the characters of their folder are"
scene
process 2 100 0 100
printf '%s\n' '1 2 0:1 / /in\011the\134memory rw - tmpfs tmpfs rw' >"$dir/proc/$pid/mountinfo"
echo '50000 10000 4096' >"$dir/in-memory"
guard
ended "uses more memory" "$pid"
grep -qF "$(printf '/root/in\tthe\\memory')" "$dir/stats" || fail "another folder was looked at: $(cat "$dir/stats")"
case="files in memory that are mounted twice count once"
scene
process 2 100 0 100
printf '%s\n' '3 2 0:1 / /again rw - tmpfs tmpfs rw' >>"$dir/proc/$pid/mountinfo"
echo '20000 4000 4096' >"$dir/in-memory"
guard
goes_on all "$pid"
case="BuildKit frees the disk although a process of the step has ended by itself"
scene
process 2 1 900000000 1
gone=$pid
process 2 1 900000000 1
kill "$gone"
wait "$gone" 2>/dev/null || :
echo '1000000 120000 4096' >"$dir/disk"
rm -f "$dir/calls"
guard
ended "has written most to a disk that is nearly full" "$pid"
grep -q '^prune ' "$dir/calls" || fail "BuildKit keeps what it wrote"
case="the guard ends nothing outside of a user namespace, where other containers are"
scene
echo '0 0 4294967295' >"$dir/proc/self/uid_map"
process 2 9999999 0 9999999
! guard || fail "it runs"
goes_on "$pid"
grep -q 'is for a pod with a user namespace' "$dir/err" || fail "$(cat "$dir/err")"

[ "$failed" = 0 ]
