//! The activations of a GRU node: names, and the lists of their numbers.

use crate::error::{Error, Result, quote};
use crate::spec::activation::Activation;

/// Returns ONNX's name of a function.
pub(super) fn name(function: Activation) -> &'static str {
    match function {
        Activation::Sigmoid => "Sigmoid",
        Activation::Tanh => "Tanh",
        Activation::Relu => "Relu",
        Activation::HardSigmoid { .. } => "HardSigmoid",
        Activation::Affine { .. } => "Affine",
        Activation::ScaledTanh { .. } => "ScaledTanh",
        Activation::LeakyRelu { .. } => "LeakyRelu",
        Activation::ThresholdedRelu { .. } => "ThresholdedRelu",
        Activation::Elu { .. } => "Elu",
        Activation::Softsign => "Softsign",
        Activation::Softplus => "Softplus",
    }
}

/// Returns the numbers of a function that a node without lists of numbers has. ONNX defines none
/// for the affine function and the scaled tanh. For the thresholded ReLU it defines 1, but ONNX
/// Runtime computes with 0.
fn defaults(function: Activation) -> &'static [f32] {
    match function {
        Activation::HardSigmoid { .. } => &[0.2, 0.5],
        Activation::LeakyRelu { .. } => &[0.01],
        Activation::Elu { .. } => &[1.0],
        _ => &[],
    }
}

/// Reads the activations of a node. As in ONNX Runtime, a function that has an α takes the next
/// number of `alphas`, and one that has a β the next of `betas`.
pub(super) fn read(names: &[String], alphas: &[f32], betas: &[f32]) -> Result<Vec<Activation>> {
    let (mut alphas, mut betas) = (alphas.iter().copied(), betas.iter().copied());
    let read_one = |theirs: &String| {
        // Names are case-insensitive, as in ONNX Runtime.
        let is_named = |function: &Activation| name(*function).eq_ignore_ascii_case(theirs);
        let function = Activation::ALL.into_iter().find(is_named);
        let unknown =
            || Error::format(format!("the activation {} is not supported", quote(theirs)));
        let function = function.ok_or_else(unknown)?;
        let mut numbers = function.numbers();
        let given = [alphas.by_ref(), betas.by_ref()];
        for (i, (number, given)) in numbers.iter_mut().zip(given).enumerate() {
            let default = defaults(function).get(i).copied();
            *number = given.next().or(default).ok_or_else(|| without_numbers(function))?;
        }
        let function = function.with_numbers(&numbers).expect("as many numbers");
        function.validate().map_err(|error| Error::format_from(error.to_string(), error))?;
        Ok(function)
    };
    names.iter().map(read_one).collect()
}

fn without_numbers(function: Activation) -> Error {
    let attributes = match function.numbers().len() {
        1 => "an activation_alpha",
        _ => "an activation_alpha and an activation_beta",
    };
    Error::format(format!(
        "the activation {} needs {attributes}: ONNX and its runtimes agree on no default",
        name(function)
    ))
}
