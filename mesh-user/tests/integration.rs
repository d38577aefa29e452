//! Whole-system tests: unmodified programs in network namespaces, two `meshd` processes between them, and a
//! packet capture on the wire as the judge. They need root, make everything they use under names that carry this
//! process's id, and remove it again, also after a panic, a timeout or Ctrl-C.
//!
//! They must never touch the machine's own interfaces, its cgroup root or a process they did not start.

mod it;

fn main() -> std::process::ExitCode {
    it::harness::main()
}
