//! Folders under the target directory that are made once. A stamp within says of what: when that changes, or the making was cut
//! off, they are made anew.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{command::step, kernels::remove_folder};

/// Has `make` fill the stamp's folder, which is empty then, unless `stamp` says `edition` already. `what` is said before.
pub(crate) fn make_once(
    stamp: &Path,
    edition: &str,
    what: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    if fs::read_to_string(stamp).is_ok_and(|made| made == edition) {
        return Ok(());
    }
    step(what);
    let folder = stamp.parent().context("a stamp lies in a folder")?;
    remove_folder(folder)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    make(folder)?;
    fs::write(stamp, edition).with_context(|| format!("cannot write {}", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_for_each_edition_and_again_when_that_was_cut_off() {
        let folder = std::env::temp_dir().join(format!("meshd-once-{}", std::process::id()));
        let stamp = folder.join("made");
        let mut made = Vec::new();
        for (edition, ends_well) in [("1", true), ("1", true), ("2", false), ("2", true), ("2", true)] {
            let outcome = make_once(&stamp, edition, "a folder", |folder| {
                made.push(edition);
                assert_eq!(fs::read_dir(folder)?.count(), 0);
                fs::write(folder.join("part"), edition)?;
                anyhow::ensure!(ends_well, "cut off");
                Ok(())
            });
            assert_eq!(outcome.is_ok(), ends_well);
        }
        remove_folder(&folder).unwrap();
        assert_eq!(made, ["1", "2", "2"]);
    }
}
