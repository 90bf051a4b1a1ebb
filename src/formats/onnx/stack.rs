//! Which GRU nodes are the layers of one stack: where one's Y, its axes only rearranged, is the
//! next one's X.

use std::collections::{HashMap, HashSet};

use super::constants::{ConstantFolding, KnownValue};
use super::node::{GruNode, input};
use super::proto::NodeProto;
use super::sizes::{Axis, ShapeInference};
use crate::error::Result;
use crate::spec::config::{GruConfig, Layout};

/// More nodes than exporters put between two layers.
const MAX_PATH: usize = 16;

/// The GRUs, by their numbers, in stacks: each a layer of its own, or several that follow each
/// other.
pub(super) fn stacks(constants: &ConstantFolding<'_>, grus: &[Result<GruNode>]) -> Vec<Vec<usize>> {
    // By each GRU, the one whose outputs it reads.
    let makers: HashMap<_, _> = (grus.iter().enumerate())
        .filter_map(|(number, gru)| Some((gru.as_ref().ok()?.y()?, number)))
        .collect();
    let mut below = vec![None; grus.len()];
    let mut readers = vec![0; grus.len()];
    for (number, gru) in grus.iter().enumerate() {
        let Ok(gru) = gru else { continue };
        // What cannot be followed is no stack; whoever asks for the node is told what is wrong with
        // it.
        let Ok(Some((path, y))) = path_back(constants, gru) else { continue };
        let Some(&maker) = makers.get(y.as_str()) else { continue };
        let Ok(other) = &grus[maker] else { continue };
        if is_layer_below(constants, other, gru, &path).unwrap_or(false) {
            below[number] = Some(maker);
            readers[maker] += 1;
        }
    }
    // A GRU that several others read is no layer of one of them.
    let follows = |number: usize| below[number].filter(|&below| readers[below] == 1);
    let mut next = vec![None; grus.len()];
    for number in 0..grus.len() {
        if let Some(below) = follows(number) {
            next[below] = Some(number);
        }
    }
    let firsts = (0..grus.len()).filter(|&number| follows(number).is_none());
    let stack = |first| std::iter::successors(Some(first), |&number: &usize| next[number]);
    let mut stacks: Vec<Vec<_>> = firsts.map(|first| stack(first).collect()).collect();
    // GRUs that read each other in a circle have no first one.
    let mut is_in_stack = vec![false; grus.len()];
    stacks.iter().flatten().for_each(|&number| is_in_stack[number] = true);
    stacks
        .extend((0..grus.len()).filter(|&number| !is_in_stack[number]).map(|number| vec![number]));
    stacks
}

/// Whether a GRU whose Y takes this path to another one's X is a layer of the same GRU.
fn is_layer_below(
    constants: &ConstantFolding<'_>,
    below: &GruNode,
    gru: &GruNode,
    path: &[PathNode],
) -> Result<bool> {
    let GruConfig { input_size, bias, .. } = gru.config;
    let width = below.config.directions() * below.config.hidden_size;
    // A bias that one of them lacks counts as zeros.
    let alike = GruConfig { input_size, bias, ..below.config.clone() } == gru.config;
    Ok(alike
        && input_size == width
        && same_lengths(constants, below, gru)?
        && !starts_from_a_gru(constants, gru)?
        && arrives(constants, below, gru, path)?)
}

/// Whether two GRUs have the same value for their lengths, or the same numbers.
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

/// Whether a GRU's first state comes of what a GRU puts out, as a decoder's from its encoder.
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
            // What their graphs read of this one is not looked at.
            "If" | "Loop" | "Scan" => return Ok(true),
            // How many rows there are says nothing of what is in them.
            "Shape" | "Size" => {}
            _ => values.extend(node.input),
        }
    }
    Ok(false)
}

/// A node between two GRUs, and the value that it rearranges.
struct PathNode {
    node: NodeProto,
    from: String,
}

/// The nodes between a GRU's X and the GRU that it comes from, the first one first, and that GRU's
/// output.
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

/// Whether a Y that takes this path is an X: every number at its time, row and feature.
fn arrives(
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

/// The axes after a node, or `None` when it does more than rearrange them.
fn rearranged(
    constants: &ConstantFolding<'_>,
    node: &NodeProto,
    axes: &[Axis],
    sizes: &ShapeInference<'_>,
) -> Result<Option<Vec<Axis>>> {
    Ok(match node.op() {
        "Identity" => Some(axes.to_vec()),
        "Dropout" if !drops(constants, node)? => Some(axes.to_vec()),
        "Transpose" => transposed(axes, &node.integers("perm")?.unwrap_or_default()),
        "Squeeze" => {
            let gone = match node.connected(1) {
                Some(operand) => constants.integers(operand)?,
                None => node.integers("axes")?,
            };
            gone.and_then(|gone| squeezed(axes, &gone, sizes.directions()))
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

/// In use a dropout passes everything on; while training only where it is told so.
fn drops(constants: &ConstantFolding<'_>, node: &NodeProto) -> Result<bool> {
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

/// Without the axis of a single direction.
fn squeezed(axes: &[Axis], gone: &[i64], directions: usize) -> Option<Vec<Axis>> {
    let &[gone] = gone else { return None };
    let gone = if gone < 0 { gone.checked_add(axes.len() as i64)? } else { gone };
    let gone = usize::try_from(gone).ok()?;
    let is_single = axes.get(gone) == Some(&Axis::Direction) && directions == 1;
    let rest = || axes.iter().copied().filter(|&axis| axis != Axis::Direction).collect();
    is_single.then(rest)
}
