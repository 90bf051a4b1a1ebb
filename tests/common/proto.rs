//! Writes protocol buffers, for ONNX models that no exporter writes.

#![allow(dead_code, reason = "a fuzz target uses a part of it")]

pub fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

pub fn int(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value as u64)].concat()
}

pub fn float(field: u64, value: f32) -> Vec<u8> {
    [varint(field << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

pub fn bytes(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// Encodes a TensorProto.
pub fn tensor(name: &str, dims: &[i64], data_type: i64, rest: Vec<u8>) -> Vec<u8> {
    let dims = dims.iter().flat_map(|&dim| int(1, dim)).collect();
    [dims, int(2, data_type), bytes(8, name.as_bytes()), rest].concat()
}

/// Encodes a TensorProto of floats that are all 0.
pub fn zeros(name: &str, dims: &[i64]) -> Vec<u8> {
    let count: i64 = dims.iter().product();
    tensor(name, dims, 1, bytes(9, &vec![0; 4 * count as usize]))
}

/// Encodes a NodeProto.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs = inputs.iter().flat_map(|name| bytes(1, name.as_bytes())).collect();
    let outputs = outputs.iter().flat_map(|name| bytes(2, name.as_bytes())).collect();
    let attributes = attributes.iter().flat_map(|attribute| bytes(5, attribute)).collect();
    [inputs, outputs, bytes(4, op.as_bytes()), attributes].concat()
}

/// Encodes an AttributeProto.
pub fn attribute(name: &str, value: Vec<u8>) -> Vec<u8> {
    [bytes(1, name.as_bytes()), value].concat()
}

/// Encodes a GraphProto.
pub fn graph(nodes: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    let nodes: Vec<u8> = nodes.iter().flat_map(|node| bytes(1, node)).collect();
    let tensors = tensors.iter().flat_map(|tensor| bytes(5, tensor)).collect();
    [nodes, tensors].concat()
}

/// Encodes a ModelProto.
pub fn model(nodes: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
    bytes(7, &graph(nodes, tensors))
}
