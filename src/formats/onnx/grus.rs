//! The GRU nodes of a model, and the choice among them by name.

use std::collections::HashMap;

use super::constants::ConstantFolding;
use super::node::GruNode;
use super::proto::NodeProto;
use super::stack;
use crate::error::{Error, Result};

/// The GRU nodes of a graph, in the graph's order.
pub(super) struct GruNodes {
    /// The name of each node.
    names: Vec<String>,
    /// The nodes. The error of a node is returned only if that node is chosen.
    pub nodes: Vec<Result<GruNode>>,
    /// The indices of the nodes of each stack, layer by layer.
    stacks: Vec<Vec<usize>>,
}

impl GruNodes {
    /// Reads all GRU nodes and groups them into stacks.
    pub fn read(constants: &ConstantFolding<'_>) -> Result<Self> {
        /// Far more than any real model has. Bounds the time to read a model.
        const MAX_NODES: usize = 256;
        let mut protos = Vec::new();
        for index in 0..constants.graph.len() {
            let node = constants.graph.node(index)?;
            if GruNode::is_gru(&node) {
                protos.push(node);
            }
            if protos.len() > MAX_NODES {
                return Err(Error::format(format!(
                    "it has more than {MAX_NODES} GRU nodes, which is not supported"
                )));
            }
        }
        let names = names(&protos);
        let nodes: Vec<_> = std::iter::zip(&names, protos)
            .map(|(name, proto)| GruNode::read(constants, name, proto))
            .collect();
        let stacks = stack::stacks(constants, &nodes);
        Ok(Self { names, nodes, stacks })
    }

    /// Returns the name of each stack.
    pub fn stack_names(&self) -> Vec<String> {
        self.stacks.iter().map(|stack| self.stack_name(stack)).collect()
    }

    fn stack_name(&self, stack: &[usize]) -> String {
        match stack {
            [only] => self.names[*only].clone(),
            [first, .., last] => format!("{}..{}", self.names[*first], self.names[*last]),
            [] => unreachable!("a stack has at least one node"),
        }
    }

    /// Returns the indices of the requested nodes, or of the only stack, layer by layer.
    pub fn choose(&self, asked: Option<&str>) -> Result<Vec<usize>> {
        let chosen = match asked {
            Some(asked) => self.find(asked),
            None if self.stacks.len() == 1 => self.stacks.first().cloned(),
            None => None,
        };
        chosen.ok_or_else(|| Error::Choice {
            within: "its graph".to_owned(),
            of: "GRU",
            asked: asked.map(str::to_owned),
            found: self.stack_names(),
            by: "node",
        })
    }

    /// Finds a node by its name, or consecutive layers of a stack by `first..last`.
    fn find(&self, asked: &str) -> Option<Vec<usize>> {
        if let Some(index) = self.names.iter().position(|name| name == asked) {
            return Some(vec![index]);
        }
        // The names themselves may contain dots, so try every `..`.
        asked.match_indices("..").find_map(|(at, dots)| {
            let (first, last) = (&asked[..at], &asked[at + dots.len()..]);
            self.stacks.iter().find_map(|stack| {
                let layer = |name| stack.iter().position(|&index| self.names[index] == name);
                let layers = stack.get(layer(first)?..=layer(last)?)?;
                (!layers.is_empty()).then(|| layers.to_vec())
            })
        })
    }
}

/// Returns a name for each node: the node's own if it is not empty and unique, else the name of its
/// first output, else `#` and its index.
fn names(nodes: &[NodeProto]) -> Vec<String> {
    let mut counts = HashMap::new();
    for node in nodes {
        *counts.entry(node.name.as_str()).or_insert(0) += 1;
    }
    let name = |(index, node): (usize, &NodeProto)| {
        let output = node.output.iter().find(|output| !output.is_empty());
        match output {
            _ if !node.name.is_empty() && counts[node.name.as_str()] == 1 => node.name.clone(),
            Some(output) => output.clone(),
            None => format!("#{index}"),
        }
    };
    nodes.iter().enumerate().map(name).collect()
}
