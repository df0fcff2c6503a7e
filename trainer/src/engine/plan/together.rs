//! Batches that an evaluation computes in one pass, in the memory that a step takes anyway: there
//! are fewer and larger products, and each kernel has more to do. Asked when an engine is built.

use super::{Plan, PlanRequest};

/// Elements that a buffer may have: kernels count rows and their parts in 32 bits.
const ELEMENTS_MAX: usize = i32::MAX as usize;

/// A plan for several batches, one after the other in its rows.
#[derive(Clone, Debug)]
pub struct Together {
    pub batches: usize,
    pub plan: Plan,
}

impl PlanRequest<'_> {
    /// As many of an evaluation's `count` batches in one pass as suit it and `arena_bytes` hold.
    /// `None` where one at a time is all that there is room for, or all that there is.
    pub fn together(&self, count: u64, arena_bytes: usize) -> Option<Together> {
        assert!(!self.backward, "gradients are added up batch by batch");
        let plan = |batches: usize| {
            let batch_size = self.batch_size * batches;
            let plan = Self {
                batch_size,
                ..self.clone()
            };
            plan.build()
        };
        // No fewer elements than those of the widest activation.
        let of_a_batch = self.batch_size * self.block_size * 4 * self.model.n_embd;
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        let most = most.min(ELEMENTS_MAX / of_a_batch.max(1));
        let fits = |batches: usize| {
            let plan = plan(batches);
            let elements = plan.buffers.iter().map(|buffer| buffer.elements).max();
            plan.arena_bytes <= arena_bytes && elements <= Some(ELEMENTS_MAX)
        };
        // What is smaller needs no more: halve the range.
        let (mut largest, mut above) = (1, most.saturating_add(1));
        while largest + 1 < above {
            let middle = largest + (above - largest) / 2;
            if fits(middle) {
                largest = middle;
            } else {
                above = middle;
            }
        }
        let batches = suited(count, largest);
        (batches > 1).then(|| Together {
            batches,
            plan: plan(batches),
        })
    }
}

/// How many at a time, at most `largest`, make `count` in the fewest passes, if those that are left
/// over are done one by one.
fn suited(count: u64, largest: usize) -> usize {
    let passes = |&together: &usize| {
        let together = together as u64;
        count / together + count % together
    };
    let most = usize::try_from(count).map_or(largest, |count| largest.min(count));
    // Of equal ones the largest.
    (1..=most).rev().min_by_key(passes).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::suited;

    #[test]
    fn the_fewest_passes_are_found() {
        assert_eq!(suited(200, 64), 50);
        assert_eq!(suited(200, 30), 25);
        // 199 is prime: four passes and three batches of their own.
        assert_eq!(suited(199, 64), 49);
        assert_eq!(suited(7, 3), 3);
        assert_eq!(suited(20, 500), 20);
        assert_eq!((suited(1, 9), suited(5, 1)), (1, 1));
    }
}
