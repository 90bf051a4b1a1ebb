//! Values that can be known without running a model: what it holds, and what exporters make of that
//! by cutting, joining and rearranging.
//!
//! PyTorch's exporter, for one, leaves weights as they were, and lets nodes put the gates in ONNX's
//! order.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use ndarray::{ArrayD, IxDyn};

use super::graph::{Graph, Producer};
use super::operations::{Operation, part};
use super::proto::{NodeProto, TensorHead, TensorProto, in_part};
use super::tensor::{self, Value};
use crate::error::{Error, Result, quote};

/// Deeper than any exporter nests, and far from what a stack holds.
const DEEPEST: usize = 64;

/// What is known of a value.
#[derive(Clone)]
pub(super) enum KnownValue {
    Constant(Rc<Value>),
    /// It depends on this, in words, which is known when the model runs.
    AtRun(String),
}

/// A graph, and what was found out about its values so far.
pub(super) struct ConstantFolding<'a> {
    pub graph: &'a Graph,
    /// `None` while a value is being computed.
    known: RefCell<HashMap<String, Option<KnownValue>>>,
}

impl<'a> ConstantFolding<'a> {
    pub fn of(graph: &'a Graph) -> Self {
        Self { graph, known: RefCell::default() }
    }

    /// What is known of a value.
    pub fn known(&self, value: &str) -> Result<KnownValue> {
        self.known_at(value, 0)
    }

    /// Whole numbers, where they are known and no input's default.
    pub fn integers(&self, value: &str) -> Result<Option<Vec<i64>>> {
        if matches!(self.graph.producer(value)?, Producer::Input) {
            return Ok(None);
        }
        Ok(match self.known(value)? {
            KnownValue::Constant(value) => {
                value.integers().map(|all| all.iter().copied().collect())
            }
            KnownValue::AtRun(_) => None,
        })
    }

    fn known_at(&self, value: &str, depth: usize) -> Result<KnownValue> {
        let cyclic = || Error::format(format!("{} is made of itself", quote(value)));
        match self.known.borrow().get(value) {
            Some(Some(known)) => return Ok(known.clone()),
            Some(None) => return Err(cyclic()),
            None if depth == DEEPEST => {
                return Err(Error::format(format!("{} is made of too much", quote(value))));
            }
            None => {}
        }
        self.known.borrow_mut().insert(value.to_owned(), None);
        let known = self.make(value, depth);
        match &known {
            Ok(known) => self.known.borrow_mut().insert(value.to_owned(), Some(known.clone())),
            // What else asks for it is told the same.
            Err(_) => self.known.borrow_mut().remove(value),
        };
        known
    }

    fn make(&self, value: &str, depth: usize) -> Result<KnownValue> {
        match self.graph.producer(value)? {
            Producer::Input => Ok(KnownValue::AtRun(format!("the input {}", quote(value)))),
            Producer::Initializer(tensor) => self.tensor(&self.graph.decode(&tensor)?),
            Producer::Node { index, output } => {
                let node = self.graph.node(index)?;
                match node.op() {
                    "Constant" => return self.constant(&node),
                    "Shape" => return self.shape(&node),
                    _ => {}
                }
                let Some(operation) = Operation::of(&node) else {
                    let (value, op) = (quote(value), quote(&node.op_type));
                    return Ok(KnownValue::AtRun(format!("{value}, which a node {op} makes")));
                };
                let mut inputs = Vec::new();
                for name in &node.input {
                    inputs.push(match name.as_str() {
                        "" => None,
                        name => match self.known_at(name, depth + 1)? {
                            KnownValue::Constant(value) => Some(value),
                            at_run => return Ok(at_run),
                        },
                    });
                }
                let made = operation.run(&node, &inputs, output);
                let made = made.map_err(|error| in_part(&quote(value), error))?;
                self.graph.storage.spend(made.floats_worth())?;
                Ok(KnownValue::Constant(Rc::new(made)))
            }
        }
    }

    fn tensor(&self, tensor: &TensorProto) -> Result<KnownValue> {
        tensor::value(tensor, &self.graph.storage).map(|value| KnownValue::Constant(Rc::new(value)))
    }

    /// A part of the shape of a value, where the model tells all of it.
    fn shape(&self, node: &NodeProto) -> Result<KnownValue> {
        let of = node.connected(0).unwrap_or_default();
        let sizes = self.graph.stated_shape(of).unwrap_or_default();
        let (start, end) = (node.integer("start", 0)?, node.integer("end", i64::MAX)?);
        let part: Option<Vec<_>> = part(&sizes, start, end).into_iter().collect();
        Ok(match part.filter(|part| !part.is_empty()) {
            Some(part) => KnownValue::Constant(Rc::new(Value::Integers(shaped(part, false)))),
            None => KnownValue::AtRun(format!("the shape of {}", quote(of))),
        })
    }

    fn constant(&self, node: &NodeProto) -> Result<KnownValue> {
        let known = |value| Ok(KnownValue::Constant(Rc::new(value)));
        if let Some(attribute) = node.attribute("value")? {
            let empty = || Error::format("a constant holds no tensor".to_owned());
            return self.tensor(&self.graph.decode(&attribute.t.ok_or_else(empty)?)?);
        }
        for (name, scalar) in [("value_int", true), ("value_ints", false)] {
            if let Some(attribute) = node.attribute(name)? {
                let ints = if scalar { vec![attribute.i] } else { attribute.ints };
                return known(Value::Integers(shaped(ints, scalar)));
            }
        }
        for (name, scalar) in [("value_float", true), ("value_floats", false)] {
            if let Some(attribute) = node.attribute(name)? {
                let floats = if scalar { vec![attribute.f] } else { attribute.floats };
                return known(Value::Floats(shaped(floats, scalar)));
            }
        }
        let output = node.output.first().map_or("", String::as_str);
        Err(Error::format(format!("the constant {} holds no numbers", quote(output))))
    }

    /// The shape of a value that must be known, without reading the numbers of one that is simply
    /// held.
    pub fn known_shape(&self, value: &str) -> Result<std::result::Result<Vec<usize>, String>> {
        if let Producer::Initializer(tensor) = self.graph.producer(value)? {
            let head: TensorHead = self.graph.decode(&tensor)?;
            return Ok(Ok(tensor::shape(&head.dims)?.0));
        }
        Ok(match self.known(value)? {
            KnownValue::Constant(value) => Ok(value.shape().to_vec()),
            KnownValue::AtRun(words) => Err(words),
        })
    }

    /// Whether a value is zeros, of whatever shape: exporters expand them to the batch at hand.
    pub fn is_zeros(&self, value: &str) -> Result<bool> {
        self.is_zeros_at(value, 0)
    }

    fn is_zeros_at(&self, value: &str, depth: usize) -> Result<bool> {
        if depth == DEEPEST {
            return Ok(false);
        }
        if let Some((_, node)) = self.graph.produced_by(value)? {
            let first = node.connected(0).unwrap_or_default();
            match node.op() {
                "Expand" | "Tile" | "Gather" | "Slice" | "Reshape" | "Unsqueeze" | "Squeeze"
                | "Transpose" | "Identity" | "Cast" | "Split" => {
                    return self.is_zeros_at(first, depth + 1);
                }
                "Concat" => {
                    for name in &node.input {
                        if !self.is_zeros_at(name, depth + 1)? {
                            return Ok(false);
                        }
                    }
                    return Ok(true);
                }
                "ConstantOfShape" => {
                    let Some(attribute) = node.attribute("value")? else { return Ok(true) };
                    let Some(tensor) = attribute.t else { return Ok(false) };
                    return Ok(tensor::value(&self.graph.decode(&tensor)?, &self.graph.storage)?
                        .is_zeros());
                }
                _ => {}
            }
        }
        match self.known(value)? {
            KnownValue::Constant(value) => {
                self.graph.spend_effort(value.floats_worth() as u64)?;
                Ok(value.is_zeros())
            }
            KnownValue::AtRun(_) => Ok(false),
        }
    }
}

/// One number without an axis, or all along one.
fn shaped<T>(numbers: Vec<T>, scalar: bool) -> ArrayD<T> {
    let shape = if scalar { IxDyn(&[]) } else { IxDyn(&[numbers.len()]) };
    ArrayD::from_shape_vec(shape, numbers).expect("as many as the shape holds")
}
