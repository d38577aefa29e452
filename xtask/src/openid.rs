//! An `OpenID` provider for the stories about tokens: npm's `oidc-provider`, under the target directory. A machine that
//! cannot have it runs everything else.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{command, note, run_quietly},
    once::make_once,
    paths,
};

/// As npm names it. It runs on the Node.js of Debian 12 and later; newer major versions do not.
const REQUIREMENT: &str = "oidc-provider@8.8.1";

/// Installs it, or says why its stories are skipped.
pub(crate) fn ensure() {
    if let Err(error) = try_ensure() {
        note(&format!("no OpenID provider, and the stories with it are skipped: {error:#}"));
    }
}

fn try_ensure() -> Result<()> {
    let stamp = paths::target()?.join("tools/openid/installed");
    make_once(&stamp, REQUIREMENT, &format!("{REQUIREMENT} from npm"), |folder| {
        let npm = paths::find_program("npm").context("no npm")?;
        // No script of a package is run: it needs none.
        let arguments =
            ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact", REQUIREMENT];
        run_quietly(command(npm, arguments).arg("--prefix").arg(folder).current_dir(folder), "install it")?;
        let module = module(folder);
        ensure!(module.is_file(), "npm made no {}", module.display());
        Ok(())
    })
}

/// Where the stories look for it.
fn module(folder: &Path) -> PathBuf {
    folder.join("node_modules/oidc-provider/lib/index.js")
}
