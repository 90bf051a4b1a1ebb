//! The arrays of a GRU in the layouts of Keras, Flax, MLX and ONNX: their names, and the
//! [`Cell`]s that they make.

use std::collections::BTreeMap;

use ndarray::{Array1, ArrayD, ArrayView, ArrayViewD, Dimension};

use super::StateDict;
use crate::error::{Error, Result, quote};
use crate::formats::cell::{Cell, FlaxCell};
use crate::formats::files::check_finite;
use crate::formats::weight_layout::WeightLayout;
use crate::spec::config::{Bias, Reset};

/// The names of one cell's arrays. Flax has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Form {
    Keras,
    Linen,
    Nnx,
    Mlx,
    Onnx,
}

impl Form {
    const ALL: [Self; 5] = [Self::Keras, Self::Linen, Self::Nnx, Self::Mlx, Self::Onnx];

    pub fn layout(self) -> WeightLayout {
        match self {
            Self::Keras => WeightLayout::Keras,
            Self::Linen | Self::Nnx => WeightLayout::Flax,
            Self::Mlx => WeightLayout::Mlx,
            Self::Onnx => WeightLayout::Onnx,
        }
    }

    /// The names of the weights, then those of the biases.
    fn arrays(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Keras => (&["kernel", "recurrent_kernel"], &["bias"]),
            Self::Linen => (
                &["ir/kernel", "iz/kernel", "in/kernel", "hr/kernel", "hz/kernel", "hn/kernel"],
                &["ir/bias", "iz/bias", "in/bias", "hn/bias"],
            ),
            Self::Nnx => (&["dense_i/kernel", "dense_h/kernel"], &["dense_i/bias"]),
            Self::Mlx => (&["Wx", "Wh"], &["b", "bhn"]),
            Self::Onnx => (&["W", "R"], &["B"]),
        }
    }

    fn all_arrays(self) -> impl Iterator<Item = &'static str> {
        let (weights, biases) = self.arrays();
        weights.iter().chain(biases).copied()
    }

    /// Splits a name into a prefix and the number of an array of this form.
    fn parse(self, name: &str) -> Option<(&str, usize)> {
        // TensorFlow adds the number of an operation's output.
        let name = if self == Self::Keras { name.strip_suffix(":0").unwrap_or(name) } else { name };
        self.all_arrays().enumerate().find_map(|(number, array)| {
            let mut rest = name;
            for part in array.rsplit('/') {
                if rest.len() < name.len() {
                    rest = rest.strip_suffix(['/', '.'])?;
                }
                rest = rest.strip_suffix(part)?;
            }
            (rest.is_empty() || rest.ends_with(['/', '.'])).then_some((rest, number))
        })
    }
}

/// Whether arrays are those of a GRU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gru,
    /// They have names of a GRU, but a weight is missing or has other axes.
    Incomplete,
    /// An LSTM, a plain RNN, a dense layer.
    Other,
}

/// The names of the arrays of one cell; for ONNX, of all directions of a layer.
#[derive(Clone, Debug)]
pub(super) struct CellArrays {
    pub form: Form,
    /// What stands in front of the arrays' names.
    pub prefix: String,
    /// The full name of each array, or of several for one.
    names: Vec<Vec<String>>,
}

/// What the arrays of a cell hold.
pub(super) struct StoredCell {
    /// One cell, or two for two directions in the same arrays.
    pub cells: Vec<Cell>,
    /// Where the reset gate acts, if the arrays tell.
    pub reset: Option<Reset>,
    /// The biases that are there.
    pub bias: Bias,
}

/// Returns the arrays of every possible cell in a file, sorted by form and prefix.
pub(super) fn find(dict: &impl StateDict) -> Vec<CellArrays> {
    let mut found = BTreeMap::<(Form, String), Vec<Vec<String>>>::new();
    for name in dict.names() {
        for form in Form::ALL {
            let Some((prefix, number)) = form.parse(&name) else { continue };
            let names = found.entry((form, prefix.to_owned()));
            let names = names.or_insert_with(|| vec![Vec::new(); form.all_arrays().count()]);
            names[number].push(name.clone().into_owned());
        }
    }
    let cell = |((form, prefix), names)| CellArrays { form, prefix, names };
    found.into_iter().map(cell).collect()
}

impl CellArrays {
    /// Returns whether the arrays are those of a GRU, by their names and shapes.
    pub fn kind(&self, dict: &impl StateDict) -> Kind {
        let count = self.form.arrays().0.len();
        let has = |number: usize| !self.names[number].is_empty();
        if self.form == Form::Linen {
            // `in` and `hn` are also those of an MGU.
            return match (0..count).filter(|&number| has(number)).count() {
                6 => Kind::Gru,
                _ if [0, 1, 3, 4].into_iter().any(has) => Kind::Incomplete,
                _ => Kind::Other,
            };
        }
        if !has(1) {
            // A kernel alone is a dense layer's, and W may be anything.
            let is_named = has(0) && matches!(self.form, Form::Nnx | Form::Mlx);
            return if is_named { Kind::Incomplete } else { Kind::Other };
        }
        let Some(shape) = dict.shape(&self.names[1][0]) else { return Kind::Incomplete };
        let (gates, hidden) = match (self.form, &shape[..]) {
            (Form::Keras | Form::Nnx, &[hidden, gates]) => (gates, hidden),
            (Form::Mlx, &[gates, hidden]) | (Form::Onnx, &[_, gates, hidden]) => (gates, hidden),
            _ => return Kind::Other,
        };
        match gates {
            _ if hidden.checked_mul(3) == Some(gates) && has(0) => Kind::Gru,
            _ if gates == hidden || hidden.checked_mul(4) == Some(gates) => Kind::Other,
            _ if self.form == Form::Onnx && !has(0) => Kind::Other,
            _ => Kind::Incomplete,
        }
    }

    /// The number of elements of all arrays.
    pub fn count(&self, dict: &impl StateDict) -> u64 {
        let shapes = self.names.iter().flatten().filter_map(|name| dict.shape(name));
        let count = |shape: Vec<usize>| {
            shape.iter().fold(1u64, |count, &size| count.saturating_mul(size as u64))
        };
        shapes.map(count).fold(0, u64::saturating_add)
    }

    /// Reads the arrays.
    pub fn read(&self, dict: &mut impl StateDict, allow_non_finite: bool) -> Result<StoredCell> {
        self.check_names(dict)?;
        let mut arrays = Vec::new();
        for name in &self.names {
            let array = name.first().map(|name| dict.tensor(name)).transpose()?;
            if let (Some(array), false) = (&array, allow_non_finite) {
                check_finite(&name[0], array.iter())?;
            }
            arrays.push(array);
        }
        let stored = match self.form {
            Form::Keras => self.keras(&arrays),
            Form::Linen => self.linen(&arrays),
            Form::Nnx => self.nnx(&arrays),
            Form::Mlx => self.mlx(&arrays),
            Form::Onnx => self.onnx(&arrays),
        };
        stored.map_err(|error| match error {
            Error::Shape { .. } => Error::format(format!("{}: {error}", self.quoted())),
            other => other,
        })
    }

    /// True if one of the arrays has this name.
    fn has(&self, name: &str) -> bool {
        self.names.iter().flatten().any(|known| known == name)
    }

    fn quoted(&self) -> String {
        match self.prefix.trim_end_matches(['/', '.']) {
            "" => format!("the arrays of {}", self.form.layout()),
            prefix => quote(prefix),
        }
    }

    /// Checks that every weight is there, that no array is there twice, and that none is there that
    /// would change what the cell computes.
    fn check_names(&self, dict: &impl StateDict) -> Result<()> {
        let wrong = |reason: String| Err(Error::format(reason));
        let arrays: Vec<_> = self.form.all_arrays().collect();
        for (number, names) in self.names.iter().enumerate() {
            match &names[..] {
                [one, other, ..] => {
                    return wrong(format!(
                        "{} and {} have the same meaning; expected one of them",
                        quote(one),
                        quote(other)
                    ));
                }
                [] if number < self.form.arrays().0.len() => {
                    let missing = format!("{}{}", self.prefix, arrays[number]);
                    return wrong(format!("there is no array {}", quote(&missing)));
                }
                _ => {}
            }
        }
        let folders: Vec<_> =
            arrays.iter().filter_map(|array| Some(array.split_once('/')?.0)).collect();
        let is_unknown = |name: &str| {
            let Some(rest) = name.strip_prefix(&self.prefix) else { return false };
            let is_inside = match rest.split_once(['/', '.']) {
                Some((folder, _)) => folders.contains(&folder),
                None => true,
            };
            is_inside && !self.has(name) && super::pytorch::parse(name).is_none()
        };
        let unknown: Vec<_> = dict.names().filter(|name| is_unknown(name)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        // They may belong to a GRU of another layout.
        let others = find(dict).into_iter().filter(|other| {
            let is_other = other.form != self.form && other.prefix == self.prefix;
            is_other && other.kind(dict) == Kind::Gru
        });
        let others: Vec<_> = others.collect();
        let unknown = unknown.iter().find(|name| !others.iter().any(|other| other.has(name)));
        match unknown {
            None => Ok(()),
            Some(name) => wrong(format!(
                "there is an unexpected array {} beside those of a {}",
                quote(name),
                self.form.layout().gru()
            )),
        }
    }

    /// Views an array with the number of axes of `D`. `axes` describes them.
    fn axes<'a, D: Dimension>(
        &self,
        array: &'a ArrayD<f32>,
        number: usize,
        axes: &str,
    ) -> Result<ArrayView<'a, f32, D>> {
        array.view().into_dimensionality().map_err(|error| {
            let (name, shape) = (quote(&self.names[number][0]), array.shape());
            Error::format_from(format!("{name} has shape {shape:?}, expected {axes}"), error)
        })
    }

    /// Returns the error that only some of the biases are there.
    fn some_biases(&self) -> Error {
        let names = self.form.arrays().1.join(", ");
        Error::format(format!("{}: expected all of the biases {names}, or none", self.quoted()))
    }

    fn keras(&self, arrays: &[Option<ArrayD<f32>>]) -> Result<StoredCell> {
        let [Some(kernel), Some(recurrent), bias] = arrays else { return Err(self.some_biases()) };
        let kernel = self.axes(kernel, 0, "[I, 3U]")?;
        let recurrent = self.axes(recurrent, 1, "[U, 3U]")?;
        let bias = bias.as_ref().map(|bias| bias.view());
        let (reset, kind) = match bias.as_ref().map(ArrayViewD::ndim) {
            None => (None, Bias::None),
            Some(1) => (Some(Reset::Before), Bias::One),
            _ => (Some(Reset::After), Bias::Two),
        };
        // from_keras takes any other number of axes for one row.
        if bias.as_ref().is_some_and(|bias| bias.ndim() == 0 || bias.ndim() > 2) {
            let shape = bias.map(|bias| bias.shape().to_vec());
            let name = quote(&self.names[2][0]);
            let reason = format!("{name} has shape {shape:?}, expected [2, 3U] or [3U]");
            return Err(Error::format(reason));
        }
        let cell = Cell::from_keras(kernel, recurrent, bias)?;
        Ok(StoredCell { cells: vec![cell], reset, bias: kind })
    }

    fn linen(&self, arrays: &[Option<ArrayD<f32>>]) -> Result<StoredCell> {
        let two = |number: usize, axes: &str| {
            let array = arrays[number].as_ref().expect("the names were checked");
            Ok::<_, Error>(self.axes(array, number, axes)?.to_owned())
        };
        let inputs = [two(0, "[I, H]")?, two(1, "[I, H]")?, two(2, "[I, H]")?];
        let recurrent = [two(3, "[H, H]")?, two(4, "[H, H]")?, two(5, "[H, H]")?];
        let biases: Vec<Array1<f32>> = (6..10)
            .filter_map(|number| Some((number, arrays[number].as_ref()?)))
            .map(|(number, array)| Ok(self.axes(array, number, "[H]")?.to_owned()))
            .collect::<Result<_>>()?;
        let (input_biases, hn_bias) = match <[_; 4]>::try_from(biases) {
            Ok([r, z, n, hn]) => (Some([r, z, n]), Some(hn)),
            Err(none) if none.is_empty() => (None, None),
            Err(_) => return Err(self.some_biases()),
        };
        let bias = if hn_bias.is_some() { Bias::Two } else { Bias::None };
        let cell =
            FlaxCell { input_kernels: inputs, input_biases, recurrent_kernels: recurrent, hn_bias };
        let cells = vec![Cell::from_flax(&cell)?];
        Ok(StoredCell { cells, reset: Some(Reset::After), bias })
    }

    /// The kernels are those of MLX, transposed.
    fn nnx(&self, arrays: &[Option<ArrayD<f32>>]) -> Result<StoredCell> {
        let [Some(input), Some(recurrent), bias] = arrays else { return Err(self.some_biases()) };
        let input: ArrayView<'_, f32, _> = self.axes(input, 0, "[I, 3H]")?;
        let recurrent: ArrayView<'_, f32, _> = self.axes(recurrent, 1, "[H, 3H]")?;
        let bias = bias.as_ref().map(|bias| self.axes(bias, 2, "[3H]")).transpose()?;
        let kind = if bias.is_some() { Bias::One } else { Bias::None };
        let cell = Cell::from_mlx(input.reversed_axes(), recurrent.reversed_axes(), bias, None)?;
        Ok(StoredCell { cells: vec![cell], reset: Some(Reset::After), bias: kind })
    }

    fn mlx(&self, arrays: &[Option<ArrayD<f32>>]) -> Result<StoredCell> {
        let [Some(wx), Some(wh), b, bhn] = arrays else { return Err(self.some_biases()) };
        let (wx, wh) = (self.axes(wx, 0, "[3H, I]")?, self.axes(wh, 1, "[3H, H]")?);
        let b = b.as_ref().map(|b| self.axes(b, 2, "[3H]")).transpose()?;
        let bhn = bhn.as_ref().map(|bhn| self.axes(bhn, 3, "[H]")).transpose()?;
        let bias = match (&b, &bhn) {
            (Some(_), Some(_)) => Bias::Two,
            (None, None) => Bias::None,
            _ => return Err(self.some_biases()),
        };
        let cells = vec![Cell::from_mlx(wx, wh, b, bhn)?];
        Ok(StoredCell { cells, reset: Some(Reset::After), bias })
    }

    fn onnx(&self, arrays: &[Option<ArrayD<f32>>]) -> Result<StoredCell> {
        let [Some(w), Some(r), b] = arrays else { return Err(self.some_biases()) };
        let w: ArrayView<'_, f32, ndarray::Ix3> = self.axes(w, 0, "[D, 3H, I]")?;
        let r: ArrayView<'_, f32, ndarray::Ix3> = self.axes(r, 1, "[D, 3H, H]")?;
        let b: Option<ArrayView<'_, f32, ndarray::Ix2>> =
            b.as_ref().map(|b| self.axes(b, 2, "[D, 6H]")).transpose()?;
        let count = w.dim().0;
        let same = r.dim().0 == count && b.as_ref().is_none_or(|b| b.nrows() == count);
        if !same || !(1..=2).contains(&count) {
            return Err(Error::format(format!(
                "{}: W has shape {:?}, R {:?}{}; expected D, 1 or 2, as the first size of each",
                self.quoted(),
                w.shape(),
                r.shape(),
                b.map_or_else(String::new, |b| format!(", B {:?}", b.shape()))
            )));
        }
        let bias = if b.is_some() { Bias::Two } else { Bias::None };
        let cell = |direction: usize| {
            let b = b.as_ref().map(|b| b.row(direction));
            Cell::from_onnx(
                w.index_axis(ndarray::Axis(0), direction),
                r.index_axis(ndarray::Axis(0), direction),
                b,
            )
        };
        let cells = (0..count).map(cell).collect::<Result<_>>()?;
        Ok(StoredCell { cells, reset: None, bias })
    }
}
