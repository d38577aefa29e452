//! What the CA does by itself: looks at what other replicas wrote, notes acknowledgements, goes on with rotations, signs
//! new revocation lists in time, forgets what ended.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Authority, folder, jwt, lock, motion, now, refusal, rows};
use crate::ca::CaError;

/// Busy registers change all the time; they are looked at that often.
const PAUSE: Duration = Duration::from_millis(100);

impl Authority {
    /// Runs until told to stop. Each of several replicas does.
    pub async fn run(&self, stop: CancellationToken) {
        let mut changed = self.0.state.changed();
        let mut due = tokio::time::interval(self.settings().interval.max(PAUSE));
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last_error = None;
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                _ = due.tick() => self.do_due().await,
                () = self.0.wake.notified() => self.write_acknowledgements().await,
                told = changed.changed() => {
                    if told.is_err() {
                        return;
                    }
                    self.refresh()
                }
            };
            let error = outcome.err().map(|error| error.to_string());
            if error != last_error {
                if let Some(error) = &error {
                    tracing::error!(%error, "the CA goes on with what it has");
                } else {
                    tracing::info!("the CA is well again");
                }
                last_error = error;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Everything that is due now.
    ///
    /// # Errors
    /// When the state or the CA's files cannot be used; what could be done was done.
    pub(super) async fn do_due(&self) -> Result<(), CaError> {
        self.write_acknowledgements().await?;
        let looked = self.change_quietly(folder::look).await;
        let moved = self.change_quietly(motion::due).await;
        if let Some(jwt) = self.0.jwt.get().cloned() {
            let shared = Arc::clone(&self.0.shared);
            let due = move |c: &rusqlite::Connection| jwt::due(c, &shared, &jwt, shared.clocks.look().wall);
            self.0.state.write(due).await.map_err(refusal)?;
        }
        self.refresh()?;
        if moved? {
            self.sweep().await?;
        }
        looked.map(drop)
    }

    /// A transaction that is undone, and so told to nobody, where it changed nothing.
    async fn change_quietly(
        &self,
        work: fn(&rusqlite::Connection, &super::Shared, i64) -> rusqlite::Result<bool>,
    ) -> Result<bool, CaError> {
        let shared = Arc::clone(&self.0.shared);
        self.0.state.write(move |c| work(c, &shared, shared.clocks.look().wall)).await.map_err(refusal)
    }

    async fn write_acknowledgements(&self) -> Result<(), CaError> {
        let waiting: BTreeMap<String, u64> = std::mem::take(&mut *lock(&self.0.acknowledged));
        if waiting.is_empty() {
            return Ok(());
        }
        Ok(self.0.state.write(move |c| rows::acknowledge(c, &waiting, now())).await?)
    }
}
