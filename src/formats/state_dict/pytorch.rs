//! PyTorch's names of a GRU's tensors, and the other forms in which a weight may be stored:
//!
//! | stored | the weight |
//! |---|---|
//! | `NAME_raw` (weight drop) | the stored tensor: evaluation drops nothing |
//! | `NAME_g`, `NAME_v` (weight norm) | g · v / ‖v‖ |
//! | `parametrizations.NAME.original0`, `original1` (weight norm) | the same, as g and v |

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ndarray::{ArrayD, Axis};

use super::StateDict;
use crate::error::{Error, Result, quote};
use crate::formats::files::check_finite;
use crate::spec::config::{Bias, Direction, GruConfig};
#[cfg(any(feature = "pytorch", feature = "safetensors"))]
use crate::spec::head::{Head, Readout};
use crate::spec::params::{HEAD_BIAS, HEAD_WEIGHT, ParamLayout, Params};

/// The kinds of a GRU's tensors. `weight_hr` is a projection, which only an LSTM has.
const KINDS: [&str; 5] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"];

/// Reads tensors under PyTorch's names.
pub(crate) trait PytorchNames: StateDict {
    /// Returns the GRU parameters in the file by their prefix.
    fn groups(&self) -> BTreeMap<String, BTreeSet<Parameter>> {
        let mut groups = BTreeMap::<_, BTreeSet<_>>::new();
        for name in self.names() {
            if let Some((prefix, parameter)) = parse(&name) {
                // Looked up first: most names share a prefix, which then need not be copied.
                match groups.get_mut(prefix) {
                    Some(group) => drop(group.insert(parameter)),
                    None => drop(groups.insert(prefix.to_owned(), BTreeSet::from([parameter]))),
                }
            }
        }
        groups
    }

    /// Returns whether the parameters under a prefix are a GRU's: whether their shapes match three
    /// gates. (An LSTM has four gates, a plain RNN one.)
    fn completeness(&self, prefix: &str, group: &BTreeSet<Parameter>) -> Completeness {
        let shape = |kind, cell: Cell| self.stored_shape(prefix, &Parameter { kind, cell }.name());
        let cells: BTreeSet<_> =
            group.iter().filter(|p| p.kind < 2).map(|parameter| parameter.cell).collect();
        let mut found = Completeness::NoGru;
        for cell in cells {
            let (ih, hh) = (shape(0, cell), shape(1, cell));
            match (ih.as_deref(), hh.as_deref()) {
                (Some(&[rows, _]), Some(&[gates, hidden]))
                    if rows == gates && hidden.checked_mul(3) == Some(gates) =>
                {
                    return Completeness::Complete(hidden);
                }
                (Some(&[rows, _]), None) if rows % 3 == 0 => found = Completeness::Incomplete,
                (None, Some(&[gates, hidden])) if hidden.checked_mul(3) == Some(gates) => {
                    found = Completeness::Incomplete;
                }
                _ => {}
            }
        }
        found
    }

    /// Returns where the file holds a parameter, if anywhere.
    fn stored(&self, prefix: &str, name: &str) -> Option<Stored> {
        let has = |name: &str| self.shape(name).is_some();
        let plain = network_name(prefix, name);
        if is_head_parameter(name) {
            return has(&plain).then_some(Stored::Plain(plain));
        }
        // The names of an `nn.GRUCell` have no layer number.
        let cell = name.strip_suffix("_l0").map(|cell| format!("{prefix}{cell}"));
        for plain in [Some(plain), cell].into_iter().flatten() {
            let name = &plain[prefix.len()..];
            // The plain name comes last: beside another form it holds an older result. That is the
            // weight with what the last training step dropped (fastai), or the weight of the last
            // forward pass (a pickled module with weight norm). fastai's weight drop holds the GRU
            // as `module`.
            let outer = prefix.strip_suffix("module.");
            let raws =
                [Some(format!("{plain}_raw")), outer.map(|outer| format!("{outer}{name}_raw"))];
            if let Some(raw) = raws.into_iter().flatten().find(|raw| has(raw)) {
                return Some(Stored::Plain(raw));
            }
            let new = format!("{prefix}parametrizations.{name}.original");
            for (g, v) in [
                (format!("{plain}_g"), format!("{plain}_v")),
                (format!("{new}0"), format!("{new}1")),
            ] {
                if has(&g) && has(&v) {
                    return Some(Stored::WeightNorm { g, v });
                }
            }
            if has(&plain) {
                return Some(Stored::Plain(plain));
            }
        }
        None
    }

    /// Returns the shape of a parameter, or `None` if the file does not hold it.
    fn stored_shape(&self, prefix: &str, name: &str) -> Option<Vec<usize>> {
        match self.stored(prefix, name)? {
            Stored::Plain(name) | Stored::WeightNorm { v: name, .. } => self.shape(&name),
        }
    }

    /// Reads a parameter.
    fn parameter(&mut self, prefix: &str, name: &str) -> Result<ArrayD<f32>> {
        match self.stored(prefix, name) {
            None => Err(self.missing(prefix, name)),
            Some(Stored::Plain(name)) => self.tensor(&name),
            Some(Stored::WeightNorm { g, v }) => {
                let (magnitude, direction) = (self.tensor(&g)?, self.tensor(&v)?);
                normalized(&magnitude, direction).ok_or_else(|| {
                    Error::format(format!(
                        "{} has shape {:?}; expected one factor for each row, each column or all \
                         of {}",
                        quote(&g),
                        magnitude.shape(),
                        quote(&v)
                    ))
                })
            }
        }
    }

    /// Returns the error that the file does not hold a parameter. Names the tensors that could be
    /// the parameter in another form.
    fn missing(&self, prefix: &str, name: &str) -> Error {
        let full = network_name(prefix, name);
        let other = format!("{prefix}parametrizations.{name}.");
        let mut similar: Vec<_> = self
            .names()
            .filter(|found| {
                let end = found.strip_prefix(&full);
                end.is_some_and(|end| end.starts_with('_') && end != "_reverse")
                    || found.starts_with(&other)
            })
            .take(4)
            .map(|found| quote(&found))
            .collect();
        similar.sort();
        let similar = match similar.len() {
            0 => String::new(),
            _ => format!(
                "; there is {}, from which this reader cannot compute it; save the state dict of a \
                 plain nn.GRU with the finished weight",
                similar.join(", ")
            ),
        };
        Error::format(format!("there is no tensor {}{similar}", quote(&full)))
    }

    /// Returns the layout of the network whose GRU is under `prefix`, after checking its tensors.
    #[cfg(any(feature = "pytorch", feature = "safetensors"))]
    fn network_layout(
        &self,
        prefix: &str,
        config: &GruConfig,
        readout: Readout,
    ) -> Result<ParamLayout> {
        self.expect_tensors(prefix, config)?;
        let bias = network_name(prefix, HEAD_BIAS);
        let shape = self.shape(&bias).ok_or_else(|| self.missing(prefix, HEAD_BIAS))?;
        let &[outputs] = &shape[..] else {
            let reason = format!("{} has shape {shape:?}, expected one axis", quote(&bias));
            return Err(Error::format(reason));
        };
        let features = config.directions() * config.hidden_size;
        self.expect_shape(prefix, HEAD_WEIGHT, &[outputs, features])?;
        ParamLayout::with_head(config, Head { outputs, readout })
    }

    /// Reads the parameters under `prefix`. The caller has checked that the tensors exist with the
    /// shapes of `layout`.
    fn params(
        &mut self,
        prefix: &str,
        layout: ParamLayout,
        allow_non_finite: bool,
    ) -> Result<Params> {
        self.check_elements(layout.parameter_count() as u64)?;
        let mut params = Params::zeros_of(layout)?;
        for entry in params.layout().clone().entries() {
            let array = self.parameter(prefix, &entry.name)?;
            if !allow_non_finite {
                check_finite(&entry.name, array.iter())?;
            }
            params.set(&entry.name, array.view())?;
        }
        Ok(params)
    }

    /// Infers the configuration of a PyTorch `nn.GRU` from its tensors. A tensor that is missing is
    /// left to [`Self::expect_tensors`] as far as the others tell the configuration.
    fn infer(&self, prefix: &str) -> Result<GruConfig> {
        let groups = self.groups();
        let group = groups.get(prefix).ok_or_else(|| self.missing(prefix, "weight_ih_l0"))?;
        let has_forward = group.iter().any(|parameter| !parameter.cell.is_reverse);
        let has_reverse = group.iter().any(|parameter| parameter.cell.is_reverse);
        let direction = match (has_forward, has_reverse) {
            (true, true) => Direction::Both,
            (false, true) => Direction::Reverse,
            _ => Direction::Forward,
        };
        let firsts = [false, true].map(|is_reverse| Cell { layer: 0, is_reverse });
        let name = |kind, cell| Parameter { kind, cell }.name();
        let shape = |kind, cell| self.stored_shape(prefix, &name(kind, cell));
        let ih = firsts.iter().find_map(|&cell| shape(0, cell));
        let first = firsts[usize::from(!has_forward)];
        let Some(&[rows, input]) = ih.as_deref() else {
            return Err(self.missing(prefix, &name(0, first)));
        };
        let hidden = match self.completeness(prefix, group) {
            Completeness::Complete(hidden) => hidden,
            _ => rows / 3,
        };
        let has = |kind| group.iter().any(|parameter| parameter.kind == kind);
        let bias = match [has(2), has(3)] {
            [true, true] => Bias::Two,
            [false, false] => Bias::None,
            [ih, _] => {
                let (present, missing) = if ih { (2, 3) } else { (3, 2) };
                return Err(Error::format(format!(
                    "there is {} but no {}; expected both or neither, as in PyTorch (a missing \
                     bias can be added as zeros)",
                    name(present, first),
                    name(missing, first)
                )));
            }
        };
        let layers = group.iter().map(|parameter| parameter.cell.layer as usize + 1).max();
        let config = GruConfig::pytorch(input, hidden).with_bias(bias);
        Ok(config.with_layers(layers.unwrap_or(1)).with_direction(direction))
    }

    /// Checks that the file has exactly the tensors of `config`, before memory is allocated for
    /// them.
    fn expect_tensors(&self, prefix: &str, config: &GruConfig) -> Result<()> {
        config.validate()?;
        let mut known = HashSet::new();
        for (name, expected) in config.tensors() {
            self.expect_shape(prefix, &name, &expected)?;
            known.insert(name);
        }
        // A projection or another layer would change what the GRU computes.
        let unknown = self.names().find(|name| {
            let kind = name.strip_prefix(prefix).unwrap_or("");
            let is_known = || {
                let parsed = parse(name).filter(|(found, _)| *found == prefix);
                parsed.is_some_and(|(_, parameter)| known.contains(&parameter.name()))
            };
            KINDS.iter().any(|ours| kind.starts_with(ours)) && !is_known()
        });
        match unknown {
            None => Ok(()),
            Some(name) => Err(Error::format(format!(
                "there is an unexpected tensor: a {config} has no tensor {}",
                quote(&name)
            ))),
        }
    }

    /// Checks that the file holds a parameter with this shape.
    fn expect_shape(&self, prefix: &str, name: &str, expected: &[usize]) -> Result<()> {
        match self.stored_shape(prefix, name) {
            None => Err(self.missing(prefix, name)),
            Some(got) if got == expected => Ok(()),
            Some(got) => Err(Error::format(format!(
                "{} has shape {got:?}, expected {expected:?}",
                quote(&network_name(prefix, name))
            ))),
        }
    }
}

impl<D: StateDict> PytorchNames for D {}

/// The names under which a file holds a parameter.
pub(crate) enum Stored {
    Plain(String),
    WeightNorm { g: String, v: String },
}

/// Whether tensors are those of a GRU.
pub(crate) enum Completeness {
    /// At least one cell has both of its weights; H.
    Complete(usize),
    /// No cell has both of its weights, but the one that it has could be a GRU's.
    Incomplete,
    NoGru,
}

/// A layer's cell in one direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    layer: u32,
    is_reverse: bool,
}

/// A parameter of a GRU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Parameter {
    /// The index in [`KINDS`].
    kind: usize,
    cell: Cell,
}

impl Parameter {
    /// Returns the name in an `nn.GRU`.
    fn name(self) -> String {
        let Self { kind, cell } = self;
        let end = if cell.is_reverse { "_reverse" } else { "" };
        format!("{}_l{}{end}", KINDS[kind], cell.layer)
    }

    /// Parses the name of a parameter of an `nn.GRU` or `nn.GRUCell`.
    fn parse(name: &str) -> Option<Self> {
        let found = KINDS.iter().enumerate().find_map(|(kind, word)| {
            let cell = name.strip_prefix(word)?;
            Some((kind, cell))
        });
        let (kind, cell) = found?;
        if cell.is_empty() {
            return Some(Self { kind, cell: Cell { layer: 0, is_reverse: false } });
        }
        let cell = cell.strip_prefix("_l")?;
        let (layer, is_reverse) = match cell.strip_suffix("_reverse") {
            Some(layer) => (layer, true),
            None => (cell, false),
        };
        // `parse` alone accepts `+1` and `01`.
        let is_number = layer.bytes().all(|c| c.is_ascii_digit()) && !is_padded(layer);
        let layer = layer.parse().ok().filter(|_| is_number)?;
        Some(Self { kind, cell: Cell { layer, is_reverse } })
    }
}

fn is_padded(number: &str) -> bool {
    number.len() > 1 && number.starts_with('0')
}

/// Splits the name of a GRU's tensor into the GRU's prefix and the parameter. `None` for the name
/// of any other tensor.
pub(crate) fn parse(name: &str) -> Option<(&str, Parameter)> {
    let split = |name| match str::rfind(name, ['.', '/']) {
        Some(dot) => name.split_at(dot + 1),
        None => ("", name),
    };
    let (prefix, last) = split(name);
    if last == "original0" || last == "original1" {
        let (prefix, parameter) = split(prefix.strip_suffix('.')?);
        let prefix = prefix.strip_suffix("parametrizations.")?;
        let is_whole = prefix.is_empty() || prefix.ends_with('.');
        return Some((prefix, Parameter::parse(parameter).filter(|_| is_whole)?));
    }
    let plain = ["_raw", "_g", "_v"].iter().find_map(|end| last.strip_suffix(end));
    Some((prefix, Parameter::parse(plain.unwrap_or(last))?))
}

/// Returns g · v / ‖v‖, PyTorch's weight norm. g has one factor for each row or column of v, or one
/// for all; ‖v‖ is the norm of that row, that column or all. `None` for another shape of g.
fn normalized(g: &ArrayD<f32>, mut v: ArrayD<f32>) -> Option<ArrayD<f32>> {
    // In double precision, so that the result is as exact as the stored numbers.
    let scale = |g: f32, numbers: &mut dyn Iterator<Item = &mut f32>| {
        let mut numbers: Vec<_> = numbers.collect();
        let square: f64 = numbers.iter().map(|number| f64::from(**number).powi(2)).sum();
        let factor = f64::from(g) / square.sqrt();
        numbers.iter_mut().for_each(|number| **number = (f64::from(**number) * factor) as f32);
    };
    if g.ndim() == 0 {
        scale(*g.first()?, &mut v.iter_mut());
        return Some(v);
    }
    if g.ndim() != v.ndim() {
        return None;
    }
    // The axis that g has in full, with length 1 for every other.
    let matches = |axis: usize| {
        (0..v.ndim()).all(|i| g.shape()[i] == if i == axis { v.shape()[i] } else { 1 })
    };
    let axis = Axis((0..v.ndim()).find(|&axis| matches(axis))?);
    for (mut part, &g) in v.axis_iter_mut(axis).zip(g) {
        scale(g, &mut part.iter_mut());
    }
    Some(v)
}

pub(crate) fn is_head_parameter(name: &str) -> bool {
    [HEAD_WEIGHT, HEAD_BIAS].contains(&name)
}

/// Returns a network parameter's name in a file. `gru` is the prefix of the GRU, such as
/// `model.gru.`; the head has the same parent, such as `model.head.`.
pub(crate) fn network_name(gru: &str, name: &str) -> String {
    let gru_name = gru.strip_suffix('.').unwrap_or(gru);
    let parent = gru_name.rfind('.').map_or("", |dot| &gru[..=dot]);
    if is_head_parameter(name) { format!("{parent}{name}") } else { format!("{gru}{name}") }
}
