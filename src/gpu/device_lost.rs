//! [`DeviceLostDetector`]: whether an open device is lost, and why.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::report::{one_line, without_errors};
use crate::lock::lock;

/// Whether a device is lost, and why. It stays lost.
#[derive(Debug)]
pub(crate) struct DeviceLostDetector {
    reason: Arc<Mutex<Option<String>>>,
    /// Where somebody else opened the device: only their callback is called when it is
    /// lost, and wgpu's calls on a lost device do not fail. Mapping a buffer does, at once.
    probe: Option<Mutex<wgpu::Buffer>>,
    #[cfg(test)]
    probed: std::sync::atomic::AtomicUsize,
}

impl DeviceLostDetector {
    /// For a device of this library's own, which calls back.
    pub fn by_callback(device: &wgpu::Device) -> Self {
        let reason = Arc::<Mutex<Option<String>>>::default();
        let kept = Arc::clone(&reason);
        device.set_device_lost_callback(move |kind, message| {
            lock(&kept).get_or_insert(one_line(&format!("{kind:?}: {message}")));
        });
        Self::new(reason, None)
    }

    /// For a device whose callbacks are somebody else's.
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

    /// Remembers a loss. The first reason counts.
    pub fn lose(&self, reason: &str) -> Error {
        Error::DeviceLost(lock(&self.reason).get_or_insert(one_line(reason)).clone())
    }

    /// `Ok` unless the device is known to be lost. Costs nothing.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check_known(&self) -> Result<()> {
        match &*lock(&self.reason) {
            Some(reason) => Err(Error::DeviceLost(reason.clone())),
            None => Ok(()),
        }
    }

    /// `Ok` unless the device is lost. Maps a buffer where no callback of ours reports a loss,
    /// which takes some microseconds.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check(&self, device: &wgpu::Device) -> Result<()> {
        self.check_known()?;
        #[cfg(test)]
        self.probed.fetch_add(1, Ordering::Relaxed);
        match &self.probe {
            // While another thread polls, wgpu may find the kept buffer still mapped and refuse it;
            // a new one has no past.
            Some(probe)
                if refuses_to_map(device, &lock(probe))
                    && refuses_to_map(device, &new_probe(device)) =>
            {
                Err(self.lose("the caller's device was lost or destroyed"))
            }
            _ => Ok(()),
        }
    }

    /// How often the device was asked.
    #[cfg(test)]
    pub fn probed(&self) -> usize {
        self.probed.load(Ordering::Relaxed)
    }

    /// Calls `poll`, which polls the device.
    ///
    /// wgpu panics where the driver reports a loss while the device is polled, and has no call that
    /// returns it instead: there is no other way than to catch the panic.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] after a panic.
    pub fn catch<T>(&self, poll: impl FnOnce() -> T) -> Result<T> {
        std::panic::catch_unwind(AssertUnwindSafe(poll))
            .map_err(|_| self.lose("the driver failed while it was waited for"))
    }
}

/// A buffer to map.
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

/// Whether mapping a buffer fails at once.
fn refuses_to_map(device: &wgpu::Device, buffer: &wgpu::Buffer) -> bool {
    let refused = Arc::new(AtomicBool::new(false));
    let by_callback = Arc::clone(&refused);
    without_errors(device, || {
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |mapped| {
            by_callback.store(mapped.is_err(), Ordering::Relaxed);
        });
        let refused = refused.load(Ordering::Relaxed);
        // Where mapping was not refused, this cancels it, which the callback hears as an error.
        buffer.unmap();
        refused
    })
}
