//! [`Session`]: a plan made real, and run.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use crate::error::Result;
use crate::gpu::context::Gpu;
use crate::gpu::transfer::Wait;
use crate::plan::{
    ARGS_BLOCK, BufferId, BufferSpec, Dispatch, ElementType, Pass, Plan, Slice, Stage,
};
use crate::spec::element::Element;

mod timed;

use timed::Stamps;
pub(crate) use timed::Timing;

/// Dispatches of one submit: bounds what wgpu holds while it encodes.
const SUBMIT_DISPATCHES: usize = 4096;

/// A buffer that is not the session's own, from this byte on.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
}

impl From<&wgpu::Buffer> for Bound {
    fn from(buffer: &wgpu::Buffer) -> Self {
        Self { buffer: buffer.clone(), offset: 0 }
    }
}

/// A plan made real on a device: its buffers, bind groups and arguments, made once and used for any
/// number of runs of that shape.
#[derive(Debug)]
pub(crate) struct Session {
    gpu: Gpu,
    plan: Plan,
    buffers: Vec<Bound>,
    forward: Vec<Prepared>,
    backward: Vec<Prepared>,
    /// Argument blocks of each of the plan's parities.
    parity_blocks: usize,
    /// To be done ahead of the next pass.
    prologue: Vec<Prologue>,
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
struct Prepared {
    calls: Vec<Call>,
    times: usize,
    /// Where the arguments of its first dispatch lie; the others follow in order.
    first_block: usize,
}

#[derive(Debug)]
struct Call {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 3],
    flops: u64,
}

impl Session {
    /// Makes everything that `plan` asks for, but the buffers that are `bound` to it.
    pub async fn new(gpu: &Gpu, plan: Plan, bound: &[(BufferId, Bound)]) -> Result<Self> {
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
        gpu.guard(|| Ok(Self::prepare(gpu, plan, &pipelines, bound))).await
    }

    fn prepare(
        gpu: &Gpu,
        plan: Plan,
        pipelines: &HashMap<(&'static str, Vec<u32>), wgpu::ComputePipeline>,
        bound: &[(BufferId, Bound)],
    ) -> Self {
        let make =
            |(i, spec): (usize, &BufferSpec)| match bound.iter().find(|(id, _)| id.index() == i) {
                Some((_, bound)) => bound.clone(),
                None => Bound::from(&gpu.buffer(&spec.name, spec.bytes())),
            };
        let buffers: Vec<_> = plan.buffers().iter().enumerate().map(make).collect();
        let blocks: Vec<u32> =
            (0..plan.parities()).flat_map(|parity| argument_blocks(&plan, parity)).collect();
        let args = gpu.buffer("args", ElementType::U32.bytes(blocks.len()));
        gpu.upload(&args, 0, &blocks);

        let (bind_groups, next_block) = Default::default();
        let mut preparation =
            Preparation { gpu, pipelines, buffers: &buffers, args: &args, bind_groups, next_block };
        let forward = plan.forward().iter().map(|stage| preparation.stage(stage)).collect();
        let backward = plan.backward().iter().map(|stage| preparation.stage(stage)).collect();
        let parity_blocks = preparation.next_block;
        let prologue = Vec::new();
        let gpu = gpu.clone();
        Self { gpu, plan, buffers, forward, backward, parity_blocks, prologue, broken: false }
    }

    /// Whether the device reported an error during a run: the contents cannot be relied on.
    pub fn is_broken(&self) -> bool {
        self.broken
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

    /// Writes `data` to `buffer` from its element `first`.
    pub async fn write<T: Element>(
        &mut self,
        buffer: BufferId,
        first: usize,
        data: &[T],
    ) -> Result<()> {
        self.assert_holds::<T>(buffer, &(first..first + data.len()));
        let upload = || {
            self.gpu.upload(self.buffer(buffer), first, data);
            Ok(())
        };
        self.gpu.guard(upload).await.inspect_err(|_| self.broken = true)
    }

    /// Writes zeros to a range of a buffer, ahead of the next pass.
    pub fn clear(&mut self, buffer: BufferId, range: Range<usize>) {
        self.prologue.push(Prologue::Zero(buffer, range));
    }

    /// A wrong type or range is a mistake of this crate's own.
    fn assert_holds<T: Element>(&self, buffer: BufferId, range: &Range<usize>) {
        let BufferSpec { name, element, len, .. } = self.plan.spec(buffer);
        assert_eq!(*element, T::TYPE, "the elements of {name}");
        assert!(range.end <= *len, "{range:?} of the {len} elements of {name}");
    }

    /// Copies all of `from` to a range of a buffer, ahead of the next pass.
    pub fn copy_in(&mut self, from: &wgpu::Buffer, to: BufferId, range: Range<usize>) {
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
            let (offset, size) = self.plan.spec(from).byte_range(&range);
            let copy = self.gpu.buffer(name, size);
            let mut encoder = self.gpu.encoder(name);
            encoder.copy_buffer_to_buffer(self.buffer(from), offset, &copy, 0, size);
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

    /// What is to be done ahead of a pass, once.
    fn take_prologue(&mut self, pass: Pass) -> Vec<Prologue> {
        let mut prologue = std::mem::take(&mut self.prologue);
        if pass == Pass::Backward {
            let whole = |id: &BufferId| (*id, 0..self.plan.spec(*id).len);
            let zeros = self.plan.accumulators().iter().map(whole);
            prologue.extend(zeros.map(|(id, range)| Prologue::Zero(id, range)));
        }
        prologue
    }

    /// Queues a schedule; its compute passes write `stamps`.
    fn queue(&self, pass: Pass, prologue: &[Prologue], stamps: Option<Stamps<'_>>) {
        self.queue_calls(pass, prologue, self.calls(pass, 0), stamps);
    }

    fn queue_calls<'a>(
        &self,
        pass: Pass,
        prologue: &[Prologue],
        calls: impl Iterator<Item = (&'a Call, usize)>,
        mut stamps: Option<Stamps<'_>>,
    ) {
        let mut prologue = prologue.iter();
        let mut calls = calls.peekable();
        let most = self.plan.submit_flops().min(self.gpu.throttle().most());
        while calls.peek().is_some() {
            let mut encoder = self.gpu.encoder(pass.name());
            // All of it ahead of the first pass.
            prologue.by_ref().for_each(|prologue| self.encode_prologue(prologue, &mut encoder));
            let (mut flops, mut dispatches) = (0, 0);
            let within = std::iter::from_fn(|| {
                // One dispatch at least, however large.
                let room =
                    |call: &Call| flops + call.flops <= most && dispatches < SUBMIT_DISPATCHES;
                let (call, block) = calls.next_if(|(call, _)| dispatches == 0 || room(call))?;
                flops += call.flops;
                dispatches += 1;
                Some((call, block))
            });
            let writes = stamps.as_mut().map(Stamps::next_pass);
            encode_calls(&mut encoder, pass, within, writes);
            self.gpu.submit(encoder.finish());
            self.gpu.throttle().queued(flops);
        }
    }

    fn encode_prologue(&self, prologue: &Prologue, encoder: &mut wgpu::CommandEncoder) {
        match prologue {
            Prologue::Zero(id, range) => {
                let (offset, size) = self.plan.spec(*id).byte_range(range);
                encoder.clear_buffer(self.buffer(*id), offset, Some(size));
            }
            Prologue::Copy(from, id, range) => {
                let (offset, size) = self.plan.spec(*id).byte_range(range);
                encoder.copy_buffer_to_buffer(from, 0, self.buffer(*id), offset, size);
            }
        }
    }

    /// The forward schedule in one pass of somebody's encoder, in one of the plan's parities.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, parity: usize) {
        encode_calls(encoder, Pass::Forward, self.calls(Pass::Forward, parity), None);
    }

    fn stages(&self, pass: Pass) -> &[Prepared] {
        match pass {
            Pass::Forward => &self.forward,
            Pass::Backward => &self.backward,
        }
    }

    /// The dispatches of a schedule in order, each with the block of its arguments.
    fn calls(&self, pass: Pass, parity: usize) -> impl Iterator<Item = (&Call, usize)> {
        let first = parity * self.parity_blocks;
        self.stages(pass)
            .iter()
            .flat_map(Prepared::calls)
            .map(move |(call, block)| (call, first + block))
    }

    /// Waits for all that was queued and reads parts of buffers, all of one type.
    pub async fn read<T: Element>(
        &mut self,
        parts: &[(BufferId, Range<usize>)],
        wait: Wait,
    ) -> Result<Vec<Vec<T>>> {
        parts.iter().for_each(|(id, range)| self.assert_holds::<T>(*id, range));
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

fn encode_calls<'a>(
    encoder: &mut wgpu::CommandEncoder,
    pass: Pass,
    calls: impl Iterator<Item = (&'a Call, usize)>,
    timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
) {
    let label = match pass {
        Pass::Forward => "gru.forward",
        Pass::Backward => "gru.backward",
    };
    let descriptor = wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes };
    let mut pass = encoder.begin_compute_pass(&descriptor);
    for (call, block) in calls {
        let [x, y, z] = call.workgroups;
        let offset = (block as u64 * ARGS_BLOCK) as u32;
        pass.set_pipeline(&call.pipeline);
        pass.set_bind_group(0, &call.bind_group, &[offset]);
        pass.dispatch_workgroups(x, y, z);
    }
}

impl Prepared {
    /// Its dispatches in order, each with the block of its arguments.
    fn calls(&self) -> impl Iterator<Item = (&Call, usize)> {
        let body = self.calls.len();
        (0..self.times * body).map(move |i| (&self.calls[i % body], self.first_block + i))
    }
}

/// What the stages of a session share while it is made.
struct Preparation<'a> {
    gpu: &'a Gpu,
    pipelines: &'a HashMap<(&'static str, Vec<u32>), wgpu::ComputePipeline>,
    buffers: &'a [Bound],
    args: &'a wgpu::Buffer,
    /// One for each kernel, variant and set of slices; the arguments differ by offset alone.
    bind_groups: HashMap<(&'static str, Vec<u32>, Vec<Slice>), wgpu::BindGroup>,
    next_block: usize,
}

impl Preparation<'_> {
    fn stage(&mut self, stage: &Stage) -> Prepared {
        let (body, times) = stage.dispatches();
        let calls = body.iter().map(|dispatch| self.call(dispatch)).collect();
        let first_block = self.next_block;
        self.next_block += body.len() * times;
        Prepared { calls, times, first_block }
    }

    fn call(&mut self, dispatch: &Dispatch) -> Call {
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
        Call { pipeline: pipeline.clone(), bind_group, workgroups, flops: dispatch.padded_flops }
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
            let Bound { buffer, offset } = &self.buffers[slice.buffer.index()];
            let resource = part(buffer, offset + slice.offset(), slice.bytes());
            wgpu::BindGroupEntry { binding, resource }
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
/// runs of odd parity the last states are where the first ones were, and the other way round.
fn argument_blocks(plan: &Plan, parity: usize) -> Vec<u32> {
    const BLOCK: usize = ARGS_BLOCK as usize / size_of::<u32>();
    let mut blocks = Vec::new();
    for stage in plan.forward().iter().chain(plan.backward()) {
        let (body, _) = stage.dispatches();
        for step in stage.steps() {
            for dispatch in body {
                let block = blocks.len();
                blocks.extend_from_slice(&dispatch.args);
                let at = |name| dispatch.kernel.argument(name);
                if let Some(step) = step {
                    blocks[block + at("step").expect("a kernel in a loop takes its step")] = step;
                }
                if let (1, Some(first), Some(last)) = (parity, at("first_state"), at("last_state"))
                {
                    blocks.swap(block + first, block + last);
                }
                blocks.resize(block + BLOCK, 0);
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::test_device;
    use crate::plan::Mode;
    use crate::spec::config::GruConfig;

    fn session() -> Session {
        let config = GruConfig::new(3, 5);
        let plan = Plan::new(&config, config.shape(4, 2).unwrap(), Mode::Inference).unwrap();
        pollster::block_on(Session::new(&test_device().1, plan, &[])).unwrap()
    }

    #[test]
    fn flags_and_numbers_are_written_and_read_as_what_they_are() {
        let mut session = session();
        let [flags, x] = ["step_flags", "x"].map(|name| session.plan().buffer(name).unwrap());
        pollster::block_on(session.write(flags, 1, &[7_u32, 5])).unwrap();
        pollster::block_on(session.write(x, 2, &[0.5_f32])).unwrap();
        let got = pollster::block_on(session.read::<u32>(&[(flags, 0..4)], Wait::Block)).unwrap();
        assert_eq!(got, [[0, 7, 5, 0]]);
        let got = pollster::block_on(session.read::<f32>(&[(x, 0..3)], Wait::Block)).unwrap();
        assert_eq!(got, [[0.0, 0.0, 0.5]]);
    }

    #[test]
    #[should_panic(expected = "the elements of step_flags")]
    fn flags_cannot_be_written_as_numbers() {
        let mut session = session();
        let flags = session.plan().buffer("step_flags").unwrap();
        drop(pollster::block_on(session.write(flags, 0, &[0.0_f32])));
    }

    #[test]
    #[should_panic(expected = "1..9 of the 8 elements of step_flags")]
    fn nothing_is_written_past_a_buffers_end() {
        let mut session = session();
        let flags = session.plan().buffer("step_flags").unwrap();
        drop(pollster::block_on(session.write(flags, 1, &[0_u32; 8])));
    }
}
