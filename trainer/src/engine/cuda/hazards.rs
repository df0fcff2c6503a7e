//! What keeps the side stream's work apart from the main stream's: before an operation changes
//! memory that work on the side still reads, the main stream waits for that work.

use std::ops::Range;

use kernels::cuda::{CudaError, Event, Stream};

use crate::engine::plan::{BufferId, Op, ParameterId, Plan};

/// Work on the side stream that nobody has waited for.
struct Pending {
    /// Bytes of the arena that it reads.
    reads: [Range<usize>; 2],
    /// The parameter whose gradient it adds to.
    gradient: ParameterId,
    done: Event,
}

/// The main stream and, beside it, one for gradients of weights, which nothing waits for until the
/// end of the step.
pub(super) struct Streams<'a> {
    pub(super) main: &'a Stream,
    side: Option<&'a Stream>,
    /// In the order of the side stream.
    pending: Vec<Pending>,
}

impl<'a> Streams<'a> {
    /// Without `side`, everything runs on `main`.
    pub(super) fn new(main: &'a Stream, side: Option<&'a Stream>) -> Self {
        Self {
            main,
            side,
            pending: Vec::new(),
        }
    }

    /// Runs work for the gradient of a weight, which reads these buffers, after what the main
    /// stream has done so far.
    pub(super) fn beside(
        &mut self,
        plan: &Plan,
        reads: [BufferId; 2],
        gradient: ParameterId,
        work: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Some(side) = self.side else {
            return work(self.main);
        };
        side.wait_for(self.main)?;
        work(side)?;
        self.pending.push(Pending {
            reads: reads.map(|id| plan.buffers[id.0].place.clone()),
            gradient,
            done: side.record()?,
        });
        Ok(())
    }

    /// Makes the main stream wait before `op` for work whose memory it changes.
    pub(super) fn before(&mut self, plan: &Plan, op: &Op) -> Result<(), CudaError> {
        let writes = op.writes();
        let touches = |pending: &Pending| {
            let overlaps = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
            let written = writes.iter().map(|id| &plan.buffers[id.0].place);
            let mut memory =
                written.flat_map(|write| pending.reads.iter().map(move |r| (write, r)));
            // The embeddings share their table with the head.
            let shares = matches!(op, Op::EmbeddingBackward { .. }) && pending.gradient.0 == 0;
            shares || memory.any(|(write, read)| overlaps(write, read))
        };
        let Some(last) = self.pending.iter().rposition(touches) else {
            return Ok(());
        };
        self.main.wait(&self.pending[last].done)?;
        self.pending.drain(..=last);
        Ok(())
    }

    /// Makes the main stream wait for everything on the side.
    pub(super) fn join(&mut self) -> Result<(), CudaError> {
        if let Some(last) = self.pending.pop() {
            self.main.wait(&last.done)?;
            self.pending.clear();
        }
        Ok(())
    }
}
