//! The operators by which exporters cut, join and rearrange weights, on arrays.

use std::ops::Range;
use std::rc::Rc;

use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};

use super::proto::{NodeProto, data_type};
use super::tensor::{MAX_AXES, Value};
use crate::error::{Error, Result};

fn misfit(what: &str) -> Error {
    Error::format(format!("{what} does not fit"))
}

/// The operators that only move numbers, and the one by which exporters find chosen.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Operation {
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

/// A node's inputs, `None` where one is not connected.
pub(super) type NodeInputs<'a> = &'a [Option<Rc<Value>>];

impl Operation {
    /// The operation of a node, or `None` for one that is not known here.
    pub fn of(node: &NodeProto) -> Option<Self> {
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

    /// The node's output of this index.
    pub fn run(self, node: &NodeProto, inputs: NodeInputs<'_>, output: usize) -> Result<Value> {
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
        inputs: NodeInputs<'_>,
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
    inputs: NodeInputs<'_>,
    index: usize,
) -> Result<Option<Vec<i64>>> {
    match inputs.get(index).and_then(Option::as_ref) {
        Some(value) => {
            let integers = value.integers().ok_or_else(|| misfit("an operand's type"))?;
            Ok(Some(integers.iter().copied().collect()))
        }
        None => node.integers(name),
    }
}

fn operand(node: &NodeProto, name: &str, inputs: NodeInputs<'_>, index: usize) -> Result<Vec<i64>> {
    let found = optional_operand(node, name, inputs, index)?;
    found.ok_or_else(|| Error::format(format!("its {name} is missing")))
}

/// An axis that may be counted from the end.
fn axis_of(axis: i64, axes: usize) -> Result<Axis> {
    let axis = if axis < 0 { axis.saturating_add(axes as i64) } else { axis };
    let axis = usize::try_from(axis).ok().filter(|&axis| axis < axes);
    axis.map(Axis).ok_or_else(|| misfit("an axis"))
}

fn sliced<T: Copy>(
    array: &ArrayD<T>,
    node: &NodeProto,
    inputs: NodeInputs<'_>,
) -> Result<ArrayD<T>> {
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
        let range = range(view.len_of(axis), start, end);
        view.slice_axis_inplace(axis, Slice::from(range));
    }
    Ok(view.to_owned())
}

fn unsqueezed<T: Copy>(array: &ArrayD<T>, axes: &[i64]) -> Result<ArrayD<T>> {
    let count = array.ndim() + axes.len();
    if count > MAX_AXES {
        return Err(misfit("the number of axes"));
    }
    let mut chosen = Vec::new();
    for &axis in axes {
        let axis = axis_of(axis, count)?;
        if chosen.contains(&axis) {
            return Err(misfit("an axis"));
        }
        chosen.push(axis);
    }
    chosen.sort();
    let unsqueezed = chosen.iter().try_fold(array.view(), |view, &axis| {
        (axis.index() <= view.ndim()).then(|| view.insert_axis(axis))
    });
    Ok(unsqueezed.ok_or_else(|| misfit("an axis"))?.to_owned())
}

fn squeezed<T: Copy>(array: &ArrayD<T>, axes: &[i64]) -> Result<ArrayD<T>> {
    let mut chosen = Vec::new();
    for &axis in axes {
        let axis = axis_of(axis, array.ndim())?;
        if array.len_of(axis) != 1 || chosen.contains(&axis) {
            return Err(misfit("an axis"));
        }
        chosen.push(axis);
    }
    chosen.sort();
    let view = chosen.iter().rev().fold(array.view(), |view, &axis| view.index_axis_move(axis, 0));
    Ok(view.to_owned())
}

fn transposed<T: Copy>(array: &ArrayD<T>, order: Option<Vec<i64>>) -> Result<ArrayD<T>> {
    let axes = array.ndim();
    let order = order.unwrap_or_else(|| (0..axes as i64).rev().collect());
    let mut chosen = Vec::new();
    for &axis in &order {
        let axis = axis_of(axis, axes)?.index();
        if chosen.contains(&axis) {
            return Err(misfit("an order of axes"));
        }
        chosen.push(axis);
    }
    if chosen.len() != axes {
        return Err(misfit("an order of axes"));
    }
    Ok(array.view().permuted_axes(IxDyn(&chosen)).to_owned())
}

fn reshaped<T: Copy>(array: &ArrayD<T>, shape: &[i64]) -> Result<ArrayD<T>> {
    if shape.len() > MAX_AXES {
        return Err(misfit("the number of axes"));
    }
    let size = |(axis, &size): (usize, &i64)| match size {
        0 => array.shape().get(axis).copied(),
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
    inputs: NodeInputs<'_>,
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
    let weights = || Error::format("weights that are multiplied are not supported".to_owned());
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
        _ => Err(Error::format(format!("a cast to ONNX's type {to} is not supported"))),
    }
}

/// The numbers of [`range`].
pub(super) fn part<T: Copy>(sizes: &[T], start: i64, end: i64) -> Vec<T> {
    sizes[range(sizes.len(), start, end)].to_vec()
}

/// From one place to before another, either counted from the end where it is negative; past either
/// end means that end.
pub(super) fn range(len: usize, start: i64, end: i64) -> Range<usize> {
    let len = len as i64;
    let place = |at: i64| (if at < 0 { at.saturating_add(len) } else { at }).clamp(0, len) as usize;
    let (start, end) = (place(start), place(end));
    start..end.max(start)
}
