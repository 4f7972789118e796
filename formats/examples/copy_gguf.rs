//! Reads a GGUF file and writes it again, key by key and tensor by tensor: `copy_gguf IN OUT`. What `scripts/check-gguf` compares.

use formats::gguf::{File, NewTensor, Writer};

fn main() -> formats::Result<()> {
    let [input, output] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("usage: copy_gguf IN OUT");
    let file = File::open(&input)?;
    let tensors = file.tensors().iter().map(NewTensor::like).collect();
    let mut writer = Writer::create(&output, file.metadata(), tensors)?;
    for tensor in file.tensors() {
        // by pieces, so that no tensor is in memory as a whole
        for piece in file.data(tensor).chunks(1 << 20) {
            writer.write(tensor.name(), piece)?;
        }
        file.release(tensor);
    }
    writer.finish()
}
