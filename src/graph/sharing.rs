//! Which tensors share a buffer: those whose lifetimes do not meet.
//!
//! Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", arXiv:2001.03288, shared
//! objects): the largest tensors are placed first, so that a buffer is as large as its first tensor and never grows.

/// Memory that one tensor needs, or several that are written in place over each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub bytes: u64,
    /// Index of the node that writes it first.
    pub start: usize,
    /// Index of the last node that reads or writes it.
    pub end: usize,
}

/// The buffer of each span, and the bytes of each buffer.
pub(super) fn share(spans: &[Span]) -> (Vec<usize>, Vec<u64>) {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(spans[i].bytes), spans[i].start, i));
    let mut buffer_of = vec![0; spans.len()];
    let mut bytes: Vec<u64> = Vec::new();
    // Of each buffer: (start, end) of its tensors, ascending.
    let mut taken: Vec<Vec<(usize, usize)>> = Vec::new();
    for i in order {
        let span = spans[i];
        // Where it would go in a buffer's list, and how long the buffer was idle before it.
        let fits = |held: &[(usize, usize)]| {
            let at = held.partition_point(|h| h.0 < span.start);
            let before = if at > 0 { Some(held[at - 1].1) } else { None };
            let clear = before.is_none_or(|end| end < span.start) && held.get(at).is_none_or(|h| h.0 > span.end);
            clear.then(|| (at, before.map_or(span.start, |end| span.start - end)))
        };
        // Least waste first, then the tightest gap: long gaps stay open for long-lived tensors.
        let candidates =
            taken.iter().enumerate().filter_map(|(b, held)| fits(held).map(|(at, gap)| (bytes[b], gap, b, at)));
        let buffer = match candidates.min() {
            Some((_, _, buffer, at)) => {
                taken[buffer].insert(at, (span.start, span.end));
                buffer
            }
            None => {
                taken.push(vec![(span.start, span.end)]);
                bytes.push(span.bytes);
                bytes.len() - 1
            }
        };
        buffer_of[i] = buffer;
    }
    (buffer_of, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(bytes: u64, start: usize, end: usize) -> Span {
        Span { bytes, start, end }
    }

    #[test]
    fn equal_tensors_need_no_more_buffers_than_are_alive_at_once() {
        // Interval graphs are perfect: colouring by start needs as many colours as the largest clique.
        let spans: Vec<Span> = (0..40).map(|i| span(8, i, i + 3 + i % 4)).collect();
        let alive = (0..50).map(|t| spans.iter().filter(|s| s.start <= t && t <= s.end).count()).max().unwrap();
        assert_eq!(share(&spans).1.len(), alive);
    }

    #[test]
    fn a_small_tensor_does_not_make_a_large_one_move_out() {
        let spans = [span(4, 0, 1), span(100, 2, 3), span(4, 4, 9), span(100, 5, 6)];
        let (buffer_of, bytes) = share(&spans);
        assert_eq!(bytes.iter().sum::<u64>(), 104);
        assert_eq!(buffer_of[1], buffer_of[3]);
    }

    proptest! {
        #[test]
        fn tensors_in_one_buffer_fit_it_and_are_never_alive_together(
            raw in proptest::collection::vec((0u64..50, 0usize..40, 0usize..15), 0..60)
        ) {
            let spans: Vec<Span> = raw.into_iter().map(|(b, s, n)| span(b, s, s + n)).collect();
            let (buffer_of, bytes) = share(&spans);
            for (i, a) in spans.iter().enumerate() {
                prop_assert!(a.bytes <= bytes[buffer_of[i]]);
                for (j, b) in spans.iter().enumerate().skip(i + 1) {
                    let meet = a.start <= b.end && b.start <= a.end;
                    prop_assert!(!meet || buffer_of[i] != buffer_of[j]);
                }
            }
        }
    }
}
