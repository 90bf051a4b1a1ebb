//! The operators with which exporters slice, concatenate and rearrange weights, on arrays.

use std::ops::Range;
use std::rc::Rc;

use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};

use super::proto::{NodeProto, data_type};
use super::tensor::{MAX_AXES, Value};
use crate::error::{Error, Result};

/// The supported operators. All of them only move elements, except Cast, DequantizeLinear, and Mul,
/// with which exporters compute indices.
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
    /// Mul of integers.
    Mul,
    DequantizeLinear,
}

/// The values of a node's inputs; `None` for an input that is not connected.
pub(super) type NodeInputs<'a> = &'a [Option<Rc<Value>>];

impl Operation {
    /// Returns the operation of a node, or `None` if it is not supported.
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
            "DequantizeLinear" => Self::DequantizeLinear,
            _ => return None,
        })
    }

    /// Computes the node's output with index `output`.
    pub fn run(self, node: &NodeProto, inputs: NodeInputs<'_>, output: usize) -> Result<Value> {
        let first = inputs
            .first()
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::format("its first input is not connected"))?;
        match (&**first, self) {
            (value, Self::Cast) => cast(value, node.integer("to", 0)?),
            (value, Self::DequantizeLinear) => dequantized(value, node, inputs),
            (value, Self::Mul) => multiplied(value, inputs.get(1).and_then(Option::as_ref)),
            (Value::Floats(_), _) => {
                let arrays: Option<Vec<_>> = inputs.iter().map(|i| i.as_ref()?.floats()).collect();
                self.rearranged(node, first.floats(), arrays, inputs, output).map(Value::Floats)
            }
            (Value::Integers(_), _) => {
                let arrays: Option<Vec<_>> =
                    inputs.iter().map(|i| i.as_ref()?.integers()).collect();
                self.rearranged(node, first.integers(), arrays, inputs, output).map(Value::Integers)
            }
        }
    }

    /// Rearranges the elements of the first input, or of all inputs with [`Self::Concat`].
    fn rearranged<T: Copy>(
        self,
        node: &NodeProto,
        first: Option<&ArrayD<T>>,
        all: Option<Vec<&ArrayD<T>>>,
        inputs: NodeInputs<'_>,
        output: usize,
    ) -> Result<ArrayD<T>> {
        let array = first.ok_or_else(|| Error::format("its first input has another type"))?;
        let moved = match self {
            Self::Identity | Self::Cast | Self::Mul | Self::DequantizeLinear => array.clone(),
            Self::Slice => sliced(array, node, inputs)?,
            Self::Concat => {
                let all = all.ok_or_else(|| {
                    Error::format(
                        "the inputs to concatenate have different types or are not connected",
                    )
                })?;
                let axis = axis_of(node.integer("axis", 0)?, array.ndim())?;
                let misfit =
                    || Error::format("the inputs to concatenate have shapes that do not fit");
                // ndarray panics if the number of axes differs or the length overflows.
                let len = all.iter().try_fold(0usize, |len, part| {
                    let same_axes = part.ndim() == array.ndim();
                    same_axes.then(|| len.checked_add(part.len_of(axis))).flatten()
                });
                len.ok_or_else(misfit)?;
                let views: Vec<_> = all.iter().map(|array| array.view()).collect();
                concatenate(axis, &views).map_err(|_| misfit())?
            }
            Self::Unsqueeze => unsqueezed(array, &operand(node, "axes", inputs, 1)?)?,
            Self::Squeeze => squeezed(array, &operand(node, "axes", inputs, 1)?)?,
            Self::Transpose => transposed(array, node.integers("perm")?)?,
            Self::Reshape if node.integer("allowzero", 0)? != 0 => {
                return Err(Error::format("Reshape with allowzero is not supported"));
            }
            Self::Reshape => reshaped(array, &operand(node, "shape", inputs, 1)?)?,
            Self::Split => split(array, node, inputs, output)?,
        };
        Ok(moved.as_standard_layout().into_owned())
    }
}

/// Returns integers that are an attribute in old opsets and an input in new opsets.
fn optional_operand(
    node: &NodeProto,
    name: &str,
    inputs: NodeInputs<'_>,
    index: usize,
) -> Result<Option<Vec<i64>>> {
    match inputs.get(index).and_then(Option::as_ref) {
        Some(value) => {
            let integers = value.integers().ok_or_else(|| {
                Error::format(format!("its input {name} has floats; expected integers"))
            })?;
            Ok(Some(integers.iter().copied().collect()))
        }
        None => node.integers(name),
    }
}

fn operand(node: &NodeProto, name: &str, inputs: NodeInputs<'_>, index: usize) -> Result<Vec<i64>> {
    let found = optional_operand(node, name, inputs, index)?;
    found.ok_or_else(|| Error::format(format!("its {name} is missing")))
}

/// Returns the axis of an index, which counts from the end if it is negative.
fn axis_of(index: i64, axes: usize) -> Result<Axis> {
    let axis = if index < 0 { index.saturating_add(axes as i64) } else { index };
    let axis = usize::try_from(axis).ok().filter(|&axis| axis < axes);
    axis.map(Axis).ok_or_else(|| {
        Error::format(format!("axis {index} does not exist in an array of {axes} axes"))
    })
}

fn repeated_axis(axis: i64) -> Error {
    Error::format(format!("axis {axis} is given twice"))
}

fn too_many_axes(axes: usize) -> Error {
    Error::format(format!("it has {axes} axes; expected at most {MAX_AXES}"))
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
        return Err(Error::format(
            "its starts, ends and axes have different lengths, or a step is not 1",
        ));
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
        return Err(too_many_axes(count));
    }
    let mut chosen = Vec::new();
    for &index in axes {
        let axis = axis_of(index, count)?;
        if chosen.contains(&axis) {
            return Err(repeated_axis(index));
        }
        chosen.push(axis);
    }
    chosen.sort();
    let unsqueezed = chosen.iter().try_fold(array.view(), |view, &axis| {
        (axis.index() <= view.ndim()).then(|| view.insert_axis(axis))
    });
    let wrong =
        || Error::format(format!("its axes {axes:?} do not fit an array of {} axes", array.ndim()));
    Ok(unsqueezed.ok_or_else(wrong)?.to_owned())
}

fn squeezed<T: Copy>(array: &ArrayD<T>, axes: &[i64]) -> Result<ArrayD<T>> {
    let mut chosen = Vec::new();
    for &index in axes {
        let axis = axis_of(index, array.ndim())?;
        if array.len_of(axis) != 1 {
            let size = array.len_of(axis);
            return Err(Error::format(format!(
                "axis {index} to squeeze has size {size}, expected 1"
            )));
        }
        if chosen.contains(&axis) {
            return Err(repeated_axis(index));
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
    for &index in &order {
        let axis = axis_of(index, axes)?.index();
        if chosen.contains(&axis) {
            return Err(repeated_axis(index));
        }
        chosen.push(axis);
    }
    if chosen.len() != axes {
        let count = chosen.len();
        return Err(Error::format(format!("its perm has {count} axes, expected {axes}")));
    }
    Ok(array.view().permuted_axes(IxDyn(&chosen)).to_owned())
}

fn reshaped<T: Copy>(array: &ArrayD<T>, shape: &[i64]) -> Result<ArrayD<T>> {
    if shape.len() > MAX_AXES {
        return Err(too_many_axes(shape.len()));
    }
    let misfit = || {
        let from = array.shape();
        Error::format(format!("an array of shape {from:?} cannot be reshaped to {shape:?}"))
    };
    let size = |(axis, &size): (usize, &i64)| match size {
        0 => array.shape().get(axis).copied(),
        -1 => Some(1), // replaced below
        size => usize::try_from(size).ok(),
    };
    let sizes: Option<Vec<usize>> = shape.iter().enumerate().map(size).collect();
    let mut sizes = sizes.ok_or_else(misfit)?;
    if let Some(inferred) = shape.iter().position(|&size| size == -1) {
        let rest = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let found = rest.filter(|&rest| rest > 0).map(|rest| array.len() / rest);
        sizes[inferred] = found.ok_or_else(misfit)?;
    }
    let standard = array.as_standard_layout().into_owned();
    standard.into_shape_with_order(IxDyn(&sizes)).map_err(|_| misfit())
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
        // Equal sizes; the last one may be smaller.
        None => {
            let each = len.div_ceil(parts.max(1)) as i64;
            (0..parts as i64).map(|i| each.min(len as i64 - i * each).max(0)).collect()
        }
    };
    let mut first = 0usize;
    for (part, size) in sizes.into_iter().enumerate() {
        let end = usize::try_from(size).ok().and_then(|size| first.checked_add(size));
        let end = end.filter(|&end| end <= len).ok_or_else(|| {
            Error::format(format!("its split does not fit an axis of size {len}"))
        })?;
        if part == output {
            return Ok(array.slice_axis(axis, Slice::from(first..end)).to_owned());
        }
        first = end;
    }
    Err(Error::format(format!("its split has no size for output {output}")))
}

/// Multiplies integers elementwise by a single integer.
fn multiplied(value: &Value, by: Option<&Rc<Value>>) -> Result<Value> {
    let weights = || Error::format("weights that are multiplied are not supported".to_owned());
    let by = by.and_then(|by| by.integers());
    let (a, b) = value.integers().zip(by).ok_or_else(weights)?;
    let (many, one) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let factor = one
        .first()
        .filter(|_| one.len() == 1)
        .ok_or_else(|| Error::format("neither factor of Mul is a single number"))?;
    Ok(Value::Integers(many.mapv(|number| number.saturating_mul(*factor))))
}

/// Returns (x − zero point) · scale. Scale and zero point are single numbers, or have one for each
/// index of the axis.
fn dequantized(value: &Value, node: &NodeProto, inputs: NodeInputs<'_>) -> Result<Value> {
    if node.integer("block_size", 0)? != 0 {
        return Err(Error::format("DequantizeLinear with a block_size is not supported"));
    }
    let integers = value.integers();
    let x = integers.ok_or_else(|| Error::format("its x has floats; expected integers"))?;
    let input = |index: usize| inputs.get(index).and_then(Option::as_ref);
    let scale = input(1).and_then(|scale| scale.floats());
    let scale = scale.ok_or_else(|| Error::format("its x_scale has no floats"))?;
    let zero = input(2).map(|zero| {
        let zero = zero.integers();
        zero.ok_or_else(|| Error::format("its x_zero_point has floats; expected integers"))
    });
    let zero = zero.transpose()?;
    let along = match scale.len() {
        1 => None,
        _ => Some(axis_of(node.integer("axis", 1)?, x.ndim())?),
    };
    let expected = along.map_or(1, |axis| x.len_of(axis));
    if scale.len() != expected || zero.is_some_and(|zero| zero.len() != expected) {
        return Err(Error::format(format!(
            "its x_scale or x_zero_point does not fit x; expected {expected} numbers"
        )));
    }
    let scales: Vec<_> = scale.iter().copied().collect();
    let zeros: Vec<_> =
        zero.map_or_else(|| vec![0; expected], |zero| zero.iter().copied().collect());
    Ok(Value::Floats(ArrayD::from_shape_fn(x.raw_dim(), |at| {
        let along = along.map_or(0, |axis| at[axis.index()]);
        x[&at].saturating_sub(zeros[along]) as f32 * scales[along]
    })))
}

/// Casts the elements to an ONNX data type and keeps them as f32 or i64.
fn cast(value: &Value, to: i64) -> Result<Value> {
    let through = |round: fn(f32) -> f32| match value {
        Value::Floats(floats) => Value::Floats(floats.mapv(round)),
        Value::Integers(integers) => Value::Floats(integers.mapv(|i| round(i as f32))),
    };
    match i32::try_from(to).unwrap_or_default() {
        data_type::FLOAT | data_type::DOUBLE => Ok(through(|number| number)),
        data_type::FLOAT16 => Ok(through(|number| half::f16::from_f32(number).to_f32())),
        data_type::BFLOAT16 => Ok(through(|number| half::bf16::from_f32(number).to_f32())),
        // Casts to 32 bits wrap around.
        data_type::INT32 => cast(value, data_type::INT64.into()).map(|value| match value {
            Value::Integers(integers) => Value::Integers(integers.mapv(|i| i64::from(i as i32))),
            floats => floats,
        }),
        data_type::INT64 => Ok(Value::Integers(match value {
            Value::Floats(floats) => floats.mapv(|number| number as i64),
            Value::Integers(integers) => integers.clone(),
        })),
        _ => Err(Error::format(format!("a Cast to the ONNX data type {to} is not supported"))),
    }
}

/// Returns the elements in [`range`].
pub(super) fn slice<T: Copy>(sizes: &[T], start: i64, end: i64) -> Vec<T> {
    sizes[range(sizes.len(), start, end)].to_vec()
}

/// Returns the indices from `start` to before `end`, as ONNX's Slice does: a negative index counts
/// from the end, and an index past either end is clamped to it.
pub(super) fn range(len: usize, start: i64, end: i64) -> Range<usize> {
    let len = len as i64;
    let clamp = |at: i64| (if at < 0 { at.saturating_add(len) } else { at }).clamp(0, len) as usize;
    let (start, end) = (clamp(start), clamp(end));
    start..end.max(start)
}
