//! A model's runs on an adapter: what goes up ahead of each piece, and what comes down and is put together.

use ndarray::{Array2, Array3, ArrayView3, s};

use super::gru::{Gru, Output};
use crate::error::{Result, try_array};
use crate::gpu::pool::{PooledSession, SessionKey};
use crate::gpu::session::Session;
use crate::gpu::transfer::Wait;
use crate::model::state::State;
use crate::plan::{BufferId, Mode, Pass, Purpose, RunBuffers, States, TrainingBuffers};
use crate::spec::batch::{Batch, zero_padding};
use crate::spec::chunk::Chunk;
use crate::spec::config::{Layout, Shape};
use crate::spec::element::ElementType::F32;
use crate::spec::noise;
use crate::spec::params::{Gradients, ParamLayout, Params};

/// The pieces of a training run, in the order in which they ran, each with the session that holds it.
#[derive(Debug)]
pub(super) struct Recorded(Vec<(Chunk, PooledSession)>);

/// What a run starts from.
pub(crate) struct Input<'a> {
    shape: Shape,
    mode: Mode,
    batch: Batch<'a>,
    /// `[T, B]`
    step_flags: Option<Array2<u32>>,
    /// In the place of the batch's h0: on the device, for a run in one piece, or read from there.
    state: Option<&'a State>,
    read: Option<Array3<f32>>,
}

impl<'a> Input<'a> {
    /// For a run of these pieces. Of a batch, and a state, that fit.
    pub async fn new(
        shape: Shape,
        mode: Mode,
        chunks: &[Chunk],
        state: Option<&'a State>,
        batch: Batch<'a>,
        wait: Wait,
    ) -> Result<Self> {
        let step_flags = batch.has_step_flags().then(|| batch.step_flags()).transpose()?;
        let (state, read) = match state {
            Some(state) if chunks.len() > 1 => (None, Some(state.read(wait).await?)),
            state => (state, None),
        };
        Ok(Self { shape, mode, batch, step_flags, state, read })
    }

    /// Writes what a piece starts from. It starts from these states `[L·D, b, H]`, if they are those of the
    /// piece before it.
    pub async fn upload(
        &self,
        session: &mut Session,
        chunk: &Chunk,
        carried: Option<ArrayView3<'_, f32>>,
    ) -> Result<()> {
        let RunBuffers { x, step_flags, states, .. } = session.plan().run_buffers().clone();
        let shape = chunk.shape(self.shape);
        let own_x = chunk.of_sequence(self.batch.x, self.batch.layout);
        match self.batch.lengths {
            None => write(session, x, 0, own_x.len(), Some(own_x)).await?,
            Some(lengths) => {
                // Whatever padding holds, a product with a gradient of 0 must be 0.
                let mut clean = try_owned("x", own_x)?;
                zero_padding(&mut clean, self.batch.layout, &chunk.lengths(lengths));
                write(session, x, 0, clean.len(), Some(clean.view())).await?;
            }
        }
        let (steps, own_rows) = (chunk.steps.clone(), chunk.rows.clone());
        let rows = shape.steps * shape.batch;
        match &self.step_flags {
            None => session.clear(step_flags, 0..rows),
            Some(all) => {
                let own = all.slice(s![steps, own_rows]);
                let own = own.as_standard_layout();
                session.write(step_flags, 0, own.as_slice().expect("standard layout")).await?;
            }
        }
        if self.mode == Mode::Training {
            let first = [chunk.steps.start, chunk.rows.start];
            let seed = noise::draw_seed(self.batch.seed.unwrap_or(0), first);
            session.write(step_flags, rows, &seed).await?;
        }
        let of_reset = self.batch.reset_state.map(|state| chunk.of_states(state));
        let range = States::Reset.range(shape);
        write(session, states, range.start, range.len(), of_reset).await?;
        let range = States::First.range(shape);
        if let (None, Some(buffer)) = (carried, self.state.and_then(State::buffer)) {
            session.copy_in(buffer, states, range);
            return Ok(());
        }
        let given = self.read.as_ref().map(|state| state.view()).or(self.batch.h0);
        let first = carried.or(given.map(|state| chunk.of_states(state)));
        write(session, states, range.start, range.len(), first).await
    }
}

impl Recorded {
    /// The states after the last steps, a copy.
    pub async fn state(&self, shape: Shape, wait: Wait) -> Result<State> {
        let last = |session: &Session, chunk: &Chunk| {
            (session.plan().run_buffers().states, States::Last.range(chunk.shape(shape)))
        };
        let (first, session) = &self.0[0];
        let gpu = session.gpu();
        if self.0.len() == 1 {
            let (states, range) = last(session, first);
            let buffer = session.copy_out("state", states, range).await?;
            return Ok(State::of_buffer(gpu, buffer, shape.state()));
        }
        let mut all: Array3<f32> = try_array("the states", shape.state())?;
        // Where several have the same rows, the last one counts.
        for (chunk, session) in &self.0 {
            let (states, range) = last(session, chunk);
            let part = (session.buffer(states), range.start, range.len());
            let read = gpu.download(&[part], wait).await?.swap_remove(0);
            chunk.of_states(all.view_mut()).assign(&array(chunk.shape(shape).state(), read));
        }
        let make = || {
            let buffer = gpu.buffer("state", F32.bytes(all.len()));
            gpu.upload(&buffer, 0, all.as_slice().expect("standard layout"));
            Ok(buffer)
        };
        Ok(State::of_buffer(gpu, gpu.guard(make).await?, shape.state()))
    }
}

impl Gru {
    /// The pieces that a run on the model's adapter is made of.
    pub(crate) fn chunks_of(
        &self,
        shape: Shape,
        mode: Mode,
        purpose: Purpose,
    ) -> Result<Vec<Chunk>> {
        let job = SessionKey { shape, mode, options: self.options(), purpose };
        self.session_pool()?.chunks(self.params().layout(), job)
    }

    pub(super) async fn forward_on<'a>(
        &self,
        shape: Shape,
        mode: Mode,
        state: Option<&'a State>,
        batch: Batch<'a>,
        wait: Wait,
    ) -> Result<(Output, Recorded)> {
        let chunks = self.chunks_of(shape, mode, Purpose::States)?;
        let input = Input::new(shape, mode, &chunks, state, batch, wait).await?;
        let mut all = (chunks.len() > 1).then(|| Output::room(shape)).transpose()?;
        let session = |chunk: &Chunk| self.session(chunk.shape(shape), mode, Purpose::States, None);
        // Training holds all of them: where there is no room, nothing is computed in vain.
        let mut held = Vec::new();
        if mode == Mode::Training {
            for chunk in &chunks {
                held.push(session(chunk).await?);
            }
        }
        let mut held = held.into_iter();
        let (mut before, mut recorded) = (None, Vec::new());
        for chunk in &chunks {
            let part = chunk.shape(shape);
            let mut session = match held.next() {
                Some(session) => session,
                None => session(chunk).await?,
            };
            let carried = all.as_ref().filter(|_| chunk.has_rows_of(before));
            let carried = carried.map(|all| chunk.of_states(all.h_n.view()));
            input.upload(&mut session, chunk, carried).await?;
            session.run(Pass::Forward).await?;
            let output = download_output(&mut session, part, wait).await?;
            // In inference the next piece can have it.
            if mode == Mode::Training {
                recorded.push((chunk.clone(), session));
            }
            let Some(all) = &mut all else { return Ok((output, Recorded(recorded))) };
            all.put(&output, chunk, shape.layout);
            before = Some(chunk);
        }
        Ok((all.expect("a run has a piece at least"), Recorded(recorded)))
    }

    pub(super) async fn backward_on(
        &self,
        recorded: Recorded,
        shape: Shape,
        dy: Option<ArrayView3<'_, f32>>,
        dh_n: Option<ArrayView3<'_, f32>>,
        wait: Wait,
    ) -> Result<Gradients> {
        let several = recorded.0.len() > 1;
        let room = || Gradients::room(self.params().layout(), shape);
        let mut all = several.then(room).transpose()?;
        let mut after = None;
        for (chunk, mut session) in recorded.0.into_iter().rev() {
            let part = chunk.shape(shape);
            let carried = all.as_ref().filter(|_| chunk.has_rows_of(after.as_ref()));
            let carried = carried.map(|all| chunk.of_states(all.h0.view()));
            let dh_n = carried.or(dh_n.map(|dh_n| chunk.of_states(dh_n)));
            let dy = dy.map(|dy| chunk.of_sequence(dy, shape.layout));
            upload_gradients(&mut session, part, dy, dh_n).await?;
            session.run(Pass::Backward).await?;
            let gradients = self.download_gradients(&mut session, part, wait).await?;
            let Some(all) = &mut all else { return Ok(gradients) };
            all.put(&gradients, &chunk, shape.layout);
            after = Some(chunk);
        }
        Ok(all.expect("a run has a piece at least"))
    }

    /// Waits for a backward schedule and reads what it made.
    pub(crate) async fn download_gradients(
        &self,
        session: &mut Session,
        shape: Shape,
        wait: Wait,
    ) -> Result<Gradients> {
        let t = training_buffers(session);
        let layout = self.params().layout();
        let parts = [
            (t.dparams, 0..layout.flat_len()),
            (t.dx[0].expect("a run of states"), 0..shape.x().iter().product()),
            (t.dstates, States::First.range(shape)),
            (t.dstates, States::Reset.range(shape)),
        ];
        let [params, x, h0, reset_state] =
            session.read(&parts, wait).await?.try_into().expect("four parts asked for");
        Ok(Gradients {
            params: Params::from_flat(layout.clone(), params),
            x: array(shape.x(), x),
            h0: array(shape.state(), h0),
            reset_state: array(shape.state(), reset_state),
        })
    }
}

impl Output {
    /// Room for those of several pieces.
    fn room(shape: Shape) -> Result<Self> {
        Ok(Self { y: try_array("y", shape.y())?, h_n: try_array("h_n", shape.state())? })
    }

    /// Puts a piece's in its place.
    fn put(&mut self, part: &Self, chunk: &Chunk, layout: Layout) {
        chunk.of_sequence(self.y.view_mut(), layout).assign(&part.y);
        // Of several with the same rows the last one counts.
        chunk.of_states(self.h_n.view_mut()).assign(&part.h_n);
    }
}

impl Gradients {
    /// Room for those of several pieces.
    fn room(layout: &ParamLayout, shape: Shape) -> Result<Self> {
        Ok(Self {
            params: Params::zeros_of(layout.clone())?,
            x: try_array("dx", shape.x())?,
            h0: try_array("dh0", shape.state())?,
            reset_state: try_array("the gradient of the reset state", shape.state())?,
        })
    }

    /// Puts a piece's in its place, or adds it.
    fn put(&mut self, part: &Self, chunk: &Chunk, layout: Layout) {
        let sum = self.params.as_mut_slice().iter_mut();
        sum.zip(part.params.as_slice()).for_each(|(sum, &more)| *sum += more);
        chunk.of_sequence(self.x.view_mut(), layout).assign(&part.x);
        // Of several with the same rows the first one counts, which comes last.
        chunk.of_states(self.h0.view_mut()).assign(&part.h0);
        let mut sum = chunk.of_states(self.reset_state.view_mut());
        sum += &part.reset_state;
    }
}

/// Waits for a forward schedule and reads what it made.
pub(crate) async fn download_output(
    session: &mut Session,
    shape: Shape,
    wait: Wait,
) -> Result<Output> {
    let RunBuffers { states, y, .. } = *session.plan().run_buffers();
    let parts = [(y, 0..shape.y().iter().product()), (states, States::Last.range(shape))];
    let [y, h_n] = session.read(&parts, wait).await?.try_into().expect("two parts asked for");
    Ok(Output { y: array(shape.y(), y), h_n: array(shape.state(), h_n) })
}

/// Writes what a backward schedule starts from.
pub(crate) async fn upload_gradients(
    session: &mut Session,
    shape: Shape,
    dy: Option<ArrayView3<'_, f32>>,
    dh_n: Option<ArrayView3<'_, f32>>,
) -> Result<()> {
    let t = training_buffers(session);
    write(session, t.dy, 0, shape.y().iter().product(), dy).await?;
    for (section, gradient) in [(States::Reset, None), (States::Last, dh_n)] {
        let range = section.range(shape);
        write(session, t.dstates, range.start, range.len(), gradient).await?;
    }
    Ok(())
}

fn training_buffers(session: &Session) -> TrainingBuffers {
    let training = session.plan().run_buffers().training.clone();
    training.expect("a tape's plan is a training plan")
}

/// Fills `len` elements of a buffer from an array of any strides, or with zeros.
async fn write(
    session: &mut Session,
    buffer: BufferId,
    first: usize,
    len: usize,
    array: Option<ArrayView3<'_, f32>>,
) -> Result<()> {
    let in_order = array.and_then(|array| array.to_slice());
    let copy = match array {
        Some(array) if in_order.is_none() => Some(try_owned("an array in order", array)?),
        _ => None,
    };
    let copied = copy.as_ref().map(|copy| copy.as_slice().expect("standard layout"));
    match in_order.or(copied) {
        None => session.clear(buffer, first..first + len),
        Some(data) => {
            assert_eq!(data.len(), len, "wrong amount of data for {buffer:?}");
            session.write(buffer, first, data).await?;
        }
    }
    Ok(())
}

fn array(shape: [usize; 3], data: Vec<f32>) -> Array3<f32> {
    Array3::from_shape_vec(shape, data).expect("the plan's sizes are the shape's")
}

/// A copy in standard layout.
fn try_owned(what: &'static str, view: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
    let mut copy: Array3<f32> = try_array(what, view.dim())?;
    copy.assign(&view);
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayD, Axis, Dimension};

    use super::*;
    use crate::model::device::{Device, test_device_with_bindings};
    use crate::spec::config::{Direction, GruConfig, Reset};
    use crate::spec::head::Head;
    use crate::spec::loss::Loss;
    use crate::spec::optimizer::Optimizer;
    use crate::spec::options::RunOptions;
    use crate::spec::params::Init;
    use crate::training::learner::{Learner, LearnerConfig};

    /// So few that a run of [`STEPS`] and [`ROWS`] has two pieces at least: y alone takes 18 KiB.
    const BINDING: u64 = 16 << 10;
    const STEPS: usize = 61;
    const ROWS: usize = 11;

    fn numbers(shape: [usize; 3], salt: usize) -> Array3<f32> {
        Array3::from_shape_fn(shape, |(i, j, k)| {
            ((5 * i + 3 * j + 7 * k + salt) % 11) as f32 * 0.2 - 1.0
        })
    }

    fn assert_close<'a>(
        got: impl IntoIterator<Item = &'a f32>,
        expected: impl IntoIterator<Item = &'a f32>,
        case: &str,
    ) {
        for (at, (got, expected)) in got.into_iter().zip(expected).enumerate() {
            let bound = 1e-4 * (1.0 + expected.abs());
            assert!((got - expected).abs() < bound, "{case}: {got} for {expected} at {at}");
        }
    }

    /// Everything that a batch can have. Two runs, the second from the states of the first.
    fn run(gru: &Gru, shape: Shape) -> Vec<Array3<f32>> {
        let [h0, reset_state] = [1, 2].map(|salt| numbers(shape.state(), salt));
        let lengths: Vec<_> = (0..ROWS).map(|row| [STEPS, 0, 1, STEPS / 2, 50][row % 5]).collect();
        let mut x = numbers(shape.x(), 0);
        for ((i, j, _), x) in x.indexed_iter_mut() {
            let [step, row] = shape.layout.order(i, j);
            // Padding, which nothing looks at.
            *x = if step < lengths[row] { *x } else { f32::NAN };
        }
        let [outer, inner] = shape.layout.order(STEPS, ROWS);
        let resets = Array2::from_shape_fn((outer, inner), |at| {
            let [step, row] = shape.layout.order(at.0, at.1);
            // Some of them where pieces meet.
            step % 7 == row || step == 0 && row == 3 || (28..34).contains(&step) && row % 2 == 0
        });
        let batch = Batch::new(x.view()).with_layout(shape.layout).with_lengths(&lengths);
        let batch = batch.with_resets(resets.view()).with_reset_state(reset_state.view());
        let batch = batch.with_seed(7);
        let used = gru.forward(batch.with_h0(h0.view())).unwrap();
        let (first, tape) = gru.forward_train(batch.with_h0(h0.view())).unwrap();
        let state = tape.state().unwrap();
        let on = gru.forward_from(&state, batch).unwrap();
        let (second, next) = gru.forward_train_from(&state, batch).unwrap();
        let (dy, dh_n) = (numbers(shape.y(), 3), numbers(shape.state(), 4));
        let mut all =
            vec![used.y, used.h_n, first.y, first.h_n, on.y, on.h_n, second.y, second.h_n];
        all.push(state.to_array().unwrap());
        for (tape, dh_n) in [(tape, Some(dh_n.view())), (next, None)] {
            let grads = gru.backward(tape, Some(dy.view()), dh_n).unwrap();
            let flat = grads.params.as_slice().to_vec();
            let params = Array3::from_shape_vec((1, 1, flat.len()), flat).unwrap();
            all.extend([params, grads.x, grads.h0, grads.reset_state]);
        }
        all
    }

    #[test]
    fn a_run_in_pieces_gives_the_same_numbers() {
        let device = test_device_with_bindings(BINDING);
        for (direction, reset, layout, layers) in [
            (Direction::Forward, Reset::After, Layout::TimeMajor, 2),
            (Direction::Forward, Reset::Before, Layout::BatchFirst, 1),
            (Direction::Reverse, Reset::After, Layout::BatchFirst, 2),
            (Direction::Both, Reset::After, Layout::TimeMajor, 2),
            (Direction::Both, Reset::Before, Layout::BatchFirst, 1),
        ] {
            let config = GruConfig::pytorch(3, 7).with_reset(reset).with_direction(direction);
            let config = config.with_layers(layers).with_zoneout(0.2);
            let config = config.with_dropout(if layers > 1 { 0.3 } else { 0.0 });
            let shape = config.shape(STEPS, ROWS).unwrap().with_layout(layout);
            let [gru, cpu] = [&device, &Device::cpu()]
                .map(|device| Gru::new(config.clone(), Init::Uniform, 5, device).unwrap());
            for mode in [Mode::Inference, Mode::Training] {
                let chunks = gru.chunks_of(shape, mode, Purpose::States).unwrap();
                let by_steps = chunks.iter().all(|chunk| chunk.rows == (0..ROWS));
                assert!(chunks.len() > 1 && by_steps == (direction != Direction::Both));
            }
            let case = format!("{config}, {layout:?}");
            for (at, (got, expected)) in run(&gru, shape).iter().zip(run(&cpu, shape)).enumerate() {
                assert_eq!(got.dim(), expected.dim());
                assert_close(got, &expected, &format!("{case}, array {at}"));
            }
        }
    }

    #[test]
    fn a_network_is_used_and_trained_in_pieces() {
        let device = test_device_with_bindings(BINDING);
        for (direction, layout, head) in [
            (Direction::Forward, Layout::TimeMajor, Head::every_step(2)),
            (Direction::Reverse, Layout::BatchFirst, Head::last(3)),
            (Direction::Both, Layout::BatchFirst, Head::every_step(3)),
            (Direction::Both, Layout::TimeMajor, Head::last(2)),
        ] {
            let config = GruConfig::pytorch(3, 7).with_direction(direction);
            let shape = config.shape(STEPS, ROWS).unwrap().with_layout(layout);
            let x = numbers(shape.x(), 0);
            let lengths: Vec<_> = (0..ROWS).map(|row| [STEPS, 1, 40, 50][row % 4]).collect();
            let batch = Batch::new(x.view()).with_layout(layout).with_lengths(&lengths);
            let axes = head.row_axes(shape);
            let classes = ArrayD::from_shape_fn(axes, |at| {
                at.slice().iter().sum::<usize>() as i32 % head.outputs as i32
            });
            let layout = ParamLayout::with_head(&config, head).unwrap();
            let params = Params::init_of(layout, Init::Uniform, 3).unwrap();
            let training = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 0.01);
            let train = |device: &Device| {
                let mut learner = Learner::new(params.clone(), training, device).unwrap();
                for _ in 0..3 {
                    learner.step(batch, crate::Targets::Classes(classes.view())).unwrap();
                }
                let losses: Vec<_> = learner.metrics().unwrap().iter().map(|r| r.loss).collect();
                (losses, learner.into_network().unwrap())
            };
            let [(losses, network), (expected, on_cpu)] = [&device, &Device::cpu()].map(train);
            for (mode, purpose) in [
                (Mode::Inference, Purpose::Outputs),
                (Mode::Training, Purpose::Loss(Loss::cross_entropy())),
            ] {
                let chunks = network.gru().chunks_of(shape, mode, purpose).unwrap();
                assert!(chunks.len() > 1);
            }
            let case = format!("{direction:?}, {head:?}");
            assert_close(&losses, &expected, &case);
            assert_close(network.params().as_slice(), on_cpu.params().as_slice(), &case);
            let [got, expected] = [&network, &on_cpu].map(|n| n.forward(batch).unwrap());
            assert_eq!(got.dim(), expected.dim());
            assert_close(&got, &expected, &case);
        }
    }

    /// The pieces of a profile's run, and a run that no pieces make possible.
    #[test]
    fn what_cannot_be_cut_is_refused() {
        let device = test_device_with_bindings(BINDING);
        let config = GruConfig::pytorch(3, 7).with_direction(Direction::Both);
        let gru = Gru::new(config, Init::Uniform, 5, &device).unwrap();
        let gru = gru.with_options(RunOptions::default().with_recompute(true));
        let x = numbers([STEPS, ROWS, 3], 0);
        let dy = numbers([STEPS, ROWS, 14], 0);
        let profile = gru.profile(x.view(), Some(dy.view())).unwrap();
        assert!(!profile.kernels.is_empty() && !profile.backward.is_zero());
        let long = Array3::zeros((1000, 1, 3));
        let error = gru.forward(&long).unwrap_err();
        assert!(matches!(error, crate::Error::Limit { .. }), "{error}");
        gru.forward(long.slice_axis(Axis(0), (..9).into())).unwrap();
    }
}
