//! The time of a barrier between the workgroups of one dispatch, and whether it works at all.

use anyhow::{Context, Result, ensure};
use gru_wgpu::wgpu;
use serde_json::{Value, json};

use crate::gpu::{Checks, Gpu};

#[derive(clap::Args, Debug)]
pub struct BarrierArgs {
    /// The workgroups that wait for each other.
    #[arg(long, default_values_t = [2, 32, 128], value_delimiter = ',')]
    workgroups: Vec<u32>,
    /// The barriers of a dispatch.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    rounds: u32,
    /// The most spins of a workgroup, over all barriers.
    #[arg(long, default_value_t = 1_000_000)]
    spins: u32,
}

pub fn run(gpu: &Gpu, arguments: &BarrierArgs, repeats: u32) -> Result<Value> {
    ensure!(
        gpu.has(wgpu::Features::MEMORY_DECORATION_COHERENT),
        "the adapter has no coherent storage buffers"
    );
    let module = gpu.module(include_str!("grid_barrier.wgsl"), Checks::Library)?;
    let pipeline = gpu.pipeline(&module, None, &[])?;
    let rows = arguments.workgroups.iter().map(|&groups| {
        let barrier = GridBarrier::new(gpu, &pipeline, groups, arguments)?;
        Ok(match barrier.us(repeats) {
            Ok(us) => json!({ "workgroups": groups, "us": us }),
            Err(error) => json!({ "workgroups": groups, "error": format!("{error:#}") }),
        })
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    Ok(json!({ "rounds": arguments.rounds, "spins": arguments.spins, "rows": rows }))
}

struct GridBarrier<'a> {
    gpu: &'a Gpu,
    pipeline: &'a wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    args: wgpu::Buffer,
    arrived: wgpu::Buffer,
    outcome: wgpu::Buffer,
    groups: u32,
    rounds: u32,
    spins: u32,
}

impl<'a> GridBarrier<'a> {
    fn new(
        gpu: &'a Gpu,
        pipeline: &'a wgpu::ComputePipeline,
        groups: u32,
        &BarrierArgs { rounds, spins, .. }: &BarrierArgs,
    ) -> Result<Self> {
        ensure!((1..=65_535).contains(&groups), "expected 1 to 65535 workgroups, got {groups}");
        // The counter of arrivals is a u32.
        rounds.checked_mul(groups).context("too many rounds for as many workgroups")?;
        let (args, arrived, outcome) = (gpu.buffer(12)?, gpu.buffer(4)?, gpu.buffer(12)?);
        let values = gpu.buffer(8 * u64::from(groups))?;
        let bindings: Vec<_> = (0..)
            .zip([&args, &arrived, &values, &outcome])
            .map(|(binding, buffer)| (binding, buffer.as_entire_buffer_binding()))
            .collect();
        let group = gpu.bind_group(&pipeline.get_bind_group_layout(0), &bindings)?;
        Ok(Self { gpu, pipeline, group, args, arrived, outcome, groups, rounds, spins })
    }

    /// Returns the µs of a barrier: what each further one adds to a dispatch with one.
    fn us(&self, repeats: u32) -> Result<f64> {
        let (one, all) = (self.time(1, repeats)?, self.time(self.rounds, repeats)?);
        Ok((all - one) / f64::from(self.rounds - 1))
    }

    /// Returns the µs of a dispatch. Fails if a workgroup gave up or read a wrong value.
    fn time(&self, rounds: u32, repeats: u32) -> Result<f64> {
        let args = [self.groups, rounds, self.spins];
        self.gpu.queue.write_buffer(&self.args, 0, bytemuck::cast_slice(&args));
        // Over all repeats, so that each after a failed one fails at once.
        self.gpu.queue.write_buffer(&self.outcome, 0, &[0; 12]);
        let clear = |encoder: &mut wgpu::CommandEncoder| {
            encoder.clear_buffer(&self.arrived, 0, None);
        };
        let time = self.gpu.time(repeats, clear, |pass| {
            pass.set_pipeline(self.pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(self.groups, 1, 1);
        })?;
        let [gave_up, wrong, done] = self.gpu.read(&self.outcome, 3)?[..] else {
            unreachable!("three words were read")
        };
        let (groups, spins) = (self.groups, self.spins);
        ensure!(
            gave_up == 0,
            "a workgroup gave up after {spins} spins: the {groups} do not run at once"
        );
        ensure!(wrong == 0, "{wrong} values were read before they were written");
        // The first run warms up.
        let expected = (groups * rounds).wrapping_mul(repeats + 1);
        ensure!(done == expected, "{done} of {expected} barriers were completed: a loop was cut");
        Ok(time)
    }
}
