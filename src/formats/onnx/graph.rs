//! A model's graph: its nodes, and the producer of each value.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use super::inline::inlined;
use super::proto::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, StringStringEntryProto,
    TensorHead, ValueInfoProto, decode,
};
use super::tensor::TensorReader;
use crate::error::{Error, Result, quote};
use crate::formats::metadata::CONFIG_KEY;

/// The graph of a model, with the nodes of its functions and inner graphs.
pub(super) struct Graph {
    /// Encoded [`NodeProto`]s, in the model's order.
    nodes: Vec<Bytes>,
    /// The producer of each value, by the value's name.
    producers: HashMap<String, Producer>,
    /// The encoded [`ValueInfoProto`] of each value whose shape the model states.
    infos: HashMap<String, Bytes>,
    /// The bytes that may still be decoded. This ends the evaluation of nodes that refer to each
    /// other again and again.
    decode_budget: Cell<u64>,
    /// Reads the tensors' data.
    pub storage: TensorReader,
    /// The configuration that a model written by this crate stores in its metadata.
    pub config_text: Option<String>,
    /// The program that wrote the model.
    pub producer: String,
}

/// The producer of a value.
#[derive(Clone)]
pub(super) enum Producer {
    /// An encoded [`TensorProto`](super::proto::TensorProto).
    Initializer(Bytes),
    /// Output `output` of node `index`.
    Node { index: usize, output: usize },
    /// An input of the model.
    Input,
}

impl Graph {
    /// Parses a model. `path` is the model's file, if it has one.
    pub fn parse(bytes: Bytes, path: Option<&Path>) -> Result<Self> {
        /// How many times each byte may be decoded.
        const MAX_DECODES: u64 = 64;
        let storage = TensorReader::new(bytes.len(), path);
        let decode_budget = Cell::new((bytes.len() as u64).saturating_mul(MAX_DECODES) + (1 << 20));
        let model: ModelProto = decode(&bytes)?;
        let no_graph = || Error::format("it has no graph; is it an ONNX model?".to_owned());
        let graph: GraphProto = decode(&model.graph.ok_or_else(no_graph)?)?;
        let graph = inlined(graph, &model.functions, bytes.len())?;
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
        let (nodes, producer) = (graph.node, model.producer_name);
        Ok(Self { nodes, producers, infos, decode_budget, storage, config_text, producer })
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Decodes a node.
    pub fn node(&self, index: usize) -> Result<NodeProto> {
        self.decode(&self.nodes[index])
    }

    /// Decodes a message and charges its size to the budget.
    pub fn decode<M: Message + Default>(&self, bytes: &Bytes) -> Result<M> {
        self.spend_budget(bytes.len() as u64)?;
        decode(bytes)
    }

    /// Charges `bytes` and one more to the budget. Fails if the budget is used up.
    pub fn spend_budget(&self, bytes: u64) -> Result<()> {
        let left = self.decode_budget.get().checked_sub(bytes + 1);
        let exhausted = || {
            Error::format("its nodes refer to each other too often; simplify the model".to_owned())
        };
        self.decode_budget.set(left.ok_or_else(exhausted)?);
        Ok(())
    }

    /// Returns the producer of a value.
    pub fn producer(&self, value: &str) -> Result<Producer> {
        let found = self.producers.get(value).cloned();
        found.ok_or_else(|| {
            let value = quote(value);
            Error::format(format!("no node, initializer or input of the model produces {value}"))
        })
    }

    /// Returns the node that produces a value and the index of the output, or `None` if no node
    /// does.
    pub fn produced_by(&self, value: &str) -> Result<Option<(usize, NodeProto)>> {
        match self.producers.get(value) {
            Some(&Producer::Node { index, output }) => Ok(Some((output, self.node(index)?))),
            _ => Ok(None),
        }
    }

    /// Returns the sizes of a value's axes as the model states them; `None` for an unknown size.
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

/// Returns the producer of each value.
fn producers(graph: &GraphProto) -> Result<HashMap<String, Producer>> {
    let mut producers = HashMap::new();
    let mut add = |name: String, producer| match producers.entry(name) {
        Entry::Occupied(entry) => {
            Err(Error::format(format!("{} is produced twice", quote(entry.key()))))
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
            // An empty name means an output that is not used.
            if !name.is_empty() {
                add(name, Producer::Node { index, output })?;
            }
        }
    }
    for input in &graph.input {
        let ValueInfoProto { name, .. } = decode(input)?;
        // An initializer with the same name is the input's default value.
        producers.entry(name).or_insert(Producer::Input);
    }
    Ok(producers)
}

impl NodeProto {
    /// Returns the name of an operator of ONNX's own domain; `""` for other domains.
    pub fn op(&self) -> &str {
        if matches!(self.domain.as_str(), "" | "ai.onnx") { &self.op_type } else { "" }
    }

    /// Returns the name of an input, or `None` if it is not connected.
    pub fn connected(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Returns an attribute, or `None` if it is not given.
    pub fn attribute(&self, name: &str) -> Result<Option<AttributeProto>> {
        for attribute in &self.attribute {
            let attribute: AttributeProto = decode(attribute)?;
            if attribute.name == name {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }

    /// Returns an integer attribute, or `default` if it is not given.
    pub fn integer(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.attribute(name)?.map_or(default, |attribute| attribute.i))
    }

    /// Returns an attribute that is a list of integers.
    pub fn integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        Ok(self.attribute(name)?.map(|attribute| attribute.ints))
    }
}
