//! Translation of the objects of a moment.
