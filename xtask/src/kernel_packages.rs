//! Finds and downloads Debian's kernel packages: which one is the newest of a series, and what it is split into.

use std::{cmp::Reverse, path::Path};

use anyhow::{Result, bail};

use crate::{debian_archive::Archive, kernels::Series};

/// Downloads the newest kernel of a series and unpacks it.
pub(crate) fn download(series: Series, archive: &Archive, into: &Path) -> Result<()> {
    let names = archive.search("^linux-image-.*-cloud-amd64")?;
    let Some(image) = newest_image(series, names.iter().map(String::as_str)) else {
        bail!(
            "Debian's suites have no package like {}*{}",
            series.package_pattern().0,
            series.package_pattern().1
        );
    };
    let depends = archive.depends(&image)?;
    let packages: Vec<String> = std::iter::once(image).chain(parts(&depends)).collect();
    archive.unpack(&packages, into)
}

/// The newest image package of a series; of two of one version the signed one, which is the shorter name.
fn newest_image<'a>(series: Series, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let (before, after) = series.package_pattern();
    let version = |name: &str| -> Option<Vec<u32>> {
        let name = name.strip_suffix("-unsigned").unwrap_or(name);
        let number = name.strip_prefix(before)?.strip_suffix(after)?;
        number.split('.').map(|part| part.parse().ok()).collect()
    };
    let known = names.filter_map(|name| Some((version(name)?, name)));
    known
        .max_by_key(|(version, name)| (version.clone(), Reverse(name.len())))
        .map(|(_, name)| name.to_owned())
}

/// The packages that newer image packages are split into (base: the list of built-in modules).
fn parts(depends: &str) -> impl Iterator<Item = String> {
    const PARTS: [&str; 3] = ["linux-base-", "linux-binary-", "linux-modules-"];
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| PARTS.iter().any(|part| name.starts_with(part))).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_is_chosen_by_number_not_by_text() {
        let names = [
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
            "linux-image-6.12.90+deb12.1-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
        ];
        let newest = |series| newest_image(series, names.into_iter());
        assert_eq!(newest(Series::V6_12).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(Series::V7_3).as_deref(), Some("linux-image-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(Series::V6_1), None);
    }

    #[test]
    fn an_unsigned_image_is_taken_where_it_alone_is_newest() {
        let names = ["linux-image-6.1.0-55-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64-unsigned"];
        let newest = newest_image(Series::V6_1, names.into_iter());
        assert_eq!(newest.as_deref(), Some("linux-image-6.1.0-56-cloud-amd64-unsigned"));
    }

    #[test]
    fn a_split_image_brings_its_parts() {
        let depends = "linux-image-7.3.4\n  Depends: linux-base-7.3.4\n  Depends: linux-binary-7.3.4\n \
                       |Depends: dracut\n  Depends: linux-modules-7.3.4\n";
        let expected = ["linux-base-7.3.4", "linux-binary-7.3.4", "linux-modules-7.3.4"];
        assert_eq!(parts(depends).collect::<Vec<_>>(), expected);
        assert_eq!(parts("linux-image-6.1.0-56\n  Depends: linux-base\n  Depends: kmod\n").count(), 0);
    }
}
