//! Places for words on a crowded chart: the first of several that covers nothing.

use super::scene::{Area, Point, Text};

/// Pixels kept free before and after words: two numbers side by side would read as one.
const AIR: f64 = 3.0;

pub struct Places {
    /// Words, markers with numbers: never covered.
    taken: Vec<Area>,
    /// Lines and small dots: covered only where there is no better place.
    crossed: Vec<Area>,
    from: Point,
    to: Point,
}

impl Places {
    pub fn new((from, to): (Point, Point)) -> Self {
        Places { taken: Vec::new(), crossed: Vec::new(), from, to }
    }

    pub fn take(&mut self, area: Area) {
        self.taken.push(area);
    }

    pub fn cross(&mut self, area: Area) {
        self.crossed.push(area);
    }

    /// Cost of covering `area`; none where that is forbidden or outside the axes.
    fn cost(&self, area: &Area) -> Option<usize> {
        let free = area.inside(self.from, self.to) && !self.taken.iter().any(|a| a.overlaps(area));
        free.then(|| self.crossed.iter().filter(|a| a.overlaps(area)).count())
    }

    /// Takes and returns the candidate that crosses least; the earliest of equals. None where all are forbidden.
    pub fn put(&mut self, candidates: impl IntoIterator<Item = Text>) -> Option<Text> {
        let mut best: Option<(usize, Text)> = None;
        for text in candidates {
            let Some(cost) = self.cost(&text.area().wider(AIR)) else { continue };
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                let done = cost == 0;
                best = Some((cost, text));
                if done {
                    break;
                }
            }
        }
        let (_, text) = best?;
        self.take(text.area());
        Some(text)
    }
}
