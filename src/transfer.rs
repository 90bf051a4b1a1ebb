//! Numbers up to an adapter and down from it.

use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, one_line};

/// Bytes uploaded between two submits, and bytes of a download's staging buffer. wgpu keeps all that
/// is written between two submits in staging memory, and running out of it loses the device.
const CHUNK_BYTES: usize = 32 << 20;

impl Gpu {
    /// Copies `data` to `buffer` from its element `first`.
    pub fn upload(&self, buffer: &wgpu::Buffer, first: usize, data: &[f32]) {
        let mut at = 4 * first as u64;
        for chunk in bytemuck::cast_slice::<f32, u8>(data).chunks(CHUNK_BYTES) {
            self.queue().write_buffer(buffer, at, chunk);
            at += chunk.len() as u64;
            if chunk.len() == CHUNK_BYTES {
                self.queue().submit([]);
            }
        }
    }

    /// Waits for all work queued and reads the elements `first..first + len` of each buffer.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when the work or the copy did not arrive.
    pub fn download(&self, parts: &[(&wgpu::Buffer, usize, usize)]) -> Result<Vec<Vec<f32>>> {
        const CHUNK: usize = CHUNK_BYTES / 4;
        let total: usize = parts.iter().map(|&(_, _, len)| len).sum();
        let staging = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("gru.download"),
            size: 4 * total.clamp(1, CHUNK) as u64,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut results: Vec<Vec<f32>> =
            parts.iter().map(|&(_, _, len)| Vec::with_capacity(len)).collect();
        // Fill the staging buffer, read it, and again until every part is whole.
        let mut part = 0;
        while part < parts.len() {
            let mut encoder = self.encoder("download");
            let mut staged: Vec<(usize, usize)> = Vec::new();
            let mut used = 0;
            while part < parts.len() && used < CHUNK {
                let (buffer, first, len) = parts[part];
                let done: usize = results[part].len();
                let take = (len - done).min(CHUNK - used);
                let from = 4 * (first + done) as u64;
                encoder.copy_buffer_to_buffer(
                    buffer,
                    from,
                    &staging,
                    4 * used as u64,
                    4 * take as u64,
                );
                staged.push((part, take));
                used += take;
                if done + take < len {
                    break;
                }
                part += 1;
            }
            self.submit(encoder.finish());
            self.read_staging(&staging, &staged, &mut results)?;
        }
        Ok(results)
    }

    /// Maps `staging` and appends its pieces, in order, to the results they belong to.
    fn read_staging(
        &self,
        staging: &wgpu::Buffer,
        staged: &[(usize, usize)],
        results: &mut [Vec<f32>],
    ) -> Result<()> {
        let used: usize = staged.iter().map(|&(_, take)| take).sum();
        let slice = staging.slice(..4 * used as u64);
        let (sender, receiver) = mpsc::channel();
        // A closed channel means that this call already returned with an error.
        slice.map_async(wgpu::MapMode::Read, move |result| drop(sender.send(result)));
        self.wait_for(&receiver)?.map_err(|error| {
            // After a lost device, mapping is the one call that says so.
            Error::DeviceLost(one_line(&error.to_string()))
        })?;
        let view = slice.get_mapped_range().map_err(|e| Error::Gpu(one_line(&e.to_string())))?;
        let mut values: &[f32] = bytemuck::cast_slice(&view);
        for &(part, take) in staged {
            let (piece, rest) = values.split_at(take);
            results[part].extend_from_slice(piece);
            values = rest;
        }
        drop(view);
        staging.unmap();
        Ok(())
    }

    /// Polls the device until a callback has sent its result.
    ///
    /// Polling once is not enough: when threads share the device, another one's poll may have taken
    /// this callback and not yet called it when our own poll returns.
    fn wait_for<T>(&self, receiver: &mpsc::Receiver<T>) -> Result<T> {
        const PAUSE: Duration = Duration::from_millis(5);
        loop {
            self.wait()?;
            match receiver.recv_timeout(PAUSE) {
                Ok(result) => return Ok(result),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Gpu(
                        "a callback was dropped before it was called".to_owned(),
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::test_device;

    /// More than one staging buffer holds, in parts that end inside and across its chunks.
    #[test]
    fn large_transfers_arrive_whole_and_in_order() {
        let (_, gpu) = test_device();
        let len = CHUNK_BYTES / 4 * 2 + 12_345;
        let data: Vec<f32> = (0..len).map(|i| (i % 1_000_003) as f32).collect();
        let buffer = gpu.buffer("test", len, wgpu::BufferUsages::STORAGE);
        gpu.upload(&buffer, 0, &data);
        let parts = [(0, 7), (5, len - 9), (len - 3, 3), (1, CHUNK_BYTES / 4)];
        let got =
            gpu.download(&parts.map(|(first, len)| (&buffer, first, len))).expect("downloads");
        for ((first, len), got) in parts.into_iter().zip(got) {
            assert!(got == data[first..first + len], "{len} elements from {first}");
        }
    }
}
