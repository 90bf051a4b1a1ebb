//! [`ResultArray`]: the memory that a run's results are read into, new or the caller's.

use ndarray::{Array3, ArrayView3, ArrayViewMut3, Axis};

use crate::error::{Result, check_shape, checked_len, try_array, try_with_capacity};
use crate::gpu::host_copy::Destination;
use crate::model::output::{Output, OutputMut};
use crate::spec::config::{Layout, Shape};
use crate::spec::params::{Gradients, ParamLayout, Params};

/// A result of a run.
#[derive(Debug)]
pub(crate) enum ResultArray<'a> {
    /// New memory for a result that one read fills in order. The read is the first to touch it.
    Unwritten { shape: [usize; 3], elements: Vec<f32> },
    /// A new array of zeros.
    New(Array3<f32>),
    /// The caller's array, whose rows are contiguous.
    Given(ArrayViewMut3<'a, f32>),
    /// The caller's array, whose rows are not contiguous, and a new array. [`Self::finish`] copies.
    Copied(Array3<f32>, ArrayViewMut3<'a, f32>),
}

impl<'a> ResultArray<'a> {
    /// Returns the memory of a result of this shape: `given`, or new memory. `what` names it in
    /// errors. `is_one_read` promises that one read of all elements fills it.
    pub fn new(
        what: &'static str,
        shape: [usize; 3],
        given: Option<ArrayViewMut3<'a, f32>>,
        is_one_read: bool,
    ) -> Result<Self> {
        Ok(match given {
            None if is_one_read => {
                let elements = try_with_capacity(what, checked_len(what, &shape)?)?;
                Self::Unwritten { shape, elements }
            }
            None => Self::New(try_array(what, shape)?),
            Some(given) => {
                check_shape(what, &shape, given.shape())?;
                match given.len_of(Axis(2)) == 1 || given.stride_of(Axis(2)) == 1 {
                    true => Self::Given(given),
                    false => Self::Copied(try_array(what, shape)?, given),
                }
            }
        })
    }

    /// Returns where a read goes. `part` selects the part of the array that it fills.
    pub fn destination<'s>(
        &'s mut self,
        part: impl FnOnce(ArrayViewMut3<'s, f32>) -> ArrayViewMut3<'s, f32>,
    ) -> Destination<'s, f32> {
        match self {
            Self::Unwritten { elements, .. } => Destination::Vec(elements),
            written => Destination::rows(part(written.view_mut())),
        }
    }

    /// # Panics
    /// Before the read of an unwritten array.
    pub fn view(&self) -> ArrayView3<'_, f32> {
        match self {
            Self::Unwritten { .. } => unreachable!("an unwritten result has no view"),
            Self::New(array) | Self::Copied(array, _) => array.view(),
            Self::Given(given) => given.view(),
        }
    }

    /// # Panics
    /// Before the read of an unwritten array.
    pub fn view_mut(&mut self) -> ArrayViewMut3<'_, f32> {
        match self {
            Self::Unwritten { .. } => unreachable!("an unwritten result has no view"),
            Self::New(array) | Self::Copied(array, _) => array.view_mut(),
            Self::Given(given) => given.view_mut(),
        }
    }

    /// Ends the run: copies to a caller's array whose rows are not contiguous. Returns a new array;
    /// empty if the caller has the result.
    pub fn finish(self) -> Array3<f32> {
        match self {
            Self::Unwritten { shape, elements } => Array3::from_shape_vec(shape, elements)
                .expect("the plan and the shape have the same sizes"),
            Self::New(array) => array,
            Self::Given(_) => Array3::default([0, 0, 0]),
            Self::Copied(array, mut given) => {
                given.assign(&array);
                Array3::default([0, 0, 0])
            }
        }
    }
}

/// The results of a forward pass.
#[derive(Debug)]
pub(crate) struct OutputResults<'a> {
    pub y: ResultArray<'a>,
    pub h_n: ResultArray<'a>,
}

impl<'a> OutputResults<'a> {
    /// Returns the memory of the results of a run of `shape`: the caller's arrays, or new memory.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the caller's arrays have other shapes,
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(shape: Shape, given: Option<OutputMut<'a>>, is_one_read: bool) -> Result<Self> {
        let (y, h_n) = given.map(|OutputMut { y, h_n }| (y, h_n)).unzip();
        let what = match shape.layout {
            Layout::TimeMajor => "y [T, B, D·H]",
            Layout::BatchFirst => "y [B, T, D·H]",
        };
        Ok(Self {
            y: ResultArray::new(what, shape.y(), y, is_one_read)?,
            h_n: ResultArray::new("h_n [L·D, B, H]", shape.state(), h_n, is_one_read)?,
        })
    }

    /// Ends the run. Returns the new arrays.
    pub fn finish(self) -> Output {
        Output { y: self.y.finish(), h_n: self.h_n.finish() }
    }
}

/// The results of a backward pass.
#[derive(Debug)]
pub(crate) struct GradientResults<'a> {
    layout: ParamLayout,
    /// `[1, 1, parameters]`
    pub params: ResultArray<'a>,
    pub x: ResultArray<'a>,
    pub h0: ResultArray<'a>,
    pub reset_state: ResultArray<'a>,
}

impl<'a> GradientResults<'a> {
    /// Returns the memory of the results of a run of `shape`: the caller's gradients, or new memory.
    /// If several reads fill it, they add to the gradients of the parameters and the reset state,
    /// which are zeros.
    ///
    /// # Errors
    /// Those of [`OutputResults::new`].
    pub fn new(
        layout: &ParamLayout,
        shape: Shape,
        given: Option<&'a mut Gradients>,
        is_one_read: bool,
    ) -> Result<Self> {
        let flat = [1, 1, layout.flat_len()];
        let [mut params, mut x, mut h0, mut reset_state] = [const { None }; 4];
        if let Some(given) = given {
            let view = ArrayViewMut3::from_shape(flat, given.params.as_mut_slice());
            params = Some(view.expect("the caller's parameters have the model's layout"));
            [x, h0, reset_state] = [&mut given.x, &mut given.h0, &mut given.reset_state]
                .map(|array| Some(array.view_mut()));
        }
        let new = |what, shape, given| ResultArray::new(what, shape, given, is_one_read);
        let mut results = Self {
            layout: layout.clone(),
            params: new("the gradients of the parameters", flat, params)?,
            x: new("dx", shape.x(), x)?,
            h0: new("dh0 [L·D, B, H]", shape.state(), h0)?,
            reset_state: new("the gradient of the reset state", shape.state(), reset_state)?,
        };
        if !is_one_read {
            results.params.view_mut().fill(0.0);
            results.reset_state.view_mut().fill(0.0);
        }
        Ok(results)
    }

    /// Ends the run. Returns the new arrays; `None` if the caller has the results.
    pub fn finish(self) -> Option<Gradients> {
        let Self { layout, params, x, h0, reset_state } = self;
        let [params, x, h0, reset_state] = [params, x, h0, reset_state].map(|array| array.finish());
        let flat = params.into_raw_vec_and_offset().0;
        (!flat.is_empty()).then(|| Gradients {
            params: Params::from_flat(layout, flat),
            x,
            h0,
            reset_state,
        })
    }
}
