//! TensorBoard event files: TFRecord framing around hand-encoded `tensorflow.Event` protocol buffers.
//!
//! Field numbers are those of tensorflow/core/util/event.proto, framework/summary.proto and framework/tensor.proto. A record
//! is length (u64), masked CRC-32C of the length, data, masked CRC-32C of the data, all little-endian (core/lib/io/record_writer).

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A protocol-buffer message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn int(mut self, field: u64, value: u64) -> Self {
        self.tag(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn message(self, field: u64, value: Message) -> Self {
        self.bytes(field, &value.0)
    }
}

/// CRC-32C rotated and offset, so that a checksum of data that holds checksums stays sound.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn event(step: u64) -> Message {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    Message::default().double(1, now).int(2, step)
}

/// Appends events to one new file. Every start of a run writes its own file; TensorBoard joins them.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Creates the file in `folder`. With `resumed_at`, tells TensorBoard to forget what earlier files say of later steps.
    pub fn create(folder: &Path, resumed_at: Option<u64>) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Read in order of name: the time comes first, its fraction and the process keep names apart.
        let name = format!("events.out.tfevents.{}.{:09}.{}", now.as_secs(), now.subsec_nanos(), std::process::id());
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
        let mut writer = Self { path, file: BufWriter::new(file) };
        writer.record(event(0).bytes(3, b"brain.Event:2"))?;
        if let Some(step) = resumed_at {
            const SESSION_START: u64 = 1;
            writer.record(event(step + 1).message(7, Message::default().int(1, SESSION_START)))?;
        }
        writer.flush()?;
        Ok(writer)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One point of the curve `tag`.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()> {
        let value = Message::default().bytes(1, tag.as_bytes()).float(2, value as f32);
        self.record(event(step).message(5, Message::default().message(1, value)))
    }

    /// A piece of text under `tag`; TensorBoard shows it as Markdown.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        const DT_STRING: u64 = 7;
        let plugin = Message::default().message(1, Message::default().bytes(1, b"text"));
        let shape = Message::default().message(2, Message::default().int(1, 1));
        let tensor = Message::default().int(1, DT_STRING).message(2, shape).bytes(8, text.as_bytes());
        let value = Message::default().bytes(1, tag.as_bytes()).message(8, tensor).message(9, plugin);
        self.record(event(step).message(5, Message::default().message(1, value)))
    }

    /// Hands everything to the operating system, so that a reader sees whole records.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io(&self.path, e))
    }

    fn record(&mut self, message: Message) -> Result<()> {
        let length = (message.0.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(message.0.len() + 16);
        frame.extend(length);
        frame.extend(masked_crc(&length).to_le_bytes());
        frame.extend(&message.0);
        frame.extend(masked_crc(&message.0).to_le_bytes());
        self.file.write_all(&frame).map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of a parsed message: number and raw value.
    #[derive(Debug, PartialEq, Clone)]
    enum Field {
        Int(u64, u64),
        Fixed64(u64, [u8; 8]),
        Bytes(u64, Vec<u8>),
        Fixed32(u64, [u8; 4]),
    }

    fn read_varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    fn take<'a>(data: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, rest) = data.split_at(n);
        *data = rest;
        head
    }

    fn fields(mut data: &[u8]) -> Vec<Field> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let key = read_varint(&mut data);
            let field = key >> 3;
            out.push(match key & 7 {
                0 => Field::Int(field, read_varint(&mut data)),
                1 => Field::Fixed64(field, take(&mut data, 8).try_into().unwrap()),
                2 => {
                    let n = read_varint(&mut data) as usize;
                    Field::Bytes(field, take(&mut data, n).to_vec())
                }
                5 => Field::Fixed32(field, take(&mut data, 4).try_into().unwrap()),
                other => panic!("wire type {other}"),
            });
        }
        out
    }

    fn inner(fields: &[Field], number: u64) -> Vec<u8> {
        let found = fields.iter().find_map(|field| match field {
            Field::Bytes(n, data) if *n == number => Some(data.clone()),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no field {number} in {fields:?}"))
    }

    fn events(path: &Path) -> Vec<Vec<Field>> {
        let bytes = std::fs::read(path).unwrap();
        let mut data = bytes.as_slice();
        let mut out = Vec::new();
        while !data.is_empty() {
            let length = take(&mut data, 8);
            assert_eq!(take(&mut data, 4), masked_crc(length).to_le_bytes());
            let body = take(&mut data, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(take(&mut data, 4), masked_crc(body).to_le_bytes());
            out.push(fields(body));
        }
        out
    }

    #[test]
    fn checksum_is_the_masked_crc32c_of_the_format() {
        // The version record every TensorBoard writer starts with: 24 bytes of length, known header checksum.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let unmasked = masked_crc(b"123456789").wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0xe306_9283);
        assert_eq!(masked_crc(&24u64.to_le_bytes()), u32::from_le_bytes([0xa3, 0x7f, 0x4b, 0x22]));
    }

    #[test]
    fn scalars_and_text_parse_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), None).unwrap();
        writer.scalar(300, "loss/train", 2.5).unwrap();
        writer.text(301, "sample", "hé").unwrap();
        writer.flush().unwrap();

        let events = events(writer.path());
        assert_eq!(events.len(), 3);
        assert_eq!(inner(&events[0], 3), b"brain.Event:2");
        assert!(events[1].contains(&Field::Int(2, 300)));
        assert!(matches!(events[1][0], Field::Fixed64(1, wall) if f64::from_le_bytes(wall) > 1.6e9));
        let value = fields(&inner(&fields(&inner(&events[1], 5)), 1));
        assert_eq!(value, [Field::Bytes(1, b"loss/train".to_vec()), Field::Fixed32(2, 2.5f32.to_le_bytes())]);

        assert!(events[2].contains(&Field::Int(2, 301)));
        let value = fields(&inner(&fields(&inner(&events[2], 5)), 1));
        assert_eq!(inner(&value, 1), b"sample");
        let tensor = fields(&inner(&value, 8));
        assert!(tensor.contains(&Field::Int(1, 7)));
        assert_eq!(inner(&tensor, 8), "hé".as_bytes());
        assert_eq!(inner(&fields(&inner(&fields(&inner(&value, 9)), 1)), 1), b"text");
    }

    #[test]
    fn a_resumed_run_says_where_it_starts() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::create(dir.path(), None).unwrap();
        let second = EventWriter::create(dir.path(), Some(128)).unwrap();
        assert_ne!(first.path(), second.path());
        assert!(first.path() < second.path(), "files sort by time");
        let start = &events(second.path())[1];
        assert!(start.contains(&Field::Int(2, 129)));
        assert_eq!(fields(&inner(start, 7)), [Field::Int(1, 1)]);
    }
}
