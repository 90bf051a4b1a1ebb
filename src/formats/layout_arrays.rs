//! The arrays of a GRU that this crate writes in another framework's layout.

use ndarray::{Array, ArrayD};

use super::cell::{Cell, FlaxCell, can_negate_z, onnx_layer};
use super::layout_names::cell_prefixes;
use super::state_dict::is_head_parameter;
use super::weight_layout::WeightLayout;
use crate::error::{Error, Result};
use crate::spec::activation::Activations;
use crate::spec::config::{GruConfig, Reset, Update};
use crate::spec::params::Params;

/// Returns the arrays of a GRU in a layout, with their names. Leaves out a head.
///
/// # Errors
/// [`Error::Conflict`] for a definition that the framework cannot express.
pub(super) fn arrays(params: &Params, layout: WeightLayout) -> Result<Vec<(String, ArrayD<f32>)>> {
    let config = params.layout().config();
    check_definition(layout, config)?;
    let mut cells = params.to_cells();
    if layout != WeightLayout::Pytorch && config.update == Update::Overwrites {
        cells.iter_mut().for_each(Cell::negate_z);
    }
    let prefixes = cell_prefixes(layout, config);
    let arrays = match layout {
        WeightLayout::Pytorch => {
            let tensors = params.iter().filter(|(name, _)| !is_head_parameter(name));
            return Ok(tensors.map(|(name, array)| (name.to_owned(), array.to_owned())).collect());
        }
        WeightLayout::Keras => cells.iter().map(|cell| keras(cell, config.reset)).collect(),
        WeightLayout::Flax => cells.iter().map(flax).collect(),
        WeightLayout::Mlx => cells.iter().map(mlx).collect::<Vec<_>>(),
        WeightLayout::Onnx => cells.chunks(config.directions()).map(onnx_layer).collect(),
    };
    let named = prefixes.iter().zip(arrays).flat_map(|(prefix, arrays)| {
        arrays.into_iter().map(move |(name, array)| (format!("{prefix}{name}"), array))
    });
    Ok(named.collect())
}

/// Checks that a framework can express a definition.
fn check_definition(layout: WeightLayout, config: &GruConfig) -> Result<()> {
    let refused = |what, why| Err(Error::Conflict { what, why });
    if layout == WeightLayout::Pytorch {
        // PyTorch's names hold every definition; the file says which it is.
        return Ok(());
    }
    let is_only_after = matches!(layout, WeightLayout::Flax | WeightLayout::Mlx);
    if is_only_after && config.reset == Reset::Before {
        return refused(
            "Reset::Before and the layout of Flax or MLX",
            "their reset gate acts after the product; choose the layout of PyTorch, Keras or ONNX",
        );
    }
    if config.zoneout > 0.0 {
        return refused(
            "zoneout and this layout",
            "no other framework's GRU has zoneout; set it to 0, or choose the layout of PyTorch",
        );
    }
    if layout != WeightLayout::Onnx && config.clip.is_some() {
        return refused(
            "a clip and this layout",
            "only ONNX clips; leave it out, or choose the layout of PyTorch or ONNX",
        );
    }
    let is_standard =
        config.activations == Activations::default() && config.reverse_activations.is_none();
    if layout == WeightLayout::Mlx && !is_standard {
        return refused(
            "these activations and the layout of MLX",
            "MLX's GRU has σ and tanh; choose another layout",
        );
    }
    if config.update == Update::Overwrites && !can_negate_z(config) {
        return refused(
            "gates of this activation, Update::Overwrites and this layout",
            "other frameworks' update is Update::Keeps, and only gates with 1 − f(a) = f(−a) can be \
             converted, such as a sigmoid",
        );
    }
    Ok(())
}

type Named = Vec<(&'static str, ArrayD<f32>)>;

fn keras(cell: &Cell, reset: Reset) -> Named {
    let (kernel, recurrent, bias) = cell.to_keras(reset);
    let mut arrays =
        vec![("kernel", kernel.into_dyn()), ("recurrent_kernel", recurrent.into_dyn())];
    arrays.extend(bias.map(|bias| ("bias", bias)));
    arrays
}

/// Flax's cell always has biases.
fn flax(cell: &Cell) -> Named {
    let hidden = cell.weight_hh.ncols();
    let FlaxCell { input_kernels, input_biases, recurrent_kernels, hn_bias } = cell.to_flax();
    let zeros = || Array::zeros(hidden);
    let input_biases = input_biases.unwrap_or_else(|| [zeros(), zeros(), zeros()]);
    let [ir, iz, input] = input_kernels.map(Array::into_dyn);
    let [hr, hz, hn] = recurrent_kernels.map(Array::into_dyn);
    let [bir, biz, bin] = input_biases.map(Array::into_dyn);
    let bhn = hn_bias.unwrap_or_else(zeros).into_dyn();
    vec![
        ("ir/kernel", ir),
        ("ir/bias", bir),
        ("iz/kernel", iz),
        ("iz/bias", biz),
        ("in/kernel", input),
        ("in/bias", bin),
        ("hr/kernel", hr),
        ("hz/kernel", hz),
        ("hn/kernel", hn),
        ("hn/bias", bhn),
    ]
}

fn mlx(cell: &Cell) -> Named {
    let mlx = cell.to_mlx();
    let hidden = mlx.wh.ncols();
    let mut arrays = vec![("Wx", mlx.wx.into_dyn()), ("Wh", mlx.wh.into_dyn())];
    if let Some(b) = mlx.b {
        let bhn = mlx.bhn.unwrap_or_else(|| Array::zeros(hidden));
        arrays.extend([("b", b.into_dyn()), ("bhn", bhn.into_dyn())]);
    }
    arrays
}
