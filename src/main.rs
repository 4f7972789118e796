fn main() -> std::process::ExitCode {
    lynx_gpu::cli::main()
}
