//! The masks of dropout. What every engine must do is tested for all of them in `engine::tests`.

use super::*;

#[test]
fn dropout_keeps_the_right_share_and_follows_from_its_place_alone() {
    let philox = Philox::new(3, Stream::Dropout);
    let mask = |step, micro, place| {
        let at = MicroStep { step, micro };
        Dropout {
            p: 0.2,
            philox: &philox,
            at,
        }
        .mask(100_001, place)
    };
    let first = mask(5, 1, 2);
    let kept = first.iter().filter(|&&x| x > 0.0).count() as f64 / first.len() as f64;
    assert!((kept - 0.8).abs() < 0.006, "{kept}");
    assert!(first.iter().all(|&x| x == 0.0 || x == 1.25));
    assert_eq!(first, mask(5, 1, 2));
    for other in [
        mask(6, 1, 2),
        mask(5, 0, 2),
        mask(5, 1, 3),
        mask(5 + (1 << 32), 1, 2),
    ] {
        assert_ne!(first, other);
    }
}
