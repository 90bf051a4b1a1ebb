//! Groups GRU nodes into stacks. A GRU is the layer above another if its X is the other's Y with
//! only the axes rearranged.

use std::collections::{HashMap, HashSet};

use super::constants::{ConstantFolding, KnownValue};
use super::node::{GruNode, input};
use super::proto::NodeProto;
use super::sizes::{Axis, ShapeInference};
use crate::error::Result;
use crate::spec::config::{GruConfig, Layout};

/// The most nodes between two layers: more than exporters write.
const MAX_PATH: usize = 16;

/// Groups the GRUs, by index, into stacks of one or more layers, first layer first.
pub(super) fn stacks(constants: &ConstantFolding<'_>, grus: &[Result<GruNode>]) -> Vec<Vec<usize>> {
    // The GRU that produces each Y, by the Y's name.
    let producers: HashMap<_, _> = (grus.iter().enumerate())
        .filter_map(|(index, gru)| Some((gru.as_ref().ok()?.y()?, index)))
        .collect();
    let mut below = vec![None; grus.len()];
    let mut readers = vec![0; grus.len()];
    for (index, gru) in grus.iter().enumerate() {
        let Ok(gru) = gru else { continue };
        // A path that cannot be followed makes no stack. Its error is returned if the node is read.
        let Ok(Some((path, y))) = path_back(constants, gru) else { continue };
        let Some(&producer) = producers.get(y.as_str()) else { continue };
        let Ok(other) = &grus[producer] else { continue };
        if is_layer_below(constants, other, gru, &path).unwrap_or(false) {
            below[index] = Some(producer);
            readers[producer] += 1;
        }
    }
    // A GRU that several others read is not in a stack with any of them.
    let layer_below = |index: usize| below[index].filter(|&below| readers[below] == 1);
    let mut next = vec![None; grus.len()];
    for index in 0..grus.len() {
        if let Some(below) = layer_below(index) {
            next[below] = Some(index);
        }
    }
    let firsts = (0..grus.len()).filter(|&index| layer_below(index).is_none());
    let stack = |first| std::iter::successors(Some(first), |&index: &usize| next[index]);
    let mut stacks: Vec<Vec<_>> = firsts.map(|first| stack(first).collect()).collect();
    // GRUs in a cycle have no first layer. Each becomes a stack of its own.
    let mut is_in_stack = vec![false; grus.len()];
    stacks.iter().flatten().for_each(|&index| is_in_stack[index] = true);
    stacks.extend((0..grus.len()).filter(|&index| !is_in_stack[index]).map(|index| vec![index]));
    stacks
}

/// True if `below` is the layer below `gru` in one stack. `path` leads from its Y to `gru`'s X.
fn is_layer_below(
    constants: &ConstantFolding<'_>,
    below: &GruNode,
    gru: &GruNode,
    path: &[PathNode],
) -> Result<bool> {
    let GruConfig { input_size, bias, .. } = gru.config;
    let width = below.config.directions() * below.config.hidden_size;
    // If only one of them has a bias, the other's counts as zeros.
    let same_config = GruConfig { input_size, bias, ..below.config.clone() } == gru.config;
    Ok(same_config
        && input_size == width
        && same_lengths(constants, below, gru)?
        && !starts_from_a_gru(constants, gru)?
        && preserves_elements(constants, below, gru, path)?)
}

/// True if two GRUs read the same value as lengths, or equal constants.
fn same_lengths(constants: &ConstantFolding<'_>, one: &GruNode, other: &GruNode) -> Result<bool> {
    match (one.input(input::LENGTHS), other.input(input::LENGTHS)) {
        (None, None) => Ok(true),
        (Some(one), Some(other)) if one == other => Ok(true),
        (Some(one), Some(other)) => match (constants.known(one)?, constants.known(other)?) {
            (KnownValue::Constant(one), KnownValue::Constant(other)) => {
                Ok(one.integers().is_some() && one.integers() == other.integers())
            }
            _ => Ok(false),
        },
        _ => Ok(false),
    }
}

/// True if a GRU's first state depends on the output of a recurrent node, as a decoder's on its
/// encoder.
fn starts_from_a_gru(constants: &ConstantFolding<'_>, gru: &GruNode) -> Result<bool> {
    let mut values: Vec<_> = gru.input(input::H0).map(str::to_owned).into_iter().collect();
    let mut seen = HashSet::new();
    while let Some(value) = values.pop() {
        let Some((_, node)) = constants.graph.produced_by(&value)? else { continue };
        if !seen.insert(value) {
            continue;
        }
        match node.op() {
            "GRU" | "LSTM" | "RNN" => return Ok(true),
            // Their inner graphs are not read and may use any value.
            "If" | "Loop" | "Scan" => return Ok(true),
            // A shape does not depend on the elements.
            "Shape" | "Size" => {}
            _ => values.extend(node.input),
        }
    }
    Ok(false)
}

/// A node between two GRUs, and the name of the value that it rearranges.
struct PathNode {
    node: NodeProto,
    from: String,
}

/// Follows a GRU's X back to the GRU that it comes from. Returns the nodes between them, in the
/// order of the data flow, and the name of that GRU's output.
fn path_back(
    constants: &ConstantFolding<'_>,
    gru: &GruNode,
) -> Result<Option<(Vec<PathNode>, String)>> {
    let Some(x) = gru.input(input::X) else { return Ok(None) };
    let (mut value, mut path) = (x.to_owned(), Vec::new());
    while let Some((output, node)) = constants.graph.produced_by(&value)? {
        if GruNode::is_gru(&node) {
            path.reverse();
            return Ok(Some((path, value)));
        }
        let Some(from) = node.connected(0).filter(|_| output == 0) else { break };
        if path.len() == MAX_PATH {
            break;
        }
        from.clone_into(&mut value);
        path.push(PathNode { from: value.clone(), node });
    }
    Ok(None)
}

/// True if the path turns Y into X with every element at the same time step, row and feature.
fn preserves_elements(
    constants: &ConstantFolding<'_>,
    from: &GruNode,
    to: &GruNode,
    path: &[PathNode],
) -> Result<bool> {
    let mut axes = match from.layout {
        Layout::TimeMajor => vec![Axis::Time, Axis::Direction, Axis::Batch, Axis::Hidden],
        Layout::BatchFirst => vec![Axis::Batch, Axis::Time, Axis::Direction, Axis::Hidden],
    };
    let mut sizes = ShapeInference::new(constants, &from.config);
    for PathNode { node, from } in path {
        sizes.set_axes(from, &axes);
        match rearranged(constants, node, &axes, &sizes)? {
            Some(after) => axes = after,
            None => return Ok(false),
        }
    }
    let [first, second] = to.layout.order(Axis::Time, Axis::Batch);
    let single = from.config.directions() == 1 && axes == [first, second, Axis::Hidden];
    Ok(single || axes == [first, second, Axis::Features])
}

/// Returns the axes after a node, or `None` if the node does more than rearrange them.
fn rearranged(
    constants: &ConstantFolding<'_>,
    node: &NodeProto,
    axes: &[Axis],
    sizes: &ShapeInference<'_>,
) -> Result<Option<Vec<Axis>>> {
    Ok(match node.op() {
        "Identity" => Some(axes.to_vec()),
        "Dropout" if !is_training(constants, node)? => Some(axes.to_vec()),
        "Transpose" => transposed(axes, &node.integers("perm")?.unwrap_or_default()),
        "Squeeze" => {
            let removed = match node.connected(1) {
                Some(operand) => constants.integers(operand)?,
                None => node.integers("axes")?,
            };
            removed.and_then(|removed| squeezed(axes, &removed, sizes.directions()))
        }
        "Reshape" if node.integer("allowzero", 0)? == 0 => match node.connected(1) {
            Some(operand) => {
                let target = sizes.evaluate(operand)?;
                target.and_then(|target| sizes.reshaped(axes, &target))
            }
            None => None,
        },
        _ => None,
    })
}

/// True if a Dropout node may be in training mode. In inference, the default, it changes nothing.
fn is_training(constants: &ConstantFolding<'_>, node: &NodeProto) -> Result<bool> {
    let Some(training) = node.connected(2) else { return Ok(false) };
    match constants.known(training)? {
        KnownValue::Constant(value) => Ok(!value.is_zeros()),
        KnownValue::AtRun(_) => Ok(true),
    }
}

fn transposed(axes: &[Axis], order: &[i64]) -> Option<Vec<Axis>> {
    let mut seen = vec![false; axes.len()];
    let after = order.iter().map(|&from| {
        let from = usize::try_from(from).ok().filter(|&from| from < axes.len())?;
        (!std::mem::replace(&mut seen[from], true)).then_some(axes[from])
    });
    after.collect::<Option<Vec<_>>>().filter(|after| after.len() == axes.len())
}

/// Returns the axes without the direction axis of size 1, or `None` if another axis is removed.
fn squeezed(axes: &[Axis], removed: &[i64], directions: usize) -> Option<Vec<Axis>> {
    let &[removed] = removed else { return None };
    let removed = if removed < 0 { removed.checked_add(axes.len() as i64)? } else { removed };
    let removed = usize::try_from(removed).ok()?;
    let is_single = axes.get(removed) == Some(&Axis::Direction) && directions == 1;
    let rest = || axes.iter().copied().filter(|&axis| axis != Axis::Direction).collect();
    is_single.then(rest)
}
