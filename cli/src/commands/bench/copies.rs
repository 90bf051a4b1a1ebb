//! [`Copies`]: the rates of upload and download, beside plain copies in memory.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, anyhow};

/// The most bytes of a plain copy. Larger copies are no faster.
const MAX_BYTES: u64 = 256 << 20;

/// The number of plain copies; the median counts.
const REPEATS: usize = 5;

/// The bytes that a run transfers in each direction, and rates in GB/s.
pub struct Copies {
    pub upload: Transfer,
    pub download: Transfer,
}

/// A transfer in one direction.
pub struct Transfer {
    pub bytes: u64,
    pub rate: f64,
    /// A plain copy of as many bytes by one thread, to memory that was written before.
    pub copy: f64,
    /// The same to memory that was just allocated. Above some size (32 MiB with glibc) it comes from
    /// the system each time, which supplies and clears each page at its first touch.
    pub new_copy: f64,
}

impl Copies {
    /// Measures plain copies of as many bytes as an upload and a download, of which the bytes and
    /// the time in ms are given.
    pub fn measure(upload: (u64, f64), download: (u64, f64)) -> Result<Self> {
        Ok(Self { upload: Transfer::measure(upload)?, download: Transfer::measure(download)? })
    }
}

impl Transfer {
    fn measure((bytes, ms): (u64, f64)) -> Result<Self> {
        let len = bytes.clamp(1, MAX_BYTES) as usize;
        let from = ones(len)?;
        let mut to = ones(len)?;
        let copy = rate(len, || black_box(&mut to).copy_from_slice(black_box(&from)));
        drop(to);
        let new_copy = rate(len, || drop(black_box(black_box(&from).clone())));
        Ok(Self { bytes, rate: gbytes(bytes as f64, ms / 1e3), copy, new_copy })
    }
}

fn ones(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reserved = bytes.try_reserve_exact(len);
    reserved.map_err(|_| anyhow!("out of memory: {len} bytes for a plain copy"))?;
    bytes.resize(len, 1);
    Ok(bytes)
}

/// Returns the median rate of a copy of `len` bytes, in GB/s.
fn rate(len: usize, mut copy: impl FnMut()) -> f64 {
    let mut seconds = [(); REPEATS].map(|()| {
        let start = Instant::now();
        copy();
        start.elapsed().as_secs_f64()
    });
    seconds.sort_by(f64::total_cmp);
    gbytes(len as f64, seconds[REPEATS / 2])
}

fn gbytes(bytes: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes / seconds / 1e9 } else { 0.0 }
}
