//! The GRU nodes of a model, and which of them are asked for.

use std::collections::HashMap;

use super::constants::ConstantFolding;
use super::node::GruNode;
use super::proto::NodeProto;
use super::stack;
use crate::error::{Error, Result};

/// The GRU nodes of a graph, in its order.
pub(super) struct GruNodes {
    names: Vec<String>,
    /// What is wrong with a node matters only where it is asked for.
    pub nodes: Vec<Result<GruNode>>,
    /// Numbers of nodes, layer by layer.
    stacks: Vec<Vec<usize>>,
}

impl GruNodes {
    pub fn of(constants: &ConstantFolding<'_>) -> Result<Self> {
        /// Far more than a model of use has: looking through them must end.
        const MOST: usize = 256;
        let mut protos = Vec::new();
        for index in 0..constants.graph.len() {
            let node = constants.graph.node(index)?;
            if GruNode::is_gru(&node) {
                protos.push(node);
            }
            if protos.len() > MOST {
                return Err(Error::format(format!("it has more than {MOST} GRU nodes")));
            }
        }
        let names = names(&protos);
        let nodes: Vec<_> = std::iter::zip(&names, protos)
            .map(|(name, proto)| GruNode::read(constants, name, proto))
            .collect();
        let stacks = stack::stacks(constants, &nodes);
        Ok(Self { names, nodes, stacks })
    }

    /// What each stack is called.
    pub fn stack_names(&self) -> Vec<String> {
        self.stacks.iter().map(|stack| self.stack_name(stack)).collect()
    }

    fn stack_name(&self, stack: &[usize]) -> String {
        match stack {
            [only] => self.names[*only].clone(),
            [first, .., last] => format!("{}..{}", self.names[*first], self.names[*last]),
            [] => unreachable!("a stack starts with a node"),
        }
    }

    /// The nodes asked for, layer by layer.
    pub fn choose(&self, asked: Option<&str>) -> Result<Vec<usize>> {
        let chosen = match asked {
            Some(asked) => self.find(asked),
            None if self.stacks.len() == 1 => self.stacks.first().cloned(),
            None => None,
        };
        chosen.ok_or_else(|| Error::Choice {
            within: "its outermost graph".to_owned(),
            of: "GRU",
            asked: asked.map(str::to_owned),
            found: self.stack_names(),
            by: "node",
        })
    }

    fn find(&self, asked: &str) -> Option<Vec<usize>> {
        if let Some(number) = self.names.iter().position(|name| name == asked) {
            return Some(vec![number]);
        }
        // A name may have dots of its own.
        asked.match_indices("..").find_map(|(at, dots)| {
            let (first, last) = (&asked[..at], &asked[at + dots.len()..]);
            self.stacks.iter().find_map(|stack| {
                let place = |name| stack.iter().position(|&number| self.names[number] == name);
                let part = stack.get(place(first)?..=place(last)?)?;
                (!part.is_empty()).then(|| part.to_vec())
            })
        })
    }
}

/// What each node is called: by its own name, where it has one that no other has, or by its first
/// output's.
fn names(nodes: &[NodeProto]) -> Vec<String> {
    let mut counts = HashMap::new();
    for node in nodes {
        *counts.entry(node.name.as_str()).or_insert(0) += 1;
    }
    let name = |(number, node): (usize, &NodeProto)| {
        let output = node.output.iter().find(|output| !output.is_empty());
        match output {
            _ if !node.name.is_empty() && counts[node.name.as_str()] == 1 => node.name.clone(),
            Some(output) => output.clone(),
            None => format!("#{number}"),
        }
    };
    nodes.iter().enumerate().map(name).collect()
}
