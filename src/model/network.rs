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
use crate::model::gru::Gru;
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
            return self.evaluate_on_adapter(loss, shape, batch, &targets, wait).await;
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
            return self.run_on_adapter(shape, batch, wait).await;
        }
        let (y, h_n) = cpu::forward(self.params(), self.gru.cpu_weights(), batch)?;
        let features = self.head.features(shape, &y, &h_n);
        let outputs = Linear::new(self.params()).forward(features.view());
        Ok(self.shape_outputs(shape, outputs.into_raw_vec_and_offset().0))
    }

    async fn run_on_adapter(
        &self,
        shape: Shape,
        batch: Batch<'_>,
        wait: Wait,
    ) -> Result<ArrayD<f32>> {
        let (mode, purpose) = (Mode::Inference, RunPurpose::Outputs);
        let mut executor = Executor::new(self.gru.on_adapter()?, shape, mode, purpose, wait)?;
        let input = CarriedInput::new(&executor, batch).await?;
        let len = self.head.rows(shape) * self.head.outputs;
        let outputs = match executor.is_chunked() {
            true => try_lazy_zeros("the outputs", len)?,
            // The one read appends them.
            false => try_with_capacity("the outputs", len)?,
        };
        let mut run = OutputRun { input, head: self.head, shape, outputs };
        executor.run(&mut run).await?;
        Ok(self.shape_outputs(shape, run.outputs))
    }

    async fn evaluate_on_adapter(
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
        let (sums, of_chunk) = Default::default();
        let mut run = EvaluationRun { input, head: self.head, shape, targets, sums, of_chunk };
        executor.run(&mut run).await?;
        let sum = |column: usize| run.sums.iter().map(|sums| f64::from(sums[column])).sum::<f64>();
        let has_classes = matches!(targets.targets, TargetData::Classes(_));
        let correct = has_classes.then(|| sum(1) as usize);
        Ok(Evaluation { counted: targets.counted(), loss: sum(0), correct })
    }

    /// Gives the outputs of all rows the head's shape.
    fn shape_outputs(&self, shape: Shape, outputs: Vec<f32>) -> ArrayD<f32> {
        let mut axes = self.head.row_axes(shape);
        axes.push(self.head.outputs);
        ArrayD::from_shape_vec(axes, outputs).expect("a row has C outputs")
    }
}

/// A network's input, and the states that are carried from one chunk to the next.
struct CarriedInput<'a> {
    input: RunInput<'a>,
    /// `[L·D, b, H]`: the last states of the previous chunk, which has b rows.
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
