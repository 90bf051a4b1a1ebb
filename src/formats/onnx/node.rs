//! A GRU node: its configuration, and its weights as cells.

use std::collections::HashSet;

use ndarray::{Array3, ArrayD, Axis, Ix2, Ix3};

use super::activations;
use super::constants::{ConstantFolding, KnownValue};
use super::proto::{AttributeProto, NodeProto, attribute_type, decode, in_part};
use super::tensor::Value;
use crate::error::{Error, Result, quote};
use crate::formats::cell::Cell;
use crate::formats::files::check_finite;
use crate::spec::activation::Activations;
use crate::spec::config::{Bias, Direction, GruConfig, Layout, Reset};

/// The indices of the inputs of a GRU node.
pub(super) mod input {
    pub const X: usize = 0;
    pub const W: usize = 1;
    pub const R: usize = 2;
    pub const B: usize = 3;
    pub const LENGTHS: usize = 4;
    pub const H0: usize = 5;
}

/// The names of the operator's inputs, by index, for error messages.
const INPUTS: [&str; 6] = ["X", "W", "R", "B", "sequence_lens", "initial_h"];

/// The value of an optional input of a GRU node.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum OptionalInput<T> {
    /// The input is not connected. This means zeros for a state and all steps for a length.
    Nothing,
    /// The value is a constant of the model.
    Constant(T),
    /// The value is known only when the model runs. The text says where it comes from, such as
    /// "the input `h0`".
    AtRun(String),
}

/// A GRU node whose attributes and shapes are checked.
pub(super) struct GruNode {
    pub name: String,
    proto: NodeProto,
    /// The configuration of this one layer, with [`Update::Keeps`](crate::Update::Keeps).
    pub config: GruConfig,
    /// The order of the axes T and B of X, Y and the states.
    pub layout: Layout,
}

impl GruNode {
    /// True if a node is a GRU of ONNX's own domain.
    pub fn is_gru(node: &NodeProto) -> bool {
        node.op() == "GRU"
    }

    /// Reads everything except the elements of the weights.
    pub fn read(constants: &ConstantFolding<'_>, name: &str, proto: NodeProto) -> Result<Self> {
        Self::read_inner(constants, name, proto).map_err(|error| in_node(name, error))
    }

    fn read_inner(constants: &ConstantFolding<'_>, name: &str, proto: NodeProto) -> Result<Self> {
        let attributes = Attributes::read(&proto)?;
        let d = attributes.direction.count();
        let w = required(weight_shape(constants, &proto, input::W)?, "W")?;
        let r = required(weight_shape(constants, &proto, input::R)?, "R")?;
        let (&[_, _, input_size], &[_, _, hidden]) = (&w[..], &r[..]) else {
            return Err(Error::format(format!(
                "W and R have shapes {w:?} and {r:?}; expected three axes for both"
            )));
        };
        let gates = hidden.saturating_mul(3);
        expect_shape("W [D, 3H, I]", &w, &[d, gates, input_size])?;
        expect_shape("R [D, 3H, H]", &r, &[d, gates, hidden])?;
        if let Some(stated) = attributes.hidden_size.filter(|&size| size != hidden as i64) {
            let reason = format!("its hidden_size is {stated}, but R has the shape {r:?}");
            return Err(Error::format(reason));
        }
        let bias = weight_shape(constants, &proto, input::B)?;
        if let Some(b) = &bias {
            expect_shape("B [D, 6H]", b, &[d, gates.saturating_mul(2)])?;
        }
        let Activations { gate, candidate } = attributes.activations;
        let config = GruConfig::pytorch(input_size, hidden)
            .with_reset(attributes.reset)
            .with_direction(attributes.direction)
            .with_activations(gate, candidate)
            .with_reverse_activations(attributes.reverse_activations)
            .with_clip(attributes.clip)
            .with_bias(if bias.is_some() { Bias::Two } else { Bias::None });
        config.validate().map_err(|error| Error::format_from(error.to_string(), error))?;
        Ok(Self { name: name.to_owned(), proto, config, layout: attributes.layout })
    }

    /// Returns the name of Y, or `None` if that output is not used.
    pub fn y(&self) -> Option<&str> {
        self.proto.output.first().map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Returns the name of an input, or `None` if it is not connected.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.proto.connected(index)
    }

    /// Reads the weights of each direction.
    pub fn cells(
        &self,
        constants: &ConstantFolding<'_>,
        allow_non_finite: bool,
    ) -> Result<Vec<Cell>> {
        self.read_cells(constants, allow_non_finite).map_err(|error| in_node(&self.name, error))
    }

    fn read_cells(
        &self,
        constants: &ConstantFolding<'_>,
        allow_non_finite: bool,
    ) -> Result<Vec<Cell>> {
        let array = |index: usize| weight(constants, &self.proto, index, allow_non_finite);
        let to_3d =
            |array: ArrayD<f32>| array.into_dimensionality::<Ix3>().expect("its shape was checked");
        let w = to_3d(required(array(input::W)?, "W")?);
        let r = to_3d(required(array(input::R)?, "R")?);
        let b = array(input::B)?;
        let b = b.map(|b| b.into_dimensionality::<Ix2>().expect("its shape was checked"));
        (0..self.config.directions())
            .map(|d| {
                let bias = b.as_ref().map(|b| b.row(d));
                Cell::from_onnx(w.index_axis(Axis(0), d), r.index_axis(Axis(0), d), bias)
            })
            .collect()
    }

    /// Reads the first states, `[D, B, H]`.
    pub fn h0(
        &self,
        constants: &ConstantFolding<'_>,
        allow_non_finite: bool,
    ) -> Result<OptionalInput<Array3<f32>>> {
        self.optional_input(constants, input::H0, |value| {
            let h0 = floats(value)?;
            if !allow_non_finite {
                check_finite(INPUTS[input::H0], h0.iter())?;
            }
            let shape = h0.shape().to_vec();
            let wrong = |_| Error::format(format!("its shape is {shape:?}; expected three axes"));
            let h0 = h0.view().into_dimensionality::<Ix3>().map_err(wrong)?;
            let h0 = match self.layout {
                Layout::TimeMajor => h0,
                Layout::BatchFirst => h0.permuted_axes([1, 0, 2]),
            };
            let (_, batch, _) = h0.dim();
            let expected = [self.config.directions(), batch, self.config.hidden_size];
            expect_shape("the array [D, B, H]", h0.shape(), &expected)?;
            Ok(h0.as_standard_layout().into_owned())
        })
    }

    /// Reads the row lengths, `[B]`.
    pub fn lengths(&self, constants: &ConstantFolding<'_>) -> Result<OptionalInput<Vec<usize>>> {
        self.optional_input(constants, input::LENGTHS, |value| {
            let integers = value.integers();
            let not_integers =
                || Error::format("its elements are floats; expected integers".to_owned());
            let length = |&length: &i64| {
                let wrong =
                    |_| Error::format(format!("it holds the length {length}; expected at least 0"));
                usize::try_from(length).map_err(wrong)
            };
            integers.ok_or_else(not_integers)?.iter().map(length).collect()
        })
    }

    /// Reads an optional input with `read` if its value is a constant.
    fn optional_input<T>(
        &self,
        constants: &ConstantFolding<'_>,
        index: usize,
        read: impl FnOnce(&Value) -> Result<T>,
    ) -> Result<OptionalInput<T>> {
        let Some(value) = self.input(index) else { return Ok(OptionalInput::Nothing) };
        let read_value = || {
            // Zeros have the same effect as no state, and fit any batch.
            if index == input::H0 && constants.is_zeros(value)? {
                return Ok(OptionalInput::Nothing);
            }
            match constants.known(value)? {
                KnownValue::Constant(value) => read(&value).map(OptionalInput::Constant),
                KnownValue::AtRun(source) => Ok(OptionalInput::AtRun(source)),
            }
        };
        read_value().map_err(|error| in_node(&self.name, in_input(index, error)))
    }
}

/// A node's attributes, all checked and supported.
struct Attributes {
    direction: Direction,
    reset: Reset,
    layout: Layout,
    hidden_size: Option<i64>,
    activations: Activations,
    /// Those of the reverse direction, if they differ.
    reverse_activations: Option<Activations>,
    clip: Option<f32>,
}

impl Attributes {
    fn read(node: &NodeProto) -> Result<Self> {
        let mut read = Self {
            direction: Direction::Forward,
            reset: Reset::Before,
            layout: Layout::TimeMajor,
            hidden_size: None,
            activations: Activations::default(),
            reverse_activations: None,
            clip: None,
        };
        let (mut functions, mut alphas, mut betas) = (None, Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for attribute in &node.attribute {
            let attribute: AttributeProto = decode(attribute)?;
            check_type(&attribute)?;
            match attribute.name.as_str() {
                name if !seen.insert(name.to_owned()) => {
                    return Err(Error::format(format!(
                        "it has the attribute {} twice",
                        quote(name)
                    )));
                }
                "direction" => read.direction = direction(&text(&attribute.s)?)?,
                "linear_before_reset" => {
                    read.reset = if attribute.i == 0 { Reset::Before } else { Reset::After }
                }
                "layout" => read.layout = layout(attribute.i)?,
                "hidden_size" => read.hidden_size = Some(attribute.i),
                "activations" => functions = Some(attribute.strings),
                "activation_alpha" => alphas = attribute.floats,
                "activation_beta" => betas = attribute.floats,
                // At this bound nothing is clipped.
                "clip" if attribute.f >= 1e38 => {}
                "clip" => read.clip = Some(attribute.f),
                // Only in opsets before 7: true if Y is used.
                "output_sequence" => {}
                other => return Err(unsupported(&format!("the attribute {}", quote(other)))),
            }
        }
        // An empty list means the defaults.
        if let Some(functions) = functions.filter(|functions| !functions.is_empty()) {
            let expected = 2 * read.direction.count();
            if functions.len() != expected {
                let got = functions.len();
                let reason = format!("it has {got} activations; expected {expected}");
                return Err(Error::format(reason));
            }
            let names: Result<Vec<_>> = functions.iter().map(|name| text(name)).collect();
            let all = activations::read(&names?, &alphas, &betas)?;
            let mut of_directions =
                all.chunks_exact(2).map(|of| Activations { gate: of[0], candidate: of[1] });
            read.activations = of_directions.next().unwrap_or_default();
            read.reverse_activations = of_directions.next().filter(|of| *of != read.activations);
        }
        Ok(read)
    }
}

fn direction(word: &str) -> Result<Direction> {
    match word {
        "forward" => Ok(Direction::Forward),
        "reverse" => Ok(Direction::Reverse),
        "bidirectional" => Ok(Direction::Both),
        other => Err(Error::format(format!(
            "it has the direction {}; expected forward, reverse or bidirectional",
            quote(other)
        ))),
    }
}

fn layout(number: i64) -> Result<Layout> {
    match number {
        0 => Ok(Layout::TimeMajor),
        1 => Ok(Layout::BatchFirst),
        other => Err(Error::format(format!("it has the layout {other}; expected 0 or 1"))),
    }
}

/// Checks that an attribute has the type that ONNX requires. Some writers leave the type out.
fn check_type(attribute: &AttributeProto) -> Result<()> {
    let expected = match attribute.name.as_str() {
        "direction" => attribute_type::STRING,
        "activations" => attribute_type::STRINGS,
        "activation_alpha" | "activation_beta" => attribute_type::FLOATS,
        "clip" => attribute_type::FLOAT,
        _ => attribute_type::INT,
    };
    match attribute.r#type {
        0 => Ok(()),
        got if got == expected => Ok(()),
        got => Err(Error::format(format!(
            "its attribute {} has the ONNX type {got}, expected {expected}",
            quote(&attribute.name)
        ))),
    }
}

/// Decodes the UTF-8 of a string attribute.
fn text(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|error| Error::format_from("an attribute is not UTF-8", error))?;
    Ok(text.to_owned())
}

/// Returns the shape of a weight, or `None` if the input is not connected.
fn weight_shape(
    constants: &ConstantFolding<'_>,
    node: &NodeProto,
    index: usize,
) -> Result<Option<Vec<usize>>> {
    let Some(value) = node.connected(index) else { return Ok(None) };
    let shape = constants.known_shape(value).map_err(|error| in_input(index, error))?;
    shape.map(Some).map_err(|source| not_constant(index, &source))
}

/// Reads a weight. Returns `None` if the input is not connected.
fn weight(
    constants: &ConstantFolding<'_>,
    node: &NodeProto,
    index: usize,
    allow_non_finite: bool,
) -> Result<Option<ArrayD<f32>>> {
    let Some(value) = node.connected(index) else { return Ok(None) };
    let known = constants.known(value).map_err(|error| in_input(index, error))?;
    let value = match known {
        KnownValue::Constant(value) => value,
        KnownValue::AtRun(source) => return Err(not_constant(index, &source)),
    };
    let array = floats(&value).map_err(|error| in_input(index, error))?;
    constants.graph.storage.spend_budget(array.len())?;
    if !allow_non_finite {
        check_finite(INPUTS[index], array.iter())?;
    }
    Ok(Some(array.clone()))
}

fn not_constant(index: usize, source: &str) -> Error {
    Error::format(format!(
        "its {} depends on {source}; weights must be constants in the model, at most sliced, \
         concatenated or reordered",
        INPUTS[index]
    ))
}

fn floats(value: &Value) -> Result<&ArrayD<f32>> {
    let not_floats = || Error::format("its elements are integers; expected floats".to_owned());
    value.floats().ok_or_else(not_floats)
}

fn required<T>(found: Option<T>, name: &str) -> Result<T> {
    found.ok_or_else(|| {
        Error::format(format!("its input {name} is not connected; the operator GRU requires it"))
    })
}

fn expect_shape(what: &str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::format(format!("{what} has shape {got:?}, expected {expected:?}")))
}

fn unsupported(what: &str) -> Error {
    Error::format(format!("{what} is not supported"))
}

fn in_node(name: &str, error: Error) -> Error {
    in_part(&format!("the GRU node {}", quote(name)), error)
}

fn in_input(index: usize, error: Error) -> Error {
    in_part(&format!("its {}", INPUTS[index]), error)
}
