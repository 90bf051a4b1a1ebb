//! The choice of the kernel for a product or a recurrence, and the layout of its work over the
//! threads of a workgroup: [`ProductTile`] for products (`tiles/products.rs`), [`RecurrenceKernel`]
//! for the recurrence.
//!
//! # Kernel families
//!
//! The recurrence has three families of kernels. Step: one step per dispatch, spread over the whole
//! device. Sequence: many steps per dispatch; each workgroup takes a few rows through them. Both have
//! a [`StepTile`]. Persistent: as sequence, with the weights in registers, and a [`PersistentTile`].
//! Only [`RecurrenceKernels::choose`] chooses between them, from the configuration, the
//! batch and [`DeviceCaps`]; `RunOptions::recurrence` (`gru bench --kernel`) can force one. A new
//! family needs:
//!
//! 1. a WGSL file in `shaders/`, or a variant of one;
//! 2. a row in `kernels/recurrence.rs`, or a constant of an existing one;
//! 3. a tile type here, with an arm in [`RecurrenceKernel`], whose methods are everything that the
//!    stages use;
//! 4. a line in the rule, [`RecurrenceKernels::choose`];
//! 5. a value of [`Recurrence`], also in [`Recurrence::ALL`], so that it can be forced, measured
//!    and checked: `check/steps.rs` runs all of them against the reference;
//! 6. its loop over the steps: the two `match`es of `plan/steps.rs`, unless a dispatch runs whole
//!    sequences;
//! 7. the wgpu features that it needs, in `FEATURES` of `gpu/context.rs`: a device is opened with
//!    no others, so until then [`DeviceCaps`] reports them as missing on any adapter.
//!
//! `tiles/tests.rs` pins the choices of the rules.

use super::limits::within;
use super::{DeviceCaps, Pass};
use crate::error::Result;
use crate::kernels::{ActivationConstants, Kernel};
use crate::spec::config::GruConfig;
use crate::spec::options::Recurrence;

mod persistent;
mod products;
mod step;

use persistent::PersistentTile;
pub(super) use products::ProductTile;
use step::{StepTile, cores_pay};

/// The largest H for which a workgroup runs the whole sequence, unless it is forced. For larger H,
/// each workgroup reads the weights at every step through one multiprocessor's cache, which is
/// slower than spreading each step over the device.
const SEQUENCE_HIDDEN: usize = 128;

/// The same limit for software adapters, whose processors share one cache.
const SOFTWARE_SEQUENCE_HIDDEN: usize = 256;

/// The workgroups that occupy a large GPU, one for each multiprocessor.
const LARGE_WORKGROUPS: usize = 128;

/// The least [`DeviceCaps::thread_weights`] for which `Recurrence::Auto` takes the persistent family.
/// GPUs with fewer are neither measured nor covered by a compiler's statistics.
const PERSISTENT_WEIGHTS: usize = 80;

/// The number of steps that repays loading the weights into registers.
const PERSISTENT_STEPS: usize = 8;

/// The kernel of one pass through the recurrence: its family, and the family's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecurrenceKernel {
    Step(StepTile),
    Sequence(StepTile),
    Persistent(PersistentTile),
}

/// The variant of a recurrence kernel that a dispatch needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepVariant {
    /// The dispatch computes r and z.
    pub rz: bool,
    /// The dispatch computes n.
    pub n: bool,
    /// n needs every r first.
    pub reset_before: bool,
    /// Dropout or zoneout.
    pub noise: bool,
    /// The device's own exp is exact enough.
    pub hardware_exp: bool,
    pub activations: ActivationConstants,
}

/// The kernels of the two passes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecurrenceKernels {
    pub forward: RecurrenceKernel,
    pub backward: RecurrenceKernel,
}

impl RecurrenceKernels {
    /// Chooses the kernels: the weights in registers if they fit ([`persistent_pays`]); otherwise
    /// whole sequences if H is small ([`sequence_pays`]) and workgroup memory suffices in both
    /// passes; otherwise one step per dispatch. `recurrence` can force a family.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if the family that is forced does not fit.
    pub fn choose(
        config: &GruConfig,
        [steps, batch]: [usize; 2],
        recurrence: Recurrence,
        caps: &DeviceCaps,
    ) -> Result<Self> {
        let both = |kernel: &dyn Fn(Pass) -> Result<RecurrenceKernel>| {
            Ok(Self { forward: kernel(Pass::Forward)?, backward: kernel(Pass::Backward)? })
        };
        let step = |pass| Ok(RecurrenceKernel::Step(StepTile::of_steps(config, batch, pass, caps)));
        let sequence = |pass| {
            StepTile::of_sequences(config, batch, pass, caps).map(RecurrenceKernel::Sequence)
        };
        let persistent =
            |pass| PersistentTile::new(config, batch, pass, caps).map(RecurrenceKernel::Persistent);
        match recurrence {
            Recurrence::Step => both(&step),
            Recurrence::Sequence => both(&sequence),
            Recurrence::Persistent => both(&persistent),
            Recurrence::Auto => {
                let mut kernels: Result<Self> = both(&step);
                if sequence_pays(config, batch, caps) {
                    kernels = both(&sequence).or(kernels);
                }
                if persistent_pays(steps, caps) {
                    kernels = both(&persistent).or(kernels);
                }
                kernels
            }
        }
    }

    pub fn of(&self, pass: Pass) -> RecurrenceKernel {
        match pass {
            Pass::Forward => self.forward,
            Pass::Backward => self.backward,
        }
    }
}

/// Returns true if whole sequences are faster than one dispatch per step.
fn sequence_pays(config: &GruConfig, batch: usize, caps: &DeviceCaps) -> bool {
    if caps.software {
        let is_small = config.hidden_size <= SOFTWARE_SEQUENCE_HIDDEN;
        return is_small && !cores_pay(config, batch, caps);
    }
    config.hidden_size <= SEQUENCE_HIDDEN
}

/// Returns true if the weights in registers are faster than reading them at every step. For one row
/// they are on a software adapter, too, but their unrolled code compiles for seconds.
fn persistent_pays(steps: usize, caps: &DeviceCaps) -> bool {
    steps >= PERSISTENT_STEPS && !caps.software && caps.thread_weights >= PERSISTENT_WEIGHTS
}

impl RecurrenceKernel {
    /// Returns the WGSL kernel of a pass for H hidden units.
    pub fn kernel(self, pass: Pass, hidden: usize) -> &'static Kernel {
        match self {
            Self::Step(tile) | Self::Sequence(tile) => tile.kernel(pass, hidden),
            Self::Persistent(_) => PersistentTile::kernel(pass, hidden),
        }
    }

    /// Returns true if a dispatch runs any number of steps.
    pub fn runs_sequences(self) -> bool {
        match self {
            Self::Step(_) => false,
            Self::Sequence(_) | Self::Persistent(_) => true,
        }
    }

    /// Returns the values of the kernel's override constants.
    pub fn constants(self, variant: StepVariant) -> Vec<u32> {
        let activations = variant.activations.as_u32s();
        match self {
            Self::Step(tile) | Self::Sequence(tile) => {
                [tile.constants(variant).as_u32s(), activations].concat()
            }
            Self::Persistent(tile) => [tile.constants(variant).as_u32s(), activations].concat(),
        }
    }

    /// Returns the batch rows of a workgroup.
    pub fn rows(self) -> usize {
        match self {
            Self::Step(tile) | Self::Sequence(tile) => tile.group_rows(),
            Self::Persistent(tile) => tile.group_rows(),
        }
    }

    /// Returns the hidden units of a workgroup.
    pub fn units(self) -> usize {
        match self {
            Self::Step(tile) | Self::Sequence(tile) => tile.units(),
            Self::Persistent(tile) => tile.units(),
        }
    }

    /// Returns an upper bound on the loop iterations of one thread in `count` steps of `gates` gates
    /// with H hidden units, each of which makes `draws` iterations for an item's random draws.
    pub fn iterations(
        self,
        pass: Pass,
        hidden: usize,
        gates: usize,
        draws: usize,
        count: usize,
    ) -> u64 {
        match self {
            Self::Step(tile) | Self::Sequence(tile) => {
                tile.iterations(pass, hidden, gates, draws, count)
            }
            Self::Persistent(tile) => tile.iterations(draws, count),
        }
    }
}

/// Returns the quads of units that a workgroup of whole sequences has threads for. They are rounded
/// up, so that models of similar sizes share their pipelines: to whole SIMD vectors on a software
/// adapter, which computes whole vectors in any case; elsewhere to a quarter of a subgroup.
fn padded_unit_quads(hidden: usize, caps: &DeviceCaps) -> usize {
    hidden.div_ceil(4).next_multiple_of(if caps.software { caps.usable_lanes() } else { 4 })
}

/// Checks that a device can run the workgroups of `kernel` with these constants.
fn allow(what: &str, kernel: &Kernel, constants: &[u32], caps: &DeviceCaps) -> Result<()> {
    let (limits, workgroup) = (&caps.limits, (kernel.workgroup)(constants));
    for (limit, asked, allowed) in [
        (
            "max_compute_invocations_per_workgroup",
            workgroup.threads,
            limits.max_compute_invocations_per_workgroup,
        ),
        (
            "max_compute_workgroup_storage_size",
            workgroup.bytes,
            limits.max_compute_workgroup_storage_size,
        ),
    ] {
        within(|| what.to_owned(), limit, asked, allowed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
