fn main() -> std::process::ExitCode {
    // Mesa's layer that orders GPUs by the desktop's wishes complains on stderr where there is no desktop session.
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    lynx_gpu::cli::main()
}
