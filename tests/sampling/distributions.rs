//! The numbers of every sampler: golden values, and 10^5 draws against distributions written down a second time.

use crate::toys::check_fit;
use lynx_gpu::infer::{Distribution, Purpose, Sampler, Sampling, choose, most_likely, uniform};

const GOLDEN: [f32; 10] = [4.2, 1.8, 1.5, 0.6, 0.3, -0.5, -1.2, -2.1, -3.4, -4.0];

fn plain() -> Sampling {
    Sampling::default()
}

fn probabilities(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let d = Sampler::new(sampling).unwrap().distribution(logits).unwrap();
    (0..logits.len() as u32).map(|t| d.probability(t)).collect()
}

fn kept(logits: &[f32], sampling: &Sampling) -> usize {
    probabilities(logits, sampling).iter().filter(|p| **p > 0.0).count()
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= tolerance), "{got:?} against {want:?}");
}

fn logs(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

#[test]
fn top_p_gives_the_golden_numbers() {
    let all = probabilities(&GOLDEN, &plain());
    // 1 / Z where Z is the sum of exp(z - max); the golden numbers were made of exponentials rounded to four places.
    assert!((1.0 / all[0] - 1.2216).abs() < 1.5e-4, "{}", 1.0 / all[0]);
    let mut sum = 0.0;
    let cumulative: Vec<f64> = all.iter().map(|p| (sum += p, sum).1).collect();
    close(&cumulative[..4], &[0.8186, 0.8928, 0.9478, 0.9701], 1.5e-4);
    let p = |top_p: f64| Sampling { top_p, ..plain() };
    close(&probabilities(&GOLDEN, &p(0.95))[..5], &[0.8438, 0.0765, 0.0567, 0.0230, 0.0], 1.5e-4);
    assert_eq!([0.5, 0.95, 1.0].map(|x| kept(&GOLDEN, &p(x))), [1, 4, 10]);
    assert_eq!(kept(&logs(&[0.5, 0.2, 0.15, 0.1, 0.05]), &p(0.8)), 3);
    // A flat head: four of five tokens hold 0.9; a peaked one: two of three.
    let flat = [2.0, 1.9, 1.8, 1.7, 0.0];
    close(&probabilities(&flat, &plain()), &[0.278, 0.251, 0.227, 0.206, 0.038], 6e-4);
    assert_eq!(kept(&flat, &p(0.9)), 4);
    assert_eq!(kept(&logs(&[0.72, 0.265, 0.015]), &p(0.9)), 2);
    assert!(kept(&flat, &Sampling { top_k: 2, ..plain() }) < kept(&flat, &p(0.9)));
}

#[test]
fn entropy_grows_with_the_temperature() {
    let logits = [3.0, 2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0];
    let golden = [
        (0.1, 0.00072),
        (0.3, 0.23354),
        (0.5, 0.71749),
        (0.7, 1.20661),
        (1.0, 1.78643),
        (1.5, 2.33722),
        (2.0, 2.59945),
        (5.0, 2.93231),
        (10.0, 2.98316),
    ];
    let mut before = 0.0;
    for (temperature, want) in golden {
        let p = probabilities(&logits, &Sampling { temperature, ..plain() });
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.log2()).sum();
        assert!((entropy - want).abs() < 1e-5, "temperature {temperature}: {entropy} bits, {want} expected");
        assert!(entropy >= before - 1e-9);
        before = entropy;
    }
}

/// softmax(z)^(1/t), scaled, is softmax(z/t).
#[test]
fn a_power_of_the_probabilities_is_a_temperature() {
    for temperature in [0.3, 0.7, 2.0] {
        let powers: Vec<f64> = probabilities(&GOLDEN, &plain()).iter().map(|p| p.powf(1.0 / temperature)).collect();
        let total: f64 = powers.iter().sum();
        let want: Vec<f64> = powers.iter().map(|p| p / total).collect();
        close(&probabilities(&GOLDEN, &Sampling { temperature, ..plain() }), &want, 1e-15);
    }
}

#[test]
fn settings_that_leave_nothing_out_draw_the_same_tokens() {
    let nothing = [
        Sampling { top_k: 10, ..plain() },
        Sampling { top_k: 11, top_p: 1.0, ..plain() },
        Sampling { min_p: 1e-9, ..plain() },
        Sampling { repeat_last_n: 3, mirostat_eta: 0.5, ..plain() },
    ];
    for seed in 0..100 {
        for index in 0..10 {
            let want = choose(&GOLDEN, &Sampling { seed, ..plain() }, index).unwrap();
            for sampling in &nothing {
                let sampling = Sampling { seed, ..sampling.clone() };
                assert_eq!(choose(&GOLDEN, &sampling, index).unwrap(), want, "{sampling:?}");
            }
            let one = Sampling { top_k: 1, seed, ..plain() };
            assert_eq!(choose(&GOLDEN, &one, index).unwrap(), most_likely(&GOLDEN).unwrap());
        }
    }
}

#[test]
fn a_seed_is_a_text_and_another_seed_another() {
    let text = |seed: u64| -> Vec<u32> {
        let mut sampler = Sampler::new(&Sampling { seed, temperature: 2.0, ..plain() }).unwrap();
        (0..50).map(|_| sampler.draw(&GOLDEN).unwrap()).collect()
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
    // Greedy looks at no seed.
    let greedy = |seed: u64| choose(&GOLDEN, &Sampling::plain(0.0, seed), 3).unwrap();
    assert_eq!(greedy(1), greedy(2));
}

/// The chain, written as its definition: whole sorts, one step after another, each scaled to a distribution.
fn analytic(logits: &[f32], s: &Sampling, generated: &[u32], limit: f64) -> Vec<f64> {
    let scale = |p: &mut Vec<f64>| {
        let total: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
    };
    let mut z: Vec<f64> = logits.iter().map(|z| f64::from(*z)).collect();
    s.logit_bias.iter().for_each(|(t, b)| z[*t as usize] += b);
    for (t, z) in z.iter_mut().enumerate() {
        let newest = &generated[generated.len().saturating_sub(s.repeat_last_n)..];
        let count = newest.iter().filter(|g| **g as usize == t).count() as f64;
        if count > 0.0 {
            *z = if *z > 0.0 { *z / s.repeat_penalty } else { *z * s.repeat_penalty };
            *z -= count * s.frequency_penalty + s.presence_penalty;
        }
    }
    s.banned.iter().for_each(|t| z[*t as usize] = f64::NEG_INFINITY);
    let mut p: Vec<f64> = z.iter().map(|z| (z / s.temperature).exp()).collect();
    scale(&mut p);
    let ranked = |p: &[f64], key: &dyn Fn(usize) -> f64| {
        let mut order: Vec<usize> = (0..p.len()).filter(|t| p[*t] > 0.0).collect();
        order.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
        order
    };
    let keep_mass = |p: &mut Vec<f64>, order: &[usize], mass: f64| {
        let mut sum = 0.0;
        for t in order {
            if sum >= mass {
                p[*t] = 0.0;
            } else {
                sum += p[*t];
            }
        }
    };
    if s.mirostat_tau > 0.0 {
        let best = ranked(&p, &|t| -p[t])[0];
        let surprise: Vec<f64> = p.iter().map(|p| -p.log2()).collect();
        (0..p.len()).filter(|t| surprise[*t] > limit && *t != best).for_each(|t| p[t] = 0.0);
        scale(&mut p);
    }
    if s.top_k > 0 {
        let order = ranked(&p, &|t| -p[t]);
        let least = p[order[s.top_k.min(order.len()) - 1]];
        p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
        scale(&mut p);
    }
    if s.typical < 1.0 {
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let order = ranked(&p, &|t| (-p[t].ln() - entropy).abs());
        keep_mass(&mut p, &order, s.typical);
        scale(&mut p);
    }
    if s.top_p < 1.0 {
        let order = ranked(&p, &|t| -p[t]);
        keep_mass(&mut p, &order, s.top_p);
        scale(&mut p);
    }
    let most = p.iter().copied().fold(0.0, f64::max);
    p.iter_mut().filter(|p| **p < s.min_p * most).for_each(|p| *p = 0.0);
    scale(&mut p);
    p
}

#[test]
fn draws_of_every_sampler_have_their_distribution() {
    let penalties = Sampling { repeat_penalty: 1.4, frequency_penalty: 0.3, presence_penalty: 0.2, ..plain() };
    let cases = [
        ("plain", plain()),
        ("temperature 0.5", Sampling { temperature: 0.5, ..plain() }),
        ("temperature 2", Sampling { temperature: 2.0, ..plain() }),
        ("top-k 3", Sampling { top_k: 3, temperature: 1.5, ..plain() }),
        ("top-p 0.9", Sampling { top_p: 0.9, temperature: 2.0, ..plain() }),
        ("min-p 0.1", Sampling { min_p: 0.1, temperature: 2.0, ..plain() }),
        ("typical 0.6", Sampling { typical: 0.6, temperature: 2.0, ..plain() }),
        ("repeat penalty 1.3", Sampling { repeat_penalty: 1.3, ..plain() }),
        ("frequency penalty", Sampling { frequency_penalty: 0.7, ..plain() }),
        ("presence penalty", Sampling { presence_penalty: 0.7, ..plain() }),
        ("penalties of three tokens", Sampling { repeat_last_n: 3, ..penalties.clone() }),
        ("mirostat", Sampling { mirostat_tau: 1.2, temperature: 2.0, ..plain() }),
        ("bias and bans", Sampling { logit_bias: vec![(6, 4.0), (0, -2.0)], banned: vec![1, 9], ..plain() }),
        ("temperature, top-k, top-p", Sampling { temperature: 1.3, top_k: 6, top_p: 0.9, ..plain() }),
        ("top-k, typical, min-p", Sampling { temperature: 3.0, top_k: 8, typical: 0.7, min_p: 0.2, ..plain() }),
        ("penalties, top-p", Sampling { top_p: 0.95, temperature: 1.7, banned: vec![3], ..penalties.clone() }),
        ("penalties, mirostat", Sampling { mirostat_tau: 1.0, ..penalties }),
    ];
    let generated = [0, 0, 4, 0, 2, 7];
    for (name, sampling) in cases {
        let mut sampler = Sampler::new(&sampling).unwrap();
        // Tokens that are not drawn from a distribution leave mirostat's limit at its beginning plus what no surprise adds.
        generated.iter().for_each(|t| sampler.accept(*t, &Distribution::One(*t)));
        let limit =
            2.0 * sampling.mirostat_tau + generated.len() as f64 * sampling.mirostat_eta * sampling.mirostat_tau;
        let from = sampler.distribution(&GOLDEN).unwrap();
        let want = analytic(&GOLDEN, &sampling, &generated, limit);
        let got: Vec<f64> = (0..10).map(|t| from.probability(t)).collect();
        close(&got, &want, 1e-12);
        let mut counts = [0; 10];
        (0..100_000).for_each(|i| counts[from.draw(uniform(11, i, Purpose::Token)) as usize] += 1);
        check_fit(name, &counts, &want);
    }
}

/// One token has one number of its own: those of neighbouring places and of other purposes are independent.
#[test]
fn numbers_of_a_place_are_independent() {
    let purposes = [Purpose::Token, Purpose::Proposal, Purpose::Acceptance, Purpose::Replacement];
    let cell = |x: f64| (x * 8.0) as usize;
    for purpose in purposes {
        let mut counts = [0; 64];
        for i in 0..100_000 {
            let (a, b) = (uniform(5, i, Purpose::Token), uniform(5, i + u32::from(purpose == Purpose::Token), purpose));
            counts[cell(a) * 8 + cell(b)] += 1;
        }
        check_fit(&format!("{purpose:?}"), &counts, &[1.0 / 64.0; 64]);
    }
}

/// Zipf's law over 2000 tokens: 3.0 bits at the most likely one, and less than that no text can have. Mirostat holds the mean surprise where it is told to.
#[test]
fn mirostat_reaches_its_target() {
    let zipf: Vec<f32> = (1..=2000).map(|rank| -(rank as f32).ln()).collect();
    let total: f64 = (1..=2000).map(|rank| 1.0 / f64::from(rank)).sum();
    for target in [3.5, 5.0, 6.5] {
        let sampling = Sampling { mirostat_tau: target, ..plain() };
        let mut sampler = Sampler::new(&sampling).unwrap();
        let surprise = |t: u32| ((f64::from(t) + 1.0) * total).log2();
        let drawn: Vec<f64> = (0..3000).map(|_| surprise(sampler.draw(&zipf).unwrap())).collect();
        let mean = drawn[200..].iter().sum::<f64>() / 2800.0;
        assert!((mean - target).abs() < 0.1, "{mean} bits, {target} expected");
    }
}
