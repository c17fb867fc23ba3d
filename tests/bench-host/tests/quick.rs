//! A short run of the benchmark. Its figures are not checked, because other tests share the machine.

use std::process::Command;

#[test]
fn a_short_benchmark_run_reports_all_figures() {
    let output = Command::new(env!("CARGO_BIN_EXE_slipway-bench-host"))
        .arg("--quick")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for figure in [
        "requests per second: ",
        "processor time per request: ",
        "peak memory: ",
    ] {
        assert!(text.contains(figure), "{text}");
    }
}
