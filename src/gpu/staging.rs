//! [`StagingPool`]: the staging buffers of a device, through which the host reads and writes its
//! memory.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::gpu::wait::Mapping;
use crate::lock::lock;

/// The bytes of a large staging buffer. Smaller ones cost more waits; larger ones do not stay in
/// the processor's cache between the device's copy and the host's (`benches/NOTES.md`, "Copies
/// between host and device").
pub(crate) const STAGING_BYTES: usize = 4 << 20;

/// The bytes of a small staging buffer, for a loss or a state.
const SMALL_BYTES: usize = 64 << 10;

/// The most idle download buffers of one size: as many as one download has in flight.
const MAX_IDLE: usize = 2;

/// The upload buffers that are kept before an upload waits for one of them.
pub(crate) const MAX_UPLOADS: usize = 4;

/// The staging buffers of a device that no call uses: at most `2 * STAGING_BYTES` for downloads,
/// `MAX_UPLOADS * STAGING_BYTES` for uploads, `STAGING_BYTES` for each further upload at the same
/// time, and a few small ones. They live as long as the device.
#[derive(Debug, Default)]
pub(crate) struct StagingPool {
    /// Idle buffers for downloads. All are unmapped.
    downloads: Mutex<Vec<wgpu::Buffer>>,
    /// Buffers for uploads, the oldest upload first.
    uploads: Mutex<VecDeque<KeptUpload>>,
}

/// A buffer that is mapped for the next upload once the device has copied the last one.
#[derive(Debug)]
pub(crate) struct KeptUpload {
    pub buffer: wgpu::Buffer,
    pub mapping: Mapping,
}

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

    /// Takes a kept buffer of [`STAGING_BYTES`] for an upload: one that is mapped, or the oldest,
    /// for whose mapping the caller waits. Returns `None` if the caller is to create one: only while
    /// few are kept, which bounds their memory.
    pub fn acquire_upload(&self) -> Option<KeptUpload> {
        let mut uploads = lock(&self.uploads);
        match uploads.iter().position(|upload| upload.mapping.is_done()) {
            Some(at) => uploads.remove(at),
            None if uploads.len() < MAX_UPLOADS => None,
            None => uploads.pop_front(),
        }
    }

    /// Keeps a buffer for a later upload. Its last upload is submitted.
    pub fn release_upload(&self, upload: KeptUpload) {
        lock(&self.uploads).push_back(upload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::test_device;

    /// The device is not polled, so that no mapping ends: some drivers end their work in a poll.
    #[test]
    fn uploads_take_the_oldest_buffer_once_there_are_enough() {
        let (_, gpu) = test_device();
        let pool = StagingPool::default();
        let start = |buffer: wgpu::Buffer| {
            let mapping = Mapping::start(&buffer, wgpu::MapMode::Write, 16, None);
            KeptUpload { buffer, mapping }
        };
        let buffers = [(); MAX_UPLOADS].map(|()| {
            assert!(pool.acquire_upload().is_none());
            let buffer = gpu.staging("upload", 16, wgpu::MapMode::Write);
            buffer.unmap();
            pool.release_upload(start(buffer.clone()));
            buffer
        });
        let oldest = pool.acquire_upload().unwrap();
        assert!(oldest.buffer == buffers[0] && !oldest.mapping.is_done());
        // Another upload at the same time gets one more.
        assert!(pool.acquire_upload().is_none());
        pool.release_upload(oldest);
        gpu.wait().unwrap();
        // All are mapped. None is created for as many calls.
        for expected in [1, 2, 3, 0] {
            let mapped = pool.acquire_upload().unwrap();
            assert!(mapped.buffer == buffers[expected] && mapped.mapping.is_done());
        }
        assert!(pool.acquire_upload().is_none());
    }
}
