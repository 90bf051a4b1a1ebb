//! Numbers up to an adapter and down from it.

use std::sync::Arc;

use crate::error::{Cause, Error, Result, try_with_capacity};
use crate::gpu::context::Gpu;
use crate::gpu::report::one_line;
use crate::gpu::wait::{Oneshot, Wait};
use crate::spec::element::{BufferElement, ElementType};

/// Bytes uploaded between two submits, and bytes of a download's staging buffer. wgpu keeps all
/// that is written between two submits in staging memory, and running out of it loses the device.
const CHUNK_BYTES: usize = 32 << 20;

impl Gpu {
    /// Copies `data` to `buffer` from its element `first`.
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

    /// Waits for all work queued and reads the elements `first..first + len` of each buffer.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when the work or the copy did not arrive.
    pub async fn download<T: BufferElement>(
        &self,
        parts: &[(&wgpu::Buffer, usize, usize)],
        wait: Wait,
    ) -> Result<Vec<Vec<T>>> {
        let most = CHUNK_BYTES / size_of::<T>();
        let total: usize = parts.iter().map(|&(_, _, len)| len).sum();
        let size = T::TYPE.bytes(total.clamp(1, most));
        let make = || Ok(self.staging("download", size, wgpu::MapMode::Read));
        let staging = self.guard(make).await?;
        let room = |&(_, _, len): &(_, usize, usize)| try_with_capacity("results", len);
        let mut results: Vec<Vec<T>> = parts.iter().map(room).collect::<Result<_>>()?;
        // Fill the staging buffer, read it, and again until every part is whole.
        let mut part = 0;
        while part < parts.len() {
            let mut staged: Vec<(usize, usize)> = Vec::new();
            let mut used = 0;
            let submit = || {
                let mut encoder = self.encoder("download");
                while part < parts.len() && used < most {
                    let (buffer, first, len) = parts[part];
                    let done: usize = results[part].len();
                    let take = (len - done).min(most - used);
                    let [from, to, size] = [first + done, used, take].map(|n| T::TYPE.bytes(n));
                    encoder.copy_buffer_to_buffer(buffer, from, &staging, to, size);
                    staged.push((part, take));
                    used += take;
                    if done + take < len {
                        break;
                    }
                    part += 1;
                }
                self.submit(encoder.finish());
                Ok(())
            };
            self.guard(submit).await?;
            let size = T::TYPE.bytes(used);
            self.map(&staging, wgpu::MapMode::Read, size, "results", wait).await?;
            self.read_mapped(&staging, used, |values: &[T]| {
                let mut values = values;
                for &(part, take) in &staged {
                    let (chunk, rest) = values.split_at(take);
                    results[part].extend_from_slice(chunk);
                    values = rest;
                }
            })?;
        }
        Ok(results)
    }

    /// Sends what is written and waits for all work queued.
    pub async fn sync(&self, wait: Wait) -> Result<()> {
        let send = || {
            self.queue().submit([]);
            Ok(())
        };
        self.guard(send).await?;
        match wait {
            Wait::Block if !self.is_limited() => self.wait(),
            // A result that has arrived says the same.
            Wait::Block | Wait::Async => {
                let size = ElementType::U32.size();
                let probe = self.guard(|| Ok(self.buffer("probe", size))).await?;
                self.download::<u32>(&[(&probe, 0, 1)], wait).await.map(|_| ())
            }
        }
    }

    /// A buffer of `size` bytes that the host maps to read what kernels made, or to write what they
    /// need.
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

    /// Waits until `buffer`'s first `size` bytes are mapped, which is after all work queued that
    /// uses it.
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
        let part = buffer.slice(..size);
        self.guard_now(|| part.map_async(mode, move |mapped| callback.send(Ok(mapped))))?;
        match wait {
            Wait::Block => oneshot.block(&deadline, |blocks| self.poll_once(blocks))?,
            Wait::Async => self.poll_for(&oneshot, deadline)?,
        }
        // After a lost device, mapping is the one call that says so. (It also fails where the
        // buffer is dropped meanwhile, with this future: then nobody is here to hear of it.)
        let mapped = std::future::poll_fn(|context| oneshot.poll(context)).await?;
        mapped.map_err(|error| self.lose(&error.to_string()))?;
        // What this waited for is queued behind all that came before.
        self.throttle().done();
        Ok(())
    }

    /// Shows `work` the first `len` elements of a mapped staging buffer, and unmaps it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] when the device was lost meanwhile: wgpu may have freed what `work`
    /// was shown.
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

    /// More than one staging buffer holds, in parts that end inside and across its chunks.
    #[test]
    fn large_transfers_arrive_whole_and_in_order() {
        let (_, gpu) = test_device();
        let len = CHUNK_BYTES / 4 * 3 / 2 + 12_345;
        let data: Vec<f32> = (0..len).map(|i| (i % 1_000_003) as f32).collect();
        let buffer = gpu.buffer("test", ElementType::F32.bytes(len));
        gpu.upload(&buffer, 0, &data);
        let parts = [(0, 7), (5, len - 9), (len - 3, 3), (1, CHUNK_BYTES / 4)];
        let views = parts.map(|(first, len)| (&buffer, first, len));
        let got: Vec<Vec<f32>> =
            pollster::block_on(gpu.download(&views, Wait::Block)).expect("downloads");
        for ((first, len), got) in parts.into_iter().zip(got) {
            assert!(got == data[first..first + len], "{len} elements from {first}");
        }
    }
}
