//! A GRU node: what it computes, and its weights as cells.

use ndarray::{Array3, ArrayD, Axis, Ix2, Ix3};
use prost::Message;

use super::Given;
use super::decode;
use super::graph::{Graph, Origin};
use super::proto::{AttributeProto, NodeProto, TensorHead, TensorProto};
use super::tensor;
use crate::config::{Activation, Bias, Direction, GruConfig, Layout, Reset};
use crate::error::{Error, Result, quote};
use crate::formats::Cell;
use crate::formats::files::check_finite;

/// The places of a node's inputs.
pub(super) mod input {
    pub const X: usize = 0;
    pub const W: usize = 1;
    pub const R: usize = 2;
    pub const B: usize = 3;
    pub const LENGTHS: usize = 4;
    pub const H0: usize = 5;
}

/// What the node is called in messages: the operator's input of each place.
const INPUTS: [&str; 6] = ["X", "W", "R", "B", "sequence_lens", "initial_h"];

pub(super) struct GruNode {
    pub name: String,
    proto: NodeProto,
    /// Of one layer, z keeps.
    pub config: GruConfig,
    pub layout: Layout,
}

impl GruNode {
    /// Whether a node is one of ONNX's own GRUs.
    pub fn is_gru(node: &NodeProto) -> bool {
        node.op_type == "GRU" && matches!(node.domain.as_str(), "" | "ai.onnx")
    }

    /// Reads everything but the weights' numbers.
    pub fn read(graph: &Graph, name: &str, proto: NodeProto) -> Result<Self> {
        Self::read_parts(graph, name, proto).map_err(|error| in_node(name, error))
    }

    fn read_parts(graph: &Graph, name: &str, proto: NodeProto) -> Result<Self> {
        let attributes = Attributes::read(&proto)?;
        let direction = attributes.direction;
        let shape = |place: usize| -> Result<Option<Vec<usize>>> {
            let tensor = weight::<TensorHead>(graph, &proto, place)?;
            let shape = tensor.map(|tensor| tensor::shape(&tensor.dims)).transpose();
            Ok(shape.map_err(|error| in_input(place, error))?.map(|(shape, _)| shape))
        };
        let w = required(shape(input::W)?, "W")?;
        let r = required(shape(input::R)?, "R")?;
        let (&[_, _, input_size], &[_, _, hidden]) = (&w[..], &r[..]) else {
            return Err(Error::Format(format!(
                "W and R have shapes {w:?} and {r:?}; expected three axes each"
            )));
        };
        let gates = hidden.checked_mul(3);
        let gates = gates.ok_or_else(|| Error::Format(format!("R has the shape {r:?}")))?;
        expect_shape("W [D, 3H, I]", &w, &[direction.count(), gates, input_size])?;
        expect_shape("R [D, 3H, H]", &r, &[direction.count(), gates, hidden])?;
        if let Some(stated) = attributes.hidden_size.filter(|&size| size != hidden as i64) {
            let reason = format!("its hidden_size is {stated}, but R has the shape {r:?}");
            return Err(Error::Format(reason));
        }
        let bias = shape(input::B)?;
        if let Some(b) = &bias {
            expect_shape("B [D, 6H]", b, &[direction.count(), gates.saturating_mul(2)])?;
        }
        let config = GruConfig::pytorch(input_size, hidden)
            .with_reset(attributes.reset)
            .with_direction(direction)
            .with_activations(attributes.gate, attributes.candidate)
            .with_bias(if bias.is_some() { Bias::Two } else { Bias::None });
        config.validate()?;
        Ok(Self { name: name.to_owned(), proto, config, layout: attributes.layout })
    }

    /// The name of all its states, where somebody asks for them.
    pub fn y(&self) -> Option<&str> {
        self.proto.output.first().map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The name of an input, where it is connected.
    pub fn input(&self, place: usize) -> Option<&str> {
        connected(&self.proto, place)
    }

    /// The weights of each direction.
    pub fn cells(&self, graph: &Graph, allow_non_finite: bool) -> Result<Vec<Cell>> {
        self.read_cells(graph, allow_non_finite).map_err(|error| in_node(&self.name, error))
    }

    fn read_cells(&self, graph: &Graph, allow_non_finite: bool) -> Result<Vec<Cell>> {
        let array = |place: usize| -> Result<Option<ArrayD<f32>>> {
            let tensor = weight::<TensorProto>(graph, &self.proto, place)?;
            let Some(tensor) = tensor else { return Ok(None) };
            let array = tensor::floats(&tensor, &graph.storage);
            let array = array.map_err(|error| in_input(place, error))?;
            if !allow_non_finite {
                check_finite(INPUTS[place], array.iter())?;
            }
            Ok(Some(array))
        };
        let three =
            |array: ArrayD<f32>| array.into_dimensionality::<Ix3>().expect("as was checked");
        let w = three(required(array(input::W)?, "W")?);
        let r = three(required(array(input::R)?, "R")?);
        let b = array(input::B)?;
        let b = b.map(|b| b.into_dimensionality::<Ix2>().expect("as was checked"));
        (0..self.config.directions())
            .map(|d| {
                let bias = b.as_ref().map(|b| b.row(d));
                Cell::from_onnx(w.index_axis(Axis(0), d), r.index_axis(Axis(0), d), bias)
            })
            .collect()
    }

    /// The states that the node starts from, `[D, B, H]`.
    pub fn h0(&self, graph: &Graph, allow_non_finite: bool) -> Result<Given<Array3<f32>>> {
        self.given(graph, input::H0, |tensor| {
            let h0 = tensor::floats(tensor, &graph.storage)?;
            if !allow_non_finite {
                check_finite(INPUTS[input::H0], h0.iter())?;
            }
            let shape = h0.shape().to_vec();
            let wrong = |_| Error::Format(format!("its shape is {shape:?}; expected three axes"));
            let h0 = h0.into_dimensionality::<Ix3>().map_err(wrong)?;
            let h0 = match self.layout {
                Layout::TimeMajor => h0,
                Layout::BatchFirst => h0.permuted_axes([1, 0, 2]),
            };
            let (_, batch, _) = h0.dim();
            let expected = [self.config.directions(), batch, self.config.hidden_size];
            expect_shape("its [D, B, H]", h0.shape(), &expected)?;
            Ok(h0.as_standard_layout().into_owned())
        })
    }

    /// The lengths of the rows, `[B]`.
    pub fn lengths(&self, graph: &Graph) -> Result<Given<Vec<usize>>> {
        self.given(graph, input::LENGTHS, |tensor| {
            let lengths = tensor::integers(tensor, &graph.storage)?;
            let length = |&length: &i64| {
                let wrong = |_| Error::Format(format!("it holds the length {length}"));
                usize::try_from(length).map_err(wrong)
            };
            lengths.iter().map(length).collect()
        })
    }

    fn given<T>(
        &self,
        graph: &Graph,
        place: usize,
        read: impl FnOnce(&TensorProto) -> Result<T>,
    ) -> Result<Given<T>> {
        let Some(value) = self.input(place) else { return Ok(Given::Nothing) };
        let given = match graph.origin(value) {
            Ok(Origin::Constant(tensor)) => {
                decode(&tensor).and_then(|tensor| read(&tensor)).map(Given::Constant)
            }
            Ok(Origin::AtRun(words)) => Ok(Given::AtRun(words)),
            Err(error) => Err(error),
        };
        given.map_err(|error| in_node(&self.name, in_input(place, error)))
    }
}

/// A node's attributes, all of them known and possible.
struct Attributes {
    direction: Direction,
    reset: Reset,
    layout: Layout,
    hidden_size: Option<i64>,
    gate: Activation,
    candidate: Activation,
}

impl Attributes {
    fn read(node: &NodeProto) -> Result<Self> {
        let mut read = Self {
            direction: Direction::Forward,
            reset: Reset::Before,
            layout: Layout::TimeMajor,
            hidden_size: None,
            gate: Activation::Sigmoid,
            candidate: Activation::Tanh,
        };
        let (mut functions, mut alphas, mut betas) = (None, Vec::new(), Vec::new());
        for attribute in &node.attribute {
            let attribute: AttributeProto = decode(attribute)?;
            match attribute.name.as_str() {
                "direction" => read.direction = direction(&text(&attribute.s)?)?,
                "linear_before_reset" => {
                    read.reset = if attribute.i == 0 { Reset::Before } else { Reset::After }
                }
                "layout" => read.layout = layout(attribute.i)?,
                "hidden_size" => read.hidden_size = Some(attribute.i),
                "activations" => functions = Some(attribute.strings),
                "activation_alpha" => alphas = attribute.floats,
                "activation_beta" => betas = attribute.floats,
                "clip" if attribute.f >= f32::MAX => {}
                "clip" => return Err(unsupported(&format!("its clip of {}", attribute.f))),
                // Of opsets before 7: whether Y is wanted.
                "output_sequence" => {}
                other => return Err(unsupported(&format!("its attribute {}", quote(other)))),
            }
        }
        if let Some(functions) = functions {
            let all = activations(&functions, &alphas, &betas)?;
            let expected = 2 * read.direction.count();
            if all.len() != expected {
                let reason = format!("it has {} activations; expected {expected}", all.len());
                return Err(Error::Format(reason));
            }
            if all[..2] != all[all.len() - 2..] {
                return Err(unsupported("its directions' different activations"));
            }
            (read.gate, read.candidate) = (all[0], all[1]);
        }
        Ok(read)
    }
}

fn direction(word: &str) -> Result<Direction> {
    match word {
        "forward" => Ok(Direction::Forward),
        "reverse" => Ok(Direction::Reverse),
        "bidirectional" => Ok(Direction::Both),
        other => Err(Error::Format(format!("it has the direction {}", quote(other)))),
    }
}

fn layout(number: i64) -> Result<Layout> {
    match number {
        0 => Ok(Layout::TimeMajor),
        1 => Ok(Layout::BatchFirst),
        other => Err(Error::Format(format!("it has the layout {other}"))),
    }
}

/// Each activation of a node, with the α and β that those before it have left.
fn activations(
    functions: &[prost::bytes::Bytes],
    alphas: &[f32],
    betas: &[f32],
) -> Result<Vec<Activation>> {
    let (mut alphas, mut betas) = (alphas.iter().copied(), betas.iter().copied());
    let all = functions.iter().take(5).map(|function| {
        let name = text(function)?;
        let (mut alpha, mut beta) =
            (|default| alphas.next().unwrap_or(default), |default| betas.next().unwrap_or(default));
        // As ONNX Runtime does, in any case of letters.
        let (known, parameters) = match name.to_ascii_lowercase().as_str() {
            "sigmoid" => (Some(Activation::Sigmoid), None),
            "tanh" => (Some(Activation::Tanh), None),
            "relu" => (Some(Activation::Relu), None),
            "hardsigmoid" => {
                let given = (alpha(0.2), beta(0.5));
                (Some(Activation::HardSigmoid).filter(|_| given == (0.2, 0.5)), Some(given))
            }
            "affine" => {
                let given = (alpha(1.0), beta(0.0));
                (Some(Activation::Identity).filter(|_| given == (1.0, 0.0)), Some(given))
            }
            "scaledtanh" => {
                let given = (alpha(1.0), beta(1.0));
                (Some(Activation::Tanh).filter(|_| given == (1.0, 1.0)), Some(given))
            }
            _ => (None, None),
        };
        known.ok_or_else(|| match parameters {
            Some((alpha, beta)) => {
                unsupported(&format!("its activation {name} of alpha {alpha} and beta {beta}"))
            }
            None => unsupported(&format!("its activation {}", quote(&name))),
        })
    });
    all.collect()
}

fn text(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| Error::Format("an attribute's text is no text".to_owned()))?;
    Ok(text.to_owned())
}

fn connected(node: &NodeProto, place: usize) -> Option<&str> {
    node.input.get(place).map(String::as_str).filter(|name| !name.is_empty())
}

/// A tensor that the model must hold, where the input is connected; or a part of its message.
fn weight<M: Message + Default>(
    graph: &Graph,
    node: &NodeProto,
    place: usize,
) -> Result<Option<M>> {
    let Some(value) = connected(node, place) else { return Ok(None) };
    match graph.origin(value).map_err(|error| in_input(place, error))? {
        Origin::Constant(tensor) => decode(&tensor).map(Some),
        Origin::AtRun(words) => Err(Error::Format(format!(
            "its {} is {words}; the model must hold it (fold its constants first)",
            INPUTS[place]
        ))),
    }
}

fn required<T>(found: Option<T>, name: &str) -> Result<T> {
    found.ok_or_else(|| Error::Format(format!("its {name} is not connected")))
}

fn expect_shape(what: &str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Format(format!("{what} has shape {got:?}, expected {expected:?}")))
}

fn unsupported(what: &str) -> Error {
    Error::Format(format!("{what} is not supported"))
}

fn in_node(name: &str, error: Error) -> Error {
    in_part(&format!("the GRU node {}", quote(name)), error)
}

fn in_input(place: usize, error: Error) -> Error {
    in_part(&format!("its {}", INPUTS[place]), error)
}

fn in_part(part: &str, error: Error) -> Error {
    match error {
        Error::Format(reason) => Error::Format(format!("{part}: {reason}")),
        other => other,
    }
}
