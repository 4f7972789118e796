//! Parts of a block against what they are made of.

use super::*;
use crate::config::{Config, ModelConfig};
use crate::device::{Device, Store};
use crate::graph::Plan;
use crate::nn::Parameter;
use crate::tensor::TensorType;
use std::collections::BTreeMap;

fn coeus(sets: &[&str]) -> Coeus {
    let sets: Vec<String> = sets.iter().chain(&["model.dropout=0"]).map(|s| s.to_string()).collect();
    let mut config = Config::load("coeus-v3.1-tiny", &sets).unwrap().0;
    config.set_vocab_size(65).unwrap();
    let ModelConfig::Coeus(config) = config.model else { panic!("a coeus preset has a coeus model") };
    Coeus::new(config).unwrap()
}

/// Standard normal values from `seed`.
fn normal(shape: &[usize], seed: u64) -> HostTensor {
    let mut data = vec![0.0; shape.iter().product()];
    kernels_cpu::philox::fill_normal(seed, 7, &mut data);
    HostTensor::f32(shape, data)
}

/// Writes `part` of inputs [2, 20, 96], x and r, and gives its result and, for the loss sum(result * w), the gradients of all weights;
/// `weight` says how each starts.
fn run(
    part: impl Fn(&mut Builder, [Value; 2]) -> Result<Value>,
    weight: impl Fn(&Parameter) -> HostTensor,
) -> (Vec<f64>, BTreeMap<String, Vec<f64>>) {
    let mut b = Builder::default();
    let shape = [2, 20, 96];
    let inputs = ["x", "r"].map(|name| b.graph.input(name, TensorType::f32(&shape)));
    let y = part(&mut b, inputs).unwrap();
    let w = b.graph.constant(normal(&shape, 3));
    let weighted = b.graph.mul(y, w).unwrap();
    let loss = b.graph.sum_all(weighted).unwrap();
    let weights = b.graph.parameters();
    let values: Vec<Value> = weights.iter().map(|(v, _)| *v).collect();
    let gradients = b.graph.gradients(loss, &values).unwrap();
    weights.iter().zip(gradients).for_each(|((_, name), g)| b.graph.output(name, g));
    b.graph.output("y", y);
    let mut store = Store::new(&Device::Cpu);
    let mut exe = Plan::new(&b.graph).unwrap().prepare(&mut store).unwrap();
    for p in &b.parameters {
        store.write(&p.name, &weight(p)).unwrap();
    }
    exe.write_input("x", &normal(&shape, 1)).unwrap();
    exe.write_input("r", &normal(&shape, 2)).unwrap();
    exe.run().unwrap();
    let y = exe.read_output("y").unwrap().to_f64().data;
    let read = |(_, name): &(Value, String)| (name.clone(), exe.read_output(name).unwrap().to_f64().data);
    (y, weights.iter().map(read).collect())
}

fn drawn(p: &Parameter) -> HostTensor {
    p.initial(1)
}

/// As the weight called `name` starts.
fn alike(p: &Parameter, name: &str) -> HostTensor {
    drawn(&Parameter { name: name.into(), ..p.clone() })
}

fn near(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    let most = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * most)
}

/// The feed-forward half of a block, with weights called `norm` and `mlp`.
fn thought(coeus: &Coeus, b: &mut Builder, x: Value, norm: &str, mlp: &str) -> Result<Value> {
    let c = &coeus.config;
    let network = FeedForward {
        width: c.width,
        hidden: c.ff_width,
        kind: c.ff_kind,
        bias: false,
        init: Init::Normal(STD),
        output_init: coeus.branch_end(),
    };
    let n = coeus.norm(b, norm, x)?;
    let h = b.scoped(mlp, |b| network.write(b, n))?;
    b.graph.add(x, h)
}

/// x + mixer(norm(x)) + memory(norm(x)).
fn mixed(coeus: &Coeus, b: &mut Builder, x: Value) -> Result<Value> {
    let n = coeus.norm(b, "input_layernorm", x)?;
    let y = b.scoped("mixer", |b| coeus.mixer(b, n))?;
    let e = b.scoped("memory", |b| coeus.episodic(b, n))?;
    let y = b.graph.add(y, e)?;
    b.graph.add(x, y)
}

#[test]
fn one_round_of_thought_is_the_plain_block_to_the_bit() {
    let coeus = coeus(&["model.reason_iterations=1"]);
    let block = run(|b, [x, _]| coeus.block(b, x), drawn);
    let plain = run(
        |b, [x, _]| {
            let x = mixed(&coeus, b, x)?;
            thought(&coeus, b, x, "post_mixer_layernorm", "mlp")
        },
        drawn,
    );
    assert_eq!(block, plain);
}

/// Two rounds are two networks with the same weights, and the gradient of these is the sum of both networks'.
#[test]
fn two_rounds_of_thought_are_two_networks_with_shared_weights() {
    let coeus = coeus(&["model.reason_iterations=2"]);
    let (y, gradients) = run(|b, [x, _]| coeus.block(b, x), drawn);
    let (stacked, apart) = run(
        |b, [x, _]| {
            let x = mixed(&coeus, b, x)?;
            let x = thought(&coeus, b, x, "post_mixer_layernorm", "mlp")?;
            thought(&coeus, b, x, "second_post_mixer_layernorm", "second_mlp")
        },
        |p| alike(p, p.name.trim_start_matches("second_")),
    );
    assert!(near(&y, &stacked, 1e-6));
    for (name, gradient) in &gradients {
        let mut want = apart[name].clone();
        if let Some(second) = apart.get(&format!("second_{name}")) {
            want.iter_mut().zip(second).for_each(|(a, b)| *a += b);
            assert!(!near(gradient, &apart[name], 1e-3), "{name}: the second round sends a gradient too");
        }
        assert!(near(gradient, &want, 1e-5), "{name}");
    }
    assert_eq!(apart.len(), gradients.len() + 4);
}

/// Both branches exchanged, with their matrices and the sign of the bias, are judged alike.
#[test]
fn a_judge_does_not_care_which_branch_is_which() {
    let coeus = coeus(&[]);
    let judged = |exchanged: bool| {
        let judge = |b: &mut Builder, [x, r]: [Value; 2]| {
            let (r, t) = if exchanged { (x, r) } else { (r, x) };
            coeus.judge(b, r, t)
        };
        let exchange = |p: &Parameter| match p.name.as_str() {
            "recurrent_proj.weight" if exchanged => alike(p, "local_proj.weight"),
            "local_proj.weight" if exchanged => alike(p, "recurrent_proj.weight"),
            "recurrent_proj.bias" => {
                let sign = if exchanged { -1.0 } else { 1.0 };
                let data = normal(&p.shape, 4).to_f64().data.iter().map(|x| sign * *x as f32).collect();
                HostTensor::f32(&p.shape, data)
            }
            _ => drawn(p),
        };
        run(judge, exchange)
    };
    let (one, other) = (judged(false), judged(true));
    assert!(near(&one.0, &other.0, 1e-6));
    assert!(near(&one.1["local_proj.weight"], &other.1["recurrent_proj.weight"], 1e-5));
    let negative: Vec<f64> = other.1["recurrent_proj.bias"].iter().map(|g| -g).collect();
    assert!(near(&one.1["recurrent_proj.bias"], &negative, 1e-5));
}
