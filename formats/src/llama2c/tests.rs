//! Round trips, the model of the llama2.c project where it is at hand, and sizes that lie.

use super::*;
use std::path::PathBuf;

const SMALL: Config = Config {
    dim: 8,
    hidden_dim: 12,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    vocab_size: 5,
    seq_len: 3,
    shared_classifier: true,
};

/// Writes tensor i as the numbers i, i + 0.01, ...
fn write(path: &std::path::Path, config: &Config, version: Version) {
    let mut writer = Writer::create(path, config, version).unwrap();
    let tensors: Vec<_> = writer.tensors().map(|(name, shape)| (name.to_string(), shape.iter().product())).collect();
    for (i, (name, n)) in tensors.into_iter().enumerate() {
        let x: Vec<f32> = (0..n).map(|k: usize| i as f32 + k as f32 / 100.0).collect();
        let (a, b) = x.split_at(n / 2);
        writer.write(&name, a).unwrap();
        writer.write(&name, b).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn models_come_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    for version in [Version::Legacy, Version::V1] {
        for shared_classifier in [true, false] {
            let config = Config { shared_classifier, ..SMALL };
            write(&path, &config, version);
            let file = File::open(&path).unwrap();
            assert_eq!((file.config(), file.version()), (&config, version));
            assert_eq!(file.find("output.weight").is_some(), !shared_classifier);
            let written = file.tensors().iter().filter(|t| !TABLES.contains(&t.name()));
            for (i, t) in written.enumerate() {
                let x = file.read_f32(t).unwrap();
                assert_eq!((x[0], x[1]), (i as f32, i as f32 + 0.01), "{}", t.name());
            }
            assert_eq!(file.tensor("layers.1.attention.wk.weight").unwrap().shape(), [4, 8]);
            assert_eq!(file.tensor("layers.0.feed_forward.w2.weight").unwrap().shape(), [8, 12]);
            assert!(file.tensor("x").unwrap_err().to_string().contains("no tensor 'x'"));
            if version == Version::Legacy {
                let sines = file.read_f32(file.tensor("freqs_sin").unwrap()).unwrap();
                assert_eq!(sines[0], 0.0);
                assert_eq!(sines[1], 1f64.sin() as f32);
            }
        }
    }
}

#[test]
fn int8_groups_are_widened() {
    let config = Config { vocab_size: 8, ..SMALL };
    let group = 4;
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    bytes.extend(2i32.to_le_bytes());
    bytes.extend([8i32, 12, 2, 4, 2, 8, 3].map(i32::to_le_bytes).concat());
    bytes.push(1);
    bytes.extend((group as i32).to_le_bytes());
    bytes.resize(256, 0);
    for slot in layout(&config, Version::V2 { group }) {
        let n: usize = slot.shape.iter().product();
        if slot.matrix {
            bytes.extend((0..n).map(|i| (i as i8 - 3) as u8));
            (0..n / group).for_each(|g| bytes.extend((g as f32 + 0.5).to_le_bytes()));
        } else {
            (0..n).for_each(|i| bytes.extend((i as f32).to_le_bytes()));
        }
    }
    let file = File::parse("m.bin", bytes.clone()).unwrap();
    assert_eq!(file.version(), Version::V2 { group });
    let norm = file.read_f32(file.tensor("norm.weight").unwrap()).unwrap();
    assert_eq!(norm[..3], [0.0, 1.0, 2.0]);
    let wq = file.read_f32(file.tensor("layers.1.attention.wq.weight").unwrap()).unwrap();
    assert_eq!(wq[..6], [-1.5, -1.0, -0.5, 0.0, 1.5, 3.0]);
    for (group, expected) in [(0i32, "group size of 0"), (-4, "group size of -4"), (5, "not whole groups of 5")] {
        let mut lies = bytes.clone();
        lies[37..41].copy_from_slice(&group.to_le_bytes());
        let error = File::parse("m.bin", lies).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn sizes_that_lie_and_truncations_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    for version in [Version::Legacy, Version::V1] {
        write(&path, &SMALL, version);
        let sound = std::fs::read(&path).unwrap();
        for n in (0..sound.len()).step_by(7).chain([sound.len() - 1]) {
            assert!(File::parse("m.bin", sound[..n].to_vec()).is_err());
        }
        let first = if version == Version::Legacy { 0 } else { 8 };
        for (field, value, expected) in [
            (0, 0, "dim is 0"),
            (0, 9, "do not divide"),
            (0, 16, "but the file has"),
            (1, -1, "hidden_dim is 0"),
            (1, i32::MAX, "hidden_dim is 2147483647"),
            (2, 1 << 20, "layers is 1048576"),
            (2, 1, "but the file has"),
            (3, 8, "into pairs"),
            (4, 3, "do not divide"),
            (5, i32::MIN, "vocabulary is"),
            (6, i32::MAX, "sequence length is"),
        ] {
            let mut lies = sound.clone();
            lies[first + 4 * field..][..4].copy_from_slice(&value.to_le_bytes());
            let error = File::parse("m.bin", lies).unwrap_err().to_string();
            assert!(error.contains(expected), "expected '{expected}', got: {error}");
        }
    }
    // the greatest sizes that are allowed, whose bytes must not overflow
    let mut greatest = MAGIC.to_le_bytes().to_vec();
    let n = MAX_SIZE as i32;
    greatest.extend([1, n, n, MAX_LAYERS as i32, n / 2, n / 2, n, n].map(i32::to_le_bytes).concat());
    greatest.resize(300, 0);
    assert!(File::parse("m.bin", greatest).unwrap_err().to_string().contains("but the file has 300"));
    let mut future = std::fs::read(&path).unwrap();
    future[4] = 3;
    assert!(File::parse("m.bin", future).unwrap_err().to_string().contains("version 3"));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    let error = Writer::create(&path, &SMALL, Version::V2 { group: 4 }).unwrap_err().to_string();
    assert!(error.contains("only read"), "{error}");
    let error = Writer::create(&path, &Config { heads: 3, ..SMALL }, Version::V1).unwrap_err().to_string();
    assert!(error.contains("do not divide"), "{error}");
    let mut writer = Writer::create(&path, &SMALL, Version::V1).unwrap();
    assert!(writer.write("norm.weight", &[0.0]).unwrap_err().to_string().contains("before 'layers.0.attention_norm"));
    assert!(writer.finish().is_err());
    assert!(!path.exists());
}

#[test]
fn vocabularies_come_back_and_broken_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.bin");
    let tokens = vec![(b"<unk>".to_vec(), 0.0), (b"".to_vec(), -1.5), (vec![0xff], f32::NEG_INFINITY)];
    let tokenizer = Tokenizer { tokens };
    tokenizer.write(&path).unwrap();
    assert_eq!(Tokenizer::open(&path).unwrap(), tokenizer);
    assert!(tokenizer.check_size("t.bin", 3).is_ok());
    assert!(tokenizer.check_size("t.bin", 4).unwrap_err().to_string().contains("3 tokens, but the model has 4"));
    let sound = std::fs::read(&path).unwrap();
    let ends: Vec<usize> = vec![4, 4 + 8 + 5, 4 + 8 + 5 + 8];
    for n in (0..sound.len()).filter(|n| !ends.contains(n)) {
        let error = Tokenizer::parse("t.bin", &sound[..n]).unwrap_err().to_string();
        assert!(error.contains("cut short"), "{error}");
    }
    let mut lies = sound.clone();
    lies[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Tokenizer::parse("t.bin", &lies).unwrap_err().to_string().contains("the longest has 5"));
    lies = sound;
    lies[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(Tokenizer::parse("t.bin", &lies).unwrap_err().to_string().contains("not a number"));
}

/// A file of the shared folder, or a word that the test is skipped.
fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("LYNX_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into());
    let path = folder.join("data/models/stories260K").join(name);
    let there = path.is_file();
    if !there {
        eprintln!("skipped: {} is not there (set LYNX_SHARED)", path.display());
    }
    there.then_some(path)
}

#[test]
fn stories260k_is_read_and_written_to_the_same_numbers() {
    let (Some(model), Some(vocabulary)) = (shared("stories260K.bin"), shared("tok512.bin")) else { return };
    let file = File::open(&model).unwrap();
    let config = *file.config();
    assert_eq!((config.dim, config.hidden_dim, config.layers, config.heads, config.kv_heads), (64, 172, 5, 8, 4));
    assert_eq!((config.vocab_size, config.seq_len, config.shared_classifier), (512, 512, true));
    let tokenizer = Tokenizer::open(&vocabulary).unwrap();
    tokenizer.check_size("tok512.bin", config.vocab_size).unwrap();
    assert_eq!(tokenizer.tokens[1].0, b"\n<s>\n");
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.bin");
    tokenizer.write(&copy).unwrap();
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&vocabulary).unwrap());
    let mut writer = Writer::create(&copy, &config, Version::Legacy).unwrap();
    let names: Vec<String> = writer.tensors().map(|(name, _)| name.into()).collect();
    for name in names {
        writer.write(&name, &file.read_f32(file.tensor(&name).unwrap()).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let copy = File::open(&copy).unwrap();
    for t in file.tensors() {
        let (a, b) = (file.read_f32(t).unwrap(), copy.read_f32(copy.tensor(t.name()).unwrap()).unwrap());
        // the tables are computed in f64 here and in f32 there
        let bound = if TABLES.contains(&t.name()) { 1e-4 } else { 0.0 };
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= bound), "{}", t.name());
    }
}
