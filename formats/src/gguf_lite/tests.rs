use super::*;
use proptest::prelude::*;

fn write(path: &Path, tensors: &[(Tensor, Vec<f32>)], metadata: &[(&str, &str)]) {
    let new = tensors.iter().map(|(t, _)| t.clone()).collect();
    let mut writer = Writer::create(path, metadata, new).unwrap();
    tensors.iter().for_each(|(t, x)| writer.write(t.name(), x).unwrap());
    writer.finish().unwrap();
}

fn sample() -> Vec<(Tensor, Vec<f32>)> {
    let x = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect::<Vec<_>>();
    [
        ("bias", vec![3], Type::F32),
        ("embedding", vec![5, 4], Type::F16),
        ("q8", vec![3, 10], Type::Q8),
        ("q4", vec![2, 128], Type::Q4),
    ]
    .map(|(name, shape, kind)| (Tensor::new(name, &shape, kind).unwrap(), x(shape.iter().product())))
    .into()
}

#[test]
fn tensors_come_back_within_half_a_scale() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.glft");
    write(&path, &sample(), &[("model", "tiny=1"), ("empty", "")]);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(&bytes[..4], b"TFLG");
    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata(), [("model".into(), "tiny=1".into()), ("empty".into(), String::new())]);
    // scale and bound on the error of each type: f16 has 11 bits; the greatest number is 1.25
    let bounds = [0.0, 1.25 / 2048.0, 1.25 / 127.0 / 2.0 * 1.01, 1.25 / 7.0 / 2.0 * 1.01];
    for ((t, x), bound) in sample().iter().zip(bounds) {
        let found = file.find(t.name()).unwrap();
        assert_eq!((found.shape(), found.kind()), (t.shape(), t.kind()));
        let y = file.read_f32(found).unwrap();
        assert_eq!(y.len(), x.len());
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= bound), "{}", t.name());
    }
    // what was read is written to the same numbers: scales and codes are a fixed point
    let again: Vec<_> = sample()
        .into_iter()
        .map(|(t, _)| {
            let x = file.read_f32(file.find(t.name()).unwrap()).unwrap();
            (t, x)
        })
        .collect();
    let copy = dir.path().join("copy.glft");
    write(&copy, &again, &[]);
    let copy = File::open(&copy).unwrap();
    for (t, x) in again.iter().filter(|(t, _)| t.kind() != Type::Q4) {
        assert_eq!(&copy.read_f32(copy.find(t.name()).unwrap()).unwrap(), x, "{}", t.name());
    }
}

#[test]
fn bytes_are_those_of_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.glft");
    let mut x = vec![0.0; 64];
    (x[0], x[1], x[63]) = (7.0, -7.0, 1.0);
    write(&path, &[(Tensor::new("w", &[1, 64], Type::Q4).unwrap(), x)], &[("a", "b")]);
    let bytes = std::fs::read(&path).unwrap();
    let mut expected =
        b"TFLG\x01\0\0\0\x01\0\0\0\x04\0\0\0a=b\n\x01\0w\x02\x01\0\0\0\x40\0\0\0\x03\0\0\0\0\0\0\0\0\x00\x3c\x97"
            .to_vec();
    expected.extend([0; 30]);
    expected.push(0x10);
    assert_eq!(bytes, expected);
}

#[test]
fn the_locked_model_has_the_bytes_that_the_course_expects() {
    // 49,152 matrix elements, 1,280 f32 and 4,096 f16 numbers: 65,536 bytes with int4
    let sizes = |kind: Type| Tensor::new("w", &[768, 128], kind).unwrap().byte_len();
    assert_eq!(sizes(Type::Q4), 768 * 128 / 2 + 768 * 2 * 2);
    assert_eq!(sizes(Type::Q8), 768 * 128 + 768 * 2);
}

#[test]
fn files_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.glft");
    write(&path, &sample(), &[("a", "b")]);
    let sound = std::fs::read(&path).unwrap();
    for n in 0..sound.len() {
        let error = File::parse("x.glft", sound[..n].to_vec()).unwrap_err().to_string();
        assert!(error.starts_with("x.glft: "), "{error}");
    }
    // 16 bytes of header, 4 of metadata, then "bias": u16, 4 bytes, u8, u32, type, offset
    let table: &[(usize, &[u8], &str)] = &[
        (0, b"GGUF", "not a GGUF-lite file"),
        (4, &[2], "version 2"),
        (8, &[0xff; 4], "tensors cannot be in"),
        (12, &[0xff; 4], "the metadata needs 4294967295"),
        (16, b"\xff", "not UTF-8"),
        (17, b"-", "no '='"),
        (26, &[9], "9 dimensions"),
        (31, &[4], "type 4"),
        (31, &[3], "is for matrices"),
        (32, &[0xff; 8], "ends beyond"),
        (32, &[1], "overlap"),
    ];
    for (at, with, expected) in table {
        let mut lies = sound.clone();
        lies[*at..at + with.len()].copy_from_slice(with);
        let error = File::parse("x.glft", lies).unwrap_err().to_string();
        assert!(error.contains(expected), "expected '{expected}', got: {error}");
    }
}

#[test]
fn what_the_format_cannot_hold_is_not_written() {
    assert!(Tensor::new("w", &[2, 100], Type::Q4).unwrap_err().contains("not whole groups of 64"));
    assert!(Tensor::new("w", &[64], Type::Q4).unwrap_err().contains("is for matrices"));
    assert!(Tensor::new("w", &[1; 9], Type::F32).is_err());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.glft");
    let tensor = || Tensor::new("w", &[2], Type::F32).unwrap();
    assert!(Writer::create(&path, &[("a=", "b")], vec![]).is_err());
    assert!(Writer::create(&path, &[("a", "b\nc")], vec![]).is_err());
    assert!(Writer::create(&path, &[], vec![tensor(), tensor()]).is_err());
    let mut writer = Writer::create(&path, &[], vec![tensor()]).unwrap();
    assert!(writer.write("w", &[1.0]).unwrap_err().to_string().contains("has 2 elements, but 1"));
    assert!(writer.write("v", &[1.0]).unwrap_err().to_string().contains("before 'w'"));
    assert!(writer.finish().is_err());
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn bytes_changed_anywhere_give_a_file_or_an_error(at in any::<proptest::sample::Index>(), with: u8, more in 0usize..9) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.glft");
        write(&path, &sample(), &[("a", "b")]);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        let end = (at + more).min(bytes.len());
        bytes[at..end].fill(with);
        if let Ok(file) = File::parse("x.glft", bytes) {
            for t in file.tensors() {
                file.read_f32(t).unwrap();
            }
        }
    }
}
