//! The linear head of a network in a file of another program: found by its shape, or by its name.

use std::collections::BTreeSet;

use super::pytorch::PytorchNames;
use super::{StateDict, StateDictOptions};
use crate::error::{Error, Result, quote};
use crate::formats::files::check_finite;
use crate::spec::params::{ParamLayout, Params};

/// The ends of the names of a weight: the plain one, and those of the forms that can be computed.
const WEIGHTS: [&str; 4] =
    ["weight", "weight_raw", "weight_v", "parametrizations.weight.original1"];

/// A linear layer in a file.
pub(super) struct LinearLayer {
    /// What stands in front of `weight`, such as `classifier.fc.`.
    prefix: String,
    outputs: usize,
    has_bias: bool,
}

/// Finds and reads heads.
pub(super) trait Heads: StateDict {
    /// Returns the parameters of a network: a GRU that was read from under the prefix `gru`, and
    /// the head that the options describe. Also returns the head's name.
    fn with_head(
        &mut self,
        params: &Params,
        gru: &str,
        options: &StateDictOptions,
    ) -> Result<(Params, String)> {
        let config = params.layout().config();
        let head = options.head.ok_or_else(|| {
            Error::format(
                "the file does not say what its head reads; say it (StateDictOptions::with_head)"
                    .to_owned(),
            )
        })?;
        let layout = ParamLayout::with_head(config, head)?;
        let shape = [head.outputs, config.directions() * config.hidden_size];
        let layers = self.linear_layers(shape[1]);
        let prefix = match &options.head_name {
            Some(asked) => self.named_head(asked, shape, &layers)?,
            None => only_head(gru, shape, &layers)?,
        };
        let mut network = Params::zeros_of(layout)?;
        for (name, array) in params.iter() {
            network.set(name, array)?;
        }
        for part in ["weight", "bias"] {
            let full = format!("{prefix}{part}");
            if self.names().filter(|found| *found == full).count() > 1 {
                let reason = format!("two of its tensors have the name {}", quote(&full));
                return Err(Error::format(reason));
            }
            // A layer without a bias adds 0.
            if part == "bias" && self.stored_shape(&prefix, part).is_none() {
                continue;
            }
            let array = self.parameter(&prefix, part)?;
            if !options.allow_non_finite {
                check_finite(&full, array.iter())?;
            }
            network.set(&format!("head.{part}"), array.view())?;
        }
        Ok((network, prefix.trim_end_matches(['.', '/']).to_owned()))
    }

    /// Returns the linear layers with this many inputs, sorted.
    fn linear_layers(&self, features: usize) -> Vec<LinearLayer> {
        let names: Vec<_> = self.names().map(|name| name.into_owned()).collect();
        let prefixes = names.iter().flat_map(|name| {
            WEIGHTS.iter().filter_map(|weight| name.strip_suffix(weight).map(str::to_owned))
        });
        let prefixes: BTreeSet<_> =
            prefixes.filter(|prefix| prefix.ends_with(['.', '/'])).collect();
        let layer = |prefix: String| match self.stored_shape(&prefix, "weight")?[..] {
            [outputs, inputs] if inputs == features => {
                let has_bias = self.stored_shape(&prefix, "bias") == Some(vec![outputs]);
                Some(LinearLayer { prefix, outputs, has_bias })
            }
            _ => None,
        };
        prefixes.into_iter().filter_map(layer).collect()
    }

    /// Returns the layer that was asked for: by its whole name, or by the end of only one name.
    fn named_head(
        &self,
        asked: &str,
        [outputs, features]: [usize; 2],
        layers: &[LinearLayer],
    ) -> Result<String> {
        let asked = asked.strip_suffix(".weight").unwrap_or(asked).trim_end_matches(['.', '/']);
        let whole = format!("{asked}.");
        let is_inner = |layer: &&LinearLayer| {
            layer.outputs == outputs && layer.prefix.ends_with(&format!(".{whole}"))
        };
        let inner: Vec<_> = layers.iter().filter(is_inner).collect();
        let prefix = match (self.stored_shape(&whole, "weight"), &inner[..]) {
            (None, [one]) => one.prefix.clone(),
            (None, []) => {
                let missing = self.missing(&whole, "weight");
                return Err(Error::format(format!("{missing}; {}", described(layers, features))));
            }
            (None, several) => return Err(choice(several)),
            (Some(_), _) => whole,
        };
        for (part, expected) in [("weight", &[outputs, features][..]), ("bias", &[outputs])] {
            if let Some(got) = self.stored_shape(&prefix, part).filter(|got| got != expected) {
                return Err(Error::format(format!(
                    "{} has shape {got:?}; the head's {part} has {expected:?}",
                    quote(&format!("{prefix}{part}"))
                )));
            }
        }
        Ok(prefix)
    }
}

impl<D: StateDict> Heads for D {}

/// Returns the only layer with the head's shapes. A file may hold copies of a network, such as
/// `model` and `ema`: of layers with the same name in several of them, it is the one beside the
/// GRU.
fn only_head(gru: &str, [outputs, features]: [usize; 2], layers: &[LinearLayer]) -> Result<String> {
    let is_head = |layer: &&LinearLayer| layer.outputs == outputs && layer.has_bias;
    let found: Vec<_> = layers.iter().filter(is_head).collect();
    let beside = parents(gru).find_map(|parent| {
        let mut inside = found.iter().filter(|layer| layer.prefix.starts_with(parent));
        inside.next().map(|first| (&first.prefix, &first.prefix[parent.len()..]))
    });
    match (&found[..], beside) {
        ([one], _) => Ok(one.prefix.clone()),
        ([], _) => Err(Error::format(format!(
            "there is no linear layer with a weight of shape {:?} and a bias of shape {:?}; {}",
            [outputs, features],
            [outputs],
            described(layers, features)
        ))),
        (several, Some((prefix, name))) => {
            let ends = |prefix: &str| {
                let before = prefix.strip_suffix(name);
                before.is_some_and(|before| before.is_empty() || before.ends_with(['.', '/']))
            };
            let are_copies = several.iter().all(|layer| ends(&layer.prefix));
            let is_alone = several.iter().filter(|layer| layer.prefix == *prefix).count() == 1;
            if are_copies && is_alone { Ok(prefix.clone()) } else { Err(choice(several)) }
        }
        (several, None) => Err(choice(several)),
    }
}

fn choice(layers: &[&LinearLayer]) -> Error {
    Error::Choice {
        within: "the file".to_owned(),
        of: "head",
        asked: None,
        found: layers
            .iter()
            .map(|layer| layer.prefix.trim_end_matches(['.', '/']).into())
            .collect(),
        by: "name",
    }
}

/// Lists the linear layers that could be named as the head.
fn described(layers: &[LinearLayer], features: usize) -> String {
    let layer = |layer: &LinearLayer| {
        let name = quote(layer.prefix.trim_end_matches(['.', '/']));
        let bias = if layer.has_bias { "" } else { ", no bias" };
        format!("{name} ({} outputs{bias})", layer.outputs)
    };
    match layers {
        [] => format!("it has no linear layer with {features} inputs"),
        _ => {
            let all: Vec<_> = layers.iter().take(8).map(layer).collect();
            format!("its linear layers with {features} inputs are {}", all.join(", "))
        }
    }
}

/// Returns the prefixes of the modules that hold `prefix`, the innermost first: `model.` and ``
/// for `model.gru.`.
fn parents(prefix: &str) -> impl Iterator<Item = &str> {
    let own = prefix.trim_end_matches(['.', '/']);
    let ends = own.match_indices(['.', '/']).map(|(at, _)| at + 1).collect::<Vec<_>>();
    ends.into_iter().rev().chain([0]).map(move |end| &own[..end])
}
