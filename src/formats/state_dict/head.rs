//! The linear head of a network in a file of another program: found by its shape, or by its name.

use super::{StateDict, StateDictOptions};
use crate::error::{Error, Result, quote};
use crate::formats::files::check_finite;
use crate::spec::params::{ParamLayout, Params};

/// Finds and reads heads.
pub(super) trait Heads: StateDict {
    /// Returns the parameters of a network: a GRU that was read from under the prefix `gru`, and
    /// the head that the options describe.
    fn with_head(
        &mut self,
        params: &Params,
        gru: &str,
        options: &StateDictOptions,
    ) -> Result<Params> {
        let head = options.head.ok_or_else(|| {
            Error::format(
                "the file does not say what its head reads; say it (StateDictOptions::with_head)"
                    .to_owned(),
            )
        })?;
        let config = params.layout().config();
        let layout = ParamLayout::with_head(config, head)?;
        let shape = [head.outputs, config.directions() * config.hidden_size];
        let name = match &options.head_name {
            Some(asked) => self.named_head(asked, shape)?,
            None => self.only_head(gru, shape)?,
        };
        let mut network = Params::zeros_of(layout)?;
        for (name, array) in params.iter() {
            network.set(name, array)?;
        }
        for part in ["weight", "bias"] {
            let full = format!("{name}{part}");
            if self.names().filter(|found| *found == full).count() > 1 {
                let reason = format!("two of its tensors have the name {}", quote(&full));
                return Err(Error::format(reason));
            }
            // A layer without a bias adds 0.
            let Some(array) = self.shape(&full).map(|_| self.tensor(&full)).transpose()? else {
                continue;
            };
            if !options.allow_non_finite {
                check_finite(&full, array.iter())?;
            }
            network.set(&format!("head.{part}"), array.view())?;
        }
        Ok(network)
    }

    /// Returns the prefix of the layer that was asked for, with its last dot or slash.
    fn named_head(&self, asked: &str, [outputs, features]: [usize; 2]) -> Result<String> {
        let asked = asked.trim_end_matches(['.', '/']);
        let prefixes = [".", "/"].map(|end| format!("{asked}{end}"));
        let has_weight = |prefix: &&String| self.shape(&format!("{prefix}weight")).is_some();
        let Some(prefix) = prefixes.iter().find(has_weight) else {
            return Err(Error::format(format!(
                "there is no tensor {}, the weight of the head",
                quote(&format!("{}weight", prefixes[0]))
            )));
        };
        for (part, expected) in [("weight", &[outputs, features][..]), ("bias", &[outputs])] {
            let full = format!("{prefix}{part}");
            if let Some(got) = self.shape(&full).filter(|got| got != expected) {
                return Err(Error::format(format!(
                    "{} has shape {got:?}; the head's {part} has {expected:?}",
                    quote(&full)
                )));
            }
        }
        Ok(prefix.clone())
    }

    /// Returns the prefix of the only layer with the head's shapes, of those nearest to the GRU.
    fn only_head(&self, gru: &str, [outputs, features]: [usize; 2]) -> Result<String> {
        let is_head = |prefix: &&str| {
            let shape = |part: &str| self.shape(&format!("{prefix}{part}"));
            shape("weight").is_some_and(|shape| shape == [outputs, features])
                && shape("bias").is_some_and(|shape| shape == [outputs])
        };
        let names: Vec<_> = self.names().map(|name| name.into_owned()).collect();
        let prefixes = names.iter().filter_map(|name| name.strip_suffix("weight"));
        let modules = prefixes.filter(|prefix| prefix.ends_with(['.', '/']));
        let mut found: Vec<_> = modules.filter(is_head).map(str::to_owned).collect();
        found.sort();
        // A file may hold several networks: the head is in the innermost module that has one.
        let nearest = parents(gru).find_map(|parent| {
            let inside: Vec<_> =
                found.iter().filter(|prefix| prefix.starts_with(parent)).cloned().collect();
            (!inside.is_empty()).then_some(inside)
        });
        match nearest.as_deref() {
            Some([one]) => Ok(one.clone()),
            Some(several) => Err(Error::Choice {
                within: "the file".to_owned(),
                of: "head",
                asked: None,
                found: several.to_vec(),
                by: "name",
            }),
            None => Err(Error::format(format!(
                "there is no linear layer with a weight of shape {:?} and a bias of shape \
                 {:?}; name the head if it has another form",
                [outputs, features],
                [outputs]
            ))),
        }
    }
}

impl<D: StateDict> Heads for D {}

/// Returns the prefixes of the modules that hold `prefix`, the innermost first: `model.` and ``
/// for `model.gru.`.
fn parents(prefix: &str) -> impl Iterator<Item = &str> {
    let own = prefix.trim_end_matches(['.', '/']);
    let ends = own.match_indices(['.', '/']).map(|(at, _)| at + 1).collect::<Vec<_>>();
    ends.into_iter().rev().chain([0]).map(move |end| &own[..end])
}
