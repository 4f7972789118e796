//! Matrices of weights in the formats they are stored in, and products with them. A matrix [rows = outputs, columns = inputs] is a slice
//! of bytes and a [`Packing`] that says what they are; weights become `f32` a register, a row or a panel at a time, never as a whole.
//!
//! | file | what it does |
//! |---|---|
//! | `layout` | between rows of a format and tiles |
//! | `rows` | products with rows of any format |
//! | `tiles` | products with tiles |
//! | `superblocks` | tiles of `Q4_K`, `Q5_K` and `Q6_K`, and products with them |
//! | `activations` | `x` in the order in which the kernels of tiles read it, as `f32` or as int8 |
//! | `lanes`, `x86` | sixteen lanes of an instruction set |
//! | [`samples`] | rows to test and measure with |

mod activations;
mod lanes;
mod layout;
mod rows;
pub mod samples;
mod superblocks;
#[cfg(test)]
mod tests;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::blocks::Format;
use crate::gemm::{self, Epilogue};
use crate::threads::par_rows_mut;
pub use activations::{BLOCK, round_rows};
use layout::Geometry;
pub use layout::TILE_ROWS;
use superblocks::Shape;

/// The order of a matrix's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The format's rows, one after the other.
    Rows,
    /// Sixteen rows interleaved, so that a row is a SIMD lane and neighbouring lanes read neighbouring memory. A tile of
    /// sixteen rows (the last is filled up with zeros) has first its codes and then its scales:
    ///
    /// * 8-bit codes (`Q8_0`, `Int8Row`): for every 4 columns 64 bytes; bytes 4 r to 4 r + 3 are those columns of row r, each plus 128.
    /// * 4-bit codes (`Q4_0`, `Int4Group`, `Nf4`): for every 8 columns 64 bytes; the low nibbles of bytes 4 r to 4 r + 3 are the first
    ///   four columns of row r, the high nibbles the others.
    /// * scales: for every block 16 scales, one a row, in the type that the format has them in.
    ///
    /// Superblocks (`Q4_K`, `Q5_K`, `Q6_K`) each have the low four bits of their codes so, then the upper bits, a byte for every scale and
    /// minimum, and d and dmin.
    ///
    /// Columns and the tile's bytes are filled up with zeros to whole 64 bytes.
    Tiles,
}

/// How a product treats its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// As they are.
    F32,
    /// Rounded to int8: each row is cut into blocks of [`BLOCK`] numbers, each with a scale of its own (see [`round_rows`]); products
    /// of 8-bit and 4-bit integers are then summed as integers within a block.
    Int8,
}

/// What the bytes of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    pub format: Format,
    pub layout: Layout,
    pub rows: usize,
    pub columns: usize,
}

impl Packing {
    /// # Errors
    /// `columns` is 0 or not a whole number of blocks of the format, or the format has no tiles.
    pub fn new(format: Format, layout: Layout, rows: usize, columns: usize) -> Result<Self, String> {
        let packing = Packing { format, layout, rows, columns };
        packing.checked_bytes().map(|_| packing)
    }

    /// Tiles where the format has them, else rows: what products are fastest with.
    ///
    /// # Errors
    /// As [`Packing::new`].
    pub fn fastest(format: Format, rows: usize, columns: usize) -> Result<Self, String> {
        let layout = if Self::has_tiles(format) { Layout::Tiles } else { Layout::Rows };
        Self::new(format, layout, rows, columns)
    }

    /// [`Packing::fastest`] for products whose activations are int8: superblocks too have tiles then.
    ///
    /// # Errors
    /// As [`Packing::new`].
    pub fn fastest_for_int8(format: Format, rows: usize, columns: usize) -> Result<Self, String> {
        match Shape::of(format) {
            Some(_) => Self::new(format, Layout::Tiles, rows, columns),
            None => Self::fastest(format, rows, columns),
        }
    }

    /// Whether products of any activations are fastest with a format's tiles.
    pub fn has_tiles(format: Format) -> bool {
        Geometry::of(format, 256).is_some()
    }

    /// Bytes of the matrix.
    ///
    /// # Errors
    /// As [`Packing::new`], or more bytes than can be addressed.
    pub fn checked_bytes(&self) -> Result<usize, String> {
        if self.columns == 0 {
            return Err("a packed matrix needs at least one column".into());
        }
        let row = self.format.row_bytes(self.columns)?;
        let (lines, bytes) = match self.layout {
            Layout::Rows => (self.rows, row),
            Layout::Tiles => match self.bytes_of_tile() {
                Some(bytes) => (self.tiles(), bytes),
                None => return Err(format!("{} has no layout in tiles: use rows", self.format)),
            },
        };
        let most = isize::MAX as usize;
        lines.checked_mul(bytes).filter(|bytes| *bytes <= most).ok_or_else(|| {
            format!("[{}, {}] of {} has more bytes than can be addressed", self.rows, self.columns, self.format)
        })
    }

    /// Bytes of the matrix.
    ///
    /// # Panics
    /// If the packing is not one that [`Packing::new`] makes.
    pub fn bytes(&self) -> usize {
        self.checked_bytes().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Bytes of a row in the format's own order.
    ///
    /// # Panics
    /// As [`Packing::bytes`].
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.columns).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Tiles of the matrix.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Bytes of a tile.
    ///
    /// # Panics
    /// If the format has no tiles.
    pub fn tile_bytes(&self) -> usize {
        self.bytes_of_tile().unwrap_or_else(|| panic!("{} has no tiles", self.format))
    }

    fn bytes_of_tile(&self) -> Option<usize> {
        match Shape::of(self.format) {
            Some(shape) => Some(shape.tile_bytes(self.columns)),
            None => Geometry::of(self.format, self.columns).map(|g| g.bytes),
        }
    }

    fn geometry(&self) -> Geometry {
        Geometry::of(self.format, self.columns).unwrap_or_else(|| panic!("{} has no tiles", self.format))
    }

    fn check(&self, packed: &[u8]) {
        let bytes = self.bytes();
        assert!(packed.len() >= bytes, "a packed matrix of {bytes} bytes, given {}", packed.len());
    }
}

/// Row `r` of the matrix as `f32`: `out` is [columns].
///
/// # Panics
/// If a slice is too short, or there is no such row.
pub fn unpack_row(packing: &Packing, packed: &[u8], r: usize, out: &mut [f32]) {
    assert!(r < packing.rows, "row {r} of {}", packing.rows);
    assert_eq!(out.len(), packing.columns, "a row is [{}]", packing.columns);
    match packing.layout {
        Layout::Rows => rows::dequantise(packing, packed, r, out),
        Layout::Tiles => match Shape::of(packing.format) {
            Some(shape) => superblocks::dequantise(&shape, packing, packed, r, out),
            None => layout::dequantise(packing, packed, r, out),
        },
    }
}

/// The whole matrix as `f32`: `out` is [rows, columns].
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn unpack(packing: &Packing, packed: &[u8], out: &mut [f32]) {
    packing.check(packed);
    let (rows, columns) = (packing.rows, packing.columns);
    assert_eq!(out.len(), rows * columns, "out is [{rows}, {columns}]");
    par_rows_mut(out, columns, 2 * columns, |first, part| {
        for (i, row) in part.chunks_exact_mut(columns).enumerate() {
            unpack_row(packing, packed, first + i, row);
        }
    });
}

/// Rows `ids` of the matrix as `f32`: `out` is [ids, columns].
///
/// # Errors
/// [`IndexOutOfRange`](crate::embed::IndexOutOfRange) for the first id that is no row; `out` is then unchanged.
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn gather_rows(
    packing: &Packing,
    packed: &[u8],
    ids: &[i32],
    out: &mut [f32],
) -> Result<(), crate::embed::IndexOutOfRange> {
    packing.check(packed);
    let columns = packing.columns;
    assert_eq!(out.len(), ids.len() * columns, "out is [{}, {columns}]", ids.len());
    crate::embed::check(ids, packing.rows)?;
    par_rows_mut(out, columns, 2 * columns, |first, part| {
        for (row, &id) in part.chunks_exact_mut(columns).zip(&ids[first..]) {
            unpack_row(packing, packed, id as usize, row);
        }
    });
    Ok(())
}

/// Puts rows of the format's bytes, all of the matrix, into the packing's order.
///
/// # Panics
/// If a slice is too short.
pub fn pack(packing: &Packing, rows: &[u8], packed: &mut [u8]) {
    let bytes = packing.bytes();
    match packing.layout {
        Layout::Rows => packed[..bytes].copy_from_slice(&rows[..bytes]),
        Layout::Tiles => pack_tiles(packing, 0, rows, packed),
    }
}

/// Puts some tiles' rows into their order: `rows` holds those from row `16 first_tile` on, `tiles` receives whole tiles from `first_tile` on,
/// as many as it holds. So a matrix can be read piece by piece into its place.
///
/// # Panics
/// If `rows` is too short for the tiles, or there are no tiles.
pub fn pack_tiles(packing: &Packing, first_tile: usize, rows: &[u8], tiles: &mut [u8]) {
    match Shape::of(packing.format) {
        Some(shape) => superblocks::pack(&shape, packing, first_tile, rows, tiles),
        None => layout::pack(packing, first_tile, rows, tiles),
    }
}

/// The format's own bytes of all rows: what [`pack`] was given.
///
/// # Panics
/// If a slice is too short.
pub fn unpack_bytes(packing: &Packing, packed: &[u8], rows: &mut [u8]) {
    packing.check(packed);
    match packing.layout {
        Layout::Rows => rows[..packing.bytes()].copy_from_slice(&packed[..packing.bytes()]),
        Layout::Tiles => match Shape::of(packing.format) {
            Some(shape) => superblocks::unpack(&shape, packing, packed, rows),
            None => layout::unpack(packing, packed, rows),
        },
    }
}

/// `y = activation(x w^T + bias) + residual`: `x` is [m, columns], `w` the packed matrix, `y` [m, rows].
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn linear(
    packing: &Packing,
    activations: Activations,
    m: usize,
    x: &[f32],
    w: &[u8],
    y: &mut [f32],
    epilogue: Epilogue,
) {
    let (n, k) = (packing.rows, packing.columns);
    packing.check(w);
    assert_eq!(x.len(), m * k, "x is [{m}, {k}]");
    assert_eq!(y.len(), m * n, "y is [{m}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    match packing.layout {
        Layout::Tiles => match Shape::of(packing.format) {
            Some(shape) if activations == Activations::Int8 => superblocks::linear(&shape, packing, m, x, w, y),
            Some(_) => return rows::linear(packing, m, x, w, y, epilogue),
            None => tiles::linear(packing, activations, m, x, w, y),
        },
        Layout::Rows if activations == Activations::F32 => return rows::linear(packing, m, x, w, y, epilogue),
        Layout::Rows => {
            let mut rounded = vec![0.0; x.len()];
            round_rows(k, x, &mut rounded);
            return rows::linear(packing, m, &rounded, w, y, epilogue);
        }
    }
    if !epilogue.is_none() {
        // A product without terms, added to `y`.
        gemm::gemm_epilogue(false, false, m, n, 0, &[], 0, &[], n, true, y, n, epilogue);
    }
}
