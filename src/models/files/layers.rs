//! Which layers of a model have a sliding window.

use crate::config::LlamaConfig;

/// Sets which layers have the window from a list of them. False, and nothing is set, if neither every n-th layer sees the whole context
/// nor those before a certain one.
pub(super) fn set_windows(c: &mut LlamaConfig, windowed: &[bool]) -> bool {
    if windowed.iter().all(|w| !w) {
        (c.window, c.window_period, c.window_from) = (0, 0, 0);
        return true;
    }
    let from = windowed.iter().position(|w| *w).unwrap_or(0);
    let period = windowed.iter().position(|w| !w).map_or(0, |i| i + 1);
    let candidates = [
        LlamaConfig { window_period: period, window_from: 0, ..c.clone() },
        LlamaConfig { window_period: 0, window_from: from, ..c.clone() },
    ];
    let fits = |c: &&LlamaConfig| windowed.iter().enumerate().all(|(i, &w)| w == (c.window_of(i) > 0));
    match candidates.iter().find(fits) {
        Some(found) => {
            (c.window_period, c.window_from) = (found.window_period, found.window_from);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_found_where_there_is_one() {
        for (layers, expected) in [
            (&[true, false, true, false][..], Some((8, 2, 0))),
            (&[true, false, true], Some((8, 2, 0))),
            (&[true, true], Some((8, 0, 0))),
            (&[false, false], Some((0, 0, 0))),
            (&[true, true, false, true, true, false], Some((8, 3, 0))),
            (&[false, true], Some((8, 0, 1))),
            (&[false, false, true, true], Some((8, 0, 2))),
            (&[true, false, false], None),
            (&[false, true, false], None),
        ] {
            let mut c = LlamaConfig { window: 8, layers: layers.len(), ..LlamaConfig::default() };
            let set = set_windows(&mut c, layers).then_some((c.window, c.window_period, c.window_from));
            assert_eq!(set, expected, "{layers:?}");
        }
    }
}
