//! `BoringSSL`'s TLS test runner: its source from Debian's archive, verified with Debian's keys, built by Debian's Go with
//! Debian's packages of golang.org/x. Nothing of it is in our tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    command::{command, note, output},
    debian_archive::Archive,
    kernels::remove_folder,
    once::make_once,
    packages::{self, FOR_BOGO},
    paths,
    setup::needs,
};

/// Android's copy: the one source package of Debian 12 that has the runner.
const SOURCE: &str = "android-platform-external-boringssl";
/// Where Debian's Go packages are, laid out as GOPATH has it.
const DEBIANS_GO: &str = "/usr/share/gocode";
/// The name that the runner's own packages import each other by.
const IMPORTED_AS: &str = "go/src/boringssl.googlesource.com/boringssl";
/// Changed whenever what is built from the same source is another thing.
const EDITION: &str = "2";

/// What is changed in the runner: where, and what is put behind it.
const CHANGES: [(&str, &str); 2] = [
    // meshd serves nobody without a certificate, and few tests of servers give their client one. Those that want none
    // say so by this flag.
    (
        "\t\t\tconfig.ServerName = \"test\"\n\t\t}\n",
        "\t\thasNone := false\n\
         \t\tfor _, flag := range test.flags {\n\
         \t\t\thasNone = hasNone || flag == \"-require-any-client-certificate\"\n\
         \t\t}\n\
         \t\tif len(config.Certificates) == 0 && !hasNone {\n\
         \t\t\tconfig.Certificates = []Certificate{rsaCertificate}\n\
         \t\t}\n",
    ),
    // So that they can be counted.
    ("\t\t\t\tif isDisabled {\n", "\t\t\t\t\tfmt.Printf(\"DISABLED (%s)\\n\", testCases[i].name)\n"),
];

/// The runner, built.
pub(crate) struct Runner {
    pub(crate) program: PathBuf,
    /// Its keys and certificates.
    pub(crate) folder: PathBuf,
}

/// Fetches and builds what is not here yet.
pub(crate) fn ensure() -> Result<Runner> {
    packages::ensure(&needs(FOR_BOGO), "BoringSSL's test runner")?;
    let folder = paths::target()?.join("bogo");
    let tree = folder.join(IMPORTED_AS);
    let runner = Runner { program: folder.join("runner"), folder: tree.join("ssl/test/runner") };
    let what = "BoringSSL's test runner (download, build; once)";
    make_once(&folder.join("built"), EDITION, what, |folder| {
        unpack(folder, &tree).context("cannot get BoringSSL's test runner")?;
        change(&runner.folder.join("runner.go"))?;
        build(folder, &tree, &runner.program)
    })?;
    Ok(runner)
}

/// Only the runner and what it imports, with the licence.
fn unpack(folder: &Path, tree: &Path) -> Result<()> {
    let fetched = folder.join("fetched");
    for made in [&fetched, tree] {
        fs::create_dir_all(made).with_context(|| format!("cannot create {}", made.display()))?;
    }
    Archive::open_sources(&folder.join("apt"))?.fetch_source(SOURCE, &fetched)?;
    let files = fs::read_dir(&fetched)?.flatten().map(|entry| entry.path());
    let source = files
        .into_iter()
        .find(|path| path.to_string_lossy().contains(".orig.tar."))
        .with_context(|| format!("{SOURCE} came without its source"))?;
    let mut tar = command("tar", ["--extract", "--strip-components=2", "--wildcards"]);
    tar.args(["--file".as_ref(), source.as_os_str(), "--directory".as_ref(), tree.as_os_str()]);
    output(tar.args(["*/src/ssl/test/runner", "*/src/util/testresult", "*/src/LICENSE"]))?;
    remove_folder(&fetched)
}

fn change(file: &Path) -> Result<()> {
    let source = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(file, changed(&source)?).with_context(|| format!("cannot write {}", file.display()))
}

fn changed(source: &str) -> Result<String> {
    CHANGES.iter().try_fold(source.to_owned(), |source, (place, addition)| {
        ensure!(
            source.matches(place).count() == 1,
            "the runner is another one than bogo_runner.rs knows how to change"
        );
        Ok(source.replace(place, &format!("{place}{addition}")))
    })
}

/// Without modules, which would want the network.
fn build(folder: &Path, tree: &Path, program: &Path) -> Result<()> {
    let Some(go) = paths::find_program("go") else { bail!("no go on PATH: install golang-go") };
    let mut compile = command(go, ["test", "-c", "-o"]);
    compile.arg(program).arg("./ssl/test/runner").current_dir(tree);
    compile.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOTOOLCHAIN", "local");
    compile.env("GOPATH", format!("{}:{DEBIANS_GO}", folder.join("go").display()));
    output(compile.env("GOCACHE", folder.join("cache"))).context("cannot build BoringSSL's test runner")?;
    remove_folder(&folder.join("cache"))?;
    note(&format!("{}", program.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_there_once_or_the_runner_is_refused() {
        let places: String = CHANGES.iter().map(|(place, _)| *place).collect();
        let once = changed(&places).unwrap();
        assert!(CHANGES.iter().all(|(place, addition)| once.contains(&format!("{place}{addition}"))));
        assert!(changed("").is_err());
        assert!(changed(&places.repeat(2)).is_err());
    }
}
