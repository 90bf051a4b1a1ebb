//! Finds the GRUs of a file, and the one that options choose.

use super::cells::{CellArrays, Kind, find};
use super::layers::{LayerArrays, layer_name, layers};
use super::pytorch::{Completeness, PytorchNames};
use super::{StateDict, StateDictOptions, StoredConfig};
use crate::error::{Error, Result, quote};
use crate::formats::layout_names::cell_prefixes;
use crate::formats::weight_layout::WeightLayout;
use crate::spec::config::GruConfig;

/// A GRU in a file.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// With PyTorch's names under this prefix.
    Pytorch(String),
    /// One layer in another layout.
    Layer(LayerArrays),
}

impl Found {
    pub fn prefix(&self) -> String {
        match self {
            Self::Pytorch(prefix) | Self::Layer(LayerArrays { prefix, .. }) => prefix.clone(),
        }
    }

    pub fn layout(&self) -> WeightLayout {
        match self {
            Self::Pytorch(_) => WeightLayout::Pytorch,
            Self::Layer(layer) => layer.cells[0].form.layout(),
        }
    }

    fn layer(&self) -> Option<&LayerArrays> {
        match self {
            Self::Pytorch(_) => None,
            Self::Layer(layer) => Some(layer),
        }
    }

    /// Returns the cells of a layer, each with the prefix of its own and that of its layer.
    fn parts(&self) -> Vec<Self> {
        let cells = self.layer().map_or(&[][..], |layer| &layer.cells);
        let part = |prefix: &str, cell: &CellArrays| {
            Self::Layer(LayerArrays { prefix: prefix.to_owned(), cells: vec![cell.clone()] })
        };
        let names = |cell: &CellArrays| {
            let mut parts = vec![part(&cell.prefix, cell)];
            if cells.len() == 2 && layer_name(cell) != cell.prefix {
                parts.push(part(layer_name(cell), cell));
            }
            parts
        };
        cells.iter().flat_map(names).collect()
    }
}

/// What options choose in a file.
pub(super) enum Chosen {
    One(Found),
    /// The cells of a GRU that this crate wrote, with its definition.
    Own(Vec<CellArrays>, GruConfig),
    /// The parts to join, by layer and direction. There is at least one.
    Joined(Vec<Vec<Found>>),
}

impl Chosen {
    pub fn layout(&self) -> WeightLayout {
        match self {
            Self::One(gru) => gru.layout(),
            Self::Own(cells, _) => cells[0].form.layout(),
            Self::Joined(layers) => layers[0][0].layout(),
        }
    }

    /// Returns the prefix of the GRU, or of its first part.
    #[cfg(any(feature = "pytorch", feature = "safetensors"))]
    pub fn prefix(&self) -> String {
        match self {
            Self::One(gru) => gru.prefix(),
            Self::Own(cells, _) => cells[0].prefix.clone(),
            Self::Joined(layers) => layers[0][0].prefix(),
        }
    }
}

pub(super) fn prefixes_of(found: &[Found]) -> Vec<String> {
    found.iter().map(Found::prefix).collect()
}

/// True if a request names a prefix, with or without the last dot or slash.
fn is_prefix(prefix: &str, asked: &str) -> bool {
    let trimmed = |name: &str| name.trim_end_matches(['.', '/']).to_owned();
    trimmed(prefix) == trimmed(asked)
}

/// Finds GRUs.
pub(super) trait Choice: StateDict {
    /// Returns every GRU in the file, or those that lack tensors if none is complete.
    fn grus(&self, options: &StateDictOptions) -> Vec<Found> {
        let is_asked = |layout| options.layout.is_none_or(|asked| asked == layout);
        let (mut complete, mut incomplete) = (Vec::new(), Vec::new());
        if is_asked(WeightLayout::Pytorch) {
            for (prefix, group) in self.groups() {
                match self.completeness(&prefix, &group) {
                    Completeness::Complete(_) => complete.push(Found::Pytorch(prefix)),
                    Completeness::Incomplete => incomplete.push(Found::Pytorch(prefix)),
                    Completeness::NoGru => {}
                }
            }
        }
        let (mut whole, mut partial) = (Vec::new(), Vec::new());
        for cell in find(self) {
            match cell.kind(self) {
                _ if !is_asked(cell.form.layout()) => {}
                Kind::Gru => whole.push(cell),
                Kind::Incomplete => partial.push(cell),
                Kind::Other => {}
            }
        }
        complete.extend(layers(whole).into_iter().map(Found::Layer));
        incomplete.extend(layers(partial).into_iter().map(Found::Layer));
        let mut found = if complete.is_empty() { incomplete } else { complete };
        found.sort_by_key(Found::prefix);
        found
    }

    /// Returns the GRU or the parts that the options choose.
    fn choose(&self, options: &StateDictOptions) -> Result<Chosen> {
        let found = self.grus(options);
        let asked = options.prefix.as_deref();
        if let Some(own) = self.own_layers(asked, &found)? {
            return Ok(own);
        }
        // A prefix may itself contain a comma or a plus.
        let is_list = |asked: &&str| {
            asked.contains([',', '+']) && !found.iter().any(|gru| is_prefix(&gru.prefix(), asked))
        };
        let Some(list) = asked.filter(is_list) else {
            return Ok(Chosen::One(self.choose_one(options, asked, &found)?));
        };
        let layers: Vec<Vec<_>> = list.split(',').map(|layer| layer.split('+').collect()).collect();
        let directions = layers[0].len();
        if directions > 2 || layers.iter().any(|layer| layer.len() != directions) {
            return Err(Error::format(
                "the layers to join need one prefix each, or two with a plus between them, as in \
                 `forward0+backward0,forward1+backward1`"
                    .to_owned(),
            ));
        }
        // A long list may name one cell again and again: the names come from the caller, but the
        // memory is to follow from the file.
        if (layers.len() * directions) as u64 > self.file_len() {
            return Err(Error::format("more parts are named than the file can hold".to_owned()));
        }
        if self.stored_config()?.is_some_and(|stored| !stored.is_of_all) {
            return Err(Error::format(
                "its metadata describes one GRU, which cannot be joined with others".to_owned(),
            ));
        }
        let part = |name: &&str| self.choose_one(options, Some(name.trim()), &found);
        let layer = |names: &Vec<&str>| names.iter().map(part).collect::<Result<Vec<_>>>();
        Ok(Chosen::Joined(layers.iter().map(layer).collect::<Result<_>>()?))
    }

    /// Returns the requested one of the GRUs, or the only one.
    fn choose_one(
        &self,
        options: &StateDictOptions,
        asked: Option<&str>,
        found: &[Found],
    ) -> Result<Found> {
        let is_asked = |prefix: &str| asked.is_none_or(|asked| is_prefix(prefix, asked));
        let mut matching: Vec<_> = found.iter().filter(|gru| is_asked(&gru.prefix())).collect();
        // One direction of a layer, or a cell by its own prefix.
        let parts: Vec<_> = found.iter().flat_map(Found::parts).collect();
        if matching.is_empty() {
            matching = parts.iter().filter(|gru| is_asked(&gru.prefix())).collect();
        }
        match &matching[..] {
            [one] => Ok((*one).clone()),
            [one, others @ ..] if others.iter().all(|other| other.prefix() == one.prefix()) => {
                let names: Vec<_> = matching.iter().map(|gru| gru.layout().to_string()).collect();
                Err(Error::format(format!(
                    "{} fit the tensors under the prefix {}; choose one (with_layout, or --layout \
                     of the program gru)",
                    names.join(" and "),
                    quote(&one.prefix())
                )))
            }
            _ => Err(Error::Choice {
                within: "the file".to_owned(),
                of: options.layout.map_or("GRU", WeightLayout::gru),
                asked: asked.map(str::to_owned),
                found: prefixes_of(found),
                by: "prefix",
            }),
        }
    }

    /// Returns the layers of a GRU that this crate wrote in another layout than PyTorch's.
    fn own_layers(&self, asked: Option<&str>, found: &[Found]) -> Result<Option<Chosen>> {
        let layers: Vec<_> = found.iter().filter_map(Found::layer).collect();
        let Some(first) = layers.first() else { return Ok(None) };
        let Some(StoredConfig { config, .. }) = self.stored_config()? else { return Ok(None) };
        let cells: Vec<_> = layers.iter().flat_map(|layer| &layer.cells).collect();
        let expected = cell_prefixes(first.cells[0].form.layout(), &config);
        let roots = cells.iter().filter_map(|cell| {
            let root = cell.prefix.strip_suffix(&expected.first()?[..])?;
            (root.is_empty() || root.ends_with(['/', '.'])).then_some(root)
        });
        let in_order = |root: &str| {
            let cell = |name: &String| {
                let full = format!("{root}{name}");
                cells.iter().find(|cell| cell.prefix == full).map(|&cell| cell.clone())
            };
            expected.iter().map(cell).collect::<Option<Vec<_>>>()
        };
        let own = roots.filter_map(|root| Some((root, in_order(root)?))).next();
        let is_all = found.len() == layers.len() && cells.len() == expected.len();
        let Some((root, cells)) = own.filter(|_| is_all) else {
            return Err(Error::format(format!(
                "its metadata describes one GRU, a {config}, but the file holds others, {}; save \
                 each GRU to its own file",
                prefixes_of(found).iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
            )));
        };
        let is_asked = asked.is_none_or(|asked| {
            let is_only = found.len() == 1 && is_prefix(&found[0].prefix(), asked);
            is_only || is_prefix(root, asked)
        });
        if !is_asked {
            return Err(Error::Choice {
                within: "the file".to_owned(),
                of: "GRU",
                asked: asked.map(str::to_owned),
                found: vec![root.to_owned()],
                by: "prefix",
            });
        }
        Ok(Some(Chosen::Own(cells, config)))
    }

    /// Returns the definition that is stored for the GRU with PyTorch's names under a prefix.
    fn stored_of(&self, prefix: &str) -> Result<Option<StoredConfig>> {
        let Some(stored) = self.stored_config()? else { return Ok(None) };
        let found = self.prefixes();
        if stored.is_of_all || found == [prefix] {
            return Ok(Some(stored));
        }
        Err(Error::format(format!(
            "its metadata describes one GRU, but the file holds {}; save each GRU to its own file",
            found.len()
        )))
    }
}

impl<D: StateDict> Choice for D {}
