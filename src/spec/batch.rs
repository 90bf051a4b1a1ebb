//! [`Batch`]: the sequences of a run.

use ndarray::{Array2, Array3, ArrayBase, ArrayView2, ArrayView3, Axis, Ix3, NdFloat, s};

use crate::error::{Error, Result, check_shape, try_with_capacity};
use crate::spec::config::{GruConfig, Layout, Shape};
use crate::spec::noise::Noise;
use crate::spec::options::Mode;

/// The sequences of a run: their steps, what state they start from, how long each is, where one
/// starts afresh.
///
/// A view or a reference to an array is a batch of its own, so the simplest call is
/// `gru.forward(&x)`.
///
/// ```
/// use gru_wgpu::{Batch, Device, Gru, GruConfig, Init};
/// use ndarray::{Array2, Array3};
///
/// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
/// let (x, h0) = (Array3::ones((10, 2, 3)), Array3::zeros((1, 2, 8)));
/// let lengths = [10, 4]; // the second row's steps from 4 on are padding
/// let out = gru.forward(Batch::new(x.view()).with_h0(h0.view()).with_lengths(&lengths))?;
/// assert_eq!(out.y[[4, 1, 0]], 0.0); // past its end
/// assert_eq!(out.h_n[[0, 1, 0]], out.y[[3, 1, 0]]); // its last valid state
///
/// let mut resets = Array2::from_elem((10, 2), false);
/// resets[[6, 0]] = true; // an episode of the first row ends before step 6
/// let out = gru.forward(Batch::new(x.view()).with_resets(resets.view()))?;
/// assert_eq!(out.y[[6, 0, 0]], out.y[[0, 0, 0]]);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Batch<'a, F = f32> {
    /// `[T, B, I]`, or `[B, T, I]` where the layout says so.
    pub x: ArrayView3<'a, F>,
    /// The order of the axes T and B in x, y, dx, dy and the mask of resets.
    pub layout: Layout,
    /// `[L·D, B, H]`; zeros when `None`.
    pub h0: Option<ArrayView3<'a, F>>,
    /// `[B]`, each from 0 to T; all T when `None`. Past a row's length nothing of x is looked at, y
    /// is 0, gradients are 0, and the state stays what it was after the last valid step. The
    /// reverse direction starts at the row's own last step. Rows need not be sorted.
    pub lengths: Option<&'a [usize]>,
    /// `[T, B]` or `[B, T]`: true at step t cuts a row between its steps t − 1 and t, as where
    /// packed documents meet or an episode ends. The forward direction starts step t from the reset
    /// state, the reverse direction step t − 1, and no gradient crosses the cut. At step 0 the
    /// reset state takes h0's place. Past a row's length nothing is cut.
    pub resets: Option<ArrayView2<'a, bool>>,
    /// `[L·D, B, H]`: the state that resets go back to; zeros when `None`.
    pub reset_state: Option<ArrayView3<'a, F>>,
    /// What dropout and zoneout draw from while training. The same seed draws the same.
    pub seed: Option<u64>,
}

impl<'a, F> Batch<'a, F> {
    /// Over x `[T, B, I]`, from zeros, every row of length T.
    pub fn new(x: ArrayView3<'a, F>) -> Self {
        let layout = Layout::TimeMajor;
        Self { x, layout, h0: None, lengths: None, resets: None, reset_state: None, seed: None }
    }

    /// The same over x `[B, T, I]`. What comes out, and dy, are batch-first too.
    pub fn batch_first(x: ArrayView3<'a, F>) -> Self {
        Self::new(x).with_layout(Layout::BatchFirst)
    }

    /// The same with x, and so what comes out and dy, in this layout.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same from the states h0 `[L·D, B, H]`, or from zeros.
    #[must_use]
    pub fn with_h0(self, h0: impl Into<Option<ArrayView3<'a, F>>>) -> Self {
        Self { h0: h0.into(), ..self }
    }

    /// The same with a length for each row `[B]`.
    #[must_use]
    pub fn with_lengths(self, lengths: &'a [usize]) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// The same with rows cut before the steps where `resets [T, B]` (or `[B, T]`, as x) is true.
    #[must_use]
    pub fn with_resets(self, resets: ArrayView2<'a, bool>) -> Self {
        Self { resets: Some(resets), ..self }
    }

    /// The same with resets going back to these states `[L·D, B, H]`, or to zeros.
    #[must_use]
    pub fn with_reset_state(self, state: impl Into<Option<ArrayView3<'a, F>>>) -> Self {
        Self { reset_state: state.into(), ..self }
    }

    /// The same with a seed for dropout and zoneout.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The same for a shorter time, as ndarray's own `reborrow`: views do not shorten by
    /// themselves.
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

    /// The flags of each step of each row, `[T, B]` whatever the layout: bits of
    /// [`step_flag`](mod@crate::step_flag). For
    /// [`Buffers::step_flags`](crate::Buffers::step_flags).
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Length`] when lengths or resets do not fit x,
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
        // x may be a view of one number repeated, of any size.
        let mut all = try_with_capacity("step_flags [T, B]", steps.saturating_mul(batch))?;
        for t in 0..steps {
            all.extend((0..batch).map(|row| flags(t, row)));
        }
        Ok(Array2::from_shape_vec((steps, batch), all).expect("T times B of them"))
    }

    /// `Ok` when lengths and resets fit x.
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

    /// Whether any step may have a flag.
    pub(crate) fn has_step_flags(&self) -> bool {
        self.lengths.is_some() || self.resets.is_some()
    }

    fn steps_and_batch(&self) -> (usize, usize) {
        let (first, second, _) = self.x.dim();
        let [steps, batch] = self.layout.order(first, second);
        (steps, batch)
    }

    /// The shape of the run, when everything fits `config`.
    pub(crate) fn check(&self, config: &GruConfig) -> Result<Shape> {
        self.check_flags()?;
        let (steps, batch) = self.steps_and_batch();
        let shape = config.shape(steps, batch)?.with_layout(self.layout);
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

    /// What dropout and zoneout do in this run.
    pub(crate) fn noise(&self, config: &GruConfig, mode: Mode) -> Result<Noise> {
        if mode == Mode::Training && config.draws() && self.seed.is_none() {
            return Err(Error::NoSeed);
        }
        Ok(Noise::new(config, mode, self.seed.unwrap_or(0)))
    }
}

/// The flags of a step of a row, a bit each; `shaders/step.wgsl` has the same.
///
/// [`Batch::step_flags`](crate::Batch::step_flags) makes them of lengths and resets. A program that
/// runs a forward pass on its own buffers may write them itself, on the GPU too: `[T, B]`, a u32
/// each.
pub mod step_flag {
    /// The row has ended: its state stays as it is, y is 0.
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

/// Writes zeros past each row's length in an array of `layout`.
pub(crate) fn zero_padding<F: NdFloat>(array: &mut Array3<F>, layout: Layout, lengths: &[usize]) {
    let mut array = time_major(array.view_mut(), layout);
    for (mut row, &length) in array.axis_iter_mut(Axis(1)).zip(lengths) {
        row.slice_mut(s![length.., ..]).fill(F::zero());
    }
}

/// A view `[T, B, ·]` of an array of `layout`.
pub(crate) fn time_major<S: ndarray::RawData>(
    array: ArrayBase<S, Ix3>,
    layout: Layout,
) -> ArrayBase<S, Ix3> {
    match layout {
        Layout::TimeMajor => array,
        Layout::BatchFirst => array.permuted_axes([1, 0, 2]),
    }
}
