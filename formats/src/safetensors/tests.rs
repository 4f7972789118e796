//! Round trips, shards, and headers that lie.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![7; data]].concat()
}

fn parse(header: &str, data: usize) -> crate::Result<Model> {
    Model::parse("x.safetensors", file(header, data))
}

#[test]
fn headers_that_lie_are_refused_with_the_reason() {
    let tensor =
        |shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let two = |b: &str| {
        let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
        format!(r#"{{{a},"{b}}}"#)
    };
    assert!(parse(&tensor("[2]", "[0,8]"), 8).is_ok());
    assert!(parse("{}   ", 0).is_ok());
    let table = [
        (parse(&tensor("[2]", "[0,8]"), 7), "cut short"),
        (parse(&tensor("[2]", "[0,8]"), 9), "1 bytes after the last tensor"),
        (parse(&tensor("[2]", "[4,12]"), 12), "leaves a hole after 'the header'"),
        (parse(&tensor("[2]", "[0,4]"), 4), "has 8 bytes, but data_offsets are 0 to 4"),
        (parse(&tensor("[2]", "[8,0]"), 8), "data_offsets are 8 to 0"),
        (parse(&tensor("[2]", "[18446744073709551608,18446744073709551616]"), 8), "cannot be read"),
        (parse(&tensor("[-2]", "[0,8]"), 8), "cannot be read"),
        (parse(&tensor("[2.5]", "[0,8]"), 8), "cannot be read"),
        (parse(&tensor("[4294967296,4294967296,4294967296]", "[0,8]"), 8), "more bytes than"),
        (parse(&tensor("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), "at most 16 dimensions"),
        (parse(r#"{"a":{"dtype":"F9","shape":[],"data_offsets":[0,4]}}"#, 4), "dtype F9"),
        (parse(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1), "12 bits are not whole bytes"),
        (parse(r#"{"a":{"shape":[],"data_offsets":[0,4]}}"#, 4), "missing field `dtype`"),
        (parse(&two(r#"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#), 12), "'b' overlaps 'a'"),
        (parse(&two(r#"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#), 16), "'a' is in x.safetensors too"),
        (parse(r#"{"__metadata__":{"a":1}}"#, 0), "cannot be read"),
        (parse(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "occurs twice"),
        (parse(&format!("{{\"a\":{}", "[".repeat(5000)), 0), "cannot be read"),
        (parse("[]", 0), "does not begin with '{'"),
        (parse("", 0), "does not begin with '{'"),
        (Model::parse("x.safetensors", vec![0; 7]), "the length of the header needs 8 bytes"),
        (Model::parse("x.safetensors", vec![0xff; 99]), "its header would have 18446744073709551615 bytes"),
        (Model::parse("x.safetensors", [&99u64.to_le_bytes()[..], b"{}"].concat()), "the header needs 99 bytes"),
    ];
    for (found, expected) in table {
        let error = found.unwrap_err().to_string();
        assert!(error.contains(expected), "expected '{expected}', got: {error}");
        assert!(error.starts_with("x.safetensors: "), "{error}");
    }
}

#[test]
fn a_broken_header_says_at_which_byte() {
    let error = parse("{\n\"a\": }", 0).unwrap_err().to_string();
    assert!(error.contains("at byte 15"), "{error}");
}

fn write(folder: &std::path::Path, max_shard: u64) {
    let tensors: Vec<_> = (0..4).map(|i| NewTensor::new(format!("t{i}"), &[i, 2], Dtype::Bf16).unwrap()).collect();
    let mut writer = ShardedWriter::create(folder, &BTreeMap::new(), &tensors, max_shard).unwrap();
    for (i, t) in tensors.iter().enumerate() {
        writer.write(t.name(), &vec![i as u8; t.byte_len() as usize]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn shards_are_read_as_one_and_replace_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    for (max_shard, files) in [(1000, 1), (12, 2), (1, 3), (1000, 1)] {
        write(dir.path(), max_shard);
        let model = Model::open(dir.path()).unwrap();
        assert_eq!(model.files().len(), files);
        assert_eq!(model.metadata()["format"], "pt");
        for i in 0..4 {
            let t = model.tensor(&format!("t{i}")).unwrap();
            assert_eq!((t.shape(), t.dtype()), (&[i, 2][..], Dtype::Bf16));
            assert_eq!(model.data(t), vec![i as u8; 4 * i]);
        }
        assert_eq!(dir.path().join(INDEX).is_file(), files > 1);
        assert_eq!(dir.path().join(WHOLE).is_file(), files == 1);
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 12);
    let index = dir.path().join(INDEX);
    let sound = std::fs::read_to_string(&index).unwrap();
    let table = [
        (sound.replace("model-00002-of-00002", "../model"), "no file of this folder"),
        (sound.replace("model-00002-of-00002", "model-00003-of-00003"), "check the path"),
        (sound.replace("\"t3\"", "\"t4\""), "'t4' should be in"),
        (sound.replace("weight_map", "weights"), "missing field `weight_map`"),
        (r#"{"weight_map":{}}"#.into(), "names no files"),
    ];
    for (text, expected) in table {
        std::fs::write(&index, text).unwrap();
        let error = Model::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "expected '{expected}', got: {error}");
    }
    std::fs::remove_file(&index).unwrap();
    let error = Model::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("several safetensors files"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = Model::open(empty.path()).unwrap_err().to_string();
    assert!(error.contains("no model.safetensors and no"), "{error}");
}

#[test]
fn what_readers_refuse_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensor = |name: &str| NewTensor::new(name, &[2], Dtype::F32).unwrap();
    let none = BTreeMap::new();
    for names in [["a", "a"], ["a", "__metadata__"]] {
        let error = Writer::create(&path, &none, &names.map(tensor)).unwrap_err().to_string();
        assert!(error.contains("reserved"), "{error}");
    }
    let mut writer = Writer::create(&path, &none, &[tensor("a"), tensor("b")]).unwrap();
    assert!(writer.write("b", &[0]).is_err());
    writer.write("a", &[0; 8]).unwrap();
    assert!(writer.write("b", &[0; 9]).is_err());
    assert!(writer.finish().unwrap_err().to_string().contains("'b' got 0 of its 8 bytes"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn files_come_back_as_they_were_written(
        tensors in proptest::collection::btree_map(".{0,12}", (proptest::collection::vec(0usize..4, 0..4), proptest::sample::select(Dtype::ALL.to_vec())), 0..6),
        metadata in proptest::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
        seed: u8,
    ) {
        let new: Vec<_> = tensors.iter().filter_map(|(name, (shape, dtype))| NewTensor::new(name, shape, *dtype).ok()).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut writer = Writer::create(&path, &metadata, &new).unwrap();
        for t in &new {
            writer.write(t.name(), &vec![seed; t.byte_len() as usize]).unwrap();
        }
        writer.finish().unwrap();
        let model = Model::open(&path).unwrap();
        prop_assert_eq!(model.tensors().len(), new.len());
        for t in &new {
            let (shape, dtype) = &tensors[t.name()];
            let found = model.tensor(t.name()).unwrap();
            prop_assert_eq!((found.shape(), found.dtype()), (&shape[..], *dtype));
            let mut copy = vec![0; t.byte_len() as usize];
            model.read_into(found, &mut copy).unwrap();
            prop_assert_eq!(&copy, model.data(found));
            prop_assert!(copy.iter().all(|&b| b == seed));
        }
        prop_assert!(metadata.iter().all(|(key, value)| model.metadata()[key] == *value));
    }

    #[test]
    fn bytes_changed_anywhere_give_a_file_or_an_error(at in any::<proptest::sample::Index>(), with: u8) {
        let header = r#"{"__metadata__":{"a":"b"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut bytes = file(header, 8);
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(model) = Model::parse("x", bytes) {
            model.tensors().iter().for_each(|t| { model.data(t); });
        }
    }
}
