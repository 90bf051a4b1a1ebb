//! [`Job`]: what is measured.

use anyhow::{Context, Result, anyhow};
use gru_wgpu::plan::{Machine, Mode, Plan};
use gru_wgpu::{Device, Gru, GruConfig, Init, Options, Shape};
use ndarray::Array3;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// The same seed for every device: all of them compute the same.
const SEED: u64 = 1;

/// A run of some size, whatever the device.
pub struct Job {
    pub config: GruConfig,
    pub shape: Shape,
    pub mode: Mode,
    pub options: Options,
}

impl Job {
    /// `Ok` when the run's arrays have sizes that a plan can count, before memory is taken for them.
    pub fn new(
        config: GruConfig,
        [steps, batch]: [usize; 2],
        mode: Mode,
        options: Options,
    ) -> Result<Self> {
        let shape = config.shape(steps, batch)?;
        Plan::with_options(&config, shape, mode, options, &Machine::WEBGPU)?;
        Ok(Self { config, shape, mode, options })
    }

    /// A model on `device`, when the whole run fits the device.
    pub fn model(&self, device: &Device) -> Result<Gru> {
        let gru = Gru::new(self.config.clone(), Init::Uniform, SEED, device)?;
        let gru = gru.with_options(self.options);
        if let Some(adapter) = device.adapter() {
            gru.plan(self.shape, self.mode)?.check(&adapter.limits)?;
        }
        Ok(gru)
    }

    /// `Ok` when the run fits `device`.
    pub fn allow(&self, device: &Device) -> Result<()> {
        self.model(device).map(|_| ()).with_context(|| format!("on {device}"))
    }

    pub fn trains(&self) -> bool {
        self.mode == Mode::Training
    }

    /// Multiplications and additions that the definition asks for, however they are made: in each cell
    /// 6·T·B·H·(I + H) forward, and twice that backward.
    pub fn flop(&self) -> f64 {
        let Shape { steps, batch, hidden, directions, .. } = self.shape;
        let layer = |layer| {
            let width = (self.config.layer_input_size(layer) + hidden) as f64;
            6.0 * (steps * batch) as f64 * hidden as f64 * width
        };
        let forward: f64 = (0..self.config.layers).map(layer).sum();
        forward * directions as f64 * if self.trains() { 3.0 } else { 1.0 }
    }

    /// x `[T, B, I]`.
    pub fn x(&self) -> Result<Array3<f32>> {
        random3(self.shape.x(), 1.0, SEED + 1)
    }

    /// dy `[T, B, D·H]` in ±`bound`.
    pub fn dy(&self, bound: f32) -> Result<Array3<f32>> {
        random3(self.shape.y(), bound, SEED + 2)
    }

    /// `training` or `forward`.
    pub fn words(&self) -> &'static str {
        if self.trains() { "training" } else { "forward" }
    }

    /// The run, the model, the shape and the work.
    pub fn title(&self) -> String {
        let (mode, flop) = (self.words(), quantity(self.flop(), "FLOP"));
        format!("{mode}, {}; {}; {flop}", self.config, self.shape)
    }
}

fn random3(shape: [usize; 3], bound: f32, seed: u64) -> Result<Array3<f32>> {
    let len = shape.iter().product();
    let mut data: Vec<f32> = Vec::new();
    let reserved = data.try_reserve_exact(len);
    reserved.map_err(|_| anyhow!("out of memory: {shape:?} numbers do not fit"))?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    data.extend(std::iter::repeat_with(|| rng.random_range(-bound..bound)).take(len));
    Array3::from_shape_vec(shape, data).context("as many as the shape holds")
}

/// `12.3 MFLOP`: three figures and a decimal prefix.
pub fn quantity(value: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P"];
    let mut scaled = value;
    let mut prefix = 0;
    while scaled >= 999.5 && prefix + 1 < prefixes.len() {
        scaled /= 1000.0;
        prefix += 1;
    }
    format!("{} {}{unit}", figures(scaled), prefixes[prefix])
}

/// Three figures, and all of them in front of the point.
pub fn figures(value: f64) -> String {
    let decimals = match value.abs() {
        v if v < 0.0995 => 4,
        v if v < 0.995 => 3,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
