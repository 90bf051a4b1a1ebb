//! [`Session`]: a plan made real, and run.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::transfer::Wait;
use crate::plan::{ARGS_BLOCK, BufferId, BufferSpec, Dispatch, Plan, Role, Slice, Stage};

mod timed;

use timed::Stamps;
pub(crate) use timed::Timing;

/// Dispatches of one submit: bounds what wgpu holds while it encodes.
const SUBMIT_DISPATCHES: usize = 4096;

/// Which of a plan's two schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    Backward,
}

/// A buffer that is not the session's own, from this byte on.
#[derive(Clone, Debug)]
pub(crate) struct BufferBinding {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
}

impl From<&wgpu::Buffer> for BufferBinding {
    fn from(buffer: &wgpu::Buffer) -> Self {
        Self { buffer: buffer.clone(), offset: 0 }
    }
}

/// A plan made real on a device: its buffers, bind groups and arguments, made once and used for any
/// number of runs of that shape.
#[derive(Debug)]
pub(crate) struct Session {
    gpu: Gpu,
    plan: Arc<Plan>,
    buffers: Vec<BufferBinding>,
    forward: Vec<PreparedStage>,
    backward: Vec<PreparedStage>,
    /// Argument blocks of each of the plan's parities.
    parity_blocks: usize,
    /// What the call at work wants done ahead of its next pass.
    prologue: Vec<Prologue>,
    /// Ranges of input buffers that are zero already: no kernel writes an input.
    zeros: Vec<(BufferId, Range<usize>)>,
    /// The device reported an error during a run: the contents cannot be relied on.
    broken: bool,
}

/// What happens to elements of a buffer ahead of a pass.
#[derive(Debug)]
enum Prologue {
    Zero(BufferId, Range<usize>),
    Copy(wgpu::Buffer, BufferId, Range<usize>),
}

/// A stage with its pipelines and bind groups.
#[derive(Debug)]
struct PreparedStage {
    dispatches: Vec<PreparedDispatch>,
    times: usize,
    /// Where the arguments of its first dispatch lie; the others follow in order.
    first_block: usize,
}

#[derive(Debug)]
struct PreparedDispatch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 3],
    flops: u64,
}

impl Session {
    /// Makes everything that `plan` asks for, but the buffers that are `bound` to it.
    ///
    /// # Errors
    /// As [`Plan::check`], and the device's own.
    pub async fn new(
        gpu: &Gpu,
        plan: impl Into<Arc<Plan>>,
        bound: &[(BufferId, BufferBinding)],
    ) -> Result<Self> {
        let plan = plan.into();
        plan.check(gpu.limits())?;
        let mut pipelines = HashMap::new();
        for stage in plan.forward().iter().chain(plan.backward()) {
            for dispatch in stage.dispatches().0 {
                let key = (dispatch.kernel.name, dispatch.constants.clone());
                if let Entry::Vacant(entry) = pipelines.entry(key) {
                    entry.insert(gpu.pipeline(dispatch.kernel, &dispatch.constants).await?);
                }
            }
        }
        let session = gpu.guard(|| Ok(Self::prepare(gpu, plan, &pipelines, bound))).await?;
        gpu.check_lost()?;
        Ok(session)
    }

    fn prepare(
        gpu: &Gpu,
        plan: Arc<Plan>,
        pipelines: &HashMap<(&'static str, Vec<u32>), wgpu::ComputePipeline>,
        bound: &[(BufferId, BufferBinding)],
    ) -> Self {
        let make =
            |(i, spec): (usize, &BufferSpec)| match bound.iter().find(|(id, _)| id.index() == i) {
                Some((_, bound)) => bound.clone(),
                None => BufferBinding::from(&gpu.buffer(&spec.name, spec.len)),
            };
        let buffers: Vec<_> = plan.buffers().iter().enumerate().map(make).collect();
        let words: Vec<u32> =
            (0..plan.turns()).flat_map(|parity| argument_words(&plan, parity == 1)).collect();
        let args = gpu.buffer("args", words.len());
        gpu.upload(&args, 0, bytemuck::cast_slice(&words));

        let (bind_groups, next_block) = Default::default();
        let mut preparation =
            Preparation { gpu, pipelines, buffers: &buffers, args: &args, bind_groups, next_block };
        let forward = plan.forward().iter().map(|stage| preparation.stage(stage)).collect();
        let backward = plan.backward().iter().map(|stage| preparation.stage(stage)).collect();
        let parity_blocks = preparation.next_block;
        // wgpu gives out memory that is zero; a caller's buffers hold what they hold.
        let is_own = |id: &BufferId| bound.iter().all(|(other, _)| other != id);
        let inputs = plan.buffers().iter().enumerate().filter(|(_, spec)| spec.role == Role::Input);
        let zeros = inputs.map(|(i, spec)| (BufferId(i), 0..spec.len));
        let zeros = zeros.filter(|(id, _)| is_own(id)).collect();
        let (prologue, gpu) = (Vec::new(), gpu.clone());
        let broken = false;
        Self { gpu, plan, buffers, forward, backward, parity_blocks, prologue, zeros, broken }
    }

    /// The session as its next call is to have it: whatever this call queued ahead of a pass and did
    /// not run is gone. `None` where the contents cannot be relied on.
    pub fn into_idle(self) -> Option<Self> {
        let idle = Self { prologue: Vec::new(), ..self };
        (!idle.broken).then_some(idle)
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn buffer(&self, id: BufferId) -> &wgpu::Buffer {
        &self.buffers[id.index()].buffer
    }

    /// Writes `data` to `buffer` from its element `first`, or zeros to `len` elements of it.
    pub async fn write(
        &mut self,
        buffer: BufferId,
        first: usize,
        len: usize,
        data: Option<&[f32]>,
    ) -> Result<()> {
        let range = first..first + len;
        let Some(data) = data else {
            if !self.is_zero(buffer, &range) {
                self.prologue.push(Prologue::Zero(buffer, range));
            }
            return Ok(());
        };
        assert_eq!(data.len(), len, "wrong amount of data for {buffer:?}");
        self.zeros.retain(|(id, zero)| *id != buffer || !overlap(zero, &range));
        let upload = || {
            self.gpu.upload(self.buffer(buffer), first, data);
            Ok(())
        };
        self.gpu.guard(upload).await.inspect_err(|_| self.broken = true)
    }

    /// Whether a range of an input buffer is zero already.
    fn is_zero(&self, buffer: BufferId, range: &Range<usize>) -> bool {
        let holds = |zero: &Range<usize>| zero.start <= range.start && range.end <= zero.end;
        self.zeros.iter().any(|(id, zero)| *id == buffer && holds(zero))
    }

    /// Copies all of `from` to a range of a buffer, ahead of the next pass.
    pub fn copy_in(&mut self, from: &wgpu::Buffer, to: BufferId, range: Range<usize>) {
        self.zeros.retain(|(id, zero)| *id != to || !overlap(zero, &range));
        self.prologue.push(Prologue::Copy(from.clone(), to, range));
    }

    /// Queues a copy of a range of a buffer into one of its own.
    pub async fn copy_out(
        &self,
        name: &str,
        from: BufferId,
        range: Range<usize>,
    ) -> Result<wgpu::Buffer> {
        let copy = || {
            let copy = self.gpu.buffer(name, range.len());
            let mut encoder = self.gpu.encoder(name);
            let (first, len) = (4 * range.start as u64, 4 * range.len() as u64);
            encoder.copy_buffer_to_buffer(self.buffer(from), first, &copy, 0, len);
            self.gpu.submit(encoder.finish());
            Ok(copy)
        };
        self.gpu.guard(copy).await
    }

    /// Queues one of the plan's schedules. Returns before it has run.
    pub async fn run(&mut self, pass: Pass) -> Result<()> {
        let prologue = self.take_prologue(pass);
        let queue = || {
            self.queue(pass, &prologue, None);
            Ok(())
        };
        self.gpu.guard(queue).await.inspect_err(|_| self.broken = true)
    }

    /// What is to be done ahead of a pass, once. A session whose pass then fails is used no more, so
    /// what is zero after it may be noted here.
    fn take_prologue(&mut self, pass: Pass) -> Vec<Prologue> {
        let mut prologue = std::mem::take(&mut self.prologue);
        for cleared in &prologue {
            if let Prologue::Zero(id, range) = cleared {
                if self.plan.buffers()[id.index()].role == Role::Input {
                    self.zeros.push((*id, range.clone()));
                }
            }
        }
        if pass == Pass::Backward {
            let whole = |id: &BufferId| (*id, 0..self.plan.buffers()[id.index()].len);
            let zeros = self.plan.accumulators().iter().map(whole);
            prologue.extend(zeros.map(|(id, range)| Prologue::Zero(id, range)));
        }
        prologue
    }

    /// Queues a schedule; its compute passes write `stamps`.
    fn queue(&self, pass: Pass, prologue: &[Prologue], stamps: Option<Stamps<'_>>) {
        self.queue_dispatches(pass, prologue, self.dispatches(pass, 0), stamps);
    }

    fn queue_dispatches<'a>(
        &self,
        pass: Pass,
        prologue: &[Prologue],
        dispatches: impl Iterator<Item = (&'a PreparedDispatch, usize)>,
        mut stamps: Option<Stamps<'_>>,
    ) {
        let mut prologue = prologue.iter();
        let mut dispatches = dispatches.peekable();
        let most = self.plan.submit_flops().min(self.gpu.throttle().most());
        while dispatches.peek().is_some() {
            let mut encoder = self.gpu.encoder(pass.name());
            // All of it ahead of the first pass.
            prologue.by_ref().for_each(|prologue| self.encode_prologue(prologue, &mut encoder));
            let (mut flops, mut count) = (0, 0);
            let within = std::iter::from_fn(|| {
                // One dispatch at least, however large.
                let fits = |dispatch: &PreparedDispatch| {
                    flops + dispatch.flops <= most && count < SUBMIT_DISPATCHES
                };
                let (dispatch, block) =
                    dispatches.next_if(|(dispatch, _)| count == 0 || fits(dispatch))?;
                flops += dispatch.flops;
                count += 1;
                Some((dispatch, block))
            });
            let writes = stamps.as_mut().map(Stamps::next_pass);
            encode_dispatches(&mut encoder, pass, within, writes);
            self.gpu.submit(encoder.finish());
            self.gpu.throttle().queued(flops);
        }
    }

    fn encode_prologue(&self, prologue: &Prologue, encoder: &mut wgpu::CommandEncoder) {
        let bytes = |range: &Range<usize>| (4 * range.start as u64, 4 * range.len() as u64);
        match prologue {
            Prologue::Zero(id, range) => {
                let (first, len) = bytes(range);
                encoder.clear_buffer(self.buffer(*id), first, Some(len));
            }
            Prologue::Copy(from, id, range) => {
                let (first, len) = bytes(range);
                encoder.copy_buffer_to_buffer(from, 0, self.buffer(*id), first, len);
            }
        }
    }

    /// The forward schedule in one pass of somebody's encoder, in one of the plan's parities.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, parity: usize) {
        encode_dispatches(encoder, Pass::Forward, self.dispatches(Pass::Forward, parity), None);
    }

    fn stages(&self, pass: Pass) -> &[PreparedStage] {
        match pass {
            Pass::Forward => &self.forward,
            Pass::Backward => &self.backward,
        }
    }

    /// The dispatches of a schedule in order, each with the block of its arguments.
    fn dispatches(
        &self,
        pass: Pass,
        parity: usize,
    ) -> impl Iterator<Item = (&PreparedDispatch, usize)> {
        let first = parity * self.parity_blocks;
        self.stages(pass)
            .iter()
            .flat_map(PreparedStage::dispatches)
            .map(move |(dispatch, block)| (dispatch, first + block))
    }

    /// Waits for all that was queued and reads parts of buffers.
    pub async fn read(
        &mut self,
        parts: &[(BufferId, Range<usize>)],
        wait: Wait,
    ) -> Result<Vec<Vec<f32>>> {
        let parts: Vec<_> = parts
            .iter()
            .map(|(id, range)| (&self.buffers[id.index()].buffer, range.start, range.len()))
            .collect();
        // A caller may drop this before it is done.
        let broken = std::mem::replace(&mut self.broken, true);
        let read = self.gpu.download(&parts, wait).await?;
        self.broken = broken;
        Ok(read)
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

fn encode_dispatches<'a>(
    encoder: &mut wgpu::CommandEncoder,
    pass: Pass,
    dispatches: impl Iterator<Item = (&'a PreparedDispatch, usize)>,
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
) {
    let label = match pass {
        Pass::Forward => "gru.forward",
        Pass::Backward => "gru.backward",
    };
    let descriptor = wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes };
    let mut pass = encoder.begin_compute_pass(&descriptor);
    for (dispatch, block) in dispatches {
        let [x, y, z] = dispatch.workgroups;
        let offset = (block as u64 * ARGS_BLOCK) as u32;
        pass.set_pipeline(&dispatch.pipeline);
        pass.set_bind_group(0, &dispatch.bind_group, &[offset]);
        pass.dispatch_workgroups(x, y, z);
    }
}

impl PreparedStage {
    /// Its dispatches in order, each with the block of its arguments.
    fn dispatches(&self) -> impl Iterator<Item = (&PreparedDispatch, usize)> {
        let body = self.dispatches.len();
        (0..self.times * body).map(move |i| (&self.dispatches[i % body], self.first_block + i))
    }
}

/// What the stages of a session share while it is made.
struct Preparation<'a> {
    gpu: &'a Gpu,
    pipelines: &'a HashMap<(&'static str, Vec<u32>), wgpu::ComputePipeline>,
    buffers: &'a [BufferBinding],
    args: &'a wgpu::Buffer,
    /// One for each kernel, variant and set of slices; the arguments differ by offset alone.
    bind_groups: HashMap<(&'static str, Vec<u32>, Vec<Slice>), wgpu::BindGroup>,
    next_block: usize,
}

impl Preparation<'_> {
    fn stage(&mut self, stage: &Stage) -> PreparedStage {
        let (body, times) = stage.dispatches();
        let dispatches = body.iter().map(|dispatch| self.dispatch(dispatch)).collect();
        let first_block = self.next_block;
        self.next_block += body.len() * times;
        PreparedStage { dispatches, times, first_block }
    }

    fn dispatch(&mut self, dispatch: &Dispatch) -> PreparedDispatch {
        let pipeline = &self.pipelines[&(dispatch.kernel.name, dispatch.constants.clone())];
        let key = (dispatch.kernel.name, dispatch.constants.clone(), dispatch.bindings.clone());
        let bind_group = match self.bind_groups.get(&key) {
            Some(group) => group.clone(),
            None => {
                let group = self.bind(dispatch, pipeline);
                self.bind_groups.insert(key, group.clone());
                group
            }
        };
        // Plan::check held them against the adapter's limit, which is a u32.
        let workgroups = dispatch.workgroups.map(|n| n as u32);
        PreparedDispatch {
            pipeline: pipeline.clone(),
            bind_group,
            workgroups,
            flops: dispatch.padded_flops,
        }
    }

    fn bind(&self, dispatch: &Dispatch, pipeline: &wgpu::ComputePipeline) -> wgpu::BindGroup {
        let part = |buffer, offset, size| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            })
        };
        let args = wgpu::BindGroupEntry { binding: 0, resource: part(self.args, 0, ARGS_BLOCK) };
        let slices = dispatch.bindings.iter().zip(1..).map(|(slice, binding)| {
            let BufferBinding { buffer, offset } = &self.buffers[slice.buffer.index()];
            let (first, len) = (offset + 4 * slice.first as u64, 4 * slice.len as u64);
            wgpu::BindGroupEntry { binding, resource: part(buffer, first, len) }
        });
        let entries: Vec<_> = std::iter::once(args).chain(slices).collect();
        self.gpu.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&format!("gru.{}", dispatch.kernel.name)),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    }
}

/// The arguments of every dispatch in the order they run, a block each, the loops' steps filled in. In
/// a plan's second parity the last states are where the first ones were, and the other way round.
fn argument_words(plan: &Plan, odd: bool) -> Vec<u32> {
    const BLOCK: usize = ARGS_BLOCK as usize / 4;
    let mut words = Vec::new();
    for stage in plan.forward().iter().chain(plan.backward()) {
        let (body, _) = stage.dispatches();
        for step in stage.steps() {
            for dispatch in body {
                let block = words.len();
                words.extend_from_slice(&dispatch.args);
                let at = |name| dispatch.kernel.args.iter().position(|&arg| arg == name);
                if let Some(step) = step {
                    words[block + at("step").expect("a kernel in a loop takes its step")] = step;
                }
                if let (true, Some(first), Some(last)) = (odd, at("first_state"), at("last_state"))
                {
                    words.swap(block + first, block + last);
                }
                words.resize(block + BLOCK, 0);
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Access;
    use crate::model::device::test_device;
    use crate::plan::{DeviceCaps, Mode, Purpose};
    use crate::spec::config::GruConfig;
    use crate::spec::head::Head;
    use crate::spec::loss::Loss;
    use crate::spec::options::RunOptions;
    use crate::spec::params::ParamLayout;

    #[test]
    fn an_input_that_is_zero_is_not_cleared_again() {
        let (_, gpu) = test_device();
        let config = GruConfig::new(2, 3);
        let plan = Plan::new(&config, config.shape(4, 2).unwrap(), Mode::Training).unwrap();
        let len = |id: BufferId| plan.buffers()[id.index()].len;
        let training = plan.run_buffers().training.clone().unwrap();
        let (dy, dstates) = (training.dy, training.dstates);
        let mut session = pollster::block_on(Session::new(&gpu, plan.clone(), &[])).unwrap();
        let mut write = |id: BufferId, value: Option<f32>| {
            let data = value.map(|value| vec![value; len(id)]);
            let written = session.write(id, 0, len(id), data.as_deref());
            pollster::block_on(written).unwrap();
            let queued = session.prologue.len();
            pollster::block_on(session.run(Pass::Backward)).unwrap();
            let whole = [(id, 0..len(id))];
            let read = pollster::block_on(session.read(&whole, Wait::Block));
            (queued, read.unwrap().swap_remove(0)[0])
        };
        // New memory is zero.
        assert_eq!(write(dy, None), (0, 0.0));
        assert_eq!(write(dy, Some(1.0)), (0, 1.0));
        assert_eq!(write(dy, None), (1, 0.0));
        assert_eq!(write(dy, None), (0, 0.0));
        // Kernels write the gradients of states.
        for _ in 0..2 {
            assert_eq!(write(dstates, None).0, 1);
        }
    }

    /// What nobody writes need not be cleared, and what a kernel writes is no input.
    #[test]
    fn dy_of_a_loss_is_written_by_the_head_or_by_nobody() {
        for (head, role) in [(Head::last(2), Role::Zeros), (Head::every_step(2), Role::Scratch)] {
            let layout = ParamLayout::with_head(&GruConfig::pytorch(2, 3), head).unwrap();
            let shape = layout.config().shape(4, 2).unwrap();
            let (options, purpose) = (RunOptions::default(), Purpose::Loss(Loss::MeanSquared));
            let caps = DeviceCaps::WEBGPU;
            let plan = Plan::of_run(&layout, shape, Mode::Training, options, purpose, &caps);
            let plan = plan.unwrap();
            let dy = plan.run_buffers().training.as_ref().unwrap().dy;
            assert_eq!(plan.buffers()[dy.index()].role, role);
            let stages = plan.forward().iter().chain(plan.backward());
            let dispatches: Vec<_> = stages.flat_map(|stage| stage.dispatches().0).collect();
            let written: Vec<_> = dispatches
                .iter()
                .flat_map(|dispatch| dispatch.bindings.iter().zip(dispatch.kernel.bindings))
                .filter(|(_, (_, access))| *access == Access::ReadWrite)
                .map(|(slice, _)| slice.buffer)
                .collect();
            assert_eq!(written.contains(&dy), role == Role::Scratch);
            let inputs = plan.buffers().iter().enumerate();
            let mut inputs = inputs.filter(|(_, spec)| spec.role == Role::Input);
            assert!(inputs.all(|(i, _)| !written.contains(&BufferId(i))));
        }
    }
}
