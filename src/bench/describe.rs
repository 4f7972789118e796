//! `bench --describe`: what is measured, how, in which unit, and how to read the chart.

use super::compare::{LEAST, QUARTILES};

/// Plain text of at most 100 columns.
pub fn describe() -> String {
    TEXT.replace("{least}", &format!("{:.0}", 100.0 * LEAST)).replace("{quartiles}", &QUARTILES.to_string())
}

const TEXT: &str = "\
THE IDEA
  A kernel (one operation on a device: a matrix product, a softmax) does arithmetic on numbers that it moves to and from
  memory. Whichever takes longer decides how long the kernel takes. The roofline draws both limits of a device and puts each
  kernel of this program under them, so that one look tells what limits it and how much there is left to win.

  Every number is measured here, on this machine, through the same code paths the program trains with. Nothing comes from a
  data sheet.

THE CHART
  across    arithmetic intensity, in FLOP per byte: additions and multiplications that a kernel does for each byte it moves.
            A copy has 0, adding two vectors 1/12, a large matrix product hundreds.
  up        speed, in GFLOP/s: billions of additions and multiplications in a second. Both scales are logarithmic.
  slope     the memory roof: intensity times bandwidth. A kernel under it waits for memory; faster arithmetic would not help,
            moving fewer bytes would (fusing kernels, 16-bit numbers, smaller caches' reuse).
  flat      the arithmetic roof: as fast as the device multiplies and adds. A kernel under it is as good as its share of it.
  corner    where the two meet: the critical intensity, in FLOP per byte. Left of it memory is the limit, right of it arithmetic.
  faint     slopes of the caches, for kernels whose numbers fit in one, and flat lines of other kinds of arithmetic.
  dots      kernels. A dot on its roof cannot get faster on this device; a dot at 10 % of its roof has ten times to win. Dots
            at the left edge do no arithmetic: they only move data.
  A dot clearly above its roof means that its cost or the ceiling is wrong: please report it.

DEVICES
  cpu1      the CPU with one thread.
  cpu       the CPU with all threads the program uses.
  gpu:N     each GPU. A software GPU (llvmpipe, WARP) is the CPU in disguise: good for tests, never for speed.

CEILINGS
  arithmetic  FLOP/s (OP/s for integers), counting a multiply-add as two. Long chains of independent multiply-adds in
              registers, with nothing read from memory; f32, and f16, bf16 or int8 dot products where the device has them.
  memory      bytes/s that a loop over arrays reaches, for working sets from 4 KiB to what fits: read, write, copy (one read, one
              write), triad (a = b + s c: two reads, one write) and update (a = a + s b). Bytes read and bytes written both
              count; the read that a cache does by itself before a write does not. Plateaus of that curve are the levels:
              caches, then main memory.
  workgroup memory, upload, download
              bytes/s of a GPU's on-chip shared memory, and between the host and the device.
  strides     seconds of one access when each touches another place, so many bytes further on: what reading a matrix down its
              columns costs.
  overheads   seconds: one dispatch (starting a kernel), one pass, one submission, one map-back (waiting for a result), making
              a pipeline (compiling a kernel); on the CPU one call, and one fork and join of the threads.

DOTS
  Every operator, forward and backward, at sizes that matter to training; whole training steps; prefill (reading a prompt) and
  decode (one new token). FLOPs and bytes are the operator's own count: each input read once, each result written once.
  time        median of repeated runs after a warm-up, on the same inputs: a dot whose operands stay in a cache is held against
              that cache's bandwidth; \u{b1} is half the distance between the first and the third quartile. On a GPU with
              time stamps, the time on the device; the wall clock is in the JSON beside it.
  GFLOP/s, GB/s   FLOPs and bytes over that time.
  of roof     the least time that the ceilings allow, over the time taken: 100 % is a kernel at its roof.
  limit       what that least time is spent on: a kind of arithmetic, a level of memory, or launching (the work is so small that
              starting it costs more).
  tokens/s    of a step, a prefill or a decode.

WHERE A GPU PAYS OFF
  For each operator, the smallest size measured from which on the GPU beats the CPU with all threads at every larger size.
  `--device auto` uses the whole step's.

DOUBTS
  A run says when its numbers are doubtful: spreads above a few percent, times that grew from the first third of the samples to
  the last (heat, clocks), a laptop on battery. Close other programs, plug it in, and measure again.

COMPARING
  --compare old.json matches devices by name, driver and threads, and dots by operator, case and direction. A dot is called
  faster or slower when its median changed by more than {least} % and by more than {quartiles} times the quartile distances
  of both runs (added as squares), and its best time changed by more than half of that too. Where the ceilings themselves
  moved, the machine was not the same, and a dot must have changed by more than they did. Something slower ends the program
  with exit code 9.

FILES
  roofline.json  everything above, as numbers (schema: docs/roofline.schema.json). roofline.svg and roofline.png  the chart.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_fits_a_terminal_and_has_its_numbers() {
        let text = describe();
        assert!(!text.contains('{') && text.contains("more than 5 %") && text.contains("more than 2 times"));
        for line in text.lines() {
            assert!(line.chars().count() <= 132, "{} columns: {line}", line.chars().count());
        }
    }
}
