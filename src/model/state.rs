//! [`State`]: a model's states, kept on the device between runs.

use ndarray::{Array3, ArrayView3, s};

use crate::error::{Error, Result, check_shape};
use crate::gpu::context::Gpu;
use crate::gpu::session::CopyRegion;
use crate::gpu::wait::Wait;
use crate::model::blocking::blocking_and_async;
use crate::model::device::{Device, DeviceTarget};
use crate::spec::config::Shape;
use crate::spec::element::ElementType::F32;

/// The states of all cells, `[L·D, B, H]`, on the device that computed them.
///
/// [`Tape::state`](crate::Tape::state), [`Learner::step_from`](crate::Learner::step_from) and
/// [`Network::forward_from`](crate::Network::forward_from) return a state, and the next run starts
/// from it. A state is immutable and cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    shape: [usize; 3],
    storage: StateStorage,
}

#[derive(Clone, Debug)]
enum StateStorage {
    Host(Array3<f32>),
    Device(Gpu, wgpu::Buffer),
}

impl State {
    pub(crate) fn from_array(array: Array3<f32>) -> Self {
        Self { shape: array.dim().into(), storage: StateStorage::Host(array) }
    }

    pub(crate) fn from_buffer(gpu: &Gpu, buffer: wgpu::Buffer, shape: [usize; 3]) -> Self {
        Self { shape, storage: StateStorage::Device(gpu.clone(), buffer) }
    }

    /// Returns the shape `[L·D, B, H]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    blocking_and_async! {
        /// Reads the states from the device, `[L·D, B, H]`.
        ///
        /// # Errors
        /// [`Error::OutOfMemory`] or [`Error::DeviceLost`].
        pub fn to_array, to_array_async(&self) -> Result<Array3<f32>> {
            |wait| self.read(wait)
        }
    }

    pub(crate) async fn read(&self, wait: Wait) -> Result<Array3<f32>> {
        match &self.storage {
            StateStorage::Host(array) => Ok(array.clone()),
            StateStorage::Device(gpu, buffer) => {
                let len = self.shape.iter().product();
                let read = gpu.download(&[(buffer, 0, len)], wait).await?.swap_remove(0);
                Ok(Array3::from_shape_vec(self.shape, read).expect("the length matches the shape"))
            }
        }
    }

    /// Moves states in host memory to `device`, for a run there.
    pub(crate) async fn on(self, device: &Device) -> Result<Self> {
        let (StateStorage::Host(array), DeviceTarget::Gpu(gpu)) = (&self.storage, device.target())
        else {
            return Ok(self);
        };
        // wgpu binds no empty buffer.
        if array.is_empty() {
            return Ok(self);
        }
        let upload = || {
            let buffer = gpu.buffer("state", F32.bytes(array.len()));
            let states = array.as_standard_layout();
            gpu.upload(&buffer, 0, states.as_slice().expect("standard layout"));
            Ok(buffer)
        };
        Ok(Self::from_buffer(gpu, gpu.guard(upload).await?, self.shape))
    }

    /// Returns the buffer of a state on an adapter, `None` on the CPU.
    pub(crate) fn buffer(&self) -> Option<&wgpu::Buffer> {
        match &self.storage {
            StateStorage::Host(_) => None,
            StateStorage::Device(_, buffer) => Some(buffer),
        }
    }

    /// Returns the states of the first `rows` rows, in new memory.
    pub(crate) async fn first_rows(&self, rows: usize) -> Result<Self> {
        let [cells, all, hidden] = self.shape;
        let shape = [cells, rows, hidden];
        match &self.storage {
            StateStorage::Host(array) => {
                Ok(Self::from_array(array.slice(s![.., ..rows, ..]).to_owned()))
            }
            StateStorage::Device(gpu, buffer) => {
                let copy = || {
                    let to = gpu.buffer("state", F32.bytes(cells * rows * hidden));
                    let mut encoder = gpu.encoder("state");
                    for StateRows { of_all, of_rows, len } in state_rows(shape, all, 0) {
                        let region = CopyRegion { from: of_all, to: of_rows, len };
                        region.encode(&mut encoder, F32, buffer, &to);
                    }
                    gpu.submit(encoder.finish());
                    Ok(to)
                };
                Ok(Self::from_buffer(gpu, gpu.guard(copy).await?, shape))
            }
        }
    }

    /// Checks that a run of `shape` on `device` can start from this state. Returns the states if
    /// they are on the host, `None` if they are on an adapter.
    ///
    /// # Errors
    /// [`Error::Shape`], or [`Error::Conflict`] if another device holds the state.
    pub(crate) fn check(
        &self,
        device: &Device,
        shape: Shape,
    ) -> Result<Option<ArrayView3<'_, f32>>> {
        check_shape("the state [L·D, B, H]", &shape.state(), &self.shape)?;
        match (&self.storage, device.target()) {
            (StateStorage::Host(array), DeviceTarget::Cpu) => Ok(Some(array.view())),
            (StateStorage::Host(array), _) if array.is_empty() => Ok(Some(array.view())),
            (StateStorage::Device(gpu, _), DeviceTarget::Gpu(other))
                if gpu.is_same_device(other) =>
            {
                Ok(None)
            }
            _ => Err(Error::Conflict {
                what: "a state on one device and a model on another device",
                why: "read the state with State::to_array and pass the array as Batch::h0",
            }),
        }
    }
}

/// Elements of some rows of states that are contiguous among those rows and among all rows.
pub(crate) struct StateRows {
    /// The first element in the states of these rows, `[L·D, b, H]`.
    pub of_rows: usize,
    /// The first element in the states of all rows, `[L·D, B, H]`.
    pub of_all: usize,
    pub len: usize,
}

/// Returns the elements of the states `[L·D, b, H]` of some of `all` rows, the first of which is
/// `first`.
pub(crate) fn state_rows(
    [cells, rows, hidden]: [usize; 3],
    all: usize,
    first: usize,
) -> impl Iterator<Item = StateRows> {
    // All rows are one block.
    let [cells, len] =
        if rows == all { [1, cells * rows * hidden] } else { [cells, rows * hidden] };
    (0..cells).map(move |cell| StateRows {
        of_rows: cell * len,
        of_all: (cell * all + first) * hidden,
        len,
    })
}
