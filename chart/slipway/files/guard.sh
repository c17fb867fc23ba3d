#!/bin/sh
# Ends build steps that use too much of the daemon's pod: their processes, whose build then fails. In a user namespace, BuildKit
# cannot give steps control groups, so they share that of the pod, whose limits the kernel enforces by ending what it chooses.
#
#   STATE          a folder on the file system with the daemon's state. When less than an eighth of it is free, the step that has
#                  written most is ended
#   STEP_MEMORY    limit on the memory of a step in bytes. Empty: none
#   MAX_PROCESSES  limit on the processes and threads of a user. When steps have three quarters of it, the step that has most is
#                  ended
#   PROC           where the processes are (default: /proc)
#
# A step is a PID namespace other than the daemon's. The guard looks about twice a second, so a step may exceed its limit
# briefly.
set -u
proc=${PROC:-/proc}
# On a node, the processes of other containers would be steps.
read -r _ first _ <"$proc/self/uid_map"
if [ "$first" = 0 ]; then
    echo "guard: is for a pod with a user namespace" >&2
    exit 1
fi
own=$(readlink "$proc/self/ns/pid")

# steps: prints NAMESPACE THREADS MEMORY WRITTEN PID… for each step. MEMORY in KiB is what its processes have in memory, with
# pages that they share counted once for each
steps() {
    ls -l "$proc"/[0-9]*/ns/pid 2>/dev/null | awk -v own="$own" '
        {
            namespace = $NF
            if (namespace !~ /^pid:/ || namespace == own) next
            path = $(NF - 2)
            sub(/\/ns\/pid$/, "", path)
            pid = path
            sub(/.*\//, "", pid)
            pids[namespace] = pids[namespace] " " pid
            while ((getline line < (path "/status")) > 0)
                if (line ~ /^Rss(Anon|Shmem):/) { split(line, field, " "); memory[namespace] += field[2] }
                else if (line ~ /^Threads:/) { split(line, field, " "); threads[namespace] += field[2] }
            close(path "/status")
            while ((getline line < (path "/io")) > 0)
                if (line ~ /^write_bytes:/) { split(line, field, " "); written[namespace] += field[2] }
            close(path "/io")
        }
        END { for (at in pids) printf "%s %d %d %.0f%s\n", at, threads[at], memory[at], written[at], pids[at] }'
}

# memory PID…: prints the memory of the processes of a step in KiB, with shared pages counted once, and with the files that are
# in memory
memory() {
    used=$(for pid in "$@"; do cat "$proc/$pid/smaps_rollup" 2>/dev/null; done |
        awk '/^Pss_Anon:/ { anonymous += $2 } /^Pss_Shmem:/ { shared += $2 } END { printf "%.0f", anonymous + shared }')
    echo $((used + $(in_files "$1")))
}

# in_files PID: prints the size of the files in memory that a process sees, in KiB. The kernel writes unusual characters of a
# path as octal numbers
in_files() {
    awk '{
        for (at = 1; at <= NF && $at != "-"; at++);
        if ($(at + 1) != "tmpfs" || $(at + 3) !~ /^rw/) next
        if (known[$3]++) next
        gsub(/\\/, "&0", $5)
        print $5
    }' "$proc/$1/mountinfo" 2>/dev/null | (
        while IFS= read -r path; do
            path=$(printf '%b.' "$path")
            stat -f -c '%b %f %S' "$proc/$1/root${path%.}" 2>/dev/null
        done
    ) | awk '{ used += ($1 - $2) * $3 } END { printf "%.0f", used / 1024 }'
}

# is_in NAMESPACE PID: whether the process is still one of the step. Another one may have its number by now
is_in() { [ "$(readlink "$proc/$2/ns/pid" 2>/dev/null)" = "$1" ]; }

# end REASON NAMESPACE PID…: ends a step
end() {
    echo "guard: ending a build step that $1: step=$2" >&2
    step=$2
    shift 2
    for pid in "$@"; do
        # A process that has ended by itself is no failure.
        ! is_in "$step" "$pid" || kill -9 "$pid" 2>/dev/null || :
    done
}

# look: ends the steps that use too much
look() {
    seen=$(steps)
    [ -n "$seen" ] || return
    echo "$seen" | while read -r namespace count rough written pids; do
        # The kernel ends these before the daemon when the pod has no memory left.
        for pid in $pids; do ! is_in "$namespace" "$pid" || echo 1000 2>/dev/null >"$proc/$pid/oom_score_adj"; done
        # shellcheck disable=SC2086 # words
        if [ -n "$STEP_MEMORY" ] && { [ "$rough" -gt $((STEP_MEMORY / 1024)) ] || [ "$(in_files ${pids%% *})" -gt 65536 ]; } &&
            [ "$(memory $pids)" -gt $((STEP_MEMORY / 1024)) ]; then
            end "uses more memory than $STEP_MEMORY bytes" "$namespace" $pids
        fi
    done
    if [ "$(echo "$seen" | awk '{ all += $2 } END { print all }')" -gt $((MAX_PROCESSES * 3 / 4)) ]; then
        end_most 2 $((MAX_PROCESSES / 64)) "has most of $MAX_PROCESSES processes and threads"
    fi
    # shellcheck disable=SC2046 # words
    set -- $(stat -f -c '%b %a %S' "$STATE")
    if [ $(($2 * 8)) -lt "$1" ] && end_most 4 $(($1 / 64 * $3)) "has written most to a disk that is nearly full"; then
        # Until BuildKit has freed what the step wrote, no other step has to end. By itself it frees it later.
        sleep 2
        buildctl prune --filter mutable,type==regular >/dev/null 2>&1
    fi
}

# end_most FIELD MINIMUM REASON: ends the step with the highest number in a field of `seen`, if it is over a minimum
end_most() {
    reason=$3
    # shellcheck disable=SC2046 # words
    set -- $(echo "$seen" | awk -v field="$1" -v top="$2" '$field + 0 > top + 0 { top = $field; line = $0 } END { print line }')
    [ $# -gt 4 ] || return 1
    namespace=$1
    shift 4
    end "$reason" "$namespace" "$@"
}

while :; do
    look
    [ "${ONCE-}" = "" ] || exit 0
    sleep 0.5
done
