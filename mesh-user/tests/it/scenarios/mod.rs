//! The stories by topic. Each function is one story with one reason to fail; its name is the sentence it proves.

use super::harness::Story;

mod selfcheck;

/// All stories with their topic.
pub(crate) fn all() -> Vec<(&'static str, &'static Story)> {
    let topics: [(&str, &'static [Story]); 1] = [("selfcheck", selfcheck::STORIES)];
    topics.into_iter().flat_map(|(topic, stories)| stories.iter().map(move |story| (topic, story))).collect()
}
