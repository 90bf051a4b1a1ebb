//! [`Cell`]: the weights of one direction of one layer, and conversions from and to the layouts of
//! other frameworks.

use ndarray::{
    Array, Array1, Array2, ArrayD, ArrayView, ArrayView1, ArrayView2, ArrayViewD, Axis,
    concatenate, s, stack,
};

use crate::error::{Error, Result, check_shape};
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
use crate::spec::activation::Activation;
use crate::spec::config::{Bias, GruConfig, Reset};
use crate::spec::params::Params;

/// The weights of one direction of one layer in PyTorch's layout: gates stacked r, z, n.
///
/// The conversions only move numbers, so a round trip gives the same bits, with two exceptions. If
/// the other layout has no place for a bias, the bias is added to one with the same effect. If it
/// has a place for a bias that the cell lacks, zeros are written. A cell does not say where the
/// reset gate acts or what z means. The configuration does; each conversion states which it needs.
///
/// ```
/// use gru_wgpu::{GruConfig, Params, Reset, Update, formats::Cell};
/// use ndarray::{Array1, Array2};
///
/// // A Keras layer, reset_after=False: kernel [I, 3U], recurrent kernel [U, 3U], bias [3U].
/// let (kernel, recurrent) = (Array2::ones((4, 15)), Array2::ones((5, 15)));
/// let bias = Array1::ones(15);
/// let cell = Cell::from_keras(kernel.view(), recurrent.view(), Some(bias.view().into_dyn()))?;
/// let config = GruConfig::new(4, 5).with_reset(Reset::Before).with_update(Update::Keeps);
/// let params = Params::from_cells(&config, &[cell])?;
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Cell {
    /// The input weights, `[3H, I]`; above the first layer `[3H, D·H]`.
    pub weight_ih: Array2<f32>,
    /// The recurrent weights, `[3H, H]`.
    pub weight_hh: Array2<f32>,
    /// The input bias, `[3H]`.
    pub bias_ih: Option<Array1<f32>>,
    /// The recurrent bias, `[3H]`.
    pub bias_hh: Option<Array1<f32>>,
}

/// The weights of MLX's `nn.GRU`, gates stacked r, z, n.
#[derive(Clone, Debug, PartialEq)]
pub struct MlxCell {
    /// `Wx [3H, I]`, the input weights.
    pub wx: Array2<f32>,
    /// `Wh [3H, H]`, the recurrent weights.
    pub wh: Array2<f32>,
    /// `b [3H]`, the input bias.
    pub b: Option<Array1<f32>>,
    /// `bhn [H]`, the recurrent bias of n.
    pub bhn: Option<Array1<f32>>,
}

/// The weights of a Flax `nn.GRUCell`, from its dense layers `ir`, `iz`, `in`, `hr`, `hz`, `hn`.
#[derive(Clone, Debug, PartialEq)]
pub struct FlaxCell {
    /// `kernel` of `ir`, `iz`, `in`: `[I, H]` each.
    pub input_kernels: [Array2<f32>; 3],
    /// `bias` of `ir`, `iz`, `in`: `[H]` each.
    pub input_biases: Option<[Array1<f32>; 3]>,
    /// `kernel` of `hr`, `hz`, `hn`: `[H, H]` each.
    pub recurrent_kernels: [Array2<f32>; 3],
    /// `bias` of `hn`: `[H]`.
    pub hn_bias: Option<Array1<f32>>,
}

impl Cell {
    /// Converts a Keras layer: kernel `[I, 3U]`, recurrent kernel `[U, 3U]`, bias `[3U]` or
    /// `[2, 3U]`, gates stacked z, r, h. A bias with two rows means `reset_after=True`
    /// ([`Reset::After`], Keras' default), with one row `reset_after=False` ([`Reset::Before`]).
    /// Keras needs [`Update::Keeps`].
    ///
    /// [`Update::Keeps`]: crate::Update::Keeps
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn from_keras(
        kernel: ArrayView2<'_, f32>,
        recurrent: ArrayView2<'_, f32>,
        bias: Option<ArrayViewD<'_, f32>>,
    ) -> Result<Self> {
        let (input, hidden) = (kernel.nrows(), recurrent.nrows());
        check_shape("the recurrent kernel [U, 3U]", &[hidden, 3 * hidden], recurrent.shape())?;
        check_shape("the kernel [I, 3U]", &[input, 3 * hidden], kernel.shape())?;
        let rows = match &bias {
            Some(bias) if bias.ndim() == 2 => {
                check_shape("the bias [2, 3U]", &[2, 3 * hidden], bias.shape())?;
                bias.outer_iter().map(|row| row.to_owned()).collect()
            }
            Some(bias) => {
                check_shape("the bias [3U]", &[3 * hidden], bias.shape())?;
                vec![bias.to_owned()]
            }
            None => Vec::new(),
        };
        let mut rows = rows.iter().map(|row| swap_first_two(row.view()));
        let [weight_ih, weight_hh] = [kernel, recurrent].map(|kernel| swap_first_two(kernel.t()));
        Ok(Self {
            weight_ih,
            weight_hh,
            bias_ih: rows.next().map(flat),
            bias_hh: rows.next().map(flat),
        })
    }

    /// Converts to a Keras layer: kernel `[I, 3U]`, recurrent kernel `[U, 3U]` and bias. The bias
    /// is `[2, 3U]` for `reset_after=True` ([`Reset::After`]) and `[3U]` for `reset_after=False`
    /// ([`Reset::Before`]). With `Reset::Before` both biases have the same effect, and their sum is
    /// returned.
    pub fn to_keras(&self, reset: Reset) -> (Array2<f32>, Array2<f32>, Option<ArrayD<f32>>) {
        let kernel = |weight: &Array2<f32>| swap_first_two(weight.view()).reversed_axes();
        let zeros = || Array1::zeros(self.weight_hh.nrows());
        let row = |bias: &Option<Array1<f32>>| {
            bias.as_ref().map_or_else(zeros, |bias| swap_first_two(bias.view()))
        };
        let bias = match (&self.bias_ih, &self.bias_hh, reset) {
            (None, None, _) => None,
            (Some(one), None, Reset::Before) => Some(swap_first_two(one.view()).into_dyn()),
            (ih, hh, Reset::Before) => Some((row(ih) + row(hh)).into_dyn()),
            (ih, hh, Reset::After) => {
                let rows = stack(Axis(0), &[row(ih).view(), row(hh).view()]);
                Some(rows.expect("rows of one length").into_dyn())
            }
        };
        let [kernel, recurrent] = [&self.weight_ih, &self.weight_hh].map(kernel);
        (kernel, recurrent, bias)
    }

    /// Converts one direction of an ONNX GRU: W `[3H, I]`, R `[3H, H]`, B `[6H]` (input bias, then
    /// recurrent bias), gates stacked z, r, h. ONNX needs
    /// [`Update::Keeps`](crate::Update::Keeps); `linear_before_reset` 0 means [`Reset::Before`], 1
    /// means [`Reset::After`].
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn from_onnx(
        w: ArrayView2<'_, f32>,
        r: ArrayView2<'_, f32>,
        b: Option<ArrayView1<'_, f32>>,
    ) -> Result<Self> {
        let (input, hidden) = (w.ncols(), r.ncols());
        check_shape("W [3H, I]", &[3 * hidden, input], w.shape())?;
        check_shape("R [3H, H]", &[3 * hidden, hidden], r.shape())?;
        let [mut bias_ih, mut bias_hh] = [None, None];
        if let Some(b) = b {
            check_shape("B [6H]", &[6 * hidden], b.shape())?;
            let (ih, hh) = b.split_at(Axis(0), 3 * hidden);
            (bias_ih, bias_hh) = (Some(swap_first_two(ih)), Some(swap_first_two(hh)));
        }
        Ok(Self { weight_ih: swap_first_two(w), weight_hh: swap_first_two(r), bias_ih, bias_hh })
    }

    /// Converts to one direction of an ONNX GRU: W `[3H, I]`, R `[3H, H]`, B `[6H]`.
    pub fn to_onnx(&self) -> (Array2<f32>, Array2<f32>, Option<Array1<f32>>) {
        let zeros = || Array1::zeros(self.weight_hh.nrows());
        let half = |bias: &Option<Array1<f32>>| {
            bias.clone().map_or_else(zeros, |bias| swap_first_two(bias.view()))
        };
        let b = (self.bias_ih.is_some() || self.bias_hh.is_some()).then(|| {
            let halves = [half(&self.bias_ih), half(&self.bias_hh)];
            concatenate(Axis(0), &[halves[0].view(), halves[1].view()]).expect("two halves")
        });
        (swap_first_two(self.weight_ih.view()), swap_first_two(self.weight_hh.view()), b)
    }

    /// Converts an MLX `nn.GRU`: `Wx [3H, I]`, `Wh [3H, H]`, `b [3H]`, `bhn [H]`, gates stacked r,
    /// z, n. MLX needs [`Reset::After`] and [`Update::Keeps`](crate::Update::Keeps); its r and z
    /// have one bias each.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn from_mlx(
        wx: ArrayView2<'_, f32>,
        wh: ArrayView2<'_, f32>,
        b: Option<ArrayView1<'_, f32>>,
        bhn: Option<ArrayView1<'_, f32>>,
    ) -> Result<Self> {
        let (input, hidden) = (wx.ncols(), wh.ncols());
        check_shape("Wh [3H, H]", &[3 * hidden, hidden], wh.shape())?;
        check_shape("Wx [3H, I]", &[3 * hidden, input], wx.shape())?;
        if let Some(b) = &b {
            check_shape("b [3H]", &[3 * hidden], b.shape())?;
        }
        let bias_hh = bhn.map(|bhn| {
            check_shape("bhn [H]", &[hidden], bhn.shape())?;
            let mut bias = Array1::zeros(3 * hidden);
            bias.slice_mut(s![2 * hidden..]).assign(&bhn);
            Ok(bias)
        });
        Ok(Self {
            weight_ih: wx.as_standard_layout().into_owned(),
            weight_hh: wh.as_standard_layout().into_owned(),
            bias_ih: b.map(|b| b.to_owned()),
            bias_hh: bias_hh.transpose()?,
        })
    }

    /// Converts a Flax `nn.GRUCell`. Flax needs [`Reset::After`] and
    /// [`Update::Keeps`](crate::Update::Keeps); its r and z have one bias each.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn from_flax(cell: &FlaxCell) -> Result<Self> {
        let (input, hidden) = cell.input_kernels[0].dim();
        for kernel in &cell.input_kernels {
            check_shape("a kernel of ir, iz, in [I, H]", &[input, hidden], kernel.shape())?;
        }
        for kernel in &cell.recurrent_kernels {
            check_shape("a kernel of hr, hz, hn [H, H]", &[hidden, hidden], kernel.shape())?;
        }
        for bias in cell.input_biases.iter().flatten().chain(&cell.hn_bias) {
            check_shape("a bias [H]", &[hidden], bias.shape())?;
        }
        let stacked = |kernels: &[Array2<f32>; 3]| {
            let [r, z, n] = kernels.each_ref().map(|kernel| kernel.t());
            let weight = concatenate(Axis(0), &[r, z, n]).expect("the kernels have the same width");
            weight.as_standard_layout().into_owned()
        };
        let wx = stacked(&cell.input_kernels);
        let wh = stacked(&cell.recurrent_kernels);
        let b = cell.input_biases.as_ref().map(|biases| {
            let views = biases.each_ref().map(|bias| bias.view());
            concatenate(Axis(0), &views).expect("vectors")
        });
        let hn_bias = cell.hn_bias.as_ref().map(|bias| bias.view());
        Self::from_mlx(wx.view(), wh.view(), b.as_ref().map(|b| b.view()), hn_bias)
    }

    /// Converts to the dense layers of a Flax `nn.GRUCell`. Biases are treated as in
    /// [`Self::to_mlx`].
    pub fn to_flax(&self) -> FlaxCell {
        let MlxCell { wx, wh, b, bhn } = self.to_mlx();
        let hidden = wh.ncols();
        let gate = |gate: usize| gate * hidden..(gate + 1) * hidden;
        let kernels = |weight: &Array2<f32>| {
            [0, 1, 2].map(|g| weight.slice(s![gate(g), ..]).t().as_standard_layout().into_owned())
        };
        FlaxCell {
            input_kernels: kernels(&wx),
            input_biases: b.map(|b| [0, 1, 2].map(|g| b.slice(s![gate(g)]).to_owned())),
            recurrent_kernels: kernels(&wh),
            hn_bias: bhn,
        }
    }

    /// Converts to MLX's `Wx`, `Wh`, `b`, `bhn`. MLX has no recurrent biases of r and z; they are
    /// added to the input biases, which have the same effect.
    pub fn to_mlx(&self) -> MlxCell {
        let hidden = self.weight_hh.ncols();
        let bhn = self.bias_hh.as_ref().map(|bias| bias.slice(s![2 * hidden..]).to_owned());
        let mut b = self.bias_ih.clone();
        if let Some(hh) = &self.bias_hh {
            let b = b.get_or_insert_with(|| Array1::zeros(3 * hidden));
            let mut rz = b.slice_mut(s![..2 * hidden]);
            rz += &hh.slice(s![..2 * hidden]);
        }
        MlxCell { wx: self.weight_ih.clone(), wh: self.weight_hh.clone(), b, bhn }
    }

    /// Negates the weights and biases of z, which exchanges the two meanings of z if
    /// [`can_negate_z`].
    #[cfg(any(feature = "npy", feature = "onnx", feature = "pytorch", feature = "safetensors"))]
    pub(super) fn negate_z(&mut self) {
        let hidden = self.weight_hh.ncols();
        for weight in [&mut self.weight_ih, &mut self.weight_hh] {
            weight.slice_mut(s![hidden..2 * hidden, ..]).mapv_inplace(|w| -w);
        }
        for bias in [&mut self.bias_ih, &mut self.bias_hh].into_iter().flatten() {
            bias.slice_mut(s![hidden..2 * hidden]).mapv_inplace(|b| -b);
        }
    }
}

/// Returns true if negating the weights and biases of z turns [`Update::Overwrites`] into
/// [`Update::Keeps`]: if 1 − f(a) = f(−a) for the gates' function f.
///
/// [`Update::Overwrites`]: crate::Update::Overwrites
/// [`Update::Keeps`]: crate::Update::Keeps
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
pub(super) fn can_negate_z(config: &GruConfig) -> bool {
    let reverse = config.reverse_activations.unwrap_or(config.activations);
    [config.activations.gate, reverse.gate].into_iter().all(|gate| match gate {
        Activation::Sigmoid => true,
        Activation::HardSigmoid { beta, .. } | Activation::Affine { beta, .. } => beta == 0.5,
        _ => false,
    })
}

/// Returns the arrays of a layer of ONNX's GRU by name: W `[D, 3H, I]`, R `[D, 3H, H]` and, if a
/// cell has a bias, B `[D, 6H]`. `cells` are the layer's directions.
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
pub(super) fn onnx_layer(cells: &[Cell]) -> Vec<(&'static str, ArrayD<f32>)> {
    let (mut w, mut r, mut b) = (Vec::new(), Vec::new(), Vec::new());
    for cell in cells {
        let onnx = cell.to_onnx();
        w.push(onnx.0);
        r.push(onnx.1);
        b.extend(onnx.2);
    }
    let mut arrays = vec![("W", stacked(&w)), ("R", stacked(&r))];
    if !b.is_empty() {
        arrays.push(("B", stacked(&b)));
    }
    arrays
}

/// Stacks the arrays of each direction as `[D, ..]`.
#[cfg(any(feature = "npy", feature = "onnx", feature = "safetensors"))]
fn stacked<D: ndarray::Dimension>(each: &[Array<f32, D>]) -> ArrayD<f32>
where
    D::Larger: ndarray::RemoveAxis,
{
    let views: Vec<_> = each.iter().map(|array| array.view()).collect();
    stack(Axis(0), &views).expect("directions have the same shapes").into_dyn()
}

/// Swaps the first two thirds along the first axis: from z, r, n to r, z, n or back.
fn swap_first_two<D: ndarray::RemoveAxis>(stacked: ArrayView<'_, f32, D>) -> Array<f32, D> {
    let hidden = stacked.len_of(Axis(0)) / 3;
    let (z, rest) = stacked.split_at(Axis(0), hidden);
    let (r, n) = rest.split_at(Axis(0), hidden);
    let swapped = concatenate(Axis(0), &[r, z, n]).expect("the thirds have the same width");
    swapped.as_standard_layout().into_owned()
}

fn flat(bias: ArrayD<f32>) -> Array1<f32> {
    bias.into_dimensionality().expect("the bias has one axis")
}

impl Params {
    /// Returns the parameters made from a model's cells: layer-major, forward before reverse. A
    /// bias that `config` has but a cell lacks becomes zeros.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of cells or their shapes are not those that `config`
    /// requires; [`Error::Conflict`] if a cell has a bias with nonzero elements that `config` does
    /// not have; the errors of [`GruConfig::validate`].
    pub fn from_cells(config: &GruConfig, cells: &[Cell]) -> Result<Self> {
        let mut params = Self::zeros(config)?;
        let names: Vec<_> = config.cell_names().collect();
        check_shape("the cells [L·D]", &[names.len()], &[cells.len()])?;
        let has_bias = (config.bias != Bias::None, config.bias == Bias::Two);
        for (name, cell) in names.iter().zip(cells) {
            params.set(&format!("weight_ih{name}"), cell.weight_ih.view().into_dyn())?;
            params.set(&format!("weight_hh{name}"), cell.weight_hh.view().into_dyn())?;
            for (kind, bias, has_bias) in
                [("bias_ih", &cell.bias_ih, has_bias.0), ("bias_hh", &cell.bias_hh, has_bias.1)]
            {
                let Some(bias) = bias else { continue };
                if has_bias {
                    params.set(&format!("{kind}{name}"), bias.view().into_dyn())?;
                } else if bias.iter().any(|&b| b != 0.0) {
                    return Err(Error::Conflict {
                        what: "a configuration without this bias and a cell with it",
                        why: "the bias would be lost; choose another Bias (GruConfig::with_bias)",
                    });
                }
            }
        }
        Ok(params)
    }

    /// Returns the parameters as cells: layer-major, forward before reverse.
    pub fn to_cells(&self) -> Vec<Cell> {
        let config = self.layout().config();
        let array = |kind: &str, name: &str| self.get(&format!("{kind}{name}")).ok();
        let weight = |kind: &str, name: &str| {
            let weight = array(kind, name).expect("every cell has weights").to_owned();
            weight.into_dimensionality().expect("weights have two axes")
        };
        let bias = |kind: &str, name: &str| array(kind, name).map(|bias| flat(bias.to_owned()));
        let cell = |name: String| Cell {
            weight_ih: weight("weight_ih", &name),
            weight_hh: weight("weight_hh", &name),
            bias_ih: bias("bias_ih", &name),
            bias_hh: bias("bias_hh", &name),
        };
        config.cell_names().map(cell).collect()
    }
}
