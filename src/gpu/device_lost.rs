//! [`DeviceLostDetector`]: detects that an open device is lost, and keeps the reason.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::report::{one_line, without_errors};
use crate::lock::lock;

/// The state of a device: usable, or lost with a reason. A lost device stays lost.
#[derive(Debug)]
pub(crate) struct DeviceLostDetector {
    reason: Arc<Mutex<Option<String>>>,
    /// A buffer to map as a test, for a device that the caller opened. wgpu reports a loss only to
    /// the caller's callback, and most calls on a lost device do not fail. Mapping a buffer fails
    /// at once.
    probe: Option<Mutex<wgpu::Buffer>>,
    #[cfg(test)]
    probes: std::sync::atomic::AtomicUsize,
}

impl DeviceLostDetector {
    /// Creates the detector of a device that this library opened. Sets the device's lost callback.
    pub fn by_callback(device: &wgpu::Device) -> Self {
        let reason = Arc::<Mutex<Option<String>>>::default();
        let shared = Arc::clone(&reason);
        device.set_device_lost_callback(move |kind, message| {
            lock(&shared).get_or_insert(one_line(&format!("{kind:?}: {message}")));
        });
        Self::new(reason, None)
    }

    /// Creates the detector of a device that the caller opened. Sets no callback.
    pub fn by_probe(device: &wgpu::Device) -> Self {
        Self::new(Arc::default(), Some(Mutex::new(new_probe(device))))
    }

    fn new(reason: Arc<Mutex<Option<String>>>, probe: Option<Mutex<wgpu::Buffer>>) -> Self {
        Self {
            reason,
            probe,
            #[cfg(test)]
            probes: Default::default(),
        }
    }

    /// Marks the device as lost and returns the error. Only the first reason is kept.
    pub fn mark_lost(&self, reason: &str) -> Error {
        Error::DeviceLost(lock(&self.reason).get_or_insert(one_line(reason)).clone())
    }

    /// Checks that the device is not known to be lost. Makes no call to wgpu.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check_known(&self) -> Result<()> {
        match &*lock(&self.reason) {
            Some(reason) => Err(Error::DeviceLost(reason.clone())),
            None => Ok(()),
        }
    }

    /// Checks that the device is not lost. For a device that the caller opened, this maps a buffer,
    /// which takes some microseconds.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check(&self, device: &wgpu::Device) -> Result<()> {
        self.check_known()?;
        #[cfg(test)]
        self.probes.fetch_add(1, Ordering::Relaxed);
        match &self.probe {
            // While another thread polls, wgpu may still count the kept buffer as mapped and refuse
            // to map it. A new buffer has no such state, so it decides.
            Some(probe)
                if refuses_to_map(device, &lock(probe))
                    && refuses_to_map(device, &new_probe(device)) =>
            {
                Err(self.mark_lost("the caller's device was lost or destroyed"))
            }
            _ => Ok(()),
        }
    }

    /// Returns how often [`Self::check`] tested the device.
    #[cfg(test)]
    pub fn probes(&self) -> usize {
        self.probes.load(Ordering::Relaxed)
    }

    /// Calls `poll`, which polls the device, and catches its panics.
    ///
    /// wgpu panics if the driver reports a loss during a poll. It has no call that returns an error
    /// instead, so the panic must be caught.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] after a panic.
    pub fn catch<T>(&self, poll: impl FnOnce() -> T) -> Result<T> {
        std::panic::catch_unwind(AssertUnwindSafe(poll))
            .map_err(|_| self.mark_lost("wgpu panicked while the device was polled"))
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

/// Returns true if mapping a buffer fails at once.
fn refuses_to_map(device: &wgpu::Device, buffer: &wgpu::Buffer) -> bool {
    let refused = Arc::new(AtomicBool::new(false));
    let by_callback = Arc::clone(&refused);
    without_errors(device, || {
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |mapped| {
            by_callback.store(mapped.is_err(), Ordering::Relaxed);
        });
        let refused = refused.load(Ordering::Relaxed);
        // This cancels a mapping that was not refused. The callback then gets an error, too, but
        // the result was read before.
        buffer.unmap();
        refused
    })
}
