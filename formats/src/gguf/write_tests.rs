//! What is written is read back; what cannot be read is not written.

use super::*;
use kernels_cpu::blocks::Format;
use proptest::prelude::*;

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,12}".prop_map(Value::String),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    fn some<T: std::fmt::Debug>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
        proptest::collection::vec(one, 0..6)
    }
    let flat = prop_oneof![
        some(any::<u8>()).prop_map(Array::U8),
        some(any::<i8>()).prop_map(Array::I8),
        some(any::<u16>()).prop_map(Array::U16),
        some(any::<i16>()).prop_map(Array::I16),
        some(any::<u32>()).prop_map(Array::U32),
        some(any::<i32>()).prop_map(Array::I32),
        some(any::<f32>()).prop_map(Array::F32),
        some(any::<u64>()).prop_map(Array::U64),
        some(any::<i64>()).prop_map(Array::I64),
        some(any::<f64>()).prop_map(Array::F64),
        some(any::<bool>()).prop_map(Array::Bool),
        some(some(any::<u8>())).prop_map(|s| Array::String(s.into_iter().collect())),
    ];
    flat.prop_recursive(2, 16, 4, move |inner| some(inner).prop_map(Array::Array))
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let value = prop_oneof![scalar(), array().prop_map(Value::Array)];
    let alignment = proptest::option::of(3u32..9);
    (proptest::collection::vec(("[a-z.]{1,20}", value), 0..8), alignment).prop_map(|(entries, alignment)| {
        let mut metadata = Metadata::new();
        entries.into_iter().for_each(|(key, value)| metadata.set(key, value));
        if let Some(n) = alignment {
            metadata.set("general.alignment", 1u32 << n);
        }
        metadata
    })
}

fn tensors() -> impl Strategy<Value = Vec<(Vec<usize>, Format)>> {
    let format = proptest::sample::select(Format::ALL.to_vec());
    let one =
        (proptest::collection::vec(0usize..4, 0..3), 1usize..3, format).prop_map(|(mut shape, blocks, format)| {
            shape.push(blocks * format.block_len().unwrap_or(5));
            (shape, format)
        });
    proptest::collection::vec(one, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn files_come_back_as_they_were_written(metadata in metadata(), tensors in tensors(), seed: u8) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let new: Vec<_> = tensors.iter().enumerate()
            .map(|(i, (shape, format))| NewTensor::new(format!("t{i}"), shape, *format).unwrap())
            .collect();
        let data: Vec<Vec<u8>> = new.iter().map(|t| (0..t.byte_len()).map(|i| seed.wrapping_add(i as u8)).collect()).collect();
        let mut writer = Writer::create(&path, &metadata, new.clone()).unwrap();
        for (t, bytes) in new.iter().zip(&data) {
            // in two pieces
            let (a, b) = bytes.split_at(bytes.len() / 3);
            writer.write(t.name(), a).unwrap();
            writer.write(t.name(), b).unwrap();
        }
        writer.finish().unwrap();
        let file = File::open(&path).unwrap();
        let mut found = file.metadata().clone();
        found.retain(|key| !key.starts_with(PACKING_KEY));
        // printed, because a NaN is not equal to itself
        let entries = |m: &Metadata| format!("{:?}", m.iter().collect::<Vec<_>>());
        prop_assert_eq!(entries(&found), entries(&metadata));
        prop_assert_eq!(file.tensors().len(), new.len());
        for ((t, (shape, format)), (bytes, new)) in file.tensors().iter().zip(&tensors).zip(data.iter().zip(&new)) {
            prop_assert_eq!((t.shape(), t.format()), (shape.clone(), Some(*format)));
            prop_assert_eq!(file.data(t), bytes);
            prop_assert_eq!(&NewTensor::like(t), new);
            let mut copy = vec![0; bytes.len()];
            file.read_into(t, &mut copy).unwrap();
            prop_assert_eq!(&copy, bytes);
            file.release(t);
            prop_assert_eq!(file.data(t), bytes);
        }
    }

    #[test]
    fn bytes_changed_anywhere_give_a_file_or_an_error(at in any::<proptest::sample::Index>(), with: u8, more in 0usize..40) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        small(&path).finish().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        let end = (at + more).min(bytes.len());
        bytes[at..end].fill(with);
        if let Ok(file) = File::parse("x.gguf", bytes) {
            file.tensors().iter().for_each(|t| { file.data(t); });
        }
    }
}

/// A file of three keys and two tensors, complete but for its name.
fn small(path: &std::path::Path) -> Writer {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("scores", vec![1.0f32, 2.0]);
    metadata.set("words", Strings::from_iter(["a", "bc"]));
    let tensors = vec![
        NewTensor::new("a", &[2, 3], Format::F16).unwrap(),
        NewTensor::new("b", &[64], Format::Int4Group(64)).unwrap(),
    ];
    let mut writer = Writer::create(path, &metadata, tensors).unwrap();
    writer.write("a", &[1; 12]).unwrap();
    writer.write("b", &[2; 34]).unwrap();
    writer
}

#[test]
fn an_unfinished_file_leaves_nothing_and_a_finished_one_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, "old").unwrap();
    drop(small(&path));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    let tensor = NewTensor::new("a", &[2, 3], Format::F32).unwrap();
    let mut writer = Writer::create(&path, &Metadata::new(), vec![tensor]).unwrap();
    writer.write("a", &[0; 20]).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("'a' got 20 of its 24 bytes"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    small(&path).finish().unwrap();
    assert_eq!(File::open(&path).unwrap().tensors().len(), 2);
}

#[test]
fn what_readers_refuse_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let tensor = |name: &str| NewTensor::new(name, &[4], Format::F32).unwrap();
    let create = |metadata: &Metadata, tensors| Writer::create(&path, metadata, tensors);
    let none = Metadata::new();
    let mut odd = Metadata::new();
    odd.set("general.alignment", 24u32);
    let mut long = Metadata::new();
    long.set("k".repeat(65536), true);
    let twice = vec![tensor("a"), tensor("a")];
    for (error, expected) in [
        (create(&none, vec![tensor(&"n".repeat(64))]).unwrap_err(), "longer than 63"),
        (create(&none, twice).unwrap_err(), "two tensors called 'a'"),
        (create(&odd, vec![]).unwrap_err(), "general.alignment"),
        (create(&long, vec![]).unwrap_err(), "65536 bytes"),
        (create(&none, vec![NewTensor::new("a", &[1; 5], Format::F32).unwrap()]).unwrap_err(), "5 dimensions"),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(NewTensor::new("a", &[2, 33], Format::Q8_0).unwrap_err().contains("rows of 33"));
    assert!(NewTensor::new("a", &[], Format::Int8Row).unwrap_err().contains("needs rows"));
    let mut writer = create(&none, vec![tensor("a"), tensor("b")]).unwrap();
    assert!(writer.write("b", &[0; 16]).unwrap_err().to_string().contains("before 'a' was complete"));
    assert!(writer.write("a", &[0; 17]).unwrap_err().to_string().contains("has 16 bytes, but 17"));
    writer.write("a", &[0; 16]).unwrap();
    writer.write("b", &[0; 16]).unwrap();
    assert!(writer.write("c", &[0; 16]).unwrap_err().to_string().contains("after the last"));
    let error = Writer::create(dir.path().join("no/x"), &none, vec![]).unwrap_err().to_string();
    assert!(error.contains("check the path"), "{error}");
}

#[test]
fn keys_of_packing_are_those_of_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let mut metadata = Metadata::new();
    metadata.set("lynx.packing.gone", "nf4");
    let tensor = NewTensor::new("w", &[2, 128], Format::Nf4).unwrap();
    assert_eq!(tensor.byte_len(), 2 * 68);
    let mut writer = Writer::create(&path, &metadata, vec![tensor]).unwrap();
    writer.write("w", &[0; 136]).unwrap();
    writer.finish().unwrap();
    let file = File::open(&path).unwrap();
    let keys: Vec<_> = file.metadata().iter().collect();
    assert_eq!(keys, [("lynx.packing.w", &Value::String("nf4".into()))]);
    assert_eq!(file.tensor("w").unwrap().shape(), [2, 128]);
}
