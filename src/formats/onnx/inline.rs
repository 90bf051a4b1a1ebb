//! Inlines the functions of a model and the inner graphs of If, Loop and Scan, so that their nodes
//! are read like those of the outermost graph.
//!
//! A value of an inner graph gets a name with the path to it: `call/name` in a function called by
//! the node `call`, `node/then_branch/name` in a branch of the node `node`. An inner graph may also
//! use the values of the graphs around it.

use std::collections::HashMap;

use prost::Message;
use prost::bytes::Bytes;

use super::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, TensorHead, ValueInfoProto, decode,
};
use crate::error::{Error, Result, quote};

/// The deepest nesting of functions and inner graphs: more than any exporter's, and little enough
/// for the call stack.
const MAX_DEPTH: usize = 16;

/// How many times the size of the model its inlined nodes may take.
const MAX_EXPANSION: u64 = 16;

/// Returns the graph of a model of `len` bytes with the nodes of its functions and inner graphs.
/// The nodes If, Loop and Scan stay; the calls of functions do not.
pub(super) fn inlined(graph: GraphProto, functions: &[Bytes], len: usize) -> Result<GraphProto> {
    let mut by_name = HashMap::new();
    for function in functions {
        let function: FunctionProto = decode(function)?;
        by_name.insert((function.domain.clone(), function.name.clone()), function);
    }
    let budget = (len as u64).saturating_mul(MAX_EXPANSION) + (1 << 16);
    let mut inliner = Inliner { functions: by_name, inlined: GraphProto::default(), budget };
    let GraphProto { node, initializer, input, value_info, .. } = graph;
    for node in node {
        inliner.outermost(node)?;
    }
    let inner = inliner.inlined;
    Ok(GraphProto {
        node: inner.node,
        initializer: [initializer, inner.initializer].concat(),
        input: [input, inner.input].concat(),
        value_info: [value_info, inner.value_info].concat(),
        ..GraphProto::default()
    })
}

struct Inliner {
    /// By domain and name.
    functions: HashMap<(String, String), FunctionProto>,
    inlined: GraphProto,
    /// The bytes that inlined nodes may still take.
    budget: u64,
}

/// The names of the values of a function's call or of an inner graph.
#[derive(Default)]
struct Scope<'a> {
    path: String,
    /// The new name of each value that is defined here.
    names: HashMap<String, String>,
    /// The graph around an inner graph. A function sees no values of its caller.
    around: Option<&'a Scope<'a>>,
    /// The attributes of the call, by name.
    attributes: HashMap<String, AttributeProto>,
    depth: usize,
}

impl Scope<'_> {
    /// Returns the new name of a value.
    fn name(&self, value: &str) -> String {
        if value.is_empty() {
            return String::new();
        }
        match (self.names.get(value), self.around) {
            (Some(name), _) => name.clone(),
            (None, Some(around)) => around.name(value),
            (None, None) => value.to_owned(),
        }
    }

    /// Gives a value that is defined here its path.
    fn define(&mut self, value: &str) {
        let path = &self.path;
        self.names.entry(value.to_owned()).or_insert_with(|| format!("{path}/{value}"));
    }
}

impl Inliner {
    /// Adds a node of the outermost graph, whose values keep their names.
    fn outermost(&mut self, bytes: Bytes) -> Result<()> {
        let node: NodeProto = decode(&bytes)?;
        if self.is_plain(&node)? {
            self.inlined.node.push(bytes);
            return Ok(());
        }
        self.node(node, &Scope::default())
    }

    /// True if a node neither calls a function nor has an inner graph.
    fn is_plain(&self, node: &NodeProto) -> Result<bool> {
        if self.function(node).is_some() {
            return Ok(false);
        }
        for attribute in &node.attribute {
            let AttributeProto { g, .. } = decode(attribute)?;
            if g.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn function(&self, node: &NodeProto) -> Option<&FunctionProto> {
        self.functions.get(&(node.domain.clone(), node.op_type.clone()))
    }

    /// Adds a node of `scope`, or the nodes of the function that it calls, and those of its inner
    /// graphs.
    fn node(&mut self, mut node: NodeProto, scope: &Scope<'_>) -> Result<()> {
        let rename = |values: &mut Vec<String>| {
            values.iter_mut().for_each(|value| *value = scope.name(value));
        };
        let own = match node.output.iter().find(|output| !output.is_empty()) {
            Some(output) if node.name.is_empty() => scope.name(output),
            _ if scope.path.is_empty() => node.name.clone(),
            _ => format!("{}/{}", scope.path, node.name),
        };
        rename(&mut node.input);
        rename(&mut node.output);
        node.name.clone_from(&own);
        let mut attributes = Vec::new();
        for attribute in &node.attribute {
            let attribute: AttributeProto = decode(attribute)?;
            attributes.extend(referred(attribute, scope));
        }
        if let Some(function) = self.function(&node).cloned() {
            return self.call(&node, &function, attributes, (own, scope.depth));
        }
        for attribute in &mut attributes {
            // The node stays without its inner graph, whose nodes follow it.
            if let Some(graph) = attribute.g.take() {
                self.graph(&graph, format!("{own}/{}", attribute.name), scope)?;
            }
        }
        node.attribute = attributes.iter().map(|one| one.encode_to_vec().into()).collect();
        self.push(&node)
    }

    /// Adds the nodes of a function.
    fn call(
        &mut self,
        node: &NodeProto,
        function: &FunctionProto,
        attributes: Vec<AttributeProto>,
        (path, depth): (String, usize),
    ) -> Result<()> {
        check_depth(depth, &path)?;
        let mut names = HashMap::new();
        for (at, formal) in function.input.iter().enumerate() {
            names.insert(formal.clone(), node.input.get(at).cloned().unwrap_or_default());
        }
        for (formal, output) in function.output.iter().zip(&node.output) {
            if !output.is_empty() {
                names.insert(formal.clone(), output.clone());
            }
        }
        let mut of_call = HashMap::new();
        for default in &function.attribute_proto {
            let default: AttributeProto = decode(default)?;
            of_call.insert(default.name.clone(), default);
        }
        of_call.extend(attributes.into_iter().map(|one| (one.name.clone(), one)));
        let depth = depth + 1;
        let mut scope = Scope { path, names, around: None, attributes: of_call, depth };
        self.nodes(&function.node, &mut scope)
    }

    /// Adds the nodes, constants and inputs of an inner graph.
    fn graph(&mut self, graph: &Bytes, path: String, around: &Scope<'_>) -> Result<()> {
        check_depth(around.depth, &path)?;
        let graph: GraphProto = decode(graph)?;
        let mut scope = Scope {
            path,
            names: HashMap::new(),
            around: Some(around),
            attributes: around.attributes.clone(),
            depth: around.depth + 1,
        };
        for tensor in &graph.initializer {
            let TensorHead { name, .. } = decode(tensor)?;
            scope.define(&name);
            let tensor = renamed(tensor, TENSOR_NAME, &scope.name(&name));
            self.spend(tensor.len())?;
            self.inlined.initializer.push(tensor);
        }
        for (infos, is_input) in [(&graph.input, true), (&graph.value_info, false)] {
            for info in infos {
                let ValueInfoProto { name, .. } = decode(info)?;
                scope.define(&name);
                let info = renamed(info, INFO_NAME, &scope.name(&name));
                self.spend(info.len())?;
                let to =
                    if is_input { &mut self.inlined.input } else { &mut self.inlined.value_info };
                to.push(info);
            }
        }
        self.nodes(&graph.node, &mut scope)
    }

    fn nodes(&mut self, nodes: &[Bytes], scope: &mut Scope<'_>) -> Result<()> {
        let mut decoded = Vec::new();
        for node in nodes {
            self.spend(node.len())?;
            let node: NodeProto = decode(node)?;
            for output in node.output.iter().filter(|output| !output.is_empty()) {
                scope.define(output);
            }
            decoded.push(node);
        }
        decoded.into_iter().try_for_each(|node| self.node(node, scope))
    }

    fn push(&mut self, node: &NodeProto) -> Result<()> {
        self.spend(node.encoded_len())?;
        self.inlined.node.push(node.encode_to_vec().into());
        Ok(())
    }

    /// Charges the bytes of a node and of what names it to the budget.
    fn spend(&mut self, bytes: usize) -> Result<()> {
        let left = self.budget.checked_sub(bytes as u64 + 16);
        self.budget = left.ok_or_else(|| {
            Error::format(format!(
                "its functions and inner graphs take more than {MAX_EXPANSION} times the size of the model"
            ))
        })?;
        Ok(())
    }
}

/// Returns an attribute with the value that it has in a call: of an attribute that refers to one of
/// the call's, that one, or nothing if the call does not give it.
fn referred(attribute: AttributeProto, scope: &Scope<'_>) -> Option<AttributeProto> {
    if attribute.ref_attr_name.is_empty() {
        return Some(attribute);
    }
    let given = scope.attributes.get(&attribute.ref_attr_name)?.clone();
    Some(AttributeProto { name: attribute.name, ..given })
}

fn check_depth(depth: usize, path: &str) -> Result<()> {
    if depth < MAX_DEPTH {
        return Ok(());
    }
    Err(Error::format(format!(
        "{} is nested in more than {MAX_DEPTH} functions and inner graphs",
        quote(path)
    )))
}

/// The field with the name, in a tensor and in a value's info.
const TENSOR_NAME: u32 = 8;
const INFO_NAME: u32 = 1;

/// Returns an encoded message with another name. Of a field that occurs twice, the last one counts.
fn renamed(message: &Bytes, field: u32, name: &str) -> Bytes {
    let mut bytes = message.to_vec();
    prost::encoding::string::encode(field, &name.to_owned(), &mut bytes);
    bytes.into()
}
