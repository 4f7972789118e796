//! Writing models of llama2.c: legacy and version 1.

use super::{Config, HEADER, MAGIC, Slot, TABLES, Version, layout};
use crate::atomic::Atomic;
use crate::order::Order;
use crate::{Error, Result};
use std::path::Path;

/// Writes a file: the header at once, then tensors in the order of [`Writer::tensors`].
#[derive(Debug)]
pub struct Writer {
    file: Atomic,
    order: Order,
    config: Config,
    version: Version,
    tensors: Vec<(String, Vec<usize>)>,
}

impl Writer {
    /// Starts a file that will be `path`. Data is written by [`Writer::write`]; the file appears with [`Writer::finish`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] for version 2, and for sizes that [`Config::check`] refuses.
    pub fn create(path: impl AsRef<Path>, config: &Config, version: Version) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |what: String| Error::unwritable(&path.display().to_string(), what);
        config.check().map_err(refuse)?;
        if let Version::V2 { .. } = version {
            return Err(refuse("version 2 is only read; write version 1, or GGUF for quantised weights".into()));
        }
        let mut file = Atomic::create(path)?;
        let vocab = config.vocab_size as i32;
        let sizes = [
            config.dim as i32,
            config.hidden_dim as i32,
            config.layers as i32,
            config.heads as i32,
            config.kv_heads as i32,
            if version == Version::Legacy && !config.shared_classifier { -vocab } else { vocab },
            config.seq_len as i32,
        ];
        if version == Version::V1 {
            file.write(&MAGIC.to_le_bytes())?;
            file.write(&1i32.to_le_bytes())?;
        }
        file.write(&sizes.map(i32::to_le_bytes).concat())?;
        if version == Version::V1 {
            file.write(&[config.shared_classifier as u8])?;
            file.pad(HEADER)?;
        }
        let tensors: Vec<_> =
            layout(config, version).into_iter().map(|Slot { name, shape, .. }| (name, shape)).collect();
        let bytes = |(name, shape): &(String, Vec<usize>)| (name.clone(), 4 * shape.iter().product::<usize>() as u64);
        let order = Order::new(tensors.iter().map(bytes).collect());
        Ok(Writer { file, order, config: *config, version, tensors })
    }

    /// Names and shapes in the order in which [`Writer::write`] wants them.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let wanted = self.tensors.iter().filter(|(name, _)| !TABLES.contains(&name.as_str()));
        wanted.map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }

    /// Appends numbers to tensor `name`, which must be the first that is not complete. A tensor may be written in pieces. The rotation's
    /// tables of legacy files are written by themselves, for the base 10000 that these files imply.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] if it is another tensor's turn, or these are more numbers than the tensor has.
    pub fn write(&mut self, name: &str, x: &[f32]) -> Result<()> {
        let complete = self.put(name, x)?;
        if self.version == Version::Legacy && complete && name == "norm.weight" {
            let Config { seq_len, .. } = self.config;
            let half = self.config.head_size() / 2;
            for (table, f) in TABLES.into_iter().zip([f64::cos as fn(f64) -> f64, f64::sin]) {
                for position in 0..seq_len {
                    let angle = |i: usize| position as f64 * 10000f64.powf(-(i as f64) / half as f64);
                    let row: Vec<f32> = (0..half).map(|i| f(angle(i)) as f32).collect();
                    self.put(table, &row)?;
                }
            }
        }
        Ok(())
    }

    /// Whether the tensor is complete with this.
    fn put(&mut self, name: &str, x: &[f32]) -> Result<bool> {
        let complete = self.order.give(name, 4 * x.len() as u64).map_err(|what| self.file.refuse(what))?;
        for piece in x.chunks(4096) {
            let bytes: Vec<u8> = piece.iter().flat_map(|x| x.to_le_bytes()).collect();
            self.file.write(&bytes)?;
        }
        Ok(complete.is_some())
    }

    /// Gives the file its name, once the disk has it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] if a tensor lacks numbers. No file appears then.
    pub fn finish(self) -> Result<()> {
        self.order.finish().map_err(|what| self.file.refuse(what))?;
        self.file.commit()
    }
}
