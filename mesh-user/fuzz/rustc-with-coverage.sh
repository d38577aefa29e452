#!/bin/sh
# RUSTC_WORKSPACE_WRAPPER of `cargo xtask fuzz`: compiles meshd's own crates as cargo-fuzz would, with what libFuzzer
# wants to know and every check that a debug build has. Dependencies stay as they are shipped, and are shared with the
# other builds. Build scripts run on their own, without libFuzzer.
case " $* " in
*" --crate-name build_script_build "*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing -Copt-level=1 -Cdebug-assertions=on -Coverflow-checks=on -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-sanitizer-coverage-stack-depth
