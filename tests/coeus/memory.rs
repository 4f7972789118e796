//! The episodic memory: who reads which snapshot, that streams read what whole texts do, that nobody reads the future, and that
//! the model without it is the version before.

use super::*;
use lynx_gpu::graph::{Graph, Value};
use lynx_gpu::ops::attention::Attention;
use lynx_gpu::ops::episodic::EpisodicRead;
use lynx_gpu::tensor::TensorType;

pub fn devices() -> Vec<Device> {
    [Some(Device::Reference), Some(Device::Cpu), gpu()].into_iter().flatten().collect()
}

/// A graph's plan on a device, without weights.
pub fn prepared(graph: &Graph, device: &Device) -> (Box<dyn Executable>, Store) {
    let mut store = Store::new(device);
    (Plan::new(graph).unwrap().prepare(&mut store).unwrap(), store)
}

pub fn normal(shape: &[usize], seed: u64) -> HostTensor {
    let mut data = vec![0.0; shape.iter().product()];
    kernels_cpu::philox::fill_normal(seed, 1, &mut data);
    HostTensor::f32(shape, data)
}

fn read_graph(op: EpisodicRead, [b, t, s, d]: [usize; 4], placed: bool) -> Graph {
    let mut g = Graph::new();
    let q = g.input("q", TensorType::f32(&[b, t, d]));
    let k = g.input("k", TensorType::f32(&[b, s, d]));
    let v = g.input("v", TensorType::f32(&[b, s, d]));
    let place = placed.then(|| g.input("place", TensorType::i32(&[2])));
    let o = g.episodic_read(q, k, v, place, op).unwrap();
    g.output("o", o);
    g
}

/// The slots that every token of a text of `time` reads, found by giving each slot a value of its own and all the same score.
fn readers(op: EpisodicRead, time: usize, device: &Device) -> Vec<Vec<usize>> {
    let slots = time.div_ceil(op.every);
    let (mut exe, _store) = prepared(&read_graph(op, [1, time, slots, slots], false), device);
    let own = (0..slots * slots).map(|i| f32::from(u8::from(i / slots == i % slots))).collect();
    exe.write_input("q", &HostTensor::f32(&[1, time, slots], vec![0.0; time * slots])).unwrap();
    exe.write_input("k", &normal(&[1, slots, slots], 3)).unwrap();
    exe.write_input("v", &HostTensor::f32(&[1, slots, slots], own)).unwrap();
    exe.run().unwrap();
    let o = exe.read_output("o").unwrap().to_f64().data;
    let row = |row: &[f64]| {
        let seen: Vec<usize> = (0..slots).filter(|j| row[*j] != 0.0).collect();
        // The null slot takes its share.
        let share = 1.0 / (1.0 + seen.len() as f64);
        assert!(seen.iter().all(|j| (row[*j] - share).abs() < 1e-6), "{row:?}");
        seen
    };
    o.chunks(slots).map(row).collect()
}

#[test]
fn a_token_reads_the_last_snapshots_strictly_before_it() {
    let op = |every, slots, ready| EpisodicRead { every, slots, ready, scale: 1.0 };
    for device in devices() {
        let seen = readers(op(8, 3, 1), 40, &device);
        for (t, want) in [
            (0, &[][..]),
            (1, &[0]),
            (8, &[0]),
            (9, &[0, 1]),
            (16, &[0, 1]),
            (17, &[0, 1, 2]),
            (24, &[0, 1, 2]),
            (25, &[1, 2, 3]),
            (33, &[2, 3, 4]),
        ] {
            assert_eq!(seen[t], want, "token {t} on {}", device.name());
        }
        for (every, capacity) in [(8, 3), (4, 8), (1, 2), (5, 1)] {
            let time = every * (capacity + 3) + 2;
            let (picked, mean) =
                (readers(op(every, capacity, 1), time, &device), readers(op(every, capacity, every), time, &device));
            for t in 0..time {
                assert!(picked[t].len() <= capacity && mean[t].len() <= capacity);
                for j in 0..time.div_ceil(every) {
                    // Taken at every * j, read from the next token on, until as many younger ones are there.
                    let until = every * (j + capacity);
                    assert_eq!(picked[t].contains(&j), t > every * j && t <= until, "slot {j}, token {t}");
                    // A mean exists after its last token.
                    let whole = every * (j + 1);
                    assert_eq!(mean[t].contains(&j), t >= whole && t < whole + every * capacity, "mean {j}, token {t}");
                }
            }
        }
    }
}

/// One token after another with a ring of M rows, pieces of several lengths, and the whole text in one call.
#[test]
fn a_stream_reads_what_the_whole_text_does() {
    let (time, every, capacity, d) = (151usize, 4, 6, 12);
    let op = EpisodicRead { every, slots: capacity, ready: 1, scale: 0.3 };
    let slots = time.div_ceil(every);
    let (q, k, v) = (normal(&[1, time, d], 1), normal(&[1, slots, d], 2), normal(&[1, slots, d], 3));
    let (mut exe, _store) = prepared(&read_graph(op, [1, time, slots, d], false), &Device::Reference);
    for (name, x) in [("q", &q), ("k", &k), ("v", &v)] {
        exe.write_input(name, x).unwrap();
    }
    exe.run().unwrap();
    let whole = exe.read_output("o").unwrap().to_f64().data;
    let scale = whole.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for device in devices() {
        for piece in [1, 7, 32, time] {
            // The ring, and the slots that begin in a piece.
            let rows = capacity + piece.div_ceil(every) + 1;
            let (mut exe, _store) = prepared(&read_graph(op, [1, piece, rows, d], true), &device);
            for start in (0..time).step_by(piece) {
                let first = start.div_ceil(every) as i64 - capacity as i64;
                // Rows of slots that are not there hold anything.
                let part = |x: &HostTensor, from: i64, rows: usize| {
                    let x = x.to_f64();
                    let at = |i: usize| {
                        let from = from * d as i64 + i as i64;
                        usize::try_from(from).ok().and_then(|i| x.data.get(i)).map_or(1e3, |x| *x as f32)
                    };
                    HostTensor::f32(&[1, rows, d], (0..rows * d).map(at).collect())
                };
                exe.write_input("q", &part(&q, start as i64, piece)).unwrap();
                exe.write_input("k", &part(&k, first, rows)).unwrap();
                exe.write_input("v", &part(&v, first, rows)).unwrap();
                exe.write_input("place", &HostTensor::i32(&[2], vec![start as i32, first as i32])).unwrap();
                exe.run().unwrap();
                let o = exe.read_output("o").unwrap().to_f64().data;
                for (i, (have, want)) in o.iter().zip(&whole[start * d..]).enumerate() {
                    let name = device.name();
                    assert!((have - want).abs() <= 1e-5 * scale, "{name}, {piece} at {start}, {i}: {have} for {want}");
                }
            }
        }
    }
}

/// With one layer that sees four tokens, an earlier one is felt through its snapshot alone: from the token after it until the ring
/// has gone round.
#[test]
fn a_snapshot_is_felt_until_the_ring_has_gone_round() {
    let (time, vocab_size) = (64, 40);
    for (source, from, to) in [("pick", 1, 32), ("mean", 4, 35)] {
        let sets = ["model.dropout=0", "model.layers=1", "model.window=4", "model.fusion=local_only"];
        let source = format!("model.mem_source={source}");
        let sets: Vec<&str> = sets.into_iter().chain([source.as_str()]).collect();
        let model = tiny("v3.1", vocab_size, &sets);
        let graph = graphs::gradient_only(model.as_ref(), (1, time)).unwrap();
        for device in [Some(Device::Cpu), gpu()].into_iter().flatten() {
            let mut ready = Ready::new(model.as_ref(), &graph, (1, time), &device);
            let mut tokens = random(time, vocab_size as u64, 3);
            let mut logits = |tokens: &[i32]| {
                ready.run(tokens, tokens);
                ready.read("logits")
            };
            let base = logits(&tokens);
            tokens[0] = (tokens[0] + 17) % vocab_size as i32;
            let changed = logits(&tokens);
            for t in 0..time {
                let row = t * vocab_size..(t + 1) * vocab_size;
                let felt = base[row.clone()] != changed[row];
                assert_eq!(felt, t < 4 || (from..=to).contains(&t), "{source}, token {t} on {}", device.name());
            }
        }
    }
}

/// Without its memory, version 3.1 is version 3.0: the same names, the same start, the same bits. Likewise while the memory's
/// last matrix is zero.
#[test]
fn without_memory_the_model_is_the_version_before() {
    let shape = (2, 50);
    let tokens = random(101, 33, 11);
    let sets = ["model.dropout=0"];
    let outputs = |model: &dyn LanguageModel, silent: bool, names: &[String]| {
        let graph = graphs::gradient_only(model, shape).unwrap();
        let plan = Plan::new(&graph).unwrap();
        let mut store = Store::new(&Device::Cpu);
        let exe = plan.prepare(&mut store).unwrap();
        for p in model.parameters().unwrap() {
            let zero = silent && p.name.ends_with("memory.o_proj.weight");
            let value = if zero { HostTensor::f32(&p.shape, vec![0.0; p.elements()]) } else { p.initial(1) };
            store.write(&p.name, &value).unwrap();
        }
        let mut ready = Ready { exe, shape };
        ready.run(&tokens[..100], &tokens[1..]);
        names.iter().map(|n| ready.read(n)).collect::<Vec<_>>()
    };
    let before = tiny("v3.0", 33, &sets);
    let gradients = before.parameters().unwrap().into_iter().map(|p| format!("gradient.{}", p.name));
    let names: Vec<String> = ["logits".into(), "loss".into()].into_iter().chain(gradients).collect();
    let want = outputs(before.as_ref(), false, &names);
    let off = tiny("v3.1", 33, &["model.dropout=0", "model.use_episodic_mem=false"]);
    assert_eq!(before.parameters().unwrap(), off.parameters().unwrap());
    assert_eq!(outputs(off.as_ref(), false, &names), want);
    let on = tiny("v3.1", 33, &sets);
    assert_eq!(outputs(on.as_ref(), true, &names[..2]), want[..2]);
    assert_ne!(outputs(on.as_ref(), false, &names[..1]), want[..1]);
}

/// The check of causality sees a memory that leaks: the same layer with plain attention to all snapshots fails it.
#[test]
fn the_check_of_causality_sees_a_memory_without_mask() {
    let (time, every, d) = (32, 4, 8);
    let slots = time / every;
    // The first position that the change of a later one moves, if any.
    let leak = |read: &dyn Fn(&mut Graph, [Value; 3]) -> Value| {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32(&[1, time, d]));
        let grouped = g.reshape(x, &[1, slots, every, d]).unwrap();
        let kept = g.slice(grouped, 2, 0, 1).unwrap();
        let kept = g.reshape(kept, &[1, slots, d]).unwrap();
        let mut project = |x: Value, seed: u64| {
            let w = g.constant(normal(&[d, d], seed));
            g.matmul(x, w).unwrap()
        };
        let operands = [project(x, 1), project(kept, 2), project(kept, 3)];
        let o = read(&mut g, operands);
        g.output("o", o);
        let (mut exe, _store) = prepared(&g, &Device::Cpu);
        let base = normal(&[1, time, d], 4).to_f64().data;
        let mut run = |data: &[f64]| {
            let data = data.iter().map(|x| *x as f32).collect();
            exe.write_input("x", &HostTensor::f32(&[1, time, d], data)).unwrap();
            exe.run().unwrap();
            exe.read_output("o").unwrap().to_f64().data
        };
        let before = run(&base);
        (0..time).find_map(|t| {
            let mut other = base.clone();
            other[t * d] += 1.0;
            let after = run(&other);
            (0..t * d).find(|i| before[*i] != after[*i]).map(|i| i / d)
        })
    };
    let scale = 1.0 / (d as f32).sqrt();
    let masked = EpisodicRead { every, slots: 4, ready: 1, scale };
    assert_eq!(leak(&|g, [q, k, v]| g.episodic_read(q, k, v, None, masked).unwrap()), None);
    let unmasked = leak(&|g, [q, k, v]| {
        let heads = |g: &mut Graph, x: Value, rows: usize| g.reshape(x, &[1, rows, 1, d]).unwrap();
        let (q, k, v) = (heads(g, q, time), heads(g, k, slots), heads(g, v, slots));
        let o = g.attention(q, k, v, None, Attention { causal: false, window: None, scale }).unwrap();
        g.reshape(o, &[1, time, d]).unwrap()
    });
    assert_eq!(unmasked, Some(0));
}

#[test]
fn memories_that_cannot_be_are_refused_by_name() {
    for (sets, words) in [
        (&["model.mem_capacity=0"][..], &["model.mem_capacity = 0", "use_episodic_mem"][..]),
        (&["model.mem_update_freq=0"], &["model.mem_update_freq = 0"]),
        (&["model.mem_compression=0"], &["model.mem_compression = 0"]),
        (&["model.mem_compression=7"], &["model.mem_compression = 7", "96"]),
        (&["model.mem_source=last"], &["model.mem_source", "pick", "mean"]),
        (&["model.width=1536", "model.mem_compression=3"], &["model.mem_compression = 3", "512", "at least 6"]),
    ] {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let error = Config::load("coeus-v3.1-tiny", &sets).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{sets:?}");
        let message = error.to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{sets:?}: {message}");
    }
    // What is not used is not checked.
    let unused = ["model.use_episodic_mem=false".to_string(), "model.mem_compression=7".to_string()];
    Config::load("coeus-v3.1-tiny", &unused).unwrap();
}
