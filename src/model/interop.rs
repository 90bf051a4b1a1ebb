//! Inside a caller's own wgpu program: [`Buffers`] of theirs, and a [`ForwardPass`] over them that
//! goes into their command encoder.

use crate::error::{Error, Result};
use crate::gpu::context::Gpu;
use crate::gpu::session::{BufferBinding, Session};
use crate::model::blocking::blocking_and_async;
use crate::model::gru::Gru;
use crate::plan::{BufferId, ElementType, Mode, RunBuffers, StateSlot};
use crate::spec::config::Shape;

/// A caller's buffers, for a [`ForwardPass`] or a [`Stream`](crate::Stream).
///
/// | | elements | usage it needs | its offset is a multiple of |
/// |---|---|---|---|
/// | x | `[T, B, I]` of f32 | `STORAGE` | the device's `min_storage_buffer_offset_alignment` |
/// | y | `[T, B, D·H]` of f32 | `STORAGE` | the same |
/// | marks | `[T, B]` of u32, bits of [`step_flag`](mod@crate::step_flag) | `STORAGE` | the same |
/// | h0, reset_state | `[L·D, B, H]` of f32 | `COPY_SRC` | 4 |
/// | h_n | `[L·D, B, H]` of f32 | `COPY_DST` | 4 |
///
/// With [`Layout::BatchFirst`](crate::Layout::BatchFirst) x and y have their first two axes
/// exchanged; marks never. The kernels write y and read marks in one dispatch, so these two must
/// not lie in one buffer, which WebGPU forbids; others may. What x holds at padding is not looked
/// at, but must not be missing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Buffers<'a> {
    /// The input.
    pub x: wgpu::BufferBinding<'a>,
    /// The last layer's state after every step, 0 at padding. Layers below use it as scratch
    /// memory.
    pub y: wgpu::BufferBinding<'a>,
    /// What the steps are marked with: padding and restarts. Nothing when `None`.
    pub step_flags: Option<wgpu::BufferBinding<'a>>,
    /// The first states; zeros when `None`.
    pub h0: Option<wgpu::BufferBinding<'a>>,
    /// The states that restarts go back to; zeros when `None`.
    pub reset_state: Option<wgpu::BufferBinding<'a>>,
    /// Where the last states go, if anywhere.
    pub h_n: Option<wgpu::BufferBinding<'a>>,
}

impl<'a> Buffers<'a> {
    /// From x to y. [`wgpu::Buffer::as_entire_buffer_binding`] makes a binding of a whole buffer.
    pub fn new(x: wgpu::BufferBinding<'a>, y: wgpu::BufferBinding<'a>) -> Self {
        Self { x, y, step_flags: None, h0: None, reset_state: None, h_n: None }
    }

    /// The same with marks.
    #[must_use]
    pub fn with_step_flags(self, step_flags: wgpu::BufferBinding<'a>) -> Self {
        Self { step_flags: Some(step_flags), ..self }
    }

    /// The same from these first states.
    #[must_use]
    pub fn with_h0(self, h0: wgpu::BufferBinding<'a>) -> Self {
        Self { h0: Some(h0), ..self }
    }

    /// The same with restarts going back to these states.
    #[must_use]
    pub fn with_reset_state(self, reset_state: wgpu::BufferBinding<'a>) -> Self {
        Self { reset_state: Some(reset_state), ..self }
    }

    /// The same with the last states going here.
    #[must_use]
    pub fn with_h_n(self, h_n: wgpu::BufferBinding<'a>) -> Self {
        Self { h_n: Some(h_n), ..self }
    }

    /// `Ok` when they serve a run of `shape` on `gpu`.
    pub(crate) fn check(&self, gpu: &Gpu, shape: Shape) -> Result<()> {
        use wgpu::BufferUsages as Usage;
        let binding = u64::from(gpu.device().limits().min_storage_buffer_offset_alignment);
        let rows = shape.steps * shape.batch;
        let [x, y, state] =
            [shape.x(), shape.y(), shape.state()].map(|shape| shape.iter().product::<usize>());
        let [x, y, state] = [x, y, state].map(|len| ElementType::F32.bytes(len));
        let rows = ElementType::U32.bytes(rows);
        let copy = wgpu::COPY_BUFFER_ALIGNMENT;
        for (what, part, bytes, usage, alignment) in [
            ("x", Some(&self.x), x, Usage::STORAGE, binding),
            ("y", Some(&self.y), y, Usage::STORAGE, binding),
            ("step flags", self.step_flags.as_ref(), rows, Usage::STORAGE, binding),
            ("h0", self.h0.as_ref(), state, Usage::COPY_SRC, copy),
            ("the reset state", self.reset_state.as_ref(), state, Usage::COPY_SRC, copy),
            ("h_n", self.h_n.as_ref(), state, Usage::COPY_DST, copy),
        ] {
            if let Some(part) = part {
                check_part(what, part, bytes, usage, alignment)?;
            }
        }
        if self.step_flags.as_ref().is_some_and(|step_flags| step_flags.buffer == self.y.buffer) {
            return Err(Error::Conflict {
                what: "step flags and y in one buffer",
                why: "a kernel reads the one while it writes the other",
            });
        }
        Ok(())
    }

    /// What a session binds of them.
    pub(crate) fn bound(&self, run: &RunBuffers) -> Vec<(BufferId, BufferBinding)> {
        let parts = [
            (run.x, Some(&self.x)),
            (run.y, Some(&self.y)),
            (run.step_flags, self.step_flags.as_ref()),
        ];
        parts.into_iter().filter_map(|(id, part)| Some((id, BufferBinding::from(part?)))).collect()
    }
}

impl From<&wgpu::BufferBinding<'_>> for BufferBinding {
    fn from(binding: &wgpu::BufferBinding<'_>) -> Self {
        Self { buffer: binding.buffer.clone(), offset: binding.offset }
    }
}

fn check_part(
    what: &'static str,
    part: &wgpu::BufferBinding<'_>,
    bytes: u64,
    usage: wgpu::BufferUsages,
    alignment: u64,
) -> Result<()> {
    let rest = part.buffer.size().saturating_sub(part.offset);
    let given = part.size.map_or(rest, |size| size.get().min(rest));
    let error = |expected: String, got: String| Err(Error::Buffer { what, expected, got });
    if !part.buffer.usage().contains(usage) {
        let names = |usage: wgpu::BufferUsages| {
            let names: Vec<_> = usage.iter_names().map(|(name, _)| name).collect();
            format!("usage {}", names.join(" | "))
        };
        return error(names(usage), names(part.buffer.usage()));
    }
    if !part.offset.is_multiple_of(alignment) {
        let got = format!("the offset {}", part.offset);
        return error(format!("a multiple of {alignment}"), got);
    }
    if given < bytes {
        return error(format!("at least {bytes}"), format!("{given} bytes"));
    }
    Ok(())
}

/// A forward pass over a caller's own [`Buffers`], prepared once and encoded any number of times
/// into their own command encoder: no submit, no wait, nothing copied to the host.
///
/// ```no_run
/// use gru_wgpu::{Buffers, Device, Gru, GruConfig, Init, wgpu};
///
/// # fn example(
/// #     adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue,
/// #     x: wgpu::Buffer, y: wgpu::Buffer,
/// # ) -> gru_wgpu::Result<()> {
/// let shared = Device::from_wgpu(&adapter, &device, &queue)?;
/// let gru = Gru::new(GruConfig::pytorch(3, 16), Init::Uniform, 1, &shared)?;
/// let buffers = Buffers::new(x.as_entire_buffer_binding(), y.as_entire_buffer_binding());
/// let mut pass = gru.forward_pass(gru.config().shape(50, 8)?, &buffers)?;
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// // … what fills x …
/// gru.encode(&mut pass, &mut encoder)?;
/// // … what uses y …
/// queue.submit([encoder.finish()]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ForwardPass {
    model: u64,
    shape: Shape,
    session: Session,
    /// Copied to `states` ahead of the pass.
    before: Vec<(BufferBinding, StateSlot)>,
    /// Where the last states are copied after it.
    h_n: Option<BufferBinding>,
}

impl ForwardPass {
    /// The sizes of its runs.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let plan = self.session.plan();
        let id = plan.run_buffers().states;
        let states = self.session.buffer(id);
        let part = |section: StateSlot| plan.spec(id).byte_range(&section.range(self.shape));
        for (from, section) in &self.before {
            let (to, len) = part(*section);
            encoder.copy_buffer_to_buffer(&from.buffer, from.offset, states, to, len);
        }
        self.session.encode(encoder, 0);
        if let Some(to) = &self.h_n {
            let (from, len) = part(StateSlot::Last);
            encoder.copy_buffer_to_buffer(states, from, &to.buffer, to.offset, len);
        }
    }

    /// Multiplications and additions of one run: what to go by where a submit must stay short, as
    /// in a program that also draws.
    pub fn flops(&self) -> u64 {
        self.session.plan().forward_flops()
    }
}

impl Gru {
    blocking_and_async! {
        /// Prepares forward passes of `shape` over the caller's own buffers.
        ///
        /// # Errors
        /// [`Error::Buffer`] when a buffer does not have the size, the usage or the alignment that
        /// it needs, [`Error::Conflict`] on the CPU device, [`Error::Shape`] when another
        /// configuration made `shape`, [`Error::Limit`], and the device's own.
        pub fn forward_pass, forward_pass_async(&self, shape: Shape, buffers: &Buffers<'_>) -> Result<ForwardPass> {
            |_| self.prepare_forward_pass(shape, buffers)
        }
    }

    async fn prepare_forward_pass(
        &self,
        shape: Shape,
        buffers: &Buffers<'_>,
    ) -> Result<ForwardPass> {
        let pool = self.session_pool()?;
        let plan = self.plan(shape, Mode::Inference)?;
        buffers.check(pool.gpu(), shape)?;
        let bound = buffers.bound(plan.run_buffers());
        let session = pool.create_session(plan, &bound).await?;
        let copied = [(&buffers.h0, StateSlot::First), (&buffers.reset_state, StateSlot::Reset)];
        let before = copied
            .into_iter()
            .filter_map(|(part, to)| Some((BufferBinding::from(part.as_ref()?), to)));
        let h_n = buffers.h_n.as_ref().map(BufferBinding::from);
        Ok(ForwardPass { model: self.id(), shape, session, before: before.collect(), h_n })
    }

    /// Puts a prepared forward pass into `encoder`, with the model's present parameters: copies of
    /// h0 and of the reset state, one compute pass, a copy to h_n. Runs of one [`ForwardPass`]
    /// share its inner buffers, so they follow one another in the order they are submitted.
    ///
    /// Parameters that changed since the last call are uploaded by the queue ahead of the next
    /// submit.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::ParameterLayout`], and the device's own while commands are
    /// recorded. What is wrong with an encoder as a whole, wgpu tells when it is finished.
    pub fn encode(&self, pass: &mut ForwardPass, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.check_usable()?;
        if pass.model != self.id() {
            return Err(Error::OtherModel { what: "forward pass" });
        }
        let work = || pass.encode(encoder);
        self.session_pool()?.with_parameters_now(self.params(), self.version(), work)
    }
}
