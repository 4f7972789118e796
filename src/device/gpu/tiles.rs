//! Which form of a kernel a device is given: one table by class of device, every choice there is, and what a choice asks of a device.
//! A tuner (`tune`) may replace the table's row by what it measured; nothing else decides.

use super::lowering::Caps;
use serde::{Deserialize, Serialize};

/// What kind of hardware a device is, as far as the shapes of kernels go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A CPU that plays a GPU: barriers and workgroup memory are slow, and few workgroups keep it busy.
    Software,
    /// Shares memory with the CPU; few registers for each invocation.
    Integrated,
    /// Memory of its own, subgroups of 32 or more.
    Discrete,
    Apple,
    /// Nothing is known but the limits.
    Unknown,
}

/// Forms of the matrix product. `(rows, columns)` is what one tile computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatmulForm {
    /// 8 x 8 an invocation, registers only.
    Direct,
    /// 16 rows by 8 columns a lane; rows of A are shared within a subgroup of a fixed size, no workgroup memory.
    Subgroup,
    /// 64 x 64 a workgroup of 256 invocations, 4 x 4 each, through workgroup memory.
    Tiled64,
    /// 128 x 128 a workgroup of 256 invocations, 8 x 8 each, through workgroup memory.
    Tiled128,
    /// Cooperative matrices: operands rounded to f16, sums in f32 (`matmul_cooperative.wgsl` has the error bound). In no row of the
    /// table: an f32 product must not lose bits unasked.
    Cooperative,
}

/// What a product through cooperative matrices may be off by, for a person. Each operand is rounded to f16 (relative error 2^-11 in
/// f16's normal range, absolute 2^-25 below it; beyond 65504 it is cut off), products are exact in f32, and sums round in f32:
/// |error| <= (2 * 2^-11 + 2^-22 + K 2^-24) * sum |a b| for K terms.
pub const COOPERATIVE_ERROR: &str = "round operands to f16: an error of up to 0.001 of the sum of |a b|, and K / 2^24 of it for the additions; \
     for operands stored as f16 nothing is rounded";

/// Invocations that share one result of a matrix-vector product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GemvForm {
    /// One, or one subgroup where the matrix lies along the sum.
    Lone,
    /// A part of a workgroup of 64.
    Team64,
    /// A part of a workgroup of 256.
    Team256,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionForm {
    /// An invocation for each row, nothing shared.
    Rows,
    /// Tiles of 32 x 32 scores in at most 15 KiB of workgroup memory.
    Tiles,
}

/// Invocations that share one row of a softmax, norm or reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowForm {
    /// A subgroup, alone in its workgroup, for rows of any width.
    Subgroup,
    /// A subgroup for rows of up to 1024 elements, several in a workgroup of at least 64; 256 invocations for wider rows.
    PackedSubgroups,
    /// A workgroup: 64 invocations for rows of up to 1024 elements, else 256.
    Workgroup,
}

/// One row of the table. All of it is compared with, and stored as, plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Choices {
    /// For products of at least `large_tiles` tiles of this form ...
    pub matmul: MatmulForm,
    /// ... and for others.
    pub matmul_small: MatmulForm,
    pub large_tiles: usize,
    pub gemv: GemvForm,
    /// Products with at most this many rows or columns are matrix-vector products (at most 4).
    pub gemv_rows: usize,
    /// The sum of a product is split until there are about so many tiles (0: never) ...
    pub split_tiles: usize,
    /// ... but not into parts of fewer terms.
    pub split_terms: usize,
    pub attention: AttentionForm,
    pub rows: RowForm,
    /// Invocations that keep the device busy in a reduction over columns.
    pub busy_invocations: usize,
}

const SOFTWARE: Choices = Choices {
    matmul: MatmulForm::Subgroup,
    matmul_small: MatmulForm::Direct,
    large_tiles: 1,
    gemv: GemvForm::Lone,
    gemv_rows: 4,
    split_tiles: 8,
    split_terms: 256,
    attention: AttentionForm::Rows,
    rows: RowForm::Subgroup,
    // Short blocks: a subgroup goes down all rows of its block before the next one starts, and reads a little of each.
    busy_invocations: 1 << 17,
};

const INTEGRATED: Choices = Choices {
    matmul: MatmulForm::Tiled64,
    matmul_small: MatmulForm::Tiled64,
    large_tiles: 1,
    gemv: GemvForm::Team256,
    gemv_rows: 4,
    split_tiles: 64,
    split_terms: 256,
    attention: AttentionForm::Tiles,
    rows: RowForm::PackedSubgroups,
    busy_invocations: 8192,
};

// 64 sums an invocation need the registers of a GPU whose subgroups are 32 or more wide, and 96 such tiles to keep it busy.
const DISCRETE: Choices =
    Choices { matmul: MatmulForm::Tiled128, large_tiles: 96, split_tiles: 128, busy_invocations: 16384, ..INTEGRATED };

const APPLE: Choices = Choices { split_tiles: 64, ..DISCRETE };

const UNKNOWN: Choices = Choices { split_tiles: 128, busy_invocations: 16384, ..INTEGRATED };

/// Rows of this many elements are wide.
pub const WIDE_ROW: usize = 1024;

/// The largest subgroup that `RowForm` deals with.
const LARGEST_SUBGROUP: u32 = 256;

impl Class {
    /// The row of the table.
    pub fn choices(self) -> Choices {
        match self {
            Class::Software => SOFTWARE,
            Class::Integrated => INTEGRATED,
            Class::Discrete => DISCRETE,
            Class::Apple => APPLE,
            Class::Unknown => UNKNOWN,
        }
    }
}

/// Invocations of a workgroup that multiplies cooperative matrices, four subgroups at least, and how many subgroups there may be.
pub fn cooperative_teams(caps: &Caps) -> (u32, u32) {
    let (least, most) = caps.subgroup_sizes;
    (4 * most, 4 * most / least.max(1))
}

impl MatmulForm {
    pub const ALL: [MatmulForm; 5] =
        [MatmulForm::Direct, MatmulForm::Subgroup, MatmulForm::Tiled64, MatmulForm::Tiled128, MatmulForm::Cooperative];

    /// What a tile computes on this device.
    pub fn tile(self, caps: &Caps) -> (usize, usize) {
        match self {
            MatmulForm::Direct => (8, 8),
            MatmulForm::Subgroup => (16, 8 * caps.subgroup_sizes.1 as usize),
            MatmulForm::Tiled64 | MatmulForm::Cooperative => (64, 64),
            MatmulForm::Tiled128 => (128, 128),
        }
    }

    /// Whether a device with these capabilities can run it.
    pub fn fits(self, caps: &Caps) -> bool {
        let (least, most) = caps.subgroup_sizes;
        match self {
            MatmulForm::Subgroup => caps.features.subgroups && least == most && matches!(most, 4 | 8 | 16),
            MatmulForm::Cooperative => {
                let features = caps.features.cooperative_matrix && caps.features.subgroups;
                let known = matches!(caps.cooperative_size, 8 | 16) && least > 0 && most <= 64;
                features && known && {
                    // Two tiles of f16, padded, and a fragment of f32 for each subgroup.
                    let (threads, teams) = cooperative_teams(caps);
                    let bytes = 2 * (64 * 40 + 32 * 72) + 4 * teams * caps.cooperative_size.pow(2);
                    threads <= caps.limits.max_invocations && bytes <= caps.limits.workgroup_memory
                }
            }
            MatmulForm::Tiled64 | MatmulForm::Tiled128 => {
                caps.limits.workgroup_memory >= 13 << 10 && caps.limits.max_invocations >= 256
            }
            MatmulForm::Direct => true,
        }
    }
}

impl RowForm {
    /// The form that is used where this one was chosen: subgroups where there are any, of a size that fits.
    pub fn available(self, caps: &Caps) -> RowForm {
        match caps.features.subgroups && caps.subgroup_sizes.1 <= LARGEST_SUBGROUP {
            true => self,
            false => RowForm::Workgroup,
        }
    }
}

impl Choices {
    /// What `caps` is given: what was measured on it, else the table's row.
    pub fn of(caps: &Caps) -> Choices {
        caps.tuned.unwrap_or_else(|| caps.class().choices())
    }

    /// Every row of the table, and from each every single change that a tuner may make.
    pub fn all() -> Vec<Choices> {
        let classes = [Class::Software, Class::Integrated, Class::Discrete, Class::Apple, Class::Unknown];
        let mut all = Vec::new();
        for row in classes.map(Class::choices) {
            all.push(row);
            for change in Change::all() {
                all.push(change.of(row));
            }
        }
        let mut seen = std::collections::HashSet::new();
        all.retain(|c| seen.insert(*c));
        all
    }

    /// Why a device with these capabilities cannot be given this; None if it can.
    pub fn misfit(&self, caps: &Caps) -> Option<String> {
        let forms = [self.matmul, self.matmul_small];
        if let Some(form) = forms.iter().find(|f| !f.fits(caps)) {
            return Some(format!("it cannot run the matrix product {form:?}"));
        }
        if !(1..=4).contains(&self.gemv_rows) || self.split_terms < 64 || self.busy_invocations == 0 {
            return Some("its numbers are out of range".into());
        }
        None
    }
}

/// Kernels whose forms are chosen together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Matmul,
    Split,
    Gemv,
    Attention,
    Rows,
    Columns,
}

impl Family {
    pub const ALL: [Family; 6] =
        [Family::Matmul, Family::Split, Family::Gemv, Family::Attention, Family::Rows, Family::Columns];

    /// Operators whose kernels its forms change: parts of their names.
    pub fn operators(self) -> &'static [&'static str] {
        match self {
            Family::Matmul | Family::Split | Family::Gemv => &["matmul"],
            Family::Attention => &["attention", "episodic_read"],
            Family::Rows => &["softmax", "norm", "cross_entropy", "reduce"],
            Family::Columns => &["reduce", "norm"],
        }
    }
}

/// One change to a row of the table: what the tuner tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Large and small products alike.
    Matmul(MatmulForm),
    /// Large products only.
    MatmulLarge(MatmulForm),
    Gemv(GemvForm),
    GemvRows(usize),
    Split(usize),
    Attention(AttentionForm),
    Rows(RowForm),
    Busy(usize),
}

impl Change {
    pub fn all() -> Vec<Change> {
        let mut all: Vec<Change> = Vec::new();
        all.extend(MatmulForm::ALL.map(Change::Matmul));
        all.push(Change::MatmulLarge(MatmulForm::Tiled128));
        all.extend([GemvForm::Lone, GemvForm::Team64, GemvForm::Team256].map(Change::Gemv));
        all.extend([1, 2, 4].map(Change::GemvRows));
        all.extend([0, 8, 64, 128, 512].map(Change::Split));
        all.extend([AttentionForm::Rows, AttentionForm::Tiles].map(Change::Attention));
        all.extend([RowForm::Subgroup, RowForm::PackedSubgroups, RowForm::Workgroup].map(Change::Rows));
        all.extend([512, 16384, 1 << 17].map(Change::Busy));
        all
    }

    pub fn of(self, row: Choices) -> Choices {
        match self {
            Change::Matmul(form) => Choices { matmul: form, matmul_small: form, large_tiles: 1, ..row },
            Change::MatmulLarge(form) => Choices { matmul: form, large_tiles: 96, ..row },
            Change::Gemv(gemv) => Choices { gemv, ..row },
            Change::GemvRows(gemv_rows) => Choices { gemv_rows, ..row },
            Change::Split(split_tiles) => Choices { split_tiles, ..row },
            Change::Attention(attention) => Choices { attention, ..row },
            Change::Rows(rows) => Choices { rows, ..row },
            Change::Busy(busy_invocations) => Choices { busy_invocations, ..row },
        }
    }

    pub fn family(self) -> Family {
        match self {
            Change::Matmul(_) | Change::MatmulLarge(_) => Family::Matmul,
            Change::Split(_) => Family::Split,
            Change::Gemv(_) | Change::GemvRows(_) => Family::Gemv,
            Change::Attention(_) => Family::Attention,
            Change::Rows(_) => Family::Rows,
            Change::Busy(_) => Family::Columns,
        }
    }

    /// Whether f32 products stay products of f32: what the tuner may choose unasked.
    pub fn keeps_f32(self) -> bool {
        !matches!(self, Change::Matmul(MatmulForm::Cooperative) | Change::MatmulLarge(MatmulForm::Cooperative))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::Features;

    #[test]
    fn every_row_of_the_table_is_among_all_choices_and_none_rounds_to_f16() {
        let all = Choices::all();
        for class in [Class::Software, Class::Integrated, Class::Discrete, Class::Apple, Class::Unknown] {
            let row = class.choices();
            assert!(all.contains(&row), "{class:?}");
            assert!(row.matmul != MatmulForm::Cooperative && row.matmul_small != MatmulForm::Cooperative, "{class:?}");
        }
    }

    #[test]
    fn a_tuned_row_wins_over_the_table_and_software_over_the_class_of_the_driver() {
        let caps = Caps { class: Class::Discrete, ..Caps::PLAIN };
        assert_eq!(Choices::of(&caps), DISCRETE);
        assert_eq!(Choices::of(&Caps { software: true, ..caps }), SOFTWARE);
        let tuned = Choices { split_tiles: 7, ..APPLE };
        assert_eq!(Choices::of(&Caps { tuned: Some(tuned), ..caps }), tuned);
    }

    #[test]
    fn what_a_device_cannot_run_is_refused_with_the_reason() {
        let plain = Caps::PLAIN;
        assert_eq!(INTEGRATED.misfit(&plain), None);
        assert!(Choices { matmul: MatmulForm::Subgroup, ..INTEGRATED }.misfit(&plain).unwrap().contains("Subgroup"));
        assert!(Choices { gemv_rows: 5, ..INTEGRATED }.misfit(&plain).unwrap().contains("range"));
        let features = Features { cooperative_matrix: true, subgroups: true, ..Features::NONE };
        let cooperative = Choices { matmul: MatmulForm::Cooperative, ..INTEGRATED };
        assert!(cooperative.misfit(&plain).is_some());
        let offered = Caps { features, cooperative_size: 16, subgroup_sizes: (32, 32), ..plain };
        assert_eq!(cooperative.misfit(&offered), None);
        // Subgroups of 32 or 64: eight fragments do not fit WebGPU's 16 KiB.
        assert!(cooperative.misfit(&Caps { subgroup_sizes: (32, 64), ..offered }).is_some());
    }
}
