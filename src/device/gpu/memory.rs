//! Buffers of a `Context`: making them, writing them, reading them back.

use super::context::Context;
use crate::{Error, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// The read-back buffer starts with this and doubles up to `MOST_STAGING`; longer tensors are read in pieces. It is the one
/// buffer that a plan does not count: there is one for a device.
const LEAST_STAGING: u64 = 64 << 10;
const MOST_STAGING: u64 = 8 << 20;

impl Context {
    /// What `create_buffer` allocates for a request: whole words, and one word for an empty tensor (no device has empty buffers).
    pub fn rounded(bytes: u64) -> u64 {
        bytes.next_multiple_of(4).max(4)
    }

    /// Bytes of all buffers ever made by this context; it stands still while a plan runs.
    pub fn created_bytes(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    /// A zeroed storage buffer. `label` says in errors what it is for.
    pub fn create_buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.create(label, bytes, usage)
    }

    pub(super) fn create(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let (bytes, max) = (Self::rounded(bytes), self.caps().limits.max_buffer);
        let what_to_do =
            "use a smaller batch or context (--set train.batch_size=N, --set model.context=N), or --device cpu";
        if bytes > max {
            return Err(Error::Device(format!(
                "{label} needs {bytes} bytes, {} allows {max} in one buffer; {what_to_do}",
                self.info().name
            )));
        }
        self.check()?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        if pollster::block_on(scope.pop()).is_some() {
            return Err(Error::Device(format!(
                "{} has no room for {label} ({bytes} bytes); {what_to_do}",
                self.info().name
            )));
        }
        self.check()?;
        self.created.fetch_add(bytes, Ordering::Relaxed);
        Ok(buffer)
    }

    /// Queues a write; it takes effect before anything submitted later.
    pub fn write(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        self.check()?;
        if !bytes.is_empty() {
            self.queue.write_buffer(buffer, 0, bytes);
        }
        Ok(())
    }

    /// Waits for the device and copies the first `bytes` of `buffer` to the host.
    pub fn read(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        self.check()?;
        let mut staging = self.staging.lock().unwrap_or_else(|e| e.into_inner());
        let mut result = Vec::with_capacity(bytes as usize);
        while (result.len() as u64) < bytes {
            let at = result.len() as u64;
            let size = (bytes - at).min(MOST_STAGING);
            let through = match staging.take() {
                Some(b) if b.size() >= size => b,
                _ => {
                    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                    self.create("the read-back buffer", size.next_power_of_two().max(LEAST_STAGING), usage)?
                }
            };
            // After an error the buffer is not put back: it may still be mapped.
            self.read_piece(buffer, at, &through, size, &mut result)?;
            *staging = Some(through);
        }
        Ok(result)
    }

    fn read_piece(
        &self,
        from: &wgpu::Buffer,
        at: u64,
        through: &wgpu::Buffer,
        size: u64,
        to: &mut Vec<u8>,
    ) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| Error::Device(format!("{}: read-back failed: {e}", self.info().name));
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(from, at, through, 0, size);
        self.queue.submit([encoder.finish()]);
        let slice = through.slice(..size);
        let mapped = Arc::new(OnceLock::new());
        slice.map_async(wgpu::MapMode::Read, {
            let mapped = mapped.clone();
            move |result| {
                let _ = mapped.set(result);
            }
        });
        self.wait()?;
        match mapped.get() {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(failed(e)),
            None => return Err(failed(&"the device did not answer")),
        }
        to.extend_from_slice(&slice.get_mapped_range().map_err(|e| failed(&e))?);
        through.unmap();
        Ok(())
    }
}
