//! Compares streams, states carried between chunks, and forward passes over the caller's buffers
//! with one whole run of the reference.

use ndarray::{Array2, Array3, Axis, concatenate, s};

use super::{Findings, random3};
use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::wait::Wait;
use crate::model::device::{Device, DeviceTarget};
use crate::model::gru::Gru;
use crate::model::interop::Buffers;
use crate::reference::{self, Trace};
use crate::spec::batch::Batch;
use crate::spec::config::{Direction, GruConfig};
use crate::spec::element::BufferElement;
use crate::spec::params::{Init, Params};

const STEPS: usize = 5;
const BATCH: usize = 17;
/// The lengths of the sequence's chunks.
const CHUNKS: [usize; 4] = [1, 2, 1, 1];

/// A model and its inputs.
struct FlowCase {
    gru: Gru,
    params: Params<f64>,
    x: Array3<f32>,
    h0: Array3<f32>,
    resets: Array2<bool>,
    reset_state: Array3<f32>,
    sizes: String,
}

impl FlowCase {
    async fn new(device: &Device, config: &GruConfig, seed: u64) -> Result<Self> {
        let shape = config.shape(STEPS, BATCH)?;
        let params = Params::init(config, Init::Uniform, seed)?;
        Ok(Self {
            params: params.cast(),
            gru: Gru::with_params_async(params, device).await?,
            x: random3(shape.x(), seed + 1),
            h0: random3(shape.state(), seed + 2),
            // A stream resets rows only between chunks, so there is no reset inside a chunk.
            resets: Array2::from_shape_fn((STEPS, BATCH), |(t, row)| {
                t != 2 && (3 * t + row) % 5 == 0
            }),
            reset_state: random3(shape.state(), seed + 3),
            sizes: format!("{config}; {shape}"),
        })
    }

    /// Runs the reference over the whole sequence.
    fn expected(&self) -> Result<Trace<f64>> {
        let [x, h0, reset_state] =
            [&self.x, &self.h0, &self.reset_state].map(|array| array.mapv(f64::from));
        let batch = Batch::new(x.view()).with_h0(h0.view()).with_reset_state(reset_state.view());
        reference::forward(&self.params, batch.with_resets(self.resets.view()))
    }

    /// Returns the first step and x of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (usize, Array3<f32>)> {
        CHUNKS.iter().scan(0, |first, &steps| {
            let chunk = self.x.slice(s![*first..*first + steps, .., ..]).to_owned();
            *first += steps;
            Some((*first - steps, chunk))
        })
    }
}

/// Returns the variants to check.
pub(super) fn variants() -> Vec<GruConfig> {
    GruConfig::all_variants(3, 5).into_iter().collect()
}

/// Checks all variants.
pub(super) async fn check(device: &Device, findings: &mut Findings<'_>) -> Result<()> {
    for (seed, config) in (0..).zip(variants()) {
        let stacked = config.with_layers(2);
        let case = FlowCase::new(device, &stacked, 10 * seed).await?;
        check_stream(&case, findings).await?;
        check_chunks(&case, findings).await?;
        if let DeviceTarget::Gpu(gpu) = device.target() {
            let case =
                FlowCase::new(device, &stacked.with_direction(Direction::Both), 10 * seed).await?;
            check_encoded(gpu, &case, findings).await?;
        }
        findings.case_done();
    }
    Ok(())
}

async fn check_stream(case: &FlowCase, findings: &mut Findings<'_>) -> Result<()> {
    let mut stream = case.gru.stream_async(BATCH, &[1, 2]).await?;
    stream.set_state_async(case.h0.view()).await?;
    stream.set_reset_state_async(case.reset_state.view()).await?;
    let mut ys = Vec::new();
    for (first, chunk) in case.chunks() {
        for row in (0..BATCH).filter(|&row| case.resets[[first, row]]) {
            stream.reset_row(row)?;
        }
        let mut y = Array3::from_elem((chunk.dim().0, BATCH, 5), f32::NAN);
        case.gru.step_async(&mut stream, chunk.view(), y.view_mut()).await?;
        ys.push(y);
    }
    let expected = case.expected()?;
    findings.compare("y of a stream", &case.sizes, &joined(&ys).view(), &expected.y().view());
    let last = stream.state_async().await?;
    let subject = "last states of a stream";
    findings.compare(subject, &case.sizes, &last.view(), &expected.h_n().view());
    Ok(())
}

/// Checks truncated backpropagation: states are carried from chunk to chunk, gradients stay within
/// a chunk.
async fn check_chunks(case: &FlowCase, findings: &mut Findings<'_>) -> Result<()> {
    let (mut state, mut state64) = (None, case.h0.mapv(f64::from));
    for (_, x) in case.chunks() {
        let x64 = x.mapv(f64::from);
        let trace =
            reference::forward_train(&case.params, Batch::new(x64.view()).with_h0(state64.view()))?;
        let dy64 = trace.y();
        let expected =
            reference::backward(&case.params, x64.view(), &trace, Some(dy64.view()), None)?;
        state64 = trace.h_n();

        let gru = &case.gru;
        let (output, tape) = match &state {
            None => {
                let batch = Batch::new(x.view()).with_h0(case.h0.view());
                gru.forward_train_async(batch).await?
            }
            Some(state) => gru.forward_train_from_async(state, &x).await?,
        };
        state = Some(tape.state_async().await?);
        let got = gru.backward_async(tape, Some(output.y.view()), None).await?;
        let sizes = format!("{}, chunk of {} steps", case.sizes, x.dim().0);
        findings.compare("y in chunks", &sizes, &output.y.view(), &dy64.view());
        let (got, expected) = (got.params.as_slice(), expected.params.as_slice());
        findings.compare_slices("parameter gradients in chunks", &sizes, got, expected);
    }
    Ok(())
}

/// Checks a forward pass over the caller's buffers, with all optional buffers given.
async fn check_encoded(gpu: &Gpu, case: &FlowCase, findings: &mut Findings<'_>) -> Result<()> {
    let shape = case.gru.config().shape(STEPS, BATCH)?;
    let batch = Batch::new(case.x.view()).with_resets(case.resets.view());
    let step_flags = batch.step_flags()?;
    let expected = case.expected()?;
    let (y, h_n) = (expected.y(), expected.h_n());
    let make = || {
        let numbers = |array: &Array3<f32>| array.iter().copied().collect::<Vec<_>>();
        Ok([
            filled(gpu, "x", &numbers(&case.x)),
            filled(gpu, "step_flags", step_flags.as_slice().expect("standard layout")),
            filled(gpu, "h0", &numbers(&case.h0)),
            filled(gpu, "reset_state", &numbers(&case.reset_state)),
            filled(gpu, "y", &vec![f32::NAN; y.len()]),
            filled(gpu, "h_n", &vec![f32::NAN; h_n.len()]),
        ])
    };
    let callers = gpu.guard(make).await?;
    let [x, step_flags, h0, reset_state, to_y, to_h_n] =
        [0, 1, 2, 3, 4, 5].map(|i: usize| callers[i].as_entire_buffer_binding());
    let buffers = Buffers::new(x, to_y)
        .with_step_flags(step_flags)
        .with_h0(h0)
        .with_reset_state(reset_state)
        .with_h_n(to_h_n);
    let mut pass = case.gru.forward_pass_async(shape, &buffers).await?;
    let submit = || {
        let mut encoder = gpu.encoder("check");
        case.gru.encode(&mut pass, &mut encoder)?;
        gpu.submit(encoder.finish());
        Ok(())
    };
    gpu.guard(submit).await?;
    let parts = [(&callers[4], 0, y.len()), (&callers[5], 0, h_n.len())];
    let read: Vec<Vec<f32>> = gpu.download(&parts, Wait::Async).await?;
    for (subject, got, expected) in
        [("y of an encoded pass", &read[0], &y), ("h_n of an encoded pass", &read[1], &h_n)]
    {
        let expected: Vec<f64> = expected.iter().copied().collect();
        findings.compare_slices(subject, &case.sizes, got, &expected);
    }
    Ok(())
}

/// Returns a buffer with these elements.
fn filled<T: BufferElement>(gpu: &Gpu, name: &str, data: &[T]) -> wgpu::Buffer {
    let buffer = gpu.buffer(name, T::TYPE.bytes(data.len()));
    gpu.upload(&buffer, 0, data);
    buffer
}

/// Concatenates arrays along T.
fn joined(parts: &[Array3<f32>]) -> Array3<f32> {
    let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
    concatenate(Axis(0), &parts).expect("the other axes are equal")
}
