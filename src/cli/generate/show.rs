//! Tables of what was generated, for people.

use crate::infer::{Alternative, TokenScore};

/// One line a token: its log-probability, its probability, and the likeliest in its place. To stderr, as stdout is the text.
pub fn logprobs(scores: &[TokenScore]) {
    let width = scores.iter().map(|s| s.chosen.text.chars().count()).max().unwrap_or(0).max(5);
    let show = |a: &Alternative| format!("{} {:.4}", a.text, a.logprob);
    for (i, score) in scores.iter().enumerate() {
        if i == 0 {
            eprintln!("{:>5}  {:>6}  {:width$}  {:>9}  {:>7}  likeliest", "place", "id", "token", "log p", "p");
        }
        let Alternative { token, text, logprob } = &score.chosen;
        let best: Vec<String> = score.top.iter().map(show).collect();
        let (p, best) = (logprob.exp(), best.join("  "));
        eprintln!("{i:>5}  {token:>6}  {text:width$}  {logprob:>9.4}  {p:>7.4}  {best}");
    }
}
