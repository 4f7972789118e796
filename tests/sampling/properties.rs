//! What holds of every distribution, for logits and settings drawn by proptest.

use lynx_gpu::infer::{Sampler, Sampling, most_likely};
use proptest::prelude::*;

/// Logits with many ties.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(prop_oneof![(-8..8i32).prop_map(|i| i as f32), -30.0..30.0f32], 1..60)
}

fn settings() -> impl Strategy<Value = Sampling> {
    let truncation = (0..20usize, 0.01..=1.0f64, 0.0..=1.0f64);
    (0.05..5.0f64, truncation, 0.0..6.0f64, any::<bool>()).prop_map(
        |(temperature, (top_k, top_p, min_p), tau, miro)| match miro {
            true => Sampling { temperature, mirostat_tau: tau, ..Sampling::default() },
            false => Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() },
        },
    )
}

fn probabilities(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let d = Sampler::new(sampling).unwrap().distribution(logits).unwrap();
    (0..logits.len() as u32).map(|t| d.probability(t)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn probabilities_sum_to_one_and_the_likeliest_token_stays(logits in logits(), sampling in settings()) {
        let p = probabilities(&logits, &sampling);
        prop_assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let best = p[most_likely(&logits).unwrap() as usize];
        prop_assert!(p.iter().all(|p| *p >= 0.0 && *p <= best));
    }

    /// Typical sampling may leave out the likeliest token, but never everything.
    #[test]
    fn typical_sampling_keeps_the_mass_it_is_told_to(logits in logits(), typical in 0.01..1.0f64) {
        let p = probabilities(&logits, &Sampling { typical, ..Sampling::default() });
        prop_assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let all = probabilities(&logits, &Sampling::default());
        let mass: f64 = all.iter().zip(&p).filter(|(_, p)| **p > 0.0).map(|(a, _)| a).sum();
        prop_assert!(mass >= typical - 1e-12);
    }

    /// Ids are names: another order of the vocabulary permutes the distribution.
    #[test]
    fn the_order_of_ids_does_not_matter_without_ties(
        logits in logits().prop_map(|mut l| { l.sort_by(f32::total_cmp); l.dedup(); l }),
        sampling in settings(),
        turn in 0..60usize,
    ) {
        let mut turned = logits.clone();
        turned.rotate_left(turn % logits.len());
        let mut p = probabilities(&logits, &sampling);
        p.rotate_left(turn % logits.len());
        let q = probabilities(&turned, &sampling);
        prop_assert!(p.iter().zip(&q).all(|(p, q)| (p - q).abs() < 1e-9), "{p:?} {q:?}");
    }

    #[test]
    fn draws_are_tokens_with_probability(logits in logits(), sampling in settings(), seed in any::<u64>()) {
        let mut sampler = Sampler::new(&Sampling { seed, ..sampling }).unwrap();
        for _ in 0..5 {
            let p = sampler.distribution(&logits).unwrap();
            prop_assert!(p.probability(sampler.draw(&logits).unwrap()) > 0.0);
        }
    }
}
