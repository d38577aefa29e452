//! Sources that build the next [`crate::world::World`]: files now.
