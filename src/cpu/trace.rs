//! The memory of a training run: written by the forward pass, read by the backward pass, and reused
//! by the next run.

use ndarray::Array3;

use crate::error::{Result, try_untouched};
use crate::reference::Run;
use crate::spec::config::Shape;
use crate::spec::options::RunOptions;

/// The results of a forward pass that a backward pass needs. The next run of the same shape reuses
/// the memory. Arrays are time-major for any layout of the batch. A run writes everything before it
/// reads it, so old contents do not matter.
#[derive(Debug)]
pub(crate) struct CpuTrace {
    pub(super) run: Run<f32>,
    /// `[T, B, I]`, zeros at padding.
    pub(super) x: Array3<f32>,
    /// y `[T, B, D·H]` of each layer except the last.
    pub(super) between: Vec<Array3<f32>>,
    /// `[L·D, B, H]`
    pub(super) h_n: Array3<f32>,
    /// One trace per cell: layer-major, forward before reverse.
    pub(super) cells: Vec<CpuCellTrace>,
    pub(super) workspace: Workspace,
}

/// The trace of one direction of one layer.
#[derive(Debug)]
pub(super) struct CpuCellTrace {
    /// `[T, B, H]`: the state that each step starts from; 0 at padding.
    pub h: Array3<f32>,
    /// `[T, B, 4H]`: r, z, n and the recurrent part of n; 0 at padding. `None` if they are computed
    /// again.
    pub gates: Option<Array3<f32>>,
}

/// The scratch memory of backward passes, allocated by the first one.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// `[T / 8, B, 4H]` for each direction, if gates are computed again.
    pub gates: Vec<Array3<f32>>,
    /// `[T, B, D·H]`: gradients of layer outputs. At most one is read and one is written.
    pub doutputs: Vec<Array3<f32>>,
}

impl CpuTrace {
    /// Makes the trace of a run that starts from the states h0, in the memory of the last run or in
    /// new memory.
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
        // Memory that does not fit is freed before new memory is allocated.
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

    /// Returns the shape of the run, and of any run that can reuse its memory.
    #[cfg(test)]
    pub fn shape(&self) -> Shape {
        self.run.shape
    }

    /// Returns h_n `[L·D, B, H]`.
    pub fn h_n(&self) -> &Array3<f32> {
        &self.h_n
    }
}

/// Allocates zeros without touching them.
pub(super) fn untouched(what: &str, shape: [usize; 3]) -> Result<Array3<f32>> {
    let zeros = try_untouched(what, shape.iter().product())?;
    Ok(Array3::from_shape_vec(shape, zeros).expect("as many as the shape holds"))
}
