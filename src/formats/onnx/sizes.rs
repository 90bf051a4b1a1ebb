//! Shape inference for a Reshape between two layers. Exporters compute its target sizes from shapes
//! when the model runs; this module finds which axis each size belongs to.

use std::collections::HashMap;

use super::constants::ConstantFolding;
use super::operations::slice;
use super::proto::{NodeProto, data_type};
use crate::error::Result;
use crate::spec::config::GruConfig;

/// An axis of a value on the path from one layer's Y to the next layer's X.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Axis {
    Time,
    Batch,
    Direction,
    Hidden,
    /// The concatenated directions, of size D·H: the feature axis that a layer reads.
    Features,
}

/// A size, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// A number. In a Reshape, 0 keeps the input's size and −1 is inferred from the rest.
    Number(i64),
    /// The unknown size of an axis.
    SizeOf(Axis),
}

/// The longest chain of nodes that is followed: longer than any exporter's.
const MAX_DEPTH: usize = 24;
/// The longest list of sizes that is followed: longer than any shape.
const MAX_SIZES: usize = 8;

/// The axes and sizes that are known on the path from one GRU.
pub(super) struct ShapeInference<'a> {
    constants: &'a ConstantFolding<'a>,
    config: &'a GruConfig,
    /// The axes of the values on the path, by name.
    axes: HashMap<String, Vec<Axis>>,
    /// T and B, if the model states them.
    known: HashMap<Axis, i64>,
}

impl<'a> ShapeInference<'a> {
    pub fn new(constants: &'a ConstantFolding<'a>, config: &'a GruConfig) -> Self {
        Self { constants, config, axes: HashMap::new(), known: HashMap::new() }
    }

    /// The number of directions D of the GRU.
    pub fn directions(&self) -> usize {
        self.config.directions()
    }

    /// Records the axes of a value on the path.
    pub fn set_axes(&mut self, value: &str, axes: &[Axis]) {
        self.axes.insert(value.to_owned(), axes.to_vec());
        for (axis, size) in
            std::iter::zip(axes, self.constants.graph.stated_shape(value).unwrap_or_default())
        {
            if matches!(axis, Axis::Time | Axis::Batch) {
                self.known.extend(size.map(|size| (*axis, size)));
            }
        }
    }

    /// Returns the size of an axis: a number if it is known.
    fn size_of(&self, axis: Axis) -> Size {
        let (directions, hidden) = (self.directions() as i64, self.config.hidden_size as i64);
        match axis {
            Axis::Time | Axis::Batch => {
                self.known.get(&axis).map_or(Size::SizeOf(axis), |&size| Size::Number(size))
            }
            Axis::Direction => Size::Number(directions),
            Axis::Hidden => Size::Number(hidden),
            Axis::Features => Size::Number(directions * hidden),
        }
    }

    /// Returns the axes after a Reshape that joins the axes of directions and units of a value with
    /// four axes. Returns `None` if it is not certain that the Reshape does exactly that.
    pub fn reshaped(&self, axes: &[Axis], target: &[Size]) -> Option<Vec<Axis>> {
        let is_single = self.directions() == 1;
        let [first, second] = match *axes {
            [first, second, Axis::Direction, Axis::Hidden] => [first, second],
            // The direction axis of size 1 may be anywhere.
            [first, Axis::Direction, second, Axis::Hidden]
            | [Axis::Direction, first, second, Axis::Hidden]
                if is_single =>
            {
                [first, second]
            }
            _ => return None,
        };
        let expected = [first, second, Axis::Features];
        let &[_, _, _] = target else { return None };
        let is_inferred = |&size: &Size| size == Size::Number(-1);
        let fits = |(index, (&size, &axis)): (usize, (&Size, &Axis))| match size {
            Size::Number(-1) => true,
            Size::Number(0) => axes[index] == axis,
            size => size == Size::SizeOf(axis) || size == self.size_of(axis),
        };
        let inferred = target.iter().filter(|size| is_inferred(size)).count();
        let all_fit = target.iter().zip(&expected).enumerate().all(fits);
        (inferred <= 1 && all_fit).then(|| expected.to_vec())
    }

    /// Evaluates a value of integers. Returns `None` if it cannot be known.
    pub fn evaluate(&self, value: &str) -> Result<Option<Vec<Size>>> {
        self.evaluate_at(value, 0)
    }

    fn evaluate_at(&self, value: &str, depth: usize) -> Result<Option<Vec<Size>>> {
        if let Some(numbers) = self.constants.integers(value)? {
            let sizes =
                numbers.iter().take(MAX_SIZES).map(|&number| Size::Number(number)).collect();
            return Ok(Some(sizes).filter(|_| numbers.len() <= MAX_SIZES));
        }
        let produced_by = self.constants.graph.produced_by(value)?.filter(|_| depth < MAX_DEPTH);
        let Some((_, node)) = produced_by else { return Ok(None) };
        if node.op() == "Shape" {
            return self.shape(&node);
        }
        let mut inputs = Vec::new();
        if node.input.len() > MAX_SIZES {
            return Ok(None);
        }
        for name in &node.input {
            // An input that is not connected keeps its index.
            if name.is_empty() {
                inputs.push(None);
                continue;
            }
            match self.evaluate_at(name, depth + 1)? {
                Some(sizes) => inputs.push(Some(sizes)),
                None => return Ok(None),
            }
        }
        let result = evaluate_node(&node, &inputs)?;
        Ok(result.filter(|sizes| sizes.len() <= MAX_SIZES))
    }

    /// Evaluates a Shape node.
    fn shape(&self, node: &NodeProto) -> Result<Option<Vec<Size>>> {
        let axes = node.connected(0).and_then(|value| self.axes.get(value));
        let Some(axes) = axes else { return Ok(None) };
        let sizes: Vec<_> = axes.iter().map(|&axis| self.size_of(axis)).collect();
        let (start, end) = (node.integer("start", 0)?, node.integer("end", i64::MAX)?);
        Ok(Some(slice(&sizes, start, end)))
    }
}

/// Evaluates a node whose inputs are sizes. Does not distinguish a scalar from a list of one.
fn evaluate_node(node: &NodeProto, inputs: &[Option<Vec<Size>>]) -> Result<Option<Vec<Size>>> {
    let input = |index: usize| inputs.get(index).and_then(Option::as_ref);
    let number = |index: usize| match input(index)?[..] {
        [Size::Number(number)] => Some(number),
        _ => None,
    };
    let Some(first) = input(0) else { return Ok(None) };
    Ok(match node.op() {
        "Cast" if !casts_to_integers(node)? => None,
        "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" => Some(first.clone()),
        "Concat" => inputs.iter().cloned().collect::<Option<Vec<_>>>().map(|sizes| sizes.concat()),
        "Mul" => match (number(0), number(1)) {
            (Some(a), Some(b)) => a.checked_mul(b).map(|product| vec![Size::Number(product)]),
            _ => None,
        },
        "Gather" => number(1).and_then(|index| {
            let index = if index < 0 { index.checked_add(first.len() as i64)? } else { index };
            first.get(usize::try_from(index).ok()?).map(|&size| vec![size])
        }),
        "Slice" if input(4).is_none() || number(4) == Some(1) => match (number(1), number(2)) {
            (Some(start), Some(end)) => Some(slice(first, start, end)),
            _ => None,
        },
        _ => None,
    })
}

/// True if a Cast keeps the values of sizes. A cast to bool, for example, does not.
fn casts_to_integers(node: &NodeProto) -> Result<bool> {
    let to = node.integer("to", 0)?;
    Ok([data_type::INT32, data_type::INT64].map(i64::from).contains(&to))
}
