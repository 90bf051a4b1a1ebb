//! The names of a GRU's arrays that this crate writes in another framework's layout.

use super::weight_layout::WeightLayout;
use crate::spec::config::{Bias, GruConfig, Reset};

/// Returns what stands in front of the names of each cell's arrays: layer-major, forward before
/// reverse. For ONNX, whose arrays hold both directions, one for each layer.
pub(super) fn cell_prefixes(layout: WeightLayout, config: &GruConfig) -> Vec<String> {
    let is_only = config.layers == 1;
    let two = config.directions() == 2;
    // The names that Keras gives to the first, second, … layer of a kind.
    let keras = |name: &str, layer: usize| match layer {
        0 => name.to_owned(),
        _ => format!("{name}_{layer}"),
    };
    let layer = |layer: usize| -> Vec<String> {
        let stack = if is_only { String::new() } else { format!("layers.{layer}.") };
        match layout {
            WeightLayout::Pytorch => Vec::new(),
            WeightLayout::Keras if two => {
                let (both, gru) = (keras("bidirectional", layer), keras("gru", layer));
                ["forward", "backward"].map(|way| format!("{both}/{way}_{gru}/gru_cell/")).into()
            }
            WeightLayout::Keras => vec![format!("{}/gru_cell/", keras("gru", layer))],
            WeightLayout::Flax if is_only && !two => vec![String::new()],
            WeightLayout::Flax => {
                let directions = config.directions();
                let cells = layer * directions..(layer + 1) * directions;
                cells.map(|cell| format!("GRUCell_{cell}/")).collect()
            }
            WeightLayout::Mlx if two => {
                ["forward", "backward"].map(|way| format!("{stack}{way}.")).into()
            }
            WeightLayout::Mlx | WeightLayout::Onnx => vec![stack],
        }
    };
    (0..config.layers).flat_map(layer).collect()
}

/// Returns the biases that the arrays of a definition have in a layout.
pub(super) fn stored_bias(layout: WeightLayout, config: &GruConfig) -> Bias {
    match (layout, config.bias) {
        (WeightLayout::Pytorch, bias) => bias,
        // Flax's cell always has biases.
        (WeightLayout::Flax, _) => Bias::Two,
        (_, Bias::None) => Bias::None,
        (WeightLayout::Keras, _) if config.reset == Reset::Before => Bias::One,
        _ => Bias::Two,
    }
}
