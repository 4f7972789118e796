//! Which layers of a model have a sliding window.

/// The period at which layers see the whole context, from which layers have a window: `None` in the outer option when there is no
/// such period, in the inner one when no layer has a window. 0: all have one.
pub(super) fn window_period(windowed: &[bool]) -> Option<Option<usize>> {
    if windowed.iter().all(|w| !w) {
        return Some(None);
    }
    let period = windowed.iter().position(|w| !w).map_or(0, |i| i + 1);
    let whole = |i: usize| period > 0 && (i + 1).is_multiple_of(period);
    windowed.iter().enumerate().all(|(i, &w)| w != whole(i)).then_some(Some(period))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_found_where_there_is_one() {
        for (layers, expected) in [
            (&[true, false, true, false][..], Some(Some(2))),
            (&[true, false, true], Some(Some(2))),
            (&[true, true], Some(Some(0))),
            (&[false, false], Some(None)),
            (&[true, true, false, true, true, false], Some(Some(3))),
            (&[false, true], None),
            (&[true, false, false], None),
        ] {
            assert_eq!(window_period(layers), expected, "{layers:?}");
        }
    }
}
