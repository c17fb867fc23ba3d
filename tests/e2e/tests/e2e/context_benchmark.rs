//! The benchmark in small: it works. What it measures is for `make bench-contexts`.

use anyhow::Result;
use slipway_e2e::{
    compare::{Comparison, REDUCED},
    shared::Bench,
};

#[tokio::test]
async fn the_benchmark_builds_all_its_shapes_by_both() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let comparison = Comparison::start().await?;
    for shape in REDUCED {
        let rounds = comparison.rounds(shape, 1).await?;
        assert_eq!(
            [&rounds.cold, &rounds.warm, &rounds.changed].map(Vec::len),
            [1, 1, 1]
        );
        assert!(rounds.peak > 0);
    }
    let (pairs, _) = comparison.at_once(REDUCED[0], 3, 1).await?;
    assert!(pairs.iter().all(|pair| pair.ours > 0.0 && pair.theirs > 0.0));
    Ok(())
}
