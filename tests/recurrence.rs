//! The three recurrences (scan, gated linear attention with a gate a head and with a gate a key channel) against their
//! definition in f64, where gates are hard: nearly open over 30 000 steps, shut in the middle of a chunk, at the ends of the
//! range of f32. Errors: `e_max` = max |x - ref| / max |ref|; `e_rms` the same with root mean squares.

mod recurrence_forms;

use lynx_gpu::device::Device;
use lynx_gpu::ops::{check, registry};
use lynx_gpu::tensor::HostTensor;
use recurrence_forms::{Kind, Problem, compare, devices, e_max, e_rms, on, say, shut};

const KINDS: [Kind; 3] = [Kind::Head, Kind::Channel, Kind::Scan];

/// Values within 1e-5, gradients within 5e-5 (e_rms), recurrent and chunked, with and without a gradient of the last state.
#[test]
fn every_form_agrees_with_the_definition_in_values_and_gradients() {
    let devices = devices();
    for kind in KINDS {
        for (i, time) in [1, 2, 63, 64, 65, 129, 500, 1024, 4096].into_iter().enumerate() {
            let bias = [0.0, 3.0, 6.5][i % 3];
            let heads = [[1, 1, 1], [6, 6, 2], [4, 2, 1]][i % 3];
            let dim = if time > 500 { 16 } else { [16, 32, 64][i / 3 % 3] };
            let p = Problem::new(kind, 1 + i % 2, time, if time > 500 { [1, 1, 1] } else { heads }, dim, bias);
            // A software GPU compiles every shape of a kernel anew.
            let gpu_too = matches!(time, 65 | 500);
            for device in devices.iter().filter(|d| gpu_too || matches!(d, Device::Cpu)) {
                for chunk in [0, kind.chunk()] {
                    compare(&p, device, chunk, i % 2 == 0, [1e-5, 5e-5]);
                }
            }
        }
    }
}

/// 30 000 steps, gates nearly open: the CPU alone, a software GPU would take minutes.
#[test]
fn thirty_thousand_steps_with_nearly_open_gates_keep_five_digits() {
    for kind in KINDS {
        for constant in [true, false] {
            let mut p = Problem::new(kind, 1, 30_000, [1, 1, 1], if kind == Kind::Scan { 8 } else { 4 }, 9.0);
            if constant {
                p.set_logits(|_| 9.0);
            }
            for chunk in [0, kind.chunk()] {
                compare(&p, &Device::Cpu, chunk, true, [5e-5, 5e-5]);
            }
        }
    }
}

#[test]
fn gradients_agree_with_central_differences_within_one_millionth() {
    for spec in registry().into_iter().filter(|s| s.name.starts_with("gla") || s.name == "gated_scan") {
        for case in (spec.cases)().into_iter().filter(|c| !c.cotangents.is_empty()) {
            if case.inputs.iter().map(|s| s.ty.elements()).sum::<usize>() > 4000 {
                continue;
            }
            let worst = check::gradient_check(spec.name, &case, 6).unwrap();
            assert!(worst <= 1e-6, "{} [{}]: {worst:e}", spec.name, case.label);
        }
    }
}

/// Some gates shut among open ones: what is said about later open gates must not lose the digits that the shut one took.
#[test]
fn shut_gates_inside_a_chunk_cost_no_digits_and_differences_of_sums_would() {
    for kind in KINDS {
        for (shut_at, every) in [(-50.0, 10), (-200.0, 10), (-5000.0, 10), (-50.0, 2), (-200.0, 2), (-5000.0, 2)] {
            let mut p = Problem::new(kind, 1, 1024, [2, 2, 1], 16, 5.0);
            p.set_logits(|i| if shut(i, every) { shut_at } else { 5.0 });
            let gpu_too = shut_at == -200.0 && every == 10;
            for device in devices().iter().filter(|d| gpu_too || matches!(d, Device::Cpu)) {
                compare(&p, device, kind.chunk(), true, [5e-6, 5e-6]);
            }
            if kind == Kind::Head && every == 10 {
                let (want, by_differences) = (p.exact(false), p.by_differences(64));
                let lost = e_max(&by_differences, &want[0].1);
                assert!(lost > 1e-5, "differences of cumulative sums at {shut_at} err by {lost:e} only");
            }
        }
    }
}

#[test]
fn the_length_of_a_chunk_and_the_place_of_a_cut_do_not_matter() {
    for device in devices() {
        for kind in KINDS {
            let p = Problem::new(kind, 1, 333, [2, 2, 1], 16, 3.0);
            let whole = on(&device, &p.graph(64, true), &p.inputs);
            for chunk in [16, 32] {
                let other = on(&device, &p.graph(chunk, true), &p.inputs);
                let worst = e_max(&other[0].1, &whole[0].1);
                assert!(worst <= 1e-5, "{kind:?} on {}, chunks of {chunk}: {worst:e}", device.name());
            }
            for cut in [1, 77, 332] {
                let parts = p.in_parts(&device, cut);
                let worst = [e_max(&parts[0], &whole[0].1), e_max(&parts[1], &whole[1].1)];
                assert!(worst[0].max(worst[1]) <= 1e-5, "{kind:?} on {}, cut at {cut}: {worst:?}", device.name());
            }
        }
    }
}

#[test]
fn a_sequence_cut_at_a_multiple_of_128_gives_the_same_bits() {
    for device in devices() {
        for kind in KINDS {
            let p = Problem::new(kind, 2, 384, [2, 2, 1], 8, 3.0);
            let whole = p.in_parts(&device, 0);
            for cut in [128, 256] {
                let parts = p.in_parts(&device, cut);
                assert!(parts == whole, "{kind:?} on {}, cut at {cut}", device.name());
            }
        }
    }
}

#[test]
fn a_scan_is_linear_attention_of_heads_of_one_number_and_equal_channel_gates_are_head_gates() {
    for device in devices() {
        let scan = Problem::new(Kind::Scan, 2, 70, [1, 1, 1], 5, 2.0);
        let narrow = scan.as_heads_of_one();
        let [a, b] = [(&scan, 64), (&narrow, 64)].map(|(p, chunk)| on(&device, &p.graph(chunk, true), &p.inputs));
        for o in 0..2 {
            let worst = e_max(&a[o].1, &b[o].1);
            assert!(worst <= 1e-5, "{} on {}: {worst:e}", a[o].0, device.name());
        }
        let head = Problem::new(Kind::Head, 2, 70, [4, 2, 1], 8, 2.0);
        let channel = head.with_channel_gates();
        let [a, b] = [(&head, 64), (&channel, 16)].map(|(p, chunk)| on(&device, &p.graph(chunk, true), &p.inputs));
        for o in 0..2 {
            let worst = e_max(&a[o].1, &b[o].1);
            assert!(worst <= 1e-5, "{} on {}: {worst:e}", a[o].0, device.name());
        }
    }
}

#[test]
fn open_gates_give_linear_attention_and_shut_gates_give_each_step_alone() {
    for device in devices() {
        for kind in [Kind::Head, Kind::Channel] {
            let mut p = Problem::new(kind, 1, 70, [2, 2, 2], 8, 0.0);
            p.clear_first();
            for (logit, all) in [(200.0, true), (-200.0, false)] {
                p.set_logits(|_| logit);
                let have = on(&device, &p.graph(16, true), &p.inputs);
                let want = p.scores_times_values(|t, s| s == t || all && s < t);
                let worst = e_max(&have[0].1, &want);
                assert!(worst <= 2e-6, "{kind:?} at {logit} on {}: {worst:e}", device.name());
                assert!(have.iter().all(|(_, x)| x.iter().all(|x| x.is_finite())), "{kind:?} at {logit}");
            }
        }
    }
}

#[test]
fn gates_at_the_ends_of_the_range_give_finite_values_and_gradients() {
    let logits = [-200.0, -88.0, -20.0, 0.0, 3.0, 17.0, 40.0, 200.0];
    for device in devices() {
        for kind in KINDS {
            let mut p = Problem::new(kind, 1, 65, [2, 1, 1], 16, 0.0);
            p.set_logits(|i| logits[i * 5 / 3 % 8]);
            for chunk in [0, kind.chunk()] {
                compare(&p, &device, chunk, true, [1e-5, 5e-5]);
            }
        }
    }
}

/// The functions gates are made of: 100 000 points, as good on a GPU as on the CPU.
#[test]
fn expm1_and_log1p_are_within_4_ulp_on_every_device() {
    let n = 100_000;
    let even = |i: usize| i as f64 / n as f64;
    let small = |i: usize| (even(i) * 60.0 - 45.0).exp2() * if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    let expm1: Vec<f64> = (0..n)
        .map(|i: usize| if i.is_multiple_of(3) { small(i).clamp(-80.0, 80.0) } else { even(i) * 160.0 - 80.0 })
        .collect();
    let log1p: Vec<f64> =
        (0..n).map(|i: usize| if i.is_multiple_of(3) { small(i).max(-0.999) } else { even(i) * 4.0 - 0.999 }).collect();
    for device in devices() {
        for (name, x, f) in
            [("expm1", &expm1, f64::exp_m1 as fn(f64) -> f64), ("log1p", &log1p, f64::ln_1p as fn(f64) -> f64)]
        {
            let x = HostTensor::f32(&[n], x.iter().map(|x| *x as f32).collect());
            let mut graph = lynx_gpu::graph::Graph::new();
            let input = graph.input("x0", x.ty());
            let y = if name == "expm1" { graph.expm1(input) } else { graph.log1p(input) }.unwrap();
            graph.output("y", y);
            let have = on(&device, &graph, std::slice::from_ref(&x)).remove(0).1;
            let mut worst = 0.0f64;
            for (x, y) in x.as_f32().unwrap().iter().zip(&have) {
                let want = f(*x as f64);
                let ulp = 2f64.powi(want.abs().max(f32::MIN_POSITIVE as f64).log2().floor() as i32 - 23);
                worst = worst.max((y - want).abs() / ulp);
            }
            say(&format!("{name} on {}: {worst:.2} ulp", device.name()));
            assert!(worst <= 4.0, "{name} on {}: {worst} ulp", device.name());
        }
    }
}

/// A gate of logit 9 rounded to f32 is wrong in the same direction at every step; expm1 of its logarithm is not.
#[test]
fn walking_thirty_thousand_steps_keeps_what_a_rounded_gate_loses() {
    let mut p = Problem::new(Kind::Scan, 1, 30_000, [1, 1, 1], 4, 9.0);
    p.set_logits(|_| 9.0);
    // What the gate forgets shows in a state that grows: inputs with a mean.
    let shifted = p.values(1).iter().map(|u| u + 1.0).collect();
    p.inputs[1] = HostTensor::f32(&[1, 30_000, 4], shifted);
    let want = p.exact(false);
    for device in devices() {
        let have = on(&device, &p.graph(0, false), &p.inputs);
        let worst = e_max(&have[0].1, &want[0].1);
        say(&format!("logit 9, 30000 steps on {}: {worst:.1e}", device.name()));
        assert!(worst <= 5e-5, "{}: {worst:e}", device.name());
    }
    let g = (1.0 / (1.0 + (-9.0f64).exp())) as f32;
    let (u, mut h) = (p.inputs[1].as_f32().unwrap(), p.inputs[2].as_f32().unwrap().to_vec());
    let mut rounded = vec![];
    for step in u.chunks(4) {
        h.iter_mut().zip(step).for_each(|(h, u)| *h = g * *h + u);
        rounded.extend(h.iter().map(|h| *h as f64));
    }
    let lost = e_max(&rounded, &want[0].1);
    assert!(lost > 5e-5, "the rounded gate errs by {lost:e} only");
}

/// The gradient of the gates adds within chunks; one sum over all of time cancels.
#[test]
fn the_gradient_of_gates_over_thirty_thousand_steps_does_not_cancel() {
    let p = Problem::new(Kind::Head, 1, 30_000, [1, 1, 1], 16, 3.0);
    let (want, have) = (p.exact(false), on(&Device::Cpu, &p.graph(64, false), &p.inputs));
    let of = |x: &[(String, Vec<f64>)], name: &str| x.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let worst = e_rms(&of(&have, "a"), &of(&want, "a"));
    say(&format!("gradient of log gates, 30000 steps: {worst:.1e}"));
    assert!(worst <= 5e-6, "{worst:e}");

    let (q, k) = (p.inputs[0].as_f32().unwrap(), p.inputs[1].as_f32().unwrap());
    let [dq, dk] = ["q", "k"].map(|n| of(&have, n).into_iter().map(|x| x as f32).collect::<Vec<f32>>());
    let (mut sum, mut global) = (0.0f32, vec![0.0; 30_000]);
    for t in (0..30_000).rev() {
        let row = 16 * t..16 * (t + 1);
        sum += row.map(|i| q[i] * dq[i] - k[i] * dk[i]).sum::<f32>();
        global[t] = sum as f64;
    }
    let lost = e_rms(&global, &of(&want, "a"));
    assert!(lost > 5e-6, "one sum over all of time errs by {lost:e} only");
}

/// One channel, worked out in f64.
#[test]
fn a_scan_of_four_steps_gives_the_golden_values() {
    let row = |x: &[f32]| HostTensor::f32(&[1, x.len(), 1], x.to_vec());
    let first = |x: f32| HostTensor::f32(&[1, 1], vec![x]);
    let inputs = vec![row(&[3.0, 0.0, -2.0, 9.0]), row(&[1.0, 2.0, -1.0, 0.5]), first(0.5), row(&[1.0; 4]), first(0.0)];
    let p = Problem { inputs, ..Problem::new(Kind::Scan, 1, 4, [1, 1, 1], 1, 0.0) };
    let golden: [(&str, &[f64]); 5] = [
        ("o", &[1.47628706, 2.73814353, -0.67360529, -0.17352217]),
        ("last", &[-0.17352217]),
        ("z", &[0.03657492, 0.4570552, 0.57493954, -8.311e-5]),
        ("u", &[1.61919557, 1.23839114, 1.99987661, 1.0]),
        ("first", &[1.5424038]),
    ];
    let check = |have: &[(String, Vec<f64>)], tolerance: f64, what: &str| {
        for (name, want) in golden {
            let have = &have.iter().find(|(n, _)| n == name).unwrap().1;
            for (h, w) in have.iter().zip(want) {
                assert!((h - w).abs() <= tolerance, "{name} {what}: {have:?}, not {want:?}");
            }
        }
    };
    check(&p.exact(true), 1e-6, "in f64");
    for device in devices() {
        for chunk in [0, 1, 2, 64] {
            check(&on(&device, &p.graph(chunk, true), &p.inputs), 1e-5, &device.name());
        }
    }
}
