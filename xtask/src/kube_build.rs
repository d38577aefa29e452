//! Kubernetes' API server, controller manager, scheduler and kubelet, 1.20.2: Debian 12's source, verified with Debian's keys,
//! built by Debian's Go 1.19 without its network; and Debian's etcd. Nothing of them is in our tree. Two cores take two to three
//! minutes, the scheduler and the kubelet 25 s of that.
//!
//! Three things make it odd. The vendor folder is refused by this Go in module mode, so GOPATH mode builds it. The generated
//! `OpenAPI` file is not in the source, so its generator is built first. And the vendored reflect2 crashes on Go 1.18 and
//! later unless it does what its own version 1.0.2 does.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{command, note, output},
    debian_archive::Archive,
    kube::{CONTROLLER_MANAGER, KUBELET, SCHEDULER},
    packages, paths,
    setup::needs,
};

/// Changed whenever what is built is another thing.
pub(crate) const EDITION: &str = "1.20.2-2";

const SOURCE: &str = "kubernetes=1.20.5+really1.20.2-1.1+deb12u1";
const ORIGINAL: &str = "kubernetes_1.20.5+really1.20.2.orig.tar.gz";
/// Packages that are unpacked, not installed: Go 1.19 beside whatever Go the machine has.
const BINARIES: [&str; 3] = ["etcd-server", "golang-1.19-go", "golang-1.19-src"];
const IMPORTED_AS: &str = "go/src/k8s.io/kubernetes";
const GENERATED: &str = "k8s.io/kubernetes/pkg/generated/openapi";
/// Marks what the generator reads.
const MARK: &str = "+k8s:openapi-gen=";

/// What is changed in reflect2: file, place, and what is there instead.
const CHANGES: [(&str, &str, &str); 3] = [
    (
        "unsafe_link.go",
        "func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer) *hiter",
        "func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer, it *hiter)",
    ),
    (
        "unsafe_link.go",
        "\t// rest fields are ignored\n",
        "\tt, h, buckets, bptr unsafe.Pointer\n\toverflow, oldoverflow *[]unsafe.Pointer\n\tstartBucket uintptr\n\
         \toffset uint8\n\twrapped bool\n\tB, i uint8\n\tbucket, checkBucket uintptr\n",
    ),
    (
        "unsafe_map.go",
        "\treturn &UnsafeMapIterator{\n\
         \t\thiter:      mapiterinit(type2.rtype, *(*unsafe.Pointer)(obj)),",
        "\tvar it hiter\n\tmapiterinit(type2.rtype, *(*unsafe.Pointer)(obj), &it)\n\
         \treturn &UnsafeMapIterator{\n\t\thiter:      &it,",
    ),
];

/// Builds in `work` and puts the four programs and `etcd` into `assets`.
pub(crate) fn build(work: &Path, assets: &Path) -> Result<()> {
    packages::ensure(&needs(&["debian-archive-keyring", "dpkg-dev"]), "building Kubernetes' API server")?;
    let tree = work.join(IMPORTED_AS);
    unpack(work, &tree)?;
    change(&tree.join("vendor/github.com/modern-go/reflect2"))?;
    let go = Go { work: work.to_path_buf(), tree: tree.clone() };
    generate(&go)?;
    let stamped = version_flags();
    for program in ["kube-apiserver", CONTROLLER_MANAGER, SCHEDULER, KUBELET] {
        go.build(&assets.join(program), &format!("./cmd/{program}"), Some(&stamped))?;
    }
    let etcd = work.join("usr/bin/etcd");
    fs::copy(&etcd, assets.join("etcd")).with_context(|| format!("no {}", etcd.display()))?;
    Ok(())
}

fn unpack(work: &Path, tree: &Path) -> Result<()> {
    let fetched = work.join("fetched");
    for folder in [&fetched, tree] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Archive::open_sources(&work.join("apt-sources"))?.fetch_source(SOURCE, &fetched)?;
    let source = fetched.join(ORIGINAL);
    let mut tar = command("tar", ["--extract", "--gzip", "--strip-components=1"]);
    tar.args(["--file".as_ref(), source.as_os_str(), "--directory".as_ref(), tree.as_os_str()]);
    output(&mut tar)?;
    Archive::open(&work.join("apt"))?.unpack(&BINARIES.map(str::to_owned), work)
}

fn change(reflect2: &Path) -> Result<()> {
    for (file, place, instead) in CHANGES {
        let path = reflect2.join(file);
        let source = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&path, changed(&source, place, instead)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn changed(source: &str, place: &str, instead: &str) -> Result<String> {
    ensure!(
        source.matches(place).count() == 1,
        "reflect2 is another one than kube_build.rs knows how to change"
    );
    Ok(source.replace(place, instead))
}

/// Go 1.19 without modules, network and C.
struct Go {
    work: PathBuf,
    tree: PathBuf,
}

impl Go {
    fn build(&self, program: &Path, package: &str, flags: Option<&str>) -> Result<()> {
        let root = self.work.join("usr/lib/go-1.19");
        let mut go = command(root.join("bin/go"), ["build", "-trimpath", "-tags", "providerless"]);
        // Debugging information nobody reads: a third of the time.
        go.args(["-gcflags=all=-dwarf=false", "-o"]).arg(program);
        go.args(flags.map(|flags| format!("-ldflags={flags}"))).arg(package).current_dir(&self.tree);
        go.env("GOROOT", root).env("GOPATH", self.work.join("go")).env("GOCACHE", self.work.join("cache"));
        go.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOPROXY", "off").env("CGO_ENABLED", "0");
        output(go.env("GOGC", "400"))?;
        note(&format!("built {package}"));
        Ok(())
    }
}

/// The file of `OpenAPI` definitions, and the check that Kubernetes' own build makes of it.
fn generate(go: &Go) -> Result<()> {
    let generator = go.work.join("openapi-gen");
    go.build(&generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen", None)?;
    let packages = marked_packages(&go.tree)?;
    let violations = go.work.join("violations");
    let mut generate = Command::new(&generator);
    generate.args(["--logtostderr", "-p", GENERATED, "-O", "zz_generated.openapi"]);
    generate.args(["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"]);
    generate.arg("-i").arg(packages.into_iter().collect::<Vec<_>>().join(",")).arg("-r").arg(&violations);
    let go_root = go.work.join("usr/lib/go-1.19");
    let path = paths::search_path();
    let path = std::env::join_paths([go_root.join("bin")].into_iter().chain(std::env::split_paths(&path)))?;
    generate.env("GOROOT", &go_root).env("GOPATH", go.work.join("go")).env("GO111MODULE", "off");
    generate.env("GOFLAGS", "").env("GOPROXY", "off").env("PATH", path).current_dir(&go.tree);
    output(&mut generate).context("cannot generate the OpenAPI definitions")?;
    let known = go.tree.join("api/api-rules/violation_exceptions.list");
    ensure!(fs::read(&violations)? == fs::read(&known)?, "the OpenAPI generator found other types");
    Ok(())
}

/// Import paths of the packages whose comments ask for definitions.
fn marked_packages(tree: &Path) -> Result<BTreeSet<String>> {
    let mut grep = command("grep", ["-rl", "--include=*.go", "--fixed-strings", MARK]);
    let own = output(grep.args(["cmd", "pkg", "plugin"]).current_dir(tree))?;
    // Links below vendor/k8s.io lead to staging: -R follows them.
    let mut grep = command("grep", ["-Rl", "--include=*.go", "--exclude-dir=testdata", "--fixed-strings"]);
    let vendored = output(grep.args([MARK, "vendor/k8s.io"]).current_dir(tree))?;
    let mut packages = BTreeSet::new();
    for file in own.lines().chain(vendored.lines()) {
        let Some(folder) = Path::new(file).parent().and_then(Path::to_str) else { continue };
        let left_out = ["code-generator", "sample-apiserver"].map(|name| format!("vendor/k8s.io/{name}/"));
        if left_out.iter().any(|prefix| format!("{folder}/").starts_with(prefix.as_str())) {
            continue;
        }
        let path = tree.join(file);
        let source = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if source.lines().any(is_marked) {
            packages.insert(format!("k8s.io/kubernetes/{folder}"));
        }
    }
    Ok(packages)
}

/// `// +k8s:`, a comment of its own.
fn is_marked(line: &str) -> bool {
    line.strip_prefix("//").is_some_and(|rest| rest.trim_start_matches(' ').starts_with("+k8s:"))
}

/// What `kube-apiserver --version` and the API say.
fn version_flags() -> String {
    let values = ["gitVersion=v1.20.2", "gitMajor=1", "gitMinor=20", "gitTreeState=archive"];
    let packages = ["client-go/pkg", "component-base"];
    let flags = packages.iter().flat_map(|package| {
        values.map(|value| format!("-X k8s.io/kubernetes/vendor/k8s.io/{package}/version.{value}"))
    });
    ["-s".to_owned(), "-w".to_owned()].into_iter().chain(flags).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_there_once_or_reflect2_is_refused() {
        let (_, place, instead) = CHANGES[0];
        assert_eq!(changed(place, place, instead).unwrap(), instead);
        assert!(changed("", place, instead).is_err());
        assert!(changed(&place.repeat(2), place, instead).is_err());
    }

    #[test]
    fn only_a_comment_of_its_own_marks_a_package() {
        assert!(is_marked("// +k8s:openapi-gen=true") && is_marked("//+k8s:deepcopy-gen=package"));
        assert!(!is_marked("\t// +k8s:openapi-gen=true") && !is_marked("// see +k8s:openapi-gen=true"));
    }
}
