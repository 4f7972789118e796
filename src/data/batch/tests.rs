use super::*;
use std::collections::BTreeMap;

fn stream(tokens: u32) -> Arc<TokenSplit> {
    Arc::new(TokenSplit::stream("train", (0..tokens).collect()))
}

/// Rows of the given lengths between boundaries (id 1), their tokens numbered from 10.
fn rows(lengths: &[usize]) -> Arc<TokenSplit> {
    let mut next = 10;
    let documents: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&n| {
            next += n as u32;
            (next - n as u32..next).collect()
        })
        .collect();
    Arc::new(TokenSplit::rows("train", &documents, 1, 0))
}

fn scored(batches: impl Iterator<Item = Batch>) -> BTreeMap<i32, usize> {
    let mut seen = BTreeMap::new();
    for target in batches.flat_map(|b| b.targets).filter(|&t| t >= 0) {
        *seen.entry(target).or_default() += 1;
    }
    seen
}

#[test]
fn a_validation_pass_scores_every_token_but_the_first_once() {
    for tokens in [2, 3, 8, 9, 10, 65] {
        for (context, overlap) in [(1, 0), (4, 0), (8, 3), (8, 7), (100, 0)] {
            let pass = EvalBatches::with_overlap(stream(tokens), 3, context, overlap).unwrap();
            let expected: BTreeMap<i32, usize> = (1..tokens as i32).map(|t| (t, 1)).collect();
            assert_eq!(scored(pass.iter()), expected, "{tokens} tokens, context {context}, overlap {overlap}");
        }
    }
}

#[test]
fn a_validation_pass_over_rows_starts_each_row_at_its_boundary_and_scores_all() {
    let split = rows(&[3, 1, 0, 9]);
    let batches: Vec<Batch> = EvalBatches::new(split.clone(), 2, 4).unwrap().iter().collect();
    // 3 + 1 + 0 + 9 tokens of rows and 4 closing boundaries.
    let counts = scored(batches.iter().cloned());
    assert_eq!(counts[&1], 4);
    assert!((10..23).all(|t| counts[&t] == 1));
    assert_eq!(batches[0].inputs, [1, 10, 11, 12, 1, 13, 0, 0]);
    assert_eq!(batches[0].targets, [10, 11, 12, 1, 13, 1, -1, -1]);
    assert_eq!(batches[0].lengths, [4, 2]);
    // The nine-token row goes on with two positions of context that are not scored again.
    assert_eq!(&batches[2].inputs[..4], [15, 16, 17, 18]);
    assert_eq!(&batches[2].targets[..4], [-1, -1, 18, 19]);
}

#[test]
fn targets_follow_inputs_in_every_kind_of_training_batch() {
    for (split, sampling) in
        [(stream(50), Sampling::Windows), (rows(&[5, 9, 2]), Sampling::Packed), (rows(&[5, 9, 2]), Sampling::Padded)]
    {
        let mut batches = TrainBatches::new(split, sampling, 3, 6, 42).unwrap();
        for _ in 0..20 {
            let batch = batches.next_batch();
            assert_eq!((batch.inputs.len(), batch.targets.len(), batch.lengths.len()), (18, 18, 3));
            for (row, &length) in batch.lengths.iter().enumerate() {
                let at = row * 6..row * 6 + length as usize;
                let (inputs, targets) = (&batch.inputs[at.clone()], &batch.targets[at]);
                for i in 0..inputs.len() - 1 {
                    assert!(targets[i] == IGNORED || targets[i] == inputs[i + 1]);
                }
                assert!(batch.targets[row * 6 + length as usize..(row + 1) * 6].iter().all(|&t| t == IGNORED));
            }
        }
    }
}

#[test]
fn rows_of_a_mix_come_in_the_proportion_of_their_weights() {
    // Two origins: 40 rows of 4 tokens and 5 rows of 50; the short ones are to be three quarters.
    let lengths: Vec<usize> = [vec![4; 40], vec![50; 5]].concat();
    let mut split = Arc::unwrap_or_clone(rows(&lengths));
    let part = |name: &str, documents: std::ops::Range<usize>, bytes, weight| Part {
        name: name.into(),
        documents,
        bytes,
        weight,
        floor: None,
    };
    split.parts = vec![part("short", 0..40, 160, 0.75), part("empty", 40..40, 0, 0.0), part("long", 40..45, 250, 0.25)];
    let split = Arc::new(split);
    let mut batches = TrainBatches::new(split.clone(), Sampling::Packed, 4, 8, 1).unwrap();
    let (mut short, mut long) = (0, 0);
    for _ in 0..2000 {
        for target in batches.next_batch().targets {
            short += usize::from((10..170).contains(&target));
            long += usize::from(target >= 170);
        }
    }
    let share = short as f64 / (short + long) as f64;
    // 64,000 tokens come in some 260 long rows: a standard deviation of about 0.013.
    assert!((share - 0.75).abs() < 0.08, "{share}");
    let mut straight = TrainBatches::new(split.clone(), Sampling::Packed, 4, 8, 1).unwrap();
    for _ in 0..70 {
        straight.next_batch();
    }
    let mut resumed = TrainBatches::new(split, Sampling::Packed, 4, 8, 1).unwrap();
    resumed.restore(&straight.state()).unwrap();
    assert!((0..30).all(|_| straight.next_batch() == resumed.next_batch()));
}

#[test]
fn an_epoch_over_rows_scores_every_token_once_and_the_next_one_has_another_order() {
    for sampling in [Sampling::Packed, Sampling::Padded] {
        let split = rows(&[5, 9, 2, 7]);
        let mut batches = TrainBatches::new(split, sampling, 1, 6, 42).unwrap();
        let length = batches.batches_per_epoch() as usize;
        let mut epoch = || (0..length).map(|_| batches.next_batch()).collect::<Vec<_>>();
        let (first, second) = (epoch(), epoch());
        let expected: BTreeMap<i32, usize> = (10..33).map(|t| (t, 1)).chain([(1, 4)]).collect();
        assert_eq!(scored(first.iter().cloned()), expected);
        assert_eq!(scored(second.iter().cloned()), expected);
        assert_ne!(first, second);
    }
}

#[test]
fn restored_state_gives_the_batches_of_the_uninterrupted_run() {
    for (split, sampling) in
        [(stream(50), Sampling::Windows), (rows(&[5, 9, 2]), Sampling::Packed), (rows(&[5, 9, 2]), Sampling::Padded)]
    {
        let mut straight = TrainBatches::new(split.clone(), sampling, 2, 6, 42).unwrap();
        for _ in 0..7 {
            straight.next_batch();
        }
        let saved = serde_json::to_string(&straight.state()).unwrap();
        let mut resumed = TrainBatches::new(split.clone(), sampling, 2, 6, 42).unwrap();
        resumed.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
        for _ in 0..20 {
            assert_eq!(resumed.next_batch(), straight.next_batch());
        }
        let mut other = TrainBatches::new(split, sampling, 2, 6, 43).unwrap();
        assert!(matches!(other.restore(&serde_json::from_str(&saved).unwrap()), Err(Error::Checkpoint(_))));
    }
}

#[test]
fn random_windows_reach_the_first_and_the_last_place() {
    let mut batches = TrainBatches::new(stream(10), Sampling::Windows, 4, 6, 1).unwrap();
    let starts: std::collections::BTreeSet<i32> =
        (0..50).flat_map(|_| batches.next_batch().inputs.chunks(6).map(|c| c[0]).collect::<Vec<_>>()).collect();
    assert_eq!(starts, (0..=3).collect());
}

#[test]
fn too_short_data_and_impossible_shapes_are_refused() {
    let message = TrainBatches::new(stream(6), Sampling::Windows, 1, 6, 1).unwrap_err().to_string();
    assert!(message.contains("6 tokens") && message.contains("context = 6"), "{message}");
    assert!(TrainBatches::new(stream(7), Sampling::Windows, 1, 6, 1).is_ok());
    assert!(TrainBatches::new(stream(7), Sampling::Windows, 0, 6, 1).is_err());
    assert!(TrainBatches::new(stream(7), Sampling::Packed, 1, 6, 1).is_err());
    assert!(EvalBatches::new(stream(1), 1, 6).is_err());
    assert!(EvalBatches::with_overlap(stream(7), 1, 6, 6).is_err());
}

/// Two origins, one with twelve windows and one with four: any prefix of the pass has three of the first for one of the second.
#[test]
fn a_pass_over_a_mix_takes_its_origins_in_turn_and_scores_every_token_once() {
    let mut split = Arc::unwrap_or_clone(rows(&[vec![3; 12], vec![7; 4]].concat()));
    let part = |name: &str, documents: std::ops::Range<usize>, bytes, floor| Part {
        name: name.into(),
        documents,
        bytes,
        weight: 0.5,
        floor,
    };
    split.parts = vec![part("a", 0..12, 36, Some(0.25)), part("none", 12..12, 0, None), part("b", 12..16, 56, None)];
    let split = Arc::new(split);
    let pass = EvalBatches::new(split.clone(), 3, 8).unwrap();
    assert_eq!((pass.len(), pass.sources().len()), (6, 3));
    // Four tokens a row of three bytes, the boundary among them; eight a row of fourteen.
    let per_token = [0, 2].map(|i| (pass.sources()[i].bytes_per_token, pass.sources()[i].floor));
    assert_eq!(per_token, [(0.75, Some(0.25)), (1.75, None)]);
    let expected: BTreeMap<i32, usize> = (10..10 + 36 + 28).map(|t| (t, 1)).chain([(1, 16)]).collect();
    assert_eq!(scored(pass.iter()), expected);
    let mut order = Vec::new();
    for index in 0..pass.len() {
        let batch = pass.batch(index);
        for (row, source) in pass.sources_of(index).iter().enumerate() {
            let first = batch.targets[row * 8];
            assert_eq!(*source == 0, first < 46, "row {row} of batch {index}");
            order.push(*source);
        }
    }
    assert_eq!(order.len(), 16);
    for quarter in order.chunks(4) {
        assert_eq!(quarter.iter().filter(|source| **source == 2).count(), 1, "{order:?}");
    }
    // Text of one kind keeps its order.
    assert!(EvalBatches::new(stream(50), 3, 8).unwrap().sources_of(0).is_empty());
}
