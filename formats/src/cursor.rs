//! Reading little-endian numbers one after another from bytes that may end anywhere.

use crate::{Error, Result};

pub(crate) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

macro_rules! numbers {
    ($($name:ident),*) => {$(
        pub fn $name(&mut self, what: &str) -> Result<$name> {
            let bytes = self.take(size_of::<$name>() as u64, what)?;
            Ok($name::from_le_bytes(bytes.try_into().expect("as many bytes as were taken")))
        }
    )*};
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Cursor { file, bytes, at: 0 }
    }

    pub fn at(&self) -> u64 {
        self.at as u64
    }

    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `n` bytes; `what` they are stands in the message.
    pub fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.remaining() {
            return Err(self.damaged(format!(
                "{what} needs {n} bytes and {} are left: the file was cut short or is damaged; fetch it again",
                self.remaining()
            )));
        }
        let taken = &self.bytes[self.at..][..n as usize];
        self.at += n as usize;
        Ok(taken)
    }

    numbers!(u8, u16, u32, u64, i32, f32);

    /// A number of things that take at least `least` bytes each.
    pub fn count(&self, n: u64, least: u64, what: &str) -> Result<usize> {
        match n.checked_mul(least) {
            Some(bytes) if bytes <= self.remaining() => Ok(n as usize),
            _ => Err(self.damaged(format!(
                "{n} {what} cannot be in the {} bytes that are left: the file was cut short or is damaged",
                self.remaining()
            ))),
        }
    }

    pub fn damaged(&self, what: impl Into<String>) -> Error {
        Error::damaged(self.file, self.at(), what)
    }
}
