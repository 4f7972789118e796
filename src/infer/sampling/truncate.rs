//! Samplers that leave tokens out. Logits left out are -inf, weights left out are 0.

use std::cmp::Ordering;

/// Keeps the logits that are at least the k-th greatest: k of them, and more where others equal it.
pub(super) fn top_k(logits: &mut [f64], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, threshold, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    logits.iter_mut().filter(|z| **z < threshold).for_each(|z| *z = f64::NEG_INFINITY);
}

/// Locally typical sampling (Meister et al., "Locally typical sampling", TACL 2023): keeps the tokens whose surprise is nearest to the
/// distribution's entropy, until they hold `mass`. Of tokens equally near, the smaller ids first. The most likely one need not be among them.
pub(super) fn typical(weights: &mut [f64], mass: f64) {
    let total: f64 = weights.iter().sum();
    let surprise = |w: f64| -(w / total).ln();
    let entropy: f64 = weights.iter().filter(|w| **w > 0.0).map(|w| w / total * surprise(*w)).sum();
    let from_entropy: Vec<f64> = weights.iter().map(|w| (surprise(*w) - entropy).abs()).collect();
    keep_first(weights, mass, |a, b| from_entropy[a as usize].total_cmp(&from_entropy[b as usize]).then(a.cmp(&b)));
}

/// Nucleus sampling (Holtzman et al., "The curious case of neural text degeneration", ICLR 2020): keeps the fewest most likely tokens that
/// hold `mass`, the one that reaches it included. Of equals, the smaller ids first.
pub(super) fn top_p(weights: &mut [f64], mass: f64) {
    let copy = weights.to_vec();
    keep_first(weights, mass, |a, b| copy[b as usize].total_cmp(&copy[a as usize]).then(a.cmp(&b)));
}

/// Keeps the tokens at least `part` as likely as the most likely one (Nguyen et al., "Turning up the heat: min-p sampling", 2024).
pub(super) fn min_p(weights: &mut [f64], part: f64) {
    let most = weights.iter().copied().fold(0.0, f64::max);
    weights.iter_mut().filter(|w| **w < part * most).for_each(|w| *w = 0.0);
}

/// Mirostat 2 (Basu et al., "Mirostat: a neural text decoding algorithm that directly controls perplexity", ICLR 2021): keeps tokens of at
/// most `limit` bits of surprise, and the most likely ones in any case.
pub(super) fn surprise_at_most(weights: &mut [f64], limit: f64) {
    let total: f64 = weights.iter().sum();
    let most = weights.iter().copied().fold(0.0, f64::max);
    let least = (total * (-limit).exp2()).min(most);
    weights.iter_mut().filter(|w| **w < least).for_each(|w| *w = 0.0);
}

/// Keeps the first tokens in an order whose weights reach `mass` of the total, the one that reaches it included.
fn keep_first(weights: &mut [f64], mass: f64, order: impl Fn(u32, u32) -> Ordering) {
    let goal = mass * weights.iter().sum::<f64>();
    let mut ids: Vec<u32> = (0..weights.len() as u32).filter(|t| weights[*t as usize] > 0.0).collect();
    // Most vocabularies are long and most of what is kept is short: only as much is sorted as is looked at.
    let (mut held, mut kept, mut piece) = (0.0, 0, 64);
    while kept < ids.len() && held < goal {
        let rest = &mut ids[kept..];
        let n = piece.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n, |a, b| order(*a, *b));
        }
        let sorted = &mut rest[..n];
        sorted.sort_unstable_by(|a, b| order(*a, *b));
        for token in sorted {
            held += weights[*token as usize];
            kept += 1;
            if held >= goal {
                break;
            }
        }
        piece *= 4;
    }
    ids[kept..].iter().for_each(|t| weights[*t as usize] = 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(weights: &[f64]) -> Vec<usize> {
        (0..weights.len()).filter(|t| weights[*t] > 0.0).collect()
    }

    #[test]
    fn pieces_of_the_sort_keep_what_a_whole_sort_keeps() {
        let weights: Vec<f64> = (0..1000u32).map(|i| f64::from(i.wrapping_mul(2_654_435_761) % 97) + 0.5).collect();
        for mass in [0.001, 0.05, 0.1, 0.5, 0.9, 0.999] {
            let mut got = weights.clone();
            top_p(&mut got, mass);
            let mut order: Vec<usize> = (0..1000).collect();
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
            let (mut sum, total) = (0.0, weights.iter().sum::<f64>());
            let count = order.iter().take_while(|t| (sum < mass * total, sum += weights[**t]).0).count();
            let mut want = order[..count].to_vec();
            want.sort();
            assert_eq!(kept(&got), want, "{mass}");
        }
    }

    #[test]
    fn ties_are_kept_by_top_k_and_broken_by_id_in_top_p() {
        let mut logits = [1.0, 3.0, 2.0, 3.0, 2.0];
        top_k(&mut logits, 3);
        assert_eq!(logits, [f64::NEG_INFINITY, 3.0, 2.0, 3.0, 2.0]);
        let mut weights = [1.0, 3.0, 2.0, 3.0, 2.0];
        top_p(&mut weights, 0.6);
        assert_eq!(kept(&weights), [1, 2, 3]);
    }

    #[test]
    fn typical_keeps_what_is_as_surprising_as_expected() {
        // Entropy 1.42 nats; surprises 0.69, 1.61, 1.61, 2.30: the two in the middle are nearest, then the last is farther than the first.
        let mut weights = [0.5, 0.2, 0.2, 0.1];
        typical(&mut weights, 0.3);
        assert_eq!(kept(&weights), [1, 2]);
        let mut weights = [0.5, 0.2, 0.2, 0.1];
        typical(&mut weights, 0.5);
        assert_eq!(kept(&weights), [0, 1, 2]);
    }

    #[test]
    fn a_limit_on_surprise_leaves_the_most_likely() {
        let mut weights = [0.5, 0.25, 0.25];
        surprise_at_most(&mut weights, 1.5);
        assert_eq!(kept(&weights), [0]);
        let mut weights = [0.5, 0.25, 0.25];
        surprise_at_most(&mut weights, -3.0);
        assert_eq!(kept(&weights), [0]);
        let mut weights = [0.5, 0.25, 0.25];
        surprise_at_most(&mut weights, 2.0);
        assert_eq!(kept(&weights), [0, 1, 2]);
    }
}
