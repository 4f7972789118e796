//! Element types, shapes, and tensors on the host. The ground floor: every room above speaks in these.

use half::{bf16, f16};
use serde::Serialize;
use std::fmt;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    #[default]
    F32,
    /// IEEE 754 binary16: 11 significant bits, largest finite value 65 504. Stored two to a 32-bit word.
    F16,
    /// The upper half of an f32: its range, 8 significant bits. Stored two to a 32-bit word.
    Bf16,
    I32,
    U32,
    /// Stored packed, four to a 32-bit word (little endian), so a GPU can read it as `array<u32>`.
    I8,
}

impl DType {
    pub fn bytes(self) -> usize {
        match self {
            DType::I8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::F32 | DType::I32 | DType::U32 => 4,
        }
    }
    /// A floating-point type of 16 bits.
    pub fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::Bf16)
    }
    pub fn is_float(self) -> bool {
        self == DType::F32 || self.is_half()
    }
    /// The value nearest to `x` that the type holds (ties to even; beyond the range: infinity). Integers are truncated.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F32 => f64::from(x as f32),
            DType::F16 => f16::from_f64(x).to_f64(),
            DType::Bf16 => bf16::from_f64(x).to_f64(),
            DType::I32 | DType::U32 | DType::I8 => x.trunc(),
        }
    }
    /// The largest error of rounding a value of magnitude `x` to the type: half a unit in its last place.
    pub fn half_ulp(self, x: f64) -> f64 {
        let (bits, least) = match self {
            DType::F32 => (24, -126),
            DType::F16 => (11, -14),
            DType::Bf16 => (8, -126),
            DType::I32 | DType::U32 | DType::I8 => return 0.0,
        };
        let exponent = if x == 0.0 || !x.is_finite() { least } else { (x.abs().log2().floor() as i32).max(least) };
        f64::from(exponent - bits).exp2()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::I8 => "i8",
        })
    }
}

/// What is known of a tensor before it has values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl TensorType {
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        TensorType { dtype, shape: shape.to_vec() }
    }
    pub fn f32(shape: &[usize]) -> Self {
        Self::new(DType::F32, shape)
    }
    pub fn i32(shape: &[usize]) -> Self {
        Self::new(DType::I32, shape)
    }
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Size in bytes, rounded up to whole 32-bit words.
    pub fn bytes(&self) -> u64 {
        (self.elements() as u64 * self.dtype.bytes() as u64).next_multiple_of(4)
    }
    /// `(rows, width)` with the last axis as the row; a scalar is one row of one.
    pub fn rows(&self) -> (usize, usize) {
        let width = self.shape.last().copied().unwrap_or(1);
        (self.shape.iter().rev().skip(1).product(), width)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// Row-major strides in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1];
    }
    strides
}

/// NumPy broadcasting of two shapes, or `None` where they do not fit.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Strides (in elements) that read a tensor of shape `from` as if it had shape `to`: 0 along broadcast axes.
pub fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides(from);
    let lead = to.len() - from.len();
    (0..to.len()).map(|i| if i < lead || from[i - lead] == 1 && to[i] != 1 { 0 } else { own[i - lead] }).collect()
}

#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    I8(Vec<i8>),
}

/// A tensor in host memory, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub data: HostData,
}

impl HostTensor {
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        HostTensor { shape: shape.to_vec(), data: HostData::F32(data) }
    }
    pub fn i32(shape: &[usize], data: Vec<i32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        HostTensor { shape: shape.to_vec(), data: HostData::I32(data) }
    }
    pub fn u32(shape: &[usize], data: Vec<u32>) -> Self {
        HostTensor { shape: shape.to_vec(), data: HostData::U32(data) }
    }
    pub fn scalar(value: f32) -> Self {
        Self::f32(&[], vec![value])
    }
    pub fn zeros(ty: &TensorType) -> Self {
        Self::from_bytes(ty, &vec![0; ty.bytes() as usize])
    }
    pub fn ty(&self) -> TensorType {
        let dtype = match self.data {
            HostData::F32(_) => DType::F32,
            HostData::F16(_) => DType::F16,
            HostData::Bf16(_) => DType::Bf16,
            HostData::I32(_) => DType::I32,
            HostData::U32(_) => DType::U32,
            HostData::I8(_) => DType::I8,
        };
        TensorType { dtype, shape: self.shape.clone() }
    }
    /// The values as bytes, padded to whole words.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = match &self.data {
            HostData::F32(v) => bytemuck::cast_slice(v).to_vec(),
            HostData::F16(v) => bytemuck::cast_slice(v).to_vec(),
            HostData::Bf16(v) => bytemuck::cast_slice(v).to_vec(),
            HostData::I32(v) => bytemuck::cast_slice(v).to_vec(),
            HostData::U32(v) => bytemuck::cast_slice(v).to_vec(),
            HostData::I8(v) => bytemuck::cast_slice(v).to_vec(),
        };
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
    pub fn from_bytes(ty: &TensorType, bytes: &[u8]) -> Self {
        let n = ty.elements();
        let bytes = &bytes[..n * ty.dtype.bytes()];
        let data = match ty.dtype {
            DType::F32 => HostData::F32(bytemuck::pod_collect_to_vec(bytes)),
            DType::F16 => HostData::F16(bytemuck::pod_collect_to_vec(bytes)),
            DType::Bf16 => HostData::Bf16(bytemuck::pod_collect_to_vec(bytes)),
            DType::I32 => HostData::I32(bytemuck::pod_collect_to_vec(bytes)),
            DType::U32 => HostData::U32(bytemuck::pod_collect_to_vec(bytes)),
            DType::I8 => HostData::I8(bytemuck::pod_collect_to_vec(bytes)),
        };
        HostTensor { shape: ty.shape.clone(), data }
    }
    pub fn as_f32(&self) -> Option<&[f32]> {
        if let HostData::F32(v) = &self.data { Some(v) } else { None }
    }
    pub fn to_f64(&self) -> RefTensor {
        let data = match &self.data {
            HostData::F32(v) => v.iter().map(|&x| x as f64).collect(),
            HostData::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            HostData::Bf16(v) => v.iter().map(|x| x.to_f64()).collect(),
            HostData::I32(v) => v.iter().map(|&x| x as f64).collect(),
            HostData::U32(v) => v.iter().map(|&x| x as f64).collect(),
            HostData::I8(v) => v.iter().map(|&x| x as f64).collect(),
        };
        RefTensor { shape: self.shape.clone(), data }
    }
}

/// A tensor of the reference executor: everything is f64, integers too (exact to 2^53).
#[derive(Clone, Debug, PartialEq)]
pub struct RefTensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl RefTensor {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        RefTensor { shape: shape.to_vec(), data }
    }
    pub fn zeros(shape: &[usize]) -> Self {
        RefTensor { shape: shape.to_vec(), data: vec![0.0; shape.iter().product()] }
    }
    pub fn max_abs(&self) -> f64 {
        self.data.iter().fold(0.0, |m: f64, x| m.max(x.abs()))
    }
    /// Rounds to the storage type: what a device of this precision would hold.
    pub fn to_host(&self, dtype: DType) -> HostTensor {
        let data = match dtype {
            DType::F32 => HostData::F32(self.data.iter().map(|&x| x as f32).collect()),
            DType::F16 => HostData::F16(self.data.iter().map(|&x| f16::from_f64(x)).collect()),
            DType::Bf16 => HostData::Bf16(self.data.iter().map(|&x| bf16::from_f64(x)).collect()),
            DType::I32 => HostData::I32(self.data.iter().map(|&x| x as i32).collect()),
            DType::U32 => HostData::U32(self.data.iter().map(|&x| x as u32).collect()),
            DType::I8 => HostData::I8(self.data.iter().map(|&x| x as i8).collect()),
        };
        HostTensor { shape: self.shape.clone(), data }
    }
}
