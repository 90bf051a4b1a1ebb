//! Constant folding: the values that are known without running a model. These are its constants,
//! and the results of nodes that slice, concatenate or rearrange constants.
//!
//! Exporters need this: PyTorch's, for example, keeps the weights unchanged and adds nodes that
//! bring the gates into ONNX's order.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use ndarray::{ArrayD, IxDyn};

use super::graph::{Graph, Producer};
use super::operations::{Operation, slice};
use super::proto::{NodeProto, TensorHead, TensorProto, in_part};
use super::tensor::{self, Value};
use crate::error::{Error, Result, quote};

/// The longest chain of nodes that is followed: longer than any exporter's, and short enough for
/// the call stack.
const MAX_DEPTH: usize = 64;

/// A value, as far as it is known without running the model.
#[derive(Clone)]
pub(super) enum KnownValue {
    /// The value is a constant.
    Constant(Rc<Value>),
    /// The value is known only when the model runs. The text names the source of the value.
    AtRun(String),
}

/// Folds the constants of a graph. Caches the values found so far.
pub(super) struct ConstantFolding<'a> {
    pub graph: &'a Graph,
    /// The values found so far, by name. `None` marks a value that is being computed.
    known: RefCell<HashMap<String, Option<KnownValue>>>,
}

impl<'a> ConstantFolding<'a> {
    pub fn new(graph: &'a Graph) -> Self {
        Self { graph, known: RefCell::default() }
    }

    /// Returns a value, as far as it is known.
    pub fn known(&self, value: &str) -> Result<KnownValue> {
        self.known_at(value, 0)
    }

    /// Returns the integers of a value, or `None` if they are not known. A model input is not
    /// known, even if it has a default value.
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
        let cyclic = || Error::format(format!("{} depends on itself", quote(value)));
        match self.known.borrow().get(value) {
            Some(Some(known)) => return Ok(known.clone()),
            Some(None) => return Err(cyclic()),
            None if depth == MAX_DEPTH => {
                let value = quote(value);
                return Err(Error::format(format!(
                    "{value} is the result of more than {MAX_DEPTH} nodes in a row; expected fewer"
                )));
            }
            None => {}
        }
        self.known.borrow_mut().insert(value.to_owned(), None);
        let known = self.fold(value, depth);
        match &known {
            Ok(known) => self.known.borrow_mut().insert(value.to_owned(), Some(known.clone())),
            // The next request computes the value again and gets the same error.
            Err(_) => self.known.borrow_mut().remove(value),
        };
        known
    }

    /// Computes a value from its producer.
    fn fold(&self, value: &str, depth: usize) -> Result<KnownValue> {
        match self.graph.producer(value)? {
            Producer::Input => Ok(KnownValue::AtRun(format!("the input {}", quote(value)))),
            Producer::Initializer(tensor) => self.tensor(&self.graph.decode(&tensor)?),
            Producer::Node { index, output } => {
                let node = self.graph.node(index)?;
                match node.op() {
                    "Constant" => return self.constant(&node),
                    "Shape" => return self.shape(&node),
                    "Expand" => return self.expand(&node, depth),
                    "ConstantOfShape" => return self.constant_of_shape(&node, depth),
                    _ => {}
                }
                let Some(operation) = Operation::of(&node) else {
                    let (value, op) = (quote(value), quote(&node.op_type));
                    return Ok(KnownValue::AtRun(format!("{value}, the output of a node {op}")));
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
                let result = operation.run(&node, &inputs, output);
                let result = result.map_err(|error| in_part(&quote(value), error))?;
                self.graph.storage.spend_budget(result.len_in_f32())?;
                Ok(KnownValue::Constant(Rc::new(result)))
            }
        }
    }

    /// Evaluates an Expand node: broadcasts its first input to a shape.
    fn expand(&self, node: &NodeProto, depth: usize) -> Result<KnownValue> {
        let input = |index: usize| node.connected(index).unwrap_or_default();
        let value = match self.known_at(input(0), depth + 1)? {
            KnownValue::Constant(value) => value,
            at_run => return Ok(at_run),
        };
        let target = match self.shape_operand(input(1), depth)? {
            Ok(target) => target,
            Err(source) => return Ok(KnownValue::AtRun(source)),
        };
        let wrong = || {
            let from = value.shape();
            Error::format(format!("an array of shape {from:?} cannot be expanded to {target:?}"))
        };
        let shape = broadcast_shape(value.shape(), &target).ok_or_else(wrong)?;
        self.spend_elements(&shape)?;
        let dim = IxDyn(&shape);
        Ok(KnownValue::Constant(Rc::new(match &*value {
            Value::Floats(floats) => {
                Value::Floats(floats.broadcast(dim).ok_or_else(wrong)?.to_owned())
            }
            Value::Integers(integers) => {
                Value::Integers(integers.broadcast(dim).ok_or_else(wrong)?.to_owned())
            }
        })))
    }

    /// Evaluates a ConstantOfShape node: an array filled with one number, 0 by default.
    fn constant_of_shape(&self, node: &NodeProto, depth: usize) -> Result<KnownValue> {
        let target = match self.shape_operand(node.connected(0).unwrap_or_default(), depth)? {
            Ok(target) => target,
            Err(source) => return Ok(KnownValue::AtRun(source)),
        };
        self.spend_elements(&target)?;
        let fill = match node.attribute("value")?.and_then(|attribute| attribute.t) {
            None => Value::Floats(shaped(vec![0.0], false)),
            Some(tensor) => tensor::value(&self.graph.decode(&tensor)?, &self.graph.storage)?,
        };
        let empty = || Error::format("its value holds no number".to_owned());
        let dim = IxDyn(&target);
        Ok(KnownValue::Constant(Rc::new(match &fill {
            Value::Floats(floats) => {
                Value::Floats(ArrayD::from_elem(dim, *floats.first().ok_or_else(empty)?))
            }
            Value::Integers(integers) => {
                Value::Integers(ArrayD::from_elem(dim, *integers.first().ok_or_else(empty)?))
            }
        })))
    }

    /// Returns the sizes that a value holds, or the source of a value that is not constant.
    fn shape_operand(
        &self,
        value: &str,
        depth: usize,
    ) -> Result<std::result::Result<Vec<usize>, String>> {
        let wrong = || Error::format(format!("{} is no shape", quote(value)));
        match self.known_at(value, depth + 1)? {
            KnownValue::AtRun(source) => Ok(Err(source)),
            KnownValue::Constant(value) => {
                let sizes: Vec<_> = value.integers().ok_or_else(wrong)?.iter().copied().collect();
                Ok(Ok(tensor::shape(&sizes)?.0))
            }
        }
    }

    /// Charges an array of this shape to the memory budget, before it is made.
    fn spend_elements(&self, shape: &[usize]) -> Result<()> {
        let count = shape.iter().try_fold(2usize, |product, &size| product.checked_mul(size));
        self.graph.storage.spend_budget(count.unwrap_or(usize::MAX / 8))
    }

    fn tensor(&self, tensor: &TensorProto) -> Result<KnownValue> {
        tensor::value(tensor, &self.graph.storage).map(|value| KnownValue::Constant(Rc::new(value)))
    }

    /// Evaluates a Shape node, if the model states all sizes that it returns.
    fn shape(&self, node: &NodeProto) -> Result<KnownValue> {
        let input = node.connected(0).unwrap_or_default();
        let sizes = self.graph.stated_shape(input).unwrap_or_default();
        let (start, end) = (node.integer("start", 0)?, node.integer("end", i64::MAX)?);
        let shape: Option<Vec<_>> = slice(&sizes, start, end).into_iter().collect();
        Ok(match shape.filter(|shape| !shape.is_empty()) {
            Some(shape) => KnownValue::Constant(Rc::new(Value::Integers(shaped(shape, false)))),
            None => KnownValue::AtRun(format!("the shape of {}", quote(input))),
        })
    }

    /// Evaluates a Constant node.
    fn constant(&self, node: &NodeProto) -> Result<KnownValue> {
        let known = |value| Ok(KnownValue::Constant(Rc::new(value)));
        if let Some(attribute) = node.attribute("value")? {
            let empty = || {
                Error::format("the attribute value of a Constant node holds no tensor".to_owned())
            };
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
        Err(Error::format(format!("the Constant node of {} holds no numbers", quote(output))))
    }

    /// Returns the shape of a constant, or the source of a value that is not constant. Does not
    /// read the elements of an initializer.
    pub fn known_shape(&self, value: &str) -> Result<std::result::Result<Vec<usize>, String>> {
        if let Producer::Initializer(tensor) = self.graph.producer(value)? {
            let head: TensorHead = self.graph.decode(&tensor)?;
            return Ok(Ok(tensor::shape(&head.dims)?.0));
        }
        Ok(match self.known(value)? {
            KnownValue::Constant(value) => Ok(value.shape().to_vec()),
            KnownValue::AtRun(source) => Err(source),
        })
    }

    /// True if a value is all zeros, even if its shape is not known: exporters expand zeros to the
    /// batch size at run time.
    pub fn is_zeros(&self, value: &str) -> Result<bool> {
        self.is_zeros_at(value, 0)
    }

    fn is_zeros_at(&self, value: &str, depth: usize) -> Result<bool> {
        if depth == MAX_DEPTH {
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
                self.graph.spend_budget(value.len_in_f32() as u64)?;
                Ok(value.is_zeros())
            }
            KnownValue::AtRun(_) => Ok(false),
        }
    }
}

/// Makes an array without axes from one number, or with one axis from several.
fn shaped<T>(numbers: Vec<T>, scalar: bool) -> ArrayD<T> {
    let shape = if scalar { IxDyn(&[]) } else { IxDyn(&[numbers.len()]) };
    ArrayD::from_shape_vec(shape, numbers).expect("the shape has the numbers' length")
}

/// Returns the shape of an array of `shape` after it is broadcast together with `target`, as
/// ONNX's Expand does.
fn broadcast_shape(shape: &[usize], target: &[usize]) -> Option<Vec<usize>> {
    let axes = shape.len().max(target.len());
    let size =
        |of: &[usize], axis: usize| (axis + of.len()).checked_sub(axes).map_or(1, |axis| of[axis]);
    (0..axes)
        .map(|axis| match (size(shape, axis), size(target, axis)) {
            (1, other) | (other, 1) => Some(other),
            (a, b) => (a == b).then_some(a),
        })
        .collect()
}
