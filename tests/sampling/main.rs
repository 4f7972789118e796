//! Drawing, searching and speculating: distributions, texts and bookkeeping on small models whose answers are known.

mod beams;
mod distributions;
mod generation;
mod properties;
mod speculation;
mod toys;
