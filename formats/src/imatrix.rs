//! Importance matrices, as llama.cpp's `imatrix` writes and its `quantize` reads them: for each matrix of a model the sums of the squares of
//! what its columns were multiplied with while a calibration text was read.
//!
//! The file is GGUF with `general.type` "imatrix", `imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`, and for each weight an
//! f32 tensor `<name>.in_sum2` [matrices, columns] and one `<name>.counts` [matrices, 1]; there are several matrices where experts share a
//! tensor. The older binary form (`.dat`) is read too: i32 number of entries; for each i32 length and name, i32 calls, i32 columns and
//! f32 each; then i32 chunks, i32 length and name of the data set.

use crate::cursor::Cursor;
use crate::gguf::{self, Metadata, NewTensor, Strings, Writer};
use crate::{Error, Result, Source};
use kernels_cpu::blocks::Format;
use std::collections::BTreeMap;
use std::path::Path;

/// What is known of a weight's inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Sums of squares [matrices, columns].
    pub sums: Vec<f32>,
    /// How many inputs each matrix has seen.
    pub counts: Vec<f32>,
}

impl Entry {
    /// Mean squares of the inputs of matrix `i`, one a column: the importance that quantisation wants. `None` if it has seen nothing.
    pub fn importance(&self, i: usize) -> Option<Vec<f32>> {
        let count = *self.counts.get(i)?;
        let columns = self.sums.len() / self.counts.len();
        (count > 0.0).then(|| self.sums[i * columns..][..columns].iter().map(|s| s / count).collect())
    }
}

/// An importance matrix: its entries by the names that the weights have in GGUF files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    pub datasets: Vec<String>,
    pub chunk_count: u32,
    /// Tokens of a chunk; 0 where the file does not say.
    pub chunk_size: u32,
    pub entries: BTreeMap<String, Entry>,
}

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

impl Imatrix {
    /// Reads a file of either form.
    ///
    /// # Errors
    /// [`Error::Io`]; what [`gguf::File::open`] refuses; [`Error::Unsupported`] for GGUF files of another kind; [`Error::Damaged`] for
    /// entries whose sizes do not fit, or sums that are no sums of squares.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let source = Source::open(path)?;
        if source.bytes().starts_with(&gguf::MAGIC) {
            return Self::from_gguf(&gguf::File::open(path)?);
        }
        Self::parse_dat(source.name(), source.bytes())
    }

    /// # Errors
    /// As [`Imatrix::open`].
    pub fn from_gguf(file: &gguf::File) -> Result<Self> {
        let metadata = file.metadata();
        let kind = metadata.find::<&str>("general.type")?.unwrap_or("model");
        if kind != "imatrix" {
            return Err(Error::unsupported(file.name(), format!("a GGUF file of a {kind}, not an importance matrix")));
        }
        let datasets = metadata.find::<&Strings>("imatrix.datasets")?;
        let mut imatrix = Imatrix {
            datasets: datasets.into_iter().flat_map(Strings::iter_lossy).map(|s| s.into_owned()).collect(),
            chunk_count: metadata.find("imatrix.chunk_count")?.unwrap_or(0),
            chunk_size: metadata.find("imatrix.chunk_size")?.unwrap_or(0),
            entries: BTreeMap::new(),
        };
        for tensor in file.tensors() {
            let Some(name) = tensor.name().strip_suffix(SUMS) else { continue };
            let sums = floats(file, tensor)?;
            let counts = floats(file, file.tensor(&format!("{name}{COUNTS}"))?)?;
            let entry = Entry { sums, counts };
            check(&entry).map_err(|e| Error::damaged(file.name(), tensor.offset(), format!("'{name}': {e}")))?;
            imatrix.entries.insert(name.into(), entry);
        }
        if imatrix.entries.is_empty() {
            return Err(Error::missing(file.name(), "there are no tensors '*.in_sum2' in it"));
        }
        Ok(imatrix)
    }

    /// Reads the older form from memory; `name` stands in messages.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn parse_dat(name: &str, bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(name, bytes);
        let size = |cursor: &mut Cursor, what: &str| -> Result<u64> {
            let n = cursor.i32(what)?;
            let bad = || cursor.damaged(format!("{what} is {n}: it is no importance matrix, or is damaged"));
            u64::try_from(n).map_err(|_| bad())
        };
        let mut imatrix = Imatrix::default();
        let count = size(&mut cursor, "the number of entries")?;
        let count = cursor.count(count, 12, "entries")?;
        for i in 0..count {
            let what = format!("entry {i}");
            let len = size(&mut cursor, &what)?;
            let text = cursor.take(len, &what)?;
            let weight = String::from_utf8_lossy(text).into_owned();
            let calls = size(&mut cursor, &what)?;
            let n = size(&mut cursor, &what)?;
            let n = cursor.count(n, 4, "columns")?;
            let bytes = cursor.take(4 * n as u64, &what)?;
            let sums = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            // the sums of this form are already scaled to the number of calls
            let entry = Entry { sums, counts: vec![calls as f32] };
            check(&entry).map_err(|e| cursor.damaged(format!("'{}': {e}", weight.escape_debug())))?;
            if imatrix.entries.insert(weight.clone(), entry).is_some() {
                return Err(cursor.damaged(format!("there are two entries '{}'", weight.escape_debug())));
            }
        }
        // older files end here
        if cursor.remaining() > 0 {
            imatrix.chunk_count = size(&mut cursor, "the number of chunks")? as u32;
        }
        if cursor.remaining() > 0 {
            let len = size(&mut cursor, "the name of the data set")?;
            let text = cursor.take(len, "the name of the data set")?;
            imatrix.datasets.push(String::from_utf8_lossy(text).into_owned());
        }
        Ok(imatrix)
    }

    /// Writes the GGUF form, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] for entries whose sizes do not fit, or names that are too long.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let refuse = |what: String| Error::unwritable(&path.display().to_string(), what);
        let mut metadata = Metadata::new();
        metadata.set("general.type", "imatrix");
        metadata.set("imatrix.datasets", self.datasets.iter().collect::<Strings>());
        metadata.set("imatrix.chunk_count", self.chunk_count);
        metadata.set("imatrix.chunk_size", self.chunk_size);
        let mut tensors = Vec::new();
        for (name, entry) in &self.entries {
            check(entry).map_err(|e| refuse(format!("'{name}': {e}")))?;
            let matrices = entry.counts.len();
            let columns = entry.sums.len() / matrices;
            let new = |end, columns| NewTensor::new(format!("{name}{end}"), &[matrices, columns], Format::F32);
            tensors.push(new(SUMS, columns).map_err(refuse)?);
            tensors.push(new(COUNTS, 1).map_err(refuse)?);
        }
        let mut writer = Writer::create(path, &metadata, tensors)?;
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        for (name, entry) in &self.entries {
            writer.write(&format!("{name}{SUMS}"), &bytes(&entry.sums))?;
            writer.write(&format!("{name}{COUNTS}"), &bytes(&entry.counts))?;
        }
        writer.finish()
    }
}

fn floats(file: &gguf::File, tensor: &gguf::Tensor) -> Result<Vec<f32>> {
    if tensor.format() != Some(Format::F32) {
        let what = format!("tensor '{}' must be F32, but is {}", tensor.name(), tensor.type_name());
        return Err(Error::unsupported(file.name(), what));
    }
    Ok(file.data(tensor).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Whether sums and counts fit each other and can be what they are called.
fn check(entry: &Entry) -> Result<(), String> {
    let (sums, counts) = (entry.sums.len(), entry.counts.len());
    if counts == 0 || sums == 0 || !sums.is_multiple_of(counts) {
        return Err(format!("{sums} sums and {counts} counts do not fit"));
    }
    match entry.sums.iter().chain(&entry.counts).find(|x| !(x.is_finite() && **x >= 0.0)) {
        Some(x) => Err(format!("{x} is neither a sum of squares nor a count")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Imatrix {
        let plain = Entry { sums: vec![1.0, 4.0, 0.0], counts: vec![2.0] };
        let experts = Entry { sums: vec![3.0, 6.0, 0.0, 0.0], counts: vec![3.0, 0.0] };
        Imatrix {
            datasets: vec!["a.txt".into(), "b.txt".into()],
            chunk_count: 7,
            chunk_size: 512,
            entries: [("blk.0.ffn_up.weight".into(), plain), ("blk.0.ffn_gate_exps.weight".into(), experts)].into(),
        }
    }

    #[test]
    fn files_come_back_and_give_mean_squares() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        sample().write(&path).unwrap();
        let found = Imatrix::open(&path).unwrap();
        assert_eq!(found, sample());
        assert_eq!(found.entries["blk.0.ffn_up.weight"].importance(0), Some(vec![0.5, 2.0, 0.0]));
        let experts = &found.entries["blk.0.ffn_gate_exps.weight"];
        assert_eq!(experts.importance(0), Some(vec![1.0, 2.0]));
        assert_eq!((experts.importance(1), experts.importance(2)), (None, None));
        let file = gguf::File::open(&path).unwrap();
        assert_eq!(file.tensor("blk.0.ffn_gate_exps.weight.counts").unwrap().dims(), [1, 2]);
    }

    #[test]
    fn other_files_and_broken_entries_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        Writer::create(&path, &Metadata::new(), vec![]).unwrap().finish().unwrap();
        assert!(Imatrix::open(&path).unwrap_err().to_string().contains("of a model, not"));
        for (sums, counts, expected) in [
            (vec![1.0; 3], vec![1.0; 2], "do not fit"),
            (vec![], vec![1.0], "do not fit"),
            (vec![-1.0], vec![1.0], "neither a sum"),
            (vec![f32::NAN], vec![1.0], "neither a sum"),
        ] {
            let entries = [("w".to_string(), Entry { sums, counts })].into();
            let error = Imatrix { entries, ..Imatrix::default() }.write(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_older_form_is_read_and_every_truncation_refused() {
        let mut bytes = 1i32.to_le_bytes().to_vec();
        bytes.extend(1i32.to_le_bytes());
        bytes.push(b'w');
        bytes.extend([4i32, 2].map(i32::to_le_bytes).concat());
        bytes.extend([8.0f32, 2.0].map(f32::to_le_bytes).concat());
        let shortest = bytes.len();
        bytes.extend(7i32.to_le_bytes());
        let chunks = bytes.len();
        bytes.extend(5i32.to_le_bytes());
        bytes.extend(b"a.txt");
        let found = Imatrix::parse_dat("x.dat", &bytes).unwrap();
        assert_eq!(found.entries["w"].importance(0), Some(vec![2.0, 0.5]));
        assert_eq!((found.chunk_count, found.datasets), (7, vec!["a.txt".to_string()]));
        for n in (0..bytes.len()).filter(|n| ![shortest, chunks].contains(n)) {
            assert!(Imatrix::parse_dat("x.dat", &bytes[..n]).is_err(), "{n} bytes");
        }
        bytes[..4].copy_from_slice(&i32::MAX.to_le_bytes());
        assert!(Imatrix::parse_dat("x.dat", &bytes).unwrap_err().to_string().contains("entries cannot be in"));
        bytes[..4].copy_from_slice(&(-1i32).to_le_bytes());
        assert!(Imatrix::parse_dat("x.dat", &bytes).unwrap_err().to_string().contains("is -1"));
    }
}
