//! The programs in compiled languages that stories run (`mesh-user/tests/it/scripts`), compiled before them into
//! target/stories: a virtual machine sees them there, and would take minutes over it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    command::{command, note, output, step},
    paths,
};

/// A program's source, and the file that its compiler makes of it.
const JAVA: (&str, &str) = ("Channels.java", "Channels.class");
const GO: [(&str, &str); 2] = [("copies.go", "copies"), ("mtls.go", "mtls")];

/// Compiles what is older than its source, or says why its stories will fail.
pub(crate) fn ensure() {
    if let Err(error) = try_ensure() {
        note(&format!("the stories in Java and Go will fail: {error:#}"));
    }
}

fn try_ensure() -> Result<()> {
    let folder = paths::target()?.join("stories");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    if let Some(source) = newer_source(&folder, JAVA) {
        step("a story's program in Java");
        output(command("javac", ["-d"]).arg(&folder).arg(source))?;
    }
    for program in GO {
        let Some(source) = newer_source(&folder, program) else { continue };
        step("a story's program in Go");
        let mut go = command("go", ["build", "-o"]);
        go.arg(folder.join(program.1)).arg(source).current_dir(&folder);
        go.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOTOOLCHAIN", "local");
        output(go.env("GOCACHE", folder.join("go-cache")))?;
    }
    Ok(())
}

fn newer_source(folder: &Path, (source, made): (&str, &str)) -> Option<PathBuf> {
    let source = paths::workspace().join("mesh-user/tests/it/scripts").join(source);
    let written = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    (written(&folder.join(made)) <= written(&source)).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_compiled_when_it_is_missing_or_older_than_its_source() {
        let folder = tempfile::tempdir().unwrap();
        for program in GO.into_iter().chain([JAVA]) {
            assert!(newer_source(folder.path(), program).is_some_and(|source| source.is_file()));
            fs::write(folder.path().join(program.1), "").unwrap();
            assert_eq!(newer_source(folder.path(), program), None);
        }
    }
}
