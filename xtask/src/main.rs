//! Everything a person or CI types: `cargo xtask setup | build | test | fuzz | bogo | demo | bench | vm | kube | kubelet | lint | clean`.
//!
//! This file only parses arguments and hands over. Set-up is idempotent and cached; what it cannot do
//! (no root, no network, another distribution) it says, it never guesses.

mod bench;
mod bogo;
mod bogo_runner;
mod bpftool;
mod command;
mod compilers;
mod console;
mod debian_archive;
mod demo;
mod deny;
mod diagnosis;
mod ebpf;
mod envoy;
mod fuzz;
mod helm;
mod host;
mod image;
mod initramfs;
mod kernel_packages;
mod kernels;
mod kube;
mod kube_build;
mod kubelet;
mod leftovers;
mod libtest;
mod lint;
mod machines;
mod once;
mod openid;
mod packages;
mod paths;
mod process;
mod qemu;
mod report;
mod setup;
mod spiffe;
mod story;
mod story_programs;
mod systemd;
mod tables;
mod test;
mod toolchain;
mod venv;
mod verdicts;
mod virtiofs;
mod vm;
mod vm_script;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

/// Set-up, build, tests, demo and virtual machines of meshd.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need: packages, compiler and linker for eBPF, kernels for the VMs
    Setup {
        /// Leave out what only the virtual machines need
        #[arg(long)]
        no_vm: bool,
    },
    /// Compile the eBPF programs, then meshd and meshctl (release)
    Build,
    /// Make target/image/meshd.tar, an OCI image of meshd and meshctl linked statically; no container engine is needed
    Image(image::ImageArgs),
    /// Run every test level; does all set-up first
    Test(TestArgs),
    /// Feed what meshd parses with made-up inputs: the committed corpora, then new ones; crashes go to target/fuzz
    Fuzz(fuzz::FuzzArgs),
    /// Run `BoringSSL`'s TLS test runner (`BoGo`) against meshd's handshake and userspace relay
    Bogo(bogo::BogoArgs),
    /// Show meshd at work with real programs; does all set-up first
    Demo(demo::DemoArgs),
    /// Measure meshd against plain TCP and other meshes; does all set-up first
    Bench(bench::BenchArgs),
    /// The demo itself, where everything is built: `demo` runs it here or in a virtual machine
    #[command(hide = true)]
    Story {
        /// Where meshd and meshctl are
        #[arg(long)]
        bin_dir: std::path::PathBuf,
        /// In colours
        #[arg(long)]
        colour: bool,
    },
    /// Run a command in a virtual machine that sees this machine's files read-only under a scratch layer
    Vm(VmArgs),
    /// Print the folder of a real Kubernetes API server for tests (`KUBEBUILDER_ASSETS`), after building one if there is none
    Kube,
    /// Run deploy/kubernetes on Kubernetes' own kubelet and containerd in a virtual machine
    Kubelet {
        /// Where meshd and meshctl are, if not to be built
        #[arg(long)]
        bin_dir: Option<std::path::PathBuf>,
    },
    /// Formatting, clippy and licences, as CI checks them
    #[command(alias = "ci-lint")]
    Lint,
    /// Fill the column `kernels` of the tables in docs from what the last runs of the tests said
    Tables,
    /// Remove the kernels, initramfs and tools that set-up cached under target/
    Clean,
}

#[derive(Args)]
pub(crate) struct TestArgs {
    /// Leave out the virtual machines
    #[arg(long, conflicts_with = "kernel")]
    quick: bool,
    /// Only this kernel's virtual machine and the native level (may be repeated)
    #[arg(long, value_name = "KERNEL", value_parser = kernels::parse_series)]
    kernel: Vec<kernels::Series>,
    /// Only tests whose name contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Args)]
struct VmArgs {
    /// 6.1, 6.12 or 7.3
    #[arg(long, value_name = "KERNEL", default_value = "6.12", value_parser = kernels::parse_series)]
    kernel: kernels::Series,
    /// Stop the machine after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Let the guest's clock count instructions, a nanosecond each
    #[arg(long)]
    count_instructions: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    // The story has a stagehand, who clears the stage when it is gone.
    if !matches!(task, Task::Story { .. }) {
        leftovers::remove_on_signal().context("cannot wait for signals")?;
    }
    match task {
        Task::Setup { no_vm } => {
            setup::for_tests()?;
            toolchain::ensure()?;
            deny::ensure()?;
            envoy::ensure();
            helm::ensure();
            openid::ensure();
            spiffe::ensure();
            story_programs::ensure();
            kube::ensure();
            if !no_vm {
                for series in kernels::ALL {
                    setup::for_vm(series)?;
                }
            }
        }
        Task::Build => setup::build()?,
        Task::Image(args) => image::image(&args)?,
        Task::Test(args) => return test::run(&args),
        Task::Fuzz(args) => return fuzz::run_alone(&args),
        Task::Bogo(args) => return bogo::run_alone(&args),
        Task::Demo(args) => return demo::run(&args),
        Task::Bench(args) => return bench::run(&args),
        Task::Story { bin_dir, colour } => story::run(&bin_dir, colour)?,
        Task::Vm(args) => return run_vm(&args),
        Task::Kube => kube::run()?,
        Task::Kubelet { bin_dir } => return kubelet::run_alone(bin_dir),
        Task::Lint => return lint::run_alone(),
        Task::Tables => tables::run()?,
        Task::Clean => setup::clean()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_vm(args: &VmArgs) -> Result<ExitCode> {
    let kernel = setup::for_vm(args.kernel)?;
    let guest = vm::Guest {
        kernel: &kernel,
        command: args.command.clone(),
        env: Vec::new(),
        timeout: Duration::from_secs(args.timeout),
        clock: if args.count_instructions { vm::Clock::Instructions } else { vm::Clock::Time },
    };
    let outcome = guest.run(|line| println!("{line}"))?;
    command::note(&format!(
        "{} booted in {:.1} s, ran for {:.1} s, exit code {}",
        kernel.release,
        outcome.boot.as_secs_f64(),
        outcome.ran.as_secs_f64(),
        outcome.exit_code
    ));
    Ok(ExitCode::from(u8::try_from(outcome.exit_code).unwrap_or(1)))
}
