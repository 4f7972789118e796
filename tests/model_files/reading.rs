//! Folders of `transformers` give its logits here.

use crate::common::{WHOLE, devices, every, fixture, golden, worst};
use lynx_gpu::device::Device;
use lynx_gpu::models::files;

#[test]
fn logits_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for device in devices() {
        for name in every().filter(|name| matches!(device, Device::Cpu) || WHOLE.contains(name)) {
            let model = files::open(&fixture(name, dir.path())).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(model.notes.is_empty(), "{name}: {:?}", model.notes);
            let (ids, expected) = golden(name);
            let worst = worst(&model, device.clone(), &ids, &expected);
            eprintln!("{name} on {}: {worst:.2e}", device.name());
            assert!(worst < 1e-4, "{name} on {}: logits differ by {worst:.2e} of the largest", device.name());
        }
    }
}
