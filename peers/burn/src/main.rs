//! What burn 0.22 does on a wgpu device: f32 matrix products, and a training step of a small GPT. One JSON line a measurement:
//! `kind`, seconds of the first run (shaders are compiled and tuned then), median and best seconds of the others.
//!
//!   compare-burn [matmul] [step] [--runs N] [--device cpu|default]     cpu: the software Vulkan device

use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::prelude::*;
use burn::tensor::{DeviceKind, Distribution};
use serde_json::json;
use std::time::Instant;

const LAYERS: usize = 2;
const WIDTH: usize = 128;
const HEADS: usize = 4;
const CONTEXT: usize = 64;
const BATCH: usize = 4;
const VOCABULARY: usize = 65;

/// Pre-norm blocks with GELU and learned positions, as GPT-2.
#[derive(Module, Debug)]
struct Gpt {
    tokens: Embedding,
    positions: Embedding,
    blocks: TransformerEncoder,
    norm: LayerNorm,
    head: Linear,
}

impl Gpt {
    fn new(device: &Device) -> Self {
        Gpt {
            tokens: EmbeddingConfig::new(VOCABULARY, WIDTH).init(device),
            positions: EmbeddingConfig::new(CONTEXT, WIDTH).init(device),
            blocks: TransformerEncoderConfig::new(WIDTH, 4 * WIDTH, HEADS, LAYERS)
                .with_dropout(0.0)
                .with_norm_first(true)
                .init(device),
            norm: LayerNormConfig::new(WIDTH).init(device),
            head: LinearConfig::new(WIDTH, VOCABULARY).with_bias(false).init(device),
        }
    }

    /// `[batch, context]` tokens to `[batch x context, vocabulary]` logits.
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        let device = tokens.device();
        let [batch, context] = tokens.dims();
        let places = Tensor::<1, Int>::arange(0..context as i64, &device).reshape([1, context]);
        let x = self.tokens.forward(tokens) + self.positions.forward(places);
        let mask = generate_autoregressive_mask(batch, context, &device);
        let x = self.blocks.forward(TransformerEncoderInput::new(x).mask_attn(mask));
        self.head.forward(self.norm.forward(x)).reshape([batch * context, VOCABULARY])
    }
}

struct Times {
    first: f64,
    rest: Vec<f64>,
}

impl Times {
    fn median(&self) -> f64 {
        let mut sorted = self.rest.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
    fn best(&self) -> f64 {
        self.rest.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// The first run, which has the compiling, and `runs` more.
fn times(runs: usize, mut run: impl FnMut()) -> Times {
    let mut timed = || {
        let begin = Instant::now();
        run();
        begin.elapsed().as_secs_f64()
    };
    Times { first: timed(), rest: (0..runs).map(|_| timed()).collect() }
}

fn matmul(n: usize, runs: usize, device: &Device) {
    let random = || Tensor::<2>::random([n, n], Distribution::Uniform(-1.0, 1.0), device);
    let (a, b) = (random(), random());
    device.sync().expect("the device computes random numbers");
    let times = times(runs, || {
        let _c = a.clone().matmul(b.clone());
        device.sync().expect("the device multiplies");
    });
    let gflops = |seconds: f64| 2.0 * (n as f64).powi(3) / seconds / 1e9;
    println!(
        "{}",
        json!({"kind": "matmul", "n": n, "first_seconds": times.first, "seconds": times.median(), "best_seconds": times.best(),
               "gflops": gflops(times.median()), "best_gflops": gflops(times.best())})
    );
}

fn step(runs: usize, device: &Device, begin: Instant) {
    let device = device.clone().autodiff();
    let mut model = Some(Gpt::new(&device));
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
    let loss_of = CrossEntropyLossConfig::new().init(&device);
    // A text that can be learnt: each token tells the next.
    let text: Vec<i64> = (0..BATCH * CONTEXT + 1).map(|i| ((i * 7) % VOCABULARY) as i64).collect();
    let tensor = |from: usize| Tensor::<1, Int>::from_ints(&text[from..from + BATCH * CONTEXT], &device);
    let (inputs, targets) = (tensor(0).reshape([BATCH, CONTEXT]), tensor(1));
    let mut losses = Vec::new();
    let mut until_first = 0.0;
    let times = times(runs, || {
        let old = model.take().expect("put back after every step");
        let loss = loss_of.forward(old.forward(inputs.clone()), targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &old);
        model = Some(optimizer.step(3e-4, old, gradients));
        // Reading the loss waits for the forward half only.
        losses.push(loss.into_scalar::<f32>());
        device.sync().expect("the device trains");
        if losses.len() == 1 {
            until_first = begin.elapsed().as_secs_f64();
        }
    });
    let tokens = (BATCH * CONTEXT) as f64;
    println!(
        "{}",
        json!({"kind": "step", "seconds_until_first_step": until_first, "first_seconds": times.first,
               "seconds": times.median(), "best_seconds": times.best(), "tokens_per_second": tokens / times.median(),
               "best_tokens_per_second": tokens / times.best(), "first_loss": losses[0], "last_loss": losses[losses.len() - 1]})
    );
}

fn main() -> Result<(), String> {
    let begin = Instant::now();
    let (mut what, mut runs, mut kind) = (Vec::new(), 20, DeviceKind::Cpu);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "matmul" | "step" => what.push(arg),
            "--runs" => runs = value()?.parse().ok().filter(|&n| n > 0).ok_or("--runs needs a number above 0")?,
            "--device" => {
                kind = match value()?.as_str() {
                    "cpu" => DeviceKind::Cpu,
                    "default" => DeviceKind::DefaultDevice,
                    other => return Err(format!("--device {other}: cpu or default")),
                }
            }
            other => return Err(format!("`{other}`: matmul, step, --runs N, --device cpu|default")),
        }
    }
    let device = Device::wgpu(kind);
    let all = what.is_empty();
    // The step first: its time until the first step is that of a program which does nothing else.
    if all || what.iter().any(|w| w == "step") {
        step(runs, &device, begin);
    }
    if all || what.iter().any(|w| w == "matmul") {
        for n in [512, 1024] {
            matmul(n, runs, &device);
        }
    }
    Ok(())
}
