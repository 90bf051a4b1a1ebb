//! Training options that combine a word with numbers, such as `value:0.5`. They have the same form
//! on the command line and in config.toml.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use gru_wgpu::{Clip, Schedule};
use serde::{Deserialize, Serialize};

use crate::ui::arguments::{at_least_one, at_least_zero, fraction_or_zero, positive};

/// Gradient clipping: `none`, `norm:1` (or `1`) or `value:0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct ClipArg(pub Clip);

impl FromStr for ClipArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const EXPECTED: &str = "expected none, norm:X, value:X, or X (the same as norm:X)";
        let clip = match text.split_once(':') {
            None if text == "none" => Clip::None,
            None => Clip::Norm(positive(text).context(EXPECTED)?),
            Some(("norm", bound)) => Clip::Norm(positive(bound).context(EXPECTED)?),
            Some(("value", bound)) => Clip::Value(positive(bound).context(EXPECTED)?),
            Some(_) => bail!(EXPECTED),
        };
        Ok(Self(clip))
    }
}

impl fmt::Display for ClipArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Clip::Norm(bound) => write!(f, "norm:{bound}"),
            Clip::Value(bound) => write!(f, "value:{bound}"),
            _ => write!(f, "none"),
        }
    }
}

/// A bare number in config.toml is a norm.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected none, norm:X, value:X, or X (the same as norm:X)")]
enum NumberOrText {
    Number(f32),
    Text(String),
}

impl TryFrom<NumberOrText> for ClipArg {
    type Error = String;

    fn try_from(word: NumberOrText) -> Result<Self, String> {
        let parsed = match word {
            NumberOrText::Number(norm) => norm.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        };
        parsed.map_err(|error: Error| error.to_string())
    }
}

impl From<ClipArg> for String {
    fn from(word: ClipArg) -> Self {
        word.to_string()
    }
}

/// The learning-rate schedule: `constant`, `cosine`, `cosine:0.1` or `step:10:0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ScheduleArg {
    Constant,
    /// Falls to this fraction of the rate at the end of the last epoch.
    Cosine {
        last: f64,
    },
    /// Multiplied by `factor` after every `epochs`.
    Step {
        epochs: usize,
        factor: f64,
    },
}

impl ScheduleArg {
    /// Returns the schedule over `epochs` of `updates` each. The fraction `warmup` of all updates
    /// is the warm-up.
    pub fn schedule(self, epochs: usize, updates: u64, warmup: f64) -> Schedule {
        let updates_of = |epochs: usize| (epochs as u64).saturating_mul(updates);
        match self {
            Self::Constant => Schedule::Constant,
            Self::Cosine { last } => {
                let updates = updates_of(epochs);
                let warmup = (warmup * updates as f64).round() as u64;
                Schedule::Cosine { warmup, updates, last }
            }
            Self::Step { epochs, factor } => Schedule::Steps { every: updates_of(epochs), factor },
        }
    }
}

impl Default for ScheduleArg {
    fn default() -> Self {
        Self::Cosine { last: 0.0 }
    }
}

impl FromStr for ScheduleArg {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const EXPECTED: &str = "expected constant, cosine, cosine:FRACTION or step:EPOCHS:FACTOR";
        let parts: Vec<_> = text.split(':').collect();
        Ok(match parts[..] {
            ["constant"] => Self::Constant,
            ["cosine"] => Self::default(),
            ["cosine", last] => Self::Cosine { last: fraction_or_zero(last).context(EXPECTED)? },
            ["step", epochs, factor] => Self::Step {
                epochs: at_least_one(epochs).map_err(Error::msg).context(EXPECTED)?,
                factor: at_least_zero(factor).context(EXPECTED)?,
            },
            _ => bail!(EXPECTED),
        })
    }
}

impl fmt::Display for ScheduleArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Constant => write!(f, "constant"),
            Self::Cosine { last: 0.0 } => write!(f, "cosine"),
            Self::Cosine { last } => write!(f, "cosine:{last}"),
            Self::Step { epochs, factor } => write!(f, "step:{epochs}:{factor}"),
        }
    }
}

impl TryFrom<String> for ScheduleArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }
}

impl From<ScheduleArg> for String {
    fn from(word: ScheduleArg) -> Self {
        word.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_they_were() {
        for text in ["none", "norm:1", "norm:0.1", "value:0.5"] {
            assert_eq!(text.parse::<ClipArg>().unwrap().to_string(), text);
        }
        assert_eq!("0.25".parse::<ClipArg>().unwrap().to_string(), "norm:0.25");
        for text in ["constant", "cosine", "cosine:0.1", "step:10:0.5"] {
            assert_eq!(text.parse::<ScheduleArg>().unwrap().to_string(), text);
        }
        for text in ["", "norm", "norm:0", "value:-1", "value:nan", "clip:1", "none:1"] {
            assert!(text.parse::<ClipArg>().is_err(), "{text}");
        }
        for text in ["", "cosine:1", "step", "step:0:0.5", "step:1", "step:1:-1", "step:1:1:1"] {
            assert!(text.parse::<ScheduleArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn steps_are_counted_in_epochs() {
        let schedule = |text: &str| text.parse::<ScheduleArg>().unwrap().schedule(20, 7, 0.1);
        assert_eq!(schedule("step:10:0.5"), Schedule::Steps { every: 70, factor: 0.5 });
        let cosine = Schedule::Cosine { warmup: 14, updates: 140, last: 0.2 };
        assert_eq!(schedule("cosine:0.2"), cosine);
        assert_eq!(schedule("constant"), Schedule::Constant);
    }
}
