//! [`SequenceWindows`]: long sequences, cut into windows.

use std::ops::Range;

use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn, Slice, s};

use crate::error::{Error, Result, try_array};
use crate::fingerprint::DataFingerprint;
use crate::spec::config::GruConfig;
use crate::spec::head::{Head, Readout};
use crate::spec::loss::Loss;
use crate::training::dataset::{
    Dataset, Example, Target, TargetArray, TrainingBatch, check_examples,
};

/// Long sequences, cut into windows of the same number of steps. Each sequence has a target per
/// time step.
///
/// ```
/// use std::ops::ControlFlow;
/// use gru_wgpu::{
///     Device, Example, GruConfig, Head, Init, Learner, LearnerConfig, Loss, Optimizer,
///     ParamLayout, Params, SequenceWindows, Target, Trainer, TrainerConfig,
/// };
/// use ndarray::Array2;
///
/// // A recording of 5000 steps. The target of a step is the mean of the inputs so far.
/// let x = Array2::from_shape_fn((5000, 1), |(t, _)| (t as f32 * 0.37).sin());
/// let mut sum = 0.0;
/// let target = Array2::from_shape_fn((5000, 1), |(t, _)| {
///     sum += x[[t, 0]];
///     sum / (t + 1) as f32
/// });
/// let recordings = vec![Example::new(x, Target::Series(target))];
///
/// // Backpropagation through 50 steps. The states pass from each window to the next.
/// let windows = SequenceWindows::every_step(recordings, 50, 50)?;
/// let layout = ParamLayout::with_head(&GruConfig::pytorch(1, 8), Head::every_step(1))?;
/// let params = Params::init_of(layout, Init::Uniform, 1)?;
/// let config = LearnerConfig::new(Loss::MeanSquared, Optimizer::adam(), 0.01);
/// let learner = Learner::new(params, config, &Device::cpu())?;
/// let mut trainer = Trainer::new(learner, TrainerConfig::new(2, 4))?;
/// trainer.run(&windows, &windows, |_, _| Ok(ControlFlow::Continue(())))?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceWindows {
    sequences: Vec<Example>,
    window: usize,
    stride: usize,
    readout: Readout,
    windows: Vec<Window>,
    /// The steps of the longest window, to which batches are padded.
    steps: usize,
}

/// The place of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    /// The index of its sequence.
    sequence: usize,
    /// Its steps in the sequence.
    steps: Range<usize>,
}

/// A window of a batch.
struct BatchRow<'a> {
    sequence: &'a Example,
    steps: Range<usize>,
    /// The steps whose targets count.
    counted: Range<usize>,
}

impl SequenceWindows {
    /// Cuts sequences for truncated backpropagation through time, with a head over every step
    /// ([`Readout::EveryStep`]).
    ///
    /// A window starts `stride` steps after the one before, from the state there, which was
    /// computed with the parameters before that window's update. Gradients flow through the
    /// `window` steps of a window only. Each step counts once: a window that overlaps the one
    /// before counts only its new steps. So an update comes every `stride` steps and
    /// backpropagates through `window` steps (k₁ and k₂ of Sutskever 2013; h′ and h of Williams and
    /// Peng 1990). The last window of a sequence may be shorter.
    ///
    /// With a stride below the window, the states after `stride` steps take a forward pass of their
    /// own, without dropout.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] if the window or the stride is 0, and [`Error::Setting`] if the stride
    /// exceeds the window, which would leave out steps.
    pub fn every_step(sequences: Vec<Example>, window: usize, stride: usize) -> Result<Self> {
        Self::new(sequences, window, stride, Readout::EveryStep)
    }

    /// Cuts sequences into windows for a head over the last state ([`Readout::LastState`]). The
    /// target of a window is that of its last step. Windows are independent examples, which start
    /// from zeros and may overlap. The last one ends at the last step of its sequence; steps before
    /// the first whole window are left out. A sequence that is shorter than a window is one window.
    ///
    /// # Errors
    /// [`Error::ZeroSize`] if the window or the stride is 0.
    pub fn last_step(sequences: Vec<Example>, window: usize, stride: usize) -> Result<Self> {
        Self::new(sequences, window, stride, Readout::LastState)
    }

    /// Returns the steps of the windows of a sequence of `len` steps, in order: those that
    /// [`Self::every_step`] or [`Self::last_step`] cuts for a head with this readout. For a loop of
    /// your own, such as one that predicts.
    ///
    /// ```
    /// use gru_wgpu::{Readout, SequenceWindows};
    /// let windows = SequenceWindows::cut(8, 5, 2, Readout::EveryStep)?;
    /// assert!(windows.eq([0..5, 2..7, 4..8]));
    /// let windows = SequenceWindows::cut(8, 5, 2, Readout::LastState)?;
    /// assert!(windows.eq([1..6, 3..8]));
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Self::every_step`] and [`Self::last_step`].
    pub fn cut(
        len: usize,
        window: usize,
        stride: usize,
        readout: Readout,
    ) -> Result<impl ExactSizeIterator<Item = Range<usize>>> {
        check_windows(window, stride, readout)?;
        Ok(windows_of(len, window, stride, readout))
    }

    fn new(
        sequences: Vec<Example>,
        window: usize,
        stride: usize,
        readout: Readout,
    ) -> Result<Self> {
        check_windows(window, stride, readout)?;
        let of_sequence = |(index, sequence): (usize, &Example)| {
            let windows = windows_of(sequence.x.nrows(), window, stride, readout);
            windows.map(move |steps| Window { sequence: index, steps })
        };
        let windows: Vec<_> = sequences.iter().enumerate().flat_map(of_sequence).collect();
        let steps = windows.iter().map(|window| window.steps.len()).max().unwrap_or(0);
        Ok(Self { sequences, window, stride, readout, windows, steps })
    }

    /// Returns the sequences.
    pub fn sequences(&self) -> &[Example] {
        &self.sequences
    }

    /// Returns the index of a window's sequence, and the window's steps in it.
    ///
    /// # Panics
    /// If there is no such window.
    pub fn window(&self, index: usize) -> (usize, Range<usize>) {
        let Window { sequence, steps } = self.windows[index].clone();
        (sequence, steps)
    }

    /// Returns the steps of a window whose targets count.
    fn counted(&self, index: usize) -> Range<usize> {
        let Window { steps, .. } = &self.windows[index];
        let start = match self.readout {
            Readout::LastState => steps.end.saturating_sub(1),
            // The window before ended here.
            Readout::EveryStep if steps.start > 0 => steps.start - self.stride + self.window,
            Readout::EveryStep => 0,
        };
        start..steps.end
    }

    /// Returns the windows and their sequences.
    fn rows(&self, windows: &[usize]) -> Result<Vec<BatchRow<'_>>> {
        let row = |&index: &usize| {
            let expected = "below the number of windows";
            let Window { sequence, steps } = (self.windows.get(index))
                .ok_or_else(|| Error::setting("the index of a window", index, expected))?;
            let (sequence, counted) = (&self.sequences[*sequence], self.counted(index));
            Ok(BatchRow { sequence, steps: steps.clone(), counted })
        };
        windows.iter().map(row).collect()
    }
}

/// Refuses windows of no steps, and windows that leave out steps whose targets count.
fn check_windows(window: usize, stride: usize, readout: Readout) -> Result<()> {
    for (what, size) in [("the window", window), ("the stride of windows", stride)] {
        if size == 0 {
            return Err(Error::ZeroSize { what });
        }
    }
    if readout == Readout::EveryStep && stride > window {
        let expected = "at most the window: a larger one leaves out steps";
        return Err(Error::setting("the stride of windows", stride, expected));
    }
    Ok(())
}

/// Returns the steps of the windows of a sequence of `len` steps.
fn windows_of(
    len: usize,
    window: usize,
    stride: usize,
    readout: Readout,
) -> impl ExactSizeIterator<Item = Range<usize>> {
    let room = len.saturating_sub(window);
    let (first, count) = match readout {
        // One more window as long as steps remain after the last one.
        Readout::EveryStep => (0, room.div_ceil(stride) + 1),
        Readout::LastState => (room % stride, room / stride + 1),
    };
    (0..count).map(move |at| {
        let start = first + at * stride;
        start..start.saturating_add(window).min(len)
    })
}

/// The name of a batch of windows in error messages.
const WINDOWS: &str = "a batch of windows";

impl Dataset for SequenceWindows {
    fn len(&self) -> usize {
        self.windows.len()
    }

    fn steps(&self, index: usize) -> usize {
        self.windows.get(index).map_or(0, |window| window.steps.len())
    }

    fn batch(&self, examples: &[usize]) -> Result<TrainingBatch> {
        let rows = self.rows(examples)?;
        let inputs = rows.first().map_or(0, |row| row.sequence.x.ncols());
        let mut x: Array3<f32> = try_array(WINDOWS, [self.steps, rows.len(), inputs])?;
        for (row, BatchRow { sequence, steps, .. }) in rows.iter().enumerate() {
            let of_window = sequence.x.slice(s![steps.clone(), ..]);
            x.slice_mut(s![..steps.len(), row, ..]).assign(&of_window);
        }
        let lengths: Vec<_> = rows.iter().map(|row| row.steps.len()).collect();
        let targets = match self.readout {
            Readout::EveryStep => step_targets(self.steps, &rows)?,
            Readout::LastState => last_targets(&rows)?,
        };
        let batch = TrainingBatch::new(x, targets);
        let is_whole = lengths.iter().all(|&length| length == self.steps);
        Ok(if is_whole { batch } else { batch.with_lengths(lengths) })
    }

    fn fingerprint(&self) -> DataFingerprint {
        let sequences = DataFingerprint::of(&self.sequences);
        let kind = u64::from(self.readout == Readout::LastState);
        let numbers = [sequences.hash, self.window as u64, self.stride as u64, kind];
        DataFingerprint::of_numbers(self.len(), numbers)
    }

    fn has_target(&self, index: usize, loss: &Loss) -> bool {
        let Some(window) = self.windows.get(index) else { return false };
        self.sequences[window.sequence].counts_at(loss, self.counted(index))
    }

    fn stride(&self) -> Option<usize> {
        (self.readout == Readout::EveryStep).then_some(self.stride)
    }

    fn continues(&self, index: usize) -> bool {
        let starts_later = |window: &Window| window.steps.start > 0;
        self.readout == Readout::EveryStep && self.windows.get(index).is_some_and(starts_later)
    }

    fn check(&self, config: &GruConfig, head: &Head) -> Result<()> {
        if head.readout != self.readout {
            return Err(Error::Conflict {
                what: "windows and a head of another readout",
                why: "SequenceWindows::every_step needs a head over every step, SequenceWindows::last_step one over \
                      the last state",
            });
        }
        // The sequences have a target per time step in both cases.
        let head = Head { readout: Readout::EveryStep, ..*head };
        check_examples(&self.sequences, config.input_size, &head)
    }
}

/// Returns the targets of the steps of windows, padded to `padded` steps. Only the targets of a
/// window's counted steps count.
fn step_targets(padded: usize, rows: &[BatchRow<'_>]) -> Result<TargetArray> {
    let shape = [padded, rows.len()];
    let mut mask: Array2<bool> = try_array(WINDOWS, shape)?;
    let mut classes: Array2<i32> = try_array(WINDOWS, shape)?;
    let mut values = ArrayD::<f32>::zeros(IxDyn(&[0]));
    for (row, BatchRow { sequence, steps, counted }) in rows.iter().enumerate() {
        let of_window = Slice::from(steps.clone());
        match &sequence.target {
            Target::Classes(all) => {
                let all = ndarray::aview1(all);
                let to = s![..steps.len(), row];
                classes.slice_mut(to).assign(&all.slice_axis(Axis(0), of_window));
            }
            Target::Series(all) => {
                if values.is_empty() {
                    values = try_array(WINDOWS, IxDyn(&[padded, rows.len(), all.ncols()]))?;
                }
                let mut of_row = values.index_axis_mut(Axis(1), row);
                let mut of_row = of_row.slice_axis_mut(Axis(0), Slice::from(..steps.len()));
                of_row.assign(&all.slice_axis(Axis(0), of_window));
            }
            Target::Class(_) | Target::Values(_) => return Err(NO_STEP_TARGETS),
        }
        for step in counted.clone() {
            mask[[step - steps.start, row]] = counts(sequence, step);
        }
    }
    let targets = if values.is_empty() { classes.into() } else { TargetArray::from(values) };
    Ok(targets.with_mask(mask))
}

/// Returns the targets of the last steps of windows.
fn last_targets(rows: &[BatchRow<'_>]) -> Result<TargetArray> {
    let mut mask = Vec::with_capacity(rows.len());
    let (mut classes, mut values) = (Vec::<i32>::new(), Vec::<f32>::new());
    for BatchRow { sequence, counted, .. } in rows {
        match &sequence.target {
            Target::Classes(all) => classes.push(all[counted.start]),
            Target::Series(all) => values.extend(all.row(counted.start)),
            Target::Class(_) | Target::Values(_) => return Err(NO_STEP_TARGETS),
        }
        mask.push(counts(sequence, counted.start));
    }
    let targets: TargetArray = match values.len() / rows.len().max(1) {
        0 => ndarray::Array1::from(classes).into(),
        width => {
            let values = Array2::from_shape_vec((rows.len(), width), values);
            values.expect("all targets have the same width").into()
        }
    };
    Ok(targets.with_mask(ndarray::Array1::from(mask)))
}

/// Returns true if the target of a step counts.
fn counts(sequence: &Example, step: usize) -> bool {
    sequence.mask.as_ref().is_none_or(|mask| mask[step])
}

const NO_STEP_TARGETS: Error = Error::Conflict {
    what: "windows and one target per sequence",
    why: "a sequence of which windows are cut needs a target per time step",
};

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence whose inputs and classes are the numbers of its steps.
    fn sequence(len: usize) -> Example {
        let x = Array2::from_shape_fn((len, 1), |(t, _)| t as f32);
        Example::new(x, Target::Classes((0..len as i32).collect()))
    }

    fn starts_and_ends(windows: &SequenceWindows) -> Vec<(usize, usize)> {
        windows.windows.iter().map(|window| (window.steps.start, window.steps.end)).collect()
    }

    #[test]
    fn every_step_counts_once() {
        for (len, window, stride) in [
            (1, 5, 2),
            (5, 5, 5),
            (6, 5, 5),
            (17, 5, 2),
            (17, 5, 5),
            (17, 5, 1),
            (4, 5, 3),
            (18, 5, 4),
        ] {
            let all = vec![sequence(len), sequence(3)];
            let windows = SequenceWindows::every_step(all, window, stride).unwrap();
            let mut counts = vec![vec![0; len], vec![0; 3]];
            for index in 0..windows.len() {
                let Window { sequence, steps } = &windows.windows[index];
                assert_eq!(windows.continues(index), steps.start > 0);
                assert!(
                    windows.counted(index).start >= steps.start
                        && !windows.counted(index).is_empty()
                );
                windows.counted(index).for_each(|step| counts[*sequence][step] += 1);
            }
            assert_eq!(counts, [vec![1; len], vec![1; 3]], "{len} {window} {stride}");
        }
    }

    #[test]
    fn windows_have_their_steps_targets_and_mask() {
        let windows = SequenceWindows::every_step(vec![sequence(8)], 5, 2).unwrap();
        assert_eq!(starts_and_ends(&windows), [(0, 5), (2, 7), (4, 8)]);
        let batch = windows.batch(&[1, 2]).unwrap();
        assert_eq!(batch.lengths.as_deref(), Some(&[5, 4][..]));
        assert_eq!(batch.x.slice(s![.., 0, 0]).to_vec(), [2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(batch.x.slice(s![.., 1, 0]).to_vec(), [4.0, 5.0, 6.0, 7.0, 0.0]);
        let TargetArray::Masked { targets, mask } = batch.targets else { panic!("no mask") };
        let TargetArray::Classes(classes) = *targets else { panic!("no classes") };
        assert_eq!((classes[[3, 0]], classes[[3, 1]]), (5, 7));
        let counted = |row: usize| (0..5).filter(|&t| mask[[t, row]]).collect::<Vec<_>>();
        assert_eq!((counted(0), counted(1)), (vec![3, 4], vec![3]));
    }

    #[test]
    fn a_window_with_one_target_has_that_of_its_last_step() {
        let windows = SequenceWindows::last_step(vec![sequence(8), sequence(2)], 5, 2).unwrap();
        assert_eq!(starts_and_ends(&windows), [(1, 6), (3, 8), (0, 2)]);
        assert_eq!((windows.stride(), windows.continues(1)), (None, false));
        let batch = windows.batch(&[1, 2]).unwrap();
        assert_eq!(batch.lengths.as_deref(), Some(&[5, 2][..]));
        let TargetArray::Masked { targets, .. } = batch.targets else { panic!("no mask") };
        assert_eq!(*targets, TargetArray::from(ndarray::array![7, 1]));
    }

    #[test]
    fn windows_without_a_counted_target_have_none() {
        let loss = Loss::cross_entropy();
        let mask: Vec<_> = (0..8).map(|t| t == 3).collect();
        let all = vec![sequence(8).with_mask(mask)];
        let windows = SequenceWindows::every_step(all.clone(), 5, 2).unwrap();
        let has_target: Vec<_> = (0..3).map(|index| windows.has_target(index, &loss)).collect();
        assert_eq!(has_target, [true, false, false]);
        let windows = SequenceWindows::last_step(all, 4, 1).unwrap();
        let has_target: Vec<_> = (0..5).map(|index| windows.has_target(index, &loss)).collect();
        assert_eq!(has_target, [true, false, false, false, false]);
    }

    #[test]
    fn sizes_and_heads_that_do_not_fit_are_refused() {
        let all = || vec![sequence(8)];
        assert!(matches!(SequenceWindows::every_step(all(), 0, 1), Err(Error::ZeroSize { .. })));
        assert!(matches!(SequenceWindows::last_step(all(), 1, 0), Err(Error::ZeroSize { .. })));
        assert!(matches!(SequenceWindows::every_step(all(), 4, 5), Err(Error::Setting { .. })));
        let windows = SequenceWindows::every_step(all(), 4, 4).unwrap();
        let config = GruConfig::pytorch(1, 3);
        assert_eq!(windows.check(&config, &Head::every_step(8)), Ok(()));
        // A window longer than every sequence takes no more memory than they do.
        let whole = SequenceWindows::every_step(all(), usize::MAX, usize::MAX).unwrap();
        assert_eq!((whole.len(), whole.batch(&[0]).unwrap().x.dim()), (1, (8, 1, 1)));
        let refused = windows.check(&config, &Head::last(8)).unwrap_err();
        assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
        assert!(windows.batch(&[2]).is_err());
        let other = SequenceWindows::every_step(all(), 4, 2).unwrap();
        assert_ne!(windows.fingerprint(), other.fingerprint());
    }
}
