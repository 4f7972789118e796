//! How branches are mixed, on whole models whose weights are set.

use super::*;
use lynx_gpu::nn::Parameter;

/// Logits of a model of version 2.5 with the weights that `weight` gives, in f64: two ways to write one sum differ by roundings alone.
fn logits(sets: &[&str], weight: &dyn Fn(&Parameter) -> HostTensor) -> Vec<f64> {
    let model = tiny("v2.5", 40, sets);
    let shape = (2, 50);
    let graph = graphs::gradient_only(model.as_ref(), shape).unwrap();
    let plan = Plan::new(&graph).unwrap();
    let mut store = Store::new(&Device::Reference);
    let exe = plan.prepare(&mut store).unwrap();
    for p in model.parameters().unwrap() {
        store.write(&p.name, &weight(&p)).unwrap();
    }
    let mut ready = Ready { exe, shape };
    ready.run(&random(100, 40, 3), &random(100, 40, 4));
    ready.read("logits")
}

fn constant(p: &Parameter, value: f32) -> HostTensor {
    HostTensor::f32(&p.shape, vec![value; p.elements()])
}

/// Starts as drawn, large enough for branches to matter.
fn drawn(p: &Parameter) -> HostTensor {
    let start = p.initial(1);
    if p.shape.len() < 2 {
        return start;
    }
    HostTensor::f32(&p.shape, start.to_f64().data.iter().map(|x| 4.0 * *x as f32).collect())
}

fn with_alpha(alpha: f32) -> Vec<f64> {
    logits(&[], &|p| if p.name.ends_with("alpha") { constant(p, alpha) } else { drawn(p) })
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    let most = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / most
}

#[test]
fn alpha_at_its_ends_leaves_one_branch() {
    let (recurrent, local) =
        (logits(&["model.fusion=recurrent_only"], &drawn), logits(&["model.fusion=local_only"], &drawn));
    assert!(difference(&recurrent, &local) > 1e-2, "the branches are too alike to tell");
    assert!(difference(&with_alpha(40.0), &recurrent) < 1e-6);
    assert!(difference(&with_alpha(-40.0), &local) < 1e-6);
}

/// A judge whose matrices are zero and whose bias is alpha mixes as alpha does.
#[test]
fn a_judge_without_an_opinion_is_alpha() {
    let alpha = 0.7;
    let judged = logits(&["model.share_qkv=false", "model.fusion=judge"], &|p| match &p.name {
        name if name.ends_with("judge.recurrent_proj.bias") => constant(p, alpha),
        name if name.contains(".judge.") => constant(p, 0.0),
        // Both branches have the weights that they share in the other model.
        name => {
            let name = name.replace(".linear_attn.", ".").replace(".self_attn.", ".");
            drawn(&Parameter { name, ..p.clone() })
        }
    });
    let error = difference(&judged, &with_alpha(alpha));
    assert!(error < 1e-6, "{error:e}");
    assert!(difference(&judged, &with_alpha(-alpha)) > 1e-3);
}
