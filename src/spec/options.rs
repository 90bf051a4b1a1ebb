//! [`RunOptions`]: how a model runs. What it computes stays the same, to rounding.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// How a model runs; see [`Gru::with_options`](crate::Gru::with_options). What it computes stays
/// the same, to rounding.
///
/// ```
/// use gru_wgpu::{Device, Gru, GruConfig, Init, RunOptions, Recurrence};
///
/// let options = RunOptions::default().with_recurrence(Recurrence::Step).with_recompute(true);
/// let gru = Gru::new(GruConfig::pytorch(3, 8), Init::Uniform, 1, &Device::cpu())?;
/// assert_eq!(gru.with_options(options).options(), options);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct RunOptions {
    /// Which family of kernels walks over the steps on an adapter.
    pub recurrence: Recurrence,
    /// While training, on every device, keep only the states and make the gates again in the
    /// backward pass, some steps at a time: about half the memory, for a third more work.
    pub recompute: bool,
}

impl RunOptions {
    /// The same with this recurrence.
    #[must_use]
    pub fn with_recurrence(self, recurrence: Recurrence) -> Self {
        Self { recurrence, ..self }
    }

    /// The same, keeping the gates or making them again.
    #[must_use]
    pub fn with_recompute(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward only.
    Inference,
    /// Forward and backward.
    Training,
}

/// Which family of kernels walks over the steps on an adapter. (The CPU device has no kernels, and
/// takes no notice.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Recurrence {
    /// Whichever the plan expects to be faster on the adapter at hand.
    #[default]
    Auto,
    /// The host: a dispatch or two for each step, spread over the whole device.
    Step,
    /// The device: a workgroup takes a few rows through many steps, their states in its own memory.
    Sequence,
}

impl Recurrence {
    /// Every family of kernels: all values but [`Auto`](Self::Auto), which chooses one of them.
    pub const ALL: &'static [Self] = &[Self::Sequence, Self::Step];

    const NAMES: [(Self, &str); 3] =
        [(Self::Auto, "auto"), (Self::Step, "step"), (Self::Sequence, "sequence")];
}

impl fmt::Display for Recurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(value, _)| value == self).map_or("", |(_, name)| name);
        f.pad(name)
    }
}

impl FromStr for Recurrence {
    type Err = Error;

    /// From `auto`, `step` or `sequence`.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|&&(_, known)| known == name);
        found.map(|&(value, _)| value).ok_or_else(|| Error::UnknownRecurrence(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_family_once() {
        for (value, name) in Recurrence::NAMES {
            // Exhaustive, so that a new family does not compile until it is added here.
            let expected = match value {
                Recurrence::Auto => 0,
                Recurrence::Step | Recurrence::Sequence => 1,
            };
            let found = Recurrence::ALL.iter().filter(|&&other| other == value).count();
            assert_eq!(found, expected, "{name}");
            assert_eq!(name.parse::<Recurrence>().unwrap(), value);
        }
        assert_eq!(Recurrence::NAMES.len(), 1 + Recurrence::ALL.len());
    }
}
