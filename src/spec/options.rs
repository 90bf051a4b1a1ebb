//! [`RunOptions`]: options of speed and memory.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Options of speed and memory, for [`Gru::with_options`](crate::Gru::with_options). They do not
/// change the results, except for rounding.
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
    /// The kernel family that runs the recurrence on an adapter.
    pub recurrence: Recurrence,
    /// True to keep only the states while training and to compute the gates again in the backward
    /// pass, some steps at a time. It takes about half the memory and a third more work, on every
    /// device.
    pub recompute: bool,
}

impl RunOptions {
    /// Sets the kernel family of the recurrence.
    #[must_use]
    pub fn with_recurrence(self, recurrence: Recurrence) -> Self {
        Self { recurrence, ..self }
    }

    /// Sets whether the backward pass computes the gates again.
    #[must_use]
    pub fn with_recompute(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }
}

/// The mode of a run: inference or training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward only.
    Inference,
    /// Forward and backward.
    Training,
}

/// The kernel family that runs the recurrence on an adapter. The CPU device has no kernels and
/// ignores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Recurrence {
    /// The family that the plan expects to be faster on the adapter.
    #[default]
    Auto,
    /// One or two dispatches per step, each spread over the whole device. The host loops over the
    /// steps.
    Step,
    /// One dispatch for many steps. Each workgroup computes a few rows and keeps their states in
    /// workgroup memory.
    Sequence,
    /// As [`Sequence`](Self::Sequence), with the recurrent weights in the registers of each
    /// workgroup's threads: for H up to 128 on NVIDIA and AMD, and less elsewhere.
    Persistent,
}

impl Recurrence {
    /// All kernel families: every value except [`Auto`](Self::Auto), which chooses one of them.
    pub const ALL: &'static [Self] = &[Self::Persistent, Self::Sequence, Self::Step];

    const NAMES: [(Self, &str); 4] = [
        (Self::Auto, "auto"),
        (Self::Step, "step"),
        (Self::Sequence, "sequence"),
        (Self::Persistent, "persistent"),
    ];
}

impl fmt::Display for Recurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(value, _)| value == self).map_or("", |(_, name)| name);
        f.pad(name)
    }
}

impl FromStr for Recurrence {
    type Err = Error;

    /// Parses `auto`, `step`, `sequence` or `persistent`.
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
            // Exhaustive: a new family does not compile until it is added here.
            let expected = match value {
                Recurrence::Auto => 0,
                Recurrence::Step | Recurrence::Sequence | Recurrence::Persistent => 1,
            };
            let found = Recurrence::ALL.iter().filter(|&&other| other == value).count();
            assert_eq!(found, expected, "{name}");
            assert_eq!(name.parse::<Recurrence>().unwrap(), value);
        }
        assert_eq!(Recurrence::NAMES.len(), 1 + Recurrence::ALL.len());
    }
}
