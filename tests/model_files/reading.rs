//! Folders of `transformers` give its logits here.

use crate::common::{every, fixture, golden, worst};
use lynx_gpu::device::Device;
use lynx_gpu::models::files;

#[test]
fn logits_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for name in every() {
        let model = files::open(&fixture(name, dir.path())).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(model.notes.is_empty(), "{name}: {:?}", model.notes);
        let (ids, expected) = golden(name);
        let worst = worst(&model, Device::Cpu, &ids, &expected);
        eprintln!("{name}: {worst:.2e}");
        assert!(worst < 1e-4, "{name}: logits differ by {worst:.2e} of the largest");
    }
}
