//! Uploads to buffers of a device, and downloads from them.

use std::sync::Arc;

use crate::error::{Cause, Error, Result, try_room};
use crate::gpu::context::Gpu;
use crate::gpu::report::one_line;
use crate::gpu::wait::{Oneshot, Wait};
use crate::spec::element::{BufferElement, ElementType};

/// The most bytes uploaded between two submits, and the most in a download's staging buffer. wgpu
/// keeps everything written between two submits in staging memory, and running out of staging
/// memory loses the device.
const CHUNK_BYTES: usize = 32 << 20;

impl Gpu {
    /// Writes `data` to `buffer`, starting at element `first`.
    pub fn upload<T: BufferElement>(&self, buffer: &wgpu::Buffer, first: usize, data: &[T]) {
        let mut at = T::TYPE.bytes(first);
        for chunk in bytemuck::cast_slice::<T, u8>(data).chunks(CHUNK_BYTES) {
            self.queue().write_buffer(buffer, at, chunk);
            at += chunk.len() as u64;
            if chunk.len() == CHUNK_BYTES {
                self.queue().submit([]);
            }
        }
    }

    /// Waits for all queued work and reads ranges of buffers. A range is a buffer, its first
    /// element `first`, and `len`: it covers the elements `first..first + len`.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if the device is lost before the copy is done.
    pub async fn download<T: BufferElement>(
        &self,
        ranges: &[(&wgpu::Buffer, usize, usize)],
        wait: Wait,
    ) -> Result<Vec<Vec<T>>> {
        let max_len = CHUNK_BYTES / size_of::<T>();
        let total: usize = ranges.iter().map(|&(_, _, len)| len).sum();
        let size = T::TYPE.bytes(total.clamp(1, max_len));
        let create = || Ok(self.staging("download", size, wgpu::MapMode::Read));
        let staging = self.guard(create).await?;
        let room = |&(_, _, len): &(_, usize, usize)| try_room("results", len);
        let mut results: Vec<Vec<T>> = ranges.iter().map(room).collect::<Result<_>>()?;
        // Fill the staging buffer and read it, until every range is complete.
        let mut index = 0;
        while index < ranges.len() {
            let mut staged: Vec<(usize, usize)> = Vec::new();
            let mut used = 0;
            let submit = || {
                let mut encoder = self.encoder("download");
                while index < ranges.len() && used < max_len {
                    let (buffer, first, len) = ranges[index];
                    let done: usize = results[index].len();
                    let count = (len - done).min(max_len - used);
                    let [from, to, size] = [first + done, used, count].map(|n| T::TYPE.bytes(n));
                    encoder.copy_buffer_to_buffer(buffer, from, &staging, to, size);
                    staged.push((index, count));
                    used += count;
                    if done + count < len {
                        break;
                    }
                    index += 1;
                }
                self.submit(encoder.finish());
                Ok(())
            };
            self.guard(submit).await?;
            let size = T::TYPE.bytes(used);
            self.map(&staging, wgpu::MapMode::Read, size, "results", wait).await?;
            self.read_mapped(&staging, used, |values: &[T]| {
                let mut values = values;
                for &(index, count) in &staged {
                    let (chunk, rest) = values.split_at(count);
                    results[index].extend_from_slice(chunk);
                    values = rest;
                }
            })?;
        }
        Ok(results)
    }

    /// Submits pending writes and waits for all queued work.
    pub async fn sync(&self, wait: Wait) -> Result<()> {
        let flush = || {
            self.queue().submit([]);
            Ok(())
        };
        self.guard(flush).await?;
        match wait {
            Wait::Block if !self.is_limited() => self.wait(),
            // A download has a time limit and an async version. It ends after all queued work.
            Wait::Block | Wait::Async => {
                let size = ElementType::U32.size();
                let probe = self.guard(|| Ok(self.buffer("probe", size))).await?;
                self.download::<u32>(&[(&probe, 0, 1)], wait).await.map(|_| ())
            }
        }
    }

    /// Creates a staging buffer of `size` bytes, which the host maps to read results or to write
    /// inputs.
    pub fn staging(&self, name: &str, size: u64, mode: wgpu::MapMode) -> wgpu::Buffer {
        use wgpu::BufferUsages as Usage;
        let usage = match mode {
            wgpu::MapMode::Read => Usage::COPY_DST | Usage::MAP_READ,
            wgpu::MapMode::Write => Usage::COPY_SRC | Usage::MAP_WRITE,
        };
        self.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("gru.{name}")),
            size,
            usage,
            mapped_at_creation: mode == wgpu::MapMode::Write,
        })
    }

    /// Maps the first `size` bytes of `buffer` and waits until they are mapped, which is after all
    /// queued work that uses the buffer. `what` names the awaited thing in a timeout's message.
    pub async fn map(
        &self,
        buffer: &wgpu::Buffer,
        mode: wgpu::MapMode,
        size: u64,
        what: &'static str,
        wait: Wait,
    ) -> Result<()> {
        let oneshot = Arc::new(Oneshot::default());
        let callback = Arc::clone(&oneshot);
        let deadline = self.deadline(what);
        let slice = buffer.slice(..size);
        self.guard_now(|| slice.map_async(mode, move |mapped| callback.send(Ok(mapped))))?;
        match wait {
            Wait::Block => oneshot.block(&deadline, |may_block| self.poll_once(may_block))?,
            Wait::Async => self.poll_for(&oneshot, deadline)?,
        }
        // An error here means a lost device. (Mapping also fails if the buffer is dropped, but the
        // buffer lives as long as this future.)
        let mapped = std::future::poll_fn(|context| oneshot.poll(context)).await?;
        mapped.map_err(|error| self.mark_lost(&error.to_string()))?;
        // The mapped buffer's work was queued after all other work, so all work is done.
        self.throttle().record_done();
        Ok(())
    }

    /// Calls `work` with the first `len` elements of a mapped staging buffer, then unmaps it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if the device was lost during `work`: wgpu may have freed the elements
    /// that `work` read.
    pub fn read_mapped<T: BufferElement>(
        &self,
        staging: &wgpu::Buffer,
        len: usize,
        work: impl FnOnce(&[T]),
    ) -> Result<()> {
        let view = staging.slice(..T::TYPE.bytes(len)).get_mapped_range();
        let view = view.map_err(|error| {
            let reason = one_line(&error.to_string());
            let refused = Error::Gpu { reason, source: Some(Cause::new(error)) };
            self.check_lost().err().unwrap_or(refused)
        })?;
        work(bytemuck::cast_slice(&view));
        drop(view);
        self.guard_now(|| staging.unmap())?;
        self.check_lost()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::test_device;

    /// The ranges exceed one staging buffer. Some end inside a chunk, some cross its end.
    #[test]
    fn large_transfers_are_complete_and_in_order() {
        let (_, gpu) = test_device();
        let len = CHUNK_BYTES / 4 * 3 / 2 + 12_345;
        let data: Vec<f32> = (0..len).map(|i| (i % 1_000_003) as f32).collect();
        let buffer = gpu.buffer("test", ElementType::F32.bytes(len));
        gpu.upload(&buffer, 0, &data);
        let ranges = [(0, 7), (5, len - 9), (len - 3, 3), (1, CHUNK_BYTES / 4)];
        let slices = ranges.map(|(first, len)| (&buffer, first, len));
        let got: Vec<Vec<f32>> =
            pollster::block_on(gpu.download(&slices, Wait::Block)).expect("downloads");
        for ((first, len), got) in ranges.into_iter().zip(got) {
            assert!(got == data[first..first + len], "{len} elements from {first}");
        }
    }
}
