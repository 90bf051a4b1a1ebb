//! [`ForwardRun`] and [`BackwardRun`]: a GRU's forward and backward pass in chunks.

use std::ops::Range;

use ndarray::{Array3, ArrayView3};

use super::input::{array_or_zeros, to_array};
use super::{
    AdapterModel, ChunkPosition, ChunkedRun, Executor, ExecutorChunk, RunInput, Upload, UploadData,
};
use crate::error::{Result, try_array};
use crate::gpu::pool::SessionKey;
use crate::gpu::session::Session;
use crate::gpu::wait::Wait;
use crate::model::output::Output;
use crate::model::state::State;
use crate::plan::{BufferId, Mode, Pass, Plan, RunBuffers, RunPurpose, StateSlot, TrainingBuffers};
use crate::spec::batch::Batch;
use crate::spec::chunk::Chunk;
use crate::spec::config::{Layout, Shape};
use crate::spec::element::ElementType::F32;
use crate::spec::params::{Gradients, ParamLayout, Params};

/// A forward pass in training, kept for the backward pass: its chunks in the order in which they
/// ran, with their sessions.
#[derive(Debug)]
pub(crate) struct RecordedRun {
    key: SessionKey,
    chunks: Vec<ExecutorChunk>,
}

impl RecordedRun {
    /// Iterates over the chunks with their sessions and the range of their last states in the
    /// buffer `states`.
    fn last_states(&self) -> impl Iterator<Item = (&Chunk, &Session, BufferId, Range<usize>)> {
        self.chunks.iter().map(|ExecutorChunk { chunk, session, .. }| {
            let session: &Session = session.as_ref().expect("a recorded chunk keeps its session");
            let range = StateSlot::Last.range(chunk.shape(self.key.shape));
            (chunk, session, session.plan().run_buffers().states, range)
        })
    }

    /// Copies the states after the last steps.
    pub async fn state(&self, wait: Wait) -> Result<State> {
        let shape = self.key.shape.state();
        let (_, session, states, range) =
            self.last_states().next().expect("a run has at least one chunk");
        let gpu = session.gpu();
        if self.chunks.len() == 1 {
            let buffer = session.copy_out("state", states, range).await?;
            return Ok(State::from_buffer(gpu, buffer, shape));
        }
        let mut all: Array3<f32> = try_array("the states", shape)?;
        // Of several chunks with the same rows, the last one has the last states.
        for (chunk, session, states, range) in self.last_states() {
            let source = (session.buffer(states), range.start, range.len());
            let read = gpu.download(&[source], wait).await?.swap_remove(0);
            let shape = chunk.shape(self.key.shape).state();
            chunk.of_states(all.view_mut()).assign(&to_array(shape, read));
        }
        let make = || {
            let buffer = gpu.buffer("state", F32.bytes(all.len()));
            gpu.upload(&buffer, 0, all.as_slice().expect("standard layout"));
            Ok(buffer)
        };
        Ok(State::from_buffer(gpu, gpu.guard(make).await?, shape))
    }
}

impl<'a> Executor<'a> {
    /// Converts into a recorded run, which keeps the held sessions.
    fn into_recorded(self) -> RecordedRun {
        RecordedRun { key: self.key, chunks: self.chunks }
    }

    /// Makes an executor of a recorded run's chunks in reverse order, for the backward pass.
    fn from_recorded(model: AdapterModel<'a>, recorded: RecordedRun, wait: Wait) -> Self {
        let RecordedRun { key, mut chunks } = recorded;
        chunks.reverse();
        Self { model, key, chunks, accumulator: None, wait }
    }
}

impl AdapterModel<'_> {
    /// Runs the forward pass. In training the returned run holds what the backward pass needs.
    pub(in crate::model) async fn forward<'a>(
        self,
        shape: Shape,
        mode: Mode,
        state: Option<&'a State>,
        batch: Batch<'a>,
        wait: Wait,
    ) -> Result<(Output, RecordedRun)> {
        let mut executor = Executor::new(self, shape, mode, RunPurpose::States, wait)?;
        let input = RunInput::new(&executor, state, batch).await?;
        let mut run = ForwardRun::new(&executor, input)?;
        if mode == Mode::Training {
            executor.hold_sessions().await?;
        }
        executor.run(&mut run).await?;
        Ok((run.into_output(), executor.into_recorded()))
    }

    pub(in crate::model) async fn backward(
        self,
        recorded: RecordedRun,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
        wait: Wait,
    ) -> Result<Gradients> {
        let mut executor = Executor::from_recorded(self, recorded, wait);
        let mut run = BackwardRun::new(&executor, dy, dh_n)?;
        executor.run(&mut run).await?;
        Ok(run.into_gradients())
    }
}

/// A forward pass: reads x and the first states, returns y and the last states.
pub(crate) struct ForwardRun<'a> {
    input: RunInput<'a>,
    layout: Layout,
    output: Option<Output>,
}

impl<'a> ForwardRun<'a> {
    pub fn new(executor: &Executor<'_>, input: RunInput<'a>) -> Result<Self> {
        let shape = executor.shape();
        let output = executor.is_chunked().then(|| Output::zeros(shape)).transpose()?;
        Ok(Self { input, layout: shape.layout, output })
    }

    fn into_output(self) -> Output {
        self.output.expect("a run has at least one chunk")
    }
}

impl ChunkedRun for ForwardRun<'_> {
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let before = self.output.as_ref().filter(|_| at.continues());
        let carried = before.map(|before| at.chunk.of_states(before.h_n.view()));
        self.input.uploads(at, plan, carried)
    }

    fn reads(&self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<(BufferId, Range<usize>)> {
        let RunBuffers { states, y, .. } = *plan.run_buffers();
        vec![(y, 0..at.shape.y().iter().product()), (states, StateSlot::Last.range(at.shape))]
    }

    fn collect(&mut self, at: &ChunkPosition<'_>, results: Vec<Vec<f32>>) -> Result<()> {
        let [y, h_n] = results.try_into().expect("two reads were queued");
        let output = Output { y: to_array(at.shape.y(), y), h_n: to_array(at.shape.state(), h_n) };
        match &mut self.output {
            Some(whole) => whole.insert(&output, at.chunk, self.layout),
            whole => *whole = Some(output),
        }
        Ok(())
    }
}

/// A backward pass: reads dy and dh_n, returns the gradients of the parameters, x and the states.
/// The chunks run in the reverse of their forward order.
pub(crate) struct BackwardRun<'a> {
    layout: ParamLayout,
    shape: Shape,
    dy: Option<ArrayView3<'a, f32>>,
    dh_n: Option<ArrayView3<'a, f32>>,
    gradients: Option<Gradients>,
}

impl<'a> BackwardRun<'a> {
    pub fn new(
        executor: &Executor<'_>,
        dy: Option<ArrayView3<'a, f32>>,
        dh_n: Option<ArrayView3<'a, f32>>,
    ) -> Result<Self> {
        let (layout, shape) = (executor.model.params.layout().clone(), executor.shape());
        let zeros = || Gradients::zeros(&layout, shape);
        let gradients = executor.is_chunked().then(zeros).transpose()?;
        Ok(Self { layout, shape, dy, dh_n, gradients })
    }

    fn into_gradients(self) -> Gradients {
        self.gradients.expect("a run has at least one chunk")
    }
}

impl ChunkedRun for BackwardRun<'_> {
    fn passes(&self) -> &'static [Pass] {
        &[Pass::Backward]
    }

    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let TrainingBuffers { dy, dstates, .. } = *training_buffers(plan);
        let after = self.gradients.as_ref().filter(|_| at.continues());
        let carried = after.map(|after| after.h0.view());
        let dh_n = carried.or(self.dh_n.as_ref().map(|dh_n| dh_n.reborrow()));
        let given = self.dy.as_ref().map(|dy| dy.reborrow());
        let given = given.map(|dy| at.chunk.of_sequence(dy, self.shape.layout));
        let range = 0..at.shape.y().iter().product();
        let reset = StateSlot::Reset.range(at.shape);
        let last = array_or_zeros(dh_n.map(|dh_n| at.chunk.of_states(dh_n)));
        Ok(vec![
            Upload { buffer: dy, range, data: array_or_zeros(given) },
            Upload { buffer: dstates, range: reset, data: UploadData::Zeros },
            Upload { buffer: dstates, range: StateSlot::Last.range(at.shape), data: last },
        ])
    }

    fn reads(&self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<(BufferId, Range<usize>)> {
        let t = training_buffers(plan);
        vec![
            (t.dparams, 0..self.layout.flat_len()),
            (
                t.dx[0].expect("a run with the purpose States has dx"),
                0..at.shape.x().iter().product(),
            ),
            (t.dstates, StateSlot::First.range(at.shape)),
            (t.dstates, StateSlot::Reset.range(at.shape)),
        ]
    }

    fn collect(&mut self, at: &ChunkPosition<'_>, results: Vec<Vec<f32>>) -> Result<()> {
        let [params, x, h0, reset_state] = results.try_into().expect("four reads were queued");
        let gradients = Gradients {
            params: Params::from_flat(self.layout.clone(), params),
            x: to_array(at.shape.x(), x),
            h0: to_array(at.shape.state(), h0),
            reset_state: to_array(at.shape.state(), reset_state),
        };
        match &mut self.gradients {
            Some(whole) => whole.insert(&gradients, at.chunk, self.shape.layout),
            whole => *whole = Some(gradients),
        }
        Ok(())
    }
}

fn training_buffers(plan: &Plan) -> &TrainingBuffers {
    plan.run_buffers().training.as_ref().expect("a backward pass has a training plan")
}

impl Output {
    /// Allocates the output of a run in several chunks.
    fn zeros(shape: Shape) -> Result<Self> {
        Ok(Self { y: try_array("y", shape.y())?, h_n: try_array("h_n", shape.state())? })
    }

    /// Writes the output of one chunk.
    fn insert(&mut self, output: &Self, chunk: &Chunk, layout: Layout) {
        chunk.of_sequence(self.y.view_mut(), layout).assign(&output.y);
        // Of several chunks with the same rows, the last one has the run's last states.
        chunk.of_states(self.h_n.view_mut()).assign(&output.h_n);
    }
}

impl Gradients {
    /// Allocates the gradients of a run in several chunks.
    fn zeros(layout: &ParamLayout, shape: Shape) -> Result<Self> {
        Ok(Self {
            params: Params::zeros_of(layout.clone())?,
            x: try_array("dx", shape.x())?,
            h0: try_array("dh0", shape.state())?,
            reset_state: try_array("the gradient of the reset state", shape.state())?,
        })
    }

    /// Writes one chunk's dx and dh0, and adds its gradients of the parameters and the reset state.
    fn insert(&mut self, gradients: &Self, chunk: &Chunk, layout: Layout) {
        let sum = self.params.as_mut_slice().iter_mut();
        sum.zip(gradients.params.as_slice()).for_each(|(sum, &more)| *sum += more);
        chunk.of_sequence(self.x.view_mut(), layout).assign(&gradients.x);
        // Of several chunks with the same rows, the first one has the run's dh0. It runs last here.
        chunk.of_states(self.h0.view_mut()).assign(&gradients.h0);
        let mut sum = chunk.of_states(self.reset_state.view_mut());
        sum += &gradients.reset_state;
    }
}
