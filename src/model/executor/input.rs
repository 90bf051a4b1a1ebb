//! [`RunInput`]: the input of a run, and its uploads for each chunk.

use std::borrow::Cow;

use ndarray::{Array2, Array3, ArrayView3, s};

use super::{ChunkPosition, Upload, UploadData};
use crate::error::{Result, try_array};
use crate::gpu::session::CopyRegion;
use crate::model::state::{State, StateRows, state_rows};
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
    /// A buffer on the device.
    Device(&'a wgpu::Buffer),
}

impl<'a> RunInput<'a> {
    /// Prepares a batch of `mode`'s run. The run starts from `state` if there is one.
    pub fn new(mode: Mode, state: Option<&'a State>, batch: Batch<'a>) -> Result<Self> {
        let step_flags = batch.has_step_flags().then(|| batch.step_flags()).transpose()?;
        let buffer = state.and_then(State::buffer);
        let first = buffer.map_or(FirstStates::Batch, FirstStates::Device);
        Ok(Self { mode, batch, step_flags, first })
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
        let data = self.first_states(at, carried);
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
        at: &ChunkPosition<'_>,
        carried: Option<ArrayView3<'s, f32>>,
    ) -> UploadData<'s> {
        let ChunkPosition { chunk, shape, .. } = *at;
        match (&self.first, carried) {
            (FirstStates::Device(buffer), None) => {
                let first = StateSlot::First.range(shape).start;
                let region = |StateRows { of_rows, of_all, len }| CopyRegion {
                    from: of_all,
                    to: first + of_rows,
                    len,
                };
                let rows = state_rows(shape.state(), self.rows(), chunk.rows.start);
                UploadData::Buffer(buffer, rows.map(region).collect())
            }
            (_, Some(carried)) => array_or_zeros(Some(carried)),
            (FirstStates::Batch, None) => {
                let h0 = self.batch.h0.as_ref().map(|h0| h0.reborrow());
                array_or_zeros(h0.map(|h0| chunk.of_states(h0)))
            }
        }
    }

    /// Returns the number of rows of the whole run.
    fn rows(&self) -> usize {
        let (first, second, _) = self.batch.x.dim();
        let [_, rows] = self.batch.layout.order(first, second);
        rows
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
