//! A short soak test, on a stack of its own. `make soak` runs the whole one.

use std::time::Duration;

use anyhow::Result;
use slipway_e2e::{
    soak::{Fault, SoakOptions, run_soak},
    testbed::Testbed,
};

#[tokio::test]
async fn queued_builds_are_done_once_while_a_queue_worker_and_both_builders_are_killed() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let options = SoakOptions {
        stack: format!("{}-soak", testbed.stack.name()),
        submissions: 8,
        functions: 8,
        workers: 4,
        killed_workers: 1,
        build_time: Duration::from_secs(3),
        ack_wait: Duration::from_secs(2),
        kill_between_acceptances: true,
        faults: vec![Fault::Builder],
    };
    let report = run_soak(&options, None, |_| ()).await?;
    assert_eq!(report.violations(), Vec::<String>::new(), "{report}");
    Ok(())
}
