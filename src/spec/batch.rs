//! [`Batch`]: the input sequences of a run.

use ndarray::{Array2, Array3, ArrayBase, ArrayView2, ArrayView3, Axis, Ix3, NdFloat, s};

use crate::error::{Error, Result, check_shape, try_with_capacity};
use crate::spec::config::{GruConfig, Layout, Shape};
use crate::spec::noise::Noise;
use crate::spec::options::Mode;

/// The input of a run: the sequences x, their first states, lengths and resets, and a seed.
///
/// An array view or a reference to an array converts to a batch, so the simplest call is
/// `gru.forward(&x)`.
///
/// ```
/// use gru_wgpu::{Batch, Device, Gru, GruConfig, Init};
/// use ndarray::{Array2, Array3};
///
/// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
/// let (x, h0) = (Array3::ones((10, 2, 3)), Array3::zeros((1, 2, 8)));
/// let lengths = [10, 4]; // in the second row, steps 4 to 9 are padding
/// let out = gru.forward(Batch::new(x.view()).with_h0(h0.view()).with_lengths(&lengths))?;
/// assert_eq!(out.y[[4, 1, 0]], 0.0); // padding
/// assert_eq!(out.h_n[[0, 1, 0]], out.y[[3, 1, 0]]); // the row's last valid state
///
/// let mut resets = Array2::from_elem((10, 2), false);
/// resets[[6, 0]] = true; // the first row starts a new episode at step 6
/// let out = gru.forward(Batch::new(x.view()).with_resets(resets.view()))?;
/// assert_eq!(out.y[[6, 0, 0]], out.y[[0, 0, 0]]);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Batch<'a, F = f32> {
    /// The input sequences, `[T, B, I]` or, batch-first, `[B, T, I]`.
    pub x: ArrayView3<'a, F>,
    /// The order of the axes T and B in x, y, dx, dy and the reset mask.
    pub layout: Layout,
    /// The first states, `[L·D, B, H]`; zeros if `None`.
    pub h0: Option<ArrayView3<'a, F>>,
    /// The length of each row, `[B]`, each from 0 to T; all T if `None`. Past a row's length x is
    /// not read, y is 0, gradients are 0, and the state keeps the value of the last valid step. The
    /// reverse direction starts at the row's last valid step. Rows need not be sorted by length.
    pub lengths: Option<&'a [usize]>,
    /// The reset mask, `[T, B]` or `[B, T]`. True at step t cuts a row between its steps t − 1 and
    /// t, for instance between packed documents or at the end of an episode. The forward direction
    /// starts step t from the reset state, the reverse direction step t − 1. No gradient crosses
    /// the cut. At step 0 the reset state replaces h0. Resets past a row's length have no effect.
    pub resets: Option<ArrayView2<'a, bool>>,
    /// The reset state, `[L·D, B, H]`; zeros if `None`.
    pub reset_state: Option<ArrayView3<'a, F>>,
    /// The seed of dropout and zoneout while training. The same seed gives the same draws.
    pub seed: Option<u64>,
}

impl<'a, F> Batch<'a, F> {
    /// Returns a batch over x `[T, B, I]`, with first states of zeros and every row of length T.
    pub fn new(x: ArrayView3<'a, F>) -> Self {
        let layout = Layout::TimeMajor;
        Self { x, layout, h0: None, lengths: None, resets: None, reset_state: None, seed: None }
    }

    /// Returns a batch over x `[B, T, I]`. The results and dy are batch-first too.
    pub fn batch_first(x: ArrayView3<'a, F>) -> Self {
        Self::new(x).with_layout(Layout::BatchFirst)
    }

    /// Sets the layout of x, the results and dy.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Sets the first states h0 `[L·D, B, H]`; `None` means zeros.
    #[must_use]
    pub fn with_h0(self, h0: impl Into<Option<ArrayView3<'a, F>>>) -> Self {
        Self { h0: h0.into(), ..self }
    }

    /// Sets the length of each row, `[B]`.
    #[must_use]
    pub fn with_lengths(self, lengths: &'a [usize]) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// Sets the reset mask `[T, B]`, or `[B, T]` if x is batch-first. A row is cut before the steps
    /// where the mask is true.
    #[must_use]
    pub fn with_resets(self, resets: ArrayView2<'a, bool>) -> Self {
        Self { resets: Some(resets), ..self }
    }

    /// Sets the reset state `[L·D, B, H]`; `None` means zeros.
    #[must_use]
    pub fn with_reset_state(self, state: impl Into<Option<ArrayView3<'a, F>>>) -> Self {
        Self { reset_state: state.into(), ..self }
    }

    /// Sets the seed of dropout and zoneout.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Returns the same batch with a shorter lifetime. ndarray's views do not convert to one
    /// implicitly.
    pub fn reborrow<'b>(self) -> Batch<'b, F>
    where
        'a: 'b,
    {
        Batch {
            x: self.x.reborrow(),
            layout: self.layout,
            h0: self.h0.map(ArrayView3::reborrow),
            lengths: self.lengths,
            resets: self.resets.map(ArrayView2::reborrow),
            reset_state: self.reset_state.map(ArrayView3::reborrow),
            seed: self.seed,
        }
    }

    /// Returns the step flags of each step and row, `[T, B]` in every layout: bits of
    /// [`step_flag`](mod@crate::step_flag), for
    /// [`Buffers::step_flags`](crate::Buffers::step_flags).
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Length`] if lengths or resets do not fit x, and
    /// [`Error::OutOfMemory`].
    pub fn step_flags(&self) -> Result<Array2<u32>> {
        self.check_flags()?;
        let (steps, batch) = self.steps_and_batch();
        let flags = |t: usize, row: usize| {
            let length = self.lengths.map_or(steps, |lengths| lengths[row]);
            let cut = |t: usize| {
                let reset = |r: &ArrayView2<'_, bool>| r[self.layout.order(t, row)];
                t < length && self.resets.as_ref().is_some_and(reset)
            };
            if t >= length {
                return step_flag::PADDING;
            }
            let forward = if cut(t) { step_flag::RESTART } else { 0 };
            let reverse = if cut(t + 1) { step_flag::RESTART_REVERSE } else { 0 };
            forward | reverse
        };
        // x may be a broadcast view, so T·B may exceed the host's memory.
        let mut all = try_with_capacity("step_flags [T, B]", steps.saturating_mul(batch))?;
        for t in 0..steps {
            all.extend((0..batch).map(|row| flags(t, row)));
        }
        Ok(Array2::from_shape_vec((steps, batch), all).expect("the length is T·B"))
    }

    /// Returns `Ok` if lengths and resets fit x.
    fn check_flags(&self) -> Result<()> {
        let (steps, batch) = self.steps_and_batch();
        if let Some(lengths) = self.lengths {
            check_shape("lengths [B]", &[batch], &[lengths.len()])?;
            if let Some(row) = lengths.iter().position(|&length| length > steps) {
                return Err(Error::Length { row, length: lengths[row], steps });
            }
        }
        if let Some(resets) = &self.resets {
            let what = match self.layout {
                Layout::TimeMajor => "resets [T, B]",
                Layout::BatchFirst => "resets [B, T]",
            };
            check_shape(what, &self.layout.order(steps, batch), resets.shape())?;
        }
        Ok(())
    }

    /// Returns true if any step may have a flag.
    pub(crate) fn has_step_flags(&self) -> bool {
        self.lengths.is_some() || self.resets.is_some()
    }

    fn steps_and_batch(&self) -> (usize, usize) {
        let (first, second, _) = self.x.dim();
        let [steps, batch] = self.layout.order(first, second);
        (steps, batch)
    }

    /// Returns the shape of the run, or an error if an array does not fit `config`.
    pub(crate) fn check(&self, config: &GruConfig) -> Result<Shape> {
        self.check_flags()?;
        let (steps, batch) = self.steps_and_batch();
        let shape = config.any_shape(steps, batch)?.with_layout(self.layout);
        let what = match self.layout {
            Layout::TimeMajor => "x [T, B, I]",
            Layout::BatchFirst => "x [B, T, I]",
        };
        check_shape(what, &shape.x(), self.x.shape())?;
        for (what, state) in
            [("h0 [L·D, B, H]", &self.h0), ("the reset state [L·D, B, H]", &self.reset_state)]
        {
            if let Some(state) = state {
                check_shape(what, &shape.state(), state.shape())?;
            }
        }
        Ok(shape)
    }

    /// Returns the dropout and zoneout of this run.
    pub(crate) fn noise(&self, config: &GruConfig, mode: Mode) -> Result<Noise> {
        if mode == Mode::Training && config.draws() && self.seed.is_none() {
            return Err(Error::NoSeed);
        }
        Ok(Noise::new(config, mode, self.seed.unwrap_or(0)))
    }
}

/// The bits of step flags, a u32 for each step and row, `[T, B]`. `shaders/step.wgsl` has the same
/// constants.
///
/// [`Batch::step_flags`](crate::Batch::step_flags) computes step flags from lengths and resets. A
/// program that runs a forward pass over its own buffers may write them itself, on the GPU too.
pub mod step_flag {
    /// The step is past the row's length: the state stays unchanged, y is 0.
    pub const PADDING: u32 = 1;
    /// The forward direction starts this step from the reset state.
    pub const RESTART: u32 = 2;
    /// The reverse direction starts this step from the reset state.
    pub const RESTART_REVERSE: u32 = 4;
}

impl<'a, F> From<ArrayView3<'a, F>> for Batch<'a, F> {
    fn from(x: ArrayView3<'a, F>) -> Self {
        Self::new(x)
    }
}

impl<'a, F> From<&'a Array3<F>> for Batch<'a, F> {
    fn from(x: &'a Array3<F>) -> Self {
        Self::new(x.view())
    }
}

/// Writes zeros past each row's length in an array with this layout.
pub(crate) fn zero_padding<F: NdFloat>(array: &mut Array3<F>, layout: Layout, lengths: &[usize]) {
    let mut array = time_major(array.view_mut(), layout);
    for (mut row, &length) in array.axis_iter_mut(Axis(1)).zip(lengths) {
        row.slice_mut(s![length.., ..]).fill(F::zero());
    }
}

/// Returns a time-major view `[T, B, ·]` of an array with this layout.
pub(crate) fn time_major<S: ndarray::RawData>(
    array: ArrayBase<S, Ix3>,
    layout: Layout,
) -> ArrayBase<S, Ix3> {
    match layout {
        Layout::TimeMajor => array,
        Layout::BatchFirst => array.permuted_axes([1, 0, 2]),
    }
}
