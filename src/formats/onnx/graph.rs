//! A model's graph: its nodes, and what makes each value.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use super::proto::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, StringStringEntryProto,
    TensorHead, ValueInfoProto, decode,
};
use super::tensor::TensorReader;
use crate::error::{Error, Result, quote};
use crate::formats::metadata::CONFIG_KEY;

pub(super) struct Graph {
    /// Of [`NodeProto`], in the model's order.
    nodes: Vec<Bytes>,
    producers: HashMap<String, Producer>,
    /// Of [`ValueInfoProto`], where the model tells a value's shape.
    infos: HashMap<String, Bytes>,
    /// Bytes that may still be decoded. Nodes that lead to each other over and over must end.
    effort: Cell<u64>,
    pub storage: TensorReader,
    /// What a model of our own says of itself.
    pub config_text: Option<String>,
}

/// What makes a value.
#[derive(Clone)]
pub(super) enum Producer {
    /// A [`TensorProto`](super::proto::TensorProto).
    Initializer(Bytes),
    /// The output of this number of the node of this index.
    Node { index: usize, output: usize },
    /// The model's caller.
    Input,
}

impl Graph {
    /// Of a model's bytes, and its path where it is a file.
    pub fn parse(bytes: Bytes, path: Option<&Path>) -> Result<Self> {
        /// Each byte may be decoded so often.
        const LOOKS: u64 = 64;
        let storage = TensorReader::new(bytes.len(), path);
        let effort = Cell::new((bytes.len() as u64).saturating_mul(LOOKS) + (1 << 20));
        let model: ModelProto = decode(&bytes)?;
        let no_graph = || Error::format("it has no graph; is it an ONNX model?".to_owned());
        let graph: GraphProto = decode(&model.graph.ok_or_else(no_graph)?)?;
        let producers = producers(&graph)?;
        let mut infos = HashMap::new();
        for info in graph.input.into_iter().chain(graph.value_info) {
            let ValueInfoProto { name, .. } = decode(&info)?;
            infos.insert(name, info);
        }
        let mut config_text = None;
        for entry in &model.metadata_props {
            let entry: StringStringEntryProto = decode(entry)?;
            config_text = (entry.key == CONFIG_KEY).then_some(entry.value).or(config_text);
        }
        Ok(Self { nodes: graph.node, producers, infos, effort, storage, config_text })
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, index: usize) -> Result<NodeProto> {
        self.decode(&self.nodes[index])
    }

    /// A message out of the model, which counts as effort.
    pub fn decode<M: Message + Default>(&self, bytes: &Bytes) -> Result<M> {
        self.spend_effort(bytes.len() as u64)?;
        decode(bytes)
    }

    /// `Ok` while so much more effort may be made.
    pub fn spend_effort(&self, effort: u64) -> Result<()> {
        let left = self.effort.get().checked_sub(effort + 1);
        let exhausted = || Error::format("its nodes lead to each other too often".to_owned());
        self.effort.set(left.ok_or_else(exhausted)?);
        Ok(())
    }

    /// What makes a value.
    pub fn producer(&self, value: &str) -> Result<Producer> {
        let found = self.producers.get(value).cloned();
        found.ok_or_else(|| Error::format(format!("nothing in the model makes {}", quote(value))))
    }

    /// The node that makes a value, and as which of its outputs.
    pub fn produced_by(&self, value: &str) -> Result<Option<(usize, NodeProto)>> {
        match self.producers.get(value) {
            Some(&Producer::Node { index, output }) => Ok(Some((output, self.node(index)?))),
            _ => Ok(None),
        }
    }

    /// The sizes of a value's axes that the model tells.
    pub fn stated_shape(&self, value: &str) -> Option<Vec<Option<i64>>> {
        let info: ValueInfoProto = self.decode(self.infos.get(value)?).ok()?;
        let dims = info.r#type?.tensor_type?.shape?.dim;
        let known = |value| {
            if let Some(Dimension::DimValue(size)) = value {
                Some(size).filter(|&size| size > 0)
            } else {
                None
            }
        };
        Some(dims.into_iter().map(|dim| known(dim.value)).collect())
    }
}

fn producers(graph: &GraphProto) -> Result<HashMap<String, Producer>> {
    let mut producers = HashMap::new();
    let mut add = |name: String, producer| match producers.entry(name) {
        Entry::Occupied(entry) => {
            Err(Error::format(format!("{} is made twice", quote(entry.key()))))
        }
        Entry::Vacant(entry) => {
            entry.insert(producer);
            Ok(())
        }
    };
    for tensor in &graph.initializer {
        let TensorHead { name, .. } = decode(tensor)?;
        add(name, Producer::Initializer(tensor.clone()))?;
    }
    for (index, node) in graph.node.iter().enumerate() {
        let node: NodeProto = decode(node)?;
        for (output, name) in node.output.into_iter().enumerate() {
            // An empty name is an output that nobody asks for.
            if !name.is_empty() {
                add(name, Producer::Node { index, output })?;
            }
        }
    }
    for input in &graph.input {
        let ValueInfoProto { name, .. } = decode(input)?;
        // An initializer under the same name is the input's default.
        producers.entry(name).or_insert(Producer::Input);
    }
    Ok(producers)
}

impl NodeProto {
    /// The operator's name among ONNX's own; nothing for one of another domain.
    pub fn op(&self) -> &str {
        if matches!(self.domain.as_str(), "" | "ai.onnx") { &self.op_type } else { "" }
    }

    /// The name of an input, where it is connected.
    pub fn connected(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// An attribute, where it is given.
    pub fn attribute(&self, name: &str) -> Result<Option<AttributeProto>> {
        for attribute in &self.attribute {
            let attribute: AttributeProto = decode(attribute)?;
            if attribute.name == name {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }

    /// An attribute of a whole number.
    pub fn integer(&self, name: &str, otherwise: i64) -> Result<i64> {
        Ok(self.attribute(name)?.map_or(otherwise, |attribute| attribute.i))
    }

    /// An attribute of whole numbers.
    pub fn integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        Ok(self.attribute(name)?.map(|attribute| attribute.ints))
    }
}
