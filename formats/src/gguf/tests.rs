//! Reading sound and hostile GGUF files made by hand.

use super::*;
use kernels_cpu::blocks::Format;

/// A file piece by piece, without the care that [`Writer`] takes.
#[derive(Clone)]
struct Raw {
    magic: [u8; 4],
    version: u32,
    tensors: Option<u64>,
    keys: Option<u64>,
    kv: Vec<(Vec<u8>, u32, Vec<u8>)>,
    infos: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

fn text(s: &[u8]) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s].concat()
}

impl Raw {
    /// One key and two tensors: "a" F32 [2, 4] at 0 and "b" Q8_0 [1, 32] at 32.
    fn sound() -> Self {
        Raw {
            magic: *b"GGUF",
            version: 3,
            tensors: None,
            keys: None,
            kv: vec![(b"general.name".to_vec(), 8, text(b"tiny"))],
            infos: vec![("a".into(), vec![4, 2], 0, 0), ("b".into(), vec![32, 1], 8, 32)],
            data: (0..32 + 34).collect(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensors.unwrap_or(self.infos.len() as u64).to_le_bytes());
        out.extend(self.keys.unwrap_or(self.kv.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.kv {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for (name, dims, kind, offset) in &self.infos {
            out.extend(text(name.as_bytes()));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn parse(&self) -> crate::Result<File> {
        File::parse("x.gguf", self.bytes())
    }
}

#[test]
fn a_sound_file_gives_its_keys_and_tensors() {
    for version in [2, 3] {
        let file = Raw { version, ..Raw::sound() }.parse().unwrap();
        assert_eq!((file.version(), file.alignment()), (version, 32));
        assert_eq!(file.metadata().require::<&str>("general.name").unwrap(), "tiny");
        let (a, b) = (file.tensor("a").unwrap(), file.tensor("b").unwrap());
        assert_eq!((a.dims(), a.shape(), a.format()), (&[4, 2][..], vec![2, 4], Some(Format::F32)));
        assert_eq!((b.kind(), b.byte_len(), b.elements()), (TensorType::Q8_0, 34, 32));
        assert_eq!(file.data(b), (32..66).collect::<Vec<u8>>());
        let mut copy = vec![0; 34];
        file.read_into(b, &mut copy).unwrap();
        assert_eq!(copy, file.data(b));
        assert!(file.tensor("c").unwrap_err().to_string().contains("no tensor 'c'"));
    }
}

#[test]
fn getters_name_the_key_and_both_types() {
    let file = Raw::sound().parse().unwrap();
    let message = file.metadata().require::<u32>("general.name").unwrap_err().to_string();
    assert!(
        message.contains("x.gguf") && message.contains("'general.name'") && message.contains("string"),
        "{message}"
    );
    let message = file.metadata().require::<&[f32]>("scores").unwrap_err().to_string();
    assert!(message.contains("'scores' is missing") && message.contains("array of f32"), "{message}");
    assert_eq!(file.metadata().find::<bool>("scores").unwrap(), None);
}

#[test]
fn integers_are_given_when_they_fit() {
    let mut metadata = Metadata::new();
    metadata.set("n", Value::I64(-1));
    metadata.set("m", Value::U8(7));
    assert_eq!(metadata.require::<i32>("n").unwrap(), -1);
    assert!(metadata.require::<u32>("n").unwrap_err().to_string().contains("the i64 -1"));
    assert_eq!(metadata.require::<usize>("m").unwrap(), 7);
}

#[test]
fn values_of_every_type_and_nested_arrays_are_read() {
    let mut raw = Raw::sound();
    let array = |kind: u32, n: u64, bytes: &[u8]| [&kind.to_le_bytes()[..], &n.to_le_bytes(), bytes].concat();
    let nested = array(9, 2, &[array(0, 2, &[1, 2]), array(8, 1, &text(b"\xff"))].concat());
    raw.kv = vec![
        (b"u8".to_vec(), 0, vec![200]),
        (b"i16".to_vec(), 3, (-2i16).to_le_bytes().to_vec()),
        (b"f64".to_vec(), 12, 0.5f64.to_le_bytes().to_vec()),
        (b"bool".to_vec(), 7, vec![1]),
        (b"nested".to_vec(), 9, nested),
        (b"words".to_vec(), 9, array(8, 2, &[text(b"one"), text(b"")].concat())),
    ];
    let file = raw.parse().unwrap();
    let m = file.metadata();
    assert_eq!(m.require::<u32>("u8").unwrap(), 200);
    assert_eq!(m.require::<i64>("i16").unwrap(), -2);
    assert_eq!(m.require::<f64>("f64").unwrap(), 0.5);
    assert!(m.require::<bool>("bool").unwrap());
    let inner = vec![Array::U8(vec![1, 2]), Array::String(Strings::from_iter([b"\xff"]))];
    assert_eq!(m.get("nested"), Some(&Value::Array(Array::Array(inner))));
    assert_eq!(m.require::<&Strings>("words").unwrap().iter().collect::<Vec<_>>(), [&b"one"[..], b""]);
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = Raw::sound().bytes();
    for n in 0..bytes.len() {
        let error = File::parse("x.gguf", bytes[..n].to_vec()).unwrap_err().to_string();
        assert!(error.starts_with("x.gguf: "), "{error}");
    }
}

type Mutation = (&'static str, fn(&mut Raw));

#[test]
fn hostile_files_are_refused_with_the_reason() {
    let table: &[Mutation] = &[
        ("not a GGUF file", |r| r.magic = *b"GGML"),
        ("version 1", |r| r.version = 1),
        ("version 9", |r| r.version = 9),
        ("swapped bytes", |r| r.version = 3 << 24),
        ("tensors cannot be in", |r| r.tensors = Some(u64::MAX)),
        ("metadata keys cannot be in", |r| r.keys = Some(1 << 60)),
        ("are left: the file was cut", |r| r.kv[0].2 = u64::MAX.to_le_bytes().to_vec()),
        ("occurs twice", |r| r.kv.push(r.kv[0].clone())),
        ("not UTF-8", |r| r.kv[0].0 = vec![b'a', 0xff]),
        ("'general.name' is not UTF-8", |r| r.kv[0].2 = text(b"\xc3")),
        ("no more than 65535", |r| r.kv[0].0 = vec![b'k'; 65536]),
        ("type id 13", |r| r.kv[0].1 = 13),
        ("neither 0 nor 1", |r| (r.kv[0].1, r.kv[0].2) = (7, vec![2])),
        ("cannot be in", |r| {
            (r.kv[0].1, r.kv[0].2) = (9, [6u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat());
        }),
        ("array of type id 99", |r| {
            (r.kv[0].1, r.kv[0].2) = (9, [99u32.to_le_bytes().to_vec(), vec![0; 8]].concat());
        }),
        ("deep", |r| {
            let level = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
            (r.kv[0].1, r.kv[0].2) = (9, level.repeat(1000));
        }),
        ("general.alignment", |r| r.kv[0] = (b"general.alignment".to_vec(), 4, 48u32.to_le_bytes().to_vec())),
        ("general.alignment", |r| r.kv[0] = (b"general.alignment".to_vec(), 8, text(b"32"))),
        ("not a multiple of 64", |r| r.kv[0] = (b"general.alignment".to_vec(), 4, 64u32.to_le_bytes().to_vec())),
        ("two tensors called 'a'", |r| r.infos[1].0 = "a".into()),
        ("no more than 255", |r| r.infos[0].0 = "n".repeat(256)),
        ("5 dimensions", |r| r.infos[0].1 = vec![1; 5]),
        ("more elements than", |r| r.infos[0].1 = vec![1 << 40, 1 << 40]),
        ("more elements than", |r| r.infos[0].1 = vec![u64::MAX]),
        ("more bytes than", |r| r.infos[0].1 = vec![i64::MAX as u64]),
        ("not whole blocks of 32", |r| r.infos[1].1 = vec![16, 2]),
        ("type id 4", |r| r.infos[0].2 = 4),
        ("overlap", |r| r.infos[1].3 = 0),
        ("not a multiple of 32", |r| r.infos[1].3 = 33),
        ("beyond the file", |r| r.infos[1].3 = 64),
        ("beyond the file", |r| r.infos[1].3 = u64::MAX - 31),
        ("no format that is packed", |r| r.kv[0] = (b"lynx.packing.a".to_vec(), 8, text(b"q4_0"))),
        ("must be rows of I8", |r| r.kv[0] = (b"lynx.packing.a".to_vec(), 8, text(b"nf4"))),
        ("not whole rows of nf4", |r| {
            r.kv[0] = (b"lynx.packing.a".to_vec(), 8, text(b"nf4"));
            r.infos[0] = ("a".into(), vec![32], 24, 0);
        }),
    ];
    assert!(Raw::sound().parse().is_ok());
    for (expected, mutate) in table {
        let mut raw = Raw::sound();
        mutate(&mut raw);
        let error = raw.parse().unwrap_err().to_string();
        assert!(error.contains(expected), "expected '{expected}', got: {error}");
        assert!(error.starts_with("x.gguf: "), "{error}");
    }
}

#[test]
fn packed_bytes_are_given_as_rows_of_numbers() {
    let mut raw = Raw::sound();
    raw.kv = vec![(b"lynx.packing.a".to_vec(), 8, text(b"nf4")), (b"lynx.packing.b".to_vec(), 8, text(b"int8-row"))];
    raw.infos = vec![("a".into(), vec![68, 2], 24, 0), ("b".into(), vec![14, 3], 24, 160)];
    raw.data = vec![0; 160 + 42];
    let file = raw.parse().unwrap();
    let (a, b) = (file.tensor("a").unwrap(), file.tensor("b").unwrap());
    assert_eq!((a.shape(), a.format(), a.byte_len()), (vec![2, 128], Some(Format::Nf4), 136));
    assert_eq!((b.shape(), b.format(), b.byte_len()), (vec![3, 10], Some(Format::Int8Row), 42));
    assert_eq!(b.type_name(), "int8-row");
}
