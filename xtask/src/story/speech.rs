//! How the story is told: headings, commands, quoted output and claims, coloured if asked for.

use anyhow::{Result, bail};

/// Prints the story.
pub(super) struct Speech {
    colour: bool,
}

impl Speech {
    pub(super) fn new(colour: bool) -> Self {
        Self { colour }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub(super) fn title(&self, text: &str) {
        println!("\n{}", self.paint("1;36", &format!("== {text}")));
    }

    /// A sentence.
    pub(super) fn say(text: &str) {
        println!("{text}");
    }

    /// A command as it could be typed.
    pub(super) fn command(&self, place: &str, line: &str) {
        println!("{} {}", self.paint("33", &format!("{place}$")), self.paint("1", line));
    }

    /// Quoted output, `marker` in it in red.
    pub(super) fn quote(&self, text: &str, marker: &str) {
        for line in text.lines() {
            println!("    {}", line.replace(marker, &self.paint("1;31", marker)));
        }
    }

    /// What must be so: said when it is, the end of the story when it is not.
    pub(super) fn claim(&self, holds: bool, text: &str) -> Result<()> {
        if holds {
            println!("  {} {text}", self.paint("1;32", "ok"));
            return Ok(());
        }
        println!("  {} {text}", self.paint("1;31", "NOT SO"));
        bail!("the demo did not show: {text}")
    }
}
