//! Models of other frameworks: their weights' layouts, in and out.
//!
//! Most wrong numbers come from here: the order of the gates, halves of biases, where the reset gate
//! acts. Weights from elsewhere become [`Cell`]s of this crate's own layout first, and a
//! [`Params`](crate::Params) is put together of those.

mod cell;

pub use cell::{Cell, FlaxCell, MlxCell};
