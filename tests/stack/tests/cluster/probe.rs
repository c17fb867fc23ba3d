//! Attacks by shell scripts within one build step, as root, on other processes and the kernel.

/// A script in a build step. An attack succeeds if it exits with 0; a control has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    pub(crate) is_control: bool,
    script: &'static str,
}

const fn attack(name: &'static str, script: &'static str) -> Probe {
    Probe {
        name,
        is_control: false,
        script,
    }
}

/// A script that uses what the attacks use, where it is allowed: without it, a step in which nothing works would stop
/// them all.
const fn control(name: &'static str, script: &'static str) -> Probe {
    Probe {
        name,
        is_control: true,
        script,
    }
}

/// The attacks, with the scripts that the end-to-end tests use against the stack's daemon.
pub(crate) const PROBES: [Probe; 15] = [
    control(
        "control-of-programs",
        "[ \"$(printf 'a b\\nPONG' | grep PONG | tr P p | awk '{ print $1 }' | head -c 4)\" = pONG ] && ls /proc/self/environ",
    ),
    control(
        "control-of-root",
        "[ \"$(id -u)\" = 0 ] && cat /proc/1/cmdline > /tmp/own && [ -s /tmp/own ]",
    ),
    control(
        "control-of-connections",
        "nc -ll -p 4991 -e /bin/true & for n in 1 2 3 4 5 6 7 8 9; do \
         nc -w 2 127.0.0.1 4991 -e /bin/true && kill $! && exit 0; sleep 0.2; done; exit 1",
    ),
    control("control-of-users", "cat /proc/self/uid_map"),
    control("control-of-process-namespace", "readlink /proc/self/ns/pid"),
    attack(
        "daemon-by-socket-names",
        "grep -E '[b]uildkitd.sock|[c]ontainerd.sock' /proc/net/unix",
    ),
    attack(
        "daemon-by-socket-files",
        "for at in /run/buildkit/*.sock /run/containerd/containerd.sock /var/run/docker.sock /dev/*.sock; do\n\
         [ -S $at ] && echo $at && exit 0; done; exit 1",
    ),
    attack(
        "token-of-kubernetes",
        "for at in /var/run /run; do cat $at/secrets/kubernetes.io/serviceaccount/token && exit 0; done; exit 1",
    ),
    attack(
        "processes-of-others",
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -oE 'buildkit[d]|gate-of-the-[v]ictim' | head -n 1 | grep .",
    ),
    attack(
        "environment-of-others",
        "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep '[a]n-argument-of-the-victim'",
    ),
    attack(
        "files-of-the-daemon-by-proc",
        "for at in /proc/[0-9]*/root; do for folder in buildkit-tls buildkit; do ls $at/etc/$folder && exit 0; done; done; exit 1",
    ),
    attack(
        "kernel-settings",
        "for at in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /sys/kernel/uevent_helper; do\n\
         [ -e $at ] && cat $at > /tmp/value && cat /tmp/value > $at && echo $at && exit 0; done; exit 1",
    ),
    attack(
        "kernel-memory",
        "head -c 1 /proc/kcore > /tmp/kcore && [ -s /tmp/kcore ] && exit 0; dmesg | grep -m 1 . && exit 0; [ -e /dev/mem ] || [ -e /dev/kmsg ]",
    ),
    attack(
        "mount",
        "mkdir -p /tmp/mount; mount -t tmpfs none /tmp/mount && exit 0; mount -o bind / /tmp/mount",
    ),
    attack(
        "device-of-the-disk",
        "mknod /tmp/disk b 254 0 && dd if=/tmp/disk bs=512 count=1 | wc -c | grep 512",
    ),
];

/// Returns a script that runs all probes, one after another, and prints a line with the result of each.
pub(crate) fn script_of_probes() -> String {
    let runs = PROBES.iter().map(|Probe { name, script, .. }| {
        format!(
            "cat >/tmp/probe-{name} <<'END'\n{script}\nEND\noutput=$(timeout 20 sh /tmp/probe-{name} 2>&1 </dev/null); code=$?\n\
             echo \"PROBE {name} $code $(echo \"$output\" | tr '\\n' ' ' | head -c 300)\"\n"
        )
    });
    runs.collect()
}

/// Returns the exit code and the output that a probe reported. Fails if it did not report.
pub(crate) fn report_of_probe<'a>(output: &'a str, name: &str) -> (&'a str, &'a str) {
    let report = output.lines().find_map(|line| {
        let (_, report) = line.split_once("PROBE ")?;
        report.strip_prefix(name)?.strip_prefix(' ')
    });
    let report = report.unwrap_or_else(|| panic!("{name} did not report: {output}"));
    let (code, text) = report.split_once(' ').unwrap_or((report, ""));
    (code, text.trim())
}
