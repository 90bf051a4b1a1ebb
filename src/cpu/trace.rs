//! What a run in training leaves for its backward pass, and its memory for the next.

use ndarray::Array3;

use crate::error::{Result, try_lazy_zeros};
use crate::reference::Run;
use crate::spec::config::Shape;
use crate::spec::options::RunOptions;

/// What a forward pass leaves for a backward pass, and a backward pass for the next run of the same
/// shape: its memory. Arrays are time-major, whatever the batch's layout. A run writes all of what
/// it then reads, so whatever stood there before counts for nothing.
#[derive(Debug)]
pub(crate) struct CpuTrace {
    pub(super) run: Run<f32>,
    /// `[T, B, I]`, zeros at padding.
    pub(super) x: Array3<f32>,
    /// y `[T, B, D·H]` of each layer below the last.
    pub(super) between: Vec<Array3<f32>>,
    /// `[L·D, B, H]`
    pub(super) h_n: Array3<f32>,
    /// Layer-major, forward before reverse.
    pub(super) cells: Vec<CpuCellTrace>,
    pub(super) workspace: Workspace,
}

/// What one direction of one layer leaves.
#[derive(Debug)]
pub(super) struct CpuCellTrace {
    /// `[T, B, H]`: the state that each step starts from; 0 at padding.
    pub h: Array3<f32>,
    /// `[T, B, 4H]`: r, z, n and the past's part of n; 0 at padding. None where they are made
    /// again.
    pub gates: Option<Array3<f32>>,
}

/// What backward passes work in; made by the first that needs it.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// `[T / 8, B, 4H]` for each direction, where gates are made again.
    pub gates: Vec<Array3<f32>>,
    /// `[T, B, D·H]`: gradients of what layers put out, one that is read and one that is written at
    /// most.
    pub doutputs: Vec<Array3<f32>>,
}

impl CpuTrace {
    /// For a run that starts from the states h0: in the memory of the last run, or in new.
    pub(super) fn start(
        run: Run<f32>,
        h0: Array3<f32>,
        options: RunOptions,
        cached: Option<Self>,
    ) -> Result<Self> {
        let fits = |cached: &Self| {
            let recomputes = cached.cells.iter().all(|cell| cell.gates.is_none());
            cached.run.shape == run.shape && recomputes == options.recompute
        };
        // What does not fit is gone before there is anything new.
        if let Some(cached) = cached.filter(fits) {
            return Ok(Self { run, h_n: h0, ..cached });
        }
        let Shape { steps, batch, input, hidden, layers, directions, .. } = run.shape;
        let cell = |_| {
            let h = untouched("h [T, B, H]", [steps, batch, hidden])?;
            let gates = || untouched("gates [T, B, 4H]", [steps, batch, 4 * hidden]);
            Ok(CpuCellTrace { h, gates: (!options.recompute).then(gates).transpose()? })
        };
        let between = |_| untouched("a layer's y [T, B, D·H]", [steps, batch, directions * hidden]);
        Ok(Self {
            x: untouched("x [T, B, I]", [steps, batch, input])?,
            between: (1..layers).map(between).collect::<Result<_>>()?,
            h_n: h0,
            cells: (0..layers * directions).map(cell).collect::<Result<_>>()?,
            workspace: Workspace::default(),
            run,
        })
    }

    /// Of the run, and of any that may follow in its memory.
    #[cfg(test)]
    pub fn shape(&self) -> Shape {
        self.run.shape
    }

    /// h_n `[L·D, B, H]`
    pub fn h_n(&self) -> &Array3<f32> {
        &self.h_n
    }
}

/// Zeros, touched by none yet.
pub(super) fn untouched(what: &str, shape: [usize; 3]) -> Result<Array3<f32>> {
    let zeros = try_lazy_zeros(what, shape.iter().product())?;
    Ok(Array3::from_shape_vec(shape, zeros).expect("as many as the shape holds"))
}
