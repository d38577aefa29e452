//! `cargo xtask image`: meshd and meshctl, linked statically, and what they need, as an OCI image in one file. No container
//! engine is asked: an image is a few archives and JSON documents that name each other by their SHA-256. The same programs
//! make the same bytes.
//!
//! Source: OCI Image Format Specification 1.1 (image layout, index, manifest, configuration); `manifest.json` is what `docker
//! load` read before it read OCI's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    command::{command, note, output, run, step},
    ebpf,
    kernels::remove_folder,
    packages, paths,
    setup::needs,
};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PROGRAMS: [&str; 2] = ["meshd", "meshctl"];
/// Servers outside of the mesh are known by them: key sets, federated trust domains.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

#[derive(Args)]
pub(crate) struct ImageArgs {
    /// The image's name and tag
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("meshd:", env!("CARGO_PKG_VERSION")))]
    tag: String,
}

pub(crate) fn image(args: &ImageArgs) -> Result<()> {
    let programs = build()?;
    let folder = paths::target()?.join("image");
    remove_folder(&folder)?;
    stage(&programs, &folder.join("root"))?;
    step("OCI image");
    let archive = write(&folder, "meshd.tar", &args.tag, &["/usr/bin/meshd"])?;
    let size = fs::metadata(&archive).context("no image")?.len();
    note(&format!(
        "{} ({} KiB): skopeo copy oci-archive:{0} docker://{}",
        archive.display(),
        size / 1024,
        args.tag
    ));
    Ok(())
}

/// Makes `folder/archive`: the image of all in `folder/root`, called `tag`.
pub(crate) fn write(folder: &Path, archive: &str, tag: &str, entrypoint: &[&str]) -> Result<PathBuf> {
    let (root, layout, archive) = (folder.join("root"), folder.join("layout"), folder.join(archive));
    fs::create_dir_all(layout.join("blobs/sha256")).context("cannot create the image's folder")?;
    let (layer, plain) = layer(folder, &root, &layout)?;
    let config = json!({
        "architecture": architecture()?.oci, "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/usr/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{plain}")] },
    });
    let config = Blob::of_json(&layout, CONFIG, &config)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    let manifest = Blob::of_json(&layout, MANIFEST, &manifest)?;
    for (name, document) in documents(tag, &manifest, &config, &layer) {
        fs::write(layout.join(name), document.to_string()).with_context(|| format!("cannot write {name}"))?;
    }
    pack(&layout, &archive)?;
    Ok(archive)
}

/// How this machine's processor is called.
struct Architecture {
    rust: &'static str,
    oci: &'static str,
}

fn architecture() -> Result<Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(Architecture { rust: "x86_64-unknown-linux-musl", oci: "amd64" }),
        "aarch64" => Ok(Architecture { rust: "aarch64-unknown-linux-musl", oci: "arm64" }),
        other => bail!("no image is made for {other}"),
    }
}

/// The programs, linked with musl: they need no file of the image but themselves.
fn build() -> Result<Vec<PathBuf>> {
    packages::ensure(&needs(&["musl-tools", "ca-certificates"]), "a static build")?;
    let target = architecture()?.rust;
    let libraries = output(&mut command("rustc", ["--print", "target-libdir", "--target", target]))?;
    if !Path::new(libraries.trim()).is_dir() {
        run(&mut command("rustup", ["target", "add", target]))
            .with_context(|| format!("no Rust library for {target}: install it beside this compiler"))?;
    }
    ebpf::build()?;
    step(&format!("meshd and meshctl ({target})"));
    let mut cargo = command(paths::cargo(), ["build", "--release", "--target", target]);
    cargo.args(PROGRAMS.iter().flat_map(|program| ["--bin", program]));
    cargo.env(format!("CC_{}", target.replace('-', "_")), "musl-gcc").current_dir(paths::workspace());
    run(&mut cargo).context("cannot build meshd and meshctl")?;
    let folder = paths::target()?.join(target).join("release");
    Ok(PROGRAMS.iter().map(|program| folder.join(program)).collect())
}

/// The image's files.
pub(crate) fn stage(programs: &[PathBuf], root: &Path) -> Result<()> {
    let (bin, roots) = (root.join("usr/bin"), root.join(ROOTS));
    for folder in [Some(bin.as_path()), roots.parent()].into_iter().flatten() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    for program in programs {
        let Some(name) = program.file_name() else { continue };
        output(command("strip", ["-o".as_ref(), bin.join(name).as_os_str()]).arg(program))?;
    }
    fs::copy(Path::new("/").join(ROOTS), &roots).context("no root certificates (package ca-certificates)")?;
    Ok(())
}

/// The files as the image's one layer; also the digest of the archive before it was compressed.
fn layer(folder: &Path, root: &Path, layout: &Path) -> Result<(Blob, String)> {
    let archive = folder.join("layer.tar");
    pack(root, &archive)?;
    let plain = digest(&archive)?;
    output(command("gzip", ["--no-name", "--best", "--force"]).arg(&archive))?;
    Ok((Blob::of_file(layout, LAYER, &archive.with_extension("tar.gz"))?, plain))
}

/// An archive of all in `folder`, as if root had made it in 1970.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let mut tar = command(
        "tar",
        ["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"],
    );
    tar.arg("--file").arg(archive).arg("--directory").arg(folder).arg("--mode=u+rw,go=rX").arg(".");
    output(&mut tar).map(drop)
}

/// SHA-256, in hexadecimal digits.
fn digest(file: &Path) -> Result<String> {
    let said = output(command("sha256sum", ["--"]).arg(file))?;
    Ok(said.split_whitespace().next().context("sha256sum said nothing")?.trim_start_matches('\\').to_owned())
}

/// A document or an archive, under the name of its digest.
struct Blob {
    kind: &'static str,
    digest: String,
    bytes: u64,
}

impl Blob {
    fn of_file(layout: &Path, kind: &'static str, file: &Path) -> Result<Self> {
        let (digest, bytes) = (digest(file)?, fs::metadata(file)?.len());
        fs::rename(file, layout.join("blobs/sha256").join(&digest))?;
        Ok(Self { kind, digest, bytes })
    }

    fn of_json(layout: &Path, kind: &'static str, document: &Value) -> Result<Self> {
        let file = layout.join("document");
        fs::write(&file, document.to_string())?;
        Self::of_file(layout, kind, &file)
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.kind, "digest": format!("sha256:{}", self.digest), "size": self.bytes })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

/// What says where the rest is.
fn documents(tag: &str, manifest: &Blob, config: &Blob, layer: &Blob) -> [(&'static str, Value); 3] {
    let mut named = manifest.descriptor();
    let short = tag.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    named["annotations"] =
        json!({ "org.opencontainers.image.ref.name": short, "io.containerd.image.name": full(tag) });
    [
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json", json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [named] })),
        ("manifest.json", json!([{ "Config": config.path(), "RepoTags": [tag], "Layers": [layer.path()] }])),
    ]
}

/// As container runtimes call it: with its registry.
fn full(tag: &str) -> String {
    let registry = tag.split_once('/').map_or("", |(first, _)| first);
    match (tag.contains('/'), registry.contains(['.', ':']) || registry == "localhost") {
        (_, true) => tag.to_owned(),
        (true, false) => format!("docker.io/{tag}"),
        (false, false) => format!("docker.io/library/{tag}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_registry() {
        for (tag, expected) in [
            ("meshd:1", "docker.io/library/meshd:1"),
            ("me/meshd:1", "docker.io/me/meshd:1"),
            ("r.example/meshd:1", "r.example/meshd:1"),
            ("localhost/meshd:1", "localhost/meshd:1"),
            ("127.0.0.1:5000/meshd:1", "127.0.0.1:5000/meshd:1"),
        ] {
            assert_eq!(full(tag), expected);
        }
    }

    #[test]
    fn documents_name_what_they_are_about() {
        let blob = |kind, digest: &str| Blob { kind, digest: digest.to_owned(), bytes: 7 };
        let (manifest, config, layer) = (blob(MANIFEST, "aa"), blob(CONFIG, "bb"), blob(LAYER, "cc"));
        let documents = documents("r.example/meshd:1.2", &manifest, &config, &layer);
        let index = &documents.iter().find(|(name, _)| *name == "index.json").unwrap().1;
        let named = &index["manifests"][0];
        assert_eq!((&named["digest"], &named["size"]), (&json!("sha256:aa"), &json!(7)));
        assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1.2");
        let old = &documents.iter().find(|(name, _)| *name == "manifest.json").unwrap().1;
        assert_eq!(
            old[0],
            json!({ "Config": "blobs/sha256/bb", "RepoTags": ["r.example/meshd:1.2"],
            "Layers": ["blobs/sha256/cc"] })
        );
    }
}
