//! [`CpuTrace`]: the arrays that a forward pass saves for the backward pass, reused by later runs.

use ndarray::Array3;

use crate::error::{Result, try_untouched};
use crate::reference::Run;
use crate::spec::config::Shape;
use crate::spec::options::RunOptions;

/// The arrays that a forward pass saves for its backward pass. Later runs of the same shape reuse
/// their memory. Arrays are time-major for every layout of the batch. A run writes every element
/// before it reads it, so old contents do not matter.
#[derive(Debug)]
pub(crate) struct CpuTrace {
    pub(super) run: Run<f32>,
    /// x `[T, B, I]`, zeros at padding.
    pub(super) x: Array3<f32>,
    /// y `[T, B, D·H]` of each layer below the last.
    pub(super) layer_y: Vec<Array3<f32>>,
    /// h_n `[L·D, B, H]`
    pub(super) h_n: Array3<f32>,
    /// One entry for each cell: layer-major, forward before reverse.
    pub(super) cells: Vec<CpuCellTrace>,
    pub(super) workspace: Workspace,
}

/// The saved arrays of one cell.
#[derive(Debug)]
pub(super) struct CpuCellTrace {
    /// The state that each step starts from, `[T, B, H]`; zeros at padding.
    pub h: Array3<f32>,
    /// r, z, n and the recurrent term of n (`W_hn h + b_hn`, or `r ⊙ h` with reset before),
    /// `[T, B, 4H]`; zeros at padding. `None` if the backward pass recomputes them.
    pub gates: Option<Array3<f32>>,
}

/// Arrays of the backward pass, allocated by the first pass that needs them.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// The gates of one span of steps, `[T / 8, B, 4H]` for each direction, if they are recomputed.
    pub gates: Vec<Array3<f32>>,
    /// The gradients of layer outputs, `[T, B, D·H]`: at most one that is read and one that is
    /// written.
    pub doutputs: Vec<Array3<f32>>,
}

impl CpuTrace {
    /// Creates the trace of a run that starts from h0 `[L·D, B, H]`. Reuses the arrays of `cached`
    /// if they fit.
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
        // If `cached` does not fit, it is dropped here, before new memory is allocated.
        if let Some(cached) = cached.filter(fits) {
            return Ok(Self { run, h_n: h0, ..cached });
        }
        let Shape { steps, batch, input, hidden, layers, directions, .. } = run.shape;
        let cell = |_| {
            let h = untouched("h [T, B, H]", [steps, batch, hidden])?;
            let gates = || untouched("gates [T, B, 4H]", [steps, batch, 4 * hidden]);
            Ok(CpuCellTrace { h, gates: (!options.recompute).then(gates).transpose()? })
        };
        let layer_y = |_| untouched("a layer's y [T, B, D·H]", [steps, batch, directions * hidden]);
        Ok(Self {
            x: untouched("x [T, B, I]", [steps, batch, input])?,
            layer_y: (1..layers).map(layer_y).collect::<Result<_>>()?,
            h_n: h0,
            cells: (0..layers * directions).map(cell).collect::<Result<_>>()?,
            workspace: Workspace::default(),
            run,
        })
    }

    /// Returns the shape of the run, and of any run that can reuse the arrays.
    #[cfg(test)]
    pub fn shape(&self) -> Shape {
        self.run.shape
    }

    /// Returns h_n `[L·D, B, H]`.
    pub fn h_n(&self) -> &Array3<f32> {
        &self.h_n
    }
}

/// Allocates an array of zeros. The system zeroes each page when a thread first touches it.
pub(super) fn untouched(what: &str, shape: [usize; 3]) -> Result<Array3<f32>> {
    let zeros = try_untouched(what, shape.iter().product())?;
    Ok(Array3::from_shape_vec(shape, zeros).expect("the length of the shape"))
}
