//! The sizes that a Reshape between two layers asks for, which exporters compute from shapes when
//! the model runs: which axis each is the size of.

use std::collections::HashMap;

use super::constants::ConstantFolding;
use super::operations::part;
use super::proto::{NodeProto, data_type};
use crate::error::Result;
use crate::spec::config::GruConfig;

/// An axis of a value on the path from a Y to an X.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Axis {
    Time,
    Batch,
    Direction,
    Hidden,
    /// Directions beside each other, each of H: what a layer reads.
    Features,
}

/// A size, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// In a Reshape, 0 is the size that there was, and −1 what is left.
    Number(i64),
    /// However many there are.
    Of(Axis),
}

/// Deeper than exporters nest, and more numbers than a shape has.
const DEEPEST: usize = 24;
const LONGEST: usize = 8;

/// Which sizes are known on the path from one GRU.
pub(super) struct ShapeInference<'a> {
    constants: &'a ConstantFolding<'a>,
    config: &'a GruConfig,
    /// The axes of the values on the path.
    axes: HashMap<String, Vec<Axis>>,
    /// T and B, where the model tells them.
    known: HashMap<Axis, i64>,
}

impl<'a> ShapeInference<'a> {
    pub fn new(constants: &'a ConstantFolding<'a>, config: &'a GruConfig) -> Self {
        Self { constants, config, axes: HashMap::new(), known: HashMap::new() }
    }

    /// D of the GRU.
    pub fn directions(&self) -> usize {
        self.config.directions()
    }

    /// A value on the path has these axes.
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

    /// The size of an axis: a number where it is known.
    fn of(&self, axis: Axis) -> Size {
        let (directions, hidden) = (self.directions() as i64, self.config.hidden_size as i64);
        match axis {
            Axis::Time | Axis::Batch => {
                self.known.get(&axis).map_or(Size::Of(axis), |&size| Size::Number(size))
            }
            Axis::Direction => Size::Number(directions),
            Axis::Hidden => Size::Number(hidden),
            Axis::Features => Size::Number(directions * hidden),
        }
    }

    /// The axes of four that a Reshape makes into three, the last two of them one; or `None` when
    /// that is not sure to be what it does.
    pub fn reshaped(&self, axes: &[Axis], target: &[Size]) -> Option<Vec<Axis>> {
        let is_single = self.directions() == 1;
        let [first, second] = match *axes {
            [first, second, Axis::Direction, Axis::Hidden] => [first, second],
            // An axis of 1 may stand anywhere.
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
        let is_open = |&size: &Size| size == Size::Number(-1);
        let fits = |(index, (&size, &axis)): (usize, (&Size, &Axis))| match size {
            Size::Number(-1) => true,
            Size::Number(0) => axes[index] == axis,
            size => size == Size::Of(axis) || size == self.of(axis),
        };
        let open = target.iter().filter(|size| is_open(size)).count();
        let all_fit = target.iter().zip(&expected).enumerate().all(fits);
        (open <= 1 && all_fit).then(|| expected.to_vec())
    }

    /// What a value of whole numbers is; `None` when that cannot be known.
    pub fn evaluate(&self, value: &str) -> Result<Option<Vec<Size>>> {
        self.evaluate_at(value, 0)
    }

    fn evaluate_at(&self, value: &str, depth: usize) -> Result<Option<Vec<Size>>> {
        if let Some(numbers) = self.constants.integers(value)? {
            let sizes = numbers.iter().take(LONGEST).map(|&number| Size::Number(number)).collect();
            return Ok(Some(sizes).filter(|_| numbers.len() <= LONGEST));
        }
        let produced_by = self.constants.graph.produced_by(value)?.filter(|_| depth < DEEPEST);
        let Some((_, node)) = produced_by else { return Ok(None) };
        if node.op() == "Shape" {
            return self.shape(&node);
        }
        let mut inputs = Vec::new();
        if node.input.len() > LONGEST {
            return Ok(None);
        }
        for name in &node.input {
            // Not connected, an input keeps its index.
            if name.is_empty() {
                inputs.push(None);
                continue;
            }
            match self.evaluate_at(name, depth + 1)? {
                Some(sizes) => inputs.push(Some(sizes)),
                None => return Ok(None),
            }
        }
        let made = computed(&node, &inputs)?;
        Ok(made.filter(|sizes| sizes.len() <= LONGEST))
    }

    fn shape(&self, node: &NodeProto) -> Result<Option<Vec<Size>>> {
        let axes = node.connected(0).and_then(|value| self.axes.get(value));
        let Some(axes) = axes else { return Ok(None) };
        let sizes: Vec<_> = axes.iter().map(|&axis| self.of(axis)).collect();
        let (start, end) = (node.integer("start", 0)?, node.integer("end", i64::MAX)?);
        Ok(Some(part(&sizes, start, end)))
    }
}

/// What an operator makes of sizes; a number alone and a list of one are the same here.
fn computed(node: &NodeProto, inputs: &[Option<Vec<Size>>]) -> Result<Option<Vec<Size>>> {
    let input = |index: usize| inputs.get(index).and_then(Option::as_ref);
    let number = |index: usize| match input(index)?[..] {
        [Size::Number(number)] => Some(number),
        _ => None,
    };
    let Some(first) = input(0) else { return Ok(None) };
    Ok(match node.op() {
        "Cast" if !casts_to_integers(node)? => None,
        "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Reshape" => Some(first.clone()),
        "Concat" => inputs.iter().cloned().collect::<Option<Vec<_>>>().map(|parts| parts.concat()),
        "Mul" => match (number(0), number(1)) {
            (Some(a), Some(b)) => a.checked_mul(b).map(|product| vec![Size::Number(product)]),
            _ => None,
        },
        "Gather" => number(1).and_then(|at| {
            let at = if at < 0 { at.checked_add(first.len() as i64)? } else { at };
            first.get(usize::try_from(at).ok()?).map(|&size| vec![size])
        }),
        "Slice" if input(4).is_none() || number(4) == Some(1) => match (number(1), number(2)) {
            (Some(start), Some(end)) => Some(part(first, start, end)),
            _ => None,
        },
        _ => None,
    })
}

/// Whether sizes stay what they are; as truth values, for one, they do not.
fn casts_to_integers(node: &NodeProto) -> Result<bool> {
    let to = node.integer("to", 0)?;
    Ok([data_type::INT32, data_type::INT64].map(i64::from).contains(&to))
}
