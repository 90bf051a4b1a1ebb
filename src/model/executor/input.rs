//! [`RunInput`]: the input of a run, and its uploads for each chunk.

use std::borrow::Cow;

use ndarray::{Array2, Array3, ArrayView3, s};

use super::{ChunkPosition, Executor, Upload, UploadData};
use crate::error::{Result, try_array};
use crate::model::state::State;
use crate::plan::{Mode, Plan, RunBuffers, StateSlot};
use crate::spec::batch::{Batch, zero_padding};
use crate::spec::chunk::Chunk;
use crate::spec::noise;

/// The input of a run: a batch and its first states, both checked against the model.
pub(crate) struct RunInput<'a> {
    mode: Mode,
    batch: Batch<'a>,
    /// `[T, B]`; `None` if no step has a flag.
    step_flags: Option<Array2<u32>>,
    first: FirstStates<'a>,
}

/// The source of a run's first states.
enum FirstStates<'a> {
    /// The batch's h0, or zeros without one.
    Batch,
    /// A buffer on the device, for a run in one chunk.
    Device(&'a wgpu::Buffer),
    /// States read from the device, for a run in several chunks.
    Host(Array3<f32>),
}

impl<'a> RunInput<'a> {
    /// Makes the input of the executor's run. The run starts from `state` if there is one.
    pub async fn new(
        executor: &Executor<'_>,
        state: Option<&'a State>,
        batch: Batch<'a>,
    ) -> Result<Self> {
        let step_flags = batch.has_step_flags().then(|| batch.step_flags()).transpose()?;
        let first = match state {
            None => FirstStates::Batch,
            Some(state) if executor.is_chunked() => {
                FirstStates::Host(state.read(executor.wait()).await?)
            }
            Some(state) => state.buffer().map_or(FirstStates::Batch, FirstStates::Device),
        };
        Ok(Self { mode: executor.mode(), batch, step_flags, first })
    }

    /// Returns the uploads of a chunk. The chunk starts from the states `carried` `[L·D, b, H]` if
    /// given, otherwise from the run's first states.
    pub fn uploads<'s>(
        &'s self,
        at: &ChunkPosition<'_>,
        plan: &Plan,
        carried: Option<ArrayView3<'s, f32>>,
    ) -> Result<Vec<Upload<'s>>> {
        let RunBuffers { x, step_flags, states, .. } = *plan.run_buffers();
        let (chunk, shape) = (at.chunk, at.shape);
        let (rows, reset) = (shape.steps * shape.batch, StateSlot::Reset.range(shape));
        let mut uploads = vec![
            Upload { buffer: x, range: 0..shape.x().iter().product(), data: self.x(chunk)? },
            Upload { buffer: step_flags, range: 0..rows, data: self.step_flags(chunk) },
        ];
        if self.mode == Mode::Training {
            let first = [chunk.steps.start, chunk.rows.start];
            let seed = noise::draw_seed(self.batch.seed.unwrap_or(0), first).to_vec();
            let range = rows..rows + seed.len();
            uploads.push(Upload { buffer: step_flags, range, data: UploadData::U32(seed.into()) });
        }
        let reset_state = self.batch.reset_state.as_ref().map(|state| state.reborrow());
        let data = array_or_zeros(reset_state.map(|state| chunk.of_states(state)));
        uploads.push(Upload { buffer: states, range: reset, data });
        let data = self.first_states(chunk, carried);
        uploads.push(Upload { buffer: states, range: StateSlot::First.range(shape), data });
        Ok(uploads)
    }

    fn x(&self, chunk: &Chunk) -> Result<UploadData<'_>> {
        let x = chunk.of_sequence(self.batch.x.reborrow(), self.batch.layout);
        let Some(lengths) = self.batch.lengths else { return Ok(UploadData::Array(x.into())) };
        // Padding may hold NaN or infinity, but its product with a gradient of 0 must be 0.
        let mut clean = try_owned("x", x)?;
        zero_padding(&mut clean, self.batch.layout, &chunk.lengths(lengths));
        Ok(UploadData::Array(clean.into()))
    }

    fn step_flags(&self, chunk: &Chunk) -> UploadData<'_> {
        let Some(flags) = &self.step_flags else { return UploadData::Zeros };
        let flags = flags.slice(s![chunk.steps.clone(), chunk.rows.clone()]);
        let copy = || flags.iter().copied().collect::<Vec<_>>();
        UploadData::U32(flags.to_slice().map_or_else(|| copy().into(), Cow::Borrowed))
    }

    fn first_states<'s>(
        &'s self,
        chunk: &Chunk,
        carried: Option<ArrayView3<'s, f32>>,
    ) -> UploadData<'s> {
        let given = match &self.first {
            FirstStates::Device(buffer) if carried.is_none() => return UploadData::Buffer(buffer),
            FirstStates::Host(state) => Some(state.view()),
            FirstStates::Batch | FirstStates::Device(_) => {
                self.batch.h0.as_ref().map(|h0| h0.reborrow())
            }
        };
        array_or_zeros(carried.or(given.map(|given| chunk.of_states(given))))
    }
}

/// Returns the upload data of `array`, or zeros without one.
pub(super) fn array_or_zeros(array: Option<ArrayView3<'_, f32>>) -> UploadData<'_> {
    array.map_or(UploadData::Zeros, |array| UploadData::Array(array.into()))
}

/// Copies an array into standard layout. `what` names the copy in an error.
pub(super) fn try_owned(what: &'static str, view: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
    let mut copy: Array3<f32> = try_array(what, view.dim())?;
    copy.assign(&view);
    Ok(copy)
}
