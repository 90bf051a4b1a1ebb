//! [`ForwardRun`] and [`BackwardRun`]: a GRU's forward and backward pass in chunks.

use ndarray::ArrayView3;

use super::input::array_or_zeros;
use super::{
    AdapterModel, ChunkPosition, ChunkedRun, Executor, ExecutorChunk, GradientResults,
    OutputResults, RunInput, Upload, UploadData, copy_last_states, new_states,
};
use crate::error::{Result, try_with_capacity};
use crate::gpu::host_copy::Destination;
use crate::gpu::pool::SessionKey;
use crate::gpu::session::{Read, Session};
use crate::gpu::wait::Wait;
use crate::model::output::OutputMut;
use crate::model::state::State;
use crate::plan::{Mode, Pass, Plan, RunBuffers, RunPurpose, StateSlot, TrainingBuffers};
use crate::spec::batch::Batch;
use crate::spec::config::{Layout, Shape};
use crate::spec::params::Gradients;

/// A forward pass in training, kept for the backward pass: its chunks in the order in which they
/// ran, with their sessions.
#[derive(Debug)]
pub(crate) struct RecordedRun {
    key: SessionKey,
    chunks: Vec<ExecutorChunk>,
}

impl RecordedRun {
    /// Copies the states after the last steps.
    pub async fn state(&self) -> Result<State> {
        let shape = self.key.shape;
        let sessions = self.chunks.iter().map(|ExecutorChunk { chunk, session, .. }| {
            let session: &Session = session.as_ref().expect("a recorded chunk keeps its session");
            (chunk, session)
        });
        let gpu = sessions.clone().next().expect("a run has at least one chunk").1.gpu();
        let states = new_states(gpu, shape).await?;
        for (chunk, session) in sessions {
            copy_last_states(session, chunk, shape, &states).await?;
        }
        Ok(State::from_buffer(gpu, states, shape.state()))
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
        Self { model, key, chunks, accumulator: None, last_states: None, wait }
    }
}

impl AdapterModel<'_> {
    /// Runs the forward pass. The results go to `given`, or to new arrays. In training the returned
    /// run holds what the backward pass needs.
    pub(in crate::model) async fn forward<'a, 'o>(
        self,
        (shape, mode): (Shape, Mode),
        state: Option<&'a State>,
        batch: Batch<'a>,
        given: Option<OutputMut<'o>>,
        wait: Wait,
    ) -> Result<(OutputResults<'o>, RecordedRun)> {
        let mut executor = Executor::new(self, shape, mode, RunPurpose::States, wait)?;
        let input = RunInput::new(mode, state, batch)?;
        let mut run = ForwardRun::new(&executor, input, given)?;
        if mode == Mode::Training {
            executor.hold_sessions().await?;
        }
        executor.run(&mut run).await?;
        Ok((run.results, executor.into_recorded()))
    }

    /// Runs the backward pass. The results go to `given`, or are returned.
    pub(in crate::model) async fn backward(
        self,
        recorded: RecordedRun,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
        given: Option<&mut Gradients>,
        wait: Wait,
    ) -> Result<Option<Gradients>> {
        let mut executor = Executor::from_recorded(self, recorded, wait);
        let mut run = BackwardRun::new(&executor, dy, dh_n, given)?;
        executor.run(&mut run).await?;
        Ok(run.results.finish())
    }
}

/// A forward pass: reads x and the first states, returns y and the last states.
pub(crate) struct ForwardRun<'a, 'o> {
    input: RunInput<'a>,
    layout: Layout,
    results: OutputResults<'o>,
}

impl<'a, 'o> ForwardRun<'a, 'o> {
    pub fn new(
        executor: &Executor<'_>,
        input: RunInput<'a>,
        given: Option<OutputMut<'o>>,
    ) -> Result<Self> {
        let shape = executor.shape();
        let results = OutputResults::new(shape, given, !executor.is_chunked())?;
        Ok(Self { input, layout: shape.layout, results })
    }
}

impl ChunkedRun for ForwardRun<'_, '_> {
    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let h_n = || at.chunk.of_states(self.results.h_n.view());
        let carried = at.continues().then(h_n);
        self.input.uploads(at, plan, carried)
    }

    fn reads<'s>(&'s mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<Read<'s, f32>> {
        let RunBuffers { states, y, .. } = *plan.run_buffers();
        let (chunk, layout) = (at.chunk, self.layout);
        let OutputResults { y: to_y, h_n } = &mut self.results;
        vec![
            Read {
                buffer: y,
                range: 0..at.shape.y().iter().product(),
                to: to_y.destination(|y| chunk.of_sequence(y, layout)),
            },
            Read {
                buffer: states,
                range: StateSlot::Last.range(at.shape),
                // Of several chunks with the same rows, the last one has the run's last states.
                to: h_n.destination(|h_n| chunk.of_states(h_n)),
            },
        ]
    }
}

/// A backward pass: reads dy and dh_n, returns the gradients of the parameters, x and the states.
/// The chunks run in the reverse of their forward order.
pub(crate) struct BackwardRun<'a, 'o> {
    shape: Shape,
    dy: Option<ArrayView3<'a, f32>>,
    dh_n: Option<ArrayView3<'a, f32>>,
    results: GradientResults<'o>,
    /// The gradients of the parameters and the reset state of one of several chunks. They are added
    /// to the results.
    of_chunk: [Vec<f32>; 2],
}

impl<'a, 'o> BackwardRun<'a, 'o> {
    pub fn new(
        executor: &Executor<'_>,
        dy: Option<ArrayView3<'a, f32>>,
        dh_n: Option<ArrayView3<'a, f32>>,
        given: Option<&'o mut Gradients>,
    ) -> Result<Self> {
        let (layout, shape) = (executor.model.params.layout(), executor.shape());
        let results = GradientResults::new(layout, shape, given, !executor.is_chunked())?;
        let lens = match executor.is_chunked() {
            true => [layout.flat_len(), shape.state().iter().product()],
            false => [0, 0],
        };
        let [params, reset_state] = lens.map(|len| try_with_capacity("a chunk's gradients", len));
        Ok(Self { shape, dy, dh_n, results, of_chunk: [params?, reset_state?] })
    }
}

impl ChunkedRun for BackwardRun<'_, '_> {
    fn passes(&self) -> &'static [Pass] {
        &[Pass::Backward]
    }

    fn uploads<'s>(&'s self, at: &ChunkPosition<'_>, plan: &Plan) -> Result<Vec<Upload<'s>>> {
        let TrainingBuffers { dy, dstates, .. } = *training_buffers(plan);
        let carried = at.continues().then(|| self.results.h0.view());
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

    fn reads<'s>(&'s mut self, at: &ChunkPosition<'_>, plan: &Plan) -> Vec<Read<'s, f32>> {
        let t = training_buffers(plan);
        let dx = t.dx[0].expect("a run with the purpose States has dx");
        let (chunk, layout) = (at.chunk, self.shape.layout);
        let GradientResults { params, x, h0, reset_state, .. } = &mut self.results;
        let (params, reset_state) = match at.is_whole {
            true => (params.destination(|all| all), reset_state.destination(|all| all)),
            false => {
                self.of_chunk.iter_mut().for_each(Vec::clear);
                let [params, reset_state] = &mut self.of_chunk;
                (Destination::Vec(params), Destination::Vec(reset_state))
            }
        };
        let x = x.destination(|x| chunk.of_sequence(x, layout));
        // Of several chunks with the same rows, the first one has the run's dh0. It runs last here.
        let h0 = h0.destination(|h0| chunk.of_states(h0));
        [
            (t.dparams, 0..plan.spec(t.dparams).len, params),
            (dx, 0..at.shape.x().iter().product(), x),
            (t.dstates, StateSlot::First.range(at.shape), h0),
            (t.dstates, StateSlot::Reset.range(at.shape), reset_state),
        ]
        .map(|(buffer, range, to)| Read { buffer, range, to })
        .into()
    }

    /// Adds a chunk's gradients of the parameters and the reset state.
    fn finish_chunk(&mut self, at: &ChunkPosition<'_>) {
        if at.is_whole {
            return;
        }
        let (params, reset_state) =
            (self.results.params.view_mut(), self.results.reset_state.view_mut());
        let [of_params, of_reset_state] = &self.of_chunk;
        for (sum, of_chunk) in
            [(params, of_params), (at.chunk.of_states(reset_state), of_reset_state)]
        {
            sum.into_iter().zip(of_chunk).for_each(|(sum, &more)| *sum += more);
        }
    }
}

fn training_buffers(plan: &Plan) -> &TrainingBuffers {
    plan.run_buffers().training.as_ref().expect("a backward pass has a training plan")
}
