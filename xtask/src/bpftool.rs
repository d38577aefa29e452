//! Ubuntu's `bpftool` is a script that runs the one built with the running kernel, which a virtual machine with
//! another kernel does not have. Any build of it will do: the newest is linked into target/tools/bin.

use std::{
    fs,
    io::Read,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::paths;

/// Links a real one where the one on PATH is a script.
pub(crate) fn ensure() -> Result<()> {
    let Some(installed) = paths::find_program("bpftool") else { return Ok(()) };
    if !is_script(&installed) {
        return Ok(());
    }
    let Some(real) = newest(&builds(Path::new("/usr/lib"))) else { return Ok(()) };
    let link = paths::tools()?.join("bpftool");
    if fs::read_link(&link).is_ok_and(|there| there == real) {
        return Ok(());
    }
    fs::create_dir_all(paths::tools()?)?;
    // Gone already, or of an older kernel.
    let _ = fs::remove_file(&link);
    symlink(&real, &link).with_context(|| format!("cannot link {}", link.display()))
}

fn is_script(program: &Path) -> bool {
    let mut head = [0; 2];
    fs::File::open(program).and_then(|mut file| file.read_exact(&mut head)).is_ok() && &head == b"#!"
}

/// `<root>/linux-tools-6.8.0-88/bpftool`
fn builds(root: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(root).into_iter().flatten().flatten();
    let tools = folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("linux-tools-"));
    tools.map(|entry| entry.path().join("bpftool")).filter(|path| path.is_file()).collect()
}

/// The newest by the numbers in its path.
fn newest(builds: &[PathBuf]) -> Option<PathBuf> {
    let numbers = |path: &PathBuf| -> Vec<u64> {
        let text = path.to_string_lossy().into_owned();
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    builds.iter().max_by_key(|path| numbers(path)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_build_is_chosen_by_number() {
        let builds = ["/usr/lib/linux-tools-6.8.0-9/bpftool", "/usr/lib/linux-tools-6.8.0-88/bpftool"];
        let builds = builds.map(PathBuf::from);
        assert_eq!(newest(&builds), Some(builds[1].clone()));
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn a_script_is_told_from_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(is_script(&script) && !is_script(Path::new("/proc/self/exe")));
    }
}
