//! Uploads to buffers of a device, and downloads from them.
//!
//! ```text
//! device    copy 1   copy 2   copy 3
//! host               read 1   read 2   read 3
//! ```
//!
//! A download goes through two staging buffers: while the host reads one, the device copies the
//! next chunk to the other. A large upload goes through staging buffers too, which are kept: wgpu's
//! `write_buffer` takes fresh memory for each call, and its page faults take longer than the copy.

use std::collections::VecDeque;

use crate::error::{Cause, Error, Result, try_with_capacity};
use crate::gpu::context::Gpu;
use crate::gpu::host_copy::{Destination, copy_to_mapped};
use crate::gpu::report::one_line;
use crate::gpu::staging::{KeptUpload, STAGING_BYTES};
use crate::gpu::wait::{Mapping, Wait};
use crate::spec::element::{BufferElement, ElementType};

/// The most bytes written between two submits. wgpu keeps everything written between two submits in
/// staging memory, and running out of staging memory loses the device.
const WRITE_BYTES: usize = 32 << 20;

/// The chunks of a download in flight: one that the host reads and one that the device copies.
const IN_FLIGHT: usize = 2;

/// The bytes from which [`Gpu::upload_large`] uses the kept staging buffers. Below, their submits
/// and mappings cost more than the page faults of `write_buffer`.
const MIN_STAGED_BYTES: usize = 8 << 20;

/// A range of a buffer to download, and where its elements go.
#[derive(Debug)]
pub(crate) struct Download<'a, T> {
    pub buffer: &'a wgpu::Buffer,
    /// The first element and the number of elements.
    pub first: usize,
    pub len: usize,
    pub to: Destination<'a, T>,
}

/// Elements of a download that are copied together with others.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    /// The index of the download.
    index: usize,
    /// The first of the download's elements.
    first: usize,
    len: usize,
}

/// A chunk of a download on its way to the host.
struct ChunkInFlight {
    staging: wgpu::Buffer,
    parts: Vec<Part>,
    mapping: Mapping,
}

impl Gpu {
    /// Writes `data` to `buffer`, starting at element `first`.
    pub fn upload<T: BufferElement>(&self, buffer: &wgpu::Buffer, first: usize, data: &[T]) {
        let mut at = T::TYPE.bytes(first);
        for chunk in bytemuck::cast_slice::<T, u8>(data).chunks(WRITE_BYTES) {
            self.queue().write_buffer(buffer, at, chunk);
            at += chunk.len() as u64;
            if chunk.len() == WRITE_BYTES {
                self.queue().submit([]);
            }
        }
    }

    /// Writes like [`Self::upload`], and reports errors. Large data go through kept staging
    /// buffers. Once there are [`MAX_UPLOADS`](crate::gpu::staging::MAX_UPLOADS), this waits until
    /// the device has copied the last data from one of them.
    pub async fn upload_large<T: BufferElement>(
        &self,
        buffer: &wgpu::Buffer,
        first: usize,
        data: &[T],
        wait: Wait,
    ) -> Result<()> {
        let bytes = bytemuck::cast_slice::<T, u8>(data);
        // In a browser the host cannot reach staging memory without a copy.
        if bytes.len() < MIN_STAGED_BYTES || cfg!(target_arch = "wasm32") {
            let upload = || {
                self.upload(buffer, first, data);
                Ok(())
            };
            return self.guard(upload).await;
        }
        let mut at = T::TYPE.bytes(first);
        for chunk in bytes.chunks(STAGING_BYTES) {
            // Calls the callbacks of staging buffers that are mapped again.
            self.poll_once(false)?;
            let kept = match self.staging_pool().acquire_upload() {
                None => None,
                Some(KeptUpload { buffer, mapping }) => {
                    self.finish_mapping(mapping, "memory for an upload", wait).await?;
                    Some(buffer)
                }
            };
            let upload = || self.upload_chunk(kept, buffer, at, chunk);
            let uploaded = self.guard(upload).await?;
            self.staging_pool().release_upload(uploaded);
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Queues the upload of a chunk through a mapped staging buffer, `kept` or a new one.
    fn upload_chunk(
        &self,
        kept: Option<wgpu::Buffer>,
        to: &wgpu::Buffer,
        at: u64,
        chunk: &[u8],
    ) -> Result<KeptUpload> {
        const MODE: wgpu::MapMode = wgpu::MapMode::Write;
        let create = || self.staging("upload", STAGING_BYTES as u64, MODE);
        let buffer = kept.unwrap_or_else(create);
        let size = chunk.len() as u64;
        let mut view = buffer.get_mapped_range_mut(..size).map_err(unmapped)?;
        copy_to_mapped(view.slice(..), chunk);
        drop(view);
        buffer.unmap();
        let mut encoder = self.encoder("upload");
        encoder.copy_buffer_to_buffer(&buffer, 0, to, at, size);
        let submission = Some(self.queue().submit([encoder.finish()]));
        let mapping = Mapping::start(&buffer, MODE, buffer.size(), submission);
        Ok(KeptUpload { buffer, mapping })
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
        let room = |&(_, _, len): &(_, usize, usize)| try_with_capacity("results", len);
        let mut results: Vec<Vec<T>> = ranges.iter().map(room).collect::<Result<_>>()?;
        let downloads = ranges.iter().zip(&mut results).map(|(&(buffer, first, len), to)| {
            let to = Destination::Vec(to);
            Download { buffer, first, len, to }
        });
        self.download_into(downloads.collect(), wait).await?;
        Ok(results)
    }

    /// Waits for all queued work and reads ranges of buffers into their destinations.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if the device is lost before the copy is done. The contents of the
    /// destinations are then unspecified.
    pub async fn download_into<T: BufferElement>(
        &self,
        mut downloads: Vec<Download<'_, T>>,
        wait: Wait,
    ) -> Result<()> {
        let lens: Vec<_> = downloads.iter().map(|download| download.len).collect();
        let mut chunks = parts_of_chunks(&lens, STAGING_BYTES / size_of::<T>()).into_iter();
        let mut in_flight = VecDeque::new();
        loop {
            while in_flight.len() < IN_FLIGHT {
                let Some(parts) = chunks.next() else { break };
                let queue = || Ok(self.queue_chunk(parts, &downloads));
                in_flight.push_back(self.guard(queue).await?);
            }
            let Some(oldest) = in_flight.pop_front() else { return Ok(()) };
            self.read_chunk(oldest, &mut downloads, wait).await?;
        }
    }

    /// Queues the device's copy of a chunk.
    fn queue_chunk<T: BufferElement>(
        &self,
        parts: Vec<Part>,
        downloads: &[Download<'_, T>],
    ) -> ChunkInFlight {
        let len = parts.iter().map(|part| part.len).sum();
        let create = |size| self.staging("download", size, wgpu::MapMode::Read);
        let staging = self.staging_pool().acquire_download(len * size_of::<T>(), create);
        let mut encoder = self.encoder("download");
        let mut used = 0;
        for part in &parts {
            let Download { buffer, first, .. } = downloads[part.index];
            let [from, to, size] = [first + part.first, used, part.len].map(|n| T::TYPE.bytes(n));
            encoder.copy_buffer_to_buffer(buffer, from, &staging, to, size);
            used += part.len;
        }
        let submission = Some(self.queue().submit([encoder.finish()]));
        let size = T::TYPE.bytes(len);
        let mapping = Mapping::start(&staging, wgpu::MapMode::Read, size, submission);
        ChunkInFlight { staging, parts, mapping }
    }

    /// Waits for a chunk and copies its elements to their destinations. After an error, or if this
    /// future is dropped, the staging buffer may still be mapped, so it is freed.
    async fn read_chunk<T: BufferElement>(
        &self,
        chunk: ChunkInFlight,
        downloads: &mut [Download<'_, T>],
        wait: Wait,
    ) -> Result<()> {
        let ChunkInFlight { staging, parts, mapping } = chunk;
        self.finish_mapping(mapping, "results", wait).await?;
        let len = parts.iter().map(|part| part.len).sum();
        self.read_mapped(&staging, len, |values: &[T]| {
            let mut values = values;
            for part in &parts {
                let (next, rest) = values.split_at(part.len);
                downloads[part.index].to.copy_from(next);
                values = rest;
            }
        })?;
        self.staging_pool().release_download(staging);
        Ok(())
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
        let mut mapping = None;
        self.guard_now(|| mapping = Some(Mapping::start(buffer, mode, size, None)))?;
        self.finish_mapping(mapping.expect("the mapping was started"), what, wait).await
    }

    /// Waits until a buffer is mapped. The buffer must live as long as the future.
    async fn finish_mapping(&self, mapping: Mapping, what: &'static str, wait: Wait) -> Result<()> {
        let Mapping { mapped: oneshot, submission } = mapping;
        let waits_for_all = submission.is_none();
        let deadline = self.deadline(what);
        match wait {
            Wait::Block => oneshot.block(&deadline, |may_block| match may_block {
                // Waits for this buffer's copy only, not for the copies queued after it.
                true => self.poll_until(submission.clone()),
                false => self.poll_once(false),
            })?,
            Wait::Async => self.poll_for(&oneshot, deadline)?,
        }
        // An error here means a lost device. (Mapping also fails if the buffer is dropped, but the
        // buffer lives as long as this future.)
        let mapped = std::future::poll_fn(|context| oneshot.poll(context)).await?;
        mapped.map_err(|error| self.mark_lost(&error.to_string()))?;
        if waits_for_all {
            // The mapped buffer's work was queued after all other work, so all work is done.
            self.throttle().record_done();
        }
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
        let view =
            view.map_err(|error| self.check_lost().err().unwrap_or_else(|| unmapped(error)))?;
        work(bytemuck::cast_slice(&view));
        drop(view);
        self.guard_now(|| staging.unmap())?;
        self.check_lost()
    }
}

/// Converts wgpu's error for a buffer that is not mapped.
fn unmapped(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Gpu { reason: one_line(&error.to_string()), source: Some(Cause::new(error)) }
}

/// Splits downloads of these lengths into chunks of at most `max_len` elements. Returns the parts of
/// each chunk.
fn parts_of_chunks(lens: &[usize], max_len: usize) -> Vec<Vec<Part>> {
    let mut chunks: Vec<Vec<Part>> = Vec::new();
    let mut room = 0;
    for (index, &total) in lens.iter().enumerate() {
        let mut first = 0;
        while first < total {
            if room == 0 {
                chunks.push(Vec::new());
                room = max_len;
            }
            let len = room.min(total - first);
            chunks.last_mut().expect("a chunk was started").push(Part { index, first, len });
            first += len;
            room -= len;
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::staging::MAX_UPLOADS;
    use crate::model::device::test_device;

    /// The ranges exceed one staging buffer. Some end inside a chunk, some cross its end.
    #[test]
    fn large_transfers_are_complete_and_in_order() {
        let (_, gpu) = test_device();
        let len = STAGING_BYTES / 4 * 9 / 2 + 12_345;
        let data: Vec<f32> = (0..len).map(|i| (i % 1_000_003) as f32).collect();
        let buffer = gpu.buffer("test", ElementType::F32.bytes(len));
        gpu.upload(&buffer, 0, &data);
        let ranges = [(0, 7), (5, len - 9), (len - 3, 3), (1, STAGING_BYTES / 4)];
        let slices = ranges.map(|(first, len)| (&buffer, first, len));
        let got: Vec<Vec<f32>> =
            pollster::block_on(gpu.download(&slices, Wait::Block)).expect("downloads");
        for ((first, len), got) in ranges.into_iter().zip(got) {
            assert!(got == data[first..first + len], "{len} elements from {first}");
        }
    }

    /// Returns elements, and a buffer that holds them.
    fn filled(gpu: &Gpu, len: usize) -> (Vec<f32>, wgpu::Buffer) {
        let data: Vec<f32> = (0..len).map(|i| (i % 1_000_003) as f32).collect();
        let buffer = gpu.buffer("test", ElementType::F32.bytes(len));
        gpu.upload(&buffer, 0, &data);
        (data, buffer)
    }

    fn read(gpu: &Gpu, buffer: &wgpu::Buffer, len: usize) -> Vec<f32> {
        let ranges = [(buffer, 0, len)];
        let read = pollster::block_on(gpu.download(&ranges, Wait::Block));
        read.expect("downloads").swap_remove(0)
    }

    #[test]
    fn downloads_are_cut_into_full_chunks() {
        let parts = |lens: &[usize]| {
            let chunks = parts_of_chunks(lens, 5).into_iter();
            let each = |part: Part| (part.index, part.first, part.len);
            chunks.map(|parts| parts.into_iter().map(each).collect()).collect::<Vec<Vec<_>>>()
        };
        assert_eq!(parts(&[]), [[]; 0]);
        assert_eq!(parts(&[0, 0]), [[]; 0]);
        assert_eq!(parts(&[5, 1]), [[(0, 0, 5)], [(1, 0, 1)]]);
        let expected = [vec![(0, 0, 3), (2, 0, 2)], vec![(2, 2, 5)], vec![(2, 7, 1), (3, 0, 4)]];
        assert_eq!(parts(&[3, 0, 8, 4]), expected);
    }

    /// Uploads follow each other faster than the device copies them. None overwrites the staging
    /// buffer of an earlier one.
    #[test]
    fn large_uploads_in_a_row_are_complete() {
        let (_, gpu) = test_device();
        let (mut expected, buffer) = filled(&gpu, STAGING_BYTES / 4 * 11 / 2 + 77);
        for round in 1..4 {
            let first = 1000 * round;
            let data: Vec<f32> = expected[first..].iter().map(|n| n + round as f32).collect();
            pollster::block_on(gpu.upload_large(&buffer, first, &data, Wait::Block)).unwrap();
            expected[first..].copy_from_slice(&data);
        }
        assert!(read(&gpu, &buffer, expected.len()) == expected);
    }

    #[test]
    fn staging_buffers_are_created_once() {
        let (_, gpu) = test_device();
        let (data, buffer) = filled(&gpu, MIN_STAGED_BYTES / 4 + 77);
        let before = gpu.created();
        for _ in 0..5 {
            pollster::block_on(gpu.upload_large(&buffer, 0, &data, Wait::Block)).unwrap();
            assert!(read(&gpu, &buffer, data.len()) == data);
            // The wait returns every staging buffer, however slow the device is.
            pollster::block_on(gpu.sync(Wait::Block)).unwrap();
        }
        // At most one for each chunk of an upload, if the device is slow, and those in flight of a
        // download: large ones, and small ones for its end.
        let most = (MIN_STAGED_BYTES / STAGING_BYTES + 1) + 2 * IN_FLIGHT;
        let created = gpu.created() - before;
        assert!((2..=most).contains(&created), "{created}");
    }

    /// The device is busy before the uploads, so it may return no staging buffer for a while.
    #[test]
    fn uploads_at_the_same_time_are_complete_and_share_staging_memory() {
        let (_, gpu) = test_device();
        let len = STAGING_BYTES / 4 * 7 + 77;
        let size = ElementType::F32.bytes(len);
        for threads in [1, 3] {
            let targets: Vec<_> = (0..threads).map(|_| gpu.buffer("test", size)).collect();
            let busy = [(); 2].map(|()| gpu.buffer("busy", size));
            let mut encoder = gpu.encoder("busy");
            for _ in 0..30 {
                encoder.copy_buffer_to_buffer(&busy[0], 0, &busy[1], 0, size);
            }
            gpu.submit(encoder.finish());
            let before = gpu.created();
            std::thread::scope(|scope| {
                for (thread, buffer) in targets.iter().enumerate() {
                    let gpu = &gpu;
                    let wait = [Wait::Block, Wait::Async][thread % 2];
                    scope.spawn(move || {
                        let data = vec![thread as f32; len];
                        pollster::block_on(gpu.upload_large(buffer, 0, &data, wait)).unwrap();
                    });
                }
            });
            let created = gpu.created() - before;
            assert!(created < MAX_UPLOADS + threads, "{created} buffers for {threads} threads");
            for (thread, buffer) in targets.iter().enumerate() {
                assert!(read(&gpu, buffer, len).iter().all(|&n| n == thread as f32));
            }
        }
    }

    /// The staging buffers of a dropped download may still be mapped, so no other download gets
    /// them.
    #[test]
    fn a_download_succeeds_after_one_was_dropped() {
        let (_, gpu) = test_device();
        let (data, buffer) = filled(&gpu, STAGING_BYTES / 4 * 5 / 2);
        assert!(read(&gpu, &buffer, data.len()) == data);
        for _ in 0..3 {
            let ranges = [(&buffer, 0, data.len())];
            let mut dropped = Box::pin(gpu.download::<f32>(&ranges, Wait::Async));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let _ = dropped.as_mut().poll(&mut context);
            drop(dropped);
            assert!(read(&gpu, &buffer, data.len()) == data);
        }
    }

    /// Prints the rates of copies. `benches/NOTES.md`, "Copies between host and device", has the
    /// command.
    #[test]
    #[ignore = "measures"]
    fn rates_of_copies() {
        let (_, gpu) = test_device();
        for megabytes in [1, 8, 64, 256] {
            let len = (megabytes << 20) / 4;
            let data: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let buffer = gpu.buffer("test", ElementType::F32.bytes(len));
            let [mut touched, mut downloaded] = [(); 2].map(|()| vec![1.0; len]);
            let sync = || pollster::block_on(gpu.sync(Wait::Block)).unwrap();
            let rates = [
                ("copy, touched memory", rate(len, &mut || touched.copy_from_slice(&data))),
                ("copy, fresh memory", rate(len, &mut || drop(std::hint::black_box(data.clone())))),
                (
                    "upload",
                    rate(len, &mut || {
                        pollster::block_on(gpu.upload_large(&buffer, 0, &data, Wait::Block))
                            .unwrap();
                        sync();
                    }),
                ),
                (
                    "download, touched memory",
                    rate(len, &mut || {
                        let to = Destination::slice(&mut downloaded);
                        let downloads = vec![Download { buffer: &buffer, first: 0, len, to }];
                        pollster::block_on(gpu.download_into(downloads, Wait::Block)).unwrap();
                    }),
                ),
                (
                    "download, fresh memory",
                    rate(len, &mut || {
                        let range = [(&buffer, 0, len)];
                        let read = pollster::block_on(gpu.download::<f32>(&range, Wait::Block));
                        drop(std::hint::black_box(read.unwrap()));
                    }),
                ),
            ];
            for (name, [median, least, most]) in rates {
                println!("{megabytes:4} MiB {name:24} {median:6.2} GB/s ({least:.2} - {most:.2})");
            }
        }
    }

    /// Returns the median, the least and the most of 9 rates, in GB/s.
    fn rate(len: usize, copy: &mut dyn FnMut()) -> [f64; 3] {
        copy();
        let mut rates: Vec<f64> = (0..9)
            .map(|_| {
                let start = std::time::Instant::now();
                copy();
                ElementType::F32.bytes(len) as f64 / start.elapsed().as_secs_f64() / 1e9
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        [rates[4], rates[0], rates[8]]
    }
}
