//! `kind: List`, what `kubectl get -o yaml` prints: cuts its items out as texts of their own, lines and columns
//! kept, so that an item is read exactly as a document is. Only block style is cut; nothing is guessed.

use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::Spanned;

use crate::config::yaml::{self, Problem};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct List {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    items: Vec<Spanned<IgnoredAny>>,
}

/// One item: its text, and the line of the list's text that it starts at, 1-based.
pub(super) struct Item {
    pub(super) text: String,
    pub(super) line: usize,
}

/// The items of a list that starts at `first_line` of its file.
pub(super) fn items(text: &str, first_line: u64) -> Result<Vec<Item>, Problem> {
    let list: List = yaml::parse(text, first_line)?;
    let lines: Vec<&str> = text.lines().collect();
    let starts: Vec<_> =
        list.items.iter().map(|item| (item.referenced.line(), item.referenced.column())).collect();
    let index = |line: u64| usize::try_from(line).ok()?.checked_sub(1);
    let mut items = Vec::with_capacity(starts.len());
    for (i, (line, column)) in starts.iter().enumerate() {
        let next = starts.get(i + 1).and_then(|(line, _)| index(*line));
        let cut = index(*line).and_then(|start| Some((start, cut(&lines, start)?)));
        // An item that does not reach to the next one was not understood.
        let whole = cut.filter(|(_, (_, end))| next.is_none_or(|next| next == *end));
        let Some((start, (text, _))) = whole else {
            let what = format!("items[{i}] does not start with \"- \" on a line of its own");
            return Err(Problem {
                line: Some(line + first_line - 1),
                column: Some(*column),
                what,
                hint: Some("a List is read as `kubectl get -o yaml` prints it".to_owned()),
            });
        };
        items.push(Item { text, line: start + 1 });
    }
    Ok(items)
}

/// The item that starts in line `start`, and the line after it. Its lines are indented deeper than its dash,
/// which becomes a space; comments may be anywhere.
fn cut(lines: &[&str], start: usize) -> Option<(String, usize)> {
    let first = lines.get(start)?;
    let dash = first.find(|c| c != ' ')?;
    let inner = first.get(dash..)?.strip_prefix("- ")?;
    let mut text = format!("{}  {inner}\n", &first[..dash]);
    let mut end = start + 1;
    for line in &lines[end..] {
        let loose = line.trim_start().is_empty() || line.trim_start().starts_with('#');
        if !loose && line.find(|c| c != ' ').is_none_or(|indent| indent <= dash) {
            break;
        }
        text.push_str(line);
        text.push('\n');
        end += 1;
    }
    Some((text, end))
}
