//! [`Workload`]: the run that is measured.

use anyhow::{Context, Result, anyhow};
use gru_wgpu::plan::{DeviceCaps, Mode, Plan};
use gru_wgpu::{Device, Gru, GruConfig, Init, RunOptions, Shape};
use ndarray::Array3;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use crate::ui::numbers::format_si;

/// The same seed for every device, so that all compute the same.
const SEED: u64 = 1;

/// A run of some size, for any device.
pub struct Workload {
    pub config: GruConfig,
    pub shape: Shape,
    pub mode: Mode,
    pub options: RunOptions,
}

impl Workload {
    /// Makes a workload. Checks that the sizes do not overflow.
    pub fn new(
        config: GruConfig,
        [steps, batch]: [usize; 2],
        mode: Mode,
        options: RunOptions,
    ) -> Result<Self> {
        let shape = config.shape(steps, batch)?;
        Ok(Self { config, shape, mode, options })
    }

    /// Makes the model on `device`. Call [`super::memory::check`] first to see if the run fits.
    pub fn model(&self, device: &Device) -> Result<Gru> {
        let gru = Gru::new(self.config.clone(), Init::Uniform, SEED, device)?;
        Ok(gru.with_options(self.options))
    }

    /// Returns the plan on this device, if its limits allow it.
    pub fn plan_on(&self, device: &Device) -> Result<Plan> {
        let caps = device.caps();
        let plan = self.plan(&caps)?;
        plan.check(&caps.limits)?;
        Ok(plan)
    }

    /// Returns the plan on a device with these capabilities.
    pub fn plan(&self, caps: &DeviceCaps) -> Result<Plan> {
        Ok(Plan::with_options(&self.config, self.shape, self.mode, self.options, caps)?)
    }

    /// Returns true if the run has a backward pass.
    pub fn trains(&self) -> bool {
        self.mode == Mode::Training
    }

    /// Returns T·B.
    pub fn cells(&self) -> f64 {
        self.shape.steps as f64 * self.shape.batch as f64
    }

    /// Returns L·D·H: the states of one row at one step.
    pub fn states_per_cell(&self) -> f64 {
        self.shape.layers as f64 * self.shape.directions as f64 * self.shape.hidden as f64
    }

    /// Returns the number of weights, without biases.
    pub fn parameters(&self) -> f64 {
        // Layers after the first read the output of the layer below.
        let (first, others) = (self.shape.input, self.shape.directions * self.shape.hidden);
        let layers = self.shape.layers as f64;
        let widths = first as f64 + (layers - 1.0) * others as f64;
        let hidden = self.shape.hidden as f64;
        3.0 * self.shape.directions as f64 * hidden * (widths + layers * hidden)
    }

    /// Returns the multiplications and additions of the definition, for any implementation:
    /// 6·T·B·H·(I + H) per cell forward, and twice that backward.
    pub fn flop(&self) -> f64 {
        2.0 * self.cells() * self.parameters() * if self.trains() { 3.0 } else { 1.0 }
    }

    /// Returns x `[T, B, I]`.
    pub fn x(&self) -> Result<Array3<f32>> {
        random3(self.shape.x(), SEED + 1)
    }

    /// Returns dy `[T, B, D·H]`.
    pub fn dy(&self) -> Result<Array3<f32>> {
        random3(self.shape.y(), SEED + 2)
    }

    /// Returns `training` or `forward`.
    pub fn mode_name(&self) -> &'static str {
        if self.trains() { "training" } else { "forward" }
    }

    /// Describes the mode, the model, the shape and the FLOPs in one line.
    pub fn title(&self) -> String {
        let (mode, flop) = (self.mode_name(), format_si(self.flop(), "FLOP"));
        format!("{mode}, {}; {}; {flop}", self.config, self.shape)
    }
}

/// Returns an array of uniform random numbers in ±1.
fn random3(shape: [usize; 3], seed: u64) -> Result<Array3<f32>> {
    let len = shape.iter().product();
    let mut data: Vec<f32> = Vec::new();
    let reserved = data.try_reserve_exact(len);
    reserved.map_err(|_| anyhow!("out of memory: {shape:?} numbers do not fit"))?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    data.extend(std::iter::repeat_with(|| rng.random_range(-1.0..1.0)).take(len));
    Array3::from_shape_vec(shape, data).context("as many as the shape holds")
}
