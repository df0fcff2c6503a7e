//! The streams that work is added to, and the time that it takes where somebody asks.
//!
//! What keeps the side stream's work apart from the main stream's: before an operation changes
//! memory that work on the side still reads, the main stream waits for that work.

use std::ops::Range;
use std::time::Duration;

use kernels::cuda::{CudaError, Event, Stream};

use crate::engine::Profile;
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
    /// What was measured, where it is asked for.
    measured: Option<Vec<Measured>>,
}

/// An operation between two events.
struct Measured {
    room: &'static str,
    flops: f64,
    bytes: f64,
    begin: Event,
    end: Event,
}

impl<'a> Streams<'a> {
    /// Without `side`, everything runs on `main`.
    pub(super) fn new(main: &'a Stream, side: Option<&'a Stream>) -> Self {
        Self {
            main,
            side,
            pending: Vec::new(),
            measured: None,
        }
    }

    /// Everything on `main`, and the time of each operation measured.
    pub(super) fn measured(main: &'a Stream) -> Self {
        Self {
            measured: Some(Vec::new()),
            ..Self::new(main, None)
        }
    }

    /// Adds an operation of this room.
    pub(super) fn op(
        &mut self,
        room: &'static str,
        (flops, bytes): (f64, f64),
        work: impl FnOnce(&mut Self) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if self.measured.is_none() {
            return work(self);
        }
        let begin = self.main.record()?;
        work(self)?;
        let end = self.main.record()?;
        let measured = Measured {
            room,
            flops,
            bytes,
            begin,
            end,
        };
        self.measured.get_or_insert_default().push(measured);
        Ok(())
    }

    /// Adds what was measured to a profile, once the device is done with it.
    pub(super) fn tell(self, profile: &mut Profile) -> Result<(), CudaError> {
        self.main.synchronize()?;
        for it in self.measured.into_iter().flatten() {
            let milliseconds = it.end.milliseconds_since(&it.begin)?;
            let time = Duration::from_secs_f64(f64::from(milliseconds) / 1e3);
            profile.add(it.room, time, it.flops, it.bytes);
        }
        Ok(())
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
