//! [`Planner`]: what every stage of a run draws on, the buffers and where things lie in them.

use std::ops::Range;

use super::products::{Operand, Products, product};
use super::tiles::Tiles;
use super::{
    BufferId, Buffers, DeviceCaps, Mode, Purpose, Role, RunBuffers, Slice, TrainingBuffers,
};
use crate::error::Result;
use crate::spec::config::{Layout, Shape};
use crate::spec::head::Readout;
use crate::spec::noise::DRAW_WORDS;
use crate::spec::options::RunOptions;
use crate::spec::params::ParamLayout;

/// What every stage of a run draws on.
pub(super) struct Planner<'a> {
    pub layout: &'a ParamLayout,
    pub shape: Shape,
    pub mode: Mode,
    pub purpose: Purpose,
    pub caps: &'a DeviceCaps,
    pub tiles: Tiles,
    /// Steps of each batch row that a buffer `gates` has room for.
    pub gates_times: usize,
    /// Whether the gates of a forward pass are there for the backward pass, in as many buffers as they need.
    pub keeps_gates: bool,
    pub buffers: Buffers,
    pub run: RunBuffers,
    /// A layer each, or in inference one for all.
    pub layers: Vec<LayerBuffers>,
    /// `[3H]` of zeros: the hidden bias of a model without one.
    pub zeros: BufferId,
    pub products: Products<'a>,
}

/// What the steps of a layer read and write.
#[derive(Clone, Copy)]
pub(super) struct LayerBuffers {
    /// `[D, T, B, 4H]`: r, z, n, past; in backward their gradients. Where they are kept and one buffer
    /// cannot hold them, the first of several of some steps each.
    pub gates: BufferId,
    /// `[D, T, B, H]`: the state that each step starts from. In inference the last two suffice.
    pub h: BufferId,
    /// `[T, B, D·H]`: the layer's output, of the last one y.
    pub y: BufferId,
}

/// How the rows of a matrix of sequences follow one another.
pub(super) struct RowStrides {
    pub time: usize,
    pub row: usize,
}

/// Some steps of a direction, counted as it goes: those whose gates are at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub first: usize,
    pub steps: usize,
}

impl Span {
    pub fn end(self) -> usize {
        self.first + self.steps
    }
}

impl<'a> Planner<'a> {
    pub fn new(
        layout: &'a ParamLayout,
        shape: Shape,
        mode: Mode,
        options: RunOptions,
        purpose: Purpose,
        caps: &'a DeviceCaps,
    ) -> Result<Self> {
        let gates_times = match mode {
            Mode::Inference => used_at_once(shape, caps),
            Mode::Training => {
                let kept = bound_at_once(shape, caps);
                if options.recompute { kept.min(recomputed_at_once(shape.steps)) } else { kept }
            }
        };
        let recomputes = mode == Mode::Inference || options.recompute;
        let keeps_gates = !recomputes || gates_times == shape.steps;
        let tiles = Tiles::choose(layout.config(), shape.batch, options.recurrence, caps)?;
        let Shape { steps, batch, input, hidden, directions, layers, .. } = shape;
        let (rows, width) = (steps * batch, directions * hidden);
        let [first, second] = shape.layout.order("T", "B");
        let x_axes = format!("[{first}, {second}, I]");
        let y_axes = format!("[{first}, {second}, {}H]", if directions == 1 { "" } else { "2" });
        let mut buffers = Buffers::default();
        let x = buffers.add("x", x_axes.as_str(), rows * input, Role::Input);
        let marks_axes = if mode == Mode::Training { "[T, B] + seed" } else { "[T, B]" };
        let marks_len = rows + if mode == Mode::Training { DRAW_WORDS } else { 0 };
        let step_flags = buffers.add("step_flags", marks_axes, marks_len, Role::Input);
        let states_len = 3 * layers * directions * batch * hidden;
        let states = buffers.add("states", "[3, L·D, B, H]", states_len, Role::InputOutput);
        let y = buffers.add("y", y_axes.as_str(), rows * width, Role::Output);
        let params = buffers.add("params", "flat", layout.flat_len(), Role::Parameters);
        let zeros = buffers.add("zeros", "[3H]", 3 * hidden, Role::Zeros);
        let head = Self::add_head(&mut buffers, layout, shape, purpose);
        let mut run = RunBuffers { x, step_flags, states, y, params, training: None, head };
        let layers = match mode {
            // A layer's input is spent before its steps put anything out in its place.
            Mode::Inference => {
                let gates = Self::add_gates(&mut buffers, shape, gates_times, "");
                vec![Self::add_layer(&mut buffers, shape, mode, "", gates, y); layers]
            }
            Mode::Training => {
                let t = TrainingBuffers {
                    dy: buffers.add("dy", y_axes.as_str(), rows * width, dy_role(layout, purpose)),
                    dstates: buffers.add(
                        "dstates",
                        "[3, L·D, B, H]",
                        states_len,
                        Role::InputOutput,
                    ),
                    dx: (0..layers)
                        .map(|layer| match (layer, purpose) {
                            (0, Purpose::Loss(_)) => None,
                            (0, _) => {
                                Some(buffers.add("dx", x_axes.as_str(), rows * input, Role::Output))
                            }
                            _ => {
                                let name = format!("dx_l{layer}");
                                let len = rows * width;
                                Some(buffers.add(&name, y_axes.as_str(), len, Role::Scratch))
                            }
                        })
                        .collect(),
                    dparams: buffers.add("dparams", "flat", layout.flat_len(), Role::Output),
                };
                run.training = Some(t);
                // Made again when they are needed, they need not outlast their layer.
                let shared =
                    (!keeps_gates).then(|| Self::add_gates(&mut buffers, shape, gates_times, ""));
                let make = |layer| {
                    // One layer's buffers need no number to tell them apart.
                    let number = if layers == 1 { String::new() } else { format!("_l{layer}") };
                    let y = match layer + 1 < layers {
                        true => {
                            let name = format!("y{number}");
                            buffers.add(&name, y_axes.as_str(), rows * width, Role::Scratch)
                        }
                        false => y,
                    };
                    let gates = match shared {
                        Some(gates) => gates,
                        None if gates_times == steps => {
                            Self::add_gates(&mut buffers, shape, gates_times, &number)
                        }
                        None => {
                            let first = buffers.next_id();
                            (0..steps.div_ceil(gates_times)).for_each(|span| {
                                let number = format!("{number}_s{span}");
                                Self::add_gates(&mut buffers, shape, gates_times, &number);
                            });
                            first
                        }
                    };
                    Self::add_layer(&mut buffers, shape, mode, &number, gates, y)
                };
                (0..layers).map(make).collect()
            }
        };
        let products = Products::new(caps, buffers.next_id());
        Ok(Self {
            layout,
            shape,
            mode,
            purpose,
            caps,
            tiles,
            gates_times,
            keeps_gates,
            buffers,
            run,
            layers,
            zeros,
            products,
        })
    }

    fn add_layer(
        buffers: &mut Buffers,
        shape: Shape,
        mode: Mode,
        number: &str,
        gates: BufferId,
        y: BufferId,
    ) -> LayerBuffers {
        let h_times = h_times(mode, shape.steps);
        let (axes, len) = of_cells(shape, h_times, "H", shape.hidden);
        LayerBuffers { gates, h: buffers.add(&format!("h{number}"), axes, len, Role::Scratch), y }
    }

    fn add_gates(buffers: &mut Buffers, shape: Shape, times: usize, number: &str) -> BufferId {
        let (axes, len) = of_cells(shape, times, "4H", 4 * shape.hidden);
        buffers.add(&format!("gates{number}"), axes, len, Role::Scratch)
    }

    /// The steps in spans whose gates a buffer has room for.
    pub fn spans(&self) -> impl DoubleEndedIterator<Item = Span> + use<> {
        let (steps, most) = (self.shape.steps, self.gates_times);
        (0..steps.div_ceil(most)).map(move |i| {
            let first = i * most;
            Span { first, steps: most.min(steps - first) }
        })
    }

    /// States of each batch row that a layer's `h` holds.
    pub fn h_times(&self) -> usize {
        h_times(self.mode, self.shape.steps)
    }

    /// How rows follow one another in arrays that hold `times` steps of each batch row.
    pub fn strides(&self, times: usize) -> RowStrides {
        match self.shape.layout {
            Layout::TimeMajor => RowStrides { time: self.shape.batch, row: 1 },
            Layout::BatchFirst => RowStrides { time: 1, row: times },
        }
    }

    /// Where a layer's `[D, B, H]` lie in states: of the first, the reset or the last ones.
    pub fn states_at(&self, layer: usize, section: usize) -> usize {
        let Shape { batch, hidden, directions, layers, .. } = self.shape;
        (section * layers + layer) * directions * batch * hidden
    }

    /// A layer's input, and where its gradient goes.
    pub fn input(&self, layer: usize) -> Slice {
        self.buffers.whole(match layer {
            0 => self.run.x,
            _ => self.layers[layer - 1].y,
        })
    }

    /// A span's rows of a sequence `[T, B, width]`, in the run's layout, from element `first` of the slice.
    pub fn rows(
        &self,
        (slice, first): (Slice, usize),
        width: usize,
        direction: usize,
        span: Span,
    ) -> Operand {
        let steps = self.shape.steps;
        let reverse = self.layout.config().direction.is_reverse(direction);
        let time = if reverse { steps - span.end() } else { span.first };
        let all = Operand::plain(slice, first + time * self.strides(steps).time * width, width);
        match self.shape.layout {
            Layout::BatchFirst if span.steps < steps => all.in_runs(span.steps, steps * width),
            Layout::BatchFirst | Layout::TimeMajor => all,
        }
    }

    /// A span's rows of the states that a direction's steps start from. Of a training plan.
    pub fn states(&self, layer: usize, direction: usize, span: Span) -> Operand {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let first = direction * steps * batch * hidden;
        let h = self.buffers.whole(self.layers[layer].h);
        self.rows((h, first), hidden, direction, span)
    }

    /// The gates of a span's steps.
    pub fn gates(&self, layer: usize, span: Span) -> Slice {
        let BufferId(first) = self.layers[layer].gates;
        let nth = if self.keeps_gates { span.first / self.gates_times } else { 0 };
        self.buffers.whole(BufferId(first + nth))
    }

    /// Where a direction's gates start, from their column `column`.
    pub fn gates_at(&self, direction: usize, column: usize) -> usize {
        let Shape { batch, hidden, .. } = self.shape;
        direction * self.gates_times * batch * 4 * hidden + column
    }

    /// A named range of a buffer that is laid out as the parameters.
    pub fn parameter(&self, buffer: BufferId, range: Range<usize>) -> Slice {
        Slice { buffer, first: range.start, len: range.len() }
    }

    /// What a dispatch of a layer does, and of which where there are several.
    pub fn label(&self, layer: usize, what: &str) -> String {
        match self.shape.layers {
            1 => what.to_owned(),
            _ => format!("l{layer}: {what}"),
        }
    }

    /// The same for one direction.
    pub fn cell_label(&self, layer: usize, direction: usize, what: &str) -> String {
        let reverse =
            if self.layout.config().direction.is_reverse(direction) { "reverse: " } else { "" };
        self.label(layer, &format!("{reverse}{what}"))
    }
}

/// Who writes dy: the host, the head over every step, or nobody.
fn dy_role(layout: &ParamLayout, purpose: Purpose) -> Role {
    match (purpose, layout.head().map(|head| head.readout)) {
        (Purpose::Loss(_), Some(Readout::EveryStep)) => Role::Scratch,
        (Purpose::Loss(_), _) => Role::Zeros,
        _ => Role::Input,
    }
}

/// Backward needs every state that a step started from; forward alone, one to read and one to write.
fn h_times(mode: Mode, steps: usize) -> usize {
    match mode {
        Mode::Inference => steps.min(2),
        Mode::Training => steps,
    }
}

/// Steps whose gates are made again at once. An eighth of 4H and the other arrays of training, h, y and dy
/// of H each, are half of what they are with all of 4H.
pub(crate) fn recomputed_at_once(steps: usize) -> usize {
    steps.div_ceil(8)
}

/// Steps of an inference whose gates are there at once: all of them, or as many as the adapter can bind.
/// Between layers of two directions it must be all: there the reverse direction's first steps overwrite y
/// where the forward direction has yet to read what the layer below put out.
fn used_at_once(shape: Shape, caps: &DeviceCaps) -> usize {
    let Shape { steps, layers, directions, .. } = shape;
    if layers > 1 && directions > 1 {
        return steps;
    }
    steps_bound(shape, caps)
}

/// Steps of a training run whose gates one buffer holds, of as few buffers as there can be, alike in size.
fn bound_at_once(shape: Shape, caps: &DeviceCaps) -> usize {
    /// h and y, a quarter of the gates each, are bound whole: where these need many more buffers, the
    /// plan will be refused.
    const MOST: usize = 8;
    let Shape { steps, .. } = shape;
    match steps.div_ceil(steps_bound(shape, caps)) {
        count @ 1..=MOST => steps.div_ceil(count),
        _ => steps,
    }
}

/// Steps whose gates fit a buffer and a binding, or one where none do.
fn steps_bound(shape: Shape, caps: &DeviceCaps) -> usize {
    let Shape { steps, batch, hidden, directions, .. } = shape;
    let step = 4 * product([directions, batch, 4, hidden]);
    let limits = &caps.limits;
    let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / step;
    usize::try_from(most).unwrap_or(steps).clamp(1, steps)
}

/// Axes and length of an array `[D, times, B, width]`, in the run's layout.
fn of_cells(shape: Shape, times: usize, width: &str, width_len: usize) -> (String, usize) {
    let Shape { steps, batch, directions, layout, .. } = shape;
    let count = if times == steps { "T".to_owned() } else { times.to_string() };
    let [first, second] = layout.order(count.as_str(), "B");
    let prefix = if directions == 1 { "" } else { "2, " };
    (format!("[{prefix}{first}, {second}, {width}]"), directions * times * batch * width_len)
}
