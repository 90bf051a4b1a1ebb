//! [`Allocation`]: the buffers of a run.

use super::products::product;
use super::{
    BufferId, BufferList, DeviceCaps, ElementType, HeadBuffers, LossBuffers, Mode, Role,
    RunBuffers, RunPurpose, TrainingBuffers,
};
use crate::spec::config::Shape;
use crate::spec::head::Readout;
use crate::spec::loss::Loss;
use crate::spec::noise::DRAW_SEED_LEN;
use crate::spec::options::RunOptions;
use crate::spec::params::ParamLayout;

/// The element type of parameters and of their gradients. Training adds small updates to them.
const PARAMETER: ElementType = ElementType::F32;

/// The element type of states, gates and sequences, in every plan so far. Half precision would be
/// chosen here.
pub(super) const ELEMENT: ElementType = ElementType::F32;

/// The element type of losses and of the weights of their rows.
const LOSS: ElementType = ElementType::F32;

/// The storage of a run's gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GateStorage {
    /// The number of steps per batch row that one buffer holds.
    pub times: usize,
    /// True if the gates of a forward pass are kept for the backward pass, in as many buffers as
    /// they need.
    pub kept: bool,
}

/// The buffers of a run, except the partial results of products.
pub(super) struct Allocation {
    pub buffers: BufferList,
    pub run: RunBuffers,
    /// One entry per layer; in inference one entry for all.
    pub layers: Vec<LayerBuffers>,
    /// `[3H]` of zeros: the hidden bias of a model that has none.
    pub zeros: BufferId,
}

/// The buffers that a layer's steps read and write.
#[derive(Clone, Copy)]
pub(super) struct LayerBuffers {
    /// `[D, T, B, 4H]`: r, z, n and the recurrent part of n; in the backward pass their gradients.
    /// If they are kept and do not fit into one buffer, the first of several buffers of some steps
    /// each.
    pub gates: BufferId,
    /// `[D, T, B, H]`: the state that each step starts from. Inference needs only the last two.
    pub h: BufferId,
    /// `[T, B, D·H]`: the layer's output; y for the last layer.
    pub y: BufferId,
}

/// The buffers so far, and the values that determine their number and sizes.
struct Allocator<'a> {
    layout: &'a ParamLayout,
    shape: Shape,
    mode: Mode,
    purpose: RunPurpose,
    gates: GateStorage,
    buffers: BufferList,
}

impl Allocation {
    pub fn new(
        layout: &ParamLayout,
        shape: Shape,
        mode: Mode,
        purpose: RunPurpose,
        gates: GateStorage,
    ) -> Self {
        let buffers = BufferList::default();
        let mut of = Allocator { layout, shape, mode, purpose, gates, buffers };
        let (mut run, zeros) = of.run();
        let layers = match mode {
            Mode::Inference => of.inference_layers(&run),
            Mode::Training => {
                run.training = Some(of.training());
                of.training_layers(&run)
            }
        };
        Self { buffers: of.buffers, run, layers, zeros }
    }
}

impl Allocator<'_> {
    fn run(&mut self) -> (RunBuffers, BufferId) {
        let Shape { steps, batch, hidden, .. } = self.shape;
        let rows = steps * batch;
        let x = self.sequence("x", &self.x_axes(), self.x_len(), Role::Input);
        let (axes, seed) = match self.mode {
            Mode::Inference => ("[T, B]", 0),
            Mode::Training => ("[T, B] + seed", DRAW_SEED_LEN),
        };
        let step_flags =
            self.buffers.add("step_flags", axes, ElementType::U32, rows + seed, Role::Input);
        let states = self.states("states");
        let y = self.sequence("y", &self.y_axes(), self.y_len(), Role::Output);
        let params = self.flat("params", Role::Parameters);
        let zeros = self.buffers.add("zeros", "[3H]", PARAMETER, 3 * hidden, Role::Zeros);
        let head = self.head();
        (RunBuffers { x, step_flags, states, y, params, training: None, head }, zeros)
    }

    fn head(&mut self) -> Option<HeadBuffers> {
        let loss = match self.purpose {
            RunPurpose::States => return None,
            RunPurpose::Outputs => None,
            RunPurpose::Loss(loss) | RunPurpose::Evaluation(loss) => Some(loss),
        };
        let head = self.layout.head().expect("a network's layout has a head");
        let rows = head.rows(self.shape);
        let row_axes = match head.readout {
            Readout::EveryStep => "T, B",
            Readout::LastState => "B",
        };
        let axes = format!("[{row_axes}, C]");
        let len = rows * head.outputs;
        let outputs = self.sequence("outputs", &axes, len, Role::Output);
        let loss = loss.map(|loss| {
            let each = format!("[{row_axes}]");
            let (target_axes, target, len) = match loss {
                Loss::CrossEntropy { .. } => (&each, ElementType::U32, rows),
                Loss::MeanSquared | Loss::Huber { .. } => (&axes, ELEMENT, len),
            };
            // In evaluation each row has a second column: 1 if it is correct.
            let (loss_axes, columns) = match self.purpose {
                RunPurpose::Evaluation(_) => (format!("[{row_axes}, 2]"), 2),
                _ => (each.clone(), 1),
            };
            let (sum_axes, losses) = (format!("[{columns}]"), columns * rows);
            LossBuffers {
                targets: self.buffers.add("targets", target_axes, target, len, Role::Input),
                weights: self.buffers.add("weights", &each, LOSS, rows, Role::Input),
                each: self.buffers.add("losses", &loss_axes, LOSS, losses, Role::Scratch),
                sum: self.buffers.add("loss", &sum_axes, LOSS, columns, Role::Output),
            }
        });
        Some(HeadBuffers { outputs, loss })
    }

    /// In inference all layers share their buffers: a layer has read its input before its steps
    /// overwrite it with outputs.
    fn inference_layers(&mut self, run: &RunBuffers) -> Vec<LayerBuffers> {
        let gates = self.gates("");
        let h = self.h("");
        vec![LayerBuffers { gates, h, y: run.y }; self.shape.layers]
    }

    fn training(&mut self) -> TrainingBuffers {
        let dy = self.sequence("dy", &self.y_axes(), self.y_len(), self.dy_role());
        let dstates = self.states("dstates");
        let dx = (0..self.shape.layers).map(|layer| self.dx(layer)).collect();
        TrainingBuffers { dy, dstates, dx, dparams: self.flat("dparams", Role::Output) }
    }

    /// Returns the role of dy: the host writes it, or a head over every step does, or it stays
    /// zero.
    fn dy_role(&self) -> Role {
        match (self.purpose, self.layout.head().map(|head| head.readout)) {
            (RunPurpose::Loss(_), Some(Readout::EveryStep)) => Role::Scratch,
            (RunPurpose::Loss(_), _) => Role::Zeros,
            _ => Role::Input,
        }
    }

    fn dx(&mut self, layer: usize) -> Option<BufferId> {
        match (layer, self.purpose) {
            (0, RunPurpose::Loss(_)) => None,
            (0, _) => Some(self.sequence("dx", &self.x_axes(), self.x_len(), Role::Output)),
            _ => {
                let name = format!("dx_l{layer}");
                Some(self.sequence(&name, &self.y_axes(), self.y_len(), Role::Scratch))
            }
        }
    }

    fn training_layers(&mut self, run: &RunBuffers) -> Vec<LayerBuffers> {
        // Gates that are computed again need not outlast their layer.
        let shared = (!self.gates.kept).then(|| self.gates(""));
        let layers = self.shape.layers;
        let mut all = Vec::with_capacity(layers);
        for layer in 0..layers {
            // With one layer, the buffers' names need no number.
            let number = if layers == 1 { String::new() } else { format!("_l{layer}") };
            let y = match layer + 1 < layers {
                true => {
                    let name = format!("y{number}");
                    self.sequence(&name, &self.y_axes(), self.y_len(), Role::Scratch)
                }
                false => run.y,
            };
            let gates = shared.unwrap_or_else(|| self.kept_gates(&number));
            all.push(LayerBuffers { gates, h: self.h(&number), y });
        }
        all
    }

    /// Returns the first of a layer's buffers of gates.
    fn kept_gates(&mut self, number: &str) -> BufferId {
        let steps = self.shape.steps;
        if self.gates.times == steps {
            return self.gates(number);
        }
        let first = self.buffers.next_id();
        for span in 0..steps.div_ceil(self.gates.times) {
            self.gates(&format!("{number}_s{span}"));
        }
        first
    }

    fn gates(&mut self, number: &str) -> BufferId {
        let (axes, len) = self.of_cells(self.gates.times, "4H", 4 * self.shape.hidden);
        self.buffers.add(&format!("gates{number}"), &axes, ELEMENT, len, Role::Scratch)
    }

    fn h(&mut self, number: &str) -> BufferId {
        let times = h_times(self.mode, self.shape.steps);
        let (axes, len) = self.of_cells(times, "H", self.shape.hidden);
        self.buffers.add(&format!("h{number}"), &axes, ELEMENT, len, Role::Scratch)
    }

    fn states(&mut self, name: &str) -> BufferId {
        let len = 3 * self.shape.state().iter().product::<usize>();
        self.buffers.add(name, "[3, L·D, B, H]", ELEMENT, len, Role::InputOutput)
    }

    fn flat(&mut self, name: &str, role: Role) -> BufferId {
        self.buffers.add(name, "flat", PARAMETER, self.layout.flat_len(), role)
    }

    fn sequence(&mut self, name: &str, axes: &str, len: usize, role: Role) -> BufferId {
        self.buffers.add(name, axes, ELEMENT, len, role)
    }

    fn x_axes(&self) -> String {
        let [first, second] = self.shape.layout.order("T", "B");
        format!("[{first}, {second}, I]")
    }

    fn y_axes(&self) -> String {
        let [first, second] = self.shape.layout.order("T", "B");
        let width = if self.shape.directions == 1 { "H" } else { "2H" };
        format!("[{first}, {second}, {width}]")
    }

    fn x_len(&self) -> usize {
        self.shape.x().iter().product()
    }

    fn y_len(&self) -> usize {
        self.shape.y().iter().product()
    }

    /// Returns the axes and the length of an array `[D, times, B, width]`, in the run's layout.
    fn of_cells(&self, times: usize, width: &str, width_len: usize) -> (String, usize) {
        let Shape { steps, batch, directions, layout, .. } = self.shape;
        let count = if times == steps { "T".to_owned() } else { times.to_string() };
        let [first, second] = layout.order(count.as_str(), "B");
        let prefix = if directions == 1 { "" } else { "2, " };
        (format!("[{prefix}{first}, {second}, {width}]"), directions * times * batch * width_len)
    }
}

impl GateStorage {
    pub fn choose(shape: Shape, mode: Mode, options: RunOptions, caps: &DeviceCaps) -> Self {
        let (times, recomputes) = match mode {
            Mode::Inference => (used_at_once(shape, caps), true),
            Mode::Training => {
                let kept = bound_at_once(shape, caps);
                let some = kept.min(recomputed_at_once(shape.steps));
                (if options.recompute { some } else { kept }, options.recompute)
            }
        };
        Self { times, kept: !recomputes || times == shape.steps }
    }
}

/// Returns the number of states per row that h holds. Training needs every state that a step starts
/// from. Inference needs one state to read and one to write.
pub(super) fn h_times(mode: Mode, steps: usize) -> usize {
    match mode {
        Mode::Inference => steps.min(2),
        Mode::Training => steps,
    }
}

/// Returns the number of steps whose gates are recomputed together. With an eighth of the gates
/// (4H), the arrays of training (gates, and h, y and dy of H each) take half of the memory.
pub(crate) fn recomputed_at_once(steps: usize) -> usize {
    steps.div_ceil(8)
}

/// Returns the number of steps of an inference run whose gates exist at the same time: all, or as
/// many as the adapter can bind. A model with two directions and several layers needs all:
/// otherwise the reverse direction's first steps would overwrite elements of y that the forward
/// direction has not read yet.
fn used_at_once(shape: Shape, caps: &DeviceCaps) -> usize {
    let Shape { steps, layers, directions, .. } = shape;
    if layers > 1 && directions > 1 {
        return steps;
    }
    steps_bound(shape, caps)
}

/// Returns the number of steps of a training run whose gates one buffer holds, for as few buffers
/// as possible, of similar size.
fn bound_at_once(shape: Shape, caps: &DeviceCaps) -> usize {
    /// h and y have a quarter of the gates' size and are bound whole. If the gates need many more
    /// buffers, the plan will be refused.
    const MOST: usize = 8;
    let Shape { steps, .. } = shape;
    match steps.div_ceil(steps_bound(shape, caps)) {
        count @ 1..=MOST => steps.div_ceil(count),
        _ => steps,
    }
}

/// Returns the number of steps whose gates fit into a buffer and a binding, at least one.
fn steps_bound(shape: Shape, caps: &DeviceCaps) -> usize {
    let Shape { steps, batch, hidden, directions, .. } = shape;
    let step = ELEMENT.size() * product([directions, batch, 4, hidden]);
    let limits = &caps.limits;
    let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / step;
    usize::try_from(most).unwrap_or(steps).clamp(1, steps)
}
