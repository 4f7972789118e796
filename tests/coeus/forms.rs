//! The forms of a recurrence in a whole model: each can be forced, the plan says which it is in, and all agree.

use super::*;
use lynx_gpu::models::session::Step;
use lynx_gpu::models::session::TrainingPlans;

const FORMS: [&str; 5] = ["auto", "chunked", "recurrent", "cpu_simd", "naive"];

/// The versions with one recurrence each: their settings, and the operator in their plans.
const RECURRENCES: [(&str, &[&str], &str); 3] = [
    ("v2.6", &[], "gla_head"),
    ("v2.6", &["model.recurrence=gla_channel"], "gla_channel"),
    ("v3.1", &[], "gated_scan"),
];

fn model_in(form: &str, version: &str, sets: &[&str]) -> Box<dyn LanguageModel> {
    let backend = format!("model.backend={form}");
    let own = ["model.dropout=0", "model.context=160", backend.as_str()];
    tiny(version, 33, &[&own[..], sets].concat())
}

/// Logits, loss and all gradients within 2e-5 of the definition's, on every device, over more than two chunks of the longest kind.
#[test]
fn every_form_of_the_recurrence_gives_the_same_model() {
    let shape = (1, 150);
    let tokens = random(151, 33, 11);
    let rms = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    for (version, sets, operator) in RECURRENCES {
        let run = |form: &str, device: &Device| {
            let model = model_in(form, version, sets);
            let graph = graphs::gradient_only(model.as_ref(), shape).unwrap();
            let mut ready = Ready::new(model.as_ref(), &graph, shape, device);
            ready.run(&tokens[..150], &tokens[1..]);
            let gradients: Vec<f64> =
                model.parameters().unwrap().iter().flat_map(|p| ready.read(&format!("gradient.{}", p.name))).collect();
            [ready.read("logits"), ready.read("loss"), gradients]
        };
        for device in [Some(Device::Cpu), gpu()].into_iter().flatten() {
            let want = run("naive", &device);
            for form in ["auto", "chunked", "recurrent", "cpu_simd"] {
                let have = run(form, &device);
                for ((have, want), what) in have.iter().zip(&want).zip(["logits", "loss", "gradients"]) {
                    let error = rms(&mut have.iter().zip(want).map(|(a, b)| a - b)) / rms(&mut want.iter().copied());
                    assert!(error < 2e-5, "{operator} {form} on {}: {what} differ by {error:e}", device.name());
                }
            }
        }
    }
}

#[test]
fn the_plan_names_the_form_and_what_runs_elsewhere() {
    let plan = |form: &str, version: &str, sets: &[&str], device: &Device| {
        let step = Step { shape: (2, 150), accumulation: 1, precision: Precision::F32, budget: None };
        let model = model_in(form, version, sets);
        TrainingPlans::new(model.as_ref(), &OptimizerConfig::default(), step, device).unwrap().report(device)
    };
    for (version, sets, operator) in RECURRENCES {
        for form in FORMS {
            let forms = plan(form, version, sets, &Device::Cpu).forms;
            let named = if form == "auto" { "chunked" } else { form };
            assert!(forms.contains(&format!("{operator}: {named}")), "{operator} {form}: {forms:?}");
            // Backwards gated linear attention would need the state before every step: chunks, unless the definition is asked for.
            let gradient = if named == "recurrent" && operator != "gated_scan" { "chunked" } else { named };
            assert!(forms.contains(&format!("{operator}_grad: {gradient}")), "{operator} {form}: {forms:?}");
            assert_eq!(forms.len(), 2, "{forms:?}");
        }
        if let Some(gpu) = gpu() {
            for (form, why) in [("naive", "definition in f64"), ("cpu_simd", "kernels of the CPU")] {
                let on_the_cpu = plan(form, version, sets, &gpu).fallback;
                assert_eq!(on_the_cpu.len(), 2 * 2, "forward and backward of two layers: {on_the_cpu:?}");
                assert!(on_the_cpu.iter().all(|line| line.contains(why)), "{on_the_cpu:?}");
            }
            assert!(plan("recurrent", version, sets, &gpu).fallback.is_empty());
        }
    }
    let error = Config::load("coeus-v2.6-tiny", &["model.backend=triton".into()]).unwrap_err().to_string();
    assert!(
        ["model.backend", "chunked", "recurrent", "cpu_simd", "naive"].iter().all(|word| error.contains(word)),
        "{error}"
    );
}
