//! Which GRU nodes are the layers of one stack: where one's Y, its axes only rearranged, is the next
//! one's X.

use std::collections::HashMap;

use super::graph::{Graph, Origin};
use super::node::{GruNode, input};
use super::proto::{AttributeProto, NodeProto};
use super::{decode, tensor};
use crate::config::{GruConfig, Layout};
use crate::error::Result;

/// An axis of a value on the way from a Y to an X.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Time,
    Batch,
    Direction,
    Hidden,
    /// Directions beside each other, each of H.
    Joined,
}

/// More nodes than exporters put between two layers.
const LONGEST_WAY: usize = 16;

/// The GRUs, by their numbers, in stacks: each a layer of its own, or several that follow each other.
pub(super) fn stacks(graph: &Graph, grus: &[Result<GruNode>]) -> Result<Vec<Vec<usize>>> {
    // By each GRU, the one whose outputs it reads.
    let makers: HashMap<_, _> = (grus.iter().enumerate())
        .filter_map(|(number, gru)| Some((gru.as_ref().ok()?.y()?, number)))
        .collect();
    let mut below = vec![None; grus.len()];
    let mut readers = vec![0; grus.len()];
    for (number, gru) in grus.iter().enumerate() {
        let Ok(gru) = gru else { continue };
        let Some((way, y)) = way_back(graph, gru)? else { continue };
        let Some(&maker) = makers.get(y.as_str()) else { continue };
        let Ok(other) = &grus[maker] else { continue };
        if is_layer_below(graph, other, gru, &way)? {
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
    let mut placed = vec![false; grus.len()];
    stacks.iter().flatten().for_each(|&number| placed[number] = true);
    stacks.extend((0..grus.len()).filter(|&number| !placed[number]).map(|number| vec![number]));
    Ok(stacks)
}

/// Whether a GRU whose Y goes this way to another one's X is a layer of the same GRU.
fn is_layer_below(
    graph: &Graph,
    below: &GruNode,
    gru: &GruNode,
    way: &[NodeProto],
) -> Result<bool> {
    let GruConfig { input_size, bias, .. } = gru.config;
    let width = below.config.directions() * below.config.hidden_size;
    // A bias that one of them lacks counts as zeros.
    let alike = GruConfig { input_size, bias, ..below.config.clone() } == gru.config;
    let same_lengths = below.input(input::LENGTHS) == gru.input(input::LENGTHS);
    Ok(alike && same_lengths && input_size == width && arrives(graph, below, gru, way)?)
}

/// The nodes between a GRU's X and the GRU that it comes from, the first one first, and that GRU's output.
fn way_back(graph: &Graph, gru: &GruNode) -> Result<Option<(Vec<NodeProto>, String)>> {
    let Some(x) = gru.input(input::X) else { return Ok(None) };
    let (mut value, mut way) = (x.to_owned(), Vec::new());
    while let Some((_, output, node)) = graph.maker(&value)? {
        if GruNode::is_gru(&node) {
            way.reverse();
            return Ok(Some((way, value)));
        }
        let Some(data) = node.input.first().filter(|_| output == 0) else { break };
        if way.len() == LONGEST_WAY {
            break;
        }
        value.clone_from(data);
        way.push(node);
    }
    Ok(None)
}

/// Whether a Y that goes this way is an X: every number at its time, row and feature.
fn arrives(graph: &Graph, from: &GruNode, to: &GruNode, way: &[NodeProto]) -> Result<bool> {
    let mut axes = match from.layout {
        Layout::TimeMajor => vec![Axis::Time, Axis::Direction, Axis::Batch, Axis::Hidden],
        Layout::BatchFirst => vec![Axis::Batch, Axis::Time, Axis::Direction, Axis::Hidden],
    };
    let width = from.config.directions() * from.config.hidden_size;
    for node in way {
        match rearranged(graph, node, &axes, from.config.directions(), width)? {
            Some(after) => axes = after,
            None => return Ok(false),
        }
    }
    let feature = if from.config.directions() == 1 { Axis::Hidden } else { Axis::Joined };
    let [first, second] = to.layout.order(Axis::Time, Axis::Batch);
    let joined = axes == [first, second, Axis::Joined];
    Ok(joined || axes == [first, second, feature])
}

/// The axes after a node, or `None` when it does more than rearrange them.
fn rearranged(
    graph: &Graph,
    node: &NodeProto,
    axes: &[Axis],
    directions: usize,
    width: usize,
) -> Result<Option<Vec<Axis>>> {
    Ok(match node.op_type.as_str() {
        "Identity" => Some(axes.to_vec()),
        // In use it passes everything on; while training only where it is told so.
        "Dropout" if node.input.get(2).is_none_or(String::is_empty) => Some(axes.to_vec()),
        "Transpose" => transposed(axes, &integers_of(node, "perm")?),
        "Squeeze" => {
            let given = operand(graph, node)?;
            squeezed(axes, &given.unwrap_or(integers_of(node, "axes")?), directions)
        }
        "Reshape" => {
            operand(graph, node)?.and_then(|shape| joined(axes, &shape, directions, width))
        }
        _ => None,
    })
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
    let gone = if gone < 0 { gone + axes.len() as i64 } else { gone };
    let gone = usize::try_from(gone).ok()?;
    let is_single = axes.get(gone) == Some(&Axis::Direction) && directions == 1;
    let rest = || axes.iter().copied().filter(|&axis| axis != Axis::Direction).collect();
    is_single.then(rest)
}

/// The last two of four axes as one; an axis of a single direction may stand anywhere.
fn joined(axes: &[Axis], shape: &[i64], directions: usize, width: usize) -> Option<Vec<Axis>> {
    let &[_, _, last] = shape else { return None };
    let as_one = match axes {
        [first, second, Axis::Direction, Axis::Hidden] => [*first, *second],
        [first, Axis::Direction, second, Axis::Hidden]
        | [Axis::Direction, first, second, Axis::Hidden]
            if directions == 1 && shape[..2].iter().all(|&size| size != 0) =>
        {
            [*first, *second]
        }
        _ => return None,
    };
    let is_width = last == -1 || usize::try_from(last).is_ok_and(|last| last == width);
    // One size may be left to be found, and then it is the width or follows from it.
    let open = shape.iter().filter(|&&size| size == -1).count();
    (is_width && open <= 1).then(|| [&as_one[..], &[Axis::Joined]].concat())
}

/// A node's second input, where the model holds it.
fn operand(graph: &Graph, node: &NodeProto) -> Result<Option<Vec<i64>>> {
    let Some(value) = node.input.get(1).filter(|value| !value.is_empty()) else { return Ok(None) };
    match graph.origin(value)? {
        Origin::Constant(tensor) => tensor::integers(&decode(&tensor)?, &graph.storage).map(Some),
        Origin::AtRun(_) => Ok(None),
    }
}

/// A node's attribute of whole numbers; none when it is not there.
fn integers_of(node: &NodeProto, name: &str) -> Result<Vec<i64>> {
    for attribute in &node.attribute {
        let attribute: AttributeProto = decode(attribute)?;
        if attribute.name == name {
            return Ok(attribute.ints);
        }
    }
    Ok(Vec::new())
}
