//! Writes small sound files of every kind, for the fuzzer to start from: `cargo run --example seeds` in this folder.

use formats::gguf::{Array, Metadata, NewTensor, Strings, Value};
use formats::imatrix::{Entry, Imatrix};
use formats::{gguf, gguf_lite, llama2c, safetensors};
use kernels_cpu::blocks::Format;
use std::path::{Path, PathBuf};

fn at(target: &str, name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn metadata() -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    m.set("general.alignment", 8u32);
    m.set("llama.block_count", 1u32);
    m.set("llama.rope.freq_base", 10000f32);
    m.set("tokenizer.ggml.model", "llama");
    m.set("tokenizer.ggml.tokens", Strings::from_iter(["<unk>", "<s>", "</s>", "a", ""]));
    m.set("tokenizer.ggml.scores", vec![0f32, -1.0]);
    m.set("tokenizer.ggml.token_type", vec![2i32, 3, 1]);
    m.set("tokenizer.ggml.add_bos_token", true);
    m.set("nested", Array::Array(vec![Array::U8(vec![1]), Array::Array(vec![Array::F64(vec![0.5])])]));
    for (key, value) in [
        ("u8", Value::U8(1)),
        ("i8", Value::I8(1)),
        ("u16", Value::U16(1)),
        ("i16", Value::I16(1)),
        ("u64", Value::U64(1)),
        ("i64", Value::I64(1)),
        ("f64", Value::F64(1.0)),
    ] {
        m.set(key, value);
    }
    m
}

fn gguf_file(path: &Path, metadata: &Metadata, formats: &[Format]) -> formats::Result<()> {
    let new = |(i, &f): (usize, &Format)| NewTensor::new(format!("t{i}"), &[2, f.block_len().unwrap_or(4)], f).unwrap();
    let tensors: Vec<_> = formats.iter().enumerate().map(new).collect();
    let mut writer = gguf::Writer::create(path, metadata, tensors.clone())?;
    for t in &tensors {
        writer.write(t.name(), &vec![1; t.byte_len() as usize])?;
    }
    writer.finish()
}

fn main() -> formats::Result<()> {
    gguf_file(&at("gguf", "empty"), &Metadata::new(), &[])?;
    gguf_file(&at("gguf", "metadata"), &metadata(), &[])?;
    gguf_file(&at("gguf", "floats"), &Metadata::new(), &[Format::F32, Format::F16, Format::Bf16])?;
    gguf_file(&at("gguf", "blocks"), &metadata(), &[Format::Q4_0, Format::Q8_0, Format::Q6K])?;
    gguf_file(&at("gguf", "packed"), &Metadata::new(), &[Format::Int8Row, Format::Int4Group(64), Format::Nf4])?;
    let entry = Entry { sums: vec![1.0, 2.0], counts: vec![3.0] };
    let imatrix = Imatrix { datasets: vec!["x".into()], entries: [("w".into(), entry)].into(), ..Imatrix::default() };
    imatrix.write(at("gguf", "imatrix"))?;

    let new = |name: &str, shape: &[usize], dtype| safetensors::NewTensor::new(name, shape, dtype).unwrap();
    use safetensors::Dtype;
    let tensors = [new("a.weight", &[2, 3], Dtype::F32), new("b", &[], Dtype::Bf16), new("c", &[0, 5], Dtype::I64)];
    for (name, tensors) in [("empty", &tensors[..0]), ("one", &tensors[..1]), ("three", &tensors[..])] {
        let metadata = [("a".to_string(), "b".to_string())].into();
        let mut writer = safetensors::Writer::create(at("safetensors", name), &metadata, tensors)?;
        for t in tensors {
            writer.write(t.name(), &vec![1; t.byte_len() as usize])?;
        }
        writer.finish()?;
    }

    let config = llama2c::Config {
        dim: 4,
        hidden_dim: 2,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        vocab_size: 2,
        seq_len: 1,
        shared_classifier: true,
    };
    use llama2c::Version;
    for (name, version, shared_classifier) in
        [("legacy", Version::Legacy, true), ("untied", Version::Legacy, false), ("v1", Version::V1, false)]
    {
        let config = llama2c::Config { shared_classifier, ..config };
        let mut writer = llama2c::Writer::create(at("llama2c", name), &config, version)?;
        let wanted: Vec<_> = writer.tensors().map(|(n, s)| (n.to_string(), s.iter().product())).collect();
        for (name, n) in wanted {
            writer.write(&name, &vec![1.0; n])?;
        }
        writer.finish()?;
    }
    // version 2 is not written: 256 bytes of header, 3 norms of 4 numbers, then 58 codes of int8 in groups of 2
    let mut v2 = b"24ka\x02\0\0\0".to_vec();
    v2.extend([4i32, 2, 1, 2, 1, 2, 1].map(i32::to_le_bytes).concat());
    v2.extend([1, 2, 0, 0, 0]);
    v2.resize(256, 0);
    let matrices = 2 * 4 + 2 * (4 * 4) + 2 * (2 * 4) + 3 * (2 * 4);
    v2.resize(256 + 3 * 4 * 4 + matrices + 4 * matrices / 2, 0);
    llama2c::File::parse("v2", v2.clone())?;
    std::fs::write(at("llama2c", "v2"), v2).unwrap();

    let words: [&[u8]; 4] = [b"<unk>", b"\n<s>\n", b"a", b""];
    let tokens = words.iter().map(|w| (w.to_vec(), -1.0)).collect();
    llama2c::Tokenizer { tokens }.write(at("tokenizer", "words"))?;

    let lite = |name: &str, shape: &[usize], kind| gguf_lite::Tensor::new(name, shape, kind).unwrap();
    use gguf_lite::Type;
    let tensors = [
        lite("a", &[2], Type::F32),
        lite("b", &[3], Type::F16),
        lite("c", &[2, 3], Type::Q8),
        lite("d", &[1, 64], Type::Q4),
    ];
    let mut writer = gguf_lite::Writer::create(at("others", "lite"), &[("key", "value")], tensors.to_vec())?;
    for t in &tensors {
        writer.write(t.name(), &vec![1.0; t.elements()])?;
    }
    writer.finish()?;
    let mut dat = [1i32, 1].map(i32::to_le_bytes).concat();
    dat.push(b'w');
    dat.extend([4i32, 2].map(i32::to_le_bytes).concat());
    dat.extend([1f32, 2.0].map(f32::to_le_bytes).concat());
    dat.extend([7i32, 1].map(i32::to_le_bytes).concat());
    dat.push(b'x');
    Imatrix::parse_dat("dat", &dat)?;
    std::fs::write(at("others", "dat"), dat).unwrap();
    Ok(())
}
