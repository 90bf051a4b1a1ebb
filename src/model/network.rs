//! [`Network`]: a GRU with a linear head, for inference.

use ndarray::{Array2, Array3, ArrayD, s};

use crate::cpu;
use crate::error::{Result, try_lazy_zeros, try_with_capacity};
use crate::gpu::host_copy::Destination;
use crate::gpu::session::Read;
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::Device;
use crate::model::executor::{ChunkPosition, ChunkedRun, Executor, RunInput, Upload, UploadData};
use crate::model::gru::{Gru, first_states};
use crate::model::state::State;
use crate::plan::{Mode, Plan, RunPurpose, StateSlot};
use crate::spec::batch::Batch;
use crate::spec::config::Shape;
use crate::spec::head::{Head, Readout};
use crate::spec::linear::Linear;
use crate::spec::loss::{Loss, PreparedTargets, TargetData, Targets};
use crate::spec::options::RunOptions;
use crate::spec::params::Params;
use crate::spec::sequences::{batch_ranges, check_sequence, pad};

/// A [`Gru`] with a linear [`Head`], which maps sequences to outputs. On an adapter a run uploads
/// only x and downloads only the outputs.
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
        /// Makes a network with these parameters. Their layout must have a head.
        ///
        /// # Errors
        /// [`Error::Conflict`] without a head, and the errors of [`Gru::with_params`].
        ///
        /// [`Error::Conflict`]: crate::Error::Conflict
        pub fn new, new_async(params: Params, device: &Device) -> Result<Self> {
            |_| Self::from_params(params, device)
        }
    }

    async fn from_params(params: Params, device: &Device) -> Result<Self> {
        let head = params.layout().required_head()?;
        Ok(Self { gru: Gru::with_params_async(params, device).await?, head })
    }

    /// Sets the run options.
    #[must_use]
    pub fn with_options(self, options: RunOptions) -> Self {
        Self { gru: self.gru.with_options(options), ..self }
    }

    /// Returns the GRU. Its parameters include the head's.
    pub fn gru(&self) -> &Gru {
        &self.gru
    }

    /// Returns the GRU mutably.
    pub(crate) fn gru_mut(&mut self) -> &mut Gru {
        &mut self.gru
    }

    /// Returns the head.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Returns all parameters, the head's included.
    pub fn params(&self) -> &Params {
        self.gru.params()
    }

    blocking_and_async! {
        /// Computes the outputs of a batch.
        ///
        /// The shape is `[T, B, C]` (`[B, T, C]` for a batch-first run) for [`Readout::EveryStep`]
        /// and `[B, C]` for [`Readout::LastState`]. The output at padding is the head's bias.
        ///
        /// # Errors
        /// The errors of [`Gru::forward`].
        pub fn forward, forward_async<'a>(&self, batch: impl Into<Batch<'a>>) -> Result<ArrayD<f32>> {
            |wait| self.run(batch.into(), wait)
        }

        /// Computes the outputs of a batch that continues another one, from the states that it left
        /// on the device (zeros if `None`). Also returns the states after the last steps, for the
        /// batch that continues this one. Pieces of a long sequence give the outputs of the whole
        /// sequence:
        ///
        /// ```
        /// use gru_wgpu::{Device, GruConfig, Head, Init, Network, ParamLayout, Params};
        /// use ndarray::{Array3, Axis, s};
        ///
        /// let layout = ParamLayout::with_head(&GruConfig::pytorch(3, 8), Head::every_step(1))?;
        /// let network = Network::new(Params::init_of(layout, Init::Uniform, 1)?, &Device::cpu())?;
        /// let long = Array3::from_shape_fn((100, 2, 3), |(t, b, i)| ((t + b + i) as f32).sin());
        /// let whole = network.forward(&long)?;
        /// let mut state = None;
        /// for (at, piece) in long.axis_chunks_iter(Axis(0), 25).enumerate() {
        ///     let (outputs, last) = network.forward_from(state.as_ref(), piece)?;
        ///     assert_eq!(outputs, whole.slice(s![25 * at..25 * (at + 1), .., ..]).into_dyn());
        ///     state = Some(last);
        /// }
        /// # Ok::<(), gru_wgpu::Error>(())
        /// ```
        ///
        /// # Errors
        /// The errors of [`Gru::forward_from`].
        pub fn forward_from, forward_from_async<'a>(
            &self,
            state: Option<&State>,
            batch: impl Into<Batch<'a>>
        ) -> Result<(ArrayD<f32>, State)> {
            |wait| async { Ok(kept(self.run_from(state, batch.into(), true, wait).await?)) }
        }

        /// Runs the GRU over a batch without the head, and returns the states after the last steps.
        /// Like [`Self::forward_from`], it starts from `state`. On an adapter nothing is
        /// downloaded.
        ///
        /// # Errors
        /// The errors of [`Gru::forward_from`].
        pub fn advance, advance_async<'a>(
            &self,
            state: Option<&State>,
            batch: impl Into<Batch<'a>>
        ) -> Result<State> {
            |wait| self.run_advance(state, batch.into(), wait)
        }
    }

    blocking_and_async! {
        /// Computes the outputs of sequences `[T, I]` of unequal lengths, `batch` sequences at a
        /// time. The output of each sequence is `[T, C]`, or `[1, C]` for [`Readout::LastState`].
        ///
        /// # Errors
        /// [`Error::ZeroSize`] if a sequence has no steps, [`Error::Shape`] if a sequence has
        /// another number of inputs than the model, and the errors of [`Self::forward`].
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

        /// Computes the loss and the accuracy of the outputs of a batch, without dropout. On an
        /// adapter the targets are uploaded and two numbers are downloaded.
        ///
        /// # Errors
        /// The errors of [`Self::forward`], and [`Error::Shape`], [`Error::Class`],
        /// [`Error::Conflict`] or [`Error::NoTarget`] if the targets do not fit.
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

        /// Evaluates a batch like [`Self::evaluate`], from the states that another batch left on
        /// the device, as [`Self::forward_from`] does. Also returns the states after the last
        /// steps.
        ///
        /// # Errors
        /// The errors of [`Self::evaluate`] and [`Gru::forward_from`].
        pub fn evaluate_from, evaluate_from_async<'b, 't>(
            &self,
            loss: &Loss,
            state: Option<&State>,
            batch: impl Into<Batch<'b>>,
            targets: impl Into<Targets<'t>>
        ) -> Result<(Evaluation, State)> {
            |wait| self.run_evaluation_from(loss, state, batch.into(), targets.into(), wait)
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
        let (start, shape) = self.start(None, batch, false)?;
        Ok(self.evaluate_run(loss, shape, start, &targets, wait).await?.0)
    }

    pub(crate) async fn run_evaluation_from(
        &self,
        loss: &Loss,
        state: Option<&State>,
        batch: Batch<'_>,
        targets: Targets<'_>,
        wait: Wait,
    ) -> Result<(Evaluation, State)> {
        let (start, shape) = self.start(state, batch.reborrow(), true)?;
        Ok(kept(self.evaluate_run(loss, shape, start, &targets, wait).await?))
    }

    async fn evaluate_run(
        &self,
        loss: &Loss,
        shape: Shape,
        start: RunStart<'_>,
        targets: &Targets<'_>,
        wait: Wait,
    ) -> Result<(Evaluation, Option<State>)> {
        // The mean over no targets is undefined.
        shape.check_not_empty()?;
        let lengths = start.batch.lengths;
        let targets = PreparedTargets::new(&self.head, loss, shape, lengths, targets, 1.0)?;
        if self.gru.device().is_adapter() {
            return self.evaluate_on_adapter(loss, shape, start, &targets, wait).await;
        }
        let (mut outputs, last) = self.run_on_host(shape, start.batch)?;
        let outputs = outputs.as_slice_mut().expect("standard layout");
        let correct = targets.correct(outputs);
        let loss = targets.differentiate(loss, outputs);
        Ok((Evaluation { counted: targets.counted(), loss, correct }, Some(last)))
    }

    pub(crate) async fn run(&self, batch: Batch<'_>, wait: Wait) -> Result<ArrayD<f32>> {
        Ok(self.run_from(None, batch, false, wait).await?.0)
    }

    /// Returns the outputs and, if `keeps_last` or on the CPU, the states after the last steps.
    async fn run_from(
        &self,
        state: Option<&State>,
        batch: Batch<'_>,
        keeps_last: bool,
        wait: Wait,
    ) -> Result<(ArrayD<f32>, Option<State>)> {
        let (start, shape) = self.start(state, batch.reborrow(), keeps_last)?;
        if shape.is_empty() {
            let h_n = first_states(start.state, &start.batch, shape, wait).await?;
            let outputs = self.head_on_host(shape, &Array3::zeros(shape.y()), &h_n);
            return Ok((outputs, Some(State::from_array(h_n).on(self.gru.device()).await?)));
        }
        if self.gru.device().is_adapter() {
            return self.run_on_adapter(shape, start, wait).await;
        }
        let (outputs, last) = self.run_on_host(shape, start.batch)?;
        Ok((outputs, Some(last)))
    }

    pub(crate) async fn run_advance(
        &self,
        state: Option<&State>,
        batch: Batch<'_>,
        wait: Wait,
    ) -> Result<State> {
        let (start, shape) = self.start(state, batch.reborrow(), true)?;
        if shape.is_empty() {
            let h_n = first_states(start.state, &start.batch, shape, wait).await?;
            return State::from_array(h_n).on(self.gru.device()).await;
        }
        if !self.gru.device().is_adapter() {
            let (_, h_n) = cpu::forward(self.params(), self.gru.cpu_weights(), start.batch)?;
            return Ok(State::from_array(h_n));
        }
        let mut executor = self.executor(shape, RunPurpose::States, &start, wait).await?;
        let mut run = AdvanceRun { input: CarriedInput::new(start)? };
        executor.run(&mut run).await?;
        Ok(kept(((), executor.into_last_states())).1)
    }

    /// Checks a batch and the states that it starts from. Returns them with the shape of the run.
    fn start<'a>(
        &self,
        state: Option<&'a State>,
        batch: Batch<'a>,
        keeps_last: bool,
    ) -> Result<(RunStart<'a>, Shape)> {
        let (batch, shape) = self.gru.check(state, batch)?;
        Ok((RunStart { state, batch, keeps_last }, shape))
    }

    /// Returns the executor of an inference run.
    async fn executor(
        &self,
        shape: Shape,
        purpose: RunPurpose,
        start: &RunStart<'_>,
        wait: Wait,
    ) -> Result<Executor<'_>> {
        let model = self.gru.on_adapter()?;
        let mut executor = Executor::new(model, shape, Mode::Inference, purpose, wait)?;
        if start.keeps_last {
            executor.keep_last_states().await?;
        }
        Ok(executor)
    }

    fn run_on_host(&self, shape: Shape, batch: Batch<'_>) -> Result<(ArrayD<f32>, State)> {
        let (y, h_n) = cpu::forward(self.params(), self.gru.cpu_weights(), batch)?;
        Ok((self.head_on_host(shape, &y, &h_n), State::from_array(h_n)))
    }

    /// Computes the head's outputs from y and the last states.
    fn head_on_host(&self, shape: Shape, y: &Array3<f32>, h_n: &Array3<f32>) -> ArrayD<f32> {
        let features = self.head.features(shape, y, h_n);
        let outputs = Linear::new(self.params()).forward(features.view());
        self.shape_outputs(shape, outputs.into_raw_vec_and_offset().0)
    }

    async fn run_on_adapter(
        &self,
        shape: Shape,
        start: RunStart<'_>,
        wait: Wait,
    ) -> Result<(ArrayD<f32>, Option<State>)> {
        let mut executor = self.executor(shape, RunPurpose::Outputs, &start, wait).await?;
        let input = CarriedInput::new(start)?;
        let len = self.head.rows(shape) * self.head.outputs;
        let outputs = match executor.is_chunked() {
            true => try_lazy_zeros("the outputs", len)?,
            // The one read appends them.
            false => try_with_capacity("the outputs", len)?,
        };
        let mut run = OutputRun { input, head: self.head, shape, outputs };
        executor.run(&mut run).await?;
        Ok((self.shape_outputs(shape, run.outputs), executor.into_last_states()))
    }

    async fn evaluate_on_adapter(
        &self,
        loss: &Loss,
        shape: Shape,
        start: RunStart<'_>,
        targets: &PreparedTargets,
        wait: Wait,
    ) -> Result<(Evaluation, Option<State>)> {
        let purpose = RunPurpose::Evaluation(*loss);
        let mut executor = self.executor(shape, purpose, &start, wait).await?;
        let input = CarriedInput::new(start)?;
        let (sums, of_chunk) = Default::default();
        let mut run = EvaluationRun { input, head: self.head, shape, targets, sums, of_chunk };
        executor.run(&mut run).await?;
        let sum = |column: usize| run.sums.iter().map(|sums| f64::from(sums[column])).sum::<f64>();
        let has_classes = matches!(targets.targets, TargetData::Classes(_));
        let correct = has_classes.then(|| sum(1) as usize);
        let evaluation = Evaluation { counted: targets.counted(), loss: sum(0), correct };
        Ok((evaluation, executor.into_last_states()))
    }

    /// Gives the outputs of all rows the head's shape.
    fn shape_outputs(&self, shape: Shape, outputs: Vec<f32>) -> ArrayD<f32> {
        let mut axes = self.head.row_axes(shape);
        axes.push(self.head.outputs);
        ArrayD::from_shape_vec(axes, outputs).expect("a row has C outputs")
    }
}

/// Returns the results of a run that kept its last states.
fn kept<T>((results, last): (T, Option<State>)) -> (T, State) {
    (results, last.expect("the run kept its last states"))
}

/// A network's input, and the states that are carried from one chunk to the next.
struct CarriedInput<'a> {
    input: RunInput<'a>,
    /// `[L·D, b, H]`: the last states of the previous chunk, which has b rows.
    h_n: Option<Array3<f32>>,
}

/// A checked batch of an inference run, and the states that it starts from, those of the batch if
/// `None`.
struct RunStart<'a> {
    state: Option<&'a State>,
    batch: Batch<'a>,
    /// True if the states after the last steps are kept on the device.
    keeps_last: bool,
}

impl<'a> CarriedInput<'a> {
    /// Prepares the input of a run on an adapter.
    fn new<'s: 'a>(start: RunStart<'s>) -> Result<Self> {
        let input = RunInput::new(Mode::Inference, start.state, start.batch.reborrow())?;
        Ok(Self { input, h_n: None })
    }

    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let carried = self.h_n.as_ref().filter(|_| at.continues());
        self.input.uploads(at, plan, carried.map(|h_n| h_n.view()))
    }

    /// Returns the read of the last states if another chunk may start from them.
    fn read(&mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Option<Read<'_, f32>> {
        if at.is_whole {
            return None;
        }
        let h_n = self.h_n.insert(Array3::zeros(at.shape.state()));
        let (buffer, range) = (plan.run_buffers().states, StateSlot::Last.range(at.shape));
        Some(Read { buffer, range, to: Destination::rows(h_n.view_mut()) })
    }
}

/// A run that reads x and leaves the last states on the device.
struct AdvanceRun<'a> {
    input: CarriedInput<'a>,
}

impl ChunkedRun for AdvanceRun<'_> {
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        self.input.uploads(at, plan)
    }

    fn reads<'s>(&'s mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<Read<'s, f32>> {
        self.input.read(at, plan).into_iter().collect()
    }
}

/// A run that reads x and returns the head's outputs.
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

    fn reads<'s>(&'s mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<Read<'s, f32>> {
        let width = self.head.outputs;
        let to = match at.is_whole {
            true => Destination::Vec(&mut self.outputs),
            false => {
                let mut rows: Vec<_> = self.outputs.chunks_mut(width).map(Some).collect();
                // Of several chunks with the same row, the last one has the row's output.
                let of_chunk = self.head.rows_of(at.chunk, self.shape).into_iter();
                let row = |row: usize| rows[row].take().expect("a chunk has each row once");
                Destination::Slices(of_chunk.map(row).collect())
            }
        };
        let range = 0..self.head.rows(at.shape) * width;
        let outputs = Read { buffer: plan.head_buffers().outputs, range, to };
        std::iter::once(outputs).chain(self.input.read(at, plan)).collect()
    }
}

/// A run that reads x and targets and returns the loss, and the number of correct rows for classes.
struct EvaluationRun<'a> {
    input: CarriedInput<'a>,
    head: Head,
    shape: Shape,
    targets: &'a PreparedTargets,
    /// Loss and number of correct rows, for each chunk that counts.
    sums: Vec<[f32; 2]>,
    /// Those of the current chunk.
    of_chunk: [f32; 2],
}

impl ChunkedRun for EvaluationRun<'_> {
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let mut uploads = self.input.uploads(at, plan)?;
        uploads.extend(target_uploads(self.targets, &self.head, self.shape, at, plan));
        Ok(uploads)
    }

    fn reads<'s>(&'s mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<Read<'s, f32>> {
        let to = Destination::slice(&mut self.of_chunk);
        let sums = Read { buffer: plan.loss_buffers().sum, range: 0..2, to };
        std::iter::once(sums).chain(self.input.read(at, plan)).collect()
    }

    fn finish_chunk(&mut self, at: &ChunkPosition<'_>) {
        if at.continues() && self.head.readout == Readout::LastState {
            // The previous chunk's states were not the last states, so its sums do not count.
            self.sums.pop();
        }
        self.sums.push(self.of_chunk);
    }
}

/// Returns the uploads of the targets and weights of a chunk's rows of outputs.
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

/// The loss and accuracy of a network's outputs against targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// The number of rows of outputs that count.
    pub counted: usize,
    /// The mean loss of the rows that count.
    pub loss: f64,
    /// For classes: the number of rows whose largest output is the target class's.
    pub correct: Option<usize>,
}

impl Evaluation {
    /// Returns the fraction of correct rows, for classes.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|correct| correct as f64 / self.counted as f64)
    }

    /// True if the accuracy is higher, or the accuracy is equal (or absent) and the loss is lower.
    pub fn is_better_than(&self, other: &Self) -> bool {
        let (own, others) = (self.accuracy(), other.accuracy());
        own > others || (own == others && self.loss < other.loss)
    }
}

/// Merges two evaluations into the evaluation of all their rows.
impl std::ops::AddAssign for Evaluation {
    fn add_assign(&mut self, more: Self) {
        let sum = self.loss * self.counted as f64 + more.loss * more.counted as f64;
        // An empty evaluation takes its kind of targets from `more`.
        self.correct = match (self.counted, self.correct) {
            (0, _) => more.correct,
            (_, correct) => correct.zip(more.correct).map(|(a, b)| a + b),
        };
        self.counted += more.counted;
        self.loss = if self.counted == 0 { 0.0 } else { sum / self.counted as f64 };
    }
}
