//! The program `gru`. Everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_mesa();
    gru_cli::main()
}

/// Silences Mesa's device-select layer. Without a display session it prints an `error:` line for
/// each adapter, as if this program had failed.
fn quiet_mesa() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none()
        && std::env::var_os("MESA_VK_DEVICE_SELECT").is_none()
    {
        // SAFETY: main calls this first, before any thread is started, so no other code can read
        // the environment at the same time.
        #[allow(unsafe_code, reason = "edition 2024 marks set_var; the proof is above")]
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
}
