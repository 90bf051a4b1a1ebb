//! GRUs and heads among the named tensors of a file, whatever the file's format.
//!
//! A GRU's tensors have the names of a framework ([`WeightLayout`]) under a prefix, such as
//! `encoder.gru.weight_ih_l0`. Names and shapes give sizes, layers, directions and biases. The
//! metadata of this crate's own files gives the whole definition.

use std::borrow::Cow;

use ndarray::ArrayD;

use self::cells::CellArrays;
use self::choice::{Choice, Chosen, Found, prefixes_of};
#[cfg(any(feature = "pytorch", feature = "safetensors"))]
use self::head::Heads;
use super::cell::Cell;
use super::layout_names::stored_bias;
use super::weight_layout::WeightLayout;
use crate::error::{Error, Result, quote};
use crate::spec::activation::Activations;
use crate::spec::config::{Bias, Direction, GruConfig, Reset, Update};
use crate::spec::head::{Head, Readout};
use crate::spec::params::{ParamLayout, Params};

mod cells;
mod choice;
#[cfg(any(feature = "pytorch", feature = "safetensors"))]
mod head;
mod layers;
mod pytorch;

pub(crate) use self::pytorch::PytorchNames;

#[cfg(any(feature = "npy", feature = "safetensors"))]
pub(super) use self::pytorch::is_head_parameter;
#[cfg(feature = "safetensors")]
pub(super) use self::pytorch::network_name;
#[cfg(any(feature = "npy", feature = "pytorch"))]
pub(super) use self::pytorch::parse;

/// Options for reading a GRU from a file of named tensors.
///
/// ```
/// use gru_wgpu::Reset;
/// use gru_wgpu::formats::{StateDictOptions, WeightLayout};
///
/// // The two layers of a model of Keras, made without biases and with reset_after=False.
/// let options = StateDictOptions::new()
///     .with_prefix("sequential/gru,sequential/gru_1")
///     .with_layout(WeightLayout::Keras)
///     .with_reset(Reset::Before);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StateDictOptions {
    /// The prefix of the GRU's tensor names, in front of `weight_ih_l0` or `kernel`. With `None`
    /// the file must hold exactly one GRU.
    pub prefix: Option<String>,
    /// The framework whose names and axes the tensors have. With `None` the names tell.
    pub layout: Option<WeightLayout>,
    /// Where the reset gate acts, for tensors that do not tell: those of ONNX, and those of Keras
    /// without a bias.
    pub reset: Option<Reset>,
    /// The activations, of a GRU of another program: tensors do not tell of them. With `None` they
    /// are σ and tanh.
    pub activations: Option<Activations>,
    /// The head of a network: its outputs, and what it reads. Only for `load_network`, and only
    /// for files of other programs, which do not say it.
    pub head: Option<Head>,
    /// The name of the head, such as `classifier.fc`. With `None` it is the only linear layer whose
    /// weight has the shape `[C, D·H]` and whose bias has the shape `[C]`. In a file with copies of
    /// a network it is the one beside the GRU.
    pub head_name: Option<String>,
    /// True to accept weights that are infinite or NaN.
    pub allow_non_finite: bool,
}

impl StateDictOptions {
    /// Returns the default options: the file's only GRU, with finite weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the GRU's prefix, with or without its last dot or slash. `None` means the file's only
    /// GRU.
    ///
    /// Commas join GRUs or GRU cells of one layer to the layers of one GRU, and a plus joins the
    /// two directions of a layer: `cell0,cell1` or `forward0+backward0,forward1+backward1`.
    #[must_use]
    pub fn with_prefix<'a>(self, prefix: impl Into<Option<&'a str>>) -> Self {
        Self { prefix: prefix.into().map(str::to_owned), ..self }
    }

    /// Sets the framework whose names and axes the tensors have. `None` means that the names tell.
    #[must_use]
    pub fn with_layout(self, layout: impl Into<Option<WeightLayout>>) -> Self {
        Self { layout: layout.into(), ..self }
    }

    /// Sets where the reset gate acts, for tensors that do not tell. Another place than the one
    /// that a file tells is an error.
    #[must_use]
    pub fn with_reset(self, reset: impl Into<Option<Reset>>) -> Self {
        Self { reset: reset.into(), ..self }
    }

    /// Sets the activations, such as Keras' `recurrent_activation` and `activation`.
    #[must_use]
    pub fn with_activations(self, activations: impl Into<Option<Activations>>) -> Self {
        Self { activations: activations.into(), ..self }
    }

    /// Sets the head of a network in a file of another program.
    ///
    /// ```no_run
    /// # #[cfg(feature = "pytorch")] {
    /// use gru_wgpu::formats::{StateDictOptions, pytorch};
    /// use gru_wgpu::{Device, Head, Learner, LearnerConfig, Loss, Optimizer};
    ///
    /// // In Python: a module with nn.GRU(3, 16) and nn.Linear(16, 5), which reads h_n.
    /// let options = StateDictOptions::new().with_head(Head::last(5));
    /// let params = pytorch::load_network("classifier.pt", &options)?;
    /// let config = LearnerConfig::new(Loss::cross_entropy(), Optimizer::adam(), 1e-3);
    /// let learner = Learner::new(params, config, &Device::auto())?;
    /// # }
    /// # Ok::<(), gru_wgpu::Error>(())
    /// ```
    #[must_use]
    pub fn with_head(self, head: impl Into<Option<Head>>) -> Self {
        Self { head: head.into(), ..self }
    }

    /// Sets the name of the head.
    #[must_use]
    pub fn with_head_name<'a>(self, name: impl Into<Option<&'a str>>) -> Self {
        Self { head_name: name.into().map(str::to_owned), ..self }
    }

    /// Sets whether weights that are infinite or NaN are accepted.
    #[must_use]
    pub fn with_non_finite(self, allow_non_finite: bool) -> Self {
        Self { allow_non_finite, ..self }
    }
}

/// The definition that this crate stored in a file.
pub(crate) struct StoredConfig {
    pub config: GruConfig,
    /// What the head reads, if there is one.
    #[cfg_attr(
        not(any(feature = "pytorch", feature = "safetensors")),
        expect(dead_code, reason = "only there is a head")
    )]
    pub readout: Option<Readout>,
    /// True if every GRU of the file has this definition, as in a checkpoint.
    pub is_of_all: bool,
}

/// Tensors by name, as a file holds them.
pub(crate) trait StateDict: Sized {
    /// Returns the names of all tensors.
    fn names(&self) -> impl Iterator<Item = Cow<'_, str>>;

    /// Returns the shape of a tensor, or `None` if there is none of this name, or it is damaged.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Reads a tensor.
    fn tensor(&mut self, name: &str) -> Result<ArrayD<f32>>;

    /// The length of the file in bytes; if it is compressed, at most that of its contents.
    fn file_len(&self) -> u64;

    /// Returns the definition that this crate stored in the file, or `None` for a file of another
    /// writer.
    fn stored_config(&self) -> Result<Option<StoredConfig>> {
        Ok(None)
    }

    /// Reads the GRU that the options choose.
    fn read_gru(&mut self, options: &StateDictOptions) -> Result<Params> {
        let chosen = self.choose(options)?;
        self.read_chosen(chosen, options)
    }

    /// Returns the layout of the GRU that the options choose.
    fn layout(&self, options: &StateDictOptions) -> Result<WeightLayout> {
        Ok(self.choose(options)?.layout())
    }

    /// Reads the GRU that the options choose, and its head: that of the metadata in a file that
    /// this crate wrote, otherwise the one that the options describe.
    #[cfg(any(feature = "pytorch", feature = "safetensors"))]
    fn read_network(&mut self, options: &StateDictOptions) -> Result<Params> {
        Ok(self.read_named_network(options)?.0)
    }

    /// Like [`Self::read_network`], with the name of the head.
    #[cfg(any(feature = "pytorch", feature = "safetensors"))]
    fn read_named_network(&mut self, options: &StateDictOptions) -> Result<(Params, String)> {
        if let Some(readout) = self.stored_config()?.and_then(|stored| stored.readout) {
            return Ok((self.read_own_network(readout, options)?, "head".to_owned()));
        }
        let chosen = self.choose(options)?;
        let gru = chosen.prefix();
        let params = self.read_chosen(chosen, options)?;
        self.with_head(&params, &gru, options)
    }

    /// Reads a network of a file that this crate wrote.
    #[cfg(any(feature = "pytorch", feature = "safetensors"))]
    fn read_own_network(&mut self, readout: Readout, options: &StateDictOptions) -> Result<Params> {
        let pytorch = options.clone().with_layout(WeightLayout::Pytorch);
        let asked = options.prefix.as_deref();
        let prefix = self.choose_one(options, asked, &self.grus(&pytorch))?.prefix();
        let Some(StoredConfig { config, .. }) = self.stored_of(&prefix)? else {
            return Err(Error::format("its metadata describes another GRU".to_owned()));
        };
        let layout = self.network_layout(&prefix, &config, readout)?;
        let found = layout.required_head()?;
        if let Some(asked) = options.head.filter(|asked| *asked != found) {
            return Err(Error::format(format!("its head has {found}; expected {asked}")));
        }
        if options.head_name.as_ref().is_some_and(|name| name != "head") {
            return Err(Error::format("its head has the name `head`".to_owned()));
        }
        self.params(&prefix, layout, options.allow_non_finite)
    }

    /// Returns the prefix of every GRU in the file, sorted. If no GRU is complete, returns those
    /// that lack tensors, so that the error says which.
    fn prefixes(&self) -> Vec<String> {
        prefixes_of(&self.grus(&StateDictOptions::new()))
    }

    /// Checks that the file is long enough for the elements of a GRU. Tensors that share their
    /// numbers could claim any size.
    fn check_elements(&self, count: u64) -> Result<()> {
        let len = self.file_len();
        if count <= len {
            return Ok(());
        }
        Err(Error::format(format!(
            "its GRU has {count} parameters, more than the file has bytes ({len}); its tensors \
             share their numbers, which this reader does not expand"
        )))
    }
}

/// Reads the GRUs that options choose.
trait Reading: StateDict {
    /// Reads a GRU that [`Choice::choose`] returned.
    fn read_chosen(&mut self, chosen: Chosen, options: &StateDictOptions) -> Result<Params> {
        let params = match chosen {
            Chosen::One(gru) => self.read_one(gru, options)?,
            Chosen::Own(cells, config) => self.read_own(&cells, &config, options)?,
            Chosen::Joined(layers) => self.read_joined(&layers, options)?,
        };
        let config = params.layout().config();
        if let Some(asked) = options.reset.filter(|&asked| asked != config.reset) {
            return Err(Error::format(format!(
                "the reset gate of its GRU acts {} the product, as its tensors tell, but {} was \
                 asked for; leave this option out",
                reset_word(config.reset),
                reset_word(asked)
            )));
        }
        match options.activations.filter(|&asked| asked != config.activations) {
            None => Ok(params),
            Some(_) if self.stored_config()?.is_some() => Err(Error::format(format!(
                "its metadata describes a {config}; leave out other activations"
            ))),
            Some(activations) => {
                let config = GruConfig { activations, ..config.clone() };
                Ok(Params::from_flat(ParamLayout::new(&config)?, params.into_flat()))
            }
        }
    }

    /// Reads one GRU.
    fn read_one(&mut self, gru: Found, options: &StateDictOptions) -> Result<Params> {
        match gru {
            Found::Pytorch(prefix) => {
                let config = match self.stored_of(&prefix)? {
                    Some(stored) => stored.config,
                    None => self.infer(&prefix)?,
                };
                self.expect_tensors(&prefix, &config)?;
                self.params(&prefix, ParamLayout::new(&config)?, options.allow_non_finite)
            }
            Found::Layer(layer) => {
                let (cells, reset, bias) = self.read_cells(&layer.cells, options)?;
                let reset = reset.or(options.reset).ok_or_else(|| {
                    Error::format(
                        "its tensors do not tell whether the reset gate acts before or after the \
                         product; say which (with_reset, or --reset of the program gru)"
                            .to_owned(),
                    )
                })?;
                let (input, hidden) = (cells[0].weight_ih.ncols(), cells[0].weight_hh.ncols());
                let direction = if cells.len() == 2 { Direction::Both } else { Direction::Forward };
                let config = GruConfig::pytorch(input, hidden).with_reset(reset).with_bias(bias);
                joined(&config.with_direction(direction), &cells)
            }
        }
    }

    /// Reads a GRU that this crate wrote in another layout than PyTorch's.
    fn read_own(
        &mut self,
        arrays: &[CellArrays],
        config: &GruConfig,
        options: &StateDictOptions,
    ) -> Result<Params> {
        let (mut cells, reset, bias) = self.read_cells(arrays, options)?;
        let expected = stored_bias(arrays[0].form.layout(), config);
        if reset.is_some_and(|reset| reset != config.reset) || bias != expected {
            return Err(Error::format(format!(
                "its metadata describes a {config}, but its tensors have other biases"
            )));
        }
        if config.update == Update::Overwrites {
            cells.iter_mut().for_each(Cell::negate_z);
        }
        // The metadata may claim any size.
        self.check_elements(ParamLayout::new(config)?.parameter_count() as u64)?;
        joined(config, &cells)
    }

    /// Reads cells, with what their arrays tell about the definition.
    fn read_cells(
        &mut self,
        arrays: &[CellArrays],
        options: &StateDictOptions,
    ) -> Result<(Vec<Cell>, Option<Reset>, Bias)> {
        let counts = arrays.iter().map(|cell| cell.count(self));
        self.check_elements(counts.fold(0, u64::saturating_add))?;
        let (mut cells, mut told) = (Vec::new(), None);
        for array in arrays {
            let stored = array.read(self, options.allow_non_finite)?;
            let tells = (stored.reset, stored.bias);
            if *told.get_or_insert(tells) != tells {
                return Err(Error::format(format!(
                    "{} has other biases than the cell before it",
                    quote(&array.prefix)
                )));
            }
            cells.extend(stored.cells);
        }
        let (reset, bias) = told.ok_or_else(|| Error::format("no parts are named".to_owned()))?;
        Ok((cells, reset, bias))
    }

    /// Reads GRUs of one layer and joins them to one GRU.
    fn read_joined(&mut self, layers: &[Vec<Found>], options: &StateDictOptions) -> Result<Params> {
        let mut first_part: Option<GruConfig> = None;
        let mut cells = Vec::new();
        for (layer, parts) in layers.iter().enumerate() {
            for gru in parts {
                let params = self.read_one(gru.clone(), options)?;
                let config = params.layout().config();
                let first = first_part.get_or_insert_with(|| config.clone());
                let directions = parts.len() * first.directions();
                let input = match layer {
                    0 => first.input_size,
                    _ => directions * first.hidden_size,
                };
                let expected = GruConfig { input_size: input, ..first.clone() };
                if *config != expected || config.layers != 1 || directions > 2 {
                    return Err(Error::format(format!(
                        "{} is a {config}; as layer {layer} of the joined GRU it must be a \
                         {expected} of one layer{}",
                        quote(&gru.prefix()),
                        if parts.len() == 2 { " in one direction" } else { "" }
                    )));
                }
                let parts = (layers.len() * parts.len()) as u64;
                let count = params.layout().parameter_count() as u64;
                self.check_elements(count.saturating_mul(parts))?;
                cells.extend(params.to_cells());
            }
        }
        let first = first_part.ok_or_else(|| Error::format("no parts are named".to_owned()))?;
        let direction = if layers[0].len() == 2 { Direction::Both } else { first.direction };
        joined(&first.with_layers(layers.len()).with_direction(direction), &cells)
    }
}

impl<D: StateDict> Reading for D {}

/// Returns the parameters of a model with these cells.
fn joined(config: &GruConfig, cells: &[Cell]) -> Result<Params> {
    Params::from_cells(config, cells).map_err(|error| match error {
        Error::Shape { .. } => Error::format(format!("in a {config}, {error}")),
        other => other,
    })
}

fn reset_word(reset: Reset) -> &'static str {
    match reset {
        Reset::Before => "before",
        Reset::After => "after",
    }
}
