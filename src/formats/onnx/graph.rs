//! A model's graph: its nodes, and where each value comes from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use prost::bytes::Bytes;

use super::decode;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorHead,
    ValueInfoProto,
};
use super::tensor::Storage;
use crate::error::{Error, Result, quote};
use crate::formats::words;

pub(super) struct Graph {
    /// Of [`NodeProto`], in the model's order.
    nodes: Vec<Bytes>,
    makers: HashMap<String, Maker>,
    pub storage: Storage,
    /// What a model of our own says of itself.
    pub config_words: Option<String>,
}

/// What makes a value.
enum Maker {
    /// A [`TensorProto`](super::proto::TensorProto).
    Initializer(Bytes),
    /// The output of this number of the node of this index.
    Node { index: usize, output: usize },
    /// The model's caller.
    Input,
}

/// Where a value comes from, in the end.
pub(super) enum Origin {
    /// The model holds it: a [`TensorProto`](super::proto::TensorProto).
    Constant(Bytes),
    /// Something that is known when the model runs, in words.
    AtRun(String),
}

impl Graph {
    /// Of a model's bytes, and its path where it is a file.
    pub fn parse(bytes: Bytes, path: Option<&Path>) -> Result<Self> {
        let storage = Storage::new(bytes.len(), path);
        let model: ModelProto = decode(&bytes)?;
        let no_graph = || Error::Format("it has no graph; is it an ONNX model?".to_owned());
        let graph: GraphProto = decode(&model.graph.ok_or_else(no_graph)?)?;
        let mut makers = HashMap::new();
        let mut make = |name: String, maker| match makers.entry(name) {
            Entry::Occupied(entry) => {
                Err(Error::Format(format!("{} is made twice", quote(entry.key()))))
            }
            Entry::Vacant(entry) => {
                entry.insert(maker);
                Ok(())
            }
        };
        for tensor in graph.initializer {
            let TensorHead { name, .. } = decode(&tensor)?;
            make(name, Maker::Initializer(tensor))?;
        }
        for (index, node) in graph.node.iter().enumerate() {
            let node: NodeProto = decode(node)?;
            for (output, name) in node.output.into_iter().enumerate() {
                // An empty name is an output that nobody asks for.
                if !name.is_empty() {
                    make(name, Maker::Node { index, output })?;
                }
            }
        }
        for input in &graph.input {
            let ValueInfoProto { name, .. } = decode(input)?;
            // An initializer under the same name is the input's default.
            makers.entry(name).or_insert(Maker::Input);
        }
        let mut config_words = None;
        for entry in &model.metadata_props {
            let entry: StringStringEntryProto = decode(entry)?;
            config_words = (entry.key == words::KEY).then_some(entry.value).or(config_words);
        }
        Ok(Self { nodes: graph.node, makers, storage, config_words })
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, index: usize) -> Result<NodeProto> {
        decode(&self.nodes[index])
    }

    /// The node that makes a value, and as which of its outputs.
    pub fn maker(&self, value: &str) -> Result<Option<(usize, usize, NodeProto)>> {
        match self.makers.get(value) {
            Some(&Maker::Node { index, output }) => Ok(Some((index, output, self.node(index)?))),
            _ => Ok(None),
        }
    }

    pub fn origin(&self, value: &str) -> Result<Origin> {
        let mut name = value.to_owned();
        // Nobody names a value so often, but a circle of nodes goes on for ever.
        for _ in 0..100 {
            let shown = quote(&name);
            match self.makers.get(&name) {
                None => {
                    let reason = format!("nothing in the model makes {shown}");
                    return Err(Error::Format(reason));
                }
                Some(Maker::Initializer(tensor)) => return Ok(Origin::Constant(tensor.clone())),
                Some(Maker::Input) => return Ok(Origin::AtRun(format!("the input {shown}"))),
                Some(&Maker::Node { index, .. }) => {
                    let node = self.node(index)?;
                    match (node.op_type.as_str(), node.input.first()) {
                        ("Constant", _) => return constant(&node),
                        ("Identity", Some(input)) => name.clone_from(input),
                        (op, _) => {
                            let op = quote(op);
                            return Ok(Origin::AtRun(format!("{shown}, which a node {op} makes")));
                        }
                    }
                }
            }
        }
        Err(Error::Format(format!("{} is made of itself", quote(value))))
    }
}

fn constant(node: &NodeProto) -> Result<Origin> {
    for attribute in &node.attribute {
        if let AttributeProto { t: Some(tensor), .. } = decode(attribute)? {
            return Ok(Origin::Constant(tensor));
        }
    }
    let output = node.output.first().map_or("", String::as_str);
    Err(Error::Format(format!("the constant {} holds no tensor", quote(output))))
}
