use std::process::ExitCode;

fn main() -> ExitCode {
    moltinit::cli::main()
}
