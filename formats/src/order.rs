//! Tensors that are written one after another, each in one or more pieces.

/// What is expected, in order, and how far the writing is. Tensors without bytes are complete before they begin.
#[derive(Debug)]
pub(crate) struct Order {
    expected: Vec<(String, u64)>,
    current: usize,
    filled: u64,
}

impl Order {
    pub fn new(expected: Vec<(String, u64)>) -> Self {
        let mut order = Order { expected, current: 0, filled: 0 };
        order.advance();
        order
    }

    /// The index of the tensor that the next byte belongs to.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Counts `n` more bytes of tensor `name`; the index of the tensor if they complete it.
    ///
    /// # Errors
    /// Another tensor's turn, or more bytes than the tensor has: a sentence for the message.
    pub fn give(&mut self, name: &str, n: u64) -> Result<Option<usize>, String> {
        let (expected, filled) = match self.expected.get(self.current) {
            Some((next, expected)) if next == name => (*expected, self.filled.saturating_add(n)),
            _ if n == 0 => return Ok(None),
            Some((next, _)) => return Err(format!("tensor '{name}' was given before '{next}' was complete")),
            None => return Err(format!("tensor '{name}' was given after the last one was complete")),
        };
        if filled > expected {
            return Err(format!("tensor '{name}' has {expected} bytes, but {filled} were given"));
        }
        self.filled = filled;
        let at = self.current;
        self.advance();
        Ok((self.current != at).then_some(at))
    }

    fn advance(&mut self) {
        while self.expected.get(self.current).is_some_and(|(_, bytes)| *bytes == self.filled) {
            (self.current, self.filled) = (self.current + 1, 0);
        }
    }

    /// # Errors
    /// A tensor lacks bytes.
    pub fn finish(&self) -> Result<(), String> {
        match self.expected.get(self.current) {
            None => Ok(()),
            Some((name, bytes)) => Err(format!("tensor '{name}' got {} of its {bytes} bytes", self.filled)),
        }
    }
}
