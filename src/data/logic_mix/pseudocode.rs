//! Small algorithms on short lists, executed step by step.

use super::Document;
use super::draws::Draws;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    Sort,
    Maximum,
    LinearSearch,
    Sum,
    Reverse,
    Gcd,
    CountEven,
    BinarySearch,
}

use Algorithm::*;

impl Algorithm {
    /// In the order of their numbers.
    pub const ALL: [Algorithm; 8] = [Sort, Maximum, LinearSearch, Sum, Reverse, Gcd, CountEven, BinarySearch];

    pub fn name(self) -> &'static str {
        match self {
            Sort => "sort",
            Maximum => "maximum",
            LinearSearch => "linear search",
            Sum => "sum",
            Reverse => "reverse",
            Gcd => "gcd",
            CountEven => "count even",
            BinarySearch => "binary search",
        }
    }
}

/// An algorithm with its input. `numbers` is the list, or the two numbers of a greatest common divisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub algorithm: Algorithm,
    pub numbers: Vec<u64>,
    /// What is looked for.
    pub target: u64,
    pub descending: bool,
}

/// `[1, 2, 3]`
pub fn list(numbers: &[u64]) -> String {
    let inner: Vec<String> = numbers.iter().map(u64::to_string).collect();
    format!("[{}]", inner.join(", "))
}

impl Task {
    pub fn question(&self) -> String {
        let all = list(&self.numbers);
        match self.algorithm {
            Sort => format!("How to sort {all} in {} order?", if self.descending { "descending" } else { "ascending" }),
            Maximum => format!("How to find the maximum of {all}?"),
            LinearSearch => format!("How to find {} in {all} by linear search?", self.target),
            Sum => format!("How to sum {all}?"),
            Reverse => format!("How to reverse {all}?"),
            Gcd => format!("How to find gcd({}, {})?", self.numbers[0], self.numbers[1]),
            CountEven => format!("How to count even numbers in {all}?"),
            BinarySearch => format!("How to find {} in {all} by binary search?", self.target),
        }
    }

    /// What decides the split.
    pub fn key(&self) -> String {
        format!("p{}|{}", self.algorithm as usize, self.question())
    }

    /// Runs the algorithm: its steps, without their numbers, and the answer.
    pub fn run(&self) -> (Vec<String>, String) {
        let numbers = &self.numbers;
        let mut steps = vec![];
        let found = |at: Option<usize>| at.map_or("not found".to_owned(), |i| format!("index {i}"));
        let answer = match self.algorithm {
            Sort => {
                let mut work = numbers.clone();
                loop {
                    let mut swaps = 0;
                    for i in 1..work.len() {
                        let (left, right) = (work[i - 1], work[i]);
                        if if self.descending { left < right } else { left > right } {
                            work.swap(i - 1, i);
                            swaps += 1;
                        }
                    }
                    steps.push(format!("iterate and swap neighbours out of order: {swaps} swaps, {}.", list(&work)));
                    if swaps == 0 {
                        break list(&work);
                    }
                }
            }
            Maximum => {
                let mut best = numbers[0];
                steps.push(format!("start with best = {best}."));
                for &v in &numbers[1..] {
                    if v > best {
                        steps.push(format!("{v} > {best}, best = {v}."));
                        best = v;
                    } else {
                        steps.push(format!("{v} <= {best}, keep {best}."));
                    }
                }
                best.to_string()
            }
            LinearSearch => {
                let at = numbers.iter().position(|&v| v == self.target);
                for &v in &numbers[..at.unwrap_or(numbers.len())] {
                    steps.push(format!("{v} != {}, move on.", self.target));
                }
                if at.is_some() {
                    steps.push(format!("{0} == {0}, stop.", self.target));
                }
                found(at)
            }
            Sum => {
                let mut total = 0;
                for &v in numbers {
                    steps.push(format!("total = {total} + {v} = {}.", total + v));
                    total += v;
                }
                total.to_string()
            }
            Reverse => {
                let mut work = vec![];
                for &v in numbers {
                    work.insert(0, v);
                    steps.push(format!("push {v} to the front: {}.", list(&work)));
                }
                list(&work)
            }
            Gcd => {
                let (mut u, mut v) = (numbers[0], numbers[1]);
                while v > 0 {
                    steps.push(format!("{u} mod {v} = {}.", u % v));
                    (u, v) = (v, u % v);
                }
                u.to_string()
            }
            CountEven => {
                let mut count = 0;
                for &v in numbers {
                    let even = v % 2 == 0;
                    count += usize::from(even);
                    steps.push(format!("{v} is {}, count = {count}.", if even { "even" } else { "odd" }));
                }
                count.to_string()
            }
            BinarySearch => {
                let (mut low, mut high) = (0, numbers.len());
                let mut at = None;
                while low < high && at.is_none() {
                    let middle = (low + high - 1) / 2;
                    let m = numbers[middle];
                    if m < self.target {
                        steps.push(format!("middle is {m}, go right."));
                        low = middle + 1;
                    } else if m > self.target {
                        steps.push(format!("middle is {m}, go left."));
                        high = middle;
                    } else {
                        steps.push(format!("middle is {m}, equal, stop."));
                        at = Some(middle);
                    }
                }
                found(at)
            }
        };
        (steps, answer)
    }

    pub fn text(&self) -> String {
        let (steps, answer) = self.run();
        super::dialogue(&self.question(), &steps, &format!("Therefore {answer}."))
    }
}

/// Draws a task, and how surprising its text is in bits.
pub fn draw(draws: &mut Draws) -> (Task, f64) {
    let algorithm = Algorithm::ALL[draws.below(8) as usize];
    let mut bits = 3.0;
    let (mut target, mut descending) = (0, false);
    if algorithm == Gcd {
        let numbers = vec![1 + draws.below(99), 1 + draws.below(99)];
        return (Task { algorithm, numbers, target, descending }, bits + 2.0 * 99f64.log2());
    }
    let n = 3 + draws.below(4) as usize;
    bits += 2.0;
    let numbers = if algorithm == BinarySearch {
        let mut numbers = draws.distinct(n, 100);
        numbers.sort_unstable();
        // A sorted list does not tell in which order it was drawn.
        bits += (0..n).map(|i| ((100 - i) as f64 / (n - i) as f64).log2()).sum::<f64>();
        numbers
    } else {
        bits += n as f64 * 100f64.log2();
        (0..n).map(|_| draws.below(100)).collect()
    };
    match algorithm {
        Sort => {
            descending = draws.below(2) == 1;
            bits += 1.0;
        }
        LinearSearch | BinarySearch => {
            target = if draws.below(2) == 1 { numbers[draws.below(n as u64) as usize] } else { draws.below(100) };
            let there = numbers.iter().filter(|&&v| v == target).count();
            bits -= (0.5 * there as f64 / n as f64 + 0.5 / 100.0).log2();
        }
        _ => {}
    }
    (Task { algorithm, numbers, target, descending }, bits)
}

pub fn document(draws: &mut Draws) -> Document {
    let (task, bits) = draw(draws);
    Document { key: task.key(), text: task.text(), bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(algorithm: Algorithm, numbers: &[u64], target: u64) -> String {
        let task = Task { algorithm, numbers: numbers.to_vec(), target, descending: false };
        task.text().trim_end().split_once("\nCoeus: ").unwrap().1.to_owned()
    }

    #[test]
    fn traces_read_as_described() {
        assert_eq!(
            body(Sort, &[3, 1, 2], 0),
            "Step 1: iterate and swap neighbours out of order: 2 swaps, [1, 2, 3]. \
             Step 2: iterate and swap neighbours out of order: 0 swaps, [1, 2, 3]. Therefore [1, 2, 3]."
        );
        assert_eq!(
            body(Maximum, &[4, 9, 9], 0),
            "Step 1: start with best = 4. Step 2: 9 > 4, best = 9. Step 3: 9 <= 9, keep 9. Therefore 9."
        );
        assert_eq!(body(LinearSearch, &[5, 8], 8), "Step 1: 5 != 8, move on. Step 2: 8 == 8, stop. Therefore index 1.");
        assert_eq!(body(LinearSearch, &[5], 8), "Step 1: 5 != 8, move on. Therefore not found.");
        assert_eq!(
            body(Gcd, &[12, 18], 0),
            "Step 1: 12 mod 18 = 12. Step 2: 18 mod 12 = 6. Step 3: 12 mod 6 = 0. Therefore 6."
        );
        assert_eq!(
            body(Reverse, &[1, 2], 0),
            "Step 1: push 1 to the front: [1]. Step 2: push 2 to the front: [2, 1]. Therefore [2, 1]."
        );
        assert_eq!(
            body(CountEven, &[1, 2], 0),
            "Step 1: 1 is odd, count = 0. Step 2: 2 is even, count = 1. Therefore 1."
        );
        assert_eq!(body(Sum, &[1, 2], 0), "Step 1: total = 0 + 1 = 1. Step 2: total = 1 + 2 = 3. Therefore 3.");
        assert_eq!(
            body(BinarySearch, &[1, 4, 6, 9], 9),
            "Step 1: middle is 4, go right. Step 2: middle is 6, go right. Step 3: middle is 9, equal, stop. Therefore index 3."
        );
        assert_eq!(
            body(BinarySearch, &[1, 4, 6, 9], 0),
            "Step 1: middle is 4, go left. Step 2: middle is 1, go left. Therefore not found."
        );
    }
}
