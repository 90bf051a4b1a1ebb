//! [`StagingPool`]: the staging buffers of a device, through which the host reads and writes its
//! memory.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// The bytes of a large staging buffer. Smaller ones cost more waits; larger ones do not stay in
/// the processor's cache between the device's copy and the host's (`benches/NOTES.md`, "Copies
/// between host and device").
pub(crate) const STAGING_BYTES: usize = 4 << 20;

/// The bytes of a small staging buffer, for a loss or a state.
const SMALL_BYTES: usize = 64 << 10;

/// The most idle download buffers of one size: as many as one download has in flight.
const MAX_IDLE: usize = 2;

/// The most upload buffers that are idle or in flight. Uploads beyond them create buffers, which
/// are freed once the device has copied them.
const MAX_UPLOADS: usize = 4;

/// The staging buffers of a device that no call uses: at most `2 * STAGING_BYTES` for downloads,
/// `MAX_UPLOADS * STAGING_BYTES` for uploads, and a few small ones. They live as long as the device.
#[derive(Debug, Default)]
pub(crate) struct StagingPool {
    /// Idle buffers for downloads. All are unmapped.
    downloads: Mutex<Vec<wgpu::Buffer>>,
    /// Buffers for uploads that are mapped, or are being mapped.
    uploads: Mutex<Vec<MappedUpload>>,
}

/// A buffer that is mapped for the next upload once the device has copied the last one.
#[derive(Debug)]
struct MappedUpload {
    buffer: wgpu::Buffer,
    /// [`PENDING`], [`MAPPED`] or [`FAILED`]. The callback of the mapping sets it. The callback does
    /// not hold the buffer: a device that is dropped before the callback would never be freed.
    state: Arc<AtomicU8>,
}

const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const FAILED: u8 = 2;

impl StagingPool {
    /// Returns an unmapped buffer of at least `bytes` bytes for a download: an idle one, or the one
    /// that `create` makes of a size. A buffer that is not released is freed when it is dropped, and
    /// so is one whose mapping is pending.
    pub fn acquire_download(
        &self,
        bytes: usize,
        create: impl FnOnce(u64) -> wgpu::Buffer,
    ) -> wgpu::Buffer {
        let size = if bytes <= SMALL_BYTES { SMALL_BYTES } else { STAGING_BYTES };
        let mut idle = lock(&self.downloads);
        match idle.iter().position(|buffer| buffer.size() == size as u64) {
            Some(at) => idle.swap_remove(at),
            None => {
                drop(idle);
                create(size as u64)
            }
        }
    }

    /// Keeps an unmapped buffer for the next download.
    pub fn release_download(&self, buffer: wgpu::Buffer) {
        let mut idle = lock(&self.downloads);
        if idle.iter().filter(|other| other.size() == buffer.size()).count() < MAX_IDLE {
            idle.push(buffer);
        }
    }

    /// Returns a mapped buffer of [`STAGING_BYTES`] for an upload: a kept one, or the one that
    /// `create` makes of this size.
    pub fn acquire_upload(&self, create: impl FnOnce(u64) -> wgpu::Buffer) -> wgpu::Buffer {
        let mut uploads = lock(&self.uploads);
        uploads.retain(|upload| upload.state.load(Ordering::Acquire) != FAILED);
        let mapped = |upload: &MappedUpload| upload.state.load(Ordering::Acquire) == MAPPED;
        match uploads.iter().position(mapped) {
            Some(at) => uploads.swap_remove(at).buffer,
            None => {
                drop(uploads);
                create(STAGING_BYTES as u64)
            }
        }
    }

    /// Keeps a buffer for a later upload. Its last upload is submitted.
    pub fn release_upload(&self, buffer: wgpu::Buffer) {
        let mut uploads = lock(&self.uploads);
        if uploads.len() >= MAX_UPLOADS {
            return;
        }
        let state = Arc::new(AtomicU8::new(PENDING));
        uploads.push(MappedUpload { buffer: buffer.clone(), state: Arc::clone(&state) });
        drop(uploads);
        buffer.map_async(wgpu::MapMode::Write, .., move |mapped| {
            state.store(if mapped.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
    }
}
