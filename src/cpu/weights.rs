//! [`Weights`]: the packed weights of a model, packed once for each version of the parameters.

use std::sync::{Arc, Mutex, PoisonError};

use super::cell::{BackwardWeights, CellSpec, ForwardWeights};
use super::schedule::{MIN_PARALLEL_FLOPS, ThreadLayout, chunk_steps};
use super::simd::SimdLevel;
use crate::error::Result;
use crate::spec::config::Shape;
use crate::spec::params::Params;

/// The packed weights of all cells, for one version of the parameters, and the functions that
/// schedule their use.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(super) level: SimdLevel,
    /// Returns the thread layout of a layer, given its shape and input size.
    pub(super) lay_out: fn(Shape, usize) -> ThreadLayout,
    /// Returns the number of steps that run backward before the products over them are computed.
    pub(super) chunk_steps: fn(Shape) -> usize,
    forward: PackedCache<ForwardWeights>,
    backward: PackedCache<BackwardWeights>,
}

impl Default for Weights {
    fn default() -> Self {
        let lay_out = |shape, width| ThreadLayout::new(shape, width, rayon::current_num_threads());
        Self::new(SimdLevel::best(), lay_out, chunk_steps)
    }
}

impl Weights {
    pub(super) fn new(
        level: SimdLevel,
        lay_out: fn(Shape, usize) -> ThreadLayout,
        chunk_steps: fn(Shape) -> usize,
    ) -> Self {
        let (forward, backward) = (PackedCache::default(), PackedCache::default());
        Self { level, lay_out, chunk_steps, forward, backward }
    }

    pub(super) fn forward(
        &self,
        params: &Params,
        version: u64,
    ) -> Result<PackedCells<ForwardWeights>> {
        self.forward.get_or_pack(params, version, |layer, direction, is_parallel| {
            let ranges = params.layout().cell(layer, direction);
            let spec = CellSpec::new(params.layout().config(), direction, self.level);
            ForwardWeights::new(params, &ranges, spec, is_parallel)
        })
    }

    pub(super) fn backward(
        &self,
        params: &Params,
        version: u64,
    ) -> Result<PackedCells<BackwardWeights>> {
        self.backward.get_or_pack(params, version, |layer, direction, is_parallel| {
            let ranges = params.layout().cell(layer, direction);
            let spec = CellSpec::new(params.layout().config(), direction, self.level);
            BackwardWeights::new(params, &ranges, spec, is_parallel)
        })
    }
}

/// The packed weights of all cells. Each is shared by itself: tasks of a team keep their cell's.
pub(super) type PackedCells<W> = Arc<[Arc<W>]>;

/// The most recently packed weights of all cells, with their version of the parameters.
///
/// The lock is held only to read or replace the weights, not while packing. Packing waits for
/// rayon's threads, and rayon may run another task on a waiting thread, such as a call that needs
/// the same weights. If that thread held the lock, it would wait for itself. So two threads may
/// pack the same weights at once; the first to finish wins.
#[derive(Debug)]
struct PackedCache<W>(Mutex<Option<(u64, PackedCells<W>)>>);

impl<W> Default for PackedCache<W> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<W> PackedCache<W> {
    /// Returns the weights of all cells for this version: the cached ones, or newly packed ones.
    /// `pack` takes a cell's layer and direction, and whether to use several threads.
    fn get_or_pack(
        &self,
        params: &Params,
        version: u64,
        pack: impl Fn(usize, usize, bool) -> Result<W>,
    ) -> Result<PackedCells<W>> {
        if let Some(weights) = self.get(version) {
            return Ok(weights);
        }
        let config = params.layout().config();
        let is_parallel = params.as_slice().len() as f64 > MIN_PARALLEL_FLOPS / 10.0;
        let cells = (0..config.layers)
            .flat_map(|layer| (0..config.directions()).map(move |direction| (layer, direction)));
        let weights =
            cells.map(|(layer, direction)| pack(layer, direction, is_parallel).map(Arc::new));
        Ok(self.publish(version, weights.collect::<Result<_>>()?))
    }

    fn get(&self, version: u64) -> Option<PackedCells<W>> {
        let cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cached.as_ref().filter(|(of, _)| *of == version).map(|(_, weights)| weights.clone())
    }

    /// Caches and returns these weights, or the weights of another thread that was faster.
    fn publish(&self, version: u64, weights: PackedCells<W>) -> PackedCells<W> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cached.as_ref() {
            Some((of, first)) if *of == version => first.clone(),
            _ => {
                *cached = Some((version, weights.clone()));
                weights
            }
        }
    }
}
