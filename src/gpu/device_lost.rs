//! [`DeviceLostDetector`]: detects that an open device is lost, and remembers the reason.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::report::{one_line, without_errors};
use crate::lock::lock;

/// Detects a lost device and remembers the reason. A lost device stays lost.
#[derive(Debug)]
pub(crate) struct DeviceLostDetector {
    reason: Arc<Mutex<Option<String>>>,
    /// For a device that the caller opened. Only the caller's callback runs at a loss, and wgpu's
    /// calls on a lost device do not fail. Mapping a buffer fails immediately.
    probe: Option<Mutex<wgpu::Buffer>>,
    #[cfg(test)]
    probed: std::sync::atomic::AtomicUsize,
}

impl DeviceLostDetector {
    /// Makes a detector for a device that this library opened. wgpu calls its callback.
    pub fn by_callback(device: &wgpu::Device) -> Self {
        let reason = Arc::<Mutex<Option<String>>>::default();
        let kept = Arc::clone(&reason);
        device.set_device_lost_callback(move |kind, message| {
            lock(&kept).get_or_insert(one_line(&format!("{kind:?}: {message}")));
        });
        Self::new(reason, None)
    }

    /// Makes a detector for a device whose callbacks belong to the caller.
    pub fn by_probe(device: &wgpu::Device) -> Self {
        Self::new(Arc::default(), Some(Mutex::new(new_probe(device))))
    }

    fn new(reason: Arc<Mutex<Option<String>>>, probe: Option<Mutex<wgpu::Buffer>>) -> Self {
        Self {
            reason,
            probe,
            #[cfg(test)]
            probed: Default::default(),
        }
    }

    /// Records a loss. The first reason is kept.
    pub fn lose(&self, reason: &str) -> Error {
        Error::DeviceLost(lock(&self.reason).get_or_insert(one_line(reason)).clone())
    }

    /// Returns an error if the device is known to be lost. Costs nothing.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check_known(&self) -> Result<()> {
        match &*lock(&self.reason) {
            Some(reason) => Err(Error::DeviceLost(reason.clone())),
            None => Ok(()),
        }
    }

    /// Returns an error if the device is lost. Without a callback of our own this maps a buffer,
    /// which takes a few microseconds.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check(&self, device: &wgpu::Device) -> Result<()> {
        self.check_known()?;
        #[cfg(test)]
        self.probed.fetch_add(1, Ordering::Relaxed);
        match &self.probe {
            // While another thread polls, wgpu may find the kept buffer still mapped and refuse it.
            // A new buffer cannot be mapped yet.
            Some(probe)
                if refuses_to_map(device, &lock(probe))
                    && refuses_to_map(device, &new_probe(device)) =>
            {
                Err(self.lose("the caller's device was lost or destroyed"))
            }
            _ => Ok(()),
        }
    }

    /// Returns how often a buffer was mapped to check for a loss.
    #[cfg(test)]
    pub fn probed(&self) -> usize {
        self.probed.load(Ordering::Relaxed)
    }

    /// Calls `poll`, which polls the device, and catches a panic.
    ///
    /// wgpu panics if the driver reports a loss while the device is polled, and has no call that
    /// returns the loss as an error.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] after a panic.
    pub fn catch<T>(&self, poll: impl FnOnce() -> T) -> Result<T> {
        std::panic::catch_unwind(AssertUnwindSafe(poll))
            .map_err(|_| self.lose("the driver failed while it was waited for"))
    }
}

/// Creates a buffer to map.
fn new_probe(device: &wgpu::Device) -> wgpu::Buffer {
    without_errors(device, || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("gru.probe"),
            size: 4,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        })
    })
}

/// Returns true if mapping a buffer fails immediately.
fn refuses_to_map(device: &wgpu::Device, buffer: &wgpu::Buffer) -> bool {
    let refused = Arc::new(AtomicBool::new(false));
    let by_callback = Arc::clone(&refused);
    without_errors(device, || {
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |mapped| {
            by_callback.store(mapped.is_err(), Ordering::Relaxed);
        });
        let refused = refused.load(Ordering::Relaxed);
        // If the mapping was not refused, this cancels it. The callback then gets an error.
        buffer.unmap();
        refused
    })
}
