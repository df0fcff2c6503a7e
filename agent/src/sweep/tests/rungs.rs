//! Halving: the best go on, each trial is judged once, whoever asks.

use std::sync::Arc;

use crate::storage::Storage;
use crate::storage::memory::Memory;
use crate::sweep::{Halving, Place, Rungs, Verdict};

fn rungs(store: &Arc<dyn Storage>) -> Rungs {
    let halving = Halving {
        first_step: 10,
        eta: 3,
    };
    Rungs::new(store, &Place::new("s").unwrap(), halving)
}

#[tokio::test]
async fn a_third_goes_on_and_a_verdict_stands() {
    let store: Arc<dyn Storage> = Arc::new(Memory::new());
    let (mut one, mut two) = (rungs(&store), rungs(&store));
    assert_eq!((one.step(0), one.step(2)), (Some(10), Some(90)));
    // Too few to tell, then the best third of those that were there.
    let losses = [
        (3.0, Verdict::GoOn),
        (2.0, Verdict::GoOn),
        (2.5, Verdict::Stop),
        (1.0, Verdict::GoOn),
        (f64::NAN, Verdict::Stop),
        (1.5, Verdict::GoOn),
        (1.6, Verdict::Stop),
    ];
    for (i, (loss, verdict)) in losses.into_iter().enumerate() {
        let who = if i % 2 == 0 { &mut one } else { &mut two };
        let trial = format!("t{i}");
        assert_eq!(
            who.judge(0, &trial, 10, loss).await.unwrap(),
            verdict,
            "{i}"
        );
    }
    // Again, by another, with another loss: as before.
    assert_eq!(two.judge(0, "t2", 10, 0.1).await.unwrap(), Verdict::Stop);
    assert_eq!(one.judge(0, "t0", 10, 9.0).await.unwrap(), Verdict::GoOn);
    assert!(one.is_stopped("t2").await.unwrap());
    assert!(!one.is_stopped("t0").await.unwrap());
    assert!(!one.is_stopped("never seen").await.unwrap());
    // Rungs are apart.
    assert_eq!(one.judge(1, "t0", 30, 9.0).await.unwrap(), Verdict::GoOn);
}
