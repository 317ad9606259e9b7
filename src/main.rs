//! The `moeray` program; all of it is in [`moeray::cli`].

fn main() -> std::process::ExitCode {
    moeray::cli::main()
}
