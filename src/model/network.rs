//! [`Network`]: a GRU with a linear head, to predict with.

use std::ops::Range;

use ndarray::{Array2, Array3, ArrayD, s};

use crate::cpu;
use crate::error::{Result, try_lazy_zeros};
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::executor::{ChunkPosition, ChunkedRun, Executor, RunInput, Upload, UploadData};
use crate::model::gru::Gru;
use crate::plan::{BufferId, Mode, Plan, RunPurpose, StateSlot};
use crate::spec::batch::Batch;
use crate::spec::config::Shape;
use crate::spec::head::{Head, Readout};
use crate::spec::linear::Linear;
use crate::spec::loss::{Loss, PreparedTargets, TargetData, Targets};
use crate::spec::options::RunOptions;
use crate::spec::params::Params;
use crate::spec::sequences::{batch_ranges, check_sequence, pad};

/// A [`Gru`] with a linear [`Head`]: from sequences to outputs. On an adapter only x goes up and
/// the outputs come down.
///
/// ```
/// use gru_wgpu::{Device, GruConfig, Head, Init, Network, ParamLayout, Params};
/// use ndarray::Array3;
///
/// let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 8), Head::last(5))?;
/// let network = Network::new(Params::init_of(layout, Init::Uniform, 1)?, &Device::cpu())?;
/// let outputs = network.forward(&Array3::ones((10, 2, 3)))?; // T 10, B 2, I 3
/// assert_eq!(outputs.shape(), [2, 5]);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Network {
    gru: Gru,
    head: Head,
}

impl Network {
    blocking_and_async! {
        /// With these parameters, whose layout has a head.
        ///
        /// # Errors
        /// [`Error::Conflict`] when it has none; as [`Gru::with_params`].
        ///
        /// [`Error::Conflict`]: crate::Error::Conflict
        pub fn new, new_async(params: Params, device: &Device) -> Result<Self> {
            |_| Self::of_params(params, device)
        }
    }

    async fn of_params(params: Params, device: &Device) -> Result<Self> {
        let head = params.layout().required_head()?;
        Ok(Self { gru: Gru::with_params_async(params, device).await?, head })
    }

    /// The same network run another way.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { gru: self.gru.with_options(options), ..self }
    }

    /// Its GRU, whose parameters are the whole network's.
    pub fn gru(&self) -> &Gru {
        &self.gru
    }

    /// The same, to be changed.
    pub(crate) fn gru_mut(&mut self) -> &mut Gru {
        &mut self.gru
    }

    /// Its head.
    pub fn head(&self) -> Head {
        self.head
    }

    /// All its parameters.
    pub fn params(&self) -> &Params {
        self.gru.params()
    }

    blocking_and_async! {
        /// The outputs `[T, B, C]` (`[B, T, C]` of a batch-first run) or `[B, C]`, as the head
        /// says. Those of padding are the bias.
        ///
        /// # Errors
        /// As [`Gru::forward`].
        pub fn forward, forward_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<ArrayD<f32>> {
            |wait| self.run(batch.into(), wait)
        }
    }

    blocking_and_async! {
        /// The outputs of sequences `[T, I]` of unequal lengths, `batch` of them at a time: of each
        /// `[T, C]`, or `[1, C]` where the head is over the last states.
        ///
        /// # Errors
        /// [`Error::ZeroSize`] when a sequence has no step, [`Error::Shape`] when one has another
        /// number of inputs, and as [`Self::forward`].
        ///
        /// [`Error::ZeroSize`]: crate::Error::ZeroSize
        /// [`Error::Shape`]: crate::Error::Shape
        pub fn forward_each, forward_each_async(
            &self,
            sequences: &[Array2<f32>],
            batch: usize
        ) -> Result<Vec<Array2<f32>>> {
            |wait| self.run_each(sequences, batch, wait)
        }

        /// How its outputs for a batch do against these targets, without dropout. On an adapter the
        /// targets go up, and two numbers come down.
        ///
        /// # Errors
        /// As [`Self::forward`], and [`Error::Shape`], [`Error::Class`], [`Error::Conflict`] or
        /// [`Error::NoTarget`] when the targets do not fit.
        ///
        /// [`Error::Shape`]: crate::Error::Shape
        /// [`Error::Class`]: crate::Error::Class
        /// [`Error::Conflict`]: crate::Error::Conflict
        /// [`Error::NoTarget`]: crate::Error::NoTarget
        pub fn evaluate, evaluate_async<'b, 't>(
            &self,
            loss: &Loss,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<Evaluation> {
            |wait| self.run_evaluation(loss, batch.into(), targets.into(), wait)
        }
    }

    async fn run_each(
        &self,
        sequences: &[Array2<f32>],
        batch: usize,
        wait: Wait,
    ) -> Result<Vec<Array2<f32>>> {
        let inputs = self.gru.config().input_size;
        for (at, sequence) in sequences.iter().enumerate() {
            check_sequence(&format!("sequence {at}"), sequence, inputs)?;
        }
        let mut all = Vec::with_capacity(sequences.len());
        for range in batch_ranges(sequences.len(), batch) {
            let (x, lengths) = pad(sequences[range].iter())?;
            let outputs = self.run(Batch::new(x.view()).with_lengths(&lengths), wait).await?;
            for (row, &length) in lengths.iter().enumerate() {
                all.push(match self.head.readout {
                    Readout::LastState => outputs.slice(s![row..=row, ..]).to_owned(),
                    Readout::EveryStep => outputs.slice(s![..length, row, ..]).to_owned(),
                });
            }
        }
        Ok(all)
    }

    pub(crate) async fn run_evaluation(
        &self,
        loss: &Loss,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<Evaluation> {
        let (batch, shape) = self.gru.check(None, batch.reborrow())?;
        let targets = PreparedTargets::new(&self.head, loss, shape, batch.lengths, &targets, 1.0)?;
        if self.gru.device().is_adapter() {
            return self.evaluate_on(loss, shape, batch, &targets, wait).await;
        }
        let mut outputs = self.run(batch, wait).await?;
        let outputs = outputs.as_slice_mut().expect("standard layout");
        let correct = targets.correct(outputs);
        let loss = targets.differentiate(loss, outputs);
        Ok(Evaluation { counted: targets.counted(), loss, correct })
    }

    pub(crate) async fn run(&self, batch: Batch<'_>, wait: Wait) -> Result<ArrayD<f32>> {
        let (batch, shape) = self.gru.check(None, batch.reborrow())?;
        if self.gru.device().is_adapter() {
            return self.run_on(shape, batch, wait).await;
        }
        let (y, h_n) = cpu::forward(self.params(), self.gru.cpu_weights(), batch)?;
        let features = self.head.features(shape, &y, &h_n);
        let outputs = Linear::new(self.params()).forward(features.view());
        Ok(self.outputs(shape, outputs.into_raw_vec_and_offset().0))
    }

    async fn run_on(&self, shape: Shape, batch: Batch<'_>, wait: Wait) -> Result<ArrayD<f32>> {
        let (mode, purpose) = (Mode::Inference, RunPurpose::Outputs);
        let mut executor = Executor::new(self.gru.on_adapter()?, shape, mode, purpose, wait)?;
        let input = CarriedInput::new(&executor, batch).await?;
        let len = self.head.rows(shape) * self.head.outputs;
        let whole = if executor.is_chunked() { len } else { 0 };
        let outputs = try_lazy_zeros("the outputs", whole)?;
        let mut run = OutputRun { input, head: self.head, shape, outputs };
        executor.run(&mut run).await?;
        Ok(self.outputs(shape, run.outputs))
    }

    async fn evaluate_on(
        &self,
        loss: &Loss,
        shape: Shape,
        batch: Batch<'_>,
        targets: &PreparedTargets,
        wait: Wait,
    ) -> Result<Evaluation> {
        let (mode, purpose) = (Mode::Inference, RunPurpose::Evaluation(*loss));
        let mut executor = Executor::new(self.gru.on_adapter()?, shape, mode, purpose, wait)?;
        let input = CarriedInput::new(&executor, batch.reborrow()).await?;
        let mut run = EvaluationRun { input, head: self.head, shape, targets, sums: Vec::new() };
        executor.run(&mut run).await?;
        let sum = |column: usize| run.sums.iter().map(|sums| f64::from(sums[column])).sum::<f64>();
        let has_classes = matches!(targets.targets, TargetData::Classes(_));
        let correct = has_classes.then(|| sum(1) as usize);
        Ok(Evaluation { counted: targets.counted(), loss: sum(0), correct })
    }

    /// Row by row.
    fn outputs(&self, shape: Shape, outputs: Vec<f32>) -> ArrayD<f32> {
        let mut axes = self.head.row_axes(shape);
        axes.push(self.head.outputs);
        ArrayD::from_shape_vec(axes, outputs).expect("C numbers a row")
    }
}

/// What a network's run starts from, with the states that go from one chunk to the next.
struct CarriedInput<'a> {
    input: RunInput<'a>,
    /// `[L·D, b, H]`: those that the last chunk ended with.
    h_n: Option<Array3<f32>>,
}

impl<'a> CarriedInput<'a> {
    async fn new(executor: &Executor<'_>, batch: Batch<'a>) -> Result<Self> {
        Ok(Self { input: RunInput::new(executor, None, batch).await?, h_n: None })
    }

    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let carried = self.h_n.as_ref().filter(|_| at.continues());
        self.input.uploads(at, plan, carried.map(|h_n| h_n.view()))
    }

    /// The last states, where another chunk may go on from them.
    fn read(&self, at: &ChunkPosition<'_>, plan: &Plan) -> Option<(BufferId, Range<usize>)> {
        let states = (plan.run_buffers().states, StateSlot::Last.range(at.shape));
        (!at.is_whole).then_some(states)
    }

    fn collect(&mut self, at: &ChunkPosition<'_>, h_n: Option<Vec<f32>>) {
        let array =
            |h_n| Array3::from_shape_vec(at.shape.state(), h_n).expect("as many as it holds");
        self.h_n = h_n.map(array);
    }
}

/// From x to the outputs of the head.
struct OutputRun<'a> {
    input: CarriedInput<'a>,
    head: Head,
    shape: Shape,
    outputs: Vec<f32>,
}

impl ChunkedRun for OutputRun<'_> {
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        self.input.uploads(at, plan)
    }

    fn reads(&self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<(BufferId, Range<usize>)> {
        let outputs = 0..self.head.rows(at.shape) * self.head.outputs;
        let outputs = (plan.head_buffers().outputs, outputs);
        std::iter::once(outputs).chain(self.input.read(at, plan)).collect()
    }

    fn collect(&mut self, at: &ChunkPosition<'_>, results: Vec<Vec<f32>>) -> Result<()> {
        let mut results = results.into_iter();
        let outputs = results.next().expect("the outputs were asked for");
        self.input.collect(at, results.next());
        if at.is_whole {
            self.outputs = outputs;
            return Ok(());
        }
        let width = self.head.outputs;
        let rows = self.head.rows_of(at.chunk, self.shape).into_iter();
        for (row, numbers) in rows.zip(outputs.chunks(width)) {
            // Where several chunks have the same row, the last one counts.
            self.outputs[width * row..][..width].copy_from_slice(numbers);
        }
        Ok(())
    }
}

/// From x and targets to the loss of the outputs, and how many rows of classes are correct.
struct EvaluationRun<'a> {
    input: CarriedInput<'a>,
    head: Head,
    shape: Shape,
    targets: &'a PreparedTargets,
    /// Of each chunk that counts.
    sums: Vec<[f32; 2]>,
}

impl ChunkedRun for EvaluationRun<'_> {
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let mut uploads = self.input.uploads(at, plan)?;
        uploads.extend(target_uploads(self.targets, &self.head, self.shape, at, plan));
        Ok(uploads)
    }

    fn reads(&self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<(BufferId, Range<usize>)> {
        let sums = (plan.loss_buffers().sum, 0..2);
        std::iter::once(sums).chain(self.input.read(at, plan)).collect()
    }

    fn collect(&mut self, at: &ChunkPosition<'_>, results: Vec<Vec<f32>>) -> Result<()> {
        let mut results = results.into_iter();
        let sums = results.next().expect("the sums were asked for");
        self.input.collect(at, results.next());
        if at.continues() && self.head.readout == Readout::LastState {
            // What was taken for the last states is not.
            self.sums.pop();
        }
        self.sums.push([sums[0], sums[1]]);
        Ok(())
    }
}

/// Targets and weights of a chunk's rows of outputs.
pub(crate) fn target_uploads<'s>(
    targets: &'s PreparedTargets,
    head: &Head,
    shape: Shape,
    at: &ChunkPosition<'_>,
    plan: &Plan,
) -> [Upload<'s>; 2] {
    let buffers = plan.loss_buffers();
    let (targets, weights) = match at.is_whole {
        true => {
            let data = match &targets.targets {
                TargetData::Values(values) => UploadData::F32(values.into()),
                TargetData::Classes(classes) => UploadData::U32(classes.into()),
            };
            (data, UploadData::F32((&targets.weights).into()))
        }
        false => {
            let PreparedTargets { targets, weights } =
                targets.of_rows(&head.rows_of(at.chunk, shape));
            let data = match targets {
                TargetData::Values(values) => UploadData::F32(values.into()),
                TargetData::Classes(classes) => UploadData::U32(classes.into()),
            };
            (data, UploadData::F32(weights.into()))
        }
    };
    [
        Upload { buffer: buffers.targets, range: 0..plan.spec(buffers.targets).len, data: targets },
        Upload { buffer: buffers.weights, range: 0..plan.spec(buffers.weights).len, data: weights },
    ]
}

/// How a network does on some targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Rows of outputs that count.
    pub counted: usize,
    /// Their mean loss.
    pub loss: f64,
    /// Of classes, how many rows' largest output is that of their class.
    pub correct: Option<usize>,
}

impl Evaluation {
    /// The fraction of rows that are correct, of classes.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|correct| correct as f64 / self.counted as f64)
    }

    /// By accuracy where there is one, then by loss.
    pub fn is_better_than(&self, other: &Self) -> bool {
        let (now, then) = (self.accuracy(), other.accuracy());
        now > then || (now == then && self.loss < other.loss)
    }
}

/// Of all rows together.
impl std::ops::AddAssign for Evaluation {
    fn add_assign(&mut self, more: Self) {
        let sum = self.loss * self.counted as f64 + more.loss * more.counted as f64;
        // The first ones say whether there are classes.
        self.correct = match (self.counted, self.correct) {
            (0, _) => more.correct,
            (_, correct) => correct.zip(more.correct).map(|(a, b)| a + b),
        };
        self.counted += more.counted;
        self.loss = if self.counted == 0 { 0.0 } else { sum / self.counted as f64 };
    }
}
