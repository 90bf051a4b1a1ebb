//! Values that can be known without running a model: what it holds, and what exporters make of that by
//! cutting, joining and rearranging.
//!
//! PyTorch's exporter, for one, leaves weights as they were, and lets nodes put the gates in ONNX's order.

use std::rc::Rc;

use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};

use super::graph::{Graph, Maker};
use super::in_part;
use super::proto::{NodeProto, TensorHead, TensorProto, data_type};
use super::sizes;
use super::tensor::{self, MAX_AXES, Value};
use crate::error::{Error, Result, quote};

/// Deeper than any exporter nests, and far from what a stack holds.
const DEEPEST: usize = 64;

/// What is known of a value.
#[derive(Clone)]
pub(super) enum Known {
    Constant(Rc<Value>),
    /// It depends on this, in words, which is known when the model runs.
    AtRun(String),
}

impl Graph {
    /// What is known of a value.
    pub fn known(&self, value: &str) -> Result<Known> {
        self.known_at(value, 0)
    }

    fn known_at(&self, value: &str, depth: usize) -> Result<Known> {
        let made_of_itself = || Error::Format(format!("{} is made of itself", quote(value)));
        match self.known.borrow().get(value) {
            Some(Some(known)) => return Ok(known.clone()),
            Some(None) => return Err(made_of_itself()),
            None if depth == DEEPEST => {
                return Err(Error::Format(format!("{} is made of too much", quote(value))));
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

    fn make(&self, value: &str, depth: usize) -> Result<Known> {
        match self.maker(value)? {
            Maker::Input => Ok(Known::AtRun(format!("the input {}", quote(value)))),
            Maker::Initializer(tensor) => self.tensor(&self.look(&tensor)?),
            Maker::Node { index, output } => {
                let node = self.node(index)?;
                match node.op() {
                    "Constant" => return self.constant(&node),
                    "Shape" => return self.shape(&node),
                    _ => {}
                }
                let Some(operation) = Operation::of(&node) else {
                    let (value, op) = (quote(value), quote(&node.op_type));
                    return Ok(Known::AtRun(format!("{value}, which a node {op} makes")));
                };
                let mut inputs = Vec::new();
                for name in &node.input {
                    inputs.push(match name.as_str() {
                        "" => None,
                        name => match self.known_at(name, depth + 1)? {
                            Known::Constant(value) => Some(value),
                            at_run => return Ok(at_run),
                        },
                    });
                }
                let made = operation.run(&node, &inputs, output);
                let made = made.map_err(|error| in_part(&quote(value), error))?;
                self.storage.spend(made.floats_worth())?;
                Ok(Known::Constant(Rc::new(made)))
            }
        }
    }

    fn tensor(&self, tensor: &TensorProto) -> Result<Known> {
        tensor::value(tensor, &self.storage).map(|value| Known::Constant(Rc::new(value)))
    }

    /// A part of the shape of a value, where the model tells all of it.
    fn shape(&self, node: &NodeProto) -> Result<Known> {
        let of = node.connected(0).unwrap_or_default();
        let sizes = self.told_shape(of).unwrap_or_default();
        let (start, end) = (node.integer("start", 0)?, node.integer("end", i64::MAX)?);
        let part: Option<Vec<_>> = sizes::part(&sizes, start, end).into_iter().collect();
        Ok(match part.filter(|part| !part.is_empty()) {
            Some(part) => Known::Constant(Rc::new(Value::Integers(shaped(part, false)))),
            None => Known::AtRun(format!("the shape of {}", quote(of))),
        })
    }

    fn constant(&self, node: &NodeProto) -> Result<Known> {
        let known = |value| Ok(Known::Constant(Rc::new(value)));
        if let Some(attribute) = node.attribute("value")? {
            let empty = || Error::Format("a constant holds no tensor".to_owned());
            return self.tensor(&self.look(&attribute.t.ok_or_else(empty)?)?);
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
        Err(Error::Format(format!("the constant {} holds no numbers", quote(output))))
    }

    /// The shape of a value that must be known, without reading the numbers of one that is simply held.
    pub fn known_shape(&self, value: &str) -> Result<std::result::Result<Vec<usize>, String>> {
        if let Maker::Initializer(tensor) = self.maker(value)? {
            let head: TensorHead = self.look(&tensor)?;
            return Ok(Ok(tensor::shape(&head.dims)?.0));
        }
        Ok(match self.known(value)? {
            Known::Constant(value) => Ok(value.shape().to_vec()),
            Known::AtRun(words) => Err(words),
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
        if let Some((_, node)) = self.made_by(value)? {
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
                    return Ok(tensor::value(&self.look(&tensor)?, &self.storage)?.is_zeros());
                }
                _ => {}
            }
        }
        match self.known(value)? {
            Known::Constant(value) => {
                self.tire(value.floats_worth() as u64)?;
                Ok(value.is_zeros())
            }
            Known::AtRun(_) => Ok(false),
        }
    }
}

/// One number without an axis, or all along one.
fn shaped<T>(numbers: Vec<T>, scalar: bool) -> ArrayD<T> {
    let shape = if scalar { IxDyn(&[]) } else { IxDyn(&[numbers.len()]) };
    ArrayD::from_shape_vec(shape, numbers).expect("as many as the shape holds")
}

fn misfit(what: &str) -> Error {
    Error::Format(format!("{what} does not fit"))
}

/// The operators that only move numbers, and the one by which exporters find places.
#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Identity,
    Cast,
    Slice,
    Concat,
    Unsqueeze,
    Squeeze,
    Transpose,
    Reshape,
    Split,
    /// Of whole numbers.
    Mul,
}

type Inputs<'a> = &'a [Option<Rc<Value>>];

impl Operation {
    fn of(node: &NodeProto) -> Option<Self> {
        Some(match node.op() {
            "Identity" => Self::Identity,
            "Cast" => Self::Cast,
            "Slice" => Self::Slice,
            "Concat" => Self::Concat,
            "Unsqueeze" => Self::Unsqueeze,
            "Squeeze" => Self::Squeeze,
            "Transpose" => Self::Transpose,
            "Reshape" => Self::Reshape,
            "Split" => Self::Split,
            "Mul" => Self::Mul,
            _ => return None,
        })
    }

    fn run(self, node: &NodeProto, inputs: Inputs<'_>, output: usize) -> Result<Value> {
        let first = inputs.first().and_then(Option::as_ref).ok_or_else(|| misfit("no input"))?;
        match (&**first, self) {
            (value, Self::Cast) => cast(value, node.integer("to", 0)?),
            (value, Self::Mul) => multiplied(value, inputs.get(1).and_then(Option::as_ref)),
            (Value::Floats(_), _) => {
                let arrays: Option<Vec<_>> = inputs.iter().map(|i| i.as_ref()?.floats()).collect();
                self.moved(node, first.floats(), arrays, inputs, output).map(Value::Floats)
            }
            (Value::Integers(_), _) => {
                let arrays: Option<Vec<_>> =
                    inputs.iter().map(|i| i.as_ref()?.integers()).collect();
                self.moved(node, first.integers(), arrays, inputs, output).map(Value::Integers)
            }
        }
    }

    /// The first input's numbers in other places; with [`Self::Concat`] those of all.
    fn moved<T: Copy>(
        self,
        node: &NodeProto,
        first: Option<&ArrayD<T>>,
        all: Option<Vec<&ArrayD<T>>>,
        inputs: Inputs<'_>,
        output: usize,
    ) -> Result<ArrayD<T>> {
        let array = first.ok_or_else(|| misfit("an input"))?;
        let moved = match self {
            Self::Identity | Self::Cast | Self::Mul => array.clone(),
            Self::Slice => sliced(array, node, inputs)?,
            Self::Concat => {
                let all = all.ok_or_else(|| misfit("a part of another type"))?;
                let axis = axis_of(node.integer("axis", 0)?, array.ndim())?;
                // ndarray counts on this.
                let len = all.iter().try_fold(0usize, |len, part| {
                    let alike = part.ndim() == array.ndim();
                    alike.then(|| len.checked_add(part.len_of(axis))).flatten()
                });
                len.ok_or_else(|| misfit("a part to be joined"))?;
                let views: Vec<_> = all.iter().map(|array| array.view()).collect();
                concatenate(axis, &views).map_err(|_| misfit("a part to be joined"))?
            }
            Self::Unsqueeze => unsqueezed(array, &operand(node, "axes", inputs, 1)?)?,
            Self::Squeeze => squeezed(array, &operand(node, "axes", inputs, 1)?)?,
            Self::Transpose => transposed(array, node.integers("perm")?)?,
            // Where 0 is a size like any other there is nothing of that size.
            Self::Reshape if node.integer("allowzero", 0)? != 0 => return Err(misfit("a shape")),
            Self::Reshape => reshaped(array, &operand(node, "shape", inputs, 1)?)?,
            Self::Split => split(array, node, inputs, output)?,
        };
        Ok(moved.as_standard_layout().into_owned())
    }
}

/// Whole numbers that old opsets have as an attribute and new ones as an input.
fn optional_operand(
    node: &NodeProto,
    name: &str,
    inputs: Inputs<'_>,
    place: usize,
) -> Result<Option<Vec<i64>>> {
    match inputs.get(place).and_then(Option::as_ref) {
        Some(value) => {
            let integers = value.integers().ok_or_else(|| misfit("an operand's type"))?;
            Ok(Some(integers.iter().copied().collect()))
        }
        None => node.integers(name),
    }
}

fn operand(node: &NodeProto, name: &str, inputs: Inputs<'_>, place: usize) -> Result<Vec<i64>> {
    let found = optional_operand(node, name, inputs, place)?;
    found.ok_or_else(|| Error::Format(format!("its {name} is missing")))
}

/// An axis that may be counted from the end.
fn axis_of(axis: i64, axes: usize) -> Result<Axis> {
    let axis = if axis < 0 { axis.saturating_add(axes as i64) } else { axis };
    let axis = usize::try_from(axis).ok().filter(|&axis| axis < axes);
    axis.map(Axis).ok_or_else(|| misfit("an axis"))
}

fn sliced<T: Copy>(array: &ArrayD<T>, node: &NodeProto, inputs: Inputs<'_>) -> Result<ArrayD<T>> {
    let starts = operand(node, "starts", inputs, 1)?;
    let ends = operand(node, "ends", inputs, 2)?;
    let axes = optional_operand(node, "axes", inputs, 3)?;
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = optional_operand(node, "steps", inputs, 4)?;
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.iter().any(|&s| s != 1) {
        return Err(misfit("a cut"));
    }
    let mut view = array.view();
    for ((&start, &end), &axis) in starts.iter().zip(&ends).zip(&axes) {
        let axis = axis_of(axis, array.ndim())?;
        let range = sizes::range(view.len_of(axis), start, end);
        view.slice_axis_inplace(axis, Slice::from(range));
    }
    Ok(view.to_owned())
}

fn unsqueezed<T: Copy>(array: &ArrayD<T>, axes: &[i64]) -> Result<ArrayD<T>> {
    let count = array.ndim() + axes.len();
    if count > MAX_AXES {
        return Err(misfit("the number of axes"));
    }
    let mut places = Vec::new();
    for &axis in axes {
        let axis = axis_of(axis, count)?;
        if places.contains(&axis) {
            return Err(misfit("an axis"));
        }
        places.push(axis);
    }
    places.sort();
    let unsqueezed = places.iter().try_fold(array.view(), |view, &axis| {
        (axis.index() <= view.ndim()).then(|| view.insert_axis(axis))
    });
    Ok(unsqueezed.ok_or_else(|| misfit("an axis"))?.to_owned())
}

fn squeezed<T: Copy>(array: &ArrayD<T>, axes: &[i64]) -> Result<ArrayD<T>> {
    let mut places = Vec::new();
    for &axis in axes {
        let axis = axis_of(axis, array.ndim())?;
        if array.len_of(axis) != 1 || places.contains(&axis) {
            return Err(misfit("an axis"));
        }
        places.push(axis);
    }
    places.sort();
    let view = places.iter().rev().fold(array.view(), |view, &axis| view.index_axis_move(axis, 0));
    Ok(view.to_owned())
}

fn transposed<T: Copy>(array: &ArrayD<T>, order: Option<Vec<i64>>) -> Result<ArrayD<T>> {
    let axes = array.ndim();
    let order = order.unwrap_or_else(|| (0..axes as i64).rev().collect());
    let mut places = Vec::new();
    for &axis in &order {
        let axis = axis_of(axis, axes)?.index();
        if places.contains(&axis) {
            return Err(misfit("an order of axes"));
        }
        places.push(axis);
    }
    if places.len() != axes {
        return Err(misfit("an order of axes"));
    }
    Ok(array.view().permuted_axes(IxDyn(&places)).to_owned())
}

fn reshaped<T: Copy>(array: &ArrayD<T>, shape: &[i64]) -> Result<ArrayD<T>> {
    if shape.len() > MAX_AXES {
        return Err(misfit("the number of axes"));
    }
    let size = |(place, &size): (usize, &i64)| match size {
        0 => array.shape().get(place).copied(),
        -1 => Some(1), // found below
        size => usize::try_from(size).ok(),
    };
    let sizes: Option<Vec<usize>> = shape.iter().enumerate().map(size).collect();
    let mut sizes = sizes.ok_or_else(|| misfit("a shape"))?;
    if let Some(open) = shape.iter().position(|&size| size == -1) {
        let rest = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let found = rest.filter(|&rest| rest > 0).map(|rest| array.len() / rest);
        sizes[open] = found.ok_or_else(|| misfit("a shape"))?;
    }
    let standard = array.as_standard_layout().into_owned();
    standard.into_shape_with_order(IxDyn(&sizes)).map_err(|_| misfit("a shape"))
}

fn split<T: Copy>(
    array: &ArrayD<T>,
    node: &NodeProto,
    inputs: Inputs<'_>,
    output: usize,
) -> Result<ArrayD<T>> {
    let axis = axis_of(node.integer("axis", 0)?, array.ndim())?;
    let (len, parts) = (array.len_of(axis), node.output.len());
    let sizes = match optional_operand(node, "split", inputs, 1)? {
        Some(sizes) => sizes,
        // As even as it goes, the last one shorter.
        None => {
            let each = len.div_ceil(parts.max(1)) as i64;
            (0..parts as i64).map(|i| each.min(len as i64 - i * each).max(0)).collect()
        }
    };
    let mut first = 0usize;
    for (part, size) in sizes.into_iter().enumerate() {
        let end = usize::try_from(size).ok().and_then(|size| first.checked_add(size));
        let end = end.filter(|&end| end <= len).ok_or_else(|| misfit("a part"))?;
        if part == output {
            return Ok(array.slice_axis(axis, Slice::from(first..end)).to_owned());
        }
        first = end;
    }
    Err(misfit("the number of parts"))
}

/// Whole numbers by whole numbers, of which one may be alone.
fn multiplied(value: &Value, by: Option<&Rc<Value>>) -> Result<Value> {
    let weights = || Error::Format("weights that are multiplied are not supported".to_owned());
    let by = by.and_then(|by| by.integers());
    let (a, b) = value.integers().zip(by).ok_or_else(weights)?;
    let (many, one) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let factor = one.first().filter(|_| one.len() == 1).ok_or_else(|| misfit("a factor"))?;
    Ok(Value::Integers(many.mapv(|number| number.saturating_mul(*factor))))
}

/// The numbers as another type would hold them.
fn cast(value: &Value, to: i64) -> Result<Value> {
    let through = |round: fn(f32) -> f32| match value {
        Value::Floats(floats) => Value::Floats(floats.mapv(round)),
        Value::Integers(integers) => Value::Floats(integers.mapv(|i| round(i as f32))),
    };
    match i32::try_from(to).unwrap_or_default() {
        data_type::FLOAT | data_type::DOUBLE => Ok(through(|number| number)),
        data_type::FLOAT16 => Ok(through(|number| half::f16::from_f32(number).to_f32())),
        data_type::BFLOAT16 => Ok(through(|number| half::bf16::from_f32(number).to_f32())),
        // In 32 bits numbers go round.
        data_type::INT32 => cast(value, data_type::INT64.into()).map(|value| match value {
            Value::Integers(integers) => Value::Integers(integers.mapv(|i| i64::from(i as i32))),
            floats => floats,
        }),
        data_type::INT64 => Ok(Value::Integers(match value {
            Value::Floats(floats) => floats.mapv(|number| number as i64),
            Value::Integers(integers) => integers.clone(),
        })),
        _ => Err(Error::Format(format!("a cast to ONNX's type {to} is not supported"))),
    }
}
