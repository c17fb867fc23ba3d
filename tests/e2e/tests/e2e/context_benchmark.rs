//! A small run of the benchmark, which shows that it works. `make bench-contexts` does the measuring.

use anyhow::Result;
use slipway_e2e::{
    compare::{REDUCED_SHAPES, SpeedComparison},
    testbed::Testbed,
};

#[tokio::test]
async fn both_clients_build_every_reduced_shape_of_the_benchmark() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let comparison = SpeedComparison::start().await?;
    for shape in REDUCED_SHAPES {
        let rounds = comparison.measure_shape(shape, 1).await?;
        assert_eq!(
            [&rounds.cold, &rounds.warm, &rounds.changed].map(Vec::len),
            [1, 1, 1]
        );
        assert!(rounds.peak > 0);
    }
    let (pairs, _) = comparison
        .measure_concurrent_builds_and_peak_memory(REDUCED_SHAPES[0], 3, 1)
        .await?;
    assert!(
        pairs
            .iter()
            .all(|pair| pair.builder_fn > 0.0 && pair.buildctl > 0.0)
    );
    Ok(())
}
